//! `dce`: removes what nothing needs.
//!
//! ```text
//! before   a = Relu (x)   b = Exp (x)   y = Neg (a)
//! after    a = Relu (x)                 y = Neg (a)
//! ```
//! (executed, with what stands beside it, by `tests/cases/dce/dead.txt`)
//!
//! *Needs* nothing. *Leaves* in every graph only inputs and what outputs depend on, and no `Constant` or `Frozen` parameter
//! that nothing reads or writes. The same numbers. Idempotent.
//!
//! Inputs and outputs of the graph stay, used or not: they are the model's interface. `Trainable` and `State`
//! parameters stay too: a run that goes on may need them. Model-local functions that nobody calls are removed.

use crate::walk::edit_graphs;
use crate::{Changed, Pass};
use sartor_ir::{Graph, Model, NodeKind, Result, verify};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashSet;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dce {}

impl Pass for Dce {
    fn name(&self) -> &str {
        "dce"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        let nodes = edit_graphs(model, |graph| Ok(graph.remove_dead() > 0))?;
        let functions = remove_uncalled_functions(model);
        Ok((nodes | functions | remove_unused_params(model)).into())
    }
}

fn remove_unused_params(model: &mut Model) -> bool {
    let mut used = HashSet::new();
    model.graphs().for_each(|graph| collect_params(graph, &mut used));
    used.extend(model.programs.values().flat_map(|p| p.bindings.iter().map(|b| b.param.clone())));
    let before = model.params.len();
    model.params.retain(|name, param| param.role.is_variable() || used.contains(name));
    model.params.len() < before
}

fn collect_params(graph: &Graph, used: &mut HashSet<String>) {
    for id in graph.node_ids() {
        match &graph.node(id).kind {
            NodeKind::Param(name) => drop(used.insert(name.clone())),
            NodeKind::Op(op) => op.attrs.graphs().for_each(|(_, subgraph)| collect_params(subgraph, used)),
            _ => {}
        }
    }
}

fn remove_uncalled_functions(model: &mut Model) -> bool {
    let functions = &model.functions;
    let mut stack: Vec<usize> = model.graphs().flat_map(|graph| verify::callees(functions, graph)).collect();
    let mut called = vec![false; functions.len()];
    while let Some(index) = stack.pop() {
        if !std::mem::replace(&mut called[index], true) {
            stack.extend(verify::callees(functions, &functions[index].graph));
        }
    }
    let mut keep = called.iter();
    model.functions.retain(|_| keep.next().copied().unwrap_or(true));
    called.contains(&false)
}
