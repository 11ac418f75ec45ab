//! Normalisation fused with the residual sum in front of it: SkipLayerNormalization and SkipSimplifiedLayerNormalization of
//! `com.microsoft`; and SimplifiedLayerNormalization, which is RMSNormalization under the name that ONNX Runtime gave it before.
//!
//! ```text
//! SkipLayerNormalization(x, skip, gamma, beta, bias)          s = x + skip + bias     y = LayerNormalization(s, gamma, beta)
//! SkipSimplifiedLayerNormalization(x, skip, gamma, bias)      s = x + skip + bias     y = RMSNormalization(s, gamma)
//! SimplifiedLayerNormalization(x, scale)                      y = RMSNormalization(x, scale)
//! ```
//!
//! Shapes: x, y, s `[…, n]`; skip broadcasts to x; gamma, beta, bias `[n]`. The outputs of the first two are y, the mean, the
//! inverse deviation (both `float`, of length 1 along the last axis) and s. ONNX Runtime leaves mean and inverse deviation unset on
//! CPUs; here they are what their names say.

use super::{CONTRIB, operator};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::ops::elementwise::one_type;
use crate::ops::layer_norm::{inverse_root, rows, stash_type};
use crate::ops::real::kept_dims;
use crate::ops::{Emit, InferCx, OpDef, Sample};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "SkipLayerNormalization",
        inputs: (3, 5),
        outputs: (1, 4),
        infer: infer_skip,
        decompose: Some(decompose_skip),
        flops: |cx| 10 * cx.output_len(0),
        sample: Some(|draw| sample_skip(draw, "SkipLayerNormalization", 2)),
        ..CONTRIB
    },
    OpDef {
        name: "SkipSimplifiedLayerNormalization",
        inputs: (3, 4),
        outputs: (1, 4),
        infer: infer_skip,
        decompose: Some(decompose_skip_simplified),
        flops: |cx| 7 * cx.output_len(0),
        sample: Some(|draw| sample_skip(draw, "SkipSimplifiedLayerNormalization", 1)),
        ..CONTRIB
    },
    OpDef {
        domain: "",
        name: "SimplifiedLayerNormalization",
        inputs: (2, 2),
        outputs: (1, 2),
        infer: infer_simplified,
        decompose: Some(decompose_simplified),
        flops: |cx| 5 * cx.output_len(0),
        sample: Some(|draw| {
            let inputs = vec![draw.tensor(&[2, 3, 4], -1.0, 1.0), draw.tensor(&[4], 0.5, 1.5)];
            Sample::new(Operator::onnx("SimplifiedLayerNormalization", Attributes::new()), inputs)
        }),
        ..CONTRIB
    },
];

/// The statistics have length 1 along the normalised axes.
fn set_statistics(cx: &mut InferCx, slots: &[usize], attrs: &Attributes) -> Result<()> {
    let shape = match cx.shape(0) {
        Some(shape) => Some(kept_dims(shape, &rows(attrs, shape.len())?.collect::<Vec<_>>())),
        None => None,
    };
    let stash = stash_type(attrs)?;
    slots.iter().for_each(|&slot| cx.set_tensor(slot, stash, shape.clone()));
    Ok(())
}

fn infer_skip(cx: &mut InferCx) -> Result<()> {
    one_type(cx, 0..3)?;
    let ty = cx.ty(0)?.clone();
    cx.set(0, ty.clone());
    cx.set(3, ty);
    set_statistics(cx, &[1, 2], &Attributes::new())
}

fn infer_simplified(cx: &mut InferCx) -> Result<()> {
    let (dtype, shape) = (cx.dtype(1)?, cx.shape(0).map(<[Dim]>::to_vec));
    cx.set_tensor(0, dtype, shape);
    let attrs = cx.op.attrs.clone();
    set_statistics(cx, &[1], &attrs)
}

/// x + skip, and the bias in this slot.
fn residual(emit: &mut Emit, id: NodeId, bias: usize) -> Result<Value> {
    let (x, skip) = (emit.operand(id, 0)?, emit.operand(id, 1)?);
    let sum = emit.add(x, skip)?;
    match emit.graph.input(id, bias) {
        Some(bias) => emit.add(sum, bias),
        None => Ok(sum),
    }
}

/// Whether somebody may read an output: it has a name.
fn wanted(emit: &Emit, id: NodeId, slot: usize) -> bool {
    emit.graph.node(id).outputs.get(slot).is_some_and(|output| !output.name.is_empty())
}

fn decompose_skip(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (sum, gamma) = (residual(emit, id, 4)?, emit.operand(id, 2)?);
    let mut inputs = vec![Some(sum), Some(gamma)];
    inputs.extend(emit.graph.input(id, 3).map(Some));
    let attrs = Attributes::new().with("epsilon", emit.attrs(id).float("epsilon", 1e-12)?);
    let statistics = wanted(emit, id, 1) || wanted(emit, id, 2);
    let norm = Operator::onnx("LayerNormalization", attrs);
    let mut values = emit.node(norm, &inputs, if statistics { 3 } else { 1 })?;
    values.resize(3, sum);
    values.push(sum);
    Ok(values)
}

fn decompose_skip_simplified(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (sum, gamma) = (residual(emit, id, 3)?, emit.operand(id, 2)?);
    let attrs = Attributes::new().with("epsilon", emit.attrs(id).float("epsilon", 1e-12)?);
    let y = emit.op("RMSNormalization", &[sum, gamma], attrs.clone())?;
    let (mut mean, mut inverse) = (sum, sum);
    if wanted(emit, id, 1) || wanted(emit, id, 2) {
        inverse = inverse_deviation(emit, sum, &attrs)?;
        let zero = emit.constant(Tensor::scalar(0f32));
        mean = emit.mul(inverse, zero)?;
    }
    Ok(vec![y, mean, inverse, sum])
}

/// The mean that RMSNormalization takes off is 0; what it divides by is the root of the mean of squares.
fn inverse_deviation(emit: &mut Emit, x: Value, attrs: &Attributes) -> Result<Value> {
    let axes: Vec<usize> = rows(attrs, emit.rank(x)?)?.collect();
    let wide = emit.cast(x, stash_type(attrs)?)?;
    let square = emit.square(wide)?;
    let mean = emit.reduce_mean(square, &axes, true)?;
    inverse_root(emit, mean, f64::from(attrs.float("epsilon", 1e-5)?))
}

fn decompose_simplified(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (x, scale, attrs) = (emit.operand(id, 0)?, emit.operand(id, 1)?, emit.attrs(id));
    let dtype: DType = emit.dtype(scale)?;
    let narrow = emit.cast(x, dtype)?;
    let y = emit.op("RMSNormalization", &[narrow, scale], attrs.clone())?;
    let inverse = if wanted(emit, id, 1) { inverse_deviation(emit, x, &attrs)? } else { y };
    Ok(vec![y, inverse])
}

/// With `vectors` optional vectors after gamma.
fn sample_skip(draw: &mut Draw, name: &str, vectors: usize) -> Sample {
    let skip: &[usize] = *draw.pick(&[&[2, 3, 4][..], &[1, 3, 4], &[3, 4]]);
    let skip = if vectors == 1 { &[2, 3, 4] } else { skip };
    let mut inputs =
        vec![draw.tensor(&[2, 3, 4], -1.0, 1.0), draw.tensor(skip, -1.0, 1.0), draw.tensor(&[4], 0.5, 1.5)];
    let given = draw.int(0, vectors as i64) as usize;
    inputs.extend((0..given).map(|_| draw.tensor(&[4], -1.0, 1.0)));
    let outputs = *draw.pick(&[1, 4]);
    Sample { outputs, ..Sample::new(operator(name, Attributes::new().with("epsilon", 1e-3f32)), inputs) }
}
