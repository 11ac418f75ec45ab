//! `CenterCropPad`: axes cut or padded with zeros to a length, evenly at both ends.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__CenterCropPad.html>. It is `Pad` by `⌊d/2⌋` before and the rest behind, with
//! `d` the length asked for less the axis's own, rounded toward zero: the odd entry is cut or padded behind. `shape` has one
//! length for each of `axes`, by default all.

use super::{Emit, Gradient, InferCx, OpDef, Sample, index};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "CenterCropPad",
    inputs: (2, 2),
    infer,
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn named_axes(attrs: &Attributes, rank: usize) -> Result<Vec<usize>> {
    match attrs.get_ints("axes")? {
        Some(axes) => index::normal_axes(axes, rank),
        None => Ok((0..rank).collect()),
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape = match cx.shape(0) {
        Some(shape) => {
            let axes = named_axes(&cx.op.attrs, shape.len())?;
            let lengths = index::elements(cx, 1);
            if let Some(lengths) = &lengths {
                ensure!(lengths.len() == axes.len(), "{} lengths for {} axes", lengths.len(), axes.len());
            }
            let mut out = shape.to_vec();
            for (i, axis) in axes.into_iter().enumerate() {
                out[axis] = lengths.as_ref().map_or(crate::Dim::Unknown, |l| l[i].clone());
            }
            Some(out)
        }
        None => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (Some(x), Some(lengths)) = (emit.graph.input(id, 0), emit.graph.input(id, 1)) else {
        bail!("data or shape is missing");
    };
    let dims = emit.shape(x)?;
    let axes = named_axes(&op.attrs, dims.len())?;
    let own: Option<Vec<i64>> = axes.iter().map(|&a| dims[a].known()).collect();
    let pads = match (own, emit.graph.constant(lengths)) {
        (Some(own), Some(lengths)) => {
            let lengths = lengths.to_i64s()?;
            ensure!(lengths.len() == own.len(), "{} lengths for {} axes", lengths.len(), own.len());
            let differences = || lengths.iter().zip(&own).map(|(to, from)| to - from);
            let pads: Vec<i64> = differences().map(|d| d / 2).chain(differences().map(|d| d - d / 2)).collect();
            emit.ints(&pads)
        }
        _ => open_pads(emit, x, lengths, &axes)?,
    };
    let axes: Vec<i64> = axes.into_iter().map(|a| a as i64).collect();
    let axes = emit.ints(&axes);
    let y = emit.node(Operator::onnx("Pad", Attributes::new()), &[Some(x), Some(pads), None, Some(axes)], 1)?[0];
    emit.type_like(y, Value { node: id, slot: 0 });
    Ok(vec![y])
}

/// The pads where they are known only when the program runs.
fn open_pads(emit: &mut Emit, x: Value, lengths: Value, axes: &[usize]) -> Result<Value> {
    let shape = emit.op("Shape", &[x], Attributes::new())?;
    let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
    let axes = emit.ints(&axes);
    let own = emit.op("Gather", &[shape, axes], Attributes::new())?;
    let lengths = emit.cast(lengths, crate::DType::I64)?;
    let difference = emit.sub(lengths, own)?;
    let two = emit.scalar(2.0, difference)?;
    let before = emit.div(difference, two)?;
    let after = emit.sub(difference, before)?;
    emit.op("Concat", &[before, after], Attributes::new().with("axis", 0i64))
}

fn sample(draw: &mut Draw) -> Sample {
    let x = draw.tensor(&[4, 3, 5], -1.0, 1.0);
    let (attrs, lengths) = match draw.int(0, 2) {
        0 => (Attributes::new(), draw.ints(&[3], 1, 7)),
        1 => (Attributes::new().with("axes", [-1]), draw.ints(&[1], 1, 8)),
        _ => (Attributes::new().with("axes", [2, 0]), draw.ints(&[2], 1, 7)),
    };
    Sample::new(Operator::onnx("CenterCropPad", attrs), vec![x, lengths])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::eval::eval_op;
    use crate::ops::EvalCx;
    use crate::rng::Stream;

    #[test]
    fn the_odd_entry_is_behind() {
        let op = Operator::onnx("CenterCropPad", Attributes::new());
        let to = |length: i64| {
            let (x, shape) = (Tensor::from_i64s(&[1, 2, 3]), Tensor::from_i64s(&[length]));
            let cx = EvalCx {
                op: &op,
                opset: crate::OPSET,
                wanted: vec![true],
                stream: Stream::new(0, 0, ""),
                params: &crate::ops::no_params,
                bodies: None,
            };
            eval_op(&cx, &[Some(&x), Some(&shape)]).unwrap()[0].to_vec::<i64>().unwrap()
        };
        assert_eq!(to(2), [1, 2]);
        assert_eq!(to(1), [2]);
        assert_eq!(to(6), [0, 1, 2, 3, 0, 0]);
    }
}
