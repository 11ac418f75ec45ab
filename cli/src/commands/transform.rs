//! `transform`: a model through passes.

use crate::{Outcome, files, note};
use sartor_ir::{Context, Error, Result, onnx};
use sartor_passes::{Driver, Pass, Registry, options};
use std::path::{Path, PathBuf};

/// Applies passes to a model. Without passes: reads it and writes it again
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor transform in.onnx -o out.onnx
  sartor transform in.onnx -p upgrade -p fold -p dce -o out.onnx
  sartor transform in.onnx -p 'cola(rank=8, targets=[*/query/MatMul, */value/MatMul])' -o adapters.onnx
  sartor transform in.onnx --pipeline clean.toml --dump-after all dumps/ -o out.onnx

A pipeline is a TOML file of [[pass]] tables, each with `name` and the pass's options. It runs before the passes given
with -p. `sartor passes` lists all passes and their options.")]
pub struct Args {
    /// The model
    input: PathBuf,
    /// A pass with its options; may be repeated
    #[arg(short = 'p', long = "pass", value_name = "PASS(KEY=VALUE)")]
    passes: Vec<String>,
    /// A file with passes
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// Writes the model as text into a folder after this pass, or after every one
    #[arg(long, num_args = 2, value_names = ["PASS|all", "DIR"])]
    dump_after: Option<Vec<String>>,
    /// The file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Puts large weights into a second file, beside the model
    #[arg(long)]
    external_data: bool,
    /// Does not print what the passes did
    #[arg(short, long)]
    quiet: bool,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let passes = passes_of(&args, registry)?;
    let mut driver = Driver::new();
    if let Some([after, folder]) = args.dump_after.as_deref() {
        driver.dump_after = vec![after.clone()];
        driver.dump_folder = folder.into();
    }
    let mut model = onnx::load(&args.input)?;
    let report = driver.run(&passes, &mut model)?;
    if !passes.is_empty() && !args.quiet {
        report.to_string().lines().for_each(|line| note!("{line}"));
    }
    files::save(&model, &args.output, args.external_data)
}

fn passes_of(args: &Args, registry: &Registry) -> Result<Vec<Box<dyn Pass>>> {
    let mut invocations = match &args.pipeline {
        Some(path) => read_pipeline(path)?,
        None => Vec::new(),
    };
    for text in &args.passes {
        invocations.push(options::parse_invocation(text)?);
    }
    registry.build_all(invocations)
}

fn read_pipeline(path: &Path) -> Result<Vec<options::Invocation>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    options::parse_pipeline(&text).context(|| format!("file {}", path.display()))
}
