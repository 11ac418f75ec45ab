//! What the rows that lift nodes of older opsets share: attributes that became inputs, renamed operators, defaults
//! that changed.

use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::types::Type;
use crate::{Attribute, Attributes, Tensor, bail};

/// Changes the attributes of an operator node.
pub fn edit_attrs(graph: &mut Graph, id: NodeId, edit: impl FnOnce(&mut Attributes)) {
    if let Some(op) = graph.node_mut(id).op_mut() {
        edit(&mut op.attrs);
    }
}

/// Takes an attribute off a node.
pub fn take_attr(graph: &mut Graph, id: NodeId, name: &str) -> Option<Attribute> {
    graph.node_mut(id).op_mut()?.attrs.remove(name)
}

/// Connects a new constant to an input of a node.
pub fn set_const_input(graph: &mut Graph, id: NodeId, slot: usize, what: &str, tensor: Tensor) {
    let hint = format!("{}_{what}", graph.node(id).outputs.first().map_or("", |o| o.name.as_str()));
    let value = graph.add_const(&hint, tensor);
    graph.set_input(id, slot, Some(value));
}

/// An attribute that is a list of integers becomes the `int64` input `slot`; nothing happens if it is left out.
pub fn ints_to_input(graph: &mut Graph, id: NodeId, name: &str, slot: usize) -> Result<()> {
    match take_attr(graph, id, name) {
        None => Ok(()),
        Some(Attribute::Ints(values)) => {
            set_const_input(graph, id, slot, name, Tensor::from_i64s(&values));
            Ok(())
        }
        Some(_) => bail!("attribute `{name}` is not a list of integers"),
    }
}

/// An integer attribute becomes an `int64` input of one element and rank 1; nothing happens if it is left out.
pub fn int_to_input(graph: &mut Graph, id: NodeId, name: &str, slot: usize) -> Result<()> {
    match take_attr(graph, id, name) {
        None => Ok(()),
        Some(Attribute::Int(value)) => {
            set_const_input(graph, id, slot, name, Tensor::from_i64s(&[value]));
            Ok(())
        }
        Some(_) => bail!("attribute `{name}` is not an integer"),
    }
}

/// A float attribute becomes a scalar input of the element type of input 0; nothing happens if it is left out.
pub fn float_to_input(graph: &mut Graph, id: NodeId, name: &str, slot: usize) -> Result<()> {
    let value = match take_attr(graph, id, name) {
        None => return Ok(()),
        Some(Attribute::Float(value)) => value,
        Some(_) => bail!("attribute `{name}` is not a float"),
    };
    let Some(dtype) = graph.input(id, 0).and_then(|v| graph.ty(v)).and_then(Type::dtype) else {
        bail!("the element type of input 0 is unknown, so attribute `{name}` cannot become an input");
    };
    set_const_input(graph, id, slot, name, Tensor::scalar_of(dtype, f64::from(value))?);
    Ok(())
}

/// The operator gets another name.
pub fn rename(graph: &mut Graph, id: NodeId, name: &str) {
    if let Some(op) = graph.node_mut(id).op_mut() {
        op.name = name.to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Operator;
    use crate::{DType, ops};

    /// A node of an old opset lifted by all rewrites of its row: its operator and its constant inputs.
    fn lifted(name: &str, attrs: Attributes) -> (Operator, Vec<Option<Tensor>>) {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", Type::tensor(DType::F64, [4i64]));
        let id = graph.add_op(name, Operator::onnx(name, attrs), &[Some(x)], 2);
        for (_, rewrite) in ops::lookup("", name).unwrap().upgrades {
            rewrite(&mut graph, id).unwrap();
        }
        let inputs = graph.node_inputs(id);
        let constants = inputs[1..].iter().map(|v| v.and_then(|v| graph.constant(v))).collect();
        (graph.node(id).op().cloned().unwrap(), constants)
    }

    #[test]
    fn attributes_become_inputs() {
        let ints = |values: &[i64]| Some(Tensor::from_i64s(values));
        let (op, inputs) = lifted("Squeeze", Attributes::new().with("axes", [1]));
        assert_eq!((op.attrs, inputs), (Attributes::new(), vec![ints(&[1])]));
        let slice = Attributes::new().with("axes", [2]).with("starts", [0]).with("ends", [5]);
        assert_eq!(lifted("Slice", slice).1, [ints(&[0]), ints(&[5]), ints(&[2])]);
        assert_eq!(lifted("Reshape", Attributes::new().with("shape", [0, -1])).1, [ints(&[0, -1])]);
        assert_eq!(lifted("TopK", Attributes::new().with("k", 3i64)).1, [ints(&[3])]);
        let pad = Attributes::new().with("mode", "constant").with("pads", [1, 2]).with("value", 0.5f32);
        assert_eq!(lifted("Pad", pad).1, [ints(&[1, 2]), Some(Tensor::scalar(0.5f64))]);
        assert_eq!(lifted("Split", Attributes::new().with("split", [1, 3])).1, [ints(&[1, 3])]);
    }

    #[test]
    fn names_and_defaults_change() {
        assert_eq!(lifted("Split", Attributes::new()).0.attrs, Attributes::new().with("num_outputs", 2i64));
        assert_eq!(lifted("Concat", Attributes::new()).0.attrs, Attributes::new().with("axis", 1i64));
        assert_eq!(lifted("Scatter", Attributes::new()).0.name, "ScatterElements");
        assert!(ops::lookup("", "Squeeze").unwrap().upgrades[0].1(&mut broken(), node_of(&broken())).is_err());
    }

    /// A `Squeeze` whose axes are no list.
    fn broken() -> Graph {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", Type::tensor(DType::F64, [4i64]));
        graph.add_op("s", Operator::onnx("Squeeze", Attributes::new().with("axes", 1i64)), &[Some(x)], 1);
        graph
    }

    fn node_of(graph: &Graph) -> NodeId {
        graph.topo_ops()[0]
    }
}
