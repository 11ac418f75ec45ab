//! `infer`: finds the types and shapes of all values and writes them down.
//!
//! ```text
//! before   y = MatMul (x, W)                     x: float[batch, 2], W: float[2, 3]
//! after    float[batch, 3] y = MatMul (x, W)
//! ```
//! (executed, with what stands beside it, by `tests/cases/infer/symbols.txt`)
//!
//! *Needs* the internal opset. *Leaves* every value with the most precise type that declarations and operators' rules give
//! together. Symbolic axes stay symbolic; what the file declares is never weakened, and a contradiction is an error, all
//! of them at once. Changes no node. Idempotent. Values behind operators that are not in the table stay as declared.

use crate::walk::require_internal_opset;
use crate::{Changed, Pass};
use sartor_ir::{Model, Result, Type, infer};
use schemars::JsonSchema;
use serde::Deserialize;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Infer {}

impl Pass for Infer {
    fn name(&self) -> &str {
        "infer"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        require_internal_opset(model)?;
        let before = types(model);
        infer::infer_model(model)?;
        Ok((before != types(model)).into())
    }
}

fn types(model: &Model) -> Vec<Option<Type>> {
    let nodes = model.graphs().flat_map(|graph| graph.node_ids().map(|id| graph.node(id)));
    nodes.flat_map(|node| node.outputs.iter().map(|output| output.ty.clone())).collect()
}
