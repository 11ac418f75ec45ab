//! `DepthToSpace`: blocks of channels become blocks of pixels, `[b, c, h, w] → [b, c/s², h·s, w·s]`. `SpaceToDepth` is the
//! other way round.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__DepthToSpace.html>. In mode DCR the block stands before the channel
//! (`c = (by, bx, c')`), in CRD behind it (`c = (c', by, bx)`). Both decompose into `Reshape`, `Transpose`,
//! `Reshape`.

use super::emit::Length;
use super::{Emit, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "DepthToSpace",
        infer: infer_to_space,
        grad: Gradient::Decompose,
        decompose: Some(to_space),
        sample: Some(sample_to_space),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "SpaceToDepth",
        infer: infer_to_depth,
        grad: Gradient::Decompose,
        decompose: Some(to_depth),
        sample: Some(sample_to_depth),
        ..OpDef::DEFAULT
    },
];

fn block(op: &Operator) -> Result<i64> {
    match op.attrs.get_int("blocksize")? {
        Some(size @ 1..=65536) => Ok(size),
        Some(size) => bail!("attribute `blocksize` is {size}, expected 1 to 65536"),
        None => bail!("attribute `blocksize` is missing"),
    }
}

fn image(shape: &[Dim]) -> Result<[Dim; 4]> {
    match shape {
        [b, c, h, w] => Ok([b, c, h, w].map(Dim::clone)),
        _ => bail!("its input has rank {}, expected 4", shape.len()),
    }
}

/// A division that must leave no rest.
fn exact(dim: &Dim, by: i64, what: &str) -> Result<Dim> {
    ensure!(dim.known().is_none_or(|d| d % by == 0), "its {what} {dim} is no multiple of {by}");
    Ok(dim.div_floor(&by.into()))
}

fn infer_to_space(cx: &mut InferCx) -> Result<()> {
    let (dtype, s) = (cx.dtype(0)?, block(cx.op)?);
    let shape = match cx.shape(0).map(image).transpose()? {
        Some([b, c, h, w]) => vec![b, exact(&c, s * s, "number of channels")?, h.mul(&s.into()), w.mul(&s.into())],
        None => vec![Dim::Unknown; 4],
    };
    cx.set_tensor(0, dtype, Some(shape));
    Ok(())
}

fn infer_to_depth(cx: &mut InferCx) -> Result<()> {
    let (dtype, s) = (cx.dtype(0)?, block(cx.op)?);
    let shape = match cx.shape(0).map(image).transpose()? {
        Some([b, c, h, w]) => vec![b, c.mul(&(s * s).into()), exact(&h, s, "height")?, exact(&w, s, "width")?],
        None => vec![Dim::Unknown; 4],
    };
    cx.set_tensor(0, dtype, Some(shape));
    Ok(())
}

/// Whether the block stands before the channel (DCR) or behind it (CRD).
fn block_first(op: &Operator) -> Result<bool> {
    match op.attrs.str("mode", "DCR")? {
        "DCR" => Ok(true),
        "CRD" => Ok(false),
        other => bail!("attribute `mode` is \"{other}\", expected DCR or CRD"),
    }
}

fn to_space(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (x, op) = source(emit, id)?;
    let s = block(&op)?;
    let (batch, size, channels) = (Length::Axis(x, 0), Length::Number(s), Length::Quotient(x, 1, s * s));
    let (h, w) = (Length::Axis(x, 2), Length::Axis(x, 3));
    let (split, perm) = match block_first(&op)? {
        true => ([batch, size, size, channels, h, w], [0, 3, 4, 1, 5, 2]),
        false => ([batch, channels, size, size, h, w], [0, 1, 4, 2, 5, 3]),
    };
    let joined = [batch, channels, Length::Multiple(x, 2, s), Length::Multiple(x, 3, s)];
    rearranged(emit, id, x, &split, &perm, &joined)
}

fn to_depth(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (x, op) = source(emit, id)?;
    let s = block(&op)?;
    let (batch, size, channels) = (Length::Axis(x, 0), Length::Number(s), Length::Axis(x, 1));
    let (rows, cols) = (Length::Quotient(x, 2, s), Length::Quotient(x, 3, s));
    let split = [batch, channels, rows, size, cols, size];
    let perm = if block_first(&op)? { [0, 3, 5, 1, 2, 4] } else { [0, 1, 3, 5, 2, 4] };
    let joined = [batch, Length::Multiple(x, 1, s * s), rows, cols];
    rearranged(emit, id, x, &split, &perm, &joined)
}

fn source(emit: &Emit, id: NodeId) -> Result<(Value, Operator)> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    match emit.graph.input(id, 0) {
        Some(x) => Ok((x, op)),
        None => bail!("input 0 is missing"),
    }
}

fn rearranged(
    emit: &mut Emit,
    id: NodeId,
    x: Value,
    split: &[Length],
    perm: &[usize],
    joined: &[Length],
) -> Result<Vec<Value>> {
    let no_zero = || Attributes::new().with("allowzero", 1i64);
    let (split, joined) = (emit.shape_tensor(split)?, emit.shape_tensor(joined)?);
    let parts = emit.op("Reshape", &[x, split], no_zero())?;
    let turned = emit.transpose(parts, perm)?;
    let y = emit.op("Reshape", &[turned, joined], no_zero())?;
    emit.type_like(y, Value { node: id, slot: 0 });
    Ok(vec![y])
}

fn sample_to_space(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("blocksize", 2i64).with("mode", *draw.pick(&["DCR", "CRD"]));
    Sample::new(Operator::onnx("DepthToSpace", attrs), vec![draw.tensor(&[2, 8, 2, 3], -1.0, 1.0)])
}

fn sample_to_depth(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("blocksize", 2i64).with("mode", *draw.pick(&["DCR", "CRD"]));
    Sample::new(Operator::onnx("SpaceToDepth", attrs), vec![draw.tensor(&[2, 3, 4, 2], -1.0, 1.0)])
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn shapes_both_ways() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,12,h,w");
        let two = || Attributes::new().with("blocksize", 2i64);
        let y = p.op("DepthToSpace", &[x], two());
        let back = p.op("SpaceToDepth", &[y], two());
        assert_eq!(p.show(y), "float[batch, 3, 2*h, 2*w]");
        assert_eq!(p.show(back), "float[batch, 12, h, w]");
    }
}
