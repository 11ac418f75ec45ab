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

/// Every kind, with options that use all of its states.
const KINDS: [&str; 6] = [
    "kind=sgd, momentum=0.9",
    "kind=adamw",
    "kind=adagrad",
    "kind=prodigy, d0=1e-3",
    "kind=schedule-free-adamw",
    "kind=d-adapt-adam, d0=1e-3",
];

/// The network with all weights trained by an optimizer.
fn trained_by(dtype: DType, before: &[&str], optimizer: &str) -> Model {
    let mut model = network(dtype);
    model.params.values_mut().for_each(|p| p.role = Role::Trainable);
    apply(&mut model, &["loss", "autodiff"]);
    apply(&mut model, before);
    apply(&mut model, &[&format!("optimizer({optimizer})")]);
    model
}

fn step(model: &mut Model, inputs: &HashMap<String, Tensor>, number: u64) -> f64 {
    eval::run_program(model, "step", inputs, 0, number).unwrap()["loss"].to_f64s().unwrap()[0]
}

fn numbers(model: &Model, param: &str) -> Vec<f64> {
    model.params[param].tensor.to_f64s().unwrap()
}

#[test]
fn every_kind_stands_still_until_gradients_apply() {
    for kind in KINDS {
        let kind = format!("{kind}, weight_decay=0.1");
        let mut once = trained_by(DType::F64, &["clip(max_norm=0.5)"], &kind);
        let mut twice = trained_by(DType::F64, &["accumulate(steps=2)", "clip(max_norm=0.5)"], &kind);
        let inputs = batch(DType::F64);
        for round in 0..4 {
            step(&mut once, &inputs, round);
            let before = twice.clone();
            step(&mut twice, &inputs, 2 * round);
            for (name, param) in &before.params {
                let gathers = name == "step/accumulated" || name.starts_with("step/sum:") && !name.ends_with("_1");
                let stands = twice.params[name].tensor == param.tensor;
                assert!(gathers || stands, "{kind}, round {round}: {name} moved");
            }
            step(&mut twice, &inputs, 2 * round + 1);
            for name in once.params.keys() {
                // The sums of `adagrad` and of `accumulate` would have the same name.
                let second = Some(format!("{name}_1")).filter(|second| twice.params.contains_key(second));
                let same = second.as_ref().unwrap_or(name);
                let apart = largest_difference(&numbers(&once, name), &numbers(&twice, same));
                assert!(apart < 1e-12, "{kind}, round {round}: {name} differs by {apart}");
            }
        }
        assert!(loss_of(&once, &inputs) < loss_of(&trained_by(DType::F64, &[], &kind), &inputs), "{kind} learns");
    }
}

#[test]
fn states_of_every_kind_begin_at_nothing() {
    for kind in KINDS {
        let model = trained_by(DType::F32, &[], kind);
        let states: Vec<&String> = model.params.keys().filter(|name| name.starts_with("step/")).collect();
        assert!(states.len() >= 4, "{kind}: {states:?}");
        for name in states {
            let (param, d0) = (&model.params[name], name == "step/d" || name == "step/d_max");
            assert_eq!(param.role, Role::State, "{kind}: {name}");
            let initial = if d0 { 1e-3 } else { 0.0 };
            assert!(numbers(&model, name).iter().all(|&x| x == initial), "{kind}: {name} begins at {initial}");
        }
    }
}

#[test]
fn x0_and_z_are_taken_at_the_first_update() {
    for (kind, state) in [("kind=prodigy", "step/x0:layer.0.W"), ("kind=schedule-free-adamw", "step/z:layer.0.W")] {
        let mut model = trained_by(DType::F64, &[], kind);
        // What an earlier link of a chain, or another program, made of the weight since the pass ran.
        let start = Draw::new(1, "start").tensor(&[5, 6], -0.5, 0.5).cast(DType::F64).unwrap();
        model.params["layer.0.W"].tensor = start.clone();
        let inputs = batch(DType::F64);
        let still = HashMap::from([("learning_rate".to_string(), Tensor::scalar(0f32))]);
        step(&mut model, &inputs.clone().into_iter().chain(still).collect(), 0);
        assert_eq!(model.params["layer.0.W"].tensor, start, "{kind}: a rate of 0 moves nothing");
        for number in 1..3 {
            step(&mut model, &inputs, number);
        }
        let (kept, start) = (numbers(&model, state), start.to_f64s().unwrap());
        match kind {
            "kind=prodigy" => assert_eq!(kept, start),
            _ => assert!((1e-3..0.2).contains(&largest_difference(&kept, &start)), "two steps of 0.05 from there"),
        }
    }
}

#[test]
fn schedule_free_steps_compute_at_y_and_keep_the_average() {
    let mut model = trained_by(DType::F64, &[], "kind=schedule-free-adamw, beta1=0.75");
    let inputs = batch(DType::F64);
    let trained = ["layer.0.W", "layer.0.b", "layer.1.W", "layer.1.b"];
    let mut sums: Vec<Vec<f64>> = trained.iter().map(|name| vec![0.0; numbers(&model, name).len()]).collect();
    for number in 0..5 {
        let mut at_y = model.clone();
        for name in trained {
            let (x, z) = (numbers(&model, name), numbers(&model, &format!("step/z:{name}")));
            let y = |(x, z): (&f64, &f64)| if number == 0 { *x } else { 0.25 * z + 0.75 * x };
            let y: Vec<f64> = x.iter().zip(&z).map(y).collect();
            at_y.params[name].tensor = Tensor::from_vec(model.params[name].tensor.shape().to_vec(), y);
        }
        let loss = step(&mut model, &inputs, number);
        assert!((loss - loss_of(&at_y, &inputs)).abs() < 1e-12, "step {number} computes at y");
        for (name, sum) in trained.iter().zip(&mut sums) {
            sum.iter_mut().zip(numbers(&model, &format!("step/z:{name}"))).for_each(|(sum, z)| *sum += z);
            let mean: Vec<f64> = sum.iter().map(|sum| sum / (number + 1) as f64).collect();
            let apart = largest_difference(&mean, &numbers(&model, name));
            assert!(apart < 1e-12, "{name} is the average of all z but for {apart}");
        }
    }
    let (x, z) = (numbers(&model, "layer.1.b"), numbers(&model, "step/z:layer.1.b"));
    assert!(largest_difference(&x, &z) > 1e-3);
}

#[test]
fn links_of_a_chain_begin_afresh() {
    for kind in KINDS {
        let mut model = network(DType::F64);
        model.params["layer.1.b"].role = Role::Trainable;
        let optimizer = format!("optimizer({kind})");
        apply(&mut model, &["loss", "cola(rank=2, links=2, targets=[\"*/MatMul\"])", "autodiff", &optimizer]);
        let inputs = batch(DType::F64);
        let run = |model: &mut Model, program: &str, number| {
            eval::run_program(model, program, &inputs, 0, number).unwrap();
        };
        (0..5).for_each(|number| run(&mut model, "step.0", number));
        run(&mut model, "knot.1", 5);
        // Both links train the bias: the second starts where the first left it.
        let (before, left) = (loss_of(&model, &inputs), numbers(&model, "layer.1.b"));
        let fresh = |model: &Model| {
            let states = model.params.keys().filter(|name| name.starts_with("step.1/") && !name.contains("/d"));
            states.map(|name| numbers(model, name)).collect::<Vec<_>>()
        };
        assert!(fresh(&model).iter().flatten().all(|&x| x == 0.0), "{kind}");
        run(&mut model, "step.1", 5);
        let moved = largest_difference(&numbers(&model, "layer.1.b"), &left);
        assert!((1e-9..0.1).contains(&moved), "{kind}: moved by {moved}");
        (6..12).for_each(|number| run(&mut model, "step.1", number));
        assert!(loss_of(&model, &inputs) < before, "{kind}");
    }
}

#[test]
fn options_of_the_optimizer_out_of_range_are_sentences() {
    let error = |options: &str| {
        let (name, options) = options::parse_invocation(&format!("optimizer({options})")).unwrap();
        let pass = Registry::builtin().build(&name, options).unwrap();
        pass.run(&mut network(DType::F32)).unwrap_err().to_string()
    };
    for (options, wanted) in [
        ("beta1=1", "beta1 is 1, expected a number in [0, 1)"),
        ("beta3=-0.5", "beta3 is -0.5, expected a number in [0, 1)"),
        ("d0=0", "d0 is 0, expected a number above 0"),
        ("d_coef=-1", "d_coef is -1, expected a number above 0"),
        ("growth_rate=0.5", "growth_rate is below 1: the step size could only fall"),
        ("slice_p=0", "slice_p is 0, expected at least 1"),
        ("weight_lr_power=-1", "weight_lr_power is -1, expected 0 or more"),
        ("r=-1", "r is -1, expected 0 or more"),
        ("kind=prodigy, epsilon=0", "epsilon is 0, this kind needs a number above 0"),
        ("nesterov", "nesterov needs a momentum above 0"),
    ] {
        assert_eq!(error(options), wanted);
    }
}
