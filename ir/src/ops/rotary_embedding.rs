//! `RotaryEmbedding`: pairs of features of every token are turned by an angle that grows with the token's position.
//!
//! ```text
//! (a, b) → (cos · a − sin · b,  sin · a + cos · b)
//! ```
//!
//! The pairs of a head of size D are its two halves, or with `interleaved` its neighbours; features from `rotary_embedding_dim` R on (0: none)
//! stay. Spec: <https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html>; Su et al. 2021. Shapes: X and Y `[B, H, S, D]`, or
//! `[B, S, H·D]` with `num_heads`; cos_cache and sin_cache `[positions, R/2]` with position_ids `[B, S]` (`int64`), else `[B, S, R/2]`.

use super::emit::Length;
use super::real::count;
use super::{Emit, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "RotaryEmbedding",
    inputs: (3, 4),
    infer,
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    flops: |cx| 3 * cx.output_len(0),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// The heads of an input of rank 3.
fn heads(attrs: &Attributes) -> Result<i64> {
    let heads = count(attrs, "num_heads", 0)?;
    ensure!(heads > 0, "an input of rank 3 needs the attribute `num_heads`, at least 1");
    Ok(heads as i64)
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let same = dtype.is_float() && cx.dtype(1)? == dtype && cx.dtype(2)? == dtype;
    ensure!(same, "X is {dtype}, its caches are {} and {}, expected one type of floats", cx.dtype(1)?, cx.dtype(2)?);
    let by_position = cx.fact(3).is_some();
    if by_position {
        ensure!(cx.dtype(3)? == DType::I64, "position_ids is {}, expected int64", cx.dtype(3)?);
    }
    let size = match cx.shape(0) {
        Some([_, _, _, size]) => size.clone(),
        Some([_, _, hidden]) => {
            let heads = heads(&cx.op.attrs)?;
            let fits = hidden.known().is_none_or(|hidden| hidden % heads == 0);
            ensure!(fits, "rows of length {hidden} for {heads} heads");
            hidden.div_floor(&heads.into())
        }
        Some(other) => bail!("its input has rank {}, expected 3 or 4", other.len()),
        None => Dim::Unknown,
    };
    let turned = match count(&cx.op.attrs, "rotary_embedding_dim", 0)? as i64 {
        0 => size,
        turned => {
            let fits = size.known().is_none_or(|size| turned <= size);
            ensure!(fits, "attribute `rotary_embedding_dim` is {turned}, but a head has the size {size}");
            turned.into()
        }
    };
    ensure!(turned.known().is_none_or(|n| n % 2 == 0), "{turned} features cannot be paired");
    for slot in [1, 2] {
        let Some(shape) = cx.shape(slot) else { continue };
        let rank = if by_position { 2 } else { 3 };
        ensure!(shape.len() == rank, "input {slot} has rank {}, expected {rank}", shape.len());
        let pairs = (shape[rank - 1].known(), turned.known());
        let fits = !matches!(pairs, (Some(pairs), Some(turned)) if 2 * pairs != turned);
        ensure!(fits, "input {slot} has {} angles for {turned} features, expected half as many", shape[rank - 1]);
    }
    super::same_as_first(cx)
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (Some(x), Some(cos), Some(sin)) = (emit.graph.input(id, 0), emit.graph.input(id, 1), emit.graph.input(id, 2))
    else {
        bail!("it needs three inputs");
    };
    let flat = emit.rank(x)? == 3;
    let rows = if flat {
        let heads = heads(&op.attrs)?;
        let lengths = [Length::Axis(x, 0), Length::Axis(x, 1), Length::Number(heads), Length::Quotient(x, 2, heads)];
        emit.reshape_to(x, &lengths)?
    } else {
        x
    };
    let interleaved = op.attrs.flag("interleaved", false)?;
    let positions = emit.graph.input(id, 3);
    let axes: &[usize] = match (flat, interleaved) {
        (true, false) => &[2],
        (true, true) => &[2, 4],
        (false, false) => &[1],
        (false, true) => &[1, 4],
    };
    let cos = angles(emit, cos, positions, axes)?;
    let sin = angles(emit, sin, positions, axes)?;
    let turned = count(&op.attrs, "rotary_embedding_dim", 0)? as i64;
    let turned = if turned == 0 { i64::MAX } else { turned };
    let y = turn_first(emit, rows, turned, (cos, sin), interleaved)?;
    if flat {
        return Ok(vec![emit.reshape_like(y, x)?]);
    }
    emit.type_like(y, x);
    Ok(vec![y])
}

/// The cosines or sines of every token, with axes of length 1 for the heads and, if pairs have an axis of their own, for that.
fn angles(emit: &mut Emit, cache: Value, positions: Option<Value>, axes: &[usize]) -> Result<Value> {
    let rows = match positions {
        Some(positions) => emit.op("Gather", &[cache, positions], Attributes::new())?,
        None => cache,
    };
    emit.unsqueeze(rows, axes)
}

/// Some features of every head.
fn features(emit: &mut Emit, x: Value, start: i64, end: i64) -> Result<Value> {
    let (start, end, axis) = (emit.ints(&[start]), emit.ints(&[end]), emit.ints(&[3]));
    emit.op("Slice", &[x, start, end, axis], Attributes::new())
}

/// The first features of every head, so many or all, turned by their angles; the others as they are.
pub(super) fn turn_first(
    emit: &mut Emit,
    x: Value,
    turned: i64,
    (cos, sin): (Value, Value),
    interleaved: bool,
) -> Result<Value> {
    if turned == i64::MAX || emit.shape(x)?[3].known() == Some(turned) {
        return turn(emit, x, cos, sin, interleaved);
    }
    let first = features(emit, x, 0, turned)?;
    let rest = features(emit, x, turned, i64::MAX)?;
    let first = turn(emit, first, cos, sin, interleaved)?;
    emit.op("Concat", &[first, rest], Attributes::new().with("axis", 3i64))
}

/// Every pair of features turned by its angle.
fn turn(emit: &mut Emit, x: Value, cos: Value, sin: Value, interleaved: bool) -> Result<Value> {
    let pairs = match interleaved {
        true => {
            let axis = |axis| Length::Axis(x, axis);
            emit.reshape_to(x, &[axis(0), axis(1), axis(2), Length::Quotient(x, 3, 2), Length::Number(2)])?
        }
        false => x,
    };
    // Neighbours stand on an axis of their own, halves one behind the other.
    let axis = || Attributes::new().with("axis", -1i64);
    let halves = emit.node(Operator::onnx("Split", axis().with("num_outputs", 2i64)), &[Some(pairs)], 2)?;
    let (a, b) = (halves[0], halves[1]);
    let (cos_a, sin_b) = (emit.mul(cos, a)?, emit.mul(sin, b)?);
    let (sin_a, cos_b) = (emit.mul(sin, a)?, emit.mul(cos, b)?);
    let (first, second) = (emit.sub(cos_a, sin_b)?, emit.add(sin_a, cos_b)?);
    let joined = emit.op("Concat", &[first, second], axis())?;
    if interleaved { emit.reshape_like(joined, x) } else { Ok(joined) }
}

fn sample(draw: &mut Draw) -> Sample {
    let (batch, heads, tokens, size) = (2, draw.int(1, 2) as usize, 3, 4);
    let (flat, interleaved, partial) = (draw.chance(0.5), draw.chance(0.5), draw.chance(0.4));
    let mut attrs = Attributes::new().with("interleaved", i64::from(interleaved));
    if flat {
        attrs.set("num_heads", heads as i64);
    }
    if partial {
        attrs.set("rotary_embedding_dim", 2i64);
    }
    let pairs = if partial { 1 } else { size / 2 };
    let x = if flat { vec![batch, tokens, heads * size] } else { vec![batch, heads, tokens, size] };
    let by_position = draw.chance(0.5);
    let cache = if by_position { vec![5, pairs] } else { vec![batch, tokens, pairs] };
    let mut inputs = vec![draw.tensor(&x, -1.0, 1.0), draw.tensor(&cache, -1.0, 1.0), draw.tensor(&cache, -1.0, 1.0)];
    if by_position {
        inputs.push(draw.ints(&[batch, tokens], 0, 4));
    }
    Sample::new(Operator::onnx("RotaryEmbedding", attrs), inputs)
}
