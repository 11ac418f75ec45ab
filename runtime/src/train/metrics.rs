//! Evaluation metrics, accumulated over batches.
//!
//! | task | metrics |
//! |---|---|
//! | classification, logits `[N, C]` | loss, accuracy, macro-F1 over the classes that occur |
//! | multi-label, logits `[N]` or `[N, K]` | loss, accuracy and macro-F1 of `logit > 0`, per element and per label |
//! | regression | loss, MSE |
//! | language model | loss per token, perplexity `exp(loss)` |
//!
//! For models with gates also `flops`, the mean cost of an example as a share of the whole model's operations, and
//! `flops_variation`, its standard deviation divided by that mean; and `gates_dead`, `gates_always` and `gates_dynamic`, the shares of the gates that were open
//! for no example, for every one, or for some ([`gates`](super::gates)).

use sartor_ir::{Error, Result, Tensor, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a model is trained for; follows from the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// One class of several (cross-entropy).
    #[default]
    Classification,
    /// Yes or no, once or several times (binary cross-entropy with logits).
    MultiLabel,
    /// Numbers (squared error).
    Regression,
    /// The next token.
    LanguageModel,
}

/// Name → value, sorted by name: `accuracy`, `loss`, ….
pub type Metrics = BTreeMap<String, f64>;

/// True positives, false positives, false negatives.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    hit: u64,
    false_alarm: u64,
    miss: u64,
}

/// Takes in batches, gives out metrics.
#[derive(Clone, Debug)]
pub struct Accumulator {
    task: Task,
    ignore_index: Option<i64>,
    loss: f64,
    loss_weight: f64,
    right: u64,
    judged: u64,
    squared: f64,
    classes: BTreeMap<i64, Counts>,
    /// Number, sum and sum of squares of the examples' costs.
    costs: (f64, f64, f64),
}

impl Accumulator {
    /// Nothing seen yet.
    pub fn new(task: Task, ignore_index: Option<i64>) -> Accumulator {
        Accumulator {
            task,
            ignore_index,
            loss: 0.0,
            loss_weight: 0.0,
            right: 0,
            judged: 0,
            squared: 0.0,
            classes: BTreeMap::new(),
            costs: (0.0, 0.0, 0.0),
        }
    }
    /// Takes in what examples cost, as shares of the whole model's operations.
    pub fn add_costs(&mut self, costs: &[f64]) {
        let (number, sum, squares) = &mut self.costs;
        *number += costs.len() as f64;
        *sum += costs.iter().sum::<f64>();
        *squares += costs.iter().map(|c| c * c).sum::<f64>();
    }
    /// Takes in a batch: the model's output, the labels, and the mean loss if the program computed it.
    pub fn add(&mut self, logits: &Tensor, label: &Tensor, loss: Option<f64>) -> Result<()> {
        let scores = logits.to_f64s()?;
        match self.task {
            Task::Classification => self.add_classes(&scores, label, loss),
            Task::MultiLabel => self.add_bits(&scores, &label.to_f64s()?, label, loss),
            Task::Regression => self.add_numbers(&scores, &label.to_f64s()?, loss),
            Task::LanguageModel => self.add_tokens(&scores, label, loss),
        }
    }
    /// Takes in a batch that has no labels: the mean loss of so many examples.
    pub fn add_unlabelled(&mut self, loss: f64, examples: usize) {
        self.add_loss(loss, examples as f64);
    }
    fn is_ignored(&self, label: i64) -> bool {
        self.ignore_index == Some(label)
    }
    fn add_loss(&mut self, loss: f64, weight: f64) {
        if weight > 0.0 {
            self.loss += loss * weight;
            self.loss_weight += weight;
        }
    }
    fn add_classes(&mut self, scores: &[f64], label: &Tensor, loss: Option<f64>) -> Result<()> {
        let labels = label.to_i64s()?;
        let width = row_width(scores.len(), labels.len())?;
        let (mut sum, mut seen) = (0.0, 0.0);
        for (row, &label) in scores.chunks_exact(width).zip(&labels) {
            if self.is_ignored(label) {
                continue;
            }
            sum += cross_entropy(row, label)?;
            seen += 1.0;
            self.judge(argmax(row), label);
        }
        self.add_loss(loss.unwrap_or(sum / seen), seen);
        Ok(())
    }
    fn judge(&mut self, found: i64, label: i64) {
        self.judged += 1;
        if found == label {
            self.right += 1;
            self.classes.entry(label).or_default().hit += 1;
        } else {
            self.classes.entry(found).or_default().false_alarm += 1;
            self.classes.entry(label).or_default().miss += 1;
        }
    }
    fn add_bits(&mut self, scores: &[f64], labels: &[f64], label: &Tensor, loss: Option<f64>) -> Result<()> {
        ensure!(scores.len() == labels.len(), "{} logits for {} labels", scores.len(), labels.len());
        let columns = if label.rank() > 1 { label.shape().last().copied().unwrap_or(1) } else { 1 };
        let mut sum = 0.0;
        for (i, (&z, &y)) in scores.iter().zip(labels).enumerate() {
            sum += z.max(0.0) - z * y + (-z.abs()).exp().ln_1p();
            let counts = self.classes.entry((i % columns.max(1)) as i64).or_default();
            match (z > 0.0, y > 0.5) {
                (true, true) => counts.hit += 1,
                (true, false) => counts.false_alarm += 1,
                (false, true) => counts.miss += 1,
                (false, false) => {}
            }
            self.judged += 1;
            self.right += u64::from((z > 0.0) == (y > 0.5));
        }
        self.add_loss(loss.unwrap_or(sum / labels.len() as f64), labels.len() as f64);
        Ok(())
    }
    fn add_numbers(&mut self, scores: &[f64], labels: &[f64], loss: Option<f64>) -> Result<()> {
        ensure!(scores.len() == labels.len(), "{} outputs for {} labels", scores.len(), labels.len());
        let sum: f64 = scores.iter().zip(labels).map(|(a, b)| (a - b).powi(2)).sum();
        self.squared += sum;
        self.judged += labels.len() as u64;
        self.add_loss(loss.unwrap_or(sum / labels.len() as f64), labels.len() as f64);
        Ok(())
    }
    /// Position t predicts the token at t + 1.
    fn add_tokens(&mut self, scores: &[f64], label: &Tensor, loss: Option<f64>) -> Result<()> {
        let labels = label.to_i64s()?;
        let length = label.shape().last().copied().unwrap_or(0).max(1);
        let width = row_width(scores.len(), labels.len())?;
        let (mut sum, mut seen) = (0.0, 0.0);
        for (at, &next) in labels.iter().enumerate().filter(|(at, _)| at % length != 0) {
            if self.is_ignored(next) || (self.ignore_index.is_none() && next < 0) {
                continue;
            }
            seen += 1.0;
            if loss.is_none() {
                sum += cross_entropy(&scores[(at - 1) * width..at * width], next)?;
            }
        }
        self.add_loss(loss.unwrap_or(sum / seen), seen);
        Ok(())
    }
    /// The metrics of all batches.
    pub fn finish(&self) -> Metrics {
        let loss = self.loss / self.loss_weight;
        let mut out = Metrics::from([("loss".to_string(), loss)]);
        let judged = self.judged as f64;
        match self.task {
            // Without labels there is nothing but the loss.
            Task::Classification | Task::MultiLabel | Task::Regression
                if self.judged == 0 && self.loss_weight > 0.0 => {}
            Task::Classification | Task::MultiLabel => {
                out.insert("accuracy".into(), self.right as f64 / judged);
                out.insert("macro_f1".into(), macro_f1(self.classes.values()));
            }
            Task::Regression => {
                out.insert("mse".into(), self.squared / judged);
            }
            Task::LanguageModel => {
                out.insert("perplexity".into(), loss.exp());
            }
        }
        let (number, sum, squares) = self.costs;
        if number > 0.0 {
            let mean = sum / number;
            let variance = (squares / number - mean * mean).max(0.0);
            out.insert("flops".into(), mean);
            out.insert("flops_variation".into(), variance.sqrt() / mean);
        }
        out
    }
}

fn row_width(scores: usize, labels: usize) -> Result<usize> {
    let whole = labels > 0 && scores > 0 && scores.is_multiple_of(labels);
    ensure!(whole, "{scores} logits for {labels} labels");
    Ok(scores / labels)
}

/// The first of the largest.
pub(super) fn argmax(row: &[f64]) -> i64 {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best as i64
}

/// `log Σ exp z − z[label]`
fn cross_entropy(row: &[f64], label: i64) -> Result<f64> {
    let chosen = usize::try_from(label).ok().and_then(|l| row.get(l));
    let chosen = chosen.ok_or_else(|| Error::msg(format!("label {label} is outside the {} classes", row.len())))?;
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|z| (z - top).exp()).sum();
    Ok(top + sum.ln() - chosen)
}

/// The mean over classes of `2·hit / (2·hit + false alarms + misses)`; 0 for a class that is never right.
fn macro_f1<'a>(classes: impl ExactSizeIterator<Item = &'a Counts>) -> f64 {
    let count = classes.len() as f64;
    let f1 = |c: &Counts| {
        let all = (2 * c.hit + c.false_alarm + c.miss) as f64;
        if all == 0.0 { 0.0 } else { 2.0 * c.hit as f64 / all }
    };
    classes.map(f1).sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(metrics: &Metrics, name: &str, expected: f64) {
        assert!((metrics[name] - expected).abs() < 1e-6, "{name}: {} against {expected}", metrics[name]);
    }

    #[test]
    fn classification_as_scikit_learn_counts() {
        let mut sum = Accumulator::new(Task::Classification, None);
        // Predictions 0 2 1 0 0 1 for 0 1 2 0 1 2: f1_score(average="macro") is 0.26666….
        let rows = [0, 2, 1, 0, 0, 1].map(|p| [0, 1, 2].map(|c| if c == p { 2.0f32 } else { 0.0 })).concat();
        let labels = [0i64, 1, 2, 0, 1, 2];
        // In two batches of different size.
        sum.add(&Tensor::from_vec([4, 3], rows[..12].to_vec()), &Tensor::from_i64s(&labels[..4]), None).unwrap();
        sum.add(&Tensor::from_vec([2, 3], rows[12..].to_vec()), &Tensor::from_i64s(&labels[4..]), None).unwrap();
        let metrics = sum.finish();
        close(&metrics, "accuracy", 1.0 / 3.0);
        close(&metrics, "macro_f1", 0.8 / 3.0);
        let right = (2f64.exp() + 2.0).ln() - 2.0;
        close(&metrics, "loss", (2.0 * right + 4.0 * (right + 2.0)) / 6.0);
    }

    #[test]
    fn the_other_tasks() {
        let mut bits = Accumulator::new(Task::MultiLabel, None);
        let logits = Tensor::from_vec([2, 2], vec![1.0f32, -1.0, 1.0, 1.0]);
        bits.add(&logits, &Tensor::from_vec([2, 2], vec![1.0f32, 0.0, 0.0, 1.0]), None).unwrap();
        close(&bits.finish(), "accuracy", 0.75);
        close(&bits.finish(), "macro_f1", (2.0 / 3.0 + 1.0) / 2.0);
        let softplus = |z: f64| z.exp().ln_1p();
        close(&bits.finish(), "loss", (3.0 * softplus(-1.0) + softplus(1.0)) / 4.0);
        let mut numbers = Accumulator::new(Task::Regression, None);
        numbers
            .add(&Tensor::from_vec([2, 1], vec![1.0f32, 3.0]), &Tensor::from_vec([2], vec![0.0f32, 1.0]), None)
            .unwrap();
        close(&numbers.finish(), "mse", 2.5);
        let mut tokens = Accumulator::new(Task::LanguageModel, Some(-100));
        let logits = Tensor::zeros(sartor_ir::DType::F32, [1, 3, 4]).unwrap();
        tokens.add(&logits, &Tensor::from_vec([1, 3], vec![1i64, 2, -100]), None).unwrap();
        close(&tokens.finish(), "perplexity", 4.0);
    }

    #[test]
    fn a_mismatch_is_a_sentence() {
        let mut sum = Accumulator::new(Task::Classification, None);
        let logits = Tensor::from_vec([1, 2], vec![0.0f32, 1.0]);
        let error = sum.add(&logits, &Tensor::from_i64s(&[0, 1, 1]), None).unwrap_err().to_string();
        assert_eq!(error, "2 logits for 3 labels");
        let error = sum.add(&logits, &Tensor::from_i64s(&[2]), None).unwrap_err().to_string();
        assert_eq!(error, "label 2 is outside the 2 classes");
    }
}
