//! Every kind of the pass `optimizer`, step by step against the package that it follows: 50 updates of a small network
//! with a batch of its own each, in single and double precision, planned and by the reference evaluator.

use sartor_ir::rng::Draw;
use sartor_ir::{Attributes, DType, Dim, Graph, GraphOutput, Model, Parameter, Role, Tensor, Type, eval, infer};
use sartor_runtime::data::npz;
use sartor_runtime::{Key, Params, Session, SessionOptions};
use sartor_tests::{Named, distance, peer, run_passes, succeeds};
use serde_json::json;
use std::collections::HashMap;

const STEPS: usize = 50;
const BATCH: usize = 8;
const PARAMETERS: [&str; 4] = ["layer.0.W", "layer.0.b", "layer.1.W", "layer.1.b"];

/// An optimizer, here and there.
struct Case {
    name: &'static str,
    /// The options of the pass, TOML.
    ours: &'static str,
    peer: &'static str,
    /// The arguments of the peer, JSON.
    theirs: &'static str,
    rates: fn(usize) -> f32,
    /// The factor on the rate of `layer.1.W`.
    factor: Option<f64>,
}

const fn case(
    name: &'static str,
    ours: &'static str,
    peer: &'static str,
    theirs: &'static str,
    rates: fn(usize) -> f32,
) -> Case {
    Case { name, ours, peer, theirs, rates, factor: None }
}

const SGD: &str = "torch.optim.SGD";
const ADAMW: &str = "torch.optim.AdamW";
const ADAGRAD: &str = "torch.optim.Adagrad";
const PRODIGY: &str = "prodigyopt.Prodigy";
const SCHEDULE_FREE: &str = "schedulefree.AdamWScheduleFree";
const D_ADAPT: &str = "dadaptation.DAdaptAdam";

/// From 0 in five steps, then falling.
fn warm(step: usize) -> f32 {
    if step < 5 { 0.2 * step as f32 } else { 1.0 - 0.015 * (step - 5) as f32 }
}

const CASES: &[Case] = &[
    case("sgd", "kind = 'sgd'", SGD, "{}", |_| 0.5),
    case("sgd-decay", "kind = 'sgd'\nweight_decay = 0.1", SGD, "{'weight_decay': 0.1}", |_| 0.5),
    case(
        "sgd-nesterov",
        "kind = 'sgd'\nmomentum = 0.9\nnesterov = true\nweight_decay = 0.01",
        SGD,
        "{'momentum': 0.9, 'nesterov': true, 'weight_decay': 0.01}",
        |_| 0.125,
    ),
    case("sgd-momentum", "kind = 'sgd'\nmomentum = 0.75", SGD, "{'momentum': 0.75}", |_| 0.125),
    case("adamw", "kind = 'adamw'", ADAMW, "{'weight_decay': 0}", |_| 0.01),
    case(
        "adamw-decay",
        "kind = 'adamw'\nweight_decay = 0.1\nbeta1 = 0.8\nbeta2 = 0.9",
        ADAMW,
        "{'weight_decay': 0.1, 'betas': [0.8, 0.9]}",
        |step| 0.02 * warm(step),
    ),
    Case {
        factor: Some(4.0),
        ..case("adamw-factor", "rate_factors = {'layer.1.W' = 4}", ADAMW, "{'weight_decay': 0}", |_| 0.01)
    },
    case("adagrad", "kind = 'adagrad'", ADAGRAD, "{}", |_| 0.1),
    case("adagrad-decay", "kind = 'adagrad'\nweight_decay = 0.1", ADAGRAD, "{'weight_decay': 0.1}", |_| 0.1),
    case("prodigy", "kind = 'prodigy'", PRODIGY, "{}", |_| 1.0),
    case("prodigy-decay", "kind = 'prodigy'\nweight_decay = 0.1", PRODIGY, "{'weight_decay': 0.1}", |_| 1.0),
    case(
        "prodigy-coupled",
        "kind = 'prodigy'\nweight_decay = 0.1\ndecouple = false\nuse_bias_correction = true\nd_coef = 2",
        PRODIGY,
        "{'weight_decay': 0.1, 'decouple': false, 'use_bias_correction': true, 'd_coef': 2.0}",
        |_| 0.5,
    ),
    case(
        "prodigy-grows",
        "kind = 'prodigy'\nweight_decay = 0.1\ngrowth_rate = 1.25\nd0 = 1e-4\nbeta3 = 0.9\nepsilon = 1e-6",
        PRODIGY,
        "{'weight_decay': 0.1, 'growth_rate': 1.25, 'd0': 1e-4, 'beta3': 0.9, 'eps': 1e-6}",
        |_| 1.0,
    ),
    case(
        "prodigy-warm",
        "kind = 'prodigy'\nsafeguard_warmup = true\nslice_p = 3\nweight_decay = 0.1",
        PRODIGY,
        "{'safeguard_warmup': true, 'slice_p': 3, 'weight_decay': 0.1}",
        warm,
    ),
    case("prodigy-warm-plain", "kind = 'prodigy'", PRODIGY, "{}", warm),
    case("prodigy-no-momentum", "kind = 'prodigy'\nbeta1 = 0\nbeta2 = 0.99", PRODIGY, "{'betas': [0.0, 0.99]}", |_| {
        1.0
    }),
    case("schedule-free", "kind = 'schedule-free-adamw'", SCHEDULE_FREE, "{}", |_| 0.0025),
    case(
        "schedule-free-decay",
        "kind = 'schedule-free-adamw'\nweight_decay = 0.1\nwarmup_updates = 10\nr = 1\nbeta1 = 0.95",
        SCHEDULE_FREE,
        "{'weight_decay': 0.1, 'warmup_steps': 10, 'r': 1.0, 'betas': [0.95, 0.999]}",
        |_| 0.02,
    ),
    Case {
        factor: Some(4.0),
        ..case(
            "schedule-free-warm",
            "kind = 'schedule-free-adamw'\nweight_lr_power = 1\nrate_factors = {'layer.1.W' = 4}",
            SCHEDULE_FREE,
            "{'weight_lr_power': 1.0}",
            |step| 0.01 * warm(step),
        )
    },
    case("d-adapt", "kind = 'd-adapt-adam'", D_ADAPT, "{}", |_| 1.0),
    case("d-adapt-decay", "kind = 'd-adapt-adam'\nweight_decay = 0.1", D_ADAPT, "{'weight_decay': 0.1}", |_| 1.0),
    case(
        "d-adapt-decoupled",
        "kind = 'd-adapt-adam'\nweight_decay = 0.1\ndecouple = true\nuse_bias_correction = true\ngrowth_rate = 1.25\nd0 = 1e-4",
        D_ADAPT,
        "{'weight_decay': 0.1, 'decouple': true, 'use_bias_correction': true, 'growth_rate': 1.25, 'd0': 1e-4}",
        |_| 0.5,
    ),
    Case {
        factor: Some(2.0),
        ..case(
            "d-adapt-factor",
            "kind = 'd-adapt-adam'\nrate_factors = {'layer.1.W' = 2}\nweight_decay = 0.1\ndecouple = true",
            D_ADAPT,
            "{'weight_decay': 0.1, 'decouple': true}",
            warm,
        )
    },
];

impl Case {
    fn to_json(&self) -> serde_json::Value {
        let options: serde_json::Value = serde_json::from_str(&self.theirs.replace('\'', "\"")).unwrap();
        let rates: Vec<f64> = (0..STEPS).map(|step| f64::from((self.rates)(step))).collect();
        let factors: HashMap<&str, f64> = self.factor.map(|factor| ("layer.1.W", factor)).into_iter().collect();
        json!({"name": self.name, "optimizer": self.peer, "options": options, "rates": rates, "factors": factors})
    }
    /// The model with a step that trains it.
    fn model(&self, dtype: DType) -> Model {
        let mut model = network(dtype);
        let ours = self.ours.replace('\'', "\"");
        let pipeline = format!(
            "[[pass]]\nname = \"loss\"\n[[pass]]\nname = \"autodiff\"\n[[pass]]\nname = \"optimizer\"\n{ours}\n"
        );
        run_passes(&mut model, &pipeline).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        model
    }
    fn inputs(&self, step: usize, dtype: DType) -> Named {
        let mut draw = Draw::new(5, &format!("batch {step}"));
        HashMap::from([
            ("x".to_string(), draw.tensor(&[BATCH, 5], -1.0, 1.0).cast(DType::F32).unwrap().cast(dtype).unwrap()),
            ("label".to_string(), draw.ints(&[BATCH], 0, 2)),
            ("learning_rate".to_string(), Tensor::scalar((self.rates)(step))),
        ])
    }
}

/// `y = Tanh(x·W + b)·W + b`, all weights trained.
fn network(dtype: DType) -> Model {
    let mut draw = Draw::new(11, "network");
    let mut model = Model::new(Graph::new("network"));
    let shape = vec![Dim::Known(BATCH as i64), Dim::Known(5)];
    let mut value = model.graph.add_input("x", Type::Tensor { dtype, shape: Some(shape) });
    for (name, shape) in PARAMETERS.into_iter().zip([vec![5, 6], vec![6], vec![6, 3], vec![3]]) {
        let tensor = draw.tensor(&shape, -0.8, 0.8).cast(DType::F32).unwrap().cast(dtype).unwrap();
        let weight = model.graph.param(name, Type::of(&tensor));
        model.params.insert(name.to_string(), Parameter { tensor, role: Role::Trainable });
        let op = if name.ends_with('W') { "MatMul" } else { "Add" };
        value = model.graph.op(op, &[value, weight], Attributes::new());
        if name == "layer.0.b" {
            value = model.graph.op("Tanh", &[value], Attributes::new());
        }
    }
    model.graph.outputs.push(GraphOutput { name: "y".into(), value });
    infer::infer_model(&mut model).unwrap();
    model
}

/// The weights that the packages find: arrays `[STEPS, …]` named `case/parameter`.
fn trajectories_of_peers(dtype: DType) -> Named {
    let folder = tempfile::tempdir().unwrap();
    let [problem, cases, out] = ["problem.npz", "cases.json", "out.npz"].map(|name| folder.path().join(name));
    let mut arrays: Vec<(String, Tensor)> = Vec::new();
    for (name, parameter) in &network(dtype).params {
        arrays.push((name.clone(), parameter.tensor.clone()));
    }
    let batches: Vec<Named> = (0..STEPS).map(|step| CASES[0].inputs(step, dtype)).collect();
    for name in ["x", "label"] {
        let bytes: Vec<u8> = batches.iter().flat_map(|batch| batch[name].bytes().to_vec()).collect();
        let shape: Vec<usize> = [&[STEPS], batches[0][name].shape()].concat();
        arrays.push((name.to_string(), Tensor::from_bytes(batches[0][name].dtype(), shape, bytes.into()).unwrap()));
    }
    npz::write(&problem, arrays.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    let list: Vec<serde_json::Value> = CASES.iter().map(Case::to_json).collect();
    std::fs::write(&cases, json!(list).to_string()).unwrap();
    succeeds(peer("optimizers.py").args([&problem, &cases, &out]));
    npz::read(&out).unwrap().into_iter().collect()
}

/// The parameters after each of our steps, by the runtime.
fn planned(case: &Case, dtype: DType) -> Vec<Named> {
    let model = case.model(dtype);
    let mut session = Session::program(&model, "step", SessionOptions { threads: 2 }).unwrap();
    let mut params = Params::of(&model);
    let run = |step: usize| {
        let key = Key { seed: 0, step: step as u64 };
        session.run(&mut params, &case.inputs(step, dtype), key).unwrap();
        PARAMETERS.iter().map(|name| (name.to_string(), params.get(name).unwrap().clone())).collect()
    };
    (0..STEPS).map(run).collect()
}

/// The same by the reference evaluator.
fn referred(case: &Case, dtype: DType) -> Vec<Named> {
    let mut model = case.model(dtype);
    let run = |step: usize| {
        eval::run_program(&mut model, "step", &case.inputs(step, dtype), 0, step as u64).unwrap();
        PARAMETERS.iter().map(|name| (name.to_string(), model.params[*name].tensor.clone())).collect()
    };
    (0..STEPS).map(run).collect()
}

/// The worst relative distance over all steps and parameters.
fn worst(found: &[Named], peers: &Named, case: &Case) -> f64 {
    let mut worst = 0f64;
    for name in PARAMETERS {
        let all = peers[&format!("{}/{name}", case.name)].to_f64s().unwrap();
        let size = all.len() / STEPS;
        for (step, weights) in found.iter().enumerate() {
            let ours = &weights[name];
            let theirs = Tensor::from_vec(ours.shape().to_vec(), all[step * size..(step + 1) * size].to_vec());
            worst = worst.max(distance(ours, &theirs.cast(ours.dtype()).unwrap()));
        }
    }
    worst
}

fn compare(dtype: DType, bound: f64) {
    let peers = trajectories_of_peers(dtype);
    let mut errors = Vec::new();
    for case in CASES {
        for (how, found) in [("planned", planned(case, dtype)), ("reference", referred(case, dtype))] {
            let first = &network(dtype).params["layer.0.W"].tensor;
            assert!(distance(&found[STEPS - 1]["layer.0.W"], first) > 1e-2, "{} learned something", case.name);
            let apart = worst(&found, &peers, case);
            println!("{} {how}: {apart:.1e}", case.name);
            if !(apart < bound) {
                errors.push(format!("{}, {how}: {apart:e} from {}", case.name, case.peer));
            }
        }
    }
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn weights_are_those_of_the_packages_in_double_precision() {
    compare(DType::F64, 1e-12);
}

#[test]
fn weights_are_those_of_the_packages_in_single_precision() {
    // Measured: 8e-6 where the step size is estimated, whose growth from 1e-6 amplifies rounding; 8e-7 elsewhere.
    compare(DType::F32, 2e-5);
}
