//! `inline`: replaces calls of model-local functions by their bodies.
//!
//! ```text
//! before   function local::Double (a) => (b) { b = Add (a, a) }      y = local::Double (x)
//! after    y = Add (x, x)
//! ```
//! (executed, with what stands beside it, by `tests/cases/inline/nested.txt`)
//!
//! *Needs* functions in the model's own opset (`upgrade` lifts both). *Leaves* a model without functions and calls. The
//! same numbers. Idempotent.
//!
//! The size after inlining is computed first, with saturating sums: a kilobyte of functions that double each other would
//! otherwise expand without end. More than `max_nodes` is refused with the number, and so are cycles and more than 64
//! levels. An attribute of the body that refers to the caller's (`@alpha`) takes its value, the function's default, or is left out.

use crate::walk::{add_copy, edit_graphs};
use crate::{Changed, Pass};
use sartor_ir::verify::{MAX_FUNCTION_DEPTH, is_call};
use sartor_ir::{
    Attribute, Attributes, Function, Graph, Model, NodeId, NodeKind, Operator, Result, Value, bail, ensure,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashMap;

/// See the [module](self).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Inline {
    /// More nodes than this are refused.
    pub max_nodes: usize,
}

impl Default for Inline {
    fn default() -> Inline {
        Inline { max_nodes: 1_000_000 }
    }
}

impl Pass for Inline {
    fn name(&self) -> &str {
        "inline"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        if model.functions.is_empty() {
            return Ok(Changed::No);
        }
        let total = expanded_size(model)?;
        ensure!(
            total <= self.max_nodes,
            "inlined, the model would have {} nodes, more than max_nodes = {}",
            if total == usize::MAX { "far too many".to_string() } else { total.to_string() },
            self.max_nodes
        );
        check_opsets(model)?;
        let functions = std::mem::take(&mut model.functions);
        for function in &functions {
            for (domain, version) in &function.opsets {
                model.opsets.entry(domain.clone()).or_insert(*version);
            }
        }
        edit_graphs(model, |graph| inline_graph(graph, &functions, 0))?;
        Ok(Changed::Yes)
    }
}

/// The nodes that the model has once everything is inlined; saturating.
fn expanded_size(model: &Model) -> Result<usize> {
    let functions = &model.functions;
    let mut sizes = vec![0usize; functions.len()];
    let (mut settled, mut rounds) = (false, 0);
    while !settled {
        ensure!(
            rounds <= MAX_FUNCTION_DEPTH,
            "functions call each other in a cycle or more than {MAX_FUNCTION_DEPTH} deep"
        );
        let new: Vec<usize> = functions.iter().map(|f| graph_size(&f.graph, functions, &sizes)).collect();
        settled = new == sizes && rounds > 0;
        sizes = new;
        rounds += 1;
    }
    let sum = |total: usize, graph: &Graph| total.saturating_add(graph_size(graph, functions, &sizes));
    Ok(model.graphs().fold(0, sum))
}

fn graph_size(graph: &Graph, functions: &[Function], sizes: &[usize]) -> usize {
    let mut total = 0usize;
    for id in graph.node_ids() {
        let Some(op) = graph.node(id).op() else { continue };
        let called = functions.iter().position(|f| is_call(f, op)).map_or(0, |i| sizes[i]);
        total = total.saturating_add(1).saturating_add(called);
        for (_, subgraph) in op.attrs.graphs() {
            total = total.saturating_add(graph_size(subgraph, functions, sizes));
        }
    }
    total
}

fn check_opsets(model: &Model) -> Result<()> {
    for function in &model.functions {
        for (domain, version) in &function.opsets {
            let domain = if domain == "ai.onnx" { "" } else { domain };
            let own = if domain.is_empty() { Some(model.opset()) } else { model.opsets.get(domain).copied() };
            if own.is_some_and(|own| own != *version) {
                bail!(
                    "function \"{}::{}\" is written in version {version} of domain \"{domain}\", the model in {}: run \
                     the pass `upgrade` first",
                    function.domain,
                    function.name,
                    own.unwrap_or(0)
                );
            }
        }
    }
    Ok(())
}

/// Inlines until no call is left; the call graph has no cycle, so this ends.
fn inline_graph(graph: &mut Graph, functions: &[Function], depth: usize) -> Result<bool> {
    let mut changed = false;
    loop {
        let calls: Vec<(NodeId, &Function)> = graph
            .topo_ops()
            .into_iter()
            .filter_map(|id| {
                Some((id, functions.iter().find(|f| graph.node(id).op().is_some_and(|op| is_call(f, op)))?))
            })
            .collect();
        if calls.is_empty() || depth > MAX_FUNCTION_DEPTH {
            return Ok(changed);
        }
        for (id, function) in calls {
            inline_call(graph, id, function, functions, depth)?;
            changed = true;
        }
    }
}

fn inline_call(
    graph: &mut Graph,
    call: NodeId,
    function: &Function,
    functions: &[Function],
    depth: usize,
) -> Result<()> {
    let node = graph.node(call).clone();
    let op = node.op().cloned().unwrap_or_default();
    let given = graph.node_inputs(call);
    let mut values: HashMap<Value, Option<Value>> = HashMap::new();
    for (slot, input) in function.graph.inputs().enumerate() {
        values.insert(input, given.get(slot).copied().flatten());
    }
    for inner in function.graph.topo() {
        let source = function.graph.node(inner);
        match &source.kind {
            NodeKind::Input => {}
            NodeKind::Const(tensor) => {
                let value = graph.add_const(&source.outputs[0].name, tensor.clone());
                values.insert(Value { node: inner, slot: 0 }, Some(value));
            }
            NodeKind::Param(_) | NodeKind::Capture(_) => {
                bail!("{} stands in the function \"{}\"", source.label(), function.name)
            }
            NodeKind::Op(body_op) => {
                let mut attrs = resolve(&body_op.attrs, &op.attrs, &function.defaults);
                for subgraph in attrs.graphs_mut() {
                    crate::walk::edit_with_subgraphs(subgraph, &mut |g| inline_graph(g, functions, depth + 1))?;
                }
                let new_op = Operator { attrs, ..body_op.clone() };
                let id = copy_node(graph, (function, inner), new_op, &node.name, &values);
                if graph.node(id).meta.is_empty() {
                    graph.node_mut(id).meta = node.meta.clone();
                }
                for old in function.graph.node_outputs(inner) {
                    values.insert(old, Some(Value { node: id, ..old }));
                }
            }
        }
    }
    for (old, output) in graph.node_outputs(call).zip(&function.graph.outputs) {
        match values.get(&output.value).copied().flatten() {
            Some(new) => graph.replace_uses(old, new),
            None => ensure!(
                graph.use_count(old) == 0,
                "{}: output \"{}\" is an input that is left out",
                node.label(),
                output.name
            ),
        }
    }
    let unmade = graph.node_outputs(call).skip(function.graph.outputs.len()).any(|v| graph.use_count(v) > 0);
    ensure!(!unmade, "{}: it uses more outputs than the function has", node.label());
    graph.remove(call);
    Ok(())
}

fn copy_node(
    graph: &mut Graph,
    (function, inner): (&Function, NodeId),
    op: Operator,
    call_name: &str,
    values: &HashMap<Value, Option<Value>>,
) -> NodeId {
    let source = function.graph.node(inner);
    let inputs: Vec<Option<Value>> = function
        .graph
        .node_inputs(inner)
        .into_iter()
        .map(|input| input.and_then(|value| values.get(&value).copied().flatten()))
        .collect();
    let name = match (call_name.is_empty(), source.name.is_empty()) {
        (true, _) => source.name.clone(),
        (false, true) => call_name.to_string(),
        (false, false) => format!("{call_name}/{}", source.name),
    };
    add_copy(graph, source, (&name, op), &inputs, str::to_string)
}

/// The attributes of a body's node with references to the caller's resolved, subgraphs included.
fn resolve(attrs: &Attributes, caller: &Attributes, defaults: &Attributes) -> Attributes {
    let mut out = Attributes::new();
    for (name, attr) in &attrs.0 {
        let value = match attr {
            Attribute::Reference(outer, _) => caller.0.get(outer).or_else(|| defaults.0.get(outer)).cloned(),
            other => Some(other.clone()),
        };
        if let Some(value) = value {
            out.set(name, value);
        }
    }
    for subgraph in out.graphs_mut() {
        for id in subgraph.topo_ops() {
            if let Some(op) = subgraph.node_mut(id).op_mut() {
                op.attrs = resolve(&op.attrs, caller, defaults);
            }
        }
    }
    out
}
