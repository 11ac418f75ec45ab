//! `DeformConv`: a convolution whose windows see the image at places that are moved by learned offsets, and weigh what they
//! see by a learned mask.
//!
//! ```text
//! y[n, m, o] = b[m] + Σ_{c, k} w[m, c, k] · mask[n, g, k, o] · x[n, c, o·stride − pad + k·dilation + offset[n, g, k, :, o]]
//! ```
//!
//! Between elements the image is interpolated linearly ([`super::interpolate`]), outside it is 0; g = c / (C/offset_group).
//! Spec: <https://onnx.ai/onnx/operators/onnx__DeformConv.html>; Dai et al. 2017, Zhu et al. 2019. Shapes: x `[N, C, in…]`,
//! w `[M, C/group, kernel…]`, offset `[N, offset_group · K · r, out…]`, b `[M]`, mask `[N, offset_group · K, out…]`, y `[N,
//! M, out…]`, with K elements in a window over r axes; windows are those of [`super::window`]. It is evaluated and
//! differentiated, by all five inputs, as samples and one product.

use super::emit::Length;
use super::interpolate::{Interpolation, Mode, Padding};
use super::real::{count, wide};
use super::window::Window;
use super::{Emit, Gradient, InferCx, OpDef, Sample, conv, index};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "DeformConv",
    inputs: (3, 5),
    infer,
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    flops: |cx| conv::flops(cx, &cx.inputs[1], cx.output_len(0)),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn window(attrs: &Attributes, weight: Option<&[Dim]>) -> Result<Window> {
    Window::read(attrs, conv::kernel_of(weight).as_deref())
}

/// The attributes `group` and `offset_group`.
fn groups(attrs: &Attributes) -> Result<(usize, usize)> {
    let groups = (count(attrs, "group", 1)?, count(attrs, "offset_group", 1)?);
    ensure!(
        groups.0 > 0 && groups.1 > 0,
        "the attributes `group` and `offset_group` are {groups:?}, expected at least 1"
    );
    Ok(groups)
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    groups(&cx.op.attrs)?;
    let shape = match (cx.shape(0), cx.shape(2)) {
        (Some(x), Some(offset)) => {
            ensure!(x.len() >= 3, "its data has rank {}, expected at least 3", x.len());
            ensure!(offset.len() == x.len(), "its offsets have rank {}, expected {}", offset.len(), x.len());
            let channels = cx.shape(1).and_then(|w| w.first().cloned()).unwrap_or(Dim::Unknown);
            let mut spatial = offset[2..].to_vec();
            if cx.op.attrs.has("kernel_shape") || conv::kernel_of(cx.shape(1)).is_some() {
                check_offsets(cx, x, offset, &mut spatial)?;
            }
            Some([&[x[0].clone(), channels][..], &spatial].concat())
        }
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

/// The offsets are as many as the windows need, and `spatial`, their axes, becomes as precise as the windows say.
fn check_offsets(cx: &InferCx, x: &[Dim], offset: &[Dim], spatial: &mut [Dim]) -> Result<()> {
    let window = window(&cx.op.attrs, cx.shape(1))?;
    let size = index::count(&window.kernel).checked_mul(window.rank() * groups(&cx.op.attrs)?.1);
    let fits = offset[1].known().is_none_or(|n| usize::try_from(n).ok() == size);
    ensure!(
        fits,
        "it has offsets of {} channels, expected offset_group · {:?} · {}",
        offset[1],
        window.kernel,
        window.rank()
    );
    for (found, expected) in spatial.iter_mut().zip(window.output_dims(&x[2..])?) {
        let differ = found.known().zip(expected.known()).is_some_and(|(a, b)| a != b);
        ensure!(!differ, "it has offsets for {found} windows along an axis, expected {expected}");
        if found.known().is_none() {
            *found = expected;
        }
    }
    Ok(())
}

/// What is computed with, in single precision at least.
struct Parts {
    x: Value,
    weight: Value,
    offset: Value,
    window: Window,
    /// Elements of a window.
    size: i64,
    groups: i64,
    offset_groups: i64,
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let input = |slot| emit.graph.input(id, slot);
    let (Some(x), Some(weight), Some(offset)) = (input(0), input(1), input(2)) else {
        bail!("one of its inputs 0 to 2 is missing");
    };
    let (bias, mask) = (input(3), input(4));
    let dtype = emit.dtype(x)?;
    let window = window(&op.attrs, Some(&emit.shape(weight)?))?;
    let (groups, offset_groups) = groups(&op.attrs)?;
    let size = index::count(&window.kernel);
    ensure!(size < 1 << 16, "a window has {size} elements, expected less than 65536");
    let parts = Parts {
        x: emit.cast(x, wide(dtype))?,
        weight: emit.cast(weight, wide(dtype))?,
        offset: emit.cast(offset, wide(dtype))?,
        window,
        size: size as i64,
        groups: groups as i64,
        offset_groups: offset_groups as i64,
    };
    ensure!(emit.rank(x)? == parts.window.rank() + 2, "a window of {} axes", parts.window.rank());
    let mut seen = parts.samples(emit)?;
    if let Some(mask) = mask {
        let mask = emit.cast(mask, wide(dtype))?;
        let mask = emit.reshape_to(mask, &[parts.batch(), Length::Number(-1), Length::Number(1)])?;
        seen = emit.mul(seen, mask)?;
    }
    let mut y = parts.product(emit, seen)?;
    if let Some(bias) = bias {
        let bias = emit.cast(bias, wide(dtype))?;
        let spatial: Vec<usize> = (1..=parts.window.rank()).collect();
        let bias = emit.unsqueeze(bias, &spatial)?;
        y = emit.add(y, bias)?;
    }
    Ok(vec![emit.cast(y, dtype)?])
}

impl Parts {
    /// N · offset_group: groups of channels with offsets of their own are images of their own.
    fn batch(&self) -> Length {
        Length::Multiple(self.x, 0, self.offset_groups)
    }
    /// What the windows see, `[N · offset_group, K · out, C / offset_group]`.
    fn samples(&self, emit: &mut Emit) -> Result<Value> {
        let (rank, number) = (self.window.rank(), Length::Number);
        let mut lengths = vec![self.batch(), Length::Quotient(self.x, 1, self.offset_groups)];
        lengths.extend((0..rank).map(|axis| Length::Axis(self.x, 2 + axis)));
        let image = emit.reshape_to(self.x, &lengths)?;
        let mut lengths =
            vec![Length::Axis(self.x, 0), number(self.offset_groups), number(self.size), number(rank as i64)];
        lengths.extend((0..rank).map(|axis| Length::Axis(self.offset, 2 + axis)));
        let offsets = emit.reshape_to(self.offset, &lengths)?;
        let mut points = Vec::new();
        for axis in 0..rank {
            let moved = emit.entry(offsets, axis as i64, 3)?;
            let place = self.places(emit, axis)?;
            let point = emit.add(moved, place)?;
            points.push(emit.reshape_to(point, &[self.batch(), number(-1)])?);
        }
        let rule = Interpolation { mode: Mode::Linear, padding: Padding::Zeros, align_corners: true };
        rule.sample(emit, image, &points)
    }
    /// Where the windows would see the image along an axis without offsets, `[K, 1…, out, 1…]`.
    fn places(&self, emit: &mut Emit, axis: usize) -> Result<Value> {
        let (rank, dtype) = (self.window.rank(), emit.dtype(self.x)?);
        let stride = index::count(&self.window.kernel[axis + 1..]);
        let place = |k: usize| {
            let at = (k / stride % self.window.kernel[axis]) * self.window.dilations[axis];
            at as f64 - self.window.begin[axis] as f64
        };
        let shape = [vec![self.size as usize], vec![1; rank]].concat();
        let inner = Tensor::from_vec(shape, (0..self.size as usize).map(place).collect::<Vec<f64>>());
        let inner = emit.constant(inner.cast(dtype)?);
        let count = emit.length(self.offset, 2 + axis)?;
        let outer = emit.range(count)?;
        let outer = emit.cast(outer, dtype)?;
        let outer = emit.mul_scalar(outer, self.window.strides[axis] as f64)?;
        let behind: Vec<usize> = (1..rank - axis).collect();
        let outer = if behind.is_empty() { outer } else { emit.unsqueeze(outer, &behind)? };
        emit.add(inner, outer)
    }
    /// The weights times what the windows see, `[N, M, out…]`.
    fn product(&self, emit: &mut Emit, seen: Value) -> Result<Value> {
        let number = Length::Number;
        let columns = Length::Multiple(self.weight, 1, self.size);
        let per_group = Length::Quotient(self.x, 1, self.offset_groups);
        let batch = Length::Axis(self.x, 0);
        let seen =
            emit.reshape_to(seen, &[batch, number(self.offset_groups), number(self.size), number(-1), per_group])?;
        let seen = emit.transpose(seen, &[0, 1, 4, 2, 3])?;
        let seen = emit.reshape_to(seen, &[batch, number(self.groups), columns, number(-1)])?;
        let weight = emit.reshape_to(self.weight, &[number(self.groups), number(-1), columns])?;
        let y = emit.matmul(weight, seen)?;
        let mut lengths = vec![batch, Length::Axis(self.weight, 0)];
        lengths.extend((0..self.window.rank()).map(|axis| Length::Axis(self.offset, 2 + axis)));
        emit.reshape_to(y, &lengths)
    }
}

fn sample(draw: &mut Draw) -> Sample {
    let (group, offset_group) = (draw.int(1, 2), draw.int(1, 2));
    let (stride, pad) = (draw.int(1, 2), draw.int(0, 1));
    let kernel = [[2i64, 1], [2, 2]][draw.int(0, 1) as usize];
    let size = (kernel[0] * kernel[1]) as usize;
    let attrs = Attributes::new()
        .with("kernel_shape", kernel)
        .with("strides", [stride, 1])
        .with("pads", [pad, 0, 0, 1])
        .with("group", group)
        .with("offset_group", offset_group);
    let x = draw.tensor(&[2, 4, 3, 3], -1.0, 1.0);
    let weight = draw.tensor(&[2, 4 / group as usize, kernel[0] as usize, kernel[1] as usize], -1.0, 1.0);
    let output = Window::read(&attrs, None).and_then(|w| w.output_sizes(&[3, 3])).unwrap_or_default();
    let channels = offset_group as usize * size;
    let offset = draw.tensor(&[&[2, channels * 2][..], &output].concat(), -0.7, 0.7);
    let mut inputs = vec![x, weight, offset];
    if draw.chance(0.6) {
        inputs.push(draw.tensor(&[2], -1.0, 1.0));
        inputs.push(draw.tensor(&[&[2, channels][..], &output].concat(), 0.0, 1.0));
    }
    Sample::new(Operator::onnx("DeformConv", attrs), inputs)
}
