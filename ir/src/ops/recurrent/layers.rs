//! Recurrent layers as a product and a [`Recurrence`](super::recurrence): the input of all steps is weighted at once, for all directions. Whatever the
//! number of steps, and without it. Cells with peepholes, clipped or coupled gates or activations of their own are [unrolled](super::unroll).

use super::unroll::split;
use super::{Cell, Config, activation::Activation, config};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::ops::Emit;
use crate::ops::emit::Length;
use crate::{Attributes, DType, Tensor, bail};

/// The layer as a recurrence, or else unrolled.
pub(super) fn decompose(cell: &Cell, emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let config = config(cell, &op)?;
    match plain(cell, &config, emit.graph.input(id, 7).is_some()) {
        Some(activation) => layer(cell, &config, activation, emit, id),
        None => super::unroll::unroll(cell, emit, id),
    }
}

/// The first activation, if the cell is one that [`super::recurrence`] has.
fn plain(cell: &Cell, config: &Config, peepholes: bool) -> Option<&'static str> {
    let coupled = cell.has_cell && config.switch;
    if config.clip.is_some() || peepholes || coupled {
        return None;
    }
    let first: Vec<&'static str> = config.activations.first()?.iter().map(Activation::name).collect();
    let alike = config.activations.iter().all(|all| all.iter().map(Activation::name).eq(first.iter().copied()));
    let usual = first == cell.activations || first == ["Relu"];
    (alike && usual).then(|| first[0])
}

fn layer(cell: &Cell, config: &Config, activation: &str, e: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let [x, w, r] = [0, 1, 2].map(|slot| e.operand(id, slot));
    let (x, w, r) = (x?, w?, r?);
    let input = |e: &Emit, slot| e.graph.input(id, slot);
    let Some(hidden) = config.hidden.map(|n| n as i64).or(e.shape(r)?.get(2).and_then(|d| d.known())) else {
        bail!("the number of hidden units is unknown");
    };
    let (directions, rows) = (config.backwards.len() as i64, cell.gates as i64 * hidden);
    let x = if config.batch_first { e.transpose(x, &[1, 0, 2])? } else { x };
    let w = e.reshape_to(w, &[Length::Number(directions * rows), Length::Axis(w, 2)])?;
    let w = e.transpose(w, &[1, 0])?;
    let mut z = e.matmul(x, w)?;
    let before_reset = cell.name == "GRU" && config.switch;
    let mut state_bias = None;
    if let Some(bias) = input(e, 3) {
        let lengths = if before_reset { vec![rows, rows - hidden, hidden] } else { vec![rows, rows] };
        let parts = split(e, bias, 1, &lengths)?;
        let mut other = parts[1];
        if before_reset {
            // The bias of the state's part of the hidden gate is reset with it.
            let zeros = e.constant(Tensor::zeros(e.dtype(bias)?, [directions as usize, hidden as usize])?);
            other = e.op("Concat", &[other, zeros], Attributes::new().with("axis", 1i64))?;
            state_bias = Some(parts[2]);
        }
        let sum = e.add(parts[0], other)?;
        let sum = e.reshape(sum, &[-1])?;
        z = e.add(z, sum)?;
    }
    let lens = input(e, 4).map(|lens| e.cast(lens, DType::I64)).transpose()?;
    let mut states = [input(e, 5), if cell.has_cell { input(e, 6) } else { None }];
    if config.batch_first {
        for state in &mut states {
            *state = state.map(|state| e.transpose(state, &[1, 0, 2])).transpose()?;
        }
    }
    let direction = e.attrs(id).str("direction", "forward")?.to_string();
    let mut attrs = Attributes::new().with("cell", cell.name).with("direction", direction.as_str());
    if before_reset {
        attrs.set("linear_before_reset", 1i64);
    }
    if activation == "Relu" {
        attrs.set("activation", "Relu");
    }
    let mut inputs = vec![Some(z), Some(r), states[0], states[1], lens, state_bias];
    while inputs.last() == Some(&None) {
        inputs.pop();
    }
    let count = if cell.has_cell { 3 } else { 2 };
    let found = e.node(Operator::sartor("Recurrence", attrs), &inputs, count)?;
    if !config.batch_first {
        return Ok(found);
    }
    let mut outputs = vec![e.transpose(found[0], &[2, 0, 1, 3])?];
    for &state in &found[1..] {
        outputs.push(e.transpose(state, &[1, 0, 2])?);
    }
    Ok(outputs)
}
