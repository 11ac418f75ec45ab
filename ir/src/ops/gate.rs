//! `ai.sartor::Gate`: what a gate network says, while it is trained.
//!
//! ```text
//! hard = 0 (default):  y = clamp(t, 0, 1)                dt = dy · (0 ≤ t ≤ 1 ? 1 : leak)
//! hard = 1:            y = 1 where t > 0, else 0         the same: a straight-through estimate
//! ```
//!
//! The forward value of the soft gate is that of `Clip` between 0 and 1, which stands in its place where a model is only run. With `leak`
//! above 0 (default 0.1) a gate that is shut, or open beyond 1, still learns. The hard one counts: how much work is done does not depend on
//! how far a gate is open. NaN stays NaN. Element types: floats; the shape stays.
//!
//! `ai.sartor::Detach`: its operand, whose gradient ends here: what a loss reads as if it were a constant.

use super::elementwise::{UNARY, map_float, random_shape, through};
use super::{EvalCx, GradCx, Gradient, OpDef, Sample};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Tensor};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "Gate",
        eval: Some(eval),
        decompose: Some(super::written_out::gate),
        grad: Gradient::Emit(grad),
        upgrades: &[],
        sample: Some(sample),
        ..UNARY
    },
    OpDef {
        domain: crate::SARTOR_DOMAIN,
        name: "Detach",
        eval: Some(|_, inputs| map_float(inputs, |t| t)),
        decompose: Some(super::written_out::detach),
        grad: Gradient::Zero,
        upgrades: &[],
        sample: Some(|draw| {
            let shape = random_shape(draw);
            let x = draw.tensor(&shape, -1.0, 1.0);
            let mut sample = Sample::new(Operator::sartor("Detach", Attributes::new()), vec![x]);
            sample.check = vec![false];
            sample
        }),
        ..UNARY
    },
];

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let hard = cx.op.attrs.flag("hard", false)?;
    let open = |t: f64| match hard {
        true if t.is_nan() => t,
        true => f64::from(u8::from(t > 0.0)),
        false => t.clamp(0.0, 1.0),
    };
    map_float(inputs, open)
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let leak = f64::from(cx.op().attrs.float("leak", 0.1)?);
    through(cx, |e, t, _, dy| {
        let above = e.compare_scalar("GreaterOrEqual", t, 0.0)?;
        let below = e.compare_scalar("LessOrEqual", t, 1.0)?;
        let inside = e.op("And", &[above, below], Attributes::new())?;
        if leak == 0.0 {
            return e.select_or(inside, dy, 0.0);
        }
        let leaked = e.mul_scalar(dy, leak)?;
        e.select(inside, dy, leaked)
    })
}

/// Without leak, the soft gate's gradient is that of its value; with one, and for the hard gate, it is not meant to be.
fn sample(draw: &mut Draw) -> Sample {
    let (hard, leak) = (draw.chance(0.3), *draw.pick(&[0.0f32, 0.1]));
    let attrs = Attributes::new().with("hard", i64::from(hard)).with("leak", leak);
    let shape = random_shape(draw);
    let mut sample = Sample::new(Operator::sartor("Gate", attrs), vec![draw.tensor(&shape, -0.5, 1.5)]);
    sample.check = vec![!hard && leak == 0.0];
    sample
}
