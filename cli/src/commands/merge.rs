//! `merge`: adapters folded into the weights.

use crate::{Outcome, files};
use sartor_ir::onnx;
use sartor_passes::{Driver, Options, Registry};
use std::path::PathBuf;

/// Folds the adapters of a model into its weights: the same outputs, at the cost it had before
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor merge out/chain.onnx -o merged.onnx")]
pub struct Args {
    /// A model with adapters, such as the chain.onnx of a training run
    input: PathBuf,
    /// The file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Puts large weights into a second file, beside the model
    #[arg(long)]
    external_data: bool,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let mut model = onnx::load(&args.input)?;
    let merge = registry.build("merge", Options::new())?;
    Driver::new().run(&[merge], &mut model).map_err(|e| e.at(format!("file {}", args.input.display())))?;
    files::save(&model, &args.output, args.external_data)
}
