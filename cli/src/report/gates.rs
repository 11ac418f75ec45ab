//! How a run's gates are used: per block, per class, how much inputs differ, which cost least and most; and, of several runs, what they
//! reach at what cost.

use super::curves::Page;
use super::pictures::{Picture, Pictures};
use super::run::Run;
use crate::chart::axis::digits;
use crate::chart::{Bars, Chart, Colour, Layer, Pen, Point, Row, Series, colour, escape, number};
use crate::gates::{BlockUse, ClassUse, Gates, mean, percent};
use sartor_runtime::train::gates::Example;

/// At most so many classes are shown of either end.
const CLASSES: usize = 12;

/// The figures of a run; `page` has only this run. Empty if it has no gates.
pub fn figures(page: &Page) -> String {
    let run = &page.runs[0];
    let Some(gates) = &run.gates else { return String::new() };
    let charts: Vec<String> = [costs(gates), kinds(page, run)].into_iter().flatten().map(|c| c.html()).collect();
    let bars = [layers(gates), channels(gates), classes(gates)].into_iter().flatten().map(|bars| bars.html());
    let all: String = charts.into_iter().chain(bars).collect();
    format!("<div class=\"charts\">\n{all}</div>\n{}", pictures(run, gates))
}

/// Two digits are enough for a cost in a text.
fn short(cost: f64) -> String {
    number(digits(cost, 3))
}

/// The costs of the inputs.
fn costs(gates: &Gates) -> Option<Chart> {
    let histogram = &gates.histogram;
    let count = histogram.counts.len();
    if count == 0 {
        return None;
    }
    let (low, high) = match count {
        1 => (histogram.low - 0.05, histogram.high + 0.05),
        _ => (histogram.low, histogram.high),
    };
    let width = (high - low) / count as f64;
    let place = |(i, inputs): (usize, &u64)| (low + (i as f64 + 0.5) * width, *inputs as f64);
    let points: Vec<Point> = histogram.counts.iter().enumerate().map(place).collect();
    let title = match count {
        1 => format!("Every input costs {} of the whole model.", short(gates.cost)),
        _ => format!(
            "An input costs between {} and {} of the whole model, {} in the mean.",
            short(histogram.low),
            short(histogram.high),
            short(gates.cost)
        ),
    };
    let mut note =
        format!("How many of the {} inputs of the {} data cost how much.", number(gates.examples as f64), gates.split);
    if let [first, .., last] = gates.quarters.as_slice() {
        note += &format!(
            " The model is right for {} of the cheapest quarter and for {} of the dearest.",
            percent(first.accuracy),
            percent(last.accuracy)
        );
    }
    let layers = vec![Layer::Columns(series("inputs", colour::category(0), Pen::Solid, points), width)];
    Some(Chart {
        title,
        note,
        unit: "inputs".to_string(),
        from_zero: true,
        across: Some("cost"),
        steps: Some((low, high)),
        layers,
        ..Chart::default()
    })
}

/// What a gate can be, and how it is painted.
fn parts() -> [(String, Colour); 3] {
    [("dead", colour::quiet()), ("dynamic", colour::category(0)), ("always on", colour::category(1))]
        .map(|(name, colour)| (name.to_string(), colour))
}

/// The shares of dead gates and so on, over the run.
fn kinds(page: &Page, run: &Run) -> Option<Chart> {
    let curves = ["eval/gates_dead", "eval/gates_dynamic", "eval/gates_always"].map(|name| run.curve(name));
    let (first, last) = (curves[1].first()?, curves[1].last()?);
    if curves.iter().any(|curve| curve.len() != curves[1].len()) || first.0 == last.0 {
        return None;
    }
    let title = format!(
        "In the end {} of the gates depend on the input, {} are shut for all of them.",
        percent(last.1),
        percent(curves[0].last()?.1)
    );
    let stack = parts().into_iter().zip(curves);
    let stack = stack.map(|((name, colour), curve)| series(&name, colour, Pen::Solid, curve.to_vec())).collect();
    let note = "The shares of all gates, at each evaluation.".to_string();
    Some(Chart { title, note, layers: vec![Layer::Stack(stack)], ..page.chart("share of the gates") })
}

/// For what share of the inputs each block is run.
fn layers(gates: &Gates) -> Option<Bars> {
    let blocks: Vec<(&BlockUse, f64)> = gates.blocks.iter().filter_map(|b| Some((b, b.layer?))).collect();
    let (least, share) = blocks.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let skipped = blocks.iter().filter(|(_, share)| *share == 0.0).count();
    let title = match (skipped, *share == 1.0) {
        (_, true) => "No block is ever skipped.".to_string(),
        (0, _) => format!("“{}” is skipped most often: it is run for {} of the inputs.", least.name, percent(*share)),
        (1, _) => format!("“{}” is skipped by every input.", least.name),
        _ => format!("{skipped} of {} blocks are skipped by every input.", blocks.len()),
    };
    let row = |(block, share): &(&BlockUse, f64)| Row {
        name: block.name.clone(),
        shares: vec![*share],
        text: percent(*share),
    };
    Some(Bars {
        title,
        note: "The share of the inputs that each block is run for.".to_string(),
        parts: vec![("run".to_string(), colour::category(0))],
        rows: blocks.iter().map(row).collect(),
    })
}

/// What the gates of each block's channels are.
fn channels(gates: &Gates) -> Option<Bars> {
    let count = |b: &BlockUse| b.channels.dead + b.channels.always + b.channels.dynamic;
    let blocks: Vec<&BlockUse> = gates.blocks.iter().filter(|block| count(block) > 0).collect();
    let (all, dead) =
        (blocks.iter().map(|b| count(b)).sum::<usize>(), blocks.iter().map(|b| b.channels.dead).sum::<usize>());
    let dynamic: usize = blocks.iter().map(|b| b.channels.dynamic).sum();
    if blocks.is_empty() {
        return None;
    }
    let row = |block: &&BlockUse| {
        let kinds = block.channels;
        Row {
            name: block.name.clone(),
            shares: [kinds.dead, kinds.dynamic, kinds.always].map(|n| n as f64 / count(block) as f64).to_vec(),
            text: format!(
                "{} open of {}",
                number(digits(mean(block.channel_shares()) * count(block) as f64, 3)),
                count(block)
            ),
        }
    };
    Some(Bars {
        title: format!("Of {all} gated channels {} never computed, and {dynamic} for some inputs only.", are(dead)),
        note: "The channels of each block that are shut for every input, open for some, and open for all; beside them how many are \
               open in the mean."
            .to_string(),
        parts: parts().to_vec(),
        rows: blocks.iter().map(row).collect(),
    })
}

/// `1 is`, `2 are`.
fn are(count: usize) -> String {
    format!("{count} {}", if count == 1 { "is" } else { "are" })
}

/// What the inputs of each class cost.
fn classes(gates: &Gates) -> Option<Bars> {
    let mut classes: Vec<&ClassUse> = gates.classes.iter().collect();
    classes.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    let (cheapest, dearest) = (*classes.first()?, *classes.last()?);
    let mut note = "The mean cost of the inputs of each class, as a share of the whole model.".to_string();
    if classes.len() > 2 * CLASSES {
        note += &format!(" Shown are the {CLASSES} cheapest and the {CLASSES} dearest of {} classes.", classes.len());
        classes.drain(CLASSES..classes.len() - CLASSES);
    }
    let title = match short(cheapest.cost) == short(dearest.cost) {
        true => format!("All classes cost {}.", short(cheapest.cost)),
        false => format!(
            "Class {} costs least, {}, and class {} most, {}.",
            cheapest.class,
            short(cheapest.cost),
            dearest.class,
            short(dearest.cost)
        ),
    };
    let longest = dearest.cost.max(1.0);
    let row = |class: &&ClassUse| Row {
        name: format!("class {}", class.class),
        shares: vec![class.cost / longest],
        text: short(class.cost),
    };
    let parts = vec![("cost".to_string(), colour::category(0))];
    Some(Bars { title, note, parts, rows: classes.iter().map(row).collect() })
}

/// The inputs at both ends, as pictures, or by their places in the data.
fn pictures(run: &Run, gates: &Gates) -> String {
    if gates.cheapest.is_empty() {
        return String::new();
    }
    let rows = |examples: &[Example]| {
        let rows: Vec<String> = examples.iter().take(8).map(|example| example.row.to_string()).collect();
        rows.join(", ")
    };
    let places = format!(
        "The cheapest inputs of the {} data are its examples {}; the dearest are {} (counted from 0).",
        gates.split,
        rows(&gates.cheapest),
        rows(&gates.dearest)
    );
    match &run.pictures {
        Ok(Some(Pictures { cheapest, dearest })) => format!(
            "<figure class=\"pictures\">\n<h4>The cheapest inputs</h4>\n{}<h4>The dearest inputs</h4>\n{}</figure>\n",
            list(cheapest),
            list(dearest)
        ),
        Ok(None) => format!("<p class=\"lead\">{}</p>\n", escape(&places)),
        Err(error) => {
            let text = format!("{places} They cannot be shown: {}.", error.to_string().trim_end_matches('.'));
            format!("<p class=\"lead\">{}</p>\n", escape(&text))
        }
    }
}

fn list(pictures: &[Picture]) -> String {
    let item = |picture: &Picture| {
        let (row, cost) = (picture.example.row, short(picture.example.cost));
        format!("<li><img alt=\"example {row}\" src=\"{}\">{cost}<br>no. {row}</li>\n", picture.uri())
    };
    format!("<ol>\n{}</ol>\n", pictures.iter().map(item).collect::<String>())
}

/// What several runs reach at what cost, a point each; a run without gates costs 1. `None` if fewer than two runs can be compared, or none
/// has gates.
pub fn trade(page: &Page) -> Option<Chart> {
    page.runs.iter().find(|run| run.gates.is_some())?;
    let measures = ["accuracy", "loss"].map(|key| (key, places(page, key)));
    let (what, places) = measures.into_iter().find(|(_, places)| places.len() > 1)?;
    let mut line: Vec<Point> = places.iter().map(|(_, place)| *place).collect();
    line.sort_by(|a, b| a.0.total_cmp(&b.0));
    let grey = colour::category(colour::CATEGORY_COUNT - 1);
    let mut layers = vec![Layer::Line(series("", grey, Pen::Faint, line.clone()))];
    for (i, place) in &places {
        layers.push(Layer::Line(series(&page.runs[*i].name, page.look(*i).0, Pen::Dotted, vec![*place])));
    }
    let (least, most) = (line.first()?, line.last()?);
    let title = format!(
        "At {} of the cost the {what} is {}, at {} it is {}.",
        short(least.0),
        number(least.1),
        short(most.0),
        number(most.1)
    );
    let note = "Each point is a run: the mean cost of an input as a share of the whole model, and what it reaches. A run without \
                gates stands at 1."
        .to_string();
    let room = 0.05 * (most.0 - least.0).max(0.05);
    Some(Chart {
        title,
        note,
        unit: what.to_string(),
        large: true,
        across: Some("cost"),
        steps: Some((least.0 - room, most.0 + room)),
        layers,
        ..Chart::default()
    })
}

/// The cost of each run and what it reaches, on the test data if all runs were tested.
fn places(page: &Page, key: &str) -> Vec<(usize, Point)> {
    let value = |run: &Run, key: &str| run.summary.get(key).and_then(|v| v.as_f64()).filter(|v| v.is_finite());
    let tested = page.runs.iter().all(|run| value(run, &format!("test.{key}")).is_some());
    let split = if tested { "test" } else { "eval" };
    let place = |run: &Run| {
        Some((value(run, &format!("{split}.flops")).unwrap_or(1.0), value(run, &format!("{split}.{key}"))?))
    };
    page.runs.iter().enumerate().filter_map(|(i, run)| Some((i, place(run)?))).collect()
}

fn series(name: &str, colour: Colour, pen: Pen, points: Vec<Point>) -> Series {
    Series { name: name.to_string(), remark: String::new(), colour, pen, points }
}
