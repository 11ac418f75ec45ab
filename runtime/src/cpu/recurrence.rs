//! Recurrent layers over time, and their gradients: see [`sartor_ir::ops::recurrent::recurrence`] for the formulas and the layout of every tensor.
//!
//! A task is a block of the batch in one direction, which needs nobody else: it walks over all steps with its states in memory of the thread. A step is one
//! product of the states with the packed weights on micro-kernels (two for a GRU that weighs what it has reset), and a few loops over the gates. Entries of
//! sequences of different lengths are at times of their own; those that have ended are carried along.

use super::cells::{gru, gru_back, lstm, lstm_back, reset, rnn, rnn_back, shown_back, sigmoid_back};
use super::contract::Address;
use super::fused::Bases;
use super::micro::Finish;
use super::skinny::Shape;
use super::{LINE, Shared, each, gemm, on_line};
use crate::lower::view::BufId;
use sartor_ir::ops::recurrent::recurrence::{Kind, Rule, Sizes};
use std::cell::RefCell;

/// A tensor without gaps: its buffer, and where it begins.
pub type Dense = (BufId, usize);

/// What both directions of the computation share.
#[derive(Clone, PartialEq, Debug)]
pub struct Walk {
    /// Which cell.
    pub rule: Rule,
    /// The lengths of everything.
    pub sizes: Sizes,
    /// The weights of the states.
    pub r: Dense,
    /// The first states, `h` and `c`; zeros if there are none.
    pub first: [Option<Dense>; 2],
    /// The host slot of the sequences' lengths.
    pub lens: Option<usize>,
}

/// See the [module](self).
#[derive(Clone, PartialEq, Debug)]
pub struct Recurrence {
    /// The layer.
    pub walk: Walk,
    /// The weighted input.
    pub z: Dense,
    /// The bias that is reset.
    pub bias: Option<Dense>,
    /// The states after every step.
    pub y: Dense,
    /// The last ones, `h` and `c`, if somebody reads them.
    pub last: [Option<Dense>; 2],
    /// What the gradient needs, if there is one.
    pub kept: Option<Dense>,
}

/// See the [module](self).
#[derive(Clone, PartialEq, Debug)]
pub struct RecurrenceGrad {
    /// The layer.
    pub walk: Walk,
    /// The states after every step.
    pub y: Dense,
    /// What the forward pass kept.
    pub kept: Option<Dense>,
    /// The gradients of `Y` and of the last states.
    pub grads: [Option<Dense>; 3],
    /// The gradient of the weighted input.
    pub dz: Dense,
    /// The gradients of the first states, if somebody reads them.
    pub dfirst: [Option<Dense>; 2],
    /// The states before every step.
    pub before: Option<Dense>,
    /// What else the weights of a GRU are multiplied by.
    pub mixed: Option<Dense>,
}

/// Rows that a micro-kernel computes at once, at most.
const ROWS: usize = 12;

/// Some rows of the weights as the right factor of a product: `k × n`.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Factor {
    /// Its first row among those of a direction.
    first: usize,
    k: usize,
    n: usize,
    /// Whether the rows of the weights are its columns.
    turned: bool,
}

impl Factor {
    fn packed_len(&self) -> usize {
        gemm::packed_len(self.k, self.n).next_multiple_of(LINE)
    }
    /// How far apart its rows are in memory, and its columns.
    fn strides(&self) -> (usize, usize) {
        if self.turned { (1, self.k) } else { (self.n, 1) }
    }
}

impl Walk {
    fn rows(&self) -> usize {
        self.rule.gates() * self.sizes.hidden
    }
    /// What a step's products need, in order.
    fn factors(&self, back: bool) -> Vec<Factor> {
        let hidden = self.sizes.hidden;
        let factor = |first: usize, rows: usize| match back {
            false => Factor { first, k: hidden, n: rows, turned: true },
            true => Factor { first, k: rows, n: hidden, turned: false },
        };
        match self.rule.kind {
            Kind::Gru if !self.rule.before_reset => vec![factor(0, 2 * hidden), factor(2 * hidden, hidden)],
            _ => vec![factor(0, self.rows())],
        }
    }
    /// Elements of scratch memory: the packed weights.
    fn scratch(&self, back: bool) -> usize {
        let each: usize = self.factors(back).iter().map(Factor::packed_len).sum();
        self.rule.backwards.len() * each
    }
    /// Multiply-adds of all products, twice.
    pub fn flops(&self) -> u64 {
        let Sizes { steps, batch, hidden } = self.sizes;
        2 * (steps * batch * self.rule.backwards.len() * self.rows() * hidden) as u64
    }
    /// Rows of the batch in a task.
    fn block(&self) -> usize {
        let batch = self.sizes.batch;
        // One direction alone is cut into two, if there is enough of it.
        let least = if self.rule.backwards.len() == 1 && batch >= 8 { 2 } else { 1 };
        batch.div_ceil(batch.div_ceil(ROWS).max(least)).max(1)
    }
    /// Packs the weights of all directions.
    unsafe fn pack(&self, bases: Bases, back: bool, scratch: *mut f32) {
        if gemm::panel() == 0 {
            return;
        }
        let (factors, mut to) = (self.factors(back), scratch);
        for d in 0..self.rule.backwards.len() {
            for factor in &factors {
                let from = at(bases, self.r).wrapping_add((d * self.rows() + factor.first) * self.sizes.hidden);
                let (down, across) = factor.strides();
                let (from, target) = (Address(from), Address(to));
                each(gemm::panels(factor.n), |panel| {
                    // SAFETY: the caller's contract; panels have places of their own.
                    unsafe {
                        gemm::pack(factor.k, factor.n, (from.get(), down, across), panel, target.get());
                    }
                });
                to = to.wrapping_add(factor.packed_len());
            }
        }
    }
    /// Packs the weights and runs a task for every block of every direction: its direction, first entry and number of entries.
    ///
    /// # Safety
    /// The weights must lie inside of their buffer, `scratch` must hold [`Walk::scratch`] elements, and blocks must write places of their own.
    unsafe fn run(
        &self,
        back: bool,
        bases: Bases,
        scratch: *mut f32,
        run: impl Fn(Bases, *const f32, [usize; 3]) + Sync + Send,
    ) {
        // SAFETY: the caller's contract.
        unsafe { self.pack(bases, back, scratch) };
        let (shared, scratch, block) = (Shared(bases), Address(scratch), self.block());
        let blocks = self.sizes.batch.div_ceil(block);
        each(self.rule.backwards.len() * blocks, |task| {
            let (d, first) = (task / blocks, task % blocks * block);
            run(shared.get(), scratch.get(), [d, first, block.min(self.sizes.batch - first)]);
        });
    }
    /// Writes a state of a block to its place in `[D, B, H]`.
    unsafe fn store(&self, [d, first, m]: [usize; 3], state: *const f32, to: *mut f32) {
        let n = self.sizes.hidden;
        for i in 0..m {
            // SAFETY: the caller vouches for the extents.
            unsafe { row_mut(to, d * self.sizes.batch + first + i, n).copy_from_slice(row(state, i, n)) };
        }
    }
    /// The time at which an entry of this length is after so many steps, if it has not ended.
    fn time(&self, d: usize, length: usize, step: usize) -> Option<usize> {
        (step < length).then(|| if self.rule.backwards[d] { length - 1 - step } else { step })
    }
    /// The row of `[T, D, B, …]`.
    fn place(&self, d: usize, entry: usize, time: usize) -> usize {
        (time * self.rule.backwards.len() + d) * self.sizes.batch + entry
    }
    /// The row of `[T, B, D, …]`.
    fn input_place(&self, d: usize, entry: usize, time: usize) -> usize {
        (time * self.sizes.batch + entry) * self.rule.backwards.len() + d
    }
    /// The products of a direction.
    unsafe fn products<'a>(&self, bases: Bases<'a>, d: usize, back: bool, scratch: *const f32) -> Vec<Multiply> {
        let factors = self.factors(back);
        let each: usize = factors.iter().map(Factor::packed_len).sum();
        let mut packed = scratch.wrapping_add(d * each);
        let mut list = Vec::with_capacity(factors.len());
        for factor in factors {
            let plain = at(bases, self.r).wrapping_add((d * self.rows() + factor.first) * self.sizes.hidden);
            list.push(Multiply { factor, plain, packed });
            packed = packed.wrapping_add(factor.packed_len());
        }
        list
    }
}

fn at(bases: Bases, (buf, offset): Dense) -> *mut f32 {
    bases[buf.index()].wrapping_add(offset)
}

/// A product with some of the weights.
#[derive(Clone, Copy)]
struct Multiply {
    factor: Factor,
    plain: *const f32,
    packed: *const f32,
}

impl Multiply {
    /// `out = a · factor`, or added to what is there.
    unsafe fn run(&self, m: usize, (a, pitch): (*const f32, usize), (out, wide): (*mut f32, usize), add: bool) {
        let (k, n) = (self.factor.k, self.factor.n);
        // SAFETY: the caller vouches for the extents.
        unsafe {
            if gemm::panel() > 0 {
                let finish = Finish { alpha: 1.0, add, end: None };
                gemm::multiply(Shape { m, n, k }, (a, pitch, 1), (self.packed, n, 0), (out, wide, 1), &finish);
                return;
            }
            let (down, across) = self.factor.strides();
            for i in 0..m {
                for j in 0..n {
                    let term = |p: usize| *a.add(i * pitch + p) * *self.plain.add(p * down + j * across);
                    let sum: f32 = (0..k).map(term).sum();
                    let to = out.add(i * wide + j);
                    *to = if add { *to + sum } else { sum };
                }
            }
        }
    }
}

thread_local! {
    static MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs something on memory of the thread, filled with zeros, in parts of these lengths, each on a cache line.
fn with_parts<const N: usize>(lengths: [usize; N], run: impl FnOnce([*mut f32; N])) {
    MEMORY.with_borrow_mut(|memory| {
        memory.clear();
        memory.resize(lengths.iter().map(|n| n.next_multiple_of(LINE)).sum::<usize>() + LINE, 0.0);
        let mut next = on_line(memory.as_mut_ptr());
        run(lengths.map(|n| {
            let part = next;
            next = next.wrapping_add(n.next_multiple_of(LINE));
            part
        }));
    });
}

unsafe fn row<'a>(start: *const f32, row: usize, width: usize) -> &'a [f32] {
    // SAFETY: the caller vouches for the extent.
    unsafe { std::slice::from_raw_parts(start.add(row * width), width) }
}

unsafe fn row_mut<'a>(start: *mut f32, row: usize, width: usize) -> &'a mut [f32] {
    // SAFETY: the caller vouches for the extent, and that nobody else reads it.
    unsafe { std::slice::from_raw_parts_mut(start.add(row * width), width) }
}

impl Recurrence {
    /// Elements of scratch memory.
    pub fn scratch(&self) -> usize {
        self.walk.scratch(false)
    }
    /// Runs it; `lens` are the lengths of the sequences.
    ///
    /// # Safety
    /// All tensors must lie inside of their buffers, those that are written must not overlap, and `scratch` must hold [`Recurrence::scratch`] elements.
    pub unsafe fn run(&self, lens: &[usize], bases: Bases, scratch: *mut f32) {
        // SAFETY: the caller's contract; blocks write rows of their own.
        unsafe {
            self.walk.run(false, bases, scratch, |bases, packed, which| self.block(lens, bases, packed, which));
        }
    }
    unsafe fn block(&self, lens: &[usize], bases: Bases, scratch: *const f32, which: [usize; 3]) {
        let (walk, [d, first, m]) = (&self.walk, which);
        let (n, rows, keep) = (walk.sizes.hidden, walk.rows(), walk.rule.kept() * walk.sizes.hidden);
        let (z, y) = (at(bases, self.z).cast_const(), at(bases, self.y));
        let kept = self.kept.map(|kept| at(bases, kept));
        // SAFETY: the caller's contract, for everything below.
        unsafe {
            let products = walk.products(bases, d, false, scratch);
            let zeros = vec![0.0; n];
            let bias = self.bias.map_or(&zeros[..], |bias| row(at(bases, bias), d, n));
            with_parts([m * n, m * n, m * rows, m * n], |[h, c, a, shown]| {
                for i in 0..m {
                    for (state, first_state) in [h, c].into_iter().zip(walk.first) {
                        if let Some(from) = first_state {
                            let place = d * walk.sizes.batch + first + i;
                            row_mut(state, i, n).copy_from_slice(row(at(bases, from), place, n));
                        }
                    }
                    for t in lens[first + i]..walk.sizes.steps {
                        row_mut(y, walk.place(d, first + i, t), n).fill(0.0);
                    }
                }
                let steps = lens[first..first + m].iter().copied().max().unwrap_or(0);
                for step in 0..steps {
                    products[0].run(m, (h, n), (a, rows), false);
                    let going = |i: usize| Some((i, walk.time(d, lens[first + i], step)?));
                    if walk.rule.kind == Kind::Gru && !walk.rule.before_reset {
                        for (i, t) in (0..m).filter_map(going) {
                            let z = row(z, walk.input_place(d, first + i, t), rows);
                            reset(z, row_mut(a, i, rows), row(h, i, n), row_mut(shown, i, n));
                        }
                        products[1].run(m, (shown, n), (a.add(2 * n), rows), false);
                    }
                    for (i, t) in (0..m).filter_map(going) {
                        let place = walk.place(d, first + i, t);
                        let z = row(z, walk.input_place(d, first + i, t), rows);
                        let (a, h) = (row_mut(a, i, rows), row_mut(h, i, n));
                        let kept = kept.map(|kept| row_mut(kept, place, keep));
                        match walk.rule.kind {
                            Kind::Lstm => lstm(z, a, h, row_mut(c, i, n), kept),
                            Kind::Gru => gru(z, a, (bias, walk.rule.before_reset), h, kept),
                            Kind::Rnn => rnn(z, a, walk.rule.relu, h),
                        }
                        row_mut(y, place, n).copy_from_slice(h);
                    }
                }
                for (state, last) in [h, c].into_iter().zip(self.last) {
                    if let Some(last) = last {
                        walk.store(which, state, at(bases, last));
                    }
                }
            });
        }
    }
}

impl RecurrenceGrad {
    /// Elements of scratch memory.
    pub fn scratch(&self) -> usize {
        self.walk.scratch(true)
    }
    /// Runs it; `lens` are the lengths of the sequences.
    ///
    /// # Safety
    /// As for [`Recurrence::run`].
    pub unsafe fn run(&self, lens: &[usize], bases: Bases, scratch: *mut f32) {
        // SAFETY: the caller's contract; blocks write rows of their own.
        unsafe {
            self.walk.run(true, bases, scratch, |bases, packed, which| self.block(lens, bases, packed, which));
        }
    }
    unsafe fn block(&self, lens: &[usize], bases: Bases, scratch: *const f32, which: [usize; 3]) {
        let (walk, [d, first, m]) = (&self.walk, which);
        let (n, rows, keep) = (walk.sizes.hidden, walk.rows(), walk.rule.kept() * walk.sizes.hidden);
        let place = |tensor: Option<Dense>| tensor.map(|tensor| at(bases, tensor));
        let (y, kept, dz_out) = (at(bases, self.y).cast_const(), place(self.kept), at(bases, self.dz));
        let (dy, before_out, mixed_out) = (place(self.grads[0]), place(self.before), place(self.mixed));
        let gru = walk.rule.kind == Kind::Gru;
        // SAFETY: the caller's contract, for everything below.
        unsafe {
            let products = walk.products(bases, d, true, scratch);
            let zeros = vec![0.0; n];
            let state = |from: Option<Dense>, i: usize| match from {
                Some(from) => row(at(bases, from), d * walk.sizes.batch + first + i, n),
                None => &zeros[..],
            };
            let sizes = [m * n, m * n, m * rows, m * n, m * n, m * n];
            with_parts(sizes, |[dh, dc, dz, next, mixed, reset_grad]| {
                for i in 0..m {
                    row_mut(dh, i, n).copy_from_slice(state(self.grads[1], i));
                    row_mut(dc, i, n).copy_from_slice(state(self.grads[2], i));
                    for t in lens[first + i]..walk.sizes.steps {
                        row_mut(dz_out, walk.input_place(d, first + i, t), rows).fill(0.0);
                        for out in [before_out, mixed_out].into_iter().flatten() {
                            row_mut(out, walk.place(d, first + i, t), n).fill(0.0);
                        }
                    }
                }
                let steps = lens[first..first + m].iter().copied().max().unwrap_or(0);
                for step in (0..steps).rev() {
                    let going = |i: usize| Some((i, walk.time(d, lens[first + i], step)?));
                    // The state before a step.
                    let earlier = |i: usize| {
                        let time = step.checked_sub(1).and_then(|step| walk.time(d, lens[first + i], step));
                        time.map(|t| walk.place(d, first + i, t))
                    };
                    let h = |i: usize| earlier(i).map_or_else(|| state(walk.first[0], i), |p| row(y, p, n));
                    std::slice::from_raw_parts_mut(dz, m * rows).fill(0.0);
                    for (i, t) in (0..m).filter_map(going) {
                        let at = walk.place(d, first + i, t);
                        let (dh, dz) = (row_mut(dh, i, n), row_mut(dz, i, rows));
                        if let Some(dy) = dy {
                            dh.iter_mut().zip(row(dy, at, n)).for_each(|(d, y)| *d += y);
                        }
                        let kept = kept.map_or(&zeros[..0], |kept| row(kept, at, keep));
                        match walk.rule.kind {
                            Kind::Lstm => {
                                let c = match earlier(i).zip(self.kept) {
                                    Some((p, kept)) => &row(self::at(bases, kept), p, keep)[4 * n..],
                                    None => state(walk.first[1], i),
                                };
                                lstm_back(kept, c, dh, row_mut(dc, i, n), dz);
                            }
                            Kind::Gru => {
                                let (mixed, reset_grad) = (row_mut(mixed, i, n), row_mut(reset_grad, i, n));
                                gru_back(kept, (h(i), walk.rule.before_reset), dh, dz, mixed, reset_grad);
                            }
                            Kind::Rnn => rnn_back(row(y, at, n), walk.rule.relu, dh, dz),
                        }
                    }
                    if gru && !walk.rule.before_reset {
                        // What the reset state gets.
                        products[1].run(m, (dz.add(2 * n), rows), (next, n), false);
                        for (i, t) in (0..m).filter_map(going) {
                            let kept = kept.map_or(&zeros[..0], |kept| row(kept, walk.place(d, first + i, t), keep));
                            let shown = row(next, i, n);
                            let (reset_grad, dh) = (row_mut(reset_grad, i, n), row_mut(dh, i, n));
                            shown_back(shown, h(i), &kept[n..2 * n], reset_grad, dh);
                        }
                    }
                    if gru {
                        for (i, t) in (0..m).filter_map(going) {
                            let kept = kept.map_or(&zeros[..0], |kept| row(kept, walk.place(d, first + i, t), keep));
                            let dz = &mut row_mut(dz, i, rows)[n..2 * n];
                            sigmoid_back(row(reset_grad, i, n), &kept[n..2 * n], dz);
                        }
                    }
                    for (i, t) in (0..m).filter_map(going) {
                        let at = walk.place(d, first + i, t);
                        row_mut(dz_out, walk.input_place(d, first + i, t), rows).copy_from_slice(row(dz, i, rows));
                        if let Some(out) = before_out {
                            row_mut(out, at, n).copy_from_slice(h(i));
                        }
                        if let Some(out) = mixed_out {
                            row_mut(out, at, n).copy_from_slice(row(mixed, i, n));
                        }
                        if gru && walk.rule.before_reset {
                            // The weights of the hidden gate see the gradient behind the reset.
                            row_mut(dz, i, rows)[2 * n..].copy_from_slice(row(mixed, i, n));
                        }
                    }
                    products[0].run(m, (dz, rows), (next, n), false);
                    for (i, _) in (0..m).filter_map(going) {
                        let (dh, next) = (row_mut(dh, i, n), row(next, i, n));
                        match gru {
                            true => dh.iter_mut().zip(next).for_each(|(d, more)| *d += more),
                            false => dh.copy_from_slice(next),
                        }
                    }
                }
                for (state, out) in [dh, dc].into_iter().zip(self.dfirst) {
                    if let Some(out) = out {
                        walk.store(which, state, at(bases, out));
                    }
                }
            });
        }
    }
}
