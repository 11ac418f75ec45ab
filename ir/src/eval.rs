//! The reference evaluator: a graph node by node through the operators' own `eval`, on host tensors. Slow and plain:
//! what every fast kernel is compared with, and what folds constants.

use crate::error::{Context, Error, Result};
use crate::graph::{Graph, NodeId, NodeKind, Value};
use crate::model::{Model, Program};
use crate::ops::{self, EvalCx};
use crate::rng::Stream;
use crate::tensor::Tensor;
use crate::{bail, ensure};
use std::collections::HashMap;

/// What an evaluation needs besides the graph.
pub struct Environment<'a> {
    /// The version of ONNX's own operators.
    pub opset: i64,
    /// The seed of the run and the number of the step: together with the node's name, the key of its random numbers.
    pub seed: u64,
    /// See `seed`.
    pub step: u64,
    /// The value of a parameter.
    pub params: &'a dyn Fn(&str) -> Option<Tensor>,
}

/// Evaluates the inference graph of a model. Returns the outputs in order.
pub fn run(model: &Model, inputs: &HashMap<String, Tensor>) -> Result<Vec<Tensor>> {
    let params = |name: &str| model.params.get(name).map(|p| p.tensor.clone());
    run_graph(&model.graph, &Environment { opset: model.opset(), seed: 0, step: 0, params: &params }, inputs)
}

/// Runs a program of a model: evaluates its graph and writes the bound outputs to the parameters.
/// Returns all outputs by name.
pub fn run_program(
    model: &mut Model,
    name: &str,
    inputs: &HashMap<String, Tensor>,
    seed: u64,
    step: u64,
) -> Result<HashMap<String, Tensor>> {
    let Some(Program { graph, bindings }) = model.programs.get(name) else {
        bail!("the model has no program \"{name}\"");
    };
    let params = |name: &str| model.params.get(name).map(|p| p.tensor.clone());
    let outputs = run_graph(graph, &Environment { opset: model.opset(), seed, step, params: &params }, inputs)?;
    let named: HashMap<String, Tensor> = graph.outputs.iter().map(|o| o.name.clone()).zip(outputs).collect();
    for binding in bindings.clone() {
        let (value, param) = (named.get(&binding.output), model.params.get_mut(&binding.param));
        let (Some(value), Some(param)) = (value, param) else {
            bail!(
                "program \"{name}\" binds \"{}\" to \"{}\": one of them does not exist",
                binding.output,
                binding.param
            );
        };
        param.tensor = value.clone();
    }
    Ok(named)
}

/// Evaluates a graph. Returns its outputs in order.
pub fn run_graph(graph: &Graph, env: &Environment, inputs: &HashMap<String, Tensor>) -> Result<Vec<Tensor>> {
    let mut values: HashMap<Value, Tensor> = HashMap::new();
    for value in graph.inputs() {
        let name = graph.value_name(value);
        let Some(tensor) = inputs.get(name) else { bail!("input \"{name}\" is missing") };
        let declared = graph.ty(value).and_then(|t| t.dtype());
        ensure!(
            declared.is_none_or(|d| d == tensor.dtype()),
            "input \"{name}\" is {}, expected {}",
            tensor.dtype(),
            declared.unwrap_or(tensor.dtype())
        );
        values.insert(value, tensor.clone());
    }
    Evaluator::new(graph).run(env, values)
}

/// A graph made ready to be evaluated again and again, as the body of a loop is: its nodes in order, and how often each
/// value is read.
pub struct Evaluator<'g> {
    graph: &'g Graph,
    nodes: Vec<(NodeId, Vec<Option<Value>>)>,
    reads: HashMap<Value, usize>,
}

impl<'g> Evaluator<'g> {
    /// For this graph.
    pub fn new(graph: &'g Graph) -> Evaluator<'g> {
        let mut reads: HashMap<Value, usize> = HashMap::new();
        let mut nodes = Vec::new();
        for id in graph.topo() {
            let inputs = graph.node_inputs(id);
            inputs.iter().flatten().for_each(|&value| *reads.entry(value).or_insert(0) += 1);
            if !matches!(graph.node(id).kind, NodeKind::Input) {
                nodes.push((id, inputs));
            }
        }
        graph.outputs.iter().for_each(|o| *reads.entry(o.value).or_insert(0) += 1);
        Evaluator { graph, nodes, reads }
    }
    /// Evaluates it once. `values` are the graph's inputs and, in a subgraph, its captures. Returns the outputs in order.
    pub fn run(&self, env: &Environment, mut values: HashMap<Value, Tensor>) -> Result<Vec<Tensor>> {
        let mut left = self.reads.clone();
        for (id, inputs) in &self.nodes {
            let given = Value { node: *id, slot: 0 };
            if matches!(self.graph.node(*id).kind, NodeKind::Capture(_)) && values.contains_key(&given) {
                continue;
            }
            for (slot, tensor) in eval_node(self.graph, *id, inputs, env, &values)?.into_iter().enumerate() {
                let value = Value { node: *id, slot: slot as u32 };
                if left.contains_key(&value) {
                    values.insert(value, tensor);
                }
            }
            for value in inputs.iter().flatten() {
                let count = left.get_mut(value).map(|n| {
                    *n -= 1;
                    *n
                });
                if count == Some(0) {
                    values.remove(value);
                }
            }
        }
        let missing = |name: &str| Error::msg(format!("output \"{name}\" was not computed"));
        self.graph.outputs.iter().map(|o| values.get(&o.value).cloned().ok_or_else(|| missing(&o.name))).collect()
    }
}

fn eval_node(
    graph: &Graph,
    id: NodeId,
    inputs: &[Option<Value>],
    env: &Environment,
    values: &HashMap<Value, Tensor>,
) -> Result<Vec<Tensor>> {
    let node = graph.node(id);
    match &node.kind {
        NodeKind::Input => bail!("{} has no value", node.label()),
        NodeKind::Capture(_) => bail!("{} was read outside of its node", node.label()),
        NodeKind::Const(tensor) => Ok(vec![tensor.clone()]),
        NodeKind::Param(name) => {
            let value = (env.params)(name);
            value.map(|t| vec![t]).ok_or_else(|| Error::msg(format!("the model has no parameter \"{name}\"")))
        }
        NodeKind::Op(op) => {
            let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|v| v.and_then(|v| values.get(&v))).collect();
            let wanted = node.outputs.iter().map(|o| !o.name.is_empty()).collect();
            let first = node.outputs.first().map_or("", |o| &o.name);
            let name = if node.name.is_empty() { first } else { &node.name };
            let stream = Stream::new(env.seed, env.step, name);
            let cx = EvalCx { op, opset: env.opset, wanted, stream, params: env.params, bodies: None };
            eval_op(&cx, &inputs).context(|| node.label())
        }
    }
}

/// Evaluates one operator on host tensors: by its `eval`, or by that of its decomposition.
pub fn eval_op(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let Some(def) = ops::of(cx.op) else { bail!("the operator {} is not known", cx.op.full_name()) };
    match (def.eval, def.decompose) {
        (Some(eval), _) => eval(cx, inputs),
        (None, Some(_)) => eval_decomposed(cx, inputs),
        (None, None) => bail!("the operator {} has no evaluation", cx.op.full_name()),
    }
}

/// A value that stands for a tensor in a graph that is made to be run once: an input that is fed, or, where it is small, a constant, so that
/// rules that read it (axes, shapes) can.
pub(crate) fn stand_in(graph: &mut Graph, feeds: &mut HashMap<String, Tensor>, name: String, tensor: &Tensor) -> Value {
    if tensor.dtype().is_int() && tensor.len() <= ops::MAX_FACT_DIMS {
        return graph.add_const(&name, tensor.clone());
    }
    let value = graph.add_input(&name, crate::Type::of(tensor));
    feeds.insert(name, tensor.clone());
    value
}

fn eval_decomposed(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let mut graph = Graph::new("decomposed");
    let mut values = Vec::new();
    let mut named = HashMap::new();
    for (i, tensor) in inputs.iter().enumerate() {
        values.push(tensor.map(|t| stand_in(&mut graph, &mut named, format!("input{i}"), t)));
    }
    let node = graph.add_op("node", cx.op.clone(), &values, cx.wanted.len());
    crate::infer::infer_node(&mut graph, node, cx.opset)?;
    ops::decompose(&mut graph, node, cx.opset)?;
    run_graph(&graph, &Environment { opset: cx.opset, seed: 0, step: 0, params: cx.params }, &named)
}
