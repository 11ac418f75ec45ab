//! The learning rate that is chosen while training, beside a whole grid of rates and schedules.
//!
//! Five tasks, each with a grid of five rates and three schedules, optimizers that need no rate, and SAMUEL with its variants:
//! `sartor train` on recipes that [`tasks`] makes. Data: `tests/assets/fetch.sh --samuel`. Every run leaves a folder in RUNS, so that an
//! interrupted series goes on where it was; what a run that ended gave is recorded in `docs/results/samuel.jsonl` too, and not run again but with
//! `--fresh`. Rows that this `sartor` does not know yet are told and made later. The tables go to `docs/results/samuel.md`. Everything takes days of one processor; the tasks but CIFAR take hours.

mod cost;
mod report;
mod runs;
mod tasks;

use clap::Parser;
use runs::{Run, Runs};
use sartor_ir::{Error, Result, ensure};
use std::path::PathBuf;
use tasks::{Group, RATES, Row, TASKS, Task};

/// Trains with every learning rate of a grid, and with rates chosen while training
#[derive(Parser)]
struct Args {
    /// The folder of the runs
    #[arg(default_value = "target/samuel")]
    runs: PathBuf,
    /// Times steps with and without experts instead, by turns, so many rounds
    #[arg(long, value_name = "ROUNDS")]
    cost: Option<usize>,
    /// Only these tasks, in this order
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    tasks: Vec<String>,
    /// Only rows whose name contains this; several by commas
    #[arg(long, value_delimiter = ',', value_name = "TEXT,…")]
    rows: Vec<String>,
    /// Seeds of the rows beside the grid, and of its best cell
    #[arg(long, default_value_t = 3)]
    seeds: usize,
    /// Threads of a run
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Runs what the record in docs/results has already
    #[arg(long)]
    fresh: bool,
    /// Runs nothing, writes the tables of what there is
    #[arg(long)]
    table: bool,
    /// Runs nothing, lists the runs and what is known of them
    #[arg(long)]
    list: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(rounds) = args.cost {
        return cost::measure(rounds, args.threads);
    }
    let (tasks, runs) = (args.selected()?, Runs::new(&args.runs, args.fresh)?);
    if args.list {
        tasks.iter().for_each(|task| list(&args, &runs, task));
        return Ok(());
    }
    if !args.table {
        tasks.iter().try_for_each(|task| make(&args, &runs, task))?;
    }
    // What was recorded just now counts too.
    let runs = Runs::new(&args.runs, args.fresh)?;
    report::write(&runs, args.seeds.max(runs.seeds()))
}

impl Args {
    fn selected(&self) -> Result<Vec<&'static Task>> {
        let find = |name: &String| {
            let known = || TASKS.iter().map(|task| task.name).collect::<Vec<_>>().join(", ");
            let found = TASKS.iter().find(|task| task.name == name);
            found.ok_or_else(|| Error::msg(format!("there is no task \"{name}\"; there are {}", known())))
        };
        ensure!(self.seeds > 0, "--seeds is 0");
        if self.tasks.is_empty() { Ok(TASKS.iter().collect()) } else { self.tasks.iter().map(find).collect() }
    }
    fn wants(&self, row: &Row) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|text| row.name.contains(text))
    }
}

/// The grid first, then its best cells with the other seeds, then the rest, seed by seed.
fn make(args: &Args, runs: &Runs, task: &Task) -> Result<()> {
    let run = |row: &Row, seed: usize| match args.wants(row) {
        true => runs::make(runs, task, row, seed, args.threads),
        false => Ok(()),
    };
    task.grid().iter().try_for_each(|cell| run(cell, 0))?;
    let best = Best::of(runs, task);
    for seed in 0..args.seeds {
        best.cells().try_for_each(|cell| run(cell, seed))?;
        task.rows(best.rate()).iter().try_for_each(|row| run(row, seed))?;
    }
    Ok(())
}

fn list(args: &Args, runs: &Runs, task: &Task) {
    let best = Best::of(runs, task);
    let print = |row: &Row, seed: usize| {
        let state = match runs::read(runs, task, row, seed) {
            Run::Finished(run) => format!("{:.4}, {:.1} s", run.accuracy, run.seconds),
            Run::Diverged(seconds) => format!("diverged, {seconds:.1} s"),
            Run::Missing(why) => format!("missing: {why}"),
        };
        println!("{} {}, seed {seed}: {state}", task.name, row.name);
    };
    let (grid, rows) = (task.grid(), task.rows(best.rate()));
    grid.iter().filter(|row| args.wants(row)).for_each(|row| print(row, 0));
    for seed in 0..args.seeds {
        let others = best.cells().filter(|_| seed > 0).chain(&rows);
        others.filter(|row| args.wants(row)).for_each(|row| print(row, seed));
    }
}

/// The best cells of a grid that is complete.
pub struct Best {
    /// By accuracy on the test data, of seed 0.
    pub by_test: Option<Row>,
    /// By accuracy on the evaluation data, where it serves that.
    pub by_validation: Option<Row>,
}

impl Best {
    /// Of seed 0.
    pub fn of(runs: &Runs, task: &Task) -> Best {
        let grid = task.grid();
        let found: Vec<Run> = grid.iter().map(|cell| runs::read(runs, task, cell, 0)).collect();
        if found.iter().any(|run| matches!(run, Run::Missing(_))) {
            return Best { by_test: None, by_validation: None };
        }
        let best = |number: &dyn Fn(&runs::Finished) -> Option<f64>| {
            let numbers = grid.iter().zip(&found).filter_map(|(cell, run)| match run {
                Run::Finished(run) => Some((cell, number(run)?)),
                _ => None,
            });
            numbers.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(cell, _)| cell.clone())
        };
        Best { by_test: best(&|run| Some(run.accuracy)), by_validation: best(&|run| run.validation) }
    }
    /// Without repetition.
    pub fn cells(&self) -> impl Iterator<Item = &Row> {
        let second = self.by_validation.as_ref().filter(|b| self.by_test.as_ref().is_none_or(|a| a.name != b.name));
        self.by_test.iter().chain(second)
    }
    /// The best cell's learning rate.
    pub fn rate(&self) -> Option<f64> {
        match self.by_test.as_ref()?.group {
            Group::Grid { rate } => Some(RATES[rate]),
            _ => None,
        }
    }
}
