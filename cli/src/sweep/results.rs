//! What came of the combinations: a table on the terminal, `sweep.tsv` and `sweep.json`, best first.

use super::grid::{Combination, Grid};
use crate::files::write_whole;
use crate::recipe;
use crate::table::Table;
use crate::training::higher_is_better;
use sartor_ir::{Error, Result};
use sartor_passes::near::did_you_mean;
use serde_json::{Map, Value, json};
use std::cmp::Ordering;
use std::path::Path;

/// What came of a combination.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// Its summary.
    Done(Map<String, Value>),
    /// Why there is none.
    Failed(String),
}

/// A combination and what came of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub combination: Combination,
    /// What came of it.
    pub ended: Ended,
}

impl Row {
    /// A finite number of the summary.
    fn get(&self, key: &str) -> Option<f64> {
        match &self.ended {
            Ended::Done(summary) => summary.get(key)?.as_f64(),
            Ended::Failed(_) => None,
        }
    }
    fn reason(&self) -> &str {
        match &self.ended {
            Ended::Done(_) => "",
            Ended::Failed(reason) => reason,
        }
    }
}

/// What a summary may hold that one can sort by.
const METRICS: &[&str] = &[
    "eval.accuracy",
    "eval.loss",
    "eval.macro_f1",
    "eval.mse",
    "eval.flops",
    "eval.perplexity",
    "test.accuracy",
    "test.loss",
    "test.macro_f1",
    "test.mse",
    "test.flops",
    "test.perplexity",
    "train.loss",
    "steps",
    "seconds",
    "samples_per_second",
    "peak_rss_mib",
];

/// The metric of `--sort`, which may be written with a slash.
pub fn metric(name: &str) -> Result<String> {
    let plain = name.trim().replace('/', ".");
    if METRICS.contains(&plain.as_str()) {
        return Ok(plain);
    }
    let near = did_you_mean(name, METRICS);
    Err(Error::msg(format!("--sort {name}: there is no such metric{near}; there are {}", METRICS.join(", "))))
}

/// Rows in order.
pub struct Results<'a> {
    grids: &'a [Grid],
    /// What they are sorted by.
    pub metric: String,
    rows: Vec<Row>,
}

impl<'a> Results<'a> {
    /// Sorts the rows: by the metric wanted, or, if none of them has that, by the usual ones.
    pub fn new(grids: &'a [Grid], wanted: Option<&str>, mut rows: Vec<Row>) -> Results<'a> {
        const USUAL: [&str; 4] = ["eval.accuracy", "test.accuracy", "eval.loss", "train.loss"];
        let there = |key: &&str| rows.iter().any(|row| row.get(key).is_some());
        let metric = wanted.into_iter().chain(USUAL).find(there).unwrap_or("train.loss").to_string();
        let higher = higher_is_better(&metric);
        rows.sort_by(|a, b| match (a.get(&metric), b.get(&metric)) {
            (Some(a), Some(b)) if higher => b.total_cmp(&a),
            (Some(a), Some(b)) => a.total_cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            // Those without the number before those that failed.
            (None, None) => a.reason().is_empty().cmp(&b.reason().is_empty()).reverse(),
        });
        Results { grids, metric, rows }
    }
    /// The names of the columns with numbers: what is sorted by, the other metrics, steps and seconds.
    fn columns(&self) -> Vec<&str> {
        let mut columns = vec![self.metric.as_str()];
        let there = |key: &str| self.rows.iter().any(|row| row.get(key).is_some());
        let shown = METRICS.iter().filter(|key| key.contains('.') || ["steps", "seconds"].contains(*key));
        for key in shown {
            if there(key) && !columns.contains(key) {
                columns.push(key);
            }
        }
        columns
    }
    /// Of these, those that fit on a terminal: accuracy says nearly what macro-F1 says.
    fn narrow(&self) -> Vec<&str> {
        let mut columns = self.columns();
        columns.retain(|key| !key.ends_with("macro_f1") || *key == self.metric);
        columns
    }
    /// For the terminal.
    pub fn table(&self) -> Table {
        let columns = self.narrow();
        let failed = self.rows.iter().any(|row| !row.reason().is_empty());
        let keys =
            self.grids.iter().enumerate().map(|(i, g)| {
                if i == 0 { g.short(self.grids).to_string() } else { format!("<{}", g.short(self.grids)) }
            });
        let heads: Vec<String> =
            keys.chain(columns.iter().map(|c| c.to_string())).chain(failed.then(|| "<failed".to_string())).collect();
        let mut table = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
        for row in &self.rows {
            let numbers = columns.iter().map(|key| row.get(key).map(short).unwrap_or_default());
            let reason = failed.then(|| clipped(row.reason()));
            table.row(row.combination.values.iter().cloned().chain(numbers).chain(reason));
        }
        table
    }
    /// Writes `sweep.tsv` and `sweep.json` into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.json()).map_err(|e| Error::msg(e.to_string()))?;
        write_whole(&folder.join("sweep.tsv"), self.tsv())?;
        write_whole(&folder.join("sweep.json"), &(json + "\n"))
    }
    fn tsv(&self) -> String {
        let columns = self.columns();
        let heads = ["folder"].into_iter().chain(self.grids.iter().map(|g| g.key.as_str()));
        let heads: Vec<&str> = heads.chain(columns.iter().copied()).chain(["failed"]).collect();
        let mut text = heads.join("\t") + "\n";
        for row in &self.rows {
            let numbers = columns.iter().map(|key| row.get(key).map(|n| n.to_string()).unwrap_or_default());
            let cells = [row.combination.name.clone()].into_iter().chain(row.combination.values.iter().cloned());
            let cells = cells.chain(numbers).chain([row.reason().to_string()]);
            let cells: Vec<String> = cells.map(|cell| cell.replace(['\t', '\n', '\r'], " ")).collect();
            text += &(cells.join("\t") + "\n");
        }
        text
    }
    fn json(&self) -> Value {
        let run = |row: &Row| {
            let pairs = self.grids.iter().zip(&row.combination.values);
            let values: Map<String, Value> = pairs.map(|(grid, value)| (grid.key.clone(), typed(value))).collect();
            let (summary, failed) = match &row.ended {
                Ended::Done(summary) => (Value::Object(summary.clone()), Value::Null),
                Ended::Failed(reason) => (Value::Null, json!(reason)),
            };
            json!({"folder": row.combination.name, "values": values, "summary": summary, "failed": failed})
        };
        let order = if higher_is_better(&self.metric) { "descending" } else { "ascending" };
        json!({"sort": self.metric, "order": order, "runs": self.rows.iter().map(run).collect::<Vec<_>>()})
    }
}

/// A grid's value as JSON.
fn typed(text: &str) -> Value {
    recipe::value(text).and_then(|value| serde_json::to_value(value).ok()).unwrap_or_else(|| json!(text))
}

fn short(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e15 { format!("{number}") } else { format!("{number:.4}") }
}

/// The first clause.
fn clipped(reason: &str) -> String {
    const MOST: usize = 60;
    let line = reason.lines().next().unwrap_or_default().split("; ").next().unwrap_or_default();
    if line.chars().count() <= MOST {
        line.to_string()
    } else {
        line.chars().take(MOST - 1).collect::<String>() + "…"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::grid::combinations;

    fn rows(grids: &[Grid], summaries: &[Value]) -> Vec<Row> {
        let ended = |summary: &Value| match summary {
            Value::Object(summary) => Ended::Done(summary.clone()),
            other => Ended::Failed(other.as_str().unwrap_or_default().to_string()),
        };
        let all = combinations(grids).unwrap().into_iter().zip(summaries);
        all.map(|(combination, summary)| Row { combination, ended: ended(summary) }).collect()
    }

    #[test]
    fn best_first_failed_last() {
        let grids = [Grid { key: "a.b".into(), values: ["1", "2", "x", "[3]"].map(String::from).into() }];
        let loss = |eval: f64, train: f64| json!({"eval.loss": eval, "train.loss": train, "steps": 12, "seconds": 0.5});
        let summaries =
            [json!("the loss is\tNaN\nat once"), loss(0.5, 0.1), loss(0.25, 0.2), json!({"eval.loss": null})];
        let results = Results::new(&grids, None, rows(&grids, &summaries));
        assert_eq!(results.metric, "eval.loss");
        let lines = results.table().lines();
        assert_eq!(lines[0], "  b    eval.loss  train.loss  steps  seconds  failed");
        assert_eq!(lines[1], "  x       0.2500      0.2000     12   0.5000");
        assert_eq!(lines[4], "  1                                           the loss is\tNaN");
        let tsv = results.tsv();
        assert!(tsv.ends_with("b=1\t1\t\t\t\t\tthe loss is NaN at once\n"), "{tsv}");
        let json = results.json();
        assert_eq!((&json["order"], &json["runs"][0]["values"]["a.b"]), (&json!("ascending"), &json!("x")));
        assert_eq!(json["runs"][2]["values"]["a.b"], json!([3]));
        let by_train = Results::new(&grids, Some("train.loss"), rows(&grids, &summaries));
        assert!(by_train.table().lines()[1].starts_with("  2"));
    }

    #[test]
    fn metrics_by_name() {
        assert_eq!(metric("test/macro_f1").unwrap(), "test.macro_f1");
        let error = metric("eval.acuracy").unwrap_err().to_string();
        assert!(error.contains("did you mean \"eval.accuracy\"") && error.contains("train.loss"), "{error}");
    }
}
