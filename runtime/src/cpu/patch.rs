//! Windows of an image as the left factor of a product: what turns a convolution into a matrix product without copying
//! every number once per tap.
//!
//! Row `(oy, ox)` of the factor is a place of the window, column `(ky, kx, c)` a number under it:
//! * forward: `image[c, oy·stride − pad + ky·dilation, ox·stride − pad + kx·dilation]`, 0 outside;
//! * transposed (gradient by input): `image[c, (oy + pad − ky·dilation) / stride, …]` where that divides, else 0.
//!
//! A task copies the rows of the image that it reads once, channels last, with the zeros around them, to memory of its thread. There a row
//! of the window is one [stretch](super::micro::Span) of contiguous numbers, equally far apart for neighbouring places, which
//! is what micro-kernels read in place. Transposed, the places of one residue modulo the stride see the same taps: they are neighbours then.
//! The layout of the image itself does not matter.
//!
//! Depthwise convolutions of images that lie channels last need no copy: places at the edges leave out the taps that see nothing.
//!
//! Weights are packed in panels of columns; a panel holds its rows in the order of the stretches. If every channel is convolved
//! by itself (depthwise), weights lie tap by tap.

use super::micro::{Corner, Finish, Left, Span, kernels};
use super::{LINE, winograd};
use std::cell::RefCell;
use std::ops::Range;

/// See the [module](self). Pairs are (vertical, horizontal).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Patch {
    /// The size of one channel of the image.
    pub image: (usize, usize),
    /// Channels of the image, of one group.
    pub channels: usize,
    /// Distances in the image: of rows, of pixels, of channels.
    pub steps: [usize; 3],
    /// Distances in the weights: of the window's rows, of its columns, of channels.
    pub weights: [usize; 3],
    /// Groups of channels, and the distance of their weights.
    pub groups: (usize, usize),
    /// The window.
    pub kernel: (usize, usize),
    /// The places that the window is put on.
    pub grid: (usize, usize),
    /// The distance of places.
    pub stride: (usize, usize),
    /// The padding before the first element.
    pub pad: (usize, usize),
    /// The distance of the window's elements.
    pub dilation: (usize, usize),
    /// Whether places and image change roles.
    pub transposed: bool,
    /// Whether every channel is convolved by itself.
    pub depthwise: bool,
    /// Whether it is computed by [Winograd's algorithm](super::winograd).
    pub winograd: bool,
}

/// One axis of a window.
#[derive(Clone, Copy)]
struct Axis {
    kernel: usize,
    stride: usize,
    pad: usize,
    dilation: usize,
    transposed: bool,
}

impl Axis {
    /// How many kinds of places there are; a place's kind says which taps it sees.
    fn kinds(&self) -> usize {
        if self.transposed { self.stride } else { 1 }
    }
    /// The kind of a place, and where it reads: the taps' distances come on top.
    fn place(&self, at: usize) -> (usize, isize) {
        let padded = at + self.pad;
        if self.transposed {
            (padded % self.stride, (padded / self.stride) as isize)
        } else {
            (0, (at * self.stride) as isize - self.pad as isize)
        }
    }
    /// The taps that a kind of place sees, in the order of the packed weights, and their distances, which grow.
    fn taps(&self, kind: usize) -> Vec<(usize, isize)> {
        let mut taps = Vec::new();
        self.taps_to(kind, &mut taps);
        taps
    }
    /// The same, to memory that is there.
    fn taps_to(&self, kind: usize, to: &mut Vec<(usize, isize)>) {
        let tap = |t: usize| {
            if !self.transposed {
                return Some((t, (t * self.dilation) as isize));
            }
            let away = kind as isize - ((self.kernel - 1 - t) * self.dilation) as isize;
            let stride = self.stride as isize;
            (away.rem_euclid(stride) == 0).then_some((t, away.div_euclid(stride)))
        };
        to.clear();
        to.extend((0..self.kernel).filter_map(tap));
    }
    /// The part of the image that some places read, its edges included or not.
    fn reach(&self, places: &Range<usize>) -> Range<isize> {
        let (first, last) = (self.place(places.start).1, self.place(places.end.max(1) - 1).1);
        let far = ((self.kernel - 1) * self.dilation) as isize;
        if self.transposed {
            let stride = self.stride as isize;
            ((places.start + self.pad) as isize - far).div_euclid(stride)..last + 1
        } else {
            first..last + far + 1
        }
    }
    /// The distance, in the image, of the places of one kind.
    fn advance(&self) -> usize {
        if self.transposed { 1 } else { self.stride }
    }
}

/// A part of an image, channels last, zeros around it.
#[derive(Clone, Debug)]
pub struct Area {
    rows: Range<isize>,
    cols: Range<isize>,
    channels: usize,
}

impl Area {
    /// The elements that it needs, some more for the last vector included.
    pub fn size(&self) -> usize {
        self.rows.len() * self.cols.len() * self.channels + LINE
    }
    /// The distance of its rows.
    pub fn pitch(&self) -> usize {
        self.cols.len() * self.channels
    }
    /// Where a pixel lies.
    fn at(&self, y: isize, x: isize) -> isize {
        ((y - self.rows.start) * self.cols.len() as isize + x - self.cols.start) * self.channels as isize
    }
}

/// Neighbouring places of one kind in a row that see the same columns of the window.
struct Run {
    first: usize,
    count: usize,
    /// The columns: the number of each, and its distance in the image.
    columns: Vec<(usize, isize)>,
    /// What they see of the rows that were asked for last: places, counted from the first tap's, and where the weights lie.
    taps: Vec<(usize, usize)>,
}

/// What a thread knows about the places of the depthwise convolution that it worked on last.
#[derive(Default)]
struct Runs {
    /// Which one that was.
    of: Option<(Patch, usize)>,
    runs: Vec<Run>,
    /// The rows of the window that taps are of.
    lines: Vec<(usize, isize)>,
}

impl Runs {
    /// Gets ready for a convolution whose weights' rows are `right` apart.
    fn prepare(&mut self, patch: &Patch, right: usize) {
        if self.of == Some((*patch, right)) {
            return;
        }
        let (_, across) = patch.axes();
        let kinds = across.kinds();
        self.of = Some((*patch, right));
        self.runs.clear();
        self.lines.clear();
        for first in 0..kinds.min(patch.grid.1) {
            let all = across.taps(across.place(first).0);
            for ox in (first..patch.grid.1).step_by(kinds) {
                let (from, to) = seen(&all, across.place(ox).1, patch.image.1);
                let columns = &all[from..to];
                match self.runs.last_mut() {
                    Some(run) if run.columns == columns && run.first + run.count * kinds == ox => run.count += 1,
                    _ => self.runs.push(Run { first: ox, count: 1, columns: columns.to_vec(), taps: Vec::new() }),
                }
            }
        }
    }
    /// Gets ready for places that see these rows of the window.
    fn look(&mut self, lines: &[(usize, isize)], patch: &Patch, right: usize) {
        if self.lines == lines {
            return;
        }
        self.lines.clear();
        self.lines.extend(lines);
        let [row_step, pixel, _] = patch.steps;
        for run in &mut self.runs {
            run.taps.clear();
            let (Some(&(_, top)), Some(&(_, left))) = (lines.first(), run.columns.first()) else { continue };
            // Taps lie in the order of their distances: the first is the origin.
            for &(ty, dy) in lines {
                let place = |dx: isize| (dy - top) as usize * row_step + (dx - left) as usize * pixel;
                run.taps.extend(run.columns.iter().map(|&(tx, dx)| (place(dx), (ty * patch.kernel.1 + tx) * right)));
            }
        }
    }
}

thread_local! {
    static RUNS: RefCell<Runs> = RefCell::default();
}

/// The taps of a place that lie inside of the image.
fn seen(taps: &[(usize, isize)], place: isize, size: usize) -> (usize, usize) {
    let first = taps.partition_point(|&(_, d)| place + d < 0);
    (first, first.max(taps.partition_point(|&(_, d)| place + d < size as isize)))
}

/// What the places of one kind read.
struct Kind {
    /// The stretches (or taps): where they begin in the area and in the weights.
    stretches: Vec<(usize, usize)>,
    /// Terms of a stretch.
    depth: usize,
    /// Where the first stretch begins, counted from the place.
    shift: isize,
}

impl Patch {
    fn axes(&self) -> (Axis, Axis) {
        let axis = |pick: fn((usize, usize)) -> usize| Axis {
            kernel: pick(self.kernel),
            stride: pick(self.stride),
            pad: pick(self.pad),
            dilation: pick(self.dilation),
            transposed: self.transposed,
        };
        (axis(|p| p.0), axis(|p| p.1))
    }
    /// Whether no place reads outside of the image.
    pub fn reaches_inside(&self) -> bool {
        let area = self.area(&(0..self.grid.0));
        let inside = |range: &Range<isize>, size: usize| range.start >= 0 && range.end <= size as isize;
        inside(&area.rows, self.image.0) && inside(&area.cols, self.image.1)
    }
    /// The number of taps.
    pub fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }
    /// The part of the image that some rows of places read.
    pub fn area(&self, rows: &Range<usize>) -> Area {
        let (down, across) = self.axes();
        Area { rows: down.reach(rows), cols: across.reach(&(0..self.grid.1)), channels: self.channels }
    }
    /// The rows of the image that some rows of places see.
    pub fn lines(&self, rows: &Range<usize>) -> Range<usize> {
        let reach = self.axes().0.reach(rows);
        let cut = |y: isize| y.clamp(0, self.image.0 as isize) as usize;
        cut(reach.start)..cut(reach.end)
    }
    /// How many rows of places see no more than so many rows of an image (forward).
    pub fn places_of(&self, lines: usize) -> usize {
        let window = (self.kernel.0 - 1) * self.dilation.0 + 1;
        lines.saturating_sub(window) / self.stride.0 + 1
    }
    /// An area with rows and columns for an even number of places (3 × 3, stride 1).
    pub fn even_area(&self, rows: &Range<usize>) -> Area {
        let reach = |first: usize, count: usize, pad: usize| {
            let start = first as isize - pad as isize;
            start..start + (count.next_multiple_of(2) + 2) as isize
        };
        let cols = reach(0, self.grid.1, self.pad.1);
        Area { rows: reach(rows.start, rows.len(), self.pad.0), cols, channels: self.channels }
    }
    /// Copies a part of the image.
    ///
    /// # Safety
    /// `image` must hold the image at its steps, `to` the elements of the area.
    pub unsafe fn fill(&self, area: &Area, image: *const f32, to: *mut f32) {
        let (high, wide) = (self.image.0 as isize, self.image.1 as isize);
        let [row, pixel, channel] = self.steps;
        let channels = self.channels;
        let first = area.cols.start.clamp(0, wide);
        let end = area.cols.end.clamp(first, wide);
        let (before, count) = ((first - area.cols.start) as usize, (end - first) as usize);
        for (i, y) in area.rows.clone().enumerate() {
            // SAFETY: rows and columns are cut to the image; the area has room for all of its rows.
            unsafe {
                let line = std::slice::from_raw_parts_mut(to.add(i * area.pitch()), area.pitch());
                if y < 0 || y >= high {
                    line.fill(0.0);
                    continue;
                }
                let (zeros, rest) = line.split_at_mut(before * channels);
                let (line, tail) = rest.split_at_mut(count * channels);
                zeros.fill(0.0);
                tail.fill(0.0);
                let from = image.add(y as usize * row + first as usize * pixel);
                if channel == 1 && pixel == channels {
                    std::ptr::copy_nonoverlapping(from, line.as_mut_ptr(), line.len());
                } else if channel == 1 {
                    for (x, line) in line.chunks_exact_mut(channels).enumerate() {
                        std::ptr::copy_nonoverlapping(from.add(x * pixel), line.as_mut_ptr(), channels);
                    }
                } else {
                    for c in 0..channels {
                        let from = from.add(c * channel);
                        (0..count).for_each(|x| *line.get_unchecked_mut(x * channels + c) = *from.add(x * pixel));
                    }
                }
            }
        }
        // SAFETY: the area ends with a line for the last vector.
        unsafe { std::slice::from_raw_parts_mut(to.add(area.size() - LINE), LINE).fill(0.0) };
    }
    /// Rows of places per task, for results of `n` columns and `k` terms.
    pub fn rows_per_task(&self, n: usize, k: usize) -> usize {
        if self.winograd {
            return winograd::rows_per_task(self.grid);
        }
        // Weights that no second-level cache holds are read once per task: larger tasks then.
        const WEIGHTS: usize = 1 << 18;
        // Where nothing is copied, only so many that the results stay in the cache.
        let large = k * n > WEIGHTS && !self.depthwise || self.is_product();
        let most = if large { 64 * 1024 } else { 8 * 1024 };
        let per_row = self.grid.1 * n.max(self.channels * self.stride.0.max(self.stride.1));
        (most / per_row.max(1)).clamp(1, self.grid.0.max(1))
    }
    /// Elements of packed weights of `n` columns, of one group.
    pub fn group_len(&self, n: usize) -> usize {
        if self.winograd {
            return winograd::packed_len(self, n);
        }
        if self.depthwise {
            return self.taps() * n.next_multiple_of(LINE);
        }
        self.taps() * self.channels * n.next_multiple_of(kernels().panel)
    }
    /// Elements of packed weights of `n` columns.
    pub fn packed_len(&self, n: usize) -> usize {
        self.groups.0 * self.group_len(n)
    }
    /// How many multiplications an example with `n` columns takes.
    pub fn multiplications(&self, n: usize) -> usize {
        let each = if self.depthwise { n } else { self.channels * n };
        if self.winograd { winograd::elements(self) * each } else { self.grid.0 * self.grid.1 * self.taps() * each }
    }
    fn panels(&self, n: usize) -> usize {
        if self.depthwise { 1 } else { n.div_ceil(kernels().panel) }
    }
    /// The number of parts that can be [packed](Patch::pack) by themselves.
    pub fn parts(&self, n: usize) -> usize {
        self.groups.0 * self.panels(n)
    }
    /// Packs one part of weights whose columns are `across` apart.
    ///
    /// # Safety
    /// `weights` must cover all taps, channels and columns, `to` must hold [`Patch::packed_len`] elements.
    pub unsafe fn pack(&self, weights: *const f32, across: usize, n: usize, part: usize, to: *mut f32) {
        if self.winograd {
            // SAFETY: the caller's contract.
            return unsafe { winograd::pack(self, weights, across, n, part, to) };
        }
        let (group, panel) = (part / self.panels(n), part % self.panels(n));
        let weights = weights.wrapping_add(group * self.groups.1);
        let to = to.wrapping_add(group * self.group_len(n));
        let (wide, channels) = if self.depthwise { (n, 1) } else { (kernels().panel, self.channels) };
        let pitch = if self.depthwise { n.next_multiple_of(LINE) } else { wide };
        let cols = wide.min(n - panel * wide);
        let [row, col, channel] = self.weights;
        let mut to = to.wrapping_add(panel * self.taps() * channels * wide);
        let place = |t: usize, size: usize| if self.transposed { size - 1 - t } else { t };
        for ky in 0..self.kernel.0 {
            for kx in 0..self.kernel.1 {
                let tap = place(ky, self.kernel.0) * row + place(kx, self.kernel.1) * col + panel * wide * across;
                for c in 0..channels {
                    // SAFETY: the caller's contract.
                    unsafe {
                        let line = std::slice::from_raw_parts_mut(to, pitch);
                        let from = weights.add(tap + c * channel);
                        (0..cols).for_each(|j| line[j] = *from.add(j * across));
                        line[cols..].fill(0.0);
                    }
                    to = to.wrapping_add(pitch);
                }
            }
        }
    }
    /// What a kind of place reads; `right` is the distance of the weights' rows.
    fn kind(&self, area: &Area, (ky, kx): (usize, usize), right: usize) -> Kind {
        let (down, across) = self.axes();
        let depth = if self.depthwise { 1 } else { self.channels };
        let (origin, columns) = (area.at(0, 0), across.taps(kx));
        let mut all: Vec<(isize, usize)> = Vec::new();
        for (ty, y) in down.taps(ky) {
            let tap = |&(tx, x): &(usize, isize)| (area.at(y, x) - origin, (ty * self.kernel.1 + tx) * depth * right);
            all.extend(columns.iter().map(tap));
        }
        // Rows of the window whose taps are neighbours become one stretch each.
        let run = columns.len().max(1);
        let follows = |i: usize| {
            let ((x, w), (next, more)) = (all[i - 1], all[i]);
            next == x + depth as isize && more == w + depth * right
        };
        let joined = !self.depthwise && (1..all.len()).all(|i| i % run == 0 || follows(i));
        let (step, depth) = if joined { (run, depth * run) } else { (1, depth) };
        let shift = all.iter().map(|&(x, _)| x).min().unwrap_or(0);
        let stretches = all.into_iter().step_by(step).map(|(x, w)| ((x - shift) as usize, w)).collect();
        Kind { stretches, depth, shift }
    }
    /// Whether channels lie side by side, so that depthwise kernels read the image where it is.
    fn in_place(&self) -> bool {
        self.depthwise && self.steps[2] == 1
    }
    /// The elements of memory that [`Patch::run`] needs.
    pub fn memory(&self, rows: &Range<usize>) -> usize {
        match self.in_place() {
            true => 0,
            false if self.is_product() => 0,
            false if self.winograd => winograd::memory(self, rows),
            false => self.area(rows).size(),
        }
    }
    /// Depthwise, some rows of places, from the image where it is. Neighbouring places that see the same taps inside of the image are
    /// computed together: those at the edges see fewer.
    unsafe fn depthwise_in_place(
        &self,
        image: *const f32,
        weights: *const f32,
        n: usize,
        rows: Range<usize>,
        (out, pitch): (*mut f32, usize),
        finish: &Finish,
    ) {
        let (kernels, (down, across)) = (kernels(), self.axes());
        let [row_step, pixel, _] = self.steps;
        let (right, kinds) = (n.next_multiple_of(LINE), across.kinds());
        RUNS.with_borrow_mut(|known| {
            known.prepare(self, right);
            let mut lines = Vec::new();
            for oy in rows.clone() {
                let (kind, y) = down.place(oy);
                down.taps_to(kind, &mut lines);
                let (from, to) = seen(&lines, y, self.image.0);
                known.look(&lines[from..to], self, right);
                for run in &known.runs {
                    let (_, x) = across.place(run.first);
                    let place = |dy: isize, dx: isize| (y + dy) as usize * row_step + (x + dx) as usize * pixel;
                    let origin =
                        lines[from..to].first().zip(run.columns.first()).map(|(down, right)| place(down.1, right.1));
                    let first = (oy - rows.start) * self.grid.1 + run.first;
                    let corner = Corner { start: out.wrapping_add(first * pitch), pitch: pitch * kinds, cols: n };
                    let mut finish = finish.at(first, 0);
                    finish.end = finish.end.map(|end| end.every(kinds));
                    let from = (image.wrapping_add(origin.unwrap_or(0)), across.advance() * pixel);
                    // SAFETY: taps outside of the image were left out; the rest is the caller's contract.
                    unsafe { kernels.depthwise(run.count, &run.taps, from, weights, corner, &finish) };
                }
            }
        });
    }
    /// Whether places are tokens: pixels of an image that is one wide.
    pub fn is_tokens(&self) -> bool {
        self.grid.1 == 1 && self.grid.0 > 1 && self.is_product()
    }
    /// Whether places are the pixels of the image, one after the other.
    fn is_product(&self) -> bool {
        let plain = self.taps() == 1 && self.stride == (1, 1) && self.pad == (0, 0) && self.grid == self.image;
        let follow = self.steps[0] == self.image.1 * self.steps[1] && self.steps[2] == 1;
        plain && follow && !self.depthwise && !self.winograd && !self.transposed
    }
    /// The same for such places: nothing is copied.
    unsafe fn multiply(
        &self,
        image: *const f32,
        weights: *const f32,
        n: usize,
        rows: Range<usize>,
        (out, pitch): (*mut f32, usize),
        finish: &Finish,
    ) {
        /// Places whose pixels stay in the cache while all columns are computed.
        const PLACES: usize = 64;
        let (kernels, pixel) = (kernels(), self.steps[1]);
        let (wide, all) = (kernels.panel, rows.len() * self.grid.1);
        for place in (0..all).step_by(PLACES) {
            let count = PLACES.min(all - place);
            for panel in 0..self.panels(n) {
                // SAFETY: every place is a pixel of the image; the rest is the caller's contract.
                unsafe {
                    let start = image.add((rows.start * self.grid.1 + place) * pixel);
                    let left = Left { start, pitch: pixel, by_column: false };
                    let span = Span { stretches: &[(0, 0)], depth: self.channels, right: wide };
                    let start = out.add(place * pitch + panel * wide);
                    let corner = Corner { start, pitch, cols: wide.min(n - panel * wide) };
                    let weights = weights.add(panel * self.channels * wide);
                    kernels.panel(count, span, left, weights, corner, &finish.at(place, panel * wide));
                }
            }
        }
    }
    /// Some rows of places, all columns, from packed weights. `out`: where the first place's result begins, and the distance of places.
    ///
    /// # Safety
    /// `memory` must hold [`Patch::memory`] elements; image, weights and result must cover their extents.
    pub unsafe fn run(
        &self,
        image: *const f32,
        weights: *const f32,
        n: usize,
        rows: Range<usize>,
        memory: *mut f32,
        (out, pitch): (*mut f32, usize),
        finish: &Finish,
    ) {
        if self.in_place() {
            // SAFETY: the caller's contract.
            return unsafe { self.depthwise_in_place(image, weights, n, rows, (out, pitch), finish) };
        }
        if self.winograd {
            // SAFETY: the caller's contract.
            return unsafe { winograd::run(self, image, weights, n, rows, memory, (out, pitch), finish) };
        }
        if self.is_product() {
            // SAFETY: the caller's contract.
            return unsafe { self.multiply(image, weights, n, rows, (out, pitch), finish) };
        }
        let area = self.area(&rows);
        let (down, across) = self.axes();
        let kernels = kernels();
        // SAFETY: the caller's contract.
        unsafe { self.fill(&area, image, memory) };
        let right = if self.depthwise { n.next_multiple_of(LINE) } else { kernels.panel };
        let kinds: Vec<_> = (0..down.kinds())
            .flat_map(|ky| (0..across.kinds()).map(move |kx| (ky, kx)))
            .map(|kind| self.kind(&area, kind, right))
            .collect();
        let panel_len = self.taps() * self.channels * kernels.panel;
        let wide = if self.depthwise { n } else { kernels.panel };
        for panel in 0..self.panels(n) {
            let cols = wide.min(n - panel * wide);
            let weights = weights.wrapping_add(panel * panel_len);
            for oy in rows.clone() {
                let (ky, y) = down.place(oy);
                for first in 0..across.kinds().min(self.grid.1) {
                    let (kx, x) = across.place(first);
                    let Kind { stretches, depth, shift } = &kinds[ky * across.kinds() + kx];
                    let count = (self.grid.1 - first).div_ceil(across.kinds());
                    let place = (oy - rows.start) * self.grid.1 + first;
                    let start = out.wrapping_add(place * pitch + panel * wide);
                    let corner = Corner { start, pitch: pitch * across.kinds(), cols };
                    let from = memory.cast_const().wrapping_offset(area.at(y, x) + shift);
                    let step = across.advance() * self.channels;
                    let mut finish = finish.at(place, panel * wide);
                    finish.end = finish.end.map(|end| end.every(across.kinds()));
                    // SAFETY: every tap of every place lies in the area; the rest is the caller's contract.
                    unsafe {
                        if self.depthwise {
                            kernels.depthwise(count, stretches, (from, step), weights, corner, &finish);
                        } else {
                            let span = Span { stretches, depth: *depth, right };
                            let left = Left { start: from, pitch: step, by_column: false };
                            kernels.panel(count, span, left, weights, corner, &finish);
                        }
                    }
                }
            }
        }
    }
}
