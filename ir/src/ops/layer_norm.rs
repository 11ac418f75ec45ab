//! `LayerNormalization` and `RMSNormalization`: every row over the axes from `axis` on is normalised by its own
//! statistics, then scaled elementwise.
//!
//! ```text
//! LayerNormalization: x̂ = (x − mean x) · r,  r = 1/√(var x + ε)     y = x̂ · scale + bias
//!                     dx = r · (g − mean g − x̂ · mean(g · x̂)),  g = dy · scale
//!                     dscale = Σ dy · x̂      dbias = Σ dy
//! RMSNormalization:   y = x / √(mean x² + ε) · scale
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__LayerNormalization.html>; Ba, Kiros, Hinton 2016. Shapes: X, Y
//! `[…, rows]`; scale, bias broadcast to X; outputs 1 and 2, mean and r, have length 1 from `axis` on and the type
//! `stash_type` (`float` unless told otherwise). The gradient reads them when they are as precise as X, and computes
//! them again when they are not.

use super::real::{kept, kept_dims, optional, reals, required, rounded};
use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, broadcast, normal_axis};
use crate::error::{Error, Result};
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "LayerNormalization",
        inputs: (2, 3),
        outputs: (1, 3),
        infer,
        eval: Some(eval),
        grad: Gradient::Emit(grad),
        flops: |cx| 8 * cx.output_len(0),
        sample: Some(sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "RMSNormalization",
        inputs: (2, 2),
        infer: |cx| {
            rows(&cx.op.attrs, cx.shape(0).map_or(usize::MAX >> 1, <[_]>::len)).map(|_| ())?;
            super::same_as_first(cx)
        },
        decompose: Some(decompose_rms),
        grad: Gradient::Decompose,
        flops: |cx| 5 * cx.output_len(0),
        sample: Some(sample_rms),
        ..OpDef::DEFAULT
    },
];

/// The axes of one row.
pub(super) fn rows(attrs: &Attributes, rank: usize) -> Result<std::ops::Range<usize>> {
    Ok(normal_axis(attrs.int("axis", -1)?, rank)?..rank)
}

/// The type in which the statistics are computed and given out.
pub(super) fn stash_type(attrs: &Attributes) -> Result<DType> {
    let code = attrs.int("stash_type", 1)?;
    let dtype = i32::try_from(code).ok().and_then(DType::from_onnx_code).filter(|d| d.is_float());
    dtype.ok_or_else(|| Error::msg(format!("attribute `stash_type` is {code}, expected a floating-point type")))
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (ty, stash) = (cx.ty(0)?.clone(), stash_type(&cx.op.attrs)?);
    let statistics = match ty.shape() {
        Some(shape) => {
            let axes: Vec<usize> = rows(&cx.op.attrs, shape.len())?.collect();
            Some(kept_dims(shape, &axes))
        }
        None => None,
    };
    cx.set(0, ty);
    cx.set_tensor(1, stash, statistics.clone());
    cx.set_tensor(2, stash, statistics);
    Ok(())
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = required(inputs, 0)?;
    let axes = rows(&cx.op.attrs, x.rank())?;
    let (epsilon, stash) = (f64::from(cx.op.attrs.float("epsilon", 1e-5)?), stash_type(&cx.op.attrs)?);
    let length: usize = x.shape()[axes.clone()].iter().product();
    let mut values = reals(x)?;
    let (mut means, mut inverses) = (Vec::new(), Vec::new());
    for row in values.chunks_mut(length.max(1)) {
        let mean = row.iter().sum::<f64>() / length as f64;
        row.iter_mut().for_each(|v| *v -= mean);
        let inverse = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / length as f64 + epsilon).sqrt();
        row.iter_mut().for_each(|v| *v *= inverse);
        means.push(mean);
        inverses.push(inverse);
    }
    scale_and_shift(&mut values, x.shape(), required(inputs, 1)?, optional(inputs, 2))?;
    let statistics = kept(x.shape(), &axes.collect::<Vec<_>>());
    means.resize(statistics.iter().product(), f64::NAN);
    inverses.resize(statistics.iter().product(), f64::NAN);
    Ok(vec![
        rounded(x.dtype(), x.shape(), values)?,
        rounded(stash, statistics.clone(), means)?,
        rounded(stash, statistics, inverses)?,
    ])
}

/// `values · scale + bias`, both broadcast to the shape of the values.
fn scale_and_shift(values: &mut [f64], shape: &[usize], scale: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let scale = broadcast::expand::<f64>(&scale.cast(DType::F64)?, shape)?;
    values.iter_mut().zip(scale.as_slice::<f64>()?.iter()).for_each(|(v, s)| *v *= s);
    if let Some(bias) = bias {
        let bias = broadcast::expand::<f64>(&bias.cast(DType::F64)?, shape)?;
        values.iter_mut().zip(bias.as_slice::<f64>()?.iter()).for_each(|(v, b)| *v += b);
    }
    Ok(())
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    ensure!(cx.grads.iter().skip(1).all(Option::is_none), "no gradient flows through its statistics");
    let (x, scale, dy, op) = (cx.input(0)?, cx.input(1)?, cx.dy()?, cx.op());
    let axes: Vec<usize> = rows(&op.attrs, cx.emit.rank(x)?)?.collect();
    let dtype = cx.emit.dtype(x)?;
    // Statistics of half-precision rows are in the wider stash type, and so is their gradient.
    let stash = stash_type(&op.attrs)?;
    let wide = if stash.bits() > dtype.bits() { stash } else { dtype };
    let mut grads = vec![None, None, None];
    let wide_dy = cx.emit.cast(dy, wide)?;
    if cx.want(0) || cx.want(1) {
        let (normal, inverse) = normalised(cx, x, &axes, wide)?;
        if cx.want(0) {
            let wide_scale = cx.emit.cast(scale, wide)?;
            let scaled = cx.emit.mul(wide_dy, wide_scale)?;
            let dx = normalised_grad(cx.emit, scaled, normal, inverse, &axes)?;
            grads[0] = Some(cx.emit.cast(dx, dtype)?);
        }
        if cx.want(1) {
            let product = cx.emit.mul(wide_dy, normal)?;
            let sum = cx.emit.sum_to(product, scale)?;
            grads[1] = Some(cx.emit.cast(sum, dtype)?);
        }
    }
    if let (Some(bias), true) = (cx.optional_input(2), cx.want(2)) {
        let sum = cx.emit.sum_to(wide_dy, bias)?;
        grads[2] = Some(cx.emit.cast(sum, dtype)?);
    }
    Ok(grads)
}

/// `x̂` and `r`, from the node's own statistics if they are of the type `wide`.
fn normalised(cx: &mut GradCx, x: Value, axes: &[usize], wide: DType) -> Result<(Value, Value)> {
    let op = cx.op();
    let x = cx.emit.cast(x, wide)?;
    if stash_type(&op.attrs)? != wide {
        let epsilon = f64::from(op.attrs.float("epsilon", 1e-5)?);
        return normalise(cx.emit, x, axes, epsilon);
    }
    let (mean, inverse) = (cx.emit.optional_output(cx.node, 1)?, cx.emit.optional_output(cx.node, 2)?);
    let centred = cx.emit.sub(x, mean)?;
    Ok((cx.emit.mul(centred, inverse)?, inverse))
}

/// `(x − mean) · r` and `r = 1/√(var + ε)` over axes, as nodes.
pub fn normalise(emit: &mut Emit, x: Value, axes: &[usize], epsilon: f64) -> Result<(Value, Value)> {
    let mean = emit.reduce_mean(x, axes, true)?;
    let centred = emit.sub(x, mean)?;
    let square = emit.mul(centred, centred)?;
    let variance = emit.reduce_mean(square, axes, true)?;
    let inverse = inverse_root(emit, variance, epsilon)?;
    Ok((emit.mul(centred, inverse)?, inverse))
}

/// `1/√(variance + ε)`, as nodes.
pub fn inverse_root(emit: &mut Emit, variance: Value, epsilon: f64) -> Result<Value> {
    let padded = emit.add_scalar(variance, epsilon)?;
    let root = emit.unary("Sqrt", padded)?;
    emit.unary("Reciprocal", root)
}

/// The gradient of [`normalise`]: `r · (g − mean g − x̂ · mean(g · x̂))`.
pub fn normalised_grad(emit: &mut Emit, g: Value, normal: Value, inverse: Value, axes: &[usize]) -> Result<Value> {
    let mean = emit.reduce_mean(g, axes, true)?;
    let product = emit.mul(g, normal)?;
    let correlation = emit.reduce_mean(product, axes, true)?;
    let along = emit.mul(normal, correlation)?;
    let centred = emit.sub(g, mean)?;
    let rest = emit.sub(centred, along)?;
    emit.mul(rest, inverse)
}

fn decompose_rms(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (Some(x), Some(scale)) = (emit.graph.input(id, 0), emit.graph.input(id, 1)) else {
        return Err(Error::msg("it needs two inputs"));
    };
    let dtype = emit.dtype(x)?;
    let axes: Vec<usize> = rows(&op.attrs, emit.rank(x)?)?.collect();
    let stash = stash_type(&op.attrs)?;
    let wide = emit.cast(x, if stash.bits() > dtype.bits() { stash } else { dtype })?;
    let square = emit.mul(wide, wide)?;
    let mean = emit.reduce_mean(square, &axes, true)?;
    let inverse = inverse_root(emit, mean, f64::from(op.attrs.float("epsilon", 1e-5)?))?;
    let normal = emit.mul(wide, inverse)?;
    let normal = emit.cast(normal, dtype)?;
    Ok(vec![emit.mul(normal, scale)?])
}

fn sample(draw: &mut Draw) -> Sample {
    let axis = draw.int(-2, 2);
    let x = draw.tensor(&[2, 3, 4], -1.0, 1.0);
    let shape: &[usize] = *draw.pick(&[&[3, 4][..], &[4], &[1, 4]]);
    let shape = if axis == -1 || axis == 2 { &[4] } else { shape };
    let mut inputs = vec![x, draw.tensor(shape, 0.5, 1.5)];
    if draw.chance(0.7) {
        inputs.push(draw.tensor(shape, -1.0, 1.0));
    }
    Sample::new(Operator::onnx("LayerNormalization", Attributes::new().with("axis", axis)), inputs)
}

fn sample_rms(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("axis", draw.int(-2, 2));
    let inputs = vec![draw.tensor(&[2, 3, 4], -1.0, 1.0), draw.tensor(&[4], 0.5, 1.5)];
    Sample::new(Operator::onnx("RMSNormalization", attrs), inputs)
}
