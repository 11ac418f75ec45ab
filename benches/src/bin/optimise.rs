//! Import, optimise and write a model of the size of BERT-base: `optimise [ROUNDS]`.
//!
//! Times the command `sartor optimize` on `bert-base.onnx` (438 MB, random weights, made by `tests/assets/fetch.sh
//! --big`), the start of the process included. The memory is the peak resident set, pages of the mapped file included.

use sartor_bench::{Series, beside, cache, record, short, table};
use sartor_ir::{Error, Result, ensure};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(7);
    let model = cache().join("assets/bert-base.onnx");
    ensure!(model.exists(), "{} is missing: tests/assets/fetch.sh --big", model.display());
    let out = std::env::temp_dir().join(format!("sartor-bench-{}.onnx", std::process::id()));
    let (mut seconds, mut peaks) = (Series::default(), Series::default());
    for _ in 0..rounds {
        let start = Instant::now();
        let mut child = Command::new(beside("sartor")?)
            .arg("optimize")
            .arg(&model)
            .arg("-o")
            .arg(&out)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Error::msg(e.to_string()))?;
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0.0;
        let code = loop {
            peak = high_water(&status).unwrap_or(peak);
            match child.try_wait().map_err(|e| Error::msg(e.to_string()))? {
                Some(code) => break code,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        seconds.0.push(start.elapsed().as_secs_f64());
        peaks.0.push(peak);
        ensure!(code.success(), "sartor optimize failed: {code}");
    }
    let size = std::fs::metadata(&out).map_err(|e| Error::io(&out, e))?.len();
    std::fs::remove_file(&out).map_err(|e| Error::io(&out, e))?;
    let rows = [
        vec!["seconds".to_string(), short(seconds.median()), seconds.spread()],
        vec!["peak resident memory, MiB".to_string(), short(peaks.median()), peaks.spread()],
    ];
    let body = format!(
        "`sartor optimize bert-base.onnx -o out.onnx`, {rounds} rounds; {} MB in, {} MB out.\n\n{}",
        std::fs::metadata(&model).map_err(|e| Error::io(&model, e))?.len() / 1_000_000,
        size / 1_000_000,
        table(&["", "median", "spread"], &rows)
    );
    record("optimise", "Import, optimise and write BERT-base", &body)
}

/// The largest resident set so far, in MiB.
fn high_water(status: &str) -> Option<f64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find(|l| l.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}
