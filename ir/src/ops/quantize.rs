//! Numbers on a grid: QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, by decomposition.
//!
//! ```text
//! QuantizeLinear(x, scale, zero)     y = saturate(round(x / scale) + zero)          ties to even; 8- and 4-bit floats: cast(x / scale)
//! DequantizeLinear(x, scale, zero)   y = (x − zero) · scale
//! DynamicQuantizeLinear(x)           scale = (max(0, max x) − min(0, min x)) / 255   zero = round(clip(−min(0, min x) / scale, 0, 255))
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html> and siblings. Shapes: y is like x; scale and zero are scalars,
//! `[n]` with n the length of `axis`, or, with `block_size` B, like x but of length ⌈n / B⌉ on that axis. The grid is an
//! integer type, or a float of 8 or 4 bits. Gradients flow through scales of DequantizeLinear and of DynamicQuantizeLinear;
//! none through integers.
//!
//! `ai.sartor::FakeQuantize` (x, scale, zero) is the two after each other with one scale, `DequantizeLinear(QuantizeLinear(x))`, for training: its gradient is that of
//! the identity where x lies on the grid's range, and 0 beyond it (straight-through estimation, Bengio et al., arXiv 1308.3432). Attributes: those
//! of QuantizeLinear.

use super::cast::dtype_attribute;
use super::emit::Length;
use super::real::count;
use super::{Emit, GradCx, Gradient, InferCx, OpDef, Sample, normal_axis};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, Type, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "QuantizeLinear",
        inputs: (2, 3),
        infer: infer_quantize,
        decompose: Some(decompose_quantize),
        grad: Gradient::Zero,
        flops: |cx| 3 * cx.output_len(0),
        sample: Some(sample_quantize),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "DequantizeLinear",
        inputs: (2, 3),
        infer: infer_dequantize,
        decompose: Some(decompose_dequantize),
        grad: Gradient::Decompose,
        flops: |cx| 2 * cx.output_len(0),
        sample: Some(sample_dequantize),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "FakeQuantize",
        inputs: (2, 3),
        decompose: Some(decompose_fake),
        grad: Gradient::Emit(fake_grad),
        flops: |cx| 5 * cx.output_len(0),
        sample: Some(sample_fake),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "DynamicQuantizeLinear",
        outputs: (3, 3),
        infer: infer_dynamic,
        decompose: Some(decompose_dynamic),
        grad: Gradient::Decompose,
        flops: |cx| 5 * cx.output_len(0),
        sample: Some(|draw| {
            let x = draw.distinct(&[2, 3], 0.4);
            let op = Operator::onnx("DynamicQuantizeLinear", Attributes::new());
            Sample { outputs: 3, ..Sample::new(op, vec![x]) }
        }),
        ..OpDef::DEFAULT
    },
];

/// The gradient is an estimate, so that it is not compared with differences.
fn sample_fake(draw: &mut Draw) -> Sample {
    let (x, scale) = (draw.tensor(&[2, 5], -9.0, 9.0), Tensor::scalar(0.05f64));
    let zero = Tensor::scalar(7u8);
    let mut sample = Sample::new(Operator::sartor("FakeQuantize", Attributes::new()), vec![x, scale, zero]);
    sample.check = vec![false; 3];
    sample
}

fn decompose_fake(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let attrs = emit.graph.node(id).op().map(|op| op.attrs.clone()).unwrap_or_default();
    let inputs = [emit.graph.input(id, 0), emit.graph.input(id, 1), emit.graph.input(id, 2)];
    let codes = emit.node(Operator::onnx("QuantizeLinear", attrs), &inputs, 1)?[0];
    emit.node(Operator::onnx("DequantizeLinear", Attributes::new()), &[Some(codes), inputs[1], inputs[2]], 1)
}

/// On the range a number is never further than a step from its place on the grid.
fn fake_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, scale, dy) = (cx.input(0)?, cx.input(1)?, cx.dy()?);
    let y = Value { node: cx.node, slot: 0 };
    let apart = cx.emit.sub(x, y)?;
    let apart = cx.emit.unary("Abs", apart)?;
    let inside = cx.emit.op("LessOrEqual", &[apart, scale], Attributes::new())?;
    Ok(vec![Some(cx.emit.select_or(inside, dy, 0.0)?), None, None])
}

// ---- types ----------------------------------------------------------------------------------------------------------

/// Along which axis scales differ, and how many neighbours share one (0: the whole axis has one each).
#[derive(Clone, Copy)]
pub(super) struct Grain {
    axis: i64,
    block: usize,
}

impl Grain {
    fn read(op: &Operator) -> Result<Grain> {
        Ok(Grain { axis: op.attrs.int("axis", 1)?, block: count(&op.attrs, "block_size", 0)? })
    }
    /// One scale for each place of an axis.
    pub(super) fn of_axis(axis: i64) -> Grain {
        Grain { axis, block: 0 }
    }
    /// Errors unless a scale of this shape fits to data of that one, as far as both are known.
    fn check(self, scale: &[Dim], x: &[Dim]) -> Result<()> {
        if scale.is_empty() || scale == [Dim::Known(1)] {
            return Ok(());
        }
        let axis = normal_axis(self.axis, x.len())?;
        let fits = |a: &Dim, b: &Dim| a.known().zip(b.known()).is_none_or(|(a, b)| a == b);
        if self.block == 0 {
            ensure!(scale.len() == 1, "a scale of rank {}, but no attribute `block_size`", scale.len());
            ensure!(fits(&scale[0], &x[axis]), "{} scales for an axis of length {}", scale[0], x[axis]);
            return Ok(());
        }
        ensure!(scale.len() == x.len(), "blocked scales of rank {} for data of rank {}", scale.len(), x.len());
        for (i, (s, d)) in scale.iter().zip(x).enumerate() {
            let blocks = d.known().map(|d| Dim::Known((d as u64).div_ceil(self.block as u64) as i64));
            let want = if i == axis { blocks.unwrap_or(Dim::Unknown) } else { d.clone() };
            ensure!(fits(s, &want), "{s} scales along axis {i} of length {d}, expected {want}");
        }
        Ok(())
    }
    fn check_inputs(self, cx: &InferCx) -> Result<()> {
        let Some(x) = cx.shape(0) else { return Ok(()) };
        for slot in 1..=2 {
            if let Some(scale) = cx.shape(slot) {
                self.check(scale, x)?;
            }
        }
        Ok(())
    }
}

/// Whether numbers can be quantised to a type.
fn is_grid(dtype: DType) -> bool {
    dtype.is_int() || dtype.is_narrow() && dtype != DType::F8E8M0
}

fn infer_quantize(cx: &mut InferCx) -> Result<()> {
    let (x, scale) = (cx.dtype(0)?, cx.dtype(1)?);
    ensure!(x.is_float() || x.is_int(), "its input is {x}, expected numbers");
    ensure!(scale.is_float() || scale.is_int() || scale == DType::F8E8M0, "its scale is {scale}, expected numbers");
    Grain::read(cx.op)?.check_inputs(cx)?;
    let zero = if cx.fact(2).is_some() { Some(cx.dtype(2)?) } else { None };
    let to = grid(cx.op, zero)?;
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    cx.set_tensor(0, to, shape);
    Ok(())
}

/// The type that QuantizeLinear quantises to: that of the zero point, or `output_dtype`, or `uint8`.
fn grid(op: &Operator, zero: Option<DType>) -> Result<DType> {
    // 0 stands for a type that is not given.
    let named = if op.attrs.int("output_dtype", 0)? == 0 { None } else { dtype_attribute(op, "output_dtype")? };
    if let (Some(named), Some(zero)) = (named, zero) {
        ensure!(named == zero, "attribute `output_dtype` is {named}, its zero point {zero}");
    }
    let to = zero.or(named).unwrap_or(DType::U8);
    ensure!(is_grid(to), "numbers are not quantised to {to}");
    Ok(to)
}

fn infer_dequantize(cx: &mut InferCx) -> Result<()> {
    let (x, scale) = (cx.dtype(0)?, cx.dtype(1)?);
    ensure!(is_grid(x), "its input is {x}, which numbers are not quantised to");
    ensure!(cx.fact(2).is_none() || cx.dtype(2)? == x, "its input is {x}, its zero point {}", cx.dtype(2)?);
    Grain::read(cx.op)?.check_inputs(cx)?;
    let to = real_type(cx.op, scale)?;
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    cx.set_tensor(0, to, shape);
    Ok(())
}

/// The type that DequantizeLinear computes: `output_dtype`, or that of the scale.
fn real_type(op: &Operator, scale: DType) -> Result<DType> {
    let named = if op.attrs.int("output_dtype", 0)? == 0 { None } else { dtype_attribute(op, "output_dtype")? };
    let to = named.unwrap_or(scale);
    ensure!(to.is_float(), "its output would be {to}, expected a floating-point type");
    Ok(to)
}

fn infer_dynamic(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype.is_float(), "its input is {dtype}, expected a floating-point type");
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    cx.set_tensor(0, DType::U8, shape);
    cx.set_tensor(1, dtype, Some(Vec::new()));
    cx.set_tensor(2, DType::U8, Some(Vec::new()));
    Ok(())
}

// ---- decompositions -------------------------------------------------------------------------------------------------

fn decompose_quantize(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (op, x, scale) = operands(emit, id)?;
    let zero = emit.graph.input(id, 2);
    let zero_type = zero.map(|z| emit.dtype(z)).transpose()?;
    let (grain, to) = (Grain::read(&op)?, grid(&op, zero_type)?);
    let of_scale = Some(emit.dtype(scale)?).filter(|d| d.is_float()).unwrap_or(DType::F32);
    let precision = if op.attrs.int("precision", 0)? == 0 { None } else { dtype_attribute(&op, "precision")? };
    let precision = precision.unwrap_or(of_scale);
    let divisor = spread(emit, scale, precision, x, grain)?;
    let dividend = emit.cast(x, precision)?;
    let mut quotient = emit.div(dividend, divisor)?;
    if to.is_narrow() && !is_narrow_int(to) {
        // Only the type of 8-bit floats is read off their zero point, which is 0.
        if let Some(zero) = zero.filter(|_| to == DType::F4E2M1) {
            let zero = spread(emit, zero, precision, x, grain)?;
            quotient = emit.add(quotient, zero)?;
        }
        let mut attrs = super::cast::to_attribute(to);
        attrs.set("saturate", op.attrs.int("saturate", 1)?);
        return Ok(vec![emit.op("Cast", &[quotient], attrs)?]);
    }
    // Half types could not hold the sum with the zero point.
    let wide = wide(precision);
    let rounded = emit.unary("Round", quotient)?;
    let mut rounded = emit.cast(rounded, wide)?;
    if let Some(zero) = zero {
        let zero = spread(emit, zero, wide, x, grain)?;
        rounded = emit.add(rounded, zero)?;
    }
    Ok(vec![saturated(emit, rounded, to)?])
}

fn decompose_dequantize(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (op, x, scale) = operands(emit, id)?;
    let (grain, to) = (Grain::read(&op)?, real_type(&op, emit.dtype(scale)?)?);
    let wide = wide(emit.dtype(scale)?);
    let mut steps = emit.cast(x, wide)?;
    if let Some(zero) = emit.graph.input(id, 2) {
        let zero = spread(emit, zero, wide, x, grain)?;
        steps = emit.sub(steps, zero)?;
    }
    let scale = spread(emit, scale, wide, x, grain)?;
    let y = emit.mul(steps, scale)?;
    Ok(vec![emit.cast(y, to)?])
}

fn decompose_dynamic(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let x = emit.operand(id, 0)?;
    let axes: Vec<usize> = (0..emit.rank(x)?).collect();
    let zero = emit.scalar(0.0, x)?;
    let (high, low) = (emit.reduce("ReduceMax", x, &axes, false)?, emit.reduce("ReduceMin", x, &axes, false)?);
    let high = emit.op("Max", &[high, zero], Attributes::new())?;
    let low = emit.op("Min", &[low, zero], Attributes::new())?;
    let range = emit.sub(high, low)?;
    let empty = emit.op("Equal", &[range, zero], Attributes::new())?;
    let one = emit.scalar(1.0, x)?;
    let range = emit.select(empty, one, range)?;
    let steps = emit.scalar(255.0, x)?;
    let scale = emit.div(range, steps)?;
    let below = emit.sub(zero, low)?;
    let offset = emit.div(below, scale)?;
    let offset = saturated(emit, offset, DType::U8)?;
    let y = emit.op("QuantizeLinear", &[x, scale, offset], Attributes::new())?;
    Ok(vec![y, scale, offset])
}

fn operands(emit: &Emit, id: NodeId) -> Result<(Operator, Value, Value)> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    Ok((op, emit.operand(id, 0)?, emit.operand(id, 1)?))
}

fn is_narrow_int(dtype: DType) -> bool {
    matches!(dtype, DType::I4 | DType::U4 | DType::I2 | DType::U2)
}

/// The type in which quantised numbers are computed.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Rounded (ties to even), kept within the range of an integer type, and converted to it.
pub(super) fn saturated(emit: &mut Emit, x: Value, to: DType) -> Result<Value> {
    let (low, high) = integer_range(to);
    let (low, high) = (emit.scalar(low, x)?, emit.scalar(high, x)?);
    let rounded = emit.unary("Round", x)?;
    let clipped = emit.op("Clip", &[rounded, low, high], Attributes::new())?;
    emit.cast(clipped, to)
}

/// The least and the largest number of an integer type.
fn integer_range(dtype: DType) -> (f64, f64) {
    let bits = dtype.bits() as i32;
    match dtype.is_signed_int() || matches!(dtype, DType::I4 | DType::I2) {
        true => (-2f64.powi(bits - 1), 2f64.powi(bits - 1) - 1.0),
        false => (0.0, 2f64.powi(bits) - 1.0),
    }
}

/// Scales or zero points as numbers of type `dtype` that broadcast to `x`.
pub(super) fn spread(emit: &mut Emit, scale: Value, dtype: DType, x: Value, grain: Grain) -> Result<Value> {
    let scale = emit.cast(scale, dtype)?;
    let (shape, of_x) = (emit.shape(scale)?, emit.shape(x)?);
    grain.check(&shape, &of_x)?;
    if shape.is_empty() {
        return Ok(scale);
    }
    if shape == [Dim::Known(1)] {
        return emit.reshape(scale, &[]);
    }
    let axis = normal_axis(grain.axis, of_x.len())?;
    if grain.block == 0 {
        let others: Vec<usize> = (0..of_x.len()).filter(|&i| i != axis).collect();
        return if others.is_empty() { Ok(scale) } else { emit.unsqueeze(scale, &others) };
    }
    let places = positions(emit, x, axis)?;
    let block = emit.constant(Tensor::scalar(grain.block as i64));
    let blocks = emit.div(places, block)?;
    let out = emit.op("Gather", &[scale, blocks], Attributes::new().with("axis", axis as i64))?;
    emit.graph.set_ty(out, Some(Type::Tensor { dtype, shape: Some(of_x) }));
    Ok(out)
}

/// 0, 1, 2, … along an axis of a value, as an `int64` vector.
pub(super) fn positions(emit: &mut Emit, x: Value, axis: usize) -> Result<Value> {
    let length = emit.shape_tensor(&[Length::Axis(x, axis)])?;
    let length = emit.reshape(length, &[])?;
    let (start, step) = (emit.constant(Tensor::scalar(0i64)), emit.constant(Tensor::scalar(1i64)));
    let places = emit.op("Range", &[start, length, step], Attributes::new())?;
    let dim = emit.shape(x)?.get(axis).cloned().unwrap_or(Dim::Unknown);
    emit.graph.set_ty(places, Some(Type::Tensor { dtype: DType::I64, shape: Some(vec![dim]) }));
    Ok(places)
}

// ---- samples --------------------------------------------------------------------------------------------------------

/// Attributes, and the shape of the scales of data of shape `[2, 5, 3]`.
fn sample_grain(draw: &mut Draw) -> (Attributes, &'static [usize]) {
    match draw.int(0, 3) {
        0 => (Attributes::new(), &[]),
        1 => (Attributes::new(), &[5]),
        2 => (Attributes::new().with("axis", -1i64), &[3]),
        _ => (Attributes::new().with("block_size", 2i64), &[2, 3, 3]),
    }
}

fn sample_quantize(draw: &mut Draw) -> Sample {
    let (attrs, shape) = sample_grain(draw);
    let to = *draw.pick(&[DType::U8, DType::I8, DType::I16, DType::U4, DType::I2, DType::F8E4M3FN, DType::F4E2M1]);
    let mut inputs = vec![draw.tensor(&[2, 5, 3], -9.0, 9.0), draw.tensor(shape, 0.05, 0.5)];
    let integer = to.is_int() || is_narrow_int(to);
    let zero = draw.ints(shape, 0, if integer { 1 } else { 0 }).cast(to);
    let attrs = match (draw.chance(0.5), zero) {
        (true, Ok(zero)) => {
            inputs.push(zero);
            attrs
        }
        _ => attrs.with("output_dtype", i64::from(to.onnx_code())),
    };
    Sample::new(Operator::onnx("QuantizeLinear", attrs), inputs)
}

fn sample_dequantize(draw: &mut Draw) -> Sample {
    let (attrs, shape) = sample_grain(draw);
    let from = *draw.pick(&[DType::U8, DType::I8, DType::I32, DType::I4, DType::F8E5M2]);
    let (x, zero) = (draw.ints(&[2, 5, 3], 0, 7).cast(from), draw.ints(shape, 0, 7).cast(from));
    let (x, zero) = (x.unwrap_or(Tensor::scalar(0u8)), zero.ok().filter(|_| draw.chance(0.5)));
    let inputs = [Some(x), Some(draw.tensor(shape, 0.5, 1.5)), zero];
    Sample::new(Operator::onnx("DequantizeLinear", attrs), inputs.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::probe::Probe;

    #[test]
    fn types_follow_the_zero_point_and_the_scale() {
        let mut p = Probe::new();
        let (x, scale) = (p.input("x", DType::F32, "n,4"), p.input("scale", DType::F32, "4"));
        let zero = p.input("zero", DType::I4, "4");
        let q = p.op("QuantizeLinear", &[x, scale, zero], Attributes::new());
        let y = p.op("DequantizeLinear", &[q, scale, zero], Attributes::new());
        let bytes = p.op("QuantizeLinear", &[x, scale], Attributes::new());
        assert_eq!(p.show(q), "int4[n, 4]");
        assert_eq!(p.show(y), "float[n, 4]");
        assert_eq!(p.show(bytes), "uint8[n, 4]");
    }

    #[test]
    fn scales_that_do_not_fit_are_refused() {
        let mut p = Probe::new();
        let (x, scale) = (p.input("x", DType::F32, "2,4"), p.input("scale", DType::F32, "3"));
        p.op("QuantizeLinear", &[x, scale], Attributes::new());
        assert!(p.error().contains("3 scales for an axis of length 4"), "{}", p.error());
    }
}
