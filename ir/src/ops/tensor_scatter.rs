//! `TensorScatter`: a cache in which `update` is written along `axis` (default −2), for batch entry b from
//! `write_indices[b]` on (default 0); with `mode = "circular"` past the end it goes on at the beginning.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__TensorScatter.html>. Shapes: cache and result `[B, …, M, …]`, update
//! `[B, …, N, …]` with N ≤ M, write_indices `[B]` (`int64`). It is a `ScatterElements` with the same places for all other axes.

use super::emit::Length;
use super::{Emit, Gradient, InferCx, OpDef, Sample, normal_axis};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "TensorScatter",
    inputs: (2, 3),
    infer,
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    flops: |cx| cx.input_len(1),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn is_circular(attrs: &Attributes) -> Result<bool> {
    match attrs.str("mode", "linear")? {
        "linear" => Ok(false),
        "circular" => Ok(true),
        other => bail!("attribute `mode` is \"{other}\", expected \"linear\" or \"circular\""),
    }
}

/// The axis of the tokens; never that of the batch.
fn token_axis(attrs: &Attributes, rank: usize) -> Result<usize> {
    let axis = normal_axis(attrs.int("axis", -2)?, rank)?;
    ensure!(axis > 0, "attribute `axis` names the batch axis");
    Ok(axis)
}

fn infer(cx: &mut InferCx) -> Result<()> {
    is_circular(&cx.op.attrs)?;
    ensure!(cx.dtype(0)? == cx.dtype(1)?, "the cache is {}, the update {}", cx.dtype(0)?, cx.dtype(1)?);
    if cx.fact(2).is_some() {
        ensure!(cx.dtype(2)? == DType::I64, "write_indices is {}, expected int64", cx.dtype(2)?);
    }
    if let (Some(cache), Some(update)) = (cx.shape(0), cx.shape(1)) {
        let axis = token_axis(&cx.op.attrs, cache.len())?;
        ensure!(cache.len() == update.len(), "a cache of rank {}, an update of rank {}", cache.len(), update.len());
        for (i, (have, new)) in cache.iter().zip(update).enumerate() {
            let (Some(have), Some(new)) = (have.known(), new.known()) else { continue };
            let fits = if i == axis { new <= have } else { new == have };
            ensure!(fits, "axis {i} has length {have} in the cache, {new} in the update");
        }
    }
    super::same_as_first(cx)
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (Some(cache), Some(update)) = (emit.graph.input(id, 0), emit.graph.input(id, 1)) else {
        bail!("it needs a cache and an update");
    };
    let rank = emit.rank(cache)?;
    let axis = token_axis(&op.attrs, rank)?;
    let mut places = emit.indices(Length::Axis(update, axis))?;
    let starts = emit.graph.input(id, 2);
    if let Some(starts) = starts {
        let starts = emit.unsqueeze(starts, &[1])?;
        places = emit.add(starts, places)?;
    }
    if is_circular(&op.attrs)? {
        let length = emit.shape_tensor(&[Length::Axis(cache, axis)])?;
        places = emit.op("Mod", &[places, length], Attributes::new())?;
    }
    // [N] or [B, N] so far; every other axis gets length 1.
    let others: Vec<usize> = (0..rank).filter(|&i| i != axis && (i > 0 || starts.is_none())).collect();
    let places = if others.is_empty() { places } else { emit.unsqueeze(places, &others)? };
    let places = emit.expand_like(places, update)?;
    let attrs = Attributes::new().with("axis", axis as i64);
    Ok(vec![emit.op("ScatterElements", &[cache, places, update], attrs)?])
}

fn sample(draw: &mut Draw) -> Sample {
    let (length, new) = (4, draw.int(1, 3) as usize);
    let circular = draw.chance(0.5);
    let attrs = Attributes::new().with("mode", if circular { "circular" } else { "linear" });
    let (attrs, cache, update) = match draw.int(0, 2) {
        0 => (attrs, vec![2, 2, length, 3], vec![2, 2, new, 3]),
        1 => (attrs.with("axis", -2i64), vec![3, length, 2], vec![3, new, 2]),
        _ => (attrs.with("axis", 1i64), vec![3, length], vec![3, new]),
    };
    let highest = if circular { 3 } else { (length - new) as i64 };
    let mut inputs = vec![draw.tensor(&cache, -1.0, 1.0), draw.tensor(&update, -1.0, 1.0)];
    if draw.chance(0.8) {
        inputs.push(draw.ints(&[cache[0]], 0, highest));
    }
    Sample::new(Operator::onnx("TensorScatter", attrs), inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::probe::Probe;

    #[test]
    fn the_batch_axis_is_refused() {
        let mut p = Probe::new();
        let cache = p.input("cache", DType::F32, "batch,8");
        let update = p.input("update", DType::F32, "batch,1");
        let y = p.op("TensorScatter", &[cache, update], Attributes::new().with("axis", 1i64));
        assert_eq!(p.show(y), "float[batch, 8]");
        p.op("TensorScatter", &[cache, update], Attributes::new());
        assert!(p.error().ends_with("attribute `axis` names the batch axis"), "{}", p.error());
    }
}
