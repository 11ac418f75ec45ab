//! `Det`: the determinants of square matrices.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Det.html>. Shapes: `[…, M, M] → […]`. Evaluated by elimination with partial
//! pivoting. The gradient is that of the algorithm of Faddeev and Le Verrier, in double precision: products and traces only,
//! so singular matrices have one too:
//!
//! ```text
//! M₁ = 1,  c_k = −tr(A M_k) / k,  M_{k+1} = A M_k + c_k,  det A = (−1)^M c_M
//! ```

use super::emit::Length;
use super::real::{reals, required, rounded};
use super::{Emit, EvalCx, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::{Attributes, DType, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Det",
    infer,
    eval: Some(eval),
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    flops: |cx| {
        let order = cx.inputs.first().and_then(|s| s.last()).map_or(0, |&m| m as u64);
        cx.input_len(0) * order * 2 / 3
    },
    sample: Some(|draw| {
        let order = draw.int(1, 4) as usize;
        let shapes: [&[usize]; 3] = [&[], &[3], &[2, 1]];
        let shape = [*draw.pick(&shapes), &[order, order]].concat();
        let x = if draw.chance(0.3) {
            Tensor::from_vec(shape.clone(), vec![0.5; shape.iter().product()])
        } else {
            draw.tensor(&shape, -1.0, 1.0)
        };
        Sample::new(Operator::onnx("Det", Attributes::new()), vec![x])
    }),
    ..OpDef::DEFAULT
}];

/// The largest matrices that are written out in products; beyond, these cancel.
const LARGEST: i64 = 32;

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype.is_float(), "its matrices are {dtype}, expected a floating-point type");
    let shape = match cx.shape(0) {
        Some([batch @ .., rows, cols]) => {
            let square = rows.known().zip(cols.known()).is_none_or(|(r, c)| r == c);
            ensure!(square, "its matrices are {rows} × {cols}, expected square ones");
            Some(batch.to_vec())
        }
        Some(other) => bail!("its input has rank {}, expected matrices", other.len()),
        None => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn eval(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = required(inputs, 0)?;
    let [batch @ .., rows, cols] = x.shape() else { bail!("its input has rank {}, expected matrices", x.rank()) };
    ensure!(rows == cols, "its matrices are {rows} × {cols}, expected square ones");
    let values = reals(x)?;
    let count = super::index::count(batch);
    super::index::room(batch)?;
    let found = (0..count).map(|i| determinant(values[i * rows * rows..(i + 1) * rows * rows].to_vec(), *rows));
    Ok(vec![rounded(x.dtype(), batch, found.collect())?])
}

/// By elimination with partial pivoting, in place.
fn determinant(mut a: Vec<f64>, n: usize) -> f64 {
    let mut product = 1.0;
    for k in 0..n {
        let largest = (k..n).reduce(|best, i| if a[i * n + k].abs() > a[best * n + k].abs() { i } else { best });
        let pivot = largest.unwrap_or(k);
        if a[pivot * n + k] == 0.0 {
            return 0.0;
        }
        if pivot != k {
            (0..n).for_each(|j| a.swap(pivot * n + j, k * n + j));
            product = -product;
        }
        product *= a[k * n + k];
        for i in k + 1..n {
            let factor = a[i * n + k] / a[k * n + k];
            (k..n).for_each(|j| a[i * n + j] -= factor * a[k * n + j]);
        }
    }
    product
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let Some(x) = emit.graph.input(id, 0) else { bail!("input 0 is missing") };
    let (dtype, shape) = (emit.dtype(x)?, emit.shape(x)?);
    let [.., rows, cols] = &shape[..] else { bail!("its input has rank {}, expected matrices", shape.len()) };
    let Some(order) = rows.known().or(cols.known()) else {
        bail!("the size of its matrices is known only when it runs")
    };
    if order == 0 {
        let batch: Vec<Length> = (0..shape.len() - 2).map(|axis| Length::Axis(x, axis)).collect();
        let shape = emit.shape_tensor(&batch)?;
        let one = Tensor::from_vec([1], vec![1.0f64]).cast(dtype)?;
        return Ok(vec![emit.op("ConstantOfShape", &[shape], Attributes::new().with("value", one))?]);
    }
    ensure!((1..=LARGEST).contains(&order), "matrices of {order} rows are not written out, only up to {LARGEST}");
    let (order, last_two) = (order as usize, [shape.len() - 2, shape.len() - 1]);
    let a = emit.cast(x, DType::F64)?;
    let identity = (0..order * order).map(|i| if i % (order + 1) == 0 { 1.0 } else { 0.0 });
    let identity = emit.constant(Tensor::from_vec([order, order], identity.collect::<Vec<f64>>()));
    let mut product = a;
    for k in 1..order {
        let diagonal = emit.mul(product, identity)?;
        let trace = emit.reduce_sum(diagonal, &last_two, true)?;
        let c = emit.mul_scalar(trace, -1.0 / k as f64)?;
        let shift = emit.mul(identity, c)?;
        let next = emit.add(product, shift)?;
        product = emit.matmul(a, next)?;
    }
    let diagonal = emit.mul(product, identity)?;
    let trace = emit.reduce_sum(diagonal, &last_two, false)?;
    let sign = if order % 2 == 0 { -1.0 } else { 1.0 };
    let det = emit.mul_scalar(trace, sign / order as f64)?;
    Ok(vec![emit.cast(det, dtype)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_exchanged() {
        assert_eq!(determinant(vec![0.0, 2.0, 3.0, 0.0], 2), -6.0);
        assert_eq!(determinant(vec![1.0, 2.0, 2.0, 4.0], 2), 0.0);
        assert_eq!(determinant(Vec::new(), 0), 1.0);
    }
}
