//! The runtime of Sartor: sessions that run graphs and programs, the trainer, data readers and checkpoints.
//!
//! A [`Session`] lowers one graph of a model to kernels, plans its memory once per shape signature, and runs it on a device.
//! Parameters live in [`Params`], shared by the sessions of a run. This crate never rewrites a model.

mod bodies;
pub mod checkpoint;
pub mod cpu;
pub mod data;
pub mod execute;
pub mod lower;
pub mod packed;
pub mod params;
pub mod plan;
pub mod profile;
pub mod session;
mod split;
pub mod train;

pub use params::Params;
pub use session::{Key, Report, Session, SessionOptions};
