//! Times training steps of a model: `step RECIPE MODEL.onnx [--batch N] [--sequence N] [--threads N] [--steps N]`.
//!
//! | recipe | trained | loss | optimizer |
//! |---|---|---|---|
//! | `lora-classifier` | LoRA of rank 8 on query and value; the classifier if there is an output `logits`, else a new one on `sentence_embedding` | cross-entropy | AdamW |
//! | `lora-causal-lm` | LoRA of rank 8 on `q_proj` and `v_proj` | cross-entropy of the next token | AdamW |
//! | `images` | every weight and bias | cross-entropy | SGD with momentum |
//!
//! `--samuel MODE` trains five experts with learning rates 1 to 1e-4 instead of one. Inputs are random. Prints the plan, its compile time, the time of every step, the median, and a line of JSON with the
//! peak resident memory of the process, and the memory that the steps took beside what the plan says. With `SARTOR_PROFILE` set also where the time of a step goes.

use clap::{Parser, ValueEnum};
use sartor_bench::memory_mib;
use sartor_ir::rng::Draw;
use sartor_ir::{DType, Error, Graph, Model, Result, Tensor, bail, onnx};
use sartor_passes::{Driver, Registry, options, pipelines};
use sartor_runtime::cpu::machine::measure;
use sartor_runtime::train::summary::peak_rss_mib;
use sartor_runtime::{Key, Params, Session, SessionOptions, profile};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

/// Times training steps of a model
#[derive(Parser)]
struct Args {
    /// What is trained
    recipe: Recipe,
    /// The model
    model: PathBuf,
    /// Samples in a step
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Tokens in a sample
    #[arg(long, default_value_t = 128)]
    sequence: usize,
    /// Threads to compute with
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Five experts in this mode of `samuel` instead of one learning rate
    #[arg(long, value_name = "MODE")]
    samuel: Option<String>,
    /// `lora-classifier`: the operators that get adapters, by commas
    #[arg(long, value_delimiter = ',', default_value = "*query*,*value*")]
    targets: Vec<String>,
    /// Steps that count
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Recipe {
    LoraClassifier,
    LoraCausalLm,
    Images,
}

/// The first steps plan, and touch memory for the first time.
const WARM_UP: u32 = 2;

fn main() -> Result<()> {
    let args = Args::parse();
    let model = prepare(&args, onnx::load(&args.model)?)?;
    let program = model.programs.keys().find(|n| n.starts_with("step")).cloned().unwrap_or_default();
    let inputs = inputs(&args, &model.programs[&program].graph)?;
    let mut session = Session::program(&model, &program, SessionOptions { threads: args.threads })?;
    let mut params = Params::of(&model);
    drop(model);
    let start = Instant::now();
    let planned = session.planned_bytes(&params, &inputs)?.map(|bytes| bytes as f64 / 1_048_576.0);
    println!("plan: {:.1} ms, {planned:.1?} MiB", millis(start));
    println!("{:#?}", session.report());
    let before = own_mib();
    let (mut times, losses) = time_steps(&args, &mut session, &mut params, &inputs)?;
    let taken = own_mib() - before;
    if std::env::var_os("SARTOR_PROFILE").is_some() {
        let events = session.trace(&params, &inputs)?;
        profile::lines(&events, Some(measure(args.threads)?)).iter().for_each(|line| println!("{line}"));
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!("median {median:.1} ms, least {:.1} ms", times[0]);
    let numbers = serde_json::json!({
        "bench": "step", "threads": args.threads, "batch": args.batch, "sequence": args.sequence, "ms_per_step": median,
        "samples_per_s": args.batch as f64 / median * 1e3, "peak_mib": peak_rss_mib(), "planned_mib": planned,
        "taken_mib": taken,
        "first_loss": losses.first(), "last_loss": losses.last(),
    });
    println!("{numbers}");
    Ok(())
}

fn prepare(args: &Args, mut model: Model) -> Result<Model> {
    let registry = Registry::builtin();
    pipelines::prepare(&mut model, &registry)?;
    let passes = registry.build_all(options::parse_pipeline(&pipeline(args, &model))?)?;
    Driver::new().run(&passes, &mut model)?;
    Ok(model)
}

fn pipeline(args: &Args, model: &Model) -> String {
    let head = match model.graph.find_output("logits") {
        Some(_) => "name = \"freeze\"\ntrainable = [\"classifier.*\"]",
        None => "name = \"head\"\ninput = \"sentence_embedding\"\nclasses = 2",
    };
    let targets = format!("{:?}", args.targets);
    let (passes, optimizer) = match args.recipe {
        Recipe::LoraClassifier => {
            (LORA_CLASSIFIER.replace("HEAD", head).replace("TARGETS", &targets), "kind = \"adamw\"")
        }
        Recipe::LoraCausalLm => (LORA_CAUSAL_LM.to_string(), "kind = \"adamw\""),
        Recipe::Images => (IMAGES.to_string(), "kind = \"sgd\"\nmomentum = 0.9"),
    };
    let last = match &args.samuel {
        None => format!("name = \"optimizer\"\n{optimizer}"),
        Some(mode) => format!("name = \"samuel\"\nmode = {mode:?}\nbase = {{ {} }}", optimizer.replace('\n', ", ")),
    };
    format!("{passes}\n[[pass]]\n{last}\n")
}

const LORA_CLASSIFIER: &str = r#"
    [[pass]]
    HEAD
    [[pass]]
    name = "cola"
    rank = 8
    targets = TARGETS
    [[pass]]
    name = "loss"
    [[pass]]
    name = "autodiff"
"#;

const LORA_CAUSAL_LM: &str = r#"
    [[pass]]
    name = "cola"
    rank = 8
    targets = ["q_proj", "v_proj"]
    [[pass]]
    name = "loss"
    kind = "causal-lm"
    [[pass]]
    name = "autodiff"
"#;

const IMAGES: &str = r#"
    [[pass]]
    name = "freeze"
    trainable = ["*.weight", "*.bias"]
    [[pass]]
    name = "loss"
    [[pass]]
    name = "train-mode"
    [[pass]]
    name = "autodiff"
"#;

/// Random tokens or images, and labels below the number of classes.
fn inputs(args: &Args, graph: &Graph) -> Result<HashMap<String, Tensor>> {
    let mut draw = Draw::new(1, "inputs");
    let tokens = [args.batch, args.sequence];
    let mut inputs = HashMap::new();
    for value in graph.inputs() {
        let name = graph.value_name(value);
        let tensor = match name {
            "input_ids" => draw.ints(&tokens, 1000, 20_000),
            "attention_mask" => Tensor::from_vec(tokens, vec![1i64; args.batch * args.sequence]),
            "token_type_ids" => Tensor::zeros(DType::I64, tokens)?,
            "pixel_values" => draw.tensor(&image_shape(args.batch, graph, value)?, -2.0, 2.0).cast(DType::F32)?,
            // Every classifier here has more than one class.
            "label" => draw.ints(&[args.batch], 0, 1),
            "learning_rate" => Tensor::scalar(1e-3f32),
            other => bail!("no data for input \"{other}\""),
        };
        inputs.insert(name.to_string(), tensor);
    }
    Ok(inputs)
}

/// `[batch, channels, height, width]`, all but the batch as the model says.
fn image_shape(batch: usize, graph: &Graph, value: sartor_ir::Value) -> Result<Vec<usize>> {
    let shape = graph.ty(value).and_then(|ty| ty.shape()).unwrap_or_default();
    let known = |dim: &sartor_ir::Dim| dim.known().and_then(|n| usize::try_from(n).ok());
    let rest: Option<Vec<usize>> = shape.iter().skip(1).map(known).collect();
    let rest = rest.ok_or_else(|| Error::msg("the model leaves the size of its images open"))?;
    Ok([vec![batch], rest].concat())
}

/// Runs the steps; the milliseconds of those that count, and all losses.
fn time_steps(
    args: &Args,
    session: &mut Session,
    params: &mut Params,
    inputs: &HashMap<String, Tensor>,
) -> Result<(Vec<f64>, Vec<f32>)> {
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for step in 0..WARM_UP + args.steps {
        let start = Instant::now();
        let outputs = session.run(params, inputs, Key { seed: 0, step: u64::from(step) })?;
        let time = millis(start);
        let Some(loss) = outputs.get("loss") else { bail!("the step has no output \"loss\"") };
        losses.push(loss.item::<f32>()?);
        println!("step {step}: {time:.1} ms, loss {:?}", losses.last());
        if step >= WARM_UP {
            times.push(time);
        }
    }
    Ok((times, losses))
}

/// Resident memory that no file stands behind, in MiB: without the mapped weights.
fn own_mib() -> f64 {
    memory_mib("/proc/self/status", "RssAnon").unwrap_or(f64::NAN)
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
