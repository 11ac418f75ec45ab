//! Statistics of channels: what BatchNormalization in training mode and its gradient sum over all images and places.
//!
//! Data lie channels last, as rows of `C` numbers. Rows are cut into blocks that stay in the first-level cache; a block's mean comes
//! first, then its squared distances from that mean. Blocks are joined in order (Chan, Golub and LeVeque 1979), those of a task in `f32`,
//! tasks in `f64`: one pass over memory, without the cancellation of `E[x²] − E[x]²`.

use super::contract::Address;
use super::fused::Bases;
use super::{Shared, each};
use crate::lower::view::{BufId, Walk};
use crate::multiversion;
use std::cell::RefCell;

/// Mean, population variance and `1/√(var + ε)` of every channel.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelStats {
    /// The data.
    pub x: Walk,
    /// Rows and channels.
    pub extent: (usize, usize),
    /// ε
    pub epsilon: f32,
    /// Mean, variance, inverse deviation.
    pub out: [BufId; 3],
}

/// `Σ dy` and `Σ dy · (x − mean) · inverse` of every channel.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelSums {
    /// The gradient and the data.
    pub data: [Walk; 2],
    /// Rows and channels.
    pub extent: (usize, usize),
    /// Mean and inverse deviation.
    pub stats: [BufId; 2],
    /// Both sums.
    pub out: [BufId; 2],
}

/// Elements of a task's chunk, and of a block.
const CHUNK: usize = 64 * 1024;
const BLOCK: usize = 8 * 1024;
/// Lanes that are summed side by side at least, if there are rows enough.
const LANES: usize = 128;

fn chunks((rows, channels): (usize, usize)) -> (usize, usize) {
    let per_chunk = (CHUNK / channels.max(1)).max(8);
    (rows.div_ceil(per_chunk), per_chunk)
}

/// Elements of scratch memory for data of so many rows and channels.
pub fn scratch(extent: (usize, usize)) -> usize {
    chunks(extent).0 * 2 * extent.1
}

impl ChannelStats {
    /// Runs it.
    ///
    /// # Safety
    /// Walks must stay inside their buffers, `scratch` must hold what [`scratch`] says.
    pub unsafe fn run(&self, bases: Bases, scratch: *mut f32) {
        let (rows, channels) = self.extent;
        let (count, per_chunk) = chunks(self.extent);
        let (shared, scratch) = (Shared(bases), Address(scratch));
        each(count, |chunk| {
            let range = chunk * per_chunk..rows.min((chunk + 1) * per_chunk);
            let out = scratch.get().wrapping_add(chunk * 2 * channels);
            let base = shared.get()[self.x.buf.index()];
            // SAFETY: the caller's contract; chunks have places of their own.
            unsafe { stats(base, &self.x, range, channels, out) };
        });
        let [mean, var, inverse] = self.out.map(|b| bases[b.index()]);
        for c in 0..channels {
            let (mut n, mut average, mut squares) = (0.0f64, 0.0f64, 0.0f64);
            for chunk in 0..count {
                // SAFETY: as above.
                let (m, s) = unsafe {
                    let from = scratch.get().add(chunk * 2 * channels + c);
                    (f64::from(*from), f64::from(*from.add(channels)))
                };
                let more = (rows.min((chunk + 1) * per_chunk) - chunk * per_chunk) as f64;
                let away = m - average;
                squares += s + away * away * n * more / (n + more);
                average += away * more / (n + more);
                n += more;
            }
            let variance = squares / n;
            // SAFETY: results hold a number per channel.
            unsafe {
                *mean.add(c) = average as f32;
                *var.add(c) = variance as f32;
                *inverse.add(c) = (1.0 / (variance + f64::from(self.epsilon)).sqrt()) as f32;
            }
        }
    }
}

impl ChannelSums {
    /// Runs it.
    ///
    /// # Safety
    /// As for [`ChannelStats::run`].
    pub unsafe fn run(&self, bases: Bases, scratch: *mut f32) {
        let (rows, channels) = self.extent;
        let (count, per_chunk) = chunks(self.extent);
        let (shared, scratch) = (Shared(bases), Address(scratch));
        each(count, |chunk| {
            let range = chunk * per_chunk..rows.min((chunk + 1) * per_chunk);
            let out = scratch.get().wrapping_add(chunk * 2 * channels);
            let at = |b: BufId| shared.get()[b.index()];
            let data = (at(self.data[0].buf), at(self.data[1].buf));
            let known = (at(self.stats[0]).cast_const(), at(self.stats[1]).cast_const());
            // SAFETY: the caller's contract; chunks have places of their own.
            unsafe { sums(data, &self.data, known, range, channels, out) };
        });
        for (i, out) in self.out.iter().map(|b| bases[b.index()]).enumerate() {
            for c in 0..channels {
                // SAFETY: as above.
                let part = |chunk| unsafe { f64::from(*scratch.get().add((chunk * 2 + i) * channels + c)) };
                let sum: f64 = (0..count).map(part).sum();
                // SAFETY: results hold a number per channel.
                unsafe { *out.add(c) = sum as f32 };
            }
        }
    }
}

type Rows = std::ops::Range<usize>;
multiversion!(fn stats(base: *const f32, x: &Walk, rows: Rows, channels: usize, out: *mut f32) = stats_inner);
multiversion!(fn sums(data: (*mut f32, *mut f32), walks: &[Walk; 2], known: (*const f32, *const f32), rows: Rows, channels: usize, out: *mut f32) = sums_inner);

thread_local! {
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// How many rows are read as one, if they follow each other.
fn together(channels: usize, walks: &[&Walk], rows: &Rows) -> usize {
    let dense = |w: &&Walk| w.col == 1 && w.even(rows.start, rows.len()) == Some(channels);
    if walks.iter().all(dense) { (LANES / channels).clamp(1, rows.len().max(1)) } else { 1 }
}

/// Runs a function on every piece of the rows: the first row and how many rows are in it.
#[inline(always)]
fn pieces(rows: &Rows, together: usize, mut run: impl FnMut(usize, usize)) {
    let mut row = rows.start;
    while row + together <= rows.end {
        run(row, together);
        row += together;
    }
    (row..rows.end).for_each(|row| run(row, 1));
}

/// Adds lanes that belong to the same channel; the sum ends in the first ones.
#[inline(always)]
fn join(lanes: &mut [f32], channels: usize) {
    let (sum, rest) = lanes.split_at_mut(channels);
    for more in rest.chunks_exact(channels) {
        sum.iter_mut().zip(more).for_each(|(s, &x)| *s += x);
    }
}

#[inline(always)]
unsafe fn line<'a>(base: *const f32, walk: &Walk, row: usize, len: usize) -> &'a [f32] {
    // SAFETY: the caller vouches for the walk.
    unsafe { std::slice::from_raw_parts(base.add(walk.row(row)), len) }
}

#[inline(always)]
unsafe fn stats_inner<const FMA: bool>(base: *const f32, x: &Walk, rows: Rows, channels: usize, out: *mut f32) {
    let per_block = (BLOCK / channels.max(1)).max(8);
    // SAFETY: the caller's contract.
    let (mean, squares) = unsafe {
        let all = std::slice::from_raw_parts_mut(out, 2 * channels);
        all.fill(0.0);
        all.split_at_mut(channels)
    };
    SUMS.with_borrow_mut(|memory| {
        for start in rows.clone().step_by(per_block) {
            let block = start..rows.end.min(start + per_block);
            let group = together(channels, &[x], &block);
            memory.clear();
            memory.resize(2 * group * channels, 0.0);
            let (total, away) = memory.split_at_mut(group * channels);
            // SAFETY: the caller's contract.
            unsafe { block_stats(base, x, &block, (channels, group), total, away) };
            let (n, more) = ((start - rows.start) as f32, block.len() as f32);
            let (weight, share) = (n * more / (n + more), more / (n + more));
            let found = total.iter().zip(&*away);
            for ((mean, squares), (&m, &s)) in mean.iter_mut().zip(squares.iter_mut()).zip(found) {
                let distance = m - *mean;
                *squares += s + distance * distance * weight;
                *mean += distance * share;
            }
        }
    });
}

/// Means and squared distances from them of one block, in the first lanes.
#[inline(always)]
unsafe fn block_stats(
    base: *const f32,
    x: &Walk,
    rows: &Rows,
    (channels, group): (usize, usize),
    total: &mut [f32],
    away: &mut [f32],
) {
    // SAFETY: the caller's contract.
    unsafe {
        pieces(rows, group, |row, n| {
            let x = line(base, x, row, n * channels);
            total.iter_mut().zip(x).for_each(|(s, &x)| *s += x);
        });
        join(total, channels);
        let scale = 1.0 / rows.len() as f32;
        total[..channels].iter_mut().for_each(|s| *s *= scale);
        (1..group).for_each(|i| total.copy_within(..channels, i * channels));
        pieces(rows, group, |row, n| {
            let x = line(base, x, row, n * channels);
            for ((s, &x), &mean) in away.iter_mut().zip(x).zip(&*total) {
                let distance = x - mean;
                *s += distance * distance;
            }
        });
        join(away, channels);
    }
}

#[inline(always)]
unsafe fn sums_inner<const FMA: bool>(
    data: (*mut f32, *mut f32),
    walks: &[Walk; 2],
    known: (*const f32, *const f32),
    rows: Rows,
    channels: usize,
    out: *mut f32,
) {
    let group = together(channels, &[&walks[0], &walks[1]], &rows);
    let wide = group * channels;
    SUMS.with_borrow_mut(|memory| {
        memory.clear();
        memory.resize(3 * wide, 0.0);
        let (plain, rest) = memory.split_at_mut(wide);
        let (weighted, means) = rest.split_at_mut(wide);
        // SAFETY: the caller's contract.
        unsafe {
            let (mean, inverse) =
                (std::slice::from_raw_parts(known.0, channels), std::slice::from_raw_parts(known.1, channels));
            means.chunks_exact_mut(channels).for_each(|m| m.copy_from_slice(mean));
            pieces(&rows, group, |row, n| {
                let dy = line(data.0, &walks[0], row, n * channels);
                let x = line(data.1, &walks[1], row, n * channels);
                let lanes = plain.iter_mut().zip(weighted.iter_mut()).zip(&*means);
                for (((s, w), &mean), (&dy, &x)) in lanes.zip(dy.iter().zip(x)) {
                    *s += dy;
                    *w += dy * (x - mean);
                }
            });
            join(plain, channels);
            join(weighted, channels);
            weighted[..channels].iter_mut().zip(inverse).for_each(|(w, &i)| *w *= i);
            std::ptr::copy_nonoverlapping(plain.as_ptr(), out, channels);
            std::ptr::copy_nonoverlapping(weighted.as_ptr(), out.add(channels), channels);
        }
    });
}
