//! `adapter`: the adapters of a model as a folder that PEFT loads.

use crate::{Outcome, files};
use sartor_ir::onnx;
use sartor_passes::{Driver, Options, Registry};
use std::path::PathBuf;

/// Writes the adapters of a model as a folder that PEFT loads
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor adapter out/chain.onnx -o adapter/
  sartor adapter out/chain.onnx --strip-prefix model. -o adapter/

The links of a chain become one adapter whose rank is the sum of theirs. The folder must not be there yet, or be empty.")]
pub struct Args {
    /// A model with adapters, such as the chain.onnx of a training run
    input: PathBuf,
    /// The folder to write
    #[arg(short, long)]
    output: PathBuf,
    /// What the module paths of the file begin with and those of the PyTorch model do not
    #[arg(long, default_value = "")]
    strip_prefix: String,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    files::require_empty(&args.output)?;
    let mut model = onnx::load(&args.input)?;
    let mut options = Options::new();
    options.insert("output".into(), args.output.to_string_lossy().into());
    options.insert("strip_prefix".into(), args.strip_prefix.clone().into());
    let pass = registry.build("extract-adapter", options)?;
    Driver::new().run(&[pass], &mut model).map_err(|e| e.at(format!("file {}", args.input.display())))?;
    Ok(())
}
