//! What a user can get wrong ends in one sentence: which file, node or key; what was found; what was expected. Nothing
//! half-written stays.

mod common;

use common::*;
use sartor_ir::{DType, Dim, GraphOutput, Operator, Tensor, Type};

fn train_fails(folder: &Folder, code: i32, more: &[&str]) -> String {
    let args = [&["train", "--recipe", "R.toml"], more].concat();
    folder.fails(code, &args)
}

fn assert_has(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "expected {part:?} in\n{text}"));
}

#[test]
fn a_file_that_is_no_model() {
    let folder = Folder::with_task();
    folder.write("model.onnx", "<html>not found</html>");
    let error = folder.fails(2, &["transform", "model.onnx", "-o", "o.onnx"]);
    assert_has(&error, &["model.onnx", "not an ONNX model"]);
    assert!(!folder.path("o.onnx").exists());
    assert_has(&train_fails(&folder, 2, &[]), &["model.onnx", "not an ONNX model"]);
    assert!(!folder.path("out").exists());
}

#[test]
fn a_truncated_file() {
    let folder = Folder::with_task();
    let bytes = folder.read("model.onnx");
    std::fs::write(folder.path("model.onnx"), &bytes[..bytes.len() / 2]).unwrap();
    let error = folder.fails(2, &["inspect", "model.onnx"]);
    assert_has(&error, &["model.onnx"]);
    assert_eq!(error.lines().count(), 1, "{error}");
}

/// The model of the task with two operators that nobody knows at its end.
fn with_unknown_operators(folder: &Folder) {
    let mut model = mlp();
    let features = model.graph.find_output("features").unwrap();
    let mut value = features;
    for name in ["Swirl", "Twist"] {
        let op = Operator { domain: "com.acme".into(), name: name.into(), ..Operator::default() };
        let node = model.graph.add_op(&format!("/enc/{name}"), op, &[Some(value)], 1);
        value = sartor_ir::Value { node, slot: 0 };
        model.graph.set_ty(value, Some(Type::tensor(DType::F32, [Dim::symbol("batch"), 6.into()])));
    }
    model.graph.outputs = vec![GraphOutput { name: "swirled".into(), value }];
    model.opsets.insert("com.acme".into(), 1);
    save(&model, &folder.path("model.onnx"));
}

#[test]
fn an_unknown_operator_on_the_way_of_the_gradient() {
    let folder = Folder::with_task();
    with_unknown_operators(&folder);
    let error = train_fails(&folder, 2, &["--set", "head.input=swirled"]);
    assert_has(&error, &["com.acme::Swirl", "com.acme::Twist", "gradient"]);
    assert!(!folder.path("out").exists());
}

#[test]
fn unknown_operators_cannot_be_run() {
    let folder = Folder::with_task();
    with_unknown_operators(&folder);
    let error = folder.fails(2, &["run", "model.onnx", "--inputs", "test.npz", "--outputs", "y.npz"]);
    assert_has(&error, &["com.acme::Swirl", "com.acme::Twist", "cannot be run"]);
}

#[test]
fn a_pattern_that_matches_nothing() {
    let folder = Folder::with_task();
    let error = train_fails(&folder, 2, &["--set", "cola.targets=[\"*/qeury/MatMul\"]"]);
    assert_has(&error, &["pattern \"*/qeury/MatMul\" matches no", "/enc/query/MatMul"]);
}

#[test]
fn a_label_outside_the_classes() {
    let folder = Folder::with_task();
    let (x, label) = (Tensor::from_vec([2, 4], vec![0f32; 8]), Tensor::from_i64s(&[1, 2]));
    write_arrays(&folder.path("train.npz"), &[("x", x), ("label", label)]);
    let error = train_fails(&folder, 2, &[]);
    assert_has(&error, &["data.train", "train.npz", "row 1: label 2 is outside the 2 classes (0 to 1)"]);
}

#[test]
fn an_empty_split() {
    let folder = Folder::with_task();
    let (x, label) = (Tensor::from_vec([0, 4], Vec::<f32>::new()), Tensor::from_i64s(&[]));
    write_arrays(&folder.path("test.npz"), &[("x", x), ("label", label)]);
    assert_has(&train_fails(&folder, 2, &[]), &["data.eval", "test.npz", "the split is empty"]);
}

/// `input_ids int64[batch, seq] → embedding [rows, 6] → mean → features`
fn text_folder(rows: usize) -> Folder {
    let folder = Folder::with_task();
    let mut model = sartor_ir::Model::new(sartor_ir::Graph::new("text"));
    let shape = [Dim::symbol("batch"), Dim::symbol("seq")];
    let ids = model.graph.add_input("input_ids", Type::tensor(DType::I64, shape));
    let table = param(&mut model, "embedding.weight", &[rows, 6]);
    let mut emit = sartor_ir::ops::Emit::new(&mut model.graph, 20);
    emit.prefix = "/enc/".into();
    let rows = emit.op("Gather", &[table, ids], none()).unwrap();
    let mean = emit.reduce_mean(rows, &[1], false).unwrap();
    model.graph.rename(mean, "features");
    model.graph.outputs.push(GraphOutput { name: "features".into(), value: mean });
    save(&model, &folder.path("model.onnx"));
    folder.write("tokenizer.json", TOKENIZER);
    folder.write("train.tsv", "text\tlabel\ngood film\t1\nbad film\t0\n");
    let recipe = RECIPE.replace("train.npz", "train.tsv").replace("test.npz", "train.tsv");
    let data = "[data]\ntext = \"text\"\ntokenizer = \"tokenizer.json\"\n";
    let recipe = recipe.replace("[data]\n", data).replace("*/query/MatMul", "*/Gather");
    folder.write("R.toml", &recipe);
    folder
}

const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"normalizer":null,"added_tokens":[],
  "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
  "model":{"type":"WordLevel","vocab":{"[PAD]":0,"[UNK]":1,"good":2,"bad":3,"film":4,"more":5},"unk_token":"[UNK]"}}"#;

#[test]
fn a_tokenizer_with_more_tokens_than_the_embedding_has_rows() {
    let error = train_fails(&text_folder(5), 2, &[]);
    assert_has(
        &error,
        &["tokenizer.json: the tokenizer has 6 tokens, the model's embedding \"embedding.weight\" has 5 rows"],
    );
}

#[test]
fn a_missing_column() {
    let folder = text_folder(6);
    let error = train_fails(&folder, 2, &["--set", "data.label=score"]);
    assert_has(&error, &["train.tsv", "no column \"score\" for the label", "the columns are \"text\" and \"label\""]);
}

#[test]
fn an_array_of_the_wrong_type() {
    let folder = Folder::with_task();
    let x = Tensor::from_vec([2, 4], vec![0f64; 8]);
    write_arrays(&folder.path("train.npz"), &[("x", x), ("label", Tensor::from_i64s(&[0, 1]))]);
    let sentence = "array \"x\" is double[2, 4], the model's input \"x\"";
    assert_has(&train_fails(&folder, 2, &[]), &["data.train", "train.npz", sentence, "float[batch, 4]"]);
    let error = folder.fails(2, &["run", "model.onnx", "--inputs", "train.npz", "--outputs", "y.npz"]);
    assert_has(&error, &["train.npz", sentence, "float[batch, 4]"]);
    assert!(!folder.path("y.npz").exists());
    write_arrays(&folder.path("train.npz"), &[("z", Tensor::from_vec([2, 4], vec![0f32; 8]))]);
    let error = folder.fails(2, &["run", "model.onnx", "--inputs", "train.npz", "--outputs", "y.npz"]);
    assert_has(&error, &["there is no array \"x\" for the model's input \"x\" (float[batch, 4]); there are z"]);
}

#[test]
fn an_output_folder_that_is_not_empty() {
    let folder = Folder::with_task();
    std::fs::create_dir(folder.path("out")).unwrap();
    folder.write("out/notes.txt", "mine");
    let error = train_fails(&folder, 2, &[]);
    assert_has(
        &error,
        &["the output folder", "out/ is not empty (it holds notes.txt)", "--set output=", "--resume", "--force"],
    );
    assert_eq!(folder.names("out"), ["notes.txt"]);
}

#[test]
fn a_resume_with_another_recipe_shows_the_difference() {
    let folder = Folder::with_task();
    folder.ok(&["train", "--recipe", "R.toml", "--max-steps", "4", "--set", "train.checkpoint_every=2"]);
    let merged = folder.read("out/merged.onnx");
    let more = ["--max-steps", "4", "--set", "train.checkpoint_every=2", "--resume", "--set", "cola.rank=3"];
    let error = train_fails(&folder, 2, &more);
    assert_has(&error, &["the recipe is not the one that this run began with", "- rank = 2", "+ rank = 3"]);
    assert_eq!(folder.read("out/merged.onnx"), merged);
}

/// A limit on the size of files stands in for a full disk: the write fails in the same way, halfway.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_while_saving() {
    let folder = Folder::with_task();
    let mut model = mlp();
    param(&mut model, "large", &[256, 256]);
    let large = model.graph.find_param("large").unwrap();
    model.graph.outputs.push(GraphOutput { name: "large".into(), value: large });
    save(&model, &folder.path("model.onnx"));
    let script =
        format!("trap '' XFSZ; ulimit -f 8; exec {} transform model.onnx -o big.onnx", env!("CARGO_BIN_EXE_sartor"));
    let mut shell = std::process::Command::new("bash");
    let done: Done = shell.args(["-c", &script]).current_dir(folder.path("")).output().unwrap().into();
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert_has(&done.err, &["error: writing big.onnx: ", "File too large"]);
    let left = folder.names("");
    assert!(!left.iter().any(|name| name.contains("big")), "{left:?}");
}

#[test]
fn a_loss_that_is_not_finite() {
    let folder = Folder::with_task();
    let x = Tensor::from_vec([8, 4], vec![f32::NAN; 32]);
    let label = Tensor::from_i64s(&[0, 1, 0, 1, 0, 1, 0, 1]);
    write_arrays(&folder.path("train.npz"), &[("x", x), ("label", label)]);
    let error = train_fails(&folder, 1, &[]);
    assert_has(&error, &["step 1: the loss is NaN", "the weights were not touched", "on_nonfinite"]);
    assert!(!folder.path("out/merged.onnx").exists());
}

#[test]
fn keys_and_values_of_the_recipe() {
    let folder = Folder::with_task();
    let error = train_fails(&folder, 2, &["--set", "optimizer.learning_rat=1"]);
    assert_has(&error, &["there is no key `optimizer.learning_rat` (did you mean \"learning_rate\"?)"]);
    let error = train_fails(&folder, 2, &["--set", "optimizer.kind=adam"]);
    assert_has(&error, &["R.toml", "adam", "adamw"]);
    let error = train_fails(&folder, 2, &["--set", "train.epochs=many"]);
    assert_has(&error, &["R.toml", "epochs", "many"]);
    folder.write("R.toml", "model = \"model.onnx\"\n[train\n");
    assert_has(&train_fails(&folder, 2, &[]), &["R.toml: line 2: "]);
    folder.write("R.toml", "output = \"out\"\n");
    assert_has(&train_fails(&folder, 2, &[]), &["R.toml", "model"]);
}
