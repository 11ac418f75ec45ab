//! `optimizer`: turns the gradients of every step into updates of the parameters. Its state (moments, counters) are
//! parameters of role `State`, fresh for every link of a chain.
//!
//! Before → after, for `optimizer(kind="sgd")`:
//! ```text
//! step: (x, label) => (loss, grad:w)      step: (x, label, learning_rate) => (loss, grad_norm, next:w)
//!                                         next:w = w - learning_rate · grad:w        bound to w
//! ```
//! With `g` the gradient and `η` the input `learning_rate` (times the parameter's own factor, see `rate_factors`). Each kind has a file
//! of its own with the whole formula:
//!
//! | kind | update | source |
//! |---|---|---|
//! | `sgd` | `g += λw; b = μb + g` (first `b = g`); `w -= η·b`, with `nesterov` `w -= η·(g + μb)` | as `torch.optim.SGD` |
//! | `adamw` | `w -= ηλw; m = β₁m + (1-β₁)g; v = β₂v + (1-β₂)g²; w -= η·(m/(1-β₁ᵗ)) / (√v/√(1-β₂ᵗ) + ε)` | Loshchilov & Hutter 2019, as `torch.optim.AdamW` |
//! | `adagrad` | `g += λw; s += g²; w -= η·g / (√s + ε)` | Duchi et al. 2011, as `torch.optim.Adagrad` |
//! | `prodigy` | Adam on `d·g`; `w -= dη·m / (√v + dε)`; `d` is the largest `Σ⟨g, x₀ - w⟩ / Σ\|s\|` so far, both sums weighted | Mishchenko & Defazio 2023, as `prodigyopt.Prodigy` |
//! | `schedule-free-adamw` | gradient at `y = (1-β₁)z + β₁w`; `z -= η·(g / (√v/√(1-β₂ᵗ) + ε) + λy)`; `w += c·(z - w)` | Defazio et al. 2024, as `schedulefree.AdamWScheduleFree` |
//! | `d-adapt-adam` | Adam on `dη·g`; `w -= m / (√v + ε)`; `d` is the largest `Σ⟨g, s/√v⟩ / Σ\|s\|` so far, both sums weighted | Defazio & Mishchenko 2023, as `dadaptation.DAdaptAdam` |
//!
//! Precondition: `autodiff` has run. With `accumulate` before it, everything stands still until `apply` is true. It does not schedule the learning
//! rate: who runs the step feeds it.

mod adagrad;
mod adamw;
mod adaptation;
mod d_adapt;
mod prodigy;
mod schedule_free;
mod sgd;
mod update;

use crate::pattern::Patterns;
use crate::{Changed, Pass, clip, training};
use sartor_ir::{Model, Program, Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use update::{Step, Update};

/// The options, and the pass. What a kind does not use, it ignores.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Which update rule.
    pub kind: OptimizerKind,
    /// `sgd`: the share of the last direction that is kept (μ).
    pub momentum: f64,
    /// `sgd`: look ahead along the momentum.
    pub nesterov: bool,
    /// λ: decoupled for `adamw`; for `prodigy` and `d-adapt-adam` as `decouple` says; for `schedule-free-adamw` a part of the step, taken
    /// at y; added to the gradient for the others.
    pub weight_decay: f64,
    /// All but `sgd` and `adagrad`: decay of the first moment; `schedule-free-adamw`: how near to the average the gradient is
    /// taken.
    pub beta1: f64,
    /// All but `sgd` and `adagrad`: decay of the second moment.
    pub beta2: f64,
    /// Keeps the quotient finite. Default: 1e-8; `adagrad` 1e-10. `sgd` has none.
    pub epsilon: Option<f64>,
    /// Factors on the learning rate for the parameters that a pattern matches (all that match multiply); LoRA+ is
    /// `{"*.lora_B" = 16}`. `prodigy` estimates its step size as if there were none; for `d-adapt-adam` they are the layer scales
    /// of its estimate.
    pub rate_factors: BTreeMap<String, f64>,
    /// `prodigy`: decay of the sums that the step size is estimated from. Default: √beta2.
    pub beta3: Option<f64>,
    /// `prodigy`, `d-adapt-adam`: the first estimate of the step size.
    pub d0: f64,
    /// `prodigy`: a factor on the estimated step size: what to tune, between 0.5 and 2.
    pub d_coef: f64,
    /// `prodigy`, `d-adapt-adam`: how much the step size may grow in one update; 1.02 makes it warm up. Default: no limit.
    pub growth_rate: Option<f64>,
    /// `prodigy`, `d-adapt-adam`: whether the weight decay shrinks the parameter instead of being added to the gradient. Default: yes for
    /// `prodigy`, no for `d-adapt-adam`.
    pub decouple: Option<bool>,
    /// `prodigy`, `d-adapt-adam`: correct the moments for their start at 0, as Adam does.
    pub use_bias_correction: bool,
    /// `prodigy`: leave the learning rate out of the estimate's denominator, which a warm-up by schedule would distort.
    pub safeguard_warmup: bool,
    /// `prodigy`: estimate from every so many-th number of a parameter, which saves memory.
    pub slice_p: usize,
    /// `schedule-free-adamw`: updates over which the rate rises linearly from 0. (The trainer's `warmup_steps` does the same for every
    /// kind, but counts steps, and the first has rate 0.)
    pub warmup_updates: u64,
    /// `schedule-free-adamw`: the t-th point weighs tʳ in the average.
    pub r: f64,
    /// `schedule-free-adamw`: a point weighs the highest rate so far, to this power, in the average.
    pub weight_lr_power: f64,
}

/// Which update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// Stochastic gradient descent, with momentum if asked for.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
    /// Steps scaled by the root of the summed squares.
    Adagrad,
    /// Adam that estimates its step size. Its learning rate is 1.
    Prodigy,
    /// AdamW without a schedule: the parameters are an average of all points, gradients are taken beside it. The running statistics of
    /// batch normalisation belong to where the gradients are taken.
    ScheduleFreeAdamw,
    /// Adam that estimates its step size from below. Its learning rate is 1.
    DAdaptAdam,
}

impl OptimizerKind {
    /// How far update k = 0, 1, … takes a number whose gradient is always the same, in learning rates. `None` where that depends on the gradient's size.
    pub fn stride(self, update: u64) -> Option<f64> {
        match self {
            OptimizerKind::Adamw => Some(1.0),
            // What counts is the average of all points.
            OptimizerKind::ScheduleFreeAdamw => Some(0.5),
            OptimizerKind::Adagrad => Some(1.0 / (update as f64 + 1.0).sqrt()),
            OptimizerKind::Sgd | OptimizerKind::Prodigy | OptimizerKind::DAdaptAdam => None,
        }
    }
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
            beta3: None,
            d0: 1e-6,
            d_coef: 1.0,
            growth_rate: None,
            decouple: None,
            use_bias_correction: false,
            safeguard_warmup: false,
            slice_p: 1,
            warmup_updates: 0,
            r: 0.0,
            weight_lr_power: 2.0,
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

    fn check(&self) -> Result<()> {
        let shares =
            [("momentum", self.momentum), ("beta1", self.beta1), ("beta2", self.beta2), ("beta3", self.beta3())];
        for (name, x) in shares {
            ensure!((0.0..1.0).contains(&x), "{name} is {x}, expected a number in [0, 1)");
        }
        let not_negative = [
            ("weight_decay", self.weight_decay),
            ("epsilon", self.epsilon.unwrap_or(0.0)),
            ("r", self.r),
            ("weight_lr_power", self.weight_lr_power),
        ];
        for (name, x) in not_negative {
            ensure!(x >= 0.0, "{name} is {x}, expected 0 or more");
        }
        for (name, x) in [("d0", self.d0), ("d_coef", self.d_coef)] {
            ensure!(x > 0.0, "{name} is {x}, expected a number above 0");
        }
        ensure!(self.growth_rate.is_none_or(|x| x >= 1.0), "growth_rate is below 1: the step size could only fall");
        ensure!(self.slice_p >= 1, "slice_p is 0, expected at least 1");
        ensure!(!self.nesterov || self.momentum > 0.0, "nesterov needs a momentum above 0");
        let divides_by_it = matches!(self.kind, OptimizerKind::Prodigy | OptimizerKind::DAdaptAdam);
        ensure!(!(divides_by_it && self.epsilon == Some(0.0)), "epsilon is 0, this kind needs a number above 0");
        Ok(())
    }

    fn add_updates(&self, name: &str, program: &mut Program, model: &mut Model) -> Result<()> {
        ensure!(
            !program.graph.name_taken(training::LEARNING_RATE),
            "the graph has a value \"{}\" already",
            training::LEARNING_RATE
        );
        clip::add_grad_norm(&mut program.graph, model.opset(), "optimizer")?;
        let grads = training::gradients(&program.graph, "optimizer")?;
        let mut step = Step::new(name, program, model);
        let updates: Result<Vec<Update>> =
            grads.iter().map(|(param, g)| step.update(param, *g, self.factor(param)?)).collect();
        self.rule()(self, &mut step, &updates?)
    }

    /// What emits the updates of one step.
    fn rule(&self) -> fn(&Optimizer, &mut Step, &[Update]) -> Result<()> {
        match self.kind {
            OptimizerKind::Sgd => sgd::add,
            OptimizerKind::Adamw => adamw::add,
            OptimizerKind::Adagrad => adagrad::add,
            OptimizerKind::Prodigy => prodigy::add,
            OptimizerKind::ScheduleFreeAdamw => schedule_free::add,
            OptimizerKind::DAdaptAdam => d_adapt::add,
        }
    }

    /// The factor on a parameter's learning rate.
    fn factor(&self, param: &str) -> Result<f64> {
        let mut factor = 1.0;
        for (pattern, f) in &self.rate_factors {
            if Patterns::parse(std::slice::from_ref(pattern))?.matches(&[param]) {
                factor *= f;
            }
        }
        Ok(factor)
    }

    fn beta3(&self) -> f64 {
        self.beta3.unwrap_or(self.beta2.sqrt())
    }

    fn decouples(&self) -> bool {
        self.decouple.unwrap_or(self.kind != OptimizerKind::DAdaptAdam)
    }
}
