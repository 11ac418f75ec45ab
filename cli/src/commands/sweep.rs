//! `sweep`: a recipe with every combination of some values.

use super::train::{self, Start, Watch};
use crate::failure::{Failure, Outcome, Running};
use crate::recipe::Recipe;
use crate::sweep::grid::{Combination, Grid, combinations};
use crate::sweep::results::{self, Ended, Results, Row};
use crate::sweep::{Plan, plan};
use crate::{note, say};
use sartor_ir::Error;
use sartor_passes::Registry;
use sartor_runtime::train::signals::Signals;
use sartor_runtime::train::{Event, Observer, Outcome as Trained, Progress};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Trains a recipe with every combination of some values, and compares the results
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor sweep --recipe recipe.toml --grid optimizer.learning_rate=1e-4,1e-3,1e-2
  sartor sweep --recipe recipe.toml --grid optimizer.learning_rate=1e-3,1e-2 --grid optimizer.schedule=linear,cosine
  sartor sweep --recipe recipe.toml --grid cola.split='[1,1],[2,1]' --set output=splits --sort test.loss
  sartor sweep --recipe recipe.toml --grid optimizer.learning_rate=1e-3,1e-2,1e-1 --resume

Each combination is trained as `sartor train` would, in a folder of its own in the recipe's output, such as
out/learning_rate=1e-3,schedule=linear/. All recipes are checked before the first is trained. A combination whose training
fails is a row of the table with its reason. sweep.tsv and sweep.json in the output hold the table, best first.
With --resume, combinations that are complete are not trained again, and those that were interrupted go on; there may be
more values than before. To see the curves: sartor report out/*/ --html sweep.html")]
pub struct Args {
    /// The recipe
    #[arg(long, value_name = "R.toml")]
    recipe: PathBuf,
    /// A key of the recipe, and the values that it gets; may be repeated
    #[arg(long = "grid", value_name = "KEY=V1,V2,…", required = true)]
    grid: Vec<String>,
    /// Replaces a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// So many trainings at a time; each gets its share of the processor's cores, unless train.threads says otherwise
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// What the table is sorted by [default: eval.accuracy, test.accuracy, eval.loss, train.loss: the first that there is]
    #[arg(long, value_name = "METRIC")]
    sort: Option<String>,
    /// Trains only what an earlier call did not complete
    #[arg(long)]
    resume: bool,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let grids: Vec<Grid> = args.grid.iter().map(|text| Grid::parse(text)).collect::<Outcome<_>>()?;
    let sort = args.sort.as_deref().map(results::metric).transpose()?;
    if let Some(both) = grids.iter().find(|grid| args.set.iter().any(|set| key_of(set) == grid.key)) {
        return Err(Failure::usage(format!("{} is given both by --grid and by --set: leave one out", both.key)));
    }
    let output = Recipe::read(&args.recipe, &args.set, None)?.tables.output;
    if !args.resume {
        check_empty(&output)?;
    }
    let mut plans = plan(&args.recipe, &args.set, combinations(&grids)?, &output, registry)?;
    if args.jobs > 1 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / usize::from(args.jobs)).max(1);
        plans.iter_mut().for_each(|plan| _ = plan.recipe.tables.train.threads.get_or_insert(threads));
    }
    let done = plans.iter().map(|plan| completed(plan, args.resume)).collect::<Outcome<Vec<_>>>()?;
    std::fs::create_dir_all(&output).map_err(|e| Failure::Run(Error::io(&output, e)))?;
    let sweep = Sweep {
        plans: &plans,
        grids: &grids,
        sort: sort.as_deref(),
        output: &output,
        registry,
        alone: args.jobs == 1,
        signals: Signals::new(true).running()?,
        next: AtomicUsize::new(0),
        ended: Mutex::new(done),
        interrupted: Mutex::new(Vec::new()),
        writing: Mutex::new(()),
    };
    sweep.run(args.jobs.into())?;
    sweep.conclude()
}

fn key_of(set: &str) -> &str {
    set.split_once('=').map_or(set, |(key, _)| key).trim()
}

fn check_empty(output: &Path) -> Outcome {
    if std::fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::usage(format!(
            "the output folder {} is not empty: choose another with --set output=…, or go on with --resume",
            output.display()
        )));
    }
    Ok(())
}

/// The summary of a combination that an earlier call trained to its end. One of another recipe must not be mixed up with it.
fn completed(plan: &Plan, resume: bool) -> Outcome<Option<Ended>> {
    let folder = &plan.recipe.tables.output;
    if !resume || !folder.join("recipe.toml").exists() {
        return Ok(None);
    }
    if !plan.recipe.is_that_of(folder)? {
        return Err(Failure::usage(format!(
            "{} holds a run of another recipe (compare its recipe.toml): choose another output with --set output=…",
            folder.display()
        )));
    }
    let path = folder.join("summary.json");
    if !path.exists() || !folder.join("merged.onnx").exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let summary: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| Error::msg(format!("{}: {e}", path.display())))?;
    Ok(Some(Ended::Done(summary)))
}

struct Sweep<'a> {
    plans: &'a [Plan],
    grids: &'a [Grid],
    sort: Option<&'a str>,
    output: &'a Path,
    registry: &'a Registry,
    /// Whether one is trained at a time.
    alone: bool,
    signals: Signals,
    /// The next combination to look at.
    next: AtomicUsize,
    /// What came of each so far.
    ended: Mutex<Vec<Option<Ended>>>,
    /// What was said of those that a signal ended.
    interrupted: Mutex<Vec<String>>,
    /// Held while the table is written.
    writing: Mutex<()>,
}

impl Sweep<'_> {
    fn run(&self, jobs: usize) -> Outcome {
        if self.alone {
            return self.work();
        }
        std::thread::scope(|scope| {
            // As much stack as the main thread has.
            let spawn = |_| std::thread::Builder::new().stack_size(8 << 20).spawn_scoped(scope, || self.work());
            let workers: Vec<_> = (0..jobs).map(spawn).collect();
            workers.into_iter().try_for_each(|worker| {
                let worker =
                    worker.map_err(|e| Failure::Run(Error::msg(format!("no thread could be started: {e}"))))?;
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }
    /// Trains what is left, until nothing is or a signal came.
    fn work(&self) -> Outcome {
        while !self.signals.asked() {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(plan) = self.plans.get(i) else { break };
            let (name, count) = (&plan.combination.name, self.plans.len());
            if locked(&self.ended)[i].is_some() {
                say!("[{}/{count}] {name}: done before", i + 1);
                continue;
            }
            say!("[{}/{count}] {name}", i + 1);
            match self.train(plan) {
                Ok(ended) => {
                    locked(&self.ended)[i] = Some(ended);
                    let _alone = locked(&self.writing);
                    self.results().write(self.output).running()?;
                }
                Err(interrupted) => locked(&self.interrupted).push(interrupted),
            }
        }
        Ok(())
    }
    /// One combination; an error: what to say of its interruption.
    fn train(&self, plan: &Plan) -> Result<Ended, String> {
        let name = &plan.combination.name;
        let begun = std::fs::read_dir(&plan.recipe.tables.output).is_ok_and(|mut entries| entries.next().is_some());
        let start = if begun { Start::Resume } else { Start::Fresh };
        let progress = self.alone.then(Progress::new);
        let mut observer = Watcher { name, progress, signals: &self.signals };
        let watch = Watch { observer: &mut observer, catch_signals: false, plan: false };
        match train::train(&plan.recipe, start, self.registry, watch) {
            Ok(Trained::Finished(summary)) => Ok(Ended::Done(summary.values)),
            Ok(Trained::Interrupted { step, checkpoint }) => {
                Err(format!("{name}: {}", train::interruption(step, checkpoint.as_deref())))
            }
            Err(failure) => {
                let reason = failure.sentences();
                note!("{name}: failed: {reason}");
                Ok(Ended::Failed(reason))
            }
        }
    }
    fn results(&self) -> Results<'_> {
        let ended = locked(&self.ended);
        let rows = self.plans.iter().zip(ended.iter()).filter_map(|(plan, ended)| {
            let combination: Combination = plan.combination.clone();
            Some(Row { combination, ended: ended.clone()? })
        });
        Results::new(self.grids, self.sort, rows.collect())
    }
    fn conclude(&self) -> Outcome {
        let results = self.results();
        if let Some(wanted) = self.sort.filter(|wanted| *wanted != results.metric) {
            note!("no summary has {wanted}: sorted by {}", results.metric);
        }
        let ended = locked(&self.ended);
        let (count, done) = (ended.len(), ended.iter().flatten().count());
        if done > 0 {
            say!("\nsorted by {}, best first:", results.metric);
            results.table().print();
            results.write(self.output).running()?;
            say!("\nwritten to {}: sweep.tsv, sweep.json, and a folder for each", self.output.display());
        }
        if self.signals.asked() && done < count {
            let interrupted = locked(&self.interrupted).join("\n");
            let text = format!("interrupted: {done} of {count} combinations are done; --resume goes on\n{interrupted}");
            return Err(Failure::Run(Error::msg(text.trim_end().to_string())));
        }
        let first = ended.iter().flatten().find_map(|ended| match ended {
            Ended::Failed(reason) => Some(reason),
            Ended::Done(_) => None,
        });
        match first {
            Some(reason) if !ended.iter().flatten().any(|e| matches!(e, Ended::Done(_))) => {
                Err(Failure::Run(Error::msg(format!("all {count} combinations failed; the first: {reason}"))))
            }
            _ => Ok(()),
        }
    }
}

/// A worker that panicked ends the command anyway.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Shows the progress of a training that is alone, and of one among others its evaluations, by name.
struct Watcher<'a> {
    name: &'a str,
    progress: Option<Progress>,
    signals: &'a Signals,
}

impl Observer for Watcher<'_> {
    fn event(&mut self, event: &Event) {
        match (&mut self.progress, event) {
            (Some(progress), _) => progress.event(event),
            (None, Event::Evaluated { split, step, metrics }) => {
                let metrics: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                note!("{}: step {step}  {split}: {}", self.name, metrics.join("  "));
            }
            (None, Event::Notice(text)) => note!("{}: {text}", self.name),
            _ => {}
        }
    }
    fn stop(&mut self) -> bool {
        self.signals.asked()
    }
}
