//! Sequences of tensors: their types alone. What computes with them is the pass `sequences`, which puts the tensors in their place
//! where the graph says which they are.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__SequenceAt.html> and siblings. Members have one element type and any shapes.

use super::{Gradient, InferCx, OpDef};
use crate::error::Result;
use crate::{DType, Operator, Type, bail, ensure};

/// What the rows share.
const TYPED: OpDef = OpDef { grad: Gradient::Missing, ..OpDef::DEFAULT };

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef { name: "SequenceEmpty", inputs: (0, 0), infer: infer_empty, ..TYPED },
    OpDef { name: "SequenceConstruct", inputs: (1, usize::MAX), infer: |cx| make(cx, 0), ..TYPED },
    OpDef { name: "SequenceInsert", inputs: (2, 3), infer: |cx| make(cx, 1), ..TYPED },
    OpDef { name: "SequenceErase", inputs: (1, 2), infer: super::same_as_first, ..TYPED },
    OpDef { name: "SplitToSequence", inputs: (1, 2), infer: |cx| make(cx, 0), ..TYPED },
    OpDef { name: "SequenceAt", inputs: (2, 2), infer: read, ..TYPED },
    OpDef { name: "ConcatFromSequence", inputs: (1, 1), infer: read, ..TYPED },
    OpDef {
        name: "SequenceLength",
        inputs: (1, 1),
        infer: |cx| {
            cx.set(0, Type::tensor(DType::I64, [0i64; 0]));
            Ok(())
        },
        ..TYPED
    },
];

/// Whether an operator makes or reads sequences.
pub fn concerns(op: &Operator) -> bool {
    op.domain.is_empty() && OPS.iter().any(|row| row.name == op.name)
}

fn infer_empty(cx: &mut InferCx) -> Result<()> {
    let code = cx.op.attrs.int("dtype", 1)?;
    let dtype = i32::try_from(code).ok().and_then(DType::from_onnx_code);
    ensure!(dtype.is_some(), "attribute `dtype` is {code}");
    cx.set(0, Type::Sequence(Box::new(Type::unranked(dtype.unwrap_or(DType::F32)))));
    Ok(())
}

/// A sequence of tensors of an input's element type.
fn make(cx: &mut InferCx, slot: usize) -> Result<()> {
    let dtype = cx.dtype(slot)?;
    cx.set(0, Type::Sequence(Box::new(Type::unranked(dtype))));
    Ok(())
}

/// A tensor of the members' element type.
fn read(cx: &mut InferCx) -> Result<()> {
    match cx.fact(0).map(|fact| &fact.ty) {
        Some(Type::Sequence(member)) => match member.dtype() {
            Some(dtype) => cx.set(0, Type::unranked(dtype)),
            None => bail!("its members are {member}, expected tensors"),
        },
        Some(other) => bail!("its input is {other}, expected a sequence"),
        None => bail!("input 0 is missing or of unknown type"),
    }
    Ok(())
}
