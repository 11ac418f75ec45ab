//! Whole runs: trained, evaluated, killed and resumed.

mod common;

use common::*;
use sartor_ir::rng::Stream;
use sartor_ir::{Attributes, DType, Dim, Graph, GraphOutput, Model, Role, Tensor, Type, onnx};
use sartor_passes::gate::Record;
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

/// Without a learning rate and a schedule in the recipe.
#[test]
fn optimizers_that_find_their_own_rate_learn() {
    let folder = Folder::with_task();
    let silent = ["kind = \"adamw\"\n", "learning_rate = 3e-2\n", "schedule = \"linear\"\n"];
    let recipe = silent.iter().fold(RECIPE.to_string(), |text, line| text.replace(line, ""));
    for (kind, rate) in [("prodigy", "1"), ("schedule-free-adamw", "0.0025"), ("d-adapt-adam", "1")] {
        let table = format!("[optimizer]\nkind = \"{kind}\"\n");
        folder.write("R.toml", &recipe.replace("[optimizer]\n", &table));
        let output = format!("output={kind}");
        let printed = folder.ok(&["train", "--recipe", "R.toml", "--set", &output, "--set", "train.epochs=80"]);
        assert!(printed.contains(&format!("learning rate {rate} (Constant)")), "{printed}");
        let found = summary(&folder, kind);
        assert!(found["test.accuracy"].as_f64().unwrap() > 0.85, "{kind}: {found}");
    }
}

/// A file in which `samuel` stands already trains as the recipe that says it.
#[test]
fn a_file_with_experts_goes_on_to_train_alike() {
    let folder = Folder::with_task();
    with_experts(&folder, "rates = [0.1, 0.01]\nrestart_every = [0.5]\n");
    folder.ok(&["train", "--recipe", "S.toml"]);
    let passes = [
        "head(input=features, classes=2)",
        "loss(kind=cross-entropy)",
        "cola(rank=2, alpha=4, links=2, targets=[*/query/MatMul])",
        "autodiff",
        "samuel(rates=[0.1, 0.01], base={kind=adamw, weight_decay=0.01})",
        "average(power=8)",
    ];
    let mut args = vec!["transform", "model.onnx", "-o", "step.onnx", "--quiet"];
    passes.iter().for_each(|pass| args.extend(["-p", pass]));
    folder.ok(&args);
    let printed = folder.ok(&["train", "step.onnx", "--recipe", "S.toml", "--set", "output=out2"]);
    assert!(folder.read("out2/merged.onnx") == folder.read("out/merged.onnx"), "the models differ");
    // The file has one mode; of others, and of a step without experts, nothing is known.
    assert!(printed.contains("restart.0") && !printed.contains("without experts"), "{printed}");
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
    killed_and_resumed(&Folder::with_task(), "R.toml", 3);
}

/// Runs a recipe as a whole, and again while it is killed now and then.
fn killed_and_resumed(folder: &Folder, recipe: &str, seed: u64) {
    let long = ["--set", "train.epochs=400", "--set", "train.checkpoint_every=100"];
    let whole = [&["train", "--recipe", recipe, "--set", "output=whole"], &long[..]].concat();
    let start = Instant::now();
    folder.ok(&whole);
    let time = start.elapsed().as_millis() as u64;
    let resume = [&["train", "--recipe", recipe, "--resume"], &long[..]].concat();
    let moments = Stream::new(seed, 0, "kill");
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
    if folder.path("whole/chain.onnx").exists() {
        assert_eq!(folder.read("out/chain.onnx"), folder.read("whole/chain.onnx"));
    }
}

/// A model with two residual blocks of 12 hidden channels, and the recipe `G.toml` that attaches gates to them.
fn with_gates(folder: &Folder, gate: &str) {
    let mut model = Model::new(Graph::new("residual"));
    let mut x = model.graph.add_input("x", Type::tensor(DType::F32, [Dim::symbol("batch"), 4.into()]));
    for block in ["first", "second"] {
        let up = param(&mut model, &format!("{block}.up"), &[4, 12]);
        let down = param(&mut model, &format!("{block}.down"), &[12, 4]);
        let hidden = model.graph.op("MatMul", &[x, up], Attributes::new());
        let hidden = model.graph.op("Relu", &[hidden], Attributes::new());
        let body = model.graph.op("MatMul", &[hidden, down], Attributes::new());
        x = model.graph.op("Add", &[x, body], Attributes::new());
    }
    let weight = param(&mut model, "weight", &[4, 2]);
    let logits = model.graph.op("MatMul", &[x, weight], Attributes::new());
    model.graph.rename(logits, "logits");
    model.graph.outputs.push(GraphOutput { name: "logits".into(), value: logits });
    save(&model, &folder.path("residual.onnx"));
    let recipe = "model = \"residual.onnx\"\noutput = \"out\"\n[data]\ntrain = \"train.npz\"\neval = \"test.npz\"\n\
        test = \"test.npz\"\n[freeze]\ntrainable = [\"*\"]\n[optimizer]\nlearning_rate = 3e-2\n[train]\nepochs = 40\nbatch = 8\n";
    folder.write("G.toml", &format!("{recipe}[gate]\n{gate}"));
}

/// Gates reach their target, the metrics say so, and what they shut is skipped.
#[test]
fn gates_learn_to_cost_less() {
    let folder = Folder::with_task();
    with_gates(&folder, "target = 0.6\n");
    folder.ok(&["train", "--recipe", "G.toml"]);
    let found = summary(&folder, "out");
    let number = |key: &str| found[key].as_f64().unwrap();
    // The cost of the gate networks is a third of this small model's.
    assert!(number("test.flops") < 0.8 && number("test.flops") > 0.3, "{found}");
    assert!(number("test.accuracy") > 0.85 && number("test.flops_variation") >= 0.0, "{found}");
    let shares = ["dead", "always", "dynamic"].map(|kind| number(&format!("test.gates_{kind}")));
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9 && lines_with(&folder, "eval/gates_dead").len() == 40);
    let first = lines_with(&folder, "task_loss").remove(0);
    assert!(first["loss"].as_f64() >= first["task_loss"].as_f64() && first["flops"].as_f64() > Some(0.9), "{first}");
    folder.ok(&["transform", "out/merged.onnx", "-p", "harden", "-o", "skip.onnx"]);
    assert!(folder.ok(&["inspect", "skip.onnx"]).contains("If "));
    folder.ok(&["transform", "out/merged.onnx", "-p", "harden(kind=masked)", "-o", "masked.onnx"]);
    folder.ok(&["verify", "out/merged.onnx", "masked.onnx"]);
    let error = folder.fails(2, &["transform", "model.onnx", "-p", "upgrade", "-p", "harden", "-o", "no.onnx"]);
    assert!(error.contains("the model has no gates"), "{error}");
}

/// A sweep over targets says what the models cost, and sorts by it.
#[test]
fn a_sweep_over_targets_shows_what_they_cost() {
    let folder = Folder::with_task();
    with_gates(&folder, "target = 0.6\n");
    let grid = ["--grid", "gate.target=0.9,0.6", "--sort", "test.flops"];
    let printed =
        folder.ok(&[&["sweep", "--recipe", "G.toml", "--set", "output=sweep", "--set", "train.epochs=20"], &grid[..]]
            .concat());
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    let head = lines
        .iter()
        .position(|line| line.starts_with(&["target", "test.flops"]))
        .unwrap_or_else(|| panic!("{printed}"));
    let cost = |row: usize| lines[head + row][1].parse::<f64>().unwrap();
    assert_eq!([lines[head + 1][0], lines[head + 2][0]], ["0.6", "0.9"]);
    assert!(cost(1) < cost(2), "{printed}");
}

/// AdamW moves a number by the learning rate at most: in a short run gates go their way because their networks get more of it.
#[test]
fn gates_reach_their_target_in_short_runs() {
    let folder = Folder::with_task();
    with_gates(&folder, "target = 0.6\n");
    let cost = |out: &str, more: &[&str]| {
        let output = format!("output={out}");
        let args = ["train", "--recipe", "G.toml", "--set", "optimizer.learning_rate=1e-3", "--set", &output];
        let printed = folder.ok(&[&args, more].concat());
        (printed, summary(&folder, out)["test.flops"].as_f64().unwrap())
    };
    let (printed, reached) = cost("itself", &[]);
    assert!(printed.contains("gates: their networks learn at ") && reached < 0.8, "{reached}: {printed}");
    let (printed, missed) = cost("even", &["--set", "gate.rate=1"]);
    assert!(!printed.contains("gates: their networks") && missed > 0.95, "{missed}: {printed}");
    // Gates of a file are near where they belong, and go on at the rate of the rest.
    let recipe = String::from_utf8(folder.read("G.toml")).unwrap();
    folder.write("G.toml", &recipe.replace("residual.onnx", "itself/merged.onnx"));
    let (printed, kept) = cost("further", &[]);
    assert!(!printed.contains("gates: their networks") && kept < 0.8, "{kept}: {printed}");
    let refused = folder.fails(2, &["train", "--recipe", "G.toml", "--set", "output=no", "--set", "gate.rate=0"]);
    assert!(refused.contains("gate: rate is 0, expected a number above 0"), "{refused}");
}

/// What the two blocks of [`with_gates`] do with one input, by hand: all gates, and the cost in operations.
fn by_hand(model: &Model, mut x: Vec<f64>) -> (Vec<f64>, f64) {
    let param = |name: &str| model.params[name].tensor.to_f64s().unwrap();
    let product = |x: &[f64], w: &[f64]| -> Vec<f64> {
        let width = w.len() / x.len();
        (0..width).map(|j| x.iter().enumerate().map(|(i, x)| x * w[i * width + j]).sum()).collect()
    };
    let record = Record::load(model).unwrap().unwrap();
    let (mut all, body) = (Vec::new(), (2 * 4 * 12 + 12 + 2 * 12 * 4) as f64);
    let mut cost = (record.flops + record.gate_flops) as f64 - 2.0 * body;
    for (block, name) in record.blocks.iter().zip(["first", "second"]) {
        let scores = product(&x, &param(&block.weight)).into_iter().zip(param(&block.bias)).map(|(a, b)| a + b);
        let gates: Vec<f64> = scores.map(|score| score.clamp(0.0, 1.0)).collect();
        let hidden = product(&x, &param(&format!("{name}.up"))).into_iter().zip(&gates[1..]);
        let hidden: Vec<f64> = hidden.map(|(h, gate)| h.max(0.0) * gate).collect();
        let added = product(&hidden, &param(&format!("{name}.down")));
        x.iter_mut().zip(added).for_each(|(x, y)| *x += y * gates[0]);
        if gates[0] > 0.0 {
            cost += body * gates[1..].iter().filter(|gate| **gate > 0.0).count() as f64 / 12.0;
        }
        all.extend(gates);
    }
    (all, cost / record.flops as f64)
}

/// How gates are used stands in `gates.json` and in the model, and is what the model's own gates come to.
#[test]
fn the_use_of_gates_is_kept() {
    let folder = Folder::with_task();
    with_gates(&folder, "target = 0.6\n");
    let printed = folder.ok(&["train", "--recipe", "G.toml"]);
    assert!(printed.contains("gates: an example of test costs 0."), "{printed}");
    let found: Value = serde_json::from_slice(&folder.read("out/gates.json")).unwrap();
    let model = onnx::load(&folder.path("out/merged.onnx")).unwrap();
    let arrays = npz::read(&folder.path("test.npz")).unwrap();
    let (x, label) = (arrays["x"].to_f64s().unwrap(), arrays["label"].to_i64s().unwrap());
    let used: Vec<(Vec<f64>, f64)> = x.chunks(4).map(|x| by_hand(&model, x.to_vec())).collect();
    let near = |found: &Value, wanted: f64| {
        assert!((found.as_f64().unwrap() - wanted).abs() < 1e-5, "{found} instead of {wanted}");
    };
    let mean = |numbers: Vec<f64>| numbers.iter().sum::<f64>() / numbers.len().max(1) as f64;
    assert_eq!((&found["split"], &found["examples"]), (&Value::from("test"), &Value::from(40)));
    near(&found["cost"], mean(used.iter().map(|(_, cost)| *cost).collect()));
    near(&summary(&folder, "out")["test.flops"], found["cost"].as_f64().unwrap());
    let record = Record::load(&model).unwrap().unwrap();
    for (at, block) in record.blocks.iter().enumerate() {
        let (usage, told) = (block.usage.as_ref().unwrap(), &found["blocks"][at]);
        assert_eq!((usage.open.len(), &told["name"]), (13, &Value::from(block.name.as_str())));
        assert_eq!((told["open"].clone(), told["layer"].clone()), (usage.open.clone().into(), usage.open[0].into()));
        for gate in 0..13 {
            let values = used.iter().map(|(gates, _)| gates[13 * at + gate]);
            let open: Vec<f64> = values.filter(|value| *value > 0.0).collect();
            assert_eq!(usage.open[gate], open.len() as f64 / 40.0, "gate {gate} of {}", block.name);
            near(&usage.value[gate].into(), mean(open));
        }
        let count = |keep: fn(f64) -> bool| Value::from(usage.open[1..].iter().filter(|s| keep(**s)).count());
        let kinds = ["dead", "always", "dynamic"].map(|kind| told["channels"][kind].clone());
        assert_eq!(kinds, [count(|s| s == 0.0), count(|s| s == 1.0), count(|s| s > 0.0 && s < 1.0)]);
    }
    for (class, told) in found["classes"].as_array().unwrap().iter().enumerate() {
        let own = || used.iter().zip(&label).filter(|(_, label)| **label == class as i64).map(|(used, _)| used);
        near(&told["cost"], mean(own().map(|(_, cost)| *cost).collect()));
        for block in 0..2 {
            let share = |gates: &[f64]| gates.iter().filter(|gate| **gate > 0.0).count() as f64 / 13.0;
            near(&told["blocks"][block], mean(own().map(|(gates, _)| share(&gates[13 * block..][..13])).collect()));
        }
    }
    let counts: u64 = found["histogram"]["counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!((counts, found["cheapest"].as_array().unwrap().len()), (40, 16));
    let quarters = found["quarters"].as_array().unwrap();
    let mean_of = |key: &str| quarters.iter().map(|q| q[key].as_f64().unwrap()).sum::<f64>() / 4.0;
    near(&mean_of("cost").into(), found["cost"].as_f64().unwrap());
    near(&mean_of("accuracy").into(), summary(&folder, "out")["test.accuracy"].as_f64().unwrap());
    assert!(
        quarters[0]["cost"].as_f64() <= quarters[3]["cost"].as_f64() && printed.contains("the cheapest quarter costs")
    );
    for (key, end) in [("cheapest", "low"), ("dearest", "high")] {
        let first = &found[key][0];
        near(&first["cost"], used[first["row"].as_u64().unwrap() as usize].1);
        near(&first["cost"], found["histogram"][end].as_f64().unwrap());
    }
    // The written model has no programs; its gates are found by the record.
    let told: Value = serde_json::from_str(&folder.ok(&["eval", "--recipe", "G.toml", "--json"])).unwrap();
    assert_eq!((&told["gates"]["blocks"], &told["gates"]["classes"]), (&found["blocks"], &found["classes"]));
    let printed = folder.ok(&["eval", "--recipe", "G.toml", "--split", "train"]);
    assert!(printed.contains("gates: an example of train costs") && printed.contains("is run for"), "{printed}");
    let shown = folder.ok(&["inspect", "out/merged.onnx", "--blocks"]);
    assert!(shown.contains("2 blocks have gates") && shown.contains("in the last evaluation"), "{shown}");
    let json: Value = serde_json::from_str(&folder.ok(&["inspect", "out/merged.onnx", "--blocks", "--json"])).unwrap();
    assert_eq!(json["blocks"][0]["usage"]["open"], found["blocks"][0]["open"]);
    // A model whose gates were trimmed tells the same of those that are left.
    folder.ok(&["transform", "out/merged.onnx", "-p", "harden(kind=trim)", "-o", "trimmed.onnx"]);
    let left: Value = serde_json::from_str(&folder.ok(&["inspect", "trimmed.onnx", "--blocks", "--json"])).unwrap();
    let open = |blocks: &Value| -> Vec<Value> {
        let shares =
            blocks.as_array().unwrap().iter().flat_map(|block| block["usage"]["open"].as_array().unwrap().clone());
        shares.filter(|share| share.as_f64() > Some(0.0)).collect()
    };
    assert_eq!(open(&left["blocks"]), open(&json["blocks"]));
    folder.ok(&["transform", "out/merged.onnx", "-p", "gate-outputs", "-o", "told.onnx"]);
    let told = onnx::load(&folder.path("told.onnx")).unwrap();
    assert_eq!(told.graph.outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["logits", "flops", "gates"]);
    // Without test data, what was evaluated is the data of the evaluations.
    let recipe = String::from_utf8(folder.read("G.toml")).unwrap().replace("test = \"test.npz\"\n", "");
    folder.write("G.toml", &recipe);
    folder.ok(&["train", "--recipe", "G.toml", "--force"]);
    let again: Value = serde_json::from_slice(&folder.read("out/gates.json")).unwrap();
    assert_eq!((&again["split"], &again["blocks"]), (&Value::from("eval"), &found["blocks"]));
}

/// A model with gates is fine-tuned to what they decide: they are measured as they are, and stay what they were. `settle` does both in one run.
#[test]
fn weights_are_tuned_to_gates() {
    let folder = Folder::with_task();
    with_gates(&folder, "target = 0.6\nsettle = 0.5\n");
    folder.ok(&["train", "--recipe", "G.toml", "--set", "gate.binary=true"]);
    assert!(summary(&folder, "out")["test.flops"].as_f64() < Some(0.8));
    let recipe = String::from_utf8(folder.read("G.toml")).unwrap();
    let (recipe, _) = recipe.split_once("[gate]").unwrap();
    let recipe = recipe.replace("residual.onnx", "out/merged.onnx").replace("\"out\"", "\"tuned\"");
    folder.write("T.toml", &recipe.replace("[\"*\"]", "[\"*.up\", \"*.down\", \"/^weight$/\"]"));
    folder.ok(&["train", "--recipe", "T.toml"]);
    let tuned = summary(&folder, "tuned");
    assert!(tuned["test.flops"].as_f64() < Some(0.8) && tuned["test.gates_dynamic"].as_f64().is_some(), "{tuned}");
    assert!(folder.path("tuned/gates.json").exists());
    let [before, after] = ["out", "tuned"].map(|run| onnx::load(&folder.path(&format!("{run}/merged.onnx"))).unwrap());
    let mut gates = 0;
    for (name, param) in &before.params {
        let gate = name.starts_with("gate.");
        gates += usize::from(gate);
        assert_eq!(after.params[name].tensor == param.tensor, gate, "{name}");
    }
    assert_eq!(gates, 4);
    folder.ok(&["transform", "tuned/merged.onnx", "-p", "harden", "-o", "skip.onnx"]);
    folder.ok(&["verify", "tuned/merged.onnx", "skip.onnx", "--inputs", "test.npz"]);
}

#[test]
fn gates_that_are_killed_and_resumed_end_with_the_same_bits() {
    let folder = Folder::with_task();
    with_gates(&folder, "warmup = 0.1\nanneal = 0.4\n");
    killed_and_resumed(&folder, "G.toml", 6);
}

/// Gates and adapters in one recipe: the blocks are those of the model, not the adapters' branches, and what is merged computes what was trained.
#[test]
fn gates_and_adapters_compose() {
    let folder = Folder::with_task();
    with_gates(&folder, "target = 0.6\n[cola]\nrank = 2\nlinks = 2\ntargets = [\"*\"]\n");
    let recipe = String::from_utf8(folder.read("G.toml")).unwrap().replace("[freeze]\ntrainable = [\"*\"]\n", "");
    folder.write("G.toml", &recipe);
    let printed = folder.ok(&["train", "--recipe", "G.toml"]);
    assert!(printed.contains("adapters: 5 operators, 2 link(s)"), "{printed}");
    folder.ok(&["verify", "out/chain.onnx", "out/merged.onnx", "--inputs", "test.npz", "--tolerance", "1e-5"]);
    let (chain, merged) =
        (onnx::load(&folder.path("out/chain.onnx")).unwrap(), onnx::load(&folder.path("out/merged.onnx")).unwrap());
    for model in [&chain, &merged] {
        let record = Record::load(model).unwrap().unwrap();
        assert_eq!(record.blocks.iter().map(|b| (b.groups.len(), b.nodes.len())).collect::<Vec<_>>(), [(1, 3); 2]);
    }
    assert!(
        merged.params["weight"].tensor != onnx::load(&folder.path("residual.onnx")).unwrap().params["weight"].tensor
    );
    folder.ok(&["transform", "out/merged.onnx", "-p", "harden", "-o", "skip.onnx"]);
    folder.ok(&["verify", "out/merged.onnx", "skip.onnx", "--inputs", "test.npz"]);
    // A further run starts with the gates where they are.
    folder.write(
        "G.toml",
        &recipe.replace("residual.onnx", "out/merged.onnx").replace("output = \"out\"", "output = \"more\""),
    );
    folder.ok(&["train", "--recipe", "G.toml", "--set", "gate.target=0.5", "--set", "gate.anneal=0.0"]);
    let first: Value =
        serde_json::from_slice(folder.read("more/metrics.jsonl").split(|b| *b == b'\n').next().unwrap()).unwrap();
    let cost = summary(&folder, "out")["test.flops"].as_f64().unwrap();
    assert!((first["flops"].as_f64().unwrap() - cost).abs() < 0.15 && cost < 0.7, "{first} after {cost}");
    let error = folder.fails(2, &["train", "--recipe", "G.toml", "--set", "gate.layers=false", "--force"]);
    assert!(error.contains("exclude are for new ones"), "{error}");
    folder.ok(&["train", "--recipe", "R.toml", "--force"]);
    let error = folder.fails(2, &["transform", "out/chain.onnx", "-p", "upgrade", "-p", "gate", "-o", "no.onnx"]);
    assert!(error.contains("attach gates before adapters"), "{error}");
}

/// Gates and experts in one recipe: the experts weigh the losses of gated models.
#[test]
fn gates_and_experts_compose() {
    let folder = Folder::with_task();
    for mode in ["independent", "shared", "intervals"] {
        let samuel = format!("[samuel]\nrates = [0.1, 0.01, 0.001]\nmode = \"{mode}\"\n");
        with_gates(&folder, &format!("target = 0.7\nspread = 0.5\n{samuel}"));
        let recipe = String::from_utf8(folder.read("G.toml")).unwrap().replace("learning_rate = 3e-2\n", "");
        folder.write("G.toml", &recipe);
        folder.ok(&["train", "--recipe", "G.toml", "--force"]);
        let found = summary(&folder, "out");
        let number = |key: &str| found[key].as_f64().unwrap();
        assert!(number("test.accuracy") > 0.8 && number("test.flops") < 0.95, "{mode}: {found}");
        folder.ok(&["transform", "out/merged.onnx", "-p", "harden", "-o", "skip.onnx"]);
        folder.ok(&["verify", "out/merged.onnx", "skip.onnx", "--inputs", "test.npz"]);
    }
}

/// Without labels: gates are trained so that the model goes on to say what it said.
#[test]
fn gates_learn_from_the_model_itself() {
    let folder = Folder::with_task();
    with_gates(&folder, "");
    folder.ok(&["train", "--recipe", "G.toml", "--set", "gate.target=1.0", "--set", "output=backbone"]);
    let mut arrays = npz::read(&folder.path("train.npz")).unwrap();
    arrays.shift_remove("label");
    npz::write(&folder.path("bare.npz"), arrays.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
    // The backbone's gates are open: as constants they are gone, and its programs with them.
    folder.ok(&["transform", "backbone/merged.onnx", "-p", "harden(kind=static)", "-o", "backbone.onnx"]);
    with_gates(&folder, "target = 0.7\nspread = 0.5\n[loss]\nteacher = true\ntemperature = 2.0\n");
    let recipe = String::from_utf8(folder.read("G.toml")).unwrap();
    let recipe = recipe.replace("residual.onnx", "backbone.onnx").replace("\"train.npz\"", "\"bare.npz\"");
    folder.write("G.toml", &recipe);
    folder.ok(&["train", "--recipe", "G.toml"]);
    let found = summary(&folder, "out");
    let number = |key: &str| found[key].as_f64().unwrap();
    // The test data has labels, so there is an accuracy, though no label was trained on.
    assert!(number("test.accuracy") > 0.8 && number("test.flops") < 0.9 && number("test.loss") < 0.3, "{found}");
    let first = lines_with(&folder, "task_loss").remove(0);
    assert!(first["task_loss"].as_f64().unwrap().abs() < 1e-6, "at first nothing has changed: {first}");
    // Without any labels there is the distance from the teacher.
    folder.write("G.toml", &recipe.replace("\"test.npz\"", "\"bare.npz\""));
    folder.ok(&["train", "--recipe", "G.toml", "--force"]);
    let found = summary(&folder, "out");
    assert!(found["test.loss"].is_number() && found["test.accuracy"].is_null(), "{found}");
    // Labels that are named have to be there; so have those of a loss that needs them.
    folder.write("G.toml", &recipe.replace("[data]", "[data]\nlabel = \"label\""));
    assert!(folder.fails(2, &["train", "--recipe", "G.toml", "--force"]).contains("there is no array \"label\""));
    folder.write("G.toml", &recipe.replace("teacher = true\ntemperature = 2.0\n", ""));
    assert!(folder.fails(2, &["train", "--recipe", "G.toml", "--force"]).contains("there is no array \"label\""));
    for (wrong, expected) in [
        ("temperature = 2.0", "temperature softens what a teacher says"),
        ("teacher = true\nlabel_smoothing = 0.1", "label_smoothing is for labels"),
        ("teacher = true\nkind = \"causal-lm\"", "write kind = \"cross-entropy\" and class_axis = -1"),
        ("labels = 0.5", "labels is their share of the loss beside a teacher's"),
        ("teacher = true\nlabels = 1.5", "labels is 1.5, expected a share of the loss from 0 to 1"),
        ("teacher = \"absent.onnx\"", "absent.onnx: No such file"),
        ("teacher = true\nlabels = 0.5", "there is no array \"label\""),
    ] {
        folder.write("G.toml", &recipe.replace("teacher = true\ntemperature = 2.0", wrong));
        let done = folder.run(&["train", "--recipe", "G.toml", "--force"]);
        assert!(done.code != Some(0) && done.err.contains(expected), "{wrong}: {}", done.err);
    }
    // A file that says the same is the same teacher; relative paths are relative to the recipe.
    folder.write("G.toml", &recipe.replace("teacher = true", "teacher = \"backbone.onnx\""));
    folder.ok(&["train", "--recipe", "G.toml", "--force"]);
    let from_file = summary(&folder, "out");
    let apart = |key: &str| (from_file[key].as_f64().unwrap() - number(key)).abs();
    assert!(apart("test.loss") < 1e-4 && apart("test.flops") < 1e-4, "{from_file} instead of {found}");
}

#[test]
fn wrong_gates_are_refused_with_a_sentence() {
    let folder = Folder::with_task();
    for (gate, expected) in [
        ("target = 0\n", "target is 0"),
        ("target = 1.5\n", "target is 1.5, expected a share from 0 to 1"),
        ("layers = false\nchannels = false\n", "there is nothing to gate"),
        ("blocks = [\"third\"]\n", "matches no block"),
        ("taget = 0.5\n", "did you mean \"target\""),
    ] {
        with_gates(&folder, gate);
        let done = folder.run(&["train", "--recipe", "G.toml"]);
        assert!(done.code != Some(0) && done.err.contains(expected), "{gate}: {}", done.err);
    }
}

/// The recipe of the task with experts instead of a learning rate.
fn with_experts(folder: &Folder, samuel: &str) {
    let recipe = RECIPE.replace("learning_rate = 3e-2\n", "").replace("schedule = \"linear\"\n", "");
    folder.write("S.toml", &format!("{recipe}[samuel]\n{samuel}"));
}

/// The lines of `metrics.jsonl` that hold a key.
fn lines_with(folder: &Folder, key: &str) -> Vec<Value> {
    let text = String::from_utf8(folder.read("out/metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get(key).is_some()).collect()
}

#[test]
fn rates_alone_are_enough_for_experts() {
    for mode in ["", "mode = \"shared\"\n", "mode = \"intervals\"\nlengths = [8, 32]\n"] {
        let folder = Folder::with_task();
        with_experts(&folder, &format!("{mode}rates = [1, 0.1, 0.01, 0.001, 0.0001]\n"));
        let printed = folder.ok(&["train", "--recipe", "S.toml", "--set", "cola.links=1"]);
        assert!(printed.contains("experts"), "{printed}");
        let found = summary(&folder, "out");
        assert!(found["test.accuracy"].as_f64().unwrap() > 0.85, "{mode}: {found}");
        let steps = lines_with(&folder, "samuel/probability");
        assert_eq!(steps.len(), 144);
        for line in &steps {
            let numbers =
                |key: &str| line[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
            let sum: f64 = numbers("samuel/probability").iter().sum();
            assert!((sum - 1.0).abs() < 1e-9, "{line}");
            let rates = numbers("samuel/rate");
            let factor = line["learning_rate"].as_f64().unwrap();
            assert!(
                (rates[1] - 0.1 * factor).abs() < 1e-6
                    && line["samuel/effective_rate"].as_f64().unwrap() <= factor + 1e-6,
                "{line}"
            );
        }
        assert!(lines_with(&folder, "samuel/restart").is_empty());
        assert_eq!(steps[143]["learning_rate"], 1.0, "the rates stay: {}", steps[143]);
        let recipe = String::from_utf8(folder.read("out/recipe.toml")).unwrap();
        assert!(recipe.contains("[average]\npower = 8"), "{recipe}");
        let merged = onnx::load(&folder.path("out/merged.onnx")).unwrap();
        assert!(merged.params.keys().all(|name| !name.contains("expert")), "{:?}", merged.params.keys());
    }
}

/// Knots first, then the experts of the new link at the point where the last one ended; restarts wait for whole updates.
#[test]
fn experts_and_chains_and_accumulation_compose() {
    let folder = Folder::with_task();
    with_experts(
        &folder,
        "rates = {from = 0.1, to = 0.001, count = 3}\nplay = \"sample\"\nrestart_every = [0.5, 65]\n",
    );
    let more = ["--set", "accumulate.steps=4", "--set", "clip.max_norm=1.0"];
    folder.ok(&[&["train", "--recipe", "S.toml"], &more[..]].concat());
    assert!(summary(&folder, "out")["test.accuracy"].as_f64().unwrap() > 0.85);
    let steps = |key: &str| lines_with(&folder, key).iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(steps("knot"), [72]);
    assert_eq!(steps("samuel/restart"), [36, 68, 72 + 36, 72 + 68]);
    // At the knot all experts are at one point, so their losses are equal.
    let all = lines_with(&folder, "samuel/loss");
    let spread = |step: u64| {
        let line = all.iter().find(|l| l["step"] == step).unwrap();
        let losses: Vec<f64> = line["samuel/loss"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        losses.iter().copied().fold(f64::MIN, f64::max) - losses.iter().copied().fold(f64::MAX, f64::min)
    };
    let spreads = [68, 73, 36, 37].map(spread);
    assert!(spreads[0] > 1e-4 && spreads[1] < 1e-6 && spreads[2] > 1e-4 && spreads[3] < 1e-6, "{spreads:?}");
    folder.ok(&["verify", "out/chain.onnx", "out/merged.onnx", "--inputs", "test.npz", "--tolerance", "1e-5"]);
}

#[test]
fn experts_that_are_killed_and_resumed_end_with_the_same_bits() {
    let folder = Folder::with_task();
    with_experts(&folder, "rates = [0.1, 0.01]\nplay = \"sample\"\nrestart_every = 70\n");
    killed_and_resumed(&folder, "S.toml", 4);
}

/// A rate that diverges costs nothing but its expert; if all do, the run says so.
#[test]
fn a_rate_that_diverges_loses_its_weight() {
    let folder = Folder::with_task();
    with_experts(&folder, "rates = [1e30, 0.03]\n");
    let sgd = ["--set", "optimizer.kind=sgd", "--set", "optimizer.weight_decay=0"];
    folder.ok(&[&["train", "--recipe", "S.toml"], &sgd[..]].concat());
    let last = lines_with(&folder, "samuel/probability").pop().unwrap();
    assert_eq!(last["samuel/probability"][0], 0.0, "{last}");
    assert_eq!(last["samuel/probability"][1], 1.0, "{last}");
    // Also between the runs of one update, whose state is saved here.
    let gathered = ["--set", "accumulate.steps=3", "--set", "train.checkpoint_every=1", "--max-steps", "20", "--force"];
    folder.ok(&[&["train", "--recipe", "S.toml"], &sgd[..], &gathered[..]].concat());
    let last = lines_with(&folder, "samuel/probability").pop().unwrap();
    assert_eq!(last["samuel/probability"][0], 0.0, "{last}");
    with_experts(&folder, "rates = [1e30, 1e31]\n");
    let error = folder.fails(1, &[&["train", "--recipe", "S.toml", "--force"], &sgd[..]].concat());
    assert!(error.contains("the loss is NaN"), "{error}");
}

#[test]
fn wrong_experts_are_refused_with_a_sentence() {
    let folder = Folder::with_task();
    let passes = ["head(input=features, classes=2)", "loss(kind=cross-entropy)", "autodiff", "optimizer(kind=sgd)"];
    let mut args = vec!["transform", "model.onnx", "-o", "plain.onnx", "--quiet"];
    passes.iter().for_each(|pass| args.extend(["-p", pass]));
    folder.ok(&args);
    with_experts(&folder, "rates = [0.1, 0.01]\n");
    let error = folder.fails(2, &["train", "plain.onnx", "--recipe", "S.toml"]);
    assert!(error.contains("no experts in them"), "{error}");
    for (samuel, expected) in [
        ("rates = []\n", "rates is empty"),
        ("rates = [0.1, -1]\n", "rates holds -1, expected positive numbers"),
        ("rates = {from = 1, to = 0.1, count = 1}\n", "a count of at least 2"),
        ("mode = \"intervals\"\nplay = \"sample\"\n", "`intervals` plays the average"),
        ("mode = \"intervals\"\nlengths = [1,2,4,8,16,32,64,128,256,512,1024,2048,4096]\n", "65 experts"),
        ("restart_every = [0.5, -2]\n", "restart_every holds -2"),
        ("restart_evry = 5\n", "did you mean \"restart_every\""),
    ] {
        with_experts(&folder, samuel);
        let error = folder.fails(2, &["train", "--recipe", "S.toml"]);
        assert!(error.contains(expected), "{samuel}: {error}");
    }
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
    for (output, table) in
        [("as-it-is", ""), ("by-batch", "[train-mode]\n"), ("average", "[train-mode]\n[average]\ndecay = 0.95\n")]
    {
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
    // Parameters that are averages get statistics of their own: the mean over batches, so that of all examples.
    assert!(summary(&folder, "average")["test.accuracy"].as_f64().unwrap() > 0.85);
    let arrays = npz::read(&folder.path("train.npz")).unwrap();
    let x = arrays["x"].to_vec::<f32>().unwrap();
    for (channel, mean) in means("average").iter().enumerate() {
        let all: f32 = x.iter().skip(channel).step_by(4).sum::<f32>() / (x.len() / 4) as f32;
        assert!((mean - all).abs() < 1e-5, "channel {channel}: {mean}, of the data {all}");
    }
}
