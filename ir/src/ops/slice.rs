//! `Slice`: on each named axis every `step`-th entry from `start` to before `end`; and its gradient
//! `ai.sartor::SliceGrad(dy, shape, starts, ends, axes, steps)`, which puts `dy` into zeros of shape `shape`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Slice.html>. Negative bounds count from the end; then all are clamped to
//! [0, length], for negative steps to [-1, length - 1].
//!
//! On dimensions two things are taken for granted: an axis with a name is at least 1 long, and a bound that is an
//! expression lies inside the axis (a table of 512 positions cut at `seq` is `seq` long). A number that would be
//! right only for long enough axes is never claimed: `[:128]` of `seq` is unknown.

use super::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index, upgrade};
use crate::error::Result;
use crate::graph::{NodeId, Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, SARTOR_DOMAIN, Tensor, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "Slice",
        inputs: (3, 5),
        infer,
        eval: Some(eval),
        grad: Gradient::Emit(grad),
        upgrades: &[(10, |graph, id| {
            upgrade::ints_to_input(graph, id, "starts", 1)?;
            upgrade::ints_to_input(graph, id, "ends", 2)?;
            upgrade::ints_to_input(graph, id, "axes", 3)
        })],
        sample: Some(sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: SARTOR_DOMAIN,
        name: "SliceGrad",
        inputs: (4, 6),
        infer: |cx| {
            let (dtype, shape) = (cx.dtype(0)?, index::elements(cx, 1));
            cx.set_tensor(0, dtype, shape);
            Ok(())
        },
        eval: Some(eval_grad),
        decompose: Some(super::written_out::slice_grad),
        grad: Gradient::Emit(grad_of_grad),
        sample: Some(sample_grad),
        ..OpDef::DEFAULT
    },
];

/// Bounds from here on mean "to the end" whatever the length.
const FAR: i64 = i32::MAX as i64 - 1;

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    let shape = cx.shape(0).map(|shape| sliced_dims(cx, shape)).transpose()?;
    cx.set_tensor(0, dtype, shape);
    if let Some(dims) = cx.dims(0).map(<[_]>::to_vec) {
        let bounds = (cx.ints(1), cx.ints(2), optional_ints(cx, 4));
        if let (Some(starts), Some(ends), Some(steps)) = bounds {
            let step = steps.first().copied().unwrap_or(1);
            if let ([start], [end]) = (&starts[..], &ends[..]) {
                let picked = Entries::of(dims.len(), *start, *end, step)?;
                cx.set_dims(0, picked.list().into_iter().map(|i| dims[i].clone()).collect());
            }
        }
    }
    Ok(())
}

/// The elements of an optional input: `Some(empty)` if it is left out, `None` if they are unknown.
fn optional_ints(cx: &InferCx, slot: usize) -> Option<Vec<i64>> {
    if cx.input_count() > slot && cx.fact(slot).is_some() { cx.ints(slot) } else { Some(Vec::new()) }
}

fn sliced_dims(cx: &InferCx, shape: &[Dim]) -> Result<Vec<Dim>> {
    let (starts, ends) = (index::elements(cx, 1), index::elements(cx, 2));
    let axes = optional_ints(cx, 3);
    let (Some(starts), Some(ends), Some(axes)) = (starts, ends, axes) else {
        return Ok(vec![Dim::Unknown; shape.len()]);
    };
    ensure!(starts.len() == ends.len(), "{} starts and {} ends", starts.len(), ends.len());
    let axes = named_axes(&axes, starts.len(), shape.len())?;
    let steps = optional_ints(cx, 4);
    let mut out = shape.to_vec();
    for (i, axis) in axes.into_iter().enumerate() {
        let step = match &steps {
            Some(steps) if steps.is_empty() => Some(1),
            Some(steps) => steps.get(i).copied(),
            None => None,
        };
        out[axis] = step.map_or(Ok(Dim::Unknown), |step| length(&shape[axis], &starts[i], &ends[i], step))?;
    }
    Ok(out)
}

/// The axes of the bounds: those listed, or the first ones.
fn named_axes(axes: &[i64], count: usize, rank: usize) -> Result<Vec<usize>> {
    if axes.is_empty() {
        ensure!(count <= rank, "{count} starts for rank {rank}");
        return Ok((0..count).collect());
    }
    ensure!(axes.len() == count, "{} axes and {count} starts", axes.len());
    index::normal_axes(axes, rank)
}

/// The length of a slice of one axis.
fn length(dim: &Dim, start: &Dim, end: &Dim, step: i64) -> Result<Dim> {
    ensure!(step != 0, "a step is 0");
    if let (Some(len), Some(start), Some(end)) = (dim.known(), start.known(), end.known()) {
        return Ok(Dim::Known(Entries::of(index::sizes(&[len])?[0], start, end, step)?.count as i64));
    }
    let (from, to) = if step > 0 { (position(dim, start), position(dim, end)) } else { turned(dim, start, end) };
    let (near, far) = if step > 0 { (&from, &to) } else { (&to, &from) };
    let distance = far.sub(near);
    let size = step.unsigned_abs() as i64;
    let count = distance.add(&(size - 1).into()).div_floor(&size.into());
    Ok(if sure(dim, near, far, &count) { count } else { Dim::Unknown })
}

/// Whether the count holds however long the axis is (as long as it has at least one entry, if it has a name).
fn sure(dim: &Dim, near: &Dim, far: &Dim, count: &Dim) -> bool {
    let inside = |bound: &Dim| bound.known().is_none_or(|n| (-1..=1).contains(&n));
    match (dim, count) {
        (_, Dim::Unknown) => false,
        // Bounds that are expressions in a fixed axis.
        (Dim::Known(len), _) => [near, far].iter().all(|b| b.known().is_none_or(|n| (-1..=*len).contains(&n))),
        (_, Dim::Known(n)) => *n <= 1 && dim.as_symbol().is_some() && inside(near) && inside(far),
        // `[a:b]` with numbers beyond the first entries would need a minimum; an open end does not.
        _ => far.known().is_none_or(|n| n <= 1),
    }
}

/// Where a bound stands for a positive step.
fn position(dim: &Dim, bound: &Dim) -> Dim {
    match bound {
        Dim::Known(n) if *n >= FAR => dim.clone(),
        Dim::Known(n) if *n <= -FAR => Dim::Known(0),
        _ => from_front(dim, bound),
    }
}

/// Where the bounds stand for a negative step: the first entry, and the one before the last.
fn turned(dim: &Dim, start: &Dim, end: &Dim) -> (Dim, Dim) {
    let last = dim.sub(&1.into());
    let from = match start {
        Dim::Known(n) if *n >= FAR => last,
        _ => from_front(dim, start),
    };
    let to = match end {
        Dim::Known(n) if *n <= -FAR => Dim::Known(-1),
        _ => from_front(dim, end),
    };
    (from, to)
}

/// A bound counted from the front; unknown if its sign is.
fn from_front(dim: &Dim, bound: &Dim) -> Dim {
    match is_negative(bound) {
        Some(true) => dim.add(bound),
        Some(false) => bound.clone(),
        None => Dim::Unknown,
    }
}

/// The sign of a bound, judged at several sizes of its symbols.
fn is_negative(bound: &Dim) -> Option<bool> {
    let signs: Option<Vec<bool>> =
        [1, 2, 7, 1000].iter().map(|&size| bound.eval(&|_| Some(size)).map(|value| value < 0)).collect();
    let signs = signs?;
    signs.iter().all(|&s| s == signs[0]).then_some(signs[0])
}

/// The entries of an axis that a slice takes: `first`, `first + step`, … .
#[derive(Clone, Copy)]
struct Entries {
    first: i64,
    step: i64,
    count: usize,
}

impl Entries {
    fn all(len: usize) -> Entries {
        Entries { first: 0, step: 1, count: len }
    }
    fn of(len: usize, start: i64, end: i64, step: i64) -> Result<Entries> {
        ensure!(step != 0, "a step is 0");
        let len = len as i64;
        let place = |bound: i64| if bound < 0 { bound.saturating_add(len) } else { bound };
        let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let (first, end) = (place(start).clamp(low, high), place(end).clamp(low, high));
        let distance = if step > 0 { end - first } else { first - end };
        let count = distance.max(0).unsigned_abs().div_ceil(step.unsigned_abs());
        Ok(Entries { first, step, count: count as usize })
    }
    fn list(self) -> Vec<usize> {
        (0..self.count).map(|i| (self.first + i as i64 * self.step) as usize).collect()
    }
}

/// The entries taken on every axis of a shape; `first` is the slot of `starts`.
fn taken(shape: &[usize], inputs: &[Option<&Tensor>], first: usize) -> Result<Vec<Entries>> {
    let (starts, ends) = (index::input(inputs, first)?.to_i64s()?, index::input(inputs, first + 1)?.to_i64s()?);
    let axes = index::ints(inputs, first + 2)?.unwrap_or_default();
    let steps = index::ints(inputs, first + 3)?.unwrap_or_else(|| vec![1; starts.len()]);
    ensure!(starts.len() == ends.len() && starts.len() == steps.len(), "starts, ends and steps differ in number");
    let mut taken: Vec<Entries> = shape.iter().map(|&len| Entries::all(len)).collect();
    for (i, axis) in named_axes(&axes, starts.len(), shape.len())?.into_iter().enumerate() {
        taken[axis] = Entries::of(shape[axis], starts[i], ends[i], steps[i])?;
    }
    Ok(taken)
}

/// For a SliceGrad whose bounds and sliced axes are known and whose steps are 1: how much the slice cut off at the beginning of each axis,
/// then at the end, and the axes.
pub(super) fn cut_off(emit: &Emit, id: NodeId) -> Option<(Vec<i64>, Vec<i64>)> {
    let ints = |slot| emit.graph.constant(emit.graph.input(id, slot)?)?.to_i64s().ok();
    let optional = |slot, default: Vec<i64>| emit.graph.input(id, slot).map_or(Some(default), |_| ints(slot));
    let (starts, ends, shape) = (ints(2)?, ints(3)?, emit.shape(Value { node: id, slot: 0 }).ok()?);
    let axes = named_axes(&optional(4, Vec::new())?, starts.len(), shape.len()).ok()?;
    let steps = optional(5, vec![1; starts.len()])?;
    let (mut front, mut back) = (Vec::new(), Vec::new());
    for (i, &axis) in axes.iter().enumerate() {
        let length = usize::try_from(shape[axis].known()?).ok()?;
        let entries = Entries::of(length, starts[i], *ends.get(i)?, *steps.get(i)?).ok().filter(|e| e.step == 1)?;
        front.push(entries.first);
        back.push((length - entries.count) as i64 - entries.first);
    }
    Some(([front, back].concat(), axes.into_iter().map(|axis| axis as i64).collect()))
}

/// Where the elements of the slice stand in a tensor of this shape, and the slice's shape.
fn places(shape: &[usize], taken: &[Entries]) -> (Vec<usize>, Vec<usize>) {
    let sliced: Vec<usize> = taken.iter().map(|t| t.count).collect();
    if sliced.contains(&0) {
        return (Vec::new(), sliced);
    }
    let scale = |(entries, stride): (&Entries, usize)| entries.list().into_iter().map(|i| i * stride).collect();
    let offsets: Vec<Vec<usize>> = taken.iter().zip(index::strides(shape)).map(scale).collect();
    (index::outer_sum(&offsets), sliced)
}

fn eval(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let x = index::input(inputs, 0)?;
    let (places, shape) = places(x.shape(), &taken(x.shape(), inputs, 1)?);
    Ok(vec![index::pick(&[x], shape, &places)?])
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (x, dy) = (cx.input(0)?, cx.dy()?);
    let shape = cx.emit.shape_of(x)?;
    let mut inputs = vec![Some(dy), Some(shape)];
    inputs.extend((1..cx.wants.len()).map(|slot| cx.optional_input(slot)));
    let dx = cx.emit.node(Operator::sartor("SliceGrad", Attributes::new()), &inputs, 1)?[0];
    cx.emit.type_like(dx, x);
    let mut grads = vec![None; cx.wants.len()];
    grads[0] = Some(dx);
    Ok(grads)
}

fn eval_grad(_: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (dy, shape) = (index::input(inputs, 0)?, index::shape_input(inputs, 1)?);
    let (places, sliced) = places(&shape, &taken(&shape, inputs, 2)?);
    ensure!(dy.shape() == sliced, "a gradient of shape {:?}, expected {sliced:?}", dy.shape());
    Ok(vec![index::accumulate(dy, &shape, &places)?])
}

fn grad_of_grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let mut inputs = vec![Some(cx.dy()?)];
    inputs.extend((2..cx.wants.len()).map(|slot| cx.optional_input(slot)));
    let mut grads = vec![None; cx.wants.len()];
    grads[0] = cx.emit.node(Operator::onnx("Slice", Attributes::new()), &inputs, 1)?.first().copied();
    Ok(grads)
}

/// Starts, ends, axes and steps for the shape [4, 3, 5].
fn case(draw: &mut Draw) -> Vec<Tensor> {
    let cases: [[&[i64]; 4]; 6] = [
        [&[1], &[3], &[0], &[1]],
        [&[0, -2], &[i64::MAX, 9], &[1, 2], &[2, 1]],
        [&[-1], &[i64::MIN], &[-1], &[-1]],
        [&[-1, 3], &[-4, 0], &[2, 0], &[-2, -1]],
        [&[2], &[2], &[1], &[1]],
        [&[0, 1, 1], &[4, -1, 4], &[0, 1, 2], &[3, 1, 2]],
    ];
    draw.pick(&cases).map(Tensor::from_i64s).to_vec()
}

fn sample(draw: &mut Draw) -> Sample {
    let inputs = [vec![draw.tensor(&[4, 3, 5], -1.0, 1.0)], case(draw)].concat();
    Sample::new(Operator::onnx("Slice", Attributes::new()), inputs)
}

fn sample_grad(draw: &mut Draw) -> Sample {
    let bounds = case(draw);
    let slots: Vec<Option<&Tensor>> = bounds.iter().map(Some).collect();
    let shape = taken(&[4, 3, 5], &slots, 0).map(|t| t.iter().map(|t| t.count).collect::<Vec<_>>()).unwrap_or_default();
    let inputs = [vec![draw.tensor(&shape, -1.0, 1.0), Tensor::from_i64s(&[4, 3, 5])], bounds].concat();
    Sample::new(Operator::sartor("SliceGrad", Attributes::new()), inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::probe::Probe;

    fn sliced(dim: &str, start: i64, end: i64, step: i64) -> String {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, dim);
        let bounds = [[start], [end], [0], [step]].map(|b| p.ints(&b));
        let y = p.op("Slice", &[&[x], &bounds[..]].concat(), Attributes::new());
        p.show(y)
    }

    #[test]
    fn numbers_against_dimensions() {
        assert_eq!(sliced("10", 2, 100, 3), "float[3]");
        assert_eq!(sliced("seq", 0, i64::MAX, 1), "float[seq]");
        assert_eq!(sliced("seq", 1, i64::MAX, 1), "float[seq - 1]");
        assert_eq!(sliced("seq", 0, -1, 1), "float[seq - 1]");
        assert_eq!(sliced("seq", 0, 1, 1), "float[1]");
        assert_eq!(sliced("seq", -1, i64::MAX, 1), "float[1]");
        assert_eq!(sliced("seq", 0, i64::MAX, 2), "float[floor((seq + 1)/(2))]");
        assert_eq!(sliced("seq", -1, i64::MIN, -1), "float[seq]");
        assert_eq!(sliced("seq", i64::MAX, i64::MIN, -1), "float[seq]");
        assert_eq!(sliced("seq", 0, 128, 1), "float[?]");
        assert_eq!(sliced("seq", -3, i64::MAX, 1), "float[?]");
        assert_eq!(sliced("?", 0, i64::MAX, 1), "float[?]");
    }

    #[test]
    fn dimensions_as_bounds() {
        let mut p = Probe::new();
        let (ids, table) = (p.input("ids", DType::I64, "batch,seq"), p.input("positions", DType::I64, "1,512"));
        let shape = p.op("Shape", &[ids], Attributes::new());
        let (zero, one, two) = (p.ints(&[0]), p.ints(&[1]), p.ints(&[2]));
        let seq = p.op("Slice", &[shape, one, two], Attributes::new());
        let positions = p.op("Slice", &[table, zero, seq, one, one], Attributes::new());
        let backward = p.ints(&[-1]);
        let turned = p.op("Slice", &[shape, backward, zero, zero, backward], Attributes::new());
        assert_eq!(p.show(seq), "int64[1] = seq");
        assert_eq!(p.show(positions), "int64[1, seq]");
        assert_eq!(p.show(turned), "int64[1] = seq");
    }

    #[test]
    fn entries_are_clamped() {
        let list = |len, start, end, step| Entries::of(len, start, end, step).unwrap().list();
        assert_eq!(list(5, -100, 3, 2), [0, 2]);
        assert_eq!(list(5, 100, -100, -2), [4, 2, 0]);
        assert_eq!(list(5, 0, 5, i64::MIN), [0; 0]);
        assert_eq!(list(0, -1, i64::MIN, -1), [0; 0]);
        assert!(Entries::of(5, 0, 1, 0).is_err());
        assert_eq!(Entries::of(1 << 50, 1, i64::MAX, 2).unwrap().count, 1 << 49);
    }
}
