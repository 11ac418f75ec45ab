//! A model as its own teacher: what it computed before training, beside what it computes now.
//!
//! ```text
//! y = MatMul (x, w)        y = MatMul (x, w);  teacher/y = MatMul (x, teacher.w)
//! ```
//! What may change in training (trainable weights, statistics of normalisation) is kept as it was in frozen parameters `teacher.NAME`; all other weights are
//! shared. The copies are named `teacher/NAME`, so that passes which look for nodes by name (adapters, gates) leave them alone.

use crate::training::TEACHER;
use crate::walk::add_copy;
use sartor_ir::{Graph, Model, NodeKind, Parameter, Result, Role, Type, Value, bail, ensure};
use std::collections::HashMap;

/// Adds a copy of all that computes a value; returns the value's copy.
pub(super) fn add(graph: &mut Graph, model: &mut Model, of: Value) -> Result<Value> {
    let above = graph.ancestors([of], |_| false);
    let mut copies: HashMap<Value, Value> = HashMap::new();
    for id in graph.topo_ops().into_iter().filter(|id| above.contains(id)) {
        let source = graph.node(id).clone();
        let Some(op) = source.op().cloned() else { continue };
        if source.constant().is_some() {
            continue;
        }
        let statistics = source.is("BatchNormalization").then_some(3..=4);
        let mut inputs = graph.node_inputs(id);
        for (slot, input) in inputs.iter_mut().enumerate() {
            let Some(value) = *input else { continue };
            let changes = statistics.as_ref().is_some_and(|slots| slots.contains(&slot));
            *input = Some(match copies.get(&value) {
                Some(&copy) => copy,
                None => kept(graph, model, value, changes)?,
            });
        }
        let own = if source.name.is_empty() { graph.value_name(Value { node: id, slot: 0 }) } else { &source.name };
        let name = format!("teacher/{own}");
        let copy = add_copy(graph, &source, (&name, op), &inputs, |name| format!("teacher/{name}"));
        for slot in 0..source.outputs.len() as u32 {
            copies.insert(Value { node: id, slot }, Value { node: copy, slot });
        }
    }
    match copies.get(&of) {
        Some(&copy) => Ok(copy),
        None => {
            bail!("with teacher = true the output is compared with what the model computes, and it computes nothing")
        }
    }
}

/// A value that the copies may read: itself, or a frozen parameter with what a parameter is before training.
fn kept(graph: &mut Graph, model: &mut Model, value: Value, changes: bool) -> Result<Value> {
    let NodeKind::Param(name) = &graph.node(value.node).kind else { return Ok(value) };
    let Some(param) = model.params.get(name) else { return Ok(value) };
    if !changes && !param.role.is_variable() {
        return Ok(value);
    }
    let name = format!("{TEACHER}{name}");
    let tensor = param.tensor.clone();
    if let Some(other) = model.params.get(&name) {
        ensure!(
            other.tensor == tensor,
            "the model has a parameter \"{name}\" of its own: rename it to train with teacher = true"
        );
    }
    let copy = graph.param(&name, Type::of(&tensor));
    model.params.insert(name, Parameter { tensor, role: Role::Frozen });
    Ok(copy)
}
