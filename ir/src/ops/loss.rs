//! The classification losses: `NegativeLogLikelihoodLoss`, and `SoftmaxCrossEntropyLoss` = the same after `LogSoftmax`.
//!
//! ```text
//! lᵢ = −wᵢ · p[i, tᵢ]     p: log-probabilities (for SoftmaxCrossEntropyLoss: LogSoftmax of the scores over axis 1)
//!                         wᵢ = weight[tᵢ], or 1; 0 where tᵢ = ignore_index
//! loss = l (none) | Σl (sum) | Σl / Σw (mean)
//! dp, dscores: see [`super::loss_grad`]  (dscores + d log_prob − softmax · Σd log_prob, if that output is used)
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html>. Shapes: scores `[N, C, …]`, targets
//! `[N, …]` (`int32` or `int64`), weight `[C]`; loss `[N, …]` or a scalar; output 1 of `SoftmaxCrossEntropyLoss`, the
//! log-probabilities, `[N, C, …]`.

use super::real::{optional, reals, required, rounded};
use super::softmax::{log_softmax, map_lines};
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "SoftmaxCrossEntropyLoss",
        inputs: (2, 3),
        outputs: (1, 2),
        infer,
        eval: Some(eval_cross_entropy),
        grad: Gradient::Emit(grad_cross_entropy),
        flops: |cx| 5 * cx.input_len(0),
        sample: Some(|draw| sample(draw, "SoftmaxCrossEntropyLoss")),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "NegativeLogLikelihoodLoss",
        inputs: (2, 3),
        infer,
        eval: Some(|cx, inputs| {
            let scores = required(inputs, 0)?;
            Ok(vec![likelihood_loss(cx, inputs, &reals(scores)?)?])
        }),
        grad: Gradient::Emit(grad_likelihood),
        flops: |cx| cx.input_len(1),
        sample: Some(|draw| sample(draw, "NegativeLogLikelihoodLoss")),
        ..OpDef::DEFAULT
    },
];

/// What becomes of the losses of the instances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reduction {
    /// They stay.
    None,
    /// Their sum.
    Sum,
    /// Their sum divided by the sum of the weights.
    Mean,
}

impl Reduction {
    /// The attribute `reduction`.
    pub fn read(attrs: &Attributes) -> Result<Reduction> {
        match attrs.str("reduction", "mean")? {
            "none" => Ok(Reduction::None),
            "sum" => Ok(Reduction::Sum),
            "mean" => Ok(Reduction::Mean),
            other => bail!("attribute `reduction` is \"{other}\", expected \"none\", \"sum\" or \"mean\""),
        }
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (scores, dtype) = (cx.ty(0)?.clone(), cx.dtype(0)?);
    check_ranks(cx.shape(0), cx.shape(1))?;
    let loss = match Reduction::read(&cx.op.attrs)? {
        Reduction::None => match (cx.shape(1), cx.shape(0)) {
            (Some(targets), _) => Some(targets.to_vec()),
            (None, Some(scores)) => Some([&scores[..1], &scores[2..]].concat()),
            (None, None) => None,
        },
        _ => Some(Vec::new()),
    };
    cx.set_tensor(0, dtype, loss);
    cx.set(1, scores);
    Ok(())
}

/// Targets have one axis less than scores, that of the classes.
pub(super) fn check_ranks(scores: Option<&[Dim]>, targets: Option<&[Dim]>) -> Result<()> {
    let (Some(scores), Some(targets)) = (scores, targets) else { return Ok(()) };
    let (s, t) = (scores.len(), targets.len());
    ensure!(s >= 2, "its scores have rank {s}, expected at least 2");
    ensure!(t + 1 == s, "scores of rank {s} and targets of rank {t}, expected one less");
    Ok(())
}

fn eval_cross_entropy(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let scores = required(inputs, 0)?;
    ensure!(scores.rank() >= 2, "its scores have rank {}, expected at least 2", scores.rank());
    let mut log_prob = reals(scores)?;
    map_lines(&mut log_prob, scores.shape(), 1, log_softmax);
    let loss = likelihood_loss(cx, inputs, &log_prob)?;
    Ok(vec![loss, rounded(scores.dtype(), scores.shape(), log_prob)?])
}

/// The loss of log-probabilities in the shape of input 0.
fn likelihood_loss(cx: &EvalCx, inputs: &[Option<&Tensor>], log_prob: &[f64]) -> Result<Tensor> {
    let (scores, targets) = (required(inputs, 0)?, required(inputs, 1)?);
    let instances = Instances::read(&cx.op.attrs, scores.shape(), targets, optional(inputs, 2))?;
    let loss = |(i, counted): (usize, &Option<Counted>)| match counted {
        Some(Counted { class, weight }) => -weight * log_prob[instances.place(i, *class)],
        None => 0.0,
    };
    let losses: Vec<f64> = instances.counted.iter().enumerate().map(loss).collect();
    let sum: f64 = losses.iter().sum();
    match Reduction::read(&cx.op.attrs)? {
        Reduction::None => rounded(scores.dtype(), targets.shape(), losses),
        Reduction::Sum => rounded(scores.dtype(), [], vec![sum]),
        Reduction::Mean => rounded(scores.dtype(), [], vec![sum / instances.total_weight()]),
    }
}

/// The targets of a loss on host tensors.
pub(super) struct Instances {
    /// By instance; `None` where it does not count.
    pub counted: Vec<Option<Counted>>,
    classes: usize,
    places: usize,
}

/// An instance that counts.
#[derive(Clone, Copy)]
pub(super) struct Counted {
    /// Its class.
    pub class: usize,
    /// The weight of that class.
    pub weight: f64,
}

impl Instances {
    /// Checks shapes and classes.
    pub fn read(attrs: &Attributes, scores: &[usize], targets: &Tensor, weights: Option<&Tensor>) -> Result<Instances> {
        let [batch, classes, places @ ..] = scores else { bail!("its scores have rank {}", scores.len()) };
        let expected = [&[*batch][..], places].concat();
        ensure!(targets.shape() == expected, "targets of shape {:?}, expected {expected:?}", targets.shape());
        let weights = weights.map(reals).transpose()?;
        let fits = weights.as_ref().is_none_or(|w| w.len() == *classes);
        ensure!(fits, "expected one weight for each of {classes} classes");
        let ignored = attrs.get_int("ignore_index")?;
        let mut counted = Vec::with_capacity(targets.len());
        for (i, target) in targets.to_i64s()?.into_iter().enumerate() {
            let weight = |class: usize| weights.as_ref().map_or(1.0, |w| w[class]);
            counted.push(class(target, ignored, *classes, i)?.map(|class| Counted { class, weight: weight(class) }));
        }
        Ok(Instances { counted, classes: *classes, places: places.iter().product() })
    }
    /// Where the scores have a class of an instance.
    pub fn place(&self, instance: usize, class: usize) -> usize {
        (instance / self.places * self.classes + class) * self.places + instance % self.places
    }
    /// `Σw`
    pub fn total_weight(&self) -> f64 {
        self.counted.iter().flatten().map(|c| c.weight).sum()
    }
}

/// The class that a target means; `None` for one that is to be ignored. `i` is its number, for the message.
pub fn class(target: i64, ignored: Option<i64>, classes: usize, i: usize) -> Result<Option<usize>> {
    if Some(target) == ignored {
        return Ok(None);
    }
    match usize::try_from(target).ok().filter(|&c| c < classes) {
        Some(class) => Ok(Some(class)),
        None => bail!("target {target} at {i} is outside [0, {classes})"),
    }
}

fn grad_cross_entropy(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (dloss, dlog_prob) = (cx.grads.first().copied().flatten(), cx.grads.get(1).copied().flatten());
    if !cx.want(0) {
        return Ok(vec![None; 3]);
    }
    let from_loss = dloss.map(|dloss| emit_gradient(cx, "SoftmaxCrossEntropyGrad", dloss)).transpose()?;
    let from_log_prob = match dlog_prob {
        Some(d) => {
            let log_prob = cx.emit.optional_output(cx.node, 1)?;
            let probability = cx.emit.unary("Exp", log_prob)?;
            let sum = cx.emit.reduce_sum(d, &[1], true)?;
            let share = cx.emit.mul(probability, sum)?;
            Some(cx.emit.sub(d, share)?)
        }
        None => None,
    };
    let total = match (from_loss, from_log_prob) {
        (Some(a), Some(b)) => Some(cx.emit.add(a, b)?),
        (a, b) => a.or(b),
    };
    Ok(vec![total, None, None])
}

fn grad_likelihood(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    if !cx.want(0) {
        return Ok(vec![None; 3]);
    }
    let dloss = cx.dy()?;
    Ok(vec![Some(emit_gradient(cx, "NegativeLogLikelihoodGrad", dloss)?), None, None])
}

/// The operator of [`super::loss_grad`] for a loss.
fn emit_gradient(cx: &mut GradCx, name: &str, dloss: Value) -> Result<Value> {
    let inputs = [&[Some(dloss)][..], &cx.emit.graph.node_inputs(cx.node)].concat();
    Ok(cx.emit.node(Operator::sartor(name, cx.op().attrs), &inputs, 1)?[0])
}

pub(super) fn sample(draw: &mut Draw, name: &str) -> Sample {
    let places: &[usize] = *draw.pick(&[&[][..], &[2], &[2, 3]]);
    let (batch, classes) = (draw.int(1, 3) as usize, draw.int(2, 4));
    let scores = draw.tensor(&[&[batch, classes as usize][..], places].concat(), -2.0, 2.0);
    let mut targets = draw.ints(&[&[batch][..], places].concat(), 0, classes - 1).to_i64s().unwrap_or_default();
    let mut attrs = Attributes::new().with("reduction", *draw.pick(&["none", "sum", "mean"]));
    if draw.chance(0.5) {
        attrs.set("ignore_index", -1i64);
        // The first instance counts, so that the mean is not over nothing.
        targets.iter_mut().skip(1).step_by(2).for_each(|t| *t = -1);
    }
    let targets = Tensor::from_vec([&[batch][..], places].concat(), targets);
    let mut inputs = vec![scores, targets];
    if draw.chance(0.5) {
        inputs.push(draw.tensor(&[classes as usize], 0.5, 1.5));
    }
    let mut sample = Sample::new(Operator::onnx(name, attrs), inputs);
    sample.check.iter_mut().skip(1).for_each(|check| *check = false);
    if name == "SoftmaxCrossEntropyLoss" && draw.chance(0.5) {
        sample.outputs = 2;
    }
    sample
}
