//! `average`: the parameters hold the mean of the points that training went through, instead of the last one. That takes the noise of a
//! constant learning rate out of the result without lowering the rate, so that no length of the run has to be known.
//!
//! Before → after, for `average(power=8)`, where `w` is trained:
//! ```text
//! step: (x, learning_rate) => (loss, next:w)     step: (x, learning_rate) => (loss, next:w, next:step/average/point:w)
//!                                                      everything that read w, forward and backward, reads the point
//!       next:w = w - learning_rate · grad:w            next point = point - learning_rate · grad:w
//!                                                      next:w = w + c · (next point - w)
//! ```
//! **The parameter holds the average**: the inference graph, evaluation and export read it; the optimizer goes on at the
//! point, which is a state of the step. With `t` the runs of the step, this one included:
//!
//! | option | c | the mean of |
//! |---|---|---|
//! | `power = p` | `(p + 1) / (p + t)` | all points, the t-th weighs about `tᵖ`: the last `1/(p+1)` of the run, however long it is (Shamir & Zhang 2013, *Stochastic gradient descent for non-smooth optimization*, section 4) |
//! | `decay = d` | `max(1 - d, 1/t)` | the last `1/(1-d)` points, weights falling geometrically (Polyak & Juditsky 1992; as `ema` elsewhere) |
//!
//! The running statistics of batch normalisation are averaged in the same way: they are those of the points, not those that
//! the average itself would see, and near them as far as the points are near each other.
//!
//! Precondition: the step updates parameters (`optimizer` or `samuel` has run). Every link of a chain averages anew, from the parameters that it
//! begins with; the programs `restart` of `samuel` go on from the point. With `accumulate`, runs that apply nothing count
//! too: they weigh the same point again.

use crate::{Changed, Pass, training};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Binding, Graph, Model, Program, Result, Role, Tensor, Type, Value, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The options, and the pass.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Average {
    /// The t-th point weighs about t to this power. Default, unless `decay` is given: 8.
    pub power: Option<f64>,
    /// How much of the average one point leaves: 0.999 is a mean over about the last 1000.
    pub decay: Option<f64>,
}

/// The weights of the points.
#[derive(Clone, Copy)]
enum Weights {
    Power(f64),
    Decay(f64),
}

impl Pass for Average {
    fn name(&self) -> &str {
        "average"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        let weights = self.weights()?;
        training::require_opset(model, "average")?;
        let shown = training::shown(model);
        training::for_each_step(model, "average", |name, program, model| {
            Averaged { name, opset: model.opset(), weights }.step(program, model, &|param| shown.contains(param))
        })?;
        Ok(Changed::Yes)
    }
}

impl Average {
    fn weights(&self) -> Result<Weights> {
        ensure!(
            self.power.is_none() || self.decay.is_none(),
            "power and decay are two ways to weigh the points: give one of them"
        );
        if let Some(decay) = self.decay {
            ensure!((0.0..1.0).contains(&decay), "decay is {decay}, expected a number in [0, 1)");
            return Ok(Weights::Decay(decay));
        }
        let power = self.power.unwrap_or(8.0);
        ensure!((0.0..=1e6).contains(&power), "power is {power}, expected a number from 0 to 1e6");
        Ok(Weights::Power(power))
    }
}

/// One step, and the restart that belongs to it.
struct Averaged<'a> {
    name: &'a str,
    opset: i64,
    weights: Weights,
}

impl Averaged<'_> {
    fn step(&self, program: &mut Program, model: &mut Model, shown: &dyn Fn(&str) -> bool) -> Result<()> {
        let held = |param: &str| match model.params.get(param) {
            Some(p) if p.role == Role::State => shown(param) && p.tensor.dtype().is_float(),
            Some(p) => p.role == Role::Trainable,
            None => false,
        };
        let bound: Vec<Binding> = program.bindings.iter().filter(|b| held(&b.param)).cloned().collect();
        ensure!(!bound.is_empty(), "it updates no trainable parameter: run `average` after `optimizer` or `samuel`");
        let hint = format!("{}/average/runs", self.name);
        ensure!(!model.params.contains_key(&hint), "its parameters are averaged already");
        let count = model.add_param(&hint, Tensor::scalar(0f64), Role::State);
        let share = self.count(program, &count)?;
        let name = self.name.replacen("step", "restart", 1);
        let mut restart = model.programs.get(&name).cloned();
        for Binding { output, param } in &bound {
            let Some(next) = program.graph.find_output(output) else { continue };
            let old = self.read(program, model, param);
            if is_read(&program.graph, old) || restart.as_ref().is_some_and(|r| r.graph.find_param(param).is_some()) {
                let hint = format!("{}/average/point:{param}", self.name);
                let point = model.add_param(&hint, model.params[param].tensor.clone(), Role::State);
                for reader in std::iter::once(&mut *program).chain(&mut restart) {
                    self.read_point(reader, model, (param, &point, &count))?;
                }
                training::bind(program, &format!("next:{point}"), next, &point);
            }
            let mean = training::nearer(&mut self.emit(program), old, next, share)?;
            training::set_output(&mut program.graph, output, mean);
        }
        if let Some(restart) = restart {
            model.programs.insert(name, restart);
        }
        Ok(())
    }

    fn emit<'g>(&self, program: &'g mut Program) -> Emit<'g> {
        let mut emit = Emit::new(&mut program.graph, self.opset);
        emit.prefix = "/average/".to_string();
        emit
    }

    fn read(&self, program: &mut Program, model: &Model, param: &str) -> Value {
        program.graph.param(param, Type::of(&model.params[param].tensor))
    }

    /// Lets what reads the parameter read the point, which is the parameter before the first run.
    fn read_point(
        &self,
        program: &mut Program,
        model: &Model,
        (param, point, count): (&str, &str, &str),
    ) -> Result<()> {
        let old = self.read(program, model, param);
        if !is_read(&program.graph, old) {
            return Ok(());
        }
        let readers = program.graph.uses(old);
        let (point, count) = (self.read(program, model, point), self.read(program, model, count));
        let mut emit = self.emit(program);
        let zero = emit.scalar(0.0, count)?;
        let is_first = emit.op("Equal", &[count, zero], Attributes::new())?;
        let now = emit.select(is_first, old, point)?;
        emit.type_like(now, old);
        training::redirect(&mut program.graph, old, now, &readers);
        Ok(())
    }

    /// Counts the run, and returns c, a `double` scalar.
    fn count(&self, program: &mut Program, name: &str) -> Result<Value> {
        let count = program.graph.param(name, Type::of(&Tensor::scalar(0f64)));
        let mut emit = self.emit(program);
        let t = emit.add_scalar(count, 1.0)?;
        let share = match self.weights {
            Weights::Power(power) => {
                let (above, below) = (emit.constant(Tensor::scalar(power + 1.0)), emit.add_scalar(t, power)?);
                emit.div(above, below)?
            }
            Weights::Decay(decay) => {
                let one = emit.constant(Tensor::scalar(1f64));
                let least = emit.constant(Tensor::scalar(1.0 - decay));
                let equal = emit.div(one, t)?;
                emit.op("Max", &[equal, least], Attributes::new())?
            }
        };
        training::bind(program, &format!("next:{name}"), t, name);
        Ok(share)
    }
}

fn is_read(graph: &Graph, value: Value) -> bool {
    !graph.uses(value).is_empty() || graph.outputs.iter().any(|o| o.value == value)
}
