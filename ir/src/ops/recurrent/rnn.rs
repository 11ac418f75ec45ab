//! The cell of `RNN`: `h' = f(x + W h + b)`, with `x` the weighted input, `W` the weights of the state and `b` their bias.

use super::Cell;
use super::evaluate::Direction;
use super::unroll::Weights;
use crate::error::Result;
use crate::graph::Value;
use crate::ops::Emit;

pub(super) const CELL: Cell =
    Cell { name: "RNN", gates: 1, groups: &[1], activations: &["Tanh"], switch: "", has_cell: false, step, emit };

fn step(d: &Direction, x: &[f64], h: &mut [f64], _: &mut [f64]) {
    let next = d.recur(0..1, h);
    for (h, (x, next)) in h.iter_mut().zip(x.iter().zip(next)) {
        *h = d.activate(0, x + next);
    }
}

fn emit(e: &mut Emit, w: &Weights, x: &[Value], h: Value, c: Value) -> Result<(Value, Value)> {
    let state = w.recur(e, 0, h)?;
    let sum = e.add(x[0], state)?;
    Ok((w.activate(e, 0, sum)?, c))
}
