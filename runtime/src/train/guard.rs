//! The guard around a step: numbers that are not finite never reach the weights.
//!
//! The parameters before the step are kept (tensors are shared, nothing is copied: programs replace parameters, they do
//! not write into them) and put back if the step's loss, its gradient norm, or, where it reports no norm, a trained
//! weight is not finite.

use crate::params::Params;
use crate::session::{Key, Session};
use sartor_ir::{Error, Result, Tensor};
use std::collections::HashMap;

/// What became of a step.
#[derive(Debug)]
pub enum Step {
    /// It was taken: its outputs.
    Taken(HashMap<String, Tensor>),
    /// It was undone: what was not finite, as a sentence.
    Undone(String),
}

/// Runs a step; undoes it if something is not finite. `trained` are the names of the trained parameters.
pub fn run(
    session: &mut Session,
    params: &mut Params,
    inputs: &HashMap<String, Tensor>,
    key: Key,
    trained: &[String],
) -> Result<Step> {
    let before = params.clone();
    let outputs = session.run(params, inputs, key)?;
    match find_nonfinite(&outputs, params, trained)? {
        None => Ok(Step::Taken(outputs)),
        Some(what) => {
            params.roll_back(before);
            Ok(Step::Undone(what))
        }
    }
}

/// A scalar output as a number.
pub fn scalar(outputs: &HashMap<String, Tensor>, name: &str) -> Result<Option<f64>> {
    let Some(tensor) = outputs.get(name) else { return Ok(None) };
    match tensor.to_f64s()?.as_slice() {
        [one] => Ok(Some(*one)),
        _ => Err(Error::msg(format!("the output \"{name}\" is {:?}, expected a scalar", tensor.shape()))),
    }
}

fn find_nonfinite(outputs: &HashMap<String, Tensor>, params: &Params, trained: &[String]) -> Result<Option<String>> {
    let Some(loss) = scalar(outputs, "loss")? else {
        return Err(Error::msg("the training program has no output \"loss\""));
    };
    if !loss.is_finite() {
        return Ok(Some(format!("the loss is {loss}")));
    }
    match scalar(outputs, "grad_norm")? {
        Some(norm) if !norm.is_finite() => return Ok(Some(format!("the gradient norm is {norm}"))),
        Some(_) => return Ok(None),
        None => {}
    }
    let broken = trained.iter().find(|name| params.get(name).is_some_and(|t| !t.is_finite()));
    Ok(broken.map(|name| format!("the update of \"{name}\" is not finite")))
}
