//! Where gates can go: residual blocks, and inside of them groups of channels.
//!
//! A *residual block* is an addition of two values of one shape, one of which (the *body*) is computed from the block's *input* by
//! operators with weights that nobody outside reads; the other is the input itself, or a *shortcut* computed from it. Its input is the
//! operand that the body depends on, or else the last value in the graph's order that both operands depend on. What else the body reads
//! (an attention mask) comes from elsewhere. Without the body the block still has its shortcut.
//!
//! A *group of channels* is what computes and what reads the hidden channels of a body: one or several *producers* (a convolution of
//! one group, a product with a constant matrix), the channel-wise operators behind them (activations, normalisation by given
//! statistics, per-channel constants, depthwise convolutions, pools, products of two such values; transpositions, behind which the channels lie on another axis), and the one *consumer* that sums over the channels. If
//! nothing else reads them, a channel that is multiplied by 0 before the consumer need not be computed at all.
//!
//! Channels may be scaled by what is computed from them, as by squeeze-and-excitation: then a second product, the *squeeze*, sums over them too, behind the same gates, and what makes the factors is one
//! more producer.
//!
//! The heads of an attention are groups too, with a gate for a head (`heads`).
//!
//! Groups outside of residual blocks (plain networks, blocks that change the size) are blocks of their own, without a gate for the whole: only their channels can be left
//! out. A producer in one of them is no consumer in another, so that no gate network reads what other gates shut.
//!
//! What looks like either and is not taken is kept with the reason.

use super::heads;
use crate::cola::is_still;
use crate::pattern::{self, candidate_names};
use sartor_ir::{DType, Dim, Graph, Node, NodeId, NodeKind, Result, Type, Value};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// A residual block, or a group of channels outside of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// A name for people and for parameters: the module that the addition stands in, or its node's name.
    pub name: String,
    /// Whether it has a shortcut: then it can be left out as a whole.
    pub residual: bool,
    /// The addition; without a shortcut the consumer.
    pub add: NodeId,
    /// The input of the addition that is the body.
    pub slot: usize,
    /// What the block reads.
    pub input: Value,
    /// The axis of the input's channels.
    pub axis: usize,
    /// The operators of the body, in the graph's order.
    pub nodes: Vec<NodeId>,
    /// Its groups of channels, in the order of their consumers.
    pub groups: Vec<Group>,
}

/// A group of channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What computes the channels.
    pub producers: Vec<NodeId>,
    /// What is done to each by itself.
    pub members: Vec<NodeId>,
    /// What sums over them.
    pub consumer: NodeId,
    /// What reads the value that gates multiply: the consumer, or what merges heads for it.
    pub reader: NodeId,
    /// That value.
    pub value: Value,
    /// The axis of the channels in that value.
    pub axis: usize,
    /// How many there are.
    pub channels: usize,
    /// How many neighbours among the channels of producers and consumer have a gate together: the width of an attention's head; else 1.
    pub width: usize,
    /// What else sums over them.
    pub squeezes: Vec<Squeeze>,
}

/// A product that sums over the channels of a group beside its consumer: the first one of a squeeze-and-excitation.
#[derive(Clone, Debug, PartialEq)]
pub struct Squeeze {
    /// The product. Gates multiply its data.
    pub consumer: NodeId,
    /// The axis of the channels in these.
    pub axis: usize,
}

/// What was not taken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Refusal {
    /// The node at which it was decided.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// What a graph has to gate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The blocks, in the graph's order.
    pub blocks: Vec<Block>,
    /// What looks like one and is not.
    pub refused: Vec<Refusal>,
}

/// Finds the blocks of a graph whose types are inferred.
pub fn find(graph: &Graph) -> Result<Found> {
    let order = order(graph);
    let mut found = Found::default();
    for add in graph.topo_ops() {
        let Some(operands) = operands(graph, add) else { continue };
        match block_at(graph, &order, add, operands) {
            Ok(Some(block)) => found.blocks.push(block),
            Ok(None) => {}
            Err(reason) => found.refused.push(Refusal { node: graph.node(add).name.clone(), reason }),
        }
    }
    for block in &mut found.blocks {
        add_groups(graph, block, &mut found.refused)?;
    }
    let residual = found.blocks.len();
    plain_groups(graph, &order, &mut found)?;
    // In the graph's order.
    if found.blocks.len() > residual {
        found.blocks.sort_by_key(|block| order[&block.add]);
    }
    distinguish(&mut found.blocks);
    Ok(found)
}

/// Adds the groups inside of a residual block.
fn add_groups(graph: &Graph, block: &mut Block, refused: &mut Vec<Refusal>) -> Result<()> {
    let named = |consumer: NodeId, reason: String| Refusal { node: graph.node(consumer).name.clone(), reason };
    let inside = block.nodes.iter().copied().collect();
    let (mut groups, mut others) = (Vec::new(), Vec::new());
    for &consumer in &block.nodes {
        match group_at(graph, &inside, consumer)? {
            Ok(Some(group)) => groups.push(group),
            Ok(None) => {}
            Err(reason) => others.push((consumer, reason)),
        }
    }
    // The few channels between a squeeze and what scales the others are left alone.
    let squeezes: HashSet<NodeId> =
        groups.iter().flat_map(|group| &group.squeezes).map(|squeeze| squeeze.consumer).collect();
    groups.retain(|group| !group.squeezes.is_empty() || !group.producers.iter().any(|id| squeezes.contains(id)));
    others.retain(|(consumer, _)| !squeezes.contains(consumer));
    block.axis = channel_axis(graph, block.input, &block.nodes);
    let places = places(graph, block.input, block.axis);
    let few = places.is_some_and(|places| places < LEAST_PLACES);
    for group in groups {
        match places_made(graph, &group).is_none_or(|own| own >= LEAST_PLACES) || few {
            true => block.groups.push(group),
            false => others.push((group.consumer, COSTLY.to_string())),
        }
    }
    refused.extend(others.into_iter().map(|(consumer, reason)| named(consumer, reason)));
    Ok(())
}

/// Adds the groups outside of residual blocks.
fn plain_groups(graph: &Graph, order: &HashMap<NodeId, usize>, found: &mut Found) -> Result<()> {
    let residual: HashSet<NodeId> = found.blocks.iter().flat_map(|block| &block.nodes).copied().collect();
    let outside: HashSet<NodeId> = graph.topo_ops().into_iter().filter(|id| !residual.contains(id)).collect();
    let (mut consumers, mut refused) = (HashSet::new(), Vec::new());
    for consumer in graph.topo_ops().into_iter().filter(|id| outside.contains(id)) {
        let plain = match group_at(graph, &outside, consumer)? {
            Ok(None) => continue,
            Ok(Some(group)) => plain_block(graph, order, &consumers, group),
            Err(reason) => Err(reason),
        };
        match plain {
            Ok(block) => {
                consumers.insert(consumer);
                found.blocks.push(block);
            }
            Err(reason) => refused.push(Refusal { node: graph.node(consumer).name.clone(), reason }),
        }
    }
    // Beside blocks, every product that reads one would be named here.
    if found.blocks.is_empty() {
        found.refused.extend(refused);
    }
    Ok(())
}

/// Fewer places are not worth a gate network, which costs about as much as one place.
const LEAST_PLACES: i64 = 4;
const COSTLY: &str = "a gate network would cost as much as its channels";

/// In how many places an example has channels, which lie on this axis; `None` if that is not known.
fn places(graph: &Graph, value: Value, axis: usize) -> Option<i64> {
    let shape = graph.ty(value).and_then(Type::shape).unwrap_or_default();
    let others = shape.iter().enumerate().filter(|&(at, _)| at != 0 && at != axis);
    others.map(|(_, dim)| dim.known()).product()
}

/// In how many places the channels of a group are made, at most.
fn places_made(graph: &Graph, group: &Group) -> Option<i64> {
    let axes = axes(graph, &group.producers, &group.members, group.value, group.axis);
    let made = |id: &NodeId| axes.get(id).map(|&axis| places(graph, Value { node: *id, slot: 0 }, axis));
    group.producers.iter().filter_map(made).collect::<Option<Vec<i64>>>()?.into_iter().max()
}

/// A group outside of residual blocks as a block.
fn plain_block(
    graph: &Graph,
    order: &HashMap<NodeId, usize>,
    consumers: &HashSet<NodeId>,
    group: Group,
) -> Result<Block, String> {
    let squeezed = |id: NodeId| group.squeezes.iter().any(|squeeze| depends(graph, id, squeeze.consumer));
    let makers: Vec<NodeId> = group.producers.iter().filter(|&&id| !squeezed(id)).copied().collect();
    let inputs: HashSet<Value> = makers.iter().filter_map(|&id| Some(product(graph, id)?.data)).collect();
    let (1, Some(&input)) = (inputs.len(), inputs.iter().next()) else {
        return Err("its channels are made of several values".to_string());
    };
    if group.producers.iter().any(|id| consumers.contains(id)) {
        return Err("what makes its channels reads channels that have gates".to_string());
    }
    let rank = |value: Value| graph.ty(value).and_then(Type::rank).unwrap_or(0);
    if rank(input) < 2 || group.axis == 0 || batch(graph, input) != batch(graph, group.value) {
        return Err("its input does not have the batch as the first axis".to_string());
    }
    if places_made(graph, &group).is_some_and(|places| places < LEAST_PLACES) {
        return Err(COSTLY.to_string());
    }
    let summing = group.squeezes.iter().map(|squeeze| squeeze.consumer).chain([group.consumer]);
    let mut nodes: Vec<NodeId> = group.producers.iter().chain(&group.members).copied().chain(summing).collect();
    nodes.sort_by_key(|id| order[id]);
    let (name, axis) = (name_of(graph, makers[0]), channel_axis(graph, input, &nodes));
    Ok(Block { name, residual: false, add: group.consumer, slot: 0, input, axis, nodes, groups: vec![group] })
}

/// Whether a node needs what another one computes.
fn depends(graph: &Graph, id: NodeId, on: NodeId) -> bool {
    graph.ancestors([Value { node: id, slot: 0 }], |_| false).contains(&on)
}

fn batch(graph: &Graph, value: Value) -> Option<Dim> {
    graph.ty(value).and_then(Type::shape).and_then(<[Dim]>::first).cloned()
}

/// The two operands of an addition of computed values of one floating-point shape.
fn operands(graph: &Graph, add: NodeId) -> Option<[Value; 2]> {
    let node = graph.node(add);
    let inputs = graph.node_inputs(add);
    let &[Some(a), Some(b)] = inputs.as_slice() else { return None };
    let fits = (node.is("Add") || node.is("Sum")) && a != b && [a, b].iter().all(|v| is_computed(graph.node(v.node)));
    let (x, y) = (graph.ty(a)?, graph.ty(b)?);
    let same = x.dtype()?.is_float() && x.rank()? >= 2 && x.shape() == y.shape();
    (fits && same).then_some([a, b])
}

fn is_computed(node: &Node) -> bool {
    matches!(node.kind, NodeKind::Op(_) | NodeKind::Input) && node.constant().is_none()
}

/// The block that ends in an addition; `Ok(None)` if it is some other addition, a reason if it is one that cannot be left out.
fn block_at(
    graph: &Graph,
    order: &HashMap<NodeId, usize>,
    add: NodeId,
    [a, b]: [Value; 2],
) -> Result<Option<Block>, String> {
    let above = [a, b].map(|v| graph.ancestors([v], |_| false));
    let (slot, input) = if above[1].contains(&a.node) {
        (1, a)
    } else if above[0].contains(&b.node) {
        (0, b)
    } else {
        let float =
            |id: NodeId| graph.ty(Value { node: id, slot: 0 }).and_then(Type::dtype).is_some_and(DType::is_float);
        let common = above[0].intersection(&above[1]).filter(|&&id| is_computed(graph.node(id)) && float(id));
        let Some(&last) = common.max_by_key(|id| order[id]) else { return Ok(None) };
        let input = Value { node: last, slot: 0 };
        let [first, second] = [0, 1].map(|i| weighted(graph, &region(graph, order, &above[i], input)));
        // The longer path is the body; of two equal ones, the first operand.
        (usize::from(second > first), input)
    };
    let body = [a, b][slot];
    let nodes = region(graph, order, &above[slot], input);
    if weighted(graph, &nodes) == 0 {
        return Ok(None);
    }
    let inside: HashSet<NodeId> = nodes.iter().copied().collect();
    for &id in &nodes {
        for value in graph.node_outputs(id) {
            let outside = |&(reader, _): &(NodeId, usize)| !inside.contains(&reader) && reader != add;
            let read = graph.uses(value).into_iter().find(outside);
            if let Some((reader, _)) = read {
                return Err(format!("\"{}\" reads a value from inside of the block", graph.node(reader).name));
            }
            if graph.is_output(value) {
                return Err(format!(
                    "\"{}\" is computed inside of the block and is an output",
                    graph.value_name(value)
                ));
            }
            if value != body && graph.uses(value).iter().any(|&(reader, _)| reader == add) {
                return Err("the shortcut starts inside of the block".to_string());
            }
        }
    }
    if batch(graph, input) != batch(graph, body) || graph.ty(input).and_then(Type::rank).is_none_or(|rank| rank < 2) {
        return Err("its input does not have the batch as the first axis".to_string());
    }
    Ok(Some(Block { name: name_of(graph, add), residual: true, add, slot, input, axis: 1, nodes, groups: Vec::new() }))
}

/// The place of every node in the graph's order.
pub(crate) fn order(graph: &Graph) -> HashMap<NodeId, usize> {
    graph.topo().into_iter().enumerate().map(|(i, id)| (id, i)).collect()
}

/// The nodes between a value and those that need it, in order. Who asks for the value's shape does not need the value.
pub(crate) fn region(
    graph: &Graph,
    order: &HashMap<NodeId, usize>,
    above: &HashSet<NodeId>,
    input: Value,
) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = above.iter().copied().filter(|id| graph.node(*id).op().is_some()).collect();
    nodes.sort_by_key(|id| order[id]);
    let mut inside: HashSet<NodeId> = HashSet::new();
    nodes.retain(|&id| {
        let reads = |value: &Value| *value == input || inside.contains(&value.node);
        let depends = graph.node_inputs(id).iter().flatten().any(reads);
        let only_shape = graph.node(id).is("Shape") && graph.input(id, 0) == Some(input);
        depends && !only_shape && inside.insert(id)
    });
    nodes
}

/// How many of the nodes are products with weights.
fn weighted(graph: &Graph, nodes: &[NodeId]) -> usize {
    nodes.iter().filter(|&&id| product(graph, id).is_some() || is_depthwise(graph, id)).count()
}

/// A product that sums over all channels of its data.
struct Product {
    data: Value,
    /// The axis of the channels of data and result.
    axis: usize,
    outputs: usize,
}

fn static_shape(graph: &Graph, value: Value) -> Option<Vec<usize>> {
    graph.ty(value)?.static_shape()
}

/// The product at a node: a convolution of one group, `MatMul` or `Gemm` with a constant matrix on the right.
fn product(graph: &Graph, id: NodeId) -> Option<Product> {
    let op = graph.node(id).op().filter(|op| op.domain.is_empty())?;
    let (data, weight) = (graph.input(id, 0)?, graph.input(id, 1)?);
    let shape = static_shape(graph, weight)?;
    let rank = graph.ty(data)?.rank()?;
    let (axis, outputs) = match (op.name.as_str(), shape.as_slice()) {
        ("Conv", [outputs, _, _, ..]) if op.attrs.int("group", 1).ok()? == 1 => (1, *outputs),
        ("MatMul", [_, outputs]) => (rank.checked_sub(1)?, *outputs),
        ("Gemm", [rows, cols]) if !op.attrs.flag("transA", false).ok()? => {
            (1, if op.attrs.flag("transB", false).ok()? { *rows } else { *cols })
        }
        _ => return None,
    };
    // Last, for it walks the graph.
    let constant = pattern::source_param(graph, weight).is_some() || is_still(graph, weight);
    constant.then_some(Product { data, axis, outputs })
}

fn is_depthwise(graph: &Graph, id: NodeId) -> bool {
    let Some(op) = graph.node(id).op().filter(|op| op.is("Conv")) else { return false };
    let Some(shape) = graph.input(id, 1).and_then(|w| static_shape(graph, w)) else { return false };
    op.attrs.int("group", 1).is_ok_and(|groups| groups > 1 && shape[0] as i64 == groups && shape[1] == 1)
}

/// Whether a node takes means or the like over other axes than that of the channels, which has its place behind it too.
fn reduces_places(graph: &Graph, id: NodeId, axis: usize) -> bool {
    let Some(op) = graph.node(id).op().filter(|op| op.domain.is_empty() && op.name.starts_with("Reduce")) else {
        return false;
    };
    let rank = graph.input(id, 0).and_then(|data| graph.ty(data)?.rank()).unwrap_or(0) as i64;
    let given = graph.input(id, 1).map(|axes| graph.constant(axes).and_then(|axes| axes.to_i64s().ok()));
    let axes = given.unwrap_or_else(|| op.attrs.ints("axes", &[]).ok()).unwrap_or_default();
    let keeps = op.attrs.flag("keepdims", true).unwrap_or(false);
    let stays = |&a: &i64| {
        let at = a.rem_euclid(rank.max(1));
        if keeps { at != axis as i64 } else { at > axis as i64 }
    };
    !axes.is_empty() && axes.iter().all(stays)
}

/// Operators that treat each channel, on axis 1, by itself.
const BY_CHANNEL: [&str; 6] =
    ["BatchNormalization", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "LpPool"];

/// Whether there is one place: all axes behind the batch and the channels have length 1.
fn is_one_place(graph: &Graph, value: Value) -> bool {
    let shape = graph.ty(value).and_then(Type::shape);
    shape.is_some_and(|shape| shape.iter().skip(2).all(|dim| dim.known() == Some(1)))
}

/// What the channel-wise search back from a consumer meets.
struct Search<'a> {
    graph: &'a Graph,
    inside: &'a HashSet<NodeId>,
    channels: usize,
    /// How many channels a head has; 1 where channels are gated one by one.
    width: usize,
    producers: Vec<NodeId>,
    members: Vec<NodeId>,
}

/// The group that a product among these nodes consumes; `Ok(None)` if what it reads comes from elsewhere.
fn group_at(graph: &Graph, nodes: &HashSet<NodeId>, consumer: NodeId) -> Result<Result<Option<Group>, String>> {
    let Some(Product { data, axis, .. }) = product(graph, consumer) else { return Ok(Ok(None)) };
    let channels = graph.ty(data).and_then(Type::shape).and_then(|s| s.get(axis)).and_then(Dim::known);
    let Some(channels) = channels.and_then(|n| usize::try_from(n).ok()) else { return Ok(Ok(None)) };
    let merged = heads::merged(graph, data, axis).filter(|_| nodes.contains(&data.node));
    let (data, channels, width, reader) = match merged {
        Some(heads::Merged { value, heads, width }) => (value, heads, width, data.node),
        None => (data, channels, 1, consumer),
    };
    let (producers, members) = (Vec::new(), Vec::new());
    let mut search = Search { graph, inside: nodes, channels, width, producers, members };
    match search.back(data, axis, 1) {
        Err(reason) => return Ok(Err(reason)),
        Ok(false) => return Ok(Ok(None)),
        Ok(true) => {}
    }
    let squeezes = match search.squeezes(data, axis, reader) {
        Err(reason) => return Ok(Err(reason)),
        Ok(squeezes) => squeezes,
    };
    let Search { producers, members, .. } = search;
    Ok(Ok(Some(Group { producers, members, consumer, reader, value: data, axis, channels, width, squeezes })))
}

impl Search<'_> {
    /// Whether a value has them on axis 1.
    fn has_channels(&self, value: Value) -> bool {
        let dim = self.graph.ty(value).and_then(Type::shape).and_then(|shape| shape.get(1)?.known());
        dim == Some(self.channels as i64)
    }
    /// Goes back to the producers of a value with the channels on this axis, each so many entries wide. `Ok(false)`: it comes from outside of the body as it is.
    fn back(&mut self, value: Value, axis: usize, entries: usize) -> Result<bool, String> {
        let id = value.node;
        if !self.inside.contains(&id) {
            return Ok(false);
        }
        if self.producers.contains(&id) || self.members.contains(&id) {
            return Ok(true);
        }
        if let Some(product) = product(self.graph, id) {
            let fits = product.axis == axis && product.outputs == self.channels * entries;
            if !fits {
                return Err(format!("\"{}\" does not make its channels", self.graph.node(id).name));
            }
            self.producers.push(id);
            return Ok(true);
        }
        let mut entries = entries;
        let operands = match heads::unmerged(self.graph, id, axis, self.channels).filter(|_| self.width > 1) {
            Some((_, width)) if entries > 1 || width != self.width => {
                return Err(format!("\"{}\" cuts its heads into parts", self.graph.node(id).name));
            }
            Some((before, width)) => {
                entries = width;
                vec![before]
            }
            None => self.channelwise(id, axis)?,
        };
        self.members.push(id);
        let mut made = false;
        let axis = axis_before(self.graph, id, axis);
        for operand in operands {
            if !self.back(operand, axis, entries)? {
                return Err(format!("\"{}\" mixes in values from outside of the block", self.graph.node(id).name));
            }
            made = true;
        }
        Ok(made)
    }
    /// What else reads the channels, which are in this value on this axis for their reader: products that sum over them too, behind what keeps them apart, which
    /// become members. Anything else is a reason to leave the group alone.
    fn squeezes(&mut self, data: Value, axis: usize, reader: NodeId) -> Result<Vec<Squeeze>, String> {
        let graph = self.graph;
        let mut axes = axes(graph, &self.producers, &self.members, data, axis);
        let mut squeezes: Vec<Squeeze> = Vec::new();
        let mut next: Vec<NodeId> = self.producers.iter().chain(&self.members).copied().collect();
        let refused = |by: NodeId| format!("\"{}\" reads the channels too", graph.node(by).name);
        while let Some(id) = next.pop() {
            let axis = axes.get(&id).copied();
            for (value, by) in self.readers(id)? {
                // A producer that reads the channels sums over them.
                let known = self.members.contains(&by) || by == reader;
                let asks = self.width > 1 && axis.is_some_and(|axis| heads::asks_for_others(graph, by, axis));
                if known || asks || squeezes.iter().any(|squeeze| squeeze.consumer == by) {
                    continue;
                }
                let Some(axis) = axis.filter(|_| self.width == 1 && self.inside.contains(&by)) else {
                    return Err(refused(by));
                };
                if product(graph, by).is_some_and(|product| product.data == value && product.axis == axis) {
                    squeezes.push(Squeeze { consumer: by, axis });
                    continue;
                }
                let apart = self.channelwise(by, axis).is_ok_and(|operands| operands == [value]);
                if !apart || graph.node(by).is("Transpose") {
                    return Err(refused(by));
                }
                self.members.push(by);
                axes.insert(by, axis);
                next.push(by);
            }
        }
        // What is made of their sums scales the channels: else they would be one more consumer.
        let scaling = |squeeze: &Squeeze| self.producers.iter().any(|&id| depends(graph, id, squeeze.consumer));
        match squeezes.iter().find(|squeeze| !scaling(squeeze)) {
            Some(squeeze) => Err(refused(squeeze.consumer)),
            None => Ok(squeezes),
        }
    }
    /// What a node makes, with who reads it.
    fn readers(&self, id: NodeId) -> Result<Vec<(Value, NodeId)>, String> {
        let mut readers = Vec::new();
        for value in self.graph.node_outputs(id) {
            if self.graph.is_output(value) {
                return Err(format!("\"{}\" is an output", self.graph.value_name(value)));
            }
            readers.extend(self.graph.uses(value).into_iter().map(|(by, _)| (value, by)));
        }
        Ok(readers)
    }
    /// The computed operands of a node that keeps channels apart, or why it does not.
    fn channelwise(&self, id: NodeId, axis: usize) -> Result<Vec<Value>, String> {
        let (graph, node) = (self.graph, self.graph.node(id));
        let name = node.op().map(|op| op.full_name()).unwrap_or_default();
        let data = graph.input(id, 0);
        let by_channel = BY_CHANNEL.iter().any(|name| node.is(name)) || is_depthwise(graph, id);
        let whole = Value { node: id, slot: 0 };
        let reshaped = ["Flatten", "Squeeze", "Unsqueeze"].iter().any(|name| node.is(name))
            && [data, Some(whole)].iter().flatten().all(|&v| is_one_place(graph, v) && self.has_channels(v));
        if (by_channel || reshaped) && axis == 1 || node.is("Transpose") || reduces_places(graph, id, axis) {
            return Ok(data.into_iter().collect());
        }
        if let Some(operands) = heads::apart(graph, id, axis).filter(|_| self.width > 1) {
            return Ok(operands);
        }
        let elementwise = node.op().is_some_and(|op| op.domain.is_empty() && sartor_ir::ops::is_elementwise(&op.name));
        if !elementwise {
            return Err(format!("{name} (\"{}\") does not keep channels apart", node.name));
        }
        let shape = |value: Value| graph.ty(value).and_then(Type::shape).map(<[Dim]>::to_vec);
        let own = shape(Value { node: id, slot: 0 });
        let mut operands = Vec::new();
        for value in graph.node_inputs(id).into_iter().flatten() {
            if !is_computed(graph.node(value.node)) || is_still(graph, value) {
                continue;
            }
            let rank = own.as_ref().map_or(0, Vec::len);
            if self.width > 1 && heads::is_common(graph, value, rank, axis) {
                continue;
            }
            // A number for each channel of an example, or for each place.
            let fits = |(at, (dim, whole)): (usize, (&Dim, &Dim))| dim == whole || at != axis && dim.known() == Some(1);
            let factors = match (shape(value), &own) {
                (Some(shape), Some(own)) => {
                    self.width == 1 && shape.len() == own.len() && shape.iter().zip(own).enumerate().all(fits)
                }
                _ => false,
            };
            if shape(value) != own && !factors {
                return Err(format!("\"{}\" scales channels by what is not one number for each", node.name));
            }
            operands.push(value);
        }
        Ok(operands)
    }
}

/// The axis of the channels in the operands of a channel-wise operator that has them on this one.
fn axis_before(graph: &Graph, id: NodeId, axis: usize) -> usize {
    let Some(op) = graph.node(id).op().filter(|op| op.is("Transpose")) else { return axis };
    let rank = graph.ty(Value { node: id, slot: 0 }).and_then(Type::rank).unwrap_or(axis + 1);
    let reversed: Vec<i64> = (0..rank as i64).rev().collect();
    let perm = op.attrs.ints("perm", &reversed).unwrap_or(reversed);
    perm.get(axis).and_then(|&a| usize::try_from(a).ok()).unwrap_or(axis)
}

/// The axis of the channels in what every producer and member of a group puts out, going back from a value that has them on this one.
pub(crate) fn axes(
    graph: &Graph,
    producers: &[NodeId],
    members: &[NodeId],
    value: Value,
    axis: usize,
) -> HashMap<NodeId, usize> {
    let mut found = HashMap::new();
    let mut next = vec![(value.node, axis)];
    while let Some((id, axis)) = next.pop() {
        let member = members.contains(&id);
        if !member && !producers.contains(&id) {
            continue;
        }
        let first = found.insert(id, axis).is_none();
        if first && member {
            let before = axis_before(graph, id, axis);
            next.extend(graph.node_inputs(id).into_iter().flatten().map(|input| (input.node, before)));
        }
    }
    found
}

/// The axis of a block's input that its channels lie on: where the first product that reads it has them, or behind a transposition where that
/// comes from; for tokens, the last one.
fn channel_axis(graph: &Graph, input: Value, nodes: &[NodeId]) -> usize {
    let rank = graph.ty(input).and_then(Type::rank).unwrap_or(2);
    if rank != 4 {
        return rank - 1;
    }
    let mut axis: HashMap<Value, usize> = HashMap::new();
    // Axes of the input that each value's axis 1 is.
    for &id in nodes {
        let Some(data) = graph.input(id, 0) else { continue };
        let here = if data == input { Some(1) } else { axis.get(&data).copied() };
        let Some(here) = here else { continue };
        let node = graph.node(id);
        if node.is("Conv") {
            return here;
        }
        let next = match node.op().filter(|op| op.is("Transpose")) {
            Some(op) if data == input => op.attrs.ints("perm", &[3, 2, 1, 0]).ok().and_then(|p| p.get(1).copied()),
            Some(_) => None,
            None => Some(here as i64),
        };
        if let Some(next) = next {
            axis.insert(Value { node: id, slot: 0 }, next as usize);
        }
    }
    1
}

/// A name for a block: the module around its addition, or the addition's own.
fn name_of(graph: &Graph, add: NodeId) -> String {
    let module = pattern::module_paths(graph, add).into_iter().next();
    let own = candidate_names(graph, add).into_iter().next().unwrap_or_else(|| format!("block{}", add.index()));
    module.unwrap_or(own).trim_matches('/').replace('/', ".")
}

/// Gives blocks of one module numbers.
fn distinguish(blocks: &mut [Block]) {
    let mut count: HashMap<String, usize> = HashMap::new();
    blocks.iter().for_each(|block| *count.entry(block.name.clone()).or_insert(0) += 1);
    let mut next: HashMap<String, usize> = HashMap::new();
    for block in blocks.iter_mut().filter(|block| count[&block.name] > 1) {
        let number = next.entry(block.name.clone()).or_insert(0);
        block.name = format!("{}.{number}", block.name);
        *number += 1;
    }
}
