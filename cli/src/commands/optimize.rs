//! `optimize`: the clean-up passes, by one name.

use crate::{Outcome, files, note};
use sartor_ir::{Error, onnx};
use sartor_passes::{Driver, Registry, pipelines};
use std::path::PathBuf;

/// Cleans a model up: lifts its opset, inlines, folds, simplifies, and removes what is left over
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor optimize in.onnx -o out.onnx

Its outputs stay the same (`sartor verify in.onnx out.onnx`), and so do its dynamic axes.")]
pub struct Args {
    /// The model
    input: PathBuf,
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
    let pipeline = pipelines::expand("optimize").ok_or_else(|| Error::msg("there is no pipeline \"optimize\""))?;
    let passes = registry.build_all(pipeline)?;
    let mut model = onnx::load(&args.input)?;
    let report = Driver::new().run(&passes, &mut model).map_err(|e| e.at(format!("file {}", args.input.display())))?;
    if !args.quiet {
        report.to_string().lines().for_each(|line| note!("{line}"));
    }
    files::save(&model, &args.output, args.external_data)
}
