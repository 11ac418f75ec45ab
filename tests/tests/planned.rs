//! Planned runs of real models against the reference evaluator: outputs, values from the middle of the graph (which
//! changes what is fused and what is stored), and whole training programs over several steps.

use sartor_ir::rng::Draw;
use sartor_ir::{DType, Model, Tensor, Value, eval};
use sartor_runtime::cpu::simd::{self, Level};
use sartor_runtime::{Key, Params, Session, SessionOptions};
use sartor_tests::{Named, REAL_MODELS, asset, distance, draw_inputs, expose, prepared, values_of};
use std::collections::HashMap;

/// Small open dimensions: batch 2, and an odd number of tokens or pixels.
fn small(model: &Model, seed: u64) -> Named {
    draw_inputs(&model.graph, seed, 1000, &|name, axis| match (name.contains("ids") || name.contains("mask"), axis) {
        (_, 0) => 2,
        (true, _) => 7,
        _ => 64,
    })
}

fn planned(model: &Model, inputs: &Named, threads: usize) -> Named {
    let mut session = Session::new(model, SessionOptions { threads }).unwrap();
    let mut params = Params::of(model);
    session.run(&mut params, inputs, Key::default()).unwrap();
    // Twice, so that the second run finds the plan and dirty memory.
    let found = session.run(&mut params, inputs, Key::default()).unwrap();
    assert_eq!(session.report().unplanned, None);
    found
}

/// Compares all outputs; says which is furthest.
fn compare(model: &Model, inputs: &Named, what: &str) {
    let found = planned(model, inputs, 2);
    let wanted = eval::run(model, inputs).unwrap();
    for (output, wanted) in model.graph.outputs.iter().zip(wanted) {
        let apart = distance(&found[&output.name], &wanted);
        assert!(apart < 1e-4, "{what}: output {} differs by {apart:e}", output.name);
    }
}

#[test]
fn real_models_run_planned_as_the_reference_does() {
    for name in REAL_MODELS {
        let model = prepared(&asset(name), "").unwrap();
        compare(&model, &small(&model, 1), name);
    }
}

#[test]
fn every_value_of_real_models_is_what_the_reference_says() {
    for name in ["paraphrase-MiniLM-L3-v2.onnx", "mobilenetv2-dynamo20.onnx", "ppocr_cls.onnx"] {
        let model = prepared(&asset(name), "").unwrap();
        let all = expose(&model, &values_of(&model));
        compare(&all, &small(&model, 2), name);
    }
}

#[test]
fn what_is_looked_at_does_not_change_what_is_computed() {
    let model = prepared(&asset("paraphrase-MiniLM-L3-v2.onnx"), "").unwrap();
    let (values, inputs) = (values_of(&model), small(&model, 3));
    for seed in 0..12 {
        let mut draw = Draw::new(seed, "look");
        let chosen: Vec<Value> = (0..draw.int(1, 20)).map(|_| *draw.pick(&values)).collect();
        compare(&expose(&model, &chosen), &inputs, &format!("seed {seed}"));
    }
}

/// A head on this value, adapters on these targets, cross-entropy, clipped gradients, this optimizer.
fn training(input: &str, targets: &str, optimizer: &str) -> String {
    format!(
        "[[pass]]\nname = \"head\"\ninput = \"{input}\"\nclasses = 3\noutput = \"scores\"\n\
         [[pass]]\nname = \"loss\"\n\
         [[pass]]\nname = \"cola\"\nrank = 4\nlinks = 2\ntargets = [{targets}]\n\
         [[pass]]\nname = \"autodiff\"\n\
         [[pass]]\nname = \"clip\"\n\
         [[pass]]\nname = \"optimizer\"\nkind = \"{optimizer}\"\n"
    )
}

/// A step's own inputs: those of the graph, labels, a learning rate.
fn step_inputs(model: &Model, program: &str, seed: u64) -> Named {
    let mut inputs = small(model, seed);
    let graph = &model.programs[program].graph;
    for value in graph.inputs() {
        let name = graph.value_name(value).to_string();
        if name == "label" {
            inputs.insert(name, Draw::new(seed, "label").ints(&[2], 0, 2));
        } else if name == "learning_rate" {
            inputs.insert(name, Tensor::scalar(1e-2f32));
        }
    }
    inputs
}

/// Runs programs in order, planned and by the reference, each from the same parameters, and compares all that they write.
/// `bound`: how far parameters may be apart, relative to the largest; rounding grows on the way back through many layers.
/// `seed`: of the inputs of the first run.
fn follow(mut model: Model, programs: &[&str], seed: u64, bound: f64, what: &str) {
    let mut sessions: HashMap<&str, Session> = HashMap::new();
    for (i, program) in programs.iter().enumerate() {
        let inputs =
            if program.starts_with("knot") { Named::new() } else { step_inputs(&model, program, seed + i as u64) };
        let session = sessions
            .entry(program)
            .or_insert_with(|| Session::program(&model, program, SessionOptions { threads: 2 }).unwrap());
        let mut params = Params::of(&model);
        let found = session.run(&mut params, &inputs, Key { seed: 1, step: i as u64 }).unwrap();
        assert_eq!(session.report().unplanned, None, "{what}");
        let wanted = eval::run_program(&mut model, program, &inputs, 1, i as u64).unwrap();
        for (name, tensor) in &found {
            let apart = distance(tensor, &wanted[name]);
            assert!(apart < 2e-4, "{what}, {program}, run {i}: output {name} differs by {apart:e}");
        }
        for (name, tensor) in params.iter() {
            let apart = distance(tensor, &model.params[name].tensor);
            assert!(apart < bound, "{what}, {program}, run {i}: parameter {name} differs by {apart:e}");
        }
    }
}

#[test]
fn chains_of_a_sentence_encoder_train_as_the_reference_does() {
    // Plain steps: what Adam does where a gradient is nearly 0 depends on its sign, which is noise.
    let pipeline = training("461", "\"*/query/MatMul\", \"*/value/MatMul\"", "sgd");
    let model = prepared(&asset("paraphrase-MiniLM-L3-v2.onnx"), &pipeline).unwrap();
    follow(model, &["step.0", "step.0", "step.0", "knot.1", "step.1", "step.1"], 0, 1e-3, "MiniLM-L3");
}

/// An expert without weight is not computed, whatever its memory holds; the step gives what the reference gives.
#[test]
fn a_step_without_one_of_its_experts_is_what_the_reference_says() {
    let pipeline = training("461", "\"*/query/MatMul\", \"*/value/MatMul\"", "sgd").replace("links = 2", "links = 1");
    let optimizer = "name = \"optimizer\"\nkind = \"sgd\"\n";
    let experts = "name = \"samuel\"\nrates = [1, 0.1, 0.01]\nbase = { kind = \"sgd\" }\n";
    let mut model = prepared(&asset("paraphrase-MiniLM-L3-v2.onnx"), &pipeline.replace(optimizer, experts)).unwrap();
    let weights = model.params.get_mut("step/samuel/log_weights").unwrap();
    let mut numbers = weights.tensor.to_f64s().unwrap();
    numbers.iter_mut().step_by(3).for_each(|w| *w = -1e300);
    weights.tensor = Tensor::from_vec(weights.tensor.shape().to_vec(), numbers);
    let mut session = Session::program(&model, "step", SessionOptions { threads: 2 }).unwrap();
    let plan = session.plan(&step_inputs(&model, "step", 0)).unwrap().unwrap();
    let all = plan.lowered.steps.iter().filter(|planned| planned.only_if.is_some()).count();
    assert!(all > 3 * 60, "{all} steps wait for a condition");
    follow(model, &["step", "step"], 0, 1e-3, "MiniLM-L3 with experts");
}

#[test]
fn adapters_on_convolutions_train_as_the_reference_does() {
    // The gradient of a maximum jumps where two numbers are equal but for rounding: seeds without such a pair.
    for (name, input, seed) in [("mobilenetv2-ts17.onnx", "logits", 0), ("ppocr_cls.onnx", "", 10)] {
        let plain = prepared(&asset(name), "").unwrap();
        let output = plain.graph.outputs[0].name.clone();
        let input = if plain.graph.find_output(input).is_some() { input } else { &output };
        let model = prepared(&asset(name), &training(input, "\"/(?i)conv/\"", "sgd")).unwrap();
        follow(model, &["step.0", "step.0", "knot.1", "step.1"], seed, 1e-2, name);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let model = prepared(&asset("paraphrase-MiniLM-L3-v2.onnx"), "").unwrap();
    let inputs = draw_inputs(&model.graph, 5, 1000, &|_, axis| if axis == 0 { 5 } else { 33 });
    let one = planned(&model, &inputs, 1);
    for threads in [2, 4] {
        for (name, tensor) in planned(&model, &inputs, threads) {
            assert_eq!(tensor.bytes(), one[&name].bytes(), "output {name} with {threads} threads");
            assert_ne!(tensor.dtype(), DType::Bool);
        }
    }
}

/// What only one side of a choice reads is left out where the condition picks the other, whatever lies in its memory; the results are the
/// reference's.
#[test]
fn what_a_choice_does_not_read_is_not_computed() {
    let source = "<ir_version: 10, opset_import: [\"\": 20]>\n\
        parameters <frozen float[24, 24] w = NUMBERS>\n\
        g (bool[2] which, float[batch, 24] x) => (float[batch, 24] y, float[] z, bool[2] flipped) <\n\
          float[24, 24] w = param, int64[] zero = {0}, int64[] one = {1}, float[] nothing = {-1.0}\n\
        > {\n\
          a = Gather <axis = 0> (which, zero)\n\
          b = Gather <axis = 0> (which, one)\n\
          h = MatMul (x, w)\n\
          t = Tanh (h)\n\
          u = MatMul (t, w)\n\
          y = Where (a, u, x)\n\
          v = MatMul (u, w)\n\
          s = ReduceSum <keepdims = 0> (v)\n\
          z = Where (b, s, nothing)\n\
          flipped = Not (which)\n\
        }\n";
    let model = sartor_ir::text::parse(&source.replace("NUMBERS", &numbers(24 * 24))).unwrap();
    let mut session = Session::new(&model, SessionOptions { threads: 2 }).unwrap();
    let mut params = Params::of(&model);
    let x = Tensor::from_vec([3, 24], (0..72).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>());
    for which in [[true, true], [false, true], [false, false], [true, false], [true, true]] {
        let inputs =
            Named::from([("which".to_string(), Tensor::from_vec([2], which.to_vec())), ("x".to_string(), x.clone())]);
        let found = session.run(&mut params, &inputs, Key::default()).unwrap();
        let wanted = eval::run(&model, &inputs).unwrap();
        for (output, wanted) in model.graph.outputs.iter().zip(wanted) {
            let found = &found[&output.name];
            let same = found
                .to_f64s()
                .unwrap()
                .iter()
                .zip(wanted.to_f64s().unwrap())
                .all(|(a, b)| a.is_nan() && b.is_nan() || (a - b).abs() < 1e-4);
            assert!(same, "{which:?}: output {} is {found:?}, expected {wanted:?}", output.name);
        }
        let report = session.report();
        assert_eq!(report.unplanned, None);
        // The first two products and their function are read by both choices; the third and its sum by one.
        assert!(report.conditional >= 1, "{report:?}");
    }
}

/// A wide image that only a depthwise convolution reads is made a few rows ahead of it: the same bits as where it is made whole, because it is an
/// output, and for any number of threads.
#[test]
fn a_line_buffer_changes_no_bit() {
    // What widens the image (a product of pixels or a convolution), its activation, and the windows.
    let product = "kernel_shape = [1, 1]";
    let windows = "kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]";
    let cases = [
        (product, "Relu", "kernel_shape = [3, 3], pads = [1, 1, 1, 1]", "Relu", 1),
        (product, "HardSwish", "kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]", "Relu", 1),
        (product, "Relu", "kernel_shape = [5, 3], pads = [2, 0, 3, 1], strides = [1, 2]", "Sigmoid", 3),
        (product, "Sigmoid", "kernel_shape = [3, 3], dilations = [3, 2]", "HardSwish", 1),
        (product, "Relu", "kernel_shape = [2, 1], strides = [5, 3]", "Relu", 2),
        (windows, "Relu", "kernel_shape = [3, 3], pads = [1, 1, 1, 1]", "Relu", 1),
        (windows, "HardSwish", "kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]", "HardSwish", 2),
    ];
    for (i, (widen, first, window, second, batch)) in cases.into_iter().enumerate() {
        let taps = |attributes: &str| {
            let kernel = attributes.split(['[', ']']).nth(1).unwrap().split(", ");
            kernel.map(|n| n.parse::<usize>().unwrap()).collect::<Vec<_>>()
        };
        let (wide, deep) = (taps(widen), taps(window));
        let source = format!(
            "<ir_version: 10, opset_import: [\"\": 20]>\n\
            parameters <frozen float[68, 5, {}, {}] a = {}, frozen float[68, 1, {}, {}] b = {}, frozen float[68] bias = {}>\n\
            g (float[batch, 5, 139, 131] x) => (float[batch, 68, high, wide] y) <\n\
              float[68, 5, {}, {}] a = param, float[68, 1, {}, {}] b = param, float[68] bias = param\n\
            > {{\n\
              h = Conv <{widen}> (x, a, bias)\n\
              image = {first} (h)\n\
              t = Conv <{window}, group = 68> (image, b)\n\
              y = {second} (t)\n\
            }}\n",
            wide[0],
            wide[1],
            numbers(68 * 5 * wide[0] * wide[1]),
            deep[0],
            deep[1],
            numbers(68 * deep[0] * deep[1]),
            numbers(68),
            wide[0],
            wide[1],
            deep[0],
            deep[1],
        );
        let mut model = sartor_ir::text::parse(&source).unwrap();
        sartor_ir::infer::infer_graph(&mut model.graph, 20).unwrap();
        let inputs = draw_inputs(&model.graph, i as u64, 10, &|_, _| batch);
        let image = values_of(&model).into_iter().find(|&v| model.graph.value_name(v) == "image").unwrap();
        let wanted = &eval::run(&model, &inputs).unwrap()[0];
        for (threads, level) in [(1, Level::Avx512), (2, Level::Avx512), (4, Level::Avx2), (2, Level::Portable)] {
            simd::limit(level);
            let whole = planned(&expose(&model, &[image]), &inputs, 1)["y"].clone();
            let apart = distance(&whole, wanted);
            assert!(apart < 1e-4, "{widen}, {window}, {level:?}: whole differs by {apart:e}");
            let mut session = Session::new(&model, SessionOptions { threads }).unwrap();
            let mut params = Params::of(&model);
            for _ in 0..2 {
                let found = session.run(&mut params, &inputs, Key::default()).unwrap();
                assert_eq!(found["y"].bytes(), whole.bytes(), "{widen}, {window}, {threads} threads");
            }
            assert_eq!(
                session.report().kernels.get("LineBuffer"),
                Some(&1),
                "{widen}, {window}: {:?}",
                session.report()
            );
        }
    }
}

/// Numbers of a tensor as the text form writes them.
fn numbers(count: usize) -> String {
    let all: Vec<String> =
        (0..count).map(|i| format!("{:?}", ((i * 7919 % 1013) as f32 / 1013.0 - 0.5) * 0.4)).collect();
    format!("{{{}}}", all.join(", "))
}
