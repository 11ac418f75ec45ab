//! `CumSum`: sums of the entries of an axis up to each one, without it if `exclusive`, from the end if `reverse`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__CumSum.html>. The gradient is the same from the other end.

use super::arithmetic::Arithmetic;
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis};
use crate::error::{Error, Result};
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Tensor, dispatch, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "CumSum",
    inputs: (2, 2),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    flops: |cx| cx.output_len(0),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn infer(cx: &mut InferCx) -> Result<()> {
    if let (Some(shape), Some([axis])) = (cx.shape(0), cx.ints(1).as_deref()) {
        normal_axis(*axis, shape.len())?;
    }
    super::same_as_first(cx)
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, axis) = (index::input(inputs, 0)?, index::input(inputs, 1)?);
    ensure!(axis.len() == 1, "its axis has shape {:?}, expected one element", axis.shape());
    let axis = normal_axis(axis.to_i64s()?[0], x.rank())?;
    let (exclusive, reverse) = (cx.op.attrs.flag("exclusive", false)?, cx.op.attrs.flag("reverse", false)?);
    let unsupported = || Error::msg(format!("no sums of {}", x.dtype()));
    Ok(vec![match x.dtype() {
        // Half precision accumulates in single precision, as kernels do.
        half @ (DType::F16 | DType::BF16) => {
            running::<f32>(&x.cast(DType::F32)?, axis, exclusive, reverse)?.cast(half)?
        }
        dtype => {
            dispatch!(dtype, number T => running::<T>(x, axis, exclusive, reverse)?, else return Err(unsupported()))
        }
    }])
}

fn running<T: Arithmetic>(x: &Tensor, axis: usize, exclusive: bool, reverse: bool) -> Result<Tensor> {
    let (outer, len, inner) = index::lanes(x.shape(), axis);
    let data = x.as_slice::<T>()?;
    let mut out = vec![T::default(); data.len()];
    for lane in 0..outer * inner {
        let mut sum = T::default();
        for step in 0..len {
            let i = if reverse { len - 1 - step } else { step };
            let at = (lane / inner * len + i) * inner + lane % inner;
            let with = sum.plus(data[at]);
            out[at] = if exclusive { sum } else { with };
            sum = with;
        }
    }
    Ok(Tensor::from_vec(x.shape(), out))
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (axis, dy, attrs) = (cx.input(1)?, cx.dy()?, cx.op().attrs);
    let reverse = !attrs.flag("reverse", false)?;
    Ok(vec![Some(cx.emit.op("CumSum", &[dy, axis], attrs.with("reverse", reverse))?), None])
}

fn sample(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("exclusive", draw.int(0, 1)).with("reverse", draw.int(0, 1));
    let inputs = vec![draw.tensor(&[2, 3, 2], -1.0, 1.0), Tensor::scalar(draw.int(-3, 2))];
    Sample::new(Operator::onnx("CumSum", attrs), inputs)
}
