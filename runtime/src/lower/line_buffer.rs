//! Line buffers: an image that only a depthwise convolution reads is made a few rows ahead of it and never whole.
//!
//! An inverted residual block widens an image by a product, convolves each channel by itself and narrows the result. The wide image is the largest
//! tensor of the network (4.8 MB in MobileNetV2's first block, an image's worth for every example of a batch), and written whole it
//! leaves the cache before it is read. Here the rows that some rows of the result see are made, in memory of the thread that
//! convolves them; the rows that the next ones see too are kept. For the memory plan both are one step, and the wide image has no place in it.
//!
//! Where [gates shut](super::skip) channels of the wide image, both leave them out: its rows hold those that are there, side by side, at the distances of whole rows.
//!
//! The wide image must be contiguous, channels last, made by one contract and read by nobody else; small images, which stay in the cache anyway, are
//! left as they are. Rows at the border between two tasks are made twice, so what makes them may write nothing else.

use super::chain::{Area, loads, stores};
use super::view::BufId;
use super::{Buffer, Home, Planned, Step};
use crate::cpu::contract::Contract;
use std::collections::HashMap;

/// Two contracts, one of which is ahead of the other.
#[derive(Clone, PartialEq, Debug)]
pub struct LineBuffer {
    /// Makes the image: its batches are the images and their rows the pixels, or its rows are the pixels of all images.
    pub maker: Contract,
    /// The depthwise convolution of the image; its batches are the images.
    pub windows: Contract,
    /// The image.
    pub buf: BufId,
}

impl LineBuffer {
    /// Both.
    pub fn contracts(&self) -> [&Contract; 2] {
        [&self.maker, &self.windows]
    }
}

/// Smaller images stay whole.
const LEAST: usize = 1 << 18;

/// Puts line buffers where they fit.
pub fn link(mut steps: Vec<Planned>, buffers: &[Buffer]) -> Vec<Planned> {
    let mut readers: HashMap<BufId, usize> = HashMap::new();
    steps.iter().flat_map(|s| &s.reads).for_each(|&b| *readers.entry(b).or_insert(0) += 1);
    let mut at = 0;
    while at < steps.len() {
        match found(&steps, at, buffers, &readers) {
            // Everything after the maker moves up by one.
            Some((maker, both)) => {
                let windows = std::mem::replace(&mut steps[at], both);
                debug_assert!(windows.only_if.is_none());
                steps.remove(maker);
            }
            None => at += 1,
        }
    }
    steps
}

/// The place of what makes the image of the depthwise convolution at `at`, and both as one step.
fn found(
    steps: &[Planned],
    at: usize,
    buffers: &[Buffer],
    readers: &HashMap<BufId, usize>,
) -> Option<(usize, Planned)> {
    let (planned, windows) = (&steps[at], contract(&steps[at])?);
    let buf = windows.products.first()?.a.buf;
    let buffer = &buffers[buf.index()];
    let alone = buffer.home == Home::Arena && buffer.len >= LEAST && readers.get(&buf) == Some(&1);
    if !alone || !reads_image(windows, buf, buffer.len) {
        return None;
    }
    let from = steps[..at].iter().position(|s| s.writes.contains(&buf))?;
    let maker = contract(&steps[from]).filter(|maker| makes_image(maker, windows, buf) && agree(maker, windows))?;
    let still = steps[from + 1..at].iter().all(|s| !s.writes.iter().any(|b| steps[from].reads.contains(b)));
    if !still || steps[from].writes != [buf] || steps[from].reads.contains(&buf) {
        return None;
    }
    let both = LineBuffer { maker: maker.clone(), windows: windows.clone(), buf };
    let mut reads: Vec<BufId> = steps[from].reads.iter().chain(&planned.reads).copied().filter(|&b| b != buf).collect();
    reads.sort_unstable();
    reads.dedup();
    let writes = planned.writes.clone();
    Some((from, Planned { step: Step::LineBuffer(Box::new(both)), reads, writes, only_if: None }))
}

fn contract(planned: &Planned) -> Option<&Contract> {
    match &planned.step {
        Step::Contract(contract) if planned.only_if.is_none() => Some(contract),
        _ => None,
    }
}

/// Whether the second reads the channels that the first makes, for the same examples.
fn agree(maker: &Contract, windows: &Contract) -> bool {
    let gates = |contract: &Contract| contract.skip.as_deref().cloned().unwrap_or_default();
    let (made, read) = (gates(maker), gates(windows));
    made.columns == read.inputs && made.example == read.example
}

/// Whether a contract is a depthwise convolution of the images of a buffer, and of nothing else there.
fn reads_image(windows: &Contract, buf: BufId, len: usize) -> bool {
    let [product] = windows.products.as_slice() else { return false };
    let Some(patch) = product.patch.filter(|p| p.depthwise && !p.transposed && p.groups.0 == 1) else { return false };
    let (high, wide) = patch.image;
    let image = high * wide * patch.channels;
    let images: usize = windows.batch.iter().product();
    let contiguous = patch.steps == [wide * patch.channels, patch.channels, 1] && product.a.offset == 0;
    let apart =
        windows.batch.iter().zip(&product.a.batch).all(|(&dim, &stride)| dim == 1 || dim == images && stride == image);
    let once = loads(windows).iter().filter(|(read, _)| *read == buf).count() == 1;
    contiguous && apart && once && images * image == len
}

/// Whether a contract writes these images pixel by pixel, all channels side by side.
fn makes_image(maker: &Contract, windows: &Contract, buf: BufId) -> bool {
    let Some(patch) = windows.products[0].patch else { return false };
    let (images, pixels) = (windows.batch.iter().product::<usize>(), patch.image.0 * patch.image.1);
    let stored = stores(maker);
    let [(to, Some(area))] = stored.as_slice() else { return false };
    let axes = [(patch.channels, maker.m), (1, maker.n)].into_iter().filter(|&(_, len)| len != 1).collect();
    let apart = |(&dim, &stride): (&usize, &usize)| dim == 1 || dim == images && stride == pixels * patch.channels;
    let one_by_one = maker.m == pixels && maker.batch.iter().zip(&area.batch).all(apart);
    let all = maker.m == images * pixels && maker.batch.iter().all(|&dim| dim == 1);
    let fits = maker.n == patch.channels
        && match maker.products.iter().find_map(|p| p.patch) {
            None => one_by_one || all,
            Some(made) => {
                one_by_one && made.groups.0 == 1 && made.grid == patch.image && !made.winograd && !made.depthwise
            }
        };
    fits && *to == buf && *area == Area { offset: 0, axes, ..area.clone() }
}
