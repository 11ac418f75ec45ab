//! `DFT`: the discrete Fourier transform along an axis, forward and inverse; and `STFT`, that of windows of a signal.
//!
//! ```text
//! DFT(x):               y[k] = Σ_{n < N} e^(−2πi kn/N) x[n]            onesided: k ≤ N/2 only
//! DFT(x, inverse):      y[n] = 1/N · Σ_{k < N} e^(2πi kn/N) x[k]       onesided: from k ≤ N/2 of the spectrum of a real y
//! STFT(x, step, w):     y[f] = DFT(w · x[f·step : f·step + L])
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__DFT.html>, <https://onnx.ai/onnx/operators/onnx__STFT.html>. The last axis
//! holds real and imaginary part; a real signal may leave the latter out, and the onesided inverse gives a real signal.
//! `dft_length` N cuts the axis or pads it with zeros; by default it is the length of the axis, for the onesided inverse
//! twice that less 2. Shapes of `STFT`: x `[B, T, 1 or 2]`, w `[L]`, y `[B, frames, L or L/2 + 1, 2]`.
//!
//! The transform is linear, and its gradient the transform in the other direction: `dx = N · DFT⁻¹(dy)`, for the inverse `dx
//! = DFT(dy) / N`, for the onesided inverse with the weight 2 for all but the frequencies 0 and N/2, which stand for
//! themselves only. Complex data is transformed in single precision unless it is in double, as in ONNX's own tests; real
//! data in double.

use super::emit::Length;
use super::real::{reals, required, rounded, wide};
use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis, upgrade};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attribute, Attributes, DType, Dim, Tensor, bail, ensure};
use num_traits::{AsPrimitive, Float};
use std::f64::consts::TAU;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "DFT",
        inputs: (1, 3),
        infer,
        eval: Some(eval),
        grad: Gradient::Emit(grad),
        flops: |cx| 5 * cx.output_len(0) * u64::from(cx.output_len(0).max(2).ilog2()),
        upgrades: &[(20, axis_to_input)],
        sample: Some(sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "STFT",
        inputs: (2, 4),
        infer: infer_framed,
        decompose: Some(decompose_framed),
        grad: Gradient::Decompose,
        flops: |cx| 5 * cx.output_len(0) * u64::from(cx.output_len(0).max(2).ilog2()),
        sample: Some(sample_framed),
        ..OpDef::DEFAULT
    },
];

/// Before opset 20 the axis was an attribute, 1 by default.
fn axis_to_input(graph: &mut Graph, id: NodeId) -> Result<()> {
    let axis = match upgrade::take_attr(graph, id, "axis") {
        None => 1,
        Some(Attribute::Int(axis)) => axis,
        Some(_) => bail!("attribute `axis` is not an integer"),
    };
    upgrade::set_const_input(graph, id, 2, "axis", Tensor::scalar(axis));
    Ok(())
}

/// The directions that the attributes name.
#[derive(Clone, Copy)]
struct Kind {
    inverse: bool,
    onesided: bool,
}

impl Kind {
    fn read(attrs: &Attributes) -> Result<Kind> {
        Ok(Kind { inverse: attrs.flag("inverse", false)?, onesided: attrs.flag("onesided", false)? })
    }
    /// From half a spectrum to a real signal.
    fn to_real(self) -> bool {
        self.inverse && self.onesided
    }
    /// N for an axis of this length.
    fn default_length(self, axis: &Dim) -> Dim {
        if self.to_real() { axis.sub(&1.into()).mul(&2.into()) } else { axis.clone() }
    }
    /// How many entries the axis has afterwards.
    fn output_length(self, n: &Dim) -> Dim {
        if self.onesided && !self.inverse { n.div_floor(&2.into()).add(&1.into()) } else { n.clone() }
    }
    fn output_parts(self) -> usize {
        if self.to_real() { 1 } else { 2 }
    }
}

/// The axis of the transform; the last one holds real and imaginary part.
fn transformed_axis(axis: i64, rank: usize) -> Result<usize> {
    ensure!(rank >= 2, "its data has rank {rank}, expected at least 2");
    let axis = normal_axis(axis, rank)?;
    ensure!(axis < rank - 1, "axis {axis} holds real and imaginary part, and cannot be transformed");
    Ok(axis)
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (dtype, kind) = (cx.dtype(0)?, Kind::read(&cx.op.attrs)?);
    ensure!(dtype.is_float(), "its data is {dtype}, expected a floating-point type");
    let axis = if cx.fact(2).is_some() { cx.ints(2).and_then(|a| a.first().copied()) } else { Some(-2) };
    let shape = match cx.shape(0) {
        Some(shape) => {
            let rank = shape.len();
            ensure!(rank >= 2, "its data has rank {rank}, expected at least 2");
            check_parts(&shape[rank - 1])?;
            let mut out = shape.to_vec();
            out[rank - 1] = Dim::Known(kind.output_parts() as i64);
            match axis {
                Some(axis) => {
                    let axis = transformed_axis(axis, rank)?;
                    let given = cx.fact(1).map(|_| cx.dims(1).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown));
                    let n = given.unwrap_or_else(|| kind.default_length(&shape[axis]));
                    ensure!(n.known().is_none_or(|n| n > 0), "a transform of length {n}");
                    out[axis] = kind.output_length(&n);
                }
                None => out[..rank - 1].fill(Dim::Unknown),
            }
            Some(out)
        }
        None => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn check_parts(parts: &Dim) -> Result<()> {
    let fits = parts.known().is_none_or(|c| c == 1 || c == 2);
    ensure!(fits, "its last axis has length {parts}, expected 1 (real) or 2 (real and imaginary part)");
    Ok(())
}

// ---- evaluation -----------------------------------------------------------------------------------------------------

/// A number by its real and imaginary part.
type Complex<T> = (T, T);

/// A transform of data of one shape.
struct Plan {
    kind: Kind,
    /// How many numbers are transformed.
    n: usize,
    /// The axis: how many lines there are before and behind, its length, and that of the result.
    outer: usize,
    inner: usize,
    len: usize,
    count: usize,
    /// 1 for real data, 2 for complex data.
    parts: usize,
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, kind) = (required(inputs, 0)?, Kind::read(&cx.op.attrs)?);
    let axis = index::ints(inputs, 2)?.and_then(|a| a.first().copied()).unwrap_or(-2);
    let axis = transformed_axis(axis, x.rank())?;
    let (signal_shape, parts) = (&x.shape()[..x.rank() - 1], x.shape()[x.rank() - 1]);
    check_parts(&Dim::Known(parts as i64))?;
    let (outer, len, inner) = index::lanes(signal_shape, axis);
    let n = match index::ints(inputs, 1)? {
        Some(given) => given.first().copied().unwrap_or(0),
        None => kind.default_length(&Dim::Known(len as i64)).known().unwrap_or(0),
    };
    ensure!((1..1 << 32).contains(&n), "a transform of length {n}");
    let count = kind.output_length(&Dim::Known(n)).known().unwrap_or(0) as usize;
    let mut shape = x.shape().to_vec();
    (shape[axis], shape[x.rank() - 1]) = (count, kind.output_parts());
    index::room(&shape)?;
    let (plan, values) = (Plan { kind, n: n as usize, outer, inner, len, count, parts }, reals(x)?);
    let single = parts == 2 && x.dtype() != DType::F64;
    let out = if shape.contains(&0) {
        Vec::new()
    } else if single {
        plan.transformed::<f32>(&values)
    } else {
        plan.transformed::<f64>(&values)
    };
    Ok(vec![rounded(x.dtype(), shape, out)?])
}

impl Plan {
    /// All lines, in the precision of `T`.
    fn transformed<T: Float + AsPrimitive<f64>>(&self, values: &[f64]) -> Vec<f64>
    where
        f64: AsPrimitive<T>,
    {
        let (roots, parts) = (roots::<T>(self.n, self.kind.inverse), self.kind.output_parts());
        let scale: T = if self.kind.inverse { (1.0 / self.n as f64).as_() } else { T::one() };
        let mut out = vec![0.0; self.outer * self.inner * self.count * parts];
        for lane in 0..self.outer * self.inner {
            let place = |length: usize, i: usize| (lane / self.inner * length + i) * self.inner + lane % self.inner;
            let read = |i: usize| {
                let at = place(self.len, i) * self.parts;
                (values[at].as_(), if self.parts == 2 { values[at + 1].as_() } else { T::zero() })
            };
            let result = fft(&self.line(read), &roots);
            for (i, (re, im)) in result.into_iter().take(self.count).enumerate() {
                let numbers = [(re * scale).as_(), (im * scale).as_()];
                let at = place(self.count, i) * parts;
                out[at..at + parts].copy_from_slice(&numbers[..parts]);
            }
        }
        out
    }
    /// The n numbers that are transformed: those given, cut or with zeros behind; out of half a spectrum the whole one.
    fn line<T: Float>(&self, read: impl Fn(usize) -> Complex<T>) -> Vec<Complex<T>> {
        let half = self.n / 2 + 1;
        let given = |i: usize| if i < self.len { read(i) } else { (T::zero(), T::zero()) };
        let mirrored = |k: usize| {
            let (re, im) = given(self.n - k);
            (re, -im)
        };
        (0..self.n).map(|k| if self.kind.to_real() && k >= half { mirrored(k) } else { given(k) }).collect()
    }
}

/// `e^(∓2πi j/n)` for `j < n`.
fn roots<T: Float + 'static>(n: usize, inverse: bool) -> Vec<Complex<T>>
where
    f64: AsPrimitive<T>,
{
    let turn = (if inverse { TAU } else { -TAU }) / n as f64;
    (0..n).map(|j| (j as f64 * turn).sin_cos()).map(|(sin, cos)| (cos.as_(), sin.as_())).collect()
}

/// The sums `Σ roots[kn] x[n]`, by decimation in frequency along the smallest factor of their number (Gentleman and Sande 1966).
fn fft<T: Float>(x: &[Complex<T>], roots: &[Complex<T>]) -> Vec<Complex<T>> {
    let n = x.len();
    if n <= 1 {
        return x.to_vec();
    }
    let factor = (2..).take_while(|p| p * p <= n).find(|p| n.is_multiple_of(*p)).unwrap_or(n);
    let (length, stride) = (n / factor, roots.len() / n);
    let mut parts = vec![Vec::with_capacity(length); factor];
    for i in 0..length {
        let numbers: Vec<Complex<T>> = (0..factor).map(|j| x[i + length * j]).collect();
        for (k, (re, im)) in butterfly(&numbers, roots).into_iter().enumerate() {
            let (c, s) = roots[k * i % n * stride];
            parts[k].push(if k * i == 0 { (re, im) } else { (re * c - im * s, re * s + im * c) });
        }
    }
    let mut out = vec![(T::zero(), T::zero()); n];
    for (k, part) in parts.iter().enumerate() {
        fft(part, roots).into_iter().enumerate().for_each(|(i, value)| out[i * factor + k] = value);
    }
    out
}

/// The transform of 2 numbers or an odd number of them: the sums and differences of the numbers at equal distances from the first
/// serve two frequencies each.
fn butterfly<T: Float>(x: &[Complex<T>], roots: &[Complex<T>]) -> Vec<Complex<T>> {
    let (n, first) = (x.len(), x[0]);
    if n == 2 {
        return vec![(first.0 + x[1].0, first.1 + x[1].1), (first.0 - x[1].0, first.1 - x[1].1)];
    }
    let pairs: Vec<_> = (1..n.div_ceil(2)).map(|j| (j, x[j], x[n - j])).collect();
    let mut out = vec![pairs.iter().fold(first, |sum, (_, a, b)| (sum.0 + (a.0 + b.0), sum.1 + (a.1 + b.1))); n];
    for k in 1..n.div_ceil(2) {
        let (mut even, mut odd) = (first, (T::zero(), T::zero()));
        for (j, a, b) in &pairs {
            let (c, s) = roots[j * k % n * (roots.len() / n)];
            even = (even.0 + c * (a.0 + b.0), even.1 + c * (a.1 + b.1));
            odd = (odd.0 - s * (a.1 - b.1), odd.1 + s * (a.0 - b.0));
        }
        out[k] = (even.0 + odd.0, even.1 + odd.1);
        out[n - k] = (even.0 - odd.0, even.1 - odd.1);
    }
    out
}

// ---- gradient -------------------------------------------------------------------------------------------------------

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy, attrs) = (cx.input(0)?, cx.dy()?, cx.op().attrs);
    let (kind, given) = (Kind::read(&attrs)?, cx.optional_input(1));
    let axis = match cx.optional_input(2) {
        None => -2,
        Some(axis) => match cx.emit.graph.constant(axis) {
            Some(axis) => axis.cast(DType::I64)?.item::<i64>()?,
            None => bail!("its axis is known only when it runs"),
        },
    };
    let shape = cx.emit.shape(x)?;
    let axis = transformed_axis(axis, shape.len())?;
    let emit = &mut *cx.emit;
    let n = match given {
        Some(n) => emit.int_scalar(n)?,
        None if kind.to_real() => emit.length(dy, axis)?,
        None => emit.length(x, axis)?,
    };
    let place = emit.constant(Tensor::scalar(axis as i64));
    let back = Attributes::new().with("inverse", !kind.inverse).with("onesided", kind.to_real());
    let mut dx = emit.op("DFT", &[dy, n, place], back)?;
    let dtype = emit.dtype(x)?;
    let real_n = emit.cast(n, dtype)?;
    dx = if kind.inverse { emit.div(dx, real_n)? } else { emit.mul(dx, real_n)? };
    if kind.to_real() {
        let weights = frequency_weights(emit, dx, axis, n)?;
        dx = emit.mul(dx, weights)?;
    }
    let parts = shape.len() - 1;
    if shape[parts].known() != Some(2) {
        dx = fitted(emit, dx, x, parts)?;
    }
    if given.is_some() {
        dx = fitted(emit, dx, x, axis)?;
    }
    emit.type_like(dx, x);
    let mut grads = vec![None; cx.wants.len()];
    grads[0] = Some(dx);
    Ok(grads)
}

/// 2 for every frequency but 0 and N/2, which get 1; along `axis` of `like`.
fn frequency_weights(emit: &mut Emit, like: Value, axis: usize, n: Value) -> Result<Value> {
    let count = emit.length(like, axis)?;
    let k = emit.range(count)?;
    let twice = emit.mul_scalar(k, 2.0)?;
    let rest = emit.op("Mod", &[twice, n], Attributes::new())?;
    let alone = emit.compare_scalar("Equal", rest, 0.0)?;
    let alone = emit.cast(alone, emit.dtype(like)?)?;
    let weights = emit.scalar_minus(2.0, alone)?;
    let behind: Vec<usize> = (1..emit.rank(like)? - axis).collect();
    emit.unsqueeze(weights, &behind)
}

/// Cut, or padded with zeros, at the end of an axis to the length of `like`.
fn fitted(emit: &mut Emit, a: Value, like: Value, axis: usize) -> Result<Value> {
    let (from, to) = (emit.shape_tensor(&[Length::Axis(a, axis)])?, emit.shape_tensor(&[Length::Axis(like, axis)])?);
    let (nothing, axis) = (emit.ints(&[0]), emit.ints(&[axis as i64]));
    let behind = emit.sub(to, from)?;
    let pads = emit.op("Concat", &[nothing, behind], Attributes::new().with("axis", 0i64))?;
    Ok(emit.node(Operator::onnx("Pad", Attributes::new()), &[Some(a), Some(pads), None, Some(axis)], 1)?[0])
}

// ---- windows of a signal --------------------------------------------------------------------------------------------

fn infer_framed(cx: &mut InferCx) -> Result<()> {
    let (dtype, onesided) = (cx.dtype(0)?, cx.op.attrs.flag("onesided", true)?);
    let scalar = |slot: usize| cx.dims(slot).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown);
    let signal = match cx.shape(0) {
        Some([batch, length, parts]) => {
            check_parts(parts)?;
            [batch.clone(), length.clone()]
        }
        Some(other) => bail!("its signal has rank {}, expected 3", other.len()),
        None => [Dim::Unknown, Dim::Unknown],
    };
    let length = match (cx.fact(3), cx.fact(2)) {
        (Some(_), _) => scalar(3),
        (None, Some(_)) => cx.shape(2).and_then(|w| w.first().cloned()).unwrap_or(Dim::Unknown),
        (None, None) => signal[1].clone(),
    };
    let step = scalar(1);
    ensure!(step.known().is_none_or(|s| s > 0), "frames {step} apart");
    let frames = signal[1].sub(&length).div_floor(&step).add(&1.into());
    let frames = if frames.known().is_some_and(|f| f < 0) { Dim::Known(0) } else { frames };
    let kind = Kind { inverse: false, onesided };
    let [batch, _] = signal;
    cx.set_tensor(0, dtype, Some(vec![batch, frames, kind.output_length(&length), Dim::Known(2)]));
    Ok(())
}

fn decompose_framed(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let input = |slot| emit.graph.input(id, slot);
    let (Some(signal), Some(step)) = (input(0), input(1)) else { bail!("signal or frame_step is missing") };
    let (window, length) = (input(2), input(3));
    let dtype = emit.dtype(signal)?;
    let x = emit.cast(signal, wide(dtype))?;
    let length = match (length, window) {
        (Some(length), _) => emit.int_scalar(length)?,
        (None, Some(window)) => emit.length(window, 0)?,
        (None, None) => emit.length(x, 1)?,
    };
    let step = emit.int_scalar(step)?;
    let places = frame_places(emit, x, length, step)?;
    let mut frames = emit.op("Gather", &[x, places], Attributes::new().with("axis", 1i64))?;
    if let Some(window) = window {
        let window = emit.cast(window, wide(dtype))?;
        let window = emit.unsqueeze(window, &[1])?;
        frames = emit.mul(frames, window)?;
    }
    let axis = emit.constant(Tensor::scalar(2i64));
    let attrs = Attributes::new().with("onesided", op.attrs.flag("onesided", true)?);
    let y = emit.node(Operator::onnx("DFT", attrs), &[Some(frames), None, Some(axis)], 1)?[0];
    Ok(vec![emit.cast(y, dtype)?])
}

/// Where the elements of each frame stand in the signal, `[frames, L]`.
fn frame_places(emit: &mut Emit, x: Value, length: Value, step: Value) -> Result<Value> {
    let total = emit.length(x, 1)?;
    let last = emit.sub(total, length)?;
    let limit = emit.add_scalar(last, 1.0)?;
    let zero = emit.constant(Tensor::scalar(0i64));
    let starts = emit.op("Range", &[zero, limit, step], Attributes::new())?;
    let starts = emit.unsqueeze(starts, &[1])?;
    let within = emit.range(length)?;
    emit.add(starts, within)
}

// ---- samples --------------------------------------------------------------------------------------------------------

fn sample(draw: &mut Draw) -> Sample {
    let (inverse, onesided) = (draw.chance(0.5), draw.chance(0.5));
    let parts = if onesided == inverse { 2 } else { draw.int(1, 2) as usize };
    let axis = draw.int(0, 1);
    let x = draw.tensor(&[3, 4, parts], -1.0, 1.0);
    let length = draw.chance(0.5).then(|| Tensor::scalar(draw.int(2, 7)));
    let inputs = vec![Some(x), length, Some(Tensor::scalar(if draw.chance(0.5) { axis } else { axis - 3 }))];
    let attrs = Attributes::new().with("inverse", inverse).with("onesided", onesided);
    Sample { op: Operator::onnx("DFT", attrs), inputs, check: vec![true, false, false], outputs: 1 }
}

fn sample_framed(draw: &mut Draw) -> Sample {
    let x = draw.tensor(&[2, 9, 1], -1.0, 1.0);
    let length = draw.int(3, 5);
    let window = draw.chance(0.5).then(|| draw.tensor(&[length as usize], 0.2, 1.0));
    let given = (window.is_none() || draw.chance(0.5)).then(|| Tensor::scalar(length));
    let attrs = Attributes::new().with("onesided", draw.int(0, 1));
    let check = vec![true, false, window.is_some(), false];
    let inputs = vec![Some(x), Some(Tensor::scalar(draw.int(1, 4))), window, given];
    Sample { op: Operator::onnx("STFT", attrs), inputs, check, outputs: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::probe::Probe;

    /// Against the sums written out, for lengths with one, several and no factors.
    #[test]
    fn transforms_are_the_sums() {
        for n in [1, 2, 6, 7, 12, 15, 16] {
            let x: Vec<Complex<f64>> = (0..n).map(|i| ((i as f64).sin(), (i as f64 * 2.0).cos())).collect();
            let roots = roots::<f64>(n, false);
            for (k, found) in fft(&x, &roots).into_iter().enumerate() {
                let sum = x.iter().enumerate().fold((0.0, 0.0), |s, (i, x)| {
                    let w = roots[i * k % n];
                    (s.0 + w.0 * x.0 - w.1 * x.1, s.1 + w.0 * x.1 + w.1 * x.0)
                });
                assert!((found.0 - sum.0).abs() < 1e-12 && (found.1 - sum.1).abs() < 1e-12, "{n} {k}");
            }
        }
    }

    #[test]
    fn lengths() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,time,1");
        let (step, length) = (p.scalar(160), p.scalar(400));
        let half = p.op("DFT", &[x], Attributes::new().with("onesided", 1i64));
        let frames = p.node("STFT", &[Some(x), Some(step), None, Some(length)], Attributes::new(), 1)[0];
        assert_eq!(p.show(half), "float[batch, floor((time)/(2)) + 1, 2]");
        assert_eq!(p.show(frames), "float[batch, floor((time - 400)/(160)) + 1, 201, 2]");
    }
}
