//! How much channels matter, as far as weights say: where gates of 0 and 1 begin.
//!
//! A gate of 0 and 1 is open wherever its network says more than 0, so each may begin at a height of its own and the gated model is the model all the same. If all
//! began at one height, the cost would press them down together and shut a group at once. They begin evenly spread instead, from 1 for the channel that matters most
//! to 1/n for the one that matters least: the same pressure then shuts one after the other, and what an input says about all of them opens as many as it asks for.
//!
//! What a channel matters: the length of the weights that read it, times how large it is: the scale of the normalisation that it goes through, or else the length of the
//! weights that make it. Of channels whose weights are not known the first matter most.

use super::{Block, Group};
use crate::cola::effective_weight;
use crate::harden::{consumer_axis, producer_axis};
use sartor_ir::{Model, NodeId, Result, Tensor};

/// The heights at which the gates of a block's channels begin, group by group.
pub(super) fn heights(model: &Model, block: &Block) -> Result<Vec<f32>> {
    let mut heights = Vec::new();
    for group in &block.groups {
        let matters = importance(model, group)?;
        let mut order: Vec<usize> = (0..group.channels).collect();
        // Stable: of equals the first comes first.
        order.sort_by(|&a, &b| matters[b].total_cmp(&matters[a]));
        let from = heights.len();
        heights.resize(from + group.channels, 0.0);
        for (place, &channel) in order.iter().enumerate() {
            heights[from + channel] = (group.channels - place) as f32 / group.channels as f32;
        }
    }
    Ok(heights)
}

fn importance(model: &Model, group: &Group) -> Result<Vec<f64>> {
    let mut all = vec![1.0; group.channels];
    let mut times = |factors: Option<Vec<f64>>| {
        // Of a head all channels together.
        let width = factors.as_ref().map_or(1, |factors| factors.len() / all.len().max(1));
        let factors =
            factors.filter(|factors| factors.len() == all.len() * width).map(|factors| bundled(&factors, width));
        all.iter_mut().zip(factors.into_iter().flatten()).for_each(|(value, factor)| *value *= factor);
    };
    let op = |id: NodeId| model.graph.node(id).op();
    let normalisation = group.members.iter().find(|&&id| op(id).is_some_and(|op| op.is("BatchNormalization")));
    match normalisation {
        Some(&id) => times(constant(model, id).map(|scale| lengths(&scale, 0)).transpose()?),
        None => {
            for &id in &group.producers {
                let axis = op(id).map(producer_axis).transpose()?.flatten();
                times(axis.zip(constant(model, id)).map(|(axis, weight)| lengths(&weight, axis)).transpose()?);
            }
        }
    }
    let axis = op(group.consumer).map(consumer_axis).transpose()?.flatten();
    times(axis.zip(constant(model, group.consumer)).map(|(axis, weight)| lengths(&weight, axis)).transpose()?);
    Ok(all)
}

/// The weights of a node, if they are constant.
fn constant(model: &Model, id: NodeId) -> Option<Tensor> {
    effective_weight(&model.graph, model, model.graph.input(id, 1)?).ok()
}

/// The lengths of the slices along an axis.
fn lengths(weight: &Tensor, axis: usize) -> Result<Vec<f64>> {
    let (slices, inner) = (weight.shape()[axis], weight.shape()[axis + 1..].iter().product::<usize>());
    let mut squares = vec![0.0; slices];
    for (i, w) in weight.to_f64s()?.into_iter().enumerate() {
        squares[i / inner % slices] += w * w;
    }
    Ok(squares.into_iter().map(f64::sqrt).collect())
}

/// The lengths of bundles of neighbours.
fn bundled(lengths: &[f64], width: usize) -> Vec<f64> {
    lengths.chunks(width.max(1)).map(|bundle| bundle.iter().map(|x| x * x).sum::<f64>().sqrt()).collect()
}
