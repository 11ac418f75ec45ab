//! `ConvTranspose`: the gradient of a convolution by its input, as a layer.
//!
//! ```text
//! y[n, c, i] = b[c] + Σ_{m, k, o: o·stride − pad + k·dilation = i} w[m, c, k] · x[n, m, o]
//! out = stride · (in − 1) + output_padding + (kernel − 1) · dilation + 1 − pad_begin − pad_end
//! dx = Conv(dy, w)      dw = ConvWeightGrad(x, dy)      db = Σ dy
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ConvTranspose.html>. Shapes: x `[N, M, in…]`, w `[M, C/group, kernel…]`,
//! b `[C]`, y `[N, C, out…]`. With `output_shape` (or `auto_pad = SAME_…`, where out = in · stride) the padding follows
//! from the output: half of it at each end, an odd element at the end for `SAME_UPPER`, at the beginning otherwise.

use super::conv::{Geometry, add_bias, bias_grad, flops, kernel_of, weight_grad};
use super::real::{count, optional, reals, required, rounded, sizes};
use super::window::{AutoPad, Window};
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample};
use crate::error::{Error, Result};
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "ConvTranspose",
    inputs: (2, 3),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    flops: |cx| flops(cx, &cx.inputs[1], cx.input_len(0)),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// The window, and the two attributes that only this operator has.
struct Transposed {
    window: Window,
    output_padding: Vec<usize>,
    output_shape: Option<Vec<usize>>,
}

impl Transposed {
    fn read(attrs: &Attributes, kernel: Option<&[usize]>) -> Result<Transposed> {
        let window = Window::read(attrs, kernel)?;
        let rank = window.rank();
        let list = |name: &str| -> Result<Option<Vec<usize>>> {
            let Some(list) = attrs.get_ints(name)? else { return Ok(None) };
            // Files also give the shape with batch and channels.
            let list = sizes(&list[list.len().saturating_sub(rank)..])?;
            let fits = list.len() == rank && list.iter().all(|&v| v <= 1 << 24);
            ensure!(fits, "attribute `{name}` is {list:?}, expected {rank} sizes");
            Ok(Some(list))
        };
        let output_padding = list("output_padding")?.unwrap_or_else(|| vec![0; rank]);
        let output_shape = list("output_shape")?.filter(|shape| !shape.is_empty());
        Ok(Transposed { window, output_padding, output_shape })
    }
    fn is_same(&self) -> bool {
        matches!(self.window.auto_pad, AutoPad::SameUpper | AutoPad::SameLower)
    }
    fn output_dim(&self, axis: usize, input: &Dim) -> Dim {
        let stride = Dim::Known(self.window.strides[axis] as i64);
        if let Some(shape) = &self.output_shape {
            return Dim::Known(shape[axis] as i64);
        }
        if self.is_same() {
            return input.mul(&stride);
        }
        let window = &self.window;
        let slack =
            (self.output_padding[axis] + window.extent(axis)) as i64 - (window.begin[axis] + window.end[axis]) as i64;
        input.sub(&Dim::Known(1)).mul(&stride).add(&Dim::Known(slack))
    }
    fn output_sizes(&self, input: &[usize]) -> Result<Vec<usize>> {
        let one = |(axis, &size): (usize, &usize)| {
            let size = self.output_dim(axis, &Dim::Known(size as i64)).known().and_then(|v| usize::try_from(v).ok());
            size.ok_or_else(|| Error::msg(format!("the output along spatial axis {axis} would be negative")))
        };
        input.iter().enumerate().map(one).collect()
    }
    /// The window with its padding as numbers, for x of these spatial sizes.
    fn resolved(&self, input: &[usize]) -> Result<Window> {
        let mut window = self.window.clone();
        window.auto_pad = AutoPad::NotSet;
        if self.output_shape.is_none() && !self.is_same() {
            return Ok(window);
        }
        for (axis, &output) in self.output_sizes(input)?.iter().enumerate() {
            let span = input[axis].saturating_sub(1) * window.strides[axis];
            let total = (span + self.output_padding[axis] + window.extent(axis)).saturating_sub(output);
            let small = total / 2;
            let begin = if self.window.auto_pad == AutoPad::SameUpper { small } else { total - small };
            (window.begin[axis], window.end[axis]) = (begin, total - begin);
        }
        Ok(window)
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype == cx.dtype(1)?, "it convolves {dtype} with {}", cx.dtype(1)?);
    let groups = Dim::Known(count(&cx.op.attrs, "group", 1)? as i64);
    let kernel = kernel_of(cx.shape(1));
    let channels = cx.shape(1).and_then(|w| Some(w.get(1)?.mul(&groups))).unwrap_or(Dim::Unknown);
    let shape = match cx.shape(0) {
        Some([n, _, spatial @ ..]) if !spatial.is_empty() => {
            let output = if kernel.is_none() && !cx.op.attrs.has("kernel_shape") {
                vec![Dim::Unknown; spatial.len()]
            } else {
                let transposed = Transposed::read(&cx.op.attrs, kernel.as_deref())?;
                ensure!(transposed.window.rank() == spatial.len(), "the window and the data differ in rank");
                spatial.iter().enumerate().map(|(axis, d)| transposed.output_dim(axis, d)).collect()
            };
            Some([&[n.clone(), channels][..], &output].concat())
        }
        Some(shape) => bail!("its data has rank {}, expected at least 3", shape.len()),
        None => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
    let fits = x.rank() >= 3 && w.rank() == x.rank() && x.shape()[1] == w.shape()[0];
    ensure!(fits, "data of shape {:?} and weight of shape {:?}", x.shape(), w.shape());
    let transposed = Transposed::read(&cx.op.attrs, w.shape().get(2..))?;
    let groups = count(&cx.op.attrs, "group", 1)?;
    let input = &x.shape()[2..];
    let channels = w.shape()[1].checked_mul(groups).ok_or_else(|| Error::msg("too many channels"))?;
    let y_shape = [&[x.shape()[0], channels][..], &transposed.output_sizes(input)?].concat();
    let window = transposed.resolved(input)?;
    // y is the data of the convolution whose output x is.
    let geometry = Geometry::with_output(&window, groups, &y_shape, w.shape(), input.to_vec())?;
    let mut y = geometry.input_grad(&reals(x)?, &reals(w)?);
    if let Some(bias) = optional(inputs, 2) {
        add_bias(&mut y, &reals(bias)?, geometry.places, channels)?;
    }
    Ok(vec![rounded(x.dtype(), y_shape, y)?])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, w, dy) = (cx.input(0)?, cx.input(1)?, cx.dy()?);
    let attrs = conv_attrs(cx, x, w)?;
    let mut grads = vec![None; 3];
    if cx.want(0) {
        grads[0] = Some(cx.emit.op("Conv", &[dy, w], attrs.clone())?);
    }
    if cx.want(1) {
        grads[1] = Some(weight_grad(cx, attrs, x, dy, w)?);
    }
    if cx.want(2) {
        grads[2] = Some(bias_grad(cx, dy)?);
    }
    Ok(grads)
}

/// The attributes of the convolution from y to x, its padding as numbers.
fn conv_attrs(cx: &GradCx, x: Value, w: Value) -> Result<Attributes> {
    let attrs = cx.op().attrs;
    let kernel = kernel_of(Some(&cx.emit.shape(w)?));
    let transposed = Transposed::read(&attrs, kernel.as_deref())?;
    let window = &transposed.window;
    ensure!(
        (0..window.rank()).all(|a| transposed.output_padding[a] < window.strides[a]),
        "its gradient needs `output_padding` below the stride"
    );
    let window = if transposed.output_shape.is_none() && !transposed.is_same() {
        window.clone()
    } else {
        let spatial = cx.emit.shape(x)?[2..].iter().map(Dim::known).collect::<Option<Vec<i64>>>();
        let Some(spatial) = spatial else { bail!("its gradient with automatic padding needs a static spatial size") };
        transposed.resolved(&sizes(&spatial)?)?
    };
    let ints = |list: &[usize]| list.iter().map(|&v| v as i64).collect::<Vec<i64>>();
    Ok(Attributes::new()
        .with("group", attrs.int("group", 1)?)
        .with("kernel_shape", ints(&window.kernel))
        .with("strides", ints(&window.strides))
        .with("dilations", ints(&window.dilations))
        .with("pads", ints(&[window.begin, window.end].concat())))
}

fn sample(draw: &mut Draw) -> Sample {
    let rank = draw.int(1, 2) as usize;
    let groups = draw.int(1, 2);
    let (inner, outer) = (draw.int(1, 2), draw.int(1, 2));
    let mut list = |low: i64, high: i64, length: usize| (0..length).map(|_| draw.int(low, high)).collect::<Vec<_>>();
    let (kernel, strides, dilations) = (list(2, 3, rank), list(1, 3, rank), list(1, 2, rank));
    let (pads, spatial) = (list(0, 1, 2 * rank), list(3, 4, rank));
    let mut attrs = Attributes::new().with("group", groups).with("dilations", dilations);
    match draw.int(0, 3) {
        0 if strides.iter().zip(&kernel).all(|(s, k)| s <= k) => {
            attrs.set("auto_pad", *draw.pick(&["SAME_UPPER", "SAME_LOWER"]));
        }
        1 => {
            attrs.set("pads", pads);
            attrs.set("output_padding", strides.iter().map(|s| draw.int(0, s - 1)).collect::<Vec<i64>>());
        }
        _ => attrs.set("pads", pads),
    }
    attrs.set("strides", strides);
    let shape =
        |head: [i64; 2], tail: &[i64]| [&head[..], tail].concat().iter().map(|&d| d as usize).collect::<Vec<_>>();
    let x = draw.tensor(&shape([2, groups * outer], &spatial), -1.0, 1.0);
    let mut inputs = vec![x, draw.tensor(&shape([groups * outer, inner], &kernel), -1.0, 1.0)];
    if draw.chance(0.5) {
        inputs.push(draw.tensor(&[(groups * inner) as usize], -1.0, 1.0));
    }
    Sample::new(Operator::onnx("ConvTranspose", attrs), inputs)
}
