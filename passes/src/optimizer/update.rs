//! What the update rules are written with: the step that they extend, the parameters that they update, and their states.
//!
//! A rule computes values and hands each to [`Step::write`], with the variable that it becomes the next value of. Numbers
//! that belong to all parameters together (counts, step sizes, sums) are `double` scalars: in single precision `1-β₂` alone
//! would be off by 6e-5 of itself.

use super::Optimizer;
use crate::training::{self, bind, zero_like};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, DType, Model, Program, Result, Role, Tensor, Type, Value, bail};

/// A training step while its updates are being emitted.
pub struct Step<'a> {
    name: &'a str,
    pub program: &'a mut Program,
    model: &'a mut Model,
    /// The input `learning_rate`, single precision.
    rate: Value,
    /// Only where this is true does what is written take effect.
    gate: Option<Value>,
}

/// A parameter that changes, and its value in the program.
#[derive(Clone)]
pub struct Variable {
    pub name: String,
    pub value: Value,
}

/// One trained parameter.
pub struct Update {
    pub w: Variable,
    /// Its gradient.
    pub g: Value,
    /// Zeros of its type and shape.
    pub zeros: Tensor,
    /// The factor on its learning rate.
    pub factor: f64,
}

impl<'a> Step<'a> {
    pub fn new(name: &'a str, program: &'a mut Program, model: &'a mut Model) -> Step<'a> {
        let rate = program.graph.add_input(training::LEARNING_RATE, Type::of(&Tensor::scalar(0f32)));
        let gate = program.graph.find_output(training::APPLY);
        Step { name, program, model, rate, gate }
    }
    pub fn emit(&mut self) -> Emit<'_> {
        let mut emit = Emit::new(&mut self.program.graph, self.model.opset());
        emit.prefix = "/optimizer/".to_string();
        emit
    }
    /// What is to be done for a parameter.
    pub fn update(&mut self, param: &str, g: Value, factor: f64) -> Result<Update> {
        let Some(zeros) = self.model.params.get(param).map(|p| zero_like(&p.tensor)).transpose()? else {
            bail!("the gradient of \"{param}\" belongs to no parameter");
        };
        let value = self.program.graph.param(param, Type::of(&zeros));
        Ok(Update { w: Variable { name: param.to_string(), value }, g, zeros, factor })
    }
    /// A state of the step as a whole: a `double` scalar.
    pub fn number(&mut self, what: &str, initial: f64) -> Variable {
        self.add_state(&format!("{}/{what}", self.name), Tensor::scalar(initial))
    }
    /// A state of one parameter, like it in type and shape, at first 0.
    pub fn state(&mut self, u: &Update, what: &str) -> Variable {
        self.state_of(u, what, u.zeros.clone())
    }
    /// A state of one parameter.
    pub fn state_of(&mut self, u: &Update, what: &str, initial: Tensor) -> Variable {
        self.add_state(&format!("{}/{what}:{}", self.name, u.w.name), initial)
    }
    fn add_state(&mut self, hint: &str, initial: Tensor) -> Variable {
        let ty = Type::of(&initial);
        let name = self.model.add_param(hint, initial, Role::State);
        let value = self.program.graph.param(&name, ty);
        Variable { name, value }
    }
    /// The learning rate of a parameter, in its element type.
    pub fn rate_of(&mut self, u: &Update) -> Result<Value> {
        let rate = self.rate;
        let mut emit = self.emit();
        let rate = by_factor(&mut emit, rate, u.factor)?;
        emit.cast(rate, emit.dtype(u.w.value)?)
    }
    /// The learning rate of all parameters, in double precision.
    pub fn rate(&mut self) -> Result<Value> {
        let rate = self.rate;
        self.emit().cast(rate, DType::F64)
    }
    /// What is written from now on takes effect only where this is true too.
    pub fn require(&mut self, condition: Value) -> Result<()> {
        self.gate = Some(match self.gate {
            Some(gate) => self.emit().op("And", &[gate, condition], Attributes::new())?,
            None => condition,
        });
        Ok(())
    }
    /// Binds the next value of a variable.
    pub fn write(&mut self, variable: &Variable, next: Value) -> Result<()> {
        let next = match self.gate {
            Some(gate) => self.emit().select(gate, next, variable.value)?,
            None => next,
        };
        bind(self.program, &format!("next:{}", variable.name), next, &variable.name);
        Ok(())
    }
}

/// `g + λw`
pub fn decayed_gradient(options: &Optimizer, step: &mut Step, u: &Update) -> Result<Value> {
    if options.weight_decay == 0.0 {
        return Ok(u.g);
    }
    let mut emit = step.emit();
    let decay = emit.mul_scalar(u.w.value, options.weight_decay)?;
    emit.add(u.g, decay)
}

/// `w - share·w`
pub fn shrunk(emit: &mut Emit, w: Value, share: Value) -> Result<Value> {
    let decay = emit.mul(w, share)?;
    emit.sub(w, decay)
}

/// `β·old + (1-β)·new`
pub fn moving_average(emit: &mut Emit, old: Value, new: Value, beta: f64) -> Result<Value> {
    let (kept, fresh) = (emit.mul_scalar(old, beta)?, emit.mul_scalar(new, 1.0 - beta)?);
    emit.add(kept, fresh)
}

/// `1 - βᵗ`, where `t` is a `double`.
pub fn rest(emit: &mut Emit, beta: f64, t: Value) -> Result<Value> {
    let (one, beta) = (emit.constant(Tensor::scalar(1f64)), emit.constant(Tensor::scalar(beta)));
    let power = emit.op("Pow", &[beta, t], Attributes::new())?;
    emit.sub(one, power)
}

/// A tensor times a `double` scalar.
pub fn scaled(emit: &mut Emit, tensor: Value, by: Value) -> Result<Value> {
    let by = emit.cast(by, emit.dtype(tensor)?)?;
    emit.mul(tensor, by)
}

/// A value times a factor on a learning rate (nothing is added for 1).
pub fn by_factor(emit: &mut Emit, value: Value, factor: f64) -> Result<Value> {
    if factor == 1.0 { Ok(value) } else { emit.mul_scalar(value, factor) }
}

/// Whether `a` is equal to (`Equal`) or greater than (`Greater`) a number.
pub fn compare(emit: &mut Emit, name: &str, a: Value, number: f64) -> Result<Value> {
    let number = emit.scalar(number, a)?;
    emit.op(name, &[a, number], Attributes::new())
}
