//! The table `[data]` of a recipe: where the examples are and how they become the inputs of the graph.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One thing or a list of them, as people write it in TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected one path or name, or a list of them")]
pub enum OneOrMany<T> {
    /// `"a"`
    One(T),
    /// `["a", "b"]`
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// As a slice.
    pub fn as_slice(&self) -> &[T] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// See the [module](self). Unknown keys are errors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// The examples to train on: `.npz`, `.npy` (several, or a folder of them), `.csv`, `.tsv`, `.jsonl`, IDX (images
    /// and, if not found beside them, labels), or a folder with one folder of images per class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<OneOrMany<PathBuf>>,
    /// The examples for evaluation during the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<OneOrMany<PathBuf>>,
    /// The examples for the evaluation at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<OneOrMany<PathBuf>>,
    /// The text column of a table, or two of them for sentence pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<OneOrMany<String>>,
    /// The column, or the array, that holds the label. Default: `label`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Graph input → the numeric column(s) of a table that it is made of. A graph input of the same name as a column
    /// needs no entry.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, OneOrMany<String>>,
    /// The Hugging Face `tokenizer.json` for the text columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Longest sequence in tokens, special ones included. Default: what the tokenizer's file says, or no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Batches of similar length: this many batches at a time are shuffled together and sorted by length. 0 or 1: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buckets: Option<usize>,
    /// Whether quotes in a table are markup. Default: in `.csv` yes (RFC 4180); in `.tsv` only where a whole field on
    /// one line is well-formed in that sense, so that raw text with stray quotes reads as it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote: Option<bool>,
    /// `[height, width]` that images of other sizes are scaled to. Without it, another size is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<[u32; 2]>,
    /// Subtracted from the pixels (which are in 0..1), per channel or one for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// What the pixels are then divided by, per channel or one for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
    /// Whether half of the training images are mirrored left to right, anew in each epoch.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub flip: bool,
    /// Training images are moved by up to this many pixels in each direction, anew in each epoch; what moves in is 0 after
    /// normalisation.
    #[serde(skip_serializing_if = "is_zero")]
    pub crop: usize,
}

impl DataConfig {
    /// The name of the label's column or array.
    pub fn label_name(&self) -> &str {
        self.label.as_deref().unwrap_or("label")
    }
    /// Makes relative paths relative to a folder (the recipe's).
    pub fn resolve(&mut self, base: &Path) {
        let splits = [&mut self.train, &mut self.eval, &mut self.test];
        for paths in splits.into_iter().flatten() {
            match paths {
                OneOrMany::One(path) => *path = base.join(&path),
                OneOrMany::Many(paths) => paths.iter_mut().for_each(|p| *p = base.join(&p)),
            }
        }
        if let Some(path) = &mut self.tokenizer {
            *path = base.join(&path);
        }
    }
}
