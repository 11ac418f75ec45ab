//! The gradients of the classification losses, `ai.sartor::SoftmaxCrossEntropyGrad` and `ai.sartor::NegativeLogLikelihoodGrad`: one
//! operator each, so that a kernel can write the gradient in one pass, without one-hot targets in memory.
//!
//! ```text
//! SoftmaxCrossEntropyGrad(dloss, scores, targets, weight):    dscores[i, c] = (softmax(scores)[i, c] − [c = tᵢ]) · wᵢ · gᵢ
//! NegativeLogLikelihoodGrad(dloss, scores, targets, weight):  dp[i, c]      = −wᵢ · gᵢ · [c = tᵢ]
//!     gᵢ = dlossᵢ (none), dloss (sum), dloss / Σw (mean); wᵢ = 0 where tᵢ = ignore_index
//! ```
//!
//! Attributes and shapes are those of the losses ([`super::loss`]); dloss has the shape of the loss. The result has the type of
//! the scores. Instances that are ignored get 0, also where no instance counts and `Σw` is 0. The gradient is that of the
//! decomposition: softmax and one-hot targets written out.

use super::loss::{self, Instances, Reduction};
use super::real::{optional, reals, required, rounded};
use super::softmax::{map_lines, softmax};
use super::{Emit, EvalCx, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, SARTOR_DOMAIN, Tensor, bail};

/// What the rows share.
const LOSS_GRAD: OpDef = OpDef {
    domain: SARTOR_DOMAIN,
    inputs: (3, 4),
    infer,
    grad: Gradient::Decompose,
    flops: |cx| 5 * cx.output_len(0),
    ..OpDef::DEFAULT
};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "SoftmaxCrossEntropyGrad",
        eval: Some(eval_cross_entropy),
        decompose: Some(decompose_cross_entropy),
        sample: Some(|draw| sample(draw, "SoftmaxCrossEntropyGrad")),
        ..LOSS_GRAD
    },
    OpDef {
        name: "NegativeLogLikelihoodGrad",
        eval: Some(|cx, inputs| {
            let scores = required(inputs, 1)?;
            gradient(cx, inputs, vec![0.0; scores.len()])
        }),
        decompose: Some(decompose_likelihood),
        flops: |cx| cx.input_len(2),
        sample: Some(|draw| sample(draw, "NegativeLogLikelihoodGrad")),
        ..LOSS_GRAD
    },
];

fn infer(cx: &mut InferCx) -> Result<()> {
    loss::check_ranks(cx.shape(1), cx.shape(2))?;
    let scores = cx.ty(1)?.clone();
    cx.set(0, scores);
    Ok(())
}

fn eval_cross_entropy(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let scores = required(inputs, 1)?;
    let mut probability = reals(scores)?;
    if scores.rank() >= 2 {
        map_lines(&mut probability, scores.shape(), 1, softmax);
    }
    gradient(cx, inputs, probability)
}

/// `(values − one-hot targets) · w · g`
fn gradient(cx: &EvalCx, inputs: &[Option<&Tensor>], mut values: Vec<f64>) -> Result<Vec<Tensor>> {
    let (scores, targets) = (required(inputs, 1)?, required(inputs, 2)?);
    let dloss = reals(required(inputs, 0)?)?;
    let instances = Instances::read(&cx.op.attrs, scores.shape(), targets, optional(inputs, 3))?;
    let each = Reduction::read(&cx.op.attrs)? == Reduction::None;
    let expected = if each { targets.len() } else { 1 };
    crate::ensure!(dloss.len() == expected, "a loss of {expected} elements, but dloss has {}", dloss.len());
    let total = if Reduction::read(&cx.op.attrs)? == Reduction::Mean { instances.total_weight() } else { 1.0 };
    for (i, counted) in instances.counted.iter().enumerate() {
        let scale = counted.map(|c| c.weight * dloss[if each { i } else { 0 }] / total);
        for class in 0..scores.shape()[1] {
            let value = &mut values[instances.place(i, class)];
            let hit = counted.is_some_and(|c| c.class == class);
            *value = scale.map_or(0.0, |scale| (*value - f64::from(u8::from(hit))) * scale);
        }
    }
    Ok(vec![rounded(scores.dtype(), scores.shape(), values)?])
}

fn decompose_cross_entropy(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let parts = Parts::of(emit, id)?;
    let probability = emit.op("Softmax", &[parts.scores], Attributes::new().with("axis", 1i64))?;
    let hit = parts.one_hot(emit)?;
    let difference = emit.sub(probability, hit)?;
    let scale = parts.instance_scale(emit)?;
    Ok(vec![emit.mul(difference, scale)?])
}

fn decompose_likelihood(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let parts = Parts::of(emit, id)?;
    let hit = parts.one_hot(emit)?;
    let scale = parts.instance_scale(emit)?;
    let down = emit.unary("Neg", scale)?;
    Ok(vec![emit.mul(hit, down)?])
}

/// The inputs and attributes of a node that is written out.
struct Parts {
    dloss: Value,
    scores: Value,
    targets: Value,
    weight: Option<Value>,
    ignored: Option<i64>,
    reduction: Reduction,
}

impl Parts {
    fn of(emit: &Emit, id: NodeId) -> Result<Parts> {
        let input = |slot| emit.graph.input(id, slot);
        let (Some(dloss), Some(scores), Some(targets)) = (input(0), input(1), input(2)) else {
            bail!("one of its inputs 0 to 2 is missing");
        };
        let attrs = emit.graph.node(id).op().map(|op| op.attrs.clone()).unwrap_or_default();
        let (ignored, reduction) = (attrs.get_int("ignore_index")?, Reduction::read(&attrs)?);
        Ok(Parts { dloss, scores, targets, weight: input(3), ignored, reduction })
    }
    /// `[c = tᵢ]` in the shape and type of the scores: the targets compared with the class numbers along axis 1.
    fn one_hot(&self, emit: &mut Emit) -> Result<Value> {
        let shape = emit.shape(self.scores)?;
        let targets = emit.cast(self.targets, DType::I64)?;
        let targets = emit.unsqueeze(targets, &[1])?;
        let classes = class_numbers(emit, self.scores, &shape)?;
        let hit = emit.op("Equal", &[targets, classes], Attributes::new())?;
        let dtype = emit.dtype(self.scores)?;
        emit.cast(hit, dtype)
    }
    /// `wᵢ · gᵢ` with an axis of length 1 for the classes, or a scalar where all instances have the same.
    fn instance_scale(&self, emit: &mut Emit) -> Result<Value> {
        let weights = self.instance_weights(emit)?;
        let scale = match self.reduction {
            Reduction::Mean => {
                let total = self.total_weight(emit, weights)?;
                emit.div(self.dloss, total)?
            }
            _ => self.dloss,
        };
        let scale = match weights {
            Some(weights) => emit.mul(weights, scale)?,
            None => scale,
        };
        if emit.rank(scale)? == 0 { Ok(scale) } else { emit.unsqueeze(scale, &[1]) }
    }
    /// `wᵢ` in the shape of the targets, `None` if all are 1.
    fn instance_weights(&self, emit: &mut Emit) -> Result<Option<Value>> {
        let Some(ignored) = self.ignored else {
            return match self.weight {
                Some(weight) => Ok(Some(emit.op("Gather", &[weight, self.targets], Attributes::new())?)),
                None => Ok(None),
            };
        };
        let (ignored, zero) = (emit.scalar(ignored as f64, self.targets)?, emit.scalar(0.0, self.targets)?);
        let skip = emit.op("Equal", &[self.targets, ignored], Attributes::new())?;
        let weight = match self.weight {
            Some(weight) => {
                let safe = emit.select(skip, zero, self.targets)?;
                emit.op("Gather", &[weight, safe], Attributes::new())?
            }
            None => emit.scalar(1.0, self.scores)?,
        };
        let nothing = emit.scalar(0.0, self.scores)?;
        Ok(Some(emit.select(skip, nothing, weight)?))
    }
    /// `Σw`, a scalar.
    fn total_weight(&self, emit: &mut Emit, weights: Option<Value>) -> Result<Value> {
        if let Some(weights) = weights {
            let axes: Vec<usize> = (0..emit.rank(weights)?).collect();
            return emit.reduce_sum(weights, &axes, false);
        }
        match Dim::product(&emit.shape(self.targets)?).known() {
            Some(count) => emit.scalar(count as f64, self.scores),
            None => {
                let count = emit.unary("Size", self.targets)?;
                let dtype = emit.dtype(self.scores)?;
                emit.cast(count, dtype)
            }
        }
    }
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

/// A sample of the loss with a gradient of its result in front.
fn sample(draw: &mut Draw, name: &str) -> Sample {
    let of = loss::sample(draw, name);
    let targets = of.inputs[1].as_ref().map_or(&[][..], Tensor::shape).to_vec();
    let each = of.op.attrs.str("reduction", "mean").is_ok_and(|r| r == "none");
    let dloss = draw.tensor(if each { &targets } else { &[] }, -1.0, 1.0);
    let inputs = [vec![dloss], of.inputs.into_iter().flatten().collect()].concat();
    let mut sample = Sample::new(Operator::sartor(name, of.op.attrs), inputs);
    sample.check.iter_mut().skip(3).for_each(|check| *check = false);
    if name == "NegativeLogLikelihoodGrad" {
        sample.check[1] = false;
    }
    sample
}
