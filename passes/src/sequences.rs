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
use sartor_ir::ops::{Emit, body, normal_axis, sequence};
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
        let has = |graph: &Graph| graph.node_ids().any(|id| graph.node(id).op().is_some_and(sequence::concerns));
        if !model.graphs().any(has) {
            return Ok(Changed::No);
        }
        require_internal_opset(model)?;
        edit_typed_graphs(model, resolve).map(Changed::from)
    }
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
    loop {
        let facts = match infer::infer_graph(graph, opset) {
            Err(_) if changed => {
                // PyTorch declares one axis too many behind `unbind`: what follows is inferred from the inputs alone.
                forget_types(graph);
                infer::infer_graph(graph, opset)?
            }
            found => found?,
        };
        if !(Round { emit: Emit::new(graph, opset), facts, known: HashMap::new() }.run()?) {
            return Ok(changed);
        }
        changed = true;
    }
}

fn forget_types(graph: &mut Graph) {
    for id in graph.topo_ops() {
        for output in graph.node_outputs(id) {
            graph.set_ty(output, None);
        }
    }
}

/// One sweep over a graph whose types are inferred.
struct Round<'g> {
    emit: Emit<'g>,
    facts: Facts,
    known: HashMap<Value, Sequence>,
}

impl Round<'_> {
    /// Whether a reader was replaced.
    fn run(mut self) -> Result<bool> {
        let mut changed = false;
        for id in self.emit.graph.topo_ops() {
            let Some(op) = self.emit.graph.node(id).op().filter(|op| op.domain.is_empty()).cloned() else { continue };
            let output = Value { node: id, slot: 0 };
            if let Some(sequence) = self.made(id, &op)? {
                self.known.insert(output, sequence);
            } else if let Some(tensor) = self.read(id, &op)? {
                self.emit.graph.substitute(output, tensor);
                changed = true;
            }
        }
        self.emit.graph.remove_dead();
        Ok(changed)
    }
    fn sequence(&self, id: NodeId) -> Option<Sequence> {
        self.known.get(&self.emit.graph.input(id, 0)?).cloned()
    }
    /// The sequence that a node makes.
    fn made(&mut self, id: NodeId, op: &Operator) -> Result<Option<Sequence>> {
        match op.name.as_str() {
            "SequenceEmpty" => Ok(Some(Sequence::Of(Vec::new()))),
            "SequenceConstruct" => {
                let inputs: Option<Vec<Value>> = self.emit.graph.node_inputs(id).into_iter().collect();
                Ok(inputs.map(Sequence::Of))
            }
            "Identity" => Ok(self.sequence(id)),
            "SplitToSequence" => self.split(id, op),
            "SequenceInsert" | "SequenceErase" => self.edited(id, op),
            _ => Ok(None),
        }
    }
    /// One tensor more, or one less; by default the last one.
    fn edited(&mut self, id: NodeId, op: &Operator) -> Result<Option<Sequence>> {
        let Some(before) = self.sequence(id) else { return Ok(None) };
        let Some(mut list) = members(&mut self.emit, &before)? else { return Ok(None) };
        let (inserts, count) = (op.name == "SequenceInsert", list.len());
        ensure!(inserts || count > 0, "nothing can be taken out of an empty sequence");
        let (slot, limit) = if inserts { (2, count + 1) } else { (1, count) };
        let place = match self.emit.graph.input(id, slot) {
            None => Some(limit - 1),
            Some(value) => self.position(value, limit, count)?,
        };
        let Some(place) = place else { return Ok(None) };
        match (inserts, self.emit.graph.input(id, 1)) {
            (true, Some(tensor)) => list.insert(place, tensor),
            (true, None) => return Ok(None),
            (false, _) => drop(list.remove(place)),
        }
        Ok(Some(Sequence::Of(list)))
    }
    /// `SplitToSequence`: without sizes, or with the number 1, the rows (ONNX ignores `keepdims` beside a number, but PyTorch writes `unbind` so and ONNX Runtime
    /// runs it as meant); with another number pieces of that length (the last one may be shorter), with a list pieces of these lengths.
    fn split(&mut self, id: NodeId, op: &Operator) -> Result<Option<Sequence>> {
        let Some(x) = self.emit.graph.input(id, 0) else { return Ok(None) };
        let Ok(shape) = self.emit.shape(x) else { return Ok(None) };
        let axis = normal_axis(op.attrs.int("axis", 0)?, shape.len())?;
        let rows = Sequence::Rows { x, axis, keep: op.attrs.flag("keepdims", true)? };
        let Some(sizes) = self.emit.graph.input(id, 1) else { return Ok(Some(rows)) };
        let Some(tensor) = self.elements(sizes) else { return self.split_openly(x, axis, sizes) };
        let numbers = tensor.to_i64s()?;
        let lengths = match (tensor.rank(), &numbers[..], shape[axis].known()) {
            (0, [1], _) => return Ok(Some(rows)),
            (0, &[piece], Some(length)) => {
                ensure!(
                    piece > 0 && length >= 0 && length / piece < MOST as i64,
                    "pieces of {piece} of {length} entries"
                );
                (0..length).step_by(piece as usize).map(|start| piece.min(length - start)).collect()
            }
            (0, ..) => return Ok(Some(Sequence::Pieces { x, axis, length: sizes })),
            _ => numbers,
        };
        pieces(&mut self.emit, x, axis, &lengths).map(|list| Some(Sequence::Of(list)))
    }
    /// The same by sizes that only a run knows.
    fn split_openly(&mut self, x: Value, axis: usize, sizes: Value) -> Result<Option<Sequence>> {
        let Ok(shape) = self.emit.shape(sizes) else { return Ok(None) };
        match shape[..] {
            [] => Ok(Some(Sequence::Pieces { x, axis, length: sizes })),
            [Dim::Known(count @ 1..)] if count <= MOST as i64 => {
                cut(&mut self.emit, x, axis, sizes, count as usize).map(|list| Some(Sequence::Of(list)))
            }
            [_] => Ok(Some(Sequence::Counted(sizes))),
            _ => Ok(None),
        }
    }
    /// The tensor that a node reads from a sequence.
    fn read(&mut self, id: NodeId, op: &Operator) -> Result<Option<Value>> {
        let Some(sequence) = self.sequence(id) else { return Ok(None) };
        match op.name.as_str() {
            "SequenceLength" => length(&mut self.emit, &sequence).map(Some),
            "SequenceAt" => match self.emit.graph.input(id, 1) {
                Some(index) => self.member(&sequence, index),
                None => Ok(None),
            },
            "ConcatFromSequence" => join(&mut self.emit, op, &sequence),
            _ => Ok(None),
        }
    }
    fn member(&mut self, sequence: &Sequence, index: Value) -> Result<Option<Value>> {
        match *sequence {
            Sequence::Of(ref list) => Ok(self.position(index, list.len(), list.len())?.map(|place| list[place])),
            Sequence::Rows { x, axis, keep } => {
                let index = match (keep, self.emit.rank(index)) {
                    (true, _) => self.emit.reshape(index, &[1])?,
                    (false, Ok(0)) => index,
                    (false, _) => self.emit.reshape(index, &[])?,
                };
                self.emit.op("Gather", &[x, index], Attributes::new().with("axis", axis as i64)).map(Some)
            }
            Sequence::Pieces { x, axis, length } => match self.number(index)? {
                Some(index) => piece(&mut self.emit, (x, axis, length), index).map(Some),
                None => Ok(None),
            },
            Sequence::Counted(_) => Ok(None),
        }
    }
    /// The elements of a value, where the graph says them.
    fn elements(&self, value: Value) -> Option<Tensor> {
        self.emit.graph.constant(value).or_else(|| self.facts.get(value)?.tensor.clone())
    }
    fn number(&self, value: Value) -> Result<Option<i64>> {
        let Some(tensor) = self.elements(value) else { return Ok(None) };
        Ok(match tensor.to_i64s()?[..] {
            [number] => Some(number),
            _ => None,
        })
    }
    /// A known position below `limit`, negative ones counted from `end`.
    fn position(&self, value: Value, limit: usize, end: usize) -> Result<Option<usize>> {
        let Some(index) = self.number(value)? else { return Ok(None) };
        let place = if index < 0 { index + end as i64 } else { index };
        ensure!((0..limit as i64).contains(&place), "position {index} in a sequence of {end} tensors");
        Ok(Some(place as usize))
    }
}

/// How many tensors a sequence holds.
fn length(emit: &mut Emit, sequence: &Sequence) -> Result<Value> {
    match *sequence {
        Sequence::Of(ref list) => Ok(emit.constant(Tensor::scalar(list.len() as i64))),
        Sequence::Rows { x, axis, .. } => emit.length(x, axis),
        Sequence::Pieces { x, axis, length } => number_of_pieces(emit, x, axis, length),
        Sequence::Counted(sizes) => emit.length(sizes, 0),
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

/// The piece at a position, negative ones counted from the end.
fn piece(emit: &mut Emit, (x, axis, length): (Value, usize, Value), index: i64) -> Result<Value> {
    let mut place = emit.constant(Tensor::scalar(index));
    if index < 0 {
        let count = number_of_pieces(emit, x, axis, length)?;
        place = emit.add(count, place)?;
    }
    let length = emit.cast(length, DType::I64)?;
    let start = emit.mul(place, length)?;
    let end = emit.add(start, length)?;
    let (start, end, axes) = (emit.reshape(start, &[1])?, emit.reshape(end, &[1])?, emit.ints(&[axis as i64]));
    emit.op("Slice", &[x, start, end, axes], Attributes::new())
}

fn pieces(emit: &mut Emit, x: Value, axis: usize, lengths: &[i64]) -> Result<Vec<Value>> {
    ensure!(lengths.len() <= MOST, "a sequence of {} tensors", lengths.len());
    if let ([length], Some(Dim::Known(known))) = (lengths, emit.shape(x)?.get(axis))
        && length == known
    {
        return Ok(vec![x]);
    }
    let sizes = emit.ints(lengths);
    cut(emit, x, axis, sizes, lengths.len())
}

fn cut(emit: &mut Emit, x: Value, axis: usize, sizes: Value, count: usize) -> Result<Vec<Value>> {
    let split = Operator::onnx("Split", Attributes::new().with("axis", axis as i64));
    emit.node(split, &[Some(x), Some(sizes)], count)
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
