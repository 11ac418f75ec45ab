//! `samuel`: several copies of the optimizer with different learning rates train side by side (*experts*), and
//! multiplicative weights over them decide which one the model plays (Lu, Xia, Arora, Hazan, *Adaptive gradient methods
//! with local guarantees*, arXiv 2203.01400).
//!
//! Before → after, for `samuel(rates=[1, 0.1], base={kind="sgd"})`:
//! ```text
//! step: (x, label) => (loss, grad:w)    step: (x, label, learning_rate) => (loss, samuel/probability, …)
//!                                             every expert i: its own w_i, its own optimizer state, rate learning_rate · rates[i]
//!                                             log_weights := log_weights + η · regret;  w := the played point
//!                                       restart: () => ()       every w_i := w; fresh optimizer states and weights
//! ```
//! The parameter `w` of the model holds the played point at any time: that is what is evaluated and exported. Experts are
//! found by data flow: what depends on a trained parameter or on the learning rate is copied for every expert, everything
//! else (a frozen base below the first adapter, moments that all experts would share) is computed once.
//!
//! With `ℓ_i` the loss of expert `i` on the batch, `η_q = 2^-q` for `q = 1 … Q`, and `p_i ∝ Σ_q exp w[q, i]`:
//!
//! | mode | a step | cost |
//! |---|---|---|
//! | `independent` (the published code) | every expert: loss and gradient at its own point, and its update; the played one is `cur`; `w[q,i] += η_q · (ℓ_cur - ℓ_i)`, with the weights before this for `p` | N passes |
//! | `shared` (ours) | one pass at the played point `x`; every expert takes the gradient `g`; `w[q,i] += η_q · clip(r_i / S, -1, 1)` with `r_i = ⟨g, x - x_i⟩` and the running scale `S² := max(Σ p_i r_i², 0.99 · S²)`; then plays | one pass |
//! | `intervals` (the theory, Algorithm 1) | experts for geometric intervals of `lengths` steps, each new at its interval's start with weight `min(1/2, η_q)`; `w[q,i] ← w[q,i] · (1 + η_q · (ℓ(x) - ℓ_i))`; plays the average | N·K + 1 passes, one of them forward only |
//!
//! `play`: `sample` draws `cur` from `p` in every step, `likeliest` takes the largest `p`, `average` plays `Σ p_i x_i` (and
//! `ℓ_cur` is then `Σ p_i ℓ_i`). An expert whose loss or gradient is not finite, in `shared` also one whose update ends
//! farther than `trust · max(1, ‖x‖)` from `x` (the nearest excepted), in `independent` also one whose probability falls below `retire`, has no
//! weight, and stands still, until the next restart. What it would compute is read only through a choice
//! (`Where(alive, …)`), so that a runtime that computes what is read spends nothing on it. `intervals` counts steps from 0 and starts every length at once; it bounds `1 + η·r` below by 1/1000.
//!
//! With `accumulate`, losses are averaged over the runs that make one update, and weights and play change with it. Random masks (dropout) differ between experts.
//!
//! Precondition: `autodiff` has run. Without an `optimizer` in the step, `base` is run first; a step that has one is
//! wrapped as it is (not in `shared`, which needs the gradients that `optimizer` takes away). It does not decide when to restart: who runs the
//! programs does.

mod experts;
mod restart;
mod weights;

use crate::optimizer::Optimizer;
use crate::{Changed, Pass, training};
use experts::{Copied, Split};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Model, Program, Result, Tensor, Value, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weights::{Choice, Weights};

/// The output of a step with the probability of every expert.
pub const PROBABILITY: &str = "samuel/probability";
/// The output with the loss of every expert (not in `shared`).
pub const LOSS: &str = "samuel/loss";
/// The output with the normalised regret of every expert (in `shared`).
pub const REGRET: &str = "samuel/regret";
/// The output with the learning rate of every expert.
pub const RATE: &str = "samuel/rate";
/// The output with the number of the expert that is played (not for `average`).
pub const PLAYED: &str = "samuel/played";
/// The output with the learning rate that is played: of the played expert, or the mean under the probabilities.
pub const EFFECTIVE: &str = "samuel/effective_rate";

/// The options, and the pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Samuel {
    /// How experts get their gradients, and how they are weighted.
    pub mode: Mode,
    /// The experts' learning rates, each times the step's own: a list, or `{from, to, count}` for a geometric series.
    pub rates: Rates,
    /// Q: weights are kept for η = 1/2, 1/4, … 2^-Q.
    pub q: u32,
    /// Which point the model holds. Default: `likeliest` for `independent`, else `average`.
    pub play: Option<Play>,
    /// `shared`: experts farther from the played point than this times its norm (or than this, if that is below 1) are dropped until
    /// the next restart.
    pub trust: f64,
    /// `independent`: an expert whose probability falls below this is out until the next restart. 0: never.
    pub retire: f64,
    /// `intervals`: the lengths of the intervals in steps.
    pub lengths: Vec<u32>,
    /// The optimizer that every expert has a copy of. In a recipe: the table `[optimizer]`.
    pub base: Option<Optimizer>,
}

/// How experts get their gradients, and how they are weighted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every expert computes loss and gradient at its own point.
    #[default]
    Independent,
    /// All take the gradient at the played point; their regrets are linearised.
    Shared,
    /// Experts of geometric intervals.
    Intervals,
}

impl Mode {
    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Independent => "independent",
            Mode::Shared => "shared",
            Mode::Intervals => "intervals",
        }
    }
}

/// Which point the model holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Play {
    /// An expert drawn by probability in every step.
    Sample,
    /// The mean of the experts under their probabilities.
    Average,
    /// The expert of the largest probability.
    Likeliest,
}

/// The experts' learning rates.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "rates: expected a list of learning rates, or a table { from, to, count }")]
pub enum Rates {
    /// One by one.
    List(Vec<f64>),
    /// A geometric series.
    Span(Span),
}

/// `count` rates from `from` to `to`, each the same factor from the last.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// The first.
    pub from: f64,
    /// The last.
    pub to: f64,
    /// How many.
    pub count: usize,
}

impl Default for Samuel {
    fn default() -> Samuel {
        Samuel {
            mode: Mode::Independent,
            rates: Rates::List(vec![1.0, 0.1, 0.01, 0.001, 0.0001]),
            q: 4,
            play: None,
            trust: 0.2,
            retire: 1e-6,
            lengths: vec![16, 64, 256, 1024],
            base: None,
        }
    }
}

/// More experts than this are refused: a step would hold a copy of itself for each.
const MAX_EXPERTS: usize = 64;

impl Pass for Samuel {
    fn name(&self) -> &str {
        "samuel"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        let rates = self.check()?;
        training::require_opset(model, "samuel")?;
        let has_optimizer = |(name, program): (&String, &Program)| {
            training::is_step(name) && program.graph.find_input(training::LEARNING_RATE).is_some()
        };
        if !model.programs.iter().any(has_optimizer) {
            self.base.clone().unwrap_or_default().add(model, true)?;
        } else {
            ensure!(
                self.base.is_none(),
                "the step has an optimizer already: leave out `base`, or run `samuel` instead of `optimizer`"
            );
        }
        training::for_each_step(model, "samuel", |name, program, model| {
            let taken = program.graph.find_output(PROBABILITY).is_some();
            ensure!(!taken, "it is wrapped already");
            Wrap { options: self, rates: &rates, name, opset: model.opset() }.wrap(program, model)
        })?;
        model.remove_unused_params();
        Ok(Changed::Yes)
    }
}

impl Samuel {
    /// The experts' learning rates, one by one.
    pub fn rates(&self) -> Result<Vec<f64>> {
        match &self.rates {
            Rates::List(rates) => Ok(rates.clone()),
            Rates::Span(span) => span.series(),
        }
    }
    /// The rates, checked.
    fn check(&self) -> Result<Vec<f64>> {
        let rates = self.rates()?;
        ensure!(!rates.is_empty(), "rates is empty, expected at least one learning rate");
        if let Some(wrong) = rates.iter().find(|r| !(r.is_finite() && **r > 0.0)) {
            bail!("rates holds {wrong}, expected positive numbers");
        }
        ensure!((1..=32).contains(&self.q), "q is {}, expected 1 to 32", self.q);
        ensure!((0.0..1.0).contains(&self.retire), "retire is {}, expected a number in [0, 1)", self.retire);
        ensure!(self.trust > 0.0, "trust is {}, expected a positive number", self.trust);
        let mut experts = rates.len();
        if self.mode == Mode::Intervals {
            let lengths = &self.lengths;
            ensure!(!lengths.is_empty() && !lengths.contains(&0), "lengths is {lengths:?}, expected numbers of steps");
            ensure!(self.play.is_none_or(|p| p == Play::Average), "`intervals` plays the average");
            experts *= lengths.len();
        }
        ensure!(experts <= MAX_EXPERTS, "there would be {experts} experts, expected at most {MAX_EXPERTS}");
        Ok(rates)
    }
    fn plays(&self) -> Play {
        let natural = if self.mode == Mode::Independent { Play::Likeliest } else { Play::Average };
        self.play.unwrap_or(natural)
    }
}

impl Span {
    fn series(&self) -> Result<Vec<f64>> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        ensure!(
            positive(self.from) && positive(self.to) && self.count >= 2,
            "rates = {{from = {}, to = {}, count = {}}}: expected two positive numbers and a count of at least 2",
            self.from,
            self.to,
            self.count
        );
        ensure!(self.count <= MAX_EXPERTS, "there would be {} experts, expected at most {MAX_EXPERTS}", self.count);
        let last = (self.count - 1) as f64;
        Ok((0..self.count).map(|i| self.from * (self.to / self.from).powf(i as f64 / last)).collect())
    }
}

/// One step while it is wrapped.
struct Wrap<'a> {
    options: &'a Samuel,
    rates: &'a [f64],
    name: &'a str,
    opset: i64,
}

impl Wrap<'_> {
    fn wrap(&self, program: &mut Program, model: &mut Model) -> Result<()> {
        let cut = match self.options.mode {
            Mode::Shared => training::gradients(&program.graph, "samuel").map_err(|_| {
                sartor_ir::Error::msg(
                    "`shared` needs the gradients, which `optimizer` takes away: run `samuel` with `base` instead of it",
                )
            })?,
            _ => Vec::new(),
        };
        let mut split = Split::of(program, model, self.options.mode, &cut)?;
        let count = match self.options.mode {
            Mode::Intervals => self.rates.len() * self.options.lengths.len(),
            _ => self.rates.len(),
        };
        let apply = program.graph.find_output(training::APPLY);
        ensure!(
            self.options.mode != Mode::Intervals || apply.is_none(),
            "`intervals` counts runs of the step and does not take `accumulate`"
        );
        let weights = Weights::add(self, model, count, apply.is_some())?;
        split.add_states(self.name, count, model);
        let rates = self.rate_vector(program, count)?;
        let begun = weights.begin(self, program)?;
        let mut starts = Vec::new();
        for expert in 0..count {
            let fresh = begun.fresh(self, program, expert)?;
            starts.push(split.start(self, program, model, expert, fresh)?);
        }
        let mut copies = Vec::new();
        for (expert, start) in starts.iter().enumerate() {
            copies.push(split.copy(self, program, expert, start, rates)?);
        }
        if self.options.mode != Mode::Shared {
            let alive = begun.alive(self, program)?;
            self.spare(program, &split, (&starts, &mut copies), alive)?;
        }
        let judged = match self.options.mode {
            Mode::Shared => begun.judge_shared(self, program, &split, (&starts, &cut))?,
            _ => begun.judge_losses(self, program, &copies, apply)?,
        };
        let mut played = Choice::of(self, program, judged.weights)?;
        let near = match self.options.mode {
            Mode::Shared => Some(begun.near(self, program, &split, &copies)?),
            _ => None,
        };
        let next = begun.update(self, program, &judged, (&mut played, near), apply)?;
        let mut choice = match self.options.mode {
            Mode::Independent => played,
            _ => Choice::of(self, program, next)?,
        };
        let moving = weights::moving(self, program, if near.is_some() { next } else { judged.weights })?;
        self.bind_played(program, &split, &copies, &mut choice, apply)?;
        self.bind_experts(program, &split, (&starts, &copies), moving)?;
        self.set_outputs(program, &copies, &mut choice, &judged, rates)?;
        restart::add(self, model, &split, &weights)?;
        program.graph.remove_dead();
        Ok(())
    }

    /// Lets nobody need what experts without weight compute.
    fn spare(
        &self,
        program: &mut Program,
        split: &Split,
        (starts, copies): (&[Vec<Value>], &mut [experts::Copy]),
        alive: Value,
    ) -> Result<()> {
        for (expert, (copy, start)) in copies.iter_mut().zip(starts).enumerate() {
            let alive = entry(&mut self.emit(program), alive, expert)?;
            split.spare(self, program, copy, (alive, start))?;
        }
        Ok(())
    }

    fn emit<'g>(&self, program: &'g mut Program) -> Emit<'g> {
        let mut emit = Emit::new(&mut program.graph, self.opset);
        emit.prefix = "/samuel/".to_string();
        emit
    }

    /// The learning rates of all experts, `float[N]`.
    fn rate_vector(&self, program: &mut Program, count: usize) -> Result<Value> {
        let Some(rate) = program.graph.find_input(training::LEARNING_RATE) else {
            bail!("it has no input \"{}\"", training::LEARNING_RATE);
        };
        let mut emit = self.emit(program);
        let rates: Vec<f32> = (0..count).map(|i| self.rates[i % self.rates.len()] as f32).collect();
        let rates = emit.constant(Tensor::from_vec([count], rates));
        let rates = emit.cast(rates, emit.dtype(rate)?)?;
        emit.mul(rates, rate)
    }

    /// The parameters of the model take the played point.
    fn bind_played(
        &self,
        program: &mut Program,
        split: &Split,
        copies: &[experts::Copy],
        choice: &mut Choice,
        apply: Option<Value>,
    ) -> Result<()> {
        for state in split.states.iter().filter(|s| s.played) {
            let nexts: Vec<Value> = copies.iter().map(|copy| copy.value(state.next)).collect();
            let mut emit = self.emit(program);
            let mut next = choice.mix(&mut emit, &nexts)?;
            if let (Some(apply), Some(old)) = (apply, state.value) {
                next = emit.select(apply, next, old)?;
            }
            training::set_output(&mut program.graph, &state.output, next);
        }
        let kept = |b: &sartor_ir::Binding| split.states.iter().all(|s| s.played || s.output != b.output);
        let dropped: Vec<String> = program.bindings.iter().filter(|b| !kept(b)).map(|b| b.output.clone()).collect();
        program.bindings.retain(kept);
        program.graph.outputs.retain(|o| !dropped.contains(&o.name));
        Ok(())
    }

    /// The experts' own parameters take their next values, those of experts without weight stay.
    fn bind_experts(
        &self,
        program: &mut Program,
        split: &Split,
        (starts, copies): (&[Vec<Value>], &[experts::Copy]),
        moving: Value,
    ) -> Result<()> {
        for (expert, (start, copy)) in starts.iter().zip(copies).enumerate() {
            let moves = entry(&mut self.emit(program), moving, expert)?;
            for (state, start) in split.states.iter().zip(start) {
                let next = self.emit(program).select(moves, copy.value(state.next), *start)?;
                let own = &state.own[expert];
                training::bind(program, &format!("next:{own}"), next, own);
            }
        }
        Ok(())
    }

    /// What the step reports; gradients are no outputs any more.
    fn set_outputs(
        &self,
        program: &mut Program,
        copies: &[experts::Copy],
        choice: &mut Choice,
        judged: &weights::Judged,
        rates: Value,
    ) -> Result<()> {
        let spent = |name: &str| name.starts_with(training::GRAD) || name == training::APPLY;
        program.graph.outputs.retain(|o| !spent(&o.name));
        let bound: Vec<String> = program.bindings.iter().map(|b| b.output.clone()).collect();
        let reported: Vec<(String, Value)> = program
            .graph
            .outputs
            .iter()
            .filter(|o| !bound.contains(&o.name))
            .map(|o| (o.name.clone(), o.value))
            .collect();
        for (name, value) in reported {
            let own: Vec<Value> = copies.iter().map(|copy| copy.value(value)).collect();
            let theirs = own.iter().any(|v| *v != value);
            let mut emit = self.emit(program);
            let value = match (name.as_str(), self.options.mode) {
                ("loss", Mode::Intervals | Mode::Shared) => value,
                _ if theirs => choice.mix(&mut emit, &own)?,
                _ => value,
            };
            let value = if name == "loss" { choice.poison(&mut emit, value)? } else { value };
            training::set_output(&mut program.graph, &name, value);
        }
        let mut emit = self.emit(program);
        let effective = choice.effective(&mut emit, rates)?;
        let graph = &mut program.graph;
        training::set_output(graph, PROBABILITY, choice.probability);
        training::set_output(graph, if self.options.mode == Mode::Shared { REGRET } else { LOSS }, judged.shown);
        training::set_output(graph, RATE, rates);
        training::set_output(graph, EFFECTIVE, effective);
        if self.options.plays() != Play::Average {
            training::set_output(graph, PLAYED, choice.current);
        }
        Ok(())
    }
}

/// The entry of a vector, as a scalar.
fn entry(emit: &mut Emit, vector: Value, index: usize) -> Result<Value> {
    let index = emit.constant(Tensor::scalar(index as i64));
    emit.op("Gather", &[vector, index], Attributes::new().with("axis", 0i64))
}

/// What an expert's copy of a parameter begins with: the played point, or what the optimizer begins with.
fn beginning(emit: &mut Emit, model: &Model, state: &Copied) -> Result<Value> {
    let Some(param) = model.params.get(&state.param) else { bail!("there is no parameter \"{}\"", state.param) };
    if state.played {
        return Ok(emit.graph.param(&state.param, sartor_ir::Type::of(&param.tensor)));
    }
    constant(emit, param.tensor.clone())
}

/// A constant, a large one of equal elements as the operator that fills it.
fn constant(emit: &mut Emit, tensor: Tensor) -> Result<Value> {
    let width = tensor.dtype().byte_len(1).unwrap_or(0);
    let mut elements = tensor.bytes().chunks(width.max(1));
    let first = elements.next().map(<[u8]>::to_vec);
    match first {
        Some(first) if tensor.len() > 1 && width > 0 && elements.all(|e| e == first) => {
            let value = Tensor::from_bytes(tensor.dtype(), vec![1], first.into())?;
            let shape: Vec<i64> = tensor.shape().iter().map(|&d| d as i64).collect();
            let shape = emit.ints(&shape);
            emit.op("ConstantOfShape", &[shape], Attributes::new().with("value", value))
        }
        _ => Ok(emit.constant(tensor)),
    }
}
