//! What the elementwise operators share: their types, their evaluation over all element types, and the shapes of their
//! gradients. The operators themselves are rows in [`super::unary`], [`super::activation`], [`super::arithmetic`],
//! [`super::variadic`], [`super::compare`], [`super::bitwise`] and [`super::select`].
//!
//! A rule is one scalar function for floats and one for integers. Floats of every width are computed in `f64` and
//! rounded once; integers in `i128` and wrapped to their width, as two's complement does. Operators of several inputs
//! broadcast, and their gradients are summed back over the axes that were stretched.

use super::{Emit, GradCx, InferCx, OpDef, Sample, broadcast};
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::Draw;
use crate::types::Type;
use crate::{Attributes, DType, Dim, Tensor, bail, dispatch, ensure};

/// Operators of ONNX's own domain of which every output element depends on one element of each input, under broadcasting;
/// in alphabetical order. Those that draw random numbers or have several outputs are not among them.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
];

/// Whether an operator of ONNX's own domain is elementwise, with broadcasting.
pub fn is_elementwise(name: &str) -> bool {
    ELEMENTWISE.binary_search(&name).is_ok()
}

/// What rows of one input share: the output has its type.
pub(super) const UNARY: OpDef = OpDef {
    infer: infer_unary,
    flops: |cx| cx.output_len(0),
    upgrades: &[(6, drop_consumed_inputs)],
    ..OpDef::DEFAULT
};

/// What rows of two broadcast inputs of one type share.
pub(super) const BINARY: OpDef = OpDef {
    inputs: (2, 2),
    infer: infer_same_type,
    flops: |cx| cx.output_len(0),
    upgrades: &[(6, drop_consumed_inputs), (7, align_broadcast)],
    ..OpDef::DEFAULT
};

// ---- types ----------------------------------------------------------------------------------------------------------

/// The type of input 0, which must be a number.
pub(super) fn infer_unary(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype.is_float() || dtype.is_int(), "its input is {dtype}, expected numbers");
    super::same_as_first(cx)
}

/// The broadcast shape of all inputs; unknown if the rank of one is.
pub(super) fn broadcast_shape(cx: &InferCx) -> Result<Option<Vec<Dim>>> {
    let shapes: Option<Vec<&[Dim]>> = (0..cx.input_count()).map(|slot| cx.shape(slot)).collect();
    shapes.map(|shapes| broadcast::dims(&shapes)).transpose()
}

/// All inputs have one element type, and the output has it too, in their broadcast shape.
pub(super) fn infer_same_type(cx: &mut InferCx) -> Result<()> {
    let dtype = one_type(cx, 0..cx.input_count())?;
    let shape = broadcast_shape(cx)?;
    cx.set_tensor(0, dtype, shape);
    Ok(())
}

/// The one element type of these inputs.
pub(super) fn one_type(cx: &InferCx, slots: std::ops::Range<usize>) -> Result<DType> {
    let first = cx.dtype(slots.start)?;
    for slot in slots {
        let other = cx.dtype(slot)?;
        ensure!(first == other, "its operands are {first} and {other}, expected one element type");
    }
    Ok(first)
}

/// Follows shape arithmetic: sets the elements of output 0 to `rule` of the inputs' elements, where the output is an
/// integer or boolean tensor of rank 0 or 1 and the elements of all inputs are known or partly known.
pub(super) fn follow(cx: &mut InferCx, output: DType, rule: impl Fn(&[&Dim]) -> Dim) {
    let Ok(Some(shape)) = broadcast_shape(cx) else { return };
    let len = match shape.as_slice() {
        [] => 1,
        [Dim::Known(n)] if (0..=super::MAX_FACT_DIMS as i64).contains(n) => *n as usize,
        _ => return,
    };
    if !(output.is_int() || output == DType::Bool) {
        return;
    }
    let Some(inputs) = (0..cx.input_count()).map(|slot| elements(cx, slot)).collect::<Option<Vec<_>>>() else { return };
    if inputs.iter().any(|dims| dims.len() != len && dims.len() != 1) {
        return;
    }
    let at = |dims: &'_ Vec<Dim>, i: usize| dims[if dims.len() == 1 { 0 } else { i }].clone();
    let out = (0..len).map(|i| {
        let row: Vec<Dim> = inputs.iter().map(|dims| at(dims, i)).collect();
        rule(&row.iter().collect::<Vec<_>>())
    });
    let out = out.collect();
    cx.set_dims(0, out);
}

/// The elements of an integer or boolean input, as far as they are known.
pub(super) fn elements(cx: &InferCx, slot: usize) -> Option<Vec<Dim>> {
    match cx.dims(slot) {
        Some(dims) => Some(dims.to_vec()),
        None => Some(cx.tensor(slot)?.to_i64s().ok()?.into_iter().map(Dim::Known).collect()),
    }
}

// ---- evaluation -----------------------------------------------------------------------------------------------------

/// The inputs, all of which must be there.
pub(super) fn present<'t, const N: usize>(inputs: &[Option<&'t Tensor>]) -> Result<[&'t Tensor; N]> {
    let given: Option<Vec<&Tensor>> = inputs.iter().copied().collect();
    let given = given.and_then(|tensors| <[&Tensor; N]>::try_from(tensors).ok());
    given.ok_or_else(|| Error::msg(format!("it needs {N} inputs")))
}

/// `f` of each element of a floating-point input.
pub(super) fn map_float(inputs: &[Option<&Tensor>], f: impl Fn(f64) -> f64) -> Result<Vec<Tensor>> {
    let [x] = present(inputs)?;
    ensure!(x.dtype().is_float(), "its input is {}, expected a floating-point type", x.dtype());
    Ok(vec![map_number(x, f, |x| x)?])
}

/// `f` of each element of a floating-point tensor, `g` of each of an integer tensor.
pub(super) fn map_number(x: &Tensor, f: impl Fn(f64) -> f64, g: impl Fn(i128) -> i128) -> Result<Tensor> {
    map_dyn(x, &f, &g)
}

// Loops exist once per element type, not once per element type and operator: a third of this crate's code was such loops.

fn map_dyn(x: &Tensor, f: &dyn Fn(f64) -> f64, g: &dyn Fn(i128) -> i128) -> Result<Tensor> {
    use num_traits::AsPrimitive;
    let dtype = x.dtype();
    dispatch!(dtype, float T => {
        let out: Vec<T> = x.as_slice::<T>()?.iter().map(|&x| -> T { f(x.as_()).as_() }).collect();
        Ok(Tensor::from_vec(x.shape(), out))
    }, else dispatch!(dtype, int T => {
        let out: Vec<T> = x.as_slice::<T>()?.iter().map(|&x| -> T { g(x.as_()).as_() }).collect();
        Ok(Tensor::from_vec(x.shape(), out))
    }, else bail!("its input is {dtype}, expected numbers")))
}

/// Two tensors of one numeric type joined element by element under broadcasting.
pub(super) fn zip_number(
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(f64, f64) -> f64,
    g: impl Fn(i128, i128) -> i128,
) -> Result<Tensor> {
    zip_dyn(a, b, &f, &g)
}

fn zip_dyn(a: &Tensor, b: &Tensor, f: &dyn Fn(f64, f64) -> f64, g: &dyn Fn(i128, i128) -> i128) -> Result<Tensor> {
    use num_traits::AsPrimitive;
    let dtype = a.dtype();
    dispatch!(dtype, float T => broadcast::binary::<T, T>(a, b, |x, y| f(x.as_(), y.as_()).as_()),
        else dispatch!(dtype, int T => broadcast::binary::<T, T>(a, b, |x, y| g(x.as_(), y.as_()).as_()),
        else bail!("its input is {dtype}, expected numbers")))
}

/// The same for two inputs, as the `eval` of a row.
pub(super) fn zip(
    inputs: &[Option<&Tensor>],
    f: impl Fn(f64, f64) -> f64,
    g: impl Fn(i128, i128) -> i128,
) -> Result<Vec<Tensor>> {
    let [a, b] = present(inputs)?;
    Ok(vec![zip_number(a, b, f, g)?])
}

/// Two tensors of one type compared element by element under broadcasting.
pub(super) fn compare(
    inputs: &[Option<&Tensor>],
    f: impl Fn(f64, f64) -> bool,
    g: impl Fn(i128, i128) -> bool,
) -> Result<Vec<Tensor>> {
    compare_dyn(inputs, &f, &g)
}

fn compare_dyn(
    inputs: &[Option<&Tensor>],
    f: &dyn Fn(f64, f64) -> bool,
    g: &dyn Fn(i128, i128) -> bool,
) -> Result<Vec<Tensor>> {
    use num_traits::AsPrimitive;
    let [a, b] = present(inputs)?;
    let dtype = a.dtype();
    let out = dispatch!(dtype, float T => broadcast::binary::<T, bool>(a, b, |x, y| f(x.as_(), y.as_()))?,
    else dispatch!(dtype, int T => broadcast::binary::<T, bool>(a, b, |x, y| g(x.as_(), y.as_()))?,
    else if dtype == DType::Bool {
        broadcast::binary::<bool, bool>(a, b, |x, y| g(i128::from(x), i128::from(y)))?
    } else {
        bail!("its input is {dtype}, expected numbers")
    }));
    Ok(vec![out])
}

// ---- gradients ------------------------------------------------------------------------------------------------------

/// The gradient of a row of one input: `rule(emit, x, y, dy)`.
pub(super) fn through(
    cx: &mut GradCx,
    rule: impl FnOnce(&mut Emit, Value, Value, Value) -> Result<Value>,
) -> Result<Vec<Option<Value>>> {
    let (x, y, dy) = (cx.input(0)?, cx.output(0), cx.dy()?);
    Ok(vec![Some(rule(cx.emit, x, y, dy)?)])
}

/// The gradient of a row of one input by its derivative: `dy * rule(emit, x, y)`.
pub(super) fn derivative(
    cx: &mut GradCx,
    rule: impl FnOnce(&mut Emit, Value, Value) -> Result<Value>,
) -> Result<Vec<Option<Value>>> {
    through(cx, |e, x, y, dy| {
        let slope = rule(e, x, y)?;
        e.mul(dy, slope)
    })
}

/// The gradients of two broadcast inputs; each rule is asked only if its gradient is wanted.
pub(super) fn both(
    cx: &mut GradCx,
    left: impl FnOnce(&mut Emit, Value) -> Result<Value>,
    right: impl FnOnce(&mut Emit, Value) -> Result<Value>,
) -> Result<Vec<Option<Value>>> {
    let (a, b, dy) = (cx.input(0)?, cx.input(1)?, cx.dy()?);
    let mut grads = vec![None, None];
    if cx.want(0) {
        let da = left(cx.emit, dy)?;
        grads[0] = Some(cx.emit.sum_to(da, a)?);
    }
    if cx.want(1) {
        let db = right(cx.emit, dy)?;
        grads[1] = Some(cx.emit.sum_to(db, b)?);
    }
    Ok(grads)
}

impl Emit<'_> {
    /// `-a`
    pub fn neg(&mut self, a: Value) -> Result<Value> {
        self.unary("Neg", a)
    }
    /// `s - a`
    pub fn scalar_minus(&mut self, s: f64, a: Value) -> Result<Value> {
        let s = self.scalar(s, a)?;
        self.sub(s, a)
    }
    /// `a²`
    pub fn square(&mut self, a: Value) -> Result<Value> {
        self.mul(a, a)
    }
    /// One of the comparisons (`Less`, `Greater`, `Equal`, …) with a number.
    pub fn compare_scalar(&mut self, name: &str, a: Value, s: f64) -> Result<Value> {
        let s = self.scalar(s, a)?;
        self.op(name, &[a, s], Attributes::new())
    }
    /// `condition ? a : s`
    pub fn select_or(&mut self, condition: Value, a: Value, s: f64) -> Result<Value> {
        let s = self.scalar(s, a)?;
        self.select(condition, a, s)
    }
}

// ---- older opsets ---------------------------------------------------------------------------------------------------

/// Before opset 6 a node could name inputs whose memory it takes over; the attribute never changed a result.
pub(super) fn drop_consumed_inputs(graph: &mut Graph, id: NodeId) -> Result<()> {
    if let Some(op) = graph.node_mut(id).op_mut() {
        op.attrs.remove("consumed_inputs");
    }
    Ok(())
}

/// Before opset 7 the second input broadcast only if `broadcast` was 1, and then with its first axis at `axis` of the
/// first input (default: aligned at the end, as today). It gets the trailing axes of length 1 that say so today.
pub(super) fn align_broadcast(graph: &mut Graph, id: NodeId) -> Result<()> {
    let Some(op) = graph.node_mut(id).op_mut() else { return Ok(()) };
    op.attrs.remove("broadcast");
    let axis = op.attrs.get_int("axis")?;
    op.attrs.remove("axis");
    match axis {
        Some(axis) => align_at(graph, id, axis),
        None => Ok(()),
    }
}

/// Appends axes of length 1 to input 1 so that its first axis stands at `axis` of input 0.
pub(super) fn align_at(graph: &mut Graph, id: NodeId, axis: i64) -> Result<()> {
    let (Some(a), Some(b)) = (graph.input(id, 0), graph.input(id, 1)) else { return Ok(()) };
    let rank = |graph: &Graph, value| graph.ty(value).and_then(Type::rank);
    let (Some(rank_a), Some(rank_b)) = (rank(graph, a), rank(graph, b)) else {
        bail!("its attribute `axis` is {axis}, but the ranks of its inputs are unknown");
    };
    let axis = super::normal_axis(axis, rank_a)?;
    ensure!(axis + rank_b <= rank_a, "input 1 has rank {rank_b}, which does not fit at axis {axis} of rank {rank_a}");
    let missing = rank_a - axis - rank_b;
    if missing > 0 && rank_b > 0 {
        let target = [vec![0; rank_b], vec![1; missing]].concat();
        let aligned = Emit::new(graph, crate::OPSET).reshape(b, &target)?;
        graph.set_input(id, 1, Some(aligned));
    }
    Ok(())
}

// ---- samples --------------------------------------------------------------------------------------------------------

/// A small random shape.
pub(super) fn random_shape(draw: &mut Draw) -> Vec<usize> {
    let rank = draw.int(0, 3) as usize;
    (0..rank).map(|_| draw.int(1, 4) as usize).collect()
}

/// An instance with one input whose elements lie in `[low, high)`.
pub(super) fn sample_unary(draw: &mut Draw, name: &str, low: f64, high: f64) -> Sample {
    sample_unary_with(draw, Operator::onnx(name, Attributes::new()), low, high)
}

/// The same with attributes.
pub(super) fn sample_unary_with(draw: &mut Draw, op: Operator, low: f64, high: f64) -> Sample {
    let shape = random_shape(draw);
    Sample::new(op, vec![draw.tensor(&shape, low, high)])
}

/// Two shapes that broadcast.
pub(super) fn random_pair(draw: &mut Draw) -> (Vec<usize>, Vec<usize>) {
    let pairs: [(&[usize], &[usize]); 6] =
        [(&[2, 3], &[2, 3]), (&[2, 3], &[3]), (&[2, 1], &[1, 3]), (&[], &[4]), (&[3, 1, 2], &[4, 1]), (&[2], &[])];
    let (a, b) = *draw.pick(&pairs);
    (a.to_vec(), b.to_vec())
}

/// An instance with two broadcast inputs whose elements lie in `[low, high)`.
pub(super) fn sample_binary(draw: &mut Draw, op: Operator, low: f64, high: f64) -> Sample {
    let (a, b) = random_pair(draw);
    Sample::new(op, vec![draw.tensor(&a, low, high), draw.tensor(&b, low, high)])
}

/// A random boolean tensor.
pub(super) fn random_bools(draw: &mut Draw, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_vec(shape, (0..count).map(|_| draw.chance(0.5)).collect::<Vec<bool>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::probe::Probe;

    /// They are searched by halves.
    #[test]
    fn names_are_in_order() {
        assert!(ELEMENTWISE.is_sorted());
    }

    #[test]
    fn shape_arithmetic_is_followed() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq,384");
        let shape = p.op("Shape", &[x], Attributes::new());
        let twice = p.ints(&[2, 1, 12]);
        let product = p.op("Mul", &[shape, twice], Attributes::new());
        let quotient = p.op("Div", &[product, twice], Attributes::new());
        let sum = p.op("Add", &[shape, product], Attributes::new());
        assert_eq!(p.show(product), "int64[3] = 2*batch, seq, 4608");
        assert_eq!(p.show(quotient), "int64[3] = batch, seq, 384");
        assert_eq!(p.show(sum), "int64[3] = 3*batch, 2*seq, 4992");
    }

    /// What exporters write for `expand(-1, seq, -1)`: the target with its -1 replaced by 1.
    #[test]
    fn a_dimension_is_never_minus_one() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "batch,seq");
        let shape = p.op("Shape", &[x], Attributes::new());
        let (minus_one, ones) = (p.scalar(-1), p.ints(&[1, 1]));
        let open = p.op("Equal", &[shape, minus_one], Attributes::new());
        let target = p.op("Where", &[open, ones, shape], Attributes::new());
        let zero = p.scalar(0);
        let clamped = p.op("Max", &[shape, zero], Attributes::new());
        assert_eq!(p.show(open), "bool[2] = 0, 0");
        assert_eq!(p.show(target), "int64[2] = batch, seq");
        assert_eq!(p.show(clamped), "int64[2] = batch, seq");
    }

    #[test]
    fn old_broadcasts_are_aligned() {
        let mut p = Probe::new();
        let a = p.input("a", DType::F32, "2,3,4,5");
        let b = p.input("b", DType::F32, "3,4");
        let attrs = Attributes::new().with("broadcast", 1i64).with("axis", 1i64).with("consumed_inputs", [0i64, 0]);
        let y = p.op("Add", &[a, b], attrs);
        drop_consumed_inputs(&mut p.graph, y.node).unwrap();
        align_broadcast(&mut p.graph, y.node).unwrap();
        assert_eq!(p.graph.node(y.node).op().unwrap().attrs, Attributes::new());
        assert_eq!(p.show(p.graph.input(y.node, 1).unwrap()), "float[3, 4, 1]");
        assert_eq!(p.show(y), "float[2, 3, 4, 5]");
    }

    #[test]
    fn integers_wrap_and_floats_round_once() {
        let bytes = |v: Vec<u8>| Tensor::from_vec([v.len()], v);
        let sum = zip_number(&bytes(vec![250, 3]), &bytes(vec![10, 4]), |x, _| x, |x, y| x + y).unwrap();
        assert_eq!(sum.to_vec::<u8>().unwrap(), [4, 7]);
        let third = map_number(&Tensor::scalar(3.0f32), f64::recip, |x| x).unwrap();
        assert_eq!(third.item::<f32>().unwrap(), 1.0 / 3.0);
    }
}
