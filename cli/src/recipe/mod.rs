//! A recipe: the TOML file that says what is trained on what, and how. Its tables reuse the options of the passes and of
//! the trainer, so that what a pass can do, a recipe can say.
//!
//! Reading: parse → `--set` overrides → keys checked against the JSON schema, all unknown ones at once with near misses →
//! deserialize. Relative paths are relative to the recipe's folder; those of `--set` to the working directory.

mod both;
mod keys;
mod set;

pub use both::Both;
pub use set::value;

use sartor_ir::{Context, Error, Result, bail};
use sartor_passes::accumulate::Accumulate;
use sartor_passes::average::Average;
use sartor_passes::clip::Clip;
use sartor_passes::cola::Cola;
use sartor_passes::freeze::Freeze;
use sartor_passes::gate::Gate;
use sartor_passes::head::{Head, HeadKind};
use sartor_passes::loss::{Loss, LossKind};
use sartor_passes::optimizer::{Optimizer, OptimizerKind};
use sartor_passes::samuel::Samuel;
use sartor_passes::train_mode::TrainMode;
use sartor_runtime::data::DataConfig;
use sartor_runtime::train::{OptimizerSchedule, Restarts, Span, TrainConfig};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The tables of a recipe. Unknown keys are errors.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Recipe of sartor train")]
pub struct Tables {
    /// The model to train: an ONNX file.
    pub model: PathBuf,
    /// The folder for everything that the run writes. It must not be there yet, or be empty.
    #[serde(default = "default_output")]
    pub output: PathBuf,
    /// The examples.
    #[serde(default)]
    pub data: DataConfig,
    /// Which of the model's own parameters are trained; without this table, none.
    pub freeze: Option<Freeze>,
    /// A new classifier or regressor on a value of the model.
    pub head: Option<Head>,
    /// What is minimised. Default: cross-entropy; for a regressor, the squared error.
    pub loss: Option<Loss>,
    /// Chains of low-rank adapters.
    pub cola: Option<Both<Cola, Chain>>,
    /// Small networks that decide per input which layers and channels are computed.
    pub gate: Option<Both<Gate, GateRate>>,
    /// With this table, which has no keys, training normalises by the statistics of each batch and keeps running ones.
    #[serde(rename = "train-mode")]
    pub train_mode: Option<TrainMode>,
    /// The update rule, and the learning rate over the run.
    #[serde(default)]
    pub optimizer: Both<Optimizer, OptimizerSchedule>,
    /// Several learning rates at once, weighed while training: no search. The optimizer's own `learning_rate` is then a
    /// factor on all of them (default 1). Unless a schedule is given, they stay constant and `[average]` has `power = 8`.
    pub samuel: Option<Both<Samuel, Restarting>>,
    /// Keeps the mean of the points that training goes through, instead of the last one (which `decay = 0` is).
    pub average: Option<Average>,
    /// A limit on the gradient's norm.
    pub clip: Option<Clip>,
    /// Several batches per update.
    pub accumulate: Option<Accumulate>,
    /// How long, how often, how many.
    #[serde(default)]
    pub train: TrainConfig,
    /// How the result is written.
    #[serde(default)]
    pub export: Export,
}

/// What the table `[cola]` says about the run, besides what is inserted.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Chain {
    /// One learning-rate schedule over the run, or one for each link.
    pub schedule: Option<Span>,
    /// The shares of the links in the steps. Default: equal ones.
    pub split: Vec<f64>,
}

/// What the table `[samuel]` says about the run, besides what is inserted.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Restarting {
    /// When all experts go back to the played point: every so many steps (0: never), or a list of fractions of the run (of each
    /// link) or numbers of steps. Default: never.
    pub restart_every: Restarts,
}

/// What the table `[gate]` says about the run, besides what is inserted.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GateRate {
    /// What the learning rate is multiplied by for the gate networks. Default: 1, but for new gates under an optimizer whose steps do not grow with the gradient (`adamw`,
    /// `schedule-free-adamw`, `adagrad`; not with `[samuel]`) as much as lets a gate go twice the way from open to shut while gates learn.
    pub rate: Option<f64>,
}

/// How the result is written.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Export {
    /// What the module paths of the file begin with and those of the PyTorch model do not.
    pub strip_prefix: String,
    /// Large weights go into a second file, beside the model.
    pub external_data: bool,
}

fn default_output() -> PathBuf {
    "out".into()
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What it says, paths resolved.
    pub tables: Tables,
    /// The TOML that it comes to, overrides applied, paths resolved.
    pub effective: String,
    /// What a run resumes only under: the TOML without the keys that change no result (the output folder, threads).
    pub identity: String,
}

impl Recipe {
    /// Reads a file and applies `key=value` overrides. `model` replaces the recipe's model.
    pub fn read(path: &Path, overrides: &[String], model: Option<&Path>) -> Result<Recipe> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let place = || format!("recipe {}", path.display());
        let mut table = parse(&text).context(place)?;
        overrides.iter().try_for_each(|text| set::apply(&mut table, text))?;
        if let Some(model) = model {
            let here = set::absolute(model)?.to_string_lossy().into_owned();
            table.insert("model".to_string(), here.into());
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        Recipe::of(table, folder).context(place)
    }
    /// From a table whose relative paths are relative to `folder`.
    pub fn of(mut table: toml::Table, folder: &Path) -> Result<Recipe> {
        keys::check(&table)?;
        hand_down_seed(&mut table);
        complete_schedule(&mut table);
        complete_calibration(&mut table);
        let identity = identity(&table)?;
        set::resolve_paths(&mut table, folder)?;
        let effective = to_text(&table)?;
        let tables: Result<Tables, _> = toml::Value::Table(table).try_into();
        let tables = tables.map_err(|e: toml::de::Error| Error::msg(one_line(&e.to_string())))?;
        Ok(Recipe { tables, effective, identity })
    }
    /// Whether the recipe that a run left in its output folder is this one, but for keys that change no result.
    pub fn is_that_of(&self, folder: &Path) -> Result<bool> {
        let before = Recipe::read(&folder.join("recipe.toml"), &[], None)?;
        let counting = |recipe: &Recipe| Ok::<_, Error>(without_place(&parse(&recipe.effective)?));
        Ok(counting(self)? == counting(&before)?)
    }
    /// The loss: as the recipe says, or as fits its head.
    pub fn loss(&self) -> Loss {
        let regressor = self.tables.head.as_ref().is_some_and(|head| head.kind == HeadKind::Regressor);
        let kind = if regressor { LossKind::Mse } else { LossKind::CrossEntropy };
        self.tables.loss.clone().unwrap_or(Loss { kind, ..Loss::default() })
    }
    /// When the experts are restarted.
    pub fn restarts(&self) -> Restarts {
        self.tables.samuel.as_ref().map(|samuel| samuel.second.restart_every.clone()).unwrap_or_default()
    }
    /// What is wrong with the numbers of the schedules, if anything.
    pub fn check_schedules(&self) -> Result<()> {
        self.schedule().check().map_err(|e| e.at("optimizer"))?;
        let rate = self.tables.gate.as_ref().and_then(|gate| gate.second.rate);
        let wrong = |rate: &f64| !(rate.is_finite() && *rate > 0.0);
        if let Some(rate) = rate.filter(wrong) {
            bail!("gate: rate is {rate}, expected a number above 0");
        }
        self.restarts().check().map_err(|e| e.at("samuel"))
    }
    /// The learning rate over the run.
    pub fn schedule(&self) -> OptimizerSchedule {
        let mut schedule = self.tables.optimizer.second.clone();
        if let Some(span) = self.tables.cola.as_ref().and_then(|cola| cola.second.schedule) {
            schedule.span = span;
        }
        schedule
    }
}

/// The JSON schema of recipes.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Tables).into()
}

fn parse(text: &str) -> Result<toml::Table> {
    match toml::from_str::<toml::Table>(text) {
        Ok(table) => Ok(table),
        Err(error) => {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            bail!("line {line}: {}", one_line(error.message()))
        }
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(", ")
}

/// `train.seed` is the seed of everything random: also of what the passes draw, unless their tables say otherwise.
fn hand_down_seed(table: &mut toml::Table) {
    let Some(seed) = table.get("train").and_then(|train| train.get("seed")).cloned() else { return };
    for name in ["head", "cola"] {
        if let Some(section) = table.get_mut(name).and_then(toml::Value::as_table_mut) {
            section.entry("seed").or_insert_with(|| seed.clone());
        }
    }
}

/// Writes down the learning rate and the schedule of a kind of optimizer that wants others than the trainer's defaults, unless the recipe
/// says them. With `[samuel]` the learning rate is a factor on those of all experts; without a schedule of the recipe's they stay constant, and
/// the result is their average.
fn complete_schedule(table: &mut toml::Table) {
    let experts = table.contains_key("samuel");
    if experts {
        table.entry("optimizer").or_insert_with(|| toml::Table::new().into());
    }
    let Some(section) = table.get_mut("optimizer").and_then(toml::Value::as_table_mut) else { return };
    let kind = section.get("kind").cloned().and_then(|kind| kind.try_into::<OptimizerKind>().ok());
    let own = if experts { Some((1.0, "constant")) } else { kind.and_then(default_schedule) };
    let Some((rate, schedule)) = own else { return };
    let averaged = experts && !section.contains_key("schedule") && kind != Some(OptimizerKind::ScheduleFreeAdamw);
    section.entry("learning_rate").or_insert_with(|| rate.into());
    section.entry("schedule").or_insert_with(|| schedule.into());
    if averaged {
        table.entry("average").or_insert_with(|| toml::Table::from_iter([("power".to_string(), 8.0.into())]).into());
    }
}

/// Writes down that statistics are gathered anew where parameters hold an average, unless the recipe says how.
fn complete_calibration(table: &mut toml::Table) {
    let schedule_free = |section: Option<&toml::Value>| {
        let kind = section.and_then(|s| s.get("kind")).cloned().and_then(|kind| kind.try_into::<OptimizerKind>().ok());
        kind == Some(OptimizerKind::ScheduleFreeAdamw)
    };
    let base = table.get("samuel").and_then(|samuel| samuel.get("base"));
    let averages = table.contains_key("average") || schedule_free(table.get("optimizer")) || schedule_free(base);
    let normalise = table.get("gate").and_then(|gate| gate.get("normalise"));
    let gathers = table.contains_key("train-mode") || normalise.and_then(toml::Value::as_str) == Some("channel");
    if !averages || !gathers {
        return;
    }
    let section = table.entry("train").or_insert_with(|| toml::Table::new().into());
    if let Some(section) = section.as_table_mut() {
        section.entry("calibrate").or_insert(50.into());
    }
}

/// The learning rate and the schedule of a kind, where they are not the trainer's defaults: those that its authors recommend.
fn default_schedule(kind: OptimizerKind) -> Option<(f64, &'static str)> {
    match kind {
        OptimizerKind::Prodigy | OptimizerKind::DAdaptAdam => Some((1.0, "constant")),
        OptimizerKind::ScheduleFreeAdamw => Some((0.0025, "constant")),
        OptimizerKind::Sgd | OptimizerKind::Adamw | OptimizerKind::Adagrad => None,
    }
}

fn identity(table: &toml::Table) -> Result<String> {
    to_text(&without_place(table))
}

/// The keys that change results: not where they go, nor how many threads compute them.
fn without_place(table: &toml::Table) -> toml::Table {
    let mut table = table.clone();
    table.remove("output");
    if let Some(train) = table.get_mut("train").and_then(toml::Value::as_table_mut) {
        train.remove("threads");
    }
    table
}

fn to_text(table: &toml::Table) -> Result<String> {
    toml::to_string(table).map_err(|e| Error::msg(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_runtime::train::Decay;

    const RECIPE: &str = "model = \"m.onnx\"\n[head]\ninput = \"461\"\nclasses = 2\n\
        [cola]\nrank = 8\nalpha = 16\nlinks = 3\ntargets = [\"query\"]\nschedule = \"link\"\nsplit = [1, 2, 1]\n\
        [optimizer]\nkind = \"adamw\"\nlearning_rate = 1e-3\nweight_decay = 0.01\nschedule = \"linear\"\nwarmup_ratio = 0.0\n\
        [train]\nepochs = 6\nseed = 7\nthreads = 2\n";

    fn read(overrides: &[&str]) -> Result<Recipe> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("R.toml");
        std::fs::write(&path, RECIPE).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
        Recipe::read(&path, &overrides, None)
    }

    #[test]
    fn tables_reach_their_owners() {
        let recipe = read(&["cola.rank=16", "optimizer.schedule=cosine", "data.train=[\"a.npz\"]"]).unwrap();
        let tables = &recipe.tables;
        let cola = tables.cola.as_ref().unwrap();
        assert_eq!((cola.first.rank, cola.first.links, cola.first.seed), (16, 3, 7));
        assert_eq!((cola.second.split.as_slice(), recipe.schedule().span), (&[1.0, 2.0, 1.0][..], Span::Link));
        assert_eq!(tables.head.as_ref().unwrap().seed, 7);
        assert_eq!(tables.optimizer.first.weight_decay, 0.01);
        assert_eq!(recipe.schedule().schedule, Decay::Cosine);
        assert!(tables.model.is_absolute() && tables.model.ends_with("m.onnx"));
        assert!(!recipe.identity.contains("threads") && recipe.effective.contains("threads = 2"));
    }

    #[test]
    fn kinds_that_find_their_rate_get_a_constant_one() {
        let schedule = |optimizer: &str| {
            let text = format!("model = \"m.onnx\"\n{optimizer}");
            let schedule = Recipe::of(parse(&text).unwrap(), Path::new("")).unwrap().schedule();
            (schedule.learning_rate, schedule.schedule)
        };
        assert_eq!(schedule(""), (1e-3, Decay::Linear));
        assert_eq!(schedule("[optimizer]\nkind = \"adamw\""), (1e-3, Decay::Linear));
        assert_eq!(schedule("[optimizer]\nkind = \"prodigy\""), (1.0, Decay::Constant));
        assert_eq!(schedule("[optimizer]\nkind = \"d-adapt-adam\""), (1.0, Decay::Constant));
        assert_eq!(schedule("[optimizer]\nkind = \"schedule-free-adamw\""), (0.0025, Decay::Constant));
        let own = "[optimizer]\nkind = \"prodigy\"\nlearning_rate = 0.5\nschedule = \"cosine\"";
        assert_eq!(schedule(own), (0.5, Decay::Cosine));
        let half = "[optimizer]\nkind = \"prodigy\"\nschedule = \"cosine\"";
        assert_eq!(schedule(half), (1.0, Decay::Cosine));
    }

    #[test]
    fn what_is_gathered_is_gathered_anew_at_averages() {
        let batches = |tables: &str| {
            let text = format!("model = \"m.onnx\"\n{tables}");
            Recipe::of(parse(&text).unwrap(), Path::new("")).unwrap().tables.train.calibrate
        };
        assert_eq!(batches("[train-mode]"), 0);
        assert_eq!(batches("[train-mode]\n[average]"), 50);
        assert_eq!(batches("[optimizer]\nkind = \"schedule-free-adamw\"\n[train-mode]"), 50);
        assert_eq!(batches("[gate]\n[average]"), 0);
        assert_eq!(batches("[gate]\nnormalise = \"channel\"\n[average]"), 50);
        assert_eq!(batches("[gate]\nnormalise = \"channel\"\n[average]\n[train]\ncalibrate = 3"), 3);
    }

    #[test]
    fn mistakes_are_sentences() {
        let error = |overrides: &[&str]| {
            let text = read(overrides).map(drop).unwrap_err().to_string();
            text.split_once("R.toml: ").map_or(text.clone(), |(_, rest)| rest.to_string())
        };
        let unknown = error(&["cola.rnk=16", "trai.epochs=1"]);
        assert!(unknown.contains("there is no key `cola.rnk` (did you mean \"rank\""), "{unknown}");
        assert!(unknown.contains("there is no key `trai` (did you mean \"train\" or \"train-mode\"?)"), "{unknown}");
        assert!(error(&["cola.rank=big"]).contains("cola"), "{}", error(&["cola.rank=big"]));
        let wanted =
            |value: &str, sentence: &str| assert!(error(&[value]).starts_with(sentence), "{}", error(&[value]));
        wanted("samuel.restart_every=1.5", "restart_every: expected a whole number of steps, or a list");
        wanted("samuel.rates=0.1", "rates: expected a list of learning rates, or a table");
        wanted("loss.teacher=3", "teacher: expected true, false, or the path");
        wanted("train.eval_every=2.5", "expected \"epoch\", \"never\" or a whole number of steps");
        wanted("data.train=3", "expected one path or name, or a list of them");
        assert_eq!(error(&["cola"]), "--set cola: expected key=value, such as cola.rank=16");
        assert_eq!(error(&["model.x=1"]), "--set model.x=1: `model` is not a table");
    }

    #[test]
    fn the_schema_lists_every_key() {
        let schema = schema();
        let keys: Vec<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        for key in ["model", "output", "data", "head", "loss", "cola", "optimizer", "clip", "accumulate", "train"] {
            assert!(keys.contains(&key), "{key}");
        }
        let text = schema.to_string();
        assert!(text.contains("learning_rate") && text.contains("\"split\"") && text.contains("weight_decay"));
    }
}
