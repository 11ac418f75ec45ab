//! `GatherElements`: `Y[i, j] = X[indices[i, j], j]` (for axis 0 of two). `GatherND`: entries or slices of `X` by tuples
//! of indices, `Y[b, t, …] = X[b, indices[b, t], …]` with `batch_dims` leading axes in common.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__GatherND.html>. Gradients add `dy` at the same places:
//! `ScatterElements` and `ScatterND`, or with batch axes `ai.sartor::GatherNDGrad(dy, indices, shape)`.

use super::gather::check_indices;
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, broadcast, index, normal_axis};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, SARTOR_DOMAIN, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "GatherElements",
        inputs: (2, 2),
        infer: infer_elements,
        eval: Some(eval_elements),
        grad: Gradient::Emit(grad_elements),
        sample: Some(sample_elements),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "GatherND",
        inputs: (2, 2),
        infer: infer_nd,
        eval: Some(eval_nd),
        grad: Gradient::Emit(grad_nd),
        sample: Some(sample_nd),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: SARTOR_DOMAIN,
        name: "GatherNDGrad",
        inputs: (3, 3),
        infer: |cx| {
            let (dtype, shape) = (cx.dtype(0)?, index::elements(cx, 2));
            cx.set_tensor(0, dtype, shape);
            Ok(())
        },
        eval: Some(eval_nd_grad),
        decompose: Some(super::written_out::gather_nd_grad),
        grad: Gradient::Emit(grad_of_grad),
        flops: |cx| cx.input_len(0),
        sample: Some(sample_nd_grad),
        ..OpDef::DEFAULT
    },
];

fn infer_elements(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    check_indices(cx.dtype(1)?)?;
    let rank = cx.shape(0).map(<[_]>::len);
    if let (Some(rank), Some(indices)) = (rank, cx.shape(1)) {
        normal_axis(cx.op.attrs.int("axis", 0)?, rank)?;
        ensure!(indices.len() == rank, "its indices have rank {}, the data {rank}", indices.len());
    }
    let shape = cx.shape(1).map(<[_]>::to_vec).or_else(|| rank.map(|r| vec![Dim::Unknown; r]));
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

/// Where the element of the data stands that each index of `GatherElements` and `ScatterElements` names.
pub fn element_places(data: &[usize], indices: &Tensor, axis: usize) -> Result<Vec<usize>> {
    let shape = indices.shape();
    let fits = shape.len() == data.len() && (0..data.len()).all(|i| i == axis || shape[i] <= data[i]);
    ensure!(fits, "indices of shape {shape:?} do not fit data of shape {data:?}");
    let mut strides = index::strides(data);
    let along = std::mem::take(&mut strides[axis]);
    let mut bases = Vec::with_capacity(indices.len());
    broadcast::for_each_offset(shape, [&strides], |[base]| bases.push(base));
    let indices = indices.to_i64s()?;
    let place = |(base, i): (usize, i64)| Ok(base + index::normal_index(i, data[axis])? * along);
    bases.into_iter().zip(indices).map(place).collect()
}

fn eval_elements(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, indices) = (index::input(inputs, 0)?, index::input(inputs, 1)?);
    let axis = normal_axis(cx.op.attrs.int("axis", 0)?, x.rank())?;
    Ok(vec![index::pick(&[x], indices.shape().to_vec(), &element_places(x.shape(), indices, axis)?)?])
}

fn grad_elements(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, indices, dy) = (cx.input(0)?, cx.input(1)?, cx.dy()?);
    let attrs = Attributes::new().with("axis", cx.op().attrs.int("axis", 0)?).with("reduction", "add");
    let dtype = cx.emit.dtype(x)?;
    let zeros = cx.emit.zeros_like(x, dtype)?;
    Ok(vec![Some(cx.emit.op("ScatterElements", &[zeros, indices, dy], attrs)?), None])
}

fn sample_elements(draw: &mut Draw) -> Sample {
    let axis = draw.int(-2, 1);
    let len = [3i64, 4][axis.rem_euclid(2) as usize];
    let shape: &[usize] = if len == 3 { &[5, 3] } else { &[2, 6] };
    let inputs = vec![draw.tensor(&[3, 4], -1.0, 1.0), draw.ints(shape, -len, len - 1)];
    Sample::new(Operator::onnx("GatherElements", Attributes::new().with("axis", axis)), inputs)
}

fn batch_dims(op: &Operator) -> Result<usize> {
    let dims = op.attrs.int("batch_dims", 0)?;
    ensure!((0..64).contains(&dims), "attribute `batch_dims` is {dims}, expected a number of axes");
    Ok(dims as usize)
}

fn infer_nd(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(cx.dtype(1)? == DType::I64, "its indices are {}, expected int64", cx.dtype(1)?);
    let shape = match (cx.shape(0), cx.shape(1)) {
        (Some(data), Some(indices)) => nd_dims(data, indices, batch_dims(cx.op)?)?,
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

/// The shape that `GatherND` gives and `ScatterND` takes as updates; `None` if the length of the tuples is open.
pub fn nd_dims(data: &[Dim], indices: &[Dim], batch: usize) -> Result<Option<Vec<Dim>>> {
    let Some((tuple, lead)) = indices.split_last() else { bail!("its indices have rank 0") };
    ensure!(batch <= lead.len() && batch <= data.len(), "{batch} batch axes are too many");
    let Some(tuple) = tuple.known() else { return Ok(None) };
    let named = usize::try_from(tuple).ok().and_then(|t| t.checked_add(batch)).filter(|n| *n <= data.len());
    let Some(named) = named else { bail!("tuples of {tuple} indices for data of rank {}", data.len()) };
    Ok(Some([lead, &data[named..]].concat()))
}

/// Where the elements of the data stand that tuples of indices name, in the order of the result; and its shape.
pub fn nd_places(data: &[usize], indices: &Tensor, batch: usize) -> Result<(Vec<usize>, Vec<usize>)> {
    let dims = nd_dims(&index::known_dims(data), &index::known_dims(indices.shape()), batch)?;
    let shape = index::static_dims(&dims.unwrap_or_default())?;
    let tuple = indices.shape().last().copied().unwrap_or(0);
    ensure!(indices.shape()[..batch] == data[..batch], "the batch axes of data and indices differ");
    if shape.contains(&0) {
        return Ok((Vec::new(), shape));
    }
    index::room(&shape)?;
    let strides = index::strides(data);
    let lead = index::count(&indices.shape()[..indices.rank() - 1]);
    let batches = index::count(&data[..batch]);
    let (per_batch, batch_size) = (lead / batches.max(1), index::count(&data[batch..]));
    let flat = indices.to_i64s()?;
    let mut bases = Vec::with_capacity(lead);
    for row in 0..lead {
        let mut base = row / per_batch * batch_size;
        for (i, &at) in flat[row * tuple..(row + 1) * tuple].iter().enumerate() {
            base += index::normal_index(at, data[batch + i])? * strides[batch + i];
        }
        bases.push(base);
    }
    let inner = index::count(&data[batch + tuple..]);
    Ok((index::outer_sum(&[bases, index::steps(inner, 1)]), shape))
}

fn eval_nd(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let (places, shape) = nd_places(x.shape(), index::input(inputs, 1)?, batch_dims(cx.op)?)?;
    Ok(vec![index::pick(&[x], shape, &places)?])
}

fn grad_nd(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, indices, dy, batch) = (cx.input(0)?, cx.input(1)?, cx.dy()?, batch_dims(&cx.op())?);
    let dx = if batch == 0 {
        let dtype = cx.emit.dtype(x)?;
        let zeros = cx.emit.zeros_like(x, dtype)?;
        cx.emit.op("ScatterND", &[zeros, indices, dy], Attributes::new().with("reduction", "add"))?
    } else {
        let shape = cx.emit.shape_of(x)?;
        cx.emit.sartor("GatherNDGrad", &[dy, indices, shape], Attributes::new().with("batch_dims", batch as i64))?
    };
    cx.emit.type_like(dx, x);
    Ok(vec![Some(dx), None])
}

fn eval_nd_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, shape) = (index::input(inputs, 0)?, index::shape_input(inputs, 2)?);
    let (places, taken) = nd_places(&shape, index::input(inputs, 1)?, batch_dims(cx.op)?)?;
    ensure!(dy.shape() == taken, "a gradient of shape {:?}, expected {taken:?}", dy.shape());
    Ok(vec![index::accumulate(dy, &shape, &places)?])
}

fn grad_of_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (indices, dy, op) = (cx.input(1)?, cx.dy()?, cx.op());
    Ok(vec![Some(cx.emit.op("GatherND", &[dy, indices], op.attrs)?), None, None])
}

/// Attributes and indices for data of shape [2, 3, 2].
fn nd_case(draw: &mut Draw) -> (Attributes, Tensor) {
    let batch = draw.int(0, 1);
    let shapes: [&[usize]; 3] =
        if batch == 0 { [&[4, 1], &[2, 2, 2], &[5, 3]] } else { [&[2, 1], &[2, 4, 1], &[2, 3, 2]] };
    let indices = draw.ints(*draw.clone().pick(&shapes), -2, 1);
    (Attributes::new().with("batch_dims", batch), indices)
}

fn sample_nd(draw: &mut Draw) -> Sample {
    let (attrs, indices) = nd_case(draw);
    Sample::new(Operator::onnx("GatherND", attrs), vec![draw.tensor(&[2, 3, 2], -1.0, 1.0), indices])
}

fn sample_nd_grad(draw: &mut Draw) -> Sample {
    let (attrs, indices) = nd_case(draw);
    let batch = attrs.int("batch_dims", 0).unwrap_or(0) as usize;
    let shape = nd_places(&[2, 3, 2], &indices, batch).map(|(_, shape)| shape).unwrap_or_default();
    let inputs = vec![draw.tensor(&shape, -1.0, 1.0), indices, Tensor::from_i64s(&[2, 3, 2])];
    Sample::new(Operator::sartor("GatherNDGrad", attrs), inputs)
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn shapes_of_the_results() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq,8");
        let (pairs, ids) = (p.input("pairs", DType::I64, "n,2"), p.input("ids", DType::I64, "batch,k,8"));
        let tuples = p.input("tuples", DType::I64, "batch,k,1");
        let rows = p.op("GatherND", &[x, pairs], Attributes::new());
        let batched = p.op("GatherND", &[x, tuples], Attributes::new().with("batch_dims", 1i64));
        let elements = p.op("GatherElements", &[x, ids], Attributes::new().with("axis", 1i64));
        assert_eq!(p.show(rows), "float[n, 8]");
        assert_eq!(p.show(batched), "float[batch, k, 8]");
        assert_eq!(p.show(elements), "float[batch, k, 8]");
    }
}
