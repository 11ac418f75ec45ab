//! `CausalConvWithState`: a depthwise convolution along time that sees no future, and what it must remember for the next
//! call: the last k − 1 places of its padded input.
//!
//! ```text
//! z = [past_state | x]        y[n, c, t] = act(bias[c] + Σᵢ weight[c, 0, i] · z[n, c, t + i])        present_state = z[…, L …]
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__CausalConvWithState.html>. Shapes: x and y `[N, C, L]`, weight `[C, 1, k]`, bias `[C]`, states
//! `[N, C, k − 1]`; without past_state z begins with zeros. Attribute `activation`: `none`, `silu` or its other name `swish`.
//! It is a `Conv` of C groups, which needs C and k as numbers.

use super::emit::Length;
use super::{CostCx, Emit, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "CausalConvWithState",
    inputs: (2, 4),
    outputs: (1, 2),
    infer,
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    flops,
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// Whether `Swish` follows.
fn is_activated(attrs: &Attributes) -> Result<bool> {
    match attrs.str("activation", "none")? {
        "none" => Ok(false),
        "silu" | "swish" => Ok(true),
        other => bail!("attribute `activation` is \"{other}\", expected \"none\", \"silu\" or \"swish\""),
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    is_activated(&cx.op.attrs)?;
    let dtype = cx.dtype(0)?;
    for slot in (1..4).filter(|&slot| cx.fact(slot).is_some()) {
        ensure!(cx.dtype(slot)? == dtype, "input 0 is {dtype}, input {slot} is {}", cx.dtype(slot)?);
    }
    let rank_3 = |slot: usize| match cx.shape(slot) {
        Some([a, b, c]) => Ok(Some([a.clone(), b.clone(), c.clone()])),
        Some(other) => bail!("input {slot} has rank {}, expected 3", other.len()),
        None => Ok(None),
    };
    let (x, weight) = (rank_3(0)?, rank_3(1)?);
    let before = match &weight {
        Some([_, one, size]) => {
            ensure!(one.known().is_none_or(|n| n == 1), "its weight has {one} channels per group, expected 1");
            ensure!(size.known().is_none_or(|n| n > 0), "its kernel has the size {size}");
            size.sub(&1.into())
        }
        None => Dim::Unknown,
    };
    let state = match (&x, &weight) {
        (Some([batch, channels, _]), weight) => {
            let filters = weight.as_ref().map_or(&Dim::Unknown, |w| &w[0]);
            let fits = channels.known().zip(filters.known()).is_none_or(|(a, b)| a == b);
            ensure!(fits, "{filters} filters for {channels} channels, expected one each");
            let channels = if channels.known().is_some() || *filters == Dim::Unknown { channels } else { filters };
            Some(vec![batch.clone(), channels.clone(), before])
        }
        (None, _) => None,
    };
    if let (Some(past), Some(state)) = (rank_3(3)?, &state) {
        let differ = |(a, b): (&Dim, &Dim)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
        ensure!(!past.iter().zip(state).any(differ), "past_state has the shape {past:?}, expected {state:?}");
    }
    let y = x.as_ref().map(|x| x.to_vec());
    cx.set_tensor(0, dtype, y);
    cx.set_tensor(1, dtype, state);
    Ok(())
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (Some(x), Some(weight)) = (emit.graph.input(id, 0), emit.graph.input(id, 1)) else {
        bail!("it needs an input and a weight");
    };
    let shape = emit.shape(weight)?;
    let [Some(channels), Some(_), Some(size @ 1..)] = [0, 1, 2].map(|axis| shape.get(axis).and_then(Dim::known)) else {
        bail!("its weight has the shape {shape:?}, expected numbers [C, 1, k]");
    };
    let past = emit.graph.input(id, 3);
    let joined = match past {
        Some(past) => Some(emit.op("Concat", &[past, x], Attributes::new().with("axis", 2i64))?),
        None => None,
    };
    let before = if joined.is_some() { 0 } else { size - 1 };
    let attrs =
        Attributes::new().with("group", channels).with("kernel_shape", vec![size]).with("pads", vec![before, 0]);
    let inputs = [Some(joined.unwrap_or(x)), Some(weight), emit.graph.input(id, 2)];
    let count = if inputs[2].is_some() { 3 } else { 2 };
    let mut y = emit.node(Operator::onnx("Conv", attrs), &inputs[..count], 1)?[0];
    if is_activated(&op.attrs)? {
        y = emit.unary("Swish", y)?;
    }
    emit.type_like(y, x);
    let mut results = vec![y];
    if emit.graph.node(id).outputs.len() > 1 {
        let padded = match joined {
            Some(joined) => joined,
            None => {
                let (pads, axes) = (emit.ints(&[size - 1, 0]), emit.ints(&[2]));
                let inputs = [Some(x), Some(pads), None, Some(axes)];
                emit.node(Operator::onnx("Pad", Attributes::new()), &inputs, 1)?[0]
            }
        };
        let (start, end, axis) = (emit.shape_tensor(&[Length::Axis(x, 2)])?, emit.ints(&[i64::MAX]), emit.ints(&[2]));
        results.push(emit.op("Slice", &[padded, start, end, axis], Attributes::new())?);
    }
    Ok(results)
}

/// A multiply-add per tap.
fn flops(cx: &CostCx) -> u64 {
    2 * cx.output_len(0) * cx.inputs.get(1).and_then(|w| w.last()).map_or(0, |&k| k as u64)
}

fn sample(draw: &mut Draw) -> Sample {
    let (batch, channels) = (2, draw.int(1, 3) as usize);
    let (length, size) = (draw.int(1, 5) as usize, draw.int(1, 4) as usize);
    let attrs = Attributes::new().with("activation", *draw.pick(&["none", "silu", "swish"]));
    let mut inputs = vec![
        Some(draw.tensor(&[batch, channels, length], -1.0, 1.0)),
        Some(draw.tensor(&[channels, 1, size], -1.0, 1.0)),
    ];
    inputs.push(draw.chance(0.5).then(|| draw.tensor(&[channels], -1.0, 1.0)));
    inputs.push((size > 1 && draw.chance(0.5)).then(|| draw.tensor(&[batch, channels, size - 1], -1.0, 1.0)));
    let check = inputs.iter().map(Option::is_some).collect();
    Sample { op: Operator::onnx("CausalConvWithState", attrs), inputs, check, outputs: draw.int(1, 2) as usize }
}
