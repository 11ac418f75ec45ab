//! `calibrate`: a program that gathers the statistics of batch normalisation, and those that gates are read by, anew, at the parameters as they are.
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
//! *Needs* steps whose normalisations are in training mode (`train-mode`) or whose gates read standardised features (`gate`), before `autodiff`. *Leaves* the program
//! `calibrate`, for links of a chain `calibrate.0`, …; none where nothing is gathered. Who runs the programs decides
//! when, and on what.

use crate::gate::Record;
use crate::gate::statistics::gathered;
use crate::{Changed, Pass, training};
use sartor_ir::ops::Emit;
use sartor_ir::{Binding, Model, Program, Result, Tensor, Type, Value};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};

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
        let record = Record::load(model)?;
        let of_gates = record.iter().flat_map(|record| &record.blocks).filter_map(|block| block.statistics.as_ref());
        let of_gates: HashSet<&String> = of_gates.flatten().collect();
        let mut changed = false;
        training::for_each_step(model, "calibrate", |name, step, model| {
            let Some(mut program) = calibration(step, &of_gates, model.opset())? else { return Ok(()) };
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

/// `of_gates`: the parameters that gates are read by.
fn calibration(step: &Program, of_gates: &HashSet<&String>, opset: i64) -> Result<Option<Program>> {
    let old_and_new = |b: &Binding| {
        let value = step.graph.find_output(&b.output)?;
        if of_gates.contains(&b.param) { gathered(&step.graph, value) } else { of_normalisation(step, value) }
    };
    let found = step.bindings.iter().filter_map(|b| Some((b.clone(), old_and_new(b)?)));
    let found: HashMap<String, (Binding, [Value; 2])> = found.map(|(b, pair)| (b.output.clone(), (b, pair))).collect();
    if found.is_empty() {
        return Ok(None);
    }
    let bindings = step.bindings.iter().filter(|b| found.contains_key(&b.output)).cloned().collect();
    let mut program = Program { graph: step.graph.clone(), bindings };
    let graph = &mut program.graph;
    graph.outputs.retain(|o| found.contains_key(&o.name));
    let share = graph.add_input(SHARE, Type::of(&Tensor::scalar(0f32)));
    for index in 0..graph.outputs.len() {
        let [old, batch] = found[&graph.outputs[index].name].1;
        if let Some(op) = graph.node_mut(batch.node).op_mut().filter(|op| op.is("BatchNormalization")) {
            // Nothing of the statistics before: the output is the batch's own.
            op.attrs.set("momentum", 0f32);
        }
        let mut emit = Emit::new(graph, opset);
        emit.prefix = "/calibrate/".to_string();
        let next = training::nearer(&mut emit, old, batch, share)?;
        graph.outputs[index].value = next;
    }
    graph.remove_dead();
    Ok(Some(program))
}

/// The statistic before, and the value itself, if that is the running mean or variance that a normalisation in training mode gives.
fn of_normalisation(step: &Program, value: Value) -> Option<[Value; 2]> {
    let statistic = step.graph.node(value.node).is("BatchNormalization") && value.slot > 0;
    let old = step.graph.input(value.node, value.slot as usize + 2).filter(|_| statistic)?;
    Some([old, value])
}
