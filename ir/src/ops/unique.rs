//! `Unique`: the different entries of an axis (or of the flattened tensor), in ascending order or in that of their first
//! occurrence; with the places of these (`indices`), the number of each entry among the results (`inverse_indices`), and how
//! often each occurs (`counts`).
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Unique.html>. Entries are compared element by element; NaN equals itself and
//! is above all numbers. How many there are depends on the data. The gradient is that of gathering the first occurrences.

use super::nonzero::picked_grad;
use super::topk::compare;
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis};
use crate::error::{Error, Result};
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, dispatch};
use std::cmp::Ordering;

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Unique",
    outputs: (1, 4),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn infer(cx: &mut InferCx) -> Result<()> {
    let (dtype, axis) = (cx.dtype(0)?, cx.op.attrs.get_int("axis")?);
    cx.op.attrs.flag("sorted", true)?;
    let (shape, entries) = match (axis, cx.shape(0)) {
        (None, shape) => (Some(vec![Dim::Unknown]), shape.map_or(Dim::Unknown, Dim::product)),
        (Some(axis), Some(shape)) => {
            let axis = normal_axis(axis, shape.len())?;
            let mut different = shape.to_vec();
            different[axis] = Dim::Unknown;
            (Some(different), shape[axis].clone())
        }
        (Some(_), None) => (None, Dim::Unknown),
    };
    cx.set_tensor(0, dtype, shape);
    cx.set_tensor(1, DType::I64, Some(vec![Dim::Unknown]));
    cx.set_tensor(2, DType::I64, Some(vec![entries]));
    cx.set_tensor(3, DType::I64, Some(vec![Dim::Unknown]));
    Ok(())
}

/// The entries that differ, by their first occurrence, and for every entry which of them it is.
struct Entries {
    firsts: Vec<usize>,
    of_entry: Vec<usize>,
    counts: Vec<i64>,
}

impl Entries {
    /// Of `count` entries in this order.
    fn new(count: usize, sorted: bool, order: &dyn Fn(usize, usize) -> Ordering) -> Entries {
        let ascending = index::sorted(count, order);
        let (mut groups, mut counts): (Vec<usize>, Vec<i64>) = (Vec::new(), Vec::new());
        let mut of_entry = vec![0; count];
        for &entry in &ascending {
            match (groups.last(), counts.last_mut()) {
                (Some(&first), Some(times)) if order(first, entry) == Ordering::Equal => *times += 1,
                _ => {
                    groups.push(entry);
                    counts.push(1);
                }
            }
            of_entry[entry] = groups.len() - 1;
        }
        let mut rank: Vec<usize> = (0..groups.len()).collect();
        if !sorted {
            rank.sort_by_key(|&g| groups[g]);
        }
        let mut place = vec![0; rank.len()];
        rank.iter().enumerate().for_each(|(i, &g)| place[g] = i);
        Entries {
            firsts: rank.iter().map(|&g| groups[g]).collect(),
            of_entry: of_entry.into_iter().map(|g| place[g]).collect(),
            counts: rank.iter().map(|&g| counts[g]).collect(),
        }
    }
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let sorted = cx.op.attrs.flag("sorted", true)?;
    let (mut shape, axis) = match cx.op.attrs.get_int("axis")? {
        Some(axis) => (x.shape().to_vec(), normal_axis(axis, x.rank())?),
        None => (vec![x.len()], 0),
    };
    let (outer, len, inner) = index::lanes(&shape, axis);
    let elements = if x.is_empty() { 0 } else { outer * inner };
    let place = move |entry: usize, i: usize| (i / inner * len + entry) * inner + i % inner;
    let unsupported = || Error::msg(format!("no order on {}", x.dtype()));
    let entries = match x.strings() {
        Some(strings) => Entries::new(len, sorted, &|a, b| {
            (0..elements)
                .map(|i| strings[place(a, i)].cmp(&strings[place(b, i)]))
                .find(|o| o.is_ne())
                .unwrap_or(Ordering::Equal)
        }),
        None => dispatch!(x.dtype(), any T => {
            let data = x.as_slice::<T>()?;
            Entries::new(len, sorted, &|a, b| {
                (0..elements).map(|i| compare(&data[place(a, i)], &data[place(b, i)])).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
            })
        }, else return Err(unsupported())),
    };
    let kept: Vec<usize> = entries.firsts.iter().map(|first| first * inner).collect();
    shape[axis] = kept.len();
    let places = if elements == 0 {
        Vec::new()
    } else {
        index::outer_sum(&[index::steps(outer, len * inner), kept, index::steps(inner, 1)])
    };
    let y = index::pick(&[x], shape, &places)?;
    let numbers =
        |list: Vec<usize>| Tensor::from_vec([list.len()], list.into_iter().map(|i| i as i64).collect::<Vec<i64>>());
    Ok(vec![y, numbers(entries.firsts), numbers(entries.of_entry), Tensor::from_i64s(&entries.counts)])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let indices = cx.emit.optional_output(cx.node, 1)?;
    Ok(vec![Some(picked_grad(cx, indices)?)])
}

fn sample(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("sorted", draw.int(0, 1));
    let attrs = if draw.chance(0.5) { attrs } else { attrs.with("axis", draw.int(-2, 1)) };
    let x = if draw.chance(0.5) { draw.distinct(&[3, 2], 0.3) } else { draw.ints(&[4, 2], 0, 1) };
    let outputs = draw.int(1, 4) as usize;
    Sample { outputs, ..Sample::new(Operator::onnx("Unique", attrs), vec![x]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders() {
        let x = [2, 1, 1, 3, 4, 3];
        let of = |sorted| {
            let e = Entries::new(x.len(), sorted, &|a, b| x[a].cmp(&x[b]));
            (e.firsts, e.of_entry, e.counts)
        };
        assert_eq!(of(false), (vec![0, 1, 3, 4], vec![0, 1, 1, 2, 3, 2], vec![1, 2, 2, 1]));
        assert_eq!(of(true), (vec![1, 0, 3, 4], vec![1, 0, 0, 2, 3, 2], vec![2, 1, 2, 1]));
    }
}
