//! Random tensors: RandomNormal, RandomUniform, their `Like` forms, Bernoulli and Multinomial. One row each; no gradient.
//!
//! Element `i` is a pure function of the run's seed, the step, the node and `i` (see [`crate::rng`]); an attribute
//! `seed` enters into it too. Spec: <https://onnx.ai/onnx/operators/>.

use super::cast::dtype_attribute;
use super::elementwise::{present, random_shape};
use super::real::{count, reals};
use super::softmax::{map_lines, softmax};
use super::{EvalCx, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::Operator;
use crate::rng::{Draw, Stream};
use crate::tensor::element_count;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "RandomNormal",
        eval: Some(|cx, _| normal(cx, free(cx)?)),
        sample: Some(|d| sample_free(d, "RandomNormal")),
        ..FREE
    },
    OpDef {
        name: "RandomUniform",
        eval: Some(|cx, _| uniform(cx, free(cx)?)),
        sample: Some(|d| sample_free(d, "RandomUniform")),
        ..FREE
    },
    OpDef {
        name: "RandomNormalLike",
        eval: Some(|cx, x| normal(cx, like(cx, x)?)),
        sample: Some(|d| sample_like(d, "RandomNormalLike")),
        ..LIKE
    },
    OpDef {
        name: "RandomUniformLike",
        eval: Some(|cx, x| uniform(cx, like(cx, x)?)),
        sample: Some(|d| sample_like(d, "RandomUniformLike")),
        ..LIKE
    },
    OpDef { name: "Bernoulli", eval: Some(bernoulli), sample: Some(|d| sample_like(d, "Bernoulli")), ..LIKE },
    OpDef {
        name: "Multinomial",
        infer: infer_multinomial,
        eval: Some(multinomial),
        sample: Some(|d| {
            let attrs = Attributes::new().with("sample_size", d.int(0, 5));
            Sample::new(Operator::onnx("Multinomial", attrs), vec![d.tensor(&[2, 3], -2.0, 2.0)])
        }),
        ..LIKE
    },
];

const FREE: OpDef = OpDef { inputs: (0, 0), infer: infer_free, grad: Gradient::Zero, ..OpDef::DEFAULT };
const LIKE: OpDef = OpDef { infer: infer_like, grad: Gradient::Zero, ..OpDef::DEFAULT };

/// The random numbers of a node in this step; the attribute `seed` makes them differ from those of other seeds.
pub fn seeded(cx: &EvalCx) -> Result<Stream> {
    // It is an integer in Dropout, a float in the others.
    let seed = match cx.op.attrs.0.get("seed") {
        None => return Ok(cx.stream),
        Some(crate::Attribute::Int(seed)) => *seed as u64,
        Some(_) => cx.op.attrs.float("seed", 0.0)?.to_bits().into(),
    };
    Ok(Stream::new(seed, cx.stream.bits(0), "seed"))
}

/// The element type and shape of a result.
type Target = (DType, Vec<usize>);

fn free(cx: &EvalCx) -> Result<Target> {
    let dtype = dtype_attribute(cx.op, "dtype")?.unwrap_or(DType::F32);
    Ok((dtype, free_shape(cx.op)?))
}

fn free_shape(op: &Operator) -> Result<Vec<usize>> {
    let Some(shape) = op.attrs.get_ints("shape")? else { bail!("attribute `shape` is missing") };
    let sizes: Option<Vec<usize>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    match sizes.filter(|s| element_count(s).is_some()) {
        Some(sizes) => Ok(sizes),
        None => bail!("attribute `shape` is {shape:?}, expected sizes"),
    }
}

fn like(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Target> {
    let [x] = present(inputs)?;
    Ok((dtype_attribute(cx.op, "dtype")?.unwrap_or(x.dtype()), x.shape().to_vec()))
}

fn infer_free(cx: &mut InferCx) -> Result<()> {
    let dtype = dtype_attribute(cx.op, "dtype")?.unwrap_or(DType::F32);
    let shape = free_shape(cx.op)?.into_iter().map(|d| Dim::Known(d as i64)).collect();
    cx.set_tensor(0, dtype, Some(shape));
    Ok(())
}

fn infer_like(cx: &mut InferCx) -> Result<()> {
    let dtype = dtype_attribute(cx.op, "dtype")?.unwrap_or(cx.dtype(0)?);
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn fill((dtype, shape): Target, f: impl Fn(u64) -> f64) -> Result<Vec<Tensor>> {
    let count: usize = shape.iter().product();
    let numbers: Vec<f64> = (0..count as u64).map(f).collect();
    Ok(vec![Tensor::from_vec(shape, numbers).cast(dtype)?])
}

fn normal(cx: &EvalCx, target: Target) -> Result<Vec<Tensor>> {
    let (mean, scale) = (f64::from(cx.op.attrs.float("mean", 0.0)?), f64::from(cx.op.attrs.float("scale", 1.0)?));
    let stream = seeded(cx)?;
    fill(target, |i| mean + scale * stream.normal(i))
}

fn uniform(cx: &EvalCx, target: Target) -> Result<Vec<Tensor>> {
    let (low, high) = (f64::from(cx.op.attrs.float("low", 0.0)?), f64::from(cx.op.attrs.float("high", 1.0)?));
    let stream = seeded(cx)?;
    fill(target, |i| stream.uniform(i, low, high))
}

/// 1 with the probability that the input gives, else 0.
fn bernoulli(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [p] = present(inputs)?;
    ensure!(p.dtype().is_float(), "its probabilities are {}, expected a floating-point type", p.dtype());
    let (stream, p) = (seeded(cx)?, p.to_f64s()?);
    fill(like(cx, inputs)?, |i| f64::from(u8::from(stream.unit(i) < p[i as usize])))
}

fn infer_multinomial(cx: &mut InferCx) -> Result<()> {
    let dtype = dtype_attribute(cx.op, "dtype")?.unwrap_or(DType::I32);
    ensure!(cx.dtype(0)?.is_float(), "its log-probabilities are {}, expected a floating-point type", cx.dtype(0)?);
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    if let Some(shape) = &shape {
        ensure!(shape.len() == 2, "its log-probabilities have rank {}, expected 2", shape.len());
    }
    let batch = shape.and_then(|s| s.into_iter().next()).unwrap_or(Dim::Unknown);
    cx.set_tensor(0, dtype, Some(vec![batch, Dim::Known(count(&cx.op.attrs, "sample_size", 1)? as i64)]));
    Ok(())
}

/// The numbers of classes, drawn with the probabilities that a softmax gives each row of the input, `[batch, classes]`.
fn multinomial(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let [x] = present(inputs)?;
    let [batch, classes] = *x.shape() else { bail!("its log-probabilities have rank {}, expected 2", x.rank()) };
    ensure!(classes > 0 || batch == 0, "there are no classes to draw from");
    let draws = count(&cx.op.attrs, "sample_size", 1)?;
    ensure!(element_count(&[batch, draws]).is_some(), "{batch} × {draws} draws are too many");
    let (stream, mut p) = (seeded(cx)?, reals(x)?);
    map_lines(&mut p, x.shape(), 1, softmax);
    let dtype = dtype_attribute(cx.op, "dtype")?.unwrap_or(DType::I32);
    fill((dtype, vec![batch, draws]), |i| {
        let row = i as usize / draws * classes;
        let (mut rest, mut class) = (stream.unit(i), 0);
        while class + 1 < classes && rest >= p[row + class] {
            rest -= p[row + class];
            class += 1;
        }
        class as f64
    })
}

fn sample_free(draw: &mut Draw, name: &str) -> Sample {
    let attrs = Attributes::new().with("shape", [draw.int(0, 3), draw.int(1, 4)]);
    let attrs = if draw.chance(0.5) { attrs.with("dtype", i64::from(DType::F64.onnx_code())) } else { attrs };
    Sample::new(Operator::onnx(name, attrs), Vec::new())
}

fn sample_like(draw: &mut Draw, name: &str) -> Sample {
    let shape = random_shape(draw);
    let attrs = Attributes::new();
    let attrs = if draw.chance(0.5) { attrs.with("dtype", i64::from(DType::F32.onnx_code())) } else { attrs };
    Sample::new(Operator::onnx(name, attrs), vec![draw.tensor(&shape, 0.0, 1.0)])
}
