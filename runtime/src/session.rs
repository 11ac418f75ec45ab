//! A session: one graph of a model (the inference graph or a program), made ready to run.
//!
//! For every combination of input shapes the graph is [lowered](crate::lower) and its memory [planned](crate::plan)
//! once. A graph with shapes that depend on data runs by the reference evaluator instead; [`Session::report`] says so.

use crate::execute::{self, Memory};
use crate::lower::{self, Step};
use crate::params::Params;
use crate::plan::Plan;
use crate::profile::Event;
use crate::split::{self, Split};
use sartor_ir::{Binding, Context, DType, Graph, Model, Result, SARTOR_DOMAIN, Tensor, Type, bail, ensure, infer, ops};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// What keys the random numbers of a run: its seed and the number of the step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Key {
    /// The seed of the run.
    pub seed: u64,
    /// The step.
    pub step: u64,
}

/// How a session runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionOptions {
    /// The number of threads. Results do not depend on it.
    pub threads: usize,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions { threads: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// Element types and shapes of the inputs, in order.
type Signature = Vec<(DType, Vec<usize>)>;

/// A plan, or why there is none.
type Planned = std::result::Result<Arc<Plan>, String>;

/// What the last plan of a session is made of.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// How many steps there are of each kernel.
    pub kernels: BTreeMap<&'static str, usize>,
    /// The operators that run by the reference evaluator, and how often.
    pub reference: BTreeMap<String, usize>,
    /// Bytes that a run needs besides parameters and inputs.
    pub bytes: usize,
    /// Floating-point operations of the products and convolutions of a run.
    pub flops: u64,
    /// Steps that run only where some number is not 0: the condition of a `Where`, or a gate.
    pub conditional: usize,
    /// Why the graph runs by the reference evaluator, if it does: as a whole, or from where shapes depend on data.
    pub unplanned: Option<String>,
}

/// See the [module](self).
pub struct Session {
    graph: Graph,
    bindings: Vec<Binding>,
    opset: i64,
    threads: usize,
    limit: Option<usize>,
    plans: HashMap<Signature, Planned>,
    last: Option<Planned>,
    /// Graphs that cannot be planned as a whole, in two parts.
    splits: HashMap<Signature, Option<Split>>,
    /// The one that ran last.
    split: Option<Signature>,
    memory: Memory,
}

/// Plans are forgotten beyond this many.
const MAX_PLANS: usize = 256;

impl Session {
    /// For the inference graph. An error names every node that cannot be run.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Session> {
        ops::lacks::require_evaluation(&model.graph)?;
        Ok(Session::of(model.graph.clone(), Vec::new(), model.opset(), options))
    }
    /// For a program.
    pub fn program(model: &Model, name: &str, options: SessionOptions) -> Result<Session> {
        let Some(program) = model.programs.get(name) else { bail!("the model has no program \"{name}\"") };
        ops::lacks::require_evaluation(&program.graph).context(|| format!("program \"{name}\""))?;
        Ok(Session::of(program.graph.clone(), program.bindings.clone(), model.opset(), options))
    }
    pub(crate) fn of(mut graph: Graph, bindings: Vec<Binding>, opset: i64, options: SessionOptions) -> Session {
        decompose(&mut graph, opset);
        let updated = bindings.iter().map(|b| b.param.clone()).collect();
        let (plans, memory) = (HashMap::new(), Memory::new(updated));
        let threads = options.threads.max(1);
        let (splits, split) = (HashMap::new(), None);
        Session { graph, bindings, opset, threads, limit: None, plans, last: None, splits, split, memory }
    }
    /// The names of the inputs, in order.
    pub fn input_names(&self) -> Vec<&str> {
        self.graph.inputs().map(|v| self.graph.value_name(v)).collect()
    }
    /// From now on plans that need more than this many bytes (besides parameters and inputs) are refused.
    pub fn limit_memory(&mut self, bytes: Option<usize>) {
        self.limit = bytes;
    }
    /// The bytes that runs on inputs of these shapes need besides inputs and the file that parameters lie in: the plan's,
    /// packed weights, parameters that are updated, and copies of those that do not lie on whole numbers' addresses. `None` if the graph
    /// cannot be planned.
    pub fn planned_bytes(&mut self, params: &Params, inputs: &HashMap<String, Tensor>) -> Result<Option<usize>> {
        let Ok(plan) = self.plan(inputs)? else { return Ok(None) };
        let packs = &self.memory.packs;
        let own = |slot: &lower::Slot| {
            let lower::Origin::Param(name) = &slot.origin else { return 0 };
            let kept = |t: &&Tensor| packs.updated().contains(name) || !execute::is_aligned(t);
            params.get(name).filter(kept).map_or(0, |t| t.bytes().len())
        };
        let own: usize = plan.lowered.slots.iter().map(own).sum();
        Ok(Some(plan.bytes() + packs.planned_bytes(&plan.lowered) + own))
    }
    /// What the last plan is made of.
    pub fn report(&self) -> Report {
        match &self.last {
            None => Report::default(),
            Some(Err(reason)) => {
                let split = self.split.as_ref().and_then(|signature| self.splits.get(signature)?.as_ref());
                let early = split.map(|split| split.early().report()).unwrap_or_default();
                Report { unplanned: Some(reason.clone()), ..early }
            }
            Some(Ok(plan)) => {
                let mut reference = BTreeMap::new();
                for planned in &plan.lowered.steps {
                    let Step::Reference(id, ..) = &planned.step else { continue };
                    let op = self.graph.node(*id).op();
                    // Bodies have plans of their own.
                    if op.is_none_or(|op| op.attrs.graphs().next().is_none()) {
                        *reference.entry(op.map_or_else(String::new, |op| op.full_name())).or_insert(0) += 1;
                    }
                }
                self.memory.bodies.add_reference(&mut reference);
                let flops = plan.lowered.steps.iter().map(|planned| crate::profile::flops(&planned.step)).sum();
                let conditional = plan.lowered.steps.iter().filter(|planned| planned.only_if.is_some()).count();
                Report { kernels: plan.kinds(), reference, bytes: plan.bytes(), flops, conditional, unplanned: None }
            }
        }
    }
    /// The plan for inputs of these shapes, made at the first call.
    pub fn plan(&mut self, inputs: &HashMap<String, Tensor>) -> Result<Planned> {
        let signature = self.signature(inputs)?;
        if !self.plans.contains_key(&signature) {
            let types = inputs.iter().map(|(name, tensor)| (name.clone(), Type::of(tensor))).collect();
            let plan = lower::lower(&self.graph, self.opset, &types, self.memory.packs.updated());
            let plan = plan.map(|lowered| Arc::new(Plan::new(lowered))).map_err(|e| e.to_string());
            if self.plans.len() >= MAX_PLANS {
                self.plans.clear();
            }
            self.plans.insert(signature.clone(), plan);
        }
        let plan = self.plans[&signature].clone();
        if let (Ok(plan), Some(limit)) = (&plan, self.limit) {
            ensure!(plan.bytes() <= limit, "a run needs {} bytes, the limit is {limit}", plan.bytes());
        }
        self.last = Some(plan.clone());
        Ok(plan)
    }
    /// Runs once without writing parameters and says where the time went: see [`crate::profile`].
    pub fn trace(&mut self, params: &Params, inputs: &HashMap<String, Tensor>) -> Result<Vec<Event>> {
        let Ok(plan) = self.plan(inputs)? else { bail!("the graph runs by the reference evaluator") };
        let (mut times, key) = (Vec::new(), Key::default());
        let (graph, memory) = (&self.graph, &mut self.memory);
        execute::execute(&plan, graph, self.opset, key, memory, params, inputs, self.threads, Some(&mut times))?;
        Ok(crate::profile::events(&plan, graph, &times))
    }
    fn signature(&self, inputs: &HashMap<String, Tensor>) -> Result<Signature> {
        let mut signature = Vec::new();
        for value in self.graph.inputs() {
            let name = self.graph.value_name(value);
            let Some(tensor) = inputs.get(name) else { bail!("input \"{name}\" is missing") };
            let (found, declared) = (Type::of(tensor), self.graph.ty(value));
            if let Some(declared) = declared {
                ensure!(declared.merge(&found).is_some(), "input \"{name}\" is {found}, expected {declared}");
            }
            signature.push((tensor.dtype(), tensor.shape().to_vec()));
        }
        Ok(signature)
    }
    /// Runs once, without writing parameters; the outputs in order. Shapes beyond so many plans are run by the reference evaluation.
    pub(crate) fn outputs(
        &mut self,
        params: &Params,
        inputs: &HashMap<String, Tensor>,
        key: Key,
        most: usize,
    ) -> Result<Vec<Tensor>> {
        let room = self.plans.len() < most || self.plans.contains_key(&self.signature(inputs)?);
        if room && let Ok(plan) = self.plan(inputs)? {
            let (graph, memory) = (&self.graph, &mut self.memory);
            return execute::execute(&plan, graph, self.opset, key, memory, params, inputs, self.threads, None);
        }
        let signature = self.signature(inputs)?;
        if room && !self.splits.contains_key(&signature) {
            let types = inputs.iter().map(|(name, tensor)| (name.clone(), Type::of(tensor))).collect();
            let split = Split::of(&self.graph, self.opset, self.threads, &types);
            if self.splits.len() >= MAX_PLANS {
                self.splits.clear();
            }
            self.splits.insert(signature.clone(), split);
        }
        match self.splits.get_mut(&signature) {
            Some(Some(split)) => {
                self.split = Some(signature);
                split.run(params, inputs, key, self.opset)
            }
            _ => split::reference(&self.graph, self.opset, params, inputs, key),
        }
    }
    /// Runs once. Outputs that are bound to parameters are written there; the others are returned by name.
    pub fn run(
        &mut self,
        params: &mut Params,
        inputs: &HashMap<String, Tensor>,
        key: Key,
    ) -> Result<HashMap<String, Tensor>> {
        let outputs = self.outputs(params, inputs, key, usize::MAX)?;
        let mut named: HashMap<String, Tensor> =
            self.graph.outputs.iter().map(|o| o.name.clone()).zip(outputs).collect();
        for binding in &self.bindings {
            if let Some(tensor) = named.remove(&binding.output) {
                params.set(&binding.param, tensor)?;
            }
        }
        Ok(named)
    }
}

/// An operator that becomes more nodes than this is not decomposed: long loops and sequences would take longer to plan than
/// to run.
const MAX_DECOMPOSED: usize = 2000;

/// Replaces operators that have no kernel but a decomposition. One that cannot be decomposed here stays.
fn decompose(graph: &mut Graph, opset: i64) {
    let mut kept = HashSet::new();
    for _ in 0..4 {
        let composite = |graph: &Graph, id| {
            let Some(op) = graph.node(id).op().filter(|_| !kept.contains(&id)) else { return false };
            let known = lower::expr::class(op).is_some() || lower::nodes::has_kernel(op);
            // Our own operators that evaluate themselves are written out for others to run.
            let own = op.domain == SARTOR_DOMAIN && ops::of(op).is_some_and(|def| def.eval.is_some());
            !known && !own && ops::is_pure(op) && ops::of(op).is_some_and(|def| def.decompose.is_some())
        };
        let found: Vec<_> = graph.topo_ops().into_iter().filter(|&id| composite(graph, id)).collect();
        if found.is_empty() || infer::infer_graph(graph, opset).is_err() {
            return;
        }
        for id in found {
            let before = graph.clone();
            if ops::decompose(graph, id, opset).is_err() || graph.len() > before.len() + MAX_DECOMPOSED {
                *graph = before;
                kept.insert(id);
            }
        }
    }
}
