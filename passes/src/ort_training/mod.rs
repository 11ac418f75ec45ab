//! The artifacts that ONNX Runtime trains from, out of a model whose step has gradients.
//!
//! | file | holds | inputs → outputs |
//! |---|---|---|
//! | `training_model.onnx` | forward and backward | data, label, parameters, a buffer per gradient, `lazy_reset_grad` → `loss`, a flag per buffer |
//! | `eval_model.onnx` | forward | data, label, parameters → `loss`, the model's own outputs |
//! | `optimizer_model.onnx` | one update | `learning_rate`, `step`, sequences of parameters, gradients and moments → a flag |
//! | `checkpoint` | the parameters | |
//!
//! `InPlaceAccumulatorV2` adds a gradient to its buffer, or overwrites it where `lazy_reset_grad` is true, so that a trainer decides how many
//! batches make an update. What these graphs say else is ONNX alone: [`Standard`] writes our own operators out, because ONNX Runtime has no kernels
//! for them, in the newest opset that it knows.
//!
//! What does not fit into this form is refused by name: several links of a chain, running statistics or whatever else a step writes, inputs that tell
//! the place in a run, optimizers other than AdamW and plain SGD, factors on the learning rate, parameters that are not `float32`.
//!
//! Source: the artifacts that `onnxruntime-training` 1.19.2, the last one, writes itself and loads;
//! <https://onnxruntime.ai/docs/api/python/on_device_training/training_artifacts.html>.

mod checkpoint;

use crate::clip::Clip;
use crate::optimizer::{Optimizer, OptimizerKind};
use crate::standard::Standard;
use crate::{Driver, training};
use sartor_ir::{
    Attributes, DType, Error, Graph, GraphOutput, Model, NodeId, NodeKind, Operator, OutputSlot, Program, Result, Role,
    Tensor, Type, Value, bail, ensure, ops,
};
use std::collections::HashSet;

/// The newest version of ONNX's operators that onnxruntime-training 1.19.2 knows.
pub const OPSET: i64 = 21;
/// The newest version of the file format that it reads.
const IR_VERSION: i64 = 10;
const DOMAIN: &str = ops::contrib::DOMAIN;
/// What it appends to a parameter's name for the input that holds its summed gradient, and for the output that says that it was written.
const BUFFER: &str = "_grad.accumulation.buffer";
const WRITTEN: &str = "_grad.accumulation.out";
const RESET: &str = "lazy_reset_grad";

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// `training_model.onnx`.
    pub training: Model,
    /// `eval_model.onnx`.
    pub eval: Model,
    /// `optimizer_model.onnx`.
    pub optimizer: Model,
    /// `checkpoint`.
    pub checkpoint: Vec<u8>,
}

impl Artifacts {
    /// Out of a model on which `loss` and `autodiff` have run, and no optimizer.
    pub fn of(model: &Model, optimizer: &Optimizer, clip: Option<&Clip>) -> Result<Artifacts> {
        let optimizer_graph = optimizer_graph(optimizer, clip)?;
        let step = only_step(model)?;
        let Some(eval) = model.programs.get("eval") else {
            bail!("the model has no program \"eval\": run the pass `loss`")
        };
        let (mut step, eval) = (standard(model, step)?, standard(model, eval)?);
        let read: HashSet<&str> =
            [&step, &eval].iter().flat_map(|m| m.graph.inputs().map(|v| m.graph.value_name(v))).collect();
        let grads = training::gradients(&step.graph, "ort-training")?;
        let is_trained = |name: &str| grads.iter().any(|(trained, _)| trained == name);
        let frozen = model.params.iter().filter(|(name, _)| read.contains(name.as_str()) && !is_trained(name));
        let frozen: Vec<(&str, &Tensor)> = frozen.map(|(name, p)| (name.as_str(), &p.tensor)).collect();
        let trained: Vec<(&str, &Tensor)> =
            grads.iter().map(|(name, _)| (name.as_str(), &model.params[name].tensor)).collect();
        check_trainable(&trained)?;
        let checkpoint = checkpoint::write(&trained, &frozen)?;
        add_buffers(&mut step.graph, &grads, &trained)?;
        Ok(Artifacts { training: step, eval, optimizer: own_model(optimizer_graph), checkpoint })
    }
}

/// The step, if there is one and it does nothing but compute a loss and gradients.
fn only_step(model: &Model) -> Result<&Program> {
    let steps: Vec<(&String, &Program)> = model.programs.iter().filter(|(name, _)| training::is_step(name)).collect();
    let [(_, step)] = steps[..] else {
        bail!(
            "the model has {} training steps, ONNX Runtime's artifacts hold one: a chain of one link, say",
            steps.len()
        );
    };
    let mut problems = Vec::new();
    if let Some(first) = step.bindings.first() {
        let count = step.bindings.len();
        problems.push(format!("the step writes {count} values, such as \"{}\" (as [train-mode] does)", first.param));
    }
    for name in [training::LEARNING_RATE, training::PROGRESS, "step"] {
        if step.graph.find_input(name).is_some() {
            problems.push(format!("the step reads the input \"{name}\""));
        }
    }
    let written = |name: &str| step.bindings.iter().any(|binding| binding.param == name);
    let state = |name: &&str| model.params.get(*name).is_some_and(|p| p.role == Role::State) && !written(name);
    let read = step.graph.node_ids().filter_map(|id| step.graph.param_name(Value { node: id, slot: 0 }));
    problems.extend(read.filter(state).map(|name| format!("the step reads the state \"{name}\"")));
    let problems = problems
        .into_iter()
        .map(|text| Error::msg(format!("{text}, which ONNX Runtime's artifacts have no place for")));
    Error::all(problems.collect())?;
    Ok(step)
}

/// A program as a model of its own in operators that ONNX Runtime has, with the parameters it reads as inputs. Those that only a subgraph reads
/// stay in the file.
fn standard(model: &Model, program: &Program) -> Result<Model> {
    let mut alone = Model { graph: program.graph.clone(), programs: Default::default(), ..model.clone() };
    alone.meta.clear();
    Driver::new().run_pass(&Standard { opset: Some(OPSET) }, &mut alone)?;
    parameters_to_inputs(&mut alone);
    for pass in
        [&crate::fold::Fold::default() as &dyn crate::Pass, &crate::cse::Cse::default(), &crate::dce::Dce::default()]
    {
        Driver::new().run_pass(pass, &mut alone)?;
    }
    alone.remove_unused_params();
    alone.ir_version = alone.ir_version.min(IR_VERSION);
    alone.opsets.insert(DOMAIN.to_string(), 1);
    Ok(alone)
}

fn check_trainable(trained: &[(&str, &Tensor)]) -> Result<()> {
    let problem = |(name, tensor): &(&str, &Tensor)| {
        let dtype = tensor.dtype();
        Error::msg(format!("the parameter \"{name}\" is {dtype}: ONNX Runtime's optimizers know float alone"))
    };
    Error::all(trained.iter().filter(|(_, tensor)| tensor.dtype() != DType::F32).map(problem).collect())
}

/// Gives every gradient a buffer, and leaves the step no other output but the loss.
fn add_buffers(graph: &mut Graph, grads: &[(String, Value)], trained: &[(&str, &Tensor)]) -> Result<()> {
    let Some(loss) = graph.find_output("loss") else { bail!("the step has no output \"loss\"") };
    graph.outputs = vec![GraphOutput { name: "loss".to_string(), value: loss }];
    let flag = || Type::tensor(DType::Bool, [1i64]);
    let mut buffers = Vec::new();
    for ((name, grad), (_, tensor)) in grads.iter().zip(trained) {
        buffers.push((name, *grad, graph.add_input(&format!("{name}{BUFFER}"), Type::of(tensor))));
    }
    let reset = graph.add_input(RESET, flag());
    for (name, grad, buffer) in buffers {
        let output = OutputSlot { name: format!("{name}{WRITTEN}"), ty: Some(flag()) };
        let op = Operator::of_domain(DOMAIN, "InPlaceAccumulatorV2", Attributes::new());
        let node = graph.add_node(
            &format!("{name}_grad.accumulation"),
            op,
            &[Some(buffer), Some(grad), Some(reset)],
            vec![output],
        );
        graph.outputs.push(GraphOutput { name: format!("{name}{WRITTEN}"), value: Value { node, slot: 0 } });
    }
    graph.remove_dead();
    Ok(())
}

/// Makes inputs of the parameters, behind those that are there.
fn parameters_to_inputs(model: &mut Model) {
    let names: Vec<(NodeId, String)> = model
        .graph
        .node_ids()
        .filter_map(|id| match &model.graph.node(id).kind {
            NodeKind::Param(name) => Some((id, name.clone())),
            _ => None,
        })
        .collect();
    for (id, name) in names {
        let Some(param) = model.params.get(&name).filter(|p| p.role != Role::Constant) else { continue };
        let ty = Type::of(&param.tensor);
        let input = model.graph.add_input(&name, ty);
        model.graph.substitute(Value { node: id, slot: 0 }, input);
        model.graph.remove(id);
    }
}

fn own_model(graph: Graph) -> Model {
    let mut model = Model::new(graph);
    model.ir_version = IR_VERSION;
    model.opsets.insert(String::new(), OPSET);
    model.opsets.insert(DOMAIN.to_string(), 1);
    model
}

/// One update of all parameters.
fn optimizer_graph(optimizer: &Optimizer, clip: Option<&Clip>) -> Result<Graph> {
    let mut problems = Vec::new();
    let adam = optimizer.kind == OptimizerKind::Adamw;
    if !adam && optimizer.kind != OptimizerKind::Sgd {
        problems.push(format!("the optimizer is {:?}: ONNX Runtime has AdamW and plain SGD", optimizer.kind));
    }
    if optimizer.kind == OptimizerKind::Sgd && (optimizer.momentum, optimizer.weight_decay) != (0.0, 0.0) {
        problems.push("its SGD has neither momentum nor weight decay".to_string());
    }
    if !optimizer.rate_factors.is_empty() {
        problems.push("its optimizers have one learning rate for all parameters, `rate_factors` are given".to_string());
    }
    Error::all(problems.into_iter().map(Error::msg).collect())?;
    let mut graph = Graph::new("optimizer");
    let sequence = || Type::Sequence(Box::new(Type::unranked(DType::F32)));
    let rate = graph.add_input("learning_rate", Type::tensor(DType::F32, [1i64]));
    // The inputs tell ONNX Runtime which optimizer this is: they are these for plain SGD too, which reads three of them.
    let count = graph.add_input("step", Type::tensor(DType::I64, [1i64]));
    let params = graph.add_input("params", sequence());
    let grads = graph.add_input("gradients", sequence());
    let first = graph.add_input("first_order_moments", sequence());
    let second = adam.then(|| graph.add_input("second_order_moments", sequence()));
    let add = |graph: &mut Graph, name: &str, attrs, inputs: Vec<Value>, ty| {
        let inputs: Vec<Option<Value>> = inputs.into_iter().map(Some).collect();
        let output = OutputSlot { name: graph.fresh_name(name), ty: Some(ty) };
        Value { node: graph.add_node(name, Operator::of_domain(DOMAIN, name, attrs), &inputs, vec![output]), slot: 0 }
    };
    let grads = match clip {
        Some(clip) => {
            ensure!(clip.max_norm > 0.0, "max_norm is {}, expected a positive number", clip.max_norm);
            add(
                &mut graph,
                "InplaceClipGradNorm",
                Attributes::new().with("max_norm", clip.max_norm),
                vec![grads],
                sequence(),
            )
        }
        None => grads,
    };
    let attrs = match adam {
        // Mode 0 is PyTorch's: the parameter shrinks first.
        true => Attributes::new()
            .with("alpha", optimizer.beta1 as f32)
            .with("beta", optimizer.beta2 as f32)
            .with("epsilon", optimizer.epsilon.unwrap_or(1e-8) as f32)
            .with("weight_decay", optimizer.weight_decay as f32)
            .with("adam_mode", 0i64)
            .with("correct_bias", 1i64),
        false => Attributes::new(),
    };
    let (name, inputs) = match second {
        Some(second) => ("AdamWOptimizer", vec![rate, count, params, grads, first, second]),
        None => ("SGDOptimizerV2", vec![rate, params, grads]),
    };
    let value = add(&mut graph, name, attrs, inputs, Type::unranked(DType::Bool));
    graph.outputs = vec![GraphOutput { name: "updated_flag".to_string(), value }];
    Ok(graph)
}
