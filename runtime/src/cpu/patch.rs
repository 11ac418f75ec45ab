//! Patches of an image as a matrix, made tile by tile: what turns a convolution into a matrix product.
//!
//! Row `(c, ky, kx)`, column `(oy, ox)`:
//! * forward: `image[c, oy·stride − pad + ky·dilation, ox·stride − pad + kx·dilation]`, 0 outside;
//! * transposed (gradient by input): `image[c, (oy + pad − ky·dilation) / stride, …]` where that divides, else 0.

/// See the [module](self). Pairs are (vertical, horizontal).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Patch {
    /// The size of one channel of the image.
    pub image: (usize, usize),
    /// The kernel.
    pub kernel: (usize, usize),
    /// The columns: the grid of places that the kernel is put on.
    pub grid: (usize, usize),
    /// The distance of places.
    pub stride: (usize, usize),
    /// The padding before the first element.
    pub pad: (usize, usize),
    /// The distance of the kernel's elements.
    pub dilation: (usize, usize),
    /// Whether places and image change roles.
    pub transposed: bool,
    /// Whether the product wants the matrix with places down and taps across (gradient by weight).
    pub taps_across: bool,
}

impl Patch {
    /// Writes rows `taps` and columns `places`, one row after the other.
    ///
    /// # Safety
    /// `image` must hold the channels that `taps` reach, `out` must have room for the matrix.
    pub unsafe fn fill(
        &self,
        image: *const f32,
        taps: std::ops::Range<usize>,
        places: std::ops::Range<usize>,
        out: *mut f32,
    ) {
        let (per_channel, width) = (self.kernel.0 * self.kernel.1, places.len());
        for (row, tap) in taps.enumerate() {
            let (c, ky, kx) = (tap / per_channel, tap % per_channel / self.kernel.1, tap % self.kernel.1);
            let mut place = places.start;
            while place < places.end {
                let (oy, ox) = (place / self.grid.1, place % self.grid.1);
                let count = (self.grid.1 - ox).min(places.end - place);
                // SAFETY: `out` has room for the row; `line` checks the image's bounds.
                unsafe {
                    let to = std::slice::from_raw_parts_mut(out.add(row * width + place - places.start), count);
                    match self.source(oy, ky, self.image.0, |p| p.0) {
                        Some(y) => {
                            let start = (c * self.image.0 + y) * self.image.1;
                            let from = std::slice::from_raw_parts(image.add(start), self.image.1);
                            self.line(from, ox, kx, to);
                        }
                        None => to.fill(0.0),
                    }
                }
                place += count;
            }
        }
    }
    /// Where a place reads along one axis.
    #[inline]
    fn source(&self, o: usize, k: usize, size: usize, axis: impl Fn((usize, usize)) -> usize) -> Option<usize> {
        let (stride, pad, tap) = (axis(self.stride), axis(self.pad), k * axis(self.dilation));
        let place = if self.transposed {
            let at = (o + pad).checked_sub(tap)?;
            (at % stride == 0).then_some(at / stride)?
        } else {
            (o * stride + tap).checked_sub(pad)?
        };
        (place < size).then_some(place)
    }
    fn line(&self, from: &[f32], ox: usize, kx: usize, to: &mut [f32]) {
        if self.stride.1 != 1 {
            for (i, x) in to.iter_mut().enumerate() {
                *x = self.source(ox + i, kx, from.len(), |p| p.1).map_or(0.0, |place| from[place]);
            }
            return;
        }
        // Places follow each other: zeros, a run of the line, zeros.
        let tap = kx * self.dilation.1;
        let shift =
            if self.transposed { self.pad.1 as isize - tap as isize } else { tap as isize - self.pad.1 as isize };
        let first = ox as isize + shift;
        let before = (-first).clamp(0, to.len() as isize) as usize;
        let end = (from.len() as isize - first).clamp(before as isize, to.len() as isize) as usize;
        to[..before].fill(0.0);
        if end > before {
            let start = (first + before as isize) as usize;
            to[before..end].copy_from_slice(&from[start..start + end - before]);
        }
        to[end..].fill(0.0);
    }
}
