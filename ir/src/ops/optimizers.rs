//! The optimizers of `ai.onnx.preview.training`: one step of Adagrad, Adam or Momentum for any number of tensors, by
//! decomposition.
//!
//! ```text
//! all         g' = norm_coefficient · x + g                   T: the number of steps before this one, R: the rate
//! Adagrad     h' = h + g'²                                    x' = x − R / (1 + T · decay_factor) · g' / (√h' + ε)
//! Adam        v' = α v + (1 − α) g',  h' = β h + (1 − β) g'²   x' = (1 − norm_coefficient_post) (x − R_T · v' / (√h' + ε))
//!             R_T = R √(1 − βᵀ) / (1 − αᵀ), but R if T is 0
//! Momentum    v' = α v + β_T g',  β_T = β, but 1 if T is 0      standard x' = x − R v',  nesterov x' = x − R (g' + α v')
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adam.html> and siblings. Inputs: R, T, then all x, all g, all v
//! (not Adagrad), all h (not Momentum); outputs all x', all v', all h'. R is a scalar, T an `int64` scalar; the tensors that belong
//! together have one shape. Autodiff's own optimizers are passes; these rows run and differentiate what a file holds.

use super::{Emit, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Tensor, bail, ensure};

/// The domain of these operators.
pub const DOMAIN: &str = "ai.onnx.preview.training";

/// What the rows share; `inputs` and `outputs` are those of one tensor.
const OPTIMIZER: OpDef = OpDef {
    domain: DOMAIN,
    inputs: (5, usize::MAX),
    outputs: (2, usize::MAX),
    grad: Gradient::Decompose,
    ..OpDef::DEFAULT
};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Adagrad",
        infer: |cx| infer(cx, 1),
        decompose: Some(|emit, id| step(emit, id, 1, adagrad)),
        flops: |cx| 9 * cx.output_len(0),
        sample: Some(|draw| {
            let attrs = Attributes::new().with("decay_factor", 0.1f32).with("epsilon", 0.01f32);
            sample(draw, "Adagrad", 1, attrs.with("norm_coefficient", 0.05f32))
        }),
        ..OPTIMIZER
    },
    OpDef {
        name: "Adam",
        inputs: (6, usize::MAX),
        outputs: (3, usize::MAX),
        infer: |cx| infer(cx, 2),
        decompose: Some(|emit, id| step(emit, id, 2, adam)),
        flops: |cx| 14 * cx.output_len(0),
        sample: Some(|draw| {
            let attrs = Attributes::new().with("alpha", 0.7f32).with("beta", 0.8f32).with("epsilon", 0.01f32);
            sample(draw, "Adam", 2, attrs.with("norm_coefficient_post", 0.05f32))
        }),
        ..OPTIMIZER
    },
    OpDef {
        name: "Momentum",
        infer: |cx| infer(cx, 1),
        decompose: Some(|emit, id| step(emit, id, 1, momentum)),
        flops: |cx| 7 * cx.output_len(0),
        sample: Some(|draw| {
            let mode = *draw.pick(&["standard", "nesterov"]);
            let attrs = Attributes::new().with("alpha", 0.7f32).with("beta", 0.8f32).with("mode", mode);
            sample(draw, "Momentum", 1, attrs.with("norm_coefficient", 0.05f32))
        }),
        ..OPTIMIZER
    },
];

/// The number of tensors that a node with this many inputs updates, each with `states` states.
fn count(inputs: usize, states: usize) -> Result<usize> {
    let rest = inputs.saturating_sub(2);
    let each = 2 + states;
    ensure!(rest > 0 && rest.is_multiple_of(each), "{inputs} inputs, expected 2 and {each} for every tensor");
    Ok(rest / each)
}

/// Every output has the type of what it updates.
fn infer(cx: &mut InferCx, states: usize) -> Result<()> {
    let count = count(cx.input_count(), states)?;
    ensure!(cx.output_count() <= count * (1 + states), "{} outputs for {count} tensors", cx.output_count());
    for i in 0..count {
        let ty = cx.ty(2 + i)?.clone();
        let dtype = cx.dtype(2 + i)?;
        ensure!(dtype.is_float(), "tensor {i} is {dtype}, expected a floating-point type");
        for part in 0..=states {
            // Gradients stand between the tensors and their states.
            let source = if part == 0 { 2 + i } else { 2 + (part + 1) * count + i };
            ensure!(cx.dtype(source)? == dtype, "tensor {i} is {dtype}, input {source} is {}", cx.dtype(source)?);
            cx.set(part * count + i, ty.clone());
        }
    }
    Ok(())
}

/// One tensor's part of a step: rate and number of steps as scalars of its element type, the tensor, and its regularised gradient.
struct Update<'a> {
    attrs: &'a Attributes,
    rate: Value,
    steps: Value,
    /// Whether this is the first step.
    first: Value,
    x: Value,
    g: Value,
    states: &'a [Value],
}

/// The new tensor and its new states.
type Rule = fn(&mut Emit, &Update) -> Result<Vec<Value>>;

fn step(emit: &mut Emit, id: NodeId, states: usize, rule: Rule) -> Result<Vec<Value>> {
    let attrs = emit.attrs(id);
    let inputs: Option<Vec<Value>> = emit.graph.node_inputs(id).into_iter().collect();
    let Some(inputs) = inputs else { bail!("one of its inputs is left out") };
    let count = count(inputs.len(), states)?;
    let zero = emit.constant(Tensor::scalar(0i64));
    let steps = emit.cast(inputs[1], DType::I64)?;
    let first = emit.op("Equal", &[steps, zero], Attributes::new())?;
    let mut columns = vec![Vec::new(); 1 + states];
    for i in 0..count {
        let of: Vec<Value> = inputs[2..].iter().copied().skip(i).step_by(count).collect();
        let (x, g) = (of[0], of[1]);
        let dtype = emit.dtype(x)?;
        let penalty = emit.mul_scalar(x, number(&attrs, "norm_coefficient", 0.0)?)?;
        let g = emit.add(penalty, g)?;
        let (rate, steps) = (emit.cast(inputs[0], dtype)?, emit.cast(inputs[1], dtype)?);
        let update = Update { attrs: &attrs, rate, steps, first, x, g, states: &of[2..] };
        for (column, value) in columns.iter_mut().zip(rule(emit, &update)?) {
            column.push(value);
        }
    }
    Ok(columns.concat())
}

fn number(attrs: &Attributes, name: &str, default: f32) -> Result<f64> {
    Ok(f64::from(attrs.float(name, default)?))
}

/// `a · x + b · y`
fn blend(emit: &mut Emit, (a, x): (f64, Value), (b, y): (f64, Value)) -> Result<Value> {
    let (x, y) = (emit.mul_scalar(x, a)?, emit.mul_scalar(y, b)?);
    emit.add(x, y)
}

/// `y / (√h + ε)`
fn over_root(emit: &mut Emit, y: Value, h: Value, epsilon: f64) -> Result<Value> {
    let root = emit.unary("Sqrt", h)?;
    let root = emit.add_scalar(root, epsilon)?;
    emit.div(y, root)
}

fn adagrad(emit: &mut Emit, u: &Update) -> Result<Vec<Value>> {
    let decay = emit.mul_scalar(u.steps, number(u.attrs, "decay_factor", 0.0)?)?;
    let decay = emit.add_scalar(decay, 1.0)?;
    let rate = emit.div(u.rate, decay)?;
    let square = emit.square(u.g)?;
    let h = emit.add(u.states[0], square)?;
    let direction = over_root(emit, u.g, h, number(u.attrs, "epsilon", 1e-6)?)?;
    Ok(vec![descend(emit, u.x, rate, direction)?, h])
}

/// `x − rate · direction`
fn descend(emit: &mut Emit, x: Value, rate: Value, direction: Value) -> Result<Value> {
    let change = emit.mul(rate, direction)?;
    emit.sub(x, change)
}

fn adam(emit: &mut Emit, u: &Update) -> Result<Vec<Value>> {
    let (alpha, beta) = (number(u.attrs, "alpha", 0.9)?, number(u.attrs, "beta", 0.999)?);
    let v = blend(emit, (alpha, u.states[0]), (1.0 - alpha, u.g))?;
    let square = emit.square(u.g)?;
    let h = blend(emit, (beta, u.states[1]), (1.0 - beta, square))?;
    // In the first step the correction is not used, and must not be 0 / 0 for the gradient's sake.
    let one = emit.scalar(1.0, u.x)?;
    let steps = emit.select(u.first, one, u.steps)?;
    let (of_v, of_h) = (one_minus_power(emit, alpha, steps)?, one_minus_power(emit, beta, steps)?);
    let root = emit.unary("Sqrt", of_h)?;
    let scaled = emit.mul(u.rate, root)?;
    let corrected = emit.div(scaled, of_v)?;
    let rate = emit.select(u.first, u.rate, corrected)?;
    let direction = over_root(emit, v, h, number(u.attrs, "epsilon", 1e-6)?)?;
    let x = descend(emit, u.x, rate, direction)?;
    let kept = 1.0 - number(u.attrs, "norm_coefficient_post", 0.0)?;
    Ok(vec![emit.mul_scalar(x, kept)?, v, h])
}

/// `1 − baseᵀ`
fn one_minus_power(emit: &mut Emit, base: f64, steps: Value) -> Result<Value> {
    let base = emit.scalar(base, steps)?;
    let power = emit.op("Pow", &[base, steps], Attributes::new())?;
    emit.scalar_minus(1.0, power)
}

fn momentum(emit: &mut Emit, u: &Update) -> Result<Vec<Value>> {
    let (alpha, beta) = (number(u.attrs, "alpha", 0.0)?, number(u.attrs, "beta", 0.0)?);
    let nesterov = match u.attrs.str("mode", "standard")? {
        "standard" => false,
        "nesterov" => true,
        other => bail!("attribute `mode` is \"{other}\", expected \"standard\" or \"nesterov\""),
    };
    let (one, beta) = (emit.scalar(1.0, u.x)?, emit.scalar(beta, u.x)?);
    let share = emit.select(u.first, one, beta)?;
    let (kept, added) = (emit.mul_scalar(u.states[0], alpha)?, emit.mul(u.g, share)?);
    let v = emit.add(kept, added)?;
    let direction = if nesterov { blend(emit, (1.0, u.g), (alpha, v))? } else { v };
    Ok(vec![descend(emit, u.x, u.rate, direction)?, v])
}

fn sample(draw: &mut Draw, name: &str, states: usize, attrs: Attributes) -> Sample {
    const SHAPES: [&[&[usize]]; 2] = [&[&[2, 3]], &[&[2], &[3, 1]]];
    let shapes = *draw.pick(&SHAPES);
    let mut inputs = vec![draw.tensor(&[], 0.1, 0.5), Tensor::scalar(draw.int(0, 3))];
    for part in 0..2 + states {
        // States of squares are positive.
        let low = if part < 2 { -1.0 } else { 0.5 };
        inputs.extend(shapes.iter().map(|shape| draw.tensor(shape, low, 1.5)));
    }
    let outputs = shapes.len() * (1 + states);
    Sample { outputs, ..Sample::new(Operator::of_domain(DOMAIN, name, attrs), inputs) }
}
