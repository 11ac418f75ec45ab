//! Gates: how much of a network its inputs need.
//!
//! A ResNet is trained on CIFAR-10 from random weights; then gates are attached and trained for each target, from the same backbone, and beside
//! them the backbone goes on alone for as long, which is what the gated ones are compared with.
//!
//! With `--then` every gated network goes on, for as many epochs again (or `--then-epochs`): `more`, as before; `tuned`, with gate networks that are not trained any more, so that
//! the others learn what these decide; `boosted`, the same with factors for open gates; `trimmed`, the same without what at most a tenth of the images of the last evaluation needed; and `frozen`, with every gate frozen to one state for all inputs (what was open for at most a certain share of the images of the
//! last evaluation is shut, the share chosen so that what is left costs what the gated network costs in the mean). The difference between the best of the others and
//! the last is what it is worth to look at the input. With `--distil` all of them learn from what the backbone says (temperature 4, labels with a share of 0.1). With `--narrower` the network is trained with fewer channels
//! everywhere, as long as backbone and gates together. `--net wide-resnet20` has twice as many everywhere, also its backbone.
//!
//! `--net mobilenetv2` takes ImageNet's weights instead, for images of 96 × 96, and trains a classifier and adapters of rank 8 on all 1 × 1 convolutions (`backbone`); then gates with a code of one
//! number per block, and new adapters of rank 1, while all else stays as it is (`longer`: adapters alone). Data: `tests/assets/fetch.sh --samuel`. Every run is a folder
//! in RUNS with its recipe; what is finished is not repeated, and what was interrupted goes on from its last checkpoint. The table goes to
//! `docs/results/gates-curves.md`; what the runs say stands in `docs/results/gates.md`.

use clap::Parser;
use sartor_bench::{beside, cache, number, table};
use sartor_ir::rng::Stream;
use sartor_ir::{DType, Error, Model, Result, Tensor, Type, ensure, infer, onnx};
use sartor_passes::bind::Bind;
use sartor_passes::gate::{Gate, Record, cost};
use sartor_passes::harden::{Harden, Kind};
use sartor_passes::{Driver, Pass, Registry, pipelines};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Trains networks with gates for several targets
#[derive(Parser)]
struct Args {
    /// The folder of the runs
    #[arg(default_value = "target/gates")]
    runs: PathBuf,
    /// The network: resnet20, resnet32, wide-resnet20 (twice the channels) or mobilenetv2
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
    /// Whether the run for each target begins where the one for the target before ended, instead of at the backbone
    #[arg(long)]
    chained: bool,
    /// How gated networks go on: more, tuned, boosted, trimmed, frozen
    #[arg(long, value_delimiter = ',')]
    then: Vec<String>,
    /// For how many epochs; if left out, as many as with gates
    #[arg(long)]
    then_epochs: Option<usize>,
    /// At which learning rate they begin; if left out, at that with gates
    #[arg(long)]
    then_rate: Option<f64>,
    /// Whether they learn from what the backbone says then, and from labels with a share of 0.1
    #[arg(long)]
    distil: bool,
    /// Widths of ungated networks, as shares of the network's, trained as long as backbone and gates together
    #[arg(long, value_delimiter = ',')]
    narrower: Vec<f64>,
    /// A trained network to begin with instead of the one that is trained here
    #[arg(long)]
    backbone: Option<PathBuf>,
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
#[derive(Clone)]
struct Run {
    name: String,
    gated: &'static str,
    target: Option<f64>,
    recipe: String,
    /// Where its network comes from, if that has to be made first.
    made: Option<Made>,
}

/// A network that is made before it is trained.
#[derive(Clone)]
enum Made {
    /// That of a gated run, its gates frozen.
    Frozen(String),
    /// That of a gated run, with factors for its gates.
    Boosted(String),
    /// That of a gated run, without what hardly any image needed.
    Trimmed(String),
    /// The file's, with so many times its channels and random weights; what it costs is told as a share of the second number's.
    Width(f64, f64, PathBuf),
    /// The file's, for images of 96 × 96.
    Small(PathBuf),
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

/// What a training has of its own in its recipe.
#[derive(Clone, Copy)]
struct Training<'a> {
    model: &'a str,
    /// Tables besides those that all have.
    tables: &'a str,
    trainable: &'a str,
    rate: f64,
    epochs: usize,
    seed: usize,
}

impl Training<'_> {
    fn recipe(&self, name: &str) -> String {
        let &Training { model, tables, trainable, rate, epochs, seed } = self;
        format!(
            "model = \"{model}\"\noutput = \"{name}\"\n{}\
             mean = [0.4914, 0.4822, 0.4465]\nstd = [0.247, 0.2435, 0.2616]\nflip = true\ncrop = 4\n\
             [freeze]\ntrainable = [{trainable}]\n[train-mode]\n{tables}[optimizer]\nkind = \"sgd\"\nmomentum = 0.9\n\
             learning_rate = {rate}\nweight_decay = 5e-4\nschedule = \"cosine\"\n[train]\nepochs = {epochs}\nbatch = 128\n\
             eval_batch = 250\nseed = {seed}\ncheckpoint_every = \"epoch\"\nkeep_checkpoints = 1\n",
            data()
        )
    }

    /// The same of a network whose weights stay as they are, but for adapters of this rank.
    fn adapted(&self, name: &str, rank: usize) -> String {
        let &Training { model, tables, rate, epochs, seed, .. } = self;
        format!(
            "model = \"{model}\"\noutput = \"{name}\"\n{}\
             mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\nresize = [96, 96]\nflip = true\n{tables}[cola]\n\
             rank = {rank}\nlinks = 1\ntargets = [{POINTWISE}]\n[optimizer]\nkind = \"adamw\"\nlearning_rate = {rate}\nschedule = \"cosine\"\n\
             [train]\nepochs = {epochs}\nbatch = 64\neval_batch = 125\nseed = {seed}\ncheckpoint_every = \"epoch\"\nkeep_checkpoints = 1\n",
            data()
        )
    }
}

/// The start of `[data]`: CIFAR-10.
fn data() -> String {
    let assets = cache().join("assets").display().to_string();
    let file = |part: &str| format!("{part} = \"{assets}/samuel/cifar-{part}-images-idx4\"\n");
    format!("[data]\n{}{}", file("train"), file("test"))
}

/// What at most this share of the images needs is cut off from trimmed networks.
const RARE: f64 = 0.1;
/// All parameters, and all but those of gates.
const ALL: &str = "\"*\"";
const NO_GATES: &str = "\"conv*\", \"bn*\", \"layer*\", \"fc*\"";
/// MobileNetV2's convolutions of single pixels.
const POINTWISE: &str = "\"*/conv.0/conv.0.0/Conv\", \"*/conv.2/Conv\", \"*/features.18.0/Conv\"";

impl Args {
    /// All trainings, the backbone first.
    fn planned(&self) -> Result<Vec<Run>> {
        let about_then = self.distil || self.then_epochs.is_some() || self.then_rate.is_some();
        let refused = "--distil, --then-epochs and --then-rate say how runs of --then go on";
        ensure!(!self.then.is_empty() || !about_then, "{refused}");
        if self.net == "mobilenetv2" {
            return self.planned_with_adapters();
        }
        ensure!(
            ["resnet20", "resnet32", "wide-resnet20"].contains(&self.net.as_str()),
            "there is no network \"{}\"",
            self.net
        );
        let (factor, plain) = match self.net.strip_prefix("wide-") {
            Some(plain) => (2.0, plain),
            None => (1.0, self.net.as_str()),
        };
        let file = cache().join("assets").join(format!("{plain}-ts17.onnx"));
        let from_nothing = |model: &str, name: &str, epochs: usize| {
            Training { model, tables: "", trainable: ALL, rate: 0.1, epochs, seed: 0 }.recipe(name)
        };
        let (start, mut all) = match &self.backbone {
            // Recipes lie in the folder of the runs.
            Some(path) => {
                (std::path::absolute(path).map_err(|e| Error::io(path, e))?.display().to_string(), Vec::new())
            }
            None => {
                let (model, made) = match factor {
                    1.0 => (file.display().to_string(), None),
                    _ => ("backbone.onnx".to_string(), Some(Made::Width(factor, factor, file.clone()))),
                };
                let text = from_nothing(&model, "backbone", self.backbone_epochs);
                let run = Run { name: "backbone".into(), gated: "", target: None, recipe: text, made };
                ("backbone/merged.onnx".to_string(), vec![run])
            }
        };
        for seed in 0..self.seeds {
            for gated in &self.gated {
                let mut last = None;
                for &target in &self.targets {
                    let runs = self.gated(&start, last.as_deref(), gated, target, seed)?;
                    last = runs.first().map(|run| run.name.clone()).filter(|_| self.chained);
                    all.extend(runs);
                }
            }
            let name = format!("longer-{}-seed{seed}", self.epochs);
            let text = self.going_on(&start, "", ALL, seed).recipe(&name);
            all.push(Run { name, gated: "none, trained on", target: None, recipe: text, made: None });
        }
        for &width in &self.narrower {
            let name = format!("width-{width}");
            let text = from_nothing(&format!("{name}.onnx"), &name, self.backbone_epochs + self.epochs);
            let made = Some(Made::Width(factor * width, factor, file.clone()));
            all.push(Run { name, gated: "none, fewer channels", target: None, recipe: text, made });
        }
        Ok(all)
    }

    /// All trainings of a network that is frozen.
    fn planned_with_adapters(&self) -> Result<Vec<Run>> {
        let only = "--chained, --narrower and --backbone are for networks that are trained as a whole";
        ensure!(!self.chained && self.narrower.is_empty() && self.backbone.is_none(), "{only}");
        let run =
            |name: &str, gated, target, recipe: String, made| Run { name: name.into(), gated, target, recipe, made };
        let head = "[head]\ninput = \"/Flatten_output_0\"\nkind = \"classifier\"\nclasses = 10\noutput = \"scores\"\n";
        let first = Training {
            model: "small.onnx",
            tables: head,
            trainable: "",
            rate: 0.001,
            epochs: self.backbone_epochs,
            seed: 0,
        };
        let file = cache().join("assets/mobilenetv2-ts17.onnx");
        let mut all = vec![run("backbone", "", None, first.adapted("backbone", 8), Some(Made::Small(file)))];
        // What leaves channels out has other statistics.
        let statistics = "[train-mode]\n";
        let next = Training { model: "backbone/merged.onnx", tables: statistics, epochs: self.epochs, ..first };
        for seed in 0..self.seeds {
            let next = Training { seed, ..next };
            for gated in &self.gated {
                let (label, keys) = what(gated)?;
                for &target in &self.targets {
                    let (name, extra) = self.name(gated, target, seed);
                    let tables = format!("{statistics}[gate]\ntarget = {target:?}\nrank = 1\n{keys}{extra}");
                    let text = Training { tables: &tables, ..next }.adapted(&name, 1);
                    all.push(run(&name, label, Some(target), text, None));
                    for how in &self.then {
                        ensure!(how != "boosted", "factors are not trained beside adapters alone");
                        let (then, text, made) = self.then(how, &name, target, next)?;
                        all.push(run(&then, label, Some(target), text, made));
                    }
                }
            }
            let name = format!("longer-{}-seed{seed}", self.epochs);
            all.push(run(&name, "none, trained on", None, next.adapted(&name, 1), None));
        }
        Ok(all)
    }

    /// The name of a gated run, and the lines of `[gate]` that `--keys` adds.
    fn name(&self, gated: &str, target: f64, seed: usize) -> (String, String) {
        let plain = |key: &String| key.chars().filter(|c| c.is_alphanumeric() || *c == '.').collect::<String>();
        let suffix: String = self.keys.iter().map(|key| format!("-{}", plain(key))).collect();
        let chained = if self.chained { "-chained" } else { "" };
        let name = format!("{gated}-{target}-{}{suffix}{chained}-seed{seed}", self.epochs);
        (name, self.keys.iter().map(|key| line(key)).collect())
    }

    /// A training that begins with what was trained before.
    fn going_on<'a>(&self, model: &'a str, tables: &'a str, trainable: &'a str, seed: usize) -> Training<'a> {
        Training { model, tables, trainable, rate: 0.02, epochs: self.epochs, seed }
    }

    /// The training of one gated network, and how it goes on. `last`: the gated run that it begins with, if any.
    fn gated(&self, start: &str, last: Option<&str>, gated: &str, target: f64, seed: usize) -> Result<Vec<Run>> {
        let (label, keys) = what(gated)?;
        let (name, extra) = self.name(gated, target, seed);
        let run = |name: &str, recipe: String, made| Run {
            name: name.to_string(),
            gated: label,
            target: Some(target),
            recipe,
            made,
        };
        let kept: String = self.keys.iter().filter(|key| counts_later(key)).map(|key| line(key)).collect();
        let (model, tables) = match last {
            None => (start.to_string(), format!("[gate]\ntarget = {target:?}\n{keys}{extra}")),
            Some(last) => (format!("{last}/merged.onnx"), format!("[gate]\ntarget = {target:?}\n{kept}")),
        };
        let mut runs = vec![run(&name, self.going_on(&model, &tables, ALL, seed).recipe(&name), None)];
        for how in &self.then {
            let (next, text, made) = self.then(how, &name, target, self.going_on(start, "", ALL, seed))?;
            runs.push(run(&next, text, made));
        }
        Ok(runs)
    }

    /// How a gated network goes on: the run's name, its recipe, and how its network is made. `like`: how the backbone would.
    fn then(&self, how: &str, name: &str, target: f64, like: Training) -> Result<(String, String, Option<Made>)> {
        let epochs = self.then_epochs.map(|epochs| format!("-{epochs}")).unwrap_or_default();
        let rate = self.then_rate.map(|rate| format!("-rate{rate}")).unwrap_or_default();
        let next = format!("{name}-{how}{}{epochs}{rate}", if self.distil { "-distilled" } else { "" });
        let taught = match self.distil {
            true => format!("[loss]\nteacher = \"{}\"\ntemperature = 4.0\nlabels = 0.1\n", like.model),
            false => String::new(),
        };
        let kept: String = self.keys.iter().filter(|key| counts_later(key)).map(|key| line(key)).collect();
        let factors = format!("{NO_GATES}, \"gate.*boost*\"");
        let gates = format!("[gate]\ntarget = {target:?}\nanneal = 0.0\n{kept}");
        let (gates, trainable, made) = match how {
            "more" => (gates.as_str(), ALL, None),
            "tuned" => ("", NO_GATES, None),
            "boosted" => ("", factors.as_str(), Some(Made::Boosted(name.into()))),
            "trimmed" => ("", NO_GATES, Some(Made::Trimmed(name.into()))),
            "frozen" => ("", NO_GATES, Some(Made::Frozen(name.into()))),
            other => {
                let expected = "more, tuned, boosted, trimmed or frozen";
                return Err(Error::msg(format!("--then {other}: expected {expected}")));
            }
        };
        let model = if made.is_some() { format!("{next}.onnx") } else { format!("{name}/merged.onnx") };
        let tables = format!("{}{gates}{taught}", like.tables);
        let epochs = self.then_epochs.unwrap_or(like.epochs);
        let rate = self.then_rate.unwrap_or(like.rate);
        let training = Training { model: &model, tables: &tables, trainable, rate, epochs, ..like };
        let text = if self.net == "mobilenetv2" { training.adapted(&next, 1) } else { training.recipe(&next) };
        Ok((next, text, made))
    }
}

/// What `--gated` says, for the table, and its lines of `[gate]`.
fn what(gated: &str) -> Result<(&'static str, &'static str)> {
    match gated {
        "both" => Ok(("layers and channels", "")),
        "layers" => Ok(("layers", "channels = false\n")),
        "channels" => Ok(("channels", "layers = false\n")),
        other => Err(Error::msg(format!("--gated {other}: expected both, layers or channels"))),
    }
}

/// A line of `[gate]`.
fn line(key: &str) -> String {
    format!("{}\n", key.replace('=', " = "))
}

/// Whether a key of `[gate]` counts where there are gates already.
fn counts_later(key: &str) -> bool {
    let new = [
        "normalise",
        "length",
        "rank",
        "nested",
        "binary",
        "blocks",
        "exclude",
        "layers",
        "channels",
        "plain",
        "anneal",
    ];
    !new.iter().any(|n| key.starts_with(n))
}

/// Makes the gates of a network constants, shut or what they were where they were open, so that what is left costs what the network cost in the mean,
/// or as near to it as one share for all gates comes. Of binary gates, what is shut is cut off.
fn freeze(folder: &Path, run: &Run, gated: &str) -> Result<()> {
    let model = onnx::load(&folder.join(gated).join("merged.onnx"))?;
    let Some(record) = Record::load(&model)? else { return Err(Error::msg(format!("{gated} has no gates"))) };
    let summary = std::fs::read_to_string(folder.join(gated).join("summary.json"));
    let summary: Value = serde_json::from_str(&summary.map_err(|e| Error::msg(e.to_string()))?)
        .map_err(|e| Error::msg(e.to_string()))?;
    let wanted = number(&summary, "test.flops")?;
    let (below, cost, small) = cut_to(&model, &record, wanted)?;
    let mut values = record.blocks.iter().filter_map(|b| b.usage.as_ref()).flat_map(|u| &u.value);
    println!("{}: open for at most {below:.3} is shut; costs {cost:.4}, with gates {wanted:.4}", run.name);
    if values.all(|&value| value == 0.0 || value == 1.0) {
        // The same training for less: what is shut has no gradient, and what is open is multiplied by 1.
        return keep(folder, run, &small, cost);
    }
    // Gates stay where they are, as constants: folded into weights they would change how fast those learn.
    let mut model = model;
    for block in &record.blocks {
        let usage = block.usage.clone().unwrap_or_default();
        let constant = |(open, value): (&f64, &f64)| if *open > below { *value as f32 } else { 0.0 };
        let constants: Vec<f32> = usage.open.iter().zip(&usage.value).map(constant).collect();
        let shape = model.params[&block.weight].tensor.shape().to_vec();
        model.params[&block.weight].tensor = Tensor::zeros(DType::F32, shape)?;
        model.params[&block.bias].tensor = Tensor::from_vec([constants.len()], constants);
    }
    keep(folder, run, &model, cost)
}

/// Cuts off of a gated network what at most a share of the images needed, so that the rest costs what is wanted, or as near to it as one share for all gates comes:
/// that share, the cost, the network.
fn cut_to(model: &Model, record: &Record, wanted: f64) -> Result<(f64, f64, Model)> {
    let mut shares: Vec<f64> =
        record.blocks.iter().filter_map(|b| b.usage.as_ref()).flat_map(|u| u.open.clone()).collect();
    shares.sort_by(f64::total_cmp);
    shares.dedup();
    let cut = |below: f64| -> Result<(Model, f64)> {
        let mut model = model.clone();
        pipelines::prepare(&mut model, &Registry::builtin())?;
        Driver::new().run_pass(&Harden { kind: Kind::Static, below, ..Harden::default() }, &mut model)?;
        let cost = cost::Costs::of(&model.graph, model.opset())?.total as f64 / record.flops as f64;
        Ok((model, cost))
    };
    // The cost falls as more gates are cut off: bisection over the shares that occur.
    let (mut low, mut high) = (0, shares.len().saturating_sub(1));
    while low < high {
        let middle = (low + high) / 2;
        if cut(shares[middle])?.1 > wanted { low = middle + 1 } else { high = middle }
    }
    let mut best: Option<(f64, f64, Model)> = None;
    for at in [low.saturating_sub(1), low] {
        let below = shares.get(at).copied().unwrap_or(0.0);
        let (model, cost) = cut(below)?;
        if best.as_ref().is_none_or(|(_, known, _)| (cost - wanted).abs() < (known - wanted).abs()) {
            best = Some((below, cost, model));
        }
    }
    best.ok_or_else(|| Error::msg("no gate was used"))
}

/// Writes a gated network after a pass.
fn change(folder: &Path, run: &Run, gated: &str, pass: &dyn Pass) -> Result<()> {
    let mut model = onnx::load(&folder.join(gated).join("merged.onnx"))?;
    pipelines::prepare(&mut model, &Registry::builtin())?;
    Driver::new().run_pass(pass, &mut model)?;
    onnx::save(&model, &folder.join(format!("{}.onnx", run.name)), &onnx::SaveOptions::default())
}

/// Writes a network that was made, and what it costs as a share of the one that it was made of.
fn keep(folder: &Path, run: &Run, model: &Model, cost: f64) -> Result<()> {
    std::fs::write(folder.join(format!("{}.cost", run.name)), cost.to_string())
        .map_err(|e| Error::msg(e.to_string()))?;
    onnx::save(model, &folder.join(format!("{}.onnx", run.name)), &onnx::SaveOptions::default())
}

/// Makes a ResNet for CIFAR with so many times its channels: weights are drawn anew (He's initialisation), vectors cut or repeated, and shortcuts padded by as many
/// channels as there are more behind them. The network, and how many operations an image takes.
fn with_width(path: &Path, width: f64) -> Result<(Model, f64)> {
    let mut model = onnx::load(path)?;
    pipelines::prepare(&mut model, &Registry::builtin())?;
    let channels = |n: usize| if [16, 32, 64].contains(&n) { (n as f64 * width).round() as usize } else { n };
    for (name, param) in &mut model.params {
        let old = param.tensor.to_f64s()?;
        let shape: Vec<usize> = param.tensor.shape().iter().map(|&n| channels(n)).collect();
        let count: usize = shape.iter().product();
        let fan = match shape[..] {
            [outputs, _, height, wide] => outputs * height * wide,
            [_, inputs] => inputs,
            _ => 0,
        };
        let (deviation, stream) = ((2.0 / fan as f64).sqrt(), Stream::new(0, 0, name));
        let value = |i: usize| if fan > 0 { deviation * stream.normal(i as u64) } else { old[i % old.len()] };
        let values: Vec<f64> = (0..count).map(value).collect();
        param.tensor = Tensor::from_vec(shape, values).cast(param.tensor.dtype())?;
    }
    for id in model.graph.node_ids().collect::<Vec<_>>() {
        let output = sartor_ir::Value { node: id, slot: 0 };
        let param = model.graph.param_name(output).and_then(|name| model.params.get(name));
        if let Some(ty) = param.map(|param| Type::of(&param.tensor)) {
            model.graph.set_ty(output, Some(ty));
        }
        let integers = model.graph.node(id).constant().filter(|tensor| tensor.dtype() == DType::I64);
        if let Some([0, 0, 0, 0, 0, more]) = integers.map(|tensor| tensor.to_i64s()).transpose()?.as_deref() {
            // From `more` channels to twice as many.
            let more = channels(2 * *more as usize) - channels(*more as usize);
            let pads = model.graph.add_const("pads", Tensor::from_i64s(&[0, 0, 0, 0, 0, more as i64]));
            model.graph.replace_uses(output, pads);
        }
    }
    model.graph.forget_types();
    infer::infer_model(&mut model)?;
    let cost = cost::Costs::of(&model.graph, model.opset())?.total as f64;
    Ok((model, cost))
}

/// MobileNetV2 for images of 96 × 96.
fn shrink(folder: &Path, path: &Path) -> Result<()> {
    let mut model = onnx::load(path)?;
    pipelines::prepare(&mut model, &Registry::builtin())?;
    let shapes = [("pixel_values".to_string(), vec![-1, 3, 96, 96])].into();
    Driver::new().run_pass(&Bind { shapes, ..Bind::default() }, &mut model)?;
    onnx::save(&model, &folder.join("small.onnx"), &onnx::SaveOptions::default())
}

/// Makes a run, unless it is done.
fn make(folder: &Path, run: &Run, threads: usize) -> Result<()> {
    let (recipe, out) = (folder.join(format!("{}.toml", run.name)), folder.join(&run.name));
    let same = std::fs::read_to_string(&recipe).is_ok_and(|text| text == run.recipe);
    if same && out.join("summary.json").exists() {
        return Ok(());
    }
    match &run.made {
        Some(Made::Frozen(gated)) => freeze(folder, run, gated)?,
        Some(Made::Boosted(gated)) => change(folder, run, gated, &Gate { boost: true, ..Gate::default() })?,
        Some(Made::Trimmed(gated)) => {
            change(folder, run, gated, &Harden { kind: Kind::Trim, below: RARE, ..Harden::default() })?;
        }
        Some(Made::Width(width, whole, path)) => {
            let (model, cost) = with_width(path, *width)?;
            let cost = cost / with_width(path, *whole)?.1;
            println!("{}: costs {cost:.4}", run.name);
            keep(folder, run, &model, cost)?;
        }
        Some(Made::Small(path)) => shrink(folder, path)?,
        None => {}
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

/// A command's arguments as they would be typed, but for the folder of the runs, and whether only the table was wanted.
fn told(args: impl Iterator<Item = String>, runs: &Path) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,".contains(c);
    let quoted = |arg: String| if arg.chars().all(plain) { arg } else { format!("'{arg}'") };
    let args = args.filter(|arg| Path::new(arg) != runs && arg != "--table");
    args.map(quoted).collect::<Vec<_>>().join(" ")
}

fn report(args: &Args, folder: &Path, runs: &[Run]) -> Result<()> {
    let mut rows = Vec::new();
    for run in runs {
        let Some(found) = summary(folder, run) else { continue };
        let cost = std::fs::read_to_string(folder.join(format!("{}.cost", run.name))).ok();
        let cost = cost.and_then(|text| text.parse().ok()).filter(|_| run.made.is_some());
        let flops = found["test.flops"].as_f64().or(cost).unwrap_or(1.0);
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
        "# A series of targets\n\n{}, {} epochs from random weights (SGD with momentum 0.9, rate 0.1 falling as a cosine, weight decay 5e-4, batches of \
         128; images mirrored and moved by up to 4 pixels), then {} epochs at rate 0.02 with gates. Cost: the mean number of floating-point operations of a test \
         image, gate networks included, as a share of the backbone's; variation: its standard deviation over the test images divided by that \
         mean. Command: `target/release/gates RUNS {}`.\n\n{}",
        args.net,
        args.backbone_epochs,
        args.epochs,
        told(std::env::args().skip(1), &args.runs),
        table(&head, &rows)
    );
    println!("\n{text}");
    std::fs::write("docs/results/gates-curves.md", text).map_err(|e| Error::msg(e.to_string()))
}
