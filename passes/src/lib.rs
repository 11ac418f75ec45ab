//! The passes of Sartor: each rewrites a model; the [`Registry`] names them all; the [`Driver`] runs them safely.
//!
//! A pass is a name and a function on a model. The driver runs it on a snapshot, verifies what it made, times it, and
//! on an error or a panic leaves the model as it was. This crate never runs a model.

pub mod driver;
pub mod near;
pub mod options;
pub mod pattern;
pub mod registry;

pub use driver::{Driver, PassReport, Report};
pub use pattern::Patterns;
pub use registry::{Options, PassInfo, Registry};

use sartor_ir::{Model, Result};

/// Whether a pass changed the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// It did.
    Yes,
    /// It did not: the model is bit for bit as before.
    No,
}

impl From<bool> for Changed {
    fn from(changed: bool) -> Changed {
        if changed { Changed::Yes } else { Changed::No }
    }
}

/// A rewrite of a model.
pub trait Pass {
    /// Its name on the command line and in pipelines.
    fn name(&self) -> &str;
    /// Rewrites the model. After an error the driver throws the model away.
    fn run(&self, model: &mut Model) -> Result<Changed>;
}

/// One row per pass of this crate.
const BUILTIN: &[fn() -> PassInfo] = &[];
