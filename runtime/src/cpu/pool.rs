//! Pools: maxima and means under a window, every channel by itself, channels last; and their gradients.
//!
//! A task of a pool computes a row of places of one image; a task of a gradient adds up some channels of one image, so that
//! windows that overlap do not meet. The window is cut to the image first, so no number outside of it is looked at. Maxima keep
//! NaN as the reference does: it wins. Where the maximum was, its gradient finds again, in the window's data: nothing is
//! stored for it.

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

/// Windows over an image. Pairs are (vertical, horizontal).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Windows {
    /// The size of the image.
    pub image: (usize, usize),
    /// The number of windows.
    pub grid: (usize, usize),
    /// The size of a window.
    pub kernel: (usize, usize),
    /// The distance of windows.
    pub stride: (usize, usize),
    /// The padding before the first element.
    pub pad: (usize, usize),
    /// The distance of a window's elements.
    pub dilation: (usize, usize),
}

/// Images: their buffer, where they begin, and the distances of images, rows and pixels; channels are neighbours.
pub type Images = (BufId, usize, [usize; 3]);

/// See the [module](self).
#[derive(Clone, PartialEq, Debug)]
pub struct Pool {
    /// What is done.
    pub pooling: Pooling,
    /// Images and channels.
    pub extent: (usize, usize),
    /// The windows.
    pub windows: Windows,
    /// The data.
    pub x: Images,
    /// Where results go, dense, channels last.
    pub y: BufId,
}

/// The gradient of a pool by its data.
#[derive(Clone, PartialEq, Debug)]
pub struct PoolGrad {
    /// What the pool does.
    pub pooling: Pooling,
    /// Images and channels.
    pub extent: (usize, usize),
    /// The windows.
    pub windows: Windows,
    /// The gradient of the results.
    pub dy: Images,
    /// The data; read for maxima only.
    pub x: Images,
    /// Where results go, dense, channels last.
    pub dx: BufId,
}

/// The elements of a window along one axis that lie inside of the image: the first, the one after the last, and the place of
/// element 0.
fn inside(
    place: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    dilation: usize,
    size: usize,
) -> (usize, usize, isize) {
    let start = (place * stride) as isize - pad as isize;
    let first = if start < 0 { (-start) as usize } else { 0 }.div_ceil(dilation);
    let room = size as isize - start;
    let end = if room <= 0 { 0 } else { (room as usize).div_ceil(dilation).min(kernel) };
    (first.min(end), end, start)
}

impl Windows {
    /// The pixels of a window that lie inside of the image: their number in the window, row and column.
    #[inline(always)]
    fn pixels(&self, (oy, ox): (usize, usize)) -> impl Iterator<Item = (usize, usize, usize)> + Clone {
        let (w, (wide, d)) = (*self, (self.kernel.1, self.dilation));
        let (top, bottom, y0) = inside(oy, w.kernel.0, w.stride.0, w.pad.0, w.dilation.0, w.image.0);
        let (left, right, x0) = inside(ox, w.kernel.1, w.stride.1, w.pad.1, w.dilation.1, w.image.1);
        let place = |start: isize, k: usize, d: usize| (start + (k * d) as isize) as usize;
        (top..bottom).flat_map(move |ky| {
            let row = place(y0, ky, d.0);
            (left..right).map(move |kx| (ky * wide + kx, row, place(x0, kx, d.1)))
        })
    }
    /// What the sum over a window is divided by.
    fn count(&self, pooling: Pooling, (oy, ox): (usize, usize)) -> f32 {
        let Pooling::Mean(padding, end) = pooling else { return 1.0 };
        if !padding {
            return self.pixels((oy, ox)).count() as f32;
        }
        let axis = |o: usize, k: usize, s: usize, d: usize, end: usize| (end.saturating_sub(o * s)).div_ceil(d).min(k);
        let down = axis(oy, self.kernel.0, self.stride.0, self.dilation.0, end.0);
        let across = axis(ox, self.kernel.1, self.stride.1, self.dilation.1, end.1);
        (down * across) as f32
    }
}

impl Pool {
    /// Runs it.
    ///
    /// # Safety
    /// Data and results must stay inside their buffers.
    pub unsafe fn run(&self, bases: Bases) {
        let shared = Shared(bases);
        let ((images, channels), (high, wide)) = (self.extent, self.windows.grid);
        each(images * high, |task| {
            let (image, oy) = (task / high, task % high);
            let x = shared.get()[self.x.0.index()].wrapping_add(self.x.1 + image * self.x.2[0]).cast_const();
            let y = shared.get()[self.y.index()].wrapping_add(task * wide * channels);
            // SAFETY: the caller's contract; tasks have rows of their own.
            unsafe { pool_row(self, x, oy, y) };
        });
    }
}

multiversion!(fn pool_row(pool: &Pool, x: *const f32, oy: usize, y: *mut f32) = row_inner);

#[inline(always)]
unsafe fn row_inner<const FMA: bool>(pool: &Pool, x: *const f32, oy: usize, y: *mut f32) {
    let channels = pool.extent.1;
    let [_, row, pixel] = pool.x.2;
    for ox in 0..pool.windows.grid.1 {
        // SAFETY: the caller's contract; the window was cut to the image.
        unsafe {
            let out = std::slice::from_raw_parts_mut(y.add(ox * channels), channels);
            out.fill(if pool.pooling == Pooling::Max { f32::NEG_INFINITY } else { 0.0 });
            for (_, iy, ix) in pool.windows.pixels((oy, ox)) {
                let line = std::slice::from_raw_parts(x.add(iy * row + ix * pixel), channels);
                match pool.pooling {
                    Pooling::Max => out.iter_mut().zip(line).for_each(|(o, &x)| *o = larger(*o, x)),
                    Pooling::Mean(..) => out.iter_mut().zip(line).for_each(|(o, &x)| *o += x),
                }
            }
            if pool.pooling != Pooling::Max {
                let count = pool.windows.count(pool.pooling, (oy, ox));
                out.iter_mut().for_each(|o| *o /= count);
            }
        }
    }
}

/// The channels that a task of a gradient takes at most.
const CHANNELS: usize = 64;

impl PoolGrad {
    /// Runs it.
    ///
    /// # Safety
    /// Data and results must stay inside their buffers.
    pub unsafe fn run(&self, bases: Bases) {
        let shared = Shared(bases);
        let ((images, channels), (high, wide)) = (self.extent, self.windows.image);
        let parts = channels.div_ceil(CHANNELS);
        each(images * parts, |task| {
            let (image, first) = (task / parts, task % parts * CHANNELS);
            let at = |from: &Images| {
                shared.get()[from.0.index()].wrapping_add(from.1 + image * from.2[0] + first).cast_const()
            };
            let dx = shared.get()[self.dx.index()].wrapping_add(image * high * wide * channels + first);
            // SAFETY: the caller's contract; tasks have channels of their own.
            unsafe { scatter(self, [at(&self.dy), at(&self.x)], CHANNELS.min(channels - first), dx) };
        });
    }
}

multiversion!(fn scatter(grad: &PoolGrad, from: [*const f32; 2], count: usize, dx: *mut f32) = scatter_inner);

#[inline(always)]
unsafe fn scatter_inner<const FMA: bool>(grad: &PoolGrad, [dy, x]: [*const f32; 2], count: usize, dx: *mut f32) {
    let windows = &grad.windows;
    let (channels, (high, wide)) = (grad.extent.1, windows.image);
    let [_, x_row, x_pixel] = grad.x.2;
    let [_, dy_row, dy_pixel] = grad.dy.2;
    // SAFETY: the caller's contract; windows were cut to the image.
    unsafe {
        for pixel in 0..high * wide {
            std::slice::from_raw_parts_mut(dx.add(pixel * channels), count).fill(0.0);
        }
        for (oy, ox) in (0..windows.grid.0).flat_map(|oy| (0..windows.grid.1).map(move |ox| (oy, ox))) {
            let share = std::slice::from_raw_parts(dy.add(oy * dy_row + ox * dy_pixel), count);
            let at = |iy: usize, ix: usize| {
                std::slice::from_raw_parts_mut(dx.add((iy * wide + ix) * channels), count).iter_mut()
            };
            if grad.pooling != Pooling::Max {
                let n = windows.count(grad.pooling, (oy, ox));
                for (_, iy, ix) in windows.pixels((oy, ox)) {
                    at(iy, ix).zip(share).for_each(|(dx, &d)| *dx += d / n);
                }
                continue;
            }
            let mut best = [(f32::NEG_INFINITY, u32::MAX); CHANNELS];
            for (k, iy, ix) in windows.pixels((oy, ox)) {
                let line = std::slice::from_raw_parts(x.add(iy * x_row + ix * x_pixel), count);
                best.iter_mut().zip(line).for_each(|(best, &x)| {
                    let wins = x > best.0 || best.1 == u32::MAX || (x.is_nan() && !best.0.is_nan());
                    *best = if wins { (x, k as u32) } else { *best };
                });
            }
            for (k, iy, ix) in windows.pixels((oy, ox)) {
                let shares = best.iter().zip(share);
                at(iy, ix).zip(shares).for_each(|(dx, (best, &d))| *dx += if best.1 == k as u32 { d } else { 0.0 });
            }
        }
    }
}
