//! The rules of `simplify`, one row each: which operators it looks at, and what may stand for output 0 instead.

use sartor_ir::ops::Emit;
use sartor_ir::{Attribute, Attributes, Dim, NodeId, Operator, Result, Tensor, Type, Value};

/// The value that replaces output 0 of the node.
pub struct Found(pub Value);

/// A directional rule.
pub struct Rule {
    /// What it does, for messages.
    pub name: &'static str,
    /// The operators (of ONNX's own domain) that it looks at.
    pub ops: &'static [&'static str],
    /// `None` if it does not apply. It may add nodes only if it does.
    pub apply: fn(&mut Emit, NodeId) -> Result<Option<Found>>,
}

/// All rules.
pub const RULES: &[Rule] = &[
    Rule { name: "a constant node is a constant", ops: &["Constant"], apply: constant_node },
    Rule { name: "identity", ops: &["Identity"], apply: |e, id| Ok(input(e, id, 0).map(Found)) },
    Rule { name: "one operand is itself", ops: &["Concat", "Sum", "Max", "Min", "Mean"], apply: single_operand },
    Rule { name: "dropout that is off", ops: &["Dropout"], apply: dropout },
    Rule { name: "cast to the same type", ops: &["Cast", "CastLike"], apply: cast_to_same },
    Rule { name: "a permutation that keeps the order", ops: &["Transpose"], apply: trivial_transpose },
    Rule { name: "two permutations are one", ops: &["Transpose"], apply: double_transpose },
    Rule { name: "a shape that is kept", ops: &["Reshape", "Expand", "Flatten", "Squeeze"], apply: same_shape },
    Rule { name: "only the last reshape counts", ops: &["Reshape"], apply: double_reshape },
    Rule { name: "squeeze undoes unsqueeze", ops: &["Squeeze"], apply: |e, id| undone_by(e, id, "Unsqueeze") },
    Rule { name: "unsqueeze undoes squeeze", ops: &["Unsqueeze"], apply: |e, id| undone_by(e, id, "Squeeze") },
    Rule { name: "a slice of everything", ops: &["Slice"], apply: slice_of_everything },
    Rule { name: "times one", ops: &["Mul"], apply: |e, id| neutral(e, id, 1.0, true) },
    Rule { name: "over one, to the power of one", ops: &["Div", "Pow"], apply: |e, id| neutral(e, id, 1.0, false) },
    Rule { name: "plus zero", ops: &["Add"], apply: |e, id| neutral(e, id, 0.0, true) },
    Rule { name: "minus zero", ops: &["Sub"], apply: |e, id| neutral(e, id, 0.0, false) },
    Rule { name: "a square is a product", ops: &["Pow"], apply: square },
    Rule { name: "a sign twice", ops: &["Neg"], apply: |e, id| twice(e, id, "Neg") },
    Rule { name: "a negation twice", ops: &["Not"], apply: |e, id| twice(e, id, "Not") },
    Rule { name: "the shape of something static", ops: &["Shape"], apply: static_shape },
];

// ---- looking ------------------------------------------------------------------------------------------------------

fn input(emit: &Emit, id: NodeId, slot: usize) -> Option<Value> {
    emit.graph.input(id, slot)
}
fn operator<'a>(emit: &'a Emit, id: NodeId) -> Option<&'a Operator> {
    emit.graph.node(id).op()
}
fn shape_of<'a>(emit: &'a Emit, value: Value) -> Option<&'a [Dim]> {
    emit.graph.ty(value).and_then(Type::shape)
}
fn output(id: NodeId) -> Value {
    Value { node: id, slot: 0 }
}
/// Whether two values certainly have one type: the element type, and each axis known or the same expression.
fn same_type(emit: &Emit, a: Value, b: Value) -> bool {
    let dtype = |v| emit.graph.ty(v).and_then(Type::dtype);
    dtype(a).is_some() && dtype(a) == dtype(b) && emit.same_shape(a, b)
}
/// The integers of a constant input; a missing one is no constant.
fn constant_ints(emit: &Emit, id: NodeId, slot: usize) -> Option<Vec<i64>> {
    emit.graph.constant(input(emit, id, slot)?)?.to_i64s().ok()
}
/// The node of this operator that makes a value.
fn made_by(emit: &Emit, value: Value, name: &str) -> Option<NodeId> {
    (value.slot == 0 && emit.graph.node(value.node).is(name)).then_some(value.node)
}

// ---- rules --------------------------------------------------------------------------------------------------------

/// `Constant <value = t> ()` → the constant `t`.
fn constant_node(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let Some(op) = operator(emit, id) else { return Ok(None) };
    let Some((_, attr)) = op.attrs.0.first() else { return Ok(None) };
    let tensor = match attr {
        Attribute::Tensor(tensor) => tensor.clone(),
        Attribute::Int(v) => Tensor::scalar(*v),
        Attribute::Float(v) => Tensor::scalar(*v),
        Attribute::Ints(v) => Tensor::from_i64s(v),
        Attribute::Floats(v) => Tensor::from_vec([v.len()], v.clone()),
        _ => return Ok(None),
    };
    let hint = emit.graph.value_name(output(id)).to_string();
    Ok(Some(Found(emit.graph.add_const(&hint, tensor))))
}

/// `Concat (x)` → `x`
fn single_operand(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let single = emit.graph.node(id).formal_inputs() == 1;
    Ok(input(emit, id, 0).filter(|_| single).map(Found))
}

/// `Dropout (x)` without training mode and with an unused mask → `x`
fn dropout(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let off = match input(emit, id, 2) {
        None => true,
        Some(mode) => emit.graph.constant(mode).is_some_and(|t| t.to_i64s().is_ok_and(|v| v == [0])),
    };
    let mask_unused = emit.graph.node_outputs(id).skip(1).all(|mask| emit.graph.use_count(mask) == 0);
    Ok(input(emit, id, 0).filter(|_| off && mask_unused).map(Found))
}

/// `Cast <to = T> (x)` with `x` of type `T` → `x`
fn cast_to_same(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let dtype = |v: Value| emit.graph.ty(v).and_then(Type::dtype);
    let Some(x) = input(emit, id, 0) else { return Ok(None) };
    Ok((dtype(x).is_some() && dtype(x) == dtype(output(id))).then_some(Found(x)))
}

fn permutation(emit: &Emit, id: NodeId) -> Result<Option<Vec<i64>>> {
    let Some(op) = operator(emit, id) else { return Ok(None) };
    let rank = input(emit, id, 0).and_then(|x| shape_of(emit, x)).map(<[Dim]>::len);
    let reversed = rank.map(|rank| (0..rank as i64).rev().collect());
    Ok(op.attrs.get_ints("perm")?.map(<[i64]>::to_vec).or(reversed))
}

/// `Transpose <perm = [0, 1, 2]> (x)` → `x`
fn trivial_transpose(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let Some(perm) = permutation(emit, id)? else { return Ok(None) };
    let trivial = perm.iter().enumerate().all(|(i, &p)| p == i as i64);
    Ok(input(emit, id, 0).filter(|_| trivial).map(Found))
}

/// `Transpose <perm = q> (Transpose <perm = p> (x))` → `Transpose <perm = p∘q> (x)`
fn double_transpose(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let Some(first) = input(emit, id, 0).and_then(|v| made_by(emit, v, "Transpose")) else { return Ok(None) };
    let (Some(p), Some(q)) = (permutation(emit, first)?, permutation(emit, id)?) else { return Ok(None) };
    let both: Option<Vec<i64>> = q.iter().map(|&i| p.get(usize::try_from(i).ok()?).copied()).collect();
    let (Some(both), Some(x)) = (both, input(emit, first, 0)) else { return Ok(None) };
    emit.op("Transpose", &[x], Attributes::new().with("perm", both)).map(|v| Some(Found(v)))
}

/// `Reshape (x, s)`, `Expand (x, s)` to the shape that `x` has → `x`
fn same_shape(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let Some(x) = input(emit, id, 0) else { return Ok(None) };
    Ok(same_type(emit, x, output(id)).then_some(Found(x)))
}

/// `Reshape (Reshape (x, s), t)` → `Reshape (x, t)`, where `t` does not refer to `s`
fn double_reshape(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let Some(first) = input(emit, id, 0).and_then(|v| made_by(emit, v, "Reshape")) else { return Ok(None) };
    let Some(op) = operator(emit, id).cloned() else { return Ok(None) };
    let absolute = op.attrs.flag("allowzero", false)? || constant_ints(emit, id, 1).is_some_and(|t| !t.contains(&0));
    let (Some(x), Some(target)) = (input(emit, first, 0), input(emit, id, 1)) else { return Ok(None) };
    if !absolute {
        return Ok(None);
    }
    let new = emit.op("Reshape", &[x, target], op.attrs)?;
    Ok(Some(Found(new)))
}

/// `Squeeze (Unsqueeze (x, a), a)` → `x`, and the other way round
fn undone_by(emit: &mut Emit, id: NodeId, other: &str) -> Result<Option<Found>> {
    let Some(first) = input(emit, id, 0).and_then(|v| made_by(emit, v, other)) else { return Ok(None) };
    let Some(x) = input(emit, first, 0) else { return Ok(None) };
    let (Some(a), Some(b)) = (constant_ints(emit, first, 1), constant_ints(emit, id, 1)) else { return Ok(None) };
    // Of both, the larger rank counts negative axes; it is the same for both, so equal numbers mean equal axes.
    let sorted = |mut axes: Vec<i64>| {
        axes.sort_unstable();
        axes
    };
    Ok((sorted(a) == sorted(b)).then_some(Found(x)))
}

/// `Slice (x, 0, ∞)` → `x`
fn slice_of_everything(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let Some(x) = input(emit, id, 0) else { return Ok(None) };
    let (Some(starts), Some(ends)) = (constant_ints(emit, id, 1), constant_ints(emit, id, 2)) else { return Ok(None) };
    let steps = match input(emit, id, 4) {
        None => vec![1; starts.len()],
        Some(_) => constant_ints(emit, id, 4).unwrap_or_default(),
    };
    let plain = starts.iter().all(|&s| s == 0) && steps.len() == starts.len() && steps.iter().all(|&s| s == 1);
    let unbounded = ends.iter().all(|&e| e >= i64::from(i32::MAX));
    Ok((plain && (unbounded || same_type(emit, x, output(id)))).then_some(Found(x)))
}

/// `x · 1`, `x + 0`, …: one operand is a constant full of the neutral element and does not stretch the other.
fn neutral(emit: &mut Emit, id: NodeId, element: f64, either_side: bool) -> Result<Option<Found>> {
    let (Some(a), Some(b)) = (input(emit, id, 0), input(emit, id, 1)) else { return Ok(None) };
    let full = |v: Value| {
        let constant = emit.graph.constant(v).filter(|t| t.len() <= 4096);
        constant.and_then(|t| t.to_f64s().ok()).is_some_and(|t| !t.is_empty() && t.iter().all(|&x| x == element))
    };
    let keeps = |x: Value| same_type(emit, x, output(id));
    if full(b) && keeps(a) {
        return Ok(Some(Found(a)));
    }
    Ok((either_side && full(a) && keeps(b)).then_some(Found(b)))
}

/// `Pow (x, 2)` → `Mul (x, x)`, for floats
fn square(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let (Some(x), Some(exponent)) = (input(emit, id, 0), input(emit, id, 1)) else { return Ok(None) };
    let two = emit.graph.constant(exponent).filter(|t| t.len() == 1).and_then(|t| t.to_f64s().ok());
    let float = emit.graph.ty(x).and_then(Type::dtype).is_some_and(|d| d.is_float());
    if two != Some(vec![2.0]) || !float || !same_type(emit, x, output(id)) {
        return Ok(None);
    }
    emit.mul(x, x).map(|v| Some(Found(v)))
}

/// `Neg (Neg (x))` → `x`
fn twice(emit: &mut Emit, id: NodeId, name: &str) -> Result<Option<Found>> {
    let first = input(emit, id, 0).and_then(|v| made_by(emit, v, name));
    Ok(first.and_then(|first| input(emit, first, 0)).map(Found))
}

/// `Shape (x)` with numbers for all axes asked for → a constant
fn static_shape(emit: &mut Emit, id: NodeId) -> Result<Option<Found>> {
    let Some(op) = operator(emit, id) else { return Ok(None) };
    let (start, end) = (op.attrs.int("start", 0)?, op.attrs.get_int("end")?);
    let Some(shape) = input(emit, id, 0).and_then(|x| shape_of(emit, x)) else { return Ok(None) };
    let rank = shape.len() as i64;
    let clamp = |axis: i64| (if axis < 0 { axis.saturating_add(rank) } else { axis }).clamp(0, rank) as usize;
    let (start, end) = (clamp(start), clamp(end.unwrap_or(rank)));
    let dims: Option<Vec<i64>> = shape[start..end.max(start)].iter().map(Dim::known).collect();
    let Some(dims) = dims else { return Ok(None) };
    let hint = emit.graph.value_name(output(id)).to_string();
    Ok(Some(Found(emit.graph.add_const(&hint, Tensor::from_i64s(&dims)))))
}
