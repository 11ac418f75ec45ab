//! Elementwise operators: one row each.
//!
//! A row gives the scalar function and the derivative as an emitted formula. Operators of two inputs broadcast.

use super::{Gradient, InferCx, OpDef, Sample, broadcast};
use crate::error::{Error, Result};
use crate::graph::Operator;
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, dispatch, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Add",
    eval: Some(|_, inputs| arithmetic(inputs, Arithmetic::Add)),
    grad: Gradient::Emit(|cx| {
        let dy = cx.dy()?;
        Ok(vec![Some(cx.emit.sum_to(dy, cx.input(0)?)?), Some(cx.emit.sum_to(dy, cx.input(1)?)?)])
    }),
    sample: Some(|draw| binary_sample(draw, "Add")),
    ..BINARY
}];

/// What the rows of two broadcast inputs of one type share.
const BINARY: OpDef = OpDef { inputs: (2, 2), infer: infer_binary, flops: |cx| cx.output_len(0), ..OpDef::DEFAULT };

fn infer_binary(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype == cx.dtype(1)?, "its operands are {dtype} and {}", cx.dtype(1)?);
    let shape: Option<Vec<Dim>> = match (cx.shape(0), cx.shape(1)) {
        (Some(a), Some(b)) => Some(broadcast::dims(&[a, b])?),
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

enum Arithmetic {
    Add,
}

fn arithmetic(inputs: &[Option<&Tensor>], op: Arithmetic) -> Result<Vec<Tensor>> {
    let [Some(a), Some(b)] = inputs else { bail!("two inputs are needed") };
    let unsupported = || Error::msg(format!("no arithmetic on {}", a.dtype()));
    let out = dispatch!(a.dtype(), number T => match op {
        Arithmetic::Add => broadcast::binary::<T, T>(a, b, |x, y| x + y)?,
    }, else return Err(unsupported()));
    Ok(vec![out])
}

fn binary_sample(draw: &mut Draw, name: &str) -> Sample {
    let shapes: [(&[usize], &[usize]); 4] = [(&[2, 3], &[2, 3]), (&[2, 3], &[3]), (&[2, 1], &[1, 3]), (&[], &[4])];
    let (a, b) = *draw.pick(&shapes);
    let inputs = vec![draw.tensor(a, -2.0, 2.0), draw.tensor(b, -2.0, 2.0)];
    Sample::new(Operator::onnx(name, Attributes::new()), inputs)
}
