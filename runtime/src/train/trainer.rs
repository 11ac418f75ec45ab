//! The loop of a run. What it does per batch stands in the [module above](super); this file is the order of it.

use super::config::{Mode, OnNonFinite, TrainRun};
use super::evaluate::{Evaluation, Evaluator};
use super::events::{Event, Observer};
use super::guard::{self, Step, scalar};
use super::links::Links;
use super::log::Logs;
use super::metrics::{Metrics, Task};
use super::signals::Signals;
use super::summary::{Summary, peak_rss_mib};
use crate::checkpoint::state::VERSION;
use crate::checkpoint::{Best, Checkpoint, Disk, Exact, RealDisk, State, Store};
use crate::data::schema::SCALARS;
use crate::data::{Augment, Batch, Cursor, Dataset, Loader, LoaderOptions, Splits};
use crate::params::Params;
use crate::session::{Key, Session, SessionOptions};
use sartor_ir::{Context, Error, Graph, Model, Result, Tensor, bail, ensure};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// It is done; the model holds the result.
    Finished(Summary),
    /// It was asked to stop, and saved where it was.
    Interrupted {
        /// Steps done.
        step: u64,
        /// Where it was saved; `None` if the run saves no checkpoints.
        checkpoint: Option<PathBuf>,
    },
}

/// This many steps in a row may be skipped.
const MAX_SKIPPED_IN_ROW: u64 = 50;

/// Vectors up to this length are logged.
const LONGEST_VECTOR: usize = 64;

/// Trains a model. See the [module](super) for what it needs and what it writes.
pub fn train(model: &mut Model, run: &TrainRun, splits: &Splits, observer: &mut dyn Observer) -> Result<Outcome> {
    train_on(&RealDisk, model, run, splits, observer)
}

/// The same with checkpoints on a disk of the caller's.
pub(crate) fn train_on(
    disk: &dyn Disk,
    model: &mut Model,
    run: &TrainRun,
    splits: &Splits,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let signals = Signals::new(run.catch_signals)?;
    let mut trainer = Trainer::new(disk, model, run, splits, observer)?;
    if let Some(interrupted) = trainer.run_steps(&signals)? {
        return Ok(interrupted);
    }
    let (params, summary) = trainer.finish()?;
    params.store(model);
    let path = run.output.join("summary.json");
    summary.write(&path)?;
    observer.event(&Event::Finished(&summary));
    Ok(Outcome::Finished(summary))
}

struct Trainer<'a> {
    model: &'a Model,
    run: &'a TrainRun,
    splits: &'a Splits,
    observer: &'a mut dyn Observer,
    store: Store<'a>,
    options: SessionOptions,
    loader: Loader,
    epochs: usize,
    links: Links,
    params: Params,
    /// The names of the trained parameters, and of all that a checkpoint holds.
    trained: Vec<String>,
    variables: Vec<String>,
    state: State,
    logs: Logs,
    session: Option<(usize, Session)>,
    evaluator: Option<(usize, Evaluator)>,
    /// The step that the newest checkpoint holds.
    saved: Option<(u64, PathBuf)>,
    /// Examples, and the time they took, since the last line of the log and since this process began.
    window: Clock,
    whole: Clock,
    begun: Instant,
}

#[derive(Clone, Copy, Default)]
struct Clock {
    samples: u64,
    time: Duration,
}

impl Clock {
    fn add(&mut self, samples: usize, time: Duration) {
        self.samples += samples as u64;
        self.time += time;
    }
    fn rate(self) -> f64 {
        let rate = self.samples as f64 / self.time.as_secs_f64().max(1e-9);
        (rate * 100.0).round() / 100.0
    }
}

impl<'a> Trainer<'a> {
    fn new(
        disk: &'a dyn Disk,
        model: &'a Model,
        run: &'a TrainRun,
        splits: &'a Splits,
        observer: &'a mut dyn Observer,
    ) -> Result<Trainer<'a>> {
        let loader = Loader::new(splits.train.clone(), loader_options(run))?;
        run.schedule.check()?;
        run.restarts.check()?;
        let total = total_steps(run, &loader);
        ensure!(total > 0, "the run has no steps: epochs is {}", run.train.epochs);
        let links = Links::of(model, total, &run.split)?;
        let watched = splits.eval.is_some() && !run.train.eval_every.is_never();
        ensure!(
            run.train.early_stop.is_none() || watched,
            "train.early_stop needs evaluations: set data.eval, and train.eval_every to \"epoch\" or a number of steps"
        );
        check_batch(model, &links, &loader, splits.train.len())?;
        std::fs::create_dir_all(&run.output).map_err(|e| Error::io(&run.output, e))?;
        let store = Store::open(&run.output.join("checkpoints"), disk)?;
        let mut params = Params::of(model);
        let names = |keep: &dyn Fn(&sartor_ir::Parameter) -> bool| {
            model.params.iter().filter(|(_, p)| keep(p)).map(|(n, _)| n.clone()).collect::<Vec<String>>()
        };
        let trained = names(&|p| p.role == sartor_ir::Role::Trainable);
        let variables = names(&|p| p.role.is_variable());
        let resumed = resume(&store, run, &mut *observer)?;
        let saved =
            resumed.as_ref().map(|c| (c.state.step, run.output.join(format!("checkpoints/step-{}", c.state.step))));
        let state = match resumed {
            Some(checkpoint) => restore(checkpoint, &mut params, &variables, run, total)?,
            None => fresh(run, total),
        };
        let logs = Logs::open(&run.output, (state.step > 0).then_some(&state.logs))?;
        let options = run.train.threads.map(|threads| SessionOptions { threads }).unwrap_or_default();
        Ok(Trainer {
            model,
            run,
            splits,
            observer,
            store,
            options,
            loader,
            epochs: run.train.epochs,
            links,
            params,
            trained,
            variables,
            state,
            logs,
            session: None,
            evaluator: None,
            saved,
            window: Clock::default(),
            whole: Clock::default(),
            begun: Instant::now(),
        })
    }

    fn per_epoch(&self) -> u64 {
        self.loader.batches_per_epoch() as u64
    }
    fn epoch(&self) -> f64 {
        self.state.step as f64 / self.per_epoch() as f64
    }

    /// All steps that are left; the outcome if it was interrupted.
    fn run_steps(&mut self, signals: &Signals) -> Result<Option<Outcome>> {
        let (step, total, per_epoch) = (self.state.step, self.state.total, self.per_epoch());
        self.observer.event(&Event::Started { step, total, per_epoch });
        let mut batches = self.loader.stream(self.state.cursor, self.epochs);
        while self.state.step < self.state.total && !self.state.stopped {
            if signals.asked() || self.observer.stop() {
                return self.interrupted().map(Some);
            }
            let Some(item) = batches.next() else { bail!("the data ended before the run") };
            let (cursor, batch) = item.context(|| "data.train")?;
            self.tie_knots()?;
            self.restart_experts()?;
            self.step(batch)?;
            self.state.cursor = Cursor { batch: cursor.batch + 1, ..cursor };
            let epoch_ends = self.state.cursor.batch as u64 == per_epoch || self.state.step == total;
            self.after_step(epoch_ends)?;
        }
        Ok(None)
    }

    fn interrupted(&mut self) -> Result<Outcome> {
        let step = self.state.step;
        if !self.run.train.checkpoint_every.is_never() && step > 0 {
            self.save()?;
        }
        let checkpoint = self.saved.as_ref().filter(|(s, _)| *s == step).map(|(_, path)| path.clone());
        Ok(Outcome::Interrupted { step, checkpoint })
    }

    /// Merges the links that are done and opens the next.
    fn tie_knots(&mut self) -> Result<()> {
        let wanted = self.links.at(self.state.step);
        while self.state.link < wanted {
            self.run_alone(&format!("knot.{}", self.state.link + 1))?;
            self.state.link += 1;
            // Experts of a link begin where the last one ended.
            if let Some(name) = self.restart_program() {
                self.run_alone(&name)?;
            }
            self.logs.write(self.state.step, self.epoch(), &[("knot", self.state.link as f64)])?;
            self.observer.event(&Event::Knot { step: self.state.step, link: self.state.link });
        }
        Ok(())
    }

    /// Runs a program that needs no inputs.
    fn run_alone(&mut self, name: &str) -> Result<()> {
        let key = Key { seed: self.run.train.seed, step: self.state.step };
        let mut session = Session::program(self.model, name, self.options)?;
        session.run(&mut self.params, &HashMap::new(), key).context(|| format!("program \"{name}\""))?;
        Ok(())
    }

    /// The program that restarts the experts of the current link, if it has some.
    fn restart_program(&self) -> Option<String> {
        self.beside_step("restart")
    }

    /// The program of this kind that belongs to the step of the current link, if there is one.
    fn beside_step(&self, kind: &str) -> Option<String> {
        let name = self.links.programs[self.state.link].replacen("step", kind, 1);
        self.model.programs.contains_key(&name).then_some(name)
    }

    /// Restarts the experts if that is due.
    fn restart_experts(&mut self) -> Result<()> {
        let Some(name) = self.restart_program() else { return Ok(()) };
        let step = self.state.step;
        let (since, span) = self.links.place(step);
        if self.run.restarts.due(since, span, self.run.accumulate) {
            self.run_alone(&name)?;
            self.logs.write(step, self.epoch(), &[("samuel/restart", 1.0)])?;
            self.observer.event(&Event::Restart { step });
        }
        Ok(())
    }

    fn step(&mut self, batch: Batch) -> Result<()> {
        let rate = self.links.rate(&self.run.schedule, self.state.step);
        let link = self.state.link;
        let fresh = self.session.as_ref().is_none_or(|(l, _)| *l != link);
        if fresh {
            self.session = Some((link, Session::program(self.model, &self.links.programs[link], self.options)?));
        }
        let graph = &self.model.programs[self.links.programs[link].as_str()].graph;
        let place = Place { rate, step: self.state.step, total: self.state.total, seed: self.run.train.seed };
        let inputs = step_inputs(graph, batch.tensors, &place)?;
        let Some((_, session)) = &mut self.session else { bail!("there is no session") };
        let key = Key { seed: self.run.train.seed, step: self.state.step };
        let start = Instant::now();
        let place = || format!("step {}", self.state.step + 1);
        let taken = guard::run(session, &mut self.params, &inputs, key, &self.trained).context(place)?;
        let time = start.elapsed();
        if let (true, Some(reason)) = (fresh, session.report().unplanned) {
            let text = format!(
                "steps, or the part of them from here on, are run by the reference evaluator, which is slow: {reason}"
            );
            self.observer.event(&Event::Notice(&text));
        }
        self.window.add(batch.samples, time);
        self.whole.add(batch.samples, time);
        match taken {
            Step::Taken(outputs) => self.taken(&outputs, rate, batch.samples),
            Step::Undone(what) => self.undone(&what),
        }
    }
    fn taken(&mut self, outputs: &HashMap<String, Tensor>, rate: f64, samples: usize) -> Result<()> {
        let loss = scalar(outputs, "loss")?.unwrap_or(f64::NAN);
        let state = &mut self.state;
        state.step += 1;
        state.skipped_in_row = 0;
        state.window_loss = Exact(state.window_loss.0 + loss);
        state.window_steps += 1;
        let step = state.step;
        self.observer.event(&Event::Step { step, loss, learning_rate: rate, samples });
        if step.is_multiple_of(self.run.train.log_every.max(1)) || step == self.state.total {
            self.log_window(outputs, rate)?;
        }
        Ok(())
    }
    fn log_window(&mut self, outputs: &HashMap<String, Tensor>, rate: f64) -> Result<()> {
        let loss = self.state.window_loss.0 / self.state.window_steps as f64;
        self.state.last_loss = Exact(loss);
        let speed = std::mem::take(&mut self.window).rate();
        let mut values = vec![("loss", loss), ("learning_rate", rate), ("samples_per_second", speed)];
        let mut others: Vec<(&String, &Tensor)> = outputs
            .iter()
            .filter(|(n, t)| *n != "loss" && t.rank() <= 1 && (1..=LONGEST_VECTOR).contains(&t.len()))
            .collect();
        others.sort_by_key(|(name, _)| *name);
        let mut vectors = Vec::new();
        for (name, tensor) in others {
            match tensor.rank() {
                0 => values.extend(tensor.to_f64s()?.first().map(|v| (name.as_str(), *v))),
                _ => vectors.push((name.as_str(), tensor.to_f64s()?)),
            }
        }
        if self.state.skipped > 0 {
            values.push(("skipped_steps", self.state.skipped as f64));
        }
        (self.state.window_loss, self.state.window_steps) = (Exact(0.0), 0);
        self.logs.write_with(self.state.step, self.epoch(), &values, &vectors)
    }
    fn undone(&mut self, what: &str) -> Result<()> {
        let step = self.state.step + 1;
        let checkpoint = match &self.saved {
            Some((_, path)) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".to_string(),
        };
        let stop = self.run.train.on_nonfinite == OnNonFinite::Stop;
        ensure!(
            !stop,
            "step {step}: {what}; the weights were not touched, and {checkpoint}. A lower learning rate or gradient \
             clipping may help; train.on_nonfinite = \"skip\" leaves such batches out"
        );
        let state = &mut self.state;
        state.step = step;
        state.skipped += 1;
        state.skipped_in_row += 1;
        ensure!(
            state.skipped_in_row < MAX_SKIPPED_IN_ROW,
            "step {step}: {what}, as in the {MAX_SKIPPED_IN_ROW} steps before; {checkpoint}"
        );
        self.observer.event(&Event::Notice(&format!("step {step} skipped: {what}")));
        Ok(())
    }

    fn after_step(&mut self, epoch_ends: bool) -> Result<()> {
        let (step, config, splits) = (self.state.step, &self.run.train, self.splits);
        if let Some(dataset) = splits.eval.as_ref().filter(|_| config.eval_every.due(step, epoch_ends)) {
            self.calibrate()?;
            let metrics = self.evaluate("eval", dataset)?.metrics;
            self.state.last_eval = metrics.iter().map(|(n, v)| (n.clone(), Exact(*v))).collect();
            self.judge(&metrics)?;
        }
        let last = step == self.state.total || self.state.stopped;
        let never = config.checkpoint_every.is_never();
        if config.checkpoint_every.due(step, epoch_ends) || (last && !never) {
            self.save()?;
        }
        Ok(())
    }

    /// Gathers the statistics of batch normalisation at the parameters as they are, from the same batches each time.
    fn calibrate(&mut self) -> Result<()> {
        let Some(name) = self.beside_step("calibrate").filter(|_| self.run.train.calibrate > 0) else { return Ok(()) };
        let program = &self.model.programs[name.as_str()];
        let mut session = Session::program(self.model, &name, self.options)?;
        let options = LoaderOptions { augment: Augment::default(), ..loader_options(self.run) };
        let batches = Loader::new(self.splits.train.clone(), options)?;
        let key = Key { seed: self.run.train.seed, step: self.state.step };
        for (index, item) in batches.stream(Cursor::default(), 1).take(self.run.train.calibrate).enumerate() {
            let (_, batch) = item.context(|| "data.train")?;
            let place = Place { rate: 0.0, step: self.state.step, total: self.state.total, seed: self.run.train.seed };
            let mut inputs = step_inputs(&program.graph, batch.tensors, &place)?;
            inputs.insert("share".to_string(), Tensor::scalar(1.0 / (index + 1) as f32));
            session.run(&mut self.params, &inputs, key).context(|| format!("program \"{name}\""))?;
        }
        Ok(())
    }

    /// The evaluator of the current link, and what it runs on.
    fn evaluator(&mut self) -> Result<(&mut Evaluator, &mut Params)> {
        let link = self.state.link;
        if self.evaluator.as_ref().is_none_or(|(l, _)| *l != link) {
            self.evaluator = Some((link, Evaluator::new(self.model, link, self.options)?));
        }
        let Some((_, evaluator)) = &mut self.evaluator else { bail!("there is no evaluator") };
        Ok((evaluator, &mut self.params))
    }

    /// Evaluates the state as it is.
    fn measure(&mut self, split: &str, dataset: &Arc<dyn Dataset>) -> Result<Evaluation> {
        let run = self.run;
        let (evaluator, params) = self.evaluator()?;
        evaluator.run(params, dataset, run).context(|| format!("data.{split}"))
    }

    /// The same, and tells what came out.
    fn evaluate(&mut self, split: &str, dataset: &Arc<dyn Dataset>) -> Result<Evaluation> {
        let found = self.measure(split, dataset)?;
        let metrics = &found.metrics;
        let named: Vec<(String, f64)> = metrics.iter().map(|(n, v)| (format!("{split}/{n}"), *v)).collect();
        let values: Vec<(&str, f64)> = named.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        self.logs.write(self.state.step, self.epoch(), &values)?;
        self.observer.event(&Event::Evaluated { split, step: self.state.step, metrics });
        Ok(found)
    }

    /// Keeps the state if it is the best so far; ends the run if none was better for long enough.
    fn judge(&mut self, metrics: &Metrics) -> Result<()> {
        let (name, mode) = judged_by(self.run, metrics);
        let Some(&value) = metrics.get(&name) else {
            let known: Vec<&str> = metrics.keys().map(String::as_str).collect();
            bail!("train.early_stop.metric is \"{name}\"; the evaluation gives {}", known.join(", "));
        };
        let better = |best: f64| if mode == Mode::Min { value < best } else { value > best };
        if value.is_finite() && self.state.best.is_none_or(|best| better(best.value.0)) {
            self.state.best = Some(Best { step: self.state.step, value: Exact(value) });
            self.state.without_gain = 0;
            if !self.run.train.checkpoint_every.is_never() {
                let checkpoint = self.checkpoint()?;
                self.store.save("best", &checkpoint)?;
            }
            return Ok(());
        }
        self.state.without_gain += 1;
        let patience = self.run.train.early_stop.as_ref().map(|e| e.patience);
        if patience.is_some_and(|p| self.state.without_gain >= p.max(1)) {
            self.state.stopped = true;
            let text = format!(
                "step {}: no better {name} in {} evaluations; stopping",
                self.state.step, self.state.without_gain
            );
            self.observer.event(&Event::Notice(&text));
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.state.logs = self.logs.sync()?;
        let value = |name: &String| self.params.get(name).map(|t| (name.clone(), t.clone()));
        let variables = self.variables.iter().filter_map(value).collect();
        Ok(Checkpoint { variables, state: self.state.clone(), recipe: self.run.recipe.clone() })
    }
    fn save(&mut self) -> Result<()> {
        let step = self.state.step;
        if self.saved.as_ref().is_some_and(|(saved, _)| *saved == step) {
            return Ok(());
        }
        let checkpoint = self.checkpoint()?;
        let path = self.store.save("step", &checkpoint)?;
        self.store.rotate(self.run.train.keep_checkpoints, self.state.best.map(|b| b.step))?;
        self.observer.event(&Event::Saved(&path));
        self.saved = Some((step, path));
        Ok(())
    }

    /// The best state if the run stops early, the test, the summary.
    fn finish(mut self) -> Result<(Params, Summary)> {
        let mut summary = Summary::default();
        let best = self.state.best;
        if let Some(best) = best.filter(|b| self.run.train.early_stop.is_some() && b.step != self.state.step) {
            ensure!(
                !self.run.train.checkpoint_every.is_never(),
                "the best state (step {}) was not saved, since checkpoint_every is \"never\"",
                best.step
            );
            let checkpoint = self.store.load("best", best.step)?;
            self.state.link = checkpoint.state.link;
            apply(checkpoint.variables, &mut self.params, &self.variables)?;
            self.observer.event(&Event::Notice(&format!("back to the best state, of step {}", best.step)));
        }
        self.calibrate()?;
        let splits = self.splits;
        if let Some(dataset) = &splits.test {
            let found = self.evaluate("test", dataset)?;
            found.metrics.iter().for_each(|(name, value)| summary.set(&format!("test.{name}"), *value));
            summary.gates = found.gates.map(|gates| Box::new(("test".to_string(), gates)));
        } else if let Some(dataset) = &splits.eval
            && self.evaluator()?.0.is_gated()
        {
            // Not what the last evaluation found: that may be of a later state than the best, and a resumed run may not have seen it.
            summary.gates = self.measure("eval", dataset)?.gates.map(|gates| Box::new(("eval".to_string(), gates)));
        }
        self.logs.sync()?;
        for (name, value) in &self.state.last_eval {
            summary.set(&format!("eval.{name}"), value.0);
        }
        if let Some(best) = best {
            summary.set("best.step", best.step);
            summary.set("best.value", best.value.0);
        }
        summary.set("train.loss", self.state.last_loss.0);
        summary.set("steps", self.state.step);
        summary.set("epochs", self.epoch());
        summary.set("skipped_steps", self.state.skipped);
        summary.set("samples_per_second", self.whole.rate());
        summary.set("seconds", (self.begun.elapsed().as_secs_f64() * 100.0).round() / 100.0);
        if let Some(peak) = peak_rss_mib() {
            summary.set("peak_rss_mib", peak);
        }
        summary.count_parameters(self.model);
        Ok((self.params, summary))
    }
}

/// What a step may ask for besides the batch.
pub(super) struct Place {
    pub(super) rate: f64,
    pub(super) step: u64,
    pub(super) total: u64,
    pub(super) seed: u64,
}

/// The batch's tensors and the scalars that a step asks for.
pub(super) fn step_inputs(
    graph: &Graph,
    mut tensors: HashMap<String, Tensor>,
    place: &Place,
) -> Result<HashMap<String, Tensor>> {
    let progress = place.step as f64 / place.total.max(1) as f64;
    let scalars = [
        ("learning_rate", place.rate),
        ("step", place.step as f64),
        ("progress", progress),
        ("seed", place.seed as f64),
    ];
    for (name, value) in scalars {
        if let Some(input) = graph.find_input(name) {
            let dtype = graph.ty(input).and_then(|t| t.dtype()).unwrap_or(sartor_ir::DType::F32);
            tensors.insert(name.to_string(), Tensor::scalar_of(dtype, value)?);
        }
    }
    tensors.retain(|name, _| graph.find_input(name).is_some());
    Ok(tensors)
}

/// How many steps a run has.
pub(super) fn total_steps(run: &TrainRun, loader: &Loader) -> u64 {
    let all = (run.train.epochs as u64).saturating_mul(loader.batches_per_epoch() as u64);
    run.train.max_steps.map_or(all, |max| all.min(max))
}

pub(super) fn loader_options(run: &TrainRun) -> LoaderOptions {
    let config = &run.train;
    LoaderOptions {
        batch: config.batch,
        seed: config.seed,
        shuffle: config.shuffle,
        drop_last: config.drop_last,
        buckets: run.buckets,
        augment: run.augment,
    }
}

fn fresh(run: &TrainRun, total: u64) -> State {
    let sartor = env!("CARGO_PKG_VERSION").to_string();
    State { version: VERSION, sartor, seed: run.train.seed, total, ..State::default() }
}

fn resume(store: &Store, run: &TrainRun, observer: &mut dyn Observer) -> Result<Option<Checkpoint>> {
    if !run.resume {
        ensure!(
            store.is_empty()?,
            "{}: there are checkpoints of another run; resume it, or take another output folder",
            run.output.join("checkpoints").display()
        );
        return Ok(None);
    }
    let found = store.latest(&run.recipe, &mut |text| observer.event(&Event::Notice(text)))?;
    if found.is_none() {
        observer.event(&Event::Notice("there is no checkpoint to resume from; starting at the beginning"));
    }
    Ok(found)
}

/// Nothing is written before everything fits.
fn restore(checkpoint: Checkpoint, params: &mut Params, names: &[String], run: &TrainRun, total: u64) -> Result<State> {
    let state = checkpoint.state;
    ensure!(
        (state.seed, state.total) == (run.train.seed, total),
        "the checkpoint is of a run of {} steps with seed {}, this one has {total} steps and seed {}",
        state.total,
        state.seed,
        run.train.seed
    );
    apply(checkpoint.variables, params, names)?;
    Ok(state)
}

fn apply(variables: Vec<(String, Tensor)>, params: &mut Params, names: &[String]) -> Result<()> {
    let mut next = params.clone();
    let given: Vec<&String> = variables.iter().map(|(name, _)| name).collect();
    let missing: Vec<&str> = names.iter().filter(|n| !given.contains(n)).map(String::as_str).collect();
    ensure!(missing.is_empty(), "the checkpoint lacks the parameters {}", missing.join(", "));
    for (name, tensor) in variables {
        next.set(&name, tensor).context(|| "the checkpoint is of another model")?;
    }
    *params = next;
    Ok(())
}

/// A graph with a fixed batch size takes no other.
fn check_batch(model: &Model, links: &Links, loader: &Loader, rows: usize) -> Result<()> {
    let graph = &model.programs[links.programs[0].as_str()].graph;
    let options = loader.options();
    for input in graph.inputs() {
        let shape = graph.ty(input).and_then(|t| t.shape()).unwrap_or_default();
        let name = graph.value_name(input);
        let fixed = shape.first().and_then(|d| d.known()).filter(|_| !SCALARS.contains(&name));
        let Some(fixed) = fixed else { continue };
        ensure!(
            fixed == options.batch as i64,
            "the model's input \"{name}\" has a fixed batch of {fixed}, train.batch is {}",
            options.batch
        );
        ensure!(
            options.drop_last || rows.is_multiple_of(options.batch),
            "the model's input \"{name}\" has a fixed batch of {fixed}, and {rows} examples leave an incomplete one: set \
             train.drop_last = true"
        );
    }
    Ok(())
}

/// What tells the best state, and which way is better. Data without labels gives no accuracy, only a loss.
fn judged_by(run: &TrainRun, metrics: &Metrics) -> (String, Mode) {
    let natural = match run.task {
        Task::Classification | Task::MultiLabel if metrics.contains_key("accuracy") => "accuracy",
        _ => "loss",
    };
    let early = run.train.early_stop.as_ref();
    let name = early.and_then(|e| e.metric.clone()).unwrap_or_else(|| natural.to_string());
    let name = name.trim_start_matches("eval/").to_string();
    let higher = matches!(name.as_str(), "accuracy" | "macro_f1");
    let mode = early.and_then(|e| e.mode).unwrap_or(if higher { Mode::Max } else { Mode::Min });
    (name, mode)
}
