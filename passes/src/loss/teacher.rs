//! A model as its own teacher: what it computed before training, beside what it computes now; or another model, as it is.
//!
//! ```text
//! y = MatMul (x, w)        y = MatMul (x, w);  teacher/y = MatMul (x, teacher.w)
//! ```
//! What may change in training (trainable weights, statistics of normalisation) is kept as it was in frozen parameters `teacher.NAME`; all other weights are
//! shared. Of another model all parameters are kept so, and its inputs are those of the same names. The copies are named `teacher/NAME`, so that passes which look for nodes by name (adapters, gates) leave them alone.

use crate::training::TEACHER;
use crate::walk::add_copy;
use crate::{Registry, pipelines};
use sartor_ir::{
    Dim, Graph, GraphOutput, Model, NodeKind, Parameter, Result, Role, Tensor, Type, Value, bail, ensure, infer, onnx,
};
use std::collections::HashMap;
use std::path::Path;

/// Reads another model, made ready to run in programs of this opset.
pub(super) fn load(path: &Path, opset: i64) -> Result<Model> {
    let mut model = onnx::load(path)?;
    pipelines::prepare_inference(&mut model, &Registry::builtin())?;
    ensure!(model.opset() == opset, "the model is in opset {opset}, and its teacher in {}", model.opset());
    Ok(model)
}

/// Adds a copy of another model; returns what it says where `model` has the output `logits`.
pub(super) fn add_other(graph: &mut Graph, model: &mut Model, other: &Model, logits: &GraphOutput) -> Result<Value> {
    let outputs = &other.graph.outputs;
    let of = match outputs.iter().find(|output| output.name == logits.name) {
        Some(output) => output.value,
        None if outputs.len() == 1 => outputs[0].value,
        None => {
            let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
            bail!("none of its outputs ({}) is named \"{}\"", names.join(", "), logits.name)
        }
    };
    let leaf = |graph: &mut Graph, value: Value, _| {
        let node = other.graph.node(value.node);
        match (&node.kind, node.constant()) {
            (NodeKind::Param(name), _) => match other.params.get(name) {
                Some(param) => frozen(graph, model, name, &param.tensor),
                None => bail!("it has no parameter \"{name}\""),
            },
            (_, Some(tensor)) => Ok(graph.add_const(&format!("teacher/{}", other.graph.value_name(value)), tensor)),
            _ => same_input(graph, &other.graph, value),
        }
    };
    let copies = copy(graph, &other.graph, of, leaf)?;
    // Axes may have other names there: types are those that follow from this graph's inputs.
    for &copy in copies.values() {
        graph.set_ty(copy, None);
    }
    infer::infer_graph(graph, model.opset())?;
    let Some(says) = copies.get(&of).copied() else { bail!("it computes nothing") };
    let (own, its) = (graph.ty(logits.value), graph.ty(says));
    ensure!(
        fits(own, its),
        "its output is {}, and the model's output \"{}\" is {}",
        shown(its),
        logits.name,
        shown(own)
    );
    Ok(says)
}

/// Whether two values may be alike: of one element type, and of lengths that are equal where both are known.
fn fits(own: Option<&Type>, its: Option<&Type>) -> bool {
    let shape = |ty: Option<&Type>| ty.and_then(Type::shape).map(<[Dim]>::to_vec);
    let (Some(a), Some(b)) = (shape(own), shape(its)) else { return false };
    let differ = |(a, b): (&Dim, &Dim)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
    own.and_then(Type::dtype) == its.and_then(Type::dtype) && a.len() == b.len() && !a.iter().zip(&b).any(differ)
}

fn shown(ty: Option<&Type>) -> String {
    ty.map_or("of an unknown type".to_string(), Type::to_string)
}

/// The input of the same name.
fn same_input(graph: &Graph, other: &Graph, input: Value) -> Result<Value> {
    let name = other.value_name(input);
    let Some(own) = graph.find_input(name) else { bail!("its input \"{name}\" is none of the model's") };
    let (has, wants) = (graph.ty(own), other.ty(input));
    ensure!(fits(has, wants), "its input \"{name}\" is {}, and the model's {}", shown(wants), shown(has));
    Ok(own)
}

/// Adds a copy of all that computes a value; returns the value's copy.
pub(super) fn add(graph: &mut Graph, model: &mut Model, of: Value) -> Result<Value> {
    let own = graph.clone();
    let copies = copy(graph, &own, of, |graph, value, changes| kept(graph, model, value, changes))?;
    match copies.get(&of) {
        Some(&copy) => Ok(copy),
        None => {
            bail!("with teacher = true the output is compared with what the model computes, and it computes nothing")
        }
    }
}

/// Adds a copy of all operators of `source` that compute a value; returns what stands for their outputs. `leaf` says what stands for other values that they read; it hears whether these are statistics of
/// a normalisation.
fn copy(
    graph: &mut Graph,
    source: &Graph,
    of: Value,
    mut leaf: impl FnMut(&mut Graph, Value, bool) -> Result<Value>,
) -> Result<HashMap<Value, Value>> {
    let above = source.ancestors([of], |_| false);
    let (mut copies, mut leaves) = (HashMap::new(), HashMap::new());
    for id in source.topo_ops().into_iter().filter(|id| above.contains(id)) {
        let node = source.node(id);
        let Some(op) = node.op().cloned().filter(|_| node.constant().is_none()) else { continue };
        let statistics = node.is("BatchNormalization").then_some(3..=4);
        let mut inputs = source.node_inputs(id);
        for (slot, input) in inputs.iter_mut().enumerate() {
            let Some(value) = *input else { continue };
            let changes = statistics.as_ref().is_some_and(|slots| slots.contains(&slot));
            let known = copies.get(&value).or_else(|| leaves.get(&(value, changes))).copied();
            *input = Some(match known {
                Some(copy) => copy,
                None => *leaves.entry((value, changes)).or_insert(leaf(graph, value, changes)?),
            });
        }
        let own = if node.name.is_empty() { source.value_name(Value { node: id, slot: 0 }) } else { &node.name };
        let name = format!("teacher/{own}");
        let copy = add_copy(graph, node, (&name, op), &inputs, |name| format!("teacher/{name}"));
        for slot in 0..node.outputs.len() as u32 {
            copies.insert(Value { node: id, slot }, Value { node: copy, slot });
        }
    }
    Ok(copies)
}

/// A value that the copies may read: itself, or a frozen parameter with what a parameter is before training.
fn kept(graph: &mut Graph, model: &mut Model, value: Value, changes: bool) -> Result<Value> {
    let NodeKind::Param(name) = &graph.node(value.node).kind else { return Ok(value) };
    let Some(param) = model.params.get(name) else { return Ok(value) };
    if !changes && !param.role.is_variable() {
        return Ok(value);
    }
    let tensor = param.tensor.clone();
    frozen(graph, model, &name.clone(), &tensor)
}

/// A frozen parameter of a teacher; it is there already in the second program.
fn frozen(graph: &mut Graph, model: &mut Model, name: &str, tensor: &Tensor) -> Result<Value> {
    let name = format!("{TEACHER}{name}");
    if let Some(other) = model.params.get(&name) {
        ensure!(
            other.tensor == *tensor,
            "the model has a parameter \"{name}\" of its own: rename it to train with teacher = true"
        );
    }
    let copy = graph.param(&name, Type::of(tensor));
    model.params.insert(name, Parameter { tensor: tensor.clone(), role: Role::Frozen });
    Ok(copy)
}
