//! Bodies: the subgraphs of `If`, `Loop` and `Scan`, and what can be done with one.
//!
//! A body reads its own inputs and what it captures from the graph around its node. Three things are done with it: its
//! types are inferred under what is known of both (`facts`, and [`settle`] where it feeds itself), it is evaluated ([`Body`]), and
//! it is copied into the graph around it ([`Splicer`]), which is how loops of a known length are unrolled. What the iterations
//! of a loop hand out is laid side by side by [`Stack`].
//!
//! Random operators of a body draw from streams of their own in every iteration: the node's stream gives the seed, the
//! number of the iteration is the step.

use super::{Emit, EvalCx, Fact, InferCx, concat, index, normal_axis};
use crate::error::{Context, Error, Result};
use crate::eval::{Environment, Evaluator};
use crate::graph::{Graph, NodeId, NodeKind, Operator, OutputSlot, Value};
use crate::types::Type;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure, infer};
use std::collections::HashMap;

/// Loops of more iterations are not unrolled.
pub const MAX_UNROLLED: usize = 1000;

/// Loops that would become more nodes are not unrolled.
const MAX_UNROLLED_NODES: usize = 100_000;

/// What iterations hand out takes at most this many bytes.
const MAX_STACKED: usize = 1 << 33;

/// The subgraph of this name.
pub fn graph<'a>(op: &'a Operator, name: &str) -> Result<&'a Graph> {
    match op.attrs.get_graph(name)? {
        Some(graph) => Ok(graph),
        None => bail!("attribute `{name}` is missing"),
    }
}

// ---- types ----------------------------------------------------------------------------------------------------------

/// What is known of the outputs of a body, given what is known of its inputs and of the captures of its node.
pub(crate) fn facts(
    body: &Graph,
    opset: i64,
    inputs: &[Option<Fact>],
    captures: &[Option<Fact>],
    scope: infer::Scope,
) -> Result<Vec<Option<Fact>>> {
    let count = body.inputs().len();
    ensure!(inputs.len() == count, "its body has {count} inputs, expected {}", inputs.len());
    let mut known = HashMap::new();
    for (value, fact) in body.inputs().zip(inputs) {
        known.extend(fact.clone().map(|fact| (value, fact)));
    }
    for (value, index) in captured(body) {
        let Some(fact) = captures.get(index) else { bail!("its body reads capture {index} of {}", captures.len()) };
        let Some(mut fact) = fact.clone() else { continue };
        // The gradient of a branch knows the rank that its output has where the branch is taken.
        let rank = body.ty(value).and_then(Type::rank);
        if let (Type::Tensor { shape: shape @ None, .. }, Some(rank)) = (&mut fact.ty, rank) {
            *shape = Some(vec![Dim::Unknown; rank]);
        }
        known.insert(value, fact);
    }
    let inner = if scope == infer::Scope::Special { scope } else { infer::Scope::Body };
    let facts = infer::facts_of(body, opset, &known, inner).context(|| format!("graph \"{}\"", body.name))?;
    Ok(body.outputs.iter().map(|output| facts.get(output.value).cloned()).collect())
}

/// The values of a body that stand for captures, with their numbers.
fn captured(body: &Graph) -> impl Iterator<Item = (Value, usize)> + '_ {
    body.node_ids().filter_map(|node| match body.node(node).kind {
        NodeKind::Capture(index) => Some((Value { node, slot: 0 }, index)),
        _ => None,
    })
}

/// What holds of two values of one place. Where they differ, an axis or the rank is open; of two element types is nothing known.
pub fn join(a: &Type, b: &Type) -> Result<Type> {
    let (Type::Tensor { dtype: x, shape: s }, Type::Tensor { dtype: y, shape: t }) = (a, b) else {
        ensure!(a == b, "it is {a} here and {b} there");
        return Ok(a.clone());
    };
    ensure!(x == y, "it is {a} here and {b} there");
    let shape = match (s, t) {
        (Some(s), Some(t)) if s.len() == t.len() => {
            Some(s.iter().zip(t).map(|(a, b)| if a == b { a.clone() } else { Dim::Unknown }).collect())
        }
        _ => None,
    };
    Ok(Type::Tensor { dtype: *x, shape })
}

/// The types of what a loop carries from one iteration to the next, and of what its body gives besides.
pub struct Settled {
    /// The carried types: they hold before the first iteration and after each.
    pub state: Vec<Option<Type>>,
    /// The other outputs of the body.
    pub rest: Vec<Option<Type>>,
}

/// Rounds after which a carried type that still changes loses its shape.
const ROUNDS: usize = 3;

/// Loops that nest deeper are inferred in one round, so that the work does not grow with the power of the depth.
const MAX_PRECISE_DEPTH: usize = 3;

/// Finds types of the carried values that the body keeps. Its inputs are `before`, the carried values, and `after`; its
/// outputs are `lead` others, the carried values, and the rest.
pub fn settle(
    cx: &InferCx,
    body: &Graph,
    (before, state, after): (&[Option<Fact>], &[Option<Fact>], &[Option<Fact>]),
    lead: usize,
) -> Result<Settled> {
    let carried = state.len();
    ensure!(
        body.outputs.len() >= lead + carried,
        "its body has {} outputs, expected {} or more",
        body.outputs.len(),
        lead + carried
    );
    let unranked = |ty: &Option<Type>| ty.as_ref().map(|ty| ty.dtype().map_or(ty.clone(), Type::unranked));
    let mut state: Vec<Option<Type>> = state.iter().map(|fact| fact.as_ref().map(|f| f.ty.clone())).collect();
    if depth(body) >= MAX_PRECISE_DEPTH {
        state = state.iter().map(unranked).collect();
    }
    let (_, captures) = cx.split_captures();
    for round in 1.. {
        let given: Vec<Option<Fact>> = before
            .iter()
            .cloned()
            .chain(state.iter().cloned().map(|ty| ty.map(Fact::new)))
            .chain(after.iter().cloned())
            .collect();
        let found = facts(body, cx.opset, &given, captures, cx.scope)?;
        let mut types = found.into_iter().map(|fact| fact.map(|fact| fact.ty)).skip(lead);
        let mut next = Vec::with_capacity(carried);
        for (i, (old, new)) in state.iter().zip(types.by_ref()).enumerate() {
            next.push(match (old, new) {
                (Some(old), Some(new)) => Some(join(old, &new).context(|| format!("carried value {i}"))?),
                (old, new) => old.clone().or(new),
            });
        }
        if next == state {
            return Ok(Settled { state, rest: types.collect() });
        }
        state = if round < ROUNDS { next } else { next.iter().map(unranked).collect() };
    }
    bail!("its types do not settle")
}

/// How deep subgraphs nest in a graph.
fn depth(graph: &Graph) -> usize {
    let bodies = graph.node_ids().filter_map(|id| graph.node(id).op()).flat_map(|op| op.attrs.graphs());
    bodies.map(|(_, body)| 1 + depth(body)).max().unwrap_or(0)
}

/// The type of values of a type laid side by side along a new axis.
pub fn stacked(ty: &Type, axis: i64, count: &Dim) -> Result<Type> {
    let Type::Tensor { dtype, shape } = ty else { bail!("it hands out {ty}, expected tensors") };
    let mut shape = shape.clone();
    if let Some(shape) = &mut shape {
        shape.insert(normal_axis(axis, shape.len() + 1)?, count.clone());
    }
    Ok(Type::Tensor { dtype: *dtype, shape })
}

// ---- evaluation -----------------------------------------------------------------------------------------------------

/// A body that is evaluated, once or in a loop.
pub struct Body<'a> {
    graph: &'a Graph,
    /// Unless somebody else runs it.
    evaluator: Option<Evaluator<'a>>,
    captures: HashMap<Value, Tensor>,
    seed: u64,
}

impl<'a> Body<'a> {
    /// For a node with these captures.
    pub fn new(cx: &EvalCx, graph: &'a Graph, captures: &[Option<&Tensor>]) -> Result<Body<'a>> {
        let mut values = HashMap::new();
        for (value, index) in captured(graph) {
            let Some(tensor) = captures.get(index).copied().flatten() else { bail!("capture {index} is missing") };
            values.insert(value, tensor.clone());
        }
        let evaluator = cx.bodies.is_none().then(|| Evaluator::new(graph));
        Ok(Body { graph, evaluator, captures: values, seed: cx.stream.bits(0) })
    }
    /// Evaluates it in the iteration of this number.
    pub fn run(&self, cx: &EvalCx, iteration: u64, inputs: impl IntoIterator<Item = Tensor>) -> Result<Vec<Tensor>> {
        let place = || format!("graph \"{}\"", self.graph.name);
        if let Some(run) = cx.bodies {
            return run(self.graph, (self.seed, iteration), inputs.into_iter().collect(), &self.captures)
                .context(place);
        }
        let Some(evaluator) = &self.evaluator else { bail!("the body was made for somebody else to run") };
        let mut values = self.captures.clone();
        values.extend(self.graph.inputs().zip(inputs));
        let env = Environment { opset: cx.opset, seed: self.seed, step: iteration, params: cx.params };
        evaluator.run(&env, values).context(place)
    }
    /// A number in the shape that the body declares for one of its inputs: one element, of rank 0 unless it says otherwise.
    pub fn shaped(&self, input: usize, number: Tensor) -> Result<Tensor> {
        let declared = self.graph.inputs().nth(input).and_then(|value| self.graph.ty(value));
        let vector = declared.and_then(Type::rank) == Some(1);
        if vector { number.reshaped([1]) } else { Ok(number) }
    }
}

/// The single truth value of a condition.
pub fn truth(tensor: &Tensor) -> Result<bool> {
    ensure!(tensor.len() == 1 && tensor.dtype() == DType::Bool, "its condition is {tensor:?}, expected one bool");
    tensor.item::<bool>()
}

/// Tensors of one type, to be laid side by side along a new axis.
#[derive(Default)]
pub struct Stack {
    rows: Vec<Tensor>,
    bytes: usize,
}

impl Stack {
    /// Adds one.
    pub fn push(&mut self, row: Tensor) -> Result<()> {
        if let Some(first) = self.rows.first() {
            let same = (first.dtype(), first.shape()) == (row.dtype(), row.shape());
            ensure!(same, "one iteration hands out {first:?}, another {row:?}");
        }
        let strings: usize = row.strings().unwrap_or_default().iter().map(|s| s.len() + size_of_val(s)).sum();
        self.bytes += row.bytes().len() + strings + size_of::<Tensor>();
        ensure!(self.bytes <= MAX_STACKED, "its iterations hand out more than {MAX_STACKED} bytes");
        self.rows.push(row);
        Ok(())
    }
    /// All of them, in reverse order if asked to. `none` says of which type they would have been if there are none.
    pub fn join(mut self, axis: i64, reverse: bool, none: impl FnOnce() -> Result<Type>) -> Result<Tensor> {
        if reverse {
            self.rows.reverse();
        }
        let Some(first) = self.rows.first() else { return empty(&stacked(&none()?, axis, &Dim::Known(0))?) };
        let axis = normal_axis(axis, first.rank() + 1)?;
        let mut shape = first.shape().to_vec();
        shape.insert(axis, 1);
        let rows: Vec<Tensor> = self.rows.iter().map(|row| row.reshaped(shape.clone())).collect::<Result<_>>()?;
        concat::concat(&rows.iter().collect::<Vec<_>>(), axis)
    }
}

/// A tensor without elements; open axes are 0.
fn empty(ty: &Type) -> Result<Tensor> {
    let Some(dtype) = ty.dtype() else { bail!("{ty} is no tensor") };
    let zero = [Dim::Known(0)];
    let shape = ty.shape().unwrap_or(&zero);
    Tensor::zeros(dtype, shape.iter().map(|d| d.known().map_or(0, |n| n.max(0) as usize)).collect::<Vec<_>>())
}

/// Place `i` along an axis, without the axis.
pub fn row(tensor: &Tensor, axis: usize, i: usize) -> Result<Tensor> {
    let (outer, len, inner) = index::lanes(tensor.shape(), axis);
    let bases = (0..outer).map(|o| (o * len + i) * inner).collect();
    let mut shape = tensor.shape().to_vec();
    shape.remove(axis);
    index::pick(&[tensor], shape, &index::outer_sum(&[bases, index::steps(inner, 1)]))
}

// ---- copying --------------------------------------------------------------------------------------------------------

/// Copies a body into the graph around its node, as often as asked to. Constants are copied once.
pub struct Splicer<'a> {
    body: &'a Graph,
    order: Vec<NodeId>,
    captures: Vec<Option<Value>>,
    constants: HashMap<Value, Value>,
}

impl<'a> Splicer<'a> {
    /// For a node with these captures, whose body is to be copied `times` times. Errors if the result would be too large.
    pub fn new(body: &'a Graph, captures: &[Option<Value>], times: usize) -> Result<Splicer<'a>> {
        ensure!(times <= MAX_UNROLLED, "it has {times} iterations; at most {MAX_UNROLLED} are unrolled");
        let nodes = body.len().saturating_mul(times);
        ensure!(nodes <= MAX_UNROLLED_NODES, "unrolled it has {nodes} nodes, expected at most {MAX_UNROLLED_NODES}");
        Ok(Splicer { body, order: body.topo(), captures: captures.to_vec(), constants: HashMap::new() })
    }
    /// Copies it once, for these inputs. Returns the outputs.
    pub fn copy(&mut self, emit: &mut Emit, inputs: impl IntoIterator<Item = Value>) -> Result<Vec<Value>> {
        let mut values: HashMap<Value, Value> = self.body.inputs().zip(inputs).collect();
        for &id in &self.order {
            let (node, first) = (self.body.node(id), Value { node: id, slot: 0 });
            match &node.kind {
                NodeKind::Input => {}
                NodeKind::Const(tensor) => {
                    let copied = self.constants.entry(first).or_insert_with(|| emit.constant(tensor.clone()));
                    values.insert(first, *copied);
                }
                NodeKind::Param(name) => {
                    let ty = node.outputs.first().and_then(|o| o.ty.clone());
                    let Some(ty) = ty else { bail!("the type of parameter \"{name}\" is unknown") };
                    values.insert(first, emit.graph.param(name, ty));
                }
                NodeKind::Capture(index) => {
                    let value = self.captures.get(*index).copied().flatten();
                    values.insert(first, value.ok_or_else(|| Error::msg(format!("capture {index} is missing")))?);
                }
                NodeKind::Op(op) => self.node(emit, id, op, &mut values)?,
            }
        }
        let missing = |name: &str| Error::msg(format!("its body does not make \"{name}\""));
        self.body.outputs.iter().map(|o| values.get(&o.value).copied().ok_or_else(|| missing(&o.name))).collect()
    }
    fn node(&self, emit: &mut Emit, id: NodeId, op: &Operator, values: &mut HashMap<Value, Value>) -> Result<()> {
        let node = self.body.node(id);
        let inputs: Vec<Option<Value>> =
            self.body.node_inputs(id).into_iter().map(|v| v.and_then(|v| values.get(&v).copied())).collect();
        let (formal, captures) = inputs.split_at(node.formal_inputs());
        let mut slots = vec![OutputSlot::default(); node.outputs.len()];
        for (slot, old) in slots.iter_mut().zip(&node.outputs).filter(|(_, old)| !old.name.is_empty()) {
            slot.name = emit.graph.fresh_name(&format!("{}{}", emit.prefix, old.name));
        }
        let name = slots.first().map_or(String::new(), |slot| slot.name.clone());
        let copy = emit.graph.add_node(&name, op.clone(), formal, slots);
        for value in captures {
            let Some(value) = value else { bail!("a capture of {} is missing", node.label()) };
            emit.graph.push_capture(copy, *value);
        }
        infer::infer_node(emit.graph, copy, emit.opset).context(|| emit.graph.node(copy).label())?;
        values.extend(self.body.node_outputs(id).map(|old| (old, Value { node: copy, ..old })));
        Ok(())
    }
}

/// What output `slot` of a loop without an iteration is: zeros of its inferred shape, which is empty along the new axis.
pub fn nothing(emit: &mut Emit, id: NodeId, slot: usize) -> Result<Value> {
    let Some(output) = emit.graph.node_outputs(id).nth(slot) else { bail!("there is no output {slot}") };
    let (dtype, shape) = (emit.dtype(output)?, emit.shape(output)?);
    let lengths: Option<Vec<usize>> = shape.iter().map(|d| d.known().and_then(|n| usize::try_from(n).ok())).collect();
    match lengths {
        Some(lengths) => Ok(emit.constant(Tensor::zeros(dtype, lengths)?)),
        None => bail!("it runs no iteration, so the shape of what it hands out is unknown"),
    }
}

/// Values laid side by side along a new axis. There must be one at least.
pub fn stack(emit: &mut Emit, rows: &[Value], axis: i64, reverse: bool) -> Result<Value> {
    let Some(&first) = rows.first() else {
        bail!("it runs no iteration, so the shape of what it hands out is unknown")
    };
    let axis = normal_axis(axis, emit.rank(first)? + 1)?;
    let mut parts = Vec::with_capacity(rows.len());
    for &row in rows {
        parts.push(emit.unsqueeze(row, &[axis])?);
    }
    if reverse {
        parts.reverse();
    }
    emit.op("Concat", &parts, Attributes::new().with("axis", axis as i64))
}

/// The places along an axis, each without the axis; `count` is how many there are.
pub fn unstack(emit: &mut Emit, value: Value, axis: usize, count: usize) -> Result<Vec<Value>> {
    let parts = match count {
        0 => return Ok(Vec::new()),
        1 => vec![value],
        _ => {
            let sizes = emit.ints(&vec![1; count]);
            let split = Operator::onnx("Split", Attributes::new().with("axis", axis as i64));
            emit.node(split, &[Some(value), Some(sizes)], count)?
        }
    };
    let axes = emit.ints(&[axis as i64]);
    parts.into_iter().map(|part| emit.op("Squeeze", &[part, axes], Attributes::new())).collect()
}
