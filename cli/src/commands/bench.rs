//! `bench`: how fast a model runs, beside ONNX Runtime or tract, and where the time goes.

use super::run::{note_unplanned, session_options};
use crate::compare::{self, Arrays};
use crate::failure::Running;
use crate::peers::{Peer, Runtime};
use crate::table::Table;
use crate::{Failure, Outcome, files, note, say};
use sartor_ir::{Error, Graph, Model, Result, onnx};
use sartor_passes::Registry;
use sartor_runtime::cpu::machine;
use sartor_runtime::train::summary::peak_rss_mib;
use sartor_runtime::{Key, Params, Session, profile};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Times a model, by turns with other runtimes if asked, and says where the time goes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor bench model.onnx --dim batch=1 --dim sequence=128 --threads 1
  sartor bench model.onnx --inputs x.npz --against ort,tract --ort-library …/capi/libonnxruntime.so.1.32.0
  sartor bench model.onnx --table --profile trace.json
  sartor bench step.onnx --train --dim batch=16 --dim sequence=128 --json

Without --inputs, inputs are drawn as by `sartor verify`. The first runs do not count: they plan, pack weights and touch
memory. With --train the first training program of the file runs (`sartor transform … -o step.onnx` writes one). A profile is a
run of its own, step by step; open the trace in chrome://tracing or https://ui.perfetto.dev.")]
pub struct Args {
    /// The model
    model: PathBuf,
    /// The inputs; without them, they are drawn
    #[arg(long, value_name = "X.npz")]
    inputs: Option<PathBuf>,
    /// A number for a symbolic dimension of drawn inputs (default: 2 for the first one met; for the others 7, in images 64)
    #[arg(long = "dim", value_name = "NAME=N")]
    dims: Vec<String>,
    /// Threads to compute with
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Times a training step instead of inference
    #[arg(long)]
    train: bool,
    /// Whom to compare with; tract runs on one thread
    #[arg(long, value_name = "RUNTIME,…", value_delimiter = ',', conflicts_with = "train")]
    against: Vec<Runtime>,
    /// Where libonnxruntime.so is (default: what ORT_DYLIB_PATH says)
    #[arg(long, value_name = "FILE")]
    ort_library: Option<PathBuf>,
    /// Runs that count, at least one
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Writes a trace of one run
    #[arg(long, value_name = "TRACE.json")]
    profile: Option<PathBuf>,
    /// Prints where the time of one run goes: per kernel, rates, and the share of what this machine can do
    #[arg(long)]
    table: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// Runs before those that count.
const WARM_UP: u32 = 3;

/// Milliseconds of the runs of one side.
struct Times(Vec<f64>);

impl Times {
    fn sorted(mut times: Vec<f64>) -> Times {
        times.sort_by(f64::total_cmp);
        Times(times)
    }
    fn at(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share).floor() as usize).copied().unwrap_or(f64::NAN)
    }
    fn row(&self, name: &str) -> Vec<String> {
        let mut row = vec![name.to_string()];
        row.extend([0.5, 0.0, 1.0].map(|share| format!("{:.3}", self.at(share))));
        row
    }
    /// How often this side's time goes into the other's.
    fn ratio(&self, other: &Times) -> f64 {
        other.at(0.5) / self.at(0.5)
    }
    fn json(&self) -> serde_json::Value {
        serde_json::json!({ "median_ms": self.at(0.5), "min_ms": self.at(0.0), "max_ms": self.at(1.0), "runs": self.0.len() })
    }
}

/// Another runtime, and its times or why it was not run.
struct Other {
    runtime: Runtime,
    times: Result<Times>,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let at_file = |e: Error| e.at(format!("file {}", args.model.display()));
    let original = onnx::load(&args.model)?;
    let mut model = original.clone();
    if !args.train {
        files::prepare_inference(&mut model, registry).map_err(at_file)?;
    }
    let program = training_program(&args, &model)?;
    let graph = program.as_ref().map_or(&model.graph, |name| &model.programs[name.as_str()].graph);
    let mut inputs = inputs(&args, &model, graph)?;
    if args.inputs.is_none()
        && let Some(rate) = inputs.get_mut("learning_rate")
    {
        *rate = sartor_ir::Tensor::scalar(1e-3f32);
    }
    let options = session_options(args.threads);
    let mut session = match &program {
        Some(name) => Session::program(&model, name, options)?,
        None => Session::new(&model, options)?,
    };
    let mut params = Params::of(&model);
    let load = |runtime: &Runtime| runtime.load(&original, &inputs, Some(options.threads), args.ort_library.as_deref());
    let mut peers: Vec<Result<Peer>> = args.against.iter().map(load).collect();
    let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); peers.len()]);
    for round in 0..WARM_UP + args.runs {
        let key = Key { seed: 0, step: u64::from(round) };
        let start = Instant::now();
        session.run(&mut params, &inputs, key).map_err(at_file).running()?;
        let own = start.elapsed().as_secs_f64();
        if round >= WARM_UP {
            ours.push(own * 1e3);
        }
        for (peer, times) in peers.iter_mut().zip(&mut theirs) {
            let Ok(loaded) = peer else { continue };
            match loaded.time(&inputs) {
                Ok(seconds) if round >= WARM_UP => times.push(seconds * 1e3),
                Ok(_) => {}
                Err(error) => *peer = Err(error),
            }
        }
    }
    let others = args.against.iter().zip(peers).zip(theirs);
    let others = others.map(|((&runtime, peer), times)| Other { runtime, times: peer.map(|_| Times::sorted(times)) });
    let others = refuse_if_none_ran(others.collect())?;
    print(&args, &session, options.threads, &Times::sorted(ours), &others);
    report_steps(&args, &mut session, &params, &inputs, options.threads)
}

/// A comparison with nobody is an error; one that a runtime dropped out of is not.
fn refuse_if_none_ran(others: Vec<Other>) -> Outcome<Vec<Other>> {
    if others.iter().any(|other| other.times.is_ok()) {
        return Ok(others);
    }
    let reasons = others.into_iter().filter_map(|other| other.times.err()).collect();
    Error::all(reasons).running().map(|()| Vec::new())
}

fn training_program(args: &Args, model: &Model) -> Outcome<Option<String>> {
    if !args.train {
        return Ok(None);
    }
    match model.programs.keys().find(|name| name.starts_with("step")) {
        Some(name) => Ok(Some(name.clone())),
        None => Err(Failure::usage(format!(
            "file {}: it has no training program; make one, as in `sartor transform {} -p cola -p loss -p autodiff -p optimizer -o step.onnx`",
            args.model.display(),
            args.model.display()
        ))),
    }
}

fn inputs(args: &Args, model: &Model, graph: &Graph) -> Outcome<Arrays> {
    match &args.inputs {
        Some(path) => Ok(files::read_inputs(path, graph)?),
        None => compare::drawn_inputs(model, graph, &args.dims, 0),
    }
}

fn print(args: &Args, session: &Session, threads: usize, ours: &Times, others: &[Other]) {
    let report = session.report();
    if !note_unplanned(&report) && !report.reference.is_empty() {
        let names: Vec<String> = report.reference.iter().map(|(name, count)| format!("{count} {name}")).collect();
        note!("note: operators without a kernel, run by the reference evaluator: {}", names.join(", "));
    }
    if args.json {
        print_json(args, report.bytes, threads, ours, others);
    } else {
        print_table(args, threads, ours, others);
    }
}

fn print_json(args: &Args, planned: usize, threads: usize, ours: &Times, others: &[Other]) {
    let mut found = ours.json();
    found["model"] = args.model.display().to_string().into();
    found["threads"] = threads.into();
    found["planned_mib"] = (planned as f64 / 1_048_576.0).into();
    found["peak_rss_mib"] = peak_rss_mib().into();
    for other in others {
        let mut about = match &other.times {
            Ok(times) => times.json(),
            Err(reason) => serde_json::json!({ "not_run": reason.to_string() }),
        };
        if let Ok(times) = &other.times {
            about["ratio"] = ours.ratio(times).into();
        }
        found[other.runtime.name()] = about;
    }
    say!("{}", serde_json::to_string_pretty(&found).unwrap_or_default());
}

fn print_table(args: &Args, threads: usize, ours: &Times, others: &[Other]) {
    say!("{}, {threads} threads, {} runs, milliseconds", args.model.display(), ours.0.len());
    let mut table = Table::new(&["", "median", "least", "most"]);
    table.row(ours.row("sartor"));
    let ran = others.iter().filter_map(|other| Some((other.runtime.name(), other.times.as_ref().ok()?)));
    ran.clone().for_each(|(name, times)| table.row(times.row(name)));
    table.print();
    for (name, times) in ran {
        say!("  sartor is {:.2} times as fast as {name} (medians)", ours.ratio(times));
    }
    for other in others {
        if let Err(reason) = &other.times {
            say!("  {}: not run: {reason}", other.runtime.name());
        }
    }
}

fn report_steps(args: &Args, session: &mut Session, params: &Params, inputs: &Arrays, threads: usize) -> Outcome {
    if !args.table && args.profile.is_none() {
        return Ok(());
    }
    let events = session.trace(params, inputs).running()?;
    if args.table && !args.json {
        let peak = machine::measure(threads)?;
        say!("\nthis machine, {threads} threads: {:.0} GFLOP/s, {:.1} GB/s", peak.gflops, peak.gbytes);
        profile::lines(&events, Some(peak)).iter().for_each(|line| say!("{line}"));
    }
    match &args.profile {
        Some(path) => write_trace(path, &profile::chrome_trace(&events)).running(),
        None => Ok(()),
    }
}

fn write_trace(path: &Path, trace: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_vec(trace).map_err(|e| Error::msg(e.to_string()))?;
    std::fs::write(path, text).map_err(|e| Error::io(path, e))
}
