//! The module tree that the exporter left in node names or metadata: `encoder` → `layer` → `0` → `attention` → ….

use super::cost::Cost;
use indexmap::{IndexMap, IndexSet};
use sartor_ir::{Model, NodeKind};
use sartor_passes::pattern;
use serde::Serialize;

/// One module, with everything below it counted in.
#[derive(Debug, Default, Serialize)]
pub struct Module {
    /// The last part of its path.
    pub name: String,
    /// Its operators.
    pub operators: usize,
    /// The elements of the parameters that they read.
    pub parameters: u64,
    /// Their floating-point operations.
    pub flops: u64,
    /// The modules below.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<Module>,
}

/// What belongs directly to one path.
#[derive(Default)]
struct Own {
    operators: usize,
    params: IndexSet<String>,
}

#[derive(Default)]
struct Branch {
    own: Option<(String, Own)>,
    below: IndexMap<String, Branch>,
}

/// The tree of the inference graph; empty if the exporter left no paths.
pub fn tree(model: &Model, cost: &Cost) -> Vec<Module> {
    let mut root = Branch::default();
    for (path, own) in collect(model) {
        let mut branch = &mut root;
        for part in path.split('.') {
            branch = branch.below.entry(part.to_string()).or_default();
        }
        branch.own = Some((path, own));
    }
    root.below.into_iter().map(|(name, branch)| sum(name, branch, model, cost).0).collect()
}

fn collect(model: &Model) -> IndexMap<String, Own> {
    let graph = &model.graph;
    let mut found: IndexMap<String, Own> = IndexMap::new();
    for id in graph.topo_ops() {
        let Some(path) = pattern::module_paths(graph, id).into_iter().next() else { continue };
        let own = found.entry(path).or_default();
        own.operators += 1;
        for value in graph.node_inputs(id).into_iter().flatten() {
            // Weights often stand behind a Transpose or Cast that belongs to no module.
            let mut value = value;
            for _ in 0..4 {
                match &graph.node(value.node).kind {
                    NodeKind::Param(name) => {
                        own.params.insert(name.clone());
                        break;
                    }
                    NodeKind::Op(op) if ["Transpose", "Cast", "Identity"].contains(&op.name.as_str()) => {
                        let Some(next) = graph.input(value.node, 0) else { break };
                        value = next;
                    }
                    _ => break,
                }
            }
        }
    }
    found
}

fn sum(name: String, branch: Branch, model: &Model, cost: &Cost) -> (Module, IndexSet<String>) {
    let mut module = Module { name, ..Module::default() };
    let mut params = IndexSet::new();
    if let Some((path, own)) = branch.own {
        module.operators = own.operators;
        module.flops = cost.by_module.get(&path).copied().unwrap_or(0);
        params = own.params;
    }
    for (name, below) in branch.below {
        let (child, its_params) = sum(name, below, model, cost);
        module.operators += child.operators;
        module.flops += child.flops;
        params.extend(its_params);
        module.modules.push(child);
    }
    module.parameters = params.iter().filter_map(|p| model.params.get(p)).map(|p| p.tensor.len() as u64).sum();
    (module, params)
}
