//! `Gemm`: `Y = α · A' · B' + β · C`, where A' is A or its transpose, B' likewise, and C broadcasts to the product.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Gemm.html>. Shapes: `[M, K] · [K, N] + C → [M, N]`.

use super::elementwise::{map_number, one_type, zip_number};
use super::{CostCx, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, broadcast, index, matmul};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Gemm",
    inputs: (2, 3),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    flops,
    upgrades: &[(7, drop_broadcast)],
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// The attributes.
struct Form {
    alpha: f64,
    beta: f64,
    trans_a: bool,
    trans_b: bool,
}

impl Form {
    fn of(op: &Operator) -> Result<Form> {
        Ok(Form {
            alpha: f64::from(op.attrs.float("alpha", 1.0)?),
            beta: f64::from(op.attrs.float("beta", 1.0)?),
            trans_a: op.attrs.int("transA", 0)? != 0,
            trans_b: op.attrs.int("transB", 0)? != 0,
        })
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let form = Form::of(cx.op)?;
    let has_c = cx.fact(2).is_some();
    let dtype = one_type(cx, 0..if has_c { 3 } else { 2 })?;
    let rows = side(cx.shape(0), form.trans_a)?;
    let columns = side(cx.shape(1), form.trans_b)?;
    if let (Some(ka), Some(kb)) = (rows[1].known(), columns[0].known()) {
        ensure!(ka == kb, "the inner dimensions {ka} and {kb} differ");
    }
    let out = vec![rows[0].clone(), columns[1].clone()];
    if let Some(c) = cx.shape(2) {
        let common = broadcast::dims(&[c, &out])?;
        let stretched = common.iter().zip(&out).any(|(a, b)| a.known().is_some() && b.known().is_some() && a != b);
        ensure!(common.len() == 2 && !stretched, "C of rank {} does not broadcast to the product", c.len());
    }
    cx.set_tensor(0, dtype, Some(out));
    Ok(())
}

/// The two axes of a matrix, swapped if it is transposed; unknown if its rank is.
fn side(shape: Option<&[Dim]>, transposed: bool) -> Result<[Dim; 2]> {
    match shape {
        Some([rows, columns]) if transposed => Ok([columns.clone(), rows.clone()]),
        Some([rows, columns]) => Ok([rows.clone(), columns.clone()]),
        Some(other) => bail!("an operand has rank {}, expected a matrix", other.len()),
        None => Ok([Dim::Unknown, Dim::Unknown]),
    }
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (Some(Some(a)), Some(Some(b))) = (inputs.first(), inputs.get(1)) else { bail!("Gemm needs two inputs") };
    let form = Form::of(cx.op)?;
    let a = if form.trans_a { transposed(a)? } else { (*a).clone() };
    let b = if form.trans_b { transposed(b)? } else { (*b).clone() };
    let product = matmul::multiply(&a, &b)?;
    let scaled = scale(&product, form.alpha)?;
    let Some(c) = inputs.get(2).copied().flatten() else { return Ok(vec![scaled]) };
    let c = scale(c, form.beta)?;
    let out = zip_number(&scaled, &c, |x, y| x + y, i128::wrapping_add)?;
    ensure!(out.shape() == scaled.shape(), "C of shape {:?} does not broadcast to {:?}", c.shape(), scaled.shape());
    Ok(vec![out])
}

fn scale(x: &Tensor, by: f64) -> Result<Tensor> {
    if by == 1.0 {
        return Ok(x.clone());
    }
    map_number(x, |x| x * by, |x| (x as f64 * by) as i128)
}

fn transposed(x: &Tensor) -> Result<Tensor> {
    let &[rows, columns] = x.shape() else { bail!("an operand has shape {:?}, expected a matrix", x.shape()) };
    let places = index::outer_sum(&[index::steps(columns, 1), index::steps(rows, columns)]);
    index::pick(&[x], vec![columns, rows], &places)
}

/// `dA' = α dY · B'ᵀ`, `dB' = α A'ᵀ · dY`, `dC = β dY` summed over the axes along which it was broadcast. Transposed
/// operands swap the factors instead of the result.
fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let form = Form::of(&cx.op())?;
    let (a, b, dy) = (cx.input(0)?, cx.input(1)?, cx.dy()?);
    let mut grads = vec![None; 3];
    if cx.want(0) {
        grads[0] = Some(match form.trans_a {
            false => product(cx, dy, b, false, !form.trans_b, form.alpha)?,
            true => product(cx, b, dy, form.trans_b, true, form.alpha)?,
        });
    }
    if cx.want(1) {
        grads[1] = Some(match form.trans_b {
            false => product(cx, a, dy, !form.trans_a, false, form.alpha)?,
            true => product(cx, dy, a, true, form.trans_a, form.alpha)?,
        });
    }
    if let (true, Some(c)) = (cx.want(2), cx.optional_input(2)) {
        let scaled = if form.beta == 1.0 { dy } else { cx.emit.mul_scalar(dy, form.beta)? };
        grads[2] = Some(cx.emit.sum_to(scaled, c)?);
    }
    Ok(grads)
}

fn product(cx: &mut GradCx, a: Value, b: Value, trans_a: bool, trans_b: bool, alpha: f64) -> Result<Value> {
    let mut attrs = Attributes::new();
    for (name, on) in [("transA", trans_a), ("transB", trans_b)] {
        if on {
            attrs.set(name, 1i64);
        }
    }
    if alpha != 1.0 {
        attrs.set("alpha", alpha as f32);
    }
    cx.emit.op("Gemm", &[a, b], attrs)
}

/// Twice the product's multiplications, plus the sum with C.
fn flops(cx: &CostCx) -> u64 {
    let inner = cx.inputs.first().and_then(|a| {
        let axis = if cx.op.attrs.int("transA", 0).unwrap_or(0) != 0 { 0 } else { 1 };
        a.get(axis).copied()
    });
    let bias = if cx.inputs.len() > 2 { cx.output_len(0) } else { 0 };
    2 * inner.unwrap_or(0) as u64 * cx.output_len(0) + bias
}

/// Before opset 7 the attribute `broadcast` allowed C to stretch, as it may today.
fn drop_broadcast(graph: &mut Graph, id: NodeId) -> Result<()> {
    if let Some(op) = graph.node_mut(id).op_mut() {
        op.attrs.remove("broadcast");
    }
    Ok(())
}

fn sample(draw: &mut Draw) -> Sample {
    let (m, k, n) = (draw.int(1, 4) as usize, draw.int(1, 4) as usize, draw.int(1, 4) as usize);
    let mut attrs = Attributes::new();
    let (trans_a, trans_b) = (draw.chance(0.5), draw.chance(0.5));
    for (name, on) in [("transA", trans_a), ("transB", trans_b)] {
        if on {
            attrs.set(name, 1i64);
        }
    }
    for name in ["alpha", "beta"] {
        if draw.chance(0.5) {
            attrs.set(name, draw.float(0.5, 2.0) as f32);
        }
    }
    let a = if trans_a { [k, m] } else { [m, k] };
    let b = if trans_b { [n, k] } else { [k, n] };
    let mut inputs = vec![draw.tensor(&a, -1.0, 1.0), draw.tensor(&b, -1.0, 1.0)];
    let shapes: [&[usize]; 5] = [&[m, n], &[n], &[m, 1], &[], &[1, 1]];
    if draw.chance(0.8) {
        let c = *draw.pick(&shapes);
        inputs.push(draw.tensor(c, -1.0, 1.0));
    }
    Sample::new(Operator::onnx("Gemm", attrs), inputs)
}
