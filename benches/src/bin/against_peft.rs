//! A LoRA training step beside PyTorch + PEFT: `against_peft [ROUNDS] [BATCH] [SEQUENCE] [THREADS]`.
//!
//! MiniLM-L6 with a classifier on the first token, rank 8 on query and value, AdamW, f32; ours also with a classifier on the mean of all
//! tokens, where no row of the last layer can be left out. Both run in processes of their own, by turns, so that a busy
//! machine disturbs both alike; each round gives the median over its steps. Needs `tests/run.sh` (or
//! `tests/assets/{venv,fetch}.sh`) to have run once, and `cargo build --release --workspace`.

use sartor_bench::{Series, beside, cache, last_json, number, record, short, table};
use sartor_ir::Result;
use std::path::Path;
use std::process::Command;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).cloned().unwrap_or(default.to_string());
    let (batch, sequence, threads) = (arg(1, "16"), arg(2, "128"), arg(3, "2"));
    let rounds: usize = arg(0, "5").parse().unwrap_or(5);
    let (mut ours, mut theirs) = ([Series::default(), Series::default()], [Series::default(), Series::default()]);
    let mut pooled = Series::default();
    let mut torch = String::new();
    for _ in 0..rounds {
        let step = |model: &str| -> Result<Command> {
            let mut own = Command::new(beside("step")?);
            own.arg(cache().join("assets").join(model)).args([&batch, &sequence, &threads]);
            Ok(own)
        };
        let mut own = step("minilm-l6-classifier-ts17.onnx")?;
        let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/peft_step.py");
        let mut other = Command::new(cache().join("venv/bin/python"));
        other.arg(peer).arg(cache().join("assets/minilm-l6"));
        other.args(["--batch", &batch, "--sequence", &sequence, "--threads", &threads]);
        for (command, series) in [(&mut own, &mut ours), (&mut other, &mut theirs)] {
            let found = last_json(command)?;
            series[0].0.push(number(&found, "samples_per_s")?);
            series[1].0.push(number(&found, "peak_mib")?);
            torch = found["torch"].as_str().map_or(torch, str::to_string);
        }
        let found = last_json(&mut step("minilm-l6-ts17.onnx")?)?;
        pooled.0.push(number(&found, "samples_per_s")?);
    }
    let row = |a: &Series, b: &Series, name: &str| {
        vec![
            name.to_string(),
            short(a.median()),
            a.spread(),
            short(b.median()),
            b.spread(),
            format!("{:.2}", a.median() / b.median()),
        ]
    };
    let head = ["", "sartor, median", "spread", "PyTorch + PEFT, median", "spread", "ratio"];
    let rows = [
        row(&ours[0], &theirs[0], "samples/s"),
        row(&pooled, &theirs[0], "samples/s, ours with a mean over all tokens"),
        row(&ours[1], &theirs[1], "peak resident memory, MiB"),
    ];
    let body = format!(
        "MiniLM-L6, a classifier on the first token, LoRA of rank 8 on query and value, AdamW, batch {batch} × {sequence} tokens, f32, {threads} threads, \
         {rounds} rounds by turns; PyTorch {torch}.\n\n{}",
        table(&head, &rows)
    );
    record("lora_step", "A LoRA step against PyTorch + PEFT", &body)
}
