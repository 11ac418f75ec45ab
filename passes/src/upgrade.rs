//! `upgrade`: lifts a model to the internal opset (20), operator by operator.
//!
//! ```text
//! before   <opset_import: ["": 12]>   y = ReduceSum <axes = [1]> (x)
//! after    <opset_import: ["": 20]>   y = ReduceSum (x, axes)            axes = {1}
//! ```
//! (executed, with what stands beside it, by `tests/cases/upgrade/reduce_sum.txt`)
//!
//! *Needs* nothing. *Leaves* every node of ONNX's own domain, in every graph, subgraph and function, in the form of opset 20,
//! and says so in the opset import; a model that is newer already is left alone. The same numbers. Idempotent.
//!
//! How a node changes stands in its operator's row ([`OpDef::upgrades`]); this pass walks the rows in ascending order,
//! nodes in topological order, and infers each node once it is lifted, so that a rule knows the types of its inputs.
//! An operator without a row in the table cannot be lifted, since nobody knows what changed in it: the error names
//! all of them. Other domains are not versioned here and stay as they are.
//!
//! [`OpDef::upgrades`]: sartor_ir::ops::OpDef::upgrades

use crate::{Changed, Pass};
use sartor_ir::ops::{self, UpgradeFn};
use sartor_ir::{Error, Graph, IR_VERSION, Model, NodeId, OPSET, Result, infer};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashSet;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Upgrade {}

impl Pass for Upgrade {
    fn name(&self) -> &str {
        "upgrade"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        let from = model.opset();
        let mut errors = Vec::new();
        let mut changed = false;
        for function in &mut model.functions {
            let from = function.opsets.get("").or(function.opsets.get("ai.onnx")).copied();
            if let Some(from) = from.filter(|from| *from < OPSET) {
                changed = true;
                lift_graph(&mut function.graph, from, &mut errors);
                set_opset(&mut function.opsets);
            }
        }
        if from < OPSET {
            changed = true;
            model.graphs_mut().for_each(|graph| lift_graph(graph, from, &mut errors));
            set_opset(&mut model.opsets);
            model.ir_version = model.ir_version.max(IR_VERSION);
        }
        Error::all(errors).map_err(|e| e.at(format!("the model cannot be lifted from opset {from} to {OPSET}")))?;
        Ok(changed.into())
    }
}

fn set_opset(opsets: &mut indexmap::IndexMap<String, i64>) {
    opsets.shift_remove("ai.onnx");
    opsets.insert(String::new(), OPSET);
}

fn lift_graph(graph: &mut Graph, from: i64, errors: &mut Vec<Error>) {
    for id in graph.topo_ops() {
        if let Some(op) = graph.node_mut(id).op_mut() {
            op.attrs.graphs_mut().for_each(|subgraph| lift_graph(subgraph, from, errors));
            if op.domain == "ai.onnx" {
                op.domain.clear();
            }
        }
        if graph.node(id).op().is_some_and(|op| op.domain.is_empty()) {
            let label = graph.node(id).label();
            if let Err(error) = lift_node(graph, id, from) {
                errors.push(error.at(label));
            }
        }
    }
}

/// Lifts one node, and whatever replaces it, row by row.
fn lift_node(graph: &mut Graph, id: NodeId, from: i64) -> Result<()> {
    let mut pending = vec![(id, from)];
    while let Some((id, at)) = pending.pop() {
        match next_row(graph, id, at)? {
            // Types help later rules; a node that cannot be inferred is reported by the verifier.
            None => drop(infer::infer_node(graph, id, OPSET)),
            Some((version, rewrite)) => {
                let before: HashSet<NodeId> = graph.node_ids().filter(|&other| other != id).collect();
                rewrite(graph, id)?;
                let fresh = graph.node_ids().filter(|other| !before.contains(other));
                pending.extend(fresh.filter(|&other| graph.node(other).op().is_some()).map(|other| (other, version)));
            }
        }
    }
    Ok(())
}

fn next_row(graph: &Graph, id: NodeId, at: i64) -> Result<Option<(i64, UpgradeFn)>> {
    let Some(op) = graph.node(id).op() else { return Ok(None) };
    let Some(def) = ops::of(op) else {
        sartor_ir::bail!(
            "the operator {} is not known, so what changed in it since opset {at} is not either",
            op.full_name()
        );
    };
    Ok(def.upgrades.iter().find(|(version, _)| *version > at && *version <= OPSET).copied())
}
