//! `OneHot`: a new axis of length `depth` on which the entry named by the index is `values[1]` and all others are
//! `values[0]`. An index outside [-depth, depth) names none.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__OneHot.html>. The gradient of the two values is the sum of `dy` where
//! each of them stands.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, normal_axis};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "OneHot",
    inputs: (3, 3),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(2)?;
    let shape = match cx.shape(0) {
        Some(indices) => {
            let axis = normal_axis(cx.op.attrs.int("axis", -1)?, indices.len() + 1)?;
            let depth = cx.dims(1).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown);
            let mut shape = indices.to_vec();
            shape.insert(axis, depth);
            Some(shape)
        }
        None => None,
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (indices, depth, values) = (index::input(inputs, 0)?, index::input(inputs, 1)?, index::input(inputs, 2)?);
    ensure!(values.len() == 2, "its values have shape {:?}, expected two elements", values.shape());
    let depth: i64 = depth.cast(DType::I64)?.item()?;
    let Ok(count) = usize::try_from(depth) else { bail!("its depth is {depth}") };
    let axis = normal_axis(cx.op.attrs.int("axis", -1)?, indices.rank() + 1)?;
    let mut shape = indices.shape().to_vec();
    shape.insert(axis, count);
    index::room(&shape)?;
    let flat: Vec<i64> = indices.cast(DType::I64)?.to_vec()?;
    let inner = index::count(&indices.shape()[axis..]);
    let mut places = Vec::with_capacity(flat.len() * count);
    for row in flat.chunks(inner.max(1)) {
        for at in 0..depth {
            places.extend(row.iter().map(|&i| (at == if i < 0 { i.saturating_add(depth) } else { i }) as usize));
        }
    }
    Ok(vec![index::pick(&[values], shape, &places)?])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (indices, depth, dy) = (cx.input(0)?, cx.input(1)?, cx.dy()?);
    let dtype = cx.emit.dtype(dy)?;
    let digits = cx.emit.constant(Tensor::from_vec([2], vec![0u8, 1]).cast(dtype)?);
    let hot = cx.emit.op("OneHot", &[indices, depth, digits], cx.op().attrs)?;
    let hot = cx.emit.mul(dy, hot)?;
    let axes: Vec<usize> = (0..cx.emit.rank(dy)?).collect();
    let all = cx.emit.reduce_sum(dy, &axes, false)?;
    let on = cx.emit.reduce_sum(hot, &axes, false)?;
    let off = cx.emit.sub(all, on)?;
    let (off, on) = (cx.emit.unsqueeze(off, &[0])?, cx.emit.unsqueeze(on, &[0])?);
    let both = cx.emit.op("Concat", &[off, on], Attributes::new().with("axis", 0i64))?;
    Ok(vec![None, None, Some(both)])
}

fn sample(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("axis", draw.int(-3, 2));
    let inputs = vec![draw.ints(&[2, 3], -5, 5), Tensor::scalar(4i64), draw.tensor(&[2], -1.0, 1.0)];
    Sample::new(Operator::onnx("OneHot", attrs), inputs)
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    #[test]
    fn depth_becomes_an_axis() {
        let mut p = Probe::new();
        let (ids, values) = (p.input("ids", DType::I64, "batch,seq"), p.input("values", DType::F32, "2"));
        let depth = p.scalar(9);
        let y = p.op("OneHot", &[ids, depth, values], Attributes::new().with("axis", 1i64));
        assert_eq!(p.show(y), "float[batch, 9, seq]");
    }
}
