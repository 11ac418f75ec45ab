//! Recurrent layers in basic operators, step by step: the input of all steps is weighted at once, then every step multiplies the
//! state by its weights. The number of steps must be known; the batch may be open.
//!
//! Sequences of different lengths are turned around by `ReverseSequence` for the backward direction, so that their ends come
//! first and the steps behind them last; in those a `Where` keeps the states and puts zeros into `Y`.

use super::{Cell, Config, activation::Activation, config};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::ops::Emit;
use crate::ops::body::{MAX_UNROLLED, stack, unstack};
use crate::ops::emit::Length;
use crate::{Attributes, DType, Tensor, bail, ensure};

/// See [`Cell::emit`].
pub type Step = fn(&mut Emit, &Weights, &[Value], Value, Value) -> Result<(Value, Value)>;

/// The weights of one direction.
pub struct Weights {
    /// The number of hidden units.
    hidden: usize,
    /// For each group of gates the weights of the state, `[H, n·H]`, and their biases, `[n·H]`.
    recurrence: Vec<(Value, Option<Value>)>,
    peepholes: Vec<Value>,
    pub(super) activations: Vec<Activation>,
    clip: Option<f64>,
    pub(super) switch: bool,
}

impl Weights {
    /// The activation of this number, of what is clipped first.
    pub(super) fn activate(&self, e: &mut Emit, which: usize, x: Value) -> Result<Value> {
        let x = match self.clip {
            None => x,
            Some(clip) => {
                let (low, high) = (e.scalar(-clip, x)?, e.scalar(clip, x)?);
                e.op("Clip", &[x, low, high], Attributes::new())?
            }
        };
        self.activations[which].emit(e, x)
    }
    /// A group of gates times a state, with the biases.
    pub(super) fn recur(&self, e: &mut Emit, group: usize, state: Value) -> Result<Value> {
        let (weights, bias) = self.recurrence[group];
        let product = e.matmul(state, weights)?;
        bias.map_or(Ok(product), |bias| e.add(product, bias))
    }
    /// `x` with a state behind the peephole of this number added.
    pub(super) fn with_peephole(&self, e: &mut Emit, x: Value, which: usize, state: Value) -> Result<Value> {
        let Some(&weight) = self.peepholes.get(which) else { return Ok(x) };
        let seen = e.mul(state, weight)?;
        e.add(x, seen)
    }
    /// Gates that stand side by side, `[…, n·H]`, one by one.
    pub(super) fn split(&self, e: &mut Emit, gates: Value, count: usize) -> Result<Vec<Value>> {
        split(e, gates, -1, &vec![self.hidden as i64; count])
    }
}

/// Parts of these lengths along an axis.
pub(super) fn split(e: &mut Emit, value: Value, axis: i64, sizes: &[i64]) -> Result<Vec<Value>> {
    if sizes.len() == 1 {
        return Ok(vec![value]);
    }
    let lengths = e.ints(sizes);
    let op = Operator::onnx("Split", Attributes::new().with("axis", axis));
    e.node(op, &[Some(value), Some(lengths)], sizes.len())
}

/// What all directions share.
struct Layer {
    /// `[T, B, I]`
    x: Value,
    steps: usize,
    hidden: usize,
    /// `[B]`
    lens: Option<Value>,
    /// For each step, `[B, 1]`: whether an entry's sequence goes on.
    masks: Vec<Value>,
}

/// What a direction gives: `Y` as `[T, 1, B, H]`, and the last states, `[B, H]`.
type Outcome = (Value, Value, Value);

pub(super) fn unroll(cell: &Cell, emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let config = config(cell, &op)?;
    let mut inputs = emit.graph.node_inputs(id);
    inputs.resize(8, None);
    let (Some(x), Some(_), Some(r)) = (inputs[0], inputs[1], inputs[2]) else { bail!("X, W or R is missing") };
    let layer = layer(cell, emit, &config, (x, r), inputs[4])?;
    if config.batch_first {
        for slot in [5, 6] {
            inputs[slot] = inputs[slot].map(|state| emit.transpose(state, &[1, 0, 2])).transpose()?;
        }
    }
    let count = config.backwards.len();
    let mut parts = vec![vec![None; 8]; count];
    for slot in [1, 2, 3, 5, 6, 7] {
        let Some(value) = inputs[slot] else { continue };
        for (parts, part) in parts.iter_mut().zip(unstack(emit, value, 0, count)?) {
            parts[slot] = Some(part);
        }
    }
    let mut found: Vec<Outcome> = Vec::new();
    for (d, parts) in parts.iter().enumerate() {
        found.push(direction(cell, emit, &config, &layer, d, parts)?);
    }
    let (y, h, c): (Vec<Value>, Vec<Value>, Vec<Value>) =
        (found.iter().map(|f| f.0).collect(), found.iter().map(|f| f.1).collect(), found.iter().map(|f| f.2).collect());
    let y = if count == 1 { y[0] } else { emit.op("Concat", &y, Attributes::new().with("axis", 1i64))? };
    let mut outputs = vec![if config.batch_first { emit.transpose(y, &[2, 0, 1, 3])? } else { y }];
    for state in if cell.has_cell { vec![h, c] } else { vec![h] } {
        let state = stack(emit, &state, 0, false)?;
        outputs.push(if config.batch_first { emit.transpose(state, &[1, 0, 2])? } else { state });
    }
    Ok(outputs)
}

fn layer(cell: &Cell, e: &mut Emit, config: &Config, (x, r): (Value, Value), lens: Option<Value>) -> Result<Layer> {
    let x = if config.batch_first { e.transpose(x, &[1, 0, 2])? } else { x };
    let size = |e: &Emit, value: Value, axis: usize| -> Result<Option<usize>> {
        let shape = e.shape(value)?;
        ensure!(shape.len() == 3, "X or R has rank {}, expected 3", shape.len());
        Ok(shape[axis].known().and_then(|n| usize::try_from(n).ok()))
    };
    let Some(steps) = size(e, x, 0)? else {
        bail!("the number of time steps of {} is unknown, so it is not unrolled and has no gradient", cell.name);
    };
    ensure!(steps <= MAX_UNROLLED, "{steps} time steps; at most {MAX_UNROLLED} are unrolled");
    let Some(hidden) = config.hidden.map_or(size(e, r, 2), |n| Ok(Some(n)))? else {
        bail!("the number of hidden units is unknown");
    };
    let lens = lens.map(|lens| e.cast(lens, DType::I64)).transpose()?;
    let mut masks = Vec::new();
    if let Some(lens) = lens {
        let column = e.unsqueeze(lens, &[1])?;
        for step in 0..steps {
            let step = e.constant(Tensor::scalar(step as i64));
            masks.push(e.op("Less", &[step, column], Attributes::new())?);
        }
    }
    Ok(Layer { x, steps, hidden, lens, masks })
}

/// The first `lens` steps of every entry in reverse order; `value` is `[T, B, …]`.
fn turned(e: &mut Emit, value: Value, lens: Value) -> Result<Value> {
    e.op("ReverseSequence", &[value, lens], Attributes::new().with("batch_axis", 1i64).with("time_axis", 0i64))
}

fn direction(
    cell: &Cell,
    e: &mut Emit,
    config: &Config,
    layer: &Layer,
    d: usize,
    parts: &[Option<Value>],
) -> Result<Outcome> {
    let (Some(w), Some(_)) = (parts[1], parts[2]) else { bail!("W or R is missing") };
    let backwards = config.backwards[d];
    let (weights, input_bias) = weights(cell, e, config, layer, d, parts)?;
    let x = match layer.lens {
        Some(lens) if backwards => turned(e, layer.x, lens)?,
        _ => layer.x,
    };
    let w = e.transpose(w, &[1, 0])?;
    let weighted = e.matmul(x, w)?;
    let weighted = input_bias.map_or(Ok(weighted), |bias| e.add(weighted, bias))?;
    let groups: Vec<i64> = cell.groups.iter().map(|&n| (n * layer.hidden) as i64).collect();
    let mut by_group = Vec::new();
    for group in split(e, weighted, -1, &groups)? {
        by_group.push(unstack(e, group, 0, layer.steps)?);
    }
    let zero = e.scalar(0.0, layer.x)?;
    let mut h = parts[5].map_or_else(|| zeros(e, layer, &[]), Ok)?;
    let mut c = if cell.has_cell { parts[6].map_or_else(|| zeros(e, layer, &[]), Ok)? } else { h };
    let mut rows = Vec::new();
    let against = backwards && layer.lens.is_none();
    for step in 0..layer.steps {
        let t = if against { layer.steps - 1 - step } else { step };
        let x: Vec<Value> = by_group.iter().map(|steps| steps[t]).collect();
        let (next, next_c) = (cell.emit)(e, &weights, &x, h, c)?;
        match layer.masks.get(step) {
            None => {
                (h, c) = (next, next_c);
                rows.push(h);
            }
            Some(&mask) => {
                rows.push(e.select(mask, next, zero)?);
                h = e.select(mask, next, h)?;
                c = if cell.has_cell { e.select(mask, next_c, c)? } else { h };
            }
        }
    }
    let y = match (rows.is_empty(), layer.lens) {
        (true, _) => zeros(e, layer, &[Length::Number(0)])?,
        (false, lens) => {
            let y = stack(e, &rows, 0, against)?;
            lens.filter(|_| backwards).map_or(Ok(y), |lens| turned(e, y, lens))?
        }
    };
    Ok((e.unsqueeze(y, &[1])?, h, c))
}

/// Zeros, `[…, B, H]`.
fn zeros(e: &mut Emit, layer: &Layer, leading: &[Length]) -> Result<Value> {
    let state = [Length::Axis(layer.x, 1), Length::Number(layer.hidden as i64)];
    let shape = e.shape_tensor(&[leading, &state].concat())?;
    let zero = Tensor::zeros(e.dtype(layer.x)?, [1])?;
    e.op("ConstantOfShape", &[shape], Attributes::new().with("value", zero))
}

/// The weights of a direction, and the bias of the input.
fn weights(
    cell: &Cell,
    e: &mut Emit,
    config: &Config,
    layer: &Layer,
    d: usize,
    parts: &[Option<Value>],
) -> Result<(Weights, Option<Value>)> {
    let Some(r) = parts[2] else { bail!("R is missing") };
    let groups: Vec<i64> = cell.groups.iter().map(|&n| (n * layer.hidden) as i64).collect();
    let rows = (cell.gates * layer.hidden) as i64;
    let (input_bias, recurrence_bias) = match parts[3] {
        None => (None, Vec::new()),
        Some(bias) => {
            let halves = split(e, bias, 0, &[rows, rows])?;
            (Some(halves[0]), split(e, halves[1], 0, &groups)?)
        }
    };
    let mut recurrence = Vec::new();
    for (i, part) in split(e, r, 0, &groups)?.into_iter().enumerate() {
        recurrence.push((e.transpose(part, &[1, 0])?, recurrence_bias.get(i).copied()));
    }
    let peepholes = match parts[7] {
        Some(p) => split(e, p, 0, &[layer.hidden as i64; 3])?,
        None => Vec::new(),
    };
    let (activations, clip) = (config.activations[d].clone(), config.clip);
    let weights = Weights { hidden: layer.hidden, recurrence, peepholes, activations, clip, switch: config.switch };
    Ok((weights, input_bias))
}
