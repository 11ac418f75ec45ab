//! Unknown keys, found by walking a recipe and its JSON schema side by side.

use sartor_ir::{Error, Result};
use sartor_passes::near::did_you_mean;
use serde_json::Value;

/// An error for each key that the schema does not have, with near misses and what there is.
pub fn check(table: &toml::Table) -> Result<()> {
    let schema = super::schema();
    let mut errors = Vec::new();
    check_table(table, &schema, &schema, "", &mut errors);
    Error::all(errors)
}

fn check_table(table: &toml::Table, schema: &Value, root: &Value, path: &str, errors: &mut Vec<Error>) {
    let schema = resolved(schema, root);
    let Some(known) = schema["properties"].as_object() else { return };
    let closed = schema["additionalProperties"] == Value::Bool(false);
    for (key, value) in table {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match known.get(key) {
            Some(below) => {
                if let Some(table) = value.as_table() {
                    check_table(table, below, root, &full, errors);
                }
            }
            None if closed => errors.push(unknown(key, &full, path, known.keys())),
            None => {}
        }
    }
}

fn unknown<'a>(key: &str, full: &str, path: &str, known: impl Iterator<Item = &'a String>) -> Error {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let place = if path.is_empty() { "a recipe".to_string() } else { format!("[{path}]") };
    let near = did_you_mean(key, &known);
    Error::msg(format!("there is no key `{full}`{near}; {place} has {}", known.join(", ")))
}

/// The schema behind references and optional values.
fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..8 {
        if let Some(target) = schema["$ref"].as_str().and_then(|r| root.pointer(r.trim_start_matches('#'))) {
            schema = target;
        } else if let Some(choice) =
            schema["anyOf"].as_array().and_then(|list| list.iter().find(|choice| choice["type"] != "null"))
        {
            schema = choice;
        } else {
            break;
        }
    }
    schema
}
