//! Runs: a recipe and a folder each, made once.
//!
//! `RUNS/TASK/ROW-seedN.toml` is the recipe, `RUNS/TASK/ROW-seedN/` what `sartor train` leaves (without the models), and
//! `cost.json` in it, which is written last: how the run ended and what it took. A run is done if its `cost.json` says so and its
//! recipe is still the same. While it runs its recipe is locked, so that several series can work in one folder. A run that was
//! stopped goes on from its last checkpoint; `spent` in its folder holds the processor seconds until then (with those since the
//! checkpoint, which are spent twice).

use crate::tasks::{Judged, Row, Task};
use sartor_bench::{beside, cache, number, process_seconds};
use sartor_ir::{Error, Result};
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How a run ended.
#[derive(Clone)]
pub enum Run {
    Finished(Finished),
    /// Loss or gradient were not finite; the processor seconds until then.
    Diverged(f64),
    /// It was not made, or `sartor` refused it: why.
    Missing(String),
}

#[derive(Clone, Copy)]
pub struct Finished {
    pub accuracy: f64,
    /// On the evaluation data, where it serves that.
    pub validation: Option<f64>,
    pub steps: f64,
    /// Processor seconds, of user and system.
    pub seconds: f64,
}

/// What `sartor train` leaves that takes space and is not read here.
const LARGE: [&str; 7] =
    ["merged.onnx", "merged.onnx.data", "chain.onnx", "chain.onnx.data", "adapter", "tensorboard", "checkpoints"];

/// Steps between two checkpoints of a run.
const CHECKPOINT_EVERY: u64 = 100;

fn recipe_path(runs: &Path, task: &Task, row: &Row, seed: usize) -> PathBuf {
    runs.join(task.name).join(format!("{}-seed{seed}.toml", row.name))
}

fn recipe(task: &Task, row: &Row, seed: usize) -> String {
    let assets = cache().join("assets").display().to_string();
    task.recipe(row, seed, &assets, &format!("{}-seed{seed}", row.name))
}

/// What is known of a run.
pub fn read(runs: &Path, task: &Task, row: &Row, seed: usize) -> Run {
    if !row.ready {
        return Run::Missing("waits for the grid".to_string());
    }
    let path = recipe_path(runs, task, row, seed);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    if text != recipe(task, row, seed) {
        return Run::Missing(if text.is_empty() { "not run" } else { "run with another recipe" }.to_string());
    }
    read_folder(&path.with_extension(""), task.judged).unwrap_or_else(|e| Run::Missing(e.to_string()))
}

fn read_folder(folder: &Path, judged: Judged) -> Result<Run> {
    let Ok(cost) = read_json(&folder.join("cost.json")) else { return Ok(Run::Missing("not finished".to_string())) };
    let seconds = number(&cost, "processor_seconds")?;
    match cost["outcome"].as_str() {
        Some("finished") => {}
        Some("diverged") => return Ok(Run::Diverged(seconds)),
        _ => return Ok(Run::Missing(cost["message"].as_str().unwrap_or_default().to_string())),
    }
    let summary = read_json(&folder.join("summary.json"))?;
    let (test, steps) = (number(&summary, "test.accuracy")?, number(&summary, "steps")?);
    let (accuracy, validation) = match judged {
        Judged::AtTheEnd => (test, summary["eval.accuracy"].as_f64()),
        Judged::BeforeAndAfter(step) => ((evaluated(folder, step)? + test) / 2.0, None),
    };
    Ok(Run::Finished(Finished { accuracy, validation, steps, seconds }))
}

/// The accuracy of the evaluation after a step.
fn evaluated(folder: &Path, step: u64) -> Result<f64> {
    let path = folder.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found = lines.find(|line| line["step"] == step && line["eval/accuracy"].is_number());
    number(&found.unwrap_or_default(), "eval/accuracy")
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::msg(format!("{}: {e}", path.display())))
}

/// Makes a run, unless it is done, cannot be made yet, or another series is at it.
pub fn make(runs: &Path, task: &Task, row: &Row, seed: usize, threads: usize) -> Result<()> {
    if !row.ready {
        return Ok(());
    }
    let path = recipe_path(runs, task, row, seed);
    let name = format!("{} {}, seed {seed}", task.name, row.name);
    std::fs::create_dir_all(runs.join(task.name)).map_err(|e| Error::io(runs, e))?;
    let lock = File::options().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
    if lock.try_lock().is_err() {
        println!("{name}: another series is at it");
        return Ok(());
    }
    if !matches!(read(runs, task, row, seed), Run::Missing(_)) {
        return Ok(());
    }
    let (folder, text) = (path.with_extension(""), recipe(task, row, seed));
    if std::fs::read_to_string(&path).is_ok_and(|known| known != text) || folder.join("cost.json").exists() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
    }
    let cost = train(&path, threads)?;
    println!("{name}: {}, {:.1} s", cost["message"].as_str().unwrap_or_default(), number(&cost, "processor_seconds")?);
    for large in LARGE {
        let _ = std::fs::remove_file(folder.join(large)).or_else(|_| std::fs::remove_dir_all(folder.join(large)));
    }
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let (target, temporary) = (folder.join("cost.json"), folder.join("cost.json.tmp"));
    std::fs::write(&temporary, format!("{cost:#}\n")).map_err(|e| Error::io(&temporary, e))?;
    std::fs::rename(&temporary, &target).map_err(|e| Error::io(&target, e))
}

/// Runs `sartor train`, from its last checkpoint if there is one: what it took, and how it ended.
fn train(recipe: &Path, threads: usize) -> Result<Value> {
    let (start, spent) = (Instant::now(), recipe.with_extension("").join("spent"));
    let before: f64 = std::fs::read_to_string(&spent).ok().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let errors = recipe.with_extension("errors");
    let file = File::create(&errors).map_err(|e| Error::io(&errors, e))?;
    let mut child = Command::new(beside("sartor")?)
        .args(["train", "--resume", "--recipe"])
        .arg(recipe)
        .args(["--set", &format!("train.threads={threads}")])
        .args(["--set", &format!("train.checkpoint_every={CHECKPOINT_EVERY}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .map_err(|e| Error::msg(e.to_string()))?;
    let mut seconds = 0.0;
    let status = loop {
        // Until it is waited for, a process that has ended can still be read.
        seconds = process_seconds(child.id()).unwrap_or(seconds);
        if let Some(status) = child.try_wait().map_err(|e| Error::msg(e.to_string()))? {
            break status;
        }
        // Without the folder nothing is spent yet.
        let _ = std::fs::write(&spent, format!("{:.2}", before + seconds));
        std::thread::sleep(Duration::from_millis(500));
    };
    let text = std::fs::read_to_string(&errors).map_err(|e| Error::io(&errors, e))?;
    let _ = std::fs::remove_file(&errors);
    let (outcome, message) = judge(status, &text);
    let message = message.replace(&format!("recipe {}: ", recipe.display()), "");
    Ok(json!({
        "outcome": outcome,
        "message": message,
        "processor_seconds": before + seconds,
        "wall_seconds": start.elapsed().as_secs_f64(),
        "threads": threads,
    }))
}

fn judge(status: ExitStatus, text: &str) -> (&'static str, String) {
    let error = text.lines().find(|line| line.starts_with("error")).or(text.lines().last()).unwrap_or_default();
    match status.success() {
        true => ("finished", "finished".to_string()),
        false if text.contains("the weights were not touched") => ("diverged", error.to_string()),
        // A long list of known keys adds nothing.
        false => ("failed", format!("{} ({})", error.chars().take(200).collect::<String>(), status)),
    }
}
