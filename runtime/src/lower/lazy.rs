//! Choices: what only one side of a `Where` reads is not computed while the condition picks the other side.
//!
//! ```text
//! y = Where(c, f(x), z)          c: one number for the whole tensor
//! ```
//! Steps whose results reach the outputs only through the first side of such a choice run if `c` holds, else they are left
//! out, and their buffers keep what was in them: the choice never passes that on. An expert of `samuel` that has no weight costs next to nothing
//! in this way.
//!
//! What is demanded is found from the outputs back, buffer by buffer, through the instructions of register programs (a choice may be fused
//! with anything) and through all other steps as a whole. Steps on host tensors always run. A condition that itself
//! depends on a step cannot spare that step; a product whose epilogue is needed in any case runs too.

use super::finish::{arranged, by_producers};
use super::program::{Ins, Program, Src};
use super::view::BufId;
use super::{Planned, Step};
use crate::cpu::contract::Contract;
use std::collections::{BTreeSet, HashMap, HashSet};

/// A number in a buffer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Condition {
    /// The buffer.
    pub buf: BufId,
    /// Its place there, in elements.
    pub offset: usize,
}

/// When something is read: never, or if all these conditions hold (with none: always). Sorted.
type Demand = Option<Vec<Condition>>;

const ALWAYS: Demand = Some(Vec::new());

/// Read for one reason or another.
fn either(a: &Demand, b: &Demand) -> Demand {
    match (a, b) {
        (None, demand) | (demand, None) => demand.clone(),
        (Some(a), Some(b)) => Some(a.iter().filter(|c| b.contains(c)).copied().collect()),
    }
}

/// Read for this reason, if that condition holds too.
fn under(demand: &Demand, condition: Condition) -> Demand {
    let mut all = demand.clone()?;
    if let Err(place) = all.binary_search(&condition) {
        all.insert(place, condition);
    }
    Some(all)
}

/// Lets steps wait for the conditions under which they are read. `buffers`: how many there are; `outputs`: those that are results.
pub fn link(mut steps: Vec<Planned>, buffers: usize, outputs: &[BufId]) -> Vec<Planned> {
    let mut demands = Demands { of: vec![None; buffers] };
    outputs.iter().for_each(|&b| demands.read(b, &ALWAYS));
    let mut wanted: Vec<Vec<Condition>> = steps.iter().rev().map(|planned| demands.step(planned)).collect();
    wanted.reverse();
    let mut writer: HashMap<BufId, Vec<usize>> = HashMap::new();
    for (at, planned) in steps.iter().enumerate() {
        planned.writes.iter().for_each(|&b| writer.entry(b).or_default().push(at));
    }
    let conditions: BTreeSet<Condition> = wanted.iter().flatten().copied().collect();
    let mut conditions: Vec<(usize, Condition)> =
        conditions.into_iter().map(|c| (needed(c.buf, &steps, &writer).len(), c)).collect();
    conditions.sort_unstable();
    for (_, condition) in &conditions {
        // With what the conditions before this one have added.
        let needed = needed(condition.buf, &steps, &writer);
        for at in (0..steps.len()).filter(|&at| wanted[at].contains(condition) && !needed.contains(&at)) {
            let planned = &mut steps[at];
            if planned.only_if.is_none() {
                planned.only_if = Some(*condition);
                planned.also_reads(condition.buf);
            }
        }
    }
    match steps.iter().any(|planned| planned.only_if.is_some()) {
        true => ordered(steps, &writer),
        false => steps,
    }
}

/// The steps that a buffer depends on.
fn needed(buf: BufId, steps: &[Planned], writer: &HashMap<BufId, Vec<usize>>) -> HashSet<usize> {
    let mut found = HashSet::new();
    let mut stack = vec![buf];
    while let Some(buf) = stack.pop() {
        for &at in writer.get(&buf).into_iter().flatten() {
            if found.insert(at) {
                stack.extend(&steps[at].reads);
            }
        }
    }
    found
}

/// The steps, conditions before what waits for them; otherwise in the order that they have.
fn ordered(steps: Vec<Planned>, writer: &HashMap<BufId, Vec<usize>>) -> Vec<Planned> {
    let before = |at: usize| {
        let planned = &steps[at];
        // What it read and wrote until now keeps its order, also where several steps write parts of one buffer; only conditions may come later.
        let touched = planned.reads.iter().chain(&planned.writes);
        let earlier = touched.flat_map(|b| writer.get(b).into_iter().flatten().copied()).filter(|&w| w < at);
        let condition = planned.only_if.iter().flat_map(|c| writer.get(&c.buf).into_iter().flatten().copied());
        earlier.chain(condition).collect()
    };
    let order = by_producers(steps.len(), before, |at| at);
    arranged(steps, order)
}

struct Demands {
    of: Vec<Demand>,
}

impl Demands {
    fn read(&mut self, buf: BufId, demand: &Demand) {
        self.of[buf.index()] = either(&self.of[buf.index()], demand);
    }
    /// Passes on what a step's results are wanted for. Returns the conditions that it can wait for.
    fn step(&mut self, planned: &Planned) -> Vec<Condition> {
        let whole = planned.writes.iter().fold(None, |d, b| either(&d, &self.of[b.index()]));
        let on_host = matches!(planned.step, Step::Import(..) | Step::Export(..) | Step::Reference(..));
        let whole = if on_host || planned.writes.is_empty() { ALWAYS } else { whole };
        match &planned.step {
            Step::Program(program) => _ = self.program(program),
            step @ (Step::Contract(_) | Step::Chain(_) | Step::LineBuffer(_)) => {
                step.contracts().into_iter().rev().for_each(|contract| self.contract(contract));
            }
            _ => planned.reads.iter().for_each(|&b| self.read(b, &whole)),
        }
        whole.unwrap_or_default()
    }
    /// What products read, by themselves or in a chain.
    fn contract(&mut self, contract: &Contract) {
        let factors = contract.products.iter().flat_map(|p| [p.a.buf, p.b.buf]);
        let skip = contract.skip.iter().flat_map(|skip| skip.gates());
        if let Some(program) = &contract.epilogue {
            let tile = self.program(program);
            return factors.chain(skip.map(|m| m.buf)).for_each(|buf| self.read(buf, &tile));
        }
        let whole = contract.out.as_ref().and_then(|out| self.of[out.buf.index()].clone());
        // A convolution whose gate is 0 sums nothing.
        let summed = example(contract).map_or(whole.clone(), |condition| under(&whole, condition));
        factors.for_each(|buf| self.read(buf, &summed));
        let tail = contract.tail.iter();
        let bias = tail.clone().filter_map(|tail| tail.bias.map(|(buf, _)| buf));
        let matrices = tail.flat_map(|tail| tail.matrices().chain(tail.gates())).chain(skip).map(|matrix| matrix.buf);
        bias.chain(matrices).for_each(|buf| self.read(buf, &whole));
    }
    /// What a program reads. Returns what its tile is wanted for.
    fn program(&mut self, program: &Program) -> Demand {
        let mut regs: Vec<Demand> = vec![None; program.width.len()];
        let mut tile = None;
        for ins in program.code.iter().rev() {
            let wanted = ins.dst().and_then(|reg| regs[usize::from(reg)].clone());
            let mut want = |src: &Src, demand: &Demand| {
                if let Src::Reg(reg) = src {
                    regs[usize::from(*reg)] = either(&regs[usize::from(*reg)], demand);
                }
            };
            match ins {
                Ins::Load(_, walk) => self.read(walk.buf, &wanted),
                Ins::Tile(_) => tile = either(&tile, &wanted),
                Ins::Store(src, walk) => want(src, &self.of[walk.buf.index()]),
                Ins::Select(_, which, chosen, other) => {
                    let single = single(program, which);
                    want(which, &wanted);
                    want(chosen, &single.map_or(wanted.clone(), |condition| under(&wanted, condition)));
                    want(other, &wanted);
                }
                _ => ins.reads().for_each(|reg| want(&Src::Reg(reg), &wanted)),
            }
        }
        tile
    }
}

/// The number that an operand is everywhere, if it was read from memory.
fn single(program: &Program, src: &Src) -> Option<Condition> {
    let Src::Reg(reg) = src else { return None };
    program.code.iter().find_map(|ins| match ins {
        Ins::Load(to, walk) if to == reg => {
            let rows = walk.lead.iter().all(|&(len, stride)| len == 1 || stride == 0);
            let still = rows && (walk.col == 0 || program.cols == 1);
            still.then_some(Condition { buf: walk.buf, offset: walk.offset })
        }
        _ => None,
    })
}

/// The gate of the only example of a batch.
fn example(contract: &Contract) -> Option<Condition> {
    let gate = contract.skip.as_ref()?.example.as_ref()?;
    contract.batch.iter().all(|&dim| dim == 1).then_some(Condition { buf: gate.buf, offset: gate.offset })
}
