//! `freeze`: says which parameters training changes.
//!
//! ```text
//! before   frozen float[2, 3] "fc.weight", frozen float[3] "fc.bias"      freeze(trainable=[*.bias])
//! after    frozen float[2, 3] "fc.weight", trainable float[3] "fc.bias"
//! ```
//! (executed, with what stands beside it, by `tests/cases/freeze/name.txt`)
//!
//! *Needs* nothing. *Leaves* every floating-point parameter that a pattern of `trainable` matches `Trainable`, and every
//! other one that a pattern of `frozen` matches `Frozen`; the rest as it was. Changes no graph. Idempotent.
//!
//! Patterns ([`crate::pattern`]) match the parameter's name (also without `.weight` or `.bias`), and the names and
//! module paths of the nodes that read it. A pattern that matches nothing is an error with near misses. `Constant` and
//! `State` parameters are not touched.

use crate::pattern::{Patterns, module_paths, source_param};
use crate::{Changed, Pass};
use indexmap::IndexMap;
use sartor_ir::{Graph, Model, Result, Role, ensure};
use schemars::JsonSchema;
use serde::Deserialize;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Freeze {
    /// What becomes frozen.
    pub frozen: Vec<String>,
    /// What becomes trainable; it wins over `frozen`.
    pub trainable: Vec<String>,
}

impl Pass for Freeze {
    fn name(&self) -> &str {
        "freeze"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        let given = !self.frozen.is_empty() || !self.trainable.is_empty();
        ensure!(given, "give patterns, as in freeze(frozen=[*], trainable=[*.bias])");
        let (frozen, trainable) = (Patterns::parse(&self.frozen)?, Patterns::parse(&self.trainable)?);
        let mut changed = crate::lift::lift(model)?;
        let names = param_names(model);
        let things: Vec<Vec<String>> = names.values().cloned().collect();
        frozen.check_all_match(&things, "parameter")?;
        trainable.check_all_match(&things, "parameter")?;
        for (key, names) in names {
            let role = if trainable.matches(&names) {
                Role::Trainable
            } else if frozen.matches(&names) {
                Role::Frozen
            } else {
                continue;
            };
            if let Some(param) = model.params.get_mut(&key) {
                changed |= std::mem::replace(&mut param.role, role) != role;
            }
        }
        Ok(changed.into())
    }
}

/// The names that each weight answers to.
fn param_names(model: &Model) -> IndexMap<String, Vec<String>> {
    let weights = model
        .params
        .iter()
        .filter(|(_, p)| matches!(p.role, Role::Frozen | Role::Trainable) && p.tensor.dtype().is_float());
    let own = |key: &String| {
        let module = key.strip_suffix(".weight").or(key.strip_suffix(".bias"));
        std::iter::once(key.clone()).chain(module.map(str::to_string)).collect()
    };
    let mut names: IndexMap<String, Vec<String>> = weights.map(|(key, _)| (key.clone(), own(key))).collect();
    add_readers(&model.graph, &mut names);
    names
}

fn add_readers(graph: &Graph, names: &mut IndexMap<String, Vec<String>>) {
    for id in graph.topo_ops() {
        for input in graph.node_inputs(id).into_iter().flatten() {
            let Some(key) = source_param(graph, input).and_then(|v| graph.param_name(v)) else { continue };
            if let Some(list) = names.get_mut(key) {
                let node = Some(graph.node(id).name.clone()).filter(|name| !name.is_empty());
                list.extend(node.into_iter().chain(module_paths(graph, id)));
            }
        }
    }
}
