//! Where gradients flow: for each trainable parameter, whether the gradient of a graph's outputs reaches it, and what is in the way if not.
//!
//! ```text
//! w ──MatMul──▶ h ──Relu──▶ y          w is reached
//! v ──Gather──▶ t ──ArgMax──▶ i ──▶ y  v is cut off by ArgMax: its derivative is 0 wherever it has one
//! ```
//! It looks at the operators' rules only and adds no nodes: the answer of [`autodiff`](crate::autodiff) before it is asked, for all parameters and all
//! operators at once. Values that are no floating-point numbers carry no gradient.

use crate::training;
use sartor_ir::ops::{self, Gradient};
use sartor_ir::{DType, Graph, Model, NodeId, Result, Type, Value};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Flow {
    /// Trainable parameters that get a gradient.
    pub reached: Vec<String>,
    /// Those that get none, and which nodes keep it from them; empty if no output depends on the parameter.
    pub cut_off: BTreeMap<String, Vec<String>>,
    /// Operators between trainable parameters and outputs that have no gradient rule, with their nodes: training through them is refused.
    pub missing: BTreeMap<String, Vec<String>>,
    /// Operators there whose derivative is 0, with their nodes.
    pub zero: BTreeMap<String, Vec<String>>,
}

/// How a node treats a gradient.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Passes,
    Zero,
    Missing,
}

fn rule(graph: &Graph, id: NodeId) -> Rule {
    let Some(op) = graph.node(id).op() else { return Rule::Passes };
    match ops::of(op).map(|def| def.grad) {
        Some(Gradient::Emit(_) | Gradient::Decompose) => Rule::Passes,
        Some(Gradient::Zero) => Rule::Zero,
        Some(Gradient::Missing) | None => Rule::Missing,
    }
}

/// Whether a value may carry a gradient: where a file does not say its type, it may.
fn carries(graph: &Graph, value: Value) -> bool {
    graph.ty(value).and_then(Type::dtype).is_none_or(DType::is_float)
}

/// Follows the gradients of all floating-point outputs of the inference graph, whose types must be inferred.
pub fn flow(model: &Model) -> Result<Flow> {
    let mut graph = model.graph.clone();
    crate::fuse::fake_quantize(&mut graph, model.opset())?;
    crate::fuse::straight_products(&mut graph, model.opset())?;
    let graph = &graph;
    let params: Vec<(String, Value)> = training::trainables(graph, model)
        .into_iter()
        .filter_map(|name| graph.find_param(&name).map(|value| (name, value)))
        .collect();
    let outputs: Vec<Value> = graph.outputs.iter().map(|o| o.value).filter(|&v| carries(graph, v)).collect();
    let upstream = graph.ancestors(outputs.iter().copied(), |_| false);
    let order = graph.topo_ops();
    // What each node depends on, and which values a gradient reaches.
    let mut live: HashSet<Value> = outputs.into_iter().collect();
    let mut cutting: Vec<NodeId> = Vec::new();
    for &id in order.iter().rev().filter(|id| upstream.contains(id)) {
        if !graph.node_outputs(id).any(|v| live.contains(&v)) {
            continue;
        }
        match rule(graph, id) {
            Rule::Passes => {
                live.extend(graph.node_inputs(id).into_iter().flatten().filter(|&v| carries(graph, v)));
            }
            Rule::Zero | Rule::Missing => cutting.push(id),
        }
    }
    let mut found = Flow::default();
    let trained: HashSet<NodeId> = params.iter().map(|(_, value)| value.node).collect();
    let mut below: HashMap<NodeId, HashSet<NodeId>> = HashMap::new();
    for id in cutting {
        let needs = graph.ancestors(graph.node_inputs(id).into_iter().flatten(), |_| false);
        if needs.is_disjoint(&trained) {
            continue;
        }
        let list = if rule(graph, id) == Rule::Zero { &mut found.zero } else { &mut found.missing };
        let name = graph.node(id).op().map_or_else(String::new, |op| op.full_name());
        list.entry(name).or_default().push(graph.node(id).label());
        below.insert(id, needs);
    }
    for (name, value) in params {
        if live.contains(&value) {
            found.reached.push(name);
        } else {
            let by: BTreeSet<String> = below
                .iter()
                .filter(|(_, needs)| needs.contains(&value.node))
                .map(|(&id, _)| graph.node(id).label())
                .collect();
            found.cut_off.insert(name, by.into_iter().collect());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_ir::infer;

    #[test]
    fn says_what_is_reached_and_what_is_in_the_way() {
        let source = "<ir_version: 10, opset_import: [\"\": 20, \"other\": 1]>\n\
            parameters <trainable float[2, 2] w = {1, 2, 3, 4}, trainable float[2, 2] v = {1, 2, 3, 4},\n\
              trainable float[2, 2] u = {1, 2, 3, 4}, trainable float[2, 2] t = {1, 2, 3, 4}, frozen float[2, 2] f = {1, 2, 3, 4}>\n\
            g (float[2, 2] x) => (float[2, 2] y) <\n\
              float[2, 2] w = param, float[2, 2] v = param, float[2, 2] u = param, float[2, 2] f = param\n\
            > {\n\
              a = MatMul (x, w)\n\
              b = MatMul (x, v)\n\
              [round] c = Round (b)\n\
              [strange] d = other.Strange (u)\n\
              e = Sign (f)\n\
              y = Sum (a, c, d, e)\n\
            }\n";
        let mut model = sartor_ir::text::parse(source).unwrap();
        infer::infer_graph(&mut model.graph, 20).ok();
        let found = flow(&model).unwrap();
        assert_eq!(found.reached, ["w"]);
        let cut: Vec<(&str, usize)> = found.cut_off.iter().map(|(name, by)| (name.as_str(), by.len())).collect();
        assert_eq!(cut, [("u", 1), ("v", 1)]);
        assert!(found.zero.contains_key("Round") && !found.zero.contains_key("Sign"), "{found:?}");
        assert!(found.missing.keys().any(|name| name.contains("Strange")), "{found:?}");
    }
}
