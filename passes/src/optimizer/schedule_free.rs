//! `schedule-free-adamw`: AdamW that averages instead of lowering its rate, so that no length of the run has to be known
//! (Defazio et al. 2024, *The Road Less Scheduled*, arXiv 2405.15682), as `schedulefree.AdamWScheduleFree`.
//!
//! There are three points. `z` takes the steps; `x` is the weighted average of all `z`; the gradient is taken at `y`, between
//! them. **The parameter holds `x`**: the inference graph, evaluation and export read the average. The step computes at `y`:
//!
//! ```text
//! before   loss, grad:w of the parameter w
//! after    y = w + (1-β₁)(z - w)          at first z = w, so y = w
//!          loss, grad:w of y              whatever read w, forward and backward, reads y
//! ```
//! With `g` the gradient at `y`, at the t-th update:
//! ```text
//! η' ← η·min(1, t/W)                      W = warmup_updates
//! c  ← a_t / Σ a_i,                       a_i = iʳ·(the largest η' up to i)^weight_lr_power
//! v  ← β₂v + (1-β₂)g²
//! z  ← z - η'·(g / (√(v/(1-β₂ᵗ)) + ε) + λy)
//! x  ← x + c·(z - x)
//! ```
//! The package keeps `y` and `z` and switches its parameters between `x` and `y`; the three points are the same.
//!
//! Beware of batch normalisation: the running statistics that `train-mode` keeps come from the forward pass, so they belong to
//! `y`, while evaluation combines them with `x`. A network that has them needs its statistics gathered anew at `x` after
//! training (forward passes in training mode with the final weights), or another optimizer.

use super::Optimizer;
use super::update::{Step, Update, Variable, by_factor, compare, moving_average, rest, scaled};
use crate::training;
use sartor_ir::{Attributes, Result, Tensor, Value};

/// The points of one parameter.
struct Point {
    z: Variable,
    /// `z`, or the parameter as long as there was no update.
    z_now: Value,
    y: Value,
}

/// What all parameters share in one update, `double` scalars.
struct Shared {
    /// η'
    rate: Value,
    /// c
    share: Value,
    /// `1/(1-β₂ᵗ)`
    correction: Value,
}

pub fn add(options: &Optimizer, step: &mut Step, updates: &[Update]) -> Result<()> {
    let count = step.number("updates", 0.0);
    let is_first = compare(&mut step.emit(), "Equal", count.value, 0.0)?;
    let points = updates.iter().map(|u| move_to_y(options, step, u, is_first)).collect::<Result<Vec<Point>>>()?;
    let t = step.emit().add_scalar(count.value, 1.0)?;
    let shared = shared(options, step, t)?;
    step.write(&count, t)?;
    for (u, point) in updates.iter().zip(points) {
        update(options, step, u, &point, &shared)?;
    }
    Ok(())
}

/// Lets everything that reads the parameter read `y`.
fn move_to_y(options: &Optimizer, step: &mut Step, u: &Update, is_first: Value) -> Result<Point> {
    let w = u.w.value;
    let readers = step.program.graph.uses(w);
    let z = step.state(u, "z");
    let mut emit = step.emit();
    let z_now = emit.select(is_first, w, z.value)?;
    let apart = emit.sub(z_now, w)?;
    let apart = emit.mul_scalar(apart, 1.0 - options.beta1)?;
    let y = emit.add(w, apart)?;
    emit.type_like(y, w);
    training::redirect(&mut step.program.graph, w, y, &readers);
    Ok(Point { z, z_now, y })
}

fn shared(options: &Optimizer, step: &mut Step, t: Value) -> Result<Shared> {
    let (highest, total) = (step.number("highest_rate", 0.0), step.number("weights", 0.0));
    let mut rate = step.rate()?;
    let mut emit = step.emit();
    if options.warmup_updates > 0 {
        let risen = emit.mul_scalar(t, 1.0 / options.warmup_updates as f64)?;
        let one = emit.scalar(1.0, risen)?;
        let risen = emit.op("Min", &[risen, one], Attributes::new())?;
        rate = emit.mul(rate, risen)?;
    }
    let next_highest = emit.op("Max", &[highest.value, rate], Attributes::new())?;
    let [r, power] = [options.r, options.weight_lr_power].map(|p| emit.constant(Tensor::scalar(p)));
    let by_time = emit.op("Pow", &[t, r], Attributes::new())?;
    let by_rate = emit.op("Pow", &[next_highest, power], Attributes::new())?;
    let weight = emit.mul(by_time, by_rate)?;
    let next_total = emit.add(total.value, weight)?;
    let share = emit.div(weight, next_total)?;
    let (nothing, zero) = (compare(&mut emit, "Equal", next_total, 0.0)?, emit.scalar(0.0, share)?);
    let share = emit.select(nothing, zero, share)?;
    let correction = rest(&mut emit, options.beta2, t)?;
    let one = emit.scalar(1.0, correction)?;
    let correction = emit.div(one, correction)?;
    step.write(&highest, next_highest)?;
    step.write(&total, next_total)?;
    Ok(Shared { rate, share, correction })
}

fn update(options: &Optimizer, step: &mut Step, u: &Update, point: &Point, shared: &Shared) -> Result<()> {
    // Where the gradient is itself a parameter, it has moved too.
    let moved = step.program.graph.find_output(&format!("{}{}", training::GRAD, u.w.name));
    let g = moved.unwrap_or(u.g);
    let v = step.state(u, "exp_avg_sq");
    let mut emit = step.emit();
    let square = emit.mul(g, g)?;
    let next_v = moving_average(&mut emit, v.value, square, options.beta2)?;
    let unbiased = scaled(&mut emit, next_v, shared.correction)?;
    let root = emit.unary("Sqrt", unbiased)?;
    let scale = emit.add_scalar(root, options.epsilon.unwrap_or(1e-8))?;
    let mut direction = emit.div(g, scale)?;
    if options.weight_decay != 0.0 {
        let decay = emit.mul_scalar(point.y, options.weight_decay)?;
        direction = emit.add(direction, decay)?;
    }
    let rate = by_factor(&mut emit, shared.rate, u.factor)?;
    let change = scaled(&mut emit, direction, rate)?;
    let next_z = emit.sub(point.z_now, change)?;
    let apart = emit.sub(next_z, u.w.value)?;
    let nearer = scaled(&mut emit, apart, shared.share)?;
    let next_x = emit.add(u.w.value, nearer)?;
    step.write(&v, next_v)?;
    step.write(&point.z, next_z)?;
    step.write(&u.w, next_x)
}
