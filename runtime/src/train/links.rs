//! The links of a chain: which program trains when. Without a chain there is one link, the program `step`.

use super::schedule::{OptimizerSchedule, Span};
use sartor_ir::{Model, Result, bail, ensure};

/// The plan of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Links {
    /// The program of each link.
    pub programs: Vec<String>,
    /// The step at which each link begins; the first begins at 0. One more entry: the number of steps.
    pub starts: Vec<u64>,
}

impl Links {
    /// The links of a model over a run of `total` steps. Link j begins at ⌊total · (share of those before it)⌋.
    pub fn of(model: &Model, total: u64, split: &[f64]) -> Result<Links> {
        let programs = programs(model)?;
        let count = programs.len();
        let starts = if split.is_empty() {
            let start = |j: usize| (u128::from(total) * j as u128 / count as u128) as u64;
            (0..=count).map(start).collect()
        } else {
            split_starts(total, split, count)?
        };
        Ok(Links { programs, starts })
    }
    /// The link that trains at a step.
    pub fn at(&self, step: u64) -> usize {
        let begun = self.starts.iter().take(self.programs.len()).filter(|&&start| start <= step).count();
        begun.saturating_sub(1)
    }
    /// How many steps the link that trains at a step has done, and how many it has.
    pub fn place(&self, step: u64) -> (u64, u64) {
        let link = self.at(step);
        let (start, end) = (self.starts[link], self.starts[link + 1]);
        (step - start, end - start)
    }
    /// The learning rate of a step.
    pub fn rate(&self, schedule: &OptimizerSchedule, step: u64) -> f64 {
        let total = self.starts.last().copied().unwrap_or(0);
        match schedule.span {
            Span::Run => schedule.rate(step, total),
            Span::Link => {
                let (since, span) = self.place(step);
                schedule.rate(since, span)
            }
        }
    }
}

fn programs(model: &Model) -> Result<Vec<String>> {
    if model.programs.contains_key("step") {
        return Ok(vec!["step".to_string()]);
    }
    let names = (0..).map(|j| format!("step.{j}"));
    let programs: Vec<String> = names.take_while(|n| model.programs.contains_key(n)).collect();
    ensure!(
        !programs.is_empty(),
        "the model has no program \"step\" or \"step.0\": the passes loss, autodiff and optimizer make it"
    );
    for knot in 1..programs.len() {
        ensure!(model.programs.contains_key(&format!("knot.{knot}")), "the model has no program \"knot.{knot}\"");
    }
    Ok(programs)
}

fn split_starts(total: u64, split: &[f64], count: usize) -> Result<Vec<u64>> {
    ensure!(split.len() == count, "split has {} entries, the chain has {count} links", split.len());
    let sum: f64 = split.iter().sum();
    if !split.iter().all(|s| s.is_finite() && *s >= 0.0) || sum <= 0.0 {
        bail!("split is {split:?}, expected shares that are not negative and not all 0");
    }
    let mut before = 0.0;
    let mut starts = vec![0];
    for share in &split[..count - 1] {
        before += share;
        starts.push((total as f64 * before / sum).floor() as u64);
    }
    starts.push(total);
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_ir::{Graph, Program};

    fn model(programs: &[&str]) -> Model {
        let mut model = Model::new(Graph::new("main"));
        for name in programs {
            model.programs.insert(name.to_string(), Program { graph: Graph::new(name), bindings: Vec::new() });
        }
        model
    }

    #[test]
    fn starts_and_rates() {
        let chain = model(&["step.0", "knot.1", "step.1", "knot.2", "step.2"]);
        let links = Links::of(&chain, 10, &[]).unwrap();
        assert_eq!(links.starts, [0, 3, 6, 10]);
        assert_eq!((0..10).map(|s| links.at(s)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]);
        let mut schedule = OptimizerSchedule { learning_rate: 1.0, ..OptimizerSchedule::default() };
        assert_eq!(links.rate(&schedule, 5), 0.5);
        schedule.span = Span::Link;
        assert_eq!([links.rate(&schedule, 3), links.rate(&schedule, 8)], [1.0, 0.5]);
        assert_eq!(Links::of(&chain, 10, &[2.0, 1.0, 1.0]).unwrap().starts, [0, 5, 7, 10]);
        let error = |m: &Model, split: &[f64]| Links::of(m, 10, split).unwrap_err().to_string();
        assert_eq!(error(&chain, &[1.0]), "split has 1 entries, the chain has 3 links");
        assert!(error(&model(&["eval"]), &[]).contains("no program \"step\""));
        assert!(error(&model(&["step.0", "step.1"]), &[]).contains("no program \"knot.1\""));
    }
}
