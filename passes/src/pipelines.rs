//! Pipelines with a name: written like a pass, they stand for several.

use crate::Driver;
use crate::options::Invocation;
use crate::registry::{Options, Registry};
use sartor_ir::{Model, Result};

/// Name, summary, and the passes in order.
pub const PIPELINES: &[(&str, &str, &[&str])] = &[(
    "optimize",
    "lift to the internal opset, inline, fold, simplify, compute only what is read, and remove what is left over",
    &[
        "upgrade",
        "inline",
        "gradient",
        "infer",
        "fold",
        "sequences",
        "simplify",
        "fuse-batch-norm",
        "narrow",
        "fold",
        "cse",
        "dce",
        "infer",
    ],
)];

/// The passes that a pipeline's name stands for.
pub fn expand(name: &str) -> Option<Vec<Invocation>> {
    let (.., passes) = PIPELINES.iter().find(|(pipeline, ..)| *pipeline == name)?;
    Some(passes.iter().map(|pass| (pass.to_string(), Options::new())).collect())
}

/// The passes of [`prepare`].
const PREPARATION: &[&str] = &["inline", "upgrade", "gradient", "lift", "sequences", "infer"];

/// The passes of [`prepare_inference`] after these.
const FOR_INFERENCE: &[&str] =
    &["fold", "sequences", "simplify", "fuse-batch-norm", "narrow", "fold", "cse", "dce", "infer"];

/// Makes a model that can be run and trained out of one as it stands in a file: functions inlined, in the internal
/// opset, with weights as parameters and the type of every value inferred.
pub fn prepare(model: &mut Model, registry: &Registry) -> Result<()> {
    run(PREPARATION, model, registry)
}

/// Makes a model whose inference graph runs fast: prepared, and cleaned up as `optimize` does.
pub fn prepare_inference(model: &mut Model, registry: &Registry) -> Result<()> {
    run(PREPARATION, model, registry)?;
    run(FOR_INFERENCE, model, registry)
}

fn run(names: &[&str], model: &mut Model, registry: &Registry) -> Result<()> {
    let passes = names.iter().map(|name| registry.build(name, Options::new())).collect::<Result<Vec<_>>>()?;
    Driver::new().run(&passes, model).map(drop)
}
