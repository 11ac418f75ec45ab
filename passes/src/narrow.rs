//! `narrow`: computes only the rows that are read.
//!
//! ```text
//! before   h = LayerNormalization (x, scale, bias)            y = Gather <axis = 1> (h, zero)
//! after    r = Gather <axis = 1> (x, zero_list)   h = LayerNormalization (r, scale, bias)   y = Squeeze (h, one)
//! ```
//! (executed by `tests/cases/narrow/first_token.txt`)
//!
//! A classifier reads the first token of a text, but the file says: compute all tokens, then pick. Where a `Gather` with
//! constant indices (or a `Slice` with constant bounds) along one axis is all that reads a value, and the operator that makes the value treats the
//! entries of that axis independently, the choice moves in front of it, and on from there. For an encoder whose first token is
//! classified it ends at the last layer's attention, where keys and values need every token: queries, feed-forward and normalisation
//! of that layer are then computed for one token, and so are their gradients. `autodiff` does this to the programs that it
//! differentiates.
//!
//! *Needs* the internal opset. *Leaves* no choice behind an operator that it could stand in front of. The same numbers up to the order of
//! additions inside matrix products. Idempotent. Moves through elementwise operators, normalisation and reductions along other axes, matrix
//! products (rows of the left factor, batch axes), transposes and reshapes that keep the axis; not through random operators, and never into columns of weights.

use crate::walk::{edit_typed_graphs, require_internal_opset};
use crate::{Changed, Pass};
use sartor_ir::ops::{self, Emit, normal_axis};
use sartor_ir::{Attribute, Attributes, Dim, Graph, Model, NodeId, Operator, Result, SARTOR_DOMAIN, Type, Value};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashMap;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Narrow {}

impl Pass for Narrow {
    fn name(&self) -> &str {
        "narrow"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        require_internal_opset(model)?;
        edit_typed_graphs(model, narrow).map(Changed::from)
    }
}

/// Moves what can be moved in one graph, whose types are inferred; returns whether there was anything.
pub fn narrow(graph: &mut Graph, opset: i64) -> Result<bool> {
    let mut emit = Emit::new(graph, opset);
    let mut changed = false;
    emit.graph.remove_dead();
    // Every move brings a choice nearer to the inputs, so this ends.
    while step(&mut emit)? {
        changed = true;
        // What is dead must not count as a reader.
        emit.graph.remove_dead();
    }
    Ok(changed)
}

fn step(emit: &mut Emit) -> Result<bool> {
    let mut order = emit.graph.topo_ops();
    order.reverse();
    for id in order {
        if let Some(choice) = Choice::of(emit, id)
            && let Some(x) = emit.graph.input(id, 0)
            && let Some(readers) = readers(emit, x, &choice)
            && let Some(plan) = plan(emit, x, choice.axis)
        {
            apply(emit, x, &choice, &readers, plan)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Entries of one axis, by constant indices or bounds.
#[derive(Clone, PartialEq, Debug)]
struct Choice {
    axis: usize,
    what: What,
}

#[derive(Clone, PartialEq, Debug)]
enum What {
    /// The indices of a `Gather`.
    Indices(Vec<i64>),
    /// Start, end and step of a `Slice`.
    Bounds(i64, i64, i64),
}

impl Choice {
    /// What a node chooses from its first input, if it is a choice along one axis that leaves less than there was.
    fn of(emit: &Emit, id: NodeId) -> Option<Choice> {
        let op = emit.graph.node(id).op().filter(|op| op.domain.is_empty())?;
        let rank = emit.rank(emit.graph.input(id, 0)?).ok()?;
        let ints = |slot| emit.graph.constant(emit.graph.input(id, slot)?)?.to_i64s().ok();
        let (axis, what) = match op.name.as_str() {
            "Gather" => {
                let index_rank = emit.rank(emit.graph.input(id, 1)?).ok()?;
                let indices = ints(1).filter(|_| index_rank <= 1)?;
                (op.attrs.int("axis", 0).ok()?, What::Indices(indices))
            }
            "Slice" => {
                let [start, end] = [ints(1)?, ints(2)?].map(|v| v.first().copied().filter(|_| v.len() == 1));
                let axis = if emit.graph.input(id, 3).is_some() { ints(3)? } else { vec![0] };
                let by = if emit.graph.input(id, 4).is_some() { ints(4)? } else { vec![1] };
                (*axis.first()?, What::Bounds(start?, end?, *by.first()?))
            }
            _ => return None,
        };
        let choice = Choice { axis: normal_axis(axis, rank).ok()?, what };
        let dim = emit.shape(emit.graph.input(id, 0)?).ok()?.swap_remove(choice.axis);
        let fewer = match (choice.count(), dim.known()) {
            (Some(count), Some(dim)) => (count as i64) < dim,
            (Some(count), None) => count <= FEW,
            (None, _) => true,
        };
        fewer.then_some(choice)
    }
    /// The number of entries, where it does not depend on the length of the axis.
    fn count(&self) -> Option<usize> {
        match &self.what {
            What::Indices(indices) => Some(indices.len()),
            What::Bounds(..) => None,
        }
    }
    /// The entries of a value, with all its axes.
    fn take(&self, emit: &mut Emit, value: Value, axis: usize) -> Result<Value> {
        match &self.what {
            What::Indices(indices) => {
                let indices = emit.ints(indices);
                let mut attrs = Attributes::new();
                attrs.set("axis", Attribute::Int(axis as i64));
                emit.op("Gather", &[value, indices], attrs)
            }
            What::Bounds(start, end, by) => {
                let bounds = [*start, *end, axis as i64, *by].map(|n| emit.ints(&[n]));
                emit.op("Slice", &[value, bounds[0], bounds[1], bounds[2], bounds[3]], Attributes::new())
            }
        }
    }
}

/// So many indices into an axis of unknown length are taken to be fewer than it has entries.
const FEW: usize = 1;

/// The nodes that read a value, if all of them make this same choice. Reading its shape does not count.
fn readers(emit: &Emit, x: Value, choice: &Choice) -> Option<Vec<NodeId>> {
    if emit.graph.is_output(x) {
        return None;
    }
    let mut found = Vec::new();
    for (reader, slot) in emit.graph.uses(x) {
        if emit.graph.node(reader).is("Shape") {
            continue;
        }
        if slot != 0 || Choice::of(emit, reader).as_ref() != Some(choice) {
            return None;
        }
        found.push(reader);
    }
    Some(found)
}

/// How an operator is applied to fewer entries: for each input the axis along which it is chosen from, if any.
struct Plan {
    axes: Vec<Option<usize>>,
    /// What takes the place of the input that says the shape of a `Reshape`, where `-2` stands for the number of entries.
    shape: Option<Vec<i64>>,
}

/// Stands for the number of chosen entries in the shape of a [`Plan`].
const CHOSEN: i64 = -2;

/// `None` where the choice cannot stand in front of the operator that makes `x`.
fn plan(emit: &Emit, x: Value, axis: usize) -> Option<Plan> {
    let node = emit.graph.node(x.node);
    let known = |op: &&Operator| op.domain.is_empty() || (op.domain == SARTOR_DOMAIN && op.name == "GuardedSoftmax");
    let op = node.op().filter(known).filter(|_| x.slot == 0)?;
    let others_read = emit.graph.node_outputs(x.node).skip(1).any(|v| emit.graph.use_count(v) > 0);
    if others_read || node.captures() > 0 {
        return None;
    }
    let maker = Maker { emit, op, inputs: emit.graph.node_inputs(x.node), shape: emit.shape(x).ok()?, axis };
    match op.name.as_str() {
        "Reshape" | "Flatten" => {
            let from = maker.input_shape(0)?;
            let axes = maker.first(kept_axis(&from, &maker.shape, axis)?)?;
            Some(Plan { axes, shape: Some(target_shape(&from, &maker.shape, axis)?) })
        }
        _ => Some(Plan { axes: maker.axes()?, shape: None }),
    }
}

/// The operator that makes a value of which entries along an axis are chosen.
struct Maker<'a> {
    emit: &'a Emit<'a>,
    op: &'a Operator,
    inputs: Vec<Option<Value>>,
    /// Of the value.
    shape: Vec<Dim>,
    axis: usize,
}

impl Maker<'_> {
    fn input_shape(&self, slot: usize) -> Option<Vec<Dim>> {
        self.emit.shape((*self.inputs.get(slot)?)?).ok()
    }
    /// The chosen axis of an input that is broadcast; `Some(None)` if it does not have it. `None` if it is not certain, or among
    /// the input's last `kept` axes, which the operator does not treat independently.
    fn broadcast(&self, slot: usize, kept: usize) -> Option<Option<usize>> {
        let Some(value) = self.inputs[slot] else { return Some(None) };
        let own = self.emit.shape(value).ok()?;
        let Some(place) = (self.axis + own.len()).checked_sub(self.shape.len()) else { return Some(None) };
        if place + kept >= own.len() && kept > 0 {
            return None;
        }
        match own[place].known() {
            Some(1) => Some(None),
            _ => own[place].same(&self.shape[self.axis]).then_some(Some(place)),
        }
    }
    /// The choice goes to this axis of the first input.
    fn first(&self, place: usize) -> Option<Vec<Option<usize>>> {
        let mut axes = vec![None; self.inputs.len()];
        *axes.first_mut()? = Some(place);
        Some(axes)
    }
    /// For each input the axis along which it is chosen from.
    fn axes(&self) -> Option<Vec<Option<usize>>> {
        let (op, axis, rank) = (self.op, self.axis, self.shape.len());
        match op.name.as_str() {
            name if ops::is_elementwise(name) => (0..self.inputs.len()).map(|slot| self.broadcast(slot, 0)).collect(),
            "Softmax" | "LogSoftmax" | "GuardedSoftmax" => {
                let normal = normal_axis(op.attrs.int("axis", -1).ok()?, rank).ok()?;
                (normal != axis).then(|| self.first(axis)).flatten()
            }
            "LayerNormalization" | "RMSNormalization" => {
                let normal = normal_axis(op.attrs.int("axis", -1).ok()?, rank).ok()?;
                (axis < normal).then(|| self.first(axis)).flatten()
            }
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" => {
                let axes = self.emit.graph.constant(self.inputs.get(1).copied().flatten()?)?.to_i64s().ok()?;
                let from = self.input_shape(0)?;
                let normal: Option<Vec<usize>> = axes.iter().map(|&a| normal_axis(a, from.len()).ok()).collect();
                let kept = op.attrs.int("keepdims", 1).ok()? == 1;
                (kept && !normal?.contains(&axis)).then(|| self.first(axis)).flatten()
            }
            "MatMul" => {
                let (a, b) = (self.input_shape(0)?.len(), self.input_shape(1)?.len());
                match rank - axis {
                    _ if a < 2 || b < 2 => None,
                    1 => None,
                    2 => Some(vec![Some(a - 2), None]),
                    _ => Some(vec![self.broadcast(0, 2)?, self.broadcast(1, 2)?]),
                }
            }
            "Gemm" => {
                let transposed = op.attrs.int("transA", 0).ok()? != 0;
                let summand = if self.inputs.len() > 2 { self.broadcast(2, 0)? } else { None };
                let mut axes = vec![Some(usize::from(transposed)), None, summand];
                axes.truncate(self.inputs.len());
                (axis == 0).then_some(axes)
            }
            "Transpose" => {
                let reversed: Vec<i64> = (0..rank as i64).rev().collect();
                let perm = op.attrs.ints("perm", &reversed).ok()?;
                self.first(*perm.get(axis)? as usize)
            }
            "Squeeze" | "Unsqueeze" if self.inputs.len() == 2 => {
                self.first(kept_axis(&self.input_shape(0)?, &self.shape, axis)?)
            }
            _ => None,
        }
    }
}

/// The axis of the operand that a reshape keeps as `axis` of its result: the same length, after as many elements.
fn kept_axis(from: &[Dim], to: &[Dim], axis: usize) -> Option<usize> {
    let before = Dim::product(&to[..axis]);
    (0..from.len()).find(|&a| from[a].same(&to[axis]) && Dim::product(&from[..a]).same(&before))
}

/// A constant shape for a `Reshape` after the choice: numbers, 0 where the operand's length at the same place is kept, at most one −1.
fn target_shape(from: &[Dim], to: &[Dim], axis: usize) -> Option<Vec<i64>> {
    let mut open = 0;
    let entry = |(i, dim): (usize, &Dim)| match (dim.known(), from.get(i)) {
        _ if i == axis => CHOSEN,
        (Some(number), _) if number != 0 => number,
        (None, Some(other)) if other.same(dim) && i < axis => 0,
        _ => {
            open += 1;
            -1
        }
    };
    let shape: Vec<i64> = to.iter().enumerate().map(entry).collect();
    (open <= 1).then_some(shape)
}

/// Applies the operator that makes `x` to the chosen entries, and gives the result to the readers of the choice.
fn apply(emit: &mut Emit, x: Value, choice: &Choice, readers: &[NodeId], plan: Plan) -> Result<()> {
    let node = emit.graph.node(x.node);
    let (name, mut op, outputs) = (node.name.clone(), node.op().cloned(), node.outputs.len());
    let Some(op) = &mut op else { return Ok(()) };
    let mut inputs = emit.graph.node_inputs(x.node);
    let mut taken: HashMap<(Value, usize), Value> = HashMap::new();
    for (input, axis) in inputs.iter_mut().zip(&plan.axes) {
        if let (Some(value), Some(axis)) = (*input, *axis) {
            let there = taken.get(&(value, axis)).copied().or_else(|| existing(emit, value, axis, choice));
            let chosen = match there {
                Some(chosen) => chosen,
                None => choice.take(emit, value, axis)?,
            };
            taken.insert((value, axis), chosen);
            *input = Some(chosen);
        }
    }
    if let Some(mut shape) = plan.shape {
        // Without a number for the chosen axis, the operand's own length stands for it.
        let count = choice.count().map_or(-1, |n| n as i64);
        shape.iter_mut().filter(|n| **n == CHOSEN).for_each(|n| *n = count);
        if shape.iter().filter(|n| **n == -1).count() > 1 {
            sartor_ir::bail!("a reshape has two open lengths");
        }
        *op = Operator::onnx("Reshape", Attributes::new());
        inputs = vec![inputs[0], Some(emit.ints(&shape))];
    }
    let result = emit.node(op.clone(), &inputs, outputs)?[0];
    // Two nodes of one name would be no model; the old one stays where its shape is read.
    let alone = |v: &Value| !emit.graph.is_output(*v) && emit.graph.uses(*v).iter().all(|(id, _)| readers.contains(id));
    if emit.graph.node_outputs(x.node).all(|v| alone(&v)) {
        emit.graph.node_mut(result.node).name = name;
    }
    for &reader in readers {
        let old = Value { node: reader, slot: 0 };
        let new = if drops_axis(emit, reader) {
            let axis = emit.ints(&[choice.axis as i64]);
            emit.op("Squeeze", &[result, axis], Attributes::new())?
        } else {
            result
        };
        emit.graph.substitute(old, new);
    }
    Ok(())
}

/// A node that makes this choice from a value already.
fn existing(emit: &Emit, value: Value, axis: usize, choice: &Choice) -> Option<Value> {
    let wanted = Choice { axis, ..choice.clone() };
    let makes = |id: &NodeId| !drops_axis(emit, *id) && Choice::of(emit, *id).as_ref() == Some(&wanted);
    let reader = emit.graph.uses(value).into_iter().filter(|&(_, slot)| slot == 0).map(|(id, _)| id).find(makes)?;
    Some(Value { node: reader, slot: 0 })
}

/// Whether the result of a choice lacks the axis.
fn drops_axis(emit: &Emit, id: NodeId) -> bool {
    let scalar = |index: Value| emit.graph.ty(index).and_then(Type::shape).is_some_and(<[Dim]>::is_empty);
    emit.graph.node(id).is("Gather") && emit.graph.input(id, 1).is_some_and(scalar)
}
