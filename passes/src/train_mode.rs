//! `train-mode`: training steps normalise by the statistics of their own batch, and keep running ones.
//!
//! ```text
//! before   y = BatchNormalization (x, scale, bias, mean, var)
//! after    y, next_mean, next_var = BatchNormalization <training_mode = 1> (x, scale, bias, mean, var)
//!          and after each run mean := next_mean, var := next_var
//! ```
//! (executed, with what stands beside it, by `tests/cases/train-mode/statistics.txt`)
//!
//! *Needs* training steps (`loss`), before `autodiff`. *Leaves* every BatchNormalization of a step whose statistics are parameters in training
//! mode; the statistics become `State`. The inference graph stays in inference mode and reads the running statistics, as
//! `model.train()` and `model.eval()` do it in PyTorch. A model whose exporter folded the normalisations into
//! convolutions has none left: then nothing changes. Running statistics that gates are read by (`normalise = "channel"` of [`gate`]) are gathered on too. What a teacher ([`loss`](crate::loss)) computes stays in inference mode. Idempotent.

use crate::training::{TEACHER, bind, for_each_step};
use crate::{Changed, Pass, gate};
use sartor_ir::{Model, NodeId, OutputSlot, Program, Result, Role, Type, Value};
use schemars::JsonSchema;
use serde::Deserialize;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainMode {}

impl Pass for TrainMode {
    fn name(&self) -> &str {
        "train-mode"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        let mut changed = crate::lift::lift(model)?;
        let gates = gate::Record::load(model)?;
        for_each_step(model, "train-mode", |_, program, rest| {
            let nodes: Vec<NodeId> = program.graph.topo_ops();
            for id in nodes {
                changed |= switch(program, rest, id)?;
            }
            if let Some(record) = &gates {
                changed |= gate::statistics::gather(program, rest, record)?;
            }
            Ok(())
        })?;
        Ok(changed.into())
    }
}

/// Puts one BatchNormalization into training mode. Returns whether it changed.
fn switch(program: &mut Program, rest: &mut Model, id: NodeId) -> Result<bool> {
    let graph = &program.graph;
    if !graph.node(id).is("BatchNormalization") {
        return Ok(false);
    }
    let statistic = |slot: usize| graph.input(id, slot).and_then(|v| graph.param_name(v)).map(str::to_string);
    let (Some(mean), Some(var)) = (statistic(3), statistic(4)) else { return Ok(false) };
    if mean.starts_with(TEACHER) {
        return Ok(false);
    }
    let Some(op) = program.graph.node_mut(id).op_mut() else { return Ok(false) };
    if op.attrs.flag("training_mode", false)? {
        return Ok(false);
    }
    op.attrs.set("training_mode", 1i64);
    for (slot, param) in [(1, mean), (2, var)] {
        let graph = &mut program.graph;
        let name = graph.fresh_name(&format!("next_{param}"));
        let ty = rest.params.get(&param).map(|p| Type::of(&p.tensor));
        let outputs = &mut graph.node_mut(id).outputs;
        outputs.truncate(slot);
        outputs.push(OutputSlot { name, ty });
        if let Some(p) = rest.params.get_mut(&param) {
            p.role = Role::State;
        }
        let value = Value { node: id, slot: slot as u32 };
        // One statistic of several normalisations follows the last of them.
        program.bindings.retain(|b| b.param != param);
        bind(program, &format!("next:{param}"), value, &param);
    }
    Ok(true)
}
