//! A model as its own teacher: losses beside their formulas, in plain loops.

use sartor_ir::rng::Draw;
use sartor_ir::{Model, Tensor, eval, text};
use sartor_tests::{Named, run_passes};

const MODEL: &str = "<ir_version: 10, opset_import: [\"\": 20]>\n\
    parameters <trainable double[3, 4] w = {0.3, -0.2, 0.9, 0.1, -0.7, 0.4, 0.2, -0.5, 0.6, 0.8, -0.1, 0.05}>\n\
    g (double[batch, 3] x) => (double[batch, 4] y) <double[3, 4] w = param> {\n\
      double[batch, 4] y = MatMul (x, w)\n\
    }\n";

/// The loss of a step after its weight has moved, and the gradient; with them what the model says now and what it said at first.
fn moved(loss: &str) -> (f64, Vec<f64>, [Vec<f64>; 2], Model, Named) {
    let mut model = text::parse(MODEL).unwrap();
    let passes = format!("[[pass]]\nname = \"loss\"\nteacher = true\n{loss}\n[[pass]]\nname = \"autodiff\"\n");
    run_passes(&mut model, &passes).unwrap();
    let mut draw = Draw::new(3, "teacher");
    let inputs = Named::from([("x".to_string(), draw.tensor(&[5, 3], -1.0, 1.0))]);
    let step = Model { graph: model.programs["step"].graph.clone(), programs: Default::default(), ..model.clone() };
    let output = |model: &Model, name: &str| {
        let place = model.graph.outputs.iter().position(|o| o.name == name).unwrap();
        eval::run(model, &inputs).unwrap()[place].to_f64s().unwrap()
    };
    let first = output(&model, "y");
    if !loss.contains("bce") {
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
        let log_softmax = |row: &[f64]| -> Vec<f64> {
            let sum: f64 = row.iter().map(|x| (x / t).exp()).sum();
            row.iter().map(|x| x / t - sum.ln()).collect()
        };
        let rows = said[0].chunks(4).zip(said[1].chunks(4));
        let one = |(now, first): (&[f64], &[f64])| -> f64 {
            let (q, p) = (log_softmax(now), log_softmax(first));
            p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
        };
        let wanted = t * t * rows.map(one).sum::<f64>() / 5.0;
        assert!((loss - wanted).abs() < 1e-12 && wanted > 1e-3, "{loss} instead of {wanted}");
        check_gradient(&gradient, &model, &inputs);
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
