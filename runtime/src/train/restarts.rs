//! When the program `restart` is run: the points of a run, or of each link of a chain, at which all experts of `samuel` go back to
//! the played point.
//!
//! Seldom and late: an expert with a small learning rate looks best over a short horizon, because its noise is smallest, so
//! frequent restarts choose rates that are too small.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// See the [module](self). `multiple` is the number of runs that make one update: restarts wait for the next whole one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "restart_every: expected a whole number of steps, or a list of fractions of the run and numbers of steps"
)]
pub enum Restarts {
    /// Every so many steps of the link; 0: never.
    Every(u64),
    /// At these: a number below 1 is a fraction of the link, one from 1 on a number of steps since it began.
    At(Vec<f64>),
}

impl Default for Restarts {
    fn default() -> Restarts {
        Restarts::Every(0)
    }
}

impl Restarts {
    /// What is wrong with the numbers, if anything.
    pub fn check(&self) -> sartor_ir::Result<()> {
        let Restarts::At(points) = self else { return Ok(()) };
        let wrong = points.iter().find(|p| !(p.is_finite() && **p > 0.0));
        sartor_ir::ensure!(
            wrong.is_none(),
            "restart_every holds {}, expected fractions of the run between 0 and 1, or numbers of steps",
            wrong.copied().unwrap_or(0.0)
        );
        Ok(())
    }
    /// Whether one is due when `since` of the `span` steps of a link are done.
    pub fn due(&self, since: u64, span: u64, multiple: u64) -> bool {
        let multiple = multiple.max(1);
        let inside = since > 0 && since < span;
        inside
            && match self {
                Restarts::Every(0) => false,
                Restarts::Every(every) => since.is_multiple_of(every.next_multiple_of(multiple)),
                Restarts::At(points) => points.iter().any(|point| {
                    let step = if *point < 1.0 { (point * span as f64).round() } else { point.round() };
                    (step as u64).max(1).next_multiple_of(multiple) == since
                }),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points() {
        let all = |restarts: &str, span: u64, multiple: u64| {
            let restarts: Restarts = serde_json::from_str(restarts).unwrap();
            (0..=span).filter(|s| restarts.due(*s, span, multiple)).collect::<Vec<u64>>()
        };
        assert_eq!(all("[0.6666666667, 0.8888888889]", 936, 1), [624, 832]);
        assert_eq!(all("[0.5, 30]", 40, 1), [20, 30]);
        assert_eq!(all("[0.5, 30]", 40, 8), [24, 32]);
        assert_eq!(all("10", 40, 1), [10, 20, 30]);
        assert_eq!(all("10", 40, 4), [12, 24, 36]);
        assert!(all("0", 40, 1).is_empty() && all("[]", 40, 1).is_empty());
        let error = Restarts::At(vec![-1.0]).check().unwrap_err().to_string();
        assert!(error.contains("restart_every holds -1"), "{error}");
    }
}
