//! `Conv` and its two gradients, `ai.sartor::ConvInputGrad` and `ai.sartor::ConvWeightGrad`, in 1, 2, 3, … dimensions.
//!
//! ```text
//! Conv(x, w, b):                      y[n, m, o]  = b[m] + Σ_{c, k} w[m, c, k] · x[n, g·C' + c, o·stride − pad + k·dilation]
//! ConvInputGrad(dy, w, x_shape):      dx[n, c, i] = Σ_{m, k, o: o·stride − pad + k·dilation = i} w[m, c, k] · dy[n, m, o]
//! ConvWeightGrad(dy, x, w_shape):     dw[m, c, k] = Σ_{n, o} dy[n, m, o] · x[n, g·C' + c, o·stride − pad + k·dilation]
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Conv.html>. Shapes: x `[N, C, in…]`, w `[M, C' = C/group, kernel…]`, b
//! `[M]`, y `[N, M, out…]`, with `out` as in [`super::window`]; channel m belongs to group g = m / (M/group). All three
//! take Conv's attributes. `x_shape` and `w_shape` are `int64` tensors. The three are each other's gradients.

use super::real::{count, optional, reals, required, rounded, shape_input};
use super::window::{Taps, Window};
use super::{CostCx, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Conv",
        inputs: (2, 3),
        infer,
        eval: Some(eval),
        grad: Gradient::Emit(grad),
        flops: |cx| flops(cx, &cx.inputs[1], cx.output_len(0)),
        sample: Some(sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "ConvInputGrad",
        inputs: (3, 3),
        infer: |cx| infer_from_shape_input(cx, 2),
        eval: Some(eval_input_grad),
        decompose: Some(super::written_out::conv_input_grad),
        grad: Gradient::Emit(grad_of_input_grad),
        flops: |cx| flops(cx, &cx.inputs[1], cx.input_len(0)),
        sample: Some(sample_input_grad),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "ConvWeightGrad",
        inputs: (3, 3),
        infer: |cx| infer_from_shape_input(cx, 2),
        eval: Some(eval_weight_grad),
        decompose: Some(super::written_out::conv_weight_grad),
        grad: Gradient::Emit(grad_of_weight_grad),
        flops: |cx| flops(cx, &cx.outputs[0], cx.input_len(0)),
        sample: Some(sample_weight_grad),
        ..OpDef::DEFAULT
    },
];

/// One multiply-add per weight of one filter and element of y.
pub(crate) fn flops(_: &CostCx, weight: &[usize], outputs: u64) -> u64 {
    2 * outputs * weight.iter().skip(1).map(|&d| d as u64).product::<u64>()
}

/// The spatial extents of a weight, where all are known.
pub(crate) fn kernel_of(weight: Option<&[Dim]>) -> Option<Vec<usize>> {
    let spatial = weight?.get(2..)?;
    spatial.iter().map(|d| d.known().and_then(|d| usize::try_from(d).ok())).collect()
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype == cx.dtype(1)?, "it convolves {dtype} with {}", cx.dtype(1)?);
    let shape = output_shape(cx, 0, 1)?;
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

/// The shape of y, for the data and the weight in these slots; `None` if the rank of the data is unknown.
pub(super) fn output_shape(cx: &InferCx, data: usize, weight: usize) -> Result<Option<Vec<Dim>>> {
    let groups = count(&cx.op.attrs, "group", 1)? as i64;
    let kernel = kernel_of(cx.shape(weight));
    let channels = cx.shape(weight).and_then(|w| w.first().cloned()).unwrap_or(Dim::Unknown);
    let Some(x) = cx.shape(data) else { return Ok(None) };
    ensure!(x.len() >= 3, "its data has rank {}, expected at least 3", x.len());
    if let Some(w) = cx.shape(weight) {
        ensure!(w.len() == x.len(), "data of rank {} and weight of rank {}", x.len(), w.len());
        if let (Some(have), Some(per_group)) = (x[1].known(), w[1].known()) {
            let want = per_group.checked_mul(groups);
            ensure!(want == Some(have), "{have} channels, but {groups} groups of {per_group}");
        }
    }
    let spatial = match (cx.op.attrs.has("kernel_shape"), &kernel) {
        (false, None) => vec![Dim::Unknown; x.len() - 2],
        _ => Window::read(&cx.op.attrs, kernel.as_deref())?.output_dims(&x[2..])?,
    };
    Ok(Some([&[x[0].clone(), channels][..], &spatial].concat()))
}

/// The output has the type of input 0 and the shape that an integer input holds.
pub(crate) fn infer_from_shape_input(cx: &mut InferCx, slot: usize) -> Result<()> {
    let (dtype, shape) = (cx.dtype(0)?, cx.dims(slot).map(<[Dim]>::to_vec));
    let rank = cx.shape(slot).and_then(|s| s.first()?.known()).and_then(|n| usize::try_from(n).ok());
    let unknown = rank.filter(|&n| n <= super::MAX_FACT_DIMS).map(|n| vec![Dim::Unknown; n]);
    cx.set_tensor(0, dtype, shape.or(unknown));
    Ok(())
}

/// Everything about one convolution in numbers.
pub(crate) struct Geometry {
    pub batch: usize,
    pub groups: usize,
    /// Channels of x in one group.
    pub inner: usize,
    /// Channels of y in one group.
    pub outer: usize,
    /// Spatial elements of x.
    pub places: usize,
    pub output: Vec<usize>,
    pub taps: Taps,
}

impl Geometry {
    /// Of data and weight of these shapes under a window.
    pub fn new(window: &Window, groups: usize, x: &[usize], w: &[usize]) -> Result<Geometry> {
        ensure!(x.len() >= 2 && x.len() == w.len(), "data of shape {x:?} and weight of shape {w:?}");
        let window = window.resolved(&x[2..])?;
        let output = window.output_sizes(&x[2..])?;
        Geometry::with_output(&window, groups, x, w, output)
    }
    /// The same with the spatial output given; the window's padding is resolved.
    pub fn with_output(
        window: &Window,
        groups: usize,
        x: &[usize],
        w: &[usize],
        output: Vec<usize>,
    ) -> Result<Geometry> {
        let fits = groups > 0 && w[0].is_multiple_of(groups) && w[1].checked_mul(groups) == Some(x[1]);
        ensure!(fits, "{groups} groups do not divide data {x:?} and weight {w:?}");
        let taps = window.taps(&x[2..], &output)?;
        let (inner, outer, places) = (w[1], w[0] / groups, x[2..].iter().product());
        Ok(Geometry { batch: x[0], groups, inner, outer, places, output, taps })
    }
    fn from_attrs(attrs: &Attributes, x: &[usize], w: &[usize]) -> Result<Geometry> {
        let window = Window::read(attrs, w.get(2..))?;
        Geometry::new(&window, count(attrs, "group", 1)?, x, w)
    }
    fn y_shape(&self) -> Vec<usize> {
        [&[self.batch, self.groups * self.outer][..], &self.output].concat()
    }
    /// Errors unless dy has the shape of y.
    fn check_dy(&self, dy: &Tensor) -> Result<()> {
        ensure!(dy.shape() == self.y_shape(), "dy has the shape {:?}, expected {:?}", dy.shape(), self.y_shape());
        Ok(())
    }
    /// Calls `visit(x channel, first y channel, place in w of the first y channel's element, k)` for every batch, group, inner
    /// channel and kernel element; channels are counted through the batch.
    fn for_each_tap(&self, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let row = self.inner * self.taps.size;
        for n in 0..self.batch {
            for g in 0..self.groups {
                let first = (n * self.groups + g) * self.outer;
                for c in 0..self.inner {
                    for k in 0..self.taps.size {
                        let weight = g * self.outer * row + c * self.taps.size + k;
                        visit((n * self.groups + g) * self.inner + c, first, weight, k);
                    }
                }
            }
        }
    }
    /// The elements of an x channel that kernel element `k` sees, one per window; 0 in the padding.
    fn column(&self, x: &[f64], channel: usize, k: usize, column: &mut [f64]) {
        let x = &x[channel * self.places..(channel + 1) * self.places];
        for (to, &place) in column.iter_mut().zip(self.taps.of(k)) {
            *to = x.get(place).copied().unwrap_or(0.0);
        }
    }
    /// y without bias.
    pub fn forward(&self, x: &[f64], w: &[f64]) -> Vec<f64> {
        let (windows, row) = (self.taps.windows, self.inner * self.taps.size);
        let mut y = vec![0.0; self.batch * self.groups * self.outer * windows];
        let mut column = vec![0.0; windows];
        self.for_each_tap(|channel, first, weight, k| {
            self.column(x, channel, k, &mut column);
            for m in 0..self.outer {
                let scale = w[weight + m * row];
                let target = &mut y[(first + m) * windows..(first + m + 1) * windows];
                target.iter_mut().zip(&column).for_each(|(t, v)| *t += scale * v);
            }
        });
        y
    }
    /// dx.
    pub fn input_grad(&self, dy: &[f64], w: &[f64]) -> Vec<f64> {
        let (windows, row) = (self.taps.windows, self.inner * self.taps.size);
        let mut dx = vec![0.0; self.batch * self.groups * self.inner * self.places];
        let mut column = vec![0.0; windows];
        self.for_each_tap(|channel, first, weight, k| {
            column.fill(0.0);
            for m in 0..self.outer {
                let scale = w[weight + m * row];
                let source = &dy[(first + m) * windows..(first + m + 1) * windows];
                column.iter_mut().zip(source).for_each(|(t, v)| *t += scale * v);
            }
            let dx = &mut dx[channel * self.places..(channel + 1) * self.places];
            for (v, &place) in column.iter().zip(self.taps.of(k)) {
                if let Some(target) = dx.get_mut(place) {
                    *target += v;
                }
            }
        });
        dx
    }
    /// dw.
    pub fn weight_grad(&self, dy: &[f64], x: &[f64]) -> Vec<f64> {
        let (windows, row) = (self.taps.windows, self.inner * self.taps.size);
        let mut dw = vec![0.0; self.groups * self.outer * row];
        let mut column = vec![0.0; windows];
        self.for_each_tap(|channel, first, weight, k| {
            self.column(x, channel, k, &mut column);
            for m in 0..self.outer {
                let source = &dy[(first + m) * windows..(first + m + 1) * windows];
                dw[weight + m * row] += source.iter().zip(&column).map(|(a, b)| a * b).sum::<f64>();
            }
        });
        dw
    }
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
    let geometry = Geometry::from_attrs(&cx.op.attrs, x.shape(), w.shape())?;
    let mut y = geometry.forward(&reals(x)?, &reals(w)?);
    if let Some(bias) = optional(inputs, 2) {
        add_bias(&mut y, &reals(bias)?, geometry.taps.windows, geometry.groups * geometry.outer)?;
    }
    Ok(vec![rounded(x.dtype(), geometry.y_shape(), y)?])
}

/// Adds to every channel its element of the bias.
pub(crate) fn add_bias(y: &mut [f64], bias: &[f64], places: usize, channels: usize) -> Result<()> {
    ensure!(bias.len() == channels, "the bias has {} elements for {channels} channels", bias.len());
    for (channel, line) in y.chunks_mut(places.max(1)).enumerate() {
        line.iter_mut().for_each(|v| *v += bias[channel % channels]);
    }
    Ok(())
}

fn eval_input_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, w, shape) = (required(inputs, 0)?, required(inputs, 1)?, shape_input(inputs, 2)?);
    let geometry = Geometry::from_attrs(&cx.op.attrs, &shape, w.shape())?;
    geometry.check_dy(dy)?;
    let dx = geometry.input_grad(&reals(dy)?, &reals(w)?);
    Ok(vec![rounded(dy.dtype(), shape, dx)?])
}

fn eval_weight_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, x, shape) = (required(inputs, 0)?, required(inputs, 1)?, shape_input(inputs, 2)?);
    let geometry = Geometry::from_attrs(&cx.op.attrs, x.shape(), &shape)?;
    geometry.check_dy(dy)?;
    let dw = geometry.weight_grad(&reals(dy)?, &reals(x)?);
    Ok(vec![rounded(dy.dtype(), shape, dw)?])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, w, dy, attrs) = (cx.input(0)?, cx.input(1)?, cx.dy()?, cx.op().attrs);
    let mut grads = vec![None; 3];
    if cx.want(0) {
        grads[0] = Some(input_grad(cx, attrs.clone(), dy, w, x)?);
    }
    if cx.want(1) {
        grads[1] = Some(weight_grad(cx, attrs, dy, x, w)?);
    }
    if cx.want(2) {
        grads[2] = Some(bias_grad(cx, dy)?);
    }
    Ok(grads)
}

/// `ConvInputGrad` in the shape of `x`, as a node.
pub(crate) fn input_grad(cx: &mut GradCx, attrs: Attributes, dy: Value, w: Value, x: Value) -> Result<Value> {
    let shape = cx.emit.shape_of(x)?;
    cx.emit.sartor("ConvInputGrad", &[dy, w, shape], attrs)
}

/// `ConvWeightGrad` in the shape of `w`, as a node.
pub(crate) fn weight_grad(cx: &mut GradCx, attrs: Attributes, dy: Value, x: Value, w: Value) -> Result<Value> {
    let shape = cx.emit.shape_of(w)?;
    cx.emit.sartor("ConvWeightGrad", &[dy, x, shape], attrs)
}

/// dy summed over everything but the channels.
pub(crate) fn bias_grad(cx: &mut GradCx, dy: Value) -> Result<Value> {
    let axes: Vec<usize> = (0..cx.emit.rank(dy)?).filter(|&a| a != 1).collect();
    cx.emit.reduce_sum(dy, &axes, false)
}

/// `ConvInputGrad` is linear in dy and w: with `u` the gradient of dx, `ddy = Conv(u, w)`, `dw = ConvWeightGrad(dy, u)`.
fn grad_of_input_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (dy, w, u, attrs) = (cx.input(0)?, cx.input(1)?, cx.dy()?, cx.op().attrs);
    let mut grads = vec![None; 3];
    if cx.want(0) {
        grads[0] = Some(cx.emit.op("Conv", &[u, w], attrs.clone())?);
    }
    if cx.want(1) {
        grads[1] = Some(weight_grad(cx, attrs, dy, u, w)?);
    }
    Ok(grads)
}

/// `ConvWeightGrad` is linear in dy and x: with `u` the gradient of dw, `ddy = Conv(x, u)`, `dx = ConvInputGrad(dy, u)`.
fn grad_of_weight_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (dy, x, u, attrs) = (cx.input(0)?, cx.input(1)?, cx.dy()?, cx.op().attrs);
    let mut grads = vec![None; 3];
    if cx.want(0) {
        grads[0] = Some(cx.emit.op("Conv", &[x, u], attrs.clone())?);
    }
    if cx.want(1) {
        grads[1] = Some(input_grad(cx, attrs, dy, u, x)?);
    }
    Ok(grads)
}

/// Random attributes and the shapes of x, w and y.
fn sample_shapes(draw: &mut Draw) -> (Attributes, [Vec<usize>; 3]) {
    let rank = draw.int(1, 3) as usize;
    let groups = draw.int(1, 2);
    let (inner, outer) = (draw.int(1, 2), draw.int(1, 2));
    let mut list = |low: i64, high: i64, length: usize| (0..length).map(|_| draw.int(low, high)).collect::<Vec<_>>();
    let (kernel, strides, dilations) = (list(1, 3, rank), list(1, 2, rank), list(1, 2, rank));
    let (pads, spatial) = (list(0, 1, 2 * rank), list(5, 6, rank));
    let mut attrs = Attributes::new().with("group", groups).with("strides", strides).with("dilations", dilations);
    match draw.int(0, 3) {
        0 => attrs.set("auto_pad", "SAME_UPPER"),
        1 => attrs.set("auto_pad", "SAME_LOWER"),
        _ => attrs.set("pads", pads),
    }
    let shape =
        |head: [i64; 2], tail: &[i64]| [&head[..], tail].concat().iter().map(|&d| d as usize).collect::<Vec<_>>();
    let x = shape([2, groups * inner], &spatial);
    let w = shape([groups * outer, inner], &kernel);
    let y = Geometry::from_attrs(&attrs, &x, &w).map(|g| g.y_shape()).unwrap_or_default();
    (attrs, [x, w, y])
}

fn sample(draw: &mut Draw) -> Sample {
    let (attrs, [x, w, _]) = sample_shapes(draw);
    let mut inputs = vec![draw.tensor(&x, -1.0, 1.0), draw.tensor(&w, -1.0, 1.0)];
    if draw.chance(0.5) {
        inputs.push(draw.tensor(&w[..1], -1.0, 1.0));
    }
    Sample::new(Operator::onnx("Conv", attrs), inputs)
}

fn shape_tensor(shape: &[usize]) -> Tensor {
    Tensor::from_i64s(&shape.iter().map(|&d| d as i64).collect::<Vec<_>>())
}

fn sample_input_grad(draw: &mut Draw) -> Sample {
    let (attrs, [x, w, y]) = sample_shapes(draw);
    let inputs = vec![draw.tensor(&y, -1.0, 1.0), draw.tensor(&w, -1.0, 1.0), shape_tensor(&x)];
    Sample::new(Operator::sartor("ConvInputGrad", attrs), inputs)
}

fn sample_weight_grad(draw: &mut Draw) -> Sample {
    let (attrs, [x, w, y]) = sample_shapes(draw);
    let inputs = vec![draw.tensor(&y, -1.0, 1.0), draw.tensor(&x, -1.0, 1.0), shape_tensor(&w)];
    Sample::new(Operator::sartor("ConvWeightGrad", attrs), inputs)
}
