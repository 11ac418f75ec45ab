//! The weights of the experts: how they are kept, judged, changed, and turned into the point that is played. All in
//! double precision, and a handful of numbers, whatever the size of the model.

use super::experts::{Copy, Split};
use super::{Mode, Play, Wrap, entry};
use crate::training;
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, DType, Model, Operator, Program, Result, Role, Tensor, Type, Value, bail};

/// The logarithm of no weight: finite, so that a checkpoint can hold it, and far below all others.
const NONE: f64 = -1e300;
/// What is below this is no weight.
const SOME: f64 = -1e299;

/// The weights' parameters.
pub struct Weights {
    /// `w[q, i]`, `double[Q, N]`.
    log: String,
    /// `shared`: S², `double[1]`.
    scale: Option<String>,
    /// `intervals`: the steps done, `int64[1]`.
    steps: Option<String>,
    /// With `accumulate`: the sums of losses, `double[N]`, and how many, `double[1]`.
    sums: Option<(String, String)>,
    /// What they all begin with.
    pub initial: Vec<(String, Tensor)>,
    experts: usize,
}

/// Their values at the beginning of a step.
pub struct Begun<'a> {
    weights: &'a Weights,
    /// `double[Q, N]`
    log: Value,
    /// Which experts are new, `bool[N]`.
    fresh: Option<Value>,
    /// S²
    scale: Option<Value>,
    /// Sums of losses, and how many.
    sums: Option<(Value, Value)>,
}

/// What a step found out about the experts.
pub struct Judged {
    /// The weights, [`NONE`] for those that are out: `double[Q, N]`.
    pub weights: Value,
    /// Losses, or regrets in `shared`: `double[N]`.
    pub shown: Value,
    /// Which experts are in: `bool[N]`.
    valid: Value,
    /// The loss at the played point, where that is computed on its own: `double[1]`.
    played: Option<Value>,
}

/// Which point is played.
pub struct Choice {
    /// `double[N]`
    pub probability: Value,
    /// The played expert, or the likeliest where the average is played: an `int64` scalar.
    pub current: Value,
    average: bool,
    /// Each expert's probability, whether that is above 0, and whether it is the played one.
    shares: Vec<Value>,
    counts: Vec<Value>,
    is_current: Vec<Value>,
    /// The probabilities in other element types.
    converted: Vec<(DType, Vec<Value>)>,
    /// Whether any expert is left.
    any: Value,
}

/// η_q = 2^-q as a column.
fn etas(wrap: &Wrap) -> Vec<f64> {
    (1..=wrap.options.q as i32).map(|q| 0.5f64.powi(q)).collect()
}

impl Weights {
    /// Adds the parameters.
    pub fn add(wrap: &Wrap, model: &mut Model, experts: usize, accumulates: bool) -> Result<Weights> {
        let mode = wrap.options.mode;
        let mut initial = Vec::new();
        let mut add = |what: &str, tensor: Tensor| {
            let name = model.add_param(&format!("{}/samuel/{what}", wrap.name), tensor.clone(), Role::State);
            initial.push((name.clone(), tensor));
            name
        };
        let etas = etas(wrap);
        let rows: Vec<f64> = etas.iter().flat_map(|eta| std::iter::repeat_n(eta.ln(), experts)).collect();
        let log = add("log_weights", Tensor::from_vec([etas.len(), experts], rows));
        let scale = (mode == Mode::Shared).then(|| add("scale", Tensor::from_vec([1], vec![0f64])));
        let steps = (mode == Mode::Intervals).then(|| add("steps", Tensor::from_i64s(&[0])));
        let accumulates = accumulates && mode == Mode::Independent;
        let sums = accumulates.then(|| {
            let sums = add("losses", Tensor::from_vec([experts], vec![0f64; experts]));
            (sums, add("runs", Tensor::from_vec([1], vec![0f64])))
        });
        Ok(Weights { log, scale, steps, sums, initial, experts })
    }

    fn read(&self, program: &mut Program, name: &str) -> Result<Value> {
        let Some((_, tensor)) = self.initial.iter().find(|(n, _)| n == name) else {
            bail!("there is no parameter \"{name}\"");
        };
        Ok(program.graph.param(name, Type::of(tensor)))
    }

    /// Reads them; in `intervals` starts the experts of the intervals that begin now, and counts the step.
    pub fn begin(&self, wrap: &Wrap, program: &mut Program) -> Result<Begun<'_>> {
        let mut log = self.read(program, &self.log)?;
        let scale = self.scale.as_ref().map(|name| self.read(program, name)).transpose()?;
        let sums = match &self.sums {
            Some((sums, runs)) => Some((self.read(program, sums)?, self.read(program, runs)?)),
            None => None,
        };
        let mut fresh = None;
        if let Some(name) = &self.steps {
            let steps = self.read(program, name)?;
            let per_level = wrap.rates.len();
            let lengths: Vec<i64> = (0..self.experts).map(|i| i64::from(wrap.options.lengths[i / per_level])).collect();
            let mut emit = wrap.emit(program);
            let (lengths, zero, step) = (emit.ints(&lengths), emit.ints(&[0]), emit.ints(&[1]));
            let rest = emit.op("Mod", &[steps, lengths], Attributes::new())?;
            let new = emit.op("Equal", &[rest, zero], Attributes::new())?;
            let start = etas(wrap).iter().map(|eta| eta.min(0.5).ln()).collect::<Vec<f64>>();
            let start = emit.constant(Tensor::from_vec([start.len(), 1], start));
            log = emit.select(new, start, log)?;
            let next = emit.add(steps, step)?;
            training::bind(program, &format!("next:{name}"), next, name);
            fresh = Some(new);
        }
        Ok(Begun { weights: self, log, fresh, scale, sums })
    }
}

impl Begun<'_> {
    /// Whether an expert is new in this step: a `bool` scalar, where that can happen.
    pub fn fresh(&self, wrap: &Wrap, program: &mut Program, expert: usize) -> Result<Option<Value>> {
        let mut emit = wrap.emit(program);
        self.fresh.map(|fresh| entry(&mut emit, fresh, expert)).transpose()
    }

    /// Which experts have a weight when the step begins, `bool[N]`.
    pub fn alive(&self, wrap: &Wrap, program: &mut Program) -> Result<Value> {
        moving(wrap, program, self.log)
    }

    /// By the experts' own losses.
    pub fn judge_losses(
        &self,
        wrap: &Wrap,
        program: &mut Program,
        copies: &[Copy],
        apply: Option<Value>,
    ) -> Result<Judged> {
        let graph = &program.graph;
        let Some(loss) = graph.find_output("loss") else { bail!("it has no output \"loss\"") };
        let norm = graph.find_output(training::GRAD_NORM);
        let mut emit = wrap.emit(program);
        let mut vector = |value: Value| -> Result<Value> {
            let rows: Vec<Vec<Value>> = copies.iter().map(|copy| vec![copy.value(value)]).collect();
            sums(&mut emit, &rows)
        };
        let mut losses = vector(loss)?;
        let norms = norm.map(&mut vector).transpose()?;
        if let (Some((sums, runs)), Some(apply)) = (self.sums, apply) {
            let (sum, count) = (emit.add(sums, losses)?, emit.add_scalar(runs, 1.0)?);
            losses = emit.div(sum, count)?;
            // A sum that is not finite is kept as one that outweighs all others.
            let (zero, most) = (emit.scalar(0.0, sum)?, emit.scalar(-NONE, sum)?);
            let usable = finite(&mut emit, sum)?;
            let kept = emit.select(usable, sum, most)?;
            let (next, left) = (emit.select(apply, zero, kept)?, emit.select(apply, zero, count)?);
            if let Some((sums, runs)) = &self.weights.sums {
                training::bind(program, &format!("next:{sums}"), next, sums);
                training::bind(program, &format!("next:{runs}"), left, runs);
            }
        }
        let mut emit = wrap.emit(program);
        let mut valid = finite(&mut emit, losses)?;
        if let Some(norms) = norms {
            let norms = finite(&mut emit, norms)?;
            valid = emit.op("And", &[valid, norms], Attributes::new())?;
        }
        let played = match wrap.options.mode {
            Mode::Intervals => Some(sums(&mut emit, &[vec![loss]])?),
            _ => None,
        };
        let weights = self.without(&mut emit, valid)?;
        Ok(Judged { weights, shown: losses, valid, played })
    }

    /// The weights without those of experts that are out.
    fn without(&self, emit: &mut Emit, valid: Value) -> Result<Value> {
        let none = emit.scalar(NONE, self.log)?;
        emit.select(valid, self.log, none)
    }

    /// By linearised regrets: `starts` are the experts' points, `grads` the gradients at the played one.
    pub fn judge_shared(
        &self,
        wrap: &Wrap,
        program: &mut Program,
        split: &Split,
        (starts, grads): (&[Vec<Value>], &[(String, Value)]),
    ) -> Result<Judged> {
        let mut emit = wrap.emit(program);
        let mut products = Vec::new();
        for own in starts {
            let mut row = Vec::new();
            for (state, own) in split.states.iter().zip(own) {
                let grad = grads.iter().find(|(name, _)| *name == state.param);
                let (Some((_, grad)), Some(x)) = (grad, state.value) else { continue };
                let away = emit.sub(x, *own)?;
                let product = emit.mul(*grad, away)?;
                row.push(whole(&mut emit, "ReduceSum", product)?);
            }
            products.push(row);
        }
        let regrets = sums(&mut emit, &products)?;
        let valid = finite(&mut emit, regrets)?;
        let zero = emit.scalar(0.0, regrets)?;
        let regrets = emit.select(valid, regrets, zero)?;
        let weights = self.without(&mut emit, valid)?;
        let shown = self.normalised(wrap, program, weights, regrets)?;
        Ok(Judged { weights, shown, valid, played: None })
    }

    /// Which experts are within `trust` of the played point after their updates, `bool[N]`; the nearest always is.
    pub fn near(&self, wrap: &Wrap, program: &mut Program, split: &Split, copies: &[Copy]) -> Result<Value> {
        let mut emit = wrap.emit(program);
        let trained: Vec<(Value, Value)> =
            split.states.iter().filter(|s| s.trained).filter_map(|s| Some((s.value?, s.next))).collect();
        let squares =
            trained.iter().map(|(x, _)| whole(&mut emit, "ReduceSumSquare", *x)).collect::<Result<Vec<_>>>()?;
        let size = sums(&mut emit, &[squares])?;
        let mut squares = Vec::new();
        for copy in copies {
            let mut row = Vec::new();
            for (x, next) in &trained {
                let away = emit.sub(*x, copy.value(*next))?;
                row.push(whole(&mut emit, "ReduceSumSquare", away)?);
            }
            squares.push(row);
        }
        let distances = sums(&mut emit, &squares)?;
        let valid = finite(&mut emit, distances)?;
        let far = emit.scalar(f64::INFINITY, distances)?;
        let distances = emit.select(valid, distances, far)?;
        let floor = emit.scalar(1.0, size)?;
        let size = emit.op("Max", &[size, floor], Attributes::new())?;
        let limit = emit.mul_scalar(size, wrap.options.trust * wrap.options.trust)?;
        let nearest = emit.reduce("ReduceMin", distances, &[0], true)?;
        let limit = emit.op("Max", &[limit, nearest], Attributes::new())?;
        let near = emit.op("LessOrEqual", &[distances, limit], Attributes::new())?;
        emit.op("And", &[near, valid], Attributes::new())
    }

    /// Regrets by the running scale, within ±1.
    fn normalised(&self, wrap: &Wrap, program: &mut Program, weights: Value, regrets: Value) -> Result<Value> {
        let (Some(scale), Some(name)) = (self.scale, &self.weights.scale) else { bail!("there is no scale") };
        let mut emit = wrap.emit(program);
        let probability = probabilities(&mut emit, weights)?;
        let square = emit.mul(regrets, regrets)?;
        let mean = emit.mul(probability, square)?;
        let mean = emit.reduce_sum(mean, &[0], true)?;
        let kept = emit.mul_scalar(scale, 0.99)?;
        let next = emit.op("Max", &[mean, kept], Attributes::new())?;
        let tiny = emit.scalar(f64::MIN_POSITIVE, next)?;
        let divisor = emit.op("Max", &[next, tiny], Attributes::new())?;
        let divisor = emit.unary("Sqrt", divisor)?;
        let ratio = emit.div(regrets, divisor)?;
        let (low, high) = (emit.scalar(-1.0, ratio)?, emit.scalar(1.0, ratio)?);
        let low = emit.op("Max", &[ratio, low], Attributes::new())?;
        let shown = emit.op("Min", &[low, high], Attributes::new())?;
        training::bind(program, &format!("next:{name}"), next, name);
        Ok(shown)
    }

    /// The weights after the step, bound to their parameter.
    pub fn update(
        &self,
        wrap: &Wrap,
        program: &mut Program,
        judged: &Judged,
        (played, near): (&mut Choice, Option<Value>),
        apply: Option<Value>,
    ) -> Result<Value> {
        let mut emit = wrap.emit(program);
        let etas = etas(wrap);
        let etas = emit.constant(Tensor::from_vec([etas.len(), 1], etas));
        let regret = match (wrap.options.mode, judged.played) {
            (Mode::Shared, _) => judged.shown,
            (_, Some(loss)) => emit.sub(loss, judged.shown)?,
            _ => {
                let loss = played.mix_entries(&mut emit, judged.shown)?;
                emit.sub(loss, judged.shown)?
            }
        };
        let zero = emit.scalar(0.0, regret)?;
        let regret = emit.select(judged.valid, regret, zero)?;
        let mut change = emit.mul(etas, regret)?;
        if wrap.options.mode == Mode::Intervals {
            let factor = emit.add_scalar(change, 1.0)?;
            let least = emit.scalar(1e-3, factor)?;
            let factor = emit.op("Max", &[factor, least], Attributes::new())?;
            change = emit.unary("Log", factor)?;
        }
        let mut next = emit.add(judged.weights, change)?;
        if let Some(near) = near {
            let none = emit.scalar(NONE, next)?;
            next = emit.select(near, next, none)?;
        }
        if wrap.options.mode != Mode::Intervals {
            let most = emit.reduce("ReduceMax", next, &[0, 1], true)?;
            // Where none has a weight, none gets one.
            let some = emit.scalar(SOME, most)?;
            let most = emit.op("Max", &[most, some], Attributes::new())?;
            next = emit.sub(next, most)?;
        }
        if wrap.options.mode == Mode::Independent && wrap.options.retire > 0.0 {
            let probability = probabilities(&mut emit, next)?;
            let (least, none) = (emit.scalar(wrap.options.retire, probability)?, emit.scalar(NONE, next)?);
            let kept = emit.op("GreaterOrEqual", &[probability, least], Attributes::new())?;
            next = emit.select(kept, next, none)?;
        }
        if let Some(apply) = apply {
            next = emit.select(apply, next, self.log)?;
        }
        let name = &self.weights.log;
        training::bind(program, &format!("next:{name}"), next, name);
        Ok(next)
    }
}

/// Which experts have a weight, `bool[N]`. Those that have none stand still, so that their numbers stay finite.
pub fn moving(wrap: &Wrap, program: &mut Program, weights: Value) -> Result<Value> {
    let mut emit = wrap.emit(program);
    let most = emit.reduce("ReduceMax", weights, &[0], false)?;
    let some = emit.scalar(SOME, most)?;
    emit.op("Greater", &[most, some], Attributes::new())
}

impl Choice {
    /// By weights `double[Q, N]`.
    pub fn of(wrap: &Wrap, program: &mut Program, weights: Value) -> Result<Choice> {
        let mut emit = wrap.emit(program);
        let probability = probabilities(&mut emit, weights)?;
        let experts = match emit.shape(weights)?.last().and_then(|d| d.known()) {
            Some(n) => n as usize,
            None => bail!("the number of experts is unknown"),
        };
        let play = wrap.options.plays();
        let current = match play {
            Play::Sample => draw(&mut emit, probability, experts)?,
            // Of equal ones the smaller rate, where they are listed in order: at a restart all are equal.
            _ => {
                let falling = wrap.rates.first() > wrap.rates.last();
                let attrs = Attributes::new().with("axis", 0i64).with("keepdims", 0i64);
                let attrs = attrs.with("select_last_index", i64::from(falling));
                emit.op("ArgMax", &[probability], attrs)?
            }
        };
        let (mut shares, mut counts, mut is_current) = (Vec::new(), Vec::new(), Vec::new());
        let none = emit.scalar(0.0, probability)?;
        let above = emit.op("Greater", &[probability, none], Attributes::new())?;
        for i in 0..experts {
            shares.push(entry(&mut emit, probability, i)?);
            counts.push(entry(&mut emit, above, i)?);
            let index = emit.constant(Tensor::scalar(i as i64));
            is_current.push(emit.op("Equal", &[current, index], Attributes::new())?);
        }
        let most = emit.reduce("ReduceMax", weights, &[0, 1], false)?;
        let some = emit.scalar(SOME, most)?;
        let any = emit.op("Greater", &[most, some], Attributes::new())?;
        let average = play == Play::Average;
        Ok(Choice { probability, current, average, shares, counts, is_current, converted: Vec::new(), any })
    }

    /// The played one of the experts' values: the current expert's, or the mean. Experts without weight do not count, whatever
    /// their value. What is no floating-point number has no mean: the likeliest expert's is taken.
    pub fn mix(&mut self, emit: &mut Emit, values: &[Value]) -> Result<Value> {
        let dtype = emit.dtype(values[0])?;
        if !self.average || !dtype.is_float() {
            let mut chosen = values[values.len() - 1];
            for (value, current) in values.iter().zip(&self.is_current).rev().skip(1) {
                chosen = emit.select(*current, *value, chosen)?;
            }
            return Ok(chosen);
        }
        let shares = self.shares_as(emit, dtype)?;
        let mut sum = None;
        for ((value, share), counts) in values.iter().zip(&shares).zip(&self.counts) {
            let zero = emit.scalar(0.0, *value)?;
            let value = emit.select(*counts, *value, zero)?;
            let term = emit.mul(value, *share)?;
            sum = Some(training::plus(emit, sum, term)?);
        }
        sum.map_or_else(|| bail!("there are no experts"), Ok)
    }

    /// The probabilities in an element type.
    fn shares_as(&mut self, emit: &mut Emit, dtype: DType) -> Result<Vec<Value>> {
        if let Some((_, shares)) = self.converted.iter().find(|(d, _)| *d == dtype) {
            return Ok(shares.clone());
        }
        let shares = self.shares.iter().map(|share| emit.cast(*share, dtype)).collect::<Result<Vec<_>>>()?;
        self.converted.push((dtype, shares.clone()));
        Ok(shares)
    }

    /// The same for the entries of a vector `double[N]`: `double[1]`.
    fn mix_entries(&mut self, emit: &mut Emit, vector: Value) -> Result<Value> {
        let entries = (0..self.shares.len()).map(|i| entry(emit, vector, i)).collect::<Result<Vec<_>>>()?;
        let mixed = self.mix(emit, &entries)?;
        emit.reshape(mixed, &[1])
    }

    /// A loss that is not a number if no expert is left.
    pub fn poison(&self, emit: &mut Emit, loss: Value) -> Result<Value> {
        let nan = emit.scalar(f64::NAN, loss)?;
        emit.select(self.any, loss, nan)
    }

    /// The played learning rate.
    pub fn effective(&self, emit: &mut Emit, rates: Value) -> Result<Value> {
        if !self.average {
            return emit.op("Gather", &[rates, self.current], Attributes::new().with("axis", 0i64));
        }
        let share = emit.cast(self.probability, emit.dtype(rates)?)?;
        let product = emit.mul(share, rates)?;
        let sum = emit.reduce_sum(product, &[0], false)?;
        Ok(sum)
    }
}

/// `p_i ∝ Σ_q exp w[q, i]`
fn probabilities(emit: &mut Emit, weights: Value) -> Result<Value> {
    let most = emit.reduce("ReduceMax", weights, &[0, 1], true)?;
    let shifted = emit.sub(weights, most)?;
    let exp = emit.unary("Exp", shifted)?;
    let sums = emit.reduce_sum(exp, &[0], false)?;
    let total = emit.reduce_sum(sums, &[0], true)?;
    emit.div(sums, total)
}

/// A number drawn with these probabilities.
fn draw(emit: &mut Emit, probability: Value, experts: usize) -> Result<Value> {
    let attrs = Attributes::new().with("dtype", i64::from(DType::F64.onnx_code())).with("shape", vec![1i64]);
    let uniform = emit.node(Operator::onnx("RandomUniform", attrs), &[], 1)?[0];
    let axis = emit.constant(Tensor::scalar(0i64));
    let reached = emit.op("CumSum", &[probability, axis], Attributes::new())?;
    let passed = emit.op("LessOrEqual", &[reached, uniform], Attributes::new())?;
    let passed = emit.cast(passed, DType::I64)?;
    let index = emit.reduce_sum(passed, &[0], false)?;
    // Rounding may leave the sum of all a little below 1: then the last expert with any probability.
    let none = emit.scalar(0.0, probability)?;
    let has = emit.op("Greater", &[probability, none], Attributes::new())?;
    let has = emit.cast(has, DType::I64)?;
    let places: Vec<i64> = (0..experts as i64).collect();
    let places = emit.ints(&places);
    let last = emit.mul(has, places)?;
    let last = emit.reduce("ReduceMax", last, &[0], false)?;
    emit.op("Min", &[index, last], Attributes::new())
}

/// Which entries are finite numbers.
fn finite(emit: &mut Emit, x: Value) -> Result<Value> {
    let size = emit.unary("Abs", x)?;
    let most = emit.scalar(f64::MAX, x)?;
    emit.op("LessOrEqual", &[size, most], Attributes::new())
}

/// All entries reduced to one number, a scalar.
fn whole(emit: &mut Emit, reduce: &str, x: Value) -> Result<Value> {
    emit.op(reduce, &[x], Attributes::new().with("keepdims", 0i64))
}

/// The sum of every row of numbers of one element, in double precision: `double[rows]`. They are put together before they are
/// converted, so that few operators handle single numbers, however many parameters there are.
fn sums(emit: &mut Emit, rows: &[Vec<Value>]) -> Result<Value> {
    let mut parts = Vec::new();
    let dtype = match rows.first().and_then(|row| row.first()) {
        Some(first) => emit.dtype(*first)?,
        None => bail!("it has no trained parameter"),
    };
    let mut alike = true;
    for value in rows.iter().flatten() {
        alike &= emit.dtype(*value)? == dtype;
    }
    for value in rows.iter().flatten() {
        let value = if alike { *value } else { emit.cast(*value, DType::F64)? };
        parts.push(emit.reshape(value, &[1])?);
    }
    let all = emit.op("Concat", &parts, Attributes::new().with("axis", 0i64))?;
    let table = emit.reshape(all, &[rows.len() as i64, rows[0].len() as i64])?;
    let table = emit.cast(table, DType::F64)?;
    emit.reduce_sum(table, &[1], false)
}
