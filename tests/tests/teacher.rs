//! A model as its own teacher, or another one from a file: losses beside their formulas, in plain loops.

use sartor_ir::rng::Draw;
use sartor_ir::{Model, Role, Tensor, eval, onnx, text};
use sartor_tests::{Named, run_passes};

const MODEL: &str = "<ir_version: 10, opset_import: [\"\": 20]>\n\
    parameters <trainable double[3, 4] w = {0.3, -0.2, 0.9, 0.1, -0.7, 0.4, 0.2, -0.5, 0.6, 0.8, -0.1, 0.05}>\n\
    g (double[batch, 3] x) => (double[batch, 4] y) <double[3, 4] w = param> {\n\
      double[batch, 4] y = MatMul (x, w)\n\
    }\n";

/// Another model of the same input, whose axis has another name; its output has one too.
const OTHER: &str = "<ir_version: 10, opset_import: [\"\": 17]>\n\
    parameters <frozen double[3, 2] w = {0.5, -0.3, 0.2, 0.8, -0.6, 0.1}, frozen double[2, 4] v = {1.0, -1.5, 0.5, 0.3, 0.2, 0.9, -0.7, 1.1}>\n\
    g (double[N, 3] x) => (double[N, 4] z) <double[3, 2] w = param, double[2, 4] v = param> {\n\
      double[N, 2] h = MatMul (x, w)\n\
      double[N, 2] a = Tanh (h)\n\
      double[N, 4] z = MatMul (a, v)\n\
    }\n";

/// The labels of five examples.
const LABELS: [i64; 5] = [0, 3, 1, 1, 2];

/// The loss of a step after its weight has moved, and the gradient; with them what the model says now and what it said at first.
fn moved(loss: &str) -> (f64, Vec<f64>, [Vec<f64>; 2], Model, Named) {
    let mut model = text::parse(MODEL).unwrap();
    let itself = if loss.contains("teacher") { "" } else { "teacher = true\n" };
    let passes = format!("[[pass]]\nname = \"loss\"\n{itself}{loss}\n[[pass]]\nname = \"autodiff\"\n");
    run_passes(&mut model, &passes).unwrap();
    let mut draw = Draw::new(3, "teacher");
    let mut inputs = Named::from([("x".to_string(), draw.tensor(&[5, 3], -1.0, 1.0))]);
    if loss.contains("labels") {
        inputs.insert("label".to_string(), Tensor::from_vec([5], LABELS.to_vec()));
    }
    let step = Model { graph: model.programs["step"].graph.clone(), programs: Default::default(), ..model.clone() };
    let output = |model: &Model, name: &str| {
        let place = model.graph.outputs.iter().position(|o| o.name == name).unwrap();
        eval::run(model, &inputs).unwrap()[place].to_f64s().unwrap()
    };
    let first = output(&model, "y");
    if !itself.is_empty() && !loss.contains("bce") {
        assert!(output(&step, "loss")[0].abs() < 1e-12, "at first the model is its teacher");
    }
    let mut other = step.clone();
    other.params.get_mut("w").unwrap().tensor = draw.tensor(&[3, 4], -1.0, 1.0);
    let mut now = model.clone();
    now.params = other.params.clone();
    let said = [output(&now, "y"), first];
    assert_ne!(said[0], said[1]);
    (output(&other, "loss")[0], output(&other, "grad:w"), said, other, inputs)
}

/// The gradient is that of finite differences, which do not move the teacher.
fn check_gradient(found: &[f64], model: &Model, inputs: &Named) {
    let place = model.graph.outputs.iter().position(|o| o.name == "loss").unwrap();
    let values = model.params["w"].tensor.to_f64s().unwrap();
    for i in 0..values.len() {
        let loss = |by: f64| {
            let mut values = values.clone();
            values[i] += by;
            let mut model = model.clone();
            model.params.get_mut("w").unwrap().tensor = Tensor::from_vec([3, 4], values);
            eval::run(&model, inputs).unwrap()[place].to_f64s().unwrap()[0]
        };
        let slope = (loss(1e-6) - loss(-1e-6)) / 2e-6;
        assert!((found[i] - slope).abs() < 1e-7, "{i}: {} instead of {slope}", found[i]);
    }
}

#[test]
fn the_divergence_of_two_distributions() {
    for t in [1.0, 2.0, 0.5] {
        let (loss, gradient, said, model, inputs) = moved(&format!("temperature = {t:?}"));
        let rows = said[0].chunks(4).zip(said[1].chunks(4));
        let one = |(now, first): (&[f64], &[f64])| -> f64 {
            let (q, p) = (log_softmax(now, t), log_softmax(first, t));
            p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
        };
        let wanted = t * t * rows.map(one).sum::<f64>() / 5.0;
        assert!((loss - wanted).abs() < 1e-12 && wanted > 1e-3, "{loss} instead of {wanted}");
        check_gradient(&gradient, &model, &inputs);
    }
}

fn log_softmax(row: &[f64], t: f64) -> Vec<f64> {
    let sum: f64 = row.iter().map(|x| (x / t).exp()).sum();
    row.iter().map(|x| x / t - sum.ln()).collect()
}

/// A teacher from a file, with a share of the loss for labels: `a · cross-entropy + (1 − a) · divergence`.
#[test]
fn another_model_and_labels() {
    let folder = tempfile::tempdir().unwrap();
    let (path, t) = (folder.path().join("other.onnx"), 3.0);
    let other = text::parse(OTHER).unwrap();
    onnx::save(&other, &path, &onnx::SaveOptions::default()).unwrap();
    for share in [0.0, 0.25, 1.0] {
        let labels = if share > 0.0 { format!("labels = {share:?}\n") } else { String::new() };
        let (loss, gradient, [now, _], model, inputs) =
            moved(&format!("teacher = {:?}\ntemperature = {t:?}\n{labels}", path.display().to_string()));
        let says = eval::run(&other, &Named::from([("x".to_string(), inputs["x"].clone())])).unwrap()[0].to_f64s();
        let one = |(row, says): (&[f64], &[f64])| -> f64 {
            let (q, p) = (log_softmax(row, t), log_softmax(says, t));
            t * t * p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        };
        let soft = now.chunks(4).zip(says.unwrap().chunks(4)).map(one).sum::<f64>() / 5.0;
        let likely = |(row, &label): (&[f64], &i64)| log_softmax(row, 1.0)[label as usize];
        let hard = -now.chunks(4).zip(&LABELS).map(likely).sum::<f64>() / 5.0;
        let wanted = share * hard + (1.0 - share) * soft;
        assert!((loss - wanted).abs() < 1e-12 && wanted > 1e-3, "{share}: {loss} instead of {wanted}");
        check_gradient(&gradient, &model, &inputs);
        assert!(model.params["teacher.w"].role == Role::Frozen && model.params["teacher.v"].role == Role::Frozen);
    }
}

/// What another model must have in common with the one that learns from it.
#[test]
fn a_model_that_cannot_teach_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.onnx");
    for (old, new, expected) in [
        ("double[N, 3] x)", "double[N, 3] words)", "its input \"words\" is none of the model's"),
        ("[2, 4]", "[2, 5]", "its output is double[batch, 5], and the model's output \"y\" is double[batch, 4]"),
        ("=> (double[N, 4] z)", "=> (double[N, 4] z, double[N, 2] a)", "none of its outputs (z, a) is named \"y\""),
    ] {
        let mut other = OTHER.replace(old, new);
        match new.as_bytes() {
            b"double[N, 3] words)" => other = other.replace("(x, w)", "(words, w)"),
            b"[2, 5]" => other = other.replace("[N, 4]", "[N, 5]").replace("1.1}", "1.1, 0.0, 0.0}"),
            _ => {}
        }
        onnx::save(&text::parse(&other).unwrap(), &path, &onnx::SaveOptions::default()).unwrap();
        let passes = format!("[[pass]]\nname = \"loss\"\nteacher = {:?}\n", path.display().to_string());
        let error = run_passes(&mut text::parse(MODEL).unwrap(), &passes).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("other.onnx"), "{error}");
    }
}

#[test]
fn the_distance_of_two_outputs() {
    let (loss, gradient, said, model, inputs) = moved("kind = \"mse\"");
    let wanted = said[0].iter().zip(&said[1]).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / 20.0;
    assert!((loss - wanted).abs() < 1e-12 && wanted > 1e-3, "{loss} instead of {wanted}");
    check_gradient(&gradient, &model, &inputs);
}

#[test]
fn probabilities_one_by_one() {
    let (loss, gradient, said, model, inputs) = moved("kind = \"bce\"");
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let one = |(now, first): (&f64, &f64)| -> f64 {
        let (q, p) = (sigmoid(*now), sigmoid(*first));
        -p * q.ln() - (1.0 - p) * (1.0 - q).ln()
    };
    let wanted = said[0].iter().zip(&said[1]).map(one).sum::<f64>() / 20.0;
    assert!((loss - wanted).abs() < 1e-12, "{loss} instead of {wanted}");
    check_gradient(&gradient, &model, &inputs);
}
