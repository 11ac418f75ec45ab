//! `gate-outputs`: lets a model that has gates say how each input uses them.
//!
//! Before → after:
//! ```text
//! (x) => (y)
//!
//! (x) => (y, flops, gates)
//! flops  [N]      what each example costs, as a share of the operations of the model without gates, counted hard ([`cost`](super::cost))
//! gates  [N, G]   every gate after the clamp: block by block as the metadata lists them, the layer's first, then those of every group's channels
//! ```
//! The program `eval` gets these outputs, or, of a model without one, the inference graph. A gate is open where its value is above 0. Where a
//! graph does not have one of the blocks, `gates` is left out; the block then counts as run.
//!
//! Precondition: the pass `gate` has run, the internal opset. It finds the gates by their parameters, `Clip(Gemm(…, weight, bias))` or `Ceil` of that, so no pass in between may
//! have replaced these operators. Nodes of a body that are gone from the inference graph count as always computed.

use super::cost::{Costs, Term};
use super::{BlockRecord, Record};
use crate::{Changed, Pass, training};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Graph, Model, Operator, Result, Value, bail, ensure, infer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of the output with the cost of each example.
pub const FLOPS: &str = "flops";
/// The name of the output with the gates of each example.
pub const GATES: &str = "gates";

/// The options (there are none), and the pass.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GateOutputs {}

impl Pass for GateOutputs {
    fn name(&self) -> &str {
        "gate-outputs"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        training::require_opset(model, "gate-outputs")?;
        let Some(record) = Record::load(model)? else { bail!("the model has no gates: the pass `gate` attaches them") };
        let opset = model.opset();
        infer::infer_graph(&mut model.graph, opset)?;
        let terms = Costs::of(&model.graph, opset)?.terms_of(&model.graph, &record.blocks);
        let measure = Measure { record: &record, terms: &terms };
        let graph = match model.programs.get_mut("eval") {
            Some(program) => &mut program.graph,
            None => &mut model.graph,
        };
        ensure!(clamped_gates(graph, &record).iter().any(Option::is_some), "none of the model's gates was found");
        measure.add_outputs(graph, opset)?;
        Ok(Changed::Yes)
    }
}

/// What a gated model costs, and where its gates are.
pub(super) struct Measure<'a> {
    pub(super) record: &'a Record,
    pub(super) terms: &'a [Vec<Term>],
}

impl Measure<'_> {
    /// Adds both outputs to a graph that has gates, with known types; none to one that has no gates.
    pub(super) fn add_outputs(&self, graph: &mut Graph, opset: i64) -> Result<()> {
        let found = gates(graph, self.record);
        let present: Vec<Value> = found.iter().flatten().copied().collect();
        let Some(&first) = present.first() else { return Ok(()) };
        let mut emit = Emit::new(graph, opset);
        emit.prefix = "/gate/".to_string();
        let mut open = Vec::new();
        for (block, gates) in self.record.blocks.iter().zip(&found) {
            open.push(gates.map(|gates| is_open(&mut emit, gates, &block.sizes())).transpose()?);
        }
        let cost = self.cost(&mut emit, &open)?;
        training::set_output(emit.graph, FLOPS, cost);
        if present.len() == self.record.blocks.len() {
            let all = match present.len() {
                1 => first,
                _ => emit.op("Concat", &present, Attributes::new().with("axis", 1i64))?,
            };
            training::set_output(emit.graph, GATES, all);
        }
        infer::infer_graph(graph, opset).map(drop)
    }

    /// What each example costs, as a share of the model's cost: `[N]`.
    pub(super) fn cost(&self, emit: &mut Emit, open: &[Option<Vec<Value>>]) -> Result<Value> {
        let gated: u64 = self.terms.iter().flatten().map(|term| term.flops).sum();
        let mut fixed = self.record.flops.saturating_sub(gated + self.record.cut) + self.record.gate_flops;
        let mut sum: Option<Value> = None;
        for ((block, terms), open) in self.record.blocks.iter().zip(self.terms).zip(open) {
            match open {
                Some(open) => {
                    let body = self.body_cost(emit, block, terms, open)?;
                    sum = Some(training::plus(emit, sum, body)?);
                }
                // A block that this graph does not have has no gates here; the share is of the whole model all the same.
                None => fixed += terms.iter().map(|term| term.flops).sum::<u64>(),
            }
        }
        let Some(sum) = sum else { bail!("no gate was inserted") };
        emit.add_scalar(sum, fixed as f64 / self.record.flops as f64)
    }

    /// What a body costs each example, as a share of the model's cost: `layer · Σ flops · Π shares`.
    fn body_cost(&self, emit: &mut Emit, block: &BlockRecord, terms: &[Term], open: &[Value]) -> Result<Value> {
        let (layer, groups) = open.split_at(usize::from(block.layer.is_some()));
        let shares = groups.iter().map(|&g| emit.reduce_mean(g, &[1], false)).collect::<Result<Vec<_>>>()?;
        let (mut always, mut body) = (0.0, None);
        for term in terms {
            let part = term.flops as f64 / self.record.flops as f64;
            let mut factors = term.groups.iter().map(|&group| shares[group]);
            let Some(first) = factors.next() else {
                always += part;
                continue;
            };
            let product = factors.try_fold(first, |product, share| emit.mul(product, share))?;
            let scaled = emit.mul_scalar(product, part)?;
            body = Some(training::plus(emit, body, scaled)?);
        }
        match (layer.first(), body) {
            (Some(&layer), body) => {
                let layer = emit.reduce_sum(layer, &[1], false)?;
                let Some(body) = body else { return emit.mul_scalar(layer, always) };
                let inner = emit.add_scalar(body, always)?;
                emit.mul(layer, inner)
            }
            (None, Some(body)) => emit.add_scalar(body, always),
            (None, None) => bail!("a block has no gate"),
        }
    }
}

/// The gates `[N, gates]` of every block after the clamp, and after what makes them 0 or 1, if that follows; `None` where the graph has none.
pub(super) fn clamped_gates(graph: &Graph, record: &Record) -> Vec<Option<Value>> {
    let found = |block: &BlockRecord| {
        let clamped = only(graph, only(graph, graph.find_param(&block.weight)?, "Gemm")?, "Clip")?;
        Some(only(graph, clamped, "Ceil").unwrap_or(clamped))
    };
    record.blocks.iter().map(found).collect()
}

/// The gates of every block as they multiply: the clamped ones, times their factors, if there are some.
fn gates(graph: &Graph, record: &Record) -> Vec<Option<Value>> {
    let blocks = record.blocks.iter().zip(clamped_gates(graph, record));
    let times_factors = |(block, clamped): (&BlockRecord, Option<Value>)| match block.boost {
        Some(_) => only(graph, clamped?, "Mul"),
        None => clamped,
    };
    blocks.map(times_factors).collect()
}

/// What the first reader of this kind makes of a value.
fn only(graph: &Graph, value: Value, name: &str) -> Option<Value> {
    let (node, _) = graph.uses(value).into_iter().find(|(node, _)| graph.node(*node).is(name))?;
    Some(Value { node, slot: 0 })
}

/// 1 where a gate is open, else 0: the layer's, and those of every group.
fn is_open(emit: &mut Emit, gates: Value, sizes: &[i64]) -> Result<Vec<Value>> {
    let open = emit.compare_scalar("Greater", gates, 0.0)?;
    let open = emit.cast(open, emit.dtype(gates)?)?;
    split(emit, open, sizes)
}

/// The gates of a block one by one: of the layer, and of every group.
pub(super) fn split(emit: &mut Emit, gates: Value, sizes: &[i64]) -> Result<Vec<Value>> {
    if sizes.len() == 1 {
        return Ok(vec![gates]);
    }
    let lengths = emit.ints(sizes);
    emit.node(Operator::onnx("Split", Attributes::new().with("axis", 1i64)), &[Some(gates), Some(lengths)], sizes.len())
}
