//! The passes of Sartor: each rewrites a model; the [`Registry`] names them all; the [`Driver`] runs them safely.
//!
//! A pass is a name and a function on a model. The driver runs it on a snapshot, verifies what it made, times it, and
//! on an error or a panic leaves the model as it was. This crate never runs a model.

pub mod accumulate;
pub mod autodiff;
pub mod average;
pub mod bind;
pub mod calibrate;
pub mod clip;
pub mod cola;
pub mod cse;
pub mod dce;
pub mod driver;
pub mod extract_adapter;
pub mod flow;
pub mod fold;
pub mod freeze;
pub mod fuse;
pub mod fuse_batch_norm;
pub mod gate;
pub mod gradient;
pub mod harden;
pub mod head;
pub mod infer;
pub mod inline;
pub mod lift;
pub mod loss;
pub mod merge;
pub mod metadata;
pub mod narrow;
pub mod near;
pub mod optimizer;
pub mod options;
pub mod ort_training;
pub mod pattern;
pub mod pipelines;
pub mod registry;
pub mod samuel;
pub mod sequences;
pub mod simplify;
pub mod standard;
pub mod train_mode;
pub mod training;
pub mod upgrade;
pub mod walk;

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
const BUILTIN: &[fn() -> PassInfo] = &[
    || PassInfo::of::<cola::Cola>("cola", "tailoring", "insert chains of low-rank adapters; one link is LoRA"),
    || {
        PassInfo::of::<gate::Gate>(
            "gate",
            "tailoring",
            "attach two small networks that decide per input which layers and channels to compute",
        )
    },
    || {
        PassInfo::of::<gate::GateOutputs>(
            "gate-outputs",
            "tailoring",
            "let a gated model say what each input costs and which gates it opens",
        )
    },
    || PassInfo::of::<harden::Harden>("harden", "tailoring", "let a gated model skip what its gates shut"),
    || PassInfo::of::<head::Head>("head", "tailoring", "put a new classifier or regressor on a value"),
    || PassInfo::of::<loss::Loss>("loss", "training", "make the programs `step` and `eval` with a loss and labels"),
    || PassInfo::of::<autodiff::Autodiff>("autodiff", "training", "add the gradients of every trainable parameter"),
    || PassInfo::of::<clip::Clip>("clip", "training", "limit the norm of the gradients"),
    || {
        PassInfo::of::<accumulate::Accumulate>(
            "accumulate",
            "training",
            "average gradients over several runs of a step",
        )
    },
    || {
        PassInfo::of::<optimizer::Optimizer>(
            "optimizer",
            "training",
            "turn gradients into updates: sgd, adamw, adagrad, prodigy, schedule-free-adamw, d-adapt-adam",
        )
    },
    || {
        PassInfo::of::<samuel::Samuel>(
            "samuel",
            "training",
            "train with several learning rates at once and weigh them on the way",
        )
    },
    || {
        PassInfo::of::<average::Average>(
            "average",
            "training",
            "let the parameters hold the mean of the points that training goes through",
        )
    },
    || PassInfo::of::<merge::Merge>("merge", "interchange", "fold all adapters into the weights"),
    || {
        PassInfo::of::<extract_adapter::ExtractAdapter>(
            "extract-adapter",
            "interchange",
            "write the adapters as a folder that PEFT loads",
        )
    },
    || {
        PassInfo::of::<standard::Standard>(
            "standard",
            "interchange",
            "write what only Sartor knows, or what is newer than an opset, in ONNX's own operators",
        )
    },
    || PassInfo::of::<upgrade::Upgrade>("upgrade", "clean-up", "bring the model to the internal opset"),
    || {
        PassInfo::of::<gradient::Gradient>(
            "gradient",
            "clean-up",
            "compute the gradients that `Gradient` operators ask for",
        )
    },
    || {
        PassInfo::of::<bind::Bind>(
            "bind",
            "clean-up",
            "make constants of inputs that are always the same, numbers of named dimensions",
        )
    },
    || PassInfo::of::<lift::Lift>("lift", "clean-up", "make parameters of weights in `Constant` operators"),
    || PassInfo::of::<inline::Inline>("inline", "clean-up", "replace calls of model-local functions by their bodies"),
    || PassInfo::of::<infer::Infer>("infer", "clean-up", "find the types and shapes of all values"),
    || PassInfo::of::<fold::Fold>("fold", "clean-up", "compute what does not depend on any input"),
    || PassInfo::of::<narrow::Narrow>("narrow", "clean-up", "compute only the rows that are read"),
    || PassInfo::of::<fuse::Fuse>("fuse", "clean-up", "make one operator of those that exporters write out (GELU)"),
    || {
        PassInfo::of::<fuse_batch_norm::FuseBatchNorm>(
            "fuse-batch-norm",
            "clean-up",
            "fold batch normalisation into the convolution before it",
        )
    },
    || {
        PassInfo::of::<sequences::Sequences>(
            "sequences",
            "clean-up",
            "make tensors of sequences whose members are known",
        )
    },
    || PassInfo::of::<simplify::Simplify>("simplify", "clean-up", "remove operators that do nothing"),
    || PassInfo::of::<cse::Cse>("cse", "clean-up", "compute the same thing once"),
    || PassInfo::of::<dce::Dce>("dce", "clean-up", "remove what nothing needs"),
    || PassInfo::of::<freeze::Freeze>("freeze", "tailoring", "say which parameters training changes"),
    || {
        PassInfo::of::<train_mode::TrainMode>(
            "train-mode",
            "training",
            "normalise by the statistics of the batch while training",
        )
    },
    || {
        PassInfo::of::<calibrate::Calibrate>(
            "calibrate",
            "training",
            "make a program that gathers the statistics of batch normalisation anew",
        )
    },
];
