//! The program `restart` (for the links of a chain `restart.0`, `restart.1`, …): every expert goes back to the played point,
//! with a fresh optimizer and the weights of the beginning.

use super::experts::Split;
use super::weights::Weights;
use super::{Wrap, beginning, constant};
use crate::training;
use sartor_ir::ops::Emit;
use sartor_ir::{Graph, Model, Program, Result};

/// Adds it.
pub fn add(wrap: &Wrap, model: &mut Model, split: &Split, weights: &Weights) -> Result<()> {
    let name = wrap.name.replacen("step", "restart", 1);
    let mut program = Program { graph: Graph::new(&name), bindings: Vec::new() };
    for state in &split.states {
        let mut emit = Emit::new(&mut program.graph, wrap.opset);
        let start = beginning(&mut emit, model, state)?;
        for own in &state.own {
            training::bind(&mut program, &format!("next:{own}"), start, own);
        }
    }
    for param in &split.common {
        let Some(initial) = model.params.get(param).map(|p| p.tensor.clone()) else { continue };
        let mut emit = Emit::new(&mut program.graph, wrap.opset);
        let value = constant(&mut emit, initial)?;
        training::bind(&mut program, &format!("next:{param}"), value, param);
    }
    for (param, tensor) in &weights.initial {
        let value = program.graph.add_const(&format!("/samuel/{param}"), tensor.clone());
        training::bind(&mut program, &format!("next:{param}"), value, param);
    }
    model.programs.insert(name, program);
    Ok(())
}
