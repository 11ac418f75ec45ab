//! `sartor sweep`: every combination trained, compared, and gone on with.

mod common;

use common::*;
use sartor_ir::Tensor;
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};

const RATES: &str = "optimizer.learning_rate=3e-4,3e-2";

fn sweep<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["sweep", "--recipe", "R.toml"], more].concat()
}

fn json(folder: &Folder) -> Value {
    serde_json::from_slice(&folder.read("out/sweep.json")).unwrap()
}

/// The folders of the combinations, best first.
fn folders(folder: &Folder) -> Vec<String> {
    let runs = json(folder)["runs"].as_array().unwrap().clone();
    runs.iter().map(|run| run["folder"].as_str().unwrap().to_string()).collect()
}

fn assert_has(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "expected {part:?} in\n{text}"));
}

#[test]
fn two_by_two_and_more_on_a_second_call() {
    let folder = Folder::with_task();
    let short = ["--set", "train.epochs=3", "--grid", RATES, "--grid", "cola.rank=1,2"];
    let printed = folder.ok(&sweep(&short));
    let begun = ["learning_rate=3e-4,rank=1", "learning_rate=3e-4,rank=2", "learning_rate=3e-2,rank=1"];
    for (i, name) in begun.iter().enumerate() {
        assert_has(&printed, &[&format!("[{}/4] {name}\n", i + 1)]);
    }
    assert_has(&printed, &["sorted by eval.accuracy, best first:\n  learning_rate  rank  eval.accuracy"]);
    // Best first, with everything that a training leaves.
    let names = folders(&folder);
    assert!(names[0].starts_with("learning_rate=3e-2,") && names[3].starts_with("learning_rate=3e-4,"), "{names:?}");
    let all = folder.names("out");
    assert_eq!(all[4..], ["sweep.json", "sweep.tsv"]);
    assert!(all[..4].iter().all(|name| folder.path(&format!("out/{name}/merged.onnx")).exists()));
    let found = json(&folder);
    assert_eq!((&found["sort"], &found["order"]), (&"eval.accuracy".into(), &"descending".into()));
    assert_eq!(found["runs"][0]["values"]["optimizer.learning_rate"], 3e-2);
    assert_eq!(found["runs"][0]["summary"]["steps"], 36);
    let accuracy = |i: usize| found["runs"][i]["summary"]["eval.accuracy"].as_f64().unwrap();
    assert!((1..4).all(|i| accuracy(i - 1) >= accuracy(i)) && accuracy(0) > accuracy(3), "{found}");
    let tsv = String::from_utf8(folder.read("out/sweep.tsv")).unwrap();
    let head = "folder\toptimizer.learning_rate\tcola.rank\teval.accuracy\teval.loss\teval.macro_f1\ttest.accuracy";
    assert!(tsv.starts_with(head) && tsv.lines().count() == 5, "{tsv}");
    // A combination is what `train` makes of the same recipe.
    let alone = ["train", "--recipe", "R.toml", "--set", "output=alone", "--set", "train.epochs=3"];
    folder.ok(&[&alone[..], &["--set", "cola.rank=1", "--set", "optimizer.learning_rate=3e-2"]].concat());
    assert_eq!(folder.read("alone/merged.onnx"), folder.read("out/learning_rate=3e-2,rank=1/merged.onnx"));

    // Once more, with one value more: only that is trained.
    let error = folder.fails(2, &sweep(&short));
    assert_has(&error, &["out/ is not empty", "--set output=", "--resume"]);
    let before = folder.read("out/learning_rate=3e-2,rank=1/metrics.jsonl");
    let longer =
        ["--set", "train.epochs=3", "--grid", "optimizer.learning_rate=3e-4,3e-2,1e-2", "--grid", "cola.rank=1,2"];
    let printed = folder.ok(&sweep(&[&longer[..], &["--resume", "--sort", "train/loss"]].concat()));
    assert_has(&printed, &["[3/6] learning_rate=3e-2,rank=1: done before\n", "[5/6] learning_rate=1e-2,rank=1\n"]);
    assert_eq!(printed.matches(": done before").count(), 4);
    assert_eq!((json(&folder)["sort"].as_str(), folders(&folder).len()), (Some("train.loss"), 6));
    assert_eq!(folder.read("out/learning_rate=3e-2,rank=1/metrics.jsonl"), before);
    // The recipe has changed since: nothing is mixed up.
    let error =
        folder.fails(2, &sweep(&["--set", "train.epochs=4", "--grid", RATES, "--grid", "cola.rank=1,2", "--resume"]));
    assert_has(&error, &["learning_rate=3e-4,rank=1 holds a run of another recipe"]);
    // All of them on one page.
    let paths: Vec<String> = folders(&folder).iter().map(|name| format!("out/{name}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    folder.ok(&[&["report"], &paths[..], &["--html", "all.html"]].concat());
}

#[test]
fn several_at_a_time_come_to_the_same() {
    let folder = Folder::with_task();
    let grid = ["--set", "train.epochs=2", "--grid", RATES, "--grid", "train.seed=0,1"];
    folder.ok(&sweep(&grid));
    folder.ok(&sweep(&[&grid[..], &["--set", "output=by-twos", "--jobs", "3"]].concat()));
    for name in folders(&folder) {
        let weights = |out: &str| folder.read(&format!("{out}/{name}/merged.onnx"));
        assert_eq!(weights("out"), weights("by-twos"), "{name}");
    }
    folder.fails(2, &sweep(&[&grid[..], &["--jobs", "0"]].concat()));
}

/// Inputs of which one file is not a number.
fn with_nan(folder: &Folder) {
    let label = Tensor::from_i64s(&[0, 1, 0, 1, 0, 1, 0, 1]);
    write_arrays(&folder.path("nan.npz"), &[("x", Tensor::from_vec([8, 4], vec![f32::NAN; 32])), ("label", label)]);
}

#[test]
fn one_that_fails_is_a_row() {
    let folder = Folder::with_task();
    with_nan(&folder);
    let grid = ["--set", "train.epochs=1", "--grid", "data.train=nan.npz,train.npz"];
    let done = folder.run(&sweep(&grid));
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert_has(&done.err, &["train=nan.npz: failed: step 1: the loss is NaN"]);
    assert_eq!(folders(&folder), ["train=train.npz", "train=nan.npz"]);
    let found = json(&folder);
    assert!(found["runs"][0]["failed"].is_null() && found["runs"][1]["summary"].is_null(), "{found}");
    assert_has(found["runs"][1]["failed"].as_str().unwrap(), &["step 1: the loss is NaN"]);
    assert_has(&done.out, &["  failed\n", "  step 1: the loss is NaN"]);
    // A huge rate: the weights overflow.
    let wild = ["--set", "output=wild", "--grid", "optimizer.learning_rate=1e-2,1e38"];
    let done = folder.run(&sweep(&wild));
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert_has(&done.err, &["learning_rate=1e38: failed: step "]);
    // All of them: the sweep failed.
    let error =
        folder.fails(1, &sweep(&["--set", "output=lost", "--set", "data.train=nan.npz", "--grid", "cola.rank=1,2"]));
    assert_has(&error, &["error: all 2 combinations failed; the first: step 1: the loss is NaN"]);
    assert_eq!(folder.names("lost"), ["rank=1", "rank=2", "sweep.json", "sweep.tsv"]);
}

#[test]
fn everything_is_checked_before_anything_is_trained() {
    let folder = Folder::with_task();
    let fails = |more: &[&str]| {
        let error = folder.fails(2, &sweep(more));
        assert!(!folder.path("out").exists(), "{error}");
        error
    };
    let error = fails(&["--grid", "optimizer.learning_rat=1e-3,1e-2"]);
    assert_has(&error, &["there is no key `optimizer.learning_rat` (did you mean \"learning_rate\"?)"]);
    assert_eq!(error.matches("there is no key").count(), 1, "{error}");
    let error = fails(&["--grid", "optimizer.schedule=linear,cosin"]);
    assert_has(&error, &["combination schedule=cosin", "cosin", "cosine"]);
    let error = fails(&["--grid", "cola.targets=[\"*/query/MatMul\", \"*/value/MatMul\"],[\"*/qeury/MatMul\"]"]);
    assert_has(&error, &["combination targets=_qeury_MatMul", "pattern \"*/qeury/MatMul\" matches no"]);
    let error = fails(&["--grid", "samuel.restart_every=[0.5],[-1]"]);
    assert_has(&error, &["combination restart_every=-1", "restart_every holds -1"]);
    let error = fails(&["--grid", RATES, "--set", "optimizer.learning_rate=1"]);
    assert_has(&error, &["optimizer.learning_rate is given both by --grid and by --set"]);
    assert_has(
        &fails(&["--grid", RATES, "--sort", "eval.acc"]),
        &["--sort eval.acc: there is no such metric", "eval.accuracy"],
    );
    assert_has(&fails(&["--grid", "cola.rank"]), &["--grid cola.rank: expected KEY=VALUE,VALUE,…"]);
}

#[test]
fn a_signal_saves_what_is_trained() {
    let folder = Folder::with_task();
    let long = ["--set", "train.epochs=120", "--set", "train.checkpoint_every=50", "--grid", RATES];
    let mut command = folder.command(&sweep(&long));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    let checkpoints = folder.path("out/learning_rate=3e-4/checkpoints");
    let saved = |name: std::fs::DirEntry| name.file_name().to_string_lossy().starts_with("step-");
    while !std::fs::read_dir(&checkpoints).is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(saved))) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, Some(1), "{}{}", done.out, done.err);
    assert_has(&done.err, &["error: interrupted: 0 of 2 combinations are done; --resume goes on", "saved in "]);
    assert!(!folder.path("out/learning_rate=3e-2").exists());
    let done = folder.run(&sweep(&[&long[..], &["--resume"]].concat()));
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert_has(&done.err, &["resumed at step "]);
    let alone = ["train", "--recipe", "R.toml", "--set", "output=alone", "--set", "optimizer.learning_rate=3e-4"];
    folder.ok(&[&alone[..], &long[..4]].concat());
    assert_eq!(folder.read("alone/merged.onnx"), folder.read("out/learning_rate=3e-4/merged.onnx"));
}
