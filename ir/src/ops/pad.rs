//! `Pad`: entries added before and after each axis (negative: removed), by a constant, the nearest entry (`edge`),
//! the mirror image without (`reflect`), or the other end (`wrap`); and, for the last three, its gradient
//! `ai.sartor::PadGrad(dy, shape, pads, axes)`, which adds `dy` to zeros of shape `shape`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Pad.html>. `pads` lists all befores, then all afters. The gradient of
//! constant padding is padding by the negative.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, upgrade};
use crate::error::{Error, Result};
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, SARTOR_DOMAIN, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Pad",
        inputs: (2, 4),
        infer,
        eval: Some(eval),
        grad: Gradient::Emit(grad),
        upgrades: &[
            (2, |graph, id| {
                if let Some(pads) = upgrade::take_attr(graph, id, "paddings") {
                    upgrade::edit_attrs(graph, id, |attrs| attrs.set("pads", pads));
                }
                Ok(())
            }),
            (11, |graph, id| {
                upgrade::ints_to_input(graph, id, "pads", 1)?;
                upgrade::float_to_input(graph, id, "value", 2)
            }),
        ],
        sample: Some(sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: SARTOR_DOMAIN,
        name: "PadGrad",
        inputs: (3, 4),
        infer: |cx| {
            let (dtype, shape) = (cx.dtype(0)?, index::elements(cx, 1));
            cx.set_tensor(0, dtype, shape);
            Ok(())
        },
        eval: Some(eval_grad),
        decompose: Some(super::written_out::pad_grad),
        grad: Gradient::Emit(grad_of_grad),
        flops: |cx| cx.input_len(0),
        sample: Some(sample_grad),
        ..OpDef::DEFAULT
    },
];

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Constant,
    Edge,
    Reflect,
    Wrap,
}

fn mode(op: &Operator) -> Result<Mode> {
    Ok(match op.attrs.str("mode", "constant")? {
        "constant" => Mode::Constant,
        "edge" => Mode::Edge,
        "reflect" => Mode::Reflect,
        "wrap" => Mode::Wrap,
        other => bail!("attribute `mode` is \"{other}\", expected constant, edge, reflect or wrap"),
    })
}

fn infer(cx: &mut InferCx) -> Result<()> {
    mode(cx.op)?;
    let dtype = cx.dtype(0)?;
    let shape = cx.shape(0).map(|shape| padded_dims(cx, shape)).transpose()?;
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn padded_dims(cx: &InferCx, shape: &[Dim]) -> Result<Vec<Dim>> {
    let axes = match cx.fact(3) {
        Some(_) => index::axes_input(cx, 3, shape.len())?,
        None => Some((0..shape.len()).collect()),
    };
    let (Some(pads), Some(axes)) = (index::elements(cx, 1), axes) else {
        return Ok(vec![Dim::Unknown; shape.len()]);
    };
    check_pads(pads.len(), axes.len())?;
    let mut out = shape.to_vec();
    for (i, &axis) in axes.iter().enumerate() {
        out[axis] = shape[axis].add(&pads[i]).add(&pads[axes.len() + i]);
        ensure!(out[axis].known().is_none_or(|n| n >= 0), "axis {axis} becomes {} long", out[axis]);
    }
    Ok(out)
}

fn check_pads(pads: usize, axes: usize) -> Result<()> {
    ensure!(pads == 2 * axes, "{pads} pads for {axes} axes, expected twice as many");
    Ok(())
}

/// Where each entry of the padded axis comes from; [`index::OUTSIDE`] for those that are new in constant mode.
fn sources(mode: Mode, len: usize, before: i64, after: i64) -> Result<Vec<usize>> {
    let total = (len as i64).checked_add(before).and_then(|n| n.checked_add(after));
    let Some(total @ 0..) = total else {
        bail!("an axis of length {len} cannot be padded by {before} and {after}");
    };
    ensure!(mode == Mode::Constant || len > 0 || total == 0, "an empty axis has no entries to repeat");
    let signed = len as i64;
    let source = |i: i64| match (i - before, mode) {
        (at, _) if (0..signed).contains(&at) => at as usize,
        (_, Mode::Constant) => index::OUTSIDE,
        (at, Mode::Edge) => at.clamp(0, signed - 1) as usize,
        (at, Mode::Wrap) => at.rem_euclid(signed) as usize,
        (_, Mode::Reflect) if signed == 1 => 0,
        (at, Mode::Reflect) => {
            let period = 2 * (signed - 1);
            let at = at.rem_euclid(period);
            at.min(period - at) as usize
        }
    };
    Ok((0..total).map(source).collect())
}

/// Where each element of the result comes from, and its shape.
fn places(op: &Operator, shape: &[usize], pads: &[i64], axes: Option<Vec<i64>>) -> Result<(Vec<usize>, Vec<usize>)> {
    let axes = axes.unwrap_or_else(|| (0..shape.len() as i64).collect());
    let axes = index::normal_axes(&axes, shape.len())?;
    check_pads(pads.len(), axes.len())?;
    let mut padded = shape.to_vec();
    for (i, &axis) in axes.iter().enumerate() {
        let (before, after) = (pads[i], pads[axes.len() + i]);
        let total = (shape[axis] as i64).checked_add(before).and_then(|n| n.checked_add(after));
        let total = total.and_then(|n| usize::try_from(n).ok());
        padded[axis] = total.ok_or_else(|| {
            Error::msg(format!("axis {axis} of length {} cannot be padded by {before} and {after}", shape[axis]))
        })?;
    }
    if padded.contains(&0) {
        return Ok((Vec::new(), padded));
    }
    index::room(&padded)?;
    let mut tables: Vec<Vec<usize>> = padded.iter().map(|&len| (0..len).collect()).collect();
    for (i, &axis) in axes.iter().enumerate() {
        tables[axis] = sources(mode(op)?, shape[axis], pads[i], pads[axes.len() + i])?;
    }
    for (table, stride) in tables.iter_mut().zip(index::strides(shape)) {
        table.iter_mut().filter(|at| **at != index::OUTSIDE).for_each(|at| *at *= stride);
    }
    Ok((index::outer_sum(&tables), padded))
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, pads) = (index::input(inputs, 0)?, index::input(inputs, 1)?.to_i64s()?);
    let (mut places, shape) = places(cx.op, x.shape(), &pads, index::ints(inputs, 3)?)?;
    let fill = match inputs.get(2).copied().flatten() {
        Some(fill) => fill.reshaped([])?,
        None => Tensor::zeros(x.dtype(), [])?,
    };
    places.iter_mut().filter(|at| **at == index::OUTSIDE).for_each(|at| *at = x.len());
    Ok(vec![index::pick(&[x, &fill], shape, &places)?])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy, axes, op) = (cx.input(0)?, cx.dy()?, cx.optional_input(3), cx.op());
    let mut grads = vec![None; cx.wants.len()];
    if mode(&op)? != Mode::Constant {
        let inputs = [Some(dy), Some(cx.emit.shape_of(x)?), Some(cx.input(1)?), axes];
        let dx =
            cx.emit.node(Operator::sartor("PadGrad", op.attrs), &inputs[..if axes.is_some() { 4 } else { 3 }], 1)?[0];
        cx.emit.type_like(dx, x);
        grads[0] = Some(dx);
        return Ok(grads);
    }
    let back = negated(cx)?;
    let inputs = [Some(dy), Some(back), None, axes];
    let dx = cx.emit.node(Operator::onnx("Pad", op.attrs), &inputs[..if axes.is_some() { 4 } else { 2 }], 1)?[0];
    cx.emit.type_like(dx, x);
    grads[0] = Some(dx);
    if let (true, Some(fill)) = (cx.want(2), cx.optional_input(2)) {
        // What does not flow into the data flows into the constant.
        let (all, kept) = (total(cx, dy)?, total(cx, dx)?);
        let rest = cx.emit.sub(all, kept)?;
        grads[2] = Some(cx.emit.reshape_like(rest, fill)?);
    }
    Ok(grads)
}

/// The pads with the other sign.
fn negated(cx: &mut GradCx) -> Result<Value> {
    let pads = cx.input(1)?;
    match cx.emit.graph.constant(pads).map(|t| t.to_i64s()) {
        Some(pads) => {
            let back: Vec<i64> = pads?.into_iter().map(i64::wrapping_neg).collect();
            Ok(cx.emit.ints(&back))
        }
        None => cx.emit.unary("Neg", pads),
    }
}

fn total(cx: &mut GradCx, value: Value) -> Result<Value> {
    let axes: Vec<usize> = (0..cx.emit.rank(value)?).collect();
    cx.emit.reduce_sum(value, &axes, false)
}

fn eval_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, shape) = (index::input(inputs, 0)?, index::shape_input(inputs, 1)?);
    let pads = index::input(inputs, 2)?.to_i64s()?;
    let (places, _) = places(cx.op, &shape, &pads, index::ints(inputs, 3)?)?;
    Ok(vec![index::accumulate(dy, &shape, &places)?])
}

fn grad_of_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (dy, axes) = (cx.dy()?, cx.optional_input(3));
    let inputs = [Some(dy), Some(cx.input(2)?), None, axes];
    let op = Operator::onnx("Pad", cx.op().attrs);
    let mut grads = vec![None; cx.wants.len()];
    grads[0] = cx.emit.node(op, &inputs[..if axes.is_some() { 4 } else { 2 }], 1)?.first().copied();
    Ok(grads)
}

/// Attributes, pads and axes for the shape [3, 4].
fn case(draw: &mut Draw) -> (Attributes, Vec<i64>, Option<Vec<i64>>) {
    let mode = *draw.pick(&["constant", "edge", "reflect", "wrap"]);
    let attrs = Attributes::new().with("mode", mode);
    match draw.int(0, 2) {
        0 => (attrs, vec![1, 0, 2, 3], None),
        1 => (attrs, vec![2, -1], Some(vec![-1])),
        _ => (attrs, vec![0, 1, 2, -1], Some(vec![1, 0])),
    }
}

fn sample(draw: &mut Draw) -> Sample {
    let (attrs, pads, axes) = case(draw);
    let x = draw.tensor(&[3, 4], -1.0, 1.0);
    let constant = attrs.str("mode", "").is_ok_and(|m| m == "constant");
    let fill = constant.then(|| draw.tensor(&[], -1.0, 1.0));
    let check = vec![true, false, fill.is_some(), false];
    let inputs = vec![Some(x), Some(Tensor::from_i64s(&pads)), fill, axes.map(|a| Tensor::from_i64s(&a))];
    Sample { op: Operator::onnx("Pad", attrs), inputs, check, outputs: 1 }
}

fn sample_grad(draw: &mut Draw) -> Sample {
    let (attrs, pads, axes) = case(draw);
    let op = Operator::sartor("PadGrad", attrs);
    let shape = places(&op, &[3, 4], &pads, axes.clone()).map(|(_, shape)| shape).unwrap_or_default();
    let mut inputs = vec![draw.tensor(&shape, -1.0, 1.0), Tensor::from_i64s(&[3, 4]), Tensor::from_i64s(&pads)];
    inputs.extend(axes.map(|a| Tensor::from_i64s(&a)));
    Sample::new(op, inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::probe::Probe;

    #[test]
    fn lengths_grow() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,3,h,224");
        let pads = p.ints(&[0, 0, 1, 1, 0, 0, 1, 2]);
        let y = p.op("Pad", &[x, pads], Attributes::new());
        assert_eq!(p.show(y), "float[batch, 3, h + 2, 227]");
    }

    #[test]
    fn modes() {
        let of = |mode| sources(mode, 3, 3, 3).unwrap();
        assert_eq!(of(Mode::Edge), [0, 0, 0, 0, 1, 2, 2, 2, 2]);
        assert_eq!(of(Mode::Reflect), [1, 2, 1, 0, 1, 2, 1, 0, 1]);
        assert_eq!(of(Mode::Wrap), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        assert_eq!(sources(Mode::Constant, 3, -1, 1).unwrap(), [1, 2, index::OUTSIDE]);
        assert!(sources(Mode::Edge, 1, -2, 0).is_err());
    }
}
