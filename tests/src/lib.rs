//! What the whole-tool tests share: where the assets lie, inputs for real models, and how two tensors are compared.

pub mod conformance;

use sartor_ir::rng::Draw;
use sartor_ir::{DType, Graph, GraphOutput, Model, Result, Tensor, Type, Value, onnx};
use sartor_passes::{Driver, Registry, options, pipelines};
use sartor_runtime::data::npz;
use sartor_runtime::{Key, Params, Session, SessionOptions};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tensors by name.
pub type Named = HashMap<String, Tensor>;

/// Real models that `tests/assets/fetch.sh` brings and that fit every test.
pub const REAL_MODELS: &[&str] = &[
    "paraphrase-MiniLM-L3-v2.onnx",
    "ppocr_cls.onnx",
    "minilm-l6-ts17.onnx",
    "minilm-l6-dynamo20.onnx",
    "mobilenetv2-ts17.onnx",
    "mobilenetv2-dynamo20.onnx",
];

/// The folder of the assets and of the peers' Python environment.
pub fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    std::env::var_os("SARTOR_CACHE").map_or(home.join(".cache/sartor"), PathBuf::from)
}

/// The path of an asset. Panics with the command that fetches it if it is missing.
pub fn asset(name: &str) -> PathBuf {
    let path = cache().join("assets").join(name);
    assert!(path.exists(), "{} is missing: run tests/assets/fetch.sh", path.display());
    path
}

/// A script of `tests/peers`, to be run by the peers' Python.
pub fn peer(script: &str) -> Command {
    peer_in("venv", script)
}

/// The same, by the Python of another environment.
pub fn peer_in(environment: &str, script: &str) -> Command {
    let python = cache().join(environment).join("bin/python");
    let argument = environment.strip_prefix("venv-").unwrap_or_default();
    assert!(python.exists(), "{} is missing: run tests/assets/venv.sh {argument}", python.display());
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script));
    command
}

/// Runs a command and panics with what it printed unless it succeeds; gives its standard output.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What ONNX Runtime computes from a file.
#[track_caller]
pub fn onnx_runtime(path: &Path, inputs: &Named) -> Named {
    let folder = tempfile::tempdir().unwrap();
    let [x, y] = ["x.npz", "y.npz"].map(|name| folder.path().join(name));
    npz::write(&x, inputs.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    succeeds(peer("ort_run.py").arg(path).args([&x, &y]));
    npz::read(&y).unwrap().into_iter().collect()
}

/// A model as every run sees it: functions inlined, in the internal opset, weights lifted, types inferred; then through a pipeline
/// (TOML).
pub fn prepared(path: &Path, pipeline: &str) -> Result<Model> {
    let mut model = onnx::load(path)?;
    pipelines::prepare(&mut model, &Registry::builtin())?;
    run_passes(&mut model, pipeline)?;
    Ok(model)
}

/// Runs the passes of a pipeline (TOML).
pub fn run_passes(model: &mut Model, pipeline: &str) -> Result<()> {
    let passes = Registry::builtin().build_all(options::parse_pipeline(pipeline)?)?;
    Driver::new().run(&passes, model).map(drop)
}

/// The losses of twenty steps with adapters on every product and convolution that takes them: the squared distance of an output from drawn targets of its
/// shape, AdamW.
pub fn adapter_losses(model: &mut Model, inputs: &Named, name: &str, output: &Tensor) -> Result<Vec<f64>> {
    let label = Draw::new(1, "label").tensor(output.shape(), -1.0, 1.0).cast(DType::F32)?;
    let pipeline = format!(
        "[[pass]]\nname = \"loss\"\nkind = \"mse\"\nlogits = {name:?}\n\
         [[pass]]\nname = \"cola\"\nrank = 2\ntargets = [\"*\"]\n\
         [[pass]]\nname = \"autodiff\"\n[[pass]]\nname = \"optimizer\"\nkind = \"adamw\"\n"
    );
    run_passes(model, &pipeline)?;
    let step = model.programs.keys().find(|name| name.starts_with("step")).cloned().unwrap_or_default();
    let mut session = Session::program(model, &step, SessionOptions { threads: 2 })?;
    let mut params = Params::of(model);
    let mut feeds = inputs.clone();
    feeds.insert("label".to_string(), label);
    feeds.insert("learning_rate".to_string(), Tensor::scalar(1e-2f32));
    let mut losses = Vec::new();
    for step in 0..20 {
        let found = session.run(&mut params, &feeds, Key { seed: 1, step })?;
        losses.push(found["loss"].to_f64s()?[0]);
    }
    Ok(losses)
}

/// Inputs for a graph, open dimensions bound by `dim` (name of the input, number of the axis). Integers are tokens below `tokens`,
/// except masks, which are 1 up to a length that differs from row to row.
pub fn draw_inputs(graph: &Graph, seed: u64, tokens: i64, dim: &dyn Fn(&str, usize) -> usize) -> Named {
    let mut inputs = Named::new();
    for value in graph.inputs() {
        let name = graph.value_name(value).to_string();
        let ty: Option<&Type> = graph.ty(value);
        let axes = ty.and_then(Type::shape).unwrap_or_default();
        let size = |(i, d): (usize, &sartor_ir::Dim)| d.known().map_or_else(|| dim(&name, i), |n| n as usize);
        let shape: Vec<usize> = axes.iter().enumerate().map(size).collect();
        let mut draw = Draw::new(seed, &name);
        let tensor = match ty.and_then(Type::dtype) {
            Some(DType::I64) if name.contains("mask") => mask(&shape),
            Some(DType::I64) if name.contains("type") => {
                Tensor::from_vec(shape.clone(), vec![0i64; shape.iter().product()])
            }
            Some(DType::I64) => draw.ints(&shape, 0, tokens - 1),
            _ if shape.is_empty() => Tensor::scalar(1e-3f32),
            _ => f32s(&mut draw, &shape),
        };
        inputs.insert(name, tensor);
    }
    inputs
}

fn f32s(draw: &mut Draw, shape: &[usize]) -> Tensor {
    let wide = draw.tensor(shape, -1.0, 1.0);
    wide.cast(DType::F32).unwrap_or(wide)
}

fn mask(shape: &[usize]) -> Tensor {
    let (rows, cols) = (shape[0], shape[1..].iter().product::<usize>());
    let ones = |row: usize| cols - (row * 3 % cols.max(1)).min(cols - 1);
    let numbers = (0..rows).flat_map(|r| (0..cols).map(move |c| i64::from(c < ones(r)))).collect::<Vec<i64>>();
    Tensor::from_vec(shape.to_vec(), numbers)
}

/// The named values of the inference graph whose types are known.
pub fn values_of(model: &Model) -> Vec<Value> {
    let graph = &model.graph;
    let known = |v: &Value| graph.ty(*v).is_some() && !graph.value_name(*v).is_empty();
    graph.topo_ops().into_iter().flat_map(|id| graph.node_outputs(id)).filter(known).collect()
}

/// The model with these values as outputs too.
pub fn expose(model: &Model, values: &[Value]) -> Model {
    let mut model = model.clone();
    for (i, &value) in values.iter().enumerate() {
        let name = format!("value{i}:{}", model.graph.value_name(value));
        model.graph.outputs.push(GraphOutput { name, value });
    }
    model
}

/// The largest difference of two tensors, relative to the largest magnitude in the second; infinite if type, shape or
/// finiteness differ.
pub fn distance(found: &Tensor, wanted: &Tensor) -> f64 {
    if (found.dtype(), found.shape()) != (wanted.dtype(), wanted.shape()) {
        return f64::INFINITY;
    }
    let (Ok(a), Ok(b)) = (found.to_f64s(), wanted.to_f64s()) else {
        return if found == wanted { 0.0 } else { f64::INFINITY };
    };
    let scale = b.iter().filter(|x| x.is_finite()).fold(1e-6, |m: f64, x| m.max(x.abs()));
    let apart = |x: f64, y: f64| if x == y || (x.is_nan() && y.is_nan()) { 0.0 } else { (x - y).abs() / scale };
    let worst =
        a.iter().zip(&b).map(|(&x, &y)| apart(x, y)).fold(0.0, |w: f64, d| if d.is_nan() { d } else { w.max(d) });
    if worst.is_nan() { f64::INFINITY } else { worst }
}
