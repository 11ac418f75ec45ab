//! `If`: the outputs of one of two bodies, `then_branch` where the condition holds and `else_branch` where not. The
//! bodies have no inputs; what they read from outside are captures.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__If.html>. Where the branches' types differ, the output's is open in what they do not
//! share; a known condition decides. While it is not known, in a graph with other shapes than it declares, a branch that
//! these contradict cannot be the one that runs, and the other decides.
//!
//! The gradient is an `If` on the same condition: each branch computes its forward part again and goes back through it,
//! to the captures; one that a branch does not read gets zeros. Branches that draw random numbers are refused, since they would draw others.

use super::body::{self, Body};
use super::gradient::{between, decompose_between, sweep};
use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample};
use crate::error::{Context, Error, Result};
use crate::graph::{Graph, GraphOutput, NodeKind, Operator, OutputSlot, Value};
use crate::rng::Draw;
use crate::types::Type;
use crate::{Attribute, Attributes, DType, Tensor, ensure, infer};
use std::collections::HashMap;

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "If",
    outputs: (1, usize::MAX),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

const BRANCHES: [&str; 2] = ["then_branch", "else_branch"];

fn name_of(condition: bool) -> &'static str {
    BRANCHES[usize::from(!condition)]
}

/// The branch of an `If` that is taken under a condition.
pub fn branch(op: &Operator, condition: bool) -> Result<&Graph> {
    body::graph(op, name_of(condition))
}

fn infer(cx: &mut InferCx) -> Result<()> {
    if let Ok(dtype) = cx.dtype(0) {
        ensure!(dtype == DType::Bool, "its condition is {dtype}, expected bool");
    }
    let condition = cx.tensor(0).map(body::truth).transpose()?;
    let (_, captures) = cx.split_captures();
    let mut types: Option<Vec<Option<Type>>> = None;
    let mut refused = Vec::new();
    let possible: Vec<&str> =
        BRANCHES.into_iter().filter(|name| condition.is_none_or(|c| name_of(c) == *name)).collect();
    for name in &possible {
        let branch = body::graph(cx.op, name)?;
        let found = match body::facts(branch, cx.opset, &[], captures, cx.scope).context(|| *name) {
            Ok(found) => found,
            Err(error) if cx.scope == infer::Scope::Special => {
                refused.push(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        ensure!(found.len() == cx.output_count(), "{name} has {} outputs, the node {}", found.len(), cx.output_count());
        let found: Vec<Option<Type>> = found.into_iter().map(|fact| fact.map(|fact| fact.ty)).collect();
        types = Some(match types {
            None => found,
            Some(others) => others.iter().zip(&found).map(|(a, b)| either(a, b)).collect::<Result<_>>()?,
        });
    }
    if refused.len() == possible.len() {
        Error::all(refused)?;
    }
    for (slot, ty) in types.into_iter().flatten().enumerate() {
        if let Some(ty) = ty {
            cx.set(slot, ty);
        }
    }
    Ok(())
}

fn either(a: &Option<Type>, b: &Option<Type>) -> Result<Option<Type>> {
    match (a, b) {
        (Some(a), Some(b)) => Ok(Some(body::join(a, b).context(|| "the branches differ")?)),
        _ => Ok(None),
    }
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let name = name_of(body::truth(super::index::input(inputs, 0)?)?);
    Body::new(cx, body::graph(cx.op, name)?, inputs.get(1..).unwrap_or_default())?.run(cx, 0, []).context(|| name)
}

/// What the gradient's branches are made for.
struct Wanted {
    opset: i64,
    /// The types of the captures.
    types: Vec<Option<Type>>,
    /// The values of those that are known: numbers of iterations, axes, shapes.
    known: Vec<Option<Tensor>>,
    /// The captures whose gradients are wanted.
    captures: Vec<usize>,
    /// The outputs that have a gradient, by slot, and its type. They are captures too, after the others.
    outputs: Vec<(usize, Option<Type>)>,
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let op = cx.op();
    let inputs = cx.emit.graph.node_inputs(cx.node);
    let (graph, opset) = (&*cx.emit.graph, cx.emit.opset);
    let ty = |value: Value| graph.ty(value).cloned();
    let known = |value: Value| infer::stored_value(graph, value, opset);
    let dys: Vec<(usize, Value)> = cx.grads.iter().enumerate().filter_map(|(i, dy)| Some((i, (*dy)?))).collect();
    let wanted = Wanted {
        opset,
        types: inputs.iter().skip(1).map(|v| v.and_then(ty)).collect(),
        known: inputs.iter().skip(1).map(|v| v.and_then(known)).collect(),
        captures: (0..inputs.len() - 1).filter(|k| cx.want(k + 1)).collect(),
        outputs: dys.iter().map(|(slot, dy)| (*slot, ty(*dy))).collect(),
    };
    let mut attrs = Attributes::new();
    for name in BRANCHES {
        attrs.set(name, wanted.branch(body::graph(&op, name)?).context(|| name)?);
    }
    let mut found = vec![None; inputs.len()];
    if wanted.captures.is_empty() {
        return Ok(found);
    }
    let slots: Vec<OutputSlot> = wanted.captures.iter().map(|&k| cx.emit.slot("If", wanted.types[k].clone())).collect();
    let name = slots.first().map_or(String::new(), |slot| slot.name.clone());
    let node = cx.emit.graph.add_node(&name, Operator::onnx("If", attrs), &inputs[..1], slots);
    for value in inputs.iter().skip(1).flatten().copied().chain(dys.into_iter().map(|(_, dy)| dy)) {
        cx.emit.graph.push_capture(node, value);
    }
    for (&k, value) in wanted.captures.iter().zip(cx.emit.graph.node_outputs(node)) {
        found[k + 1] = Some(value);
    }
    Ok(found)
}

impl Wanted {
    /// The branch that computes the gradients of the wanted captures, in order.
    fn branch(&self, forward: &Graph) -> Result<Graph> {
        let mut graph = forward.clone();
        let mut nodes: HashMap<usize, Vec<Value>> = HashMap::new();
        for node in graph.node_ids().collect::<Vec<_>>() {
            let NodeKind::Capture(index) = graph.node(node).kind else { continue };
            let value = Value { node, slot: 0 };
            graph.set_ty(value, self.types.get(index).cloned().flatten());
            nodes.entry(index).or_default().push(value);
            if let Some(tensor) = self.known.get(index).cloned().flatten() {
                let known = graph.add_const("known", tensor);
                graph.replace_uses(value, known);
            }
        }
        infer::infer_graph(&mut graph, self.opset)?;
        let sources: Vec<Value> = self.captures.iter().filter_map(|k| nodes.get(k)).flatten().copied().collect();
        let targets = |graph: &Graph| -> Vec<Value> {
            self.outputs.iter().filter_map(|(slot, _)| graph.outputs.get(*slot)).map(|o| o.value).collect()
        };
        decompose_between(&mut graph, &sources, targets, self.opset)?;
        let random = graph.node_ids().filter_map(|id| graph.node(id).op()).find(|op| !super::is_pure(op));
        ensure!(random.is_none(), "it draws random numbers, which its gradient would have to draw again");
        let needed = between(&graph, &sources, &targets(&graph));
        let mut emit = Emit::new(&mut graph, self.opset);
        emit.prefix = "backward/".to_string();
        let mut seeds: HashMap<Value, Value> = HashMap::new();
        for (i, (output, (_, ty))) in targets(emit.graph).into_iter().zip(&self.outputs).enumerate() {
            let name = emit.graph.fresh_name(&format!("backward/dy{i}"));
            // Where this branch is taken, the gradient has the type of its output.
            let ty = emit.graph.ty(output).cloned().or(ty.clone());
            let dy = emit.graph.add_capture(self.types.len() + i, &name, ty);
            let sum = seeds.get(&output).map_or(Ok(dy), |&other| emit.add(other, dy))?;
            seeds.insert(output, sum);
        }
        let grads = sweep(&mut emit, seeds, &needed)?;
        let mut outputs = Vec::new();
        for k in &self.captures {
            let own: Vec<Value> = nodes.get(k).into_iter().flatten().filter_map(|v| grads.get(v)).copied().collect();
            outputs.push(self.total(&mut emit, *k, nodes.get(k), &own)?);
        }
        graph.outputs = outputs;
        graph.remove_dead();
        Ok(graph)
    }
    /// The sum of the gradients of all nodes that stand for a capture; zeros if there are none.
    fn total(
        &self,
        emit: &mut Emit,
        capture: usize,
        nodes: Option<&Vec<Value>>,
        grads: &[Value],
    ) -> Result<GraphOutput> {
        let value = match grads {
            [first, rest @ ..] => rest.iter().try_fold(*first, |sum, &grad| emit.add(sum, grad))?,
            [] => {
                let like = match nodes.and_then(|nodes| nodes.first()) {
                    Some(&node) => node,
                    None => {
                        let name = emit.graph.fresh_name(&format!("backward/capture{capture}"));
                        emit.graph.add_capture(capture, &name, self.types.get(capture).cloned().flatten())
                    }
                };
                let dtype = emit.dtype(like)?;
                emit.zeros_like(like, dtype)?
            }
        };
        // A branch hands out what it makes itself, each output once.
        let value = emit.op("Identity", &[value], Attributes::new())?;
        Ok(GraphOutput { name: emit.graph.value_name(value).to_string(), value })
    }
}

/// Two constants of one type.
fn sample(draw: &mut Draw) -> Sample {
    let mut attrs = Attributes::new();
    for name in BRANCHES {
        let mut branch = Graph::new(name);
        for (output, low) in [("first", -1.0), ("second", 2.0)] {
            let tensor = draw.tensor(&[2, 3], low, low + 1.0);
            let value = branch.op("Constant", &[], Attributes::new().with("value", tensor));
            branch.outputs.push(GraphOutput { name: output.to_string(), value });
        }
        attrs.set(name, Attribute::Graph(Box::new(branch)));
    }
    let condition = Tensor::scalar(draw.chance(0.5));
    Sample { outputs: 2, ..Sample::new(Operator::onnx("If", attrs), vec![condition]) }
}
