//! What `prodigy` and `d-adapt-adam` share: an update in two rounds. The first goes over all trained parameters and gathers
//! their next states and two sums, from which the step size follows; the second writes everything at once.

use super::Optimizer;
use super::update::{Step, Variable, compare, rest};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, DType, Result, Value, bail};

/// What the first round gathers.
#[derive(Default)]
pub struct Gathered {
    /// The products of each parameter, `double` scalars.
    pub products: Vec<Value>,
    /// The sizes of each parameter, `double` scalars.
    pub sizes: Vec<Value>,
    /// What is written in the end.
    pub next: Vec<(Variable, Value)>,
}

impl Gathered {
    /// The sums over all parameters: of the products, and of the sizes.
    pub fn sums(&self, emit: &mut Emit) -> Result<(Value, Value)> {
        Ok((total(emit, &self.products)?, total(emit, &self.sizes)?))
    }
    /// Writes everything, unless the rate is 0 or nothing has a size yet: then there is nothing to learn from the run.
    pub fn write(self, step: &mut Step, rate: Value, sizes: Value) -> Result<()> {
        let mut emit = step.emit();
        let moves = compare(&mut emit, "Greater", rate, 0.0)?;
        // Not `sizes > 0`: a NaN shall show.
        let is_empty = compare(&mut emit, "Equal", sizes, 0.0)?;
        let is_known = emit.unary("Not", is_empty)?;
        let both = emit.op("And", &[moves, is_known], Attributes::new())?;
        step.require(both)?;
        self.next.iter().try_for_each(|(variable, next)| step.write(variable, *next))
    }
}

fn total(emit: &mut Emit, parts: &[Value]) -> Result<Value> {
    let Some((&first, others)) = parts.split_first() else { bail!("there are no gradients") };
    others.iter().try_fold(first, |sum, &part| emit.add(sum, part))
}

/// `d·η`, with Adam's correction of both moments if asked for, at the t-th update.
pub fn step_size(options: &Optimizer, step: &mut Step, d: Value, rate: Value, t: Value) -> Result<Value> {
    let mut emit = step.emit();
    let size = emit.mul(d, rate)?;
    if !options.use_bias_correction {
        return Ok(size);
    }
    let second = rest(&mut emit, options.beta2, t)?;
    let second = emit.unary("Sqrt", second)?;
    let first = rest(&mut emit, options.beta1, t)?;
    let correction = emit.div(second, first)?;
    emit.mul(size, correction)
}

/// `⟨a, b⟩`, a `double` scalar.
pub fn dot(emit: &mut Emit, a: Value, b: Value) -> Result<Value> {
    let products = emit.mul(a, b)?;
    sum(emit, products)
}

/// `Σ|a|`, a `double` scalar.
pub fn abs_sum(emit: &mut Emit, a: Value) -> Result<Value> {
    let sizes = emit.unary("Abs", a)?;
    sum(emit, sizes)
}

fn sum(emit: &mut Emit, a: Value) -> Result<Value> {
    let sum = emit.op("ReduceSum", &[a], Attributes::new().with("keepdims", 0i64))?;
    emit.cast(sum, DType::F64)
}
