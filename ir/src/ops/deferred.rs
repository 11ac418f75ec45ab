//! `ai.sartor::DeferredGrad`: the gradient of an operator whose decomposition needs numbers that only a run knows, such as the time steps of an `LSTM` over
//! sequences of any length.
//!
//! ```text
//! y, h = LSTM (x, w, r)
//! dx, dw = ai.sartor::DeferredGrad <operator = { LSTM }, grads = [0], wants = [0, 1]> (x, w, r, dy)
//! ```
//! The attribute `operator` is a graph with the operator alone, whose inputs are named after its slots (`i0`, `i1`, …); `grads` are the output slots whose gradients
//! follow the operator's inputs here, `wants` the input slots whose gradients are the outputs. When it is evaluated all shapes are known: the
//! operator is decomposed and differentiated then, and what results is evaluated. That is slow, and right for any operator with a decomposition; where the numbers are
//! known before, [`gradients`](super::gradient) never gets here. It has no gradient itself. Element types: those of the operator.

use super::gradient::{between, decompose_between, sweep};
use super::{Emit, EvalCx, Gradient, InferCx, OpDef};
use crate::error::{Error, Result};
use crate::graph::{Graph, GraphOutput, NodeId, Operator, Value};
use crate::{Attribute, Attributes, DType, Tensor, Type, bail, ensure, eval, infer};
use std::collections::HashMap;

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    domain: crate::SARTOR_DOMAIN,
    name: NAME,
    inputs: (1, usize::MAX),
    outputs: (1, usize::MAX),
    infer,
    eval: Some(evaluate),
    grad: Gradient::Missing,
    ..OpDef::DEFAULT
}];

/// The name of the operator.
pub const NAME: &str = "DeferredGrad";

/// Adds the node that computes the gradients of a node's inputs. Errors if the node has captures.
pub(super) fn emit(
    emit: &mut Emit,
    node: NodeId,
    grads: &[Option<Value>],
    wants: &[bool],
) -> Result<Vec<Option<Value>>> {
    let source = emit.graph.node(node);
    let Some(op) = source.op().cloned() else { bail!("it is no operator") };
    ensure!(source.captures() == 0, "{} must be decomposed before it is differentiated", op.full_name());
    let count = source.outputs.len();
    let inputs = emit.graph.node_inputs(node);
    let mut body = Graph::new("operator");
    let mut slots = Vec::with_capacity(inputs.len());
    for (slot, value) in inputs.iter().enumerate() {
        let ty = value.map(|v| emit.graph.ty(v).cloned().unwrap_or(Type::unranked(DType::F32)));
        slots.push(ty.map(|ty| body.add_input(&format!("i{slot}"), ty)));
    }
    let inner = body.add_op("operator", op, &slots, count);
    for value in body.node_outputs(inner).collect::<Vec<_>>() {
        body.outputs.push(GraphOutput { name: format!("o{}", value.slot), value });
    }
    let given: Vec<i64> = (0..grads.len()).filter(|&slot| grads[slot].is_some()).map(|slot| slot as i64).collect();
    let float = |slot: &usize| inputs[*slot].is_some_and(|v| infer::is_float(emit.graph.ty(v)));
    let wanted: Vec<usize> = (0..inputs.len()).filter(|&slot| wants.get(slot) == Some(&true)).filter(float).collect();
    let mut attrs = Attributes::new();
    attrs.set("operator", Attribute::Graph(Box::new(body)));
    attrs.set("grads", given);
    attrs.set("wants", wanted.iter().map(|&slot| slot as i64).collect::<Vec<i64>>());
    let read: Vec<Option<Value>> = inputs.iter().chain(grads).filter(|v| v.is_some()).copied().collect();
    let made = emit.node(Operator::sartor(NAME, attrs), &read, wanted.len())?;
    let mut found = vec![None; inputs.len()];
    wanted.into_iter().zip(made).for_each(|(slot, value)| found[slot] = Some(value));
    Ok(found)
}

/// What the attributes say.
struct Settings<'a> {
    body: &'a Graph,
    /// The operator's node.
    node: NodeId,
    /// The slots of its inputs that are given, in order.
    slots: Vec<usize>,
    grads: Vec<usize>,
    /// The places of the wanted inputs among `slots`.
    wants: Vec<usize>,
}

impl<'a> Settings<'a> {
    fn read(op: &'a Operator) -> Result<Settings<'a>> {
        let Some((_, body)) = op.attrs.graphs().next() else { bail!("attribute `operator` is missing") };
        let [node] = body.topo_ops()[..] else { bail!("attribute `operator` does not hold one operator") };
        let inputs = body.node_inputs(node);
        let slots: Vec<usize> = (0..inputs.len()).filter(|&slot| inputs[slot].is_some()).collect();
        let numbers = |name: &str| -> Result<Vec<usize>> {
            let list = op.attrs.get_ints(name)?.unwrap_or_default();
            list.iter()
                .map(|&n| usize::try_from(n).map_err(|_| Error::msg(format!("attribute `{name}` has {n}"))))
                .collect()
        };
        let place = |slot: usize| slots.iter().position(|&s| s == slot);
        let wants = numbers("wants")?.into_iter().map(place).collect::<Option<Vec<usize>>>();
        let Some(wants) = wants else { bail!("attribute `wants` names an input that is left out") };
        let grads = numbers("grads")?;
        let outputs = body.node(node).outputs.len();
        ensure!(grads.iter().all(|&slot| slot < outputs), "attribute `grads` names an output that there is not");
        Ok(Settings { body, node, slots, grads, wants })
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let places = Settings::read(cx.op)?.wants;
    for (slot, place) in places.into_iter().enumerate() {
        let ty = cx.ty(place)?.clone();
        cx.set(slot, ty);
    }
    Ok(())
}

fn evaluate(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let settings = Settings::read(cx.op)?;
    let inputs: Vec<&Tensor> = inputs.iter().flatten().copied().collect();
    let count = settings.slots.len();
    ensure!(inputs.len() == count + settings.grads.len(), "it has {} inputs", inputs.len());
    let op = settings.body.node(settings.node).op().cloned().unwrap_or_default();
    let (mut graph, mut feeds) = (Graph::new("deferred"), HashMap::new());
    let mut slots = vec![None; settings.slots.last().map_or(0, |last| last + 1)];
    let mut values = Vec::with_capacity(count);
    for (place, &slot) in settings.slots.iter().enumerate() {
        let value = eval::stand_in(&mut graph, &mut feeds, format!("i{slot}"), inputs[place]);
        slots[slot] = Some(value);
        values.push(value);
    }
    let node = graph.add_op("operator", op, &slots, settings.body.node(settings.node).outputs.len());
    infer::infer_node(&mut graph, node, cx.opset)?;
    for &slot in &settings.grads {
        let value = Value { node, slot: slot as u32 };
        graph.outputs.push(GraphOutput { name: format!("o{slot}"), value });
    }
    let mut seeds = Vec::new();
    for (place, &slot) in settings.grads.iter().enumerate() {
        seeds.push(eval::stand_in(&mut graph, &mut feeds, format!("g{slot}"), inputs[count + place]));
    }
    let sources: Vec<Value> = settings.wants.iter().map(|&place| values[place]).collect();
    let targets = |graph: &Graph| graph.outputs.iter().map(|o| o.value).collect::<Vec<Value>>();
    decompose_between(&mut graph, &sources, targets, cx.opset)?;
    let targets = targets(&graph);
    let needed = between(&graph, &sources, &targets);
    let mut emit = Emit::new(&mut graph, cx.opset);
    let found = sweep(&mut emit, targets.into_iter().zip(seeds).collect(), &needed)?;
    graph.outputs.clear();
    for source in &sources {
        let value = match found.get(source) {
            Some(&value) => value,
            None => Emit::new(&mut graph, cx.opset).full_like(*source, 0.0)?,
        };
        graph.outputs.push(GraphOutput { name: String::new(), value });
    }
    graph.remove_dead();
    eval::run_graph(&graph, &eval::Environment { opset: cx.opset, seed: 0, step: 0, params: cx.params }, &feeds)
}
