//! The memory plan: one arena, offsets from lifetimes, results in place of operands that die.
//!
//! Buffers are placed largest first, each into the smallest gap left by those it shares a moment with. The peak is
//! known before anything runs.

use crate::cpu::contract::Contract;
use crate::cpu::{LINE, batch_norm};
use crate::lower::program::{Ins, Program, Reg, Src};
use crate::lower::view::BufId;
use crate::lower::{Home, Lowered, Planned, Step};
use std::collections::BTreeMap;

/// A lowered graph with its memory.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The steps, buffers and slots.
    pub lowered: Lowered,
    /// Where each arena buffer begins, in elements.
    pub offsets: Vec<usize>,
    /// Elements of the arena.
    pub arena: usize,
    /// Elements of scratch memory that one step needs at most, a cache line for alignment included.
    pub scratch: usize,
    /// The host slots that are done with after each step.
    pub drops: Vec<Vec<usize>>,
}

impl Plan {
    /// Plans the memory of a lowered graph.
    pub fn new(mut lowered: Lowered) -> Plan {
        let last_read = last_reads(&lowered);
        let owner = share(&mut lowered, &last_read);
        let (offsets, arena) = place(&lowered, &last_read, &owner);
        let drops = drops(&lowered, &last_read);
        let packed = |p: &Planned| match &p.step {
            Step::ConvWeightGrad(grad) => grad.scratch(),
            Step::Recurrence(layer) => layer.scratch(),
            Step::RecurrenceGrad(grad) => grad.scratch(),
            Step::ChannelStats(stats) => batch_norm::scratch(stats.extent),
            Step::ChannelSums(sums) => batch_norm::scratch(sums.extent),
            step => step.contracts().into_iter().map(Contract::scratch).sum(),
        };
        let scratch = lowered.steps.iter().map(packed).max().map_or(0, |most| most + LINE);
        Plan { lowered, offsets, arena, scratch, drops }
    }
    /// Bytes that a run needs besides parameters and inputs: the arena, scratch memory, outputs, and host tensors between steps.
    pub fn bytes(&self) -> usize {
        let own = |b: &crate::lower::Buffer| if matches!(b.home, Home::Output(_)) { b.len * 4 } else { 0 };
        let outputs: usize = self.lowered.buffers.iter().map(own).sum();
        let host = |s: &crate::lower::Slot| match s.origin {
            crate::lower::Origin::Step => s.dtype.byte_len(s.shape.iter().product()).unwrap_or(0),
            _ => 0,
        };
        (self.arena + self.scratch) * 4 + outputs + self.lowered.slots.iter().map(host).sum::<usize>()
    }
    /// How many steps there are of each kind.
    pub fn kinds(&self) -> BTreeMap<&'static str, usize> {
        let mut kinds = BTreeMap::new();
        for planned in &self.lowered.steps {
            *kinds.entry(planned.step.kind()).or_insert(0) += 1;
        }
        kinds
    }
}

impl Step {
    /// The kernel's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Step::Program(p) if p.whole_rows => "Row",
            Step::Program(_) => "Map",
            Step::Contract(c) if c.skip.is_some() => "Gated",
            Step::Contract(c) if c.products.iter().any(|p| p.patch.is_some()) => "Conv",
            Step::Contract(_) => "Contract",
            Step::Chain(chain) if chain.members.iter().any(|c| c.skip.is_some()) => "GatedChain",
            Step::Chain(_) => "Chain",
            Step::LineBuffer(both) if both.contracts().iter().any(|c| c.skip.is_some()) => "GatedLineBuffer",
            Step::LineBuffer(_) => "LineBuffer",
            Step::Reduce(_) => "Reduce",
            Step::Copies(_) => "Copy",
            Step::Gather(_) => "Gather",
            Step::ConvWeightGrad(_) => "ConvWeightGrad",
            Step::ChannelStats(_) => "ChannelStats",
            Step::ChannelSums(_) => "ChannelSums",
            Step::Pool(_) => "Pool",
            Step::PoolGrad(_) => "PoolGrad",
            Step::Mask(_) => "Mask",
            Step::CrossEntropy(_) => "CrossEntropy",
            Step::Recurrence(_) => "Recurrence",
            Step::RecurrenceGrad(_) => "RecurrenceGrad",
            Step::Import(..) => "Import",
            Step::Export(..) => "Export",
            Step::Reference(..) => "Reference",
        }
    }
}

/// The last step that reads each buffer (or writes it, if nobody reads it).
fn last_reads(lowered: &Lowered) -> Vec<usize> {
    let mut last = vec![0; lowered.buffers.len()];
    for (i, planned) in lowered.steps.iter().enumerate() {
        planned.reads.iter().chain(&planned.writes).for_each(|b| last[b.index()] = i);
    }
    last
}

/// Lets results take over the memory of operands that die in the same step. Returns each buffer's owner.
fn share(lowered: &mut Lowered, last_read: &[usize]) -> Vec<BufId> {
    let mut owner: Vec<BufId> = (0..lowered.buffers.len()).map(|b| BufId(b as u32)).collect();
    let arena = |b: BufId, lowered: &Lowered| lowered.buffers[b.index()].home == Home::Arena;
    let mut dead_at = last_read.to_vec();
    for i in 0..lowered.steps.len() {
        let Planned { step, reads, .. } = &lowered.steps[i];
        let (candidates, products) = match step {
            Step::Program(p) => (exchangeable(p), Vec::new()),
            Step::CrossEntropy(c) => (c.exchangeable().into_iter().collect(), Vec::new()),
            Step::Contract(c) => {
                let pairs = c.epilogue.as_ref().map_or_else(|| c.exchangeable(), exchangeable);
                (pairs, c.products.iter().flat_map(|p| [p.a.buf, p.b.buf]).collect())
            }
            _ => continue,
        };
        let mut taken = Vec::new();
        let mut pairs = Vec::new();
        for (result, operand) in candidates {
            let root = owner[operand.index()];
            let dies = dead_at[root.index()] == i && reads.contains(&operand);
            // The operand's memory may be shared by another buffer that this step reads.
            let only = reads.iter().filter(|r| owner[r.index()] == root).count() == 1;
            let same = lowered.buffers[result.index()].len == lowered.buffers[root.index()].len;
            let mine = arena(result, lowered) && arena(root, lowered) && owner[result.index()] == result;
            if dies && only && same && mine && !taken.contains(&root) && !products.contains(&operand) {
                taken.push(root);
                pairs.push((result, root));
            }
        }
        let any = !pairs.is_empty();
        for (result, root) in pairs {
            owner[result.index()] = root;
            dead_at[root.index()] = dead_at[result.index()];
        }
        match &mut lowered.steps[i].step {
            Step::Program(p) | Step::Contract(Contract { epilogue: Some(p), .. }) => p.in_place |= any,
            Step::Contract(Contract { tail: Some(tail), .. }) => tail.in_place = any,
            _ => {}
        }
    }
    owner
}

/// Pairs (stored buffer, loaded buffer) where the store may overwrite the load: same walk, and the loaded register is
/// not read after the store.
fn exchangeable(program: &Program) -> Vec<(BufId, BufId)> {
    let mut pairs = Vec::new();
    for (at, ins) in program.code.iter().enumerate() {
        let Ins::Store(_, target) = ins else { continue };
        for load in &program.code {
            let Ins::Load(reg, source) = load else { continue };
            let once = loads_of(program, source.buf) == 1;
            let same = (source.offset, &source.lead, source.col) == (target.offset, &target.lead, target.col);
            if once && same && source.col == 1 && !read_after(program, at, *reg) {
                pairs.push((target.buf, source.buf));
            }
        }
    }
    pairs
}

fn loads_of(program: &Program, buf: BufId) -> usize {
    program.code.iter().filter(|ins| matches!(ins, Ins::Load(_, w) if w.buf == buf)).count()
}

fn read_after(program: &Program, at: usize, reg: Reg) -> bool {
    let own = matches!(program.code[at], Ins::Store(Src::Reg(r), _) if r == reg);
    own || program.code[at + 1..].iter().any(|ins| ins.reads().any(|r| r == reg) || ins.dst() == Some(reg))
}

/// Greedy placement by size.
fn place(lowered: &Lowered, last_read: &[usize], owner: &[BufId]) -> (Vec<usize>, usize) {
    let count = lowered.buffers.len();
    let (mut first, mut last) = (vec![usize::MAX; count], vec![0; count]);
    for (i, planned) in lowered.steps.iter().enumerate() {
        for b in &planned.writes {
            let root = owner[b.index()].index();
            first[root] = first[root].min(i);
        }
    }
    for (b, root) in owner.iter().enumerate() {
        last[root.index()] = last[root.index()].max(last_read[b]);
    }
    let rooted = |b: usize| owner[b].index() == b && lowered.buffers[b].home == Home::Arena && first[b] != usize::MAX;
    let mut order: Vec<usize> = (0..count).filter(|&b| rooted(b)).collect();
    order.sort_by_key(|&b| (std::cmp::Reverse(lowered.buffers[b].len), first[b]));
    let (mut offsets, mut peak) = (vec![0; count], 0);
    let mut placed: Vec<(usize, usize, usize, usize)> = Vec::new();
    for b in order {
        let size = lowered.buffers[b].len.next_multiple_of(LINE).max(LINE);
        let mut gap_start = 0;
        let mut best: Option<(usize, usize)> = None;
        for &(offset, end, from, to) in &placed {
            if from > last[b] || to < first[b] {
                continue;
            }
            if offset >= gap_start + size && best.is_none_or(|(gap, _)| offset - gap_start < gap) {
                best = Some((offset - gap_start, gap_start));
            }
            gap_start = gap_start.max(end);
        }
        let offset = best.map_or(gap_start, |(_, start)| start);
        offsets[b] = offset;
        peak = peak.max(offset + size);
        let entry = (offset, offset + size, first[b], last[b]);
        placed.insert(placed.partition_point(|p| p.0 < offset), entry);
    }
    for b in 0..count {
        offsets[b] = offsets[owner[b].index()];
    }
    (offsets, peak)
}

fn drops(lowered: &Lowered, last_read: &[usize]) -> Vec<Vec<usize>> {
    let mut drops = vec![Vec::new(); lowered.steps.len()];
    for (slot, info) in lowered.slots.iter().enumerate() {
        let kept = lowered.outputs.iter().any(|o| o.slot == Some(slot));
        let made = info.origin == crate::lower::Origin::Step;
        if made && !kept && !drops.is_empty() {
            drops[last_read[info.buf.index()]].push(slot);
        }
    }
    drops
}
