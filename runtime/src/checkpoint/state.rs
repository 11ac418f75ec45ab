//! What a run depends on besides its parameters, recipe and data.

use crate::data::Cursor;
use crate::train::log::Offsets;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// The version of the layout of checkpoints.
pub const VERSION: u32 = 1;

/// A number that is stored as its bits, so that it comes back exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Exact(pub f64);

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        format!("{:016x}", self.0.to_bits()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Exact, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bits = u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)?;
        Ok(Exact(f64::from_bits(bits)))
    }
}

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done then; its parameters are in `best-STEP`.
    pub step: u64,
    /// The value of the metric.
    pub value: Exact,
}

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The layout's version.
    pub version: u32,
    /// The program's version.
    pub sartor: String,
    /// The seed of the run.
    pub seed: u64,
    /// Steps done.
    pub step: u64,
    /// Steps of the run, which the schedule is made for.
    pub total: u64,
    /// The next batch.
    pub cursor: Cursor,
    /// The link that trains.
    pub link: usize,
    /// How far the logs are.
    pub logs: Offsets,
    /// The sum of the losses since the last line of the log.
    pub window_loss: Exact,
    /// The number of those losses.
    pub window_steps: u64,
    /// The mean loss of the last line.
    pub last_loss: Exact,
    /// Steps that were skipped.
    pub skipped: u64,
    /// How many of them just now, in a row.
    pub skipped_in_row: u64,
    /// The best evaluation.
    pub best: Option<Best>,
    /// What the last evaluation gave.
    pub last_eval: BTreeMap<String, Exact>,
    /// Evaluations since the best.
    pub without_gain: usize,
    /// Whether the run was ended early.
    pub stopped: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_exactly() {
        for value in [0.1 + 0.2, -0.0, f64::NAN, 1e-310] {
            let text = serde_json::to_string(&Exact(value)).unwrap();
            let back: Exact = serde_json::from_str(&text).unwrap();
            assert_eq!(back.0.to_bits(), value.to_bits());
        }
    }
}
