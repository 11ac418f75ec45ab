//! `Resize` (and `Upsample`, which becomes `Resize`), and its gradient `ai.sartor::ResizeGrad`.
//!
//! Interpolation is separable and linear: along each axis, output `o` is a weighted sum of a few inputs,
//! `y[o] = Σ w[o, i] · x[i]`; the gradient is the transposed sum, `dx[i] = Σ w[o, i] · dy[o]`. The weights come from the
//! place of `o` in the input:
//!
//! ```text
//! half_pixel             (o + ½) / scale − ½                 asymmetric            o / scale
//! pytorch_half_pixel     the same, 0 where the output is 1   align_corners         o · (in − 1) / (scale · in − 1)
//! half_pixel_symmetric   half_pixel around the centre of the input when out ≠ scale · in
//! tf_crop_and_resize     between the ends that `roi` gives; outside of the input: extrapolation_value
//! ```
//!
//! `nearest` takes one input (rounded as `nearest_mode` says), `linear` two, `cubic` four (Keys 1981, `cubic_coeff_a`);
//! with `antialias` the kernel is stretched by 1/scale when shrinking.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Resize.html>. Inputs: X, roi, scales, sizes (one of the last two). Shape: the
//! sizes, or ⌊in · scale⌋; `axes` restricts all of them to some axes.

use super::real::{optional, required, rounded, shape_input};
use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, UpgradeFn, normal_axis, upgrade};
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Resize",
        inputs: (1, 4),
        infer,
        eval: Some(eval),
        grad: Gradient::Emit(grad),
        flops: |cx| 4 * cx.output_len(0),
        upgrades: RESIZE_UPGRADES,
        sample: Some(sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "ResizeGrad",
        inputs: (2, 5),
        infer: |cx| super::conv::infer_from_shape_input(cx, 1),
        eval: Some(eval_grad),
        decompose: Some(decompose_grad),
        grad: Gradient::Emit(grad_of_grad),
        flops: |cx| 4 * cx.input_len(0),
        sample: Some(sample_grad),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "Upsample",
        inputs: (1, 2),
        infer: infer_upsample,
        decompose: Some(decompose_upsample),
        grad: Gradient::Decompose,
        flops: |cx| 4 * cx.output_len(0),
        upgrades: UPSAMPLE_UPGRADES,
        sample: Some(sample_upsample),
        ..OpDef::DEFAULT
    },
];
const RESIZE_UPGRADES: &[(i64, UpgradeFn)] = &[(11, with_roi)];
const UPSAMPLE_UPGRADES: &[(i64, UpgradeFn)] = &[(9, scales_to_input), (10, into_resize)];

/// What one axis needs to know.
struct Axis {
    input: usize,
    output: usize,
    scale: f64,
    roi: (f64, f64),
}

/// The attributes.
struct Rule<'a> {
    transform: &'a str,
    mode: &'a str,
    nearest: &'a str,
    cubic: f64,
    exclude_outside: bool,
    antialias: bool,
    extrapolation: f64,
}

impl Rule<'_> {
    fn read(attrs: &Attributes) -> Result<Rule<'_>> {
        let rule = Rule {
            transform: attrs.str("coordinate_transformation_mode", "half_pixel")?,
            mode: attrs.str("mode", "nearest")?,
            nearest: attrs.str("nearest_mode", "round_prefer_floor")?,
            cubic: f64::from(attrs.float("cubic_coeff_a", -0.75)?),
            exclude_outside: attrs.flag("exclude_outside", false)?,
            antialias: attrs.flag("antialias", false)?,
            extrapolation: f64::from(attrs.float("extrapolation_value", 0.0)?),
        };
        ensure!(["nearest", "linear", "cubic"].contains(&rule.mode), "attribute `mode` is \"{}\"", rule.mode);
        Ok(rule)
    }
    /// Where output `o` lies in the input.
    fn place(&self, axis: &Axis, o: usize) -> Result<f64> {
        let (o, input, output) = (o as f64, axis.input as f64, axis.output as f64);
        let half_pixel = (o + 0.5) / axis.scale - 0.5;
        Ok(match self.transform {
            "half_pixel" => half_pixel,
            "pytorch_half_pixel" => {
                if axis.output > 1 {
                    half_pixel
                } else {
                    0.0
                }
            }
            "asymmetric" => o / axis.scale,
            "align_corners" => {
                if axis.output > 1 {
                    // The exact extent, which need not be whole: so the specification's own tests have it.
                    o * (input - 1.0) / (axis.scale * input - 1.0)
                } else {
                    0.0
                }
            }
            "half_pixel_symmetric" => {
                let adjustment = output / (axis.scale * input);
                input / 2.0 * (1.0 - adjustment) + half_pixel
            }
            "tf_crop_and_resize" => {
                let (start, end) = axis.roi;
                let start_at = start * (input - 1.0);
                match axis.output {
                    0 | 1 => 0.5 * (start + end) * (input - 1.0),
                    _ => start_at + o * (end - start) * (input - 1.0) / (output - 1.0),
                }
            }
            other => bail!("attribute `coordinate_transformation_mode` is \"{other}\""),
        })
    }
    /// The inputs that an output is made of, with their weights; `None` if it is extrapolated.
    fn weights(&self, axis: &Axis, o: usize) -> Result<Option<Vec<(usize, f64)>>> {
        let place = self.place(axis, o)?;
        let last = axis.input as f64 - 1.0;
        if self.transform == "tf_crop_and_resize" && !(0.0..=last).contains(&place) {
            return Ok(None);
        }
        if self.mode == "nearest" {
            return Ok(Some(vec![(self.rounded(place)?.clamp(0.0, last) as usize, 1.0)]));
        }
        let stretch = if self.antialias { axis.scale.min(1.0) } else { 1.0 };
        let reach = if self.mode == "linear" { 1.0 } else { 2.0 } / stretch;
        ensure!(reach <= 1e6, "an output is made of more than a million inputs");
        let (first, end) = ((place - reach).floor() as i64, (place + reach).ceil() as i64);
        let mut taps = Vec::new();
        for i in first..=end {
            let weight = self.kernel((i as f64 - place) * stretch);
            let inside = (0..axis.input as i64).contains(&i);
            if weight != 0.0 && (inside || !self.exclude_outside) {
                taps.push(((i.max(0) as usize).min(axis.input - 1), weight));
            }
        }
        let sum: f64 = taps.iter().map(|t| t.1).sum();
        if self.antialias || self.exclude_outside {
            taps.iter_mut().for_each(|t| t.1 /= sum);
        }
        Ok(Some(taps))
    }
    /// The interpolation kernel at a distance.
    fn kernel(&self, distance: f64) -> f64 {
        let (d, a) = (distance.abs(), self.cubic);
        match (self.mode, d) {
            ("linear", d) => (1.0 - d).max(0.0),
            (_, d) if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
            (_, d) if d < 2.0 => a * (((d - 5.0) * d + 8.0) * d - 4.0),
            _ => 0.0,
        }
    }
    fn rounded(&self, place: f64) -> Result<f64> {
        Ok(match self.nearest {
            "round_prefer_floor" => (place - 0.5).ceil(),
            "round_prefer_ceil" => (place + 0.5).floor(),
            "floor" => place.floor(),
            "ceil" => place.ceil(),
            other => bail!("attribute `nearest_mode` is \"{other}\""),
        })
    }
}

/// The axes that are resized.
fn resized_axes(attrs: &Attributes, rank: usize) -> Result<Vec<usize>> {
    match attrs.get_ints("axes")? {
        Some(axes) => axes.iter().map(|&a| normal_axis(a, rank)).collect(),
        None => Ok((0..rank).collect()),
    }
}

/// The axes that change, given the values of roi, scales and sizes (empty: left out).
fn plan(attrs: &Attributes, x: &[usize], roi: &[f64], scales: &[f64], sizes: &[i64]) -> Result<Vec<(usize, Axis)>> {
    let axes = resized_axes(attrs, x.len())?;
    let listed = scales.len().max(sizes.len());
    ensure!(scales.is_empty() != sizes.is_empty(), "exactly one of scales and sizes is needed");
    ensure!(listed == axes.len(), "{listed} scales or sizes for {} axes", axes.len());
    let by_sizes: Vec<f64> = axes.iter().zip(sizes).map(|(&a, &size)| size as f64 / x[a] as f64).collect();
    let shared = match attrs.str("keep_aspect_ratio_policy", "stretch")? {
        "stretch" => None,
        "not_larger" => by_sizes.iter().copied().reduce(f64::min),
        "not_smaller" => by_sizes.iter().copied().reduce(f64::max),
        other => bail!("attribute `keep_aspect_ratio_policy` is \"{other}\""),
    };
    let mut plan = Vec::new();
    for (i, &a) in axes.iter().enumerate() {
        let input = x[a];
        let (scale, output) = match (scales.get(i), sizes.get(i), shared) {
            (Some(&scale), _, _) => (scale, (input as f64 * scale).floor()),
            (None, Some(_), Some(scale)) => (scale, (input as f64 * scale + 0.5).floor()),
            (None, Some(&size), None) => (by_sizes[i], size as f64),
            (None, None, _) => bail!("an axis has no size"),
        };
        ensure!(scale.is_finite() && scale > 0.0 && (0.0..=1e9).contains(&output), "a scale is {scale}");
        let roi = (roi.get(i).copied().unwrap_or(0.0), roi.get(axes.len() + i).copied().unwrap_or(1.0));
        plan.push((a, Axis { input, output: output as usize, scale, roi }));
    }
    Ok(plan)
}

/// The plan of a node whose roi, scales and sizes stand in slots `first`, `first + 1`, `first + 2`.
fn read_plan(cx: &EvalCx, x: &[usize], inputs: &[Option<&Tensor>], first: usize) -> Result<Vec<(usize, Axis)>> {
    let reals = |slot| optional(inputs, slot).map(Tensor::to_f64s).transpose().map(Option::unwrap_or_default);
    let sizes = optional(inputs, first + 2).map(Tensor::to_i64s).transpose()?.unwrap_or_default();
    let scales = if sizes.is_empty() { reals(first + 1)? } else { Vec::new() };
    plan(&cx.op.attrs, x, &reals(first)?, &scales, &sizes)
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    Rule::read(&cx.op.attrs)?;
    let Some(x) = cx.shape(0).map(<[Dim]>::to_vec) else {
        cx.set_tensor(0, dtype, None);
        return Ok(());
    };
    let axes = resized_axes(&cx.op.attrs, x.len())?;
    let stretch = cx.op.attrs.str("keep_aspect_ratio_policy", "stretch")? == "stretch";
    let scales = cx.tensor(2).filter(|t| !t.is_empty()).map(Tensor::to_f64s).transpose()?;
    let sizes = cx.dims(3).filter(|d| !d.is_empty()).map(<[Dim]>::to_vec);
    let numbers: Option<Vec<i64>> = sizes.as_ref().and_then(|s| s.iter().map(Dim::known).collect());
    let mut shape = x.clone();
    let fixed: Option<Vec<usize>> =
        x.iter().map(|d| d.known().and_then(|d| usize::try_from(d).ok()).filter(|&d| d > 0)).collect();
    match (scales, sizes, fixed, numbers) {
        (Some(scales), None, Some(fixed), _) => {
            for (a, axis) in plan(&cx.op.attrs, &fixed, &[], &scales, &[])? {
                shape[a] = Dim::Known(axis.output as i64);
            }
        }
        (None, Some(_), Some(fixed), Some(numbers)) => {
            for (a, axis) in plan(&cx.op.attrs, &fixed, &[], &[], &numbers)? {
                shape[a] = Dim::Known(axis.output as i64);
            }
        }
        (None, Some(sizes), ..) if stretch && sizes.len() == axes.len() => {
            axes.iter().zip(sizes).for_each(|(&a, size)| shape[a] = size);
        }
        (Some(scales), None, ..) if scales.len() == axes.len() => {
            axes.iter().zip(scales).for_each(|(&a, scale)| shape[a] = scaled_dim(&x[a], scale));
        }
        _ => axes.iter().for_each(|&a| shape[a] = Dim::Unknown),
    }
    cx.set_tensor(0, dtype, Some(shape));
    Ok(())
}

/// ⌊dim · scale⌋, followed for whole factors only.
fn scaled_dim(dim: &Dim, scale: f64) -> Dim {
    match dim.known() {
        Some(size) => Dim::Known((size as f64 * scale).floor() as i64),
        None if scale.fract() == 0.0 && scale.abs() < 1e9 => dim.mul(&Dim::Known(scale as i64)),
        None => Dim::Unknown,
    }
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = required(inputs, 0)?;
    let rule = Rule::read(&cx.op.attrs)?;
    let (mut shape, mut values) = (x.shape().to_vec(), x.to_f64s()?);
    for (a, axis) in read_plan(cx, x.shape(), inputs, 1)? {
        let taps = axis_weights(&rule, &axis)?;
        values = along(&values, &shape, a, axis.output, |line, out| {
            for (target, taps) in out.iter_mut().zip(&taps) {
                *target = match taps {
                    Some(taps) => taps.iter().map(|&(i, w)| w * line[i]).sum(),
                    None => rule.extrapolation,
                };
            }
        });
        shape[a] = axis.output;
    }
    let limits = x
        .dtype()
        .is_int()
        .then(|| Tensor::from_vec([values.len()], values.iter().map(|v| v.round_ties_even()).collect()));
    match limits {
        Some(whole) => Ok(vec![whole.cast(x.dtype())?.reshaped(shape)?]),
        None => Ok(vec![rounded(x.dtype(), shape, values)?]),
    }
}

/// The weights of all outputs along an axis.
fn axis_weights(rule: &Rule, axis: &Axis) -> Result<Vec<Option<Vec<(usize, f64)>>>> {
    ensure!(axis.input > 0 || axis.output == 0, "an empty axis cannot be enlarged");
    let identity = axis.input == axis.output && axis.scale == 1.0 && rule.transform != "tf_crop_and_resize";
    let one = |o: usize| if identity { Ok(Some(vec![(o, 1.0)])) } else { rule.weights(axis, o) };
    (0..axis.output).map(one).collect()
}

/// Maps every line along an axis to a line of another length.
fn along(x: &[f64], shape: &[usize], axis: usize, length: usize, map: impl Fn(&[f64], &mut [f64])) -> Vec<f64> {
    let (size, stride): (usize, usize) = (shape[axis], shape[axis + 1..].iter().product());
    let blocks: usize = shape[..axis].iter().product();
    let mut out = vec![0.0; blocks * length * stride];
    let (mut line, mut result) = (vec![0.0; size], vec![0.0; length]);
    for block in 0..blocks {
        for start in 0..stride {
            for (i, v) in line.iter_mut().enumerate() {
                *v = x[(block * size + i) * stride + start];
            }
            result.fill(0.0);
            map(&line, &mut result);
            for (o, v) in result.iter().enumerate() {
                out[(block * length + o) * stride + start] = *v;
            }
        }
    }
    out
}

fn eval_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, shape) = (required(inputs, 0)?, shape_input(inputs, 1)?);
    let rule = Rule::read(&cx.op.attrs)?;
    let (mut left, mut values) = (dy.shape().to_vec(), dy.to_f64s()?);
    for (a, axis) in read_plan(cx, &shape, inputs, 2)? {
        ensure!(
            left.get(a) == Some(&axis.output),
            "dy has the shape {:?}, expected {} at axis {a}",
            dy.shape(),
            axis.output
        );
        let taps = axis_weights(&rule, &axis)?;
        values = along(&values, &left, a, axis.input, |line, out| {
            for (v, taps) in line.iter().zip(&taps) {
                taps.iter().flatten().for_each(|&(i, w)| out[i] += w * v);
            }
        });
        left[a] = axis.input;
    }
    ensure!(left == shape, "dy of shape {:?} is not of data of shape {shape:?}", dy.shape());
    Ok(vec![rounded(dy.dtype(), shape, values)?])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy, op) = (cx.input(0)?, cx.dy()?, cx.op());
    let shape = cx.emit.shape_of(x)?;
    let rest = [1, 2, 3].map(|slot| cx.optional_input(slot));
    let inputs = [&[Some(dy), Some(shape)][..], &rest].concat();
    let dx = cx.emit.node(Operator::sartor("ResizeGrad", op.attrs), &inputs, 1)?[0];
    Ok(vec![Some(dx), None, None, None])
}

/// Interpolation is a product with a matrix along every axis, which is what it makes of the unit matrix: the gradient is the product with
/// the same matrix from the other side.
fn decompose_grad(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (dy, shape, attrs) = (emit.operand(id, 0)?, emit.operand(id, 1)?, emit.attrs(id));
    let (from, to) = (emit.shape(Value { node: id, slot: 0 })?, emit.shape(dy)?);
    let given = |slot| {
        let input = emit.graph.input(id, slot)?;
        Some(input).filter(|&v| emit.graph.constant(v).is_none_or(|t| !t.is_empty()))
    };
    let (roi, scales, sizes) = (given(2), given(3), given(4));
    let sizes = sizes.filter(|_| scales.is_none());
    let own = attrs.str("keep_aspect_ratio_policy", "stretch")? == "stretch";
    ensure!(own || sizes.is_none(), "written out, it needs a size for every axis by itself");
    let crops = Rule::read(&attrs)?.transform == "tf_crop_and_resize";
    let known = scales.and_then(|v| emit.graph.constant(v)).map(|t| t.to_f64s()).transpose()?;
    let mut along = attrs.clone().with("extrapolation_value", 0f32);
    ["axes", "keep_aspect_ratio_policy"].iter().for_each(|name| drop(along.remove(name)));
    let axes = resized_axes(&attrs, from.len())?;
    let mut dx = dy;
    for (i, &a) in axes.iter().enumerate() {
        let stays = match (&known, sizes) {
            (Some(scales), _) => scales.get(i) == Some(&1.0),
            (None, Some(_)) => from[a].same(&to[a]),
            (None, None) => false,
        };
        if stays && !crops {
            continue;
        }
        let (first, one) = ([0.0, 0.0], [1.0, 1.0]);
        let length = part(emit, shape, a)?;
        let scales = match scales {
            Some(all) => {
                let scale = part(emit, all, i)?;
                Some(around(emit, &one, scale, &[1.0])?)
            }
            None => None,
        };
        let roi = match roi.filter(|_| crops) {
            Some(all) => {
                let (start, end) = (part(emit, all, i)?, part(emit, all, axes.len() + i)?);
                let (start, end) = (around(emit, &first, start, &[0.0])?, around(emit, &one, end, &[1.0])?);
                Some(emit.op("Concat", &[start, end], Attributes::new().with("axis", 0i64))?)
            }
            None => None,
        };
        let sizes = match sizes {
            Some(all) => {
                let size = part(emit, all, i)?;
                let lead = emit.ints(&[1, 1]);
                Some(emit.op("Concat", &[lead, size, length], Attributes::new().with("axis", 0i64))?)
            }
            None => None,
        };
        let unit = unit_matrix(emit, length, dy)?;
        let matrix = emit.node(Operator::onnx("Resize", along.clone()), &[Some(unit), roi, scales, sizes], 1)?[0];
        let lead = emit.ints(&[0, 1]);
        let matrix = emit.op("Squeeze", &[matrix, lead], Attributes::new())?;
        let mut perm: Vec<usize> = (0..from.len()).collect();
        perm.swap(a, from.len() - 1);
        let lines = emit.transpose(dx, &perm)?;
        let lines = emit.matmul(lines, matrix)?;
        dx = emit.transpose(lines, &perm)?;
    }
    Ok(vec![dx])
}

/// One entry of a vector, as a vector.
fn part(emit: &mut Emit, vector: Value, index: usize) -> Result<Value> {
    super::written_out::part(emit, vector, index as i64, index as i64 + 1)
}

/// A vector of one number between others.
fn around(emit: &mut Emit, before: &[f64], value: Value, behind: &[f64]) -> Result<Value> {
    let dtype = emit.dtype(value)?;
    let before = emit.constant(rounded(dtype, [before.len()], before.to_vec())?);
    let behind = emit.constant(rounded(dtype, [behind.len()], behind.to_vec())?);
    emit.op("Concat", &[before, value, behind], Attributes::new().with("axis", 0i64))
}

/// Ones on the diagonal of `[1, 1, length, length]`, the images that every mode takes.
fn unit_matrix(emit: &mut Emit, length: Value, like: Value) -> Result<Value> {
    let square = emit.op("Concat", &[length, length], Attributes::new().with("axis", 0i64))?;
    let zero = Tensor::zeros(emit.dtype(like)?, [1])?;
    let zeros = emit.op("ConstantOfShape", &[square], Attributes::new().with("value", zero))?;
    let unit = emit.unary("EyeLike", zeros)?;
    emit.unsqueeze(unit, &[0, 1])
}

/// `ResizeGrad` is linear: its gradient is the interpolation itself, with nothing added outside of the input.
fn grad_of_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (u, attrs) = (cx.dy()?, cx.op().attrs.with("extrapolation_value", 0f32));
    let rest = [2, 3, 4].map(|slot| cx.optional_input(slot));
    let inputs = [&[Some(u)][..], &rest].concat();
    let ddy = cx.emit.node(Operator::onnx("Resize", attrs), &inputs, 1)?[0];
    Ok(vec![Some(ddy), None, None, None, None])
}

fn infer_upsample(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let scales = cx.tensor(1).map(Tensor::to_f64s).transpose()?;
    let shape = cx.shape(0).map(|x| match scales {
        Some(scales) if scales.len() == x.len() => x.iter().zip(scales).map(|(d, s)| scaled_dim(d, s)).collect(),
        _ => vec![Dim::Unknown; x.len()],
    });
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

/// `Upsample` is `Resize` at asymmetric places, rounded down.
fn decompose_upsample(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let mut op = emit.graph.node(id).op().cloned().unwrap_or_default();
    ensure!(!op.attrs.has("scales"), "Upsample from before opset 9 must be upgraded first");
    op.name = "Resize".to_string();
    as_before_11(&mut op.attrs);
    let inputs = [emit.graph.input(id, 0), None, emit.graph.input(id, 1)];
    emit.node(op, &inputs, 1)
}

/// The attributes that say what `Upsample`, and `Resize` before opset 11, did.
fn as_before_11(attrs: &mut Attributes) {
    attrs.set("coordinate_transformation_mode", "asymmetric");
    attrs.set("nearest_mode", "floor");
    if attrs.get_str("mode").ok().flatten() == Some("bilinear") {
        attrs.set("mode", "linear");
    }
}

fn scales_to_input(graph: &mut Graph, id: NodeId) -> Result<()> {
    match upgrade::take_attr(graph, id, "scales") {
        Some(crate::Attribute::Floats(scales)) => {
            upgrade::set_const_input(graph, id, 1, "scales", Tensor::from_vec([scales.len()], scales));
            Ok(())
        }
        _ => Err(Error::msg("Upsample without the attribute `scales` is not supported")),
    }
}

fn into_resize(graph: &mut Graph, id: NodeId) -> Result<()> {
    if let Some(op) = graph.node_mut(id).op_mut() {
        op.name = "Resize".to_string();
    }
    Ok(())
}

/// Before opset 11: X and scales, asymmetric, rounded down.
fn with_roi(graph: &mut Graph, id: NodeId) -> Result<()> {
    let (x, scales) = (graph.input(id, 0), graph.input(id, 1));
    graph.set_inputs(id, &[x, None, scales]);
    upgrade::edit_attrs(graph, id, as_before_11);
    Ok(())
}

fn sample(draw: &mut Draw) -> Sample {
    let transforms = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric"];
    let attrs = Attributes::new()
        .with("mode", *draw.pick(&["nearest", "linear", "cubic"]))
        .with("coordinate_transformation_mode", *draw.pick(&transforms))
        .with("nearest_mode", *draw.pick(&["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]))
        .with("axes", [2i64, 3]);
    let x = draw.tensor(&[1, 2, 4, 3], -1.0, 1.0);
    let sizes = draw.ints(&[2], 2, 6);
    let mut sample = Sample::new(Operator::onnx("Resize", attrs), vec![x]);
    sample.inputs.extend([None, None, Some(sizes)]);
    sample.check.extend([false; 3]);
    sample
}

fn sample_grad(draw: &mut Draw) -> Sample {
    let resize = sample(draw);
    let sizes = resize.inputs[3].clone();
    let output = sizes.as_ref().and_then(|s| s.to_i64s().ok()).unwrap_or_default();
    let dy = draw.tensor(&[1, 2, output[0] as usize, output[1] as usize], -1.0, 1.0);
    let mut sample = Sample::new(Operator::sartor("ResizeGrad", resize.op.attrs), vec![dy]);
    sample.inputs.extend([Some(Tensor::from_i64s(&[1, 2, 4, 3])), None, None, sizes]);
    sample.check.extend([false; 4]);
    sample
}

fn sample_upsample(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("mode", *draw.pick(&["nearest", "linear"]));
    let scales = Tensor::from_vec([4], vec![1f32, 1.0, draw.int(1, 3) as f32, 1.5]);
    Sample::new(Operator::onnx("Upsample", attrs), vec![draw.tensor(&[1, 2, 3, 4], -1.0, 1.0), scales])
}
