//! Running a plan: buffers get addresses, steps run one after the other, outputs become tensors.

use crate::bodies::Bodies;
use crate::cpu;
use crate::cpu::contract;
use crate::cpu::recurrence::Walk as Sequences;
use crate::lower::view::{View, Walk};
use crate::lower::{Home, Origin, Planned, Slot, Step};
use crate::packed::Packs;
use crate::params::Params;
use crate::plan::Plan;
use crate::session::Key;
use bytes::Bytes;
use sartor_ir::ops::EvalCx;
use sartor_ir::ops::dropout::Keep;
use sartor_ir::ops::random::seeded;
use sartor_ir::ops::recurrent::recurrence::lengths;
use sartor_ir::rng::Stream;
use sartor_ir::{Context, DType, Error, Graph, NodeId, Result, Tensor, Value, bail, ensure};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory that a session keeps between runs.
#[derive(Debug, Default)]
pub struct Memory {
    arena: Vec<f32>,
    /// Packed factors of one step.
    scratch: Vec<f32>,
    /// Packed factors that stay.
    pub(crate) packs: Packs,
    /// Aligned copies of tensors whose bytes are not, with the bytes they were made from.
    aligned: HashMap<(usize, usize), (Bytes, Tensor)>,
    /// The bodies of control flow.
    pub(crate) bodies: Bodies,
    /// Buffers of outputs that nobody holds any more.
    spare: Arc<Mutex<Spare>>,
}

/// Buffers to be used again, oldest first, up to a number of elements.
#[derive(Debug, Default)]
struct Spare {
    buffers: VecDeque<Vec<f32>>,
    elements: usize,
    limit: usize,
}

impl Spare {
    fn put(&mut self, buffer: Vec<f32>) {
        self.elements += buffer.len();
        self.buffers.push_back(buffer);
        self.trim();
    }
    fn trim(&mut self) {
        while self.elements > self.limit {
            let Some(oldest) = self.buffers.pop_front() else { break };
            self.elements -= oldest.len();
        }
    }
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let found = self.buffers.iter().position(|b| b.len() == len)?;
        self.elements -= len;
        self.buffers.remove(found)
    }
}

/// An output's memory; goes back to its session when the last tensor on it is dropped.
struct Lent {
    data: Vec<f32>,
    home: Arc<Mutex<Spare>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.data)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        spare.put(std::mem::take(&mut self.data));
    }
}

impl Memory {
    /// For a program that updates these parameters.
    pub fn new(updated: HashSet<String>) -> Memory {
        Memory { packs: Packs::new(updated), ..Memory::default() }
    }
    fn take(&self, len: usize) -> Vec<f32> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.take(len).unwrap_or_else(|| vec![0.0; len])
    }
    /// Keeps at most this many elements of spare buffers.
    fn limit_spare(&self, elements: usize) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.limit = elements;
        spare.trim();
    }
    /// The tensor on aligned memory. A copy is kept for as long as the session, unless the tensor is another in every run.
    fn aligned(&mut self, tensor: &Tensor, passing: bool) -> Tensor {
        if is_aligned(tensor) {
            return tensor.clone();
        }
        if passing {
            return tensor.detached();
        }
        let bytes = tensor.bytes();
        let key = (bytes.as_ptr() as usize, bytes.len());
        let (_, copy) = self.aligned.entry(key).or_insert_with(|| (bytes.clone(), tensor.detached()));
        copy.clone()
    }
}

/// Whether kernels can read a tensor where it is: bytes of a file may lie anywhere.
pub(crate) fn is_aligned(tensor: &Tensor) -> bool {
    tensor.bytes().as_ptr().align_offset(align_of::<f32>()) == 0
}

/// Zeros that nothing has touched yet, on large pages where the system gives them on request: kernels walk through many
/// places of a large arena at once, more than there are entries for small pages in a TLB.
fn zeroed(len: usize) -> Vec<f32> {
    let memory = vec![0f32; len];
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let (start, bytes) = (memory.as_ptr().cast::<u8>(), len * size_of::<f32>());
        let skip = start.align_offset(PAGE);
        if bytes >= skip + PAGE {
            let whole = (bytes - skip) / PAGE * PAGE;
            let start = start.wrapping_add(skip).cast_mut().cast();
            // SAFETY: the range lies inside the vector, and the advice changes nothing but how memory is mapped. A
            // refusal is no loss.
            let _ = unsafe { rustix::mm::madvise(start, whole, rustix::mm::Advice::LinuxHugepage) };
        }
    }
    memory
}

/// One run of a plan.
struct Run<'a> {
    plan: &'a Plan,
    graph: &'a Graph,
    opset: i64,
    key: Key,
    params: &'a dyn Fn(&str) -> Option<Tensor>,
    /// The same, all of them.
    all: &'a Params,
    bodies: &'a Bodies,
    threads: usize,
    bases: Vec<*mut f32>,
    scratch: *mut f32,
    packs: &'a mut Packs,
    host: Vec<Option<Tensor>>,
}

// SAFETY: the addresses point to memory that `execute` owns or borrows for the whole run.
unsafe impl Send for Run<'_> {}

/// Runs a plan; returns the outputs in order, and on request the seconds of every step.
pub fn execute(
    plan: &Plan,
    graph: &Graph,
    opset: i64,
    key: Key,
    memory: &mut Memory,
    params: &Params,
    inputs: &HashMap<String, Tensor>,
    threads: usize,
    times: Option<&mut Vec<f64>>,
) -> Result<Vec<Tensor>> {
    let lowered = &plan.lowered;
    if memory.arena.len() < plan.arena {
        memory.arena = Vec::new();
        memory.arena = zeroed(plan.arena);
    }
    if memory.scratch.len() < plan.scratch {
        memory.scratch = zeroed(plan.scratch);
    }
    let scratch = cpu::on_line(memory.scratch.as_mut_ptr());
    // What one run gives back, and what the next one gives back while the first is still held.
    let given: usize = lowered.buffers.iter().filter(|b| matches!(b.home, Home::Output(_))).map(|b| b.len).sum();
    memory.limit_spare(2 * given);
    let mut own: Vec<Option<Vec<f32>>> = vec![None; lowered.outputs.len()];
    let mut bases = vec![std::ptr::null_mut(); lowered.buffers.len()];
    for (b, buffer) in lowered.buffers.iter().enumerate() {
        match buffer.home {
            Home::Arena => bases[b] = memory.arena.as_mut_ptr().wrapping_add(plan.offsets[b]),
            Home::Output(i) => {
                let mut data = memory.take(buffer.len);
                bases[b] = data.as_mut_ptr();
                own[i] = Some(data);
            }
            Home::Host(_) => {}
        }
    }
    let mut packs = std::mem::take(&mut memory.packs);
    let bodies = std::mem::take(&mut memory.bodies);
    packs.begin();
    let lookup = |name: &str| params.get(name).cloned();
    let host = vec![None; lowered.slots.len()];
    let mut run = Run {
        plan,
        graph,
        opset,
        key,
        params: &lookup,
        all: params,
        bodies: &bodies,
        threads,
        bases,
        scratch,
        packs: &mut packs,
        host,
    };
    for (i, slot) in lowered.slots.iter().enumerate() {
        if let Some(tensor) = leaf(slot, params, inputs)? {
            let passing = matches!(slot.origin, Origin::Input(_));
            let tensor = memory.aligned(&tensor, passing);
            run.fill(i, tensor)?;
        }
    }
    let done = cpu::with_threads(threads, || run.steps(times)).flatten();
    let host = std::mem::take(&mut run.host);
    memory.packs = packs;
    memory.bodies = bodies;
    done?;
    let mut outputs = Vec::with_capacity(lowered.outputs.len());
    for (i, output) in lowered.outputs.iter().enumerate() {
        outputs.push(match (output.slot, own[i].take()) {
            (Some(slot), _) => match host[slot].clone() {
                Some(tensor) => tensor,
                None => bail!("output \"{}\" was not computed", output.name),
            },
            (None, Some(data)) => {
                let bytes = Bytes::from_owner(Lent { data, home: memory.spare.clone() });
                Tensor::from_bytes(DType::F32, output.shape.clone(), bytes)?
            }
            (None, None) => bail!("output \"{}\" has no memory", output.name),
        });
    }
    Ok(outputs)
}

/// What a slot holds before the first step.
fn leaf(slot: &Slot, params: &Params, inputs: &HashMap<String, Tensor>) -> Result<Option<Tensor>> {
    let (found, what, name) = match &slot.origin {
        Origin::Step => return Ok(None),
        Origin::Const(tensor) => return Ok(Some(tensor.clone())),
        Origin::Input(name) => (inputs.get(name), "input", name),
        Origin::Param(name) => (params.get(name), "parameter", name),
    };
    match found {
        Some(tensor) => {
            let fits = tensor.dtype() == slot.dtype && tensor.shape() == slot.shape;
            ensure!(fits, "{what} \"{name}\" is {tensor:?}, the plan expects {}{:?}", slot.dtype, slot.shape);
            Ok(Some(tensor.clone()))
        }
        None => bail!("{what} \"{name}\" is missing"),
    }
}

impl Run<'_> {
    fn fill(&mut self, slot: usize, tensor: Tensor) -> Result<()> {
        let info = &self.plan.lowered.slots[slot];
        // What a branch gives may be a constant of the file, at any address.
        let tensor = if is_aligned(&tensor) { tensor } else { tensor.detached() };
        if info.dtype == DType::F32 {
            // Kernels never write to host tensors.
            self.bases[info.buf.index()] = tensor.bytes().as_ptr().cast::<f32>().cast_mut();
            ensure!(is_aligned(&tensor) || tensor.is_empty(), "a tensor is not aligned");
        }
        self.host[slot] = Some(tensor);
        Ok(())
    }
    /// Whether a step's condition holds.
    fn is_wanted(&self, planned: &Planned) -> bool {
        // SAFETY: a condition lies in its buffer, and the step that fills that comes before those that wait for it.
        planned.only_if.is_none_or(|c| unsafe { *self.bases[c.buf.index()].add(c.offset) } != 0.0)
    }
    fn steps(&mut self, mut times: Option<&mut Vec<f64>>) -> Result<()> {
        let plan = self.plan;
        for (planned, drops) in plan.lowered.steps.iter().zip(&plan.drops) {
            let start = std::time::Instant::now();
            if self.is_wanted(planned) {
                self.step(planned)?;
            }
            if let Some(times) = &mut times {
                times.push(start.elapsed().as_secs_f64());
            }
            drops.iter().for_each(|&slot| self.host[slot] = None);
        }
        Ok(())
    }
    fn step(&mut self, planned: &Planned) -> Result<()> {
        // SAFETY (all blocks below): the plan keeps every walk inside its buffer, and gives what a step writes
        // memory that nothing else alive uses.
        match &planned.step {
            Step::Program(program) => unsafe { cpu::run_program(program, &self.bases) },
            Step::Copies(programs) => {
                programs.iter().for_each(|program| unsafe { cpu::run_program(program, &self.bases) });
            }
            Step::Contract(contract) => {
                let mut kept = self.packs.finder(&self.plan.lowered, &self.host);
                unsafe { contract.run(&self.bases, self.scratch, &mut kept) };
            }
            Step::Chain(chain) => {
                let mut kept = self.packs.finder(&self.plan.lowered, &self.host);
                unsafe { contract::run_chain(chain, &self.bases, self.scratch, &mut kept) };
            }
            Step::LineBuffer(both) => {
                let mut kept = self.packs.finder(&self.plan.lowered, &self.host);
                unsafe { contract::run_line_buffer(both, &self.bases, self.scratch, &mut kept) };
            }
            Step::Reduce(reduce) => unsafe { reduce.run(&self.bases) },
            Step::Gather(gather) => {
                let indices = self.tensor(gather.indices)?.to_i64s()?;
                unsafe { gather.run(&indices, &self.bases)? };
            }
            Step::ConvWeightGrad(grad) => unsafe { grad.run(&self.bases, self.scratch) },
            Step::ChannelStats(stats) => unsafe { stats.run(&self.bases, self.scratch) },
            Step::ChannelSums(sums) => unsafe { sums.run(&self.bases, self.scratch) },
            Step::Pool(pool) => unsafe { pool.run(&self.bases) },
            Step::PoolGrad(grad) => unsafe { grad.run(&self.bases) },
            Step::CrossEntropy(loss) => {
                let targets = self.tensor(loss.targets)?;
                unsafe { loss.run(targets, &self.bases) }.context(|| self.graph.node(loss.node).label())?;
            }
            Step::Recurrence(layer) => {
                let lens = self.lengths(&layer.walk)?;
                unsafe { layer.run(&lens, &self.bases, self.scratch) };
            }
            Step::RecurrenceGrad(grad) => {
                let lens = self.lengths(&grad.walk)?;
                unsafe { grad.run(&lens, &self.bases, self.scratch) };
            }
            Step::Mask(mask) => {
                let keep = Keep::new(mask.ratio, seeded(&self.context(mask.node)?)?);
                unsafe { mask.run(keep, &self.bases) };
            }
            Step::Import(slot, out) => {
                let numbers = self.tensor(*slot)?.cast(DType::F32)?;
                let numbers = numbers.as_slice::<f32>()?;
                let to = self.bases[out.buf.index()];
                unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, numbers.len()) };
            }
            Step::Export(view, slot) => {
                let tensor = self.export(view, &self.plan.lowered.slots[*slot])?;
                self.fill(*slot, tensor)?;
            }
            Step::Reference(id, inputs, outputs) => {
                self.reference(*id, inputs, outputs).context(|| self.graph.node(*id).label())?;
            }
        }
        Ok(())
    }
    /// The lengths of a recurrent layer's sequences.
    fn lengths(&self, walk: &Sequences) -> Result<Vec<usize>> {
        lengths(walk.lens.map(|slot| self.tensor(slot)).transpose()?, walk.sizes)
    }
    fn tensor(&self, slot: usize) -> Result<&Tensor> {
        self.host[slot].as_ref().ok_or_else(|| Error::msg("a host tensor is missing"))
    }
    fn export(&self, view: &View, slot: &Slot) -> Result<Tensor> {
        let cols = view.shape.last().copied().unwrap_or(1);
        let mut numbers = Vec::with_capacity(view.len());
        if let Some(walk) = Walk::new(view, cols)
            && !view.shape.contains(&0)
        {
            let base = self.bases[view.buf.index()].cast_const();
            for row in 0..view.len() / cols {
                let start = walk.row(row);
                // SAFETY: the view stays inside its buffer.
                numbers.extend((0..cols).map(|c| unsafe { *base.add(start + c * walk.col) }));
            }
        }
        Tensor::from_vec(slot.shape.clone(), numbers).cast(slot.dtype)
    }
    /// What the evaluation of a node sees besides its inputs.
    fn context(&self, id: NodeId) -> Result<EvalCx<'_>> {
        let node = self.graph.node(id);
        let Some(op) = node.op() else { bail!("it is no operator") };
        let name = if node.name.is_empty() { node.outputs.first().map_or("", |o| &o.name) } else { &node.name };
        let stream = Stream::new(self.key.seed, self.key.step, name);
        let wanted = node.outputs.iter().map(|o| !o.name.is_empty()).collect();
        Ok(EvalCx { op, opset: self.opset, wanted, stream, params: self.params, bodies: None })
    }
    fn reference(&mut self, id: NodeId, inputs: &[Option<usize>], outputs: &[Option<usize>]) -> Result<()> {
        let run = |body: &Graph, key: (u64, u64), inputs: Vec<Tensor>, captures: &HashMap<Value, Tensor>| {
            self.bodies.run(body, (self.opset, self.threads), self.all, key, inputs, captures)
        };
        let cx = EvalCx { bodies: Some(&run), ..self.context(id)? };
        let mut tensors = Vec::with_capacity(inputs.len());
        for input in inputs {
            tensors.push(input.map(|slot| self.tensor(slot)).transpose()?);
        }
        let results = sartor_ir::eval::eval_op(&cx, &tensors)?;
        for (slot, tensor) in outputs.iter().zip(results) {
            let Some(slot) = *slot else { continue };
            let info = &self.plan.lowered.slots[slot];
            let fits = tensor.dtype() == info.dtype && tensor.shape() == info.shape;
            ensure!(fits, "it gave {tensor:?}, inferred was {}{:?}", info.dtype, info.shape);
            self.fill(slot, tensor)?;
        }
        Ok(())
    }
}
