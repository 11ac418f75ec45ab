//! `adagrad`: steps scaled by the root of all squares so far (Duchi et al. 2011), as `torch.optim.Adagrad`:
//!
//! ```text
//! g ← g + λw
//! s ← s + g²
//! w ← w - η·g / (√s + ε)
//! ```

use super::Optimizer;
use super::update::{Step, Update, decayed_gradient};
use sartor_ir::Result;

pub fn add(options: &Optimizer, step: &mut Step, updates: &[Update]) -> Result<()> {
    updates.iter().try_for_each(|u| update(options, step, u))
}

fn update(options: &Optimizer, step: &mut Step, u: &Update) -> Result<()> {
    let rate = step.rate_of(u)?;
    let g = decayed_gradient(options, step, u)?;
    let s = step.state(u, "sum");
    let mut emit = step.emit();
    let square = emit.mul(g, g)?;
    let sum = emit.add(s.value, square)?;
    let root = emit.unary("Sqrt", sum)?;
    let scale = emit.add_scalar(root, options.epsilon.unwrap_or(1e-10))?;
    let change = emit.mul(g, rate)?;
    let change = emit.div(change, scale)?;
    let next = emit.sub(u.w.value, change)?;
    step.write(&s, sum)?;
    step.write(&u.w, next)
}
