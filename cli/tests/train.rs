//! Whole runs: trained, evaluated, killed and resumed.

mod common;

use common::*;
use sartor_ir::rng::Stream;
use sartor_ir::{Attributes, DType, Dim, Graph, GraphOutput, Model, Role, Tensor, Type, onnx};
use sartor_runtime::data::npz;
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn summary(folder: &Folder, out: &str) -> Value {
    serde_json::from_slice(&folder.read(&format!("{out}/summary.json"))).unwrap()
}

#[test]
fn a_chain_learns_and_everything_is_written() {
    let folder = Folder::with_task();
    let printed = folder.ok(&["train", "--recipe", "R.toml"]);
    let trained = 6 * 2 + 2 + 2 * 2 * (4 + 6);
    let line = format!("trainable params: {trained} || all params: ");
    assert!(printed.contains(&line) && printed.contains("2 link(s) of rank 2, 2"), "{printed}");
    let names = folder.names("out");
    for name in ["adapter", "chain.onnx", "checkpoints", "merged.onnx", "metrics.jsonl", "recipe.toml", "summary.json"]
    {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
    let found = summary(&folder, "out");
    assert!(found["test.accuracy"].as_f64().unwrap() > 0.85, "{found}");
    assert_eq!(found["trainable_parameters"], trained);
    for key in ["test.loss", "samples_per_second", "peak_rss_mib", "all_parameters"] {
        assert!(found[key].is_number(), "{key} is missing: {found}");
    }
    // The frozen weights of the chain are those of the file; the merged model computes what the chain computes.
    let (base, chain) =
        (onnx::load(&folder.path("model.onnx")).unwrap(), onnx::load(&folder.path("out/chain.onnx")).unwrap());
    base.params.iter().for_each(|(name, p)| assert_eq!(chain.params[name].tensor, p.tensor, "{name}"));
    let merged = onnx::load(&folder.path("out/merged.onnx")).unwrap();
    assert!(merged.programs.is_empty() && merged.params.values().all(|p| p.role == Role::Frozen));
    folder.ok(&["verify", "out/chain.onnx", "out/merged.onnx", "--inputs", "test.npz", "--tolerance", "1e-5"]);
    // Evaluation gives what the run gave.
    let printed = folder.ok(&["eval", "--recipe", "R.toml", "--json"]);
    let metrics: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(metrics["accuracy"], found["test.accuracy"]);
    // The effective recipe is a recipe.
    folder.ok(&["train", "--recipe", "out/recipe.toml", "--set", "output=again", "--max-steps", "3"]);
    assert_eq!(summary(&folder, "again")["steps"], 3);
}

#[test]
fn a_file_with_programs_goes_on_to_train_alike() {
    let folder = Folder::with_task();
    folder.ok(&["train", "--recipe", "R.toml"]);
    let passes = [
        "head(input=features, classes=2)",
        "loss(kind=cross-entropy)",
        "cola(rank=2, alpha=4, links=2, targets=[*/query/MatMul])",
        "autodiff",
        "optimizer(kind=adamw, weight_decay=0.01)",
    ];
    let mut args = vec!["transform", "model.onnx", "-o", "step.onnx", "--quiet"];
    passes.iter().for_each(|pass| args.extend(["-p", pass]));
    folder.ok(&args);
    folder.ok(&["train", "step.onnx", "--recipe", "R.toml", "--set", "output=out2"]);
    assert_eq!(folder.read("out2/merged.onnx"), folder.read("out/merged.onnx"));
}

#[test]
fn threads_change_no_bit() {
    let folder = Folder::with_task();
    folder.ok(&["train", "--recipe", "R.toml", "--max-steps", "20"]);
    folder.ok(&[
        "train",
        "--recipe",
        "R.toml",
        "--max-steps",
        "20",
        "--set",
        "train.threads=2",
        "--set",
        "output=out2",
    ]);
    assert_eq!(folder.read("out2/merged.onnx"), folder.read("out/merged.onnx"));
}

#[test]
fn killed_at_random_moments_and_resumed_it_ends_with_the_same_bits() {
    let folder = Folder::with_task();
    let long = ["--set", "train.epochs=400", "--set", "train.checkpoint_every=100"];
    let whole = [&["train", "--recipe", "R.toml", "--set", "output=whole"], &long[..]].concat();
    let start = Instant::now();
    folder.ok(&whole);
    let time = start.elapsed().as_millis() as u64;
    let resume = [&["train", "--recipe", "R.toml", "--resume"], &long[..]].concat();
    let moments = Stream::new(3, 0, "kill");
    let mut killed = 0;
    for i in 0..10 {
        let mut child = folder.command(&resume).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(time / 50 + moments.below(i, time / 6 + 1)));
        child.kill().unwrap();
        killed += usize::from(child.wait().unwrap().code().is_none());
    }
    folder.ok(&resume);
    assert!(killed >= 3, "only {killed} runs were still going when they were killed");
    assert_eq!(folder.read("out/merged.onnx"), folder.read("whole/merged.onnx"));
    assert_eq!(folder.read("out/chain.onnx"), folder.read("whole/chain.onnx"));
}

/// A language model has no labels of its own: the next token is the label.
#[test]
fn a_language_model_learns_to_count() {
    let folder = Folder::new();
    let mut model = Model::new(Graph::new("lm"));
    let ids = Type::tensor(DType::I64, [Dim::symbol("batch"), Dim::symbol("sequence")]);
    let input = model.graph.add_input("input_ids", ids);
    let stream = Stream::new(5, 0, "weights");
    for (name, shape) in [("table", [11usize, 8]), ("out", [8, 11])] {
        let numbers: Vec<f32> = (0..88).map(|i| 0.3 * stream.normal(i) as f32).collect();
        model.add_param(name, Tensor::from_vec(shape, numbers), Role::Frozen);
    }
    let table = model.graph.param("table", Type::tensor(DType::F32, [11i64, 8]));
    let out = model.graph.param("out", Type::tensor(DType::F32, [8i64, 11]));
    let rows = model.graph.op("Gather", &[table, input], Attributes::new());
    let logits = model.graph.op("MatMul", &[rows, out], Attributes::new());
    model.graph.rename(logits, "logits");
    model.graph.outputs.push(GraphOutput { name: "logits".into(), value: logits });
    onnx::save(&model, &folder.path("lm.onnx"), &Default::default()).unwrap();
    let tokens: Vec<i64> = (0..32 * 6).map(|i| (i / 6 + i % 6) % 11).collect();
    let tokens = Tensor::from_vec([32, 6], tokens);
    npz::write(&folder.path("ids.npz"), [("input_ids", &tokens)]).unwrap();
    folder.write(
        "LM.toml",
        "model = \"lm.onnx\"\noutput = \"out\"\n[data]\ntrain = \"ids.npz\"\ntest = \"ids.npz\"\n\
         [loss]\nkind = \"causal-lm\"\n[cola]\nrank = 8\nlinks = 2\ntargets = [\"/./\"]\n\
         [optimizer]\nkind = \"adamw\"\nlearning_rate = 3e-2\n[train]\nepochs = 40\nbatch = 8\n",
    );
    folder.ok(&["train", "--recipe", "LM.toml"]);
    let perplexity = summary(&folder, "out")["test.perplexity"].as_f64().unwrap();
    assert!(perplexity < 1.5, "guessing gives 11, this gives {perplexity}");
}

/// With the table `[train-mode]` the running statistics follow the data; without it they stay.
#[test]
fn train_mode_keeps_running_statistics() {
    let folder = Folder::with_task();
    let mut model = Model::new(Graph::new("normalised"));
    let x = model.graph.add_input("x", Type::tensor(DType::F32, [Dim::symbol("batch"), 4.into()]));
    let vector = |model: &mut Model, name: &str, all: f32| {
        model.add_param(name, Tensor::from_vec([4], vec![all; 4]), Role::Frozen);
        model.graph.param(name, Type::tensor(DType::F32, [4i64]))
    };
    let vectors =
        [("scale", 1.0), ("bias", 0.0), ("mean", 9.0), ("var", 1.0)].map(|(n, all)| vector(&mut model, n, all));
    let normal = model.graph.op("BatchNormalization", &[&[x][..], &vectors].concat(), Attributes::new());
    let weight = param(&mut model, "weight", &[4, 2]);
    let logits = model.graph.op("MatMul", &[normal, weight], Attributes::new());
    model.graph.rename(logits, "logits");
    model.graph.outputs.push(GraphOutput { name: "logits".into(), value: logits });
    save(&model, &folder.path("normalised.onnx"));
    let recipe = "model = \"normalised.onnx\"\n[data]\ntrain = \"train.npz\"\ntest = \"test.npz\"\n\
        [freeze]\ntrainable = [\"scale\", \"bias\", \"weight\"]\n[optimizer]\nlearning_rate = 3e-2\n[train]\nepochs = 12\n";
    for (output, table) in [("as-it-is", ""), ("by-batch", "[train-mode]\n")] {
        folder.write("BN.toml", &format!("output = \"{output}\"\n{recipe}{table}"));
        folder.ok(&["train", "--recipe", "BN.toml"]);
    }
    let means = |output: &str| {
        let model = onnx::load(&folder.path(&format!("{output}/merged.onnx"))).unwrap();
        model.params["mean"].tensor.to_vec::<f32>().unwrap()
    };
    assert_eq!(means("as-it-is"), [9.0; 4]);
    // The data has mean 0.
    assert!(means("by-batch").iter().all(|mean| mean.abs() < 0.5), "{:?}", means("by-batch"));
    assert!(summary(&folder, "by-batch")["test.accuracy"].as_f64().unwrap() > 0.85);
}
