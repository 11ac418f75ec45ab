//! Sartor beside its peers: `versus (train|infer|optimise|batch) [--rounds N] [--steps N] [--only NAME]…`.
//!
//! Everybody runs in a process of their own, by turns, so that a busy machine disturbs all alike; each process gives a
//! median, and the tables the median of these over the rounds. Only the runtimes of `infer` share a process
//! (`sartor bench --against`), where they take turns from run to run. Who fails is in the table with the reason, and the
//! rest goes on. The results are printed and, without `--only`, written to `benches/results/`.
//!
//! ```sh
//! tests/assets/fetch.sh --bench
//! cargo build --release --workspace --features sartor/ort,sartor/tract
//! target/release/versus train
//! ```

mod batch;
mod infer;
mod optimise;
mod train;

use clap::{Parser, ValueEnum};
use sartor_ir::{Result, ensure};

/// Sartor beside its peers
#[derive(Parser)]
struct Args {
    /// What is measured
    what: What,
    /// How often everybody has a turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Steps or runs that count in one turn
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Only this workload; the results are not written
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Train,
    Infer,
    Optimise,
    Batch,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.what {
        What::Train => train::run(&args),
        What::Infer => infer::run(&args),
        What::Optimise => optimise::run(&args),
        What::Batch => batch::run(&args),
    }
}

impl Args {
    /// The workloads that are wanted, of rows with names.
    fn select<'a, T>(&self, rows: &'a [T], name: fn(&T) -> &str) -> Result<Vec<&'a T>> {
        let names: Vec<&str> = rows.iter().map(name).collect();
        for wanted in &self.only {
            ensure!(names.contains(&wanted.as_str()), "there is no \"{wanted}\"; there are: {}", names.join(", "));
        }
        let wanted = |row: &&T| self.only.is_empty() || self.only.iter().any(|only| only == name(row));
        Ok(rows.iter().filter(wanted).collect())
    }
    /// Prints the results, and writes them if they are complete.
    fn record(&self, name: &str, title: &str, body: &str) -> Result<()> {
        if self.only.is_empty() {
            return sartor_bench::record(name, title, body);
        }
        println!("{body}");
        Ok(())
    }
}
