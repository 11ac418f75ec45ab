//! `Constant`: a tensor in an attribute. `ConstantOfShape`: one value in a given shape. `EyeLike`: ones on a diagonal.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Constant.html>. Passes see such a node as a
//! constant ([`Node::constant`](crate::Node::constant)); it stays a node, so that a file keeps its form. Sparse constants are carried through, not computed.

use super::{EvalCx, Gradient, InferCx, MAX_FACT_DIMS, OpDef, Sample, index};
use crate::error::{Error, Result};
use crate::graph::Operator;
use crate::rng::Draw;
use crate::{Attribute, Attributes, DType, Dim, Tensor, Type, bail, ensure};
use bytes::Bytes;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Constant",
        inputs: (0, 0),
        infer: infer_constant,
        eval: Some(|cx, _| match constant(cx.op)? {
            Some(tensor) => Ok(vec![tensor]),
            None => bail!("sparse constants are not computed"),
        }),
        grad: Gradient::Zero,
        sample: Some(|draw| {
            let attrs = Attributes::new().with("value", draw.tensor(&[2, 2], -1.0, 1.0));
            Sample::new(Operator::onnx("Constant", attrs), vec![])
        }),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "ConstantOfShape",
        infer: infer_filled,
        eval: Some(eval_filled),
        grad: Gradient::Zero,
        sample: Some(sample_filled),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "EyeLike",
        infer: infer_eye,
        eval: Some(eval_eye),
        grad: Gradient::Zero,
        sample: Some(sample_eye),
        ..OpDef::DEFAULT
    },
];

/// The tensor that a `Constant` holds; `None` if it is sparse.
pub fn constant(op: &Operator) -> Result<Option<Tensor>> {
    let strings = |s: &[Vec<u8>]| s.iter().map(|s| Bytes::from(s.clone())).collect::<Vec<_>>();
    for (name, attr) in &op.attrs.0 {
        return Ok(Some(match (name.as_str(), attr) {
            ("value", Attribute::Tensor(tensor)) => tensor.clone(),
            ("value_int", Attribute::Int(value)) => Tensor::scalar(*value),
            ("value_ints", Attribute::Ints(values)) => Tensor::from_i64s(values),
            ("value_float", Attribute::Float(value)) => Tensor::scalar(*value),
            ("value_floats", Attribute::Floats(values)) => Tensor::from_vec([values.len()], values.clone()),
            ("value_string", Attribute::String(text)) => Tensor::from_strings(vec![], vec![Bytes::from(text.clone())])?,
            ("value_strings", Attribute::Strings(list)) => Tensor::from_strings(vec![list.len()], strings(list))?,
            ("sparse_value", _) => return Ok(None),
            _ => continue,
        }));
    }
    bail!("it has none of the attributes that hold a constant")
}

fn infer_constant(cx: &mut InferCx) -> Result<()> {
    if let Some(tensor) = constant(cx.op)? {
        cx.set_value(0, &tensor);
    }
    Ok(())
}

/// The one element that `ConstantOfShape` repeats.
fn fill(op: &Operator) -> Result<Tensor> {
    let value = op.attrs.get_tensor("value")?.cloned().unwrap_or_else(|| Tensor::scalar(0f32));
    ensure!(value.len() == 1, "attribute `value` has shape {:?}, expected one element", value.shape());
    value.reshaped([])
}

fn infer_filled(cx: &mut InferCx) -> Result<()> {
    let fill = fill(cx.op)?;
    let shape = index::elements(cx, 0);
    let length = match shape.as_deref() {
        Some([]) => Some(1),
        Some([len]) => len.known(),
        _ => None,
    };
    cx.set_tensor(0, fill.dtype(), shape);
    if let (true, Some(len @ 0..)) = (fill.dtype().is_int(), length) {
        if len <= MAX_FACT_DIMS as i64 {
            cx.set_dims(0, fill.to_i64s()?.into_iter().map(Dim::Known).cycle().take(len as usize).collect());
        }
    }
    Ok(())
}

fn eval_filled(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (fill, shape) = (fill(cx.op)?, index::shape_input(inputs, 0)?);
    if fill.bytes().iter().all(|&b| b == 0) && fill.dtype() != DType::String {
        return Ok(vec![Tensor::zeros(fill.dtype(), shape)?]);
    }
    Ok(vec![super::expand::expanded(&fill, &shape)?])
}

fn sample_filled(draw: &mut Draw) -> Sample {
    let shapes: [&[i64]; 3] = [&[2, 3], &[], &[0, 2]];
    let values = [Tensor::from_vec([1], vec![2.5f32]), Tensor::from_i64s(&[7]), Tensor::from_vec([1], vec![true])];
    let attrs =
        if draw.chance(0.3) { Attributes::new() } else { Attributes::new().with("value", draw.pick(&values).clone()) };
    Sample::new(Operator::onnx("ConstantOfShape", attrs), vec![Tensor::from_i64s(*draw.pick(&shapes))])
}

fn eye_dtype(op: &Operator, input: DType) -> Result<DType> {
    match op.attrs.get_int("dtype")? {
        None => Ok(input),
        Some(code) => i32::try_from(code)
            .ok()
            .and_then(DType::from_onnx_code)
            .ok_or_else(|| Error::msg(format!("attribute `dtype` is {code}, which is no element type"))),
    }
}

fn infer_eye(cx: &mut InferCx) -> Result<()> {
    let dtype = eye_dtype(cx.op, cx.dtype(0)?)?;
    let shape = match cx.shape(0) {
        Some(shape) => {
            ensure!(shape.len() == 2, "its input has rank {}, expected a matrix", shape.len());
            shape.to_vec()
        }
        None => vec![Dim::Unknown; 2],
    };
    cx.set(0, Type::tensor(dtype, shape));
    Ok(())
}

fn eval_eye(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let [rows, cols] = x.shape() else { bail!("its input has rank {}, expected a matrix", x.rank()) };
    let diagonal = cx.op.attrs.int("k", 0)?;
    let digits = Tensor::from_vec([2], vec![0u8, 1]).cast(eye_dtype(cx.op, x.dtype())?)?;
    let on = |row: usize, col: usize| (row as i64).checked_add(diagonal) == Some(col as i64);
    let places: Vec<usize> = (0..*rows).flat_map(|row| (0..*cols).map(move |col| on(row, col) as usize)).collect();
    Ok(vec![index::pick(&[&digits], x.shape().to_vec(), &places)?])
}

fn sample_eye(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("k", draw.int(-2, 2)).with("dtype", DType::F32.onnx_code() as i64);
    Sample::new(Operator::onnx("EyeLike", attrs), vec![draw.ints(&[3, 4], 0, 1)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::probe::Probe;

    #[test]
    fn every_form_of_constant() {
        let of = |attrs: Attributes| constant(&Operator::onnx("Constant", attrs));
        let text = of(Attributes::new().with("value_string", "hi")).unwrap().unwrap();
        assert_eq!(text.strings().unwrap(), ["hi"]);
        assert_eq!(
            of(Attributes::new().with("value_floats", vec![1.5f32])).unwrap(),
            Some(Tensor::from_vec([1], vec![1.5f32]))
        );
        assert_eq!(of(Attributes::new().with("value_int", 3i64)).unwrap(), Some(Tensor::scalar(3i64)));
        assert!(of(Attributes::new()).is_err());
        let mut p = Probe::new();
        let c = p.node("Constant", &[], Attributes::new().with("value_ints", [0, -1]), 1);
        assert_eq!(p.show(c[0]), "int64[2] = 0, -1");
    }

    #[test]
    fn filled_shapes() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq");
        let shape = p.op("Shape", &[x], Attributes::new());
        let zeros = p.op("ConstantOfShape", &[shape], Attributes::new());
        let two = p.ints(&[2]);
        let ones = Attributes::new().with("value", Tensor::from_i64s(&[1]));
        let ones = p.op("ConstantOfShape", &[two], ones);
        assert_eq!(p.show(zeros), "float[batch, seq]");
        assert_eq!(p.show(ones), "int64[2] = 1, 1");
    }
}
