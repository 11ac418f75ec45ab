//! `gradient`: replaces every operator `ai.onnx.preview.training::Gradient` by the nodes that compute what it asks for.
//!
//! ```text
//! before   c = Add (a, b)   da, db = ai.onnx.preview.training::Gradient <xs = ["a", "b"], y = "c"> (a, b)
//! after    c = Add (a, b)   da = …   db = …
//! ```
//! (executed by `tests/cases/gradient/*.txt`)
//!
//! The attributes name values of the graph: `y`, a function of `xs` and `zs`. The inputs are the places at which its gradient is wanted, one
//! per name. Where they are the named values themselves, the forward computation is shared; else what depends on them is computed
//! once more. The gradient of a `y` of several elements is that of their sum. Nodes are treated in topological order, so that a
//! `Gradient` may differentiate the result of another.
//!
//! *Needs* the internal opset, and the values under the names that the file gave them: it stands early in pipelines. A model without such a
//! node is left alone. Spec: <https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Gradient.html>.

use crate::{Changed, Pass, autodiff, walk};
use sartor_ir::ops::Emit;
use sartor_ir::ops::optimizers::DOMAIN;
use sartor_ir::{Attributes, Context, Graph, GraphOutput, Model, NodeId, Result, Value, bail, ensure, infer};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashMap;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gradient {}

impl Pass for Gradient {
    fn name(&self) -> &str {
        "gradient"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        let asked = model.graphs_mut().any(|graph| graph.topo_ops().into_iter().any(|id| is_gradient(graph, id)));
        if !asked {
            return Ok(Changed::No);
        }
        walk::require_internal_opset(model)?;
        let opset = model.opset();
        for graph in model.graphs_mut() {
            while let Some(id) = graph.topo_ops().into_iter().find(|&id| is_gradient(graph, id)) {
                let label = graph.node(id).label();
                infer::infer_graph(graph, opset)?;
                expand(graph, id, opset).context(|| label)?;
            }
            graph.remove_dead();
        }
        Ok(Changed::Yes)
    }
}

fn is_gradient(graph: &Graph, id: NodeId) -> bool {
    graph.node(id).op().is_some_and(|op| op.domain == DOMAIN && op.name == "Gradient")
}

fn expand(graph: &mut Graph, id: NodeId, opset: i64) -> Result<()> {
    let attrs = graph.node(id).op().map(|op| op.attrs.clone()).unwrap_or_default();
    let (xs, zs) = (values(graph, &attrs, "xs")?, values(graph, &attrs, "zs")?);
    let Some(y) = attrs.get_str("y")? else { bail!("attribute `y` is missing") };
    let y = value(graph, y)?;
    let places: Option<Vec<Value>> = graph.node_inputs(id).into_iter().collect();
    let Some(places) = places else { bail!("one of its inputs is left out") };
    let named = [xs.clone(), zs].concat();
    ensure!(places.len() == named.len(), "it has {} inputs, and names {} values", places.len(), named.len());
    let y = if places == named { y } else { replayed(graph, y, &named, &places)? };
    infer::infer_graph(graph, opset)?;
    let by: Vec<Value> = places[..xs.len()].to_vec();
    // An output follows its value through decompositions.
    graph.outputs.push(GraphOutput { name: graph.value_name(y).to_string(), value: y });
    let place = graph.outputs.len() - 1;
    let found = autodiff::gradients_of_output(graph, place, &by, opset);
    graph.outputs.truncate(place);
    let found = found?;
    let outputs: Vec<Value> = graph.node_outputs(id).collect();
    ensure!(outputs.len() <= by.len(), "it has {} outputs, and names {} values in `xs`", outputs.len(), by.len());
    for (output, x) in outputs.into_iter().zip(by) {
        let grad = match found.get(&x) {
            Some(&grad) => grad,
            None => Emit::new(graph, opset).full_like(x, 0.0)?,
        };
        replace(graph, output, grad, opset)?;
    }
    graph.remove(id);
    Ok(())
}

/// The readers of `old` read `new`, which takes over its name, so that another `Gradient` can ask for it.
fn replace(graph: &mut Graph, old: Value, new: Value, opset: i64) -> Result<()> {
    let name = graph.value_name(old).to_string();
    if name.is_empty() {
        return Ok(());
    }
    let own = graph.node(new.node).op().is_some() && graph.value_name(new).starts_with(autodiff::PREFIX);
    let new = if own { new } else { Emit::new(graph, opset).unary("Identity", new)? };
    graph.replace_uses(old, new);
    let spare = graph.fresh_name("gradient");
    graph.rename(old, &spare);
    graph.rename(new, &name);
    Ok(())
}

fn value(graph: &Graph, name: &str) -> Result<Value> {
    graph.find_value(name).map_or_else(|| bail!("the graph has no value \"{name}\""), Ok)
}

fn values(graph: &Graph, attrs: &Attributes, list: &str) -> Result<Vec<Value>> {
    let names = attrs.get_strings(list)?.unwrap_or_default();
    names.iter().map(|name| value(graph, &String::from_utf8_lossy(name))).collect()
}

/// `y` as it would be if the named values were those at `places`: everything that depends on them is computed again.
fn replayed(graph: &mut Graph, y: Value, named: &[Value], places: &[Value]) -> Result<Value> {
    let mut copies: HashMap<Value, Value> = named.iter().copied().zip(places.iter().copied()).collect();
    let needed = graph.ancestors([y], |v| named.contains(v));
    for id in graph.topo_ops() {
        let inputs = graph.node_inputs(id);
        let depends = inputs.iter().flatten().any(|v| copies.contains_key(v));
        if !needed.contains(&id) || !depends {
            continue;
        }
        let source = graph.node(id).clone();
        let Some(op) = source.op().cloned() else { continue };
        let inputs: Vec<Option<Value>> =
            inputs.iter().map(|v| v.map(|v| copies.get(&v).copied().unwrap_or(v))).collect();
        let copy = walk::add_copy(graph, &source, ("", op), &inputs, |name| format!("{name}_again"));
        for (old, new) in graph.node_outputs(id).zip(graph.node_outputs(copy)) {
            copies.entry(old).or_insert(new);
        }
    }
    Ok(copies.get(&y).copied().unwrap_or(y))
}
