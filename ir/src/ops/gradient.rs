//! One step of reverse mode: the gradients of a node's inputs from those of its outputs.
//!
//! This is what the autodiff pass calls node by node, and what the tests compare with finite differences. Operators
//! whose gradient is that of their decomposition are decomposed first ([`decompose_composites`], [`decompose_between`]), so a walk over
//! the graph meets only rules that emit. [`sweep`] is the whole walk: from some values back to others.

use super::{Emit, GradCx, Gradient};
use crate::error::{Context, Result};
use crate::graph::{Graph, NodeId, Value};
use crate::{bail, ensure, infer};
use std::collections::{HashMap, HashSet};

/// Adds the nodes that compute the gradients of a node's inputs, captures included. `grads` are the gradients of its outputs, by
/// slot (`None`: the loss does not depend on it); `wants` says which inputs' gradients are needed. Returns one entry
/// per input slot, `None` where no gradient flows or none was wanted. Errors name an operator that has no gradient.
pub fn gradients(
    emit: &mut Emit,
    node: NodeId,
    grads: Vec<Option<Value>>,
    wants: Vec<bool>,
) -> Result<Vec<Option<Value>>> {
    let count = emit.graph.node(node).formal_inputs() + emit.graph.node(node).captures();
    if grads.iter().all(Option::is_none) || !wants.contains(&true) {
        return Ok(vec![None; count]);
    }
    let op = emit.graph.node(node).op().cloned().unwrap_or_default();
    let name = op.full_name();
    let rule = match super::of(&op).map(|def| def.grad) {
        Some(Gradient::Emit(rule)) => rule,
        Some(Gradient::Zero) => return Ok(vec![None; count]),
        Some(Gradient::Decompose) => return super::deferred::emit(emit, node, &grads, &wants),
        Some(Gradient::Missing) | None => bail!("the operator {name} has no gradient"),
    };
    let label = emit.graph.node(node).label();
    let mut cx = GradCx { emit, node, grads, wants: wants.clone() };
    let mut found = rule(&mut cx).context(|| format!("gradient of {label}"))?;
    found.resize(count, None);
    for (slot, grad) in found.iter_mut().enumerate() {
        if !wants.get(slot).copied().unwrap_or(false) {
            *grad = None;
        }
        check_type(emit, node, slot, *grad).context(|| format!("gradient of {label}"))?;
    }
    Ok(found)
}

/// A gradient has the element type of its input.
fn check_type(emit: &Emit, node: NodeId, slot: usize, grad: Option<Value>) -> Result<()> {
    if let (Some(grad), Some(input)) = (grad, emit.graph.input(node, slot)) {
        let (found, expected) = (emit.dtype(grad)?, emit.dtype(input)?);
        ensure!(found == expected, "input {slot} is {expected}, its gradient {found}");
    }
    Ok(())
}

/// Whether gradients flow through a node: it has a rule, or a decomposition that has. False for unknown operators and
/// for those without a gradient; true for those whose gradient is zero.
pub fn has_gradient(graph: &Graph, node: NodeId) -> bool {
    let def = graph.node(node).op().and_then(super::of);
    def.is_some_and(|def| !matches!(def.grad, Gradient::Missing))
}

/// Replaces every node for which `which` holds and whose gradient is that of its decomposition by that decomposition,
/// until none is left, and infers the types of what was added. Returns how many nodes were replaced.
pub fn decompose_composites(graph: &mut Graph, opset: i64, which: impl Fn(&Graph, NodeId) -> bool) -> Result<usize> {
    let mut replaced = 0;
    loop {
        let composite = |graph: &Graph, id: NodeId| {
            let def = graph.node(id).op().and_then(super::of);
            def.is_some_and(|def| matches!(def.grad, Gradient::Decompose)) && which(graph, id)
        };
        let found: Vec<NodeId> = graph.topo_ops().into_iter().filter(|&id| composite(graph, id)).collect();
        if found.is_empty() {
            break;
        }
        for id in found {
            let label = graph.node(id).label();
            super::decompose(graph, id, opset).context(|| label)?;
            replaced += 1;
        }
    }
    if replaced > 0 {
        infer::infer_graph(graph, opset)?;
    }
    Ok(replaced)
}

/// The floating-point values that depend on one of `sources`, those included, and that one of `targets` depends on.
pub fn between(graph: &Graph, sources: &[Value], targets: &[Value]) -> HashSet<Value> {
    let upstream = graph.ancestors(targets.iter().copied(), |_| false);
    let mut between: HashSet<Value> = sources.iter().copied().collect();
    for id in graph.topo_ops() {
        let blocks = graph.node(id).op().and_then(super::of).is_some_and(|def| matches!(def.grad, Gradient::Zero));
        let depends = graph.node_inputs(id).into_iter().flatten().any(|value| between.contains(&value));
        if depends && !blocks && upstream.contains(&id) {
            between.extend(graph.node_outputs(id).filter(|&value| infer::is_float(graph.ty(value))));
        }
    }
    between
}

/// Replaces the operators [between] `sources` and `targets` whose gradient is that of their decomposition, until none is
/// left but those that cannot be decomposed yet, because it needs numbers that only a run knows: their gradients are
/// [deferred](super::deferred). `targets` are asked for anew each time, since a target may be the output of one that is replaced.
pub fn decompose_between(
    graph: &mut Graph,
    sources: &[Value],
    targets: impl Fn(&Graph) -> Vec<Value>,
    opset: i64,
) -> Result<()> {
    let mut deferred: HashSet<NodeId> = HashSet::new();
    // A decomposition may hold composites itself; nesting is shallow, but loops may hold loops.
    for _ in 0..2 * crate::verify::MAX_SUBGRAPH_DEPTH {
        let between = between(graph, sources, &targets(graph));
        let composite = |id: &NodeId| {
            let def = graph.node(*id).op().and_then(super::of);
            let on_the_way = graph.node_outputs(*id).any(|value| between.contains(&value));
            on_the_way && !deferred.contains(id) && def.is_some_and(|def| matches!(def.grad, Gradient::Decompose))
        };
        let found: Vec<NodeId> = graph.topo_ops().into_iter().filter(composite).collect();
        if found.is_empty() {
            return Ok(());
        }
        for id in found {
            let (label, alone) = (graph.node(id).label(), graph.node(id).captures() == 0);
            match super::decompose(graph, id, opset) {
                Ok(()) => {}
                // What it has added is read by nobody.
                Err(_) if alone => _ = deferred.insert(id),
                Err(error) => return Err(error.at(label)),
            }
        }
    }
    bail!("operators decompose into each other without end")
}

/// Reverse mode: visits the operators backwards and adds the nodes that compute the gradients of all `needed` values, given
/// those of some values. Gradients that meet at a value are added. Composites must have been decomposed.
pub fn sweep(
    emit: &mut Emit,
    mut grads: HashMap<Value, Value>,
    needed: &HashSet<Value>,
) -> Result<HashMap<Value, Value>> {
    let mut order = emit.graph.topo_ops();
    order.reverse();
    for id in order {
        let outputs: Vec<Option<Value>> = emit.graph.node_outputs(id).map(|v| grads.get(&v).copied()).collect();
        let inputs = emit.graph.node_inputs(id);
        let wants: Vec<bool> = inputs.iter().map(|v| v.is_some_and(|v| needed.contains(&v))).collect();
        if outputs.iter().all(Option::is_none) || !wants.contains(&true) {
            continue;
        }
        let label = emit.graph.node(id).label();
        let found = gradients(emit, id, outputs, wants).context(|| format!("gradient of {label}"))?;
        for (input, grad) in inputs.into_iter().zip(found) {
            let (Some(input), Some(grad)) = (input, grad) else { continue };
            let sum = match grads.get(&input) {
                Some(&other) => emit.add(other, grad)?,
                None => grad,
            };
            grads.insert(input, sum);
        }
    }
    Ok(grads)
}
