//! `report`: runs as a page to look at.

use crate::failure::{Failure, Outcome};
use crate::report::{self, Run};
use crate::{files, note, say};
use sartor_ir::Error;
use std::path::PathBuf;

/// Draws the curves of one or several runs, as one HTML page
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor report out                                  # writes out/report.html
  sartor report out --html curves.html
  sartor report out-1 out-2 out-3 --html seeds.html  # over each other
  sartor report sweep/*/ --html sweep.html           # all runs of a `sartor sweep`

The page shows the summary, the training loss, every evaluation, the learning rate, the gradient's norm, the speed, the
recipe, and, of a run with SAMUEL, the probabilities, rates and losses of its experts. It is one file that loads nothing
else; it follows the browser's choice of light or dark. A run that goes on can be looked at, too.")]
pub struct Args {
    /// The output folders of runs
    #[arg(required = true, value_name = "OUT")]
    folders: Vec<PathBuf>,
    /// The file to write; without it, report.html in the first folder
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: Args) -> Outcome {
    let (mut runs, mut errors) = (Vec::new(), Vec::new());
    for folder in &args.folders {
        match Run::read(folder) {
            Ok(run) => runs.push(run),
            Err(error) => errors.push(error),
        }
    }
    Error::all(errors)?;
    leave_out_empty(&mut runs)?;
    report::name_apart(&mut runs);
    let path = args.html.unwrap_or_else(|| args.folders[0].join("report.html"));
    files::write_whole(&path, report::page(&runs)).map_err(Failure::Run)?;
    say!("written to {}", path.display());
    Ok(())
}

/// A run of which nothing was logged is not drawn beside others; alone it is a mistake.
fn leave_out_empty(runs: &mut Vec<Run>) -> Outcome {
    let text = |run: &Run| format!("{}: no step was logged in it yet", run.folder.join("metrics.jsonl").display());
    if runs.iter().all(|run| run.metrics.is_empty()) {
        Error::all(runs.iter().map(|run| Error::msg(text(run))).collect())?;
    }
    runs.iter().filter(|run| run.metrics.is_empty()).for_each(|run| note!("{}; left out", text(run)));
    runs.retain(|run| !run.metrics.is_empty());
    Ok(())
}
