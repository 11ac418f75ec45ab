//! The tables of `docs/results/samuel.md`.

use crate::Best;
use crate::runs::{self, Run, Runs};
use crate::tasks::{DEFAULTS, Group, Judged, RATES, Row, TASKS, Task};
use sartor_bench::{Series, short, table};
use sartor_ir::{Error, Result};
use std::collections::HashSet;
use std::path::Path;

/// The rows that the goal is for.
const MODES: [&str; 4] = ["samuel", "samuel-shared", "independent", "shared"];
/// The reasons that were found where they miss it.
const WHY: &str = "Why the first row misses film reviews: its rates stay constant. \
                   The same five rates falling linearly (`independent`; its experts are those of AdamW there too) are level with the best cell, but lose 4 points on 20 Newsgroups and 12 on the shifting task, so \
                   `[samuel]` does not lower them by itself. \
                   `independent` misses on compute where nothing else is said: nobody is retired there.";
const HEAD: [&str; 7] =
    ["", "seeds", "mean", "against the best cell", "steps", "processor seconds", "share of the grid's compute"];

const GOALS: [&str; 7] =
    ["task", "mode", "seeds", "against the best cell", "grid's median", "share of the grid's compute", "reached"];
/// How far below the best cell is near enough, and how much of the grid's compute is little enough.
const NEAR: f64 = 0.005;
const SHARE: f64 = 1.0 / 3.0;

/// Writes the tables of what there is.
pub fn write(runs: &Runs, seeds: usize) -> Result<()> {
    let mut text = format!(
        "# The learning rate chosen while training, beside a grid\n\n\
         Accuracies on the test data at the end of a run. A grid is every rate with every schedule (each falls to zero at the \
         end of the run but the constant one), with seed 0; its best cell is the one with the best test accuracy of seed 0, as \
         the literature does it, which flatters the grid; the cell that the validation data would have chosen stands beside it. \
         The best cells and all rows beside the grid are run with seeds 0 to {}; \"against the best cell\" is the \
         difference of the means over the seeds that both have. A run whose loss or gradient is no longer finite ends there and counts \
         as guessing. Compute is processor seconds of the whole command on one thread, evaluation included, on a shared machine; \
         the grid's is the sum of its cells, diverged ones up to their end; seconds with an asterisk were taken on another processor than the grid's. \
         Written by `cargo run --release -p sartor-bench --bin samuel`.\n\n\
         All rows of SAMUEL have `rates = [1, 0.1, 0.01, 0.001, 0.0001]` and no other key but those that their names say, on every task. \
         The first two leave everything else to `sartor`: experts of AdamW, constant rates, averaged parameters; a third has experts of AdaGrad. The other rows have experts \
         of the task's own optimizer, whose rates fall linearly if their names say nothing else, and the last point; nobody is retired there. \
         Experts are never restarted unless a row says so; `independent` plays the likeliest expert, the others the average.\n",
        seeds - 1
    );
    text += "\n## In short\n\nThe goal: at most 0.005 below the grid's best cell, above its median, for at most a third of its \
        compute.\n\n";
    let lines: Vec<Vec<String>> = TASKS.iter().flat_map(|task| View::of(runs, task, seeds).goals()).collect();
    text += &table(&GOALS, &lines);
    text += &reached(&lines);
    let mut ablations = String::from("\n# Ablations\n");
    for task in TASKS {
        let view = View::of(runs, task, seeds);
        text += &view.section();
        ablations += &view.rows(&format!("\n## {}\n\n", task.title), Group::Ablation);
    }
    text += &ablations;
    println!("{text}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results/samuel.md");
    std::fs::write(&path, text).map_err(|e| Error::io(&path, e))
}

/// What is known of a task.
struct View<'a> {
    runs: &'a Runs,
    task: &'a Task,
    seeds: usize,
    /// The cells with their runs of seed 0.
    grid: Vec<(Row, Run)>,
    best: Best,
    /// Accuracies of the best cell by seed.
    reference: Vec<Option<f64>>,
    /// Processor seconds of the grid.
    compute: f64,
}

/// On how many tasks each mode reaches the goal, and on how many one of the two without a further key does.
fn reached(goals: &[Vec<String>]) -> String {
    let yes = |line: &&Vec<String>| line.last().is_some_and(|last| last == "yes");
    let count = |mode: &str| goals.iter().filter(yes).filter(|line| line[1] == format!("`{mode}`")).count();
    let each: Vec<String> = MODES.iter().map(|mode| format!("`{mode}` on {}", count(mode))).collect();
    let plain = |line: &&Vec<String>| ["`samuel`", "`samuel-shared`"].contains(&line[1].as_str());
    let tasks: HashSet<&String> = goals.iter().filter(yes).filter(plain).map(|line| &line[0]).collect();
    let all = TASKS.len();
    format!(
        "\nOf {all} tasks, {}. With nothing to choose but the mode (the first two, the same settings everywhere), one of them reaches it on {} of {all}.\n\n{WHY}\n",
        each.join(", "),
        tasks.len()
    )
}

impl<'a> View<'a> {
    fn of(runs: &'a Runs, task: &'a Task, seeds: usize) -> View<'a> {
        let grid = task.grid().into_iter().map(|cell| (cell.clone(), runs::read(runs, task, &cell, 0)));
        let grid: Vec<(Row, Run)> = grid.collect();
        let best = Best::of(runs, task);
        let compute = grid.iter().filter_map(|(_, run)| seconds(run)).sum();
        let mut view = View { runs, task, seeds, grid, best, reference: Vec::new(), compute };
        if let Some(cell) = &view.best.by_test {
            view.reference = view.made(cell).iter().map(|run| accuracy(run, task)).collect();
        }
        view
    }
    /// The runs of all seeds.
    fn made(&self, row: &Row) -> Vec<Run> {
        (0..self.seeds).map(|seed| runs::read(self.runs, self.task, row, seed)).collect()
    }
    fn section(&self) -> String {
        let task = self.task;
        let mut text = format!("\n## {}\n\n{} {} steps.", task.title, task.about, task.steps);
        match self.runs.processors(task)[..] {
            [] => {}
            [one] => text += &format!(" On {one}."),
            [first, ref others @ ..] => text += &format!(" On {first}; with an asterisk: {}.", others.join("; ")),
        }
        if let Judged::BeforeAndAfter(step) = task.judged {
            text +=
                &format!(" Accuracy is the mean of the one before the shift, at step {step}, and the one at the end.");
        }
        text + "\n\n" + &self.grid_table() + &self.rows("\n", Group::Main)
    }
    /// A line of each mode: whether it reaches the goal.
    fn goals(&self) -> Vec<Vec<String>> {
        let rows = self.task.rows(self.best.rate());
        let modes = rows.iter().filter(|row| MODES.contains(&row.name.as_str()));
        modes.map(|row| self.goal(row)).collect()
    }
    fn goal(&self, row: &Row) -> Vec<String> {
        let made = self.made(row);
        let own: Vec<Option<f64>> = made.iter().map(|run| accuracy(run, self.task)).collect();
        let pairs: Vec<(f64, f64)> =
            own.iter().zip(&self.reference).filter_map(|(a, b)| Some(((*a)?, (*b)?))).collect();
        let mut line = vec![self.task.title.to_string(), format!("`{}`", row.name)];
        let complete = self.grid.iter().all(|(_, run)| accuracy(run, self.task).is_some());
        if pairs.is_empty() || !complete {
            line.extend([
                format!("0 of {}", self.seeds),
                String::new(),
                String::new(),
                String::new(),
                "missing".to_string(),
            ]);
            return line;
        }
        let all: Vec<f64> = self.grid.iter().filter_map(|(_, run)| accuracy(run, self.task)).collect();
        let median = Series(all).median();
        let difference = mean(&pairs.iter().map(|(own, best)| own - best).collect::<Vec<_>>());
        let value = mean(&pairs.iter().map(|(own, _)| *own).collect::<Vec<_>>());
        let share = mean(&made.iter().filter_map(seconds).collect::<Vec<_>>()) / self.compute;
        let failures =
            [(difference < -NEAR, "accuracy"), (value <= median, "not above the median"), (share > SHARE, "compute")];
        let failed: Vec<&str> = failures.iter().filter(|f| f.0).map(|f| f.1).collect();
        let reached = if failed.is_empty() { "yes".to_string() } else { format!("no: {}", failed.join(", ")) };
        line.extend([
            format!("{} of {}", pairs.len(), self.seeds),
            format!("{difference:+.4}"),
            format!("{median:.4}"),
            format!("{share:.3}"),
            reached,
        ]);
        line
    }
    fn grid_table(&self) -> String {
        let mut rows: Vec<Vec<String>> = RATES.iter().map(|rate| vec![rate.to_string()]).collect();
        for (row, run) in &self.grid {
            if let Group::Grid { rate } = row.group {
                rows[rate].push(cell(run));
            }
        }
        let head: Vec<&str> = std::iter::once("rate").chain(self.task.schedules.iter().copied()).collect();
        let mut all: Vec<f64> = self.grid.iter().filter_map(|(_, run)| accuracy(run, self.task)).collect();
        all.sort_by(f64::total_cmp);
        let missing = self.grid.len() - all.len();
        let state = match (all.first(), all.last()) {
            (Some(worst), Some(best)) if missing == 0 => {
                format!("best {best:.4}, median {:.4}, worst {worst:.4}", Series(all.clone()).median())
            }
            _ => format!("{missing} of {} cells are missing", self.grid.len()),
        };
        let compute = format!("{} processor seconds", short(self.compute));
        format!("{}\nThe grid: {state}; {compute} together.\n", table(&head, &rows))
    }
    /// A table of a group's rows; of the main one, the best cells first.
    fn rows(&self, head: &str, group: Group) -> String {
        let mut lines: Vec<Vec<String>> = Vec::new();
        if group == Group::Main {
            for cell in self.best.cells() {
                lines.push(self.line(&format!("{}: {}", self.why(cell), cell.what), cell));
            }
        }
        let rows = self.task.rows(self.best.rate());
        let in_group = rows.iter().filter(|row| row.group == group);
        if group == Group::Ablation && in_group.clone().count() > 0 {
            let defaults = rows.iter().filter(|row| row.name == DEFAULTS);
            lines.extend(defaults.map(|row| self.line("falling rates, plays the likeliest expert, no restart", row)));
        }
        lines.extend(in_group.map(|row| self.line(&row.what, row)));
        if lines.is_empty() { String::new() } else { format!("{head}{}", table(&HEAD, &lines)) }
    }
    /// Why a cell of the grid is in the table.
    fn why(&self, cell: &Row) -> &'static str {
        let is = |best: &Option<Row>| best.as_ref().is_some_and(|best| best.name == cell.name);
        match (is(&self.best.by_test), is(&self.best.by_validation)) {
            (true, true) => "best cell, also by validation",
            (true, false) => "best cell",
            _ => "best cell by validation",
        }
    }
    fn line(&self, what: &str, row: &Row) -> Vec<String> {
        let made = self.made(row);
        let found: Vec<Option<f64>> = made.iter().map(|run| accuracy(run, self.task)).collect();
        if let (true, Run::Missing(why)) = (found.iter().all(Option::is_none), &made[0]) {
            let reason = why.split(';').next().unwrap_or_default().replace('|', "/");
            let mut line = vec![what.to_string(), format!("missing: {reason}")];
            line.resize(HEAD.len(), String::new());
            return line;
        }
        let cells: Vec<String> = made.iter().map(cell).collect();
        let pairs = found.iter().zip(&self.reference).filter_map(|(own, best)| Some((*own)? - (*best)?));
        let differences: Vec<f64> = pairs.collect();
        let steps = made.iter().filter_map(|run| match run {
            Run::Finished(run) => Some(run.steps),
            _ => None,
        });
        let seconds = mean(&made.iter().filter_map(seconds).collect::<Vec<_>>());
        let elsewhere = (0..self.seeds).any(|seed| self.runs.is_elsewhere(self.task, row, seed));
        let mark = if elsewhere { " *" } else { "" };
        vec![
            what.to_string(),
            cells.join(", "),
            format!("{:.4}", mean(&found.iter().flatten().copied().collect::<Vec<_>>())),
            if differences.is_empty() { "-".to_string() } else { format!("{:+.4}", mean(&differences)) },
            steps.fold(0.0, f64::max).to_string(),
            format!("{}{mark}", short(seconds)),
            format!("{:.3}{mark}", seconds / self.compute),
        ]
    }
}

fn cell(run: &Run) -> String {
    match run {
        Run::Finished(run) => format!("{:.4}", run.accuracy),
        Run::Diverged(_) => "diverged".to_string(),
        Run::Missing(_) => "missing".to_string(),
    }
}

/// The accuracy that a run counts with.
fn accuracy(run: &Run, task: &Task) -> Option<f64> {
    match run {
        Run::Finished(run) => Some(run.accuracy),
        Run::Diverged(_) => Some(task.chance),
        Run::Missing(_) => None,
    }
}

fn seconds(run: &Run) -> Option<f64> {
    match run {
        Run::Finished(run) => Some(run.seconds),
        Run::Diverged(seconds) => Some(*seconds),
        Run::Missing(_) => None,
    }
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}
