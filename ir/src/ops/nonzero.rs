//! `NonZero`: the indices of all elements that are not zero, one column each. `Compress`: the entries of an axis (or of
//! the flattened tensor) for which a condition holds.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__NonZero.html>. How many there are depends on the data, so that axis is
//! unknown. The gradient of `Compress` is that of gathering at `NonZero(condition)`.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "NonZero",
        infer: infer_nonzero,
        eval: Some(eval_nonzero),
        grad: Gradient::Zero,
        sample: Some(|draw| Sample::new(Operator::onnx("NonZero", Attributes::new()), vec![draw.ints(&[3, 4], 0, 1)])),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "Compress",
        inputs: (2, 2),
        infer: infer_compress,
        eval: Some(eval_compress),
        grad: Gradient::Emit(grad_compress),
        sample: Some(sample_compress),
        ..OpDef::DEFAULT
    },
];

fn infer_nonzero(cx: &mut InferCx) -> Result<()> {
    let rank = cx.shape(0).map_or(Dim::Unknown, |s| Dim::Known(s.len() as i64));
    cx.set_tensor(0, DType::I64, Some(vec![rank, Dim::Unknown]));
    Ok(())
}

fn eval_nonzero(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let hits: Vec<bool> = x.cast(DType::Bool)?.to_vec()?;
    let hits: Vec<usize> = (0..hits.len()).filter(|&i| hits[i]).collect();
    let strides = index::strides(x.shape());
    let rows = x.shape().iter().zip(&strides);
    let indices: Vec<i64> =
        rows.flat_map(|(len, stride)| hits.iter().map(move |at| (at / stride % len) as i64)).collect();
    Ok(vec![Tensor::from_vec([x.rank(), hits.len()], indices)])
}

fn infer_compress(cx: &mut InferCx) -> Result<()> {
    let (dtype, axis) = (cx.dtype(0)?, cx.op.attrs.get_int("axis")?);
    ensure!(cx.dtype(1)? == DType::Bool, "its condition is {}, expected bool", cx.dtype(1)?);
    let count = match cx.tensor(1) {
        Some(condition) => Dim::Known(condition.to_i64s()?.iter().sum()),
        None => Dim::Unknown,
    };
    let shape = match (axis, cx.shape(0)) {
        (None, _) => Some(vec![count]),
        (Some(axis), Some(shape)) => {
            let axis = normal_axis(axis, shape.len())?;
            let mut shape = shape.to_vec();
            shape[axis] = count;
            Some(shape)
        }
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn eval_compress(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, condition) = (index::input(inputs, 0)?, index::input(inputs, 1)?.to_vec::<bool>()?);
    let kept = (0..condition.len()).filter(|&i| condition[i]);
    let (shape, axis) = match cx.op.attrs.get_int("axis")? {
        Some(axis) => (x.shape().to_vec(), normal_axis(axis, x.rank())?),
        None => (vec![x.len()], 0),
    };
    let (outer, len, inner) = index::lanes(&shape, axis);
    ensure!(condition.len() <= len, "{} conditions for an axis of length {len}", condition.len());
    let kept: Vec<usize> = kept.map(|i| i * inner).collect();
    let mut compressed = shape;
    compressed[axis] = kept.len();
    let places = index::outer_sum(&[index::steps(outer, len * inner), kept, index::steps(inner, 1)]);
    Ok(vec![index::pick(&[x], compressed, &places)?])
}

fn grad_compress(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let condition = cx.input(1)?;
    let indices = cx.emit.op("NonZero", &[condition], Attributes::new())?;
    let indices = cx.emit.reshape(indices, &[-1])?;
    Ok(vec![Some(picked_grad(cx, indices)?), None])
}

/// The gradient of an operator's input of which it picked entries by index: along the attribute `axis`, or, without one, of all elements in order.
pub(super) fn picked_grad(cx: &mut GradCx, indices: Value) -> Result<Value> {
    let (x, dy) = (cx.input(0)?, cx.dy()?);
    let axis = cx.op().attrs.get_int("axis")?;
    let shape = match axis {
        Some(_) => cx.emit.shape_of(x)?,
        None => {
            let size = cx.emit.op("Size", &[x], Attributes::new())?;
            cx.emit.reshape(size, &[1])?
        }
    };
    let attrs = Attributes::new().with("axis", axis.unwrap_or(0));
    let dx = cx.emit.sartor("GatherGrad", &[dy, indices, shape], attrs)?;
    let dx = if axis.is_some() { dx } else { cx.emit.reshape_like(dx, x)? };
    cx.emit.type_like(dx, x);
    Ok(dx)
}

fn sample_compress(draw: &mut Draw) -> Sample {
    let condition = Tensor::from_vec([3], vec![draw.chance(0.5), true, draw.chance(0.5)]);
    let attrs = if draw.chance(0.3) { Attributes::new() } else { Attributes::new().with("axis", draw.int(-2, 1)) };
    Sample::new(Operator::onnx("Compress", attrs), vec![draw.tensor(&[3, 4], -1.0, 1.0), condition])
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn counts_are_unknown() {
        let mut p = Probe::new();
        let (x, c) = (p.input("x", DType::F32, "batch,8"), p.input("c", DType::Bool, "8"));
        let hits = p.op("NonZero", &[x], Attributes::new());
        let kept = p.op("Compress", &[x, c], Attributes::new().with("axis", 1i64));
        assert_eq!(p.show(hits), "int64[2, ?]");
        assert_eq!(p.show(kept), "float[batch, ?]");
    }
}
