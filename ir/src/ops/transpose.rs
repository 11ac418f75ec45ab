//! `Transpose`: axis `i` of the result is axis `perm[i]` of the input; without `perm` the axes are reversed.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Transpose.html>.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Transpose",
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// The permutation for a rank, checked.
pub fn permutation(op: &Operator, rank: usize) -> Result<Vec<usize>> {
    let Some(perm) = op.attrs.get_ints("perm")? else { return Ok((0..rank).rev().collect()) };
    ensure!(perm.len() == rank, "perm {perm:?} is for rank {}, the input has rank {rank}", perm.len());
    index::normal_axes(perm, rank)
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape = match (cx.shape(0), cx.op.attrs.get_ints("perm")?) {
        (Some(shape), _) => Some(permutation(cx.op, shape.len())?.into_iter().map(|p| shape[p].clone()).collect()),
        (None, Some(perm)) => Some(vec![crate::Dim::Unknown; perm.len()]),
        (None, None) => None,
    };
    cx.set_tensor(0, dtype, shape);
    if let Some(dims) = cx.dims(0).map(<[_]>::to_vec) {
        cx.set_dims(0, dims);
    }
    Ok(())
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let perm = permutation(cx.op, x.rank())?;
    Ok(vec![permuted(x, &perm)?])
}

/// A tensor with its axes permuted.
pub fn permuted(x: &Tensor, perm: &[usize]) -> Result<Tensor> {
    let shape: Vec<usize> = perm.iter().map(|&p| x.shape()[p]).collect();
    if x.is_empty() {
        return Tensor::zeros(x.dtype(), shape);
    }
    let strides = index::strides(x.shape());
    let tables: Vec<Vec<usize>> = perm.iter().map(|&p| index::steps(x.shape()[p], strides[p])).collect();
    index::pick(&[x], shape, &index::outer_sum(&tables))
}

/// The inverse permutation of `dy`.
fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy) = (cx.input(0)?, cx.dy()?);
    let perm = permutation(&cx.op(), cx.emit.rank(x)?)?;
    let mut inverse = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
    Ok(vec![Some(cx.emit.transpose(dy, &inverse)?)])
}

fn sample(draw: &mut Draw) -> Sample {
    let perms: [&[i64]; 4] = [&[0, 2, 1], &[1, 2, 0], &[2, 0, 1], &[0, 1, 2]];
    let attrs = if draw.chance(0.2) { Attributes::new() } else { Attributes::new().with("perm", *draw.pick(&perms)) };
    Sample::new(Operator::onnx("Transpose", attrs), vec![draw.tensor(&[2, 3, 4], -1.0, 1.0)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::probe::Probe;

    #[test]
    fn axes_move() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq,12,32");
        let y = p.op("Transpose", &[x], Attributes::new().with("perm", [0, 2, 3, 1]));
        let z = p.op("Transpose", &[x], Attributes::new());
        assert_eq!(p.show(y), "float[batch, 12, 32, seq]");
        assert_eq!(p.show(z), "float[32, 12, seq, batch]");
    }

    #[test]
    fn elements_move() {
        let x = Tensor::from_vec([2, 3], vec![1i8, 2, 3, 4, 5, 6]);
        assert_eq!(permuted(&x, &[1, 0]).unwrap().to_vec::<i8>().unwrap(), [1, 4, 2, 5, 3, 6]);
    }
}
