//! Gates: what need not be computed because it is multiplied by 0 later.
//!
//! ```text
//! h = relu(conv1 x) · c          c: a number per example and channel
//! y = x + (conv2 h) · s          s: a number per example
//! ```
//! A convolution whose [tail] multiplies by `c` leaves out the columns that are 0 and writes the others side by side, if its only reader
//! is another convolution, which reads them so; a depthwise one between them is treated alike. A convolution whose tail multiplies by `s`
//! sums nothing where that is 0, and what only it reads, directly or through such convolutions, is not computed at all.
//!
//! A product of tokens is a convolution of single pixels here. What follows it may be any [program](super::program) (an activation, say) that multiplies by `c` at last: it runs over the
//! columns that are left. Or one that multiplies the sum by `s` before anything but numbers of a column are added to it (a shortcut and a normalisation may follow): where that is 0, it runs over zeros.
//!
//! The results are those without gates that skip, but for the order of additions and for infinities (0 · ∞ is 0 here). What is computed depends on the
//! data, the shapes and the plan do not: an example that is skipped costs nothing in any batch.

use super::finish::{arranged, by_producers};
use super::program::{Ins, Program};
use super::view::BufId;
use super::{Buffer, Home, Planned, Step, tail};
use crate::cpu::contract::{Contract, Matrix, Skip};
use std::collections::HashMap;

/// Lets convolutions skip what gates shut.
pub fn link(steps: Vec<Planned>, buffers: &[Buffer]) -> Vec<Planned> {
    let mut links = Links::of(steps, buffers);
    let before = links.steps.len();
    for at in 0..before {
        let Some(conv) = links.conv(at) else { continue };
        let (mut example, mut columns) = (None, None);
        match (&conv.tail, &conv.epilogue) {
            (Some(tail), _) => (example, columns) = (tail.factor.clone(), tail.scale.clone()),
            (None, Some(program)) => {
                (example, columns) = (tail::first_factor(conv, program), tail::last_factor(conv, program));
            }
            (None, None) => {}
        }
        if let Some(gate) = example {
            links.skip_examples(at, &gate);
        }
        if let Some(gate) = columns {
            links.skip_channels(at, &gate);
        }
    }
    links.ordered()
}

/// Where the only result of a contract goes, columns side by side.
fn result(contract: &Contract) -> Option<Matrix> {
    match &contract.epilogue {
        None => contract.out.clone(),
        Some(program) => tail::stored(contract, program).map(|(_, out)| out),
    }
}

struct Links {
    steps: Vec<Planned>,
    writer: HashMap<BufId, usize>,
    /// The only step that reads a buffer.
    reader: HashMap<BufId, Option<usize>>,
    arena: Vec<bool>,
    changed: bool,
}

impl Links {
    fn of(steps: Vec<Planned>, buffers: &[Buffer]) -> Links {
        let (mut writer, mut reader) = (HashMap::new(), HashMap::new());
        for (at, step) in steps.iter().enumerate() {
            step.writes.iter().for_each(|&b| _ = writer.insert(b, at));
            for &buf in &step.reads {
                reader.entry(buf).and_modify(|only| *only = None).or_insert(Some(at));
            }
        }
        let arena = buffers.iter().map(|b| b.home == Home::Arena).collect();
        Links { steps, writer, reader, arena, changed: false }
    }
    /// The contract of a step, if it is one convolution of one group with a plain result, or with a program that follows.
    fn conv(&self, at: usize) -> Option<&Contract> {
        let Step::Contract(contract) = &self.steps[at].step else { return None };
        let [product] = contract.products.as_slice() else { return None };
        let plain = product.patch.is_some_and(|p| p.groups.0 == 1 && !p.transposed) && contract.batch.len() == 1;
        let side_by_side = contract.out.as_ref().map_or(contract.epilogue.is_some(), |out| out.col == 1);
        (plain && side_by_side).then_some(contract)
    }
    fn is_depthwise(contract: &Contract) -> bool {
        contract.products[0].patch.is_some_and(|p| p.depthwise)
    }
    /// The convolution that makes the image of this one, if nobody else reads it.
    fn before(&self, at: usize) -> Option<usize> {
        let reader = self.conv(at)?;
        let buf = reader.products[0].a.buf;
        let writer = *self.writer.get(&buf)?;
        let made = self.conv(writer)?;
        let loads = |program: &Program| program.code.iter().any(|i| matches!(i, Ins::Load(_, walk) if walk.buf == buf));
        let more = reader.tail.iter().flat_map(|tail| tail.matrices()).any(|m| m.buf == buf)
            || reader.epilogue.as_ref().is_some_and(loads);
        let alone = self.reader.get(&buf) == Some(&Some(at)) && self.arena[buf.index()] && !more;
        let whole = result(made)?.buf == buf && made.batch == reader.batch && self.fits(made, reader);
        (alone && whole && self.steps[writer].writes == [buf]).then_some(writer)
    }
    /// Whether a convolution reads the result of another pixel by pixel, all channels side by side.
    fn fits(&self, made: &Contract, reader: &Contract) -> bool {
        let (Some(patch), Some(out)) = (reader.products[0].patch, result(made)) else { return false };
        let a = &reader.products[0].a;
        patch.channels == made.n
            && patch.steps[1] == out.row
            && patch.steps[2] == 1
            && a.offset == out.offset
            && a.batch == out.batch
    }
    fn change(&mut self, at: usize, gate: &Matrix, set: impl FnOnce(&mut Skip)) {
        let planned = &mut self.steps[at];
        if let Step::Contract(contract) = &mut planned.step {
            set(contract.skip.get_or_insert_default());
            planned.also_reads(gate.buf);
            self.changed = true;
        }
    }
    fn skip_examples(&mut self, at: usize, gate: &Matrix) {
        let mut next = Some((at, true));
        while let Some((at, last)) = next {
            self.change(at, gate, |skip| (skip.example, skip.last) = (Some(gate.clone()), last));
            next = self.before(at).map(|before| (before, false));
        }
    }
    fn skip_channels(&mut self, at: usize, gate: &Matrix) {
        let Some(out) = self.conv(at).and_then(result).map(|out| out.buf) else { return };
        let Some(&Some(reader)) = self.reader.get(&out) else { return };
        if self.before(reader) != Some(at) || self.conv(reader).is_none_or(Links::is_depthwise) {
            return;
        }
        if self.conv(at).is_some_and(Links::is_depthwise) {
            let Some(first) = self.before(at).filter(|&first| !self.conv(first).is_some_and(Links::is_depthwise))
            else {
                return;
            };
            self.change(first, gate, |skip| skip.columns = Some(gate.clone()));
            self.change(at, gate, |skip| skip.inputs = Some(gate.clone()));
        }
        self.change(at, gate, |skip| skip.columns = Some(gate.clone()));
        self.change(reader, gate, |skip| skip.inputs = Some(gate.clone()));
    }
    /// The steps, gates before whom they concern; otherwise in the order that they have.
    fn ordered(self) -> Vec<Planned> {
        if !self.changed {
            return self.steps;
        }
        let writers = |at: usize| {
            self.steps[at].reads.iter().filter_map(|b| self.writer.get(b).copied()).filter(|&w| w != at).collect()
        };
        let order = by_producers(self.steps.len(), writers, |at| at);
        arranged(self.steps, order)
    }
}
