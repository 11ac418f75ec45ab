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

/// What happens to sums on their way to the result: `low ≤ result + α · sum + bias + more ≤ high`, masked.
#[derive(Clone, Copy)]
pub struct Finish {
    /// What sums are multiplied by.
    pub alpha: f32,
    /// Whether they are added to what is there.
    pub add: bool,
    /// What is done to them then.
    pub end: Option<End>,
}

/// `y · clamp(scale · y + shift, low, high) · factor`: hard swish, however it is written.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gate {
    /// See above.
    pub scale: f32,
    /// See above.
    pub shift: f32,
    /// See above.
    pub low: f32,
    /// See above.
    pub high: f32,
    /// See above.
    pub factor: f32,
}

/// The last thing that happens to a result. NaN stays NaN.
#[derive(Clone, Copy)]
pub struct End {
    /// A number per column, or null.
    pub bias: *const f32,
    /// What the sum and the bias are multiplied by.
    pub factor: f32,
    /// A number per element, or null; and the distance of its rows.
    pub more: (*const f32, usize),
    /// What happens before the bounds.
    pub gate: Option<Gate>,
    /// Nothing is smaller.
    pub low: f32,
    /// Nothing is larger; after `low`.
    pub high: f32,
    /// What is multiplied then: a number per column, or null.
    pub scale: *const f32,
    /// Numbers per element, or null, and the distance of their rows: where one is not between `above` and `below`, the result is 0.
    pub mask: (*const f32, usize),
    /// See `mask`.
    pub above: f32,
    /// See `mask`.
    pub below: f32,
}

impl Finish {
    /// Sums as they are.
    pub const PLAIN: Finish = Finish { alpha: 1.0, add: false, end: None };

    /// The same, some rows and columns further on.
    #[inline(always)]
    pub fn at(self, row: usize, col: usize) -> Finish {
        Finish { end: self.end.map(|end| end.at(row, col)), ..self }
    }
}

impl Finish {
    /// Whether sums are results.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.alpha == 1.0 && !self.add && self.end.is_none()
    }
    /// What is done to sums, if that is a bias, bounds and a scale.
    #[inline(always)]
    fn bounded(&self) -> Option<&End> {
        let plain = |end: &&End| end.more.0.is_null() && end.gate.is_none() && end.mask.0.is_null();
        let simple = |end: &&End| plain(end) && end.factor == 1.0;
        self.end.as_ref().filter(simple).filter(|_| self.alpha == 1.0 && !self.add)
    }
}

impl End {
    /// The same, some rows and columns further on.
    #[inline(always)]
    pub fn at(self, row: usize, col: usize) -> End {
        let by = |start: *const f32, count: usize| if start.is_null() { start } else { start.wrapping_add(count) };
        let rows = |(start, pitch): (*const f32, usize)| (by(start, row * pitch + col), pitch);
        End {
            bias: by(self.bias, col),
            more: rows(self.more),
            scale: by(self.scale, col),
            mask: rows(self.mask),
            ..self
        }
    }
    /// The same for every `step`-th row.
    #[inline(always)]
    pub fn every(self, step: usize) -> End {
        let rows = |(start, pitch): (*const f32, usize)| (start, pitch * step);
        End { more: rows(self.more), mask: rows(self.mask), ..self }
    }
}

/// What a micro-kernel gets: rows, what is summed over, left, right, result, how it ends.
type Kernel = unsafe fn(usize, Span, Left, *const f32, Corner, &Finish);
/// Pixels, taps (places in image and weights), image and its distance of pixels, weights, result, how it ends.
type Depthwise = unsafe fn(usize, &[(usize, usize)], *const f32, usize, *const f32, Corner, &Finish);

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
    pub unsafe fn panel(&self, rows: usize, span: Span, a: Left, b: *const f32, c: Corner, finish: &Finish) {
        let parts = rows.div_ceil(self.most);
        let (each, more) = (rows / parts.max(1), rows % parts.max(1));
        let mut row = 0;
        for part in 0..parts {
            let high = each + usize::from(part < more);
            let corner = Corner { start: c.start.wrapping_add(row * c.pitch), ..c };
            let left = Left { start: a.start.wrapping_add(if a.by_column { row } else { row * a.pitch }), ..a };
            // SAFETY: the caller's contract.
            unsafe { (self.run)(high, span, left, b, corner, &finish.at(row, 0)) };
            row += high;
        }
    }
    /// `c[i, j] = Σ_t image[tap_t + i · pitch + j] · weights[tap_t + j]`
    ///
    /// # Safety
    /// As for [`Kernels::panel`]; weights must cover whole vectors of columns.
    #[inline]
    pub unsafe fn depthwise(
        &self,
        pixels: usize,
        taps: &[(usize, usize)],
        (image, pitch): (*const f32, usize),
        weights: *const f32,
        c: Corner,
        finish: &Finish,
    ) {
        // SAFETY: the caller's contract.
        unsafe { (self.depthwise)(pixels, taps, image, pitch, weights, c, finish) };
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
    /// The first numbers; the rest is 0.
    unsafe fn load_some(from: *const f32, count: usize) -> Self;
    /// Writes the first numbers.
    unsafe fn store_some(self, to: *mut f32, count: usize);
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
    unsafe fn mul(self, by: Self) -> Self;
    unsafe fn plus(self, other: Self) -> Self;
    /// The larger of two; if this one is NaN, NaN.
    unsafe fn at_least(self, low: Self) -> Self;
    /// The smaller of two; if this one is NaN, NaN.
    unsafe fn at_most(self, high: Self) -> Self;
    /// This one where `low < mask < high`, else 0.
    unsafe fn where_between(self, mask: Self, low: Self, high: Self) -> Self;
}

/// A vector, of which the first `count` numbers count. (Functions, not closures: only they are inlined for certain.)
#[inline(always)]
unsafe fn load<V: Vector>(from: *const f32, count: usize) -> V {
    // SAFETY: the caller vouches for the place and the instruction set.
    unsafe { if count >= V::WIDTH { V::load(from) } else { V::load_some(from, count) } }
}

/// How one or two vectors of columns end.
struct Ending<V> {
    alpha: V,
    add: bool,
    bias: [V; 2],
    factor: Option<V>,
    bounds: Option<(V, V)>,
    scale: Option<[V; 2]>,
    more: (*const f32, usize),
    gate: Option<[V; 5]>,
    mask: (*const f32, usize),
    between: (V, V),
}

impl<V: Vector> Ending<V> {
    #[inline(always)]
    unsafe fn new(finish: &Finish, cols: usize) -> Ending<V> {
        // SAFETY: the caller vouches for the columns and the instruction set.
        unsafe {
            let zero = V::splat(0.0);
            let (alpha, add) = (V::splat(finish.alpha), finish.add);
            let Some(end) = finish.end else {
                let none = (std::ptr::null(), 0);
                return Ending {
                    alpha,
                    add,
                    bias: [zero; 2],
                    factor: None,
                    bounds: None,
                    scale: None,
                    more: none,
                    gate: None,
                    mask: none,
                    between: (zero, zero),
                };
            };
            let bounds = Some((V::splat(end.low), V::splat(end.high)));
            let mut bias = [zero; 2];
            if !end.bias.is_null() {
                bias[0] = load(end.bias, cols);
                if cols > V::WIDTH {
                    bias[1] = load(end.bias.add(V::WIDTH), cols - V::WIDTH);
                }
            }
            let mut factor = None;
            if end.factor != 1.0 {
                factor = Some(V::splat(end.factor));
            }
            let mut scale = None;
            if !end.scale.is_null() {
                let mut both = [load(end.scale, cols), zero];
                if cols > V::WIDTH {
                    both[1] = load(end.scale.add(V::WIDTH), cols - V::WIDTH);
                }
                scale = Some(both);
            }
            let between = (V::splat(end.above), V::splat(end.below));
            let mut gate = None;
            if let Some(g) = end.gate {
                gate =
                    Some([V::splat(g.scale), V::splat(g.shift), V::splat(g.low), V::splat(g.high), V::splat(g.factor)]);
            }
            Ending { alpha, add, bias, factor, bounds, scale, more: end.more, gate, mask: end.mask, between }
        }
    }
    /// Writes the vector of sums of this row and place (0 or 1), or its first `count` numbers.
    #[inline(always)]
    unsafe fn put(&self, x: V, row: usize, place: usize, to: *mut f32, count: usize) {
        let first = place * V::WIDTH;
        // SAFETY: the caller vouches for the place and the instruction set.
        unsafe {
            let to = to.add(first);
            let mut y = if self.add { x.mul_add(self.alpha, load(to, count)) } else { x.mul(self.alpha) };
            if let Some((low, high)) = self.bounds {
                y = y.plus(self.bias[place]);
                if let Some(factor) = self.factor {
                    y = y.mul(factor);
                }
                if !self.more.0.is_null() {
                    y = y.plus(load(self.more.0.add(row * self.more.1 + first), count));
                }
                if let Some([scale, shift, low, high, factor]) = self.gate {
                    let open = y.mul_add(scale, shift).at_least(low).at_most(high);
                    y = y.mul(open).mul(factor);
                }
                y = y.at_least(low).at_most(high);
                if let Some(scale) = self.scale {
                    y = y.mul(scale[place]);
                }
                if !self.mask.0.is_null() {
                    let mask = load(self.mask.0.add(row * self.mask.1 + first), count);
                    y = y.where_between(mask, self.between.0, self.between.1);
                }
            }
            if count >= V::WIDTH {
                y.store(to);
            } else {
                y.store_some(to, count);
            }
        }
    }
}

crate::multiversion!(
    /// The end of results that other loops made; their columns are neighbours.
    ///
    /// # Safety
    /// The result must cover its extent, and what the end reads must too.
    pub fn end(rows: usize, cols: usize, out: (*mut f32, usize), end: &End) = end_inner
);

#[inline(always)]
unsafe fn end_inner<const FMA: bool>(rows: usize, cols: usize, (start, pitch): (*mut f32, usize), end: &End) {
    // SAFETY: the caller's contract.
    let line = |from: *const f32| unsafe { std::slice::from_raw_parts(from, cols) };
    for row in 0..rows {
        // SAFETY: the caller's contract.
        let out = unsafe { std::slice::from_raw_parts_mut(start.add(row * pitch), cols) };
        if !end.bias.is_null() {
            out.iter_mut().zip(line(end.bias)).for_each(|(x, b)| *x += b);
        }
        if end.factor != 1.0 {
            out.iter_mut().for_each(|x| *x *= end.factor);
        }
        if !end.more.0.is_null() {
            out.iter_mut().zip(line(end.more.0.wrapping_add(row * end.more.1))).for_each(|(x, y)| *x += y);
        }
        if let Some(g) = end.gate {
            for x in out.iter_mut() {
                let y = g.scale * *x + g.shift;
                let y = if g.low > y { g.low } else { y };
                *x = *x * if g.high < y { g.high } else { y } * g.factor;
            }
        }
        for x in out.iter_mut() {
            let y = if end.low > *x { end.low } else { *x };
            *x = if end.high < y { end.high } else { y };
        }
        if !end.scale.is_null() {
            out.iter_mut().zip(line(end.scale)).for_each(|(x, s)| *x *= s);
        }
        if !end.mask.0.is_null() {
            // SAFETY: as above.
            let out = unsafe { std::slice::from_raw_parts_mut(start.add(row * pitch), cols) };
            for (x, &mask) in out.iter_mut().zip(line(end.mask.0.wrapping_add(row * end.mask.1))) {
                *x = if end.above < mask && mask < end.below { *x } else { 0.0 };
            }
        }
    }
}

/// Bias, bounds and scale of a vector of columns.
#[inline(always)]
unsafe fn bounds<V: Vector>(end: &End, cols: usize) -> (V, V, V, Option<V>) {
    // SAFETY: the caller vouches for the columns and the instruction set.
    unsafe {
        let bias = if end.bias.is_null() { V::splat(0.0) } else { load(end.bias, cols) };
        let scale = if end.scale.is_null() { None } else { Some(load(end.scale, cols)) };
        (bias, V::splat(end.low), V::splat(end.high), scale)
    }
}

/// A micro-kernel of some rows by one or two vectors. Rows are named by literals, so that every sum is a register from
/// the start and no optimisation has to find out.
macro_rules! micro {
    ($name:ident, $rows:literal, $($i:literal)*) => {
        #[inline(always)]
        unsafe fn $name<V: Vector, const TWO: bool, const BY_COLUMN: bool>(
            span: Span, a: Left, b: *const f32, c: Corner, finish: &Finish,
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
                let whole = if TWO { 2 * V::WIDTH } else { V::WIDTH };
                let ending = Ending::<V>::new(finish, c.cols);
                if c.cols == whole {
                    $(
                        let to = c.start.add($i * c.pitch);
                        ending.put(first[$i], $i, 0, to, V::WIDTH);
                        if TWO {
                            ending.put(second[$i], $i, 1, to, V::WIDTH);
                        }
                    )*
                } else {
                    let count = c.cols - if TWO { V::WIDTH } else { 0 };
                    $(
                        let to = c.start.add($i * c.pitch);
                        if TWO {
                            ending.put(first[$i], $i, 0, to, V::WIDTH);
                            ending.put(second[$i], $i, 1, to, count);
                        } else {
                            ending.put(first[$i], $i, 0, to, count);
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
            taps: &[(usize, usize)], image: *const f32, pitch: usize, weights: *const f32, c: Corner, finish: &Finish,
        ) {
            // SAFETY: the caller vouches for the extents and the instruction set.
            unsafe {
                let mut sums = [V::splat(0.0); $rows];
                for &(place, weight) in taps {
                    let (from, weight) = (image.add(place), V::load(weights.add(weight)));
                    if c.cols == V::WIDTH {
                        $(sums[$i] = V::load(from.add($i * pitch)).mul_add(weight, sums[$i]);)*
                    } else {
                        $(sums[$i] = V::load_some(from.add($i * pitch), c.cols).mul_add(weight, sums[$i]);)*
                    }
                }
                if let Some(end) = finish.bounded() {
                    let (bias, low, high, scale) = bounds::<V>(end, c.cols);
                    $(sums[$i] = sums[$i].plus(bias).at_least(low).at_most(high);)*
                    if let Some(scale) = scale {
                        $(sums[$i] = sums[$i].mul(scale);)*
                    }
                    if c.cols == V::WIDTH {
                        $(sums[$i].store(c.start.add($i * c.pitch));)*
                    } else {
                        $(sums[$i].store_some(c.start.add($i * c.pitch), c.cols);)*
                    }
                    return;
                }
                let ending = Ending::<V>::new(finish, c.cols);
                if c.cols == V::WIDTH {
                    $(ending.put(sums[$i], $i, 0, c.start.add($i * c.pitch), V::WIDTH);)*
                } else {
                    $(ending.put(sums[$i], $i, 0, c.start.add($i * c.pitch), c.cols);)*
                }
            }
        }
    };
}
pixels!(pixels1, 1, 0);
pixels!(pixels2, 2, 0 1);
pixels!(pixels4, 4, 0 1 2 3);
pixels!(pixels8, 8, 0 1 2 3 4 5 6 7);

/// The same pixels for three by three taps and a whole vector of channels: weights stay in registers, and where neighbouring pixels
/// read neighbouring places (`across` is their distance), a number is loaded once for all three of them.
macro_rules! nine {
    ($name:ident, $rows:literal, $($i:literal)*) => {
        #[inline(always)]
        unsafe fn $name<V: Vector>(
            taps: &[(usize, usize)], across: usize, image: *const f32, pitch: usize, weights: *const f32, c: Corner, end: Option<&End>,
        ) {
            // SAFETY: the caller vouches for the extents and the instruction set.
            unsafe {
                let mut sums = [V::splat(0.0); $rows];
                for row in taps.chunks_exact(3) {
                    let from = image.add(row[0].0);
                    let w = [V::load(weights.add(row[0].1)), V::load(weights.add(row[1].1)), V::load(weights.add(row[2].1))];
                    if across == pitch {
                        let (mut a, mut b) = (V::load(from), V::load(from.add(pitch)));
                        $(
                            let x = V::load(from.add(($i + 2) * pitch));
                            sums[$i] = x.mul_add(w[2], b.mul_add(w[1], a.mul_add(w[0], sums[$i])));
                            (a, b) = (b, x);
                        )*
                        let _ = (a, b);
                    } else {
                        $(
                            let place = from.add($i * pitch);
                            sums[$i] = V::load(place).mul_add(w[0], sums[$i]);
                            sums[$i] = V::load(place.add(across)).mul_add(w[1], sums[$i]);
                            sums[$i] = V::load(place.add(2 * across)).mul_add(w[2], sums[$i]);
                        )*
                    }
                }
                if let Some(end) = end {
                    let (bias, low, high, scale) = bounds::<V>(end, V::WIDTH);
                    $(sums[$i] = sums[$i].plus(bias).at_least(low).at_most(high);)*
                    if let Some(scale) = scale {
                        $(sums[$i] = sums[$i].mul(scale);)*
                    }
                }
                $(sums[$i].store(c.start.add($i * c.pitch));)*
            }
        }
    };
}
nine!(nine4, 4, 0 1 2 3);
nine!(nine8, 8, 0 1 2 3 4 5 6 7);

/// The distance of neighbours, if taps are nine in three rows of equally spaced ones.
fn three_by_three(taps: &[(usize, usize)]) -> Option<usize> {
    let &[(a, _), (b, _), (c, _), (d, _), (e, _), (f, _), (g, _), (h, _), (i, _)] = taps else { return None };
    let across = b - a;
    [c - b, e - d, f - e, h - g, i - h].iter().all(|&x| x == across).then_some(across)
}

#[inline(always)]
unsafe fn all_pixels<V: Vector>(
    pixels: usize,
    taps: &[(usize, usize)],
    image: *const f32,
    pitch: usize,
    weights: *const f32,
    c: Corner,
    finish: &Finish,
) {
    let (plain, bounded) = (finish.is_plain(), finish.bounded());
    let across = three_by_three(taps).filter(|_| plain || bounded.is_some());
    let mut done = 0;
    while done < pixels {
        let count = match pixels - done {
            8.. => 8,
            4..8 => 4,
            2..4 => 2,
            _ => 1,
        };
        // Channels inside of a few pixels: memory is read in its order, which is what prefetching sees.
        for channel in (0..c.cols).step_by(V::WIDTH) {
            let cols = V::WIDTH.min(c.cols - channel);
            // SAFETY: the caller vouches for the extents and the instruction set.
            unsafe {
                let (image, weights) = (image.add(channel + done * pitch), weights.add(channel));
                let c = Corner { start: c.start.add(channel + done * c.pitch), cols, ..c };
                if let Some(across) = across.filter(|_| count >= 4 && cols == V::WIDTH) {
                    let end = bounded.map(|end| end.at(done, channel));
                    match count {
                        8 => nine8::<V>(taps, across, image, pitch, weights, c, end.as_ref()),
                        _ => nine4::<V>(taps, across, image, pitch, weights, c, end.as_ref()),
                    }
                    continue;
                }
                let finish = &finish.at(done, channel);
                match count {
                    8 => pixels8::<V>(taps, image, pitch, weights, c, finish),
                    4 => pixels4::<V>(taps, image, pitch, weights, c, finish),
                    2 => pixels2::<V>(taps, image, pitch, weights, c, finish),
                    _ => pixels1::<V>(taps, image, pitch, weights, c, finish),
                }
            }
        }
        done += count;
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
                let ending = Ending::<V>::new(&Finish { add, ..Finish::PLAIN }, c.cols);
                if c.cols == V::WIDTH {
                    $(ending.put(sums[$i], $i, 0, c.start.add($i * c.pitch), V::WIDTH);)*
                } else {
                    $(ending.put(sums[$i], $i, 0, c.start.add($i * c.pitch), c.cols);)*
                }
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
    ($([$($attribute:tt)*])? $name:ident, $depthwise:ident, $correlate:ident, $vector:ty, $narrow:ty, $($m:literal $micro:ident)*) => {
        $(#[$($attribute)*])?
        pub(super) unsafe fn $name(
            m: usize, span: Span, a: Left, b: *const f32, c: Corner, finish: &Finish,
        ) {
            // SAFETY: the caller vouches for the extents.
            unsafe {
                // Half a vector's columns take half of the time where wide vectors are computed in halves.
                if <$narrow>::WIDTH < <$vector>::WIDTH && c.cols <= <$narrow>::WIDTH {
                    match (m, a.by_column) {
                        $(($m, false) => $micro::<$narrow, false, false>(span, a, b, c, finish),)*
                        $(($m, true) => $micro::<$narrow, false, true>(span, a, b, c, finish),)*
                        _ => {}
                    }
                    return;
                }
                match (m, c.cols > <$vector>::WIDTH, a.by_column) {
                    $(($m, true, false) => $micro::<$vector, true, false>(span, a, b, c, finish),)*
                    $(($m, false, false) => $micro::<$vector, false, false>(span, a, b, c, finish),)*
                    $(($m, true, true) => $micro::<$vector, true, true>(span, a, b, c, finish),)*
                    $(($m, false, true) => $micro::<$vector, false, true>(span, a, b, c, finish),)*
                    _ => {}
                }
            }
        }
        $(#[$($attribute)*])?
        pub(super) unsafe fn $depthwise(
            pixels: usize, taps: &[(usize, usize)], image: *const f32, pitch: usize, weights: *const f32, c: Corner,
            finish: &Finish,
        ) {
            // SAFETY: the caller vouches for the extents.
            unsafe { all_pixels::<$vector>(pixels, taps, image, pitch, weights, c, finish) };
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
        #[inline(always)]
        unsafe fn load_some(from: *const f32, count: usize) -> Self {
            Lanes(std::array::from_fn(|i| if i < count { unsafe { *from.add(i) } } else { 0.0 }))
        }
        #[inline(always)]
        unsafe fn store_some(self, to: *mut f32, count: usize) {
            for (i, &x) in self.0.iter().enumerate().take(count) {
                unsafe { *to.add(i) = x };
            }
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            Lanes(std::array::from_fn(|i| self.0[i] + other.0[i]))
        }
        #[inline(always)]
        unsafe fn at_least(self, low: Self) -> Self {
            Lanes(std::array::from_fn(|i| if low.0[i] > self.0[i] { low.0[i] } else { self.0[i] }))
        }
        #[inline(always)]
        unsafe fn at_most(self, high: Self) -> Self {
            Lanes(std::array::from_fn(|i| if high.0[i] < self.0[i] { high.0[i] } else { self.0[i] }))
        }
        #[inline(always)]
        unsafe fn where_between(self, mask: Self, low: Self, high: Self) -> Self {
            let inside = |i: usize| low.0[i] < mask.0[i] && mask.0[i] < high.0[i];
            Lanes(std::array::from_fn(|i| if inside(i) { self.0[i] } else { 0.0 }))
        }
    }

    kernels!(run, depthwise, correlate, Lanes, Lanes, 1 micro1 2 micro2 3 micro3 4 micro4 5 micro5 6 micro6);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    macro_rules! vector {
        (
            $ty:ty, $width:literal, $splat:ident, $load:ident, $store:ident, $mul_add:ident, $mul:ident, $add:ident,
            $max:ident, $min:ident, $load_some:ident, $store_some:ident, $mask:ident, $between:ident
        ) => {
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
                #[inline(always)]
                unsafe fn load_some(from: *const f32, count: usize) -> Self {
                    unsafe { $load_some($mask(count), from) }
                }
                #[inline(always)]
                unsafe fn store_some(self, to: *mut f32, count: usize) {
                    unsafe { $store_some(to, $mask(count), self) }
                }
                #[inline(always)]
                unsafe fn plus(self, other: Self) -> Self {
                    unsafe { $add(self, other) }
                }
                #[inline(always)]
                unsafe fn at_least(self, low: Self) -> Self {
                    // Of two operands one of which is NaN, the instruction gives the second.
                    unsafe { $max(low, self) }
                }
                #[inline(always)]
                unsafe fn at_most(self, high: Self) -> Self {
                    unsafe { $min(high, self) }
                }
                #[inline(always)]
                unsafe fn where_between(self, mask: Self, low: Self, high: Self) -> Self {
                    unsafe { $between(self, mask, low, high) }
                }
            }
        };
    }
    /// The first lanes of 16.
    #[inline(always)]
    unsafe fn lanes16(count: usize) -> __mmask16 {
        ((1u32 << count) - 1) as __mmask16
    }
    /// The first lanes of 8.
    #[inline(always)]
    unsafe fn lanes8(count: usize) -> __m256i {
        const LANES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: eight numbers from any of the first nine on.
        unsafe { _mm256_loadu_si256(LANES.as_ptr().add(8 - count.min(8)).cast()) }
    }
    #[inline(always)]
    unsafe fn load8(lanes: __m256i, from: *const f32) -> __m256 {
        // SAFETY: lanes that are left out are not touched; the rest is the caller's contract.
        unsafe { _mm256_maskload_ps(from, lanes) }
    }
    #[inline(always)]
    unsafe fn between16(x: __m512, mask: __m512, low: __m512, high: __m512) -> __m512 {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let lanes = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(low, mask) & _mm512_cmp_ps_mask::<_CMP_LT_OQ>(mask, high);
            _mm512_maskz_mov_ps(lanes, x)
        }
    }
    #[inline(always)]
    unsafe fn between8(x: __m256, mask: __m256, low: __m256, high: __m256) -> __m256 {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let lanes = _mm256_and_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(low, mask), _mm256_cmp_ps::<_CMP_LT_OQ>(mask, high));
            _mm256_and_ps(lanes, x)
        }
    }
    vector!(
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_mul_ps,
        _mm512_add_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        _mm512_maskz_loadu_ps,
        _mm512_mask_storeu_ps,
        lanes16,
        between16
    );
    vector!(
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_mul_ps,
        _mm256_add_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        load8,
        _mm256_maskstore_ps,
        lanes8,
        between8
    );

    kernels!(
        [target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
        avx512, depthwise512, correlate512, __m512, __m256,
        1 micro1 2 micro2 3 micro3 4 micro4 5 micro5 6 micro6 7 micro7 8 micro8 9 micro9 10 micro10 11 micro11 12 micro12
    );
    kernels!(
        [target_feature(enable = "avx2,fma")]
        avx2, depthwise2, correlate2, __m256, __m256, 1 micro1 2 micro2 3 micro3 4 micro4 5 micro5 6 micro6
    );
}
