//! `versus train`: training steps beside PyTorch (with PEFT for adapters) and ONNX Runtime for training.

use crate::Args;
use sartor_bench::{Series, beside, cache, last_json, number, peer_script, short, table};
use sartor_ir::{Error, Result};
use std::process::Command;

/// One workload; our step and the peers' are the same but for the random numbers in the batch.
struct Workload {
    name: &'static str,
    what: &'static str,
    recipe: &'static str,
    model: &'static str,
    batch: usize,
    sequence: usize,
    threads: usize,
    peers: &'static [Peer],
}

enum Peer {
    /// `torch_step.py` with the workload's name.
    Torch,
    /// The same with `--channels-last`.
    TorchChannelsLast,
    /// `ort_step.py` with this model.
    OrtTraining(&'static str),
}

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "minilm-lora",
        what: "MiniLM-L6, LoRA",
        recipe: "lora-classifier",
        model: "minilm-l6-classifier-ts17.onnx",
        batch: 16,
        sequence: 128,
        threads: 2,
        peers: &[Peer::Torch],
    },
    Workload {
        name: "bert-base-lora",
        what: "BERT-base, LoRA",
        recipe: "lora-classifier",
        model: "bert-base-classifier-ts14.onnx",
        batch: 8,
        sequence: 128,
        threads: 1,
        peers: &[Peer::Torch, Peer::OrtTraining("bert-base-classifier-lora-ts14.onnx")],
    },
    Workload {
        name: "smollm2-lora",
        what: "SmolLM2-135M, LoRA",
        recipe: "lora-causal-lm",
        model: "smollm2-135m-ts17.onnx",
        batch: 4,
        sequence: 128,
        threads: 2,
        peers: &[Peer::Torch],
    },
    image("resnet20", "ResNet-20, all parameters", "resnet20-ts17.onnx", 128),
    image("resnet32", "ResNet-32, all parameters", "resnet32-ts17.onnx", 128),
    image("mobilenet-v2", "MobileNetV2, all parameters", "mobilenetv2-ts17.onnx", 16),
];

const fn image(name: &'static str, what: &'static str, model: &'static str, batch: usize) -> Workload {
    let peers = &[Peer::Torch, Peer::TorchChannelsLast];
    Workload { name, what, recipe: "images", model, batch, sequence: 0, threads: 2, peers }
}

/// Who takes part in a workload, and what was found.
struct Side {
    name: String,
    command: Command,
    speed: Series,
    peak: Series,
    /// Why it takes no further part.
    failed: Option<String>,
}

/// Measures.
pub fn run(args: &Args) -> Result<()> {
    let head = ["workload", "", "samples/s", "spread", "sartor's speed / its", "peak MiB", "sartor's memory / its"];
    let (mut rows, mut scaling) = (Vec::new(), Vec::new());
    for workload in args.select(WORKLOADS, |w| w.name)? {
        let sides = measure(args, workload)?;
        rows.extend(sides[..sides.len() - 1].iter().map(|side| row(workload, side, &sides[0])));
        scaling.push(scaling_row(workload, &sides));
        println!("{}", table(&head, &rows));
    }
    let body = format!(
        "{} rounds by turns, {} steps each, f32. LoRA: rank 8 on query and value, AdamW, tokens of random ids. All \
         parameters: SGD with momentum, random images. Memory is the peak resident set, of sartor from the start of the \
         process, of the others from the first step.\n\n{}\nsartor on one and on two threads, samples/s:\n\n{}",
        args.rounds,
        args.steps,
        table(&head, &rows),
        table(&["workload", "1 thread", "2 threads", "factor"], &scaling)
    );
    args.record("training", "Training steps beside PyTorch and ONNX Runtime", &body)
}

/// We, the peers, and last we on the other number of threads.
fn measure(args: &Args, workload: &Workload) -> Result<Vec<Side>> {
    let mut sides = vec![our_side(args, workload, workload.threads)?];
    for peer in workload.peers {
        sides.push(peer_side(args, workload, peer)?);
    }
    sides.push(our_side(args, workload, 3 - workload.threads)?);
    for round in 0..args.rounds {
        for side in sides.iter_mut().filter(|side| side.failed.is_none()) {
            eprintln!("{} {}/{}: {}", workload.name, round + 1, args.rounds, side.name);
            side.take_turn();
        }
    }
    Ok(sides)
}

impl Side {
    fn new(name: &str, command: Command) -> Side {
        Side { name: name.to_string(), command, speed: Series::default(), peak: Series::default(), failed: None }
    }
    fn take_turn(&mut self) {
        let found = last_json(&mut self.command);
        let numbers = found.and_then(|found| {
            if let Some(peer) = found["peer"].as_str() {
                let layout = found["layout"].as_str().filter(|&layout| layout != "contiguous");
                self.name = [Some(peer), layout].into_iter().flatten().collect::<Vec<_>>().join(", ");
            }
            Ok((number(&found, "samples_per_s")?, number(&found, "peak_mib")?))
        });
        match numbers {
            Ok((speed, peak)) => {
                self.speed.0.push(speed);
                self.peak.0.push(peak);
            }
            Err(error) => {
                eprintln!("{error}");
                self.failed = Some(last_line(&error));
            }
        }
    }
}

/// What a program said last, which is its reason.
fn last_line(error: &Error) -> String {
    let text = error.to_string();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().replace('|', "/")
}

fn our_side(args: &Args, workload: &Workload, threads: usize) -> Result<Side> {
    let mut command = Command::new(beside("step")?);
    command.arg(workload.recipe).arg(cache().join("assets").join(workload.model));
    add_sizes(&mut command, args, workload, threads);
    Ok(Side::new("sartor", command))
}

fn peer_side(args: &Args, workload: &Workload, peer: &Peer) -> Result<Side> {
    let (mut command, name) = match peer {
        Peer::Torch | Peer::TorchChannelsLast => {
            let mut command = peer_script("venv", "torch_step.py")?;
            command.arg(workload.name).arg(cache().join("assets"));
            command.args(matches!(peer, Peer::TorchChannelsLast).then_some("--channels-last"));
            (command, "PyTorch")
        }
        Peer::OrtTraining(model) => {
            let mut command = peer_script("venv-ort-training", "ort_step.py")?;
            command.arg(cache().join("assets").join(model));
            (command, "onnxruntime-training")
        }
    };
    add_sizes(&mut command, args, workload, workload.threads);
    Ok(Side::new(name, command))
}

fn add_sizes(command: &mut Command, args: &Args, workload: &Workload, threads: usize) {
    let sizes = [
        ("--batch", workload.batch),
        ("--sequence", workload.sequence),
        ("--threads", threads),
        ("--steps", args.steps as usize),
    ];
    sizes.iter().for_each(|(name, n)| {
        command.arg(name).arg(n.to_string());
    });
}

fn row(workload: &Workload, side: &Side, ours: &Side) -> Vec<String> {
    let size = match workload.sequence {
        0 => format!("batch {}", workload.batch),
        sequence => format!("{} × {sequence}", workload.batch),
    };
    let mut row = vec![format!("{}, {size}, {} threads", workload.what, workload.threads), side.name.clone()];
    row.extend(match &side.failed {
        Some(reason) => vec![format!("not run: {reason}"), String::new(), String::new(), String::new(), String::new()],
        None => vec![
            short(side.speed.median()),
            side.speed.spread(),
            short(ours.speed.median() / side.speed.median()),
            short(side.peak.median()),
            short(ours.peak.median() / side.peak.median()),
        ],
    });
    row
}

fn scaling_row(workload: &Workload, sides: &[Side]) -> Vec<String> {
    let (here, there) = (sides[0].speed.median(), sides[sides.len() - 1].speed.median());
    let (one, two) = if workload.threads == 1 { (here, there) } else { (there, here) };
    vec![workload.what.to_string(), short(one), short(two), short(two / one)]
}
