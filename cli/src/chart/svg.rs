//! The plot of a chart: an SVG of 1000 by 1000 units, stretched by the page, and the labels around and over it.

use super::axis::tick;
use super::{Axis, Chart, Layer, Pen, Point, Series, escape, pen_class, thin};
use std::fmt::Write;

/// The plot's axes.
pub(super) struct Frame {
    pub x: Axis,
    pub y: Axis,
}

/// A place in the plot, to a tenth of a unit.
fn short(value: f64) -> f64 {
    (value * 10.0).round() / 10.0 + 0.0
}

impl Frame {
    fn across(&self, step: f64) -> f64 {
        short(1000.0 * self.x.at(step).unwrap_or(0.0))
    }
    fn down(&self, value: f64) -> f64 {
        short(1000.0 - 1000.0 * self.y.at(value).unwrap_or(0.0))
    }
    /// Grid, marks and layers. `points`: how many a curve may have.
    pub fn svg(&self, chart: &Chart, points: usize) -> String {
        let lines: String = self.y.ticks.iter().map(|t| format!("M0 {}H1000", self.down(*t))).collect();
        let mut out = format!(
            "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">\n\
             <path class=\"grid\" d=\"{lines}\"/>\n",
            escape(&chart.title)
        );
        for layer in &chart.layers {
            match layer {
                Layer::Line(series) => self.line(&mut out, series, points),
                Layer::Stack(list) => self.stack(&mut out, list),
                Layer::Columns(series, width) => self.columns(&mut out, series, *width),
            }
        }
        let (low, high) = self.x.range();
        let over = if chart.is_stacked() { " area-mark" } else { "" };
        for mark in chart.marks.iter().filter(|m| (low..=high).contains(&m.step)) {
            let x = self.across(mark.step);
            let _ = writeln!(out, "<path class=\"mark {}{over}\" d=\"M{x} 0V1000\"/>", mark.name);
        }
        out + "</svg>\n"
    }
    fn line(&self, out: &mut String, series: &Series, points: usize) {
        let parts = thin::extremes(&series.points, (points / 2).clamp(40, 900));
        let line: String = parts.iter().map(|part| self.path(part)).collect();
        let (class, style) = (pen_class(series.pen), series.colour.style());
        let _ = writeln!(out, "<g class=\"ink\" style=\"{style}\"><path class=\"line {class}\" d=\"{line}\"/>");
        if series.pen == Pen::Dotted {
            let dots: String =
                parts.iter().flatten().map(|p| format!("M{} {}h0", self.across(p.0), self.down(p.1))).collect();
            let _ = writeln!(out, "<path class=\"dots\" d=\"{dots}\"/>");
        }
        out.push_str("</g>\n");
        self.lost(out, series);
    }
    /// What is not finite is a dot on the upper edge.
    fn lost(&self, out: &mut String, series: &Series) {
        let lost = series.points.iter().filter(|p| !p.1.is_finite() && series.pen != Pen::Faint);
        let mut places: Vec<f64> = lost.map(|p| (self.across(p.0) / 10.0).round() * 10.0).collect();
        places.dedup();
        if !places.is_empty() {
            let dots: String = places.iter().map(|x| format!("M{x} 0h0")).collect();
            let _ = writeln!(
                out,
                "<g class=\"ink\" style=\"{}\"><path class=\"dots lost\" d=\"{dots}\"/></g>",
                series.colour.style()
            );
        }
    }
    fn path(&self, part: &[Point]) -> String {
        let mut path = String::new();
        for (i, point) in part.iter().enumerate() {
            let letter = if i == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{} {}", self.across(point.0), self.down(point.1));
        }
        // A line of one point is a dot.
        if part.len() == 1 { path + "h0" } else { path }
    }
    fn columns(&self, out: &mut String, series: &Series, width: f64) {
        let mut path = String::new();
        for (x, y) in series.points.iter().filter(|p| p.1 > 0.0) {
            let (left, right) = (self.across(x - width / 2.0), self.across(x + width / 2.0));
            let (foot, top) = (self.down(0.0), self.down(*y));
            let _ = write!(path, "M{left} {foot}V{top}H{right}V{foot}Z");
        }
        let style = series.colour.style();
        let _ = writeln!(out, "<g class=\"ink\" style=\"{style}\"><path class=\"column\" d=\"{path}\"/></g>");
    }
    fn stack(&self, out: &mut String, list: &[Series]) {
        for (i, series) in list.iter().enumerate() {
            let upper = series.points.iter().enumerate().map(|(j, p)| (p.0, below(list, i + 1, j)));
            let lower = series.points.iter().enumerate().map(|(j, p)| (p.0, below(list, i, j)));
            let around: Vec<Point> = lower.chain(upper.rev()).map(|(x, y)| (x, y.min(1.0))).collect();
            let (style, path) = (series.colour.style(), self.path(&around).replace("L0 1000L0 1000", "L0 1000"));
            let _ = writeln!(out, "<g class=\"ink\" style=\"{style}\"><path class=\"area\" d=\"{path}Z\"/></g>");
        }
    }
    /// The numbers of both axes, and the names of stacked shares. `wide`: how many steps are labelled.
    pub fn labels(&self, chart: &Chart, wide: usize) -> String {
        let mut out = String::new();
        for value in &self.y.ticks {
            let _ =
                writeln!(out, "<span class=\"y\" style=\"top:{}%\">{}</span>", self.down(*value) / 10.0, tick(*value));
        }
        let every = self.x.ticks.len().div_ceil(wide.max(1)).max(1);
        for step in self.x.ticks.iter().step_by(every) {
            let _ =
                writeln!(out, "<span class=\"x\" style=\"left:{}%\">{}</span>", self.across(*step) / 10.0, tick(*step));
        }
        for layer in &chart.layers {
            if let Layer::Stack(list) = layer {
                (0..list.len()).for_each(|i| self.name_share(&mut out, list, i));
            }
        }
        out
    }
    /// The name of a share, where it is thickest, if a line of text fits in.
    fn name_share(&self, out: &mut String, list: &[Series], i: usize) {
        const LEAST: f64 = 0.12;
        let points = &list[i].points;
        // Around a place a name needs room: the least of the shares there counts.
        let reach = (points.len() / 14).max(1);
        let room = |j: usize| {
            let near = &points[j.saturating_sub(reach)..(j + reach + 1).min(points.len())];
            near.iter().map(|p| p.1).fold(f64::INFINITY, f64::min)
        };
        let inner = (0..points.len()).filter(|&j| (50.0..=950.0).contains(&self.across(points[j].0)));
        let inner: Vec<usize> = if points.len() < 8 { (0..points.len()).collect() } else { inner.collect() };
        let most = inner.iter().map(|&j| room(j)).fold(0.0, f64::max);
        if most < LEAST {
            return;
        }
        // Where it is nearly thickest, as far in the middle as can be.
        let off = |j: usize| (self.across(points[j].0) - 500.0).abs();
        let best = inner.into_iter().filter(|&j| room(j) >= 0.95 * most).min_by(|&a, &b| off(a).total_cmp(&off(b)));
        let Some(j) = best else { return };
        let (left, top) =
            (self.across(points[j].0).clamp(50.0, 950.0), self.down(below(list, i, j) + points[j].1 / 2.0));
        let _ = writeln!(
            out,
            "<span class=\"share\" style=\"left:{}%;top:{}%\">{}</span>",
            left / 10.0,
            top / 10.0,
            escape(&list[i].name)
        );
    }
}

/// What lies below the i-th share at its j-th point.
fn below(list: &[Series], i: usize, j: usize) -> f64 {
    list[..i].iter().filter_map(|s| s.points.get(j)).map(|p| p.1.max(0.0)).sum()
}
