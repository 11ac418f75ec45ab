//! `Dropout`: in training, each element is zeroed with probability `ratio` and the others are scaled by
//! `1 / (1 - ratio)`; otherwise the identity. The second output is the mask of what stays.
//!
//! The mask is a pure function of the run's seed, the step, the node and the element's place (see [`crate::rng`]); an
//! attribute `seed` enters into it too. Spec: <https://onnx.ai/onnx/operators/onnx__Dropout.html>.

use super::elementwise::drop_consumed_inputs;
use super::random::seeded;
use super::{EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, upgrade};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::{Draw, Stream};
use crate::types::Type;
use crate::{Attributes, DType, Dim, Tensor, bail, dispatch, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Dropout",
    inputs: (1, 3),
    outputs: (1, 2),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    flops: |cx| cx.output_len(0),
    upgrades: &[(6, drop_consumed_inputs), (7, training_to_input), (10, boolean_mask), (12, ratio_to_input)],
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

const DEFAULT_RATIO: f64 = 0.5;

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = cx.dtype(0)?;
    ensure!(dtype.is_float(), "its input is {dtype}, expected a floating-point type");
    if cx.fact(2).is_some() {
        let mode = cx.dtype(2)?;
        ensure!(mode == DType::Bool, "its input 2 is {mode}, expected bool");
    }
    super::same_as_first(cx)?;
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    cx.set_tensor(1, DType::Bool, shape);
    Ok(())
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    use num_traits::AsPrimitive;
    let Some(Some(x)) = inputs.first() else { bail!("it needs an input") };
    let training = inputs.get(2).copied().flatten().map(|t| t.item::<bool>()).transpose()?.unwrap_or(false);
    let ratio = if training { ratio(inputs.get(1).copied().flatten())? } else { 0.0 };
    if ratio == 0.0 {
        return Ok(vec![(*x).clone(), Tensor::from_vec(x.shape(), vec![true; x.len()])]);
    }
    let keep = Keep::new(ratio, seeded(cx)?);
    let mask: Vec<bool> = (0..x.len()).map(|i| keep.at(i as u64)).collect();
    let y = dispatch!(x.dtype(), float T => {
        let scale: T = scale(ratio).as_();
        let scale: f64 = scale.as_();
        let keep = |(&x, &kept): (&T, &bool)| -> T { if kept { (AsPrimitive::<f64>::as_(x) * scale).as_() } else { T::default() } };
        Tensor::from_vec(x.shape(), x.as_slice::<T>()?.iter().zip(&mask).map(keep).collect::<Vec<T>>())
    }, else bail!("no Dropout of {}", x.dtype()));
    Ok(vec![y, Tensor::from_vec(x.shape(), mask)])
}

/// Which elements stay.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    stream: Stream,
    /// An element stays if the upper 53 bits drawn for it are at least this.
    threshold: u64,
}

impl Keep {
    /// Elements are dropped with the probability `ratio`, in [0, 1).
    pub fn new(ratio: f64, stream: Stream) -> Keep {
        // Exact: a product with a power of two.
        Keep { stream, threshold: (ratio * (1u64 << 53) as f64).ceil() as u64 }
    }
    /// Whether the element at a place (in row-major order) stays.
    #[inline(always)]
    pub fn at(self, place: u64) -> bool {
        self.stream.bits(place) >> 11 >= self.threshold
    }
}

/// What elements that stay are multiplied by, rounded to their type first.
pub fn scale(ratio: f64) -> f64 {
    1.0 / (1.0 - ratio)
}

/// The ratio that an input says, or the default one.
pub fn ratio(input: Option<&Tensor>) -> Result<f64> {
    let ratio = match input {
        Some(tensor) => {
            ensure!(tensor.len() == 1, "its ratio has shape {:?}, expected one number", tensor.shape());
            tensor.to_f64s()?.first().copied().unwrap_or(DEFAULT_RATIO)
        }
        None => DEFAULT_RATIO,
    };
    ensure!((0.0..1.0).contains(&ratio), "its ratio is {ratio}, expected a number in [0, 1)");
    Ok(ratio)
}

/// `dX = dY · mask / (1 - ratio)` in training, else `dY`.
fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let dy = cx.dy()?;
    let Some(training) = cx.optional_input(2) else { return Ok(vec![Some(dy)]) };
    let constant = cx.emit.graph.constant(training).map(|t| t.item::<bool>()).transpose()?;
    if constant == Some(false) {
        return Ok(vec![Some(dy)]);
    }
    let mask = cx.emit.optional_output(cx.node, 1)?;
    let dtype = cx.emit.dtype(dy)?;
    let kept = cx.emit.cast(mask, dtype)?;
    let masked = cx.emit.mul(dy, kept)?;
    let known = match cx.optional_input(1) {
        None => Some(DEFAULT_RATIO),
        Some(value) => cx.emit.graph.constant(value).map(|t| ratio(Some(&t))).transpose()?,
    };
    let scaled = match (known, constant, cx.optional_input(1)) {
        (Some(ratio), Some(true), _) => cx.emit.mul_scalar(masked, scale(ratio))?,
        (_, _, Some(ratio)) => scale_by(cx, masked, ratio, training, dtype)?,
        (_, _, None) => {
            let ratio = cx.emit.scalar(DEFAULT_RATIO, dy)?;
            scale_by(cx, masked, ratio, training, dtype)?
        }
    };
    Ok(vec![Some(scaled)])
}

/// Divided by `1 - ratio` where training is on, both known only when the model runs.
fn scale_by(cx: &mut GradCx, masked: Value, ratio: Value, training: Value, dtype: DType) -> Result<Value> {
    let ratio = cx.emit.cast(ratio, dtype)?;
    let ratio = cx.emit.select_or(training, ratio, 0.0)?;
    let rest = cx.emit.scalar_minus(1.0, ratio)?;
    cx.emit.div(masked, rest)
}

/// Before opset 7 the attribute `is_test` (default 0) said that it is not training.
fn training_to_input(graph: &mut Graph, id: NodeId) -> Result<()> {
    let Some(op) = graph.node_mut(id).op_mut() else { return Ok(()) };
    let testing = op.attrs.flag("is_test", false)?;
    op.attrs.remove("is_test");
    if !testing {
        let training = graph.add_const("training", Tensor::scalar(true));
        graph.set_input(id, 2, Some(training));
    }
    Ok(())
}

/// Before opset 10 the mask had the type of the data.
fn boolean_mask(graph: &mut Graph, id: NodeId) -> Result<()> {
    let mask = Value { node: id, slot: 1 };
    if graph.node(id).outputs.len() < 2 || graph.use_count(mask) == 0 {
        return Ok(());
    }
    let Some(old) = graph.ty(mask).cloned() else { bail!("the type of its mask is unknown") };
    let dtype = old.dtype().unwrap_or(DType::F32);
    graph.set_ty(mask, Some(Type::Tensor { dtype: DType::Bool, shape: old.shape().map(<[Dim]>::to_vec) }));
    let cast = graph.op("Cast", &[mask], super::cast::to_attribute(dtype));
    graph.set_ty(cast, Some(old));
    graph.replace_uses_if(mask, cast, |reader, _| reader != cast.node);
    graph.outputs.iter_mut().filter(|o| o.value == mask).for_each(|o| o.value = cast);
    Ok(())
}

/// Before opset 12 the ratio was an attribute; between 7 and 12 no node was training.
fn ratio_to_input(graph: &mut Graph, id: NodeId) -> Result<()> {
    upgrade::float_to_input(graph, id, "ratio", 1)
}

fn sample(draw: &mut Draw) -> Sample {
    let x = draw.tensor(&[3, 4], -2.0, 2.0);
    let (ratio, training) = (draw.tensor(&[], 0.1, 0.7), Tensor::scalar(draw.chance(0.7)));
    let inputs = if draw.chance(0.8) { vec![x, ratio, training] } else { vec![x] };
    let mut sample = Sample::new(Operator::onnx("Dropout", Attributes::new()), inputs);
    sample.check = vec![true, false, false][..sample.inputs.len()].to_vec();
    sample
}
