//! How a command ends when it does not end well, and which exit code that is.

use crate::note;
use sartor_ir::Error;
use std::process::ExitCode;

/// How a command ends.
pub type Outcome<T = ()> = Result<T, Failure>;

/// How a command fails.
#[derive(Debug)]
pub enum Failure {
    /// The command line, a file or a recipe is wrong: exit code 2.
    Input(Error),
    /// The inputs were fine, but the run failed: exit code 1.
    Run(Error),
    /// The answer is no, and has been given: exit code 1.
    No,
}

impl Failure {
    /// A mistake on the command line.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::Input(Error::msg(text))
    }
    /// The sentences, one a line.
    pub(crate) fn sentences(&self) -> String {
        match self {
            Failure::Input(error) | Failure::Run(error) => error.to_string(),
            Failure::No => "the answer is no".to_string(),
        }
    }
    /// Prints the sentences; the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Failure::Input(error) => print(&error, 2),
            Failure::Run(error) => print(&error, 1),
            Failure::No => ExitCode::from(1),
        }
    }
}

fn print(error: &Error, code: u8) -> ExitCode {
    let text = error.to_string();
    let mut lines = text.lines();
    note!("error: {}", lines.next().unwrap_or("unknown"));
    lines.for_each(|line| note!("  {line}"));
    ExitCode::from(code)
}

/// An error of the crates below is the input's, unless `Running::running` says otherwise.
impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Input(error)
    }
}

/// Marks results of what happens once all inputs have been read and found right.
pub trait Running<T> {
    /// An error is the run's, not the input's.
    fn running(self) -> Outcome<T>;
}

impl<T> Running<T> for sartor_ir::Result<T> {
    fn running(self) -> Outcome<T> {
        self.map_err(Failure::Run)
    }
}
