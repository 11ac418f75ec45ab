//! `train`: a model through a recipe.

use crate::failure::{Failure, Outcome, Running};
use crate::gates::Gates;
use crate::recipe::{Both, Recipe};
use crate::table::Table;
use crate::{files, gate_rate, gates, note, say, training};
use sartor_ir::{Error, Model, Result};
use sartor_passes::Registry;
use sartor_passes::cola::Record;
use sartor_passes::gate;
use sartor_passes::samuel::{Mode, PROBABILITY, Samuel};
use sartor_passes::training::is_step;
use sartor_runtime::checkpoint::{RealDisk, Store};
use sartor_runtime::data::{Splits, open_splits};
use sartor_runtime::train::{Observer, Outcome as Ended, PlannedStep, Progress, TrainRun, learning_rates, plan_step};
use std::path::{Path, PathBuf};

/// Trains a model as a recipe says
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor train --recipe recipe.toml
  sartor train --recipe recipe.toml --set cola.rank=16 --set train.seed=1 --set output=out-1
  sartor train --recipe recipe.toml --resume
  sartor train step.onnx --recipe recipe.toml    # a file that `transform` gave training programs

A recipe:
  model = \"model.onnx\"
  output = \"out/\"
  [data]
  train = \"train.tsv\"
  eval = \"val.tsv\"
  test = \"test.tsv\"
  text = \"text\"
  label = \"label\"
  tokenizer = \"tokenizer.json\"
  max_length = 64
  [head]
  input = \"461\"
  kind = \"classifier\"
  classes = 2
  [loss]
  kind = \"cross-entropy\"
  [cola]
  rank = 8
  alpha = 16
  links = 3
  targets = [\"*/query/MatMul\", \"*/value/MatMul\"]
  [optimizer]
  kind = \"adamw\"
  learning_rate = 1e-3
  schedule = \"linear\"
  [train]
  epochs = 6
  batch = 8
  seed = 0

Instead of a learning rate, several at once, weighed while training:
  [samuel]
  rates = [1, 0.1, 0.01, 0.001, 0.0001]

`sartor schema` prints all keys. Relative paths are relative to the recipe's folder. Written to the output folder:
merged.onnx, with adapters also chain.onnx and adapter/ (for PEFT), with gates gates.json (how they are used), checkpoints/,
metrics.jsonl, tensorboard/, summary.json, recipe.toml.")]
pub struct Args {
    /// The model, instead of the recipe's
    model: Option<PathBuf>,
    /// The recipe
    #[arg(long, value_name = "R.toml")]
    recipe: PathBuf,
    /// Replaces a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Goes on from the last checkpoint in the output folder
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Ends the run, and its schedule, after so many steps: the same as --set train.max_steps=N
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    /// Removes what an earlier run left in the output folder
    #[arg(long)]
    force: bool,
}

/// What runs leave in their output folder.
const LEFT: &[&str] = &[
    "merged.onnx",
    "merged.onnx.data",
    "chain.onnx",
    "chain.onnx.data",
    "adapter",
    "checkpoints",
    "metrics.jsonl",
    "tensorboard",
    "summary.json",
    gates::FILE,
    "recipe.toml",
    "report.html",
];

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let mut overrides = args.set.clone();
    overrides.extend(args.max_steps.map(|n| format!("train.max_steps={n}")));
    let recipe = Recipe::read(&args.recipe, &overrides, args.model.as_deref())?;
    let start = match (args.resume, args.force) {
        (true, _) => Start::Resume,
        (_, true) => Start::Anew,
        _ => Start::Fresh,
    };
    let watch = Watch { observer: &mut Progress::new(), catch_signals: true, plan: true };
    match train(&recipe, start, registry, watch)? {
        Ended::Finished(summary) => {
            training::print_summary(&summary);
            if let Some(gates) = Gates::read(&recipe.tables.output)? {
                say!("");
                gates.print();
            }
            say!("\nwritten to {}", recipe.tables.output.display());
            Ok(())
        }
        Ended::Interrupted { step, checkpoint } => {
            let text = interruption(step, checkpoint.as_deref());
            Err(Failure::Run(Error::msg(format!("{text}; --resume goes on from the last checkpoint"))))
        }
    }
}

/// What a training does with what an earlier one left in its output folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// There must be nothing.
    Fresh,
    /// It goes on from the last checkpoint.
    Resume,
    /// It removes it.
    Anew,
}

/// Who watches a training.
pub struct Watch<'a> {
    /// Is told of everything, and may stop it.
    pub observer: &'a mut dyn Observer,
    /// Whether SIGINT and SIGTERM stop it; otherwise only the observer does.
    pub catch_signals: bool,
    /// Whether it prints what is trained, and how, before it begins.
    pub plan: bool,
}

/// Trains a recipe into its output folder: everything is checked before anything is written.
pub fn train(recipe: &Recipe, start: Start, registry: &Registry, watch: Watch) -> Outcome<Ended> {
    let resume = start == Start::Resume;
    check_output(&recipe.tables.output, start != Start::Fresh)?;
    let mut model = training::load_plain(recipe, registry)?;
    let (prepared, gated) = (training::is_prepared(&model), gate::Record::load(&model)?.is_some());
    if prepared {
        check_experts(recipe, &model)?;
        note_unused(recipe);
    } else {
        training::add_gradients(&mut model, recipe)?;
    }
    let schema = training::schema_of(&model, &recipe.loss())?;
    let splits = open_splits(&recipe.tables.data, &schema)?;
    let run = TrainRun { catch_signals: watch.catch_signals, ..training::run_of(recipe, resume) };
    recipe.check_schedules()?;
    let gate_rate = gate_rate::factor(recipe, !gated, learning_rates(&model, &run, &splits)?);
    if !prepared {
        training::add_updates(&mut model, recipe, gate_rate)?;
    }
    if resume {
        check_resume(recipe)?;
    }
    if start == Start::Anew {
        clear_output(&recipe.tables.output)?;
    }
    if watch.plan {
        print_plan(&model, &run);
        if gate_rate != 1.0 && !prepared {
            say!("gates: their networks learn at {gate_rate:.3} times the learning rate");
        }
        print_experts(recipe, registry, (&model, prepared), (&run, &splits));
    }
    start_output(recipe, resume)?;
    let ended = sartor_runtime::train::train(&mut model, &run, &splits, watch.observer).running()?;
    if let Ended::Finished(summary) = &ended {
        gates::keep(&mut model, summary.gates.as_deref(), &recipe.tables.output).running()?;
        training::write_results(&model, recipe)?;
    }
    Ok(ended)
}

/// `interrupted at step 12: saved in out/checkpoints/step-12`.
pub fn interruption(step: u64, checkpoint: Option<&Path>) -> String {
    let saved = checkpoint.map_or("nothing was saved".to_string(), |p| format!("saved in {}", p.display()));
    format!("interrupted at step {step}: {saved}")
}

/// A table `[samuel]` makes the learning rate a factor on those of the experts: without experts it would be the learning rate.
fn check_experts(recipe: &Recipe, model: &Model) -> Outcome {
    let mut steps = model.programs.iter().filter(|(name, _)| is_step(name));
    let experts = steps.any(|(_, step)| step.graph.find_output(PROBABILITY).is_some());
    if recipe.tables.samuel.is_none() || experts {
        return Ok(());
    }
    Err(Failure::usage(
        "the model has training programs already, and no experts in them: leave [samuel] out and give a learning rate, or train the file \
         that it was made from",
    ))
}

/// The tables of a recipe that a file with programs of its own makes useless.
fn note_unused(recipe: &Recipe) {
    let tables = &recipe.tables;
    let given = [
        ("[freeze]", tables.freeze.is_some()),
        ("[head]", tables.head.is_some()),
        ("[cola]", tables.cola.is_some()),
        ("[train-mode]", tables.train_mode.is_some()),
        ("[gate]", tables.gate.is_some()),
        ("[samuel]", tables.samuel.is_some()),
        ("[average]", tables.average.is_some()),
        ("[clip]", tables.clip.is_some()),
    ];
    if given.iter().any(|(_, given)| *given) {
        let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
        note!("the model has training programs already: {} are not applied", names.join(", "));
    }
}

fn check_output(folder: &Path, may_be_used: bool) -> Outcome {
    let mut names: Vec<String> = match std::fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::io(folder, e).into()),
    };
    names.sort();
    if names.is_empty() || may_be_used {
        return Ok(());
    }
    names.truncate(4);
    Err(Failure::usage(format!(
        "the output folder {} is not empty (it holds {}): choose another with --set output=…, go on with --resume, or \
         start over with --force",
        folder.display(),
        names.join(", ")
    )))
}

/// Whether the newest checkpoint is of this recipe. A run without checkpoints begins anew.
fn check_resume(recipe: &Recipe) -> Outcome {
    let folder = recipe.tables.output.join("checkpoints");
    if folder.is_dir() {
        Store::open(&folder, &RealDisk)?.latest(&recipe.identity, &mut |_| {})?;
    }
    Ok(())
}

fn clear_output(folder: &Path) -> Outcome {
    for name in LEFT {
        let path = folder.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Failure::Run(Error::io(&path, e))),
            _ => {}
        }
    }
    Ok(())
}

fn start_output(recipe: &Recipe, resume: bool) -> Outcome {
    let folder = &recipe.tables.output;
    std::fs::create_dir_all(folder).map_err(|e| Failure::Run(Error::io(folder, e)))?;
    if resume && folder.join("recipe.toml").exists() {
        return Ok(());
    }
    let text = format!("# The recipe of this run, with every override applied.\n{}", recipe.effective);
    files::write_whole(&folder.join("recipe.toml"), &text).map_err(Failure::Run)
}

/// What the experts cost, in each mode, beside a step without any. Of a file that has programs already nothing else is known.
fn print_experts(
    recipe: &Recipe,
    registry: &Registry,
    (model, prepared): (&Model, bool),
    (run, splits): (&TrainRun, &Splits),
) {
    let (Some(samuel), false) = (&recipe.tables.samuel, prepared) else { return };
    let options = &samuel.first;
    let Ok(rates) = options.rates() else { return };
    let rates: Vec<String> = rates.iter().map(f64::to_string).collect();
    say!("experts: {} with learning rates {}; mode {}", rates.len(), rates.join(", "), options.mode.name());
    let Ok(source) = training::load_plain(recipe, registry) else { return };
    let planned = |mode: Option<Mode>| -> Result<Option<PlannedStep>> {
        if mode == Some(options.mode) {
            return plan_step(model, run, splits);
        }
        let (mut recipe, mut model) = (recipe.clone(), source.clone());
        let other =
            |samuel: Both<Samuel, _>, mode| Both { first: Samuel { mode, play: None, ..samuel.first }, ..samuel };
        recipe.tables.samuel = recipe.tables.samuel.and_then(|samuel| Some(other(samuel, mode?)));
        training::add_programs(&mut model, &recipe)?;
        plan_step(&model, run, splits)
    };
    let Ok(Some(plain)) = planned(None) else { return };
    let mut table = Table::new(&["a step", "GFLOP of products", "times", "memory, MiB"]);
    let mut modes = vec![None, Some(Mode::Independent), Some(Mode::Shared)];
    modes.extend((options.mode == Mode::Intervals).then_some(Some(Mode::Intervals)));
    for mode in modes {
        let name = mode.map_or("without experts", Mode::name);
        let Ok(Some(step)) = planned(mode) else { continue };
        let times = step.flops as f64 / plain.flops.max(1) as f64;
        let memory = step.bytes as f64 / 1_048_576.0;
        table.row([
            name.to_string(),
            format!("{:.2}", step.flops as f64 / 1e9),
            format!("{times:.2}"),
            format!("{memory:.1}"),
        ]);
    }
    table.print();
}

fn print_plan(model: &Model, run: &TrainRun) {
    say!("{}", training::trainable_line(model));
    if let Ok(Some(record)) = Record::load(model) {
        let links = record.sites.first().map_or(0, |site| site.links.len());
        let ranks: Vec<String> =
            record.sites.first().into_iter().flat_map(|s| s.links.iter().map(|l| l.rank.to_string())).collect();
        say!("adapters: {} operators, {links} link(s) of rank {}", record.sites.len(), ranks.join(", "));
    }
    let programs: Vec<&str> = model.programs.keys().map(String::as_str).collect();
    say!("programs: {}", programs.join(", "));
    let train = &run.train;
    let limit = train.max_steps.map_or(String::new(), |n| format!(", at most {n} steps"));
    say!(
        "plan: {} epoch(s), batch {}{limit}, learning rate {} ({:?}), seed {}",
        train.epochs,
        train.batch,
        run.schedule.learning_rate,
        run.schedule.schedule,
        train.seed
    );
}
