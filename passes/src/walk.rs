//! Walks over all graphs of a model: the inference graph, the programs, and every subgraph, innermost first.

use sartor_ir::{Graph, Model, Node, NodeId, OPSET, Operator, Result, Value, ensure, infer};
use std::collections::HashMap;

/// Runs `edit` on every graph; returns whether any call said that it changed something.
pub fn edit_graphs(model: &mut Model, mut edit: impl FnMut(&mut Graph) -> Result<bool>) -> Result<bool> {
    let mut changed = false;
    for graph in model.graphs_mut() {
        changed |= edit_with_subgraphs(graph, &mut edit)?;
    }
    Ok(changed)
}

/// Runs `edit` (with the model's opset) on the inference graph and every program's graph, each with all types inferred. A graph that
/// it does not change stays as it was, without the types.
pub fn edit_typed_graphs(model: &mut Model, mut edit: impl FnMut(&mut Graph, i64) -> Result<bool>) -> Result<bool> {
    let opset = model.opset();
    let mut changed = false;
    for graph in model.graphs_mut() {
        let mut typed = graph.clone();
        infer::infer_graph(&mut typed, opset)?;
        if edit(&mut typed, opset)? {
            *graph = typed;
            changed = true;
        }
    }
    Ok(changed)
}

/// Runs `edit` on the inference graph and on every program's graph, with the rest of the model at hand. After an error the
/// graphs are where they were.
pub fn edit_with_model(model: &mut Model, mut edit: impl FnMut(&mut Graph, &mut Model) -> Result<()>) -> Result<()> {
    let mut graph = std::mem::take(&mut model.graph);
    let result = edit(&mut graph, model);
    model.graph = graph;
    result?;
    for index in 0..model.programs.len() {
        let mut graph = std::mem::take(&mut model.programs[index].graph);
        let result = edit(&mut graph, model);
        model.programs[index].graph = graph;
        result?;
    }
    Ok(())
}

/// Runs `edit` on one graph and its subgraphs; returns whether any call said that it changed something.
pub fn edit_with_subgraphs(graph: &mut Graph, edit: &mut impl FnMut(&mut Graph) -> Result<bool>) -> Result<bool> {
    let mut changed = false;
    for id in nodes_with_subgraphs(graph) {
        if let Some(op) = graph.node_mut(id).op_mut() {
            for subgraph in op.attrs.graphs_mut() {
                changed |= edit_with_subgraphs(subgraph, edit)?;
            }
        }
    }
    Ok(edit(graph)? | changed)
}

/// Adds an operator with the outputs of `source` under names made by `rename`, its metadata and its captures. `inputs` are all
/// slots, captures last.
pub fn add_copy(
    graph: &mut Graph,
    source: &Node,
    (name, op): (&str, Operator),
    inputs: &[Option<Value>],
    rename: impl Fn(&str) -> String,
) -> NodeId {
    let (formal, captures) = inputs.split_at(source.formal_inputs());
    let mut outputs = source.outputs.clone();
    for output in outputs.iter_mut().filter(|o| !o.name.is_empty()) {
        output.name = graph.fresh_name(&rename(&output.name));
    }
    let id = graph.add_node(name, op, formal, outputs);
    graph.node_mut(id).meta = source.meta.clone();
    graph.node_mut(id).doc = source.doc.clone();
    for value in captures.iter().flatten() {
        graph.push_capture(id, *value);
    }
    id
}

/// Gives every unnamed operator of the inference graph and of the programs the name of its first output, so that nodes can be found again by name.
pub fn name_anonymous_nodes(model: &mut Model) {
    for graph in model.graphs_mut() {
        let unnamed: Vec<NodeId> =
            graph.node_ids().filter(|&id| graph.node(id).name.is_empty() && graph.node(id).op().is_some()).collect();
        for id in unnamed {
            let name = graph.node(id).outputs.first().map(|o| o.name.clone()).unwrap_or_default();
            graph.node_mut(id).name = name;
        }
    }
}

/// The operators of a graph by the names of their nodes.
pub fn nodes_by_name(graph: &Graph) -> HashMap<String, NodeId> {
    graph.topo_ops().into_iter().map(|id| (graph.node(id).name.clone(), id)).collect()
}

/// The nodes that hold subgraphs.
pub fn nodes_with_subgraphs(graph: &Graph) -> Vec<NodeId> {
    let holds = |id: &NodeId| graph.node(*id).op().is_some_and(|op| op.attrs.graphs().next().is_some());
    graph.node_ids().filter(holds).collect()
}

/// An error unless the model speaks the internal opset: the operator table's rules speak no older one.
pub fn require_internal_opset(model: &Model) -> Result<()> {
    let opset = model.opset();
    ensure!(
        opset >= OPSET,
        "the model is written in opset {opset}, expected {OPSET} or later: run the pass `upgrade` first"
    );
    Ok(())
}
