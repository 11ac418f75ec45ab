//! Regions of images pooled to one size: `RoiAlign` and `MaxRoiPool`; and what both are, the operator `ai.sartor::RoiPool`,
//! with its gradient `ai.sartor::RoiPoolGrad`.
//!
//! A region is cut into `output_height · output_width` bins. A bin is a weighted sum of elements of the image `x`:
//!
//! ```text
//! mode avg:   the mean of points on a regular grid inside of the bin, interpolated linearly (He et al. 2017)
//! mode max:   the largest of their terms w · x, one element with its weight
//! mode bin:   the largest element of the bin after rounding its region to whole elements (Girshick 2015)
//!
//! RoiPool(u, rois, batch_indices, x):        y[r, c, bin]  = Σ w(x, r, bin, i) · u[batch_indices[r], c, i]
//! RoiPoolGrad(dy, rois, batch_indices, x):   dx[n, c, i]  += w(x, r, bin, i) · dy[r, c, bin]
//! RoiAlign(x, rois, batch_indices) = RoiPool(x, rois, batch_indices, x);   MaxRoiPool(x, rois): the same in mode bin
//! ```
//!
//! Which elements win is decided by `x`, and piecewise constant, so the two are each other's gradients. The regions are
//! taken as constants, as in other frameworks. Spec: <https://onnx.ai/onnx/operators/onnx__RoiAlign.html>,
//! <https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html>. Shapes: x and u `[N, C, H, W]`, rois `[R, 4]` (x1, y1, x2, y2;
//! for `MaxRoiPool` `[R, 5]` with the image in front), batch_indices `int64[R]`, y `[R, C, output_height, output_width]`. A
//! bin that sees nothing is 0.

use super::real::{count, reals, required, rounded};
use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "RoiAlign",
        inputs: (3, 3),
        decompose: Some(|emit, id| {
            let op = emit.graph.node(id).op().cloned().unwrap_or_default();
            let (x, rois, images) = (data(emit, id, 0)?, data(emit, id, 1)?, data(emit, id, 2)?);
            Ok(vec![emit.sartor("RoiPool", &[x, rois, images, x], op.attrs)?])
        }),
        grad: Gradient::Decompose,
        upgrades: &[(16, |graph, id| {
            super::upgrade::edit_attrs(graph, id, |attrs| {
                if !attrs.has(TRANSFORM) {
                    attrs.set(TRANSFORM, "output_half_pixel");
                }
            });
            Ok(())
        })],
        sample: Some(sample_align),
        ..POOL
    },
    OpDef {
        name: "MaxRoiPool",
        inputs: (2, 2),
        infer: |cx| {
            let (height, width) = pooled_shape(&cx.op.attrs)?;
            infer_pooled(cx, height, width)
        },
        decompose: Some(decompose_max),
        grad: Gradient::Decompose,
        sample: Some(sample_max),
        ..POOL
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "RoiPool",
        inputs: (4, 4),
        eval: Some(eval),
        grad: Gradient::Emit(|cx| partner(cx, "RoiPoolGrad")),
        sample: Some(|draw| sample_pool(draw, "RoiPool")),
        ..POOL
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "RoiPoolGrad",
        inputs: (4, 4),
        infer: |cx| {
            let ty = cx.ty(3)?.clone();
            cx.set(0, ty);
            Ok(())
        },
        eval: Some(eval_grad),
        grad: Gradient::Emit(|cx| partner(cx, "RoiPool")),
        flops: |cx| 8 * cx.input_len(0),
        sample: Some(|draw| sample_pool(draw, "RoiPoolGrad")),
        ..POOL
    },
];

/// What the rows share.
const POOL: OpDef = OpDef {
    infer: |cx| {
        let regions = Regions::read(&cx.op.attrs)?;
        infer_pooled(cx, regions.height, regions.width)
    },
    flops: |cx| 8 * cx.output_len(0),
    ..OpDef::DEFAULT
};
const TRANSFORM: &str = "coordinate_transformation_mode";

/// A bound on the points of one bin, so that no region asks for more time than there is.
const MAX_POINTS: f64 = (1 << 20) as f64;

fn data(emit: &Emit, id: NodeId, slot: usize) -> Result<Value> {
    match emit.graph.input(id, slot) {
        Some(value) => Ok(value),
        None => bail!("input {slot} is missing"),
    }
}

fn infer_pooled(cx: &mut InferCx, height: usize, width: usize) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape = |slot: usize| cx.shape(slot).map(<[Dim]>::to_vec);
    if let Some(x) = shape(0) {
        ensure!(x.len() == 4, "its data has rank {}, expected 4", x.len());
    }
    let regions = shape(1).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
    let channels = shape(0).and_then(|s| s.get(1).cloned()).unwrap_or(Dim::Unknown);
    cx.set_tensor(0, dtype, Some(vec![regions, channels, Dim::Known(height as i64), Dim::Known(width as i64)]));
    Ok(())
}

fn pooled_shape(attrs: &Attributes) -> Result<(usize, usize)> {
    match attrs.ints("pooled_shape", &[])?[..] {
        [height @ 1..=65536, width @ 1..=65536] => Ok((height as usize, width as usize)),
        ref other => bail!("attribute `pooled_shape` is {other:?}, expected a height and a width"),
    }
}

/// The image of each region stands in front of its corners.
fn decompose_max(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let attrs = emit.graph.node(id).op().cloned().unwrap_or_default().attrs;
    let (x, rois) = (data(emit, id, 0)?, data(emit, id, 1)?);
    let (height, width) = pooled_shape(&attrs)?;
    let images = emit.entry(rois, 0, 1)?;
    let images = emit.cast(images, DType::I64)?;
    let (from, to, axis) = (emit.ints(&[1]), emit.ints(&[5]), emit.ints(&[1]));
    let corners = emit.op("Slice", &[rois, from, to, axis], Attributes::new())?;
    let pool = Attributes::new()
        .with("mode", "bin")
        .with("output_height", height as i64)
        .with("output_width", width as i64)
        .with("spatial_scale", attrs.float("spatial_scale", 1.0)?);
    Ok(vec![emit.sartor("RoiPool", &[x, corners, images, x], pool)?])
}

/// `dy` through the partner of the operator, with the same regions and the same `x`.
fn partner(cx: &mut GradCx, name: &str) -> Result<Vec<Option<Value>>> {
    let (dy, rois, images, x, attrs) = (cx.dy()?, cx.input(1)?, cx.input(2)?, cx.input(3)?, cx.op().attrs);
    Ok(vec![Some(cx.emit.sartor(name, &[dy, rois, images, x], attrs)?), None, None, None])
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Mean,
    Max,
    Bin,
}

/// The attributes.
struct Regions {
    mode: Mode,
    height: usize,
    width: usize,
    /// Points of a bin along each axis; 0: one per element of the image.
    ratio: usize,
    scale: f64,
    half_pixel: bool,
}

/// An element of an image and its weight.
type Term = (usize, f64);

impl Regions {
    fn read(attrs: &Attributes) -> Result<Regions> {
        let mode = match attrs.str("mode", "avg")?.to_ascii_lowercase().as_str() {
            "avg" => Mode::Mean,
            "max" => Mode::Max,
            "bin" => Mode::Bin,
            other => bail!("attribute `mode` is \"{other}\", expected avg or max"),
        };
        let half_pixel = match attrs.str(TRANSFORM, "half_pixel")? {
            "half_pixel" => true,
            "output_half_pixel" => false,
            other => bail!("attribute `{TRANSFORM}` is \"{other}\", expected half_pixel or output_half_pixel"),
        };
        let (height, width) = (count(attrs, "output_height", 1)?, count(attrs, "output_width", 1)?);
        let bounds = 1..=65536;
        ensure!(
            bounds.contains(&height) && bounds.contains(&width),
            "{height} × {width} bins, expected 1 to 65536 each"
        );
        let (ratio, scale) = (count(attrs, "sampling_ratio", 0)?, f64::from(attrs.float("spatial_scale", 1.0)?));
        Ok(Regions { mode, height, width, ratio, scale, half_pixel })
    }
    /// The candidates for each bin of a region of an image of `h × w`, row by row.
    fn bins(&self, corners: &[f64], h: usize, w: usize) -> Result<Vec<Vec<Term>>> {
        let (ys, xs) = match self.mode {
            Mode::Bin => {
                (self.whole(corners[1], corners[3], self.height, h), self.whole(corners[0], corners[2], self.width, w))
            }
            _ => (
                self.points(corners[1], corners[3], self.height, h)?,
                self.points(corners[0], corners[2], self.width, w)?,
            ),
        };
        let points = ys.iter().map(Vec::len).max().unwrap_or(0) * xs.iter().map(Vec::len).max().unwrap_or(0);
        ensure!(points as f64 <= MAX_POINTS, "a bin has {points} points, expected at most {MAX_POINTS}");
        let mut bins = Vec::with_capacity(ys.len() * xs.len());
        for ys in &ys {
            for xs in &xs {
                let pairs = ys.iter().flat_map(|y| xs.iter().map(move |x| (y, x)));
                let terms = pairs.flat_map(|(y, x)| y.iter().flat_map(move |y| x.iter().map(move |x| (y, x))));
                bins.push(terms.map(|(y, x)| (y.0 * w + x.0, y.1 * x.1)).collect());
            }
        }
        Ok(bins)
    }
    /// The points of each bin along an axis, each between two elements.
    fn points(&self, from: f64, to: f64, bins: usize, length: usize) -> Result<Vec<Vec<[Term; 2]>>> {
        let shift = if self.half_pixel { 0.5 } else { 0.0 };
        let start = from * self.scale - shift;
        let extent = to * self.scale - shift - start;
        let extent = if self.half_pixel { extent } else { extent.max(1.0) };
        let bin = extent / bins as f64;
        let count = if self.ratio > 0 { self.ratio as f64 } else { bin.ceil().max(0.0) };
        ensure!(count <= MAX_POINTS, "a bin has {count} points along an axis, expected at most {MAX_POINTS}");
        let point = |b: usize, i: usize| between(start + b as f64 * bin + (i as f64 + 0.5) * bin / count, length);
        Ok((0..bins).map(|b| (0..count as usize).map(|i| point(b, i)).collect()).collect())
    }
    /// The elements of each bin along an axis.
    fn whole(&self, from: f64, to: f64, bins: usize, length: usize) -> Vec<Vec<[Term; 2]>> {
        let (start, end) = ((from * self.scale).round(), (to * self.scale).round());
        let bin = (end - start + 1.0).max(1.0) / bins as f64;
        let clamp = |place: f64| (place + start).clamp(0.0, length as f64) as usize;
        let range = |b: usize| clamp((b as f64 * bin).floor())..clamp(((b + 1) as f64 * bin).ceil());
        (0..bins).map(|b| range(b).map(|i| [(i, 1.0), (i, 0.0)]).collect()).collect()
    }
    /// The terms that a bin is the sum of, for one channel of an image.
    fn chosen(&self, candidates: &[Term], channel: &[f64]) -> Vec<Term> {
        match self.mode {
            Mode::Mean => {
                // Each point has four of them.
                let share = 4.0 / candidates.len().max(4) as f64;
                candidates.iter().filter(|t| t.1 != 0.0).map(|t| (t.0, t.1 * share)).collect()
            }
            Mode::Max => largest(candidates.iter().copied(), channel),
            Mode::Bin => largest(candidates.iter().copied().filter(|t| t.1 != 0.0), channel),
        }
    }
}

/// The first of the terms with the largest product.
fn largest(terms: impl Iterator<Item = Term>, channel: &[f64]) -> Vec<Term> {
    let value = |t: Term| t.1 * channel[t.0];
    terms.reduce(|best, t| if value(t) > value(best) { t } else { best }).into_iter().collect()
}

/// A place between two elements of an axis, with their weights. Up to one element outside it counts as the border's, beyond
/// that it is 0.
fn between(place: f64, length: usize) -> [Term; 2] {
    if length == 0 || place < -1.0 || place > length as f64 || place.is_nan() {
        return [(0, 0.0); 2];
    }
    let place = place.clamp(0.0, length as f64 - 1.0);
    let low = place.floor();
    let high = (low as usize + 1).min(length - 1);
    [(low as usize, 1.0 - (place - low)), (high, place - low)]
}

/// A pool over data of one shape.
struct Pool {
    regions: Regions,
    /// Channels of an image, and its height and width.
    channels: usize,
    size: (usize, usize),
    /// The elements of x.
    values: Vec<f64>,
    /// The corners of each region, and the image it lies in.
    corners: Vec<f64>,
    images: Vec<usize>,
    y_shape: Vec<usize>,
}

impl Pool {
    fn new(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Pool> {
        let (rois, images, x) = (required(inputs, 1)?, required(inputs, 2)?.to_i64s()?, required(inputs, 3)?);
        let regions = Regions::read(&cx.op.attrs)?;
        let [n, channels, h, w] = *x.shape() else { bail!("its data has rank {}, expected 4", x.rank()) };
        let [r, 4] = *rois.shape() else {
            bail!("its regions have shape {:?}, expected four numbers each", rois.shape())
        };
        ensure!(images.len() == r, "{r} regions, but {} images for them", images.len());
        ensure!(index::count(&[h, w]) > 0 || r == 0, "its images of {h} × {w} have no elements");
        let images = images.into_iter().map(|i| index::normal_index(i, n)).collect::<Result<Vec<usize>>>()?;
        let y_shape = vec![r, channels, regions.height, regions.width];
        index::room(&y_shape)?;
        Ok(Pool { regions, channels, size: (h, w), values: reals(x)?, corners: reals(rois)?, images, y_shape })
    }
    /// Calls `visit(element of y, element of x, weight)` for all terms.
    fn for_each_term(&self, mut visit: impl FnMut(usize, usize, f64)) -> Result<()> {
        let (h, w) = self.size;
        for (r, (image, corners)) in self.images.iter().zip(self.corners.chunks(4)).enumerate() {
            let bins = self.regions.bins(corners, h, w)?;
            for channel in 0..self.channels {
                let plane = (image * self.channels + channel) * h * w;
                for (b, candidates) in bins.iter().enumerate() {
                    let bin = (r * self.channels + channel) * bins.len() + b;
                    let chosen = self.regions.chosen(candidates, &self.values[plane..plane + h * w]);
                    chosen.into_iter().for_each(|(place, weight)| visit(bin, plane + place, weight));
                }
            }
        }
        Ok(())
    }
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (u, x) = (required(inputs, 0)?, required(inputs, 3)?);
    ensure!(u.shape() == x.shape(), "data of shape {:?}, expected {:?}", u.shape(), x.shape());
    let (pool, values) = (Pool::new(cx, inputs)?, reals(u)?);
    let mut y = vec![0.0; index::count(&pool.y_shape)];
    pool.for_each_term(|bin, place, weight| y[bin] += weight * values[place])?;
    Ok(vec![rounded(u.dtype(), pool.y_shape, y)?])
}

fn eval_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, x) = (required(inputs, 0)?, required(inputs, 3)?);
    let (pool, values) = (Pool::new(cx, inputs)?, reals(dy)?);
    ensure!(dy.shape() == pool.y_shape, "dy has the shape {:?}, expected {:?}", dy.shape(), pool.y_shape);
    let mut dx = vec![0.0; x.len()];
    pool.for_each_term(|bin, place, weight| dx[place] += weight * values[bin])?;
    Ok(vec![rounded(x.dtype(), x.shape(), dx)?])
}

// ---- samples --------------------------------------------------------------------------------------------------------

/// Attributes of a pool, regions of two images of 4 × 5, and the images that they lie in.
fn case(draw: &mut Draw) -> (Attributes, Tensor, Tensor) {
    let attrs = Attributes::new()
        .with("output_height", draw.int(1, 3))
        .with("output_width", draw.int(1, 2))
        .with("sampling_ratio", draw.int(0, 2))
        .with("spatial_scale", 0.5f32)
        .with(TRANSFORM, *draw.pick(&["half_pixel", "output_half_pixel"]));
    let corners = (0..3)
        .flat_map(|_| [draw.float(-1.0, 3.0), draw.float(-1.0, 3.0), draw.float(5.0, 11.0), draw.float(4.0, 9.0)]);
    (attrs, Tensor::from_vec([3, 4], corners.collect::<Vec<f64>>()), Tensor::from_i64s(&[1, 0, 1]))
}

/// An instance of which only input 0 is differentiated.
fn by_first(op: Operator, inputs: Vec<Tensor>) -> Sample {
    let mut sample = Sample::new(op, inputs);
    sample.check.iter_mut().skip(1).for_each(|check| *check = false);
    sample
}

fn sample_align(draw: &mut Draw) -> Sample {
    let (attrs, rois, images) = case(draw);
    let attrs = attrs.with("mode", *draw.pick(&["avg", "max"]));
    by_first(Operator::onnx("RoiAlign", attrs), vec![draw.distinct(&[2, 2, 4, 5], 0.07), rois, images])
}

fn sample_max(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("pooled_shape", [draw.int(1, 3), 2]).with("spatial_scale", 0.5f32);
    let rois = Tensor::from_vec([2, 5], vec![1.0, 0.0, 1.0, 9.0, 7.0, 0.0, 3.0, -2.0, 4.0, 3.0]);
    by_first(Operator::onnx("MaxRoiPool", attrs), vec![draw.distinct(&[2, 2, 4, 5], 0.07), rois])
}

fn sample_pool(draw: &mut Draw, name: &str) -> Sample {
    let (attrs, rois, images) = case(draw);
    let pooled =
        [3, 2, attrs.int("output_height", 1).unwrap_or(1) as usize, attrs.int("output_width", 1).unwrap_or(1) as usize];
    let attrs = attrs.with("mode", *draw.pick(&["avg", "max", "bin"]));
    let first = draw.tensor(if name == "RoiPool" { &[2, 2, 4, 5] } else { &pooled }, -1.0, 1.0);
    by_first(Operator::sartor(name, attrs), vec![first, rois, images, draw.distinct(&[2, 2, 4, 5], 0.07)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_between_elements() {
        assert_eq!(between(1.25, 3), [(1, 0.75), (2, 0.25)]);
        assert_eq!(between(-0.5, 3), [(0, 1.0), (1, 0.0)]);
        assert_eq!(between(2.5, 3), [(2, 1.0), (2, 0.0)]);
        assert_eq!(between(3.5, 3), [(0, 0.0), (0, 0.0)]);
    }
}
