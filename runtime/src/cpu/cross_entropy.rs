//! The classification losses and their gradients, instance by instance: a row's largest score, the sum of its exponentials, the
//! score of its target. See [`sartor_ir::ops::loss`] for the formulas.
//!
//! Scores are read where they are. If the classes lie one after the other, an instance is worked on at a time; else up to
//! `STRIP` instances that lie side by side. Instances that are ignored are not computed. Sums over classes and instances are
//! joined in `f64`, in one order.

use super::fused::Bases;
use super::simd::{exp, larger};
use super::{Shared, each};
use crate::lower::view::{BufId, View, Walk};
use crate::multiversion;
use sartor_ir::ops::loss::{self, Reduction};
use sartor_ir::{NodeId, Result, Tensor};

/// Scores, or something in their shape: a line of classes per instance.
#[derive(Clone, PartialEq, Debug)]
pub struct Lines {
    /// Rows are instances, columns classes.
    pub walk: Walk,
    /// How many instances lie side by side; 1 if classes do.
    pub beside: usize,
}

impl Lines {
    /// A view whose last axis has the classes; `None` if neither classes nor instances lie side by side.
    pub fn new(view: &View) -> Option<Lines> {
        let classes = *view.shape.last()?;
        if view.shape.iter().zip(&view.strides).any(|(&d, &s)| d != 1 && s == 0) {
            return None;
        }
        let walk = Walk::new(view, classes)?;
        let beside = match walk.lead.last() {
            _ if walk.col == 1 => 1,
            Some(&(dim, 1)) => dim,
            _ => return None,
        };
        Some(Lines { walk, beside })
    }
}

/// What is computed.
#[derive(Clone, PartialEq, Debug)]
pub enum Task {
    /// The loss.
    Loss {
        /// That of every instance, one after the other.
        losses: View,
        /// Their sum or mean.
        total: Option<View>,
        /// The log-probabilities, if somebody reads them.
        log_prob: Option<Lines>,
    },
    /// The gradient of the scores.
    Gradient {
        /// The gradient of the loss, one row per instance or one for all.
        dloss: Walk,
        /// Where it goes.
        dscores: Lines,
    },
}

/// See the [module](self).
#[derive(Clone, PartialEq, Debug)]
pub struct CrossEntropy {
    /// The node, for messages.
    pub node: NodeId,
    /// The scores.
    pub scores: Lines,
    /// How many instances there are.
    pub instances: usize,
    /// How many classes there are.
    pub classes: usize,
    /// The host slot of the targets.
    pub targets: usize,
    /// A weight per class, one after the other.
    pub weights: Option<View>,
    /// The target of instances that do not count.
    pub ignored: Option<i64>,
    /// What becomes of the losses.
    pub reduction: Reduction,
    /// Whether the scores are logits; else they are log-probabilities.
    pub softmax: bool,
    /// What is computed.
    pub task: Task,
}

/// Instances that are worked on side by side.
const STRIP: usize = 64;
/// The class of an instance that is ignored.
const IGNORED: usize = usize::MAX;

impl CrossEntropy {
    /// Runs it; a target that is no class is an error.
    ///
    /// # Safety
    /// Views and walks must stay inside their buffers; instances must not overlap in what is written.
    pub unsafe fn run(&self, targets: &Tensor, bases: Bases) -> Result<()> {
        let mut classes = Vec::with_capacity(self.instances);
        for (i, target) in targets.to_i64s()?.into_iter().enumerate() {
            classes.push(loss::class(target, self.ignored, self.classes, i)?.unwrap_or(IGNORED));
        }
        sartor_ir::ensure!(classes.len() == self.instances, "{} targets for {}", classes.len(), self.instances);
        let weights = self.weights.as_ref().map(|w| bases[w.buf.index()].wrapping_add(w.offset).cast_const());
        let mut job = Job { this: self, targets: &classes, weights, total: 0.0, shared: Shared(bases) };
        // SAFETY: targets are below the number of classes, which is that of the weights.
        job.total = classes.iter().filter(|&&c| c != IGNORED).map(|&c| unsafe { job.weight(c) }).sum();
        let beside = self.scores.beside;
        let strips = beside.div_ceil(STRIP);
        let blocks = self.instances / beside.max(1) * strips;
        let per_task = (super::GRAIN / (self.classes * beside.min(STRIP)).max(1)).max(1);
        each(blocks.div_ceil(per_task), |task| {
            for block in task * per_task..blocks.min((task + 1) * per_task) {
                let start = block % strips * STRIP;
                let (first, count) = (block / strips * beside + start, STRIP.min(beside - start));
                // SAFETY: the caller's contract; blocks are disjoint.
                unsafe { run_block(&job, first, count) };
            }
        });
        // SAFETY: the caller's contract.
        unsafe { self.join(job.total, bases) };
        Ok(())
    }
    /// The sum or mean of the losses.
    unsafe fn join(&self, weight: f64, bases: Bases) {
        let Task::Loss { losses, total: Some(total), .. } = &self.task else { return };
        let from = bases[losses.buf.index()].wrapping_add(losses.offset);
        // SAFETY: the caller's contract.
        let sum: f64 = (0..self.instances).map(|i| f64::from(unsafe { *from.add(i) })).sum();
        let value = if self.reduction == Reduction::Mean { sum / weight } else { sum };
        // SAFETY: as above.
        unsafe { *bases[total.buf.index()].add(total.offset) = value as f32 };
    }
    /// The result that may take the place of the scores, if they have no other reader.
    pub fn exchangeable(&self) -> Option<(BufId, BufId)> {
        let Task::Gradient { dscores, .. } = &self.task else { return None };
        let (to, from) = (&dscores.walk, &self.scores.walk);
        let same = (to.offset, &to.lead, to.col) == (from.offset, &from.lead, from.col);
        (same && self.softmax).then_some((to.buf, from.buf))
    }
}

/// A run.
struct Job<'a> {
    this: &'a CrossEntropy,
    /// The class of every instance, or [`IGNORED`].
    targets: &'a [usize],
    weights: Option<*const f32>,
    /// The sum of the instances' weights.
    total: f64,
    shared: Shared<'a>,
}

// SAFETY: the weights are only read.
unsafe impl Sync for Job<'_> {}

impl Job<'_> {
    /// # Safety
    /// There must be such a class.
    unsafe fn weight(&self, class: usize) -> f64 {
        // SAFETY: the caller's contract.
        self.weights.map_or(1.0, |w| f64::from(unsafe { *w.add(class) }))
    }
    /// Where the line of an instance begins.
    fn line(&self, lines: &Lines, instance: usize) -> *mut f32 {
        self.shared.get()[lines.walk.buf.index()].wrapping_add(lines.walk.row(instance))
    }
    /// What the difference between probability and target is multiplied by; 0 for an ignored instance.
    ///
    /// # Safety
    /// As for [`CrossEntropy::run`].
    unsafe fn scale(&self, dloss: &Walk, instance: usize) -> f64 {
        let class = self.targets[instance];
        if class == IGNORED {
            return 0.0;
        }
        let total = if self.this.reduction == Reduction::Mean { self.total } else { 1.0 };
        let dloss = self.shared.get()[dloss.buf.index()].wrapping_add(dloss.row(instance));
        // SAFETY: the caller's contract.
        unsafe { self.weight(class) * f64::from(*dloss) / total }
    }
}

multiversion!(fn run_block(job: &Job<'_>, first: usize, count: usize) = block);

#[inline(always)]
unsafe fn block<const FMA: bool>(job: &Job<'_>, first: usize, count: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        match &job.this.task {
            Task::Loss { losses, log_prob, .. } => {
                let out = job.shared.get()[losses.buf.index()].add(losses.offset);
                loss_block::<FMA>(job, first, count, out, log_prob.as_ref());
            }
            Task::Gradient { dloss, dscores } if !job.this.softmax => {
                one_hot_block(job, first, count, dloss, dscores);
            }
            Task::Gradient { dloss, dscores } if job.this.scores.beside == 1 => {
                gradient_line::<FMA>(job, first, dloss, dscores);
            }
            Task::Gradient { dloss, dscores } => gradient_strip::<FMA>(job, first, count, dloss, dscores),
        }
    }
}

#[inline(always)]
unsafe fn loss_block<const FMA: bool>(
    job: &Job<'_>,
    first: usize,
    count: usize,
    losses: *mut f32,
    log_prob: Option<&Lines>,
) {
    let (this, targets) = (job.this, &job.targets[first..first + count]);
    let (from, col) = (job.line(&this.scores, first).cast_const(), this.scores.walk.col);
    let mut normal = [0f64; STRIP];
    // SAFETY: the caller's contract; targets that are not ignored are classes.
    unsafe {
        if this.softmax && (log_prob.is_some() || targets.iter().any(|&t| t != IGNORED)) {
            let (mut top, mut sum) = ([f32::NEG_INFINITY; STRIP], [0f64; STRIP]);
            if this.scores.beside == 1 {
                top[0] = line_max(from, this.classes);
                sum[0] = line_exponentials::<FMA>(from, None, this.classes, top[0]);
            } else {
                strip_max(from, col, this.classes, count, &mut top);
                strip_exponentials::<FMA>(from, col, None, this.classes, count, &top, &mut sum);
            }
            (0..count).for_each(|i| normal[i] = f64::from(top[i]) + sum[i].ln());
        }
        for (i, &target) in targets.iter().enumerate() {
            let score = |class: usize| f64::from(*from.add(class * col + i));
            let loss = if target == IGNORED { 0.0 } else { job.weight(target) * (normal[i] - score(target)) };
            *losses.add(first + i) = loss as f32;
        }
        if let Some(lines) = log_prob {
            let (to, step) = (job.line(lines, first), lines.walk.col);
            if this.scores.beside == 1 {
                let scores = std::slice::from_raw_parts(from, this.classes);
                let log_prob = std::slice::from_raw_parts_mut(to, this.classes);
                let pairs = log_prob.iter_mut().zip(scores);
                pairs.for_each(|(y, &x)| *y = (f64::from(x) - normal[0]) as f32);
                return;
            }
            for class in 0..this.classes {
                let scores = std::slice::from_raw_parts(from.add(class * col), count);
                let log_prob = std::slice::from_raw_parts_mut(to.add(class * step), count);
                let pairs = log_prob.iter_mut().zip(scores).zip(&normal);
                pairs.for_each(|((y, &x), normal)| *y = (f64::from(x) - normal) as f32);
            }
        }
    }
}

/// The gradient of log-probabilities: one number per instance, zeros elsewhere.
#[inline(always)]
unsafe fn one_hot_block(job: &Job<'_>, first: usize, count: usize, dloss: &Walk, dscores: &Lines) {
    let (to, col) = (job.line(dscores, first), dscores.walk.col);
    let (across, along) = if count == 1 { (1, job.this.classes) } else { (job.this.classes, count) };
    // SAFETY: the caller's contract; with one instance in the block its classes may lie apart.
    unsafe {
        if count == 1 && col != 1 {
            (0..along).for_each(|class| *to.add(class * col) = 0.0);
        } else {
            (0..across).for_each(|class| to.add(class * col).write_bytes(0, along));
        }
        for i in 0..count {
            let class = job.targets[first + i];
            if class != IGNORED {
                *to.add(class * col + i) = -job.scale(dloss, first + i) as f32;
            }
        }
    }
}

#[inline(always)]
unsafe fn gradient_line<const FMA: bool>(job: &Job<'_>, instance: usize, dloss: &Walk, dscores: &Lines) {
    let (from, to) = (job.line(&job.this.scores, instance).cast_const(), job.line(dscores, instance));
    let (target, classes) = (job.targets[instance], job.this.classes);
    // SAFETY: the caller's contract; a target that is not ignored is a class.
    unsafe {
        if target == IGNORED {
            return to.write_bytes(0, classes);
        }
        let top = line_max(from, classes);
        let sum = line_exponentials::<FMA>(from, Some(to), classes, top);
        let scale = job.scale(dloss, instance);
        let hit = (f64::from(*to.add(target)) / sum - 1.0) * scale;
        let factor = (scale / sum) as f32;
        std::slice::from_raw_parts_mut(to, classes).iter_mut().for_each(|y| *y *= factor);
        *to.add(target) = hit as f32;
    }
}

#[inline(always)]
unsafe fn gradient_strip<const FMA: bool>(job: &Job<'_>, first: usize, count: usize, dloss: &Walk, dscores: &Lines) {
    let (scores, classes) = (&job.this.scores, job.this.classes);
    let (from, to) = (job.line(scores, first).cast_const(), job.line(dscores, first));
    let (col, step) = (scores.walk.col, dscores.walk.col);
    let (mut top, mut sum) = ([f32::NEG_INFINITY; STRIP], [0f64; STRIP]);
    let (mut hits, mut factors, mut keep) = ([0f32; STRIP], [0f32; STRIP], [false; STRIP]);
    // SAFETY: the caller's contract; targets that are not ignored are classes.
    unsafe {
        strip_max(from, col, classes, count, &mut top);
        strip_exponentials::<FMA>(from, col, Some((to, step)), classes, count, &top, &mut sum);
        for i in 0..count {
            let (target, scale) = (job.targets[first + i], job.scale(dloss, first + i));
            keep[i] = target != IGNORED;
            if keep[i] {
                hits[i] = ((f64::from(*to.add(target * step + i)) / sum[i] - 1.0) * scale) as f32;
                factors[i] = (scale / sum[i]) as f32;
            }
        }
        for class in 0..classes {
            let line = std::slice::from_raw_parts_mut(to.add(class * step), count);
            for ((y, &factor), &keep) in line.iter_mut().zip(&factors).zip(&keep) {
                *y = if keep { *y * factor } else { 0.0 };
            }
        }
        for i in (0..count).filter(|&i| keep[i]) {
            *to.add(job.targets[first + i] * step + i) = hits[i];
        }
    }
}

/// Lanes of a line.
const LANES: usize = 16;

/// # Safety
/// `from` must have `len` numbers.
#[inline(always)]
unsafe fn line_max(from: *const f32, len: usize) -> f32 {
    const WIDE: usize = 4 * LANES;
    // SAFETY: the caller's contract.
    let line = unsafe { std::slice::from_raw_parts(from, len) };
    let mut lanes = [f32::NEG_INFINITY; WIDE];
    let chunks = line.chunks_exact(WIDE);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane = larger(*lane, x));
    }
    lanes.into_iter().fold(rest, larger)
}

/// The sum of `exp(x − top)` along a line; the exponentials are written to `to`, which may be the line itself.
///
/// # Safety
/// Both must have `len` numbers, and be the same or apart.
#[inline(always)]
unsafe fn line_exponentials<const FMA: bool>(from: *const f32, to: Option<*mut f32>, len: usize, top: f32) -> f64 {
    // So many chunks are summed in single precision.
    const RUN: usize = 64;
    let (mut sum, mut lanes) = (0f64, [0f32; LANES]);
    let join = |lanes: [f32; LANES]| lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
    for chunk in 0..len / LANES {
        // SAFETY: the caller's contract.
        unsafe {
            let mut numbers = from.add(chunk * LANES).cast::<[f32; LANES]>().read();
            for (x, lane) in numbers.iter_mut().zip(&mut lanes) {
                *x = exp::<FMA>(*x - top);
                *lane += *x;
            }
            if let Some(to) = to {
                to.add(chunk * LANES).cast::<[f32; LANES]>().write(numbers);
            }
        }
        if chunk % RUN == RUN - 1 {
            sum += join(std::mem::take(&mut lanes));
        }
    }
    sum += join(lanes);
    for i in len / LANES * LANES..len {
        // SAFETY: as above.
        unsafe {
            let e = exp::<FMA>(*from.add(i) - top);
            sum += f64::from(e);
            to.into_iter().for_each(|to| *to.add(i) = e);
        }
    }
    sum
}

/// The largest score of each of `count` instances side by side, classes `col` apart.
///
/// # Safety
/// All of them must be there.
#[inline(always)]
unsafe fn strip_max(from: *const f32, col: usize, classes: usize, count: usize, top: &mut [f32; STRIP]) {
    for class in 0..classes {
        // SAFETY: the caller's contract.
        let line = unsafe { std::slice::from_raw_parts(from.add(class * col), count) };
        top.iter_mut().zip(line).for_each(|(top, &x)| *top = larger(*top, x));
    }
}

/// The sums of exponentials of instances side by side; the exponentials are written to `to`, if given, with its classes so far apart.
///
/// # Safety
/// All of them must be there; `to` must be the scores themselves or apart from them.
#[inline(always)]
unsafe fn strip_exponentials<const FMA: bool>(
    from: *const f32,
    col: usize,
    to: Option<(*mut f32, usize)>,
    classes: usize,
    count: usize,
    top: &[f32; STRIP],
    sum: &mut [f64; STRIP],
) {
    let mut line = [0f32; STRIP];
    for class in 0..classes {
        // SAFETY: the caller's contract.
        unsafe { std::ptr::copy_nonoverlapping(from.add(class * col), line.as_mut_ptr(), count) };
        for ((x, top), sum) in line.iter_mut().zip(top).zip(sum.iter_mut()) {
            *x = exp::<FMA>(*x - top);
            *sum += f64::from(*x);
        }
        if let Some((to, step)) = to {
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(line.as_ptr(), to.add(class * step), count) };
        }
    }
}
