//! `Gather`: entries of one axis by index, `Y = X[…, indices, …]`; and its gradient `GatherGrad`, which adds the
//! entries of `dy` to zeros at the same indices.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Gather.html>. Shapes: `[a, axis, b]` by `[i]` gives `[a, i, b]`.
//! Negative indices count from the end. `ai.sartor::GatherGrad(dy, indices, shape)` gives a tensor of shape `shape`.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, SARTOR_DOMAIN, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Gather",
        inputs: (2, 2),
        infer,
        eval: Some(eval),
        grad: Gradient::Emit(grad),
        sample: Some(sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: SARTOR_DOMAIN,
        name: "GatherGrad",
        inputs: (3, 3),
        infer: infer_grad,
        eval: Some(eval_grad),
        decompose: Some(super::written_out::gather_grad),
        grad: Gradient::Emit(grad_of_grad),
        flops: |cx| cx.input_len(0),
        sample: Some(sample_grad),
        ..OpDef::DEFAULT
    },
];

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    check_indices(cx.dtype(1)?)?;
    let shape = match (cx.shape(0), cx.shape(1)) {
        (Some(data), Some(indices)) => {
            let axis = normal_axis(cx.op.attrs.int("axis", 0)?, data.len())?;
            Some([&data[..axis], indices, &data[axis + 1..]].concat())
        }
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    if let (Some(dims), Some(indices)) = (cx.dims(0), cx.ints(1)) {
        let picked: Result<Vec<Dim>> =
            indices.iter().map(|&i| Ok(dims[index::normal_index(i, dims.len())?].clone())).collect();
        let picked = picked?;
        if cx.shape(1).is_some_and(|s| s.len() <= 1) {
            cx.set_dims(0, picked);
        }
    }
    Ok(())
}

pub(super) fn check_indices(dtype: DType) -> Result<()> {
    ensure!(matches!(dtype, DType::I32 | DType::I64), "its indices are {dtype}, expected int32 or int64");
    Ok(())
}

/// Where each element of the result stands in the data.
fn places(data: &[usize], indices: &Tensor, axis: usize) -> Result<Vec<usize>> {
    let (outer, len, inner) = index::lanes(data, axis);
    let rows: Vec<i64> = indices.to_i64s()?;
    let rows: Result<Vec<usize>> = rows.into_iter().map(|i| Ok(index::normal_index(i, len)? * inner)).collect();
    Ok(index::outer_sum(&[index::steps(outer, len * inner), rows?, index::steps(inner, 1)]))
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, indices) = (index::input(inputs, 0)?, index::input(inputs, 1)?);
    let axis = normal_axis(cx.op.attrs.int("axis", 0)?, x.rank())?;
    let shape = [&x.shape()[..axis], indices.shape(), &x.shape()[axis + 1..]].concat();
    if shape.contains(&0) {
        return Ok(vec![Tensor::zeros(x.dtype(), shape)?]);
    }
    index::room(&shape)?;
    Ok(vec![index::pick(&[x], shape, &places(x.shape(), indices, axis)?)?])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, indices, dy) = (cx.input(0)?, cx.input(1)?, cx.dy()?);
    let axis = cx.op().attrs.int("axis", 0)?;
    let shape = cx.emit.shape_of(x)?;
    let dx = cx.emit.sartor("GatherGrad", &[dy, indices, shape], Attributes::new().with("axis", axis))?;
    cx.emit.type_like(dx, x);
    Ok(vec![Some(dx), None])
}

fn infer_grad(cx: &mut InferCx) -> Result<()> {
    let (dtype, shape) = (cx.dtype(0)?, index::elements(cx, 2));
    check_indices(cx.dtype(1)?)?;
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn eval_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, indices, shape) = (index::input(inputs, 0)?, index::input(inputs, 1)?, index::shape_input(inputs, 2)?);
    let axis = normal_axis(cx.op.attrs.int("axis", 0)?, shape.len())?;
    let taken = [&shape[..axis], indices.shape(), &shape[axis + 1..]].concat();
    ensure!(dy.shape() == taken, "a gradient of shape {:?}, expected {taken:?}", dy.shape());
    if dy.is_empty() {
        return Ok(vec![Tensor::zeros(dy.dtype(), shape)?]);
    }
    Ok(vec![index::accumulate(dy, &shape, &places(&shape, indices, axis)?)?])
}

fn grad_of_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (indices, dy) = (cx.input(1)?, cx.dy()?);
    let axis = cx.op().attrs.int("axis", 0)?;
    Ok(vec![Some(cx.emit.op("Gather", &[dy, indices], Attributes::new().with("axis", axis))?), None, None])
}

/// Data, indices with repeats and negative ones, and an axis.
fn case(draw: &mut Draw) -> (Vec<usize>, Tensor, Attributes) {
    let data = vec![3, 2, 4];
    let axis = draw.int(-3, 2);
    let len = data[axis.rem_euclid(3) as usize] as i64;
    let shapes: [&[usize]; 4] = [&[], &[3], &[2, 2], &[5]];
    let shape = *draw.pick(&shapes);
    (data, draw.ints(shape, -len, len - 1), Attributes::new().with("axis", axis))
}

fn sample(draw: &mut Draw) -> Sample {
    let (data, indices, attrs) = case(draw);
    Sample::new(Operator::onnx("Gather", attrs), vec![draw.tensor(&data, -1.0, 1.0), indices])
}

fn sample_grad(draw: &mut Draw) -> Sample {
    let (data, indices, attrs) = case(draw);
    let axis = attrs.int("axis", 0).unwrap_or(0).rem_euclid(3) as usize;
    let dy = [&data[..axis], indices.shape(), &data[axis + 1..]].concat();
    let shape = Tensor::from_i64s(&data.iter().map(|&d| d as i64).collect::<Vec<_>>());
    Sample::new(Operator::sartor("GatherGrad", attrs), vec![draw.tensor(&dy, -1.0, 1.0), indices, shape])
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn embeddings_and_shapes() {
        let mut p = Probe::new();
        let table = p.input("table", DType::F32, "30522,384");
        let ids = p.input("ids", DType::I64, "batch,seq");
        let embedded = p.op("Gather", &[table, ids], Attributes::new());
        let first = p.scalar(0);
        let pooled = p.op("Gather", &[embedded, first], Attributes::new().with("axis", 1i64));
        let shape = p.op("Shape", &[embedded], Attributes::new());
        let (last, pair) = (p.scalar(-1), p.ints(&[1, 0]));
        let (width, turned) =
            (p.op("Gather", &[shape, last], Attributes::new()), p.op("Gather", &[shape, pair], Attributes::new()));
        assert_eq!(p.show(embedded), "float[batch, seq, 384]");
        assert_eq!(p.show(pooled), "float[batch, 384]");
        assert_eq!(p.show(width), "int64[] = 384");
        assert_eq!(p.show(turned), "int64[2] = seq, batch");
    }
}
