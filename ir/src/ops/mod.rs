//! The operators: nodes are data, behaviour is a row of a table.
//!
//! An operator is one [`OpDef`]: how to infer the types of its outputs, the reference evaluation, the gradient (it
//! adds nodes), the cost, how to lift it from older opsets, and how to make random samples of it for the tests that loop over the
//! whole table. Each file of this folder holds one operator, or a family that differs only in a row; [`FAMILIES`]
//! lists them all. All rows speak opset [`crate::OPSET`] or later: older models are upgraded first.

use crate::dim::Dim;
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeId, Operator, Value};
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;
use crate::types::Type;
use crate::{DType, bail, ensure};
use std::collections::HashMap;
use std::sync::LazyLock;

pub mod activation;
pub mod arithmetic;
pub mod attention;
pub mod batch_norm;
pub mod binary;
pub mod bitwise;
pub mod body;
pub mod broadcast;
pub mod cast;
pub mod causal_conv;
pub mod center_crop_pad;
pub mod col2im;
pub mod compare;
pub mod concat;
pub mod conditional;
pub mod constant;
pub mod contrib;
pub mod conv;
pub mod conv_transpose;
pub mod cumsum;
pub mod deferred;
pub mod deform_conv;
pub mod depth_to_space;
pub mod det;
pub mod dft;
pub mod dropout;
pub mod einsum;
pub mod elementwise;
pub mod emit;
pub mod expand;
pub mod gate;
pub mod gather;
pub mod gather_nd;
pub mod gemm;
pub mod global_pool;
pub mod gradient;
pub mod grid_sample;
pub mod index;
pub mod integer_products;
pub mod interpolate;
pub mod kinks;
pub mod lacks;
pub mod layer_norm;
pub mod linear_attention;
pub mod loops;
pub mod loss;
pub mod loss_grad;
pub mod matmul;
pub mod max_unpool;
pub mod non_max_suppression;
pub mod nonzero;
pub mod norms;
pub mod one_hot;
pub mod optimizers;
pub mod optional;
pub mod pad;
pub mod pool;
#[cfg(test)]
mod probe;
pub mod quantize;
pub mod random;
pub mod range;
pub mod real;
pub mod recurrent;
pub mod reduce;
pub mod reshape;
pub mod resize;
pub mod reverse_sequence;
pub mod roi;
pub mod rotary_embedding;
pub mod scan;
pub mod scatter;
pub mod select;
pub mod sequence;
pub mod shape;
pub mod signal;
pub mod slice;
pub mod softmax;
pub mod split;
pub mod squeeze;
pub mod swiglu;
pub mod tensor_scatter;
pub mod tile;
pub mod topk;
pub mod transpose;
pub mod trilu;
pub mod unary;
pub mod unique;
pub mod upgrade;
pub mod variadic;
pub mod window;
pub mod written_out;

pub use elementwise::is_elementwise;
pub use emit::Emit;
pub use gradient::{decompose_composites, gradients, has_gradient};

/// The table of contents: every family of operators.
pub const FAMILIES: &[&[OpDef]] = &[
    // Elementwise.
    unary::OPS,
    activation::OPS,
    gate::OPS,
    binary::OPS,
    variadic::OPS,
    swiglu::OPS,
    compare::OPS,
    bitwise::OPS,
    select::OPS,
    cast::OPS,
    // Products and random numbers.
    matmul::OPS,
    gemm::OPS,
    einsum::OPS,
    attention::OPS,
    rotary_embedding::OPS,
    linear_attention::OPS,
    dropout::OPS,
    random::OPS,
    // Movement.
    shape::OPS,
    reshape::OPS,
    squeeze::OPS,
    transpose::OPS,
    concat::OPS,
    split::OPS,
    gather::OPS,
    expand::OPS,
    constant::OPS,
    range::OPS,
    slice::OPS,
    pad::OPS,
    tile::OPS,
    gather_nd::OPS,
    scatter::OPS,
    tensor_scatter::OPS,
    one_hot::OPS,
    depth_to_space::OPS,
    trilu::OPS,
    nonzero::OPS,
    cumsum::OPS,
    topk::OPS,
    reverse_sequence::OPS,
    center_crop_pad::OPS,
    unique::OPS,
    non_max_suppression::OPS,
    optional::OPS,
    sequence::OPS,
    // Reductions, normalisation, losses, convolution, pools.
    reduce::OPS,
    softmax::OPS,
    layer_norm::OPS,
    batch_norm::OPS,
    loss::OPS,
    loss_grad::OPS,
    norms::OPS,
    conv::OPS,
    conv_transpose::OPS,
    causal_conv::OPS,
    pool::OPS,
    global_pool::OPS,
    resize::OPS,
    // Control flow and recurrence.
    conditional::OPS,
    loops::OPS,
    scan::OPS,
    recurrent::OPS,
    deferred::OPS,
    // Numbers on a grid, and products of them.
    quantize::OPS,
    integer_products::OPS,
    // Other domains.
    optimizers::OPS,
    contrib::elementwise::OPS,
    contrib::norm::OPS,
    contrib::matmul::OPS,
    contrib::attention::OPS,
    contrib::grouped::OPS,
    max_unpool::OPS,
    col2im::OPS,
    // Images at other places, spectra, matrices.
    grid_sample::OPS,
    deform_conv::OPS,
    roi::OPS,
    dft::OPS,
    signal::OPS,
    det::OPS,
];

/// One operator's behaviour.
#[derive(Clone, Copy)]
pub struct OpDef {
    /// `""` for ONNX's own, [`crate::SARTOR_DOMAIN`], [`contrib::DOMAIN`], ….
    pub domain: &'static str,
    /// `MatMul`, ….
    pub name: &'static str,
    /// Fewest and most formal inputs.
    pub inputs: (usize, usize),
    /// Fewest and most outputs.
    pub outputs: (usize, usize),
    /// Types, shapes, and (for shape arithmetic) values of the outputs; checks the attributes.
    pub infer: fn(&mut InferCx) -> Result<()>,
    /// The reference semantics, on host tensors. Inputs stand by slot, captures after the formal ones. Returns one
    /// tensor per output slot.
    pub eval: Option<EvalFn>,
    /// How gradients flow through it.
    pub grad: Gradient,
    /// The same in simpler operators: adds nodes, returns the values that replace the outputs.
    pub decompose: Option<DecomposeFn>,
    /// Floating-point operations (a multiply-add counts 2).
    pub flops: fn(&CostCx) -> u64,
    /// How nodes of older opsets become nodes of the next version in which the operator changed:
    /// `(version, rewrite)` lifts a node from before `version` to `version`. Ascending.
    pub upgrades: &'static [(i64, UpgradeFn)],
    /// A random instance, in `f64` where it is differentiable, for the tests that loop over the table.
    pub sample: Option<fn(&mut Draw) -> Sample>,
}

/// See [`OpDef::eval`].
pub type EvalFn = fn(&EvalCx, &[Option<&Tensor>]) -> Result<Vec<Tensor>>;
/// See [`OpDef::decompose`].
pub type DecomposeFn = fn(&mut Emit, NodeId) -> Result<Vec<Value>>;
/// See [`OpDef::upgrades`]. It may change the node, or replace it in the graph.
pub type UpgradeFn = fn(&mut Graph, NodeId) -> Result<()>;
/// Adds the nodes that compute the inputs' gradients; one entry per input slot (captures, where there are none, may be
/// missing), `None` where no gradient flows.
pub type GradFn = fn(&mut GradCx) -> Result<Vec<Option<Value>>>;

/// How gradients flow through an operator.
#[derive(Clone, Copy)]
pub enum Gradient {
    /// By nodes that this function adds.
    Emit(GradFn),
    /// By the gradients of its decomposition.
    Decompose,
    /// Not at all: its outputs are integers or booleans, or constant almost everywhere.
    Zero,
    /// It has one, but this table does not: training through it is refused by name.
    Missing,
}

impl OpDef {
    /// A row to be completed with `..OpDef::DEFAULT`: one input, one output, same type, no evaluation, no gradient.
    pub const DEFAULT: OpDef = OpDef {
        domain: "",
        name: "",
        inputs: (1, 1),
        outputs: (1, 1),
        infer: same_as_first,
        eval: None,
        grad: Gradient::Missing,
        decompose: None,
        flops: |_| 0,
        upgrades: &[],
        sample: None,
    };
}

impl OpDef {
    /// Whether it can be evaluated: by itself, or by its decomposition.
    pub fn is_evaluated(&self) -> bool {
        self.eval.is_some() || self.decompose.is_some()
    }
}

/// Output 0 has the type of input 0.
pub fn same_as_first(cx: &mut InferCx) -> Result<()> {
    let ty = cx.ty(0)?.clone();
    cx.set(0, ty);
    Ok(())
}

/// The row of an operator, if the table has it.
pub fn lookup(domain: &str, name: &str) -> Option<&'static OpDef> {
    static INDEX: LazyLock<HashMap<(&str, &str), &OpDef>> =
        LazyLock::new(|| all().map(|def| ((def.domain, def.name), def)).collect());
    let domain = if domain == "ai.onnx" { "" } else { domain };
    INDEX.get(&(domain, name)).copied()
}

/// All rows.
pub fn all() -> impl Iterator<Item = &'static OpDef> {
    FAMILIES.iter().copied().flatten()
}

/// The row of a node's operator.
pub fn of(op: &Operator) -> Option<&'static OpDef> {
    lookup(&op.domain, &op.name)
}

/// What is known of a value while types are inferred.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Its type.
    pub ty: Type,
    /// For integer tensors of rank 0 or 1: the elements, each a number or an expression or unknown. This is how
    /// shape arithmetic (Shape → Gather → Concat → Reshape) is seen through.
    pub dims: Option<Vec<Dim>>,
    /// The value itself, where it is a known constant.
    pub tensor: Option<Tensor>,
}

/// Longest shape tensor whose elements are followed.
pub const MAX_FACT_DIMS: usize = 64;

impl Fact {
    /// Only the type is known.
    pub fn new(ty: Type) -> Fact {
        Fact { ty, dims: None, tensor: None }
    }
    /// The value is known.
    pub fn of(tensor: &Tensor) -> Fact {
        let short = tensor.rank() <= 1 && tensor.len() <= MAX_FACT_DIMS && tensor.dtype().is_int();
        let dims = if short { tensor.to_i64s().ok().map(|v| v.into_iter().map(Dim::Known).collect()) } else { None };
        Fact { ty: Type::of(tensor), dims, tensor: Some(tensor.clone()) }
    }
    /// The elements as numbers, if all are known.
    pub fn ints(&self) -> Option<Vec<i64>> {
        match &self.tensor {
            Some(tensor) => tensor.to_i64s().ok(),
            None => self.dims.as_ref()?.iter().map(Dim::known).collect(),
        }
    }
}

/// What [`OpDef::infer`] sees and fills in.
pub struct InferCx<'a> {
    /// The operator and its attributes.
    pub op: &'a Operator,
    /// The version of ONNX's own operators that the model is written in.
    pub opset: i64,
    inputs: Vec<Option<Fact>>,
    captures: usize,
    pub(crate) scope: crate::infer::Scope,
    outputs: Vec<Option<Fact>>,
}

impl<'a> InferCx<'a> {
    /// For a node with these inputs (by slot) and this many output slots.
    pub fn new(op: &'a Operator, opset: i64, inputs: Vec<Option<Fact>>, outputs: usize) -> InferCx<'a> {
        InferCx { op, opset, inputs, captures: 0, scope: crate::infer::Scope::Declared, outputs: vec![None; outputs] }
    }
    /// The same; the last `captures` of the inputs are captures.
    pub fn with_captures(self, captures: usize) -> InferCx<'a> {
        InferCx { captures, ..self }
    }
    /// The same within a scope.
    pub(crate) fn within(self, scope: crate::infer::Scope) -> InferCx<'a> {
        InferCx { scope, ..self }
    }
    /// What is known of the formal inputs, and of the captures.
    pub fn split_captures(&self) -> (&[Option<Fact>], &[Option<Fact>]) {
        self.inputs.split_at(self.inputs.len().saturating_sub(self.captures))
    }
    /// What was inferred, by output slot.
    pub fn into_outputs(self) -> Vec<Option<Fact>> {
        self.outputs
    }
    /// The number of input slots.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }
    /// The number of output slots.
    pub fn output_count(&self) -> usize {
        self.outputs.len()
    }
    /// What is known of an input; `None` if it is left out, or nothing is known of it.
    pub fn fact(&self, slot: usize) -> Option<&Fact> {
        self.inputs.get(slot)?.as_ref()
    }
    /// The type of an input; an error that names the slot if it is missing.
    pub fn ty(&self, slot: usize) -> Result<&Type> {
        match self.fact(slot) {
            Some(fact) => Ok(&fact.ty),
            None => bail!("input {slot} is missing or of unknown type"),
        }
    }
    /// The element type of an input.
    pub fn dtype(&self, slot: usize) -> Result<DType> {
        let ty = self.ty(slot)?;
        ty.dtype().ok_or_else(|| Error::msg(format!("input {slot} is {ty}, expected a tensor")))
    }
    /// The shape of an input, `None` if its rank is unknown.
    pub fn shape(&self, slot: usize) -> Option<&[Dim]> {
        self.fact(slot)?.ty.shape()
    }
    /// The elements of an integer input, where known.
    pub fn dims(&self, slot: usize) -> Option<&[Dim]> {
        self.fact(slot)?.dims.as_deref()
    }
    /// The elements of an integer input as numbers, if all are known.
    pub fn ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.fact(slot)?.ints()
    }
    /// The value of an input, where it is a known constant.
    pub fn tensor(&self, slot: usize) -> Option<&Tensor> {
        self.fact(slot)?.tensor.as_ref()
    }
    /// Sets the type of an output; ignored for slots the node does not have.
    pub fn set(&mut self, slot: usize, ty: Type) {
        if let Some(output) = self.outputs.get_mut(slot) {
            *output = Some(Fact::new(ty));
        }
    }
    /// Sets an output to a tensor of this type and (possibly unknown) shape.
    pub fn set_tensor(&mut self, slot: usize, dtype: DType, shape: Option<Vec<Dim>>) {
        self.set(slot, Type::Tensor { dtype, shape });
    }
    /// Sets the elements of an integer output whose type is set already.
    pub fn set_dims(&mut self, slot: usize, dims: Vec<Dim>) {
        if let Some(Some(output)) = self.outputs.get_mut(slot) {
            output.dims = (dims.len() <= MAX_FACT_DIMS).then_some(dims);
        }
    }
    /// Sets everything that is known of an output.
    pub fn set_fact(&mut self, slot: usize, fact: Fact) {
        if let Some(output) = self.outputs.get_mut(slot) {
            *output = Some(fact);
        }
    }
    /// Sets an output to a known value.
    pub fn set_value(&mut self, slot: usize, value: &Tensor) {
        if let Some(output) = self.outputs.get_mut(slot) {
            *output = Some(Fact::of(value));
        }
    }
    /// An axis attribute (or input) made non-negative. Errors outside [-rank, rank).
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        normal_axis(axis, rank)
    }
}

/// An axis counted from the front. Errors outside [-rank, rank).
pub fn normal_axis(axis: i64, rank: usize) -> Result<usize> {
    let signed = rank as i64;
    ensure!(-signed <= axis && axis < signed, "axis {axis} is outside [-{rank}, {rank})");
    Ok(if axis < 0 { axis + signed } else { axis } as usize)
}

/// What [`OpDef::eval`] sees besides the inputs.
pub struct EvalCx<'a> {
    /// The operator and its attributes.
    pub op: &'a Operator,
    /// The version of ONNX's own operators that the model is written in.
    pub opset: i64,
    /// Which output slots are wanted; the others may come back as empty tensors.
    pub wanted: Vec<bool>,
    /// The random numbers of this node in this step.
    pub stream: Stream,
    /// The value of a parameter, for bodies that read some.
    pub params: &'a dyn Fn(&str) -> Option<Tensor>,
    /// Runs bodies, if somebody can do it faster than the reference evaluation.
    pub bodies: Option<&'a RunBody<'a>>,
}

/// Runs the body of a node once: with a seed, in the iteration of this number, on its inputs in order and its captures. Gives its outputs in order.
pub type RunBody<'a> = dyn Fn(&Graph, (u64, u64), Vec<Tensor>, &HashMap<Value, Tensor>) -> Result<Vec<Tensor>> + 'a;

/// The parameters of an evaluation outside of a model: none.
pub fn no_params(_: &str) -> Option<Tensor> {
    None
}

/// What [`OpDef::flops`] sees: static shapes.
pub struct CostCx<'a> {
    /// The operator and its attributes.
    pub op: &'a Operator,
    /// The shapes of the inputs; empty where left out.
    pub inputs: Vec<Vec<usize>>,
    /// The shapes of the outputs.
    pub outputs: Vec<Vec<usize>>,
}

impl CostCx<'_> {
    /// The number of elements of an output.
    pub fn output_len(&self, slot: usize) -> u64 {
        self.outputs.get(slot).map_or(0, |s| s.iter().map(|&d| d as u64).product())
    }
    /// The number of elements of an input.
    pub fn input_len(&self, slot: usize) -> u64 {
        self.inputs.get(slot).map_or(0, |s| s.iter().map(|&d| d as u64).product())
    }
}

/// What a [`GradFn`] sees: the node, the gradients of its outputs, and which inputs want one.
pub struct GradCx<'a, 'g> {
    /// Adds nodes to the graph and infers their types.
    pub emit: &'a mut Emit<'g>,
    /// The node.
    pub node: NodeId,
    /// The gradients of its outputs; `None` where the loss does not depend on one.
    pub grads: Vec<Option<Value>>,
    /// Which inputs' gradients are needed. Others may be left `None`.
    pub wants: Vec<bool>,
}

impl GradCx<'_, '_> {
    /// The operator, cloned, so that nodes can be added while it is read.
    pub fn op(&self) -> Operator {
        self.emit.graph.node(self.node).op().cloned().unwrap_or_default()
    }
    /// An input that must be there.
    pub fn input(&self, slot: usize) -> Result<Value> {
        match self.emit.graph.input(self.node, slot) {
            Some(value) => Ok(value),
            None => bail!("input {slot} is missing"),
        }
    }
    /// An input that may be left out.
    pub fn optional_input(&self, slot: usize) -> Option<Value> {
        self.emit.graph.input(self.node, slot)
    }
    /// An output of the node itself (of the forward computation).
    pub fn output(&self, slot: u32) -> Value {
        Value { node: self.node, slot }
    }
    /// The gradient of output 0.
    pub fn dy(&self) -> Result<Value> {
        match self.grads.first().copied().flatten() {
            Some(value) => Ok(value),
            None => bail!("there is no gradient of output 0"),
        }
    }
    /// Whether the gradient of an input is needed.
    pub fn want(&self, slot: usize) -> bool {
        self.wants.get(slot).copied().unwrap_or(false)
    }
}

/// A random instance of an operator.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The operator and its attributes.
    pub op: Operator,
    /// Its inputs. Floating-point ones are `f64` if it has a gradient.
    pub inputs: Vec<Option<Tensor>>,
    /// Which inputs the gradient is checked for.
    pub check: Vec<bool>,
    /// The number of output slots.
    pub outputs: usize,
}

impl Sample {
    /// An instance with one output whose gradient is checked for all `f64` inputs.
    pub fn new(op: Operator, inputs: Vec<Tensor>) -> Sample {
        let check = inputs.iter().map(|t| t.dtype() == DType::F64).collect();
        Sample { op, inputs: inputs.into_iter().map(Some).collect(), check, outputs: 1 }
    }
}

/// Whether two runs of the operator on the same inputs give the same outputs, so that it may be folded or merged. One
/// with subgraphs is pure if all that stands in them is.
pub fn is_pure(op: &Operator) -> bool {
    let random = ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"];
    let draws = op.domain.is_empty() && (random.contains(&op.name.as_str()) || op.name == "Dropout");
    !draws && op.attrs.graphs().all(|(_, body)| body.node_ids().filter_map(|id| body.node(id).op()).all(is_pure))
}

/// Replaces a node by its decomposition: the node's readers, or for a node nobody reads new graph outputs, read the
/// values that [`OpDef::decompose`] returns. Errors if the operator has none.
pub fn decompose(graph: &mut Graph, id: NodeId, opset: i64) -> Result<()> {
    let op = graph.node(id).op().cloned().unwrap_or_default();
    let Some(rule) = of(&op).and_then(|def| def.decompose) else {
        bail!("the operator {} has no decomposition", op.full_name());
    };
    let mut emit = Emit::new(graph, opset);
    let values = rule(&mut emit, id)?;
    let old: Vec<Value> = graph.node_outputs(id).collect();
    ensure!(values.len() >= old.len(), "the decomposition of {} gives {} outputs", op.full_name(), values.len());
    let unread = old.iter().all(|&v| graph.use_count(v) == 0);
    for (old, new) in old.into_iter().zip(values) {
        if unread {
            let name = graph.value_name(old).to_string();
            graph.outputs.push(crate::GraphOutput { name, value: new });
        }
        graph.replace_uses(old, new);
    }
    graph.remove(id);
    Ok(())
}
