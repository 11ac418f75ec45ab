//! `inspect`: what is in a file.

use crate::inspection::{Inspection, Module, Port, blocks, inspect};
use crate::table::{Table, grouped, short};
use crate::{Outcome, files, gates, say};
use sartor_ir::{Model, onnx};
use sartor_passes::{Pass, Registry, flow, freeze, gate};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Shows what is in a model: operators, parameters, costs, dynamic axes, modules, programs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor inspect model.onnx
  sartor inspect model.onnx --dim batch=8 --dim sequence=128
  sartor inspect model.onnx --depth 5
  sartor inspect model.onnx --blocks
  sartor inspect model.onnx --gradients --trainable '*.bias' --trainable '*/query/MatMul'
  sartor inspect model.onnx --json | jq .flops.total")]
pub struct Args {
    /// The model
    model: PathBuf,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// A number for a symbolic dimension, to count operations with (default: 1 for each)
    #[arg(long = "dim", value_name = "NAME=N")]
    dims: Vec<String>,
    /// Shows the residual blocks and the groups of channels that can be gated, and what was not taken; of a gated model, its gates and how they were used
    #[arg(long)]
    blocks: bool,
    /// Shows which trainable parameters get a gradient, what keeps it from the others, and all operators without a gradient rule at once
    #[arg(long)]
    gradients: bool,
    /// With --gradients: parameters that are trained, as patterns (default: all)
    #[arg(long, value_name = "PATTERN", requires = "gradients")]
    trainable: Vec<String>,
    /// How deep the module tree is shown
    #[arg(long, default_value_t = 3)]
    depth: usize,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    let dims = files::parse_dims(&args.dims)?;
    let model = onnx::load(&args.model)?;
    if args.blocks {
        return show_blocks(&model, registry, args.json);
    }
    if args.gradients {
        return show_gradients(model, registry, &args);
    }
    let found = inspect(&model, registry, &dims)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&found).unwrap_or_default());
        return Ok(());
    }
    let opsets: Vec<String> = found.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect();
    say!("{}: IR {}, opset {}, by {}", args.model.display(), found.ir_version, opsets.join(", "), found.producer);
    ports("inputs", &found.inputs);
    ports("outputs", &found.outputs);
    print_axes(&found);
    print_parameters(&found);
    print_operators(&found);
    print_lacks(&found);
    print_modules(&found, args.depth);
    print_programs(&found);
    Ok(())
}

/// Where gates can go, or, in a model that has some, what they are.
fn show_blocks(model: &Model, registry: &Registry, json: bool) -> Outcome {
    if let Some(record) = gate::Record::load(model)? {
        match json {
            true => say!("{}", serde_json::to_string_pretty(&record).unwrap_or_default()),
            false => gates::show(&record),
        }
        return Ok(());
    }
    let found = blocks::find(model, registry)?;
    if json {
        say!("{}", serde_json::to_string_pretty(&found).unwrap_or_default());
        return Ok(());
    }
    let blocks = if found.blocks.len() == 1 { "block" } else { "blocks" };
    say!("{} {blocks}, {} FLOPs for one example", found.blocks.len(), short(found.flops));
    let mut table = Table::new(&["block", "FLOPs", "share", "<shortcut", "<channels (producers → consumer)"]);
    for block in &found.blocks {
        let share = format!("{:.1} %", 100.0 * block.flops as f64 / found.flops.max(1) as f64);
        let groups: Vec<String> = block.groups.iter().map(|g| g.to_string()).collect();
        let mut lines = groups.into_iter();
        let shortcut = if block.residual { "yes" } else { "no" };
        let first = lines.next().unwrap_or("none".to_string());
        table.row([block.name.clone(), short(block.flops), share, shortcut.to_string(), first]);
        lines.for_each(|line| table.row(std::iter::repeat_n(String::new(), 4).chain([line])));
    }
    table.print();
    if !found.refused.is_empty() {
        say!("\nnot taken");
        found.refused.iter().for_each(|refusal| say!("  {}: {}", refusal.node, refusal.reason));
    }
    Ok(())
}

/// Where gradients flow.
fn show_gradients(mut model: Model, registry: &Registry, args: &Args) -> Outcome {
    files::prepare(&mut model, registry)?;
    let trainable = if args.trainable.is_empty() { vec!["*".to_string()] } else { args.trainable.clone() };
    freeze::Freeze { frozen: vec!["*".to_string()], trainable }.run(&mut model)?;
    let found = flow::flow(&model)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&found).unwrap_or_default());
        return Ok(());
    }
    let all = found.reached.len() + found.cut_off.len();
    say!("{} of {all} trainable parameters get a gradient", found.reached.len());
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, by) in &found.cut_off {
        let why = match by.as_slice() {
            [] => "no output depends on them".to_string(),
            by => format!("cut off by {}", by.join(", ")),
        };
        reasons.entry(why).or_default().push(name);
    }
    reasons.iter().for_each(|(why, names)| say!("\n{why}\n  {}", names.join("\n  ")));
    for (title, list) in [
        ("operators without a gradient rule, which training refuses", &found.missing),
        ("operators whose derivative is 0 wherever it exists", &found.zero),
    ] {
        if !list.is_empty() {
            say!("\n{title}");
            list.iter().for_each(|(name, nodes)| say!("  {name}: {}", nodes.join(", ")));
        }
    }
    Ok(())
}

fn ports(title: &str, ports: &[Port]) {
    say!("\n{title}");
    ports.iter().for_each(|port| say!("  {}: {}", port.name, port.ty));
}

fn print_axes(found: &Inspection) {
    if !found.dynamic_axes.is_empty() {
        say!("\ndynamic axes");
        found.dynamic_axes.iter().for_each(|(name, places)| say!("  {name}: {}", places.join(", ")));
    }
}

fn print_parameters(found: &Inspection) {
    say!("\nparameters");
    let mut table = Table::new(&["role", "tensors", "elements", "bytes"]);
    for (role, row) in &found.parameters {
        table.row([role.to_string(), row.tensors.to_string(), grouped(row.elements), grouped(row.bytes)]);
    }
    let bytes = found.parameters.values().map(|row| row.bytes).sum();
    let tensors: usize = found.parameters.values().map(|row| row.tensors).sum();
    table.row(["all".to_string(), tensors.to_string(), grouped(found.total_parameters), grouped(bytes)]);
    table.print();
}

fn print_operators(found: &Inspection) {
    let dims: Vec<String> = found.flops.dims.iter().map(|(name, n)| format!("{name} = {n}")).collect();
    let with = if dims.is_empty() { String::new() } else { format!(" with {}", dims.join(", ")) };
    say!("\noperators: {} FLOPs{with}", short(found.flops.total));
    let mut table = Table::new(&["operator", "count", "FLOPs"]);
    for row in &found.operators {
        table.row([row.operator.clone(), row.count.to_string(), row.flops.map_or("?".to_string(), short)]);
    }
    let all: usize = found.operators.iter().map(|row| row.count).sum();
    table.row(["all".to_string(), all.to_string(), short(found.flops.total)]);
    table.print();
    if let Some(problem) = &found.flops.problem {
        say!("  the operations could not be counted: {problem}");
    }
    if found.flops.uncounted_nodes > 0 {
        say!("  {} nodes not counted: their shapes depend on the data", found.flops.uncounted_nodes);
    }
}

fn print_lacks(found: &Inspection) {
    if !found.without_gradient.is_empty() {
        say!("\ntraining cannot go through: {}", found.without_gradient.join(", "));
    }
    if !found.without_evaluation.is_empty() {
        say!("\ncannot be run: {}", found.without_evaluation.join(", "));
    }
    if !found.functions.is_empty() {
        say!("\nfunctions: {}", found.functions.join(", "));
    }
}

fn print_modules(found: &Inspection, depth: usize) {
    if found.modules.is_empty() {
        return;
    }
    say!("\nmodules");
    let mut table = Table::new(&["module", "operators", "parameters", "FLOPs"]);
    found.modules.iter().for_each(|module| add_module(&mut table, module, 0, depth));
    table.print();
}

fn add_module(table: &mut Table, module: &Module, level: usize, depth: usize) {
    if level >= depth {
        return;
    }
    let name = format!("{}{}", "  ".repeat(level), module.name);
    table.row([name, module.operators.to_string(), grouped(module.parameters), short(module.flops)]);
    module.modules.iter().for_each(|below| add_module(table, below, level + 1, depth));
}

fn print_programs(found: &Inspection) {
    if found.programs.is_empty() {
        return;
    }
    say!("\nprograms");
    let mut table = Table::new(&["program", "operators", "updates", "<inputs → outputs"]);
    for row in &found.programs {
        let flow = format!("{} → {}", row.inputs.join(", "), row.outputs.join(", "));
        table.row([row.name.clone(), row.operators.to_string(), row.updates.to_string(), flow]);
    }
    table.print();
}
