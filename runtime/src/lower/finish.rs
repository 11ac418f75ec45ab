//! The end of lowering: what nobody reads is dropped, groups become programs and contracts, steps are ordered.

use super::expr;
use super::group::{Arg, Core, Group, Item, What};
use super::program::{Bin, Builder, Program, Src, Un, Width};
use super::view::{BufId, View, Walk};
use super::{Home, Lowered, Lowering, Output, Place, Planned, Step, Work, tail};
use crate::cpu::contract::{Contract, Matrix, Product};
use sartor_ir::{DType, Result, bail, ensure};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Numbers below `count`, each after its producers; among those that are ready the one with the least key first. What waits in a circle is left out.
pub(super) fn by_producers<K: Ord>(
    count: usize,
    producers: impl Fn(usize) -> HashSet<usize>,
    key: impl Fn(usize) -> K,
) -> Vec<usize> {
    let mut missing = vec![0; count];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); count];
    for at in 0..count {
        let producers = producers(at);
        missing[at] = producers.len();
        producers.into_iter().for_each(|p| readers[p].push(at));
    }
    let waiting = |at: usize| Reverse((key(at), at));
    let mut ready: BinaryHeap<_> = (0..count).filter(|&at| missing[at] == 0).map(waiting).collect();
    let mut order = Vec::with_capacity(count);
    while let Some(Reverse((_, at))) = ready.pop() {
        order.push(at);
        for &reader in &readers[at] {
            missing[reader] -= 1;
            if missing[reader] == 0 {
                ready.push(waiting(reader));
            }
        }
    }
    order
}

/// The steps in another order; those that it leaves out are dropped.
pub(super) fn arranged(steps: Vec<Planned>, order: Vec<usize>) -> Vec<Planned> {
    let mut steps: Vec<Option<Planned>> = steps.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| steps[at].take()).collect()
}

impl Lowering<'_> {
    /// Turns the drafts into steps.
    pub(crate) fn finish(mut self) -> Result<Lowered> {
        let outputs = self.bind_outputs()?;
        let alive = self.alive(&outputs);
        let order = self.order(&alive);
        let wanted = alive.iter().filter(|&&a| a).count();
        ensure!(order.len() == wanted, "{} of {wanted} kernels depend on each other in a circle", wanted - order.len());
        let read_outside = self.read_outside(&alive, &outputs);
        let mut steps = Vec::with_capacity(order.len());
        for draft in order {
            steps.push(self.step(draft, &read_outside)?);
        }
        let steps = super::skip::link(steps, &self.buffers);
        let steps = super::line_buffer::link(steps, &self.buffers);
        let steps = super::chain::chain(steps, &self.buffers);
        let steps = super::lazy::link(steps, self.buffers.len(), &self.output_bufs(&outputs));
        let lowered = Lowered { buffers: self.buffers, slots: self.slots, steps, outputs };
        lowered.check()?;
        Ok(lowered)
    }
    /// Every output gets a host slot or memory of its own.
    fn bind_outputs(&mut self) -> Result<Vec<Output>> {
        let mut outputs = Vec::new();
        for (i, output) in self.graph.outputs.iter().enumerate() {
            let (dtype, shape) = self.known_type(output.value)?;
            let mut place = self.places.get(&output.value).cloned();
            // Results that lie in another order are put in ONNX's by a kernel.
            if let Some(Place::View(view)) = &place
                && dtype == DType::F32
                && super::layout::is_channels_last(view)
            {
                let copy = Place::View(self.copied(view.clone()));
                self.places.insert(output.value, copy.clone());
                place = Some(copy);
            }
            let own = match &place {
                Some(Place::View(view)) if dtype == DType::F32 && view.is_dense() && view.offset == 0 => {
                    let buffer = &mut self.buffers[view.buf.index()];
                    let fits = buffer.home == Home::Arena && buffer.len == view.len();
                    if fits {
                        buffer.home = Home::Output(i);
                    }
                    fits
                }
                _ => false,
            };
            let slot = if own { None } else { Some(self.host(output.value)?) };
            outputs.push(Output { name: output.name.clone(), shape, slot });
        }
        Ok(outputs)
    }
    fn output_bufs(&self, outputs: &[Output]) -> Vec<BufId> {
        let slots = outputs.iter().filter_map(|o| o.slot).map(|s| self.slots[s].buf);
        let own = (0..self.buffers.len()).filter(|&b| matches!(self.buffers[b].home, Home::Output(_)));
        slots.chain(own.map(|b| BufId(b as u32))).collect()
    }
    /// The drafts that outputs depend on.
    fn alive(&self, outputs: &[Output]) -> Vec<bool> {
        let mut alive = vec![false; self.drafts.len()];
        let mut stack: Vec<usize> = self.output_bufs(outputs).into_iter().filter_map(|b| self.writer(b)).collect();
        while let Some(draft) = stack.pop() {
            if !std::mem::replace(&mut alive[draft], true) {
                stack.extend(self.drafts[draft].reads.iter().filter_map(|&b| self.writer(b)));
            }
        }
        alive
    }
    /// Topological order; among the ready ones the draft whose last node is earliest.
    fn order(&self, alive: &[bool]) -> Vec<usize> {
        let producers = |draft: usize| {
            let reads = self.drafts[draft].reads.iter().filter(|_| alive[draft]);
            reads.filter_map(|&b| self.writer(b)).filter(|&p| p != draft).collect()
        };
        let order = by_producers(self.drafts.len(), producers, |d| self.drafts[d].last);
        order.into_iter().filter(|&d| alive[d]).collect()
    }
    /// The buffers that somebody other than their writer reads.
    fn read_outside(&self, alive: &[bool], outputs: &[Output]) -> HashSet<BufId> {
        let mut read: HashSet<BufId> = self.output_bufs(outputs).into_iter().collect();
        for draft in (0..self.drafts.len()).filter(|&d| alive[d]) {
            read.extend(self.drafts[draft].reads.iter().filter(|&&b| self.writer(b) != Some(draft)));
        }
        read
    }
    fn step(&mut self, draft: usize, read_outside: &HashSet<BufId>) -> Result<Planned> {
        let this = &mut self.drafts[draft];
        let work = std::mem::replace(&mut this.work, Work::Merged(draft));
        let (mut reads, mut writes) = (std::mem::take(&mut this.reads), std::mem::take(&mut this.writes));
        let step = match work {
            Work::Step(step) => *step,
            Work::Merged(_) => bail!("a step was ordered twice"),
            Work::Group(group) => {
                writes.retain(|b| read_outside.contains(b) && group.out(*b).is_some());
                let own: HashSet<BufId> = group.items.iter().flat_map(|i| &i.outs).map(|o| o.view.buf).collect();
                reads.retain(|b| !own.contains(b));
                self.group_step(&group, &writes)?
            }
        };
        reads.sort_unstable();
        reads.dedup();
        Ok(Planned { step, reads, writes, only_if: None })
    }
    fn group_step(&self, group: &Group, stored: &[BufId]) -> Result<Step> {
        let Some(core) = &group.core else {
            return Ok(Step::Program(self.program(group, stored)?));
        };
        if let [Item { what: What::Products, outs, .. }] = group.items.as_slice()
            && let [out] = outs.as_slice()
        {
            let shape = [core.batch.as_slice(), &[core.m, core.n]].concat();
            let view = if out.natural { View::dense(out.view.buf, shape) } else { out.view.clone() };
            return Ok(Step::Contract(contract(core, Some(&view), None)));
        }
        let program = self.program(group, stored)?;
        Ok(Step::Contract(tail::simplify(contract(core, None, Some(program)))))
    }
    /// Writes a group as a register program.
    fn program(&self, group: &Group, stored: &[BufId]) -> Result<Program> {
        let cols = group.choose_cols();
        let mut b = Builder::default();
        let mut regs: HashMap<BufId, Src> = HashMap::new();
        let mut loads: HashMap<Walk, Src> = HashMap::new();
        for item in &group.items {
            let mut args = Vec::with_capacity(item.args.len());
            for arg in &item.args {
                args.push(match arg {
                    Arg::Missing => None,
                    Arg::Const(number) => Some(Src::Const(*number)),
                    Arg::View(view) => Some(match regs.get(&view.buf) {
                        Some(&src) => src,
                        None => load(&mut b, &mut loads, view, item.width, cols)?,
                    }),
                });
            }
            let results = self.item(&mut b, item, &args, cols)?;
            for (out, src) in item.outs.iter().zip(results) {
                regs.insert(out.view.buf, src);
                if stored.contains(&out.view.buf) {
                    let walk = match out.width {
                        Width::Row => Some(Walk::per_row(&out.view)),
                        Width::Full => Walk::new(&out.view, cols),
                    };
                    let Some(walk) = walk else { bail!("a result cannot be stored in rows of {cols}") };
                    b.store(src, walk);
                }
            }
        }
        Ok(b.finish(group.numel / cols, cols))
    }
    fn item(&self, b: &mut Builder, item: &Item, args: &[Option<Src>], cols: usize) -> Result<Vec<Src>> {
        let arg = |i: usize| args.get(i).copied().flatten().unwrap_or(Src::Const(0.0));
        Ok(match item.what {
            What::Products => vec![b.tile()],
            What::Copy => vec![b.un(Un::Copy, arg(0))],
            What::Truth => {
                let zero = b.with(Bin::Equal, arg(0), 0.0);
                vec![b.un(Un::Not, zero)]
            }
            What::Masked(scale) => {
                let scaled = b.with(Bin::Mul, arg(0), scale);
                vec![b.select(arg(1), scaled, Src::Const(0.0))]
            }
            What::Gated => {
                let product = b.bin(Bin::Mul, arg(0), arg(1));
                vec![b.select(arg(1), product, Src::Const(0.0))]
            }
            What::AddScaled(beta) => {
                let scaled = if beta == 1.0 { arg(1) } else { b.with(Bin::Mul, arg(1), beta) };
                vec![b.bin(Bin::Add, arg(0), scaled)]
            }
            What::Product(number) => {
                let mut product = arg(0);
                for i in 1..args.len() {
                    product = b.bin(Bin::Mul, product, arg(i));
                }
                vec![if number == 1.0 && args.len() > 1 { product } else { b.with(Bin::Mul, product, number) }]
            }
            What::Mix(share) => {
                let (old, new) = (b.with(Bin::Mul, arg(0), share), b.with(Bin::Mul, arg(1), 1.0 - share));
                vec![b.bin(Bin::Add, old, new)]
            }
            What::Deviation(epsilon) => {
                let shifted = b.with(Bin::Add, arg(1), epsilon);
                let root = b.un(Un::Sqrt, shifted);
                vec![b.bin(Bin::Div, arg(0), root)]
            }
            What::Affine => {
                let centred = b.bin(Bin::Sub, arg(0), arg(1));
                let scaled = b.bin(Bin::Mul, centred, arg(2));
                vec![b.bin(Bin::Add, scaled, arg(3))]
            }
            What::AffineGrad => {
                let centred = b.bin(Bin::Sub, arg(1), arg(2));
                let second = b.bin(Bin::Mul, centred, arg(4));
                let rest = b.bin(Bin::Add, second, arg(5));
                let first = b.bin(Bin::Mul, arg(0), arg(3));
                vec![b.bin(Bin::Add, first, rest)]
            }
            What::Fold(fold, scale, square) => {
                let x = if square { b.bin(Bin::Mul, arg(0), arg(0)) } else { arg(0) };
                let y = b.fold(fold, x);
                vec![if scale == 1.0 { y } else { b.with(Bin::Mul, y, scale) }]
            }
            What::Node(id) => {
                let Some(op) = self.graph.node(id).op() else { bail!("a fused node is no operator") };
                match expr::emit(b, op, args, cols)? {
                    Some(results) => results,
                    None => bail!("{} has no program for {} inputs", op.full_name(), args.len()),
                }
            }
        })
    }
}

fn load(b: &mut Builder, loads: &mut HashMap<Walk, Src>, view: &View, width: Width, cols: usize) -> Result<Src> {
    let walk = match width {
        Width::Row => Some(Walk::per_row(view)),
        Width::Full => Walk::new(view, cols),
    };
    let Some(walk) = walk else { bail!("an operand cannot be read in rows of {cols}") };
    if let Some(&src) = loads.get(&walk) {
        return Ok(src);
    }
    let src = b.load(walk.clone());
    loads.insert(walk, src);
    Ok(src)
}

/// Programs that fill a dense view with 0 and then copy views to parts of it.
pub fn zeros_and_copies(target: &View, parts: &[(View, View)]) -> Vec<Program> {
    let cols = target.shape.last().copied().unwrap_or(1);
    let Some(walk) = Walk::new(target, cols) else { return Vec::new() };
    let mut b = Builder::default();
    b.store(Src::Const(0.0), walk);
    let mut programs = vec![b.finish(target.len() / cols.max(1), cols)];
    programs.extend(copies(parts));
    programs
}

/// Programs that copy views to views of the same shape.
pub fn copies(parts: &[(View, View)]) -> Vec<Program> {
    let mut programs = Vec::new();
    for (from, to) in parts {
        let lengths = (0..=from.shape.len()).map(|i| from.shape[i..].iter().product::<usize>());
        let walks = |cols: usize| Some((Walk::new(from, cols)?, Walk::new(to, cols)?, cols));
        if let Some((source, target, cols)) = lengths.into_iter().find_map(walks) {
            let mut b = Builder::default();
            let x = b.load(source);
            let x = b.spread(x);
            b.store(x, target);
            programs.push(b.finish(from.len() / cols.max(1), cols));
        }
    }
    programs
}

impl Lowered {
    /// Every buffer that a step or an output reads was written by an earlier step, or is there from the start.
    fn check(&self) -> Result<()> {
        let from_start = |b: &super::Buffer| match b.home {
            Home::Host(slot) => self.slots[slot].origin != super::Origin::Step,
            _ => false,
        };
        let mut filled: Vec<bool> = self.buffers.iter().map(from_start).collect();
        for (i, planned) in self.steps.iter().enumerate() {
            for buf in &planned.reads {
                let kind = planned.step.kind();
                ensure!(filled[buf.index()], "step {i} ({kind}) reads buffer {}, which nothing filled", buf.index());
            }
            planned.writes.iter().for_each(|b| filled[b.index()] = true);
        }
        for (i, output) in self.outputs.iter().enumerate() {
            let fills = |b: usize| self.buffers[b].home == Home::Output(i) && filled[b];
            let made = match output.slot {
                Some(slot) => filled[self.slots[slot].buf.index()],
                None => (0..self.buffers.len()).any(fills),
            };
            ensure!(made, "nothing fills output \"{}\"", output.name);
        }
        Ok(())
    }
}

/// Folds batch axes into the rows where every operand allows it.
fn contract(core: &Core, out: Option<&View>, epilogue: Option<Program>) -> Contract {
    let matrix = |view: &View| {
        let lead = view.shape.len() - 2;
        let one = |axis: usize| if view.shape[axis] == 1 { 0 } else { view.strides[axis] };
        let batch = (0..lead).map(one).collect();
        Matrix { buf: view.buf, offset: view.offset, batch, row: view.strides[lead], col: view.strides[lead + 1] }
    };
    let mut out = out.map(matrix);
    let k = |view: &View| view.shape[view.shape.len() - 1];
    let product = |p: &super::group::RawProduct| Product {
        a: matrix(&p.a),
        b: matrix(&p.b),
        k: p.patch.map_or_else(|| k(&p.a), |(_, taps)| taps),
        alpha: p.alpha,
        patch: p.patch.map(|(patch, _)| patch),
    };
    let mut products: Vec<Product> = core.products.iter().map(product).collect();
    let (mut batch, mut m) = (core.batch.clone(), core.m);
    while let Some(&dim) = batch.last() {
        let last = |x: &Matrix| x.batch.last().copied().unwrap_or(0);
        let follows = |x: &Matrix| m == 1 || last(x) == m * x.row;
        let rows = out.iter().chain(products.iter().map(|p| &p.a));
        let windows = products.iter().any(|p| p.patch.is_some());
        let foldable =
            dim == 1 && !windows || !windows && (rows.clone().all(follows) && products.iter().all(|p| last(&p.b) == 0));
        if !foldable {
            break;
        }
        for x in out.iter_mut().chain(products.iter_mut().map(|p| &mut p.a)) {
            let stride = x.batch.pop().unwrap_or(0);
            if m == 1 && dim != 1 {
                x.row = stride;
            }
        }
        products.iter_mut().for_each(|p| {
            p.b.batch.pop();
        });
        batch.pop();
        m *= dim;
    }
    // The longest product last: it ends with the tail.
    products.sort_by_key(|p| p.k);
    Contract { batch, m, n: core.n, products, out, tail: None, epilogue, skip: None }
}
