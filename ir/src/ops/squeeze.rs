//! `Squeeze`: axes of length 1 removed. `Unsqueeze`: axes of length 1 inserted.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Squeeze.html>. The axes of `Squeeze` count in the input (all of length
//! 1 if left out), those of `Unsqueeze` in the result.

use super::reshape::grad_as_input;
use super::{EvalCx, Gradient, InferCx, OpDef, Sample, index, upgrade};
use crate::error::Result;
use crate::graph::Operator;
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Squeeze",
        inputs: (1, 2),
        infer: infer_squeeze,
        eval: Some(eval_squeeze),
        grad: Gradient::Emit(grad_as_input),
        upgrades: &[(13, |graph, id| upgrade::ints_to_input(graph, id, "axes", 1))],
        sample: Some(sample_squeeze),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "Unsqueeze",
        inputs: (2, 2),
        infer: infer_unsqueeze,
        eval: Some(eval_unsqueeze),
        grad: Gradient::Emit(grad_as_input),
        upgrades: &[(13, |graph, id| upgrade::ints_to_input(graph, id, "axes", 1))],
        sample: Some(sample_unsqueeze),
        ..OpDef::DEFAULT
    },
];

fn infer_squeeze(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape = squeezed_shape(cx)?;
    cx.set_tensor(0, dtype, shape);
    pass_elements(cx);
    Ok(())
}

/// `None` where the rank of the result is open.
fn squeezed_shape(cx: &InferCx) -> Result<Option<Vec<Dim>>> {
    let Some(shape) = cx.shape(0) else { return Ok(None) };
    let axes = if cx.input_count() > 1 { index::axes_input(cx, 1, shape.len())? } else { ones(shape) };
    axes.map(|axes| without(shape, &axes)).transpose()
}

/// The axes of length 1, if of all axes it is known whether they are.
fn ones(shape: &[Dim]) -> Option<Vec<usize>> {
    let known: Option<Vec<i64>> = shape.iter().map(Dim::known).collect();
    known.map(|dims| (0..dims.len()).filter(|&i| dims[i] == 1).collect())
}

fn without(shape: &[Dim], axes: &[usize]) -> Result<Vec<Dim>> {
    for &axis in axes {
        let dim = &shape[axis];
        ensure!(dim.known().is_none_or(|d| d == 1), "axis {axis} has length {dim}, only 1 can be squeezed");
    }
    Ok((0..shape.len()).filter(|i| !axes.contains(i)).map(|i| shape[i].clone()).collect())
}

/// The elements of a vector or scalar that stays one.
fn pass_elements(cx: &mut InferCx) {
    if let Some(dims) = cx.dims(0).map(<[_]>::to_vec) {
        cx.set_dims(0, dims);
    }
}

fn eval_squeeze(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let dims = index::known_dims(x.shape());
    let axes = match index::ints(inputs, 1)? {
        Some(axes) => index::normal_axes(&axes, dims.len())?,
        None => ones(&dims).unwrap_or_default(),
    };
    Ok(vec![x.reshaped(index::static_dims(&without(&dims, &axes)?)?)?])
}

fn sample_squeeze(draw: &mut Draw) -> Sample {
    let axes: [&[i64]; 4] = [&[1], &[-1], &[1, 3], &[-1, 1]];
    let x = draw.tensor(&[2, 1, 3, 1], -1.0, 1.0);
    let inputs = if draw.chance(0.2) { vec![x] } else { vec![x, Tensor::from_i64s(*draw.pick(&axes))] };
    Sample::new(Operator::onnx("Squeeze", Attributes::new()), inputs)
}

fn infer_unsqueeze(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape = match (cx.shape(0), cx.ints(1)) {
        (Some(shape), Some(axes)) => Some(with_ones(shape, &axes)?),
        (Some(shape), None) => index::elements(cx, 1).map(|axes| vec![Dim::Unknown; shape.len() + axes.len()]),
        _ => None,
    };
    let stays_vector = shape.as_ref().is_some_and(|s| s.len() <= 1);
    cx.set_tensor(0, dtype, shape);
    if stays_vector {
        pass_elements(cx);
    }
    Ok(())
}

fn with_ones(shape: &[Dim], axes: &[i64]) -> Result<Vec<Dim>> {
    let rank = shape.len() + axes.len();
    let axes = index::normal_axes(axes, rank)?;
    let mut rest = shape.iter().cloned();
    Ok((0..rank).map(|i| if axes.contains(&i) { Dim::Known(1) } else { rest.next().unwrap_or(Dim::Unknown) }).collect())
}

fn eval_unsqueeze(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, axes) = (index::input(inputs, 0)?, index::input(inputs, 1)?.to_i64s()?);
    let shape = with_ones(&index::known_dims(x.shape()), &axes)?;
    Ok(vec![x.reshaped(index::static_dims(&shape)?)?])
}

fn sample_unsqueeze(draw: &mut Draw) -> Sample {
    let axes: [&[i64]; 4] = [&[0], &[-1], &[1, 3], &[-1, 0]];
    let inputs = vec![draw.tensor(&[2, 3], -1.0, 1.0), Tensor::from_i64s(*draw.pick(&axes))];
    Sample::new(Operator::onnx("Unsqueeze", Attributes::new()), inputs)
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn axes_come_and_go() {
        let mut p = Probe::new();
        let x = p.input("x", DType::I64, "batch,seq");
        let axes = p.ints(&[1, 2]);
        let wide = p.op("Unsqueeze", &[x, axes], Attributes::new());
        let last = p.ints(&[-2]);
        let narrow = p.op("Squeeze", &[wide, last], Attributes::new());
        let all = p.op("Squeeze", &[wide], Attributes::new());
        assert_eq!(p.show(wide), "int64[batch, 1, 1, seq]");
        assert_eq!(p.show(narrow), "int64[batch, 1, seq]");
        assert_eq!(p.show(all), "int64");
    }

    #[test]
    fn elements_pass() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq");
        let b = p.op("Shape", &[x], Attributes::new().with("end", 1i64));
        let scalar = p.op("Squeeze", &[b], Attributes::new());
        let front = p.ints(&[0]);
        let vector = p.op("Unsqueeze", &[scalar, front], Attributes::new());
        let matrix = p.op("Unsqueeze", &[vector, front], Attributes::new());
        assert_eq!(p.show(scalar), "int64[] = batch");
        assert_eq!(p.show(vector), "int64[1] = batch");
        assert_eq!(p.show(matrix), "int64[1, 1]");
    }
}
