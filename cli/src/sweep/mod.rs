//! `sartor sweep`: a recipe with every combination of some values, one training each.
//!
//! ```text
//! --grid optimizer.learning_rate=1e-3,1e-2 --grid cola.rank=4,8
//!     ─▶ learning_rate=1e-3,rank=4   learning_rate=1e-3,rank=8   learning_rate=1e-2,rank=4   learning_rate=1e-2,rank=8
//!     ─▶ a recipe each, all of them checked before the first is trained ─▶ results, best first
//! ```

pub mod grid;
pub mod results;

use crate::failure::Outcome;
use crate::recipe::Recipe;
use crate::training;
use grid::Combination;
use sartor_ir::Error;
use sartor_passes::Registry;
use std::path::Path;

/// A combination with its recipe.
pub struct Plan {
    /// The values, and what they are called together.
    pub combination: Combination,
    /// The recipe; its output is a folder of its own.
    pub recipe: Recipe,
}

/// The recipes of all combinations, read and tried on their models. What is wrong with all of them is said once.
pub fn plan(
    recipe: &Path,
    set: &[String],
    combinations: Vec<Combination>,
    output: &Path,
    registry: &Registry,
) -> Outcome<Vec<Plan>> {
    let count = combinations.len();
    let (mut plans, mut problems) = (Vec::new(), Vec::<(Error, String, usize)>::new());
    for combination in combinations {
        let folder = output.join(&combination.name);
        let mut overrides = set.to_vec();
        overrides.extend(combination.overrides.iter().cloned());
        overrides.push(format!("output={}", toml::Value::from(folder.to_string_lossy().into_owned())));
        let tried = Recipe::read(recipe, &overrides, None).and_then(|recipe| {
            build(&recipe, registry)?;
            Ok(recipe)
        });
        match tried {
            Ok(recipe) => plans.push(Plan { combination, recipe }),
            Err(error) => match problems.iter_mut().find(|(known, ..)| known.to_string() == error.to_string()) {
                Some((.., times)) => *times += 1,
                None => problems.push((error, combination.name, 1)),
            },
        }
    }
    let of_some = |(error, name, times): (Error, String, usize)| {
        if times == count { error } else { error.at(format!("combination {name}")) }
    };
    Error::all(problems.into_iter().map(of_some).collect())?;
    Ok(plans)
}

/// Makes the training programs and looks at what they need, and forgets them.
fn build(recipe: &Recipe, registry: &Registry) -> sartor_ir::Result<()> {
    let (model, _) = training::load_model(recipe, registry)?;
    training::schema_of(&model, &recipe.loss())?;
    recipe.check_schedules()
}
