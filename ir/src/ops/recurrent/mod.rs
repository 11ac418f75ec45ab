//! `LSTM`, `GRU`, `RNN`: one recurrent layer, which walks over a sequence forwards, backwards, or both.
//!
//! Specs: <https://onnx.ai/onnx/operators/onnx__LSTM.html>, <https://onnx.ai/onnx/operators/onnx__GRU.html>,
//! <https://onnx.ai/onnx/operators/onnx__RNN.html>. With `T` steps, batch `B`, `I` features, `D` directions, `H` hidden
//! units and `G` gates (`Cell::gates`):
//!
//! | input | shape (`layout` 0) | output | shape (`layout` 0) |
//! |---|---|---|---|
//! | `X` | `[T, B, I]` | `Y` | `[T, D, B, H]` |
//! | `W`, `R` | `[D, G·H, I]`, `[D, G·H, H]` | `Y_h`, `Y_c` | `[D, B, H]` |
//! | `B` | `[D, 2·G·H]` | | |
//! | `sequence_lens` | `[B]` | | |
//! | `initial_h`, `initial_c` | `[D, B, H]` | | |
//! | `P` (LSTM) | `[D, 3·H]` | | |
//!
//! With `layout` 1 the batch comes first in `X`, the initial states and the outputs. Behind the end of its sequence an entry of the batch
//! keeps its states, and `Y` is 0; backwards it begins at its own end.
//!
//! The usual cells decompose into a product and a [`recurrence`], which have kernels and gradients. A cell is a row of functions (`lstm`, `gru`, `rnn`):
//! one step on numbers (`evaluate`), and one step in operators (`unroll`), of which the gradient of unusual ones is made; for that the
//! number of steps must be known.

mod activation;
mod evaluate;
mod gru;
mod layers;
mod lstm;
pub mod recurrence;
mod rnn;
mod scanned;
mod unroll;

use super::{Gradient, InferCx, OpDef, Sample, upgrade};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, bail, ensure};
use activation::Activation;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "LSTM",
        inputs: (3, 8),
        outputs: (1, 3),
        infer: |cx| infer(&lstm::CELL, cx),
        eval: Some(|cx, inputs| evaluate::evaluate(&lstm::CELL, cx, inputs)),
        decompose: Some(|emit, id| layers::decompose(&lstm::CELL, emit, id)),
        sample: Some(|draw| sample(&lstm::CELL, draw)),
        ..ROW
    },
    OpDef {
        name: "GRU",
        infer: |cx| infer(&gru::CELL, cx),
        eval: Some(|cx, inputs| evaluate::evaluate(&gru::CELL, cx, inputs)),
        decompose: Some(|emit, id| layers::decompose(&gru::CELL, emit, id)),
        sample: Some(|draw| sample(&gru::CELL, draw)),
        ..ROW
    },
    OpDef {
        name: "RNN",
        infer: |cx| infer(&rnn::CELL, cx),
        eval: Some(|cx, inputs| evaluate::evaluate(&rnn::CELL, cx, inputs)),
        decompose: Some(|emit, id| layers::decompose(&rnn::CELL, emit, id)),
        sample: Some(|draw| sample(&rnn::CELL, draw)),
        ..ROW
    },
    recurrence::RECURRENCE,
    recurrence::RECURRENCE_GRAD,
];

const ROW: OpDef = OpDef {
    inputs: (3, 6),
    outputs: (1, 2),
    grad: Gradient::Decompose,
    flops: |cx| {
        // Every step multiplies what it reads and its state by the weights of all directions.
        let places = |slot: usize| cx.inputs.get(slot).map_or(0, |s| s.iter().map(|&d| d as u64).product::<u64>());
        let width = cx.inputs.first().and_then(|s| s.get(2)).map_or(1, |&d| d.max(1) as u64);
        2 * places(0) / width * (places(1) + places(2))
    },
    upgrades: &[(7, no_output_switch)],
    ..OpDef::DEFAULT
};

/// Before version 7 an attribute said whether `Y` is an output.
fn no_output_switch(graph: &mut Graph, id: NodeId) -> Result<()> {
    upgrade::take_attr(graph, id, "output_sequence");
    Ok(())
}

/// What one kind of layer does in a step.
pub struct Cell {
    /// The operator's name.
    name: &'static str,
    /// Into how many parts `H` rows high the weights are divided.
    gates: usize,
    /// The gates that are multiplied by the state at once, by number: they sum up to `gates`.
    groups: &'static [usize],
    /// The activations of one direction, unless the attribute says otherwise.
    activations: &'static [&'static str],
    /// The attribute that changes the formula, if it has one.
    switch: &'static str,
    /// Whether it has a second state.
    has_cell: bool,
    /// One step of one entry of the batch: the weighted input, and the states, which it changes.
    step: fn(&evaluate::Direction, &[f64], &mut [f64], &mut [f64]),
    /// The same in operators, for the whole batch: the weighted input by group, and the states. Returns the next states.
    emit: unroll::Step,
}

/// What the attributes of a node say.
struct Config {
    /// For each direction, whether it is walked backwards.
    backwards: Vec<bool>,
    /// The attribute `hidden_size`.
    hidden: Option<usize>,
    /// Whether the batch is the first axis.
    batch_first: bool,
    /// The bound on what activations are given.
    clip: Option<f64>,
    /// The activations by direction.
    activations: Vec<Vec<Activation>>,
    /// [`Cell::switch`].
    switch: bool,
}

/// For each direction, whether it is walked backwards.
fn directions(attrs: &Attributes) -> Result<Vec<bool>> {
    Ok(match attrs.str("direction", "forward")? {
        // Version 1 of GRU misspells its default.
        "forward" | "foward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => bail!("attribute `direction` is \"{other}\", expected \"forward\", \"reverse\" or \"bidirectional\""),
    })
}

fn config(cell: &Cell, op: &Operator) -> Result<Config> {
    let attrs = &op.attrs;
    let backwards = directions(attrs)?;
    let activations = activation::of_directions(attrs, cell.activations, backwards.len())?;
    let clip = attrs.get_float("clip")?.map(f64::from);
    ensure!(clip.is_none_or(|clip| clip >= 0.0), "attribute `clip` is {clip:?}, expected a bound from 0 on");
    let hidden = attrs.get_int("hidden_size")?;
    ensure!(
        hidden.is_none_or(|n| (1..=i64::from(i32::MAX)).contains(&n)),
        "attribute `hidden_size` is {hidden:?}, expected a size"
    );
    Ok(Config {
        backwards,
        hidden: hidden.map(|n| n as usize),
        batch_first: attrs.flag("layout", false)?,
        clip,
        activations,
        switch: !cell.switch.is_empty() && attrs.int(cell.switch, 0)? != 0,
    })
}

fn infer(cell: &Cell, cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype.is_float(), "its input is {dtype}, expected floating-point numbers");
    for slot in [1, 2, 3, 5, 6, 7].into_iter().filter(|&slot| cx.fact(slot).is_some()) {
        ensure!(cx.dtype(slot)? == dtype, "input 0 is {dtype}, input {slot} is {}", cx.dtype(slot)?);
    }
    let config = config(cell, cx.op)?;
    let directions = Dim::Known(config.backwards.len() as i64);
    let axis = |slot: usize, axis: usize, rank: usize| -> Result<Dim> {
        let Some(shape) = cx.shape(slot) else { return Ok(Dim::Unknown) };
        ensure!(shape.len() == rank, "input {slot} has rank {}, expected {rank}", shape.len());
        Ok(shape[axis].clone())
    };
    let (steps, batch) = if config.batch_first { (1, 0) } else { (0, 1) };
    let (steps, batch) = (axis(0, steps, 3)?, axis(0, batch, 3)?);
    let found = axis(2, 2, 3)?;
    let hidden = match config.hidden {
        None => found,
        Some(n) => {
            ensure!(
                found.known().is_none_or(|f| f == n as i64),
                "`hidden_size` is {n}, but the weights are for {found}"
            );
            Dim::Known(n as i64)
        }
    };
    for slot in [1, 2] {
        let (count, rows) = (axis(slot, 0, 3)?, axis(slot, 1, 3)?);
        ensure!(count.known().is_none() || count == directions, "input {slot} is for {count} directions");
        let wanted = hidden.mul(&(cell.gates as i64).into());
        let differ = matches!((&rows, &wanted), (Dim::Known(a), Dim::Known(b)) if a != b);
        ensure!(!differ, "input {slot} has {rows} rows, expected {wanted}");
    }
    let (y, state) = match config.batch_first {
        false => ([&steps, &directions, &batch, &hidden], [&directions, &batch, &hidden]),
        true => ([&batch, &steps, &directions, &hidden], [&batch, &directions, &hidden]),
    };
    let owned = |dims: &[&Dim]| Some(dims.iter().map(|&d| d.clone()).collect::<Vec<_>>());
    let (y, state) = (owned(&y), owned(&state));
    cx.set_tensor(0, dtype, y);
    cx.set_tensor(1, dtype, state.clone());
    cx.set_tensor(2, dtype, state);
    Ok(())
}

fn sample(cell: &Cell, draw: &mut Draw) -> Sample {
    let direction = *draw.pick(&["forward", "reverse", "bidirectional"]);
    let directions = if direction == "bidirectional" { 2 } else { 1 };
    let mut attrs = Attributes::new().with("direction", direction);
    let batch_first = draw.chance(0.3);
    let (steps, batch, features, hidden) = (draw.int(1, 3) as usize, 2, 3, 2);
    for (name, chance) in [("layout", batch_first), (cell.switch, draw.chance(0.5))] {
        if chance && !name.is_empty() {
            attrs.set(name, 1i64);
        }
    }
    if draw.chance(0.5) {
        attrs.set("hidden_size", hidden as i64);
    }
    if draw.chance(0.3) {
        attrs.set("clip", 0.4f32);
    }
    if draw.chance(0.4) {
        activation::draw(draw, cell.activations.len() * directions, &mut attrs);
    }
    let order = |a: usize, b: usize, c: usize| if batch_first { [b, a, c] } else { [a, b, c] };
    let rows = cell.gates * hidden;
    let mut inputs = vec![
        Some(draw.tensor(&order(steps, batch, features), -1.0, 1.0)),
        Some(draw.tensor(&[directions, rows, features], -1.0, 1.0)),
        Some(draw.tensor(&[directions, rows, hidden], -1.0, 1.0)),
    ];
    let mut rest = vec![vec![directions, 2 * rows], vec![], order(directions, batch, hidden).to_vec()];
    if cell.has_cell {
        rest.extend([order(directions, batch, hidden).to_vec(), vec![directions, 3 * hidden]]);
    }
    for shape in rest {
        let tensor = match shape[..] {
            [] => draw.ints(&[batch], 0, steps as i64).cast(DType::I32).ok(),
            _ => Some(draw.tensor(&shape, -1.0, 1.0)),
        };
        inputs.push(tensor.filter(|_| draw.chance(0.6)));
    }
    let check = inputs.iter().map(|t| t.as_ref().is_some_and(|t| t.dtype() == DType::F64)).collect();
    let op = Operator::onnx(cell.name, attrs);
    Sample { op, inputs, check, outputs: if cell.has_cell { 3 } else { 2 } }
}
