//! `Dropout` in training: a step draws the mask, and elements are masked where the group at hand computes them.

use super::group::{Arg, What};
use super::{Lowering, Step};
use crate::cpu::dropout::Mask;
use sartor_ir::ops::dropout;
use sartor_ir::{NodeId, Result, Value};

impl Lowering<'_> {
    /// `false` unless ratio and mode are known.
    pub(crate) fn dropout(&mut self, id: NodeId, x: Value, y: Value) -> Result<bool> {
        let (ratio, training) = (self.graph.input(id, 1), self.graph.input(id, 2));
        let training = training.and_then(|v| self.constant(v)).and_then(|t| t.item::<bool>().ok());
        let known = ratio.map(|v| self.constant(v));
        if training != Some(true) || known == Some(None) {
            return Ok(false);
        }
        let ratio = dropout::ratio(known.flatten().as_ref())?;
        let shape = self.shape(y)?;
        let mask = self.fresh(shape);
        self.push(Step::Mask(Mask { node: id, ratio, out: mask.clone() }), Vec::new(), vec![mask.buf]);
        self.set(Value { node: id, slot: 1 }, mask.clone())?;
        let args = vec![Arg::View(self.view(x)?), Arg::View(mask)];
        self.map(What::Masked(dropout::scale(ratio) as f32), args, y)?;
        Ok(true)
    }
}
