//! The command `sartor`, as a library, so that anybody can ship the same command with passes of their own:
//!
//! ```no_run
//! # fn my_pass() -> sartor::PassInfo { unimplemented!() }
//! fn main() -> std::process::ExitCode {
//!     sartor::main(sartor::Registry::builtin().with(my_pass()))
//! }
//! ```
//!
//! One file per subcommand in [`commands`]. Exit codes: 0, it went well; 1, the answer is no, or the run failed; 2, the
//! command line or an input is wrong. What goes wrong is a sentence on standard error that begins with `error:`.
//! This crate holds no logic that the others could hold: it reads arguments and files, calls them, and prints.

mod chart;
pub mod commands;
mod compare;
mod demo;
mod failure;
mod files;
mod gate_rate;
mod gates;
mod inspection;
mod onnxruntime;
mod peers;
mod recipe;
mod report;
mod sweep;
mod table;
mod tract;
mod training;

pub use failure::{Failure, Outcome};
pub use sartor_passes::{PassInfo, Registry};

use clap::Parser;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

/// Writes a line to standard output. A reader that went away (`sartor inspect … | head`) is no error.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

/// Writes a line to standard error.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

/// Runs the command on the process's arguments, with the passes of this registry.
pub fn main(registry: Registry) -> ExitCode {
    let cli = match commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code().clamp(0, 255) as u8);
        }
    };
    remember_panics();
    match catch_unwind(AssertUnwindSafe(|| commands::run(cli, &registry))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(),
        Err(_) => {
            let place = PANIC.lock().ok().and_then(|mut text| text.take()).unwrap_or_default();
            note!("error: this is a bug in sartor, please report it: {place}");
            ExitCode::from(1)
        }
    }
}

/// What the last panic said, and where.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Panics are caught, by the driver of passes or by [`main`], and reported as sentences: no backtrace is printed.
fn remember_panics() {
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut text) = PANIC.lock() {
            *text = Some(info.to_string().replace('\n', " "));
        }
    }));
}
