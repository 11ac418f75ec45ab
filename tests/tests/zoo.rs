//! Models of many kinds (`tests/assets/make_zoo.py`, and the real ones): each runs as ONNX Runtime runs it, at another batch than it was traced with;
//! import and export are the identity; adapters go in and twenty steps of training lower the loss.

use sartor_ir::rng::Draw;
use sartor_ir::{DType, Type, onnx};
use sartor_passes::{Registry, pipelines};
use sartor_runtime::data::npz;
use sartor_runtime::{Key, Params, Session, SessionOptions};
use sartor_tests::{Named, adapter_losses, asset, distance, onnx_runtime, prepared};
use std::path::PathBuf;

fn zoo() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(asset("zoo")).unwrap().map(|e| e.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    found.sort();
    assert_eq!(found.len(), 13, "{found:?}: run tests/assets/fetch.sh");
    found
}

/// Arrays whose names begin so, without that.
fn arrays(path: &std::path::Path, prefix: &str) -> Named {
    let all = npz::read(&path.with_extension("npz")).unwrap();
    all.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor))).collect()
}

fn check_all(check: impl Fn(&std::path::Path) -> Result<(), String>) {
    let mut failures = Vec::new();
    for path in zoo() {
        if let Err(why) = check(&path) {
            failures.push(format!("{}: {why}", path.file_name().unwrap().to_string_lossy()));
        }
    }
    assert!(failures.is_empty(), "{} of 13 fail:\n{}", failures.len(), failures.join("\n"));
}

fn text(error: sartor_ir::Error) -> String {
    error.to_string()
}

/// Quantised activations are rounded: a difference in the last place of a sum may move one by a step of the scale.
fn tolerance(path: &std::path::Path) -> f64 {
    let name = path.to_string_lossy();
    if name.contains("dynamic-int8") || name.contains("qdq-int8") { 2e-2 } else { 1e-4 }
}

#[test]
fn they_run_as_onnx_runtime_runs_them() {
    check_all(|path| {
        let mut model = onnx::load(path).map_err(text)?;
        pipelines::prepare_inference(&mut model, &Registry::builtin()).map_err(text)?;
        let mut session = Session::new(&model, SessionOptions { threads: 2 }).map_err(text)?;
        let found = session.run(&mut Params::of(&model), &arrays(path, "in_"), Key::default()).map_err(text)?;
        for (name, wanted) in arrays(path, "out_") {
            let apart = distance(&found[&name], &wanted);
            if apart > tolerance(path) {
                return Err(format!("output {name} is {:?}, {apart:e} from {wanted:?}", found[&name]));
            }
        }
        match session.report().unplanned {
            None => Ok(()),
            Some(why) => Err(format!("it is not planned: {why}")),
        }
    });
}

#[test]
fn import_and_export_keep_them() {
    check_all(|path| {
        let model = onnx::load(path).map_err(text)?;
        let bytes = onnx::to_bytes(&model).map_err(text)?;
        let again = onnx::from_bytes(bytes.clone().into(), None).map_err(text)?;
        if again != model || onnx::to_bytes(&again).map_err(text)? != bytes {
            return Err("export changes it".to_string());
        }
        Ok(())
    });
}

/// Adapters on every product and convolution that takes them, a squared distance from drawn targets, AdamW.
#[test]
fn adapters_train_on_them() {
    check_all(|path| {
        let mut model = prepared(path, "").map_err(text)?;
        let inputs = arrays(path, "in_");
        let outputs = arrays(path, "out_");
        let (name, output) = outputs.iter().next().ok_or("it has no output")?;
        let losses = adapter_losses(&mut model, &inputs, name, output).map_err(text)?;
        let fell = losses.iter().all(|l| l.is_finite()) && losses[19] < losses[0];
        if fell { Ok(()) } else { Err(format!("losses {losses:?}")) }
    });
}

/// Gradients pass products of bytes on their way to the adapters below: the loss falls on whatever tokens, and falls well.
#[test]
fn adapters_train_below_dynamic_quantisation() {
    let names = ["zoo/encoder-dynamic-int8.onnx", "zoo/with-ort-dynamic-int8.onnx"];
    for (name, seed) in names.iter().flat_map(|name| (0..4).map(move |seed| (name, seed))) {
        let path = asset(name);
        let mut model = prepared(&path, "").unwrap();
        let ids = Draw::new(seed, "ids").ints(&[3, 5], 0, 49);
        let mask = Draw::new(seed, "mask").ints(&[3, 5], 1, 1);
        let inputs = Named::from([("input_ids".to_string(), ids), ("attention_mask".to_string(), mask)]);
        let output = &arrays(&path, "out_")["logits"];
        let losses = adapter_losses(&mut model, &inputs, "logits", output).unwrap();
        assert!(losses[19] < 0.5 * losses[0], "{name}: {losses:?}");
    }
}

/// A classifier of files, from JAX through tf2onnx: integers in, normalisation written out, every weight a `Const`.
#[test]
fn a_model_of_tf2onnx_runs_and_trains() {
    let path = asset("magika.onnx");
    let bytes = Draw::new(1, "bytes").ints(&[3, 2048], 0, 256).cast(DType::I32).unwrap();
    let inputs = Named::from([("bytes".to_string(), bytes)]);
    let wanted = onnx_runtime(&path, &inputs)["target_label"].clone();
    let mut model = prepared(&path, "[[pass]]\nname = \"optimize\"").unwrap();
    let mut session = Session::new(&model, SessionOptions { threads: 2 }).unwrap();
    let found = session.run(&mut Params::of(&model), &inputs, Key::default()).unwrap();
    let apart = distance(&found["target_label"], &wanted);
    assert!(apart < 1e-4, "differs by {apart:e}");
    let losses = adapter_losses(&mut model, &inputs, "target_label", &wanted).unwrap();
    assert!(losses[19] < losses[0], "{losses:?}");
}

/// What a value in the middle gives under other lengths of the dynamic axes is of the inferred type.
#[test]
fn dynamic_axes_survive() {
    check_all(|path| {
        let model = prepared(path, "").map_err(text)?;
        for output in &model.graph.outputs {
            let open = model
                .graph
                .ty(output.value)
                .and_then(Type::shape)
                .is_some_and(|s| s.iter().any(|d| d.known().is_none()));
            if !open {
                return Err(format!("output {} has no dynamic axis", output.name));
            }
        }
        Ok(())
    });
}
