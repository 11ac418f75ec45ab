//! `ScatterElements` and `ScatterND`: a copy of the data in which the elements (or slices) named by `indices` are replaced
//! by `updates`, or combined with them (`reduction` add, mul, max, min). `Scatter` is the old name of the former.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ScatterND.html>. With repeated indices and no reduction the last update
//! stays. Gradients, with G the gather that reads the same places, S the scatter, u the updates, x the data:
//!
//! | reduction | dx | du |
//! |---|---|---|
//! | none | S(dy, 0) | G(dy) |
//! | add | dy | G(dy) |
//! | mul | dy ∘ Πu | G(dy ∘ x ∘ the product of the other updates) |
//! | max, min | dy where y = x | G(dy) where u = G(y); shared evenly by those that tie |

use super::arithmetic::Arithmetic;
use super::gather::check_indices;
use super::gather_nd::{element_places, nd_dims, nd_places};
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis, upgrade};
use crate::error::{Error, Result};
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Tensor, bail, dispatch, ensure};

const ELEMENTS: OpDef = OpDef {
    name: "ScatterElements",
    inputs: (3, 3),
    infer: infer_elements,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    flops: |cx| cx.input_len(2),
    sample: Some(sample_elements),
    ..OpDef::DEFAULT
};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    ELEMENTS,
    OpDef {
        name: "Scatter",
        upgrades: &[(11, |graph, id| {
            upgrade::rename(graph, id, "ScatterElements");
            Ok(())
        })],
        sample: None,
        ..ELEMENTS
    },
    OpDef { name: "ScatterND", infer: infer_nd, sample: Some(sample_nd), ..ELEMENTS },
];

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Add,
    Mul,
    Max,
    Min,
}

fn reduction(op: &Operator) -> Result<Reduction> {
    Ok(match op.attrs.str("reduction", "none")? {
        "none" => Reduction::None,
        "add" => Reduction::Add,
        "mul" => Reduction::Mul,
        "max" => Reduction::Max,
        "min" => Reduction::Min,
        other => bail!("attribute `reduction` is \"{other}\", expected none, add, mul, max or min"),
    })
}

fn infer_types(cx: &mut InferCx) -> Result<()> {
    reduction(cx.op)?;
    check_indices(cx.dtype(1)?)?;
    ensure!(cx.dtype(0)? == cx.dtype(2)?, "data is {}, updates are {}", cx.dtype(0)?, cx.dtype(2)?);
    super::same_as_first(cx)
}

fn infer_elements(cx: &mut InferCx) -> Result<()> {
    if let Some(data) = cx.shape(0) {
        normal_axis(cx.op.attrs.int("axis", 0)?, data.len())?;
    }
    infer_types(cx)
}

fn infer_nd(cx: &mut InferCx) -> Result<()> {
    if let (Some(data), Some(indices), Some(updates)) = (cx.shape(0), cx.shape(1), cx.shape(2)) {
        if let Some(wanted) = nd_dims(data, indices, 0)? {
            ensure!(wanted.len() == updates.len(), "updates have rank {}, expected {}", updates.len(), wanted.len());
        }
    }
    infer_types(cx)
}

/// Where each element of the updates goes.
fn places(op: &Operator, data: &[usize], indices: &Tensor, updates: &[usize]) -> Result<Vec<usize>> {
    let (places, shape) = if op.name == "ScatterND" {
        nd_places(data, indices, 0)?
    } else {
        let axis = normal_axis(op.attrs.int("axis", 0)?, data.len())?;
        (element_places(data, indices, axis)?, indices.shape().to_vec())
    };
    ensure!(shape == updates, "updates have shape {updates:?}, expected {shape:?}");
    Ok(places)
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, indices, updates) = (index::input(inputs, 0)?, index::input(inputs, 1)?, index::input(inputs, 2)?);
    let places = places(cx.op, x.shape(), indices, updates.shape())?;
    let unsupported = || Error::msg(format!("no reductions of {}", x.dtype()));
    ensure!(x.dtype() == updates.dtype(), "data is {}, updates are {}", x.dtype(), updates.dtype());
    Ok(vec![match reduction(cx.op)? {
        Reduction::None => replace(x, updates, &places)?,
        how => {
            dispatch!(x.dtype(), number T => combine::<T>(x, updates, &places, how)?, else return Err(unsupported()))
        }
    }])
}

fn replace(x: &Tensor, updates: &Tensor, places: &[usize]) -> Result<Tensor> {
    let mut sources: Vec<usize> = (0..x.len()).collect();
    for (i, &place) in places.iter().enumerate() {
        sources[place] = x.len() + i;
    }
    index::pick(&[x, updates], x.shape().to_vec(), &sources)
}

fn combine<T: Arithmetic>(x: &Tensor, updates: &Tensor, places: &[usize], how: Reduction) -> Result<Tensor> {
    let mut out = x.to_vec::<T>()?;
    for (&u, &place) in updates.as_slice::<T>()?.iter().zip(places) {
        let old = out[place];
        out[place] = match how {
            Reduction::None => u,
            Reduction::Add => old.plus(u),
            Reduction::Mul => old.times(u),
            Reduction::Max => {
                if u > old {
                    u
                } else {
                    old
                }
            }
            Reduction::Min => {
                if u < old {
                    u
                } else {
                    old
                }
            }
        };
    }
    Ok(Tensor::from_vec(x.shape(), out))
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let dy = cx.dy()?;
    let same = Places::of(cx)?;
    let (dx, du) = match reduction(&cx.op())? {
        Reduction::None => {
            let updates = cx.input(2)?;
            let dtype = cx.emit.dtype(dy)?;
            let zeros = cx.emit.zeros_like(updates, dtype)?;
            (same.scatter(cx, dy, zeros, "none")?, same.gather(cx, dy)?)
        }
        Reduction::Add => (dy, same.gather(cx, dy)?),
        Reduction::Mul => grad_product(cx, &same, dy)?,
        Reduction::Max | Reduction::Min => grad_extremum(cx, &same, dy)?,
    };
    Ok(vec![Some(dx), None, Some(du)])
}

/// Reads and writes at the places that a scatter node names.
struct Places {
    op: Operator,
    indices: Value,
}

impl Places {
    fn of(cx: &GradCx) -> Result<Places> {
        Ok(Places { op: cx.op(), indices: cx.input(1)? })
    }
    fn axis(&self) -> Result<Attributes> {
        if self.op.name == "ScatterND" {
            return Ok(Attributes::new());
        }
        Ok(Attributes::new().with("axis", self.op.attrs.int("axis", 0)?))
    }
    fn gather(&self, cx: &mut GradCx, from: Value) -> Result<Value> {
        let name = if self.op.name == "ScatterND" { "GatherND" } else { "GatherElements" };
        let out = cx.emit.op(name, &[from, self.indices], self.axis()?)?;
        let updates = cx.input(2)?;
        cx.emit.type_like(out, updates);
        Ok(out)
    }
    fn scatter(&self, cx: &mut GradCx, into: Value, updates: Value, reduction: &str) -> Result<Value> {
        let attrs = self.axis()?.with("reduction", reduction);
        let name = if self.op.name == "ScatterND" { "ScatterND" } else { "ScatterElements" };
        cx.emit.op(name, &[into, self.indices, updates], attrs)
    }
}

/// y = x · Πu. Zeros among the updates are set aside: with one at a place its gradient is the product of the others,
/// with more than one all are zero.
fn grad_product(cx: &mut GradCx, same: &Places, dy: Value) -> Result<(Value, Value)> {
    let (x, u) = (cx.input(0)?, cx.input(2)?);
    let ones = cx.emit.full_like(x, 1.0)?;
    let product = same.scatter(cx, ones, u, "mul")?;
    let dx = cx.emit.mul(dy, product)?;

    let zero = cx.emit.scalar(0.0, u)?;
    let is_zero = cx.emit.op("Equal", &[u, zero], Attributes::new())?;
    let one = cx.emit.scalar(1.0, u)?;
    let nonzero = cx.emit.select(is_zero, one, u)?;
    let nonzero_product = same.scatter(cx, x, nonzero, "mul")?;
    let flag = cx.emit.cast(is_zero, cx.emit.dtype(u)?)?;
    let none = cx.emit.full_like(x, 0.0)?;
    let zeros = same.scatter(cx, none, flag, "add")?;
    let zeros = same.gather(cx, zeros)?;
    let others = cx.emit.sub(zeros, flag)?;
    let no_other = cx.emit.op("Equal", &[others, zero], Attributes::new())?;
    let scaled = cx.emit.mul(dy, nonzero_product)?;
    let scaled = same.gather(cx, scaled)?;
    let share = cx.emit.div(scaled, nonzero)?;
    Ok((dx, cx.emit.select(no_other, share, zero)?))
}

/// y = max or min of x and the updates.
fn grad_extremum(cx: &mut GradCx, same: &Places, dy: Value) -> Result<(Value, Value)> {
    let (x, u, y) = (cx.input(0)?, cx.input(2)?, cx.output(0));
    let dtype = cx.emit.dtype(x)?;
    let at = same.gather(cx, y)?;
    let hit_x = cx.emit.op("Equal", &[x, y], Attributes::new())?;
    let hit_u = cx.emit.op("Equal", &[u, at], Attributes::new())?;
    let (hit_x, hit_u) = (cx.emit.cast(hit_x, dtype)?, cx.emit.cast(hit_u, dtype)?);
    let count = same.scatter(cx, hit_x, hit_u, "add")?;
    let share = cx.emit.div(dy, count)?;
    let dx = cx.emit.mul(share, hit_x)?;
    let share = same.gather(cx, share)?;
    Ok((dx, cx.emit.mul(share, hit_u)?))
}

/// A reduction, and whether indices may repeat under it.
fn reduction_case(draw: &mut Draw) -> (&'static str, bool) {
    *draw.pick(&[("none", false), ("add", true), ("mul", true), ("max", true), ("min", true)])
}

fn sample_elements(draw: &mut Draw) -> Sample {
    let (reduction, repeats) = reduction_case(draw);
    let axis = draw.int(-2, 1);
    let indices = match (repeats, axis.rem_euclid(2)) {
        (true, 0) => draw.ints(&[4, 2], -3, 2),
        (true, _) => draw.ints(&[2, 5], -4, 3),
        (false, 0) => Tensor::from_vec([2, 2], vec![0i64, 2, -1, 1]),
        (false, _) => Tensor::from_vec([2, 2], vec![0i64, -1, 2, 1]),
    };
    let updates = draw.tensor(indices.shape(), -1.0, 1.0);
    let attrs = Attributes::new().with("axis", axis).with("reduction", reduction);
    Sample::new(Operator::onnx("ScatterElements", attrs), vec![draw.tensor(&[3, 4], -1.0, 1.0), indices, updates])
}

fn sample_nd(draw: &mut Draw) -> Sample {
    let (reduction, repeats) = reduction_case(draw);
    let indices = match (repeats, draw.chance(0.5)) {
        (true, true) => draw.ints(&[4, 1], -3, 2),
        (true, false) => draw.ints(&[5, 2], -3, 2),
        (false, true) => Tensor::from_vec([2, 1], vec![2i64, 0]),
        (false, false) => Tensor::from_vec([2, 2], vec![2i64, 0, -2, 1]),
    };
    let updates = if indices.shape()[1] == 1 { vec![indices.shape()[0], 4] } else { vec![indices.shape()[0]] };
    let updates = draw.tensor(&updates, -1.0, 1.0);
    let attrs = Attributes::new().with("reduction", reduction);
    Sample::new(Operator::onnx("ScatterND", attrs), vec![draw.tensor(&[3, 4], -1.0, 1.0), indices, updates])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_update_stays_and_reductions_combine() {
        let (x, u) = (Tensor::from_vec([3], vec![1i32, 2, 3]), Tensor::from_vec([2], vec![10i32, -20]));
        assert_eq!(replace(&x, &u, &[1, 1]).unwrap().to_vec::<i32>().unwrap(), [1, -20, 3]);
        let of = |how| combine::<i32>(&x, &u, &[1, 1], how).unwrap().to_vec::<i32>().unwrap()[1];
        assert_eq!(
            [of(Reduction::Add), of(Reduction::Mul), of(Reduction::Max), of(Reduction::Min)],
            [-8, -400, 10, -20]
        );
    }
}
