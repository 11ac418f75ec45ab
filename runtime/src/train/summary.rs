//! What a run leaves as `summary.json`: flat keys, numbers.

use super::gates::GateUse;
use sartor_ir::{Error, Model, NodeKind, Result, Role};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::Path;

/// See the [module](self). Keys: `test.accuracy`, `test.loss`, … and the same under `eval.`, `train.loss`,
/// `samples_per_second`, `seconds`, `peak_rss_mib`, `trainable_parameters`, `all_parameters`, `steps`, `epochs`,
/// `skipped_steps`, and, where there is one, `best.step` and `best.value`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// The entries, in order.
    pub values: Map<String, Value>,
    /// How the result's gates, if it has some, are used: by which split, `test` or else `eval`. The file does not hold it.
    pub gates: Option<Box<(String, GateUse)>>,
}

impl Summary {
    /// Sets an entry.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.values.insert(key.to_string(), value.into());
    }
    /// A number.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.values.get(key)?.as_f64()
    }
    /// Writes the file: a temporary one, then a rename.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(&self.values).map_err(|e| Error::msg(e.to_string()))?;
        text.push('\n');
        let temporary = path.with_extension("json.tmp");
        std::fs::write(&temporary, text).map_err(|e| Error::io(&temporary, e))?;
        std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
    }
    /// Counts parameters: trained ones; and all floating-point ones that the inference graph or training has.
    pub fn count_parameters(&mut self, model: &Model) {
        let used: HashSet<&str> =
            model.graph.node_ids().filter_map(|id| param_of(&model.graph.node(id).kind)).collect();
        let trained = |role: Role| role == Role::Trainable;
        let all = model.params.iter().filter(|(name, p)| used.contains(name.as_str()) || trained(p.role));
        let all: usize = all.filter(|(_, p)| p.tensor.dtype().is_float()).map(|(_, p)| p.tensor.len()).sum();
        self.set("trainable_parameters", json!(model.count_params(trained)));
        self.set("all_parameters", json!(all));
    }
}

fn param_of(kind: &NodeKind) -> Option<&str> {
    match kind {
        NodeKind::Param(name) => Some(name),
        _ => None,
    }
}

/// The most memory that this process ever had resident, in MiB (`VmHWM`); `None` where the system does not say.
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib / 1024.0 * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_keys_and_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut summary = Summary::default();
        summary.set("test.accuracy", 0.75);
        summary.write(&dir.path().join("summary.json")).unwrap();
        let text = std::fs::read_to_string(dir.path().join("summary.json")).unwrap();
        assert_eq!(text, "{\n  \"test.accuracy\": 0.75\n}\n");
        assert_eq!(summary.get("test.accuracy"), Some(0.75));
        assert!(peak_rss_mib().is_some_and(|m| m > 1.0));
    }
}
