//! From a stock export of a sentence encoder to a fine-tuned file, by the command, and what the peers say to the result:
//! ONNX's checker, ONNX Runtime, and PEFT with the PyTorch model.

use sartor_ir::{Model, Role, Tensor, onnx};
use sartor_passes::cola::Record;
use sartor_passes::extract_adapter::Adapter;
use sartor_runtime::data::npz;
use sartor_runtime::{Key, Params, Session, SessionOptions};
use sartor_tests::{Named, asset, distance, draw_inputs, peer, prepared, run_passes, succeeds};
use std::path::Path;
use std::process::Command;

const MODEL: &str = "minilm-l6-ts17.onnx";

fn sartor(folder: &Path, args: &[&str]) -> String {
    succeeds(Command::new(env!("CARGO_BIN_EXE_sartor-under-test")).args(args).current_dir(folder))
}

/// Three links in a few steps, with the outputs that the model had kept beside the new one.
fn recipe() -> String {
    let movie = asset("movie/train.tsv");
    format!(
        "model = \"{}\"\noutput = \"out\"\n\
         [data]\ntrain = \"{movie}\"\ntext = \"text\"\nlabel = \"label\"\ntokenizer = \"{}\"\nmax_length = 32\n\
         [head]\ninput = \"sentence_embedding\"\nclasses = 2\nkeep_outputs = true\n\
         [loss]\nkind = \"cross-entropy\"\nlogits = \"logits\"\n\
         [cola]\nrank = 8\nalpha = 16\nlinks = 3\ntargets = [\"*/query/MatMul\", \"*/value/MatMul\"]\n\
         [optimizer]\nkind = \"adamw\"\nlearning_rate = 1e-2\n\
         [train]\nepochs = 1\nbatch = 8\nseed = 3\nthreads = 2\n",
        asset(MODEL).display(),
        asset("minilm-l6/tokenizer.json").display(),
        movie = movie.display(),
    )
}

fn inputs(model: &Model) -> Named {
    draw_inputs(&model.graph, 9, 20_000, &|_, axis| if axis == 0 { 3 } else { 17 })
}

#[test]
fn what_comes_out_is_what_the_peers_compute() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    std::fs::write(folder.join("R.toml"), recipe()).unwrap();
    sartor(folder, &["train", "--recipe", "R.toml", "--max-steps", "24"]);
    let [merged, chain] = ["out/merged.onnx", "out/chain.onnx"].map(|name| folder.join(name));
    succeeds(peer("check_onnx.py").args([&merged, &chain]));

    let original = prepared(&asset(MODEL), "").unwrap();
    let [merged_model, chain_model] = [&merged, &chain].map(|path| onnx::load(path).unwrap());
    for model in [&merged_model, &chain_model] {
        let types = |m: &Model| m.graph.inputs().map(|v| m.graph.ty(v).cloned()).collect::<Vec<_>>();
        assert_eq!(types(model), types(&original), "inputs keep their dynamic axes");
    }
    frozen_weights_are_untouched(&original, &chain_model);
    one_adapter_of_all_links_is_the_merged_model(&original, &chain_model, &merged_model);

    let arrays = inputs(&original);
    let x = folder.join("x.npz");
    npz::write(&x, arrays.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    for (name, path) in [("merged", &merged), ("chain", &chain)] {
        let [ours, theirs] = ["ours", "theirs"].map(|who| folder.join(format!("{name}-{who}.npz")));
        let (path, ours_name) = (path.to_str().unwrap(), ours.to_str().unwrap());
        sartor(folder, &["run", path, "--inputs", "x.npz", "--outputs", ours_name]);
        succeeds(peer("ort_run.py").arg(path).args([&x, &theirs]));
        let (ours, theirs) = (npz::read(&ours).unwrap(), npz::read(&theirs).unwrap());
        assert!(theirs.contains_key("logits") && theirs.contains_key("sentence_embedding"));
        for (output, tensor) in &theirs {
            let apart = distance(&ours[output], tensor);
            assert!(apart < 1e-4, "{name}: ONNX Runtime's \"{output}\" differs by {apart:e}");
        }
    }
    let [a, b] = ["merged-ours.npz", "chain-ours.npz"].map(|name| npz::read(&folder.join(name)).unwrap());
    for (output, tensor) in &a {
        let apart = distance(&b[output], tensor);
        assert!(apart < 1e-5, "the chain's \"{output}\" differs from the merged model's by {apart:e}");
    }
    // PEFT, in the PyTorch model that the file was exported from.
    let adapter = folder.join("out/adapter");
    succeeds(peer("peft_load.py").args([&adapter, &asset("minilm-l6"), &x, &folder.join("merged-ours.npz")]));
}

fn frozen_weights_are_untouched(original: &Model, chain: &Model) {
    assert!(original.params.len() > 90);
    for (name, param) in &original.params {
        let kept = &chain.params[name];
        assert_eq!((kept.tensor.bytes(), kept.role), (param.tensor.bytes(), Role::Frozen), "{name}");
    }
}

/// `W + s·A·B` with the concatenated A `[24, in]` and B `[out, 24]` of the adapter is the merged weight.
fn one_adapter_of_all_links_is_the_merged_model(original: &Model, chain: &Model, merged: &Model) {
    let adapter = Adapter::of(chain, "").unwrap();
    assert_eq!(adapter.config["r"], 24);
    let scale = adapter.config["lora_alpha"].as_f64().unwrap() / 24.0;
    let tensor = |key: &str| &adapter.tensors.iter().find(|(name, _)| name == key).unwrap().1;
    let record = Record::load(chain).unwrap().unwrap();
    assert_eq!(record.sites.len(), 12);
    for site in record.sites {
        let a = tensor(&format!("base_model.model.{}.lora_A.weight", site.module)).to_f64s().unwrap();
        let b = tensor(&format!("base_model.model.{}.lora_B.weight", site.module)).to_f64s().unwrap();
        let weight = &original.params[&site.weight].tensor;
        let (rows, cols) = (weight.shape()[0], weight.shape()[1]);
        let mut sum = weight.to_f64s().unwrap();
        for (i, w) in sum.iter_mut().enumerate() {
            let (row, col) = (i / cols, i % cols);
            *w += scale * (0..24).map(|r| a[r * rows + row] * b[col * 24 + r]).sum::<f64>();
        }
        let sum = Tensor::from_vec([rows, cols], sum.into_iter().map(|w| w as f32).collect::<Vec<f32>>());
        let found = &merged.params[&site.weight].tensor;
        let apart = distance(found, &sum);
        assert!(apart < 1e-5, "{}: {apart:e}", site.node);
        assert!(distance(found, weight) > 1e-4, "{}: the adapters did something", site.node);
    }
}

#[test]
fn a_knot_changes_no_output() {
    let pipeline = "[[pass]]\nname = \"head\"\ninput = \"sentence_embedding\"\nclasses = 2\n\
                    [[pass]]\nname = \"loss\"\n\
                    [[pass]]\nname = \"cola\"\nlinks = 3\ntargets = [\"*/query/MatMul\", \"*/value/MatMul\"]\n\
                    [[pass]]\nname = \"autodiff\"\n[[pass]]\nname = \"optimizer\"\n";
    let mut model = prepared(&asset(MODEL), "").unwrap();
    run_passes(&mut model, pipeline).unwrap();
    let mut params = Params::of(&model);
    let options = SessionOptions { threads: 2 };
    let mut eval_inputs = inputs(&model);
    eval_inputs.insert("label".into(), Tensor::from_vec([3], vec![1i64, 0, 1]));
    let mut step_inputs = eval_inputs.clone();
    step_inputs.insert("learning_rate".into(), Tensor::scalar(1e-2f32));
    let mut eval = Session::program(&model, "eval", options).unwrap();
    for link in 0..3 {
        let mut step = Session::program(&model, &format!("step.{link}"), options).unwrap();
        let before = eval.run(&mut params, &eval_inputs, Key::default()).unwrap();
        // The step computes with the links before it merged, and with its own.
        let first = step.run(&mut params.clone(), &step_inputs, Key::default()).unwrap();
        assert!(distance(&first["loss"], &before["loss"]) < 1e-5, "link {link}: the step's loss is that of eval");
        for step_number in 0..3 {
            step.run(&mut params, &step_inputs, Key { seed: 1, step: step_number }).unwrap();
        }
        let trained = eval.run(&mut params, &eval_inputs, Key::default()).unwrap();
        assert!(distance(&trained["logits"], &before["logits"]) > 1e-4, "link {link} learned something");
        if link < 2 {
            let mut knot = Session::program(&model, &format!("knot.{}", link + 1), options).unwrap();
            knot.run(&mut params, &Named::new(), Key::default()).unwrap();
            let after = eval.run(&mut params, &eval_inputs, Key::default()).unwrap();
            assert!(distance(&after["logits"], &trained["logits"]) < 1e-5);
        }
    }
}

#[test]
fn threads_change_no_bit_of_a_trained_encoder() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("R.toml"), recipe()).unwrap();
    let train = |threads: &str| {
        let (output, threads) = (format!("output=out{threads}"), format!("train.threads={threads}"));
        let sets = ["--set", &output, "--set", &threads];
        sartor(dir.path(), &[&["train", "--recipe", "R.toml", "--max-steps", "6"], &sets[..]].concat());
    };
    ["1", "2"].iter().for_each(|threads| train(threads));
    let [one, two] = ["out1", "out2"].map(|out| std::fs::read(dir.path().join(out).join("chain.onnx")).unwrap());
    assert!(one == two, "the weights differ between 1 and 2 threads");
}
