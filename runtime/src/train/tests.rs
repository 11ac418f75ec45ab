//! Whole runs of a small chain, written by hand: `y = x·(w + d)`, squared error, gradient descent with momentum on `d`,
//! and a knot that merges `d` into `w`.

use super::*;
use crate::checkpoint::disk::flaky::{Fault, FlakyDisk};
use crate::data::arrays::Arrays;
use crate::data::{DataConfig, Schema, Splits};
use crate::train::trainer::train_on;
use indexmap::IndexMap;
use sartor_ir::rng::Draw;
use sartor_ir::{
    Attributes, Binding, DType, Dim, Graph, GraphOutput, Model, Operator, Parameter, Program, Role, Tensor, Type, Value,
};
use std::path::Path;
use std::sync::Arc;

const COLUMN: [i64; 2] = [2, 1];

fn batch_of(width: i64) -> Type {
    Type::tensor(DType::F32, [Dim::symbol("batch"), Dim::Known(width)])
}

fn matmul(g: &mut Graph, a: Value, b: Value) -> Value {
    g.op("MatMul", &[a, b], Attributes::new())
}

fn add(g: &mut Graph, a: Value, b: Value) -> Value {
    g.op("Add", &[a, b], Attributes::new())
}

fn transpose(g: &mut Graph, a: Value) -> Value {
    g.op("Transpose", &[a], Attributes::new().with("perm", vec![1i64, 0]))
}

fn reshape(g: &mut Graph, a: Value, shape: &[i64]) -> Value {
    let shape = g.add_const("shape", Tensor::from_i64s(shape));
    g.op("Reshape", &[a, shape], Attributes::new())
}

/// `a · s` for a column `a`.
fn scaled(g: &mut Graph, a: Value, s: f32) -> Value {
    let s = g.add_const("scale", Tensor::from_vec([1, 1], vec![s]));
    matmul(g, a, s)
}

fn prediction(g: &mut Graph) -> (Value, Value) {
    let x = g.add_input("x", batch_of(2));
    let w = g.param("w", Type::tensor(DType::F32, COLUMN));
    let d = g.param("d", Type::tensor(DType::F32, COLUMN));
    let sum = add(g, w, d);
    let y = matmul(g, x, sum);
    (x, y)
}

fn program(mut graph: Graph, outputs: &[(&str, Value)], bindings: &[(&str, &str)]) -> Program {
    graph.outputs = outputs.iter().map(|(n, v)| GraphOutput { name: n.to_string(), value: *v }).collect();
    let bind = |(o, p): &(&str, &str)| Binding { output: o.to_string(), param: p.to_string() };
    Program { graph, bindings: bindings.iter().map(bind).collect() }
}

fn step(name: &str) -> Program {
    let mut g = Graph::new(name);
    let (x, y) = prediction(&mut g);
    let label = g.add_input("label", batch_of(1));
    let rate = g.add_input("learning_rate", Type::tensor(DType::F32, [0i64; 0]));
    let minus = scaled(&mut g, label, -1.0);
    let error = add(&mut g, y, minus);
    let (xt, et) = (transpose(&mut g, x), transpose(&mut g, error));
    let square = matmul(&mut g, et, error);
    let loss = reshape(&mut g, square, &[]);
    let gradient = matmul(&mut g, xt, error);
    let m = g.param("m", Type::tensor(DType::F32, COLUMN));
    let m = scaled(&mut g, m, 0.5);
    let m = add(&mut g, m, gradient);
    let rate = reshape(&mut g, rate, &[1, 1]);
    let rate = scaled(&mut g, rate, -0.25);
    let update = matmul(&mut g, m, rate);
    let d = g.find_param("d").unwrap();
    let d = add(&mut g, d, update);
    program(g, &[("loss", loss), ("d.new", d), ("m.new", m)], &[("d.new", "d"), ("m.new", "m")])
}

fn knot() -> Program {
    let mut g = Graph::new("knot.1");
    let w = g.param("w", Type::tensor(DType::F32, COLUMN));
    let d = g.param("d", Type::tensor(DType::F32, COLUMN));
    let merged = add(&mut g, w, d);
    let zero = g.add_const("zero", Tensor::zeros(DType::F32, [2, 1]).unwrap());
    let outputs = [("w.new", merged), ("d.new", zero), ("m.new", zero)];
    program(g, &outputs, &[("w.new", "w"), ("d.new", "d"), ("m.new", "m")])
}

fn chain() -> Model {
    let mut main = Graph::new("main");
    let (_, y) = prediction(&mut main);
    main.outputs.push(GraphOutput { name: "y".into(), value: y });
    let mut model = Model::new(main);
    for (name, role) in [("w", Role::State), ("d", Role::Trainable), ("m", Role::State)] {
        let tensor = Tensor::zeros(DType::F32, [2, 1]).unwrap();
        model.params.insert(name.into(), Parameter { tensor, role });
    }
    for (name, program) in [("step.0", step("step.0")), ("knot.1", knot()), ("step.1", step("step.1"))] {
        model.programs.insert(name.into(), program);
    }
    model
}

/// 37 rows of y = x₀ − 2x₁; row 30 holds `odd`.
fn data(model: &Model, odd: f32) -> Splits {
    let mut draw = Draw::new(1, "data");
    let mut x: Vec<f32> = (0..74).map(|_| draw.float(-1.0, 1.0) as f32).collect();
    let y: Vec<f32> = x.chunks(2).map(|r| r[0] - 2.0 * r[1]).collect();
    x[60] = if odd == 0.0 { x[60] } else { odd };
    let arrays = IndexMap::from([
        ("x".to_string(), Tensor::from_vec([37, 2], x)),
        ("label".to_string(), Tensor::from_vec([37, 1], y)),
    ]);
    let schema = Schema::of_program(model, "step.0").unwrap();
    let split = Arc::new(Arrays::of(arrays, &DataConfig::default(), &schema).unwrap());
    Splits { train: split.clone(), eval: Some(split.clone()), test: Some(split) }
}

fn run(output: &Path) -> TrainRun {
    let train = TrainConfig {
        epochs: 5,
        batch: 4,
        seed: 7,
        threads: Some(1),
        checkpoint_every: Every::Steps(4),
        log_every: 3,
        ..TrainConfig::default()
    };
    let schedule = OptimizerSchedule { learning_rate: 0.4, ..OptimizerSchedule::default() };
    let recipe = "[train]\nepochs = 5\n".to_string();
    TrainRun { train, schedule, task: Task::Regression, output: output.into(), recipe, ..TrainRun::default() }
}

/// Asks to stop after so many steps of this process.
struct StopAfter(usize, Vec<String>);

impl StopAfter {
    fn never() -> StopAfter {
        StopAfter(usize::MAX, Vec::new())
    }
}

impl Observer for StopAfter {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { .. } => self.0 = self.0.saturating_sub(1),
            Event::Notice(text) => self.1.push(text.to_string()),
            _ => {}
        }
    }
    fn stop(&mut self) -> bool {
        self.0 == 0
    }
}

/// The log without what depends on time.
fn log(output: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        object.shift_remove("samples_per_second");
        serde_json::to_string(&object).unwrap()
    };
    text.lines().map(timeless).collect()
}

fn summary(outcome: Outcome) -> Summary {
    match outcome {
        Outcome::Finished(summary) => summary,
        other => panic!("{other:?}"),
    }
}

fn timeless(mut summary: Summary) -> Summary {
    for key in ["samples_per_second", "seconds", "peak_rss_mib"] {
        summary.values.shift_remove(key);
    }
    summary
}

fn whole_run() -> (Model, Vec<String>, Summary) {
    let dir = tempfile::tempdir().unwrap();
    let mut model = chain();
    let splits = data(&model, 0.0);
    let outcome = train(&mut model, &run(dir.path()), &splits, &mut Silent).unwrap();
    (model, log(dir.path()), timeless(summary(outcome)))
}

#[test]
fn a_chain_learns_and_leaves_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = chain();
    let splits = data(&model, 0.0);
    let result = summary(train(&mut model, &run(dir.path()), &splits, &mut Silent).unwrap());
    assert!(result.get("test.mse").unwrap() < 1e-3, "{result:?}");
    let keys: Vec<&str> = result.values.keys().map(String::as_str).collect();
    let expected = "test.loss test.mse eval.loss eval.mse best.step best.value train.loss steps epochs skipped_steps \
                    samples_per_second seconds peak_rss_mib trainable_parameters all_parameters";
    assert_eq!(keys.join(" "), expected);
    assert_eq!([result.get("steps"), result.get("trainable_parameters")], [Some(50.0), Some(2.0)]);
    // The knot merged the first link.
    let w: Vec<f32> = model.params["w"].tensor.to_vec().unwrap();
    assert!(w[0] > 0.3 && w[1] < -0.6, "{w:?}");
    let lines = log(dir.path());
    // 16 windows of 3 steps and the last one, the knot, 5 evaluations, the test.
    assert_eq!(lines.len(), 17 + 1 + 5 + 1);
    assert!(lines[0].starts_with("{\"step\":3,\"epoch\":0.3,\"loss\":"), "{}", lines[0]);
    assert!(lines[23].starts_with("{\"step\":50,\"epoch\":5.0,\"test/loss\":"), "{}", lines[23]);
    let mut names: Vec<_> = std::fs::read_dir(dir.path().join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with("step-"))
        .collect();
    names.sort();
    assert_eq!(names, ["step-48", "step-50"]);
    assert!(dir.path().join("summary.json").exists());
}

#[test]
fn interrupted_and_resumed_is_uninterrupted() {
    let (model, lines, whole) = whole_run();
    for pieces in [vec![3], vec![17], vec![25], vec![26], vec![1, 9, 15, 24], vec![10, 10, 10, 10], vec![49]] {
        let dir = tempfile::tempdir().unwrap();
        let mut again = chain();
        let splits = data(&again, 0.0);
        let mut config = run(dir.path());
        for &steps in &pieces {
            let outcome = train(&mut again, &config, &splits, &mut StopAfter(steps, vec![])).unwrap();
            let Outcome::Interrupted { checkpoint: Some(path), .. } = outcome else { panic!("{outcome:?}") };
            assert!(path.join("manifest.json").exists());
            // A new process begins with the model of the file.
            again = chain();
            config.resume = true;
        }
        let outcome = train(&mut again, &config, &splits, &mut StopAfter::never()).unwrap();
        assert_eq!(again.params, model.params, "{pieces:?}");
        assert_eq!(log(dir.path()), lines, "{pieces:?}");
        assert_eq!(timeless(summary(outcome)), whole, "{pieces:?}");
    }
}

#[test]
fn killed_at_any_disk_operation_and_resumed_is_uninterrupted() {
    let (model, lines, _) = whole_run();
    let mut kills = 0;
    for operation in (0..150).step_by(7) {
        let dir = tempfile::tempdir().unwrap();
        let splits = data(&chain(), 0.0);
        let mut config = run(dir.path());
        let disk = FlakyDisk::new(operation, Fault::Killed);
        kills += usize::from(train_on(&disk, &mut chain(), &config, &splits, &mut Silent).is_err());
        config.resume = true;
        let mut again = chain();
        train(&mut again, &config, &splits, &mut Silent).unwrap();
        assert_eq!(again.params, model.params, "operation {operation}");
        assert_eq!(log(dir.path()), lines, "operation {operation}");
    }
    assert!(kills > 10, "{kills}");
}

#[test]
fn a_full_disk_ends_the_run_with_the_files_name() {
    let dir = tempfile::tempdir().unwrap();
    let splits = data(&chain(), 0.0);
    let disk = FlakyDisk::new(2, Fault::Full);
    let error = train_on(&disk, &mut chain(), &run(dir.path()), &splits, &mut Silent).unwrap_err().to_string();
    assert!(error.starts_with("checkpoint step-4 was not saved: ") && error.contains("state.json"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path().join("checkpoints")).unwrap().count(), 0);
}

#[test]
fn numbers_that_are_not_finite_never_reach_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = chain();
    let splits = data(&model, f32::MAX);
    let config = run(dir.path());
    let error = train(&mut model, &config, &splits, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("the loss is inf; the weights were not touched"), "{error}");
    assert_eq!(model, chain());
    let mut skipping = run(&dir.path().join("skip"));
    skipping.train.on_nonfinite = OnNonFinite::Skip;
    skipping.train.eval_every = Every::NEVER;
    let clean = data(&model, 0.0);
    let splits = Splits { eval: None, test: clean.test, ..splits };
    let mut observer = StopAfter::never();
    let result = summary(train(&mut model, &skipping, &splits, &mut observer).unwrap());
    assert_eq!(result.get("skipped_steps"), Some(5.0));
    assert_eq!(observer.1.len(), 5);
    assert!(result.get("test.mse").unwrap() < 1e-2, "{result:?}");
}

#[test]
fn an_early_stop_goes_back_to_the_best_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = chain();
    let splits = data(&model, 0.0);
    let mut config = run(dir.path());
    // The second link steps ever further past the minimum.
    config.schedule.schedule = Decay::Constant;
    config.schedule.learning_rate = 8.0;
    config.train.early_stop = Some(EarlyStop { patience: 2, metric: Some("mse".into()), mode: None });
    let mut observer = StopAfter::never();
    let result = summary(train(&mut model, &config, &splits, &mut observer).unwrap());
    assert_eq!([result.get("best.step"), result.get("steps")], [Some(10.0), Some(30.0)]);
    assert_eq!(result.get("test.mse"), result.get("best.value"));
    let expected = ["step 30: no better mse in 2 evaluations; stopping", "back to the best state, of step 10"];
    assert_eq!(observer.1, expected);
    config.train.early_stop = Some(EarlyStop { patience: 2, metric: Some("f2".into()), mode: None });
    config.output = dir.path().join("other");
    let error = train(&mut model, &config, &splits, &mut Silent).unwrap_err().to_string();
    assert_eq!(error, "train.early_stop.metric is \"f2\"; the evaluation gives loss, mse");
}

/// The loss of every step of an epoch, with steps of length zero: each row counts alike wherever it stands.
fn losses_of_an_epoch(shuffle: bool) -> Vec<f64> {
    let dir = tempfile::tempdir().unwrap();
    let mut model = chain();
    let splits = data(&model, 0.0);
    let mut config = run(dir.path());
    config.train = TrainConfig { epochs: 1, log_every: 1, shuffle, ..config.train };
    config.schedule.learning_rate = 0.0;
    train(&mut model, &config, &splits, &mut Silent).unwrap();
    let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn without_shuffle_the_order_is_that_of_the_file() {
    let splits = data(&chain(), 0.0);
    let labels = splits.train.batch(&(0..37).collect::<Vec<_>>()).unwrap().tensors["label"].to_vec::<f32>().unwrap();
    // Nothing is learned, so the prediction stays 0 and the loss of a batch is the sum of its squared labels.
    let expected = labels.chunks(4).map(|batch| batch.iter().map(|y| f64::from(y * y)).sum::<f64>());
    let found = losses_of_an_epoch(false);
    assert_eq!(found.len(), 10);
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
    assert_ne!(losses_of_an_epoch(true), found);
}

#[test]
fn mistakes_are_sentences() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = chain();
    let splits = data(&model, 0.0);
    let mut config = run(dir.path());
    train(&mut model, &config, &splits, &mut StopAfter(5, vec![])).unwrap();
    let error = train(&mut model, &config, &splits, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("there are checkpoints of another run"), "{error}");
    config.resume = true;
    config.recipe = "[train]\nepochs = 6\n".into();
    let error = train(&mut model, &config, &splits, &mut Silent).unwrap_err().to_string();
    assert!(error.ends_with("- epochs = 5\n+ epochs = 6"), "{error}");
    config.output = dir.path().join("fixed");
    let graph = &mut model.programs["step.0"].graph;
    let x = graph.find_input("x").unwrap();
    graph.set_ty(x, Some(Type::tensor(DType::F32, [4i64, 2])));
    let error = train(&mut model, &config, &splits, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("has a fixed batch of 4, and 37 examples leave an incomplete one"), "{error}");
    // An operator that nobody knows, in the middle of a step.
    let graph = &mut model.programs["step.0"].graph;
    let node = graph.node_ids().find(|&id| graph.node(id).is("MatMul")).unwrap();
    *graph.node_mut(node).op_mut().unwrap() = Operator::onnx("Nonsense", Attributes::new());
    config.train.drop_last = true;
    let error = train(&mut model, &config, &splits, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("Nonsense"), "{error}");
}
