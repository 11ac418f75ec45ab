//! `samuel` beside its formulas: the wrapped step, run on a quadratic and on logistic regression, and the same run
//! computed again in plain loops over `f64`.

use sartor_ir::rng::Stream;
use sartor_ir::{Model, Tensor, onnx, text};
use sartor_passes::{Driver, Registry, options};
use sartor_runtime::params::Params;
use sartor_runtime::session::{Key, Session, SessionOptions};
use std::collections::HashMap;

const RATES: [f64; 4] = [2.0, 0.3, 0.05, 0.002];
const ROWS: usize = 8;
const WIDTH: usize = 3;
const MOMENTUM: f64 = 0.9;
const Q: usize = 3;

/// What is learned.
#[derive(Clone, Copy, PartialEq)]
enum Problem {
    /// Squared error.
    Quadratic,
    /// Binary cross-entropy.
    Logistic,
}

impl Problem {
    fn loss_pass(self) -> &'static str {
        match self {
            Problem::Quadratic => "loss(kind=mse)",
            Problem::Logistic => "loss(kind=bce)",
        }
    }
    /// The batch of a step: the true weights drift.
    fn batch(self, step: u64) -> (Vec<f64>, Vec<f64>) {
        let stream = Stream::new(7, step, "batch");
        let x: Vec<f64> = (0..ROWS * WIDTH).map(|i| stream.uniform(i as u64, -1.0, 1.0)).collect();
        let truth = [1.0 + 0.01 * step as f64, -2.0, 0.5 * (step as f64 / 20.0).sin()];
        let label = |row: &[f64]| {
            let y: f64 = row.iter().zip(truth).map(|(x, w)| x * w).sum();
            if self == Problem::Logistic { f64::from(u8::from(y > 0.0)) } else { y }
        };
        let y = x.chunks(WIDTH).map(label).collect();
        (x, y)
    }
    fn loss_and_gradient(self, w: &[f64], (x, y): &(Vec<f64>, Vec<f64>)) -> (f64, Vec<f64>) {
        let (mut loss, mut gradient) = (0.0, vec![0.0; WIDTH]);
        for (row, y) in x.chunks(WIDTH).zip(y) {
            let z: f64 = row.iter().zip(w).map(|(x, w)| x * w).sum();
            let slope = match self {
                Problem::Quadratic => {
                    loss += (z - y) * (z - y);
                    2.0 * (z - y)
                }
                Problem::Logistic => {
                    loss += z.max(0.0) - z * y + (-z.abs()).exp().ln_1p();
                    1.0 / (1.0 + (-z).exp()) - y
                }
            };
            gradient.iter_mut().zip(row).for_each(|(g, x)| *g += slope * x / ROWS as f64);
        }
        (loss / ROWS as f64, gradient)
    }
}

fn wrapped(problem: Problem, passes: &[&str]) -> Model {
    let source = "<ir_version: 10, opset_import: [\"\": 20]>\n\
        parameters <trainable double[3, 1] w = {0.1, 0.2, -0.1}>\n\
        g (double[batch, 3] x) => (double[batch, 1] y) <double[3, 1] w = param> { y = MatMul (x, w) }\n";
    let mut model = text::parse(source).unwrap();
    let registry = Registry::builtin();
    for pass in [problem.loss_pass(), "autodiff"].iter().chain(passes) {
        let (name, options) = options::parse_invocation(pass).unwrap();
        let pass = registry.build(&name, options).unwrap();
        Driver::new().run_pass(pass.as_ref(), &mut model).unwrap();
    }
    model
}

/// A run of a model's programs.
struct Run {
    model: Model,
    params: Params,
    step: Session,
    /// What the last step gave.
    outputs: HashMap<String, Tensor>,
}

impl Run {
    fn new(model: Model) -> Run {
        let step = Session::program(&model, "step", SessionOptions { threads: 1 }).unwrap();
        Run { params: Params::of(&model), model, step, outputs: HashMap::new() }
    }
    fn step(&mut self, step: u64, batch: &(Vec<f64>, Vec<f64>)) {
        let inputs = HashMap::from([
            ("x".to_string(), Tensor::from_vec([ROWS, WIDTH], batch.0.clone())),
            ("label".to_string(), Tensor::from_vec([ROWS, 1], batch.1.clone())),
            ("learning_rate".to_string(), Tensor::scalar(1f32)),
        ]);
        self.outputs = self.step.run(&mut self.params, &inputs, Key { seed: 3, step }).unwrap();
    }
    fn restart(&mut self) {
        let mut restart = Session::program(&self.model, "restart", SessionOptions { threads: 1 }).unwrap();
        restart.run(&mut self.params, &HashMap::new(), Key::default()).unwrap();
    }
    fn param(&self, name: &str) -> Vec<f64> {
        self.params.get(name).unwrap().to_f64s().unwrap()
    }
    fn output(&self, name: &str) -> Vec<f64> {
        self.outputs[name].to_f64s().unwrap()
    }
}

/// The same in plain loops.
struct Plain {
    problem: Problem,
    /// Of each expert: its point, and its momentum.
    points: Vec<Vec<f64>>,
    momenta: Vec<Vec<f64>>,
    /// `w[q][i]`
    weights: Vec<Vec<f64>>,
    played: Vec<f64>,
    scale: f64,
    /// `independent`: the least probability.
    retire: f64,
}

/// The logarithm of no weight.
const NONE: f64 = -1e300;

fn eta(q: usize) -> f64 {
    0.5f64.powi(q as i32 + 1)
}

impl Plain {
    fn new(problem: Problem, experts: usize) -> Plain {
        let start = vec![0.1, 0.2, -0.1];
        let mut plain = Plain {
            problem,
            points: vec![start.clone(); experts],
            momenta: Vec::new(),
            weights: Vec::new(),
            played: start,
            scale: 0.0,
            retire: 0.0,
        };
        plain.restart();
        plain
    }
    fn restart(&mut self) {
        let experts = self.points.len();
        self.points = vec![self.played.clone(); experts];
        self.momenta = vec![vec![0.0; WIDTH]; experts];
        self.weights = (0..Q).map(|q| vec![eta(q).ln(); experts]).collect();
        self.scale = 0.0;
    }
    fn probabilities(&self) -> Vec<f64> {
        let most = self.weights.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = |i: usize| self.weights.iter().map(|w| (w[i] - most).exp()).sum::<f64>();
        let sums: Vec<f64> = (0..self.points.len()).map(sum).collect();
        let total: f64 = sums.iter().sum();
        sums.iter().map(|s| s / total).collect()
    }
    fn update(&mut self, expert: usize, gradient: &[f64]) {
        if self.weights[0][expert] < NONE / 10.0 {
            return;
        }
        let rate = f64::from(RATES[expert % RATES.len()] as f32);
        for (at, g) in gradient.iter().enumerate() {
            self.momenta[expert][at] = MOMENTUM * self.momenta[expert][at] + g;
            self.points[expert][at] -= rate * self.momenta[expert][at];
        }
    }
    fn average(&self, p: &[f64]) -> Vec<f64> {
        (0..WIDTH).map(|at| p.iter().zip(&self.points).map(|(p, x)| p * x[at]).sum()).collect()
    }
    /// Of equal ones the last, whose rate is the smallest.
    fn likeliest(p: &[f64]) -> usize {
        (0..p.len()).max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap()
    }
    /// Returns the losses and the probabilities.
    fn independent(
        &mut self,
        batch: &(Vec<f64>, Vec<f64>),
        play: impl Fn(&[f64]) -> Option<usize>,
    ) -> (Vec<f64>, Vec<f64>) {
        let found: Vec<_> = self.points.iter().map(|w| self.problem.loss_and_gradient(w, batch)).collect();
        let losses: Vec<f64> = found.iter().map(|f| f.0).collect();
        found.iter().enumerate().for_each(|(i, f)| self.update(i, &f.1));
        let p = self.probabilities();
        let loss = match play(&p) {
            Some(current) => {
                self.played = self.points[current].clone();
                losses[current]
            }
            None => {
                self.played = self.average(&p);
                p.iter().zip(&losses).map(|(p, l)| p * l).sum()
            }
        };
        for (q, row) in self.weights.iter_mut().enumerate() {
            row.iter_mut().zip(&losses).for_each(|(w, l)| *w += eta(q) * (loss - l));
        }
        for (i, p) in self.probabilities().iter().enumerate() {
            if *p < self.retire {
                self.weights.iter_mut().for_each(|row| row[i] = NONE);
            }
        }
        (losses, p)
    }
    fn shared(&mut self, batch: &(Vec<f64>, Vec<f64>), trust: f64) -> Vec<f64> {
        let (_, gradient) = self.problem.loss_and_gradient(&self.played, batch);
        let played = self.played.clone();
        let away = |x: &[f64]| played.iter().zip(x).map(|(a, b)| a - b).collect::<Vec<f64>>();
        let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        let regrets: Vec<f64> =
            self.points.iter().map(|x| gradient.iter().zip(away(x)).map(|(g, a)| g * a).sum()).collect();
        let p = self.probabilities();
        let mean: f64 = p.iter().zip(&regrets).map(|(p, r)| p * r * r).sum();
        self.scale = mean.max(0.99 * self.scale);
        let regrets: Vec<f64> =
            regrets.iter().map(|r| (r / self.scale.max(f64::MIN_POSITIVE).sqrt()).clamp(-1.0, 1.0)).collect();
        for (q, row) in self.weights.iter_mut().enumerate() {
            row.iter_mut().zip(&regrets).for_each(|(w, r)| *w += eta(q) * r);
        }
        let before = self.points.clone();
        (0..self.points.len()).for_each(|i| self.update(i, &gradient));
        let distances: Vec<f64> = self.points.iter().map(|x| square(&away(x))).collect();
        let nearest = distances.iter().copied().fold(f64::INFINITY, f64::min);
        let limit = (trust * trust * square(&self.played).max(1.0)).max(nearest);
        for (i, distance) in distances.iter().enumerate().filter(|(_, d)| **d > limit) {
            assert!(distance.is_finite());
            self.points[i] = before[i].clone();
            self.weights.iter_mut().for_each(|row| row[i] = NONE);
        }
        let p = self.probabilities();
        self.played = self.average(&p);
        p
    }
    fn intervals(&mut self, batch: &(Vec<f64>, Vec<f64>), step: u64, lengths: &[u64]) -> Vec<f64> {
        for i in 0..self.points.len() {
            if step.is_multiple_of(lengths[i / RATES.len()]) {
                self.points[i] = self.played.clone();
                self.momenta[i] = vec![0.0; WIDTH];
                self.weights.iter_mut().enumerate().for_each(|(q, row)| row[i] = eta(q).min(0.5).ln());
            }
        }
        let (loss, _) = self.problem.loss_and_gradient(&self.played, batch);
        let found: Vec<_> = self.points.iter().map(|w| self.problem.loss_and_gradient(w, batch)).collect();
        for (i, (own, gradient)) in found.iter().enumerate() {
            self.update(i, gradient);
            for (q, row) in self.weights.iter_mut().enumerate() {
                row[i] += (1.0 + eta(q) * (loss - own)).max(1e-3).ln();
            }
        }
        let p = self.probabilities();
        self.played = self.average(&p);
        p
    }
}

#[track_caller]
fn close(what: &str, step: u64, ours: &[f64], plain: &[f64]) {
    assert_eq!(ours.len(), plain.len(), "{what}");
    for (a, b) in ours.iter().zip(plain) {
        assert!(
            a == b || (a - b).abs() <= 1e-9 * b.abs().max(1.0),
            "step {step}: {what} {ours:?}, in plain loops {plain:?}"
        );
    }
}

/// Without the largest entry, which does not matter.
fn relative(weights: Vec<f64>) -> Vec<f64> {
    let most = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    weights.iter().map(|w| w - most).collect()
}

const STEPS: u64 = 200;
const RESTARTS: [u64; 2] = [90, 150];

fn restart_if_due(step: u64, run: &mut Run, plain: &mut Plain) {
    if RESTARTS.contains(&step) {
        run.restart();
        plain.restart();
    }
}

fn rates() -> String {
    format!("rates=[{}]", RATES.map(|r| r.to_string()).join(", "))
}

fn pass(options: &str) -> String {
    format!("samuel({}, q={Q}, base={{kind=sgd, momentum={MOMENTUM}}}, {options})", rates())
}

#[test]
fn independent_is_the_published_algorithm() {
    for problem in [Problem::Quadratic, Problem::Logistic] {
        for (play, retire) in
            [("sample", 0.0), ("average", 0.0), ("likeliest", 0.0), ("average", 0.02), ("likeliest", 0.02)]
        {
            let mut run = Run::new(wrapped(problem, &[&pass(&format!("play={play}, retire={retire:?}"))]));
            let mut plain = Plain { retire, ..Plain::new(problem, RATES.len()) };
            let mut retired = false;
            let mut seen = std::collections::HashSet::new();
            for step in 0..STEPS {
                restart_if_due(step, &mut run, &mut plain);
                let batch = problem.batch(step);
                run.step(step, &batch);
                let before = plain.weights[0].clone();
                let drawn = run.outputs.get("samuel/played").map(|t| t.to_f64s().unwrap()[0] as usize);
                seen.extend(drawn);
                let (losses, p) = plain.independent(&batch, |p| match play {
                    "average" => None,
                    "likeliest" => Some(Plain::likeliest(p)),
                    _ => drawn,
                });
                // Who is out computes nothing, and has no loss.
                for (loss, shown) in losses.iter().zip(run.output("samuel/loss")).filter(|(_, shown)| !shown.is_nan()) {
                    close("loss", step, &[shown], &[*loss]);
                }
                let out = run.output("samuel/loss").iter().map(|l| l.is_nan()).collect::<Vec<bool>>();
                assert_eq!(out, before.iter().map(|w| *w < NONE / 10.0).collect::<Vec<bool>>(), "step {step}");
                retired |= out.contains(&true);
                close("probability", step, &run.output("samuel/probability"), &p);
                close("played", step, &run.param("w"), &plain.played);
                let own: Vec<f64> = (0..RATES.len()).flat_map(|i| run.param(&format!("step/expert.{i}/w"))).collect();
                close("points", step, &own, &plain.points.concat());
                let weights = relative(run.param("step/samuel/log_weights"));
                close("weights", step, &weights, &relative(plain.weights.concat()));
                let sum: f64 = run.output("samuel/probability").iter().sum();
                assert!((sum - 1.0).abs() < 1e-12, "the probabilities sum to {sum}");
            }
            assert_eq!(retired, retire > 0.0, "{play}");
            assert!(play != "sample" || seen.len() == RATES.len(), "only {seen:?} were drawn");
        }
    }
}

#[test]
fn shared_is_what_it_says() {
    for problem in [Problem::Quadratic, Problem::Logistic] {
        let mut run = Run::new(wrapped(problem, &[&pass("mode=shared, trust=0.7")]));
        let mut plain = Plain::new(problem, RATES.len());
        let mut dropped = false;
        for step in 0..STEPS {
            restart_if_due(step, &mut run, &mut plain);
            let batch = problem.batch(step);
            run.step(step, &batch);
            let p = plain.shared(&batch, 0.7);
            close("probability", step, &run.output("samuel/probability"), &p);
            close("played", step, &run.param("w"), &plain.played);
            let weights = relative(run.param("step/samuel/log_weights"));
            close("weights", step, &weights, &relative(plain.weights.concat()));
            dropped |= weights.iter().any(|w| *w < NONE / 10.0);
        }
        assert!(dropped, "nobody left the ball");
    }
}

#[test]
fn intervals_are_those_of_the_theory() {
    let lengths = [4, 16, 64];
    for problem in [Problem::Quadratic, Problem::Logistic] {
        let mut run = Run::new(wrapped(problem, &[&pass("mode=intervals, lengths=[4, 16, 64]")]));
        let mut plain = Plain::new(problem, RATES.len() * lengths.len());
        for step in 0..STEPS {
            let batch = problem.batch(step);
            run.step(step, &batch);
            let p = plain.intervals(&batch, step, &lengths);
            let weights = run.param("step/samuel/log_weights");
            if plain.points.iter().flatten().all(|x| x.is_finite()) {
                close("weights", step, &weights, &plain.weights.concat());
            }
            close("probability", step, &run.output("samuel/probability"), &p);
            close("played", step, &run.param("w"), &plain.played);
        }
    }
}

/// The run of a model that was written as ONNX and read again has the same bits.
#[test]
fn a_file_gives_the_same_run() {
    for mode in ["independent, play=sample", "shared", "intervals, lengths=[4, 16]"] {
        let model = wrapped(Problem::Logistic, &[&pass(&format!("mode={mode}"))]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step.onnx");
        onnx::save(&model, &path, &onnx::SaveOptions::default()).unwrap();
        let mut runs = [Run::new(model), Run::new(onnx::load(&path).unwrap())];
        for step in 0..40 {
            let batch = Problem::Logistic.batch(step);
            for run in &mut runs {
                if step == 25 {
                    run.restart();
                }
                run.step(step, &batch);
            }
            let bits = |run: &Run| run.param("w").iter().map(|w| w.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&runs[0]), bits(&runs[1]), "{mode}, step {step}");
        }
    }
}

/// A target that drifts, seen through noise: slowly at first, so that a small rate is best, then fast, so that a large one is.
fn drifting(step: u64, turn: u64) -> (Vec<f64>, Vec<f64>) {
    let stream = Stream::new(11, step, "drift");
    let x: Vec<f64> = (0..ROWS * WIDTH).map(|i| stream.uniform(i as u64, -1.0, 1.0)).collect();
    let angle = if step < turn { 0.001 * step as f64 } else { 0.001 * turn as f64 + 0.1 * (step - turn) as f64 };
    let truth = [angle.sin(), angle.cos(), 0.5];
    let label = |(at, row): (usize, &[f64])| {
        let y: f64 = row.iter().zip(truth).map(|(x, w)| x * w).sum();
        y + 0.5 * stream.normal(1000 + at as u64)
    };
    let y = x.chunks(WIDTH).enumerate().map(label).collect();
    (x, y)
}

/// The mean regret per step against the best of a set of fixed rates, over the steps of an interval: the played points' losses
/// against those of plain optimizers, which begin with the run and go on undisturbed.
fn mean_regret(samuel: &str, turn: u64, interval: std::ops::Range<u64>) -> f64 {
    let mut run = Run::new(wrapped(Problem::Quadratic, &[samuel]));
    let mut fixed = Plain::new(Problem::Quadratic, RATES.len());
    let (mut played, mut best) = (0.0, vec![0.0; RATES.len()]);
    for step in 0..interval.end {
        let batch = drifting(step, turn);
        let (losses, _) = fixed.independent(&batch, |_| Some(0));
        if interval.contains(&step) {
            played += Problem::Quadratic.loss_and_gradient(&run.param("w"), &batch).0;
            best.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += if loss.is_finite() { loss } else { 1e9 });
        }
        run.step(step, &batch);
    }
    (played - best.into_iter().fold(f64::INFINITY, f64::min)) / (interval.end - interval.start) as f64
}

/// The regret against the best fixed rate grows slower than the number of steps: what weights lose while they learn does not
/// come again, so four times the steps leave less than half of the mean. Averages even gain, because noise averages out.
#[test]
fn regret_against_the_best_fixed_rate_falls() {
    let means = |mode: &str| [100, 400, 1600].map(|steps| mean_regret(&pass(mode), u64::MAX, 0..steps));
    for play in ["sample", "likeliest"] {
        let found = means(&format!("mode=independent, play={play}"));
        assert!(found[0] > 0.0 && found[1] < 0.5 * found[0] && found[2] < 0.5 * found[1], "{play}: {found:?}");
    }
    for mode in ["mode=independent, play=average", "mode=shared", "mode=intervals, lengths=[16, 64, 256, 1024]"] {
        let found = means(mode);
        assert!(found.iter().all(|r| *r < 0.01), "{mode}: {found:?}");
    }
}

/// What the theory promises on every interval: after the target begins to move fast, the experts of new intervals are as good as
/// the best rate for that time, although another was best before.
#[test]
fn intervals_follow_a_change() {
    let turn = 600;
    let adaptive = mean_regret(&pass("mode=intervals, lengths=[16, 64, 256]"), turn, turn..2 * turn);
    let single = mean_regret(&pass("mode=independent, play=average"), turn, turn..2 * turn);
    assert!(adaptive < 0.01 && adaptive < single, "after the change {adaptive}, without intervals {single}");
}

/// The running statistics of BatchNormalization are those of the expert that is played, as its weights are.
#[test]
fn statistics_follow_the_played_expert() {
    let source = "<ir_version: 10, opset_import: [\"\": 20]>\n\
        parameters <trainable double[3, 1] w = {0.1, 0.2, -0.1}, frozen double[1] scale = {1.0}, frozen double[1] bias = {0.0}, \
        frozen double[1] mean = {0.0}, frozen double[1] var = {1.0}>\n\
        g (double[batch, 3] x) => (double[batch, 1] y) <double[3, 1] w = param, double[1] scale = param, double[1] bias = param, \
        double[1] mean = param, double[1] var = param> { h = MatMul (x, w) y = BatchNormalization (h, scale, bias, mean, var) }\n";
    let mut model = text::parse(source).unwrap();
    let registry = Registry::builtin();
    for pass in ["loss(kind=mse)", "train-mode", "autodiff", &pass("play=sample")] {
        let (name, options) = options::parse_invocation(pass).unwrap();
        Driver::new().run_pass(registry.build(&name, options).unwrap().as_ref(), &mut model).unwrap();
    }
    let mut run = Run::new(model);
    let mut seen = std::collections::HashSet::new();
    for step in 0..12 {
        run.step(step, &Problem::Quadratic.batch(step));
        let played = run.output("samuel/played")[0] as usize;
        seen.insert(played);
        for name in ["w", "mean", "var"] {
            assert_eq!(run.param(name), run.param(&format!("step/expert.{played}/{name}")), "step {step}: {name}");
        }
    }
    assert!(seen.len() > 1, "only {seen:?} were played");
    assert_ne!(run.param("step/expert.0/mean"), run.param("step/expert.3/mean"));
    run.restart();
    for name in ["w", "mean", "var"] {
        (0..RATES.len()).for_each(|i| assert_eq!(run.param(name), run.param(&format!("step/expert.{i}/{name}"))));
    }
}
