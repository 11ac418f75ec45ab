//! `versus optimise`: import, optimise and write BERT-base, beside the optimisers that Python has.
//!
//! Ours is the command `sartor optimize`, the start of the process included; the peers' time begins after Python has
//! started and imported them. The memory is the peak resident set, pages of the mapped file included.

use crate::Args;
use sartor_bench::{Series, beside, cache, last_json, number, peer_script, run_watched, short, table};
use sartor_ir::{Result, ensure};
use std::path::Path;
use std::process::Command;

/// Name, what it is, and the file; `tests/assets/fetch.sh --bench` makes both.
const MODELS: &[(&str, &str, &str)] = &[
    ("dynamic", "BERT-base, dynamic shapes", "bert-base.onnx"),
    ("static", "BERT-base, 1 × 128", "bert-base-static.onnx"),
];

const PEERS: [&str; 3] = ["onnxscript", "onnxsim", "onnxslim"];

/// Who takes part, and what was found.
#[derive(Default)]
struct Side {
    name: String,
    seconds: Series,
    peak: Series,
    nodes: f64,
    /// Why it takes no further part.
    failed: Option<String>,
}

/// Measures.
pub fn run(args: &Args) -> Result<()> {
    let head = ["model", "", "seconds", "spread", "its time / sartor's", "peak MiB", "nodes after"];
    let mut rows = Vec::new();
    let mut before = 0.0;
    for (name, what, file) in args.select(MODELS, |model| model.0)? {
        let model = cache().join("assets").join(file);
        ensure!(model.exists(), "{} is missing: tests/assets/fetch.sh --bench", model.display());
        before = count(&model)?;
        let sides = measure(args, name, &model)?;
        rows.extend(sides.iter().map(|side| row(what, side, &sides[0])));
        println!("{}", table(&head, &rows));
    }
    let body = format!(
        "438 MB, {before} nodes (`Constant` not counted, here and below), {} rounds by turns; from the file to having \
         written the file. Of sartor the start of the process counts, of the others not that of Python and its imports.\n\n{}",
        args.rounds,
        table(&head, &rows)
    );
    args.record("optimise", "Import, optimise and write BERT-base", &body)
}

fn measure(args: &Args, name: &str, model: &Path) -> Result<Vec<Side>> {
    let out = std::env::temp_dir().join(format!("sartor-bench-{}.onnx", std::process::id()));
    let mut sides: Vec<Side> =
        ["sartor"].iter().chain(&PEERS).map(|side| Side { name: side.to_string(), ..Side::default() }).collect();
    for round in 0..args.rounds {
        for (place, side) in sides.iter_mut().enumerate().filter(|(_, side)| side.failed.is_none()) {
            eprintln!("{name} {}/{}: {}", round + 1, args.rounds, side.name);
            std::fs::remove_file(&out).ok();
            let turn = match place {
                0 => side.optimise_here(model, &out),
                _ => side.optimise_there(PEERS[place - 1], model, &out),
            };
            side.failed = turn.err().map(|error| error.to_string());
        }
    }
    std::fs::remove_file(&out).ok();
    Ok(sides)
}

impl Side {
    fn optimise_here(&mut self, model: &Path, out: &Path) -> Result<()> {
        let mut command = Command::new(beside("sartor")?);
        command.args(["optimize", "--quiet"]).arg(model).arg("-o").arg(out);
        let (seconds, peak) = run_watched(&mut command)?;
        self.seconds.0.push(seconds);
        self.peak.0.push(peak);
        self.nodes = count(out)?;
        Ok(())
    }
    fn optimise_there(&mut self, tool: &str, model: &Path, out: &Path) -> Result<()> {
        let found = last_json(python()?.arg(tool).arg(model).arg(out))?;
        self.name = found["peer"].as_str().unwrap_or(tool).to_string();
        self.seconds.0.push(number(&found, "seconds")?);
        self.peak.0.push(number(&found, "peak_mib")?);
        self.nodes = number(&found, "nodes")?;
        Ok(())
    }
}

/// The number of nodes of a file, as the peers count.
fn count(file: &Path) -> Result<f64> {
    number(&last_json(python()?.arg("count").arg(file))?, "nodes")
}

fn python() -> Result<Command> {
    peer_script("venv", "optimise.py")
}

fn row(what: &str, side: &Side, ours: &Side) -> Vec<String> {
    let mut row = vec![what.to_string(), side.name.clone()];
    row.extend(match &side.failed {
        Some(reason) => {
            vec![format!("not run: {}", reason.replace('|', "/").replace('\n', " ")), String::new(), String::new()]
        }
        None => vec![
            short(side.seconds.median()),
            side.seconds.spread(),
            short(side.seconds.median() / ours.seconds.median()),
        ],
    });
    row.extend([short(side.peak.median()), short(side.nodes)]);
    row
}
