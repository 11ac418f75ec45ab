//! Gates that are the same for every input: what is shut is cut off, what is open becomes a factor in the weights.

use super::nodes::{Nodes, Site};
use super::weights::Weights;
use super::{consumer_axis, find, nodes_by_name, producer_axis, resize};
use crate::gate::{BlockRecord, GroupRecord, Record, Usage, heads};
use sartor_ir::{Dim, Graph, Model, NodeId, Result, Tensor, Type, Value, bail, ensure};
use std::collections::{HashMap, HashSet};

/// Freezes all gates of a graph at what they were when they were used, and cuts off what is shut for at least `1 - below` of the inputs.
pub(super) fn freeze(graph: &mut Graph, model: &mut Model, record: &Record, below: f64) -> Result<()> {
    let blocks = without_shut(graph, record, below)?;
    let mut weights = Weights { graph, model };
    for block in blocks.iter().flatten() {
        for group in &block.groups {
            group.freeze(&mut weights)?;
        }
        if let Some((layer, constant)) = block.layer {
            freeze_layer(&mut weights, layer, constant)?;
        }
    }
    Ok(())
}

/// Takes out the blocks that are shut for all but a share of `below` of the inputs. Returns the others, in the order of the record, `None` where there is none left.
pub(super) fn without_shut(graph: &mut Graph, record: &Record, below: f64) -> Result<Vec<Option<Here>>> {
    let by_name = nodes_by_name(graph);
    let here = |block: &BlockRecord| {
        Here::of(graph, &by_name, block, below).map_err(|e| e.at(format!("block \"{}\"", block.name)))
    };
    let blocks = record.blocks.iter().map(here).collect::<Result<Vec<_>>>()?;
    for block in blocks.iter().filter(|block| block.is_shut()) {
        let Some(shortcut) = graph.input(block.add, 1 - block.slot) else { bail!("an addition has one input") };
        graph.substitute(Value { node: block.add, slot: 0 }, shortcut);
    }
    graph.remove_dead();
    // Blocks in the bodies of others may be gone with them.
    Ok(blocks.into_iter().map(|block| (!block.is_shut() && graph.contains(block.add)).then_some(block)).collect())
}

/// A block's nodes and what its gates are from now on.
pub(super) struct Here {
    add: NodeId,
    slot: usize,
    /// The multiplication of the body, and by what; `None` if it is shut.
    pub(super) layer: Option<(NodeId, Option<f64>)>,
    pub(super) groups: Vec<Group>,
}

/// A group's nodes and what its gates are from now on.
pub(super) struct Group {
    pub(super) nodes: Nodes,
    /// The factor of every channel; 0 for those that are shut.
    factors: Vec<f64>,
    /// The channels that stay.
    pub(super) kept: Vec<usize>,
}

impl Here {
    fn of(graph: &Graph, by_name: &HashMap<String, NodeId>, block: &BlockRecord, below: f64) -> Result<Here> {
        let Some(usage) = &block.usage else {
            bail!("train or evaluate the gated model first: it has no record of how its gates were used")
        };
        check(block, usage)?;
        let add = find(by_name, &block.add)?;
        let open = |i: usize| usage.open[i] > below;
        let mut layer = None;
        if let Some(name) = &block.layer {
            let mul = find(by_name, name)?;
            let body = Some(Value { node: mul, slot: 0 });
            ensure!(graph.input(add, block.slot) == body, "its addition does not read its body any more");
            layer = Some((mul, open(0).then_some(usage.value[0])));
        }
        let mut first = usize::from(layer.is_some());
        let mut groups = Vec::new();
        for group in &block.groups {
            let range = first..first + group.channels;
            first = range.end;
            groups.push(Group::of(by_name, group, &usage.open[range.clone()], &usage.value[range], below)?);
        }
        Ok(Here { add, slot: block.slot, layer, groups })
    }
    fn is_shut(&self) -> bool {
        matches!(self.layer, Some((_, None)))
    }
}

/// An error unless the usage is one of this block's gates.
fn check(block: &BlockRecord, usage: &Usage) -> Result<()> {
    let gates = usize::from(block.layer.is_some()) + block.groups.iter().map(|g| g.channels).sum::<usize>();
    for numbers in [&usage.open, &usage.value] {
        ensure!(numbers.len() == gates, "the usage of {} gates is recorded, but there are {gates}", numbers.len());
        let share = numbers.iter().all(|x| (0.0..=1.0).contains(x));
        ensure!(share, "its gates' usage is recorded with numbers that are not from 0 to 1");
    }
    Ok(())
}

impl Group {
    fn of(
        by_name: &HashMap<String, NodeId>,
        group: &GroupRecord,
        open: &[f64],
        value: &[f64],
        below: f64,
    ) -> Result<Group> {
        let mut kept: Vec<usize> = (0..group.channels).filter(|&k| open[k] > below).collect();
        if kept.is_empty() {
            kept.extend((0..group.channels).rev().max_by(|&a, &b| open[a].total_cmp(&open[b])));
        }
        let mut factors = vec![0.0; group.channels];
        kept.iter().for_each(|&k| factors[k] = value[k]);
        Ok(Group { nodes: Nodes::of(by_name, group)?, factors, kept })
    }

    fn freeze(&self, weights: &mut Weights) -> Result<()> {
        if !self.cut_off(weights)? {
            return self.multiply(weights, &self.factors);
        }
        let factors: Vec<f64> = self.kept.iter().map(|&k| self.factors[k]).collect();
        self.multiply(weights, &factors)
    }

    /// Cuts off the channels that do not stay, but for their gates; returns whether there were any that could be.
    pub(super) fn cut_off(&self, weights: &mut Weights) -> Result<bool> {
        let some = self.kept.len() < self.factors.len();
        let Some(cuts) = self.cuts(weights).filter(|_| some) else { return Ok(false) };
        for cut in cuts {
            let entries = self.entries(weights, &cut).unwrap_or(1);
            let kept: Vec<usize> = self.kept.iter().flat_map(|k| k * entries..(k + 1) * entries).collect();
            weights.take((cut.node, cut.slot), cut.axis, &kept)?;
        }
        self.narrow_types(weights.graph);
        Ok(true)
    }

    /// Multiplies the channels by their factors: in the consumer's weights, or else, as before, by themselves.
    fn multiply(&self, weights: &mut Weights, factors: &[f64]) -> Result<()> {
        self.nodes.sites().try_for_each(|site| self.multiply_at(weights, site, factors))
    }

    fn multiply_at(&self, weights: &mut Weights, site: &Site, factors: &[f64]) -> Result<()> {
        let Some(value) = weights.graph.input(site.mul, 0) else { bail!("a multiplication by gates has no input") };
        if factors.iter().any(|&factor| factor != 1.0) {
            let Some(cut) = self.consumer_cut(weights, site) else {
                let rank = weights.graph.ty(value).and_then(Type::rank).unwrap_or(site.axis + 1);
                let mut shape = vec![1; rank - site.axis];
                shape[0] = factors.len();
                let constant = of_type(weights.graph, value, Tensor::from_vec(shape, factors.to_vec()))?;
                return replace_gate(weights, site.mul, constant);
            };
            let entries = weights.read(cut.node, cut.slot).map_or(1, |w| w.shape()[cut.axis] / factors.len().max(1));
            let factors: Vec<f64> = factors.iter().flat_map(|&factor| std::iter::repeat_n(factor, entries)).collect();
            weights.scale((cut.node, cut.slot), cut.axis, &factors)?;
        }
        weights.graph.substitute(Value { node: site.mul, slot: 0 }, value);
        Ok(())
    }

    /// What has one entry per channel; `None` if the channels cannot be cut off: something else reads them, or constants are none.
    fn cuts(&self, weights: &Weights) -> Option<Vec<Cut>> {
        if !self.is_closed(weights) {
            return None;
        }
        let mut cuts = self.nodes.sites().map(|site| self.consumer_cut(weights, site)).collect::<Option<Vec<_>>>()?;
        for &id in &self.nodes.producers {
            cuts.extend(producer_cuts(weights, id)?);
        }
        let axes = self.nodes.axes(weights.graph);
        for &id in &self.nodes.members {
            cuts.extend(member_cuts(weights, id, *axes.get(&id)?)?);
        }
        cuts.iter().all(|cut| self.entries(weights, cut).is_some()).then_some(cuts)
    }

    /// How many entries of a constant a channel has, a head as many as it is wide; `None` if it has none of its own.
    fn entries(&self, weights: &Weights, cut: &Cut) -> Option<usize> {
        let (all, channels) = (*weights.read(cut.node, cut.slot)?.shape().get(cut.axis)?, self.factors.len());
        let heads = self.nodes.merge.is_some() && channels > 0 && all.is_multiple_of(channels);
        (all == channels || heads).then_some(all / channels.max(1))
    }

    /// Whether all that is computed from the channels is this group, which ends in the multiplication.
    fn is_closed(&self, weights: &Weights) -> bool {
        let graph = &weights.graph;
        let all: HashSet<NodeId> = self.nodes.producers.iter().chain(&self.nodes.members).copied().collect();
        let axes = self.nodes.axes(graph);
        let stays = |value: Value| {
            let asks = |id: NodeId| {
                self.nodes.merge.is_some()
                    && axes.get(&value.node).is_some_and(|&axis| heads::asks_for_others(graph, id, axis))
            };
            let mut readers = graph.uses(value).into_iter().map(|(id, _)| id);
            let gated = |id: NodeId| self.nodes.sites().any(|site| site.mul == id);
            let inside = readers.all(|id| self.nodes.members.contains(&id) || gated(id) || asks(id));
            inside && !graph.is_output(value)
        };
        // What is the same for all heads need not be cut.
        let common = |value: Value, id: NodeId| {
            let rank = graph.ty(Value { node: id, slot: 0 }).and_then(Type::rank).unwrap_or(0);
            self.nodes.merge.is_some() && axes.get(&id).is_some_and(|&axis| heads::is_common(graph, value, rank, axis))
        };
        let made = |(slot, value): (usize, Option<Value>), id: NodeId| {
            let own = |value: Value| all.contains(&value.node) || weights.read(id, slot).is_some();
            value.is_none_or(|value| own(value) || common(value, id))
        };
        let reads = |&id: &NodeId| graph.node_inputs(id).into_iter().enumerate().all(|input| made(input, id));
        all.iter().all(|&id| graph.node_outputs(id).all(stays))
            && self.nodes.members.iter().all(reads)
            && graph.input(self.nodes.last.mul, 0).is_some_and(|value| all.contains(&value.node))
    }

    /// The weight of what sums over the channels, if it alone reads them behind these gates.
    fn consumer_cut(&self, weights: &Weights, site: &Site) -> Option<Cut> {
        let graph = &weights.graph;
        let read_by = |id: NodeId, reader: NodeId| {
            let value = Value { node: id, slot: 0 };
            graph.uses(value) == [(reader, 0)] && !graph.is_output(value)
        };
        let alone = match self.nodes.merge {
            Some(merge) => read_by(site.mul, merge) && read_by(merge, site.consumer),
            None => read_by(site.mul, site.consumer),
        };
        let axis = consumer_axis(graph.node(site.consumer).op()?).ok()??;
        weights.read(site.consumer, 1).filter(|_| alone)?;
        Some(Cut { node: site.consumer, slot: 1, axis })
    }

    /// Notes the number of channels that are left where it is said: in types, and at depthwise convolutions.
    fn narrow_types(&self, graph: &mut Graph) {
        let left = self.kept.len() as i64;
        let axes = self.nodes.axes(graph);
        if self.nodes.merge.is_some() {
            return self.nodes.forget(graph, axes);
        }
        resize(graph, &axes, &Dim::Known(left));
        for &id in self.nodes.members.iter().filter(|id| !self.nodes.producers.contains(id)) {
            if let Some(op) = graph.node_mut(id).op_mut().filter(|op| op.is("Conv")) {
                op.attrs.set("group", left);
            }
        }
    }
}

/// A constant with one entry per channel along an axis.
struct Cut {
    node: NodeId,
    slot: usize,
    axis: usize,
}

/// The weight and the bias of what computes channels; `None` if it is nothing that is known.
fn producer_cuts(weights: &Weights, id: NodeId) -> Option<Vec<Cut>> {
    let axis = producer_axis(weights.graph.node(id).op()?).ok()??;
    let mut cuts = vec![Cut { node: id, slot: 1, axis }];
    if weights.graph.input(id, 2).is_some() {
        let shape = weights.read(id, 2)?.shape().to_vec();
        // A bias of Gemm may be one number for all.
        if let Some(last) = shape.len().checked_sub(1).filter(|&last| shape[last] != 1) {
            cuts.push(Cut { node: id, slot: 2, axis: last });
        }
    }
    Some(cuts)
}

/// What has one entry per channel among the inputs of a channel-wise operator, whose channels lie on this axis.
fn member_cuts(weights: &Weights, id: NodeId, axis: usize) -> Option<Vec<Cut>> {
    let node = weights.graph.node(id);
    if node.is("BatchNormalization") {
        return Some((1..5).map(|slot| Cut { node: id, slot, axis: 0 }).collect());
    }
    if node.is("Conv") {
        return producer_cuts(weights, id);
    }
    if node.is("Reshape") {
        return Some(Vec::new());
    }
    let rank = weights.graph.ty(Value { node: id, slot: 0 }).and_then(Type::rank)?;
    let cut = |slot: usize| {
        let shape = weights.read(id, slot)?.shape().to_vec();
        let axis = shape.len().checked_sub(rank.checked_sub(axis)?)?;
        (shape[axis] != 1).then_some(Cut { node: id, slot, axis })
    };
    Some((0..node.formal_inputs()).filter_map(cut).collect())
}

/// Multiplies a body by a number: in its last weights, or else, as before, by itself.
fn freeze_layer(weights: &mut Weights, mul: NodeId, constant: Option<f64>) -> Result<()> {
    let (Some(body), Some(factor)) = (weights.graph.input(mul, 0), constant) else { return Ok(()) };
    if factor != 1.0 {
        let Some(last) = last_weights(weights, body) else {
            let constant = of_type(weights.graph, body, Tensor::scalar(factor))?;
            return replace_gate(weights, mul, constant);
        };
        for input in last {
            weights.scale_all(input, factor)?;
        }
    }
    weights.graph.substitute(Value { node: mul, slot: 0 }, body);
    Ok(())
}

/// The constants that scale a value if they are scaled. `None` if something else reads it, or if it is no linear function of constants.
fn last_weights(weights: &Weights, value: Value) -> Option<Vec<(NodeId, usize)>> {
    let (graph, id) = (&weights.graph, value.node);
    let op = graph.node(id).op().filter(|op| op.domain.is_empty() && graph.use_count(value) == 1)?;
    let constant = |slot: usize| weights.read(id, slot).map(|_| (id, slot));
    let all = |slots: &[usize]| {
        let given = slots.iter().filter(|&&slot| graph.input(id, slot).is_some());
        given.map(|&slot| constant(slot)).collect::<Option<Vec<_>>>()
    };
    match op.name.as_str() {
        "Conv" | "Gemm" => all(&[1, 2]),
        "MatMul" => all(&[1]),
        "BatchNormalization" => all(&[1, 2]),
        "Mul" => constant(0).or(constant(1)).map(|input| vec![input]),
        "Add" => {
            let (slot, input) = (0..2).find_map(|slot| Some((slot, constant(slot)?)))?;
            let mut found = last_weights(weights, graph.input(id, 1 - slot)?)?;
            found.push(input);
            Some(found)
        }
        _ => None,
    }
}

/// Lets a multiplication read a constant instead of its gate.
fn replace_gate(weights: &mut Weights, mul: NodeId, constant: Tensor) -> Result<()> {
    weights.graph.set_input(mul, 1, None);
    weights.write(mul, 1, constant);
    Ok(())
}

/// A tensor in the element type of a value.
fn of_type(graph: &Graph, value: Value, tensor: Tensor) -> Result<Tensor> {
    let Some(dtype) = graph.ty(value).and_then(Type::dtype) else {
        bail!("the type of \"{}\" is not known", graph.value_name(value))
    };
    tensor.cast(dtype)
}
