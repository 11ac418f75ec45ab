//! A branch of an `If` in the making: copies of nodes of the graph around it, and what they read from there.

use crate::walk::add_copy;
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Dim, Graph, GraphOutput, NodeId, NodeKind, Operator, Result, Type, Value, bail};
use std::collections::HashMap;

/// The examples that a branch runs for.
struct Chosen {
    /// Their numbers, `[n]` and `[n, 1]`.
    flat: Value,
    column: Value,
    /// What the batch's dimension is called outside.
    batch: Dim,
}

/// See the [module](self).
pub(super) struct Branch<'a> {
    outer: &'a Graph,
    opset: i64,
    pub(super) inner: Graph,
    here: HashMap<Value, Value>,
    /// The values as they stand outside, for those of which `here` has the chosen examples.
    whole: HashMap<Value, Value>,
    captures: Vec<Value>,
    chosen: Option<Chosen>,
}

impl<'a> Branch<'a> {
    /// A branch of a node that captures these values already.
    pub(super) fn new(outer: &'a Graph, opset: i64, name: &str, captures: Vec<Value>) -> Branch<'a> {
        let (here, whole) = Default::default();
        Branch { outer, opset, inner: Graph::new(name), here, whole, captures, chosen: None }
    }
    fn emit(&mut self, prefix: &str) -> Emit<'_> {
        let mut emit = Emit::new(&mut self.inner, self.opset);
        emit.prefix = prefix.to_string();
        emit
    }
    pub(super) fn into_parts(self) -> (Graph, Vec<Value>) {
        (self.inner, self.captures)
    }
    /// Lets everything that is copied from now on run for the examples whose gate is open.
    pub(super) fn choose(&mut self, gate: Value, batch: &Dim) -> Result<()> {
        let gate = self.capture(gate);
        let mut emit = self.emit("chosen/");
        let line = emit.reshape(gate, &[-1])?;
        let open = emit.compare_scalar("Greater", line, 0.0)?;
        let numbers = emit.op("NonZero", &[open], Attributes::new())?;
        let axes = emit.ints(&[0]);
        let flat = emit.op("Squeeze", &[numbers, axes], Attributes::new())?;
        let column = emit.transpose(numbers, &[1, 0])?;
        self.chosen = Some(Chosen { flat, column, batch: batch.clone() });
        Ok(())
    }
    /// A value of the outer graph as it is there.
    fn capture(&mut self, value: Value) -> Value {
        if let Some(&known) = self.whole.get(&value) {
            return known;
        }
        let name = self.outer.value_name(value).to_string();
        let ty = self.outer.ty(value).cloned();
        let inner = match &self.outer.node(value.node).kind {
            NodeKind::Const(tensor) => self.inner.add_const(&format!("{}/{name}", self.inner.name), tensor.clone()),
            _ => {
                let index = self.captures.iter().position(|v| *v == value).unwrap_or_else(|| {
                    self.captures.push(value);
                    self.captures.len() - 1
                });
                self.inner.add_capture(index, &name, ty)
            }
        };
        self.whole.insert(value, inner);
        inner
    }
    /// A value of the outer graph, of the chosen examples.
    fn get(&mut self, value: Value) -> Result<Value> {
        if let Some(&known) = self.here.get(&value) {
            return Ok(known);
        }
        let whole = self.capture(value);
        let shape = self.outer.ty(value).and_then(Type::shape);
        let first = shape.and_then(<[Dim]>::first);
        let here = match &self.chosen {
            Some(chosen) if first == Some(&chosen.batch) && chosen.batch.known().is_none() => {
                let flat = chosen.flat;
                let mut emit = self.emit("chosen/");
                emit.op("Gather", &[whole, flat], Attributes::new().with("axis", 0i64))?
            }
            _ => whole,
        };
        self.here.insert(value, here);
        Ok(here)
    }
    /// Copies a node.
    pub(super) fn copy(&mut self, id: NodeId) -> Result<()> {
        let source = self.outer.node(id).clone();
        let Some(op) = source.op().cloned() else { return Ok(()) };
        let mut inputs = Vec::new();
        for value in self.outer.node_inputs(id) {
            inputs.push(value.map(|v| self.get(v)).transpose()?);
        }
        let prefix = self.inner.name.clone();
        let copy = add_copy(&mut self.inner, &source, (&source.name, op), &inputs, |name| format!("{prefix}/{name}"));
        for slot in 0..source.outputs.len() as u32 {
            let (old, new) = (Value { node: id, slot }, Value { node: copy, slot });
            let ty = self.inner.ty(new).cloned().map(|ty| self.loosened(ty));
            self.inner.set_ty(new, ty);
            self.here.insert(old, new);
        }
        Ok(())
    }
    /// The type of the chosen examples of a value of this type.
    fn loosened(&self, ty: Type) -> Type {
        match (ty, &self.chosen) {
            (Type::Tensor { dtype, shape: Some(mut shape) }, Some(_)) => {
                if let Some(first) = shape.first_mut() {
                    *first = Dim::Unknown;
                }
                Type::Tensor { dtype, shape: Some(shape) }
            }
            (ty, _) => ty,
        }
    }
    /// The block's addition: of all examples, or of the chosen ones, put back among the others.
    pub(super) fn add(&mut self, add: NodeId, slot: usize, body: Value, shortcut: Value) -> Result<Value> {
        let Some(op) = self.outer.node(add).op().cloned() else { bail!("the block has no addition") };
        let (body, some) = (self.get(body)?, self.get(shortcut)?);
        let operands = if slot == 0 { [body, some] } else { [some, body] };
        let all = self.capture(shortcut);
        let column = self.chosen.as_ref().map(|chosen| chosen.column);
        let mut emit = self.emit("chosen/");
        let sum = emit.node(Operator::onnx(&op.name, op.attrs), &operands.map(Some), 1)?[0];
        match column {
            Some(column) => emit.op("ScatterND", &[all, column, sum], Attributes::new()),
            None => Ok(sum),
        }
    }
    /// The value itself.
    pub(super) fn keep(&mut self, value: Value) -> Result<Value> {
        let value = self.capture(value);
        let mut emit = self.emit("kept/");
        emit.op("Identity", &[value], Attributes::new())
    }
    /// Makes a value the branch's output, of this type.
    pub(super) fn finish(&mut self, value: Value, ty: Option<Type>) {
        self.inner.set_ty(value, ty);
        let name = format!("{}/out", self.inner.name);
        let name = self.inner.fresh_name(&name);
        self.inner.rename(value, &name);
        self.inner.outputs.push(GraphOutput { name, value });
    }
}
