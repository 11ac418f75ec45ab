//! Examples out of tables: text columns through a tokenizer, numeric columns, a label column.
//!
//! A graph input is filled by the text if it is one of [`tokens::TEXT_INPUTS`] and `data.text` is set, else by the
//! columns that `data.columns` gives it, else by the column of its own name. Without a label column, a label per token is the token itself (a language model).

use super::config::DataConfig;
use super::schema::{Field, LABEL, Schema};
use super::table::Table;
use super::tokens::{self, Encoder, IGNORED, Tokens};
use super::{Batch, Dataset, gather_rows, labels};
use sartor_ir::{DType, Error, Result, Tensor, bail, ensure};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;

/// Texts are tokenized this many at a time.
const CHUNK: usize = 1024;

/// See the [module](self).
pub struct Tabular {
    tokens: Option<(Tokens, Vec<Field>)>,
    columns: Vec<(String, Tensor)>,
    /// The field for labels that are the tokens themselves.
    token_labels: Option<(Field, i64)>,
    rows: usize,
}

impl Tabular {
    /// Opens the files of one split.
    pub fn open(paths: &[PathBuf], config: &DataConfig, schema: &Schema) -> Result<Tabular> {
        let mut reading = Reading::new(config, schema)?;
        for path in paths {
            reading.read(&Table::open(path, config.quote)?)?;
        }
        let file = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        ensure!(reading.count > 0, "{file}: the split is empty: there is no row below the header");
        reading.finish()
    }
}

impl Dataset for Tabular {
    fn len(&self) -> usize {
        self.rows
    }
    fn batch(&self, rows: &[usize]) -> Result<Batch> {
        let mut tensors = HashMap::new();
        if let Some((tokens, fields)) = &self.tokens {
            for field in fields {
                tensors.insert(field.name.clone(), tokens.input(field, rows)?);
            }
            if let Some((field, ignored)) = &self.token_labels {
                tensors.insert(LABEL.to_string(), tokens.as_labels(field, *ignored, rows)?);
            }
        }
        for (name, tensor) in &self.columns {
            tensors.insert(name.clone(), gather_rows(tensor, rows)?);
        }
        Ok(Batch { tensors, samples: rows.len() })
    }
    fn row_length(&self, row: usize) -> usize {
        self.tokens.as_ref().map_or(0, |(tokens, _)| tokens.length(row))
    }
}

/// A split while it is read.
struct Reading<'a> {
    config: &'a DataConfig,
    schema: &'a Schema,
    text: Option<Text>,
    features: Vec<Feature>,
    labels: Option<Tensor>,
    label_column: bool,
    count: usize,
}

struct Text {
    encoder: Encoder,
    columns: Vec<String>,
    pending: Vec<Vec<String>>,
    tokens: Tokens,
}

/// A graph input made of numeric columns.
struct Feature {
    field: Field,
    columns: Vec<String>,
    values: Vec<f64>,
}

impl<'a> Reading<'a> {
    fn new(config: &'a DataConfig, schema: &'a Schema) -> Result<Reading<'a>> {
        let text = open_text(config, schema)?;
        let by_text = |field: &Field| text.is_some() && tokens::TEXT_INPUTS.contains(&field.name.as_str());
        let feature = |field: &Field| {
            let own = || vec![field.name.clone()];
            let columns = config.columns.get(&field.name).map_or_else(own, |c| c.as_slice().to_vec());
            Feature { field: field.clone(), columns, values: Vec::new() }
        };
        let features = schema.inputs.iter().filter(|f| !by_text(f)).map(feature).collect();
        // A label per token, and no column named for it: the tokens are the labels.
        let per_token =
            schema.label.as_ref().and_then(Field::row).is_some_and(|row| row.len() == 1 && row != [Some(1)]);
        let label_column = schema.label.is_some() && !(per_token && config.label.is_none() && text.is_some());
        Ok(Reading { config, schema, text, features, labels: None, label_column, count: 0 })
    }

    fn read(&mut self, table: &Table) -> Result<()> {
        let mut wanted = Vec::new();
        for column in self.text.iter().flat_map(|t| &t.columns) {
            wanted.push(table.column(column, "the text (data.text names it)")?);
        }
        let text_width = wanted.len();
        let optional = self.schema.may_lack_labels && self.config.label.is_none() && self.labels.is_none();
        if optional && self.label_column {
            self.label_column = table.has_column(self.config.label_name());
        }
        if self.label_column {
            wanted.push(table.column(self.config.label_name(), "the label (data.label names it)")?);
        }
        for feature in &self.features {
            let role = format!("the model's input \"{}\" (data.columns can name others)", feature.field.name);
            for column in &feature.columns {
                wanted.push(table.column(column, &role)?);
            }
        }
        let (mut label_texts, mut lines) = (Vec::new(), Vec::new());
        table.rows(&wanted, &mut |line, fields| {
            let (text, rest) = fields.split_at(text_width.min(fields.len()));
            let (label, numbers) = rest.split_at(usize::from(self.label_column).min(rest.len()));
            label_texts.extend(label.iter().map(|l| l.to_string()));
            lines.push(line);
            self.push_text(text)?;
            self.push_numbers(numbers).map_err(|e| e.at(format!("{}, line {line}", table.file())))
        })?;
        self.count += lines.len();
        self.flush_text()?;
        self.push_labels(&label_texts, table, &lines)
    }

    fn push_text(&mut self, fields: &[Cow<str>]) -> Result<()> {
        let Some(text) = &mut self.text else { return Ok(()) };
        text.pending.push(fields.iter().map(|f| f.to_string()).collect());
        if text.pending.len() >= CHUNK { self.flush_text() } else { Ok(()) }
    }
    fn flush_text(&mut self) -> Result<()> {
        let Some(text) = &mut self.text else { return Ok(()) };
        text.encoder.append(std::mem::take(&mut text.pending), &mut text.tokens)
    }
    fn push_numbers(&mut self, fields: &[Cow<str>]) -> Result<()> {
        let mut fields = fields.iter();
        for feature in &mut self.features {
            for column in &feature.columns {
                let text = fields.next().map_or("", |f| f.trim());
                feature.values.push(parse_number(text, feature.field.dtype, column)?);
            }
        }
        Ok(())
    }
    fn push_labels(&mut self, texts: &[String], table: &Table, lines: &[usize]) -> Result<()> {
        let Some(field) = self.schema.label.as_ref().filter(|_| self.label_column) else { return Ok(()) };
        let more = labels::from_texts(self.schema, field, texts, &table.file(), lines)?;
        self.labels = Some(match self.labels.take() {
            None => more,
            Some(before) => concat_rows(&before, &more)?,
        });
        Ok(())
    }

    fn finish(self) -> Result<Tabular> {
        let mut columns = Vec::new();
        for Feature { field, columns: names, values } in self.features {
            let row: Vec<usize> = match field.row() {
                Some(row) if row.is_empty() && names.len() == 1 => vec![],
                _ => vec![names.len()],
            };
            ensure!(
                field.accepts_row(&row),
                "{} columns make the model's input \"{}\", which is {}: list its columns in data.columns",
                names.len(),
                field.name,
                field.describe()
            );
            let shape = [&[self.count][..], &row].concat();
            columns.push((field.name, Tensor::from_vec(shape, values).cast(field.dtype)?));
        }
        columns.extend(self.labels.map(|t| (LABEL.to_string(), t)));
        let token_field = self.schema.label.clone().filter(|_| !self.label_column && !self.schema.may_lack_labels);
        let token_labels = token_field.map(|field| (field, self.schema.ignore_index.unwrap_or(IGNORED)));
        let text_fields = || {
            let is_text = |f: &&Field| tokens::TEXT_INPUTS.contains(&f.name.as_str());
            self.schema.inputs.iter().filter(is_text).cloned().collect()
        };
        let tokens = self.text.map(|t| (t.tokens, text_fields()));
        Ok(Tabular { tokens, columns, token_labels, rows: self.count })
    }
}

fn open_text(config: &DataConfig, schema: &Schema) -> Result<Option<Text>> {
    let Some(text) = &config.text else {
        ensure!(
            !tokens::wants_text(schema) || config.columns.contains_key("input_ids"),
            "the model takes input_ids: name the text column with data.text, and the tokenizer with data.tokenizer"
        );
        return Ok(None);
    };
    let columns = text.as_slice().to_vec();
    ensure!(
        matches!(columns.len(), 1 | 2),
        "data.text names {} columns, expected one, or two for sentence pairs",
        columns.len()
    );
    ensure!(
        tokens::wants_text(schema),
        "data.text is set, but the model has no input \"input_ids\"; its inputs are {}",
        super::list(schema.inputs.iter().map(|f| &f.name))
    );
    let Some(path) = &config.tokenizer else {
        bail!("data.text is set, but no tokenizer: set data.tokenizer to the model's tokenizer.json");
    };
    // A graph of fixed length bounds the length too.
    let fixed = schema.input("input_ids").and_then(Field::row).and_then(|row| row.first().copied().flatten());
    let max_length = match (config.max_length, fixed) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let encoder = Encoder::open(path, max_length, columns.len() == 2, schema.embedding.as_ref())?;
    let tokens = Tokens::new(encoder.pad());
    Ok(Some(Text { encoder, columns, pending: Vec::new(), tokens }))
}

fn parse_number(text: &str, dtype: DType, column: &str) -> Result<f64> {
    let wrong = |kind: &str| Error::msg(format!("column \"{column}\" holds \"{text}\", expected {kind}"));
    if dtype.is_int() {
        return text.parse::<i64>().map(|x| x as f64).map_err(|_| wrong("an integer"));
    }
    text.parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(|| wrong("a finite number"))
}

fn concat_rows(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut shape = a.shape().to_vec();
    if let (Some(rows), Some(more)) = (shape.first_mut(), b.shape().first()) {
        *rows += more;
    }
    Tensor::from_bytes(a.dtype(), shape, [&a.bytes()[..], &b.bytes()[..]].concat().into())
}

#[cfg(test)]
mod tests {
    use super::super::config::OneOrMany;
    use super::super::schema::Embedding;
    use super::*;
    use sartor_ir::Dim;
    use std::path::Path;

    const TOKENIZER: &str = r###"{"version":"1.0","truncation":null,"padding":null,"normalizer":null,
      "added_tokens":[
        {"id":0,"content":"[PAD]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
        {"id":1,"content":"[SEP]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
      "pre_tokenizer":{"type":"Whitespace"},
      "post_processor":{"type":"TemplateProcessing",
        "single":[{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}}],
        "pair":[{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}},
                {"Sequence":{"id":"B","type_id":1}},{"SpecialToken":{"id":"[SEP]","type_id":1}}],
        "special_tokens":{"[SEP]":{"id":"[SEP]","ids":[1],"tokens":["[SEP]"]}}},
      "decoder":null,
      "model":{"type":"WordLevel","vocab":{"[PAD]":0,"[SEP]":1,"[UNK]":2,"good":3,"bad":4,"film":5},"unk_token":"[UNK]"}}"###;

    fn field(name: &str, dtype: DType, rank: usize) -> Field {
        let shape = (0..rank).map(|i| Dim::symbol(["batch", "seq"][i])).collect();
        Field { name: name.into(), dtype, shape: Some(shape) }
    }

    fn schema(inputs: &[&str]) -> Schema {
        let inputs = inputs.iter().map(|n| field(n, DType::I64, 2)).collect();
        Schema { inputs, label: Some(field("label", DType::I64, 1)), classes: Some(2), ..Schema::default() }
    }

    fn setup(dir: &Path, table: &str) -> (PathBuf, DataConfig) {
        let (data, tokenizer) = (dir.join("train.tsv"), dir.join("tokenizer.json"));
        std::fs::write(&data, table).unwrap();
        std::fs::write(&tokenizer, TOKENIZER).unwrap();
        let text = Some(OneOrMany::One("text".to_string()));
        (data, DataConfig { text, tokenizer: Some(tokenizer), ..DataConfig::default() })
    }

    fn ints(shape: [usize; 2], values: &[i64]) -> Tensor {
        Tensor::from_vec(shape, values.to_vec())
    }

    #[test]
    fn text_is_padded_to_the_longest_of_the_batch() {
        let dir = tempfile::tempdir().unwrap();
        let (data, config) = setup(dir.path(), "text\tlabel\ngood film\t1\nbad\t0\nbad bad bad film\t0\n");
        let schema = schema(&["input_ids", "attention_mask", "token_type_ids"]);
        let split = Tabular::open(&[data], &config, &schema).unwrap();
        let batch = split.batch(&[1, 0]).unwrap();
        assert_eq!(batch.tensors["input_ids"], ints([2, 3], &[4, 1, 0, 3, 5, 1]));
        assert_eq!(batch.tensors["attention_mask"], ints([2, 3], &[1, 1, 0, 1, 1, 1]));
        assert_eq!(batch.tensors["token_type_ids"], ints([2, 3], &[0; 6]));
        assert_eq!(batch.tensors["label"], Tensor::from_i64s(&[0, 1]));
        assert_eq!((0..3).map(|r| split.row_length(r)).collect::<Vec<_>>(), [3, 2, 5]);
    }

    #[test]
    fn pairs_are_truncated_and_typed() {
        let dir = tempfile::tempdir().unwrap();
        let (data, mut config) = setup(dir.path(), "text\tother\tlabel\ngood good good good\tfilm bad\t1\n");
        config.text = Some(OneOrMany::Many(vec!["text".into(), "other".into()]));
        config.max_length = Some(6);
        let split = Tabular::open(&[data], &config, &schema(&["input_ids", "token_type_ids"])).unwrap();
        let batch = split.batch(&[0]).unwrap();
        assert_eq!(batch.tensors["input_ids"], ints([1, 6], &[3, 3, 1, 5, 4, 1]));
        assert_eq!(batch.tensors["token_type_ids"], ints([1, 6], &[0, 0, 0, 1, 1, 1]));
    }

    #[test]
    fn a_language_model_is_its_own_label() {
        let dir = tempfile::tempdir().unwrap();
        let (data, config) = setup(dir.path(), "text\ngood film\nbad\n");
        let mut schema = schema(&["input_ids"]);
        schema.label = Some(field("label", DType::I64, 2));
        schema.classes = None;
        let batch = Tabular::open(&[data], &config, &schema).unwrap().batch(&[0, 1]).unwrap();
        assert_eq!(batch.tensors["label"], ints([2, 3], &[3, 5, 1, 4, 1, -100]));
    }

    #[test]
    fn numeric_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("iris.csv");
        std::fs::write(&path, "a,b,label\n1.5,2,0\n-1,0.25,1\n").unwrap();
        let mut config = DataConfig::default();
        config.columns.insert("x".into(), OneOrMany::Many(vec!["b".into(), "a".into()]));
        let mut schema = schema(&[]);
        schema.inputs = vec![field("x", DType::F32, 2)];
        let batch = Tabular::open(std::slice::from_ref(&path), &config, &schema).unwrap().batch(&[0, 1]).unwrap();
        assert_eq!(batch.tensors["x"], Tensor::from_vec([2, 2], vec![2.0f32, 1.5, 0.25, -1.0]));
        std::fs::write(&path, "a,b,label\n1.5,x,0\n").unwrap();
        let error = Tabular::open(&[path], &config, &schema).map(drop).unwrap_err().to_string();
        assert!(error.ends_with("iris.csv, line 2: column \"b\" holds \"x\", expected a finite number"), "{error}");
    }

    #[test]
    fn mistakes_are_sentences() {
        let dir = tempfile::tempdir().unwrap();
        let table = "text\tlabel\ngood\t1\nbad\t2\n";
        let (data, config) = setup(dir.path(), table);
        let paths = [data];
        let text = schema(&["input_ids"]);
        let error = |config: &DataConfig, schema: &Schema| {
            Tabular::open(&paths, config, schema).map(drop).unwrap_err().to_string()
        };
        assert!(error(&config, &text).ends_with("train.tsv, line 3: label 2 is outside the 2 classes (0 to 1)"));
        let small = Schema { embedding: Some(Embedding { param: "E".into(), rows: 5 }), ..text.clone() };
        let message = error(&config, &small);
        assert!(message.contains("tokenizer.json: the tokenizer has 6 tokens, the model's embedding \"E\" has 5 rows"));
        let bare = DataConfig { tokenizer: None, ..config.clone() };
        assert!(error(&bare, &text).contains("no tokenizer: set data.tokenizer"));
        let nameless = DataConfig { text: None, ..config.clone() };
        assert!(error(&nameless, &text).contains("name the text column with data.text"));
        let other = DataConfig { label: Some("score".into()), ..config.clone() };
        let message = error(&other, &text);
        assert!(message.contains("no column \"score\" for the label (data.label names it); the columns are \"text\""));
        let tight = DataConfig { max_length: Some(1), ..config.clone() };
        assert!(error(&tight, &text).contains("max_length 1 leaves no room: 1 special tokens are added"));
        std::fs::write(&paths[0], "text\tlabel\n").unwrap();
        assert!(error(&config, &text).ends_with("the split is empty: there is no row below the header"));
        std::fs::write(config.tokenizer.as_ref().unwrap(), "{}").unwrap();
        assert!(error(&config, &text).contains("this is not a tokenizer.json"));
    }
}
