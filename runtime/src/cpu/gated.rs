//! Convolutions that leave out what gates shut: columns that are not needed, channels that are not there.
//!
//! The weights that remain are picked out of the packed ones, for each example anew, in the same layout; then the
//! convolution runs as one of fewer channels. Picking reads every row of the weights that is needed once and costs as much as one or two places of the result.
//!
//! Products of tokens have few rows and wide weights, which no cache holds twice. Of rows that are left, none is copied there: micro-kernels sum over stretches of one term.
//! Columns that are left are picked a panel at a time, which all rows of a task use before the next.

use super::LINE;
use super::micro::{self, Corner, End, Finish, Left, Span, kernels};
use super::patch::Patch;
use std::cell::RefCell;
use std::ops::Range;

/// Some rows of places of one example.
pub struct Gated<'a> {
    /// The convolution as it is without gates.
    pub patch: &'a Patch,
    /// Its columns.
    pub n: usize,
    /// The rows of places.
    pub places: Range<usize>,
    /// Where the first place's result begins, and the distance of places.
    pub out: (*mut f32, usize),
    /// Whether the sum is multiplied by 0.
    pub shut: bool,
    /// A number that no other run of a kernel has: within one, weights stay.
    pub run: u64,
}

/// What a thread needs.
#[derive(Default)]
struct Memory {
    inputs: Vec<u32>,
    columns: Vec<u32>,
    /// What was picked last by runs of odd and of even numbers: two that follow each other take turns in a [line buffer](crate::lower::line_buffer).
    picked: [Picked; 2],
    ends: Vec<f32>,
    area: Vec<f32>,
    stretches: Vec<(usize, usize)>,
}

/// Picked weights, and what they were picked for: the run of which kernel, the rows, the columns.
#[derive(Default)]
struct Picked {
    weights: Vec<f32>,
    run: u64,
    inputs: Vec<u32>,
    columns: Vec<u32>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

impl Gated<'_> {
    /// Runs it. `gates`: numbers per channel of the image, and per column.
    ///
    /// # Safety
    /// As for [`Patch::run`]; gates must have as many numbers as the convolution has channels and columns.
    pub unsafe fn run(&self, image: *const f32, weights: *const f32, gates: [Option<*const f32>; 2], finish: Finish) {
        MEMORY.with_borrow_mut(|memory| {
            let Memory { inputs, columns, picked, ends, area, stretches } = memory;
            let picked = &mut picked[self.run as usize % 2];
            // SAFETY: the caller's contract.
            unsafe {
                open(gates[0], self.patch.channels, inputs);
                open(gates[1], self.n, columns);
            }
            let full = (inputs.len() == self.patch.channels, columns.len() == self.n);
            let n = columns.len();
            // SAFETY: the caller's contract.
            let end = finish.end.map(|end| if full.1 { end } else { unsafe { compact(&end, columns, ends) } });
            if columns.is_empty() {
                return;
            }
            if self.shut || inputs.is_empty() {
                // SAFETY: the caller's contract.
                return unsafe { self.nothing(n, &Finish { end, ..finish }) };
            }
            if self.patch.is_tokens() {
                let open = Open { inputs, columns, full };
                // SAFETY: the caller's contract.
                return unsafe { self.tokens(image, weights, open, (area, stretches), Finish { end, ..finish }) };
            }
            let patch = Patch { channels: if self.patch.depthwise { n } else { inputs.len() }, ..*self.patch };
            // SAFETY: the caller's contract; memory has room for what is picked.
            unsafe {
                let weights = match full {
                    (true, true) => weights,
                    // Tasks of one example follow each other.
                    _ if (picked.run, &picked.inputs, &picked.columns) == (self.run, &*inputs, &*columns) => {
                        picked.weights.as_ptr()
                    }
                    _ => {
                        picked.run = self.run;
                        picked.inputs.clone_from(inputs);
                        picked.columns.clone_from(columns);
                        match self.patch.depthwise {
                            true => pick_lines(self.patch.taps(), (self.n, columns), weights, &mut picked.weights),
                            false => self.pick(inputs, columns, weights, &mut picked.weights),
                        }
                    }
                };
                let needed = patch.memory(&self.places);
                area.resize(area.len().max(needed), 0.0);
                patch.run(
                    image,
                    weights,
                    n,
                    self.places.clone(),
                    area.as_mut_ptr(),
                    self.out,
                    &Finish { end, ..finish },
                );
            }
        });
    }
    /// The same for tokens.
    unsafe fn tokens(
        &self,
        image: *const f32,
        weights: *const f32,
        open: Open,
        (panel, stretches): (&mut Vec<f32>, &mut Vec<(usize, usize)>),
        finish: Finish,
    ) {
        let (kernels, pixel, channels) = (kernels(), self.patch.steps[1], self.patch.channels);
        let (wide, n, rows) = (kernels.panel, open.columns.len(), self.places.len());
        let apart = channels * wide;
        let all = [(0, 0)];
        // Rows of a panel that was picked follow each other.
        let (stretches, depth): (&[(usize, usize)], usize) = match open.full {
            (true, _) => (&all, channels),
            (false, false) => (&all, open.inputs.len()),
            (false, true) => {
                stretches.clear();
                stretches.extend(open.inputs.iter().enumerate().map(|(at, &row)| (at, row as usize * wide)));
                (stretches, 1)
            }
        };
        panel.resize(panel.len().max((apart + LINE) * usize::from(!open.full.1)), 0.0);
        // So many rows stay in the cache while all columns are computed; those of a panel that was picked, all of them.
        let step = if open.full.1 { 64 } else { rows.max(1) };
        for row in (0..rows).step_by(step) {
            for first in (0..n).step_by(wide) {
                let columns = &open.columns[first..(first + wide).min(n)];
                // SAFETY: the caller's contract; the panel has room for all rows and a vector more.
                unsafe {
                    let right = if open.full.1 {
                        weights.add(first * channels)
                    } else {
                        pick_panel(columns, open.inputs, (apart, wide), weights, panel.as_mut_ptr());
                        panel.as_ptr()
                    };
                    let start = image.add((self.places.start + row) * pixel);
                    let left = Left { start, pitch: pixel, by_column: false };
                    let start = self.out.0.add(row * self.out.1 + first);
                    let corner = Corner { start, pitch: self.out.1, cols: columns.len() };
                    let span = Span { stretches, depth, right: wide };
                    kernels.panel(step.min(rows - row), span, left, right, corner, &finish.at(row, first));
                }
            }
        }
    }
    /// The result where the sum is 0.
    unsafe fn nothing(&self, n: usize, finish: &Finish) {
        let rows = self.places.len() * self.patch.grid.1;
        for place in (0..rows).filter(|_| !finish.add) {
            // SAFETY: the caller's contract.
            unsafe { std::slice::from_raw_parts_mut(self.out.0.add(place * self.out.1), n).fill(0.0) };
        }
        if let Some(end) = finish.end {
            // SAFETY: the caller's contract.
            unsafe { micro::end(rows, n, self.out, &end) };
        }
    }
    /// Rows and columns of packed weights, in panels. What is beyond the last column is not defined.
    unsafe fn pick(&self, inputs: &[u32], columns: &[u32], from: *const f32, to: &mut Vec<f32>) -> *const f32 {
        let (wide, channels) = (kernels().panel, self.patch.channels);
        // Winograd's weights have a place per element of a transformed tile.
        let taps = if self.patch.winograd { 16 } else { self.patch.taps() };
        let job = Pick { taps, channels, wide, inputs, columns };
        to.resize(to.len().max(job.len(self.n)), 0.0);
        // SAFETY: the weights cover all panels; there is room for what is picked, and for a row with a vector more.
        unsafe { job.run(self.n, from, to.as_mut_ptr()) };
        to.as_ptr()
    }
}

/// What gates leave, and whether it is everything: channels of the image, columns.
#[derive(Clone, Copy)]
struct Open<'a> {
    inputs: &'a [u32],
    columns: &'a [u32],
    full: (bool, bool),
}

/// Some rows of some columns, as a panel. `apart`: the distance of panels, which have rows of `wide` numbers. Behind the result there must be room for a vector.
unsafe fn pick_panel(columns: &[u32], rows: &[u32], (apart, wide): (usize, usize), from: *const f32, to: *mut f32) {
    #[cfg(target_arch = "x86_64")]
    if super::simd::level() == super::simd::Level::Avx512 && wide == 32 {
        // SAFETY: the machine has the instructions; the caller's contract.
        return unsafe { pick_panel512(columns, rows, apart, from, to) };
    }
    for (i, &row) in rows.iter().enumerate() {
        for (j, &k) in columns.iter().enumerate() {
            let (panel, place) = (k as usize / wide, k as usize % wide);
            // SAFETY: the caller's contract.
            unsafe { *to.add(i * wide + j) = *from.add(panel * apart + row as usize * wide + place) };
        }
    }
}

/// Sixteen columns at a time, those that are wanted moved together; the next row overwrites what a vector is too long.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn pick_panel512(columns: &[u32], rows: &[u32], apart: usize, from: *const f32, to: *mut f32) {
    use std::arch::x86_64::{_mm512_loadu_ps, _mm512_maskz_compress_ps, _mm512_storeu_ps};
    // Where sixteen columns lie, which of them are wanted, and where these go.
    let mut parts = [(0, 0u16, 0); 32];
    let mut count = 0;
    for (j, &k) in columns.iter().enumerate() {
        let place = k as usize / 32 * apart + k as usize % 32 / 16 * 16;
        if count == 0 || parts[count - 1].0 != place {
            parts[count] = (place, 0, j);
            count += 1;
        }
        parts[count - 1].1 |= 1 << (k % 16);
    }
    for (i, &row) in rows.iter().enumerate() {
        for &(place, mask, at) in &parts[..count] {
            // SAFETY: panels are whole; behind the result there is room for a vector.
            unsafe {
                let numbers = _mm512_loadu_ps(from.add(place + row as usize * 32));
                _mm512_storeu_ps(to.add(i * 32 + at), _mm512_maskz_compress_ps(mask, numbers));
            }
        }
    }
}

/// The numbers of the entries that are not 0; all of them without a gate.
unsafe fn open(gate: Option<*const f32>, count: usize, to: &mut Vec<u32>) {
    to.clear();
    match gate {
        None => to.extend(0..count as u32),
        // SAFETY: the caller vouches for the gate's length.
        Some(gate) => to.extend((0..count as u32).filter(|&k| unsafe { *gate.add(k as usize) } != 0.0)),
    }
}

/// Columns of depthwise weights, tap by tap.
unsafe fn pick_lines(taps: usize, (n, columns): (usize, &[u32]), from: *const f32, to: &mut Vec<f32>) -> *const f32 {
    let (old, new) = (n.next_multiple_of(LINE), columns.len().next_multiple_of(LINE));
    to.resize(to.len().max(taps * new), 0.0);
    for tap in 0..taps {
        let line = &mut to[tap * new..][..new];
        for (x, &k) in line.iter_mut().zip(columns) {
            // SAFETY: the caller's contract.
            *x = unsafe { *from.add(tap * old + k as usize) };
        }
        line[columns.len()..].fill(0.0);
    }
    to.as_ptr()
}

/// The end of fewer columns.
unsafe fn compact(end: &End, columns: &[u32], memory: &mut Vec<f32>) -> End {
    let n = columns.len().next_multiple_of(LINE);
    memory.resize(memory.len().max(2 * n), 0.0);
    let (first, second) = memory.split_at_mut(n);
    let pick = |from: *const f32, to: &mut [f32]| {
        if from.is_null() {
            return from;
        }
        // SAFETY: bias and gate have a number per column.
        to.iter_mut().zip(columns).for_each(|(x, &k)| *x = unsafe { *from.add(k as usize) });
        to.as_ptr()
    };
    End { bias: pick(end.bias, first), scale: pick(end.scale, second), ..*end }
}

/// What is picked out of packed weights: for every tap (or place of a tile) some rows, of which some columns.
struct Pick<'a> {
    taps: usize,
    channels: usize,
    wide: usize,
    inputs: &'a [u32],
    columns: &'a [u32],
}

impl Pick<'_> {
    /// Elements of memory: the result, and a row of all columns and a vector more.
    fn len(&self, n: usize) -> usize {
        self.start_of_row() + n.next_multiple_of(self.wide) + LINE
    }
    fn start_of_row(&self) -> usize {
        self.columns.len().div_ceil(self.wide) * self.taps * self.inputs.len() * self.wide
    }
    /// The rows of the source, with their numbers in the result.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let row = move |tap: usize| self.inputs.iter().map(move |&c| (tap * self.channels + c as usize) * self.wide);
        (0..self.taps).flat_map(row).enumerate()
    }
    unsafe fn run(&self, n: usize, from: *const f32, to: *mut f32) {
        #[cfg(target_arch = "x86_64")]
        if super::simd::level() == super::simd::Level::Avx512 && self.wide == 32 {
            let mut masks = vec![0u16; n.div_ceil(LINE)];
            self.columns.iter().for_each(|&k| masks[k as usize / 16] |= 1 << (k % 16));
            // SAFETY: the machine has the instructions; the caller's contract.
            return unsafe { self.run512(&masks, from, to) };
        }
        let (apart, new) = (self.taps * self.channels * self.wide, self.taps * self.inputs.len() * self.wide);
        for (row, source) in self.rows() {
            for (j, &k) in self.columns.iter().enumerate() {
                let (old, place) = (k as usize / self.wide, k as usize % self.wide);
                let target = j / self.wide * new + row * self.wide + j % self.wide;
                // SAFETY: the caller's contract.
                unsafe { *to.add(target) = *from.add(old * apart + source + place) };
            }
        }
    }
    /// Sixteen numbers at a time, those that are wanted moved together.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn run512(&self, masks: &[u16], from: *const f32, to: *mut f32) {
        use std::arch::x86_64::{_mm512_loadu_ps, _mm512_maskz_compress_ps, _mm512_storeu_ps};
        let (apart, new) = (self.taps * self.channels * self.wide, self.taps * self.inputs.len() * self.wide);
        let panels = self.columns.len().div_ceil(self.wide);
        let row_start = to.wrapping_add(self.start_of_row());
        for (row, source) in self.rows() {
            let source = from.wrapping_add(source);
            // One panel is written where it belongs; the next row overwrites what a vector is too long.
            let mut line = if panels == 1 { to.wrapping_add(row * self.wide) } else { row_start };
            let first = line;
            for (i, &mask) in masks.iter().enumerate() {
                // SAFETY: panels are whole; behind the result there is room for a vector.
                unsafe {
                    let numbers = _mm512_loadu_ps(source.add(i / 2 * apart + i % 2 * 16));
                    _mm512_storeu_ps(line, _mm512_maskz_compress_ps(mask, numbers));
                    line = line.add(mask.count_ones() as usize);
                }
            }
            if panels > 1 {
                for half in 0..2 * panels {
                    // SAFETY: the row has all panels.
                    unsafe {
                        let numbers = _mm512_loadu_ps(first.add(half * 16));
                        _mm512_storeu_ps(to.add(half / 2 * new + row * self.wide + half % 2 * 16), numbers);
                    }
                }
            }
        }
    }
}
