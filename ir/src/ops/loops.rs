//! `Loop`: runs its body while a condition holds, at most `M` times. The body takes the number of the iteration, the
//! condition and the carried values; it gives the next condition, the next carried values, and what the iteration hands
//! out, which is laid side by side along a new first axis.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Loop.html>. An input that is left out does not bound the loop. Carried values may change
//! their shape; what is inferred of them is what all iterations have in common.
//!
//! Its gradient is that of its unrolled form, so the number of iterations must be known: `M` is a constant, and the
//! condition stays true (it is left out or true at first, and the body hands it on or gives the constant true).

use super::body::{self, Body, MAX_UNROLLED, Splicer, Stack};
use super::{Emit, EvalCx, Fact, Gradient, InferCx, OpDef, Sample};
use crate::error::{Context, Result};
use crate::graph::{Graph, GraphOutput, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::types::Type;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure, infer};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Loop",
    inputs: (2, usize::MAX),
    outputs: (1, usize::MAX),
    infer,
    eval: Some(eval),
    grad: Gradient::Decompose,
    decompose: Some(unroll),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// The body, and how many values it carries.
fn parts(op: &Operator) -> Result<(&Graph, usize)> {
    let body = body::graph(op, "body")?;
    let (inputs, outputs) = (body.inputs().len(), body.outputs.len());
    ensure!(inputs >= 2, "its body has {inputs} inputs, expected the iteration and the condition first");
    let carried = inputs - 2;
    ensure!(outputs > carried, "its body has {outputs} outputs, expected the condition and {carried} carried values");
    Ok((body, carried))
}

/// Whether the condition stays true once it is.
fn stays_true(body: &Graph) -> bool {
    let Some(output) = body.outputs.first() else { return false };
    let mut value = output.value;
    while body.node(value.node).is("Identity") {
        match body.input(value.node, 0) {
            Some(input) => value = input,
            None => return false,
        }
    }
    let given = body.inputs().nth(1) == Some(value);
    given || body.constant(value).is_some_and(|t| body::truth(&t).is_ok_and(|holds| holds))
}

/// The number of iterations, if it is known. `limit` and `condition` are the values of the first two inputs: left out,
/// open, or known.
fn known_count(body: &Graph, limit: Known, condition: Known) -> Result<Option<usize>> {
    let going = match condition {
        Known::Absent => true,
        Known::Open => return Ok(None),
        Known::Value(tensor) => body::truth(&tensor)?,
    };
    match limit {
        _ if !going => Ok(Some(0)),
        Known::Value(tensor) if stays_true(body) => Ok(Some(trips(&tensor)?)),
        _ => Ok(None),
    }
}

/// What is known of an input.
enum Known {
    Absent,
    Open,
    Value(Tensor),
}

fn trips(limit: &Tensor) -> Result<usize> {
    match limit.to_i64s()?[..] {
        [count] => Ok(count.max(0) as usize),
        _ => bail!("its number of iterations is {limit:?}, expected one integer"),
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (body, carried) = parts(cx.op)?;
    let (formal, _) = cx.split_captures();
    ensure!(formal.len() == 2 + carried, "it has {} inputs, its body {}", formal.len(), 2 + carried);
    let number = |input: usize, dtype| {
        let declared = body.inputs().nth(input).and_then(|v| body.ty(v)).and_then(Type::rank);
        Some(Fact::new(Type::tensor(dtype, if declared == Some(1) { vec![1i64] } else { vec![] })))
    };
    let before = [number(0, DType::I64), number(1, DType::Bool)];
    let settled = body::settle(cx, body, (&before, &formal[2..], &[]), 1)?;
    let known = |slot: usize| match cx.fact(slot) {
        None => Known::Absent,
        Some(fact) => fact.tensor.clone().map_or(Known::Open, Known::Value),
    };
    let count = known_count(body, known(0), known(1))?.map_or(Dim::Unknown, |n| Dim::Known(n as i64));
    for (slot, ty) in settled.state.into_iter().enumerate() {
        if let Some(ty) = ty {
            cx.set(slot, ty);
        }
    }
    for (i, ty) in settled.rest.into_iter().enumerate() {
        if let Some(ty) = ty {
            cx.set(carried + i, body::stacked(&ty, 0, &count)?);
        }
    }
    Ok(())
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (graph, carried) = parts(cx.op)?;
    ensure!(inputs.len() >= 2 + carried, "it has {} inputs, its body {}", inputs.len(), 2 + carried);
    let (formal, captures) = inputs.split_at(2 + carried);
    let body = Body::new(cx, graph, captures)?;
    let limit = formal[0].map(trips).transpose()?;
    let mut going = formal[1].map_or(Ok(true), body::truth)?;
    let mut state = super::scan::present(&formal[2..])?;
    let mut stacks: Vec<Stack> = graph.outputs[1 + carried..].iter().map(|_| Stack::default()).collect();
    let mut iteration = 0;
    while going && limit.is_none_or(|limit| iteration < limit) {
        let number = body.shaped(0, Tensor::scalar(iteration as i64))?;
        let given = [number, body.shaped(1, Tensor::scalar(true))?];
        let mut outputs = body.run(cx, iteration as u64, given.into_iter().chain(state))?.into_iter();
        going = outputs.next().map_or(Ok(false), |condition| body::truth(&condition))?;
        state = outputs.by_ref().take(carried).collect();
        for (stack, row) in stacks.iter_mut().zip(outputs) {
            stack.push(row)?;
        }
        iteration += 1;
    }
    let none = |slot: usize| super::scan::handed_out(cx, graph, &formal[2..], captures, 2, slot);
    for (i, stack) in stacks.into_iter().enumerate() {
        let joined = stack.join(0, false, || none(1 + carried + i)).context(|| format!("output {}", carried + i))?;
        state.push(joined);
    }
    Ok(state)
}

fn unroll(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (body, carried) = parts(&op)?;
    let inputs = emit.graph.node_inputs(id);
    ensure!(inputs.len() >= 2 + carried, "it has {} inputs, its body {}", inputs.len(), 2 + carried);
    let (formal, captures) = inputs.split_at(2 + carried);
    let known = |value: Option<Value>| match value {
        None => Known::Absent,
        Some(value) => infer::stored_value(emit.graph, value, emit.opset).map_or(Known::Open, Known::Value),
    };
    let Some(count) = known_count(body, known(formal[0]), known(formal[1]))? else {
        bail!("the number of iterations of Loop is unknown, so it is not unrolled and has no gradient");
    };
    ensure!(count <= MAX_UNROLLED, "Loop has {count} iterations; at most {MAX_UNROLLED} are unrolled");
    let mut splicer = Splicer::new(body, captures, count)?;
    let going = emit.constant(Tensor::scalar(true));
    let mut state = super::scan::carried(&formal[2..])?;
    let mut rows: Vec<Vec<Value>> = vec![Vec::new(); body.outputs.len() - 1 - carried];
    for i in 0..count {
        let number = emit.constant(Tensor::scalar(i as i64));
        let outputs = splicer.copy(emit, [number, going].into_iter().chain(state))?;
        state = outputs[1..1 + carried].to_vec();
        rows.iter_mut().zip(&outputs[1 + carried..]).for_each(|(rows, &row)| rows.push(row));
    }
    for rows in rows {
        let joined = match count {
            0 => body::nothing(emit, id, state.len())?,
            _ => body::stack(emit, &rows, 0, false)?,
        };
        state.push(joined);
    }
    Ok(state)
}

/// `s ← s · (x + i)`, of which every iteration hands out the sum.
fn sample(draw: &mut Draw) -> Sample {
    let mut body = Graph::new("body");
    let i = body.add_input("i", Type::tensor(DType::I64, [0i64; 0]));
    let going = body.add_input("going", Type::tensor(DType::Bool, [0i64; 0]));
    let [s, x] = ["s", "x"].map(|name| super::scan::untyped_input(&mut body, name));
    let number = body.op("CastLike", &[i, x], Attributes::new());
    let sum = body.op("Add", &[x, number], Attributes::new());
    let next = body.op("Mul", &[s, sum], Attributes::new());
    for (name, value) in [("going_on", going), ("s_next", next), ("x_next", x), ("handed_out", sum)] {
        body.outputs.push(GraphOutput { name: name.to_string(), value });
    }
    let count = draw.int(1, 3);
    let inputs = vec![
        Tensor::scalar(count),
        Tensor::scalar(true),
        draw.tensor(&[2, 3], -1.0, 1.0),
        draw.tensor(&[2, 3], -1.0, 1.0),
    ];
    let sample = Sample::new(Operator::onnx("Loop", Attributes::new().with("body", body)), inputs);
    Sample { outputs: 3, ..sample }
}
