//! What a step with experts costs beside one without, by turns in one run: `samuel --cost ROUNDS`.

use sartor_bench::{Series, beside, cache, last_json, number, record, short, table};
use sartor_ir::{Result, ensure};
use std::process::Command;

/// A title, and the arguments of `step` besides the model.
const MODELS: [(&str, &str, &[&str]); 3] = [
    (
        "MiniLM-L6, adapters in all six layers, 16 × 128 tokens",
        "minilm-l6-classifier-ts17.onnx",
        &["lora-classifier", "--batch", "16", "--sequence", "128"],
    ),
    (
        "MiniLM-L6, adapters in the upper three layers, 16 × 128 tokens",
        "minilm-l6-classifier-ts17.onnx",
        &["lora-classifier", "--batch", "16", "--sequence", "128", "--targets", UPPER],
    ),
    ("ResNet-20, all parameters, batch 128", "resnet20-ts17.onnx", &["images", "--batch", "128"]),
];
const UPPER: &str = "*layer.3*query*,*layer.3*value*,*layer.4*query*,*layer.4*value*,*layer.5*query*,*layer.5*value*";
const MODES: [(&str, &[&str]); 3] = [
    ("without experts", &[]),
    ("5 experts, `shared`", &["--samuel", "shared"]),
    ("5 experts, `independent`", &["--samuel", "independent"]),
];

/// Measures, and records the table.
pub fn measure(rounds: usize, threads: usize) -> Result<()> {
    ensure!(rounds > 0, "--cost is 0, expected a number of rounds");
    let mut body = String::new();
    for (title, model, step) in MODELS {
        let mut times = vec![Series::default(); MODES.len()];
        let mut memory = vec![0.0; MODES.len()];
        for round in 0..rounds {
            for (at, (mode, options)) in MODES.iter().enumerate() {
                let mut command = Command::new(beside("step")?);
                command.args([step[0]]).arg(cache().join("assets").join(model)).args(&step[1..]).args(*options);
                command.args(["--steps", "5", "--threads", &threads.to_string()]);
                let found = last_json(&mut command)?;
                times[at].0.push(number(&found, "ms_per_step")?);
                memory[at] = number(&found, "planned_mib")?;
                println!("{title}, round {}, {mode}: {:.1} ms", round + 1, times[at].0[round]);
            }
        }
        let row = |at: usize| {
            let ratios = times[at].0.iter().zip(&times[0].0).map(|(own, plain)| own / plain);
            vec![
                MODES[at].0.to_string(),
                short(times[at].median()),
                times[at].spread(),
                short(Series(ratios.collect()).median()),
                short(memory[at]),
            ]
        };
        let rows: Vec<Vec<String>> = (0..MODES.len()).map(row).collect();
        body +=
            &format!("\n## {title}\n\n{}", table(&["", "ms a step", "least … most", "times", "planned MiB"], &rows));
    }
    let title =
        format!("Steps with experts, {threads} thread(s), medians of {rounds} rounds by turns (ratios: of each round)");
    record("samuel", &title, &body)
}
