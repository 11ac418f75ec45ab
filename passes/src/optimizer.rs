//! `optimizer`: turns the gradients of every step into updates of the parameters. Its state (moments, counters) are
//! parameters of role `State`, fresh for every link of a chain.
//!
//! Before → after, for `optimizer(kind="sgd")`:
//! ```text
//! step: (x, label) => (loss, grad:w)      step: (x, label, learning_rate) => (loss, grad_norm, next:w)
//!                                         next:w = w - learning_rate · grad:w        bound to w
//! ```
//! With `g` the gradient and `η` the input `learning_rate` (times the parameter's own factor, see `rate_factors`):
//!
//! | kind | update | source |
//! |---|---|---|
//! | `sgd` | `g += λw; b = μb + g` (first `b = g`); `w -= η·b`, with `nesterov` `w -= η·(g + μb)` | as `torch.optim.SGD` |
//! | `adamw` | `w -= ηλw; m = β₁m + (1-β₁)g; v = β₂v + (1-β₂)g²; w -= η·(m/(1-β₁ᵗ)) / (√v/√(1-β₂ᵗ) + ε)` | Loshchilov & Hutter 2019, as `torch.optim.AdamW` |
//! | `adagrad` | `g += λw; s += g²; w -= η·g / (√s + ε)` | Duchi et al. 2011, as `torch.optim.Adagrad` |
//!
//! Precondition: `autodiff` has run. With `accumulate` before it, everything stands still until `apply` is true. It does not schedule the learning
//! rate: who runs the step feeds it.

use crate::pattern::Patterns;
use crate::training::{bind, zero_like};
use crate::{Changed, Pass, clip, training};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Model, Program, Result, Role, Tensor, Type, Value, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The options, and the pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Which update rule.
    pub kind: OptimizerKind,
    /// `sgd`: the share of the last direction that is kept (μ).
    pub momentum: f64,
    /// `sgd`: look ahead along the momentum.
    pub nesterov: bool,
    /// λ: decoupled for `adamw`, added to the gradient for the others.
    pub weight_decay: f64,
    /// `adamw`: decay of the first moment.
    pub beta1: f64,
    /// `adamw`: decay of the second moment.
    pub beta2: f64,
    /// `adamw` (default 1e-8) and `adagrad` (default 1e-10): keeps the quotient finite.
    pub epsilon: Option<f64>,
    /// Factors on the learning rate for the parameters that a pattern matches (all that match multiply); LoRA+ is
    /// `{"*.lora_B" = 16}`.
    pub rate_factors: BTreeMap<String, f64>,
}

/// Which update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Stochastic gradient descent, with momentum if asked for.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
    /// Steps scaled by the root of the summed squares.
    Adagrad,
}

impl Default for Optimizer {
    fn default() -> Optimizer {
        Optimizer {
            kind: OptimizerKind::Adamw,
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: None,
            rate_factors: BTreeMap::new(),
        }
    }
}

impl Pass for Optimizer {
    fn name(&self) -> &str {
        "optimizer"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        self.add(model, false)?;
        Ok(Changed::Yes)
    }
}

impl Optimizer {
    /// Adds the updates to every step. `keep`: the gradients, and whether they are applied, stay outputs.
    pub(crate) fn add(&self, model: &mut Model, keep: bool) -> Result<()> {
        self.check()?;
        training::for_each_step(model, "optimizer", |name, program, model| {
            self.add_updates(name, program, model)?;
            let spent = |name: &str| name.starts_with(training::GRAD) || name == training::APPLY;
            program.graph.outputs.retain(|o| keep || !spent(&o.name));
            program.graph.remove_dead();
            Ok(())
        })
    }
}

/// One parameter's update while it is being emitted.
struct Update<'a> {
    /// The program's name, for the names of states.
    step: &'a str,
    param: &'a str,
    zeros: Tensor,
    w: Value,
    g: Value,
    /// The learning rate, in the parameter's element type.
    rate: Value,
}

impl Optimizer {
    fn check(&self) -> Result<()> {
        let unit = |name: &str, x: f64| -> Result<()> {
            ensure!((0.0..1.0).contains(&x), "{name} is {x}, expected a number in [0, 1)");
            Ok(())
        };
        unit("momentum", self.momentum)?;
        unit("beta1", self.beta1)?;
        unit("beta2", self.beta2)?;
        ensure!(self.weight_decay >= 0.0, "weight_decay is {}, expected 0 or more", self.weight_decay);
        ensure!(!self.nesterov || self.momentum > 0.0, "nesterov needs a momentum above 0");
        Ok(())
    }

    fn add_updates(&self, name: &str, program: &mut Program, model: &mut Model) -> Result<()> {
        let opset = model.opset();
        ensure!(
            !program.graph.name_taken(training::LEARNING_RATE),
            "the graph has a value \"{}\" already",
            training::LEARNING_RATE
        );
        clip::add_grad_norm(&mut program.graph, opset, "optimizer")?;
        let grads = training::gradients(&program.graph, "optimizer")?;
        let rate = program.graph.add_input(training::LEARNING_RATE, Type::of(&Tensor::scalar(0f32)));
        let corrections = match self.kind {
            OptimizerKind::Adamw => Some(self.adam_corrections(name, program, model)?),
            _ => None,
        };
        for (param, g) in grads {
            let Some(zeros) = model.params.get(&param).map(|p| zero_like(&p.tensor)).transpose()? else {
                bail!("the gradient of \"{param}\" belongs to no parameter");
            };
            let w = program.graph.param(&param, Type::of(&zeros));
            let rate = self.own_rate(program, opset, &param, rate, w)?;
            let update = Update { step: name, param: &param, zeros, w, g, rate };
            let next = match (self.kind, corrections) {
                (OptimizerKind::Adamw, Some(corrections)) => self.adamw(&update, corrections, program, model)?,
                (OptimizerKind::Adagrad, _) => self.adagrad(&update, program, model)?,
                _ => self.sgd(&update, program, model)?,
            };
            write_back(program, opset, &param, w, next)?;
        }
        Ok(())
    }

    /// `learning_rate` times the factor of the parameter's pattern, in the parameter's element type.
    fn own_rate(&self, program: &mut Program, opset: i64, param: &str, rate: Value, w: Value) -> Result<Value> {
        let mut emit = emitter(program, opset);
        let mut factor = 1.0;
        for (pattern, f) in &self.rate_factors {
            if Patterns::parse(std::slice::from_ref(pattern))?.matches(&[param]) {
                factor *= f;
            }
        }
        let rate = if factor == 1.0 { rate } else { emit.mul_scalar(rate, factor)? };
        emit.cast(rate, emit.dtype(w)?)
    }

    fn sgd(&self, u: &Update, program: &mut Program, model: &mut Model) -> Result<Value> {
        let opset = model.opset();
        let g = self.decayed_gradient(u, program, opset)?;
        let direction = if self.momentum == 0.0 {
            g
        } else {
            let b = add_state(program, model, u, "momentum")?;
            let mut emit = emitter(program, opset);
            // A buffer of zeros makes the first direction g itself, as PyTorch's does.
            let kept = emit.mul_scalar(b.value, self.momentum)?;
            let next = emit.add(kept, g)?;
            let direction = if self.nesterov {
                let ahead = emit.mul_scalar(next, self.momentum)?;
                emit.add(g, ahead)?
            } else {
                next
            };
            write_back(program, opset, &b.name, b.value, next)?;
            direction
        };
        let mut emit = emitter(program, opset);
        let step = emit.mul(direction, u.rate)?;
        emit.sub(u.w, step)
    }

    fn adagrad(&self, u: &Update, program: &mut Program, model: &mut Model) -> Result<Value> {
        let opset = model.opset();
        let g = self.decayed_gradient(u, program, opset)?;
        let s = add_state(program, model, u, "sum")?;
        let mut emit = emitter(program, opset);
        let square = emit.mul(g, g)?;
        let sum = emit.add(s.value, square)?;
        let root = emit.unary("Sqrt", sum)?;
        let scale = emit.add_scalar(root, self.epsilon.unwrap_or(1e-10))?;
        let step = emit.mul(g, u.rate)?;
        let step = emit.div(step, scale)?;
        let next = emit.sub(u.w, step)?;
        write_back(program, opset, &s.name, s.value, sum)?;
        Ok(next)
    }

    fn decayed_gradient(&self, u: &Update, program: &mut Program, opset: i64) -> Result<Value> {
        if self.weight_decay == 0.0 {
            return Ok(u.g);
        }
        let mut emit = emitter(program, opset);
        let decay = emit.mul_scalar(u.w, self.weight_decay)?;
        emit.add(u.g, decay)
    }

    /// Counts the updates; returns `1/(1-β₁ᵗ)` and `1/√(1-β₂ᵗ)` as `double` scalars (in single precision `1-β₂` alone would be off
    /// by 6e-5 of itself).
    fn adam_corrections(&self, name: &str, program: &mut Program, model: &mut Model) -> Result<(Value, Value)> {
        let opset = model.opset();
        let state = model.add_param(&format!("{name}/updates"), Tensor::scalar(0f64), Role::State);
        let t = program.graph.param(&state, Type::of(&Tensor::scalar(0f64)));
        let mut emit = emitter(program, opset);
        let next = emit.add_scalar(t, 1.0)?;
        let one = emit.constant(Tensor::scalar(1f64));
        let mut correction = |beta: f64| -> Result<Value> {
            let beta = emit.constant(Tensor::scalar(beta));
            let power = emit.op("Pow", &[beta, next], Attributes::new())?;
            let rest = emit.sub(one, power)?;
            emit.div(one, rest)
        };
        let (first, second) = (correction(self.beta1)?, correction(self.beta2)?);
        let second = emit.unary("Sqrt", second)?;
        write_back(program, opset, &state, t, next)?;
        Ok((first, second))
    }

    fn adamw(
        &self,
        u: &Update,
        (first, second): (Value, Value),
        program: &mut Program,
        model: &mut Model,
    ) -> Result<Value> {
        let opset = model.opset();
        let m = add_state(program, model, u, "exp_avg")?;
        let v = add_state(program, model, u, "exp_avg_sq")?;
        let mut emit = emitter(program, opset);
        let dtype = emit.dtype(u.w)?;
        let (first, second) = (emit.cast(first, dtype)?, emit.cast(second, dtype)?);
        let next_m = moving_average(&mut emit, m.value, u.g, self.beta1)?;
        let square = emit.mul(u.g, u.g)?;
        let next_v = moving_average(&mut emit, v.value, square, self.beta2)?;
        let root = emit.unary("Sqrt", next_v)?;
        let root = emit.mul(root, second)?;
        let scale = emit.add_scalar(root, self.epsilon.unwrap_or(1e-8))?;
        let rate = emit.mul(u.rate, first)?;
        let step = emit.div(next_m, scale)?;
        let step = emit.mul(step, rate)?;
        let mut w = u.w;
        if self.weight_decay != 0.0 {
            let share = emit.mul_scalar(u.rate, self.weight_decay)?;
            let decay = emit.mul(w, share)?;
            w = emit.sub(w, decay)?;
        }
        let next = emit.sub(w, step)?;
        write_back(program, opset, &m.name, m.value, next_m)?;
        write_back(program, opset, &v.name, v.value, next_v)?;
        Ok(next)
    }
}

fn emitter(program: &mut Program, opset: i64) -> Emit<'_> {
    let mut emit = Emit::new(&mut program.graph, opset);
    emit.prefix = "/optimizer/".to_string();
    emit
}

/// `β·old + (1-β)·new`
fn moving_average(emit: &mut Emit, old: Value, new: Value, beta: f64) -> Result<Value> {
    let (kept, fresh) = (emit.mul_scalar(old, beta)?, emit.mul_scalar(new, 1.0 - beta)?);
    emit.add(kept, fresh)
}

/// A state and its value in the program.
struct State {
    name: String,
    value: Value,
}

fn add_state(program: &mut Program, model: &mut Model, u: &Update, what: &str) -> Result<State> {
    let name = model.add_param(&format!("{}/{what}:{}", u.step, u.param), u.zeros.clone(), Role::State);
    let value = program.graph.param(&name, Type::of(&u.zeros));
    Ok(State { name, value })
}

/// Binds the next value of a parameter; where gradients are accumulated, only when `apply` is true.
fn write_back(program: &mut Program, opset: i64, param: &str, old: Value, next: Value) -> Result<()> {
    let mut next = next;
    if let Some(apply) = program.graph.find_output(training::APPLY) {
        let mut emit = emitter(program, opset);
        next = emit.select(apply, next, old)?;
    }
    bind(program, &format!("next:{param}"), next, param);
    Ok(())
}
