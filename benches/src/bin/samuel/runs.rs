//! Runs: a recipe and a folder each, made once.
//!
//! `RUNS/TASK/ROW-seedN.toml` is the recipe, `RUNS/TASK/ROW-seedN/` what `sartor train` leaves (without the models), and
//! `cost.json` in it, which is written last: how the run ended and what it took. A run is done if its `cost.json` says so and its
//! recipe is still the same. While it runs its recipe is locked, so that several series can work in one folder. A run that was
//! stopped goes on from its last checkpoint; `spent` in its folder holds the processor seconds until then (with those since the
//! checkpoint, which are spent twice).
//!
//! What a run that ended gave is one line of `docs/results/samuel.jsonl` too, which is kept beside the tables: folders of runs are large and
//! do not outlive their machine. A run without a folder is as its line says, if its recipe is still the same.

use crate::tasks::{Judged, Row, Task};
use sartor_bench::{beside, cache, number, process_seconds, processor};
use sartor_ir::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
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

fn recipe_path(runs: &Runs, task: &Task, row: &Row, seed: usize) -> PathBuf {
    runs.folder.join(task.name).join(format!("{}-seed{seed}.toml", row.name))
}

fn recipe(task: &Task, row: &Row, seed: usize) -> String {
    let assets = cache().join("assets").display().to_string();
    task.recipe(row, seed, &assets, &format!("{}-seed{seed}", row.name))
}

/// The file with a line for every run that ended.
fn record_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results/samuel.jsonl")
}

/// What names a run in the record: task, row, seed, and the checksum of its recipe wherever the assets are.
fn key(task: &Task, row: &Row, seed: usize) -> [(&'static str, Value); 4] {
    let text = task.recipe(row, seed, "{assets}", "");
    let sum = format!("{:08x}", crc32fast::hash(text.as_bytes()));
    [("task", json!(task.name)), ("row", json!(row.name)), ("seed", json!(seed)), ("recipe", json!(sum))]
}

/// Adds a run that ended to the record.
fn write_record(task: &Task, row: &Row, seed: usize, run: &Run) -> Result<()> {
    let mut line: Map<String, Value> = key(task, row, seed).into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    match run {
        Run::Finished(run) => {
            line.insert("accuracy".into(), json!(run.accuracy));
            line.insert("validation".into(), json!(run.validation));
            line.insert("steps".into(), json!(run.steps));
            line.insert("processor_seconds".into(), json!(run.seconds));
        }
        Run::Diverged(seconds) => {
            line.insert("diverged".into(), json!(true));
            line.insert("processor_seconds".into(), json!(seconds));
        }
        Run::Missing(_) => return Ok(()),
    }
    line.insert("processor".into(), json!(processor()));
    let path = record_path();
    let file = File::options().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(format!("{}\n", Value::Object(line)).as_bytes()));
    written.map_err(|e| Error::io(&path, e))
}

/// The folder of the runs, and what is recorded of others.
pub struct Runs {
    folder: PathBuf,
    record: Vec<Value>,
}

impl Runs {
    /// `fresh`: what is recorded does not count.
    pub fn new(folder: &Path, fresh: bool) -> Result<Runs> {
        let text = if fresh { String::new() } else { std::fs::read_to_string(record_path()).unwrap_or_default() };
        let lines = text.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>();
        let record = lines.map_err(|e| Error::msg(format!("{}: {e}", record_path().display())))?;
        Ok(Runs { folder: folder.to_path_buf(), record })
    }
    /// How many seeds any recorded run has.
    pub fn seeds(&self) -> usize {
        self.record.iter().filter_map(|line| line["seed"].as_u64()).max().map_or(0, |seed| seed as usize + 1)
    }
    /// On what the recorded runs of a task were made, what made the first of them first: the grid.
    pub fn processors(&self, task: &Task) -> Vec<&str> {
        let lines = self.record.iter().filter(|line| line["task"] == task.name);
        let mut found: Vec<&str> = lines.filter_map(|line| line["processor"].as_str()).collect();
        let mut known = std::collections::HashSet::new();
        found.retain(|processor| known.insert(*processor));
        found
    }
    /// Whether a run was made on another processor than the task's first recorded run.
    pub fn is_elsewhere(&self, task: &Task, row: &Row, seed: usize) -> bool {
        let here = self.line(task, row, seed).and_then(|line| line["processor"].as_str());
        here.is_some_and(|here| self.processors(task).first().is_some_and(|first| *first != here))
    }
    /// The last line of a run.
    fn line(&self, task: &Task, row: &Row, seed: usize) -> Option<&Value> {
        let key = key(task, row, seed);
        self.record.iter().rev().find(|line| key.iter().all(|(name, value)| line[name] == *value))
    }
}

/// What a run's last line in the record says.
fn recorded(runs: &Runs, task: &Task, row: &Row, seed: usize) -> Option<Run> {
    let line = runs.line(task, row, seed)?;
    let seconds = line["processor_seconds"].as_f64()?;
    if line["diverged"] == true {
        return Some(Run::Diverged(seconds));
    }
    let (accuracy, steps) = (line["accuracy"].as_f64()?, line["steps"].as_f64()?);
    // Of the oldest lines only the cell that validation chose is known.
    let chosen = (line["chosen_by_validation"] == true).then_some(1.0);
    Some(Run::Finished(Finished { accuracy, validation: line["validation"].as_f64().or(chosen), steps, seconds }))
}

/// What is known of a run.
pub fn read(runs: &Runs, task: &Task, row: &Row, seed: usize) -> Run {
    if !row.ready {
        return Run::Missing("waits for the grid".to_string());
    }
    match read_run(runs, task, row, seed) {
        Run::Missing(why) => recorded(runs, task, row, seed).unwrap_or(Run::Missing(why)),
        run => run,
    }
}

/// What a run's folder says.
fn read_run(runs: &Runs, task: &Task, row: &Row, seed: usize) -> Run {
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
pub fn make(runs: &Runs, task: &Task, row: &Row, seed: usize, threads: usize) -> Result<()> {
    if !row.ready {
        return Ok(());
    }
    let path = recipe_path(runs, task, row, seed);
    let name = format!("{} {}, seed {seed}", task.name, row.name);
    std::fs::create_dir_all(runs.folder.join(task.name)).map_err(|e| Error::io(&runs.folder, e))?;
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
    std::fs::rename(&temporary, &target).map_err(|e| Error::io(&target, e))?;
    write_record(task, row, seed, &read_run(runs, task, row, seed))
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
