//! The subcommands, one file each.

pub mod adapter;
pub mod bench;
pub mod demo;
pub mod eval;
pub mod export;
pub mod inspect;
pub mod merge;
pub mod optimize;
pub mod passes;
pub mod report;
pub mod run;
pub mod schema;
pub mod sweep;
pub mod train;
pub mod transform;
pub mod verify;

use crate::Outcome;
use clap::{Parser, Subcommand};
use sartor_passes::Registry;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "sartor",
    version,
    about = "Tailors trained models: ONNX in, fine-tuned ONNX out",
    after_help = "Examples:
  sartor demo                                   train, fine-tune and export a small network, from nothing
  sartor inspect model.onnx                     what is in a file
  sartor train --recipe recipe.toml             fine-tune a model
  sartor transform in.onnx -p fold -o out.onnx  apply passes
  sartor help train                             more about a command

Exit codes: 0 it went well; 1 the answer is no, or the run failed; 2 the command line or an input is wrong."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Inspect(inspect::Args),
    Transform(transform::Args),
    Optimize(optimize::Args),
    Train(train::Args),
    Sweep(sweep::Args),
    Eval(eval::Args),
    Report(report::Args),
    Run(run::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    Merge(merge::Args),
    Adapter(adapter::Args),
    Export(export::Args),
    Passes(passes::Args),
    Schema(schema::Args),
}

/// Runs a subcommand.
pub fn run(cli: Cli, registry: &Registry) -> Outcome {
    match cli.command {
        Command::Demo(args) => demo::run(args, registry),
        Command::Optimize(args) => optimize::run(args, registry),
        Command::Train(args) => train::run(args, registry),
        Command::Sweep(args) => sweep::run(args, registry),
        Command::Eval(args) => eval::run(args, registry),
        Command::Report(args) => report::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Inspect(args) => inspect::run(args, registry),
        Command::Transform(args) => transform::run(args, registry),
        Command::Run(args) => run::run(args, registry),
        Command::Verify(args) => verify::run(args, registry),
        Command::Bench(args) => bench::run(args, registry),
        Command::Merge(args) => merge::run(args, registry),
        Command::Adapter(args) => adapter::run(args, registry),
        Command::Export(args) => export::run(args, registry),
        Command::Passes(args) => passes::run(args, registry),
    }
}
