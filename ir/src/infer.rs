//! Type inference over a graph: every node's rule in topological order, with constants and shape arithmetic followed.
//!
//! What a file declares and what the rules find are merged; a contradiction is an error. An unknown operator leaves
//! its outputs as declared.

use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::graph::{Graph, Node, NodeId, NodeKind, Value};
use crate::model::Model;
use crate::ops::{self, EvalCx, Fact, InferCx, OpDef};
use crate::rng::Stream;
use crate::tensor::Tensor;
use crate::types::Type;
use std::collections::HashMap;

/// Constants with at most this many elements are computed while inferring, so that shape arithmetic is followed
/// through any operator.
const MAX_FOLDED: usize = 1024;

/// What is known of every value of a graph.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    by_value: HashMap<Value, Fact>,
}

impl Facts {
    /// What is known of a value.
    pub fn get(&self, value: Value) -> Option<&Fact> {
        self.by_value.get(&value)
    }
    /// The value, if it is a known constant.
    pub fn tensor(&self, value: Value) -> Option<&Tensor> {
        self.get(value)?.tensor.as_ref()
    }
}

/// Infers the types of all graphs of a model and stores them in the nodes. Collects all problems.
pub fn infer_model(model: &mut Model) -> Result<()> {
    let opset = model.opset();
    let mut errors = Vec::new();
    for graph in model.graphs_mut() {
        if let Err(e) = infer_graph(graph, opset) {
            errors.push(e);
        }
    }
    Error::all(errors)
}

/// Infers the types of a graph and stores them in its nodes. Collects all problems.
pub fn infer_graph(graph: &mut Graph, opset: i64) -> Result<Facts> {
    let facts = facts(graph, opset, &HashMap::new())?;
    for (value, fact) in &facts.by_value {
        graph.set_ty(*value, Some(fact.ty.clone()));
    }
    Ok(facts)
}

/// What is inferred, and so what counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Scope {
    /// A graph as it stands: what it declares counts besides the rules.
    #[default]
    Declared,
    /// A body in such a graph: the rules alone, since it declares what its exporter saw in one iteration.
    Body,
    /// A graph with other shapes than it declares, and its bodies: the rules alone, and branches that these shapes contradict are not taken.
    Special,
}

/// Infers without changing the graph. `known` gives some values (graph inputs, captures) a more precise fact than their
/// declaration: with static input shapes this is how a graph is specialised.
pub fn facts(graph: &Graph, opset: i64, known: &HashMap<Value, Fact>) -> Result<Facts> {
    // A specialised graph has other shapes than it declares; only the rules speak then.
    facts_of(graph, opset, known, if known.is_empty() { Scope::Declared } else { Scope::Special })
}

/// The same within a scope.
pub(crate) fn facts_of(graph: &Graph, opset: i64, known: &HashMap<Value, Fact>, scope: Scope) -> Result<Facts> {
    let mut facts = Facts::default();
    let mut errors = Vec::new();
    for id in graph.topo() {
        let node = graph.node(id);
        let outputs = match &node.kind {
            NodeKind::Const(tensor) => vec![Some(Fact::of(tensor))],
            NodeKind::Op(op) => {
                let inputs = graph.node_inputs(id);
                let inputs = inputs.iter().map(|v| v.and_then(|v| facts.get(v).cloned())).collect();
                match infer_outputs(node, ops::of(op), opset, inputs, scope) {
                    Ok(outputs) => outputs,
                    Err(e) => {
                        errors.push(e.at(node.label()));
                        node.outputs.iter().map(|o| o.ty.clone().map(Fact::new)).collect()
                    }
                }
            }
            _ => node.outputs.iter().map(|o| o.ty.clone().map(Fact::new)).collect(),
        };
        for (slot, fact) in outputs.into_iter().enumerate() {
            let value = Value { node: id, slot: slot as u32 };
            if let Some(fact) = known.get(&value).cloned().or(fact) {
                facts.by_value.insert(value, fact);
            }
        }
    }
    Error::all(errors).map(|()| facts)
}

/// Infers one node from the types stored in the graph, and stores what it finds. Used while nodes are added.
pub fn infer_node(graph: &mut Graph, id: NodeId, opset: i64) -> Result<()> {
    let inputs = stored_facts(graph, id, opset, STORED_DEPTH);
    let node = graph.node(id);
    let Some(op) = node.op() else { return Ok(()) };
    let outputs = infer_outputs(node, ops::of(op), opset, inputs, Scope::Declared)?;
    for (slot, fact) in outputs.into_iter().enumerate() {
        if let Some(fact) = fact {
            graph.set_ty(Value { node: id, slot: slot as u32 }, Some(fact.ty));
        }
    }
    Ok(())
}

/// Through how many operators the elements of a shape tensor are followed back when one node is inferred.
const STORED_DEPTH: usize = 6;

fn stored_facts(graph: &Graph, id: NodeId, opset: i64, depth: usize) -> Vec<Option<Fact>> {
    graph.node_inputs(id).into_iter().map(|v| v.and_then(|v| stored_fact(graph, v, opset, depth))).collect()
}

/// The elements of an integer or boolean value of a graph, where what the graph stores says them.
pub(crate) fn stored_value(graph: &Graph, value: Value, opset: i64) -> Option<Tensor> {
    stored_fact(graph, value, opset, STORED_DEPTH)?.tensor
}

/// What the graph itself stores about a value. Shape arithmetic (integers of rank 0 or 1) is inferred again from what it
/// is computed from, so that emitted reshapes know their target.
fn stored_fact(graph: &Graph, value: Value, opset: i64, depth: usize) -> Option<Fact> {
    if let Some(tensor) = graph.constant(value) {
        return Some(Fact::of(&tensor));
    }
    let ty = graph.ty(value)?;
    let arithmetic = ty.rank().is_some_and(|r| r <= 1) && ty.dtype().is_some_and(DType::is_int);
    let node = graph.node(value.node);
    if let (true, Some(op)) = (arithmetic && depth > 0, node.op()) {
        let inputs = stored_facts(graph, value.node, opset, depth - 1);
        let outputs = infer_outputs(node, ops::of(op), opset, inputs, Scope::Declared).ok();
        if let Some(fact) = outputs.and_then(|o| o.into_iter().nth(value.slot as usize)) {
            return fact;
        }
    }
    Some(Fact::new(ty.clone()))
}

fn infer_outputs(
    node: &Node,
    def: Option<&OpDef>,
    opset: i64,
    inputs: Vec<Option<Fact>>,
    scope: Scope,
) -> Result<Vec<Option<Fact>>> {
    let declared = |slot: usize| node.outputs[slot].ty.clone();
    let (Some(def), Some(op)) = (def, node.op()) else {
        return Ok((0..node.outputs.len()).map(|slot| declared(slot).map(Fact::new)).collect());
    };
    let formal = node.formal_inputs();
    let (least, most) = def.inputs;
    crate::ensure!((least..=most).contains(&formal), "it has {formal} inputs, expected {least} to {most}");
    let mut cx =
        InferCx::new(op, opset, inputs.clone(), node.outputs.len()).with_captures(node.captures()).within(scope);
    (def.infer)(&mut cx)?;
    let mut outputs = cx.into_outputs();
    fold_small(op, def, opset, &inputs, &mut outputs);
    for (slot, output) in outputs.iter_mut().enumerate().filter(|_| scope == Scope::Declared) {
        if let Some(declared) = declared(slot) {
            let merged = match output.as_ref() {
                Some(found) => found.ty.merge(&declared).ok_or_else(|| {
                    Error::msg(format!("output {slot} is {} by its inputs but declared {declared}", found.ty))
                })?,
                None => declared,
            };
            match output {
                Some(fact) => fact.ty = merged,
                None => *output = Some(Fact::new(merged)),
            }
        }
    }
    Ok(outputs)
}

/// Fills in the values of small integer and boolean outputs whose inputs are all known. Bodies are not run: a loop may
/// take long, or never end.
fn fold_small(op: &crate::Operator, def: &OpDef, opset: i64, inputs: &[Option<Fact>], outputs: &mut [Option<Fact>]) {
    for fact in outputs.iter_mut().flatten() {
        if let (None, Some(dims), Some(dtype)) = (&fact.tensor, &fact.dims, fact.ty.dtype()) {
            let numbers: Option<Vec<i64>> = dims.iter().map(|d| d.known()).collect();
            if let (Some(numbers), Some(shape)) = (numbers, fact.ty.static_shape()) {
                let whole = Tensor::from_i64s(&numbers).cast(dtype).and_then(|t| t.reshaped(shape));
                fact.tensor = whole.ok();
            }
        }
    }
    let small = |fact: &Fact| {
        let count = fact.ty.static_shape().map(|s| s.iter().product::<usize>());
        count.is_some_and(|n| n <= MAX_FOLDED)
    };
    let wanted = |fact: &Fact| fact.tensor.is_none() && small(fact) && fact.ty.dtype().is_some_and(|d| !d.is_float());
    let all_known = inputs.iter().flatten().all(|f| f.tensor.as_ref().is_some_and(|t| t.len() <= MAX_FOLDED));
    let Some(eval) = def.eval else { return };
    let plain = ops::is_pure(op) && op.attrs.graphs().next().is_none();
    if !outputs.iter().flatten().any(wanted) || !all_known || !plain {
        return;
    }
    let tensors: Vec<Option<&Tensor>> = inputs.iter().map(|f| f.as_ref().and_then(|f| f.tensor.as_ref())).collect();
    let cx = EvalCx {
        op,
        opset,
        wanted: vec![true; outputs.len()],
        stream: Stream::new(0, 0, ""),
        params: &ops::no_params,
        bodies: None,
    };
    if let Ok(values) = eval(&cx, &tensors) {
        for (fact, value) in outputs.iter_mut().zip(values) {
            if let Some(fact) = fact.as_mut().filter(|f| wanted(f)) {
                let ty = fact.ty.clone();
                *fact = Fact::of(&value);
                fact.ty = ty.merge(&fact.ty).unwrap_or(ty);
            }
        }
    }
}

/// The facts of a graph once its inputs have these tensors' types (and, for small integer tensors, nothing of their
/// values): the specialisation that lowering and cost counting start from.
pub fn specialise(graph: &Graph, opset: i64, inputs: &HashMap<String, Type>) -> Result<Facts> {
    let mut known = HashMap::new();
    for value in graph.inputs() {
        let name = graph.value_name(value);
        if let Some(ty) = inputs.get(name) {
            let declared = graph.ty(value);
            let fits = declared.is_none_or(|d| d.merge(ty).is_some());
            crate::ensure!(fits, "input \"{name}\" is {ty}, expected {}", declared.unwrap_or(ty));
            known.insert(value, Fact::new(ty.clone()));
        }
    }
    facts(graph, opset, &known).context(|| format!("graph \"{}\"", graph.name))
}

/// The floating-point operations of one node (a multiply-add counts 2) under these facts. `None` if a shape is not static, or if the operator is
/// not in the table. Subgraphs are not counted.
pub fn flops(graph: &Graph, id: NodeId, facts: &Facts) -> Option<u64> {
    let op = graph.node(id).op()?;
    let def = ops::of(op)?;
    let shape = |value: Value| facts.get(value).and_then(|fact| fact.ty.static_shape());
    let input = |value: Option<Value>| value.map_or(Some(Vec::new()), shape);
    let inputs = graph.node_inputs(id).into_iter().map(input).collect::<Option<Vec<_>>>()?;
    let named = graph.node_outputs(id).filter(|&v| !graph.value_name(v).is_empty());
    let outputs = named.map(shape).collect::<Option<Vec<_>>>()?;
    Some((def.flops)(&ops::CostCx { op, inputs, outputs }))
}

/// Whether a value can carry a gradient.
pub fn is_float(ty: Option<&Type>) -> bool {
    ty.and_then(Type::dtype).is_some_and(DType::is_float)
}
