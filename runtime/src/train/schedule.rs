//! Learning-rate schedules: the rate as a function of the step t = 0, 1, … of a run (or of a link) of T steps, with
//! W steps of warm-up.
//!
//! ```text
//! t < W:      lr · t / W
//! otherwise, with p = (t − W) / (T − W):
//! constant    lr
//! linear      lr · (1 − p)                        to 0 at the end, as transformers' and PEFT's examples do
//! cosine      lr · (1 + cos πp) / 2
//! step        lr · gamma^⌊(t − W) / step_size⌋
//! trapezoid   lr while p < hold_ratio, then linearly to 0 at the end
//! ```
//! With `min_ratio` = m, linear, cosine and trapezoid run from lr to m·lr.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The keys of the table `[optimizer]` that make the schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSchedule {
    /// The highest rate. Default: 1e-3; in a recipe 1 for `prodigy` and `d-adapt-adam`, 0.0025 for `schedule-free-adamw`.
    pub learning_rate: f64,
    /// How it falls. Default: linear; in a recipe constant for the three kinds named above.
    pub schedule: Decay,
    /// Warm-up as a share of the steps.
    pub warmup_ratio: f64,
    /// Warm-up in steps; wins over the ratio if it is not 0.
    pub warmup_steps: u64,
    /// `step`: steps between two falls. Default: a third of the steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_size: Option<u64>,
    /// `step`: the factor of a fall.
    pub gamma: f64,
    /// `linear`, `cosine`, `trapezoid`: where they end, as a share of the highest rate.
    pub min_ratio: f64,
    /// `trapezoid`: the share of the steps (after the warm-up) before it falls.
    pub hold_ratio: f64,
    /// One schedule over the run, or one for each link of a chain.
    pub span: Span,
}

impl Default for OptimizerSchedule {
    fn default() -> OptimizerSchedule {
        OptimizerSchedule {
            learning_rate: 1e-3,
            schedule: Decay::Linear,
            warmup_ratio: 0.0,
            warmup_steps: 0,
            step_size: None,
            gamma: 0.1,
            min_ratio: 0.0,
            hold_ratio: 2.0 / 3.0,
            span: Span::Run,
        }
    }
}

/// How the rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Decay {
    Constant,
    Linear,
    Cosine,
    Step,
    Trapezoid,
}

/// What a schedule spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    /// The whole run.
    #[default]
    Run,
    /// Each link of a chain.
    Link,
}

impl OptimizerSchedule {
    /// What is wrong with the numbers, if anything.
    pub fn check(&self) -> sartor_ir::Result<()> {
        let positive = |x: f64| x.is_finite() && x >= 0.0;
        sartor_ir::ensure!(
            positive(self.learning_rate) && positive(self.gamma) && positive(self.min_ratio),
            "learning_rate {}, gamma {} and min_ratio {} must be finite and not negative",
            self.learning_rate,
            self.gamma,
            self.min_ratio
        );
        sartor_ir::ensure!(
            (0.0..=1.0).contains(&self.warmup_ratio),
            "warmup_ratio is {}, expected a share of the steps between 0 and 1",
            self.warmup_ratio
        );
        sartor_ir::ensure!(
            (0.0..1.0).contains(&self.hold_ratio),
            "hold_ratio is {}, expected a share of the steps, 0 or more and below 1",
            self.hold_ratio
        );
        Ok(())
    }
    /// The rate of step `t` of `total`.
    pub fn rate(&self, t: u64, total: u64) -> f64 {
        let warmup = match self.warmup_steps {
            0 => (self.warmup_ratio * total as f64).ceil() as u64,
            steps => steps,
        };
        if t < warmup {
            return self.learning_rate * t as f64 / warmup as f64;
        }
        let (since, span) = (t - warmup, total.saturating_sub(warmup).max(1));
        let progress = (since as f64 / span as f64).min(1.0);
        let share = match self.schedule {
            Decay::Constant => 1.0,
            Decay::Linear => self.min_ratio + (1.0 - self.min_ratio) * (1.0 - progress),
            Decay::Cosine => {
                self.min_ratio + (1.0 - self.min_ratio) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            Decay::Trapezoid => {
                let falling = ((progress - self.hold_ratio) / (1.0 - self.hold_ratio)).max(0.0);
                self.min_ratio + (1.0 - self.min_ratio) * (1.0 - falling)
            }
            Decay::Step => {
                let size = self.step_size.unwrap_or(total.div_ceil(3)).max(1);
                self.gamma.powi((since / size).min(i32::MAX as u64) as i32)
            }
        };
        self.learning_rate * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: OptimizerSchedule, total: u64) -> Vec<f64> {
        (0..total).map(|t| (schedule.rate(t, total) * 1e6).round() / 1e6).collect()
    }

    fn of(schedule: Decay) -> OptimizerSchedule {
        OptimizerSchedule { learning_rate: 1.0, schedule, ..OptimizerSchedule::default() }
    }

    #[test]
    fn shapes() {
        assert_eq!(rates(of(Decay::Linear), 4), [1.0, 0.75, 0.5, 0.25]);
        assert_eq!(rates(of(Decay::Constant), 2), [1.0, 1.0]);
        assert_eq!(rates(of(Decay::Cosine), 4), [1.0, 0.853553, 0.5, 0.146447]);
        let step = OptimizerSchedule { step_size: Some(2), ..of(Decay::Step) };
        assert_eq!(rates(step, 5), [1.0, 1.0, 0.1, 0.1, 0.01]);
        let warm = OptimizerSchedule { warmup_ratio: 0.4, ..of(Decay::Linear) };
        assert_eq!(rates(warm.clone(), 5), [0.0, 0.5, 1.0, 0.666667, 0.333333]);
        assert_eq!(rates(OptimizerSchedule { warmup_steps: 1, ..warm }, 3), [0.0, 1.0, 0.5]);
        let held = OptimizerSchedule { hold_ratio: 0.5, ..of(Decay::Trapezoid) };
        assert_eq!(rates(held, 8), [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]);
        let floor = OptimizerSchedule { min_ratio: 0.5, ..of(Decay::Linear) };
        assert_eq!(rates(floor, 2), [1.0, 0.75]);
        let wrong = OptimizerSchedule { warmup_ratio: 2.0, ..of(Decay::Linear) }.check().unwrap_err().to_string();
        assert_eq!(wrong, "warmup_ratio is 2, expected a share of the steps between 0 and 1");
    }
}
