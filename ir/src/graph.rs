//! The graph: nodes joined by the values that flow between them, on a petgraph `StableDiGraph`, which only this file
//! sees. An edge carries the slots it joins; a [`Value`] is a node and one of its output slots.
//!
//! Everything a graph reads is a node: its inputs, its constants, the model's parameters. A node with subgraphs reads
//! what they use from outside through *captures*: further input slots after the formal ones; inside the subgraph the
//! node [`NodeKind::Capture`]`(k)` stands for capture `k`. So data flow is always explicit, and walks and dead-code
//! elimination need not look inside subgraphs.
//!
//! Editing is a handful of verbs: add, remove, set an input, replace uses. Walking is in topological order, ties
//! broken by age, so that a file's own order survives import and export.

use crate::attr::Attributes;
use crate::tensor::Tensor;
use crate::types::Type;
use bytes::Bytes;
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// The identity of a node; stable under edits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(NodeIndex);

impl NodeId {
    /// A small number, unique in the graph: an index for tables.
    pub fn index(self) -> usize {
        self.0.index()
    }
}

/// One output of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Value {
    /// The node.
    pub node: NodeId,
    /// Which of its outputs.
    pub slot: u32,
}

/// What a node is.
#[derive(Clone, PartialEq, Debug)]
pub enum NodeKind {
    /// An input of the graph.
    Input,
    /// A constant (an initializer of a non-floating type or rank 0, or one that a pass made).
    Const(Tensor),
    /// A parameter of the model, by the name of its entry in [`crate::Model::params`].
    Param(String),
    /// In a subgraph: the node's capture of this number.
    Capture(usize),
    /// An operator.
    Op(Operator),
}

/// Which operator a node applies, and how.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Operator {
    /// `""` for ONNX's own, `com.microsoft`, `ai.sartor`, ….
    pub domain: String,
    /// `MatMul`, ….
    pub name: String,
    /// The overload of a model-local function, usually empty.
    pub overload: String,
    /// Its attributes.
    pub attrs: Attributes,
}

impl Operator {
    /// An operator of ONNX's own domain.
    pub fn onnx(name: &str, attrs: Attributes) -> Operator {
        Operator { name: name.to_string(), attrs, ..Operator::default() }
    }
    /// An operator of the domain [`crate::SARTOR_DOMAIN`].
    pub fn sartor(name: &str, attrs: Attributes) -> Operator {
        Operator { domain: crate::SARTOR_DOMAIN.to_string(), name: name.to_string(), attrs, ..Operator::default() }
    }
    /// An operator of any domain.
    pub fn of_domain(domain: &str, name: &str, attrs: Attributes) -> Operator {
        Operator { domain: domain.to_string(), name: name.to_string(), attrs, ..Operator::default() }
    }
    /// Whether it is ONNX's operator of this name.
    pub fn is(&self, name: &str) -> bool {
        self.domain.is_empty() && self.name == name
    }
    /// `MatMul` or `com.microsoft::FusedMatMul`.
    pub fn full_name(&self) -> String {
        if self.domain.is_empty() { self.name.clone() } else { format!("{}::{}", self.domain, self.name) }
    }
}

/// One output slot of a node.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OutputSlot {
    /// The value's name; empty for an optional output that is left out.
    pub name: String,
    /// What is known of the value.
    pub ty: Option<Type>,
}

/// A node.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Its name; may be empty, as in many files.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// Its outputs.
    pub outputs: Vec<OutputSlot>,
    /// `metadata_props`: the exporter's module path and the like.
    pub meta: Vec<(String, String)>,
    /// Its documentation string.
    pub doc: String,
    /// What the file says of it that has no place here (device configurations, documentation of attributes), in ONNX's
    /// wire form; empty for nearly all nodes.
    pub extra: Bytes,
    /// How many input slots it has, captures included.
    arity: usize,
    /// How many of them are captures of its subgraphs; they come last.
    captures: usize,
}

impl Node {
    /// The operator, if it is one.
    pub fn op(&self) -> Option<&Operator> {
        match &self.kind {
            NodeKind::Op(op) => Some(op),
            _ => None,
        }
    }
    /// The operator, to be changed.
    pub fn op_mut(&mut self) -> Option<&mut Operator> {
        match &mut self.kind {
            NodeKind::Op(op) => Some(op),
            _ => None,
        }
    }
    /// An operator of any domain.
    pub fn of_domain(domain: &str, name: &str, attrs: Attributes) -> Operator {
        Operator { domain: domain.to_string(), name: name.to_string(), attrs, ..Operator::default() }
    }
    /// Whether it is ONNX's operator of this name.
    pub fn is(&self, name: &str) -> bool {
        self.op().is_some_and(|op| op.is(name))
    }
    /// The tensor, if it is a constant: one of the graph's own, or ONNX's operator `Constant`.
    pub fn constant(&self) -> Option<Tensor> {
        match &self.kind {
            NodeKind::Const(tensor) => Some(tensor.clone()),
            NodeKind::Op(op) if op.is("Constant") => crate::ops::constant::constant(op).ok().flatten(),
            _ => None,
        }
    }
    /// The number of its formal inputs (captures not counted).
    pub fn formal_inputs(&self) -> usize {
        self.arity - self.captures
    }
    /// The number of its captures.
    pub fn captures(&self) -> usize {
        self.captures
    }
    /// `node "Add_3" (Add)`, for messages.
    pub fn label(&self) -> String {
        let what = match &self.kind {
            NodeKind::Input => "graph input".to_string(),
            NodeKind::Const(_) => "constant".to_string(),
            NodeKind::Param(_) => "parameter".to_string(),
            NodeKind::Capture(_) => "captured value".to_string(),
            NodeKind::Op(op) => op.full_name(),
        };
        let named = if self.name.is_empty() { self.outputs.first().map_or("", |o| &o.name) } else { &self.name };
        format!("node \"{named}\" ({what})")
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Edge {
    from: u32,
    to: u32,
}

/// A named output of a graph.
#[derive(Clone, PartialEq, Debug)]
pub struct GraphOutput {
    /// The name users see. It survives whatever passes do to the value.
    pub name: String,
    /// The value.
    pub value: Value,
}

/// A graph; see the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Graph {
    graph: StableDiGraph<Node, Edge>,
    /// The graph's name.
    pub name: String,
    /// Its documentation string.
    pub doc: String,
    /// `metadata_props` of the graph.
    pub meta: Vec<(String, String)>,
    /// What the file says of it that has no place here (quantization annotations, documentation of values, inputs that
    /// are also initializers), in ONNX's wire form.
    pub extra: Bytes,
    inputs: Vec<NodeId>,
    /// Its outputs, in order.
    pub outputs: Vec<GraphOutput>,
    /// Which names of values and nodes are taken. Removed nodes keep theirs, so no name ever changes its meaning.
    names: HashSet<String>,
    counters: HashMap<String, usize>,
}

/// Equal if the same nodes stand in the same order, joined the same way; identities do not matter.
impl PartialEq for Graph {
    fn eq(&self, other: &Graph) -> bool {
        self.differences(other).is_none()
    }
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Graph {
        Graph { name: name.to_string(), ..Graph::default() }
    }

    // ---- adding ---------------------------------------------------------------------------------------------------

    /// Adds a graph input.
    pub fn add_input(&mut self, name: &str, ty: Type) -> Value {
        let value = self.add_leaf(NodeKind::Input, name, Some(ty));
        self.inputs.push(value.node);
        value
    }
    /// Adds a constant under a fresh name made from `hint`.
    pub fn add_const(&mut self, hint: &str, tensor: Tensor) -> Value {
        let name = self.fresh_name(hint);
        self.add_named_const(&name, tensor)
    }
    /// Adds a constant under exactly this name.
    pub fn add_named_const(&mut self, name: &str, tensor: Tensor) -> Value {
        let ty = Type::of(&tensor);
        self.add_leaf(NodeKind::Const(tensor), name, Some(ty))
    }
    /// The value of a parameter: the node that stands for it, added if there is none yet.
    pub fn param(&mut self, name: &str, ty: Type) -> Value {
        match self.find_param(name) {
            Some(value) => value,
            None => self.add_param(name, ty),
        }
    }
    /// Adds the node that stands for a parameter, where there is certainly none yet ([`Graph::param`] looks).
    pub fn add_param(&mut self, name: &str, ty: Type) -> Value {
        self.add_leaf(NodeKind::Param(name.to_string()), name, Some(ty))
    }
    /// The value that stands for a parameter, if the graph uses it.
    pub fn find_param(&self, name: &str) -> Option<Value> {
        let hit = |id: &NodeId| matches!(&self.node(*id).kind, NodeKind::Param(p) if p == name);
        self.node_ids().find(hit).map(|node| Value { node, slot: 0 })
    }
    /// Adds, in a subgraph, the stand-in for the capture of this number.
    pub fn add_capture(&mut self, index: usize, name: &str, ty: Option<Type>) -> Value {
        self.add_leaf(NodeKind::Capture(index), name, ty)
    }
    /// Adds a node without inputs; an input is not listed among the graph's inputs yet.
    pub(crate) fn add_leaf(&mut self, kind: NodeKind, name: &str, ty: Option<Type>) -> Value {
        self.names.insert(name.to_string());
        let outputs = vec![OutputSlot { name: name.to_string(), ty }];
        let (name, meta, doc, extra) = Default::default();
        let node = Node { name, kind, outputs, meta, doc, extra, arity: 0, captures: 0 };
        Value { node: NodeId(self.graph.add_node(node)), slot: 0 }
    }
    /// Sets which input nodes are the graph's inputs, in order.
    pub(crate) fn set_inputs_order(&mut self, inputs: Vec<NodeId>) {
        self.inputs = inputs;
    }
    /// Adds an operator with named outputs (an empty name: an optional output left out). The names must be fresh.
    pub fn add_node(&mut self, name: &str, op: Operator, inputs: &[Option<Value>], outputs: Vec<OutputSlot>) -> NodeId {
        self.names.extend(outputs.iter().map(|o| o.name.clone()).chain([name.to_string()]).filter(|n| !n.is_empty()));
        let (kind, name, arity) = (NodeKind::Op(op), name.to_string(), inputs.len());
        let (meta, doc, extra) = Default::default();
        let node = Node { name, kind, outputs, meta, doc, extra, arity, captures: 0 };
        let id = NodeId(self.graph.add_node(node));
        for (slot, input) in inputs.iter().enumerate() {
            self.connect(id, slot, *input);
        }
        id
    }
    /// Adds an operator with `outputs` outputs under fresh names made from `hint`; the node gets the same name.
    pub fn add_op(&mut self, hint: &str, op: Operator, inputs: &[Option<Value>], outputs: usize) -> NodeId {
        let slots: Vec<OutputSlot> =
            (0..outputs).map(|_| OutputSlot { name: self.fresh_name(hint), ty: None }).collect();
        let name = slots.first().map_or_else(|| hint.to_string(), |o| o.name.clone());
        self.add_node(&name, op, inputs, slots)
    }
    /// Adds one of ONNX's operators with a single output and no optional inputs left out.
    pub fn op(&mut self, name: &str, inputs: &[Value], attrs: Attributes) -> Value {
        let inputs: Vec<Option<Value>> = inputs.iter().copied().map(Some).collect();
        let node = self.add_op(name, Operator::onnx(name, attrs), &inputs, 1);
        Value { node, slot: 0 }
    }
    /// Adds one capture to a node with subgraphs; returns its number.
    pub fn push_capture(&mut self, id: NodeId, value: Value) -> usize {
        let node = &mut self.graph[id.0];
        let slot = node.arity;
        node.arity += 1;
        node.captures += 1;
        let index = node.captures - 1;
        self.connect(id, slot, Some(value));
        index
    }

    // ---- looking --------------------------------------------------------------------------------------------------

    /// The node of an identity. Panics if it was removed.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.graph[id.0]
    }
    /// The node, to be changed.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.graph[id.0]
    }
    /// Whether the node is still there.
    pub fn contains(&self, id: NodeId) -> bool {
        self.graph.contains_node(id.0)
    }
    /// All nodes, oldest first.
    pub fn node_ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + '_ {
        self.graph.node_indices().map(NodeId)
    }
    /// An upper bound on [`NodeId::index`]: the length of a table over nodes.
    pub fn index_bound(&self) -> usize {
        use petgraph::visit::NodeIndexable;
        self.graph.node_bound()
    }
    /// The number of nodes of every kind.
    pub fn len(&self) -> usize {
        self.graph.node_count()
    }
    /// Whether it has no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The number of operator nodes, subgraphs not counted.
    pub fn op_count(&self) -> usize {
        self.graph.node_weights().filter(|n| n.op().is_some()).count()
    }
    /// The graph's inputs, in order.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = Value> + '_ {
        self.inputs.iter().map(|&node| Value { node, slot: 0 })
    }
    /// The graph input of this name.
    pub fn find_input(&self, name: &str) -> Option<Value> {
        self.inputs().find(|&v| self.value_name(v) == name)
    }
    /// The output of this name.
    pub fn find_output(&self, name: &str) -> Option<Value> {
        self.outputs.iter().find(|o| o.name == name).map(|o| o.value)
    }
    /// The value of this name, wherever it is made; also an output's public name.
    pub fn find_value(&self, name: &str) -> Option<Value> {
        let of_node = |id: NodeId| {
            let slot = self.node(id).outputs.iter().position(|o| o.name == name)?;
            Some(Value { node: id, slot: slot as u32 })
        };
        self.find_output(name).or_else(|| self.node_ids().find_map(of_node))
    }
    /// The nodes that values need, their own included. The search ends at values for which `stop` holds.
    pub fn ancestors(&self, values: impl IntoIterator<Item = Value>, stop: impl Fn(&Value) -> bool) -> HashSet<NodeId> {
        let mut found = HashSet::new();
        let mut stack: Vec<Value> = values.into_iter().collect();
        while let Some(value) = stack.pop() {
            if !stop(&value) && found.insert(value.node) {
                stack.extend(self.node_inputs(value.node).into_iter().flatten());
            }
        }
        found
    }
    /// The node of this name.
    pub fn find_node(&self, name: &str) -> Option<NodeId> {
        self.node_ids().find(|&id| self.node(id).name == name)
    }
    /// All input slots of a node, formal ones first, then captures.
    pub fn node_inputs(&self, id: NodeId) -> Vec<Option<Value>> {
        let mut inputs = vec![None; self.node(id).arity];
        for edge in self.graph.edges_directed(id.0, Direction::Incoming) {
            let value = Value { node: NodeId(edge.source()), slot: edge.weight().from };
            inputs[edge.weight().to as usize] = Some(value);
        }
        inputs
    }
    /// One input of a node; `None` if it is left out or beyond the last.
    pub fn input(&self, id: NodeId, slot: usize) -> Option<Value> {
        self.graph
            .edges_directed(id.0, Direction::Incoming)
            .find(|e| e.weight().to as usize == slot)
            .map(|e| Value { node: NodeId(e.source()), slot: e.weight().from })
    }
    /// The values a node makes.
    pub fn node_outputs(&self, id: NodeId) -> impl Iterator<Item = Value> + use<> {
        (0..self.node(id).outputs.len() as u32).map(move |slot| Value { node: id, slot })
    }
    /// Who reads a value, and in which input slot; oldest reader first. Graph outputs are not counted.
    pub fn uses(&self, value: Value) -> Vec<(NodeId, usize)> {
        let mut uses: Vec<(NodeId, usize)> = self
            .graph
            .edges_directed(value.node.0, Direction::Outgoing)
            .filter(|e| e.weight().from == value.slot)
            .map(|e| (NodeId(e.target()), e.weight().to as usize))
            .collect();
        uses.sort();
        uses
    }
    /// Whether a value is an output of the graph.
    pub fn is_output(&self, value: Value) -> bool {
        self.outputs.iter().any(|o| o.value == value)
    }
    /// How often a value is read, graph outputs included.
    pub fn use_count(&self, value: Value) -> usize {
        let outputs = self.outputs.iter().filter(|o| o.value == value).count();
        outputs
            + self
                .graph
                .edges_directed(value.node.0, Direction::Outgoing)
                .filter(|e| e.weight().from == value.slot)
                .count()
    }
    fn slot(&self, value: Value) -> &OutputSlot {
        &self.node(value.node).outputs[value.slot as usize]
    }
    /// A value's name.
    pub fn value_name(&self, value: Value) -> &str {
        &self.slot(value).name
    }
    /// What is known of a value.
    pub fn ty(&self, value: Value) -> Option<&Type> {
        self.slot(value).ty.as_ref()
    }
    /// The constant behind a value, if its node is one: see [`Node::constant`].
    pub fn constant(&self, value: Value) -> Option<Tensor> {
        self.node(value.node).constant()
    }
    /// The parameter's name behind a value, if its node is one.
    pub fn param_name(&self, value: Value) -> Option<&str> {
        match &self.node(value.node).kind {
            NodeKind::Param(name) => Some(name),
            _ => None,
        }
    }

    // ---- changing -------------------------------------------------------------------------------------------------

    /// Records what is known of a value.
    pub fn set_ty(&mut self, value: Value, ty: Option<Type>) {
        self.graph[value.node.0].outputs[value.slot as usize].ty = ty;
    }
    /// Forgets the types of all values that operators compute, also in subgraphs: for inference anew, of other inputs.
    pub fn forget_types(&mut self) {
        for id in self.topo_ops() {
            let node = self.node_mut(id);
            node.outputs.iter_mut().for_each(|output| output.ty = None);
            node.op_mut().into_iter().flat_map(|op| op.attrs.graphs_mut()).for_each(Graph::forget_types);
        }
    }
    /// Renames a value. The name must be fresh.
    pub fn rename(&mut self, value: Value, name: &str) {
        self.names.insert(name.to_string());
        self.graph[value.node.0].outputs[value.slot as usize].name = name.to_string();
    }
    fn connect(&mut self, id: NodeId, slot: usize, value: Option<Value>) {
        if let Some(value) = value {
            self.graph.add_edge(value.node.0, id.0, Edge { from: value.slot, to: slot as u32 });
        }
    }
    /// Sets one formal input of a node, adding slots up to it if needed.
    pub fn set_input(&mut self, id: NodeId, slot: usize, value: Option<Value>) {
        let old = self.graph.edges_directed(id.0, Direction::Incoming).find(|e| e.weight().to as usize == slot);
        if let Some(edge) = old.map(|e| e.id()) {
            self.graph.remove_edge(edge);
        }
        let node = &mut self.graph[id.0];
        assert!(node.captures == 0 || slot < node.arity, "captures come last");
        node.arity = node.arity.max(slot + 1);
        self.connect(id, slot, value);
    }
    /// Replaces all formal inputs of a node without captures.
    pub fn set_inputs(&mut self, id: NodeId, inputs: &[Option<Value>]) {
        let edges: Vec<_> = self.graph.edges_directed(id.0, Direction::Incoming).map(|e| e.id()).collect();
        edges.into_iter().for_each(|e| {
            self.graph.remove_edge(e);
        });
        self.graph[id.0].arity = inputs.len();
        for (slot, input) in inputs.iter().enumerate() {
            self.connect(id, slot, *input);
        }
    }
    /// Lets everybody who reads `old`, graph outputs included, read `new`. Output names stay.
    pub fn replace_uses(&mut self, old: Value, new: Value) {
        self.replace_uses_if(old, new, |_, _| true);
        self.outputs.iter_mut().filter(|o| o.value == old).for_each(|o| o.value = new);
    }
    /// Lets everybody who reads `old` read `new`, of which is then known what was known of either.
    pub fn substitute(&mut self, old: Value, new: Value) {
        let merged = match (self.ty(new), self.ty(old)) {
            (Some(a), Some(b)) => a.merge(b).or(Some(a.clone())),
            (a, b) => a.or(b).cloned(),
        };
        self.set_ty(new, merged);
        self.replace_uses(old, new);
    }
    /// Lets the node readers for which `keep` holds (asked with node and input slot) read `new` instead of `old`;
    /// graph outputs are left alone.
    pub fn replace_uses_if(&mut self, old: Value, new: Value, keep: impl Fn(NodeId, usize) -> bool) {
        for (reader, slot) in self.uses(old) {
            if keep(reader, slot) {
                let edge = self
                    .graph
                    .edges_connecting(old.node.0, reader.0)
                    .find(|e| e.weight().to as usize == slot)
                    .map(|e| e.id());
                edge.and_then(|e| self.graph.remove_edge(e));
                self.connect(reader, slot, Some(new));
            }
        }
    }
    /// Removes a node. Its values must be unused (checked in debug builds).
    pub fn remove(&mut self, id: NodeId) {
        debug_assert!(self.graph.edges_directed(id.0, Direction::Outgoing).next().is_none(), "removed a node in use");
        self.inputs.retain(|&input| input != id);
        self.graph.remove_node(id.0);
    }
    /// Removes every node that no output needs, inputs of the graph excepted. Returns how many.
    pub fn remove_dead(&mut self) -> usize {
        let mut live = vec![false; self.index_bound()];
        let mut stack: Vec<NodeId> = self.outputs.iter().map(|o| o.value.node).collect();
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut live[id.index()], true) {
                stack.extend(self.graph.neighbors_directed(id.0, Direction::Incoming).map(NodeId));
            }
        }
        self.inputs.iter().for_each(|id| live[id.index()] = true);
        let before = self.len();
        self.graph.retain_nodes(|_, index| live[index.index()]);
        before - self.len()
    }
    /// A name that no value and no node has: `hint`, or `hint_1`, `hint_2`, …. It is taken from then on.
    pub fn fresh_name(&mut self, hint: &str) -> String {
        if self.names.insert(hint.to_string()) {
            return hint.to_string();
        }
        let counter = self.counters.entry(hint.to_string()).or_insert(0);
        loop {
            *counter += 1;
            let name = format!("{hint}_{counter}");
            if self.names.insert(name.clone()) {
                return name;
            }
        }
    }
    /// Whether a value has or had this name.
    pub fn name_taken(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    // ---- walking --------------------------------------------------------------------------------------------------

    /// All nodes, each after those it reads from; among the ready ones the oldest first. Nodes on a cycle are missing
    /// (the verifier reports them).
    pub fn topo(&self) -> Vec<NodeId> {
        let mut missing = vec![0usize; self.index_bound()];
        let mut ready = BinaryHeap::new();
        for id in self.node_ids() {
            missing[id.index()] = self.graph.edges_directed(id.0, Direction::Incoming).count();
            if missing[id.index()] == 0 {
                ready.push(Reverse(id));
            }
        }
        let mut order = Vec::with_capacity(self.len());
        while let Some(Reverse(id)) = ready.pop() {
            order.push(id);
            for edge in self.graph.edges_directed(id.0, Direction::Outgoing) {
                let target = NodeId(edge.target());
                missing[target.index()] -= 1;
                if missing[target.index()] == 0 {
                    ready.push(Reverse(target));
                }
            }
        }
        order
    }
    /// The operator nodes in topological order.
    pub fn topo_ops(&self) -> Vec<NodeId> {
        self.topo().into_iter().filter(|&id| self.node(id).op().is_some()).collect()
    }
    /// What is wrong with the edges into a node, for the verifier: slots that do not exist, slots joined twice.
    pub(crate) fn wiring_problems(&self, id: NodeId) -> Vec<String> {
        let node = self.node(id);
        let mut problems = Vec::new();
        if node.captures > node.arity {
            problems.push(format!("it has {} captures but {} inputs", node.captures, node.arity));
        }
        let mut joined = vec![false; node.arity];
        for edge in self.graph.edges_directed(id.0, Direction::Incoming) {
            let Edge { from, to } = *edge.weight();
            let source = self.node(NodeId(edge.source()));
            if from as usize >= source.outputs.len() {
                problems.push(format!("input {to} reads output {from} of {}, which has none", source.label()));
            }
            match joined.get_mut(to as usize) {
                Some(taken) if !*taken => *taken = true,
                Some(_) => problems.push(format!("input {to} is joined twice")),
                None => problems.push(format!("input {to} is beyond its {} inputs", node.arity)),
            }
        }
        problems
    }
    /// The first difference to another graph, as a sentence; `None` if they are equal up to identities.
    pub fn differences(&self, other: &Graph) -> Option<String> {
        let (mine, theirs) = (self.topo(), other.topo());
        if mine.len() != theirs.len() {
            return Some(format!("graph \"{}\" has {} nodes, the other {}", self.name, mine.len(), theirs.len()));
        }
        let about = |graph: &Graph| (graph.name.clone(), graph.doc.clone(), graph.meta.clone(), graph.extra.clone());
        if about(self) != about(other) {
            return Some(format!("graph \"{}\" differs in name, documentation or metadata", self.name));
        }
        let place = |order: &[NodeId]| order.iter().enumerate().map(|(i, &id)| (id, i)).collect::<HashMap<_, _>>();
        let (my_place, their_place) = (place(&mine), place(&theirs));
        for (&a, &b) in mine.iter().zip(&theirs) {
            let (node_a, node_b) = (self.node(a), other.node(b));
            let wires = |graph: &Graph, id, place: &HashMap<NodeId, usize>| -> Vec<Option<(usize, u32)>> {
                graph.node_inputs(id).iter().map(|v| v.map(|v| (place[&v.node], v.slot))).collect()
            };
            if node_a != node_b || wires(self, a, &my_place) != wires(other, b, &their_place) {
                return Some(format!("{} differs from {}", node_a.label(), node_b.label()));
            }
        }
        let ends = |graph: &Graph, place: &HashMap<NodeId, usize>| -> Vec<(String, Option<usize>, u32)> {
            let inputs = graph.inputs().map(|v| (String::new(), v));
            let outputs = graph.outputs.iter().map(|o| (o.name.clone(), o.value));
            inputs.chain(outputs).map(|(n, v)| (n, place.get(&v.node).copied(), v.slot)).collect()
        };
        (ends(self, &my_place) != ends(other, &their_place)).then(|| "inputs or outputs differ".to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn diamond() -> (Graph, Value, Value) {
        let mut g = Graph::new("g");
        let x = g.add_input("x", Type::tensor(DType::F32, [2i64]));
        let a = g.op("Relu", &[x], Attributes::new());
        let b = g.op("Neg", &[x], Attributes::new());
        let sum = g.op("Add", &[a, b], Attributes::new());
        g.outputs.push(GraphOutput { name: "y".into(), value: sum });
        (g, a, sum)
    }

    #[test]
    fn edits_keep_slots_and_output_names() {
        let (mut g, a, sum) = diamond();
        let c = g.op("Exp", &[a], Attributes::new());
        g.replace_uses_if(a, c, |reader, _| reader != c.node);
        assert_eq!(g.node_inputs(sum.node)[0], Some(c));
        g.replace_uses(sum, c);
        assert_eq!(g.find_output("y"), Some(c));
        assert_eq!(g.remove_dead(), 2);
        assert_eq!(g.topo_ops(), [a.node, c.node]);
    }

    #[test]
    fn equality_ignores_identities() {
        let (a, ..) = diamond();
        let (mut b, _, sum) = diamond();
        let dead = b.op("Abs", &[sum], Attributes::new());
        assert_ne!(a, b);
        b.remove(dead.node);
        assert_eq!(a, b);
    }

    #[test]
    fn topological_order_prefers_age() {
        let (mut g, a, sum) = diamond();
        let late = g.op("Exp", &[a], Attributes::new());
        g.set_input(sum.node, 1, Some(late));
        let order = g.topo_ops();
        assert_eq!(order.last(), Some(&sum.node));
        assert!(order.len() == 4);
    }
}
