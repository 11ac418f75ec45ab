//! [`Graph`] → `GraphProto`.
//!
//! Edges become names again. Every value gets one name: a parameter its own, a graph output its public one, the others
//! the one they have, made unique where passes left a name twice. A public name that cannot be the value's own
//! (an input, a constant, a value with two public names) is made by an `Identity` at the end. Nodes stand in
//! topological order, ties broken by age; initializers in the order of their nodes; every value of a known type
//! has an entry in `value_info`.

use super::proto::{self, *};
use super::tensor::write_tensor;
use super::types::{read_type, write_type};
use crate::attr::Attribute;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::graph::{Graph, Node, NodeId, NodeKind, Operator, Value};
use crate::model::Parameter;
use crate::tensor::Tensor;
use crate::types::Type;
use crate::{bail, ensure};
use bytes::Bytes;
use indexmap::IndexMap;
use prost::Message;
use std::collections::{HashMap, HashSet};

/// Where a graph stands in the file.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Place {
    /// The inference graph: its parameters are written as initializers.
    Main,
    /// A program: its parameters are initializers of the inference graph.
    Program,
    /// A subgraph: reads what is around it, with captures.
    Inner,
    /// The body of a function: no initializers.
    Function,
}

/// What a program can see of the inference graph.
#[derive(Default)]
pub(super) struct Outside {
    /// All names that it must not define.
    pub names: HashSet<String>,
    /// Constants.
    pub constants: HashMap<String, Tensor>,
    /// Inputs, in order.
    pub inputs: Vec<(String, Option<Type>)>,
}

/// Writes graphs; see the [module](self).
pub(super) struct GraphExporter<'a> {
    /// The parameters by name.
    pub params: &'a IndexMap<String, Parameter>,
    /// For a program, the inference graph around it, and the program's name.
    pub outside: Option<(&'a Outside, &'a str)>,
    /// The domains of the operators that were written.
    pub domains: HashSet<String>,
}

/// One graph that is being written.
struct Sheet<'g> {
    graph: &'g Graph,
    place: Place,
    /// How many of the inputs, from the first, are those of the inference graph.
    inherited: usize,
    names: HashMap<Value, String>,
    taken: HashSet<String>,
    /// Public names that an `Identity` makes.
    aliases: Vec<(Value, String)>,
    out: GraphProto,
}

impl<'a> GraphExporter<'a> {
    /// Writes a graph. `captured` are the names of the values that captures stand for.
    pub(super) fn write(&mut self, graph: &Graph, place: Place, captured: &[String]) -> Result<GraphProto> {
        let order = graph.topo();
        ensure!(order.len() == graph.len(), "graph \"{}\" has a cycle", graph.name);
        let mut sheet = Sheet::new(graph, place, captured);
        self.name_leaves(&mut sheet, captured)?;
        self.name_outputs(&mut sheet)?;
        self.name_values(&mut sheet, &order);
        self.write_ends(&mut sheet);
        for id in order {
            self.write_node(&mut sheet, id).context(|| graph.node(id).label())?;
        }
        sheet.write_aliases();
        if place == Place::Main {
            self.write_unread_params(&mut sheet);
        }
        self.domains.extend((!sheet.aliases.is_empty()).then(String::new));
        sheet.write_extra()?;
        Ok(sheet.out)
    }
    /// A name as it can stand in this place: one that the inference graph has too gets the program's in front.
    pub(super) fn outside_name(&self, name: &str) -> String {
        match self.outside {
            Some((outside, program)) if outside.names.contains(name) => format!("{program}/{name}"),
            _ => name.to_string(),
        }
    }
    fn name_leaves(&self, sheet: &mut Sheet, captured: &[String]) -> Result<()> {
        let graph = sheet.graph;
        sheet.inherited = self.inherited_inputs(sheet);
        for (i, value) in graph.inputs().enumerate() {
            let name = graph.value_name(value);
            let name = if i < sheet.inherited { name.to_string() } else { self.outside_name(name) };
            ensure!(sheet.taken.insert(name.clone()), "two inputs are named \"{name}\"");
            sheet.names.insert(value, name);
        }
        for id in graph.node_ids() {
            let value = Value { node: id, slot: 0 };
            let name = match &graph.node(id).kind {
                NodeKind::Param(name) => name.clone(),
                NodeKind::Capture(index) => match captured.get(*index) {
                    Some(name) => name.clone(),
                    None => bail!("graph \"{}\" has no capture {index}", graph.name),
                },
                NodeKind::Const(tensor) if self.is_inherited_constant(sheet, value, tensor) => {
                    graph.value_name(value).to_string()
                }
                _ => continue,
            };
            sheet.taken.insert(name.clone());
            sheet.names.insert(value, name);
        }
        Ok(())
    }
    /// The inputs of a program that the inference graph has, in the same order and of the same type.
    fn inherited_inputs(&self, sheet: &Sheet) -> usize {
        let (Some((outside, _)), Place::Program) = (self.outside, sheet.place) else { return 0 };
        let graph = sheet.graph;
        let mut inherited = 0;
        for (name, ty) in &outside.inputs {
            let same =
                |v: &Value| graph.value_name(*v) == name && graph.ty(*v) == ty.as_ref() && graph.use_count(*v) > 0;
            inherited += graph.inputs().nth(inherited).filter(same).is_some() as usize;
        }
        inherited
    }
    fn is_inherited_constant(&self, sheet: &Sheet, value: Value, tensor: &Tensor) -> bool {
        let (Some((outside, _)), Place::Program) = (self.outside, sheet.place) else { return false };
        let theirs = outside.constants.get(sheet.graph.value_name(value));
        theirs == Some(tensor) && sheet.graph.use_count(value) > 0
    }
    /// Gives the graph's outputs their public names.
    fn name_outputs(&self, sheet: &mut Sheet) -> Result<()> {
        let graph = sheet.graph;
        for output in &graph.outputs {
            let wished = self.outside_name(&output.name);
            let name = match sheet.can_be_named(output.value, &wished) {
                true => wished,
                false => sheet.alias(output.value, wished)?,
            };
            sheet.out.output.push(value_info(&name, graph.ty(output.value)));
        }
        Ok(())
    }
    fn name_values(&self, sheet: &mut Sheet, order: &[NodeId]) {
        for value in order.iter().flat_map(|&id| sheet.graph.node_outputs(id)) {
            let own = sheet.graph.value_name(value);
            if sheet.names.contains_key(&value) || (own.is_empty() && sheet.graph.use_count(value) == 0) {
                continue;
            }
            let wished = self.outside_name(if own.is_empty() { "value" } else { own });
            let name = sheet.fresh(&wished);
            sheet.names.insert(value, name);
        }
    }
    /// The inputs, and the entries of `value_info`.
    fn write_ends(&self, sheet: &mut Sheet) {
        let graph = sheet.graph;
        for value in graph.inputs().skip(sheet.inherited) {
            let info = value_info(sheet.name(value), graph.ty(value));
            sheet.out.input.push(info);
        }
    }
    fn write_node(&mut self, sheet: &mut Sheet, id: NodeId) -> Result<()> {
        let (graph, value) = (sheet.graph, Value { node: id, slot: 0 });
        match &graph.node(id).kind {
            NodeKind::Input | NodeKind::Capture(_) => {}
            NodeKind::Const(tensor) => self.write_constant(sheet, value, tensor),
            NodeKind::Param(name) => match sheet.place {
                Place::Main => match self.params.get(name) {
                    Some(param) => sheet.out.initializer.push(write_tensor(name, &param.tensor)),
                    None => bail!("the model has no parameter \"{name}\""),
                },
                Place::Program => ensure!(self.params.contains_key(name), "the model has no parameter \"{name}\""),
                _ => bail!("parameters cannot stand in subgraphs and functions"),
            },
            NodeKind::Op(op) => self.write_operator(sheet, id, op)?,
        }
        Ok(())
    }
    /// Parameters that only programs read, or nobody.
    fn write_unread_params(&self, sheet: &mut Sheet) {
        let written: HashSet<&str> = sheet.out.initializer.iter().map(|t| t.name.as_str()).collect();
        let missing = self.params.iter().filter(|(name, _)| !written.contains(name.as_str()));
        let missing: Vec<TensorProto> = missing.map(|(name, p)| write_tensor(name, &p.tensor)).collect();
        sheet.out.initializer.extend(missing);
    }
    fn write_constant(&mut self, sheet: &mut Sheet, value: Value, tensor: &Tensor) {
        let name = sheet.name(value).to_string();
        if self.is_inherited_constant(sheet, value, tensor) {
            return;
        }
        let tensor = write_tensor(&name, tensor);
        if sheet.place != Place::Function {
            sheet.out.initializer.push(tensor);
            return;
        }
        let attribute = AttributeProto {
            name: "value".to_string(),
            r#type: attribute_type::TENSOR,
            t: Some(Box::new(tensor)),
            ..AttributeProto::default()
        };
        let (op_type, output, attribute) = ("Constant".to_string(), vec![name], vec![attribute]);
        sheet.out.node.push(NodeProto { op_type, output, attribute, ..NodeProto::default() });
    }
    fn write_operator(&mut self, sheet: &mut Sheet, id: NodeId, op: &Operator) -> Result<()> {
        let graph = sheet.graph;
        let node = graph.node(id);
        let name = |value: &Option<Value>| value.map_or(String::new(), |v| sheet.name(v).to_string());
        let inputs: Vec<String> = graph.node_inputs(id).iter().map(name).collect();
        let (formal, captured) = inputs.split_at(node.formal_inputs());
        let mut attribute = Vec::new();
        for (name, value) in &op.attrs.0 {
            attribute.push(self.attribute(name, value, captured).context(|| format!("attribute `{name}`"))?);
        }
        let output = graph.node_outputs(id).map(|v| name(&Some(v))).collect();
        for value in graph.node_outputs(id).filter(|v| !graph.is_output(*v)) {
            let (name, ty) = (sheet.name(value).to_string(), graph.ty(value));
            sheet.out.value_info.extend(ty.filter(|_| !name.is_empty()).map(|ty| value_info(&name, Some(ty))));
        }
        self.domains.insert(op.domain.clone());
        let mut proto = NodeProto {
            name: node.name.clone(),
            op_type: op.name.clone(),
            domain: op.domain.clone(),
            overload: op.overload.clone(),
            input: formal.to_vec(),
            output,
            attribute,
            doc_string: node.doc.clone(),
            metadata_props: proto::entries(&node.meta),
            ..NodeProto::default()
        };
        write_node_extra(&mut proto, node)?;
        sheet.out.node.push(proto);
        Ok(())
    }
    /// Writes one attribute. `captured` are the names of the captures of its node.
    pub(super) fn attribute(&mut self, name: &str, value: &Attribute, captured: &[String]) -> Result<AttributeProto> {
        use attribute_type as code;
        let mut proto = AttributeProto { name: name.to_string(), ..AttributeProto::default() };
        let text = |s: &Vec<u8>| Bytes::copy_from_slice(s);
        proto.r#type = match value {
            Attribute::Float(_) => code::FLOAT,
            Attribute::Int(_) => code::INT,
            Attribute::String(_) => code::STRING,
            Attribute::Tensor(_) => code::TENSOR,
            Attribute::Graph(_) => code::GRAPH,
            Attribute::Floats(_) => code::FLOATS,
            Attribute::Ints(_) => code::INTS,
            Attribute::Strings(_) => code::STRINGS,
            Attribute::Tensors(_) => code::TENSORS,
            Attribute::Graphs(_) => code::GRAPHS,
            Attribute::Type(_) => code::TYPE_PROTO,
            Attribute::Types(_) => code::TYPE_PROTOS,
            Attribute::Reference(_, kind) => *kind,
            Attribute::Opaque(bytes) => return opaque(name, bytes),
        };
        match value {
            Attribute::Float(x) => proto.f = Some(*x),
            Attribute::Int(x) => proto.i = Some(*x),
            Attribute::String(x) => proto.s = Some(text(x)),
            Attribute::Floats(x) => proto.floats = x.clone(),
            Attribute::Ints(x) => proto.ints = x.clone(),
            Attribute::Strings(x) => proto.strings = x.iter().map(text).collect(),
            Attribute::Tensor(x) => proto.t = Some(Box::new(write_tensor("", x))),
            Attribute::Tensors(x) => proto.tensors = x.iter().map(|t| write_tensor("", t)).collect(),
            Attribute::Type(x) => proto.tp = Some(Box::new(write_type(x))),
            Attribute::Types(x) => proto.type_protos = x.iter().map(write_type).collect(),
            Attribute::Graph(x) => proto.g = Some(Box::new(self.write(x, Place::Inner, captured)?)),
            Attribute::Graphs(x) => {
                proto.graphs = x.iter().map(|g| self.write(g, Place::Inner, captured)).collect::<Result<_>>()?;
            }
            Attribute::Reference(name, _) => proto.ref_attr_name = name.clone(),
            Attribute::Opaque(_) => {}
        }
        Ok(proto)
    }
}

impl<'g> Sheet<'g> {
    fn new(graph: &'g Graph, place: Place, captured: &[String]) -> Sheet<'g> {
        let out = GraphProto {
            name: graph.name.clone(),
            doc_string: graph.doc.clone(),
            metadata_props: proto::entries(&graph.meta),
            ..GraphProto::default()
        };
        let taken = captured.iter().cloned().collect();
        Sheet { graph, place, inherited: 0, names: HashMap::new(), taken, aliases: Vec::new(), out }
    }
    /// The name of a value; empty for an optional output left out.
    fn name(&self, value: Value) -> &str {
        self.names.get(&value).map_or("", String::as_str)
    }
    /// A name like this one that is not taken; it is from now on.
    fn fresh(&mut self, wished: &str) -> String {
        if self.taken.insert(wished.to_string()) {
            return wished.to_string();
        }
        let mut i = 0;
        loop {
            i += 1;
            let name = format!("{wished}_{i}");
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
    /// Whether a value can have this name, the public one of an output; then it has it from now on.
    fn can_be_named(&mut self, value: Value, name: &str) -> bool {
        let node = self.graph.node(value.node);
        match self.names.get(&value) {
            // A subgraph must not return a value from outside as it is.
            Some(own) => own == name && !matches!(node.kind, NodeKind::Capture(_)),
            None => {
                let free = node.op().is_some() || self.graph.value_name(value) == name;
                let named = free && self.taken.insert(name.to_string());
                if named {
                    self.names.insert(value, name.to_string());
                }
                named
            }
        }
    }
    /// Lets an `Identity` make the public name of an output. The outputs of a subgraph are told apart by their places,
    /// so there another name will do.
    fn alias(&mut self, value: Value, wished: String) -> Result<String> {
        let name = match self.place {
            Place::Inner => self.fresh(&wished),
            _ if self.taken.insert(wished.clone()) => wished,
            _ => bail!("the name of the output \"{wished}\" is taken"),
        };
        self.aliases.push((value, name.clone()));
        Ok(name)
    }
    fn write_aliases(&mut self) {
        for (value, output) in &self.aliases {
            let input = vec![self.name(*value).to_string()];
            let (op_type, output) = ("Identity".to_string(), vec![output.clone()]);
            self.out.node.push(NodeProto { op_type, input, output, ..NodeProto::default() });
        }
    }
    /// Puts back what [`Graph::extra`] keeps, as far as it is about something that is still there.
    fn write_extra(&mut self) -> Result<()> {
        if self.graph.extra.is_empty() {
            return Ok(());
        }
        let extra = GraphProto::decode(self.graph.extra.clone()).map_err(damaged)?;
        let made: HashSet<String> = self.names.values().cloned().collect();
        for info in extra.value_info {
            put_back_value(&mut self.out, info, &made);
        }
        let mut initializers: IndexMap<String, &mut TensorProto> =
            self.out.initializer.iter_mut().map(|t| (t.name.clone(), t)).collect();
        for tensor in extra.initializer {
            if let Some(there) = initializers.get_mut(&tensor.name) {
                (there.doc_string, there.metadata_props) = (tensor.doc_string, tensor.metadata_props);
            }
        }
        let overridable =
            extra.input.into_iter().filter_map(|info| initializers.get(&info.name).map(|t| up_to_date(info, t)));
        self.out.input.extend(overridable.collect::<Vec<_>>());
        let annotations = extra.quantization_annotation.into_iter();
        let about = |a: &TensorAnnotation| a.tensor_name.as_ref().is_none_or(|name| made.contains(name));
        self.out.quantization_annotation.extend(annotations.filter(about));
        Ok(())
    }
}

fn put_back_value(out: &mut GraphProto, info: ValueInfoProto, made: &HashSet<String>) {
    let mut all = out.input.iter_mut().chain(&mut out.output).chain(&mut out.value_info);
    match all.find(|there| there.name == info.name) {
        Some(there) => {
            (there.doc_string, there.metadata_props) = (info.doc_string, info.metadata_props);
            // A type with denotations counts as long as it says the same.
            if info.r#type.as_ref().and_then(read_type) == there.r#type.as_ref().and_then(read_type) {
                there.r#type = info.r#type.or(there.r#type.take());
            }
        }
        None if made.contains(&info.name) => out.value_info.push(info),
        None => {}
    }
}

/// What the file said of an initializer, with the type that it has now.
fn up_to_date(info: ValueInfoProto, tensor: &TensorProto) -> ValueInfoProto {
    let Some(dtype) = DType::from_onnx_code(tensor.data_type) else { return info };
    let ty = Type::tensor(dtype, tensor.dims.iter().copied());
    let outdated = info.r#type.as_ref().and_then(read_type).is_some_and(|old| old.merge(&ty).is_none());
    if outdated { ValueInfoProto { r#type: Some(write_type(&ty)), ..info } } else { info }
}

fn value_info(name: &str, ty: Option<&Type>) -> ValueInfoProto {
    ValueInfoProto { name: name.to_string(), r#type: ty.map(write_type), ..ValueInfoProto::default() }
}

fn write_node_extra(proto: &mut NodeProto, node: &Node) -> Result<()> {
    if node.extra.is_empty() {
        return Ok(());
    }
    let extra = NodeProto::decode(node.extra.clone()).map_err(damaged)?;
    proto.device_configurations = extra.device_configurations;
    for kept in extra.attribute {
        let Some(there) = proto.attribute.iter_mut().find(|a| a.name == kept.name) else { continue };
        there.doc_string = kept.doc_string;
        if let (Some(tensor), Some(kept)) = (&mut there.t, kept.t) {
            tensor.name = kept.name;
            (tensor.doc_string, tensor.metadata_props) = (kept.doc_string, kept.metadata_props);
        }
    }
    Ok(())
}

fn opaque(name: &str, bytes: &Bytes) -> Result<AttributeProto> {
    let proto = AttributeProto::decode(bytes.clone()).map_err(damaged)?;
    Ok(AttributeProto { name: name.to_string(), ..proto })
}

/// Only a pass can put such bytes there.
pub(super) fn damaged(e: prost::DecodeError) -> Error {
    Error::msg(format!("bytes that were carried through are damaged: {e}"))
}
