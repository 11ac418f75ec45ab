//! Rows picked by index (embeddings) and their gradient: rows added up by index.

use super::fused::Bases;
use super::{Shared, each};
use crate::lower::view::View;
use sartor_ir::{Result, bail};

/// `out[o, i, :] = data[o, index[i], :]` over `outer` blocks of `len` rows of `width` numbers, all dense.
#[derive(Clone, PartialEq, Debug)]
pub struct Gather {
    /// What is picked from (forward) or added to (gradient).
    pub data: View,
    /// The host slot of the indices.
    pub indices: usize,
    /// The result (forward), or the gradient that is added up.
    pub picked: View,
    /// Axes before the gathered one.
    pub outer: usize,
    /// The length of the gathered axis.
    pub len: usize,
    /// Numbers per index.
    pub width: usize,
    /// Whether this is the gradient: `data` is zeroed, then `data[o, index[i], :] += picked[o, i, :]`.
    pub scatter: bool,
}

impl Gather {
    /// Runs it; an index out of range is an error.
    ///
    /// # Safety
    /// Views must stay inside their buffers.
    pub unsafe fn run(&self, indices: &[i64], bases: Bases) -> Result<()> {
        let mut places = Vec::with_capacity(indices.len());
        for &index in indices {
            let place = if index < 0 { index + self.len as i64 } else { index };
            if place < 0 || place >= self.len as i64 {
                bail!("index {index} is outside of an axis of length {}", self.len);
            }
            places.push(place as usize);
        }
        let shared = Shared(bases);
        if self.scatter {
            // SAFETY: the caller's contract.
            unsafe { self.add(&places, &shared) };
        } else {
            let count = self.outer * places.len();
            let per_task = (super::GRAIN / self.width.max(1)).max(1);
            each(count.div_ceil(per_task), |task| {
                for row in task * per_task..count.min((task + 1) * per_task) {
                    let (o, i) = (row / places.len(), row % places.len());
                    let data = shared.get()[self.data.buf.index()].wrapping_add(self.data.offset);
                    let out = shared.get()[self.picked.buf.index()].wrapping_add(self.picked.offset);
                    // SAFETY: the caller's contract; rows are disjoint.
                    unsafe {
                        let from = data.add((o * self.len + places[i]) * self.width);
                        std::ptr::copy_nonoverlapping(from, out.add(row * self.width), self.width);
                    }
                }
            });
        }
        Ok(())
    }
    /// Tasks own columns, so every sum has one order.
    unsafe fn add(&self, places: &[usize], shared: &Shared) {
        const STRIP: usize = 64;
        let strips = self.width.div_ceil(STRIP);
        each(self.outer * strips, |task| {
            let (o, start) = (task / strips, task % strips * STRIP);
            let wide = STRIP.min(self.width - start);
            let data = shared.get()[self.data.buf.index()].wrapping_add(self.data.offset);
            let from = shared.get()[self.picked.buf.index()].wrapping_add(self.picked.offset);
            // SAFETY: the caller's contract; strips are disjoint.
            unsafe {
                for row in 0..self.len {
                    data.add((o * self.len + row) * self.width + start).write_bytes(0, wide);
                }
                for (i, &place) in places.iter().enumerate() {
                    let to = data.add((o * self.len + place) * self.width + start);
                    let x = from.add((o * places.len() + i) * self.width + start);
                    (0..wide).for_each(|c| *to.add(c) += *x.add(c));
                }
            }
        });
    }
}
