//! `CumSum` and `CumProd`: sums and products of the entries of an axis up to each one, without it if `exclusive`, from the
//! end if `reverse`. `ai.sartor::LinearScan(u, a, axis)`: the recurrence `sᵢ = uᵢ + aᵢ sᵢ₋₁`, which the gradient of products
//! is.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__CumSum.html>, <https://onnx.ai/onnx/operators/onnx__CumProd.html>. The
//! gradient of a sum is the sum from the other end. That of a product needs no division, so zeros are entries like any
//! other: with P the exclusive products,
//!
//! ```text
//! dxⱼ = Pⱼ · Σ_{i ≥ j} dyᵢ · Π_{j < k ≤ i} x_k = Pⱼ · Rⱼ,   Rⱼ = dyⱼ + xⱼ₊₁ Rⱼ₊₁        exclusive: Rⱼ = dyⱼ₊₁ + xⱼ₊₁ Rⱼ₊₁
//! ```
//!
//! A scan starts with `s₋₁ = 0`, from the end if `reverse`. Its gradients are scans from the other end.

use super::arithmetic::{Arithmetic, computed_in};
use super::real::{reals, rounded};
use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, SARTOR_DOMAIN, Tensor, bail, dispatch, ensure};
use num_traits::AsPrimitive;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "CumSum",
        inputs: (2, 2),
        eval: Some(eval),
        grad: Gradient::Emit(grad_sum),
        sample: Some(|draw| sample(draw, "CumSum")),
        ..CUMULATIVE
    },
    OpDef {
        name: "CumProd",
        inputs: (2, 2),
        eval: Some(eval),
        grad: Gradient::Emit(grad_product),
        sample: Some(|draw| {
            let mut sample = sample(draw, "CumProd");
            if draw.chance(0.5) {
                let zeros = vec![0.5, 0.0, -1.5, 2.0, 0.0, 0.0, 1.0, 3.0, 0.0, -2.0, 0.0, 1.5];
                sample.inputs[0] = Some(Tensor::from_vec([2, 3, 2], zeros));
            }
            sample
        }),
        ..CUMULATIVE
    },
    OpDef {
        domain: SARTOR_DOMAIN,
        name: "LinearScan",
        inputs: (3, 3),
        eval: Some(eval_scan),
        grad: Gradient::Emit(grad_scan),
        sample: Some(sample_scan),
        ..CUMULATIVE
    },
];

/// What the rows share: the axis is the last input.
const CUMULATIVE: OpDef = OpDef { infer, flops: |cx| 2 * cx.output_len(0), ..OpDef::DEFAULT };

fn infer(cx: &mut InferCx) -> Result<()> {
    if let (Some(shape), Some([axis])) = (cx.shape(0), cx.ints(cx.input_count() - 1).as_deref()) {
        normal_axis(*axis, shape.len())?;
    }
    super::same_as_first(cx)
}

/// The axis that a tensor of one element names.
fn named_axis(axis: &Tensor, rank: usize) -> Result<usize> {
    ensure!(axis.len() == 1, "its axis has shape {:?}, expected one element", axis.shape());
    normal_axis(axis.to_i64s()?[0], rank)
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let axis = named_axis(index::input(inputs, 1)?, x.rank())?;
    let wide = computed_in(x.dtype());
    let out = dispatch!(wide, wide T => running::<T>(cx, &x.cast(wide)?, axis)?,
        else bail!("no sums or products of {}", x.dtype()));
    Ok(vec![out.cast(x.dtype())?])
}

fn running<T: Arithmetic>(cx: &EvalCx, x: &Tensor, axis: usize) -> Result<Tensor>
where
    u8: AsPrimitive<T>,
{
    let (exclusive, products) = (cx.op.attrs.flag("exclusive", false)?, cx.op.name == "CumProd");
    let data = x.as_slice::<T>()?;
    let mut out = vec![T::default(); data.len()];
    for lane in lanes(x.shape(), axis, cx.op.attrs.flag("reverse", false)?) {
        let mut total: T = if products { 1u8.as_() } else { T::default() };
        for at in lane {
            let with = if products { total.times(data[at]) } else { total.plus(data[at]) };
            out[at] = if exclusive { total } else { with };
            total = with;
        }
    }
    Ok(Tensor::from_vec(x.shape(), out))
}

/// The places of the entries of each lane along an axis, in the order in which they are met.
fn lanes(shape: &[usize], axis: usize, reverse: bool) -> impl Iterator<Item = impl Iterator<Item = usize>> {
    let (outer, len, inner) = index::lanes(shape, axis);
    let lanes = if len == 0 { 0 } else { outer * inner };
    let entry = move |lane: usize, i: usize| (lane / inner * len + i) * inner + lane % inner;
    (0..lanes).map(move |lane| (0..len).map(move |step| entry(lane, if reverse { len - 1 - step } else { step })))
}

fn grad_sum(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (axis, dy, attrs) = (cx.input(1)?, cx.dy()?, cx.op().attrs);
    let reverse = !attrs.flag("reverse", false)?;
    Ok(vec![Some(cx.emit.op("CumSum", &[dy, axis], attrs.with("reverse", reverse))?), None])
}

fn grad_product(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, axis, dy, attrs) = (cx.input(0)?, cx.input(1)?, cx.dy()?, cx.op().attrs);
    let (exclusive, reverse) = (attrs.flag("exclusive", false)?, attrs.flag("reverse", false)?);
    let before = cx.emit.op("CumProd", &[x, axis], attrs.with("exclusive", true))?;
    let next = shifted(cx.emit, x, axis, if reverse { 1 } else { -1 })?;
    let dy = if exclusive { shifted(cx.emit, dy, axis, if reverse { 1 } else { -1 })? } else { dy };
    let behind = cx.emit.sartor("LinearScan", &[dy, next, axis], Attributes::new().with("reverse", !reverse))?;
    Ok(vec![Some(cx.emit.mul(before, behind)?), None])
}

/// The entries of an axis moved by `by` places toward its end; zeros come in.
fn shifted(emit: &mut Emit, x: Value, axis: Value, by: i64) -> Result<Value> {
    let axis = emit.int_scalar(axis)?;
    let axis = emit.reshape(axis, &[1])?;
    let pads = emit.ints(&[by, -by]);
    let moved = emit.node(Operator::onnx("Pad", Attributes::new()), &[Some(x), Some(pads), None, Some(axis)], 1)?[0];
    emit.type_like(moved, x);
    Ok(moved)
}

fn eval_scan(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (u, a) = (index::input(inputs, 0)?, index::input(inputs, 1)?);
    let axis = named_axis(index::input(inputs, 2)?, u.rank())?;
    ensure!(u.shape() == a.shape(), "terms of shape {:?}, factors of shape {:?}", u.shape(), a.shape());
    let (terms, factors) = (reals(u)?, reals(a)?);
    let mut out = vec![0.0; terms.len()];
    for lane in lanes(u.shape(), axis, cx.op.attrs.flag("reverse", false)?) {
        let mut last = 0.0;
        for at in lane {
            last = terms[at] + factors[at] * last;
            out[at] = last;
        }
    }
    Ok(vec![rounded(u.dtype(), u.shape(), out)?])
}

/// With g the gradient of each sum through all later ones: du = g, daᵢ = gᵢ sᵢ₋₁.
fn grad_scan(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (a, axis, s, ds) = (cx.input(1)?, cx.input(2)?, cx.output(0), cx.dy()?);
    let reverse = cx.op().attrs.flag("reverse", false)?;
    let next = shifted(cx.emit, a, axis, if reverse { 1 } else { -1 })?;
    let g = cx.emit.sartor("LinearScan", &[ds, next, axis], Attributes::new().with("reverse", !reverse))?;
    let mut grads = vec![Some(g), None, None];
    if cx.want(1) {
        let last = shifted(cx.emit, s, axis, if reverse { -1 } else { 1 })?;
        grads[1] = Some(cx.emit.mul(g, last)?);
    }
    Ok(grads)
}

fn sample(draw: &mut Draw, name: &str) -> Sample {
    let attrs = Attributes::new().with("exclusive", draw.int(0, 1)).with("reverse", draw.int(0, 1));
    let inputs = vec![draw.tensor(&[2, 3, 2], -1.0, 1.0), Tensor::scalar(draw.int(-3, 2))];
    Sample::new(Operator::onnx(name, attrs), inputs)
}

fn sample_scan(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("reverse", draw.int(0, 1));
    let (u, a) = (draw.tensor(&[2, 3, 2], -1.0, 1.0), draw.tensor(&[2, 3, 2], -1.0, 1.0));
    Sample::new(Operator::sartor("LinearScan", attrs), vec![u, a, Tensor::scalar(draw.int(-3, 2))])
}
