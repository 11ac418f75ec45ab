//! `Scan`: runs its body once for every place along an axis of its scan inputs. The body takes the carried values and
//! one slice of every scan input; it gives the next carried values and one slice of every scan output.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Scan.html>. Axes and directions are attributes, one entry per scan input or output. The
//! carried values keep their shapes. Version 8 ran over a batch too; it becomes a `Scan` over the batch around one over the sequence.
//!
//! Its gradient is that of its unrolled form, so the number of iterations must be known.

use super::body::{self, Body, Splicer, Stack};
use super::{Emit, EvalCx, Fact, Gradient, InferCx, OpDef, Sample, index, normal_axis, real};
use crate::error::{Context, Error, Result};
use crate::graph::{Graph, GraphOutput, NodeId, Operator, OutputSlot, Value};
use crate::rng::Draw;
use crate::types::Type;
use crate::{Attribute, Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Scan",
    inputs: (1, usize::MAX),
    outputs: (1, usize::MAX),
    infer,
    eval: Some(eval),
    grad: Gradient::Decompose,
    decompose: Some(unroll),
    upgrades: &[(9, without_batch)],
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// Along which axis a slice is taken, and whether from the end.
type Way = (i64, bool);

/// A node's body and attributes.
struct Plan<'a> {
    body: &'a Graph,
    /// How many values are carried.
    carried: usize,
    inputs: Vec<Way>,
    outputs: Vec<Way>,
}

fn plan(op: &Operator) -> Result<Plan<'_>> {
    let body = body::graph(op, "body")?;
    let scanned = real::count(&op.attrs, "num_scan_inputs", 0)?;
    let (inputs, outputs) = (body.inputs().len(), body.outputs.len());
    ensure!((1..=inputs).contains(&scanned), "it scans {scanned} inputs of a body that has {inputs}");
    let carried = inputs - scanned;
    ensure!(outputs >= carried, "its body has {outputs} outputs, expected {carried} carried values first");
    let inputs = ways(op, "scan_input", scanned)?;
    let outputs = ways(op, "scan_output", outputs - carried)?;
    Ok(Plan { body, carried, inputs, outputs })
}

fn ways(op: &Operator, kind: &str, count: usize) -> Result<Vec<Way>> {
    let list = |what: &str| -> Result<Vec<i64>> {
        let name = format!("{kind}_{what}");
        let values = op.attrs.ints(&name, &vec![0; count])?;
        ensure!(values.len() == count, "attribute `{name}` has {} entries, expected {count}", values.len());
        Ok(values)
    };
    let (axes, directions) = (list("axes")?, list("directions")?);
    ensure!(directions.iter().all(|d| (0..2).contains(d)), "directions {directions:?}, expected 0 or 1");
    Ok(axes.into_iter().zip(directions.into_iter().map(|d| d == 1)).collect())
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let Plan { body, carried, inputs, outputs } = plan(cx.op)?;
    let (formal, _) = cx.split_captures();
    let count = carried + inputs.len();
    ensure!(formal.len() == count, "it has {} inputs, its body {count}", formal.len());
    let (state, scanned) = formal.split_at(carried);
    let mut length = Dim::Unknown;
    let mut slices = Vec::new();
    for (fact, &(axis, _)) in scanned.iter().zip(&inputs) {
        let Some(ty) = fact.as_ref().map(|fact| &fact.ty) else {
            slices.push(None);
            continue;
        };
        let Some(dtype) = ty.dtype() else { bail!("it scans {ty}, expected a tensor") };
        let mut shape = ty.shape().map(<[Dim]>::to_vec);
        if let Some(shape) = &mut shape {
            let own = shape.remove(normal_axis(axis, shape.len())?);
            length = common(&length, &own)?;
        }
        slices.push(Some(Fact::new(Type::Tensor { dtype, shape })));
    }
    let settled = body::settle(cx, body, (&[], state, &slices), 0)?;
    for (slot, ty) in settled.state.into_iter().enumerate() {
        if let Some(ty) = ty {
            cx.set(slot, ty);
        }
    }
    for (i, (ty, (axis, _))) in settled.rest.into_iter().zip(outputs).enumerate() {
        if let Some(ty) = ty {
            cx.set(carried + i, body::stacked(&ty, axis, &length)?);
        }
    }
    Ok(())
}

/// The length of two scan inputs, which must be one.
fn common(a: &Dim, b: &Dim) -> Result<Dim> {
    match (a, b) {
        (Dim::Known(x), Dim::Known(y)) if x != y => bail!("it scans {x} places of one input, {y} of another"),
        (Dim::Unknown, other) | (_, other @ Dim::Known(_)) => Ok(other.clone()),
        (a, _) => Ok(a.clone()),
    }
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let Plan { body: graph, carried, inputs: ways, outputs } = plan(cx.op)?;
    let count = carried + ways.len();
    ensure!(inputs.len() >= count, "it has {} inputs, its body {count}", inputs.len());
    let (formal, captures) = inputs.split_at(count);
    let body = Body::new(cx, graph, captures)?;
    let mut state = present(&formal[..carried])?;
    let scanned = present(&formal[carried..])?;
    let mut axes = Vec::new();
    let mut length = Dim::Unknown;
    for (tensor, &(axis, _)) in scanned.iter().zip(&ways) {
        let axis = normal_axis(axis, tensor.rank())?;
        length = common(&length, &Dim::Known(tensor.shape()[axis] as i64))?;
        axes.push(axis);
    }
    let length = length.known().unwrap_or(0) as usize;
    let mut stacks: Vec<Stack> = outputs.iter().map(|_| Stack::default()).collect();
    for i in 0..length {
        let mut slices = Vec::new();
        for ((tensor, &axis), &(_, reverse)) in scanned.iter().zip(&axes).zip(&ways) {
            slices.push(body::row(tensor, axis, if reverse { length - 1 - i } else { i })?);
        }
        let mut found = body.run(cx, i as u64, state.into_iter().chain(slices))?.into_iter();
        state = found.by_ref().take(carried).collect();
        for (stack, row) in stacks.iter_mut().zip(found) {
            stack.push(row)?;
        }
    }
    for (i, (stack, (axis, reverse))) in stacks.into_iter().zip(outputs).enumerate() {
        let none = || {
            let mut slices = Vec::new();
            for (tensor, &axis) in scanned.iter().zip(&axes) {
                let mut shape = tensor.shape().to_vec();
                shape.remove(axis);
                slices.push(Some(Fact::new(Type::tensor(tensor.dtype(), index::known_dims(&shape)))));
            }
            let state = formal[..carried].iter().map(|t| t.map(|t| Fact::new(Type::of(t))));
            type_of_output(cx, graph, &state.chain(slices).collect::<Vec<_>>(), captures, carried + i)
        };
        state.push(stack.join(axis, reverse, none).context(|| format!("output {}", carried + i))?);
    }
    Ok(state)
}

/// Tensors that must all be there.
pub(super) fn present(inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    inputs.iter().map(|t| t.cloned().ok_or_else(|| Error::msg("a carried or scanned value is left out"))).collect()
}

/// Values that must all be there.
pub(super) fn carried(inputs: &[Option<Value>]) -> Result<Vec<Value>> {
    inputs.iter().map(|v| v.ok_or_else(|| Error::msg("a carried or scanned value is left out"))).collect()
}

/// The type that a body infers for one of its outputs.
fn type_of_output(
    cx: &EvalCx,
    graph: &Graph,
    inputs: &[Option<Fact>],
    captures: &[Option<&Tensor>],
    output: usize,
) -> Result<Type> {
    let captures: Vec<Option<Fact>> = captures.iter().map(|t| t.map(|t| Fact::new(Type::of(t)))).collect();
    let found = body::facts(graph, cx.opset, inputs, &captures, crate::infer::Scope::Special)?;
    match found.into_iter().nth(output).flatten() {
        Some(fact) => Ok(fact.ty),
        None => bail!("it runs no iteration, and the type of what it hands out is unknown"),
    }
}

/// The type of what a loop's body would have handed out: output `output`, after `numbers` inputs that are not carried.
pub(super) fn handed_out(
    cx: &EvalCx,
    graph: &Graph,
    state: &[Option<&Tensor>],
    captures: &[Option<&Tensor>],
    numbers: usize,
    output: usize,
) -> Result<Type> {
    let scalars = [DType::I64, DType::Bool].map(|dtype| Some(Fact::new(Type::tensor(dtype, [0i64; 0]))));
    let state = state.iter().map(|t| t.map(|t| Fact::new(Type::of(t))));
    let inputs: Vec<Option<Fact>> = scalars.into_iter().take(numbers).chain(state).collect();
    type_of_output(cx, graph, &inputs, captures, output)
}

fn unroll(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let Plan { body, carried, inputs: ways, outputs } = plan(&op)?;
    let count = carried + ways.len();
    let inputs = emit.graph.node_inputs(id);
    ensure!(inputs.len() >= count, "it has {} inputs, its body {count}", inputs.len());
    let (formal, captures) = inputs.split_at(count);
    let (mut state, scanned) = (self::carried(&formal[..carried])?, self::carried(&formal[carried..])?);
    let mut axes = Vec::new();
    let mut length = Dim::Unknown;
    for (&value, &(axis, _)) in scanned.iter().zip(&ways) {
        let axis = emit.axis(value, axis)?;
        length = common(&length, &emit.shape(value)?[axis])?;
        axes.push(axis);
    }
    let Some(length) = length.known().and_then(|n| usize::try_from(n).ok()) else {
        bail!("the number of iterations of Scan is unknown, so it is not unrolled and has no gradient");
    };
    let mut splicer = Splicer::new(body, captures, length)?;
    let mut slices = Vec::new();
    for ((&value, &axis), &(_, reverse)) in scanned.iter().zip(&axes).zip(&ways) {
        let mut parts = body::unstack(emit, value, axis, length)?;
        if reverse {
            parts.reverse();
        }
        slices.push(parts);
    }
    let mut rows: Vec<Vec<Value>> = vec![Vec::new(); outputs.len()];
    for i in 0..length {
        let found = splicer.copy(emit, state.into_iter().chain(slices.iter().map(|parts| parts[i])))?;
        state = found[..carried].to_vec();
        rows.iter_mut().zip(&found[carried..]).for_each(|(rows, &row)| rows.push(row));
    }
    for (rows, (axis, reverse)) in rows.into_iter().zip(outputs) {
        let joined = match length {
            0 => body::nothing(emit, id, state.len())?,
            _ => body::stack(emit, &rows, axis, reverse)?,
        };
        state.push(joined);
    }
    Ok(state)
}

/// Version 8 had the lengths of the sequences as its first input, a batch as the first axis of everything, and the axis
/// of the sequence behind it: a `Scan` over the batch whose body is the `Scan` over the sequence.
fn without_batch(graph: &mut Graph, id: NodeId) -> Result<()> {
    let mut inputs = graph.node_inputs(id);
    let formal = graph.node(id).formal_inputs();
    ensure!(graph.node(id).captures() == 0, "a Scan of version 8 that captures values cannot be lifted");
    ensure!(inputs.first().is_some_and(Option::is_none), "sequences of different lengths cannot be scanned");
    inputs.remove(0);
    let Some(op) = graph.node_mut(id).op_mut() else { return Ok(()) };
    if let Some(directions) = op.attrs.remove("directions") {
        op.attrs.set("scan_input_directions", directions);
    }
    let inner_op = op.clone();
    let body = body::graph(op, "body")?;
    let mut outer = Graph::new(&format!("{}_batch", body.name));
    let mut given = Vec::new();
    for value in body.inputs() {
        let name = outer.fresh_name(&format!("{}_of_one", body.value_name(value)));
        given.push(Some(untyped_input(&mut outer, &name)));
    }
    ensure!(given.len() + 1 == formal, "it has {formal} inputs, its body {}", given.len());
    let mut slots = Vec::new();
    for output in &body.outputs {
        slots.push(OutputSlot { name: outer.fresh_name(&format!("{}_of_one", output.name)), ty: None });
    }
    let inner = outer.add_node("", inner_op, &given, slots);
    for value in outer.node_outputs(inner).collect::<Vec<_>>() {
        let name = outer.value_name(value).to_string();
        outer.outputs.push(GraphOutput { name, value });
    }
    op.attrs = Attributes::new().with("body", outer).with("num_scan_inputs", given.len() as i64);
    graph.set_inputs(id, &inputs);
    Ok(())
}

/// An input of which nothing is known.
pub(super) fn untyped_input(graph: &mut Graph, name: &str) -> Value {
    let value = graph.add_input(name, Type::unranked(DType::F32));
    graph.set_ty(value, None);
    value
}

/// `s ← s · x + y`, handing out `s · x`.
fn sample(draw: &mut Draw) -> Sample {
    let mut body = Graph::new("body");
    let [s, x, y] = ["s", "x", "y"].map(|name| untyped_input(&mut body, name));
    let product = body.op("Mul", &[s, x], Attributes::new());
    let next = body.op("Add", &[product, y], Attributes::new());
    for (name, value) in [("s_next", next), ("handed_out", product)] {
        body.outputs.push(GraphOutput { name: name.to_string(), value });
    }
    let attrs = Attributes::new().with("num_scan_inputs", 2i64).with("body", body);
    let length = draw.int(1, 3) as usize;
    let (mut second, mut attrs) = (vec![length, 2], attrs);
    if draw.chance(0.5) {
        second = vec![2, length];
        attrs.set("scan_input_axes", [0, -1]);
        attrs.set("scan_input_directions", [draw.int(0, 1), draw.int(0, 1)]);
        attrs.set("scan_output_axes", [1]);
        attrs.set("scan_output_directions", Attribute::Ints(vec![draw.int(0, 1)]));
    }
    let inputs =
        vec![draw.tensor(&[2], -1.0, 1.0), draw.tensor(&[length, 2], -1.0, 1.0), draw.tensor(&second, -1.0, 1.0)];
    Sample { outputs: 2, ..Sample::new(Operator::onnx("Scan", attrs), inputs) }
}
