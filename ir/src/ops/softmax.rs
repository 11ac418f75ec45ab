//! `Softmax`, `LogSoftmax`, `Hardmax` along one axis; and `GuardedSoftmax`, of our own domain.
//!
//! ```text
//! Softmax:    y = eˣ / Σeˣ          dx = y · (dy − Σ(dy · y))
//! Guarded…:   the same, 0 where that is not a number (a line of −∞: attention of a token that may look at nothing)
//! LogSoftmax: y = x − ln Σeˣ        dx = dy − e^y · Σdy
//! Hardmax:    y = 1 at the first largest element, else 0; constant almost everywhere
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Softmax.html>. Shape: that of the input. Attribute `axis` (default −1).
//! Before opset 13 the default was 1, and the input was seen as the matrix `[Πshape[..axis], Πshape[axis..]]`, each
//! row of which was normalised: such nodes are rewritten with `Flatten` unless the axis is the last one.

use super::real::{reals, required, rounded};
use super::{EvalCx, GradCx, Gradient, OpDef, Sample, UpgradeFn, normal_axis};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::types::Type;
use crate::{Attributes, DType, SARTOR_DOMAIN, Tensor, bf16, f16};

/// What the rows share.
const ALONG_AXIS: OpDef = OpDef {
    infer: |cx| {
        let axis = cx.op.attrs.int("axis", -1)?;
        if let Some(shape) = cx.shape(0).filter(|s| !s.is_empty()) {
            cx.axis(axis, shape.len())?;
        }
        super::same_as_first(cx)
    },
    flops: |cx| 4 * cx.output_len(0),
    upgrades: UPGRADES,
    ..OpDef::DEFAULT
};
const UPGRADES: &[(i64, UpgradeFn)] = &[(13, without_coercion)];

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Softmax",
        eval: Some(|cx, inputs| along_axis(cx, inputs, stepwise_softmax)),
        grad: Gradient::Emit(softmax_grad),
        sample: Some(|draw| sample(draw, Operator::onnx("Softmax", Attributes::new()))),
        ..ALONG_AXIS
    },
    OpDef {
        domain: SARTOR_DOMAIN,
        name: "GuardedSoftmax",
        eval: Some(|cx, inputs| along_axis(cx, inputs, guarded_softmax)),
        decompose: Some(super::written_out::guarded_softmax),
        grad: Gradient::Emit(softmax_grad),
        upgrades: &[],
        sample: Some(|draw| sample(draw, Operator::sartor("GuardedSoftmax", Attributes::new()))),
        ..ALONG_AXIS
    },
    OpDef {
        name: "LogSoftmax",
        eval: Some(|cx, inputs| along_axis(cx, inputs, |line, _| log_softmax(line))),
        grad: Gradient::Emit(log_softmax_grad),
        sample: Some(|draw| sample(draw, Operator::onnx("LogSoftmax", Attributes::new()))),
        ..ALONG_AXIS
    },
    OpDef {
        name: "Hardmax",
        eval: Some(|cx, inputs| along_axis(cx, inputs, |line, _| hardmax(line))),
        grad: Gradient::Zero,
        sample: Some(|draw| sample(draw, Operator::onnx("Hardmax", Attributes::new()))),
        ..ALONG_AXIS
    },
];

/// The number of a tensor's type that is nearest to a real one.
type Round = fn(f64) -> f64;

/// Rounding to half precision; wider types are rounded at the end alone.
fn rounding(dtype: DType) -> Round {
    match dtype {
        DType::F16 => |x| f16::from_f64(x).to_f64(),
        DType::BF16 => |x| bf16::from_f64(x).to_f64(),
        _ => |x| x,
    }
}

/// Applies a function to every line of the input along the axis, in place.
fn along_axis(cx: &EvalCx, inputs: &[Option<&Tensor>], function: fn(&mut [f64], Round)) -> Result<Vec<Tensor>> {
    let x = required(inputs, 0)?;
    let (mut values, round) = (reals(x)?, rounding(x.dtype()));
    let function = |line: &mut [f64]| function(line, round);
    if x.rank() == 0 {
        function(&mut values);
    } else {
        let axis = normal_axis(cx.op.attrs.int("axis", -1)?, x.rank())?;
        map_lines(&mut values, x.shape(), axis, function);
    }
    Ok(vec![rounded(x.dtype(), x.shape(), values)?])
}

/// Applies a function to every line of a dense tensor along an axis, in place.
pub fn map_lines(values: &mut [f64], shape: &[usize], axis: usize, function: impl Fn(&mut [f64])) {
    let (length, stride): (usize, usize) = (shape[axis], shape[axis + 1..].iter().product());
    if values.is_empty() {
        return;
    }
    let mut line = vec![0.0; length];
    for block in values.chunks_mut(length * stride) {
        for start in 0..stride {
            for (to, from) in line.iter_mut().zip(block[start..].iter().step_by(stride)) {
                *to = *from;
            }
            function(&mut line);
            for (from, to) in line.iter().zip(block[start..].iter_mut().step_by(stride)) {
                *to = *from;
            }
        }
    }
}

/// Normalised exponentials of one line.
pub fn softmax(line: &mut [f64]) {
    stepwise_softmax(line, |x| x);
}

/// [`softmax`] as ONNX defines it, by a subtraction, an exponential, a sum and a division of the tensor's own type. A sum beyond the type's
/// range stays as it is.
fn stepwise_softmax(line: &mut [f64], round: Round) {
    let top = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    line.iter_mut().for_each(|x| *x = round(round(*x - top).exp()));
    let exact: f64 = line.iter().sum();
    let sum = if round(exact).is_finite() { round(exact) } else { exact };
    line.iter_mut().for_each(|x| *x /= sum);
}

/// [`stepwise_softmax`], with 0 for what is not a number.
fn guarded_softmax(line: &mut [f64], round: Round) {
    stepwise_softmax(line, round);
    line.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.0);
}

/// Logarithms of [`softmax`], without computing it.
pub fn log_softmax(line: &mut [f64]) {
    let top = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = line.iter().map(|x| (x - top).exp()).sum();
    line.iter_mut().for_each(|x| *x -= top + sum.ln());
}

fn hardmax(line: &mut [f64]) {
    let top = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let first = line.iter().position(|&x| x == top);
    line.iter_mut().enumerate().for_each(|(i, x)| *x = f64::from(u8::from(Some(i) == first)));
}

fn softmax_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (y, dy) = (cx.output(0), cx.dy()?);
    let axis = cx.emit.axis(y, cx.op().attrs.int("axis", -1)?)?;
    let weighted = cx.emit.mul(dy, y)?;
    let sum = cx.emit.reduce_sum(weighted, &[axis], true)?;
    let centred = cx.emit.sub(dy, sum)?;
    Ok(vec![Some(cx.emit.mul(y, centred)?)])
}

fn log_softmax_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (y, dy) = (cx.output(0), cx.dy()?);
    let axis = cx.emit.axis(y, cx.op().attrs.int("axis", -1)?)?;
    let sum = cx.emit.reduce_sum(dy, &[axis], true)?;
    let probability = cx.emit.unary("Exp", y)?;
    let share = cx.emit.mul(probability, sum)?;
    Ok(vec![Some(cx.emit.sub(dy, share)?)])
}

/// From the matrix semantics to the axis semantics of opset 13.
fn without_coercion(graph: &mut Graph, id: NodeId) -> Result<()> {
    let (Some(x), Some(op)) = (graph.input(id, 0), graph.node(id).op().cloned()) else { return Ok(()) };
    let axis = op.attrs.int("axis", 1)?;
    let rank = graph.ty(x).and_then(Type::rank);
    let last = axis == -1 || rank.is_some_and(|rank| normal_axis(axis, rank).is_ok_and(|axis| axis + 1 == rank));
    if last {
        if let Some(op) = graph.node_mut(id).op_mut() {
            op.attrs.set("axis", -1i64);
        }
        return Ok(());
    }
    let flat = graph.op("Flatten", &[x], Attributes::new().with("axis", axis));
    let rows = graph.op(&op.name, &[flat], Attributes::new().with("axis", -1i64));
    let shape = graph.op("Shape", &[x], Attributes::new());
    let whole = graph.op("Reshape", &[rows, shape], Attributes::new());
    let old = Value { node: id, slot: 0 };
    graph.set_ty(whole, graph.ty(old).cloned());
    graph.replace_uses(old, whole);
    graph.remove(id);
    Ok(())
}

fn sample(draw: &mut Draw, mut op: Operator) -> Sample {
    let x = draw.distinct(&[2, 3, 4], 0.17);
    op.attrs.set("axis", draw.int(-3, 2));
    Sample::new(op, vec![x])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GraphOutput;

    #[test]
    fn a_line_of_minus_infinity_is_guarded() {
        let mut line = [f64::NEG_INFINITY; 3];
        guarded_softmax(&mut line, |x| x);
        assert_eq!(line, [0.0; 3]);
    }

    #[test]
    fn old_default_axis_becomes_a_flattened_row() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", Type::tensor(DType::F32, [2i64, 3, 4]));
        let y = g.op("Softmax", &[x], Attributes::new());
        g.outputs.push(GraphOutput { name: "y".into(), value: y });
        without_coercion(&mut g, y.node).unwrap();
        let names: Vec<String> = g.topo_ops().iter().map(|&id| g.node(id).op().unwrap().name.clone()).collect();
        assert_eq!(names, ["Flatten", "Softmax", "Shape", "Reshape"]);
        assert!(g.node(g.outputs[0].value.node).is("Reshape"));
    }
}
