//! A branch of an `If` in the making: copies of nodes of the graph around it, and what they read from there.

use crate::walk::add_copy;
use indexmap::IndexMap;
use sartor_ir::ops::Emit;
use sartor_ir::{
    Attributes, Dim, Graph, GraphOutput, NodeId, NodeKind, Operator, Parameter, Result, Type, Value, bail,
};
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
    params: &'a IndexMap<String, Parameter>,
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
    pub(super) fn new(
        (outer, params): (&'a Graph, &'a IndexMap<String, Parameter>),
        opset: i64,
        name: &str,
        captures: Vec<Value>,
    ) -> Branch<'a> {
        let (here, whole) = Default::default();
        Branch { outer, params, opset, inner: Graph::new(name), here, whole, captures, chosen: None }
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
        let gate = self.capture(gate)?;
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
    fn capture(&mut self, value: Value) -> Result<Value> {
        if let Some(&known) = self.whole.get(&value) {
            return Ok(known);
        }
        if let Some((stored, perm)) = self.transposed(value) {
            let stored = self.capture(stored)?;
            let attrs = Attributes::new().with("perm", perm);
            let inner = self.emit("kept/").op("Transpose", &[stored], attrs)?;
            self.whole.insert(value, inner);
            return Ok(inner);
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
        Ok(inner)
    }
    /// The parameter that a value is the transposition of, if it is one, and how its axes lie.
    fn transposed(&self, value: Value) -> Option<(Value, Vec<i64>)> {
        let op = self.outer.node(value.node).op().filter(|op| op.is("Transpose"))?;
        let stored = self.outer.input(value.node, 0)?;
        let perm = op.attrs.ints("perm", &[]).ok().filter(|perm| !perm.is_empty())?;
        self.outer.param_name(stored).map(|_| (stored, perm))
    }
    /// A value of the outer graph, of the chosen examples.
    fn get(&mut self, value: Value) -> Result<Value> {
        if let Some(&known) = self.here.get(&value) {
            return Ok(known);
        }
        let whole = self.capture(value)?;
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
    /// Puts a parameter that nobody else reads into the branch. ONNX Runtime arranges the weights of convolutions anew, which makes those around depthwise ones twice as fast, but only those of the graph
    /// that they stand in.
    fn own(&mut self, value: Value) {
        let name = self.outer.param_name(value).filter(|_| self.outer.use_count(value) == 1);
        if let Some((name, param)) = name.and_then(|name| Some((name, self.params.get(name)?))) {
            let name = format!("{}/{name}", self.inner.name);
            let constant = self.inner.add_const(&name, param.tensor.clone());
            self.here.insert(value, constant);
        }
    }
    /// Copies a node.
    pub(super) fn copy(&mut self, id: NodeId) -> Result<()> {
        let source = self.outer.node(id).clone();
        let Some(op) = source.op().cloned() else { return Ok(()) };
        let mut inputs = Vec::new();
        for (slot, value) in self.outer.node_inputs(id).into_iter().enumerate() {
            if let Some(value) = value.filter(|_| slot > 0 && op.is("Conv")) {
                self.own(value);
            }
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
    /// The block's addition: of all examples, or to the chosen ones among all.
    pub(super) fn add(&mut self, add: NodeId, slot: usize, body: Value, shortcut: Value) -> Result<Value> {
        let Some(op) = self.outer.node(add).op().cloned() else { bail!("the block has no addition") };
        let body = self.get(body)?;
        if let Some(column) = self.chosen.as_ref().map(|chosen| chosen.column) {
            let all = self.capture(shortcut)?;
            let attrs = Attributes::new().with("reduction", "add");
            return self.emit("chosen/").op("ScatterND", &[all, column, body], attrs);
        }
        let some = self.get(shortcut)?;
        let operands = if slot == 0 { [body, some] } else { [some, body] };
        let sum = self.emit("chosen/").node(Operator::onnx(&op.name, op.attrs), &operands.map(Some), 1)?;
        Ok(sum[0])
    }
    /// The value itself.
    pub(super) fn keep(&mut self, value: Value) -> Result<Value> {
        let value = self.capture(value)?;
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
        self.inner.remove_dead();
    }
}
