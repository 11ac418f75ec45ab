//! The cell of `LSTM`. With `x` the weighted input, `r` the weighted state, both by gate, and peepholes `p`:
//!
//! ```text
//! i = f(xᵢ + rᵢ + pᵢ ⊙ c)     o = f(xₒ + rₒ + pₒ ⊙ c')     φ = f(xφ + rφ + pφ ⊙ c), or 1 - i with `input_forget`
//! c' = φ ⊙ c + i ⊙ g(x_c + r_c)                             h' = o ⊙ h(c')
//! ```
//! The gates stand in the order input, output, forget, cell, the peepholes in the order input, output, forget.

use super::Cell;
use super::evaluate::Direction;
use super::unroll::Weights;
use crate::error::Result;
use crate::graph::Value;
use crate::ops::Emit;

pub(super) const CELL: Cell = Cell {
    name: "LSTM",
    gates: 4,
    groups: &[4],
    activations: &["Sigmoid", "Tanh", "Tanh"],
    switch: "input_forget",
    has_cell: true,
    step,
    emit,
};

fn step(d: &Direction, x: &[f64], h: &mut [f64], c: &mut [f64]) {
    let (n, r) = (d.hidden, d.recur(0..4, h));
    for j in 0..n {
        let gate = |which: usize| x[which * n + j] + r[which * n + j];
        let input = d.activate(0, gate(0) + d.peephole(0, j) * c[j]);
        let forget = if d.switch { 1.0 - input } else { d.activate(0, gate(2) + d.peephole(2, j) * c[j]) };
        let next = forget * c[j] + input * d.activate(1, gate(3));
        let output = d.activate(0, gate(1) + d.peephole(1, j) * next);
        (c[j], h[j]) = (next, output * d.apply(2, next));
    }
}

fn emit(e: &mut Emit, w: &Weights, x: &[Value], h: Value, c: Value) -> Result<(Value, Value)> {
    let gates = w.recur(e, 0, h)?;
    let gates = e.add(x[0], gates)?;
    let gates = w.split(e, gates, 4)?;
    let input = w.with_peephole(e, gates[0], 0, c)?;
    let input = w.activate(e, 0, input)?;
    let forget = match w.switch {
        true => e.scalar_minus(1.0, input)?,
        false => {
            let forget = w.with_peephole(e, gates[2], 2, c)?;
            w.activate(e, 0, forget)?
        }
    };
    let fresh = w.activate(e, 1, gates[3])?;
    let (kept, added) = (e.mul(forget, c)?, e.mul(input, fresh)?);
    let next = e.add(kept, added)?;
    let output = w.with_peephole(e, gates[1], 1, next)?;
    let output = w.activate(e, 0, output)?;
    let shown = w.activations[2].emit(e, next)?;
    Ok((e.mul(output, shown)?, next))
}
