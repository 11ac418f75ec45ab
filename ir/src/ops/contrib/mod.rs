//! Operators of the domain `com.microsoft`, in which ONNX Runtime writes what its optimizers fuse and its quantisers make. All
//! are short formulas in ONNX's own operators, by which they are evaluated, differentiated and run.
//!
//! Source: <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>. Forms that only other devices than CPUs
//! know (packed batches, packed heads, shared buffers) are refused by name.

use crate::error::Result;
use crate::graph::Operator;
use crate::ops::{Gradient, OpDef};
use crate::{Attributes, ensure};

pub mod attention;
pub mod elementwise;
pub mod grouped;
pub mod matmul;
pub mod norm;

/// The domain of these operators.
pub const DOMAIN: &str = "com.microsoft";

/// What the rows share.
const CONTRIB: OpDef = OpDef { domain: DOMAIN, grad: Gradient::Decompose, ..OpDef::DEFAULT };

/// One of these operators.
fn operator(name: &str, attrs: Attributes) -> Operator {
    Operator::of_domain(DOMAIN, name, attrs)
}

/// Errors if an integer attribute asks for something that is not supported.
fn refuse(attrs: &Attributes, names: &[&str]) -> Result<()> {
    for name in names {
        let value = attrs.int(name, 0)?;
        ensure!(value == 0, "attribute `{name}` is {value}, which is not supported");
    }
    Ok(())
}
