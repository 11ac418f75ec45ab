//! `d-adapt-adam`: Adam that finds its own step size `d`, a lower bound on the distance from the initial weights to the
//! solution (Defazio & Mishchenko 2023, *Learning-Rate-Free Learning by D-Adaptation*, arXiv 2301.07733), as
//! `dadaptation.DAdaptAdam`. The learning rate multiplies `d`: give it 1.
//!
//! Sums run over all trained parameters; `d` and `N` are one number each, at first `d0` and 0; `ρ` is the factor on a parameter's
//! rate, which the package calls `layer_scale`; `κ = √β₂`:
//! ```text
//! γ ← d·η                                       with use_bias_correction: times √(1-β₂ᵗ) / (1-β₁ᵗ)
//! N ← κN + (1-κ)·γ·Σ ρ·⟨g, s / (√v + ε)⟩        with s and v before this update
//! m ← β₁m + (1-β₁)·ρ·γ·g
//! v ← β₂v + (1-β₂)·g²
//! s ← κs + (1-κ)·γ·g
//! d̂ ← N / ((1-κ)·Σ ρ·|s|)
//! d ← max(d, min(d̂, growth_rate·d))
//! w ← w - m / (√v + ε)
//! ```
//! `g` is `g + λw`, or, with `decouple`, `w` loses `γλw`. A run changes nothing if the rate is 0 or all gradients so
//! far are.

use super::Optimizer;
use super::adaptation::{Gathered, abs_sum, dot, step_size};
use super::update::{Step, Update, by_factor, decayed_gradient, moving_average, scaled, shrunk};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Result, Value};

pub fn add(options: &Optimizer, step: &mut Step, updates: &[Update]) -> Result<()> {
    let (d, numerator) = (step.number("d", options.d0), step.number("d_numerator", 0.0));
    let count = step.number("updates", 0.0);
    let rate = step.rate()?;
    let t = step.emit().add_scalar(count.value, 1.0)?;
    let size = step_size(options, step, d.value, rate, t)?;
    let mut gathered = Gathered::default();
    for u in updates {
        update(options, step, u, size, &mut gathered)?;
    }
    let mut emit = step.emit();
    let (products, sizes) = gathered.sums(&mut emit)?;
    let products = emit.mul(products, size)?;
    let next_numerator = moving_average(&mut emit, numerator.value, products, root_beta2(options))?;
    let next_d = estimate(options, &mut emit, d.value, next_numerator, sizes)?;
    gathered.next.extend([(count, t), (numerator, next_numerator), (d, next_d)]);
    gathered.write(step, rate, sizes)
}

fn root_beta2(options: &Optimizer) -> f64 {
    options.beta2.sqrt()
}

/// The new `d`.
fn estimate(options: &Optimizer, emit: &mut Emit, d: Value, numerator: Value, sizes: Value) -> Result<Value> {
    let sizes = emit.mul_scalar(sizes, 1.0 - root_beta2(options))?;
    let mut found = emit.div(numerator, sizes)?;
    if let Some(growth) = options.growth_rate {
        let bound = emit.mul_scalar(d, growth)?;
        found = emit.op("Min", &[found, bound], Attributes::new())?;
    }
    emit.op("Max", &[d, found], Attributes::new())
}

/// One parameter: its sums and its next values. The new `d` does not act before the next update.
fn update(options: &Optimizer, step: &mut Step, u: &Update, size: Value, gathered: &mut Gathered) -> Result<()> {
    let g = if options.decouples() { u.g } else { decayed_gradient(options, step, u)? };
    let (s, m, v) = (step.state(u, "s"), step.state(u, "exp_avg"), step.state(u, "exp_avg_sq"));
    let mut emit = step.emit();
    let epsilon = options.epsilon.unwrap_or(1e-8);
    let own_size = by_factor(&mut emit, size, u.factor)?;

    let old_scale = emit.unary("Sqrt", v.value)?;
    let old_scale = emit.add_scalar(old_scale, epsilon)?;
    let direction = emit.div(s.value, old_scale)?;
    let product = dot(&mut emit, g, direction)?;
    gathered.products.push(by_factor(&mut emit, product, u.factor)?);

    let grown = scaled(&mut emit, g, own_size)?;
    let next_m = moving_average(&mut emit, m.value, grown, options.beta1)?;
    let square = emit.mul(g, g)?;
    let next_v = moving_average(&mut emit, v.value, square, options.beta2)?;
    let grown = scaled(&mut emit, g, size)?;
    let next_s = moving_average(&mut emit, s.value, grown, root_beta2(options))?;
    let length = abs_sum(&mut emit, next_s)?;
    gathered.sizes.push(by_factor(&mut emit, length, u.factor)?);

    let scale = emit.unary("Sqrt", next_v)?;
    let scale = emit.add_scalar(scale, epsilon)?;
    let change = emit.div(next_m, scale)?;
    let mut w = u.w.value;
    if options.decouples() && options.weight_decay != 0.0 {
        let share = emit.mul_scalar(size, options.weight_decay)?;
        let share = emit.cast(share, emit.dtype(w)?)?;
        w = shrunk(&mut emit, w, share)?;
    }
    let next_w = emit.sub(w, change)?;
    gathered.next.extend([(s, next_s), (m, next_m), (v, next_v), (u.w.clone(), next_w)]);
    Ok(())
}
