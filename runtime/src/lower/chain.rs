//! Chains: products over the same batches that run batch by batch, all of them for one batch before the next.
//!
//! Attention is `P = softmax(Q·Kᵀ)`, `O = P·V` for every head, and four such products backwards. One after the other, each of them
//! writes and reads the scores of *all* heads, which no cache holds. The results that one product of a head hands to the next concern that head
//! alone, so they can be made and used while they are in the cache of one core.
//!
//! A contract joins a chain if it has the same batch axes, reads something that the chain reads or makes, and reads of the chain's
//! results in each batch no more than was made in that batch. It must be movable there: either nothing between the two places makes what it reads, or nothing
//! between them reads what the chain makes. For the memory plan a chain is one step.

use super::view::{BufId, Walk};
use super::{Planned, Step};
use crate::cpu::contract::{Contract, Matrix};
use crate::lower::program::Ins;
use std::collections::HashMap;

/// Fewer batches are not worth it: they are what is distributed to threads.
const LEAST: usize = 8;

/// Chains what can be chained.
pub fn chain(mut steps: Vec<Planned>) -> Vec<Planned> {
    let mut at = 0;
    while at < steps.len() {
        let mut home = at;
        let mut next = home + 1;
        while fits_alone(&steps[home].step) && next < steps.len() {
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
                let member = std::mem::replace(&mut steps[home], Planned { step: Step::Copies(Vec::new()), ..chain.clone() });
                append(&mut chain, member);
                steps[home] = chain;
                next = home + 1;
            } else {
                next += 1;
            }
        }
        // A chain that moved away leaves an unvisited step behind.
        at = if home == at { at + 1 } else { at };
    }
    steps
}

fn append(chain: &mut Planned, member: Planned) {
    let Step::Contract(contract) = member.step else { return };
    chain.step = match std::mem::replace(&mut chain.step, Step::Copies(Vec::new())) {
        Step::Contract(first) => Step::Chain(vec![first, contract]),
        Step::Chain(mut members) => {
            members.push(contract);
            Step::Chain(members)
        }
        other => other,
    };
    chain.reads.extend(member.reads.iter().filter(|b| !chain.writes.contains(b)));
    chain.reads.sort_unstable();
    chain.reads.dedup();
    chain.writes.extend(member.writes);
}

fn members(step: &Step) -> &[Contract] {
    match step {
        Step::Contract(contract) => std::slice::from_ref(contract),
        Step::Chain(members) => members,
        _ => &[],
    }
}

fn fits_alone(step: &Step) -> bool {
    let fits = |c: &Contract| {
        let batches: usize = c.batch.iter().product();
        batches >= LEAST && c.scratch() == 0 && c.products.iter().all(|p| p.patch.is_none())
    };
    !members(step).is_empty() && members(step).iter().all(fits)
}

/// Whether a step may become a member of a chain, its place aside.
fn joins(chain: &Planned, step: &Planned) -> bool {
    let (Step::Contract(contract), [first, ..]) = (&step.step, members(&chain.step)) else { return false };
    let touches = step.reads.iter().any(|b| chain.reads.contains(b) || chain.writes.contains(b));
    if !touches || first.batch != contract.batch || !fits_alone(&step.step) {
        return false;
    }
    let mut made = HashMap::new();
    for member in members(&chain.step) {
        for (buf, area) in stores(member) {
            made.insert(buf, area);
        }
    }
    let handed = step.reads.iter().filter(|b| chain.writes.contains(b));
    let wanted: Vec<&BufId> = handed.collect();
    let areas = loads(contract);
    wanted.iter().all(|buf| {
        let Some(Some(area)) = made.get(buf) else { return false };
        areas.iter().filter(|(b, _)| b == *buf).all(|(_, a)| a.as_ref() == Some(area))
    })
}

/// What is touched in one batch: where it begins, the batch strides, and the axes within (stride and length, those of length 1
/// left out, largest stride first).
#[derive(Clone, PartialEq, Debug)]
struct Area {
    offset: usize,
    batch: Vec<usize>,
    axes: Vec<(usize, usize)>,
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
    let rows = contract.m;
    let found = walk.even(0, rows).and_then(|row| {
        let mut strides = vec![0; contract.batch.len()];
        let mut inner = rows;
        for (stride, &dim) in strides.iter_mut().zip(&contract.batch).rev() {
            if dim > 1 {
                *stride = walk.row(inner).checked_sub(walk.row(0))?;
            }
            inner *= dim;
        }
        let regular = (0..inner / rows.max(1)).all(|batch| {
            let (mut rest, mut place) = (batch, walk.row(0));
            for (&dim, &stride) in contract.batch.iter().zip(&strides).rev() {
                place += rest % dim * stride;
                rest /= dim;
            }
            walk.row(batch * rows) == place && walk.even(batch * rows, rows) == Some(row)
        });
        let cols = if walk.col == 0 { 1 } else { contract.n };
        regular.then(|| area(contract, walk.offset, &strides, [(row, rows), (walk.col, cols)]))
    });
    (walk.buf, found)
}

fn stores(contract: &Contract) -> Vec<(BufId, Option<Area>)> {
    let out = contract.out.iter().map(|out| of_matrix(contract, out, contract.m, contract.n));
    let code = contract.epilogue.iter().flat_map(|p| &p.code);
    let stored = code.filter_map(|ins| match ins {
        Ins::Store(_, walk) => Some(of_walk(contract, walk)),
        _ => None,
    });
    out.chain(stored).collect()
}

fn loads(contract: &Contract) -> Vec<(BufId, Option<Area>)> {
    let operands = contract.products.iter().flat_map(|p| {
        [of_matrix(contract, &p.a, contract.m, p.k), of_matrix(contract, &p.b, p.k, contract.n)]
    });
    let code = contract.epilogue.iter().flat_map(|p| &p.code);
    let loaded = code.filter_map(|ins| match ins {
        Ins::Load(_, walk) => Some(of_walk(contract, walk)),
        _ => None,
    });
    operands.chain(loaded).collect()
}
