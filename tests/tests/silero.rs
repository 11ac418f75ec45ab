//! Real models with branches and recurrent layers: the voice activity detectors of the package `silero-vad`. They are
//! `If`s in `If`s around convolutions and an `LSTM` (opsets 15 and 16), a bare `LSTM` over a whole recording, and an `If` around cells
//! written out (opset 18). Each is read and written without loss and computes what ONNX Runtime does.

use sartor_ir::onnx::{self, SaveOptions};
use sartor_ir::rng::Draw;
use sartor_ir::{DType, Tensor, eval};
use sartor_runtime::data::npz;
use sartor_runtime::{Key, Params, Session, SessionOptions};
use sartor_tests::{Named, adapter_losses, asset, distance, onnx_runtime, peer, prepared, succeeds};
use std::path::Path;

const MODELS: &[&str] =
    &["silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad_16k_sequence.onnx", "silero_vad_op18_ifless.onnx"];

/// A window of a recording at both rates that the models know, two of them at once, and states from before.
fn inputs() -> Vec<Named> {
    let floats = |name: &str, shape: &[usize]| {
        let tensor = Draw::new(1, name).tensor(shape, -0.3, 0.3).cast(DType::F32).unwrap();
        (name.to_string(), tensor)
    };
    let at = |rate: i64, samples: usize| -> Named {
        [
            floats("input", &[2, samples]),
            floats("state", &[2, 2, 128]),
            floats("h", &[1, 1, 128]),
            floats("c", &[1, 1, 128]),
            ("sr".to_string(), Tensor::scalar(rate)),
        ]
        .into_iter()
        .collect()
    };
    vec![at(16_000, 576), at(8_000, 288)]
}

/// Those that a model has; `None` if one of another size is declared.
fn fitting(path: &Path, all: &Named) -> Option<Named> {
    let graph = onnx::load(path).unwrap().graph;
    let mut chosen = Named::new();
    for value in graph.inputs() {
        let (name, tensor) = all.get_key_value(graph.value_name(value)).unwrap();
        graph.ty(value).unwrap().merge(&sartor_ir::Type::of(tensor))?;
        chosen.insert(name.clone(), tensor.clone());
    }
    Some(chosen)
}

#[test]
fn what_is_written_is_what_was_read() {
    let dir = tempfile::tempdir().unwrap();
    for name in MODELS {
        let path = asset(&format!("silero/{name}"));
        let model = onnx::load(&path).unwrap();
        let (written, x) = (dir.path().join(name), dir.path().join("x.npz"));
        onnx::save(&model, &written, &SaveOptions::default()).unwrap();
        assert!(onnx::load(&written).unwrap() == model, "{name}");
        succeeds(peer("check_onnx.py").arg(&written));
        for inputs in inputs().iter().filter_map(|all| fitting(&path, all)) {
            npz::write(&x, inputs.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
            succeeds(peer("compare_ort.py").args([&path, &written]).arg("--inputs").arg(&x));
        }
    }
}

#[test]
fn they_compute_what_onnx_runtime_does() {
    for name in MODELS {
        let path = asset(&format!("silero/{name}"));
        let model = prepared(&path, "[[pass]]\nname = \"optimize\"").unwrap();
        let mut session = Session::new(&model, SessionOptions { threads: 2 }).unwrap();
        let mut count = 0;
        for inputs in inputs().iter().filter_map(|all| fitting(&path, all)) {
            let theirs = onnx_runtime(&path, &inputs);
            let ours = session.run(&mut Params::of(&model), &inputs, Key::default()).unwrap();
            assert_eq!(session.report().unplanned, None, "{name}");
            let reference = eval::run(&model, &inputs).unwrap();
            for (output, reference) in model.graph.outputs.iter().zip(&reference) {
                let (ours, theirs) = (&ours[&output.name], &theirs[&output.name]);
                let apart = distance(ours, theirs).max(distance(reference, theirs));
                assert!(apart < 1e-4, "{name}: output {} differs by {apart:e}", output.name);
            }
            count += 1;
        }
        assert_eq!(count, if name.contains("sequence") { 1 } else { 2 }, "{name}");
    }
}

/// Once the rate is a constant and the length of a window a number, no `If` is left: the model computes what it did at that rate, and takes adapters and
/// trains.
#[test]
fn a_bound_switch_leaves_a_model_that_trains() {
    let bind = "[[pass]]\nname = \"bind\"\ninputs = { sr = 16000 }\nshapes = { input = [2, 576], state = [2, 2, 128] }\n\
                [[pass]]\nname = \"optimize\"\n[[pass]]\nname = \"lift\"\n";
    for name in MODELS.iter().filter(|name| !name.contains("sequence")) {
        let path = asset(&format!("silero/{name}"));
        let mut model = prepared(&path, bind).unwrap();
        let left = model.graph.topo_ops().into_iter().filter(|&id| model.graph.node(id).is("If")).count();
        assert_eq!(left, 0, "{name}");
        let mut inputs = fitting(&path, &inputs()[0]).unwrap();
        let wanted = onnx_runtime(&path, &inputs)["output"].clone();
        inputs.remove("sr");
        let mut session = Session::new(&model, SessionOptions { threads: 2 }).unwrap();
        let found = session.run(&mut Params::of(&model), &inputs, Key::default()).unwrap();
        let apart = distance(&found["output"], &wanted);
        assert!(apart < 1e-4, "{name} differs by {apart:e}");
        let losses = adapter_losses(&mut model, &inputs, "output", &wanted).unwrap();
        assert!(losses[19] < losses[0], "{name}: {losses:?}");
    }
}

/// The file without a switch, over sequences of open length, takes adapters and trains as it is.
#[test]
fn an_open_sequence_trains() {
    let path = asset("silero/silero_vad_16k_sequence.onnx");
    let inputs = fitting(&path, &inputs()[0]).unwrap();
    let wanted = onnx_runtime(&path, &inputs)["speech_probs"].clone();
    let mut model = prepared(&path, "").unwrap();
    let losses = adapter_losses(&mut model, &inputs, "speech_probs", &wanted).unwrap();
    assert!(losses[19] < losses[0], "{losses:?}");
}
