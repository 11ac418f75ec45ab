//! `harden`: a gated model that skips what its gates shut, in standard ONNX.
//!
//! | kind | what becomes of a shut gate |
//! |---|---|
//! | `masked` | a multiplication by 0, as `gate` left it: for accelerators on which branches are slow |
//! | `skip` | nothing is computed: a block in an `If`, for the examples of the batch that need it; channels by `Gather` on the weights |
//! | `static` | nothing is left: what was shut for nearly every input so far is cut off for all, the other gates are numbers in the weights |
//! | `trim` | what was shut for nearly every input so far is cut off for all; gates that read their input stay gates |
//!
//! `skip`, before → after, for a block with a layer gate s and channel gates c:
//! ```text
//! h = Relu(Conv(x, W1, b1)) · c; y = Add(x, Conv(h, W2) · s)
//!
//! y = If (max s > 0)
//!       then: i = examples with s > 0;  u = x[i];  k = channels with max c[i] > 0
//!             h = Relu(Conv(u, W1[k], b1[k])) · c[i, k]
//!             ScatterND<reduction = "add">(x, i, Conv(h, W2[:, k]) · s[i])
//!       else: x
//! ```
//! The results are those of the multiplications: a channel that any example of the batch needs is computed for all that run the block, and
//! multiplied by its gate all the same. Normalisations are multiplied into the convolutions before them first, since gathered weights cannot be multiplied any more, and weights whose channels would be picked number by number are stored the other way round (`rows`). One channel of every group is always computed, so that no tensor is empty. Where the body
//! reads integers that depend on the inputs' shapes (reshapes of attention), or where the batch is a fixed number, a block runs for the whole
//! batch if any example needs it. Channels around a depthwise convolution stay masked, or, with `depthwise`, are left out around it, while it runs over all of them.
//!
//! `static`, before → after, if s was open at 0.5 for all inputs, and all channels but k at 1:
//! ```text
//! h = Relu(Conv(x, W1, b1)) · c; y = Add(x, Conv(h, W2) · s)
//!
//! h = Relu(Conv(x, W1[k], b1[k])); y = Add(x, Conv(h, 0.5 · W2[:, k]))        y = x, if s was shut
//! ```
//! (executed by `tests/cases/harden/static.txt`) A gate that was open for a share of at most `below` of the inputs is 0 from now on, every other the mean of
//! what it was where it was open; the shares are those of the last evaluation, in the metadata ([`Usage`](crate::gate::Usage)). An ordinary smaller model
//! is left, without gate networks, every parameter `Frozen`. Of a group whose channels are all shut, the one that was open most often stays open. Factors go into the
//! next weights (channels) or the last ones (blocks); where there are none that nobody else reads, one multiplication by a constant
//! stays. Channels that something outside their group has come to read are multiplied by 0 instead of cut off.
//!
//! `trim`, before → after, of the same block, if all channels but k were never open, and those and the block read their input:
//! ```text
//! s, c = Split(clamp(z · W + b, 0, 1)); h = Relu(Conv(x, W1, b1)) · c; y = Add(x, Conv(h, W2) · s)
//!
//! s, c = Split(clamp(z · W[:, s k] + b[s k], 0, 1)); h = Relu(Conv(x, W1[k], b1[k])) · c; y = Add(x, Conv(h, W2[:, k]) · s)
//! ```
//! (executed by `tests/cases/harden/trim.txt`) It is the same model for inputs that use its gates as those of the last evaluation did, smaller and faster to train: the metadata, the roles
//! of parameters and how gates were used stay, and `[gate]` or `[train-mode]` go on with it, as do `skip`, `masked` and `static`. What it cost is still counted as a share of the
//! operations of the model that gates were attached to. A layer or a whole group loses its gates where they were always 1; a single channel of a group that has others keeps its gate. Where no gate is
//! left, it is an ordinary model.
//!
//! Precondition: gates, the internal opset; for `static` and `trim`, a record of how the gates were used, and for `trim` no adapters. Postcondition: the same inputs and outputs,
//! no training programs, no metadata of `gate` (but with `trim`); dynamic batches stay dynamic.

mod branch;
mod channels;
mod constant;
mod nodes;
mod rows;
mod trim;
mod weights;

use crate::fuse_batch_norm::FuseBatchNorm;
use crate::gate::{BlockRecord, Record, blocks, heads};
use crate::walk::nodes_by_name;
use crate::{Changed, Pass, training};
use branch::Branch;
use nodes::Nodes;
use sartor_ir::ops::Emit;
use sartor_ir::{
    Attributes, DType, Dim, Graph, Model, NodeId, Operator, OutputSlot, Result, Role, Type, Value, bail, ensure, infer,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// The options, and the pass. What a kind does not use, it ignores.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Harden {
    /// What becomes of a shut gate.
    pub kind: Kind,
    /// `static`, `trim`: a gate that was open for at most this share of the inputs is shut for good. 0 cuts off only what was never needed, 0.5 what most
    /// inputs did not need.
    pub below: f64,
    /// `skip`: whether channels around depthwise convolutions are left out too, instead of masked. That saves operations; in ONNX Runtime it takes gathered weights and channels, which
    /// pays where fewer than half of the channels are open (MobileNetV2, beside masks: 1.4 times as long with all of them, 1.1 times with half, 0.8 times with a quarter).
    pub depthwise: bool,
}

/// See [`Harden::kind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It is not computed.
    #[default]
    Skip,
    /// It is multiplied by 0.
    Masked,
    /// It is cut off for all inputs, and what is open is open for all.
    Static,
    /// It is cut off if nearly all inputs shut it; else it stays a gate.
    Trim,
}

impl Pass for Harden {
    fn name(&self) -> &str {
        "harden"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        ensure!((0.0..=1.0).contains(&self.below), "below is {}, expected a share from 0 to 1", self.below);
        training::require_opset(model, "harden")?;
        let Some(mut record) = Record::load(model)? else {
            bail!("the model has no gates: the pass `gate` attaches them")
        };
        let adapted = self.kind == Kind::Trim && crate::cola::Record::load(model)?.is_some();
        ensure!(!adapted, "the model has adapters: merge them before gates are trimmed");
        let opset = model.opset();
        model.programs.clear();
        if self.kind == Kind::Skip {
            fuse_normalisations(model, &record)?;
        }
        let mut graph = std::mem::take(&mut model.graph);
        infer::infer_graph(&mut graph, opset)?;
        if self.kind != Kind::Masked {
            free_heads(&mut graph, &record)?;
        }
        match self.kind {
            Kind::Masked => {}
            Kind::Skip => {
                for block in &record.blocks {
                    rows::lay_out(&mut graph, model, block, self.depthwise)
                        .and_then(|()| skip(&mut graph, model, block, self.depthwise))
                        .map_err(|e| e.at(format!("block \"{}\"", block.name)))?;
                }
            }
            Kind::Static => {
                constant::freeze(&mut graph, model, &record, self.below)?;
                model.params.values_mut().filter(|p| p.role.is_variable()).for_each(|p| p.role = Role::Frozen);
            }
            Kind::Trim => trim::trim(&mut graph, model, &mut record, self.below)?,
        }
        if self.kind != Kind::Masked {
            graph.remove_dead();
            infer::infer_graph(&mut graph, opset)?;
        }
        model.graph = graph;
        match self.kind {
            Kind::Trim if !record.blocks.is_empty() => record.store(model)?,
            _ => Record::remove(model),
        }
        model.remove_unused_params();
        Ok(Changed::Yes)
    }
}

/// Multiplies normalisations into the convolutions before them, which nobody can do any more when their weights are gathered. What a block reads keeps its name.
fn fuse_normalisations(model: &mut Model, record: &Record) -> Result<()> {
    let graph = &model.graph;
    let read = record.blocks.iter().filter_map(|block| {
        let value = graph.find_value(&block.input).filter(|v| graph.node(v.node).is("BatchNormalization"))?;
        Some((block.input.clone(), graph.input(value.node, 0)?))
    });
    let read: Vec<(String, Value)> = read.collect();
    FuseBatchNorm {}.run(model)?;
    for (name, conv) in read {
        if model.graph.find_value(&name).is_none() && model.graph.contains(conv.node) {
            model.graph.rename(conv, &name);
        }
    }
    Ok(())
}

/// Lets what splits and merges heads work for any number of them.
fn free_heads(graph: &mut Graph, record: &Record) -> Result<()> {
    let by_name = nodes_by_name(graph);
    for group in record.blocks.iter().flat_map(|block| &block.groups) {
        if group.merge.is_none() {
            continue;
        }
        let nodes = Nodes::of(&by_name, group)?;
        let Some(merge) = nodes.merge else { continue };
        let mut splits: Vec<(NodeId, usize)> = nodes.axes(graph).into_iter().collect();
        splits.retain(|&(id, _)| graph.node(id).is("Reshape"));
        splits.sort_unstable();
        heads::free(graph, &splits, merge, group.axis, group.width);
    }
    graph.remove_dead();
    Ok(())
}

/// Makes one block skip.
fn skip(graph: &mut Graph, model: &Model, block: &BlockRecord, depthwise: bool) -> Result<()> {
    let by_name = nodes_by_name(graph);
    match &block.layer {
        Some(layer) => skip_body(graph, model, block, [find(&by_name, &block.add)?, find(&by_name, layer)?], depthwise),
        None => channels::narrow(graph, model.opset(), block, depthwise),
    }
}

/// Notes the number of channels in the types of what nodes put out.
fn resize(graph: &mut Graph, axes: &HashMap<NodeId, usize>, channels: &Dim) {
    for (&id, &axis) in axes {
        let value = Value { node: id, slot: 0 };
        if let Some(Type::Tensor { dtype, shape: Some(mut shape) }) = graph.ty(value).cloned() {
            if let Some(dim) = shape.get_mut(axis) {
                *dim = channels.clone();
            }
            graph.set_ty(value, Some(Type::Tensor { dtype, shape: Some(shape) }));
        }
    }
}

/// The axis of the channels in the weights of what reads them; `None` if it is no product.
pub(crate) fn consumer_axis(op: &Operator) -> Result<Option<usize>> {
    Ok(match op.name.as_str() {
        "Conv" => Some(1),
        "Gemm" => Some(usize::from(op.attrs.flag("transB", false)?)),
        "MatMul" => Some(0),
        _ => None,
    })
}

/// The axis of the channels in the weights of what makes them; `None` if it is no product.
pub(crate) fn producer_axis(op: &Operator) -> Result<Option<usize>> {
    Ok(match op.name.as_str() {
        "Conv" => Some(0),
        "Gemm" => Some(usize::from(!op.attrs.flag("transB", false)?)),
        "MatMul" => Some(1),
        _ => None,
    })
}

/// The node of a name that a record says.
fn find(by_name: &HashMap<String, NodeId>, name: &str) -> Result<NodeId> {
    match by_name.get(name) {
        Some(&id) => Ok(id),
        None => bail!("the graph has no node \"{name}\" any more: harden before other passes change the model"),
    }
}

/// Puts a body into the branch of an `If`.
fn skip_body(
    graph: &mut Graph,
    model: &Model,
    block: &BlockRecord,
    [add, layer]: [NodeId; 2],
    depthwise: bool,
) -> Result<()> {
    let (opset, params) = (model.opset(), &model.params);
    let body = Value { node: layer, slot: 0 };
    let (shortcut, gate) = (graph.input(add, 1 - block.slot), graph.input(layer, 1));
    let (Some(shortcut), Some(gate)) = (shortcut, gate) else { bail!("its addition or its gate has lost an input") };
    ensure!(graph.input(add, block.slot) == Some(body), "its addition does not read its body any more");
    let input = if block.identity { Some(shortcut) } else { graph.find_value(&block.input) };
    let Some(input) = input else { bail!("its input \"{}\" is not there any more", block.input) };
    let nodes = body_nodes(graph, block, input, body);
    let batch = graph.ty(input).and_then(Type::shape).and_then(<[Dim]>::first).cloned().unwrap_or(Dim::Unknown);
    let by_example = batch.known().is_none() && !reads_shapes(graph, &nodes);

    let mut then = Branch::new((graph, params), opset, &format!("{}.then", block.name), Vec::new());
    if by_example {
        then.choose(gate, &batch)?;
    }
    for &id in &nodes {
        then.copy(id)?;
    }
    channels::narrow(&mut then.inner, opset, block, depthwise)?;
    let sum = then.add(add, block.slot, body, shortcut)?;
    then.finish(sum, graph.ty(Value { node: add, slot: 0 }).cloned());
    let (then, mut captures) = then.into_parts();
    let mut other = Branch::new((graph, params), opset, &format!("{}.else", block.name), captures);
    let kept = other.keep(shortcut)?;
    other.finish(kept, graph.ty(Value { node: add, slot: 0 }).cloned());
    let (other, all) = other.into_parts();
    captures = all;

    let mut emit = Emit::new(graph, opset);
    emit.prefix = format!("/gate/{}/", block.name);
    let rank = emit.rank(gate)?;
    let most = emit.reduce("ReduceMax", gate, &(0..rank).collect::<Vec<_>>(), false)?;
    let needed = emit.compare_scalar("Greater", most, 0.0)?;
    let old = Value { node: add, slot: 0 };
    let name = graph.value_name(old).to_string();
    let attrs = Attributes::new().with("then_branch", then).with("else_branch", other);
    let slot = OutputSlot { name: graph.fresh_name(&format!("{name}_if")), ty: graph.ty(old).cloned() };
    let node =
        graph.add_node(&format!("/gate/{}/If", block.name), Operator::onnx("If", attrs), &[Some(needed)], vec![slot]);
    captures.into_iter().for_each(|value| {
        graph.push_capture(node, value);
    });
    graph.substitute(old, Value { node, slot: 0 });
    graph.remove_dead();
    Ok(())
}

/// The nodes of a body and of its multiplications, in order, without the gate network.
fn body_nodes(graph: &Graph, block: &BlockRecord, input: Value, body: Value) -> Vec<NodeId> {
    let above = graph.ancestors([body], |value| *value == input);
    let ours = format!("/gate/{}/", block.name);
    let mul = |name: &str| {
        block.layer.as_deref() == Some(name) || block.groups.iter().any(|g| g.multiplications().any(|mul| mul == name))
    };
    let mut nodes = blocks::region(graph, &blocks::order(graph), &above, input);
    nodes.retain(|&id| !graph.node(id).name.starts_with(&ours) || mul(&graph.node(id).name));
    nodes
}

/// Whether nodes read integers from outside that are no constants: shapes, as a rule.
fn reads_shapes(graph: &Graph, nodes: &[NodeId]) -> bool {
    let inside: HashSet<NodeId> = nodes.iter().copied().collect();
    let outside = |value: &Value| !inside.contains(&value.node) && graph.constant(*value).is_none();
    let integer = |value: &Value| graph.ty(*value).and_then(Type::dtype) == Some(DType::I64);
    let read = |id: &NodeId| graph.node_inputs(*id).iter().flatten().any(|v| outside(v) && integer(v));
    nodes.iter().any(read)
}
