//! The output folder of a run, read: `metrics.jsonl`, and `summary.json`, `recipe.toml` and `gates.json` where they are.

use super::pictures::{self, Pictures};
use crate::chart::Point;
use crate::gates::Gates;
use crate::note;
use indexmap::IndexMap;
use sartor_ir::{Error, Result, bail};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A run.
#[derive(Debug)]
pub struct Run {
    /// What it is called among the others.
    pub name: String,
    /// Its output folder.
    pub folder: PathBuf,
    /// What was logged.
    pub metrics: Metrics,
    /// The numbers that it left; empty while it goes on.
    pub summary: Map<String, Value>,
    /// Its recipe, as it was written.
    pub recipe: Option<String>,
    /// How its gates are used, if it has some.
    pub gates: Option<Gates>,
    /// The inputs that use the gates least and most, if they are images; an error: why they cannot be shown.
    pub pictures: Result<Option<Pictures>>,
    /// When the last line was logged.
    pub written: Option<SystemTime>,
}

/// The lines of `metrics.jsonl`, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Numbers over steps.
    pub numbers: IndexMap<String, Vec<Point>>,
    /// Lists of numbers over steps.
    pub lists: IndexMap<String, Vec<(f64, Vec<f64>)>>,
}

impl Run {
    /// Reads a folder. What is not there is left out, but for the metrics.
    pub fn read(folder: &Path) -> Result<Run> {
        let path = folder.join("metrics.jsonl");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(
                "{}: there is no metrics.jsonl in it; the output folder of a `sartor train` has one",
                folder.display()
            ),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let place = |e: Error| e.at(path.display().to_string());
        let metrics = Metrics::parse(&text, &mut |notice| note!("{}: {notice}", path.display())).map_err(place)?;
        let summary = match optional(&folder.join("summary.json"))? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|e| Error::msg(format!("{}: {e}", folder.join("summary.json").display())))?,
            None => Map::new(),
        };
        let gates = Gates::read(folder)?;
        Ok(Run {
            name: folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned(),
            folder: folder.to_path_buf(),
            metrics,
            summary,
            recipe: optional(&folder.join("recipe.toml"))?,
            pictures: gates.as_ref().map_or(Ok(None), |gates| pictures::read(folder, gates)),
            gates,
            written: std::fs::metadata(&path).and_then(|m| m.modified()).ok(),
        })
    }
    /// The recipe as a table; `None` if there is none that is one.
    pub fn table(&self) -> Option<toml::Table> {
        toml::from_str(self.recipe.as_ref()?).ok()
    }
    /// The file name of the recipe's model.
    pub fn model(&self) -> Option<String> {
        let table = self.table()?;
        let path = Path::new(table.get("model")?.as_str()?);
        Some(path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned())
    }
    /// The values of a metric; empty if it was never logged.
    pub fn curve(&self, name: &str) -> &[Point] {
        self.metrics.numbers.get(name).map(Vec::as_slice).unwrap_or_default()
    }
    /// The lists of a metric; empty if it was never logged.
    pub fn lists(&self, name: &str) -> &[(f64, Vec<f64>)] {
        self.metrics.lists.get(name).map(Vec::as_slice).unwrap_or_default()
    }
}

fn optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}

impl Metrics {
    /// Reads the lines. A last line that was not written to its end (of a run that still goes on, or was killed) is left
    /// out, and told.
    pub fn parse(text: &str, notice: &mut dyn FnMut(&str)) -> Result<Metrics> {
        let mut metrics = Metrics::default();
        let count = text.lines().count();
        for (i, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            match metrics.add(line) {
                Err(_) if i + 1 == count && !text.ends_with('\n') => {
                    notice(&format!("line {}, the last one, is not complete, and left out", i + 1));
                }
                Err(error) => return Err(error.at(format!("line {}", i + 1))),
                Ok(()) => {}
            }
        }
        Ok(metrics)
    }
    /// Whether nothing was logged yet.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.lists.is_empty()
    }
    fn add(&mut self, line: &str) -> Result<()> {
        let value: Value = serde_json::from_str(line).map_err(|e| Error::msg(format!("it is not JSON: {e}")))?;
        let Value::Object(entries) = value else { bail!("expected an object such as {{\"step\":1,\"loss\":0.5}}") };
        let Some(step) = entries.get("step").and_then(Value::as_f64) else { bail!("it has no number `step`") };
        for (name, value) in entries {
            if name == "step" || name == "epoch" {
                continue;
            }
            if let Some(list) = value.as_array() {
                let list = list.iter().map(|v| number(v).unwrap_or(f64::NAN)).collect();
                self.lists.entry(name).or_default().push((step, list));
            } else if let Some(number) = number(&value) {
                self.numbers.entry(name).or_default().push((step, number));
            }
        }
        Ok(())
    }
}

/// A number, or one of the words that stand for numbers that JSON has not.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(word) => match word.trim_start_matches('-').to_ascii_lowercase().as_str() {
            "nan" => Some(f64::NAN),
            "inf" | "infinity" => Some(f64::INFINITY),
            _ => None,
        },
        other => other.as_f64(),
    }
}

/// Names that tell the runs apart: those of their folders, or, if some are alike, their paths.
pub fn name_apart(runs: &mut [Run]) {
    let mut names: Vec<&String> = runs.iter().map(|run| &run.name).collect();
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        runs.iter_mut().for_each(|run| run.name = run.folder.display().to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Metrics, Vec<String>)> {
        let mut notices = Vec::new();
        Ok((Metrics::parse(text, &mut |n| notices.push(n.to_string()))?, notices))
    }

    #[test]
    fn numbers_words_and_lists() {
        let text = "{\"step\":1,\"epoch\":0.5,\"loss\":\"NaN\",\"samuel/loss\":[1,\"inf\",\"NaN\"]}\n\n{\"step\":2,\"loss\":0.5,\"note\":\"x\"}\n{\"step\":3,\"lo";
        let (metrics, notices) = parse(text).unwrap();
        assert_eq!(metrics.numbers.keys().collect::<Vec<_>>(), ["loss"]);
        assert!(metrics.numbers["loss"][0].1.is_nan() && metrics.numbers["loss"][1] == (2.0, 0.5));
        let (step, list) = &metrics.lists["samuel/loss"][0];
        assert!(*step == 1.0 && list[0] == 1.0 && list[1].is_infinite() && list[2].is_nan());
        assert_eq!(notices, ["line 4, the last one, is not complete, and left out"]);
    }

    #[test]
    fn broken_lines_are_named() {
        let error = |text: &str| parse(text).map(drop).unwrap_err().to_string();
        assert!(error("{\"step\":1,\"loss\":2}\n{oops\n{\"step\":3}\n").starts_with("line 2: it is not JSON: "));
        assert_eq!(error("[1]\n"), "line 1: expected an object such as {\"step\":1,\"loss\":0.5}");
        assert_eq!(error("{\"loss\":1}\n"), "line 1: it has no number `step`");
        assert!(parse("").unwrap().0.is_empty());
    }
}
