//! Convolutions in one and two dimensions, and their gradients, as contracts: the right factors are
//! [patches](crate::cpu::patch) of images, or the images themselves where the kernel is 1×1.

use super::group::{Arg, Core, Item, Out, RawProduct, What};
use super::program::{Fold, Width};
use super::view::View;
use super::{Lowering, Place};
use crate::cpu::patch::Patch;
use sartor_ir::ops::window::Window;
use sartor_ir::{NodeId, Operator, Result, Value};

/// The shapes of one convolution.
struct Shape {
    images: usize,
    groups: usize,
    /// Channels in and out, of one group.
    inputs: usize,
    outputs: usize,
    patch: Patch,
}

impl Shape {
    fn taps(&self) -> usize {
        self.patch.kernel.0 * self.patch.kernel.1
    }
    fn input_pixels(&self) -> usize {
        self.patch.image.0 * self.patch.image.1
    }
    fn output_pixels(&self) -> usize {
        self.patch.grid.0 * self.patch.grid.1
    }
    /// Whether patches are the image itself.
    fn is_pointwise(&self) -> bool {
        self.taps() == 1
            && self.patch.stride == (1, 1)
            && self.patch.pad == (0, 0)
            && self.patch.image == self.patch.grid
    }
}

/// Reads a convolution of x `[N, C, …]` by w `[M, C/g, …]` to y `[N, M, …]`; `None` for three and more dimensions.
fn shape(op: &Operator, x: &[usize], w: &[usize], y: &[usize]) -> Result<Option<Shape>> {
    if !(3..=4).contains(&x.len()) || w.len() != x.len() || y.len() != x.len() {
        return Ok(None);
    }
    let window = Window::read(&op.attrs, Some(&w[2..]))?.resolved(&x[2..])?;
    let groups = usize::try_from(op.attrs.int("group", 1)?).unwrap_or(1).max(1);
    let pair = |list: &[usize], one: usize| if list.len() == 2 { (list[0], list[1]) } else { (one, list[0]) };
    let patch = Patch {
        image: pair(&x[2..], 1),
        kernel: pair(&w[2..], 1),
        grid: pair(&y[2..], 1),
        stride: pair(&window.strides, 1),
        pad: pair(&window.begin, 0),
        dilation: pair(&window.dilations, 1),
        transposed: false,
        taps_across: false,
    };
    Ok(Some(Shape { images: x[0], groups, inputs: w[1], outputs: w[0] / groups, patch }))
}

/// A view of a dense tensor with other axes.
fn strided(view: &View, shape: [usize; 4], strides: [usize; 4]) -> View {
    View { buf: view.buf, offset: view.offset, shape: shape.to_vec(), strides: strides.to_vec() }
}

impl Lowering<'_> {
    fn dense(&mut self, value: Value) -> Result<View> {
        let view = self.view(value)?;
        Ok(if view.is_dense() { view } else { self.copied(view) })
    }
    pub(crate) fn conv(&mut self, id: NodeId, op: &Operator, y: Value) -> Result<bool> {
        let (Some(x), Some(w)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let y_shape = self.shape(y)?;
        let Some(s) = shape(op, &self.shape(x)?, &self.shape(w)?, &y_shape)? else { return Ok(false) };
        let (x, w) = (self.dense(x)?, self.dense(w)?);
        let (k, pixels) = (s.inputs * s.taps(), s.output_pixels());
        let lead = [s.images, s.groups];
        let a = strided(&w, [lead[0], lead[1], s.outputs, k], [0, s.outputs * k, k, 1]);
        let image = s.inputs * s.input_pixels();
        let b = strided(&x, [lead[0], lead[1], k, pixels], [s.groups * image, image, pixels, 1]);
        let patch = (!s.is_pointwise()).then_some((s.patch, k));
        let products = vec![RawProduct { a, b, alpha: 1.0, patch }];
        let core = Core { batch: lead.to_vec(), m: s.outputs, n: pixels, products };
        let out = self.fresh(y_shape.clone());
        self.places.insert(y, Place::View(out.clone()));
        self.start_contract(core, y, out.clone(), true);
        let Some(bias) = self.graph.input(id, 2) else { return Ok(true) };
        let bias = self.per_channel(bias, &y_shape)?;
        let view = self.fresh(y_shape);
        let numel = view.len();
        let outs = vec![Out { value: Some(y), view, width: Width::Full, natural: true }];
        let args = vec![Arg::View(out), bias];
        self.add_item(Item { what: What::AddScaled(1.0), args, width: Width::Full, outs, at: self.at }, numel, None);
        Ok(true)
    }
    /// A tensor `[C]` as an operand of tensors `[N, C, …]`.
    fn per_channel(&mut self, value: Value, shape: &[usize]) -> Result<Arg> {
        let view = self.view(value)?;
        let stride = view.strides.first().copied().unwrap_or(0);
        let mut strides = vec![0; shape.len()];
        if shape.len() > 1 && shape[1] > 1 {
            strides[1] = stride;
        }
        Ok(Arg::View(View { shape: shape.to_vec(), strides, ..view }))
    }
    /// `dx[n, g] = w[g]ᵀ · patches(dy[n, g])`, places and image in each other's role.
    pub(crate) fn conv_input_grad(&mut self, id: NodeId, op: &Operator, dx: Value) -> Result<bool> {
        let (Some(dy), Some(w)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let dx_shape = self.shape(dx)?;
        let Some(s) = shape(op, &dx_shape, &self.shape(w)?, &self.shape(dy)?)? else { return Ok(false) };
        let (dy, w) = (self.dense(dy)?, self.dense(w)?);
        let (taps, out_pixels, pixels) = (s.taps(), s.output_pixels(), s.input_pixels());
        let k = s.outputs * taps;
        let w_stride = s.inputs * taps;
        // w[g, o, c, tap] → [g, c, (o, tap)]
        let turned = strided(&w, [s.groups, s.inputs, s.outputs, taps], [s.outputs * w_stride, taps, w_stride, 1]);
        let turned = if taps == 1 { turned } else { self.copied(turned) };
        let (row, col) = if taps == 1 { (1, s.inputs) } else { (k, 1) };
        let a = strided(&turned, [s.images, s.groups, s.inputs, k], [0, s.inputs * k, row, col]);
        let image = s.outputs * out_pixels;
        let b = strided(&dy, [s.images, s.groups, k, pixels], [s.groups * image, image, out_pixels, 1]);
        let swapped = Patch { image: s.patch.grid, grid: s.patch.image, transposed: true, ..s.patch };
        let patch = (!s.is_pointwise()).then_some((swapped, k));
        let products = vec![RawProduct { a, b, alpha: 1.0, patch }];
        let core = Core { batch: vec![s.images, s.groups], m: s.inputs, n: pixels, products };
        let out = self.fresh(dx_shape);
        self.places.insert(dx, Place::View(out.clone()));
        self.start_contract(core, dx, out, true);
        Ok(true)
    }
    /// `dw[g] = Σ_n dy[n, g] · patches(x[n, g])ᵀ`, the images in up to eight parts that are added at the end.
    pub(crate) fn conv_weight_grad(&mut self, id: NodeId, op: &Operator, dw: Value) -> Result<bool> {
        let (Some(dy), Some(x)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let dw_shape = self.shape(dw)?;
        let Some(s) = shape(op, &self.shape(x)?, &dw_shape, &self.shape(dy)?)? else { return Ok(false) };
        let (dy, x) = (self.dense(dy)?, self.dense(x)?);
        let (n, pixels) = (s.inputs * s.taps(), s.output_pixels());
        let parts = (1..=8).rev().find(|p| s.images % p == 0).unwrap_or(1);
        let (image, out_image) = (s.inputs * s.input_pixels(), s.outputs * pixels);
        let per_part = s.images / parts;
        let mut products = Vec::with_capacity(per_part);
        for i in 0..per_part {
            let at = |view: &View, stride: usize| View { offset: view.offset + i * stride, ..view.clone() };
            let (dy, x) = (at(&dy, s.groups * out_image), at(&x, s.groups * image));
            let lead = [parts, s.groups];
            let step = per_part * s.groups;
            let a = strided(&dy, [lead[0], lead[1], s.outputs, pixels], [step * out_image, out_image, pixels, 1]);
            let b = strided(&x, [lead[0], lead[1], pixels, n], [step * image, image, 1, pixels]);
            let across = Patch { taps_across: true, ..s.patch };
            let patch = (!s.is_pointwise()).then_some((across, pixels));
            products.push(RawProduct { a, b, alpha: 1.0, patch });
        }
        let core = Core { batch: vec![parts, s.groups], m: s.outputs, n, products };
        if parts == 1 {
            let out = self.fresh(dw_shape);
            self.places.insert(dw, Place::View(out.clone()));
            self.start_contract(core, dw, out, true);
            return Ok(true);
        }
        let partial = self.fresh(vec![parts, s.groups * s.outputs * n]);
        self.start_contract(core, dw, partial.clone(), true);
        self.fold_strided(Fold::Sum, 1.0, partial, &[0], dw_shape, dw)
    }
    /// Inference: one multiply-add per channel.
    pub(crate) fn batch_norm(&mut self, id: NodeId, op: &Operator, y: Value) -> Result<bool> {
        let shape = self.shape(y)?;
        if op.attrs.flag("training_mode", false)? || shape.len() < 2 {
            return Ok(false);
        }
        let mut args = Vec::new();
        for (i, input) in self.graph.node_inputs(id).into_iter().flatten().enumerate() {
            args.push(if i == 0 { self.arg(input, &shape)? } else { self.per_channel(input, &shape)? });
        }
        let view = self.fresh(shape);
        let numel = view.len();
        let outs = vec![Out { value: Some(y), view, width: Width::Full, natural: true }];
        self.add_item(Item { what: What::Node(id), args, width: Width::Full, outs, at: self.at }, numel, None);
        Ok(true)
    }
}
