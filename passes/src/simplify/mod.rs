//! `simplify`: removes operators that do nothing, and writes others more simply.
//!
//! ```text
//! before   a = Identity (x)   b = Transpose <perm = [1, 0]> (a)   c = Transpose <perm = [1, 0]> (b)   y = Mul (c, one)
//! after    y = x                                                                   one = {1.0}
//! ```
//! (executed, with what stands beside it, by `tests/cases/simplify/nothing.txt`)
//!
//! An `If` whose condition is known makes way for the branch that is taken (`tests/cases/simplify/branch.txt`).
//!
//! *Needs* the internal opset; better after `infer` and `fold`. *Leaves* a graph to which no row of `rules` applies.
//! The same numbers (but `x + 0` turns −0 into 0). Idempotent.
//!
//! Rules are directional and look at one node and what makes its inputs. Only constants count as known: a parameter of
//! any role keeps its name and its reader, so an adapter that starts at zero is not simplified away. Nothing looks into
//! random operators or loops; dropout goes only where it is off.

mod rules;

use crate::walk::{edit_typed_graphs, edit_with_subgraphs, require_internal_opset};
use crate::{Changed, Pass};
use rules::RULES;
use sartor_ir::ops::{Emit, body, conditional};
use sartor_ir::{Context, Graph, Model, NodeId, Result, Value, bail, ensure, infer};
use schemars::JsonSchema;
use serde::Deserialize;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Simplify {}

impl Pass for Simplify {
    fn name(&self) -> &str {
        "simplify"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        require_internal_opset(model)?;
        let changed = edit_typed_graphs(model, |graph, opset| {
            let taken = take_branches(graph, opset)?;
            Ok(edit_with_subgraphs(graph, &mut |g| simplify_graph(g, opset))? | taken)
        })?;
        Ok(changed.into())
    }
}

/// Applies rules until none applies. Every rule makes the graph smaller or its operators cheaper, so this ends; the
/// bound guards against a pair of rules that undo each other.
pub(crate) fn simplify_graph(graph: &mut Graph, opset: i64) -> Result<bool> {
    simplify_some(graph, opset, |_| true)
}

/// The same with rules for this operator alone.
pub(crate) fn simplify_operator(graph: &mut Graph, opset: i64, name: &str) -> Result<bool> {
    simplify_some(graph, opset, |op| op == name)
}

fn simplify_some(graph: &mut Graph, opset: i64, wanted: impl Fn(&str) -> bool) -> Result<bool> {
    const MAX_ROUNDS: usize = 64;
    let mut changed = false;
    for _ in 0..MAX_ROUNDS {
        let mut again = false;
        for id in graph.topo_ops() {
            let used = graph.contains(id) && graph.node_outputs(id).any(|v| graph.use_count(v) > 0);
            if used && graph.node(id).op().is_some_and(|op| wanted(&op.name)) {
                again |= simplify_node(graph, id, opset)?;
            }
        }
        if !again {
            break;
        }
        changed = true;
        graph.remove_dead();
    }
    Ok(changed)
}

/// The branches of all `If`s whose conditions are known take their places, then those inside of such branches.
fn take_branches(graph: &mut Graph, opset: i64) -> Result<bool> {
    let is_if = |graph: &Graph, id: &NodeId| graph.node(*id).is("If");
    let mut changed = false;
    while graph.node_ids().any(|id| is_if(graph, &id)) {
        let facts = infer::infer_graph(graph, opset)?;
        let mut taken = false;
        for id in graph.topo_ops().into_iter().filter(|id| is_if(graph, id)).collect::<Vec<_>>() {
            let fact = graph.input(id, 0).and_then(|condition| facts.get(condition));
            if let Some(condition) = fact.and_then(|fact| fact.tensor.as_ref()) {
                take_branch(graph, id, body::truth(condition)?, opset)?;
                taken = true;
            }
        }
        if !taken {
            break;
        }
        graph.remove_dead();
        changed = true;
    }
    Ok(changed)
}

fn take_branch(graph: &mut Graph, id: NodeId, condition: bool, opset: i64) -> Result<()> {
    let node = graph.node(id);
    let (label, op) = (node.label(), node.op().cloned().unwrap_or_default());
    let branch = conditional::branch(&op, condition)?;
    let captures = graph.node_inputs(id).split_off(node.formal_inputs());
    let mut emit = Emit::new(graph, opset);
    let found = body::Splicer::new(branch, &captures, 1)?.copy(&mut emit, []).context(|| label)?;
    let old: Vec<Value> = graph.node_outputs(id).collect();
    old.into_iter().zip(found).for_each(|(old, new)| graph.substitute(old, new));
    Ok(())
}

fn simplify_node(graph: &mut Graph, id: NodeId, opset: i64) -> Result<bool> {
    let Some(op) = graph.node(id).op().filter(|op| op.domain.is_empty()) else { return Ok(false) };
    let name = op.name.clone();
    for rule in RULES.iter().filter(|rule| rule.ops.contains(&name.as_str())) {
        let label = graph.node(id).label();
        let mut emit = Emit::new(graph, opset);
        let found = (rule.apply)(&mut emit, id).context(|| format!("rule \"{}\": {label}", rule.name))?;
        if let Ok(new) = found {
            let old = Value { node: id, slot: 0 };
            graph.substitute(old, new);
            return Ok(true);
        }
    }
    Ok(false)
}

/// Why a rule does not change a node: a line per rule whose name contains `rule` (all rules for its operator, if that is empty). The model's types must be
/// inferred. An error if no node or no rule has the name.
pub fn why_not(model: &Model, rule: &str, node: &str) -> Result<Vec<String>> {
    let opset = model.opset();
    for graph in std::iter::once(&model.graph).chain(model.programs.values().map(|p| &p.graph)) {
        let Some(id) = graph.find_node(node).or_else(|| by_output(graph, node)) else { continue };
        let name = graph.node(id).op().filter(|op| op.domain.is_empty()).map(|op| op.name.clone()).unwrap_or_default();
        let looks = |r: &rules::Rule| r.ops.contains(&name.as_str());
        let named = |r: &&rules::Rule| if rule.is_empty() { looks(r) } else { r.name.contains(rule) };
        ensure!(
            rule.is_empty() || RULES.iter().any(|r| named(&r)),
            "there is no rule \"{rule}\"; there are {}",
            names()
        );
        let mut lines = Vec::new();
        for rule in RULES.iter().filter(named) {
            if !looks(rule) {
                lines.push(format!("\"{}\" looks at {}, not at {name}", rule.name, rule.ops.join(", ")));
                continue;
            }
            let mut trial = graph.clone();
            match (rule.apply)(&mut Emit::new(&mut trial, opset), id)? {
                Ok(_) => lines.push(format!("\"{}\" applies", rule.name)),
                Err(why) => lines.push(format!("\"{}\" does not apply: {why}", rule.name)),
            }
        }
        return Ok(lines);
    }
    bail!("there is no node \"{node}\"")
}

fn by_output(graph: &Graph, name: &str) -> Option<NodeId> {
    graph.node_ids().find(|&id| graph.node(id).outputs.iter().any(|o| o.name == name))
}

fn names() -> String {
    RULES.iter().map(|rule| format!("\"{}\"", rule.name)).collect::<Vec<_>>().join(", ")
}
