//! Our own operators of training steps, written out in ONNX's: a step made of these alone runs wherever ONNX runs, without a kernel of
//! ours. And one of ONNX's in older ones.
//!
//! ```text
//! SumTo(x, shape):       Reshape(ReduceSum(x, the axes whose length differs), shape)
//! dx of a selection:     ScatterElements(zeros, the places that were selected, dy, reduction = "add"); the places are what the selection
//!                        makes of the numbers 0, 1, 2, … in the shape of x
//! ConvInputGrad:         ConvTranspose(dy, w), cut to the shape of x
//! ConvWeightGrad:        Conv(x, dy) with batch and channels in each other's roles, strides and dilations too
//! ```
//!
//! All of them are the sums of the operator itself in another order. They are decompositions ([`super::OpDef::decompose`]) that the runtime
//! does not use: it has kernels.

use super::conv::kernel_of;
use super::emit::Length;
use super::real::count;
use super::window::{AutoPad, Window};
use super::{Emit, normal_axis};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The first output of a node, whose type says what a decomposition has to make.
fn result(id: NodeId) -> Value {
    Value { node: id, slot: 0 }
}

/// `ai.sartor::Detach`: forward it does nothing.
pub fn detach(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let x = emit.operand(id, 0)?;
    Ok(vec![emit.unary("Identity", x)?])
}

/// `ai.sartor::Gate`: its forward value.
pub fn gate(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (t, attrs) = (emit.operand(id, 0)?, emit.attrs(id));
    if attrs.flag("hard", false)? {
        let open = emit.compare_scalar("Greater", t, 0.0)?;
        return Ok(vec![emit.cast(open, emit.dtype(t)?)?]);
    }
    let (low, high) = (emit.scalar(0.0, t)?, emit.scalar(1.0, t)?);
    Ok(vec![emit.op("Clip", &[t, low, high], Attributes::new())?])
}

/// `Swish`, which is younger than what it is made of.
pub fn swish(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (x, alpha) = (emit.operand(id, 0)?, emit.attrs(id).float("alpha", 1.0)?);
    let inner = if alpha == 1.0 { x } else { emit.mul_scalar(x, f64::from(alpha))? };
    let gate = emit.unary("Sigmoid", inner)?;
    Ok(vec![emit.mul(x, gate)?])
}

/// `ai.sartor::GuardedSoftmax`: zeros instead of what is not a number.
pub fn guarded_softmax(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (x, attrs) = (emit.operand(id, 0)?, emit.attrs(id));
    let y = emit.op("Softmax", &[x], attrs)?;
    let nan = emit.unary("IsNaN", y)?;
    let zero = emit.scalar(0.0, y)?;
    Ok(vec![emit.select(nan, zero, y)?])
}

/// `ai.sartor::SumTo`.
pub fn sum_to(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (x, target) = (emit.operand(id, 0)?, emit.operand(id, 1)?);
    let (from, to) = (emit.rank(x)?, vector_length(emit, target)?);
    ensure!(to <= from, "a target of rank {to} for rank {from}");
    let (have, wide) = (emit.shape_of(x)?, emit.ints(&vec![1; from - to]));
    let wanted = emit.op("Concat", &[wide, target], Attributes::new().with("axis", 0i64))?;
    let same = emit.op("Equal", &[have, wanted], Attributes::new())?;
    let differs = emit.unary("Not", same)?;
    let places = emit.unary("NonZero", differs)?;
    let axes = emit.reshape(places, &[-1])?;
    let attrs = Attributes::new().with("keepdims", 1i64).with("noop_with_empty_axes", 1i64);
    let sum = emit.op("ReduceSum", &[x, axes], attrs)?;
    Ok(vec![emit.op("Reshape", &[sum, target], Attributes::new().with("allowzero", 1i64))?])
}

/// The length of a vector, which is part of its type.
fn vector_length(emit: &Emit, vector: Value) -> Result<usize> {
    match emit.shape(vector)?.as_slice() {
        [length] if length.known().is_some_and(|n| n >= 0) => Ok(length.known().unwrap_or(0) as usize),
        _ => bail!("the length of \"{}\" is unknown", emit.graph.value_name(vector)),
    }
}

// ---- gradients of selections ------------------------------------------------------------------------------------------

/// `ai.sartor::GatherGrad`: the axis between those before it and those behind it, so that rows of `[before, length, behind]` are added up.
pub fn gather_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (dy, indices, shape) = (emit.operand(id, 0)?, emit.operand(id, 1)?, emit.operand(id, 2)?);
    let axis = normal_axis(emit.attrs(id).int("axis", 0)?, vector_length(emit, shape)?)? as i64;
    let (before, length) = (product(emit, shape, 0, axis)?, part(emit, shape, axis, axis + 1)?);
    let behind = product(emit, shape, axis + 1, i64::MAX)?;
    let flat = emit.reshape(indices, &[-1])?;
    let taken = emit.op("Shape", &[flat], Attributes::new())?;
    let join =
        |emit: &mut Emit, middle| emit.op("Concat", &[before, middle, behind], Attributes::new().with("axis", 0i64));
    let (from, to) = (join(emit, taken)?, join(emit, length)?);
    let places = emit.reshape(flat, &[1, -1, 1])?;
    let places = emit.op("Expand", &[places, from], Attributes::new())?;
    let updates = emit.op("Reshape", &[dy, from], Attributes::new().with("allowzero", 1i64))?;
    let sum = scatter(emit, to, places, updates, 1)?;
    Ok(vec![emit.op("Reshape", &[sum, shape], Attributes::new().with("allowzero", 1i64))?])
}

/// Some entries of a vector.
pub(super) fn part(emit: &mut Emit, vector: Value, start: i64, end: i64) -> Result<Value> {
    let (start, end) = (emit.ints(&[start]), emit.ints(&[end]));
    emit.op("Slice", &[vector, start, end], Attributes::new())
}

/// The product of some entries of a vector, as a vector of one.
fn product(emit: &mut Emit, vector: Value, start: i64, end: i64) -> Result<Value> {
    let part = part(emit, vector, start, end)?;
    emit.op("ReduceProd", &[part], Attributes::new().with("keepdims", 1i64))
}

/// Updates added up at their places along an axis of a tensor of zeros.
fn scatter(emit: &mut Emit, shape: Value, places: Value, updates: Value, axis: i64) -> Result<Value> {
    let zero = Tensor::zeros(emit.dtype(updates)?, [1])?;
    let zeros = emit.op("ConstantOfShape", &[shape], Attributes::new().with("value", zero))?;
    let attrs = Attributes::new().with("axis", axis).with("reduction", "add");
    emit.op("ScatterElements", &[zeros, places, updates], attrs)
}

/// `ai.sartor::GatherNDGrad`.
pub fn gather_nd_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (dy, indices, shape, attrs) =
        (emit.operand(id, 0)?, emit.operand(id, 1)?, emit.operand(id, 2)?, emit.attrs(id));
    scattered(emit, dy, shape, |emit, numbers| emit.op("GatherND", &[numbers, indices], attrs))
}

/// `ai.sartor::SliceGrad`: zeros around dy where a slice leaves out nothing in between, and its ends are known.
pub fn slice_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (dy, shape) = (emit.operand(id, 0)?, emit.operand(id, 1)?);
    if let Some((pads, axes)) = super::slice::cut_off(emit, id) {
        let (pads, axes) = (emit.ints(&pads), emit.ints(&axes));
        let inputs = [Some(dy), Some(pads), None, Some(axes)];
        return emit.node(Operator::onnx("Pad", Attributes::new()), &inputs, 1);
    }
    let bounds: Vec<Option<Value>> = (2..6).map(|slot| emit.graph.input(id, slot)).collect();
    scattered(emit, dy, shape, |emit, numbers| {
        let inputs = [&[Some(numbers)], &bounds[..]].concat();
        Ok(emit.node(Operator::onnx("Slice", Attributes::new()), &inputs, 1)?[0])
    })
}

/// `ai.sartor::PadGrad`: what was repeated adds up. Padding with a number is undone by padding with the opposite.
pub fn pad_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (dy, shape, pads) = (emit.operand(id, 0)?, emit.operand(id, 1)?, emit.operand(id, 2)?);
    let (axes, attrs) = (emit.graph.input(id, 3), emit.attrs(id));
    if attrs.str("mode", "constant")? == "constant" {
        let back = emit.unary("Neg", pads)?;
        return emit.node(Operator::onnx("Pad", attrs), &[Some(dy), Some(back), None, axes], 1);
    }
    scattered(emit, dy, shape, |emit, numbers| {
        let inputs = [Some(numbers), Some(pads), None, axes];
        Ok(emit.node(Operator::onnx("Pad", attrs), &inputs, 1)?[0])
    })
}

/// `ai.sartor::MaxPoolGrad`: the pool says once more where its maxima are.
pub fn max_pool_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (dy, x, mut attrs) = (emit.operand(id, 0)?, emit.operand(id, 1)?, emit.attrs(id));
    attrs.remove("storage_order");
    let shape = emit.shape_of(x)?;
    scattered(emit, dy, shape, |emit, _| Ok(emit.node(Operator::onnx("MaxPool", attrs), &[Some(x)], 2)?[1]))
}

/// The gradient of a selection: dy added up, in a tensor of this shape, at the places that `select` takes out of the numbers 0, 1, 2, … in
/// the same shape.
fn scattered(
    emit: &mut Emit,
    dy: Value,
    shape: Value,
    select: impl FnOnce(&mut Emit, Value) -> Result<Value>,
) -> Result<Vec<Value>> {
    let whole = Attributes::new().with("allowzero", 1i64);
    let count = product(emit, shape, 0, i64::MAX)?;
    let limit = emit.reshape(count, &[])?;
    let numbers = emit.range(limit)?;
    let numbers = emit.op("Reshape", &[numbers, shape], whole.clone())?;
    let places = select(emit, numbers)?;
    let (places, updates) = (emit.reshape(places, &[-1])?, emit.reshape(dy, &[-1])?);
    let sum = scatter(emit, count, places, updates, 0)?;
    Ok(vec![emit.op("Reshape", &[sum, shape], whole)?])
}

// ---- gradients of convolutions ----------------------------------------------------------------------------------------

/// `ai.sartor::ConvInputGrad`.
pub fn conv_input_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (dy, w, shape, attrs) = (emit.operand(id, 0)?, emit.operand(id, 1)?, emit.operand(id, 2)?, emit.attrs(id));
    let window = Window::read(&attrs, kernel_of(emit.graph.ty(w).and_then(|ty| ty.shape())).as_deref())?;
    let groups = count(&attrs, "group", 1)?;
    match spatial(emit, result(id)) {
        Some(sizes) => Ok(vec![transposed(emit, dy, w, &window.resolved(&sizes)?, groups, &sizes)?]),
        None => Ok(vec![transposed_to(emit, dy, w, &fixed(window)?, groups, shape)?]),
    }
}

/// The spatial axes of a value, if their lengths are known.
fn spatial(emit: &Emit, value: Value) -> Option<Vec<usize>> {
    let shape = emit.shape(value).ok()?;
    shape.get(2..)?.iter().map(|d| d.known().and_then(|d| usize::try_from(d).ok())).collect()
}

/// The window, if its padding does not depend on the size of the image.
fn fixed(window: Window) -> Result<Window> {
    let open = matches!(window.auto_pad, AutoPad::SameUpper | AutoPad::SameLower);
    ensure!(!open, "with `auto_pad` the padding of an image of unknown size is unknown");
    Ok(window)
}

fn ints(list: &[usize]) -> Vec<i64> {
    list.iter().map(|&n| n as i64).collect()
}

/// The attributes of a ConvTranspose that undoes a window, but for its padding.
fn transposing(window: &Window, groups: usize) -> Attributes {
    let (strides, dilations) = (ints(&window.strides), ints(&window.dilations));
    Attributes::new().with("strides", strides).with("dilations", dilations).with("group", groups as i64)
}

/// What the windows see, added up where they see it, in an image of these sizes; padding must be resolved.
pub(super) fn transposed(
    emit: &mut Emit,
    dy: Value,
    w: Value,
    window: &Window,
    groups: usize,
    sizes: &[usize],
) -> Result<Value> {
    let outputs = window.output_sizes(sizes)?;
    let (mut cut, mut missing) = (Vec::new(), Vec::new());
    for axis in 0..window.rank() {
        let seen = (outputs[axis].max(1) - 1) * window.strides[axis] + window.extent(axis);
        let wanted = window.begin[axis] + sizes[axis];
        cut.push(seen.saturating_sub(wanted));
        missing.push(wanted.saturating_sub(seen));
    }
    let mut attrs = transposing(window, groups).with("pads", ints(&[&window.begin[..], &cut].concat()));
    if missing.iter().any(|&n| n > 0) {
        attrs.set("output_padding", ints(&missing));
    }
    emit.op("ConvTranspose", &[dy, w], attrs)
}

/// The same in an image of a shape that only a run knows.
fn transposed_to(emit: &mut Emit, dy: Value, w: Value, window: &Window, groups: usize, shape: Value) -> Result<Value> {
    let full = emit.op("ConvTranspose", &[dy, w], transposing(window, groups))?;
    let axes: Vec<i64> = (2..2 + window.rank() as i64).collect();
    let axes = emit.ints(&axes);
    // The last elements that no window sees are fewer than a stride.
    let more: Vec<i64> = window.strides.iter().map(|&s| s as i64 - 1).collect();
    let pads = emit.ints(&[vec![0; more.len()], more].concat());
    let padded =
        emit.node(Operator::onnx("Pad", Attributes::new()), &[Some(full), Some(pads), None, Some(axes)], 1)?[0];
    let (sizes, begin) = (part(emit, shape, 2, i64::MAX)?, emit.ints(&ints(&window.begin)));
    let end = emit.add(sizes, begin)?;
    emit.op("Slice", &[padded, begin, end, axes], Attributes::new())
}

/// `ai.sartor::ConvWeightGrad`.
pub fn conv_weight_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (dy, x, attrs) = (emit.operand(id, 0)?, emit.operand(id, 1)?, emit.attrs(id));
    let weight = emit.shape(result(id))?;
    let window = Window::read(&attrs, kernel_of(Some(&weight)).as_deref())?;
    let window = match spatial(emit, x) {
        Some(sizes) => window.resolved(&sizes)?,
        None => fixed(window)?,
    };
    let groups = count(&attrs, "group", 1)?;
    let swap: Vec<usize> = [1, 0].into_iter().chain(2..weight.len()).collect();
    let image = match groups {
        1 => emit.transpose(x, &swap)?,
        _ => by_channel(emit, x, &weight[1], groups)?,
    };
    let filters = emit.transpose(dy, &swap)?;
    let attrs = Attributes::new()
        .with("strides", ints(&window.dilations))
        .with("dilations", ints(&window.strides))
        .with("pads", ints(&[&window.begin[..], &window.end].concat()))
        .with("group", groups as i64);
    let all = emit.op("Conv", &[image, filters], attrs)?;
    // Where a stride leaves some of the image out, there are more sums than the kernel has elements.
    let axes: Vec<i64> = (2..weight.len() as i64).collect();
    let (start, end, axes) = (emit.ints(&vec![0; axes.len()]), emit.ints(&ints(&window.kernel)), emit.ints(&axes));
    let kernel = emit.op("Slice", &[all, start, end, axes], Attributes::new())?;
    Ok(vec![emit.transpose(kernel, &swap)?])
}

/// An image `[N, G·C, …]` as `[C, G·N, …]`: its channels within a group as the batch.
fn by_channel(emit: &mut Emit, x: Value, channels: &Dim, groups: usize) -> Result<Value> {
    let Some(channels) = channels.known() else { bail!("the number of channels of a group is unknown") };
    let rank = emit.rank(x)?;
    let rest = |first: usize| (first..rank).map(|axis| Length::Axis(x, axis));
    let apart: Vec<Length> = [Length::Axis(x, 0), Length::Number(groups as i64), Length::Number(channels)]
        .into_iter()
        .chain(rest(2))
        .collect();
    let apart = emit.reshape_to(x, &apart)?;
    let perm: Vec<usize> = [2, 1, 0].into_iter().chain(3..rank + 1).collect();
    let turned = emit.transpose(apart, &perm)?;
    let joined: Vec<Length> =
        [Length::Number(channels), Length::Multiple(x, 0, groups as i64)].into_iter().chain(rest(2)).collect();
    emit.reshape_to(turned, &joined)
}
