//! The nodes of a gated group of channels in a graph, by the names that the record says.

use super::{find, resize};
use crate::gate::{BlockRecord, GroupRecord, blocks};
use crate::walk::nodes_by_name;
use sartor_ir::{Dim, Graph, NodeId, Result};
use std::collections::HashMap;

/// Where gates multiply channels, which a product behind that sums over.
pub(super) struct Site {
    pub(super) mul: NodeId,
    pub(super) consumer: NodeId,
    pub(super) axis: usize,
}

/// A group's nodes.
pub(super) struct Nodes {
    pub(super) producers: Vec<NodeId>,
    pub(super) members: Vec<NodeId>,
    /// What merges heads for the consumer, if the channels are heads.
    pub(super) merge: Option<NodeId>,
    /// Where its gates multiply for its consumer.
    pub(super) last: Site,
    squeezes: Vec<Site>,
}

impl Nodes {
    pub(super) fn of(by_name: &HashMap<String, NodeId>, group: &GroupRecord) -> Result<Nodes> {
        let site = |mul: &String, consumer: &String, axis: usize| {
            Ok(Site { mul: find(by_name, mul)?, consumer: find(by_name, consumer)?, axis })
        };
        let squeezes = group.squeezes.iter().map(|squeeze| site(&squeeze.mul, &squeeze.consumer, squeeze.axis));
        Ok(Nodes {
            producers: group.producers.iter().map(|name| find(by_name, name)).collect::<Result<_>>()?,
            // Normalisation may have been folded into its producer.
            members: group.members.iter().filter_map(|name| by_name.get(name).copied()).collect(),
            merge: group.merge.as_ref().map(|name| find(by_name, name)).transpose()?,
            last: site(&group.mul, &group.consumer, group.axis)?,
            squeezes: squeezes.collect::<Result<_>>()?,
        })
    }
    /// Those of all groups of a block whose channels can be left out; with `depthwise`, also where a depthwise convolution is between.
    pub(super) fn of_block<'a>(
        graph: &Graph,
        block: &'a BlockRecord,
        depthwise: bool,
    ) -> Result<Vec<(&'a GroupRecord, Nodes)>> {
        let by_name = nodes_by_name(graph);
        let all = block.groups.iter().map(|group| Ok((group, Nodes::of(&by_name, group)?)));
        let wanted = |(_, nodes): &(_, Nodes)| depthwise || !nodes.has_depthwise(graph);
        Ok(all.collect::<Result<Vec<_>>>()?.into_iter().filter(wanted).collect())
    }
    /// Where its gates multiply.
    pub(super) fn sites(&self) -> impl Iterator<Item = &Site> {
        self.squeezes.iter().chain([&self.last])
    }
    /// Whether a depthwise convolution is between what makes the channels and what reads them.
    pub(super) fn has_depthwise(&self, graph: &Graph) -> bool {
        self.members.iter().any(|&id| graph.node(id).is("Conv"))
    }
    /// The axis of the channels in what every node puts out, multiplications by gates included.
    pub(super) fn axes(&self, graph: &Graph) -> HashMap<NodeId, usize> {
        let mut all = HashMap::new();
        for site in self.sites() {
            if let Some(value) = graph.input(site.mul, 0) {
                all.extend(blocks::axes(graph, &self.producers, &self.members, value, site.axis));
            }
            all.insert(site.mul, site.axis);
        }
        all
    }
    /// Notes in the types of what nodes put out that the number of channels, which lie on these axes, is not known any more.
    pub(super) fn forget(&self, graph: &mut Graph, mut axes: HashMap<NodeId, usize>) {
        axes.extend(self.merge.map(|id| (id, self.last.axis)));
        resize(graph, &axes, &Dim::Unknown);
    }
}
