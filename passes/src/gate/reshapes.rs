//! Reshapes between `[N, C, 1, 1]` and `[N, C]`, as they stand around squeeze-and-excitation that is written with linear layers, become `Flatten` and `Unsqueeze`: these work for any number of channels,
//! so that some of them can be left out, and are seen to keep channels apart.

use sartor_ir::{Attributes, Dim, Graph, NodeId, Operator, Result, Tensor, Type, Value, infer};

/// Rewrites them in a graph. Numbers and names stay.
pub(super) fn rewrite(graph: &mut Graph, opset: i64) -> Result<()> {
    if !graph.topo_ops().into_iter().any(|id| graph.node(id).is("Reshape")) {
        return Ok(());
    }
    infer::infer_graph(graph, opset)?;
    for id in graph.topo_ops() {
        let Some((data, from, to)) = ranks(graph, id) else { continue };
        let (operator, axes) = match (from, to) {
            (_, 2) => (Operator::onnx("Flatten", Attributes::new().with("axis", 1i64)), None),
            (2, _) => {
                let axes: Vec<i64> = (2..to as i64).collect();
                let axes = graph.add_const("axes", Tensor::from_i64s(&axes));
                (Operator::onnx("Unsqueeze", Attributes::new()), Some(axes))
            }
            _ => continue,
        };
        if let Some(op) = graph.node_mut(id).op_mut() {
            *op = operator;
        }
        let inputs: Vec<Option<Value>> = [Some(data), axes].into_iter().filter(Option::is_some).collect();
        graph.set_inputs(id, &inputs);
    }
    graph.remove_dead();
    Ok(())
}

/// What a `Reshape` reads, and its rank before and after, if it has one place per channel on both sides: all but the channels stays, so the batch does too.
fn ranks(graph: &Graph, id: NodeId) -> Option<(Value, usize, usize)> {
    let data = graph.input(id, 0).filter(|_| graph.node(id).op().is_some_and(|op| op.is("Reshape")))?;
    let shape = |value: Value| graph.ty(value).and_then(Type::shape);
    let (before, after) = (shape(data)?, shape(Value { node: id, slot: 0 })?);
    let channels = |shape: &[Dim]| {
        let one_place = shape.iter().skip(2).all(|dim| dim.known() == Some(1));
        shape.get(1).and_then(Dim::known).filter(|&n| one_place && n > 0)
    };
    (channels(before)? == channels(after)? && before.len() != after.len()).then_some((data, before.len(), after.len()))
}
