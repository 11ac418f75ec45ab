//! Where the time of a run goes: step by step, per kernel, and per shape of a kernel, with rates and the share of what the
//! machine can do.

use crate::cpu::contract::Contract;
use crate::cpu::machine::Peak;
use crate::cpu::pool::Windows;
use crate::cpu::recurrence::Walk;
use crate::lower::Step;
use crate::plan::Plan;
use sartor_ir::Graph;
use std::collections::BTreeMap;

/// How many shapes are listed.
const LISTED: usize = 40;

/// One step of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// The kernel's name.
    pub kernel: &'static str,
    /// What it worked on.
    pub what: String,
    /// How long it took.
    pub seconds: f64,
    /// Floating-point operations of its products.
    pub flops: u64,
    /// Bytes of the buffers that it reads and writes.
    pub bytes: u64,
}

/// The steps of a run, from the seconds of each.
pub fn events(plan: &Plan, graph: &Graph, times: &[f64]) -> Vec<Event> {
    let lowered = &plan.lowered;
    let length = |b: &crate::lower::view::BufId| 4 * lowered.buffers[b.index()].len as u64;
    let event = |(planned, &seconds): (&crate::lower::Planned, &f64)| Event {
        kernel: planned.step.kind(),
        what: describe(&planned.step, graph),
        seconds,
        flops: flops(&planned.step),
        bytes: planned.reads.iter().chain(&planned.writes).map(length).sum(),
    };
    lowered.steps.iter().zip(times).map(event).collect()
}

/// Steps added up.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Sum {
    count: usize,
    seconds: f64,
    flops: u64,
    bytes: u64,
}

impl Sum {
    fn add(&mut self, event: &Event) {
        self.count += 1;
        self.seconds += event.seconds;
        self.flops += event.flops;
        self.bytes += event.bytes;
    }
    /// `kernel count ms GFLOP/s GB/s share`
    fn line(&self, kernel: &str, what: &str, peak: Option<Peak>) -> String {
        let rate = |number: u64| number as f64 / self.seconds.max(1e-12) / 1e9;
        // The least time that the machine needs, by the nearer of its two limits, against the time taken.
        let share = peak.map_or_else(String::new, |p| {
            let least = (self.flops as f64 / p.gflops).max(self.bytes as f64 / p.gbytes) / 1e9;
            format!("{:>6.0} %", 100.0 * least / self.seconds.max(1e-12))
        });
        let (flops, bytes) = (rate(self.flops), rate(self.bytes));
        let line =
            format!("{kernel:>10} {:>6} {:>10.2} {flops:>9.1} {bytes:>8.1}{share}", self.count, self.seconds * 1e3);
        format!("{line}  {what}").trim_end().to_string()
    }
}

/// A table: a line per kernel, then the shapes that take longest. With the machine's peak, also the share of the roofline:
/// the least time that arithmetic and memory traffic allow, against the time taken. Results that stay in a cache between two steps count as
/// traffic, so a share may exceed 100 %.
pub fn lines(events: &[Event], peak: Option<Peak>) -> Vec<String> {
    let (mut kinds, mut shapes) = (BTreeMap::<&str, Sum>::new(), BTreeMap::<(&str, &str), Sum>::new());
    for event in events {
        kinds.entry(event.kernel).or_default().add(event);
        shapes.entry((event.kernel, &event.what)).or_default().add(event);
    }
    let share = if peak.is_some() { "  share" } else { "" };
    let mut lines = vec![format!("{:>10} {:>6} {:>10} {:>9} {:>8}{share}", "kernel", "count", "ms", "GFLOP/s", "GB/s")];
    lines.extend(kinds.iter().map(|(kind, sum)| sum.line(kind, "", peak)));
    let mut shapes: Vec<_> = shapes.into_iter().collect();
    shapes.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    lines.extend(shapes.iter().take(LISTED).map(|((kind, what), sum)| sum.line(kind, what, peak)));
    lines
}

/// The steps as a trace for `chrome://tracing` and Perfetto, times in microseconds.
pub fn chrome_trace(events: &[Event]) -> serde_json::Value {
    let mut now = 0.0;
    let mut trace = Vec::with_capacity(events.len());
    for event in events {
        let length = event.seconds * 1e6;
        trace.push(serde_json::json!({
            "name": event.kernel, "ph": "X", "pid": 0, "tid": 0, "ts": now, "dur": length,
            "args": {
                "what": event.what, "flops": event.flops, "bytes": event.bytes,
                "gflops_per_s": event.flops as f64 / event.seconds.max(1e-12) / 1e9,
            },
        }));
        now += length;
    }
    serde_json::json!({ "traceEvents": trace, "displayTimeUnit": "ms" })
}

/// Floating-point operations of the products of a step.
pub(crate) fn flops(step: &Step) -> u64 {
    match step {
        Step::ConvWeightGrad(grad) => grad.flops(),
        Step::Recurrence(layer) => layer.walk.flops(),
        Step::RecurrenceGrad(grad) => grad.walk.flops(),
        step => step.contracts().into_iter().map(contract_flops).sum(),
    }
}

fn contract_flops(c: &Contract) -> u64 {
    let rows = c.batch.iter().product::<usize>() * c.m;
    c.products.iter().map(|p| 2 * (rows * c.n * p.k) as u64).sum()
}

fn describe_contract(c: &Contract) -> String {
    let inner: Vec<usize> = c.products.iter().map(|p| p.k).collect();
    let after = c.epilogue.as_ref().map_or(0, |p| p.code.len());
    if let Some(p) = c.products.iter().find_map(|p| p.patch) {
        let kind = if p.transposed { "back " } else { "" };
        let sort = match p.depthwise {
            true => "depthwise ",
            false if p.winograd => "Winograd ",
            false => "",
        };
        let (image, grid, window, stride) = (p.image, p.grid, p.kernel, p.stride);
        return format!(
            "{kind}{sort}{:?} × {} × {image:?} → {} × {grid:?}, window {window:?} / {stride:?}, {after} instructions after",
            c.batch, p.channels, c.n
        );
    }
    format!("{:?} × {} × {inner:?} × {}, {after} instructions after", c.batch, c.m, c.n)
}

fn describe_walk(walk: &Walk) -> String {
    let (rule, sizes) = (&walk.rule, walk.sizes);
    format!("{:?}, {} × {} × {} × {}", rule.kind, sizes.steps, rule.backwards.len(), sizes.batch, sizes.hidden)
}

fn pool_name((images, channels): (usize, usize), w: &Windows) -> String {
    format!("{images} × {:?} × {channels}, window {:?} / {:?}", w.grid, w.kernel, w.stride)
}

fn describe(step: &Step, graph: &Graph) -> String {
    match step {
        Step::Contract(_) | Step::Chain(_) | Step::LineBuffer(_) => {
            step.contracts().into_iter().map(describe_contract).collect::<Vec<_>>().join("; ")
        }
        Step::Program(p) => format!("{} × {}, {} instructions", p.rows, p.cols, p.code.len()),
        Step::Reduce(r) => format!("{} × {}", r.rows, r.cols),
        Step::Copies(parts) => format!("{} parts", parts.len()),
        Step::Gather(g) => format!("{} × {} × {}, scatter: {}", g.outer, g.len, g.width, g.scatter),
        Step::ConvWeightGrad(g) => {
            let p = &g.patch;
            format!(
                "{} × {:?} × {} → {}, window {:?}, groups {}",
                g.images, p.grid, p.channels, g.outputs, p.kernel, p.groups.0
            )
        }
        Step::ChannelStats(s) => format!("{} × {}", s.extent.0, s.extent.1),
        Step::ChannelSums(s) => format!("{} × {}", s.extent.0, s.extent.1),
        Step::Pool(p) => pool_name(p.extent, &p.windows),
        Step::PoolGrad(p) => pool_name(p.extent, &p.windows),
        Step::CrossEntropy(c) => format!("{} × {}", c.instances, c.classes),
        Step::Recurrence(r) => describe_walk(&r.walk),
        Step::RecurrenceGrad(r) => describe_walk(&r.walk),
        Step::Mask(m) => format!("{:?}", m.out.shape),
        Step::Import(_, view) | Step::Export(view, _) => format!("{:?}", view.shape),
        Step::Reference(id, ..) => graph.node(*id).label(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kernel: &'static str, seconds: f64) -> Event {
        Event { kernel, what: "4 × 4".into(), seconds, flops: 2_000_000, bytes: 1_000_000 }
    }

    #[test]
    fn rates_and_shares() {
        let peak = Peak { gflops: 4.0, gbytes: 1.0 };
        let lines = lines(&[event("Map", 1e-3), event("Map", 1e-3)], Some(peak));
        assert_eq!(lines[0], "    kernel  count         ms   GFLOP/s     GB/s  share");
        assert_eq!(lines[1], "       Map      2       2.00       2.0      1.0   100 %");
        assert_eq!(lines[2], "       Map      2       2.00       2.0      1.0   100 %  4 × 4");
    }

    #[test]
    fn a_trace_has_one_event_after_the_other() {
        let trace = chrome_trace(&[event("Map", 1e-3), event("Row", 2e-3)]);
        let times: Vec<f64> =
            trace["traceEvents"].as_array().unwrap().iter().map(|e| e["ts"].as_f64().unwrap()).collect();
        assert_eq!(times, [0.0, 1000.0]);
    }
}
