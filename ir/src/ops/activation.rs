//! Activation functions: `Y = f(X)`, piecewise or smooth, with their parameters as attributes. One row each.
//! Spec: <https://onnx.ai/onnx/operators/>, e.g. `Elu`: `x < 0 ? α(eˣ - 1) : x`.

use super::elementwise::{
    UNARY, derivative, drop_consumed_inputs, map_float, map_number, present, sample_unary, sample_unary_with, through,
};
use super::unary::erf;
use super::{Emit, EvalCx, EvalFn, GradCx, GradFn, Gradient, OpDef, Sample};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Tensor, bail};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    row("Relu", relu, relu_grad, |d| sample_unary(d, "Relu", -2.0, 2.0)),
    row(
        "LeakyRelu",
        |cx, x| {
            let alpha = float(cx, "alpha", 0.01)?;
            map_float(x, |x| if x < 0.0 { alpha * x } else { x })
        },
        |cx| {
            let alpha = grad_float(cx, "alpha", 0.01)?;
            through(cx, |e, x, _, dy| {
                let below = e.mul_scalar(dy, alpha)?;
                where_negative(e, x, below, dy)
            })
        },
        |d| sample_with(d, "LeakyRelu", &["alpha"]),
    ),
    row(
        "Elu",
        |cx, x| {
            let alpha = float(cx, "alpha", 1.0)?;
            map_float(x, |x| if x < 0.0 { alpha * x.exp_m1() } else { x })
        },
        |cx| {
            let alpha = grad_float(cx, "alpha", 1.0)?;
            through(cx, |e, x, y, dy| {
                // α eˣ = y + α
                let slope = e.add_scalar(y, alpha)?;
                let below = e.mul(dy, slope)?;
                where_negative(e, x, below, dy)
            })
        },
        |d| sample_with(d, "Elu", &["alpha"]),
    ),
    OpDef {
        upgrades: &[(6, selu_defaults)],
        ..row(
            "Selu",
            |cx, x| {
                let (alpha, gamma) = (float(cx, "alpha", SELU_ALPHA)?, float(cx, "gamma", SELU_GAMMA)?);
                map_float(x, |x| gamma * if x <= 0.0 { alpha * x.exp_m1() } else { x })
            },
            |cx| {
                let (alpha, gamma) = (grad_float(cx, "alpha", SELU_ALPHA)?, grad_float(cx, "gamma", SELU_GAMMA)?);
                through(cx, |e, x, y, dy| {
                    let slope = e.add_scalar(y, alpha * gamma)?;
                    let (below, above) = (e.mul(dy, slope)?, e.mul_scalar(dy, gamma)?);
                    where_negative(e, x, below, above)
                })
            },
            |d| sample_with(d, "Selu", &["alpha", "gamma"]),
        )
    },
    row(
        "Celu",
        |cx, x| {
            let alpha = float(cx, "alpha", 1.0)?;
            map_float(x, |x| if x < 0.0 { alpha * (x / alpha).exp_m1() } else { x })
        },
        |cx| {
            let alpha = grad_float(cx, "alpha", 1.0)?;
            through(cx, |e, x, y, dy| {
                let scaled = e.mul_scalar(y, 1.0 / alpha)?;
                let slope = e.add_scalar(scaled, 1.0)?;
                let below = e.mul(dy, slope)?;
                where_negative(e, x, below, dy)
            })
        },
        |d| sample_with(d, "Celu", &["alpha"]),
    ),
    row(
        "ThresholdedRelu",
        |cx, x| {
            let alpha = float(cx, "alpha", 1.0)?;
            map_float(x, |x| if x > alpha { x } else { 0.0 })
        },
        |cx| {
            let alpha = grad_float(cx, "alpha", 1.0)?;
            masked(cx, "Greater", alpha)
        },
        |d| sample_with(d, "ThresholdedRelu", &["alpha"]),
    ),
    row(
        "HardSigmoid",
        |cx, x| {
            let (alpha, beta) = (float(cx, "alpha", 0.2)?, float(cx, "beta", 0.5)?);
            map_float(x, |x| (alpha * x + beta).clamp(0.0, 1.0))
        },
        |cx| {
            let alpha = grad_float(cx, "alpha", 0.2)?;
            through(cx, |e, _, y, dy| {
                let inside = between(e, y, 0.0, 1.0)?;
                let scaled = e.mul_scalar(dy, alpha)?;
                e.select_or(inside, scaled, 0.0)
            })
        },
        |d| sample_with(d, "HardSigmoid", &["alpha", "beta"]),
    ),
    row(
        "HardSwish",
        |_, x| map_float(x, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        |cx| derivative(cx, |e, x, _| hard_swish_slope(e, x)),
        |d| sample_unary(d, "HardSwish", -5.0, 5.0),
    ),
    row(
        "Sigmoid",
        |_, x| map_float(x, sigmoid),
        |cx| {
            derivative(cx, |e, _, y| {
                let rest = e.scalar_minus(1.0, y)?;
                e.mul(y, rest)
            })
        },
        |d| sample_unary(d, "Sigmoid", -4.0, 4.0),
    ),
    row(
        "Softplus",
        |_, x| map_float(x, softplus),
        |cx| derivative(cx, |e, x, _| e.unary("Sigmoid", x)),
        |d| sample_unary(d, "Softplus", -4.0, 4.0),
    ),
    row(
        "Softsign",
        |_, x| map_float(x, |x| x / (1.0 + x.abs())),
        |cx| {
            through(cx, |e, x, _, dy| {
                let size = e.unary("Abs", x)?;
                let below = e.add_scalar(size, 1.0)?;
                let square = e.square(below)?;
                e.div(dy, square)
            })
        },
        |d| sample_unary(d, "Softsign", -3.0, 3.0),
    ),
    row("Gelu", gelu, gelu_grad, gelu_sample),
    row(
        "Mish",
        |_, x| map_float(x, |x| x * softplus(x).tanh()),
        |cx| derivative(cx, |e, x, _| mish_slope(e, x)),
        |d| sample_unary(d, "Mish", -3.0, 3.0),
    ),
    OpDef {
        decompose: Some(super::written_out::swish),
        ..row(
            "Swish",
            |cx, x| {
                let alpha = float(cx, "alpha", 1.0)?;
                map_float(x, |x| x * sigmoid(alpha * x))
            },
            |cx| {
                let alpha = grad_float(cx, "alpha", 1.0)?;
                derivative(cx, |e, x, y| swish_slope(e, x, y, alpha))
            },
            |d| sample_with(d, "Swish", &["alpha"]),
        )
    },
    row(
        "Shrink",
        shrink,
        |cx| {
            let lambd = grad_float(cx, "lambd", 0.5)?;
            through(cx, |e, x, _, dy| {
                let size = e.unary("Abs", x)?;
                let outside = e.compare_scalar("Greater", size, lambd)?;
                e.select_or(outside, dy, 0.0)
            })
        },
        |d| sample_with(d, "Shrink", &["lambd", "bias"]),
    ),
];

const SELU_ALPHA: f32 = 1.673_263_2;
const SELU_GAMMA: f32 = 1.050_701;

const fn row(name: &'static str, eval: EvalFn, grad: GradFn, sample: fn(&mut Draw) -> Sample) -> OpDef {
    OpDef { name, eval: Some(eval), grad: Gradient::Emit(grad), sample: Some(sample), ..UNARY }
}

fn float(cx: &EvalCx, name: &str, default: f32) -> Result<f64> {
    Ok(f64::from(cx.op.attrs.float(name, default)?))
}

fn grad_float(cx: &GradCx, name: &str, default: f32) -> Result<f64> {
    Ok(f64::from(cx.op().attrs.float(name, default)?))
}

// ---- functions ------------------------------------------------------------------------------------------------------

fn relu(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [x] = present(inputs)?;
    // NaN passes through, as `max` would not let it.
    Ok(vec![map_number(x, |x| if x < 0.0 { 0.0 } else { x }, |x| x.max(0))?])
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + eˣ)` without overflow.
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Integers are shrunk by the bias truncated to an integer.
fn shrink(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [x] = present(inputs)?;
    let (lambd, bias) = (float(cx, "lambd", 0.5)?, float(cx, "bias", 0.0)?);
    let f = |x: f64| match x {
        x if x < -lambd => x + bias,
        x if x > lambd => x - bias,
        x if x.is_nan() => x,
        _ => 0.0,
    };
    Ok(vec![map_number(x, f, |x| f(x as f64) as i128)?])
}

/// `√(2/π) (x + 0.044715 x³)`: what the fast form of Gelu puts under a hyperbolic tangent.
fn tanh_argument(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))
}

fn is_tanh(op: &Operator) -> Result<bool> {
    match op.attrs.str("approximate", "none")? {
        "none" => Ok(false),
        "tanh" => Ok(true),
        other => bail!("attribute `approximate` is \"{other}\", expected \"none\" or \"tanh\""),
    }
}

fn gelu(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    match is_tanh(cx.op)? {
        true => map_float(inputs, |x| 0.5 * x * (1.0 + tanh_argument(x).tanh())),
        false => map_float(inputs, |x| 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2))),
    }
}

// ---- gradients ------------------------------------------------------------------------------------------------------

/// `x < 0 ? below : above`
fn where_negative(e: &mut Emit, x: Value, below: Value, above: Value) -> Result<Value> {
    let negative = e.compare_scalar("Less", x, 0.0)?;
    e.select(negative, below, above)
}

/// `low < x < high`
fn between(e: &mut Emit, x: Value, low: f64, high: f64) -> Result<Value> {
    let above = e.compare_scalar("Greater", x, low)?;
    let below = e.compare_scalar("Less", x, high)?;
    e.op("And", &[above, below], Attributes::new())
}

/// `dy` where `x` compares so with a number, else 0.
fn masked(cx: &mut GradCx, comparison: &str, s: f64) -> Result<Vec<Option<Value>>> {
    through(cx, |e, x, _, dy| {
        let pass = e.compare_scalar(comparison, x, s)?;
        e.select_or(pass, dy, 0.0)
    })
}

/// By the result, which is wanted afterwards anyway; so the operand need not be kept.
fn relu_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    through(cx, |e, _, y, dy| {
        let pass = e.compare_scalar("Greater", y, 0.0)?;
        e.select_or(pass, dy, 0.0)
    })
}

/// 0 below -3, 1 above 3, `x/3 + 1/2` between.
fn hard_swish_slope(e: &mut Emit, x: Value) -> Result<Value> {
    let third = e.mul_scalar(x, 1.0 / 3.0)?;
    let middle = e.add_scalar(third, 0.5)?;
    let low = e.compare_scalar("Greater", x, -3.0)?;
    let high = e.compare_scalar("Less", x, 3.0)?;
    let above_low = e.select_or(low, middle, 0.0)?;
    e.select_or(high, above_low, 1.0)
}

/// With `t = tanh(softplus(x))`: `t + x (1 - t²) σ(x)`.
fn mish_slope(e: &mut Emit, x: Value) -> Result<Value> {
    let plus = e.unary("Softplus", x)?;
    let t = e.unary("Tanh", plus)?;
    let square = e.square(t)?;
    let rest = e.scalar_minus(1.0, square)?;
    let gate = e.unary("Sigmoid", x)?;
    let inner = e.mul(rest, gate)?;
    let outer = e.mul(x, inner)?;
    e.add(t, outer)
}

/// With `s = σ(αx)` and `y = x s`: `s + α y (1 - s)`.
fn swish_slope(e: &mut Emit, x: Value, y: Value, alpha: f64) -> Result<Value> {
    let scaled = if alpha == 1.0 { x } else { e.mul_scalar(x, alpha)? };
    let s = e.unary("Sigmoid", scaled)?;
    let rest = e.scalar_minus(1.0, s)?;
    let product = e.mul(y, rest)?;
    let product = if alpha == 1.0 { product } else { e.mul_scalar(product, alpha)? };
    e.add(s, product)
}

fn gelu_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    match is_tanh(&cx.op())? {
        true => derivative(cx, |e, x, _| gelu_tanh_slope(e, x)),
        false => derivative(cx, |e, x, _| gelu_slope(e, x)),
    }
}

/// `Φ(x) + x φ(x)`, with the distribution and the density of the standard normal.
fn gelu_slope(e: &mut Emit, x: Value) -> Result<Value> {
    let scaled = e.mul_scalar(x, FRAC_1_SQRT_2)?;
    let erf = e.unary("Erf", scaled)?;
    let half = e.mul_scalar(erf, 0.5)?;
    let distribution = e.add_scalar(half, 0.5)?;
    let square = e.square(x)?;
    let exponent = e.mul_scalar(square, -0.5)?;
    let bell = e.unary("Exp", exponent)?;
    let density = e.mul_scalar(bell, 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)?;
    let moved = e.mul(x, density)?;
    e.add(distribution, moved)
}

/// With `u = √(2/π) (x + c x³)` and `t = tanh(u)`: `½ (1 + t) + ½ x (1 - t²) √(2/π) (1 + 3 c x²)`.
fn gelu_tanh_slope(e: &mut Emit, x: Value) -> Result<Value> {
    let scale = (2.0 / PI).sqrt();
    let square = e.square(x)?;
    let cubic = e.mul_scalar(square, 0.044715 * scale)?;
    let factor = e.add_scalar(cubic, scale)?;
    let u = e.mul(x, factor)?;
    let t = e.unary("Tanh", u)?;
    let half = e.mul_scalar(t, 0.5)?;
    let first = e.add_scalar(half, 0.5)?;
    let t_square = e.square(t)?;
    let rest = e.scalar_minus(1.0, t_square)?;
    let steep = e.mul_scalar(square, 3.0 * 0.044715 * 0.5 * scale)?;
    let inner = e.add_scalar(steep, 0.5 * scale)?;
    let chain = e.mul(rest, inner)?;
    let second = e.mul(x, chain)?;
    e.add(first, second)
}

// ---- older opsets and samples ---------------------------------------------------------------------------------------

/// Before opset 6 the defaults of Selu were shorter numbers.
fn selu_defaults(graph: &mut Graph, id: NodeId) -> Result<()> {
    drop_consumed_inputs(graph, id)?;
    if let Some(op) = graph.node_mut(id).op_mut() {
        for (name, default) in [("alpha", 1.6732f32), ("gamma", 1.0507)] {
            if !op.attrs.has(name) {
                op.attrs.set(name, default);
            }
        }
    }
    Ok(())
}

/// With these attributes drawn at random half of the time.
fn sample_with(draw: &mut Draw, name: &str, attributes: &[&str]) -> Sample {
    let mut attrs = Attributes::new();
    for attribute in attributes {
        if draw.chance(0.5) {
            attrs.set(attribute, draw.float(0.2, 1.5) as f32);
        }
    }
    sample_unary_with(draw, Operator::onnx(name, attrs), -3.0, 3.0)
}

fn gelu_sample(draw: &mut Draw) -> Sample {
    let form = *draw.pick(&["none", "tanh"]);
    sample_unary_with(draw, Operator::onnx("Gelu", Attributes::new().with("approximate", form)), -3.0, 3.0)
}
