//! The movie task: what COLA and LoRA reach, beside PyTorch + PEFT: `movie RUNS [--seeds N] [--threads N] [--table]`.
//!
//! Two sentence encoders, one and three links, several seeds: `sartor train` with the recipe of the README, and
//! `benches/peers/peft_sentiment.py` for the encoder of which there is a PyTorch form. Every run leaves a folder (or a line) in
//! the folder `RUNS`, so that an interrupted series goes on where it was. The table goes to `docs/results/cola.md`. `--table` runs
//! nothing and writes the table of what there is. All together takes about an hour on two cores.

use sartor_bench::{beside, cache, number, processor, table};
use sartor_ir::{Error, Result, ensure};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A model of the task: a short name, its file, the value that the classifier reads.
const MODELS: [(&str, &str, &str); 2] =
    [("l3", "paraphrase-MiniLM-L3-v2.onnx", "461"), ("l6", "minilm-l6-ts17.onnx", "sentence_embedding")];
const LINKS: [usize; 2] = [1, 3];
const EPOCHS: usize = 6;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str, default: usize| {
        let at = args.iter().position(|a| a == name);
        at.and_then(|i| args.get(i + 1)?.parse().ok()).unwrap_or(default)
    };
    let runs = PathBuf::from(args.first().filter(|a| !a.starts_with('-')).map_or("target/movie", String::as_str));
    let (seeds, threads) = (option("--seeds", 5), option("--threads", 2));
    std::fs::create_dir_all(&runs).map_err(|e| Error::io(&runs, e))?;
    if !args.iter().any(|a| a == "--table") {
        for seed in 0..seeds {
            for links in LINKS {
                MODELS.iter().try_for_each(|model| ours(&runs, *model, links, seed, threads))?;
                theirs(&runs, links, seed, threads)?;
            }
        }
    }
    report(&runs, seeds)
}

fn folder(runs: &Path, name: &str, links: usize, seed: usize) -> PathBuf {
    runs.join(format!("{name}-links{links}-seed{seed}"))
}

fn ours(runs: &Path, (name, file, input): (&str, &str, &str), links: usize, seed: usize, threads: usize) -> Result<()> {
    let out = folder(runs, name, links, seed);
    if out.join("summary.json").exists() {
        return Ok(());
    }
    let assets = cache().join("assets");
    let path = |p: &str| assets.join(p).display().to_string();
    let recipe = format!(
        "model = \"{}\"\noutput = \"{}\"\n\
         [data]\ntrain = \"{}\"\neval = \"{}\"\ntest = \"{}\"\ntext = \"text\"\nlabel = \"label\"\ntokenizer = \"{}\"\n\
         max_length = 64\n[head]\ninput = \"{input}\"\nkind = \"classifier\"\nclasses = 2\n\
         [loss]\nkind = \"cross-entropy\"\n\
         [cola]\nrank = 8\nalpha = 16\nlinks = {links}\ntargets = [\"*/query/MatMul\", \"*/value/MatMul\"]\n\
         [optimizer]\nkind = \"adamw\"\nlearning_rate = 1e-3\nweight_decay = 0.01\nschedule = \"linear\"\nwarmup_ratio = 0.0\n\
         [train]\nepochs = {EPOCHS}\nbatch = 8\nseed = {seed}\nthreads = {threads}\neval_every = \"epoch\"\n\
         checkpoint_every = \"never\"\n",
        path(file),
        out.file_name().unwrap_or_default().to_string_lossy(),
        path("movie/train.tsv"),
        path("movie/val.tsv"),
        path("movie/test.tsv"),
        path("minilm-l6/tokenizer.json"),
    );
    let recipe_path = out.with_extension("toml");
    std::fs::write(&recipe_path, recipe).map_err(|e| Error::io(&recipe_path, e))?;
    let _ = std::fs::remove_dir_all(&out);
    println!("{name}, {links} links, seed {seed}");
    let status = Command::new(beside("sartor")?)
        .arg("train")
        .arg("--recipe")
        .arg(&recipe_path)
        .stdout(Stdio::null())
        .status()
        .map_err(|e| Error::msg(e.to_string()))?;
    ensure!(status.success(), "{}: sartor train ended with {status}", recipe_path.display());
    Ok(())
}

/// What PEFT reached: the test accuracy of one run, if it was made.
fn recorded(runs: &Path, links: usize, seed: usize) -> Option<f64> {
    let text = std::fs::read_to_string(runs.join("peft.jsonl")).ok()?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut same = lines.filter(|v| v["links"] == links && v["seed"] == seed);
    same.next()?["test_accuracy"].as_f64()
}

fn theirs(runs: &Path, links: usize, seed: usize, threads: usize) -> Result<()> {
    if recorded(runs, links, seed).is_some() {
        return Ok(());
    }
    println!("PEFT, {links} links, seed {seed}");
    let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/peft_sentiment.py");
    let (links, seed, threads) = (links.to_string(), seed.to_string(), threads.to_string());
    let found = sartor_bench::last_json(
        Command::new(cache().join("venv/bin/python"))
            .arg(peer)
            .args([cache().join("assets/minilm-l6"), cache().join("assets/movie")])
            .args(["--seed", &seed, "--links", &links, "--threads", &threads]),
    )?;
    let path = runs.join("peft.jsonl");
    let mut text = std::fs::read_to_string(&path).unwrap_or_default();
    text += &format!("{found}\n");
    std::fs::write(&path, text).map_err(|e| Error::io(&path, e))
}

/// Test accuracies by seed; missing runs are left out.
fn accuracies(runs: &Path, name: &str, links: usize, seeds: usize) -> Result<Vec<f64>> {
    let mut found = Vec::new();
    for seed in 0..seeds {
        let path = folder(runs, name, links, seed).join("summary.json");
        if let Ok(text) = std::fs::read_to_string(&path) {
            let summary = serde_json::from_str(&text).map_err(|e| Error::msg(format!("{}: {e}", path.display())))?;
            found.push(number(&summary, "test.accuracy")?);
        }
    }
    Ok(found)
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// The deviation of a sample.
fn deviation(numbers: &[f64]) -> f64 {
    let mean = mean(numbers);
    let squares: f64 = numbers.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / (numbers.len() as f64 - 1.0)).sqrt()
}

fn row(what: &str, links: usize, numbers: &[f64]) -> Vec<String> {
    let all: Vec<String> = numbers.iter().map(|x| format!("{x:.3}")).collect();
    vec![
        what.to_string(),
        links.to_string(),
        format!("{:.4}", mean(numbers)),
        format!("{:.4}", deviation(numbers)),
        all.join(", "),
    ]
}

fn report(runs: &Path, seeds: usize) -> Result<()> {
    let mut rows = Vec::new();
    for (name, file, _) in MODELS {
        for links in LINKS {
            rows.push(row(&format!("sartor, `{file}`"), links, &accuracies(runs, name, links, seeds)?));
        }
    }
    for links in LINKS {
        let numbers: Vec<f64> = (0..seeds).filter_map(|seed| recorded(runs, links, seed)).collect();
        rows.push(row("PyTorch + PEFT, MiniLM-L6", links, &numbers));
    }
    let mut text = String::new();
    let _ = write!(
        text,
        "# COLA on the movie task\n\n\
         Sentences of film reviews, 1000 to train, 500 to validate, 1000 to test; two classes, accuracy after the last of {EPOCHS} epochs. \
         Adapters of rank 8 (α = 16) on query and value of every attention, a new linear classifier on the mean of the hidden \
         states, AdamW with weight decay 0.01, learning rate 1e-3 falling linearly over the run, batches of 8. One link is LoRA; \
         with three, every link takes a third of the steps. Accuracies of every seed, in order. Written by \
         `cargo run --release -p sartor-bench --bin movie`; {}.\n\n{}\n",
        processor(),
        table(&["", "links", "mean", "deviation", "seeds"], &rows)
    );
    text += "## Learning curve\n\nMean accuracy on the validation set after each epoch.\n\n";
    let (mut curves, mut lines) = (Vec::new(), Vec::new());
    for (name, file, _) in MODELS {
        for links in LINKS {
            let curve = curve(runs, name, links, seeds)?;
            let cells = curve.iter().map(|x| format!("{x:.3}"));
            lines.push([file.to_string(), links.to_string()].into_iter().chain(cells).collect());
            let model = format!("MiniLM-{}", name.to_uppercase());
            curves.push((format!("{model}, {links} link{}", if links == 1 { "" } else { "s" }), curve));
        }
    }
    text += &table(&["", "links", "1", "2", "3", "4", "5", "6"], &lines);
    text += "\n![Accuracy by epoch](cola.svg)\n";
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results");
    std::fs::create_dir_all(&docs).map_err(|e| Error::io(&docs, e))?;
    println!("{text}");
    for (name, content) in [("cola.md", text), ("cola.svg", picture(&curves))] {
        let path = docs.join(name);
        std::fs::write(&path, content).map_err(|e| Error::io(&path, e))?;
    }
    Ok(())
}

/// The mean validation accuracy after each epoch.
fn curve(runs: &Path, name: &str, links: usize, seeds: usize) -> Result<Vec<f64>> {
    let mut by_epoch = vec![Vec::new(); EPOCHS];
    for seed in 0..seeds {
        let path = folder(runs, name, links, seed).join("metrics.jsonl");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let evaluated = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["eval/accuracy"].as_f64());
        evaluated.zip(&mut by_epoch).for_each(|(accuracy, list)| list.push(accuracy));
    }
    Ok(by_epoch.iter().map(|list| mean(list)).collect())
}

/// Lines over epochs, as SVG.
fn picture(curves: &[(String, Vec<f64>)]) -> String {
    const COLOURS: [&str; 4] = ["#1b6ca8", "#7fb2d9", "#b5482a", "#e3a57f"];
    let (low, high) = (0.70, 0.84);
    let x = |epoch: usize| 60.0 + epoch as f64 * 90.0;
    let y = |accuracy: f64| 280.0 - (accuracy - low) / (high - low) * 250.0;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"700\" height=\"320\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"700\" height=\"320\" fill=\"white\"/>\n",
    );
    for step in 0..=7 {
        let accuracy = low + 0.02 * f64::from(step);
        let at = y(accuracy);
        let _ = writeln!(svg, "<line x1=\"60\" x2=\"510\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>");
        let _ = writeln!(svg, "<text x=\"50\" y=\"{:.1}\" text-anchor=\"end\">{accuracy:.2}</text>", at + 4.0);
    }
    for epoch in 0..EPOCHS {
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"300\" text-anchor=\"middle\">{}</text>", x(epoch), epoch + 1);
    }
    let _ = writeln!(svg, "<text x=\"285\" y=\"316\" text-anchor=\"middle\">epoch</text>");
    for (i, (name, curve)) in curves.iter().enumerate() {
        let points: Vec<String> = curve.iter().enumerate().map(|(e, &a)| format!("{:.1},{:.1}", x(e), y(a))).collect();
        let (points, colour, top) = (points.join(" "), COLOURS[i % COLOURS.len()], 40 + 20 * i);
        let _ = writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        let _ = writeln!(
            svg,
            "<line x1=\"530\" x2=\"550\" y1=\"{top}\" y2=\"{top}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"556\" y=\"{}\">{name}</text>",
            top + 4
        );
    }
    svg + "</svg>\n"
}
