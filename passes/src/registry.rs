//! The registry: one row per pass, with its options' schema. A pass of one's own is one more row:
//! `Registry::builtin().with(info)`.

use crate::Pass;
use sartor_ir::{Error, Result};

/// The options of a pass: a JSON object, whether it came from TOML or from `name(key=value, …)`.
pub type Options = serde_json::Map<String, serde_json::Value>;

/// A row of the registry.
#[derive(Clone)]
pub struct PassInfo {
    /// Its name: lower case, words joined by `-`.
    pub name: &'static str,
    /// `clean-up`, `tailoring`, `training`, `interchange`, or a group of one's own.
    pub group: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// The JSON schema of its options.
    pub schema: fn() -> serde_json::Value,
    /// Makes the pass from its options; unknown keys are errors.
    pub build: fn(Options) -> Result<Box<dyn Pass>>,
}

impl PassInfo {
    /// A row for a pass whose options are its own fields: `#[derive(Deserialize, JsonSchema)]` with
    /// `#[serde(default, deny_unknown_fields)]`.
    pub fn of<P>(name: &'static str, group: &'static str, summary: &'static str) -> PassInfo
    where
        P: Pass + serde::de::DeserializeOwned + schemars::JsonSchema + 'static,
    {
        fn build<P: Pass + serde::de::DeserializeOwned + 'static>(options: Options) -> Result<Box<dyn Pass>> {
            let pass: P = serde_json::from_value(options.into()).map_err(|e| Error::msg(e.to_string()))?;
            Ok(Box::new(pass))
        }
        PassInfo { name, group, summary, schema: || schemars::schema_for!(P).into(), build: build::<P> }
    }
}

/// All passes that a command knows.
#[derive(Clone, Default)]
pub struct Registry {
    rows: Vec<PassInfo>,
}

impl Registry {
    /// The passes of this crate.
    pub fn builtin() -> Registry {
        Registry { rows: crate::BUILTIN.iter().map(|row| row()).collect() }
    }
    /// One more; it replaces a pass of the same name.
    pub fn with(mut self, info: PassInfo) -> Registry {
        self.rows.retain(|row| row.name != info.name);
        self.rows.push(info);
        self
    }
    /// All rows, in the order in which they were registered.
    pub fn rows(&self) -> &[PassInfo] {
        &self.rows
    }
    /// The row of this name.
    pub fn get(&self, name: &str) -> Option<&PassInfo> {
        self.rows.iter().find(|row| row.name == name)
    }
}
