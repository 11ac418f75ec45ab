//! SIGINT and SIGTERM: the first asks the run to save and stop, a second one ends the process at once.

use sartor_ir::{Error, Result};
use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Catches the signals while it lives.
pub struct Signals {
    asked: Arc<AtomicBool>,
    ids: Vec<SigId>,
}

impl Signals {
    /// Catches them, or (`catch` false) none.
    pub fn new(catch: bool) -> Result<Signals> {
        let mut signals = Signals { asked: Arc::new(AtomicBool::new(false)), ids: Vec::new() };
        if catch {
            for signal in [SIGINT, SIGTERM] {
                // In this order: the exit sees the flag only from the second signal on. 128 + the signal, as shells say.
                let exit = flag::register_conditional_shutdown(signal, 128 + signal, signals.asked.clone());
                let ask = flag::register(signal, signals.asked.clone());
                for id in [exit, ask] {
                    signals.ids.push(id.map_err(|e| Error::msg(format!("signals cannot be caught: {e}")))?);
                }
            }
        }
        Ok(signals)
    }
    /// Whether one came.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.ids.drain(..).for_each(|id| {
            signal_hook::low_level::unregister(id);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_raises_the_flag() {
        let signals = Signals::new(true).unwrap();
        assert!(!signals.asked());
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(signals.asked());
    }
}
