//! `Trilu`: the upper (or lower) triangle of each matrix; the rest is zero. `k` shifts the diagonal to the right.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Trilu.html>.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Trilu",
    inputs: (1, 2),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn infer(cx: &mut InferCx) -> Result<()> {
    cx.op.attrs.flag("upper", true)?;
    if let Some(shape) = cx.shape(0) {
        ensure!(shape.len() >= 2, "its input has rank {}, expected matrices", shape.len());
    }
    super::same_as_first(cx)
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let [.., rows, cols] = *x.shape() else { bail!("its input has rank {}, expected matrices", x.rank()) };
    let diagonal = index::ints(inputs, 1)?.and_then(|k| k.first().copied()).unwrap_or(0);
    let upper = cx.op.attrs.flag("upper", true)?;
    let keep = |row: usize, col: usize| {
        let shift = col as i128 - row as i128 - i128::from(diagonal);
        if upper { shift >= 0 } else { shift <= 0 }
    };
    let place = |at: usize| if keep(at / cols % rows, at % cols) { at } else { x.len() };
    let places: Vec<usize> = (0..x.len()).map(place).collect();
    Ok(vec![index::pick(&[x, &Tensor::zeros(x.dtype(), [])?], x.shape().to_vec(), &places)?])
}

/// The same triangle of `dy`.
fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let mut inputs = vec![Some(cx.dy()?)];
    inputs.extend(cx.optional_input(1).map(Some));
    let op = cx.op();
    let mut grads = vec![None; cx.wants.len()];
    grads[0] = cx.emit.node(op, &inputs, 1)?.first().copied();
    Ok(grads)
}

fn sample(draw: &mut Draw) -> Sample {
    let mut inputs = vec![draw.tensor(&[2, 3, 4], -1.0, 1.0)];
    if draw.chance(0.7) {
        inputs.push(Tensor::scalar(draw.int(-3, 4)));
    }
    Sample::new(Operator::onnx("Trilu", Attributes::new().with("upper", draw.int(0, 1))), inputs)
}
