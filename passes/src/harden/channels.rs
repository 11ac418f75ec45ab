//! Channels that are not computed: their rows and columns of the weights are left out.
//!
//! ```text
//! k = channels with max c > 0 (and the first);  producers' weights and biases, channel-wise constants, the consumer's weights: [k]
//! ```
//! The number of groups of a depthwise convolution is an attribute, which no input can change, so it runs over all channels: those that are not there are copies of
//! others, and what is made of them is left out behind it. It is the cheapest layer of its group.
//! ```text
//! y = DepthwiseConv(h)   →   y = DepthwiseConv(h[:, places])[:, k],   places = number of channels of k up to each one, less 1
//! ```

use super::nodes::Nodes;
use super::{consumer_axis, producer_axis};
use crate::cola::is_still;
use crate::gate::{BlockRecord, GroupRecord};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, DType, Graph, NodeId, NodeKind, Result, Tensor, Type, Value, bail};
use std::collections::HashMap;

/// Leaves out the channels that all examples of this graph shut, in every group of a block; with `depthwise`, also where a depthwise convolution is
/// between.
pub(super) fn narrow(graph: &mut Graph, opset: i64, block: &BlockRecord, depthwise: bool) -> Result<()> {
    let mut groups = Vec::new();
    for (group, nodes) in Nodes::of_block(graph, block, depthwise)? {
        let kept = kept(graph, opset, group, &nodes)?;
        let axes = nodes.axes(graph);
        groups.push((group, nodes, kept, axes));
    }
    // What makes channels first: of weights whose rows and columns are gathered, the rows are copied, and the columns of fewer rows are picked.
    for (group, nodes, kept, axes) in &groups {
        Cut { graph, opset, group, kept }.make(nodes, axes)?;
    }
    for (group, nodes, kept, _) in &groups {
        Cut { graph, opset, group, kept }.read(nodes)?;
    }
    for (_, nodes, _, mut axes) in groups {
        // The weights of a depthwise convolution stay whole, and so does the type of its result.
        axes.retain(|&id, _| !nodes.members.contains(&id) || !graph.node(id).is("Conv"));
        nodes.forget(graph, axes);
    }
    Ok(())
}

/// Which channels are computed.
struct Kept {
    /// Their numbers.
    numbers: Value,
    /// Of heads, the numbers of all their channels.
    wide: Option<Value>,
    /// For every channel, where it is among them, and for one that is not, where one before it is; where there is a depthwise convolution.
    places: Option<Value>,
}

fn kept(graph: &mut Graph, opset: i64, group: &GroupRecord, nodes: &Nodes) -> Result<Kept> {
    let Some(gate) = graph.input(nodes.last.mul, 1) else { bail!("\"{}\" has no gate", group.mul) };
    let mut emit = Emit::new(graph, opset);
    emit.prefix = format!("{}/", group.mul);
    let rows = emit.reshape(gate, &[-1, group.channels as i64])?;
    let most = emit.reduce("ReduceMax", rows, &[0], false)?;
    let open = emit.compare_scalar("Greater", most, 0.0)?;
    let first: Vec<bool> = (0..group.channels).map(|k| k == 0).collect();
    let first = emit.constant(Tensor::from_vec([group.channels], first));
    let wanted = emit.op("Or", &[open, first], Attributes::new())?;
    let numbers = emit.op("NonZero", &[wanted], Attributes::new())?;
    let axes = emit.ints(&[0]);
    let numbers = emit.op("Squeeze", &[numbers, axes], Attributes::new())?;
    let mut wide = None;
    if group.width > 1 {
        let first = emit.mul_scalar(numbers, group.width as f64)?;
        let (first, next) = (emit.unsqueeze(first, &[1])?, emit.ints(&(0..group.width as i64).collect::<Vec<_>>()));
        let all = emit.add(first, next)?;
        wide = Some(emit.reshape(all, &[-1])?);
    }
    if !nodes.has_depthwise(emit.graph) {
        return Ok(Kept { numbers, wide, places: None });
    }
    let counted = emit.cast(wanted, DType::I64)?;
    let axis = emit.constant(Tensor::scalar(0i64));
    let sums = emit.op("CumSum", &[counted, axis], Attributes::new())?;
    let one = emit.constant(Tensor::scalar(1i64));
    Ok(Kept { numbers, wide, places: Some(emit.sub(sums, one)?) })
}

/// Lets a depthwise convolution run over all channels again, and its readers read those that are tnodes.
fn spread(graph: &mut Graph, (opset, group): (i64, &str), id: NodeId, kept: &Kept) -> Result<()> {
    let made = Value { node: id, slot: 0 };
    let (Some(data), Some(places)) = (graph.input(id, 0), kept.places) else { return Ok(()) };
    let mut emit = Emit::new(graph, opset);
    emit.prefix = format!("{group}/kept/");
    let all = emit.op("Gather", &[data, places], Attributes::new().with("axis", 1i64))?;
    emit.graph.set_input(id, 0, Some(all));
    let some = emit.op("Gather", &[made, kept.numbers], Attributes::new().with("axis", 1i64))?;
    emit.graph.replace_uses_if(made, some, |reader, _| reader != some.node);
    Ok(())
}

/// Lets the nodes of a group read some channels of their weights.
struct Cut<'a> {
    graph: &'a mut Graph,
    opset: i64,
    group: &'a GroupRecord,
    kept: &'a Kept,
}

impl Cut<'_> {
    /// What makes the channels makes these, and what treats them by themselves.
    fn make(&mut self, nodes: &Nodes, axes: &HashMap<NodeId, usize>) -> Result<()> {
        for &id in &nodes.producers {
            self.producer(id)?;
        }
        for &id in &nodes.members {
            if self.graph.node(id).is("Conv") {
                spread(self.graph, (self.opset, &self.group.mul), id, self.kept)?;
            } else if let Some(&axis) = axes.get(&id) {
                self.member(id, axis)?;
            }
        }
        Ok(())
    }
    /// What sums over the channels, and their gates.
    fn read(&mut self, nodes: &Nodes) -> Result<()> {
        for site in nodes.sites() {
            let rank = self.graph.input(site.mul, 1).and_then(|v| self.graph.ty(v)?.rank()).unwrap_or(2);
            self.take((site.mul, 1), if rank == 2 { 1 } else { site.axis })?;
            let axis = self.graph.node(site.consumer).op().map(consumer_axis).transpose()?.flatten();
            self.take((site.consumer, 1), axis.unwrap_or(0))?;
        }
        Ok(())
    }
    /// Weight and bias of what makes channels.
    fn producer(&mut self, id: NodeId) -> Result<()> {
        let axis = self.graph.node(id).op().map(producer_axis).transpose()?.flatten();
        self.take((id, 1), axis.unwrap_or(1))?;
        match self.graph.input(id, 2) {
            Some(bias) => self.take((id, 2), self.graph.ty(bias).and_then(Type::rank).unwrap_or(1) - 1),
            None => Ok(()),
        }
    }
    /// What has one entry per channel among the inputs of a channel-wise operator.
    fn member(&mut self, id: NodeId, axis: usize) -> Result<()> {
        if self.graph.node(id).is("BatchNormalization") {
            return (1..5).try_for_each(|slot| self.take((id, slot), 0));
        }
        let rank = self.graph.ty(Value { node: id, slot: 0 }).and_then(Type::rank).unwrap_or(0);
        for slot in 0..self.graph.node_inputs(id).len() {
            if let Some(axis) = self.constant_axis((id, slot), rank, axis) {
                self.take((id, slot), axis)?;
            }
        }
        Ok(())
    }
    /// The axis of the channels in a constant operand of a channel-wise operator of this rank, which has them on `axis`; `None` if it has one number for all.
    fn constant_axis(&self, (id, slot): (NodeId, usize), rank: usize, axis: usize) -> Option<usize> {
        let (graph, group) = (&self.graph, self.group);
        let value = graph.input(id, slot)?;
        let kind = &graph.node(value.node).kind;
        let leaf = matches!(kind, NodeKind::Const(_) | NodeKind::Param(_) | NodeKind::Capture(_));
        let shape = graph.ty(value)?.static_shape().filter(|_| leaf || is_still(graph, value))?;
        let axis = shape.len().checked_sub(rank.checked_sub(axis)?)?;
        let fits = [group.channels, group.channels * group.width].contains(&shape[axis]);
        (fits && group.channels > 1).then_some(axis)
    }
    /// Lets a node read these channels of an input, which lie on this axis.
    fn take(&mut self, (id, slot): (NodeId, usize), axis: usize) -> Result<()> {
        let Some(value) = self.graph.input(id, slot) else { return Ok(()) };
        let entries = self.graph.ty(value).and_then(Type::shape).and_then(|shape| shape.get(axis)?.known());
        let whole = entries == Some((self.group.channels * self.group.width) as i64);
        let numbers = self.kept.wide.filter(|_| whole).unwrap_or(self.kept.numbers);
        let turned = self.turned(value, axis);
        let mut emit = Emit::new(self.graph, self.opset);
        // No branch may give a name again that the graph around it has.
        emit.prefix = format!("{}/kept/", self.group.mul);
        let mut gather = |value: Value, axis: usize| {
            emit.op("Gather", &[value, numbers], Attributes::new().with("axis", axis as i64))
        };
        let some = match turned {
            Some((stored, perm)) => {
                let rows = gather(stored, 0)?;
                emit.transpose(rows, &perm)?
            }
            None => gather(value, axis)?,
        };
        emit.graph.set_input(id, slot, Some(some));
        Ok(())
    }
    /// What a value is the transposition of, if an axis of it are the rows of that.
    fn turned(&self, value: Value, axis: usize) -> Option<(Value, Vec<usize>)> {
        let op = self.graph.node(value.node).op().filter(|op| op.is("Transpose"))?;
        let perm: Vec<usize> = op.attrs.ints("perm", &[]).ok()?.iter().map(|&p| p as usize).collect();
        (perm.get(axis) == Some(&0)).then_some((self.graph.input(value.node, 0)?, perm))
    }
}
