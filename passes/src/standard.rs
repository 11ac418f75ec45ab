//! `standard`: writes what only Sartor knows in ONNX's own operators, so that a training step runs wherever ONNX runs; and with `opset` also what
//! is newer than that version.
//!
//! ```text
//! before   y = ai.sartor::SliceGrad (dy, shape, starts, ends)
//! after    y = Pad (dy, pads, , axes)
//! ```
//! (executed by `tests/cases/standard/*.txt`)
//!
//! Operators are replaced by their decompositions until none of the domain `ai.sartor`, and none that ONNX introduced after `opset`, is
//! left, in subgraphs too. One without a decomposition, or whose decomposition needs a size that only a run knows, is an error that names
//! it; all are named at once. The numbers are those of the operators, but for the order of sums.
//!
//! *Needs* the internal opset. *Leaves* the model in version `opset`, if that is older than the model's. Versions after the internal one
//! have new operators, new attributes and more element types, but no new meanings, so nothing else need be done. Idempotent.
//!
//! Which version introduced what: <https://github.com/onnx/onnx/blob/main/docs/Changelog.md>.

use crate::{Changed, Pass, walk};
use sartor_ir::{Error, Graph, Model, NodeId, OPSET, Operator, Result, SARTOR_DOMAIN, ensure, infer, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The options, and the pass.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Standard {
    /// The version of ONNX's operators to write, at least 20. Default: the model's own.
    pub opset: Option<i64>,
}

/// The operators that ONNX introduced after the internal opset.
const INTRODUCED: &[(&str, i64)] = &[
    ("Attention", 23),
    ("BitCast", 26),
    ("CausalConvWithState", 27),
    ("CumProd", 26),
    ("LinearAttention", 27),
    ("RMSNormalization", 23),
    ("RotaryEmbedding", 23),
    ("SwiGLU", 28),
    ("Swish", 24),
    ("TensorScatter", 24),
];

/// The attributes that operators were given after the internal opset.
const ATTRIBUTES: &[(&str, &str, i64)] = &[
    ("Cast", "round_mode", 24),
    ("CastLike", "round_mode", 24),
    ("DequantizeLinear", "block_size", 21),
    ("DequantizeLinear", "output_dtype", 23),
    ("GroupNormalization", "stash_type", 21),
    ("QuantizeLinear", "block_size", 21),
    ("QuantizeLinear", "output_dtype", 21),
    ("QuantizeLinear", "precision", 23),
    ("Range", "stash_type", 27),
    ("SpaceToDepth", "mode", 28),
];

/// Operators decompose into simpler ones; a chain of decompositions is no longer than this.
const MAX_ROUNDS: usize = 32;

impl Pass for Standard {
    fn name(&self) -> &str {
        "standard"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        walk::require_internal_opset(model)?;
        let opset = model.opset();
        let target = self.opset.unwrap_or(opset).min(opset);
        ensure!(target >= OPSET, "`opset` is {target}, expected {OPSET} or later");
        let changed = walk::edit_graphs(model, |graph| write_out(graph, opset, target))?;
        if target < opset {
            model.opsets.shift_remove("ai.onnx");
            model.opsets.insert(String::new(), target);
        }
        Ok((changed || target < opset).into())
    }
}

fn write_out(graph: &mut Graph, opset: i64, target: i64) -> Result<bool> {
    let mut changed = false;
    for _ in 0..MAX_ROUNDS {
        let found: Vec<NodeId> = graph.topo_ops().into_iter().filter(|&id| is_foreign(graph, id, target)).collect();
        if found.is_empty() {
            newer_attributes(graph, target)?;
            return Ok(changed);
        }
        infer::infer_graph(graph, opset)?;
        let mut problems = Vec::new();
        for id in found {
            let label = graph.node(id).label();
            if let Err(error) = ops::decompose(graph, id, opset) {
                let unrolled = graph.node(id).op().is_some_and(|op| op.name == ops::deferred::NAME);
                let why = Error::msg(
                    "its length is known only in a run: `bind` gives a dimension a number, and it is unrolled",
                );
                problems.push(if unrolled { why } else { error }.at(label));
            }
        }
        Error::all(problems)?;
        graph.remove_dead();
        changed = true;
    }
    Err(Error::msg("operators decompose into each other without end"))
}

/// Whether a node's operator is none of ONNX's, in this version.
fn is_foreign(graph: &Graph, id: NodeId, target: i64) -> bool {
    let newer = |op: &Operator| INTRODUCED.iter().any(|&(name, since)| op.is(name) && since > target);
    graph.node(id).op().is_some_and(|op| op.domain == SARTOR_DOMAIN || newer(op))
}

/// An error that names the attributes that are newer than a version.
fn newer_attributes(graph: &Graph, target: i64) -> Result<()> {
    let mut problems = Vec::new();
    for id in graph.topo_ops() {
        let Some(op) = graph.node(id).op() else { continue };
        for &(name, attribute, since) in ATTRIBUTES {
            if op.is(name) && since > target && op.attrs.has(attribute) {
                let text = format!("its attribute `{attribute}` came with opset {since}, {target} is wanted");
                problems.push(Error::msg(text).at(graph.node(id).label()));
            }
        }
    }
    Error::all(problems)
}
