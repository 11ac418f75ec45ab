//! Change of element type, of its meaning, and no change at all: Cast, CastLike, BitCast, Identity.
//!
//! Floats become integers by dropping the fraction (saturating, NaN becomes 0); anything but 0 becomes true; 8-bit floats
//! and narrower types as [`crate::minifloat`] says. The gradient is cast back; between floats and integers none flows.
//! BitCast reads the same bits as another type of the same width.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Cast.html>, <https://onnx.ai/onnx/operators/onnx__BitCast.html>.

use super::elementwise::{present, random_shape, sample_unary, sample_unary_with};
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample};
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::minifloat::{Conversion, RoundMode};
use crate::rng::Draw;
use crate::{Attribute, Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Cast",
        infer: |cx| {
            let to = target(cx.op)?;
            infer_to(cx, to)
        },
        eval: Some(|cx, inputs| Ok(vec![present::<1>(inputs)?[0].cast_by(target(cx.op)?, conversion(cx.op)?)?])),
        grad: Gradient::Emit(grad),
        upgrades: &[(6, type_from_name)],
        sample: Some(|d| {
            let to = *d.pick(&[DType::F64, DType::I64, DType::I32, DType::Bool]);
            sample_unary_with(d, Operator::onnx("Cast", to_attribute(to)), -3.0, 3.0)
        }),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "CastLike",
        inputs: (2, 2),
        infer: |cx| {
            let to = cx.dtype(1)?;
            infer_to(cx, to)
        },
        eval: Some(|cx, inputs| {
            let [x, like] = present(inputs)?;
            Ok(vec![x.cast_by(like.dtype(), conversion(cx.op)?)?])
        }),
        grad: Gradient::Emit(grad),
        sample: Some(sample_like),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "BitCast",
        infer: |cx| {
            let to = target(cx.op)?;
            same_width(cx.dtype(0)?, to)?;
            let shape = cx.shape(0).map(<[Dim]>::to_vec);
            cx.set_tensor(0, to, shape);
            Ok(())
        },
        eval: Some(bit_cast),
        grad: Gradient::Zero,
        sample: Some(sample_bits),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "Identity",
        infer: |cx| {
            if let Some(fact) = cx.fact(0).cloned() {
                cx.set_fact(0, fact);
            }
            Ok(())
        },
        eval: Some(|_, inputs| Ok(vec![present::<1>(inputs)?[0].clone()])),
        grad: Gradient::Emit(|cx| Ok(vec![Some(cx.dy()?)])),
        sample: Some(|d| sample_unary(d, "Identity", -2.0, 2.0)),
        ..OpDef::DEFAULT
    },
];

/// The attribute `to` for an element type.
pub(super) fn to_attribute(dtype: DType) -> Attributes {
    Attributes::new().with("to", i64::from(dtype.onnx_code()))
}

/// The element type that an integer attribute names.
pub(super) fn dtype_attribute(op: &Operator, name: &str) -> Result<Option<DType>> {
    let Some(code) = op.attrs.get_int(name)? else { return Ok(None) };
    let dtype = i32::try_from(code).ok().and_then(DType::from_onnx_code);
    dtype.map(Some).ok_or_else(|| Error::msg(format!("attribute `{name}` is {code}, which is no element type")))
}

fn target(op: &Operator) -> Result<DType> {
    match dtype_attribute(op, "to")? {
        Some(dtype) => Ok(dtype),
        None => bail!("attribute `to` is missing"),
    }
}

/// How Cast treats what a narrow type has no place for.
fn conversion(op: &Operator) -> Result<Conversion> {
    let round = match op.attrs.str("round_mode", "up")? {
        "up" => RoundMode::Up,
        "down" => RoundMode::Down,
        "nearest" => RoundMode::Nearest,
        other => bail!("attribute `round_mode` is \"{other}\", expected \"up\", \"down\" or \"nearest\""),
    };
    Ok(Conversion { saturate: op.attrs.flag("saturate", true)?, round })
}

fn same_width(from: DType, to: DType) -> Result<()> {
    let strings = from == DType::String || to == DType::String;
    ensure!(!strings && from.bits() == to.bits(), "{from} and {to} are not of the same width");
    Ok(())
}

fn bit_cast(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let ([x], to) = (present(inputs)?, target(cx.op)?);
    same_width(x.dtype(), to)?;
    Ok(vec![Tensor::from_bytes(to, x.shape().to_vec(), x.bytes().clone())?])
}

fn infer_to(cx: &mut InferCx, to: DType) -> Result<()> {
    cx.dtype(0)?;
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    cx.set_tensor(0, to, shape);
    if let (DType::I32 | DType::I64, Some(dims)) = (to, cx.dims(0)) {
        let dims = dims.to_vec();
        cx.set_dims(0, dims);
    }
    Ok(())
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy) = (cx.input(0)?, cx.dy()?);
    let (from, to) = (cx.emit.dtype(x)?, cx.emit.dtype(dy)?);
    let flows = from.is_float() && to.is_float();
    Ok(vec![if flows { Some(cx.emit.cast(dy, from)?) } else { None }])
}

/// Before opset 6 the type was named by a string such as `FLOAT16`.
fn type_from_name(graph: &mut Graph, id: NodeId) -> Result<()> {
    let Some(op) = graph.node_mut(id).op_mut() else { return Ok(()) };
    if let Some(Attribute::String(_)) = op.attrs.0.get("to") {
        let name = op.attrs.str("to", "")?.to_ascii_lowercase();
        let Some(dtype) = DType::from_name(&name) else {
            bail!("attribute `to` is \"{name}\", which is no element type")
        };
        op.attrs.set("to", i64::from(dtype.onnx_code()));
    }
    Ok(())
}

fn sample_like(draw: &mut Draw) -> Sample {
    let shape = random_shape(draw);
    let inputs = vec![draw.tensor(&shape, -3.0, 3.0), Tensor::scalar(1.0f64)];
    let mut sample = Sample::new(Operator::onnx("CastLike", Attributes::new()), inputs);
    sample.check[1] = false;
    sample
}

fn sample_bits(draw: &mut Draw) -> Sample {
    let shape = random_shape(draw);
    Sample::new(Operator::onnx("BitCast", to_attribute(DType::F64)), vec![draw.ints(&shape, 0, 1 << 40)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_in_words_is_lifted() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", crate::Type::tensor(DType::F32, [2]));
        let y = graph.op("Cast", &[x], Attributes::new().with("to", "FLOAT16"));
        type_from_name(&mut graph, y.node).unwrap();
        assert_eq!(target(graph.node(y.node).op().unwrap()).unwrap(), DType::F16);
    }
}
