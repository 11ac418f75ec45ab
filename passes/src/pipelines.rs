//! Pipelines with a name: written like a pass, they stand for several.

use crate::options::Invocation;
use crate::registry::Options;

/// Name, summary, and the passes in order.
pub const PIPELINES: &[(&str, &str, &[&str])] = &[(
    "optimize",
    "lift to the internal opset, inline, fold, simplify and remove what is left over",
    &["upgrade", "inline", "infer", "fold", "simplify", "fold", "cse", "dce", "infer"],
)];

/// The passes that a pipeline's name stands for.
pub fn expand(name: &str) -> Option<Vec<Invocation>> {
    let (.., passes) = PIPELINES.iter().find(|(pipeline, ..)| *pipeline == name)?;
    Some(passes.iter().map(|pass| (pass.to_string(), Options::new())).collect())
}
