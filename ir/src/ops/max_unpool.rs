//! `MaxUnpool`: the maxima that `MaxPool` found, put back to where they were; the rest is zero.
//!
//! ```text
//! y[I[o]] = x[o]
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__MaxUnpool.html>. x and I have the shape `[N, C, in…]`; the places I are
//! counted in the flattened image of the size that the windows cover at least, `(in − 1) · stride − pads + kernel` along
//! each axis. `output_shape` asks for a larger one: zeros are added at the ends of the axes. It is a scatter, and the
//! gradient gathers.

use super::window::{AutoPad, Window};
use super::{Emit, Gradient, InferCx, OpDef, Sample, index};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "MaxUnpool",
    inputs: (2, 3),
    infer,
    decompose: Some(decompose),
    grad: Gradient::Decompose,
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// Along each spatial axis, stride and the rest of the size: `in · stride + rest`.
fn geometry(attrs: &Attributes) -> Result<Vec<(i64, i64)>> {
    let window = Window::read(attrs, None)?;
    ensure!(window.auto_pad == AutoPad::NotSet, "MaxUnpool with `auto_pad`");
    let rest = |axis: usize| {
        window.kernel[axis] as i64 - (window.strides[axis] + window.begin[axis] + window.end[axis]) as i64
    };
    Ok((0..window.rank()).map(|axis| (window.strides[axis] as i64, rest(axis))).collect())
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (dtype, geometry) = (cx.dtype(0)?, geometry(&cx.op.attrs)?);
    let covered = match cx.shape(0) {
        Some(x) => {
            ensure!(x.len() == geometry.len() + 2, "data of rank {} and windows of rank {}", x.len(), geometry.len());
            let spatial = x[2..].iter().zip(&geometry);
            let sizes: Vec<Dim> =
                spatial.map(|(d, (stride, rest))| d.mul(&(*stride).into()).add(&(*rest).into())).collect();
            ensure!(sizes.iter().all(|d| d.known().is_none_or(|d| d >= 0)), "the pads are larger than the windows");
            Some([&x[..2], &sizes].concat())
        }
        None => None,
    };
    let shape = if cx.fact(2).is_some() {
        let asked = index::elements(cx, 2);
        if let (Some(asked), Some(covered)) = (&asked, &covered) {
            let fits = |(a, c): (&Dim, &Dim)| a.known().zip(c.known()).is_none_or(|(a, c)| a >= c);
            let all = asked.len() == covered.len() && asked.iter().zip(covered).all(fits);
            ensure!(all, "output_shape is smaller than what the windows cover");
        }
        asked
    } else {
        covered
    };
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

fn decompose(emit: &mut Emit, id: NodeId) -> Result<Vec<Value>> {
    let op = emit.graph.node(id).op().cloned().unwrap_or_default();
    let (Some(x), Some(places)) = (emit.graph.input(id, 0), emit.graph.input(id, 1)) else {
        bail!("data or indices are missing");
    };
    let asked = emit.graph.input(id, 2);
    let (stride, rest): (Vec<i64>, Vec<i64>) = geometry(&op.attrs)?.into_iter().unzip();
    let (stride, rest) = (emit.ints(&[&[1, 1][..], &stride].concat()), emit.ints(&[&[0, 0][..], &rest].concat()));
    let shape = emit.shape_of(x)?;
    let scaled = emit.mul(shape, stride)?;
    let covered = emit.add(scaled, rest)?;
    let zero = Tensor::zeros(emit.dtype(x)?, [1])?;
    let image = emit.op("ConstantOfShape", &[covered], Attributes::new().with("value", zero))?;
    let (image, places) = (emit.reshape(image, &[-1])?, emit.reshape(places, &[-1])?);
    let values = emit.reshape(x, &[-1])?;
    let image = emit.op("ScatterElements", &[image, places, values], Attributes::new())?;
    let mut image = emit.op("Reshape", &[image, covered], Attributes::new())?;
    if let Some(asked) = asked {
        let more = emit.sub(asked, covered)?;
        let nothing = emit.sub(covered, covered)?;
        let pads = emit.op("Concat", &[nothing, more], Attributes::new().with("axis", 0i64))?;
        image = emit.op("Pad", &[image, pads], Attributes::new())?;
    }
    emit.type_like(image, Value { node: id, slot: 0 });
    Ok(vec![image])
}

fn sample(draw: &mut Draw) -> Sample {
    let pad = draw.int(0, 1);
    let attrs = Attributes::new().with("kernel_shape", [2, 3]).with("strides", [2, 3]).with("pads", [0, pad, 0, 0]);
    let x = draw.tensor(&[1, 2, 2, 2], -1.0, 1.0);
    let image = [1, 2, 4, 6 - pad as usize];
    let count = index::count(&image);
    // Different places in any order.
    let places: Vec<i64> = (0..8).map(|i| ((i * 5 + 3) % count) as i64).collect();
    let mut inputs = vec![x, Tensor::from_vec([1, 2, 2, 2], places)];
    if draw.chance(0.5) {
        inputs.push(Tensor::from_i64s(&[1, 2, 5, 7]));
    }
    Sample::new(Operator::onnx("MaxUnpool", attrs), inputs)
}
