//! The masks of `Dropout` in training: 1 where an element stays, else 0, drawn as the reference evaluator draws them.

use super::fused::Bases;
use super::{GRAIN, Shared, each};
use crate::lower::view::View;
use crate::multiversion;
use sartor_ir::NodeId;
use sartor_ir::ops::dropout::Keep;

/// A mask.
#[derive(Clone, PartialEq, Debug)]
pub struct Mask {
    /// The node whose stream of random numbers it is drawn from.
    pub node: NodeId,
    /// The probability that an element is dropped.
    pub ratio: f64,
    /// Where it goes, one element after the other.
    pub out: View,
}

impl Mask {
    /// Runs it.
    ///
    /// # Safety
    /// The view must stay inside its buffer.
    pub unsafe fn run(&self, keep: Keep, bases: Bases) {
        let (len, shared) = (self.out.len(), Shared(bases));
        each(len.div_ceil(GRAIN), |task| {
            let start = task * GRAIN;
            let out = shared.get()[self.out.buf.index()].wrapping_add(self.out.offset + start);
            // SAFETY: the caller's contract; tasks write different elements.
            unsafe { draw(keep, start, GRAIN.min(len - start), out) };
        });
    }
}

multiversion!(fn draw(keep: Keep, start: usize, count: usize, out: *mut f32) = draw_inner);

#[inline(always)]
unsafe fn draw_inner<const FMA: bool>(keep: Keep, start: usize, count: usize, out: *mut f32) {
    // SAFETY: the caller's contract.
    let out = unsafe { std::slice::from_raw_parts_mut(out, count) };
    for (i, x) in out.iter_mut().enumerate() {
        *x = if keep.at((start + i) as u64) { 1.0 } else { 0.0 };
    }
}
