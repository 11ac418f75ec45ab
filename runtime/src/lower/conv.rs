//! Convolutions in one and two dimensions, their gradients, and what usually follows them: normalisation of channels and pools.
//!
//! Everything is computed [channels last](super::layout). A convolution is a contract whose left factor is made of
//! [windows](crate::cpu::patch) of images; with a window of one tap it is a plain product of pixels with weights. Operators that read images
//! take any strides.

use super::group::{Arg, Core, Item, Out, RawProduct, What};
use super::layout::{to_first, to_last};
use super::program::Width;
use super::view::{BufId, View, Walk};
use super::{Lowering, Place, Step};
use crate::cpu::batch_norm::{ChannelStats, ChannelSums};
use crate::cpu::conv_grad::ConvWeightGrad;
use crate::cpu::patch::Patch;
use crate::cpu::pool::{Images, Pool, PoolGrad, Pooling, Windows};
use crate::cpu::winograd;
use sartor_ir::ops::window::Window;
use sartor_ir::{NodeId, Operator, Result, Value};

/// The shapes of one convolution.
struct Shape {
    images: usize,
    groups: usize,
    /// Channels in and out, of one group.
    inputs: usize,
    outputs: usize,
    /// The convolution itself; `channels`, `steps`, `weights` and `groups` are filled in by whoever runs it.
    patch: Patch,
}

impl Shape {
    /// Whether every channel is convolved by itself, with one filter.
    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.inputs == 1 && self.outputs == 1
    }
    /// Whether places are pixels: some of them if there is a stride.
    fn is_pointwise(&self) -> bool {
        self.patch.taps() == 1 && self.patch.pad == (0, 0) && self.patch.reaches_inside()
    }
    fn has_stride(&self) -> bool {
        self.patch.stride != (1, 1)
    }
}

fn pair(list: &[usize], one: usize) -> (usize, usize) {
    if list.len() == 2 { (list[0], list[1]) } else { (one, list[0]) }
}

/// Reads a convolution of x `[N, C, …]` by w `[M, C/g, …]` to y `[N, M, …]`; `None` for three and more dimensions.
fn shape(op: &Operator, x: &[usize], w: &[usize], y: &[usize]) -> Result<Option<Shape>> {
    if !(3..=4).contains(&x.len()) || w.len() != x.len() || y.len() != x.len() {
        return Ok(None);
    }
    let window = Window::read(&op.attrs, Some(&w[2..]))?.resolved(&x[2..])?;
    let groups = usize::try_from(op.attrs.int("group", 1)?).unwrap_or(1).max(1);
    let patch = Patch {
        image: pair(&x[2..], 1),
        channels: w[1],
        steps: [0; 3],
        weights: [0; 3],
        groups: (1, 0),
        kernel: pair(&w[2..], 1),
        grid: pair(&y[2..], 1),
        stride: pair(&window.strides, 1),
        pad: pair(&window.begin, 0),
        dilation: pair(&window.dilations, 1),
        transposed: false,
        depthwise: false,
        winograd: false,
    };
    Ok(Some(Shape { images: x[0], groups, inputs: w[1], outputs: w[0] / groups, patch }))
}

/// Distances of rows, pixels and channels.
fn steps(view: &View) -> [usize; 3] {
    let (row, pixel) = pair(&view.strides[2..], 0);
    [row, pixel, view.strides[1]]
}

/// A view of the same buffer with other axes.
fn strided(view: &View, axes: &[(usize, usize)]) -> View {
    let (shape, strides) = axes.iter().copied().unzip();
    View { buf: view.buf, offset: view.offset, shape, strides }
}

impl Lowering<'_> {
    /// Starts a contract with results `[images, grid…, groups · n]`, one place of the grid per row; registers its result as that of `y`.
    fn start_conv(&mut self, s: &Shape, product: RawProduct, grid: &[usize], n: usize, y: Value) -> View {
        let depthwise = product.patch.is_some_and(|(p, _)| p.depthwise);
        let groups = if depthwise { 1 } else { s.groups };
        let stored = self.fresh([&[s.images], grid, &[groups * n]].concat());
        let places: usize = grid.iter().product();
        let lead = product.a.shape[..product.a.shape.len() - 2].to_vec();
        let m: usize = places * s.images * groups / lead.iter().product::<usize>().max(1);
        let natural = groups == 1;
        let view = if natural {
            stored.clone()
        } else {
            // [images, groups, places, n]
            let all = groups * n;
            strided(&stored, &[(s.images, places * all), (groups, n), (places, all), (n, 1)])
        };
        let core = Core { batch: lead, m, n, products: vec![product] };
        let place = stored.transposed(&to_first(stored.shape.len()));
        self.places.insert(y, Place::View(place));
        self.start_contract(core, y, view, natural);
        stored
    }
    /// Pixels `[images, (groups,) places, channels]`, or with every row of the grid by itself where rows do not follow each other.
    fn pixels(&self, s: &Shape, x: &View, channels: usize, stride: (usize, usize), grid: (usize, usize)) -> View {
        let [row, pixel, channel] = steps(x);
        let (row, pixel) = (row * stride.0, pixel * stride.1);
        let (high, wide) = grid;
        let image = (s.images, x.strides[0]);
        let inner = [(wide, pixel), (channels, channel)];
        let together = [(high * wide, if wide == 1 { row } else { pixel }), (channels, channel)];
        let follows = high == 1 || wide == 1 || row == wide * pixel;
        match (s.groups, follows) {
            (1, true) => strided(x, &[&[image][..], &together].concat()),
            (1, false) => strided(x, &[&[image, (high, row)][..], &inner].concat()),
            (groups, _) => strided(x, &[&[image, (groups, channels * channel)][..], &together].concat()),
        }
    }
    /// Whether pixels can be read where they are by [`Lowering::pixels`] under groups.
    fn rows_follow(s: &Shape, x: &View) -> bool {
        let ([row, pixel, _], (high, wide)) = (steps(x), s.patch.grid);
        s.groups == 1 || high == 1 || wide == 1 || row * s.patch.stride.0 == wide * pixel * s.patch.stride.1
    }
    pub(crate) fn conv(&mut self, id: NodeId, op: &Operator, y: Value) -> Result<bool> {
        let (Some(x), Some(w)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let gated = self.gates_follow(y) || self.reads_gated(x);
        let y_shape = self.shape(y)?;
        let Some(s) = shape(op, &self.shape(x)?, &self.shape(w)?, &y_shape)? else { return Ok(false) };
        let (x, w) = (self.view(x)?, self.view(w)?);
        let [row, col, channel] = steps(&w);
        let filter = w.strides[0];
        let by_pixels = s.is_pointwise() && !s.is_depthwise() && Self::rows_follow(&s, &x);
        let product = if by_pixels && !(s.groups == 1 && gated) {
            let a = self.pixels(&s, &x, s.inputs, s.patch.stride, s.patch.grid);
            let a = self.packed(a);
            let b = self.factor(&s, &a, &w, (s.inputs, channel), (s.outputs, filter), s.outputs * filter);
            RawProduct { a, b, alpha: 1.0, patch: None }
        } else {
            let depthwise = s.is_depthwise();
            let channels = if depthwise { s.groups } else { s.inputs };
            let groups = if depthwise { (1, 0) } else { (s.groups, s.outputs * filter) };
            let patch =
                Patch { channels, steps: steps(&x), weights: [row, col, channel], groups, depthwise, ..s.patch };
            let k = if depthwise { patch.taps() } else { patch.taps() * channels };
            let n = if depthwise { channels } else { s.outputs };
            let winograd = winograd::suits(&patch, n) && self.stays(&w);
            self.windowed(&s, &x, &w, Patch { winograd, ..patch }, (k, n), filter)
        };
        let n = if s.is_depthwise() { s.groups } else { s.outputs };
        let out = self.start_conv(&s, product, &y_shape[2..], n, y);
        let Some(bias) = self.graph.input(id, 2) else { return Ok(true) };
        let bias = self.per_channel(bias, &y_shape)?;
        let out = out.transposed(&to_first(y_shape.len()));
        self.map(What::AddScaled(1.0), vec![Arg::View(out), bias], y)?;
        Ok(true)
    }
    /// The right factor of a product with pixels: weights, broadcast over what leads the pixels.
    fn factor(
        &self,
        s: &Shape,
        pixels: &View,
        w: &View,
        rows: (usize, usize),
        cols: (usize, usize),
        group: usize,
    ) -> View {
        let lead = &pixels.shape[..pixels.shape.len() - 2];
        let mut axes: Vec<(usize, usize)> = lead.iter().map(|&dim| (dim, 0)).collect();
        if s.groups > 1 {
            axes[1].1 = group;
        }
        axes.extend([rows, cols]);
        strided(w, &axes)
    }
    /// A product with windows of images.
    fn windowed(
        &self,
        s: &Shape,
        x: &View,
        w: &View,
        patch: Patch,
        (k, n): (usize, usize),
        across: usize,
    ) -> RawProduct {
        let mut lead = vec![(s.images, x.strides[0])];
        let mut weights = vec![(s.images, 0)];
        if patch.groups.0 > 1 {
            lead.push((patch.groups.0, patch.channels * x.strides[1]));
            weights.push((patch.groups.0, 0));
        }
        // The rows and columns of the left factor are made, not read.
        let a = strided(x, &[&lead[..], &[(1, 0), (1, 0)]].concat());
        let b = strided(w, &[&weights[..], &[(k, 0), (n, across)]].concat());
        RawProduct { a, b, alpha: 1.0, patch: Some((patch, k)) }
    }
    /// A tensor `[C]` as an operand of tensors `[N, C, …]`.
    fn per_channel(&mut self, value: Value, shape: &[usize]) -> Result<Arg> {
        let view = self.view(value)?;
        Ok(Arg::View(over_channels(&view, shape)))
    }
    /// `dx[n, g] = patches(dy[n, g]) · w[g]`, places and image in each other's role.
    pub(crate) fn conv_input_grad(&mut self, id: NodeId, op: &Operator, dx: Value) -> Result<bool> {
        let (Some(dy), Some(w)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let dx_shape = self.shape(dx)?;
        let Some(s) = shape(op, &dx_shape, &self.shape(w)?, &self.shape(dy)?)? else { return Ok(false) };
        let (dy, w) = (self.view(dy)?, self.view(w)?);
        let [row, col, channel] = steps(&w);
        let filter = w.strides[0];
        let one_to_one = s.is_pointwise() && !s.has_stride() && s.patch.image == s.patch.grid;
        let product = if one_to_one && !s.is_depthwise() && Self::rows_follow(&s, &dy) {
            let a = self.pixels(&s, &dy, s.outputs, (1, 1), s.patch.grid);
            let a = self.packed(a);
            let b = self.factor(&s, &a, &w, (s.outputs, filter), (s.inputs, channel), s.outputs * filter);
            RawProduct { a, b, alpha: 1.0, patch: None }
        } else {
            let depthwise = s.is_depthwise();
            let channels = if depthwise { s.groups } else { s.outputs };
            let groups = if depthwise { (1, 0) } else { (s.groups, s.outputs * filter) };
            let patch = Patch {
                image: s.patch.grid,
                grid: s.patch.image,
                channels,
                steps: steps(&dy),
                weights: [row, col, filter],
                groups,
                transposed: true,
                depthwise,
                ..s.patch
            };
            let k = if depthwise { patch.taps() } else { patch.taps() * channels };
            let (n, across) = if depthwise { (channels, filter) } else { (s.inputs, channel) };
            self.windowed(&s, &dy, &w, patch, (k, n), across)
        };
        let n = if s.is_depthwise() { s.groups } else { s.inputs };
        self.start_conv(&s, product, &dx_shape[2..], n, dx);
        Ok(true)
    }
    pub(crate) fn conv_weight_grad(&mut self, id: NodeId, op: &Operator, dw: Value) -> Result<bool> {
        let (Some(dy), Some(x)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let dw_shape = self.shape(dw)?;
        let Some(s) = shape(op, &self.shape(x)?, &dw_shape, &self.shape(dy)?)? else { return Ok(false) };
        let (dy, x) = (self.view(dy)?, self.view(x)?);
        let depthwise = s.is_depthwise();
        let (taps, wide) = (s.patch.taps(), s.patch.kernel.1);
        let filter = taps * s.inputs;
        let patch = Patch {
            channels: if depthwise { s.groups } else { s.inputs },
            steps: steps(&x),
            weights: [wide, 1, taps],
            groups: if depthwise { (1, 0) } else { (s.groups, s.outputs * filter) },
            depthwise,
            ..s.patch
        };
        let out = self.fresh(dw_shape);
        let step = ConvWeightGrad {
            patch,
            images: s.images,
            outputs: s.outputs,
            x: (x.buf, x.offset, x.strides[0], s.inputs * x.strides[1]),
            dy: (dy.buf, dy.offset, dy.strides[0], s.outputs * dy.strides[1], steps(&dy)),
            dw: out.clone(),
        };
        self.push(Step::ConvWeightGrad(step), vec![x.buf, dy.buf], vec![out.buf]);
        self.set(dw, out)
    }
    /// A multiply-add per channel, with given statistics or the data's own.
    pub(crate) fn batch_norm(&mut self, id: NodeId, op: &Operator, y: Value) -> Result<bool> {
        let shape = self.shape(y)?;
        let inputs: Vec<Value> = self.graph.node_inputs(id).into_iter().flatten().collect();
        let &[x, scale, bias, mean, var] = inputs.as_slice() else { return Ok(false) };
        if shape.len() < 2 || self.dtype(mean) != self.dtype(x) || self.dtype(scale) != self.dtype(x) {
            return Ok(false);
        }
        let epsilon = op.attrs.float("epsilon", 1e-5)?;
        let (data, gain) = (self.view(x)?, self.view(scale)?);
        let (mean_view, factor) = if op.attrs.flag("training_mode", false)? {
            let [mean_view, variance, inverse] = self.channel_stats(x, epsilon)?;
            let momentum = op.attrs.float("momentum", 0.9)?;
            for (slot, old, new) in [(1, mean, &mean_view), (2, var, &variance)] {
                let result = Value { node: id, slot };
                let named = self.graph.node_outputs(id).any(|v| v == result);
                if named && (self.uses.contains_key(&result) || self.outputs.contains(&result)) {
                    let args = vec![Arg::View(self.view(old)?), Arg::View(new.clone())];
                    self.map(What::Mix(momentum), args, result)?;
                }
            }
            let factor = self.small(What::Product(1.0), vec![gain, inverse]);
            (mean_view, factor)
        } else {
            let (mean, var) = (self.view(mean)?, self.view(var)?);
            (mean, self.small(What::Deviation(epsilon), vec![gain, var]))
        };
        let over = |view: &View| Arg::View(over_channels(view, &shape));
        let (mean, factor) = (over(&mean_view), over(&factor));
        let bias = self.per_channel(bias, &shape)?;
        self.map(What::Affine, vec![Arg::View(data), mean, factor, bias], y)?;
        Ok(true)
    }
    /// `dx, dscale, dbias` of `(dy, x, scale)`.
    pub(crate) fn batch_norm_grad(&mut self, id: NodeId, op: &Operator) -> Result<bool> {
        let inputs: Vec<Value> = self.graph.node_inputs(id).into_iter().flatten().collect();
        let &[dy, x, scale] = inputs.as_slice() else { return Ok(false) };
        let shape = self.shape(x)?;
        if shape.len() < 2 || self.dtype(scale) != self.dtype(x) {
            return Ok(false);
        }
        let [mean, _, inverse] = self.channel_stats(x, op.attrs.float("epsilon", 1e-5)?)?;
        let (extent, over_dy) = self.channel_rows(dy)?;
        let (_, over_x) = self.channel_rows(x)?;
        let sums = [self.fresh(vec![extent.1]), self.fresh(vec![extent.1])];
        let out = [sums[0].buf, sums[1].buf];
        let stats = [mean.buf, inverse.buf];
        let reads = vec![over_dy.buf, over_x.buf, mean.buf, inverse.buf];
        let step = ChannelSums { data: [over_dy, over_x], extent, stats, out };
        self.push(Step::ChannelSums(step), reads, out.to_vec());
        let [total, weighted] = sums;
        let share = -1.0 / extent.0 as f32;
        let gain = self.view(scale)?;
        let a = self.small(What::Product(1.0), vec![gain, inverse.clone()]);
        let b = self.small(What::Product(share), vec![a.clone(), inverse, weighted.clone()]);
        let c = self.small(What::Product(share), vec![a.clone(), total.clone()]);
        let over = |view: &View| Arg::View(over_channels(view, &shape));
        let mut args = vec![Arg::View(self.view(dy)?), Arg::View(self.view(x)?)];
        args.extend([over(&mean), over(&a), over(&b), over(&c)]);
        self.map(What::AffineGrad, args, Value { node: id, slot: 0 })?;
        self.set(Value { node: id, slot: 1 }, weighted)?;
        self.set(Value { node: id, slot: 2 }, total)
    }
    /// An elementwise operation on views of one shape.
    pub(crate) fn small(&mut self, what: What, args: Vec<View>) -> View {
        let view = self.fresh(args[0].shape.clone());
        let outs = vec![Out { value: None, view: view.clone(), width: Width::Full, natural: true }];
        let args = args.into_iter().map(Arg::View).collect();
        self.add_item(Item { what, args, width: Width::Full, outs, at: self.at }, view.len(), None);
        view
    }
    /// Data `[N, C, …]` as rows of channels, copied if the channels are not neighbours.
    fn channel_rows(&mut self, x: Value) -> Result<((usize, usize), Walk)> {
        let view = self.view(x)?;
        let mut rows = view.transposed(&to_last(view.shape.len()));
        let channels = rows.shape[rows.shape.len() - 1];
        let fits = |view: &View| Walk::new(view, channels).filter(|w| w.col == 1 || channels == 1);
        if fits(&rows).is_none() {
            rows = self.copied(rows);
        }
        let extent = (rows.len() / channels.max(1), channels);
        match fits(&rows) {
            Some(walk) => Ok((extent, walk)),
            None => sartor_ir::bail!("its channels cannot be read as rows"),
        }
    }
    /// Mean, variance and inverse deviation of the channels of a value, computed once.
    fn channel_stats(&mut self, x: Value, epsilon: f32) -> Result<[View; 3]> {
        if let Some(known) = self.stats.get(&(x, epsilon.to_bits())) {
            return Ok(known.clone());
        }
        let (extent, walk) = self.channel_rows(x)?;
        let found: [View; 3] = std::array::from_fn(|_| self.fresh(vec![extent.1]));
        let out: [BufId; 3] = std::array::from_fn(|i| found[i].buf);
        let reads = vec![walk.buf];
        self.push(Step::ChannelStats(ChannelStats { x: walk, extent, epsilon, out }), reads, out.to_vec());
        self.stats.insert((x, epsilon.to_bits()), found.clone());
        Ok(found)
    }
    /// Maxima and means under a window, in one and two dimensions.
    pub(crate) fn pool(&mut self, id: NodeId, op: &Operator, y: Value) -> Result<bool> {
        let Some(x) = self.graph.input(id, 0) else { return Ok(false) };
        let (x_shape, shape) = (self.shape(x)?, self.shape(y)?);
        let indices = Value { node: id, slot: 1 };
        let wanted = self.uses.contains_key(&indices) || self.outputs.contains(&indices);
        let Some((pooling, windows)) = windows(op, &x_shape, &shape)?.filter(|_| !wanted) else { return Ok(false) };
        let (from, x) = self.images(x)?;
        let stored = self.fresh_last(&shape);
        let step = Pool { pooling, extent: (shape[0], shape[1]), windows, x, y: stored.buf };
        self.push(Step::Pool(step), vec![from], vec![stored.buf]);
        self.set(y, stored.transposed(&to_first(shape.len())))
    }
    /// The gradient of a pool by its data, `dx` of `(dy, x)` or `(dy, shape of x)`.
    pub(crate) fn pool_grad(&mut self, id: NodeId, op: &Operator, dx: Value) -> Result<bool> {
        let (Some(dy), Some(x)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return Ok(false) };
        let (shape, dy_shape) = (self.shape(dx)?, self.shape(dy)?);
        let Some((pooling, windows)) = windows(op, &shape, &dy_shape)? else { return Ok(false) };
        let (from, dy) = self.images(dy)?;
        let mut reads = vec![from];
        let x = if pooling == Pooling::Max {
            let (from, x) = self.images(x)?;
            reads.push(from);
            x
        } else {
            dy
        };
        let stored = self.fresh_last(&shape);
        let step = PoolGrad { pooling, extent: (shape[0], shape[1]), windows, dy, x, dx: stored.buf };
        self.push(Step::PoolGrad(step), reads, vec![stored.buf]);
        self.set(dx, stored.transposed(&to_first(shape.len())))
    }
    /// A value `[N, C, …]` as images for pools, copied if its channels are not neighbours.
    fn images(&mut self, value: Value) -> Result<(BufId, Images)> {
        let mut view = self.view(value)?;
        if view.strides[1] != 1 && view.shape[1] != 1 {
            let rank = view.shape.len();
            view = self.copied(view.transposed(&to_last(rank))).transposed(&to_first(rank));
        }
        let [row, pixel, _] = steps(&view);
        Ok((view.buf, (view.buf, view.offset, [view.strides[0], row, pixel])))
    }
}

/// What a pool or its gradient does with data of shape `x` and results of shape `y`; `None` for three and more dimensions.
fn windows(op: &Operator, x: &[usize], y: &[usize]) -> Result<Option<(Pooling, Windows)>> {
    if !(3..=4).contains(&x.len()) || y.len() != x.len() {
        return Ok(None);
    }
    let window = Window::read(&op.attrs, None)?.resolved(&x[2..])?;
    let (image, grid) = (pair(&x[2..], 1), pair(&y[2..], 1));
    let (begin, end) = (pair(&window.begin, 0), pair(&window.end, 0));
    let pooling = if op.name.starts_with("Max") {
        Pooling::Max
    } else {
        let padded = (image.0 + begin.0 + end.0, image.1 + begin.1 + end.1);
        Pooling::Mean(op.attrs.flag("count_include_pad", false)?, padded)
    };
    let (kernel, stride) = (pair(&window.kernel, 1), pair(&window.strides, 1));
    let dilation = pair(&window.dilations, 1);
    Ok(Some((pooling, Windows { image, grid, kernel, stride, pad: begin, dilation })))
}

/// A view `[C]` broadcast over tensors `[N, C, …]`.
fn over_channels(view: &View, shape: &[usize]) -> View {
    let mut strides = vec![0; shape.len()];
    if shape.len() > 1 && shape[1] > 1 {
        strides[1] = view.strides.first().copied().unwrap_or(0);
    }
    View { shape: shape.to_vec(), strides, ..*view }
}
