//! The contracts of the operator table, checked by loops over all rows: a new operator is tested by being in the table.
//! Each test lists all operators that break its contract.

use sartor_ir::eval::{self, Environment};
use sartor_ir::ops::kinks::KINKS;
use sartor_ir::ops::{self, Emit, Gradient, MAX_FACT_DIMS, OpDef, Sample, index};
use sartor_ir::rng::{Draw, Stream};
use sartor_ir::{DType, Dim, Graph, GraphOutput, NodeId, OPSET, Tensor, Type, Value, infer};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Rows that have types alone: a pass puts tensors in their place.
const SEQUENCES: [&str; 8] = [
    "SequenceEmpty",
    "SequenceConstruct",
    "SequenceInsert",
    "SequenceErase",
    "SplitToSequence",
    "SequenceAt",
    "ConcatFromSequence",
    "SequenceLength",
];

/// Rows without a sample, and why.
const NO_SAMPLE: &[(&str, &str)] = &[
    ("Scatter", "stands for older models only: its upgrade renames it ScatterElements"),
    ("DeferredGrad", "its gradients are compared with those of the decomposition in `recurrent`"),
];

/// Rows that need some axes as numbers, and why. Exporters give them as numbers.
const NEEDS_NUMBERS: &[(&str, &str)] = &[("ConvTranspose", "its gradient needs the size of the kernel")];

/// Rows that have neither an evaluation with a gradient nor a decomposition, and why.
const LAW_EXCEPTIONS: &[(&str, &str)] =
    &[("LinearAttentionGrad", "it runs backwards through time once, not twice"), ("DeferredGrad", "it is a gradient")];

/// Rows whose output shape depends on the input's values, so that inference leaves axes open.
const DATA_DEPENDENT: &[&str] = &["NonZero", "Compress", "Unique", "NonMaxSuppression"];

type Outcome = Result<(), String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Runs a check on several random samples of every row that has them; panics count as failures, one line per row.
fn for_all_samples(count: u64, check: impl Fn(&OpDef, &Sample, u64) -> Outcome) {
    let mut failures = Vec::new();
    for def in ops::all() {
        let Some(sample) = def.sample else { continue };
        for seed in 0..count {
            let run = || {
                let sample = sample(&mut Draw::new(seed, def.name));
                check(def, &sample, seed).map_err(|e| format!("{e}\n    in {sample:?}"))
            };
            let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
                let message = panic.downcast_ref::<String>().cloned();
                Err(format!(
                    "panic: {}",
                    message.or(panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
                ))
            });
            if let Err(message) = outcome {
                failures.push(format!("{} (sample {seed}): {message}", def.name));
                break;
            }
        }
    }
    assert!(failures.is_empty(), "{} operators fail:\n{}", failures.len(), failures.join("\n"));
}

/// How the axes of a case's inputs are declared.
#[derive(Clone, Copy, PartialEq)]
enum Axes {
    /// As numbers.
    Numbers,
    /// Lengths above 1 as symbols, the same one for the same length.
    SymbolPerLength,
    /// Each axis as a symbol of its own.
    SymbolPerAxis,
}

/// A graph with one node: the sample's operator.
struct Case {
    graph: Graph,
    /// The graph inputs' tensors.
    feeds: HashMap<String, Tensor>,
    /// The input slots that are graph inputs.
    fed: HashMap<usize, Value>,
    /// The symbols of the declared shapes.
    symbols: HashMap<String, i64>,
}

impl Case {
    fn new(sample: &Sample, axes: Axes) -> Result<Case, String> {
        let mut case =
            Case { graph: Graph::new("case"), feeds: HashMap::new(), fed: HashMap::new(), symbols: HashMap::new() };
        let mut inputs = Vec::new();
        for (slot, tensor) in sample.inputs.iter().enumerate() {
            inputs.push(tensor.as_ref().map(|t| case.add_input(sample, slot, t, axes)));
        }
        let node = case.graph.add_op("node", sample.op.clone(), &inputs, sample.outputs);
        for value in case.graph.node_outputs(node) {
            case.graph.outputs.push(GraphOutput { name: format!("y{}", value.slot), value });
        }
        infer::infer_node(&mut case.graph, node, OPSET).map_err(text)?;
        Ok(case)
    }
    fn node(&self) -> NodeId {
        self.graph.outputs[0].value.node
    }
    /// Small inputs whose gradient is not checked stand as constants: shapes, axes, bounds.
    fn add_input(&mut self, sample: &Sample, slot: usize, tensor: &Tensor, axes: Axes) -> Value {
        let checked = sample.check.get(slot).copied().unwrap_or(false);
        if !checked && tensor.rank() <= 1 && tensor.len() <= MAX_FACT_DIMS {
            return self.graph.add_const("constant", tensor.clone());
        }
        let name = format!("x{slot}");
        let dims: Vec<Dim> =
            (0..tensor.rank()).map(|axis| self.declare(slot, axis, tensor.shape()[axis], axes)).collect();
        let value = self.graph.add_input(&name, Type::tensor(tensor.dtype(), dims));
        self.feeds.insert(name, tensor.clone());
        self.fed.insert(slot, value);
        value
    }
    fn declare(&mut self, slot: usize, axis: usize, length: usize, axes: Axes) -> Dim {
        let name = match axes {
            Axes::SymbolPerLength if length > 1 => format!("n{length}"),
            Axes::SymbolPerAxis => format!("s{slot}_{axis}"),
            _ => return Dim::Known(length as i64),
        };
        self.symbols.insert(name.clone(), length as i64);
        Dim::symbol(&name)
    }
    fn run(&self, feeds: &HashMap<String, Tensor>) -> Result<Vec<Tensor>, String> {
        let params = |_: &str| None;
        let env = Environment { opset: OPSET, seed: 7, step: 3, params: &params };
        eval::run_graph(&self.graph, &env, feeds).map_err(text)
    }
}

#[test]
fn rows_are_well_formed() {
    let mut seen = HashSet::new();
    for def in ops::all() {
        assert!(seen.insert((def.domain, def.name)), "{} stands in the table twice", def.name);
        assert!(def.inputs.0 <= def.inputs.1 && def.outputs.0 <= def.outputs.1, "{}: arities", def.name);
        let versions: Vec<i64> = def.upgrades.iter().map(|u| u.0).collect();
        assert!(versions.is_sorted(), "{}: upgrades in the order {versions:?}", def.name);
    }
}

#[test]
fn every_row_has_a_sample() {
    check_exceptions("has no sample", NO_SAMPLE, |def| def.sample.is_some() || SEQUENCES.contains(&def.name));
}

#[test]
fn every_row_has_evaluation_and_gradient_or_a_decomposition() {
    check_exceptions("has neither evaluation and gradient nor a decomposition", LAW_EXCEPTIONS, |def| {
        let differentiable = matches!(def.grad, Gradient::Emit(_) | Gradient::Zero);
        (def.eval.is_some() && differentiable) || def.decompose.is_some() || SEQUENCES.contains(&def.name)
    });
}

/// Every row fulfils the condition or is an exception; every exception is one.
fn check_exceptions(what: &str, exceptions: &[(&str, &str)], holds: impl Fn(&OpDef) -> bool) {
    let excepted = |name: &str| exceptions.iter().any(|(n, _)| *n == name);
    let mut problems = Vec::new();
    for def in ops::all() {
        match (holds(def), excepted(def.name)) {
            (false, false) => problems.push(format!("{} {what}", def.name)),
            (true, true) => problems.push(format!("{} is listed as an exception and needs it no more", def.name)),
            _ => {}
        }
    }
    let known = |name: &str| ops::all().any(|def| def.name == name);
    problems.extend(exceptions.iter().filter(|(n, _)| !known(n)).map(|(n, _)| format!("{n} is no row of the table")));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn inference_gives_the_types_of_evaluation() {
    for_all_samples(12, |def, sample, _| {
        let (least, most) = def.inputs;
        let (count, outputs) = (sample.inputs.len(), sample.outputs);
        check((least..=most).contains(&count), || format!("{count} inputs, expected {least} to {most}"))?;
        check((def.outputs.0..=def.outputs.1).contains(&outputs), || format!("{outputs} outputs"))?;
        let case = Case::new(sample, Axes::Numbers)?;
        let found = case.run(&case.feeds)?;
        check(found.len() == outputs, || format!("{} outputs, expected {outputs}", found.len()))?;
        for (value, tensor) in case.graph.node_outputs(case.node()).zip(&found) {
            let inferred = case.graph.ty(value).map_or("nothing".to_string(), |t| t.to_string());
            let exact = case.graph.ty(value) == Some(&Type::of(tensor));
            let open = DATA_DEPENDENT.contains(&def.name)
                && case.graph.ty(value).is_some_and(|t| t.merge(&Type::of(tensor)).is_some());
            check(exact || open, || format!("output {}: {inferred} inferred, {tensor:?} computed", value.slot))?;
        }
        Ok(())
    });
}

#[test]
fn symbolic_inference_contradicts_no_evaluation() {
    for_all_samples(12, |_, sample, _| {
        let case = Case::new(sample, Axes::SymbolPerAxis)?;
        let found = case.run(&case.feeds)?;
        for (value, tensor) in case.graph.node_outputs(case.node()).zip(&found) {
            let Some(ty) = case.graph.ty(value) else { continue };
            check(ty.dtype() == Some(tensor.dtype()), || format!("output {}: {ty}, {tensor:?}", value.slot))?;
            let Some(shape) = ty.shape() else { continue };
            let numbers: Vec<Option<i64>> = shape.iter().map(|d| d.eval(&|s| case.symbols.get(s).copied())).collect();
            let right = numbers.len() == tensor.rank()
                && numbers.iter().zip(tensor.shape()).all(|(n, &d)| n.is_none_or(|n| n == d as i64));
            check(right, || format!("output {}: {ty} inferred, {tensor:?} computed", value.slot))?;
        }
        Ok(())
    });
}

#[test]
fn evaluation_does_not_depend_on_how_an_input_is_declared() {
    for_all_samples(4, |_, sample, _| {
        let (numbers, symbols) = (Case::new(sample, Axes::Numbers)?, Case::new(sample, Axes::SymbolPerLength)?);
        let (a, b) = (numbers.run(&numbers.feeds)?, symbols.run(&symbols.feeds)?);
        check(a.iter().zip(&b).all(|(a, b)| same_bits(a, b)), || format!("{a:?} against {b:?}"))
    });
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    a.dtype() == b.dtype() && a.shape() == b.shape() && a.bytes() == b.bytes() && a.strings() == b.strings()
}

#[test]
fn decompositions_compute_what_evaluation_does() {
    for_all_samples(6, |def, sample, _| {
        if def.eval.is_none() || def.decompose.is_none() {
            return Ok(());
        }
        let mut case = Case::new(sample, Axes::Numbers)?;
        let expected = case.run(&case.feeds)?;
        let node = case.node();
        ops::decompose(&mut case.graph, node, OPSET).map_err(text)?;
        for (slot, (a, b)) in case.run(&case.feeds)?.iter().zip(&expected).enumerate() {
            check(a.dtype() == b.dtype() && a.shape() == b.shape(), || {
                format!("output {slot}: {a:?}, expected {b:?}")
            })?;
            let (x, y) = (a.to_f64s().map_err(text)?, b.to_f64s().map_err(text)?);
            let close = x.iter().zip(&y).all(|(x, y)| close(*x, *y, 1e-9));
            check(close, || format!("output {slot}: {a:?}, expected {b:?}"))?;
        }
        Ok(())
    });
}

/// Operators of our own that cannot be written out for every sample where their result's shape is open, and why.
const WRITTEN_OUT_BY_NUMBERS: &[(&str, &str)] = &[
    ("ConvInputGrad", "with `auto_pad` the padding depends on the size of the image"),
    ("ConvWeightGrad", "the kernel is the result"),
    ("Recurrence", "its formula divides by the number of hidden units"),
    ("RecurrenceGrad", "the same"),
    ("AveragePoolGrad", "how many elements a window at the border sees depends on the size of the image"),
];

#[test]
fn own_operators_are_written_out_for_shapes_that_only_a_run_knows() {
    let refused = RefCell::new(HashSet::new());
    for_all_samples(20, |def, sample, _| {
        if def.domain != sartor_ir::SARTOR_DOMAIN || def.eval.is_none() || def.decompose.is_none() {
            return Ok(());
        }
        let mut case = Case::new(sample, Axes::SymbolPerLength)?;
        let (expected, node) = (case.run(&case.feeds)?, case.node());
        for value in case.graph.node_outputs(node).collect::<Vec<_>>() {
            let open = case.graph.ty(value).and_then(|ty| Some((ty.dtype()?, ty.rank()?)));
            let open = open.map(|(dtype, rank)| Type::tensor(dtype, vec![Dim::Unknown; rank]));
            case.graph.set_ty(value, open);
        }
        if let Err(error) = ops::decompose(&mut case.graph, node, OPSET) {
            check(WRITTEN_OUT_BY_NUMBERS.iter().any(|(name, _)| *name == def.name), || error.to_string())?;
            refused.borrow_mut().insert(def.name);
            return Ok(());
        }
        for (a, b) in case.run(&case.feeds)?.iter().zip(&expected) {
            let (x, y) = (a.to_f64s().map_err(text)?, b.to_f64s().map_err(text)?);
            let same = a.shape() == b.shape() && x.iter().zip(&y).all(|(x, y)| close(*x, *y, 1e-9));
            check(same, || format!("{a:?}, expected {b:?}"))?;
        }
        Ok(())
    });
    for (name, _) in WRITTEN_OUT_BY_NUMBERS {
        assert!(refused.borrow().contains(name), "{name} is listed and is written out always");
    }
}

/// The operators that ONNX 1.23 says are differentiable, those included that stand for older models only.
const DIFFERENTIABLE: &str = "Abs Acos Acosh Add AffineGrid Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike \
    CausalConvWithState Celu CenterCropPad Clip Col2Im Compress Concat Conv ConvTranspose Cos Cosh CumProd CumSum DepthToSpace Det Div \
    Dropout Einsum Elu Erf Exp Expand Flatten GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool \
    GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN LSTM LeakyRelu LinearAttention Log \
    LogSoftmax LpNormalization LpPool MatMul Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization Min Mish Mod Mul Neg \
    NegativeLogLikelihoodLoss PRelu Pad Pow RNN Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin \
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Scatter ScatterElements ScatterND Selu Shrink Sigmoid Sin Sinh Slice Softmax \
    SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum SwiGLU Swish Tan Tanh TensorScatter ThresholdedRelu \
    Tile TopK Transpose Trilu Unsqueeze Where";

#[test]
fn what_onnx_calls_differentiable_has_a_gradient() {
    let lacks = |name: &&str| ops::lookup("", name).is_none_or(|def| matches!(def.grad, Gradient::Missing));
    let missing: Vec<&str> = DIFFERENTIABLE.split_whitespace().filter(lacks).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn gradients_match_finite_differences() {
    for_all_samples(20, |def, sample, seed| check_gradient(def, sample, seed, Axes::Numbers));
}

#[test]
fn gradients_match_finite_differences_under_symbolic_shapes() {
    let needed = RefCell::new(HashSet::new());
    for_all_samples(5, |def, sample, seed| {
        let outcome = check_gradient(def, sample, seed, Axes::SymbolPerLength);
        if outcome.is_err() && NEEDS_NUMBERS.iter().any(|(name, _)| *name == def.name) {
            needed.borrow_mut().insert(def.name);
            return Ok(());
        }
        outcome
    });
    for (name, _) in NEEDS_NUMBERS {
        assert!(needed.borrow().contains(name), "{name} is listed in NEEDS_NUMBERS and needs it no more");
    }
}

/// Rows whose samples' axes cannot be given other lengths without other inputs or attributes, and why.
const FIXED_SHAPES: &[(&str, &str)] =
    &[("OptionalHasElement", "its one gradient is zero, in the sample with an input")];

/// Rows that no sample of which is defined with an empty axis, and why.
const NEVER_EMPTY: &[(&str, &str)] = &[
    ("OptionalHasElement", "its one gradient is zero, in the sample with an input"),
    ("NegativeLogLikelihoodGrad", "the mean of no elements is 0/0"),
];

/// Variants that are refused because their operator is not defined there, or not well conditioned, and why.
const UNDEFINED: &[(&str, fn(&Sample) -> bool, &str)] = &[
    ("ScatterElements", |s| writes_twice(s, 2), "which of several writes to one place remains is not defined"),
    ("ScatterND", |s| writes_twice(s, 2), "which of several writes to one place remains is not defined"),
    ("MaxUnpool", |s| writes_twice(s, 0), "which of several writes to one place remains is not defined"),
    (
        "MultiHeadAttention",
        |s| s.op.attrs.flag("unidirectional", false).unwrap_or(true) && length(s, 0, 1) > length(s, 1, 1),
        "with more queries than keys some see nothing, and what is added to their scores drowns these",
    ),
];

/// The length of an axis of an input.
fn length(sample: &Sample, slot: usize, axis: usize) -> usize {
    let tensor = sample.inputs.get(slot).and_then(Option::as_ref);
    tensor.and_then(|t| t.shape().get(axis)).copied().unwrap_or(0)
}

/// Whether an element of this input does not arrive in the output, though nothing is added to it.
fn writes_twice(sample: &Sample, slot: usize) -> bool {
    let Some(Some(tensor)) = sample.inputs.get(slot) else { return true };
    if sample.op.attrs.str("reduction", "none").is_ok_and(|how| how != "none") {
        return false;
    }
    let mut marked =
        Sample { inputs: sample.inputs.clone(), op: sample.op.clone(), check: sample.check.clone(), ..*sample };
    marked.inputs[slot] =
        Some(Tensor::from_vec(tensor.shape(), (0..tensor.len()).map(|i| 1000.0 + i as f64).collect::<Vec<f64>>()));
    let Ok(found) = Case::new(&marked, Axes::Numbers).and_then(|case| case.run(&case.feeds)) else { return true };
    found[0].to_f64s().unwrap_or_default().iter().filter(|x| **x >= 999.0).count() < tensor.len()
}

#[test]
fn gradients_match_finite_differences_in_random_shapes() {
    for_all_variants(20, FIXED_SHAPES, |draw, old| {
        *draw.pick(&[1, 2, 3, 4, 5, 7].map(|n: usize| if n == old { 6 } else { n }))
    });
}

#[test]
fn gradients_of_empty_tensors_are_empty_or_zero() {
    for_all_variants(3, NEVER_EMPTY, |_, _| 0);
}

/// Checks the gradients of variants of samples in which axes have other lengths. What the evaluation refuses is not counted;
/// every row with a gradient takes `wanted` variants, or is listed.
fn for_all_variants(wanted: usize, exceptions: &[(&str, &str)], length: fn(&mut Draw, usize) -> usize) {
    let mut problems = Vec::new();
    for def in ops::all().filter(|def| matches!(def.grad, Gradient::Emit(_)) || def.decompose.is_some()) {
        let differentiable =
            |sample: fn(&mut Draw) -> Sample| sample(&mut Draw::new(0, def.name)).check.contains(&true);
        let Some(sample) = def.sample.filter(|sample| differentiable(*sample)) else { continue };
        if matches!(def.grad, Gradient::Missing) {
            continue;
        }
        let listed = exceptions.iter().any(|(name, _)| *name == def.name);
        match (variants_taken(def, sample, wanted, length), listed) {
            (Err(_), true) => {}
            (Err(message), false) => problems.push(message),
            (Ok(taken), _) if (taken < wanted) == listed => {}
            (Ok(taken), true) => problems.push(format!("{} took {taken} variants and is listed", def.name)),
            (Ok(taken), false) => problems.push(format!("{} took {taken} variants and is not listed", def.name)),
        }
    }
    assert!(problems.is_empty(), "{} operators:\n{}", problems.len(), problems.join("\n"));
}

/// How many variants of an operator, up to `wanted`, are defined; the first whose gradient is wrong is an error.
fn variants_taken(
    def: &OpDef,
    sample: fn(&mut Draw) -> Sample,
    wanted: usize,
    length: fn(&mut Draw, usize) -> usize,
) -> Result<usize, String> {
    let mut taken = 0;
    for seed in 0..wanted as u64 * 300 {
        let mut draw = Draw::new(seed, &format!("variant of {}", def.name));
        let first = sample(&mut Draw::new(seed, def.name));
        if !first.check.contains(&true) || taken == wanted {
            break;
        }
        let variant = reshaped(&first, &mut draw, length);
        let defined = |v: &Sample| !UNDEFINED.iter().any(|(name, refused, _)| *name == def.name && refused(v));
        let Some(variant) = variant.filter(defined) else { continue };
        let run = || match is_defined(&variant) {
            true => check_gradient(def, &variant, seed, Axes::Numbers).map(|()| 1),
            false => Ok(0),
        };
        let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err("panic".to_string()));
        taken += outcome.map_err(|e| format!("{} (seed {seed}): {e}\n    in {variant:?}", def.name))?;
    }
    Ok(taken)
}

/// Whether the evaluation takes a sample and gives finite numbers.
fn is_defined(sample: &Sample) -> bool {
    let finite = |y: &Tensor| y.to_f64s().is_ok_and(|y| y.iter().all(|y| y.is_finite()));
    let found = Case::new(sample, Axes::Numbers).and_then(|case| case.run(&case.feeds));
    found.is_ok_and(|found| found.iter().all(finite))
}

/// The same operator with another length where the inputs have one of theirs: in all inputs alike, in one of them, or on one
/// axis of one; and perhaps in small inputs of integers, which name lengths. Elements are drawn from the old ones.
fn reshaped(sample: &Sample, draw: &mut Draw, length: fn(&mut Draw, usize) -> usize) -> Option<Sample> {
    let mut places = Vec::new();
    for (slot, tensor) in sample.inputs.iter().enumerate() {
        let Some(tensor) = tensor.as_ref().filter(|t| !t.is_empty()) else { continue };
        places.extend((0..tensor.rank()).map(|axis| (slot, axis, tensor.shape()[axis])));
    }
    if places.is_empty() {
        return None;
    }
    let (slot, axis, old) = *draw.pick(&places);
    let (new, scope, values) = (length(draw, old), draw.int(0, 3), draw.chance(0.5));
    let hit = |s: usize, a: usize, n: usize| match scope {
        0 | 1 => n == old,
        2 => s == slot && n == old,
        _ => s == slot && a == axis,
    };
    let mut variant =
        Sample { op: sample.op.clone(), inputs: Vec::new(), check: sample.check.clone(), outputs: sample.outputs };
    for (s, tensor) in sample.inputs.iter().enumerate() {
        let Some(tensor) = tensor else {
            variant.inputs.push(None);
            continue;
        };
        let dims = tensor.shape().iter().enumerate();
        let shape: Vec<usize> = dims.map(|(a, &n)| if hit(s, a, n) { new } else { n }).collect();
        let count: usize = shape.iter().product();
        if count > 300 {
            return None;
        }
        let checked = sample.check.get(s) == Some(&true);
        let mut drawn = if tensor.is_empty() || (shape == tensor.shape() && !checked) {
            tensor.clone()
        } else {
            let places: Vec<usize> = (0..count).map(|_| draw.int(0, tensor.len() as i64 - 1) as usize).collect();
            index::pick(&[tensor], shape.clone(), &places).ok()?
        };
        if checked && !drawn.is_empty() {
            // Equal elements would be ties.
            let moves = draw.distinct(&shape, 5e-5).to_f64s().ok()?;
            let moved = drawn.to_f64s().ok()?.into_iter().zip(moves).map(|(x, by)| x + by).collect::<Vec<f64>>();
            drawn = Tensor::from_vec(shape.clone(), moved);
        } else if values && drawn.dtype() == DType::I64 {
            let renamed = drawn.to_i64s().ok()?.into_iter().map(|x| if x == old as i64 { new as i64 } else { x });
            drawn = Tensor::from_vec(shape.clone(), renamed.collect::<Vec<i64>>());
        }
        variant.inputs.push(Some(drawn));
    }
    Some(variant)
}

#[test]
fn kinks_have_the_gradients_that_are_listed() {
    let mut problems = Vec::new();
    for kink in KINKS {
        let run = || -> Result<Vec<f64>, String> {
            let mut case = Case::new(&(kink.sample)(), Axes::Numbers)?;
            let ones = case
                .run(&case.feeds)?
                .iter()
                .map(|y| Some(Tensor::from_vec(y.shape(), vec![1.0; y.len()])))
                .collect::<Vec<_>>();
            Ok(reverse(&mut case, &ones, &[0], Axes::Numbers)?.remove(0))
        };
        match run() {
            Ok(found) if found == kink.gradient => {}
            other => problems.push(format!("{} at {}: {other:?}, listed {:?}", kink.op, kink.at, kink.gradient)),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(KINKS.is_sorted_by_key(|kink| kink.op));
}

fn check(condition: bool, message: impl Fn() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(message()) }
}

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * (0.1 + a.abs().max(b.abs())) || (a.is_nan() && b.is_nan()) || a == b
}

/// The gradients of `Σ output · cotangent` over all `f64` outputs, against central differences.
fn check_gradient(def: &OpDef, sample: &Sample, seed: u64, axes: Axes) -> Outcome {
    if matches!(def.grad, Gradient::Missing) {
        return Ok(());
    }
    let mut case = Case::new(sample, axes)?;
    let outputs = case.run(&case.feeds)?;
    let mut draw = Draw::new(seed, "cotangents");
    let cotangents: Vec<Option<Tensor>> = outputs
        .iter()
        .map(|t| if t.dtype() == DType::F64 { Some(draw.tensor(t.shape(), 0.5, 1.5)) } else { None })
        .collect();
    let forward = Case::new(sample, axes)?;
    let loss = |feeds: &HashMap<String, Tensor>| -> Result<f64, String> { dot(&forward.run(feeds)?, &cotangents) };
    let slots: Vec<usize> =
        (0..sample.inputs.len()).filter(|s| sample.check.get(*s) == Some(&true) && case.fed.contains_key(s)).collect();
    let found = reverse(&mut case, &cotangents, &slots, axes)?;
    for (&slot, analytic) in slots.iter().zip(&found) {
        let name = format!("x{slot}");
        let length = case.feeds[&name].len();
        check(analytic.len() == length, || format!("gradient {slot} has {} elements", analytic.len()))?;
        for (i, a) in analytic.iter().enumerate() {
            let mut n = difference(&case.feeds, &name, i, 1e-5, &loss)?;
            if !close(*a, n, 1e-5) {
                // Where the function bends more than it rises.
                n = difference(&case.feeds, &name, i, 1e-6, &loss)?;
            }
            check(close(*a, n, 1e-5), || format!("gradient of input {slot} at {i} is {a}, by differences {n}"))?;
        }
    }
    Ok(())
}

fn dot(outputs: &[Tensor], cotangents: &[Option<Tensor>]) -> Result<f64, String> {
    let mut sum = 0.0;
    for (y, c) in outputs.iter().zip(cotangents) {
        if let Some(c) = c {
            let (y, c) = (y.to_f64s().map_err(text)?, c.to_f64s().map_err(text)?);
            sum += y.iter().zip(&c).map(|(y, c)| y * c).sum::<f64>();
        }
    }
    Ok(sum)
}

/// The central difference of `loss` by an element of an input.
fn difference(
    feeds: &HashMap<String, Tensor>,
    name: &str,
    i: usize,
    step: f64,
    loss: &dyn Fn(&HashMap<String, Tensor>) -> Result<f64, String>,
) -> Result<f64, String> {
    let tensor = &feeds[name];
    let values: Vec<f64> = tensor.to_vec().map_err(text)?;
    let at = |shift: f64| {
        let mut moved = values.clone();
        moved[i] += shift;
        let mut feeds = feeds.clone();
        feeds.insert(name.to_string(), Tensor::from_vec(tensor.shape(), moved));
        loss(&feeds)
    };
    Ok((at(step)? - at(-step)?) / (2.0 * step))
}

/// Reverse mode over the case's graph, composites decomposed first. Returns the gradients of these input slots;
/// where none flows, zeros.
fn reverse(
    case: &mut Case,
    cotangents: &[Option<Tensor>],
    slots: &[usize],
    axes: Axes,
) -> Result<Vec<Vec<f64>>, String> {
    if axes == Axes::Numbers {
        ops::decompose_composites(&mut case.graph, OPSET, |_, _| true).map_err(text)?;
    } else {
        // What cannot be decomposed before a run is deferred to it.
        let sources: Vec<Value> = slots.iter().map(|slot| case.fed[slot]).collect();
        let targets = |graph: &Graph| graph.outputs.iter().map(|o| o.value).collect();
        ops::gradient::decompose_between(&mut case.graph, &sources, targets, OPSET).map_err(text)?;
    }
    let mut grads: HashMap<Value, Value> = HashMap::new();
    let mut emit = Emit::new(&mut case.graph, OPSET);
    for (output, cotangent) in emit.graph.outputs.clone().iter().zip(cotangents) {
        if let Some(cotangent) = cotangent {
            let seed = emit.constant(cotangent.clone());
            add_to(&mut emit, &mut grads, output.value, seed)?;
        }
    }
    for id in emit.graph.topo_ops().into_iter().rev() {
        let own: Vec<Option<Value>> = emit.graph.node_outputs(id).map(|v| grads.get(&v).copied()).collect();
        let inputs = emit.graph.node_inputs(id);
        let float = |v: &Option<Value>| {
            v.is_some_and(|v| infer::is_float(emit.graph.ty(v)) && emit.graph.constant(v).is_none())
        };
        let wants: Vec<bool> = inputs.iter().map(float).collect();
        if own.iter().any(Option::is_some) {
            let found = ops::gradients(&mut emit, id, own, wants).map_err(text)?;
            for (input, grad) in inputs.into_iter().zip(found) {
                if let (Some(input), Some(grad)) = (input, grad) {
                    add_to(&mut emit, &mut grads, input, grad)?;
                }
            }
        }
    }
    case.graph.outputs.clear();
    let mut places = Vec::new();
    for slot in slots {
        places.push(grads.get(&case.fed[slot]).map(|&value| {
            case.graph.outputs.push(GraphOutput { name: format!("g{slot}"), value });
            case.graph.outputs.len() - 1
        }));
    }
    case.graph.remove_dead();
    let found = case.run(&case.feeds)?;
    let mut out = Vec::new();
    for (slot, place) in slots.iter().zip(places) {
        let input = &case.feeds[&format!("x{slot}")];
        out.push(match place {
            None => vec![0.0; input.len()],
            Some(place) => {
                let grad = &found[place];
                check(grad.shape() == input.shape(), || format!("gradient {slot}: {grad:?} of {input:?}"))?;
                grad.to_vec().map_err(text)?
            }
        });
    }
    Ok(out)
}

fn add_to(emit: &mut Emit, grads: &mut HashMap<Value, Value>, to: Value, grad: Value) -> Outcome {
    let sum = match grads.get(&to) {
        Some(&old) => emit.add(old, grad).map_err(text)?,
        None => grad,
    };
    grads.insert(to, sum);
    Ok(())
}

#[test]
fn random_operators_repeat_themselves_and_differ_between_steps() {
    for def in ops::all() {
        let (Some(sample), Some(eval)) = (def.sample, def.eval) else { continue };
        let sample = sample(&mut Draw::new(0, def.name));
        if ops::is_pure(&sample.op) || !def.name.starts_with("Random") {
            continue;
        }
        let inputs: Vec<Option<&Tensor>> = sample.inputs.iter().map(Option::as_ref).collect();
        let run = |step| {
            let stream = Stream::new(1, step, "node");
            let params = &ops::no_params;
            let cx = ops::EvalCx { op: &sample.op, opset: OPSET, wanted: vec![true], stream, params, bodies: None };
            eval(&cx, &inputs).unwrap().remove(0)
        };
        assert!(same_bits(&run(1), &run(1)), "{} does not repeat itself", def.name);
        assert!(run(1).is_empty() || !same_bits(&run(1), &run(2)), "{} is the same in two steps", def.name);
    }
}
