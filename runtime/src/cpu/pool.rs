//! Pools: maxima, means and sums under a window, every channel by itself, channels last.
//!
//! A task computes some rows of places of one image. The window is cut to the image first, so no number outside of it is
//! looked at. Maxima keep NaN as the reference does: it wins.

use super::fused::Bases;
use super::simd::larger;
use super::{Shared, each};
use crate::lower::view::BufId;
use crate::multiversion;

/// What is done with the numbers under a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pooling {
    /// Their maximum.
    Max,
    /// Their mean; whether the padding counts, and the end of the padded image.
    Mean(bool, (usize, usize)),
}

/// See the [module](self). Pairs are (vertical, horizontal).
#[derive(Clone, PartialEq, Debug)]
pub struct Pool {
    /// What is done.
    pub pooling: Pooling,
    /// Images and channels.
    pub extent: (usize, usize),
    /// The size of the image.
    pub image: (usize, usize),
    /// The places of the window.
    pub grid: (usize, usize),
    /// The window.
    pub kernel: (usize, usize),
    /// The distance of places.
    pub stride: (usize, usize),
    /// The padding before the first element.
    pub pad: (usize, usize),
    /// The distance of the window's elements.
    pub dilation: (usize, usize),
    /// The data: where they begin, and the distances of images, rows and pixels; channels are neighbours.
    pub x: (BufId, usize, [usize; 3]),
    /// Where results go, dense, channels last.
    pub y: BufId,
}

/// The numbers under a window along one axis: the first tap inside of the image, the tap after the last, and the place of tap 0.
fn inside(
    place: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    dilation: usize,
    size: usize,
) -> (usize, usize, isize) {
    let start = (place * stride) as isize - pad as isize;
    let first = if start < 0 {
        (-start) as usize / dilation + usize::from(!(-start as usize).is_multiple_of(dilation))
    } else {
        0
    };
    let room = size as isize - start;
    let end = if room <= 0 { 0 } else { (room as usize).div_ceil(dilation).min(kernel) };
    (first.min(end), end, start)
}

impl Pool {
    /// Runs it.
    ///
    /// # Safety
    /// Data and results must stay inside their buffers.
    pub unsafe fn run(&self, bases: Bases) {
        let shared = Shared(bases);
        let ((images, channels), (high, wide)) = (self.extent, self.grid);
        each(images * high, |task| {
            let (image, oy) = (task / high, task % high);
            let x = shared.get()[self.x.0.index()].wrapping_add(self.x.1 + image * self.x.2[0]).cast_const();
            let y = shared.get()[self.y.index()].wrapping_add(task * wide * channels);
            // SAFETY: the caller's contract; tasks have rows of their own.
            unsafe { pool_row(self, x, oy, y) };
        });
    }
    /// What a sum is divided by.
    fn count(&self, (oy, ox): (usize, usize), seen: usize) -> f32 {
        let Pooling::Mean(padding, end) = self.pooling else { return 1.0 };
        if !padding {
            return seen as f32;
        }
        let axis = |o: usize, k: usize, s: usize, d: usize, end: usize| (end.saturating_sub(o * s)).div_ceil(d).min(k);
        let down = axis(oy, self.kernel.0, self.stride.0, self.dilation.0, end.0);
        let across = axis(ox, self.kernel.1, self.stride.1, self.dilation.1, end.1);
        (down * across) as f32
    }
}

multiversion!(fn pool_row(pool: &Pool, x: *const f32, oy: usize, y: *mut f32) = row_inner);

#[inline(always)]
unsafe fn row_inner<const FMA: bool>(pool: &Pool, x: *const f32, oy: usize, y: *mut f32) {
    let channels = pool.extent.1;
    let [_, row, pixel] = pool.x.2;
    let p = pool;
    let (top, bottom, y0) = inside(oy, p.kernel.0, p.stride.0, p.pad.0, p.dilation.0, p.image.0);
    for ox in 0..p.grid.1 {
        let (left, right, x0) = inside(ox, p.kernel.1, p.stride.1, p.pad.1, p.dilation.1, p.image.1);
        // SAFETY: the caller's contract; the window was cut to the image.
        unsafe {
            let out = std::slice::from_raw_parts_mut(y.add(ox * channels), channels);
            out.fill(if p.pooling == Pooling::Max { f32::NEG_INFINITY } else { 0.0 });
            for ky in top..bottom {
                let from = x.add((y0 + (ky * p.dilation.0) as isize) as usize * row);
                for kx in left..right {
                    let from = from.add((x0 + (kx * p.dilation.1) as isize) as usize * pixel);
                    let line = std::slice::from_raw_parts(from, channels);
                    match p.pooling {
                        Pooling::Max => out.iter_mut().zip(line).for_each(|(o, &x)| *o = larger(*o, x)),
                        Pooling::Mean(..) => out.iter_mut().zip(line).for_each(|(o, &x)| *o += x),
                    }
                }
            }
            if p.pooling != Pooling::Max {
                let count = p.count((oy, ox), (bottom - top) * (right - left));
                out.iter_mut().for_each(|o| *o /= count);
            }
        }
    }
}
