//! `sartor report`: what is on the page, what is not, and what a broken folder says.

mod common;

use common::*;
use sartor_ir::rng::Stream;
use sartor_ir::{Attributes, DType, Dim, Graph, GraphOutput, Model, Tensor, Type};
use sartor_runtime::data::npz;
use std::fmt::Write;

fn run_folder(folder: &Folder, name: &str, metrics: &str) {
    std::fs::create_dir_all(folder.path(name)).unwrap();
    folder.write(&format!("{name}/metrics.jsonl"), metrics);
}

fn page(folder: &Folder, name: &str) -> String {
    String::from_utf8(folder.read(name)).unwrap()
}

fn assert_has(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "expected {part:?} in\n{text}"));
}

/// Titles of the charts, in order.
fn titles(page: &str) -> Vec<&str> {
    page.split("<h3>").skip(1).filter_map(|part| part.split("</h3>").next()).collect()
}

#[test]
fn a_run_is_drawn_and_loads_nothing_else() {
    let folder = Folder::with_task();
    folder.ok(&["train", "--recipe", "R.toml"]);
    let printed = folder.ok(&["report", "out"]);
    assert_eq!(printed, "written to out/report.html\n");
    let page = page(&folder, "out/report.html");
    assert_has(&page, &["<h1>model.onnx</h1>", "after 144 steps", "<dt>test accuracy</dt>", "[cola]\nrank = 2\n"]);
    let found = titles(&page);
    for (title, beginning) in found.iter().zip([
        "The training loss fell from ",
        "On the evaluation set, accuracy was highest at step ",
        "On the evaluation set, macro F1 was highest at step ",
        "On the evaluation set, loss was lowest at step ",
        "The learning rate fell from 0.03 to ",
        "The gradient&#39;s norm was ",
        "The run took ",
    ]) {
        assert!(title.starts_with(beginning), "{found:?}");
    }
    assert!(!page.contains("SAMUEL") && !page.contains("http") && !page.contains("src=") && !page.contains("@import"));
    folder.ok(&["report", "out", "--html", "curves.html"]);
    assert_eq!(String::from_utf8(folder.read("curves.html")).unwrap(), page);
    // What `train --force` removes, it removes with the rest.
    folder.ok(&["train", "--recipe", "R.toml", "--force", "--max-steps", "2"]);
    assert!(!folder.path("out/report.html").exists());
}

#[test]
fn what_comes_from_files_is_inert() {
    let folder = Folder::new();
    let evil = "</script><script>alert(1)</script>";
    run_folder(&folder, "<b>run", &format!("{{\"step\":1,\"loss\":1,\"eval/{evil}\":2,\"{evil}\":3}}\n"));
    folder.write("<b>run/recipe.toml", &format!("model = \"/models/<img src=x>{evil}\"\n# {evil} & more\n"));
    folder.write("<b>run/summary.json", &format!("{{\"test.{evil}\": 1, \"x\": \"{evil}\"}}"));
    let block = format!(
        "{{\"name\":\"{evil}<img src=x>\",\"layer\":0.5,\"channels\":{{\"dead\":1,\"always\":0,\"dynamic\":1}},\"open\":[0.5,0,0.5]}}"
    );
    let rest = "\"classes\":[],\"histogram\":{\"low\":0.5,\"high\":0.5,\"counts\":[3]},\"cheapest\":[],\"dearest\":[]";
    let gates = format!("{{\"split\":\"{evil}\",\"examples\":3,\"cost\":0.5,\"blocks\":[{block}],{rest}}}");
    folder.write("<b>run/gates.json", &gates);
    folder.ok(&["report", "<b>run"]);
    let page = page(&folder, "<b>run/report.html");
    assert!(!page.contains("<script>alert") && !page.contains("<img") && !page.contains("<b>run"), "{page}");
    assert_has(&page, &["&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt; &amp; more", "&lt;b&gt;run"]);
    assert_eq!(page.matches("</script>").count(), page.matches("<script").count());
}

/// `count` steps of a run with five experts, one of which diverges, two restarts and a knot.
fn samuel(count: usize) -> String {
    let mut text = String::new();
    for step in 1..=count {
        let hot = if step % 2 == 0 { "\"NaN\"" } else { "\"inf\"" };
        let share = 0.1 + 0.5 * step as f64 / count as f64;
        let restart = if step == count / 2 || step == count * 3 / 4 { ",\"samuel/restart\":1" } else { "" };
        let rest = (1.0 - share) / 4.0;
        writeln!(
            text,
            "{{\"step\":{step},\"loss\":{},\"learning_rate\":0.01,\"samuel/probability\":[{rest},{rest},{share},{rest},{rest}],\
             \"samuel/loss\":[{hot},0.5,0.4,0.6,0.7],\"samuel/rate\":[0.1,0.01,0.001,0.0001,1e-5],\"samuel/played\":{},\
             \"samuel/effective_rate\":{}{restart}}}",
            1.0 / step as f64,
            step % 5,
            0.02 * share
        )
        .unwrap();
        if step == count / 3 {
            writeln!(text, "{{\"step\":{step},\"knot\":1}}").unwrap();
        }
    }
    text
}

#[test]
fn the_experts_of_samuel() {
    let folder = Folder::new();
    run_folder(&folder, "out", &samuel(2000));
    folder.ok(&["report", "out"]);
    let page = page(&folder, "out/report.html");
    assert_has(
        &page,
        &[
            "<h2>Which learning rates SAMUEL chose</h2>",
            "In the end SAMUEL trusted the learning rate 0.001 most, with probability 0.6.",
            "The effective learning rate rose from 0.002005 to 0.012.",
            "The expert with rate 0.001 ended with the lowest loss, 0.4.",
            "On the upper edge: 1 of the 5 losses, at times not finite or",
            "played in 20 % of the steps",
            "<i class=\"key mark restart\"></i>restart",
            "<i class=\"key mark knot\"></i>knot",
            "<span class=\"share\"",
        ],
    );
    assert_eq!(page.matches("class=\"area\"").count(), 5);
    assert_eq!(page.matches("<path class=\"mark restart\" d=\"M500 0V1000\"/>").count(), 4, "three curves of lines");
    // From hot to cold, as the areas lie one upon the other.
    let legend: Vec<usize> = ["</i>0.1", "</i>0.01", "</i>0.001", "</i>1e-4", "</i>1e-5"]
        .iter()
        .map(|name| page.find(&format!("{name} <small>")).unwrap())
        .collect();
    assert!(legend.is_sorted(), "{legend:?}");
}

#[test]
fn many_steps_make_no_large_page() {
    let folder = Folder::new();
    run_folder(&folder, "out", &samuel(30_000));
    folder.ok(&["report", "out"]);
    let size = folder.read("out/report.html").len();
    assert!(size < 600_000, "{size} bytes");
}

#[test]
fn several_runs_over_each_other() {
    let folder = Folder::with_task();
    for rate in ["1e-3", "3e-2"] {
        let (output, rate) = (format!("output=lr-{rate}"), format!("optimizer.learning_rate={rate}"));
        folder.ok(&["train", "--recipe", "R.toml", "--max-steps", "36", "--set", &output, "--set", &rate]);
    }
    folder.ok(&["report", "lr-1e-3/", "lr-3e-2", "--html", "both.html"]);
    let both = page(&folder, "both.html");
    assert_has(
        &both,
        &[
            "<h1>2 runs of model.onnx</h1>",
            "<th>optimizer.<wbr>learning_rate</th>",
            "“lr-3e-2” ended with the lowest training loss, ",
            "The learning rates were between 0.001 and 0.03 at their highest.",
            "</i>lr-1e-3</li>",
            "<summary>lr-3e-2</summary>",
        ],
    );
    // A run of which nothing was logged is left out, and told.
    run_folder(&folder, "empty", "");
    let done = folder.run(&["report", "lr-1e-3", "empty", "--html", "one.html"]);
    assert_eq!(
        (done.code, done.err.as_str()),
        (Some(0), "empty/metrics.jsonl: no step was logged in it yet; left out\n")
    );
    assert_has(&page(&folder, "one.html"), &["<h1>model.onnx</h1>"]);
}

/// A residual network for pictures of 4 × 4, their data, and the recipe `G.toml`.
fn with_gated_pictures(folder: &Folder) {
    let mut model = Model::new(Graph::new("pictures"));
    let shape = [Dim::symbol("batch"), 1.into(), 4.into(), 4.into()];
    let x = model.graph.add_input("x", Type::tensor(DType::F32, shape));
    let (up, down) = (param(&mut model, "up", &[6, 1, 3, 3]), param(&mut model, "down", &[1, 6, 3, 3]));
    let padded = || Attributes::new().with("pads", vec![1i64; 4]);
    let hidden = model.graph.op("Conv", &[x, up], padded());
    let hidden = model.graph.op("Relu", &[hidden], Attributes::new());
    let body = model.graph.op("Conv", &[hidden, down], padded());
    let sum = model.graph.op("Add", &[x, body], Attributes::new());
    let flat = model.graph.op("Flatten", &[sum], Attributes::new());
    let weight = param(&mut model, "weight", &[16, 2]);
    let logits = model.graph.op("MatMul", &[flat, weight], Attributes::new());
    model.graph.rename(logits, "logits");
    model.graph.outputs.push(GraphOutput { name: "logits".into(), value: logits });
    save(&model, &folder.path("pictures.onnx"));
    for (name, count, seed) in [("train.npz", 64, 1), ("test.npz", 40, 2)] {
        let stream = Stream::new(seed, 0, "pictures");
        let x: Vec<f32> = (0..16 * count as u64).map(|i| stream.unit(i) as f32).collect();
        let label: Vec<i64> = x.chunks(16).map(|x| i64::from(x[0] > x[15])).collect();
        let (x, label) = (Tensor::from_vec([count, 1, 4, 4], x), Tensor::from_i64s(&label));
        npz::write(&folder.path(name), [("x", &x), ("label", &label)]).unwrap();
    }
    folder.write(
        "G.toml",
        "model = \"pictures.onnx\"\noutput = \"out\"\n[data]\ntrain = \"train.npz\"\neval = \"test.npz\"\ntest = \"test.npz\"\n\
         [freeze]\ntrainable = [\"*\"]\n[optimizer]\nlearning_rate = 3e-2\n[train]\nepochs = 12\nbatch = 8\n[gate]\nlayers = false\ntarget = 0.6\n",
    );
}

/// A run whose gates are told here: two blocks, one of them with channels only, and three classes.
fn told_gates() -> String {
    let block = |name: &str, layer: &str, kinds: [usize; 3], open: &str| {
        let [dead, always, dynamic] = kinds;
        let channels = format!("{{\"dead\":{dead},\"always\":{always},\"dynamic\":{dynamic}}}");
        format!("{{\"name\":\"{name}\",\"layer\":{layer},\"channels\":{channels},\"open\":{open}}}")
    };
    let blocks =
        [block("first", "0.25", [1, 2, 1], "[0.25,0,1,1,0.5]"), block("second", "null", [0, 1, 1], "[1,0.75]")];
    let class =
        |class: usize, cost: f64| format!("{{\"class\":{class},\"examples\":2,\"cost\":{cost},\"blocks\":[0.5,0.5]}}");
    let classes: Vec<String> = (0..30).map(|i| class(i, 0.4 + 0.01 * i as f64)).collect();
    let named = |row: usize| format!("[{{\"row\":{row},\"cost\":0.5}}]");
    format!(
        "{{\"split\":\"eval\",\"examples\":60,\"cost\":0.5,\"blocks\":[{}],\"classes\":[{}],\"histogram\":{{\"low\":0.25,\"high\":0.75,\
         \"counts\":[10,0,30,20]}},\"cheapest\":{},\"dearest\":{},\"quarters\":[{{\"cost\":0.3,\"accuracy\":0.95}},{{\"cost\":0.4,\"accuracy\":0.9}},\
         {{\"cost\":0.6,\"accuracy\":0.8}},{{\"cost\":0.7,\"accuracy\":0.5}}]}}",
        blocks.join(","),
        classes.join(","),
        named(7),
        named(9)
    )
}

#[test]
fn gates_block_by_block() {
    let folder = Folder::new();
    let line = |step: usize, dead: f64| {
        format!(
            "{{\"step\":{step},\"loss\":1,\"eval/gates_dead\":{dead},\"eval/gates_dynamic\":0.5,\"eval/gates_always\":{}}}\n",
            0.5 - dead
        )
    };
    run_folder(&folder, "out", &format!("{}{}", line(1, 0.0), line(2, 0.125)));
    folder.write("out/gates.json", &told_gates());
    folder.ok(&["report", "out"]);
    let page = page(&folder, "out/report.html");
    assert_eq!(
        titles(&page)[1..],
        [
            "An input costs between 0.25 and 0.75 of the whole model, 0.5 in the mean.",
            "In the end 50 % of the gates depend on the input, 12.5 % are shut for all of them.",
            "“first” is skipped most often: it is run for 25 % of the inputs.",
            "Of 6 gated channels 1 is never computed, and 2 for some inputs only.",
            "Class 0 costs least, 0.4, and class 29 most, 0.69.",
        ]
    );
    assert_has(&page, &["The model is right for 95 % of the cheapest quarter and for 50 % of the dearest."]);
    let bar = |name: &str| page.split(&format!("\">{name}</span>")).nth(1).unwrap().split('\n').next().unwrap();
    assert_has(bar("first"), &["width:25%", ">25 %</span>"]);
    assert_has(bar("second"), &["width:50%", "width:50%", ">1.75 open of 2</span>"]);
    assert_has(&page, &["Shown are the 12 cheapest and the 12 dearest of 30 classes.", ">class 18</span>"]);
    assert!(!page.contains(">class 12</span>") && page.matches("class=\"area\"").count() == 3, "{page}");
    // Columns of the counts: none where there is none.
    assert_has(&page, &["d=\"M0 1000V666.7H250V1000ZM500 1000V0H750V1000ZM750 1000V333.3H1000V1000Z\""]);
    assert_has(
        &page,
        &[
            "The cheapest inputs of the eval data are its examples 7; the dearest are 9 (counted from 0). They cannot be shown: ",
        ],
    );
}

#[test]
fn how_gates_were_used() {
    let folder = Folder::new();
    with_gated_pictures(&folder);
    folder.ok(&["train", "--recipe", "G.toml"]);
    folder.ok(&["report", "out"]);
    let one = page(&folder, "out/report.html");
    assert_has(
        &one,
        &[
            "<h2>Gates</h2>",
            " of the whole model",
            "In the end ",
            "Of 6 gated channels ",
            "<h4>The dearest inputs</h4>",
        ],
    );
    assert_eq!(one.matches("<img alt=\"example ").count(), 32);
    assert_eq!(one.matches("src=\"data:image/png;base64,iVBORw0KGgo").count(), 32);
    assert_eq!(one.matches("class=\"column\"").count(), 1);
    assert!(!one.contains("On the evaluation set, gates"), "{one}");
    // Several runs, the last one without gates: a point each.
    let plain = String::from_utf8(folder.read("G.toml")).unwrap().replace("[gate]\nlayers = false\ntarget = 0.6\n", "");
    folder.write("P.toml", &plain);
    folder.ok(&["train", "--recipe", "G.toml", "--set", "output=less", "--set", "gate.target=0.4"]);
    folder.ok(&["train", "--recipe", "P.toml", "--set", "output=plain"]);
    folder.ok(&["report", "out", "less", "plain", "--html", "all.html"]);
    let all = page(&folder, "all.html");
    assert_has(
        &all,
        &["<h2>Accuracy and cost</h2>", "of the cost the accuracy is ", ", at 1 it is ", "<h2>Gates of “less”</h2>"],
    );
    assert_eq!(all.matches("<h2>Gates of").count(), 2);
    // Without the data there are no pictures, and a sentence.
    std::fs::remove_file(folder.path("test.npz")).unwrap();
    folder.ok(&["report", "out"]);
    let without = page(&folder, "out/report.html");
    assert_has(
        &without,
        &["The cheapest inputs of the test data are its examples ", "They cannot be shown: ", "there is no such file"],
    );
    assert!(!without.contains("<img"));
    // What is removed with the rest of a run.
    folder.fails(2, &["train", "--recipe", "G.toml", "--force"]);
    assert!(folder.path("out/gates.json").exists());
    folder.write("out/gates.json", "{\"split\":");
    assert_has(&folder.fails(2, &["report", "out"]), &["out/gates.json: "]);
}

#[test]
fn a_run_that_goes_on() {
    let folder = Folder::new();
    run_folder(&folder, "out", "{\"step\":1,\"loss\":\"NaN\"}\n{\"step\":2,\"loss\":0.5}\n{\"step\":3,\"los");
    let done = folder.run(&["report", "out"]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert_has(&done.err, &["out/metrics.jsonl: line 3, the last one, is not complete, and left out"]);
    let page = page(&folder, "out/report.html");
    assert_has(&page, &["This run has not ended yet", "after 2 steps", "<h1>out</h1>"]);
    assert_eq!(titles(&page), ["The training loss was 0.5 at both ends."]);
    assert!(!page.contains("evaluation") && !page.contains("The recipe") && !page.contains("All numbers"));
}

#[test]
fn folders_that_are_none() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("bare")).unwrap();
    run_folder(&folder, "empty", "\n");
    run_folder(&folder, "broken", "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":}\n{\"step\":3,\"loss\":0.25}\n");
    let error = folder.fails(2, &["report", "bare"]);
    assert_has(
        &error,
        &["error: bare: there is no metrics.jsonl in it; the output folder of a `sartor train` has one"],
    );
    assert_has(&folder.fails(2, &["report", "empty"]), &["error: empty/metrics.jsonl: no step was logged in it yet"]);
    assert_has(&folder.fails(2, &["report", "broken"]), &["error: broken/metrics.jsonl: line 2: it is not JSON: "]);
    let both = folder.fails(2, &["report", "absent", "broken"]);
    assert_has(&both, &["absent: there is no metrics.jsonl", "broken/metrics.jsonl: line 2"]);
    run_folder(&folder, "torn", "{\"step\":1,\"loss\":0.5}\n");
    folder.write("torn/summary.json", "{\"steps\": ");
    assert_has(&folder.fails(2, &["report", "torn"]), &["torn/summary.json: "]);
    assert!(!folder.path("torn/report.html").exists());
}
