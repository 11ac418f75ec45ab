//! How gates are used, gathered over an evaluation.
//!
//! A program with gates says of each example what it costs (the output `flops`, `[N]`, as a share of the whole model's operations) and what its gates
//! are (the output `gates`, `[N, G]`; a gate is open where it is above 0). Here a gate is its place among the G; what it belongs to, the passes know.
//!
//! What is kept: two numbers for each gate, a count of each gate for each class, and for each example its cost in four bytes and whether the model was right, which is what the
//! histogram, the order of the examples and the quarters are made of at the end.

use sartor_ir::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The output with the cost of each example.
pub(super) const FLOPS: &str = "flops";
/// The output with the gates of each example.
pub(super) const GATES: &str = "gates";
/// The histogram has so many bins.
const BINS: usize = 40;
/// So many of the cheapest and of the dearest examples are named.
const NAMED: usize = 16;

/// How gates were used by a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GateUse {
    /// The number of examples.
    pub examples: u64,
    /// Their mean cost.
    pub cost: f64,
    /// The share of examples for which each gate was open.
    pub open: Vec<f64>,
    /// The mean of each gate over the examples for which it was open; 0 if there were none.
    pub value: Vec<f64>,
    /// The same by class, in ascending order; empty where labels are no classes.
    pub classes: Vec<ClassUse>,
    /// The costs of the examples.
    pub histogram: Histogram,
    /// The examples that cost least, the cheapest first.
    pub cheapest: Vec<Example>,
    /// Those that cost most, the dearest first.
    pub dearest: Vec<Example>,
    /// Four equal parts of the examples, the cheapest first; empty where it is not known whether the model is right.
    pub quarters: Vec<Quarter>,
}

/// A quarter of the examples, by what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quarter {
    /// Their mean cost.
    pub cost: f64,
    /// For what share of them the model was right.
    pub accuracy: f64,
}

/// What the data set says of an example.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Judged {
    /// Its class, if it has one.
    pub class: Option<i64>,
    /// Whether that is what the model found.
    pub right: bool,
}

/// How the examples of one class used the gates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassUse {
    /// Its label.
    pub class: i64,
    /// The number of its examples.
    pub examples: u64,
    /// Their mean cost.
    pub cost: f64,
    /// The share of them for which each gate was open.
    pub open: Vec<f64>,
}

/// How many examples lie in each of some equally wide bins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Where the first bin begins: the least value.
    pub low: f64,
    /// Where the last one ends: the greatest.
    pub high: f64,
    /// From low to high. One bin if all values are equal, none if there are none.
    pub counts: Vec<u64>,
}

/// An example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Its place in the data set, from 0.
    pub row: usize,
    /// What it costs.
    pub cost: f64,
}

/// How many gates were never open, always, or for some examples only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kinds {
    /// Open for no example.
    pub dead: usize,
    /// Open for every example.
    pub always: usize,
    /// Open for some.
    pub dynamic: usize,
}

impl Kinds {
    /// Of gates with these shares of examples for which they were open.
    pub fn of(open: &[f64]) -> Kinds {
        let count = |keep: fn(&f64) -> bool| open.iter().filter(|share| keep(share)).count();
        let (dead, always) = (count(|share| *share == 0.0), count(|share| *share == 1.0));
        Kinds { dead, always, dynamic: open.len() - dead - always }
    }
}

impl Histogram {
    /// Of these values, those that are not finite left out.
    fn of(values: &[f32]) -> Histogram {
        let finite = || values.iter().copied().filter(|v| v.is_finite()).map(f64::from);
        let (low, high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if low > high {
            return Histogram::default();
        }
        let mut counts = vec![0; if low < high { BINS } else { 1 }];
        let width = (high - low) / counts.len() as f64;
        let last = counts.len() - 1;
        finite().for_each(|v| counts[(((v - low) / width) as usize).min(last)] += 1);
        Histogram { low, high, counts }
    }
}

/// Takes in batches, gives out their [`GateUse`].
#[derive(Clone, Debug, Default)]
pub struct GateCounter {
    costs: Vec<f32>,
    right: Vec<Option<bool>>,
    open: Vec<u64>,
    sum: Vec<f64>,
    classes: BTreeMap<i64, ClassCounter>,
}

#[derive(Clone, Debug, Default)]
struct ClassCounter {
    examples: u64,
    cost: f64,
    open: Vec<u64>,
}

impl GateCounter {
    /// Takes in a batch, which follows the last one in the data set: costs `[N]`, gates `[N, G]`, and what is said of the examples.
    pub fn add(&mut self, costs: &[f64], gates: &[f64], judged: &[Judged]) -> Result<()> {
        let width = gates.len() / costs.len().max(1);
        ensure!(
            width * costs.len() == gates.len() && (self.costs.is_empty() || width == self.open.len()),
            "{} gates of {} examples, after examples with {} each",
            gates.len(),
            costs.len(),
            self.open.len()
        );
        ensure!(judged.len() == costs.len(), "{} answers for {} examples", judged.len(), costs.len());
        self.open.resize(width, 0);
        self.sum.resize(width, 0.0);
        for (i, (&cost, judged)) in costs.iter().zip(judged).enumerate() {
            self.costs.push(cost as f32);
            self.right.push(judged.class.map(|_| judged.right));
            self.add_example(cost, &gates[i * width..(i + 1) * width], judged.class);
        }
        Ok(())
    }
    fn add_example(&mut self, cost: f64, gates: &[f64], class: Option<i64>) {
        for (at, gate) in gates.iter().enumerate().filter(|(_, gate)| **gate > 0.0) {
            self.open[at] += 1;
            self.sum[at] += gate;
        }
        let Some(class) = class else { return };
        let counter = self.classes.entry(class).or_default();
        counter.open.resize(gates.len(), 0);
        counter.examples += 1;
        counter.cost += cost;
        gates.iter().zip(&mut counter.open).for_each(|(gate, open)| *open += u64::from(*gate > 0.0));
    }
    /// What all batches come to; `None` if there were none.
    pub fn finish(&self) -> Option<GateUse> {
        let examples = self.costs.len() as u64;
        if examples == 0 {
            return None;
        }
        let mean = |(sum, open): (&f64, &u64)| if *open > 0 { sum / *open as f64 } else { 0.0 };
        let class = |(class, counter): (&i64, &ClassCounter)| ClassUse {
            class: *class,
            examples: counter.examples,
            cost: counter.cost / counter.examples as f64,
            open: shares(&counter.open, counter.examples),
        };
        let (cheapest, dearest) = self.ends();
        Some(GateUse {
            examples,
            cost: self.costs.iter().map(|c| f64::from(*c)).sum::<f64>() / examples as f64,
            open: shares(&self.open, examples),
            value: self.sum.iter().zip(&self.open).map(mean).collect(),
            classes: self.classes.iter().map(class).collect(),
            histogram: Histogram::of(&self.costs),
            cheapest,
            dearest,
            quarters: self.quarters(),
        })
    }
    fn quarters(&self) -> Vec<Quarter> {
        let mut known: Vec<(f32, bool)> =
            self.costs.iter().zip(&self.right).filter_map(|(cost, right)| Some((*cost, (*right)?))).collect();
        if known.len() < 4 {
            return Vec::new();
        }
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        let quarter = |i: usize| {
            let part = &known[i * known.len() / 4..(i + 1) * known.len() / 4];
            let mean = |sum: f64| sum / part.len() as f64;
            Quarter {
                cost: mean(part.iter().map(|(cost, _)| f64::from(*cost)).sum()),
                accuracy: mean(part.iter().filter(|(_, right)| *right).count() as f64),
            }
        };
        (0..4).map(quarter).collect()
    }
    /// The cheapest and the dearest examples; among equals those that come first.
    fn ends(&self) -> (Vec<Example>, Vec<Example>) {
        let mut rows: Vec<usize> = (0..self.costs.len()).collect();
        let example = |row: &usize| Example { row: *row, cost: f64::from(self.costs[*row]) };
        rows.sort_by(|a, b| self.costs[*a].total_cmp(&self.costs[*b]));
        let cheapest = rows.iter().take(NAMED).map(example).collect();
        rows.sort_by(|a, b| self.costs[*b].total_cmp(&self.costs[*a]).then(a.cmp(b)));
        (cheapest, rows.iter().take(NAMED).map(example).collect())
    }
}

fn shares(open: &[u64], examples: u64) -> Vec<f64> {
    open.iter().map(|count| *count as f64 / examples as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(class: i64, right: bool) -> Judged {
        Judged { class: Some(class), right }
    }

    #[test]
    fn quarters_are_equal_parts_by_cost() {
        let mut counter = GateCounter::default();
        let costs = [0.5, 0.125, 0.25, 0.75, 0.375, 0.0, 1.0, 0.25, 0.5];
        let judged: Vec<Judged> = costs.iter().map(|cost| of(0, *cost < 0.45)).collect();
        counter.add(&costs[..8], &[1.0; 8], &judged[..8]).unwrap();
        // What has no class is not judged.
        counter.add(&costs[8..], &[1.0], &[Judged::default()]).unwrap();
        let found = counter.finish().unwrap().quarters;
        let quarter = |cost, accuracy| Quarter { cost, accuracy };
        assert_eq!(found, [quarter(0.0625, 1.0), quarter(0.25, 1.0), quarter(0.4375, 0.5), quarter(0.875, 0.0)]);
    }

    #[test]
    fn two_batches_are_counted_as_one() {
        let mut counter = GateCounter::default();
        assert!(counter.finish().is_none());
        // Three gates: always open, open for class 1 only, never open.
        counter.add(&[0.75, 0.25], &[1.0, 0.5, 0.0, 0.5, 0.0, 0.0], &[of(1, true), of(0, true)]).unwrap();
        counter.add(&[0.5, 0.75], &[0.75, 1.0, 0.0, 0.75, 0.0, -0.0], &[of(1, false), Judged::default()]).unwrap();
        let found = counter.finish().unwrap();
        assert_eq!((found.examples, found.cost), (4, 0.5625));
        assert_eq!((found.open.as_slice(), found.value.as_slice()), (&[1.0, 0.5, 0.0][..], &[0.75, 0.75, 0.0][..]));
        let class = |class, examples, cost, open: [f64; 3]| ClassUse { class, examples, cost, open: open.to_vec() };
        assert_eq!(found.classes, [class(0, 1, 0.25, [1.0, 0.0, 0.0]), class(1, 2, 0.625, [1.0, 1.0, 0.0])]);
        assert_eq!(found.cheapest.iter().map(|e| e.row).collect::<Vec<_>>(), [1, 2, 0, 3]);
        assert!(found.quarters.is_empty(), "three are no four parts");
        assert_eq!(found.dearest.iter().map(|e| e.row).collect::<Vec<_>>(), [0, 3, 2, 1]);
        let counts = &found.histogram.counts;
        assert_eq!((found.histogram.low, found.histogram.high, counts.len()), (0.25, 0.75, 40));
        assert_eq!((counts[0], counts[20], counts[39], counts.iter().sum::<u64>()), (1, 1, 2, 4));
        assert_eq!(Kinds::of(&found.open), Kinds { dead: 1, always: 1, dynamic: 1 });
    }

    #[test]
    fn many_examples_and_equal_costs() {
        let mut counter = GateCounter::default();
        for _ in 0..50 {
            counter.add(&[0.5], &[1.0], &[Judged::default()]).unwrap();
        }
        let found = counter.finish().unwrap();
        assert_eq!(found.histogram, Histogram { low: 0.5, high: 0.5, counts: vec![50] });
        assert_eq!((found.cheapest.len(), found.dearest[15].row), (16, 15));
        let error = counter.add(&[0.5], &[1.0, 1.0], &[Judged::default()]).unwrap_err().to_string();
        assert_eq!(error, "2 gates of 1 examples, after examples with 1 each");
        assert_eq!(Histogram::of(&[f32::NAN]), Histogram::default());
    }
}
