//! Where adapters can go: operators with a weight, found through what stands between it and its parameter.

use super::record::{LinkRecord, SiteRecord};
use crate::pattern::{Patterns, candidate_names, module_paths};
use sartor_ir::ops::{self, EvalCx};
use sartor_ir::rng::Stream;
use sartor_ir::{
    Context, DType, Graph, Model, Node, NodeId, NodeKind, Result, Tensor, Type, Value, bail, ensure, eval,
};
use serde::{Deserialize, Serialize};

/// The operators that take adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteKind {
    /// `x · W`, W `[in, out]`.
    MatMul,
    /// `x · W + b`, W `[in, out]`.
    Gemm,
    /// `x · Wᵀ + b`, W `[out, in]`.
    GemmTransposed,
    /// A convolution with one group, W `[out, in, k…]`.
    Conv,
    /// A grouped or depthwise convolution, W `[out, in/groups, k…]`.
    GroupedConv,
    /// A row of a table `[rows, width]` by its number.
    Gather,
}

impl SiteKind {
    /// The input slot of the weight.
    pub fn weight_slot(self) -> usize {
        if self == SiteKind::Gather { 0 } else { 1 }
    }
    /// The input slot of the other operand.
    pub fn data_slot(self) -> usize {
        1 - self.weight_slot()
    }
}

/// One operator that gets adapters.
#[derive(Clone, Debug)]
pub struct Site {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: SiteKind,
    /// The value of its weight, as the operator reads it.
    pub weight: Value,
    /// The parameter behind it, or, of quantised weights, the constant.
    pub param: String,
    /// The weight's shape, as the operator reads it.
    pub shape: Vec<usize>,
    /// The weight's element type.
    pub dtype: DType,
    /// The exporter's module path, or the node's name.
    pub module: String,
}

/// The operators of a graph that the patterns name and that can take adapters; those of gate networks are trained themselves. A pattern that matches no such operator is an error
/// that lists near misses.
pub fn find_sites(graph: &Graph, model: &Model, targets: &[String]) -> Result<Vec<Site>> {
    let gates = crate::gate::Record::load(model)?.map_or_else(Vec::new, |record| record.blocks);
    let is_gate = |param: &str| gates.iter().flat_map(|block| block.weights()).any(|name| name == param);
    let mut candidates = Vec::new();
    for id in graph.topo_ops() {
        if let Some(site) = site_at(graph, model, id)?.filter(|site| !is_gate(&site.param)) {
            candidates.push((site, candidate_names(graph, id)));
        }
    }
    let patterns = Patterns::parse(targets)?;
    let names: Vec<Vec<String>> = candidates.iter().map(|(_, names)| names.clone()).collect();
    patterns.check_all_match(&names, "operator that can take adapters")?;
    Ok(candidates.into_iter().filter(|(_, names)| patterns.matches(names)).map(|(site, _)| site).collect())
}

/// The site at a node, if it is one.
fn site_at(graph: &Graph, model: &Model, id: NodeId) -> Result<Option<Site>> {
    let node = graph.node(id);
    let Some(kind) = kind_of(graph, node, id)? else { return Ok(None) };
    let Some(weight) = graph.input(id, kind.weight_slot()) else { return Ok(None) };
    let Some((param, constant)) = behind(graph, weight) else { return Ok(None) };
    if !constant && !model.params.contains_key(&param) {
        return Ok(None);
    }
    let Some(ty) = graph.ty(weight) else { return Ok(None) };
    let (Some(shape), Some(dtype)) = (ty.static_shape(), ty.dtype()) else { return Ok(None) };
    let rank_fits = match kind {
        SiteKind::Conv | SiteKind::GroupedConv => shape.len() >= 3,
        _ => shape.len() == 2,
    };
    if !rank_fits || !dtype.is_float() {
        return Ok(None);
    }
    let module = module_paths(graph, id).into_iter().next().unwrap_or_else(|| node.name.clone());
    Ok(Some(Site { node: id, name: node.name.clone(), kind, weight, param, shape, dtype, module }))
}

fn kind_of(graph: &Graph, node: &Node, id: NodeId) -> Result<Option<SiteKind>> {
    let Some(op) = node.op().filter(|op| op.domain.is_empty()) else { return Ok(None) };
    Ok(match op.name.as_str() {
        "MatMul" => Some(SiteKind::MatMul),
        // A scaled or transposed operand would need the same treatment in the branch; no exporter writes one.
        "Gemm" if op.attrs.flag("transA", false)? || op.attrs.float("alpha", 1.0)? != 1.0 => None,
        "Gemm" if op.attrs.flag("transB", false)? => Some(SiteKind::GemmTransposed),
        "Gemm" => Some(SiteKind::Gemm),
        "Conv" if op.attrs.int("group", 1)? == 1 => Some(SiteKind::Conv),
        "Conv" => Some(SiteKind::GroupedConv),
        "Gather" if op.attrs.int("axis", 0)? == 0 => {
            let table = graph.input(id, 0).and_then(|v| graph.ty(v)).and_then(Type::rank);
            (table == Some(2)).then_some(SiteKind::Gather)
        }
        _ => None,
    })
}

/// The name of the parameter behind a weight, through operators that only carry it, or that scale and shift it by what is constant too. Quantised
/// weights are constants of the graph instead; the second says so.
fn behind(graph: &Graph, value: Value) -> Option<(String, bool)> {
    let mut value = value;
    for _ in 0..16 {
        value = match &graph.node(value.node).kind {
            NodeKind::Param(name) => return Some((name.clone(), false)),
            NodeKind::Const(tensor) if tensor.rank() > 1 => return Some((graph.value_name(value).to_string(), true)),
            NodeKind::Op(op) if ["Transpose", "Cast", "Identity", "DequantizeLinear"].iter().any(|n| op.is(n)) => {
                graph.input(value.node, 0)?
            }
            NodeKind::Op(op) if ["Mul", "Div", "Add", "Sub"].iter().any(|n| op.is(n)) && is_still(graph, value) => {
                let size = |v: Value| graph.ty(v).and_then(Type::static_shape).map(|s| s.iter().product::<usize>());
                let (a, b) = (graph.input(value.node, 0)?, graph.input(value.node, 1)?);
                if size(a)? >= size(b)? { a } else { b }
            }
            _ => return None,
        };
    }
    None
}

/// Whether a value is made of parameters and constants alone.
pub(crate) fn is_still(graph: &Graph, value: Value) -> bool {
    let moves = |id: &NodeId| matches!(graph.node(*id).kind, NodeKind::Input | NodeKind::Capture(_));
    !graph.ancestors([value], |_| false).iter().any(moves)
}

/// The value of a weight as its operator reads it: the parameter, sent through what stands between.
pub fn effective_weight(graph: &Graph, model: &Model, value: Value) -> Result<Tensor> {
    let node = graph.node(value.node);
    match &node.kind {
        NodeKind::Const(tensor) => Ok(tensor.clone()),
        NodeKind::Param(name) => match model.params.get(name) {
            Some(param) => Ok(param.tensor.clone()),
            None => bail!("the model has no parameter \"{name}\""),
        },
        NodeKind::Op(op) => {
            let inputs: Vec<Option<Tensor>> = graph
                .node_inputs(value.node)
                .into_iter()
                .map(|v| v.map(|v| effective_weight(graph, model, v)).transpose())
                .collect::<Result<_>>()?;
            let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
            let wanted = vec![true; node.outputs.len()];
            let cx = EvalCx {
                op,
                opset: model.opset(),
                wanted,
                stream: Stream::new(0, 0, ""),
                params: &ops::no_params,
                bodies: None,
            };
            let outputs = eval::eval_op(&cx, &inputs).context(|| node.label())?;
            outputs
                .into_iter()
                .nth(value.slot as usize)
                .ok_or_else(|| sartor_ir::Error::msg(format!("{} has no output {}", node.label(), value.slot)))
        }
        _ => bail!("{} is not constant", node.label()),
    }
}

impl Site {
    /// The shapes of A and B.
    fn pair_shapes(&self, rank: usize) -> (Vec<usize>, Vec<usize>) {
        let (first, rest) = (self.shape[0], &self.shape[1..]);
        match self.kind {
            SiteKind::MatMul | SiteKind::Gemm | SiteKind::Gather => (vec![first, rank], vec![rank, rest[0]]),
            SiteKind::GemmTransposed => (vec![rest[0], rank], vec![rank, first]),
            SiteKind::Conv => {
                let mut b = vec![1; self.shape.len()];
                (b[0], b[1]) = (first, rank);
                ([&[rank], rest].concat(), b)
            }
            SiteKind::GroupedConv => (vec![rank, rest.iter().product()], vec![first, rank]),
        }
    }

    /// A drawn from the uniform distribution within ±1/√in (Kaiming with a = √5), B zero.
    pub(super) fn draw_pair(&self, rank: usize, seed: u64, name: &str) -> Result<(Tensor, Tensor)> {
        let (a, b) = self.pair_shapes(rank);
        let count: usize = a.iter().product();
        ensure!(count > 0, "node \"{}\" has an empty weight {:?}", self.name, self.shape);
        let fan_in = count / rank;
        let bound = 1.0 / (fan_in as f64).sqrt();
        let stream = Stream::new(seed, 0, name);
        let numbers: Vec<f64> = (0..count as u64).map(|i| stream.uniform(i, -bound, bound)).collect();
        Ok((Tensor::from_vec(a, numbers).cast(self.dtype)?, Tensor::zeros(self.dtype, b)?))
    }

    pub(super) fn record(&self, links: Vec<LinkRecord>, merged: Option<String>) -> SiteRecord {
        SiteRecord {
            node: self.name.clone(),
            kind: self.kind,
            weight: self.param.clone(),
            module: self.module.clone(),
            merged,
            links,
        }
    }
}
