//! `demo`: the whole way, from nothing: train a small network, shift its inputs, fine-tune it by a chain of adapters,
//! export, re-import, compare. What it does, anybody can do with the files it writes.

use crate::demo::digits::{CREDIT, Digits};
use crate::demo::{network, pictures};
use crate::failure::{Failure, Outcome, Running};
use crate::recipe::Recipe;
use crate::table::{Table, grouped};
use crate::{compare, say, training};
use sartor_ir::onnx::{self, SaveOptions};
use sartor_ir::{Error, Model, Result, Role, Tensor};
use sartor_passes::Registry;
use sartor_runtime::SessionOptions;
use sartor_runtime::data::arrays::Arrays;
use sartor_runtime::data::{DataConfig, Dataset, Schema, Splits, npz, open_splits};
use sartor_runtime::train::{self, Event, Metrics, Observer, Outcome as Ended, Summary};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Trains a small network on handwritten digits, inverts them, and fine-tunes the network by a chain of adapters
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor demo
  sartor demo --out somewhere/
  sartor inspect sartor-demo/base.onnx
  sartor train --recipe sartor-demo/recipe.toml --set output=again/ --set cola.links=1

It needs nothing but this binary: 1,797 digits of 8 × 8 pixels are embedded in it.")]
pub struct Args {
    /// The folder to write; it must not be there yet, or be empty
    #[arg(long, default_value = "sartor-demo")]
    out: PathBuf,
    /// The seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

const BASE: &str = "
[loss]
kind = \"cross-entropy\"
[optimizer]
kind = \"adamw\"
learning_rate = 5e-3
weight_decay = 0.01
schedule = \"cosine\"
[train]
epochs = 10
batch = 32
checkpoint_every = \"never\"
";

const FINE_TUNE: &str =
    "# Fine-tunes base.onnx on inverted digits, by a chain of three adapters of rank 4 on every weight.
model = \"base.onnx\"
output = \"finetuned\"

[data]
train = \"inverted-train.npz\"
test = \"inverted-test.npz\"
eval = \"inverted-test.npz\"

[loss]
kind = \"cross-entropy\"

[cola]
rank = 4
alpha = 8
links = 3
targets = [\"*/Conv\", \"*/MatMul\"]

[optimizer]
kind = \"adamw\"
learning_rate = 1e-2
schedule = \"linear\"

[train]
epochs = 9
batch = 32
";

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let out = &args.out;
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        let text = format!("the folder {} is not empty: choose another with --out", out.display());
        return Err(Failure::usage(text));
    }
    std::fs::create_dir_all(out).map_err(|e| Failure::Run(Error::io(out, e)))?;
    let started = Instant::now();
    let digits = Digits::all().running()?;
    let (train, test) = digits.split();
    let inverted = (train.inverted(), test.inverted());
    say!(
        "1. The data: {} handwritten digits, 8 × 8 pixels; the last {} are the test.",
        grouped(digits.len() as u64),
        test.len()
    );
    say!("   {CREDIT}");
    pictures::write(&out.join("digits.png"), &[&test, &inverted.1], 12).running()?;
    say!("   digits.png shows some, and below them the same inverted.");

    let (base, on_digits) = train_base(out, args.seed, &train, &test)?;
    let shifted = accuracy(&base, &inverted.1)?;
    say!("\n3. The shift: on inverted digits its accuracy is {shifted:.3} instead of {on_digits:.3}.");

    write_arrays(out, "inverted-train.npz", &inverted.0)?;
    write_arrays(out, "inverted-test.npz", &inverted.1)?;
    let (tuned, summary) = fine_tune(out, args.seed, registry)?;
    let found = summary.get("test.accuracy").unwrap_or(0.0);
    check_export(out, &base, &tuned, &inverted.1)?;

    say!("\n6. What came of it ({} s):", started.elapsed().as_secs());
    let mut table = Table::new(&["accuracy on 500 test digits", "as they are", "inverted"]);
    let unshifted = accuracy(&training::merged(&tuned).running()?, &test)?;
    table.row(["base.onnx".to_string(), format!("{on_digits:.3}"), format!("{shifted:.3}")]);
    table.row(["finetuned/merged.onnx".to_string(), format!("{unshifted:.3}"), format!("{found:.3}")]);
    table.print();
    let (recipe, base) = (out.join("recipe.toml"), out.join("base.onnx"));
    say!("\n   Look:  sartor inspect {}", base.display());
    say!("   Again: sartor train --recipe {} --set output=again --set cola.links=1", recipe.display());
    Ok(())
}

/// Trains the network from nothing on the digits as they are; writes base.onnx.
fn train_base(out: &Path, seed: u64, train: &Digits, test: &Digits) -> Outcome<(Model, f64)> {
    let recipe = recipe_of(BASE, seed, out, "base.onnx", "base")?;
    let mut model = network::build(seed).running()?;
    say!("\n2. The base: a residual network of {} weights, trained on the digits as they are.", count(&model));
    training::add_programs(&mut model, &recipe).running()?;
    let schema = training::schema_of(&model, &recipe.loss()).running()?;
    let test = dataset(test, &schema)?;
    let splits = Splits { train: dataset(train, &schema)?, eval: Some(test.clone()), test: Some(test) };
    let summary = trained(&mut model, &recipe, &splits)?;
    let base = training::merged(&model).running()?;
    onnx::save(&base, &out.join("base.onnx"), &SaveOptions::default()).running()?;
    let accuracy = summary.get("test.accuracy").unwrap_or(0.0);
    say!("   Test accuracy {accuracy:.3}. Written: base.onnx.");
    Ok((base, accuracy))
}

/// Fine-tunes base.onnx on the inverted digits, by the recipe that it writes.
fn fine_tune(out: &Path, seed: u64, registry: &Registry) -> Outcome<(Model, Summary)> {
    let path = out.join("recipe.toml");
    std::fs::write(&path, FINE_TUNE).map_err(|e| Failure::Run(Error::io(&path, e)))?;
    let recipe = Recipe::read(&path, &[format!("train.seed={seed}")], None)?;
    let (mut model, _) = training::load_model(&recipe, registry)?;
    say!(
        "\n4. The tailoring: base.onnx is frozen; every weight gets a chain of three adapters of rank 4 (recipe.toml)."
    );
    say!("   {}", training::trainable_line(&model));
    let schema = training::schema_of(&model, &recipe.loss())?;
    let splits = open_splits(&recipe.tables.data, &schema)?;
    let summary = trained(&mut model, &recipe, &splits)?;
    training::write_results(&model, &recipe)?;
    say!("   Test accuracy {:.3}. Written: finetuned/.", summary.get("test.accuracy").unwrap_or(0.0));
    Ok((model, summary))
}

/// Reads the exported files again and compares them with what is in memory.
fn check_export(out: &Path, base: &Model, tuned: &Model, test: &Digits) -> Outcome {
    let merged = onnx::load(&out.join("finetuned/merged.onnx")).running()?;
    let chain = onnx::load(&out.join("finetuned/chain.onnx")).running()?;
    let inputs = HashMap::from([("pixels".to_string(), test.arrays()["pixels"].clone())]);
    let logits = |model: &Model| -> Result<Tensor> {
        let mut outputs = compare::run(model, &inputs, SessionOptions::default())?;
        outputs.remove("logits").ok_or_else(|| Error::msg("the model gave no logits"))
    };
    let ours = logits(tuned).running()?;
    let far = |model: &Model| -> Result<f64> { Ok(compare::difference(&ours, &logits(model)?)?.0) };
    let (chain_far, merged_far) = (far(&chain).running()?, far(&merged).running()?);
    let same =
        base.params.iter().filter(|(name, p)| chain.params.get(*name).is_some_and(|q| q.tensor == p.tensor)).count();
    say!("\n5. The files, read again, on the 500 inverted test digits, against the network in memory:");
    say!("   finetuned/chain.onnx  (adapters beside the weights): largest difference {chain_far:.1e}");
    say!("   finetuned/merged.onnx (adapters folded in):          largest difference {merged_far:.1e}");
    say!("   {same} of {} weights of base.onnx stand in chain.onnx bit for bit.", base.params.len());
    let fine = chain_far == 0.0 && merged_far < 1e-4 && same == base.params.len();
    if fine { Ok(()) } else { Err(Failure::Run(Error::msg("the exported files do not compute what was trained"))) }
}

fn recipe_of(text: &str, seed: u64, out: &Path, model: &str, output: &str) -> Outcome<Recipe> {
    let mut table: toml::Table = toml::from_str(text).map_err(|e| Failure::Run(Error::msg(e.to_string())))?;
    table.insert("model".to_string(), model.into());
    table.insert("output".to_string(), output.into());
    if let Some(train) = table.get_mut("train").and_then(toml::Value::as_table_mut) {
        train.insert("seed".to_string(), toml::Value::Integer(seed as i64));
    }
    Recipe::of(table, out).running()
}

fn trained(model: &mut Model, recipe: &Recipe, splits: &Splits) -> Outcome<Summary> {
    let folder = &recipe.tables.output;
    std::fs::create_dir_all(folder).map_err(|e| Failure::Run(Error::io(folder, e)))?;
    match train::train(model, &training::run_of(recipe, false), splits, &mut Narrator::default()).running()? {
        Ended::Finished(summary) => Ok(summary),
        Ended::Interrupted { .. } => Err(Failure::Run(Error::msg("interrupted"))),
    }
}

fn dataset(digits: &Digits, schema: &Schema) -> Outcome<Arc<dyn Dataset>> {
    let arrays = Arrays::of(digits.arrays(), &DataConfig::default(), schema).running()?;
    Ok(Arc::new(arrays))
}

fn write_arrays(out: &Path, name: &str, digits: &Digits) -> Outcome {
    let arrays = digits.arrays();
    npz::write(&out.join(name), arrays.iter().map(|(name, tensor)| (name.as_str(), tensor))).running()
}

fn accuracy(model: &Model, digits: &Digits) -> Outcome<f64> {
    let inputs = HashMap::from([("pixels".to_string(), digits.arrays()["pixels"].clone())]);
    let outputs = compare::run(model, &inputs, SessionOptions::default()).running()?;
    let scores = outputs.get("logits").map(Tensor::to_f64s).transpose().running()?.unwrap_or_default();
    let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0) as i64;
    let right = scores.chunks_exact(10).zip(&digits.labels).filter(|(row, label)| best(row) == **label).count();
    Ok(right as f64 / digits.len().max(1) as f64)
}

fn count(model: &Model) -> String {
    grouped(model.count_params(|role| role == Role::Trainable) as u64)
}

/// Tells of every epoch on standard output.
#[derive(Default)]
struct Narrator {
    loss: f64,
}

impl Observer for Narrator {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { loss, .. } => self.loss = *loss,
            Event::Knot { step, link } => say!("   step {step}: knot tied, link {} begins", link + 1),
            Event::Evaluated { split: "eval", step, metrics } => {
                say!("   step {step}: loss {:.4}, test accuracy {:.3}", self.loss, number(metrics, "accuracy"));
            }
            Event::Notice(text) => say!("   {text}"),
            _ => {}
        }
    }
}

fn number(metrics: &Metrics, name: &str) -> f64 {
    metrics.get(name).copied().unwrap_or(f64::NAN)
}
