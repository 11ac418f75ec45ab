//! `eval`: a model on the examples of a recipe.

use crate::failure::{Failure, Outcome, Running};
use crate::gates::Gates;
use crate::recipe::Recipe;
use crate::table::Table;
use crate::{files, gates, note, say, training};
use sartor_ir::{Model, Result, onnx};
use sartor_passes::gate::Record;
use sartor_passes::{Driver, Registry};
use sartor_runtime::data;
use sartor_runtime::train::{self, Metrics};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Evaluates a model on the examples of a recipe
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor eval --recipe recipe.toml                        # the merged.onnx of its output folder
  sartor eval --recipe recipe.toml --model other.onnx
  sartor eval --recipe recipe.toml --split eval --json

Of a model with gates it also prints what an example costs and how often the gates of each block are open.")]
pub struct Args {
    /// The recipe: its [data], [loss] and [train] count
    #[arg(long, value_name = "R.toml")]
    recipe: PathBuf,
    /// The model; without it, merged.onnx in the recipe's output folder
    #[arg(long)]
    model: Option<PathBuf>,
    /// Which examples
    #[arg(long, default_value = "test", value_parser = ["train", "eval", "test"])]
    split: String,
    /// Replaces a key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let recipe = Recipe::read(&args.recipe, &args.set, None)?;
    let path = args.model.clone().unwrap_or_else(|| recipe.tables.output.join("merged.onnx"));
    let model = load(&path, &recipe, registry).map_err(|e| e.at(format!("file {}", path.display())))?;
    let config = &recipe.tables.data;
    let files = match args.split.as_str() {
        "train" => &config.train,
        "eval" => &config.eval,
        _ => &config.test,
    };
    let Some(files) = files else {
        return Err(Failure::usage(format!(
            "the recipe has no data.{}: name the file, or another --split",
            args.split
        )));
    };
    let schema = training::schema_of(&model, &recipe.loss())?;
    let dataset = data::open(files.as_slice(), config, &schema).map_err(|e| e.at(format!("data.{}", args.split)))?;
    let found = train::evaluate(&model, &training::run_of(&recipe, false), &dataset).running()?;
    let record = Record::load(&model).running()?;
    let gates = record.zip(found.gates).map(|(record, used)| Gates::of(&record, &args.split, &used));
    let gates = gates.transpose().running()?;
    match args.json {
        true => print_json(&found.metrics, gates.as_ref()),
        false => print(&found.metrics, gates.as_ref()),
    }
    Ok(())
}

/// The model with a program `eval`: its own, or that of the recipe's loss. If it has gates, that says how they are used.
fn load(path: &Path, recipe: &Recipe, registry: &Registry) -> Result<Model> {
    let mut model = onnx::load(path)?;
    files::prepare(&mut model, registry)?;
    if !model.programs.contains_key("eval") {
        Driver::new().run_pass(&recipe.loss(), &mut model)?;
    }
    if let Err(error) = gates::measured(&mut model) {
        note!("how the gates are used is not known: {error}");
    }
    Ok(model)
}

fn print_json(metrics: &Metrics, gates: Option<&Gates>) {
    let mut all = json!(metrics);
    if let Some(gates) = gates {
        all["gates"] = json!(gates);
    }
    say!("{}", serde_json::to_string_pretty(&all).unwrap_or_default());
}

fn print(metrics: &Metrics, gates: Option<&Gates>) {
    let mut table = Table::new(&["metric", "value"]);
    metrics.iter().for_each(|(name, value)| table.row([name.clone(), format!("{value:.4}")]));
    table.print();
    if let Some(gates) = gates {
        say!("");
        gates.print();
    }
}
