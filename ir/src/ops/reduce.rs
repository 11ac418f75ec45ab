//! The reductions: `Y = finish(fold(prepare(x)))` over some axes.
//!
//! | operator | value over the reduced elements | gradient (dy with its axes restored) |
//! |---|---|---|
//! | `ReduceSum` | Σx | dy |
//! | `ReduceMean` | Σx / n | dy / n |
//! | `ReduceMax`, `ReduceMin` | the largest, the smallest | dy shared equally among the elements equal to y |
//! | `ReduceProd` | Πx | dy · the product of the other elements |
//! | `ReduceL1` | Σ\|x\| | dy · sign(x) |
//! | `ReduceL2` | √Σx² | dy · x / y, 0 where y is 0 |
//! | `ReduceLogSum` | ln Σx | dy / Σx |
//! | `ReduceLogSumExp` | ln Σeˣ | dy · e^(x − y) |
//! | `ReduceSumSquare` | Σx² | 2 · dy · x |
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ReduceSum.html> and siblings. Inputs: data, and optionally `axes`
//! (`int64` of rank 1). Without axes all are reduced, or none (only prepare and finish act) if `noop_with_empty_axes`.
//! Shape: reduced axes become 1, or disappear without `keepdims`. Before opset 13 (`ReduceSum`) or 18, `axes` was an
//! attribute.

use super::real::{kept, kept_dims, optional, reals, required, rounded};
use super::{CostCx, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, UpgradeFn, broadcast, normal_axis, upgrade};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

/// What is computed over the reduced elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    L1,
    L2,
    LogSum,
    LogSumExp,
    SumSquare,
}

macro_rules! row {
    ($name:literal, $kind:ident, $upgrades:expr) => {
        OpDef {
            name: $name,
            inputs: (1, 2),
            infer,
            eval: Some(|cx, inputs| eval(cx, inputs, Kind::$kind)),
            grad: Gradient::Emit(|cx| grad(cx, Kind::$kind)),
            flops: |cx: &CostCx| cx.input_len(0),
            upgrades: $upgrades,
            sample: Some(|draw| sample(draw, $name, Kind::$kind)),
            ..OpDef::DEFAULT
        }
    };
}

const AXES_AT_13: &[(i64, UpgradeFn)] = &[(13, axes_to_input)];
const AXES_AT_18: &[(i64, UpgradeFn)] = &[(18, axes_to_input)];

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    row!("ReduceSum", Sum, AXES_AT_13),
    row!("ReduceMean", Mean, AXES_AT_18),
    row!("ReduceMax", Max, AXES_AT_18),
    row!("ReduceMin", Min, AXES_AT_18),
    row!("ReduceProd", Prod, AXES_AT_18),
    row!("ReduceL1", L1, AXES_AT_18),
    row!("ReduceL2", L2, AXES_AT_18),
    row!("ReduceLogSum", LogSum, AXES_AT_18),
    row!("ReduceLogSumExp", LogSumExp, AXES_AT_18),
    row!("ReduceSumSquare", SumSquare, AXES_AT_18),
];

/// The axes that are reduced, ascending, given the axes input's value if there is one.
pub fn reduced_axes(attrs: &Attributes, axes: Option<&[i64]>, rank: usize) -> Result<Vec<usize>> {
    let axes = axes.unwrap_or(&[]);
    if axes.is_empty() {
        return Ok(if attrs.flag("noop_with_empty_axes", false)? { Vec::new() } else { (0..rank).collect() });
    }
    let mut axes = axes.iter().map(|&a| normal_axis(a, rank)).collect::<Result<Vec<usize>>>()?;
    axes.sort_unstable();
    let before = axes.len();
    axes.dedup();
    ensure!(axes.len() == before, "an axis is reduced twice");
    Ok(axes)
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let keepdims = cx.op.attrs.flag("keepdims", true)?;
    let known = match cx.fact(1) {
        Some(fact) => fact.ints(),
        None => Some(Vec::new()),
    };
    let shape = match (cx.shape(0), known) {
        (Some(shape), Some(axes)) => {
            let axes = reduced_axes(&cx.op.attrs, Some(&axes), shape.len())?;
            let kept = kept_dims(shape, &axes);
            Some(if keepdims { kept } else { without(&kept, &axes) })
        }
        (Some(shape), None) if keepdims => Some(vec![Dim::Unknown; shape.len()]),
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

/// A list without the entries at these places.
fn without<T: Clone>(list: &[T], places: &[usize]) -> Vec<T> {
    list.iter().enumerate().filter(|(i, _)| !places.contains(i)).map(|(_, d)| d.clone()).collect()
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>], kind: Kind) -> Result<Vec<Tensor>> {
    let x = required(inputs, 0)?;
    let axes = optional(inputs, 1).map(Tensor::to_i64s).transpose()?;
    let axes = reduced_axes(&cx.op.attrs, axes.as_deref(), x.rank())?;
    let out = reduce(x, &axes, kind)?;
    Ok(vec![if cx.op.attrs.flag("keepdims", true)? { out } else { out.reshaped(without(out.shape(), &axes))? }])
}

/// A tensor reduced over axes, which stay with length 1. Integers are folded exactly (modulo their width).
pub fn reduce(x: &Tensor, axes: &[usize], kind: Kind) -> Result<Tensor> {
    let dtype = x.dtype();
    let exact = !matches!(kind, Kind::L2 | Kind::LogSum | Kind::LogSumExp);
    match dtype {
        DType::Bool => reduce(&x.cast(DType::U8)?, axes, kind)?.cast(dtype),
        dtype if dtype.is_int() && exact => reduce_ints(x, axes, kind),
        dtype if dtype.is_int() => reduce(&x.cast(DType::F64)?, axes, kind)?.cast(dtype),
        dtype => {
            let shape = kept(x.shape(), axes);
            let values = reduce_reals(&reals(x)?, x.shape(), axes, kind);
            rounded(dtype, shape, values)
        }
    }
}

/// Where each input element goes in the output, in order.
fn targets(shape: &[usize], axes: &[usize], mut visit: impl FnMut(usize)) {
    let out = kept(shape, axes);
    broadcast::for_each_offset(shape, [&broadcast::broadcast_strides(&out, shape)], |[o]| visit(o));
}

/// How many elements one output element is made of.
fn fold_count(shape: &[usize], axes: &[usize]) -> usize {
    axes.iter().map(|&a| shape[a]).product()
}

fn reduce_reals(x: &[f64], shape: &[usize], axes: &[usize], kind: Kind) -> Vec<f64> {
    let len = kept(shape, axes).iter().product();
    let fold = |start: f64, step: &dyn Fn(usize, f64, f64) -> f64| {
        let mut out = vec![start; len];
        let mut values = x.iter();
        targets(shape, axes, |o| {
            if let Some(&v) = values.next() {
                out[o] = step(o, out[o], v);
            }
        });
        out
    };
    let sum = |f: fn(f64) -> f64| fold(0.0, &|_, a, v| a + f(v));
    let finish = |out: Vec<f64>, f: &dyn Fn(f64) -> f64| out.into_iter().map(f).collect();
    match kind {
        Kind::Sum => sum(|v| v),
        Kind::Mean => finish(sum(|v| v), &|s| s / fold_count(shape, axes) as f64),
        Kind::Max => fold(f64::NEG_INFINITY, &|_, a, v| if v > a || v.is_nan() { v } else { a }),
        Kind::Min => fold(f64::INFINITY, &|_, a, v| if v < a || v.is_nan() { v } else { a }),
        Kind::Prod => fold(1.0, &|_, a, v| a * v),
        Kind::L1 => sum(f64::abs),
        Kind::SumSquare => sum(|v| v * v),
        Kind::L2 => finish(sum(|v| v * v), &f64::sqrt),
        Kind::LogSum => finish(sum(|v| v), &f64::ln),
        Kind::LogSumExp => {
            let top = reduce_reals(x, shape, axes, Kind::Max);
            // An infinite maximum is not subtracted: ∞ − ∞ is not a number.
            let shift: Vec<f64> = top.iter().map(|&m| if m.is_finite() { m } else { 0.0 }).collect();
            let sums = fold(0.0, &|o, a, v| a + (v - shift[o]).exp());
            sums.iter().zip(&shift).map(|(s, m)| s.ln() + m).collect()
        }
    }
}

fn reduce_ints(x: &Tensor, axes: &[usize], kind: Kind) -> Result<Tensor> {
    let wide: Vec<i128> = match x.dtype() {
        DType::U64 => x.as_slice::<u64>()?.iter().map(|&v| v.into()).collect(),
        _ => x.to_i64s()?.into_iter().map(i128::from).collect(),
    };
    let start = match kind {
        Kind::Prod => 1,
        // The extremes of nothing are the ends of the type's range.
        Kind::Max => {
            if x.dtype().is_signed_int() {
                -(1 << (x.dtype().bits() - 1))
            } else {
                0
            }
        }
        Kind::Min => (1 << (x.dtype().bits() - usize::from(x.dtype().is_signed_int()))) - 1,
        _ => 0,
    };
    let shape = kept(x.shape(), axes);
    let mut out = vec![start; shape.iter().product()];
    let mut values = wide.iter();
    targets(x.shape(), axes, |o| {
        let (a, v) = (out[o], values.next().copied().unwrap_or(0));
        out[o] = match kind {
            Kind::Max => a.max(v),
            Kind::Min => a.min(v),
            Kind::Prod => a.wrapping_mul(v),
            Kind::L1 => a.wrapping_add(v.wrapping_abs()),
            Kind::SumSquare => a.wrapping_add(v.wrapping_mul(v)),
            _ => a.wrapping_add(v),
        };
    });
    let count = fold_count(x.shape(), axes) as i128;
    if kind == Kind::Mean {
        ensure!(count > 0, "the mean of no integers");
        out.iter_mut().for_each(|s| *s /= count);
    }
    match x.dtype() {
        DType::U64 => Ok(Tensor::from_vec(shape, out.into_iter().map(|v| v as u64).collect())),
        dtype => Tensor::from_vec(shape, out.into_iter().map(|v| v as i64).collect()).cast(dtype),
    }
}

fn grad(cx: &mut GradCx, kind: Kind) -> Result<Vec<Option<Value>>> {
    if !cx.want(0) {
        return Ok(vec![None, None]);
    }
    let (x, op) = (cx.input(0)?, cx.op());
    let axes = match cx.optional_input(1) {
        None => None,
        Some(axes) => match cx.emit.graph.constant(axes) {
            Some(axes) => Some(axes.to_i64s()?),
            None => bail!("its axes are not constant, which its gradient needs"),
        },
    };
    let axes = reduced_axes(&op.attrs, axes.as_deref(), cx.emit.rank(x)?)?;
    let keepdims = op.attrs.flag("keepdims", true)? || axes.is_empty();
    let (mut y, mut dy) = (cx.output(0), cx.dy()?);
    if !keepdims {
        dy = cx.emit.unsqueeze(dy, &axes)?;
        if !matches!(kind, Kind::Sum | Kind::Mean | Kind::Prod | Kind::L1 | Kind::SumSquare) {
            y = cx.emit.unsqueeze(y, &axes)?;
        }
    }
    Ok(vec![Some(grad_with_axes(cx, kind, &axes, [x, y, dy])?), None])
}

/// The gradient, with `y` and `dy` in the shape with the reduced axes of length 1.
fn grad_with_axes(cx: &mut GradCx, kind: Kind, axes: &[usize], [x, y, dy]: [Value; 3]) -> Result<Value> {
    let emit = &mut *cx.emit;
    match kind {
        Kind::Sum => emit.expand_like(dy, x),
        Kind::Mean => {
            let shape = emit.shape(x)?;
            let count = Dim::product(axes.iter().map(|&a| &shape[a]));
            let scaled = match count.known() {
                Some(n) => emit.mul_scalar(dy, 1.0 / n as f64)?,
                None => {
                    let (all, left) = (emit.unary("Size", x)?, emit.unary("Size", dy)?);
                    let count = emit.div(all, left)?;
                    let count = emit.cast(count, emit.dtype(x)?)?;
                    emit.div(dy, count)?
                }
            };
            emit.expand_like(scaled, x)
        }
        Kind::Max | Kind::Min => {
            let hit = emit.op("Equal", &[x, y], Attributes::new())?;
            let hit = emit.cast(hit, emit.dtype(x)?)?;
            let ties = emit.reduce_sum(hit, axes, true)?;
            let share = emit.div(dy, ties)?;
            emit.mul(hit, share)
        }
        Kind::Prod => {
            let others = other_products(cx, x, axes)?;
            cx.emit.mul(dy, others)
        }
        Kind::L1 => {
            let sign = emit.unary("Sign", x)?;
            emit.mul(dy, sign)
        }
        Kind::L2 => {
            let zero = emit.scalar(0.0, y)?;
            let flat = emit.op("Equal", &[y, zero], Attributes::new())?;
            let one = emit.scalar(1.0, y)?;
            let norm = emit.select(flat, one, y)?;
            let scaled = emit.div(dy, norm)?;
            emit.mul(x, scaled)
        }
        Kind::LogSum => {
            let sum = emit.unary("Exp", y)?;
            let scaled = emit.div(dy, sum)?;
            emit.expand_like(scaled, x)
        }
        Kind::LogSumExp => {
            let centred = emit.sub(x, y)?;
            let share = emit.unary("Exp", centred)?;
            emit.mul(share, dy)
        }
        Kind::SumSquare => {
            let twice = emit.mul_scalar(x, 2.0)?;
            emit.mul(twice, dy)
        }
    }
}

/// For each element, the product of the others along the axes; also right where elements are 0: with one zero it is
/// the product of the rest at the zero and 0 elsewhere, with several it is 0.
fn other_products(cx: &mut GradCx, x: Value, axes: &[usize]) -> Result<Value> {
    let emit = &mut *cx.emit;
    let (zero, one) = (emit.scalar(0.0, x)?, emit.scalar(1.0, x)?);
    let is_zero = emit.op("Equal", &[x, zero], Attributes::new())?;
    let safe = emit.select(is_zero, one, x)?;
    let rest = emit.reduce("ReduceProd", safe, axes, true)?;
    let ones = emit.cast(is_zero, emit.dtype(x)?)?;
    let zeros = emit.reduce_sum(ones, axes, true)?;
    let (no_zero, one_zero) =
        (emit.op("Equal", &[zeros, zero], Attributes::new())?, emit.op("Equal", &[zeros, one], Attributes::new())?);
    let quotient = emit.div(rest, safe)?;
    let elsewhere = emit.select(no_zero, quotient, zero)?;
    let at_zero = emit.select(one_zero, rest, zero)?;
    emit.select(is_zero, at_zero, elsewhere)
}

/// The attribute `axes` becomes an input.
fn axes_to_input(graph: &mut Graph, id: NodeId) -> Result<()> {
    upgrade::ints_to_input(graph, id, "axes", 1)
}

fn sample(draw: &mut Draw, name: &str, kind: Kind) -> Sample {
    let shape = [2, 3, draw.int(1, 3) as usize];
    let x = match kind {
        Kind::LogSum => draw.tensor(&shape, 0.5, 2.0),
        _ => draw.distinct(&shape, 0.13),
    };
    let choices: [&[i64]; 5] = [&[-1], &[0, 2], &[1], &[0, 1, 2], &[]];
    let axes = *draw.pick(&choices);
    let attrs = Attributes::new().with("keepdims", draw.chance(0.5));
    let attrs = if draw.chance(0.3) && kind != Kind::LogSum { attrs.with("noop_with_empty_axes", 1i64) } else { attrs };
    let inputs = if axes.is_empty() && draw.chance(0.5) { vec![x] } else { vec![x, Tensor::from_i64s(axes)] };
    Sample::new(Operator::onnx(name, attrs), inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_exact() {
        let x = Tensor::from_vec([2], vec![(1i64 << 53) + 1, 2]);
        assert_eq!(reduce(&x, &[0], Kind::Sum).unwrap().to_i64s().unwrap(), [(1 << 53) + 3]);
        let x = Tensor::from_vec([1, 2], vec![u64::MAX, 1]);
        assert_eq!(reduce(&x, &[1], Kind::Max).unwrap().to_vec::<u64>().unwrap(), [u64::MAX]);
    }

    #[test]
    fn large_exponents_do_not_overflow() {
        let x = Tensor::from_vec([2], vec![1000f32, 1000.0]);
        let y = reduce(&x, &[0], Kind::LogSumExp).unwrap().item::<f32>().unwrap();
        assert!((f64::from(y) - (1000.0 + 2f64.ln())).abs() < 1e-3, "{y}");
    }

    #[test]
    fn axes_are_checked() {
        let error = |axes: &[i64]| reduced_axes(&Attributes::new(), Some(axes), 2).unwrap_err().to_string();
        assert_eq!(error(&[2]), "axis 2 is outside [-2, 2)");
        assert_eq!(error(&[1, -1]), "an axis is reduced twice");
    }
}
