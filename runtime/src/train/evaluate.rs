//! Evaluation: a dataset through the evaluation program (or the inference graph), into metrics and, of a model with gates, how those were used.

use super::config::TrainRun;
use super::gates::{FLOPS, GATES, GateCounter, GateUse, Judged, Kinds};
use super::guard::scalar;
use super::metrics::{Accumulator, Metrics, Task, argmax};
use crate::data::{Augment, Cursor, Dataset, LABEL, Loader, LoaderOptions};
use crate::params::Params;
use crate::session::{Key, Session, SessionOptions};
use sartor_ir::{Error, Graph, Model, Result, Tensor, ensure};
use std::collections::HashMap;
use std::sync::Arc;

/// What an evaluation found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// The numbers.
    pub metrics: Metrics,
    /// How gates were used, if the program says so.
    pub gates: Option<GateUse>,
}

/// Runs a model over a dataset.
pub struct Evaluator {
    session: Session,
    inputs: Vec<String>,
    logits: String,
    gated: bool,
}

impl Evaluator {
    /// For a link of a model: `eval.J`, else `eval`, else the inference graph.
    pub fn new(model: &Model, link: usize, options: SessionOptions) -> Result<Evaluator> {
        let names = [format!("eval.{link}"), "eval".to_string()];
        let program = names.iter().find(|name| model.programs.contains_key(name.as_str()));
        let (session, graph) = match program {
            Some(name) => (Session::program(model, name, options)?, &model.programs[name.as_str()].graph),
            None => (Session::new(model, options)?, &model.graph),
        };
        let inputs = graph.inputs().map(|v| graph.value_name(v).to_string()).collect();
        Ok(Evaluator { session, inputs, logits: logits_name(graph)?, gated: graph.find_output(GATES).is_some() })
    }
    /// Whether the program says how gates are used.
    pub fn is_gated(&self) -> bool {
        self.gated
    }
    /// The metrics of a dataset under these parameters.
    pub fn run(&mut self, params: &mut Params, dataset: &Arc<dyn Dataset>, run: &TrainRun) -> Result<Evaluation> {
        let batch = run.train.eval_batch.unwrap_or(run.train.batch);
        let options = LoaderOptions {
            batch,
            seed: run.train.seed,
            shuffle: false,
            drop_last: false,
            buckets: 0,
            augment: Augment::default(),
        };
        let (mut sum, mut gates) = (Accumulator::new(run.task, run.ignore_index), GateCounter::default());
        for item in Loader::new(dataset.clone(), options)?.stream(Cursor::default(), 1) {
            let (_, batch) = item?;
            let label = match batch.tensors.get(LABEL) {
                None if run.task == Task::LanguageModel => Some(own_tokens(&batch.tensors, run.ignore_index)?),
                label => label.cloned(),
            };
            let wanted = |name: &String| batch.tensors.get(name).map(|t| (name.clone(), t.clone()));
            let inputs: HashMap<String, Tensor> = self.inputs.iter().filter_map(wanted).collect();
            let outputs = self.session.run(params, &inputs, Key { seed: run.train.seed, step: 0 })?;
            let Some(logits) = outputs.get(&self.logits) else {
                return Err(Error::msg(format!("the evaluation gave no output \"{}\"", self.logits)));
            };
            match (&label, scalar(&outputs, "loss")?) {
                (Some(label), loss) => sum.add(logits, label, loss)?,
                (None, Some(loss)) => sum.add_unlabelled(loss, batch.samples),
                (None, None) => return Err(Error::msg("the data has no labels to evaluate with")),
            }
            if let Some(flops) = outputs.get(FLOPS) {
                let costs = flops.to_f64s()?;
                sum.add_costs(&costs);
                if let Some(values) = outputs.get(GATES) {
                    gates.add(&costs, &values.to_f64s()?, &judged(run, logits, label.as_ref(), costs.len())?)?;
                }
            }
        }
        let (mut metrics, gates) = (sum.finish(), gates.finish());
        metrics.extend(gates.iter().flat_map(gate_metrics));
        Ok(Evaluation { metrics, gates })
    }
}

/// The class of each example, where it has one, and whether the model found it.
fn judged(run: &TrainRun, logits: &Tensor, label: Option<&Tensor>, examples: usize) -> Result<Vec<Judged>> {
    let single = label.filter(|label| run.task == Task::Classification && label.len() == examples);
    let Some(label) = single else { return Ok(vec![Judged::default(); examples]) };
    let (scores, width) = (logits.to_f64s()?, logits.len() / examples.max(1));
    let judge = |(i, class): (usize, i64)| {
        let class = Some(class).filter(|_| run.ignore_index != Some(class));
        Judged { class, right: class == Some(argmax(&scores[i * width..(i + 1) * width])) }
    };
    Ok(label.to_i64s()?.into_iter().enumerate().map(judge).collect())
}

/// The shares of gates that were never open, always, or for some examples.
fn gate_metrics(gates: &GateUse) -> [(String, f64); 3] {
    let (kinds, all) = (Kinds::of(&gates.open), gates.open.len() as f64);
    [("gates_dead", kinds.dead), ("gates_always", kinds.always), ("gates_dynamic", kinds.dynamic)]
        .map(|(name, count)| (name.to_string(), count as f64 / all))
}

/// What a language model is to predict: its own tokens, those that are padding left out.
fn own_tokens(tensors: &HashMap<String, Tensor>, ignore_index: Option<i64>) -> Result<Tensor> {
    let Some(ids) = tensors.get("input_ids") else {
        return Err(Error::msg("the data has neither labels nor input_ids to evaluate with"));
    };
    let mut tokens = ids.to_i64s()?;
    if let Some(mask) = tensors.get("attention_mask") {
        for (token, kept) in tokens.iter_mut().zip(mask.to_i64s()?) {
            if kept == 0 {
                *token = ignore_index.unwrap_or(-100);
            }
        }
    }
    Ok(Tensor::from_vec(ids.shape().to_vec(), tokens))
}

/// The output `logits`, or the first floating-point one that is not the loss.
pub(super) fn logits_name(graph: &Graph) -> Result<String> {
    if graph.find_output("logits").is_some() {
        return Ok("logits".to_string());
    }
    let is_float = |v| graph.ty(v).and_then(|t| t.dtype()).is_none_or(|d| d.is_float());
    let mut candidates = graph.outputs.iter().filter(|o| o.name != "loss" && is_float(o.value));
    let found = candidates.next().map(|o| o.name.clone());
    ensure!(found.is_some(), "the graph \"{}\" has no output to make metrics of", graph.name);
    Ok(found.unwrap_or_default())
}

/// Evaluates a model as it is on a dataset: the command `eval`.
pub fn evaluate(model: &Model, run: &TrainRun, dataset: &Arc<dyn Dataset>) -> Result<Evaluation> {
    let threads = run.train.threads.map(|threads| SessionOptions { threads });
    let last = (0..).take_while(|j| model.programs.contains_key(&format!("step.{j}"))).count().saturating_sub(1);
    let mut evaluator = Evaluator::new(model, last, threads.unwrap_or_default())?;
    evaluator.run(&mut Params::of(model), dataset, run)
}
