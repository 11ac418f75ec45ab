//! Adding operators to a graph with their types: what gradients and decompositions are written with.
//!
//! `emit.mul(a, b)` adds a `Mul`, infers its type and returns its value, so gradient rules read like formulas.
//! Scalars take the element type of their partner.

use super::{broadcast, normal_axis};
use crate::error::{Context, Result};
use crate::graph::{Graph, NodeId, Operator, OutputSlot, Value};
use crate::types::Type;
use crate::{Attributes, DType, Dim, Tensor, bail};

/// One entry of a shape that is put together while a program runs.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// A number.
    Number(i64),
    /// The length of an axis of a value.
    Axis(Value, usize),
    /// A multiple of the length of an axis.
    Multiple(Value, usize, i64),
    /// The length of an axis divided by a number (rounded down).
    Quotient(Value, usize, i64),
}

/// See the [module](self).
pub struct Emit<'g> {
    /// The graph that grows.
    pub graph: &'g mut Graph,
    /// The version of ONNX's own operators that the model is written in.
    pub opset: i64,
    /// What new names begin with.
    pub prefix: String,
}

impl<'g> Emit<'g> {
    /// Adds to `graph`.
    pub fn new(graph: &'g mut Graph, opset: i64) -> Emit<'g> {
        Emit { graph, opset, prefix: String::new() }
    }
    /// Adds an operator with any inputs and number of outputs.
    pub fn node(&mut self, op: Operator, inputs: &[Option<Value>], outputs: usize) -> Result<Vec<Value>> {
        let hint = format!("{}{}", self.prefix, op.name);
        let node = self.graph.add_op(&hint, op, inputs, outputs);
        crate::infer::infer_node(self.graph, node, self.opset).context(|| self.graph.node(node).label())?;
        Ok(self.graph.node_outputs(node).collect())
    }
    /// Adds one of ONNX's operators with one output.
    pub fn op(&mut self, name: &str, inputs: &[Value], attrs: Attributes) -> Result<Value> {
        let inputs: Vec<Option<Value>> = inputs.iter().copied().map(Some).collect();
        Ok(self.node(Operator::onnx(name, attrs), &inputs, 1)?[0])
    }
    /// Adds one of our own operators (domain [`crate::SARTOR_DOMAIN`]) with one output.
    pub fn sartor(&mut self, name: &str, inputs: &[Value], attrs: Attributes) -> Result<Value> {
        let inputs: Vec<Option<Value>> = inputs.iter().copied().map(Some).collect();
        Ok(self.node(Operator::sartor(name, attrs), &inputs, 1)?[0])
    }
    /// An input of an existing node that must be there.
    pub fn operand(&self, id: NodeId, slot: usize) -> Result<Value> {
        match self.graph.input(id, slot) {
            Some(value) => Ok(value),
            None => bail!("input {slot} is missing"),
        }
    }
    /// The attributes of an existing node, cloned, so that nodes can be added while they are read.
    pub fn attrs(&self, id: NodeId) -> Attributes {
        self.graph.node(id).op().map(|op| op.attrs.clone()).unwrap_or_default()
    }
    /// Adds a constant.
    pub fn constant(&mut self, tensor: Tensor) -> Value {
        let hint = format!("{}const", self.prefix);
        self.graph.add_const(&hint, tensor)
    }
    /// Adds an `int64` constant of rank 1.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        self.constant(Tensor::from_i64s(values))
    }
    /// Adds a scalar constant of the element type of `like`.
    pub fn scalar(&mut self, value: f64, like: Value) -> Result<Value> {
        let tensor = Tensor::scalar_of(self.dtype(like)?, value)?;
        Ok(self.constant(tensor))
    }
    /// An output of an existing node, given a name and a type if the node left it out: how a gradient asks the forward
    /// computation for statistics or indices.
    pub fn optional_output(&mut self, node: NodeId, slot: u32) -> Result<Value> {
        let value = Value { node, slot };
        while self.graph.node(node).outputs.len() <= slot as usize {
            self.graph.node_mut(node).outputs.push(OutputSlot::default());
        }
        if self.graph.value_name(value).is_empty() {
            let name = self.graph.fresh_name(&format!("{}_{slot}", self.graph.value_name(Value { node, slot: 0 })));
            self.graph.rename(value, &name);
            crate::infer::infer_node(self.graph, node, self.opset).context(|| self.graph.node(node).label())?;
        }
        Ok(value)
    }
    /// An output slot of this type under a fresh name, for nodes that are put together by hand.
    pub fn slot(&mut self, hint: &str, ty: Option<Type>) -> OutputSlot {
        OutputSlot { name: self.graph.fresh_name(&format!("{}{hint}", self.prefix)), ty }
    }
    /// The element type of a value.
    pub fn dtype(&self, value: Value) -> Result<DType> {
        match self.graph.ty(value).and_then(Type::dtype) {
            Some(dtype) => Ok(dtype),
            None => bail!("the element type of \"{}\" is unknown", self.graph.value_name(value)),
        }
    }
    /// The shape of a value; an error if its rank is unknown.
    pub fn shape(&self, value: Value) -> Result<Vec<Dim>> {
        match self.graph.ty(value).and_then(Type::shape) {
            Some(shape) => Ok(shape.to_vec()),
            None => bail!("the rank of \"{}\" is unknown", self.graph.value_name(value)),
        }
    }
    /// The rank of a value.
    pub fn rank(&self, value: Value) -> Result<usize> {
        Ok(self.shape(value)?.len())
    }
    /// An axis of a value counted from the front.
    pub fn axis(&self, value: Value, axis: i64) -> Result<usize> {
        normal_axis(axis, self.rank(value)?)
    }

    /// `a + b`
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.op("Add", &[a, b], Attributes::new())
    }
    /// `a - b`
    pub fn sub(&mut self, a: Value, b: Value) -> Result<Value> {
        self.op("Sub", &[a, b], Attributes::new())
    }
    /// `a * b`
    pub fn mul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.op("Mul", &[a, b], Attributes::new())
    }
    /// `a / b`
    pub fn div(&mut self, a: Value, b: Value) -> Result<Value> {
        self.op("Div", &[a, b], Attributes::new())
    }
    /// `a + s`
    pub fn add_scalar(&mut self, a: Value, s: f64) -> Result<Value> {
        let s = self.scalar(s, a)?;
        self.add(a, s)
    }
    /// `a * s`
    pub fn mul_scalar(&mut self, a: Value, s: f64) -> Result<Value> {
        let s = self.scalar(s, a)?;
        self.mul(a, s)
    }
    /// One of the elementwise operators of one input, by name.
    pub fn unary(&mut self, name: &str, a: Value) -> Result<Value> {
        self.op(name, &[a], Attributes::new())
    }
    /// `MatMul(a, b)`
    pub fn matmul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.op("MatMul", &[a, b], Attributes::new())
    }
    /// `condition ? a : b`
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Result<Value> {
        self.op("Where", &[condition, a, b], Attributes::new())
    }
    /// Axes permuted.
    pub fn transpose(&mut self, a: Value, perm: &[usize]) -> Result<Value> {
        let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
        self.op("Transpose", &[a], Attributes::new().with("perm", perm))
    }
    /// The last two axes swapped.
    pub fn swap_last(&mut self, a: Value) -> Result<Value> {
        let rank = self.rank(a)?;
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.transpose(a, &perm)
    }
    /// Converted to an element type (nothing is added if it has it).
    pub fn cast(&mut self, a: Value, to: DType) -> Result<Value> {
        if self.dtype(a)? == to {
            return Ok(a);
        }
        self.op("Cast", &[a], Attributes::new().with("to", to.onnx_code() as i64))
    }
    /// Summed over axes (nothing is added for none).
    pub fn reduce_sum(&mut self, a: Value, axes: &[usize], keepdims: bool) -> Result<Value> {
        self.reduce("ReduceSum", a, axes, keepdims)
    }
    /// Averaged over axes (nothing is added for none).
    pub fn reduce_mean(&mut self, a: Value, axes: &[usize], keepdims: bool) -> Result<Value> {
        self.reduce("ReduceMean", a, axes, keepdims)
    }
    /// Reduced over axes by one of the `Reduce…` operators (nothing is added for no axes).
    pub fn reduce(&mut self, name: &str, a: Value, axes: &[usize], keepdims: bool) -> Result<Value> {
        if axes.is_empty() {
            return Ok(a);
        }
        let axes: Vec<i64> = axes.iter().map(|&x| x as i64).collect();
        let axes = self.ints(&axes);
        self.op(name, &[a, axes], Attributes::new().with("keepdims", keepdims))
    }
    /// The shape as an `int64` tensor: a constant where it is static, else `Shape`.
    pub fn shape_of(&mut self, a: Value) -> Result<Value> {
        match self.graph.ty(a).and_then(Type::static_shape) {
            Some(shape) => {
                let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
                Ok(self.ints(&dims))
            }
            None => self.op("Shape", &[a], Attributes::new()),
        }
    }
    /// A shape vector of these lengths: one constant where all are known, else a `Concat` of constants and `Shape`s.
    pub fn shape_tensor(&mut self, lengths: &[Length]) -> Result<Value> {
        let lengths: Vec<Length> = lengths.iter().map(|&l| self.known_length(l)).collect();
        let mut parts = Vec::new();
        let mut numbers = Vec::new();
        for length in lengths {
            match length {
                Length::Number(n) => numbers.push(n),
                open => {
                    if !numbers.is_empty() {
                        parts.push(self.ints(&std::mem::take(&mut numbers)));
                    }
                    parts.push(self.open_length(open)?);
                }
            }
        }
        if !numbers.is_empty() || parts.is_empty() {
            parts.push(self.ints(&numbers));
        }
        match parts[..] {
            [one] => Ok(one),
            _ => self.op("Concat", &parts, Attributes::new().with("axis", 0i64)),
        }
    }
    /// The length as a number, if it is known.
    fn known_length(&self, length: Length) -> Length {
        let dim = |value: Value, axis: usize| {
            self.shape(value).ok().and_then(|s| s.get(axis).cloned()).unwrap_or(Dim::Unknown)
        };
        let found = match length {
            Length::Number(n) => Dim::Known(n),
            Length::Axis(value, axis) => dim(value, axis),
            Length::Multiple(value, axis, factor) => dim(value, axis).mul(&factor.into()),
            Length::Quotient(value, axis, divisor) => dim(value, axis).div_floor(&divisor.into()),
        };
        found.known().map_or(length, Length::Number)
    }
    /// An `int64` vector of one element that is computed when the program runs.
    fn open_length(&mut self, length: Length) -> Result<Value> {
        let (value, axis) = match length {
            Length::Number(n) => return Ok(self.ints(&[n])),
            Length::Axis(value, axis) | Length::Multiple(value, axis, _) | Length::Quotient(value, axis, _) => {
                (value, axis as i64)
            }
        };
        let dim = self.op("Shape", &[value], Attributes::new().with("start", axis).with("end", axis + 1))?;
        match length {
            Length::Multiple(_, _, factor) => {
                let factor = self.ints(&[factor]);
                self.mul(dim, factor)
            }
            Length::Quotient(_, _, divisor) => {
                let divisor = self.ints(&[divisor]);
                self.div(dim, divisor)
            }
            _ => Ok(dim),
        }
    }
    /// The numbers 0, 1, … below a length, as an `int64` vector.
    pub fn indices(&mut self, length: Length) -> Result<Value> {
        let limit = match self.known_length(length) {
            Length::Number(n) => self.constant(Tensor::scalar(n)),
            open => {
                let vector = self.shape_tensor(&[open])?;
                self.reshape(vector, &[])?
            }
        };
        let (start, step) = (self.constant(Tensor::scalar(0i64)), self.constant(Tensor::scalar(1i64)));
        self.op("Range", &[start, limit, step], Attributes::new())
    }
    /// Zeros in the shape of a value, of another element type.
    pub fn zeros_like(&mut self, like: Value, dtype: DType) -> Result<Value> {
        let shape = self.shape_of(like)?;
        let zero = Tensor::zeros(dtype, [1])?;
        let zeros = self.op("ConstantOfShape", &[shape], Attributes::new().with("value", zero))?;
        if let Ok(shape) = self.shape(like) {
            self.graph.set_ty(zeros, Some(Type::Tensor { dtype, shape: Some(shape) }));
        }
        Ok(zeros)
    }
    /// Records that a value has the type of another, as the one that a gradient belongs to.
    pub fn type_like(&mut self, value: Value, like: Value) {
        if let Some(ty) = self.graph.ty(like).cloned() {
            self.graph.set_ty(value, Some(ty));
        }
    }
    /// Reshaped to the shape of another value of equally many elements.
    pub fn reshape_like(&mut self, a: Value, like: Value) -> Result<Value> {
        let shape = self.shape(like)?;
        if self.shape(a).is_ok_and(|s| s == shape && !s.contains(&Dim::Unknown)) {
            return Ok(a);
        }
        let target = self.shape_of(like)?;
        let out = self.op("Reshape", &[a, target], Attributes::new().with("allowzero", 1i64))?;
        let dtype = self.dtype(a)?;
        self.graph.set_ty(out, Some(Type::Tensor { dtype, shape: Some(shape) }));
        Ok(out)
    }
    /// Reshaped to numbers (one of them may be -1; 0 copies the input's axis).
    pub fn reshape(&mut self, a: Value, shape: &[i64]) -> Result<Value> {
        let shape = self.ints(shape);
        self.op("Reshape", &[a, shape], Attributes::new())
    }
    /// Axes of length 1 inserted at these places of the result.
    pub fn unsqueeze(&mut self, a: Value, axes: &[usize]) -> Result<Value> {
        let axes: Vec<i64> = axes.iter().map(|&x| x as i64).collect();
        let axes = self.ints(&axes);
        self.op("Unsqueeze", &[a, axes], Attributes::new())
    }
    /// Reshaped to lengths, of which one may be the number -1.
    pub fn reshape_to(&mut self, a: Value, lengths: &[Length]) -> Result<Value> {
        let shape = self.shape_tensor(lengths)?;
        let whole = !lengths.iter().any(|l| matches!(l, Length::Number(-1)));
        self.op("Reshape", &[a, shape], Attributes::new().with("allowzero", whole))
    }
    /// Entry `index` of an axis, which goes away.
    pub fn entry(&mut self, a: Value, index: i64, axis: usize) -> Result<Value> {
        let index = self.constant(Tensor::scalar(index));
        self.op("Gather", &[a, index], Attributes::new().with("axis", axis as i64))
    }
    /// The length of an axis as an `int64` scalar.
    pub fn length(&mut self, a: Value, axis: usize) -> Result<Value> {
        let length = self.shape_tensor(&[Length::Axis(a, axis)])?;
        self.int_scalar(length)
    }
    /// The length of an axis as a scalar of an element type.
    pub fn length_as(&mut self, a: Value, axis: usize, dtype: DType) -> Result<Value> {
        match self.shape(a)?.get(axis).and_then(Dim::known) {
            Some(length) => Ok(self.constant(Tensor::scalar_of(dtype, length as f64)?)),
            None => {
                let length = self.length(a, axis)?;
                self.cast(length, dtype)
            }
        }
    }
    /// The one element of an integer tensor as an `int64` scalar.
    pub fn int_scalar(&mut self, a: Value) -> Result<Value> {
        if let Some(known) = self.graph.constant(a) {
            let number = known.cast(DType::I64)?.item::<i64>()?;
            return Ok(self.constant(Tensor::scalar(number)));
        }
        let wide = self.cast(a, DType::I64)?;
        self.reshape(wide, &[])
    }
    /// The `int64` numbers 0, 1, … before a scalar.
    pub fn range(&mut self, limit: Value) -> Result<Value> {
        let (zero, one) = (self.constant(Tensor::scalar(0i64)), self.constant(Tensor::scalar(1i64)));
        self.op("Range", &[zero, limit, one], Attributes::new())
    }
    /// Broadcast to the shape of another value.
    pub fn expand_like(&mut self, a: Value, like: Value) -> Result<Value> {
        let shape = self.shape(like)?;
        if self.shape(a).is_ok_and(|s| s == shape && !s.contains(&Dim::Unknown)) {
            return Ok(a);
        }
        let target = self.shape_of(like)?;
        let out = self.op("Expand", &[a, target], Attributes::new())?;
        let dtype = self.dtype(a)?;
        self.graph.set_ty(out, Some(Type::Tensor { dtype, shape: Some(shape) }));
        Ok(out)
    }
    /// A tensor of one value in the shape and element type of another.
    pub fn full_like(&mut self, like: Value, value: f64) -> Result<Value> {
        let s = self.scalar(value, like)?;
        self.expand_like(s, like)
    }
    /// The gradient of broadcasting: `a` summed over the axes along which `like` was stretched to `a`'s shape.
    /// Where the shapes leave that open, `ai.sartor::SumTo` decides when it runs.
    pub fn sum_to(&mut self, a: Value, like: Value) -> Result<Value> {
        let (from, to) = (self.shape(a)?, self.shape(like)?);
        let pad = from.len() - to.len().min(from.len());
        let mut axes: Vec<usize> = (0..pad).collect();
        for (i, d) in to.iter().enumerate() {
            match (&from[pad + i], d) {
                (f, t) if f.same(t) => {}
                (_, Dim::Known(1)) => axes.push(pad + i),
                (_, Dim::Known(_)) => {}
                _ => {
                    let shape = self.shape_of(like)?;
                    let out = self.sartor("SumTo", &[a, shape], Attributes::new())?;
                    self.graph.set_ty(out, Some(Type::Tensor { dtype: self.dtype(a)?, shape: Some(to) }));
                    return Ok(out);
                }
            }
        }
        let sum = self.reduce_sum(a, &axes, true)?;
        self.reshape_like(sum, like)
    }
    /// Whether two values certainly have the same shape.
    pub fn same_shape(&self, a: Value, b: Value) -> bool {
        match (self.shape(a), self.shape(b)) {
            (Ok(x), Ok(y)) => x.len() == y.len() && x.iter().zip(&y).all(|(p, q)| p.same(q)),
            _ => false,
        }
    }
    /// The common shape of two values under broadcasting.
    pub fn broadcast_shape(&self, a: Value, b: Value) -> Result<Vec<Dim>> {
        broadcast::dims(&[&self.shape(a)?, &self.shape(b)?])
    }
}
