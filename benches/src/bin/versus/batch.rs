//! `versus batch`: what a sample costs in batches of every size, and whether a step takes the memory that was planned.
//!
//! Each size runs in a process of its own (`step`); the sizes take turns. The plot and the table show milliseconds per
//! sample, relative to the largest batch: flat means that a step costs in proportion to what is in it.

use crate::Args;
use sartor_bench::{Series, beside, cache, last_json, number, save, short, table};
use sartor_ir::Result;
use std::fmt::Write;
use std::process::Command;

struct Workload {
    name: &'static str,
    what: &'static str,
    recipe: &'static str,
    model: &'static str,
    sizes: &'static [usize],
}

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "minilm-lora",
        what: "MiniLM-L6, LoRA, 128 tokens",
        recipe: "lora-classifier",
        model: "minilm-l6-classifier-ts17.onnx",
        sizes: &[1, 2, 4, 8, 16, 32],
    },
    Workload {
        name: "resnet20",
        what: "ResNet-20, all parameters",
        recipe: "images",
        model: "resnet20-ts17.onnx",
        sizes: &[1, 2, 4, 8, 16, 32, 64, 128, 256],
    },
    Workload {
        name: "mobilenet-v2",
        what: "MobileNetV2, all parameters",
        recipe: "images",
        model: "mobilenetv2-ts17.onnx",
        sizes: &[1, 2, 4, 8, 16, 32],
    },
];

/// One size of a workload.
#[derive(Default)]
struct Found {
    milliseconds: Series,
    planned: Series,
    taken: Series,
}

/// Measures.
pub fn run(args: &Args) -> Result<()> {
    let head = [
        "workload",
        "batch",
        "ms per sample",
        "spread",
        "times the largest batch's",
        "planned MiB",
        "taken MiB",
        "taken / planned",
    ];
    let (mut rows, mut curves) = (Vec::new(), Vec::new());
    for workload in args.select(WORKLOADS, |w| w.name)? {
        let found = measure(args, workload)?;
        let last = found.last().map_or(f64::NAN, |f| f.milliseconds.median());
        for (size, found) in workload.sizes.iter().zip(&found) {
            let (cost, planned, taken) = (found.milliseconds.median(), found.planned.median(), found.taken.median());
            rows.push(vec![
                workload.what.to_string(),
                size.to_string(),
                short(cost),
                found.milliseconds.spread(),
                short(cost / last),
                short(planned),
                short(taken),
                short(taken / planned),
            ]);
        }
        let points = workload.sizes.iter().zip(&found).map(|(&size, f)| (size, f.milliseconds.median() / last));
        curves.push((workload.what, points.collect::<Vec<_>>()));
        println!("{}", table(&head, &rows));
    }
    let body = format!(
        "{} rounds by turns, {} steps each, 2 threads. Planned: arena, scratch memory, outputs, packed weights, parameters that are updated. Taken: what the \
         process's memory that no file stands behind grew by from before the first step to after the last.\n\n{}\n\
         ![Milliseconds per sample over the size of the batch](batch.svg)\n",
        args.rounds,
        args.steps,
        table(&head, &rows)
    );
    if args.only.is_empty() {
        save("batch.svg", &picture(&curves))?;
    }
    args.record("batch", "The cost of a sample, and memory", &body)
}

fn measure(args: &Args, workload: &Workload) -> Result<Vec<Found>> {
    let mut found: Vec<Found> = workload.sizes.iter().map(|_| Found::default()).collect();
    for round in 0..args.rounds {
        for (&size, found) in workload.sizes.iter().zip(&mut found) {
            eprintln!("{} {}/{}: {size}", workload.name, round + 1, args.rounds);
            let mut command = Command::new(beside("step")?);
            command.arg(workload.recipe).arg(cache().join("assets").join(workload.model));
            command.args(["--threads", "2", "--batch", &size.to_string(), "--steps", &args.steps.to_string()]);
            let numbers = last_json(&mut command)?;
            found.milliseconds.0.push(number(&numbers, "ms_per_step")? / size as f64);
            found.planned.0.push(number(&numbers, "planned_mib")?);
            found.taken.0.push(number(&numbers, "taken_mib")?);
        }
    }
    Ok(found)
}

/// Relative costs over batch sizes (each twice the one before), as SVG.
fn picture(curves: &[(&str, Vec<(usize, f64)>)]) -> String {
    const COLOURS: [&str; 3] = ["#1b6ca8", "#b5482a", "#4b8b3b"];
    let most = curves.iter().flat_map(|(_, c)| c).map(|&(_, y)| y).fold(2.0, f64::max).ceil();
    let x = |size: usize| 60.0 + (size as f64).log2() * 55.0;
    let y = |cost: f64| 280.0 - cost / most * 250.0;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"330\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"760\" height=\"330\" fill=\"white\"/>\n",
    );
    for step in 0..=(2.0 * most) as u32 {
        let cost = 0.5 * f64::from(step);
        let at = y(cost);
        _ = writeln!(svg, "<line x1=\"60\" x2=\"500\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>");
        _ = writeln!(svg, "<text x=\"50\" y=\"{:.1}\" text-anchor=\"end\">{cost:.1}</text>", at + 4.0);
    }
    for power in 0..=8 {
        let at = x(1 << power);
        _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"300\" text-anchor=\"middle\">{}</text>", 1 << power);
    }
    _ = writeln!(svg, "<text x=\"280\" y=\"320\" text-anchor=\"middle\">batch</text>");
    _ = writeln!(svg, "<text x=\"60\" y=\"20\">time per sample, relative to the largest batch</text>");
    for (i, (name, curve)) in curves.iter().enumerate() {
        let points: Vec<String> = curve.iter().map(|&(s, c)| format!("{:.1},{:.1}", x(s), y(c))).collect();
        let (colour, top) = (COLOURS[i % COLOURS.len()], 40 + 20 * i);
        let points = points.join(" ");
        _ = writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        _ = writeln!(
            svg,
            "<line x1=\"530\" x2=\"550\" y1=\"{top}\" y2=\"{top}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"556\" y=\"{}\">{name}</text>",
            top + 4
        );
    }
    svg + "</svg>\n"
}
