//! `Shape`: the lengths of the axes `start..end` of a tensor, as an `int64` vector. `Size`: the number of elements.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Shape.html>. Negative `start` and `end` count from the end; both are
//! clamped to the rank. These two are where shape arithmetic begins: their elements are dimensions.

use super::{EvalCx, Gradient, InferCx, OpDef, Sample, index};
use crate::error::Result;
use crate::graph::Operator;
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor};
use std::ops::Range;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Shape",
        infer: infer_shape,
        eval: Some(eval_shape),
        grad: Gradient::Zero,
        sample: Some(sample_shape),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "Size",
        infer: infer_size,
        eval: Some(|_, inputs| Ok(vec![Tensor::scalar(index::input(inputs, 0)?.len() as i64)])),
        grad: Gradient::Zero,
        sample: Some(|draw| {
            Sample::new(Operator::onnx("Size", Attributes::new()), vec![draw.tensor(&[2, 3], 0.0, 1.0)])
        }),
        ..OpDef::DEFAULT
    },
];

/// The axes that the attributes name.
fn axes(op: &Operator, rank: usize) -> Result<Range<usize>> {
    let signed = rank as i64;
    let place = |at: i64| (if at < 0 { at.saturating_add(signed) } else { at }).clamp(0, signed) as usize;
    let (start, end) = (place(op.attrs.int("start", 0)?), place(op.attrs.int("end", signed)?));
    Ok(start..end.max(start))
}

fn infer_shape(cx: &mut InferCx) -> Result<()> {
    match cx.shape(0) {
        Some(shape) => {
            let dims = shape[axes(cx.op, shape.len())?].to_vec();
            cx.set_tensor(0, DType::I64, Some(vec![Dim::Known(dims.len() as i64)]));
            cx.set_dims(0, dims);
        }
        None => cx.set_tensor(0, DType::I64, Some(vec![Dim::Unknown])),
    }
    Ok(())
}

fn eval_shape(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let shape = index::input(inputs, 0)?.shape();
    let dims: Vec<i64> = shape[axes(cx.op, shape.len())?].iter().map(|&d| d as i64).collect();
    Ok(vec![Tensor::from_i64s(&dims)])
}

fn sample_shape(draw: &mut Draw) -> Sample {
    let attrs = match draw.int(0, 2) {
        0 => Attributes::new(),
        1 => Attributes::new().with("start", 1i64),
        _ => Attributes::new().with("start", -2i64).with("end", draw.int(-3, 4)),
    };
    Sample::new(Operator::onnx("Shape", attrs), vec![draw.tensor(&[2, 1, 3], 0.0, 1.0)])
}

fn infer_size(cx: &mut InferCx) -> Result<()> {
    let count = cx.shape(0).map(Dim::product);
    cx.set_tensor(0, DType::I64, Some(vec![]));
    cx.set_dims(0, vec![count.unwrap_or(Dim::Unknown)]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn shape_is_followed() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq,384");
        let whole = p.op("Shape", &[x], Attributes::new());
        let tail = p.op("Shape", &[x], Attributes::new().with("start", -2i64).with("end", 9i64));
        let none = p.op("Shape", &[x], Attributes::new().with("start", 2i64).with("end", 1i64));
        let size = p.op("Size", &[x], Attributes::new());
        assert_eq!(p.show(whole), "int64[3] = batch, seq, 384");
        assert_eq!(p.show(tail), "int64[2] = seq, 384");
        assert_eq!(p.show(none), "int64[0] = ");
        assert_eq!(p.show(size), "int64[] = 384*batch*seq");
    }
}
