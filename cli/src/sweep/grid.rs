//! `--grid KEY=V1,V2,…`, and the combinations of several.

use crate::failure::{Failure, Outcome};

/// A key of the recipe and the values that it is to have.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// The key, such as `optimizer.learning_rate`.
    pub key: String,
    /// The values as they were written.
    pub values: Vec<String>,
}

/// One value of each grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// The folder's name: `learning_rate=1e-4,schedule=linear`.
    pub name: String,
    /// The values, in the order of the grids.
    pub values: Vec<String>,
    /// The same as `--set` has them: `optimizer.learning_rate=1e-4`.
    pub overrides: Vec<String>,
}

impl Grid {
    /// Reads `KEY=V1,V2`. Commas within brackets, braces or quotes belong to a value.
    pub fn parse(text: &str) -> Outcome<Grid> {
        let wrong =
            |what: &str| Failure::usage(format!("--grid {text}: {what}, such as optimizer.learning_rate=1e-3,1e-2"));
        let (key, list) = text.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE,VALUE,…"))?;
        let (key, values) = (key.trim().to_string(), split(list));
        if key.is_empty() || values.iter().any(String::is_empty) {
            return Err(wrong("expected a key, and a value on both sides of every comma"));
        }
        if key == "output" {
            return Err(Failure::usage(
                "--grid output=…: every combination gets a folder of its own in the recipe's output".to_string(),
            ));
        }
        if let Some(twice) = values.iter().enumerate().find(|(i, value)| values[..*i].contains(value)) {
            return Err(Failure::usage(format!("--grid {text}: the value {} stands there twice", twice.1)));
        }
        Ok(Grid { key, values })
    }
    /// What the key is called in names: its last part, unless another grid's key ends alike.
    pub fn short(&self, all: &[Grid]) -> &str {
        let last = |grid: &Grid| grid.key.rsplit('.').next().map(str::to_string);
        let alone = all.iter().filter(|other| last(other) == last(self)).count() == 1;
        if alone { self.key.rsplit('.').next().unwrap_or(&self.key) } else { &self.key }
    }
}

fn split(list: &str) -> Vec<String> {
    let (mut values, mut depth, mut quote) = (vec![String::new()], 0usize, None);
    for letter in list.chars() {
        match (letter, quote) {
            ('"' | '\'', None) => quote = Some(letter),
            (end, Some(begin)) if end == begin => quote = None,
            ('[' | '{', None) => depth += 1,
            (']' | '}', None) => depth = depth.saturating_sub(1),
            (',', None) if depth == 0 => {
                values.push(String::new());
                continue;
            }
            _ => {}
        }
        values.last_mut().into_iter().for_each(|value| value.push(letter));
    }
    values.iter().map(|value| value.trim().to_string()).collect()
}

/// Every combination; the last grid's value changes first.
pub fn combinations(grids: &[Grid]) -> Outcome<Vec<Combination>> {
    for (i, grid) in grids.iter().enumerate() {
        if grids[..i].iter().any(|other| other.key == grid.key) {
            return Err(Failure::usage(format!("--grid {}: there are two grids of this key", grid.key)));
        }
    }
    let mut rows: Vec<Vec<String>> = vec![Vec::new()];
    for grid in grids {
        let longer = |row: &Vec<String>| {
            let row = row.clone();
            grid.values.iter().map(move |value| [row.clone(), vec![value.clone()]].concat()).collect::<Vec<_>>()
        };
        rows = rows.iter().flat_map(longer).collect();
    }
    let all: Vec<Combination> = rows.into_iter().map(|values| combination(grids, values)).collect();
    let mut names: Vec<&String> = all.iter().map(|c| &c.name).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Failure::usage(format!("two combinations would have the folder {}", pair[0]))),
        None => Ok(all),
    }
}

fn combination(grids: &[Grid], values: Vec<String>) -> Combination {
    let pairs = || grids.iter().zip(&values);
    let name: Vec<String> = pairs().map(|(grid, value)| format!("{}={}", grid.short(grids), plain(value))).collect();
    let overrides = pairs().map(|(grid, value)| format!("{}={value}", grid.key)).collect();
    Combination { name: cut(name.join(",")), overrides, values }
}

/// A value as a part of a folder's name.
fn plain(value: &str) -> String {
    let bare = value.trim_matches(|c: char| "[]{}\"' ".contains(c));
    let kept = |c: char| if c.is_alphanumeric() || "._+-".contains(c) { c } else { '_' };
    let mut out: String = bare.chars().map(kept).collect();
    while out.contains("__") {
        out = out.replace("__", "_");
    }
    out
}

/// File systems take names of 255 bytes: a longer one ends in a number made from all of it (FNV-1a).
fn cut(name: String) -> String {
    const MOST: usize = 180;
    if name.len() <= MOST {
        return name;
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let end = (0..=MOST).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
    format!("{}-{hash:016x}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grids(texts: &[&str]) -> Vec<Grid> {
        texts.iter().map(|text| Grid::parse(text).unwrap()).collect()
    }
    fn names(texts: &[&str]) -> Vec<String> {
        combinations(&grids(texts)).unwrap().into_iter().map(|c| c.name).collect()
    }

    #[test]
    fn commas_at_the_top_separate() {
        let grid = Grid::parse("cola.targets=[\"a\", \"b,c\"], [d],'e,f'").unwrap();
        assert_eq!(grid.values, ["[\"a\", \"b,c\"]", "[d]", "'e,f'"]);
        let error = |text: &str| match Grid::parse(text) {
            Err(Failure::Input(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(error("x").starts_with("--grid x: expected KEY=VALUE,VALUE,…, such as"));
        assert!(error("x=1,,2").contains("a value on both sides of every comma"));
        assert!(error("x=1,2,1").contains("the value 1 stands there twice"));
        assert!(error("output=a,b").contains("a folder of its own"));
    }

    #[test]
    fn names_are_short_and_apart() {
        let two = names(&["optimizer.learning_rate=1e-4,1e-3", "optimizer.schedule=linear,cosine"]);
        assert_eq!(two[..2], ["learning_rate=1e-4,schedule=linear", "learning_rate=1e-4,schedule=cosine"]);
        assert_eq!(
            names(&["cola.schedule=run", "optimizer.schedule=step"]),
            ["cola.schedule=run,optimizer.schedule=step"]
        );
        assert_eq!(names(&["data.train=../a/b.tsv", "cola.split=[1, 2]"]), ["train=.._a_b.tsv,split=1_2"]);
        let long = names(&[&format!("cola.targets={}", "query".repeat(60))]);
        assert!(long[0].len() < 200 && long[0].starts_with("targets=queryquery"), "{long:?}");
        assert!(combinations(&grids(&["a=x/y,x_y"])).is_err() && combinations(&grids(&["a=1", "a=2"])).is_err());
    }
}
