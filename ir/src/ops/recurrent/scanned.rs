//! [`Recurrence`](super::recurrence) and its gradient written out for others to run: one `Scan` per direction, whose body is one step, forwards or backwards.
//!
//! Everything is brought into the order of the walk first: what is walked backwards is turned around, up to the end of each sequence, and turned back
//! afterwards. The gradient scans from the other end. Behind the end of its sequence a `Where` keeps an entry's states and puts zeros into what is stacked.

use super::recurrence::{Kind, Rule};
use super::unroll::split;
use crate::error::Result;
use crate::graph::{Graph, GraphOutput, NodeId, Operator, Value};
use crate::ops::Emit;
use crate::ops::body::stack;
use crate::ops::emit::Length;
use crate::types::Type;
use crate::{Attribute, Attributes, Dim, Tensor, bail};

/// A layer, and its tensors by name.
struct Layer {
    rule: Rule,
    hidden: i64,
    /// `[T, B, …]`: what has the steps and the batch.
    like: Value,
    r: Value,
    states: [Option<Value>; 2],
    lens: Option<Value>,
    /// `[T, B, 1]`: whether a sequence goes on, in the order of the walk.
    going: Option<Value>,
}

impl Layer {
    fn new(e: &mut Emit, id: NodeId, (like, r): (Value, Value), slots: [usize; 3]) -> Result<Layer> {
        let rule = Rule::read(&e.attrs(id))?;
        let Some(hidden) = e.shape(r)?.get(2).and_then(Dim::known) else {
            bail!("the number of hidden units is unknown");
        };
        let [h, c, lens] = slots.map(|slot| e.graph.input(id, slot));
        let going = match lens {
            Some(lens) => {
                let steps = e.indices(Length::Axis(like, 0))?;
                let (steps, lens) = (e.unsqueeze(steps, &[1, 2])?, e.unsqueeze(lens, &[0, 2])?);
                Some(e.op("Less", &[steps, lens], Attributes::new())?)
            }
            None => None,
        };
        Ok(Layer { rule, hidden, like, r, states: [h, c], lens, going })
    }
    fn rows(&self) -> i64 {
        self.rule.gates() as i64 * self.hidden
    }
    /// `[T, B, …]` in the order in which a direction walks, or back in the order of time.
    fn turned(&self, e: &mut Emit, d: usize, x: Value) -> Result<Value> {
        match self.lens {
            _ if !self.rule.backwards[d] => Ok(x),
            Some(lens) => {
                let attrs = Attributes::new().with("batch_axis", 1i64).with("time_axis", 0i64);
                e.op("ReverseSequence", &[x, lens], attrs)
            }
            None => {
                let [start, end, axis, step] = [-1, i64::MIN + 1, 0, -1].map(|n| e.ints(&[n]));
                e.op("Slice", &[x, start, end, axis, step], Attributes::new())
            }
        }
    }
    /// The part of a direction: `[T, D, B, …]` as `[T, B, …]`, in the order of the walk.
    fn of_direction(&self, e: &mut Emit, d: usize, x: Value) -> Result<Value> {
        let part = e.entry(x, d as i64, 1)?;
        self.turned(e, d, part)
    }
    /// Some columns of the last axis.
    fn columns(&self, e: &mut Emit, x: Value, start: i64, end: i64) -> Result<Value> {
        let [start, end, axis] = [start, end, -1].map(|n| e.ints(&[n]));
        e.op("Slice", &[x, start, end, axis], Attributes::new())
    }
    /// A state of a direction, `[B, H]`; zeros if there is none.
    fn state(&self, e: &mut Emit, d: usize, state: Option<Value>) -> Result<Value> {
        match state {
            Some(state) => e.entry(state, d as i64, 0),
            None => {
                let shape = e.shape_tensor(&[Length::Axis(self.like, 1), Length::Number(self.hidden)])?;
                let zero = Tensor::zeros(e.dtype(self.r)?, [1])?;
                e.op("ConstantOfShape", &[shape], Attributes::new().with("value", zero))
            }
        }
    }
    /// What stands one step earlier: `first`, then all of `x` but its last entry.
    fn earlier(&self, e: &mut Emit, first: Value, x: Value) -> Result<Value> {
        let first = e.unsqueeze(first, &[0])?;
        let [start, end, axis] = [0, -1, 0].map(|n| e.ints(&[n]));
        let rest = e.op("Slice", &[x, start, end, axis], Attributes::new())?;
        e.op("Concat", &[first, rest], Attributes::new().with("axis", 0i64))
    }
    /// Zeros where a sequence has ended.
    fn only_going(&self, e: &mut Emit, x: Value) -> Result<Value> {
        self.going.map_or(Ok(x), |going| e.select_or(going, x, 0.0))
    }
}

/// A `Scan` that is put together: the values that its body carries, scans and captures.
struct Scan<'a> {
    layer: &'a Layer,
    states: Vec<Value>,
    scanned: Vec<Value>,
    captured: Vec<Value>,
    /// From the last step to the first.
    from_end: bool,
}

impl Scan<'_> {
    /// Runs it: `step` gets the states, the scanned slices and the captures, and gives the next states and what is stacked. Returns the last states, then
    /// the stacks.
    fn run(
        &self,
        e: &mut Emit,
        step: impl FnOnce(&mut Emit, &[Value], &[Value], &[Value]) -> Result<(Vec<Value>, Vec<Value>)>,
    ) -> Result<Vec<Value>> {
        let mut scanned = self.scanned.clone();
        scanned.extend(self.layer.going);
        let mut body = Graph::new("step");
        // No name of a body may be one of the graph around it.
        let prefix = format!("{}/", e.graph.fresh_name("/step"));
        let mut add = |value: &Value, slice: bool, name: String| -> Result<Value> {
            let mut shape = e.shape(*value)?;
            if slice {
                shape.remove(0);
            }
            let name = body.fresh_name(&format!("{prefix}{name}"));
            Ok(body.add_input(&name, Type::Tensor { dtype: e.dtype(*value)?, shape: Some(shape) }))
        };
        let mut states = Vec::new();
        for (i, value) in self.states.iter().enumerate() {
            states.push(add(value, false, format!("state_{i}"))?);
        }
        let mut slices = Vec::new();
        for (i, value) in scanned.iter().enumerate() {
            slices.push(add(value, true, format!("slice_{i}"))?);
        }
        let mut captures = Vec::new();
        for (i, value) in self.captured.iter().enumerate() {
            let name = body.fresh_name(&format!("{prefix}weights_{i}"));
            captures.push(body.add_capture(i, &name, e.graph.ty(*value).cloned()));
        }
        let going = self.layer.going.and_then(|_| slices.pop());
        let mut inner = Emit::new(&mut body, e.opset);
        inner.prefix = prefix;
        let (next, stacked) = step(&mut inner, &states, &slices, &captures)?;
        let mut outputs = Vec::new();
        for (new, old) in next.into_iter().zip(&states) {
            outputs.push(going.map_or(Ok(new), |going| inner.select(going, new, *old))?);
        }
        for new in stacked {
            outputs.push(going.map_or(Ok(new), |going| inner.select_or(going, new, 0.0))?);
        }
        // A body hands out what it makes itself, each output once.
        for output in &mut outputs {
            *output = inner.unary("Identity", *output)?;
        }
        let named = |value: &Value| GraphOutput { name: inner.graph.value_name(*value).to_string(), value: *value };
        let results: Vec<GraphOutput> = outputs.iter().map(named).collect();
        let (count, stacks) = (results.len(), results.len() - states.len());
        body.outputs = results;
        let way = i64::from(self.from_end);
        let mut attrs = Attributes::new()
            .with("num_scan_inputs", scanned.len() as i64)
            .with("scan_input_directions", vec![way; scanned.len()])
            .with("scan_output_directions", vec![way; stacks]);
        attrs.set("body", Attribute::Graph(Box::new(body)));
        let inputs: Vec<Option<Value>> = self.states.iter().chain(&scanned).copied().map(Some).collect();
        let node = e.graph.add_op("Scan", Operator::onnx("Scan", attrs), &inputs, count);
        for value in &self.captured {
            e.graph.push_capture(node, *value);
        }
        crate::infer::infer_node(e.graph, node, e.opset)?;
        Ok(e.graph.node_outputs(node).collect())
    }
}

/// Equal parts of the last axis.
fn parts(e: &mut Emit, x: Value, width: i64, count: usize) -> Result<Vec<Value>> {
    split(e, x, -1, &vec![width; count])
}

fn joined(e: &mut Emit, list: &[Value], axis: i64) -> Result<Value> {
    match list {
        [one] => Ok(*one),
        _ => e.op("Concat", list, Attributes::new().with("axis", axis)),
    }
}

// ---- forwards -----------------------------------------------------------------------------------------------------------

/// `Recurrence`.
pub(super) fn forward(e: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (z, r) = (e.operand(id, 0)?, e.operand(id, 1)?);
    let layer = Layer::new(e, id, (z, r), [2, 3, 4])?;
    let bias = e.graph.input(id, 5);
    let (mut y, mut h, mut c, mut kept) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for d in 0..layer.rule.backwards.len() {
        let z = layer.columns(e, z, d as i64 * layer.rows(), (d as i64 + 1) * layer.rows())?;
        let z = layer.turned(e, d, z)?;
        let own = e.entry(r, d as i64, 0)?;
        let mut captured = vec![e.transpose(own, &[1, 0])?];
        captured.extend(bias.map(|bias| e.entry(bias, d as i64, 0)).transpose()?);
        let mut states = vec![layer.state(e, d, layer.states[0])?];
        if layer.rule.kind == Kind::Lstm {
            states.push(layer.state(e, d, layer.states[1])?);
        }
        let scan = Scan { layer: &layer, states, scanned: vec![z], captured, from_end: false };
        let found = scan.run(e, |e, states, slices, captures| step(e, &layer, states, slices[0], captures))?;
        let (last, stacks) = found.split_at(scan.states.len());
        h.push(last[0]);
        c.push(last.get(1).copied().unwrap_or(last[0]));
        y.push(layer.turned(e, d, stacks[0])?);
        if let Some(&own) = stacks.get(1) {
            kept.push(layer.turned(e, d, own)?);
        }
    }
    let mut outputs = vec![stack(e, &y, 1, false)?, stack(e, &h, 0, false)?, stack(e, &c, 0, false)?];
    outputs.push(if kept.is_empty() { outputs[0] } else { stack(e, &kept, 1, false)? });
    Ok(outputs)
}

/// The next states; the state once more, and what the gradient needs.
fn step(
    e: &mut Emit,
    layer: &Layer,
    states: &[Value],
    z: Value,
    captures: &[Value],
) -> Result<(Vec<Value>, Vec<Value>)> {
    let (n, h, r) = (layer.hidden, states[0], captures[0]);
    match layer.rule.kind {
        Kind::Lstm => {
            let a = e.matmul(h, r)?;
            let a = e.add(z, a)?;
            let gates = parts(e, a, n, 4)?;
            let [i, o, f] = [gates[0], gates[1], gates[2]].map(|gate| e.unary("Sigmoid", gate));
            let (i, o, f, g) = (i?, o?, f?, e.unary("Tanh", gates[3])?);
            let (old, new) = (e.mul(f, states[1])?, e.mul(i, g)?);
            let c = e.add(old, new)?;
            let shown = e.unary("Tanh", c)?;
            let h = e.mul(o, shown)?;
            Ok((vec![h, c], vec![h, joined(e, &[i, o, f, g, c], -1)?]))
        }
        Kind::Gru => {
            let zs = parts(e, z, n, 3)?;
            let columns = [layer.columns(e, r, 0, 2 * n)?, layer.columns(e, r, 2 * n, 3 * n)?];
            let a = e.matmul(h, columns[0])?;
            let a = parts(e, a, n, 2)?;
            let (u, reset) = (e.add(zs[0], a[0])?, e.add(zs[1], a[1])?);
            let (u, reset) = (e.unary("Sigmoid", u)?, e.unary("Sigmoid", reset)?);
            let (q, seen) = match layer.rule.before_reset {
                true => {
                    let mut q = e.matmul(h, columns[1])?;
                    if let Some(&bias) = captures.get(1) {
                        q = e.add(q, bias)?;
                    }
                    (q, e.mul(reset, q)?)
                }
                false => {
                    let shown = e.mul(reset, h)?;
                    let q = e.matmul(shown, columns[1])?;
                    (q, q)
                }
            };
            let fresh = e.add(zs[2], seen)?;
            let fresh = e.unary("Tanh", fresh)?;
            let rest = e.scalar_minus(1.0, u)?;
            let (new, old) = (e.mul(rest, fresh)?, e.mul(u, h)?);
            let h = e.add(new, old)?;
            Ok((vec![h], vec![h, joined(e, &[u, reset, fresh, q], -1)?]))
        }
        Kind::Rnn => {
            let a = e.matmul(h, r)?;
            let a = e.add(z, a)?;
            let h = e.unary(if layer.rule.relu { "Relu" } else { "Tanh" }, a)?;
            Ok((vec![h], vec![h]))
        }
    }
}

// ---- backwards ----------------------------------------------------------------------------------------------------------

/// `RecurrenceGrad`.
pub(super) fn backward(e: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let (r, y) = (e.operand(id, 0)?, e.operand(id, 1)?);
    let first = e.entry(y, 0, 1)?;
    let layer = Layer::new(e, id, (first, r), [5, 6, 7])?;
    let [dy, dh, dc, kept] = [2, 3, 4, 8].map(|slot| e.graph.input(id, slot));
    let (mut dz, mut first_h, mut first_c, mut before, mut mixed) = (vec![], vec![], vec![], vec![], vec![]);
    for d in 0..layer.rule.backwards.len() {
        let y = layer.of_direction(e, d, y)?;
        let dy = match dy {
            Some(dy) => layer.of_direction(e, d, dy)?,
            None => e.full_like(y, 0.0)?,
        };
        let h0 = layer.state(e, d, layer.states[0])?;
        let h = layer.earlier(e, h0, y)?;
        let mut scanned = vec![dy, h];
        let mut states = vec![layer.state(e, d, dh)?];
        match (layer.rule.kind, kept) {
            (Kind::Rnn, _) => scanned.push(y),
            (_, None) => bail!("what the forward pass kept is missing"),
            (kind, Some(kept)) => {
                let kept = layer.of_direction(e, d, kept)?;
                scanned.push(kept);
                if kind == Kind::Lstm {
                    let c = layer.columns(e, kept, 4 * layer.hidden, 5 * layer.hidden)?;
                    let c0 = layer.state(e, d, layer.states[1])?;
                    scanned.push(layer.earlier(e, c0, c)?);
                    states.push(layer.state(e, d, dc)?);
                }
            }
        }
        let captured = vec![e.entry(r, d as i64, 0)?];
        let scan = Scan { layer: &layer, states, scanned, captured, from_end: true };
        let found = scan.run(e, |e, states, slices, captures| step_back(e, &layer, states, slices, captures[0]))?;
        let (last, stacks) = found.split_at(scan.states.len());
        first_h.push(last[0]);
        first_c.push(last.get(1).map_or_else(|| layer.state(e, d, None), |&c| Ok(c))?);
        dz.push(layer.turned(e, d, stacks[0])?);
        let h = layer.only_going(e, h)?;
        before.push(layer.turned(e, d, h)?);
        let own = stacks.get(1).map_or_else(|| e.full_like(h, 0.0), |&own| Ok(own))?;
        mixed.push(layer.turned(e, d, own)?);
    }
    Ok(vec![
        joined(e, &dz, -1)?,
        stack(e, &first_h, 0, false)?,
        stack(e, &first_c, 0, false)?,
        stack(e, &before, 1, false)?,
        stack(e, &mixed, 1, false)?,
    ])
}

/// `y (1 − y)`, times a gradient: that of what `y` is the sigmoid of.
fn sigmoid_back(e: &mut Emit, grad: Value, y: Value) -> Result<Value> {
    let rest = e.scalar_minus(1.0, y)?;
    let slope = e.mul(y, rest)?;
    e.mul(grad, slope)
}

/// `1 − y²`, times a gradient: that of what `y` is the hyperbolic tangent of.
fn tanh_back(e: &mut Emit, grad: Value, y: Value) -> Result<Value> {
    let square = e.mul(y, y)?;
    let slope = e.scalar_minus(1.0, square)?;
    e.mul(grad, slope)
}

/// The gradients of the states before a step; those of what was put in, and what else the weights are multiplied by.
fn step_back(
    e: &mut Emit,
    layer: &Layer,
    states: &[Value],
    slices: &[Value],
    r: Value,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let (n, h) = (layer.hidden, slices[1]);
    let dh = e.add(states[0], slices[0])?;
    match layer.rule.kind {
        Kind::Lstm => {
            let kept = parts(e, slices[2], n, 5)?;
            let (i, o, f, g, c) = (kept[0], kept[1], kept[2], kept[3], slices[3]);
            let shown = e.unary("Tanh", kept[4])?;
            let through = e.mul(dh, o)?;
            let through = tanh_back(e, through, shown)?;
            let total = e.add(states[1], through)?;
            let [di, d_o, df, dg] = [(total, g), (dh, shown), (total, c), (total, i)].map(|(a, b)| e.mul(a, b));
            let (di, d_o) = (sigmoid_back(e, di?, i)?, sigmoid_back(e, d_o?, o)?);
            let (df, dg) = (sigmoid_back(e, df?, f)?, tanh_back(e, dg?, g)?);
            let dz = joined(e, &[di, d_o, df, dg], -1)?;
            Ok((vec![e.matmul(dz, r)?, e.mul(total, f)?], vec![dz]))
        }
        Kind::Gru => {
            let kept = parts(e, slices[2], n, 4)?;
            let (u, reset, fresh, q) = (kept[0], kept[1], kept[2], kept[3]);
            let axis = e.ints(&[0]);
            let [zero, two, three] = [0, 2 * n, 3 * n].map(|n| e.ints(&[n]));
            let gates = e.op("Slice", &[r, zero, two, axis], Attributes::new())?;
            let hidden = e.op("Slice", &[r, two, three, axis], Attributes::new())?;
            let apart = e.sub(h, fresh)?;
            let du = e.mul(dh, apart)?;
            let du = sigmoid_back(e, du, u)?;
            let rest = e.scalar_minus(1.0, u)?;
            let dn = e.mul(dh, rest)?;
            let dn = tanh_back(e, dn, fresh)?;
            let carried = e.mul(dh, u)?;
            let (d_reset, more, mixed) = match layer.rule.before_reset {
                true => {
                    let mixed = e.mul(dn, reset)?;
                    (e.mul(dn, q)?, e.matmul(mixed, hidden)?, mixed)
                }
                false => {
                    let shown = e.matmul(dn, hidden)?;
                    (e.mul(shown, h)?, e.mul(shown, reset)?, e.mul(reset, h)?)
                }
            };
            let d_reset = sigmoid_back(e, d_reset, reset)?;
            let both = joined(e, &[du, d_reset], -1)?;
            let from_gates = e.matmul(both, gates)?;
            let carried = e.add(carried, more)?;
            let dh = e.add(carried, from_gates)?;
            Ok((vec![dh], vec![joined(e, &[du, d_reset, dn], -1)?, mixed]))
        }
        Kind::Rnn => {
            let y = slices[2];
            let dz = match layer.rule.relu {
                true => {
                    let open = e.compare_scalar("Greater", y, 0.0)?;
                    e.select_or(open, dh, 0.0)?
                }
                false => tanh_back(e, dh, y)?,
            };
            Ok((vec![e.matmul(dz, r)?], vec![dz]))
        }
    }
}
