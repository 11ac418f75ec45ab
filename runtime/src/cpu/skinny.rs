//! Matrix products with few columns (`n ≤ 16`) or a short inner dimension (`k ≤ 16`): what adapters are made of, and
//! what GEMM libraries, which pack their operands, are slow at.
//!
//! * **Short inner dimension, or a single row**, rows of `B` and of the result contiguous: each row of the result is a sum of `k` scaled rows of `B`.
//! * **Few columns**, rows of `A` contiguous: `B` is copied to `n` contiguous columns once, and each result is a dot product; only where there
//!   are no [micro-kernels](super::gemm), or fewer than 3 columns.
//! * **Few rows or few columns where there are no micro-kernels, inner dimension across rows** (`Aᵀ·B`, gradients of adapters): a sum of outer
//!   products.

use crate::multiversion;
use std::cell::RefCell;

/// The extents of a product.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// The inner dimension.
    pub k: usize,
}

/// Start, row stride and column stride.
pub type Source = (*const f32, usize, usize);
/// The same, to be written.
pub type Target = (*mut f32, usize, usize);

/// The largest extent that counts as skinny.
const SKINNY: usize = 16;

/// How a skinny product is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// A short inner dimension, or a single row.
    Short,
    /// Few columns.
    Narrow,
    /// Few columns, the inner dimension across rows.
    Outer,
    /// Few rows, the inner dimension across rows.
    Flipped,
}

/// How a product is computed here, from its extents and the (row, column) strides of its matrices; `None` if it is not skinny.
pub fn way(s: Shape, a: (usize, usize), b: (usize, usize), out: (usize, usize)) -> Option<Way> {
    if s.m == 0 || s.n == 0 || s.k == 0 {
        None
    } else if (s.k < SKINNY || s.m == 1) && s.n > SKINNY && b.1 == 1 && out.1 == 1 {
        Some(Way::Short)
    } else if s.n <= SKINNY && s.m > SKINNY && s.k > SKINNY && a.1 == 1 {
        // Micro-kernels, even half empty, are faster than dot products.
        (super::gemm::panel() == 0 || s.n < 3 || out.1 != 1).then_some(Way::Narrow)
    } else if s.n <= SKINNY && s.m > SKINNY && s.k > SKINNY && a.0 == 1 {
        (super::gemm::panel() == 0 || out.1 != 1).then_some(Way::Outer)
    } else if s.m <= SKINNY && s.n > SKINNY && s.k > SKINNY && b.1 == 1 {
        // Where the right factor is a weight, it is packed once and then read in its order.
        (super::gemm::panel() == 0 || out.1 != 1).then_some(Way::Flipped)
    } else {
        None
    }
}

/// `out (+)= α · A · B` in one of the ways.
///
/// # Safety
/// Operands and result must cover their extents; the result must not overlap with an operand.
pub unsafe fn product(way: Way, s: Shape, a: Source, b: Source, out: Target, alpha: f32, add: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        match way {
            Way::Short => short(s, a, b, out, alpha, add),
            Way::Narrow => narrow(s, a, b, out, alpha, add),
            Way::Outer => outer(s, a, b, out, alpha, add),
            Way::Flipped => {
                // (A · B)ᵀ = Bᵀ · Aᵀ
                let flipped = Shape { m: s.n, n: s.m, k: s.k };
                outer(flipped, (b.0, b.2, b.1), (a.0, a.2, a.1), (out.0, out.2, out.1), alpha, add);
            }
        }
    }
}

multiversion!(fn short(s: Shape, a: Source, b: Source, out: Target, alpha: f32, add: bool) = short_inner);
multiversion!(fn narrow(s: Shape, a: Source, b: Source, out: Target, alpha: f32, add: bool) = narrow_inner);
multiversion!(fn outer(s: Shape, a: Source, b: Source, out: Target, alpha: f32, add: bool) = outer_inner);

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    super::simd::fma::<FMA>(a, b, c)
}

#[inline(always)]
unsafe fn short_inner<const FMA: bool>(s: Shape, a: Source, b: Source, out: Target, alpha: f32, add: bool) {
    const CHUNK: usize = 64;
    let mut j = 0;
    while j < s.n {
        let wide = CHUNK.min(s.n - j);
        for i in 0..s.m {
            let mut sums = [0f32; CHUNK];
            // SAFETY: the caller's contract.
            unsafe {
                for p in 0..s.k {
                    let x = alpha * *a.0.add(i * a.1 + p * a.2);
                    let row = std::slice::from_raw_parts(b.0.add(p * b.1 + j), wide);
                    if let Ok(row) = <&[f32; CHUNK]>::try_from(row) {
                        for c in 0..CHUNK {
                            sums[c] = fma::<FMA>(x, row[c], sums[c]);
                        }
                    } else {
                        for (o, &y) in sums.iter_mut().zip(row) {
                            *o = fma::<FMA>(x, y, *o);
                        }
                    }
                }
                let target = std::slice::from_raw_parts_mut(out.0.add(i * out.1 + j), wide);
                if add {
                    target.iter_mut().zip(&sums).for_each(|(o, &x)| *o += x);
                } else {
                    target.copy_from_slice(&sums[..wide]);
                }
            }
        }
        j += wide;
    }
}

const LANES: usize = 8;

thread_local! {
    static COLUMNS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

#[inline(always)]
unsafe fn narrow_inner<const FMA: bool>(s: Shape, a: Source, b: Source, out: Target, alpha: f32, add: bool) {
    // Taken out of its cell rather than borrowed in a closure: a closure would be compiled without the instruction
    // set of the function that this is inlined into, and every multiply-add would become a call.
    let mut columns = COLUMNS.take();
    columns.clear();
    for j in 0..s.n {
        for p in 0..s.k {
            // SAFETY: the caller's contract.
            columns.push(unsafe { *b.0.add(p * b.1 + j * b.2) });
        }
    }
    for i in 0..s.m {
        // SAFETY: rows of A are contiguous.
        let row = unsafe { std::slice::from_raw_parts(a.0.add(i * a.1), s.k) };
        let mut j = 0;
        while j < s.n {
            let group = 4.min(s.n - j);
            let mut dots = [0f32; 4];
            if group == 4 {
                dots = dot4::<FMA>(row, &columns[j * s.k..(j + 4) * s.k]);
            } else {
                for (c, dot) in dots.iter_mut().enumerate().take(group) {
                    *dot = dot1::<FMA>(row, &columns[(j + c) * s.k..(j + c + 1) * s.k]);
                }
            }
            for (c, dot) in dots.iter().enumerate().take(group) {
                // SAFETY: inside the result.
                unsafe { put(out, i, j + c, alpha * dot, add) };
            }
            j += group;
        }
    }
    COLUMNS.set(columns);
}

#[inline(always)]
unsafe fn put(out: Target, i: usize, j: usize, x: f32, add: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        let place = out.0.add(i * out.1 + j * out.2);
        *place = if add { *place + x } else { x };
    }
}

#[inline(always)]
fn dot4<const FMA: bool>(row: &[f32], columns: &[f32]) -> [f32; 4] {
    let k = row.len();
    let (c0, rest) = columns.split_at(k);
    let (c1, rest) = rest.split_at(k);
    let (c2, c3) = rest.split_at(k);
    let mut sums = [[0f32; LANES]; 4];
    let whole = k / LANES * LANES;
    for p in (0..whole).step_by(LANES) {
        let x: &[f32; LANES] = row[p..p + LANES].try_into().unwrap_or(&[0.0; LANES]);
        for (sum, column) in sums.iter_mut().zip([c0, c1, c2, c3]) {
            let y: &[f32; LANES] = column[p..p + LANES].try_into().unwrap_or(&[0.0; LANES]);
            for l in 0..LANES {
                sum[l] = fma::<FMA>(x[l], y[l], sum[l]);
            }
        }
    }
    for p in whole..k {
        for (sum, column) in sums.iter_mut().zip([c0, c1, c2, c3]) {
            sum[p - whole] = fma::<FMA>(row[p], column[p], sum[p - whole]);
        }
    }
    sums.map(|s| tree(&s))
}

#[inline(always)]
fn dot1<const FMA: bool>(row: &[f32], column: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    for (x, y) in row.chunks(LANES).zip(column.chunks(LANES)) {
        for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
            *sum = fma::<FMA>(x, y, *sum);
        }
    }
    tree(&sums)
}

#[inline(always)]
fn tree(s: &[f32; LANES]) -> f32 {
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

/// Columns of `A` are contiguous: strips of `CHUNK` results by 8 columns stay in registers over the whole inner dimension.
#[inline(always)]
unsafe fn outer_inner<const FMA: bool>(s: Shape, a: Source, b: Source, out: Target, alpha: f32, add: bool) {
    const STRIP: usize = 8;
    const CHUNK: usize = 16;
    let mut j = 0;
    while j < s.n {
        let group = STRIP.min(s.n - j);
        let mut i = 0;
        while i < s.m {
            let wide = CHUNK.min(s.m - i);
            // SAFETY: the caller's contract.
            let sums = unsafe {
                let (x, y) = (a.0.add(i), b.0.add(j * b.2));
                match (wide, group) {
                    (CHUNK, STRIP) => block::<FMA, CHUNK, STRIP>(s.k, x, a.2, y, b.1, b.2),
                    _ => ragged::<FMA, CHUNK, STRIP>(s.k, (x, a.2, wide), (y, b.1, b.2, group)),
                }
            };
            for (c, sum) in sums.iter().enumerate().take(group) {
                for (l, &x) in sum.iter().enumerate().take(wide) {
                    // SAFETY: inside the result.
                    unsafe { put(out, i + l, j + c, alpha * x, add) };
                }
            }
            i += wide;
        }
        j += group;
    }
}

/// Sums of outer products of `M` contiguous numbers of `x` with `N` of `y`.
#[inline(always)]
unsafe fn block<const FMA: bool, const M: usize, const N: usize>(
    k: usize,
    x: *const f32,
    x_step: usize,
    y: *const f32,
    y_step: usize,
    y_next: usize,
) -> [[f32; M]; N] {
    let mut sums = [[0f32; M]; N];
    for p in 0..k {
        // SAFETY: the caller vouches for the extents.
        unsafe {
            let line = &*x.add(p * x_step).cast::<[f32; M]>();
            let factors = y.add(p * y_step);
            for (c, sum) in sums.iter_mut().enumerate() {
                let factor = *factors.add(c * y_next);
                for l in 0..M {
                    sum[l] = fma::<FMA>(line[l], factor, sum[l]);
                }
            }
        }
    }
    sums
}

/// The same for less than `M` by `N`.
#[inline(always)]
unsafe fn ragged<const FMA: bool, const M: usize, const N: usize>(
    k: usize,
    (x, x_step, wide): (*const f32, usize, usize),
    (y, y_step, y_next, group): (*const f32, usize, usize, usize),
) -> [[f32; M]; N] {
    let mut sums = [[0f32; M]; N];
    for p in 0..k {
        // SAFETY: the caller vouches for the extents.
        unsafe {
            let line = std::slice::from_raw_parts(x.add(p * x_step), wide);
            for (c, sum) in sums.iter_mut().enumerate().take(group) {
                let factor = *y.add(p * y_step + c * y_next);
                for (o, &x) in sum.iter_mut().zip(line) {
                    *o = fma::<FMA>(x, factor, *o);
                }
            }
        }
    }
    sums
}
