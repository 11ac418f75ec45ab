//! Patterns that name nodes and parameters, and the names that a node answers to.
//!
//! | pattern | matches |
//! |---|---|
//! | `*/query/MatMul` | a glob: `*` any text (slashes and dots included), `?` one character, `[ab]`, `{a,b}` |
//! | `/layer\.[0-3]\..*query/` | between slashes, a regular expression; it may match any part of a name |
//! | `query`, `self.query` | without `*?[{`: the whole name, or its last components after a `.`, as PEFT's `target_modules` |
//!
//! A node answers to its own name, the name of its weight, and the module path its exporter left: dynamo's
//! `pkg.torch.onnx.name_scopes` and `namespace`, TorchScript's node name (`/encoder/layer.0/query/MatMul` is in the
//! module `encoder.layer.0.query`), or the weight's name without `.weight`.

use crate::near::near_misses;
use globset::{Glob, GlobMatcher};
use regex::Regex;
use sartor_ir::{Error, Graph, NodeId, Result, Value};

/// A set of patterns; see the [module](self).
#[derive(Clone, Debug)]
pub struct Patterns {
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    text: String,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    Glob(GlobMatcher),
    Regex(Regex),
    Suffix,
}

impl Row {
    fn parse(text: &str) -> Result<Row> {
        let wrong = |e: String| Error::msg(format!("pattern \"{text}\" cannot be read: {e}"));
        let regex = text.strip_prefix('/').and_then(|t| t.strip_suffix('/')).filter(|t| !t.is_empty());
        let matcher = if let Some(regex) = regex {
            Matcher::Regex(Regex::new(regex).map_err(|e| wrong(e.to_string()))?)
        } else if text.contains(['*', '?', '[', '{']) {
            Matcher::Glob(Glob::new(text).map_err(|e| wrong(e.kind().to_string()))?.compile_matcher())
        } else {
            Matcher::Suffix
        };
        Ok(Row { text: text.to_string(), matcher })
    }
    fn matches(&self, name: &str) -> bool {
        match &self.matcher {
            Matcher::Glob(glob) => glob.is_match(name),
            Matcher::Regex(regex) => regex.is_match(name),
            Matcher::Suffix => name.strip_suffix(&self.text).is_some_and(|head| head.is_empty() || head.ends_with('.')),
        }
    }
}

impl Patterns {
    /// Reads patterns; an error says which one is malformed.
    pub fn parse<S: AsRef<str>>(patterns: &[S]) -> Result<Patterns> {
        let rows: Result<Vec<Row>> = patterns.iter().map(|p| Row::parse(p.as_ref())).collect();
        Ok(Patterns { rows: rows? })
    }
    /// The pattern that these names match, whole, and no others.
    pub fn exactly<S: AsRef<str>>(names: &[S]) -> String {
        let names: Vec<String> = names.iter().map(|name| regex::escape(name.as_ref())).collect();
        format!("/^(?:{})$/", names.join("|"))
    }
    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
    /// Whether any pattern matches any of the names that a thing answers to.
    pub fn matches<S: AsRef<str>>(&self, candidate_names: &[S]) -> bool {
        self.first_match(candidate_names).is_some()
    }
    /// The number of the first pattern that matches any of the names.
    pub fn first_match<S: AsRef<str>>(&self, candidate_names: &[S]) -> Option<usize> {
        self.rows.iter().position(|row| candidate_names.iter().any(|name| row.matches(name.as_ref())))
    }
    /// An error for each pattern that matches none of the things (each given by the names it answers to), with near
    /// misses. `what` says what the things are: `parameter`, `MatMul, Gemm or Conv node`.
    pub fn check_all_match<S: AsRef<str>>(&self, things: &[Vec<S>], what: &str) -> Result<()> {
        let idle = |row: &&Row| !things.iter().flatten().any(|name| row.matches(name.as_ref()));
        let errors = self.rows.iter().filter(idle).map(|row| no_match(&row.text, things, what)).collect();
        Error::all(errors)
    }
}

fn no_match<S: AsRef<str>>(pattern: &str, things: &[Vec<S>], what: &str) -> Error {
    let names = || things.iter().flatten().map(AsRef::as_ref).filter(|name| !name.is_empty());
    let inner = pattern.trim_matches('/');
    let mut near = near_misses(inner, names(), 5);
    if near.is_empty() {
        // The last component of a path is what people misspell least.
        let tail = inner.rsplit(['/', '.']).next().unwrap_or(inner);
        near = near_misses(tail, names(), 5);
    }
    let (lead, shown): (&str, Vec<String>) = match near.is_empty() {
        false => ("near misses", near),
        true => ("there are, for example,", {
            let mut seen = std::collections::HashSet::new();
            names().filter(|name| seen.insert(*name)).take(5).map(str::to_string).collect()
        }),
    };
    let list: Vec<String> = shown.iter().map(|n| format!("\"{n}\"")).collect();
    let rest = if list.is_empty() { "there are none".to_string() } else { format!("{lead} {}", list.join(", ")) };
    Error::msg(format!("pattern \"{pattern}\" matches no {what}; {rest}"))
}

/// The names that a node answers to: its name, the name of its weight, its module path. No empty ones, no repeats.
pub fn candidate_names(graph: &Graph, id: NodeId) -> Vec<String> {
    let mut names = Vec::new();
    let mut push = |name: String| {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    };
    push(graph.node(id).name.clone());
    if let Some(weight) = weight_name(graph, id) {
        push(weight.clone());
        if let Some(module) = weight.strip_suffix(".weight") {
            push(module.to_string());
        }
    }
    module_paths(graph, id).into_iter().for_each(push);
    names
}

/// The name of the first parameter (or constant of rank ≥ 1) among a node's inputs, found through `Transpose`, `Cast`,
/// `Identity`, `Reshape` and `DequantizeLinear`.
pub fn weight_name(graph: &Graph, id: NodeId) -> Option<String> {
    let inputs = graph.node_inputs(id);
    inputs.iter().flatten().find_map(|&value| source_param(graph, value)).map(|v| graph.value_name(v).to_string())
}

/// The parameter or constant weight behind a value, seen through the operators that [`weight_name`] names.
pub(crate) fn source_param(graph: &Graph, mut value: Value) -> Option<Value> {
    const THROUGH: [&str; 5] = ["Transpose", "Cast", "Identity", "Reshape", "DequantizeLinear"];
    for _ in 0..8 {
        let node = graph.node(value.node);
        if graph.param_name(value).is_some() || node.constant().is_some_and(|t| t.rank() > 0 && t.dtype().is_float()) {
            return Some(value);
        }
        if !THROUGH.iter().any(|name| node.is(name)) {
            return None;
        }
        value = graph.input(value.node, 0)?;
    }
    None
}

/// The module paths that a node's exporter left, innermost first.
pub fn module_paths(graph: &Graph, id: NodeId) -> Vec<String> {
    let node = graph.node(id);
    let mut paths = Vec::new();
    for (key, value) in &node.meta {
        match key.as_str() {
            "pkg.torch.onnx.name_scopes" => paths.extend(innermost_scope(value)),
            "namespace" => paths.extend(innermost_namespace(value)),
            _ => {}
        }
    }
    if let Some((modules, _)) = node.name.strip_prefix('/').and_then(|n| n.rsplit_once('/')) {
        paths.push(modules.replace('/', "."));
    }
    paths
}

/// `['', 'encoder', 'encoder.query', 'linear_3']` → `encoder.query`; the last entry is the node's own name.
fn innermost_scope(list: &str) -> Option<String> {
    let entries: Vec<&str> = list.split(['\'', '"']).skip(1).step_by(2).collect();
    let modules = entries.len().checked_sub(1).map(|n| &entries[..n])?;
    modules.last().filter(|m| !m.is_empty()).map(|m| m.to_string())
}

/// `: Net/encoder: Encoder/encoder.query: torch.nn.modules.linear.Linear/linear_3: aten.linear.default` →
/// `encoder.query`.
fn innermost_namespace(text: &str) -> Option<String> {
    let entries: Vec<&str> = text.split('/').filter_map(|part| Some(part.split_once(':')?.0.trim())).collect();
    let modules = entries.len().checked_sub(1).map(|n| &entries[..n])?;
    modules.last().filter(|m| !m.is_empty()).map(|m| m.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_ir::{Attributes, DType, Type};

    fn hits(pattern: &str, names: &[&str]) -> bool {
        Patterns::parse(&[pattern]).unwrap().matches(names)
    }

    #[test]
    fn globs_regexes_and_suffixes() {
        let node = "/encoder/layer.0/attention/self/query/MatMul";
        assert!(hits("*/query/MatMul", &[node]));
        assert!(!hits("*/key/MatMul", &[node]));
        assert!(hits(r"/layer\.\d+/", &[node]));
        assert!(hits("query", &["encoder.layer.0.query"]));
        assert!(hits("query", &["query"]));
        assert!(!hits("query", &["encoder.subquery"]));
        assert!(hits("*.{query,value}", &["a.value"]));
        let error = Patterns::parse(&["[a"]).unwrap_err().to_string();
        assert!(error.starts_with("pattern \"[a\" cannot be read"), "{error}");
    }

    #[test]
    fn a_pattern_without_a_match_lists_near_misses() {
        let things = [vec!["encoder.query"], vec!["encoder.value"]];
        let patterns = Patterns::parse(&["qeury", "value"]).unwrap();
        let error = patterns.check_all_match(&things, "node").unwrap_err().to_string();
        assert_eq!(
            error,
            "pattern \"qeury\" matches no node; there are, for example, \"encoder.query\", \"encoder.value\""
        );
        let patterns = Patterns::parse(&["*.quary"]).unwrap();
        let error = patterns.check_all_match(&things, "node").unwrap_err().to_string();
        assert_eq!(error, "pattern \"*.quary\" matches no node; near misses \"encoder.query\"");
    }

    #[test]
    fn nodes_answer_to_their_module() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", Type::tensor(DType::F32, [2i64, 2]));
        let w = graph.param("enc.query.weight", Type::tensor(DType::F32, [2i64, 2]));
        let wt = graph.op("Transpose", &[w], Attributes::new());
        let y = graph.op("MatMul", &[x, wt], Attributes::new());
        graph.node_mut(y.node).name = "/enc/query/MatMul".to_string();
        assert_eq!(candidate_names(&graph, y.node), ["/enc/query/MatMul", "enc.query.weight", "enc.query"]);
        let node = graph.node_mut(y.node);
        node.name = "node_linear".to_string();
        node.meta = vec![
            ("namespace".into(), ": Net/m.value: torch.nn.modules.linear.Linear/linear: aten.linear.default".into()),
            ("pkg.torch.onnx.name_scopes".into(), "['', 'm', 'm.value', 'linear']".into()),
        ];
        assert_eq!(candidate_names(&graph, y.node), ["node_linear", "enc.query.weight", "enc.query", "m.value"]);
    }
}
