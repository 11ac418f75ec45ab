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

use crate::cola::is_still;
use crate::gate::{BlockRecord, GroupRecord, blocks};
use crate::walk::nodes_by_name;
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, DType, Dim, Graph, NodeId, NodeKind, Result, Tensor, Type, Value, bail};

/// Leaves out the channels that all examples of this graph shut, in every group of a block; with `depthwise`, also where a depthwise convolution is
/// between.
pub(super) fn narrow(graph: &mut Graph, opset: i64, block: &BlockRecord, depthwise: bool) -> Result<()> {
    let by_name = nodes_by_name(graph);
    for group in &block.groups {
        let all = |names: &[String]| names.iter().filter_map(|n| by_name.get(n).copied()).collect::<Vec<_>>();
        let (producers, members) = (all(&group.producers), all(&group.members));
        let (Some(&consumer), Some(&mul)) = (by_name.get(&group.consumer), by_name.get(&group.mul)) else {
            bail!("the graph has no node \"{}\" or \"{}\" any more", group.consumer, group.mul)
        };
        if !depthwise && members.iter().any(|&id| graph.node(id).is("Conv")) {
            continue;
        }
        let here = Here { producers, members, consumer, mul };
        let kept = kept(graph, opset, group, &here)?;
        select(graph, opset, group, &here, &kept)?;
    }
    Ok(())
}

struct Here {
    producers: Vec<NodeId>,
    members: Vec<NodeId>,
    consumer: NodeId,
    mul: NodeId,
}

/// Which channels are computed.
struct Kept {
    /// Their numbers.
    numbers: Value,
    /// For every channel, where it is among them, and for one that is not, where one before it is; where there is a depthwise convolution.
    places: Option<Value>,
}

fn kept(graph: &mut Graph, opset: i64, group: &GroupRecord, here: &Here) -> Result<Kept> {
    let Some(gate) = graph.input(here.mul, 1) else { bail!("\"{}\" has no gate", group.mul) };
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
    if !here.members.iter().any(|&id| emit.graph.node(id).is("Conv")) {
        return Ok(Kept { numbers, places: None });
    }
    let counted = emit.cast(wanted, DType::I64)?;
    let axis = emit.constant(Tensor::scalar(0i64));
    let sums = emit.op("CumSum", &[counted, axis], Attributes::new())?;
    let one = emit.constant(Tensor::scalar(1i64));
    Ok(Kept { numbers, places: Some(emit.sub(sums, one)?) })
}

/// Lets a depthwise convolution run over all channels again, and its readers read those that are there.
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

/// Selects these channels of every weight of a group.
fn select(graph: &mut Graph, opset: i64, group: &GroupRecord, here: &Here, channels: &Kept) -> Result<()> {
    let kept = channels.numbers;
    let gate_axis = |rank: usize| if rank == 2 { 1 } else { group.axis };
    for &id in &here.producers {
        let (weight_axis, bias) = match graph.node(id).op().map(|op| (op.name.clone(), op.attrs.clone())) {
            Some((name, _)) if name == "Conv" => (0, Some(2)),
            Some((name, attrs)) if name == "Gemm" => (usize::from(!attrs.flag("transB", false)?), Some(2)),
            _ => (1, None),
        };
        take(graph, (opset, &group.mul), id, 1, weight_axis, kept)?;
        if let Some(slot) = bias.filter(|&slot| graph.input(id, slot).is_some()) {
            let rank = graph.input(id, slot).and_then(|v| graph.ty(v)?.rank()).unwrap_or(1);
            take(graph, (opset, &group.mul), id, slot, rank - 1, kept)?;
        }
    }
    let Some(gated) = graph.input(here.mul, 0) else { bail!("\"{}\" has no input", group.mul) };
    let mut axes = blocks::axes(graph, &here.producers, &here.members, gated, group.axis);
    axes.insert(here.mul, group.axis);
    for &id in &here.members {
        // Its own weights stay whole, and so does the type of its result.
        if graph.node(id).is("Conv") {
            axes.remove(&id);
            spread(graph, (opset, &group.mul), id, channels)?;
            continue;
        }
        if graph.node(id).is("BatchNormalization") {
            for slot in 1..5 {
                take(graph, (opset, &group.mul), id, slot, 0, kept)?;
            }
            continue;
        }
        let rank = graph.ty(Value { node: id, slot: 0 }).and_then(Type::rank).unwrap_or(0);
        for slot in 0..graph.node_inputs(id).len() {
            if let Some(axis) = axes.get(&id).and_then(|&axis| constant_axis(graph, id, slot, (rank, axis), group)) {
                take(graph, (opset, &group.mul), id, slot, axis, kept)?;
            }
        }
    }
    let gate_rank = graph.input(here.mul, 1).and_then(|v| graph.ty(v)?.rank()).unwrap_or(2);
    take(graph, (opset, &group.mul), here.mul, 1, gate_axis(gate_rank), kept)?;
    let consumer = graph.node(here.consumer).op().map(|op| (op.name.clone(), op.attrs.clone()));
    let axis = match consumer {
        Some((name, _)) if name == "Conv" => 1,
        Some((name, attrs)) if name == "Gemm" => usize::from(attrs.flag("transB", false)?),
        _ => 0,
    };
    take(graph, (opset, &group.mul), here.consumer, 1, axis, kept)?;
    // The channels' number is not known any more.
    for &id in here.producers.iter().chain(&here.members).chain([&here.mul]) {
        let value = Value { node: id, slot: 0 };
        if let Some(Type::Tensor { dtype, shape: Some(mut shape) }) = graph.ty(value).cloned() {
            if let Some(dim) = axes.get(&id).and_then(|&axis| shape.get_mut(axis)) {
                *dim = Dim::Unknown;
            }
            graph.set_ty(value, Some(Type::Tensor { dtype, shape: Some(shape) }));
        }
    }
    Ok(())
}

/// The axis of the channels in a constant operand of a channel-wise operator; `None` if it has one number for all.
fn constant_axis(
    graph: &Graph,
    id: NodeId,
    slot: usize,
    (rank, axis): (usize, usize),
    group: &GroupRecord,
) -> Option<usize> {
    let value = graph.input(id, slot)?;
    let leaf = matches!(graph.node(value.node).kind, NodeKind::Const(_) | NodeKind::Param(_) | NodeKind::Capture(_));
    let shape = graph.ty(value)?.static_shape().filter(|_| leaf || is_still(graph, value))?;
    let from_the_end = rank.checked_sub(axis)?;
    let axis = shape.len().checked_sub(from_the_end)?;
    (shape[axis] == group.channels && group.channels > 1).then_some(axis)
}

/// Lets a node read these entries of an input along an axis.
fn take(
    graph: &mut Graph,
    (opset, group): (i64, &str),
    id: NodeId,
    slot: usize,
    axis: usize,
    kept: Value,
) -> Result<()> {
    let Some(value) = graph.input(id, slot) else { return Ok(()) };
    let mut emit = Emit::new(graph, opset);
    // No branch may give a name again that the graph around it has.
    emit.prefix = format!("{group}/kept/");
    let some = emit.op("Gather", &[value, kept], Attributes::new().with("axis", axis as i64))?;
    emit.graph.set_input(id, slot, Some(some));
    Ok(())
}
