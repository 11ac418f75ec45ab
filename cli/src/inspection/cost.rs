//! Floating-point operations of one run of the inference graph: the operators' own cost functions on static shapes.

use crate::files;
use sartor_ir::infer::{flops, specialise};
use sartor_ir::{Model, Result};
use sartor_passes::{Registry, pattern};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// What one run costs. Subgraphs are not counted.
#[derive(Debug, Default, Serialize)]
pub struct Cost {
    /// All operations that could be counted.
    pub total: u64,
    /// The numbers that open dimensions were given.
    pub dims: BTreeMap<String, i64>,
    /// Nodes whose shapes are not static even so, or whose operator is not known.
    pub uncounted_nodes: usize,
    /// Why nothing could be counted, if so.
    pub problem: Option<String>,
    /// By operator.
    #[serde(skip)]
    pub by_operator: BTreeMap<String, u64>,
    /// By module path.
    #[serde(skip)]
    pub by_module: HashMap<String, u64>,
}

/// Counts. The model is brought into the internal opset first; where that fails, the reason stands in the result.
pub fn count(model: &Model, registry: &Registry, dims: &HashMap<String, i64>) -> Cost {
    match try_count(model, registry, dims) {
        Ok(cost) => cost,
        Err(error) => Cost { problem: Some(error.to_string()), ..Cost::default() },
    }
}

fn try_count(model: &Model, registry: &Registry, dims: &HashMap<String, i64>) -> Result<Cost> {
    let mut model = model.clone();
    files::prepare(&mut model, registry)?;
    let graph = &model.graph;
    let (mut cost, mut types) = (Cost::default(), HashMap::new());
    for value in graph.inputs() {
        let Some(ty) = graph.ty(value) else { continue };
        for name in ty.shape().unwrap_or_default().iter().flat_map(|d| d.names()) {
            cost.dims.insert(name.to_string(), dims.get(name).copied().unwrap_or(1));
        }
        types.insert(graph.value_name(value).to_string(), files::bound_type(ty, dims, &|_| 1));
    }
    let facts = specialise(graph, model.opset(), &types)?;
    for id in graph.topo_ops() {
        let Some(count) = flops(graph, id, &facts) else {
            cost.uncounted_nodes += 1;
            continue;
        };
        cost.total = cost.total.saturating_add(count);
        let operator = graph.node(id).op().map(|op| op.full_name()).unwrap_or_default();
        *cost.by_operator.entry(operator).or_insert(0) += count;
        if let Some(module) = pattern::module_paths(graph, id).into_iter().next() {
            *cost.by_module.entry(module).or_insert(0) += count;
        }
    }
    Ok(cost)
}
