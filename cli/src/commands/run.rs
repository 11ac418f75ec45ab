//! `run`: a model on arrays.

use crate::failure::Running;
use crate::{Outcome, files, note};
use sartor_ir::{Error, Tensor, onnx};
use sartor_passes::Registry;
use sartor_runtime::data::npz;
use sartor_runtime::{Key, Params, Report, Session, SessionOptions};
use std::path::PathBuf;

/// Runs a model on the arrays of an .npz file
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor run model.onnx --inputs x.npz --outputs y.npz
  sartor run model.onnx --inputs x.npz --outputs y.npz --threads 2

The arrays are named as the model's inputs; others are left alone. The outputs are named as the model's outputs.")]
pub struct Args {
    /// The model
    model: PathBuf,
    /// The inputs
    #[arg(long, value_name = "X.npz")]
    inputs: PathBuf,
    /// Where the outputs go
    #[arg(long, value_name = "Y.npz")]
    outputs: PathBuf,
    /// Threads to compute with; the results do not depend on it
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// The options of a session with so many threads.
pub fn session_options(threads: Option<u16>) -> SessionOptions {
    threads.map_or_else(SessionOptions::default, |n| SessionOptions { threads: usize::from(n) })
}

/// Says what was run by the reference evaluator instead of a plan, and why; whether there was any.
pub fn note_unplanned(report: &Report) -> bool {
    if let Some(reason) = &report.unplanned {
        note!(
            "note: the model, or the part of it from here on, was run by the reference evaluator, which is slow: {reason}"
        );
    }
    report.unplanned.is_some()
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let mut model = onnx::load(&args.model)?;
    let inputs = files::read_inputs(&args.inputs, &model.graph)?;
    let at_file = |e: Error| e.at(format!("file {}", args.model.display()));
    files::prepare_inference(&mut model, registry).map_err(at_file)?;
    let mut session = Session::new(&model, session_options(args.threads))?;
    let outputs = session.run(&mut Params::of(&model), &inputs, Key::default()).running()?;
    note_unplanned(&session.report());
    let mut arrays: Vec<(&str, &Tensor)> = Vec::new();
    for output in &model.graph.outputs {
        match outputs.get(&output.name) {
            Some(tensor) => arrays.push((&output.name, tensor)),
            None => return Err(Error::msg(format!("the run gave no output \"{}\"", output.name))).running(),
        }
    }
    npz::write(&args.outputs, arrays.iter().copied()).running()?;
    for (name, tensor) in arrays {
        note!("{name}: {}{:?}", tensor.dtype(), tensor.shape());
    }
    Ok(())
}
