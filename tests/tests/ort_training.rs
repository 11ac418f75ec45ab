//! The artifacts of `export --ort-training`: onnxruntime-training loads them, and its steps are ours. Of models of many kinds, with adapters and with all
//! weights; what has no place in them is refused by name.

use sartor_ir::rng::Draw;
use sartor_ir::{DType, Model, Role, Tensor, onnx};
use sartor_passes::ort_training::Artifacts;
use sartor_passes::{Driver, Registry};
use sartor_runtime::data::npz;
use sartor_runtime::{Key, Params, Session, SessionOptions};
use sartor_tests::{Named, asset, distance, draw_inputs, peer_in, prepared, run_passes, succeeds};
use serde_json::json;
use std::path::Path;

const STEPS: usize = 4;

/// A training, here and there.
struct Case {
    name: String,
    model: Model,
    /// The passes as far as `autodiff` (TOML).
    passes: String,
    /// The options of `clip` and `optimizer`.
    clip: Option<f32>,
    optimizer: serde_json::Value,
    rate: f32,
    batches: Vec<Named>,
}

impl Case {
    /// The model with its gradients.
    fn differentiated(&self) -> sartor_ir::Result<Model> {
        let mut model = self.model.clone();
        run_passes(&mut model, &self.passes)?;
        Ok(model)
    }
    fn write(&self, folder: &Path) -> Result<(), String> {
        let clip = self.clip.map(|max_norm| serde_json::from_value(json!({"max_norm": max_norm})).unwrap());
        let optimizer = serde_json::from_value(self.optimizer.clone()).unwrap();
        let model = self.differentiated().map_err(|e| e.to_string())?;
        let artifacts = Artifacts::of(&model, &optimizer, clip.as_ref()).map_err(|e| e.to_string())?;
        std::fs::create_dir_all(folder).unwrap();
        for (name, model) in
            [("training", &artifacts.training), ("eval", &artifacts.eval), ("optimizer", &artifacts.optimizer)]
        {
            onnx::save(model, &folder.join(format!("{name}_model.onnx")), &Default::default()).unwrap();
        }
        std::fs::write(folder.join("checkpoint"), &artifacts.checkpoint).unwrap();
        std::fs::write(folder.join("rate.txt"), self.rate.to_string()).unwrap();
        let stacked: Vec<(String, Tensor)> = self.batches[0]
            .iter()
            .map(|(name, first)| {
                let bytes: Vec<u8> = self.batches.iter().flat_map(|batch| batch[name].bytes().to_vec()).collect();
                let shape = [&[self.batches.len()], first.shape()].concat();
                (name.clone(), Tensor::from_bytes(first.dtype(), shape, bytes.into()).unwrap())
            })
            .collect();
        npz::write(&folder.join("batches.npz"), stacked.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
        Ok(())
    }
    /// The loss of every step, then that of the last batch after them; and the parameters.
    fn ours(&self) -> sartor_ir::Result<(Vec<f64>, Params)> {
        let mut model = self.differentiated()?;
        if let Some(max_norm) = self.clip {
            run_passes(&mut model, &format!("[[pass]]\nname = \"clip\"\nmax_norm = {max_norm}\n"))?;
        }
        let options = self.optimizer.as_object().cloned().unwrap();
        Driver::new().run(&[Registry::builtin().build("optimizer", options)?], &mut model)?;
        let step = model.programs.keys().find(|name| name.starts_with("step")).cloned().unwrap();
        let mut session = Session::program(&model, &step, SessionOptions { threads: 2 })?;
        let mut eval = Session::program(&model, "eval", SessionOptions { threads: 2 })?;
        let mut params = Params::of(&model);
        let mut losses = Vec::new();
        for (step, batch) in self.batches.iter().enumerate() {
            let mut feeds = batch.clone();
            feeds.insert("learning_rate".to_string(), Tensor::scalar(self.rate));
            let found = session.run(&mut params, &feeds, Key { seed: 0, step: step as u64 })?;
            losses.push(found["loss"].to_f64s()?[0]);
        }
        let last = eval.run(&mut params, self.batches.last().unwrap(), Key::default())?;
        losses.push(last["loss"].to_f64s()?[0]);
        Ok((losses, params))
    }
}

/// Runs the cases there and here; the problems.
fn compare(cases: &[Case], tolerance: f64) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut problems = Vec::new();
    let mut command = peer_in("venv-ort-training", "ort_training.py");
    let mut written = Vec::new();
    for case in cases {
        let place = folder.path().join(&case.name);
        match case.write(&place) {
            Ok(()) => {
                command.arg(&place);
                written.push((case, place));
            }
            Err(why) => problems.push(format!("{}: {why}", case.name)),
        }
    }
    succeeds(&mut command);
    for (case, place) in written {
        if let Err(why) = same(case, &place, tolerance) {
            problems.push(format!("{}: {why}", case.name));
        }
    }
    problems
}

fn same(case: &Case, place: &Path, tolerance: f64) -> Result<(), String> {
    if let Ok(error) = std::fs::read_to_string(place.join("error.txt")) {
        return Err(error);
    }
    let theirs: Named = npz::read(&place.join("after.npz")).unwrap().into_iter().collect();
    let (losses, params) = case.ours().map_err(|e| e.to_string())?;
    let mut wanted = theirs["loss"].to_f64s().unwrap();
    wanted.extend(theirs["eval"].to_f64s().unwrap());
    let close = losses.iter().zip(&wanted).all(|(a, b)| (a - b).abs() <= tolerance * (1.0 + b.abs()));
    if !close || losses.len() != wanted.len() {
        return Err(format!("losses {losses:?}, theirs {wanted:?}"));
    }
    if losses[0] == losses[STEPS - 1] {
        return Err(format!("nothing is learnt: {losses:?}"));
    }
    let mut trained = 0;
    for (name, tensor) in &theirs {
        let Some(name) = name.strip_prefix("p/") else { continue };
        let ours = params.get(name).ok_or(format!("there is no parameter {name}"))?;
        let apart = distance(ours, tensor);
        if apart > tolerance {
            return Err(format!("parameter {name} is {apart:e} apart"));
        }
        trained += 1;
    }
    (trained > 0).then_some(()).ok_or("it has no parameters".to_string())
}

fn images(model: &Model, batch: usize, side: usize, classes: i64) -> Vec<Named> {
    let draw = |step: usize| {
        let mut inputs = draw_inputs(&model.graph, step as u64, 100, &|_, axis| if axis == 0 { batch } else { side });
        inputs.insert("label".to_string(), Draw::new(step as u64, "label").ints(&[batch], 0, classes - 1));
        inputs
    };
    (0..STEPS).map(draw).collect()
}

const ALL: &str =
    "[[pass]]\nname = \"freeze\"\ntrainable = [\"*\"]\n[[pass]]\nname = \"loss\"\n[[pass]]\nname = \"autodiff\"\n";

#[test]
fn every_weight_of_a_residual_network() {
    let model = prepared(&asset("resnet20-ts17.onnx"), "").unwrap();
    let batches = images(&model, 4, 32, 10);
    let sgd = Case {
        name: "sgd".into(),
        model: model.clone(),
        passes: ALL.into(),
        clip: None,
        optimizer: json!({"kind": "sgd"}),
        rate: 1e-4,
        batches: batches.clone(),
    };
    let clipped = Case {
        name: "clipped".into(),
        model,
        passes: ALL.into(),
        clip: Some(0.5),
        optimizer: json!({"kind": "adamw", "weight_decay": 0.1, "beta2": 0.9, "epsilon": 1e-3}),
        rate: 3e-5,
        batches,
    };
    // Rectifiers near 0 fall to other sides with other processors' kernels: steps are small, and so is what may be apart.
    let problems = compare(&[sgd, clipped], 1e-5);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn adapters_in_an_encoder() {
    let model = prepared(&asset("minilm-l6-classifier-ts17.onnx"), "").unwrap();
    let batch = |step: usize| {
        let mut inputs = draw_inputs(&model.graph, step as u64, 30_000, &|_, axis| if axis == 0 { 3 } else { 12 });
        inputs.insert("label".to_string(), Draw::new(step as u64, "label").ints(&[3], 0, 1));
        inputs
    };
    let batches = (0..STEPS).map(batch).collect();
    let passes = "[[pass]]\nname = \"loss\"\n\
        [[pass]]\nname = \"cola\"\nrank = 4\ntargets = [\"*/query/MatMul\", \"*/value/MatMul\"]\n[[pass]]\nname = \"autodiff\"\n";
    let case = Case {
        name: "adapters".into(),
        model,
        passes: passes.into(),
        clip: Some(1.0),
        optimizer: json!({"kind": "adamw", "weight_decay": 0.01, "epsilon": 1e-3}),
        rate: 1e-3,
        batches,
    };
    let problems = compare(&[case], 1e-4);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Adapters on every product and convolution of models of many kinds, a squared distance from drawn targets.
#[test]
fn models_of_many_kinds() {
    let entries = std::fs::read_dir(asset("zoo")).unwrap().map(|e| e.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    paths.sort();
    let case = |path: &std::path::PathBuf| {
        let arrays = npz::read(&path.with_extension("npz")).unwrap();
        let part = |prefix: &str| -> Named {
            let all = arrays.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_string(), t.clone())));
            all.collect()
        };
        let (inputs, outputs) = (part("in_"), part("out_"));
        let (output, tensor) = outputs.iter().next().unwrap();
        let batch = |step: usize| {
            let mut inputs = inputs.clone();
            let label = Draw::new(step as u64, "label").tensor(tensor.shape(), -1.0, 1.0).cast(DType::F32).unwrap();
            inputs.insert("label".to_string(), label);
            inputs
        };
        let passes = format!(
            "[[pass]]\nname = \"loss\"\nkind = \"mse\"\nlogits = {output:?}\n\
             [[pass]]\nname = \"cola\"\nrank = 2\ntargets = [\"*\"]\n[[pass]]\nname = \"autodiff\"\n"
        );
        Case {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            model: prepared(path, "").unwrap(),
            passes,
            clip: None,
            optimizer: json!({"kind": "sgd"}),
            rate: 1e-3,
            batches: (0..STEPS).map(batch).collect(),
        }
    };
    let cases: Vec<Case> = paths.iter().map(case).collect();
    let problems = compare(&cases, 1e-4);
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn what_has_no_place_is_refused_by_name() {
    let model = prepared(&asset("resnet20-ts17.onnx"), "").unwrap();
    let of = |passes: &str, optimizer: serde_json::Value| {
        let mut model = model.clone();
        run_passes(&mut model, passes).unwrap();
        Artifacts::of(&model, &serde_json::from_value(optimizer).unwrap(), None).unwrap_err().to_string()
    };
    let chain = "[[pass]]\nname = \"loss\"\n[[pass]]\nname = \"cola\"\nlinks = 2\ntargets = [\"*\"]\n[[pass]]\nname = \"autodiff\"\n";
    assert!(of(chain, json!({})).contains("has 2 training steps"), "{}", of(chain, json!({})));
    let statistics =
        ALL.replace("[[pass]]\nname = \"autodiff\"", "[[pass]]\nname = \"train-mode\"\n[[pass]]\nname = \"autodiff\"");
    let refused = of(&statistics, json!({}));
    assert!(refused.contains("the step writes") && refused.contains("no place"), "{refused}");
    let refused = of(ALL, json!({"kind": "prodigy", "rate_factors": {"*": 2}}));
    assert!(refused.contains("Prodigy") && refused.contains("rate_factors"), "{refused}");
    let mut trained = model.clone();
    run_passes(&mut trained, &format!("{ALL}[[pass]]\nname = \"optimizer\"\n")).unwrap();
    let refused = Artifacts::of(&trained, &Default::default(), None).unwrap_err().to_string();
    assert!(refused.contains("learning_rate"), "{refused}");
    assert!(trained.params.values().any(|p| p.role == Role::State));
}
