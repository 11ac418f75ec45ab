//! `AffineGrid` and `GridSample`: where an affine map takes the places of an image, and an image at such places.
//!
//! ```text
//! AffineGrid(theta, size):  y[n, o, :] = theta[n] · (o₋₁, …, o₀, 1)     o: the place in [−1, 1] along each axis, innermost first
//! GridSample(x, grid):      y[n, c, o] = x[n, c, place(grid[n, o])]     interpolated as in [`super::interpolate`]
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__GridSample.html>; Jaderberg et al. 2015. Shapes: theta `[N, r, r + 1]`, size
//! `int64[r + 2]` (`N, C, out…`), grids `[N, out…, r]`, x `[N, C, in…]`, y `[N, C, out…]`. −1 and 1 are the middles of the
//! outermost elements with `align_corners`, else their outer ends. Places are computed in single precision at least;
//! interpolated integers are rounded toward zero. Both have the gradients of their decompositions, by theta, by the image
//! and by the grid.

use super::emit::Length;
use super::interpolate::{Interpolation, Mode};
use super::real::wide;
use super::{Emit, Gradient, InferCx, OpDef, Sample, index, upgrade};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attribute, Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "AffineGrid",
        inputs: (2, 2),
        infer: infer_affine,
        decompose: Some(decompose_affine),
        grad: Gradient::Decompose,
        flops: |cx| 6 * cx.output_len(0),
        sample: Some(sample_affine),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "GridSample",
        inputs: (2, 2),
        infer: infer_sampled,
        decompose: Some(decompose_sampled),
        grad: Gradient::Decompose,
        flops: |cx| 8 * cx.output_len(0),
        upgrades: &[(20, |graph, id| {
            upgrade::edit_attrs(graph, id, |attrs| {
                // They were called bilinear and bicubic.
                if let Some(Attribute::String(mode)) = attrs.0.get_mut("mode")
                    && let Some(rest) = mode.strip_prefix(b"bi")
                {
                    *mode = rest.to_vec();
                }
            });
            Ok(())
        })],
        sample: Some(sample_sampled),
        ..OpDef::DEFAULT
    },
];

fn infer_affine(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    cx.op.attrs.flag("align_corners", false)?;
    let (theta, size) = (cx.shape(0).map(<[Dim]>::to_vec), index::elements(cx, 1));
    let mut batch = Dim::Unknown;
    let mut spatial = None;
    if let Some(theta) = &theta {
        let [n, rows, cols] = &theta[..] else { bail!("theta has rank {}, expected 3", theta.len()) };
        let fits = rows.known().zip(cols.known()).is_none_or(|(r, c)| (1..=8).contains(&r) && c == r + 1);
        ensure!(fits, "theta holds matrices of {rows} × {cols}, expected r × (r + 1)");
        batch = n.clone();
        spatial = rows.known().map(|r| r as usize);
    }
    if let (Some(r), Some(size)) = (spatial, &size) {
        ensure!(size.len() == r + 2, "size has {} elements, expected {}", size.len(), r + 2);
    }
    let rank = spatial.or(size.as_ref().and_then(|s| s.len().checked_sub(2)));
    let lengths = size.map(|s| s.into_iter().skip(2).collect::<Vec<_>>());
    let shape = rank.map(|r| {
        let lengths = lengths.unwrap_or_else(|| vec![Dim::Unknown; r]);
        [&[batch][..], &lengths, &[Dim::Known(r as i64)]].concat()
    });
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

/// `Σ place along an axis · its column of theta`, plus the last column.
fn decompose_affine(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (Some(theta), Some(size)) = (emit.graph.input(id, 0), emit.graph.input(id, 1)) else {
        bail!("theta or size is missing");
    };
    let align_corners = op.attrs.flag("align_corners", false)?;
    let rows = emit.shape(theta)?.get(1).and_then(Dim::known);
    let elements = emit.shape(size)?.first().and_then(Dim::known);
    let Some(r @ 1..=8) = rows.or(elements.map(|n| n - 2)) else {
        bail!("the number of axes of the grid is not known")
    };
    let (r, dtype) = (r as usize, emit.dtype(theta)?);
    let theta = emit.cast(theta, wide(dtype))?;
    let between: Vec<usize> = (1..=r).collect();
    let column = |emit: &mut Emit, j: usize| -> Result<Value> {
        let column = emit.entry(theta, j as i64, 2)?;
        emit.unsqueeze(column, &between)
    };
    let mut sum = column(emit, r)?;
    for axis in 0..r {
        let length = emit.entry(size, 2 + axis as i64, 0)?;
        let place = places(emit, length, wide(dtype), align_corners)?;
        let place = emit.unsqueeze(place, &between[..r - axis])?;
        let column = column(emit, r - 1 - axis)?;
        let term = emit.mul(place, column)?;
        sum = emit.add(sum, term)?;
    }
    Ok(vec![emit.cast(sum, dtype)?])
}

/// The places in [−1, 1] of `length` elements: `(2 i − (length − 1)) / length`, between corners `… / (length − 1)`.
fn places(emit: &mut Emit, length: Value, dtype: DType, align_corners: bool) -> Result<Value> {
    let i = emit.range(length)?;
    let (i, length) = (emit.cast(i, dtype)?, emit.cast(length, dtype)?);
    let last = emit.add_scalar(length, -1.0)?;
    let twice = emit.mul_scalar(i, 2.0)?;
    let above = emit.sub(twice, last)?;
    let one = emit.scalar(1.0, length)?;
    let extent = if align_corners { last } else { length };
    let extent = emit.op("Max", &[extent, one], Attributes::new())?;
    emit.div(above, extent)
}

fn infer_sampled(cx: &mut InferCx) -> Result<()> {
    Interpolation::read(&cx.op.attrs)?;
    let dtype = cx.dtype(0)?;
    ensure!(cx.dtype(1)?.is_float(), "its grid is {}, expected a floating-point type", cx.dtype(1)?);
    let shape = match (cx.shape(0), cx.shape(1)) {
        (Some(x), Some(grid)) => {
            ensure!(x.len() >= 3, "its data has rank {}, expected at least 3", x.len());
            ensure!(grid.len() == x.len(), "its grid has rank {}, expected {}", grid.len(), x.len());
            let (coordinates, spatial) = (&grid[grid.len() - 1], x.len() as i64 - 2);
            let fits = coordinates.known().is_none_or(|c| c == spatial);
            ensure!(fits, "its grid has {coordinates} coordinates, expected {spatial}");
            let batches = x[0].known().zip(grid[0].known());
            ensure!(batches.is_none_or(|(a, b)| a == b), "data of batch {}, grid of batch {}", x[0], grid[0]);
            Some([&x[..2], &grid[1..grid.len() - 1]].concat())
        }
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn decompose_sampled(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (Some(x), Some(grid)) = (emit.graph.input(id, 0), emit.graph.input(id, 1)) else {
        bail!("data or grid is missing");
    };
    let rule = Interpolation::read(&op.attrs)?;
    let dtype = emit.dtype(x)?;
    let (values, numbers) = match (dtype.is_float(), rule.mode) {
        (true, _) => (wide(dtype), wide(dtype)),
        (false, Mode::Nearest) => (dtype, wide(emit.dtype(grid)?)),
        (false, _) => (DType::F64, DType::F64),
    };
    let image = emit.cast(x, values)?;
    let grid = emit.cast(grid, numbers)?;
    let rank = emit.rank(x)?;
    let mut points = Vec::new();
    for axis in 2..rank {
        // Coordinates stand with the innermost axis first.
        let coordinate = emit.entry(grid, (rank - 1 - axis) as i64, rank - 1)?;
        let coordinate = emit.reshape(coordinate, &[0, -1])?;
        points.push(element_place(emit, coordinate, x, axis, rule.align_corners)?);
    }
    let rows = rule.sample(emit, image, &points)?;
    let sampled = emit.transpose(rows, &[0, 2, 1])?;
    let mut lengths = vec![Length::Axis(x, 0), Length::Axis(x, 1)];
    lengths.extend((1..rank - 1).map(|axis| Length::Axis(grid, axis)));
    let sampled = emit.reshape_to(sampled, &lengths)?;
    Ok(vec![emit.cast(sampled, dtype)?])
}

/// A coordinate in [−1, 1] counted in elements of an axis of `x`.
fn element_place(emit: &mut Emit, coordinate: Value, x: Value, axis: usize, align_corners: bool) -> Result<Value> {
    let dtype = emit.dtype(coordinate)?;
    let length = emit.length_as(x, axis, dtype)?;
    let from_begin = emit.add_scalar(coordinate, 1.0)?;
    if align_corners {
        let last = emit.add_scalar(length, -1.0)?;
        let half = emit.mul_scalar(from_begin, 0.5)?;
        return emit.mul(half, last);
    }
    let twice = emit.mul(from_begin, length)?;
    let less = emit.add_scalar(twice, -1.0)?;
    emit.mul_scalar(less, 0.5)
}

fn sample_affine(draw: &mut Draw) -> Sample {
    let r = draw.int(2, 3) as usize;
    let size: Vec<i64> = [vec![2, 3], (0..r).map(|_| draw.int(1, 3)).collect()].concat();
    let attrs = Attributes::new().with("align_corners", draw.int(0, 1));
    let inputs = vec![draw.tensor(&[2, r, r + 1], -1.0, 1.0), Tensor::from_i64s(&size)];
    Sample::new(Operator::onnx("AffineGrid", attrs), inputs)
}

fn sample_sampled(draw: &mut Draw) -> Sample {
    let (x, grid): (&[usize], &[usize]) = *draw.pick(&[
        (&[2, 2, 4][..], &[2, 5, 1][..]),
        (&[2, 2, 3, 2], &[2, 2, 2, 2]),
        (&[1, 2, 4, 1], &[1, 1, 3, 2]),
        (&[1, 1, 2, 3, 2], &[1, 2, 1, 2, 3]),
    ]);
    let modes = if x.len() == 5 { &["nearest", "linear"][..] } else { &["nearest", "linear", "cubic"] };
    let attrs = Attributes::new()
        .with("mode", *draw.pick(modes))
        .with("padding_mode", *draw.pick(&["zeros", "border", "reflection"]))
        .with("align_corners", draw.int(0, 1));
    let inputs = vec![draw.tensor(x, -1.0, 1.0), draw.tensor(grid, -1.6, 1.6)];
    Sample::new(Operator::onnx("GridSample", attrs), inputs)
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn shapes_of_the_results() {
        let mut p = Probe::new();
        let (theta, size) = (p.input("theta", DType::F32, "batch,2,3"), p.input("size", DType::I64, "4"));
        let x = p.input("x", DType::F32, "batch,3,h,w");
        let numbers = p.ints(&[8, 3, 20, 30]);
        let (open, grid) = (
            p.op("AffineGrid", &[theta, size], Attributes::new()),
            p.op("AffineGrid", &[theta, numbers], Attributes::new()),
        );
        let y = p.op("GridSample", &[x, grid], Attributes::new());
        assert_eq!(p.show(open), "float[batch, ?, ?, 2]");
        assert_eq!(p.show(grid), "float[batch, 20, 30, 2]");
        assert_eq!(p.show(y), "float[batch, 3, 20, 30]");
    }
}
