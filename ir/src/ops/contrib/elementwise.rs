//! Activations: Gelu, BiasGelu, FastGelu and QuickGelu of `com.microsoft`.
//!
//! ```text
//! Gelu(x) = x Φ(x)        BiasGelu(x, b) = Gelu(x + b)
//! FastGelu(x, b) = ½ (x + b) (1 + tanh(√(2/π) ((x + b) + 0.044715 (x + b)³)))        b may be left out
//! QuickGelu(x) = x · σ(alpha x),  alpha 1.702 unless told otherwise
//! ```
//!
//! Shapes: y is like x; b is `[n]` with n the length of the last axis.

use super::{CONTRIB, operator};
use crate::Attributes;
use crate::error::Result;
use crate::graph::{NodeId, Value};
use crate::ops::elementwise::{infer_same_type, infer_unary, sample_unary_with};
use crate::ops::{Emit, OpDef, Sample};
use crate::rng::Draw;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Gelu",
        infer: infer_unary,
        decompose: Some(|emit, id| gelu(emit, id, "none")),
        flops: |cx| 8 * cx.output_len(0),
        sample: Some(|draw| sample_unary_with(draw, operator("Gelu", Attributes::new()), -3.0, 3.0)),
        ..CONTRIB
    },
    OpDef {
        name: "BiasGelu",
        inputs: (2, 2),
        infer: infer_same_type,
        decompose: Some(|emit, id| gelu(emit, id, "none")),
        flops: |cx| 9 * cx.output_len(0),
        sample: Some(|draw| sample(draw, "BiasGelu", true)),
        ..CONTRIB
    },
    OpDef {
        name: "FastGelu",
        inputs: (1, 2),
        infer: infer_same_type,
        decompose: Some(|emit, id| gelu(emit, id, "tanh")),
        flops: |cx| 9 * cx.output_len(0),
        sample: Some(|draw| {
            let biased = draw.chance(0.5);
            sample(draw, "FastGelu", biased)
        }),
        ..CONTRIB
    },
    OpDef {
        name: "QuickGelu",
        infer: infer_unary,
        decompose: Some(decompose_quick),
        flops: |cx| 5 * cx.output_len(0),
        sample: Some(|draw| {
            let attrs = if draw.chance(0.5) { Attributes::new() } else { Attributes::new().with("alpha", 0.8f32) };
            sample_unary_with(draw, operator("QuickGelu", attrs), -3.0, 3.0)
        }),
        ..CONTRIB
    },
];

/// ONNX's Gelu, of the sum with the bias if there is one.
fn gelu(emit: &mut Emit, id: NodeId, form: &str) -> Result<Vec<Value>> {
    let mut x = emit.operand(id, 0)?;
    if let Some(bias) = emit.graph.input(id, 1) {
        x = emit.add(x, bias)?;
    }
    Ok(vec![emit.op("Gelu", &[x], Attributes::new().with("approximate", form))?])
}

fn decompose_quick(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (x, attrs) = (emit.operand(id, 0)?, emit.attrs(id));
    let scaled = emit.mul_scalar(x, f64::from(attrs.float("alpha", 1.702)?))?;
    let gate = emit.unary("Sigmoid", scaled)?;
    Ok(vec![emit.mul(x, gate)?])
}

fn sample(draw: &mut Draw, name: &str, biased: bool) -> Sample {
    let mut inputs = vec![draw.tensor(&[2, 3, 4], -2.0, 2.0)];
    if biased {
        inputs.push(draw.tensor(&[4], -1.0, 1.0));
    }
    Sample::new(operator(name, Attributes::new()), inputs)
}
