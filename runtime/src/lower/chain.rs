//! Chains: products that run block by block, all of them for one block before the next.
//!
//! Attention is `P = softmax(Q·Kᵀ)`, `O = P·V` for every head, and four such products backwards. One after the other, each of them
//! writes and reads the scores of *all* heads, which no cache holds. The results that one product of a head hands to the next concern that head
//! alone, so they can be made and used while they are in the cache of one core. The same holds for blocks of rows in the products with
//! weights between two attentions: projection, feed-forward, normalisation.
//!
//! A contract with enough batch axes has a block per batch, one without has its rows cut into blocks. It joins a chain if it has the
//! same blocks, reads something that the chain reads or makes, and reads of the chain's results in each block no more than was made in that block. It
//! must be movable there: either nothing between the two places makes what it reads, or nothing between them reads what the
//! chain makes. Results that nobody else reads never leave the core: they lie in memory of the thread ([`Local`]). For the
//! memory plan a chain is one step.

use super::view::{BufId, Walk};
use super::{Buffer, Home, Planned, Step, tail};
use crate::cpu::contract::{Contract, Matrix};
use crate::lower::program::Ins;
use std::collections::{HashMap, HashSet};

/// Contracts over the same blocks. The blocks are the batches of every member.
#[derive(Clone, PartialEq, Debug)]
pub struct Chain {
    /// In the order in which they run.
    pub members: Vec<Contract>,
    /// Results that only the chain reads.
    pub locals: Vec<Local>,
}

/// A buffer of which each block uses its own part, one after the other.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Local {
    /// The buffer.
    pub buf: BufId,
    /// Elements per block.
    pub len: usize,
}

impl Chain {
    /// The number of blocks.
    pub fn blocks(&self) -> usize {
        self.members.first().map_or(0, |c| c.batch.iter().product())
    }
}

/// Fewer blocks are not worth it: they are what is distributed to threads.
const LEAST: usize = 4;
/// Rows of a block, at most and at least.
const ROWS: (usize, usize) = (160, 64);
/// Packed right factors of a chain, in elements.
const MOST_PACKED: usize = 1 << 23;

/// Chains what can be chained.
pub fn chain(mut steps: Vec<Planned>, buffers: &[Buffer]) -> Vec<Planned> {
    let mut at = 0;
    while at < steps.len() {
        let mut home = at;
        let mut next = home + 1;
        while can_start(&steps[home].step) && next < steps.len() {
            if !joins(&steps[home], &steps[next]) {
                next += 1;
                continue;
            }
            let between = &steps[home + 1..next];
            let reads_none = |made: &[BufId], s: &Planned| !s.reads.iter().any(|b| made.contains(b));
            if between.iter().all(|s| reads_none(&s.writes, &steps[next])) {
                let member = steps.remove(next);
                append(&mut steps[home], member);
            } else if between.iter().all(|s| reads_none(&steps[home].writes, s)) {
                let mut chain = steps.remove(home);
                home = next - 1;
                let member = steps.remove(home);
                append(&mut chain, member);
                steps.insert(home, chain);
                next = home + 1;
            } else {
                next += 1;
            }
        }
        // A chain that moved away leaves an unvisited step behind.
        at = if home == at { at + 1 } else { at };
    }
    keep_locals(&mut steps, buffers);
    steps
}

/// Takes results that only their own chain reads out of the plan.
fn keep_locals(steps: &mut [Planned], buffers: &[Buffer]) {
    let mut readers: HashMap<BufId, usize> = HashMap::new();
    for step in steps.iter() {
        let all: HashSet<&BufId> = step.reads.iter().collect();
        all.into_iter().for_each(|&b| *readers.entry(b).or_insert(0) += 1);
    }
    for planned in steps {
        let Step::Chain(chain) = &mut planned.step else { continue };
        let blocks = chain.blocks();
        let mut areas = HashMap::new();
        chain.members.iter().flat_map(stores).for_each(|(buf, area)| {
            areas.insert(buf, area);
        });
        let local = |&buf: &BufId| {
            let buffer = &buffers[buf.index()];
            let own = buffer.home == Home::Arena && !readers.contains_key(&buf) && buffer.len.is_multiple_of(blocks);
            let len = buffer.len / blocks.max(1);
            let apart = areas.get(&buf)?.as_ref()?.stays_apart(&chain.members[0].batch, len);
            (own && apart).then_some(Local { buf, len })
        };
        chain.locals = planned.writes.iter().filter_map(local).collect();
        planned.writes.retain(|b| !chain.locals.iter().any(|l| l.buf == *b));
    }
}

fn append(chain: &mut Planned, member: Planned) {
    let Some(contract) = blocks_of(&member.step) else { return };
    chain.step = match std::mem::replace(&mut chain.step, Step::Copies(Vec::new())) {
        Step::Chain(mut chain) => {
            chain.members.push(contract);
            Step::Chain(chain)
        }
        first => {
            let members = blocks_of(&first).into_iter().chain([contract]).collect();
            Step::Chain(Chain { members, locals: Vec::new() })
        }
    };
    chain.reads.extend(member.reads.iter().filter(|b| !chain.writes.contains(b)));
    chain.reads.sort_unstable();
    chain.reads.dedup();
    chain.writes.extend(member.writes);
}

/// A contract whose batches are blocks, if it has enough of them or its rows can be cut.
fn blocks_of(step: &Step) -> Option<Contract> {
    let Step::Contract(contract) = step else { return None };
    if contract.products.iter().any(|p| p.patch.is_some()) {
        return None;
    }
    match contract.batch.iter().product::<usize>() {
        0 => None,
        1 => cut_rows(contract),
        batches => (batches >= LEAST).then(|| contract.clone()),
    }
}

/// Equal blocks of rows become a batch axis.
fn cut_rows(contract: &Contract) -> Option<Contract> {
    let total = contract.m;
    let (most, least) = ROWS;
    let rows = (least..=most.min(total / LEAST)).rev().find(|&rows| total.is_multiple_of(rows))?;
    let mut cut = contract.clone();
    let place = |x: &mut Matrix, step: usize| x.batch = vec![step];
    cut.batch = vec![total / rows];
    cut.m = rows;
    for product in &mut cut.products {
        let step = rows * product.a.row;
        place(&mut product.a, step);
        place(&mut product.b, 0);
    }
    if let Some(tail) = &mut cut.tail {
        tail.factor.iter_mut().chain(&mut tail.scale).for_each(|x| place(x, 0));
    }
    let tail = cut.tail.iter_mut().flat_map(|t| t.more.iter_mut().chain(t.mask.iter_mut().map(|(m, ..)| m)));
    for matrix in cut.out.iter_mut().chain(tail) {
        let step = rows * matrix.row;
        place(matrix, step);
    }
    Some(cut)
}

fn can_start(step: &Step) -> bool {
    matches!(step, Step::Chain(_)) || blocks_of(step).is_some()
}

/// Whether a step may become a member of a chain, its place aside.
fn joins(chain: &Planned, step: &Planned) -> bool {
    let touches = || step.reads.iter().any(|b| chain.reads.contains(b) || chain.writes.contains(b));
    if !matches!(step.step, Step::Contract(_)) || !touches() {
        return false;
    }
    let Some(contract) = blocks_of(&step.step) else { return false };
    let first;
    let members = match &chain.step {
        Step::Chain(chain) => chain.members.as_slice(),
        other => {
            first = blocks_of(other);
            first.as_slice()
        }
    };
    let packed: usize = members.iter().chain([&contract]).map(Contract::scratch).sum();
    if members.first().is_none_or(|c| c.batch != contract.batch) || packed > MOST_PACKED {
        return false;
    }
    let mut made = HashMap::new();
    members.iter().flat_map(stores).for_each(|(buf, area)| {
        made.insert(buf, area);
    });
    let areas = loads(&contract);
    step.reads.iter().filter(|b| chain.writes.contains(b)).all(|buf| {
        let Some(Some(area)) = made.get(buf) else { return false };
        areas.iter().filter(|(b, _)| b == buf).all(|(_, a)| a.as_ref() == Some(area))
    })
}

/// What is touched in one block: where it begins, the batch strides, and the axes within (stride and length, those of length 1
/// left out, largest stride first).
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Area {
    pub offset: usize,
    pub batch: Vec<usize>,
    pub axes: Vec<(usize, usize)>,
}

impl Area {
    /// Whether every block stays inside its own part of `len` elements.
    fn stays_apart(&self, batch: &[usize], len: usize) -> bool {
        let mut expected = len;
        for (&dim, &stride) in batch.iter().zip(&self.batch).rev() {
            if dim != 1 && stride != expected {
                return false;
            }
            expected *= dim;
        }
        let last: usize = self.axes.iter().map(|&(stride, count)| stride * (count - 1)).sum();
        self.offset == 0 && last < len
    }
}

fn area(contract: &Contract, offset: usize, strides: &[usize], axes: [(usize, usize); 2]) -> Area {
    let batch = contract.batch.iter().zip(strides).map(|(&dim, &s)| if dim == 1 { 0 } else { s }).collect();
    let mut axes: Vec<(usize, usize)> = axes.into_iter().filter(|&(_, len)| len != 1).collect();
    axes.sort_unstable_by(|a, b| b.cmp(a));
    Area { offset, batch, axes }
}

fn of_matrix(contract: &Contract, x: &Matrix, rows: usize, cols: usize) -> (BufId, Option<Area>) {
    (x.buf, Some(area(contract, x.offset, &x.batch, [(x.row, rows), (x.col, cols)])))
}

/// A walk over all rows as an area per batch, if it is one.
fn of_walk(contract: &Contract, walk: &Walk) -> (BufId, Option<Area>) {
    let found = tail::matrix(contract, walk).map(|x| {
        let cols = if walk.col == 0 { 1 } else { contract.n };
        area(contract, x.offset, &x.batch, [(x.row, contract.m), (x.col, cols)])
    });
    (walk.buf, found)
}

/// What a contract writes, and where in each batch, if that is a matrix.
pub(super) fn stores(contract: &Contract) -> Vec<(BufId, Option<Area>)> {
    let out = contract.out.iter().map(|out| of_matrix(contract, out, contract.m, contract.n));
    let code = contract.epilogue.iter().flat_map(|p| &p.code);
    let stored = code.filter_map(|ins| match ins {
        Ins::Store(_, walk) => Some(of_walk(contract, walk)),
        _ => None,
    });
    out.chain(stored).collect()
}

/// What a contract reads, and where in each batch, if that is a matrix.
pub(super) fn loads(contract: &Contract) -> Vec<(BufId, Option<Area>)> {
    let operands = contract
        .products
        .iter()
        .flat_map(|p| [of_matrix(contract, &p.a, contract.m, p.k), of_matrix(contract, &p.b, p.k, contract.n)]);
    let code = contract.epilogue.iter().flat_map(|p| &p.code);
    let loaded = code.filter_map(|ins| match ins {
        Ins::Load(_, walk) => Some(of_walk(contract, walk)),
        _ => None,
    });
    let tail = contract.tail.iter();
    let bias = tail.clone().filter_map(|t| t.bias).map(|(buf, offset)| {
        let strides = vec![0; contract.batch.len()];
        (buf, Some(area(contract, offset, &strides, [(0, 1), (1, contract.n)])))
    });
    let more = tail.clone().flat_map(|t| t.matrices()).map(|m| of_matrix(contract, m, contract.m, contract.n));
    let gates = tail.flat_map(|t| t.gates()).map(|m| of_matrix(contract, m, 1, contract.n));
    operands.chain(loaded).chain(bias).chain(more).chain(gates).collect()
}
