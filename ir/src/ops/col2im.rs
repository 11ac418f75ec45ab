//! `Col2Im`: windows written out side by side, as columns, are added back into the image that they were cut out of.
//!
//! ```text
//! y[n, c, o·stride − pad + k·dilation] += x[n, c·K + k, o]
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Col2Im.html>. Shapes: x `[N, C·K, L]`, with K elements in a window of shape
//! `block_shape` and L windows, image_shape and block_shape `int64[r]`, y `[N, C, image…]`; windows are those of
//! [`super::window`]. It is `ai.sartor::GatherGrad` with one place more for what falls into the padding; so the gradient
//! gathers the windows. Both shapes must be constants.

use super::emit::Length;
use super::window::{OUTSIDE, Window};
use super::{Emit, Gradient, InferCx, OpDef, Sample, index};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Col2Im",
    inputs: (3, 3),
    infer,
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    flops: |cx| cx.input_len(0),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// The window over an image, and the number of windows along each axis.
fn geometry(attrs: &Attributes, image: &[i64], block: &[i64]) -> Result<(Window, Vec<usize>, Vec<usize>)> {
    let (image, block) = (index::sizes(image)?, index::sizes(block)?);
    ensure!(image.len() == block.len(), "an image of shape {image:?} and blocks of shape {block:?}");
    let bounds = |sizes: &[usize]| sizes.iter().all(|d| (1..1 << 24).contains(d));
    ensure!(bounds(&image) && bounds(&block), "an image of shape {image:?} and blocks of shape {block:?}");
    let window = Window::read(attrs, Some(&block))?;
    let output = window.output_sizes(&image)?;
    Ok((window, image, output))
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (dtype, block) = (cx.dtype(0)?, cx.ints(2));
    let (mut batch, mut channels) = (Dim::Unknown, Dim::Unknown);
    if let Some(x) = cx.shape(0) {
        let [n, rows, windows] = x else { bail!("its data has rank {}, expected 3", x.len()) };
        batch = n.clone();
        if let Some(block) = &block {
            let size = index::count(&index::sizes(block)?) as i64;
            let whole = rows.known().is_none_or(|rows| size > 0 && rows % size == 0);
            ensure!(whole, "its data has {rows} rows, expected a multiple of the block's {size} elements");
            channels = rows.div_floor(&size.into());
        }
        if let (Some(image), Some(block)) = (cx.ints(1), &block) {
            let (_, _, output) = geometry(&cx.op.attrs, &image, block)?;
            let expected = index::count(&output);
            let fits = windows.known().is_none_or(|l| usize::try_from(l).ok() == Some(expected));
            ensure!(fits, "its data has {windows} windows, expected {output:?}");
        }
    }
    let image = index::elements(cx, 1).map(|image| [&[batch, channels][..], &image].concat());
    cx.set_tensor(0, dtype, image);
    Ok(())
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let Some(x) = emit.graph.input(id, 0) else { bail!("input 0 is missing") };
    let numbers = |slot| emit.graph.input(id, slot).and_then(|v| emit.graph.constant(v));
    let (Some(image), Some(block)) = (numbers(1), numbers(2)) else {
        bail!("the shapes of the image and of the blocks are known only when it runs");
    };
    let (window, image, output) = geometry(&op.attrs, &image.to_i64s()?, &block.to_i64s()?)?;
    let taps = window.taps(&image, &output)?;
    let places = index::count(&image);
    index::room(&image)?;
    let place = |&at: &usize| if at < OUTSIDE { at as i64 } else { places as i64 };
    let indices: Vec<i64> = (0..taps.size).flat_map(|k| taps.of(k).iter().map(place)).collect();
    let indices = emit.ints(&indices);
    let (batch, channels) = (Length::Axis(x, 0), Length::Quotient(x, 1, taps.size as i64));
    let columns = emit.reshape_to(x, &[batch, channels, Length::Number((taps.size * taps.windows) as i64)])?;
    let shape = emit.shape_tensor(&[batch, channels, Length::Number(places as i64 + 1)])?;
    let along = Attributes::new().with("axis", 2i64);
    let sums = emit.sartor("GatherGrad", &[columns, indices, shape], along)?;
    let (from, to, axis) = (emit.ints(&[0]), emit.ints(&[places as i64]), emit.ints(&[2]));
    let sums = emit.op("Slice", &[sums, from, to, axis], Attributes::new())?;
    let mut lengths = vec![batch, channels];
    lengths.extend(image.iter().map(|&d| Length::Number(d as i64)));
    Ok(vec![emit.reshape_to(sums, &lengths)?])
}

fn sample(draw: &mut Draw) -> Sample {
    let rank = draw.int(1, 2) as usize;
    let mut list = |low: i64, high: i64, length: usize| (0..length).map(|_| draw.int(low, high)).collect::<Vec<_>>();
    let (block, image) = (list(1, 3, rank), list(5, 6, rank));
    let attrs = Attributes::new()
        .with("strides", list(1, 2, rank))
        .with("dilations", list(1, 2, rank))
        .with("pads", list(0, 1, 2 * rank));
    let windows = geometry(&attrs, &image, &block).map(|g| index::count(&g.2)).unwrap_or(0);
    let rows = 2 * block.iter().product::<i64>() as usize;
    let x = draw.tensor(&[2, rows, windows], -1.0, 1.0);
    Sample::new(Operator::onnx("Col2Im", attrs), vec![x, Tensor::from_i64s(&image), Tensor::from_i64s(&block)])
}
