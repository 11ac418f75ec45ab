//! Micro-kernels: a few rows of a product, at most one panel wide, summed in registers.
//!
//! A kernel broadcasts the numbers of its rows from the left factor and multiplies them with one or two vectors of the right one. What it
//! sums over is a [`Span`]: stretches of equal depth, each with its own place in both factors. A matrix product has one
//! stretch, a convolution one per row of its window. Depthwise kernels do the same for
//! channels by themselves, forward and for the gradient of weights.
//! There is one set for AVX-512, one for AVX2 with FMA, and one in plain Rust.

use super::simd::{Level, level};

/// Part of a result: at most a panel wide.
#[derive(Clone, Copy)]
pub struct Corner {
    /// Where it begins.
    pub start: *mut f32,
    /// The distance of its rows.
    pub pitch: usize,
    /// Its columns.
    pub cols: usize,
}

/// A block of the left factor: where it begins, the distance of its rows (or columns), and whether it lies column by column.
#[derive(Clone, Copy)]
pub struct Left {
    /// Where it begins.
    pub start: *const f32,
    /// The distance of its rows, or of its columns.
    pub pitch: usize,
    /// Whether the rows are contiguous instead of the columns.
    pub by_column: bool,
}

/// What is summed over.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    /// Where each stretch begins in the left and in the right factor.
    pub stretches: &'a [(usize, usize)],
    /// Terms of a stretch.
    pub depth: usize,
    /// The distance of the right factor's rows.
    pub right: usize,
}

/// What a micro-kernel gets: rows, what is summed over, left, right, result, factor, whether to add.
type Kernel = unsafe fn(usize, Span, Left, *const f32, Corner, f32, bool);
/// Pixels, taps (places in image and weights), image and its distance of pixels, weights, result.
type Depthwise = unsafe fn(usize, &[(usize, usize)], *const f32, usize, *const f32, Corner);

/// Taps (places in the image), what is summed over, image and its distance of pixels, the other factor, result, whether to add.
type Correlate = unsafe fn(&[usize], Span, *const f32, usize, *const f32, Corner, bool);

/// The kernels of an instruction set.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Columns of a panel: two vectors.
    pub panel: usize,
    /// Rows of the largest micro-kernel.
    most: usize,
    run: Kernel,
    depthwise: Depthwise,
    correlate: Correlate,
}

/// The kernels that this machine runs best.
pub fn kernels() -> Kernels {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Kernels {
            panel: 32,
            most: 12,
            run: x86::avx512,
            depthwise: x86::depthwise512,
            correlate: x86::correlate512,
        },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            Kernels { panel: 16, most: 6, run: x86::avx2, depthwise: x86::depthwise2, correlate: x86::correlate2 }
        }
        _ => Kernels {
            panel: 8,
            most: 6,
            run: portable::run,
            depthwise: portable::depthwise,
            correlate: portable::correlate,
        },
    }
}

impl Kernels {
    /// One panel, all rows: as many kernels as needed, of equal height to one row.
    ///
    /// # Safety
    /// Operands and result must cover their extents, and not overlap; the right factor must cover whole vectors.
    #[inline]
    pub unsafe fn panel(&self, rows: usize, span: Span, a: Left, b: *const f32, c: Corner, alpha: f32, add: bool) {
        let parts = rows.div_ceil(self.most);
        let (each, more) = (rows / parts.max(1), rows % parts.max(1));
        let mut row = 0;
        for part in 0..parts {
            let high = each + usize::from(part < more);
            let corner = Corner { start: c.start.wrapping_add(row * c.pitch), ..c };
            let left = Left { start: a.start.wrapping_add(if a.by_column { row } else { row * a.pitch }), ..a };
            // SAFETY: the caller's contract.
            unsafe { (self.run)(high, span, left, b, corner, alpha, add) };
            row += high;
        }
    }
    /// `c[i, j] = Σ_t image[tap_t + i · pitch + j] · weights[tap_t + j]`
    ///
    /// # Safety
    /// As for [`Kernels::panel`]; image and weights must cover whole vectors of columns.
    #[inline]
    pub unsafe fn depthwise(
        &self,
        pixels: usize,
        taps: &[(usize, usize)],
        (image, pitch): (*const f32, usize),
        weights: *const f32,
        c: Corner,
    ) {
        // SAFETY: the caller's contract.
        unsafe { (self.depthwise)(pixels, taps, image, pitch, weights, c) };
    }
    /// `c[t, j] (+)= Σ_i image[tap_t + i · pitch + j] · right[i, j]`
    ///
    /// # Safety
    /// As for [`Kernels::panel`]; image and right factor must cover whole vectors of columns.
    #[inline]
    pub unsafe fn correlate(
        &self,
        taps: &[usize],
        span: Span,
        (image, pitch): (*const f32, usize),
        right: *const f32,
        c: Corner,
        add: bool,
    ) {
        // SAFETY: the caller's contract.
        unsafe { (self.correlate)(taps, span, image, pitch, right, c, add) };
    }
}

/// A vector of `f32`.
trait Vector: Copy {
    const WIDTH: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
    unsafe fn mul(self, by: Self) -> Self;
}

/// Writes one vector of a result.
#[inline(always)]
unsafe fn put<V: Vector>(x: V, to: *mut f32, alpha: V, add: bool) {
    // SAFETY: the caller vouches for the place and the instruction set.
    unsafe {
        let y = if add { x.mul_add(alpha, V::load(to)) } else { x.mul(alpha) };
        y.store(to);
    }
}

/// Writes less than one vector of a result.
#[inline(always)]
unsafe fn put_some<V: Vector>(x: V, to: *mut f32, count: usize, alpha: V, add: bool) {
    let mut line = [0f32; 16];
    // SAFETY: the caller vouches for `count` places and the instruction set; no vector is longer than the line.
    unsafe {
        x.mul(alpha).store(line.as_mut_ptr());
        let to = std::slice::from_raw_parts_mut(to, count);
        if add {
            to.iter_mut().zip(&line).for_each(|(o, &x)| *o += x);
        } else {
            to.copy_from_slice(&line[..count]);
        }
    }
}

/// A micro-kernel of some rows by one or two vectors. Rows are named by literals, so that every sum is a register from
/// the start and no optimisation has to find out.
macro_rules! micro {
    ($name:ident, $rows:literal, $($i:literal)*) => {
        #[inline(always)]
        unsafe fn $name<V: Vector, const TWO: bool, const BY_COLUMN: bool>(
            span: Span, a: Left, b: *const f32, c: Corner, alpha: f32, add: bool,
        ) {
            // SAFETY: the caller vouches for the extents and the instruction set.
            unsafe {
                let zero = V::splat(0.0);
                let (mut first, mut second) = ([zero; $rows], [zero; $rows]);
                let (row, step) = if BY_COLUMN { (1, a.pitch) } else { (a.pitch, 1) };
                for &(x, y) in span.stretches {
                    let (mut left, mut right) = (a.start.add(x), b.add(y));
                    for _ in 0..span.depth {
                        let x = V::load(right);
                        let y = if TWO { V::load(right.add(V::WIDTH)) } else { zero };
                        $(
                            let factor = V::splat(*left.add($i * row));
                            first[$i] = factor.mul_add(x, first[$i]);
                            if TWO {
                                second[$i] = factor.mul_add(y, second[$i]);
                            }
                        )*
                        left = left.add(step);
                        right = right.add(span.right);
                    }
                }
                let alpha = V::splat(alpha);
                let whole = if TWO { 2 * V::WIDTH } else { V::WIDTH };
                if c.cols == whole {
                    $(
                        let to = c.start.add($i * c.pitch);
                        put(first[$i], to, alpha, add);
                        if TWO {
                            put(second[$i], to.add(V::WIDTH), alpha, add);
                        }
                    )*
                } else {
                    $(
                        let to = c.start.add($i * c.pitch);
                        if TWO {
                            put(first[$i], to, alpha, add);
                            put_some(second[$i], to.add(V::WIDTH), c.cols - V::WIDTH, alpha, add);
                        } else {
                            put_some(first[$i], to, c.cols, alpha, add);
                        }
                    )*
                }
            }
        }
    };
}
micro!(micro1, 1, 0);
micro!(micro2, 2, 0 1);
micro!(micro3, 3, 0 1 2);
micro!(micro4, 4, 0 1 2 3);
micro!(micro5, 5, 0 1 2 3 4);
micro!(micro6, 6, 0 1 2 3 4 5);
micro!(micro7, 7, 0 1 2 3 4 5 6);
micro!(micro8, 8, 0 1 2 3 4 5 6 7);
micro!(micro9, 9, 0 1 2 3 4 5 6 7 8);
micro!(micro10, 10, 0 1 2 3 4 5 6 7 8 9);
micro!(micro11, 11, 0 1 2 3 4 5 6 7 8 9 10);
micro!(micro12, 12, 0 1 2 3 4 5 6 7 8 9 10 11);

/// Some pixels of one vector of channels, every channel by itself.
macro_rules! pixels {
    ($name:ident, $rows:literal, $($i:literal)*) => {
        #[inline(always)]
        unsafe fn $name<V: Vector>(
            taps: &[(usize, usize)], image: *const f32, pitch: usize, weights: *const f32, c: Corner,
        ) {
            // SAFETY: the caller vouches for the extents and the instruction set.
            unsafe {
                let mut sums = [V::splat(0.0); $rows];
                for &(place, weight) in taps {
                    let (from, weight) = (image.add(place), V::load(weights.add(weight)));
                    $(sums[$i] = V::load(from.add($i * pitch)).mul_add(weight, sums[$i]);)*
                }
                $(
                    let to = c.start.add($i * c.pitch);
                    if c.cols == V::WIDTH {
                        sums[$i].store(to);
                    } else {
                        put_some(sums[$i], to, c.cols, V::splat(1.0), false);
                    }
                )*
            }
        }
    };
}
pixels!(pixels1, 1, 0);
pixels!(pixels2, 2, 0 1);
pixels!(pixels4, 4, 0 1 2 3);
pixels!(pixels8, 8, 0 1 2 3 4 5 6 7);

#[inline(always)]
unsafe fn all_pixels<V: Vector>(
    pixels: usize,
    taps: &[(usize, usize)],
    image: *const f32,
    pitch: usize,
    weights: *const f32,
    c: Corner,
) {
    for channel in (0..c.cols).step_by(V::WIDTH) {
        let cols = V::WIDTH.min(c.cols - channel);
        let mut done = 0;
        // SAFETY: the caller vouches for the extents and the instruction set.
        unsafe {
            let weights = weights.add(channel);
            while done < pixels {
                let image = image.add(channel + done * pitch);
                let c = Corner { start: c.start.add(channel + done * c.pitch), cols, ..c };
                match pixels - done {
                    8.. => {
                        pixels8::<V>(taps, image, pitch, weights, c);
                        done += 8;
                    }
                    4..8 => {
                        pixels4::<V>(taps, image, pitch, weights, c);
                        done += 4;
                    }
                    2..4 => {
                        pixels2::<V>(taps, image, pitch, weights, c);
                        done += 2;
                    }
                    _ => {
                        pixels1::<V>(taps, image, pitch, weights, c);
                        done += 1;
                    }
                }
            }
        }
    }
}

/// Some taps of one vector of channels, every channel by itself.
macro_rules! taps {
    ($name:ident, $count:literal, $($i:literal)*) => {
        #[inline(always)]
        unsafe fn $name<V: Vector>(
            taps: &[usize], span: Span, image: *const f32, pitch: usize, right: *const f32, c: Corner, add: bool,
        ) {
            // SAFETY: the caller vouches for the extents and the instruction set.
            unsafe {
                let mut sums = [V::splat(0.0); $count];
                for &(place, other) in span.stretches {
                    let (mut image, mut right) = (image.add(place), right.add(other));
                    for _ in 0..span.depth {
                        let factor = V::load(right);
                        $(sums[$i] = V::load(image.add(taps[$i])).mul_add(factor, sums[$i]);)*
                        image = image.add(pitch);
                        right = right.add(span.right);
                    }
                }
                $(
                    let to = c.start.add($i * c.pitch);
                    if c.cols == V::WIDTH {
                        put(sums[$i], to, V::splat(1.0), add);
                    } else {
                        put_some(sums[$i], to, c.cols, V::splat(1.0), add);
                    }
                )*
            }
        }
    };
}
taps!(taps1, 1, 0);
taps!(taps3, 3, 0 1 2);
taps!(taps9, 9, 0 1 2 3 4 5 6 7 8);

#[inline(always)]
unsafe fn all_taps<V: Vector>(
    taps: &[usize],
    span: Span,
    image: *const f32,
    pitch: usize,
    right: *const f32,
    c: Corner,
    add: bool,
) {
    for channel in (0..c.cols).step_by(V::WIDTH) {
        let cols = V::WIDTH.min(c.cols - channel);
        let mut done = 0;
        // SAFETY: the caller vouches for the extents and the instruction set.
        unsafe {
            let (image, right) = (image.add(channel), right.add(channel));
            while done < taps.len() {
                let c = Corner { start: c.start.add(channel + done * c.pitch), cols, ..c };
                let rest = &taps[done..];
                match rest.len() {
                    9.. => {
                        taps9::<V>(&rest[..9], span, image, pitch, right, c, add);
                        done += 9;
                    }
                    3..9 => {
                        taps3::<V>(&rest[..3], span, image, pitch, right, c, add);
                        done += 3;
                    }
                    _ => {
                        taps1::<V>(&rest[..1], span, image, pitch, right, c, add);
                        done += 1;
                    }
                }
            }
        }
    }
}

macro_rules! kernels {
    ($([$($attribute:tt)*])? $name:ident, $depthwise:ident, $correlate:ident, $vector:ty, $($m:literal $micro:ident)*) => {
        $(#[$($attribute)*])?
        pub(super) unsafe fn $name(
            m: usize, span: Span, a: Left, b: *const f32, c: Corner, alpha: f32, add: bool,
        ) {
            // SAFETY: the caller vouches for the extents.
            unsafe {
                match (m, c.cols > <$vector>::WIDTH, a.by_column) {
                    $(($m, true, false) => $micro::<$vector, true, false>(span, a, b, c, alpha, add),)*
                    $(($m, false, false) => $micro::<$vector, false, false>(span, a, b, c, alpha, add),)*
                    $(($m, true, true) => $micro::<$vector, true, true>(span, a, b, c, alpha, add),)*
                    $(($m, false, true) => $micro::<$vector, false, true>(span, a, b, c, alpha, add),)*
                    _ => {}
                }
            }
        }
        $(#[$($attribute)*])?
        pub(super) unsafe fn $depthwise(
            pixels: usize, taps: &[(usize, usize)], image: *const f32, pitch: usize, weights: *const f32, c: Corner,
        ) {
            // SAFETY: the caller vouches for the extents.
            unsafe { all_pixels::<$vector>(pixels, taps, image, pitch, weights, c) };
        }
        $(#[$($attribute)*])?
        pub(super) unsafe fn $correlate(
            taps: &[usize], span: Span, image: *const f32, pitch: usize, right: *const f32, c: Corner, add: bool,
        ) {
            // SAFETY: the caller vouches for the extents.
            unsafe { all_taps::<$vector>(taps, span, image, pitch, right, c, add) };
        }
    };
}

mod portable {
    use super::*;

    /// Four numbers, which compilers keep in one register on every machine that matters.
    #[derive(Clone, Copy)]
    struct Lanes([f32; 4]);

    // SAFETY (all methods): as `Vector` says; plain Rust.
    impl Vector for Lanes {
        const WIDTH: usize = 4;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            Lanes([x; 4])
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Lanes(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
            Lanes(std::array::from_fn(|i| self.0[i] * by.0[i] + plus.0[i]))
        }
        #[inline(always)]
        unsafe fn mul(self, by: Self) -> Self {
            Lanes(std::array::from_fn(|i| self.0[i] * by.0[i]))
        }
    }

    kernels!(run, depthwise, correlate, Lanes, 1 micro1 2 micro2 3 micro3 4 micro4 5 micro5 6 micro6);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    macro_rules! vector {
        ($ty:ty, $width:literal, $splat:ident, $load:ident, $store:ident, $mul_add:ident, $mul:ident) => {
            // SAFETY (all methods): only called where the instruction set is enabled.
            impl Vector for $ty {
                const WIDTH: usize = $width;
                #[inline(always)]
                unsafe fn splat(x: f32) -> Self {
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
                    unsafe { $mul_add(self, by, plus) }
                }
                #[inline(always)]
                unsafe fn mul(self, by: Self) -> Self {
                    unsafe { $mul(self, by) }
                }
            }
        };
    }
    vector!(__m512, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps, _mm512_mul_ps);
    vector!(__m256, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps, _mm256_mul_ps);

    kernels!(
        [target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
        avx512, depthwise512, correlate512, __m512,
        1 micro1 2 micro2 3 micro3 4 micro4 5 micro5 6 micro6 7 micro7 8 micro8 9 micro9 10 micro10 11 micro11 12 micro12
    );
    kernels!(
        [target_feature(enable = "avx2,fma")]
        avx2, depthwise2, correlate2, __m256, 1 micro1 2 micro2 3 micro3 4 micro4 5 micro5 6 micro6
    );
}
