//! Comparisons and logic: two broadcast inputs (or one) to booleans. One row each. No gradient flows through them.
//! Spec: <https://onnx.ai/onnx/operators/>.
//!
//! Comparisons of integers are followed through shape arithmetic: exporters ask whether a dimension is -1.

use super::elementwise::{
    align_broadcast, broadcast_shape, compare, drop_consumed_inputs, follow, one_type, present, random_bools,
    random_pair, sample_binary, sample_unary,
};
use super::{EvalCx, EvalFn, Gradient, InferCx, OpDef, Sample, broadcast};
use crate::error::Result;
use crate::graph::Operator;
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, dispatch, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Equal",
        infer: |cx| infer_compare(cx, |a, b| a == b),
        eval: Some(equal),
        sample: Some(|d| sample_binary(d, Operator::onnx("Equal", Attributes::new()), -2.0, 2.0)),
        ..COMPARE
    },
    comparison(
        "Less",
        |cx| infer_compare(cx, |a, b| a < b),
        |_, x| compare(x, |a, b| a < b, |a, b| a < b),
        |d| sample_binary(d, Operator::onnx("Less", Attributes::new()), -2.0, 2.0),
    ),
    comparison(
        "LessOrEqual",
        |cx| infer_compare(cx, |a, b| a <= b),
        |_, x| compare(x, |a, b| a <= b, |a, b| a <= b),
        |d| sample_binary(d, Operator::onnx("LessOrEqual", Attributes::new()), -2.0, 2.0),
    ),
    comparison(
        "Greater",
        |cx| infer_compare(cx, |a, b| a > b),
        |_, x| compare(x, |a, b| a > b, |a, b| a > b),
        |d| sample_binary(d, Operator::onnx("Greater", Attributes::new()), -2.0, 2.0),
    ),
    comparison(
        "GreaterOrEqual",
        |cx| infer_compare(cx, |a, b| a >= b),
        |_, x| compare(x, |a, b| a >= b, |a, b| a >= b),
        |d| sample_binary(d, Operator::onnx("GreaterOrEqual", Attributes::new()), -2.0, 2.0),
    ),
    comparison("And", infer_logic, |_, x| logic(x, |a, b| a & b), |d| sample_logic(d, "And")),
    comparison("Or", infer_logic, |_, x| logic(x, |a, b| a | b), |d| sample_logic(d, "Or")),
    comparison("Xor", infer_logic, |_, x| logic(x, |a, b| a ^ b), |d| sample_logic(d, "Xor")),
    OpDef {
        name: "Not",
        infer: |cx| {
            let dtype = cx.dtype(0)?;
            ensure!(dtype == DType::Bool, "its input is {dtype}, expected bool");
            super::same_as_first(cx)
        },
        eval: Some(|_, inputs| {
            let [x] = present(inputs)?;
            let out: Vec<bool> = x.as_slice::<bool>()?.iter().map(|x| !x).collect();
            Ok(vec![Tensor::from_vec(x.shape(), out)])
        }),
        grad: Gradient::Zero,
        sample: Some(|d| Sample::new(Operator::onnx("Not", Attributes::new()), vec![random_bools(d, &[2, 3])])),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "IsNaN",
        eval: Some(|_, x| classify(x, f64::is_nan)),
        sample: Some(|d| sample_unary(d, "IsNaN", -1.0, 1.0)),
        ..CLASSIFY
    },
    OpDef {
        name: "IsInf",
        eval: Some(|cx, x| {
            let up = cx.op.attrs.flag("detect_positive", true)?;
            let down = cx.op.attrs.flag("detect_negative", true)?;
            classify(x, move |v| (up && v == f64::INFINITY) || (down && v == f64::NEG_INFINITY))
        }),
        sample: Some(|d| sample_unary(d, "IsInf", -1.0, 1.0)),
        ..CLASSIFY
    },
];

const COMPARE: OpDef = OpDef {
    inputs: (2, 2),
    grad: Gradient::Zero,
    flops: |cx| cx.output_len(0),
    upgrades: &[(6, drop_consumed_inputs), (7, align_broadcast)],
    ..OpDef::DEFAULT
};

const CLASSIFY: OpDef =
    OpDef { infer: infer_classify, grad: Gradient::Zero, flops: |cx| cx.output_len(0), ..OpDef::DEFAULT };

const fn comparison(
    name: &'static str,
    infer: fn(&mut InferCx) -> Result<()>,
    eval: EvalFn,
    sample: fn(&mut Draw) -> Sample,
) -> OpDef {
    OpDef { name, infer, eval: Some(eval), sample: Some(sample), ..COMPARE }
}

fn infer_compare(cx: &mut InferCx, rule: fn(i64, i64) -> bool) -> Result<()> {
    one_type(cx, 0..2)?;
    let shape = broadcast_shape(cx)?;
    cx.set_tensor(0, DType::Bool, shape);
    follow(cx, DType::Bool, |row| compare_dims(row[0], row[1], rule));
    Ok(())
}

/// 0 or 1 where the comparison is decided: by numbers, by equality, or because a size is above every negative number.
fn compare_dims(a: &Dim, b: &Dim, rule: fn(i64, i64) -> bool) -> Dim {
    let decided = match (a, b) {
        (Dim::Known(a), Dim::Known(b)) => rule(*a, *b),
        (a, b) if a.same(b) => rule(0, 0),
        (a, Dim::Known(b)) if a.is_size() && *b < 0 => rule(0, *b),
        (Dim::Known(a), b) if b.is_size() && *a < 0 => rule(*a, 0),
        _ => return Dim::Unknown,
    };
    Dim::Known(i64::from(decided))
}

fn infer_logic(cx: &mut InferCx) -> Result<()> {
    let dtype = one_type(cx, 0..2)?;
    ensure!(dtype == DType::Bool, "its operands are {dtype}, expected bool");
    let shape = broadcast_shape(cx)?;
    cx.set_tensor(0, DType::Bool, shape);
    Ok(())
}

fn infer_classify(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype.is_float(), "its input is {dtype}, expected a floating-point type");
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    cx.set_tensor(0, DType::Bool, shape);
    Ok(())
}

/// Numbers, booleans, or strings byte by byte.
fn equal(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [a, b] = present(inputs)?;
    let (Some(x), Some(y)) = (a.strings(), b.strings()) else {
        return compare(inputs, |a, b| a == b, |a, b| a == b);
    };
    let shape = broadcast::shapes(&[a.shape(), b.shape()])?;
    let strides = [a, b].map(|t| broadcast::broadcast_strides(t.shape(), &shape));
    let mut out = Vec::new();
    broadcast::for_each_offset(&shape, [&strides[0], &strides[1]], |[i, j]| out.push(x[i] == y[j]));
    Ok(vec![Tensor::from_vec(shape, out)])
}

fn logic(inputs: &[Option<&Tensor>], f: fn(bool, bool) -> bool) -> Result<Vec<Tensor>> {
    let [a, b] = present(inputs)?;
    Ok(vec![broadcast::binary::<bool, bool>(a, b, f)?])
}

fn classify(inputs: &[Option<&Tensor>], f: impl Fn(f64) -> bool) -> Result<Vec<Tensor>> {
    use num_traits::AsPrimitive;
    let [x] = present(inputs)?;
    let out: Vec<bool> = dispatch!(x.dtype(), float T => x.as_slice::<T>()?.iter().map(|&x| f(x.as_())).collect(),
        else crate::bail!("its input is {}, expected a floating-point type", x.dtype()));
    Ok(vec![Tensor::from_vec(x.shape(), out)])
}

fn sample_logic(draw: &mut Draw, name: &str) -> Sample {
    let (a, b) = random_pair(draw);
    Sample::new(Operator::onnx(name, Attributes::new()), vec![random_bools(draw, &a), random_bools(draw, &b)])
}
