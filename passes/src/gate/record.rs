//! What `gate` did, as JSON in the model's metadata: `harden` and tools read it. Nodes are named, for passes in between may have renumbered or
//! removed some.

use crate::metadata;
use indexmap::IndexMap;
use sartor_ir::{Model, Parameter, Result, ensure};
use serde::{Deserialize, Serialize};

/// The key of the metadata.
pub const KEY: &str = "sartor.gate";

/// All gates of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Floating-point operations of the model without gates, for one example, when they were attached.
    pub flops: u64,
    /// Those of them that have been cut off since (`harden(kind="trim")`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut: u64,
    /// Those of the gate networks.
    pub gate_flops: u64,
    /// The gated blocks, in the graph's order.
    pub blocks: Vec<BlockRecord>,
}

/// One gated block.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Its name.
    pub name: String,
    /// The addition that ends it.
    pub add: String,
    /// The input of the addition that is the body.
    pub slot: usize,
    /// The value that the block reads.
    pub input: String,
    /// Whether the addition's other input is that value itself.
    pub identity: bool,
    /// The parameter `[channels, rank]` that makes a code of what its gate network reads, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Whether its gates open in one order for all inputs: then `weight` is not trained.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nested: bool,
    /// The parameters of its gate network: `[channels, gates]`, or `[rank, gates]` behind a code, and `[gates]`.
    pub weight: String,
    /// See `weight`.
    pub bias: String,
    /// The parameters with the running mean and variance of what its gate network reads, if that is brought to mean 0 and deviation 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<[String; 2]>,
    /// The length of what its gate network reads, if that is normalised, but not to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<f64>,
    /// The parameters of the factors of its gates, if they have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boost: Option<Boost>,
    /// The nodes of the body.
    pub nodes: Vec<String>,
    /// The multiplication of the body by its gate, if it has one.
    pub layer: Option<String>,
    /// Its gated groups of channels.
    pub groups: Vec<GroupRecord>,
    /// How the gates were used when the model was last evaluated, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What makes the factors of a block's gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Boost {
    /// The parameter `[channels, rank]` that makes a code of what the gate network reads, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The parameter `[channels, gates]`, or `[rank, gates]` behind a code.
    pub weight: String,
}

/// How the gates of a block were used, over all inputs of an evaluation: the layer's gate first, if there is one, then those of every group's
/// channels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// The share of inputs for which each gate was above 0.
    pub open: Vec<f64>,
    /// The mean of each gate over the inputs for which it was above 0; 0 if there were none.
    pub value: Vec<f64>,
}

/// One gated group of channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// The multiplication of the channels by their gates.
    pub mul: String,
    /// What computes the channels.
    pub producers: Vec<String>,
    /// What is done to each by itself.
    pub members: Vec<String>,
    /// What sums over them.
    pub consumer: String,
    /// What merges heads for it, if the channels are heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<String>,
    /// How many neighbours among the channels of producers and consumer have a gate together, if not each its own.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub width: usize,
    /// The axis of the channels.
    pub axis: usize,
    /// How many there are.
    pub channels: usize,
    /// What else sums over them, behind the same gates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub squeezes: Vec<SqueezeRecord>,
}

/// A product that sums over the channels of a group beside its consumer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SqueezeRecord {
    /// The multiplication of its data by the group's gates.
    pub mul: String,
    /// The product.
    pub consumer: String,
    /// The axis of the channels in its data.
    pub axis: usize,
}

impl GroupRecord {
    /// Whether the work of a node is in proportion to the channels.
    pub(super) fn concerns(&self, node: &String) -> bool {
        let sums = self.consumer == *node || self.squeezes.iter().any(|squeeze| squeeze.consumer == *node);
        sums || self.producers.contains(node) || self.members.contains(node)
    }
    /// The multiplications by its gates.
    pub(crate) fn multiplications(&self) -> impl Iterator<Item = &String> {
        self.squeezes.iter().map(|squeeze| &squeeze.mul).chain([&self.mul])
    }
}

fn one() -> usize {
    1
}

fn is_one(width: &usize) -> bool {
    *width == 1
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Operations per feature that is normalised.
const NORMALISATION: u64 = 8;
/// Operations per factor of a gate beside the product: division, sigmoid, two multiplications.
const FACTOR: u64 = 4;

impl BlockRecord {
    /// The weights of the gate network that are multiplied with what it reads: they have a row for each feature.
    pub(crate) fn first(&self) -> &String {
        self.code.as_ref().unwrap_or(&self.weight)
    }
    /// The weights that gates and their factors are made with; biases are not among them.
    pub fn weights(&self) -> impl Iterator<Item = &String> {
        let boost = self.boost.iter().flat_map(|boost| boost.code.iter().chain([&boost.weight]));
        self.code.iter().chain([&self.weight]).chain(boost)
    }
    /// All parameters of its gate network.
    pub fn parameters(&self) -> impl Iterator<Item = &String> {
        self.weights().chain([&self.bias])
    }
    /// The operations of its gate network, which reads the means over so many elements, normalised or not.
    pub(crate) fn network_flops(&self, params: &IndexMap<String, Parameter>, elements: u64, normalised: bool) -> u64 {
        let size = |name: &String| params.get(name).map_or(0, |param| param.tensor.len() as u64);
        let features = params.get(self.first()).and_then(|param| param.tensor.shape().first().copied()).unwrap_or(0);
        let products: u64 = self.weights().map(|name| 2 * size(name)).sum();
        let factors = if self.boost.is_some() { FACTOR * size(&self.bias) } else { 0 };
        elements + products + factors + if normalised { NORMALISATION * features as u64 } else { 0 }
    }
    /// How many channels have gates.
    pub fn channels(&self) -> usize {
        self.groups.iter().map(|group| group.channels).sum()
    }
    /// How many gates there are: one of the layer, if it has one, then those of every group's channels.
    pub fn sizes(&self) -> Vec<i64> {
        let channels = self.groups.iter().map(|group| group.channels as i64);
        self.layer.iter().map(|_| 1).chain(channels).collect()
    }
}

impl Record {
    /// Reads it from a model. `None` if the model has no gates.
    pub fn load(model: &Model) -> Result<Option<Record>> {
        metadata::load(model, KEY, "gate")
    }
    /// Writes it to a model.
    pub fn store(&self, model: &mut Model) -> Result<()> {
        metadata::store(model, KEY, self)
    }
    /// One number for every gate, cut into blocks.
    pub fn split<'a>(&self, gates: &'a [f64]) -> Result<Vec<&'a [f64]>> {
        let sizes: Vec<usize> = self.blocks.iter().map(|block| block.sizes().iter().sum::<i64>() as usize).collect();
        let count: usize = sizes.iter().sum();
        ensure!(gates.len() == count, "{} numbers for the {count} gates of the model", gates.len());
        let mut rest = gates;
        let cut = |size: usize| {
            let (block, after) = rest.split_at(size);
            rest = after;
            block
        };
        Ok(sizes.into_iter().map(cut).collect())
    }
    /// Notes how every gate was used: the share of inputs for which it was open, and its mean over those.
    pub fn set_usage(&mut self, open: &[f64], value: &[f64]) -> Result<()> {
        let usage = self.split(open)?.into_iter().zip(self.split(value)?);
        let usage: Vec<Usage> =
            usage.map(|(open, value)| Usage { open: open.to_vec(), value: value.to_vec() }).collect();
        self.blocks.iter_mut().zip(usage).for_each(|(block, usage)| block.usage = Some(usage));
        Ok(())
    }
    /// Removes it from a model.
    pub fn remove(model: &mut Model) {
        metadata::remove(model, KEY);
    }
}
