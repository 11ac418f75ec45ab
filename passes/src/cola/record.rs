//! What `cola` did, as JSON in the model's metadata: `merge`, `extract-adapter` and tools read it.

use super::SiteKind;
use crate::metadata;
use sartor_ir::{Model, Result, bail};
use serde::{Deserialize, Serialize};

/// The key of the metadata.
pub const KEY: &str = "sartor.cola";

/// All adapters of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// α.
    pub alpha: f64,
    /// Where they are.
    pub sites: Vec<SiteRecord>,
}

/// The adapters of one operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteRecord {
    /// The operator's node.
    pub node: String,
    /// Which operator it is.
    pub kind: SiteKind,
    /// The parameter behind its weight.
    pub weight: String,
    /// The exporter's module path, such as `encoder.layer.0.attention.self.query`, as far as the file tells.
    pub module: String,
    /// For chains: the state that holds the weight with the finished links merged.
    pub merged: Option<String>,
    /// The links, in order.
    pub links: Vec<LinkRecord>,
}

/// One pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// The parameter A: `[in, r]`, for convolutions `[r, in, k…]`.
    pub a: String,
    /// The parameter B: `[r, out]`, for convolutions `[out, r, 1…]`.
    pub b: String,
    /// r
    pub rank: usize,
    /// What the pair's product is multiplied by.
    pub scale: f64,
}

impl Record {
    /// Reads it from a model. `None` if the model has no adapters.
    pub fn load(model: &Model) -> Result<Option<Record>> {
        let Some(record) = metadata::load::<Record>(model, KEY, "cola")? else { return Ok(None) };
        for link in record.sites.iter().flat_map(|s| &s.links) {
            for param in [&link.a, &link.b] {
                if !model.params.contains_key(param) {
                    bail!(
                        "the model's metadata \"{KEY}\" names the parameter \"{param}\", which the model does not have"
                    );
                }
            }
        }
        Ok(Some(record))
    }
    /// Writes it to a model.
    pub fn store(&self, model: &mut Model) -> Result<()> {
        metadata::store(model, KEY, self)
    }
    /// Removes it from a model.
    pub fn remove(model: &mut Model) {
        metadata::remove(model, KEY);
    }
}
