//! `boost = true`: an open gate also says how much of its channel an input takes (feature boosting, arXiv 1810.05331).
//!
//! ```text
//! g' = g · 2σ(z · V / length)      [N, gates];  z: what the gate network reads;  V starts at 0, so that g' = g at first
//! ```
//! A gate of 0 or 1 can only take something away from an input. The factor, between 0 and 2, is learned from the loss alone, not from costs: what is shut stays shut. V is
//! `[features, gates]`, or, where that would be a large product, `[features, rank]` times `[rank, gates]`, as in gate networks. The division (by the length of normalised features) lets a step of the
//! optimizer move factors as far by V as it would by a bias: undivided, with a length of 3, the loss of ResNet-32 rose by a third and stayed there.

use super::insert::{Network, add_weights, param_in, rank_between};
use super::{BlockRecord, Boost, Record};
use indexmap::IndexMap;
use sartor_ir::ops::Emit;
use sartor_ir::{Model, Parameter, Result, Value, bail};

/// Adds the parameters of all blocks that do not have them. Returns whether there were any.
pub(super) fn add_parameters(model: &mut Model, record: &mut Record) -> Result<bool> {
    let mut flops = 0;
    for block in record.blocks.iter_mut().filter(|block| block.boost.is_none()) {
        let (Some(first), Some(bias)) = (model.params.get(block.first()), model.params.get(&block.bias)) else {
            bail!("the gate network of block \"{}\" is not there", block.name)
        };
        let (features, gates, dtype) = (first.tensor.shape()[0], bias.tensor.len(), bias.tensor.dtype());
        let name = format!("gate.{}.boost", block.name);
        let rank = rank_between(features, gates, None);
        let (code, weight) = add_weights(model, [format!("{name}.code"), name], (features, gates), rank, dtype)?;
        let before = block.network_flops(&model.params, 0, false);
        block.boost = Some(Boost { code, weight });
        flops += block.network_flops(&model.params, 0, false) - before;
    }
    record.gate_flops += flops;
    Ok(flops > 0)
}

/// The gates of a block times their factors: `[N, gates]`; themselves, if the block has none.
pub(super) fn boosted(
    emit: &mut Emit,
    params: &IndexMap<String, Parameter>,
    block: &BlockRecord,
    gates: Value,
    features: Value,
) -> Result<Value> {
    let Some(boost) = &block.boost else { return Ok(gates) };
    let code = boost.code.as_ref().map(|name| param_in(emit.graph, params, name)).transpose()?;
    let network = Network { code, weight: param_in(emit.graph, params, &boost.weight)?, bias: None };
    let scores = network.scores(emit, features)?;
    let scores = block.length.map_or(Ok(scores), |length| emit.mul_scalar(scores, 1.0 / length))?;
    let share = emit.unary("Sigmoid", scores)?;
    let factor = emit.mul_scalar(share, 2.0)?;
    emit.mul(gates, factor)
}
