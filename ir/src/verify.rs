//! The verifier: every invariant of a model, all violations at once, each with its node.
//!
//! Of every graph (the inference graph, programs, functions, subgraphs):
//! 1. it has no cycle; every edge joins slots that exist, and no input slot is joined twice;
//! 2. value names are unique and not empty (an operator's output that nobody reads may be left out);
//! 3. its inputs are its input nodes; its outputs exist, under unique names that are not empty;
//! 4. a parameter node has its entry, of the same type; functions have no parameters;
//! 5. captures stand only in subgraphs and name a capture that the node has; subgraphs nest at most 32 deep;
//! 6. an operator is in the table, or in a domain that the model imports, or a model-local function; arities fit the table;
//! 7. declared types agree with inference (in models of the internal opset or later; the table's rules speak no other).
//!
//! Of the model: bindings write existing outputs to `Trainable` or `State` parameters of the same type, each at most
//! once; programs are called like their graphs; functions have distinct names and form a DAG at most 64 deep.

use crate::error::{Error, Result};
use crate::graph::{Graph, Node, NodeId, NodeKind, Operator};
use crate::model::{Function, Model, Program};
use crate::types::Type;
use crate::{OPSET, SARTOR_DOMAIN, infer, ops};
use std::collections::{HashMap, HashSet};

/// Subgraphs nest at most this deep.
pub const MAX_SUBGRAPH_DEPTH: usize = 32;
/// Functions call each other at most this deep.
pub const MAX_FUNCTION_DEPTH: usize = 64;

/// Checks a model; an error holds all violations.
pub fn verify(model: &Model) -> Result<()> {
    let mut verifier = Verifier { model, errors: Vec::new() };
    verifier.top_graph(&model.graph, "graph");
    for (name, program) in &model.programs {
        verifier.program(name, program);
    }
    for function in &model.functions {
        verifier.function(function);
    }
    verifier.function_dag();
    Error::all(verifier.errors)
}

/// Where a graph stands.
#[derive(Clone, Copy)]
struct Scope<'a> {
    place: &'a str,
    depth: usize,
    /// The captures of the node around a subgraph; `None` for others.
    captures: Option<usize>,
    in_function: bool,
}

struct Verifier<'a> {
    model: &'a Model,
    errors: Vec<Error>,
}

impl Verifier<'_> {
    fn report(&mut self, place: &str, sentence: impl Into<String>) {
        self.errors.push(Error::msg(sentence).at(place));
    }

    /// A graph of its own; types are inferred if its structure is sound.
    fn top_graph(&mut self, graph: &Graph, place: &str) {
        let before = self.errors.len();
        self.graph(graph, Scope { place, depth: 0, captures: None, in_function: false });
        if self.errors.len() == before && self.model.opset() >= OPSET {
            if let Err(error) = infer::facts(graph, self.model.opset(), &HashMap::new()) {
                self.errors.extend(split(error).into_iter().map(|e| e.at(place)));
            }
        }
    }

    fn graph(&mut self, graph: &Graph, scope: Scope) {
        if scope.depth > MAX_SUBGRAPH_DEPTH {
            return self.report(scope.place, format!("subgraphs nest more than {MAX_SUBGRAPH_DEPTH} deep"));
        }
        self.cycles(graph, scope);
        self.names(graph, scope);
        self.ends(graph, scope);
        for id in graph.node_ids() {
            for problem in graph.wiring_problems(id) {
                self.report(scope.place, format!("{}: {problem}", graph.node(id).label()));
            }
            self.node(graph, id, scope);
        }
    }

    fn cycles(&mut self, graph: &Graph, scope: Scope) {
        let order = graph.topo();
        if order.len() == graph.len() {
            return;
        }
        let sorted: HashSet<NodeId> = order.into_iter().collect();
        let stuck = graph.node_ids().filter(|id| !sorted.contains(id)).map(|id| graph.node(id).label());
        let named: Vec<String> = stuck.take(8).collect();
        self.report(scope.place, format!("there is a cycle; on it or behind it: {}", named.join(", ")));
    }

    fn names(&mut self, graph: &Graph, scope: Scope) {
        let mut seen: HashSet<&str> = HashSet::with_capacity(graph.len());
        for id in graph.node_ids() {
            let node = graph.node(id);
            for (value, output) in graph.node_outputs(id).zip(&node.outputs) {
                if output.name.is_empty() {
                    let may_be = node.op().is_some() && graph.use_count(value) == 0;
                    if !may_be {
                        self.report(scope.place, format!("{}: output {} has no name", node.label(), value.slot));
                    }
                } else if !seen.insert(&output.name) {
                    self.report(
                        scope.place,
                        format!("{}: another value is called \"{}\" too", node.label(), output.name),
                    );
                }
            }
        }
    }

    fn ends(&mut self, graph: &Graph, scope: Scope) {
        let listed: Vec<NodeId> = graph.inputs().map(|v| v.node).collect();
        for &id in listed.iter().filter(|&&id| !graph.contains(id) || graph.node(id).kind != NodeKind::Input) {
            self.report(scope.place, format!("its input number {} is not an input node", id.index()));
        }
        for id in graph.node_ids().filter(|&id| graph.node(id).kind == NodeKind::Input) {
            if listed.iter().filter(|&&l| l == id).count() != 1 {
                let label = graph.node(id).label();
                self.report(scope.place, format!("{label} is not, exactly once, among the graph's inputs"));
            }
        }
        let mut seen = HashSet::new();
        for output in &graph.outputs {
            let name = &output.name;
            if name.is_empty() {
                self.report(scope.place, "an output has no name");
            } else if !seen.insert(name) {
                self.report(scope.place, format!("two outputs are called \"{name}\""));
            }
            let value = output.value;
            let made = graph.contains(value.node) && (value.slot as usize) < graph.node(value.node).outputs.len();
            if !made {
                self.report(scope.place, format!("output \"{name}\" is a value that no node makes"));
            }
        }
    }

    fn node(&mut self, graph: &Graph, id: NodeId, scope: Scope) {
        let node = graph.node(id);
        let problem = match &node.kind {
            NodeKind::Input => None,
            NodeKind::Const(tensor) => mismatch(node, &Type::of(tensor), "the constant"),
            NodeKind::Param(name) => self.param(node, name, scope),
            NodeKind::Capture(index) => match scope.captures {
                None => Some("it stands outside of a subgraph".to_string()),
                Some(count) if *index >= count => {
                    Some(format!("it stands for capture {index}, but the node around it has {count}"))
                }
                Some(_) => None,
            },
            NodeKind::Op(op) => self.operator(node, op),
        };
        if !matches!(node.kind, NodeKind::Op(_)) && node.outputs.len() != 1 {
            self.report(scope.place, format!("{}: it has {} outputs, expected 1", node.label(), node.outputs.len()));
        }
        if let Some(problem) = problem {
            self.report(scope.place, format!("{}: {problem}", node.label()));
        }
        self.subgraphs(node, scope);
    }

    fn param(&self, node: &Node, name: &str, scope: Scope) -> Option<String> {
        if scope.in_function {
            return Some("a function has no parameters".to_string());
        }
        match self.model.params.get(name) {
            Some(param) => mismatch(node, &Type::of(&param.tensor), "the parameter"),
            None => Some(format!("the model has no parameter \"{name}\"")),
        }
    }

    fn operator(&self, node: &Node, op: &Operator) -> Option<String> {
        let Some(def) = ops::of(op) else { return self.unknown_operator(op) };
        // A row gives the arity of the current version; older ones had fewer inputs and other outputs.
        if self.model.opset() < OPSET {
            return None;
        }
        let (inputs, outputs) = (node.formal_inputs(), node.outputs.len());
        if !(def.inputs.0..=def.inputs.1).contains(&inputs) {
            return Some(format!("it has {inputs} inputs, expected {} to {}", def.inputs.0, def.inputs.1));
        }
        if !(def.outputs.0..=def.outputs.1).contains(&outputs) {
            return Some(format!("it has {outputs} outputs, expected {} to {}", def.outputs.0, def.outputs.1));
        }
        None
    }

    fn unknown_operator(&self, op: &Operator) -> Option<String> {
        let opsets = &self.model.opsets;
        let onnx = op.domain.is_empty() || op.domain == "ai.onnx";
        let imported =
            opsets.contains_key(&op.domain) || onnx && (opsets.contains_key("") || opsets.contains_key("ai.onnx"));
        if imported && op.domain != SARTOR_DOMAIN || self.model.functions.iter().any(|f| is_call(f, op)) {
            return None;
        }
        Some(format!("the operator is not known, and the model does not import the domain \"{}\"", op.domain))
    }

    fn subgraphs(&mut self, node: &Node, scope: Scope) {
        let Some(op) = node.op() else { return };
        for (attr, graph) in op.attrs.graphs() {
            let place = format!("{}: {} of {}", scope.place, attr, node.label());
            let captures = Some(node.captures());
            self.graph(graph, Scope { place: &place, depth: scope.depth + 1, captures, ..scope });
        }
    }

    fn program(&mut self, name: &str, program: &Program) {
        let place = format!("program \"{name}\"");
        self.top_graph(&program.graph, &place);
        if program.graph.name != name {
            self.report(&place, format!("its graph is called \"{}\"", program.graph.name));
        }
        let mut written = HashSet::new();
        for binding in &program.bindings {
            if !written.insert(&binding.param) {
                self.report(&place, format!("it writes the parameter \"{}\" twice", binding.param));
            }
            if let Some(problem) = self.binding(program, &binding.output, &binding.param) {
                self.report(
                    &place,
                    format!("it binds output \"{}\" to \"{}\": {problem}", binding.output, binding.param),
                );
            }
        }
    }

    fn binding(&self, program: &Program, output: &str, param: &str) -> Option<String> {
        let Some(value) = program.graph.find_output(output) else { return Some("it has no such output".into()) };
        let Some(param) = self.model.params.get(param) else { return Some("the model has no such parameter".into()) };
        if !param.role.is_variable() {
            return Some(format!("the parameter is {}, expected trainable or state", param.role.name()));
        }
        let known = program.graph.contains(value.node).then(|| program.graph.ty(value)).flatten()?;
        let wanted = Type::of(&param.tensor);
        known.merge(&wanted).is_none().then(|| format!("the output is {known}, the parameter {wanted}"))
    }

    fn function(&mut self, function: &Function) {
        let place = format!("function \"{}\"", function_name(function));
        self.graph(&function.graph, Scope { place: &place, depth: 0, captures: None, in_function: true });
        let same =
            |f: &&Function| (&f.domain, &f.name, &f.overload) == (&function.domain, &function.name, &function.overload);
        if self.model.functions.iter().filter(same).count() > 1 {
            self.report(&place, "another function has the same name");
        }
    }

    /// Depth of the call graph by repeated relaxation: the longest chain of calls that starts at each function.
    fn function_dag(&mut self) {
        let functions = &self.model.functions;
        let calls: Vec<Vec<usize>> = functions.iter().map(|f| callees(functions, &f.graph)).collect();
        let mut depth = vec![1usize; functions.len()];
        for _ in 0..=MAX_FUNCTION_DEPTH {
            for (i, callees) in calls.iter().enumerate() {
                depth[i] = callees.iter().map(|&c| depth[c] + 1).max().unwrap_or(1).min(MAX_FUNCTION_DEPTH + 1);
            }
        }
        for (function, depth) in functions.iter().zip(depth) {
            if depth > MAX_FUNCTION_DEPTH {
                let place = format!("function \"{}\"", function_name(function));
                self.report(&place, format!("its calls form a cycle or nest more than {MAX_FUNCTION_DEPTH} deep"));
            }
        }
    }
}

fn mismatch(node: &Node, actual: &Type, what: &str) -> Option<String> {
    let declared = node.outputs.first()?.ty.as_ref()?;
    actual.merge(declared).is_none().then(|| format!("it is declared {declared}, {what} is {actual}"))
}

fn split(error: Error) -> Vec<Error> {
    match error {
        Error::Many(errors) => errors,
        error => vec![error],
    }
}

fn function_name(function: &Function) -> String {
    format!("{}::{}", function.domain, function.name)
}

/// Whether an operator is a call of a model-local function.
pub fn is_call(function: &Function, op: &Operator) -> bool {
    (&function.domain, &function.name, &function.overload) == (&op.domain, &op.name, &op.overload)
}

/// The functions that a graph calls, subgraphs included, by number; each once.
pub fn callees(functions: &[Function], graph: &Graph) -> Vec<usize> {
    let mut found = Vec::new();
    collect_callees(functions, graph, 0, &mut found);
    found.sort_unstable();
    found.dedup();
    found
}

fn collect_callees(functions: &[Function], graph: &Graph, depth: usize, found: &mut Vec<usize>) {
    for op in graph.node_ids().filter_map(|id| graph.node(id).op()) {
        found.extend(functions.iter().position(|f| is_call(f, op)));
        if depth < MAX_SUBGRAPH_DEPTH {
            op.attrs.graphs().for_each(|(_, g)| collect_callees(functions, g, depth + 1, found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Binding, DType, GraphOutput, Parameter, Role, Tensor, Value};

    fn model() -> Model {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", Type::tensor(DType::F32, [2i64]));
        let y = graph.op("Add", &[x, x], Attributes::new());
        graph.set_ty(y, Some(Type::tensor(DType::F32, [2i64])));
        graph.outputs.push(GraphOutput { name: "y".into(), value: y });
        Model::new(graph)
    }

    fn problems(model: &Model) -> Vec<String> {
        verify(model).map_or_else(|e| e.to_string().lines().map(str::to_string).collect(), |()| Vec::new())
    }

    #[test]
    fn a_sound_model_passes() {
        assert_eq!(problems(&model()), [""; 0]);
    }

    #[test]
    fn all_violations_are_reported_with_their_node() {
        let mut m = model();
        let y = m.graph.outputs[0].value;
        m.graph.param("w", Type::tensor(DType::F32, [2i64]));
        m.graph.add_capture(0, "c", None);
        m.graph.rename(Value { node: y.node, slot: 0 }, "x");
        m.graph.outputs.push(GraphOutput { name: "y".into(), value: Value { slot: 3, ..y } });
        let got = problems(&m);
        let wanted = [
            "graph: node \"x\" (Add): another value is called \"x\" too",
            "graph: two outputs are called \"y\"",
            "graph: output \"y\" is a value that no node makes",
            "graph: node \"w\" (parameter): the model has no parameter \"w\"",
            "graph: node \"c\" (captured value): it stands outside of a subgraph",
        ];
        for sentence in wanted {
            assert!(
                got.iter().any(|line| line.replace("\"Add\" (Add)", "\"x\" (Add)") == sentence),
                "{sentence}: {got:#?}"
            );
        }
        assert_eq!(got.len(), wanted.len(), "{got:#?}");
    }

    #[test]
    fn cycles_arities_and_types() {
        let mut m = model();
        let y = m.graph.outputs[0].value;
        m.graph.set_input(y.node, 1, Some(y));
        assert_eq!(problems(&m), ["graph: there is a cycle; on it or behind it: node \"Add\" (Add)"]);
        let mut m = model();
        let x = m.graph.find_input("x");
        m.graph.set_inputs(y.node, &[x]);
        assert_eq!(problems(&m), ["graph: node \"Add\" (Add): it has 1 inputs, expected 2 to 2"]);
        let mut m = model();
        m.graph.set_ty(y, Some(Type::tensor(DType::F32, [3i64])));
        let got = problems(&m);
        assert!(got.len() == 1 && got[0].contains("declared float[3]"), "{got:?}");
        let mut m = model();
        m.graph.node_mut(y.node).op_mut().unwrap().domain = "x.y".into();
        let sentence = "the operator is not known, and the model does not import the domain \"x.y\"";
        assert_eq!(problems(&m), [format!("graph: node \"Add\" (x.y::Add): {sentence}")]);
        m.opsets.insert("x.y".into(), 1);
        assert_eq!(problems(&m), [""; 0]);
    }

    #[test]
    fn bindings_write_variables_only() {
        let mut m = model();
        let tensor = Tensor::from_vec([3], vec![0f32; 3]);
        m.params.insert("w".into(), Parameter { tensor, role: Role::Frozen });
        let binding = |output: &str| Binding { output: output.into(), param: "w".into() };
        let mut graph = m.graph.clone();
        graph.name = "step".into();
        let bindings = vec![binding("y"), binding("z")];
        m.programs.insert("step".into(), Program { graph, bindings });
        let place = "program \"step\": it";
        assert_eq!(
            problems(&m),
            [
                format!("{place} binds output \"y\" to \"w\": the parameter is frozen, expected trainable or state"),
                format!("{place} writes the parameter \"w\" twice"),
                format!("{place} binds output \"z\" to \"w\": it has no such output"),
            ]
        );
        m.params["w"].role = Role::State;
        assert_eq!(
            problems(&m)[0],
            format!("{place} binds output \"y\" to \"w\": the output is float[2], the parameter float[3]")
        );
    }

    #[test]
    fn functions_form_a_dag() {
        let mut m = model();
        let mut body = Graph::new("F");
        let x = body.add_input("x", Type::unranked(DType::F32));
        let call = Operator { domain: "local".into(), name: "F".into(), ..Operator::default() };
        let node = body.add_op("call", call, &[Some(x)], 1);
        body.outputs.push(GraphOutput { name: "y".into(), value: Value { node, slot: 0 } });
        let names = (String::from("local"), String::from("F"));
        m.functions.push(Function {
            domain: names.0,
            name: names.1,
            overload: String::new(),
            graph: body,
            attributes: Vec::new(),
            defaults: Attributes::new(),
            opsets: Default::default(),
        });
        assert_eq!(problems(&m), ["function \"local::F\": its calls form a cycle or nest more than 64 deep"]);
    }
}
