//! `metrics.jsonl`, one JSON object per line, and the TensorBoard events beside it. Both only grow; a resumed run cuts
//! them back to where its checkpoint was.

use super::tensorboard::EventFile;
use sartor_ir::{Error, Result, ensure};
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How far the logs had got.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Offsets {
    /// Bytes of `metrics.jsonl`.
    pub metrics: u64,
    /// Bytes of the event file.
    pub events: u64,
    /// The event file's name.
    pub event_file: String,
}

/// A file that is appended to, cut back to `length` first.
pub(super) fn open_at(path: &Path, length: u64) -> Result<File> {
    let io = |e| Error::io(path, e);
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    ensure!(
        found >= length,
        "{}: the file has {found} bytes, the checkpoint says {length}: it was changed since",
        path.display()
    );
    file.set_len(length).map_err(io)?;
    file.seek(SeekFrom::End(0)).map_err(io)?;
    Ok(file)
}

/// Both logs.
pub struct Logs {
    path: PathBuf,
    file: File,
    events: EventFile,
}

impl Logs {
    /// Opens the logs of an output folder; `from` is where a resumed run goes on.
    pub fn open(output: &Path, from: Option<&Offsets>) -> Result<Logs> {
        let (path, folder) = (output.join("metrics.jsonl"), output.join("tensorboard"));
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let file = open_at(&path, from.map_or(0, |f| f.metrics))?;
        let events = match from {
            Some(from) => EventFile::resume(&folder.join(&from.event_file), from.events)?,
            None => EventFile::create(&folder)?,
        };
        Ok(Logs { path, file, events })
    }
    /// Writes a line; the tags of its numbers in TensorBoard get the prefix `train/` where they have none.
    pub fn write(&mut self, step: u64, epoch: f64, values: &[(&str, f64)]) -> Result<()> {
        self.write_with(step, epoch, values, &[])
    }
    /// The same with vectors: lists in the line, and in TensorBoard one tag per entry, `NAME/0`, `NAME/1`, ….
    pub fn write_with(
        &mut self,
        step: u64,
        epoch: f64,
        values: &[(&str, f64)],
        vectors: &[(&str, Vec<f64>)],
    ) -> Result<()> {
        let mut line = Map::from_iter([("step".to_string(), json!(step)), ("epoch".to_string(), number(epoch))]);
        line.extend(values.iter().map(|(name, value)| (name.to_string(), number(*value))));
        let list = |entries: &[f64]| entries.iter().map(|x| number(*x)).collect::<Vec<Value>>();
        line.extend(vectors.iter().map(|(name, entries)| (name.to_string(), list(entries).into())));
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))?;
        let tag = |name: &str| if name.contains('/') { name.to_string() } else { format!("train/{name}") };
        let mut tagged: Vec<(String, f32)> = values.iter().map(|(name, value)| (tag(name), *value as f32)).collect();
        for (name, entries) in vectors {
            tagged.extend(entries.iter().enumerate().map(|(i, x)| (format!("{}/{i}", tag(name)), *x as f32)));
        }
        self.events.write(step, &tagged)
    }
    /// Brings both to the disk; returns how far they are.
    pub fn sync(&mut self) -> Result<Offsets> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))?;
        let metrics = self.file.stream_position().map_err(|e| Error::io(&self.path, e))?;
        let (event_file, events) = self.events.sync()?;
        Ok(Offsets { metrics, events, event_file })
    }
}

/// A number, or its name where JSON has none for it.
fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_back_on_resume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut logs = Logs::open(dir.path(), None).unwrap();
        logs.write(1, 0.5, &[("loss", 0.25), ("eval/loss", f64::NAN)]).unwrap();
        let offsets = logs.sync().unwrap();
        logs.write(2, 1.0, &[("loss", 0.125)]).unwrap();
        drop(logs);
        let mut logs = Logs::open(dir.path(), Some(&offsets)).unwrap();
        logs.write_with(2, 1.0, &[("loss", 0.5)], &[("p", vec![0.25, f64::NAN])]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = "{\"step\":1,\"epoch\":0.5,\"loss\":0.25,\"eval/loss\":\"NaN\"}\n\
                        {\"step\":2,\"epoch\":1.0,\"loss\":0.5,\"p\":[0.25,\"NaN\"]}\n";
        assert_eq!(text, expected);
        std::fs::write(&path, "").unwrap();
        let error = Logs::open(dir.path(), Some(&offsets)).map(drop).unwrap_err().to_string();
        assert!(error.contains("the file has 0 bytes, the checkpoint says"), "{error}");
    }
}
