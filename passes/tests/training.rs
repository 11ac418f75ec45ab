//! The training passes on a small network, through the reference evaluator: gradients against finite differences,
//! updates against the formulas, chains against the merged model.

use sartor_ir::{Attributes, DType, Dim, Graph, GraphOutput, Model, Parameter, Role, Tensor, Type, eval, rng::Draw};
use sartor_passes::{Driver, Registry, options};
use std::collections::HashMap;

/// `y = Relu(x·W1 + b1)·W2 + b2`, weights frozen, in this element type.
fn network(dtype: DType) -> Model {
    let mut draw = Draw::new(7, "network");
    let mut model = Model::new(Graph::new("network"));
    let shape = vec![Dim::symbol("batch"), Dim::Known(5)];
    let x = model.graph.add_input("x", Type::Tensor { dtype, shape: Some(shape) });
    let mut value = x;
    for (layer, (rows, columns)) in [(5, 6), (6, 3)].into_iter().enumerate() {
        for (name, shape) in [("W", vec![rows, columns]), ("b", vec![columns])] {
            let tensor = draw.tensor(&shape, -0.8, 0.8).cast(dtype).unwrap();
            let ty = Type::of(&tensor);
            let name = format!("layer.{layer}.{name}");
            model.params.insert(name.clone(), Parameter { tensor, role: Role::Frozen });
            let weight = model.graph.param(&name, ty);
            let op = if rows * columns > 0 && shape.len() == 2 { "MatMul" } else { "Add" };
            value = model.graph.op(op, &[value, weight], Attributes::new());
            model.graph.node_mut(value.node).name = format!("/layer.{layer}/{op}");
        }
        if layer == 0 {
            value = model.graph.op("Relu", &[value], Attributes::new());
        }
    }
    model.graph.outputs.push(GraphOutput { name: "y".into(), value });
    sartor_ir::infer::infer_model(&mut model).unwrap();
    model
}

fn apply(model: &mut Model, passes: &[&str]) {
    let registry = Registry::builtin();
    for text in passes {
        let invocation = options::parse_invocation(text).unwrap();
        let pass = registry.build(&invocation.0, invocation.1).unwrap();
        Driver::new().run_pass(pass.as_ref(), model).unwrap_or_else(|e| panic!("{text}: {e}"));
    }
}

fn batch(dtype: DType) -> HashMap<String, Tensor> {
    let mut draw = Draw::new(3, "batch");
    HashMap::from([
        ("x".to_string(), draw.tensor(&[4, 5], -1.0, 1.0).cast(dtype).unwrap()),
        ("label".to_string(), Tensor::from_i64s(&[0, 2, 1, 2])),
        ("learning_rate".to_string(), Tensor::scalar(0.05f32)),
    ])
}

fn loss_of(model: &Model, inputs: &HashMap<String, Tensor>) -> f64 {
    let mut copy = model.clone();
    eval::run_program(&mut copy, "eval", inputs, 0, 0).unwrap()["loss"].to_f64s().unwrap()[0]
}

#[test]
fn gradients_equal_finite_differences() {
    let mut model = network(DType::F64);
    model.params.values_mut().for_each(|p| p.role = Role::Trainable);
    apply(&mut model, &["loss", "autodiff"]);
    let inputs = batch(DType::F64);
    let outputs = eval::run_program(&mut model.clone(), "step", &inputs, 0, 0).unwrap();
    for name in model.params.keys().cloned().collect::<Vec<_>>() {
        let grad = outputs[&format!("grad:{name}")].to_f64s().unwrap();
        for (i, g) in grad.iter().enumerate() {
            let shifted = |h: f64| {
                let mut copy = model.clone();
                let param = copy.params.get_mut(&name).unwrap();
                let mut numbers = param.tensor.to_f64s().unwrap();
                numbers[i] += h;
                param.tensor = Tensor::from_vec(param.tensor.shape().to_vec(), numbers);
                loss_of(&copy, &inputs)
            };
            let numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            assert!((g - numeric).abs() < 1e-7, "{name}[{i}]: {g} against {numeric}");
        }
    }
}

#[test]
fn frozen_weights_get_no_gradient() {
    let mut model = network(DType::F32);
    model.params["layer.1.b"].role = Role::Trainable;
    apply(&mut model, &["loss", "autodiff"]);
    let step = &model.programs["step"].graph;
    let grads: Vec<&str> = step.outputs.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(grads, ["loss", "grad:layer.1.b"]);
    let backward_products = step.topo_ops().into_iter().filter(|&n| step.node(n).is("MatMul")).count();
    assert_eq!(backward_products, 2, "only the two of the forward pass");
}

#[test]
fn adamw_takes_the_step_of_its_formula() {
    let mut model = network(DType::F64);
    model.params["layer.1.b"].role = Role::Trainable;
    apply(&mut model, &["loss", "autodiff"]);
    let inputs = batch(DType::F64);
    let (rate, decay) = (f64::from(0.05f32), 0.1);
    let mut w = model.params["layer.1.b"].tensor.to_f64s().unwrap();
    let (mut m, mut v) = (vec![0.0; 3], vec![0.0; 3]);
    let mut plain = model.clone();
    apply(&mut model, &["optimizer(kind=\"adamw\", weight_decay=0.1)"]);
    for t in 1..=4 {
        plain.params["layer.1.b"].tensor = Tensor::from_vec([3], w.clone());
        let out = eval::run_program(&mut plain, "step", &inputs, 0, 0).unwrap();
        let g = out["grad:layer.1.b"].to_f64s().unwrap();
        for i in 0..3 {
            w[i] -= rate * decay * w[i];
            m[i] = 0.9 * m[i] + 0.1 * g[i];
            v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
            let root = (v[i] / (1.0 - 0.999f64.powi(t))).sqrt();
            w[i] -= rate * m[i] / (1.0 - 0.9f64.powi(t)) / (root + 1e-8);
        }
        eval::run_program(&mut model, "step", &inputs, 0, t as u64).unwrap();
        let found = model.params["layer.1.b"].tensor.to_f64s().unwrap();
        for i in 0..3 {
            assert!((found[i] - w[i]).abs() < 1e-12, "step {t}: {found:?} against {w:?}");
        }
    }
}

#[test]
fn accumulated_halves_equal_the_whole_batch() {
    let make = |passes: &[&str]| {
        let mut model = network(DType::F64);
        model.params["layer.0.W"].role = Role::Trainable;
        apply(&mut model, passes);
        model
    };
    let whole = batch(DType::F64);
    let half = |from: usize| {
        let x = whole["x"].to_vec::<f64>().unwrap()[from * 5..(from + 2) * 5].to_vec();
        let label = whole["label"].to_i64s().unwrap()[from..from + 2].to_vec();
        let mut inputs = whole.clone();
        inputs.insert("x".into(), Tensor::from_vec([2, 5], x));
        inputs.insert("label".into(), Tensor::from_i64s(&label));
        inputs
    };
    let tail = ["clip(max_norm=0.01)", "optimizer(kind=\"sgd\", momentum=0.9, nesterov=true)"];
    let mut once = make(&["loss", "autodiff", tail[0], tail[1]]);
    let mut twice = make(&["loss", "autodiff", "accumulate(steps=2)", tail[0], tail[1]]);
    for round in 0..3 {
        eval::run_program(&mut once, "step", &whole, 0, round).unwrap();
        let before = twice.params["layer.0.W"].tensor.clone();
        eval::run_program(&mut twice, "step", &half(0), 0, round).unwrap();
        assert_eq!(twice.params["layer.0.W"].tensor, before, "nothing moves before the last part");
        eval::run_program(&mut twice, "step", &half(2), 0, round).unwrap();
        let (a, b) = (&once.params["layer.0.W"].tensor, &twice.params["layer.0.W"].tensor);
        for (x, y) in a.to_f64s().unwrap().iter().zip(b.to_f64s().unwrap()) {
            assert!((x - y).abs() < 1e-12);
        }
    }
}

fn outputs(model: &Model, inputs: &HashMap<String, Tensor>) -> Vec<f64> {
    eval::run(model, inputs).unwrap()[0].to_f64s().unwrap()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

#[test]
fn a_chain_trains_merges_and_keeps_the_original() {
    let mut model = network(DType::F32);
    let original = model.clone();
    apply(
        &mut model,
        &["loss", "cola(ranks=[3, 2, 1], links=3, alpha=4, targets=[\"*/MatMul\"])", "autodiff", "optimizer"],
    );
    let names: Vec<&str> = model.programs.keys().map(String::as_str).collect();
    assert_eq!(names, ["step.0", "knot.1", "step.1", "knot.2", "step.2", "eval"]);
    let inputs = batch(DType::F32);
    assert_eq!(outputs(&model, &inputs), outputs(&original, &inputs), "fresh adapters change nothing");
    let start = loss_of(&model, &inputs);
    for link in 0..3 {
        if link > 0 {
            let before = loss_of(&model, &inputs);
            eval::run_program(&mut model, &format!("knot.{link}"), &HashMap::new(), 0, 0).unwrap();
            let mut probe = model.clone();
            let out = eval::run_program(&mut probe, &format!("step.{link}"), &inputs, 0, 0).unwrap();
            let after = out["loss"].to_f64s().unwrap()[0];
            assert!((before - after).abs() < 1e-6, "knot {link}: {before} became {after}");
        }
        for step in 0..10 {
            eval::run_program(&mut model, &format!("step.{link}"), &inputs, 0, step).unwrap();
        }
    }
    assert!(loss_of(&model, &inputs) < 0.5 * start, "it learns: {start} to {}", loss_of(&model, &inputs));
    for (name, param) in &original.params {
        assert_eq!(model.params[name].tensor, param.tensor, "{name} is frozen");
    }
    let chain = outputs(&model, &inputs);
    apply(&mut model, &["merge"]);
    assert!(largest_difference(&chain, &outputs(&model, &inputs)) < 1e-5);
    assert_eq!(model.graph.op_count(), original.graph.op_count());
    assert_eq!(model.params.len(), original.params.len());
}

#[test]
fn unknown_targets_list_near_misses() {
    let mut model = network(DType::F32);
    let invocation = options::parse_invocation("cola(targets=[\"/layer.0/MatMull\"])").unwrap();
    let pass = Registry::builtin().build(&invocation.0, invocation.1).unwrap();
    let error = Driver::new().run_pass(pass.as_ref(), &mut model).unwrap_err().to_string();
    assert!(error.contains("matches no operator that can take adapters"), "{error}");
    assert!(error.contains("/layer.0/MatMul"), "{error}");
}

#[test]
fn a_missing_gradient_names_every_node() {
    let mut model = network(DType::F32);
    model.params["layer.0.W"].role = Role::Trainable;
    let y = model.graph.outputs[0].value;
    let odd = sartor_ir::Operator { domain: "com.acme".into(), name: "Odd".into(), ..Default::default() };
    let mut value = y;
    for name in ["first", "second"] {
        let ty = model.graph.ty(y).cloned();
        let node = model.graph.add_op(name, odd.clone(), &[Some(value)], 1);
        value = sartor_ir::Value { node, slot: 0 };
        model.graph.set_ty(value, ty);
    }
    model.opsets.insert("com.acme".into(), 1);
    model.graph.outputs[0].value = value;
    apply(&mut model, &["loss"]);
    let invocation = options::parse_invocation("autodiff").unwrap();
    let pass = Registry::builtin().build(&invocation.0, invocation.1).unwrap();
    let error = Driver::new().run_pass(pass.as_ref(), &mut model).unwrap_err().to_string();
    assert!(error.contains("\"first\" (com.acme::Odd)") && error.contains("\"second\""), "{error}");
}
