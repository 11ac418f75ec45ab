//! The graph IR of Sartor.
//!
//! A [`Model`] is an inference [`Graph`], the parameters it shares with its training programs, and what the file says
//! besides. Nodes are data; what operators *do* stands in one table ([`ops`]). [`infer`] finds types and shapes,
//! [`eval`] is the reference evaluator, [`verify`] checks every invariant, [`text`] prints and parses, and [`onnx`]
//! reads and writes files. This crate touches no device, starts no process and trains nothing.

pub mod attr;
pub mod dim;
pub mod dtype;
pub mod error;
pub mod eval;
pub mod graph;
pub mod infer;
pub mod minifloat;
pub mod model;
pub mod onnx;
pub mod ops;
pub mod rng;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;

pub use attr::{Attribute, Attributes};
pub use dim::Dim;
pub use dtype::{DType, Element};
pub use error::{Context, Error, Result};
pub use graph::{Graph, GraphOutput, Node, NodeId, NodeKind, Operator, OutputSlot, Value};
pub use half::{bf16, f16};
pub use model::{Binding, Function, Model, Parameter, Program, Role};
pub use tensor::Tensor;
pub use types::{Shape, Type};

/// The internal opset: models are upgraded to it before training and lowering; a plain round trip keeps the file's own.
pub const OPSET: i64 = 20;
/// The IR version written for models made here.
pub const IR_VERSION: i64 = 10;
/// The domain of the operators that ONNX lacks (gradients, mostly).
pub const SARTOR_DOMAIN: &str = "ai.sartor";
