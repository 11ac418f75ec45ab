//! `sgd`: stochastic gradient descent, as `torch.optim.SGD` (Sutskever et al. 2013 for the momentum). With λ the weight decay
//! and μ the momentum:
//!
//! ```text
//! g ← g + λw
//! b ← μb + g          (first b = g)
//! w ← w - η·b         with `nesterov`: w - η·(g + μb)
//! ```

use super::Optimizer;
use super::update::{Step, Update, decayed_gradient};
use sartor_ir::{Result, Value};

pub fn add(options: &Optimizer, step: &mut Step, updates: &[Update]) -> Result<()> {
    updates.iter().try_for_each(|u| update(options, step, u))
}

fn update(options: &Optimizer, step: &mut Step, u: &Update) -> Result<()> {
    let rate = step.rate_of(u)?;
    let g = decayed_gradient(options, step, u)?;
    let direction = if options.momentum == 0.0 { g } else { with_momentum(options, step, u, g)? };
    let mut emit = step.emit();
    let change = emit.mul(direction, rate)?;
    let next = emit.sub(u.w.value, change)?;
    step.write(&u.w, next)
}

fn with_momentum(options: &Optimizer, step: &mut Step, u: &Update, g: Value) -> Result<Value> {
    let b = step.state(u, "momentum");
    let mut emit = step.emit();
    // A buffer of zeros makes the first direction g itself, as PyTorch's does.
    let kept = emit.mul_scalar(b.value, options.momentum)?;
    let next = emit.add(kept, g)?;
    let direction = if options.nesterov {
        let ahead = emit.mul_scalar(next, options.momentum)?;
        emit.add(g, ahead)?
    } else {
        next
    };
    step.write(&b, next)?;
    Ok(direction)
}
