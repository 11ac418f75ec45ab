//! What shut gates are worth on the clock: `clock [MODEL.onnx…]`, by default MobileNetV2 at 224 × 224 and ResNet-50; texts have 128 tokens.
//!
//! A model gets gates that are the same for every input: all open, some layers or channels shut, drawn from a seed. Each variant is run in this runtime (one
//! thread, batches of 1 and 32) and, hardened to `skip`, in ONNX Runtime, all of a model by turns of a few runs, beside the model without gates. Operations are counted by the cost
//! model, gate networks included. Nothing is trained: this is about time, not about accuracy. Writes `benches/results/gates.md`.
//!
//! `clock --recipe RECIPE.toml BACKBONE.onnx GATED.onnx` times a network with trained gates instead, on the test data of the recipe (`trained.rs`), and writes
//! `benches/results/gates-NAME.md`, where NAME is that of the gated file.

mod trained;

use clap::Parser;
use sartor_bench::{Series, cache, output_json, peer_script, record, short, table};
use sartor_ir::rng::Draw;
use sartor_ir::{DType, Model, Result, Tensor, Type, bail, onnx};
use sartor_passes::gate::Record;
use sartor_passes::{Driver, Registry, options, pipelines};
use sartor_runtime::{Key, Params, Session, SessionOptions};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Times gated models whose gates are shut by hand
#[derive(Parser)]
struct Args {
    /// The models, with an image or the tokens of a text as input; with --recipe the one without gates and the one with trained gates
    models: Vec<PathBuf>,
    /// The recipe on whose test data a network with trained gates is timed
    #[arg(long, value_name = "R.toml")]
    recipe: Option<PathBuf>,
    /// With --recipe: gates that are open for at most this share of the examples are trimmed in one variant
    #[arg(long, default_value_t = 0.01)]
    rare: f64,
    /// With --recipe: how many examples are taken; 0: all
    #[arg(long, default_value_t = 0)]
    examples: usize,
    /// What the table is called besides `gates`
    #[arg(long)]
    name: Option<String>,
    /// Options of `gate`, as key=value
    #[arg(long, value_delimiter = ',')]
    keys: Vec<String>,
    /// Runs of each variant; if left out 60, with --recipe 3 times the test data
    #[arg(long)]
    rounds: Option<usize>,
    /// Runs of each variant with a batch of 32
    #[arg(long, default_value_t = 10)]
    batches: usize,
}

impl Args {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(60)
    }
}

/// So many runs follow each other before the next variant has its turn.
const TURN: usize = 5;

/// Which gates are open.
struct Variant {
    name: &'static str,
    layers: f64,
    channels: f64,
}

const VARIANTS: &[Variant] = &[
    Variant { name: "all gates open", layers: 1.0, channels: 1.0 },
    Variant { name: "half of the channels", layers: 1.0, channels: 0.5 },
    Variant { name: "a quarter of the channels", layers: 1.0, channels: 0.25 },
    Variant { name: "half of the blocks", layers: 0.5, channels: 1.0 },
    Variant { name: "no block", layers: 0.0, channels: 1.0 },
    Variant { name: "half of the blocks, half of the channels", layers: 0.5, channels: 0.5 },
];

fn main() -> Result<()> {
    let mut args = Args::parse();
    if let Some(recipe) = &args.recipe {
        let [backbone, gated] = &args.models[..] else {
            bail!("--recipe wants two models: the one without gates, and the one with trained gates")
        };
        let name = &args.name.clone().unwrap_or_else(|| stem(gated));
        let (rounds, &Args { rare, examples, .. }) = (args.rounds.unwrap_or(3), &args);
        return trained::Trained { recipe, backbone, gated, rare, rounds, examples, name }.measure();
    }
    if args.models.is_empty() {
        args.models =
            ["mobilenetv2-ts17.onnx", "resnet50-ts17.onnx"].map(|name| cache().join("assets").join(name)).into();
    }
    let folder = tempfile::tempdir().map_err(|e| sartor_ir::Error::msg(e.to_string()))?;
    let (mut rows, mut version) = (Vec::new(), String::new());
    for model in &args.models {
        rows.extend(measure(&args, model, folder.path(), &mut version)?);
    }
    let head = [
        "model",
        "open",
        "fewer operations",
        "batch 1, ms",
        "times as fast",
        "of the operations",
        "batch 32, ms",
        "times as fast",
        "of the operations",
        "ONNX Runtime, ms",
        "times as fast",
        "of the operations",
    ];
    let body = format!(
        "{}{} runs of each variant, by turns of {TURN}, {} with a batch of 32; f32, one thread, medians; ONNX Runtime {version} with \
         `harden`, batch 1. \"Of the operations\": times as fast, as a share of how many times fewer operations there are. `clock` measures.\n\n{}",
        if args.keys.is_empty() { String::new() } else { format!("`gate({})`. ", args.keys.join(", ")) },
        args.rounds(),
        args.batches,
        table(&head, &rows)
    );
    // Another choice of gates is another table.
    let name: String = args.keys.iter().map(|key| format!("-{}", key.replace('=', "-"))).collect();
    let name = args.name.as_ref().map_or(name, |given| format!("-{given}"));
    record(&format!("gates{name}"), "Gates on the clock", &body)
}

/// The rows of one model.
fn measure(args: &Args, path: &Path, folder: &Path, version: &mut String) -> Result<Vec<Vec<String>>> {
    let registry = Registry::builtin();
    let mut plain = onnx::load(path)?;
    pipelines::prepare(&mut plain, &registry)?;
    let mut models = vec![plain.clone()];
    let mut files = vec![folder.join("plain.onnx")];
    onnx::save(&plain, &files[0], &onnx::SaveOptions::default())?;
    for (i, variant) in VARIANTS.iter().enumerate() {
        let mut model = passed(&plain, &format!("[[pass]]\nname = \"gate\"\n{}\n", args.keys.join("\n")))?;
        shut(&mut model, variant)?;
        let hard = passed(&model, "[[pass]]\nname = \"harden\"\n")?;
        files.push(folder.join(format!("{i}.onnx")));
        onnx::save(&hard, &files[i + 1], &onnx::SaveOptions::default())?;
        models.push(model);
    }
    let costs = models.iter().map(cost).collect::<Result<Vec<f64>>>()?;
    for model in &mut models {
        pipelines::prepare_inference(model, &registry)?;
    }
    let one = time(&models, 1, args.rounds())?;
    let many = time(&models, 32, args.batches)?;
    let theirs = onnx_runtime(&models[0], &files, args.rounds(), version)?;
    let name = stem(path);
    let row = |i: usize| {
        let fewer = 1.0 / costs[i];
        let open = if i == 0 { "without gates" } else { VARIANTS[i - 1].name };
        let mut row = vec![name.clone(), open.to_string(), format!("{fewer:.2} ×")];
        for times in [&one, &many, &theirs] {
            let faster = times[0] / times[i];
            row.extend([short(times[i]), format!("{faster:.2} ×"), format!("{:.2}", faster / fewer)]);
        }
        row
    };
    Ok((0..models.len()).map(row).collect())
}

/// A copy of a model after some passes.
fn passed(model: &Model, pipeline: &str) -> Result<Model> {
    let mut model = model.clone();
    Driver::new().run(&Registry::builtin().build_all(options::parse_pipeline(pipeline)?)?, &mut model)?;
    Ok(model)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().to_string()
}

fn one_thread() -> SessionOptions {
    SessionOptions { threads: 1 }
}

/// Sets the gates: weights 0, biases 1 where a gate is open. Of every group a share of the channels, of all blocks a share of the layers.
fn shut(model: &mut Model, variant: &Variant) -> Result<()> {
    let Some(record) = Record::load(model)? else { bail!("there are no gates") };
    let mut draw = Draw::new(1, "gates");
    let mut chosen = |count: usize, share: f64| {
        let mut numbers: Vec<usize> = (0..count).collect();
        (1..count).rev().for_each(|i| numbers.swap(i, draw.int(0, i as i64) as usize));
        let mut open = vec![0f32; count];
        numbers.iter().take((count as f64 * share).round() as usize).for_each(|&i| open[i] = 1.0);
        open
    };
    let layers = chosen(record.blocks.len(), variant.layers);
    for (block, layer) in record.blocks.iter().zip(layers) {
        let mut open = if block.layer.is_some() { vec![layer] } else { Vec::new() };
        block.groups.iter().for_each(|group| open.extend(chosen(group.channels, variant.channels)));
        if let Some(param) = model.params.get_mut(&block.bias) {
            param.tensor = Tensor::from_vec([open.len()], open);
        }
    }
    Ok(())
}

/// What gates leave of the operations of one example.
fn cost(model: &Model) -> Result<f64> {
    if Record::load(model)?.is_none() {
        return Ok(1.0);
    }
    let model = passed(model, "[[pass]]\nname = \"gate-outputs\"\n")?;
    let found =
        Session::new(&model, one_thread())?.run(&mut Params::of(&model), &inputs(&model, 1)?, Key::default())?;
    let Some(share) = found.get("flops") else { bail!("the model does not say what it costs") };
    Ok(share.to_f64s()?[0])
}

/// Images or texts of 128 tokens for the graph's inputs.
fn inputs(model: &Model, batch: usize) -> Result<HashMap<String, Tensor>> {
    let mut inputs = HashMap::new();
    for value in model.graph.inputs() {
        let name = model.graph.value_name(value);
        let Some(shape) = model.graph.ty(value).and_then(|t| t.shape()) else { bail!("input \"{name}\" has no shape") };
        let open = if shape.len() == 2 { 128 } else { 224 };
        let mut dims: Vec<usize> = shape.iter().map(|d| d.known().map_or(open, |n| n as usize)).collect();
        dims[0] = batch;
        let tensor = match model.graph.ty(value).and_then(Type::dtype) {
            // Any token, and none that is masked.
            Some(DType::I64) => Tensor::from_vec(dims.clone(), vec![1i64; dims.iter().product()]),
            _ => Draw::new(2, "images").tensor(&dims, -2.0, 2.0).cast(DType::F32)?,
        };
        inputs.insert(name.to_string(), tensor);
    }
    Ok(inputs)
}

/// Median milliseconds of every model, by turns of a few runs: a process that runs one model has in its caches what that model left there. The first two runs of a turn do not count.
fn time(models: &[Model], batch: usize, rounds: usize) -> Result<Vec<f64>> {
    let mut ready = Vec::new();
    for model in models {
        let session = Session::new(model, one_thread())?;
        ready.push((session, Params::of(model), inputs(model, batch)?, Series::default()));
    }
    for round in (0..rounds).step_by(TURN) {
        for (session, params, inputs, times) in &mut ready {
            for run in 0..TURN.min(rounds - round) + 2 {
                let start = Instant::now();
                session.run(params, inputs, Key::default())?;
                if run >= 2 {
                    times.0.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
    }
    Ok(ready.into_iter().map(|(.., times)| times.median()).collect())
}

/// The same in ONNX Runtime.
fn onnx_runtime(model: &Model, files: &[PathBuf], rounds: usize, version: &mut String) -> Result<Vec<f64>> {
    let shapes: HashMap<String, Vec<usize>> =
        inputs(model, 1)?.into_iter().map(|(name, x)| (name, x.shape().to_vec())).collect();
    let mut script = peer_script("venv", "ort_clock.py")?;
    let shapes = serde_json::json!(shapes).to_string();
    let found = output_json(script.arg(rounds.to_string()).arg(TURN.to_string()).arg(shapes).args(files))?;
    *version = found["version"].as_str().unwrap_or_default().to_string();
    Ok(found["ms"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64).collect())
}
