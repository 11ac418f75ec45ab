//! `Attention`: scaled dot-product attention of several heads, by which it is evaluated and differentiated.
//!
//! ```text
//! S = scale · Q Kᵀ        S = softcap · tanh(S / softcap)        S = −∞ where a query must not see a key, else S + mask
//! Y = softmax(S) · V      a query that sees no key gets zeros
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Attention.html>; Vaswani et al. 2017, Ainslie et al. 2023 (grouped queries). Shapes, with S
//! queries, P cached and L new keys, and T = P + L:
//!
//! | input, output | rank 4 | rank 3 (`q_num_heads`, `kv_num_heads`) |
//! |---|---|---|
//! | Q, Y | `[B, Hq, S, D]`, `[B, Hq, S, Dv]` | `[B, S, Hq·D]`, `[B, S, Hq·Dv]` |
//! | K, V | `[B, Hkv, L, D]`, `[B, Hkv, L, Dv]` | `[B, L, Hkv·D]`, `[B, L, Hkv·Dv]` |
//! | past and present keys, values | `[B, Hkv, P, D]`, `[B, Hkv, P, Dv]`; `[B, Hkv, T, D]`, `[B, Hkv, T, Dv]` | the same |
//! | attn_mask | broadcast to `[B, Hq, S, T]`; keys that it is too short for are not seen | the same |
//! | nonpad_kv_seqlen | `[B]`: how many keys are no padding | the same |
//! | qk_matmul_output | `[B, Hq, S, T]`: S after each of the steps, or the weights, by `qk_matmul_output_mode` | the same |
//!
//! Query i stands at position p = i + P, or i + nonpad_kv_seqlen − S where keys are padded. It sees the keys `p − left_window_size` to
//! `p + right_window_size`, with `is_causal` none behind p.
//!
//! Hq is a multiple of Hkv: consecutive query heads share a key head. They become rows of one product, so that keys and values are never
//! repeated. Which keys are seen is asked in single precision (positions up to 2²⁴), because then the question is computed
//! where the scores are.

use super::emit::Length;
use super::real::count;
use super::{CostCx, Emit, Gradient, InferCx, OpDef, Sample};
use crate::error::{Error, Result};
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Attention",
    inputs: (3, 7),
    outputs: (1, 4),
    infer,
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    flops,
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

// ---- attributes -----------------------------------------------------------------------------------------------------

/// What `qk_matmul_output` holds.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Product,
    Capped,
    Masked,
    Weights,
}

struct Settings {
    scale: Option<f64>,
    /// 0 for none.
    softcap: f64,
    /// How many keys behind a query's position it sees; `None` for all.
    ahead: Option<i64>,
    /// How many keys before a query's position it sees; `None` for all.
    back: Option<i64>,
    /// The type in which the weights are computed, if it is not that of the scores.
    precision: Option<DType>,
    stage: Stage,
}

impl Settings {
    fn read(attrs: &Attributes) -> Result<Settings> {
        let right = window(attrs, "right_window_size")?;
        let precision = match attrs.get_int("softmax_precision")? {
            None => None,
            Some(code) => {
                let dtype = i32::try_from(code).ok().and_then(DType::from_onnx_code).filter(|d| d.is_float());
                let wrong = || Error::msg(format!("attribute `softmax_precision` is {code}, no floating-point type"));
                Some(dtype.ok_or_else(wrong)?)
            }
        };
        let stage = match attrs.int("qk_matmul_output_mode", 0)? {
            0 => Stage::Product,
            1 => Stage::Capped,
            2 => Stage::Masked,
            3 => Stage::Weights,
            mode => bail!("attribute `qk_matmul_output_mode` is {mode}, expected 0 to 3"),
        };
        Ok(Settings {
            scale: attrs.get_float("scale")?.map(f64::from),
            softcap: f64::from(attrs.float("softcap", 0.0)?),
            ahead: if attrs.flag("is_causal", false)? { Some(0) } else { right },
            back: window(attrs, "left_window_size")?,
            precision,
            stage,
        })
    }
}

/// One side of the window; `None` if it is unbounded.
fn window(attrs: &Attributes, name: &str) -> Result<Option<i64>> {
    match attrs.int(name, -1)? {
        -1 => Ok(None),
        size @ 0.. => Ok(Some(size)),
        size => bail!("attribute `{name}` is {size}, expected -1 or more"),
    }
}

/// The heads of an operand of rank 3.
fn heads(attrs: &Attributes, name: &str) -> Result<usize> {
    let heads = count(attrs, name, 0)?;
    ensure!(heads > 0, "operands of rank 3 need the attribute `{name}`, at least 1");
    Ok(heads)
}

// ---- types ----------------------------------------------------------------------------------------------------------

fn infer(cx: &mut InferCx) -> Result<()> {
    Settings::read(&cx.op.attrs)?;
    let (dtype, value_dtype) = (cx.dtype(0)?, cx.dtype(2)?);
    ensure!(dtype.is_float() && value_dtype.is_float(), "Q is {dtype}, V is {value_dtype}, expected floats");
    ensure!(cx.dtype(1)? == dtype, "Q is {dtype}, K is {}", cx.dtype(1)?);
    let given = |slot: usize| cx.fact(slot).is_some();
    ensure!(given(4) == given(5), "past_key and past_value are given together or not at all");
    ensure!(!(given(4) && given(6)), "nonpad_kv_seqlen is not used together with past_key");
    let operands = [(0, "q_num_heads"), (1, "kv_num_heads"), (2, "kv_num_heads")];
    let operands: Vec<Option<Vec<Dim>>> =
        operands.iter().map(|&(slot, name)| split_dims(cx, slot, name)).collect::<Result<_>>()?;
    let [Some(q), Some(k), Some(v)] = &operands[..] else {
        [dtype, dtype, value_dtype, dtype].into_iter().enumerate().for_each(|(i, d)| cx.set_tensor(i, d, None));
        return Ok(());
    };
    let past = match given(4) {
        true => cx.shape(4).and_then(|shape| shape.get(2).cloned()).unwrap_or(Dim::Unknown),
        false => Dim::Known(0),
    };
    let total = past.add(&k[2]);
    check_operands(q, k, v)?;
    check_mask(cx, [&q[0], &q[1], &q[2], &total])?;
    let flat = cx.shape(0).is_some_and(|shape| shape.len() == 3);
    let y = match flat {
        true => vec![q[0].clone(), q[2].clone(), q[1].mul(&v[3])],
        false => vec![q[0].clone(), q[1].clone(), q[2].clone(), v[3].clone()],
    };
    let present = |x: &[Dim]| vec![x[0].clone(), x[1].clone(), total.clone(), x[3].clone()];
    let scores = vec![q[0].clone(), q[1].clone(), q[2].clone(), total.clone()];
    let (key, value) = (present(k), present(v));
    cx.set_tensor(0, dtype, Some(y));
    cx.set_tensor(1, dtype, Some(key));
    cx.set_tensor(2, value_dtype, Some(value));
    cx.set_tensor(3, dtype, Some(scores));
    Ok(())
}

/// The shape of an operand as `[batch, heads, tokens, size]`; `None` if its rank is unknown.
fn split_dims(cx: &InferCx, slot: usize, name: &str) -> Result<Option<Vec<Dim>>> {
    let rank = cx.shape(0).map(<[Dim]>::len);
    let Some(shape) = cx.shape(slot) else { return Ok(None) };
    ensure!(rank.is_none_or(|r| r == shape.len()), "input {slot} has rank {}, Q {}", shape.len(), rank.unwrap_or(0));
    Ok(Some(match shape {
        [_, _, _, _] => shape.to_vec(),
        [batch, tokens, hidden] => {
            let heads = heads(&cx.op.attrs, name)? as i64;
            let fits = hidden.known().is_none_or(|hidden| hidden % heads == 0);
            ensure!(fits, "input {slot} has rows of length {hidden} for {heads} heads");
            vec![batch.clone(), heads.into(), tokens.clone(), hidden.div_floor(&heads.into())]
        }
        _ => bail!("input {slot} has rank {}, expected 3 or 4", shape.len()),
    }))
}

/// Errors if two lengths that belong together are known and differ.
fn check_operands(q: &[Dim], k: &[Dim], v: &[Dim]) -> Result<()> {
    let same = |a: &Dim, b: &Dim| a.known().zip(b.known()).is_none_or(|(a, b)| a == b);
    ensure!(same(&q[0], &k[0]) && same(&k[0], &v[0]), "batches of {}, {} and {}", q[0], k[0], v[0]);
    ensure!(same(&q[3], &k[3]), "heads of size {} in Q, {} in K", q[3], k[3]);
    ensure!(same(&k[1], &v[1]) && same(&k[2], &v[2]), "{} · {} keys, {} · {} values", k[1], k[2], v[1], v[2]);
    let fits = q[1].known().zip(k[1].known()).is_none_or(|(q, k)| k > 0 && q % k == 0);
    ensure!(fits, "{} query heads, expected a multiple of the {} key heads", q[1], k[1]);
    Ok(())
}

/// Errors if the mask does not broadcast to the scores; its last axis may be shorter.
fn check_mask(cx: &InferCx, scores: [&Dim; 4]) -> Result<()> {
    let Some(mask) = cx.shape(3) else { return Ok(()) };
    ensure!((1..=4).contains(&mask.len()), "attn_mask has rank {}, expected 1 to 4", mask.len());
    let last = mask.len() - 1;
    for (axis, (have, want)) in mask.iter().zip(&scores[3 - last..]).enumerate() {
        let (Some(have), Some(want)) = (have.known(), want.known()) else { continue };
        let fits = if axis == last { have <= want } else { have == 1 || have == want };
        ensure!(fits, "axis {axis} of attn_mask has length {have}, expected {want}");
    }
    Ok(())
}

// ---- decomposition --------------------------------------------------------------------------------------------------

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let settings = Settings::read(&op.attrs)?;
    let inputs: [Option<Value>; 7] = std::array::from_fn(|slot| emit.graph.input(id, slot));
    let [Some(q), Some(k), Some(v), mask, past_key, past_value, lengths] = inputs else { bail!("it needs Q, K and V") };
    let flat = emit.rank(q)? == 3;
    let q = split_heads(emit, q, &op.attrs, "q_num_heads")?;
    let k = split_heads(emit, k, &op.attrs, "kv_num_heads")?;
    let v = split_heads(emit, v, &op.attrs, "kv_num_heads")?;
    let (key, value) = (append(emit, past_key, k)?, append(emit, past_value, v)?);
    let product = scores(emit, q, key, &settings)?;
    let capped = if settings.softcap > 0.0 { cap(emit, product, settings.softcap)? } else { product };
    let mask = mask.map(|mask| lengthened(emit, mask, key)).transpose()?;
    let positions = Positions { q, key, past: past_key, lengths };
    let masked = masked(emit, capped, mask, &positions, &settings)?;
    // Without these every query sees the first key at least.
    let guarded = mask.is_some() || lengths.is_some() || settings.back.is_some();
    let weights = weights(emit, masked, guarded, settings.precision)?;
    let y = weighted_sum(emit, weights, value, q)?;
    let y = if flat { join_heads(emit, y)? } else { y };
    let stage = match settings.stage {
        Stage::Product => product,
        Stage::Capped => capped,
        Stage::Masked => masked,
        Stage::Weights => weights,
    };
    Ok(vec![y, key, value, stage])
}

/// `[batch, tokens, heads · size]` as `[batch, heads, tokens, size]`.
fn split_heads(emit: &mut Emit, x: Value, attrs: &Attributes, name: &str) -> Result<Value> {
    match emit.rank(x)? {
        4 => Ok(x),
        3 => {
            let heads = heads(attrs, name)? as i64;
            let lengths =
                [Length::Axis(x, 0), Length::Axis(x, 1), Length::Number(heads), Length::Quotient(x, 2, heads)];
            let rows = emit.reshape_to(x, &lengths)?;
            emit.transpose(rows, &[0, 2, 1, 3])
        }
        rank => bail!("an operand has rank {rank}, expected 3 or 4"),
    }
}

/// `[batch, heads, tokens, size]` as `[batch, tokens, heads · size]`; the heads are a number.
fn join_heads(emit: &mut Emit, x: Value) -> Result<Value> {
    let Some(heads) = emit.shape(x)?.get(1).and_then(Dim::known) else { bail!("the number of heads is unknown") };
    let rows = emit.transpose(x, &[0, 2, 1, 3])?;
    emit.reshape_to(rows, &[Length::Axis(rows, 0), Length::Axis(rows, 1), Length::Multiple(rows, 3, heads)])
}

/// The past tokens, then the new ones.
pub(super) fn append(emit: &mut Emit, past: Option<Value>, new: Value) -> Result<Value> {
    match past {
        Some(past) => emit.op("Concat", &[past, new], Attributes::new().with("axis", 2i64)),
        None => Ok(new),
    }
}

/// `scale · Q Kᵀ`, `[batch, query heads, queries, keys]`.
fn scores(emit: &mut Emit, q: Value, key: Value, settings: &Settings) -> Result<Value> {
    let (scaled_q, scaled_k) = scaled(emit, q, key, settings.scale)?;
    let rows = share_heads(emit, scaled_q, key)?;
    let columns = emit.swap_last(scaled_k)?;
    let product = emit.matmul(rows, columns)?;
    part_heads(emit, product, q, Length::Axis(key, 2))
}

/// Both factors, one scaled, or in half precision both by the root, lest the product overflow.
fn scaled(emit: &mut Emit, q: Value, k: Value, scale: Option<f64>) -> Result<(Value, Value)> {
    let dtype = emit.dtype(q)?;
    let half = dtype.bits() < 32;
    let size = emit.shape(q)?.last().and_then(Dim::known);
    let Some(scale) = scale.or(size.map(|size| 1.0 / (size as f64).sqrt())) else {
        let size = emit.shape_tensor(&[Length::Axis(q, 3)])?;
        let size = emit.cast(size, if half { DType::F32 } else { dtype })?;
        let root = emit.unary("Sqrt", size)?;
        let root = if half { emit.unary("Sqrt", root)? } else { root };
        let root = emit.cast(root, dtype)?;
        return Ok((emit.div(q, root)?, if half { emit.div(k, root)? } else { k }));
    };
    match half && scale >= 0.0 {
        true => Ok((emit.mul_scalar(q, scale.sqrt())?, emit.mul_scalar(k, scale.sqrt())?)),
        false => Ok((emit.mul_scalar(q, scale)?, k)),
    }
}

/// The heads that share a key head as rows of one: `[batch, query heads, n, size]` as `[batch, key heads, group · n, size]`.
fn share_heads(emit: &mut Emit, x: Value, key: Value) -> Result<Value> {
    let (shape, key_shape) = (emit.shape(x)?, emit.shape(key)?);
    let (heads, key_heads) = (&shape[1], &key_shape[1]);
    if heads.same(key_heads) {
        return Ok(x);
    }
    let rows = heads.mul(&shape[2]).div_floor(key_heads).known().unwrap_or(-1);
    let lengths = [Length::Axis(x, 0), Length::Axis(key, 1), Length::Number(rows), Length::Axis(x, 3)];
    emit.reshape_to(x, &lengths)
}

/// Undoes [`share_heads`] on a product with rows of this length.
fn part_heads(emit: &mut Emit, product: Value, q: Value, length: Length) -> Result<Value> {
    if emit.shape(product)?[1].same(&emit.shape(q)?[1]) {
        return Ok(product);
    }
    emit.reshape_to(product, &[Length::Axis(q, 0), Length::Axis(q, 1), Length::Axis(q, 2), length])
}

/// `softcap · tanh(scores / softcap)`
fn cap(emit: &mut Emit, scores: Value, softcap: f64) -> Result<Value> {
    let bound = emit.scalar(softcap, scores)?;
    let ratio = emit.div(scores, bound)?;
    let bounded = emit.unary("Tanh", ratio)?;
    emit.mul(bounded, bound)
}

/// The mask with an entry for every key: keys that it lacks are not seen.
fn lengthened(emit: &mut Emit, mask: Value, key: Value) -> Result<Value> {
    let (have, want) = (emit.shape(mask)?.last().cloned(), &emit.shape(key)?[2]);
    let Some(have) = have else { bail!("attn_mask has rank 0") };
    if have.same(want) {
        return Ok(mask);
    }
    let last = emit.rank(mask)? - 1;
    let missing = match want.sub(&have).known() {
        Some(missing) => emit.ints(&[0, missing]),
        None => {
            let want = emit.shape_tensor(&[Length::Number(0), Length::Axis(key, 2)])?;
            let have = emit.shape_tensor(&[Length::Number(0), Length::Axis(mask, last)])?;
            emit.sub(want, have)?
        }
    };
    let unseen = match emit.dtype(mask)? {
        DType::Bool => emit.constant(Tensor::scalar(false)),
        dtype if dtype.is_float() => emit.scalar(f64::NEG_INFINITY, mask)?,
        dtype => bail!("attn_mask of type {dtype} is shorter than the keys"),
    };
    let axes = emit.ints(&[last as i64]);
    let inputs = [Some(mask), Some(missing), Some(unseen), Some(axes)];
    Ok(emit.node(Operator::onnx("Pad", Attributes::new()), &inputs, 1)?[0])
}

/// What says which keys a query sees, besides the mask.
struct Positions {
    /// `[batch, heads, queries, size]`
    q: Value,
    /// `[batch, heads, keys, size]`
    key: Value,
    past: Option<Value>,
    lengths: Option<Value>,
}

/// The scores with the mask added, −∞ where a query must not see a key.
fn masked(
    emit: &mut Emit,
    scores: Value,
    mask: Option<Value>,
    positions: &Positions,
    settings: &Settings,
) -> Result<Value> {
    let mut scores = scores;
    let mut seen = seen(emit, positions, settings)?;
    if let Some(mask) = mask {
        if emit.dtype(mask)? == DType::Bool {
            seen.push(mask);
        } else {
            let mask = emit.cast(mask, emit.dtype(scores)?)?;
            scores = emit.add(scores, mask)?;
        }
    }
    let mut all: Option<Value> = None;
    for condition in seen {
        all = Some(match all {
            Some(all) => emit.op("And", &[all, condition], Attributes::new())?,
            None => condition,
        });
    }
    match all {
        Some(all) => emit.select_or(all, scores, f64::NEG_INFINITY),
        None => Ok(scores),
    }
}

/// The conditions under which a query sees a key, as booleans that broadcast to the scores.
fn seen(emit: &mut Emit, positions: &Positions, settings: &Settings) -> Result<Vec<Value>> {
    let windowed = settings.ahead.is_some() || settings.back.is_some();
    let mut conditions = Vec::new();
    if !windowed && positions.lengths.is_none() {
        return Ok(conditions);
    }
    let keys = emit.indices(Length::Axis(positions.key, 2))?;
    let keys = emit.cast(keys, DType::F32)?;
    let lengths = match positions.lengths {
        Some(lengths) => {
            let column = emit.unsqueeze(lengths, &[1, 2, 3])?;
            Some(emit.cast(column, DType::F32)?)
        }
        None => None,
    };
    if let Some(lengths) = lengths {
        conditions.push(emit.op("Less", &[keys, lengths], Attributes::new())?);
    }
    if !windowed {
        return Ok(conditions);
    }
    let queries = query_positions(emit, positions, lengths)?;
    if let Some(ahead) = settings.ahead {
        let last = if ahead == 0 { queries } else { emit.add_scalar(queries, ahead as f64)? };
        conditions.push(emit.op("LessOrEqual", &[keys, last], Attributes::new())?);
    }
    if let Some(back) = settings.back {
        let first = if back == 0 { queries } else { emit.add_scalar(queries, -(back as f64))? };
        conditions.push(emit.op("GreaterOrEqual", &[keys, first], Attributes::new())?);
    }
    Ok(conditions)
}

/// Where the queries stand among the keys: `[queries, 1]`, or `[batch, 1, queries, 1]` if the keys are padded.
fn query_positions(emit: &mut Emit, positions: &Positions, lengths: Option<Value>) -> Result<Value> {
    let own = emit.indices(Length::Axis(positions.q, 2))?;
    let own = emit.cast(own, DType::F32)?;
    let own = emit.unsqueeze(own, &[1])?;
    let before = match (positions.past, lengths) {
        (Some(past), _) => emit.shape_tensor(&[Length::Axis(past, 2)])?,
        (None, Some(lengths)) => {
            let queries = emit.shape_tensor(&[Length::Axis(positions.q, 2)])?;
            let queries = emit.cast(queries, DType::F32)?;
            emit.sub(lengths, queries)?
        }
        (None, None) => return Ok(own),
    };
    let before = emit.cast(before, DType::F32)?;
    emit.add(own, before)
}

/// Softmax over the keys; `guarded`: zeros for a query that sees none.
fn weights(emit: &mut Emit, scores: Value, guarded: bool, precision: Option<DType>) -> Result<Value> {
    let dtype = emit.dtype(scores)?;
    let scores = emit.cast(scores, precision.unwrap_or(dtype))?;
    let weights = match guarded {
        true => emit.sartor("GuardedSoftmax", &[scores], Attributes::new())?,
        false => emit.unary("Softmax", scores)?,
    };
    emit.cast(weights, dtype)
}

/// `weights · V`, `[batch, query heads, queries, value size]`.
fn weighted_sum(emit: &mut Emit, weights: Value, value: Value, q: Value) -> Result<Value> {
    let rows = share_heads(emit, weights, value)?;
    let same_type = emit.cast(value, emit.dtype(weights)?)?;
    let sum = emit.matmul(rows, same_type)?;
    part_heads(emit, sum, q, Length::Axis(value, 3))
}

// ---- cost and samples -----------------------------------------------------------------------------------------------

/// Every element of Q meets every key, every element of Y every value.
fn flops(cx: &CostCx) -> u64 {
    let tokens = |slot: usize| {
        let shape = cx.inputs.get(slot)?;
        shape.get(shape.len().checked_sub(2)?).map(|&d| d as u64)
    };
    let keys = tokens(1).unwrap_or(0) + tokens(4).unwrap_or(0);
    2 * keys * (cx.input_len(0) + cx.output_len(0))
}

fn sample(draw: &mut Draw) -> Sample {
    let (batch, queries, new, size, value_size) = (2, draw.int(1, 3) as usize, 3, 2, draw.int(2, 3) as usize);
    let (key_heads, group) = (draw.int(1, 2) as usize, draw.int(1, 2) as usize);
    let query_heads = key_heads * group;
    let (past, flat) = (if draw.chance(0.4) { 2 } else { 0 }, draw.chance(0.5));
    let mut attrs = Attributes::new();
    if flat {
        attrs = attrs.with("q_num_heads", query_heads as i64).with("kv_num_heads", key_heads as i64);
    }
    let mut operand = |heads: usize, tokens: usize, size: usize| match flat {
        true => draw.tensor(&[batch, tokens, heads * size], -1.0, 1.0),
        false => draw.tensor(&[batch, heads, tokens, size], -1.0, 1.0),
    };
    let mut inputs = vec![
        Some(operand(query_heads, queries, size)),
        Some(operand(key_heads, new, size)),
        Some(operand(key_heads, new, value_size)),
        None,
        None,
        None,
        None,
    ];
    let total = past + new;
    let shapes: [&[usize]; 5] =
        [&[queries, total], &[total - 1], &[batch, 1, queries, total], &[query_heads, queries, total - 1], &[1, total]];
    let shape = *draw.pick(&shapes);
    let boolean = draw.chance(0.4);
    if draw.chance(0.6) {
        let noise = draw.tensor(shape, -1.0, 1.0);
        let seen = noise.to_f64s().unwrap_or_default().into_iter().map(|x| x > -0.5).collect::<Vec<bool>>();
        inputs[3] = Some(if boolean { Tensor::from_vec(shape, seen) } else { noise });
    }
    if past > 0 {
        inputs[4] = Some(draw.tensor(&[batch, key_heads, past, size], -1.0, 1.0));
        inputs[5] = Some(draw.tensor(&[batch, key_heads, past, value_size], -1.0, 1.0));
    } else if draw.chance(0.5) {
        inputs[6] = Some(draw.ints(&[batch], 1, new as i64));
    }
    if draw.chance(0.5) {
        attrs.set("is_causal", 1i64);
    } else if draw.chance(0.5) {
        attrs.set("right_window_size", draw.int(0, 1));
    }
    if draw.chance(0.3) {
        attrs.set("left_window_size", draw.int(0, 2));
    }
    if draw.chance(0.4) {
        attrs.set("softcap", 1.5f32);
    }
    if draw.chance(0.4) {
        attrs.set("scale", 0.3f32);
    }
    // Not the masked scores: differences of infinities are no numbers.
    attrs.set("qk_matmul_output_mode", *draw.pick(&[0i64, 1, 3]));
    let outputs = if draw.chance(0.5) { 4 } else { 1 };
    let check = inputs.iter().map(|t| t.as_ref().is_some_and(|t| t.dtype() == DType::F64)).collect();
    Sample { op: Operator::onnx("Attention", attrs), inputs, check, outputs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::probe::Probe;

    #[test]
    fn shapes_of_grouped_queries_with_a_cache() {
        let mut p = Probe::new();
        let q = p.input("q", DType::F32, "batch,seq,512");
        let kv = p.input("kv", DType::F32, "batch,seq,128");
        let past = p.input("past", DType::F32, "batch,2,past,64");
        let attrs = Attributes::new().with("q_num_heads", 8i64).with("kv_num_heads", 2i64);
        let inputs = [Some(q), Some(kv), Some(kv), None, Some(past), Some(past)];
        let out = p.node("Attention", &inputs, attrs, 4);
        assert_eq!(p.show(out[0]), "float[batch, seq, 512]");
        assert_eq!(p.show(out[1]), "float[batch, 2, past + seq, 64]");
        assert_eq!(p.show(out[3]), "float[batch, 8, seq, past + seq]");
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        let mut p = Probe::new();
        let q = p.input("q", DType::F32, "1,3,4,8");
        let kv = p.input("kv", DType::F32, "1,2,4,8");
        p.op("Attention", &[q, kv, kv], Attributes::new());
        assert!(p.error().ends_with("3 query heads, expected a multiple of the 2 key heads"), "{}", p.error());
    }
}
