//! The registry: one row per pass, with its options' schema. A pass of one's own is one more row:
//! `Registry::builtin().with(info)`.

use crate::Pass;
use crate::near::did_you_mean;
use sartor_ir::{Context, Error, Result, bail};

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
    /// The names of its options; `None` if its schema does not list them.
    pub fn option_names(&self) -> Option<Vec<String>> {
        let schema = (self.schema)();
        if schema.get("additionalProperties") != Some(&serde_json::Value::Bool(false)) {
            return None;
        }
        Some(schema.get("properties")?.as_object()?.keys().cloned().collect())
    }
    fn check_keys(&self, options: &Options) -> Result<()> {
        let Some(known) = self.option_names() else { return Ok(()) };
        let unknown = options.keys().filter(|key| !known.contains(key));
        let errors = unknown.map(|key| {
            let has = if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) };
            Error::msg(format!("pass \"{}\" has no option `{key}`{}; {has}", self.name, did_you_mean(key, &known)))
        });
        Error::all(errors.collect())
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
    /// Makes a pass. An unknown name lists near misses; unknown options say which exist.
    pub fn build(&self, name: &str, options: Options) -> Result<Box<dyn Pass>> {
        let Some(info) = self.get(name) else {
            let pipelines = crate::pipelines::PIPELINES.iter().map(|row| row.0);
            let names = self.rows.iter().map(|row| row.name).chain(pipelines);
            bail!("there is no pass \"{name}\"{}; `sartor passes` lists them all", did_you_mean(name, names));
        };
        info.check_keys(&options)?;
        (info.build)(options).context(|| format!("pass \"{name}\""))
    }
    /// Makes all passes of a pipeline; named pipelines ([`crate::pipelines`]) are expanded. Collects all problems.
    pub fn build_all(&self, pipeline: Vec<crate::options::Invocation>) -> Result<Vec<Box<dyn Pass>>> {
        let (mut passes, mut errors) = (Vec::new(), Vec::new());
        for (name, options) in pipeline.into_iter().flat_map(expanded) {
            match self.build(&name, options) {
                Ok(pass) => passes.push(pass),
                Err(error) => errors.push(error),
            }
        }
        Error::all(errors).map(|()| passes)
    }
}

fn expanded((name, options): crate::options::Invocation) -> Vec<crate::options::Invocation> {
    match crate::pipelines::expand(&name).filter(|_| options.is_empty()) {
        Some(passes) => passes,
        None => vec![(name, options)],
    }
}
