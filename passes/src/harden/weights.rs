//! Constants that a graph reads, cut and scaled for good. What one reader alone has keeps its name; what others read too is left to them, and
//! the reader gets a parameter of its own.

use crate::cola::effective_weight;
use crate::fold::fresh_param_name;
use crate::pattern::source_param;
use sartor_ir::{Graph, Model, NodeId, Parameter, Result, Role, Tensor, Type, Value};

/// A graph, and the model that it is taken from.
pub(super) struct Weights<'a> {
    pub(super) graph: &'a mut Graph,
    pub(super) model: &'a mut Model,
}

impl Weights<'_> {
    /// The constant at an input, also if it is computed from some (transposed, say).
    pub(super) fn read(&self, id: NodeId, slot: usize) -> Option<Tensor> {
        let value = self.graph.input(id, slot)?;
        let constant = self.graph.constant(value);
        constant.or_else(|| {
            source_param(self.graph, value)?;
            effective_weight(self.graph, self.model, value).ok()
        })
    }
    /// Keeps these entries of a constant along an axis.
    pub(super) fn take(&mut self, (id, slot): (NodeId, usize), axis: usize, kept: &[usize]) -> Result<()> {
        let Some(tensor) = self.read(id, slot) else { return Ok(()) };
        self.write(id, slot, taken(&tensor, axis, kept)?);
        Ok(())
    }
    /// Multiplies the entries of a constant along an axis by these factors.
    pub(super) fn scale(&mut self, (id, slot): (NodeId, usize), axis: usize, factors: &[f64]) -> Result<()> {
        let Some(tensor) = self.read(id, slot) else { return Ok(()) };
        let inner: usize = tensor.shape()[axis + 1..].iter().product();
        let factor = |i: usize| factors[i / inner % factors.len()];
        let scaled: Vec<f64> = tensor.to_f64s()?.into_iter().enumerate().map(|(i, w)| w * factor(i)).collect();
        self.write(id, slot, Tensor::from_vec(tensor.shape().to_vec(), scaled).cast(tensor.dtype())?);
        Ok(())
    }
    /// Multiplies a constant by a number.
    pub(super) fn scale_all(&mut self, (id, slot): (NodeId, usize), factor: f64) -> Result<()> {
        let Some(tensor) = self.read(id, slot) else { return Ok(()) };
        let scaled: Vec<f64> = tensor.to_f64s()?.into_iter().map(|w| w * factor).collect();
        self.write(id, slot, Tensor::from_vec(tensor.shape().to_vec(), scaled).cast(tensor.dtype())?);
        Ok(())
    }
    /// Lets a node read this constant.
    pub(super) fn write(&mut self, id: NodeId, slot: usize, tensor: Tensor) {
        let old = self.graph.input(id, slot);
        let own = old.filter(|&value| self.graph.use_count(value) == 1);
        if let (Some(value), Some(name)) = (own, own.and_then(|value| self.graph.param_name(value))) {
            let (name, ty) = (name.to_string(), Type::of(&tensor));
            let role = self.role(Some(value));
            self.model.params.insert(name, Parameter { tensor, role });
            self.graph.set_ty(value, Some(ty));
            return;
        }
        let source = old.map(|value| source_param(self.graph, value).unwrap_or(value));
        let hint = match source {
            Some(value) => self.graph.value_name(value).to_string(),
            None => format!("{}.constant", self.graph.node(id).name),
        };
        let new = self.add(&hint, tensor, self.role(source));
        self.graph.set_input(id, slot, Some(new));
    }
    /// Whether it was trained.
    fn role(&self, value: Option<Value>) -> Role {
        let name = value.and_then(|value| self.graph.param_name(value));
        name.and_then(|name| self.model.params.get(name)).map_or(Role::Frozen, |param| param.role)
    }
    /// A new constant: a parameter, or, if it is a single number or no weight, a constant of the graph.
    fn add(&mut self, hint: &str, tensor: Tensor, role: Role) -> Value {
        if tensor.rank() == 0 || !tensor.dtype().is_float() {
            return self.graph.add_const(hint, tensor);
        }
        let name = fresh_param_name(self.model, self.graph, hint);
        let ty = Type::of(&tensor);
        self.model.params.insert(name.clone(), Parameter { tensor, role });
        self.graph.param(&name, ty)
    }
}

/// These entries of a tensor along an axis.
pub(super) fn taken(tensor: &Tensor, axis: usize, kept: &[usize]) -> Result<Tensor> {
    let inner: usize = tensor.shape()[axis + 1..].iter().product();
    let values = tensor.to_f64s()?;
    let rows = values.chunks((tensor.shape()[axis] * inner).max(1));
    let entry = |row: &[f64], k: usize| row[k * inner..(k + 1) * inner].to_vec();
    let taken: Vec<f64> = rows.flat_map(|row| kept.iter().flat_map(move |&k| entry(row, k))).collect();
    let mut shape = tensor.shape().to_vec();
    shape[axis] = kept.len();
    Tensor::from_vec(shape, taken).cast(tensor.dtype())
}
