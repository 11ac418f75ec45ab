//! The driver: runs passes one after another, each on a snapshot, and checks what each one made.
//!
//! Per pass: clone the model (tensors are shared, so this copies only the graph) → run → verify → time → dump, if asked.
//! An error, a panic or a result that does not verify ends the pipeline, names the pass, and leaves the caller's model
//! as it was before the first one. A pass that says [`Changed::No`] is taken at its word: its result is thrown away
//! (debug builds check that it equals the snapshot).

use crate::{Changed, Pass};
use sartor_ir::{Error, Model, Result, ensure, text, verify};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Driver {
    /// The passes after which the model is dumped as text; `all` stands for every one.
    pub dump_after: Vec<String>,
    /// The folder for the dumps (the working directory by default): `03-fold.txt`, ….
    pub dump_folder: PathBuf,
}

/// Larger tensors are elided in dumps.
const DUMPED_ELEMENTS: usize = 64;

/// What one pass did.
#[derive(Clone, PartialEq, Debug)]
pub struct PassReport {
    /// Its name.
    pub name: String,
    /// Whether it changed the model.
    pub changed: bool,
    /// How long it ran, verification included.
    pub time: Duration,
    /// The operators of all graphs before and after, subgraphs not counted.
    pub ops: (usize, usize),
}

/// What a pipeline did, pass by pass. Prints as a table.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// One row per pass, in order.
    pub passes: Vec<PassReport>,
}

impl Report {
    /// Whether any pass changed the model.
    pub fn changed(&self) -> bool {
        self.passes.iter().any(|pass| pass.changed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let width = self.passes.iter().map(|p| p.name.len()).max().unwrap_or(0).max("pass".len());
        writeln!(f, "{:width$}  {:>9}  {:>15}", "pass", "seconds", "operators")?;
        for PassReport { name, changed, time, ops: (before, after) } in &self.passes {
            let ops = if *changed { format!("{before} → {after}") } else { "unchanged".to_string() };
            writeln!(f, "{name:width$}  {:>9.3}  {ops:>15}", time.as_secs_f64())?;
        }
        Ok(())
    }
}

impl Driver {
    /// A driver that dumps nothing.
    pub fn new() -> Driver {
        Driver::default()
    }
    /// Runs a pipeline. On an error the model is what it was before the call.
    pub fn run(&self, passes: &[Box<dyn Pass>], model: &mut Model) -> Result<Report> {
        let mut current = model.clone();
        let mut report = Report::default();
        for (index, pass) in passes.iter().enumerate() {
            report.passes.push(self.run_pass(&**pass, &mut current)?);
            self.dump(index, pass.name(), &current)?;
        }
        *model = current;
        Ok(report)
    }
    /// Runs one pass, without dumps. On an error the model is what it was before the call.
    pub fn run_pass(&self, pass: &dyn Pass, model: &mut Model) -> Result<PassReport> {
        let start = Instant::now();
        let name = pass.name().to_string();
        let place = || format!("pass \"{name}\"");
        let before = op_count(model);
        let mut snapshot = model.clone();
        let outcome = catch_unwind(AssertUnwindSafe(|| pass.run(&mut snapshot)));
        let changed = match outcome {
            Ok(result) => result.map_err(|e| e.at(place()))?,
            Err(payload) => return Err(Error::msg(format!("it panicked: {}", panic_text(&*payload))).at(place())),
        };
        match changed {
            Changed::Yes => {
                verify::verify(&snapshot).map_err(|e| e.at("its result is not valid").at(place()))?;
                *model = snapshot;
            }
            Changed::No if cfg!(debug_assertions) => {
                ensure!(snapshot == *model, "{}: it says that it changed nothing, but it did", place());
            }
            Changed::No => {}
        }
        let ops = (before, op_count(model));
        Ok(PassReport { name, changed: changed == Changed::Yes, time: start.elapsed(), ops })
    }
    fn dump(&self, index: usize, name: &str, model: &Model) -> Result<()> {
        if !self.dump_after.iter().any(|wanted| wanted == name || wanted == "all") {
            return Ok(());
        }
        let printed = text::print(model, &text::PrintOptions { max_elements: DUMPED_ELEMENTS });
        let path = self.dump_folder.join(format!("{:02}-{name}.txt", index + 1));
        std::fs::create_dir_all(&self.dump_folder).map_err(|e| Error::io(&self.dump_folder, e))?;
        std::fs::write(&path, printed).map_err(|e| Error::io(&path, e))
    }
}

fn op_count(model: &Model) -> usize {
    model.graphs().map(|graph| graph.op_count()).sum()
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_ir::{Attributes, DType, Graph, GraphOutput, Type};

    struct Do(fn(&mut Model) -> Result<Changed>);

    impl Pass for Do {
        fn name(&self) -> &str {
            "do"
        }
        fn run(&self, model: &mut Model) -> Result<Changed> {
            (self.0)(model)
        }
    }

    fn model() -> Model {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", Type::tensor(DType::F32, [2i64]));
        let y = graph.op("Add", &[x, x], Attributes::new());
        graph.outputs.push(GraphOutput { name: "y".into(), value: y });
        Model::new(graph)
    }

    fn run(pass: fn(&mut Model) -> Result<Changed>) -> (Model, Result<Report>) {
        let mut model = model();
        let result = Driver::new().run(&[Box::new(Do(pass))], &mut model);
        (model, result)
    }

    #[test]
    fn panics_errors_and_bad_results_leave_the_model_alone() {
        let (after, result) = run(|m| {
            m.graph.outputs.clear();
            panic!("oh {}", 1)
        });
        assert_eq!((after, result.unwrap_err().to_string()), (model(), "pass \"do\": it panicked: oh 1".to_string()));
        let (after, result) = run(|m| {
            m.graph.outputs.clear();
            sartor_ir::bail!("no")
        });
        assert_eq!((after, result.unwrap_err().to_string()), (model(), "pass \"do\": no".to_string()));
        let (after, result) = run(|m| {
            let y = m.graph.outputs[0].value;
            m.graph.param("w", Type::tensor(DType::F32, [2i64]));
            m.graph.outputs.push(GraphOutput { name: "y".into(), value: y });
            Ok(Changed::Yes)
        });
        let text = result.unwrap_err().to_string();
        assert!(text.contains("is not valid") && text.contains("\"w\"") && text.contains("\"y\""), "{text}");
        assert_eq!(after, model());
    }

    #[test]
    fn dumps_and_reports() {
        let folder = tempfile::tempdir().unwrap();
        let driver = Driver { dump_after: vec!["all".into()], dump_folder: folder.path().join("dumps") };
        let pass = Do(|m| {
            let y = m.graph.outputs[0].value;
            let z = m.graph.op("Add", &[y, y], Attributes::new());
            m.graph.outputs[0].value = z;
            Ok(Changed::Yes)
        });
        let mut model = model();
        let report = driver.run(&[Box::new(pass)], &mut model).unwrap();
        assert_eq!(report.passes[0].ops, (1, 2));
        assert!(report.to_string().contains("1 → 2"));
        let dumped = std::fs::read_to_string(folder.path().join("dumps/01-do.txt")).unwrap();
        assert_eq!(text::parse(&dumped).unwrap(), model);
    }
}
