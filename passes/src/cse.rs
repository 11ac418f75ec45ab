//! `cse`: computes the same thing once.
//!
//! ```text
//! before   a = Exp (x)   b = Exp (x)   y = Add (a, b)
//! after    a = Exp (x)                 y = Add (a, a)
//! ```
//! (executed, with what stands beside it, by `tests/cases/cse/equal.txt`)
//!
//! *Needs* nothing. *Leaves*, in each graph, no two equal constants and no two operators with equal attributes that read
//! the same values. The same numbers. Idempotent.
//!
//! Random operators are never merged. Neither are parameters, however equal their values: a parameter's name is part
//! of the model's interface, and two that start equal need not stay so. Nothing is moved out of subgraphs.

use crate::walk::edit_graphs;
use crate::{Changed, Pass};
use sartor_ir::{Graph, Model, Node, NodeId, NodeKind, Result, Value, ops};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cse {}

impl Pass for Cse {
    fn name(&self) -> &str {
        "cse"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        edit_graphs(model, |graph| Ok(merge_equal(graph))).map(Changed::from)
    }
}

/// A node is merged into the first equal one in topological order, so its inputs were merged before it.
fn merge_equal(graph: &mut Graph) -> bool {
    let mut seen: HashMap<u64, Vec<NodeId>> = HashMap::new();
    let mut changed = false;
    for id in graph.topo() {
        let Some(hash) = hash_of(graph, id) else { continue };
        let bucket = seen.entry(hash).or_default();
        match bucket.iter().copied().find(|&first| equal(graph, first, id)) {
            None => bucket.push(id),
            Some(first) => {
                merge(graph, first, id);
                changed = true;
            }
        }
    }
    changed
}

/// Bytes of a constant that go into its hash; all are compared.
const HASHED_BYTES: usize = 4096;

/// `None` for what is never merged.
fn hash_of(graph: &Graph, id: NodeId) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    match &graph.node(id).kind {
        NodeKind::Input | NodeKind::Capture(_) => return None,
        NodeKind::Param(name) => name.hash(&mut hasher),
        NodeKind::Const(tensor) => {
            (tensor.dtype(), tensor.shape()).hash(&mut hasher);
            tensor.bytes()[..tensor.bytes().len().min(HASHED_BYTES)].hash(&mut hasher);
        }
        NodeKind::Op(op) if !ops::is_pure(op) => return None,
        NodeKind::Op(op) => {
            (&op.domain, &op.name).hash(&mut hasher);
            graph.node_inputs(id).hash(&mut hasher);
        }
    }
    Some(hasher.finish())
}

fn equal(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    let (x, y) = (graph.node(a), graph.node(b));
    let left_out = |node: &Node| node.outputs.iter().map(|o| o.name.is_empty()).collect::<Vec<_>>();
    let types_fit = x.outputs.iter().zip(&y.outputs).all(|(p, q)| match (&p.ty, &q.ty) {
        (Some(p), Some(q)) => p.merge(q).is_some(),
        _ => true,
    });
    x.kind == y.kind && left_out(x) == left_out(y) && types_fit && graph.node_inputs(a) == graph.node_inputs(b)
}

fn merge(graph: &mut Graph, first: NodeId, other: NodeId) {
    for old in graph.node_outputs(other) {
        let new = Value { node: first, ..old };
        let merged = match (graph.ty(new), graph.ty(old)) {
            (Some(a), Some(b)) => a.merge(b),
            (a, b) => a.or(b).cloned(),
        };
        graph.set_ty(new, merged);
        graph.replace_uses(old, new);
    }
    graph.remove(other);
}
