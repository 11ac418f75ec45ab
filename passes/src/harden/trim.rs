//! Gates that do not look at their input go, the others stay: what was shut is cut off, and the columns of the gate networks with it.

use super::constant::{Here, without_shut};
use super::weights::{Weights, taken};
use crate::gate::cost::Costs;
use crate::gate::{BlockRecord, GATES, Record, Usage};
use sartor_ir::{Attributes, Graph, Model, NodeId, Operator, OutputSlot, Result, Tensor, Type, Value, bail, ensure};

/// Cuts off what is shut for all but a share of `below` of the inputs, and takes away gates that are 1 for all but as many. The record is then one of what is left.
pub(super) fn trim(graph: &mut Graph, model: &mut Model, record: &mut Record, below: f64) -> Result<()> {
    let opset = model.opset();
    ensure!(graph.find_output(GATES).is_none(), "trim before `gate-outputs`, which asks for the gates that there are");
    let costs = Costs::of(graph, opset)?;
    let before = model_flops(graph, &costs);
    let mut weights = Weights { graph, model };
    let networks: Vec<u64> = record.blocks.iter().map(|block| network_flops(&weights, &costs, block)).collect();
    let found = without_shut(weights.graph, record, below)?;
    for ((block, here), cost) in record.blocks.iter_mut().zip(&found).zip(networks) {
        record.gate_flops = record.gate_flops.saturating_sub(cost);
        if let Some(here) = here {
            narrow(&mut weights, block, here, below).map_err(|e| e.at(format!("block \"{}\"", block.name)))?;
            record.gate_flops += if block.sizes().is_empty() { 0 } else { network_flops(&weights, &costs, block) };
        }
    }
    let mut left = found.iter().map(Option::is_some);
    record.blocks.retain(|block| left.next() == Some(true) && !block.sizes().is_empty());
    graph.remove_dead();
    record.cut += before.saturating_sub(model_flops(graph, &Costs::of(graph, opset)?));
    Ok(())
}

/// Cuts off the channels of a block that are shut and takes away gates that are 1 for all. Notes what is left, which may be no gate at all.
fn narrow(weights: &mut Weights, block: &mut BlockRecord, here: &Here, below: f64) -> Result<()> {
    let Some(usage) = block.usage.take() else { bail!("it has no record of how its gates were used") };
    let is_one = |gate: usize| usage.open[gate] >= 1.0 - below && usage.value[gate] == 1.0;
    let (mut kept, mut multiplications, mut next) = (Vec::new(), Vec::new(), 0);
    if let Some((mul, _)) = here.layer {
        next = 1;
        if is_one(0) {
            block.layer = None;
            take_away(weights.graph, mul)?;
        } else {
            kept.push(0);
            multiplications.push(mul);
        }
    }
    for (group, mut record) in here.groups.iter().zip(std::mem::take(&mut block.groups)) {
        let first = next;
        next += record.channels;
        let all = (0..record.channels).collect();
        let channels: Vec<usize> = if group.cut_off(weights)? { group.kept.clone() } else { all };
        if channels.iter().all(|channel| is_one(first + channel)) {
            group.nodes.sites().try_for_each(|site| take_away(weights.graph, site.mul))?;
            continue;
        }
        record.channels = channels.len();
        block.groups.push(record);
        kept.extend(channels.iter().map(|channel| first + channel));
        multiplications.push(group.nodes.last.mul);
    }
    if kept.len() < usage.open.len() {
        keep_gates(weights, block, &kept)?;
        split_again(weights.graph, block, &multiplications)?;
    }
    let of_kept = |numbers: &[f64]| kept.iter().map(|&gate| numbers[gate]).collect();
    block.usage = Some(Usage { open: of_kept(&usage.open), value: of_kept(&usage.value) });
    Ok(())
}

/// Takes a multiplication by a gate away.
fn take_away(graph: &mut Graph, mul: NodeId) -> Result<()> {
    let Some(value) = graph.input(mul, 0) else { bail!("a multiplication by gates has no input") };
    graph.substitute(Value { node: mul, slot: 0 }, value);
    Ok(())
}

/// Lets a gate network make these gates only.
fn keep_gates(weights: &mut Weights, block: &BlockRecord, kept: &[usize]) -> Result<()> {
    let factors = block.boost.as_ref().map(|boost| (&boost.weight, 1));
    for (name, axis) in [(&block.weight, 1), (&block.bias, 0)].into_iter().chain(factors) {
        let Some(param) = weights.model.params.get_mut(name) else { bail!("the model has no parameter \"{name}\"") };
        param.tensor = taken(&param.tensor, axis, kept)?;
        let ty = Type::of(&param.tensor);
        if let Some(value) = weights.graph.find_param(name) {
            weights.graph.set_ty(value, Some(ty));
        }
    }
    Ok(())
}

/// Cuts the gates of a block anew, for the multiplications that are left, and forgets the shapes of what makes them.
fn split_again(graph: &mut Graph, block: &BlockRecord, multiplications: &[NodeId]) -> Result<()> {
    let ours = format!("/gate/{}/", block.name);
    for id in graph.topo_ops().into_iter().filter(|&id| graph.node(id).name.starts_with(&ours)).collect::<Vec<_>>() {
        let outputs: Vec<Value> = graph.node_outputs(id).collect();
        outputs.into_iter().for_each(|value| graph.set_ty(value, None));
    }
    let Some(parts) = multiplications.iter().map(|&mul| part(graph, mul)).collect::<Option<Vec<_>>>() else {
        bail!("its gates do not come from its gate network as the pass `gate` writes it")
    };
    let Some(split) = parts.first().map(|value| value.node).filter(|&node| graph.node(node).is("Split")) else {
        return Ok(());
    };
    let Some(gates) = graph.input(split, 0) else { bail!("its gates are cut from nothing") };
    if let [part] = parts[..] {
        graph.replace_uses(part, gates);
        return Ok(());
    }
    // Not as `gate` cuts them: `Emit` wants to know the types that were just forgotten.
    let lengths = graph.add_const(&format!("{ours}lengths"), Tensor::from_i64s(&block.sizes()));
    let slots = parts.iter().map(|_| OutputSlot { name: graph.fresh_name(&format!("{ours}Split")), ty: None });
    let slots = slots.collect();
    let operator = Operator::onnx("Split", Attributes::new().with("axis", 1i64));
    let node = graph.add_node(&format!("{ours}Split"), operator, &[Some(gates), Some(lengths)], slots);
    for (slot, part) in parts.into_iter().enumerate() {
        graph.replace_uses(part, Value { node, slot: slot as u32 });
    }
    Ok(())
}

/// The gates `[N, …]` that a multiplication is done with, before they are brought to its rank.
fn part(graph: &Graph, mul: NodeId) -> Option<Value> {
    let gate = graph.input(mul, 1)?;
    if graph.node(gate.node).is("Unsqueeze") { graph.input(gate.node, 0) } else { Some(gate) }
}

/// The operations of a block's gate network.
fn network_flops(weights: &Weights, costs: &Costs, block: &BlockRecord) -> u64 {
    let graph = &weights.graph;
    let elements = graph.find_value(&block.input).map_or(0, |value| costs.elements(value));
    let reader = graph.find_param(block.first()).and_then(|param| graph.uses(param).first().copied());
    let features = reader.and_then(|(product, _)| graph.input(product, 0));
    let by_example = features.is_some_and(|value| graph.node(value.node).is("LayerNormalization"));
    block.network_flops(&weights.model.params, elements, by_example || block.statistics.is_some())
}

/// The operations of all but gates.
fn model_flops(graph: &Graph, costs: &Costs) -> u64 {
    let nodes: Vec<NodeId> = graph.node_ids().filter(|&id| !graph.node(id).name.starts_with("/gate/")).collect();
    costs.sum(&nodes)
}
