//! `LinearAttention`: attention as a recurrence over tokens, with a matrix per head as its memory; and its gradient
//! `ai.sartor::LinearAttentionGrad`.
//!
//! ```text
//! P = exp(gₜ) · Sₜ₋₁ (gated rules, else Sₜ₋₁)        u = βₜ · (vₜ − Pᵀkₜ) (delta rules, else vₜ)
//! Sₜ = P + kₜ ⊗ u                                    oₜ = scale · Sₜᵀqₜ
//! ```
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__LinearAttention.html>; Katharopoulos et al. 2020, Yang et al. 2024. Attribute `update_rule`:
//! `linear`, `gated`, `delta` or `gated_delta` (default); `scale` 0 (default) is `1/√Dk`. Shapes, with T tokens and Hq a multiple of Hkv
//! (consecutive query heads share a memory):
//!
//! | input, output | shape |
//! |---|---|
//! | query, output | `[B, T, Hq·Dk]`, `[B, T, Hq·Dv]` |
//! | key, value | `[B, T, Hkv·Dk]`, `[B, T, Hkv·Dv]` |
//! | past_state (default 0), present_state: S | `[B, Hkv, Dk, Dv]`, of the type of past_state, else of the query |
//! | decay: g | `[B, T, Hkv·Dk]` or `[B, T, Hkv]` |
//! | beta: β | `[B, T, Hkv]` or `[B, T, 1]` |
//!
//! `LinearAttentionGrad(query, key, value, past_state, decay, beta, d_output, d_present_state)` has one output for each of the first six
//! inputs that is there, in order. It runs the recurrence once more, keeping the state of every token, and then backwards.

use super::real::{count, optional, reals, required, rounded};
use super::{CostCx, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, index};
use crate::error::{Error, Result};
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, Dim, SARTOR_DOMAIN, Tensor, bail, ensure};
use std::ops::Range;

/// The rows of this file.
pub const OPS: &[OpDef] = &[
    OpDef {
        name: "LinearAttention",
        inputs: (3, 6),
        outputs: (1, 2),
        infer,
        eval: Some(eval),
        grad: Gradient::Emit(grad),
        flops: |cx| flops(cx, 1),
        sample: Some(sample),
        ..OpDef::DEFAULT
    },
    OpDef {
        domain: SARTOR_DOMAIN,
        name: "LinearAttentionGrad",
        inputs: (7, 8),
        outputs: (3, 6),
        infer: infer_grad,
        eval: Some(eval_grad),
        grad: Gradient::Missing,
        flops: |cx| flops(cx, 3),
        sample: Some(sample_grad),
        ..OpDef::DEFAULT
    },
];

/// How many of the inputs are the forward operator's.
const OPERANDS: usize = 6;

// ---- attributes and types -------------------------------------------------------------------------------------------

struct Rule {
    gated: bool,
    delta: bool,
    query_heads: usize,
    heads: usize,
    /// 0: by the size of the heads.
    scale: f64,
}

impl Rule {
    fn read(attrs: &Attributes) -> Result<Rule> {
        let (gated, delta) = match attrs.str("update_rule", "gated_delta")? {
            "linear" => (false, false),
            "gated" => (true, false),
            "delta" => (false, true),
            "gated_delta" => (true, true),
            other => bail!("attribute `update_rule` is \"{other}\", expected linear, gated, delta or gated_delta"),
        };
        let (query_heads, heads) = (count(attrs, "q_num_heads", 0)?, count(attrs, "kv_num_heads", 0)?);
        let fits = heads > 0 && query_heads > 0 && query_heads.is_multiple_of(heads);
        ensure!(fits, "{query_heads} query heads, expected a positive multiple of the {heads} key heads");
        Ok(Rule { gated, delta, query_heads, heads, scale: f64::from(attrs.float("scale", 0.0)?) })
    }
    /// Errors unless exactly the optional inputs that the rule reads are there.
    fn check_inputs(&self, decay: bool, beta: bool) -> Result<()> {
        let verb = |reads: bool| if reads { "needs" } else { "has no" };
        ensure!(decay == self.gated, "its update_rule {} decay", verb(self.gated));
        ensure!(beta == self.delta, "its update_rule {} beta", verb(self.delta));
        Ok(())
    }
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let (state, output) = check_types(cx)?;
    let dtype = cx.dtype(0)?;
    let state_dtype = if cx.fact(3).is_some() { cx.dtype(3)? } else { dtype };
    cx.set_tensor(0, dtype, output);
    cx.set_tensor(1, state_dtype, state);
    Ok(())
}

/// Checks the forward operator's inputs; returns the shapes of the state and of the output.
fn check_types(cx: &InferCx) -> Result<(Option<Vec<Dim>>, Option<Vec<Dim>>)> {
    let rule = Rule::read(&cx.op.attrs)?;
    rule.check_inputs(cx.fact(4).is_some(), cx.fact(5).is_some())?;
    for slot in (0..OPERANDS).filter(|&slot| cx.fact(slot).is_some()) {
        let (first, dtype) = (cx.dtype(0)?, cx.dtype(slot)?);
        ensure!(dtype.is_float() && (slot == 3 || dtype == first), "the query is {first}, input {slot} is {dtype}");
    }
    let rows = |slot: usize| match cx.shape(slot) {
        Some([_, _, length]) => Ok(Some(length.clone())),
        Some(other) => bail!("input {slot} has rank {}, expected 3", other.len()),
        None => Ok(None),
    };
    let (query, value) = (rows(0)?, rows(2)?);
    rows(1)?;
    let (Some([batch, tokens, _]), Some(query), Some(value)) = (cx.shape(0), query, value) else {
        return Ok((None, None));
    };
    let size = |hidden: &Dim, heads: usize| hidden.div_floor(&(heads as i64).into());
    let (key_size, value_size) = (size(&query, rule.query_heads), size(&value, rule.heads));
    let output = vec![batch.clone(), tokens.clone(), value_size.mul(&(rule.query_heads as i64).into())];
    Ok((Some(vec![batch.clone(), (rule.heads as i64).into(), key_size, value_size]), Some(output)))
}

fn infer_grad(cx: &mut InferCx) -> Result<()> {
    check_types(cx)?;
    let given: Vec<usize> = (0..OPERANDS).filter(|&slot| cx.fact(slot).is_some()).collect();
    ensure!(cx.output_count() <= given.len(), "{} outputs for {} operands", cx.output_count(), given.len());
    for (output, slot) in given.into_iter().enumerate() {
        let ty = cx.ty(slot)?.clone();
        cx.set(output, ty);
    }
    Ok(())
}

// ---- the recurrence -------------------------------------------------------------------------------------------------

/// Everything in numbers, and the operands as reals.
struct Problem {
    rule: Rule,
    batch: usize,
    tokens: usize,
    key_size: usize,
    value_size: usize,
    /// The length of a row of the output.
    width: usize,
    scale: f64,
    query: Vec<f64>,
    key: Vec<f64>,
    value: Vec<f64>,
    /// The first states.
    past: Vec<f64>,
    /// Factors of the states, already exponentials.
    decay: Vec<f64>,
    /// Factors per head: the size of a key, or 1.
    decay_size: usize,
    beta: Vec<f64>,
    /// As many as heads, or 1.
    beta_heads: usize,
}

impl Problem {
    fn read(op: &Operator, inputs: &[Option<&Tensor>]) -> Result<Problem> {
        let rule = Rule::read(&op.attrs)?;
        let (query, key, value) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        let &[batch, tokens, hidden] = query.shape() else { bail!("a query of rank {}, expected 3", query.rank()) };
        let key_size = hidden / rule.query_heads;
        let value_size = value.shape().last().copied().unwrap_or(0) / rule.heads;
        ensure!(key_size > 0 && value_size > 0, "heads of size {key_size} and {value_size}, expected at least 1");
        let rows = |what: &str, tensor: &Tensor, sizes: &[usize]| -> Result<usize> {
            let found = tensor.shape();
            let fits = |&size: &usize| found == [batch, tokens, size];
            let wrong =
                || Error::msg(format!("{what} has the shape {found:?}, expected [{batch}, {tokens}, {sizes:?}]"));
            sizes.iter().copied().find(|size| fits(size)).ok_or_else(wrong)
        };
        rows("query", query, &[rule.query_heads * key_size])?;
        rows("key", key, &[rule.heads * key_size])?;
        rows("value", value, &[rule.heads * value_size])?;
        let (decay, beta) = (optional(inputs, 4), optional(inputs, 5));
        rule.check_inputs(decay.is_some(), beta.is_some())?;
        let decay_rows = decay.map(|t| rows("decay", t, &[rule.heads * key_size, rule.heads])).transpose()?;
        let beta_rows = beta.map(|t| rows("beta", t, &[rule.heads, 1])).transpose()?;
        let state = [batch, rule.heads, key_size, value_size];
        index::room(&state)?;
        let width = rule.query_heads.checked_mul(value_size);
        let width = width.ok_or_else(|| Error::msg(format!("{} heads of size {value_size}", rule.query_heads)))?;
        index::room(&[batch, tokens, width])?;
        let past = match optional(inputs, 3) {
            Some(past) => {
                ensure!(past.shape() == state, "past_state has the shape {:?}, expected {state:?}", past.shape());
                reals(past)?
            }
            None => vec![0.0; state.iter().product()],
        };
        let scale = if rule.scale == 0.0 { 1.0 / (key_size as f64).sqrt() } else { rule.scale };
        let factors = decay.map_or(Ok(Vec::new()), reals)?.into_iter().map(f64::exp).collect();
        Ok(Problem {
            batch,
            tokens,
            key_size,
            value_size,
            width,
            scale,
            query: reals(query)?,
            key: reals(key)?,
            value: reals(value)?,
            past,
            decay: factors,
            decay_size: decay_rows.unwrap_or(0) / rule.heads,
            beta: beta.map_or(Ok(Vec::new()), reals)?,
            beta_heads: beta_rows.unwrap_or(0),
            rule,
        })
    }
    fn state_shape(&self) -> [usize; 4] {
        [self.batch, self.rule.heads, self.key_size, self.value_size]
    }
    fn output_shape(&self) -> [usize; 3] {
        [self.batch, self.tokens, self.width]
    }
    /// The number of elements of one head's state.
    fn state_len(&self) -> usize {
        self.key_size * self.value_size
    }
    /// The places of all heads' states, in order.
    fn heads(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (batch, heads) = (self.batch, self.rule.heads);
        (0..batch).flat_map(move |b| (0..heads).map(move |h| (b, h)))
    }
    /// The row of a head in a `[B, T, heads · size]` tensor.
    fn row(&self, at: Place, heads: usize, size: usize) -> Range<usize> {
        let start = ((at.batch * self.tokens + at.token) * heads + at.head) * size;
        start..start + size
    }
    fn key_row(&self, at: Place) -> Range<usize> {
        self.row(at, self.rule.heads, self.key_size)
    }
    fn value_row(&self, at: Place) -> Range<usize> {
        self.row(at, self.rule.heads, self.value_size)
    }
    /// Empty for rules without decay.
    fn decay_row(&self, at: Place) -> Range<usize> {
        self.row(at, self.rule.heads, self.decay_size)
    }
    /// Where βₜ stands; only for delta rules.
    fn beta_place(&self, at: Place) -> usize {
        let head = if self.beta_heads == 1 { 0 } else { at.head };
        self.row(Place { head, ..at }, self.beta_heads, 1).start
    }
    /// The rows of the query heads that share a memory, in the query and in the output.
    fn readers(&self, at: Place) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
        let (all, group) = (self.rule.query_heads, self.rule.query_heads / self.rule.heads);
        let heads = at.head * group..(at.head + 1) * group;
        heads.map(move |head| {
            let at = Place { head, ..at };
            (self.row(at, all, self.key_size), self.row(at, all, self.value_size))
        })
    }
    /// Lets a state decay, in place: from `Sₜ₋₁` to `P`.
    fn fade(&self, state: &mut [f64], at: Place) {
        let factors = &self.decay[self.decay_row(at)];
        for (row, factor) in state.chunks_exact_mut(self.value_size).zip(factors.iter().cycle()) {
            row.iter_mut().for_each(|s| *s *= factor);
        }
    }
    /// What is written to the faded state, before it is multiplied by βₜ: `vₜ − Pᵀkₜ` for delta rules, else `vₜ`.
    fn news(&self, faded: &[f64], at: Place) -> Vec<f64> {
        let mut news = self.value[self.value_row(at)].to_vec();
        if self.rule.delta {
            add_rows(&mut news, faded, &self.key[self.key_row(at)], -1.0);
        }
        news
    }
    /// βₜ, or 1 for rules without.
    fn rate(&self, at: Place) -> f64 {
        if self.rule.delta { self.beta[self.beta_place(at)] } else { 1.0 }
    }
    /// One step, in place: from `Sₜ₋₁` to `Sₜ`.
    fn step(&self, state: &mut [f64], at: Place) {
        self.fade(state, at);
        let news = self.news(state, at);
        add_outer(state, &self.key[self.key_row(at)], &news, self.rate(at));
    }
    /// The outputs and the last states.
    fn forward(&self) -> (Vec<f64>, Vec<f64>) {
        let mut output = vec![0.0; self.output_shape().iter().product()];
        let mut states = self.past.clone();
        for ((batch, head), state) in self.heads().zip(states.chunks_exact_mut(self.state_len())) {
            for token in 0..self.tokens {
                let at = Place { batch, token, head };
                self.step(state, at);
                for (q, o) in self.readers(at) {
                    add_rows(&mut output[o], state, &self.query[q], self.scale);
                }
            }
        }
        (output, states)
    }
    /// The gradients of query, key, value, past state, decay (of its logarithm) and beta.
    fn backward(&self, d_output: &[f64], d_present: Vec<f64>) -> [Vec<f64>; OPERANDS] {
        let zeros = |like: &Vec<f64>| vec![0.0; like.len()];
        let mut grads = Grads {
            query: zeros(&self.query),
            key: zeros(&self.key),
            value: zeros(&self.value),
            decay: zeros(&self.decay),
            beta: zeros(&self.beta),
        };
        let (length, mut d_states) = (self.state_len(), d_present);
        let heads = self.heads().zip(self.past.chunks_exact(length)).zip(d_states.chunks_exact_mut(length));
        for (((batch, head), past), ds) in heads {
            let states = self.states(past, batch, head);
            for token in (0..self.tokens).rev() {
                let (at, pair) = (Place { batch, token, head }, &states[token * length..(token + 2) * length]);
                let (before, after) = pair.split_at(length);
                for (q, o) in self.readers(at) {
                    add_outer(ds, &self.query[q.clone()], &d_output[o.clone()], self.scale);
                    add_product(&mut grads.query[q], after, &d_output[o], self.scale);
                }
                self.step_back(&mut grads, ds, before, at);
            }
        }
        [grads.query, grads.key, grads.value, d_states, grads.decay, grads.beta]
    }
    /// The states of one head, from before the first token to after the last.
    fn states(&self, past: &[f64], batch: usize, head: usize) -> Vec<f64> {
        let (mut states, mut state) = (past.to_vec(), past.to_vec());
        for token in 0..self.tokens {
            self.step(&mut state, Place { batch, token, head });
            states.extend_from_slice(&state);
        }
        states
    }
    /// [`step`](Problem::step) backwards: `ds` goes from the gradient of `Sₜ` to that of `Sₜ₋₁`.
    fn step_back(&self, grads: &mut Grads, ds: &mut [f64], before: &[f64], at: Place) {
        let mut faded = before.to_vec();
        self.fade(&mut faded, at);
        let (news, rate, key) = (self.news(&faded, at), self.rate(at), &self.key[self.key_row(at)]);
        let dk = &mut grads.key[self.key_row(at)];
        add_product(dk, ds, &news, rate);
        let mut d_news = vec![0.0; self.value_size];
        add_rows(&mut d_news, ds, key, 1.0);
        if self.rule.delta {
            grads.beta[self.beta_place(at)] += dot(&d_news, &news);
            d_news.iter_mut().for_each(|d| *d *= rate);
            add_outer(ds, key, &d_news, -1.0);
            add_product(dk, &faded, &d_news, -1.0);
        }
        grads.value[self.value_row(at)].iter_mut().zip(&d_news).for_each(|(to, d)| *to += d);
        let d_decay = &mut grads.decay[self.decay_row(at)];
        if !d_decay.is_empty() {
            let rows = ds.chunks_exact(self.value_size).zip(faded.chunks_exact(self.value_size));
            rows.enumerate().for_each(|(i, (d, s))| d_decay[i % self.decay_size] += dot(d, s));
            self.fade(ds, at);
        }
    }
}

/// A token of one head of one batch entry.
#[derive(Clone, Copy)]
struct Place {
    batch: usize,
    token: usize,
    head: usize,
}

/// The gradients of the operands that are read token by token.
struct Grads {
    query: Vec<f64>,
    key: Vec<f64>,
    value: Vec<f64>,
    decay: Vec<f64>,
    beta: Vec<f64>,
}

/// `state += factor · column ⊗ row`
fn add_outer(state: &mut [f64], column: &[f64], row: &[f64], factor: f64) {
    for (line, c) in state.chunks_exact_mut(row.len()).zip(column) {
        line.iter_mut().zip(row).for_each(|(s, r)| *s += factor * c * r);
    }
}

/// `column += factor · state · row`
fn add_product(column: &mut [f64], state: &[f64], row: &[f64], factor: f64) {
    for (c, line) in column.iter_mut().zip(state.chunks_exact(row.len())) {
        *c += factor * dot(line, row);
    }
}

/// `row += factor · stateᵀ · column`
fn add_rows(row: &mut [f64], state: &[f64], column: &[f64], factor: f64) {
    for (line, c) in state.chunks_exact(row.len()).zip(column) {
        row.iter_mut().zip(line).for_each(|(r, s)| *r += factor * c * s);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

// ---- evaluation and gradient ----------------------------------------------------------------------------------------

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let problem = Problem::read(cx.op, inputs)?;
    let (output, states) = problem.forward();
    let dtype = required(inputs, 0)?.dtype();
    let state_dtype = optional(inputs, 3).map_or(dtype, Tensor::dtype);
    Ok(vec![rounded(dtype, problem.output_shape(), output)?, rounded(state_dtype, problem.state_shape(), states)?])
}

fn eval_grad(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let problem = Problem::read(cx.op, inputs)?;
    // The states of one head, one more than tokens.
    index::room(&[problem.tokens.saturating_add(1), problem.key_size, problem.value_size])?;
    let cotangent = |slot: usize, shape: &[usize]| match optional(inputs, slot) {
        Some(tensor) => {
            ensure!(tensor.shape() == shape, "input {slot} has the shape {:?}, expected {shape:?}", tensor.shape());
            reals(tensor)
        }
        None => Ok(vec![0.0; shape.iter().product()]),
    };
    let d_output = cotangent(OPERANDS, &problem.output_shape())?;
    let d_present = cotangent(OPERANDS + 1, &problem.state_shape())?;
    let mut grads = Vec::new();
    for (slot, grad) in problem.backward(&d_output, d_present).into_iter().enumerate() {
        if let Some(operand) = optional(inputs, slot) {
            grads.push(rounded(operand.dtype(), operand.shape(), grad)?);
        }
    }
    Ok(grads)
}

fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let mut inputs: Vec<Option<Value>> = (0..OPERANDS).map(|slot| cx.optional_input(slot)).collect();
    let given: Vec<usize> = (0..OPERANDS).filter(|&slot| inputs[slot].is_some()).collect();
    inputs.extend([cx.grads.first().copied().flatten(), cx.grads.get(1).copied().flatten()]);
    let found = cx.emit.node(Operator::sartor("LinearAttentionGrad", cx.op().attrs), &inputs, given.len())?;
    let mut grads = vec![None; OPERANDS];
    for (slot, grad) in given.into_iter().zip(found) {
        grads[slot] = Some(grad);
    }
    Ok(grads)
}

/// Per token and head: fading, reading for the delta, writing; per query head: reading.
fn flops(cx: &CostCx, times: u64) -> u64 {
    let Ok(rule) = Rule::read(&cx.op.attrs) else { return 0 };
    let value_size = cx.inputs.get(2).and_then(|v| v.last()).map_or(0, |&d| d / rule.heads) as u64;
    let passes = u64::from(rule.gated) + 2 * u64::from(rule.delta) + 2;
    times * value_size * (passes * cx.input_len(1) + 2 * cx.input_len(0))
}

// ---- samples --------------------------------------------------------------------------------------------------------

fn operands(draw: &mut Draw) -> (Attributes, Vec<Option<Tensor>>) {
    let (batch, tokens, key_size, value_size) = (2, draw.int(1, 3) as usize, 2, 3);
    let (heads, group) = (draw.int(1, 2) as usize, draw.int(1, 2) as usize);
    let rule = *draw.pick(&["linear", "gated", "delta", "gated_delta"]);
    let mut attrs = Attributes::new().with("update_rule", rule);
    attrs = attrs.with("q_num_heads", (heads * group) as i64).with("kv_num_heads", heads as i64);
    if draw.chance(0.5) {
        attrs.set("scale", 0.7f32);
    }
    let mut rows = |size: usize, low: f64, high: f64| draw.tensor(&[batch, tokens, size], low, high);
    let mut inputs = vec![
        Some(rows(heads * group * key_size, -1.0, 1.0)),
        Some(rows(heads * key_size, -1.0, 1.0)),
        Some(rows(heads * value_size, -1.0, 1.0)),
        None,
        None,
        None,
    ];
    inputs[3] = draw.chance(0.5).then(|| draw.tensor(&[batch, heads, key_size, value_size], -1.0, 1.0));
    if rule.starts_with("gated") {
        let size = if draw.chance(0.5) { heads * key_size } else { heads };
        inputs[4] = Some(draw.tensor(&[batch, tokens, size], -1.5, 0.0));
    }
    if rule.ends_with("delta") {
        let size = if draw.chance(0.5) { heads } else { 1 };
        inputs[5] = Some(draw.tensor(&[batch, tokens, size], 0.1, 0.9));
    }
    (attrs, inputs)
}

fn sample(draw: &mut Draw) -> Sample {
    let (attrs, inputs) = operands(draw);
    let check = inputs.iter().map(Option::is_some).collect();
    Sample { op: Operator::onnx("LinearAttention", attrs), inputs, check, outputs: draw.int(1, 2) as usize }
}

fn sample_grad(draw: &mut Draw) -> Sample {
    let (attrs, mut inputs) = operands(draw);
    let outputs = inputs.iter().flatten().count();
    let op = Operator::sartor("LinearAttentionGrad", attrs);
    let shapes = {
        let operands: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        Problem::read(&op, &operands).map(|p| (p.output_shape(), p.state_shape()))
    };
    if let Ok((output, state)) = shapes {
        inputs.push(Some(draw.tensor(&output, -1.0, 1.0)));
        inputs.push(draw.chance(0.5).then(|| draw.tensor(&state, -1.0, 1.0)));
    }
    let check = vec![false; inputs.len()];
    Sample { op, inputs, check, outputs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::probe::Probe;

    #[test]
    fn shapes_of_grouped_queries() {
        let mut p = Probe::new();
        let q = p.input("q", DType::F16, "batch,seq,64");
        let kv = p.input("kv", DType::F16, "batch,seq,32");
        let attrs = Attributes::new().with("q_num_heads", 8i64).with("kv_num_heads", 4i64);
        let out = p.node("LinearAttention", &[Some(q), Some(kv), Some(kv)], attrs.with("update_rule", "linear"), 2);
        assert_eq!(p.show(out[0]), "float16[batch, seq, 64]");
        assert_eq!(p.show(out[1]), "float16[batch, 4, 8, 8]");
    }

    #[test]
    fn a_rule_without_its_inputs_is_refused() {
        let mut p = Probe::new();
        let x = p.input("x", DType::F32, "1,2,4");
        let attrs = Attributes::new().with("q_num_heads", 2i64).with("kv_num_heads", 2i64);
        p.op("LinearAttention", &[x, x, x], attrs);
        assert!(p.error().ends_with("its update_rule needs decay"), "{}", p.error());
    }
}
