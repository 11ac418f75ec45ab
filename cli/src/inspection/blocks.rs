//! The blocks of a model that can be gated, as `sartor inspect --blocks` shows them.

use crate::files;
use sartor_ir::{Graph, Model, NodeId, Result};
use sartor_passes::gate::{self, cost::Costs};
use sartor_passes::{Registry, walk};
use serde::Serialize;
use std::fmt;

/// What can be gated.
#[derive(Debug, Serialize)]
pub struct Blocks {
    /// Operations for one example.
    pub flops: u64,
    /// The blocks.
    pub blocks: Vec<Row>,
    /// What was not taken.
    pub refused: Vec<gate::Refusal>,
}

/// A block.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The value that it reads.
    pub input: String,
    /// Whether it has a shortcut, so that it can be left out as a whole.
    pub residual: bool,
    /// Operations of its body.
    pub flops: u64,
    /// Its groups of channels.
    pub groups: Vec<Channels>,
}

/// A group of channels.
#[derive(Debug, Serialize)]
pub struct Channels {
    /// How many gates they get.
    pub channels: usize,
    /// How many neighbours have one together: the width of an attention's head, else 1.
    pub width: usize,
    /// The nodes that compute them.
    pub producers: Vec<String>,
    /// The node that reads them.
    pub consumer: String,
}

impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let heads = if self.width > 1 { format!(" heads of {}", self.width) } else { String::new() };
        write!(f, "{}{heads} ({} → {})", self.channels, self.producers.join(", "), self.consumer)
    }
}

/// Finds them. The model is brought into the internal opset first.
pub fn find(model: &Model, registry: &Registry) -> Result<Blocks> {
    let mut model = model.clone();
    files::prepare(&mut model, registry)?;
    gate::separate(&mut model)?;
    walk::name_anonymous_nodes(&mut model);
    let graph = &model.graph;
    let (found, costs) = (gate::find(graph)?, Costs::of(graph, model.opset())?);
    let rows = found.blocks.iter().map(|block| row(graph, block, &costs)).collect();
    Ok(Blocks { flops: costs.total, blocks: rows, refused: found.refused })
}

fn row(graph: &Graph, block: &gate::Block, costs: &Costs) -> Row {
    let name = |id: &NodeId| graph.node(*id).name.clone();
    let channels = |group: &gate::Group| Channels {
        channels: group.channels,
        width: group.width,
        producers: group.producers.iter().map(name).collect(),
        consumer: name(&group.consumer),
    };
    Row {
        name: block.name.clone(),
        input: graph.value_name(block.input).to_string(),
        residual: block.residual,
        flops: costs.sum(&block.nodes),
        groups: block.groups.iter().map(channels).collect(),
    }
}
