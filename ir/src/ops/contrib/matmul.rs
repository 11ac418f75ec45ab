//! Products of `com.microsoft`: FusedMatMul, MatMulNBits, DynamicQuantizeMatMul and MatMulIntegerToFloat.
//!
//! ```text
//! FusedMatMul(a, b)                            y = alpha · a' · b',  a' and b' transposed as the attributes say
//! MatMulNBits(a, w, scales, zeros, bias)       y = a · Wᵀ + bias,  W[n, k] = (w[n, k] − zeros[n, k / B]) · scales[n, k / B]
//! DynamicQuantizeMatMul(a, b, sb, zb, bias)    q, s, z = DynamicQuantizeLinear(a)     y = (q − z) · (b − zb) · (s sb) + bias
//! MatMulIntegerToFloat(a, b, sa, sb, za, zb, bias)                                     y = (a − za) · (b − zb) · (sa sb) + bias
//! ```
//!
//! Shapes: a `[…, M, K]`, b `[…, K, N]`, bias `[N]`, y `[…, M, N]`. MatMulNBits stores W `[N, K]` row by row in blocks of B
//! (`block_size`) numbers of 2, 4 or 8 bits, the first in the low bits: w is `uint8[N, ⌈K/B⌉, B·bits/8]`; scales are `[N, ⌈K/B⌉]`; zeros are
//! packed likewise, `uint8[N, ⌈⌈K/B⌉·bits/8⌉]`, or of the type of a, or the middle of the range. Gradients flow to a, scales and bias.

use super::{CONTRIB, operator, refuse};
use crate::error::Result;
use crate::graph::{NodeId, Value};
use crate::ops::integer_products::{product_shape, random_bytes, scalar_if_single};
use crate::ops::matmul::result_dims;
use crate::ops::real::count;
use crate::ops::{CostCx, Emit, InferCx, OpDef, Sample};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "FusedMatMul",
        inputs: (2, 2),
        infer: infer_fused,
        decompose: Some(decompose_fused),
        flops: product_flops,
        sample: Some(sample_fused),
        ..CONTRIB
    },
    OpDef {
        name: "MatMulNBits",
        inputs: (3, 6),
        infer: infer_packed,
        decompose: Some(decompose_packed),
        flops: product_flops,
        sample: Some(sample_packed),
        ..CONTRIB
    },
    OpDef {
        name: "DynamicQuantizeMatMul",
        inputs: (3, 5),
        infer: |cx| {
            let (dtype, shape) = (cx.dtype(0)?, float_product_shape(cx)?);
            cx.set_tensor(0, dtype, shape);
            Ok(())
        },
        decompose: Some(decompose_dynamic),
        // The grid moves with the data, so what is rounded is not differentiable; `autodiff` passes gradients straight through.
        grad: crate::ops::Gradient::Missing,
        flops: product_flops,
        sample: Some(sample_dynamic),
        ..CONTRIB
    },
    OpDef {
        name: "MatMulIntegerToFloat",
        inputs: (4, 7),
        infer: |cx| {
            let (dtype, shape) = (cx.dtype(2)?, product_shape(cx, 0, 1)?);
            cx.set_tensor(0, dtype, shape);
            Ok(())
        },
        decompose: Some(decompose_to_float),
        flops: product_flops,
        sample: Some(sample_to_float),
        ..CONTRIB
    },
];

/// Two per element of the result and of the inner axis, which is the last one of a.
fn product_flops(cx: &CostCx) -> u64 {
    let inner = cx.inputs.first().and_then(|a| a.last()).map_or(0, |&k| k as u64);
    2 * inner * cx.output_len(0)
}

fn float_product_shape(cx: &InferCx) -> Result<Option<Vec<Dim>>> {
    match (cx.shape(0), cx.shape(1)) {
        (Some(a), Some(b)) => result_dims(a, b).map(Some),
        _ => Ok(None),
    }
}

// ---- FusedMatMul ----------------------------------------------------------------------------------------------------

/// In which order the axes of an operand stand: `transBatch` moves the first behind the other batch axes, then `trans` swaps
/// the last two. Vectors stay as they are.
fn order(attrs: &Attributes, side: &str, rank: usize) -> Result<Vec<usize>> {
    let (batch, last) = (attrs.int(&format!("transBatch{side}"), 0)?, attrs.int(&format!("trans{side}"), 0)?);
    let mut axes: Vec<usize> = (0..rank).collect();
    if batch != 0 && rank > 2 {
        axes[..rank - 1].rotate_left(1);
    }
    if last != 0 && rank > 1 {
        axes.swap(rank - 2, rank - 1);
    }
    Ok(axes)
}

fn infer_fused(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype == cx.dtype(1)?, "it multiplies {dtype} by {}", cx.dtype(1)?);
    let side = |slot: usize, name: &str| -> Result<Option<Vec<Dim>>> {
        let Some(shape) = cx.shape(slot) else { return Ok(None) };
        Ok(Some(order(&cx.op.attrs, name, shape.len())?.into_iter().map(|axis| shape[axis].clone()).collect()))
    };
    let shape = match (side(0, "A")?, side(1, "B")?) {
        (Some(a), Some(b)) => Some(result_dims(&a, &b)?),
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn decompose_fused(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let attrs = emit.attrs(id);
    let mut operands = [emit.operand(id, 0)?, emit.operand(id, 1)?];
    for (operand, side) in operands.iter_mut().zip(["A", "B"]) {
        let axes = order(&attrs, side, emit.rank(*operand)?)?;
        if !axes.is_sorted() {
            *operand = emit.transpose(*operand, &axes)?;
        }
    }
    let product = emit.matmul(operands[0], operands[1])?;
    let alpha = f64::from(attrs.float("alpha", 1.0)?);
    Ok(vec![if alpha == 1.0 { product } else { emit.mul_scalar(product, alpha)? }])
}

// ---- MatMulNBits ----------------------------------------------------------------------------------------------------

/// The attributes of packed weights.
struct Packing {
    rows: usize,
    columns: usize,
    block: usize,
    bits: usize,
}

impl Packing {
    fn read(attrs: &Attributes) -> Result<Packing> {
        refuse(attrs, &["weight_prepacked"])?;
        let (rows, columns) = (count(attrs, "N", 0)?, count(attrs, "K", 0)?);
        let (block, bits) = (count(attrs, "block_size", 0)?, count(attrs, "bits", 4)?);
        ensure!([2, 4, 8].contains(&bits), "attribute `bits` is {bits}, expected 2, 4 or 8");
        ensure!(block >= 8 && block.is_power_of_two(), "attribute `block_size` is {block}, expected a power of two");
        ensure!(rows > 0 && columns > 0, "N is {rows} and K is {columns}, expected positive numbers");
        Ok(Packing { rows, columns, block, bits })
    }
    fn blocks(&self) -> usize {
        self.columns.div_ceil(self.block)
    }
}

fn infer_packed(cx: &mut InferCx) -> Result<()> {
    let packing = Packing::read(&cx.op.attrs)?;
    ensure!(cx.fact(4).is_none(), "input 4 (g_idx) is not supported");
    let (dtype, packed) = (cx.dtype(0)?, cx.dtype(1)?);
    ensure!(packed == DType::U8, "the packed weight is {packed}, expected uint8");
    let shape = match cx.shape(0) {
        Some([lead @ .., last]) => {
            let fits = last.known().is_none_or(|k| k == packing.columns as i64);
            ensure!(fits, "the data has rows of {last}, the weight of {}", packing.columns);
            Some([lead, &[Dim::Known(packing.rows as i64)]].concat())
        }
        Some([]) => bail!("its data is a scalar"),
        None => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn decompose_packed(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let packing = Packing::read(&emit.attrs(id))?;
    let (a, dtype) = (emit.operand(id, 0)?, emit.dtype(emit.operand(id, 0)?)?);
    let (n, blocks, block) = (packing.rows as i64, packing.blocks() as i64, packing.block as i64);
    let packed = emit.operand(id, 1)?;
    let codes = unpacked(emit, packed, packing.bits)?;
    let codes = emit.reshape(codes, &[n, blocks, block])?;
    let codes = emit.cast(codes, dtype)?;
    let zeros = match emit.graph.input(id, 3) {
        Some(zeros) if emit.dtype(zeros)? == DType::U8 => {
            // Every row of zero points begins a byte.
            let bytes = emit.reshape(zeros, &[n, -1])?;
            let codes = unpacked(emit, bytes, packing.bits)?;
            let codes = emit.reshape(codes, &[n, -1])?;
            let codes = leading(emit, codes, packing.blocks())?;
            emit.cast(codes, dtype)?
        }
        Some(zeros) => emit.cast(zeros, dtype)?,
        None => emit.scalar(2f64.powi(packing.bits as i32 - 1), a)?,
    };
    let zeros = if emit.rank(zeros)? == 0 { zeros } else { emit.reshape(zeros, &[n, blocks, 1])? };
    let centred = emit.sub(codes, zeros)?;
    let scales = emit.operand(id, 2)?;
    let scales = emit.reshape(scales, &[n, blocks, 1])?;
    let weight = emit.mul(centred, scales)?;
    let weight = emit.reshape(weight, &[n, blocks * block])?;
    let weight = leading(emit, weight, packing.columns)?;
    let weight = emit.swap_last(weight)?;
    let y = emit.matmul(a, weight)?;
    biased(emit, id, y, 5)
}

/// Numbers of a few bits out of bytes, the lowest first, along a new last axis.
fn unpacked(emit: &mut Emit, bytes: Value, bits: usize) -> Result<Value> {
    if bits == 8 {
        return Ok(bytes);
    }
    let last = emit.rank(bytes)?;
    let bytes = emit.unsqueeze(bytes, &[last])?;
    let shifts: Vec<u8> = (0..8 / bits).map(|i| (i * bits) as u8).collect();
    let shifts = emit.constant(Tensor::from_vec([shifts.len()], shifts));
    let mask = emit.constant(Tensor::scalar(((1u32 << bits) - 1) as u8));
    let moved = emit.op("BitShift", &[bytes, shifts], Attributes::new().with("direction", "RIGHT"))?;
    emit.op("BitwiseAnd", &[moved, mask], Attributes::new())
}

/// The first entries of every row of a matrix.
fn leading(emit: &mut Emit, x: Value, length: usize) -> Result<Value> {
    let (start, end, axis) = (emit.ints(&[0]), emit.ints(&[length as i64]), emit.ints(&[1]));
    emit.op("Slice", &[x, start, end, axis], Attributes::new())
}

/// The result with the bias in this slot, if there is one.
fn biased(emit: &mut Emit, id: NodeId, y: Value, slot: usize) -> Result<Vec<Value>> {
    match emit.graph.input(id, slot) {
        Some(bias) => Ok(vec![emit.add(y, bias)?]),
        None => Ok(vec![y]),
    }
}

// ---- products of bytes ----------------------------------------------------------------------------------------------

fn decompose_dynamic(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (a, b, scale_b) = (emit.operand(id, 0)?, emit.operand(id, 1)?, emit.operand(id, 2)?);
    let quantize = crate::Operator::onnx("DynamicQuantizeLinear", Attributes::new());
    let quantised = emit.node(quantize, &[Some(a)], 3)?;
    let zero_b = emit.graph.input(id, 3);
    let product = product_of_bytes(emit, [Some(quantised[0]), Some(b), Some(quantised[2]), zero_b])?;
    let y = rescaled(emit, product, quantised[1], scale_b)?;
    biased(emit, id, y, 4)
}

fn decompose_to_float(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (a, b) = (emit.operand(id, 0)?, emit.operand(id, 1)?);
    let (scale_a, scale_b) = (emit.operand(id, 2)?, emit.operand(id, 3)?);
    let (zero_a, zero_b) = (emit.graph.input(id, 4), emit.graph.input(id, 5));
    let product = product_of_bytes(emit, [Some(a), Some(b), zero_a, zero_b])?;
    let y = rescaled(emit, product, scale_a, scale_b)?;
    biased(emit, id, y, 6)
}

/// `MatMulInteger (a, b, za, zb)`: passes know it.
fn product_of_bytes(emit: &mut Emit, inputs: [Option<Value>; 4]) -> Result<Value> {
    Ok(emit.node(crate::Operator::onnx("MatMulInteger", Attributes::new()), &inputs, 1)?[0])
}

/// `product · (sa sb)`
fn rescaled(emit: &mut Emit, product: Value, sa: Value, sb: Value) -> Result<Value> {
    let (sa, sb) = (scalar_if_single(emit, sa)?, scalar_if_single(emit, sb)?);
    let scale = emit.mul(sa, sb)?;
    let dtype = emit.dtype(scale)?;
    let product = emit.cast(product, dtype)?;
    emit.mul(product, scale)
}

// ---- samples --------------------------------------------------------------------------------------------------------

fn sample_fused(draw: &mut Draw) -> Sample {
    let mut attrs = Attributes::new().with("alpha", draw.float(0.5, 2.0) as f32);
    let (mut a, mut b) = (vec![2, 3, 4], vec![2, 4, 5]);
    for (name, shape) in [("A", &mut a), ("B", &mut b)] {
        if draw.chance(0.5) {
            attrs.set(&format!("trans{name}"), 1i64);
            shape.swap(1, 2);
        }
        if draw.chance(0.3) {
            attrs.set(&format!("transBatch{name}"), 1i64);
            shape.swap(0, 1);
        }
    }
    Sample::new(operator("FusedMatMul", attrs), vec![draw.tensor(&a, -1.0, 1.0), draw.tensor(&b, -1.0, 1.0)])
}

fn sample_packed(draw: &mut Draw) -> Sample {
    let (n, k, block, bits) = (3usize, *draw.pick(&[32usize, 40]), 16usize, *draw.pick(&[4usize, 8]));
    let blocks = k.div_ceil(block);
    let attrs = Attributes::new().with("N", n as i64).with("K", k as i64).with("block_size", block as i64);
    let attrs = attrs.with("bits", bits as i64);
    let mut bytes = |shape: &[usize]| {
        let count = shape.iter().product();
        Tensor::from_vec(shape, (0..count).map(|_| draw.int(0, 255) as u8).collect::<Vec<u8>>())
    };
    let packed = bytes(&[n, blocks, block * bits / 8]);
    let zeros = bytes(&[n, (blocks * bits).div_ceil(8)]);
    let mut inputs = vec![draw.tensor(&[2, k], -1.0, 1.0), packed, draw.tensor(&[n, blocks], 0.05, 0.2)];
    if draw.chance(0.5) {
        inputs.push(zeros);
    }
    let mut sample = Sample::new(operator("MatMulNBits", attrs), inputs);
    if draw.chance(0.5) {
        sample.inputs.resize(5, None);
        sample.inputs.push(Some(draw.tensor(&[n], -1.0, 1.0)));
        sample.check.resize(5, false);
        sample.check.push(true);
    }
    sample
}

fn sample_dynamic(draw: &mut Draw) -> Sample {
    let b = random_bytes(draw, &[3, 4]);
    let per_column: &[usize] = *draw.pick(&[&[][..], &[1], &[4]]);
    let zero = draw.ints(per_column, 0, 100).cast(b.dtype());
    let mut inputs = vec![draw.tensor(&[2, 2, 3], -1.0, 1.0), b, draw.tensor(per_column, 0.01, 0.1)];
    inputs.extend(zero.ok().filter(|_| draw.chance(0.7)));
    Sample::new(operator("DynamicQuantizeMatMul", Attributes::new()), inputs)
}

fn sample_to_float(draw: &mut Draw) -> Sample {
    let (a, mut b) = (random_bytes(draw, &[2, 2, 3]), random_bytes(draw, &[3, 4]));
    if a.dtype() == DType::I8 {
        // ONNX Runtime has no product of signed by unsigned bytes.
        b = b.cast(DType::I8).unwrap_or(b);
    }
    let per_column: &[usize] = *draw.pick(&[&[][..], &[4]]);
    let zeros = [draw.ints(&[], 0, 100).cast(a.dtype()), draw.ints(per_column, 0, 100).cast(b.dtype())];
    let mut inputs = vec![a, b, draw.tensor(&[], 0.01, 0.1), draw.tensor(per_column, 0.01, 0.1)];
    if draw.chance(0.7) {
        inputs.extend(zeros.into_iter().flatten());
        inputs.push(draw.tensor(&[4], -1.0, 1.0));
    }
    Sample::new(operator("MatMulIntegerToFloat", Attributes::new()), inputs)
}
