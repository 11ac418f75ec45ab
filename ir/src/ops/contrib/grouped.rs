//! GroupQueryAttention of `com.microsoft`: several heads of queries share one of keys and values, which are kept in a cache.
//!
//! ```text
//! T[b] = seqlens_k[b] + 1        P[b] = max(T[b] − s, 0)      keys after and before this step
//! present[b, j] = new[b, j − P[b]] where that exists, else past[b, j]
//! y[b, i] = softmax(scale · q kᵀ over the keys j < T[b], j ≤ P[b] + i, and of the last local_window_size of those) v
//! ```
//!
//! query `[b, s, n·H]`, key and value `[b, s, m·H]` (or all three packed in query, `[b, s, (n + 2m)·H]`), past and present `[b, m, C, H]`
//! with C the larger of the past's length and `total_sequence_length`; cos and sin `[max, R/2]` turn queries and keys first if
//! `do_rotary` is set. With `softcap` c, the products become c · tanh(product / c).

use super::attention::{additive, heads, merge_heads, rotate, split_heads};
use super::{CONTRIB, operator, refuse};
use crate::error::{Error, Result};
use crate::graph::{NodeId, Value};
use crate::ops::emit::Length;
use crate::ops::quantize::positions;
use crate::ops::{Emit, InferCx, OpDef, Sample};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Operator, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "GroupQueryAttention",
    inputs: (7, 17),
    outputs: (1, 3),
    infer,
    decompose: Some(decompose),
    flops: |cx| 4 * cx.outputs.get(1).and_then(|p| p.get(2)).map_or(0, |&keys| keys as u64) * cx.output_len(0),
    sample: Some(sample),
    ..CONTRIB
}];

/// The numbers of heads of queries and of keys.
fn groups(attrs: &Attributes) -> Result<(i64, i64)> {
    let (n, m) = (heads(attrs, "num_heads")?, heads(attrs, "kv_num_heads")?);
    ensure!(n % m == 0, "{n} heads of queries are no multiple of {m} heads of keys");
    Ok((n, m))
}

fn check(attrs: &Attributes, given: impl Fn(usize) -> bool) -> Result<()> {
    refuse(attrs, &["sliding_window_cache", "qk_output"])?;
    ensure!(attrs.int("smooth_softmax", 0)? <= 0, "attribute `smooth_softmax` is not supported");
    for slot in 10..17 {
        ensure!(!given(slot), "input {slot} is not supported");
    }
    ensure!(given(1) == given(2) && given(3) == given(4), "keys without values, or values without keys");
    Ok(())
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (dtype, (n, m)) = (cx.dtype(0)?, groups(&cx.op.attrs)?);
    check(&cx.op.attrs, |slot| cx.fact(slot).is_some())?;
    let (batch, length, hidden) = match cx.shape(0) {
        Some([b, s, hidden]) => (b.clone(), s.clone(), hidden.clone()),
        Some(other) => bail!("its query has rank {}, expected 3", other.len()),
        None => (Dim::Unknown, Dim::Unknown, Dim::Unknown),
    };
    let size = hidden.div_floor(&if cx.fact(1).is_some() { n } else { n + 2 * m }.into());
    let total = cx.ints(6).and_then(|t| t.first().copied());
    let past = match cx.fact(3) {
        Some(_) => cx.shape(3).and_then(|p| p.get(2)?.known()),
        None => Some(0),
    };
    let keys = total.zip(past).map_or(Dim::Unknown, |(total, past)| Dim::Known(total.max(past)));
    let present = vec![batch.clone(), m.into(), keys, size.clone()];
    cx.set_tensor(0, dtype, Some(vec![batch, length, size.mul(&n.into())]));
    cx.set_tensor(1, dtype, Some(present.clone()));
    cx.set_tensor(2, dtype, Some(present));
    Ok(())
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let attrs = emit.attrs(id);
    check(&attrs, |slot| emit.graph.input(id, slot).is_some())?;
    let (n, m) = groups(&attrs)?;
    let [mut q, mut k, v] = parts(emit, id, n, m)?;
    // `[b, 1, 1, 1]`: how many keys there are, and how many there were.
    let ends = emit.operand(id, 5)?;
    let ends = emit.cast(ends, DType::I64)?;
    let one = emit.constant(Tensor::scalar(1i64));
    let ends = emit.add(ends, one)?;
    let ends = emit.reshape(ends, &[-1, 1, 1, 1])?;
    let new = emit.shape_tensor(&[Length::Axis(q, 2)])?;
    let before = emit.sub(ends, new)?;
    let zero = emit.constant(Tensor::scalar(0i64));
    let before = emit.op("Max", &[before, zero], Attributes::new())?;
    if attrs.flag("do_rotary", false)? {
        [q, k] = rotated(emit, id, [q, k], before)?;
    }
    let (past_k, past_v, total) = (emit.graph.input(id, 3), emit.graph.input(id, 4), emit.operand(id, 6)?);
    let keys = key_count(emit, total, past_k)?;
    let k = cached(emit, k, past_k, keys, before)?;
    let v = cached(emit, v, past_v, keys, before)?;
    let hidden = mask(emit, &attrs, [q, k], ends, before)?;
    let y = attend(emit, [q, k, v], (n, m), &attrs, hidden)?;
    Ok(vec![merge_heads(emit, y)?, k, v])
}

/// Queries `[b, n, s, H]`, keys and values `[b, m, s, H]`.
fn parts(emit: &mut Emit, id: NodeId, n: i64, m: i64) -> Result<[Value; 3]> {
    let query = emit.operand(id, 0)?;
    let (Some(key), Some(value)) = (emit.graph.input(id, 1), emit.graph.input(id, 2)) else {
        let all = split_heads(emit, query, n + 2 * m)?;
        let sizes = emit.ints(&[n, m, m]);
        let split = Operator::onnx("Split", Attributes::new().with("axis", 1i64));
        let parts = emit.node(split, &[Some(all), Some(sizes)], 3)?;
        return Ok([parts[0], parts[1], parts[2]]);
    };
    Ok([split_heads(emit, query, n)?, split_heads(emit, key, m)?, split_heads(emit, value, m)?])
}

/// Queries and keys turned by their places.
fn rotated(emit: &mut Emit, id: NodeId, parts: [Value; 2], before: Value) -> Result<[Value; 2]> {
    let (cos, sin) = (emit.operand(id, 7)?, emit.operand(id, 8)?);
    let places = match emit.graph.input(id, 9) {
        Some(given) => given,
        None => {
            let steps = positions(emit, parts[0], 2)?;
            let first = emit.reshape(before, &[-1, 1])?;
            emit.add(first, steps)?
        }
    };
    let mut tables = [cos, sin];
    for table in &mut tables {
        let rows = emit.op("Gather", &[*table, places], Attributes::new())?;
        *table = emit.unsqueeze(rows, &[1])?;
    }
    let interleaved = emit.attrs(id).flag("rotary_interleaved", false)?;
    let [q, k] = parts;
    Ok([rotate(emit, q, tables[0], tables[1], interleaved)?, rotate(emit, k, tables[0], tables[1], interleaved)?])
}

/// The length of the cache after this step, as a vector of one element.
fn key_count(emit: &mut Emit, total: Value, past: Option<Value>) -> Result<Value> {
    let total = emit.cast(total, DType::I64)?;
    let total = emit.reshape(total, &[1])?;
    let Some(past) = past else { return Ok(total) };
    let past = emit.shape_tensor(&[Length::Axis(past, 2)])?;
    emit.op("Max", &[total, past], Attributes::new())
}

/// The cache `[b, m, C, H]` after the new entries `[b, m, s, H]` are written behind what was there before.
fn cached(emit: &mut Emit, new: Value, past: Option<Value>, keys: Value, before: Value) -> Result<Value> {
    let (start, step) = (emit.constant(Tensor::scalar(0i64)), emit.constant(Tensor::scalar(1i64)));
    let end = emit.reshape(keys, &[])?;
    let places = emit.op("Range", &[start, end, step], Attributes::new())?;
    let places = emit.reshape(places, &[1, 1, -1, 1])?;
    let source = emit.sub(places, before)?;
    let count = emit.shape_tensor(&[Length::Axis(new, 2)])?;
    let begun = emit.op("GreaterOrEqual", &[source, start], Attributes::new())?;
    let within = emit.op("Less", &[source, count], Attributes::new())?;
    let inside = emit.op("And", &[begun, within], Attributes::new())?;
    let last = emit.sub(count, step)?;
    let source = emit.op("Max", &[source, start], Attributes::new())?;
    let source = emit.op("Min", &[source, last], Attributes::new())?;
    let lead = emit.shape_tensor(&[Length::Axis(new, 0), Length::Axis(new, 1)])?;
    let size = emit.shape_tensor(&[Length::Axis(new, 3)])?;
    let shape = emit.op("Concat", &[lead, keys, size], Attributes::new().with("axis", 0i64))?;
    let source = emit.op("Expand", &[source, shape], Attributes::new())?;
    let moved = emit.op("GatherElements", &[new, source], Attributes::new().with("axis", 2i64))?;
    let rest = match past {
        Some(past) => {
            let length = emit.shape_tensor(&[Length::Axis(past, 2)])?;
            let missing = emit.sub(keys, length)?;
            let (head, tail) = (emit.ints(&[0; 6]), emit.ints(&[0]));
            let pads = emit.op("Concat", &[head, missing, tail], Attributes::new().with("axis", 0i64))?;
            emit.op("Pad", &[past, pads], Attributes::new())?
        }
        None => emit.scalar(0.0, new)?,
    };
    emit.select(inside, moved, rest)
}

/// `[b, 1, s, C]`: what is added to the products so that no query sees a key that it must not.
fn mask(emit: &mut Emit, attrs: &Attributes, [q, k]: [Value; 2], ends: Value, before: Value) -> Result<Value> {
    let of_k = positions(emit, k, 2)?;
    let mut seen = emit.op("Less", &[of_k, ends], Attributes::new())?;
    let steps = positions(emit, q, 2)?;
    let steps = emit.reshape(steps, &[1, 1, -1, 1])?;
    let of_q = emit.add(steps, before)?;
    if attrs.flag("causal", true)? {
        let earlier = emit.op("LessOrEqual", &[of_k, of_q], Attributes::new())?;
        seen = emit.op("And", &[seen, earlier], Attributes::new())?;
    }
    let window = attrs.int("local_window_size", -1)?;
    if window >= 0 {
        let window = emit.constant(Tensor::scalar(window));
        let too_far = emit.sub(of_q, window)?;
        let near = emit.op("Greater", &[of_k, too_far], Attributes::new())?;
        seen = emit.op("And", &[seen, near], Attributes::new())?;
    }
    additive(emit, seen, f64::from(f32::MIN), q)
}

/// Queries of one group are further rows of the same product.
fn attend(
    emit: &mut Emit,
    [q, k, v]: [Value; 3],
    (n, m): (i64, i64),
    attrs: &Attributes,
    mask: Value,
) -> Result<Value> {
    let shape = emit.shape(q)?;
    let size = shape.last().and_then(Dim::known).ok_or_else(|| Error::msg("the size of a head is unknown"))?;
    let scale = match f64::from(attrs.float("scale", 0.0)?) {
        0.0 => 1.0 / (size as f64).sqrt(),
        given => given,
    };
    let grouped = emit.reshape(q, &[0, m, n / m, -1, size])?;
    let (k, v, mask) = (emit.unsqueeze(k, &[2])?, emit.unsqueeze(v, &[2])?, emit.unsqueeze(mask, &[2])?);
    let k = emit.swap_last(k)?;
    let product = emit.matmul(grouped, k)?;
    let mut logits = emit.mul_scalar(product, scale)?;
    let cap = f64::from(attrs.float("softcap", 0.0)?);
    if cap > 0.0 {
        logits = emit.mul_scalar(logits, 1.0 / cap)?;
        logits = emit.unary("Tanh", logits)?;
        logits = emit.mul_scalar(logits, cap)?;
    }
    let logits = emit.add(logits, mask)?;
    let weights = emit.op("Softmax", &[logits], Attributes::new().with("axis", -1i64))?;
    let y = emit.matmul(weights, v)?;
    emit.reshape(y, &[0, n, -1, size])
}

/// A first prompt, or one step after three keys, with or without rotation.
fn sample(draw: &mut Draw) -> Sample {
    let (prompt, packed, rotary) = (draw.chance(0.5), draw.chance(0.3), draw.chance(0.5));
    let (s, past) = if prompt { (3usize, 0usize) } else { (1, 3) };
    let mut attrs = Attributes::new().with("num_heads", 4i64).with("kv_num_heads", 2i64).with("do_rotary", rotary);
    match draw.int(0, 3) {
        0 => attrs.set("softcap", 1.5f32),
        1 => attrs.set("local_window_size", 2i64),
        _ => {}
    }
    let size = 16usize;
    let mut inputs = vec![Some(draw.tensor(&[1, s, if packed { 8 } else { 4 } * size], -1.0, 1.0))];
    inputs.extend((0..2).map(|_| Some(draw.tensor(&[1, s, 2 * size], -1.0, 1.0)).filter(|_| !packed)));
    inputs.extend((0..2).map(|_| Some(draw.tensor(&[1, 2, past, size], -1.0, 1.0)).filter(|_| !prompt)));
    let total = (s + past) as i32;
    inputs.push(Some(Tensor::from_vec([1], vec![total - 1])));
    inputs.push(Some(Tensor::from_vec([1], vec![total])));
    if rotary {
        inputs.extend((0..2).map(|_| Some(draw.tensor(&[6, size / 2], -1.0, 1.0))));
    }
    let check = inputs.iter().map(|t| t.as_ref().is_some_and(|t| t.dtype() == DType::F64)).collect();
    Sample { op: operator("GroupQueryAttention", attrs), inputs, check, outputs: 3 }
}
