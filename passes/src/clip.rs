//! `clip`: scales all gradients of a step together so that their Euclidean norm is at most `max_norm`.
//!
//! Before → after: every `grad:p` becomes `grad:p · min(1, max_norm / (norm + 1e-6))`, as PyTorch's
//! `clip_grad_norm_`; the step gains the output `grad_norm`, the norm before clipping.
//!
//! Precondition: `autodiff` has run, `optimizer` has not.

use crate::{Changed, Pass, training};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, DType, Graph, Model, Result, Value, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The options, and the pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Clip {
    /// The largest norm that is let through.
    pub max_norm: f32,
}

impl Default for Clip {
    fn default() -> Clip {
        Clip { max_norm: 1.0 }
    }
}

impl Pass for Clip {
    fn name(&self) -> &str {
        "clip"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        ensure!(self.max_norm > 0.0, "max_norm is {}, expected a positive number", self.max_norm);
        let opset = model.opset();
        training::for_each_step(model, "clip", |_, program, _| {
            ensure!(
                program.graph.find_input(training::LEARNING_RATE).is_none(),
                "the optimizer is there already: `clip` comes before it"
            );
            let graph = &mut program.graph;
            let norm = add_grad_norm(graph, opset, "clip")?;
            let grads = training::gradients(graph, "clip")?;
            let mut emit = Emit::new(graph, opset);
            emit.prefix = "/clip/".to_string();
            let shifted = emit.add_scalar(norm, 1e-6)?;
            let limit = emit.scalar(f64::from(self.max_norm), norm)?;
            let ratio = emit.div(limit, shifted)?;
            let one = emit.scalar(1.0, norm)?;
            let scale = emit.op("Min", &[ratio, one], Attributes::new())?;
            for (param, grad) in grads {
                let scale = emit.cast(scale, emit.dtype(grad)?)?;
                let clipped = emit.mul(grad, scale)?;
                training::set_output(emit.graph, &format!("{}{param}", training::GRAD), clipped);
            }
            Ok(())
        })?;
        Ok(Changed::Yes)
    }
}

/// Adds the output `grad_norm` to a step, unless it is there: `√ Σ g²` over all gradients, in single precision.
pub(crate) fn add_grad_norm(graph: &mut Graph, opset: i64, pass: &str) -> Result<Value> {
    if let Some(norm) = graph.find_output(training::GRAD_NORM) {
        return Ok(norm);
    }
    let grads = training::gradients(graph, pass)?;
    let mut emit = Emit::new(graph, opset);
    emit.prefix = "/grad_norm/".to_string();
    let mut total: Option<Value> = None;
    for (_, grad) in grads {
        let square = emit.op("ReduceSumSquare", &[grad], Attributes::new().with("keepdims", 0i64))?;
        let square = emit.cast(square, DType::F32)?;
        total = Some(match total {
            Some(sum) => emit.add(sum, square)?,
            None => square,
        });
    }
    let Some(total) = total else { bail!("there are no gradients") };
    let norm = emit.unary("Sqrt", total)?;
    training::set_output(graph, training::GRAD_NORM, norm);
    Ok(norm)
}
