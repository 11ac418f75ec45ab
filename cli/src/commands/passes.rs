//! `passes`: what passes there are.

use crate::{Failure, Outcome, say};
use sartor_passes::near::did_you_mean;
use sartor_passes::{PassInfo, Registry};
use serde_json::{Value, json};

/// Lists all passes with their options
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sartor passes
  sartor passes cola
  sartor passes --json | jq '.[].name'")]
pub struct Args {
    /// Only this pass
    name: Option<String>,
    /// Prints JSON: name, group, summary, and the JSON schema of the options
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: Args, registry: &Registry) -> Outcome {
    if let Some(name) = args.name.as_ref().filter(|name| registry.get(name).is_none()) {
        let near = did_you_mean(name, registry.rows().iter().map(|row| row.name));
        return Err(Failure::usage(format!("there is no pass \"{name}\"{near}; `sartor passes` lists them all")));
    }
    let wanted = |row: &&PassInfo| args.name.as_ref().is_none_or(|name| name == row.name);
    let rows: Vec<&PassInfo> = registry.rows().iter().filter(wanted).collect();
    if args.json {
        let list: Vec<Value> = rows.iter().map(|row| as_json(row)).collect();
        say!("{}", serde_json::to_string_pretty(&list).unwrap_or_default());
        return Ok(());
    }
    let mut groups: Vec<&str> = Vec::new();
    rows.iter().for_each(|row| {
        if !groups.contains(&row.group) {
            groups.push(row.group);
        }
    });
    for (i, group) in groups.iter().enumerate() {
        say!("{}{group}", if i > 0 { "\n" } else { "" });
        rows.iter().filter(|row| row.group == *group).for_each(|row| print_pass(row));
    }
    Ok(())
}

fn as_json(row: &PassInfo) -> Value {
    json!({"name": row.name, "group": row.group, "summary": row.summary, "options": (row.schema)()})
}

fn print_pass(row: &PassInfo) {
    say!("  {:16} {}", row.name, row.summary);
    let schema = (row.schema)();
    let required: Vec<&str> =
        schema["required"].as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
    for (name, option) in schema["properties"].as_object().into_iter().flatten() {
        let about = option["description"].as_str().unwrap_or("").replace('\n', " ");
        let kind = kind_of(option, &schema);
        let default = match option.get("default") {
            Some(Value::Null) | None if required.contains(&name.as_str()) => " (must be given)".to_string(),
            Some(Value::Null) | None => String::new(),
            Some(default) => format!(" (default {default})"),
        };
        say!("      {name}: {kind}{default}");
        if !about.is_empty() {
            say!("          {about}");
        }
    }
}

/// `integer`, `"a" or "b"`, `list of string`, …: a type of a JSON schema in words.
fn kind_of(schema: &Value, root: &Value) -> String {
    if let Some(target) = schema["$ref"].as_str().and_then(|r| root.pointer(r.trim_start_matches('#'))) {
        return kind_of(target, root);
    }
    if let Some(word) = schema.get("const") {
        return word.to_string();
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
    }
    let choices = schema.get("anyOf").or(schema.get("oneOf")).and_then(Value::as_array);
    if let Some(choices) = choices {
        let kinds: Vec<String> = choices.iter().map(|c| kind_of(c, root)).filter(|k| k != "null").collect();
        return kinds.join(" or ");
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => format!("list of {}", kind_of(&schema["items"], root)),
        Value::String(kind) if kind == "object" => "table".to_string(),
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => {
            let kinds: Vec<String> = kinds
                .iter()
                .filter_map(Value::as_str)
                .filter(|k| *k != "null")
                .map(|kind| match kind {
                    "array" => format!("list of {}", kind_of(&schema["items"], root)),
                    other => other.to_string(),
                })
                .collect();
            kinds.join(" or ")
        }
        _ => "anything".to_string(),
    }
}
