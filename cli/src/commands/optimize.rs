//! `optimize`: the clean-up passes, by one name.

use crate::{Outcome, files, note, say};
use sartor_ir::{Error, onnx};
use sartor_passes::{Driver, Registry, pipelines, simplify};
use std::path::PathBuf;

/// Cleans a model up: lifts its opset, inlines, folds, simplifies, and removes what is left over
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor optimize in.onnx -o out.onnx
  sartor optimize in.onnx --why-not 'a shape that is kept' /encoder/Reshape_3

Its outputs stay the same (`sartor verify in.onnx out.onnx`), and so do its dynamic axes.")]
pub struct Args {
    /// The model
    input: PathBuf,
    /// The file to write
    #[arg(short, long, required_unless_present = "why_not")]
    output: Option<PathBuf>,
    /// Says why a rule of `simplify` leaves a node as it is, and writes nothing; an empty RULE stands for all that look at it
    #[arg(long, num_args = 2, value_names = ["RULE", "NODE"], conflicts_with = "output")]
    why_not: Option<Vec<String>>,
    /// Puts large weights into a second file, beside the model
    #[arg(long)]
    external_data: bool,
    /// Does not print what the passes did
    #[arg(short, long)]
    quiet: bool,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    if let Some([rule, node]) = args.why_not.as_deref() {
        let mut model = onnx::load(&args.input)?;
        files::prepare(&mut model, registry)?;
        simplify::why_not(&model, rule, node)?.iter().for_each(|line| say!("{line}"));
        return Ok(());
    }
    let pipeline = pipelines::expand("optimize").ok_or_else(|| Error::msg("there is no pipeline \"optimize\""))?;
    let passes = registry.build_all(pipeline)?;
    let mut model = onnx::load(&args.input)?;
    let report = Driver::new().run(&passes, &mut model).map_err(|e| e.at(format!("file {}", args.input.display())))?;
    if !args.quiet {
        report.to_string().lines().for_each(|line| note!("{line}"));
    }
    match &args.output {
        Some(output) => files::save(&model, output, args.external_data),
        None => Ok(()),
    }
}
