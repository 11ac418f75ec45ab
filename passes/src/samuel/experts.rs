//! What belongs to an expert, found by data flow, and its copies.
//!
//! Own is what depends on a trained parameter or on the learning rate; a state whose next value does is own too, and so is
//! what depends on it, until nothing changes. In `shared` the search stays between the gradients (which are the same for
//! all) and the next values of the trained parameters: so of AdamW's state nothing is own, because its moments are made
//! of gradients alone.

use super::{Mode, Wrap, beginning, entry};
use crate::{training, walk};
use sartor_ir::{Binding, Graph, Model, NodeId, Program, Result, Role, Type, Value, bail};
use std::collections::{HashMap, HashSet};

/// A parameter of which every expert has its own.
pub struct Copied {
    /// The model's parameter.
    pub param: String,
    /// Its value in the step, if the step reads it.
    pub value: Option<Value>,
    /// Its next value, and the output that is bound to it.
    pub next: Value,
    pub output: String,
    /// Whether it is trained (others are states).
    pub trained: bool,
    /// Whether the model's parameter holds the played point (others are dropped: they were the optimizer's own).
    pub played: bool,
    /// The experts' parameters.
    pub own: Vec<String>,
}

/// What is copied.
pub struct Split {
    /// Operators in topological order.
    pub nodes: Vec<NodeId>,
    pub states: Vec<Copied>,
    /// States that all experts share and that only the steps know (AdamW's counter): a restart begins them anew.
    pub common: Vec<String>,
}

/// An expert's values instead of those of the step.
pub struct Copy {
    values: HashMap<Value, Value>,
}

impl Copy {
    /// The expert's value for one of the step: its own, or the common one.
    pub fn value(&self, value: Value) -> Value {
        self.values.get(&value).copied().unwrap_or(value)
    }
}

impl Split {
    /// For a step whose gradients are `cut` (empty: every expert has its own).
    pub fn of(program: &Program, model: &Model, mode: Mode, cut: &[(String, Value)]) -> Result<Split> {
        let graph = &program.graph;
        let cut: HashSet<Value> = cut.iter().map(|(_, grad)| *grad).collect();
        let trained = |b: &&Binding| model.params.get(&b.param).is_some_and(|p| p.role == Role::Trainable);
        let read = training::shown(model);
        let private = |b: &&Binding| {
            let state = model.params.get(&b.param).is_some_and(|p| p.role == Role::State);
            state && !read.contains(&b.param)
        };
        // Experts that begin at different times share no counter.
        let first = |b: &&Binding| trained(b) || (mode == Mode::Intervals && private(b));
        let mut own: Vec<&Binding> = program.bindings.iter().filter(first).collect();
        if !own.iter().any(trained) {
            bail!("it updates no trainable parameter: run `samuel` after `autodiff`");
        }
        let nodes = loop {
            let (nodes, more) = Split::dependent(program, &own, &cut);
            if more.is_empty() {
                break nodes;
            }
            own.extend(more);
        };
        let kept = graph.ancestors(kept_values(graph, mode, &own, &cut), |_| false);
        let copied = |b: &&Binding| {
            let (value, trained) = (graph.find_param(&b.param), trained(b));
            let played = trained || read.contains(&b.param) || value.is_some_and(|v| kept.contains(&v.node));
            let (param, output, next) = (b.param.clone(), b.output.clone(), graph.find_output(&b.output)?);
            Some(Copied { param, value, next, output, trained, played, own: Vec::new() })
        };
        let common = |b: &&Binding| private(b) && own.iter().all(|o| o.param != b.param);
        Ok(Split {
            nodes: graph.topo_ops().into_iter().filter(|id| nodes.contains(id)).collect(),
            common: program.bindings.iter().filter(common).map(|b| b.param.clone()).collect(),
            states: own.iter().filter_map(copied).collect(),
        })
    }

    /// The operators that depend on what is own so far, and the bindings that are own because of them.
    fn dependent<'a>(
        program: &'a Program,
        own: &[&Binding],
        cut: &HashSet<Value>,
    ) -> (HashSet<NodeId>, Vec<&'a Binding>) {
        let graph = &program.graph;
        let next = |b: &Binding| graph.find_output(&b.output);
        let region = match cut.is_empty() {
            true => graph.topo().into_iter().collect(),
            false => graph.ancestors(own.iter().filter_map(|b| next(b)), |v| cut.contains(v)),
        };
        let rate = graph.find_input(training::LEARNING_RATE);
        let roots = own.iter().filter_map(|b| graph.find_param(&b.param)).chain(rate);
        let dependent = descendants(graph, roots, &region, cut);
        let is_new = |b: &&Binding| {
            let value = graph.find_param(&b.param).filter(|v| region.contains(&v.node));
            let depends = next(b).is_some_and(|v| dependent.contains(&v.node) && !cut.contains(&v));
            !own.iter().any(|o| o.output == b.output) && depends && (cut.is_empty() || value.is_some())
        };
        let more = program.bindings.iter().filter(is_new).collect();
        (dependent, more)
    }

    /// Adds the experts' parameters to the model.
    pub fn add_states(&mut self, step: &str, experts: usize, model: &mut Model) {
        for state in &mut self.states {
            let Some(tensor) = model.params.get(&state.param).map(|p| p.tensor.clone()) else { continue };
            let name = |i: usize| format!("{step}/expert.{i}/{}", state.param);
            state.own = (0..experts).map(|i| model.add_param(&name(i), tensor.clone(), Role::State)).collect();
        }
    }

    /// What an expert begins a step with: its own parameters, or, where `fresh` is given and true, the played point and a
    /// fresh optimizer.
    pub fn start(
        &self,
        wrap: &Wrap,
        program: &mut Program,
        model: &Model,
        expert: usize,
        fresh: Option<Value>,
    ) -> Result<Vec<Value>> {
        let mut starts = Vec::new();
        for state in &self.states {
            let own = &state.own[expert];
            let Some(param) = model.params.get(own) else { bail!("there is no parameter \"{own}\"") };
            let mut value = program.graph.param(own, Type::of(&param.tensor));
            if let Some(fresh) = fresh {
                let mut emit = wrap.emit(program);
                let new = beginning(&mut emit, model, state)?;
                value = emit.select(fresh, new, value)?;
            }
            starts.push(value);
        }
        Ok(starts)
    }

    /// Copies what is own for one expert that starts with these values.
    pub fn copy(
        &self,
        wrap: &Wrap,
        program: &mut Program,
        expert: usize,
        starts: &[Value],
        rates: Value,
    ) -> Result<Copy> {
        let mut values = HashMap::new();
        for (state, start) in self.states.iter().zip(starts) {
            values.extend(state.value.map(|value| (value, *start)));
        }
        if let Some(rate) = program.graph.find_input(training::LEARNING_RATE) {
            values.insert(rate, entry(&mut wrap.emit(program), rates, expert)?);
        }
        let mut copy = Copy { values };
        let prefix = format!("{}/expert.{expert}/", wrap.name);
        self.nodes.iter().for_each(|id| copy_node(&mut program.graph, *id, &mut copy, &prefix));
        Ok(copy)
    }

    /// Puts a choice behind everything that others read of an expert's copy: its own values where `alive`, else what it
    /// started with, and for outputs no number. Nobody uses the values of an expert without weight; now nobody needs them.
    pub fn spare(
        &self,
        wrap: &Wrap,
        program: &mut Program,
        copy: &mut Copy,
        (alive, starts): (Value, &[Value]),
    ) -> Result<()> {
        let outputs: Vec<Value> = program.graph.outputs.iter().map(|o| o.value).collect();
        for (state, start) in self.states.iter().zip(starts) {
            let own = copy.value(state.next);
            if own != *start && own != state.next {
                let next = wrap.emit(program).select(alive, own, *start)?;
                copy.values.insert(state.next, next);
            }
        }
        let states: HashSet<Value> = self.states.iter().map(|s| s.next).collect();
        for value in outputs.into_iter().filter(|v| !states.contains(v)) {
            let own = copy.value(value);
            if own != value {
                let mut emit = wrap.emit(program);
                let nothing = emit.scalar(if emit.dtype(own)?.is_float() { f64::NAN } else { 0.0 }, own)?;
                let shown = emit.select(alive, own, nothing)?;
                copy.values.insert(value, shown);
            }
        }
        Ok(())
    }
}

fn copy_node(graph: &mut Graph, id: NodeId, copy: &mut Copy, prefix: &str) {
    let source = graph.node(id).clone();
    let Some(op) = source.op().cloned() else { return };
    let inputs: Vec<Option<Value>> = graph.node_inputs(id).into_iter().map(|v| v.map(|v| copy.value(v))).collect();
    let prefixed = |name: &str| format!("{prefix}{name}");
    let name = if source.name.is_empty() { String::new() } else { prefixed(&source.name) };
    let new = walk::add_copy(graph, &source, (&name, op), &inputs, prefixed);
    copy.values.extend(graph.node_outputs(id).map(|old| (old, Value { node: new, ..old })));
}

/// The operators of a region that depend on one of the roots, not by way of a value of `cut`.
fn descendants(
    graph: &Graph,
    roots: impl Iterator<Item = Value>,
    region: &HashSet<NodeId>,
    cut: &HashSet<Value>,
) -> HashSet<NodeId> {
    let mut found = HashSet::new();
    let mut stack: Vec<Value> = roots.collect();
    while let Some(value) = stack.pop() {
        for (reader, _) in graph.uses(value) {
            if region.contains(&reader) && found.insert(reader) {
                stack.extend(graph.node_outputs(reader).filter(|v| !cut.contains(v)));
            }
        }
    }
    found
}

/// What is computed at the played point: the loss in `intervals`, all but the experts' own in `shared`.
fn kept_values(graph: &Graph, mode: Mode, own: &[&Binding], cut: &HashSet<Value>) -> Vec<Value> {
    let is_own = |name: &str| own.iter().any(|b| b.output == name);
    let outputs = graph.outputs.iter().filter(|o| match mode {
        Mode::Independent => false,
        Mode::Intervals => o.name == "loss",
        Mode::Shared => !is_own(&o.name),
    });
    outputs.map(|o| o.value).chain(cut.iter().copied()).collect()
}
