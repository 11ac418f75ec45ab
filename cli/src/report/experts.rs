//! What SAMUEL did in a run: which expert, that is which learning rate, it believed in at each step, what rate came of it,
//! and how the experts fared.

use super::curves::{Page, first, last, scale_of, way};
use super::run::Run;
use crate::chart::{Chart, Colour, Layer, Pen, Point, Scale, Series, axis::tick, colour, number, thin};

/// An expert: its place in the lists, its rate at the end of the run, its colour. Ordered from the lowest rate to the highest.
struct Expert {
    place: usize,
    rate: Option<f64>,
    colour: Colour,
}

impl Expert {
    fn name(&self) -> String {
        self.rate.map_or(format!("expert {}", self.place), |rate| tick(crate::chart::axis::digits(rate, 3)))
    }
}

/// The experts of a run; empty if SAMUEL had no part in it.
fn experts(run: &Run) -> Vec<Expert> {
    let count = ["samuel/probability", "samuel/loss"].iter().flat_map(|name| run.lists(name));
    let count = count.map(|(_, list)| list.len()).max().unwrap_or(0);
    // The greatest rate of each expert, so that a rate that falls to 0 with a schedule still names it.
    let highest = |i: usize| {
        let rates = run.lists("samuel/rate").iter().filter_map(|(_, list)| list.get(i));
        rates.copied().filter(|r| r.is_finite()).reduce(f64::max)
    };
    let mut experts: Vec<(usize, Option<f64>)> = (0..count).map(|i| (i, highest(i))).collect();
    experts.sort_by(|a, b| a.1.unwrap_or(f64::NAN).total_cmp(&b.1.unwrap_or(f64::NAN)));
    let place = |i: usize| if count > 1 { i as f64 / (count - 1) as f64 } else { 0.5 };
    let colours = (0..count).map(|i| colour::heat(place(i)));
    experts.into_iter().zip(colours).map(|((place, rate), colour)| Expert { place, rate, colour }).collect()
}

/// The charts of a run; `page` has only this run.
pub fn charts(page: &Page) -> Vec<Chart> {
    let run = &page.runs[0];
    let experts = experts(run);
    [probabilities(page, run, &experts), effective_rate(page, run, &experts), losses(page, run, &experts)]
        .into_iter()
        .flatten()
        .collect()
}

/// The areas of the experts' probabilities.
fn probabilities(page: &Page, run: &Run, experts: &[Expert]) -> Option<Chart> {
    let shares = thin::shares(run.lists("samuel/probability"), 400);
    let played = run.curve("samuel/played");
    let remark = |place: usize| {
        let count = played.iter().filter(|p| p.1 == place as f64).count();
        match played.is_empty() {
            true => String::new(),
            false => format!("played in {} % of the steps", (100.0 * count as f64 / played.len() as f64).round()),
        }
    };
    let points = |place: usize| shares.iter().map(move |(x, list)| (*x, list.get(place).copied().unwrap_or(0.0)));
    let stack: Vec<Series> = experts
        .iter()
        .map(|expert| Series { remark: remark(expert.place), ..series(expert, Pen::Solid, points(expert.place)) })
        .collect();
    let end = |series: &Series| series.points.last().map_or(0.0, |p| p.1);
    let likeliest = stack.iter().max_by(|a, b| end(a).total_cmp(&end(b)))?;
    let title = format!(
        "In the end SAMUEL trusted the learning rate {} most, with probability {}.",
        likeliest.name,
        number(crate::chart::axis::digits(end(likeliest), 2))
    );
    let note =
        "The probabilities of the experts, each labelled with its learning rate, stacked from the lowest rate (blue) \
                to the highest (red)."
            .to_string();
    let layers = vec![Layer::Stack(stack)];
    Some(Chart { title, note, large: true, layers, ..page.chart("probability") })
}

/// The rate that the probabilities come to, and behind it the experts' own.
fn effective_rate(page: &Page, run: &Run, experts: &[Expert]) -> Option<Chart> {
    let curve = run.curve("samuel/effective_rate");
    let (from, to) = (first(curve)?, last(curve)?);
    let rates = |place: usize| {
        run.lists("samuel/rate").iter().map(move |(x, list)| (*x, list.get(place).copied().unwrap_or(f64::NAN)))
    };
    let mut layers: Vec<Layer> =
        experts.iter().map(|expert| Layer::Line(series(expert, Pen::Faint, rates(expert.place)))).collect();
    let colour = colour::category(colour::CATEGORY_COUNT - 1);
    let name = "effective rate".to_string();
    layers.push(Layer::Line(Series { name, remark: String::new(), colour, pen: Pen::Solid, points: curve.to_vec() }));
    Some(Chart {
        title: format!("The effective learning rate {}.", way(from, to)),
        note: "The pale lines are the experts' own rates.".to_string(),
        scale: Scale::Logarithmic,
        layers,
        ..page.chart("learning rate")
    })
}

/// The loss of each expert.
fn losses(page: &Page, run: &Run, experts: &[Expert]) -> Option<Chart> {
    let lists = run.lists("samuel/loss");
    let curve = |place: usize| -> Vec<Point> {
        lists.iter().map(|(x, list)| (*x, list.get(place).copied().unwrap_or(f64::NAN))).collect()
    };
    let smooth = |expert: &Expert| series(expert, Pen::Solid, thin::smooth(&curve(expert.place)).0.into_iter());
    let lines: Vec<Series> = experts.iter().map(smooth).collect();
    // An expert that diverges would leave no room for the others.
    let begun = lists.first().map(|(_, list)| list.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::max));
    let cap = begun.map(|begun| 3.0 * begun).filter(|cap| *cap > 0.0);
    let lost = |p: &Point| !p.1.is_finite() || cap.is_some_and(|cap| p.1 > cap);
    let lost = experts.iter().filter(|expert| curve(expert.place).iter().any(lost)).count();
    let ends = lines.iter().filter_map(|s| Some((s, last(&s.points)?)));
    let (best, loss) = ends.min_by(|a, b| a.1.total_cmp(&b.1))?;
    let title = format!("The expert with rate {} ended with the lowest loss, {}.", best.name, number(loss));
    let note = match lost {
        0 => String::new(),
        _ => format!(
            "On the upper edge: {lost} of the {} losses, at times not finite or three times what they were at first.",
            lines.len()
        ),
    };
    let chart = Chart {
        title,
        note,
        cap,
        from_zero: true,
        layers: lines.into_iter().map(Layer::Line).collect(),
        ..page.chart("loss")
    };
    let scale = scale_of(&chart);
    (!chart.is_empty()).then_some(Chart { scale, ..chart })
}

fn series(expert: &Expert, pen: Pen, points: impl Iterator<Item = Point>) -> Series {
    Series { name: expert.name(), remark: String::new(), colour: expert.colour.clone(), pen, points: points.collect() }
}
