//! Recurrent layers become [`Recurrence`] and [`RecurrenceGrad`] steps, if they are of `f32`.

use super::view::View;
use super::{Lowering, Step};
use crate::cpu::recurrence::{Dense, Recurrence, RecurrenceGrad, Walk};
use sartor_ir::ops::recurrent::recurrence::{Kind, Rule, Sizes};
use sartor_ir::{NodeId, Operator, Result, Value};

/// The slots of the first states and of the lengths.
const FORWARD: [usize; 3] = [2, 3, 4];
const BACKWARD: [usize; 3] = [5, 6, 7];

impl Lowering<'_> {
    /// Inputs: z, R, h₀, c₀, lens, b.
    pub(crate) fn recurrence(&mut self, id: NodeId, op: &Operator) -> Result<bool> {
        let mut reads = Vec::new();
        let (Some(z), Some(r)) = (self.dense(id, 0, &mut reads)?, self.dense(id, 1, &mut reads)?) else {
            return Ok(false);
        };
        let [steps, batch, _] = z.shape[..] else { return Ok(false) };
        let Some(walk) = self.walk(id, op, (&r, steps, batch), FORWARD, &mut reads)? else { return Ok(false) };
        let bias = self.dense(id, 5, &mut reads)?;
        let mut writes = Vec::new();
        let y = self.result(id, 0, true, &mut writes)?;
        let last = [self.result(id, 1, false, &mut writes)?, self.result(id, 2, false, &mut writes)?];
        let kept = self.result(id, 3, false, &mut writes)?;
        let Some(y) = y else { return Ok(false) };
        let step = Recurrence { walk, z: place(&z), bias: bias.as_ref().map(place), y, last, kept };
        self.push(Step::Recurrence(Box::new(step)), reads, writes);
        Ok(true)
    }
    /// Inputs: R, Y, dY, dY_h, dY_c, h₀, c₀, lens, kept.
    pub(crate) fn recurrence_grad(&mut self, id: NodeId, op: &Operator) -> Result<bool> {
        let mut reads = Vec::new();
        let (Some(r), Some(y)) = (self.dense(id, 0, &mut reads)?, self.dense(id, 1, &mut reads)?) else {
            return Ok(false);
        };
        let [steps, _, batch, _] = y.shape[..] else { return Ok(false) };
        let Some(walk) = self.walk(id, op, (&r, steps, batch), BACKWARD, &mut reads)? else { return Ok(false) };
        let mut grads = [None; 3];
        for (slot, grad) in grads.iter_mut().enumerate() {
            *grad = self.dense(id, 2 + slot, &mut reads)?.as_ref().map(place);
        }
        let kept = self.dense(id, 8, &mut reads)?.as_ref().map(place);
        if kept.is_none() != (walk.rule.kind == Kind::Rnn) {
            return Ok(false);
        }
        let mut writes = Vec::new();
        let dz = self.result(id, 0, true, &mut writes)?;
        let dfirst = [self.result(id, 1, false, &mut writes)?, self.result(id, 2, false, &mut writes)?];
        let [before, mixed] = [self.result(id, 3, false, &mut writes)?, self.result(id, 4, false, &mut writes)?];
        let Some(dz) = dz else { return Ok(false) };
        let step = RecurrenceGrad { walk, y: place(&y), kept, grads, dz, dfirst, before, mixed };
        self.push(Step::RecurrenceGrad(Box::new(step)), reads, writes);
        Ok(true)
    }
    fn walk(
        &mut self,
        id: NodeId,
        op: &Operator,
        (r, steps, batch): (&View, usize, usize),
        [h, c, lens]: [usize; 3],
        reads: &mut Vec<super::view::BufId>,
    ) -> Result<Option<Walk>> {
        let rule = Rule::read(&op.attrs)?;
        let [_, _, hidden] = r.shape[..] else { return Ok(None) };
        if r.shape != [rule.backwards.len(), rule.gates() * hidden, hidden] {
            return Ok(None);
        }
        let first = [self.dense(id, h, reads)?.as_ref().map(place), self.dense(id, c, reads)?.as_ref().map(place)];
        let lens = self.graph.input(id, lens).map(|lens| self.host(lens)).transpose()?;
        reads.extend(lens.map(|slot| self.slots[slot].buf));
        Ok(Some(Walk { rule, sizes: Sizes { steps, batch, hidden }, r: place(r), first, lens }))
    }
    /// An input without gaps, copied if need be.
    fn dense(&mut self, id: NodeId, slot: usize, reads: &mut Vec<super::view::BufId>) -> Result<Option<View>> {
        let Some(value) = self.graph.input(id, slot) else { return Ok(None) };
        let view = self.view(value)?;
        let view = if view.is_dense() { view } else { self.copied(view) };
        reads.push(view.buf);
        Ok(Some(view))
    }
    /// A new buffer for an output, if it is read or asked for.
    fn result(
        &mut self,
        id: NodeId,
        slot: u32,
        always: bool,
        writes: &mut Vec<super::view::BufId>,
    ) -> Result<Option<Dense>> {
        let value = Value { node: id, slot };
        if !always && !self.uses.contains_key(&value) && !self.outputs.contains(&value) {
            return Ok(None);
        }
        let view = self.fresh(self.shape(value)?);
        writes.push(view.buf);
        let place = place(&view);
        self.set(value, view)?;
        Ok(Some(place))
    }
}

fn place(view: &View) -> Dense {
    (view.buf, view.offset)
}
