//! Attention of `com.microsoft`: Attention (with the projections), MultiHeadAttention (without), and RotaryEmbedding.
//!
//! ```text
//! heads(x)[b, n, s, :] = x[b, s, n·H .. (n + 1)·H]
//! y = softmax(scale · q kᵀ + mask + attention_bias) v       per head; scale 1/√H unless told otherwise
//! rotary(x, p): (x₁, x₂) → (x₁ cos p − x₂ sin p, x₁ sin p + x₂ cos p)       pairs are halves, or neighbours if interleaved
//! ```
//!
//! b counts the batch, n the heads, s queries, t keys; H is the size of a head. Masks add `mask_filter_value` (-10000 unless told
//! otherwise) to what is masked; `unidirectional` hides later keys altogether. Past keys and values `[b, n, p, H]` stand before the new
//! ones, and come out with them as `present`. Shapes of the operands stand at each rule.

use super::{CONTRIB, operator, refuse};
use crate::error::{Error, Result};
use crate::graph::{NodeId, Value};
use crate::ops::attention::append;
use crate::ops::emit::Length;
use crate::ops::quantize::positions;
use crate::ops::real::count;
use crate::ops::rotary_embedding::turn_first;
use crate::ops::{CostCx, Emit, InferCx, OpDef, Sample};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Attention",
        inputs: (2, 7),
        outputs: (1, 2),
        infer: infer_attention,
        decompose: Some(decompose_attention),
        flops,
        sample: Some(sample_attention),
        ..CONTRIB
    },
    OpDef {
        name: "MultiHeadAttention",
        inputs: (3, 10),
        outputs: (1, 3),
        infer: infer_multi_head,
        decompose: Some(decompose_multi_head),
        flops,
        sample: Some(sample_multi_head),
        ..CONTRIB
    },
    OpDef {
        name: "RotaryEmbedding",
        inputs: (4, 4),
        infer: super::super::same_as_first,
        decompose: Some(decompose_rotary),
        flops: |cx| 3 * cx.output_len(0),
        sample: Some(sample_rotary),
        ..CONTRIB
    },
];

/// Queries times keys and weights times values, for as many keys as queries; projections are not counted.
fn flops(cx: &CostCx) -> u64 {
    let queries = cx.inputs.first().and_then(|q| q.get(1)).map_or(0, |&s| s as u64);
    4 * queries * cx.output_len(0)
}

/// The number of heads that an attribute names.
pub(super) fn heads(attrs: &Attributes, name: &str) -> Result<i64> {
    let heads = count(attrs, name, 0)?;
    ensure!(heads > 0, "attribute `{name}` is missing or 0");
    Ok(heads as i64)
}

// ---- building blocks ------------------------------------------------------------------------------------------------

/// `[b, s, n·H]` → `[b, n, s, H]`
pub(super) fn split_heads(emit: &mut Emit, x: Value, heads: i64) -> Result<Value> {
    ensure!(emit.rank(x)? == 3, "an operand of rank {}, expected [batch, sequence, hidden]", emit.rank(x)?);
    if let Some(hidden) = emit.shape(x)?[2].known() {
        ensure!(hidden % heads == 0, "a hidden size of {hidden} is no multiple of {heads} heads");
    }
    let x = emit.reshape(x, &[0, 0, heads, -1])?;
    emit.transpose(x, &[0, 2, 1, 3])
}

/// `[b, n, s, H]` → `[b, s, n·H]`
pub(super) fn merge_heads(emit: &mut Emit, x: Value) -> Result<Value> {
    let x = emit.transpose(x, &[0, 2, 1, 3])?;
    emit.reshape(x, &[0, 0, -1])
}

/// `softmax(scale · q kᵀ + masks) v`
fn attend(emit: &mut Emit, [q, k, v]: [Value; 3], attrs: &Attributes, masks: &[Value]) -> Result<Value> {
    let scale = match f64::from(attrs.float("scale", 0.0)?) {
        0.0 => {
            let size = emit.shape(q)?.last().and_then(Dim::known);
            let size = size.ok_or_else(|| Error::msg("the size of a head is unknown, so its scale is too"))?;
            1.0 / (size as f64).sqrt()
        }
        given => given,
    };
    let keys = emit.swap_last(k)?;
    let product = emit.matmul(q, keys)?;
    let mut logits = emit.mul_scalar(product, scale)?;
    for &mask in masks {
        logits = emit.add(logits, mask)?;
    }
    let weights = emit.op("Softmax", &[logits], Attributes::new().with("axis", -1i64))?;
    emit.matmul(weights, v)
}

/// 0 where a condition holds, a number elsewhere, of the element type of `like`.
pub(super) fn additive(emit: &mut Emit, keep: Value, number: f64, like: Value) -> Result<Value> {
    let (zero, number) = (emit.scalar(0.0, like)?, emit.scalar(number, like)?);
    emit.select(keep, zero, number)
}

/// `[s, t]`: hides the keys that come after a query; the last query sees all keys.
fn causal(emit: &mut Emit, q: Value, k: Value) -> Result<Value> {
    let (of_q, of_k) = (positions(emit, q, 2)?, positions(emit, k, 2)?);
    let (queries, keys) = (emit.shape_tensor(&[Length::Axis(q, 2)])?, emit.shape_tensor(&[Length::Axis(k, 2)])?);
    let past = emit.sub(keys, queries)?;
    let of_q = emit.add(of_q, past)?;
    let of_q = emit.unsqueeze(of_q, &[1])?;
    let seen = emit.op("LessOrEqual", &[of_k, of_q], Attributes::new())?;
    additive(emit, seen, f64::from(f32::MIN), q)
}

/// What a mask of keys adds to the logits. Its forms: `[b]` the number of keys of each example; `[2·b]` the ends, then the
/// starts of their ranges; `[b, t]` or `[b, s, t]`, 0 where a key is masked.
fn key_mask(emit: &mut Emit, mask: Value, k: Value, filter: f64) -> Result<Value> {
    let shape = emit.shape(mask)?;
    let batch = emit.shape(k)?[0].known();
    let keep = match shape.as_slice() {
        [length] => {
            let whole = batch.is_none() || length.known().is_none() || length.known() == batch;
            let ranges = length.known().zip(batch).is_some_and(|(n, b)| n == 2 * b);
            ensure!(whole || ranges, "a mask of length {length} for a batch of {}", batch.unwrap_or(0));
            key_range(emit, mask, k, ranges)?
        }
        [_, _] => {
            let keep = emit.cast(mask, DType::Bool)?;
            emit.unsqueeze(keep, &[1, 2])?
        }
        [_, _, _] => {
            let keep = emit.cast(mask, DType::Bool)?;
            emit.unsqueeze(keep, &[1])?
        }
        _ => bail!("a mask of rank {}, expected 1, 2 or 3", shape.len()),
    };
    additive(emit, keep, filter, k)
}

/// `[b, 1, 1, t]`: whether a key stands before the end of its example and, with `ranges`, not before its start.
fn key_range(emit: &mut Emit, bounds: Value, k: Value, ranges: bool) -> Result<Value> {
    let bounds = emit.cast(bounds, DType::I64)?;
    let places = positions(emit, k, 2)?;
    let parts = if ranges {
        let halves = Attributes::new().with("axis", 0i64).with("num_outputs", 2i64);
        emit.node(crate::Operator::onnx("Split", halves), &[Some(bounds)], 2)?
    } else {
        vec![bounds]
    };
    let mut keep = None;
    for (bound, comparison) in parts.into_iter().zip(["Less", "GreaterOrEqual"]) {
        let bound = emit.unsqueeze(bound, &[1, 2, 3])?;
        let within = emit.op(comparison, &[places, bound], Attributes::new())?;
        keep = Some(match keep {
            Some(other) => emit.op("And", &[other, within], Attributes::new())?,
            None => within,
        });
    }
    keep.ok_or_else(|| Error::msg("a mask without bounds"))
}

/// The masks that the attributes and two inputs ask for.
fn masks(
    emit: &mut Emit,
    attrs: &Attributes,
    [q, k]: [Value; 2],
    mask: Option<Value>,
    bias: Option<Value>,
) -> Result<Vec<Value>> {
    let mut masks = Vec::new();
    if let Some(mask) = mask {
        masks.push(key_mask(emit, mask, k, f64::from(attrs.float("mask_filter_value", -10000.0)?))?);
    }
    if attrs.flag("unidirectional", false)? {
        masks.push(causal(emit, q, k)?);
    }
    masks.extend(bias);
    Ok(masks)
}

// ---- Attention ------------------------------------------------------------------------------------------------------

/// The hidden sizes of queries, keys and values, whose sum is the number of columns of the merged weight.
fn hidden_sizes(attrs: &Attributes, columns: &Dim) -> Result<[i64; 3]> {
    let Some(columns) = columns.known() else { bail!("the number of columns of the merged weight is unknown") };
    let sizes = match attrs.get_ints("qkv_hidden_sizes")? {
        Some(&[q, k, v]) => [q, k, v],
        Some(other) => bail!("attribute `qkv_hidden_sizes` has {} entries, expected 3", other.len()),
        None => [columns / 3; 3],
    };
    let sum = sizes.iter().try_fold(0i64, |sum, &size| sum.checked_add(size));
    let fits = sum == Some(columns) && sizes.iter().all(|&size| size > 0) && sizes[0] == sizes[1];
    ensure!(fits, "hidden sizes {sizes:?} for a merged weight of {columns} columns");
    Ok(sizes)
}

/// input `[b, s, D]`, weights `[D, hq + hk + hv]`, bias, mask, past `[2, b, n, p, H]`, attention_bias → `[b, s, hv]`, present.
fn infer_attention(cx: &mut InferCx) -> Result<()> {
    let (dtype, n) = (cx.dtype(0)?, heads(&cx.op.attrs, "num_heads")?);
    refuse(&cx.op.attrs, &["do_rotary", "past_present_share_buffer"])?;
    let (Some(x), Some(w)) = (cx.shape(0), cx.shape(1)) else {
        cx.set_tensor(0, dtype, None);
        cx.set_tensor(1, dtype, None);
        return Ok(());
    };
    let ([batch, length, _], [_, columns]) = (x, w) else {
        bail!("its input has rank {} and its weight rank {}, expected 3 and 2", x.len(), w.len());
    };
    let hidden: Dim = match columns.known() {
        Some(_) => hidden_sizes(&cx.op.attrs, columns)?[2].into(),
        None => Dim::Unknown,
    };
    let whole = hidden.known().is_none_or(|hidden| hidden % n == 0);
    ensure!(whole, "a hidden size of {hidden} is no multiple of {n} heads");
    let past = match cx.fact(4) {
        None => Dim::Known(0),
        Some(_) => cx.shape(4).and_then(|p| p.get(3).cloned()).unwrap_or(Dim::Unknown),
    };
    let present = vec![2i64.into(), batch.clone(), n.into(), past.add(length), hidden.div_floor(&n.into())];
    let y = vec![batch.clone(), length.clone(), hidden];
    cx.set_tensor(0, dtype, Some(y));
    cx.set_tensor(1, dtype, Some(present));
    Ok(())
}

fn decompose_attention(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let attrs = emit.attrs(id);
    let (x, weight, n) = (emit.operand(id, 0)?, emit.operand(id, 1)?, heads(&attrs, "num_heads")?);
    let Some(columns) = emit.shape(weight)?.get(1).cloned() else { bail!("its weight is no matrix") };
    let sizes = hidden_sizes(&attrs, &columns)?;
    let mut projected = emit.matmul(x, weight)?;
    if let Some(bias) = emit.graph.input(id, 2) {
        projected = emit.add(projected, bias)?;
    }
    let sizes = emit.ints(&sizes);
    let split = crate::Operator::onnx("Split", Attributes::new().with("axis", 2i64));
    let parts = emit.node(split, &[Some(projected), Some(sizes)], 3)?;
    let mut of_heads = Vec::new();
    for part in parts {
        of_heads.push(split_heads(emit, part, n)?);
    }
    let (q, mut k, mut v) = (of_heads[0], of_heads[1], of_heads[2]);
    if let Some(past) = emit.graph.input(id, 4) {
        let parts = Attributes::new().with("axis", 0i64).with("num_outputs", 2i64);
        let parts = emit.node(crate::Operator::onnx("Split", parts), &[Some(past)], 2)?;
        let first = emit.ints(&[0]);
        let past_k = emit.op("Squeeze", &[parts[0], first], Attributes::new())?;
        let past_v = emit.op("Squeeze", &[parts[1], first], Attributes::new())?;
        (k, v) = (append(emit, Some(past_k), k)?, append(emit, Some(past_v), v)?);
    }
    let (mask, bias) = (emit.graph.input(id, 3), emit.graph.input(id, 5));
    let masks = masks(emit, &attrs, [q, k], mask, bias)?;
    let y = attend(emit, [q, k, v], &attrs, &masks)?;
    let mut values = vec![merge_heads(emit, y)?];
    if emit.graph.node(id).outputs.len() > 1 {
        let (k, v) = (emit.unsqueeze(k, &[0])?, emit.unsqueeze(v, &[0])?);
        values.push(emit.op("Concat", &[k, v], Attributes::new().with("axis", 0i64))?);
    }
    Ok(values)
}

// ---- MultiHeadAttention ---------------------------------------------------------------------------------------------

/// query `[b, s, n·H]`, key `[b, t, n·H]` and value `[b, t, n·V]` (or both by heads, `[b, n, t, H]`), bias `[n·H + n·H + n·V]`, mask,
/// attention_bias, past_key, past_value → `[b, s, n·V]`, present_key, present_value.
fn infer_multi_head(cx: &mut InferCx) -> Result<()> {
    let (dtype, n) = (cx.dtype(0)?, heads(&cx.op.attrs, "num_heads")?);
    ensure!(cx.fact(8).is_none() && cx.fact(9).is_none(), "buffers shared between past and present are not supported");
    let by_heads = |slot: usize| -> Result<Option<[Dim; 4]>> {
        match cx.shape(slot) {
            Some([b, t, hidden]) => Ok(Some([b.clone(), n.into(), t.clone(), hidden.div_floor(&n.into())])),
            Some([b, n, t, size]) => Ok(Some([b.clone(), n.clone(), t.clone(), size.clone()])),
            Some(other) => bail!("input {slot} has rank {}; packed heads are not supported", other.len()),
            None => Ok(None),
        }
    };
    let (q, k, v) = (by_heads(0)?, by_heads(1)?, by_heads(2)?);
    let present = |x: &Option<[Dim; 4]>, slot: usize| -> Option<Vec<Dim>> {
        let mut shape = x.clone()?.to_vec();
        if cx.fact(slot).is_some() {
            let past = cx.shape(slot).and_then(|p| p.get(2).cloned()).unwrap_or(Dim::Unknown);
            shape[2] = past.add(&shape[2]);
        }
        Some(shape)
    };
    let (present_k, present_v) = (present(&k, 6), present(&v, 7));
    let y = match (q, v) {
        (Some([b, _, s, _]), Some([_, _, _, size])) => Some(vec![b, s, size.mul(&n.into())]),
        _ => None,
    };
    cx.set_tensor(0, dtype, y);
    cx.set_tensor(1, dtype, present_k);
    cx.set_tensor(2, dtype, present_v);
    Ok(())
}

fn decompose_multi_head(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (attrs, mut parts) = (emit.attrs(id), [emit.operand(id, 0)?, emit.operand(id, 1)?, emit.operand(id, 2)?]);
    let n = heads(&attrs, "num_heads")?;
    if let Some(bias) = emit.graph.input(id, 3) {
        add_biases(emit, &mut parts, bias, n)?;
    }
    for part in &mut parts {
        if emit.rank(*part)? == 3 {
            *part = split_heads(emit, *part, n)?;
        }
    }
    let [q, k, v] = parts;
    let (past_k, past_v) = (emit.graph.input(id, 6), emit.graph.input(id, 7));
    let (k, v) = (append(emit, past_k, k)?, append(emit, past_v, v)?);
    let (mask, bias) = (emit.graph.input(id, 4), emit.graph.input(id, 5));
    let masks = masks(emit, &attrs, [q, k], mask, bias)?;
    let y = attend(emit, [q, k, v], &attrs, &masks)?;
    Ok(vec![merge_heads(emit, y)?, k, v])
}

/// Adds the parts of the merged bias to what has not been projected before.
fn add_biases(emit: &mut Emit, parts: &mut [Value; 3], bias: Value, n: i64) -> Result<()> {
    let mut start = 0i64;
    for part in parts {
        let shape = emit.shape(*part)?;
        let known = match shape.as_slice() {
            [_, _, hidden] => hidden.known(),
            [_, _, _, size] => size.known().and_then(|size| size.checked_mul(n)),
            _ => None,
        };
        let Some(hidden) = known else { bail!("a hidden size is unknown, so its part of the bias is too") };
        let (from, to) = (emit.ints(&[start]), emit.ints(&[start.saturating_add(hidden)]));
        start = start.saturating_add(hidden);
        if shape.len() == 3 {
            let own = emit.op("Slice", &[bias, from, to], Attributes::new())?;
            *part = emit.add(*part, own)?;
        }
    }
    Ok(())
}

// ---- RotaryEmbedding ------------------------------------------------------------------------------------------------

/// x `[b, s, n·H]` or `[b, n, s, H]`, position_ids `[b, s]` or `[1]` (the first position), cos and sin `[max, R/2]` → like x. The first
/// R entries of a head are rotated.
fn decompose_rotary(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let attrs = emit.attrs(id);
    refuse(&attrs, &["is_packed_batching"])?;
    let scale = attrs.float("scale", 1.0)?;
    ensure!(scale == 1.0, "attribute `scale` is {scale}, which is not supported");
    let (x, ids) = (emit.operand(id, 0)?, emit.operand(id, 1)?);
    let by_heads = match emit.rank(x)? {
        4 => x,
        _ => {
            let n = rotary_heads(emit, &attrs, x, emit.operand(id, 2)?)?;
            split_heads(emit, x, n)?
        }
    };
    let places = match emit.rank(ids)? {
        2 => ids,
        _ => {
            let steps = positions(emit, by_heads, 2)?;
            let places = emit.add(ids, steps)?;
            emit.unsqueeze(places, &[0])?
        }
    };
    let [cos, sin] = [2, 3].map(|slot| {
        let cache = emit.operand(id, slot)?;
        let rows = emit.op("Gather", &[cache, places], Attributes::new())?;
        emit.unsqueeze(rows, &[1])
    });
    let y = rotate(emit, by_heads, cos?, sin?, attrs.flag("interleaved", false)?)?;
    Ok(vec![if by_heads == x { y } else { merge_heads(emit, y)? }])
}

/// The number of heads that a row of x is made of.
fn rotary_heads(emit: &Emit, attrs: &Attributes, x: Value, cache: Value) -> Result<i64> {
    match attrs.int("num_heads", 0)? {
        0 => {
            let (hidden, half) =
                (emit.shape(x)?.last().and_then(Dim::known), emit.shape(cache)?.last().and_then(Dim::known));
            match hidden.zip(half).map(|(hidden, half)| (hidden, half.saturating_mul(2))) {
                Some((hidden, size)) if size > 0 && hidden % size == 0 => Ok(hidden / size),
                _ => bail!("attribute `num_heads` is missing, and the shapes do not say how many heads there are"),
            }
        }
        given => Ok(given),
    }
}

/// Rotates the first entries of every head of x `[b, n, s, H]`, as many as cos and sin `[b, 1, s, R/2]` are for.
pub(super) fn rotate(emit: &mut Emit, x: Value, cos: Value, sin: Value, interleaved: bool) -> Result<Value> {
    let (size, half) = (emit.shape(x)?.last().and_then(Dim::known), emit.shape(cos)?.last().and_then(Dim::known));
    let Some((size, half)) = size.zip(half) else { bail!("the size of a head or of the cache is unknown") };
    ensure!(half.checked_mul(2).is_some_and(|r| r <= size), "a cache for {half} pairs, and heads of {size}");
    let (cos, sin) = match interleaved {
        true => (emit.unsqueeze(cos, &[4])?, emit.unsqueeze(sin, &[4])?),
        false => (cos, sin),
    };
    turn_first(emit, x, 2 * half, (cos, sin), interleaved)
}

// ---- samples --------------------------------------------------------------------------------------------------------

/// Puts optional inputs at their slots. Floating-point ones are checked.
fn with_inputs(mut sample: Sample, inputs: Vec<(usize, Tensor)>) -> Sample {
    for (slot, tensor) in inputs {
        let length = sample.inputs.len().max(slot + 1);
        sample.inputs.resize(length, None);
        sample.check.resize(length, false);
        sample.check[slot] = tensor.dtype() == DType::F64;
        sample.inputs[slot] = Some(tensor);
    }
    sample
}

/// One of the forms of a mask over `keys` keys of a batch of 2, whose past is of length `past`.
fn sample_mask(draw: &mut Draw, queries: usize, keys: usize) -> Tensor {
    let ones = |count: usize| (0..count).map(|i| i32::from(i % 4 != 3)).collect::<Vec<i32>>();
    match draw.int(0, 2) {
        0 => Tensor::from_vec([2], vec![keys as i32, keys as i32 - 1]),
        1 => Tensor::from_vec([2, keys], ones(2 * keys)),
        _ => Tensor::from_vec([2, queries, keys], ones(2 * queries * keys)),
    }
}

fn sample_attention(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("num_heads", 2i64).with("unidirectional", draw.chance(0.5));
    let (s, p) = (3usize, if draw.chance(0.5) { 2usize } else { 0 });
    let inputs =
        vec![draw.tensor(&[2, s, 4], -1.0, 1.0), draw.tensor(&[4, 12], -1.0, 1.0), draw.tensor(&[12], -1.0, 1.0)];
    let mut optional = Vec::new();
    if draw.chance(0.5) {
        optional.push((3, sample_mask(draw, s, s + p)));
    }
    if p > 0 {
        optional.push((4, draw.tensor(&[2, 2, 2, p, 2], -1.0, 1.0)));
    } else if draw.chance(0.3) {
        optional.push((5, draw.tensor(&[1, 2, s, s + p], -1.0, 1.0)));
    }
    let sample = with_inputs(Sample::new(operator("Attention", attrs), inputs), optional);
    Sample { outputs: if p > 0 { 2 } else { 1 }, ..sample }
}

fn sample_multi_head(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("num_heads", 2i64).with("unidirectional", draw.chance(0.3));
    let attrs = if draw.chance(0.5) { attrs.with("scale", 0.3f32) } else { attrs };
    let (s, t) = (3usize, 3usize);
    let mut inputs = vec![draw.tensor(&[2, s, 4], -1.0, 1.0)];
    inputs.extend((0..2).map(|_| draw.tensor(&[2, t, 4], -1.0, 1.0)));
    let p = if draw.chance(0.4) { 2 } else { 0 };
    let mut optional = Vec::new();
    if draw.chance(0.5) {
        optional.push((3, draw.tensor(&[12], -1.0, 1.0)));
    }
    if draw.chance(0.5) {
        optional.push((
            4,
            Tensor::from_vec([2, t + p], (0..2 * (t + p)).map(|i| i32::from(i % 4 != 3)).collect::<Vec<_>>()),
        ));
    }
    if draw.chance(0.3) {
        optional.push((5, draw.tensor(&[2, 2, s, t + p], -1.0, 1.0)));
    }
    if p > 0 {
        optional.extend([6, 7].map(|slot| (slot, draw.tensor(&[2, 2, p, 2], -1.0, 1.0))));
    }
    let sample = with_inputs(Sample::new(operator("MultiHeadAttention", attrs), inputs), optional);
    Sample { outputs: if p > 0 { 3 } else { 1 }, ..sample }
}

fn sample_rotary(draw: &mut Draw) -> Sample {
    let partial = draw.chance(0.5);
    let mut attrs = Attributes::new().with("interleaved", draw.chance(0.5));
    if partial {
        attrs = attrs.with("num_heads", 2i64).with("rotary_embedding_dim", 4i64);
    }
    let shape: &[usize] = if draw.chance(0.5) { &[2, 3, 12] } else { &[2, 2, 3, 6] };
    let ids = if draw.chance(0.5) { draw.ints(&[2, 3], 0, 4) } else { draw.ints(&[1], 0, 2) };
    let pairs = if partial { 2 } else { 3 };
    let caches = [(); 2].map(|()| draw.tensor(&[5, pairs], -1.0, 1.0));
    let mut inputs = vec![draw.tensor(shape, -1.0, 1.0), ids];
    inputs.extend(caches);
    Sample::new(operator("RotaryEmbedding", attrs), inputs)
}
