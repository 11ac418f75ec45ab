//! The activations of recurrent cells: named in an attribute, with `alpha` and `beta` from two lists. Each activation that has
//! one takes the next entry of a list; where the list has ended, its default.

use crate::error::Result;
use crate::graph::Value;
use crate::ops::Emit;
use crate::ops::activation::{sigmoid, softplus};
use crate::rng::Draw;
use crate::{Attribute, Attributes, bail, ensure};

/// A kind: its name, the defaults of its parameters (`None`: it has none), and the function of `x`, `alpha`, `beta`.
struct Kind {
    name: &'static str,
    alpha: Option<f32>,
    beta: Option<f32>,
    apply: fn(f64, f64, f64) -> f64,
}

const fn kind(name: &'static str, alpha: Option<f32>, beta: Option<f32>, apply: fn(f64, f64, f64) -> f64) -> Kind {
    Kind { name, alpha, beta, apply }
}

const KINDS: &[Kind] = &[
    kind("Relu", None, None, |x, _, _| if x < 0.0 { 0.0 } else { x }),
    kind("Tanh", None, None, |x, _, _| x.tanh()),
    kind("Sigmoid", None, None, |x, _, _| sigmoid(x)),
    kind("Affine", Some(1.0), Some(0.0), |x, alpha, beta| alpha * x + beta),
    kind("LeakyRelu", Some(0.01), None, |x, alpha, _| if x < 0.0 { alpha * x } else { x }),
    kind("ThresholdedRelu", Some(1.0), None, |x, alpha, _| if x > alpha { x } else { 0.0 }),
    kind("ScaledTanh", Some(1.0), Some(1.0), |x, alpha, beta| alpha * (beta * x).tanh()),
    kind("HardSigmoid", Some(0.2), Some(0.5), |x, alpha, beta| (alpha * x + beta).clamp(0.0, 1.0)),
    kind("Elu", Some(1.0), None, |x, alpha, _| if x < 0.0 { alpha * x.exp_m1() } else { x }),
    kind("Softsign", None, None, |x, _, _| x / (1.0 + x.abs())),
    kind("Softplus", None, None, |x, _, _| softplus(x)),
];

/// An activation with its parameters.
#[derive(Clone, Copy)]
pub(super) struct Activation {
    kind: &'static Kind,
    alpha: f32,
    beta: f32,
}

impl Activation {
    /// What the attribute calls it.
    pub(super) fn name(&self) -> &'static str {
        self.kind.name
    }
    /// Its value at `x`.
    pub(super) fn apply(&self, x: f64) -> f64 {
        (self.kind.apply)(x, f64::from(self.alpha), f64::from(self.beta))
    }
    /// The same in operators.
    pub(super) fn emit(&self, emit: &mut Emit, x: Value) -> Result<Value> {
        let (alpha, beta) = (f64::from(self.alpha), f64::from(self.beta));
        match self.kind.name {
            "Affine" => {
                let scaled = emit.mul_scalar(x, alpha)?;
                emit.add_scalar(scaled, beta)
            }
            "ScaledTanh" => {
                let scaled = emit.mul_scalar(x, beta)?;
                let tanh = emit.unary("Tanh", scaled)?;
                emit.mul_scalar(tanh, alpha)
            }
            name => {
                let mut attrs = Attributes::new();
                if self.kind.alpha.is_some() {
                    attrs.set("alpha", self.alpha);
                }
                if self.kind.beta.is_some() {
                    attrs.set("beta", self.beta);
                }
                emit.op(name, &[x], attrs)
            }
        }
    }
}

/// The activations of every direction.
pub(super) fn of_directions(attrs: &Attributes, defaults: &[&str], count: usize) -> Result<Vec<Vec<Activation>>> {
    let names: Vec<String> = match attrs.get_strings("activations")? {
        Some(names) => names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect(),
        None => defaults.iter().map(|name| name.to_string()).cycle().take(defaults.len() * count).collect(),
    };
    // `RNN` declares a default for two directions.
    let wanted = defaults.len() * count;
    ensure!(names.len() >= wanted, "{} activations, expected {wanted}", names.len());
    let mut alphas = attrs.get_floats("activation_alpha")?.unwrap_or_default().iter();
    let mut betas = attrs.get_floats("activation_beta")?.unwrap_or_default().iter();
    let mut found = Vec::new();
    for name in names.iter().take(wanted) {
        let Some(kind) = KINDS.iter().find(|kind| kind.name.eq_ignore_ascii_case(name)) else {
            bail!("the activation \"{name}\" is not known");
        };
        let next = |default: Option<f32>, list: &mut std::slice::Iter<f32>| {
            default.map_or(0.0, |default| list.next().copied().unwrap_or(default))
        };
        let (alpha, beta) = (next(kind.alpha, &mut alphas), next(kind.beta, &mut betas));
        found.push(Activation { kind, alpha, beta });
    }
    Ok(found.chunks(defaults.len()).map(<[Activation]>::to_vec).collect())
}

/// Draws activations for a sample: those that are smooth, so that finite differences are meant.
pub(super) fn draw(draw: &mut Draw, count: usize, attrs: &mut Attributes) {
    const SMOOTH: &[&str] = &["Tanh", "sigmoid", "Affine", "ScaledTanh", "Elu", "Softsign", "Softplus", "LeakyRelu"];
    let names = (0..count).map(|_| draw.pick(SMOOTH).as_bytes().to_vec()).collect();
    attrs.set("activations", Attribute::Strings(names));
    attrs.set("activation_alpha", vec![draw.float(0.3, 1.2) as f32]);
    attrs.set("activation_beta", vec![draw.float(0.3, 1.2) as f32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_go_to_those_that_have_some() {
        let names = ["hardsigmoid", "Tanh", "LeakyRelu"].map(|name| name.as_bytes().to_vec());
        let attrs = Attributes::new()
            .with("activations", Attribute::Strings(names.to_vec()))
            .with("activation_alpha", vec![0.3f32, 0.1]);
        let found = of_directions(&attrs, &["Sigmoid", "Tanh", "Tanh"], 1).unwrap().remove(0);
        let parameters: Vec<(f32, f32)> = found.iter().map(|a| (a.alpha, a.beta)).collect();
        assert_eq!(parameters, [(0.3, 0.5), (0.0, 0.0), (0.1, 0.0)]);
        assert!(of_directions(&attrs, &["Sigmoid", "Tanh", "Tanh"], 2).is_err());
    }
}
