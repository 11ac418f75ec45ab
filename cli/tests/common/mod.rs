//! Runs the built command on small models and tasks made here.
#![allow(dead_code)]

use sartor_ir::ops::Emit;
use sartor_ir::rng::Stream;
use sartor_ir::{Attributes, DType, Dim, Graph, GraphOutput, Model, Role, Tensor, Type, Value, onnx};
use sartor_runtime::data::npz;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A working directory with helpers.
pub struct Folder(TempDir);

/// What a run of the command gave.
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Done {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Done { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }
    pub fn names(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(name)).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sartor"));
        command.args(args).current_dir(self.0.path());
        command
    }
    pub fn run(&self, args: &[&str]) -> Done {
        self.command(args).output().unwrap().into()
    }
    /// Expects success; gives standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, Some(0), "{args:?}\n{}\n{}", done.out, done.err);
        done.out
    }
    /// Expects this exit code and a sentence; gives standard error.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, Some(code), "{args:?}\n{}\n{}", done.out, done.err);
        assert!(done.err.contains("error: "), "{}", done.err);
        assert!(!done.err.contains("panicked") && !done.err.contains("RUST_BACKTRACE"), "{}", done.err);
        done.err
    }
    /// `model.onnx`, `train.npz`, `test.npz` and `R.toml`.
    pub fn with_task() -> Folder {
        let folder = Folder::new();
        save(&mlp(), &folder.path("model.onnx"));
        write_split(&folder.path("train.npz"), 96, 1);
        write_split(&folder.path("test.npz"), 40, 2);
        folder.write("R.toml", RECIPE);
        folder
    }
}

/// The recipe of the task.
pub const RECIPE: &str = r#"model = "model.onnx"
output = "out/"
[data]
train = "train.npz"
eval = "test.npz"
test = "test.npz"
[head]
input = "features"
kind = "classifier"
classes = 2
[loss]
kind = "cross-entropy"
[cola]
rank = 2
alpha = 4
links = 2
targets = ["*/query/MatMul"]
[optimizer]
kind = "adamw"
learning_rate = 3e-2
weight_decay = 0.01
schedule = "linear"
[train]
epochs = 12
batch = 8
seed = 0
threads = 1
eval_every = "epoch"
checkpoint_every = "epoch"
"#;

pub fn save(model: &Model, path: &Path) {
    onnx::save(model, path, &onnx::SaveOptions::default()).unwrap();
}

pub fn param(model: &mut Model, name: &str, shape: &[usize]) -> Value {
    let stream = Stream::new(7, 0, name);
    let count: usize = shape.iter().product();
    let numbers: Vec<f32> = (0..count as u64).map(|i| 0.5 * stream.normal(i) as f32).collect();
    let tensor = Tensor::from_vec(shape, numbers);
    let ty = Type::of(&tensor);
    let name = model.add_param(name, tensor, Role::Frozen);
    model.graph.param(&name, ty)
}

/// `x float[batch, 4] → /enc/query/MatMul → relu → /enc/value/MatMul → features float[batch, 6]`
pub fn mlp() -> Model {
    let mut model = Model::new(Graph::new("mlp"));
    let x = model.graph.add_input("x", Type::tensor(DType::F32, [Dim::symbol("batch"), 4.into()]));
    let (wq, wv) = (param(&mut model, "enc.query.weight", &[4, 6]), param(&mut model, "enc.value.weight", &[6, 6]));
    let mut emit = Emit::new(&mut model.graph, 20);
    emit.prefix = "/enc/query/".to_string();
    let h = emit.matmul(x, wq).unwrap();
    emit.prefix = "/enc/".to_string();
    let h = emit.unary("Relu", h).unwrap();
    emit.prefix = "/enc/value/".to_string();
    let y = emit.matmul(h, wv).unwrap();
    model.graph.rename(y, "features");
    model.graph.outputs.push(GraphOutput { name: "features".into(), value: y });
    model
}

/// The label is whether `x0 > x1`.
pub fn write_split(path: &Path, rows: usize, seed: u64) {
    let stream = Stream::new(seed, 0, "task");
    let x: Vec<f32> = (0..rows as u64 * 4).map(|i| stream.normal(i) as f32).collect();
    let label: Vec<i64> = x.chunks(4).map(|row| i64::from(row[0] > row[1])).collect();
    let (x, label) = (Tensor::from_vec([rows, 4], x), Tensor::from_i64s(&label));
    npz::write(path, [("x", &x), ("label", &label)]).unwrap();
}

pub fn write_arrays(path: &Path, arrays: &[(&str, Tensor)]) {
    npz::write(path, arrays.iter().map(|(name, tensor)| (*name, tensor))).unwrap();
}

/// Attributes, none of them.
pub fn none() -> Attributes {
    Attributes::new()
}
