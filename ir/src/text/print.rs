//! Printing; the form is described in the [parent](super).

use super::literal::{self, name, quoted};
use crate::Dim;
use crate::attr::{Attribute, Attributes};
use crate::graph::{Graph, Node, NodeId, NodeKind, OutputSlot, Value};
use crate::model::{Function, Model, Program};
use crate::types::Type;
use indexmap::IndexMap;
use std::fmt::Write;

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrintOptions {
    /// Tensors with more elements are elided.
    pub max_elements: usize,
}

impl Default for PrintOptions {
    /// Everything.
    fn default() -> PrintOptions {
        PrintOptions { max_elements: usize::MAX }
    }
}

/// A model as text.
pub fn print(model: &Model, options: &PrintOptions) -> String {
    let mut printer = Printer { out: String::new(), max: options.max_elements };
    printer.header(model);
    printer.params(model);
    printer.graph(&model.graph, 0);
    printer.out.push('\n');
    for (name, program) in &model.programs {
        printer.program(name, program);
    }
    for function in &model.functions {
        printer.function(function);
    }
    printer.out
}

struct Printer {
    out: String,
    max: usize,
}

impl Printer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }
    fn line(&mut self, depth: usize) {
        self.out.push('\n');
        (0..depth).for_each(|_| self.out.push_str("  "));
    }

    /// What differs from a new model; the opsets always.
    fn header(&mut self, model: &Model) {
        let usual = Model::new(Graph::new(""));
        let mut fields = vec![format!("ir_version: {}", model.ir_version)];
        fields.push(format!("opset_import: {}", opsets(&model.opsets)));
        for (key, value, usual) in [
            ("producer_name", &model.producer_name, &usual.producer_name),
            ("producer_version", &model.producer_version, &usual.producer_version),
            ("domain", &model.domain, &usual.domain),
            ("doc_string", &model.doc, &usual.doc),
        ] {
            if value != usual {
                fields.push(format!("{key}: {}", quoted(value.as_bytes())));
            }
        }
        if model.model_version != 0 {
            fields.push(format!("model_version: {}", model.model_version));
        }
        if !model.meta.is_empty() {
            fields.push(format!("metadata_props: {}", pairs(&model.meta)));
        }
        let _ = writeln!(self.out, "<{}>", fields.join(", "));
    }

    fn params(&mut self, model: &Model) {
        if model.params.is_empty() {
            return;
        }
        self.put("parameters <");
        for (i, (key, param)) in model.params.iter().enumerate() {
            self.put(if i > 0 { "," } else { "" });
            self.line(1);
            let value = literal::tensor(&param.tensor, self.max);
            let _ = write!(self.out, "{} {} {} = {value}", param.role.name(), ty(&Type::of(&param.tensor)), name(key));
        }
        self.put("\n>\n");
    }

    fn program(&mut self, key: &str, program: &Program) {
        self.put("program ");
        let mut graph = program.graph.clone();
        graph.name = key.to_string();
        self.graph(&graph, 0);
        if !program.bindings.is_empty() {
            let binding = |b: &crate::Binding| format!("{}: {}", name(&b.output), name(&b.param));
            let list: Vec<String> = program.bindings.iter().map(binding).collect();
            let _ = write!(self.out, " binds [{}]", list.join(", "));
        }
        self.put("\n");
    }

    fn function(&mut self, function: &Function) {
        let _ = write!(self.out, "function {}::{}", name(&function.domain), name(&function.name));
        if !function.overload.is_empty() {
            let _ = write!(self.out, ":{}", name(&function.overload));
        }
        let names: Vec<String> = function.attributes.iter().map(|a| name(a)).collect();
        let _ = write!(self.out, " <opset_import: {}, attributes: [{}]", opsets(&function.opsets), names.join(", "));
        self.put(", defaults: ");
        self.attributes(&function.defaults, 0);
        self.put("> ");
        self.graph(&function.graph, 0);
        self.put("\n");
    }

    fn graph(&mut self, graph: &Graph, depth: usize) {
        let order = graph.topo();
        let implicit = implicit_inputs(graph, &order);
        let inputs: Vec<String> = graph.inputs().map(|v| typed(graph.ty(v), graph.value_name(v))).collect();
        let _ = write!(self.out, "{} ({}) => ({})", name(&graph.name), inputs.join(", "), outputs(graph));
        self.suffix(&graph.meta, &graph.doc);
        let leading = order[implicit..].iter().take_while(|&&id| graph.node(id).op().is_none()).count();
        let (leaves, body) = order[implicit..].split_at(leading);
        if !leaves.is_empty() {
            self.put(" <");
            for (i, &id) in leaves.iter().enumerate() {
                self.put(if i > 0 { "," } else { "" });
                self.line(depth + 1);
                self.statement(graph, id, depth + 1);
            }
            self.line(depth);
            self.put(">");
        }
        self.put(" {");
        for &id in body {
            self.line(depth + 1);
            self.statement(graph, id, depth + 1);
        }
        if !body.is_empty() {
            self.line(depth);
        }
        self.put("}");
    }

    fn statement(&mut self, graph: &Graph, id: NodeId, depth: usize) {
        let node = graph.node(id);
        if !node.name.is_empty() {
            let _ = write!(self.out, "[{}] ", name(&node.name));
        }
        let slots: Vec<String> = node.outputs.iter().map(|o: &OutputSlot| typed(o.ty.as_ref(), &o.name)).collect();
        let _ = write!(self.out, "{} = ", slots.join(", "));
        self.right_side(graph, id, node, depth);
        self.suffix(&node.meta, &node.doc);
    }

    fn right_side(&mut self, graph: &Graph, id: NodeId, node: &Node, depth: usize) {
        let own_name = node.outputs.first().map_or("", |o| &o.name);
        match &node.kind {
            NodeKind::Input => self.put("input"),
            NodeKind::Capture(index) => self.put(&format!("capture {index}")),
            NodeKind::Param(param) if param == own_name => self.put("param"),
            NodeKind::Param(param) => self.put(&format!("param({})", name(param))),
            NodeKind::Const(tensor) => {
                let actual = Type::of(tensor);
                if node.outputs.first().and_then(|o| o.ty.as_ref()) != Some(&actual) {
                    self.put(&format!("const {} ", ty(&actual)));
                }
                self.put(&literal::tensor(tensor, self.max));
            }
            NodeKind::Op(op) => {
                if !op.domain.is_empty() {
                    self.put(&format!("{}::", name(&op.domain)));
                }
                self.put(&name(&op.name));
                if !op.overload.is_empty() {
                    self.put(&format!(":{}", name(&op.overload)));
                }
                self.put(" ");
                if !op.attrs.0.is_empty() {
                    self.attributes(&op.attrs, depth);
                    self.put(" ");
                }
                let inputs = graph.node_inputs(id);
                let (formal, captures) = inputs.split_at(node.formal_inputs().min(inputs.len()));
                let bar = if captures.is_empty() { "" } else { " | " };
                self.put(&format!("({}{bar}{})", value_names(graph, formal), value_names(graph, captures)));
            }
        }
    }

    fn attributes(&mut self, attrs: &Attributes, depth: usize) {
        self.put("<");
        for (i, (key, attr)) in attrs.0.iter().enumerate() {
            self.put(if i > 0 { ", " } else { "" });
            self.put(&name(key));
            self.attribute(attr, depth);
        }
        self.put(">");
    }

    /// From behind the attribute's name on: ` = 1`, or with its kind where the value does not show it.
    fn attribute(&mut self, attr: &Attribute, depth: usize) {
        let list = |parts: Vec<String>, kind: &str| {
            let kind = if parts.is_empty() { format!(": {kind}") } else { String::new() };
            format!("{kind} = [{}]", parts.join(", "))
        };
        let max = self.max;
        let one = |t: &crate::Tensor| format!("{} {}", ty(&Type::of(t)), literal::tensor(t, max));
        let text = match attr {
            Attribute::Int(v) => format!(" = {v}"),
            Attribute::Float(v) => format!(" = {}", literal::float(*v)),
            Attribute::String(v) => format!(" = {}", quoted(v)),
            Attribute::Ints(v) => list(v.iter().map(i64::to_string).collect(), "ints"),
            Attribute::Floats(v) => list(v.iter().map(|f| literal::float(*f)).collect(), "floats"),
            Attribute::Strings(v) => list(v.iter().map(|s| quoted(s)).collect(), "strings"),
            Attribute::Tensor(t) => format!(": tensor = {}", one(t)),
            Attribute::Tensors(v) => format!(": tensors = [{}]", v.iter().map(one).collect::<Vec<_>>().join(", ")),
            Attribute::Type(t) => format!(": type_proto = {}", ty(t)),
            Attribute::Types(v) => format!(": type_protos = [{}]", v.iter().map(ty).collect::<Vec<_>>().join(", ")),
            Attribute::Reference(outer, code) => format!(": ref {code} = @{}", name(outer)),
            Attribute::Opaque(bytes) => format!(": opaque = {}", quoted(bytes)),
            Attribute::Graph(graph) => {
                self.put(": graph = ");
                return self.graph(graph, depth + 1);
            }
            Attribute::Graphs(graphs) => {
                self.put(": graphs = [");
                for (i, graph) in graphs.iter().enumerate() {
                    self.put(if i > 0 { ", " } else { "" });
                    self.graph(graph, depth + 1);
                }
                "]".to_string()
            }
        };
        self.put(&text);
    }

    fn suffix(&mut self, meta: &[(String, String)], doc: &str) {
        if !meta.is_empty() {
            let _ = write!(self.out, " meta {}", pairs(meta));
        }
        if !doc.is_empty() {
            let _ = write!(self.out, " doc {}", quoted(doc.as_bytes()));
        }
    }
}

/// How many of the inputs need no statement: those that come first in the graph's order, in the inputs' order, and that
/// are nothing but a name and a type.
fn implicit_inputs(graph: &Graph, order: &[NodeId]) -> usize {
    let plain = |id: NodeId| {
        let node = graph.node(id);
        node.name.is_empty() && node.meta.is_empty() && node.doc.is_empty()
    };
    graph.inputs().zip(order).take_while(|(input, id)| input.node == **id && plain(**id)).count()
}

fn outputs(graph: &Graph) -> String {
    let one = |o: &crate::GraphOutput| {
        let text = typed(graph.ty(o.value), &o.name);
        let value = graph.value_name(o.value);
        if value == o.name { text } else { format!("{text} = {}", name(value)) }
    };
    graph.outputs.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn value_names(graph: &Graph, values: &[Option<Value>]) -> String {
    let one = |v: &Option<Value>| v.map_or("\"\"".to_string(), |v| name(graph.value_name(v)));
    values.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn typed(known: Option<&Type>, value: &str) -> String {
    let value = name(value);
    known.map_or_else(|| value.clone(), |t| format!("{} {value}", ty(t)))
}

/// A type, with dimensions that are not a number or a word in quotes.
fn ty(t: &Type) -> String {
    match t {
        Type::Tensor { dtype, shape: None } => dtype.to_string(),
        Type::Tensor { dtype, shape: Some(shape) } => {
            let dim = |d: &Dim| match d {
                Dim::Symbolic(_) => name(&d.to_string()),
                _ => d.to_string(),
            };
            format!("{dtype}[{}]", shape.iter().map(dim).collect::<Vec<_>>().join(", "))
        }
        Type::Sequence(inner) => format!("seq({})", ty(inner)),
        Type::Optional(inner) => format!("optional({})", ty(inner)),
        Type::Other(bytes) => format!("other({})", quoted(bytes)),
    }
}

fn pairs(list: &[(String, String)]) -> String {
    let one = |(k, v): &(String, String)| format!("{}: {}", quoted(k.as_bytes()), quoted(v.as_bytes()));
    format!("[{}]", list.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn opsets(opsets: &IndexMap<String, i64>) -> String {
    let one = |(domain, version): (&String, &i64)| format!("{}: {version}", quoted(domain.as_bytes()));
    format!("[{}]", opsets.iter().map(one).collect::<Vec<_>>().join(", "))
}
