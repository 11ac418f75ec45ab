//! Trained gates on the clock: every example of the test data by every variant of a network, by turns of some examples.
//!
//! The variants are the network without gates, the gated one, the same trimmed (what hardly any example needs is cut off, the rest stays gated) and the same frozen to one state and
//! cut. This runtime takes the gated files as they are, ONNX Runtime hardened to `skip`. A speed-up stands beside how many times fewer operations the examples take
//! on average, as the cost model counts them.

use crate::{one_thread, passed};
use sartor_bench::{Series, output_json, peer_script, record, short, table};
use sartor_ir::{Context, DType, Error, Model, Result, Tensor, bail, ensure, onnx};
use sartor_passes::gate::{FLOPS, Record, cost};
use sartor_passes::{Registry, pipelines};
use sartor_runtime::data::{self, DataConfig, Dataset, Schema};
use sartor_runtime::train::feeds::evaluation_schema;
use sartor_runtime::train::metrics::Task;
use sartor_runtime::{Key, Params, Session};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// So many examples follow each other before the next variant has its turn: a process that runs one model has in its caches what that model left there.
const TURN: usize = 64;

/// What is measured.
pub struct Trained<'a> {
    /// The recipe whose test data the networks are run on.
    pub recipe: &'a Path,
    /// The network without gates.
    pub backbone: &'a Path,
    /// The one with gates, evaluated once.
    pub gated: &'a Path,
    /// What is trimmed: gates that are open for at most this share of the examples.
    pub rare: f64,
    /// How often the test data are gone through.
    pub rounds: usize,
    /// How many examples are taken; 0: all.
    pub examples: usize,
    /// What the table is called.
    pub name: &'a str,
}

/// A network, prepared for inference, and what it costs on average as a share of the backbone.
struct Variant {
    name: String,
    model: Model,
    cost: f64,
}

/// Milliseconds per example, and the share of examples that were right.
#[derive(Default)]
struct Found {
    times: Series,
    right: Option<f64>,
}

impl Trained<'_> {
    /// Measures, prints and records.
    pub fn measure(&self) -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::msg(e.to_string()))?;
        let registry = Registry::builtin();
        let mut backbone = onnx::load(self.backbone)?;
        pipelines::prepare(&mut backbone, &registry)?;
        let data = self.data(&backbone)?;
        let count = if self.examples == 0 { data.len() } else { self.examples.min(data.len()) };
        let (variants, files) = self.variants(backbone, &registry, (&data, count), folder.path())?;
        let many = self.time(&variants, &data, count, 32)?;
        let one = self.time(&variants, &data, count, 1)?;
        let (theirs, version) = self.onnx_runtime(&files, &data, count, folder.path())?;
        let body = format!(
            "{} on the {count} test examples of its recipe, by turns of {TURN} examples, {} rounds: milliseconds per example, medians of the rounds; f32, one thread; ONNX Runtime {version} with \
             `harden`, batch 1. Operations: the mean of the examples. \"Of the operations\": times as fast, as a share of how many times fewer operations there are. Trimmed: `harden(kind=trim, \
             below={})`; cut: `harden(kind=static, below=0.5)`, not trained on. `clock --recipe RECIPE BACKBONE GATED` measures.\n\n{}",
            crate::stem(self.gated),
            self.rounds,
            self.rare,
            rows(&variants, [&one, &many, &theirs])
        );
        record(&format!("gates-{}", self.name), "Trained gates on the clock", &body)
    }

    /// The networks, and the files that ONNX Runtime gets for them.
    fn variants(
        &self,
        backbone: Model,
        registry: &Registry,
        (data, count): (&Arc<dyn Dataset>, usize),
        folder: &Path,
    ) -> Result<(Vec<Variant>, Vec<String>)> {
        let mut gated = onnx::load(self.gated)?;
        pipelines::prepare(&mut gated, registry)?;
        let Some(record) = Record::load(&gated)? else { bail!("{} has no gates", self.gated.display()) };
        let kind =
            |kind: &str, below: f64| format!("[[pass]]\nname = \"harden\"\nkind = \"{kind}\"\nbelow = {below:?}\n");
        let trimmed = passed(&gated, &kind("trim", self.rare))?;
        let cut = passed(&gated, &kind("static", 0.5))?;
        let named = [
            ("without gates".to_string(), backbone),
            ("gates".to_string(), gated),
            ("gates, trimmed".to_string(), trimmed),
            ("cut".to_string(), cut),
        ];
        let (mut variants, mut files) = (Vec::new(), Vec::new());
        for (number, (name, mut model)) in named.into_iter().enumerate() {
            let file = folder.join(format!("{number}.onnx"));
            let has_gates = Record::load(&model)?.is_some();
            let hard = if has_gates { passed(&model, &kind("skip", 0.0))? } else { model.clone() };
            onnx::save(&hard, &file, &onnx::SaveOptions::default())?;
            files.push(file.display().to_string());
            let cost = match has_gates {
                true => mean_cost(&model, data, count)?,
                false => cost::Costs::of(&model.graph, model.opset())?.total as f64 / record.flops as f64,
            };
            pipelines::prepare_inference(&mut model, registry)?;
            variants.push(Variant { name, model, cost });
        }
        Ok((variants, files))
    }

    /// The test data.
    fn data(&self, model: &Model) -> Result<Arc<dyn Dataset>> {
        #[derive(serde::Deserialize)]
        struct Recipe {
            data: DataConfig,
        }
        let text = std::fs::read_to_string(self.recipe).map_err(|e| Error::io(self.recipe, e))?;
        let recipe: Result<Recipe> = toml::from_str(&text).map_err(|e| Error::msg(e.to_string()));
        let mut config = recipe.context(|| self.recipe.display().to_string())?.data;
        config.resolve(self.recipe.parent().unwrap_or(Path::new(".")));
        let schema = Schema { may_lack_labels: true, ..evaluation_schema(model, Task::Classification)? };
        let Some(paths) = &config.test else { bail!("{}: its data have no test split", self.recipe.display()) };
        data::open(paths.as_slice(), &config, &schema)
    }

    /// Runs all variants on all examples.
    fn time(&self, variants: &[Variant], data: &Arc<dyn Dataset>, count: usize, batch: usize) -> Result<Vec<Found>> {
        let mut ready = Vec::new();
        for variant in variants {
            let session = Session::new(&variant.model, one_thread())?;
            // The first output has the scores.
            let scores = variant.model.graph.outputs.first().map_or_else(String::new, |output| output.name.clone());
            ready.push((session, Params::of(&variant.model), scores, Found::default()));
        }
        // The first batches are for warming up.
        for round in 0..=self.rounds {
            let count = if round == 0 { count.min(4 * batch) } else { count };
            let mut sums = vec![(0.0, 0usize, false); variants.len()];
            let all: Vec<Vec<usize>> = batches(count, batch).collect();
            for turn in all.chunks((TURN / batch).max(1)) {
                let examples = turn.iter().map(|rows| Ok(data.batch(rows)?.tensors)).collect::<Result<Vec<_>>>()?;
                for ((session, params, scores, _), (seconds, right, labelled)) in ready.iter_mut().zip(&mut sums) {
                    for mut inputs in examples.clone() {
                        let labels = inputs.remove(data::LABEL);
                        let start = Instant::now();
                        let found = session.run(params, &inputs, Key::default())?;
                        *seconds += start.elapsed().as_secs_f64();
                        if let (Some(labels), Some(scores)) = (&labels, found.get(scores)) {
                            *right += hits(scores, labels)?;
                            *labelled = true;
                        }
                    }
                }
            }
            for ((.., found), (seconds, right, labelled)) in ready.iter_mut().zip(sums).filter(|_| round > 0) {
                found.times.0.push(1e3 * seconds / count as f64);
                found.right = labelled.then_some(right as f64 / count as f64);
            }
        }
        Ok(ready.into_iter().map(|(.., found)| found).collect())
    }

    /// The same in ONNX Runtime, batch 1, and its version.
    fn onnx_runtime(
        &self,
        files: &[String],
        data: &Arc<dyn Dataset>,
        count: usize,
        folder: &Path,
    ) -> Result<(Vec<Found>, String)> {
        let mut shapes: HashMap<String, (String, Vec<Vec<usize>>)> = HashMap::new();
        let mut bytes: HashMap<String, Vec<u8>> = HashMap::new();
        for row in 0..count {
            for (name, tensor) in data.batch(&[row])?.tensors {
                let (dtype, numbers) = raw(&tensor)?;
                let entry = shapes.entry(name.clone()).or_insert_with(|| (dtype, Vec::new()));
                entry.1.push(tensor.shape().to_vec());
                bytes.entry(name).or_default().extend(numbers);
            }
        }
        let mut index = serde_json::Map::new();
        for (number, (name, (dtype, shapes))) in shapes.into_iter().enumerate() {
            let path = folder.join(format!("input{number}.bin"));
            std::fs::write(&path, &bytes[&name]).map_err(|e| Error::io(&path, e))?;
            index.insert(name, json!({ "file": path, "dtype": dtype, "shapes": shapes }));
        }
        let path = folder.join("index.json");
        std::fs::write(&path, json!(index).to_string()).map_err(|e| Error::io(&path, e))?;
        let mut script = peer_script("venv", "ort_clock_data.py")?;
        let found = output_json(
            script.arg(self.rounds.to_string()).arg(TURN.to_string()).arg(data::LABEL).arg(&path).args(files),
        )?;
        let numbers = |of: &serde_json::Value| -> Vec<f64> {
            of.as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64).collect()
        };
        let models = found["ms"].as_array().cloned().unwrap_or_default();
        ensure!(models.len() == files.len(), "ONNX Runtime timed {} of {} models", models.len(), files.len());
        let right = numbers(&found["right"]);
        let of = |(i, times)| Found { times: Series(numbers(times)), right: right.get(i).copied() };
        let version = found["version"].as_str().unwrap_or_default().to_string();
        Ok((models.iter().enumerate().map(of).collect(), version))
    }
}

/// The mean cost of the examples.
fn mean_cost(model: &Model, data: &Arc<dyn Dataset>, count: usize) -> Result<f64> {
    let asked = passed(model, "[[pass]]\nname = \"gate-outputs\"\n")?;
    let mut session = Session::new(&asked, one_thread())?;
    let (mut params, mut sum) = (Params::of(&asked), 0.0);
    for rows in batches(count, 100) {
        let mut inputs = data.batch(&rows)?.tensors;
        inputs.remove(data::LABEL);
        let found = session.run(&mut params, &inputs, Key::default())?;
        let Some(costs) = found.get(FLOPS) else { bail!("the model does not say what it costs") };
        sum += costs.to_f64s()?.iter().sum::<f64>();
    }
    Ok(sum / count as f64)
}

/// The rows `0..count` in batches.
fn batches(count: usize, batch: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..count).step_by(batch).map(move |first| (first..count.min(first + batch)).collect())
}

/// How many examples have their largest score where the label says.
fn hits(scores: &Tensor, labels: &Tensor) -> Result<usize> {
    let (scores, labels) = (scores.to_f64s()?, labels.to_i64s()?);
    let classes = (scores.len() / labels.len().max(1)).max(1);
    let largest = |row: &[f64]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
    Ok(scores.chunks(classes).zip(labels).filter(|(row, label)| largest(row) == usize::try_from(*label).ok()).count())
}

/// The name of an element type in NumPy, and a tensor's bytes.
fn raw(tensor: &Tensor) -> Result<(String, Vec<u8>)> {
    match tensor.dtype() {
        DType::F32 => Ok(("<f4".into(), tensor.bytes().to_vec())),
        DType::I64 => Ok(("<i8".into(), tensor.bytes().to_vec())),
        other => bail!("inputs of type {other} are not timed"),
    }
}

fn rows(variants: &[Variant], [one, many, theirs]: [&[Found]; 3]) -> String {
    let head = [
        "network",
        "test accuracy",
        "fewer operations",
        "batch 1, ms",
        "spread",
        "times as fast",
        "of the operations",
        "batch 32, ms",
        "times as fast",
        "of the operations",
        "ONNX Runtime, ms",
        "its accuracy",
        "times as fast",
        "of the operations",
    ];
    let row = |i: usize| {
        let share = |found: &Found| found.right.map_or(String::new(), |right| format!("{right:.4}"));
        let fewer = 1.0 / variants[i].cost;
        let faster = |series: &[Found]| {
            let faster = series[0].times.median() / series[i].times.median();
            [format!("{faster:.2} ×"), format!("{:.2}", faster / fewer)]
        };
        let mut row = vec![variants[i].name.clone(), share(&many[i]), format!("{fewer:.2} ×")];
        row.extend([short(one[i].times.median()), one[i].times.spread()]);
        row.extend(faster(one));
        row.push(short(many[i].times.median()));
        row.extend(faster(many));
        row.extend([short(theirs[i].times.median()), share(&theirs[i])]);
        row.extend(faster(theirs));
        row
    };
    table(&head, &(0..variants.len()).map(row).collect::<Vec<_>>())
}
