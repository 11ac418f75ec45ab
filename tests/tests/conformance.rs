//! The tests that the onnx wheel carries: single operators, small models, models that PyTorch once exported, image classifiers. The reference
//! evaluation and the fast runtime give what is expected, inference says what evaluation gives, and clean-up passes change no result.
//!
//! `tests/assets/fetch.sh` makes them. What fails by the reference evaluation is listed in `node_failures.txt`, and must be taken off the list when it passes;
//! `BLESS=1` rewrites it. While working on operators, `NODE_TESTS=lstm,gru` runs the tests whose names contain one of these, and says of each why it
//! does not pass.

use sartor_ir::ops::Gradient;
use sartor_ir::ops::kinks::KINKS;
use sartor_ir::{DType, Model, Tensor, eval};
use sartor_passes::{Driver, Pass, Registry, pipelines};
use sartor_runtime::{Key, Params, Session, SessionOptions};
use sartor_tests::Named;
use sartor_tests::conformance::{Case, KINDS, compare, folders, read};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node_failures.txt");

/// The reference evaluation gives what is expected.
#[test]
fn the_reference_passes_except_what_is_listed() {
    let wanted = std::env::var("NODE_TESTS").ok();
    let wanted: Option<Vec<&str>> = wanted.as_ref().map(|text| text.split(',').collect());
    let (mut passed, mut left_out, mut failures) = (0, Vec::new(), BTreeMap::new());
    for folder in folders("node").into_iter().chain(folders("simple")) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if wanted.as_ref().is_some_and(|parts| !parts.iter().any(|part| name.contains(part))) {
            continue;
        }
        let case = match read(&folder) {
            Ok(case) => case,
            Err(why) => {
                left_out.push(format!("{name}: not run: {why}"));
                continue;
            }
        };
        let run = std::panic::AssertUnwindSafe(|| compare_all(&evaluated(&prepared(&case)?, &case.inputs)?, &case));
        match std::panic::catch_unwind(run).unwrap_or_else(|_| Err("panic".to_string())) {
            Ok(()) => passed += 1,
            Err(why) => _ = failures.insert(name, why.lines().next().unwrap_or_default().to_string()),
        }
    }
    println!("{passed} tests pass, {} fail, {} hold other things than numbers", failures.len(), left_out.len());
    if wanted.is_some() {
        let others: Vec<String> =
            left_out.into_iter().chain(failures.iter().map(|(n, w)| format!("{n}: {w}"))).collect();
        assert!(others.is_empty(), "{} do not pass, {passed} do:\n{}", others.len(), others.join("\n"));
        return;
    }
    assert!(passed >= 1600, "only {passed} tests pass");
    compare_with_list(&failures);
}

/// The failures are exactly those of the list, up to the reasons.
fn compare_with_list(failures: &BTreeMap<String, String>) {
    if std::env::var_os("BLESS").is_some() {
        let lines: String = failures.iter().map(|(name, why)| format!("{name}: {why}\n")).collect();
        let head = "# Node tests that fail, and why. Rewritten by BLESS=1; a test that passes must not stand here.\n";
        std::fs::write(LIST, format!("{head}{lines}")).unwrap();
        return;
    }
    let list = std::fs::read_to_string(LIST).unwrap();
    let listed: BTreeSet<&str> =
        list.lines().filter(|l| !l.starts_with('#')).filter_map(|l| Some(l.split_once(':')?.0)).collect();
    let news = failures.iter().filter(|(name, _)| !listed.contains(name.as_str()));
    let news: Vec<String> = news.map(|(name, why)| format!("{name}: {why}")).collect();
    let fixed: Vec<&&str> = listed.iter().filter(|name| !failures.contains_key(**name)).collect();
    assert!(news.is_empty(), "{} tests fail and are not listed:\n{}", news.len(), news.join("\n"));
    assert!(fixed.is_empty(), "these pass now, take them off node_failures.txt: {fixed:?}");
}

/// Every test of some kinds that this crate can read, in parallel.
fn for_all(kinds: &[&str], check: impl Fn(&Case) -> Result<(), String> + Sync) -> usize {
    let all: Vec<PathBuf> = kinds.iter().flat_map(|kind| folders(kind)).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failures = std::sync::Mutex::new(Vec::new());
    let count = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        loop {
            let Some(folder) = all.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) else { return };
            let Ok(case) = read(folder) else { continue };
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let run = std::panic::AssertUnwindSafe(|| check(&case));
            let outcome = std::panic::catch_unwind(run).unwrap_or_else(|_| Err("panic".into()));
            if let Err(why) = outcome {
                failures.lock().unwrap().push(format!("{}: {why}", case.name));
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| _ = scope.spawn(work)));
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    let count = count.into_inner();
    assert!(failures.is_empty(), "{} of {count} fail:\n{}", failures.len(), failures.join("\n"));
    count
}

fn text(error: sartor_ir::Error) -> String {
    error.to_string()
}

/// As a run sees it.
fn prepared(case: &Case) -> Result<Model, String> {
    let mut model = case.model.clone();
    pipelines::prepare(&mut model, &Registry::builtin()).map_err(text)?;
    Ok(model)
}

/// Whether outputs are drawn at random, so that only their types can be compared.
fn is_random(case: &Case) -> bool {
    ["bernoulli", "training_dropout"].iter().any(|name| case.name.contains(name)) && !case.name.contains("zero_ratio")
}

fn compare_all(found: &Named, case: &Case) -> Result<(), String> {
    for (name, wanted) in &case.outputs {
        let found = found.get(name).ok_or_else(|| format!("output {name} is missing"))?;
        compare(found, wanted, case.tolerance).map_err(|why| format!("output {name}: {why}"))?;
    }
    Ok(())
}

fn evaluated(model: &Model, inputs: &Named) -> Result<Named, String> {
    let outputs = eval::run(model, inputs).map_err(text)?;
    Ok(model.graph.outputs.iter().map(|o| o.name.clone()).zip(outputs).collect())
}

/// The fast runtime gives what the wheel expects, on every test whose operators are known, and at the second run too.
#[test]
fn the_runtime_passes() {
    let count = for_all(KINDS, |case| {
        let model = prepared(case)?;
        let mut session = Session::new(&model, SessionOptions { threads: 1 }).map_err(text)?;
        let mut params = Params::of(&model);
        for _ in 0..2 {
            let found = session.run(&mut params, &case.inputs, Key::default()).map_err(text)?;
            if !is_random(case) {
                compare_all(&found, case)?;
            }
        }
        Ok(())
    });
    assert!(count > 1400, "only {count} tests can be read");
}

/// What inference says of every value is what the evaluation gives: element type, rank, known lengths, and one length per symbol.
#[test]
fn inference_says_what_evaluation_gives() {
    let count = for_all(&["node", "simple", "pytorch-converted", "pytorch-operator"], |case| {
        let model = prepared(case)?;
        let values = sartor_tests::values_of(&model);
        let exposed = sartor_tests::expose(&model, &values);
        let found = eval::run(&exposed, &case.inputs).map_err(text)?;
        let mut symbols: HashMap<String, i64> = HashMap::new();
        let graph_outputs = model.graph.outputs.iter().map(|o| o.value);
        for (value, tensor) in graph_outputs.chain(values.iter().copied()).zip(&found) {
            let name = model.graph.value_name(value);
            let Some(ty) = model.graph.ty(value) else { return Err(format!("{name} has no type")) };
            let is = format!("{name} is {}{:?}, inferred {ty}", tensor.dtype(), tensor.shape());
            if ty.dtype() != Some(tensor.dtype()) {
                return Err(is);
            }
            let Some(dims) = ty.shape() else { continue };
            let fits = dims.len() == tensor.rank()
                && dims.iter().zip(tensor.shape()).all(|(dim, &len)| match dim.known() {
                    Some(known) => known == len as i64,
                    None => {
                        *symbols.entry(dim.to_string()).or_insert(len as i64) == len as i64 || dim.to_string() == "?"
                    }
                });
            if !fits {
                return Err(is);
            }
        }
        Ok(())
    });
    assert!(count > 1400, "only {count} tests can be read");
}

/// How far two results may be apart after a pass: in units of the last place of the largest number of the tensor.
const ULPS: f64 = 4.0;

/// Passes that keep every bit: they move, rename, remove or evaluate, but add up nothing in another order.
const STRUCTURAL: &[&str] = &["upgrade", "lift", "inline", "infer", "fold", "narrow", "cse", "dce"];

fn apart(found: &Tensor, wanted: &Tensor) -> f64 {
    let epsilon = match wanted.dtype() {
        DType::F64 => f64::EPSILON,
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => f64::from(f32::EPSILON),
    };
    sartor_tests::distance(found, wanted) / epsilon
}

/// A name that two operators of the inference graph have. ONNX Runtime takes no such file.
fn repeated(model: &Model) -> Option<String> {
    let mut seen = HashSet::new();
    let names = model.graph.topo_ops().into_iter().map(|id| model.graph.node(id).name.clone());
    names.filter(|name| !name.is_empty()).find(|name| !seen.insert(name.clone()))
}

/// Every clean-up pass, alone and after every other, leaves what a model computes: the same bits where it only moves things, a few units in the
/// last place where sums are taken in another order. Pairs whose first pass changes nothing are the second pass alone.
#[test]
fn clean_up_passes_preserve_results() {
    let registry = Registry::builtin();
    let names: Vec<&str> = registry.rows().iter().filter(|row| row.group == "clean-up").map(|row| row.name).collect();
    let build = |name: &str| -> Box<dyn Pass> { registry.build(name, Default::default()).unwrap() };
    let count = for_all(&["node", "simple", "pytorch-converted", "pytorch-operator"], |case| {
        if is_random(case) {
            return Ok(());
        }
        let wanted = evaluated(&prepared(case)?, &case.inputs)?;
        let check = |model: &Model, passes: &[&str]| -> Result<(), String> {
            if let (None, Some(name)) = (repeated(&case.model), repeated(model)) {
                return Err(format!("after {passes:?}: two nodes have the name \"{name}\""));
            }
            let mut model = model.clone();
            pipelines::prepare(&mut model, &registry).map_err(|e| format!("after {passes:?}: {e}"))?;
            let found = evaluated(&model, &case.inputs).map_err(|e| format!("after {passes:?}: {e}"))?;
            let structural = passes.iter().all(|name| STRUCTURAL.contains(name));
            for (name, wanted) in &wanted {
                let apart = apart(&found[name], wanted);
                let fits = if structural { found[name].bytes() == wanted.bytes() } else { apart <= ULPS };
                if !fits {
                    return Err(format!("after {passes:?}: output {name} is {apart} units apart"));
                }
            }
            Ok(())
        };
        let changed = |model: &Model, name: &str| -> Result<Option<Model>, String> {
            let mut after = model.clone();
            match Driver::new().run_pass(&*build(name), &mut after) {
                Ok(report) => Ok(report.changed.then_some(after)),
                // Passes that know one opset say so.
                Err(e) if e.to_string().contains("run the pass `upgrade` first") => Ok(None),
                Err(e) => Err(format!("{name}: {e}")),
            }
        };
        for first in &names {
            let Some(model) = changed(&case.model, first)? else { continue };
            check(&model, &[first])?;
            for second in &names {
                if let Some(model) = changed(&model, second).map_err(|e| format!("after {first}: {e}"))? {
                    check(&model, &[first, second])?;
                }
            }
        }
        Ok(())
    });
    assert!(count > 1400, "only {count} tests can be read");
}

/// What one operator's tests say of it.
#[derive(Default)]
struct Score {
    passed: usize,
    total: usize,
    /// Tests whose graphs ran on kernels alone.
    kernels: usize,
}

/// The operator that a node test is about: that of its only node, or of the test whose function body it is.
fn subject(folder: &std::path::Path) -> Option<String> {
    let name = folder.file_name()?.to_str()?;
    let base = name.split("_expanded").next()?;
    let model = sartor_ir::onnx::load(&folder.with_file_name(base).join("model.onnx")).ok()?;
    let id = *model.graph.topo_ops().last()?;
    Some(model.graph.node(id).op()?.full_name())
}

/// Runs a node test by the reference evaluation and by the runtime; says whether kernels did it all.
fn passes(case: &Case) -> Result<bool, String> {
    let model = prepared(case)?;
    let (found, kernels) = planned(&model, case)?;
    compare_all(&evaluated(&model, &case.inputs)?, case)?;
    compare_all(&found, case)?;
    Ok(kernels)
}

/// A kind of tests in the document: how many pass, and what is not run and why.
fn line_of_kind(kind: &str) -> String {
    let (mut passed, mut total, mut others) = (0, 0, Vec::new());
    for folder in folders(kind) {
        total += 1;
        match read(&folder) {
            Ok(case) => {
                let run = || compare_all(&planned(&prepared(&case)?, &case)?.0, &case);
                passed += usize::from(run().is_ok());
            }
            Err(why) => others.push(format!("{}: {why}", folder.file_name().unwrap_or_default().to_string_lossy())),
        }
    }
    format!("| {kind} | {passed} of {total} | {} |\n", others.join("; "))
}

/// What the runtime gives, and whether kernels did it all.
fn planned(model: &Model, case: &Case) -> Result<(Named, bool), String> {
    let mut session = Session::new(model, SessionOptions { threads: 1 }).map_err(text)?;
    let found = session.run(&mut Params::of(model), &case.inputs, Key::default()).map_err(text)?;
    let report = session.report();
    Ok((found, report.unplanned.is_none() && report.reference.is_empty()))
}

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance.md");

/// What the node tests say, by operator, and how many are not counted, by reason.
fn scores() -> (BTreeMap<String, Score>, BTreeMap<String, usize>) {
    let (mut scores, mut left_out) = (BTreeMap::<String, Score>::new(), BTreeMap::new());
    for folder in folders("node") {
        let outcome = match read(&folder) {
            Ok(case) if is_random(&case) => Err("its outputs are drawn at random".to_string()),
            Ok(case) => Ok(passes(&case).ok()),
            // An operator that is not there is one that fails.
            Err(why) if why.contains("is not known") => Ok(None),
            Err(why) => Err(why),
        };
        match outcome {
            Ok(kernels) => {
                let score = scores.entry(subject(&folder).unwrap_or_default()).or_default();
                score.total += 1;
                score.passed += usize::from(kernels.is_some());
                score.kernels += usize::from(kernels == Some(true));
            }
            Err(why) => *left_out.entry(why).or_insert(0) += 1,
        }
    }
    (scores, left_out)
}

/// The line of an operator.
fn line_of_operator(name: &str, score: &Score) -> String {
    let (domain, short) = name.rsplit_once("::").unwrap_or(("", name));
    let gradient = match sartor_ir::ops::lookup(domain, short).map(|def| def.grad) {
        Some(Gradient::Emit(_) | Gradient::Decompose) => "yes",
        Some(Gradient::Zero) => "zero",
        _ => "no",
    };
    let runs = match score.kernels {
        0 => "reference",
        all if all == score.passed => "kernels",
        _ => "partly",
    };
    format!("| {name} | {} of {} | {gradient} | {runs} |\n", score.passed, score.total)
}

/// `docs/conformance.md` says what the tests say. `BLESS=1` writes it.
#[test]
fn the_document_is_true() {
    let (scores, left_out) = scores();
    let passed: usize = scores.values().map(|score| score.passed).sum();
    let total: usize = scores.values().map(|score| score.total).sum();
    let mut text = format!(
        "# Conformance\n\nThe node tests of the onnx wheel (1.23.2), run by the reference evaluation and by the runtime: **{passed} of {total}** \
         whose values are tensors of numbers pass. An operator's tests include those of its function body, written out. Written by \
         `BLESS=1 cargo nextest run --workspace -E 'test(the_document_is_true)'`.\n\n\
         *Gradient*: `yes`, `zero` (integers, booleans, or constant almost everywhere), `no`. *Runs on*: `kernels` where all tests ran on kernels of the \
         runtime alone, `partly` where some did, `reference` where the operator's reference evaluation ran as a step of the plan or instead of it.\n\n\
         | operator | passed | gradient | runs on |\n| --- | --- | --- | --- |\n"
    );
    scores.iter().for_each(|(name, score)| text += &line_of_operator(name, score));
    text += "\nNot counted, because of their values:\n\n| why | tests |\n| --- | --- |\n";
    left_out.iter().for_each(|(why, count)| text += &format!("| {why} | {count} |\n"));
    text += "\n## Whole models\n\nThe wheel's other tests, by the runtime.\n\n| kind | passed | not run |\n| --- | --- | --- |\n";
    KINDS.iter().skip(1).for_each(|kind| text += &line_of_kind(kind));
    text += "\n## Points without a derivative\n\nGradients are compared with finite differences in double precision: on 20 instances of every operator, on 20 more in \
             other random shapes, and on empty ones (`ir/tests/operators.rs`). Where a function has a kink or a pole, its gradient is:\n\n\
             | operator | where | gradient |\n| --- | --- | --- |\n";
    KINKS.iter().for_each(|kink| text += &format!("| {} | {} | {} |\n", kink.op, kink.at, kink.taken));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(DOCUMENT, text).unwrap();
        return;
    }
    let written = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    assert_eq!(written, text, "docs/conformance.md is not what the tests say; BLESS=1 writes it");
}
