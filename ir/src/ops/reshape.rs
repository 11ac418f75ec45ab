//! `Reshape`: the same elements under another shape. `Flatten`: the axes before and from `axis` on, as a matrix.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Reshape.html>. In the target a 0 copies the input's axis (with
//! `allowzero=1` it is a length), and one -1 takes what is left. One rule serves inference and evaluation; on
//! dimensions it cancels what both sides share, so `[batch, seq, 384]` to `[0, -1, 12, 32]` is
//! `[batch, seq, 12, 32]`.

use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, upgrade};
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Reshape",
        inputs: (2, 2),
        infer: infer_reshape,
        eval: Some(eval_reshape),
        grad: Gradient::Emit(grad_as_input),
        upgrades: &[(5, |graph, id| upgrade::ints_to_input(graph, id, "shape", 1))],
        sample: Some(sample_reshape),
        ..OpDef::DEFAULT
    },
    OpDef {
        name: "Flatten",
        infer: infer_flatten,
        eval: Some(eval_flatten),
        grad: Gradient::Emit(grad_as_input),
        sample: Some(sample_flatten),
        ..OpDef::DEFAULT
    },
];

/// The gradient of everything that only renames axes: `dy` under the shape of input 0.
pub fn grad_as_input(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy) = (cx.input(0)?, cx.dy()?);
    Ok(vec![Some(cx.emit.reshape_like(dy, x)?)])
}

fn infer_reshape(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let allow_zero = cx.op.attrs.flag("allowzero", false)?;
    let shape = match index::elements(cx, 1) {
        Some(target) => Some(resolve(cx.shape(0), &target, allow_zero)?),
        None => None,
    };
    let keeps_vector = shape.as_ref().is_some_and(|s| s.len() <= 1);
    cx.set_tensor(0, dtype, shape);
    if let (true, Some(dims)) = (keeps_vector, cx.dims(0)) {
        cx.set_dims(0, dims.to_vec());
    }
    Ok(())
}

/// The shape that a target stands for.
fn resolve(from: Option<&[Dim]>, target: &[Dim], allow_zero: bool) -> Result<Vec<Dim>> {
    let mut out = Vec::with_capacity(target.len());
    let mut copied = Vec::new();
    let mut free = Vec::new();
    for (i, dim) in target.iter().enumerate() {
        out.push(match (dim, from) {
            (Dim::Known(0), _) if allow_zero => Dim::Known(0),
            (Dim::Known(0), Some(from)) => {
                ensure!(i < from.len(), "the target {} copies axis {i} of rank {}", list(target), from.len());
                copied.push(i);
                from[i].clone()
            }
            (Dim::Known(0 | -1), _) => Dim::Unknown,
            (Dim::Known(n), _) if *n < -1 => bail!("the target {} has a length below -1", list(target)),
            (dim, _) => dim.clone(),
        });
        if *dim == Dim::Known(-1) {
            free.push(i);
        }
    }
    ensure!(free.len() <= 1, "the target {} has more than one -1", list(target));
    if let Some(from) = from {
        solve(from, &mut out, &copied, target)?;
    }
    Ok(out)
}

/// Finds the one open length, if there is just one, and checks that the elements are equally many.
fn solve(from: &[Dim], out: &mut [Dim], copied: &[usize], target: &[Dim]) -> Result<()> {
    let open: Vec<usize> = (0..out.len()).filter(|i| out[*i] == Dim::Unknown && !copied.contains(i)).collect();
    if let [place] = open[..] {
        let mut left: Vec<&Dim> = (0..from.len()).filter(|i| !copied.contains(i)).map(|i| &from[i]).collect();
        let others = (0..out.len()).filter(|i| *i != place && !copied.contains(i));
        let divisors: Vec<&Dim> = others.filter(|&i| !cancel(&mut left, &out[i])).map(|i| &out[i]).collect();
        out[place] = Dim::product(left).div_floor(&Dim::product(divisors));
    }
    let (before, after) = (Dim::product(from), Dim::product(out.iter()));
    if let (Dim::Known(before), Dim::Known(after)) = (before, after) {
        ensure!(before == after, "{} cannot be reshaped to {}", list(from), list(target));
    }
    Ok(())
}

/// Takes one dimension off the list, if it is certainly there.
fn cancel(left: &mut Vec<&Dim>, dim: &Dim) -> bool {
    // Zero does not cancel.
    let place = left.iter().position(|d| d.same(dim) && d.known() != Some(0));
    place.map(|place| left.remove(place)).is_some()
}

fn list(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

fn eval_reshape(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (x, target) = (index::input(inputs, 0)?, index::input(inputs, 1)?.to_i64s()?);
    let target: Vec<Dim> = target.into_iter().map(Dim::Known).collect();
    let shape = resolve(Some(&index::known_dims(x.shape())), &target, cx.op.attrs.flag("allowzero", false)?)?;
    match index::static_dims(&shape) {
        Ok(shape) => Ok(vec![x.reshaped(shape)?]),
        Err(_) => bail!("{:?} to {} leaves -1 open", x.shape(), list(&target)),
    }
}

fn sample_reshape(draw: &mut Draw) -> Sample {
    let targets: [&[i64]; 7] = [&[3, -1], &[0, 2, -1], &[24], &[-1], &[0, 0, 4, 1], &[1, 2, 3, 4], &[2, 0, -1]];
    let target = Tensor::from_i64s(*draw.pick(&targets));
    Sample::new(Operator::onnx("Reshape", Attributes::new()), vec![draw.tensor(&[2, 3, 4], -1.0, 1.0), target])
}

fn infer_flatten(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape = match cx.shape(0) {
        Some(shape) => {
            let axis = flatten_axis(cx.op, shape.len())?;
            vec![Dim::product(&shape[..axis]), Dim::product(&shape[axis..])]
        }
        None => vec![Dim::Unknown, Dim::Unknown],
    };
    cx.set_tensor(0, dtype, Some(shape));
    Ok(())
}

/// The axis at which a shape is cut: one of [-rank, rank].
fn flatten_axis(op: &Operator, rank: usize) -> Result<usize> {
    let (axis, signed) = (op.attrs.int("axis", 1)?, rank as i64);
    ensure!((-signed..=signed).contains(&axis), "axis {axis} is outside [-{rank}, {rank}]");
    Ok(if axis < 0 { axis + signed } else { axis } as usize)
}

fn eval_flatten(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let (rows, cols) = x.shape().split_at(flatten_axis(cx.op, x.rank())?);
    Ok(vec![x.reshaped([rows.iter().product(), cols.iter().product()])?])
}

fn sample_flatten(draw: &mut Draw) -> Sample {
    let attrs = Attributes::new().with("axis", draw.int(-3, 3));
    Sample::new(Operator::onnx("Flatten", attrs), vec![draw.tensor(&[2, 3, 2], -1.0, 1.0)])
}

#[cfg(test)]
mod tests {
    use crate::ops::probe::Probe;
    use crate::{Attributes, DType};

    fn reshaped(from: &str, target: &[i64], allow_zero: bool) -> String {
        let mut p = Probe::new();
        let (x, target) = (p.input("x", DType::F32, from), p.ints(target));
        let y = p.op("Reshape", &[x, target], Attributes::new().with("allowzero", allow_zero));
        p.show(y)
    }

    #[test]
    fn constants_as_targets() {
        assert_eq!(reshaped("batch,seq,384", &[0, -1, 12, 32], false), "float[batch, seq, 12, 32]");
        assert_eq!(reshaped("batch,seq,12,32", &[0, 0, -1], false), "float[batch, seq, 384]");
        assert_eq!(reshaped("batch,seq + 1,12,32", &[0, 0, -1], false), "float[batch, seq + 1, 384]");
        assert_eq!(reshaped("batch,seq + 1,384", &[-1, 384], false), "float[batch + batch*seq, 384]");
        assert_eq!(reshaped("?,seq,384", &[0, -1, 12, 32], false), "float[?, seq, 12, 32]");
        assert_eq!(reshaped("batch,?,384", &[0, 0, 12, 32], false), "float[batch, ?, 12, 32]");
        assert_eq!(reshaped("batch,?,384", &[-1, 384], false), "float[?, 384]");
        assert_eq!(reshaped("0,3", &[3, 0], true), "float[3, 0]");
        assert_eq!(reshaped("batch,3", &[], false), "float[]");
    }

    #[test]
    fn targets_computed_from_the_shape() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq,384");
        let shape = p.op("Shape", &[x], Attributes::new());
        let (zero, one, front) = (p.scalar(0), p.scalar(1), p.ints(&[0]));
        let b = p.op("Gather", &[shape, zero], Attributes::new().with("axis", 0i64));
        let s = p.op("Gather", &[shape, one], Attributes::new());
        let (b, s) =
            (p.op("Unsqueeze", &[b, front], Attributes::new()), p.op("Unsqueeze", &[s, front], Attributes::new()));
        let (heads, width) = (p.ints(&[12]), p.ints(&[32]));
        let target = p.op("Concat", &[b, s, heads, width], Attributes::new().with("axis", 0i64));
        let y = p.op("Reshape", &[x, target], Attributes::new());
        let open = p.ints(&[-1]);
        let flat = p.op("Concat", &[b, open], Attributes::new().with("axis", 0i64));
        let flat = p.op("Reshape", &[y, flat], Attributes::new());
        assert_eq!(p.show(target), "int64[4] = batch, seq, 12, 32");
        assert_eq!(p.show(y), "float[batch, seq, 12, 32]");
        assert_eq!(p.show(flat), "float[batch, 384*seq]");
    }

    #[test]
    fn an_unknown_target_of_known_length_fixes_the_rank() {
        let mut p = Probe::new();
        let (x, target) = (p.input("x", DType::F32, "batch,6"), p.input("t", DType::I64, "3"));
        let y = p.op("Reshape", &[x, target], Attributes::new());
        assert_eq!(p.show(y), "float[?, ?, ?]");
    }

    #[test]
    fn contradictions_are_reported() {
        let mut p = Probe::new();
        let (x, target) = (p.input("x", DType::F32, "2,5"), p.ints(&[3, -1]));
        p.op("Reshape", &[x, target], Attributes::new());
        assert!(p.error().ends_with("[2, 5] cannot be reshaped to [3, -1]"), "{}", p.error());
    }

    #[test]
    fn flatten_multiplies() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,8,h,w");
        let (y, z) =
            (p.op("Flatten", &[x], Attributes::new()), p.op("Flatten", &[x], Attributes::new().with("axis", -4i64)));
        assert_eq!(p.show(y), "float[batch, 8*h*w]");
        assert_eq!(p.show(z), "float[1, 8*batch*h*w]");
    }
}
