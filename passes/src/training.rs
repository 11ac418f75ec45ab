//! What the training passes share: which programs are steps, which outputs are gradients, and the opset they need.

use sartor_ir::ops::Emit;
use sartor_ir::{
    Binding, Graph, GraphOutput, Model, NodeId, OPSET, Program, Result, Role, Tensor, Value, bail, ensure,
};
use std::collections::HashSet;

/// What the name of a gradient's output begins with; the parameter's name follows.
pub const GRAD: &str = "grad:";
/// What the name of a parameter begins with that is kept as it was before training; the parameter's name follows.
pub const TEACHER: &str = "teacher.";
/// The input of a step that carries the learning rate.
pub const LEARNING_RATE: &str = "learning_rate";
/// The input of a step that carries the share of the run that is done, from 0 to 1.
pub const PROGRESS: &str = "progress";
/// The output of a step that tells whether this run of it applies the accumulated gradients.
pub const APPLY: &str = "apply";
/// The output of a step with the Euclidean norm of all gradients together.
pub const GRAD_NORM: &str = "grad_norm";

/// Errors unless the model is in the internal opset or a newer one.
pub fn require_opset(model: &Model, pass: &str) -> Result<()> {
    let opset = model.opset();
    ensure!(
        opset >= OPSET,
        "`{pass}` needs opset {OPSET} or newer, the model has {opset}: run the pass `upgrade` first"
    );
    Ok(())
}

/// Whether a program is a training step: `step`, or `step.0`, `step.1`, … for the links of a chain.
pub fn is_step(name: &str) -> bool {
    name == "step" || name.strip_prefix("step.").is_some_and(|n| n.parse::<usize>().is_ok())
}

/// Runs a function on every step of the model: it gets the program's name, the program taken out of the model, and
/// the rest of the model. An error if there is no step.
pub fn for_each_step(
    model: &mut Model,
    pass: &str,
    mut run: impl FnMut(&str, &mut Program, &mut Model) -> Result<()>,
) -> Result<()> {
    let names: Vec<String> = model.programs.keys().filter(|n| is_step(n)).cloned().collect();
    ensure!(!names.is_empty(), "`{pass}` works on the program \"step\", but there is none: run the pass `loss` first");
    for name in names {
        let empty = Program { graph: Graph::new(&name), bindings: Vec::new() };
        let slot = model.programs.get_mut(&name).map(|slot| std::mem::replace(slot, empty));
        let Some(mut program) = slot else { continue };
        let result = run(&name, &mut program, model);
        model.programs.insert(name.clone(), program);
        result.map_err(|e| e.at(format!("program \"{name}\"")))?;
    }
    Ok(())
}

/// The gradients of a step: the parameter's name and the value. An error if there are none.
pub fn gradients(graph: &Graph, pass: &str) -> Result<Vec<(String, Value)>> {
    let grads: Vec<(String, Value)> =
        graph.outputs.iter().filter_map(|o| Some((o.name.strip_prefix(GRAD)?.to_string(), o.value))).collect();
    if grads.is_empty() {
        bail!("`{pass}` works on gradients, but there are none: run the pass `autodiff` first");
    }
    Ok(grads)
}

/// Adds or redirects an output.
pub fn set_output(graph: &mut Graph, name: &str, value: Value) {
    match graph.outputs.iter_mut().find(|o| o.name == name) {
        Some(output) => output.value = value,
        None => graph.outputs.push(GraphOutput { name: name.to_string(), value }),
    }
}

/// The names of the trainable parameters that a graph reads, in the graph's order.
pub fn trainables(graph: &Graph, model: &Model) -> Vec<String> {
    let trainable = |name: &&str| model.params.get(*name).is_some_and(|p| p.role == Role::Trainable);
    graph
        .node_ids()
        .filter_map(|node| graph.param_name(Value { node, slot: 0 }))
        .filter(trainable)
        .map(str::to_string)
        .collect()
}

/// The parameters that the inference graph and the programs that are no steps read: what a step leaves for others.
pub fn shown(model: &Model) -> HashSet<String> {
    let others = model.programs.iter().filter(|(name, _)| !is_step(name)).map(|(_, p)| &p.graph);
    let graphs = std::iter::once(&model.graph).chain(others);
    graphs
        .flat_map(|g| g.node_ids().filter_map(|node| g.param_name(Value { node, slot: 0 })))
        .map(str::to_string)
        .collect()
}

/// Lets these readers of a value, and the outputs that show it, take another one.
pub fn redirect(graph: &mut Graph, old: Value, new: Value, readers: &[(NodeId, usize)]) {
    graph.replace_uses_if(old, new, |node, slot| readers.contains(&(node, slot)));
    graph.outputs.iter_mut().filter(|o| o.value == old).for_each(|o| o.value = new);
}

/// `old + share · (next - old)`, where the share is a scalar of any floating-point type.
pub fn nearer(emit: &mut Emit, old: Value, next: Value, share: Value) -> Result<Value> {
    let by = emit.cast(share, emit.dtype(old)?)?;
    let apart = emit.sub(next, old)?;
    let part = emit.mul(apart, by)?;
    emit.add(old, part)
}

/// A sum with one more term, or that term where there is no sum yet.
pub fn plus(emit: &mut Emit, sum: Option<Value>, term: Value) -> Result<Value> {
    match sum {
        Some(sum) => emit.add(sum, term),
        None => Ok(term),
    }
}

/// Adds an output to a program that is written to a parameter after each run.
pub fn bind(program: &mut Program, output: &str, value: Value, param: &str) {
    set_output(&mut program.graph, output, value);
    program.bindings.push(Binding { output: output.to_string(), param: param.to_string() });
}

/// Zeros of the type and shape of a tensor.
pub fn zero_like(tensor: &Tensor) -> Result<Tensor> {
    Tensor::zeros(tensor.dtype(), tensor.shape().to_vec())
}
