//! The parameters of a run: what programs read and write. Frozen ones stay windows on the model file; only what a
//! program writes is owned memory.

use indexmap::IndexMap;
use sartor_ir::{Model, Result, Tensor, bail, ensure};

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Params {
    tensors: IndexMap<String, Tensor>,
    /// Counts the writes, so that a session knows when something it prepared (packed weights) is stale.
    version: u64,
}

impl Params {
    /// The parameters of a model.
    pub fn of(model: &Model) -> Params {
        let tensors = model.params.iter().map(|(name, p)| (name.clone(), p.tensor.clone())).collect();
        Params { tensors, version: 0 }
    }
    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
    /// Replaces the value of a parameter by one of the same type and shape.
    pub fn set(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let Some(old) = self.tensors.get_mut(name) else { bail!("there is no parameter \"{name}\"") };
        let fits = old.dtype() == tensor.dtype() && old.shape() == tensor.shape();
        ensure!(fits, "parameter \"{name}\" is {old:?}, it cannot be set to {tensor:?}");
        *old = tensor;
        self.version += 1;
        Ok(())
    }
    /// Goes back to what they were when `before` was cloned. Counts as a write.
    pub fn roll_back(&mut self, before: Params) {
        let version = self.version + 1;
        *self = Params { version, ..before };
    }
    /// How often something was written.
    pub fn version(&self) -> u64 {
        self.version
    }
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
    /// Writes all values back into a model that has the same parameters.
    pub fn store(&self, model: &mut Model) {
        for (name, param) in &mut model.params {
            if let Some(tensor) = self.tensors.get(name) {
                param.tensor = tensor.clone();
            }
        }
    }
}
