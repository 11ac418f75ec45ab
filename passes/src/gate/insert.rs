//! Adds the gate networks, their multiplications and, for training, what they cost.

use super::boost::{self, boosted};
use super::cost::{Costs, Term};
use super::importance;
use super::measure::{self, FLOPS, Measure};
use super::statistics::standardised;
use super::{Block, BlockRecord, Gate, GroupRecord, Normalise, Record, SqueezeRecord};
use crate::training;
use crate::walk::nodes_by_name;
use indexmap::IndexMap;
use sartor_ir::ops::Emit;
use sartor_ir::{
    Attributes, DType, Error, Graph, GraphOutput, Model, NodeId, Operator, Parameter, Result, Role, Tensor, Type,
    Value, bail, infer,
};
use std::collections::HashMap;

/// Fewer features are not normalised.
const FEW: usize = 8;

/// What a graph is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// To be run: standard operators only.
    Inference,
    /// To be run, and to say how each example uses the gates.
    Evaluation,
    /// To be trained.
    Step,
}

impl Use {
    /// By the name of a program.
    pub(super) fn of(program: &str) -> Use {
        match program {
            name if training::is_step(name) => Use::Step,
            "eval" => Use::Evaluation,
            _ => Use::Inference,
        }
    }
}

/// The gates of one block.
struct Gates {
    /// What multiplies.
    soft: Vec<Value>,
    /// In steps: open or shut.
    hard: Option<Vec<Value>>,
}

/// What gates are inserted into.
#[derive(Clone, Copy)]
struct Site {
    /// The input `attention_mask`.
    mask: Option<Value>,
    purpose: Use,
}

/// The parameters of a gate network in a graph.
#[derive(Clone, Copy)]
pub(super) struct Network {
    pub(super) code: Option<Value>,
    pub(super) weight: Value,
    pub(super) bias: Option<Value>,
}

impl Network {
    /// What it makes of features, `[N, gates]`: gates before they are clamped.
    pub(super) fn scores(&self, emit: &mut Emit, features: Value) -> Result<Value> {
        let mut product = |a: Value, b: Value| emit.op("MatMul", &[a, b], Attributes::new());
        let read = self.code.map_or(Ok(features), |code| product(features, code))?;
        match self.bias {
            Some(bias) => emit.op("Gemm", &[read, self.weight, bias], Attributes::new()),
            None => product(read, self.weight),
        }
    }
}

/// A gate network where it stands in a graph.
struct Standing {
    features: Value,
    network: Network,
    /// The gates before they are clamped.
    scores: Value,
    binary: bool,
}

impl Standing {
    /// The one that ends in this clamp.
    fn behind(graph: &Graph, record: &BlockRecord, clamped: Value) -> Result<Standing> {
        let unknown =
            || Error::msg(format!("block \"{}\" has gates, but not as the pass `gate` writes them", record.name));
        let mut scores = graph.input(clamped.node, 0).ok_or_else(unknown)?;
        let binary = graph.node(clamped.node).is("Ceil");
        if binary {
            scores = graph.input(scores.node, 0).ok_or_else(unknown)?;
        }
        let [Some(mut features), Some(weight), bias @ Some(_)] = graph.node_inputs(scores.node)[..] else {
            return Err(unknown());
        };
        let mut code = None;
        if record.code.is_some() {
            let [Some(pooled), Some(param)] = graph.node_inputs(features.node)[..] else { return Err(unknown()) };
            (features, code) = (pooled, Some(param));
        }
        Ok(Standing { features, network: Network { code, weight, bias }, scores, binary })
    }
}

/// What the numbers of a code do to gates at first, `[rank, gates]`: the first moves all of them alike, the others by Walsh's functions, each as far as a single
/// gate would move if it were alone: every row has length 1.
fn directions(rank: usize, gates: usize) -> Tensor {
    let size = 1.0 / (gates as f32).sqrt();
    let sign = |row: usize, gate: usize| if (row & gate).count_ones().is_multiple_of(2) { size } else { -size };
    let values = (0..rank).flat_map(|row| (0..gates).map(move |gate| sign(row, gate)));
    Tensor::from_vec([rank, gates], values.collect::<Vec<f32>>())
}

/// Gate networks with more weights make a code of this length first, if nothing else is said: as large as what they decide about they would be, where layers are wide.
const LARGE: usize = 1 << 16;
const RANK: usize = 8;

/// The length of the code between so many features and gates, if it was said or by itself; 0 where there is none.
pub(super) fn rank_between(features: usize, gates: usize, said: Option<usize>) -> usize {
    let all = features * gates;
    let rank = said.unwrap_or(if all > LARGE { RANK } else { 0 });
    if rank * (features + gates) < all { rank } else { 0 }
}

/// Adds the weights between so many features and gates, by way of a code if its length is not 0: its name, and that of the last weights. They say nothing at first.
pub(super) fn add_weights(
    model: &mut Model,
    [code, weight]: [String; 2],
    (features, gates): (usize, usize),
    rank: usize,
    dtype: DType,
) -> Result<(Option<String>, String)> {
    let mut add = |name: String, tensor: Tensor| model.add_param(&name, tensor, Role::Trainable);
    let zeros = |columns: usize| Tensor::zeros(dtype, vec![features, columns]);
    if rank == 0 {
        return Ok((None, add(weight, zeros(gates)?)));
    }
    let code = add(code, zeros(rank)?);
    let weight = add(weight, directions(rank, gates).cast(dtype)?);
    Ok((Some(code), weight))
}

impl Gate {
    /// What is done to so many features: a few (the means of an image's colours) say little beside each other.
    fn normalises(&self, features: usize) -> Normalise {
        match self.normalise {
            Normalise::Example if features < FEW => Normalise::None,
            how => how,
        }
    }

    /// Adds the parameters of all gate networks.
    pub(super) fn add_parameters(&self, model: &mut Model, blocks: &[Block], costs: &Costs) -> Result<Record> {
        let mut record = Record { flops: costs.total, cut: 0, gate_flops: 0, blocks: Vec::new() };
        for block in blocks {
            let Some(ty) = model.graph.ty(block.input).cloned() else {
                bail!("block \"{}\" has no typed input", block.name)
            };
            let inputs = ty.shape().and_then(|s| s.get(block.axis)?.known()).and_then(|n| usize::try_from(n).ok());
            let (Some(inputs), Some(dtype)) = (inputs, ty.dtype()) else {
                bail!("the number of channels of \"{}\" is not known", model.graph.value_name(block.input))
            };
            let gates =
                usize::from(self.layers && block.residual) + block.groups.iter().map(|g| g.channels).sum::<usize>();
            let how = self.normalises(inputs);
            let rank = if self.nested { 1 } else { rank_between(inputs, gates, self.rank) };
            let name = format!("gate.{}", block.name);
            let names = [format!("{name}.code"), format!("{name}.weight")];
            let (code, weight) = add_weights(model, names, (inputs, gates), rank, dtype)?;
            if self.nested {
                model.params[&weight].role = Role::Frozen;
            }
            let mut heights = vec![1f32; gates];
            if self.binary {
                let channels = importance::heights(model, block)?;
                heights.splice(gates - channels.len().., channels);
            }
            let bias = Tensor::from_vec([gates], heights).cast(dtype)?;
            let bias = model.add_param(&format!("{name}.bias"), bias, Role::Trainable);
            let mut statistic =
                |what: &str, tensor: Tensor| model.add_param(&format!("{name}.{what}"), tensor, Role::State);
            let statistics = match how {
                Normalise::Channel => Some([
                    statistic("mean", Tensor::zeros(dtype, vec![inputs])?),
                    statistic("var", Tensor::from_vec([inputs], vec![1f32; inputs]).cast(dtype)?),
                ]),
                _ => None,
            };
            let length = (how != Normalise::None && self.length != 1.0).then_some(self.length);
            let nested = self.nested;
            let names = BlockRecord { code, nested, weight, bias, statistics, length, ..BlockRecord::default() };
            let described = self.describe(&model.graph, block, names);
            let elements = costs.elements(block.input);
            record.gate_flops += described.network_flops(&model.params, elements, how != Normalise::None);
            record.blocks.push(described);
        }
        if self.boost {
            boost::add_parameters(model, &mut record)?;
        }
        Ok(record)
    }

    /// `params`: the names of its parameters.
    fn describe(&self, graph: &Graph, block: &Block, params: BlockRecord) -> BlockRecord {
        let name = |id: &NodeId| graph.node(*id).name.clone();
        let names = |ids: &[NodeId]| ids.iter().map(name).collect::<Vec<_>>();
        let group = |(k, g): (usize, &super::Group)| GroupRecord {
            mul: format!("/gate/{}/channels.{k}", block.name),
            producers: names(&g.producers),
            members: names(&g.members),
            consumer: name(&g.consumer),
            merge: (g.reader != g.consumer).then(|| name(&g.reader)),
            width: g.width,
            axis: g.axis,
            channels: g.channels,
            squeezes: g
                .squeezes
                .iter()
                .enumerate()
                .map(|(i, squeeze)| SqueezeRecord {
                    mul: format!("/gate/{}/channels.{k}.squeeze.{i}", block.name),
                    consumer: name(&squeeze.consumer),
                    axis: squeeze.axis,
                })
                .collect(),
        };
        BlockRecord {
            name: block.name.clone(),
            add: name(&block.add),
            slot: block.slot,
            input: graph.value_name(block.input).to_string(),
            identity: block.residual && graph.input(block.add, 1 - block.slot) == Some(block.input),
            nodes: names(&block.nodes),
            layer: (self.layers && block.residual).then(|| format!("/gate/{}/layer", block.name)),
            groups: block.groups.iter().enumerate().map(group).collect(),
            ..params
        }
    }
}

/// What is inserted into every graph of a model.
pub(super) struct Plan<'a> {
    pub(super) options: &'a Gate,
    pub(super) record: &'a Record,
    pub(super) blocks: &'a [Block],
    pub(super) terms: &'a [Vec<Term>],
    pub(super) params: &'a IndexMap<String, Parameter>,
    pub(super) opset: i64,
}

impl Plan<'_> {
    /// Inserts all gates into a graph. `blocks` are those of the inference graph; here they are found again by the names of their nodes.
    pub(super) fn apply(&self, graph: &mut Graph, purpose: Use) -> Result<()> {
        let by_name = nodes_by_name(graph);
        let site = Site { mask: attention_mask(graph), purpose };
        let mut emit = Emit::new(graph, self.opset);
        let mut open: Vec<Option<Vec<Value>>> = Vec::new();
        for (block, record) in self.blocks.iter().zip(&self.record.blocks) {
            let Some(here) = relocated(emit.graph, block, record, &by_name)? else {
                open.push(None);
                continue;
            };
            emit.prefix = format!("/gate/{}/", block.name);
            let gates = self.network(&mut emit, &here, record, site)?;
            self.multiply(&mut emit, &here, record, &gates.soft)?;
            open.push(gates.hard);
        }
        self.finish(graph, &open, purpose)
    }

    /// Prepares a graph that has gates already for its purpose.
    pub(super) fn go_on(&self, graph: &mut Graph, purpose: Use) -> Result<()> {
        infer::infer_graph(graph, self.opset)?;
        let clamped = measure::clamped_gates(graph, self.record);
        let mut emit = Emit::new(graph, self.opset);
        let mut open = Vec::new();
        for (record, clip) in self.record.blocks.iter().zip(clamped) {
            emit.prefix = format!("/gate/{}/", record.name);
            if let Some(clip) = clip {
                self.boost_standing(&mut emit, record, clip)?;
            }
            if purpose == Use::Step {
                open.push(clip.map(|clip| self.reopened(&mut emit, record, clip)).transpose()?);
            }
        }
        self.finish(graph, &open, purpose)
    }

    /// Multiplies gates that stand in a graph by their factors, if they have some that are not there yet.
    fn boost_standing(&self, emit: &mut Emit, record: &BlockRecord, clamped: Value) -> Result<()> {
        let Some(boost) = &record.boost else { return Ok(()) };
        if emit.graph.find_param(&boost.weight).is_some() {
            return Ok(());
        }
        let features = Standing::behind(emit.graph, record, clamped)?.features;
        let product = boosted(emit, self.params, record, clamped, features)?;
        emit.graph.replace_uses_if(clamped, product, |reader, _| reader != product.node);
        Ok(())
    }

    /// Puts the gate of training steps where a clamp stands; returns whether each is open.
    fn reopened(&self, emit: &mut Emit, record: &BlockRecord, clip: Value) -> Result<Vec<Value>> {
        let Standing { features, network, scores, binary } = Standing::behind(emit.graph, record, clip)?;
        let product = scores.node;
        let network = self.settled(emit, network)?;
        emit.graph.set_input(product, 1, Some(network.weight));
        emit.graph.set_input(product, 2, network.bias);
        if let (Some(code), Some(read)) = (network.code, emit.graph.input(product, 0)) {
            emit.graph.set_input(read.node, 1, Some(code));
        }
        let soft = emit.sartor("Gate", &[scores], self.attributes(binary))?;
        emit.graph.replace_uses(clip, soft);
        self.is_open(emit, record, features, network)
    }

    /// What a graph has besides its gates: the penalty, or what the gates do.
    fn finish(&self, graph: &mut Graph, open: &[Option<Vec<Value>>], purpose: Use) -> Result<()> {
        let measure = Measure { record: self.record, terms: self.terms };
        if purpose == Use::Step && open.iter().any(Option::is_some) {
            let mut emit = Emit::new(graph, self.opset);
            emit.prefix = "/gate/".to_string();
            let cost = measure.cost(&mut emit, open)?;
            self.penalise(&mut emit, cost)?;
        }
        infer::infer_graph(graph, self.opset)?;
        if purpose == Use::Evaluation { measure.add_outputs(graph, self.opset) } else { Ok(()) }
    }

    /// The gates of a block: one for the layer if there is one, then those of each group.
    fn network(
        &self,
        emit: &mut Emit,
        block: &Block,
        record: &BlockRecord,
        Site { mask, purpose }: Site,
    ) -> Result<Gates> {
        let params = self.params;
        let mut param = |name: &str| param_in(emit.graph, params, name);
        let code = record.code.as_ref().map(|name| param(name)).transpose()?;
        let mut network = Network { code, weight: param(&record.weight)?, bias: Some(param(&record.bias)?) };
        if purpose == Use::Step {
            network = self.settled(emit, network)?;
        }
        let mut pooled = pool(emit, block, mask)?;
        let features = params.get(record.first()).and_then(|param| param.tensor.shape().first().copied()).unwrap_or(0);
        match (&record.statistics, self.options.normalises(features)) {
            (Some([mean, var]), _) => {
                let (at_mean, at_var) = (param_in(emit.graph, params, mean)?, param_in(emit.graph, params, var)?);
                pooled = standardised(emit, pooled, (at_mean, at_var), self.options.length, features)?;
            }
            (None, Normalise::Example) => pooled = normalised(emit, pooled, features, self.options.length)?,
            _ => {}
        }
        let scores = network.scores(emit, pooled)?;
        let soft = match purpose {
            Use::Step => emit.sartor("Gate", &[scores], self.attributes(self.options.binary))?,
            _ => {
                let (low, high) = (emit.scalar(0.0, scores)?, emit.scalar(1.0, scores)?);
                let clamped = emit.op("Clip", &[scores, low, high], Attributes::new())?;
                if self.options.binary { emit.unary("Ceil", clamped)? } else { clamped }
            }
        };
        let hard = match purpose {
            Use::Inference | Use::Evaluation => None,
            Use::Step => Some(self.is_open(emit, record, pooled, network)?),
        };
        let soft = boosted(emit, params, record, soft, pooled)?;
        Ok(Gates { soft: measure::split(emit, soft, &record.sizes())?, hard })
    }

    /// Whether each gate of a block is open, in a step: what the blocks cost trains the gate networks, not the features that they read.
    fn is_open(&self, emit: &mut Emit, record: &BlockRecord, features: Value, network: Network) -> Result<Vec<Value>> {
        let still = emit.sartor("Detach", &[features], Attributes::new())?;
        let scores = network.scores(emit, still)?;
        let open = emit.sartor("Gate", &[scores], self.attributes(true))?;
        let mut open = measure::split(emit, open, &record.sizes())?;
        // A block without channels beside blocks that have some is not to shut before them either.
        let most = self.record.blocks.iter().map(BlockRecord::channels).max().unwrap_or(0);
        let by = if record.groups.is_empty() { most } else { record.channels() };
        if let (Some(_), Some(layer), true) = (&record.layer, open.first_mut(), by > 1) {
            *layer = slowed(emit, *layer, by)?;
        }
        Ok(open)
    }

    fn attributes(&self, hard: bool) -> Attributes {
        Attributes::new().with("hard", i64::from(hard)).with("leak", self.options.leak as f32)
    }

    /// The multiplications: channels before their consumer, the body before its addition.
    fn multiply(&self, emit: &mut Emit, block: &Block, record: &BlockRecord, gates: &[Value]) -> Result<()> {
        let mut gates = gates.iter().copied();
        if let Some(name) = &record.layer {
            let Some(gate) = gates.next() else { bail!("block \"{}\" has no gate", block.name) };
            let Some(body) = emit.graph.input(block.add, block.slot) else { bail!("its addition has no input") };
            let scaled = scale(emit, body, gate, None, name)?;
            emit.graph.set_input(block.add, block.slot, Some(scaled));
        }
        for (group, record) in block.groups.iter().zip(&record.groups) {
            let Some(gate) = gates.next() else { bail!("block \"{}\" lacks a gate", block.name) };
            let squeezes = group.squeezes.iter().zip(&record.squeezes);
            let squeezes = squeezes.map(|(squeeze, record)| (squeeze.consumer, squeeze.axis, &record.mul));
            for (reader, axis, name) in squeezes.chain([(group.reader, group.axis, &record.mul)]) {
                let Some(value) = emit.graph.input(reader, 0) else { bail!("its consumer has no input") };
                let scaled = scale(emit, value, gate, Some(axis), name)?;
                emit.graph.set_input(reader, 0, Some(scaled));
            }
        }
        Ok(())
    }

    /// The parameters of a gate network, which learn nothing any more when the gates have settled.
    fn settled(&self, emit: &mut Emit, network: Network) -> Result<Network> {
        if self.options.settle >= 1.0 {
            return Ok(network);
        }
        let progress = progress(emit);
        let over = emit.compare_scalar("GreaterOrEqual", progress, self.options.settle)?;
        let mut held = |value: Value| {
            let still = emit.sartor("Detach", &[value], Attributes::new())?;
            emit.select(over, still, value)
        };
        let code = network.code.map(&mut held).transpose()?;
        Ok(Network { code, weight: held(network.weight)?, bias: network.bias.map(held).transpose()? })
    }

    /// The target at this point of the run: 1, then falling, then what the options say.
    fn fallen_target(&self, emit: &mut Emit, dtype: DType) -> Result<Value> {
        let progress = progress(emit);
        let progress = emit.cast(progress, dtype)?;
        let since = emit.add_scalar(progress, -self.options.warmup)?;
        let share = emit.mul_scalar(since, 1.0 / self.options.anneal.max(1e-6))?;
        let (low, high) = (emit.scalar(0.0, share)?, emit.scalar(1.0, share)?);
        let share = emit.op("Clip", &[share, low, high], Attributes::new())?;
        let fallen = emit.mul_scalar(share, self.options.target - 1.0)?;
        emit.add_scalar(fallen, 1.0)
    }

    /// `loss + λ · max(0, mean cost − target)² − spread · mean of difficulty · cost`, with a target that falls over the run.
    fn penalise(&self, emit: &mut Emit, cost: Value) -> Result<()> {
        let Some(loss) = emit.graph.find_output("loss") else { bail!("it has no output \"loss\"") };
        let mean = emit.reduce_mean(cost, &[0], false)?;
        training::set_output(emit.graph, FLOPS, mean);
        let dtype = emit.dtype(mean)?;
        let target = self.fallen_target(emit, dtype)?;
        let excess = emit.sub(mean, target)?;
        let excess = emit.unary("Relu", excess)?;
        let square = emit.mul(excess, excess)?;
        let mut penalty = emit.mul_scalar(square, self.options.lambda)?;
        if self.options.spread > 0.0 {
            let difficulty = difficulty(emit, loss, self.options.spread)?;
            let difficulty = emit.cast(difficulty, dtype)?;
            let products = emit.mul(difficulty, cost)?;
            let covariance = emit.reduce_mean(products, &[0], false)?;
            let reward = emit.mul_scalar(covariance, self.options.spread)?;
            penalty = emit.sub(penalty, reward)?;
        }
        let penalty = emit.cast(penalty, emit.dtype(loss)?)?;
        let total = emit.add(loss, penalty)?;
        emit.graph.outputs.iter_mut().filter(|o| o.name == "loss").for_each(|o| o.value = total);
        emit.graph.outputs.push(GraphOutput { name: "task_loss".to_string(), value: loss });
        Ok(())
    }
}

/// The share of the run that is done.
fn progress(emit: &mut Emit) -> Value {
    match emit.graph.find_input(training::PROGRESS) {
        Some(progress) => progress,
        None => emit.graph.add_input(training::PROGRESS, Type::tensor(DType::F32, [0i64; 0])),
    }
}

/// A gate whose gradient is divided by a number. A layer saves as much as all its channels together: pressed as hard, it would be the first to shut, and
/// take all of them with it before they have learned which of them are needed.
fn slowed(emit: &mut Emit, gate: Value, by: usize) -> Result<Value> {
    let share = emit.mul_scalar(gate, 1.0 / by as f64)?;
    let rest = emit.mul_scalar(gate, 1.0 - 1.0 / by as f64)?;
    let still = emit.sartor("Detach", &[rest], Attributes::new())?;
    emit.add(share, still)
}

/// A parameter of the model, in a graph.
pub(super) fn param_in(graph: &mut Graph, params: &IndexMap<String, Parameter>, name: &str) -> Result<Value> {
    match params.get(name) {
        Some(param) => Ok(graph.param(name, Type::of(&param.tensor))),
        None => bail!("the model has no parameter \"{name}\""),
    }
}

/// Each row of so many features with mean 0 and this length. With 1 a step of the optimizer moves an example's gates by their weights about as far as by their
/// biases, however many features there are.
fn normalised(emit: &mut Emit, features: Value, count: usize, length: f64) -> Result<Value> {
    let scale =
        Tensor::from_vec([count], vec![(length / (count as f64).sqrt()) as f32; count]).cast(emit.dtype(features)?)?;
    let scale = emit.constant(scale);
    emit.op("LayerNormalization", &[features, scale], Attributes::new().with("axis", -1i64).with("epsilon", 1e-5f32))
}

/// How difficult each example of a batch is, by the rank of its task loss: from −1 (the easiest) to 1, `[N]`.
fn difficulty(emit: &mut Emit, loss: Value, spread: f64) -> Result<Value> {
    let Some(losses) = single_losses(emit, loss)? else {
        bail!(
            "spread = {spread} tells examples apart by their losses, and this loss is neither the cross-entropy of scores [N, C] nor the mean \
             of one number per example"
        );
    };
    let dtype = emit.dtype(losses)?;
    let (row, column) = (emit.unsqueeze(losses, &[0])?, emit.unsqueeze(losses, &[1])?);
    // The mean of the sign of `own − other` is the share of easier examples less that of harder ones; equals count for neither.
    let apart = emit.sub(column, row)?;
    let sign = emit.unary("Sign", apart)?;
    let rank = emit.reduce_mean(sign, &[1], false)?;
    let rank = emit.cast(rank, dtype)?;
    emit.sartor("Detach", &[rank], Attributes::new())
}

/// The losses `[N]` of single examples whose mean a loss is.
fn single_losses(emit: &mut Emit, loss: Value) -> Result<Option<Value>> {
    let node = emit.graph.node(loss.node);
    let Some(op) = node.op().cloned() else { return Ok(None) };
    let (first, second) = (emit.graph.input(loss.node, 0), emit.graph.input(loss.node, 1));
    let rank = first.and_then(|v| emit.graph.ty(v)).and_then(Type::rank);
    match (op.name.as_str(), rank) {
        ("ReduceMean", Some(1)) => Ok(first),
        // Of the labels and of a teacher, each times its share.
        ("Add" | "Mul", _) => {
            let mut single = |value: Option<Value>| match value {
                Some(value) if emit.graph.node(value.node).constant().is_some() => Ok(Some(value)),
                Some(value) => single_losses(emit, value),
                None => Ok(None),
            };
            let (Some(first), Some(second)) = (single(first)?, single(second)?) else { return Ok(None) };
            Ok(Some(emit.op(&op.name, &[first, second], Attributes::new())?))
        }
        ("SoftmaxCrossEntropyLoss", Some(2)) => {
            let mut attrs = op.attrs;
            attrs.set("reduction", "none");
            let op = Operator::onnx("SoftmaxCrossEntropyLoss", attrs);
            Ok(Some(emit.node(op, &[first, second], 1)?[0]))
        }
        _ => Ok(None),
    }
}

/// The same block in another graph of the model; `None` if its addition is not there.
fn relocated(
    graph: &Graph,
    block: &Block,
    record: &BlockRecord,
    by_name: &HashMap<String, NodeId>,
) -> Result<Option<Block>> {
    let Some(&add) = by_name.get(&record.add) else { return Ok(None) };
    let input = if record.identity { graph.input(add, 1 - block.slot) } else { graph.find_value(&record.input) };
    let Some(input) = input else { bail!("block \"{}\" reads \"{}\", which is not there", block.name, record.input) };
    let mut here = Block { add, input, ..block.clone() };
    for (group, record) in here.groups.iter_mut().zip(&record.groups) {
        let named = |name: &String| {
            by_name.get(name).copied().ok_or_else(|| Error::msg(format!("there is no node \"{name}\"")))
        };
        group.consumer = named(&record.consumer)?;
        group.reader = record.merge.as_ref().map_or(Ok(group.consumer), named)?;
        for (squeeze, record) in group.squeezes.iter_mut().zip(&record.squeezes) {
            squeeze.consumer = named(&record.consumer)?;
        }
    }
    Ok(Some(here))
}

/// The input `attention_mask`, `[N, tokens]`, if the graph has one.
fn attention_mask(graph: &Graph) -> Option<Value> {
    graph.find_input("attention_mask").filter(|&mask| graph.ty(mask).and_then(Type::rank) == Some(2))
}

/// The mean of a block's input over all places: `[N, channels]`.
fn pool(emit: &mut Emit, block: &Block, mask: Option<Value>) -> Result<Value> {
    let rank = emit.rank(block.input)?;
    let axes: Vec<usize> = (1..rank).filter(|&axis| axis != block.axis).collect();
    match mask.filter(|_| rank == 3 && block.axis == 2) {
        Some(mask) => {
            let kept = emit.cast(mask, emit.dtype(block.input)?)?;
            let kept = emit.unsqueeze(kept, &[2])?;
            let tokens = emit.mul(block.input, kept)?;
            let (sum, count) = (emit.reduce_sum(tokens, &[1], false)?, emit.reduce_sum(kept, &[1], false)?);
            emit.div(sum, count)
        }
        None if axes.is_empty() => Ok(block.input),
        None => emit.reduce_mean(block.input, &axes, false),
    }
}

/// A value times gates: `[N, channels]` of channels that lie on an axis, or `[N, 1]`.
fn scale(emit: &mut Emit, value: Value, gate: Value, axis: Option<usize>, name: &str) -> Result<Value> {
    let (rank, axis) = (emit.rank(value)?, axis.unwrap_or(1));
    let axes: Vec<usize> = (1..rank).filter(|&a| a != axis).collect();
    let gate = if axes.is_empty() { gate } else { emit.unsqueeze(gate, &axes)? };
    let scaled = emit.mul(value, gate)?;
    emit.graph.node_mut(scaled.node).name = name.to_string();
    Ok(scaled)
}
