//! The micro-kernels against sums in `f64`: odd shapes, all layouts, with and without packing, for every instruction set that this
//! machine has.

use sartor_ir::rng::Draw;
use sartor_runtime::cpu::gemm;
use sartor_runtime::cpu::micro::{End, Finish, Gate};
use sartor_runtime::cpu::simd::{self, Level};
use sartor_runtime::cpu::skinny::Shape;

struct Matrix {
    data: Vec<f32>,
    row: usize,
    col: usize,
}

impl Matrix {
    /// Random numbers, row by row, or column by column, with some space between.
    fn new(draw: &mut Draw, rows: usize, cols: usize, by_column: bool, space: usize) -> Matrix {
        let (outer, inner) = if by_column { (cols, rows) } else { (rows, cols) };
        let pitch = inner + space;
        let tensor = draw.tensor(&[outer * pitch], -1.0, 1.0);
        let data = tensor.to_f64s().unwrap().into_iter().map(|x| x as f32).collect();
        let (row, col) = if by_column { (1, pitch) } else { (pitch, 1) };
        Matrix { data, row, col }
    }
    fn at(&self, i: usize, j: usize) -> f64 {
        f64::from(self.data[i * self.row + j * self.col])
    }
    fn source(&self) -> (*const f32, usize, usize) {
        (self.data.as_ptr(), self.row, self.col)
    }
}

const GATE: Gate = Gate { scale: 0.5, shift: 0.25, low: 0.0, high: 1.0, factor: 0.75 };

fn check(draw: &mut Draw, s: Shape, layout: usize) {
    let (left, right, add) = (layout & 1 != 0, layout & 2 != 0, layout & 4 != 0);
    let (has_end, has_bias, has_more) = (layout & 16 != 0, layout & 32 != 0, layout & 64 != 0);
    let space = if layout & 8 != 0 { 5 } else { 0 };
    let a = Matrix::new(draw, s.m, s.k, left, space);
    let b = Matrix::new(draw, s.k, s.n, right, space);
    let mut out = Matrix::new(draw, s.m, s.n, false, space);
    let before: Vec<f64> = out.data.iter().map(|&x| f64::from(x)).collect();
    let target = (out.data.as_mut_ptr(), out.row, out.col);
    let (bias, more) = (Matrix::new(draw, 1, s.n, false, 0), Matrix::new(draw, s.m, s.n, false, space));
    let (low, high) = (-0.25, if layout & 8 != 0 { 0.75 } else { f32::INFINITY });
    let or_null = |wanted: bool, from: &Matrix| if wanted { from.data.as_ptr() } else { std::ptr::null() };
    let mask = Matrix::new(draw, s.m, s.n, false, space);
    let scales = Matrix::new(draw, 1, s.n, false, 0);
    let (factor, has_scale) = (if layout & 40 == 8 { 0.5 } else { 1.0 }, layout & 20 == 20);
    let end = End {
        bias: or_null(has_bias, &bias),
        factor,
        more: (or_null(has_more, &more), more.row),
        gate: (layout & 6 == 6).then_some(GATE),
        low,
        high,
        scale: or_null(has_scale, &scales),
        mask: (or_null(has_bias != has_more, &mask), mask.row),
        above: -0.5,
        below: 0.25,
    };
    let finish = Finish { alpha: 0.5, add, end: has_end.then_some(end) };
    // SAFETY: the matrices have the extents that the shape says.
    let done = unsafe { gemm::product(s, a.source(), b.source(), target, &finish) };
    assert!(done, "no kernel for {s:?}");
    for place in 0..out.data.len() {
        let (i, j) = (place / out.row, place % out.row);
        let sum: f64 = (0..s.k).map(|p| a.at(i, p) * b.at(p, j.min(s.n - 1))).sum();
        let mut wanted = 0.5 * sum + if add { before[place] } else { 0.0 };
        if has_end {
            wanted += if has_bias { bias.at(0, j.min(s.n - 1)) } else { 0.0 };
            wanted *= f64::from(factor);
            wanted += if has_more { more.at(i.min(s.m - 1), j.min(s.n - 1)) } else { 0.0 };
            if layout & 6 == 6 {
                wanted *= (0.5 * wanted + 0.25).clamp(0.0, 1.0) * 0.75;
            }
            wanted = wanted.max(f64::from(low)).min(f64::from(high));
            wanted *= if has_scale { scales.at(0, j.min(s.n - 1)) } else { 1.0 };
            let seen = mask.at(i.min(s.m - 1), j.min(s.n - 1));
            if has_bias != has_more && !(-0.5 < seen && seen < 0.25) {
                wanted = 0.0;
            }
        }
        if j >= s.n {
            wanted = before[place];
        }
        let found = f64::from(out.data[place]);
        // A sum of k terms in f32, each at most 1.
        let tolerance = 1e-7 * (s.k as f64 + 4.0);
        assert!((found - wanted).abs() <= tolerance, "{s:?}, layout {layout}: [{i}, {j}] is {found}, not {wanted}");
    }
}

fn check_level(level: Level) {
    simd::limit(level);
    if simd::level() != level {
        println!("this machine has no {level:?}");
        return;
    }
    let mut draw = Draw::new(11, "gemm");
    let sizes = [1, 2, 3, 7, 12, 13, 16, 17, 31, 32, 33, 50, 193];
    for m in sizes {
        for n in sizes {
            let k = *draw.pick(&[1, 3, 17, 64, 383, 384, 385, 800]);
            let layout = draw.int(0, 127) as usize;
            check(&mut draw, Shape { m, n, k }, layout);
        }
    }
    for layout in 0..128 {
        check(&mut draw, Shape { m: 200, n: 70, k: 400 }, layout);
    }
    // Rows a multiple of the page size apart.
    check(&mut draw, Shape { m: 25, n: 40, k: 1024 }, 0);
}

#[test]
fn avx512_kernels_equal_sums_in_f64() {
    check_level(Level::Avx512);
}

#[test]
fn avx2_kernels_equal_sums_in_f64() {
    check_level(Level::Avx2);
}

/// NaN is neither too small nor too large.
#[test]
fn bounds_keep_nan() {
    if gemm::panel() == 0 {
        return;
    }
    let s = Shape { m: 2, n: 19, k: 1 };
    let (a, b, mut out) = ([f32::NAN, 2.0], [1f32; 19], [0f32; 38]);
    let none = (std::ptr::null(), 0);
    let end = End {
        bias: std::ptr::null(),
        factor: 1.0,
        more: none,
        gate: None,
        low: 0.0,
        high: 1.0,
        scale: std::ptr::null(),
        mask: none,
        above: 0.0,
        below: 0.0,
    };
    let finish = Finish { end: Some(end), ..Finish::PLAIN };
    // SAFETY: the arrays have the extents of the shape.
    unsafe { gemm::product(s, (a.as_ptr(), 1, 1), (b.as_ptr(), 19, 1), (out.as_mut_ptr(), 19, 1), &finish) };
    assert!(out[..19].iter().all(|x| x.is_nan()) && out[19..] == [1.0; 19], "{out:?}");
}

/// Bits do not depend on how a result is cut into rows, columns and calls.
#[test]
fn tiles_give_the_bits_of_the_whole() {
    if gemm::panel() == 0 {
        return;
    }
    let mut draw = Draw::new(12, "tiles");
    let s = Shape { m: 61, n: 96, k: 500 };
    let a = Matrix::new(&mut draw, s.m, s.k, false, 0);
    let b = Matrix::new(&mut draw, s.k, s.n, false, 0);
    let (mut whole, mut tiles) = (vec![0f32; s.m * s.n], vec![0f32; s.m * s.n]);
    let mut packed = vec![0f32; gemm::packed_len(s.k, s.n)];
    // SAFETY: the matrices have the extents that the shapes say.
    unsafe {
        (0..gemm::panels(s.n)).for_each(|i| gemm::pack(s.k, s.n, b.source(), i, packed.as_mut_ptr()));
        gemm::multiply(s, a.source(), (packed.as_ptr(), s.n, 0), (whole.as_mut_ptr(), s.n, 1), &Finish::PLAIN);
        for (first, rows) in [(0, 1), (1, 20), (21, 40)] {
            for (j, n) in [(0, 32), (32, 64)] {
                let part = Shape { m: rows, n, k: s.k };
                let left = (a.data.as_ptr().add(first * s.k), s.k, 1);
                let target = (tiles.as_mut_ptr().add(first * s.n + j), s.n, 1);
                gemm::multiply(part, left, (packed.as_ptr(), s.n, j), target, &Finish::PLAIN);
            }
        }
    }
    assert_eq!(whole, tiles);
}
