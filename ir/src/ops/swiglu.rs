//! `SwiGLU`: a gate after `Swish` times a linear branch, `Y = A · σ(alpha · A) · B`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__SwiGLU.html>; Shazeer 2020. A, B and Y have one shape: nothing broadcasts.

use super::elementwise::{one_type, random_shape};
use super::{Emit, Gradient, InferCx, OpDef, Sample, broadcast};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "SwiGLU",
    inputs: (2, 2),
    infer,
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    flops: |cx| 5 * cx.output_len(0),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = one_type(cx, 0..2)?;
    ensure!(dtype.is_float(), "its operands are {dtype}, expected floats");
    let shape = match (cx.shape(0), cx.shape(1)) {
        (Some(a), Some(b)) => {
            let differ = |(a, b): (&Dim, &Dim)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
            ensure!(a.len() == b.len() && !a.iter().zip(b).any(differ), "its operands have the shapes {a:?} and {b:?}");
            Some(broadcast::dims(&[a, b])?)
        }
        (a, b) => a.or(b).map(<[Dim]>::to_vec),
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let alpha = emit.graph.node(id).op().map_or(Ok(1.0), |op| op.attrs.float("alpha", 1.0))?;
    let (Some(a), Some(b)) = (emit.graph.input(id, 0), emit.graph.input(id, 1)) else { bail!("it needs two inputs") };
    let gate = emit.op("Swish", &[a], Attributes::new().with("alpha", alpha))?;
    Ok(vec![emit.mul(gate, b)?])
}

fn sample(draw: &mut Draw) -> Sample {
    let shape = random_shape(draw);
    let inputs = vec![draw.tensor(&shape, -3.0, 3.0), draw.tensor(&shape, -1.0, 1.0)];
    Sample::new(Operator::onnx("SwiGLU", Attributes::new().with("alpha", draw.float(0.3, 1.5) as f32)), inputs)
}
