//! `--set key=value`, and the keys of a recipe that are paths.

use sartor_ir::{Error, Result, bail};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The keys whose values are paths.
const PATHS: &[&[&str]] = &[
    &["model"],
    &["output"],
    &["data", "train"],
    &["data", "eval"],
    &["data", "test"],
    &["data", "tokenizer"],
    &["loss", "teacher"],
];

/// Applies `cola.rank=16`. The value is TOML; a word that is none is a string.
pub fn apply(table: &mut Table, text: &str) -> Result<()> {
    let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
        bail!("--set {text}: expected key=value, such as cola.rank=16");
    };
    let path: Vec<&str> = key.split('.').map(str::trim).collect();
    let mut value =
        self::value(value.trim()).ok_or_else(|| Error::msg(format!("--set {text}: the value is not TOML")))?;
    if PATHS.contains(&path.as_slice()) {
        make_absolute(&mut value, &here()?);
    }
    let Some((last, tables)) = path.split_last() else { return Ok(()) };
    let mut table = table;
    for name in tables {
        let entry = table.entry(name.to_string()).or_insert_with(|| Value::Table(Table::new()));
        match entry.as_table_mut() {
            Some(below) => table = below,
            None => bail!("--set {text}: `{name}` is not a table"),
        }
    }
    table.insert(last.to_string(), value);
    Ok(())
}

/// The value that a text stands for: TOML, or else a string.
pub fn value(text: &str) -> Option<Value> {
    if let Ok(mut table) = toml::from_str::<Table>(&format!("value = {text}")) {
        return table.remove("value").filter(|_| table.is_empty());
    }
    let quoted = text.starts_with(['"', '\'', '[', '{']) || text.contains(['\n', '#']);
    (!quoted && !text.is_empty()).then(|| Value::String(text.to_string()))
}

/// Makes the relative paths of a recipe absolute: they are relative to `folder`.
pub fn resolve_paths(table: &mut Table, folder: &Path) -> Result<()> {
    let folder = absolute(folder)?;
    if !table.contains_key("output") {
        table.insert("output".to_string(), super::default_output().to_string_lossy().into_owned().into());
    }
    for path in PATHS {
        let value = match path {
            [key] => table.get_mut(*key),
            [section, key] => table.get_mut(*section).and_then(|s| s.as_table_mut()).and_then(|t| t.get_mut(*key)),
            _ => None,
        };
        if let Some(value) = value {
            make_absolute(value, &folder);
        }
    }
    Ok(())
}

fn here() -> Result<PathBuf> {
    std::env::current_dir().map_err(|e| Error::io(".", e))
}

/// A path from the root.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(here()?.join(path))
}

fn make_absolute(value: &mut Value, folder: &Path) {
    match value {
        Value::String(path) => *path = folder.join(&*path).to_string_lossy().into_owned(),
        Value::Array(list) => list.iter_mut().for_each(|item| make_absolute(item, folder)),
        _ => {}
    }
}
