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
