//! Reductions over leading or middle axes, or over rows too long for a register: sums, maxima and minima of strided views.
//!
//! The input is seen as `outer × rows × cols`: every result is a fold over `rows` places. Axes that do not lie side by side are moved
//! in front first. Long folds are cut into chunks of fixed length whose partial results are joined in order.

use super::fused::Bases;
use super::simd::{larger, smaller};
use super::{Shared, each};
use crate::lower::program::Fold;
use crate::lower::view::{View, Walk};
use crate::multiversion;

/// See the [module](self).
#[derive(Clone, PartialEq, Debug)]
pub struct Reduce {
    /// How.
    pub fold: Fold,
    /// The input as `outer · rows` rows of `cols` numbers.
    pub input: Walk,
    /// How many folds there are above each other.
    pub outer: usize,
    /// How many places are folded.
    pub rows: usize,
    /// How many results of a fold there are.
    pub cols: usize,
    /// Where they go, one after the other.
    pub out: View,
    /// What results are multiplied by (a mean).
    pub scale: f32,
    /// Room for partial results, `outer × chunks × cols`, if there is more than one chunk.
    pub partial: Option<View>,
}

/// Places per chunk of a fold.
const CHUNK: usize = 4096;
/// Results per task.
const STRIP: usize = 256;

impl Reduce {
    /// The number of chunks that a fold of `rows` places over `cols` results is cut into.
    pub fn chunks(rows: usize, cols: usize) -> usize {
        if cols >= 1024 { 1 } else { rows.div_ceil((CHUNK * 16 / cols.max(1)).max(64)).max(1) }
    }
    /// Runs it.
    ///
    /// # Safety
    /// Walks must stay inside their buffers.
    pub unsafe fn run(&self, bases: Bases) {
        let shared = Shared(bases);
        let chunks = if self.partial.is_some() { Reduce::chunks(self.rows, self.cols) } else { 1 };
        let per_chunk = self.rows.div_ceil(chunks.max(1)).max(1);
        let strips = self.cols.div_ceil(STRIP);
        let target = self.partial.as_ref().unwrap_or(&self.out);
        let scale = if self.partial.is_some() { 1.0 } else { self.scale };
        each(self.outer * chunks * strips, |task| {
            let (fold, strip) = (task / strips, task % strips);
            let (outer, chunk) = (fold / chunks.max(1), fold % chunks.max(1));
            let first = outer * self.rows;
            let rows = first + (chunk * per_chunk).min(self.rows)..first + ((chunk + 1) * per_chunk).min(self.rows);
            let cols = strip * STRIP..self.cols.min((strip + 1) * STRIP);
            let base = shared.get()[self.input.buf.index()];
            let place = target.offset + fold * self.cols + cols.start;
            let out = shared.get()[target.buf.index()].wrapping_add(place);
            // SAFETY: the caller's contract; tasks write disjoint strips.
            unsafe { strip_fold(self.fold, base, &self.input, rows, cols, out, scale) };
        });
        if let Some(partial) = &self.partial {
            let lead = vec![(self.outer * chunks, self.cols)];
            let walk = Walk { buf: partial.buf, offset: partial.offset, lead, col: 1 };
            let base = bases[partial.buf.index()];
            for outer in 0..self.outer {
                let out = bases[self.out.buf.index()].wrapping_add(self.out.offset + outer * self.cols);
                for start in (0..self.cols).step_by(STRIP) {
                    let (rows, cols) = (outer * chunks..(outer + 1) * chunks, start..self.cols.min(start + STRIP));
                    // SAFETY: as above.
                    unsafe { strip_fold(self.fold, base, &walk, rows, cols, out.wrapping_add(start), self.scale) };
                }
            }
        }
    }
}

type Rows = std::ops::Range<usize>;
multiversion!(fn strip_fold(fold: Fold, base: *mut f32, walk: &Walk, rows: Rows, cols: Rows, out: *mut f32, scale: f32) = strip_inner);

#[inline(always)]
unsafe fn strip_inner<const FMA: bool>(
    fold: Fold,
    base: *mut f32,
    walk: &Walk,
    rows: Rows,
    cols: Rows,
    out: *mut f32,
    scale: f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        match fold {
            Fold::Sum => strip(0.0, |a, b| a + b, base, walk, rows, cols, out, scale),
            Fold::Max => strip(f32::NEG_INFINITY, larger, base, walk, rows, cols, out, scale),
            Fold::Min => strip(f32::INFINITY, smaller, base, walk, rows, cols, out, scale),
        }
    }
}

#[inline(always)]
unsafe fn strip(
    start: f32,
    f: impl Fn(f32, f32) -> f32,
    base: *mut f32,
    walk: &Walk,
    rows: Rows,
    cols: Rows,
    out: *mut f32,
    scale: f32,
) {
    let mut sums = [start; STRIP];
    let wide = cols.len();
    for row in rows {
        // SAFETY: the caller's contract.
        unsafe {
            let from = base.add(walk.row(row) + cols.start * walk.col);
            if walk.col == 1 {
                let line = std::slice::from_raw_parts(from, wide);
                for (s, &x) in sums[..wide].iter_mut().zip(line) {
                    *s = f(*s, x);
                }
            } else {
                (0..wide).for_each(|c| sums[c] = f(sums[c], *from.add(c * walk.col)));
            }
        }
    }
    // SAFETY: as above.
    (0..wide).for_each(|c| unsafe { *out.add(c) = sums[c] * scale });
}
