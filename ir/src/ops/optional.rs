//! `OptionalHasElement` and `OptionalGetElement` on values that are there: every tensor is, and is its own element.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__OptionalHasElement.html>. An input that is left out has no element. Values of
//! optional types are typed, but not computed with.

use super::{Emit, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::{Attributes, DType, Tensor, Type, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "OptionalHasElement",
        inputs: (0, 1),
        infer: |cx| {
            cx.set(0, Type::tensor(DType::Bool, [0i64; 0]));
            if matches!(cx.fact(0).map(|f| &f.ty), Some(Type::Tensor { .. } | Type::Sequence(_))) {
                cx.set_value(0, &Tensor::scalar(true));
            }
            Ok(())
        },
        decompose: Some(decompose_has),
        grad: Gradient::Zero,
        sample: Some(|draw| {
            let op = Operator::onnx("OptionalHasElement", Attributes::new());
            Sample::new(op, if draw.chance(0.5) { vec![draw.tensor(&[2, 3], -1.0, 1.0)] } else { Vec::new() })
        }),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "OptionalGetElement",
        infer: infer_get,
        decompose: Some(|emit, id| Ok(vec![element(emit, id)?])),
        grad: Gradient::Decompose,
        sample: Some(|draw| {
            Sample::new(Operator::onnx("OptionalGetElement", Attributes::new()), vec![draw.tensor(&[2, 3], -1.0, 1.0)])
        }),
        ..OpDef::DEFAULT
    },
];

fn infer_get(cx: &mut InferCx) -> Result<()> {
    match cx.fact(0).cloned() {
        Some(fact) => match fact.ty {
            Type::Optional(inner) => cx.set(0, *inner),
            _ => cx.set_fact(0, fact),
        },
        None => bail!("input 0 is missing or of unknown type"),
    }
    Ok(())
}

/// The input, which must not be of an optional type.
fn element(emit: &Emit, id: NodeId) -> Result<Value> {
    let Some(value) = emit.graph.input(id, 0) else { bail!("input 0 is missing") };
    let optional = matches!(emit.graph.ty(value), Some(Type::Optional(_)));
    ensure!(!optional, "values of optional types are not computed");
    Ok(value)
}

fn decompose_has(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let given = emit.graph.input(id, 0).is_some();
    if given {
        element(emit, id)?;
    }
    Ok(vec![emit.constant(Tensor::scalar(given))])
}
