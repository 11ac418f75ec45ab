//! The gradient of a convolution by its weights.
//!
//! `dw[ky, kx, c, m] = Σ over images and places of x[place · stride − pad + (ky, kx), c] · dy[place, m]`: for every row of the window a
//! product of two matrices whose rows are places. Both factors are read where they lie, channels last: `x` from an [area](super::patch::Area)
//! with its zeros, or from the image itself under a window of one tap. Sums stay in registers over all places of some images.
//! The images are cut into parts that depend on shapes only; each makes a gradient of its own, and these are added in order.

use super::fused::Bases;
use super::micro::{Corner, Finish, Left, Span, kernels};
use super::patch::{Area, Patch};
use super::skinny::Shape;
use super::{LINE, Shared, each, gemm};
use crate::lower::view::{BufId, View};
use std::cell::RefCell;
use std::ops::Range;

/// See the [module](self).
#[derive(Clone, PartialEq, Debug)]
pub struct ConvWeightGrad {
    /// The convolution; `channels` are those of one group, or all if it is depthwise.
    pub patch: Patch,
    /// The number of images.
    pub images: usize,
    /// Channels of dy, of one group.
    pub outputs: usize,
    /// Where x begins, and the distances of its images and groups.
    pub x: (BufId, usize, usize, usize),
    /// Where dy begins, the distances of its images and groups, and those of its rows, pixels and channels.
    pub dy: (BufId, usize, usize, usize, [usize; 3]),
    /// Where the gradient goes, in the order of the weights.
    pub dw: View,
}

/// Elements of both factors that are summed before a result is written: what a second-level cache holds.
const GATHERED: usize = 64 * 1024;
/// Parts that images are cut into at most, and elements of all their gradients.
const PARTS: usize = 16;
const MOST: usize = 1 << 20;

/// Some rows of places of one image.
struct Unit {
    image: usize,
    rows: Range<usize>,
}

impl ConvWeightGrad {
    /// Rows (taps and channels) and columns of a group's gradient.
    fn extent(&self) -> (usize, usize) {
        let p = &self.patch;
        if p.depthwise { (p.taps(), p.channels) } else { (p.taps() * p.channels, self.outputs) }
    }
    fn groups(&self) -> usize {
        self.patch.groups.0
    }
    fn parts(&self) -> usize {
        let (rows, cols) = self.extent();
        let most = (MOST / (rows * cols * self.groups()).max(1)).clamp(1, PARTS);
        (1..=most.min(self.images.max(1))).rev().find(|&p| self.images.div_ceil(p) * (p - 1) < self.images).unwrap_or(1)
    }
    /// Panels of columns per task: several tasks share a part where there are few parts.
    fn panels_per_task(&self) -> (usize, usize) {
        let panels = if self.patch.depthwise { 1 } else { self.extent().1.div_ceil(kernels().panel) };
        let tasks = (PARTS / (self.parts() * self.groups()).max(1)).clamp(1, panels);
        (panels, panels.div_ceil(tasks))
    }
    /// Elements of scratch memory.
    pub fn scratch(&self) -> usize {
        let (rows, cols) = self.extent();
        self.parts() * self.groups() * rows * cols
    }
    /// Floating-point operations.
    pub fn flops(&self) -> u64 {
        let (rows, cols) = self.extent();
        let places = self.images * self.patch.grid.0 * self.patch.grid.1;
        2 * (places * self.groups() * rows * cols) as u64
    }
    /// Whether x is read from the image itself.
    fn in_place(&self) -> bool {
        let p = &self.patch;
        let vectors = !p.depthwise || p.channels.is_multiple_of(LINE);
        p.taps() == 1 && p.pad == (0, 0) && p.steps[2] == 1 && p.reaches_inside() && vectors
    }
    /// Whether it is one product of pixels of all images of a part, all evenly spaced.
    fn is_product(&self) -> bool {
        let (p, dy) = (&self.patch, &self.dy);
        let even = |[row, pixel, channel]: [usize; 3], image: usize| {
            let follows = p.grid.0 == 1 || row == p.grid.1 * pixel;
            channel == 1 && follows && (self.images == 1 || image == p.grid.0 * p.grid.1 * pixel)
        };
        let whole = p.stride == (1, 1) && p.image == p.grid && self.in_place();
        // Small gradients stay in a cache; for them copies of the factors do not pay.
        let (rows, cols) = self.extent();
        gemm::panel() > 0
            && rows * cols >= 1 << 16
            && !p.depthwise
            && whole
            && even(p.steps, self.x.2)
            && even(dy.4, dy.2)
    }
    /// Whether dy can be read where it is: whole vectors, channels last.
    fn dy_in_place(&self) -> bool {
        let cols = self.extent().1;
        self.dy.4[2] == 1 && (cols.is_multiple_of(LINE) || cols.is_multiple_of(kernels().panel / 2))
    }
    /// Runs it.
    ///
    /// # Safety
    /// Operands and result must stay inside their buffers, `scratch` must hold [`ConvWeightGrad::scratch`] elements.
    pub unsafe fn run(&self, bases: Bases, scratch: *mut f32) {
        let (rows, cols) = self.extent();
        let (parts, groups, (panels, per_task)) = (self.parts(), self.groups(), self.panels_per_task());
        let splits = panels.div_ceil(per_task);
        let shared = Shared(bases);
        let memory = super::contract::Address(scratch);
        each(parts * groups * splits, |task| {
            let (part, rest) = (task / (groups * splits), task % (groups * splits));
            let (group, split) = (rest / splits, rest % splits);
            let out = memory.get().wrapping_add((part * groups + group) * rows * cols);
            let columns = split * per_task..panels.min((split + 1) * per_task);
            // SAFETY: the caller's contract; tasks write disjoint columns.
            unsafe { self.part(shared.get(), part, group, columns, out) };
        });
        let out = super::contract::Address(bases[self.dw.buf.index()].wrapping_add(self.dw.offset));
        let per_task = (16 * 1024 / cols.max(1)).max(1);
        each((groups * rows).div_ceil(per_task), |task| {
            for row in task * per_task..(groups * rows).min((task + 1) * per_task) {
                // SAFETY: as above; rows have places of their own.
                unsafe { self.add_parts(memory.get(), parts, row, out.get()) };
            }
        });
    }
    /// Adds up one row of the parts' gradients and writes it where the weights have it.
    unsafe fn add_parts(&self, from: *const f32, parts: usize, row: usize, out: *mut f32) {
        let (rows, cols) = self.extent();
        let (group, row) = (row / rows, row % rows);
        let p = &self.patch;
        let channels = if p.depthwise { 1 } else { p.channels };
        let (tap, c) = (row / channels, row % channels);
        let (ky, kx) = (tap / p.kernel.1, tap % p.kernel.1);
        let [down, right, channel] = p.weights;
        let filter = p.taps() * channels;
        let start = group * p.groups.1 + ky * down + kx * right + c * channel;
        for j in 0..cols {
            let mut sum = 0.0;
            for part in 0..parts {
                // SAFETY: the caller's contract.
                sum += unsafe { *from.add(((part * self.groups() + group) * rows + row) * cols + j) };
            }
            // SAFETY: as above.
            unsafe { *out.add(start + j * filter) = sum };
        }
    }
    /// The gradient of some images, some columns.
    unsafe fn part(&self, bases: Bases, part: usize, group: usize, panels: Range<usize>, out: *mut f32) {
        let per_part = self.images.div_ceil(self.parts());
        let images = part * per_part..self.images.min((part + 1) * per_part);
        if self.is_product() {
            let (rows, cols) = self.extent();
            let wide = kernels().panel;
            let first = panels.start * wide;
            let places = self.patch.grid.0 * self.patch.grid.1;
            let shape = Shape { m: rows, n: cols.min(panels.end * wide) - first, k: images.len() * places };
            let (x, dy) = (&self.x, &self.dy);
            let x = bases[x.0.index()].wrapping_add(x.1 + images.start * x.2 + group * x.3).cast_const();
            let place = dy.1 + images.start * dy.2 + group * dy.3 + first;
            let dy = bases[dy.0.index()].wrapping_add(place).cast_const();
            let (left, right) = ((x, 1, self.patch.steps[1]), (dy, self.dy.4[1], 1));
            // SAFETY: the caller's contract.
            unsafe { gemm::product(shape, left, right, (out.wrapping_add(first), cols, 1), &Finish::PLAIN) };
            return;
        }
        let mut add = false;
        for units in self.batches(images) {
            // SAFETY: the caller's contract.
            unsafe { self.batch(bases, &units, group, panels.clone(), out, add) };
            add = true;
        }
    }
    /// Images cut into what is multiplied at once.
    fn batches(&self, images: Range<usize>) -> Vec<Vec<Unit>> {
        let p = &self.patch;
        let (_, cols) = self.extent();
        let size = p.grid.1 * (p.channels * p.stride.0 * p.stride.1 + cols);
        let high = (GATHERED / size.max(1)).clamp(1, p.grid.0);
        let per_batch = (GATHERED / (size * p.grid.0).max(1)).max(1);
        let mut batches: Vec<Vec<Unit>> = Vec::new();
        for (count, image) in images.enumerate() {
            for start in (0..p.grid.0).step_by(high) {
                let unit = Unit { image, rows: start..p.grid.0.min(start + high) };
                match batches.last_mut().filter(|_| high == p.grid.0 && count % per_batch != 0) {
                    Some(batch) => batch.push(unit),
                    None => batches.push(vec![unit]),
                }
            }
        }
        batches
    }
    unsafe fn batch(&self, bases: Bases, units: &[Unit], group: usize, panels: Range<usize>, out: *mut f32, add: bool) {
        let p = &self.patch;
        let (_, cols) = self.extent();
        let image = |i: usize| {
            let (buf, offset, step, by_group) = self.x;
            bases[buf.index()].wrapping_add(offset + i * step + group * by_group).cast_const()
        };
        let areas: Vec<Area> = units.iter().map(|u| p.area(&u.rows)).collect();
        let padded = cols.next_multiple_of(LINE);
        let x_len: usize = if self.in_place() { 0 } else { areas.iter().map(Area::size).sum() };
        let dy_len = |u: &Unit| u.rows.len() * p.grid.1 * padded;
        let dy_total: usize = if self.dy_in_place() { 0 } else { units.iter().map(dy_len).sum::<usize>() + LINE };
        MEMORY.with_borrow_mut(|memory| {
            memory.resize(memory.len().max(x_len + dy_total), 0.0);
            let (x_memory, dy_memory) = (memory.as_mut_ptr(), memory.as_mut_ptr().wrapping_add(x_len));
            let (mut x_place, mut dy_place) = (0, 0);
            let (left, right) = (image(0), bases[self.dy.0.index()].cast_const());
            let (left, x_step) = if self.in_place() {
                (left, p.stride.1 * p.steps[1])
            } else {
                (x_memory.cast_const(), p.stride.1 * p.channels)
            };
            let [dy_row, dy_pixel, _] = self.dy.4;
            let (right, dy_step) =
                if self.dy_in_place() { (right, dy_pixel) } else { (dy_memory.cast_const(), padded) };
            let mut stretches = Vec::new();
            // The distance of the window's rows and columns; the same in all areas, which span whole rows.
            let pitch = areas.first().map_or(0, Area::pitch);
            for (unit, area) in units.iter().zip(&areas) {
                let dy_start = self.dy.1 + unit.image * self.dy.2 + group * self.dy.3;
                // SAFETY: the memory has room for all areas.
                unsafe {
                    if !self.in_place() {
                        p.fill(area, image(unit.image), x_memory.add(x_place));
                    }
                    if !self.dy_in_place() {
                        let from = bases[self.dy.0.index()].add(dy_start);
                        self.gather_dy(from, unit, padded, dy_memory.add(dy_place));
                    }
                }
                for (i, oy) in unit.rows.clone().enumerate() {
                    let x = if self.in_place() {
                        unit.image * self.x.2 + oy * p.stride.0 * p.steps[0]
                    } else {
                        x_place + i * p.stride.0 * pitch
                    };
                    let dy = if self.dy_in_place() { dy_start + oy * dy_row } else { dy_place + i * p.grid.1 * padded };
                    stretches.push((x, dy));
                }
                x_place += area.size();
                dy_place += dy_len(unit);
            }
            let (stretches, depth) = joined(stretches, p.grid.1, (x_step, dy_step));
            let span = Span { stretches: &stretches, depth, right: dy_step };
            // SAFETY: as above; the rest is the caller's contract.
            unsafe {
                if p.depthwise {
                    let tap = |t: usize| {
                        let (ky, kx) = (t / p.kernel.1, t % p.kernel.1);
                        ky * p.dilation.0 * pitch + kx * p.dilation.1 * p.channels
                    };
                    let taps: Vec<usize> = (0..p.taps()).map(tap).collect();
                    let corner = Corner { start: out, pitch: cols, cols };
                    kernels().correlate(&taps, span, (left, x_step), right, corner, add);
                } else {
                    self.multiply(span, (left, x_step, pitch), right, panels, out, add);
                }
            }
        });
    }
    /// All rows of the window, as many taps at a time as lie side by side.
    unsafe fn multiply(
        &self,
        span: Span,
        (left, step, pitch): (*const f32, usize, usize),
        right: *const f32,
        panels: Range<usize>,
        out: *mut f32,
        add: bool,
    ) {
        let p = &self.patch;
        let (kernels, (_, cols)) = (kernels(), self.extent());
        let (runs, wide) = if p.dilation.1 == 1 { (1, p.kernel.1) } else { (p.kernel.1, 1) };
        for panel in panels {
            let columns = kernels.panel.min(cols - panel * kernels.panel);
            for ky in 0..p.kernel.0 {
                for run in 0..runs {
                    let from = ky * p.dilation.0 * pitch + run * p.dilation.1 * p.channels;
                    let row = (ky * p.kernel.1 + run) * p.channels;
                    let place = row * cols + panel * kernels.panel;
                    // SAFETY: the caller's contract.
                    unsafe {
                        let left = Left { start: left.add(from), pitch: step, by_column: true };
                        let corner = Corner { start: out.add(place), pitch: cols, cols: columns };
                        let right = right.add(panel * kernels.panel);
                        let finish = Finish { add, ..Finish::PLAIN };
                        kernels.panel(wide * p.channels, span, left, right, corner, &finish);
                    }
                }
            }
        }
    }
    /// Copies the gradient of some rows of places, channels last, to rows of `padded` channels.
    unsafe fn gather_dy(&self, from: *const f32, unit: &Unit, padded: usize, to: *mut f32) {
        let (_, cols) = self.extent();
        let [row, pixel, channel] = self.dy.4;
        for (i, oy) in unit.rows.clone().enumerate() {
            for ox in 0..self.patch.grid.1 {
                // SAFETY: the caller's contract.
                unsafe {
                    let from = from.add(oy * row + ox * pixel);
                    let line = std::slice::from_raw_parts_mut(to.add((i * self.patch.grid.1 + ox) * padded), padded);
                    (0..cols).for_each(|c| line[c] = *from.add(c * channel));
                    line[cols..].fill(0.0);
                }
            }
        }
    }
}

/// Stretches that follow each other in both factors as one.
fn joined(stretches: Vec<(usize, usize)>, depth: usize, (left, right): (usize, usize)) -> (Vec<(usize, usize)>, usize) {
    let follows = |w: &[(usize, usize)]| w[1] == (w[0].0 + depth * left, w[0].1 + depth * right);
    if stretches.len() > 1 && stretches.windows(2).all(follows) {
        let depth = depth * stretches.len();
        return (stretches[..1].to_vec(), depth);
    }
    (stretches, depth)
}

thread_local! {
    static MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}
