//! `export`: a recipe's training in another tool's form.

use crate::recipe::Recipe;
use crate::{Failure, Outcome, files, note, say, training};
use sartor_ir::Error;
use sartor_passes::Registry;
use sartor_passes::ort_training::Artifacts;
use std::path::{Path, PathBuf};

/// Writes a recipe's training in the form that ONNX Runtime trains from
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor export --ort-training --recipe recipe.toml -o artifacts/
  sartor export model.onnx --ort-training --recipe recipe.toml --set cola.rank=4 -o artifacts/

With --ort-training the folder holds training_model.onnx, eval_model.onnx, optimizer_model.onnx and checkpoint, for
onnxruntime-training 1.19.2 and its mobile builds:

  from onnxruntime.training.api import CheckpointState, Module, Optimizer
  state = CheckpointState.load_checkpoint(\"artifacts/checkpoint\")
  module = Module(\"artifacts/training_model.onnx\", state, \"artifacts/eval_model.onnx\")
  optimizer = Optimizer(\"artifacts/optimizer_model.onnx\", module)
  optimizer.set_learning_rate(1e-3)

The recipe says what is trained (freeze, head, loss, cola) and how one update is made (optimizer: adamw, or sgd without
momentum; clip). The data, the learning rate and its schedule are what the trainer there makes of them. The folder must
not be there yet, or be empty.")]
pub struct Args {
    /// The model, instead of the recipe's
    model: Option<PathBuf>,
    /// The four artifacts of ONNX Runtime's training
    #[arg(long, required = true)]
    ort_training: bool,
    /// The recipe
    #[arg(long, value_name = "R.toml")]
    recipe: PathBuf,
    /// Replaces a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The folder to write
    #[arg(short, long)]
    output: PathBuf,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    files::require_empty(&args.output)?;
    let recipe = Recipe::read(&args.recipe, &args.set, args.model.as_deref())?;
    let tables = &recipe.tables;
    let without = [("[samuel]", tables.samuel.is_some()), ("[average]", tables.average.is_some())];
    let problems = without.iter().filter(|(_, given)| *given);
    let text = |(table, _): &(&str, bool)| Error::msg(format!("{table} has no place in ONNX Runtime's artifacts"));
    Error::all(problems.map(text).collect())?;
    if let Some(accumulate) = &tables.accumulate {
        note!(
            "[accumulate] is left to the trainer: {} batches per optimizer.step(), whose gradients ONNX Runtime adds up, not averages",
            accumulate.steps
        );
    }
    let mut model = training::load_plain(&recipe, registry)?;
    training::add_gradients(&mut model, &recipe)?;
    let artifacts = Artifacts::of(&model, &tables.optimizer.first, tables.clip.as_ref())?;
    write(&artifacts, &args.output)?;
    say!("{}", training::trainable_line(&model));
    let inputs: Vec<&str> = model
        .programs
        .get("eval")
        .map_or(Vec::new(), |eval| eval.graph.inputs().map(|value| eval.graph.value_name(value)).collect());
    say!("module({}) returns the loss", inputs.join(", "));
    say!("optimizer.set_learning_rate({}): the recipe's", recipe.schedule().learning_rate);
    say!("\nwritten to {}", args.output.display());
    Ok(())
}

fn write(artifacts: &Artifacts, folder: &Path) -> Outcome {
    std::fs::create_dir_all(folder).map_err(|e| Failure::Run(Error::io(folder, e)))?;
    let models = [
        ("training_model.onnx", &artifacts.training),
        ("eval_model.onnx", &artifacts.eval),
        ("optimizer_model.onnx", &artifacts.optimizer),
    ];
    for (name, model) in models {
        files::save(model, &folder.join(name), false)?;
    }
    files::write_whole(&folder.join("checkpoint"), &artifacts.checkpoint).map_err(Failure::Run)
}
