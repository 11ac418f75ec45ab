//! Fast kernels against the reference evaluator: every operator's samples in `f32`, chains that fuse, odd shapes, and
//! bit-equal results for 1, 2 and 4 threads.

use sartor_ir::rng::Draw;
use sartor_ir::{Attributes, DType, Graph, GraphOutput, Model, OutputSlot, Tensor, Type, Value, eval, ops};
use sartor_runtime::{Key, Params, Session, SessionOptions};
use std::collections::HashMap;

type Inputs = HashMap<String, Tensor>;

fn output(graph: &mut Graph, name: &str, value: Value) {
    graph.outputs.push(GraphOutput { name: name.to_string(), value });
}

fn input(graph: &mut Graph, inputs: &mut Inputs, draw: &mut Draw, name: &str, shape: &[usize]) -> Value {
    let tensor = draw.tensor(shape, -1.0, 1.0).cast(DType::F32).unwrap();
    let value = graph.add_input(name, Type::of(&tensor));
    inputs.insert(name.to_string(), tensor);
    value
}

fn reference(model: &Model, inputs: &Inputs) -> HashMap<String, Tensor> {
    let outputs = eval::run(model, inputs).unwrap();
    model.graph.outputs.iter().map(|o| o.name.clone()).zip(outputs).collect()
}

fn run(model: &Model, inputs: &Inputs, threads: usize) -> (HashMap<String, Tensor>, sartor_runtime::Report) {
    let mut session = Session::new(model, SessionOptions { threads }).unwrap();
    let mut params = Params::of(model);
    session.run(&mut params, inputs, Key::default()).unwrap();
    // The second run finds the plan and dirty memory.
    let outputs = session.run(&mut params, inputs, Key::default()).unwrap();
    (outputs, session.report())
}

fn assert_close(found: &Tensor, wanted: &Tensor, what: &str) {
    assert_eq!((found.dtype(), found.shape()), (wanted.dtype(), wanted.shape()), "{what}");
    if found.dtype() == DType::String {
        return assert_eq!(found, wanted, "{what}");
    }
    let (a, b) = (found.to_f64s().unwrap(), wanted.to_f64s().unwrap());
    let scale = b.iter().filter(|x| x.is_finite()).fold(0.0, |m: f64, x| m.max(x.abs()));
    for (i, (x, y)) in a.iter().zip(&b).enumerate() {
        let near = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= 2e-5 * y.abs() + 4e-6 * scale.max(0.01);
        assert!(near, "{what}: element {i} is {x}, the reference says {y}");
    }
}

/// Runs with 1, 2 and 4 threads, compares bits between them and numbers with the reference.
fn check(graph: Graph, inputs: &Inputs, what: &str) -> sartor_runtime::Report {
    let model = Model::new(graph);
    let wanted = reference(&model, inputs);
    let (one, report) = run(&model, inputs, 1);
    assert_eq!(report.unplanned, None, "{what}");
    for (name, tensor) in &wanted {
        assert_close(&one[name], tensor, &format!("{what}, output {name}"));
    }
    for threads in [2, 4] {
        let (many, _) = run(&model, inputs, threads);
        for (name, tensor) in &one {
            assert_eq!(many[name].bytes(), tensor.bytes(), "{what}, output {name} with {threads} threads");
        }
    }
    report
}

fn sample_model(sample: &ops::Sample) -> (Model, Inputs) {
    let (mut graph, mut inputs) = (Graph::new("sample"), Inputs::new());
    let mut values = Vec::new();
    for (i, tensor) in sample.inputs.iter().enumerate() {
        values.push(tensor.as_ref().map(|tensor| {
            if tensor.dtype().is_int() && tensor.len() <= 64 {
                return graph.add_const("const", tensor.clone());
            }
            let tensor = if tensor.dtype() == DType::F64 { tensor.cast(DType::F32).unwrap() } else { tensor.clone() };
            let name = format!("x{i}");
            inputs.insert(name.clone(), tensor.clone());
            graph.add_input(&name, Type::of(&tensor))
        }));
    }
    let slots: Vec<OutputSlot> = (0..sample.outputs).map(|i| OutputSlot { name: format!("y{i}"), ty: None }).collect();
    let node = graph.add_node("node", sample.op.clone(), &values, slots);
    for i in 0..sample.outputs as u32 {
        output(&mut graph, &format!("y{i}"), Value { node, slot: i });
    }
    (Model::new(graph), inputs)
}

#[test]
fn every_operator_runs_as_the_reference_does() {
    let mut failures = Vec::new();
    let mut compared = 0;
    for def in ops::all() {
        let Some(sample) = def.sample else { continue };
        for seed in 0..6 {
            let mut draw = Draw::new(seed, def.name);
            let sample = sample(&mut draw);
            let (model, inputs) = sample_model(&sample);
            let Ok(wanted) = eval::run(&model, &inputs) else { continue };
            let outcome = std::panic::catch_unwind(|| {
                let (found, report) = run(&model, &inputs, 2);
                let data = report.unplanned.as_ref().is_none_or(|reason| reason.contains("depends on data"));
                assert!(data, "{}: not planned: {:?}", def.name, report.unplanned);
                for (o, tensor) in model.graph.outputs.iter().zip(&wanted) {
                    assert_close(&found[&o.name], tensor, &format!("{}, seed {seed}, {:?}", def.name, sample.op.attrs));
                }
            });
            compared += 1;
            if outcome.is_err() {
                failures.push(format!("{} seed {seed}", def.name));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
    assert!(compared > 300, "only {compared} samples were compared");
}

#[test]
fn products_with_epilogues_of_odd_shapes() {
    for (seed, &(b, m, k, n)) in [
        (1, 1, 1, 1),
        (2, 3, 5, 7),
        (1, 17, 384, 8),
        (3, 33, 8, 129),
        (2, 130, 67, 1030),
        (5, 128, 32, 128),
        (1, 700, 40, 24),
    ]
    .iter()
    .enumerate()
    {
        let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(seed as u64, "products"));
        let x = input(&mut g, &mut inputs, &mut draw, "x", &[b, m, k]);
        let w = input(&mut g, &mut inputs, &mut draw, "w", &[k, n]);
        let v = input(&mut g, &mut inputs, &mut draw, "v", &[b, n, k]);
        let bias = input(&mut g, &mut inputs, &mut draw, "bias", &[n]);
        let c = g.add_const("c", Tensor::scalar(0.5f32));
        let none = Attributes::new;
        let y = g.op("MatMul", &[x, w], none());
        let y = g.op("Add", &[y, bias], none());
        let vt = g.op("Transpose", &[v], none().with("perm", [0i64, 2, 1]));
        let z = g.op("MatMul", &[x, vt], none());
        let z = g.op("Mul", &[z, c], none());
        let sum = g.op("Add", &[y, z], none());
        let r = g.op("Relu", &[sum], none());
        let s = g.op("Softmax", &[sum], none().with("axis", -1i64));
        let t = g.op("Transpose", &[s], none().with("perm", [1i64, 0, 2]));
        output(&mut g, "r", r);
        output(&mut g, "t", t);
        let report = check(g, &inputs, &format!("{b}×{m}×{k}×{n}"));
        assert!(report.reference.is_empty(), "{report:?}");
        assert_eq!(report.kernels.get("Contract"), Some(&1), "one contract with two products: {report:?}");
    }
}

#[test]
fn layer_normalisation_and_its_parts_fuse() {
    for &(rows, cols) in &[(1usize, 1usize), (3, 17), (37, 384), (5, 3001)] {
        let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(1, "norm"));
        let x = input(&mut g, &mut inputs, &mut draw, "x", &[2, rows, cols]);
        let scale = input(&mut g, &mut inputs, &mut draw, "scale", &[cols]);
        let two = g.add_const("two", Tensor::scalar(2.0f32));
        let eps = g.add_const("eps", Tensor::scalar(1e-5f32));
        let axes = g.add_const("axes", Tensor::from_i64s(&[-1]));
        let none = Attributes::new;
        let mean = g.op("ReduceMean", &[x, axes], none());
        let d = g.op("Sub", &[x, mean], none());
        let sq = g.op("Pow", &[d, two], none());
        let var = g.op("ReduceMean", &[sq, axes], none());
        let var = g.op("Add", &[var, eps], none());
        let sd = g.op("Sqrt", &[var], none());
        let y = g.op("Div", &[d, sd], none());
        let y = g.op("Mul", &[y, scale], none());
        output(&mut g, "y", y);
        output(&mut g, "sd", sd);
        let report = check(g, &inputs, &format!("{rows}×{cols}"));
        if cols > 1 {
            assert_eq!(report.kernels.into_iter().collect::<Vec<_>>(), [("Row", 1)]);
        }
    }
}

#[test]
fn heads_are_split_and_joined_without_copies() {
    let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(3, "heads"));
    let (b, s, h, d) = (3i64, 19i64, 4i64, 8i64);
    let x = input(&mut g, &mut inputs, &mut draw, "x", &[3, 19, 32]);
    let mask = input(&mut g, &mut inputs, &mut draw, "mask", &[3, 1, 1, 19]);
    let split = g.add_const("split", Tensor::from_i64s(&[b, s, h, d]));
    let join = g.add_const("join", Tensor::from_i64s(&[b, s, h * d]));
    let scale = g.add_const("scale", Tensor::scalar(8f32.sqrt()));
    let none = Attributes::new;
    let mut project = |g: &mut Graph, name: &str, perm: [i64; 4]| {
        let w = input(g, &mut inputs, &mut draw, name, &[32, 32]);
        let y = g.op("MatMul", &[x, w], none());
        let y = g.op("Reshape", &[y, split], none());
        g.op("Transpose", &[y], none().with("perm", perm))
    };
    let q = project(&mut g, "q", [0, 2, 1, 3]);
    let k = project(&mut g, "k", [0, 2, 3, 1]);
    let v = project(&mut g, "v", [0, 2, 1, 3]);
    let scores = g.op("MatMul", &[q, k], none());
    let scores = g.op("Div", &[scores, scale], none());
    let scores = g.op("Add", &[scores, mask], none());
    let p = g.op("Softmax", &[scores], none().with("axis", -1i64));
    let y = g.op("MatMul", &[p, v], none());
    let y = g.op("Transpose", &[y], none().with("perm", [0i64, 2, 1, 3]));
    let y = g.op("Reshape", &[y, join], none());
    let o = input(&mut g, &mut inputs, &mut draw, "o", &[32, 32]);
    let y = g.op("MatMul", &[y, o], none());
    output(&mut g, "y", y);
    let report = check(g, &inputs, "attention");
    assert_eq!(report.kernels.into_iter().collect::<Vec<_>>(), [("Chain", 1), ("Contract", 4)]);
}

/// Two layers with everything around them, on rows that can be cut into blocks and rows that cannot.
#[test]
fn products_over_the_same_rows_are_chained() {
    for (rows, kernel) in [(256i64, "Chain"), (592, "Chain"), (13, "Contract"), (257, "Contract")] {
        let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(5, "rows"));
        let none = Attributes::new;
        let mut input = |g: &mut Graph, name: &str, shape: &[usize]| input(g, &mut inputs, &mut draw, name, shape);
        let x = input(&mut g, "x", &[rows as usize, 40]);
        let weights = ["a", "b", "c"].map(|name| match name {
            "a" => input(&mut g, name, &[40, 72]),
            "b" => input(&mut g, name, &[72, 40]),
            _ => input(&mut g, name, &[40, 17]),
        });
        let (bias, scale) = (input(&mut g, "bias", &[72]), input(&mut g, "scale", &[40]));
        let h = g.op("MatMul", &[x, weights[0]], none());
        let h = g.op("Add", &[h, bias], none());
        let h = g.op("Gelu", &[h], none());
        let h = g.op("MatMul", &[h, weights[1]], none());
        let h = g.op("Add", &[h, x], none());
        let h = g.op("LayerNormalization", &[h, scale], none());
        let y = g.op("MatMul", &[h, weights[2]], none());
        output(&mut g, "y", y);
        let report = check(g, &inputs, &format!("{rows} rows"));
        let kinds: Vec<&str> = report.kernels.keys().copied().collect();
        assert_eq!(kinds, [kernel], "{rows} rows");
    }
}

/// Weights are packed at the second run and kept; a parameter that changes is not read from what was packed before.
#[test]
fn packed_weights_follow_their_parameter() {
    let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(6, "packed"));
    let x = input(&mut g, &mut inputs, &mut draw, "x", &[30, 40]);
    let weights = [0, 1].map(|_| draw.tensor(&[40, 50], -1.0, 1.0).cast(DType::F32).unwrap());
    let w = g.param("w", Type::of(&weights[0]));
    let y = g.op("MatMul", &[x, w], Attributes::new());
    output(&mut g, "y", y);
    let mut model = Model::new(g);
    let mut results = Vec::new();
    for weight in &weights {
        model.params.insert("w".into(), sartor_ir::Parameter { tensor: weight.clone(), role: sartor_ir::Role::Frozen });
        results.push(reference(&model, &inputs)["y"].clone());
    }
    let mut session = Session::new(&model, SessionOptions { threads: 2 }).unwrap();
    let mut params = Params::of(&model);
    for (run, which) in [0, 0, 0, 1, 1, 1, 0, 0, 1].into_iter().enumerate() {
        params.set("w", weights[which].clone()).unwrap();
        let outputs = session.run(&mut params, &inputs, Key::default()).unwrap();
        assert_close(&outputs["y"], &results[which], &format!("run {run}"));
    }
}

/// Micro-kernels multiply with packed weights however few rows there are but one (a short text has few): all runs have the same bits, with any number of threads.
#[test]
fn weights_are_packed_for_any_number_of_rows() {
    if sartor_runtime::cpu::gemm::panel() == 0 {
        return;
    }
    for rows in [1, 2, 3, 8, 16, 17, 25, 31, 32, 33, 47, 48, 49] {
        let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(rows as u64, "rows"));
        let x = input(&mut g, &mut inputs, &mut draw, "x", &[rows, 72]);
        let weight = draw.tensor(&[72, 400], -1.0, 1.0).cast(DType::F32).unwrap();
        let w = g.param("w", Type::of(&weight));
        let y = g.op("MatMul", &[x, w], Attributes::new());
        output(&mut g, "y", y);
        let mut model = Model::new(g);
        model.params.insert("w".into(), sartor_ir::Parameter { tensor: weight, role: sartor_ir::Role::Frozen });
        let wanted = reference(&model, &inputs);
        let mut results = Vec::new();
        for threads in [1, 2, 4] {
            let mut session = Session::new(&model, SessionOptions { threads }).unwrap();
            let mut params = Params::of(&model);
            // What every product needs beside its packed weights is less than these.
            let bytes = session.planned_bytes(&params, &inputs).unwrap().unwrap();
            assert_eq!(bytes > 72 * 400 * 4 + rows * 400 * 4, rows > 1, "{rows} rows: {bytes} bytes");
            for _ in 0..3 {
                results.push(session.run(&mut params, &inputs, Key::default()).unwrap()["y"].clone());
            }
        }
        assert_close(&results[0], &wanted["y"], &format!("{rows} rows"));
        assert!(results.iter().all(|result| *result == results[0]), "{rows} rows: runs differ");
    }
}

#[test]
fn random_chains_fuse_without_changing_numbers() {
    for seed in 0..60 {
        let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(seed, "chain"));
        // Some with rows for many blocks.
        let rows = if seed % 4 == 3 { 700 } else { draw.int(1, 9) as usize };
        let shape = [draw.int(1, 4) as usize, rows, *draw.pick(&[1, 3, 17, 64])];
        let mut values = vec![
            input(&mut g, &mut inputs, &mut draw, "a", &shape),
            input(&mut g, &mut inputs, &mut draw, "b", &shape[1..]),
            input(&mut g, &mut inputs, &mut draw, "c", &[shape[0], 1, shape[2]]),
            input(&mut g, &mut inputs, &mut draw, "channel", &shape[2..]),
        ];
        let axes = g.add_const("axes", Tensor::from_i64s(&[*draw.pick(&[0i64, 1, 2])]));
        for _ in 0..draw.int(3, 25) {
            let (x, y) = (*draw.pick(&values), *draw.pick(&values));
            let none = Attributes::new();
            let value = match draw.int(0, 9) {
                0 => g.op("Tanh", &[x], none),
                1 => g.op("Sigmoid", &[x], none),
                2 => g.op("ReduceMean", &[x, axes], none),
                3 => g.op("Sub", &[x, y], none),
                4 => g.op("Mul", &[x, y], none),
                5 => {
                    let less = g.op("Less", &[x, y], none.clone());
                    g.op("Where", &[less, x, y], none)
                }
                6 => g.op("Erf", &[x], none),
                _ => g.op("Add", &[x, y], none),
            };
            values.push(if draw.chance(0.2) { g.op("Tanh", &[value], Attributes::new()) } else { value });
            if g.ty(values[0]).is_none() {
                break;
            }
        }
        for (i, &value) in values.iter().enumerate().skip(4) {
            if i + 1 == values.len() || draw.chance(0.2) {
                output(&mut g, &format!("y{i}"), value);
            }
        }
        // Ranks differ between operands; a reduction over a missing axis is no valid graph.
        let model = Model::new(g.clone());
        if eval::run(&model, &inputs).is_ok() {
            check(g, &inputs, &format!("chain {seed}"));
        }
    }
}

#[test]
fn bindings_update_parameters_and_old_values_stay() {
    let mut g = Graph::new("step");
    let w = g.param("w", Type::tensor(DType::F32, [1000i64]));
    let r = g.add_input("r", Type::tensor(DType::F32, [1000i64]));
    let y = g.op("Sub", &[w, r], Attributes::new());
    output(&mut g, "w.next", y);
    let mut model = Model::new(Graph::new("main"));
    let tensor = Tensor::from_vec([1000], vec![1f32; 1000]);
    model.params.insert("w".into(), sartor_ir::Parameter { tensor, role: sartor_ir::Role::Trainable });
    let bindings = vec![sartor_ir::Binding { output: "w.next".into(), param: "w".into() }];
    model.programs.insert("step".into(), sartor_ir::Program { graph: g, bindings });
    let mut session = Session::program(&model, "step", SessionOptions { threads: 2 }).unwrap();
    let mut params = Params::of(&model);
    let inputs = Inputs::from([("r".to_string(), Tensor::from_vec([1000], vec![0.25f32; 1000]))]);
    session.run(&mut params, &inputs, Key::default()).unwrap();
    let held = params.get("w").unwrap().clone();
    for _ in 0..3 {
        session.run(&mut params, &inputs, Key::default()).unwrap();
    }
    assert_eq!(held.to_vec::<f32>().unwrap(), [0.75; 1000]);
    assert_eq!(params.get("w").unwrap().to_vec::<f32>().unwrap(), [0.0; 1000]);
    assert!(session.planned_bytes(&Params::of(&model), &inputs).unwrap().unwrap() >= 4000);
    session.limit_memory(Some(100));
    let error = session.run(&mut params, &inputs, Key::default()).unwrap_err().to_string();
    assert!(error.contains("the limit is 100"), "{error}");
}

#[test]
fn shapes_that_depend_on_data_run_by_the_reference_and_say_so() {
    let mut g = Graph::new("g");
    let x = g.add_input("x", Type::tensor(DType::F32, [4i64]));
    let y = g.op("NonZero", &[x], Attributes::new());
    output(&mut g, "y", y);
    let model = Model::new(g);
    let inputs = Inputs::from([("x".to_string(), Tensor::from_vec([4], vec![0f32, 1.0, 0.0, 2.0]))]);
    let (found, report) = run(&model, &inputs, 1);
    assert_eq!(found["y"].to_vec::<i64>().unwrap(), [1, 3]);
    assert!(report.unplanned.is_some_and(|reason| reason.contains("depends on data")));
}

/// A convolution: images, groups, channels of one group in and out, image, window, strides, pads, dilations.
type Convolution = (i64, i64, i64, i64, [i64; 2], [i64; 2], [i64; 2], [i64; 4], [i64; 2]);

const CONVOLUTIONS: &[Convolution] = &[
    (2, 1, 3, 16, [17, 13], [3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
    (3, 1, 16, 16, [9, 7], [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
    (3, 1, 1, 1, [5, 5], [5, 5], [1, 1], [2, 2, 2, 2], [1, 1]),
    (1, 1, 8, 24, [11, 1], [3, 1], [1, 1], [1, 0, 1, 0], [1, 1]),
    (1, 1, 70, 65, [5, 6], [3, 3], [1, 1], [0, 1, 2, 0], [1, 1]),
    (2, 1, 5, 7, [12, 12], [3, 3], [1, 2], [2, 2, 2, 2], [2, 2]),
    (1, 1, 3, 4, [11, 10], [2, 2], [3, 3], [0, 0, 0, 0], [1, 1]),
    (17, 1, 2, 3, [8, 8], [7, 7], [2, 2], [3, 3, 3, 3], [1, 1]),
    // One tap: pixels.
    (2, 1, 37, 41, [6, 6], [1, 1], [1, 1], [0, 0, 0, 0], [1, 1]),
    (2, 1, 12, 32, [7, 7], [1, 1], [2, 2], [0, 0, 0, 0], [1, 1]),
    (1, 1, 3, 4, [10, 10], [1, 1], [3, 3], [1, 1, 1, 1], [1, 1]),
    (16, 1, 260, 256, [2, 2], [1, 1], [1, 1], [0, 0, 0, 0], [1, 1]),
    // Depthwise.
    (2, 33, 1, 1, [8, 9], [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
    (1, 16, 1, 1, [13, 11], [5, 5], [2, 2], [2, 2, 2, 2], [1, 1]),
    (2, 48, 1, 1, [9, 9], [3, 3], [2, 1], [1, 2, 1, 2], [2, 2]),
    (2, 16, 1, 1, [6, 5], [1, 1], [1, 1], [0, 0, 0, 0], [1, 1]),
    (1, 40, 1, 1, [5, 31], [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
    (1, 40, 1, 1, [7, 37], [3, 3], [2, 2], [0, 1, 1, 1], [1, 1]),
    (1, 17, 1, 1, [19, 3], [9, 1], [1, 1], [4, 0, 4, 0], [1, 1]),
    // Groups.
    (2, 3, 4, 6, [7, 5], [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
    (2, 4, 3, 2, [5, 5], [1, 1], [1, 1], [0, 0, 0, 0], [1, 1]),
    (1, 4, 1, 2, [6, 6], [3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
    (2, 2, 16, 16, [6, 7], [3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
];

#[test]
fn convolutions_and_their_gradients_of_odd_shapes() {
    for (seed, &(images, groups, inner, outer, image, kernel, strides, pads, dilations)) in
        CONVOLUTIONS.iter().enumerate()
    {
        let mut draw = Draw::new(seed as u64, "convolutions");
        let (mut g, mut inputs) = (Graph::new("g"), Inputs::new());
        let attrs = Attributes::new()
            .with("group", groups)
            .with("strides", strides.to_vec())
            .with("pads", pads.to_vec())
            .with("dilations", dilations.to_vec());
        let out = |axis: usize| {
            let padded = image[axis] + pads[axis] + pads[axis + 2];
            (padded - (kernel[axis] - 1) * dilations[axis] - 1) / strides[axis] + 1
        };
        let x_shape = [images, groups * inner, image[0], image[1]];
        let w_shape = [groups * outer, inner, kernel[0], kernel[1]];
        let y_shape = [images, groups * outer, out(0), out(1)];
        let sizes = |shape: [i64; 4]| shape.map(|d| d as usize);
        let x = input(&mut g, &mut inputs, &mut draw, "x", &sizes(x_shape));
        let w = input(&mut g, &mut inputs, &mut draw, "w", &sizes(w_shape));
        let bias = input(&mut g, &mut inputs, &mut draw, "bias", &[(groups * outer) as usize]);
        let dy = input(&mut g, &mut inputs, &mut draw, "dy", &sizes(y_shape));
        let conv = g.op("Conv", &[x, w, bias], attrs.clone());
        let y = g.op("Relu", &[conv], Attributes::new());
        output(&mut g, "y", y);
        // Hard swish, written out as exporters do.
        let number = |g: &mut Graph, x: f32| g.add_const("number", Tensor::scalar(x));
        let [three, zero, six] = [3.0, 0.0, 6.0].map(|x| number(&mut g, x));
        let other = g.op("Conv", &[x, w, bias], attrs.clone());
        let open = g.op("Add", &[other, three], Attributes::new());
        let open = g.op("Clip", &[open, zero, six], Attributes::new());
        let swish = g.op("Mul", &[other, open], Attributes::new());
        let swish = g.op("Div", &[swish, six], Attributes::new());
        output(&mut g, "swish", swish);
        // Gradients of something that lies channels last, and of something that does not.
        for (name, dy) in [("first", dy), ("last", y)] {
            let shape = g.add_const("x_shape", Tensor::from_i64s(&x_shape));
            let op = sartor_ir::Operator::sartor("ConvInputGrad", attrs.clone());
            let node = g.add_op("dx", op, &[Some(dy), Some(w), Some(shape)], 1);
            let dx = g.op("Mul", &[Value { node, slot: 0 }, x], Attributes::new());
            output(&mut g, &format!("dx, {name}"), dx);
            let shape = g.add_const("w_shape", Tensor::from_i64s(&w_shape));
            let op = sartor_ir::Operator::sartor("ConvWeightGrad", attrs.clone());
            let node = g.add_op("dw", op, &[Some(dy), Some(x), Some(shape)], 1);
            output(&mut g, &format!("dw, {name}"), Value { node, slot: 0 });
        }
        let report = check(g, &inputs, &format!("convolution {seed}"));
        assert_eq!(report.kernels.get("Reference"), None, "convolution {seed}: {report:?}");
    }
}

/// 3 × 3 convolutions with weights that stay the same are computed by Winograd's algorithm.
#[test]
fn winograd_is_near_the_exact_sum() {
    for (seed, &(images, inner, outer, image)) in
        [(2usize, 32usize, 33usize, [7usize, 9usize]), (1, 64, 32, [1, 1]), (1, 48, 70, [14, 13]), (3, 32, 64, [2, 31])]
            .iter()
            .enumerate()
    {
        let mut draw = Draw::new(seed as u64, "winograd");
        let (mut g, mut inputs) = (Graph::new("g"), Inputs::new());
        let x = input(&mut g, &mut inputs, &mut draw, "x", &[images, inner, image[0], image[1]]);
        let w = draw.tensor(&[outer, inner, 3, 3], -1.0, 1.0).cast(DType::F32).unwrap();
        let bias = draw.tensor(&[outer], -1.0, 1.0).cast(DType::F32).unwrap();
        let (w, bias) = (g.add_const("w", w), g.add_const("bias", bias));
        let attrs = Attributes::new().with("pads", vec![1i64, 1, 1, 1]);
        let y = g.op("Conv", &[x, w, bias], attrs);
        let more = input(&mut g, &mut inputs, &mut draw, "more", &[images, outer, image[0], image[1]]);
        let y = g.op("Add", &[y, more], Attributes::new());
        let y = g.op("Relu", &[y], Attributes::new());
        output(&mut g, "y", y);
        let model = Model::new(g.clone());
        let wanted = reference(&model, &inputs);
        let report = check(g, &inputs, &format!("winograd {seed}"));
        assert_eq!(report.kernels.get("Conv"), Some(&1), "{report:?}");
        let (found, _) = run(&model, &inputs, 2);
        let (found, wanted) = (found["y"].to_f64s().unwrap(), wanted["y"].to_f64s().unwrap());
        let largest = wanted.iter().fold(0f64, |m, x| m.max(x.abs()));
        let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max);
        assert!(worst < 2e-6 * largest, "winograd {seed}: {worst:e} of {largest}");
    }
}

/// What surrounds convolutions in a network: everything stays channels last, and nothing runs by the reference.
#[test]
fn a_network_of_images_stays_channels_last() {
    for (seed, &(images, channels, side)) in [(2usize, 5usize, 9usize), (1, 16, 8), (3, 33, 7)].iter().enumerate() {
        let mut draw = Draw::new(seed as u64, "network");
        let (mut g, mut inputs) = (Graph::new("g"), Inputs::new());
        let x = input(&mut g, &mut inputs, &mut draw, "x", &[images, 3, side, side]);
        let w = input(&mut g, &mut inputs, &mut draw, "w", &[channels, 3, 3, 3]);
        let of_channels = |g: &mut Graph, inputs: &mut Inputs, draw: &mut Draw, name: &str| {
            let value = input(g, inputs, draw, name, &[channels]);
            let positive = inputs[name].to_vec::<f32>().unwrap().iter().map(|x| x.abs() + 0.5).collect::<Vec<f32>>();
            inputs.insert(name.into(), Tensor::from_vec([channels], positive));
            value
        };
        let [scale, bias, mean, var] =
            ["scale", "bias", "mean", "var"].map(|name| of_channels(&mut g, &mut inputs, &mut draw, name));
        let pads = Attributes::new().with("pads", vec![1i64; 4]);
        let conv = g.op("Conv", &[x, w], pads.clone());
        let training = Attributes::new().with("training_mode", 1i64);
        let norm = sartor_ir::Operator::onnx("BatchNormalization", training);
        let node = g.add_op("norm", norm, &[conv, scale, bias, mean, var].map(Some), 3);
        for (slot, name) in [(1, "next mean"), (2, "next var")] {
            output(&mut g, name, Value { node, slot });
        }
        let (low, high) = (g.add_const("low", Tensor::scalar(0f32)), g.add_const("high", Tensor::scalar(1f32)));
        let y = g.op("Clip", &[Value { node, slot: 0 }, low, high], Attributes::new());
        let still = g.op("BatchNormalization", &[y, scale, bias, mean, var], Attributes::new());
        let window = pads.clone().with("kernel_shape", vec![3i64, 3]).with("strides", vec![2i64, 2]);
        let most = g.op("MaxPool", &[still], window.clone());
        let padding = window.clone().with("count_include_pad", 1i64);
        let mean_of = g.op("AveragePool", &[still], padding.clone());
        let shape = g.op("Shape", &[still], Attributes::new());
        for (name, dy, of, attrs) in
            [("MaxPoolGrad", mean_of, still, window), ("AveragePoolGrad", most, shape, padding)]
        {
            let node = g.add_op(name, sartor_ir::Operator::sartor(name, attrs), &[Some(dy), Some(of)], 1);
            output(&mut g, name, Value { node, slot: 0 });
        }
        let both = g.op("Concat", &[most, mean_of], Attributes::new().with("axis", 1i64));
        output(&mut g, "both", both);
        let whole = g.op("GlobalAveragePool", &[y], Attributes::new());
        let gated = g.op("Mul", &[y, whole], Attributes::new());
        output(&mut g, "gated", gated);
        // As a gradient does it: a mask of the result, then the normalisation's own gradient.
        let mut dy = gated;
        for (comparison, bound) in [("Greater", low), ("Less", high)] {
            let mask = g.op(comparison, &[y, bound], Attributes::new());
            dy = g.op("Where", &[mask, dy, low], Attributes::new());
        }
        // Both questions at once are asked where the answer is read, late and in one kernel.
        let inside = ["Greater", "Less"].map(|comparison| {
            g.op(comparison, &[whole, if comparison == "Less" { high } else { low }], Attributes::new())
        });
        let inside = g.op("And", &inside, Attributes::new());
        let masked = g.op("Where", &[inside, whole, high], Attributes::new());
        output(&mut g, "masked", masked);
        let op = sartor_ir::Operator::sartor("BatchNormGrad", Attributes::new());
        let node = g.add_op("grad", op, &[dy, conv, scale].map(Some), 3);
        for (slot, name) in [(0, "dx"), (1, "dscale"), (2, "dbias")] {
            output(&mut g, name, Value { node, slot });
        }
        let pads = g.add_const("pads", Tensor::from_i64s(&[0, 1, 1, -1, 0, 2, 0, 0]));
        let padded = g.op("Pad", &[y, pads], Attributes::new());
        output(&mut g, "padded", padded);
        let report = check(g, &inputs, &format!("network {seed}"));
        assert_eq!(report.kernels.get("Reference"), None, "{report:?}");
        assert_eq!(report.kernels.get("ChannelStats"), Some(&1), "statistics are computed once: {report:?}");
    }
}

/// Scores of `[batch, classes, places…]`, as they are and under a Transpose, with and without weights and ignored targets.
fn class_loss(shape: &[usize], last: bool, reduction: &str, attrs: &[(&str, i64)], weighted: bool, outputs: usize) {
    let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(shape.len() as u64, "loss"));
    let rank = shape.len();
    let mut stored = shape.to_vec();
    if last {
        stored.remove(1);
        stored.push(shape[1]);
    }
    let x = input(&mut g, &mut inputs, &mut draw, "x", &stored);
    let four = g.add_const("four", Tensor::scalar(4f32));
    let none = Attributes::new;
    let mut scores = g.op("Mul", &[x, four], none());
    let perm: Vec<i64> = [0, rank as i64 - 1].into_iter().chain(1..rank as i64 - 1).collect();
    if last {
        scores = g.op("Transpose", &[scores], none().with("perm", perm));
    }
    let mut at = shape.to_vec();
    at.remove(1);
    let mut targets = draw.ints(&at, 0, shape[1] as i64 - 1).to_i64s().unwrap();
    targets.iter_mut().skip(1).step_by(3).filter(|_| !attrs.is_empty()).for_each(|t| *t = attrs[0].1);
    let targets = Tensor::from_vec(at.clone(), targets);
    let t = g.add_input("t", Type::of(&targets));
    inputs.insert("t".into(), targets);
    let dloss = input(&mut g, &mut inputs, &mut draw, "dloss", if reduction == "none" { &at } else { &[] });
    let mut operands = vec![Some(scores), Some(t)];
    if weighted {
        operands.push(Some(input(&mut g, &mut inputs, &mut draw, "w", &shape[1..2])));
        let w = inputs["w"].to_f64s().unwrap().into_iter().map(|w| w as f32 + 2.0).collect::<Vec<_>>();
        inputs.insert("w".into(), Tensor::from_vec([shape[1]], w));
    }
    let mut full = none().with("reduction", reduction);
    attrs.iter().for_each(|&(name, number)| full.set(name, number));
    let op = sartor_ir::Operator::onnx("SoftmaxCrossEntropyLoss", full.clone());
    let loss = g.add_op("loss", op, &operands, outputs);
    for slot in 0..outputs as u32 {
        output(&mut g, &format!("loss{slot}"), Value { node: loss, slot });
    }
    operands.insert(0, Some(dloss));
    for name in ["SoftmaxCrossEntropyGrad", "NegativeLogLikelihoodGrad"] {
        let grad = g.add_op("grad", sartor_ir::Operator::sartor(name, full.clone()), &operands, 1);
        let mut dx = Value { node: grad, slot: 0 };
        if last {
            let perm: Vec<i64> = [0].into_iter().chain(2..rank as i64).chain([1]).collect();
            dx = g.op("Transpose", &[dx], none().with("perm", perm));
        }
        output(&mut g, name, dx);
    }
    let report = check(g, &inputs, &format!("{shape:?} {last} {reduction} {attrs:?} {weighted} {outputs}"));
    assert!(report.reference.is_empty(), "{shape:?}: {report:?}");
    // One kernel scales the scores; nothing is copied but the log-probabilities that are wanted in another order.
    let others: usize = report.kernels.iter().filter(|(kernel, _)| **kernel != "CrossEntropy").map(|(_, n)| n).sum();
    let copies = usize::from(outputs == 2 && last);
    assert!((1..=1 + copies).contains(&others), "{shape:?} {last} {reduction} {outputs}: {report:?}");
}

#[test]
fn classification_losses_read_scores_in_place() {
    for (i, shape) in [
        &[1, 1][..],
        &[3, 17],
        &[17, 3],
        &[5, 1031],
        &[2, 70000],
        &[1, 1, 1],
        &[2, 5, 3],
        &[3, 17, 64],
        &[2, 7, 131],
        &[3, 1, 13],
        &[2, 3, 17, 5],
        &[1, 301, 2, 37],
    ]
    .into_iter()
    .enumerate()
    {
        for last in [false, true] {
            let reduction = ["mean", "sum", "none"][i % 3];
            class_loss(shape, last, reduction, &[], i % 2 == 0, 1);
            class_loss(shape, last, reduction, &[("ignore_index", -100)], i % 2 == 1, 1 + i % 2);
            class_loss(shape, last, ["none", "mean", "sum"][i % 3], &[("ignore_index", 0)], true, 2);
        }
    }
}

#[test]
fn targets_that_are_no_class_are_refused() {
    for (target, ignored) in [(7i64, None), (-1, None), (-2, Some(-1))] {
        let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(1, "targets"));
        let x = input(&mut g, &mut inputs, &mut draw, "x", &[3, 7]);
        let t = g.add_input("t", Type::tensor(DType::I64, [3i64]));
        inputs.insert("t".into(), Tensor::from_vec([3], vec![0, 6, target]));
        let mut attrs = Attributes::new();
        ignored.into_iter().for_each(|i: i64| attrs.set("ignore_index", i));
        let loss = g.op("SoftmaxCrossEntropyLoss", &[x, t], attrs);
        output(&mut g, "loss", loss);
        let model = Model::new(g);
        let mut session = Session::new(&model, SessionOptions { threads: 2 }).unwrap();
        let error = session.run(&mut Params::of(&model), &inputs, Key::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("target {target} at 2 is outside [0, 7)")), "{error}");
    }
}

/// Masks are drawn as the reference draws them, and joined with what surrounds them: equal to the last bit.
#[test]
fn dropout_is_that_of_the_reference() {
    for (seed, shape) in [&[1, 1][..], &[3, 17], &[2, 3, 64], &[7, 13, 97], &[2, 40000]].into_iter().enumerate() {
        let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(seed as u64, "dropout"));
        let x = input(&mut g, &mut inputs, &mut draw, "x", shape);
        let ratio = g.add_const("ratio", Tensor::scalar([0.1f32, 0.5, 0.0, 0.99, 0.3][seed]));
        let training = g.add_const("training", Tensor::scalar(true));
        let slots = ["y", "mask"].map(|name| OutputSlot { name: name.into(), ty: None });
        let op = sartor_ir::Operator::onnx("Dropout", Attributes::new());
        let node = g.add_node("drop", op, &[Some(x), Some(ratio), Some(training)], slots.to_vec());
        let (y, mask) = (Value { node, slot: 0 }, Value { node, slot: 1 });
        let back = g.op("Cast", &[mask], Attributes::new().with("to", i64::from(DType::F32.onnx_code())));
        let back = g.op("Mul", &[back, y], Attributes::new());
        output(&mut g, "y", y);
        output(&mut g, "mask", mask);
        output(&mut g, "back", back);
        let model = Model::new(g.clone());
        let wanted = reference(&model, &inputs);
        let report = check(g, &inputs, &format!("{shape:?}"));
        assert!(report.reference.is_empty(), "{report:?}");
        let (found, _) = run(&model, &inputs, 2);
        for (name, tensor) in wanted {
            assert_eq!(found[&name].bytes(), tensor.bytes(), "{name} of {shape:?}");
        }
    }
}

/// The same checks with the instruction sets of older machines.
#[test]
fn kernels_are_right_on_every_instruction_set() {
    use sartor_runtime::cpu::simd::{Level, limit};
    for level in [Level::Avx2, Level::Portable] {
        limit(level);
        every_operator_runs_as_the_reference_does();
        products_with_epilogues_of_odd_shapes();
        products_over_the_same_rows_are_chained();
        heads_are_split_and_joined_without_copies();
        convolutions_and_their_gradients_of_odd_shapes();
        winograd_is_near_the_exact_sum();
        a_network_of_images_stays_channels_last();
        classification_losses_read_scores_in_place();
    }
}

#[test]
fn control_flow_runs_inside_of_plans() {
    let source = "<ir_version: 10, opset_import: [\"\": 20]>
      parameters <
        frozen float[3, 3] w = {0.5, -0.25, 1.0, 0.125, 0.75, -0.5, 0.25, 0.5, -1.0}
      >
      g (bool[] c, float[batch, 3] x, float[4, batch, 3] steps) => (y, rows) <
        float[3, 3] w = param
      > {
        a = MatMul (x, w)
        h = Relu (a)
        b = If <then_branch: graph = t () => (p) <
            h = capture 0,
            w = capture 1
          > {
            p = MatMul (h, w)
          }, else_branch: graph = e () => (n) <
            h = capture 0,
            float[3, 3] own = param(w)
          > {
            m = MatMul (h, own)
            n = Neg (m)
          }> (c | h, w)
        last, rows = Scan <num_scan_inputs = 1, body: graph = body (s, x) => (next, next_out) {
            sum = Add (s, x)
            next = Tanh (sum)
            next_out = Identity (next)
          }> (b, steps)
        y = Mul (last, h)
      }";
    let model = sartor_ir::text::parse(source).unwrap();
    for c in [true, false] {
        let mut draw = Draw::new(1, "control flow");
        let mut inputs = Inputs::from([("c".to_string(), Tensor::scalar(c))]);
        for (name, shape) in [("x", &[2, 3][..]), ("steps", &[4, 2, 3])] {
            inputs.insert(name.to_string(), draw.tensor(shape, -1.0, 1.0).cast(DType::F32).unwrap());
        }
        let (found, report) = run(&model, &inputs, 2);
        assert_eq!(report.unplanned, None);
        assert!(report.reference.is_empty(), "{report:?}");
        assert!(report.kernels.contains_key("Contract"), "{report:?}");
        for (name, wanted) in reference(&model, &inputs) {
            assert_close(&found[&name], &wanted, &name);
        }
    }
}

/// Recurrent layers and their gradients in every direction, over sequences of different lengths, on every instruction set: blocks of the batch, units that
/// fill no vector, states that are given and states that are zero.
#[test]
fn recurrent_layers_of_odd_shapes() {
    use sartor_runtime::cpu::simd::{Level, limit};
    let shapes = [(1, 1, 1), (5, 3, 17), (4, 13, 24), (3, 26, 5), (7, 2, 130)];
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        limit(level);
        for (i, &(steps, batch, hidden)) in shapes.iter().enumerate() {
            for (cell, gates, kept) in [("LSTM", 4, 5), ("GRU", 3, 4), ("RNN", 1, 0)] {
                let mut draw = Draw::new(i as u64, cell);
                let direction = *draw.pick(&["forward", "reverse", "bidirectional"]);
                let directions = if direction == "bidirectional" { 2 } else { 1 };
                let (lens, states) = (draw.chance(0.5), draw.chance(0.5));
                let mut attrs = Attributes::new().with("cell", cell).with("direction", direction);
                if cell == "GRU" && draw.chance(0.5) {
                    attrs.set("linear_before_reset", 1i64);
                }
                if cell == "RNN" && draw.chance(0.5) {
                    attrs.set("activation", "Relu");
                }
                let what = format!("{level:?}, {attrs:?}, {steps} × {batch} × {hidden}");
                let (mut g, mut inputs) = (Graph::new("g"), Inputs::new());
                let (state, y) = ([directions, batch, hidden], [steps, directions, batch, hidden]);
                let z = input(&mut g, &mut inputs, &mut draw, "z", &[steps, batch, directions * gates * hidden]);
                // Small enough that differences in the last place do not grow from step to step.
                let most = 1.0 / (hidden as f64).sqrt();
                let weights = draw.tensor(&[directions, gates * hidden, hidden], -most, most).cast(DType::F32).unwrap();
                let r = g.add_input("r", Type::of(&weights));
                inputs.insert("r".to_string(), weights);
                let mut given = |g: &mut Graph, name: &str, wanted: bool| {
                    wanted.then(|| input(g, &mut inputs, &mut draw, name, &state))
                };
                let h = given(&mut g, "h", states);
                let c = given(&mut g, "c", states && cell == "LSTM");
                let dh = given(&mut g, "dh", states);
                let dc = given(&mut g, "dc", !states && cell == "LSTM");
                let lens = lens.then(|| {
                    let lens = draw.ints(&[batch], 0, steps as i64);
                    let value = g.add_input("lens", Type::of(&lens));
                    inputs.insert("lens".to_string(), lens);
                    value
                });
                let count = if kept > 0 { 4 } else { 3 };
                let op = ops_of("Recurrence", &attrs);
                let node = g.add_op("layer", op, &[Some(z), Some(r), h, c, lens], count);
                for slot in 0..if cell == "LSTM" { 3 } else { 2 } {
                    output(&mut g, &format!("y{slot}"), Value { node, slot });
                }
                let dy = input(&mut g, &mut inputs, &mut draw, "dy", &y);
                let held = (kept > 0).then_some(Value { node, slot: 3 });
                let found = [Some(r), Some(Value { node, slot: 0 }), Some(dy), dh, dc, h, c, lens, held];
                let grad = g.add_op("grad", ops_of("RecurrenceGrad", &attrs), &found, 5);
                for slot in 0..5 {
                    output(&mut g, &format!("g{slot}"), Value { node: grad, slot });
                }
                let report = check(g, &inputs, &what);
                assert!(report.reference.is_empty(), "{what}: {:?}", report.reference);
            }
        }
    }
}

fn ops_of(name: &str, attrs: &Attributes) -> sartor_ir::Operator {
    sartor_ir::Operator::sartor(name, attrs.clone())
}

/// The body of a `Scan` has a plan of its own: its products run on kernels, and what it captures is there. The same for a `Loop` and for both
/// branches of an `If`.
#[test]
fn bodies_run_by_plans() {
    let (mut g, mut inputs, mut draw) = (Graph::new("g"), Inputs::new(), Draw::new(3, "bodies"));
    let z = input(&mut g, &mut inputs, &mut draw, "z", &[5, 3, 40]);
    let r = input(&mut g, &mut inputs, &mut draw, "r", &[1, 40, 10]);
    // Over an open length: a known one would be unrolled.
    let open = [sartor_ir::Dim::symbol("t"), 3i64.into(), 40i64.into()];
    g.set_ty(z, Some(Type::tensor(DType::F32, open)));
    let node = g.add_op("layer", ops_of("Recurrence", &Attributes::new()), &[Some(z), Some(r)], 1);
    output(&mut g, "y", Value { node, slot: 0 });
    ops::decompose(&mut g, node, sartor_ir::OPSET).unwrap();
    assert!(g.topo_ops().iter().any(|&id| g.node(id).is("Scan")));
    let report = check(g, &inputs, "a scan");
    assert!(report.reference.is_empty(), "{:?}", report.reference);

    let text = r#"<ir_version: 10, opset_import: ["": 20]>
g (float[1, 4] x, bool[] up, int64[] count) => (y, s) <
  float[4, 4] w = {1, 0, 2, 0, 0, 1, 0, -1, 0.5, 0, 1, 0, 0, 0, 0.25, 1},
  bool[] yes = {1}
> {
  y = If <then_branch: graph = a () => (p) <x = capture 0, w = capture 1> { p = MatMul (x, w) },
    else_branch: graph = b () => (q) <x = capture 0> { q = Sub (x, x) }> (up | x, w)
  s = Loop <body: graph = l (int64[] i, bool[] go, float[1, 4] in) => (on, out) <w = capture 0, float[] half = {0.5}> {
      on = Identity (go)
      next = MatMul (in, w)
      out = Mul (next, half)
    }> (count, yes, x | w)
}
"#;
    let model = sartor_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    for (up, count) in [(true, 3i64), (false, 3), (true, 20)] {
        let inputs = Inputs::from([
            ("x".to_string(), Tensor::from_vec([1, 4], vec![0.5f32, -1.0, 2.0, 0.25])),
            ("up".to_string(), Tensor::scalar(up)),
            ("count".to_string(), Tensor::scalar(count)),
        ]);
        let report = check(model.graph.clone(), &inputs, &format!("{up}, {count} iterations"));
        assert!(report.reference.is_empty(), "{:?}", report.reference);
    }
}

/// What stands before a shape that depends on data runs by a plan; outputs from both parts, and random numbers in both, are those of the reference.
#[test]
fn what_comes_before_open_shapes_is_planned() {
    let text = r#"<ir_version: 10, opset_import: ["": 20]>
parameters <
  frozen float[4, 4] w = {1, 0, 2, 0, 0, 1, 0, -1, 0.5, 0, 1, 0, 0, 0, 0.25, 1}
>
g (float[n, 4] x) => (y, picked, many, noise) <float[4, 4] w = param, float[] zero = {0}, int64[1] all = {-1}> {
  h = MatMul (x, w)
  y = Relu (h)
  more = Greater (y, zero)
  flat = Reshape (y, all)
  where = Reshape (more, all)
  picked = Compress <axis = 0> (flat, where)
  many = Size (picked)
  ["noise"] r = RandomNormalLike (y)
  ["late"] s = RandomNormalLike (picked)
  sum = ReduceSum (s)
  noise = Add (r, sum)
}
"#;
    let model = sartor_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let x = Draw::new(1, "x").tensor(&[3, 4], -1.0, 1.0).cast(DType::F32).unwrap();
    let inputs = Inputs::from([("x".to_string(), x)]);
    let (found, report) = run(&model, &inputs, 2);
    assert!(report.unplanned.is_some_and(|why| why.contains("depends on data")));
    assert!(report.kernels.contains_key("Contract"), "{:?}", report.kernels);
    for (name, wanted) in reference(&model, &inputs) {
        assert_close(&found[&name], &wanted, &name);
    }
}
