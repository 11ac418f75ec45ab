//! `autodiff`: reverse-mode differentiation of every training step: adds the nodes that compute the gradient of
//! `loss` with respect to each trainable parameter, as outputs named `grad:<parameter>`.
//!
//! Before → after:
//! ```text
//! step: (x, label) => (loss)      step: (x, label) => (loss, grad:w, grad:b)
//! ```
//! Reverse mode: nodes are visited from the loss backwards; each operator's own rule ([`sartor_ir::ops`]) turns the
//! gradients of its outputs into those of its inputs; gradients that meet at a value are added. Only nodes between a trainable
//! parameter and the loss are visited, and only the inputs that lead to one get a gradient: frozen weights cost nothing and the backward pass ends at the
//! lowest trained layer.
//!
//! Before that, the programs are made cheaper to differentiate: `simplify`, `fuse`, `narrow`, and a softmax that is guarded against NaN becomes one
//! operator (whose gradient is 0, not NaN, for a line that has no finite entry). Quantisation to integers and back becomes one operator too, whose gradient passes straight through.
//!
//! Precondition: the programs have an output `loss` of one element. It refuses, naming *all* of them at once, operators on the way that have no gradient rule,
//! and trainable parameters that the loss does not depend on. It does not differentiate twice.

use crate::{Changed, Pass, training};
use sartor_ir::ops::gradient::{between, decompose_between, sweep};
use sartor_ir::ops::{self, Emit, Gradient};
use sartor_ir::{Error, Graph, Model, Program, Result, Value, bail, ensure, infer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// What the names of the nodes of a backward pass begin with.
pub(crate) const PREFIX: &str = "/backward/";

/// The options (none), and the pass.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Autodiff {}

impl Pass for Autodiff {
    fn name(&self) -> &str {
        "autodiff"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        training::require_opset(model, "autodiff")?;
        training::for_each_step(model, "autodiff", |_, program, model| differentiate(program, model))?;
        Ok(Changed::Yes)
    }
}

fn differentiate(program: &mut Program, model: &Model) -> Result<()> {
    let graph = &mut program.graph;
    let opset = model.opset();
    ensure!(training::gradients(graph, "").is_err(), "the gradients are there already");
    let params = training::trainables(graph, model);
    ensure!(!params.is_empty(), "it has no trainable parameter: add some with `cola`, `head` or `freeze(trainable=…)`");
    infer::infer_graph(graph, opset)?;
    crate::simplify::simplify_graph(graph, opset)?;
    crate::fuse::fuse(graph, opset)?;
    crate::fuse::guard_softmax(graph, opset)?;
    crate::fuse::fake_quantize(graph, opset)?;
    crate::fuse::straight_products(graph, opset)?;
    crate::narrow::narrow(graph, opset)?;
    let Some(place) = graph.outputs.iter().position(|o| o.name == "loss") else { bail!("it has no output \"loss\"") };
    let ty = graph.ty(graph.outputs[place].value).and_then(|t| t.static_shape());
    ensure!(ty.is_some_and(|s| s.iter().product::<usize>() == 1), "the loss is not a single number");
    let sources: Vec<Value> = params.iter().filter_map(|p| graph.find_param(p)).collect();
    let grads = gradients_of_output(graph, place, &sources, opset)?;
    let missing: Vec<Error> = params
        .iter()
        .filter(|p| graph.find_param(p).is_none_or(|v| !grads.contains_key(&v)))
        .map(|p| Error::msg(format!("the loss does not depend on the trainable parameter \"{p}\"")))
        .collect();
    Error::all(missing)?;
    for param in &params {
        if let Some(grad) = graph.find_param(param).and_then(|v| grads.get(&v).copied()) {
            training::set_output(graph, &format!("{}{param}", training::GRAD), grad);
        }
    }
    graph.remove_dead();
    Ok(())
}

/// Adds the gradients of the sum of a graph output by what lies between it and the sources. Operators on the way may be replaced by
/// their decompositions.
pub(crate) fn gradients_of_output(
    graph: &mut Graph,
    place: usize,
    sources: &[Value],
    opset: i64,
) -> Result<HashMap<Value, Value>> {
    decompose_between(graph, sources, |graph| vec![graph.outputs[place].value], opset)?;
    let y = graph.outputs[place].value;
    let needed = between(graph, sources, &[y]);
    refuse_missing_rules(graph, &needed)?;
    let mut emit = Emit::new(graph, opset);
    emit.prefix = PREFIX.to_string();
    let seed = emit.full_like(y, 1.0)?;
    sweep(&mut emit, HashMap::from([(y, seed)]), &needed)
}

fn refuse_missing_rules(graph: &Graph, needed: &HashSet<Value>) -> Result<()> {
    let mut errors = Vec::new();
    for id in graph.topo_ops() {
        let node = graph.node(id);
        if !graph.node_outputs(id).any(|v| needed.contains(&v)) {
            continue;
        }
        let rule = node.op().and_then(ops::of).map(|def| def.grad);
        if matches!(rule, None | Some(Gradient::Missing)) {
            let why = if rule.is_none() { "is not known, so it has no gradient rule" } else { "has no gradient rule" };
            let text = format!("its operator {why}, and it stands between a trainable parameter and the loss");
            errors.push(Error::msg(text).at(node.label()));
        }
    }
    Error::all(errors)
}
