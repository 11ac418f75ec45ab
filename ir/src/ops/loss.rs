//! The classification losses: `NegativeLogLikelihoodLoss`, and `SoftmaxCrossEntropyLoss` = the same after `LogSoftmax`.
//!
//! ```text
//! lᵢ = −wᵢ · p[i, tᵢ]     p: log-probabilities (for SoftmaxCrossEntropyLoss: LogSoftmax of the scores over axis 1)
//!                         wᵢ = weight[tᵢ], or 1; 0 where tᵢ = ignore_index
//! loss = l (none) | Σl (sum) | Σl / Σw (mean)
//! dp[i, c]     = −wᵢ · gᵢ · [c = tᵢ]                        g: dloss, for mean divided by Σw
//! dscores      = (softmax − [c = tᵢ]) · wᵢ · gᵢ  (+ d log_prob − softmax · Σd log_prob, if that output is used)
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html>. Shapes: scores `[N, C, …]`, targets
//! `[N, …]` (`int32` or `int64`), weight `[C]`; loss `[N, …]` or a scalar; output 1 of `SoftmaxCrossEntropyLoss`, the
//! log-probabilities, `[N, C, …]`.

use super::real::{optional, reals, required, rounded};
use super::softmax::{log_softmax, map_lines};
use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

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
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reduction {
    None,
    Sum,
    Mean,
}

fn reduction(attrs: &Attributes) -> Result<Reduction> {
    match attrs.str("reduction", "mean")? {
        "none" => Ok(Reduction::None),
        "sum" => Ok(Reduction::Sum),
        "mean" => Ok(Reduction::Mean),
        other => bail!("attribute `reduction` is \"{other}\", expected \"none\", \"sum\" or \"mean\""),
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (scores, dtype) = (cx.ty(0)?.clone(), cx.dtype(0)?);
    if let (Some(scores), Some(targets)) = (cx.shape(0), cx.shape(1)) {
        ensure!(scores.len() >= 2, "its scores have rank {}, expected at least 2", scores.len());
        ensure!(
            targets.len() + 1 == scores.len(),
            "scores of rank {} and targets of rank {}, expected one less",
            scores.len(),
            targets.len()
        );
    }
    let loss = match reduction(&cx.op.attrs)? {
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
    let [batch, classes, places @ ..] = scores.shape() else { bail!("its scores have rank {}", scores.rank()) };
    let expected = [&[*batch][..], places].concat();
    ensure!(targets.shape() == expected, "targets of shape {:?}, expected {expected:?}", targets.shape());
    let weights = optional(inputs, 2).map(reals).transpose()?;
    ensure!(weights.as_ref().is_none_or(|w| w.len() == *classes), "expected one weight for each of {classes} classes");
    let (ignored, places) = (cx.op.attrs.get_int("ignore_index")?, places.iter().product::<usize>());
    let (mut losses, mut total_weight) = (Vec::with_capacity(targets.len()), 0.0);
    for (i, target) in targets.to_i64s()?.into_iter().enumerate() {
        if Some(target) == ignored {
            losses.push(0.0);
            continue;
        }
        let class = usize::try_from(target).ok().filter(|c| c < classes);
        let Some(class) = class else { bail!("target {target} at {i} is outside [0, {classes})") };
        let weight = weights.as_ref().map_or(1.0, |w| w[class]);
        losses.push(-weight * log_prob[(i / places * classes + class) * places + i % places]);
        total_weight += weight;
    }
    let sum: f64 = losses.iter().sum();
    match reduction(&cx.op.attrs)? {
        Reduction::None => rounded(scores.dtype(), expected, losses),
        Reduction::Sum => rounded(scores.dtype(), [], vec![sum]),
        Reduction::Mean => rounded(scores.dtype(), [], vec![sum / total_weight]),
    }
}

fn grad_cross_entropy(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (dloss, dlog_prob) = (cx.grads.first().copied().flatten(), cx.grads.get(1).copied().flatten());
    if !cx.want(0) {
        return Ok(vec![None; 3]);
    }
    let log_prob = cx.emit.optional_output(cx.node, 1)?;
    let probability = cx.emit.unary("Exp", log_prob)?;
    let from_loss = match dloss {
        Some(dloss) => {
            let hit = one_hot(cx)?;
            let difference = cx.emit.sub(probability, hit)?;
            let scale = instance_scale(cx, dloss)?;
            Some(cx.emit.mul(difference, scale)?)
        }
        None => None,
    };
    let from_log_prob = match dlog_prob {
        Some(d) => {
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
    let hit = one_hot(cx)?;
    let scale = instance_scale(cx, dloss)?;
    let down = cx.emit.unary("Neg", scale)?;
    Ok(vec![Some(cx.emit.mul(hit, down)?), None, None])
}

/// `[c = tᵢ]` in the shape and type of the scores: the targets compared with the class numbers along axis 1.
fn one_hot(cx: &mut GradCx) -> Result<Value> {
    let (scores, targets) = (cx.input(0)?, cx.input(1)?);
    let shape = cx.emit.shape(scores)?;
    let targets = cx.emit.cast(targets, DType::I64)?;
    let targets = cx.emit.unsqueeze(targets, &[1])?;
    let classes = class_numbers(cx.emit, scores, &shape)?;
    let hit = cx.emit.op("Equal", &[targets, classes], Attributes::new())?;
    let dtype = cx.emit.dtype(scores)?;
    cx.emit.cast(hit, dtype)
}

/// `0, 1, …, C − 1` as `[C, 1, …]`, which broadcasts along axis 1 of the scores.
fn class_numbers(emit: &mut Emit, scores: Value, shape: &[Dim]) -> Result<Value> {
    let tail = shape.len() - 2;
    match shape[1].known() {
        Some(classes) => {
            let count = super::real::sizes(&[classes])?[0];
            let full = [&[count][..], &vec![1; tail]].concat();
            Ok(emit.constant(Tensor::from_vec(full, (0..classes).collect::<Vec<i64>>())))
        }
        None => {
            let sizes = emit.op("Shape", &[scores], Attributes::new())?;
            let axis = emit.constant(Tensor::scalar(1i64));
            let limit = emit.op("Gather", &[sizes, axis], Attributes::new())?;
            let (start, step) = (emit.constant(Tensor::scalar(0i64)), emit.constant(Tensor::scalar(1i64)));
            let numbers = emit.op("Range", &[start, limit, step], Attributes::new())?;
            let axes: Vec<usize> = (1..=tail).collect();
            if axes.is_empty() { Ok(numbers) } else { emit.unsqueeze(numbers, &axes) }
        }
    }
}

/// `wᵢ · gᵢ` with an axis of length 1 for the classes, or a scalar where all instances have the same.
fn instance_scale(cx: &mut GradCx, dloss: Value) -> Result<Value> {
    let attrs = cx.op().attrs;
    let reduction = reduction(&attrs)?;
    let weights = instance_weights(cx, attrs.get_int("ignore_index")?)?;
    let scale = match reduction {
        Reduction::Mean => {
            let total = total_weight(cx, weights)?;
            cx.emit.div(dloss, total)?
        }
        _ => dloss,
    };
    let scale = match weights {
        Some(weights) => cx.emit.mul(weights, scale)?,
        None => scale,
    };
    if cx.emit.rank(scale)? == 0 { Ok(scale) } else { cx.emit.unsqueeze(scale, &[1]) }
}

/// `wᵢ` in the shape of the targets, `None` if all are 1.
fn instance_weights(cx: &mut GradCx, ignored: Option<i64>) -> Result<Option<Value>> {
    let (scores, targets) = (cx.input(0)?, cx.input(1)?);
    let Some(ignored) = ignored else {
        return match cx.optional_input(2) {
            Some(weights) => Ok(Some(cx.emit.op("Gather", &[weights, targets], Attributes::new())?)),
            None => Ok(None),
        };
    };
    let (ignored, zero) = (cx.emit.scalar(ignored as f64, targets)?, cx.emit.scalar(0.0, targets)?);
    let skip = cx.emit.op("Equal", &[targets, ignored], Attributes::new())?;
    let weight = match cx.optional_input(2) {
        Some(weights) => {
            let safe = cx.emit.select(skip, zero, targets)?;
            cx.emit.op("Gather", &[weights, safe], Attributes::new())?
        }
        None => cx.emit.scalar(1.0, scores)?,
    };
    let nothing = cx.emit.scalar(0.0, scores)?;
    Ok(Some(cx.emit.select(skip, nothing, weight)?))
}

/// `Σw`, a scalar.
fn total_weight(cx: &mut GradCx, weights: Option<Value>) -> Result<Value> {
    let (scores, targets) = (cx.input(0)?, cx.input(1)?);
    if let Some(weights) = weights {
        let axes: Vec<usize> = (0..cx.emit.rank(weights)?).collect();
        return cx.emit.reduce_sum(weights, &axes, false);
    }
    match Dim::product(&cx.emit.shape(targets)?).known() {
        Some(count) => cx.emit.scalar(count as f64, scores),
        None => {
            let count = cx.emit.unary("Size", targets)?;
            let dtype = cx.emit.dtype(scores)?;
            cx.emit.cast(count, dtype)
        }
    }
}

fn sample(draw: &mut Draw, name: &str) -> Sample {
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
