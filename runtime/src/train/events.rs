//! What a run tells whoever watches it.

use super::metrics::Metrics;
use super::summary::Summary;
use std::path::Path;

/// Something happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// The run begins, or goes on, at a step.
    Started {
        /// Steps that are done already.
        step: u64,
        /// Steps of the run.
        total: u64,
        /// Steps of an epoch.
        per_epoch: u64,
    },
    /// A step was taken.
    Step {
        /// Steps done.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its learning rate.
        learning_rate: f64,
        /// Its examples.
        samples: usize,
    },
    /// A knot was tied: this link begins.
    Knot {
        /// Steps done.
        step: u64,
        /// The link that begins, from 0.
        link: usize,
    },
    /// The experts went back to the played point.
    Restart {
        /// Steps done.
        step: u64,
    },
    /// The model was evaluated.
    Evaluated {
        /// `eval` or `test`.
        split: &'a str,
        /// Steps done.
        step: u64,
        /// What came out.
        metrics: &'a Metrics,
    },
    /// A checkpoint was saved.
    Saved(&'a Path),
    /// Something that the user should know.
    Notice(&'a str),
    /// The run is done.
    Finished(&'a Summary),
}

/// Watches a run.
pub trait Observer {
    /// Is told of everything that happens.
    fn event(&mut self, event: &Event);
    /// Asked before every step: whether to save and stop, as after SIGINT.
    fn stop(&mut self) -> bool {
        false
    }
}

/// Watches in silence.
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event) {}
}
