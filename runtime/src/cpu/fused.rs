//! Runs [register programs](crate::lower::program): block by block, every instruction one vectorised loop.
//!
//! A block is some rows, whole or in part, of at most about [`BLOCK`] numbers, so that its registers stay in
//! the first-level cache. Operands whose rows lie evenly spaced in memory are read where they are, and results are written
//! where they belong.

use super::simd::{self, larger, smaller};
use crate::lower::program::{Bin, Fold, Ins, NARROW, Program, Reg, Simple, Src, Then, Un, Width};
use crate::lower::view::Walk;
use std::cell::RefCell;
use std::ops::Range;

/// Numbers per block and register.
pub const BLOCK: usize = 512;

/// The products of a `Contract` for the rectangle that is being worked on.
#[derive(Clone, Copy)]
pub struct Tile {
    /// The number at the rectangle's first row and column.
    pub start: *const f32,
    /// The distance of its rows.
    pub stride: usize,
}

/// Where the buffers of a plan lie.
pub type Bases<'a> = &'a [*mut f32];

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PLACES: RefCell<Vec<Place>> = const { RefCell::new(Vec::new()) };
}

/// Where a register is: its first number, and the distance of its rows (0 if all rows are the same).
#[derive(Clone, Copy)]
struct Place {
    start: *mut f32,
    stride: usize,
}

/// Runs a program on a rectangle of its domain.
///
/// # Safety
/// Every walk of the program must stay inside its buffer, stores must not overlap with anything that another thread
/// touches, and `tile` must hold the rectangle if the program reads one.
pub unsafe fn run(program: &Program, bases: Bases, rows: Range<usize>, cols: Range<usize>, tile: Option<Tile>) {
    let width = cols.len();
    if width == 0 || rows.is_empty() {
        return;
    }
    let step_cols = if program.whole_rows || width <= BLOCK { width } else { BLOCK };
    let step_rows = (BLOCK / step_cols).max(1).min(rows.len());
    let size = (step_rows * step_cols).next_multiple_of(16);
    SCRATCH.with_borrow_mut(|scratch| {
        PLACES.with_borrow_mut(|places| {
            scratch.resize(scratch.len().max(size * program.blocks), 0.0);
            places.clear();
            let scratch = scratch.as_mut_ptr();
            let home = |b: u16, stride: usize| Place { start: scratch.wrapping_add(size * b as usize), stride };
            places.extend(program.block.iter().map(|&b| home(b, 0)));
            let mut row = rows.start;
            while row < rows.end {
                let height = step_rows.min(rows.end - row);
                let mut col = cols.start;
                while col < cols.end {
                    let wide = step_cols.min(cols.end - col);
                    let tile = tile.map(|t| Tile {
                        start: t.start.wrapping_add((row - rows.start) * t.stride + col - cols.start),
                        ..t
                    });
                    places.iter_mut().zip(&program.block).for_each(|(place, &b)| *place = home(b, wide));
                    let first = row == rows.start && col == cols.start;
                    let mut block = Block { program, bases, row, col, height, wide, tile, places, first };
                    // SAFETY: the caller's contract, restricted to a block.
                    unsafe { run_block(&mut block) };
                    col += wide;
                }
                row += height;
            }
        });
    });
}

struct Block<'a> {
    program: &'a Program,
    bases: Bases<'a>,
    row: usize,
    col: usize,
    height: usize,
    wide: usize,
    tile: Option<Tile>,
    /// Where each register is for this block.
    places: &'a mut Vec<Place>,
    /// Whether it is the first one of the rectangle: it has all the rows that a later one has, and fills steady registers.
    first: bool,
}

crate::multiversion!(fn run_block(block: &mut Block<'_>) = block_inner);

/// An operand for one instruction.
#[derive(Clone, Copy)]
enum Arg {
    Full(Place),
    Row(*const f32),
    Splat(f32),
}

impl Block<'_> {
    fn arg(&self, src: Src) -> Arg {
        match src {
            Src::Const(number) => Arg::Splat(number),
            Src::Reg(reg) => match self.program.width[reg as usize] {
                Width::Full => Arg::Full(self.places[reg as usize]),
                Width::Row => Arg::Row(self.places[reg as usize].start),
            },
        }
    }
    /// An operand of an instruction whose result is a row register: row operands are vectors then.
    fn arg_in_rows(&self, src: Src) -> Arg {
        match self.arg(src) {
            Arg::Row(p) => Arg::Full(Place { start: p.cast_mut(), stride: 0 }),
            other => other,
        }
    }
    /// The block under a walk, if its rows are contiguous and evenly spaced.
    fn direct(&self, walk: &Walk) -> Option<Place> {
        let stride = if self.height == 1 { 0 } else { walk.even(self.row, self.height)? };
        let base = self.bases[walk.buf.index()];
        (walk.col == 1).then(|| Place { start: base.wrapping_add(walk.row(self.row) + self.col), stride })
    }
    /// Lets results that are stored be computed in place.
    fn redirect_stores(&mut self) {
        if self.program.in_place {
            return;
        }
        for ins in &self.program.code {
            if let Ins::Store(Src::Reg(reg), walk) = ins
                && self.program.width[*reg as usize] == Width::Full
                && let Some(place) = self.direct(walk)
            {
                self.places[*reg as usize] = place;
            }
        }
    }
}

#[inline(always)]
unsafe fn block_inner<const FMA: bool>(block: &mut Block) {
    block.redirect_stores();
    let program = block.program;
    for ins in &program.code {
        if !block.first && ins.dst().is_some_and(|dst| program.steady[dst as usize]) {
            continue;
        }
        // SAFETY: registers have room for a block; walks are the caller's contract.
        unsafe {
            match ins {
                Ins::Load(dst, walk) => load(block, *dst, walk),
                Ins::Tile(dst) => load_tile(block, *dst),
                Ins::Un(f, dst, a) => unary::<FMA>(*f, shape(block, *dst, &[*a])),
                Ins::Bin(f, dst, a, b) => binary(*f, shape(block, *dst, &[*a, *b])),
                Ins::Two(f, g, dst, a, b, c) => two(*f, *g, shape(block, *dst, &[*a, *b, *c])),
                Ins::Select(dst, c, a, b) => select(shape(block, *dst, &[*c, *a, *b])),
                Ins::Fold(f, dst, a) => fold(block, *f, *dst, *a),
                Ins::Store(src, walk) => store(block, *src, walk),
            }
        }
    }
}

/// One instruction on one block: where the result goes, the operands, and how many rows of how many numbers.
struct Shape {
    dst: Place,
    args: [Arg; 3],
    height: usize,
    wide: usize,
}

#[inline(always)]
fn shape(block: &Block, dst: Reg, srcs: &[Src]) -> Shape {
    let mut args = [Arg::Splat(0.0); 3];
    let in_rows = block.program.width[dst as usize] == Width::Row;
    for (arg, &src) in args.iter_mut().zip(srcs) {
        *arg = if in_rows { block.arg_in_rows(src) } else { block.arg(src) };
    }
    let dst = block.places[dst as usize];
    if in_rows {
        return Shape { dst, args, height: 1, wide: block.height };
    }
    // Without gaps and row operands the block is one long row.
    let gapless = |place: Place| place.stride == block.wide;
    let flat = block.height == 1
        || gapless(dst)
            && args.iter().all(|arg| match arg {
                Arg::Full(place) => gapless(*place),
                Arg::Row(_) => false,
                Arg::Splat(_) => true,
            });
    let (height, wide) = if flat { (1, block.height * block.wide) } else { (block.height, block.wide) };
    Shape { dst, args, height, wide }
}

/// One row of an operand.
#[derive(Clone, Copy)]
enum Line<'a> {
    Many(&'a [f32]),
    One(f32),
}

impl Shape {
    #[inline(always)]
    unsafe fn line<'a>(&self, arg: usize, row: usize) -> Line<'a> {
        // SAFETY: registers and direct operands hold `height` rows of `wide` numbers at their strides.
        unsafe {
            match self.args[arg] {
                Arg::Full(p) => Line::Many(std::slice::from_raw_parts(p.start.add(row * p.stride), self.wide)),
                Arg::Row(p) => Line::One(*p.add(row)),
                Arg::Splat(number) => Line::One(number),
            }
        }
    }
    #[inline(always)]
    unsafe fn out<'a>(&self, row: usize) -> &'a mut [f32] {
        // SAFETY: as for `line`; a result never shares memory with an operand of its instruction.
        unsafe { std::slice::from_raw_parts_mut(self.dst.start.add(row * self.dst.stride), self.wide) }
    }
}

#[inline(always)]
unsafe fn map1(s: &Shape, f: impl Fn(f32) -> f32) {
    for row in 0..s.height {
        // SAFETY: see `Shape`.
        let (out, a) = unsafe { (s.out(row), s.line(0, row)) };
        match a {
            Line::Many(a) => {
                for (o, &a) in out.iter_mut().zip(a) {
                    *o = f(a);
                }
            }
            Line::One(a) => out.fill(f(a)),
        }
    }
}

#[inline(always)]
unsafe fn map2(s: &Shape, f: impl Fn(f32, f32) -> f32) {
    for row in 0..s.height {
        // SAFETY: see `Shape`.
        let (out, a, b) = unsafe { (s.out(row), s.line(0, row), s.line(1, row)) };
        match (a, b) {
            (Line::Many(a), Line::Many(b)) => {
                for ((o, &a), &b) in out.iter_mut().zip(a).zip(b) {
                    *o = f(a, b);
                }
            }
            (Line::Many(a), Line::One(b)) => {
                for (o, &a) in out.iter_mut().zip(a) {
                    *o = f(a, b);
                }
            }
            (Line::One(a), Line::Many(b)) => {
                for (o, &b) in out.iter_mut().zip(b) {
                    *o = f(a, b);
                }
            }
            (Line::One(a), Line::One(b)) => out.fill(f(a, b)),
        }
    }
}

#[inline(always)]
unsafe fn unary<const FMA: bool>(f: Un, s: Shape) {
    // SAFETY: see `Shape`.
    unsafe {
        match f {
            Un::Copy => map1(&s, |x| x),
            Un::Neg => map1(&s, |x| -x),
            Un::Abs => map1(&s, f32::abs),
            Un::Exp => map1(&s, simd::exp::<FMA>),
            Un::Log => map1(&s, simd::log::<FMA>),
            Un::Sqrt => map1(&s, f32::sqrt),
            Un::Recip => map1(&s, |x| 1.0 / x),
            Un::Erf => map1(&s, simd::erf::<FMA>),
            Un::Tanh => map1(&s, simd::tanh::<FMA>),
            Un::Sigmoid => map1(&s, simd::sigmoid::<FMA>),
            Un::Relu => map1(&s, |x| if x < 0.0 { 0.0 } else { x }),
            Un::Floor => map1(&s, f32::floor),
            Un::Ceil => map1(&s, f32::ceil),
            Un::Round => map1(&s, f32::round_ties_even),
            Un::Sign => map1(&s, |x| {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    x
                }
            }),
            Un::Not => map1(&s, |x| if x == 0.0 { 1.0 } else { 0.0 }),
            Un::IsNan => map1(&s, |x| if x.is_nan() { 1.0 } else { 0.0 }),
            Un::Sin => map1(&s, f32::sin),
            Un::Cos => map1(&s, f32::cos),
        }
    }
}

#[inline(always)]
unsafe fn binary(f: Bin, s: Shape) {
    // SAFETY: see `Shape`.
    unsafe {
        match f {
            Bin::Add => map2(&s, |a, b| a + b),
            Bin::Sub => map2(&s, |a, b| a - b),
            Bin::Mul => map2(&s, |a, b| a * b),
            Bin::Div => map2(&s, |a, b| a / b),
            Bin::Max => map2(&s, larger),
            Bin::Min => map2(&s, smaller),
            Bin::Pow => map2(&s, f32::powf),
            Bin::Less => map2(&s, |a, b| if a < b { 1.0 } else { 0.0 }),
            Bin::LessEqual => map2(&s, |a, b| if a <= b { 1.0 } else { 0.0 }),
            Bin::Equal => map2(&s, |a, b| if a == b { 1.0 } else { 0.0 }),
        }
    }
}

#[inline(always)]
unsafe fn map3(s: &Shape, f: impl Fn(f32, f32, f32) -> f32) {
    for row in 0..s.height {
        // SAFETY: see `Shape`.
        let (out, a, b, c) = unsafe { (s.out(row), s.line(0, row), s.line(1, row), s.line(2, row)) };
        match (a, b, c) {
            (Line::Many(a), Line::Many(b), Line::Many(c)) => {
                for (((o, &a), &b), &c) in out.iter_mut().zip(a).zip(b).zip(c) {
                    *o = f(a, b, c);
                }
            }
            (Line::Many(a), Line::Many(b), Line::One(c)) => {
                for ((o, &a), &b) in out.iter_mut().zip(a).zip(b) {
                    *o = f(a, b, c);
                }
            }
            (Line::Many(a), Line::One(b), Line::Many(c)) => {
                for ((o, &a), &c) in out.iter_mut().zip(a).zip(c) {
                    *o = f(a, b, c);
                }
            }
            (Line::One(a), Line::Many(b), Line::Many(c)) => {
                for ((o, &b), &c) in out.iter_mut().zip(b).zip(c) {
                    *o = f(a, b, c);
                }
            }
            (Line::Many(a), Line::One(b), Line::One(c)) => {
                for (o, &a) in out.iter_mut().zip(a) {
                    *o = f(a, b, c);
                }
            }
            (Line::One(a), Line::Many(b), Line::One(c)) => {
                for (o, &b) in out.iter_mut().zip(b) {
                    *o = f(a, b, c);
                }
            }
            (Line::One(a), Line::One(b), Line::Many(c)) => {
                for (o, &c) in out.iter_mut().zip(c) {
                    *o = f(a, b, c);
                }
            }
            (Line::One(a), Line::One(b), Line::One(c)) => out.fill(f(a, b, c)),
        }
    }
}

/// Two functions in one pass; each rounds for itself.
#[inline(always)]
unsafe fn two(f: Simple, g: Then, s: Shape) {
    // SAFETY: see `Shape`.
    unsafe {
        match (f, g) {
            (Simple::Add, Then::Add) => map3(&s, |a, b, c| (a + b) + c),
            (Simple::Add, Then::Sub) => map3(&s, |a, b, c| (a + b) - c),
            (Simple::Add, Then::SubFrom) => map3(&s, |a, b, c| c - (a + b)),
            (Simple::Add, Then::Mul) => map3(&s, |a, b, c| (a + b) * c),
            (Simple::Sub, Then::Add) => map3(&s, |a, b, c| (a - b) + c),
            (Simple::Sub, Then::Sub) => map3(&s, |a, b, c| (a - b) - c),
            (Simple::Sub, Then::SubFrom) => map3(&s, |a, b, c| c - (a - b)),
            (Simple::Sub, Then::Mul) => map3(&s, |a, b, c| (a - b) * c),
            (Simple::Mul, Then::Add) => map3(&s, |a, b, c| (a * b) + c),
            (Simple::Mul, Then::Sub) => map3(&s, |a, b, c| (a * b) - c),
            (Simple::Mul, Then::SubFrom) => map3(&s, |a, b, c| c - (a * b)),
            (Simple::Mul, Then::Mul) => map3(&s, |a, b, c| (a * b) * c),
        }
    }
}

#[inline(always)]
unsafe fn select(s: Shape) {
    for row in 0..s.height {
        // SAFETY: see `Shape`.
        let (out, c, a, b) = unsafe { (s.out(row), s.line(0, row), s.line(1, row), s.line(2, row)) };
        let at = |line: Line, i: usize| match line {
            Line::Many(x) => x[i],
            Line::One(x) => x,
        };
        match (c, a, b) {
            (Line::Many(c), Line::Many(a), Line::One(b)) => {
                for ((o, &c), &a) in out.iter_mut().zip(c).zip(a) {
                    *o = if c != 0.0 { a } else { b };
                }
            }
            (Line::Many(c), Line::One(a), Line::Many(b)) => {
                for ((o, &c), &b) in out.iter_mut().zip(c).zip(b) {
                    *o = if c != 0.0 { a } else { b };
                }
            }
            (Line::Many(c), Line::Many(a), Line::Many(b)) => {
                for (((o, &c), &a), &b) in out.iter_mut().zip(c).zip(a).zip(b) {
                    *o = if c != 0.0 { a } else { b };
                }
            }
            _ => (0..out.len()).for_each(|i| out[i] = if at(c, i) != 0.0 { at(a, i) } else { at(b, i) }),
        }
    }
}

const LANES: usize = 16;

/// Folds a line in a fixed order: 16 lanes, then a tree over them, then the rest.
#[inline(always)]
fn fold_line(line: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = line.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
unsafe fn fold(block: &Block, f: Fold, dst: Reg, src: Src) {
    let Arg::Full(a) = block.arg(src) else { return };
    for row in 0..block.height {
        // SAFETY: registers hold a block.
        unsafe {
            let line = std::slice::from_raw_parts(a.start.add(row * a.stride), block.wide);
            *block.places[dst as usize].start.add(row) = match f {
                Fold::Sum => fold_line(line, 0.0, |a, b| a + b),
                Fold::Max => fold_line(line, f32::NEG_INFINITY, larger),
                Fold::Min => fold_line(line, f32::INFINITY, smaller),
            };
        }
    }
}

#[inline(always)]
unsafe fn load(block: &mut Block, dst: Reg, walk: &Walk) {
    let base = block.bases[walk.buf.index()];
    let place = block.places[dst as usize].start;
    // SAFETY: the walk stays inside its buffer.
    unsafe {
        if walk.col == 0 {
            for i in 0..block.height {
                *place.add(i) = *base.add(walk.row(block.row + i));
            }
        } else if let Some(direct) = block.direct(walk) {
            let wide = block.wide;
            if direct.stride == 0 && block.height > 1 && wide <= NARROW && block.places[dst as usize].stride == wide {
                // The same short row everywhere: repeated, so that instructions run over the block in one go.
                let len = block.height * wide;
                std::ptr::copy_nonoverlapping(direct.start, place, wide);
                let mut done = wide;
                while done < len {
                    let more = done.min(len - done);
                    std::ptr::copy_nonoverlapping(place, place.add(done), more);
                    done += more;
                }
            } else {
                block.places[dst as usize] = direct;
            }
        } else {
            // A register that is stored may have been given another place, with other distances of its rows.
            let stride = block.places[dst as usize].stride;
            for i in 0..block.height {
                let from = base.add(walk.row(block.row + i) + block.col * walk.col);
                let to = place.add(i * stride);
                if walk.col == 1 {
                    std::ptr::copy_nonoverlapping(from, to, block.wide);
                } else {
                    (0..block.wide).for_each(|c| *to.add(c) = *from.add(c * walk.col));
                }
            }
        }
    }
}

#[inline(always)]
fn load_tile(block: &mut Block, dst: Reg) {
    let Some(tile) = block.tile else { return };
    block.places[dst as usize] = Place { start: tile.start.cast_mut(), stride: tile.stride };
}

#[inline(always)]
unsafe fn store(block: &Block, src: Src, walk: &Walk) {
    let base = block.bases[walk.buf.index()];
    let arg = block.arg(src);
    if let (Arg::Full(from), Some(to)) = (arg, block.direct(walk))
        && (block.height == 1 || from.stride == block.wide && to.stride == block.wide)
    {
        if from.start != to.start {
            // SAFETY: the walk stays inside its buffer; rows follow each other.
            unsafe { std::ptr::copy(from.start, to.start, block.height * block.wide) };
        }
        return;
    }
    for i in 0..block.height {
        // SAFETY: the walk stays inside its buffer.
        unsafe {
            let to = base.add(walk.row(block.row + i) + block.col * walk.col);
            match arg {
                Arg::Row(p) => *to = *p.add(i),
                Arg::Splat(x) => *to = x,
                Arg::Full(p) if walk.col == 1 => {
                    let from = p.start.add(i * p.stride);
                    if from != to {
                        std::ptr::copy(from, to, block.wide);
                    }
                }
                Arg::Full(p) => {
                    let from = p.start.add(i * p.stride);
                    (0..block.wide).for_each(|c| *to.add(c * walk.col) = *from.add(c));
                }
            }
        }
    }
}
