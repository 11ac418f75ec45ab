//! The command of this crate, from outside.

use sartor_ir::{Attributes, DType, Dim, Graph, GraphOutput, Model, Tensor, Type, eval, onnx};
use std::path::Path;
use std::process::{Command, Output};

fn command(args: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_custom-pass")).args(args).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// logits = x + x
fn write_model(path: &Path) {
    let mut graph = Graph::new("g");
    let x = graph.add_input("x", Type::tensor(DType::F32, [Dim::symbol("batch"), 2.into()]));
    let y = graph.op("Add", &[x, x], Attributes::new());
    graph.set_ty(y, Some(Type::tensor(DType::F32, [Dim::symbol("batch"), 2.into()])));
    graph.outputs.push(GraphOutput { name: "logits".into(), value: y });
    onnx::save(&Model::new(graph), path, &onnx::SaveOptions::default()).unwrap();
}

#[test]
fn the_pass_is_listed_with_its_options() {
    let dir = tempfile::tempdir().unwrap();
    let list = command(&["passes"], dir.path());
    assert!(list.status.success());
    let list = text(&list.stdout);
    assert!(list.contains("serving\n  probabilities    add calibrated probabilities"), "{list}");
    assert!(list.contains("temperature: number (default 1.0)") && list.contains("  cola "), "{list}");
    let json = command(&["passes", "--json"], dir.path());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let ours = json.as_array().unwrap().iter().find(|row| row["name"] == "probabilities").unwrap();
    assert!(ours["options"]["properties"]["temperature"].is_object());
}

#[test]
fn the_pass_runs() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("in.onnx"));
    let pass = "probabilities(temperature=4)";
    let done = command(&["transform", "in.onnx", "-p", pass, "-o", "out.onnx"], dir.path());
    assert!(done.status.success(), "{}", text(&done.stderr));
    let model = onnx::load(&dir.path().join("out.onnx")).unwrap();
    let x = Tensor::from_vec([1, 2], vec![0.0f32, 2.0 * 3f32.ln()]);
    let outputs = eval::run(&model, &[("x".to_string(), x)].into()).unwrap();
    let probabilities = outputs[1].to_f64s().unwrap();
    // logits (0, 4 ln 3) at temperature 4: odds of 1 to 3.
    assert!((probabilities[0] - 0.25).abs() < 1e-6 && (probabilities[1] - 0.75).abs() < 1e-6, "{probabilities:?}");
    assert_eq!(model.graph.outputs[0].name, "logits");
}

#[test]
fn its_mistakes_are_sentences() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("in.onnx"));
    let error = |pass: &str| {
        let done = command(&["transform", "in.onnx", "-p", pass, "-o", "out.onnx"], dir.path());
        assert_eq!(done.status.code(), Some(2));
        assert!(!dir.path().join("out.onnx").exists());
        text(&done.stderr)
    };
    assert_eq!(
        error("probabilities(logits=logit)"),
        "error: pass \"probabilities\": the model has no output \"logit\" (did you mean \"logits\"?); it has logits\n"
    );
    assert!(error("probabilities(temprature=2)").contains("did you mean \"temperature\""));
    assert!(error("probabilities(temperature=0)").contains("temperature is 0, expected a number above 0"));
}
