//! Where differentiable operators have no derivative, and what their gradient is there.
//!
//! A table of points: an operator's inputs, and the gradient of the sum of its outputs by its first input that the rules of this
//! crate give. `ir/tests/operators.rs` computes them all. Not in the table: poles (`Log`, `Reciprocal`, `Div`, `Pow`), what is piecewise constant and
//! has the gradient 0 (`Floor`, `Round`, `Sign`, comparisons), ties of `TopK`, of scatters that keep an extremum and of pools over regions, whose
//! gradient goes to an element that was chosen, and interpolations (`GridSample`, `RoiAlign`, `DeformConv`) where a place lies on a grid line.

use super::Sample;
use crate::graph::Operator;
use crate::{Attributes, Tensor};

/// A point without a derivative.
pub struct Kink {
    /// The operator.
    pub op: &'static str,
    /// Where.
    pub at: &'static str,
    /// What the gradient is, in words.
    pub taken: &'static str,
    /// An instance at such points.
    pub sample: fn() -> Sample,
    /// The gradient of the sum of its outputs by input 0 there.
    pub gradient: &'static [f64],
}

/// All of them, in alphabetical order.
pub const KINKS: &[Kink] = &[
    kink("Abs", "x = 0", "0", || at("Abs", none(), &[&[0.0]]), &[0.0]),
    kink("Acos", "x = -1, 1", "-∞, the limit", || at("Acos", none(), &[&[-1.0, 1.0]]), &[f64::NEG_INFINITY; 2]),
    kink("Acosh", "x = 1", "∞, the limit", || at("Acosh", none(), &[&[1.0]]), &[f64::INFINITY]),
    kink("Asin", "x = -1, 1", "∞, the limit", || at("Asin", none(), &[&[-1.0, 1.0]]), &[f64::INFINITY; 2]),
    kink("Clip", "x on a bound", "0, as outside", || clip(&[-1.0, 1.0]), &[0.0, 0.0]),
    kink("Elu", "x = 0, α ≠ 1", "1, as above 0", || at("Elu", none().with("alpha", 2.0f32), &[&[0.0]]), &[1.0]),
    kink(
        "GlobalMaxPool",
        "equal maxima",
        "1, divided among them",
        || image("GlobalMaxPool", none(), &[1.0, 3.0, 3.0]),
        &[0.0, 0.5, 0.5],
    ),
    kink("HardSigmoid", "x = -2.5, 2.5", "0, as outside", || at("HardSigmoid", none(), &[&[-2.5, 2.5]]), &[0.0, 0.0]),
    kink("HardSwish", "x = -3, 3", "0 and 1, as outside", || at("HardSwish", none(), &[&[-3.0, 3.0]]), &[0.0, 1.0]),
    kink("LeakyRelu", "x = 0", "1, as above 0", || at("LeakyRelu", none().with("alpha", 0.25f32), &[&[0.0]]), &[1.0]),
    kink(
        "LpNormalization",
        "x = 0",
        "1, as with norm 1",
        || at("LpNormalization", none().with("axis", 0i64), &[&[0.0, 0.0]]),
        &[1.0, 1.0],
    ),
    kink("Max", "equal inputs", "1 to the first", || at("Max", none(), &[&[1.0], &[1.0]]), &[1.0]),
    kink(
        "MaxPool",
        "equal maxima in a window",
        "1 to the first",
        || image("MaxPool", none().with("kernel_shape", vec![3i64]), &[1.0, 3.0, 3.0]),
        &[0.0, 1.0, 0.0],
    ),
    kink("Min", "equal inputs", "1 to the first", || at("Min", none(), &[&[1.0], &[1.0]]), &[1.0]),
    kink("Mod", "x a multiple of the divisor", "1", || at("Mod", none().with("fmod", 1i64), &[&[4.0], &[2.0]]), &[1.0]),
    kink("PRelu", "x = 0", "1, as above 0", || at("PRelu", none(), &[&[0.0], &[0.25]]), &[1.0]),
    kink("ReduceL1", "x = 0", "0", || at("ReduceL1", none(), &[&[0.0, 1.0]]), &[0.0, 1.0]),
    kink("ReduceL2", "x = 0", "0", || at("ReduceL2", none(), &[&[0.0, 0.0]]), &[0.0, 0.0]),
    kink(
        "ReduceMax",
        "equal maxima",
        "1, divided among them",
        || at("ReduceMax", none(), &[&[1.0, 3.0, 3.0]]),
        &[0.0, 0.5, 0.5],
    ),
    kink(
        "ReduceMin",
        "equal minima",
        "1, divided among them",
        || at("ReduceMin", none(), &[&[4.0, 3.0, 3.0]]),
        &[0.0, 0.5, 0.5],
    ),
    kink("Relu", "x = 0", "0", || at("Relu", none(), &[&[0.0]]), &[0.0]),
    kink(
        "Selu",
        "x = 0",
        "γ, as above 0",
        || at("Selu", none().with("alpha", 2.0f32).with("gamma", 3.0f32), &[&[0.0]]),
        &[3.0],
    ),
    kink("Shrink", "x = -λ, λ", "0, as between them", || at("Shrink", none(), &[&[-0.5, 0.5]]), &[0.0, 0.0]),
    kink("Sqrt", "x = 0", "∞, the limit", || at("Sqrt", none(), &[&[0.0]]), &[f64::INFINITY]),
    kink("ThresholdedRelu", "x = α", "0, as below it", || at("ThresholdedRelu", none(), &[&[1.0]]), &[0.0]),
];

const fn kink(
    op: &'static str,
    at: &'static str,
    taken: &'static str,
    sample: fn() -> Sample,
    gradient: &'static [f64],
) -> Kink {
    Kink { op, at, taken, sample, gradient }
}

fn none() -> Attributes {
    Attributes::new()
}

/// Vectors.
fn at(name: &str, attrs: Attributes, inputs: &[&[f64]]) -> Sample {
    instance(name, attrs, inputs.iter().map(|x| Tensor::from_vec([x.len()], x.to_vec())).collect())
}

/// Between -1 and 1.
fn clip(x: &[f64]) -> Sample {
    let bounds = [-1.0, 1.0].map(|bound| Tensor::from_vec([], vec![bound]));
    instance("Clip", none(), [vec![Tensor::from_vec([x.len()], x.to_vec())], bounds.to_vec()].concat())
}

/// Batch 1, one channel, one axis.
fn image(name: &str, attrs: Attributes, x: &[f64]) -> Sample {
    instance(name, attrs, vec![Tensor::from_vec([1, 1, x.len()], x.to_vec())])
}

fn instance(name: &str, attrs: Attributes, inputs: Vec<Tensor>) -> Sample {
    let check = (0..inputs.len()).map(|slot| slot == 0).collect();
    Sample { check, ..Sample::new(Operator::onnx(name, attrs), inputs) }
}
