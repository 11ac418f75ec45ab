//! `fuse-batch-norm`: batch normalisation after a convolution, folded into its weights.
//!
//! ```text
//! γ (W ∗ x + b − μ) / √(σ² + ε) + β  =  (s W) ∗ x + (s (b − μ) + β),   s = γ / √(σ² + ε), per output channel
//! ```
//! (executed by `tests/cases/fuse-batch-norm/conv.txt`)
//!
//! *Needs* the internal opset. *Leaves* no normalisation whose W, b, γ, β, μ, σ² are all constants or `Constant`/`Frozen`
//! parameters and whose convolution nothing else reads. The same numbers up to rounding. The new weight and bias are
//! `Frozen` parameters with names of their own. A model with training programs stays as it is: they read the old ones. Idempotent.

use crate::fold::fresh_param_name;
use crate::walk::require_internal_opset;
use crate::{Changed, Pass};
use sartor_ir::{DType, Graph, Model, NodeId, NodeKind, Parameter, Result, Role, Tensor, Type, Value};
use schemars::JsonSchema;
use serde::Deserialize;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FuseBatchNorm {}

impl Pass for FuseBatchNorm {
    fn name(&self) -> &str {
        "fuse-batch-norm"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        require_internal_opset(model)?;
        if !model.programs.is_empty() {
            return Ok(Changed::No);
        }
        let mut graph = std::mem::take(&mut model.graph);
        let mut changed = false;
        for id in graph.topo_ops() {
            if let Some(fused) = plan(&graph, id, model)? {
                apply(&mut graph, model, id, fused);
                changed = true;
            }
        }
        if changed {
            graph.remove_dead();
        }
        model.graph = graph;
        Ok(changed.into())
    }
}

struct Fused {
    conv: NodeId,
    hint: String,
    weight: Tensor,
    bias: Tensor,
}

fn plan(graph: &Graph, id: NodeId, model: &Model) -> Result<Option<Fused>> {
    let Some(op) = graph.node(id).op().filter(|op| op.is("BatchNormalization")) else { return Ok(None) };
    let Some(source) = graph.input(id, 0) else { return Ok(None) };
    let conv = source.node;
    let training = op.attrs.flag("training_mode", false)?;
    let alone = graph.node(conv).is("Conv") && graph.use_count(source) == 1;
    let more_outputs = graph.node_outputs(id).skip(1).any(|v| graph.use_count(v) > 0);
    let Some(weight_value) = graph.input(conv, 1) else { return Ok(None) };
    let Some(weight) = known(graph, Some(weight_value), model).filter(|_| alone && !training && !more_outputs) else {
        return Ok(None);
    };
    let numbers =
        |node: NodeId, slot: usize| known(graph, graph.input(node, slot), model).and_then(|t| t.to_f64s().ok());
    let (Some(gamma), Some(beta)) = (numbers(id, 1), numbers(id, 2)) else { return Ok(None) };
    let (Some(mean), Some(variance)) = (numbers(id, 3), numbers(id, 4)) else { return Ok(None) };
    let channels = weight.shape().first().copied().unwrap_or(0);
    let bias = match graph.input(conv, 2) {
        None => vec![0.0; channels],
        Some(_) => match numbers(conv, 2) {
            Some(bias) => bias,
            None => return Ok(None),
        },
    };
    if weight.is_empty() || [&gamma, &beta, &mean, &variance, &bias].iter().any(|v| v.len() != channels) {
        return Ok(None);
    }
    let epsilon = f64::from(op.attrs.float("epsilon", 1e-5)?);
    let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
    let shift = (0..channels).map(|c| scale[c] * (bias[c] - mean[c]) + beta[c]).collect::<Vec<f64>>();
    let per_channel = weight.len() / channels;
    let scaled =
        weight.to_f64s()?.into_iter().enumerate().map(|(i, w)| w * scale[i / per_channel]).collect::<Vec<f64>>();
    let dtype: DType = weight.dtype();
    Ok(Some(Fused {
        conv,
        hint: graph.value_name(weight_value).to_string(),
        weight: Tensor::from_vec(weight.shape().to_vec(), scaled).cast(dtype)?,
        bias: Tensor::from_vec([channels], shift).cast(dtype)?,
    }))
}

fn known(graph: &Graph, value: Option<Value>, model: &Model) -> Option<Tensor> {
    let tensor = match &graph.node(value?.node).kind {
        NodeKind::Const(tensor) => tensor,
        NodeKind::Param(name) => &model.params.get(name).filter(|p| !p.role.is_variable())?.tensor,
        _ => return None,
    };
    tensor.dtype().is_float().then(|| tensor.clone())
}

fn apply(graph: &mut Graph, model: &mut Model, norm: NodeId, fused: Fused) {
    let mut add = |graph: &mut Graph, suffix: &str, tensor: Tensor| {
        let name = fresh_param_name(model, graph, &format!("{}.{suffix}", fused.hint));
        let ty = Type::of(&tensor);
        model.params.insert(name.clone(), Parameter { tensor, role: Role::Frozen });
        graph.param(&name, ty)
    };
    let weight = add(graph, "fused", fused.weight);
    let bias = add(graph, "fused_bias", fused.bias);
    graph.set_input(fused.conv, 1, Some(weight));
    graph.set_input(fused.conv, 2, Some(bias));
    graph.replace_uses(Value { node: norm, slot: 0 }, Value { node: fused.conv, slot: 0 });
}
