//! Times LoRA training steps of a sentence encoder: `step MODEL.onnx [batch] [sequence] [threads] [steps]`.
//!
//! Adapters of rank 8 on every query and value projection, AdamW. The model's own classifier is trained if it has an output `logits`, else a
//! new one on `sentence_embedding`. Prints the plan, its compile time, the time of every step, the median, and a line of JSON with the peak resident memory.

use sartor_ir::rng::Draw;
use sartor_ir::{DType, Error, Model, Result, Tensor, onnx};
use sartor_passes::{Driver, Registry, options, pipelines};
use sartor_runtime::cpu::machine::measure;
use sartor_runtime::train::summary::peak_rss_mib;
use sartor_runtime::{Key, Params, Session, SessionOptions, profile};
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let path = args.first().ok_or_else(|| Error::msg("usage: step MODEL.onnx [batch] [sequence] [threads] [steps]"))?;
    let (batch, sequence, threads, steps) = (number(1, 16), number(2, 128), number(3, 2), number(4, 12));
    let model = prepare(onnx::load(Path::new(path))?)?;
    let program = model.programs.keys().find(|n| n.starts_with("step")).cloned().unwrap_or_default();
    let mut session = Session::program(&model, &program, SessionOptions { threads })?;
    let mut params = Params::of(&model);
    let inputs = inputs(&session, batch, sequence)?;
    drop(model);
    let start = Instant::now();
    let bytes = session.planned_bytes(&inputs)?;
    println!("plan: {:.1} ms, {:.1} MiB", millis(start), bytes.unwrap_or(0) as f64 / 1048576.0);
    println!("{:#?}", session.report());
    let mut times = Vec::new();
    for step in 0..steps as u64 {
        let start = Instant::now();
        let outputs = session.run(&mut params, &inputs, Key { seed: 0, step })?;
        let time = millis(start);
        let loss = outputs.get("loss").map(|t| t.item::<f32>()).transpose()?;
        println!("step {step}: {time:.1} ms, loss {loss:?}");
        // The first two plan and touch memory for the first time.
        if step >= 2 || steps <= 2 {
            times.push(time);
        }
    }
    if std::env::var_os("SARTOR_PROFILE").is_some() {
        let events = session.trace(&params, &inputs)?;
        profile::lines(&events, Some(measure(threads)?)).iter().for_each(|line| println!("{line}"));
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!("median {median:.1} ms, least {:.1} ms", times[0]);
    let numbers = serde_json::json!({
        "bench": "step", "threads": threads, "batch": batch, "sequence": sequence, "ms_per_step": median,
        "samples_per_s": batch as f64 / median * 1e3, "peak_mib": peak_rss_mib(),
    });
    println!("{numbers}");
    Ok(())
}

fn prepare(mut model: Model) -> Result<Model> {
    let classifier = match model.graph.find_output("logits") {
        Some(_) => "name = \"freeze\"\ntrainable = [\"classifier.*\"]",
        None => "name = \"head\"\ninput = \"sentence_embedding\"\nclasses = 2",
    };
    let pipeline = r#"
        [[pass]]
        CLASSIFIER
        [[pass]]
        name = "cola"
        rank = 8
        targets = ["*query*", "*value*"]
        [[pass]]
        name = "loss"
        [[pass]]
        name = "autodiff"
        [[pass]]
        name = "optimizer"
    "#
    .replace("CLASSIFIER", classifier);
    let registry = Registry::builtin();
    pipelines::prepare(&mut model, &registry)?;
    let passes = registry.build_all(options::parse_pipeline(&pipeline)?)?;
    Driver::new().run(&passes, &mut model)?;
    Ok(model)
}

fn inputs(session: &Session, batch: usize, sequence: usize) -> Result<HashMap<String, Tensor>> {
    let mut draw = Draw::new(1, "inputs");
    let mut inputs = HashMap::new();
    for name in session.input_names() {
        let tensor = match name {
            "input_ids" => draw.ints(&[batch, sequence], 1000, 20_000),
            "attention_mask" => Tensor::from_vec([batch, sequence], vec![1i64; batch * sequence]),
            "token_type_ids" => Tensor::zeros(DType::I64, [batch, sequence])?,
            "label" => draw.ints(&[batch], 0, 1),
            "learning_rate" => Tensor::scalar(1e-3f32),
            other => return Err(Error::msg(format!("no data for input \"{other}\""))),
        };
        inputs.insert(name.to_string(), tensor);
    }
    Ok(inputs)
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
