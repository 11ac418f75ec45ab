//! Text through a Hugging Face `tokenizer.json`: token ids, kept as numbers (the text is not), padded per batch.
//!
//! Fills whichever of `input_ids`, `attention_mask`, `token_type_ids` and `position_ids` the graph has. A batch is as
//! long as its longest row, or as long as the graph says.

use super::schema::{Embedding, Field, Schema};
use sartor_ir::{Context, Error, Result, Tensor, bail, ensure};
use std::path::Path;
use tokenizers::{EncodeInput, PostProcessor, Tokenizer, TruncationParams};

/// The graph inputs that text fills.
pub const TEXT_INPUTS: &[&str] = &["input_ids", "attention_mask", "token_type_ids", "position_ids"];
/// What labels hold at padding, when the tokens are their own labels.
pub const IGNORED: i64 = -100;

/// A tokenizer that is set up for a graph.
pub struct Encoder {
    tokenizer: Tokenizer,
    pad: u32,
}

impl Encoder {
    /// Reads a `tokenizer.json`. `pairs`: whether it will see sentence pairs. Errors if the embedding has fewer rows
    /// than the tokenizer has tokens, or if the longest length leaves no room for a token.
    pub fn open(path: &Path, max_length: Option<usize>, pairs: bool, embedding: Option<&Embedding>) -> Result<Encoder> {
        let place = || path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let parsed = Tokenizer::from_bytes(&bytes);
        let mut tokenizer = parsed.map_err(|e| Error::msg(format!("this is not a tokenizer.json: {e}")).at(place()))?;
        check_vocabulary(&tokenizer, embedding).context(place)?;
        let pad = match tokenizer.get_padding() {
            Some(padding) => padding.pad_id,
            None => ["[PAD]", "<pad>", "<|endoftext|>"].iter().find_map(|t| tokenizer.token_to_id(t)).unwrap_or(0),
        };
        tokenizer.with_padding(None);
        let given = tokenizer.get_truncation().cloned();
        if let Some(max_length) = max_length.or(given.as_ref().map(|t| t.max_length)) {
            let special = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(pairs));
            ensure!(max_length > special, "max_length {max_length} leaves no room: {special} special tokens are added");
            let params = TruncationParams { max_length, stride: 0, ..given.unwrap_or_default() };
            let set = tokenizer.with_truncation(Some(params)).map(drop);
            set.map_err(|e| Error::msg(format!("max_length {max_length}: {e}")).at(place()))?;
        }
        Ok(Encoder { tokenizer, pad })
    }
    /// Encodes texts (each one sentence or a pair) and appends them.
    pub fn append(&self, texts: Vec<Vec<String>>, to: &mut Tokens) -> Result<()> {
        let inputs = texts.into_iter().map(as_input).collect::<Result<Vec<EncodeInput>>>()?;
        let encodings = self.tokenizer.encode_batch(inputs, true);
        let encodings = encodings.map_err(|e| Error::msg(format!("the text cannot be tokenized: {e}")))?;
        for encoding in encodings {
            to.ids.extend(encoding.get_ids());
            to.types.extend(encoding.get_type_ids().iter().map(|&t| t as u8));
            to.ends.push(to.ids.len());
        }
        Ok(())
    }
    /// The token that fills up rows.
    pub fn pad(&self) -> u32 {
        self.pad
    }
}

fn as_input<'s>(mut texts: Vec<String>) -> Result<EncodeInput<'s>> {
    match (texts.pop(), texts.pop()) {
        (Some(second), Some(first)) => Ok((first, second).into()),
        (Some(only), None) => Ok(only.into()),
        _ => bail!("there is no text to encode"),
    }
}

fn check_vocabulary(tokenizer: &Tokenizer, embedding: Option<&Embedding>) -> Result<()> {
    let Some(Embedding { param, rows }) = embedding else { return Ok(()) };
    let tokens = tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
    ensure!(
        tokens <= *rows,
        "the tokenizer has {tokens} tokens, the model's embedding \"{param}\" has {rows} rows: it is another model's \
         tokenizer"
    );
    Ok(())
}

/// The tokens of all examples, end to end.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    ids: Vec<u32>,
    types: Vec<u8>,
    /// Where each example ends.
    ends: Vec<usize>,
    pad: u32,
}

impl Tokens {
    /// None yet.
    pub fn new(pad: u32) -> Tokens {
        Tokens { pad, ..Tokens::default() }
    }
    /// The number of examples.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let end = self.ends.get(row).copied().unwrap_or(0);
        let start = row.checked_sub(1).and_then(|r| self.ends.get(r)).copied().unwrap_or(0);
        start.min(end)..end
    }
    /// The number of tokens of an example.
    pub fn length(&self, row: usize) -> usize {
        self.range(row).len()
    }
    /// The length that rows are padded to: the longest, or what the field says.
    fn padded(&self, rows: &[usize], field: &Field) -> Result<usize> {
        let longest = rows.iter().map(|&r| self.length(r)).max().unwrap_or(0);
        let fixed = field.row().and_then(|row| row.first().copied().flatten());
        match fixed {
            Some(fixed) if longest > fixed => bail!(
                "an example has {longest} tokens, the model's input \"{}\" is {}: set data.max_length to at most {fixed}",
                field.name,
                field.describe()
            ),
            Some(fixed) => Ok(fixed),
            None => Ok(longest),
        }
    }
    /// One of the [`TEXT_INPUTS`] for some rows.
    pub fn input(&self, field: &Field, rows: &[usize]) -> Result<Tensor> {
        let length = self.padded(rows, field)?;
        let make: &dyn Fn(usize, usize) -> i64 = match field.name.as_str() {
            "input_ids" => &|at, _| i64::from(self.ids[at]),
            "attention_mask" => &|_, _| 1,
            "token_type_ids" => &|at, _| i64::from(self.types[at]),
            "position_ids" => &|_, position| position as i64,
            other => bail!("text does not fill \"{other}\""),
        };
        let fill = if field.name == "input_ids" { i64::from(self.pad) } else { 0 };
        self.table(rows, length, fill, make).cast(field.dtype)
    }
    /// The ids as labels of a language model: padding is left out of the loss.
    pub fn as_labels(&self, field: &Field, ignored: i64, rows: &[usize]) -> Result<Tensor> {
        let length = self.padded(rows, field)?;
        self.table(rows, length, ignored, &|at, _| i64::from(self.ids[at])).cast(field.dtype)
    }
    /// `make` gets the place among all tokens and the place in the row.
    fn table(&self, rows: &[usize], length: usize, fill: i64, make: &dyn Fn(usize, usize) -> i64) -> Tensor {
        let mut out = vec![fill; rows.len() * length];
        for (i, &row) in rows.iter().enumerate() {
            for (position, at) in self.range(row).enumerate() {
                out[i * length + position] = make(at, position);
            }
        }
        Tensor::from_vec([rows.len(), length], out)
    }
}

/// Whether a schema has an input that text fills.
pub fn wants_text(schema: &Schema) -> bool {
    schema.inputs.iter().any(|f| f.name == "input_ids")
}
