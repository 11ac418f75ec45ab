//! Axes: a range, where in it a value lies, its ticks at round numbers, and how numbers are written.

/// How values become places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally far apart.
    #[default]
    Linear,
    /// Equal ratios are equally far apart; what is not positive has no place.
    Logarithmic,
}

/// A range of values with ticks.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    /// Where the lines and labels are, in ascending order.
    pub ticks: Vec<f64>,
}

impl Axis {
    /// From a value to another, exactly; the ticks lie within. For steps.
    pub fn exact(low: f64, high: f64) -> Axis {
        let high = if high > low { high } else { low + 1.0 };
        let ticks = multiples(low, high, round_step((high - low) / 6.0), f64::ceil, f64::floor);
        Axis { scale: Scale::Linear, low, high, ticks }
    }
    /// Around these values, from a tick to a tick. `from_zero`: values that are not negative start at 0.
    pub fn around(scale: Scale, values: impl Iterator<Item = f64>, from_zero: bool) -> Axis {
        let positive = |v: &f64| scale == Scale::Linear || *v > 0.0;
        let (low, high) = values
            .filter(|v| v.is_finite() && positive(v))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        match scale {
            Scale::Linear => linear(low, high, from_zero),
            Scale::Logarithmic => logarithmic(low, high),
        }
    }
    /// Where a value lies, from 0 to 1; values outside lie at the ends. `None`: it has no place.
    pub fn at(&self, value: f64) -> Option<f64> {
        let place = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln()),
        };
        (value.is_finite() && place.is_finite()).then(|| place.clamp(0.0, 1.0))
    }
    /// Both ends.
    pub fn range(&self) -> (f64, f64) {
        (self.low, self.high)
    }
}

fn linear(low: f64, high: f64, from_zero: bool) -> Axis {
    let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
    let low = if from_zero && low >= 0.0 { 0.0 } else { low };
    let pad = if low == 0.0 { 1.0 } else { low.abs() / 2.0 };
    let (low, high) = if high > low { (low, high) } else { (low - pad.min(low.max(0.0)), high + pad) };
    let step = round_step((high - low) / 4.0);
    let ticks = multiples(low, high, step, f64::floor, f64::ceil);
    Axis {
        scale: Scale::Linear,
        low: ticks.first().copied().unwrap_or(low),
        high: ticks.last().copied().unwrap_or(high),
        ticks,
    }
}

/// From 1, 2 or 5 times a power of ten to another such number.
fn logarithmic(low: f64, high: f64) -> Axis {
    let (low, high) = if low > high { (0.1, 1.0) } else { (low, high) };
    let (first, last) = (low.log10().floor() as i32 - 1, high.log10().ceil() as i32 + 1);
    let round: Vec<f64> = (first..=last).flat_map(|p| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(p))).collect();
    let near = |v: f64, by: f64| v * (1.0 + by);
    let from = round.iter().copied().rfind(|&v| v <= near(low, 1e-9)).unwrap_or(low);
    let to = round.iter().copied().find(|&v| v >= near(high, -1e-9) && v > from).unwrap_or(high);
    let inside: Vec<f64> = round.into_iter().filter(|v| (from..=to).contains(v)).collect();
    let decades: Vec<f64> = (first..=last).map(|p| 10f64.powi(p)).filter(|v| (from..=to).contains(v)).collect();
    let every = decades.len().div_ceil(7).max(1);
    let ticks = if inside.len() <= 7 { inside } else { decades.into_iter().step_by(every).collect() };
    Axis { scale: Scale::Logarithmic, low: from, high: to, ticks }
}

/// The least of 1, 2, 2.5 and 5 times a power of ten that is not below this.
fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|f| f * power >= rough * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

fn multiples(low: f64, high: f64, step: f64, first: fn(f64) -> f64, last: fn(f64) -> f64) -> Vec<f64> {
    let near = |v: f64, round: fn(f64) -> f64| if (v - v.round()).abs() < 1e-6 { v.round() } else { round(v) };
    let (first, last) = (near(low / step, first), near(high / step, last));
    let count = if (last - first).is_finite() { (last - first).clamp(0.0, 20.0) as usize } else { 0 };
    (0..=count).map(|i| (first + i as f64) * step).collect()
}

/// A tick's label: `0.5`, `2.5k`, `1e-4`.
pub fn tick(value: f64) -> String {
    let units = [(1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")];
    let size = value.abs();
    if size > 0.0 && !(1e-3 - 1e-12..1e12).contains(&size) {
        return format!("{:e}", digits(value, 6));
    }
    match units.iter().find(|(from, ..)| size >= *from) {
        Some((_, unit, name)) => format!("{}{name}", digits(value / unit, 6)),
        None => digits(value, 6).to_string(),
    }
}

/// A number in a text or table, with four digits that count: `0.8841`, `22,760`, `2.71e-5`.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "not finite".to_string();
    }
    let size = digits(value, 4).abs();
    if size > 0.0 && !(1e-3 - 1e-12..1e12).contains(&size) {
        return format!("{:e}", digits(value, 3));
    }
    if size >= 1e3 || size.fract() == 0.0 {
        let sign = if value < 0.0 { "−" } else { "" };
        return format!("{sign}{}", crate::table::grouped(value.abs().round() as u64));
    }
    digits(value, 4).to_string()
}

/// The value rounded to so many digits.
pub fn digits(value: f64, count: usize) -> f64 {
    format!("{value:.*e}", count.saturating_sub(1)).parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|t| tick(*t)).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(&Axis::exact(1.0, 2000.0)), ["500", "1000", "1500", "2000"]);
        let accuracy = Axis::around(Scale::Linear, [0.73, 0.892].into_iter(), false);
        assert_eq!(labels(&accuracy), ["0.7", "0.75", "0.8", "0.85", "0.9"]);
        let speed = Axis::around(Scale::Linear, [f64::NAN, 7120.0, 24133.0].into_iter(), true);
        assert_eq!(labels(&speed), ["0", "10k", "20k", "30k"]);
        let rate = Axis::around(Scale::Logarithmic, [0.0, 3e-5, 1e-2].into_iter(), false);
        assert_eq!(labels(&rate), ["1e-4", "0.001", "0.01"]);
        assert_eq!(rate.range(), (2e-5, 1e-2));
        let loss = Axis::around(Scale::Logarithmic, [0.4, 3.0].into_iter(), false);
        assert_eq!(labels(&loss), ["0.2", "0.5", "1", "2", "5"]);
    }

    #[test]
    fn odd_ranges_have_an_axis() {
        assert_eq!(labels(&Axis::around(Scale::Linear, [].into_iter(), false)), ["0", "0.25", "0.5", "0.75", "1"]);
        let flat = Axis::around(Scale::Linear, [0.01, 0.01].into_iter(), true);
        assert!(flat.at(0.01).is_some_and(|p| p > 0.5), "{flat:?}");
        let huge = Axis::around(Scale::Linear, [-1e300, 1e300].into_iter(), false);
        assert!(!huge.ticks.is_empty() && huge.at(0.0) == Some(0.5), "{huge:?}");
        assert_eq!(Axis::exact(5.0, 5.0).at(5.0), Some(0.0));
        assert_eq!(Axis::around(Scale::Logarithmic, [1.0].into_iter(), false).at(f64::NAN), None);
    }

    #[test]
    fn numbers_in_texts() {
        let texts = [0.88413, 22759.9, 2.7123e-5, 369.0, -0.5, 0.00099998, 12345678.0].map(number);
        assert_eq!(texts, ["0.8841", "22,760", "2.71e-5", "369", "-0.5", "0.001", "12,345,678"]);
    }
}
