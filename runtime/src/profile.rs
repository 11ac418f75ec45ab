//! Where the time of a run goes: per kernel, and the slowest steps with their shapes and rates.

use crate::lower::Step;
use crate::plan::Plan;
use sartor_ir::Graph;
use std::collections::BTreeMap;

/// How many steps are listed one by one.
const LISTED: usize = 40;

/// The lines of a profile, from the seconds of every step.
pub fn lines(plan: &Plan, graph: &Graph, times: &[f64]) -> Vec<String> {
    let steps: Vec<(&Step, f64)> = plan.lowered.steps.iter().map(|p| &p.step).zip(times.iter().copied()).collect();
    let mut kinds: BTreeMap<&str, (usize, f64, u64)> = BTreeMap::new();
    for (step, seconds) in &steps {
        let entry = kinds.entry(step.kind()).or_default();
        *entry = (entry.0 + 1, entry.1 + seconds, entry.2 + flops(step));
    }
    let mut lines = vec![format!("{:>10} {:>6} {:>10} {:>9}", "kernel", "count", "ms", "GFLOP/s")];
    for (kind, (count, seconds, flops)) in kinds {
        let rate = flops as f64 / seconds.max(1e-12) / 1e9;
        lines.push(format!("{kind:>10} {count:>6} {:>10.2} {rate:>9.1}", seconds * 1e3));
    }
    let mut slowest = steps;
    slowest.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (step, seconds) in slowest.iter().take(LISTED) {
        let rate = flops(step) as f64 / seconds.max(1e-12) / 1e9;
        lines.push(format!(
            "{:>10} {:>8.3} ms {rate:>7.1} GFLOP/s  {}",
            step.kind(),
            seconds * 1e3,
            describe(step, graph)
        ));
    }
    lines
}

/// Floating-point operations of the products of a step.
fn flops(step: &Step) -> u64 {
    match step {
        Step::Contract(c) => {
            let rows = c.batch.iter().product::<usize>() * c.m;
            c.products.iter().map(|p| 2 * (rows * c.n * p.k) as u64).sum()
        }
        _ => 0,
    }
}

fn describe(step: &Step, graph: &Graph) -> String {
    match step {
        Step::Contract(c) => {
            let inner: Vec<usize> = c.products.iter().map(|p| p.k).collect();
            let after = c.epilogue.as_ref().map_or(0, |p| p.code.len());
            format!("{:?} × {} × {inner:?} × {}, {after} instructions after", c.batch, c.m, c.n)
        }
        Step::Program(p) => format!("{} × {}, {} instructions", p.rows, p.cols, p.code.len()),
        Step::Reduce(r) => format!("{} × {}", r.rows, r.cols),
        Step::Copies(parts) => format!("{} parts", parts.len()),
        Step::Gather(g) => format!("{} × {} × {}, scatter: {}", g.outer, g.len, g.width, g.scatter),
        Step::Import(_, view) | Step::Export(view, _) => format!("{:?}", view.shape),
        Step::Reference(id, ..) => graph.node(*id).label(),
    }
}
