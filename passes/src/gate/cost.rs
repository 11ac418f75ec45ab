//! What a gated model costs: floating-point operations, by node, for one example.
//!
//! A node of a body costs its operations times the share of open channels of the groups that it is part of (a convolution whose input and
//! output are both gated: the product of two shares), and a body costs nothing where its layer is shut. What stands outside of the blocks, and the gate
//! networks themselves, always costs. A multiply-add counts 2.

use super::BlockRecord;
use crate::walk::nodes_by_name;
use sartor_ir::infer::{self, Facts, specialise};
use sartor_ir::{Dim, Graph, NodeId, Result, Type, Value, ensure};
use std::collections::HashMap;

/// What open dimensions but the first are taken to be (the length of a text, say).
const LENGTH: i64 = 128;

/// The operations of every node that could be counted.
pub struct Costs {
    by_node: HashMap<NodeId, u64>,
    facts: Facts,
    /// All of them.
    pub total: u64,
}

/// One term of a body's cost: operations, and the groups (by number) whose open shares they are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// The operations.
    pub flops: u64,
    /// The groups.
    pub groups: Vec<usize>,
}

impl Costs {
    /// For one example: the first axis of every input is 1; other open dimensions are 128.
    pub fn of(graph: &Graph, opset: i64) -> Result<Costs> {
        let mut types = HashMap::new();
        for value in graph.inputs() {
            let Some(Type::Tensor { dtype, shape: Some(shape) }) = graph.ty(value) else { continue };
            let dim = |(axis, dim): (usize, &Dim)| match dim {
                Dim::Known(_) => dim.clone(),
                _ => Dim::Known(if axis == 0 { 1 } else { LENGTH }),
            };
            let shape = shape.iter().enumerate().map(dim).collect();
            types.insert(graph.value_name(value).to_string(), Type::Tensor { dtype: *dtype, shape: Some(shape) });
        }
        let facts = specialise(graph, opset, &types)?;
        let by_node: HashMap<NodeId, u64> =
            graph.topo_ops().into_iter().filter_map(|id| Some((id, infer::flops(graph, id, &facts)?))).collect();
        let total = by_node.values().sum();
        ensure!(total > 0, "the operations of the model could not be counted: its shapes depend on the data");
        Ok(Costs { by_node, facts, total })
    }
    /// The elements of a value; 0 if they could not be counted.
    pub fn elements(&self, value: Value) -> u64 {
        let shape = self.facts.get(value).and_then(|fact| fact.ty.static_shape());
        shape.map_or(0, |shape| shape.iter().map(|&d| d as u64).product())
    }
    /// The operations of some nodes.
    pub fn sum(&self, nodes: &[NodeId]) -> u64 {
        nodes.iter().filter_map(|id| self.by_node.get(id)).sum()
    }
    /// The terms of all bodies, whose nodes are found by name in this graph.
    pub(super) fn terms_of(&self, graph: &Graph, blocks: &[BlockRecord]) -> Vec<Vec<Term>> {
        let by_name = nodes_by_name(graph);
        blocks.iter().map(|block| self.terms(&by_name, block)).collect()
    }
    /// The terms of a body's cost; terms of the same groups are one. `by_name`: the nodes of the graph.
    pub fn terms(&self, by_name: &HashMap<String, NodeId>, block: &BlockRecord) -> Vec<Term> {
        let mut terms: Vec<Term> = Vec::new();
        for name in &block.nodes {
            let Some(&id) = by_name.get(name) else { continue };
            let flops = self.sum(&[id]);
            let groups: Vec<usize> = (0..block.groups.len()).filter(|&g| block.groups[g].concerns(name)).collect();
            match terms.iter_mut().find(|term| term.groups == groups) {
                Some(term) => term.flops += flops,
                None => terms.push(Term { flops, groups }),
            }
        }
        terms.retain(|term| term.flops > 0);
        terms
    }
}
