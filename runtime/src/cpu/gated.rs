//! Convolutions that leave out what gates shut: columns that are not needed, channels that are not there.
//!
//! The weights that remain are picked out of the packed ones, for each example anew, in the same layout; then the
//! convolution runs as one of fewer channels. Picking reads every row of the weights that is needed once and costs as much as a dozen places of the result: where nearly
//! all channels are open, all are computed, and those that are shut are multiplied by 0.
//!
//! Products of tokens have few rows and wide weights, which no cache holds twice. Of rows that are left, none is copied there: micro-kernels sum over stretches of one term.
//! Columns that are left are picked a panel at a time, which all rows of a task use before the next.
//!
//! Heads of attentions are stretches of neighbouring channels as wide as whole panels: they stay where they are, and those that are shut are jumped over.

use super::LINE;
use super::micro::{self, Corner, End, Finish, Left, Span, kernels};
use super::patch::Patch;
use std::cell::RefCell;
use std::ops::Range;

/// So many tokens stay in the cache while all columns are computed.
const CACHED: usize = 64;

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

/// Gates of channels, of one example.
#[derive(Clone, Copy)]
pub struct Channels {
    /// The numbers.
    pub gate: *const f32,
    /// If more of them are not 0, all count as open.
    pub most: usize,
}

impl Channels {
    /// The numbers of the channels that are open, of so many.
    ///
    /// # Safety
    /// The gate must have as many numbers.
    pub unsafe fn open(&self, count: usize, to: &mut Vec<u32>) {
        to.clear();
        to.extend(0..count as u32);
        // Every number is written where the next one goes; nothing is guessed.
        let mut found = 0;
        for k in 0..count {
            to[found] = k as u32;
            // SAFETY: the caller vouches for the gate's length.
            found += usize::from(unsafe { *self.gate.add(k) } != 0.0);
        }
        to.truncate(found);
        if found > self.most {
            to.clear();
            to.extend(0..count as u32);
        }
    }
}

/// Gates of heads, of one example.
#[derive(Clone, Copy)]
pub struct Heads {
    /// The first number.
    pub gate: *const f32,
    /// The distance of numbers.
    pub apart: usize,
    /// How many neighbouring channels a head has.
    pub width: usize,
}

impl Heads {
    /// Whether the head that a channel belongs to is open.
    ///
    /// # Safety
    /// The gate must have a number for that head.
    unsafe fn is_open(&self, channel: usize) -> bool {
        // SAFETY: the caller's contract.
        unsafe { *self.gate.add(channel / self.width * self.apart) != 0.0 }
    }
}

/// What a thread needs.
#[derive(Default)]
struct Memory {
    /// What the last runs of odd and of even numbers found: two that follow each other take turns in a [line buffer](crate::lower::line_buffer).
    found: [Found; 2],
    area: Vec<f32>,
    stretches: Vec<(usize, usize)>,
}

/// What gates leave of an example, kept from task to task: those of one example follow each other.
#[derive(Default)]
struct Found {
    /// The run, and where the gates, the bias and the scales of the example lie.
    of: (u64, [usize; 4]),
    inputs: Vec<u32>,
    columns: Vec<u32>,
    /// Memory for the next of both.
    new: Vec<u32>,
    /// Bias and scales of the columns that are left.
    ends: [Vec<f32>; 2],
    /// The weights that are left, if they were picked.
    weights: Vec<f32>,
    picked: bool,
}

impl Found {
    /// Looks at the gates, if these are not the ones of the last task.
    ///
    /// # Safety
    /// Gates, bias and scales must have as many numbers as `job` has channels and columns.
    unsafe fn look(&mut self, job: &Gated, gates: [Option<Channels>; 2], end: Option<&End>) {
        let place = |from: Option<*const f32>| from.map_or(0, |from| from.addr());
        let [inputs, columns] = gates.map(|channels| place(channels.map(|channels| channels.gate)));
        let of = (job.run, [inputs, columns, place(end.map(|e| e.bias)), place(end.map(|e| e.scale))]);
        if self.of == of {
            return;
        }
        // The same weights may be left of the next example.
        let mut last = self.of.0 == job.run && self.picked;
        self.of = of;
        let open_now = [(gates[0], job.patch.channels), (gates[1], job.n)];
        for ((gate, count), kept) in open_now.into_iter().zip([&mut self.inputs, &mut self.columns]) {
            match gate {
                // SAFETY: the caller's contract.
                Some(channels) => unsafe { channels.open(count, &mut self.new) },
                None => {
                    self.new.clear();
                    self.new.extend(0..count as u32);
                }
            }
            last &= self.new == *kept;
            std::mem::swap(&mut self.new, kept);
        }
        self.picked = last;
        let Some(end) = end.filter(|_| self.columns.len() < job.n) else { return };
        for (from, to) in [end.bias, end.scale].into_iter().zip(&mut self.ends) {
            to.clear();
            if !from.is_null() {
                // SAFETY: the caller's contract.
                to.extend(self.columns.iter().map(|&k| unsafe { *from.add(k as usize) }));
            }
        }
    }
    /// The end of the columns that are left.
    fn end(&self, end: End, all: bool) -> End {
        let kept = |from: *const f32, to: &[f32]| if all || from.is_null() { from } else { to.as_ptr() };
        End { bias: kept(end.bias, &self.ends[0]), scale: kept(end.scale, &self.ends[1]), ..end }
    }
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

impl Gated<'_> {
    /// Runs it. `gates`: numbers per channel of the image, and per column.
    ///
    /// # Safety
    /// As for [`Patch::run`]; gates must have as many numbers as the convolution has channels and columns.
    pub unsafe fn run(&self, image: *const f32, weights: *const f32, gates: [Option<Channels>; 2], finish: Finish) {
        MEMORY.with_borrow_mut(|memory| {
            let Memory { found, area, stretches } = memory;
            let found = &mut found[self.run as usize % 2];
            // SAFETY: the caller's contract.
            unsafe { found.look(self, gates, finish.end.as_ref()) };
            let full = (found.inputs.len() == self.patch.channels, found.columns.len() == self.n);
            let n = found.columns.len();
            let finish = Finish { end: finish.end.map(|end| found.end(end, full.1)), ..finish };
            if n == 0 {
                return;
            }
            if self.shut || found.inputs.is_empty() {
                // SAFETY: the caller's contract.
                return unsafe { self.nothing(n, &finish) };
            }
            if self.patch.is_tokens() {
                let open = Open { inputs: &found.inputs, columns: &found.columns, full };
                // SAFETY: the caller's contract.
                return unsafe { self.tokens(image, weights, open, (area, stretches), finish) };
            }
            let patch = Patch { channels: if self.patch.depthwise { n } else { found.inputs.len() }, ..*self.patch };
            // SAFETY: the caller's contract; memory has room for what is picked.
            unsafe {
                if full != (true, true) && !found.picked {
                    let Found { inputs, columns, weights: to, .. } = &mut *found;
                    match self.patch.depthwise {
                        true => pick_lines(self.patch.taps(), (self.n, columns), weights, to),
                        false => self.pick(inputs, columns, weights, to),
                    }
                    found.picked = true;
                }
                let weights = if found.picked { found.weights.as_ptr() } else { weights };
                let needed = patch.memory(&self.places);
                area.resize(area.len().max(needed), 0.0);
                patch.run(image, weights, n, self.places.clone(), area.as_mut_ptr(), self.out, &finish);
            }
        });
    }
    /// The same for tokens, of whose channels and columns gates shut whole heads. Columns of heads that are shut are left as they were.
    ///
    /// # Safety
    /// As for [`Gated::run`]; gates must have a number per head, heads among the columns must be as wide as whole panels.
    pub unsafe fn run_heads(
        &self,
        image: *const f32,
        weights: *const f32,
        [read, made]: [Option<Heads>; 2],
        finish: Finish,
    ) {
        MEMORY.with_borrow_mut(|Memory { stretches, .. }| {
            let (wide, channels) = (kernels().panel, self.patch.channels);
            let each = read.map_or(channels, |heads| heads.width);
            // SAFETY: the caller's contract.
            let is_open = |heads: Option<Heads>, at: usize| heads.is_none_or(|heads| unsafe { heads.is_open(at) });
            stretches.clear();
            let starts = (0..channels).step_by(each.max(1)).filter(|&at| is_open(read, at));
            stretches.extend(starts.map(|at| (at, at * wide)));
            if self.shut || stretches.is_empty() {
                // SAFETY: the caller's contract.
                return unsafe { self.nothing(self.n, &finish) };
            }
            let span = Span { stretches, depth: each, right: wide };
            let right = |first: usize| is_open(made, first).then(|| weights.wrapping_add(first * channels));
            // SAFETY: the caller's contract.
            unsafe { self.panels(image, (self.n, CACHED), span, &finish, right) };
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
        let (wide, channels, n) = (kernels().panel, self.patch.channels, open.columns.len());
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
        // Of a panel that was picked, all rows are computed before the next.
        let step = if open.full.1 { CACHED } else { self.places.len().max(1) };
        let right = |first: usize| {
            if open.full.1 {
                return Some(weights.wrapping_add(first * channels));
            }
            let columns = &open.columns[first..(first + wide).min(n)];
            // SAFETY: the caller's contract; the panel has room for all rows and a vector more.
            unsafe { pick_panel(columns, open.inputs, (apart, wide), weights, panel.as_mut_ptr()) };
            Some(panel.as_ptr())
        };
        // SAFETY: the caller's contract.
        unsafe { self.panels(image, (n, step), Span { stretches, depth, right: wide }, &finish, right) };
    }
    /// Tokens, so many rows at a time, by the panels of `n` columns; `right` says where the panel that begins with a column lies, if it is wanted.
    unsafe fn panels(
        &self,
        image: *const f32,
        (n, step): (usize, usize),
        span: Span,
        finish: &Finish,
        mut right: impl FnMut(usize) -> Option<*const f32>,
    ) {
        let (kernels, pixel, rows) = (kernels(), self.patch.steps[1], self.places.len());
        for row in (0..rows).step_by(step) {
            for first in (0..n).step_by(kernels.panel) {
                let Some(right) = right(first) else { continue };
                // SAFETY: the caller's contract.
                unsafe {
                    let start = image.add((self.places.start + row) * pixel);
                    let left = Left { start, pitch: pixel, by_column: false };
                    let start = self.out.0.add(row * self.out.1 + first);
                    let corner = Corner { start, pitch: self.out.1, cols: kernels.panel.min(n - first) };
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
    unsafe fn pick(&self, inputs: &[u32], columns: &[u32], from: *const f32, to: &mut Vec<f32>) {
        let (wide, channels) = (kernels().panel, self.patch.channels);
        // Winograd's weights have a place per element of a transformed tile.
        let taps = if self.patch.winograd { 16 } else { self.patch.taps() };
        let rows: Vec<u32> =
            (0..taps).flat_map(|tap| inputs.iter().map(move |&c| (tap * channels) as u32 + c)).collect();
        let panel = rows.len() * wide;
        to.resize(to.len().max(columns.len().div_ceil(wide) * panel + LINE), 0.0);
        for (at, columns) in columns.chunks(wide).enumerate() {
            let to = to.as_mut_ptr().wrapping_add(at * panel);
            // SAFETY: the weights cover all panels; behind each panel there is room for a vector, which the next one overwrites.
            unsafe { pick_panel(columns, &rows, (taps * channels * wide, wide), from, to) };
        }
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
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch, _mm512_loadu_ps, _mm512_maskz_compress_ps, _mm512_storeu_ps};
    /// So many rows of weights are fetched ahead of the one that is picked.
    const AHEAD: usize = 16;
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
        // Rows that are left are no pattern that the machine foresees.
        let ahead = rows.get(i + AHEAD).map_or(row, |&row| row) as usize * 32;
        for &(place, mask, at) in &parts[..count] {
            // SAFETY: panels are whole; behind the result there is room for a vector.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(from.add(place + ahead).cast());
                let numbers = _mm512_loadu_ps(from.add(place + row as usize * 32));
                _mm512_storeu_ps(to.add(i * 32 + at), _mm512_maskz_compress_ps(mask, numbers));
            }
        }
    }
}

/// Columns of depthwise weights, tap by tap.
unsafe fn pick_lines(taps: usize, (n, columns): (usize, &[u32]), from: *const f32, to: &mut Vec<f32>) {
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
}
