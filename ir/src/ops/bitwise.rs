//! Bits of integers: BitwiseAnd, BitwiseOr, BitwiseXor, BitwiseNot and BitShift. One row each; no gradient.
//! Spec: <https://onnx.ai/onnx/operators/>. A right shift of a signed integer keeps its sign.

use super::elementwise::{BINARY, UNARY, infer_same_type, map_number, present, random_pair, zip};
use super::{EvalCx, EvalFn, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::Operator;
use crate::rng::Draw;
use crate::{Attributes, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    binary("BitwiseAnd", |_, x| zip(x, no_float, |a, b| a & b), |d| sample(d, "BitwiseAnd", Attributes::new())),
    binary("BitwiseOr", |_, x| zip(x, no_float, |a, b| a | b), |d| sample(d, "BitwiseOr", Attributes::new())),
    binary("BitwiseXor", |_, x| zip(x, no_float, |a, b| a ^ b), |d| sample(d, "BitwiseXor", Attributes::new())),
    binary("BitShift", shift, |d| {
        let direction = *d.pick(&["LEFT", "RIGHT"]);
        sample(d, "BitShift", Attributes::new().with("direction", direction))
    }),
    OpDef {
        name: "BitwiseNot",
        infer: |cx| {
            only_integers(cx)?;
            super::same_as_first(cx)
        },
        eval: Some(|_, inputs| Ok(vec![map_number(present::<1>(inputs)?[0], |x| x, |x| !x)?])),
        grad: Gradient::Zero,
        sample: Some(|d| Sample::new(Operator::onnx("BitwiseNot", Attributes::new()), vec![d.ints(&[2, 3], -9, 9)])),
        upgrades: &[],
        ..UNARY
    },
];

const fn binary(name: &'static str, eval: EvalFn, sample: fn(&mut Draw) -> Sample) -> OpDef {
    let grad = Gradient::Zero;
    OpDef { name, infer: infer_integers, eval: Some(eval), grad, sample: Some(sample), upgrades: &[], ..BINARY }
}

fn only_integers(cx: &InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype.is_int(), "its input is {dtype}, expected integers");
    Ok(())
}

fn infer_integers(cx: &mut InferCx) -> Result<()> {
    only_integers(cx)?;
    infer_same_type(cx)
}

/// Inference refuses floats before a rule could see them.
fn no_float(_: f64, _: f64) -> f64 {
    f64::NAN
}

/// Shifts by a negative number, or by the width or more, leave what the sign fills in.
fn shift(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [x, _] = present(inputs)?;
    let bits = x.dtype().bits() as i128;
    let beyond = |n: i128| n < 0 || n >= bits;
    match cx.op.attrs.str("direction", "")? {
        "LEFT" => zip(inputs, no_float, |x, n| if beyond(n) { 0 } else { x << n }),
        "RIGHT" => zip(inputs, no_float, |x, n| if beyond(n) { if x < 0 { -1 } else { 0 } } else { x >> n }),
        other => bail!("attribute `direction` is \"{other}\", expected \"LEFT\" or \"RIGHT\""),
    }
}

fn sample(draw: &mut Draw, name: &str, attrs: Attributes) -> Sample {
    let (a, b) = random_pair(draw);
    Sample::new(Operator::onnx(name, attrs), vec![draw.ints(&a, -100, 100), draw.ints(&b, -2, 70)])
}
