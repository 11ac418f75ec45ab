//! Choosing by condition or by bounds: Where and Clip.
//!
//! `Where`: `Y = condition ? X : Y`, all three broadcast. `Clip`: `Y = min(max(X, low), high)` with optional scalar
//! bounds; `high` wins where they cross. Spec: <https://onnx.ai/onnx/operators/>.

use super::elementwise::{
    broadcast_shape, drop_consumed_inputs, follow, infer_unary, map_number, one_type, present, random_bools,
};
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, broadcast, index, upgrade};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, dispatch, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Where",
        inputs: (3, 3),
        infer: infer_where,
        eval: Some(eval_where),
        grad: Gradient::Emit(where_grad),
        flops: |cx| cx.output_len(0),
        sample: Some(where_sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "Clip",
        inputs: (1, 3),
        infer: infer_clip,
        eval: Some(clip),
        grad: Gradient::Emit(clip_grad),
        flops: |cx| 2 * cx.output_len(0),
        upgrades: &[(6, drop_consumed_inputs), (11, bounds_to_inputs)],
        sample: Some(clip_sample),
        ..OpDef::DEFAULT
    },
];

// ---- Where ----------------------------------------------------------------------------------------------------------

fn infer_where(cx: &mut InferCx) -> Result<()> {
    let condition = cx.dtype(0)?;
    ensure!(condition == DType::Bool, "its condition is {condition}, expected bool");
    let dtype = one_type(cx, 1..3)?;
    let shape = broadcast_shape(cx)?;
    cx.set_tensor(0, dtype, shape);
    follow(cx, dtype, |row| match row[0] {
        Dim::Known(0) => row[2].clone(),
        Dim::Known(_) => row[1].clone(),
        _ if row[1].same(row[2]) => row[1].clone(),
        _ => Dim::Unknown,
    });
    Ok(())
}

fn eval_where(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [condition, a, b] = present(inputs)?;
    let shape = broadcast::shapes(&[condition.shape(), a.shape(), b.shape()])?;
    let strides = [condition, a, b].map(|t| broadcast::broadcast_strides(t.shape(), &shape));
    let condition = condition.as_slice::<bool>()?;
    let mut places = Vec::with_capacity(shape.iter().product());
    broadcast::for_each_offset(&shape, [&strides[0], &strides[1], &strides[2]], |[c, i, j]| {
        places.push(if condition[c] { i } else { a.len() + j });
    });
    Ok(vec![index::pick(&[a, b], shape, &places)?])
}

/// Each operand gets the gradient where it was chosen.
fn where_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (condition, a, b, dy) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.dy()?);
    let mut grads = vec![None; 3];
    if cx.want(1) {
        let da = cx.emit.select_or(condition, dy, 0.0)?;
        grads[1] = Some(cx.emit.sum_to(da, a)?);
    }
    if cx.want(2) {
        let zero = cx.emit.scalar(0.0, dy)?;
        let db = cx.emit.select(condition, zero, dy)?;
        grads[2] = Some(cx.emit.sum_to(db, b)?);
    }
    Ok(grads)
}

fn where_sample(draw: &mut Draw) -> Sample {
    let shapes: [[&[usize]; 3]; 4] = [[&[2, 3]; 3], [&[2, 1], &[3], &[2, 3]], [&[3], &[], &[2, 1]], [&[], &[2], &[2]]];
    let [c, a, b] = *draw.pick(&shapes);
    let inputs = vec![random_bools(draw, c), draw.tensor(a, -2.0, 2.0), draw.tensor(b, -2.0, 2.0)];
    Sample::new(Operator::onnx("Where", Attributes::new()), inputs)
}

// ---- Clip -----------------------------------------------------------------------------------------------------------

fn infer_clip(cx: &mut InferCx) -> Result<()> {
    infer_unary(cx)?;
    let dtype = cx.dtype(0)?;
    for slot in [1, 2].into_iter().filter(|&slot| cx.fact(slot).is_some()).collect::<Vec<_>>() {
        let bound = cx.dtype(slot)?;
        ensure!(bound == dtype, "it clips {dtype} to a bound of type {bound}");
    }
    let bound = |slot: usize| if cx.fact(slot).is_some() { cx.ints(slot)?.first().copied() } else { None };
    let (low, high) = (bound(1), bound(2));
    let (low_given, high_given) = (cx.fact(1).is_some(), cx.fact(2).is_some());
    if let Some(dims) = cx.dims(0).filter(|_| dtype.is_int()) {
        let clipped = dims.iter().map(|d| match d {
            Dim::Known(x) if low.is_some() == low_given && high.is_some() == high_given => {
                Dim::Known((*x).max(low.unwrap_or(i64::MIN)).min(high.unwrap_or(i64::MAX)))
            }
            size if size.is_size() && low_given && low.is_some_and(|low| low <= 0) && !high_given => size.clone(),
            _ => Dim::Unknown,
        });
        let clipped = clipped.collect();
        cx.set_dims(0, clipped);
    }
    Ok(())
}

fn clip(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let Some(Some(x)) = inputs.first() else { bail!("it needs an input") };
    let bound = |slot: usize| inputs.get(slot).copied().flatten();
    let mut out = (*x).clone();
    if let Some(low) = bound(1) {
        let (low, whole) = (float(low)?, whole(low)?);
        out = map_number(&out, |x| if x < low { low } else { x }, |x| x.max(whole))?;
    }
    if let Some(high) = bound(2) {
        let (high, whole) = (float(high)?, whole(high)?);
        out = map_number(&out, |x| if x > high { high } else { x }, |x| x.min(whole))?;
    }
    Ok(vec![out])
}

/// A bound as a float (0 for integers, where it is not used).
fn float(bound: &Tensor) -> Result<f64> {
    ensure!(bound.len() == 1, "a bound has shape {:?}, expected one number", bound.shape());
    Ok(bound.to_f64s()?.first().copied().unwrap_or_default())
}

/// A bound as an integer (0 for floats, where it is not used).
fn whole(bound: &Tensor) -> Result<i128> {
    use num_traits::AsPrimitive;
    let first =
        dispatch!(bound.dtype(), int T => bound.as_slice::<T>()?.first().map(|&x| -> i128 { x.as_() }), else None);
    Ok(first.unwrap_or_default())
}

/// `dX = dY` strictly between the bounds, by the result: it is wanted afterwards anyway, so that the operand need not be
/// kept. If a bound has a gradient too, it gets that of the elements it replaced, and dX that of all others.
fn clip_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy) = (cx.input(0)?, cx.dy()?);
    let (low, high) = (cx.optional_input(1), cx.optional_input(2));
    let mut grads = vec![None; 3];
    if !cx.want(1) && !cx.want(2) {
        let y = cx.output(0);
        let mut rest = dy;
        for (comparison, bound) in [("Greater", low), ("Less", high)] {
            let Some(bound) = bound else { continue };
            let inside = cx.emit.op(comparison, &[y, bound], Attributes::new())?;
            rest = cx.emit.select_or(inside, rest, 0.0)?;
        }
        grads[0] = Some(rest);
        return Ok(grads);
    }
    let raised = low.map(|low| cx.emit.op("Less", &[x, low], Attributes::new())).transpose()?;
    // Where the bounds cross, the upper one has the last word.
    let floored = match low {
        Some(low) => cx.emit.op("Max", &[x, low], Attributes::new())?,
        None => x,
    };
    let lowered = high.map(|high| cx.emit.op("Greater", &[floored, high], Attributes::new())).transpose()?;
    let rest = match lowered {
        Some(lowered) => {
            let zero = cx.emit.scalar(0.0, dy)?;
            cx.emit.select(lowered, zero, dy)?
        }
        None => dy,
    };
    if cx.want(0) {
        grads[0] = Some(match raised {
            Some(raised) => {
                let zero = cx.emit.scalar(0.0, dy)?;
                cx.emit.select(raised, zero, rest)?
            }
            None => rest,
        });
    }
    if let (true, Some(raised), Some(low)) = (cx.want(1), raised, low) {
        let part = cx.emit.select_or(raised, rest, 0.0)?;
        grads[1] = Some(cx.emit.sum_to(part, low)?);
    }
    if let (true, Some(lowered), Some(high)) = (cx.want(2), lowered, high) {
        let part = cx.emit.select_or(lowered, dy, 0.0)?;
        grads[2] = Some(cx.emit.sum_to(part, high)?);
    }
    Ok(grads)
}

/// Before opset 11 the bounds were attributes.
fn bounds_to_inputs(graph: &mut Graph, id: NodeId) -> Result<()> {
    upgrade::float_to_input(graph, id, "min", 1)?;
    upgrade::float_to_input(graph, id, "max", 2)
}

fn clip_sample(draw: &mut Draw) -> Sample {
    let x = draw.tensor(&[2, 4], -2.0, 2.0);
    let (low, high) = (draw.tensor(&[], -1.5, 0.0), draw.tensor(&[], 0.0, 1.5));
    let mut sample = Sample::new(Operator::onnx("Clip", Attributes::new()), vec![x, low, high]);
    match draw.int(0, 3) {
        0 => sample.inputs[1] = None,
        1 => sample.inputs.truncate(2),
        _ => {}
    }
    sample.check = sample.inputs.iter().map(Option::is_some).collect();
    sample
}
