//! `prodigy`: Adam that finds its own step size `d`, an estimate of the distance from the initial weights `x₀` to the
//! solution (Mishchenko & Defazio 2023, *Prodigy: An Expeditiously Adaptive Parameter-Free Learner*, arXiv 2306.06101), as
//! `prodigyopt.Prodigy`. The learning rate multiplies `d`: give it 1.
//!
//! Sums run over all trained parameters; `d`, `D` and `N` are one number each, at first `d0`, `d0`, 0:
//! ```text
//! γ ← d·η                          with use_bias_correction: times √(1-β₂ᵗ) / (1-β₁ᵗ)
//! N ← β₃N + (d/d0)·γ·Σ⟨g, x₀ - w⟩
//! m ← β₁m + (1-β₁)·d·g
//! v ← β₂v + (1-β₂)·d²·g²
//! s ← β₃s + (d/d0)·γ·g             with safeguard_warmup: d in place of γ
//! d̂ ← d_coef·N / Σ|s|
//! D ← max(D, d̂),   d ← min(D, growth_rate·d)       while d = d0, it is first max(d, d̂)
//! w ← w - γλw - γ·m / (√v + d·ε)
//! ```
//! The last line has the new `d` and the old `γ`; without `decouple` it has no `λ`, and `g` is `g + λw`. For β₁ = 0 it has `d·g` in place of
//! `m`. Both sums see every `slice_p`-th number of a parameter. A factor on a parameter's rate multiplies its own changes
//! and leaves the estimate alone.
//!
//! `x₀` is taken at the first update, not when the pass runs: a parameter that an earlier link of a chain trained starts where
//! that link left it. A run changes nothing if the rate is 0 or all gradients so far are.

use super::Optimizer;
use super::adaptation::{Gathered, abs_sum, dot, step_size};
use super::update::{Step, Update, Variable, by_factor, compare, decayed_gradient, moving_average, scaled, shrunk};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Result, Tensor, Value};

/// What all parameters share in one update, `double` scalars.
struct Shared {
    d: Variable,
    largest: Variable,
    numerator: Variable,
    count: Variable,
    /// The number of this update, from 1.
    t: Value,
    /// Whether it is the first: a `bool` scalar.
    is_first: Value,
    /// γ
    size: Value,
    /// `(d/d0)·γ`
    product_weight: Value,
    /// What a gradient weighs in `s`.
    s_weight: Value,
    /// η
    rate: Value,
}

/// What one parameter's update needs once the new `d` is known.
struct Moments {
    /// `m`, or the gradient for β₁ = 0.
    first: Value,
    second: Value,
}

pub fn add(options: &Optimizer, step: &mut Step, updates: &[Update]) -> Result<()> {
    let shared = shared(options, step)?;
    let mut gathered = Gathered::default();
    let moments = updates.iter().map(|u| gather(options, step, u, &shared, &mut gathered));
    let moments = moments.collect::<Result<Vec<Moments>>>()?;
    let (products, sizes) = gathered.sums(&mut step.emit())?;
    let d = estimate(options, &mut step.emit(), &shared, products, sizes, &mut gathered.next)?;
    for (u, moments) in updates.iter().zip(moments) {
        let w = updated(options, &mut step.emit(), u, &moments, &shared, d)?;
        gathered.next.push((u.w.clone(), w));
    }
    gathered.next.push((shared.count, shared.t));
    gathered.write(step, shared.rate, sizes)
}

fn shared(options: &Optimizer, step: &mut Step) -> Result<Shared> {
    let (d, largest) = (step.number("d", options.d0), step.number("d_max", options.d0));
    let (numerator, count) = (step.number("d_numerator", 0.0), step.number("updates", 0.0));
    let rate = step.rate()?;
    let t = step.emit().add_scalar(count.value, 1.0)?;
    let size = step_size(options, step, d.value, rate, t)?;
    let mut emit = step.emit();
    let is_first = compare(&mut emit, "Equal", count.value, 0.0)?;
    let relative = emit.mul_scalar(d.value, 1.0 / options.d0)?;
    let product_weight = emit.mul(relative, size)?;
    let s_weight = if options.safeguard_warmup { emit.mul(relative, d.value)? } else { product_weight };
    Ok(Shared { d, largest, numerator, count, t, is_first, size, product_weight, s_weight, rate })
}

/// The moments and sums of one parameter.
fn gather(
    options: &Optimizer,
    step: &mut Step,
    u: &Update,
    shared: &Shared,
    gathered: &mut Gathered,
) -> Result<Moments> {
    let g = if options.decouples() { u.g } else { decayed_gradient(options, step, u)? };
    let length = u.zeros.len().div_ceil(options.slice_p);
    let shape = if options.slice_p == 1 { u.zeros.shape().to_vec() } else { vec![length] };
    let sliced = Tensor::zeros(u.zeros.dtype(), shape)?;
    let (s, start) = (step.state_of(u, "s", sliced.clone()), step.state_of(u, "x0", sliced));
    let v = step.state(u, "exp_avg_sq");
    let m = if options.beta1 > 0.0 { Some(step.state(u, "exp_avg")) } else { None };

    let mut emit = step.emit();
    let (seen_w, seen_g) = (seen(&mut emit, u.w.value, options)?, seen(&mut emit, g, options)?);
    let next_start = emit.select(shared.is_first, seen_w, start.value)?;
    let way = emit.sub(next_start, seen_w)?;
    gathered.products.push(dot(&mut emit, seen_g, way)?);
    let kept = emit.mul_scalar(s.value, options.beta3())?;
    let fresh = scaled(&mut emit, seen_g, shared.s_weight)?;
    let next_s = emit.add(kept, fresh)?;
    gathered.sizes.push(abs_sum(&mut emit, next_s)?);

    let grown = scaled(&mut emit, g, shared.d.value)?;
    let square = emit.mul(grown, grown)?;
    let second = moving_average(&mut emit, v.value, square, options.beta2)?;
    let first = match &m {
        Some(m) => moving_average(&mut emit, m.value, grown, options.beta1)?,
        None => g,
    };
    gathered.next.extend(m.map(|m| (m, first)));
    gathered.next.extend([(v, second), (s, next_s), (start, next_start)]);
    Ok(Moments { first, second })
}

/// Every `slice_p`-th number of a tensor, as a vector; for 1 the tensor.
fn seen(emit: &mut Emit, tensor: Value, options: &Optimizer) -> Result<Value> {
    if options.slice_p == 1 {
        return Ok(tensor);
    }
    let flat = emit.reshape(tensor, &[-1])?;
    let bounds = [0, i64::MAX, 0, options.slice_p as i64].map(|n| emit.ints(&[n]));
    emit.op("Slice", &[&[flat], &bounds[..]].concat(), Attributes::new())
}

/// The new `d`.
fn estimate(
    options: &Optimizer,
    emit: &mut Emit,
    shared: &Shared,
    products: Value,
    sizes: Value,
    next: &mut Vec<(Variable, Value)>,
) -> Result<Value> {
    let (d, old_largest) = (shared.d.value, shared.largest.value);
    let kept = emit.mul_scalar(shared.numerator.value, options.beta3())?;
    let products = emit.mul(products, shared.product_weight)?;
    let numerator = emit.add(kept, products)?;
    let found = emit.mul_scalar(numerator, options.d_coef)?;
    let found = emit.div(found, sizes)?;
    let largest = emit.op("Max", &[old_largest, found], Attributes::new())?;
    let mut next_d = largest;
    if let Some(growth) = options.growth_rate {
        let risen = emit.op("Max", &[d, found], Attributes::new())?;
        let is_initial = compare(emit, "Equal", d, options.d0)?;
        let base = emit.select(is_initial, risen, d)?;
        let bound = emit.mul_scalar(base, growth)?;
        next_d = emit.op("Min", &[largest, bound], Attributes::new())?;
    }
    next.extend([(shared.numerator.clone(), numerator), (shared.largest.clone(), largest), (shared.d.clone(), next_d)]);
    Ok(next_d)
}

/// The new parameter.
fn updated(
    options: &Optimizer,
    emit: &mut Emit,
    u: &Update,
    moments: &Moments,
    shared: &Shared,
    d: Value,
) -> Result<Value> {
    let dtype = emit.dtype(u.w.value)?;
    let size = by_factor(emit, shared.size, u.factor)?;
    let epsilon = emit.mul_scalar(d, options.epsilon.unwrap_or(1e-8))?;
    let epsilon = emit.cast(epsilon, dtype)?;
    let root = emit.unary("Sqrt", moments.second)?;
    let scale = emit.add(root, epsilon)?;
    let mut w = u.w.value;
    if options.decouples() && options.weight_decay != 0.0 {
        let share = emit.mul_scalar(size, options.weight_decay)?;
        let share = emit.cast(share, dtype)?;
        w = shrunk(emit, w, share)?;
    }
    let length = if options.beta1 > 0.0 { size } else { emit.mul(size, d)? };
    let change = emit.div(moments.first, scale)?;
    let change = scaled(emit, change, length)?;
    emit.sub(w, change)
}
