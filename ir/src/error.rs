//! The errors of the crate: sentences that say where, what was found, and what was expected.

use std::fmt;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Each variant prints as one sentence; several problems stand one per line, indented below the place that they have in common.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sentence that says it all.
    #[error("{0}")]
    Message(String),
    /// A problem with a place in front of it: a file, a node, a value.
    #[error("{place}:{}", Below(source))]
    At {
        /// Where: `file model.onnx`, `node "Add_3" (Add)`, ….
        place: String,
        /// What.
        source: Box<Error>,
    },
    /// Several problems, all of them.
    #[error("{}", Lines(.0))]
    Many(Vec<Error>),
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

struct Lines<'a>(&'a [Error]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// What follows a place: on the same line, or, where there are several problems, each on its own.
struct Below<'a>(&'a Error);

impl fmt::Display for Below<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let text = self.0.to_string();
        match self.0 {
            Error::Many(_) => text.lines().try_for_each(|line| write!(f, "\n  {line}")),
            _ => write!(f, " {text}"),
        }
    }
}

impl Error {
    /// An error from a sentence.
    pub fn msg(text: impl Into<String>) -> Error {
        Error::Message(text.into())
    }
    /// The same error with a place in front.
    pub fn at(self, place: impl Into<String>) -> Error {
        Error::At { place: place.into(), source: Box::new(self) }
    }
    /// An input/output error on a path.
    pub fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Error {
        Error::Io { path: path.as_ref().display().to_string(), source }
    }
    /// One error out of several; `Ok` if there is none.
    pub fn all(mut errors: Vec<Error>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Many(errors)),
        }
    }
}

/// Puts a place in front of the error of a result.
pub trait Context<T> {
    /// `place` is only made when there is an error.
    fn context<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.at(place()))
    }
}

/// `bail!("…")` returns an [`Error::Message`].
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::Error::msg(format!($($arg)*))) };
}

/// `ensure!(condition, "…")` returns an [`Error::Message`] unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($cond:expr, $($arg:tt)*) => { if !$cond { $crate::bail!($($arg)*) } };
}
