//! Winograd's F(2 × 2, 3 × 3): four neighbouring results of a 3 × 3 convolution from 16 products instead of 36.
//!
//! ```text
//! Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A         d: 4 × 4 pixels, g: the filter, Y: 2 × 2 results
//! Bᵀ = 1  0 −1  0     G = 1   0   0        Aᵀ = 1  1  1  0
//!      0  1  1  0         ½   ½   ½             0  1 −1 −1
//!      0 −1  1  0         ½  −½   ½
//!      0  1  0 −1         0   0   1
//! ```
//! (Winograd 1980; Lavin and Gray, arXiv 1509.09308.) Summed over channels, the element-wise products are 16 matrix products, tiles by
//! channels, which the micro-kernels compute; the filters are transformed when they are packed. It is used where weights stay the same
//! from run to run, channels fill whole vectors and there are enough of them. With sums and weights of magnitude 1
//! results differ from the exact ones by some 1e-6 of the largest (`winograd_is_near_the_exact_sum` in `tests/kernels.rs`).

use super::micro::{self, Corner, Finish, Left, Span, kernels};
use super::patch::Patch;
use super::{LINE, on_line};
use crate::multiversion;
use std::ops::Range;

/// Elements of a transformed tile.
const PLACES: usize = 16;
/// Tiles that a task has at least, if there are so many: products of fewer rows are not worth it.
const TILES: usize = 28;
/// Channels in and out, at least.
const CHANNELS: usize = 32;

/// Whether a convolution to `n` channels is computed this way.
pub fn suits(p: &Patch, n: usize) -> bool {
    let plain = p.kernel == (3, 3) && p.stride == (1, 1) && p.dilation == (1, 1) && p.groups.0 == 1;
    plain && !p.transposed && !p.depthwise && p.channels.is_multiple_of(LINE) && p.channels >= CHANNELS && n >= CHANNELS
}

/// Rows of places per task: even, so that tiles do not lie across tasks.
pub fn rows_per_task(grid: (usize, usize)) -> usize {
    2 * TILES.div_ceil(grid.1.div_ceil(2).max(1)).max(1)
}

/// Elements of packed weights.
pub fn packed_len(p: &Patch, n: usize) -> usize {
    PLACES * p.channels * n.next_multiple_of(kernels().panel)
}

/// The distance of the rows of transformed tiles: not a multiple of large powers of 2.
fn pitch(p: &Patch) -> usize {
    p.channels + LINE
}

/// The elements of all transformed tiles of an example's channel.
pub fn elements(p: &Patch) -> usize {
    let (high, wide) = tiles(p, p.grid.0);
    high * wide * 16
}

fn tiles(p: &Patch, rows: usize) -> (usize, usize) {
    (rows.div_ceil(2), p.grid.1.div_ceil(2))
}

/// Elements of memory that a task of some rows needs.
pub fn memory(p: &Patch, rows: &Range<usize>) -> usize {
    let (high, wide) = tiles(p, rows.len());
    p.even_area(rows).size() + PLACES * high * wide * (pitch(p) + kernels().panel) + LINE
}

/// Packs one panel of weights whose columns are `across` apart: for every place of a tile the panel's rows, one per channel.
///
/// # Safety
/// As for [`Patch::pack`].
pub unsafe fn pack(p: &Patch, weights: *const f32, across: usize, n: usize, panel: usize, to: *mut f32) {
    let wide = kernels().panel;
    let [row, col, channel] = p.weights;
    let to = to.wrapping_add(panel * PLACES * p.channels * wide);
    for c in 0..p.channels {
        for j in 0..wide {
            let column = panel * wide + j;
            let mut g = [[0f32; 3]; 3];
            if column < n {
                let from = weights.wrapping_add(c * channel + column * across);
                // SAFETY: the caller's contract.
                g = std::array::from_fn(|y| std::array::from_fn(|x| unsafe { *from.add(y * row + x * col) }));
            }
            let half = |[a, b, c]: [f32; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
            let down: [[f32; 4]; 3] = std::array::from_fn(|x| half([g[0][x], g[1][x], g[2][x]]));
            for y in 0..4 {
                for (x, value) in half([down[0][y], down[1][y], down[2][y]]).into_iter().enumerate() {
                    // SAFETY: the caller's contract.
                    unsafe { *to.add(((y * 4 + x) * p.channels + c) * wide + j) = value };
                }
            }
        }
    }
}

/// Some rows of places, beginning at an even one.
///
/// # Safety
/// As for [`Patch::run`], with [`memory`] elements.
pub unsafe fn run(
    p: &Patch,
    image: *const f32,
    weights: *const f32,
    n: usize,
    rows: Range<usize>,
    start: *mut f32,
    (out, step): (*mut f32, usize),
    finish: &Finish,
) {
    let (kernels, area, (high, wide)) = (kernels(), p.even_area(&rows), tiles(p, rows.len()));
    let count = high * wide;
    let transformed = on_line(start.wrapping_add(area.size()));
    let products = transformed.wrapping_add(PLACES * count * pitch(p));
    // SAFETY: the caller's contract.
    unsafe {
        p.fill(&area, image, start);
        let job = Job { tiles: (high, wide), channels: p.channels, pitch: pitch(p) };
        to_tiles(&job, start, area.pitch(), transformed);
        let panel = kernels.panel;
        for first in (0..n).step_by(panel) {
            let right = weights.wrapping_add(first * PLACES * p.channels);
            for place in 0..PLACES {
                let left = Left {
                    start: transformed.wrapping_add(place * count * job.pitch),
                    pitch: job.pitch,
                    by_column: false,
                };
                let corner = Corner { start: products.wrapping_add(place * count * panel), pitch: panel, cols: panel };
                let span = Span { stretches: &[(0, 0)], depth: p.channels, right: panel };
                let right = right.wrapping_add(place * p.channels * panel);
                kernels.panel(count, span, left, right, corner, &Finish::PLAIN);
            }
            let target = Target {
                start: out.wrapping_add(first),
                step,
                grid: (rows.len(), p.grid.1),
                cols: panel.min(n - first),
                add: finish.add,
            };
            from_tiles(&job, products, panel, &target);
        }
        if let Some(end) = &finish.end {
            micro::end(rows.len() * p.grid.1, n, (out, step), end);
        }
    }
}

struct Job {
    tiles: (usize, usize),
    channels: usize,
    pitch: usize,
}

struct Target {
    start: *mut f32,
    step: usize,
    grid: (usize, usize),
    cols: usize,
    add: bool,
}

/// Numbers that are worked on at a time.
type Lanes = [f32; LINE];

#[inline(always)]
fn plus(a: &Lanes, b: &Lanes) -> Lanes {
    let mut sum = *a;
    for i in 0..LINE {
        sum[i] += b[i];
    }
    sum
}

#[inline(always)]
fn minus(a: &Lanes, b: &Lanes) -> Lanes {
    let mut rest = *a;
    for i in 0..LINE {
        rest[i] -= b[i];
    }
    rest
}

/// `Bᵀ` times four.
#[inline(always)]
fn spread(d: &[Lanes; 4]) -> [Lanes; 4] {
    [minus(&d[0], &d[2]), plus(&d[1], &d[2]), minus(&d[2], &d[1]), minus(&d[1], &d[3])]
}

/// `Aᵀ` times four.
#[inline(always)]
fn gather(m: &[Lanes; 4]) -> [Lanes; 2] {
    let (sum, rest) = (plus(&m[1], &m[2]), minus(&m[1], &m[2]));
    [plus(&m[0], &sum), minus(&rest, &m[3])]
}

multiversion!(fn to_tiles(job: &Job, area: *const f32, row: usize, to: *mut f32) = to_tiles_inner);

#[inline(always)]
unsafe fn to_tiles_inner<const FMA: bool>(job: &Job, area: *const f32, row: usize, to: *mut f32) {
    let (high, wide) = job.tiles;
    for tile in 0..high * wide {
        let from = area.wrapping_add(tile / wide * 2 * row + tile % wide * 2 * job.channels);
        let to = to.wrapping_add(tile * job.pitch);
        for c in (0..job.channels).step_by(LINE) {
            let mut d = [[[0f32; LINE]; 4]; 4];
            for (y, line) in d.iter_mut().enumerate() {
                for (x, lanes) in line.iter_mut().enumerate() {
                    let from = from.wrapping_add(y * row + x * job.channels + c);
                    // SAFETY: the area covers all tiles.
                    *lanes = unsafe { from.cast::<Lanes>().read_unaligned() };
                }
                *line = spread(line);
            }
            for x in 0..4 {
                let column = spread(&[d[0][x], d[1][x], d[2][x], d[3][x]]);
                for (y, lanes) in column.into_iter().enumerate() {
                    let to = to.wrapping_add((y * 4 + x) * high * wide * job.pitch + c);
                    // SAFETY: there is room for all tiles.
                    unsafe { to.cast::<Lanes>().write_unaligned(lanes) };
                }
            }
        }
    }
}

multiversion!(fn from_tiles(job: &Job, products: *const f32, panel: usize, to: &Target) = from_tiles_inner);

#[inline(always)]
unsafe fn from_tiles_inner<const FMA: bool>(job: &Job, products: *const f32, panel: usize, to: &Target) {
    let (high, wide) = job.tiles;
    let (rows, cols) = to.grid;
    for tile in 0..high * wide {
        let (top, left) = (tile / wide * 2, tile % wide * 2);
        let mut c = 0;
        while c < to.cols {
            let count = LINE.min(to.cols - c);
            let mut m = [[[0f32; LINE]; 4]; 4];
            for (place, lanes) in m.as_flattened_mut().iter_mut().enumerate() {
                let from = products.wrapping_add((place * high * wide + tile) * panel + c);
                // A panel is narrower than a line on machines without AVX-512.
                let there = (panel - c).min(LINE);
                // SAFETY: the products of all tiles are there.
                unsafe {
                    if there == LINE {
                        *lanes = from.cast::<Lanes>().read_unaligned();
                    } else {
                        std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), there);
                    }
                }
            }
            let m = m.map(|line| gather(&line));
            for x in 0..2 {
                let column = gather(&[m[0][x], m[1][x], m[2][x], m[3][x]]);
                for (y, lanes) in column.iter().enumerate() {
                    if top + y >= rows || left + x >= cols {
                        continue;
                    }
                    let to_place = to.start.wrapping_add(((top + y) * cols + left + x) * to.step + c);
                    // SAFETY: the place lies inside of the grid, with at least `count` columns left.
                    unsafe {
                        let line = std::slice::from_raw_parts_mut(to_place, count);
                        match (to.add, <&mut Lanes>::try_from(&mut *line)) {
                            (false, Ok(whole)) => *whole = *lanes,
                            (true, Ok(whole)) => *whole = plus(whole, lanes),
                            (false, Err(_)) => line.copy_from_slice(&lanes[..count]),
                            (true, Err(_)) => line.iter_mut().zip(lanes).for_each(|(o, x)| *o += x),
                        }
                    }
                }
            }
            c += LINE;
        }
    }
}
