//! `lift`: weights that stand in `Constant` operators become parameters.
//!
//! ```text
//! before   w = Constant <value = float[2] {1.0, 2.0}> ()   y = Mul (x, w)
//! after    <frozen float[2] w>                             y = Mul (x, w)
//! ```
//! (executed by `tests/cases/lift/weights.txt`)
//!
//! Some exporters (Paddle, tf2onnx) write no initializers. Only parameters can be adapted, trained, shared by programs and kept
//! out of the arena, so `cola` and `freeze` do this first.
//!
//! What decides about shapes, the scales of a `Resize`, becomes a constant in return where it was made of weights.
//!
//! *Needs* nothing. *Leaves* no `Constant` operator with a floating-point tensor of two elements or more in the inference graph and
//! the programs; equal ones of one name are one `Frozen` parameter. Integers, single numbers, functions and subgraphs stay as they are. The
//! same numbers. Idempotent.

use crate::fold::fresh_param_name;
use crate::walk::edit_with_model;
use crate::{Changed, Pass};
use sartor_ir::{Graph, Model, NodeId, Parameter, Result, Role, Tensor, Type, Value};
use schemars::JsonSchema;
use serde::Deserialize;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lift {}

impl Pass for Lift {
    fn name(&self) -> &str {
        "lift"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        Ok(lift(model)?.into())
    }
}

/// Lifts all weights of a model; returns whether there were any.
pub fn lift(model: &mut Model) -> Result<bool> {
    let mut changed = false;
    edit_with_model(model, |graph, model| {
        changed |= lift_graph(graph, model);
        changed |= settle_shapes(graph, model);
        Ok(())
    })?;
    Ok(changed)
}

fn lift_graph(graph: &mut Graph, model: &mut Model) -> bool {
    let found: Vec<(NodeId, Tensor)> =
        graph.topo_ops().into_iter().filter_map(|id| weight(graph, id).map(|tensor| (id, tensor))).collect();
    for (id, tensor) in &found {
        let old = Value { node: *id, slot: 0 };
        let name = param_name(model, graph, graph.value_name(old).to_string(), tensor);
        let ty = Type::of(tensor);
        // The old value makes room for the parameter of its name.
        graph.rename(old, &format!("{name}.constant"));
        let new = graph.param(&name, ty);
        graph.replace_uses(old, new);
        graph.remove(*id);
    }
    !found.is_empty()
}

/// Most numbers of what is read as scales.
const MOST_SCALES: usize = 64;

/// Scales of images that are made of parameters alone become constants: shapes depend on them.
fn settle_shapes(graph: &mut Graph, model: &Model) -> bool {
    let mut changed = false;
    for id in graph.topo_ops() {
        let node = graph.node(id);
        let slots: &[usize] = if node.is("Resize") {
            &[1, 2]
        } else if node.is("Upsample") {
            &[1]
        } else {
            &[]
        };
        for &slot in slots {
            let Some(value) = graph.input(id, slot).filter(|&v| graph.constant(v).is_none()) else { continue };
            if !crate::cola::is_still(graph, value) {
                continue;
            }
            let Ok(tensor) = crate::cola::effective_weight(graph, model, value) else { continue };
            if tensor.len() <= MOST_SCALES {
                let hint = format!("{}.constant", graph.value_name(value));
                let constant = graph.add_const(&hint, tensor);
                graph.set_input(id, slot, Some(constant));
                changed = true;
            }
        }
    }
    if changed {
        graph.remove_dead();
    }
    changed
}

fn weight(graph: &Graph, id: NodeId) -> Option<Tensor> {
    let node = graph.node(id);
    node.is("Constant").then(|| node.constant()).flatten().filter(|t| t.len() > 1 && t.dtype().is_float())
}

/// The name of the parameter that holds this tensor: the value's own, unless a parameter with another content has it.
fn param_name(model: &mut Model, graph: &Graph, hint: String, tensor: &Tensor) -> String {
    let same = model.params.get(&hint).map(|param| param.role == Role::Frozen && param.tensor == *tensor);
    let name = if same == Some(false) { fresh_param_name(model, graph, &hint) } else { hint };
    if same != Some(true) {
        model.params.insert(name.clone(), Parameter { tensor: tensor.clone(), role: Role::Frozen });
    }
    name
}
