//! From a recipe to a trained model: the model through the training passes up to the gradients, the data opened, the passes that
//! make the updates (which may depend on how long the run is), the trainer run, and the result written.
//!
//! ```text
//! inline → upgrade → lift → infer → freeze → head → loss → gate → cola → train-mode → calibrate → autodiff → accumulate → clip →
//! optimizer (or samuel around it) → average → train
//!        → chain.onnx (with the adapters), merged.onnx (without), adapter/ (for PEFT)
//! ```

use crate::failure::{Failure, Outcome, Running};
use crate::recipe::Recipe;
use crate::table::{Table, grouped};
use crate::{files, gate_rate, gates, note, say};
use sartor_ir::onnx::{self, ExternalData, SaveOptions};
use sartor_ir::{Dim, Error, Graph, Model, Result, Role, ops};
use sartor_passes::autodiff::Autodiff;
use sartor_passes::calibrate::Calibrate;
use sartor_passes::cola::Record;
use sartor_passes::extract_adapter::Adapter;
use sartor_passes::loss::{Loss, LossKind};
use sartor_passes::merge::Merge;
use sartor_passes::samuel::Samuel;
use sartor_passes::{Driver, Pass, Registry, training};
use sartor_runtime::data::{Augment, Schema};
use sartor_runtime::train::{Summary, Task, TrainRun, with_optional_label};
use std::path::Path;

/// Loads the recipe's model and makes its training programs. A file that has some already is taken as it is: then the
/// second result is true.
pub fn load_model(recipe: &Recipe, registry: &Registry) -> Result<(Model, bool)> {
    let mut model = load_plain(recipe, registry)?;
    let prepared = is_prepared(&model);
    if !prepared {
        add_programs(&mut model, recipe)?;
    }
    Ok((model, prepared))
}

/// Whether a model has training programs.
pub fn is_prepared(model: &Model) -> bool {
    model.programs.keys().any(|name| training::is_step(name))
}

/// Loads the recipe's model, ready for the training passes.
pub fn load_plain(recipe: &Recipe, registry: &Registry) -> Result<Model> {
    let path = &recipe.tables.model;
    let mut model = onnx::load(path)?;
    files::prepare(&mut model, registry).map_err(|e| e.at(format!("file {}", path.display())))?;
    Ok(model)
}

/// Makes the training programs of a prepared model, for a run of unknown length.
pub fn add_programs(model: &mut Model, recipe: &Recipe) -> Result<()> {
    add_gradients(model, recipe)?;
    add_updates(model, recipe, gate_rate::factor(recipe, false, std::iter::empty()))
}

/// Makes the rest of the training programs, with this factor on the learning rate of gate networks. A model that has gates says in evaluations how they are used, whether
/// they are trained or not.
pub fn add_updates(model: &mut Model, recipe: &Recipe, gate_rate: f64) -> Result<()> {
    let updates = updates(model, recipe, gate_rate)?;
    Driver::new().run(&updates, model)?;
    if let Err(error) = gates::measured(model) {
        note!("how the gates are used is not known: {error}");
    }
    Ok(())
}

/// Makes the step of a prepared model as far as its gradients, and `eval`.
pub fn add_gradients(model: &mut Model, recipe: &Recipe) -> Result<()> {
    Driver::new().run(&up_to_gradients(recipe), model).map(drop)
}

fn boxed<P: Pass + Clone + 'static>(pass: &Option<P>) -> Option<Box<dyn Pass>> {
    pass.clone().map(|pass| Box::new(pass) as Box<dyn Pass>)
}

fn up_to_gradients(recipe: &Recipe) -> Vec<Box<dyn Pass>> {
    let tables = &recipe.tables;
    let all = [
        boxed(&tables.freeze),
        boxed(&tables.head),
        boxed(&Some(recipe.loss())),
        boxed(&tables.gate.as_ref().map(|gate| gate.first.clone())),
        boxed(&tables.cola.as_ref().map(|cola| cola.first.clone())),
        boxed(&tables.train_mode),
        boxed(&(tables.train.calibrate > 0).then(Calibrate::default)),
        boxed(&Some(Autodiff::default())),
    ];
    all.into_iter().flatten().collect()
}

fn updates(model: &Model, recipe: &Recipe, gate_rate: f64) -> Result<Vec<Box<dyn Pass>>> {
    let tables = &recipe.tables;
    let samuel = tables.samuel.as_ref().map(|samuel| &samuel.first);
    // The experts have the recipe's optimizer, unless their table names one itself.
    let own = samuel.and_then(|samuel| samuel.base.as_ref()).unwrap_or(&tables.optimizer.first);
    let optimizer = gate_rate::hastened(own, model, gate_rate)?;
    let samuel = samuel.map(|samuel| Samuel { base: Some(optimizer.clone()), ..samuel.clone() });
    let all = [
        boxed(&tables.accumulate),
        boxed(&tables.clip),
        boxed(&samuel.is_none().then_some(optimizer)),
        boxed(&samuel),
        boxed(&tables.average),
    ];
    Ok(all.into_iter().flatten().collect())
}

/// What the trainer needs to know.
pub fn run_of(recipe: &Recipe, resume: bool) -> TrainRun {
    let (tables, loss) = (&recipe.tables, recipe.loss());
    TrainRun {
        train: tables.train.clone(),
        schedule: recipe.schedule(),
        split: tables.cola.as_ref().map(|cola| cola.second.split.clone()).unwrap_or_default(),
        restarts: recipe.restarts(),
        accumulate: tables.accumulate.as_ref().map_or(1, |a| u64::from(a.steps)),
        task: task_of(&loss),
        ignore_index: Some(loss.ignore_index),
        buckets: tables.data.buckets.unwrap_or(0),
        augment: Augment { flip: tables.data.flip, crop: tables.data.crop },
        output: tables.output.clone(),
        recipe: recipe.identity.clone(),
        resume,
        catch_signals: true,
    }
}

fn task_of(loss: &Loss) -> Task {
    match loss.kind {
        LossKind::CrossEntropy => Task::Classification,
        LossKind::Mse => Task::Regression,
        LossKind::Bce => Task::MultiLabel,
        LossKind::CausalLm => Task::LanguageModel,
    }
}

/// What the data has to fill, with what bounds the labels.
pub fn schema_of(model: &Model, loss: &Loss) -> Result<Schema> {
    let program = ["step", "step.0", "eval"].into_iter().find(|name| model.programs.contains_key(*name));
    let mut schema = Schema::of_program(model, program.unwrap_or("step"))?;
    schema.ignore_index = Some(loss.ignore_index);
    schema.probabilities = loss.kind == LossKind::Bce;
    if loss.kind == LossKind::CrossEntropy {
        schema.classes = classes(&model.graph, loss);
    }
    if loss.teacher.is_some() { with_optional_label(schema, model, task_of(loss)) } else { Ok(schema) }
}

fn classes(graph: &Graph, loss: &Loss) -> Option<usize> {
    let logits = match &loss.logits {
        Some(name) => graph.find_output(name)?,
        None => graph.outputs.first()?.value,
    };
    let shape = graph.ty(logits)?.shape()?;
    let axis = ops::normal_axis(loss.class_axis.unwrap_or(1), shape.len()).ok()?;
    shape.get(axis).and_then(Dim::known).and_then(|n| usize::try_from(n).ok())
}

/// The line that PEFT prints.
pub fn trainable_line(model: &Model) -> String {
    let mut counts = Summary::default();
    counts.count_parameters(model);
    let number = |key: &str| counts.get(key).unwrap_or(0.0);
    let (trained, all) = (number("trainable_parameters"), number("all_parameters"));
    let percent = if all > 0.0 { 100.0 * trained / all } else { 0.0 };
    format!(
        "trainable params: {} || all params: {} || trainable%: {percent:.4}",
        grouped(trained as u64),
        grouped(all as u64)
    )
}

/// Writes what a run leaves besides the trainer's own files. Everything appears whole or not at all.
pub fn write_results(model: &Model, recipe: &Recipe) -> Outcome {
    let (folder, export) = (&recipe.tables.output, &recipe.tables.export);
    let options = SaveOptions { external_data: export.external_data.then(ExternalData::default) };
    let adapters = Record::load(model).running()?.is_some();
    if adapters {
        onnx::save(&without_programs(model), &folder.join("chain.onnx"), &options).running()?;
        write_adapter(model, &export.strip_prefix, &folder.join("adapter"))?;
    }
    onnx::save(&merged(model).running()?, &folder.join("merged.onnx"), &options).running()
}

/// The trained model at the cost it had before: adapters folded in, programs dropped.
pub fn merged(model: &Model) -> Result<Model> {
    let mut merged = without_programs(model);
    if Record::load(model)?.is_some() {
        Driver::new().run_pass(&Merge::default(), &mut merged)?;
    }
    merged.params.values_mut().filter(|p| p.role.is_variable()).for_each(|p| p.role = Role::Frozen);
    Ok(merged)
}

fn without_programs(model: &Model) -> Model {
    let mut plain = model.clone();
    plain.programs.clear();
    plain.remove_unused_params();
    plain
}

/// An adapter that PEFT has no form for is told, not fatal: the chain and the merged model hold everything.
fn write_adapter(model: &Model, strip_prefix: &str, folder: &Path) -> Outcome {
    let adapter = match Adapter::of(model, strip_prefix) {
        Ok(adapter) => adapter,
        Err(error) => {
            crate::note!("no adapter folder: {error}");
            return Ok(());
        }
    };
    let temporary = folder.with_extension("tmp");
    let io = |path: &Path, e| Failure::Run(Error::io(path, e));
    for old in [folder, &temporary] {
        if old.exists() {
            std::fs::remove_dir_all(old).map_err(|e| io(old, e))?;
        }
    }
    adapter.write(&temporary).running()?;
    std::fs::rename(&temporary, folder).map_err(|e| io(folder, e))
}

/// Whether more of this metric is better.
pub fn higher_is_better(metric: &str) -> bool {
    ["accuracy", "macro_f1", "samples_per_second"].iter().any(|end| metric.ends_with(end))
}

/// Prints the numbers of a run.
pub fn print_summary(summary: &Summary) {
    let mut table = Table::new(&["result", "value"]);
    for (key, value) in &summary.values {
        let text = match value.as_f64() {
            Some(number) if number.fract() == 0.0 => grouped(number as u64),
            Some(number) => format!("{number:.4}"),
            None => value.to_string(),
        };
        table.row([key.clone(), text]);
    }
    say!("");
    table.print();
}
