//! `ai.sartor::Recurrence`, what is left of a recurrent layer when its input is weighted, and `ai.sartor::RecurrenceGrad`: the walk over time in one
//! operator, whose gradient is one too, however many steps there are.
//!
//! ```text
//! Recurrence(z, R, h₀, c₀, lens, b):        Y, Y_h, Y_c, kept
//!     LSTM   i, o, φ, g = σ, σ, σ, tanh (z + R h)       c' = φ c + i g           h' = o tanh(c')        kept: i, o, φ, g, c'
//!     GRU    u, r = σ (z + R h)    n = tanh(z + q)      h' = (1 − u) n + u h                            kept: u, r, n, q
//!            q = R (r h), or with `linear_before_reset` r (R h + b), of which `R h + b` is kept
//!     RNN    h' = f (z + R h)
//! RecurrenceGrad(R, Y, dY, dY_h, dY_c, h₀, c₀, lens, kept):   dz, dh₀, dc₀, h, m
//! ```
//!
//! With `T` steps, batch `B`, `D` directions, `H` units, `G` gates: z and dz `[T, B, D·G·H]` (biases added), R `[D, G·H, H]`, states `[D, B, H]`, lens
//! `[B]` (int64), b `[D, H]`, Y and h `[T, D, B, H]`, kept `[T, D, B, K·H]`. Gates stand in ONNX's order. `h` is the state before each step, `m` what else R
//! is multiplied by in a GRU: `r h`, or with `linear_before_reset` the gradient of `R h + b`; from dz, h and m follows the gradient of R as a product. What
//! a cell has no use for is 0. Attributes: `cell` (LSTM, GRU, RNN), `direction`, `linear_before_reset`, `activation` (of RNN: Tanh or Relu).
//!
//! Behind the end of its sequence an entry keeps its states, and Y is 0; backwards it begins at its own end. `RecurrenceGrad` has no gradient itself. For
//! others to run, both are written out (`scanned`).

use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::ops::activation::sigmoid;
use crate::ops::emit::Length;
use crate::ops::real::{optional, reals, required, rounded};
use crate::ops::{Emit, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, SARTOR_DOMAIN, Tensor, bail, ensure};

/// The rows of this file.
pub(super) const RECURRENCE: OpDef = OpDef {
    domain: SARTOR_DOMAIN,
    name: "Recurrence",
    inputs: (2, 6),
    outputs: (1, 4),
    infer,
    eval: Some(eval),
    decompose: Some(super::scanned::forward),
    grad: Gradient::Emit(grad),
    flops: |cx| 2 * cx.input_len(0) * cx.inputs.get(1).and_then(|r| r.get(2)).map_or(0, |&h| h as u64),
    sample: Some(sample),
    ..OpDef::DEFAULT
};

/// See [`RECURRENCE`].
pub(super) const RECURRENCE_GRAD: OpDef = OpDef {
    domain: SARTOR_DOMAIN,
    name: "RecurrenceGrad",
    inputs: (2, 9),
    outputs: (5, 5),
    infer: infer_grad,
    eval: Some(eval_grad),
    decompose: Some(super::scanned::backward),
    flops: |cx| 2 * cx.output_len(0) * cx.inputs.first().and_then(|r| r.get(2)).map_or(0, |&h| h as u64),
    sample: Some(sample_grad),
    ..OpDef::DEFAULT
};

/// Which cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    Lstm,
    Gru,
    Rnn,
}

/// What the attributes say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Which cell.
    pub kind: Kind,
    /// For each direction, whether it is walked backwards.
    pub backwards: Vec<bool>,
    /// Of a GRU: the state is weighted before it is reset.
    pub before_reset: bool,
    /// Of an RNN: its activation is Relu instead of Tanh.
    pub relu: bool,
}

impl Rule {
    /// Reads the attributes.
    pub fn read(attrs: &Attributes) -> Result<Rule> {
        let kind = match attrs.str("cell", "LSTM")? {
            "LSTM" => Kind::Lstm,
            "GRU" => Kind::Gru,
            "RNN" => Kind::Rnn,
            other => bail!("attribute `cell` is \"{other}\", expected LSTM, GRU or RNN"),
        };
        let backwards = super::directions(attrs)?;
        let relu = attrs.str("activation", "Tanh")? == "Relu";
        Ok(Rule { kind, backwards, before_reset: attrs.flag("linear_before_reset", false)?, relu })
    }
    /// Gates of the cell.
    pub fn gates(&self) -> usize {
        match self.kind {
            Kind::Lstm => 4,
            Kind::Gru => 3,
            Kind::Rnn => 1,
        }
    }
    /// Numbers per unit and step that the gradient needs.
    pub fn kept(&self) -> usize {
        match self.kind {
            Kind::Lstm => 5,
            Kind::Gru => 4,
            Kind::Rnn => 0,
        }
    }
}

/// The lengths of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Sizes {
    pub steps: usize,
    pub batch: usize,
    pub hidden: usize,
}

/// The times of a sequence in the order in which it is walked.
pub fn times(length: usize, backwards: bool) -> impl DoubleEndedIterator<Item = usize> + Clone {
    (0..length).map(move |step| if backwards { length - 1 - step } else { step })
}

/// How long the sequence of each entry is.
pub fn lengths(lens: Option<&Tensor>, sizes: Sizes) -> Result<Vec<usize>> {
    let Some(lens) = lens else { return Ok(vec![sizes.steps; sizes.batch]) };
    let lens = index::sizes(&lens.to_i64s()?)?;
    ensure!(lens.len() == sizes.batch, "{} sequence lengths for a batch of {}", lens.len(), sizes.batch);
    ensure!(lens.iter().all(|len| *len <= sizes.steps), "sequence lengths {lens:?} beyond {} steps", sizes.steps);
    Ok(lens)
}

fn known(shape: &[Dim], axis: usize) -> Dim {
    shape.get(axis).cloned().unwrap_or(Dim::Unknown)
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (dtype, rule) = (cx.dtype(0)?, Rule::read(&cx.op.attrs)?);
    ensure!(dtype.is_float(), "its input is {dtype}, expected floating-point numbers");
    let (z, r) = (cx.shape(0).unwrap_or_default().to_vec(), cx.shape(1).unwrap_or_default().to_vec());
    let (steps, batch, hidden) = (known(&z, 0), known(&z, 1), known(&r, 2));
    let directions = Dim::Known(rule.backwards.len() as i64);
    let state = vec![directions.clone(), batch.clone(), hidden.clone()];
    let kept = hidden.mul(&(rule.kept() as i64).into());
    cx.set_tensor(0, dtype, Some(vec![steps.clone(), directions.clone(), batch.clone(), hidden]));
    cx.set_tensor(1, dtype, Some(state.clone()));
    cx.set_tensor(2, dtype, Some(state));
    cx.set_tensor(3, dtype, Some(vec![steps, directions, batch, kept]));
    Ok(())
}

fn infer_grad(cx: &mut InferCx) -> Result<()> {
    let (dtype, rule) = (cx.dtype(0)?, Rule::read(&cx.op.attrs)?);
    let y = cx.shape(1).unwrap_or_default().to_vec();
    let (steps, batch, hidden) = (known(&y, 0), known(&y, 2), known(&y, 3));
    let columns = hidden.mul(&((rule.backwards.len() * rule.gates()) as i64).into());
    let state = vec![Dim::Known(rule.backwards.len() as i64), batch.clone(), hidden];
    cx.set_tensor(0, dtype, Some(vec![steps, batch, columns]));
    cx.set_tensor(1, dtype, Some(state.clone()));
    cx.set_tensor(2, dtype, Some(state));
    cx.set_tensor(3, dtype, Some(y.clone()));
    cx.set_tensor(4, dtype, Some(y));
    Ok(())
}

/// `rows` rows of weights, from `first` on, times a state; `H` numbers each.
fn weighted(r: &[f64], first: usize, rows: usize, h: &[f64]) -> Vec<f64> {
    let row = |i: usize| &r[(first + i) * h.len()..(first + i + 1) * h.len()];
    (0..rows).map(|i| row(i).iter().zip(h).map(|(w, x)| w * x).sum()).collect()
}

/// `g` times rows of weights from `first` on: the gradient of the state, added to `dh`.
fn spread(r: &[f64], first: usize, g: &[f64], dh: &mut [f64]) {
    for (i, g) in g.iter().enumerate() {
        let row = &r[(first + i) * dh.len()..(first + i + 1) * dh.len()];
        dh.iter_mut().zip(row).for_each(|(d, w)| *d += g * w);
    }
}

/// The numbers of an input of this shape, if it is there.
pub(super) fn sized(tensor: Option<&Tensor>, what: &str, shape: &[usize]) -> Result<Option<Vec<f64>>> {
    let Some(tensor) = tensor else { return Ok(None) };
    ensure!(tensor.shape() == shape, "{what} has shape {:?}, expected {shape:?}", tensor.shape());
    Ok(Some(reals(tensor)?))
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let rule = Rule::read(&cx.op.attrs)?;
    let (z, r) = (required(inputs, 0)?, required(inputs, 1)?);
    let ([steps, batch, _], [_, _, hidden]) = (z.shape(), r.shape()) else { bail!("z and R have rank 3") };
    let sizes = Sizes { steps: *steps, batch: *batch, hidden: *hidden };
    let (directions, rows) = (rule.backwards.len(), rule.gates() * sizes.hidden);
    let Sizes { steps, batch, hidden } = sizes;
    let dtype = z.dtype();
    let z = sized(Some(z), "z", &[steps, batch, directions * rows])?.unwrap_or_default();
    let r = sized(Some(r), "R", &[directions, rows, hidden])?.unwrap_or_default();
    let state = [directions, batch, hidden];
    let mut h = sized(optional(inputs, 2), "h₀", &state)?.unwrap_or_else(|| vec![0.0; directions * batch * hidden]);
    let mut c = sized(optional(inputs, 3), "c₀", &state)?.unwrap_or_else(|| vec![0.0; directions * batch * hidden]);
    let lens = lengths(optional(inputs, 4), sizes)?;
    let bias =
        sized(optional(inputs, 5), "b", &[directions, hidden])?.unwrap_or_else(|| vec![0.0; directions * hidden]);
    let mut y = vec![0.0; steps * directions * batch * hidden];
    let mut kept = vec![0.0; y.len() * rule.kept()];
    for (d, &backwards) in rule.backwards.iter().enumerate() {
        let (r, bias) = (&r[d * rows * hidden..(d + 1) * rows * hidden], &bias[d * hidden..(d + 1) * hidden]);
        for (e, &length) in lens.iter().enumerate() {
            let own = (d * batch + e) * hidden..(d * batch + e + 1) * hidden;
            let (h, c) = (&mut h[own.clone()], &mut c[own]);
            for t in times(length, backwards) {
                let z = &z[((t * batch + e) * directions + d) * rows..][..rows];
                let place = (t * directions + d) * batch + e;
                let kept = &mut kept[place * rule.kept() * hidden..][..rule.kept() * hidden];
                step(&rule, z, (r, bias), h, c, kept);
                y[place * hidden..(place + 1) * hidden].copy_from_slice(h);
            }
        }
    }
    let shape = |last: usize| vec![steps, directions, batch, last];
    let state = |values: Vec<f64>| rounded(dtype, state.to_vec(), values);
    Ok(vec![
        rounded(dtype, shape(hidden), y)?,
        state(h)?,
        state(c)?,
        rounded(dtype, shape(rule.kept() * hidden), kept)?,
    ])
}

/// One step of one entry.
fn step(rule: &Rule, z: &[f64], (r, bias): (&[f64], &[f64]), h: &mut [f64], c: &mut [f64], kept: &mut [f64]) {
    let n = h.len();
    match rule.kind {
        Kind::Lstm => {
            let a = weighted(r, 0, 4 * n, h);
            for j in 0..n {
                let at = |gate: usize| z[gate * n + j] + a[gate * n + j];
                let (i, o, f, g) = (sigmoid(at(0)), sigmoid(at(1)), sigmoid(at(2)), at(3).tanh());
                c[j] = f * c[j] + i * g;
                h[j] = o * c[j].tanh();
                [i, o, f, g, c[j]].into_iter().enumerate().for_each(|(k, v)| kept[k * n + j] = v);
            }
        }
        Kind::Gru => {
            let a = weighted(r, 0, 2 * n, h);
            let gate = |g: usize, j: usize| sigmoid(z[g * n + j] + a[g * n + j]);
            let reset: Vec<f64> = (0..n).map(|j| gate(1, j)).collect();
            let shown: Vec<f64> =
                if rule.before_reset { h.to_vec() } else { h.iter().zip(&reset).map(|(h, r)| h * r).collect() };
            let q = weighted(r, 2 * n, n, &shown);
            for j in 0..n {
                let (u, q) = (gate(0, j), q[j] + if rule.before_reset { bias[j] } else { 0.0 });
                let fresh = (z[2 * n + j] + if rule.before_reset { reset[j] * q } else { q }).tanh();
                [u, reset[j], fresh, q].into_iter().enumerate().for_each(|(k, v)| kept[k * n + j] = v);
                h[j] = (1.0 - u) * fresh + u * h[j];
            }
        }
        Kind::Rnn => {
            let a = weighted(r, 0, n, h);
            for j in 0..n {
                let x = z[j] + a[j];
                h[j] = if rule.relu { if x < 0.0 { 0.0 } else { x } } else { x.tanh() };
            }
        }
    }
}

fn eval_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let rule = Rule::read(&cx.op.attrs)?;
    let (r, y) = (required(inputs, 0)?, required(inputs, 1)?);
    let [steps, directions, batch, hidden] = *y.shape() else { bail!("Y has rank 4") };
    let (sizes, dtype) = (Sizes { steps, batch, hidden }, y.dtype());
    let (rows, state, shape) = (rule.gates() * hidden, [directions, batch, hidden], y.shape().to_vec());
    ensure!(directions == rule.backwards.len(), "Y is of {directions} directions");
    let zeros = |n: usize| vec![0.0; n];
    let r = sized(Some(r), "R", &[directions, rows, hidden])?.unwrap_or_default();
    let dy = sized(optional(inputs, 2), "dY", &shape)?;
    let mut dh = sized(optional(inputs, 3), "dY_h", &state)?.unwrap_or_else(|| zeros(directions * batch * hidden));
    let mut dc = sized(optional(inputs, 4), "dY_c", &state)?.unwrap_or_else(|| zeros(directions * batch * hidden));
    let first_h = sized(optional(inputs, 5), "h₀", &state)?.unwrap_or_else(|| zeros(directions * batch * hidden));
    let first_c = sized(optional(inputs, 6), "c₀", &state)?.unwrap_or_else(|| zeros(directions * batch * hidden));
    let lens = lengths(optional(inputs, 7), sizes)?;
    let values = reals(y)?;
    let width = rule.kept() * hidden;
    let kept = sized(optional(inputs, 8), "kept", &[steps, directions, batch, width])?.unwrap_or_default();
    ensure!(kept.len() == steps * directions * batch * width, "what the forward pass kept is missing");
    let (mut dz, mut before, mut mixed) =
        (zeros(steps * batch * directions * rows), zeros(values.len()), zeros(values.len()));
    for (d, &backwards) in rule.backwards.iter().enumerate() {
        let r = &r[d * rows * hidden..(d + 1) * rows * hidden];
        for (e, &length) in lens.iter().enumerate() {
            let own = (d * batch + e) * hidden..(d * batch + e + 1) * hidden;
            let (dh, dc) = (&mut dh[own.clone()], &mut dc[own.clone()]);
            let order: Vec<usize> = times(length, backwards).collect();
            for (i, &t) in order.iter().enumerate().rev() {
                let place = |t: usize| (t * directions + d) * batch + e;
                let at = place(t);
                let line = at * hidden..(at + 1) * hidden;
                let last = i.checked_sub(1).map(|i| place(order[i]));
                let h = last.map_or(&first_h[own.clone()], |p| &values[p * hidden..(p + 1) * hidden]);
                let c = match last.filter(|_| rule.kind == Kind::Lstm) {
                    Some(p) => &kept[p * width + 4 * hidden..(p + 1) * width],
                    None => &first_c[own.clone()],
                };
                if let Some(dy) = &dy {
                    dh.iter_mut().zip(&dy[line.clone()]).for_each(|(d, y)| *d += y);
                }
                before[line.clone()].copy_from_slice(h);
                let dz = &mut dz[((t * batch + e) * directions + d) * rows..][..rows];
                let known = (&values[line.clone()], &kept[at * width..(at + 1) * width]);
                step_back(&rule, r, (h, c), known, (dh, dc), dz, &mut mixed[line]);
            }
        }
    }
    Ok(vec![
        rounded(dtype, vec![steps, batch, directions * rows], dz)?,
        rounded(dtype, state.to_vec(), dh)?,
        rounded(dtype, state.to_vec(), dc)?,
        rounded(dtype, shape.clone(), before)?,
        rounded(dtype, shape, mixed)?,
    ])
}

/// The gradient of one step of one entry: `dh` and `dc` become those of the states before it.
fn step_back(
    rule: &Rule,
    r: &[f64],
    (h, c): (&[f64], &[f64]),
    (y, kept): (&[f64], &[f64]),
    (dh, dc): (&mut [f64], &mut [f64]),
    dz: &mut [f64],
    mixed: &mut [f64],
) {
    let n = h.len();
    match rule.kind {
        Kind::Lstm => {
            for j in 0..n {
                let [i, o, f, g, next] = std::array::from_fn(|k| kept[k * n + j]);
                let shown = next.tanh();
                let total = dc[j] + dh[j] * o * (1.0 - shown * shown);
                dz[j] = total * g * i * (1.0 - i);
                dz[n + j] = dh[j] * shown * o * (1.0 - o);
                dz[2 * n + j] = total * c[j] * f * (1.0 - f);
                dz[3 * n + j] = total * i * (1.0 - g * g);
                dc[j] = total * f;
            }
            dh.fill(0.0);
            spread(r, 0, dz, dh);
        }
        Kind::Gru => {
            let (mut reset_grad, mut carried) = (vec![0.0; n], vec![0.0; n]);
            for j in 0..n {
                let [u, reset, fresh, q] = std::array::from_fn(|k| kept[k * n + j]);
                dz[j] = dh[j] * (h[j] - fresh) * u * (1.0 - u);
                dz[2 * n + j] = dh[j] * (1.0 - u) * (1.0 - fresh * fresh);
                carried[j] = dh[j] * u;
                if rule.before_reset {
                    reset_grad[j] = dz[2 * n + j] * q;
                    mixed[j] = dz[2 * n + j] * reset;
                } else {
                    mixed[j] = reset * h[j];
                }
            }
            if rule.before_reset {
                spread(r, 2 * n, mixed, &mut carried);
            } else {
                let mut shown = vec![0.0; n];
                spread(r, 2 * n, &dz[2 * n..], &mut shown);
                for j in 0..n {
                    reset_grad[j] = shown[j] * h[j];
                    carried[j] += shown[j] * kept[n + j];
                }
            }
            for j in 0..n {
                let reset = kept[n + j];
                dz[n + j] = reset_grad[j] * reset * (1.0 - reset);
            }
            spread(r, 0, &dz[..2 * n], &mut carried);
            dh.copy_from_slice(&carried);
        }
        Kind::Rnn => {
            for j in 0..n {
                let slope = if rule.relu { f64::from(u8::from(y[j] > 0.0)) } else { 1.0 - y[j] * y[j] };
                dz[j] = dh[j] * slope;
            }
            dh.fill(0.0);
            spread(r, 0, dz, dh);
        }
    }
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let (attrs, node) = (cx.op().attrs, cx.node);
    let rule = Rule::read(&attrs)?;
    let (z, r) = (cx.input(0)?, cx.input(1)?);
    let given = |slot: usize| cx.grads.get(slot).copied().flatten();
    let grads = [given(0), given(1), given(2)];
    let rest = [2, 3, 4].map(|slot| cx.optional_input(slot));
    let y = cx.emit.optional_output(node, 0)?;
    let kept = if rule.kept() > 0 { Some(cx.emit.optional_output(node, 3)?) } else { None };
    let inputs = [&[Some(r), Some(y)], &grads[..], &rest, &[kept]].concat();
    let found = cx.emit.node(Operator::sartor("RecurrenceGrad", attrs), &inputs, 5)?;
    let mut out = vec![Some(found[0]), None, rest[0].map(|_| found[1]), rest[1].map(|_| found[2]), None, None];
    if cx.want(1) {
        out[1] = Some(weight_grad(cx.emit, &rule, (z, r), found[0], found[3], found[4])?);
    }
    if cx.optional_input(5).is_some() && cx.want(5) {
        out[5] = Some(cx.emit.reduce_sum(found[4], &[0, 2], false)?);
    }
    Ok(out)
}

/// The gradient of R: the products of dz with the states before every step, summed over steps and batch.
fn weight_grad(
    emit: &mut Emit,
    rule: &Rule,
    (z, r): (Value, Value),
    dz: Value,
    before: Value,
    mixed: Value,
) -> Result<Value> {
    let directions = rule.backwards.len() as i64;
    let units = Length::Axis(r, 2);
    let rows = Length::Axis(r, 1);
    let apart = [Length::Axis(z, 0), Length::Axis(z, 1), Length::Number(directions), rows];
    let dz = emit.reshape_to(dz, &apart)?;
    let places = places(emit, z)?;
    // `[D, G·H, T·B]` and `[D, T·B, H]`.
    let dz = emit.transpose(dz, &[2, 3, 0, 1])?;
    let dz = joined(emit, dz, &[Length::Number(directions), rows], places, &[])?;
    let before = emit.transpose(before, &[1, 0, 2, 3])?;
    let before = joined(emit, before, &[Length::Number(directions)], places, &[units])?;
    if rule.kind != Kind::Gru {
        return emit.matmul(dz, before);
    }
    let (zero, one, far) = (emit.ints(&[0]), emit.ints(&[1]), emit.ints(&[i64::MAX]));
    let two = emit.shape_tensor(&[Length::Multiple(r, 2, 2)])?;
    let gates = emit.op("Slice", &[dz, zero, two, one], Attributes::new())?;
    let fresh = emit.op("Slice", &[dz, two, far, one], Attributes::new())?;
    let along = Attributes::new().with("axis", 1i64);
    if rule.before_reset {
        let mixed = emit.transpose(mixed, &[1, 3, 0, 2])?;
        let mixed = joined(emit, mixed, &[Length::Number(directions), units], places, &[])?;
        let left = emit.op("Concat", &[gates, mixed], along)?;
        return emit.matmul(left, before);
    }
    let mixed = emit.transpose(mixed, &[1, 0, 2, 3])?;
    let mixed = joined(emit, mixed, &[Length::Number(directions)], places, &[units])?;
    let (gates, fresh) = (emit.matmul(gates, before)?, emit.matmul(fresh, mixed)?);
    emit.op("Concat", &[gates, fresh], along)
}

/// Steps times batch, as a vector of one.
fn places(emit: &mut Emit, z: Value) -> Result<Value> {
    if let [Dim::Known(steps), Dim::Known(batch), ..] = emit.shape(z)?[..] {
        return Ok(emit.ints(&[steps * batch]));
    }
    let both = emit.op("Shape", &[z], Attributes::new().with("start", 0i64).with("end", 2i64))?;
    emit.op("ReduceProd", &[both], Attributes::new().with("keepdims", 1i64))
}

/// Reshaped to the lengths before, a length that is a vector of one, and the lengths behind.
fn joined(emit: &mut Emit, x: Value, before: &[Length], middle: Value, behind: &[Length]) -> Result<Value> {
    let mut parts = vec![emit.shape_tensor(before)?, middle];
    if !behind.is_empty() {
        parts.push(emit.shape_tensor(behind)?);
    }
    let shape = emit.op("Concat", &parts, Attributes::new().with("axis", 0i64))?;
    emit.op("Reshape", &[x, shape], Attributes::new().with("allowzero", 1i64))
}

/// A cell, and tensors for both operators.
fn case(draw: &mut Draw) -> (Rule, Attributes, Sizes, Vec<Option<Tensor>>) {
    let cell = *draw.pick(&["LSTM", "GRU", "RNN"]);
    let direction = *draw.pick(&["forward", "reverse", "bidirectional"]);
    let mut attrs = Attributes::new().with("cell", cell).with("direction", direction);
    let before_reset = cell == "GRU" && draw.chance(0.5);
    if before_reset {
        attrs.set("linear_before_reset", 1i64);
    }
    let rule =
        Rule::read(&attrs).unwrap_or(Rule { kind: Kind::Rnn, backwards: vec![false], before_reset, relu: false });
    let sizes = Sizes { steps: draw.int(1, 3) as usize, batch: 2, hidden: 2 };
    let (directions, Sizes { steps, batch, hidden }) = (rule.backwards.len(), sizes);
    let state = [directions, batch, hidden];
    let mut rest = vec![
        Some(draw.tensor(&[steps, batch, directions * rule.gates() * hidden], -1.0, 1.0)),
        Some(draw.tensor(&[directions, rule.gates() * hidden, hidden], -1.0, 1.0)),
        Some(draw.tensor(&state, -1.0, 1.0)).filter(|_| draw.chance(0.6)),
        Some(draw.tensor(&state, -1.0, 1.0)).filter(|_| rule.kind == Kind::Lstm && draw.chance(0.6)),
        Some(draw.ints(&[batch], 0, steps as i64)).filter(|_| draw.chance(0.4)),
    ];
    rest.push(Some(draw.tensor(&[directions, hidden], -1.0, 1.0)).filter(|_| before_reset && draw.chance(0.7)));
    (rule, attrs, sizes, rest)
}

fn sample(draw: &mut Draw) -> Sample {
    let (rule, attrs, _, inputs) = case(draw);
    let check = inputs.iter().map(|t| t.as_ref().is_some_and(|t| t.dtype() == DType::F64)).collect();
    let outputs = if rule.kind == Kind::Lstm { 3 } else { 2 };
    Sample { op: Operator::sartor("Recurrence", attrs), inputs, check, outputs }
}

fn sample_grad(draw: &mut Draw) -> Sample {
    let (rule, attrs, Sizes { steps, batch, hidden }, case) = case(draw);
    let (y, state) = ([steps, rule.backwards.len(), batch, hidden], [rule.backwards.len(), batch, hidden]);
    let mut inputs = vec![
        case[1].clone(),
        Some(draw.tensor(&y, -0.9, 0.9)),
        Some(draw.tensor(&y, -1.0, 1.0)).filter(|_| draw.chance(0.7)),
        Some(draw.tensor(&state, -1.0, 1.0)).filter(|_| draw.chance(0.5)),
        Some(draw.tensor(&state, -1.0, 1.0)).filter(|_| rule.kind == Kind::Lstm && draw.chance(0.5)),
    ];
    inputs.extend(case[2..5].iter().cloned());
    if rule.kept() > 0 {
        inputs.push(Some(draw.tensor(&[y[0], y[1], y[2], rule.kept() * hidden], 0.1, 0.9)));
    }
    let check = vec![false; inputs.len()];
    Sample { op: Operator::sartor("RecurrenceGrad", attrs), inputs, check, outputs: 5 }
}
