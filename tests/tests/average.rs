//! `average` beside its formulas in plain loops: what the parameter holds, and that the optimizer goes on at the point.

use sartor_ir::{Model, Tensor, onnx, text};
use sartor_passes::{Driver, Registry, options};
use sartor_runtime::{Key, Params, Session, SessionOptions};
use std::collections::HashMap;

const START: [f64; 2] = [0.5, -1.0];
const RATE: f64 = 0.05;
const MOMENTUM: f64 = 0.9;

fn model(passes: &[&str]) -> Model {
    let source = "<ir_version: 10, opset_import: [\"\": 20]>\n\
        parameters <trainable double[2, 1] w = {0.5, -1.0}>\n\
        g (double[batch, 2] x) => (double[batch, 1] y) <double[2, 1] w = param> { y = MatMul (x, w) }\n";
    let mut model = text::parse(source).unwrap();
    for pass in ["loss(kind=mse)", "autodiff"].iter().chain(passes) {
        let (name, options) = options::parse_invocation(pass).unwrap();
        let pass = Registry::builtin().build(&name, options).unwrap();
        Driver::new().run_pass(pass.as_ref(), &mut model).unwrap();
    }
    model
}

/// One example that is another in every step.
fn example(step: usize) -> ([f64; 2], f64) {
    let at = step as f64;
    ([(at * 1.7).sin(), (at * 0.9).cos()], 2.0 + (at * 2.3).sin())
}

struct Run {
    session: Session,
    params: Params,
    done: usize,
}

impl Run {
    fn new(model: &Model) -> Run {
        let session = Session::program(model, "step", SessionOptions { threads: 1 }).unwrap();
        Run { session, params: Params::of(model), done: 0 }
    }
    fn step(&mut self) {
        let (x, y) = example(self.done);
        let inputs = HashMap::from([
            ("x".to_string(), Tensor::from_vec([1, 2], x.to_vec())),
            ("label".to_string(), Tensor::from_vec([1, 1], vec![y])),
            ("learning_rate".to_string(), Tensor::scalar(RATE as f32)),
        ]);
        self.session.run(&mut self.params, &inputs, Key { seed: 0, step: self.done as u64 }).unwrap();
        self.done += 1;
    }
    fn w(&self) -> Vec<f64> {
        self.params.get("w").unwrap().to_f64s().unwrap()
    }
}

/// The points of SGD with momentum, one after each step.
fn points(steps: usize) -> Vec<[f64; 2]> {
    let (mut w, mut momentum) = (START, [0.0; 2]);
    let step = |at: usize| {
        let (x, y) = example(at);
        let apart = x[0] * w[0] + x[1] * w[1] - y;
        for i in 0..2 {
            momentum[i] = MOMENTUM * momentum[i] + 2.0 * apart * x[i];
            w[i] -= f64::from(RATE as f32) * momentum[i];
        }
        w
    };
    (0..steps).map(step).collect()
}

#[track_caller]
fn close(found: &[f64], wanted: &[f64]) {
    let near = found.iter().zip(wanted).all(|(a, b)| (a - b).abs() <= 1e-12 * b.abs().max(1.0));
    assert!(near && found.len() == wanted.len(), "{found:?}, in plain loops {wanted:?}");
}

#[test]
fn the_parameter_holds_the_average_of_the_points() {
    let points = points(120);
    for (option, share) in [
        ("power=8", (|t: f64| 9.0 / (8.0 + t)) as fn(f64) -> f64),
        ("power=0", |t| 1.0 / t),
        ("", |t| 9.0 / (8.0 + t)),
        ("decay=0.95", |t| (1.0 / t).max(1.0 - 0.95)),
        ("decay=0", |_| 1.0),
    ] {
        let model = model(&[&format!("optimizer(kind=sgd, momentum={MOMENTUM})"), &format!("average({option})")]);
        let mut run = Run::new(&model);
        let mut mean = START;
        for (step, point) in points.iter().enumerate() {
            let c = share((step + 1) as f64);
            (0..2).for_each(|i| mean[i] += c * (point[i] - mean[i]));
            run.step();
            close(&run.w(), &mean);
        }
    }
}

/// With equal weights the average is the mean of all points, whatever the optimizer.
#[test]
fn equal_weights_are_the_mean() {
    let (mut plain, mut averaged) = (
        Run::new(&model(&["optimizer(kind=adamw)"])),
        Run::new(&model(&["optimizer(kind=adamw)", "average(power=0)"])),
    );
    let mut sum = [0.0; 2];
    for step in 1..=50 {
        plain.step();
        averaged.step();
        plain.w().iter().zip(&mut sum).for_each(|(w, sum)| *sum += w);
        close(&averaged.w(), &sum.map(|s| s / step as f64));
    }
}

/// Experts go on at their own points: the average changes nothing of what they do, also after a restart.
#[test]
fn experts_do_not_notice() {
    for mode in ["independent", "shared"] {
        let samuel = format!("samuel(mode={mode}, rates=[1, 0.1], base={{kind=sgd}})");
        let models = [model(&[&samuel]), model(&[&samuel, "average(power=3)"])];
        let mut runs = models.each_ref().map(Run::new);
        let mut mean = START;
        for step in 0..60 {
            if step == 30 {
                for (run, model) in runs.iter_mut().zip(&models) {
                    let mut restart = Session::program(model, "restart", SessionOptions { threads: 1 }).unwrap();
                    restart.run(&mut run.params, &HashMap::new(), Key::default()).unwrap();
                }
            }
            runs.iter_mut().for_each(Run::step);
            let played = runs[0].w();
            let c = 4.0 / (3.0 + (step + 1) as f64);
            (0..2).for_each(|i| mean[i] += c * (played[i] - mean[i]));
            close(&runs[1].w(), &mean);
        }
    }
}

#[test]
fn a_file_goes_on_alike() {
    let model = model(&["optimizer(kind=adamw)", "average"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step.onnx");
    onnx::save(&model, &path, &onnx::SaveOptions::default()).unwrap();
    let mut runs = [Run::new(&model), Run::new(&onnx::load(&path).unwrap())];
    (0..20).for_each(|_| runs.iter_mut().for_each(Run::step));
    assert_eq!(runs[0].w(), runs[1].w());
}

#[test]
fn wrong_averages_are_refused() {
    let fails = |passes: &[&str], last: &str| {
        let mut model = model(passes);
        let (name, options) = options::parse_invocation(last).unwrap();
        let pass = Registry::builtin().build(&name, options).unwrap();
        Driver::new().run_pass(pass.as_ref(), &mut model).unwrap_err().to_string()
    };
    let sgd = ["optimizer(kind=sgd)"];
    assert!(fails(&sgd, "average(power=8, decay=0.9)").contains("give one of them"));
    assert!(fails(&sgd, "average(decay=1)").contains("decay is 1, expected a number in [0, 1)"));
    assert!(fails(&sgd, "average(power=-1)").contains("power is -1"));
    assert!(fails(&[], "average").contains("run `average` after `optimizer` or `samuel`"));
    assert!(fails(&["optimizer(kind=sgd)", "average"], "average").contains("averaged already"));
}
