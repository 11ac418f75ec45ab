//! The curves of one run, or of several over each other: loss, evaluations, learning rate, gradient, speed, and whatever
//! else was logged. Each chart's title says in a sentence what there is to see.

use super::run::Run;
use crate::chart::{Chart, Colour, Layer, Mark, Pen, Point, Scale, Series, colour, number, thin};
use crate::training::higher_is_better;

/// What all charts of a page have in common.
pub struct Page<'a> {
    /// The runs.
    pub runs: &'a [Run],
    /// The first and the last step of any; 0 if the first is near it.
    pub steps: (f64, f64),
}

impl<'a> Page<'a> {
    /// For these runs.
    pub fn new(runs: &'a [Run]) -> Page<'a> {
        let metrics = runs.iter().map(|run| &run.metrics);
        let numbers = metrics.clone().flat_map(|m| m.numbers.values().flatten().map(|p| p.0));
        let lists = metrics.flat_map(|m| m.lists.values().flatten().map(|(step, _)| *step));
        let (low, high) = numbers.chain(lists).fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
        let low = if low < 0.05 * high { 0.0 } else { low.min(high) };
        Page { runs, steps: (low, high) }
    }
    /// The colour of the i-th run, and, once all colours are taken, dashes.
    pub fn look(&self, i: usize) -> (Colour, Pen) {
        (colour::category(i), if i < colour::CATEGORY_COUNT { Pen::Solid } else { Pen::Dashed })
    }
    /// An empty chart over the page's steps.
    pub fn chart(&self, unit: &str) -> Chart {
        let marks = if let [run] = self.runs { marks(run) } else { Vec::new() };
        Chart { unit: unit.to_string(), steps: Some(self.steps), marks, ..Chart::default() }
    }
    /// The curves of a metric, of those runs that have it.
    fn curves(&self, name: &str) -> Vec<(usize, &'a [Point])> {
        let curves = self.runs.iter().enumerate().map(|(i, run)| (i, run.curve(name)));
        curves.filter(|(_, curve)| curve.iter().any(|p| p.1.is_finite())).collect()
    }
    fn single(&self) -> bool {
        self.runs.len() == 1
    }
}

/// Where learning rates or links begin anew.
pub fn marks(run: &Run) -> Vec<Mark> {
    let restarts = run.curve("samuel/restart").iter().filter(|p| p.1 != 0.0);
    let mut marks: Vec<Mark> = restarts.map(|p| Mark { step: p.0, name: "restart" }).collect();
    let mut link = 0.0;
    for (step, value) in run.curve("knot") {
        if *value != link {
            link = *value;
            marks.push(Mark { step: *step, name: "knot" });
        }
    }
    marks
}

/// The training loss: smoothed, and, of a single run, what lies behind.
pub fn loss(page: &Page) -> Option<Chart> {
    let curves = page.curves("loss");
    let mut chart = Chart { large: true, from_zero: true, ..page.chart("loss") };
    let mut ends = Vec::new();
    for (i, curve) in curves {
        let (smooth, window) = thin::smooth(curve);
        let (colour, pen) = page.look(i);
        if page.single() {
            chart.layers.push(line("each logged step", colour.clone(), Pen::Faint, curve.to_vec()));
            chart.note =
                format!("The pale line is what was logged; the other is the mean over {window} of its points.");
        }
        ends.push((i, first(&smooth)?, last(&smooth)?));
        chart.layers.push(line(&page.runs[i].name, colour, pen, smooth));
    }
    chart.scale = scale_of(&chart);
    chart.title = match &ends[..] {
        [] => return None,
        [(_, from, to)] if page.single() => format!("The training loss {}.", way(*from, *to)),
        _ => {
            let best = ends.iter().min_by(|a, b| a.2.total_cmp(&b.2))?;
            format!("“{}” ended with the lowest training loss, {}.", page.runs[best.0].name, number(best.2))
        }
    };
    if !page.single() {
        chart.note = "The lines are means over a thirtieth of each run.".to_string();
    }
    Some(chart)
}

/// Every `eval/…` metric: accuracies first, then losses. How gates are used has its own section.
pub fn evaluations(page: &Page) -> Vec<Chart> {
    let names = page.runs.iter().flat_map(|run| run.metrics.numbers.keys());
    let mut names: Vec<&String> =
        names.filter(|name| name.starts_with("eval/") && !name.starts_with("eval/gates_")).collect();
    names.sort_by_key(|name| (!higher_is_better(name), *name != "eval/accuracy", *name));
    names.dedup();
    names.into_iter().filter_map(|name| evaluation(page, name)).collect()
}

fn evaluation(page: &Page, name: &str) -> Option<Chart> {
    let curves = page.curves(name);
    let what = plain(name.trim_start_matches("eval/"));
    let mut chart = page.chart(&what);
    let better = |a: f64, b: f64| if higher_is_better(name) { a > b } else { a < b };
    let mut best: Option<(usize, Point)> = None;
    for (i, curve) in &curves {
        let (colour, pen) = page.look(*i);
        let pen = if curve.len() <= 40 && pen == Pen::Solid { Pen::Dotted } else { pen };
        chart.layers.push(line(&page.runs[*i].name, colour, pen, curve.to_vec()));
        for point in curve.iter().filter(|p| p.1.is_finite()) {
            if best.is_none_or(|(_, (_, value))| better(point.1, value)) {
                best = Some((*i, *point));
            }
        }
    }
    let (run, (step, value)) = best?;
    let (value, step) = (number(value), number(step));
    let degree = if higher_is_better(name) { "highest" } else { "lowest" };
    chart.title = if page.single() {
        format!("On the evaluation set, {what} was {degree} at step {step}: {value}.")
    } else {
        format!("“{}” had the {degree} {what} on the evaluation set: {value}, at step {step}.", page.runs[run].name)
    };
    let scale = if higher_is_better(name) { Scale::Linear } else { scale_of(&chart) };
    Some(Chart { scale, ..chart })
}

/// Learning rate, gradient, speed, and the rest.
pub fn others(page: &Page) -> Vec<Chart> {
    const OWN: [&str; 4] = ["loss", "learning_rate", "grad_norm", "samples_per_second"];
    let known = |name: &str| OWN.contains(&name) || ["knot", "skipped_steps"].contains(&name) || name.contains('/');
    let mut more: Vec<&str> = page.runs.iter().flat_map(|r| r.metrics.numbers.keys()).map(String::as_str).collect();
    more.retain(|name| !known(name));
    more.sort_unstable();
    more.dedup();
    let named = [learning_rate(page), gradient(page), speed(page)];
    named.into_iter().chain(more.into_iter().map(|name| other(page, name))).flatten().collect()
}

fn learning_rate(page: &Page) -> Option<Chart> {
    let mut chart = plain_chart(page, "learning_rate", "learning rate")?;
    let highest = |curve: &[Point]| curve.iter().map(|p| p.1).fold(f64::MIN, f64::max);
    let peaks: Vec<f64> = page.curves("learning_rate").iter().map(|(_, curve)| highest(curve)).collect();
    let curve = page.curves("learning_rate").first()?.1;
    let (from, to, peak) = (first(curve)?, last(curve)?, peaks[0]);
    chart.title = if !page.single() {
        let (low, high) = peaks.iter().fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
        match low == high {
            true => format!("Every run's learning rate was {} at its highest.", number(low)),
            false => format!("The learning rates were between {} and {} at their highest.", number(low), number(high)),
        }
    } else if from == to && peak == from {
        format!("The learning rate was {} throughout.", number(from))
    } else if peak > from.max(to) {
        format!("The learning rate rose from {} to {} and ended at {}.", number(from), number(peak), number(to))
    } else {
        format!("The learning rate {}.", way(from, to))
    };
    Some(chart)
}

fn gradient(page: &Page) -> Option<Chart> {
    let mut chart = plain_chart(page, "grad_norm", "norm of the gradient")?;
    chart.scale = scale_of(&chart);
    let medians = medians(page, "grad_norm");
    chart.title = if page.single() {
        let highest = page.curves("grad_norm").first()?.1.iter().filter(|p| p.1.is_finite());
        let (step, highest) = highest.max_by(|a, b| a.1.total_cmp(&b.1))?;
        format!(
            "The gradient's norm was {} in the median and {} at its highest, at step {}.",
            number(medians.first()?.1),
            number(*highest),
            number(*step)
        )
    } else {
        let (i, least) = medians.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        format!("“{}” had the smallest gradients, of norm {} in the median.", page.runs[*i].name, number(*least))
    };
    Some(chart)
}

fn speed(page: &Page) -> Option<Chart> {
    let mut chart = plain_chart(page, "samples_per_second", "samples per second")?;
    let medians = medians(page, "samples_per_second");
    let (i, fastest) = medians.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let rate = number(crate::chart::axis::digits(*fastest, 3));
    chart.title = match page.single() {
        true => format!("The run took {rate} samples per second, in the median."),
        false => format!("“{}” was the fastest, with {rate} samples per second in the median.", page.runs[*i].name),
    };
    Some(chart)
}

fn other(page: &Page, name: &str) -> Option<Chart> {
    let mut chart = plain_chart(page, name, name)?;
    let curve = page.curves(name).first()?.1;
    chart.title = match page.single() {
        true => format!("The program's output “{name}” {}.", way(first(curve)?, last(curve)?)),
        false => format!("The program's output “{name}” differs between the runs."),
    };
    Some(chart)
}

/// A small chart of a metric, with what was logged behind its mean where that is noisy.
fn plain_chart(page: &Page, name: &str, unit: &str) -> Option<Chart> {
    let mut chart = Chart { from_zero: true, ..page.chart(unit) };
    for (i, curve) in page.curves(name) {
        let (colour, pen) = page.look(i);
        if name == "learning_rate" || curve.len() < 30 {
            chart.layers.push(line(&page.runs[i].name, colour, pen, curve.to_vec()));
            continue;
        }
        if page.single() {
            chart.layers.push(line(name, colour.clone(), Pen::Faint, curve.to_vec()));
        }
        chart.layers.push(line(&page.runs[i].name, colour, pen, thin::smooth(curve).0));
    }
    (!chart.is_empty()).then_some(chart)
}

fn line(name: &str, colour: Colour, pen: Pen, points: Vec<Point>) -> Layer {
    Layer::Line(Series { name: name.to_string(), remark: String::new(), colour, pen, points })
}

/// Logarithmic where values are positive and the largest is fifty times the smallest.
pub fn scale_of(chart: &Chart) -> Scale {
    let series = chart.layers.iter().filter_map(|layer| match layer {
        Layer::Line(series) => Some(series),
        Layer::Stack(_) | Layer::Columns(..) => None,
    });
    let values = series.flat_map(|s| &s.points).map(|p| p.1);
    let values = values.filter(|v| v.is_finite() && chart.cap.is_none_or(|cap| *v <= cap));
    let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(a, b), v| (a.min(v), b.max(v)));
    if low > 0.0 && high >= 50.0 * low { Scale::Logarithmic } else { Scale::Linear }
}

fn medians(page: &Page, name: &str) -> Vec<(usize, f64)> {
    let curves = page.curves(name).into_iter();
    curves.filter_map(|(i, curve)| Some((i, median(curve.iter().map(|p| p.1))?))).collect()
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// `fell from 2 to 1`, `rose from 1 to 2`, `was 1 from the first step to the last`.
pub fn way(from: f64, to: f64) -> String {
    let (start, end) = (number(from), number(to));
    match from.partial_cmp(&to) {
        _ if start == end => format!("was {start} at both ends"),
        Some(std::cmp::Ordering::Greater) => format!("fell from {start} to {end}"),
        _ => format!("rose from {start} to {end}"),
    }
}

pub fn first(curve: &[Point]) -> Option<f64> {
    curve.iter().map(|p| p.1).find(|v| v.is_finite())
}

pub fn last(curve: &[Point]) -> Option<f64> {
    curve.iter().map(|p| p.1).rfind(|v| v.is_finite())
}

/// The name of a metric in a sentence.
pub fn plain(name: &str) -> String {
    match name {
        "mse" => "squared error".to_string(),
        other => other.replace("macro_f1", "macro F1").replace('_', " "),
    }
}
