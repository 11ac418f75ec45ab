//! The cell of `GRU`. With `x` the weighted input, `W` the weights of the state and `b` their bias, by gate:
//!
//! ```text
//! z = f(x_z + W_z h + b_z)     r = f(xᵣ + Wᵣ h + bᵣ)     h' = (1 - z) ⊙ n + z ⊙ h
//! n = g(x_h + W_h (r ⊙ h) + b_h), or g(x_h + r ⊙ (W_h h + b_h)) with `linear_before_reset`
//! ```
//! The gates stand in the order update, reset, hidden.

use super::Cell;
use super::evaluate::Direction;
use super::unroll::Weights;
use crate::error::Result;
use crate::graph::Value;
use crate::ops::Emit;

pub(super) const CELL: Cell = Cell {
    name: "GRU",
    gates: 3,
    groups: &[2, 1],
    activations: &["Sigmoid", "Tanh"],
    switch: "linear_before_reset",
    has_cell: false,
    step,
    emit,
};

fn step(d: &Direction, x: &[f64], h: &mut [f64], _: &mut [f64]) {
    let (n, gates) = (d.hidden, d.recur(0..2, h));
    let gate = |which: usize, j: usize| d.activate(0, x[which * n + j] + gates[which * n + j]);
    let update: Vec<f64> = (0..n).map(|j| gate(0, j)).collect();
    let reset: Vec<f64> = (0..n).map(|j| gate(1, j)).collect();
    let fresh: Vec<f64> = match d.switch {
        true => d.recur(2..3, h).iter().zip(&reset).map(|(state, reset)| state * reset).collect(),
        false => d.recur(2..3, &h.iter().zip(&reset).map(|(h, reset)| h * reset).collect::<Vec<_>>()),
    };
    for j in 0..n {
        let fresh = d.activate(1, x[2 * n + j] + fresh[j]);
        h[j] = (1.0 - update[j]) * fresh + update[j] * h[j];
    }
}

fn emit(e: &mut Emit, w: &Weights, x: &[Value], h: Value, c: Value) -> Result<(Value, Value)> {
    let gates = w.recur(e, 0, h)?;
    let gates = e.add(x[0], gates)?;
    let gates = w.activate(e, 0, gates)?;
    let gates = w.split(e, gates, 2)?;
    let (update, reset) = (gates[0], gates[1]);
    let fresh = match w.switch {
        true => {
            let state = w.recur(e, 1, h)?;
            e.mul(reset, state)?
        }
        false => {
            let shown = e.mul(reset, h)?;
            w.recur(e, 1, shown)?
        }
    };
    let fresh = e.add(x[1], fresh)?;
    let fresh = w.activate(e, 1, fresh)?;
    let rest = e.scalar_minus(1.0, update)?;
    let (added, kept) = (e.mul(rest, fresh)?, e.mul(update, h)?);
    Ok((e.add(added, kept)?, c))
}
