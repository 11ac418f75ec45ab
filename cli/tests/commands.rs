//! Every command once, from outside.

mod common;

use common::*;
use sartor_ir::{Tensor, onnx};
use sartor_runtime::data::npz;
use serde_json::Value;

#[test]
fn every_command_has_help_with_examples() {
    let folder = Folder::new();
    let all =
        "demo inspect transform optimize train sweep eval report run verify bench merge adapter export passes schema";
    for command in all.split(' ') {
        let help = folder.ok(&[command, "--help"]);
        assert!(help.contains("Examples:") && help.contains(&format!("sartor {command}")), "{help}");
    }
    let help = folder.ok(&["--help"]);
    all.split(' ').for_each(|command| assert!(help.contains(command), "{command}"));
}

#[test]
fn usage_errors_exit_with_2() {
    let folder = Folder::new();
    folder.fails(2, &["transfrom", "x"]);
    folder.fails(2, &["transform", "x.onnx"]);
    let bare = folder.run(&[]);
    assert!(bare.code == Some(2) && bare.err.contains("Usage: sartor"), "{}", bare.err);
    let error = folder.fails(2, &["inspect", "absent.onnx"]);
    assert_eq!(error, "error: absent.onnx: No such file or directory (os error 2)\n");
    let error = folder.fails(2, &["passes", "fld"]);
    assert!(error.contains("there is no pass \"fld\" (did you mean \"fold\""), "{error}");
}

#[test]
fn transform_without_passes_is_the_identity() {
    let folder = Folder::with_task();
    folder.ok(&["transform", "model.onnx", "-o", "same.onnx"]);
    assert_eq!(folder.read("same.onnx"), folder.read("model.onnx"));
    assert_eq!(onnx::load(&folder.path("same.onnx")).unwrap(), onnx::load(&folder.path("model.onnx")).unwrap());
}

#[test]
fn transform_applies_passes_from_both_places_and_dumps() {
    let folder = Folder::with_task();
    folder.write("P.toml", "[[pass]]\nname = \"head\"\ninput = \"features\"\nclasses = 3\n");
    let cola = "cola(rank=2, targets=[*/query/MatMul])";
    let args =
        ["transform", "model.onnx", "--pipeline", "P.toml", "-p", cola, "--dump-after", "all", "dumps", "-o", "c.onnx"];
    folder.ok(&args);
    let dumps = folder.names("dumps");
    assert!(dumps.len() == 2 && dumps[0].contains("head") && dumps[1].contains("cola"), "{dumps:?}");
    let json: Value = serde_json::from_str(&folder.ok(&["inspect", "c.onnx", "--json"])).unwrap();
    assert_eq!(json["outputs"][0]["type"], "float[batch, 3]");
    assert_eq!(json["parameters"]["trainable"]["elements"], 6 * 3 + 3 + 2 * (4 + 6));
    // The adapters start at zero: the head's model and the one with adapters compute the same.
    folder.ok(&["transform", "model.onnx", "--pipeline", "P.toml", "-o", "h.onnx", "--quiet"]);
    assert!(folder.ok(&["verify", "h.onnx", "c.onnx"]).contains("output \"logits\" float[2, 3]: equal"));
    folder.ok(&["merge", "c.onnx", "-o", "m.onnx"]);
    folder.ok(&["verify", "h.onnx", "m.onnx", "--tolerance", "0"]);
    folder.ok(&["adapter", "c.onnx", "-o", "adapter"]);
    assert_eq!(folder.names("adapter"), ["adapter_config.json", "adapter_model.safetensors", "head.safetensors"]);
    assert!(folder.fails(2, &["adapter", "c.onnx", "-o", "adapter"]).contains("is not empty"));
    assert!(folder.fails(2, &["merge", "h.onnx", "-o", "x.onnx"]).contains("no adapters to merge"));
}

#[test]
fn artifacts_of_onnx_runtimes_training() {
    let folder = Folder::with_task();
    let export = |more: &[&str], to: &str| -> Vec<String> {
        let args = [&["export", "--ort-training", "--recipe", "R.toml", "-o", to], more].concat();
        args.into_iter().map(str::to_string).collect()
    };
    let run = |args: &[String]| folder.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let done = run(&export(&["--set", "cola.links=1"], "artifacts"));
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.out.contains("module(x, label) returns the loss"), "{}", done.out);
    assert!(done.out.contains("optimizer.set_learning_rate(0.03)"), "{}", done.out);
    let files = ["checkpoint", "eval_model.onnx", "optimizer_model.onnx", "training_model.onnx"];
    assert_eq!(folder.names("artifacts"), files);
    assert_eq!(&folder.read("artifacts/checkpoint")[4..8], b"ODTC");
    let training = onnx::load(&folder.path("artifacts/training_model.onnx")).unwrap();
    let outputs: Vec<&str> = training.graph.outputs.iter().map(|o| o.name.as_str()).collect();
    assert!(outputs[0] == "loss" && outputs[1..].iter().all(|o| o.ends_with("_grad.accumulation.out")), "{outputs:?}");
    assert!(training.params.is_empty() && outputs.len() == 5, "{outputs:?}");
    let refused = |more: &[&str], to: &str, why: &str| {
        let done = run(&export(more, to));
        assert!(done.code == Some(2) && done.err.contains(why), "{why}: {}", done.err);
    };
    refused(&["--set", "cola.links=1"], "artifacts", "is not empty");
    refused(&[], "two", "the model has 2 training steps");
    refused(&["--set", "cola.links=1", "--set", "samuel.rates=[1,0.1]"], "two", "[samuel] has no place");
    refused(
        &["--set", "cola.links=1", "--set", "optimizer.kind=adagrad"],
        "two",
        "ONNX Runtime has AdamW and plain SGD",
    );
    assert!(!folder.path("two").exists());
}

#[test]
fn optimize_keeps_the_outputs() {
    let folder = Folder::with_task();
    folder.ok(&["optimize", "model.onnx", "-o", "o.onnx"]);
    folder.ok(&["verify", "model.onnx", "o.onnx"]);
}

#[test]
fn optimize_says_why_a_rule_does_not_apply() {
    let folder = Folder::with_task();
    let node = onnx::load(&folder.path("model.onnx")).unwrap();
    let node =
        node.graph.topo_ops().into_iter().map(|id| node.graph.node(id).name.clone()).find(|n| n.contains("MatMul"));
    let node = node.unwrap();
    let text = folder.ok(&["optimize", "model.onnx", "--why-not", "times one", &node]);
    assert!(text.contains("\"times one\" looks at Mul, not at MatMul"), "{text}");
    assert!(folder.fails(2, &["optimize", "model.onnx", "--why-not", "nonsense", &node]).contains("there is no rule"));
    assert!(folder.fails(2, &["optimize", "model.onnx", "--why-not", "", "nowhere"]).contains("there is no node"));
    folder.fails(2, &["optimize", "model.onnx"]);
}

#[test]
fn inspect_counts() {
    let folder = Folder::with_task();
    let json: Value =
        serde_json::from_str(&folder.ok(&["inspect", "model.onnx", "--json", "--dim", "batch=5"])).unwrap();
    assert_eq!(json["total_parameters"], 24 + 36);
    assert_eq!(json["operators"][0]["operator"], "MatMul");
    assert_eq!(json["operators"][0]["count"], 2);
    assert_eq!(json["operators"][0]["flops"], 2 * 5 * (4 * 6 + 6 * 6));
    assert_eq!(json["dynamic_axes"]["batch"][0], "x[0]");
    assert_eq!(json["modules"][0]["name"], "enc");
    assert_eq!(json["modules"][0]["parameters"], 60);
    let text = folder.ok(&["inspect", "model.onnx"]);
    for part in ["x: float[batch, 4]", "frozen", "MatMul", "with batch = 1", "query"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn inspect_follows_gradients() {
    let folder = Folder::with_task();
    let text = folder.ok(&["inspect", "model.onnx", "--gradients"]);
    assert!(text.contains("2 of 2 trainable parameters get a gradient"), "{text}");
    let text = folder.ok(&["inspect", "model.onnx", "--gradients", "--trainable", "*query*", "--json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["reached"].as_array().unwrap().len(), 1, "{text}");
    assert!(
        folder
            .fails(2, &["inspect", "model.onnx", "--gradients", "--trainable", "nothing"])
            .contains("matches no parameter")
    );
}

#[test]
fn run_computes_the_outputs() {
    let folder = Folder::with_task();
    folder.ok(&["run", "model.onnx", "--inputs", "test.npz", "--outputs", "y.npz", "--threads", "1"]);
    let outputs = npz::read(&folder.path("y.npz")).unwrap();
    let x = npz::read(&folder.path("test.npz")).unwrap()["x"].clone();
    let model = onnx::load(&folder.path("model.onnx")).unwrap();
    let expected = &sartor_ir::eval::run(&model, &[("x".to_string(), x)].into()).unwrap()[0];
    let (found, expected) = (outputs["features"].to_f64s().unwrap(), expected.to_f64s().unwrap());
    assert_eq!(found.len(), 40 * 6);
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
    folder.ok(&["run", "model.onnx", "--inputs", "test.npz", "--outputs", "y2.npz", "--threads", "2"]);
    assert_eq!(npz::read(&folder.path("y2.npz")).unwrap(), outputs);
}

#[test]
fn verify_names_the_first_tensor_that_differs() {
    let folder = Folder::with_task();
    let mut other = mlp();
    let weight = other.params.get_mut("enc.query.weight").unwrap();
    let mut numbers = weight.tensor.to_vec::<f32>().unwrap();
    numbers[0] += 1.0;
    weight.tensor = Tensor::from_vec([4, 6], numbers);
    save(&other, &folder.path("other.onnx"));
    let done = folder.run(&["verify", "model.onnx", "other.onnx", "--inputs", "test.npz"]);
    assert_eq!(done.code, Some(1), "{}{}", done.out, done.err);
    assert!(done.out.starts_with("the first tensor that differs is \"/enc/query/MatMul"), "{}", done.out);
    assert!(done.out.contains("output \"features\" differs: by "), "{}", done.out);
}

#[test]
fn bench_times_inference_and_training_steps() {
    let folder = Folder::with_task();
    let text =
        folder.ok(&["bench", "model.onnx", "--runs", "3", "--threads", "1", "--json", "--profile", "trace.json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert!(json["median_ms"].as_f64().unwrap() > 0.0 && json["min_ms"].as_f64() <= json["median_ms"].as_f64());
    assert_eq!((json["runs"].as_u64(), json["threads"].as_u64()), (Some(3), Some(1)));
    let trace: Value = serde_json::from_slice(&folder.read("trace.json")).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().iter().any(|e| e["name"] == "Contract"), "{trace}");
    let text = folder.ok(&["bench", "model.onnx", "--dim", "batch=9", "--runs", "1", "--table"]);
    assert!(text.contains("median") && text.contains("GFLOP/s") && text.contains("Contract"), "{text}");

    let error = folder.fails(2, &["bench", "model.onnx", "--train"]);
    assert!(error.contains("model.onnx: it has no training program") && error.contains("sartor transform"), "{error}");
    let passes = ["-p", "cola(targets=[query])", "-p", "loss(kind=mse)", "-p", "autodiff", "-p", "optimizer"];
    folder.ok(&[&["transform", "model.onnx"], &passes[..], &["-o", "step.onnx"]].concat());
    let text = folder.ok(&["bench", "step.onnx", "--train", "--runs", "2", "--json"]);
    assert!(serde_json::from_str::<Value>(&text).unwrap()["median_ms"].as_f64().unwrap() > 0.0, "{text}");
    folder.fails(2, &["bench", "model.onnx", "--runs", "0"]);
}

#[test]
fn schema_is_json() {
    let schema: Value = serde_json::from_str(&Folder::new().ok(&["schema"])).unwrap();
    assert!(schema["properties"]["cola"].is_object() && schema["additionalProperties"] == false);
}
