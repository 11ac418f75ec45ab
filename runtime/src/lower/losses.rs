//! The classification losses and their gradients become [`CrossEntropy`] steps. The scores are read through their view, also
//! under a Transpose; log-probabilities and gradients are stored in the scores' own order of axes, so that a Transpose
//! of them is dense again.

use super::view::{View, Walk, dense_strides};
use super::{Lowering, Step};
use crate::cpu::cross_entropy::{CrossEntropy, Lines, Task};
use sartor_ir::ops::loss::Reduction;
use sartor_ir::{NodeId, Operator, Result, Value};

/// The inputs of a loss that both directions read.
struct Inputs {
    /// The scores' slot; targets and weights follow.
    first: usize,
    softmax: bool,
}

impl Lowering<'_> {
    /// Inputs: scores, targets, and perhaps weights. Outputs: loss, and perhaps log-probabilities.
    pub(crate) fn class_loss(&mut self, id: NodeId, op: &Operator) -> Result<bool> {
        let inputs = Inputs { first: 0, softmax: op.name == "SoftmaxCrossEntropyLoss" };
        let y = Value { node: id, slot: 0 };
        let Some((mut step, scores)) = self.cross_entropy(id, op, &inputs)? else { return Ok(false) };
        let losses = self.fresh(vec![step.instances]);
        let shape = self.shape(y)?;
        let total = (step.reduction != Reduction::None).then(|| self.fresh(shape.clone()));
        let result = total.clone().unwrap_or_else(|| View::dense(losses.buf, shape));
        let second = Value { node: id, slot: 1 };
        let read = inputs.softmax && (self.uses.contains_key(&second) || self.outputs.contains(&second));
        let log_prob = read.then(|| self.stored_like(&scores));
        let lines = log_prob.as_ref().and_then(Lines::new);
        if read != lines.is_some() {
            return Ok(false);
        }
        let mut writes = vec![losses.buf];
        writes.extend(total.iter().chain(&log_prob).map(|v| v.buf));
        let mut reads = vec![step.scores.walk.buf, self.slots[step.targets].buf];
        reads.extend(step.weights.as_ref().map(|w| w.buf));
        step.task = Task::Loss { losses, total, log_prob: lines };
        self.push(Step::CrossEntropy(step), reads, writes);
        if let Some(log_prob) = log_prob {
            self.set(second, classes_second(&log_prob))?;
        }
        self.set(y, result)
    }
    /// Inputs: the gradient of the loss, then as for the loss.
    pub(crate) fn class_loss_grad(&mut self, id: NodeId, op: &Operator) -> Result<bool> {
        let inputs = Inputs { first: 1, softmax: op.name == "SoftmaxCrossEntropyGrad" };
        let Some(dloss) = self.graph.input(id, 0) else { return Ok(false) };
        let Some((mut step, scores)) = self.cross_entropy(id, op, &inputs)? else { return Ok(false) };
        let dloss = self.view(dloss)?;
        let dscores = self.stored_like(&scores);
        let Some(lines) = Lines::new(&dscores) else { return Ok(false) };
        if dloss.len() != if step.reduction == Reduction::None { step.instances } else { 1 } {
            return Ok(false);
        }
        let mut reads = vec![dloss.buf, self.slots[step.targets].buf];
        reads.extend(inputs.softmax.then_some(step.scores.walk.buf));
        reads.extend(step.weights.as_ref().map(|w| w.buf));
        step.task = Task::Gradient { dloss: Walk::per_row(&dloss), dscores: lines };
        self.push(Step::CrossEntropy(step), reads, vec![dscores.buf]);
        self.set(Value { node: id, slot: 0 }, classes_second(&dscores))
    }
    /// A step whose task is still open, and the scores with the classes last; `None` if the inputs do not fit.
    fn cross_entropy(&mut self, id: NodeId, op: &Operator, from: &Inputs) -> Result<Option<(CrossEntropy, View)>> {
        let (scores, targets) = (self.graph.input(id, from.first), self.graph.input(id, from.first + 1));
        let (Some(scores), Some(targets)) = (scores, targets) else { return Ok(None) };
        let weights = self.graph.input(id, from.first + 2).map(|w| self.view(w)).transpose()?;
        let weights = weights.map(|w| if w.is_dense() { w } else { self.copied(w) });
        let mut view = self.view(scores)?;
        let rank = view.shape.len();
        let classes = view.shape[1];
        let last: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
        view = view.transposed(&last);
        if self.shape(targets)? != view.shape[..rank - 1] || weights.as_ref().is_some_and(|w| w.shape != [classes]) {
            return Ok(None);
        }
        if Lines::new(&view).is_none() {
            view = self.copied(view);
        }
        let Some(lines) = Lines::new(&view) else { return Ok(None) };
        let dloss = Walk::per_row(&View::dense(view.buf, Vec::new()));
        let step = CrossEntropy {
            node: id,
            instances: view.len() / classes,
            classes,
            targets: self.host(targets)?,
            weights,
            ignored: op.attrs.get_int("ignore_index")?,
            reduction: Reduction::read(&op.attrs)?,
            softmax: from.softmax,
            task: Task::Gradient { dloss, dscores: lines.clone() },
            scores: lines,
        };
        Ok(Some((step, view)))
    }
    /// A new buffer in the shape of a view, its axes in the same order in memory, without gaps.
    fn stored_like(&mut self, view: &View) -> View {
        let mut order: Vec<usize> = (0..view.shape.len()).collect();
        order.sort_by_key(|&axis| {
            std::cmp::Reverse(if view.shape[axis] == 1 { usize::MAX } else { view.strides[axis] })
        });
        let stored: Vec<usize> = order.iter().map(|&axis| view.shape[axis]).collect();
        let mut result = self.fresh(view.shape.clone());
        order.into_iter().zip(dense_strides(&stored)).for_each(|(axis, stride)| result.strides[axis] = stride);
        result
    }
}

/// The classes moved from the last place to where ONNX has them.
fn classes_second(view: &View) -> View {
    let rank = view.shape.len();
    let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    view.transposed(&perm)
}
