//! Arithmetic on two broadcast inputs: Add, Sub, Mul, Div, Pow, Mod, and PRelu. One row each.
//! Spec: <https://onnx.ai/onnx/operators/>. Integers wrap; integer division rounds toward zero.
//!
//! Add, Sub, Mul, Div and Mod of integers are followed through shape arithmetic.

use super::elementwise::{
    BINARY, align_at, align_broadcast, both, broadcast_shape, drop_consumed_inputs, follow, infer_same_type, present,
    sample_binary, zip, zip_number,
};
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, broadcast};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::types::Type;
use crate::{Attributes, DType, Dim, Tensor, bail, dispatch, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Add",
        infer: |cx| infer_following(cx, Dim::add),
        eval: Some(|_, inputs| zip(inputs, |x, y| x + y, i128::wrapping_add)),
        grad: Gradient::Emit(|cx| both(cx, |_, dy| Ok(dy), |_, dy| Ok(dy))),
        sample: Some(|d| sample_binary(d, plain("Add"), -2.0, 2.0)),
        ..BINARY
    },
    OpDef {
        name: "Sub",
        infer: |cx| infer_following(cx, Dim::sub),
        eval: Some(|_, inputs| zip(inputs, |x, y| x - y, i128::wrapping_sub)),
        grad: Gradient::Emit(|cx| both(cx, |_, dy| Ok(dy), |e, dy| e.neg(dy))),
        sample: Some(|d| sample_binary(d, plain("Sub"), -2.0, 2.0)),
        ..BINARY
    },
    OpDef {
        name: "Mul",
        infer: |cx| infer_following(cx, Dim::mul),
        eval: Some(|_, inputs| zip(inputs, |x, y| x * y, i128::wrapping_mul)),
        grad: Gradient::Emit(|cx| {
            let (a, b) = (cx.input(0)?, cx.input(1)?);
            both(cx, |e, dy| e.mul(dy, b), |e, dy| e.mul(dy, a))
        }),
        sample: Some(|d| sample_binary(d, plain("Mul"), -2.0, 2.0)),
        ..BINARY
    },
    OpDef {
        name: "Div",
        infer: |cx| infer_following(cx, quotient_dim),
        eval: Some(divide),
        grad: Gradient::Emit(|cx| {
            let (b, y) = (cx.input(1)?, cx.output(0));
            both(
                cx,
                |e, dy| e.div(dy, b),
                |e, dy| {
                    let product = e.mul(dy, y)?;
                    let quotient = e.div(product, b)?;
                    e.neg(quotient)
                },
            )
        }),
        sample: Some(|d| sample_binary(d, plain("Div"), 0.5, 2.0)),
        ..BINARY
    },
    OpDef {
        name: "Mod",
        infer: infer_mod,
        eval: Some(modulo),
        grad: Gradient::Emit(mod_grad),
        sample: Some(|d| sample_binary(d, Operator::onnx("Mod", Attributes::new().with("fmod", 1i64)), 0.5, 4.0)),
        ..BINARY
    },
    OpDef {
        name: "Pow",
        infer: infer_pow,
        eval: Some(power),
        grad: Gradient::Emit(pow_grad),
        sample: Some(pow_sample),
        ..BINARY
    },
    OpDef {
        name: "PRelu",
        infer: infer_same_type,
        eval: Some(|_, inputs| {
            zip(inputs, |x, s| if x < 0.0 { s * x } else { x }, |x, s| if x < 0 { s * x } else { x })
        }),
        grad: Gradient::Emit(prelu_grad),
        upgrades: &[(6, drop_consumed_inputs), (7, align_slope)],
        sample: Some(prelu_sample),
        ..BINARY
    },
];

fn plain(name: &str) -> Operator {
    Operator::onnx(name, Attributes::new())
}

// ---- types and shape arithmetic -------------------------------------------------------------------------------------

fn infer_following(cx: &mut InferCx, rule: impl Fn(&Dim, &Dim) -> Dim) -> Result<()> {
    infer_same_type(cx)?;
    let dtype = cx.dtype(0)?;
    ensure!(dtype.is_float() || dtype.is_int(), "its operands are {dtype}, expected numbers");
    follow(cx, dtype, |row| rule(row[0], row[1]));
    Ok(())
}

/// Rounded toward zero as integer division is, which for dimensions is rounding down.
fn quotient_dim(a: &Dim, b: &Dim) -> Dim {
    match (a, b) {
        (Dim::Known(a), Dim::Known(b)) => a.checked_div(*b).map_or(Dim::Unknown, Dim::Known),
        _ => a.div_floor(b),
    }
}

fn infer_mod(cx: &mut InferCx) -> Result<()> {
    if cx.op.attrs.flag("fmod", false)? {
        return infer_following(cx, |a, b| match (a, b) {
            (Dim::Known(a), Dim::Known(b)) => a.checked_rem(*b).map_or(Dim::Unknown, Dim::Known),
            _ => Dim::Unknown,
        });
    }
    infer_following(cx, |a, b| match (a, b) {
        (Dim::Known(a), Dim::Known(b)) if *b != 0 => Dim::Known(floored(i128::from(*a), i128::from(*b)) as i64),
        _ => a.sub(&b.mul(&a.div_floor(b))),
    })
}

/// The exponent may have another type; the result has the type of the base.
fn infer_pow(cx: &mut InferCx) -> Result<()> {
    let (base, exponent) = (cx.dtype(0)?, cx.dtype(1)?);
    for dtype in [base, exponent] {
        ensure!(dtype.is_float() || dtype.is_int(), "its operands are {base} and {exponent}, expected numbers");
    }
    let shape = broadcast_shape(cx)?;
    cx.set_tensor(0, base, shape);
    Ok(())
}

// ---- evaluation -----------------------------------------------------------------------------------------------------

/// Integers have no value for a quotient by zero.
fn no_zero(divisor: &Tensor) -> Result<()> {
    if divisor.dtype().is_int() {
        let zero = dispatch!(divisor.dtype(), int T => divisor.as_slice::<T>()?.contains(&0), else false);
        ensure!(!zero, "an integer is divided by zero");
    }
    Ok(())
}

fn divide(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [_, b] = present(inputs)?;
    no_zero(b)?;
    zip(inputs, |x, y| x / y, |x, y| x / y)
}

/// The remainder with the sign of the divisor.
fn floored(x: i128, y: i128) -> i128 {
    let rest = x % y;
    if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest }
}

/// The same for floats; a zero takes the sign of the divisor.
fn floored_float(x: f64, y: f64) -> f64 {
    let rest = x % y;
    if rest == 0.0 {
        return 0f64.copysign(y);
    }
    if (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
}

fn modulo(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [_, b] = present(inputs)?;
    no_zero(b)?;
    match cx.op.attrs.flag("fmod", false)? {
        true => zip(inputs, |x, y| x % y, |x, y| x % y),
        false => zip(inputs, floored_float, floored),
    }
}

/// Integers to a non-negative integer power wrap; all other powers are computed in `f64`.
fn power(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [base, exponent] = present(inputs)?;
    let (from, by) = (base.dtype(), exponent.dtype());
    if from.is_int()
        && from.bits() >= 32
        && by.is_int()
        && exponent.to_i64s()?.iter().all(|&n| (0..=i64::from(u32::MAX)).contains(&n))
    {
        let exponent = exponent.cast(DType::I64)?.cast(from)?;
        let out = zip_number(base, &exponent, f64::powf, |x, n| x.wrapping_pow(n as u32))?;
        return Ok(vec![out]);
    }
    let out = broadcast::binary::<f64, f64>(&base.cast(DType::F64)?, &exponent.cast(DType::F64)?, f64::powf)?;
    Ok(vec![out.cast(from)?])
}

// ---- gradients ------------------------------------------------------------------------------------------------------

/// Almost everywhere `dA = dY` and `dB = -dY · (A - Y) / B`: the rounded quotient is locally constant.
fn mod_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (a, b, y) = (cx.input(0)?, cx.input(1)?, cx.output(0));
    both(
        cx,
        |_, dy| Ok(dy),
        |e, dy| {
            let rest = e.sub(y, a)?;
            let quotient = e.div(rest, b)?;
            e.mul(dy, quotient)
        },
    )
}

/// `dA = dY · B · A^(B-1)`, and `dB = dY · Y · ln A`, taken as 0 where `A ≤ 0`. Constant exponents 1, 2 and 3 need no power.
fn pow_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (a, b, y) = (cx.input(0)?, cx.input(1)?, cx.output(0));
    let exponent = cx.emit.graph.constant(b).filter(|t| t.len() == 1).and_then(|t| t.to_f64s().ok()?.first().copied());
    let (dtype_a, dtype_b) = (cx.emit.dtype(a)?, cx.emit.dtype(b)?);
    both(
        cx,
        |e, dy| match exponent {
            Some(1.0) => Ok(dy),
            Some(2.0) => {
                let slope = e.mul_scalar(a, 2.0)?;
                e.mul(dy, slope)
            }
            Some(3.0) => {
                let square = e.square(a)?;
                let slope = e.mul_scalar(square, 3.0)?;
                e.mul(dy, slope)
            }
            _ => {
                let b = e.cast(b, dtype_a)?;
                let less = e.add_scalar(b, -1.0)?;
                let root = e.op("Pow", &[a, less], Attributes::new())?;
                let slope = e.mul(b, root)?;
                e.mul(dy, slope)
            }
        },
        |e, dy| {
            let positive = e.compare_scalar("Greater", a, 0.0)?;
            let safe = e.select_or(positive, a, 1.0)?;
            let log = e.unary("Log", safe)?;
            let slope = e.mul(y, log)?;
            let db = e.mul(dy, slope)?;
            e.cast(db, dtype_b)
        },
    )
}

fn prelu_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, slope) = (cx.input(0)?, cx.input(1)?);
    both(
        cx,
        |e, dy| {
            let negative = e.compare_scalar("Less", x, 0.0)?;
            let below = e.mul(dy, slope)?;
            e.select(negative, below, dy)
        },
        |e, dy| {
            let negative = e.compare_scalar("Less", x, 0.0)?;
            let below = e.mul(dy, x)?;
            e.select_or(negative, below, 0.0)
        },
    )
}

// ---- older opsets and samples ---------------------------------------------------------------------------------------

/// Before opset 7 a slope with more than one element had one per channel, axis 1.
fn align_slope(graph: &mut Graph, id: NodeId) -> Result<()> {
    align_broadcast(graph, id)?;
    let ranks = |slot| graph.input(id, slot).and_then(|v| graph.ty(v)).and_then(Type::rank);
    match (ranks(0), ranks(1)) {
        (Some(x), Some(1)) if x >= 2 => {
            let slope = graph.input(id, 1).and_then(|v| graph.ty(v)).and_then(Type::static_shape);
            if slope.is_some_and(|s| s == [1]) { Ok(()) } else { align_at(graph, id, 1) }
        }
        (Some(_), Some(_)) => Ok(()),
        _ => bail!("it has a slope per channel, but the ranks of its inputs are unknown"),
    }
}

fn pow_sample(draw: &mut Draw) -> Sample {
    if draw.chance(0.4) {
        let exponent = *draw.pick(&[1i64, 2, 3, 4, -1]);
        let base = draw.tensor(&[2, 3], 0.5, 2.0);
        return Sample::new(plain("Pow"), vec![base, Tensor::scalar(exponent)]);
    }
    sample_binary(draw, plain("Pow"), 0.5, 2.0)
}

/// The slope stretches to the data, never the other way round.
fn prelu_sample(draw: &mut Draw) -> Sample {
    let shapes: [(&[usize], &[usize]); 3] = [(&[2, 3], &[2, 3]), (&[2, 3, 2], &[3, 1]), (&[4], &[1])];
    let (x, slope) = *draw.pick(&shapes);
    Sample::new(plain("PRelu"), vec![draw.tensor(x, -2.0, 2.0), draw.tensor(slope, 0.1, 0.5)])
}
