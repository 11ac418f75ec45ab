//! How fast gate networks learn beside the rest of a model: the key `rate` of the table `[gate]`.
//!
//! A gate begins open, at 1, and is shut at 0. AdamW moves a number by about the learning rate in a step, however large its gradient: in a run of 300 steps at 3e-3, falling to 0, no
//! pressure of the cost takes a gate all the way, and the target is missed. So gate networks get as much more of the learning rate as the way is longer than the run. SGD follows the gradient, and so
//! the pressure; its rates are left as they are, as are those of gates that a file brings.

use crate::recipe::Recipe;
use sartor_ir::{Model, Result};
use sartor_passes::gate::{Gate, Record};
use sartor_passes::optimizer::Optimizer;
use sartor_passes::pattern::Patterns;

/// How many times a gate can go from open to shut while gates learn.
const WAYS: f64 = 2.0;

/// What the learning rate is multiplied by for gate networks: what the recipe says, or what lets gates go their way. `fresh`: they are not those of a file. `rates`: the
/// learning rate of every step of the run.
pub fn factor(recipe: &Recipe, fresh: bool, rates: impl ExactSizeIterator<Item = f64>) -> f64 {
    let tables = &recipe.tables;
    let Some(gate) = &tables.gate else { return 1.0 };
    let itself = || {
        let way = (fresh && tables.samuel.is_none()).then(|| way(recipe, &gate.first, rates)).flatten();
        way.filter(|&way| way > 0.0).map_or(1.0, |way| (WAYS / way).max(1.0))
    };
    gate.second.rate.unwrap_or_else(itself)
}

/// How far the optimizer can take a number while gates learn, no further than is wanted; `None` where the gradient decides that.
fn way(recipe: &Recipe, gate: &Gate, rates: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let tables = &recipe.tables;
    let kind = tables.optimizer.first.kind;
    let every = tables.accumulate.as_ref().map_or(1, |accumulate| accumulate.steps.max(1) as usize);
    let total = rates.len() as f64;
    let learns = |step: usize| {
        let share = step as f64 / total;
        share >= gate.warmup && (share < gate.settle || gate.settle >= 1.0)
    };
    let updates = rates.enumerate().skip(every - 1).step_by(every).enumerate();
    let mut way = 0.0;
    for (update, (_, rate)) in updates.filter(|(_, (step, _))| learns(*step)) {
        way += rate * kind.stride(update as u64)?;
        if way >= WAYS {
            break;
        }
    }
    Some(way)
}

/// The optimizer, with this factor on the learning rate of the model's gate networks.
pub fn hastened(optimizer: &Optimizer, model: &Model, factor: f64) -> Result<Optimizer> {
    let mut optimizer = optimizer.clone();
    let record = Record::load(model)?.filter(|_| factor != 1.0);
    let names: Vec<&String> = record.iter().flat_map(|record| &record.blocks).flat_map(|b| b.parameters()).collect();
    if !names.is_empty() {
        optimizer.rate_factors.insert(Patterns::exactly(&names), factor);
    }
    Ok(optimizer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The factor under these tables, in a run of so many steps at one rate.
    fn factor_of(tables: &str, fresh: bool, steps: usize) -> f64 {
        let table = toml::from_str(&format!("model = \"m.onnx\"\n{tables}")).unwrap();
        let recipe = Recipe::of(table, Path::new("")).unwrap();
        (factor(&recipe, fresh, std::iter::repeat_n(1e-3, steps)) * 1e6).round() / 1e6
    }

    #[test]
    fn gates_go_their_way_in_a_short_run() {
        assert_eq!(factor_of("[gate]", true, 1000), 2.0);
        assert_eq!(factor_of("[gate]\nwarmup = 0.25\nanneal = 0.25\nsettle = 0.5", true, 1000), 8.0);
        assert_eq!(factor_of("[gate]\n[accumulate]\nsteps = 4", true, 1000), 8.0);
        // Long runs get there by themselves.
        assert_eq!(factor_of("[gate]", true, 100_000), 1.0);
        // 1/√1 + 1/√2 + 1/√3 + 1/√4 learning rates.
        let adagrad = factor_of("[gate]\n[optimizer]\nkind = \"adagrad\"", true, 4);
        assert!((adagrad - 2.0 / (1e-3 * 2.784457)).abs() < 1e-2, "{adagrad}");
    }

    #[test]
    fn others_keep_their_rate() {
        assert_eq!(factor_of("", true, 1000), 1.0);
        assert_eq!(factor_of("[gate]", false, 1000), 1.0);
        assert_eq!(factor_of("[gate]", true, 0), 1.0);
        assert_eq!(factor_of("[gate]\n[optimizer]\nkind = \"sgd\"", true, 1000), 1.0);
        assert_eq!(factor_of("[gate]\n[optimizer]\nkind = \"prodigy\"", true, 1000), 1.0);
        assert_eq!(factor_of("[gate]\n[samuel]\nrates = [0.1]", true, 1000), 1.0);
        assert_eq!(factor_of("[gate]\nrate = 2.5\n[samuel]\nrates = [0.1]", false, 1000), 2.5);
    }
}
