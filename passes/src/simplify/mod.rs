//! `simplify`: removes operators that do nothing, and writes others more simply.
//!
//! ```text
//! before   a = Identity (x)   b = Transpose <perm = [1, 0]> (a)   c = Transpose <perm = [1, 0]> (b)   y = Mul (c, one)
//! after    y = x                                                                   one = {1.0}
//! ```
//! (executed, with what stands beside it, by `tests/cases/simplify/nothing.txt`)
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
use rules::{Found, RULES};
use sartor_ir::ops::Emit;
use sartor_ir::{Context, Graph, Model, NodeId, Result};
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
        let changed =
            edit_typed_graphs(model, |graph, opset| edit_with_subgraphs(graph, &mut |g| simplify_graph(g, opset)))?;
        Ok(changed.into())
    }
}

/// Applies rules until none applies. Every rule makes the graph smaller or its operators cheaper, so this ends; the
/// bound guards against a pair of rules that undo each other.
pub(crate) fn simplify_graph(graph: &mut Graph, opset: i64) -> Result<bool> {
    const MAX_ROUNDS: usize = 64;
    let mut changed = false;
    for _ in 0..MAX_ROUNDS {
        let mut again = false;
        for id in graph.topo_ops() {
            if graph.contains(id) && graph.node_outputs(id).any(|v| graph.use_count(v) > 0) {
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

fn simplify_node(graph: &mut Graph, id: NodeId, opset: i64) -> Result<bool> {
    let Some(op) = graph.node(id).op().filter(|op| op.domain.is_empty()) else { return Ok(false) };
    let name = op.name.clone();
    for rule in RULES.iter().filter(|rule| rule.ops.contains(&name.as_str())) {
        let label = graph.node(id).label();
        let mut emit = Emit::new(graph, opset);
        let found = (rule.apply)(&mut emit, id).context(|| format!("rule \"{}\": {label}", rule.name))?;
        if let Some(Found(new)) = found {
            let old = sartor_ir::Value { node: id, slot: 0 };
            graph.substitute(old, new);
            return Ok(true);
        }
    }
    Ok(false)
}
