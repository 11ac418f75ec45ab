//! `sartor report`: what is on the page, what is not, and what a broken folder says.

mod common;

use common::*;
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
