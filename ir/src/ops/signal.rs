//! Constants of signal processing: the windows `HannWindow`, `HammingWindow` and `BlackmanWindow`, and the filters of
//! `MelWeightMatrix`.
//!
//! ```text
//! window:  w[i] = a₀ − a₁ cos(2πi/N) + a₂ cos(4πi/N)      N = size if periodic, else size − 1
//! Hann: ½, ½, 0      Hamming: 25/46, 21/46, 0      Blackman: 0.42, 0.5, 0.08
//! mel(f) = 2595 log₁₀(1 + f/700)
//! ```
//!
//! A column of the mel matrix is a triangle over the bins of a spectrum, from the centre of the band before it to that of
//! the band behind it; the centres are evenly spaced in mel between the two edges and rounded down to bins,
//! `⌊(dft_length + 1) f / sample_rate⌋`. Spec: <https://onnx.ai/onnx/operators/onnx__HannWindow.html>,
//! <https://onnx.ai/onnx/operators/onnx__MelWeightMatrix.html>. Shapes: windows `[size]`, the matrix `[dft_length/2 + 1,
//! num_mel_bins]`. Their element type is `output_datatype` (default `float`). No gradients: they are piecewise constant in
//! their inputs.

use super::cast::dtype_attribute;
use super::real::{required, rounded};
use super::{EvalCx, Gradient, InferCx, OpDef, Sample, index};
use crate::error::Result;
use crate::graph::Operator;
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, ensure};
use std::f64::consts::TAU;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "HannWindow",
        eval: Some(|cx, inputs| window(cx, inputs, [0.5, 0.5, 0.0])),
        sample: Some(|draw| sample_window(draw, "HannWindow")),
        ..WINDOW
    },
    OpDef {
        name: "HammingWindow",
        eval: Some(|cx, inputs| window(cx, inputs, [25.0 / 46.0, 21.0 / 46.0, 0.0])),
        sample: Some(|draw| sample_window(draw, "HammingWindow")),
        ..WINDOW
    },
    OpDef {
        name: "BlackmanWindow",
        eval: Some(|cx, inputs| window(cx, inputs, [0.42, 0.5, 0.08])),
        sample: Some(|draw| sample_window(draw, "BlackmanWindow")),
        ..WINDOW
    },
    OpDef {
        name: "MelWeightMatrix",
        inputs: (5, 5),
        infer: |cx| {
            let scalar = |slot: usize| cx.dims(slot).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown);
            let bins = scalar(1).div_floor(&2.into()).add(&1.into());
            let shape = vec![bins, scalar(0)];
            set_constant(cx, shape)
        },
        eval: Some(eval_mel),
        sample: Some(sample_mel),
        ..WINDOW
    },
];

/// What the rows share.
const WINDOW: OpDef = OpDef {
    infer: |cx| {
        let size = cx.dims(0).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown);
        set_constant(cx, vec![size])
    },
    grad: Gradient::Zero,
    flops: |cx| 4 * cx.output_len(0),
    ..OpDef::DEFAULT
};

fn element_type(op: &Operator) -> Result<DType> {
    Ok(dtype_attribute(op, "output_datatype")?.unwrap_or(DType::F32))
}

fn set_constant(cx: &mut InferCx, shape: Vec<Dim>) -> Result<()> {
    ensure!(shape.iter().all(|d| d.known().is_none_or(|d| d >= 0)), "a length is negative");
    let dtype = element_type(cx.op)?;
    cx.set_tensor(0, dtype, Some(shape));
    Ok(())
}

/// The one element of an integer input, as a size.
fn size(inputs: &[Option<&Tensor>], slot: usize) -> Result<usize> {
    let size = required(inputs, slot)?.cast(DType::I64)?.item::<i64>()?;
    ensure!((0..1 << 32).contains(&size), "input {slot} is {size}, expected a size");
    Ok(size as usize)
}

fn window(cx: &EvalCx, inputs: &[Option<&Tensor>], [a, b, c]: [f64; 3]) -> Result<Vec<Tensor>> {
    let size = size(inputs, 0)?;
    let period = if cx.op.attrs.flag("periodic", true)? { size } else { size.saturating_sub(1) };
    let at = |i: usize| {
        // A symmetric window of one element is its middle.
        let turn = if period == 0 { TAU / 2.0 } else { TAU * i as f64 / period as f64 };
        a - b * turn.cos() + c * (2.0 * turn).cos()
    };
    Ok(vec![rounded(element_type(cx.op)?, [size], (0..size).map(at).collect())?])
}

fn eval_mel(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (bands, length, rate) = (size(inputs, 0)?, size(inputs, 1)?, size(inputs, 2)?);
    let edge = |slot: usize| required(inputs, slot)?.cast(DType::F64)?.item::<f64>();
    let mel = |frequency: f64| 2595.0 * (frequency / 700.0).ln_1p() / std::f64::consts::LN_10;
    let (low, high) = (mel(edge(3)?), mel(edge(4)?));
    let bins = length / 2 + 1;
    index::room(&[bins, bands])?;
    let step = (high - low) / (bands + 2) as f64;
    let centre = |band: usize| -> Result<usize> {
        let frequency = 700.0 * ((low + band as f64 * step) / 2595.0 * std::f64::consts::LN_10).exp_m1();
        let bin = ((length + 1) as f64 * frequency / rate as f64).floor();
        ensure!(bin >= 0.0 && bin < bins as f64, "a band's edge of {frequency} Hz lies outside of the {bins} bins");
        Ok(bin as usize)
    };
    let mut matrix = vec![0.0; bins * bands];
    for band in 0..bands {
        let (first, middle, end) = (centre(band)?, centre(band + 1)?, centre(band + 2)?);
        ensure!(first <= middle && middle <= end, "the upper edge lies below the lower one");
        for bin in first..=end {
            let rising = if bin <= middle { (bin - first, middle - first) } else { (end - bin, end - middle) };
            let height = if bin == middle { 1.0 } else { rising.0 as f64 / rising.1 as f64 };
            matrix[bin * bands + band] = height;
        }
    }
    Ok(vec![rounded(element_type(cx.op)?, [bins, bands], matrix)?])
}

fn sample_window(draw: &mut Draw, name: &str) -> Sample {
    let attrs = Attributes::new().with("periodic", draw.int(0, 1));
    let dtype = *draw.pick(&[DType::F32, DType::F64, DType::F16]);
    let attrs = attrs.with("output_datatype", i64::from(dtype.onnx_code()));
    Sample::new(Operator::onnx(name, attrs), vec![Tensor::scalar(draw.int(0, 9))])
}

fn sample_mel(draw: &mut Draw) -> Sample {
    let (bands, length) = (Tensor::scalar(draw.int(1, 6)), Tensor::scalar(draw.int(8, 40)));
    let edges = [Tensor::scalar(draw.float(0.0, 200.0) as f32), Tensor::scalar(draw.float(1000.0, 3900.0) as f32)];
    let [low, high] = edges;
    let inputs = vec![bands, length, Tensor::scalar(8000i64), low, high];
    Sample::new(Operator::onnx("MelWeightMatrix", Attributes::new()), inputs)
}
