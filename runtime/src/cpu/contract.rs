//! `Contract`: a sum of (batched, strided) matrix products, cut into tiles, with a [program](crate::lower::program) as
//! epilogue that sees each tile while it is in cache.
//!
//! `C[b, i, j] = Σ_t α_t · Σ_k A_t[b, i, k] · B_t[b, k, j]`. The tiles depend on the shape only, so results do not
//! depend on the number of threads. The most common epilogues, those of a [`Tail`], happen in registers, before a result is written at
//! all. Products with few columns or a short inner dimension (adapters) run on
//! [loops of their own](super::skinny), all others on [micro-kernels](super::gemm), or on `matrixmultiply` where those do not exist. A right
//! factor that several tiles share is packed once, before them.

use super::fused::{self, Bases, Tile};
use super::gated::{self, Gated};
use super::micro::{End, Finish, Gate};
use super::patch::Patch;
use super::skinny::{self, Shape, Source, Target};
use super::{Shared, gemm, micro};
use crate::lower::chain::Chain;
use crate::lower::line_buffer::LineBuffer;
use crate::lower::program::{Ins, Program};
use crate::lower::view::{self, BufId};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// The left factor is made of windows of the image that `a` points to; then it is the only product.
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
    /// Where the result goes, if nothing is done to it but the tail.
    pub out: Option<Matrix>,
    /// What is done to it before.
    pub tail: Option<Tail>,
    /// What is done to it otherwise; its domain is `(batch · m) × n`.
    pub epilogue: Option<Program>,
    /// What need not be computed.
    pub skip: Option<Box<Skip>>,
}

/// `clamp((result + bias) · factor + more, low, high) · scale`, masked; NaN stays NaN.
#[derive(Clone, PartialEq, Debug)]
pub struct Tail {
    /// A number per column, one after the other.
    pub bias: Option<(BufId, usize)>,
    /// A number per batch: whether a layer counts for an example, and how much.
    pub factor: Option<Matrix>,
    /// A number per element; neighbours in a row lie side by side.
    pub more: Option<Matrix>,
    /// Whether that lies where the result goes.
    pub in_place: bool,
    /// What happens before the bounds.
    pub gate: Option<Gate>,
    /// Nothing is smaller.
    pub low: f32,
    /// Nothing is larger.
    pub high: f32,
    /// A number per batch and column, neighbours side by side: the same for channels.
    pub scale: Option<Matrix>,
    /// Where a number of this is not between two others, the result is 0: the gradient of a bounded activation by its result.
    pub mask: Option<(Matrix, f32, f32)>,
}

impl Tail {
    /// The matrices that it reads, with an element for each of the result.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.more.iter().chain(self.mask.iter().map(|(m, ..)| m))
    }
    /// The matrices that it reads, with one row for all rows of a batch.
    pub fn gates(&self) -> impl Iterator<Item = &Matrix> {
        self.factor.iter().chain(&self.scale)
    }
}

/// What gates leave out of a convolution. Where a number of a gate is 0, so is everything that is multiplied by it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Skip {
    /// A number per batch: if it is 0, nobody reads the result, or the sum is multiplied by 0.
    pub example: Option<Matrix>,
    /// Whether it is this sum that is multiplied by that number, and not what is made of the result.
    pub last: bool,
    /// Columns with a 0 are not computed; those that are lie side by side.
    pub columns: Option<Channels>,
    /// Channels of the image: only those without a 0 are there, side by side.
    pub inputs: Option<Channels>,
    /// A number per batch, of all of its axes: if it is 0, nobody reads the result.
    pub head: Option<Matrix>,
    /// Heads among the columns of tokens: nobody reads those with a 0; the others stay where they are.
    pub heads_made: Option<Heads>,
    /// Heads among the channels of tokens: those with a 0 are multiplied by 0.
    pub heads_read: Option<Heads>,
}

/// A number per batch and channel.
#[derive(Clone, PartialEq, Debug)]
pub struct Channels {
    /// The numbers.
    pub gate: Matrix,
    /// If more of them are not 0, all channels are there: to pick the weights of those few less would take longer.
    pub most: usize,
}

/// A number per batch and head.
#[derive(Clone, PartialEq, Debug)]
pub struct Heads {
    /// The numbers, one per column.
    pub gate: Matrix,
    /// How many neighbouring channels a head has.
    pub width: usize,
}

impl Skip {
    /// All gates.
    pub fn gates(&self) -> impl Iterator<Item = &Matrix> {
        let heads = [&self.heads_made, &self.heads_read].into_iter().flatten().map(|heads| &heads.gate);
        let channels = [&self.columns, &self.inputs].into_iter().flatten().map(|channels| &channels.gate);
        [&self.example, &self.head].into_iter().flatten().chain(channels).chain(heads)
    }
}

/// Says where the packed right factor of a product with this many columns is kept, if it is.
pub type Kept<'a> = &'a mut dyn FnMut(&Product, usize) -> Option<*const f32>;

/// Elements of a tile: two of them fit the second-level cache beside packed operands.
const TILE: usize = 48 * 1024;

/// Columns of a tile: a multiple of all panels of [`gemm`].
const WIDTH: usize = 1536;

/// The largest right factor that is packed before its tiles, in elements.
const PACKED: usize = 1 << 23;

/// A result of so few rows is cut into columns first.
const FEW: usize = 256;

/// So few examples are cut into several tasks each.
const FEW_EXAMPLES: usize = 4;

/// Tiles that a result is cut into at least, if it is large enough.
const TASKS: usize = 16;

/// Elements of the rows that a line buffer holds: a part of the second-level cache.
const LINES: usize = 128 * 1024;

/// Tasks of a line buffer: where there are few images, each is cut.
const ROLLS: usize = 4;

/// `len` cut into equal parts of at most `most`, rounded up to a multiple.
fn even(len: usize, most: usize, multiple: usize) -> usize {
    let parts = len.div_ceil(most.max(1)).max(1);
    len.div_ceil(parts).next_multiple_of(multiple).min(len).max(1)
}

impl Product {
    /// Elements of its packed right factor.
    pub fn packed_len(&self, n: usize) -> usize {
        self.patch.map_or_else(|| gemm::packed_len(self.k, n), |patch| patch.packed_len(n))
    }
    /// The number of parts in which it is packed.
    fn parts(&self, n: usize) -> usize {
        self.patch.map_or_else(|| gemm::panels(n), |patch| patch.parts(n))
    }
    /// Packs the right factor that begins at `start` on the current pool.
    ///
    /// # Safety
    /// The factor must cover its extent, `to` must hold [`Product::packed_len`] elements.
    pub unsafe fn pack(&self, start: *const f32, n: usize, to: *mut f32) {
        let (start, to) = (Address(start.cast_mut()), Address(to));
        super::each(self.parts(n), |part| {
            let (start, to) = (start.get().cast_const(), to.get());
            // SAFETY: the caller's contract; parts do not overlap.
            unsafe {
                match &self.patch {
                    Some(patch) => patch.pack(start, self.b.col, n, part, to),
                    None => gemm::pack(self.k, n, (start, self.b.row, self.b.col), part, to),
                }
            }
        });
    }
}

/// Some rows of a batch that gates may shut.
struct Task<'a> {
    skip: &'a Skip,
    /// Whether the whole batch is shut.
    shut: bool,
    bases: Bases<'a>,
    batch: usize,
    /// The number of the run.
    number: u64,
    rows: Range<usize>,
}

/// What such a task gives [`Gated`] to do.
struct Job<'a> {
    gated: Gated<'a>,
    image: *const f32,
    weights: *const f32,
    gates: [Option<gated::Channels>; 2],
    heads: [Option<gated::Heads>; 2],
    alpha: f32,
}

impl Job<'_> {
    /// # Safety
    /// As for [`Gated::run`].
    unsafe fn run(&self, add: bool, end: Option<End>) {
        let finish = Finish { alpha: self.alpha, add, end };
        // SAFETY: the caller's contract.
        unsafe {
            match self.heads {
                [None, None] => self.gated.run(self.image, self.weights, self.gates, finish),
                heads => self.gated.run_heads(self.image, self.weights, heads, finish),
            }
        }
    }
}

impl Contract {
    /// Rows and columns of a tile.
    fn tile(&self) -> (usize, usize) {
        let whole = self.epilogue.as_ref().is_some_and(|p| p.whole_rows);
        if let Some((patch, k)) = self.products.iter().find_map(|p| Some((p.patch?, p.k))) {
            let rows = patch.rows_per_task(self.n, k);
            let images: usize = self.batch.iter().product();
            if patch.is_tokens() {
                // Every task picks the weights that gates leave anew: no more than some threads need.
                let parts = if images < FEW_EXAMPLES { (self.m / 64).clamp(2, TASKS) } else { 1 };
                return (self.m.div_ceil(parts).clamp(1, FEW), self.n.max(1));
            }
            // Enough tasks for some threads where there are few images.
            let most = (patch.grid.0 * images.max(1)).div_ceil(TASKS).max(1);
            let rows = if patch.winograd { rows } else { rows.min(most) };
            return ((rows * patch.grid.1).max(1), self.n.max(1));
        }
        let batches: usize = self.batch.iter().product::<usize>().max(1);
        let mut tn = if whole || self.n <= WIDTH { self.n } else { even(self.n, WIDTH, 32) };
        let mut tm = even(self.m, (TILE / tn.max(1)).clamp(24, 4096), 8);
        // Enough tiles for some threads where the result is small: first fewer rows each, then fewer columns. With few rows the other
        // way round: the right factor is what there is to read, and then it is read once.
        let tiles = |tm: usize, tn: usize| batches * self.m.div_ceil(tm.max(1)) * self.n.div_ceil(tn.max(1));
        if self.m <= FEW && tiles(self.m, tn) < TASKS && !whole {
            tn = even(self.n, self.n.div_ceil(TASKS.div_ceil(tiles(self.m, self.n))).max(48), 32);
            tm = self.m.max(1);
        }
        // Fewer than two dozen rows each would read the right factor anew for next to nothing.
        if tiles(tm, tn) < TASKS && self.m >= 48 {
            tm = even(self.m, self.m.div_ceil(TASKS.div_ceil(tiles(self.m, tn))).max(24), 8);
        }
        if tiles(tm, tn) < TASKS && !whole {
            tn = even(self.n, self.n.div_ceil(TASKS.div_ceil(tiles(tm, self.n))).max(48), 32);
        }
        (tm, tn)
    }
    /// The buffer of the result and that of what the tail adds, if one may take the place of the other.
    pub fn exchangeable(&self) -> Vec<(BufId, BufId)> {
        // What is added after a factor cannot be there before it.
        let tail = self.tail.as_ref().filter(|tail| tail.factor.is_none());
        let more = tail.and_then(|tail| tail.more.as_ref());
        let (Some(out), Some(more)) = (&self.out, more) else { return Vec::new() };
        let same = Matrix { buf: out.buf, ..more.clone() } == *out;
        if same { vec![(out.buf, more.buf)] } else { Vec::new() }
    }
    /// The number of independent tasks.
    pub fn tasks(&self) -> usize {
        let (tm, tn) = self.tile();
        self.batch.iter().product::<usize>() * self.m.div_ceil(tm) * self.n.div_ceil(tn)
    }
    /// Whether micro-kernels read a right factor that is one for all tiles.
    pub fn packable(&self, product: &Product) -> bool {
        let (tm, tn) = self.tile();
        let (a, b) = (&product.a, &product.b);
        let one = self.batch.iter().zip(&b.batch).all(|(&dim, &stride)| dim == 1 || stride == 0);
        let shape = Shape { m: tm, n: tn.min(self.n), k: product.k };
        let out = self.out.as_ref().map_or((self.n, 1), |o| (o.row, o.col));
        let dense = skinny::way(shape, (a.row, a.col), (b.row, b.col), out).is_none() && out.1 == 1 && product.k > 0;
        product.patch.is_some() || gemm::panel() > 0 && one && dense
    }
    /// Whether a right factor is packed before its tiles.
    fn shares(&self, product: &Product) -> bool {
        let (tm, _) = self.tile();
        let tiles = self.batch.iter().product::<usize>() * self.m.div_ceil(tm);
        product.patch.is_some() || self.packable(product) && tiles > 1 && product.k * self.n <= PACKED
    }
    /// Elements that packed right factors need.
    pub fn scratch(&self) -> usize {
        let len = |p: &Product| if self.shares(p) { p.packed_len(self.n).next_multiple_of(super::LINE) } else { 0 };
        self.products.iter().map(len).sum()
    }
    /// Finds or makes the packed right factors; `used` elements of the scratch memory are taken.
    unsafe fn pack(&self, bases: Bases, scratch: Address, used: &mut usize, kept: Kept) -> Vec<Option<Address>> {
        let mut packed = Vec::with_capacity(self.products.len());
        for product in &self.products {
            let found = if self.packable(product) { kept(product, self.n) } else { None };
            if found.is_some() || !self.shares(product) {
                packed.push(found.map(|address| Address(address.cast_mut())));
                continue;
            }
            let (b, to) = (&product.b, Address(scratch.get().wrapping_add(*used)));
            *used += product.packed_len(self.n).next_multiple_of(super::LINE);
            let start = bases[b.buf.index()].wrapping_add(b.offset).cast_const();
            // SAFETY: the caller's contract.
            unsafe { product.pack(start, self.n, to.get()) };
            packed.push(Some(to));
        }
        packed
    }
    /// Runs all tasks on the current pool. `kept` says where a right factor lies packed already.
    ///
    /// # Safety
    /// All matrices must stay inside their buffers, the result must not overlap with an operand, and `scratch` must hold
    /// [`Contract::scratch`] elements.
    pub unsafe fn run(&self, bases: Bases, scratch: *mut f32, kept: Kept) {
        let (shared, scratch) = (Shared(bases), Address(scratch));
        // SAFETY: the caller's contract.
        let packed = unsafe { self.pack(bases, scratch, &mut 0, kept) };
        let number = self.number();
        super::each(self.tasks(), |task| {
            // SAFETY: the caller's contract; tasks write disjoint tiles.
            unsafe { self.task(task, number, shared.get(), &packed) };
        });
    }
    /// The number of a run, if it needs one.
    fn number(&self) -> u64 {
        static RUNS: AtomicU64 = AtomicU64::new(1);
        self.skip.as_ref().map_or(0, |_| RUNS.fetch_add(1, Ordering::Relaxed))
    }
    /// Runs one task of the run of this number. `packed` says where the packed right factor of a product is, if it is packed.
    unsafe fn task(&self, task: usize, number: u64, bases: Bases, packed: &[Option<Address>]) {
        let (tm, tn) = self.tile();
        let (down, across) = (self.m.div_ceil(tm), self.n.div_ceil(tn));
        let (batch, place) = (task / (down * across), task % (down * across));
        // All rows for some columns, then the next columns: the right factor's part stays in the cache.
        let (i, j) = (place % down * tm, place / down * tn);
        let (rows, cols) = (tm.min(self.m - i), tn.min(self.n - j));
        // SAFETY: the caller's contract.
        unsafe { self.rectangle((batch, number), (i, rows), (j, cols), bases, packed) };
    }
    /// Some rows and columns of a batch, in the run of this number.
    unsafe fn rectangle(
        &self,
        (batch, number): (usize, u64),
        (i, rows): (usize, usize),
        (j, cols): (usize, usize),
        bases: Bases,
        packed: &[Option<Address>],
    ) {
        let skip = self.skip.as_deref();
        let is_shut = |gate: &Matrix| {
            let number = bases[gate.buf.index()].wrapping_add(self.place(gate, batch));
            // SAFETY: the caller's contract; the gate has a number per batch.
            unsafe { *number == 0.0 }
        };
        let shut = skip.and_then(|skip| skip.example.as_ref()).is_some_and(is_shut);
        let unread = skip.and_then(|skip| skip.head.as_ref()).is_some_and(is_shut);
        if unread || shut && skip.is_some_and(|skip| !skip.last) {
            return;
        }
        // Other products skip examples only.
        let skip = skip.filter(|_| self.products.iter().any(|product| product.patch.is_some()));
        match (&self.out, &self.epilogue, skip) {
            (None, Some(program), Some(skip)) => {
                let task = Task { skip, shut, bases, batch, number, rows: i..i + rows };
                // SAFETY: the caller's contract.
                unsafe { self.gated_program(program, &task, packed) };
            }
            (Some(out), _, Some(skip)) => {
                let start = bases[out.buf.index()].wrapping_add(self.place(out, batch) + i * out.row);
                let task = Task { skip, shut, bases, batch, number, rows: i..i + rows };
                // SAFETY: the caller's contract.
                unsafe { self.gated(&task, packed, (start, out.row)) };
            }
            (Some(out), _, None) => {
                let start = bases[out.buf.index()].wrapping_add(self.place(out, batch) + i * out.row + j * out.col);
                let end = self.tail.as_ref().map(|tail| self.end(tail, bases, batch).at(i, j));
                // SAFETY: the caller's contract.
                unsafe { self.sum(bases, packed, batch, (i, rows), (j, cols), (start, out.row, out.col), end) };
            }
            (None, Some(epilogue), None) => with_memory(&TILE_MEMORY, rows * cols, |tile| {
                let first = batch * self.m + i;
                // SAFETY: the tile has room for the rectangle; the rest is the caller's contract.
                unsafe {
                    self.sum(bases, packed, batch, (i, rows), (j, cols), (tile, cols, 1), None);
                    let tile = Tile { start: tile, stride: cols };
                    fused::run(epilogue, bases, first..first + rows, j..j + cols, Some(tile));
                }
            }),
            (None, None, _) => {}
        }
    }
    /// The tail of the results of a batch. Its matrices must lie inside of their buffers.
    fn end(&self, tail: &Tail, bases: Bases, batch: usize) -> End {
        let at = |buf: BufId, place: usize| bases[buf.index()].wrapping_add(place).cast_const();
        let bias = tail.bias.map_or(std::ptr::null(), |(buf, offset)| at(buf, offset));
        let rows = |m: &Matrix| (at(m.buf, self.place(m, batch)), m.row);
        let none = (std::ptr::null(), 0);
        let more = tail.more.as_ref().filter(|_| !tail.in_place).map_or(none, rows);
        let (mask, above, below) = match &tail.mask {
            Some((matrix, above, below)) => (rows(matrix), *above, *below),
            None => (none, 0.0, 0.0),
        };
        let still = |m: &Matrix| at(m.buf, self.place(m, batch));
        // SAFETY: the caller's contract: the matrix has a number for this batch.
        let factor = tail.factor.as_ref().map_or(1.0, |m| unsafe { *still(m) });
        let scale = tail.scale.as_ref().map_or(std::ptr::null(), still);
        End { bias, factor, more, gate: tail.gate, low: tail.low, high: tail.high, scale, mask, above, below }
    }
    fn place(&self, matrix: &Matrix, batch: usize) -> usize {
        matrix.offset + view::place(batch, self.batch.iter().copied().zip(matrix.batch.iter().copied()))
    }
    /// A convolution, whose weights are packed, without what gates shut. `out`: where its first place's result begins, and the distance of places.
    fn job<'a>(&'a self, task: &Task, packed: &[Option<Address>], out: (*mut f32, usize)) -> Option<Job<'a>> {
        let ([product], &[Some(weights)]) = (self.products.as_slice(), packed) else { return None };
        let patch = product.patch.as_ref()?;
        let at = |m: &Matrix| task.bases[m.buf.index()].wrapping_add(self.place(m, task.batch)).cast_const();
        let places = task.rows.start / patch.grid.1..task.rows.end / patch.grid.1;
        Some(Job {
            gated: Gated { patch, n: self.n, places, out, shut: task.shut, run: task.number },
            image: at(&product.a),
            weights: weights.get().cast_const(),
            gates: [&task.skip.inputs, &task.skip.columns].map(|channels| {
                channels.as_ref().map(|channels| gated::Channels { gate: at(&channels.gate), most: channels.most })
            }),
            heads: [&task.skip.heads_read, &task.skip.heads_made].map(|heads| {
                heads.as_ref().map(|heads| gated::Heads {
                    gate: at(&heads.gate),
                    apart: heads.gate.col,
                    width: heads.width,
                })
            }),
            alpha: product.alpha,
        })
    }
    /// Some rows of places of a convolution, all columns, without what is shut.
    unsafe fn gated(&self, task: &Task, packed: &[Option<Address>], out: (*mut f32, usize)) {
        let Some(job) = self.job(task, packed, out) else { return };
        let end = self.tail.as_ref().map(|tail| self.end(tail, task.bases, task.batch).at(task.rows.start, 0));
        let add = self.tail.as_ref().is_some_and(|tail| tail.in_place);
        // SAFETY: the caller's contract; gates have a number per batch, or per batch and column.
        unsafe { job.run(add, end) };
    }
    /// The same with a program that follows: over the columns that are left, side by side.
    unsafe fn gated_program(&self, program: &Program, task: &Task, packed: &[Option<Address>]) {
        let (bases, rows) = (task.bases, task.rows.len());
        let first = task.batch * self.m + task.rows.start;
        with_memory(&TILE_MEMORY, rows * self.n, |tile| {
            let Some(job) = self.job(task, packed, (tile, self.n)) else { return };
            let read = Tile { start: tile.cast_const(), stride: self.n };
            // SAFETY: the caller's contract; the tile has room for all columns, gates have a number per column.
            unsafe {
                job.run(false, None);
                let Some(gate) = job.gates[1] else {
                    return fused::run(program, bases, first..first + rows, 0..self.n, Some(read));
                };
                let mut open = Vec::new();
                gate.open(self.n, &mut open);
                if open.len() == self.n {
                    return fused::run(program, bases, first..first + rows, 0..self.n, Some(read));
                }
                // What has a number per column is copied: its buffer begins where the copy does.
                let mut moved = bases.to_vec();
                let mut copies = Vec::new();
                for ins in &program.code {
                    let Ins::Load(_, walk) = ins else { continue };
                    if walk.col == 0 {
                        continue;
                    }
                    let (from, row) = (bases[walk.buf.index()].cast_const(), walk.row(first));
                    let mut copy: Vec<f32> = open.iter().map(|&k| *from.add(row + k as usize)).collect();
                    // For the last vector.
                    copy.resize(copy.len() + super::LINE, 0.0);
                    moved[walk.buf.index()] = copy.as_mut_ptr().wrapping_sub(row);
                    copies.push(copy);
                }
                fused::run(program, &moved, first..first + rows, 0..open.len(), Some(read));
            }
        });
    }
    /// The sum of products for one rectangle.
    unsafe fn sum(
        &self,
        bases: Bases,
        packed: &[Option<Address>],
        batch: usize,
        (i, rows): (usize, usize),
        (j, cols): (usize, usize),
        out: Target,
        end: Option<End>,
    ) {
        for (t, product) in self.products.iter().enumerate() {
            let (a, b) = (&product.a, &product.b);
            let pa = bases[a.buf.index()].wrapping_add(self.place(a, batch) + i * a.row).cast_const();
            let shape = Shape { m: rows, n: cols, k: product.k };
            let left = (pa, a.row, a.col);
            let end = end.filter(|_| t + 1 == self.products.len());
            let onto = self.tail.as_ref().is_some_and(|tail| tail.in_place);
            let finish = Finish { alpha: product.alpha, add: t > 0 || onto, end };
            let start = bases[b.buf.index()].wrapping_add(self.place(b, batch)).cast_const();
            match (&product.patch, packed[t]) {
                (None, Some(panels)) => {
                    let right = (panels.get().cast_const(), self.n, j);
                    // SAFETY: the caller's contract; tiles begin at panels.
                    unsafe { gemm::multiply(shape, left, right, out, &finish) };
                }
                // SAFETY: the caller's contract.
                (None, None) => unsafe {
                    multiply(shape, left, (start.wrapping_add(j * b.col), b.row, b.col), out, &finish);
                },
                (Some(patch), Some(weights)) => {
                    let rows = i / patch.grid.1..(i + rows) / patch.grid.1;
                    let group = batch % patch.groups.0 * patch.group_len(self.n);
                    let weights = weights.get().cast_const().wrapping_add(group);
                    with_memory(&PATCH_MEMORY, patch.memory(&rows), |memory| {
                        // SAFETY: the memory has room for the area; tiles are whole rows of places.
                        unsafe { patch.run(pa, weights, self.n, rows, memory, (out.0, out.1), &finish) };
                    });
                }
                (Some(_), None) => {}
            }
        }
    }
}

/// Runs a chain on the current pool: see [`crate::lower::chain`].
///
/// # Safety
/// As for [`Contract::run`] of every member, with scratch memory for all; and in each block a member reads of the results of those
/// before it only what they made in that block.
pub unsafe fn run_chain(chain: &Chain, bases: Bases, scratch: *mut f32, kept: Kept) {
    let (shared, scratch) = (Shared(bases), Address(scratch));
    let mut used = 0;
    // SAFETY: the caller's contract.
    let mut pack = |member: &Contract| unsafe { member.pack(bases, scratch, &mut used, kept) };
    let packed: Vec<Vec<Option<Address>>> = chain.members.iter().map(&mut pack).collect();
    let blocks = chain.blocks();
    let rounded = |len: usize| len.next_multiple_of(super::LINE);
    let local: usize = chain.locals.iter().map(|l| rounded(l.len)).sum();
    super::each(blocks, |block| {
        let mut bases = shared.get().to_vec();
        with_memory(&LOCAL_MEMORY, local, |memory| {
            let mut start = memory;
            for local in &chain.locals {
                // The members address the block's part of the buffer.
                bases[local.buf.index()] = start.wrapping_sub(block * local.len);
                start = start.wrapping_add(rounded(local.len));
            }
            for (member, packed) in chain.members.iter().zip(&packed) {
                let tasks = member.tasks() / blocks;
                // SAFETY: the caller's contract.
                (0..tasks).for_each(|t| unsafe { member.task(block * tasks + t, 0, &bases, packed) });
            }
        });
    });
}

/// Runs a line buffer on the current pool: see [`crate::lower::line_buffer`].
///
/// # Safety
/// As for [`Contract::run`] of both, with scratch memory for both, the image aside.
pub unsafe fn run_line_buffer(both: &LineBuffer, bases: Bases, scratch: *mut f32, kept: Kept) {
    let (shared, scratch) = (Shared(bases), Address(scratch));
    let mut used = 0;
    // SAFETY: the caller's contract.
    let packed = both.contracts().map(|contract| unsafe { contract.pack(bases, scratch, &mut used, kept) });
    let numbers = both.contracts().map(Contract::number);
    let Some(patch) = both.windows.products.first().and_then(|p| p.patch) else { return };
    let images: usize = both.windows.batch.iter().product();
    let tasks = ROLLS.div_ceil(images.max(1)).min(patch.grid.0);
    let each = patch.grid.0.div_ceil(tasks.max(1)).max(1);
    let parts = patch.grid.0.div_ceil(each);
    super::each(images * parts, |task| {
        let (image, first) = (task / parts, task % parts * each);
        let mut bases = shared.get().to_vec();
        // SAFETY: the caller's contract; tasks write disjoint rows.
        unsafe { roll(both, &patch, (image, numbers), first..(first + each).min(patch.grid.0), &mut bases, &packed) };
    });
}

/// Some rows of the places of an image, in the runs of these numbers.
unsafe fn roll(
    both: &LineBuffer,
    patch: &Patch,
    (image, numbers): (usize, [u64; 2]),
    places: Range<usize>,
    bases: &mut [*mut f32],
    [making, reading]: &[Vec<Option<Address>>; 2],
) {
    let (maker, windows) = (&both.maker, &both.windows);
    let (high, wide) = patch.image;
    let line = wide * patch.channels;
    let (batch, start) = if maker.m == high * wide { (image, 0) } else { (0, image * high) };
    let width = maker.tile().1;
    let at_once = patch.places_of((LINES / line.max(1)).max(1)).min(places.len()).max(1);
    let step = |first: usize| first..(first + at_once).min(places.end);
    let most = places.clone().step_by(at_once).map(|first| patch.lines(&step(first)).len()).max().unwrap_or(0);
    with_memory(&LINE_MEMORY, most * line, |memory| {
        let mut there = 0..0;
        for first in places.clone().step_by(at_once) {
            let rows = step(first);
            let wanted = patch.lines(&rows);
            // SAFETY: the memory has room for the rows that are wanted at once; both contracts stay inside the image's rows.
            unsafe {
                let kept = wanted.start.max(there.start)..there.end.max(wanted.start);
                if kept.start > there.start && !kept.is_empty() {
                    let from = memory.add((kept.start - there.start) * line);
                    std::ptr::copy(from, memory, kept.len() * line);
                }
                there = wanted.start..wanted.end;
                bases[both.buf.index()] = memory.wrapping_sub((image * high + there.start) * line);
                let fresh = kept.end..there.end;
                if !fresh.is_empty() {
                    let pixels = ((start + fresh.start) * wide, fresh.len() * wide);
                    for j in (0..maker.n).step_by(width) {
                        maker.rectangle((batch, numbers[0]), pixels, (j, width.min(maker.n - j)), bases, making);
                    }
                }
                let pixels = (rows.start * patch.grid.1, rows.len() * patch.grid.1);
                windows.rectangle((image, numbers[1]), pixels, (0, windows.n), bases, reading);
            }
        }
    });
}

/// An address that tasks share.
#[derive(Clone, Copy)]
pub(crate) struct Address(pub *mut f32);

// SAFETY: tasks write disjoint places behind it.
unsafe impl Sync for Address {}
// SAFETY: as above.
unsafe impl Send for Address {}

impl Address {
    /// The address.
    pub fn get(self) -> *mut f32 {
        self.0
    }
}

/// `A · B`, finished, on this thread, by what is fastest for the shape.
unsafe fn multiply(s: Shape, a: Source, b: Source, out: Target, finish: &Finish) {
    // SAFETY: the caller vouches for the extents.
    unsafe {
        let way = skinny::way(s, (a.1, a.2), (b.1, b.2), (out.1, out.2));
        if way.is_none() && out.2 == 1 && s.k > 0 && gemm::product(s, a, b, out, finish) {
            return;
        }
        match way {
            Some(way) => skinny::product(way, s, a, b, out, finish.alpha, finish.add),
            None => plain(s, a, b, out, finish),
        }
        if let Some(end) = finish.end {
            micro::end(s.m, s.n, (out.0, out.1), &end);
        }
    }
}

/// The same where columns of the result are no neighbours, or without micro-kernels; without the end.
unsafe fn plain(s: Shape, a: Source, b: Source, out: Target, finish: &Finish) {
    let flip = |(start, row, col): Source| (start, col, row);
    // SAFETY: the caller vouches for the extents.
    unsafe {
        if out.1 == 1 && s.k > 0 {
            // (A · B)ᵀ = Bᵀ · Aᵀ
            let (flipped, target) = (Shape { m: s.n, n: s.m, k: s.k }, (out.0, out.2, out.1));
            if gemm::product(flipped, flip(b), flip(a), target, &Finish { end: None, ..*finish }) {
                return;
            }
        }
        general(s, a, b, out, finish.alpha, finish.add);
    }
}

/// The same by `matrixmultiply`.
unsafe fn general(s: Shape, a: Source, b: Source, out: Target, alpha: f32, add: bool) {
    let step = |stride: usize| stride as isize;
    let beta = if add { 1.0 } else { 0.0 };
    let (a_steps, b_steps, out_steps) = ((step(a.1), step(a.2)), (step(b.1), step(b.2)), (step(out.1), step(out.2)));
    // SAFETY: the caller vouches for the extents. What beta is 0 for is not read.
    unsafe {
        matrixmultiply::sgemm(
            s.m,
            s.k,
            s.n,
            alpha,
            a.0,
            a_steps.0,
            a_steps.1,
            b.0,
            b_steps.0,
            b_steps.1,
            beta,
            out.0,
            out_steps.0,
            out_steps.1,
        );
    }
}

thread_local! {
    static LINE_MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static LOCAL_MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static TILE_MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PATCH_MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_memory(memory: &'static std::thread::LocalKey<RefCell<Vec<f32>>>, len: usize, run: impl FnOnce(*mut f32)) {
    memory.with_borrow_mut(|memory| {
        memory.resize(memory.len().max(len), 0.0);
        run(memory.as_mut_ptr());
    });
}
