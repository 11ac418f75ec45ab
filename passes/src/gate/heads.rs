//! Heads of attentions: channels that are gated in bundles.
//!
//! ```text
//! q, k, v = x · W + b, each                              [N, T, heads · width]
//!         → Reshape → Transpose                          [N, heads, T, width]
//! h = MatMul (Softmax (MatMul (q, kᵀ) …), v) → Transpose [N, T, heads, width]
//! y = Reshape (h) · Wo                                   [N, T, heads · width]
//! ```
//! Going back from the last product, the first `Reshape` is where an axis of heads and one of each head's channels become one: gates are per head, and multiply what is
//! merged there. Behind it no operator mixes heads: products of matrices keep all axes but the last two, `Softmax` all but its own. Where a `Reshape` makes two axes of
//! one, each head has `width` neighbours on the axis before; there, or before, are the products with weights.

use sartor_ir::{Dim, Graph, NodeId, Tensor, Type, Value};

/// Two axes that a `Reshape` makes one.
pub(super) struct Merged {
    /// What it reads.
    pub(super) value: Value,
    pub(super) heads: usize,
    pub(super) width: usize,
}

/// The heads that are merged into an axis of a value.
pub(super) fn merged(graph: &Graph, value: Value, axis: usize) -> Option<Merged> {
    let before = graph.input(value.node, 0).filter(|_| graph.node(value.node).is("Reshape"))?;
    let (heads, width) = split(graph, value, before, axis)?;
    (heads > 1 && width > 1).then_some(Merged { value: before, heads, width })
}

/// What a node reads if it makes of an axis two, of which the given one, of so many heads, is the first: the width of a head.
pub(super) fn unmerged(graph: &Graph, id: NodeId, axis: usize, heads: usize) -> Option<(Value, usize)> {
    let before = graph.input(id, 0).filter(|_| graph.node(id).is("Reshape"))?;
    let (first, width) = split(graph, before, Value { node: id, slot: 0 }, axis)?;
    (first == heads).then_some((before, width))
}

/// The lengths of the last two axes of `apart` that are the last axis of `whole`, this one; the others are the same.
fn split(graph: &Graph, whole: Value, apart: Value, axis: usize) -> Option<(usize, usize)> {
    let shape = |value: Value| graph.ty(value).and_then(Type::shape);
    let (whole, apart) = (shape(whole)?, shape(apart)?);
    let length = |dim: &Dim| dim.known().and_then(|n| usize::try_from(n).ok());
    let same = axis + 1 == whole.len() && axis + 2 == apart.len() && whole[..axis] == apart[..axis];
    if !same || whole.contains(&Dim::Unknown) {
        return None;
    }
    let (first, second) = (length(&apart[axis])?, length(&apart[axis + 1])?);
    (length(&whole[axis])? == first * second).then_some((first, second))
}

/// The operands of an operator that leaves heads on this axis apart, if it is one of attention's.
pub(super) fn apart(graph: &Graph, id: NodeId, axis: usize) -> Option<Vec<Value>> {
    let node = graph.node(id);
    let shape = |value: Value| graph.ty(value).and_then(Type::shape);
    let own = shape(Value { node: id, slot: 0 })?;
    if node.is("Softmax") {
        let last = node.op()?.attrs.int("axis", -1).ok()?;
        let last = if last < 0 { last + own.len() as i64 } else { last };
        return (last != axis as i64).then(|| graph.input(id, 0).into_iter().collect());
    }
    let operands: Vec<Value> = graph.node_inputs(id).into_iter().flatten().collect();
    let fits = |value: &Value| shape(*value).is_some_and(|s| s.len() == own.len() && s[axis] == own[axis]);
    (node.is("MatMul") && axis + 2 < own.len() && operands.iter().all(fits)).then_some(operands)
}

/// Whether a value is the same for all heads of an elementwise operator's result of this rank, which has them on this axis.
pub(crate) fn is_common(graph: &Graph, value: Value, rank: usize, axis: usize) -> bool {
    let Some(shape) = graph.ty(value).and_then(Type::shape) else { return false };
    match (shape.len() + axis).checked_sub(rank) {
        Some(own) => shape[own].known() == Some(1),
        None => true,
    }
}

/// Whether a node asks for a value's shape only to know other axes than this one.
pub(crate) fn asks_for_others(graph: &Graph, id: NodeId, axis: usize) -> bool {
    let shape = Value { node: id, slot: 0 };
    let rank = graph.input(id, 0).and_then(|data| graph.ty(data)).and_then(Type::rank).unwrap_or(0) as i64;
    let number =
        |reader: NodeId, slot: usize| graph.input(reader, slot).and_then(|v| graph.constant(v))?.to_i64s().ok();
    let other = |&(reader, slot): &(NodeId, usize)| {
        let from_front = |n: i64| if n < 0 { n + rank } else { n };
        let node = graph.node(reader);
        let asked = match (number(reader, 1), number(reader, 2)) {
            (Some(numbers), _) if node.is("Gather") => numbers.into_iter().map(from_front).collect(),
            (Some(from), Some(to)) if node.is("Slice") && from.len() == 1 && to.len() == 1 => {
                let forwards = graph.input(reader, 4).is_none() || number(reader, 4).is_some_and(|n| n == [1]);
                if !forwards {
                    return false;
                }
                (from_front(from[0]).max(0)..from_front(to[0]).min(rank)).collect()
            }
            _ => vec![axis as i64],
        };
        slot == 0 && !asked.contains(&(axis as i64))
    };
    let Some(op) = graph.node(id).op().filter(|op| op.is("Shape")) else { return false };
    // A part of the shape from the start: what is asked of it says nothing more.
    let (Ok(start), Ok(end)) = (op.attrs.int("start", 0), op.attrs.int("end", rank)) else { return false };
    let part = start..if end < 0 { end + rank } else { end };
    start >= 0
        && (!part.contains(&(axis as i64))
            || !graph.is_output(shape) && start == 0 && graph.uses(shape).iter().all(other))
}

/// Makes the shapes of a group's `Reshape`s constants that hold for any number of heads: those that split or merge this axis. What computed them may be left without a reader.
pub(crate) fn free(graph: &mut Graph, splits: &[(NodeId, usize)], merge: NodeId, axis: usize, width: usize) {
    let splits = splits.iter().map(|&(id, axis)| (id, axis, vec![-1, width as i64]));
    for (id, axis, last) in splits.chain([(merge, axis, vec![-1])]) {
        let shape: Vec<i64> = vec![0; axis].into_iter().chain(last).collect();
        let shape = graph.add_const(&format!("{}/heads", graph.node(id).name), Tensor::from_i64s(&shape));
        graph.set_input(id, 1, Some(shape));
        if let Some(op) = graph.node_mut(id).op_mut() {
            op.attrs.remove("allowzero");
        }
    }
}
