//! What unit tests of inference are written with: a graph that grows by one operator per line, and what is known of a
//! value as one line of text.

use crate::graph::{Graph, Value};
use crate::infer;
use crate::{Attributes, DType, Dim, Operator, Tensor, Type};
use std::collections::HashMap;

/// A graph to ask.
pub struct Probe {
    pub graph: Graph,
}

impl Probe {
    pub fn new() -> Probe {
        Probe { graph: Graph::new("probe") }
    }
    /// An input whose dimensions are written as `batch,seq,384`; `?` is unknown.
    pub fn input(&mut self, name: &str, dtype: DType, dims: &str) -> Value {
        let dim = |d: &str| if d == "?" { Dim::Unknown } else { Dim::parse(d) };
        let shape: Vec<Dim> = dims.split(',').filter(|d| !d.is_empty()).map(dim).collect();
        self.graph.add_input(name, Type::tensor(dtype, shape))
    }
    pub fn ints(&mut self, values: &[i64]) -> Value {
        self.graph.add_const("ints", Tensor::from_i64s(values))
    }
    pub fn scalar(&mut self, value: i64) -> Value {
        self.graph.add_const("scalar", Tensor::scalar(value))
    }
    pub fn op(&mut self, name: &str, inputs: &[Value], attrs: Attributes) -> Value {
        self.graph.op(name, inputs, attrs)
    }
    /// An operator with optional inputs and any number of outputs.
    pub fn node(&mut self, name: &str, inputs: &[Option<Value>], attrs: Attributes, outputs: usize) -> Vec<Value> {
        let node = self.graph.add_op(name, Operator::onnx(name, attrs), inputs, outputs);
        self.graph.node_outputs(node).collect()
    }
    /// The type, and for integers whose elements are followed ` = ` and the elements.
    pub fn show(&self, value: Value) -> String {
        let facts = infer::facts(&self.graph, crate::OPSET, &HashMap::new()).unwrap();
        let Some(fact) = facts.get(value) else { return "nothing".to_string() };
        match &fact.dims {
            None => fact.ty.to_string(),
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
                format!("{} = {}", fact.ty, dims.join(", "))
            }
        }
    }
    /// The problem that inference finds.
    pub fn error(&self) -> String {
        infer::facts(&self.graph, crate::OPSET, &HashMap::new()).unwrap_err().to_string()
    }
}
