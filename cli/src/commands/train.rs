//! `train`: a model through a recipe.

use crate::failure::{Failure, Outcome, Running};
use crate::recipe::Recipe;
use crate::{note, say, training};
use sartor_ir::{Error, Model};
use sartor_passes::Registry;
use sartor_passes::cola::Record;
use sartor_runtime::checkpoint::{RealDisk, Store};
use sartor_runtime::data::open_splits;
use sartor_runtime::train::{self, Outcome as Ended, Progress, TrainRun};
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

`sartor schema` prints all keys. Relative paths are relative to the recipe's folder. Written to the output folder:
merged.onnx, with adapters also chain.onnx and adapter/ (for PEFT), checkpoints/, metrics.jsonl, tensorboard/,
summary.json, recipe.toml.")]
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
    "recipe.toml",
];

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let mut overrides = args.set.clone();
    overrides.extend(args.max_steps.map(|n| format!("train.max_steps={n}")));
    let recipe = Recipe::read(&args.recipe, &overrides, args.model.as_deref())?;
    check_output(&recipe.tables.output, args.resume || args.force)?;
    let mut model = load(&recipe, registry)?;
    let schema = training::schema_of(&model, &recipe.loss())?;
    let splits = open_splits(&recipe.tables.data, &schema)?;
    let run = training::run_of(&recipe, args.resume);
    run.schedule.check().map_err(|e| e.at("optimizer"))?;
    if args.resume {
        check_resume(&recipe)?;
    }
    if args.force {
        clear_output(&recipe.tables.output)?;
    }
    print_plan(&model, &run);
    start_output(&recipe, args.resume)?;
    match train::train(&mut model, &run, &splits, &mut Progress::new()).running()? {
        Ended::Finished(summary) => {
            training::write_results(&model, &recipe)?;
            training::print_summary(&summary);
            say!("\nwritten to {}", recipe.tables.output.display());
            Ok(())
        }
        Ended::Interrupted { step, checkpoint } => {
            let saved = checkpoint.map_or("nothing was saved".to_string(), |p| format!("saved in {}", p.display()));
            Err(Failure::Run(Error::msg(format!(
                "interrupted at step {step}: {saved}; --resume goes on from the last checkpoint"
            ))))
        }
    }
}

fn load(recipe: &Recipe, registry: &Registry) -> Outcome<Model> {
    let (model, prepared) = training::load_model(recipe, registry)?;
    let tables = &recipe.tables;
    let given = [
        tables.freeze.is_some(),
        tables.head.is_some(),
        tables.cola.is_some(),
        tables.train_mode.is_some(),
        tables.clip.is_some(),
    ];
    if prepared && given.contains(&true) {
        note!(
            "the model has training programs already: [freeze], [head], [cola], [train-mode], [clip] are not applied"
        );
    }
    Ok(model)
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
    let (path, temporary) = (folder.join("recipe.toml"), folder.join("recipe.toml.tmp"));
    let text = format!("# The recipe of this run, with every override applied.\n{}", recipe.effective);
    std::fs::write(&temporary, text).map_err(|e| Failure::Run(Error::io(&temporary, e)))?;
    std::fs::rename(&temporary, &path).map_err(|e| Failure::Run(Error::io(&path, e)))
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
