//! Normalisations that are short formulas in other operators, by which they are evaluated and differentiated.
//!
//! ```text
//! InstanceNormalization(x, scale, bias) = (x − mean)/√(var + ε) · scale + bias     over the spatial axes of each channel
//! GroupNormalization(x, scale, bias)    = the same over num_groups groups of channels and the spatial axes
//! MeanVarianceNormalization(x)          = (x − mean)/(√var + 1e-9)                 over `axes` (default 0, 2, 3)
//! LpNormalization(x)                    = x / ‖x‖ₚ along `axis`; 0 where the norm is 0
//! LRN(x)                                = x / (bias + alpha/size · Σx²)^beta       sum over `size` neighbouring channels
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html> and siblings; Ulyanov et al. 2016, Wu and
//! He 2018, Krizhevsky et al. 2012. Data is `[N, C, …]`; scale and bias are `[C]`, but `[num_groups]` for
//! `GroupNormalization` before opset 21. All keep the shape.

use super::batch_norm::per_channel;
use super::layer_norm::normalise;
use super::real::count;
use super::{Emit, Gradient, OpDef, Sample, UpgradeFn, normal_axis, upgrade};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, bail, ensure};

/// What the rows share.
const COMPOSITE: OpDef = OpDef { grad: Gradient::Decompose, flops: |cx| 6 * cx.output_len(0), ..OpDef::DEFAULT };

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "InstanceNormalization",
        inputs: (3, 3),
        decompose: Some(decompose_instance),
        upgrades: UPGRADES,
        sample: Some(|draw| affine_sample(draw, "InstanceNormalization", 4, Attributes::new())),
        ..COMPOSITE
    },
    OpDef {
        name: "GroupNormalization",
        inputs: (3, 3),
        decompose: Some(decompose_group),
        sample: Some(|draw| affine_sample(draw, "GroupNormalization", 2, Attributes::new().with("num_groups", 2i64))),
        ..COMPOSITE
    },
    OpDef {
        name: "MeanVarianceNormalization",
        decompose: Some(decompose_mean_variance),
        sample: Some(|draw| {
            let attrs = Attributes::new().with("axes", draw.pick(&[&[0i64, 2, 3][..], &[1], &[-1, -2]]).to_vec());
            data_sample(draw, "MeanVarianceNormalization", attrs)
        }),
        ..COMPOSITE
    },
    OpDef {
        name: "LpNormalization",
        decompose: Some(decompose_lp),
        sample: Some(|draw| {
            let attrs = Attributes::new().with("axis", draw.int(-4, 3)).with("p", draw.int(1, 2));
            data_sample(draw, "LpNormalization", attrs)
        }),
        ..COMPOSITE
    },
    OpDef {
        name: "LRN",
        decompose: Some(decompose_lrn),
        sample: Some(|draw| {
            let attrs = Attributes::new().with("size", draw.int(1, 5)).with("alpha", 0.5f32).with("bias", 1.5f32);
            data_sample(draw, "LRN", attrs)
        }),
        ..COMPOSITE
    },
];
const UPGRADES: &[(i64, UpgradeFn)] = &[(6, |graph, id| {
    upgrade::take_attr(graph, id, "consumed_inputs");
    Ok(())
})];

/// The node's operator, and its data in single precision if it is in half.
fn wide_data(emit: &mut Emit, id: NodeId) -> Result<(Operator, Value, DType)> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let Some(x) = emit.graph.input(id, 0) else { bail!("input 0 is missing") };
    let dtype = emit.dtype(x)?;
    let wide = if dtype.bits() < 32 { DType::F32 } else { dtype };
    Ok((op, emit.cast(x, wide)?, dtype))
}

/// `normal · scale + bias`, each `[C]` seen as `[C, 1, …]`.
fn scale_and_shift(emit: &mut Emit, id: NodeId, normal: Value) -> Result<Value> {
    let rank = emit.rank(normal)?;
    let (scale, bias) = (per_channel(emit, id, 1, rank)?, per_channel(emit, id, 2, rank)?);
    let scaled = emit.mul(normal, scale)?;
    emit.add(scaled, bias)
}

fn decompose_instance(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (op, x, dtype) = wide_data(emit, id)?;
    let axes: Vec<usize> = (2..emit.rank(x)?).collect();
    ensure!(!axes.is_empty(), "InstanceNormalization of data without spatial axes");
    let (normal, _) = normalise(emit, x, &axes, f64::from(op.attrs.float("epsilon", 1e-5)?))?;
    let normal = emit.cast(normal, dtype)?;
    Ok(vec![scale_and_shift(emit, id, normal)?])
}

fn decompose_group(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (op, x, dtype) = wide_data(emit, id)?;
    let groups = count(&op.attrs, "num_groups", 0)?;
    ensure!(groups > 0, "attribute `num_groups` is missing or 0");
    let rows = emit.reshape(x, &[0, groups as i64, -1])?;
    let (normal, _) = normalise(emit, rows, &[2], f64::from(op.attrs.float("epsilon", 1e-5)?))?;
    let normal = emit.cast(normal, dtype)?;
    let per_group = emit.opset < 21;
    let normal = if per_group { scale_and_shift(emit, id, normal)? } else { normal };
    let whole = emit.reshape_like(normal, x)?;
    Ok(vec![if per_group { whole } else { scale_and_shift(emit, id, whole)? }])
}

fn decompose_mean_variance(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (op, x, dtype) = wide_data(emit, id)?;
    let rank = emit.rank(x)?;
    let axes = op.attrs.ints("axes", &[0, 2, 3])?;
    let axes = axes.into_iter().map(|a| normal_axis(a, rank)).collect::<Result<Vec<usize>>>()?;
    let mean = emit.reduce_mean(x, &axes, true)?;
    let centred = emit.sub(x, mean)?;
    let square = emit.mul(centred, centred)?;
    let variance = emit.reduce_mean(square, &axes, true)?;
    // Where everything is equal the root would have no slope.
    let least = emit.scalar(f64::from(f32::MIN_POSITIVE), variance)?;
    let variance = emit.op("Max", &[variance, least], Attributes::new())?;
    let deviation = emit.unary("Sqrt", variance)?;
    let padded = emit.add_scalar(deviation, 1e-9)?;
    let normal = emit.div(centred, padded)?;
    Ok(vec![emit.cast(normal, dtype)?])
}

fn decompose_lp(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (op, x, dtype) = wide_data(emit, id)?;
    let axis = emit.axis(x, op.attrs.int("axis", -1)?)?;
    let norm = match op.attrs.int("p", 2)? {
        1 => "ReduceL1",
        2 => "ReduceL2",
        p => bail!("attribute `p` is {p}, expected 1 or 2"),
    };
    let norm = emit.reduce(norm, x, &[axis], true)?;
    let (zero, one) = (emit.scalar(0.0, x)?, emit.scalar(1.0, x)?);
    let flat = emit.op("Equal", &[norm, zero], Attributes::new())?;
    let safe = emit.select(flat, one, norm)?;
    let normal = emit.div(x, safe)?;
    Ok(vec![emit.cast(normal, dtype)?])
}

/// The mean of x² over the window of channels, padding counted, is an average pool along an axis of its own.
fn decompose_lrn(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (op, x, dtype) = wide_data(emit, id)?;
    let (rank, size) = (emit.rank(x)?, count(&op.attrs, "size", 0)? as i64);
    ensure!(size > 0, "attribute `size` is missing or 0");
    ensure!(rank >= 2, "LRN of data of rank {rank}");
    let spatial = rank - 1;
    let (mut kernel, mut pads) = (vec![1; spatial], vec![0; 2 * spatial]);
    kernel[0] = size;
    pads[0] = (size - 1) / 2;
    pads[spatial] = size - 1 - pads[0];
    let attrs = Attributes::new().with("kernel_shape", kernel).with("pads", pads).with("count_include_pad", 1i64);
    let square = emit.mul(x, x)?;
    let square = emit.unsqueeze(square, &[1])?;
    let mean = emit.op("AveragePool", &[square], attrs)?;
    let axis = emit.ints(&[1]);
    let mean = emit.op("Squeeze", &[mean, axis], Attributes::new())?;
    let scaled = emit.mul_scalar(mean, f64::from(op.attrs.float("alpha", 1e-4)?))?;
    let base = emit.add_scalar(scaled, f64::from(op.attrs.float("bias", 1.0)?))?;
    let exponent = emit.scalar(-f64::from(op.attrs.float("beta", 0.75)?), x)?;
    let factor = emit.op("Pow", &[base, exponent], Attributes::new())?;
    let normal = emit.mul(x, factor)?;
    Ok(vec![emit.cast(normal, dtype)?])
}

fn affine_sample(draw: &mut Draw, name: &str, scales: usize, attrs: Attributes) -> Sample {
    let shapes: [&[usize]; 2] = [&[2, 4, 3], &[1, 4, 2, 3]];
    let shape = *draw.pick(&shapes);
    let x = draw.distinct(shape, 0.07);
    let inputs = vec![x, draw.tensor(&[scales], 0.5, 1.5), draw.tensor(&[scales], -1.0, 1.0)];
    Sample::new(Operator::onnx(name, attrs), inputs)
}

fn data_sample(draw: &mut Draw, name: &str, attrs: Attributes) -> Sample {
    let x = draw.distinct(&[2, 3, 2, 2], 0.07);
    Sample::new(Operator::onnx(name, attrs), vec![x])
}
