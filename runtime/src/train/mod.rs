//! The trainer: drives a model's programs on batches, by a schedule, until the run is done, stopped or interrupted.
//!
//! A model that can be trained has the program `step`, or, for a chain of M links, `step.0` … `step.M-1` with the knots
//! `knot.1` … `knot.M-1` between them. A step takes the batch's tensors by name plus, where it has such inputs, the
//! scalars `learning_rate`, `step` and `seed`; its output `loss` is a scalar, so may `grad_norm` be, and every further
//! scalar output, and every short vector, is logged under its name. A model that `samuel`
//! wrapped has the program `restart` (`restart.J` for a link), which is run at the points of [`Restarts`] and when a link begins. Evaluation runs `eval.J` of the current link, or `eval`, or the inference
//! graph; its first floating-point output, or the one named `logits`, is what metrics are made of. Where it has the outputs `flops` and `gates`, the evaluation
//! also finds how [`gates`] are used; that of the result is left in [`Summary::gates`].
//!
//! ```text
//! for each batch:  knots, restarts that are due → step(batch, learning_rate) → guard → metrics → evaluation → checkpoint
//! ```
//!
//! * **Guard.** A loss, gradient norm or (where the program reports no norm) trained weight that is not finite undoes
//!   the step and stops the run, or skips the batch.
//! * **Resume.** What a run depends on is a function of the recipe, the data and [`crate::checkpoint::State`], so a
//!   run that was cut off anywhere and resumed ends with the same bits as one that was not.
//! * **Signals.** SIGINT and SIGTERM save a checkpoint and end the run; a second one ends the process at once.
//!
//! [`train`] writes `metrics.jsonl`, `tensorboard/`, `checkpoints/` and `summary.json` below [`TrainRun::output`].
//!
//! ```no_run
//! # use sartor_runtime::{data, train};
//! # fn run(model: &mut sartor_ir::Model, recipe: &str, config: data::DataConfig) -> sartor_ir::Result<()> {
//! let schema = train::training_schema(model, train::Task::Classification)?;
//! let splits = data::open_splits(&config, &schema)?;
//! let run = train::TrainRun { output: "out".into(), recipe: recipe.into(), ..train::TrainRun::default() };
//! match train::train(model, &run, &splits, &mut train::Progress::new())? {
//!     train::Outcome::Finished(summary) => println!("{:?}", summary.get("test.accuracy")),
//!     train::Outcome::Interrupted { step, .. } => println!("interrupted at step {step}; --resume goes on"),
//! }
//! # Ok(()) }
//! ```

pub mod config;
pub mod evaluate;
pub mod events;
pub mod feeds;
pub mod gates;
pub mod guard;
pub mod links;
pub mod log;
pub mod metrics;
pub mod planned;
pub mod progress;
pub mod restarts;
pub mod schedule;
pub mod signals;
pub mod summary;
pub mod tensorboard;
pub mod trainer;

#[cfg(test)]
mod tests;

pub use config::{EarlyStop, Every, Mode, OnNonFinite, TrainConfig, TrainRun};
pub use evaluate::{Evaluation, evaluate};
pub use events::{Event, Observer, Silent};
pub use feeds::{evaluation_schema, training_schema, with_optional_label};
pub use gates::GateUse;
pub use metrics::{Metrics, Task};
pub use planned::{PlannedStep, learning_rates, plan_step};
pub use progress::Progress;
pub use restarts::Restarts;
pub use schedule::{Decay, OptimizerSchedule, Span};
pub use summary::Summary;
pub use trainer::{Outcome, train};
