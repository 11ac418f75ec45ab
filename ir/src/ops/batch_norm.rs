//! `BatchNormalization`: every channel (axis 1) is normalised by given statistics, or in training mode by its own.
//!
//! ```text
//! x̂ = (x − mean) · r,  r = 1/√(var + ε)       y = x̂ · scale + bias
//! inference: mean and var are inputs            dx = dy · scale · r
//!            dmean = −Σdy · scale · r           dvar = −½ · Σ(dy · (x − mean)) · scale · r³
//! training:  mean and var (population) of x over all axes but 1
//!            dx = r · (g − mean g − x̂ · mean(g · x̂)),  g = dy · scale
//!            running_mean = momentum · input_mean + (1 − momentum) · mean, likewise running_var
//! both:      dscale = Σ dy · x̂,  dbias = Σ dy
//! ai.sartor::BatchNormGrad(dy, x, scale): dx, dscale, dbias of training mode
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__BatchNormalization.html>; Ioffe and Szegedy 2015. Shapes: X, Y
//! `[N, C, …]`; all others `[C]`. No gradient flows through the running statistics. Before opset 14, more than one output
//! meant training; before opset 9, `spatial = 0` (statistics per position) existed, which is refused.

use super::layer_norm::{inverse_root, normalise, normalised_grad};
use super::real::{optional, reals, required, rounded};
use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, UpgradeFn};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "BatchNormalization",
        inputs: (5, 5),
        outputs: (1, 3),
        infer,
        eval: Some(eval),
        grad: Gradient::Emit(grad),
        flops: |cx| 4 * cx.output_len(0),
        upgrades: UPGRADES,
        sample: Some(sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "BatchNormGrad",
        inputs: (3, 3),
        outputs: (3, 3),
        infer: infer_grad,
        decompose: Some(decompose_grad),
        grad: Gradient::Decompose,
        flops: |cx| 8 * cx.output_len(0),
        sample: Some(sample_grad),
        ..OpDef::DEFAULT
    },
];
const UPGRADES: &[(i64, UpgradeFn)] = &[(7, without_test_flag), (9, without_spatial), (14, with_training_mode)];

fn infer(cx: &mut InferCx) -> Result<()> {
    let ty = cx.ty(0)?.clone();
    let training = cx.op.attrs.flag("training_mode", false)?;
    ensure!(training || cx.output_count() <= 1, "it has {} outputs but is not in training mode", cx.output_count());
    let channels = match ty.shape() {
        Some(shape) => channel_dim(shape)?,
        None => cx.shape(1).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown),
    };
    for slot in 1..5 {
        let found = cx.shape(slot).map(|s| s.first().and_then(Dim::known));
        if let (Some(Some(found)), Some(want)) = (found, channels.known()) {
            ensure!(found == want, "input {slot} is for {found} channels, the data has {want}");
        }
    }
    for slot in 1..3 {
        let dtype = cx.dtype(slot + 2)?;
        cx.set_tensor(slot, dtype, Some(vec![channels.clone()]));
    }
    cx.set(0, ty);
    Ok(())
}

/// The number of channels: axis 1; data of rank 1 has one channel.
fn channel_dim(shape: &[Dim]) -> Result<Dim> {
    match shape {
        [] => bail!("its input has rank 0"),
        [_] => Ok(Dim::Known(1)),
        [_, channels, ..] => Ok(channels.clone()),
    }
}

/// The three extents of data seen as `[N, C, rest]`.
fn extents(shape: &[usize]) -> (usize, usize, usize) {
    match shape {
        [n, c, rest @ ..] => (*n, *c, rest.iter().product()),
        [n] => (*n, 1, 1),
        [] => (1, 1, 1),
    }
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = required(inputs, 0)?;
    let attrs = &cx.op.attrs;
    let epsilon = f64::from(attrs.float("epsilon", 1e-5)?);
    let [scale, bias, mean, var] = [1, 2, 3, 4].map(|slot| optional(inputs, slot).map(reals).unwrap_or(Ok(Vec::new())));
    let (scale, bias, given_mean, given_var) = (scale?, bias?, mean?, var?);
    let (_, channels, rest) = extents(x.shape());
    for (name, list) in [("scale", &scale), ("bias", &bias), ("mean", &given_mean), ("variance", &given_var)] {
        ensure!(list.len() == channels, "the {name} has {} elements for {channels} channels", list.len());
    }
    let mut values = reals(x)?;
    let training = attrs.flag("training_mode", false)?;
    let (mean, var) = match training {
        true => statistics(&values, x.shape()),
        false => (given_mean.clone(), given_var.clone()),
    };
    for (block, line) in values.chunks_mut(rest.max(1)).enumerate() {
        let c = block % channels.max(1);
        let factor = scale[c] / (var[c] + epsilon).sqrt();
        line.iter_mut().for_each(|v| *v = (*v - mean[c]) * factor + bias[c]);
    }
    let mut out = vec![rounded(x.dtype(), x.shape(), values)?];
    if training {
        let momentum = f64::from(attrs.float("momentum", 0.9)?);
        for (slot, old, new) in [(3, given_mean, mean), (4, given_var, var)] {
            let mixed = old.iter().zip(new).map(|(old, new)| old * momentum + new * (1.0 - momentum)).collect();
            out.push(rounded(required(inputs, slot)?.dtype(), [channels], mixed)?);
        }
    }
    Ok(out)
}

/// Mean and population variance of every channel.
fn statistics(values: &[f64], shape: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let (n, channels, rest) = extents(shape);
    let average = |f: &dyn Fn(usize, f64) -> f64| {
        let mut sums = vec![0.0; channels];
        for (block, line) in values.chunks(rest.max(1)).enumerate() {
            let c = block % channels.max(1);
            sums[c] += line.iter().map(|&v| f(c, v)).sum::<f64>();
        }
        sums.iter().map(|s| s / (n * rest) as f64).collect::<Vec<f64>>()
    };
    let mean = average(&|_, v| v);
    let var = average(&|c, v| (v - mean[c]).powi(2));
    (mean, var)
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    ensure!(cx.grads.iter().skip(1).all(Option::is_none), "no gradient flows through its running statistics");
    let (x, dy, op) = (cx.input(0)?, cx.dy()?, cx.op());
    let rank = cx.emit.rank(x)?;
    ensure!(rank >= 2, "its gradient needs data of rank 2 or more, found rank {rank}");
    let axes: Vec<usize> = (0..rank).filter(|&a| a != 1).collect();
    let epsilon = f64::from(op.attrs.float("epsilon", 1e-5)?);
    let mut grads = vec![None; 5];
    if op.attrs.flag("training_mode", false)? {
        let scale = cx.input(1)?;
        let op = Operator::sartor("BatchNormGrad", Attributes::new().with("epsilon", op.attrs.float("epsilon", 1e-5)?));
        let all = cx.emit.node(op, &[Some(dy), Some(x), Some(scale)], 3)?;
        (0..3).filter(|&slot| cx.want(slot)).for_each(|slot| grads[slot] = Some(all[slot]));
        return Ok(grads);
    }
    if cx.want(2) {
        grads[2] = Some(cx.emit.reduce_sum(dy, &axes, false)?);
    }
    if !(cx.want(0) || cx.want(1) || cx.want(3) || cx.want(4)) {
        return Ok(grads);
    }
    let scale = per_channel(cx.emit, cx.node, 1, rank)?;
    inference_grads(cx, &axes, scale, epsilon, &mut grads)?;
    Ok(grads)
}

fn infer_grad(cx: &mut InferCx) -> Result<()> {
    let (ty, scale) = (cx.ty(1)?.clone(), cx.ty(2)?.clone());
    cx.set(0, ty);
    cx.set(1, scale.clone());
    cx.set(2, scale);
    Ok(())
}

fn decompose_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (Some(dy), Some(x)) = (emit.graph.input(id, 0), emit.graph.input(id, 1)) else { bail!("an input is missing") };
    let rank = emit.rank(x)?;
    let axes: Vec<usize> = (0..rank).filter(|&a| a != 1).collect();
    let scale = per_channel(emit, id, 2, rank)?;
    let (normal, inverse) = normalise(emit, x, &axes, f64::from(op.attrs.float("epsilon", 1e-5)?))?;
    let scaled = emit.mul(dy, scale)?;
    let dx = normalised_grad(emit, scaled, normal, inverse, &axes)?;
    let product = emit.mul(dy, normal)?;
    Ok(vec![dx, emit.reduce_sum(product, &axes, false)?, emit.reduce_sum(dy, &axes, false)?])
}

/// The gradients of data, scale, mean and variance when the statistics are inputs.
fn inference_grads(
    cx: &mut GradCx,
    axes: &[usize],
    scale: Value,
    epsilon: f64,
    grads: &mut [Option<Value>],
) -> Result<()> {
    let (x, dy) = (cx.input(0)?, cx.dy()?);
    let rank = axes.len() + 1;
    let variance = per_channel(cx.emit, cx.node, 4, rank)?;
    let inverse = inverse_root(cx.emit, variance, epsilon)?;
    let factor = cx.emit.mul(scale, inverse)?;
    if cx.want(0) {
        grads[0] = Some(cx.emit.mul(dy, factor)?);
    }
    if cx.want(3) {
        let sum = cx.emit.reduce_sum(dy, axes, true)?;
        let down = cx.emit.mul(sum, factor)?;
        let dmean = cx.emit.unary("Neg", down)?;
        grads[3] = Some(cx.emit.reshape(dmean, &[-1])?);
    }
    if cx.want(1) || cx.want(4) {
        let mean = per_channel(cx.emit, cx.node, 3, rank)?;
        let centred = cx.emit.sub(x, mean)?;
        let product = cx.emit.mul(dy, centred)?;
        let sum = cx.emit.reduce_sum(product, axes, true)?;
        let dscale = cx.emit.mul(sum, inverse)?;
        if cx.want(1) {
            grads[1] = Some(cx.emit.reshape(dscale, &[-1])?);
        }
        if cx.want(4) {
            let square = cx.emit.mul(inverse, inverse)?;
            let factor = cx.emit.mul(square, scale)?;
            let product = cx.emit.mul(dscale, factor)?;
            let dvar = cx.emit.mul_scalar(product, -0.5)?;
            grads[4] = Some(cx.emit.reshape(dvar, &[-1])?);
        }
    }
    Ok(())
}

/// An input of shape `[C]` as `[C, 1, …]`, to broadcast over data of this rank.
pub fn per_channel(emit: &mut Emit, id: NodeId, slot: usize, rank: usize) -> Result<Value> {
    let Some(value) = emit.graph.input(id, slot) else { bail!("input {slot} is missing") };
    let axes: Vec<usize> = (1..rank.saturating_sub(1)).collect();
    if axes.is_empty() { Ok(value) } else { emit.unsqueeze(value, &axes) }
}

/// Before opset 7 the attribute `is_test` chose the mode; it defaulted to training.
fn without_test_flag(graph: &mut Graph, id: NodeId) -> Result<()> {
    let Some(op) = graph.node_mut(id).op_mut() else { return Ok(()) };
    let test = op.attrs.flag("is_test", false)?;
    op.attrs.remove("is_test");
    op.attrs.remove("consumed_inputs");
    if test {
        drop_outputs(graph, id, 1)?;
    }
    Ok(())
}

fn without_spatial(graph: &mut Graph, id: NodeId) -> Result<()> {
    let Some(op) = graph.node_mut(id).op_mut() else { return Ok(()) };
    ensure!(op.attrs.flag("spatial", true)?, "BatchNormalization with `spatial = 0` (statistics per position)");
    op.attrs.remove("spatial");
    Ok(())
}

fn with_training_mode(graph: &mut Graph, id: NodeId) -> Result<()> {
    let named = graph.node(id).outputs.iter().skip(1).any(|o| !o.name.is_empty());
    if named && let Some(op) = graph.node_mut(id).op_mut() {
        op.attrs.set("training_mode", 1i64);
    }
    drop_outputs(graph, id, if named { 3 } else { 1 })
}

/// Leaves a node its first `keep` outputs. Errors if another one is read.
fn drop_outputs(graph: &mut Graph, id: NodeId, keep: usize) -> Result<()> {
    for value in graph.node_outputs(id).skip(keep) {
        ensure!(graph.use_count(value) == 0, "its output {}, which newer opsets lack, is read", value.slot);
    }
    graph.node_mut(id).outputs.truncate(keep);
    Ok(())
}

fn sample(draw: &mut Draw) -> Sample {
    let training = draw.chance(0.5);
    let shapes: [&[usize]; 3] = [&[3, 2], &[2, 3, 4], &[2, 2, 2, 3]];
    let shape = *draw.pick(&shapes);
    let channels = [shape[1]];
    let inputs = vec![
        draw.tensor(shape, -1.0, 1.0),
        draw.tensor(&channels, 0.5, 1.5),
        draw.tensor(&channels, -1.0, 1.0),
        draw.tensor(&channels, -0.5, 0.5),
        draw.tensor(&channels, 0.5, 1.5),
    ];
    let attrs = Attributes::new().with("training_mode", training);
    let mut sample = Sample::new(Operator::onnx("BatchNormalization", attrs), inputs);
    if training {
        sample.check[3] = false;
        sample.check[4] = false;
    }
    sample
}

fn sample_grad(draw: &mut Draw) -> Sample {
    let shapes: [&[usize]; 3] = [&[3, 2], &[2, 3, 4], &[2, 2, 2, 3]];
    let shape = *draw.pick(&shapes);
    let inputs = vec![draw.tensor(shape, -1.0, 1.0), draw.tensor(shape, -1.0, 1.0), draw.tensor(&[shape[1]], 0.5, 1.5)];
    let mut sample = Sample::new(Operator::sartor("BatchNormGrad", Attributes::new()), inputs);
    sample.outputs = 3;
    sample
}
