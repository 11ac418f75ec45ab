//! What is known of a run before its first step: what a step will cost (its memory, and the arithmetic of its products), and the learning rates.

use super::config::TrainRun;
use super::links::Links;
use super::trainer::{Place, loader_options, step_inputs, total_steps};
use crate::data::{Cursor, Loader, Splits};
use crate::params::Params;
use crate::session::{Session, SessionOptions};
use sartor_ir::{Context, Model, Result, bail};

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannedStep {
    /// Floating-point operations of matrix products and convolutions, forward and backward.
    pub flops: u64,
    /// Bytes besides the inputs and the model file; parameters that are updated are counted.
    pub bytes: usize,
}

/// The learning rate of every step of a run. The model needs its steps up to the gradients.
pub fn learning_rates(model: &Model, run: &TrainRun, splits: &Splits) -> Result<impl ExactSizeIterator<Item = f64>> {
    let loader = Loader::new(splits.train.clone(), loader_options(run))?;
    let total = total_steps(run, &loader);
    let links = Links::of(model, total, &run.split)?;
    let steps = 0..usize::try_from(total).unwrap_or(usize::MAX);
    Ok(steps.map(move |step| links.rate(&run.schedule, step as u64)))
}

/// The plan of a run's first step on its first batch; `None` for a program that the reference evaluator runs.
pub fn plan_step(model: &Model, run: &TrainRun, splits: &Splits) -> Result<Option<PlannedStep>> {
    let links = Links::of(model, u64::MAX, &run.split)?;
    let loader = Loader::new(splits.train.clone(), loader_options(run))?;
    let Some(item) = loader.stream(Cursor::default(), 1).next() else { bail!("there are no examples") };
    let (_, batch) = item.context(|| "data.train")?;
    let name = &links.programs[0];
    let place = Place { rate: 1.0, step: 0, total: 1, seed: run.train.seed };
    let inputs = step_inputs(&model.programs[name.as_str()].graph, batch.tensors, &place)?;
    let options = run.train.threads.map(|threads| SessionOptions { threads }).unwrap_or_default();
    let mut session = Session::program(model, name, options)?;
    let bytes = session.planned_bytes(&Params::of(model), &inputs)?;
    Ok(bytes.map(|bytes| PlannedStep { flops: session.report().flops, bytes }))
}
