//! `versus infer`: inference at batch 1 on one thread beside ONNX Runtime and tract, by `sartor bench`.

use crate::Args;
use sartor_bench::{Series, beside, cache, locked_version, number, output_json, short, table};
use sartor_ir::{Error, Result};
use std::path::PathBuf;
use std::process::Command;

/// A model, and numbers for its symbolic dimensions or a file with its inputs.
struct Workload {
    name: &'static str,
    what: &'static str,
    model: &'static str,
    inputs: Inputs,
}

enum Inputs {
    Drawn(&'static [&'static str]),
    File(&'static str),
}

const IMAGE: Inputs = Inputs::Drawn(&["batch=1"]);
const TOKENS: Inputs = Inputs::Drawn(&["batch=1", "sequence=128"]);
const FEW_TOKENS: Inputs = Inputs::Drawn(&["batch=1", "sequence=16"]);
const LINE: Inputs = Inputs::File("ppocr_cls_input.npz");

const WORKLOADS: &[Workload] = &[
    Workload { name: "resnet50", what: "ResNet-50", model: "resnet50-ts17.onnx", inputs: IMAGE },
    Workload { name: "mobilenet-v2", what: "MobileNetV2", model: "mobilenetv2-ts17.onnx", inputs: IMAGE },
    Workload { name: "ppocr-cls", what: "PP-OCR classifier, 48 × 192", model: "ppocr_cls.onnx", inputs: LINE },
    Workload { name: "minilm", what: "MiniLM-L6, 1 × 128", model: "minilm-l6-ts17.onnx", inputs: TOKENS },
    Workload { name: "minilm-short", what: "MiniLM-L6, 1 × 16", model: "minilm-l6-ts17.onnx", inputs: FEW_TOKENS },
    Workload { name: "bert-base", what: "BERT-base, 1 × 128", model: "bert-base.onnx", inputs: TOKENS },
    Workload { name: "smollm2", what: "SmolLM2-135M, 1 × 128", model: "smollm2-135m-ts17.onnx", inputs: TOKENS },
];

/// The peers as `sartor bench` calls them.
const PEERS: [&str; 2] = ["ort", "tract"];

/// Measures.
pub fn run(args: &Args) -> Result<()> {
    let library = ort_library()?;
    let version = library.to_string_lossy().rsplit(".so.").next().unwrap_or_default().to_string();
    let names = [format!("ONNX Runtime {version}"), format!("tract {}", locked_version("tract-onnx"))];
    let head = ["model", "", "ms, median", "spread", "its time / sartor's"];
    let mut rows = Vec::new();
    for workload in args.select(WORKLOADS, |w| w.name)? {
        rows.extend(measure(args, workload, &library, &names)?);
        println!("{}", table(&head, &rows));
    }
    let body = format!(
        "{} rounds of {} runs, in which all take turns; f32, one thread. `sartor bench` measures.\n\n{}",
        args.rounds,
        args.steps,
        table(&head, &rows)
    );
    args.record("inference", "Inference beside ONNX Runtime and tract", &body)
}

/// The rows of one model: ours, then the peers'.
fn measure(args: &Args, workload: &Workload, library: &PathBuf, names: &[String; 2]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new(beside("sartor")?);
    let asset = |name: &str| cache().join("assets").join(name);
    command.arg("bench").arg(asset(workload.model));
    match workload.inputs {
        Inputs::Drawn(dims) => command.args(dims.iter().flat_map(|dim| ["--dim", dim])),
        Inputs::File(file) => command.arg("--inputs").arg(asset(file)),
    };
    command.args(["--threads", "1", "--json", "--against", &PEERS.join(","), "--runs", &args.steps.to_string()]);
    command.arg("--ort-library").arg(library);
    let (mut ours, mut theirs) = (Series::default(), [Series::default(), Series::default()]);
    let mut refused = [None, None];
    for round in 0..args.rounds {
        eprintln!("{} {}/{}", workload.name, round + 1, args.rounds);
        let found = match output_json(&mut command) {
            Ok(found) => found,
            Err(error) => return Ok(vec![not_run(workload, "sartor", &error.to_string())]),
        };
        ours.0.push(number(&found, "median_ms")?);
        for (peer, name) in PEERS.iter().enumerate() {
            match found[name]["not_run"].as_str() {
                Some(reason) => refused[peer] = Some(reason.to_string()),
                None => theirs[peer].0.push(number(&found[name], "median_ms")?),
            }
        }
    }
    let mut rows = vec![row(workload, "sartor", &ours, &ours)];
    for (peer, name) in names.iter().enumerate() {
        rows.push(match &refused[peer] {
            Some(reason) => not_run(workload, name, reason),
            None => row(workload, name, &theirs[peer], &ours),
        });
    }
    Ok(rows)
}

fn row(workload: &Workload, name: &str, times: &Series, ours: &Series) -> Vec<String> {
    let ratio = short(times.median() / ours.median());
    vec![workload.what.to_string(), name.to_string(), short(times.median()), times.spread(), ratio]
}

fn not_run(workload: &Workload, name: &str, reason: &str) -> Vec<String> {
    let reason = reason.replace('|', "/").replace('\n', " ");
    vec![workload.what.to_string(), name.to_string(), format!("not run: {reason}"), String::new(), String::new()]
}

/// The library in the Python package `onnxruntime` of the peers' environment.
fn ort_library() -> Result<PathBuf> {
    let missing = || Error::msg("there is no libonnxruntime.so in the peers' environment: tests/assets/venv.sh");
    let pythons = std::fs::read_dir(cache().join("venv/lib")).map_err(|_| missing())?;
    let folders = pythons.flatten().map(|python| python.path().join("site-packages/onnxruntime/capi"));
    let files = folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let mut libraries = files.filter(|file| file.file_name().to_string_lossy().starts_with("libonnxruntime.so."));
    libraries.next().map(|file| file.path()).ok_or_else(missing)
}
