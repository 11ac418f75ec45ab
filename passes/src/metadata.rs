//! Records that passes leave in a model's metadata, as JSON.

use sartor_ir::{Error, Model, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads what `pass` left under a key; `None` if it left nothing.
pub fn load<T: DeserializeOwned>(model: &Model, key: &str, pass: &str) -> Result<Option<T>> {
    let Some(text) = model.meta_value(key) else { return Ok(None) };
    let wrong = |e| Error::msg(format!("the model's metadata \"{key}\" is not what `{pass}` writes: {e}"));
    serde_json::from_str(text).map(Some).map_err(wrong)
}

/// Writes it.
pub fn store<T: Serialize>(model: &mut Model, key: &str, record: &T) -> Result<()> {
    let text = serde_json::to_string(record).map_err(|e| Error::msg(e.to_string()))?;
    model.set_meta(key, text);
    Ok(())
}

/// Removes it.
pub fn remove(model: &mut Model, key: &str) {
    model.meta.retain(|(other, _)| other != key);
}
