//! Charts for an HTML page, over steps or over another number, and bars ([`bars`]); drawn without a script.
//!
//! The plot is an SVG that is stretched to whatever room there is; lines keep their width. Labels are HTML beside and over
//! it, placed by percentages, so that they stay readable on a narrow page. The values stand once more in a block of JSON,
//! for the page's script to show under the pointer.
//!
//! ```text
//! Chart { title, axes, layers: [Line(Series), Stack([Series, …]), Columns(Series, width)], marks }  →  <figure> … </figure>
//! ```
//!
//! Texts are escaped here: they may come from anywhere.

pub mod axis;
pub mod bars;
pub mod colour;
mod svg;
pub mod thin;

pub use axis::{Axis, Scale, number};
pub use bars::{Bars, Row};
pub use colour::Colour;
pub use thin::Point;

use serde_json::{Value, json};
use svg::Frame;

/// A chart.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// A sentence: what there is to see.
    pub title: String,
    /// More about it, in smaller letters; may be empty.
    pub note: String,
    /// What the vertical axis measures.
    pub unit: String,
    /// Whether it gets the whole width and more height.
    pub large: bool,
    /// How values become heights.
    pub scale: Scale,
    /// Whether the vertical axis begins at 0, if no value is negative.
    pub from_zero: bool,
    /// Values above this do not make the axis longer: they lie on its upper edge.
    pub cap: Option<f64>,
    /// What the horizontal axis measures, if not steps.
    pub across: Option<&'static str>,
    /// The first and the last step.
    pub steps: Option<(f64, f64)>,
    /// What is drawn, from back to front.
    pub layers: Vec<Layer>,
    /// Vertical lines.
    pub marks: Vec<Mark>,
}

/// Something drawn over the steps.
#[derive(Clone, Debug)]
pub enum Layer {
    /// A curve.
    Line(Series),
    /// Shares one upon the other, the first lowest. All have the same steps.
    Stack(Vec<Series>),
    /// Columns from 0 up, so wide, around the steps.
    Columns(Series, f64),
}

/// Values over steps.
#[derive(Clone, Debug)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// What the legend says besides; may be empty.
    pub remark: String,
    /// Its colour.
    pub colour: Colour,
    /// How a curve is drawn.
    pub pen: Pen,
    /// The values.
    pub points: Vec<Point>,
}

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pen {
    /// A line.
    #[default]
    Solid,
    /// A line of dashes.
    Dashed,
    /// A line with a dot at each point: for few points.
    Dotted,
    /// A thin pale line, neither in the legend nor under the pointer: the noise behind a smoothed curve.
    Faint,
}

/// A vertical line at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// The step.
    pub step: f64,
    /// What it is, as the legend says; marks of one name look alike.
    pub name: &'static str,
}

/// So many points are drawn in a chart, and told to the script.
const DRAWN: usize = 3600;
const TOLD: usize = 1200;
/// So many names fit above a small chart.
const MOST_NAMED: usize = 6;

impl Chart {
    /// Whether there is anything to see.
    pub fn is_empty(&self) -> bool {
        !self.series().any(|s| s.points.iter().any(|p| p.1.is_finite()))
    }
    /// Whether its values are shares of 1.
    fn is_stacked(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer, Layer::Stack(_)))
    }
    /// The chart as a `<figure>`.
    pub fn html(&self) -> String {
        let frame = self.frame();
        let (class, wide) = if self.large { ("chart large", 9) } else { ("chart", 5) };
        let note = if self.note.is_empty() { String::new() } else { format!("<p>{}</p>", escape(&self.note)) };
        let gutter = frame.y.ticks.iter().map(|t| axis::tick(*t).chars().count()).max().unwrap_or(1);
        format!(
            "<figure class=\"{class}\">\n<figcaption><h3>{}</h3>{note}</figcaption>\n{}\
             <div class=\"frame\" style=\"--gutter:{gutter}ch\">\n<div class=\"unit\">{}</div>\n<div class=\"plot\">\n{}{}</div>\n\
             <div class=\"under\">{}</div>\n</div>\n<script type=\"application/json\">{}</script>\n</figure>\n",
            escape(&self.title),
            self.legend(),
            escape(&self.unit),
            frame.svg(self, DRAWN / self.series().count().max(1)),
            frame.labels(self, wide),
            escape(self.across.unwrap_or("step")),
            self.values(&frame),
        )
    }
    /// All curves and shares.
    fn series(&self) -> impl Iterator<Item = &Series> {
        self.layers.iter().flat_map(|layer| match layer {
            Layer::Line(series) | Layer::Columns(series, _) => std::slice::from_ref(series),
            Layer::Stack(list) => list,
        })
    }
    fn frame(&self) -> Frame {
        let steps = self.series().flat_map(|s| &s.points).map(|p| p.0).filter(|x| x.is_finite());
        let (low, high) = steps.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        let (low, high) = self.steps.unwrap_or(if low > high { (0.0, 1.0) } else { (low, high) });
        let lines = self.layers.iter().filter_map(|layer| match layer {
            Layer::Line(series) | Layer::Columns(series, _) => Some(series.points.iter().map(|p| p.1)),
            Layer::Stack(_) => None,
        });
        let ends = self.is_stacked().then_some([0.0, 1.0]).into_iter().flatten();
        let low_enough = |value: &f64| self.cap.is_none_or(|cap| *value <= cap);
        let y = Axis::around(self.scale, lines.flatten().filter(low_enough).chain(ends), self.from_zero);
        Frame { x: Axis::exact(low, high), y }
    }
    /// Names and colours, where there is more than one curve. Stacked shares from top to bottom. Large charts also say what
    /// the vertical lines are; small ones do without, if it would be long, as the large ones of their page have it.
    fn legend(&self) -> String {
        let mut entries = Vec::new();
        for layer in &self.layers {
            match layer {
                Layer::Line(series) if series.pen != Pen::Faint => entries.push(entry(series, pen_class(series.pen))),
                Layer::Line(_) | Layer::Columns(..) => {}
                Layer::Stack(list) => entries.extend(list.iter().rev().map(|series| entry(series, "box"))),
            }
        }
        if entries.len() == 1 || (entries.len() > MOST_NAMED && !self.large) {
            entries.clear();
        }
        let mut names: Vec<&str> = self.marks.iter().filter(|_| self.large).map(|mark| mark.name).collect();
        names.sort_unstable();
        names.dedup();
        entries.extend(names.iter().map(|name| format!("<li><i class=\"key mark {name}\"></i>{name}</li>\n")));
        if entries.is_empty() { String::new() } else { format!("<ul class=\"legend\">\n{}</ul>\n", entries.concat()) }
    }
    /// What the script shows under the pointer.
    fn values(&self, frame: &Frame) -> String {
        let shown: Vec<&Series> = self.series().filter(|s| s.pen != Pen::Faint).collect();
        let count = (TOLD / shown.len().max(1)).max(20);
        let told = |series: &&Series| {
            let points = thin::sample(&series.points, count);
            let numbers =
                |which: fn(&Point) -> f64, n: usize| points.iter().map(|p| told(which(p), n)).collect::<Vec<Value>>();
            json!({"name": series.name, "light": series.colour.light, "dark": series.colour.dark,
                   "x": numbers(|p| p.0, 9), "y": numbers(|p| p.1, 4)})
        };
        let series: Vec<Value> = shown.iter().map(told).collect();
        let (low, high) = frame.x.range();
        // In a script element only `<` could end it.
        let mut all = json!({"x": [low, high], "stacked": self.is_stacked(), "series": series});
        if let Some(across) = self.across {
            all["across"] = json!(across);
        }
        all.to_string().replace('<', "\\u003c")
    }
}

fn told(value: f64, count: usize) -> Value {
    let value = axis::digits(value, count);
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn entry(series: &Series, class: &str) -> String {
    let remark =
        if series.remark.is_empty() { String::new() } else { format!(" <small>{}</small>", escape(&series.remark)) };
    format!(
        "<li><i class=\"key ink {class}\" style=\"{}\"></i>{}{remark}</li>\n",
        series.colour.style(),
        escape(&series.name)
    )
}

fn pen_class(pen: Pen) -> &'static str {
    match pen {
        Pen::Solid => "solid",
        Pen::Dashed => "dashed",
        Pen::Dotted => "dotted",
        Pen::Faint => "faint",
    }
}

/// The text with what HTML would take for markup written out.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, pen: Pen, points: &[Point]) -> Series {
        let colour = colour::category(0);
        Series { name: name.into(), remark: String::new(), colour, pen, points: points.to_vec() }
    }

    #[test]
    fn a_line_from_corner_to_corner() {
        let line = series("loss</script>", Pen::Solid, &[(0.0, 1.0), (5.0, f64::NAN), (10.0, 0.0)]);
        let marks = vec![Mark { step: 5.0, name: "restart" }];
        let chart = Chart {
            title: "It <fell>".into(),
            layers: vec![Layer::Line(line)],
            marks,
            large: true,
            ..Chart::default()
        };
        let html = chart.html();
        assert!(html.contains("<h3>It &lt;fell&gt;</h3>"), "{html}");
        assert!(html.contains("d=\"M0 0h0M1000 1000h0\""), "{html}");
        assert!(html.contains("<path class=\"mark restart\" d=\"M500 0V1000\"/>"), "{html}");
        assert!(html.contains("{\"name\":\"loss\\u003c/script>\""), "{html}");
        assert!(html.contains("\"x\":[0,5,10],\"y\":[1,null,0]"), "{html}");
        assert!(html.contains("<span class=\"y\" style=\"top:50%\">0.5</span>"), "{html}");
    }

    #[test]
    fn shares_are_stacked_and_named_where_there_is_room() {
        let thin = series("small", Pen::Solid, &[(0.0, 0.05), (10.0, 0.05)]);
        let thick = series("large", Pen::Solid, &[(0.0, 0.95), (10.0, 0.95)]);
        let chart = Chart { layers: vec![Layer::Stack(vec![thin, thick])], large: true, ..Chart::default() };
        let html = chart.html();
        assert!(html.contains("d=\"M0 950L1000 950L1000 0L0 0Z\""), "{html}");
        assert!(html.contains(">large</span>") && !html.contains(">small</span>"), "{html}");
        let names: Vec<usize> = ["</i>large", "</i>small"].iter().filter_map(|n| html.find(n)).collect();
        assert!(names[0] < names[1], "{html}");
        assert!(Chart::default().is_empty() && !chart.is_empty());
    }

    #[test]
    fn columns_stand_around_their_places() {
        let columns = series("inputs", Pen::Solid, &[(0.25, 1.0), (0.75, 2.0)]);
        let layers = vec![Layer::Columns(columns, 0.5)];
        let (across, steps) = (Some("cost"), Some((0.0, 1.0)));
        let html = Chart { across, steps, from_zero: true, layers, ..Chart::default() }.html();
        assert!(html.contains("<path class=\"column\" d=\"M0 1000V500H500V1000ZM500 1000V0H1000V1000Z\"/>"), "{html}");
        assert!(html.contains("<div class=\"under\">cost</div>") && html.contains("\"across\":\"cost\""), "{html}");
    }

    #[test]
    fn what_is_above_the_cap_lies_on_the_edge() {
        let line = series("loss", Pen::Solid, &[(0.0, 1.0), (5.0, 1e30), (10.0, 0.0)]);
        let chart = Chart { cap: Some(3.0), layers: vec![Layer::Line(line)], ..Chart::default() };
        assert!(chart.html().contains("d=\"M0 0L500 0L1000 1000\""), "{}", chart.html());
    }
}
