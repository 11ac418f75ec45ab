//! `adamw`: Adam with decoupled weight decay (Loshchilov & Hutter 2019), as `torch.optim.AdamW`. At the t-th update:
//!
//! ```text
//! w ← w - ηλw
//! m ← β₁m + (1-β₁)g
//! v ← β₂v + (1-β₂)g²
//! w ← w - η·(m/(1-β₁ᵗ)) / (√v/√(1-β₂ᵗ) + ε)
//! ```

use super::Optimizer;
use super::update::{Step, Update, moving_average, rest, shrunk};
use sartor_ir::{Result, Tensor, Value};

pub fn add(options: &Optimizer, step: &mut Step, updates: &[Update]) -> Result<()> {
    let corrections = corrections(options, step)?;
    updates.iter().try_for_each(|u| update(options, step, u, corrections))
}

/// Counts the updates; returns `1/(1-β₁ᵗ)` and `1/√(1-β₂ᵗ)`.
fn corrections(options: &Optimizer, step: &mut Step) -> Result<(Value, Value)> {
    let t = step.number("updates", 0.0);
    let mut emit = step.emit();
    let next = emit.add_scalar(t.value, 1.0)?;
    let one = emit.constant(Tensor::scalar(1f64));
    let first = rest(&mut emit, options.beta1, next)?;
    let first = emit.div(one, first)?;
    let second = rest(&mut emit, options.beta2, next)?;
    let second = emit.div(one, second)?;
    let second = emit.unary("Sqrt", second)?;
    step.write(&t, next)?;
    Ok((first, second))
}

fn update(options: &Optimizer, step: &mut Step, u: &Update, (first, second): (Value, Value)) -> Result<()> {
    let rate = step.rate_of(u)?;
    let (m, v) = (step.state(u, "exp_avg"), step.state(u, "exp_avg_sq"));
    let mut emit = step.emit();
    let dtype = emit.dtype(u.w.value)?;
    let (first, second) = (emit.cast(first, dtype)?, emit.cast(second, dtype)?);
    let next_m = moving_average(&mut emit, m.value, u.g, options.beta1)?;
    let square = emit.mul(u.g, u.g)?;
    let next_v = moving_average(&mut emit, v.value, square, options.beta2)?;
    let root = emit.unary("Sqrt", next_v)?;
    let root = emit.mul(root, second)?;
    let scale = emit.add_scalar(root, options.epsilon.unwrap_or(1e-8))?;
    let size = emit.mul(rate, first)?;
    let change = emit.div(next_m, scale)?;
    let change = emit.mul(change, size)?;
    let mut w = u.w.value;
    if options.weight_decay != 0.0 {
        let share = emit.mul_scalar(rate, options.weight_decay)?;
        w = shrunk(&mut emit, w, share)?;
    }
    let next = emit.sub(w, change)?;
    step.write(&m, next_m)?;
    step.write(&v, next_v)?;
    step.write(&u.w, next)
}
