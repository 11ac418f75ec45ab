//! What a run is: the table `[train]` of a recipe, and what else the trainer needs to know.

use super::metrics::Task;
use super::restarts::Restarts;
use super::schedule::OptimizerSchedule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The table `[train]`. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// How often all examples are seen.
    pub epochs: usize,
    /// Examples per step.
    pub batch: usize,
    /// Examples per run of the evaluation. Default: as `batch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_batch: Option<usize>,
    /// The seed of everything random.
    pub seed: u64,
    /// Threads to compute with. Default: as many as the machine has. Results do not depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// When to evaluate: `"epoch"`, `"never"`, or a number of steps.
    pub eval_every: Every,
    /// When to save a checkpoint: `"epoch"`, `"never"`, or a number of steps.
    pub checkpoint_every: Every,
    /// How many checkpoints are kept (besides the best).
    pub keep_checkpoints: usize,
    /// Steps per line of `metrics.jsonl`; the loss is their mean.
    pub log_every: u64,
    /// Ends the run, and the schedule, after this many steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Ends the run when the evaluation stops getting better, and goes back to the best state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStop>,
    /// What happens when a loss or gradient is not finite.
    pub on_nonfinite: OnNonFinite,
    /// Whether an incomplete last batch of an epoch is left out.
    pub drop_last: bool,
    /// Whether each epoch has an order of its own; `false` keeps that of the file.
    pub shuffle: bool,
    /// Before every evaluation and at the end, the statistics of batch normalisation, and those that gates are read by, are gathered anew from so many training batches
    /// (0: they stay as training left them). For parameters that are averages, which were never trained at: by default 50
    /// with `[average]` or a schedule-free optimizer, and `[train-mode]` or `gate.normalise = "channel"`.
    pub calibrate: usize,
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            epochs: 1,
            batch: 8,
            eval_batch: None,
            seed: 0,
            threads: None,
            eval_every: Every::Word(Word::Epoch),
            checkpoint_every: Every::Word(Word::Epoch),
            keep_checkpoints: 2,
            log_every: 1,
            max_steps: None,
            early_stop: None,
            on_nonfinite: OnNonFinite::Stop,
            drop_last: false,
            shuffle: true,
            calibrate: 0,
        }
    }
}

/// How often something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected \"epoch\", \"never\" or a whole number of steps")]
pub enum Every {
    /// Every so many steps (0: never).
    Steps(u64),
    /// By name.
    Word(Word),
}

/// See [`Every`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// After every epoch, and at the end.
    Epoch,
    /// Not at all.
    Never,
}

impl Every {
    /// After every epoch.
    pub const EPOCH: Every = Every::Word(Word::Epoch);
    /// Not at all.
    pub const NEVER: Every = Every::Word(Word::Never);
    /// Whether it happens after this many steps; `epoch_ends`: whether they complete an epoch or the run.
    pub fn due(self, steps: u64, epoch_ends: bool) -> bool {
        match self {
            Every::Steps(every) => every > 0 && steps.is_multiple_of(every),
            Every::Word(Word::Epoch) => epoch_ends,
            Every::Word(Word::Never) => false,
        }
    }
    /// Whether it never happens.
    pub fn is_never(self) -> bool {
        matches!(self, Every::Steps(0) | Every::Word(Word::Never))
    }
}

/// When a run ends early.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// Evaluations without improvement that are waited for.
    pub patience: usize,
    /// What counts: `loss`, `accuracy`, `macro_f1`, `perplexity`, `mse`. Default: accuracy for classifiers, else loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Which way is better. Default: `max` for accuracy and F1, else `min`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Less is better.
    Min,
    /// More is better.
    Max,
}

/// What happens when a loss or gradient is not finite. The weights are never touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// The run ends with an error.
    #[default]
    Stop,
    /// The batch is left out; many in a row end the run.
    Skip,
}

/// A whole run, as [`super::train`] takes it.
#[derive(Clone, Debug, Default)]
pub struct TrainRun {
    /// The table `[train]`.
    pub train: TrainConfig,
    /// The learning rate over the run.
    pub schedule: OptimizerSchedule,
    /// The shares of a chain's links in the steps; empty: equal ones.
    pub split: Vec<f64>,
    /// When the program `restart` is run, if there is one.
    pub restarts: Restarts,
    /// Runs of the step that make one update, if not 1: restarts wait for whole updates.
    pub accumulate: u64,
    /// What kind of metrics are made.
    pub task: Task,
    /// A label that loss and metrics leave out.
    pub ignore_index: Option<i64>,
    /// Batches that are sorted by length together; see [`crate::data::DataConfig::buckets`].
    pub buckets: usize,
    /// What is done to training images; see [`crate::data::DataConfig::flip`].
    pub augment: crate::data::Augment,
    /// Where `metrics.jsonl`, `tensorboard/`, `checkpoints/` and `summary.json` go.
    pub output: PathBuf,
    /// The recipe's text: stored in checkpoints; a run resumes only under the same.
    pub recipe: String,
    /// Whether to go on from the last checkpoint in `output`.
    pub resume: bool,
    /// Whether SIGINT and SIGTERM are caught.
    pub catch_signals: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_words_and_numbers() {
        let json = r#"{"epochs": 6, "eval_every": "epoch", "checkpoint_every": 50, "on_nonfinite": "skip"}"#;
        let config: TrainConfig = serde_json::from_str(json).unwrap();
        assert_eq!((config.eval_every, config.checkpoint_every), (Every::EPOCH, Every::Steps(50)));
        assert_eq!(config.on_nonfinite, OnNonFinite::Skip);
        assert!(serde_json::from_str::<TrainConfig>(r#"{"epoch": 6}"#).unwrap_err().to_string().contains("epoch"));
        assert!(Every::Steps(5).due(10, false) && !Every::Steps(5).due(11, true) && !Every::Steps(0).due(0, true));
    }
}
