//! Where the time of a run goes: per kernel, and per shape of a kernel, with rates.

use crate::cpu::contract::Contract;
use crate::lower::Step;
use crate::plan::Plan;
use sartor_ir::Graph;
use std::collections::BTreeMap;

/// How many shapes are listed.
const LISTED: usize = 40;

/// The lines of a profile, from the seconds of every step.
pub fn lines(plan: &Plan, graph: &Graph, times: &[f64]) -> Vec<String> {
    let steps: Vec<(&Step, f64)> = plan.lowered.steps.iter().map(|p| &p.step).zip(times.iter().copied()).collect();
    let mut kinds: BTreeMap<&str, Sum> = BTreeMap::new();
    for (step, seconds) in &steps {
        let entry = kinds.entry(step.kind()).or_default();
        *entry = (entry.0 + 1, entry.1 + seconds, entry.2 + flops(step));
    }
    let mut lines = vec![format!("{:>10} {:>6} {:>10} {:>9}", "kernel", "count", "ms", "GFLOP/s")];
    for (kind, (count, seconds, flops)) in kinds {
        let rate = flops as f64 / seconds.max(1e-12) / 1e9;
        lines.push(format!("{kind:>10} {count:>6} {:>10.2} {rate:>9.1}", seconds * 1e3));
    }
    for ((kind, what), (count, seconds, flops)) in heaviest(&steps, graph) {
        let rate = flops as f64 / seconds.max(1e-12) / 1e9;
        lines.push(format!("{kind:>10} {count:>6} {:>10.2} {rate:>9.1}  {what}", seconds * 1e3));
    }
    lines
}

type Sum = (usize, f64, u64);

/// Steps of one kind and shape, added up, those that take longest first.
fn heaviest<'a>(steps: &[(&'a Step, f64)], graph: &Graph) -> Vec<((&'a str, String), Sum)> {
    let mut sums: BTreeMap<(&str, String), Sum> = BTreeMap::new();
    for (step, seconds) in steps {
        let entry = sums.entry((step.kind(), describe(step, graph))).or_default();
        *entry = (entry.0 + 1, entry.1 + seconds, entry.2 + flops(step));
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    sums.truncate(LISTED);
    sums
}

/// Floating-point operations of the products of a step.
fn flops(step: &Step) -> u64 {
    match step {
        Step::Contract(c) => contract_flops(c),
        Step::Chain(chain) => chain.members.iter().map(contract_flops).sum(),
        _ => 0,
    }
}

fn contract_flops(c: &Contract) -> u64 {
    let rows = c.batch.iter().product::<usize>() * c.m;
    c.products.iter().map(|p| 2 * (rows * c.n * p.k) as u64).sum()
}

fn describe_contract(c: &Contract) -> String {
    let inner: Vec<usize> = c.products.iter().map(|p| p.k).collect();
    let after = c.epilogue.as_ref().map_or(0, |p| p.code.len());
    format!("{:?} × {} × {inner:?} × {}, {after} instructions after", c.batch, c.m, c.n)
}

fn describe(step: &Step, graph: &Graph) -> String {
    match step {
        Step::Contract(c) => describe_contract(c),
        Step::Chain(chain) => chain.members.iter().map(describe_contract).collect::<Vec<_>>().join("; "),
        Step::Program(p) => format!("{} × {}, {} instructions", p.rows, p.cols, p.code.len()),
        Step::Reduce(r) => format!("{} × {}", r.rows, r.cols),
        Step::Copies(parts) => format!("{} parts", parts.len()),
        Step::Gather(g) => format!("{} × {} × {}, scatter: {}", g.outer, g.len, g.width, g.scatter),
        Step::Import(_, view) | Step::Export(view, _) => format!("{:?}", view.shape),
        Step::Reference(id, ..) => graph.node(*id).label(),
    }
}
