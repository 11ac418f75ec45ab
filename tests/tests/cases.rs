//! Text cases: `tests/cases/<pass>/*.txt`, each a model before, passes, and the model after.
//!
//! ```text
//! # What the case is about.
//! pass: fold(max_bytes=100)          one or more lines
//! numbers: same                      optional: both models give the same outputs on random inputs
//! ---- before
//! <the model's text>
//! ---- after                         or `---- error`, and the message; then the model before may be a wrong one
//! <the model's text>
//! ```
//! `BLESS=1 cargo test -p sartor-tests --test cases` rewrites what stands after the second line of dashes.

use libtest_mimic::{Arguments, Failed, Trial};
use sartor_ir::rng::Draw;
use sartor_ir::{DType, Model, Tensor, eval, text, verify};
use sartor_passes::{Driver, Registry, options};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let trials = files.into_iter().map(|path| {
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        Trial::test(name, move || run(&path).map_err(Failed::from))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "txt") {
            files.push(path);
        }
    }
}

/// How large tensors may be to stand in a case.
const MAX_ELEMENTS: usize = 256;

fn run(path: &Path) -> Result<(), String> {
    let content = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (head, rest) = content.split_once("---- before\n").ok_or("the line \"---- before\" is missing")?;
    let (before_text, wanted) = rest.split_once("---- ").ok_or("the line \"---- after\" is missing")?;
    let before = text::parse(before_text).map_err(|e| format!("before: {e}"))?;
    if !wanted.starts_with("error") {
        verify::verify(&before).map_err(|e| format!("before: {e}"))?;
    }
    let mut after = before.clone();
    let found = match transform(head, &mut after) {
        Ok(()) => format!("after\n{}", text::print(&after, &text::PrintOptions { max_elements: MAX_ELEMENTS })),
        Err(error) => format!("error\n{error}\n"),
    };
    if found != wanted {
        if std::env::var_os("BLESS").is_some_and(|v| v == "1") {
            let new = format!("{head}---- before\n{before_text}---- {found}");
            return std::fs::write(path, new).map_err(|e| e.to_string());
        }
        return Err(format!(
            "{}: expected\n{wanted}\nfound\n{found}\nBLESS=1 cargo test -p sartor-tests --test cases rewrites the file",
            path.display()
        ));
    }
    if found.starts_with("after") && value_of(head, "numbers").contains(&"same") {
        same_numbers(&before, &after)?;
    }
    Ok(())
}

fn value_of<'a>(head: &'a str, key: &str) -> Vec<&'a str> {
    head.lines().filter_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim())).collect()
}

fn transform(head: &str, model: &mut Model) -> Result<(), String> {
    let lines = value_of(head, "pass");
    if lines.is_empty() {
        return Err("the case names no pass".to_string());
    }
    let calls: Result<Vec<_>, _> = lines.into_iter().map(options::parse_invocation).collect();
    let passes = Registry::builtin().build_all(calls.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    Driver::new().run(&passes, model).map(drop).map_err(|e| e.to_string())
}

/// Both models on random inputs; symbolic axes have length 3.
fn same_numbers(before: &Model, after: &Model) -> Result<(), String> {
    let mut draw = Draw::new(7, "cases");
    let mut inputs = HashMap::new();
    for value in before.graph.inputs() {
        let ty = before.graph.ty(value).ok_or("an input has no type")?;
        let shape: Vec<usize> =
            ty.shape().unwrap_or(&[]).iter().map(|d| d.eval(&|_| Some(3)).unwrap_or(3) as usize).collect();
        let dtype = ty.dtype().unwrap_or(DType::F32);
        let tensor = if dtype.is_float() { draw.tensor(&shape, -1.0, 1.0) } else { draw.ints(&shape, 0, 1) };
        inputs.insert(before.graph.value_name(value).to_string(), tensor.cast(dtype).map_err(|e| e.to_string())?);
    }
    let run = |model: &Model| eval::run(model, &inputs).map_err(|e| format!("evaluation: {e}"));
    for (output, (a, b)) in before.graph.outputs.iter().zip(run(before)?.iter().zip(&run(after)?)) {
        if distance(a, b) > 1e-5 {
            return Err(format!("output \"{}\" differs: {a:?} before, {b:?} after", output.name));
        }
    }
    Ok(())
}

/// The largest difference relative to 1 + |a|; infinite if type or shape differ.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    if (a.dtype(), a.shape()) != (b.dtype(), b.shape()) {
        return f64::INFINITY;
    }
    let (Ok(x), Ok(y)) = (a.to_f64s(), b.to_f64s()) else { return if a == b { 0.0 } else { f64::INFINITY } };
    x.iter().zip(&y).map(|(p, q)| if p == q { 0.0 } else { (p - q).abs() / (1.0 + p.abs()) }).fold(0.0, f64::max)
}
