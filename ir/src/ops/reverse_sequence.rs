//! `ReverseSequence`: in each batch entry the first `sequence_lens[b]` steps of the time axis in reverse order.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ReverseSequence.html>. It is its own inverse, and so its own gradient.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "ReverseSequence",
    inputs: (2, 2),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// The batch axis and the time axis: 0 and 1 in one order or the other.
fn axes(op: &Operator) -> Result<(usize, usize)> {
    let (batch, time) = (op.attrs.int("batch_axis", 1)?, op.attrs.int("time_axis", 0)?);
    ensure!(matches!((batch, time), (0, 1) | (1, 0)), "batch_axis is {batch} and time_axis {time}, expected 0 and 1");
    Ok((batch as usize, time as usize))
}

fn infer(cx: &mut InferCx) -> Result<()> {
    axes(cx.op)?;
    if let Some(shape) = cx.shape(0) {
        ensure!(shape.len() >= 2, "its input has rank {}, expected at least 2", shape.len());
    }
    super::same_as_first(cx)
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, lens) = (index::input(inputs, 0)?, index::shape_input(inputs, 1)?);
    let (batch, time) = axes(cx.op)?;
    ensure!(x.rank() >= 2, "its input has rank {}, expected at least 2", x.rank());
    let (batches, steps) = (x.shape()[batch], x.shape()[time]);
    ensure!(lens.len() == batches, "{} lengths for {batches} batch entries", lens.len());
    ensure!(lens.iter().all(|len| *len <= steps), "lengths {lens:?} beyond the {steps} steps of the time axis");
    if x.is_empty() {
        return Ok(vec![x.clone()]);
    }
    let strides = index::strides(x.shape());
    let source = |b: usize, t: usize| {
        let t = if t < lens[b] { lens[b] - 1 - t } else { t };
        b * strides[batch] + t * strides[time]
    };
    let pairs =
        (0..x.shape()[0]).flat_map(|i| (0..x.shape()[1]).map(move |j| if batch == 0 { (i, j) } else { (j, i) }));
    let bases: Vec<usize> = pairs.map(|(b, t)| source(b, t)).collect();
    let inner = index::count(&x.shape()[2..]);
    Ok(vec![index::pick(&[x], x.shape().to_vec(), &index::outer_sum(&[bases, index::steps(inner, 1)]))?])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (lens, dy, op) = (cx.input(1)?, cx.dy()?, cx.op());
    Ok(vec![Some(cx.emit.op("ReverseSequence", &[dy, lens], op.attrs)?), None])
}

fn sample(draw: &mut Draw) -> Sample {
    let batch = draw.int(0, 1);
    let attrs = Attributes::new().with("batch_axis", batch).with("time_axis", 1 - batch);
    let shape = if batch == 0 { [3, 4, 2] } else { [4, 3, 2] };
    let inputs = vec![draw.tensor(&shape, -1.0, 1.0), draw.ints(&[3], 1, 4)];
    Sample::new(Operator::onnx("ReverseSequence", attrs), inputs)
}
