//! The reference evaluation of recurrent layers: step by step and entry by entry in `f64`, rounded once at the end.

use super::recurrence::{Sizes, lengths, sized, times};
use super::{Cell, Config, activation::Activation, config};
use crate::Tensor;
use crate::error::{Error, Result};
use crate::ops::real::{optional, reals, required, rounded};
use crate::ops::{EvalCx, index};

/// The weights of one direction.
pub struct Direction<'a> {
    /// The number of hidden units.
    pub(super) hidden: usize,
    /// `[G·H, I]`
    input: &'a [f64],
    /// `[G·H, H]`
    recurrence: &'a [f64],
    /// `[G·H]` each; empty for no biases.
    input_bias: &'a [f64],
    recurrence_bias: &'a [f64],
    /// `[3·H]`, or empty.
    peepholes: &'a [f64],
    activations: &'a [Activation],
    clip: Option<f64>,
    pub(super) switch: bool,
}

impl Direction<'_> {
    /// The activation of this number, of what is clipped first.
    pub(super) fn activate(&self, which: usize, x: f64) -> f64 {
        self.activations[which].apply(self.clip.map_or(x, |clip| x.clamp(-clip, clip)))
    }
    /// The activation of this number.
    pub(super) fn apply(&self, which: usize, x: f64) -> f64 {
        self.activations[which].apply(x)
    }
    /// The rows of these gates times a state, with their biases.
    pub(super) fn recur(&self, gates: std::ops::Range<usize>, state: &[f64]) -> Vec<f64> {
        let rows = gates.start * self.hidden..gates.end * self.hidden;
        let weights = &self.recurrence[rows.start * self.hidden..rows.end * self.hidden];
        product(weights, state, self.recurrence_bias.get(rows.clone()).unwrap_or_default(), rows.len())
    }
    /// The weight of the peephole of this number from a unit's cell.
    pub(super) fn peephole(&self, which: usize, unit: usize) -> f64 {
        self.peepholes.get(which * self.hidden + unit).copied().unwrap_or(0.0)
    }
}

/// `weights · x + bias`; `rows` is its length.
fn product(weights: &[f64], x: &[f64], bias: &[f64], rows: usize) -> Vec<f64> {
    let dot = |row: usize| -> f64 {
        let weights = &weights[row * x.len()..(row + 1) * x.len()];
        weights.iter().zip(x).map(|(w, x)| w * x).sum()
    };
    (0..rows).map(|row| dot(row) + bias.get(row).copied().unwrap_or(0.0)).collect()
}

/// The lengths of everything.
struct Layer {
    sizes: Sizes,
    features: usize,
}

pub(super) fn evaluate(cell: &Cell, cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let config = config(cell, cx.op)?;
    let (x, r) = (required(inputs, 0)?, required(inputs, 2)?);
    let layer = sizes(&config, x, r)?;
    let Layer { sizes: Sizes { steps, batch, hidden }, features } = layer;
    let (directions, rows) = (config.backwards.len(), cell.gates * hidden);
    let state_shape = if config.batch_first { [batch, directions, hidden] } else { [directions, batch, hidden] };
    let w = checked(Some(required(inputs, 1)?), 1, &[directions, rows, features])?;
    let r = checked(Some(r), 2, &[directions, rows, hidden])?;
    let b = checked(optional(inputs, 3), 3, &[directions, 2 * rows])?;
    let lens = lengths(optional(inputs, 4), layer.sizes)?;
    let mut h = states(checked(optional(inputs, 5), 5, &state_shape)?, &config, layer.sizes)?;
    let second = if cell.has_cell { optional(inputs, 6) } else { None };
    let mut c = states(checked(second, 6, &state_shape)?, &config, layer.sizes)?;
    let p = checked(optional(inputs, 7).filter(|_| cell.has_cell), 7, &[directions, 3 * hidden])?;
    let (dtype, x) = (x.dtype(), reals(x)?);

    let y_shape = match config.batch_first {
        false => [steps, directions, batch, hidden],
        true => [batch, steps, directions, hidden],
    };
    index::room(&y_shape)?;
    let mut y = vec![0.0; index::count(&y_shape)];
    for (d, &backwards) in config.backwards.iter().enumerate() {
        let part = |all: &'_ [f64], len: usize| if all.is_empty() { 0..0 } else { d * len..(d + 1) * len };
        let biases = &b[part(&b, 2 * rows)];
        let (input_bias, recurrence_bias) = biases.split_at(biases.len() / 2);
        let direction = Direction {
            hidden,
            input: &w[part(&w, rows * features)],
            recurrence: &r[part(&r, rows * hidden)],
            input_bias,
            recurrence_bias,
            peepholes: &p[part(&p, 3 * hidden)],
            activations: &config.activations[d],
            clip: config.clip,
            switch: config.switch,
        };
        for (e, &len) in lens.iter().enumerate() {
            let own = (d * batch + e) * hidden..(d * batch + e + 1) * hidden;
            for t in times(len, backwards) {
                let place = if config.batch_first { e * steps + t } else { t * batch + e };
                let features = &x[place * features..(place + 1) * features];
                let weighted = product(direction.input, features, direction.input_bias, rows);
                (cell.step)(&direction, &weighted, &mut h[own.clone()], &mut c[own.clone()]);
                let place = match config.batch_first {
                    false => (t * directions + d) * batch + e,
                    true => (e * steps + t) * directions + d,
                };
                y[place * hidden..(place + 1) * hidden].copy_from_slice(&h[own.clone()]);
            }
        }
    }
    let mut outputs = vec![rounded(dtype, y_shape, y)?];
    for state in if cell.has_cell { vec![h, c] } else { vec![h] } {
        let state = if config.batch_first { swapped(&state, directions, batch, hidden) } else { state };
        outputs.push(rounded(dtype, state_shape, state)?);
    }
    Ok(outputs)
}

fn sizes(config: &Config, x: &Tensor, r: &Tensor) -> Result<Layer> {
    let (&[a, b, features], &[_, _, found]) = (x.shape(), r.shape()) else {
        return Err(Error::msg(format!("X and R have shapes {:?} and {:?}, expected rank 3", x.shape(), r.shape())));
    };
    let hidden = config.hidden.unwrap_or(found);
    let (steps, batch) = if config.batch_first { (b, a) } else { (a, b) };
    Ok(Layer { sizes: Sizes { steps, batch, hidden }, features })
}

/// The numbers of an input of this shape; none if it is left out.
fn checked(tensor: Option<&Tensor>, slot: usize, shape: &[usize]) -> Result<Vec<f64>> {
    Ok(sized(tensor, &format!("input {slot}"), shape)?.unwrap_or_default())
}

/// Initial states as `[D, B, H]`, zeros if none are given.
fn states(given: Vec<f64>, config: &Config, sizes: Sizes) -> Result<Vec<f64>> {
    let (directions, batch, hidden) = (config.backwards.len(), sizes.batch, sizes.hidden);
    if !given.is_empty() {
        return Ok(if config.batch_first { swapped(&given, batch, directions, hidden) } else { given });
    }
    index::room(&[directions, batch, hidden])?;
    Ok(vec![0.0; directions * batch * hidden])
}

/// `[a, b, width]` as `[b, a, width]`.
fn swapped(numbers: &[f64], a: usize, b: usize, width: usize) -> Vec<f64> {
    let places = (0..b).flat_map(|j| (0..a).map(move |i| i * b + j));
    places.flat_map(|place| &numbers[place * width..(place + 1) * width]).copied().collect()
}
