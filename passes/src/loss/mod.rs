//! `loss`: makes the programs `step` and `eval` out of the inference graph: the same computation, a further input
//! for the labels, and the output `loss`.
//!
//! Before → after, for `loss(kind="cross-entropy")`:
//! ```text
//! inference: (x) => (logits)        inference: unchanged
//!                                   step: (x, label) => (loss)
//!                                   eval: (x, label) => (loss, logits)
//! ```
//! Losses are means over the elements that count, as in PyTorch:
//!
//! | kind | logits | label | loss |
//! |---|---|---|---|
//! | `cross-entropy` | `[N, C, …]` or, for rank 3 and more, `[N, …, C]` with `class_axis = -1` | int64 `[N, …]` | `-log softmax(logits)[label]`, elements equal to `ignore_index` left out, smoothed by `label_smoothing` |
//! | `mse` | any | same shape | `(logits - label)²` |
//! | `bce` | any | same shape, 0…1 | `max(x, 0) - x·y + log(1 + exp(-abs x))` |
//! | `causal-lm` | `[N, S, V]` | none: `input_ids` shifted by one, the last place and padding (by `attention_mask`) left out | cross-entropy |
//!
//! For `causal-lm` the labels are shifted, not the logits: those are large, and a slice of them would have to be copied to be
//! seen as rows.
//!
//! With `teacher = true` (cross-entropy, mse, bce) there are no labels: the output is compared with what the model computed before training, by a copy of it
//! in both programs (self-distillation). That is for training that must change a model without changing what it says: gates, adapters, fewer bits.
//! With `teacher = "FILE.onnx"` it is compared with what that model computes from the same inputs (knowledge distillation, arXiv 1503.02531): one that is larger, or what
//! this one was some trainings ago. Cross-entropy is then the divergence of the two distributions, both softened by `temperature`:
//! ```text
//! T² · mean over all places of Σ_c p_c · (log p_c − log q_c),   p = softmax(teacher / T), q = softmax(logits / T)
//! ```
//! With `labels = a` the loss is `a` times that of the labels, as without a teacher, and `1 − a` times the other one.
//!
//! Precondition: the model is in the internal opset. It adds no gradients; that is `autodiff`.

mod teacher;

use crate::{Changed, Pass, training};
use sartor_ir::ops::Emit;
use sartor_ir::{
    Attributes, Context, DType, Dim, Graph, GraphOutput, Model, Operator, Program, Result, Tensor, Type, Value, bail,
    ensure,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The options, and the pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    /// Which loss.
    pub kind: LossKind,
    /// The name of the output that is compared with the labels; the model's only output if left out.
    pub logits: Option<String>,
    /// The name of the input for the labels.
    pub label: String,
    /// Labels of this value do not count.
    pub ignore_index: i64,
    /// The share of the probability that is spread evenly over all classes, in [0, 1).
    pub label_smoothing: f32,
    /// The axis of the classes: 1 as in ONNX, or -1.
    pub class_axis: Option<i64>,
    /// Compares the output with what a model computes instead of labels: `true`, with what this one computed before training; the path of an ONNX file, with what that
    /// one computes.
    pub teacher: Teacher,
    /// With `teacher`: how much both distributions are softened before they are compared.
    pub temperature: f32,
    /// With `teacher`: the share of the loss that compares with labels all the same, 0 to 1.
    pub labels: f32,
}

impl Default for Loss {
    fn default() -> Loss {
        Loss {
            kind: LossKind::CrossEntropy,
            logits: None,
            label: "label".to_string(),
            ignore_index: -100,
            label_smoothing: 0.0,
            class_axis: None,
            teacher: Teacher::Itself(false),
            temperature: 1.0,
            labels: 0.0,
        }
    }
}

/// What a model is compared with instead of labels.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "teacher: expected true, false, or the path of an ONNX file")]
pub enum Teacher {
    /// What it computed before training, or nothing.
    Itself(bool),
    /// What the model in an ONNX file computes.
    File(PathBuf),
}

impl Teacher {
    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        *self != Teacher::Itself(false)
    }
}

/// Which loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Softmax and negative log-likelihood of the label's class.
    CrossEntropy,
    /// Mean squared error.
    Mse,
    /// Binary cross-entropy of logits.
    Bce,
    /// Cross-entropy of the next token.
    CausalLm,
}

impl Pass for Loss {
    fn name(&self) -> &str {
        "loss"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        training::require_opset(model, "loss")?;
        ensure!(
            (0.0..1.0).contains(&self.label_smoothing),
            "label_smoothing is {}, expected 0 to 1",
            self.label_smoothing
        );
        ensure!(!model.programs.contains_key("step"), "the model has a program \"step\" already");
        self.check_teacher()?;
        let logits = self.find_logits(&model.graph)?;
        let opset = model.opset();
        let other = match &self.teacher {
            Teacher::File(path) => Some(teacher::load(path, opset)?),
            Teacher::Itself(_) => None,
        };
        for (name, with_logits) in [("step", false), ("eval", true)] {
            let mut graph = model.graph.clone();
            graph.name = name.to_string();
            graph.outputs.clear();
            let says = match (&self.teacher, &other) {
                (Teacher::Itself(false), _) => None,
                (Teacher::File(path), Some(other)) => {
                    let says = teacher::add_other(&mut graph, model, other, &logits);
                    Some(says.context(|| format!("teacher {}", path.display()))?)
                }
                _ => Some(teacher::add(&mut graph, model, logits.value)?),
            };
            let mut emit = Emit::new(&mut graph, opset);
            emit.prefix = "/loss/".to_string();
            let loss = match says {
                Some(says) if self.labels == 0.0 => self.emit_likeness(&mut emit, logits.value, says)?,
                Some(says) => self.emit_both(&mut emit, logits.value, says)?,
                None => self.emit_loss(&mut emit, logits.value)?,
            };
            graph.outputs.push(GraphOutput { name: "loss".to_string(), value: loss });
            if with_logits {
                graph.outputs.push(logits.clone());
            }
            graph.remove_dead();
            model.programs.insert(name.to_string(), Program { graph, bindings: Vec::new() });
        }
        Ok(Changed::Yes)
    }
}

impl Loss {
    fn check_teacher(&self) -> Result<()> {
        let t = self.temperature;
        ensure!(t.is_finite() && t > 0.0, "temperature is {t}, expected a positive number");
        let a = self.labels;
        ensure!((0.0..=1.0).contains(&a), "labels is {a}, expected a share of the loss from 0 to 1");
        if !self.teacher.is_some() {
            ensure!(t == 1.0, "temperature softens what a teacher says: it needs teacher = true");
            ensure!(a == 0.0, "labels is their share of the loss beside a teacher's: it needs teacher = true");
            return Ok(());
        }
        ensure!(
            self.kind != LossKind::CausalLm,
            "a teacher says the probabilities of every place: write kind = \"cross-entropy\" and class_axis = -1"
        );
        ensure!(
            a > 0.0 || self.label_smoothing == 0.0,
            "label_smoothing is for labels, which have no share of the loss beside a teacher unless labels says so"
        );
        Ok(())
    }

    fn find_logits(&self, graph: &Graph) -> Result<GraphOutput> {
        let names: Vec<&str> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
        match (&self.logits, graph.outputs.as_slice()) {
            (None, [only]) => Ok(only.clone()),
            (None, _) => bail!("the model has the outputs {}: name one as logits = \"…\"", names.join(", ")),
            (Some(name), outputs) => match outputs.iter().find(|o| o.name == *name) {
                Some(output) => Ok(output.clone()),
                None => bail!("the model has no output \"{name}\"; its outputs are: {}", names.join(", ")),
            },
        }
    }

    fn emit_loss(&self, emit: &mut Emit, logits: Value) -> Result<Value> {
        let dtype = emit.dtype(logits)?;
        ensure!(dtype.is_float(), "the logits are {dtype}, expected floating point");
        match self.kind {
            LossKind::CrossEntropy => {
                let logits = self.classes_second(emit, logits)?;
                let mut shape = emit.shape(logits)?;
                shape.remove(1);
                let label = self.add_label(emit, DType::I64, shape)?;
                self.cross_entropy(emit, logits, label)
            }
            LossKind::Mse => {
                let label = self.add_label(emit, dtype, emit.shape(logits)?)?;
                squared_error(emit, logits, label)
            }
            LossKind::Bce => {
                let label = self.add_label(emit, dtype, emit.shape(logits)?)?;
                bce_with_logits(emit, logits, label)
            }
            LossKind::CausalLm => self.causal_lm(emit, logits),
        }
    }

    /// The loss of an output beside labels and beside what the teacher computes, by their shares.
    fn emit_both(&self, emit: &mut Emit, logits: Value, teacher: Value) -> Result<Value> {
        let share = f64::from(self.labels);
        let (hard, soft) = (self.emit_loss(emit, logits)?, self.emit_likeness(emit, logits, teacher)?);
        let (hard, soft) = (emit.mul_scalar(hard, share)?, emit.mul_scalar(soft, 1.0 - share)?);
        emit.add(hard, soft)
    }

    /// The loss of an output beside what the teacher computes.
    fn emit_likeness(&self, emit: &mut Emit, logits: Value, teacher: Value) -> Result<Value> {
        let dtype = emit.dtype(logits)?;
        ensure!(dtype.is_float(), "the logits are {dtype}, expected floating point");
        // Nothing that may become trainable is behind it, but no gradient is to go and look.
        let teacher = emit.sartor("Detach", &[teacher], Attributes::new())?;
        match self.kind {
            LossKind::Mse => squared_error(emit, logits, teacher),
            LossKind::Bce => {
                let wanted = emit.unary("Sigmoid", teacher)?;
                bce_with_logits(emit, logits, wanted)
            }
            LossKind::CrossEntropy | LossKind::CausalLm => self.divergence(emit, logits, teacher),
        }
    }

    fn divergence(&self, emit: &mut Emit, logits: Value, teacher: Value) -> Result<Value> {
        ensure!(emit.rank(logits)? >= 2, "cross-entropy needs logits [N, C, …], found rank {}", emit.rank(logits)?);
        let axis = emit.axis(logits, self.class_axis.unwrap_or(1))?;
        let mut log_softmax = |value: Value| {
            let soft = emit.mul_scalar(value, 1.0 / f64::from(self.temperature))?;
            emit.op("LogSoftmax", &[soft], Attributes::new().with("axis", axis as i64))
        };
        let (own, wanted) = (log_softmax(logits)?, log_softmax(teacher)?);
        let (weight, apart) = (emit.unary("Exp", wanted)?, emit.sub(wanted, own)?);
        let terms = emit.mul(weight, apart)?;
        let sum = emit.reduce_sum(terms, &[axis], false)?;
        let scaled = emit.mul_scalar(sum, f64::from(self.temperature).powi(2))?;
        mean_of_all(emit, scaled)
    }

    fn add_label(&self, emit: &mut Emit, dtype: DType, shape: Vec<Dim>) -> Result<Value> {
        ensure!(
            !emit.graph.name_taken(&self.label),
            "the graph has a value \"{}\" already; give the labels another name with label = \"…\"",
            self.label
        );
        Ok(emit.graph.add_input(&self.label, Type::Tensor { dtype, shape: Some(shape) }))
    }

    /// The logits with the class axis in second place, where ONNX's loss wants it.
    fn classes_second(&self, emit: &mut Emit, logits: Value) -> Result<Value> {
        let rank = emit.rank(logits)?;
        ensure!(rank >= 2, "cross-entropy needs logits [N, C, …], found rank {rank}");
        let axis = emit.axis(logits, self.class_axis.unwrap_or(1))?;
        if axis == 1 {
            return Ok(logits);
        }
        let mut perm: Vec<usize> = (0..rank).filter(|&a| a != axis).collect();
        perm.insert(1, axis);
        emit.transpose(logits, &perm)
    }

    fn cross_entropy(&self, emit: &mut Emit, logits: Value, label: Value) -> Result<Value> {
        let attrs = Attributes::new().with("ignore_index", self.ignore_index).with("reduction", "mean");
        let op = Operator::onnx("SoftmaxCrossEntropyLoss", attrs);
        if self.label_smoothing == 0.0 {
            return Ok(emit.node(op, &[Some(logits), Some(label)], 1)?[0]);
        }
        let out = emit.node(op, &[Some(logits), Some(label)], 2)?;
        let smoothing = f64::from(self.label_smoothing);
        let spread = self.uniform_cross_entropy(emit, out[1], label)?;
        let hard = emit.mul_scalar(out[0], 1.0 - smoothing)?;
        let soft = emit.mul_scalar(spread, smoothing)?;
        emit.add(hard, soft)
    }

    /// `mean over counting elements of mean over classes of -log p`.
    fn uniform_cross_entropy(&self, emit: &mut Emit, log_prob: Value, label: Value) -> Result<Value> {
        let mean = emit.reduce_mean(log_prob, &[1], false)?;
        let ignored = emit.constant(Tensor::scalar(self.ignore_index));
        let ignored = emit.op("Equal", &[label, ignored], Attributes::new())?;
        let counts = emit.unary("Not", ignored)?;
        let counts = emit.cast(counts, emit.dtype(mean)?)?;
        let all: Vec<usize> = (0..emit.rank(counts)?).collect();
        let kept = emit.mul(mean, counts)?;
        let total = emit.reduce_sum(kept, &all, false)?;
        let number = emit.reduce_sum(counts, &all, false)?;
        let average = emit.div(total, number)?;
        emit.unary("Neg", average)
    }

    fn causal_lm(&self, emit: &mut Emit, logits: Value) -> Result<Value> {
        let Some(ids) = emit.graph.find_input("input_ids") else {
            bail!("causal-lm predicts the next of `input_ids`, but the graph has no such input");
        };
        let shape = emit.shape(logits)?;
        let [_, _, Dim::Known(classes)] = shape[..] else {
            bail!("causal-lm needs logits [batch, sequence, vocabulary], found {:?}", emit.graph.ty(logits));
        };
        let mut next = next_token(emit, ids, self.ignore_index)?;
        if let Some(mask) = emit.graph.find_input("attention_mask") {
            let mask = next_token(emit, mask, 0)?;
            let kept = emit.cast(mask, DType::Bool)?;
            let ignored = emit.scalar(self.ignore_index as f64, next)?;
            next = emit.select(kept, next, ignored)?;
        }
        let rows = emit.reshape(logits, &[-1, classes])?;
        let label = emit.reshape(next, &[-1])?;
        self.cross_entropy(emit, rows, label)
    }
}

/// `[N, S]` shifted to the left by one place, a number in the last one.
fn next_token(emit: &mut Emit, value: Value, last: i64) -> Result<Value> {
    let (pads, last) = (emit.ints(&[0, -1, 0, 1]), emit.scalar(last as f64, value)?);
    emit.op("Pad", &[value, pads, last], Attributes::new())
}

fn mean_of_all(emit: &mut Emit, value: Value) -> Result<Value> {
    let all: Vec<usize> = (0..emit.rank(value)?).collect();
    emit.reduce_mean(value, &all, false)
}

fn squared_error(emit: &mut Emit, x: Value, y: Value) -> Result<Value> {
    let difference = emit.sub(x, y)?;
    let square = emit.mul(difference, difference)?;
    mean_of_all(emit, square)
}

fn bce_with_logits(emit: &mut Emit, x: Value, y: Value) -> Result<Value> {
    let positive = emit.unary("Relu", x)?;
    let product = emit.mul(x, y)?;
    let linear = emit.sub(positive, product)?;
    let magnitude = emit.unary("Abs", x)?;
    let negative = emit.unary("Neg", magnitude)?;
    let rest = emit.unary("Softplus", negative)?;
    let loss = emit.add(linear, rest)?;
    mean_of_all(emit, loss)
}
