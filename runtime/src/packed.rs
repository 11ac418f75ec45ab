//! Weights in the order in which [micro-kernels](crate::cpu::gemm) read them, made once and kept.
//!
//! A right factor that is a constant or a parameter that the program does not update is packed at the second run that sees it
//! on the same memory, and dropped when it has not been seen for some runs (a knot puts new weights in its place). An entry holds
//! the tensor's memory, so no other tensor can come to lie at its address.

use crate::cpu::LINE;
use crate::cpu::contract::Product;
use crate::cpu::patch::Patch;
use crate::lower::{Home, Lowered};
use bytes::Bytes;
use sartor_ir::Tensor;
use std::collections::{HashMap, HashSet};

/// Elements that are kept at most.
const MOST: usize = 1 << 28;
/// Runs after which an entry that was not seen goes.
const FORGOTTEN: u64 = 2;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Packs {
    seen: HashMap<(usize, usize), Seen>,
    run: u64,
    elements: usize,
    /// Parameters that the program updates.
    updated: HashSet<String>,
}

/// A tensor that was a right factor.
#[derive(Debug)]
struct Seen {
    /// Keeps the memory where it is.
    _bytes: Bytes,
    runs: u64,
    last: u64,
    packed: HashMap<Layout, Pack>,
}

/// How a product reads the tensor: offset, row and column stride, rows and columns, and under which window.
type Layout = (usize, usize, usize, usize, usize, Option<Patch>);

#[derive(Debug)]
struct Pack {
    data: Vec<f32>,
    /// Where the first cache line begins.
    start: usize,
}

impl Packs {
    /// For a program that updates these parameters.
    pub fn new(updated: HashSet<String>) -> Packs {
        Packs { updated, ..Packs::default() }
    }
    /// Parameters that the program updates.
    pub fn updated(&self) -> &HashSet<String> {
        &self.updated
    }
    /// A run begins.
    pub fn begin(&mut self) {
        self.run += 1;
        let (now, elements) = (self.run, &mut self.elements);
        self.seen.retain(|_, seen| {
            let keep = seen.last + FORGOTTEN >= now;
            if !keep {
                *elements -= seen.packed.values().map(|p| p.data.len()).sum::<usize>();
            }
            keep
        });
    }
    /// Says where the packed right factor of a product with so many columns is kept, if it is.
    pub fn finder<'a>(
        &'a mut self,
        lowered: &'a Lowered,
        host: &'a [Option<Tensor>],
    ) -> impl FnMut(&Product, usize) -> Option<*const f32> + 'a {
        move |product, n| self.get(lowered, host, product, n)
    }
    /// The bytes that all runs of a plan keep packed.
    pub fn planned_bytes(&self, lowered: &Lowered) -> usize {
        let contracts = lowered.steps.iter().flat_map(|planned| planned.step.contracts());
        let mut seen = HashSet::new();
        let mut elements = 0;
        for (contract, product) in contracts.flat_map(|c| c.products.iter().map(move |p| (c, p))) {
            let Some(slot) = self.keeps(lowered, product).filter(|_| contract.packable(product)) else { continue };
            let len = product.packed_len(contract.n) + LINE;
            if elements + len <= MOST && seen.insert((slot, layout(product, contract.n))) {
                elements += len;
            }
        }
        elements * size_of::<f32>()
    }
    /// The host tensor that a right factor is, if it stays the same from run to run.
    fn keeps(&self, lowered: &Lowered, product: &Product) -> Option<usize> {
        let Home::Host(slot) = lowered.buffers[product.b.buf.index()].home else { return None };
        lowered.slots[slot].origin.stays(&self.updated).then_some(slot)
    }
    /// The packed right factor of a product with `n` columns, if it is kept.
    fn get(&mut self, lowered: &Lowered, host: &[Option<Tensor>], product: &Product, n: usize) -> Option<*const f32> {
        let slot = self.keeps(lowered, product)?;
        let bytes = host[slot].as_ref()?.bytes();
        let key = (bytes.as_ptr() as usize, bytes.len());
        let fresh = || Seen { _bytes: bytes.clone(), runs: 0, last: 0, packed: HashMap::new() };
        let seen = self.seen.entry(key).or_insert_with(fresh);
        if seen.last < self.run {
            (seen.runs, seen.last) = (seen.runs + 1, self.run);
        }
        let layout = layout(product, n);
        if !seen.packed.contains_key(&layout) {
            let len = product.packed_len(n) + LINE;
            if seen.runs < 2 || self.elements + len > MOST {
                return None;
            }
            self.elements += len;
            seen.packed.insert(layout, pack(key.0 as *const f32, product, n));
        }
        seen.packed.get(&layout).map(|pack| pack.data[pack.start..].as_ptr())
    }
}

fn layout(product: &Product, n: usize) -> Layout {
    // What the image looks like does not matter to the weights.
    let window = product.patch.map(|p| Patch { image: (0, 0), steps: [0; 3], grid: (0, 0), ..p });
    (product.b.offset, product.b.row, product.b.col, product.k, n, window)
}

fn pack(tensor: *const f32, product: &Product, n: usize) -> Pack {
    let mut data = vec![0f32; product.packed_len(n) + LINE];
    let start = data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    // SAFETY: the plan keeps the factor inside its tensor.
    unsafe { product.pack(tensor.wrapping_add(product.b.offset), n, data[start..].as_mut_ptr()) };
    Pack { data, start }
}
