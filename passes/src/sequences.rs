//! `sequences`: sequences of tensors whose members are known become these tensors.
//!
//! ```text
//! before   s = SplitToSequence (x, sizes)   a = SequenceAt (s, 0)   c = SequenceConstruct (a, y)   z = ConcatFromSequence (c)
//! after    a, b = Split (x, sizes)   z = Concat (a, y)                                            sizes = {2, 3}
//! ```
//! (executed, with what stands beside it, by `tests/cases/sequences/split.txt`)
//!
//! Exporters write `chunk`, `unbind`, lists of tensors and `stack` with sequences, though the graph says at every place which tensor is meant. The
//! rows of a tensor (`SplitToSequence` without sizes) may be of any number: a member is then a `Gather`, the length comes from the shape.
//!
//! *Needs* the internal opset; positions and sizes that inference finds, but for members of rows. *Leaves* sequences that are outputs of the
//! graph, cross the border of a body, or whose members hang on what only a run knows; of these it still finds the number. The same numbers. Idempotent.

use crate::walk::{edit_typed_graphs, require_internal_opset};
use crate::{Changed, Pass};
use sartor_ir::infer::{self, Facts};
use sartor_ir::ops::{Emit, body, normal_axis};
use sartor_ir::{Attributes, DType, Dim, Graph, Model, NodeId, Operator, Result, Tensor, Value, ensure};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashMap;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sequences {}

impl Pass for Sequences {
    fn name(&self) -> &str {
        "sequences"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        let has = |graph: &Graph| graph.node_ids().any(|id| graph.node(id).op().is_some_and(concerns));
        if !model.graphs().any(has) {
            return Ok(Changed::No);
        }
        require_internal_opset(model)?;
        edit_typed_graphs(model, resolve).map(Changed::from)
    }
}

fn concerns(op: &Operator) -> bool {
    op.domain.is_empty() && op.name.contains("Sequence") && op.name != "ReverseSequence"
}

/// At most this many members are written out.
const MOST: usize = 4096;

/// What a sequence holds.
#[derive(Clone)]
enum Sequence {
    /// These tensors.
    Of(Vec<Value>),
    /// The entries of an axis of a tensor, with the axis (of length 1) or without.
    Rows { x: Value, axis: usize, keep: bool },
    /// Pieces of an axis of a tensor, of a length that only a run knows; the last one may be shorter.
    Pieces { x: Value, axis: usize, length: Value },
    /// As many tensors as this vector has numbers.
    Counted(Value),
}

/// Round by round: what one finds says the shapes of what the next one splits. Every round takes out readers of sequences, so this ends.
fn resolve(graph: &mut Graph, opset: i64) -> Result<bool> {
    let mut changed = false;
    while resolve_once(graph, opset)? {
        changed = true;
    }
    Ok(changed)
}

fn resolve_once(graph: &mut Graph, opset: i64) -> Result<bool> {
    let facts = infer::infer_graph(graph, opset)?;
    let mut emit = Emit::new(graph, opset);
    let mut known: HashMap<Value, Sequence> = HashMap::new();
    let mut changed = false;
    for id in emit.graph.topo_ops() {
        let Some(op) = emit.graph.node(id).op().filter(|op| op.domain.is_empty()).cloned() else { continue };
        let output = Value { node: id, slot: 0 };
        if let Some(sequence) = made(&mut emit, &facts, id, &op, &known)? {
            known.insert(output, sequence);
        } else if let Some(tensor) = read(&mut emit, &facts, id, &op, &known)? {
            emit.graph.substitute(output, tensor);
            changed = true;
        }
    }
    emit.graph.remove_dead();
    if changed && infer::infer_graph(emit.graph, opset).is_err() {
        // PyTorch declares one axis too many behind `unbind`: what follows is inferred from the inputs alone.
        for id in emit.graph.topo_ops() {
            for output in emit.graph.node_outputs(id) {
                emit.graph.set_ty(output, None);
            }
        }
    }
    Ok(changed)
}

/// The sequence that a node makes.
fn made(
    emit: &mut Emit,
    facts: &Facts,
    id: NodeId,
    op: &Operator,
    known: &HashMap<Value, Sequence>,
) -> Result<Option<Sequence>> {
    let inputs = emit.graph.node_inputs(id);
    let first = inputs.first().copied().flatten();
    let before = first.and_then(|value| known.get(&value));
    Ok(match (op.name.as_str(), before) {
        ("SequenceEmpty", _) => Some(Sequence::Of(Vec::new())),
        ("SequenceConstruct", _) => inputs.into_iter().collect::<Option<Vec<Value>>>().map(Sequence::Of),
        ("Identity", Some(same)) => Some(same.clone()),
        ("SplitToSequence", _) => match first {
            Some(x) => split(emit, facts, x, inputs.get(1).copied().flatten(), op)?,
            None => None,
        },
        ("SequenceInsert", Some(before)) => {
            let Some(tensor) = inputs.get(1).copied().flatten() else { return Ok(None) };
            let Some(mut list) = members(emit, before)? else { return Ok(None) };
            let place = match inputs.get(2).copied().flatten() {
                None => list.len(),
                Some(value) => match position(facts, emit, value, list.len() + 1, list.len())? {
                    Some(place) => place,
                    None => return Ok(None),
                },
            };
            list.insert(place, tensor);
            Some(Sequence::Of(list))
        }
        ("SequenceErase", Some(before)) => {
            let Some(mut list) = members(emit, before)? else { return Ok(None) };
            ensure!(!list.is_empty(), "nothing can be taken out of an empty sequence");
            let place = match inputs.get(1).copied().flatten() {
                None => list.len() - 1,
                Some(value) => match position(facts, emit, value, list.len(), list.len())? {
                    Some(place) => place,
                    None => return Ok(None),
                },
            };
            list.remove(place);
            Some(Sequence::Of(list))
        }
        _ => None,
    })
}

/// The tensor that a node reads from a sequence.
fn read(
    emit: &mut Emit,
    facts: &Facts,
    id: NodeId,
    op: &Operator,
    known: &HashMap<Value, Sequence>,
) -> Result<Option<Value>> {
    let inputs = emit.graph.node_inputs(id);
    let Some(sequence) = inputs.first().copied().flatten().and_then(|value| known.get(&value)) else { return Ok(None) };
    match (op.name.as_str(), sequence) {
        ("SequenceLength", Sequence::Of(list)) => Ok(Some(emit.constant(Tensor::scalar(list.len() as i64)))),
        ("SequenceLength", Sequence::Rows { x, axis, .. }) => emit.length(*x, *axis).map(Some),
        ("SequenceLength", Sequence::Pieces { x, axis, length }) => {
            number_of_pieces(emit, *x, *axis, *length).map(Some)
        }
        ("SequenceAt", Sequence::Pieces { x, axis, length }) => {
            let Some(index) = inputs.get(1).copied().flatten() else { return Ok(None) };
            piece(emit, facts, (*x, *axis, *length), index)
        }
        ("SequenceLength", Sequence::Counted(sizes)) => emit.length(*sizes, 0).map(Some),
        ("SequenceAt", Sequence::Rows { x, axis, keep }) => {
            let Some(index) = inputs.get(1).copied().flatten() else { return Ok(None) };
            let index = match (keep, emit.rank(index)) {
                (true, _) => emit.reshape(index, &[1])?,
                (false, Ok(0)) => index,
                (false, _) => emit.reshape(index, &[])?,
            };
            emit.op("Gather", &[*x, index], Attributes::new().with("axis", *axis as i64)).map(Some)
        }
        ("SequenceAt", Sequence::Of(list)) => {
            let Some(index) = inputs.get(1).copied().flatten() else { return Ok(None) };
            Ok(position(facts, emit, index, list.len(), list.len())?.map(|place| list[place]))
        }
        ("ConcatFromSequence", sequence) => join(emit, op, sequence),
        _ => Ok(None),
    }
}

/// Whole pieces, and one more if something is left.
fn number_of_pieces(emit: &mut Emit, x: Value, axis: usize, length: Value) -> Result<Value> {
    let (whole, length) = (emit.length(x, axis)?, emit.cast(length, DType::I64)?);
    let one = emit.constant(Tensor::scalar(1i64));
    let least = emit.sub(length, one)?;
    let rounded = emit.add(whole, least)?;
    emit.div(rounded, length)
}

/// One piece, by a known position.
fn piece(
    emit: &mut Emit,
    facts: &Facts,
    (x, axis, length): (Value, usize, Value),
    index: Value,
) -> Result<Option<Value>> {
    let Some(tensor) = known(emit, facts, index) else { return Ok(None) };
    let [index] = tensor.to_i64s()?[..] else { return Ok(None) };
    let mut place = emit.constant(Tensor::scalar(index));
    if index < 0 {
        let count = number_of_pieces(emit, x, axis, length)?;
        place = emit.add(count, place)?;
    }
    let length = emit.cast(length, DType::I64)?;
    let start = emit.mul(place, length)?;
    let end = emit.add(start, length)?;
    let (start, end, axes) = (emit.reshape(start, &[1])?, emit.reshape(end, &[1])?, emit.ints(&[axis as i64]));
    emit.op("Slice", &[x, start, end, axes], Attributes::new()).map(Some)
}

/// `SplitToSequence`: without sizes, or with the number 1, the rows (ONNX ignores `keepdims` beside a number, but PyTorch writes `unbind` so and ONNX Runtime runs
/// it as meant); with another number pieces of that length (the last one may be shorter), with a list pieces of these lengths.
fn split(emit: &mut Emit, facts: &Facts, x: Value, sizes: Option<Value>, op: &Operator) -> Result<Option<Sequence>> {
    let Ok(shape) = emit.shape(x) else { return Ok(None) };
    let axis = normal_axis(op.attrs.int("axis", 0)?, shape.len())?;
    let Some(sizes) = sizes else {
        return Ok(Some(Sequence::Rows { x, axis, keep: op.attrs.flag("keepdims", true)? }));
    };
    let Some(tensor) = known(emit, facts, sizes) else {
        let Ok(shape) = emit.shape(sizes) else { return Ok(None) };
        return match shape[..] {
            [] => Ok(Some(Sequence::Pieces { x, axis, length: sizes })),
            [Dim::Known(count @ 1..)] if count <= MOST as i64 => {
                let split = Operator::onnx("Split", Attributes::new().with("axis", axis as i64));
                emit.node(split, &[Some(x), Some(sizes)], count as usize).map(|list| Some(Sequence::Of(list)))
            }
            [_] => Ok(Some(Sequence::Counted(sizes))),
            _ => Ok(None),
        };
    };
    let keep = op.attrs.flag("keepdims", true)?;
    if tensor.rank() == 0 && tensor.to_i64s()? == [1] {
        return Ok(Some(Sequence::Rows { x, axis, keep }));
    }
    let numbers = tensor.to_i64s()?;
    let lengths = match (tensor.rank(), shape[axis].known(), numbers.first()) {
        (0, Some(length), Some(&piece)) => {
            ensure!(piece > 0 && length >= 0 && length / piece < MOST as i64, "pieces of {piece} of {length} entries");
            (0..length).step_by(piece as usize).map(|start| piece.min(length - start)).collect()
        }
        (0, ..) => return Ok(Some(Sequence::Pieces { x, axis, length: sizes })),
        _ => numbers,
    };
    pieces(emit, x, axis, &lengths).map(|list| Some(Sequence::Of(list)))
}

fn pieces(emit: &mut Emit, x: Value, axis: usize, lengths: &[i64]) -> Result<Vec<Value>> {
    ensure!(lengths.len() <= MOST, "a sequence of {} tensors", lengths.len());
    if let ([length], Some(Dim::Known(known))) = (lengths, emit.shape(x)?.get(axis))
        && length == known
    {
        return Ok(vec![x]);
    }
    let sizes = emit.ints(lengths);
    let split = Operator::onnx("Split", Attributes::new().with("axis", axis as i64));
    emit.node(split, &[Some(x), Some(sizes)], lengths.len())
}

/// The members one by one, if their number is known.
fn members(emit: &mut Emit, sequence: &Sequence) -> Result<Option<Vec<Value>>> {
    match sequence {
        Sequence::Of(list) => Ok(Some(list.clone())),
        Sequence::Pieces { .. } | Sequence::Counted(_) => Ok(None),
        Sequence::Rows { x, axis, keep } => {
            let length = emit.shape(*x)?.get(*axis).and_then(Dim::known).and_then(|n| usize::try_from(n).ok());
            match length.filter(|n| *n <= MOST) {
                Some(count) if *keep => pieces(emit, *x, *axis, &vec![1; count]).map(Some),
                Some(count) => body::unstack(emit, *x, *axis, count).map(Some),
                None => Ok(None),
            }
        }
    }
}

/// The elements of a value, where the graph says them.
fn known(emit: &Emit, facts: &Facts, value: Value) -> Option<Tensor> {
    emit.graph.constant(value).or_else(|| facts.get(value)?.tensor.clone())
}

/// A known position below `limit`, negative ones counted from `end`.
fn position(facts: &Facts, emit: &Emit, value: Value, limit: usize, end: usize) -> Result<Option<usize>> {
    let Some(tensor) = known(emit, facts, value) else { return Ok(None) };
    let [index] = tensor.to_i64s()?[..] else { return Ok(None) };
    let place = if index < 0 { index + end as i64 } else { index };
    ensure!((0..limit as i64).contains(&place), "position {index} in a sequence of {end} tensors");
    Ok(Some(place as usize))
}

/// `ConcatFromSequence`: side by side along an axis, or along a new one.
fn join(emit: &mut Emit, op: &Operator, sequence: &Sequence) -> Result<Option<Value>> {
    let new = op.attrs.flag("new_axis", false)?;
    if let Sequence::Rows { x, axis, keep } = sequence {
        let whole = normal_axis(op.attrs.int("axis", 0)?, emit.rank(*x)?)? == *axis;
        if whole && new != *keep {
            return Ok(Some(*x));
        }
    }
    let Some(list) = members(emit, sequence)?.filter(|list| !list.is_empty()) else { return Ok(None) };
    let Ok(rank) = emit.rank(list[0]) else { return Ok(None) };
    let axis = normal_axis(op.attrs.int("axis", 0)?, rank + usize::from(new))?;
    let parts = if new {
        list.into_iter().map(|value| emit.unsqueeze(value, &[axis])).collect::<Result<Vec<_>>>()?
    } else {
        list
    };
    emit.op("Concat", &parts, Attributes::new().with("axis", axis as i64)).map(Some)
}
