//! The tests that the onnx wheel carries, as `tests/assets/dump_onnx_tests.py` writes them: a folder per test with the model, its inputs
//! and the outputs that are expected.

use crate::{Named, asset};
use sartor_ir::{DType, Graph, Model, NodeKind, Tensor, onnx, ops};
use sartor_runtime::data::npz;
use std::path::{Path, PathBuf};

/// The kinds of tests: one operator each, small models, models that PyTorch once exported, image classifiers.
pub const KINDS: &[&str] = &["node", "simple", "pytorch-converted", "pytorch-operator", "light"];

/// One test.
pub struct Case {
    /// Its name.
    pub name: String,
    /// The model as it stands in the file.
    pub model: Model,
    /// The inputs.
    pub inputs: Named,
    /// The outputs that are expected, by name.
    pub outputs: Named,
    /// How far an output may be off: relative and absolute.
    pub tolerance: (f64, f64),
}

/// The folders of a kind of tests, sorted.
pub fn folders(kind: &str) -> Vec<PathBuf> {
    let root = asset(&format!("onnx/{kind}"));
    let entries = std::fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}

/// Reads a test; says why it cannot be run here: its values are no numbers, or an operator is not known.
pub fn read(folder: &Path) -> Result<Case, String> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Ok(why) = std::fs::read_to_string(folder.join("skip")) {
        return Err(why.trim().to_string());
    }
    let text = |e: sartor_ir::Error| e.to_string();
    let arrays = npz::read(&folder.join("io.npz")).map_err(text)?;
    let model = onnx::load(&folder.join("model.onnx")).map_err(text)?;
    if let Some(op) = unknown(&model.graph) {
        return Err(format!("the operator {op} is not known"));
    }
    let mut inputs = Named::new();
    for value in model.graph.inputs() {
        let name = model.graph.value_name(value).to_string();
        let declared = model.graph.ty(value).and_then(|t| t.dtype());
        match arrays.get(&format!("in_{name}")).zip(declared).and_then(|(tensor, to)| as_declared(tensor, to)) {
            Some(tensor) => inputs.insert(name, tensor),
            None => return Err(format!("input {name} is {declared:?}, which the file does not hold")),
        };
    }
    let mut outputs = Named::new();
    for output in &model.graph.outputs {
        let Some(expected) = arrays.get(&format!("out_{}", output.name)) else { continue };
        let declared = model.graph.ty(output.value).and_then(|t| t.dtype()).unwrap_or(expected.dtype());
        match as_declared(expected, declared) {
            Some(expected) => outputs.insert(output.name.clone(), expected),
            None => return Err(format!("output {} is {declared}, which the file does not hold", output.name)),
        };
    }
    let tolerance = std::fs::read_to_string(folder.join("tolerance.txt")).unwrap_or_default();
    let mut numbers = tolerance.split_whitespace().filter_map(|n| n.parse().ok());
    let tolerance = (numbers.next().unwrap_or(1e-3), numbers.next().unwrap_or(1e-7));
    Ok(Case { name, model, inputs, outputs, tolerance })
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

/// An operator that the table does not have.
pub fn unknown(graph: &Graph) -> Option<String> {
    graph.node_ids().find_map(|id| match &graph.node(id).kind {
        // A pass replaces it.
        NodeKind::Op(op) if op.name == "Gradient" => None,
        NodeKind::Op(op) if ops::of(op).is_none() => Some(op.full_name()),
        NodeKind::Op(op) => op.attrs.graphs().find_map(|(_, g)| unknown(g)),
        _ => None,
    })
}

/// Compares an output with what is expected: floating-point numbers within the tolerance (2⁻⁶ relative for `bfloat16`, as ONNX's runner does), all others exactly.
pub fn compare(found: &Tensor, expected: &Tensor, (relative, absolute): (f64, f64)) -> Result<(), String> {
    if (found.dtype(), found.shape()) != (expected.dtype(), expected.shape()) {
        let text = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
        return Err(format!("{}, expected {}", text(found), text(expected)));
    }
    let (Ok(a), Ok(b)) = (found.to_f64s(), expected.to_f64s()) else {
        return if found.bytes() == expected.bytes() { Ok(()) } else { Err("other bytes".to_string()) };
    };
    let exact = !expected.dtype().is_float();
    let relative = if expected.dtype() == DType::BF16 { 1.0 / 64.0 } else { relative };
    let near = |a: f64, b: f64| (a - b).abs() <= absolute + relative * b.abs();
    let close = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (!exact && near(a, b));
    match a.iter().zip(&b).position(|(&a, &b)| !close(a, b)) {
        None => Ok(()),
        Some(i) => Err(format!("element {i} is {}, expected {}", a[i], b[i])),
    }
}
