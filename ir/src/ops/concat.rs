//! `Concat`: tensors joined along `axis`; all other axes are equally long.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Concat.html>. Shape vectors are joined element by element.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis, upgrade};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Concat",
    inputs: (1, usize::MAX),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    upgrades: &[(4, |graph, id| {
        // Before version 4 the axis could be left out, and was 1.
        upgrade::edit_attrs(graph, id, |attrs| {
            if !attrs.has("axis") {
                attrs.set("axis", 1i64);
            }
        });
        Ok(())
    })],
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn axis_attr(op: &Operator) -> Result<i64> {
    match op.attrs.get_int("axis")? {
        Some(axis) => Ok(axis),
        None => bail!("attribute `axis` is missing"),
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (dtype, axis) = (cx.dtype(0)?, axis_attr(cx.op)?);
    let mut shape: Option<Vec<Dim>> = None;
    for slot in 0..cx.input_count() {
        ensure!(cx.dtype(slot)? == dtype, "input 0 is {dtype}, input {slot} is {}", cx.dtype(slot)?);
        if let Some(other) = cx.shape(slot) {
            shape = Some(match shape {
                None => other.to_vec(),
                Some(shape) => joined(&shape, other, normal_axis(axis, other.len())?)?,
            });
        }
    }
    if let Some(shape) = &mut shape {
        let axis = normal_axis(axis, shape.len())?;
        if (0..cx.input_count()).any(|slot| cx.shape(slot).is_none()) {
            shape[axis] = Dim::Unknown;
        }
    }
    let is_vector = shape.as_ref().is_some_and(|s| s.len() == 1);
    cx.set_tensor(0, dtype, shape);
    let elements: Option<Vec<Vec<Dim>>> = (0..cx.input_count()).map(|slot| index::elements(cx, slot)).collect();
    if let (true, Some(elements)) = (is_vector, elements) {
        cx.set_dims(0, elements.concat());
    }
    Ok(())
}

fn joined(a: &[Dim], b: &[Dim], axis: usize) -> Result<Vec<Dim>> {
    ensure!(a.len() == b.len(), "operands of rank {} and {}", a.len(), b.len());
    let pairs = a.iter().zip(b).enumerate();
    let join = |(i, (a, b)): (usize, (&Dim, &Dim))| {
        Ok(match (a, b) {
            _ if i == axis => a.add(b),
            (Dim::Known(x), Dim::Known(y)) if x != y => bail!("axis {i} has length {x} here and {y} there"),
            (Dim::Unknown, _) | (Dim::Symbolic(_), Dim::Known(_)) => b.clone(),
            _ => a.clone(),
        })
    };
    pairs.map(join).collect()
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let axis = normal_axis(axis_attr(cx.op)?, index::input(inputs, 0)?.rank())?;
    let parts: Vec<&Tensor> = (0..inputs.len()).map(|slot| index::input(inputs, slot)).collect::<Result<_>>()?;
    Ok(vec![concat(&parts, axis)?])
}

/// Tensors joined along an axis. `parts` must not be empty.
pub fn concat(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    let mut dims = index::known_dims(parts[0].shape());
    for part in &parts[1..] {
        dims = joined(&dims, &index::known_dims(part.shape()), axis)?;
    }
    let (outer, ..) = index::lanes(parts[0].shape(), axis);
    let mut places = Vec::new();
    for row in 0..outer {
        let mut base = 0;
        for part in parts {
            let chunk = part.len() / outer;
            places.extend(base + row * chunk..base + (row + 1) * chunk);
            base += part.len();
        }
    }
    index::pick(parts, index::static_dims(&dims)?, &places)
}

/// `dy` split at the same places; lengths that are open are taken from the inputs when it runs.
fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (dy, axis) = (cx.dy()?, axis_attr(&cx.op())?);
    let inputs: Vec<Value> = (0..cx.wants.len()).map(|slot| cx.input(slot)).collect::<Result<_>>()?;
    let axis = cx.emit.axis(dy, axis)?;
    let lengths: Vec<_> = inputs.iter().map(|&x| super::emit::Length::Axis(x, axis)).collect();
    let lengths = cx.emit.shape_tensor(&lengths)?;
    let attrs = Attributes::new().with("axis", axis as i64);
    let parts = cx.emit.node(Operator::onnx("Split", attrs), &[Some(dy), Some(lengths)], inputs.len())?;
    for (&part, &x) in parts.iter().zip(&inputs) {
        cx.emit.type_like(part, x);
    }
    Ok(parts.into_iter().map(Some).collect())
}

fn sample(draw: &mut Draw) -> Sample {
    let axis = draw.int(-2, 1);
    let shape = |len: usize| if axis.rem_euclid(2) == 0 { vec![len, 3] } else { vec![3, len] };
    let lengths: Vec<usize> = (0..draw.int(1, 3)).map(|_| draw.int(0, 3) as usize).collect();
    let inputs = lengths.into_iter().map(|len| draw.tensor(&shape(len), -1.0, 1.0)).collect();
    Sample::new(Operator::onnx("Concat", Attributes::new().with("axis", axis)), inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::probe::Probe;

    #[test]
    fn lengths_add() {
        let mut p = Probe::new();
        let a = p.input("a", DType::F32, "batch,8,past,64");
        let b = p.input("b", DType::F32, "?,8,seq,64");
        let c = p.op("Concat", &[a, b], Attributes::new().with("axis", -2i64));
        assert_eq!(p.show(c), "float[batch, 8, past + seq, 64]");
        let wrong = p.input("w", DType::F32, "batch,7,seq,64");
        p.op("Concat", &[a, wrong], Attributes::new().with("axis", 2i64));
        assert!(p.error().ends_with("axis 1 has length 8 here and 7 there"), "{}", p.error());
    }

    #[test]
    fn rows_are_joined() {
        let (a, b) = (Tensor::from_vec([2, 1], vec![1u8, 2]), Tensor::from_vec([2, 2], vec![3u8, 4, 5, 6]));
        assert_eq!(concat(&[&a, &b], 1).unwrap().to_vec::<u8>().unwrap(), [1, 3, 4, 2, 5, 6]);
    }
}
