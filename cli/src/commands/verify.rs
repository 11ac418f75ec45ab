//! `verify`: whether two models compute the same.

use super::run::session_options;
use crate::compare::{self, Arrays};
use crate::failure::Running;
use crate::peers::Runtime;
use crate::{Failure, Outcome, files, say};
use sartor_ir::{Error, Model, Result, Tensor, Type, onnx};
use sartor_passes::Registry;
use std::path::{Path, PathBuf};

/// Runs two models on the same inputs and compares their outputs; names the first tensor that differs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor verify before.onnx after.onnx
  sartor verify before.onnx after.onnx --inputs x.npz --tolerance 1e-5
  sartor verify before.onnx after.onnx --dim batch=4 --dim sequence=32
  sartor verify model.onnx --against ort --ort-library …/onnxruntime/capi/libonnxruntime.so.1.32.0

Two numbers are equal if they differ by at most the tolerance times the larger of 1 and their size. Without --inputs,
inputs are drawn: floats normally distributed, token ids within the embedding, masks of ones.
Exit code 0: equal; 1: they differ.")]
pub struct Args {
    /// The first model
    a: PathBuf,
    /// The second; with `--against` it may be left out, and is then the first
    b: Option<PathBuf>,
    /// The inputs; without them, they are drawn
    #[arg(long, value_name = "X.npz")]
    inputs: Option<PathBuf>,
    /// How far two numbers may be apart
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
    /// Who runs the second model, instead of sartor
    #[arg(long)]
    against: Option<Runtime>,
    /// Where libonnxruntime.so is (default: what ORT_DYLIB_PATH says)
    #[arg(long, value_name = "FILE")]
    ort_library: Option<PathBuf>,
    /// A number for a symbolic dimension of drawn inputs (default: 2 for the first one met; for the others 7, in images 64)
    #[arg(long = "dim", value_name = "NAME=N")]
    dims: Vec<String>,
    /// The seed of drawn inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads to compute with
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let Some(path_b) = args.b.as_ref().or(args.against.map(|_| &args.a)) else {
        return Err(Failure::usage("name two models: `sartor verify A.onnx B.onnx`"));
    };
    let a = load(&args.a, registry, true)?;
    let b = load(path_b, registry, args.against.is_none())?;
    let inputs = match &args.inputs {
        Some(path) => files::read_inputs(path, &a.graph)?,
        None => compare::drawn_inputs(&a, &a.graph, &args.dims, args.seed)?,
    };
    check_inputs(&b, &inputs).map_err(|e| e.at(format!("file {}", path_b.display())))?;
    let options = session_options(args.threads);
    let run_a = |model: &Model| {
        let outputs = compare::run(model, &inputs, options);
        outputs.map_err(|e| e.at(format!("file {}", args.a.display())))
    };
    let run_b = |model: &Model| {
        let outputs = match args.against {
            Some(other) => {
                let peer = other.load(model, &inputs, Some(options.threads), args.ort_library.as_deref());
                peer.and_then(|mut peer| peer.run(&inputs))
            }
            None => compare::run(model, &inputs, options),
        };
        outputs.map_err(|e| e.at(format!("file {}", path_b.display())))
    };
    let (of_a, of_b) = (run_a(&a).running()?, run_b(&b).running()?);
    let mut wrong = compare_outputs(&a, &b, &of_a, &of_b, args.tolerance);
    if wrong.is_empty() {
        return Ok(());
    }
    if let Some((name, how)) = compare::first_difference((&a, &run_a), (&b, &run_b), args.tolerance).running()? {
        wrong.insert(0, format!("the first tensor that differs is \"{name}\": {how}"));
    }
    wrong.iter().for_each(|line| say!("{line}"));
    Err(Failure::No)
}

/// `prepared`: as our own sessions need it; otherwise as it stands in the file.
fn load(path: &Path, registry: &Registry, prepared: bool) -> Result<Model> {
    let mut model = onnx::load(path)?;
    if prepared {
        files::prepare(&mut model, registry).map_err(|e| e.at(format!("file {}", path.display())))?;
    }
    Ok(model)
}

fn check_inputs(model: &Model, inputs: &Arrays) -> Result<()> {
    let mut errors = Vec::new();
    for value in model.graph.inputs() {
        let (name, ty) = (model.graph.value_name(value), model.graph.ty(value));
        match (inputs.get(name), ty) {
            (None, _) => errors.push(Error::msg(format!("the first model has no input \"{name}\", the second has"))),
            (Some(tensor), Some(ty)) if ty.merge(&Type::of(tensor)).is_none() => errors
                .push(Error::msg(format!("input \"{name}\" is {ty}, the first model was given {}", Type::of(tensor)))),
            _ => {}
        }
    }
    Error::all(errors)
}

/// Prints the outputs that are equal; returns sentences about the others.
fn compare_outputs(a: &Model, b: &Model, of_a: &Arrays, of_b: &Arrays, tolerance: f64) -> Vec<String> {
    let mut wrong = Vec::new();
    for output in &a.graph.outputs {
        let name = &output.name;
        let (x, y): (Option<&Tensor>, Option<&Tensor>) = (of_a.get(name), of_b.get(name));
        match (x, y) {
            (Some(x), Some(y)) => match compare::sentence(x, y, tolerance) {
                Some(how) => wrong.push(format!("output \"{name}\" differs: {how}")),
                None => {
                    let far = compare::difference(x, y).map_or(0.0, |(far, _)| far);
                    say!("output \"{name}\" {}: equal, largest difference {far:.1e}", Type::of(x));
                }
            },
            _ => wrong.push(format!("the second model has no output \"{name}\"")),
        }
    }
    let extra = b.graph.outputs.iter().filter(|o| a.graph.find_output(&o.name).is_none());
    wrong.extend(extra.map(|o| format!("the first model has no output \"{}\"", o.name)));
    wrong
}
