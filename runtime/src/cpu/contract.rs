//! `Contract`: a sum of (batched, strided) matrix products, cut into tiles, with a [program](crate::lower::program) as
//! epilogue that sees each tile while it is in cache.
//!
//! `C[b, i, j] = Σ_t α_t · Σ_k A_t[b, i, k] · B_t[b, k, j]`. The tiles depend on the shape only, so results do not
//! depend on the number of threads. Large products run on `faer`; products with few columns or a short inner
//! dimension (adapters) on loops of their own.

use super::fused::{self, Bases, Tile};
use super::patch::Patch;
use super::skinny;
use crate::lower::program::Program;
use crate::lower::view::BufId;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use std::cell::RefCell;

/// One batched matrix in memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Matrix {
    /// Its buffer.
    pub buf: BufId,
    /// Where it begins.
    pub offset: usize,
    /// A stride per batch axis.
    pub batch: Vec<usize>,
    /// The distance of rows.
    pub row: usize,
    /// The distance of columns.
    pub col: usize,
}

/// One product of the sum.
#[derive(Clone, PartialEq, Debug)]
pub struct Product {
    /// The left factor, `m × k`.
    pub a: Matrix,
    /// The right factor, `k × n`.
    pub b: Matrix,
    /// The inner dimension.
    pub k: usize,
    /// What the product is multiplied by.
    pub alpha: f32,
    /// The right factor is made of patches of the image that `b` points to.
    pub patch: Option<Patch>,
}

/// See the [module](self).
#[derive(Clone, PartialEq, Debug)]
pub struct Contract {
    /// The batch axes.
    pub batch: Vec<usize>,
    /// Rows of a result.
    pub m: usize,
    /// Columns of a result.
    pub n: usize,
    /// The sum.
    pub products: Vec<Product>,
    /// Where the result goes, if nothing is done to it.
    pub out: Option<Matrix>,
    /// What is done to it otherwise; its domain is `(batch · m) × n`.
    pub epilogue: Option<Program>,
}

/// Elements of a tile: two of them fit the second-level cache beside packed operands.
const TILE: usize = 96 * 1024;

/// Columns of a tile.
const WIDTH: usize = 768;

/// Tiles that a result is cut into at least, if it is large enough.
const TASKS: usize = 8;

/// `len` cut into equal parts of at most `most`, rounded up to a multiple.
fn even(len: usize, most: usize, multiple: usize) -> usize {
    let parts = len.div_ceil(most.max(1)).max(1);
    len.div_ceil(parts).next_multiple_of(multiple).min(len).max(1)
}

/// Elements of a tile of patches.
const PATCHES: usize = 96 * 1024;

impl Contract {
    /// Rows and columns of a tile.
    fn tile(&self) -> (usize, usize) {
        let whole = self.epilogue.as_ref().is_some_and(|p| p.whole_rows);
        if let Some(longest) = self.products.iter().filter(|p| p.patch.is_some()).map(|p| p.k).max() {
            // Patches are made once per tile, so tiles span all rows.
            let tn = if whole { self.n } else { (PATCHES / longest.max(1)).next_multiple_of(16).clamp(16, 1024) };
            return (self.m.max(1), tn.clamp(1, self.n.max(1)));
        }
        let batches: usize = self.batch.iter().product::<usize>().max(1);
        let mut tn = if whole || self.n <= WIDTH { self.n } else { even(self.n, WIDTH, 16) };
        let mut tm = even(self.m, (TILE / tn.max(1)).clamp(24, 4096), 8);
        // Enough tiles for some threads where the result is small: first fewer rows each, then fewer columns.
        let tiles = |tm: usize, tn: usize| batches * self.m.div_ceil(tm.max(1)) * self.n.div_ceil(tn.max(1));
        if tiles(tm, tn) < TASKS {
            tm = even(self.m, self.m.div_ceil(TASKS.div_ceil(tiles(self.m, tn))).max(24), 8);
        }
        if tiles(tm, tn) < TASKS && !whole {
            tn = even(self.n, self.n.div_ceil(TASKS.div_ceil(tiles(tm, self.n))).max(48), 16);
        }
        (tm, tn)
    }
    /// The number of independent tasks.
    pub fn tasks(&self) -> usize {
        let (tm, tn) = self.tile();
        self.batch.iter().product::<usize>() * self.m.div_ceil(tm) * self.n.div_ceil(tn)
    }
    /// Runs one task.
    ///
    /// # Safety
    /// All matrices must stay inside their buffers, and the result must not overlap with an operand.
    pub unsafe fn run(&self, task: usize, bases: Bases) {
        let (tm, tn) = self.tile();
        let (down, across) = (self.m.div_ceil(tm), self.n.div_ceil(tn));
        let (batch, place) = (task / (down * across), task % (down * across));
        let (i, j) = (place / across * tm, place % across * tn);
        let (rows, cols) = (tm.min(self.m - i), tn.min(self.n - j));
        match (&self.out, &self.epilogue) {
            (Some(out), _) => {
                let start = bases[out.buf.index()].wrapping_add(self.place(out, batch) + i * out.row + j * out.col);
                // SAFETY: the caller's contract.
                unsafe { self.sum(bases, batch, (i, rows), (j, cols), start, out.row, out.col) };
            }
            (None, Some(epilogue)) => with_memory(&TILE_MEMORY, rows * cols, |tile| {
                let first = batch * self.m + i;
                // SAFETY: the tile has room for the rectangle; the rest is the caller's contract.
                unsafe {
                    self.sum(bases, batch, (i, rows), (j, cols), tile, cols, 1);
                    let tile = Tile { start: tile, stride: cols };
                    fused::run(epilogue, bases, first..first + rows, j..j + cols, Some(tile));
                }
            }),
            (None, None) => {}
        }
    }
    fn place(&self, matrix: &Matrix, batch: usize) -> usize {
        let (mut rest, mut place) = (batch, matrix.offset);
        for (&dim, &stride) in self.batch.iter().zip(&matrix.batch).rev() {
            place += rest % dim * stride;
            rest /= dim;
        }
        place
    }
    /// The sum of products for one rectangle, written at `out`.
    unsafe fn sum(
        &self,
        bases: Bases,
        batch: usize,
        (i, rows): (usize, usize),
        (j, cols): (usize, usize),
        out: *mut f32,
        row: usize,
        col: usize,
    ) {
        for (t, product) in self.products.iter().enumerate() {
            let (a, b) = (&product.a, &product.b);
            let pa = bases[a.buf.index()].wrapping_add(self.place(a, batch) + i * a.row);
            let shape = skinny::Shape { m: rows, n: cols, k: product.k };
            let (left, target) = ((pa.cast_const(), a.row, a.col), (out, row, col));
            let multiply = |right: Source| {
                // SAFETY: the caller's contract.
                unsafe {
                    if !skinny::product(shape, left, right, target, product.alpha, t > 0) {
                        general(shape, left, right, target, product.alpha, t > 0);
                    }
                }
            };
            let start = bases[b.buf.index()].wrapping_add(self.place(b, batch)).cast_const();
            match &product.patch {
                None => multiply((start.wrapping_add(j * b.col), b.row, b.col)),
                Some(patch) => with_memory(&PATCH_MEMORY, product.k * cols, |patches| {
                    let (all, some) = (0..product.k, j..j + cols);
                    let (taps, places) = if patch.taps_across { (some, all) } else { (all, some) };
                    let (down, across) = if patch.taps_across { (1, product.k) } else { (cols, 1) };
                    // SAFETY: the memory has room for the tile.
                    unsafe { patch.fill(start, taps, places, patches) };
                    multiply((patches.cast_const(), down, across));
                }),
            }
        }
    }
}

type Source = (*const f32, usize, usize);

/// `out (+)= α · A · B` by `faer`, on this thread.
unsafe fn general(s: skinny::Shape, a: Source, b: Source, out: (*mut f32, usize, usize), alpha: f32, add: bool) {
    let step = |stride: usize| stride as isize;
    // SAFETY: the caller vouches for the extents.
    unsafe {
        let left = MatRef::from_raw_parts(a.0, s.m, s.k, step(a.1), step(a.2));
        let right = MatRef::from_raw_parts(b.0, s.k, s.n, step(b.1), step(b.2));
        let target = MatMut::from_raw_parts_mut(out.0, s.m, s.n, step(out.1), step(out.2));
        let accum = if add { Accum::Add } else { Accum::Replace };
        matmul(target, accum, left, right, alpha, Par::Seq);
    }
}

thread_local! {
    static TILE_MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PATCH_MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_memory(memory: &'static std::thread::LocalKey<RefCell<Vec<f32>>>, len: usize, run: impl FnOnce(*mut f32)) {
    memory.with_borrow_mut(|memory| {
        memory.resize(memory.len().max(len), 0.0);
        run(memory.as_mut_ptr());
    });
}
