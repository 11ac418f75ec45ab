//! Elementwise functions of one input: `Y = f(X)`, one row each. Spec: <https://onnx.ai/onnx/operators/>.
//!
//! A row gives the function and the gradient as an emitted formula, in terms of the input `x`, the output `y` and
//! the output's gradient `dy`.

use super::elementwise::{UNARY, derivative, map_float, map_number, present, sample_unary, through};
use super::{Emit, EvalFn, GradFn, Gradient, OpDef, Sample};
use crate::Tensor;
use crate::error::Result;
use crate::graph::Value;
use crate::rng::Draw;
use std::f64::consts::PI;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    smooth(
        "Exp",
        |_, x| map_float(x, f64::exp),
        |cx| derivative(cx, |_, _, y| Ok(y)),
        |d| sample_unary(d, "Exp", -2.0, 2.0),
    ),
    smooth(
        "Log",
        |_, x| map_float(x, f64::ln),
        |cx| through(cx, |e, x, _, dy| e.div(dy, x)),
        |d| sample_unary(d, "Log", 0.5, 3.0),
    ),
    smooth(
        "Sqrt",
        |_, x| map_float(x, f64::sqrt),
        |cx| {
            through(cx, |e, _, y, dy| {
                let half = e.mul_scalar(dy, 0.5)?;
                e.div(half, y)
            })
        },
        |d| sample_unary(d, "Sqrt", 0.5, 3.0),
    ),
    smooth(
        "Reciprocal",
        |_, x| map_float(x, f64::recip),
        |cx| {
            derivative(cx, |e, _, y| {
                let square = e.square(y)?;
                e.neg(square)
            })
        },
        |d| sample_unary(d, "Reciprocal", 0.5, 3.0),
    ),
    smooth(
        "Sin",
        |_, x| map_float(x, f64::sin),
        |cx| derivative(cx, |e, x, _| e.unary("Cos", x)),
        |d| sample_unary(d, "Sin", -3.0, 3.0),
    ),
    smooth(
        "Cos",
        |_, x| map_float(x, f64::cos),
        |cx| {
            derivative(cx, |e, x, _| {
                let sin = e.unary("Sin", x)?;
                e.neg(sin)
            })
        },
        |d| sample_unary(d, "Cos", -3.0, 3.0),
    ),
    smooth(
        "Tan",
        |_, x| map_float(x, f64::tan),
        |cx| {
            derivative(cx, |e, _, y| {
                let square = e.square(y)?;
                e.add_scalar(square, 1.0)
            })
        },
        |d| sample_unary(d, "Tan", -1.0, 1.0),
    ),
    smooth(
        "Asin",
        |_, x| map_float(x, f64::asin),
        |cx| through(cx, |e, x, _, dy| over_root(e, dy, x, -1.0, 1.0)),
        |d| sample_unary(d, "Asin", -0.8, 0.8),
    ),
    smooth(
        "Acos",
        |_, x| map_float(x, f64::acos),
        |cx| {
            through(cx, |e, x, _, dy| {
                let slope = over_root(e, dy, x, -1.0, 1.0)?;
                e.neg(slope)
            })
        },
        |d| sample_unary(d, "Acos", -0.8, 0.8),
    ),
    smooth(
        "Atan",
        |_, x| map_float(x, f64::atan),
        |cx| {
            through(cx, |e, x, _, dy| {
                let square = e.square(x)?;
                let below = e.add_scalar(square, 1.0)?;
                e.div(dy, below)
            })
        },
        |d| sample_unary(d, "Atan", -3.0, 3.0),
    ),
    smooth(
        "Sinh",
        |_, x| map_float(x, f64::sinh),
        |cx| derivative(cx, |e, x, _| e.unary("Cosh", x)),
        |d| sample_unary(d, "Sinh", -2.0, 2.0),
    ),
    smooth(
        "Cosh",
        |_, x| map_float(x, f64::cosh),
        |cx| derivative(cx, |e, x, _| e.unary("Sinh", x)),
        |d| sample_unary(d, "Cosh", -2.0, 2.0),
    ),
    smooth(
        "Tanh",
        |_, x| map_float(x, f64::tanh),
        |cx| {
            derivative(cx, |e, _, y| {
                let square = e.square(y)?;
                e.scalar_minus(1.0, square)
            })
        },
        |d| sample_unary(d, "Tanh", -2.0, 2.0),
    ),
    smooth(
        "Asinh",
        |_, x| map_float(x, f64::asinh),
        |cx| through(cx, |e, x, _, dy| over_root(e, dy, x, 1.0, 1.0)),
        |d| sample_unary(d, "Asinh", -2.0, 2.0),
    ),
    smooth(
        "Acosh",
        |_, x| map_float(x, f64::acosh),
        |cx| through(cx, |e, x, _, dy| over_root(e, dy, x, 1.0, -1.0)),
        |d| sample_unary(d, "Acosh", 1.5, 4.0),
    ),
    smooth(
        "Atanh",
        |_, x| map_float(x, f64::atanh),
        |cx| {
            through(cx, |e, x, _, dy| {
                let square = e.square(x)?;
                let below = e.scalar_minus(1.0, square)?;
                e.div(dy, below)
            })
        },
        |d| sample_unary(d, "Atanh", -0.8, 0.8),
    ),
    smooth(
        "Erf",
        |_, x| map_float(x, erf),
        |cx| {
            derivative(cx, |e, x, _| {
                let square = e.square(x)?;
                let exponent = e.neg(square)?;
                let bell = e.unary("Exp", exponent)?;
                e.mul_scalar(bell, 2.0 / PI.sqrt())
            })
        },
        |d| sample_unary(d, "Erf", -2.0, 2.0),
    ),
    smooth(
        "Abs",
        |_, x| Ok(vec![map_number(one(x)?, f64::abs, i128::abs)?]),
        |cx| derivative(cx, |e, x, _| e.unary("Sign", x)),
        |d| sample_unary(d, "Abs", -2.0, 2.0),
    ),
    smooth(
        "Neg",
        |_, x| Ok(vec![map_number(one(x)?, |x| -x, |x| -x)?]),
        |cx| through(cx, |e, _, _, dy| e.neg(dy)),
        |d| sample_unary(d, "Neg", -2.0, 2.0),
    ),
    step("Sign", |_, x| Ok(vec![map_number(one(x)?, sign, i128::signum)?]), |d| sample_unary(d, "Sign", -2.0, 2.0)),
    step("Floor", |_, x| map_float(x, f64::floor), |d| sample_unary(d, "Floor", -3.0, 3.0)),
    step("Ceil", |_, x| map_float(x, f64::ceil), |d| sample_unary(d, "Ceil", -3.0, 3.0)),
    step("Round", |_, x| map_float(x, f64::round_ties_even), |d| sample_unary(d, "Round", -3.0, 3.0)),
];

type SampleFn = fn(&mut Draw) -> Sample;

/// The row of a differentiable function of floats.
const fn smooth(name: &'static str, eval: EvalFn, grad: GradFn, sample: SampleFn) -> OpDef {
    OpDef { name, eval: Some(eval), grad: Gradient::Emit(grad), sample: Some(sample), ..UNARY }
}

/// The row of a function that is constant almost everywhere.
const fn step(name: &'static str, eval: EvalFn, sample: SampleFn) -> OpDef {
    OpDef { name, eval: Some(eval), grad: Gradient::Zero, sample: Some(sample), ..UNARY }
}

fn one<'t>(inputs: &[Option<&'t Tensor>]) -> Result<&'t Tensor> {
    Ok(present::<1>(inputs)?[0])
}

/// `dy / √(scale·x² + shift)`
fn over_root(e: &mut Emit, dy: Value, x: Value, scale: f64, shift: f64) -> Result<Value> {
    let square = e.square(x)?;
    let scaled = if scale == 1.0 { square } else { e.mul_scalar(square, scale)? };
    let inside = e.add_scalar(scaled, shift)?;
    let root = e.unary("Sqrt", inside)?;
    e.div(dy, root)
}

/// -1, 0 or 1; NaN for NaN.
fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x
    }
}

/// The error function `2/√π ∫₀ˣ exp(-t²) dt`, to 1e-15. Up to 2 by the series
/// `2/√π exp(-x²) Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!`, whose terms all have one sign; beyond by its complement.
pub(super) fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x.abs() > 2.0 {
        return (1.0 - erfc_beyond_two(x.abs())).copysign(x);
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-17 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}

/// `1 - erf(x)` for x > 2 by the continued fraction `exp(-x²) / √π / (x + ½/(x + 1/(x + 3/2/(x + …))))`.
fn erfc_beyond_two(x: f64) -> f64 {
    let fraction = (1..=120).rev().fold(x, |rest, k| x + f64::from(k) / 2.0 / rest);
    (-x * x).exp() / (PI.sqrt() * fraction)
}

#[cfg(test)]
mod tests {
    use super::erf;

    /// Values of `math.erf` in Python (glibc).
    #[test]
    fn erf_is_accurate() {
        let table = [
            (0.0, 0.0),
            (1e-3, 0.0011283787909692365),
            (0.5, 0.5204998778130465),
            (1.0, 0.8427007929497149),
            (-2.0, -0.9953222650189527),
            (3.5, 0.9999992569016276),
            (7.0, 1.0),
        ];
        for (x, expected) in table {
            assert!((erf(x) - expected).abs() <= 4e-16, "erf({x}) = {}, expected {expected}", erf(x));
        }
    }
}
