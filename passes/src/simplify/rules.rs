//! The rules of `simplify`, one row each: which operators it looks at, and what may stand for output 0 instead, or why nothing does.

use sartor_ir::ops::Emit;
use sartor_ir::{Attribute, Attributes, Dim, NodeId, Operator, Result, Tensor, Type, Value};

/// The value that replaces output 0 of a node, or why the rule does not apply.
pub type Verdict = std::result::Result<Value, &'static str>;

/// A directional rule.
pub struct Rule {
    /// What it does, for messages.
    pub name: &'static str,
    /// The operators (of ONNX's own domain) that it looks at.
    pub ops: &'static [&'static str],
    /// It may add nodes only if it applies.
    pub apply: fn(&mut Emit, NodeId) -> Result<Verdict>,
}

/// All rules.
pub const RULES: &[Rule] = &[
    Rule { name: "a constant node is a constant", ops: &["Constant"], apply: constant_node },
    Rule { name: "identity", ops: &["Identity"], apply: |e, id| Ok(first(e, id)) },
    Rule { name: "one operand is itself", ops: &["Concat", "Sum", "Max", "Min", "Mean"], apply: single_operand },
    Rule { name: "dropout that is off", ops: &["Dropout"], apply: dropout },
    Rule { name: "cast to the same type", ops: &["Cast", "CastLike"], apply: cast_to_same },
    Rule { name: "a permutation that keeps the order", ops: &["Transpose"], apply: trivial_transpose },
    Rule { name: "two permutations are one", ops: &["Transpose"], apply: double_transpose },
    Rule { name: "a shape that is kept", ops: &["Reshape", "Expand", "Flatten", "Squeeze"], apply: same_shape },
    Rule { name: "only the last reshape counts", ops: &["Reshape"], apply: double_reshape },
    Rule { name: "a permutation between reshapes", ops: &["Reshape"], apply: permuted_between },
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
/// The first input.
fn first(emit: &Emit, id: NodeId) -> Verdict {
    input(emit, id, 0).ok_or("its first input is left out")
}
fn no(why: &'static str) -> Result<Verdict> {
    Ok(Err(why))
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
fn constant_node(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    let attr = operator(emit, id).and_then(|op| op.attrs.0.first());
    let tensor = match attr {
        Some((_, Attribute::Tensor(tensor))) => tensor.clone(),
        Some((_, Attribute::Int(v))) => Tensor::scalar(*v),
        Some((_, Attribute::Float(v))) => Tensor::scalar(*v),
        Some((_, Attribute::Ints(v))) => Tensor::from_i64s(v),
        Some((_, Attribute::Floats(v))) => Tensor::from_vec([v.len()], v.clone()),
        _ => return no("its value is no tensor of numbers"),
    };
    let hint = emit.graph.value_name(output(id)).to_string();
    Ok(Ok(emit.graph.add_const(&hint, tensor)))
}

/// `Concat (x)` → `x`
fn single_operand(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    if emit.graph.node(id).formal_inputs() != 1 {
        return no("it has several operands");
    }
    Ok(first(emit, id))
}

/// `Dropout (x)` without training mode and with an unused mask → `x`
fn dropout(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    let off = match input(emit, id, 2) {
        None => true,
        Some(mode) => emit.graph.constant(mode).is_some_and(|t| t.to_i64s().is_ok_and(|v| v == [0])),
    };
    if !off {
        return no("its training mode is on, or no constant");
    }
    if emit.graph.node_outputs(id).skip(1).any(|mask| emit.graph.use_count(mask) > 0) {
        return no("its mask is read");
    }
    Ok(first(emit, id))
}

/// `Cast <to = T> (x)` with `x` of type `T` → `x`
fn cast_to_same(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    let dtype = |v: Value| emit.graph.ty(v).and_then(Type::dtype);
    let x = first(emit, id);
    match x.ok().and_then(dtype) {
        None => no("the type of its operand is not known"),
        ty if ty != dtype(output(id)) => no("its operand has another type"),
        _ => Ok(x),
    }
}

fn permutation(emit: &Emit, id: NodeId) -> Result<std::result::Result<Vec<i64>, &'static str>> {
    let Some(op) = operator(emit, id) else { return Ok(Err("it is no operator")) };
    let rank = input(emit, id, 0).and_then(|x| shape_of(emit, x)).map(<[Dim]>::len);
    let reversed = rank.map(|rank| (0..rank as i64).rev().collect());
    let perm = op.attrs.get_ints("perm")?.map(<[i64]>::to_vec).or(reversed);
    Ok(perm.ok_or("it has no permutation, and the rank of its operand is not known"))
}

/// `Transpose <perm = [0, 1, 2]> (x)` → `x`
fn trivial_transpose(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    match permutation(emit, id)? {
        Err(why) => no(why),
        Ok(perm) if perm.iter().enumerate().any(|(i, &p)| p != i as i64) => no("it moves an axis"),
        Ok(_) => Ok(first(emit, id)),
    }
}

/// `Transpose <perm = q> (Transpose <perm = p> (x))` → `Transpose <perm = p∘q> (x)`
fn double_transpose(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    let Some(inner) = input(emit, id, 0).and_then(|v| made_by(emit, v, "Transpose")) else {
        return no("its operand is made by no Transpose");
    };
    let (p, q) = match (permutation(emit, inner)?, permutation(emit, id)?) {
        (Ok(p), Ok(q)) => (p, q),
        (Err(why), _) | (_, Err(why)) => return no(why),
    };
    let both: Option<Vec<i64>> = q.iter().map(|&i| p.get(usize::try_from(i).ok()?).copied()).collect();
    let (Some(both), Some(x)) = (both, input(emit, inner, 0)) else { return no("the permutations do not fit") };
    emit.op("Transpose", &[x], Attributes::new().with("perm", both)).map(Ok)
}

/// `Reshape (x, s)`, `Expand (x, s)` to the shape that `x` has → `x`
fn same_shape(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    match first(emit, id) {
        Ok(x) if !same_type(emit, x, output(id)) => no("the shape changes, or it is not known that it does not"),
        verdict => Ok(verdict),
    }
}

/// `Reshape (Reshape (x, s), t)` → `Reshape (x, t)`, where `t` does not refer to `s`
fn double_reshape(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    let Some(inner) = input(emit, id, 0).and_then(|v| made_by(emit, v, "Reshape")) else {
        return no("its operand is made by no Reshape");
    };
    let Some(op) = operator(emit, id).cloned() else { return no("it is no operator") };
    let absolute = op.attrs.flag("allowzero", false)? || constant_ints(emit, id, 1).is_some_and(|t| !t.contains(&0));
    if !absolute {
        return no("its target may refer to an axis of its operand (0), or is no constant");
    }
    let (Some(x), Some(target)) = (input(emit, inner, 0), input(emit, id, 1)) else {
        return no("an input is left out");
    };
    emit.op("Reshape", &[x, target], op.attrs).map(Ok)
}

/// `Reshape (Transpose <perm = [0, 2, 1]> (Reshape (x, [a·b, m, n])), [a, b, n, m])` → `Transpose <perm = [0, 1, 3, 2]> (x)`, where `x` is `[a, b, m, n]`: the axes that were one
/// meanwhile stay where they are. PyTorch's newer exporter writes the transposed keys of attentions so.
fn permuted_between(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    let Some(inner) = input(emit, id, 0).and_then(|v| made_by(emit, v, "Transpose")) else {
        return no("its operand is made by no Transpose");
    };
    let Some(first) = input(emit, inner, 0).and_then(|v| made_by(emit, v, "Reshape")) else {
        return no("what is permuted is made by no Reshape");
    };
    let perm = match permutation(emit, inner)? {
        Ok(perm) => perm,
        Err(why) => return no(why),
    };
    let Some(x) = input(emit, first, 0) else { return no("an input is left out") };
    let shapes = [x, output(first), output(inner), output(id)].map(|value| shape_of(emit, value));
    let [Some(start), Some(merged), Some(permuted), Some(end)] = shapes else { return no("a shape is not known") };
    let Some(more) = (start.len() + 1).checked_sub(merged.len()).filter(|&more| more > 1) else {
        return no("no axes are merged");
    };
    let known = |dims: &[Dim]| !dims.contains(&Dim::Unknown);
    let merges = perm.first() == Some(&0) && start[more..] == merged[1..] && start.len() == end.len();
    if !merges || end[..more] != start[..more] || end[more..] != permuted[1..] || !known(start) || !known(end) {
        return no("other axes are merged or split, or it is not known that they are not");
    }
    let kept = (0..more as i64).chain(perm[1..].iter().map(|&axis| axis + more as i64 - 1));
    let name = emit.graph.node(id).name.clone();
    let new = emit.op("Transpose", &[x], Attributes::new().with("perm", kept.collect::<Vec<_>>()))?;
    emit.graph.node_mut(new.node).name = name;
    Ok(Ok(new))
}

/// `Squeeze (Unsqueeze (x, a), a)` → `x`, and the other way round
fn undone_by(emit: &mut Emit, id: NodeId, other: &str) -> Result<Verdict> {
    let Some(inner) = input(emit, id, 0).and_then(|v| made_by(emit, v, other)) else {
        return no("its operand is not made by its opposite");
    };
    let (Some(a), Some(b)) = (constant_ints(emit, inner, 1), constant_ints(emit, id, 1)) else {
        return no("the axes are no constants");
    };
    // Of both, the larger rank counts negative axes; it is the same for both, so equal numbers mean equal axes.
    let sorted = |mut axes: Vec<i64>| {
        axes.sort_unstable();
        axes
    };
    if sorted(a) != sorted(b) {
        return no("the axes are others");
    }
    Ok(first(emit, inner))
}

/// `Slice (x, 0, ∞)` → `x`
fn slice_of_everything(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    let (Some(starts), Some(ends)) = (constant_ints(emit, id, 1), constant_ints(emit, id, 2)) else {
        return no("its bounds are no constants");
    };
    let steps = match input(emit, id, 4) {
        None => vec![1; starts.len()],
        Some(_) => constant_ints(emit, id, 4).unwrap_or_default(),
    };
    if starts.iter().any(|&s| s != 0) || steps.len() != starts.len() || steps.iter().any(|&s| s != 1) {
        return no("it starts after the first element, or its steps are not 1");
    }
    let unbounded = ends.iter().all(|&e| e >= i64::from(i32::MAX));
    match first(emit, id) {
        Ok(x) if !unbounded && !same_type(emit, x, output(id)) => no("it may end before the last element"),
        verdict => Ok(verdict),
    }
}

/// `x · 1`, `x + 0`, …: one operand is a constant full of the neutral element and does not stretch the other.
fn neutral(emit: &mut Emit, id: NodeId, element: f64, either_side: bool) -> Result<Verdict> {
    let (Some(a), Some(b)) = (input(emit, id, 0), input(emit, id, 1)) else { return no("an operand is left out") };
    let full = |v: Value| {
        let constant = emit.graph.constant(v).filter(|t| t.len() <= 4096);
        constant.and_then(|t| t.to_f64s().ok()).is_some_and(|t| !t.is_empty() && t.iter().all(|&x| x == element))
    };
    let keeps = |x: Value| same_type(emit, x, output(id));
    match (full(b), either_side && full(a)) {
        (true, _) if keeps(a) => Ok(Ok(a)),
        (_, true) if keeps(b) => Ok(Ok(b)),
        (false, false) => no("no operand is a constant of the neutral element"),
        _ => no("the neutral operand stretches the other, or it is not known that it does not"),
    }
}

/// `Pow (x, 2)` → `Mul (x, x)`, for floats
fn square(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    let (Some(x), Some(exponent)) = (input(emit, id, 0), input(emit, id, 1)) else {
        return no("an operand is left out");
    };
    let two = emit.graph.constant(exponent).filter(|t| t.len() == 1).and_then(|t| t.to_f64s().ok());
    let float = emit.graph.ty(x).and_then(Type::dtype).is_some_and(|d| d.is_float());
    if two != Some(vec![2.0]) {
        return no("its exponent is not the constant 2");
    }
    if !float || !same_type(emit, x, output(id)) {
        return no("its base is no floating-point tensor of the result's shape");
    }
    emit.mul(x, x).map(Ok)
}

/// `Neg (Neg (x))` → `x`
fn twice(emit: &mut Emit, id: NodeId, name: &str) -> Result<Verdict> {
    match input(emit, id, 0).and_then(|v| made_by(emit, v, name)) {
        Some(inner) => Ok(first(emit, inner)),
        None => no("its operand is not made by the same operator"),
    }
}

/// `Shape (x)` with numbers for all axes asked for → a constant
fn static_shape(emit: &mut Emit, id: NodeId) -> Result<Verdict> {
    let Some(op) = operator(emit, id) else { return no("it is no operator") };
    let (start, end) = (op.attrs.int("start", 0)?, op.attrs.get_int("end")?);
    let Some(shape) = input(emit, id, 0).and_then(|x| shape_of(emit, x)) else {
        return no("the rank of its operand is not known");
    };
    let rank = shape.len() as i64;
    let clamp = |axis: i64| (if axis < 0 { axis.saturating_add(rank) } else { axis }).clamp(0, rank) as usize;
    let (start, end) = (clamp(start), clamp(end.unwrap_or(rank)));
    let dims: Option<Vec<i64>> = shape[start..end.max(start)].iter().map(Dim::known).collect();
    let Some(dims) = dims else { return no("an axis of its operand is dynamic") };
    let hint = emit.graph.value_name(output(id)).to_string();
    Ok(Ok(emit.graph.add_const(&hint, Tensor::from_i64s(&dims))))
}
