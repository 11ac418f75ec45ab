//! Any number of broadcast inputs of one type: Min, Max, Sum, Mean. One row each.
//! Spec: <https://onnx.ai/onnx/operators/>. NaN wins in Min and Max, as in NumPy.
//!
//! Where several inputs of Min or Max are equal, the first one gets the gradient.

use super::elementwise::{drop_consumed_inputs, follow, infer_same_type, map_number, zip_number};
use super::{GradCx, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Min",
        infer: |cx| infer_extreme(cx, |a, b| extreme_dim(a, b, i64::min)),
        eval: Some(|_, x| fold(x, |x, y| if x.is_nan() || x < y { x } else { y }, i128::min)),
        grad: Gradient::Emit(extreme_grad),
        sample: Some(|d| sample(d, "Min")),
        ..VARIADIC
    },
    OpDef {
        name: "Max",
        infer: |cx| infer_extreme(cx, |a, b| extreme_dim(a, b, i64::max)),
        eval: Some(|_, x| fold(x, |x, y| if x.is_nan() || x > y { x } else { y }, i128::max)),
        grad: Gradient::Emit(extreme_grad),
        sample: Some(|d| sample(d, "Max")),
        ..VARIADIC
    },
    OpDef {
        name: "Sum",
        eval: Some(|_, x| fold(x, |x, y| x + y, i128::wrapping_add)),
        grad: Gradient::Emit(|cx| shared_grad(cx, |_| 1.0)),
        sample: Some(|d| sample(d, "Sum")),
        ..VARIADIC
    },
    OpDef {
        name: "Mean",
        eval: Some(mean),
        grad: Gradient::Emit(|cx| shared_grad(cx, |count| 1.0 / count as f64)),
        sample: Some(|d| sample(d, "Mean")),
        ..VARIADIC
    },
];

const VARIADIC: OpDef = OpDef {
    inputs: (1, usize::MAX),
    infer: infer_same_type,
    flops: |cx| cx.output_len(0) * cx.inputs.len() as u64,
    upgrades: &[(6, drop_consumed_inputs)],
    ..OpDef::DEFAULT
};

fn infer_extreme(cx: &mut InferCx, rule: impl Fn(&Dim, &Dim) -> Dim) -> Result<()> {
    infer_same_type(cx)?;
    let dtype = cx.dtype(0)?;
    follow(cx, dtype, |row| row[1..].iter().fold(row[0].clone(), |a, b| rule(&a, b)));
    Ok(())
}

/// The smaller or the larger of two dimensions. A number that is not positive decides against a dimension that cannot
/// be negative.
fn extreme_dim(a: &Dim, b: &Dim, pick: fn(i64, i64) -> i64) -> Dim {
    match (a, b) {
        (Dim::Known(a), Dim::Known(b)) => Dim::Known(pick(*a, *b)),
        (a, b) if a.same(b) => a.clone(),
        (Dim::Known(number), size) | (size, Dim::Known(number)) if *number <= 0 && size.is_size() => {
            if pick(0, 1) == 1 { size.clone() } else { Dim::Known(*number) }
        }
        _ => Dim::Unknown,
    }
}

fn fold(
    inputs: &[Option<&Tensor>],
    f: impl Fn(f64, f64) -> f64,
    g: impl Fn(i128, i128) -> i128,
) -> Result<Vec<Tensor>> {
    let Some(inputs) = inputs.iter().copied().collect::<Option<Vec<_>>>() else { bail!("an input is missing") };
    let Some((first, rest)) = inputs.split_first() else { bail!("it needs at least one input") };
    let mut out = (*first).clone();
    for tensor in rest {
        out = zip_number(&out, tensor, &f, &g)?;
    }
    Ok(vec![out])
}

fn mean(_: &super::EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let sum = fold(inputs, |x, y| x + y, i128::wrapping_add)?;
    let count = inputs.len();
    ensure!(sum[0].dtype().is_float(), "no mean of {}", sum[0].dtype());
    Ok(vec![map_number(&sum[0], |x| x / count as f64, |x| x)?])
}

/// The output's gradient times a factor that depends on the number of inputs, for every input.
fn shared_grad(cx: &mut GradCx, factor: impl Fn(usize) -> f64) -> Result<Vec<Option<Value>>> {
    let count = cx.wants.len();
    let factor = factor(count);
    let dy = cx.dy()?;
    let scaled = if factor == 1.0 { dy } else { cx.emit.mul_scalar(dy, factor)? };
    let mut grads = vec![None; count];
    for (slot, grad) in grads.iter_mut().enumerate().filter(|(slot, _)| cx.wants[*slot]) {
        *grad = Some(cx.emit.sum_to(scaled, cx.input(slot)?)?);
    }
    Ok(grads)
}

/// Each input gets the gradient where it is the first to equal the output.
fn extreme_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (dy, y) = (cx.dy()?, cx.output(0));
    let mut grads = vec![None; cx.wants.len()];
    let mut taken: Option<Value> = None;
    for slot in 0..grads.len() {
        let x = cx.input(slot)?;
        let hit = cx.emit.op("Equal", &[x, y], Attributes::new())?;
        let first = match taken {
            None => hit,
            Some(taken) => {
                let free = cx.emit.unary("Not", taken)?;
                cx.emit.op("And", &[hit, free], Attributes::new())?
            }
        };
        if cx.want(slot) {
            let dx = cx.emit.select_or(first, dy, 0.0)?;
            grads[slot] = Some(cx.emit.sum_to(dx, x)?);
        }
        taken = Some(match taken {
            None => hit,
            Some(taken) => cx.emit.op("Or", &[taken, hit], Attributes::new())?,
        });
    }
    Ok(grads)
}

fn sample(draw: &mut Draw, name: &str) -> Sample {
    let shapes: [&[&[usize]]; 4] = [&[&[2, 3]], &[&[2, 3], &[3]], &[&[2, 1], &[1, 3], &[]], &[&[3], &[3], &[2, 3]]];
    let shapes = *draw.pick(&shapes);
    let inputs = shapes.iter().map(|shape| draw.tensor(shape, -2.0, 2.0)).collect();
    Sample::new(Operator::onnx(name, Attributes::new()), inputs)
}
