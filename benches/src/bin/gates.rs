//! Gates: how much of a network its inputs need.
//!
//! A ResNet is trained on CIFAR-10 from random weights; then gates are attached and trained for each target, from the same backbone, and beside
//! them the backbone goes on alone for as long, which is what the gated ones are compared with. Data: `tests/assets/fetch.sh --samuel`. Every run is a folder
//! in RUNS with its recipe; what is finished is not repeated, and what was interrupted goes on from its last checkpoint. The table goes to
//! `docs/results/gates.md`; what stands there under "Notes" is kept.

use clap::Parser;
use sartor_bench::{beside, cache, number, table};
use sartor_ir::{Error, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Trains networks with gates for several targets
#[derive(Parser)]
struct Args {
    /// The folder of the runs
    #[arg(default_value = "target/gates")]
    runs: PathBuf,
    /// The network: resnet20 or resnet32
    #[arg(long, default_value = "resnet32")]
    net: String,
    /// Epochs of the backbone
    #[arg(long, default_value_t = 40)]
    backbone_epochs: usize,
    /// Epochs with gates
    #[arg(long, default_value_t = 10)]
    epochs: usize,
    /// Costs to be reached, as shares of the backbone's
    #[arg(long, value_delimiter = ',', default_value = "0.9,0.8,0.7,0.6,0.5,0.4,0.3")]
    targets: Vec<f64>,
    /// What is gated
    #[arg(long, value_delimiter = ',', default_value = "both,layers,channels")]
    gated: Vec<String>,
    /// Further keys of `[gate]`, as key=value; they become part of the runs' names
    #[arg(long, value_delimiter = ',')]
    keys: Vec<String>,
    /// Seeds
    #[arg(long, default_value_t = 1)]
    seeds: usize,
    /// Threads of a run
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Runs nothing, writes the table of what there is
    #[arg(long)]
    table: bool,
}

/// One training.
struct Run {
    name: String,
    gated: &'static str,
    target: Option<f64>,
    recipe: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runs = args.planned()?;
    let folder = args.runs.join(format!("{}-{}", args.net, args.backbone_epochs));
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    if !args.table {
        for run in &runs {
            make(&folder, run, args.threads)?;
        }
    }
    report(&args, &folder, &runs)
}

impl Args {
    /// All trainings, the backbone first.
    fn planned(&self) -> Result<Vec<Run>> {
        let assets = cache().join("assets").display().to_string();
        let model = format!("{assets}/{}-ts17.onnx", self.net);
        ensure!(["resnet20", "resnet32"].contains(&self.net.as_str()), "there is no network \"{}\"", self.net);
        let data = format!(
            "[data]\ntrain = \"{assets}/samuel/cifar-train-images-idx4\"\ntest = \"{assets}/samuel/cifar-test-images-idx4\"\n\
             mean = [0.4914, 0.4822, 0.4465]\nstd = [0.247, 0.2435, 0.2616]\nflip = true\ncrop = 4\n\
             [freeze]\ntrainable = [\"*\"]\n[train-mode]\n"
        );
        let recipe = |model: &str, name: &str, tables: &str, rate: f64, epochs: usize, seed: usize| {
            format!(
                "model = \"{model}\"\noutput = \"{name}\"\n{data}{tables}[optimizer]\nkind = \"sgd\"\nmomentum = 0.9\n\
                 learning_rate = {rate}\nweight_decay = 5e-4\nschedule = \"cosine\"\n[train]\nepochs = {epochs}\nbatch = 128\n\
                 eval_batch = 250\nseed = {seed}\ncheckpoint_every = \"epoch\"\nkeep_checkpoints = 1\n"
            )
        };
        let backbone = recipe(&model, "backbone", "", 0.1, self.backbone_epochs, 0);
        let mut all = vec![Run { name: "backbone".into(), gated: "", target: None, recipe: backbone }];
        for seed in 0..self.seeds {
            let name = format!("longer-{}-seed{seed}", self.epochs);
            let text = recipe("backbone/merged.onnx", &name, "", 0.02, self.epochs, seed);
            all.push(Run { name, gated: "none, trained on", target: None, recipe: text });
            for gated in &self.gated {
                let (label, keys) = match gated.as_str() {
                    "both" => ("layers and channels", ""),
                    "layers" => ("layers", "channels = false\n"),
                    "channels" => ("channels", "layers = false\n"),
                    other => return Err(Error::msg(format!("--gated {other}: expected both, layers or channels"))),
                };
                for &target in &self.targets {
                    let extra: String = self.keys.iter().map(|key| format!("{}\n", key.replace('=', " = "))).collect();
                    let suffix: String = self.keys.iter().map(|key| format!("-{}", key.replace('=', ""))).collect();
                    let name = format!("{gated}-{target}-{}{suffix}-seed{seed}", self.epochs);
                    let tables = format!("[gate]\ntarget = {target:?}\n{keys}{extra}");
                    let text = recipe("backbone/merged.onnx", &name, &tables, 0.02, self.epochs, seed);
                    all.push(Run { name, gated: label, target: Some(target), recipe: text });
                }
            }
        }
        Ok(all)
    }
}

/// Makes a run, unless it is done.
fn make(folder: &Path, run: &Run, threads: usize) -> Result<()> {
    let (recipe, out) = (folder.join(format!("{}.toml", run.name)), folder.join(&run.name));
    let same = std::fs::read_to_string(&recipe).is_ok_and(|text| text == run.recipe);
    if same && out.join("summary.json").exists() {
        return Ok(());
    }
    std::fs::write(&recipe, &run.recipe).map_err(|e| Error::io(&recipe, e))?;
    let how = if same && out.join("checkpoints").exists() { "--resume" } else { "--force" };
    let status = Command::new(beside("sartor")?)
        .args(["train", "--recipe"])
        .arg(&recipe)
        .args([how, "--set", &format!("train.threads={threads}")])
        .status()
        .map_err(|e| Error::msg(e.to_string()))?;
    ensure!(status.success(), "{}: {status}", run.name);
    println!("{}: finished", run.name);
    Ok(())
}

fn summary(folder: &Path, run: &Run) -> Option<Value> {
    let recipe = std::fs::read_to_string(folder.join(format!("{}.toml", run.name))).ok()?;
    let text = std::fs::read_to_string(folder.join(&run.name).join("summary.json")).ok()?;
    (recipe == run.recipe).then(|| serde_json::from_str(&text).ok())?
}

fn report(args: &Args, folder: &Path, runs: &[Run]) -> Result<()> {
    let mut rows = Vec::new();
    for run in runs {
        let Some(found) = summary(folder, run) else { continue };
        let flops = found["test.flops"].as_f64().unwrap_or(1.0);
        rows.push(vec![
            run.name.clone(),
            run.gated.to_string(),
            run.target.map_or(String::new(), |t| t.to_string()),
            format!("{:.4}", number(&found, "test.accuracy")?),
            format!("{flops:.3}"),
            format!("{:.2} ×", 1.0 / flops),
            found["test.flops_variation"].as_f64().map_or(String::new(), |v| format!("{v:.3}")),
            format!("{:.0}", number(&found, "seconds")?),
        ]);
    }
    let head =
        ["run", "gated", "target", "test accuracy", "cost", "fewer operations", "variation of the cost", "seconds"];
    let text = format!(
        "# Gates on CIFAR-10\n\n{}, {} epochs from random weights (SGD with momentum 0.9, rate 0.1 falling as a cosine, weight decay 5e-4, batches of \
         128; images mirrored and moved by up to 4 pixels), then {} epochs at rate 0.02 with gates. Cost: the mean number of floating-point operations of a test \
         image, gate networks included, as a share of the backbone's; variation: its standard deviation over the test images divided by that \
         mean. Command: `target/release/gates RUNS --net {} --backbone-epochs {} --epochs {}`.\n\n{}",
        args.net,
        args.backbone_epochs,
        args.epochs,
        args.net,
        args.backbone_epochs,
        args.epochs,
        table(&head, &rows)
    );
    println!("\n{text}");
    // What people wrote below the tables stays.
    let path = "docs/results/gates.md";
    let before = std::fs::read_to_string(path).unwrap_or_default();
    let notes = before.find("\n## Notes").map_or("", |at| &before[at..]);
    std::fs::write(path, format!("{text}{notes}")).map_err(|e| Error::msg(e.to_string()))
}
