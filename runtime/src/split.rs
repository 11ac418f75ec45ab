//! Graphs in which the shape of some value depends on data (`NonZero`, `NonMaxSuppression`, the rows that a loop gathers): what does not depend on
//! such a value runs by a plan, the rest by the reference evaluation. In a detector that is the whole network, and what selects boxes afterwards.

use crate::params::Params;
use crate::session::{Key, Session, SessionOptions};
use sartor_ir::{Graph, GraphOutput, NodeId, Result, Tensor, Type, Value, eval, infer};
use std::collections::{HashMap, HashSet};

/// See the [module](self).
pub struct Split {
    /// The part before; its outputs are what the other one reads of it.
    early: Box<Session>,
    /// The part behind.
    late: Graph,
    /// The names of its inputs for the outputs of the first part.
    names: Vec<String>,
}

impl Split {
    /// Of a graph for inputs of these types; `None` if nothing comes before, or all shapes are known.
    pub fn of(graph: &Graph, opset: i64, threads: usize, inputs: &HashMap<String, Type>) -> Option<Split> {
        let facts = infer::specialise(graph, opset, inputs).ok()?;
        let ty = |value: Value| facts.get(value).map(|fact| fact.ty.clone());
        let mut behind: HashSet<NodeId> = HashSet::new();
        for id in graph.topo_ops() {
            let named = graph.node_outputs(id).filter(|&v| !graph.value_name(v).is_empty());
            let open = named.map(ty).any(|ty| ty.and_then(|ty| ty.static_shape()).is_none());
            if open || graph.node_inputs(id).iter().flatten().any(|v| behind.contains(&v.node)) {
                behind.insert(id);
            }
        }
        let read = graph.topo_ops().into_iter().filter(|id| behind.contains(id));
        let read = read.flat_map(|id| graph.node_inputs(id).into_iter().flatten().collect::<Vec<_>>());
        let shown = graph.outputs.iter().map(|o| o.value);
        let (mut between, mut seen) = (Vec::new(), HashSet::new());
        for value in read.chain(shown) {
            let computed = graph.node(value.node).op().is_some() && !behind.contains(&value.node);
            if computed && seen.insert(value) {
                between.push(value);
            }
        }
        if behind.is_empty() || between.is_empty() {
            return None;
        }
        let (mut early, mut late) = (graph.clone(), graph.clone());
        let mut names = Vec::new();
        early.outputs.clear();
        for value in between {
            let name = late.fresh_name(&format!("early/{}", graph.value_name(value)));
            early.outputs.push(GraphOutput { name: name.clone(), value });
            let input = late.add_input(&name, ty(value)?);
            late.replace_uses(value, input);
            names.push(name);
        }
        early.remove_dead();
        late.remove_dead();
        let early = Box::new(Session::of(early, Vec::new(), opset, SessionOptions { threads }));
        Some(Split { early, late, names })
    }
    /// Runs both parts; the outputs in order.
    pub fn run(
        &mut self,
        params: &Params,
        inputs: &HashMap<String, Tensor>,
        key: Key,
        opset: i64,
    ) -> Result<Vec<Tensor>> {
        let found = self.early.outputs(params, inputs, key, usize::MAX)?;
        let mut feeds = inputs.clone();
        feeds.extend(self.names.iter().cloned().zip(found));
        reference(&self.late, opset, params, &feeds, key)
    }
    /// The session of the part before.
    pub fn early(&self) -> &Session {
        &self.early
    }
}

/// A graph by the reference evaluation; the outputs in order.
pub fn reference(
    graph: &Graph,
    opset: i64,
    params: &Params,
    inputs: &HashMap<String, Tensor>,
    key: Key,
) -> Result<Vec<Tensor>> {
    let lookup = |name: &str| params.get(name).cloned();
    let env = eval::Environment { opset, seed: key.seed, step: key.step, params: &lookup };
    eval::run_graph(graph, &env, inputs)
}
