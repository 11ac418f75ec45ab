//! `GraphProto` → [`Graph`].
//!
//! In a file, names join nodes, and a subgraph sees the names around it. Here, edges do: each graph that is being read
//! has a frame with its names, and a name that is not found in its own frame is looked up one frame further out; each
//! frame in between gets a capture for it. The captures of a node are numbered over all its subgraphs.
//!
//! A part of a graph that cannot be read is noted and the rest is read all the same, so that one look at a file finds everything that is wrong with it.

use super::external::ExternalFiles;
use super::names::sparse_name;
use super::proto::{self, *};
use super::tensor::{read_tensor, write_tensor};
use super::types::{has_denotation, read_type};
use crate::attr::{Attribute, Attributes};
use crate::error::{Context, Error, Result};
use crate::graph::{Graph, GraphOutput, NodeId, Operator, OutputSlot, Value};
use crate::tensor::Tensor;
use crate::types::Type;
use crate::{bail, ensure};
use bytes::Bytes;
use indexmap::IndexMap;
use prost::Message;
use std::collections::{HashMap, HashSet};

/// What an initializer becomes.
pub(super) enum Leaf {
    /// A constant node.
    Const,
    /// A parameter node.
    Param,
    /// Nothing: a parameter that this graph does not read.
    Absent,
}

/// Decides what an initializer of the outermost graph becomes.
pub(super) type Classify<'a> = dyn FnMut(&str, &Tensor) -> Result<Leaf> + 'a;

/// One graph that is being read.
#[derive(Default)]
struct Frame {
    graph: Graph,
    names: HashMap<String, Value>,
    /// What the subgraphs of the node that is being read capture, by name.
    captured: IndexMap<String, Value>,
}

/// Reads graphs; see the [module](self).
pub(super) struct GraphImporter<'a> {
    files: &'a ExternalFiles,
    frames: Vec<Frame>,
    /// Names to be replaced (see [`super::programs`]).
    renamed: HashMap<String, String>,
}

impl<'a> GraphImporter<'a> {
    pub(super) fn new(files: &'a ExternalFiles, renamed: HashMap<String, String>) -> GraphImporter<'a> {
        GraphImporter { files, frames: Vec::new(), renamed }
    }
    /// Reads an outermost graph.
    pub(super) fn read(&mut self, graph: GraphProto, classify: &mut Classify) -> Result<Graph> {
        let place = format!("graph \"{}\"", graph.name);
        self.graph(graph, Some(classify)).context(|| place)
    }
    /// Reads the body of a model-local function: untyped inputs, and no initializers.
    pub(super) fn read_function(&mut self, function: FunctionProto) -> Result<Graph> {
        let untyped = |name: String| ValueInfoProto { name, ..ValueInfoProto::default() };
        let graph = GraphProto {
            name: function.name,
            doc_string: function.doc_string,
            metadata_props: function.metadata_props,
            input: function.input.into_iter().map(untyped).collect(),
            output: function.output.into_iter().map(untyped).collect(),
            value_info: function.value_info,
            node: function.node,
            ..GraphProto::default()
        };
        self.graph(graph, None)
    }
    fn graph(&mut self, mut proto: GraphProto, classify: Option<&mut Classify>) -> Result<Graph> {
        self.frames.push(Frame::default());
        let extra = graph_extra(&mut proto);
        let result = self.body(proto, classify);
        let frame = self.frames.pop();
        result?;
        let mut graph = frame.map(|f| f.graph).unwrap_or_default();
        graph.extra = extra;
        Ok(graph)
    }
    fn body(&mut self, proto: GraphProto, classify: Option<&mut Classify>) -> Result<()> {
        let graph = self.top();
        (graph.name, graph.doc, graph.meta) = (proto.name, proto.doc_string, proto::pairs(proto.metadata_props));
        let declared = declared_types(&proto.value_info, &proto.output);
        let dense = proto.initializer.iter().map(|t| t.name.as_str());
        let given: HashSet<&str> = dense.chain(proto.sparse_initializer.iter().map(sparse_name)).collect();
        let mut problems = Problems::default();
        for input in proto.input.iter().filter(|i| !given.contains(i.name.as_str())) {
            problems.note(self.input(input));
        }
        let mut classify = classify;
        for initializer in proto.initializer {
            let name = self.name(&initializer.name);
            let read = self.initializer(initializer, classify.as_deref_mut());
            self.noted(read, &mut problems, [name]);
        }
        for sparse in proto.sparse_initializer {
            let name = sparse_name(&sparse).to_string();
            let read = self.sparse_initializer(sparse);
            self.noted(read, &mut problems, [name]);
        }
        for node in proto.node {
            let place = format!("node \"{}\" ({})", node.name, node.op_type);
            let outputs: Vec<String> = node.output.iter().map(|name| self.name(name)).collect();
            let read = self.node(node, &declared).context(|| place);
            self.noted(read, &mut problems, outputs);
        }
        for output in proto.output {
            problems.note(self.output(output));
        }
        problems.all()
    }
    /// Notes a problem; what should have been made stands for itself from now on, so that its readers are no further problems.
    fn noted(&mut self, read: Result<()>, problems: &mut Problems, made: impl IntoIterator<Item = String>) {
        if !problems.note(read) {
            return;
        }
        for name in made.into_iter().filter(|name| !name.is_empty()) {
            let top = self.frames.len() - 1;
            if !self.frames[top].names.contains_key(&name) {
                let value = self.top().add_named_const(&name, Tensor::scalar(0f32));
                self.frames[top].names.insert(name, value);
            }
        }
    }
    fn input(&mut self, info: &ValueInfoProto) -> Result<()> {
        ensure!(!info.name.is_empty(), "a graph input has no name");
        let name = self.name(&info.name);
        let ty = info.r#type.as_ref().and_then(read_type);
        let graph = self.top();
        let value = graph.add_input(&name, Type::unranked(crate::DType::F32));
        graph.set_ty(value, ty);
        self.define(name, value)
    }
    fn initializer(&mut self, proto: TensorProto, classify: Option<&mut Classify>) -> Result<()> {
        let name = self.name(&proto.name);
        ensure!(!name.is_empty(), "an initializer has no name");
        let tensor = read_tensor(proto, self.files)?;
        let leaf = match classify {
            Some(classify) => classify(&name, &tensor)?,
            None => Leaf::Const,
        };
        let value = match leaf {
            Leaf::Const => self.top().add_named_const(&name, tensor),
            Leaf::Param => self.top().add_param(&name, Type::of(&tensor)),
            Leaf::Absent => return Ok(()),
        };
        self.define(name, value)
    }
    /// A sparse initializer becomes the operator `Constant` with the same content.
    fn sparse_initializer(&mut self, sparse: SparseTensorProto) -> Result<()> {
        let name = self.name(sparse_name(&sparse));
        ensure!(!name.is_empty(), "a sparse initializer has no name");
        let attribute = AttributeProto {
            name: "sparse_value".to_string(),
            r#type: attribute_type::SPARSE_TENSOR,
            sparse_tensor: Some(Box::new(sparse)),
            ..AttributeProto::default()
        };
        let node = NodeProto {
            op_type: "Constant".to_string(),
            output: vec![name.clone()],
            attribute: vec![attribute],
            ..NodeProto::default()
        };
        self.node(node, &HashMap::new()).context(|| format!("sparse initializer \"{name}\""))
    }
    fn node(&mut self, mut proto: NodeProto, declared: &HashMap<String, Type>) -> Result<()> {
        ensure!(!proto.op_type.is_empty(), "the node has no operator");
        let depth = self.frames.len() - 1;
        self.frames[depth].captured.clear();
        let extra = node_extra(&mut proto);
        let inputs: Vec<Option<Value>> =
            proto.input.iter().map(|name| self.read_name(depth, name)).collect::<Result<_>>()?;
        let attrs = self.attributes(proto.attribute)?;
        let op = Operator { domain: domain(proto.domain), name: proto.op_type, overload: proto.overload, attrs };
        let slot = |name: &String| {
            let ty = declared.get(name).cloned();
            OutputSlot { name: self.name(name), ty }
        };
        let outputs: Vec<OutputSlot> = proto.output.iter().map(slot).collect();
        let graph = self.top();
        let id = graph.add_node(&proto.name, op, &inputs, outputs);
        let node = graph.node_mut(id);
        (node.doc, node.meta, node.extra) = (proto.doc_string, proto::pairs(proto.metadata_props), extra);
        self.define_outputs(id)?;
        let frame = &mut self.frames[depth];
        for (_, value) in std::mem::take(&mut frame.captured) {
            frame.graph.push_capture(id, value);
        }
        Ok(())
    }
    fn define_outputs(&mut self, id: NodeId) -> Result<()> {
        let graph = self.top();
        let made: Vec<(String, Value)> = graph
            .node_outputs(id)
            .map(|v| (graph.value_name(v).to_string(), v))
            .filter(|(n, _)| !n.is_empty())
            .collect();
        made.into_iter().try_for_each(|(name, value)| self.define(name, value))
    }
    /// An input of a node; `""` is an optional one left out.
    fn read_name(&mut self, depth: usize, name: &str) -> Result<Option<Value>> {
        if name.is_empty() {
            return Ok(None);
        }
        let name = self.name(name);
        match self.resolve(depth, &name) {
            Some(value) => Ok(Some(value)),
            None => bail!("reads \"{name}\", which nothing before it makes (nodes must stand in topological order)"),
        }
    }
    /// The value of a name as the frame of this depth sees it.
    fn resolve(&mut self, depth: usize, name: &str) -> Option<Value> {
        if let Some(value) = self.frames[depth].names.get(name) {
            return Some(*value);
        }
        let outside = self.resolve(depth.checked_sub(1)?, name)?;
        let parent = &mut self.frames[depth - 1];
        let ty = parent.graph.ty(outside).cloned();
        let (index, _) = parent.captured.insert_full(name.to_string(), outside);
        let frame = &mut self.frames[depth];
        let value = frame.graph.add_capture(index, name, ty);
        frame.names.insert(name.to_string(), value);
        Some(value)
    }
    fn output(&mut self, info: ValueInfoProto) -> Result<()> {
        let depth = self.frames.len() - 1;
        let name = self.name(&info.name);
        let Some(value) = self.resolve(depth, &name) else {
            bail!("the graph output \"{name}\" is made by no node");
        };
        self.top().outputs.push(GraphOutput { name, value });
        Ok(())
    }
    fn attributes(&mut self, protos: Vec<AttributeProto>) -> Result<Attributes> {
        let mut attrs = Attributes::new();
        for proto in protos {
            let name = proto.name.clone();
            let value = self.attribute(proto).context(|| format!("attribute `{name}`"))?;
            ensure!(attrs.0.insert(name.clone(), value).is_none(), "the attribute `{name}` stands twice");
        }
        Ok(attrs)
    }
    /// Reads one attribute.
    pub(super) fn attribute(&mut self, proto: AttributeProto) -> Result<Attribute> {
        use attribute_type as code;
        ensure!(!proto.name.is_empty(), "it has no name");
        let kind = if proto.r#type == 0 { guess_type(&proto) } else { proto.r#type };
        if !proto.ref_attr_name.is_empty() {
            return Ok(Attribute::Reference(proto.ref_attr_name, kind));
        }
        let files = self.files;
        Ok(match kind {
            code::FLOAT => Attribute::Float(proto.f.unwrap_or(0.0)),
            code::INT => Attribute::Int(proto.i.unwrap_or(0)),
            code::STRING => Attribute::String(proto.s.unwrap_or_default().to_vec()),
            code::FLOATS => Attribute::Floats(proto.floats),
            code::INTS => Attribute::Ints(proto.ints),
            code::STRINGS => Attribute::Strings(proto.strings.iter().map(|s| s.to_vec()).collect()),
            code::TENSOR => match proto.t {
                Some(tensor) => Attribute::Tensor(read_tensor(*tensor, files)?),
                None => bail!("it is a tensor, but holds none"),
            },
            code::TENSORS => {
                Attribute::Tensors(proto.tensors.into_iter().map(|t| read_tensor(t, files)).collect::<Result<_>>()?)
            }
            code::GRAPH => match proto.g {
                Some(graph) => Attribute::Graph(Box::new(self.graph(*graph, None)?)),
                None => bail!("it is a graph, but holds none"),
            },
            code::GRAPHS => {
                Attribute::Graphs(proto.graphs.into_iter().map(|g| self.graph(g, None)).collect::<Result<_>>()?)
            }
            code::TYPE_PROTO => match proto.tp.as_deref().and_then(read_type) {
                Some(ty) => Attribute::Type(ty),
                None => bail!("it is a type, but says nothing"),
            },
            code::TYPE_PROTOS => match proto.type_protos.iter().map(read_type).collect() {
                Some(types) => Attribute::Types(types),
                None => bail!("one of its types says nothing"),
            },
            code::SPARSE_TENSOR | code::SPARSE_TENSORS => Attribute::Opaque(self.sparse(proto)?),
            other => bail!("its type {other} is not known"),
        })
    }
    /// Checks the tensors of sparse tensors, and fetches them if they are external; the rest stays as it is.
    fn sparse(&mut self, proto: AttributeProto) -> Result<Bytes> {
        let part = |tensor: Option<Box<TensorProto>>| match tensor {
            Some(tensor) => {
                let name = tensor.name.clone();
                Ok(Some(Box::new(write_tensor(&name, &read_tensor(*tensor, self.files)?))))
            }
            None => bail!("a sparse tensor lacks its values or indices"),
        };
        let whole = |s: SparseTensorProto| -> Result<SparseTensorProto> {
            Ok(SparseTensorProto { values: part(s.values)?, indices: part(s.indices)?, dims: s.dims })
        };
        let single = proto.sparse_tensor.map(|s| whole(*s)).transpose()?;
        let sparse_tensors = proto.sparse_tensors.into_iter().map(whole).collect::<Result<_>>()?;
        let (name, r#type) = (proto.name, proto.r#type);
        let sparse_tensor = single.map(Box::new);
        let kept = AttributeProto { name, r#type, sparse_tensor, sparse_tensors, ..AttributeProto::default() };
        Ok(Bytes::from(kept.encode_to_vec()))
    }
    fn top(&mut self) -> &mut Graph {
        // A frame is pushed before any part of a graph is read.
        let top = self.frames.len() - 1;
        &mut self.frames[top].graph
    }
    fn name(&self, name: &str) -> String {
        self.renamed.get(name).map_or_else(|| name.to_string(), String::clone)
    }
    fn define(&mut self, name: String, value: Value) -> Result<()> {
        let top = self.frames.len() - 1;
        match self.frames[top].names.insert(name.clone(), value) {
            None => Ok(()),
            Some(_) => bail!("two values are named \"{name}\""),
        }
    }
}

/// What is wrong with a graph: the first of it, and how much more there is.
#[derive(Default)]
struct Problems {
    errors: Vec<Error>,
    more: usize,
}

impl Problems {
    /// So many are told.
    const MOST: usize = 20;

    /// Returns whether it was a problem.
    fn note(&mut self, result: Result<()>) -> bool {
        match result {
            Ok(()) => return false,
            Err(_) if self.errors.len() >= Problems::MOST => self.more += 1,
            Err(error) => self.errors.push(error),
        }
        true
    }
    fn all(mut self) -> Result<()> {
        if self.more > 0 {
            self.errors.push(Error::msg(format!("and {} more problems", self.more)));
        }
        Error::all(self.errors)
    }
}

/// `ai.onnx` is another name of the domain `""`.
pub(super) fn domain(name: String) -> String {
    if name == "ai.onnx" { String::new() } else { name }
}

fn declared_types(value_info: &[ValueInfoProto], outputs: &[ValueInfoProto]) -> HashMap<String, Type> {
    let all = value_info.iter().chain(outputs);
    all.filter_map(|info| Some((info.name.clone(), read_type(info.r#type.as_ref()?)?))).collect()
}

/// Old files leave the type of an attribute out; then the field that is there tells.
fn guess_type(proto: &AttributeProto) -> i32 {
    use attribute_type as code;
    let fields = [
        (proto.f.is_some(), code::FLOAT),
        (proto.i.is_some(), code::INT),
        (proto.s.is_some(), code::STRING),
        (proto.t.is_some(), code::TENSOR),
        (proto.g.is_some(), code::GRAPH),
        (!proto.floats.is_empty(), code::FLOATS),
        (!proto.ints.is_empty(), code::INTS),
        (!proto.strings.is_empty(), code::STRINGS),
        (!proto.tensors.is_empty(), code::TENSORS),
        (!proto.graphs.is_empty(), code::GRAPHS),
        (proto.tp.is_some(), code::TYPE_PROTO),
    ];
    fields.iter().find(|(there, _)| *there).map_or(0, |(_, code)| *code)
}

/// Takes out of a graph what [`Graph`] has no field for.
fn graph_extra(proto: &mut GraphProto) -> Bytes {
    let given: HashSet<&str> = proto.initializer.iter().map(|t| t.name.as_str()).collect();
    let overridable = proto.input.iter().filter(|i| given.contains(i.name.as_str())).cloned().collect();
    let made: HashSet<&str> = proto.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let inner = proto.value_info.iter().filter(|info| made.contains(info.name.as_str()));
    let inputs = proto.input.iter().filter(|info| !given.contains(info.name.as_str()));
    let mut seen = HashSet::new();
    let values = inputs.chain(&proto.output).chain(inner).filter(|info| seen.insert(info.name.as_str()));
    let value_info = values.filter_map(value_extra).collect();
    let extra = GraphProto {
        quantization_annotation: std::mem::take(&mut proto.quantization_annotation),
        input: overridable,
        value_info,
        initializer: proto.initializer.iter().filter_map(tensor_extra).collect(),
        ..GraphProto::default()
    };
    Bytes::from(extra.encode_to_vec())
}

fn value_extra(info: &ValueInfoProto) -> Option<ValueInfoProto> {
    let denoted = info.r#type.as_ref().is_some_and(has_denotation);
    let plain = info.doc_string.is_empty() && info.metadata_props.is_empty() && !denoted;
    let r#type = info.r#type.clone().filter(|_| denoted);
    (!plain).then(|| ValueInfoProto { r#type, ..info.clone() })
}

fn tensor_extra(tensor: &TensorProto) -> Option<TensorProto> {
    let plain = tensor.doc_string.is_empty() && tensor.metadata_props.is_empty();
    (!plain).then(|| TensorProto {
        name: tensor.name.clone(),
        doc_string: tensor.doc_string.clone(),
        metadata_props: tensor.metadata_props.clone(),
        ..TensorProto::default()
    })
}

/// Takes out of a node what [`crate::Node`] has no field for: device configurations, the documentation of attributes,
/// and the names and documentation of tensors in them.
fn node_extra(proto: &mut NodeProto) -> Bytes {
    let extra = NodeProto {
        device_configurations: std::mem::take(&mut proto.device_configurations),
        attribute: proto.attribute.iter().filter_map(attribute_extra).collect(),
        ..NodeProto::default()
    };
    Bytes::from(extra.encode_to_vec())
}

fn attribute_extra(attribute: &AttributeProto) -> Option<AttributeProto> {
    let named = |t: &&TensorProto| !t.name.is_empty() || tensor_extra(t).is_some();
    let tensor = attribute.t.as_deref().filter(named).map(|t| TensorProto {
        name: t.name.clone(),
        doc_string: t.doc_string.clone(),
        metadata_props: t.metadata_props.clone(),
        ..TensorProto::default()
    });
    let plain = attribute.doc_string.is_empty() && tensor.is_none();
    (!plain).then(|| AttributeProto {
        name: attribute.name.clone(),
        doc_string: attribute.doc_string.clone(),
        t: tensor.map(Box::new),
        ..AttributeProto::default()
    })
}
