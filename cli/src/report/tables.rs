//! The numbers of summaries: the most important ones of a run as tiles, all of them, and those of several runs side by side
//! with the keys in which their recipes differ.

use super::curves::{Page, plain};
use super::run::Run;
use crate::chart::{Pen, escape, number};
use crate::training::higher_is_better;
use serde_json::Value;
use std::cmp::Ordering;

/// The numbers that one looks for first.
pub fn tiles(run: &Run) -> String {
    const FIRST: [&[&str]; 5] = [
        &["test.accuracy", "eval.accuracy"],
        &["test.perplexity", "eval.perplexity"],
        &["test.loss", "eval.loss"],
        &["train.loss"],
        &["seconds"],
    ];
    let there = FIRST.iter().filter_map(|keys| keys.iter().find(|key| run.summary.contains_key(**key)));
    let tile = |key: &&str| {
        let value = run.summary.get(*key).map(|v| written(key, v)).unwrap_or_default();
        let name = if *key == "seconds" { "duration".to_string() } else { label(key) };
        format!("<li><b>{value}</b><span>{}</span></li>\n", escape(&name))
    };
    let tiles: String = there.map(tile).collect();
    if tiles.is_empty() { tiles } else { format!("<ul class=\"tiles\">\n{tiles}</ul>\n") }
}

/// Every number of the summary.
pub fn numbers(run: &Run) -> String {
    let row = |(key, value): (&String, &Value)| {
        format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(&label(key)), written(key, value))
    };
    let rows: String = run.summary.iter().map(row).collect();
    if rows.is_empty() { rows } else { format!("<dl class=\"numbers\">\n{rows}</dl>\n") }
}

/// So many columns for keys of the recipe fit beside the summary.
const BESIDE: usize = 4;

/// A row for each run: what is particular of its recipe, if that is not much, and its summary. The best of a column is bold.
pub fn compared(page: &Page, runs: &[Run]) -> String {
    const LEFT_OUT: [&str; 3] = ["best.value", "all_parameters", "epochs"];
    let differences = Some(differences(runs)).filter(|list| list.len() <= BESIDE).unwrap_or_default();
    let mut keys: Vec<&String> = Vec::new();
    for key in runs.iter().flat_map(|run| run.summary.keys()) {
        if !keys.contains(&key) && !LEFT_OUT.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let none_skipped = runs.iter().all(|run| run.summary.get("skipped_steps").is_none_or(|v| v.as_f64() == Some(0.0)));
    keys.retain(|key| *key != "skipped_steps" || !none_skipped);
    if keys.is_empty() && differences.is_empty() {
        return String::new();
    }
    let heads = differences
        .iter()
        .map(|(key, _)| escape(key).replace('.', ".<wbr>"))
        .chain(keys.iter().map(|key| escape(&label(key))));
    let mut out = format!(
        "<div class=\"scroll\">\n<table>\n<tr><th>run</th>{}</tr>\n",
        heads.map(|head| format!("<th>{head}</th>")).collect::<String>()
    );
    for (i, run) in runs.iter().enumerate() {
        let (colour, pen) = page.look(i);
        let (colour, dashed) = (colour.style(), if pen == Pen::Dashed { " dashed" } else { "" });
        let name = escape(&run.name);
        out += &format!("<tr><td><i class=\"key ink{dashed}\" style=\"{colour}\"></i>{name}</td>");
        differences.iter().for_each(|(_, values)| out += &format!("<td>{}</td>", escape(&values[i])));
        keys.iter().for_each(|key| out += &cell(runs, run, key));
        out += "</tr>\n";
    }
    out + "</table>\n</div>\n"
}

/// The keys in which the recipes differ, one a row, where they are too many to stand beside the summaries.
pub fn differing(runs: &[Run]) -> String {
    let differences = differences(runs);
    if runs.len() == 1 || differences.len() <= BESIDE {
        return String::new();
    }
    let heads: String = runs.iter().map(|run| format!("<th>{}</th>", escape(&run.name))).collect();
    let mut out = format!("<div class=\"scroll\">\n<table>\n<tr><th>key</th>{heads}</tr>\n");
    for (key, values) in &differences {
        let cells: String = values.iter().map(|value| format!("<td>{}</td>", escape(value))).collect();
        out += &format!("<tr><td>{}</td>{cells}</tr>\n", escape(key));
    }
    out + "</table>\n</div>\n"
}

fn cell(runs: &[Run], run: &Run, key: &str) -> String {
    let Some(value) = run.summary.get(key) else { return "<td></td>".to_string() };
    let text = written(key, value);
    let judged = ["accuracy", "macro_f1", "loss", "mse", "perplexity"].iter().any(|end| key.ends_with(end));
    let better = |other: &Run| {
        let order = other.summary.get(key).and_then(Value::as_f64).partial_cmp(&value.as_f64());
        order == Some(if higher_is_better(key) { Ordering::Greater } else { Ordering::Less })
    };
    let best = judged && value.is_number() && !runs.iter().filter(|r| r.summary.contains_key(key)).any(better);
    if best { format!("<td><b>{text}</b></td>") } else { format!("<td>{text}</td>") }
}

/// The keys of the recipes that are not alike in all, with each run's value.
fn differences(runs: &[Run]) -> Vec<(String, Vec<String>)> {
    let flat: Vec<Vec<(String, String)>> = runs.iter().map(|run| flatten(&run.table().unwrap_or_default())).collect();
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in flat.iter().flatten() {
        if key != "output" && !keys.contains(&key) {
            keys.push(key);
        }
    }
    let values = |key: &String| -> Vec<String> {
        let of = |list: &Vec<(String, String)>| list.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        flat.iter().map(|list| of(list).unwrap_or_else(|| "–".to_string())).collect()
    };
    let all = keys.into_iter().map(|key| (key.clone(), values(key)));
    all.filter(|(_, values)| values.iter().any(|value| *value != values[0])).collect()
}

/// `cola.rank` → `16`, for every key of a recipe.
fn flatten(table: &toml::Table) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => out.extend(flatten(inner).into_iter().map(|(k, v)| (format!("{key}.{k}"), v))),
            toml::Value::String(text) => out.push((key.clone(), text.clone())),
            toml::Value::Float(x) if x.abs() >= 1e6 => out.push((key.clone(), format!("{x:e}"))),
            toml::Value::Float(x) => out.push((key.clone(), number(*x))),
            other => out.push((key.clone(), other.to_string())),
        }
    }
    out
}

/// `test.macro_f1` as `test macro F1`.
fn label(key: &str) -> String {
    match key {
        "peak_rss_mib" => "peak memory".to_string(),
        "seconds" => "time".to_string(),
        "best.step" => "best at step".to_string(),
        "best.value" => "best value".to_string(),
        "train.loss" => "training loss".to_string(),
        "eval.mse" | "test.mse" => key.replace(".mse", " squared error"),
        other => plain(&other.replace('.', " ")),
    }
}

fn written(key: &str, value: &Value) -> String {
    let Some(number_) = value.as_f64() else {
        return if value.is_null() { "not finite".to_string() } else { escape(&value.to_string()) };
    };
    match key {
        "seconds" if number_ >= 60.0 => duration(number_),
        "seconds" => format!("{} s", number(number_)),
        "peak_rss_mib" => format!("{} MiB", number(number_)),
        _ => number(number_),
    }
}

/// `1 h 02 min`, `3 min 20 s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds / 3600 {
        0 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        hours => format!("{hours} h {:02} min", seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units() {
        let of = |key: &str, value: f64| written(key, &Value::from(value));
        assert_eq!(
            [of("seconds", 0.76), of("seconds", 200.0), of("seconds", 3725.0)],
            ["0.76 s", "3 min 20 s", "1 h 02 min"]
        );
        assert_eq!(
            (of("peak_rss_mib", 30.1), written("test.loss", &Value::Null)),
            ("30.1 MiB".into(), "not finite".into())
        );
        assert_eq!(
            (label("test.macro_f1"), label("trainable_parameters")),
            ("test macro F1".into(), "trainable parameters".into())
        );
        let table: toml::Table = toml::from_str("a = 1\n[cola]\nrank = 16\ntargets = [\"q\"]\n").unwrap();
        let flat: Vec<String> = flatten(&table).into_iter().map(|(k, v)| format!("{k} {v}")).collect();
        assert_eq!(flat, ["a 1", "cola.rank 16", "cola.targets [\"q\"]"]);
    }
}
