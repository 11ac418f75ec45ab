//! Passes and their options as people write them: `name(key=value, list=[a, b], text="x", flag)` on the command line, and
//! `[[pass]]` tables in a TOML file. Both become a name and [`Options`].
//!
//! A value is a number, `true`, `false`, a string in double quotes (JSON's escapes), a list `[…]`, a table `{key=value}`,
//! or a bare word, which is a string: it ends at a comma or a closing bracket and may hold anything else, so that
//! `targets=[*/query/MatMul]` needs no quotes. A key alone means `true`.

use crate::registry::Options;
use sartor_ir::{Context, Error, Result, bail, ensure};
use serde_json::Value;

/// A pass to be made: its name and options.
pub type Invocation = (String, Options);

/// Reads `name` or `name(key=value, …)`.
pub fn parse_invocation(text: &str) -> Result<Invocation> {
    let mut reader = Reader { text, place: 0 };
    let invocation = reader.invocation().context(|| format!("pass \"{text}\""))?;
    ensure!(reader.rest().is_empty(), "pass \"{text}\": unexpected \"{}\" at the end", reader.rest());
    Ok(invocation)
}

/// Reads a pipeline: `[[pass]]` tables, each with `name` and the options of that pass.
pub fn parse_pipeline(toml_text: &str) -> Result<Vec<Invocation>> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pipeline {
        #[serde(default)]
        pass: Vec<Options>,
    }
    let pipeline: Pipeline = toml::from_str(toml_text).map_err(|e| Error::msg(e.to_string().trim().to_string()))?;
    pipeline.pass.into_iter().enumerate().map(|(i, table)| invocation_of(table, i)).collect()
}

fn invocation_of(mut table: Options, index: usize) -> Result<Invocation> {
    match table.shift_remove("name") {
        Some(Value::String(name)) => Ok((name, table)),
        Some(other) => bail!("[[pass]] number {}: its name is {other}, expected a string", index + 1),
        None => bail!("[[pass]] number {} has no name", index + 1),
    }
}

struct Reader<'a> {
    text: &'a str,
    place: usize,
}

/// Lists and tables nest at most this deep.
const MAX_DEPTH: usize = 16;

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text[self.place..].trim_start()
    }
    fn skip_space(&mut self) {
        self.place = self.text.len() - self.rest().len();
    }
    fn eat(&mut self, token: char) -> bool {
        self.skip_space();
        let hit = self.rest().starts_with(token);
        if hit {
            self.place += token.len_utf8();
        }
        hit
    }
    fn word_until(&mut self, stops: &[char]) -> &'a str {
        self.skip_space();
        let rest = self.rest();
        let end = rest.find(stops).unwrap_or(rest.len());
        self.place += end;
        rest[..end].trim_end()
    }
    fn invocation(&mut self) -> Result<Invocation> {
        let name = self.word_until(&['(']).to_string();
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        ensure!(!name.is_empty() && plain, "\"{name}\" is not a pass name; write name(key=value, …)");
        let options = if self.eat('(') { self.entries(')', 0)? } else { Options::new() };
        self.skip_space();
        Ok((name, options))
    }
    /// `key=value` or `key`, separated by commas, up to a closing bracket.
    fn entries(&mut self, close: char, depth: usize) -> Result<Options> {
        let mut options = Options::new();
        while !self.eat(close) {
            let key = self.word_until(&['=', ',', close]).to_string();
            ensure!(!key.is_empty(), "expected key=value or \"{close}\", found \"{}\"", self.rest());
            let value = if self.eat('=') { self.value(close, depth)? } else { Value::Bool(true) };
            ensure!(options.insert(key.clone(), value).is_none(), "option `{key}` is given twice");
            self.comma_or(close)?;
        }
        Ok(options)
    }
    fn comma_or(&mut self, close: char) -> Result<()> {
        let fine = self.eat(',') || self.rest().starts_with(close);
        ensure!(fine, "expected \",\" or \"{close}\", found \"{}\"", self.rest());
        Ok(())
    }
    fn value(&mut self, close: char, depth: usize) -> Result<Value> {
        ensure!(depth < MAX_DEPTH, "values nest more than {MAX_DEPTH} deep");
        self.skip_space();
        match self.rest().chars().next() {
            Some('"') => self.quoted(),
            Some('{') => {
                self.eat('{');
                Ok(Value::Object(self.entries('}', depth + 1)?))
            }
            Some('[') => {
                self.eat('[');
                let mut list = Vec::new();
                while !self.eat(']') {
                    list.push(self.value(']', depth + 1)?);
                    self.comma_or(']')?;
                }
                Ok(Value::Array(list))
            }
            _ => {
                let word = self.word_until(&[',', close]);
                ensure!(!word.is_empty(), "a value is missing before \"{}\"", self.rest());
                Ok(bare(word))
            }
        }
    }
    fn quoted(&mut self) -> Result<Value> {
        let mut stream = serde_json::Deserializer::from_str(self.rest()).into_iter::<String>();
        match stream.next() {
            Some(Ok(text)) => {
                self.place += stream.byte_offset();
                Ok(Value::String(text))
            }
            _ => bail!("the string {} does not end or has a wrong escape", self.rest()),
        }
    }
}

/// A number or `true`/`false`, else a string.
fn bare(word: &str) -> Value {
    let number = |w: &str| w.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    match word {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ if !number(word) => Value::String(word.to_string()),
        _ => match (word.parse::<i64>(), word.parse::<f64>()) {
            (Ok(int), _) => Value::from(int),
            (_, Ok(float)) if float.is_finite() => Value::from(float),
            _ => Value::String(word.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(text: &str) -> Value {
        let (name, options) = parse_invocation(text).unwrap();
        json!([name, options])
    }

    #[test]
    fn reads_every_kind_of_value() {
        assert_eq!(parsed("fold"), json!(["fold", {}]));
        assert_eq!(
            parsed(
                r#"cola(rank=8, lr=1e-3, targets=[*/query/MatMul, "a,b"], text="x)", flag, base={kind=sgd, m=[0.9]})"#
            ),
            json!(["cola", {"rank": 8, "lr": 1e-3, "targets": ["*/query/MatMul", "a,b"], "text": "x)", "flag": true,
                            "base": {"kind": "sgd", "m": [0.9]}}])
        );
    }

    #[test]
    fn mistakes_are_sentences() {
        let error = |text: &str| parse_invocation(text).unwrap_err().to_string();
        assert_eq!(error("fold(a=1"), "pass \"fold(a=1\": expected \",\" or \")\", found \"\"");
        assert_eq!(error("fold(a=1, a=2)"), "pass \"fold(a=1, a=2)\": option `a` is given twice");
        assert_eq!(error("fold()x"), "pass \"fold()x\": unexpected \"x\" at the end");
        assert_eq!(error("fold(a=)"), "pass \"fold(a=)\": a value is missing before \")\"");
    }

    #[test]
    fn reads_a_pipeline() {
        let pipeline = parse_pipeline("[[pass]]\nname = \"cola\"\nrank = 8\n[[pass]]\nname = \"dce\"\n").unwrap();
        assert_eq!(json!(pipeline), json!([["cola", {"rank": 8}], ["dce", {}]]));
        assert_eq!(parse_pipeline("[[pass]]\nrank = 8").unwrap_err().to_string(), "[[pass]] number 1 has no name");
    }
}
