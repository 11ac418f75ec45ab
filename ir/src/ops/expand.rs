//! `Expand`: a tensor broadcast to a shape (an axis of length 1 in the shape keeps the tensor's own); and
//! `ai.sartor::SumTo(x, shape)`, the gradient of broadcasting: `x` summed over the axes along which a tensor of shape
//! `shape` is stretched to the shape of `x`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Expand.html>. `SumTo` is for shapes that are known only when the
//! program runs; where they are known, gradients use `ReduceSum`.

use super::{GradCx, Gradient, InferCx, OpDef, Sample, broadcast, index};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, SARTOR_DOMAIN, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Expand",
        inputs: (2, 2),
        infer: infer_expand,
        eval: Some(|_, inputs| Ok(vec![expanded(index::input(inputs, 0)?, &index::shape_input(inputs, 1)?)?])),
        grad: Gradient::Emit(grad_expand),
        sample: Some(sample_expand),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: SARTOR_DOMAIN,
        name: "SumTo",
        inputs: (2, 2),
        infer: infer_sum_to,
        eval: Some(|_, inputs| Ok(vec![sum_to(index::input(inputs, 0)?, &index::shape_input(inputs, 1)?)?])),
        decompose: Some(super::written_out::sum_to),
        grad: Gradient::Emit(grad_sum_to),
        flops: |cx| cx.input_len(0),
        sample: Some(sample_sum_to),
        ..OpDef::DEFAULT
    },
];

fn infer_expand(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape = match (cx.shape(0), index::elements(cx, 1)) {
        (Some(from), Some(target)) => Some(broadcast::dims(&[from, &target])?),
        _ => None,
    };
    let length = match shape.as_deref() {
        Some([len]) => len.known(),
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    if let (Some(len), Some([one])) = (length, cx.dims(0)) {
        if (0..=super::MAX_FACT_DIMS as i64).contains(&len) {
            let repeated = vec![one.clone(); len as usize];
            cx.set_dims(0, repeated);
        }
    }
    Ok(())
}

/// A tensor of any type under the common shape of its own and `target`.
pub fn expanded(x: &Tensor, target: &[usize]) -> Result<Tensor> {
    let shape = broadcast::shapes(&[x.shape(), target])?;
    if shape.contains(&0) {
        return Tensor::zeros(x.dtype(), shape);
    }
    index::room(&shape)?;
    let strides = broadcast::broadcast_strides(x.shape(), &shape);
    let tables: Vec<Vec<usize>> = shape.iter().zip(strides).map(|(&len, stride)| index::steps(len, stride)).collect();
    index::pick(&[x], shape, &index::outer_sum(&tables))
}

fn grad_expand(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy) = (cx.input(0)?, cx.dy()?);
    Ok(vec![Some(cx.emit.sum_to(dy, x)?), None])
}

fn sample_expand(draw: &mut Draw) -> Sample {
    let cases: [(&[usize], &[i64]); 5] =
        [(&[3, 1], &[2, 1, 4]), (&[1], &[3]), (&[], &[2, 2]), (&[2, 3], &[1]), (&[2, 1, 2], &[1, 3, 1])];
    let (from, target) = *draw.pick(&cases);
    let inputs = vec![draw.tensor(from, -1.0, 1.0), Tensor::from_i64s(target)];
    Sample::new(Operator::onnx("Expand", Attributes::new()), inputs)
}

fn infer_sum_to(cx: &mut InferCx) -> Result<()> {
    let (dtype, shape) = (cx.dtype(0)?, index::elements(cx, 1));
    if let (Some(from), Some(to)) = (cx.shape(0), &shape) {
        let stretched = broadcast::dims(&[from, to])?;
        let fits = stretched.iter().zip(from).all(|(s, f)| s.known().zip(f.known()).is_none_or(|(s, f)| s == f));
        ensure!(stretched.len() == from.len() && fits, "the target does not broadcast to the input");
    }
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn sum_to(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let common = broadcast::shapes(&[x.shape(), shape])?;
    ensure!(common == x.shape(), "shape {shape:?} does not broadcast to {:?}", x.shape());
    if x.is_empty() {
        return Tensor::zeros(x.dtype(), shape);
    }
    let strides = broadcast::broadcast_strides(shape, &common);
    let tables: Vec<Vec<usize>> = common.iter().zip(strides).map(|(&len, stride)| index::steps(len, stride)).collect();
    index::accumulate(x, shape, &index::outer_sum(&tables))
}

fn grad_sum_to(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy) = (cx.input(0)?, cx.dy()?);
    Ok(vec![Some(cx.emit.expand_like(dy, x)?), None])
}

fn sample_sum_to(draw: &mut Draw) -> Sample {
    let targets: [&[i64]; 5] = [&[2, 3, 4], &[4], &[3, 1], &[], &[2, 1, 4]];
    let inputs = vec![draw.tensor(&[2, 3, 4], -1.0, 1.0), Tensor::from_i64s(*draw.pick(&targets))];
    Sample::new(Operator::sartor("SumTo", Attributes::new()), inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::probe::Probe;

    #[test]
    fn masks_expand() {
        let mut p = Probe::new();
        let mask = p.input("mask", DType::I64, "batch,1,1,seq");
        let x = p.input("x", DType::F32, "batch,seq,384");
        let (b, s) = (
            p.op("Shape", &[x], Attributes::new().with("end", 1i64)),
            p.op("Shape", &[x], Attributes::new().with("start", 1i64).with("end", 2i64)),
        );
        let one = p.ints(&[1]);
        let target = p.op("Concat", &[b, one, s, s], Attributes::new().with("axis", 0i64));
        let y = p.op("Expand", &[mask, target], Attributes::new());
        assert_eq!(p.show(y), "int64[batch, 1, seq, seq]");
        let three = p.ints(&[3]);
        let repeated = p.op("Expand", &[s, three], Attributes::new());
        assert_eq!(p.show(repeated), "int64[3] = seq, seq, seq");
    }

    #[test]
    fn sums_undo_broadcasting() {
        let x = Tensor::from_vec([2, 2], vec![1.0f32, 2.0, 3.0, 4.0]);
        assert_eq!(sum_to(&x, &[2, 1]).unwrap(), Tensor::from_vec([2, 1], vec![3.0f32, 7.0]));
        assert_eq!(sum_to(&x, &[]).unwrap(), Tensor::scalar(10.0f32));
        assert!(sum_to(&x, &[3]).is_err());
    }
}
