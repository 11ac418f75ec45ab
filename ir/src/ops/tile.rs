//! `Tile`: a tensor repeated `repeats[i]` times along axis `i`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Tile.html>. Its gradient splits every axis of `dy` into repeats and
//! entries, and sums over the repeats.

use super::{EvalCx, GradCx, Gradient, InferCx, MAX_FACT_DIMS, OpDef, Sample, index};
use crate::error::{Error, Result};
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Tile",
    inputs: (2, 2),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape: Option<Vec<Dim>> = match (cx.shape(0), index::elements(cx, 1)) {
        (Some(shape), Some(repeats)) => {
            ensure!(repeats.len() == shape.len(), "{} repeats for rank {}", repeats.len(), shape.len());
            Some(shape.iter().zip(&repeats).map(|(d, r)| d.mul(r)).collect())
        }
        (Some(shape), None) => Some(vec![Dim::Unknown; shape.len()]),
        _ => None,
    };
    cx.set_tensor(0, dtype, shape);
    if let (Some(dims), Some(repeats)) = (cx.dims(0), cx.ints(1)) {
        let times = repeats.first().and_then(|&r| usize::try_from(r).ok()).unwrap_or(1);
        let length = dims.len().saturating_mul(times);
        if repeats.len() == 1 && length <= MAX_FACT_DIMS {
            let repeated = dims.iter().cloned().cycle().take(length).collect();
            cx.set_dims(0, repeated);
        }
    }
    Ok(())
}

fn eval(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, repeats) = (index::input(inputs, 0)?, index::shape_input(inputs, 1)?);
    ensure!(repeats.len() == x.rank(), "{} repeats for rank {}", repeats.len(), x.rank());
    let lengths = x.shape().iter().zip(&repeats);
    let shape: Option<Vec<usize>> = lengths.clone().map(|(&len, &times)| len.checked_mul(times)).collect();
    let shape = shape.filter(|s| crate::tensor::element_count(s).is_some());
    let shape = shape.ok_or_else(|| Error::msg(format!("{:?} times {repeats:?} is too large", x.shape())))?;
    if shape.contains(&0) {
        return Ok(vec![Tensor::zeros(x.dtype(), shape)?]);
    }
    index::room(&shape)?;
    let table = |((&len, &times), stride): ((&usize, &usize), usize)| index::steps(len, stride).repeat(times);
    let tables: Vec<Vec<usize>> = lengths.zip(index::strides(x.shape())).map(table).collect();
    Ok(vec![index::pick(&[x], shape, &index::outer_sum(&tables))?])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, repeats, dy) = (cx.input(0)?, cx.input(1)?, cx.dy()?);
    let rank = cx.emit.rank(x)?;
    let lengths = cx.emit.shape_of(x)?;
    // [r0, d0, r1, d1, …]: both vectors as columns, side by side, read row by row.
    let (repeats, lengths) = (cx.emit.unsqueeze(repeats, &[1])?, cx.emit.unsqueeze(lengths, &[1])?);
    let pairs = cx.emit.op("Concat", &[repeats, lengths], Attributes::new().with("axis", 1i64))?;
    let target = cx.emit.reshape(pairs, &[2 * rank as i64])?;
    let parts = cx.emit.op("Reshape", &[dy, target], Attributes::new().with("allowzero", 1i64))?;
    let axes: Vec<usize> = (0..rank).map(|i| 2 * i).collect();
    let dx = cx.emit.reduce_sum(parts, &axes, false)?;
    let dx = cx.emit.reshape_like(dx, x)?;
    cx.emit.type_like(dx, x);
    Ok(vec![Some(dx), None])
}

fn sample(draw: &mut Draw) -> Sample {
    let inputs = vec![draw.tensor(&[2, 3], -1.0, 1.0), draw.ints(&[2], 1, 3)];
    Sample::new(Operator::onnx("Tile", Attributes::new()), inputs)
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn lengths_multiply() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "1,seq,8");
        let y = p.input("y", DType::F32, "batch,4");
        let b = p.op("Shape", &[y], Attributes::new().with("end", 1i64));
        let ones = p.ints(&[2, 1]);
        let repeats = p.op("Concat", &[b, ones], Attributes::new().with("axis", 0i64));
        let tiled = p.op("Tile", &[x, repeats], Attributes::new());
        assert_eq!(p.show(tiled), "float[batch, 2*seq, 8]");
        let three = p.ints(&[3]);
        let thrice = p.op("Tile", &[b, three], Attributes::new());
        assert_eq!(p.show(thrice), "int64[3] = batch, batch, batch");
    }
}
