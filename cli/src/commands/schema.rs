//! `schema`: the JSON schema of recipes.

use crate::{Outcome, recipe, say};

/// Prints the JSON schema of recipes, for editors and checkers
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor schema > recipe.schema.json
  sartor schema | jq '.properties | keys'")]
pub struct Args {}

/// Runs it.
pub fn run(_: Args) -> Outcome {
    say!("{}", serde_json::to_string_pretty(&recipe::schema()).unwrap_or_default());
    Ok(())
}
