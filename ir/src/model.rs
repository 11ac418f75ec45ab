//! A model: the inference graph, the parameters it shares with its *programs*, and what the file says besides.
//!
//! A program is a graph plus bindings from its outputs to parameters: running it reads the parameters and writes the
//! bound outputs back. Programs of a fine-tuning run are `step` (or `step.0`, `step.1`, … for the links of a chain),
//! `knot.1`, …, and `eval`. On disk they are ONNX's `training_info`.

use crate::graph::{Graph, NodeKind};
use crate::tensor::Tensor;
use indexmap::IndexMap;

/// What a parameter is for. Passes respect it: nothing folds, merges or renames a `Trainable` or `State` parameter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// A number that is not a weight.
    Constant,
    /// A weight that training leaves alone.
    Frozen,
    /// A weight that training changes.
    Trainable,
    /// What training keeps besides weights: optimizer moments, counters, merged copies, running statistics.
    State,
}

impl Role {
    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Role::Constant => "constant",
            Role::Frozen => "frozen",
            Role::Trainable => "trainable",
            Role::State => "state",
        }
    }
    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Role> {
        [Role::Constant, Role::Frozen, Role::Trainable, Role::State].into_iter().find(|r| r.name() == name)
    }
    /// Whether programs may write it.
    pub fn is_variable(self) -> bool {
        matches!(self, Role::Trainable | Role::State)
    }
}

/// A named tensor of the model.
#[derive(Clone, PartialEq, Debug)]
pub struct Parameter {
    /// Its value.
    pub tensor: Tensor,
    /// What it is for.
    pub role: Role,
}

/// An output of a program and the parameter it is written to after a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding {
    /// The name of the program's output.
    pub output: String,
    /// The name of the parameter.
    pub param: String,
}

/// A graph that is run for its effect on the parameters (or, without bindings, for its outputs).
#[derive(Clone, PartialEq, Debug)]
pub struct Program {
    /// Its graph. The graph's name is the program's name.
    pub graph: Graph,
    /// Which outputs are written to which parameters.
    pub bindings: Vec<Binding>,
}

/// A model-local function (`FunctionProto`): inlined by the pass `inline`, otherwise carried through.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub struct Function {
    pub domain: String,
    pub name: String,
    pub overload: String,
    /// Its body; inputs and outputs are untyped.
    pub graph: Graph,
    /// Attributes without defaults.
    pub attributes: Vec<String>,
    /// Attributes with defaults.
    pub defaults: crate::Attributes,
    pub opsets: IndexMap<String, i64>,
}

/// A model; see the [module](self).
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub struct Model {
    /// The inference graph.
    pub graph: Graph,
    /// Its parameters and those of the programs, by name. Names are those of the file's initializers.
    pub params: IndexMap<String, Parameter>,
    /// The programs by name.
    pub programs: IndexMap<String, Program>,
    /// Model-local functions.
    pub functions: Vec<Function>,
    /// Domain → version; `""` is ONNX's own.
    pub opsets: IndexMap<String, i64>,
    pub ir_version: i64,
    pub producer_name: String,
    pub producer_version: String,
    pub domain: String,
    pub model_version: i64,
    pub doc: String,
    /// `metadata_props` of the model.
    pub meta: Vec<(String, String)>,
    /// What the file says that has no place here (device configurations), in ONNX's wire form.
    pub extra: bytes::Bytes,
}

impl Model {
    /// A model around a graph, in the internal opset.
    pub fn new(graph: Graph) -> Model {
        Model {
            graph,
            params: IndexMap::new(),
            programs: IndexMap::new(),
            functions: Vec::new(),
            opsets: IndexMap::from([(String::new(), crate::OPSET)]),
            ir_version: crate::IR_VERSION,
            producer_name: "sartor".to_string(),
            producer_version: env!("CARGO_PKG_VERSION").to_string(),
            domain: String::new(),
            model_version: 0,
            doc: String::new(),
            meta: Vec::new(),
            extra: bytes::Bytes::new(),
        }
    }
    /// The version of ONNX's own operators that the model is written in.
    pub fn opset(&self) -> i64 {
        self.opsets.get("").or_else(|| self.opsets.get("ai.onnx")).copied().unwrap_or(1)
    }
    /// The value of an entry of the model's metadata.
    pub fn meta_value(&self, key: &str) -> Option<&str> {
        self.meta.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    /// Sets an entry of the model's metadata.
    pub fn set_meta(&mut self, key: &str, value: impl Into<String>) {
        match self.meta.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value.into(),
            None => self.meta.push((key.to_string(), value.into())),
        }
    }
    /// The inference graph and the graphs of all programs.
    pub fn graphs(&self) -> impl Iterator<Item = &Graph> {
        std::iter::once(&self.graph).chain(self.programs.values().map(|p| &p.graph))
    }
    /// The same, to be changed.
    pub fn graphs_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        std::iter::once(&mut self.graph).chain(self.programs.values_mut().map(|p| &mut p.graph))
    }
    /// Adds a parameter under a name made from `hint` that no parameter and no value of any graph has; returns it.
    pub fn add_param(&mut self, hint: &str, tensor: Tensor, role: Role) -> String {
        let taken = |name: &str| self.params.contains_key(name) || self.graphs().any(|g| g.name_taken(name));
        let mut name = hint.to_string();
        let mut i = 0;
        while taken(&name) {
            i += 1;
            name = format!("{hint}_{i}");
        }
        self.params.insert(name.clone(), Parameter { tensor, role });
        name
    }
    /// Removes the parameters that no graph and no binding uses. Returns how many.
    pub fn remove_unused_params(&mut self) -> usize {
        let mut used = std::collections::HashSet::new();
        for graph in self.graphs() {
            collect_params(graph, &mut used);
        }
        used.extend(self.programs.values().flat_map(|p| p.bindings.iter().map(|b| b.param.clone())));
        let before = self.params.len();
        self.params.retain(|name, _| used.contains(name));
        before - self.params.len()
    }
    /// The number of elements of the parameters with the roles for which `which` holds.
    pub fn count_params(&self, which: impl Fn(Role) -> bool) -> usize {
        self.params.values().filter(|p| which(p.role)).map(|p| p.tensor.len()).sum()
    }
}

fn collect_params(graph: &Graph, into: &mut std::collections::HashSet<String>) {
    for id in graph.node_ids() {
        match &graph.node(id).kind {
            NodeKind::Param(name) => {
                into.insert(name.clone());
            }
            NodeKind::Op(op) => op.attrs.graphs().for_each(|(_, g)| collect_params(g, into)),
            _ => {}
        }
    }
}
