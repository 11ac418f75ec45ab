//! Products of quantised numbers: MatMulInteger, ConvInteger, QLinearMatMul and QLinearConv, by decomposition.
//!
//! ```text
//! MatMulInteger(a, b, za, zb)                  y = (a − za) · (b − zb)                             in int32
//! ConvInteger(x, w, zx, zw)                    y = Conv(x − zx, w − zw)                            in int32
//! QLinearMatMul(a, sa, za, b, sb, zb, sy, zy)  y = saturate((a − za) · (b − zb) · (sa sb / sy) + zy)
//! QLinearConv(x, sx, zx, w, sw, zw, sy, zy, b) y = saturate((Conv(x − zx, w − zw) + b) · (sx sw / sy) + zy)
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html> and siblings. Shapes as those of MatMul and Conv. Scales and zero
//! points are scalars, or vectors: one entry per row of a, per column of b, per output channel of w. Sums of at most 2⁵³ are exact.

use super::conv::output_shape;
use super::matmul::result_dims;
use super::quantize::{Grain, saturated, spread};
use super::{Emit, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, ensure};

/// What the rows share.
const INTEGER: OpDef = OpDef { grad: Gradient::Zero, ..OpDef::DEFAULT };

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "MatMulInteger",
        inputs: (2, 4),
        infer: |cx| {
            let shape = product_shape(cx, 0, 1)?;
            cx.set_tensor(0, DType::I32, shape);
            Ok(())
        },
        decompose: Some(|emit, id| {
            let (a, b) = (emit.operand(id, 0)?, emit.operand(id, 1)?);
            let (za, zb) = (emit.graph.input(id, 2), emit.graph.input(id, 3));
            Ok(vec![integer_matmul(emit, (a, za), (b, zb), DType::I32)?])
        }),
        sample: Some(sample_matmul_integer),
        ..INTEGER
    },
    OpDef {
        name: "ConvInteger",
        inputs: (2, 4),
        infer: |cx| {
            only_bytes(cx, &[0, 1])?;
            let shape = output_shape(cx, 0, 1)?;
            cx.set_tensor(0, DType::I32, shape);
            Ok(())
        },
        decompose: Some(|emit, id| {
            let (x, w) = (emit.operand(id, 0)?, emit.operand(id, 1)?);
            let (zx, zw) = (emit.graph.input(id, 2), emit.graph.input(id, 3));
            let y = integer_conv(emit, id, (x, zx), (w, zw), None)?;
            Ok(vec![emit.cast(y, DType::I32)?])
        }),
        sample: Some(sample_conv_integer),
        ..INTEGER
    },
    OpDef {
        name: "QLinearMatMul",
        inputs: (8, 8),
        infer: |cx| {
            let (dtype, shape) = (cx.dtype(7)?, product_shape(cx, 0, 3)?);
            cx.set_tensor(0, dtype, shape);
            Ok(())
        },
        decompose: Some(decompose_qlinear_matmul),
        sample: Some(sample_qlinear_matmul),
        ..INTEGER
    },
    OpDef {
        name: "QLinearConv",
        inputs: (8, 9),
        infer: |cx| {
            only_bytes(cx, &[0, 3])?;
            let (dtype, shape) = (cx.dtype(7)?, output_shape(cx, 0, 3)?);
            cx.set_tensor(0, dtype, shape);
            Ok(())
        },
        decompose: Some(decompose_qlinear_conv),
        sample: Some(sample_qlinear_conv),
        ..INTEGER
    },
];

fn only_bytes(cx: &InferCx, slots: &[usize]) -> Result<()> {
    for &slot in slots {
        let dtype = cx.dtype(slot)?;
        ensure!(dtype.is_int() || dtype.is_narrow(), "input {slot} is {dtype}, expected quantised numbers");
    }
    Ok(())
}

/// The shape of the matrix product of two quantised inputs.
pub(super) fn product_shape(cx: &InferCx, a: usize, b: usize) -> Result<Option<Vec<Dim>>> {
    only_bytes(cx, &[a, b])?;
    match (cx.shape(a), cx.shape(b)) {
        (Some(a), Some(b)) => result_dims(a, b).map(Some),
        _ => Ok(None),
    }
}

// ---- decompositions -------------------------------------------------------------------------------------------------

/// `(a − za) · (b − zb)` in a wide type, with one zero point in all or one per row of a and per column of b.
fn integer_matmul(
    emit: &mut Emit,
    (a, za): (Value, Option<Value>),
    (b, zb): (Value, Option<Value>),
    wide: DType,
) -> Result<Value> {
    let a = match za {
        Some(zero) => {
            let zero = per_row(emit, zero, a)?;
            centred(emit, a, zero, wide)?
        }
        None => emit.cast(a, wide)?,
    };
    let b = match zb {
        Some(zero) => {
            let zero = scalar_if_single(emit, zero)?;
            centred(emit, b, zero, wide)?
        }
        None => emit.cast(b, wide)?,
    };
    emit.matmul(a, b)
}

fn centred(emit: &mut Emit, x: Value, zero: Value, wide: DType) -> Result<Value> {
    let (x, zero) = (emit.cast(x, wide)?, emit.cast(zero, wide)?);
    emit.sub(x, zero)
}

/// A vector with one entry per row of `a` as a column; vectors of one entry as scalars.
fn per_row(emit: &mut Emit, rows: Value, a: Value) -> Result<Value> {
    let rows = scalar_if_single(emit, rows)?;
    if emit.rank(rows)? == 1 && emit.rank(a)? > 1 { emit.unsqueeze(rows, &[1]) } else { Ok(rows) }
}

/// A vector of one entry would raise the rank of what it is joined with.
pub(super) fn scalar_if_single(emit: &mut Emit, x: Value) -> Result<Value> {
    if emit.shape(x)? == [Dim::Known(1)] { emit.reshape(x, &[]) } else { Ok(x) }
}

/// The convolution of centred operands, exact in `f64`.
fn integer_conv(
    emit: &mut Emit,
    id: NodeId,
    (x, zx): (Value, Option<Value>),
    (w, zw): (Value, Option<Value>),
    bias: Option<Value>,
) -> Result<Value> {
    let attrs = emit.attrs(id);
    let exact = DType::F64;
    let x = match zx {
        Some(zero) => {
            let zero = scalar_if_single(emit, zero)?;
            centred(emit, x, zero, exact)?
        }
        None => emit.cast(x, exact)?,
    };
    let mut operands = vec![x, emit.cast(w, exact)?];
    if let Some(zero) = zw {
        let zero = spread(emit, zero, exact, w, Grain::of_axis(0))?;
        operands[1] = emit.sub(operands[1], zero)?;
    }
    if let Some(bias) = bias {
        operands.push(emit.cast(bias, exact)?);
    }
    emit.op("Conv", &operands, attrs)
}

/// `saturate(x · (sa sb / sy) + zy)`; the factor is rounded to the type of the scales at every step.
fn requantised(emit: &mut Emit, x: Value, [sa, sb, sy]: [Value; 3], zero: Value) -> Result<Value> {
    let factor = emit.mul(sa, sb)?;
    let factor = emit.div(factor, sy)?;
    let (factor, x) = (emit.cast(factor, DType::F64)?, emit.cast(x, DType::F64)?);
    let scaled = emit.mul(x, factor)?;
    let (to, zero) = (emit.dtype(zero)?, scalar_if_single(emit, zero)?);
    let zero = emit.cast(zero, DType::F64)?;
    let moved = emit.add(scaled, zero)?;
    saturated(emit, moved, to)
}

fn decompose_qlinear_matmul(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (a, b) = (emit.operand(id, 0)?, emit.operand(id, 3)?);
    let (za, zb) = (emit.operand(id, 2)?, emit.operand(id, 5)?);
    let product = integer_matmul(emit, (a, Some(za)), (b, Some(zb)), DType::I32)?;
    let (sa, sb, sy) = (emit.operand(id, 1)?, emit.operand(id, 4)?, emit.operand(id, 6)?);
    let (sa, sb, sy) = (per_row(emit, sa, a)?, scalar_if_single(emit, sb)?, per_row(emit, sy, a)?);
    let mut zero = emit.operand(id, 7)?;
    zero = per_row(emit, zero, a)?;
    Ok(vec![requantised(emit, product, [sa, sb, sy], zero)?])
}

fn decompose_qlinear_conv(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (x, w) = (emit.operand(id, 0)?, emit.operand(id, 3)?);
    let (zx, zw) = (emit.operand(id, 2)?, emit.operand(id, 5)?);
    let bias = emit.graph.input(id, 8);
    let y = integer_conv(emit, id, (x, Some(zx)), (w, Some(zw)), bias)?;
    let (sx, sw, sy) = (emit.operand(id, 1)?, emit.operand(id, 4)?, emit.operand(id, 6)?);
    let dtype = emit.dtype(sw)?;
    let (sx, sy) = (scalar_if_single(emit, sx)?, scalar_if_single(emit, sy)?);
    let sw = spread(emit, sw, dtype, y, Grain::of_axis(1))?;
    let zero = emit.operand(id, 7)?;
    Ok(vec![requantised(emit, y, [sx, sw, sy], zero)?])
}

// ---- samples --------------------------------------------------------------------------------------------------------

/// Random bytes, signed or not.
pub(super) fn random_bytes(draw: &mut Draw, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    match draw.chance(0.5) {
        true => Tensor::from_vec(shape, (0..count).map(|_| draw.int(-128, 127) as i8).collect::<Vec<i8>>()),
        false => Tensor::from_vec(shape, (0..count).map(|_| draw.int(0, 255) as u8).collect::<Vec<u8>>()),
    }
}

/// A zero point of the type of `like`.
fn zero_like(draw: &mut Draw, like: &Tensor, shape: &[usize]) -> Tensor {
    let zero = draw.ints(shape, 0, 100);
    zero.cast(like.dtype()).unwrap_or(zero)
}

/// The shapes of scales and zero points of a left factor of 2 rows and a right one of 4 columns.
fn sample_grain(draw: &mut Draw) -> (&'static [usize], &'static [usize]) {
    let shapes: [(&[usize], &[usize]); 3] = [(&[], &[]), (&[2], &[4]), (&[1], &[1])];
    *draw.pick(&shapes)
}

fn sample_matmul_integer(draw: &mut Draw) -> Sample {
    let (a, b) = (random_bytes(draw, &[2, 2, 3]), random_bytes(draw, &[3, 4]));
    let (rows, columns) = sample_grain(draw);
    let (za, zb) = (zero_like(draw, &a, rows), zero_like(draw, &b, columns));
    Sample::new(Operator::onnx("MatMulInteger", Attributes::new()), vec![a, b, za, zb])
}

fn sample_conv_integer(draw: &mut Draw) -> Sample {
    let (x, w) = (random_bytes(draw, &[1, 2, 4, 3]), random_bytes(draw, &[3, 2, 2, 2]));
    let per_channel: &[usize] = *draw.pick(&[&[][..], &[3]]);
    let (zx, zw) = (zero_like(draw, &x, &[]), zero_like(draw, &w, per_channel));
    let attrs = Attributes::new().with("pads", [1i64, 0, 0, 1]);
    Sample::new(Operator::onnx("ConvInteger", attrs), vec![x, w, zx, zw])
}

fn scale(draw: &mut Draw, shape: &[usize]) -> Tensor {
    draw.tensor(shape, 0.01, 0.1)
}

fn sample_qlinear_matmul(draw: &mut Draw) -> Sample {
    let (a, b) = (random_bytes(draw, &[2, 3]), random_bytes(draw, &[3, 4]));
    let (rows, columns) = sample_grain(draw);
    let (za, zb) = (zero_like(draw, &a, rows), zero_like(draw, &b, columns));
    let zy = zero_like(draw, &a, &[]);
    let inputs = vec![a, scale(draw, rows), za, b, scale(draw, columns), zb, scale(draw, &[]), zy];
    Sample::new(Operator::onnx("QLinearMatMul", Attributes::new()), inputs)
}

fn sample_qlinear_conv(draw: &mut Draw) -> Sample {
    let (x, w) = (random_bytes(draw, &[1, 2, 4, 3]), random_bytes(draw, &[3, 2, 2, 2]));
    let per_channel: &[usize] = *draw.pick(&[&[][..], &[3]]);
    let (zx, zw, zy) = (zero_like(draw, &x, &[]), zero_like(draw, &w, per_channel), zero_like(draw, &x, &[]));
    let mut inputs = vec![x, scale(draw, &[]), zx, w, scale(draw, per_channel), zw, scale(draw, &[]), zy];
    if draw.chance(0.5) {
        inputs.push(Tensor::from_vec([3], vec![100i32, -200, 300]));
    }
    Sample::new(Operator::onnx("QLinearConv", Attributes::new()), inputs)
}
