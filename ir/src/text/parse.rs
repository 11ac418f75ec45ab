//! Parsing; the form is described in the [parent](super). Errors say line and column.

use super::lex::{Place, Token, lex};
use super::literal;
use crate::attr::{Attribute, Attributes};
use crate::error::Result;
use crate::graph::{Graph, GraphOutput, NodeId, NodeKind, Operator, OutputSlot, Value};
use crate::model::{Binding, Function, Model, Parameter, Program, Role};
use crate::types::Type;
use crate::{DType, Dim, Tensor};
use bytes::Bytes;
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};

/// Graphs and types nest at most this deep.
const MAX_DEPTH: usize = 40;

/// Reads a model.
pub fn parse(text: &str) -> Result<Model> {
    let mut parser = Parser { tokens: lex(text)?, next: 0, depth: 0 };
    let mut model = Model::new(Graph::new(""));
    if parser.at("<") {
        parser.header(&mut model)?;
    }
    if parser.eat_word("parameters") {
        parser.params(&mut model)?;
    }
    model.graph = parser.graph()?;
    loop {
        if parser.eat_word("program") {
            let (name, program) = parser.program()?;
            model.programs.insert(name, program);
        } else if parser.eat_word("function") {
            let function = parser.function()?;
            model.functions.push(function);
        } else if *parser.peek() == Token::End {
            return Ok(model);
        } else {
            return Err(parser.unexpected("program, function or the end"));
        }
    }
}

struct Parser {
    tokens: Vec<(Place, Token)>,
    next: usize,
    depth: usize,
}

/// A name with its place, and a type if one stands before it.
struct Named {
    place: Place,
    name: String,
    ty: Option<Type>,
}

/// `[name] outputs = body meta doc`
struct Statement {
    name: String,
    outputs: Vec<Named>,
    body: Body,
    meta: Vec<(String, String)>,
    doc: String,
}

enum Body {
    Leaf(NodeKind),
    Op(Operator, Vec<Named>, Vec<Named>),
}

impl Parser {
    // ---- words ----------------------------------------------------------------------------------------------------

    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(_, token)| token)
    }
    fn place(&self) -> Place {
        self.tokens.get(self.next).or(self.tokens.last()).map_or(Place { line: 1, column: 1 }, |(place, _)| *place)
    }
    fn unexpected(&self, wanted: &str) -> crate::Error {
        let found = match self.peek() {
            Token::Word(text) | Token::Number(text) => format!("\"{text}\""),
            Token::Quoted(bytes) => literal::quoted(bytes),
            Token::Sign(sign) => format!("\"{sign}\""),
            Token::End => "the end".to_string(),
        };
        self.place().error(format!("expected {wanted}, found {found}"))
    }
    fn at(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }
    fn eat(&mut self, sign: &str) -> bool {
        let hit = self.at(sign);
        self.next += usize::from(hit);
        hit
    }
    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.eat(sign) { Ok(()) } else { Err(self.unexpected(&format!("\"{sign}\""))) }
    }
    fn at_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(w) if w == word)
    }
    fn eat_word(&mut self, word: &str) -> bool {
        let hit = self.at_word(word);
        self.next += usize::from(hit);
        hit
    }
    fn name(&mut self) -> Result<String> {
        match self.peek().clone() {
            Token::Word(word) => {
                self.next += 1;
                Ok(word)
            }
            Token::Quoted(_) => self.string(),
            _ => Err(self.unexpected("a name")),
        }
    }
    fn bytes(&mut self) -> Result<Vec<u8>> {
        match self.peek().clone() {
            Token::Quoted(bytes) => {
                self.next += 1;
                Ok(bytes)
            }
            _ => Err(self.unexpected("a string in quotes")),
        }
    }
    fn string(&mut self) -> Result<String> {
        let place = self.place();
        String::from_utf8(self.bytes()?).map_err(|_| place.error("this string must be UTF-8"))
    }
    fn int(&mut self) -> Result<i64> {
        let value = match self.peek() {
            Token::Number(text) => text.parse().ok(),
            _ => None,
        };
        let value = value.ok_or_else(|| self.unexpected("an integer"))?;
        self.next += 1;
        Ok(value)
    }
    /// Items separated by commas up to a closing sign, which is eaten.
    fn list<T>(&mut self, close: &str, mut item: impl FnMut(&mut Parser) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.eat(close) {
            if !items.is_empty() {
                self.expect(",")?;
                if self.eat(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }
    fn nested<T>(&mut self, run: impl FnOnce(&mut Parser) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(self.place().error(format!("graphs or types nest more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
    }

    // ---- the model ------------------------------------------------------------------------------------------------

    fn header(&mut self, model: &mut Model) -> Result<()> {
        self.expect("<")?;
        self.list(">", |p| {
            let place = p.place();
            let key = p.name()?;
            p.expect(":")?;
            match key.as_str() {
                "ir_version" => model.ir_version = p.int()?,
                "opset_import" => model.opsets = p.opsets()?,
                "producer_name" => model.producer_name = p.string()?,
                "producer_version" => model.producer_version = p.string()?,
                "domain" => model.domain = p.string()?,
                "doc_string" => model.doc = p.string()?,
                "model_version" => model.model_version = p.int()?,
                "metadata_props" => model.meta = p.pairs()?,
                _ => return Err(place.error(format!("the model has no field \"{key}\""))),
            }
            Ok(())
        })?;
        Ok(())
    }
    fn opsets(&mut self) -> Result<IndexMap<String, i64>> {
        self.expect("[")?;
        let entries = self.list("]", |p| {
            let domain = p.string()?;
            p.expect(":")?;
            Ok((domain, p.int()?))
        })?;
        Ok(entries.into_iter().collect())
    }
    fn pairs(&mut self) -> Result<Vec<(String, String)>> {
        self.expect("[")?;
        self.list("]", |p| {
            let key = p.string()?;
            p.expect(":")?;
            Ok((key, p.string()?))
        })
    }
    fn params(&mut self, model: &mut Model) -> Result<()> {
        self.expect("<")?;
        self.list(">", |p| {
            let place = p.place();
            let word = p.name()?;
            let role = Role::from_name(&word);
            let role = role
                .ok_or_else(|| place.error(format!("\"{word}\" is not a role: constant, frozen, trainable, state")))?;
            let ty = p.ty()?;
            let name = p.name()?;
            p.expect("=")?;
            let tensor = p.tensor_of(&ty, place)?;
            if model.params.insert(name.clone(), Parameter { tensor, role }).is_some() {
                return Err(place.error(format!("another parameter is called \"{name}\" too")));
            }
            Ok(())
        })?;
        Ok(())
    }
    fn program(&mut self) -> Result<(String, Program)> {
        let graph = self.graph()?;
        let mut bindings = Vec::new();
        if self.eat_word("binds") {
            self.expect("[")?;
            bindings = self.list("]", |p| {
                let output = p.name()?;
                p.expect(":")?;
                Ok(Binding { output, param: p.name()? })
            })?;
        }
        Ok((graph.name.clone(), Program { graph, bindings }))
    }
    fn function(&mut self) -> Result<Function> {
        let domain = self.name()?;
        self.expect("::")?;
        let name = self.name()?;
        let overload = if self.eat(":") { self.name()? } else { String::new() };
        let (mut opsets, mut attributes, mut defaults) = Default::default();
        self.expect("<")?;
        self.list(">", |p| {
            let place = p.place();
            let key = p.name()?;
            p.expect(":")?;
            match key.as_str() {
                "opset_import" => opsets = p.opsets()?,
                "attributes" => {
                    p.expect("[")?;
                    attributes = p.list("]", Parser::name)?;
                }
                "defaults" => defaults = p.attributes()?,
                _ => return Err(place.error(format!("a function has no field \"{key}\""))),
            }
            Ok(())
        })?;
        let graph = self.graph()?;
        Ok(Function { domain, name, overload, graph, attributes, defaults, opsets })
    }

    // ---- graphs ---------------------------------------------------------------------------------------------------

    fn graph(&mut self) -> Result<Graph> {
        self.nested(|p| {
            let mut graph = Graph::new(&p.name()?);
            p.expect("(")?;
            let inputs = p.list(")", Parser::named)?;
            p.expect("=>")?;
            p.expect("(")?;
            let outputs = p.list(")", |p| {
                let public = p.named()?;
                let value = if p.eat("=") { Some(p.name()?) } else { None };
                Ok((public, value))
            })?;
            (graph.meta, graph.doc) = p.suffix()?;
            let mut statements = if p.eat("<") { p.list(">", Parser::statement)? } else { Vec::new() };
            p.expect("{")?;
            while !p.eat("}") {
                statements.push(p.statement()?);
            }
            build(graph, inputs, outputs, statements)
        })
    }
    fn named(&mut self) -> Result<Named> {
        let ty = self.optional_ty()?;
        let place = self.place();
        Ok(Named { place, name: self.name()?, ty })
    }
    fn suffix(&mut self) -> Result<(Vec<(String, String)>, String)> {
        let meta = if self.eat_word("meta") { self.pairs()? } else { Vec::new() };
        let doc = if self.eat_word("doc") { self.string()? } else { String::new() };
        Ok((meta, doc))
    }
    fn statement(&mut self) -> Result<Statement> {
        let mut name = String::new();
        if self.eat("[") {
            name = self.name()?;
            self.expect("]")?;
        }
        let outputs = self.list("=", Parser::named)?;
        let body = self.body(outputs.first())?;
        let (meta, doc) = self.suffix()?;
        Ok(Statement { name, outputs, body, meta, doc })
    }
    fn body(&mut self, output: Option<&Named>) -> Result<Body> {
        let place = self.place();
        if self.eat_word("input") {
            return Ok(Body::Leaf(NodeKind::Input));
        }
        if self.eat_word("capture") {
            let index = self.int()?;
            let index = usize::try_from(index).map_err(|_| place.error("a capture has a number from 0 on"))?;
            return Ok(Body::Leaf(NodeKind::Capture(index)));
        }
        if self.eat_word("param") {
            let own = output.map(|o| o.name.clone()).unwrap_or_default();
            if !self.eat("(") {
                return Ok(Body::Leaf(NodeKind::Param(own)));
            }
            let name = self.name()?;
            self.expect(")")?;
            return Ok(Body::Leaf(NodeKind::Param(name)));
        }
        if self.eat_word("const") {
            return Ok(Body::Leaf(NodeKind::Const(self.tensor()?)));
        }
        if self.at("{") || self.at("…") || self.at_word("hex") {
            let Some(ty) = output.and_then(|o| o.ty.clone()) else {
                return Err(place.error("a constant needs its type before its name"));
            };
            return Ok(Body::Leaf(NodeKind::Const(self.tensor_of(&ty, place)?)));
        }
        self.operator()
    }
    fn operator(&mut self) -> Result<Body> {
        let mut op = Operator { name: self.name()?, ..Operator::default() };
        if self.eat("::") {
            op.domain = std::mem::replace(&mut op.name, self.name()?);
        }
        if self.eat(":") {
            op.overload = self.name()?;
        }
        if self.at("<") {
            op.attrs = self.attributes()?;
        }
        self.expect("(")?;
        let (mut inputs, mut captures, mut barred) = (Vec::new(), Vec::new(), false);
        loop {
            if self.eat(")") {
                return Ok(Body::Op(op, inputs, captures));
            } else if !barred && self.eat("|") {
                barred = true;
                continue;
            }
            let place = self.place();
            let used = Named { place, name: self.name()?, ty: None };
            if barred {
                captures.push(used)
            } else {
                inputs.push(used)
            };
            if !(self.at(")") || self.at("|")) {
                self.expect(",")?;
            }
        }
    }

    // ---- attributes, types, tensors -------------------------------------------------------------------------------

    fn attributes(&mut self) -> Result<Attributes> {
        self.expect("<")?;
        let entries = self.list(">", |p| {
            let name = p.name()?;
            let mut code = 0;
            let mut kind = String::new();
            if p.eat(":") {
                kind = p.name()?;
                if kind == "ref" {
                    code = p.int()?;
                }
            }
            p.expect("=")?;
            Ok((name, p.attribute(&kind, code)?))
        })?;
        Ok(Attributes(entries.into_iter().collect()))
    }
    fn attribute(&mut self, kind: &str, code: i64) -> Result<Attribute> {
        let place = self.place();
        Ok(match kind {
            "" => return self.plain_attribute(),
            "tensor" => Attribute::Tensor(self.tensor()?),
            "graph" => Attribute::Graph(Box::new(self.graph()?)),
            "type_proto" => Attribute::Type(self.ty()?),
            "opaque" => Attribute::Opaque(Bytes::from(self.bytes()?)),
            "ref" => {
                self.expect("@")?;
                Attribute::Reference(
                    self.name()?,
                    i32::try_from(code).map_err(|_| place.error("the type code is too large"))?,
                )
            }
            _ => {
                self.expect("[")?;
                match kind {
                    "ints" => Attribute::Ints(self.list("]", Parser::int)?),
                    "floats" => Attribute::Floats(self.list("]", Parser::float)?),
                    "strings" => Attribute::Strings(self.list("]", Parser::bytes)?),
                    "tensors" => Attribute::Tensors(self.list("]", Parser::tensor)?),
                    "graphs" => Attribute::Graphs(self.list("]", Parser::graph)?),
                    "type_protos" => Attribute::Types(self.list("]", Parser::ty)?),
                    _ => return Err(place.error(format!("\"{kind}\" is not a kind of attribute"))),
                }
            }
        })
    }
    fn plain_attribute(&mut self) -> Result<Attribute> {
        if self.eat("[") {
            return match self.peek() {
                Token::Quoted(_) => Ok(Attribute::Strings(self.list("]", Parser::bytes)?)),
                _ if self.list_of_ints() => Ok(Attribute::Ints(self.list("]", Parser::int)?)),
                _ => Ok(Attribute::Floats(self.list("]", Parser::float)?)),
            };
        }
        match self.peek() {
            Token::Quoted(_) => Ok(Attribute::String(self.bytes()?)),
            Token::Number(text) if text.parse::<i64>().is_ok() => Ok(Attribute::Int(self.int()?)),
            _ => Ok(Attribute::Float(self.float()?)),
        }
    }
    fn list_of_ints(&self) -> bool {
        let items = self.tokens[self.next.min(self.tokens.len())..].iter().map(|(_, token)| token);
        let mut numbers = items.take_while(|t| **t != Token::Sign("]")).filter(|t| **t != Token::Sign(","));
        numbers.all(|t| matches!(t, Token::Number(text) if text.parse::<i64>().is_ok()))
    }
    fn float(&mut self) -> Result<f32> {
        let value = match self.peek() {
            Token::Number(text) | Token::Word(text) => text.parse().ok(),
            _ => None,
        };
        let value = value.ok_or_else(|| self.unexpected("a number"))?;
        self.next += 1;
        Ok(value)
    }
    fn optional_ty(&mut self) -> Result<Option<Type>> {
        let typed = match self.peek() {
            Token::Word(word) => {
                ["seq", "optional", "other"].contains(&word.as_str()) || DType::from_name(word).is_some()
            }
            _ => false,
        };
        if typed { self.ty().map(Some) } else { Ok(None) }
    }
    fn ty(&mut self) -> Result<Type> {
        self.nested(|p| {
            for (word, wrap) in [("seq", Type::Sequence as fn(Box<Type>) -> Type), ("optional", Type::Optional)] {
                if p.eat_word(word) {
                    p.expect("(")?;
                    let inner = p.ty()?;
                    p.expect(")")?;
                    return Ok(wrap(Box::new(inner)));
                }
            }
            if p.eat_word("other") {
                p.expect("(")?;
                let bytes = Bytes::from(p.bytes()?);
                p.expect(")")?;
                return Ok(Type::Other(bytes));
            }
            let dtype = match p.peek() {
                Token::Word(word) => DType::from_name(word),
                _ => None,
            };
            let dtype = dtype.ok_or_else(|| p.unexpected("a type"))?;
            p.next += 1;
            let shape = if p.eat("[") { Some(p.list("]", Parser::dim)?) } else { None };
            Ok(Type::Tensor { dtype, shape })
        })
    }
    fn dim(&mut self) -> Result<Dim> {
        match self.peek() {
            Token::Number(_) => Ok(Dim::Known(self.int()?)),
            Token::Sign("?") => {
                self.next += 1;
                Ok(Dim::Unknown)
            }
            _ => Ok(Dim::parse(&self.name()?)),
        }
    }
    fn tensor(&mut self) -> Result<Tensor> {
        let place = self.place();
        let ty = self.ty()?;
        self.tensor_of(&ty, place)
    }
    /// The value of a tensor behind its type.
    fn tensor_of(&mut self, ty: &Type, place: Place) -> Result<Tensor> {
        let (Some(dtype), Some(shape)) = (ty.dtype(), ty.static_shape()) else {
            return Err(place.error(format!("a tensor needs a static shape, found {ty}")));
        };
        if self.at("…") {
            let count: usize = shape.iter().fold(1, |n, &d| n.saturating_mul(d));
            let sentence =
                format!("a tensor of {count} elements is elided here; print the model in full to read it back");
            return Err(self.place().error(sentence));
        }
        if self.eat_word("hex") {
            let place = self.place();
            let bytes =
                literal::unhex(&self.bytes()?).ok_or_else(|| place.error("expected pairs of hexadecimal digits"))?;
            return Tensor::from_bytes(dtype, shape, Bytes::from(bytes)).map_err(|e| place.error(e.to_string()));
        }
        self.expect("{")?;
        self.elements(dtype, shape, ty)
    }
    fn elements(&mut self, dtype: DType, shape: Vec<usize>, ty: &Type) -> Result<Tensor> {
        let place = self.place();
        let (mut words, mut strings) = (Vec::new(), Vec::new());
        self.list("}", |p| {
            match p.peek().clone() {
                Token::Quoted(bytes) => strings.push(Bytes::from(bytes)),
                Token::Number(word) | Token::Word(word) => words.push(word),
                _ => return Err(p.unexpected("an element")),
            }
            p.next += 1;
            Ok(())
        })?;
        let end = self.tokens.get(self.next.saturating_sub(1)).map_or(place, |(place, _)| *place);
        let count = words.len() + strings.len();
        let wanted = crate::tensor::element_count(&shape);
        if wanted != Some(count) {
            let wanted = wanted.map_or("too many".to_string(), |n| n.to_string());
            return Err(end.error(format!("the tensor {ty} needs {wanted} elements, found {count}")));
        }
        if dtype == DType::String && words.is_empty() {
            return Tensor::from_strings(shape, strings).map_err(|e| place.error(e.to_string()));
        }
        let bytes = literal::elements(dtype, &words).filter(|_| strings.is_empty());
        let bytes = bytes.ok_or_else(|| place.error(format!("an element is not a number of type {dtype}")))?;
        Tensor::from_bytes(dtype, shape, Bytes::from(bytes)).map_err(|e| place.error(e.to_string()))
    }
}

// ---- from statements to a graph -----------------------------------------------------------------------------------

struct Builder {
    graph: Graph,
    values: HashMap<String, Value>,
}

fn build(
    graph: Graph,
    inputs: Vec<Named>,
    outputs: Vec<(Named, Option<String>)>,
    statements: Vec<Statement>,
) -> Result<Graph> {
    let mut builder = Builder { graph, values: HashMap::new() };
    let placed: HashSet<String> = statements
        .iter()
        .filter(|s| matches!(s.body, Body::Leaf(NodeKind::Input)))
        .filter_map(|s| s.outputs.first().map(|o| o.name.clone()))
        .collect();
    let order: Vec<(Place, String)> = inputs.iter().map(|i| (i.place, i.name.clone())).collect();
    for input in inputs.into_iter().filter(|i| !placed.contains(&i.name)) {
        builder.leaf(input, NodeKind::Input)?;
    }
    for statement in statements {
        builder.statement(statement)?;
    }
    builder.order_inputs(&order)?;
    for (public, value) in outputs {
        builder.output(public, value)?;
    }
    Ok(builder.graph)
}

impl Builder {
    fn define(&mut self, name: &str, place: Place, value: Value) -> Result<()> {
        if !name.is_empty() && self.values.insert(name.to_string(), value).is_some() {
            return Err(place.error(format!("another value is called \"{name}\" too")));
        }
        Ok(())
    }
    fn find(&self, used: &Named, when: &str) -> Result<Option<Value>> {
        if used.name.is_empty() {
            return Ok(None);
        }
        let value = self.values.get(&used.name).copied();
        value.map(Some).ok_or_else(|| used.place.error(format!("there is no value \"{}\"{when}", used.name)))
    }
    fn leaf(&mut self, output: Named, kind: NodeKind) -> Result<NodeId> {
        let value = self.graph.add_leaf(kind, &output.name, output.ty);
        self.define(&output.name, output.place, value)?;
        Ok(value.node)
    }
    fn statement(&mut self, statement: Statement) -> Result<()> {
        let Statement { name, mut outputs, body, meta, doc } = statement;
        let id = match body {
            Body::Leaf(kind) => {
                let Some(output) = outputs.pop().filter(|_| outputs.is_empty()) else {
                    let place = outputs.first().map_or(Place { line: 1, column: 1 }, |o| o.place);
                    return Err(place.error("this statement makes exactly one value"));
                };
                let id = self.leaf(output, kind)?;
                self.graph.node_mut(id).name = name;
                id
            }
            Body::Op(op, inputs, captures) => {
                let inputs: Vec<Option<Value>> =
                    inputs.iter().map(|used| self.find(used, " before here")).collect::<Result<_>>()?;
                let slots = outputs.iter().map(|o| OutputSlot { name: o.name.clone(), ty: o.ty.clone() }).collect();
                let id = self.graph.add_node(&name, op, &inputs, slots);
                for (slot, output) in outputs.iter().enumerate() {
                    self.define(&output.name, output.place, Value { node: id, slot: slot as u32 })?;
                }
                for used in &captures {
                    let value = self.find(used, " before here")?;
                    let value = value.ok_or_else(|| used.place.error("a capture cannot be left out"))?;
                    self.graph.push_capture(id, value);
                }
                id
            }
        };
        let node = self.graph.node_mut(id);
        (node.meta, node.doc) = (meta, doc);
        Ok(())
    }
    fn order_inputs(&mut self, order: &[(Place, String)]) -> Result<()> {
        let mut ids = Vec::new();
        for (place, name) in order {
            match self.values.get(name) {
                Some(value) if self.graph.node(value.node).kind == NodeKind::Input => ids.push(value.node),
                _ => return Err(place.error(format!("\"{name}\" is not an input"))),
            }
        }
        self.graph.set_inputs_order(ids);
        Ok(())
    }
    fn output(&mut self, public: Named, value: Option<String>) -> Result<()> {
        let used = Named { place: public.place, name: value.unwrap_or_else(|| public.name.clone()), ty: None };
        let Some(value) = self.find(&used, "")? else {
            return Err(public.place.error("an output needs a name"));
        };
        if self.graph.ty(value).is_none() {
            self.graph.set_ty(value, public.ty);
        }
        self.graph.outputs.push(GraphOutput { name: public.name, value });
        Ok(())
    }
}
