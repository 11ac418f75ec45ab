//! ONNX's own node tests, and its tests of kind `simple`, against the reference evaluation: each is imported, lifted to the
//! internal opset, inferred and run, and its outputs are compared with the expected ones.
//!
//! The files are dumped by `tests/assets/dump_onnx_tests.py` into the assets folder (`$SARTOR_ASSETS`, by default
//! `~/.cache/sartor/assets`), one folder per test. Tests with an operator that the table lacks are counted, not run.
//! What fails is listed in `node_failures.txt`, and must be taken off the list when it passes; `BLESS=1` rewrites it. While working on operators,
//! `NODE_TESTS=lstm,gru` runs the tests whose names contain one of these, and says of each why it does not pass.

use sartor_ir::ops;
use sartor_ir::{DType, Graph, NodeKind, Tensor, eval, infer, onnx};
use sartor_passes::Pass;
use sartor_passes::gradient::Gradient;
use sartor_passes::upgrade::Upgrade;
use sartor_runtime::data::npz;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node_failures.txt");

/// Fewer tests than this mean that the assets are incomplete.
const LEAST: usize = 500;

enum Outcome {
    Passed,
    /// An operator or a kind of value that is not supported: no statement about the table.
    NotRun(String),
    Failed(String),
}

#[test]
fn node_tests_pass_except_those_listed() {
    let Some(folder) = assets() else {
        eprintln!("skipped: there are no node tests under the assets folder (tests/assets/fetch.sh makes them)");
        return;
    };
    if let Ok(wanted) = std::env::var("NODE_TESTS") {
        return only(&folder, &wanted);
    }
    let mut failures = BTreeMap::new();
    let (mut passed, mut not_run) = (0, 0);
    for name in cases(&folder) {
        match run_guarded(&folder.join(&name)) {
            Outcome::Passed => passed += 1,
            Outcome::NotRun(_) => not_run += 1,
            Outcome::Failed(message) => {
                failures.insert(name, message);
            }
        }
    }
    println!("{passed} node tests pass, {} fail, {not_run} are not for this table", failures.len());
    assert!(passed >= LEAST, "only {passed} node tests pass, expected at least {LEAST}");
    compare_with_list(&failures);
}

/// Only tests whose names contain one of these.
fn only(folder: &Path, wanted: &str) {
    let wanted: Vec<&str> = wanted.split(',').collect();
    let (mut count, mut others) = (0, Vec::new());
    for name in cases(folder).into_iter().filter(|name| wanted.iter().any(|w| name.contains(w))) {
        count += 1;
        match run_guarded(&folder.join(&name)) {
            Outcome::Passed => {}
            Outcome::NotRun(why) => others.push(format!("{name}: not run: {why}")),
            Outcome::Failed(why) => others.push(format!("{name}: {why}")),
        }
    }
    assert!(others.is_empty(), "{} of {count} do not pass:\n{}", others.len(), others.join("\n"));
    println!("all {count} pass");
}

fn assets() -> Option<PathBuf> {
    let root = std::env::var_os("SARTOR_ASSETS").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/sartor/assets")))?;
    Some(root.join("onnx/node")).filter(|p| p.is_dir())
}

fn cases(folder: &Path) -> Vec<String> {
    let mut names = names(folder);
    // Small models of a few operators lie beside the tests of one.
    let simple = folder.with_file_name("simple");
    if simple.is_dir() {
        names.extend(self::names(&simple).into_iter().map(|name| format!("../simple/{name}")));
    }
    names
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder can be listed");
    let mut names: Vec<String> =
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| n.starts_with("test_")).collect();
    names.sort();
    names
}

/// The failures are exactly those of the list, up to the reasons.
fn compare_with_list(failures: &BTreeMap<String, String>) {
    if std::env::var_os("BLESS").is_some() {
        let lines: String = failures.iter().map(|(name, why)| format!("{name}: {why}\n")).collect();
        let head = "# Node tests that fail, and why. Rewritten by BLESS=1; a test that passes must not stand here.\n";
        std::fs::write(LIST, format!("{head}{lines}")).expect("the list can be written");
        return;
    }
    let list = std::fs::read_to_string(LIST).expect("the list can be read");
    let listed: BTreeSet<&str> =
        list.lines().filter(|l| !l.starts_with('#')).filter_map(|l| Some(l.split_once(':')?.0)).collect();
    let news: Vec<String> = failures
        .iter()
        .filter(|(name, _)| !listed.contains(name.as_str()))
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    let fixed: Vec<&&str> = listed.iter().filter(|name| !failures.contains_key(**name)).collect();
    assert!(news.is_empty(), "{} node tests fail and are not listed:\n{}", news.len(), news.join("\n"));
    assert!(fixed.is_empty(), "these pass now, take them off node_failures.txt: {fixed:?}");
}

fn run_guarded(folder: &Path) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| run(folder))) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(message)) => Outcome::Failed(message.lines().next().unwrap_or_default().to_string()),
        Err(_) => Outcome::Failed("panic".to_string()),
    }
}

fn run(folder: &Path) -> Result<Outcome, String> {
    let text = |e: sartor_ir::Error| e.to_string();
    let arrays = folder.join("io.npz");
    // Sequences, strings and element types that NumPy lacks.
    let Ok(arrays) = npz::read(&arrays) else { return Ok(Outcome::NotRun("its values are not numeric".into())) };
    let mut model = onnx::load(&folder.join("model.onnx")).map_err(text)?;
    if let Some(op) = missing(&model.graph) {
        return Ok(Outcome::NotRun(format!("the table has no {op}")));
    }
    let mut feeds = HashMap::new();
    for value in model.graph.inputs() {
        let name = model.graph.value_name(value).to_string();
        let declared = model.graph.ty(value).and_then(|t| t.dtype());
        match arrays.get(&format!("in_{name}")).zip(declared).and_then(|(tensor, to)| as_declared(tensor, to)) {
            Some(tensor) => feeds.insert(name, tensor),
            None => return Ok(Outcome::NotRun(format!("input {name} is {declared:?}"))),
        };
    }
    let outputs = model.graph.outputs.iter();
    let wanted: Vec<Option<DType>> = outputs.map(|o| model.graph.ty(o.value).and_then(|t| t.dtype())).collect();
    Upgrade::default().run(&mut model).map_err(text)?;
    Gradient::default().run(&mut model).map_err(text)?;
    infer::infer_model(&mut model).map_err(text)?;
    let found = eval::run(&model, &feeds).map_err(text)?;
    for ((output, tensor), declared) in model.graph.outputs.iter().zip(&found).zip(wanted) {
        if let Some(expected) = arrays.get(&format!("out_{}", output.name)) {
            let expected = as_declared(expected, declared.unwrap_or(expected.dtype()))
                .ok_or("its type is not that of the file")?;
            compare(tensor, &expected).map_err(|e| format!("output {}: {e}", output.name))?;
        }
    }
    Ok(Outcome::Passed)
}

/// An array of `io.npz` in the type that the model declares. Types that NumPy lacks are written as others: bfloat16 widened to
/// float, and 8-bit floats and narrower types as one byte per element.
fn as_declared(tensor: &Tensor, declared: DType) -> Option<Tensor> {
    match (tensor.dtype(), declared) {
        (found, declared) if found == declared => Some(tensor.clone()),
        (DType::F32, DType::BF16) => {
            let narrow = tensor.cast(DType::BF16).ok()?;
            // Widened numbers come back unchanged; others were no bfloat16 numbers.
            let exact = tensor.to_f64s().ok()?.iter().zip(narrow.to_f64s().ok()?).all(|(a, b)| *a == b || a.is_nan());
            exact.then_some(narrow)
        }
        (DType::U8, declared) if declared.is_narrow() => {
            Tensor::from_codes(declared, tensor.shape(), tensor.codes().ok()?).ok()
        }
        _ => None,
    }
}

/// An operator that the table lacks.
fn missing(graph: &Graph) -> Option<String> {
    graph.node_ids().find_map(|id| match &graph.node(id).kind {
        NodeKind::Op(op) if ops::of(op).is_none() && op.name != "Gradient" => Some(op.full_name()),
        NodeKind::Op(op) => op.attrs.graphs().find_map(|(_, g)| missing(g)),
        _ => None,
    })
}

/// ONNX's own tolerances: 1e-3 relative (2⁻⁶ for `bfloat16`), 1e-7 absolute; integers and booleans exactly.
fn compare(found: &Tensor, expected: &Tensor) -> Result<(), String> {
    if (found.dtype(), found.shape()) != (expected.dtype(), expected.shape()) {
        return Err(format!(
            "{}{:?}, expected {}{:?}",
            found.dtype(),
            found.shape(),
            expected.dtype(),
            expected.shape()
        ));
    }
    let exact = !expected.dtype().is_float() || expected.dtype() == DType::Bool;
    let (Ok(a), Ok(b)) = (found.to_f64s(), expected.to_f64s()) else {
        return if found.bytes() == expected.bytes() { Ok(()) } else { Err("other bytes".to_string()) };
    };
    let relative = if expected.dtype() == DType::BF16 { 1.0 / 64.0 } else { 1e-3 };
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-7 + relative * b.abs();
    let close = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (!exact && near(a, b));
    match a.iter().zip(&b).position(|(&a, &b)| !close(a, b)) {
        None => Ok(()),
        Some(i) => Err(format!("element {i} is {}, expected {}", a[i], b[i])),
    }
}
