//! `Range`: the numbers `start`, `start + delta`, … before `limit`: max(ceil((limit − start) / delta), 0) of them.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Range.html>. A range whose limit is a dimension has that dimension as
//! its length, as position indices do.

use super::arithmetic::Arithmetic;
use super::{EvalCx, Gradient, InferCx, MAX_FACT_DIMS, OpDef, Sample, index};
use crate::error::{Error, Result};
use crate::graph::Operator;
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Element, Tensor, dispatch, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Range",
    inputs: (3, 3),
    infer,
    eval: Some(eval),
    grad: Gradient::Zero,
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    for slot in 1..3 {
        ensure!(cx.dtype(slot)? == dtype, "input 0 is {dtype}, input {slot} is {}", cx.dtype(slot)?);
    }
    let scalar = |slot: usize| cx.dims(slot).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown);
    let (start, limit, delta) = (scalar(0), scalar(1), scalar(2));
    let length = match known_length(cx)? {
        Some(length) => Dim::Known(length as i64),
        None => dims_length(&start, &limit, &delta),
    };
    cx.set_tensor(0, dtype, Some(vec![length.clone()]));
    if let (true, Some(length)) = (dtype.is_int(), length.known()) {
        if length <= MAX_FACT_DIMS as i64 {
            cx.set_dims(0, (0..length).map(|i| start.add(&delta.mul(&i.into()))).collect());
        }
    }
    Ok(())
}

/// The length, if all inputs are known.
fn known_length(cx: &InferCx) -> Result<Option<usize>> {
    match (cx.tensor(0), cx.tensor(1), cx.tensor(2)) {
        (Some(start), Some(limit), Some(delta)) => length(start, limit, delta).map(Some),
        _ => Ok(None),
    }
}

fn dims_length(start: &Dim, limit: &Dim, delta: &Dim) -> Dim {
    let distance = limit.sub(start);
    match delta {
        Dim::Known(1) => distance,
        Dim::Known(step @ 2..) => distance.add(&(step - 1).into()).div_floor(delta),
        Dim::Known(-1) => start.sub(limit),
        _ => Dim::Unknown,
    }
}

/// How many numbers there are.
fn length(start: &Tensor, limit: &Tensor, delta: &Tensor) -> Result<usize> {
    let count = if start.dtype().is_int() {
        let ends = [start, limit, delta].map(|t| t.cast(DType::I64).and_then(|t| t.item::<i64>()));
        let [start, limit, delta] = ends;
        let (distance, delta) = (i128::from(limit?) - i128::from(start?), i128::from(delta?));
        ensure!(delta != 0, "delta is 0");
        let whole = distance / delta + i128::from(distance % delta != 0 && (distance < 0) == (delta < 0));
        usize::try_from(whole.max(0)).ok()
    } else {
        let ends = [start, limit, delta].map(|t| t.cast(DType::F64).and_then(|t| t.item::<f64>()));
        let [start, limit, delta] = ends;
        let count = ((limit? - start?) / delta?).ceil();
        ensure!(count.is_finite(), "start, limit and delta give no finite number of elements");
        (count < 1e15).then_some(count.max(0.0) as usize)
    };
    count.ok_or_else(|| Error::msg("the range has too many elements"))
}

fn eval(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (start, limit, delta) = (index::input(inputs, 0)?, index::input(inputs, 1)?, index::input(inputs, 2)?);
    let count = length(start, limit, delta)?;
    let unsupported = || Error::msg(format!("no ranges of {}", start.dtype()));
    let numbers =
        dispatch!(start.dtype(), number T => numbers::<T>(start, delta, count)?, else return Err(unsupported()));
    Ok(vec![numbers])
}

fn numbers<T: Arithmetic + Element>(start: &Tensor, delta: &Tensor, count: usize) -> Result<Tensor>
where
    usize: num_traits::AsPrimitive<T>,
{
    use num_traits::AsPrimitive;
    let (start, delta) = (start.item::<T>()?, delta.item::<T>()?);
    let numbers: Vec<T> = (0..count).map(|i| start.plus(delta.times(i.as_()))).collect();
    Ok(Tensor::from_vec([count], numbers))
}

fn sample(draw: &mut Draw) -> Sample {
    let op = Operator::onnx("Range", Attributes::new());
    if draw.chance(0.5) {
        let cases: [[i64; 3]; 4] = [[0, 5, 1], [10, 4, -2], [3, 3, 1], [-2, 6, 3]];
        let case = *draw.pick(&cases);
        return Sample::new(op, case.map(Tensor::scalar).to_vec());
    }
    let case = [1.0f32, 5.0, 1.5];
    Sample::new(op, case.map(Tensor::scalar).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::probe::Probe;

    #[test]
    fn positions_have_the_length_of_the_sequence() {
        let mut p = Probe::new();
        let x = p.input("x", DType::I64, "batch,seq");
        let past = p.input("past", DType::F32, "batch,past");
        let shape = p.op("Shape", &[x], Attributes::new());
        let (zero, one) = (p.scalar(0), p.scalar(1));
        let seq = p.op("Gather", &[shape, one], Attributes::new());
        let positions = p.op("Range", &[zero, seq, one], Attributes::new());
        assert_eq!(p.show(positions), "int64[seq]");
        let past = p.op("Shape", &[past], Attributes::new().with("start", 1i64));
        let past = p.op("Squeeze", &[past], Attributes::new());
        let (four, two) = (p.scalar(4), p.scalar(2));
        let tail = p.op("Range", &[past, seq, one], Attributes::new());
        let even = p.op("Range", &[zero, seq, two], Attributes::new());
        let small = p.op("Range", &[zero, four, two], Attributes::new());
        assert_eq!(p.show(tail), "int64[-past + seq]");
        assert_eq!(p.show(even), "int64[floor((seq + 1)/(2))]");
        assert_eq!(p.show(small), "int64[2] = 0, 2");
    }

    #[test]
    fn counts() {
        let count =
            |a: i64, b: i64, c: i64| length(&Tensor::scalar(a), &Tensor::scalar(b), &Tensor::scalar(c)).unwrap();
        assert_eq!(
            [count(0, 5, 2), count(5, 0, -2), count(0, 4, -1), count(3, 4, 9), count(0, -4, -2)],
            [3, 3, 0, 1, 2]
        );
    }
}
