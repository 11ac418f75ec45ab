//! Operators as register programs: how each elementwise or row operator is written with the instructions of
//! [`program`](super::program).

use super::program::{Bin, Builder, Fold, Src, Un};
use sartor_ir::{Attributes, Operator, Result, SARTOR_DOMAIN, ops};

/// What an operator is to the fuser.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Every output element depends on one element of each (broadcast) input.
    Elementwise,
    /// A row of the outputs depends on a row of the inputs (softmax, normalisation).
    Row,
}

/// The class of an operator; `None` if it is not one of these.
pub fn class(op: &Operator) -> Option<Class> {
    if !op.domain.is_empty() {
        return match (op.domain.as_str(), op.name.as_str()) {
            (SARTOR_DOMAIN, "GuardedSoftmax") => Some(Class::Row),
            (SARTOR_DOMAIN, "Gate") => Some(Class::Elementwise),
            _ => None,
        };
    }
    match op.name.as_str() {
        "Softmax" | "LogSoftmax" | "LayerNormalization" | "RMSNormalization" => Some(Class::Row),
        // Views, or left to the reference.
        "Cast" | "Identity" | "IsInf" => None,
        name => ops::is_elementwise(name).then_some(Class::Elementwise),
    }
}

/// Writes an operator of class elementwise or row; `cols` is the length of a row. Missing optional inputs are `None`.
pub fn emit(b: &mut Builder, op: &Operator, args: &[Option<Src>], cols: usize) -> Result<Option<Vec<Src>>> {
    let given: Vec<Src> = args.iter().flatten().copied().collect();
    let one = match (op.name.as_str(), given.as_slice()) {
        ("LayerNormalization" | "RMSNormalization", _) => return normalise(b, op, args, cols).map(Some),
        ("Softmax", &[x]) => softmax(b, x),
        ("GuardedSoftmax", &[x]) => {
            let y = softmax(b, x);
            let not_a_number = b.un(Un::IsNan, y);
            b.select(not_a_number, Src::Const(0.0), y)
        }
        ("LogSoftmax", &[x]) => log_softmax(b, x),
        ("Clip", _) => clip(b, args),
        ("BatchNormalization", &[x, scale, bias, mean, variance]) => {
            let shifted = b.with(Bin::Add, variance, op.attrs.float("epsilon", 1e-5)?);
            let root = b.un(Un::Sqrt, shifted);
            let factor = b.bin(Bin::Div, scale, root);
            let centred = b.bin(Bin::Sub, x, mean);
            let y = b.bin(Bin::Mul, centred, factor);
            b.bin(Bin::Add, y, bias)
        }
        ("Where", &[c, x, y]) => b.select(c, x, y),
        ("Max" | "Min" | "Sum" | "Mean", many) => variadic(b, &op.name, many),
        (name, &[x]) => match unary(b, name, &op.attrs, x)? {
            Some(y) => y,
            None => return Ok(None),
        },
        (name, &[x, y]) => match binary(b, name, x, y) {
            Some(z) => z,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some(vec![one]))
}

fn unary(b: &mut Builder, name: &str, attrs: &Attributes, x: Src) -> Result<Option<Src>> {
    let simple = match name {
        "Abs" => Un::Abs,
        "Ceil" => Un::Ceil,
        "Cos" => Un::Cos,
        "Erf" => Un::Erf,
        "Exp" => Un::Exp,
        "Floor" => Un::Floor,
        "IsNaN" => Un::IsNan,
        "Log" => Un::Log,
        "Neg" => Un::Neg,
        "Not" => Un::Not,
        "Reciprocal" => Un::Recip,
        "Relu" => Un::Relu,
        "Round" => Un::Round,
        "Sigmoid" => Un::Sigmoid,
        "Sign" => Un::Sign,
        "Sin" => Un::Sin,
        "Sqrt" => Un::Sqrt,
        "Tanh" => Un::Tanh,
        _ => return activation(b, name, attrs, x),
    };
    Ok(Some(b.un(simple, x)))
}

/// `x > 0 ? x : y`
fn positive_or(b: &mut Builder, x: Src, y: Src) -> Src {
    let negative = b.with(Bin::Less, x, 0.0);
    b.select(negative, y, x)
}

fn activation(b: &mut Builder, name: &str, attrs: &Attributes, x: Src) -> Result<Option<Src>> {
    let y = match name {
        "LeakyRelu" => {
            let scaled = b.with(Bin::Mul, x, attrs.float("alpha", 0.01)?);
            positive_or(b, x, scaled)
        }
        "Elu" => exponential_unit(b, x, 1.0, attrs.float("alpha", 1.0)?, 1.0),
        "Celu" => {
            let alpha = attrs.float("alpha", 1.0)?;
            exponential_unit(b, x, alpha, alpha, 1.0)
        }
        "Selu" => {
            let alpha = attrs.float("alpha", 1.673_263_2)?;
            exponential_unit(b, x, 1.0, alpha, attrs.float("gamma", 1.050_701)?)
        }
        "HardSigmoid" => hard_sigmoid(b, x, attrs.float("alpha", 0.2)?, attrs.float("beta", 0.5)?),
        "HardSwish" => {
            let gate = hard_sigmoid(b, x, 1.0 / 6.0, 0.5);
            b.bin(Bin::Mul, x, gate)
        }
        "Swish" => {
            let scaled = b.with(Bin::Mul, x, attrs.float("alpha", 1.0)?);
            let gate = b.un(Un::Sigmoid, scaled);
            b.bin(Bin::Mul, x, gate)
        }
        "Softplus" => softplus(b, x),
        "Mish" => {
            let soft = softplus(b, x);
            let gate = b.un(Un::Tanh, soft);
            b.bin(Bin::Mul, x, gate)
        }
        "Softsign" => {
            let size = b.un(Un::Abs, x);
            let below = b.with(Bin::Add, size, 1.0);
            b.bin(Bin::Div, x, below)
        }
        "ThresholdedRelu" => {
            let alpha = Src::Const(attrs.float("alpha", 1.0)?);
            let above = b.bin(Bin::Less, alpha, x);
            b.select(above, x, Src::Const(0.0))
        }
        "Gelu" => gelu(b, x, attrs.str("approximate", "none")? == "tanh"),
        "Gate" if attrs.flag("hard", false)? => {
            let open = b.bin(Bin::Less, Src::Const(0.0), x);
            let not_a_number = b.un(Un::IsNan, x);
            b.select(not_a_number, x, open)
        }
        "Gate" => {
            let above = b.with(Bin::Max, x, 0.0);
            b.with(Bin::Min, above, 1.0)
        }
        _ => return Ok(None),
    };
    Ok(Some(y))
}

/// `γ · (x < 0 ? α (exp(x / s) − 1) : x)`
fn exponential_unit(b: &mut Builder, x: Src, s: f32, alpha: f32, gamma: f32) -> Src {
    let inner = if s == 1.0 { x } else { b.with(Bin::Div, x, s) };
    let e = b.un(Un::Exp, inner);
    let e = b.with(Bin::Sub, e, 1.0);
    let e = b.with(Bin::Mul, e, alpha);
    let y = positive_or(b, x, e);
    if gamma == 1.0 { y } else { b.with(Bin::Mul, y, gamma) }
}

fn hard_sigmoid(b: &mut Builder, x: Src, alpha: f32, beta: f32) -> Src {
    let y = b.with(Bin::Mul, x, alpha);
    let y = b.with(Bin::Add, y, beta);
    let y = b.with(Bin::Max, y, 0.0);
    b.with(Bin::Min, y, 1.0)
}

/// `max(x, 0) + ln(1 + e^−|x|)`
fn softplus(b: &mut Builder, x: Src) -> Src {
    let size = b.un(Un::Abs, x);
    let negative = b.un(Un::Neg, size);
    let e = b.un(Un::Exp, negative);
    let sum = b.with(Bin::Add, e, 1.0);
    let log = b.un(Un::Log, sum);
    let positive = b.with(Bin::Max, x, 0.0);
    b.bin(Bin::Add, positive, log)
}

fn gelu(b: &mut Builder, x: Src, approximate: bool) -> Src {
    let inner = if approximate {
        let square = b.bin(Bin::Mul, x, x);
        let cube = b.with(Bin::Mul, square, 0.044_715);
        let factor = b.with(Bin::Add, cube, 1.0);
        let y = b.bin(Bin::Mul, x, factor);
        let y = b.with(Bin::Mul, y, 0.797_884_6);
        b.un(Un::Tanh, y)
    } else {
        let y = b.with(Bin::Mul, x, std::f32::consts::FRAC_1_SQRT_2);
        b.un(Un::Erf, y)
    };
    let sum = b.with(Bin::Add, inner, 1.0);
    let half = b.with(Bin::Mul, x, 0.5);
    b.bin(Bin::Mul, half, sum)
}

fn binary(b: &mut Builder, name: &str, x: Src, y: Src) -> Option<Src> {
    let f = match name {
        "Add" => Bin::Add,
        "Sub" => Bin::Sub,
        "Mul" | "And" => Bin::Mul,
        "Div" => Bin::Div,
        "Less" => Bin::Less,
        "LessOrEqual" => Bin::LessEqual,
        "Equal" => Bin::Equal,
        "Or" => Bin::Max,
        "Greater" => return Some(b.bin(Bin::Less, y, x)),
        "GreaterOrEqual" => return Some(b.bin(Bin::LessEqual, y, x)),
        "Xor" => {
            let same = b.bin(Bin::Equal, x, y);
            return Some(b.un(Un::Not, same));
        }
        "PRelu" => {
            let scaled = b.bin(Bin::Mul, x, y);
            return Some(positive_or(b, x, scaled));
        }
        "Pow" => return Some(power(b, x, y)),
        _ => return None,
    };
    Some(b.bin(f, x, y))
}

/// Small constant exponents are products and roots.
fn power(b: &mut Builder, x: Src, y: Src) -> Src {
    match y {
        Src::Const(1.0) => b.un(Un::Copy, x),
        Src::Const(2.0) => b.bin(Bin::Mul, x, x),
        Src::Const(3.0) => {
            let square = b.bin(Bin::Mul, x, x);
            b.bin(Bin::Mul, square, x)
        }
        Src::Const(-1.0) => b.un(Un::Recip, x),
        _ => b.bin(Bin::Pow, x, y),
    }
}

fn variadic(b: &mut Builder, name: &str, many: &[Src]) -> Src {
    let f = match name {
        "Max" => Bin::Max,
        "Min" => Bin::Min,
        _ => Bin::Add,
    };
    let mut sum = many.first().copied().unwrap_or(Src::Const(0.0));
    for &next in many.iter().skip(1) {
        sum = b.bin(f, sum, next);
    }
    if name == "Mean" { b.with(Bin::Mul, sum, 1.0 / many.len() as f32) } else { sum }
}

fn clip(b: &mut Builder, args: &[Option<Src>]) -> Src {
    let mut y = args.first().copied().flatten().unwrap_or(Src::Const(0.0));
    if let Some(low) = args.get(1).copied().flatten() {
        y = b.bin(Bin::Max, y, low);
    }
    if let Some(high) = args.get(2).copied().flatten() {
        y = b.bin(Bin::Min, y, high);
    }
    y
}

/// `x − max x`, its exponential, and the sum of that along the row.
fn exponentials(b: &mut Builder, x: Src) -> (Src, Src, Src) {
    let top = b.fold(Fold::Max, x);
    let y = b.bin(Bin::Sub, x, top);
    let e = b.un(Un::Exp, y);
    let sum = b.fold(Fold::Sum, e);
    (y, e, sum)
}

fn softmax(b: &mut Builder, x: Src) -> Src {
    let (_, e, sum) = exponentials(b, x);
    let inverse = b.un(Un::Recip, sum);
    b.bin(Bin::Mul, e, inverse)
}

fn log_softmax(b: &mut Builder, x: Src) -> Src {
    let (y, _, sum) = exponentials(b, x);
    let log = b.un(Un::Log, sum);
    b.bin(Bin::Sub, y, log)
}

/// The mean of a row.
fn mean(b: &mut Builder, x: Src, cols: usize) -> Src {
    let sum = b.fold(Fold::Sum, x);
    b.with(Bin::Mul, sum, 1.0 / cols as f32)
}

/// `(x − mean) / √(var + ε) · scale + bias`, the mean left out for RMSNormalization.
fn normalise(b: &mut Builder, op: &Operator, args: &[Option<Src>], cols: usize) -> Result<Vec<Src>> {
    let epsilon = op.attrs.float("epsilon", 1e-5)?;
    let arg = |i: usize| args.get(i).copied().flatten();
    let x = arg(0).unwrap_or(Src::Const(0.0));
    let centred = op.name == "LayerNormalization";
    let average = if centred { mean(b, x, cols) } else { Src::Const(0.0) };
    let d = if centred { b.bin(Bin::Sub, x, average) } else { x };
    let square = b.bin(Bin::Mul, d, d);
    let variance = mean(b, square, cols);
    let shifted = b.with(Bin::Add, variance, epsilon);
    let root = b.un(Un::Sqrt, shifted);
    let inverse = b.un(Un::Recip, root);
    let mut y = b.bin(Bin::Mul, d, inverse);
    if let Some(scale) = arg(1) {
        y = b.bin(Bin::Mul, y, scale);
    }
    if let Some(bias) = arg(2) {
        y = b.bin(Bin::Add, y, bias);
    }
    Ok(vec![y, average, inverse])
}
