//! Operators one by one: which become views, which products, which join groups, which run by the reference.

use super::expr;
use super::fuse::reduction;
use super::group::{Arg, Core, Item, MAX_ROW, Out, RawProduct, What};
use super::layout;
use super::program::Width;
use super::view::{View, Walk};
use super::{Lowering, Place, Step};
use crate::cpu::gather::Gather;
use crate::cpu::patch::Patch;
use crate::cpu::reduce::Reduce;
use sartor_ir::{DType, NodeId, Operator, Result, SARTOR_DOMAIN, Value, ops};

/// The axes of a Transpose.
pub fn permutation(op: &Operator, rank: usize) -> Option<Vec<usize>> {
    let reversed: Vec<i64> = (0..rank as i64).rev().collect();
    let perm = op.attrs.ints("perm", &reversed).ok()?;
    let perm: Vec<usize> = perm.iter().filter_map(|&p| ops::normal_axis(p, rank).ok()).collect();
    (perm.len() == rank).then_some(perm)
}

/// Whether operators of this name are lowered to kernels or views.
pub fn has_kernel(op: &Operator) -> bool {
    const NAMES: &[&str] = &[
        "AveragePool",
        "AveragePoolGrad",
        "BatchNormGrad",
        "BatchNormalization",
        "Cast",
        "Concat",
        "Conv",
        "ConvInputGrad",
        "ConvWeightGrad",
        "Detach",
        "Expand",
        "Flatten",
        "Gather",
        "GatherGrad",
        "Gemm",
        "GlobalAveragePool",
        "Identity",
        "MatMul",
        "MaxPool",
        "MaxPoolGrad",
        "Pad",
        "Recurrence",
        "RecurrenceGrad",
        "NegativeLogLikelihoodGrad",
        "Reshape",
        "Slice",
        "SoftmaxCrossEntropyGrad",
        "Split",
        "Squeeze",
        "SumTo",
        "Transpose",
        "Unsqueeze",
    ];
    let ours = op.domain.is_empty() || op.domain == SARTOR_DOMAIN;
    ours && (NAMES.contains(&op.name.as_str()) || reduction(&op.name).is_some())
}

/// Of fewer tokens picking the weights that gates leave costs as much as it saves.
const TOKENS: usize = 8;

/// The product of tokens `[N, T, k]` with weights `[k, n]` as a convolution of an image of `T × 1` pixels per example.
fn single_pixels(a: &View, b: &View, alpha: f32) -> RawProduct {
    let (tokens, k, n) = (a.shape[1], b.shape[0], b.shape[1]);
    let patch = Patch {
        image: (tokens, 1),
        channels: k,
        steps: [a.strides[1], a.strides[1], 1],
        weights: [0, 0, b.strides[0]],
        groups: (1, 0),
        kernel: (1, 1),
        grid: (tokens, 1),
        stride: (1, 1),
        pad: (0, 0),
        dilation: (1, 1),
        transposed: false,
        depthwise: false,
        winograd: false,
    };
    let images = a.shape[0];
    // The rows and columns of the left factor are made, not read.
    let a = View { shape: vec![images, 1, 1], strides: vec![a.strides[0], 0, 0], ..a.clone() };
    let b = View { shape: vec![images, k, n], strides: vec![0, 0, b.strides[1]], ..b.clone() };
    RawProduct { a, b, alpha, patch: Some((patch, k)) }
}

impl Lowering<'_> {
    /// Lowers one operator node.
    pub(crate) fn operator(&mut self, id: NodeId, op: &Operator) -> Result<()> {
        if self.fold(id) {
            return Ok(());
        }
        let planned = self.numbers_only(id) && self.nonempty(id) && self.kernel(id, op)?;
        if planned { Ok(()) } else { self.reference(id) }
    }
    /// Whether all inputs that matter and all outputs are `f32` or booleans.
    fn numbers_only(&self, id: NodeId) -> bool {
        let fits = |v: Value| matches!(self.dtype(v), Some(DType::F32 | DType::Bool));
        let first = self.graph.input(id, 0);
        let index_free = first.is_some_and(fits) || self.graph.node(id).is("Cast");
        index_free && self.named_outputs(id).all(fits)
    }
    fn named_outputs(&self, id: NodeId) -> impl Iterator<Item = Value> {
        self.graph.node_outputs(id).filter(|&v| !self.graph.value_name(v).is_empty())
    }
    /// Empty tensors are left to the reference.
    fn nonempty(&self, id: NodeId) -> bool {
        let full = |v: Value| self.shape(v).is_ok_and(|s| !s.contains(&0));
        let float_inputs =
            self.graph.node_inputs(id).into_iter().flatten().filter(|&v| self.dtype(v) == Some(DType::F32));
        self.named_outputs(id).all(full) && float_inputs.into_iter().all(full)
    }
    /// Whether every input is `f32`, a boolean, or a known number.
    fn all_numbers(&self, id: NodeId) -> bool {
        let inputs = self.graph.node_inputs(id);
        let fits = |v: Value| matches!(self.dtype(v), Some(DType::F32 | DType::Bool)) || self.number(v).is_some();
        inputs.into_iter().flatten().all(fits)
    }
    /// Lowers a node to kernels and views; `false` if there are none for it.
    fn kernel(&mut self, id: NodeId, op: &Operator) -> Result<bool> {
        let inputs = self.graph.node_inputs(id);
        let Some(Some(x)) = inputs.first().copied() else { return Ok(false) };
        let y = Value { node: id, slot: 0 };
        if op.domain == SARTOR_DOMAIN {
            return match op.name.as_str() {
                "GuardedSoftmax" | "Gate" => self.elementwise(id, op, &op.name, y),
                "Detach" => self.alias(x, y),
                "SliceGrad" => self.slice_grad(id, x, y),
                "SumTo" => self.sum_to(x, y),
                "GatherGrad" => self.gather_grad(id, op),
                "NegativeLogLikelihoodGrad" | "SoftmaxCrossEntropyGrad" => self.class_loss_grad(id, op),
                "ConvInputGrad" => self.conv_input_grad(id, op, y),
                "ConvWeightGrad" => self.conv_weight_grad(id, op, y),
                "BatchNormGrad" => self.batch_norm_grad(id, op),
                "Recurrence" => self.recurrence(id, op),
                "RecurrenceGrad" => self.recurrence_grad(id, op),
                "MaxPoolGrad" | "AveragePoolGrad" => self.pool_grad(id, op, y),
                _ => Ok(false),
            };
        }
        if !op.domain.is_empty() {
            return Ok(false);
        }
        match op.name.as_str() {
            "Identity" => self.alias(x, y),
            "Dropout" if self.is_inactive(id) => self.alias(x, y),
            "Dropout" => self.dropout(id, x, y),
            "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => self.reshape(x, y),
            "Transpose" => self.transpose(op, x, y),
            "Expand" => self.expand(x, y),
            "Slice" => self.slice(id, x, y),
            "Pad" => self.pad(id, op, x, y),
            "Split" => self.split(id, op, x),
            "Concat" => self.concat(id, op),
            "Gather" => self.gather(id, op, x, y),
            "Cast" => self.cast(x, y),
            "MatMul" => self.matmul(id, y),
            "Gemm" => self.gemm(id, op, y),
            "Conv" => self.conv(id, op, y),
            "NegativeLogLikelihoodLoss" | "SoftmaxCrossEntropyLoss" => self.class_loss(id, op),
            "BatchNormalization" => self.batch_norm(id, op, y),
            "MaxPool" | "AveragePool" => self.pool(id, op, y),
            "GlobalAveragePool" => {
                let view = self.view(x)?;
                let axes = (2..view.shape.len()).collect();
                self.fold_axes("ReduceMean", view, axes, y)
            }
            name if reduction(name).is_some() => self.reduce(id, op, x, y),
            name => self.elementwise(id, op, name, y),
        }
    }
    /// Whether a Dropout passes everything and nobody asks for its mask.
    fn is_inactive(&self, id: NodeId) -> bool {
        let off = self.graph.input(id, 2).is_none_or(|v| self.number(v) == Some(0.0));
        let mask = Value { node: id, slot: 1 };
        off && !self.uses.contains_key(&mask) && !self.outputs.contains(&mask)
    }
    pub(crate) fn set(&mut self, value: Value, view: View) -> Result<bool> {
        self.places.insert(value, Place::View(view));
        Ok(true)
    }
    fn alias(&mut self, x: Value, y: Value) -> Result<bool> {
        let view = self.view(x)?;
        self.set(y, view)
    }
    fn reshape(&mut self, x: Value, y: Value) -> Result<bool> {
        let (view, shape) = (self.view(x)?, self.shape(y)?);
        let view = self.reshaped(view, &shape);
        self.set(y, view)
    }
    /// Another shape, copied if the elements have to move.
    fn reshaped(&mut self, view: View, shape: &[usize]) -> View {
        match view.reshaped(shape) {
            Some(view) => view,
            None => {
                let copy = self.copied(view);
                View::dense(copy.buf, shape.to_vec())
            }
        }
    }
    fn transpose(&mut self, op: &Operator, x: Value, y: Value) -> Result<bool> {
        let view = self.view(x)?;
        match permutation(op, view.shape.len()) {
            Some(perm) => self.set(y, view.transposed(&perm)),
            None => Ok(false),
        }
    }
    fn expand(&mut self, x: Value, y: Value) -> Result<bool> {
        let (view, shape) = (self.view(x)?, self.shape(y)?);
        match view.broadcast(&shape) {
            Some(view) => self.set(y, view),
            None => Ok(false),
        }
    }
    fn ints(&self, id: NodeId, slot: usize) -> Option<Vec<i64>> {
        self.constant(self.graph.input(id, slot)?)?.to_i64s().ok()
    }
    fn slice(&mut self, id: NodeId, x: Value, y: Value) -> Result<bool> {
        let (view, shape) = (self.view(x)?, self.shape(y)?);
        match self.window(id, 1, view, &shape)? {
            Some(view) => self.set(y, view),
            None => Ok(false),
        }
    }
    /// Inputs: gradient, shape of the data, then as for `Slice`. Zeros, with the gradient in the window.
    fn slice_grad(&mut self, id: NodeId, dy: Value, y: Value) -> Result<bool> {
        let target = self.fresh(self.shape(y)?);
        let shape = self.shape(dy)?;
        let Some(window) = self.window(id, 2, target.clone(), &shape)? else { return Ok(false) };
        let picked = self.view(dy)?;
        let program = super::finish::zeros_and_copies(&target, &[(picked.clone(), window)]);
        self.push(Step::Copies(program), vec![picked.buf], vec![target.buf]);
        self.set(y, target)
    }
    /// Zeros, with the data in their place; negative pads cut the data.
    fn pad(&mut self, id: NodeId, op: &Operator, x: Value, y: Value) -> Result<bool> {
        let zeros = match self.graph.input(id, 2) {
            Some(value) => self.number(value) == Some(0.0),
            None => true,
        };
        let (Some(pads), shape) = (self.ints(id, 1), self.shape(y)?) else { return Ok(false) };
        let rank = shape.len();
        let axes: Vec<i64> = match self.graph.input(id, 3) {
            Some(_) => match self.ints(id, 3) {
                Some(axes) => axes,
                None => return Ok(false),
            },
            None => (0..rank as i64).collect(),
        };
        let constant = op.attrs.str("mode", "constant")? == "constant";
        if !zeros || !constant || pads.len() != 2 * axes.len() {
            return Ok(false);
        }
        let mut view = self.view(x)?;
        let mut places = vec![0; rank];
        for (i, &axis) in axes.iter().enumerate() {
            // Negative pads cut.
            let (axis, begin, end) = (ops::normal_axis(axis, rank)?, pads[i], pads[axes.len() + i]);
            let cut = ((-begin).max(0) as usize, (-end).max(0) as usize);
            let Some(len) = view.shape[axis].checked_sub(cut.0 + cut.1) else { return Ok(false) };
            view = view.sliced(axis, cut.0, 1, len);
            places[axis] = begin.max(0) as usize;
        }
        if view.shape == shape {
            return self.set(y, view);
        }
        let source = self.view(x)?;
        let last = layout::is_channels_last(&source);
        let order: Vec<usize> = if last { layout::to_last(rank) } else { (0..rank).collect() };
        let stored = self.fresh(order.iter().map(|&axis| shape[axis]).collect());
        let target = if last { stored.transposed(&layout::to_first(rank)) } else { stored.clone() };
        let mut place = target.clone();
        for (axis, &start) in places.iter().enumerate() {
            place = place.sliced(axis, start, 1, view.shape[axis]);
        }
        let program = super::finish::zeros_and_copies(&stored, &[(view.transposed(&order), place.transposed(&order))]);
        self.push(Step::Copies(program), vec![view.buf], vec![stored.buf]);
        self.set(y, target)
    }
    /// What starts, ends, axes and steps (inputs from `first` on) choose of a view, given the shape of what is chosen.
    fn window(&mut self, id: NodeId, first: usize, mut view: View, shape: &[usize]) -> Result<Option<View>> {
        let (Some(starts), Some(_)) = (self.ints(id, first), self.ints(id, first + 1)) else { return Ok(None) };
        let all: Vec<i64> = (0..starts.len() as i64).collect();
        let axes = if self.graph.input(id, first + 2).is_some() { self.ints(id, first + 2) } else { Some(all) };
        let ones = vec![1; starts.len()];
        let steps = if self.graph.input(id, first + 3).is_some() { self.ints(id, first + 3) } else { Some(ones) };
        let (Some(axes), Some(steps)) = (axes, steps) else { return Ok(None) };
        if steps.iter().any(|&s| s < 1) {
            return Ok(None);
        }
        for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
            let axis = ops::normal_axis(axis, view.shape.len())?;
            let len = view.shape[axis] as i64;
            let start = (if start < 0 { start + len } else { start }).clamp(0, len);
            view = view.sliced(axis, start as usize, step as usize, shape[axis]);
        }
        Ok(Some(view))
    }
    fn split(&mut self, id: NodeId, op: &Operator, x: Value) -> Result<bool> {
        let view = self.view(x)?;
        let axis = ops::normal_axis(op.attrs.int("axis", 0)?, view.shape.len())?;
        let mut start = 0;
        for part in self.graph.node_outputs(id) {
            let len = self.shape(part)?[axis];
            self.set(part, view.sliced(axis, start, 1, len))?;
            start += len;
        }
        Ok(true)
    }
    /// Every operand is copied to its place in the result.
    fn concat(&mut self, id: NodeId, op: &Operator) -> Result<bool> {
        if !self.all_numbers(id) {
            return Ok(false);
        }
        let y = Value { node: id, slot: 0 };
        let shape = self.shape(y)?;
        let axis = ops::normal_axis(op.attrs.int("axis", 0)?, shape.len())?;
        let mut views = Vec::new();
        for input in self.graph.node_inputs(id).into_iter().flatten() {
            views.push(self.view(input)?);
        }
        let rank = shape.len();
        let last = views.iter().any(layout::is_channels_last);
        let order: Vec<usize> = if last { layout::to_last(rank) } else { (0..rank).collect() };
        let stored = self.fresh(order.iter().map(|&axis| shape[axis]).collect());
        let target = if last { stored.transposed(&layout::to_first(rank)) } else { stored };
        let mut start = 0;
        let mut parts = Vec::new();
        for view in views {
            let len = view.shape[axis];
            let place = target.sliced(axis, start, 1, len);
            start += len;
            parts.push((view.transposed(&order), place.transposed(&order)));
        }
        let program = super::finish::copies(&parts);
        let reads = parts.iter().map(|(v, _)| v.buf).collect();
        self.push(Step::Copies(program), reads, vec![target.buf]);
        self.set(y, target)
    }
    fn gather(&mut self, id: NodeId, op: &Operator, x: Value, y: Value) -> Result<bool> {
        let Some(index) = self.graph.input(id, 1) else { return Ok(false) };
        let data = self.view(x)?;
        let axis = ops::normal_axis(op.attrs.int("axis", 0)?, data.shape.len())?;
        let shape = self.shape(y)?;
        if let Some([index]) = self.constant(index).and_then(|t| t.to_i64s().ok()).as_deref() {
            let len = data.shape[axis] as i64;
            let at = if *index < 0 { index + len } else { *index };
            if (0..len).contains(&at) {
                let view = data.sliced(axis, at as usize, 1, 1);
                let view = self.reshaped(view, &shape);
                return self.set(y, view);
            }
        }
        let data = if data.is_dense() { data } else { self.copied(data) };
        let (indices, picked) = (self.host(index)?, self.fresh(shape));
        let outer = data.shape[..axis].iter().product();
        let (len, width) = (data.shape[axis], data.shape[axis + 1..].iter().product());
        let reads = vec![data.buf, self.slots[indices].buf];
        let step = Gather { data, indices, picked: picked.clone(), outer, len, width, scatter: false };
        self.push(Step::Gather(step), reads, vec![picked.buf]);
        self.set(y, picked)
    }
    /// Inputs: gradient, indices, shape of the data.
    fn gather_grad(&mut self, id: NodeId, op: &Operator) -> Result<bool> {
        let (Some(dy), Some(index)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let y = Value { node: id, slot: 0 };
        let shape = self.shape(y)?;
        let axis = ops::normal_axis(op.attrs.int("axis", 0)?, shape.len())?;
        let dy = self.view(dy)?;
        let picked = if dy.is_dense() { dy } else { self.copied(dy) };
        let (indices, data) = (self.host(index)?, self.fresh(shape.clone()));
        let outer = shape[..axis].iter().product();
        let (len, width) = (shape[axis], shape[axis + 1..].iter().product());
        if picked.len() != outer * width * self.slots[indices].shape.iter().product::<usize>() {
            return Ok(false);
        }
        let reads = vec![picked.buf, self.slots[indices].buf];
        let step = Gather { data: data.clone(), indices, picked, outer, len, width, scatter: true };
        self.push(Step::Gather(step), reads, vec![data.buf]);
        self.set(y, data)
    }
    fn cast(&mut self, x: Value, y: Value) -> Result<bool> {
        let Some(from) = self.dtype(x) else { return Ok(false) };
        let small = matches!(from, DType::Bool | DType::F32) || from.is_int() || from.is_float();
        match self.dtype(y) {
            Some(DType::F32) if small => self.alias(x, y),
            Some(DType::Bool) if from == DType::Bool => self.alias(x, y),
            Some(DType::Bool) if from == DType::F32 => {
                let view = self.view(x)?;
                self.map(What::Truth, vec![Arg::View(view)], y).map(|()| true)
            }
            _ => Ok(false),
        }
    }
    fn elementwise(&mut self, id: NodeId, op: &Operator, name: &str, y: Value) -> Result<bool> {
        let Some(class) = expr::class(op) else { return Ok(false) };
        if !self.all_numbers(id) {
            return Ok(false);
        }
        let inputs: Vec<Value> = self.graph.node_inputs(id).into_iter().flatten().collect();
        if class == expr::Class::Row {
            let shape = self.shape(y)?;
            let axis = ops::normal_axis(op.attrs.int("axis", -1)?, shape.len())?;
            let row: usize = shape[axis..].iter().product();
            let last_only = name.contains("Softmax") && axis + 1 != shape.len();
            if last_only || row > MAX_ROW {
                return Ok(false);
            }
        }
        if let ("Mul" | "Div", &[a, b]) = (name, inputs.as_slice())
            && self.shape(y)? == self.shape(a)?
            && let Some(factor) = self.number(b)
            && self.scale_products(a, if name == "Mul" { factor } else { 1.0 / factor }, y)
        {
            return Ok(true);
        }
        if let ("Mul", &[a, b]) = (name, inputs.as_slice())
            && self.shape(y)? == self.shape(b)?
            && let Some(factor) = self.number(a)
            && self.scale_products(b, factor, y)
        {
            return Ok(true);
        }
        if let ("Mul", &[a, b]) = (name, inputs.as_slice())
            && self.gated_product((a, b), y)?
        {
            return Ok(true);
        }
        if let ("Add", &[a, b]) = (name, inputs.as_slice())
            && (self.add_products(a, b, y)
                || self.add_to_products(a, b, 1.0, y)?
                || self.add_to_products(b, a, 1.0, y)?)
        {
            return Ok(true);
        }
        if self.waits(id, op) {
            return Ok(true);
        }
        self.fusible(id, op, class).map(|()| true)
    }
    /// A matrix operand and a factor: through scalings by a number, also under a transpose.
    fn matrix(&mut self, value: Value) -> Result<(View, f32)> {
        let node = self.graph.node(value.node);
        if let (Some(op), Some(x)) = (node.op().filter(|op| op.is("Transpose")), self.graph.input(value.node, 0))
            && let Some(perm) = permutation(op, self.shape(x)?.len())
        {
            let (view, factor) = self.matrix(x)?;
            if factor != 1.0 {
                return Ok((view.transposed(&perm), factor));
            }
        }
        if let (true, [Some(a), Some(b)]) =
            (node.is("Mul") || node.is("Div"), self.graph.node_inputs(value.node).as_slice())
        {
            let (a, b) = (*a, *b);
            if let (Some(factor), true) = (self.number(b), self.shape(a)? == self.shape(value)?)
                && matches!(self.places.get(&a), Some(Place::View(_)))
            {
                let factor = if node.is("Mul") { factor } else { 1.0 / factor };
                return Ok((self.view(a)?, factor));
            }
        }
        Ok((self.view(value)?, 1.0))
    }
    pub(crate) fn packed(&mut self, view: View) -> View {
        let rank = view.shape.len();
        let fine = |axis: usize| view.strides[axis] == 1 || view.shape[axis] == 1;
        if rank < 2 || fine(rank - 1) || fine(rank - 2) { view } else { self.copied(view) }
    }
    fn matmul(&mut self, id: NodeId, y: Value) -> Result<bool> {
        let (Some(a), Some(b)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let ((mut a, alpha), (mut b, beta)) = (self.matrix(a)?, self.matrix(b)?);
        if a.shape.len() == 1 {
            a = View { shape: vec![1, a.shape[0]], strides: vec![0, a.strides[0]], ..a };
        }
        if b.shape.len() == 1 {
            b = View { shape: vec![b.shape[0], 1], strides: vec![b.strides[0], 0], ..b };
        }
        let (a, b) = (self.packed(a), self.packed(b));
        let (m, k, n) = (a.shape[a.shape.len() - 2], a.shape[a.shape.len() - 1], b.shape[b.shape.len() - 1]);
        let tokens = a.shape.len() == 3 && m >= TOKENS && a.strides[1..] == [k, 1] && b.shape.len() == 2;
        if tokens && self.stays(&b) && (self.gates_units(id, y) || self.feeds_block(y)) {
            let product = single_pixels(&a, &b, alpha * beta);
            return self.product(y, Core { batch: vec![a.shape[0]], m, n, products: vec![product] });
        }
        let batch = ops::broadcast::shapes(&[&a.shape[..a.shape.len() - 2], &b.shape[..b.shape.len() - 2]])?;
        let full = |view: &View, x: usize, z: usize| view.broadcast(&[batch.as_slice(), &[x, z]].concat());
        let (Some(a), Some(b)) = (full(&a, m, k), full(&b, k, n)) else { return Ok(false) };
        self.product(y, Core { batch, m, n, products: vec![RawProduct { a, b, alpha: alpha * beta, patch: None }] })
    }
    /// Starts a contract whose result is a node's.
    fn product(&mut self, y: Value, core: Core) -> Result<bool> {
        let shape = self.shape(y)?;
        let same_rank = shape.len() == core.batch.len() + 2;
        let (view, natural) = if same_rank { self.storage(y, &shape, false) } else { (self.fresh(shape), true) };
        self.places.insert(y, Place::View(view.clone()));
        self.start_contract(core, y, view, natural);
        Ok(true)
    }
    /// `α · A' · B' + β · C`
    fn gemm(&mut self, id: NodeId, op: &Operator, y: Value) -> Result<bool> {
        let (Some(a), Some(b)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let (mut a, mut b) = (self.view(a)?, self.view(b)?);
        if op.attrs.flag("transA", false)? {
            a = a.transposed(&[1, 0]);
        }
        if op.attrs.flag("transB", false)? {
            b = b.transposed(&[1, 0]);
        }
        let (a, b) = (self.packed(a), self.packed(b));
        let (m, n) = (a.shape[0], b.shape[1]);
        let (alpha, beta) = (op.attrs.float("alpha", 1.0)?, op.attrs.float("beta", 1.0)?);
        let c = self.graph.input(id, 2);
        let core = Core { batch: vec![], m, n, products: vec![RawProduct { a, b, alpha, patch: None }] };
        let Some(c) = c else {
            let (view, natural) = self.storage(y, &[m, n], false);
            self.places.insert(y, Place::View(view.clone()));
            self.start_contract(core, y, view, natural);
            return Ok(true);
        };
        let c = self.arg(c, &[m, n])?;
        let products = self.fresh(vec![m, n]);
        self.start_contract(core, y, products.clone(), true);
        let (view, natural) = self.storage(y, &[m, n], true);
        let outs = vec![Out { value: Some(y), view, width: Width::Full, natural }];
        let args = vec![Arg::View(products), c];
        let item = Item { what: What::AddScaled(beta), args, width: Width::Full, outs, at: self.at };
        self.add_item(item, m * n, None);
        Ok(true)
    }
    fn reduce(&mut self, id: NodeId, op: &Operator, x: Value, y: Value) -> Result<bool> {
        let rank = self.shape(x)?.len();
        let given = if self.graph.input(id, 1).is_some() {
            match self.ints(id, 1) {
                Some(axes) => axes,
                None => return Ok(false),
            }
        } else {
            op.attrs.ints("axes", &[])?
        };
        if given.is_empty() && op.attrs.flag("noop_with_empty_axes", false)? {
            return Ok(false);
        }
        let mut axes = Vec::new();
        for axis in given {
            axes.push(ops::normal_axis(axis, rank)?);
        }
        if axes.is_empty() {
            axes = (0..rank).collect();
        }
        let view = self.view(x)?;
        self.fold_axes(&op.name, view, axes, y)
    }
    /// Sums over the axes along which the result was stretched.
    fn sum_to(&mut self, x: Value, y: Value) -> Result<bool> {
        let (view, to) = (self.view(x)?, self.shape(y)?);
        let pad = view.shape.len().saturating_sub(to.len());
        let stretched = |i: &usize| *i < pad || (to[i - pad] == 1 && view.shape[*i] != 1);
        let axes: Vec<usize> = (0..view.shape.len()).filter(stretched).collect();
        if axes.is_empty() {
            return self.set(y, view);
        }
        self.fold_axes("ReduceSum", view, axes, y)
    }
    /// Trailing axes are folded row by row, fused with what surrounds them; others by a kernel of their own.
    pub(crate) fn fold_axes(&mut self, name: &str, view: View, mut axes: Vec<usize>, y: Value) -> Result<bool> {
        let Some((fold, square, mean)) = reduction(name) else { return Ok(false) };
        let shape = self.shape(y)?;
        // Channels last, unless the order of what is kept would change.
        let (mut view, rank) = (view.clone(), view.shape.len());
        if layout::is_channels_last(&view) && (axes.contains(&1) || (2..rank).all(|a| axes.contains(&a))) {
            let order = layout::to_last(rank);
            axes = (0..rank).filter(|&at| axes.contains(&order[at])).collect();
            view = view.transposed(&order);
        }
        axes.sort_unstable();
        axes.dedup();
        let count: usize = axes.iter().map(|&a| view.shape[a]).product();
        let scale = if mean { 1.0 / count as f32 } else { 1.0 };
        let mut first = trailing(&view.shape, &axes);
        let mut row: usize = view.shape[first..].iter().product();
        // A row that is too long is folded axis by axis.
        while row > MAX_ROW && first + 1 < view.shape.len() {
            row /= view.shape[first].max(1);
            first += 1;
        }
        if row > 1 && row <= MAX_ROW {
            let whole = axes.iter().all(|&a| a >= first || view.shape[a] == 1);
            let kept = view.shape[..first].to_vec();
            if whole {
                let out = self.row_fold(What::Fold(fold, scale, square), view, row, Some(y), shape);
                return self.set(y, out);
            }
            let part = self.row_fold(What::Fold(fold, 1.0, square), view, row, None, kept);
            axes.retain(|&a| a < first);
            return self.fold_strided(fold, scale, part, &axes, shape, y);
        }
        if square {
            view = self.small(What::Product(1.0), vec![view.clone(), view]);
        }
        self.fold_strided(fold, scale, view, &axes, shape, y)
    }
    pub(crate) fn fold_strided(
        &mut self,
        fold: super::program::Fold,
        scale: f32,
        view: View,
        axes: &[usize],
        shape: Vec<usize>,
        y: Value,
    ) -> Result<bool> {
        let kept: Vec<usize> = (0..view.shape.len()).filter(|i| !axes.contains(i)).collect();
        let rows: usize = axes.iter().map(|&a| view.shape[a]).product();
        let (first, last) = (axes.iter().min().copied().unwrap_or(0), axes.iter().max().map_or(0, |a| a + 1));
        // Axes in the middle are folded where they are.
        let outer: usize = view.shape[..first].iter().product();
        let cols: usize = view.shape[last..].iter().product();
        let between = last - first == axes.len() && Walk::new(&view, cols).is_some();
        let (outer, cols, mut moved) = if between {
            (outer, cols, view)
        } else {
            (1, kept.iter().map(|&a| view.shape[a]).product(), view.transposed(&[axes, &kept].concat()))
        };
        if Walk::new(&moved, cols).is_none() {
            moved = self.copied(moved);
        }
        let Some(input) = Walk::new(&moved, cols) else { return Ok(false) };
        let out = self.fresh(shape);
        let chunks = Reduce::chunks(rows, cols);
        let partial = (chunks > 1).then(|| self.fresh(vec![outer, chunks, cols]));
        let mut writes = vec![out.buf];
        writes.extend(partial.as_ref().map(|p| p.buf));
        let step = Reduce { fold, input, outer, rows, cols, out: out.clone(), scale, partial };
        self.push(Step::Reduce(step), vec![moved.buf], writes);
        self.set(y, out)
    }
}

/// Where the trailing run of folded axes (and axes of length 1) begins.
fn trailing(shape: &[usize], axes: &[usize]) -> usize {
    let mut first = shape.len();
    while first > 0 && (axes.contains(&(first - 1)) || shape[first - 1] == 1) {
        first -= 1;
    }
    first
}
