//! What gate networks read under `normalise = "channel"`: features less their running mean, divided by their running deviation, and the running statistics themselves,
//! which every training step gathers on.
//!
//! ```text
//! f = clamp((z - mean) / sqrt(var + 1e-5), -4, 4) · length / sqrt(channels)
//! next mean = 0.95 · mean + 0.05 · mean of z over the batch
//! next var  = 0.95 · var  + 0.05 · mean of (z - mean)² over the batch
//! ```
//! A step reads the statistics from before it, not those of its batch: training computes what inference will, and batches may be small.

use super::Record;
use crate::training;
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Graph, Model, Program, Result, Role, Value, infer};

/// The share of running statistics that a step leaves as it is.
const KEPT: f64 = 0.95;

/// No feature is further from its mean, in deviations: a channel that was nearly always 0 has hardly any.
const MOST: f64 = 4.0;

/// Features less the running mean, divided by the running deviation, and brought to the length that they have on average: `[N, C]`.
pub(super) fn standardised(
    emit: &mut Emit,
    features: Value,
    (mean, var): (Value, Value),
    length: f64,
    count: usize,
) -> Result<Value> {
    let centred = emit.sub(features, mean)?;
    let var = emit.add_scalar(var, 1e-5)?;
    let deviation = emit.unary("Sqrt", var)?;
    let standard = emit.div(centred, deviation)?;
    let (low, high) = (emit.scalar(-MOST, standard)?, emit.scalar(MOST, standard)?);
    let standard = emit.op("Clip", &[standard, low, high], Attributes::new())?;
    emit.mul_scalar(standard, length / (count as f64).sqrt())
}

/// Lets a step gather the statistics that its gates are read by; those that it gathers already, and those that an optimiser folded away, stay as they are.
/// Returns whether anything changed.
pub(crate) fn gather(step: &mut Program, model: &mut Model, record: &Record) -> Result<bool> {
    let opset = model.opset();
    let mut next = Vec::new();
    for block in &record.blocks {
        let Some([mean, var]) = &block.statistics else { continue };
        if step.bindings.iter().any(|b| b.param == *mean) {
            continue;
        }
        let (Some(at_mean), Some(at_var)) = (read(&step.graph, mean), read(&step.graph, var)) else { continue };
        let Some(features) = centred(&step.graph, at_mean) else { continue };
        if next.is_empty() {
            infer::infer_graph(&mut step.graph, opset)?;
        }
        let mut emit = Emit::new(&mut step.graph, opset);
        emit.prefix = format!("/gate/{}/", block.name);
        let [next_mean, next_var] = moved(&mut emit, features, at_mean, at_var)?;
        next.extend([(mean, next_mean), (var, next_var)]);
    }
    for &(param, value) in &next {
        training::bind(step, &format!("next:{param}"), value, param);
        if let Some(param) = model.params.get_mut(param) {
            param.role = Role::State;
        }
    }
    Ok(!next.is_empty())
}

/// What a step that gathers statistics makes the next ones of: the parameter, and the value of the batch. `None` if this value is no such statistic.
pub(crate) fn gathered(graph: &Graph, next: Value) -> Option<[Value; 2]> {
    let part = |slot: usize| {
        let part = graph.input(next.node, slot)?;
        graph.node(part.node).is("Mul").then(|| graph.input(part.node, 0)).flatten()
    };
    graph.node(next.node).is("Add").then(|| Some([part(0)?, part(1)?])).flatten()
}

/// A parameter that something in a graph reads.
fn read(graph: &Graph, param: &str) -> Option<Value> {
    let mut values = graph.node_ids().map(|node| Value { node, slot: 0 });
    values.find(|&value| graph.param_name(value) == Some(param) && !graph.uses(value).is_empty())
}

/// The features that a running mean is taken from.
fn centred(graph: &Graph, mean: Value) -> Option<Value> {
    let (sub, _) = graph.uses(mean).into_iter().find(|&(node, slot)| graph.node(node).is("Sub") && slot == 1)?;
    graph.input(sub, 0)
}

/// What the running mean and variance are after a step.
fn moved(emit: &mut Emit, features: Value, mean: Value, var: Value) -> Result<[Value; 2]> {
    let still = emit.sartor("Detach", &[features], Default::default())?;
    let batch_mean = emit.reduce_mean(still, &[0], false)?;
    // Around the running mean: one example has a variance too.
    let centred = emit.sub(still, mean)?;
    let square = emit.mul(centred, centred)?;
    let batch_var = emit.reduce_mean(square, &[0], false)?;
    let mut blend = |old: Value, new: Value| {
        let (old, new) = (emit.mul_scalar(old, KEPT)?, emit.mul_scalar(new, 1.0 - KEPT)?);
        emit.add(old, new)
    };
    Ok([blend(mean, batch_mean)?, blend(var, batch_var)?])
}
