//! `Split`: a tensor cut along `axis` into pieces of given lengths, or into `num_outputs` equal ones of which the last
//! may be shorter.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Split.html>. The gradient is a `Concat`; pieces that the loss does not
//! depend on count as zeros.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis, upgrade};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Split",
    inputs: (1, 2),
    outputs: (1, usize::MAX),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    upgrades: &[(13, |graph, id| upgrade::ints_to_input(graph, id, "split", 1)), (18, count_outputs)],
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// Before version 18 equal pieces were counted by the outputs alone.
fn count_outputs(graph: &mut Graph, id: NodeId) -> Result<()> {
    if graph.input(id, 1).is_none() {
        let count = graph.node(id).outputs.len() as i64;
        upgrade::edit_attrs(graph, id, |attrs| attrs.set("num_outputs", count));
    }
    Ok(())
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (dtype, count) = (cx.dtype(0)?, cx.output_count());
    let Some(shape) = cx.shape(0).map(<[_]>::to_vec) else {
        (0..count).for_each(|slot| cx.set_tensor(slot, dtype, None));
        return Ok(());
    };
    let axis = normal_axis(cx.op.attrs.int("axis", 0)?, shape.len())?;
    let lengths = piece_dims(cx, &shape[axis])?;
    for (slot, length) in lengths.iter().enumerate() {
        let mut piece = shape.clone();
        piece[axis] = length.clone();
        cx.set_tensor(slot, dtype, Some(piece));
    }
    let numbers: Option<Vec<i64>> = lengths.iter().map(Dim::known).collect();
    if let (Some(dims), Some(numbers)) = (cx.dims(0).map(<[_]>::to_vec), numbers) {
        let mut rest = dims.into_iter();
        for (slot, n) in numbers.into_iter().enumerate() {
            let piece = rest.by_ref().take(n.max(0) as usize).collect();
            cx.set_dims(slot, piece);
        }
    }
    Ok(())
}

/// The length of each piece of an axis.
fn piece_dims(cx: &InferCx, axis: &Dim) -> Result<Vec<Dim>> {
    let count = cx.output_count();
    if cx.input_count() < 2 {
        let pieces = cx.op.attrs.int("num_outputs", count as i64)?;
        ensure!(pieces == count as i64, "num_outputs is {pieces}, but there are {count} outputs");
        return Ok(equal_pieces(axis, count));
    }
    let Some(lengths) = index::elements(cx, 1) else { return Ok(vec![Dim::Unknown; count]) };
    ensure!(lengths.len() == count, "{} lengths for {count} outputs", lengths.len());
    let total = lengths.iter().fold(Dim::Known(0), |sum, d| sum.add(d));
    if let (Some(total), Some(axis)) = (total.known(), axis.known()) {
        ensure!(total == axis, "the lengths add up to {total}, the axis has length {axis}");
    }
    Ok(lengths)
}

/// Pieces of length ceil(axis / count), the last one shorter if it does not divide evenly.
fn equal_pieces(axis: &Dim, count: usize) -> Vec<Dim> {
    let count = count as i64;
    let whole = axis.div_floor(&count.into());
    if whole.mul(&count.into()).same(axis) {
        return vec![whole; count as usize];
    }
    let piece = axis.add(&(count - 1).into()).div_floor(&count.into());
    let mut pieces = vec![piece.clone(); count as usize];
    pieces[count as usize - 1] = axis.sub(&piece.mul(&(count - 1).into()));
    pieces
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let axis = normal_axis(cx.op.attrs.int("axis", 0)?, x.rank())?;
    let lengths = match index::ints(inputs, 1)? {
        Some(lengths) => index::sizes(&lengths)?,
        None => {
            let count = cx.op.attrs.int("num_outputs", cx.wanted.len() as i64)?;
            ensure!(count == cx.wanted.len() as i64, "num_outputs is {count}, not the number of outputs");
            index::static_dims(&equal_pieces(&Dim::Known(x.shape()[axis] as i64), cx.wanted.len()))?
        }
    };
    ensure!(lengths.len() == cx.wanted.len(), "{} lengths for {} outputs", lengths.len(), cx.wanted.len());
    let total = lengths.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
    ensure!(total == Some(x.shape()[axis]), "{lengths:?} do not add up to the length {} of the axis", x.shape()[axis]);
    let mut start = 0;
    let mut piece = |len: &usize| {
        start += len;
        section(x, axis, start - len, *len)
    };
    lengths.iter().map(&mut piece).collect()
}

/// The entries `start..start + len` of an axis. They must lie inside it.
fn section(x: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor> {
    let (outer, size, inner) = index::lanes(x.shape(), axis);
    let mut shape = x.shape().to_vec();
    shape[axis] = len;
    if shape.contains(&0) {
        return Tensor::zeros(x.dtype(), shape);
    }
    let rows = index::steps(outer, size * inner);
    let places = index::outer_sum(&[rows, (start * inner..(start + len) * inner).collect()]);
    index::pick(&[x], shape, &places)
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let x = cx.input(0)?;
    let axis = cx.emit.axis(x, cx.op().attrs.int("axis", 0)?)?;
    let mut parts = Vec::new();
    for slot in 0..cx.grads.len() {
        let part = match cx.grads[slot] {
            Some(part) => part,
            None => {
                let output = cx.output(slot as u32);
                let dtype = cx.emit.dtype(output)?;
                cx.emit.zeros_like(output, dtype)?
            }
        };
        parts.push(part);
    }
    let dx = cx.emit.op("Concat", &parts, Attributes::new().with("axis", axis as i64))?;
    cx.emit.type_like(dx, x);
    Ok(vec![Some(dx), None])
}

fn sample(draw: &mut Draw) -> Sample {
    let axis = draw.int(-2, 1);
    let shape = if axis.rem_euclid(2) == 0 { [5, 2] } else { [2, 5] };
    let mut inputs = vec![draw.tensor(&shape, -1.0, 1.0)];
    let mut attrs = Attributes::new().with("axis", axis);
    let outputs = draw.int(2, 3) as usize;
    if draw.chance(0.5) {
        let lengths: &[i64] = if outputs == 2 { &[1, 4] } else { &[2, 0, 3] };
        inputs.push(Tensor::from_i64s(lengths));
    } else {
        attrs.set("num_outputs", outputs as i64);
    }
    Sample { outputs, ..Sample::new(Operator::onnx("Split", attrs), inputs) }
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn pieces() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq,2304");
        let attrs = || Attributes::new().with("axis", 2i64);
        let qkv = p.node("Split", &[Some(x)], attrs().with("num_outputs", 3i64), 3);
        let lengths = p.ints(&[2000, 304]);
        let two = p.node("Split", &[Some(x), Some(lengths)], attrs(), 2);
        let odd = p.node("Split", &[Some(x)], Attributes::new().with("axis", 1i64).with("num_outputs", 2i64), 2);
        assert_eq!(p.show(qkv[2]), "float[batch, seq, 768]");
        assert_eq!(p.show(two[1]), "float[batch, seq, 304]");
        assert_eq!(p.show(odd[0]), "float[batch, floor((seq + 1)/(2)), 2304]");
        assert_eq!(p.show(odd[1]), "float[batch, seq - floor((seq + 1)/(2)), 2304]");
    }

    #[test]
    fn shapes_split() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq,384");
        let shape = p.op("Shape", &[x], Attributes::new());
        let parts = p.node("Split", &[Some(shape)], Attributes::new().with("num_outputs", 3i64), 3);
        assert_eq!(p.show(parts[1]), "int64[1] = seq");
    }
}
