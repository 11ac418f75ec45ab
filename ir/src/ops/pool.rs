//! The pools: `MaxPool`, `AveragePool`, `LpPool`, and the gradients `ai.sartor::MaxPoolGrad` and
//! `ai.sartor::AveragePoolGrad`. Windows are those of [`super::window`], over every channel by itself.
//!
//! ```text
//! MaxPool(x):                       y = max over the window; indices = place of the maximum in the flattened x
//! MaxPoolGrad(dy, x):               dx[place of the maximum] += dy
//! AveragePool(x):                   y = Σ over the window / n;  n: elements in x, or with count_include_pad in x and padding
//! AveragePoolGrad(dy, x_shape):     dx[i] = Σ over the windows that see i of dy / n
//! LpPool(x):                        y = (Σ|x|^p)^(1/p)
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__MaxPool.html>. Shapes: x `[N, C, in…]`, y and indices (`int64`)
//! `[N, C, out…]`. Among equal maxima the first counts. With `storage_order = 1` the indices count the spatial axes of a
//! channel in column-major order. The gradient operators take the attributes of their pool.

use super::real::{count, rounded, shape_input};
use super::window::{OUTSIDE, PADDING, Taps, Window};
use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, UpgradeFn, upgrade};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attribute, Attributes, DType, Dim, Tensor, bail, ensure};

const WINDOW_FLOPS: fn(&super::CostCx) -> u64 = |cx| {
    let kernel = cx.op.attrs.get_ints("kernel_shape").ok().flatten().unwrap_or(&[]);
    let size = kernel.iter().map(|&k| k.max(1) as u64).product::<u64>();
    size * cx.output_len(0).min(cx.input_len(0))
};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "MaxPool",
        outputs: (1, 2),
        infer: infer_max,
        eval: Some(eval_max),
        grad: Gradient::Emit(grad_max),
        flops: WINDOW_FLOPS,
        sample: Some(|draw| sample(draw, "MaxPool", Attributes::new())),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "AveragePool",
        infer,
        eval: Some(eval_average),
        grad: Gradient::Emit(grad_average),
        flops: WINDOW_FLOPS,
        sample: Some(|draw| {
            let include = draw.chance(0.5);
            sample(draw, "AveragePool", Attributes::new().with("count_include_pad", include))
        }),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "LpPool",
        infer,
        eval: Some(eval_lp),
        decompose: Some(decompose_lp),
        grad: Gradient::Decompose,
        flops: WINDOW_FLOPS,
        upgrades: INTEGER_POWER,
        sample: Some(|draw| {
            let p = draw.int(1, 3);
            let mut sample = sample(draw, "LpPool", Attributes::new().with("p", p));
            sample.op.attrs.remove("ceil_mode");
            sample
        }),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "MaxPoolGrad",
        inputs: (2, 2),
        infer: |cx| {
            let ty = cx.ty(1)?.clone();
            cx.set(0, ty);
            Ok(())
        },
        eval: Some(eval_max_grad),
        decompose: Some(super::written_out::max_pool_grad),
        grad: Gradient::Emit(grad_of_max_grad),
        flops: WINDOW_FLOPS,
        sample: Some(sample_max_grad),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "AveragePoolGrad",
        inputs: (2, 2),
        infer: |cx| super::conv::infer_from_shape_input(cx, 1),
        eval: Some(eval_average_grad),
        decompose: Some(decompose_average_grad),
        grad: Gradient::Emit(|cx| {
            let (u, attrs) = (cx.dy()?, cx.op().attrs);
            Ok(vec![Some(cx.emit.op("AveragePool", &[u], attrs)?), None])
        }),
        flops: WINDOW_FLOPS,
        sample: Some(sample_average_grad),
        ..OpDef::DEFAULT
    },
];
/// In opset 1 the power of the Lp pools was a float.
pub const INTEGER_POWER: &[(i64, UpgradeFn)] = &[(2, integer_power)];

fn output_dims(cx: &InferCx) -> Result<Option<Vec<Dim>>> {
    let window = Window::read(&cx.op.attrs, None)?;
    match cx.shape(0) {
        Some([n, c, spatial @ ..]) => Ok(Some([&[n.clone(), c.clone()][..], &window.output_dims(spatial)?].concat())),
        Some(shape) => bail!("its data has rank {}, expected at least 3", shape.len()),
        None => Ok(None),
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (dtype, shape) = (cx.dtype(0)?, output_dims(cx)?);
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn infer_max(cx: &mut InferCx) -> Result<()> {
    infer(cx)?;
    let shape = output_dims(cx)?;
    cx.set_tensor(1, DType::I64, shape);
    Ok(())
}

/// The windows of a pool over data of one shape.
struct Pool {
    /// Batch times channels.
    channels: usize,
    /// Spatial elements of x.
    places: usize,
    taps: Taps,
    y_shape: Vec<usize>,
}

impl Pool {
    fn new(attrs: &Attributes, x: &[usize]) -> Result<Pool> {
        let [n, c, spatial @ ..] = x else { bail!("its data has the shape {x:?}, expected at least 3 axes") };
        let window = Window::read(attrs, None)?.resolved(spatial)?;
        let output = window.output_sizes(spatial)?;
        let taps = window.taps(spatial, &output)?;
        let y_shape = [&[*n, *c][..], &output].concat();
        Ok(Pool { channels: n * c, places: spatial.iter().product(), taps, y_shape })
    }
    fn outputs(&self) -> usize {
        self.channels * self.taps.windows
    }
    /// Calls `visit(place in y, place in x)` for every element of every window, the first elements of all windows
    /// before the second ones.
    fn for_each_pair(&self, mut visit: impl FnMut(usize, usize)) {
        for channel in 0..self.channels {
            for k in 0..self.taps.size {
                for (o, &place) in self.taps.of(k).iter().enumerate() {
                    if place < OUTSIDE {
                        visit(channel * self.taps.windows + o, channel * self.places + place);
                    }
                }
            }
        }
    }
    /// For each window the place of its maximum, if it sees any element.
    fn maxima(&self, values: &[f64]) -> Vec<Option<usize>> {
        let mut best = vec![None::<usize>; self.outputs()];
        self.for_each_pair(|o, i| {
            if best[o].is_none_or(|old| values[i] > values[old] || (values[i].is_nan() && !values[old].is_nan())) {
                best[o] = Some(i);
            }
        });
        best
    }
    /// For each window the number of its elements in the data, and if wanted in the padding.
    fn counts(&self, include_padding: bool) -> Vec<f64> {
        let mut counts = vec![0.0; self.taps.windows];
        for k in 0..self.taps.size {
            for (count, &place) in counts.iter_mut().zip(self.taps.of(k)) {
                let counted = place < OUTSIDE || (include_padding && place == PADDING);
                *count += f64::from(u8::from(counted));
            }
        }
        counts
    }
}

fn eval_max(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = super::real::required(inputs, 0)?;
    let pool = Pool::new(&cx.op.attrs, x.shape())?;
    let values = x.to_f64s()?;
    let best = pool.maxima(&values);
    let least = f64::NEG_INFINITY;
    let y = best.iter().map(|b| b.map_or(least, |i| values[i])).collect();
    let column_major = cx.op.attrs.flag("storage_order", false)?;
    let index = |b: &Option<usize>| match b {
        None => -1,
        Some(i) if column_major => column_major_index(*i, &x.shape()[2..]) as i64,
        Some(i) => *i as i64,
    };
    let indices: Vec<i64> = best.iter().map(index).collect();
    Ok(vec![rounded(x.dtype(), pool.y_shape.clone(), y)?, Tensor::from_vec(pool.y_shape, indices)])
}

/// A flat index with the spatial part turned from row-major to column-major order.
fn column_major_index(index: usize, spatial: &[usize]) -> usize {
    let places: usize = spatial.iter().product();
    let (mut rest, mut result, mut factor) = (index % places, 0, places);
    for &size in spatial.iter().rev() {
        factor /= size;
        result += rest % size * factor;
        rest /= size;
    }
    index / places * places + result
}

fn eval_max_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, x) = (super::real::required(inputs, 0)?, super::real::required(inputs, 1)?);
    let pool = Pool::new(&cx.op.attrs, x.shape())?;
    ensure!(dy.shape() == pool.y_shape, "dy has the shape {:?}, expected {:?}", dy.shape(), pool.y_shape);
    let mut dx = vec![0.0; x.len()];
    for (d, best) in dy.to_f64s()?.into_iter().zip(pool.maxima(&x.to_f64s()?)) {
        if let Some(i) = best {
            dx[i] += d;
        }
    }
    Ok(vec![rounded(dy.dtype(), x.shape().to_vec(), dx)?])
}

fn grad_max(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy, attrs) = (cx.input(0)?, cx.dy()?, cx.op().attrs);
    Ok(vec![Some(cx.emit.sartor("MaxPoolGrad", &[dy, x], attrs)?)])
}

/// The elements of the gradient of dx at the places of the maxima.
fn grad_of_max_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (u, x, mut attrs) = (cx.dy()?, cx.input(1)?, cx.op().attrs);
    attrs.remove("storage_order");
    let indices = cx.emit.node(Operator::onnx("MaxPool", attrs), &[Some(x)], 2)?[1];
    let flat = cx.emit.reshape(u, &[-1])?;
    Ok(vec![Some(cx.emit.op("Gather", &[flat, indices], Attributes::new())?), None])
}

fn eval_average(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = super::real::required(inputs, 0)?;
    let pool = Pool::new(&cx.op.attrs, x.shape())?;
    let (values, mut y) = (x.to_f64s()?, vec![0.0; pool.outputs()]);
    pool.for_each_pair(|o, i| y[o] += values[i]);
    let counts = pool.counts(cx.op.attrs.flag("count_include_pad", false)?);
    y.iter_mut().zip(counts.iter().cycle()).for_each(|(y, n)| *y /= n);
    Ok(vec![rounded(x.dtype(), pool.y_shape, y)?])
}

fn eval_average_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, shape) = (super::real::required(inputs, 0)?, shape_input(inputs, 1)?);
    let pool = Pool::new(&cx.op.attrs, &shape)?;
    ensure!(dy.shape() == pool.y_shape, "dy has the shape {:?}, expected {:?}", dy.shape(), pool.y_shape);
    let mut share = dy.to_f64s()?;
    let counts = pool.counts(cx.op.attrs.flag("count_include_pad", false)?);
    share.iter_mut().zip(counts.iter().cycle()).for_each(|(d, n)| *d /= n);
    let mut dx = vec![0.0; pool.channels * pool.places];
    pool.for_each_pair(|o, i| dx[i] += share[o]);
    Ok(vec![rounded(dy.dtype(), shape, dx)?])
}

fn grad_average(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy, attrs) = (cx.input(0)?, cx.dy()?, cx.op().attrs);
    let shape = cx.emit.shape_of(x)?;
    Ok(vec![Some(cx.emit.sartor("AveragePoolGrad", &[dy, shape], attrs)?)])
}

/// Every mean's share, spread over its window by a transposed convolution with ones.
fn decompose_average_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (dy, attrs) = (emit.operand(id, 0)?, emit.attrs(id));
    let shape = emit.shape(Value { node: id, slot: 0 })?;
    let known: Option<Vec<usize>> =
        shape.iter().skip(1).map(|d| d.known().and_then(|d| usize::try_from(d).ok())).collect();
    let Some([channels, sizes @ ..]) = known.as_deref() else {
        bail!("written out, it needs to know the channels and the size of its image");
    };
    let pool = Pool::new(&attrs, &[&[1, 1], sizes].concat())?;
    let shares: Vec<f64> = pool.counts(attrs.flag("count_include_pad", false)?).into_iter().map(|n| 1.0 / n).collect();
    let window = Window::read(&attrs, None)?.resolved(sizes)?;
    let dtype = emit.dtype(dy)?;
    let ones: Vec<f64> = vec![1.0; channels * pool.taps.size];
    let shares = emit.constant(rounded(dtype, pool.y_shape, shares)?);
    let ones = emit.constant(rounded(dtype, [&[*channels, 1], &window.kernel[..]].concat(), ones)?);
    let share = emit.mul(dy, shares)?;
    Ok(vec![super::written_out::transposed(emit, share, ones, &window, *channels, sizes)?])
}

fn eval_lp(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = super::real::required(inputs, 0)?;
    let p = count(&cx.op.attrs, "p", 2)? as f64;
    let pool = Pool::new(&cx.op.attrs, x.shape())?;
    let (values, mut y) = (x.to_f64s()?, vec![0.0; pool.outputs()]);
    pool.for_each_pair(|o, i| y[o] += values[i].abs().powf(p));
    y.iter_mut().for_each(|y| *y = y.powf(1.0 / p));
    Ok(vec![rounded(x.dtype(), pool.y_shape, y)?])
}

/// `(size · AveragePool(|x|^p, count_include_pad))^(1/p)`; without `ceil_mode` every window counts `size` elements.
fn decompose_lp(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let Some(x) = emit.graph.input(id, 0) else { bail!("input 0 is missing") };
    ensure!(!op.attrs.flag("ceil_mode", false)?, "LpPool with `ceil_mode` has no decomposition");
    let p = count(&op.attrs, "p", 2)? as f64;
    let size: usize = Window::read(&op.attrs, None)?.kernel.iter().product();
    let mut attrs = op.attrs.clone().with("count_include_pad", 1i64);
    attrs.remove("p");
    let absolute = emit.unary("Abs", x)?;
    let power = emit.scalar(p, x)?;
    let powers = emit.op("Pow", &[absolute, power], Attributes::new())?;
    let mean = emit.op("AveragePool", &[powers], attrs)?;
    let sum = emit.mul_scalar(mean, size as f64)?;
    let root = emit.scalar(1.0 / p, x)?;
    Ok(vec![emit.op("Pow", &[sum, root], Attributes::new())?])
}

/// The attribute `p` as an integer.
fn integer_power(graph: &mut Graph, id: NodeId) -> Result<()> {
    match upgrade::take_attr(graph, id, "p") {
        Some(Attribute::Float(p)) => {
            ensure!(p.fract() == 0.0 && (1.0..=1e6).contains(&p), "LpPool with `p` = {p}");
            upgrade::edit_attrs(graph, id, |attrs| attrs.set("p", p as i64));
        }
        Some(other) => upgrade::edit_attrs(graph, id, |attrs| attrs.set("p", other)),
        None => {}
    }
    Ok(())
}

fn sample(draw: &mut Draw, name: &str, attrs: Attributes) -> Sample {
    let rank = draw.int(1, 2) as usize;
    let mut list = |low: i64, high: i64, length: usize| (0..length).map(|_| draw.int(low, high)).collect::<Vec<_>>();
    let (kernel, strides, dilations, pads) =
        (list(2, 3, rank), list(1, 2, rank), list(1, 2, rank), list(0, 1, 2 * rank));
    let shape = [&[2, 2][..], &vec![6; rank]].concat();
    let attrs = attrs.with("kernel_shape", kernel).with("strides", strides).with("dilations", dilations);
    let attrs = match draw.int(0, 3) {
        0 => attrs.with("auto_pad", *draw.pick(&["SAME_UPPER", "SAME_LOWER", "VALID"])),
        1 => attrs.with("pads", pads).with("ceil_mode", 1i64),
        _ => attrs.with("pads", pads),
    };
    Sample::new(Operator::onnx(name, attrs), vec![draw.distinct(&shape, 0.11)])
}

fn sample_average_grad(draw: &mut Draw) -> Sample {
    let pool = sample(draw, "AveragePool", Attributes::new());
    let (dy, x) = sampled_grad(draw, &pool);
    let shape: Vec<i64> = x.shape().iter().map(|&d| d as i64).collect();
    Sample::new(Operator::sartor("AveragePoolGrad", pool.op.attrs), vec![dy, Tensor::from_i64s(&shape)])
}

fn sample_max_grad(draw: &mut Draw) -> Sample {
    let pool = sample(draw, "MaxPool", Attributes::new());
    let (dy, x) = sampled_grad(draw, &pool);
    Sample::new(Operator::sartor("MaxPoolGrad", pool.op.attrs), vec![dy, x])
}

/// A gradient of a sampled pool's output, and its data.
fn sampled_grad(draw: &mut Draw, sample: &Sample) -> (Tensor, Tensor) {
    let x = sample.inputs[0].clone().unwrap_or_else(|| Tensor::scalar(0.0f32));
    let y = Pool::new(&sample.op.attrs, x.shape()).map(|p| p.y_shape).unwrap_or_default();
    (draw.tensor(&y, -1.0, 1.0), x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_major_indices() {
        assert_eq!(column_major_index(1, &[2, 3]), 2);
        let turned: Vec<usize> = (0..12).map(|i| column_major_index(i, &[2, 3])).collect();
        assert_eq!(turned, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
