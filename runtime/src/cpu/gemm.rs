//! Dense matrix products on one thread, near the peak of the machine's vector units.
//!
//! The right factor is [packed](pack) into panels of [`panel`] columns: for a block of the inner dimension ([`DEPTH`]), the panel's
//! columns side by side. The left factor is read where it is if its rows are contiguous, else copied by blocks; a
//! [micro-kernel](super::micro) broadcasts its numbers straight from memory. It keeps `M × 2` vectors of sums in registers over the whole block
//! (`M ≤ 12` with AVX-512, `≤ 6` with AVX2); rows are split as evenly as possible, so that no kernel runs nearly empty.
//!
//! The order of additions depends on the shape and the instruction set, on nothing else. Without AVX2 the caller uses a library.

use super::micro::{Corner, Finish, Left, Span, kernels};
use super::simd::{Level, level};
use super::skinny::{Shape, Source, Target};
use super::{LINE, on_line};
use std::cell::RefCell;

/// Terms that are summed in registers at a time.
pub const DEPTH: usize = 384;
/// The distance of the rows of the left factor's block: an odd number of cache lines.
const PITCH: usize = DEPTH + 16;
/// Rows of the left factor that are copied at a time.
const ROWS: usize = 192;

/// Columns of a panel; 0 where this machine has no kernel.
pub fn panel() -> usize {
    match level() {
        Level::Portable => 0,
        _ => kernels().panel,
    }
}

/// Elements of a packed right factor of `k` rows and `n` columns.
pub fn packed_len(k: usize, n: usize) -> usize {
    k * n.next_multiple_of(panel().max(1))
}

/// The number of panels; each can be [packed](pack) by itself.
pub fn panels(n: usize) -> usize {
    n.div_ceil(panel().max(1))
}

/// Packs one panel of columns of a right factor.
///
/// The layout: for every block of [`DEPTH`] rows, for every panel, the block's rows of the panel one after the other; missing
/// columns are 0.
///
/// # Safety
/// `b` must cover `k × n` elements, and `to` [`packed_len`] of them.
pub unsafe fn pack(k: usize, n: usize, b: Source, panel_index: usize, to: *mut f32) {
    let wide = panel();
    let (first, padded) = (panel_index * wide, n.next_multiple_of(wide));
    let cols = wide.min(n - first);
    let (start, down, across) = b;
    for block in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - block);
        // SAFETY: the caller's contract.
        unsafe {
            let source = start.add(block * down + first * across);
            let target = to.add(block * padded + first * depth);
            if cols < wide {
                std::slice::from_raw_parts_mut(target, depth * wide).fill(0.0);
            }
            if across == 1 {
                for p in 0..depth {
                    std::ptr::copy_nonoverlapping(source.add(p * down), target.add(p * wide), cols);
                }
            } else {
                transpose(depth, cols, (source, down, across), (target, wide));
            }
        }
    }
}

/// `to[p · pitch + c] = from[p · down + c · across]`, in squares that stay in the first-level cache.
unsafe fn transpose(rows: usize, cols: usize, (from, down, across): Source, (to, pitch): (*mut f32, usize)) {
    const SIDE: usize = 8;
    for p in (0..rows).step_by(SIDE) {
        for c in (0..cols).step_by(SIDE) {
            let (high, wide) = (SIDE.min(rows - p), SIDE.min(cols - c));
            // SAFETY: the caller vouches for the extents.
            unsafe {
                let (from, to) = (from.add(p * down + c * across), to.add(p * pitch + c));
                #[cfg(target_arch = "x86_64")]
                if (high, wide, down) == (SIDE, SIDE, 1) && level() != Level::Portable {
                    x86::transpose_square(from, across, to, pitch);
                    continue;
                }
                for j in 0..wide {
                    for i in 0..high {
                        *to.add(i * pitch + j) = *from.add(i * down + j * across);
                    }
                }
            }
        }
    }
}

/// A block of the left factor as micro-kernels read it: where it is if its rows or columns are contiguous and far enough
/// from a multiple of the page size apart (or the rows of a kernel would share a few places of the first-level cache), else copied.
unsafe fn block_of(rows: usize, depth: usize, (start, down, across): Source, to: *mut f32) -> Left {
    // SAFETY: the caller vouches for the extents, and for room for `ROWS · PITCH` elements.
    unsafe {
        if down == 1 && across != 1 {
            for p in 0..depth {
                std::ptr::copy_nonoverlapping(start.add(p * across), to.add(p * ROWS), rows);
            }
            return Left { start: to, pitch: ROWS, by_column: true };
        }
        if across == 1 && !down.is_multiple_of(1024) {
            return Left { start, pitch: down, by_column: false };
        }
        if across == 1 {
            for i in 0..rows {
                std::ptr::copy_nonoverlapping(start.add(i * down), to.add(i * PITCH), depth);
            }
        } else {
            transpose(rows, depth, (start, down, across), (to, PITCH));
        }
        Left { start: to, pitch: PITCH, by_column: false }
    }
}

thread_local! {
    static LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static RIGHT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `A · B`, finished, for columns `j .. j + s.n` of a packed right factor of `n` columns; `j` must begin a panel. The
/// columns of the result must be contiguous.
///
/// # Safety
/// Operands and result must cover their extents, and not overlap.
pub unsafe fn multiply(s: Shape, a: Source, (b, n, j): (*const f32, usize, usize), out: Target, finish: &Finish) {
    let (padded, wide) = (n.next_multiple_of(panel()), panel());
    let kernels = kernels();
    LEFT.with_borrow_mut(|left| {
        left.resize(ROWS * PITCH + LINE, 0.0);
        // To a cache line, so that no broadcast of a full line crosses one.
        let left = on_line(left.as_mut_ptr());
        for first in (0..s.m).step_by(ROWS) {
            let rows = ROWS.min(s.m - first);
            for block in (0..s.k).step_by(DEPTH) {
                let depth = DEPTH.min(s.k - block);
                let end = finish.end.filter(|_| block + depth == s.k);
                let finish = Finish { add: finish.add || block > 0, end, ..*finish };
                // SAFETY: the caller's contract.
                unsafe {
                    let source = (a.0.add(first * a.1 + block * a.2), a.1, a.2);
                    let left = block_of(rows, depth, source, left);
                    for c in (0..s.n).step_by(wide) {
                        let cols = wide.min(s.n - c);
                        let right = b.add(block * padded + (j + c) * depth);
                        let target = Corner { start: out.0.add(first * out.1 + c), pitch: out.1, cols };
                        let span = Span { stretches: &[(0, 0)], depth, right: wide };
                        kernels.panel(rows, span, left, right, target, &finish.at(first, c));
                    }
                }
            }
        }
    });
}

/// The same for a right factor that is not packed yet.
///
/// # Safety
/// See [`multiply`].
pub unsafe fn product(s: Shape, a: Source, b: Source, out: Target, finish: &Finish) -> bool {
    if panel() == 0 || out.2 != 1 {
        return false;
    }
    RIGHT.with_borrow_mut(|right| {
        let len = packed_len(s.k, s.n);
        right.resize(right.len().max(len + LINE), 0.0);
        let right = on_line(right.as_mut_ptr());
        // SAFETY: the caller's contract.
        unsafe {
            (0..panels(s.n)).for_each(|i| pack(s.k, s.n, b, i, right));
            multiply(s, a, (right, s.n, 0), out, finish);
        }
    });
    true
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Eight columns of eight contiguous numbers, `across` apart, become eight rows, `pitch` apart.
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn transpose_square(from: *const f32, across: usize, to: *mut f32, pitch: usize) {
        // SAFETY: the caller vouches for the extents.
        unsafe {
            let x: [__m256; 8] = std::array::from_fn(|j| _mm256_loadu_ps(from.add(j * across)));
            let mut y = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
                y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
            }
            let mut z = [_mm256_setzero_ps(); 8];
            for half in [0, 4] {
                z[half] = _mm256_shuffle_ps::<0x44>(y[half], y[half + 2]);
                z[half + 1] = _mm256_shuffle_ps::<0xee>(y[half], y[half + 2]);
                z[half + 2] = _mm256_shuffle_ps::<0x44>(y[half + 1], y[half + 3]);
                z[half + 3] = _mm256_shuffle_ps::<0xee>(y[half + 1], y[half + 3]);
            }
            for i in 0..4 {
                _mm256_storeu_ps(to.add(i * pitch), _mm256_permute2f128_ps::<0x20>(z[i], z[i + 4]));
                _mm256_storeu_ps(to.add((i + 4) * pitch), _mm256_permute2f128_ps::<0x31>(z[i], z[i + 4]));
            }
        }
    }
}
