//! `calibrate`: a program that gathers the statistics of batch normalisation anew, at the parameters as they are.
//!
//! ```text
//! step       x => (loss, next:mean, next:var)     every normalisation in training mode, statistics of where training is
//! calibrate  (x, share) => (next:mean, next:var)  the same forward pass at the model's parameters, no gradients, no updates
//!                                                 next:mean = mean + share · (mean of the batch - mean); the variance alike
//! ```
//! (executed, with what stands beside it, by `tests/cases/train-mode/calibrate.txt`)
//!
//! With `share = 1/t` in the t-th run the statistics are the mean over the batches seen. That is needed where parameters hold an
//! average of points (`average`, `schedule-free-adamw`): no batch was ever normalised at the average, and statistics that
//! were gathered beside it fit badly.
//!
//! *Needs* steps whose normalisations are in training mode (`train-mode`), before `autodiff`. *Leaves* the program
//! `calibrate`, for links of a chain `calibrate.0`, …; none where nothing normalises by its batch. Who runs the programs decides
//! when, and on what.

use crate::{Changed, Pass, training};
use sartor_ir::ops::Emit;
use sartor_ir::{Binding, Model, Program, Result, Tensor, Type, Value};
use schemars::JsonSchema;
use serde::Deserialize;

/// The input with the weight of this batch: 1 in the first run, 1/t in the t-th.
pub const SHARE: &str = "share";

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Calibrate {}

impl Pass for Calibrate {
    fn name(&self) -> &str {
        "calibrate"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        training::require_opset(model, "calibrate")?;
        let mut changed = false;
        training::for_each_step(model, "calibrate", |name, step, model| {
            let Some(mut program) = calibration(step, model.opset())? else { return Ok(()) };
            program.graph.name = program_of(name);
            model.programs.insert(program_of(name), program);
            changed = true;
            Ok(())
        })?;
        Ok(changed.into())
    }
}

/// The name of the program that belongs to a step.
pub fn program_of(step: &str) -> String {
    step.replacen("step", "calibrate", 1)
}

fn calibration(step: &Program, opset: i64) -> Result<Option<Program>> {
    let gathered = |b: &&Binding| step.graph.find_output(&b.output).is_some_and(|v| is_statistic(step, v));
    let bindings: Vec<Binding> = step.bindings.iter().filter(gathered).cloned().collect();
    if bindings.is_empty() {
        return Ok(None);
    }
    let mut program = Program { graph: step.graph.clone(), bindings };
    let graph = &mut program.graph;
    let bound: Vec<&str> = program.bindings.iter().map(|b| b.output.as_str()).collect();
    graph.outputs.retain(|o| bound.contains(&o.name.as_str()));
    let share = graph.add_input(SHARE, Type::of(&Tensor::scalar(0f32)));
    for index in 0..graph.outputs.len() {
        let batch = graph.outputs[index].value;
        if let Some(op) = graph.node_mut(batch.node).op_mut() {
            // Nothing of the statistics before: the output is the batch's own.
            op.attrs.set("momentum", 0f32);
        }
        let Some(old) = graph.input(batch.node, batch.slot as usize + 2) else { continue };
        let mut emit = Emit::new(graph, opset);
        emit.prefix = "/calibrate/".to_string();
        let next = training::nearer(&mut emit, old, batch, share)?;
        graph.outputs[index].value = next;
    }
    graph.remove_dead();
    Ok(Some(program))
}

/// Whether a value is the running mean or variance that a normalisation in training mode gives.
fn is_statistic(step: &Program, value: Value) -> bool {
    step.graph.node(value.node).is("BatchNormalization") && value.slot > 0
}
