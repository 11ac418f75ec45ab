//! `TopK`: the `k` largest (or smallest) entries of an axis and their indices. `ArgMax`, `ArgMin`: the index of the
//! largest or smallest.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__TopK.html>. Of equal entries the first wins (with `select_last_index`
//! the last). The order is total, with NaN above all numbers, so that any data sorts. Only the values carry a gradient: `dy`
//! goes where they came from.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis, upgrade};
use crate::error::{Error, Result};
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Element, Tensor, bail, dispatch, ensure};
use std::cmp::Ordering;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "TopK",
        inputs: (2, 2),
        outputs: (2, 2),
        infer: infer_topk,
        eval: Some(eval_topk),
        grad: Gradient::Emit(grad_topk),
        upgrades: &[(10, |graph, id| upgrade::int_to_input(graph, id, "k", 1))],
        sample: Some(sample_topk),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "ArgMax",
        eval: Some(|cx, inputs| eval_arg(cx, inputs, true)),
        sample: Some(|d| sample_arg(d, "ArgMax")),
        ..ARG
    },
    OpDef {
        name: "ArgMin",
        eval: Some(|cx, inputs| eval_arg(cx, inputs, false)),
        sample: Some(|d| sample_arg(d, "ArgMin")),
        ..ARG
    },
];

const ARG: OpDef = OpDef { infer: infer_arg, grad: Gradient::Zero, flops: |cx| cx.input_len(0), ..OpDef::DEFAULT };

fn infer_topk(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let k = cx.dims(1).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown);
    let shape = match cx.shape(0) {
        Some(shape) => {
            let axis = normal_axis(cx.op.attrs.int("axis", -1)?, shape.len())?;
            if let (Some(k), Some(len)) = (k.known(), shape[axis].known()) {
                ensure!((0..=len).contains(&k), "k is {k}, the axis has length {len}");
            }
            let mut shape = shape.to_vec();
            shape[axis] = k;
            Some(shape)
        }
        None => None,
    };
    cx.set_tensor(0, dtype, shape.clone());
    cx.set_tensor(1, DType::I64, shape);
    Ok(())
}

/// Numbers by size, NaN above all.
pub(super) fn compare<T: Element>(a: &T, b: &T) -> Ordering {
    let is_nan = |x: &T| x.partial_cmp(x).is_none();
    a.partial_cmp(b).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
}

fn eval_topk(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, k) = (index::input(inputs, 0)?, index::input(inputs, 1)?.to_i64s()?);
    let [k] = k[..] else { bail!("k has {} elements, expected one", k.len()) };
    let axis = normal_axis(cx.op.attrs.int("axis", -1)?, x.rank())?;
    let k = usize::try_from(k).ok().filter(|k| *k <= x.shape()[axis]);
    let Some(k) = k else { bail!("k is not in 0 to {}, the length of the axis", x.shape()[axis]) };
    let largest = cx.op.attrs.flag("largest", true)?;
    let unsupported = || Error::msg(format!("no order on {}", x.dtype()));
    let order = dispatch!(x.dtype(), number T => ranked::<T>(x, axis, k, largest)?, else return Err(unsupported()));
    let (outer, len, inner) = index::lanes(x.shape(), axis);
    let mut shape = x.shape().to_vec();
    shape[axis] = k;
    let at = |o: usize, i: usize, n: usize| order[(o * inner + n) * k + i];
    let cells = || (0..outer).flat_map(|o| (0..k).flat_map(move |i| (0..inner).map(move |n| (o, i, n))));
    let places: Vec<usize> = cells().map(|(o, i, n)| (o * len + at(o, i, n)) * inner + n).collect();
    let indices: Vec<i64> = cells().map(|(o, i, n)| at(o, i, n) as i64).collect();
    Ok(vec![index::pick(&[x], shape.clone(), &places)?, Tensor::from_vec(shape, indices)])
}

/// For each lane of the axis the indices of its `k` first entries.
fn ranked<T: Element>(x: &Tensor, axis: usize, k: usize, largest: bool) -> Result<Vec<usize>> {
    let (outer, len, inner) = index::lanes(x.shape(), axis);
    let data = x.as_slice::<T>()?;
    let mut ranked = Vec::with_capacity(outer * inner * k);
    for lane in 0..outer * inner {
        let value = |i: usize| &data[(lane / inner * len + i) * inner + lane % inner];
        let order = index::sorted(len, &|a, b| {
            let by_value = compare(value(a), value(b));
            if largest { by_value.reverse() } else { by_value }
        });
        ranked.extend_from_slice(&order[..k]);
    }
    Ok(ranked)
}

fn grad_topk(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy, indices) = (cx.input(0)?, cx.dy()?, cx.output(1));
    let attrs = Attributes::new().with("axis", cx.op().attrs.int("axis", -1)?).with("reduction", "add");
    let dtype = cx.emit.dtype(x)?;
    let zeros = cx.emit.zeros_like(x, dtype)?;
    Ok(vec![Some(cx.emit.op("ScatterElements", &[zeros, indices, dy], attrs)?), None])
}

fn sample_topk(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("axis", draw.int(-2, 1)).with("largest", draw.int(0, 1));
    let inputs = vec![draw.tensor(&[3, 4], -1.0, 1.0), Tensor::from_i64s(&[draw.int(1, 3)])];
    Sample { outputs: 2, ..Sample::new(Operator::onnx("TopK", attrs), inputs) }
}

fn infer_arg(cx: &mut InferCx) -> Result<()> {
    let keep = cx.op.attrs.flag("keepdims", true)?;
    let shape = match cx.shape(0) {
        Some(shape) => {
            let axis = normal_axis(cx.op.attrs.int("axis", 0)?, shape.len())?;
            let mut shape = shape.to_vec();
            match keep {
                true => shape[axis] = Dim::Known(1),
                false => drop(shape.remove(axis)),
            }
            Some(shape)
        }
        None => None,
    };
    cx.set_tensor(0, DType::I64, shape);
    Ok(())
}

fn eval_arg(cx: &EvalCx, inputs: &[Option<&Tensor>], largest: bool) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let axis = normal_axis(cx.op.attrs.int("axis", 0)?, x.rank())?;
    let last = cx.op.attrs.flag("select_last_index", false)?;
    ensure!(x.shape()[axis] > 0, "axis {axis} is empty");
    let unsupported = || Error::msg(format!("no order on {}", x.dtype()));
    let found =
        dispatch!(x.dtype(), number T => extremes::<T>(x, axis, largest, last)?, else return Err(unsupported()));
    let mut shape = x.shape().to_vec();
    match cx.op.attrs.flag("keepdims", true)? {
        true => shape[axis] = 1,
        false => drop(shape.remove(axis)),
    }
    Ok(vec![Tensor::from_vec(shape, found)])
}

fn extremes<T: Element>(x: &Tensor, axis: usize, largest: bool, last: bool) -> Result<Vec<i64>> {
    let (outer, len, inner) = index::lanes(x.shape(), axis);
    let data = x.as_slice::<T>()?;
    let find = |lane: usize| {
        let value = |i: usize| &data[(lane / inner * len + i) * inner + lane % inner];
        let better = |a: usize, b: usize| match compare(value(a), value(b)) {
            Ordering::Equal => last,
            order => (order == Ordering::Greater) == largest,
        };
        (1..len).fold(0, |best, i| if better(i, best) { i } else { best }) as i64
    };
    Ok((0..outer * inner).map(find).collect())
}

fn sample_arg(draw: &mut Draw, name: &str) -> Sample {
    let flags = Attributes::new().with("keepdims", draw.int(0, 1)).with("select_last_index", draw.int(0, 1));
    let op = Operator::onnx(name, flags.with("axis", draw.int(-2, 1)));
    Sample::new(op, vec![draw.ints(&[3, 4], 0, 2)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::probe::Probe;

    #[test]
    fn k_becomes_the_length() {
        let mut p = Probe::new();
        let (x, k) = (p.input("x", DType::F32, "batch,seq"), p.ints(&[3]));
        let top = p.node("TopK", &[Some(x), Some(k)], Attributes::new(), 2);
        let best = p.op("ArgMax", &[x], Attributes::new().with("axis", 1i64).with("keepdims", 0i64));
        assert_eq!(
            [p.show(top[0]), p.show(top[1]), p.show(best)],
            ["float[batch, 3]", "int64[batch, 3]", "int64[batch]"]
        );
    }

    #[test]
    fn ties_and_nan() {
        let x = Tensor::from_vec([5], vec![1.0f32, f32::NAN, 3.0, 3.0, -1.0]);
        assert_eq!(ranked::<f32>(&x, 0, 3, true).unwrap(), [1, 2, 3]);
        assert_eq!(ranked::<f32>(&x, 0, 2, false).unwrap(), [4, 0]);
        let y = Tensor::from_i64s(&[2, 5, 5, 2]);
        assert_eq!(extremes::<i64>(&y, 0, true, false).unwrap(), [1]);
        assert_eq!(extremes::<i64>(&y, 0, false, true).unwrap(), [3]);
    }
}
