//! `GlobalAveragePool`, `GlobalMaxPool`, `GlobalLpPool`: reductions over all spatial axes, which stay with length 1.
//!
//! ```text
//! GlobalAveragePool(x) = ReduceMean(x, axes = 2…)      GlobalMaxPool(x) = ReduceMax(x, axes = 2…)
//! GlobalLpPool(x, p)   = ReduceSum(|x|^p, axes = 2…)^(1/p)
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html>. Shapes: `[N, C, in…] → [N, C, 1…]`.

use super::real::count;
use super::{Emit, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, bail, ensure};

/// What the rows share.
const GLOBAL: OpDef = OpDef { infer, grad: Gradient::Decompose, flops: |cx| cx.input_len(0), ..OpDef::DEFAULT };

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "GlobalAveragePool",
        decompose: Some(|emit, id| reduce(emit, id, "ReduceMean")),
        sample: Some(|draw| sample(draw, "GlobalAveragePool")),
        ..GLOBAL
    },
    OpDef {
        name: "GlobalMaxPool",
        decompose: Some(|emit, id| reduce(emit, id, "ReduceMax")),
        sample: Some(|draw| sample(draw, "GlobalMaxPool")),
        ..GLOBAL
    },
    OpDef {
        name: "GlobalLpPool",
        decompose: Some(decompose_lp),
        upgrades: super::pool::INTEGER_POWER,
        sample: Some(|draw| sample(draw, "GlobalLpPool")),
        ..GLOBAL
    },
];

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    if let Some(shape) = &shape {
        ensure!(shape.len() >= 2, "its data has rank {}, expected at least 2", shape.len());
    }
    let pooled = shape.map(|s| s.into_iter().enumerate().map(|(i, d)| if i < 2 { d } else { Dim::Known(1) }).collect());
    cx.set_tensor(0, dtype, pooled);
    Ok(())
}

/// The data and its spatial axes.
fn spatial(emit: &Emit, id: NodeId) -> Result<(Value, Vec<usize>)> {
    let Some(x) = emit.graph.input(id, 0) else { bail!("input 0 is missing") };
    Ok((x, (2..emit.rank(x)?).collect()))
}

fn reduce(emit: &mut Emit, id: NodeId, name: &str) -> Result<Vec<Value>> {
    let (x, axes) = spatial(emit, id)?;
    Ok(vec![emit.reduce(name, x, &axes, true)?])
}

fn decompose_lp(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (x, axes) = spatial(emit, id)?;
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    match count(&op.attrs, "p", 2)? {
        1 => reduce(emit, id, "ReduceL1"),
        2 => reduce(emit, id, "ReduceL2"),
        p => {
            let (power, root) = (emit.scalar(p as f64, x)?, emit.scalar(1.0 / p as f64, x)?);
            let absolute = emit.unary("Abs", x)?;
            let powers = emit.op("Pow", &[absolute, power], Attributes::new())?;
            let sum = emit.reduce_sum(powers, &axes, true)?;
            Ok(vec![emit.op("Pow", &[sum, root], Attributes::new())?])
        }
    }
}

fn sample(draw: &mut Draw, name: &str) -> Sample {
    let shapes: [&[usize]; 3] = [&[2, 3, 4], &[1, 2, 3, 2], &[2, 1, 2, 2, 2]];
    let attrs = if name == "GlobalLpPool" { Attributes::new().with("p", draw.int(1, 3)) } else { Attributes::new() };
    let shape = *draw.pick(&shapes);
    let x = draw.distinct(shape, 0.15);
    Sample::new(Operator::onnx(name, attrs), vec![x])
}
