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
//! What an attention makes of an example is skipped with it: products whose results are read by nobody else, example by example, directly or through a program.
//!
//! Heads of attentions: `skip/heads.rs`.
//!
//! The results are those without gates that skip, but for the order of additions and for infinities (0 · ∞ is 0 here). What is computed depends on the
//! data, the shapes and the plan do not: an example that is skipped costs nothing in any batch.

mod heads;

use super::finish::{arranged, by_producers};
use super::program::{Ins, Program};
use super::view::{BufId, Walk};
use super::{Buffer, Home, Planned, Step, tail};
use crate::cpu::contract::{Channels, Contract, Matrix, Skip};
use crate::cpu::patch::Patch;
use std::collections::HashMap;

/// To pick one weight takes as long as so many multiplications.
const PICK: usize = 13;

/// Lets convolutions skip what gates shut.
pub fn link(steps: Vec<Planned>, buffers: &[Buffer]) -> Vec<Planned> {
    let mut links = Links::of(steps, buffers);
    let before = links.steps.len();
    for at in 0..before {
        if let Some((reader, gate)) = links.gated_heads(at) {
            links.skip_heads(at, reader, &gate);
        }
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

/// How far apart the parts of a matrix lie that belong to the examples of a batch, the first axis of several; `None` if they overlap or there is only one.
fn by_example(contract: &Contract, matrix: &Matrix, (rows, cols): (usize, usize)) -> Option<usize> {
    let (&examples, &apart) = (contract.batch.first()?, matrix.batch.first()?);
    let axes = contract.batch.iter().copied().zip(matrix.batch.iter().copied()).skip(1);
    let last: usize = axes.chain([(rows, matrix.row), (cols, matrix.col)]).map(|(n, s)| n.saturating_sub(1) * s).sum();
    (examples > 1 && matrix.offset + last < apart).then_some(apart)
}

/// Whether every row of a program stays, where this walk leads, within what belongs to its part of the rows.
fn stays(program: &Program, walk: &Walk, parts: usize, part_of: impl Fn(usize) -> usize) -> bool {
    let (rows, width) = (program.rows / parts, program.cols.saturating_sub(1) * walk.col);
    (0..program.rows).all(|row| {
        let start = walk.row(row);
        part_of(start) == row / rows && part_of(start + width) == row / rows
    })
}

/// What a program reads, but for the tile.
fn loaded(program: &Program) -> impl Iterator<Item = &Walk> {
    program.code.iter().filter_map(|ins| match ins {
        Ins::Load(_, walk) => Some(walk),
        _ => None,
    })
}

/// Whether two matrices are the same one in every batch.
fn is_same(a: &Matrix, b: &Matrix, batch: &[usize]) -> bool {
    let steps =
        |m: &Matrix| Vec::from_iter(m.batch.iter().zip(batch).map(|(&step, &dim)| if dim > 1 { step } else { 0 }));
    let place = |m: &Matrix| (m.buf, m.offset, m.row, m.col);
    place(a) == place(b) && a.batch.len() == b.batch.len() && steps(a) == steps(b)
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
        let alone = self.is_operand_only(buf, at);
        let whole = result(made)?.buf == buf && made.batch == reader.batch && self.fits(made, reader);
        (alone && whole && self.steps[writer].writes == [buf]).then_some(writer)
    }
    /// What makes a buffer that only this step reads.
    fn only_for(&self, buf: BufId, at: usize) -> Option<usize> {
        let alone = self.reader.get(&buf) == Some(&Some(at)) && self.arena[buf.index()];
        self.writer.get(&buf).copied().filter(|_| alone)
    }
    /// Whether nobody reads a buffer but this contract, and that only as a factor of its products.
    fn is_operand_only(&self, buf: BufId, at: usize) -> bool {
        let Step::Contract(reader) = &self.steps[at].step else { return false };
        let loads = |program: &Program| program.code.iter().any(|i| matches!(i, Ins::Load(_, walk) if walk.buf == buf));
        let more = reader.tail.iter().flat_map(|tail| tail.matrices()).any(|m| m.buf == buf)
            || reader.epilogue.as_ref().is_some_and(loads);
        self.reader.get(&buf) == Some(&Some(at)) && self.arena[buf.index()] && !more
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
        let (mut next, mut last) = (vec![at], true);
        while let Some(at) = next.pop() {
            let Step::Contract(contract) = &self.steps[at].step else { continue };
            // A number per example, whatever other axes of batches there are.
            let mut batch = vec![0; contract.batch.len()];
            batch.iter_mut().zip(&gate.batch).take(1).for_each(|(stride, &of_gate)| *stride = of_gate);
            let gate = Matrix { batch, ..gate.clone() };
            self.change(at, &gate, |skip| (skip.example, skip.last) = (Some(gate.clone()), last));
            last = false;
            next.extend(self.feeding(at));
        }
    }
    /// What makes the image of this convolution for itself alone, and the products whose results only this contract reads, those of an example for the same example: heads of an attention, and what they are made of.
    fn feeding(&self, at: usize) -> Vec<usize> {
        let Step::Contract(reader) = &self.steps[at].step else { return Vec::new() };
        let mut found = Vec::from_iter(self.before(at));
        for product in &reader.products {
            let left = match product.patch {
                Some(patch) if !patch.is_tokens() => continue,
                Some(patch) => Matrix { row: patch.steps[1], col: patch.steps[2], ..product.a.clone() },
                None => product.a.clone(),
            };
            let factors = [(left, (reader.m, product.k)), (product.b.clone(), (product.k, reader.n))];
            for (matrix, lengths) in factors {
                let Some(apart) = by_example(reader, &matrix, lengths) else { continue };
                let alone = self.is_operand_only(matrix.buf, at);
                let Some(&writer) = self.writer.get(&matrix.buf).filter(|_| alone) else { continue };
                let examples = reader.batch[0];
                if self.makes(writer, matrix.buf, examples) == Some(apart) {
                    found.push(writer);
                } else if let Step::Program(program) = &self.steps[writer].step {
                    found.extend(self.through(program, writer, (matrix.buf, apart), examples));
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
    /// How far apart a step puts the examples of a batch of which it makes a buffer, if it is a contract that can skip them.
    fn makes(&self, at: usize, buf: BufId, examples: usize) -> Option<usize> {
        let Step::Contract(made) = &self.steps[at].step else { return None };
        let plain = made.products.iter().all(|p| p.patch.is_none_or(|patch| patch.is_tokens()));
        let whole = self.steps[at].writes == [buf] && made.batch.first() == Some(&examples);
        let out = result(made).filter(|_| plain && whole)?;
        by_example(made, &out, (made.m, made.n))
    }
    /// The products that a program reads which makes a buffer of what they make of an example, for the same example.
    fn through(&self, program: &Program, at: usize, (buf, apart): (BufId, usize), examples: usize) -> Vec<usize> {
        let Some((_, out)) = tail::only_store(program) else { return Vec::new() };
        if !program.rows.is_multiple_of(examples) || out.buf != buf || !stays(program, out, examples, |at| at / apart) {
            return Vec::new();
        }
        let writers = loaded(program).filter_map(|walk| {
            let writer = self.only_for(walk.buf, at)?;
            let apart = self.makes(writer, walk.buf, examples)?;
            stays(program, walk, examples, |at| at / apart).then_some(writer)
        });
        writers.collect()
    }
    /// The contract of a step that is a product of tokens, and its windows.
    fn tokens(&self, at: usize) -> Option<(&Contract, Patch)> {
        let contract = self.conv(at)?;
        Some((contract, contract.products[0].patch.filter(|patch| patch.is_tokens())?))
    }
    /// Whether a contract reads or writes only channels that are open, side by side.
    fn moves(&self, at: usize) -> bool {
        let Step::Contract(contract) = &self.steps[at].step else { return false };
        contract.skip.as_ref().is_some_and(|skip| skip.columns.is_some() || skip.inputs.is_some())
    }
    fn skip_channels(&mut self, at: usize, gate: &Matrix) {
        let Some(out) = self.conv(at).and_then(result).map(|out| out.buf) else { return };
        let Some(&Some(reader)) = self.reader.get(&out) else { return };
        if self.before(reader) != Some(at) || self.conv(reader).is_none_or(Links::is_depthwise) {
            return;
        }
        if self.has_heads(at) || self.has_heads(reader) {
            return;
        }
        let mut members = vec![at, reader];
        if self.conv(at).is_some_and(Links::is_depthwise) {
            let Some(first) = self.before(at).filter(|&first| !self.conv(first).is_some_and(Links::is_depthwise))
            else {
                return;
            };
            members.insert(0, first);
        }
        let channels = Channels { gate: gate.clone(), most: self.most(&members) };
        for pair in members.windows(2) {
            self.change(pair[0], gate, |skip| skip.columns = Some(channels.clone()));
            self.change(pair[1], gate, |skip| skip.inputs = Some(channels.clone()));
        }
    }
    /// How many channels may be open at most for it to be worth while to leave the others out of these convolutions, the last of which reads what the first makes: what is
    /// saved is in proportion to those that are shut, what it takes to pick weights to those that are open.
    fn most(&self, members: &[usize]) -> usize {
        let (mut work, mut picked, mut channels) = (0, 0, 0);
        for (number, contract) in members.iter().filter_map(|&at| self.conv(at)).enumerate() {
            let Some(patch) = contract.products[0].patch else { continue };
            work += patch.multiplications(contract.n);
            // Of tokens, rows of weights are read where they are.
            if !patch.is_tokens() || number + 1 < members.len() {
                picked += PICK * patch.packed_len(contract.n);
            }
            channels = patch.channels;
        }
        (channels as f64 * work as f64 / (work + picked).max(1) as f64) as usize
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
