//! The other runtimes that `verify` and `bench` can run a model in.

use crate::compare::Arrays;
use crate::{onnxruntime, tract};
use clap::ValueEnum;
use sartor_ir::{Model, Result};
use std::path::Path;

/// Which runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// ONNX Runtime
    Ort,
    /// tract
    Tract,
}

impl Runtime {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Ort => "ort",
            Runtime::Tract => "tract",
        }
    }
    /// Reads a model for inputs of these shapes, to run on so many threads; tract always runs on one. `library`: where
    /// `libonnxruntime.so` is.
    pub fn load(self, model: &Model, inputs: &Arrays, threads: Option<usize>, library: Option<&Path>) -> Result<Peer> {
        match self {
            Runtime::Ort => onnxruntime::Peer::new(model, threads, library).map(Peer::Ort),
            Runtime::Tract => tract::Peer::new(model, inputs).map(Peer::Tract),
        }
    }
}

/// A model in another runtime.
pub enum Peer {
    /// In ONNX Runtime.
    Ort(onnxruntime::Peer),
    /// In tract.
    Tract(tract::Peer),
}

impl Peer {
    /// The outputs by name.
    pub fn run(&mut self, inputs: &Arrays) -> Result<Arrays> {
        match self {
            Peer::Ort(peer) => peer.run(inputs),
            Peer::Tract(peer) => peer.run(inputs),
        }
    }
    /// The seconds of a run, without the conversion of inputs and outputs.
    pub fn time(&mut self, inputs: &Arrays) -> Result<f64> {
        match self {
            Peer::Ort(peer) => peer.time(inputs),
            Peer::Tract(peer) => peer.time(inputs),
        }
    }
}
