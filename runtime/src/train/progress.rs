//! What people see of a run, on standard error: a bar with loss, rate, examples per second and time left where that is
//! a terminal; otherwise one line per evaluation (or epoch).

use super::events::{Event, Observer};
use super::metrics::Metrics;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// See the [module](self).
pub struct Progress {
    terminal: bool,
    started: Instant,
    drawn: Option<Instant>,
    bar: bool,
    first: u64,
    step: u64,
    total: u64,
    per_epoch: u64,
    samples: u64,
    loss: f64,
    rate: f64,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

impl Progress {
    /// For this process's standard error.
    pub fn new() -> Progress {
        Progress {
            terminal: stderr().is_terminal(),
            started: Instant::now(),
            drawn: None,
            bar: false,
            first: 0,
            step: 0,
            total: 0,
            per_epoch: 1,
            samples: 0,
            loss: f64::NAN,
            rate: 0.0,
        }
    }
    fn epoch_text(&self) -> String {
        let epochs = self.total.div_ceil(self.per_epoch.max(1));
        format!("epoch {}/{epochs}", self.step.div_ceil(self.per_epoch.max(1)).max(1))
    }
    fn numbers(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let (done, left) = (self.step - self.first, self.total.saturating_sub(self.step));
        let left = if done == 0 { 0.0 } else { seconds / done as f64 * left as f64 };
        let speed = self.samples as f64 / seconds;
        format!("loss {:.4}  lr {:.2e}  {speed:.1} samples/s  {} left", self.loss, self.rate, clock(left))
    }
    fn draw(&mut self) {
        let fresh = self.drawn.is_some_and(|d| d.elapsed() < Duration::from_millis(100));
        if !self.terminal || (fresh && self.step < self.total) {
            return;
        }
        self.drawn = Some(Instant::now());
        self.bar = true;
        let filled = (20 * self.step / self.total.max(1)) as usize;
        let bar = format!("{}{}", "█".repeat(filled), "░".repeat(20 - filled.min(20)));
        let text = format!("{}  {bar} {}/{}  {}", self.epoch_text(), self.step, self.total, self.numbers());
        // A terminal that went away is no reason to stop training.
        let _ = write!(stderr(), "\r\x1b[K{text}");
    }
    fn line(&mut self, text: &str) {
        let clear = if std::mem::take(&mut self.bar) { "\r\x1b[K" } else { "" };
        let _ = writeln!(stderr(), "{clear}{text}");
    }
}

fn clock(seconds: f64) -> String {
    let s = seconds.round() as u64;
    if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}

fn metrics_text(metrics: &Metrics) -> String {
    metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join("  ")
}

impl Observer for Progress {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { step, total, per_epoch } => {
                (self.first, self.step, self.total, self.per_epoch) = (*step, *step, *total, *per_epoch);
                self.started = Instant::now();
                if *step > 0 {
                    self.line(&format!("resumed at step {step} of {total}"));
                }
            }
            Event::Step { step, loss, learning_rate, samples } => {
                (self.step, self.loss, self.rate) = (*step, *loss, *learning_rate);
                self.samples += *samples as u64;
                let epoch_ends = step.is_multiple_of(self.per_epoch.max(1)) || *step == self.total;
                if self.terminal {
                    self.draw();
                } else if epoch_ends {
                    self.line(&format!("{}  step {step}/{}  {}", self.epoch_text(), self.total, self.numbers()));
                }
            }
            Event::Knot { step, link } => self.line(&format!("step {step}: knot tied, link {} begins", link + 1)),
            Event::Restart { step } => self.line(&format!("step {step}: experts restarted")),
            Event::Evaluated { split, step, metrics } => {
                self.line(&format!("step {step}  {split}: {}", metrics_text(metrics)));
            }
            Event::Notice(text) => self.line(text),
            Event::Saved(_) | Event::Finished(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        assert_eq!([clock(5.4), clock(65.0), clock(3725.0)], ["0:05", "1:05", "1:02:05"]);
        let mut progress = Progress::new();
        progress.event(&Event::Started { step: 0, total: 20, per_epoch: 10 });
        (progress.step, progress.loss) = (11, 0.5);
        assert_eq!(progress.epoch_text(), "epoch 2/2");
        assert!(progress.numbers().starts_with("loss 0.5000  lr 0.00e0  0.0 samples/s"));
    }
}
