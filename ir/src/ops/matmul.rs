//! `MatMul`: `Y = A · B` over the last two axes, the leading ones broadcast; a rank-1 operand is a row (left) or a
//! column (right) vector whose axis of length 1 is dropped from the result.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__MatMul.html>. Shapes: `[…, M, K] · […, K, N] → […, M, N]`.

use super::arithmetic::{Arithmetic, computed_in};
use super::{CostCx, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, broadcast};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, dispatch, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "MatMul",
    inputs: (2, 2),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    flops,
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype == cx.dtype(1)?, "it multiplies {dtype} by {}", cx.dtype(1)?);
    let shape = match (cx.shape(0), cx.shape(1)) {
        (Some(a), Some(b)) => Some(result_dims(a, b)?),
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

/// The shape of the product of operands of these shapes.
pub(super) fn result_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    ensure!(!a.is_empty() && !b.is_empty(), "an operand of rank 0");
    let (ka, kb) = (&a[a.len() - 1], &b[b.len().saturating_sub(2)]);
    if let (Some(x), Some(y)) = (ka.known(), kb.known()) {
        ensure!(x == y, "the inner dimensions {x} and {y} differ");
    }
    let lead = |s: &[Dim]| s[..s.len().saturating_sub(2)].to_vec();
    let mut out = broadcast::dims(&[&lead(a), &lead(b)])?;
    if a.len() > 1 {
        out.push(a[a.len() - 2].clone());
    }
    if b.len() > 1 {
        out.push(b[b.len() - 1].clone());
    }
    Ok(out)
}

fn eval(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [Some(a), Some(b)] = inputs else { bail!("MatMul needs two inputs") };
    Ok(vec![multiply(a, b)?])
}

/// The matrix product of two tensors.
pub(super) fn multiply(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    ensure!(a.dtype() == b.dtype(), "it multiplies {} by {}", a.dtype(), b.dtype());
    let wide = computed_in(a.dtype());
    let product = dispatch!(wide, wide T => product::<T>(&a.cast(wide)?, &b.cast(wide)?)?,
        else bail!("no MatMul of {}", a.dtype()));
    product.cast(a.dtype())
}

/// The plain triple loop.
fn product<T: Arithmetic>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dims = |t: &Tensor| t.shape().iter().map(|&d| Dim::Known(d as i64)).collect::<Vec<_>>();
    let out_shape: Vec<usize> =
        result_dims(&dims(a), &dims(b))?.iter().filter_map(|d| d.known().map(|d| d as usize)).collect();
    let (sa, sb) = (matrix_shape(a.shape(), true), matrix_shape(b.shape(), false));
    let (m, k, n) = (sa[sa.len() - 2], sa[sa.len() - 1], sb[sb.len() - 1]);
    let (la, lb) = (&sa[..sa.len() - 2], &sb[..sb.len() - 2]);
    let lead = broadcast::shapes(&[la, lb])?;
    let (x, y) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    let mut out = vec![T::default(); lead.iter().product::<usize>() * m * n];
    let mut place = 0;
    let (stride_a, stride_b) = (broadcast::broadcast_strides(la, &lead), broadcast::broadcast_strides(lb, &lead));
    broadcast::for_each_offset(&lead, [&stride_a, &stride_b], |[i, j]| {
        let (x, y) = (&x[i * m * k..], &y[j * k * n..]);
        for row in 0..m {
            let target = &mut out[place + row * n..place + (row + 1) * n];
            for (p, &scale) in x[row * k..(row + 1) * k].iter().enumerate() {
                for (o, &v) in target.iter_mut().zip(&y[p * n..(p + 1) * n]) {
                    *o = o.plus(scale.times(v));
                }
            }
        }
        place += m * n;
    });
    Ok(Tensor::from_vec(out_shape, out))
}

/// The shape with the axis that a vector operand lacks.
fn matrix_shape(shape: &[usize], left: bool) -> Vec<usize> {
    match (shape, left) {
        ([k], true) => vec![1, *k],
        ([k], false) => vec![*k, 1],
        _ => shape.to_vec(),
    }
}

/// `dA = dY · Bᵀ`, `dB = Aᵀ · dY`, each summed over the leading axes along which it was broadcast.
fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (a, b, dy) = (cx.input(0)?, cx.input(1)?, cx.dy()?);
    let (rank_a, rank_b) = (cx.emit.rank(a)?, cx.emit.rank(b)?);
    // Vector operands get the axis they lack, and so does dy.
    let full_a = if rank_a == 1 { cx.emit.unsqueeze(a, &[0])? } else { a };
    let full_b = if rank_b == 1 { cx.emit.unsqueeze(b, &[1])? } else { b };
    let mut dy = dy;
    if rank_b == 1 {
        let end = cx.emit.rank(dy)?;
        dy = cx.emit.unsqueeze(dy, &[end])?;
    }
    if rank_a == 1 {
        let before_last = cx.emit.rank(dy)? - 1;
        dy = cx.emit.unsqueeze(dy, &[before_last])?;
    }
    let mut grads = vec![None, None];
    if cx.want(0) {
        let bt = cx.emit.swap_last(full_b)?;
        let da = cx.emit.matmul(dy, bt)?;
        let da = cx.emit.sum_to(da, full_a)?;
        grads[0] = Some(cx.emit.reshape_like(da, a)?);
    }
    if cx.want(1) {
        let db = if cx.emit.rank(full_b)? == 2 && cx.emit.rank(full_a)? > 2 {
            flat_weight_grad(cx, full_a, dy)?
        } else {
            let at = cx.emit.swap_last(full_a)?;
            cx.emit.matmul(at, dy)?
        };
        let db = cx.emit.sum_to(db, full_b)?;
        grads[1] = Some(cx.emit.reshape_like(db, b)?);
    }
    Ok(grads)
}

/// A weight shared by all leading axes: one product over all rows instead of a batch of products and a sum.
fn flat_weight_grad(cx: &mut GradCx, a: Value, dy: Value) -> Result<Value> {
    let (k, n) = (last_dim(cx, a)?, last_dim(cx, dy)?);
    // A reshape cannot divide what is empty.
    let (Some(k @ 1..), Some(n @ 1..)) = (k, n) else {
        let at = cx.emit.swap_last(a)?;
        return cx.emit.matmul(at, dy);
    };
    let rows = cx.emit.reshape(a, &[-1, k])?;
    let cols = cx.emit.reshape(dy, &[-1, n])?;
    let at = cx.emit.swap_last(rows)?;
    cx.emit.matmul(at, cols)
}

fn last_dim(cx: &GradCx, value: Value) -> Result<Option<i64>> {
    Ok(cx.emit.shape(value)?.last().and_then(Dim::known))
}

fn flops(cx: &CostCx) -> u64 {
    let k = cx.inputs[0].last().copied().unwrap_or(0) as u64;
    2 * k * cx.output_len(0)
}

fn sample(draw: &mut Draw) -> Sample {
    let mut dim = || draw.int(1, 4) as usize;
    let (b, m, k, n) = (dim(), dim(), dim(), dim());
    let shapes: [(Vec<usize>, Vec<usize>); 6] = [
        (vec![m, k], vec![k, n]),
        (vec![b, m, k], vec![k, n]),
        (vec![b, m, k], vec![b, k, n]),
        (vec![2, 1, m, k], vec![b, k, n]),
        (vec![k], vec![b, k, n]),
        (vec![b, m, k], vec![k]),
    ];
    let (a, b) = draw.pick(&shapes).clone();
    let inputs = vec![draw.tensor(&a, -1.0, 1.0), draw.tensor(&b, -1.0, 1.0)];
    Sample::new(Operator::onnx("MatMul", Attributes::new()), inputs)
}
