//! `If`, `Loop` and `Scan` with bodies of some size: what is inferred, what is computed, and gradients by finite
//! differences, on models in text form.

use sartor_ir::eval::{self, Environment};
use sartor_ir::ops::gradient::{between, decompose_between, sweep};
use sartor_ir::ops::{Emit, lookup};
use sartor_ir::rng::Draw;
use sartor_ir::{GraphOutput, Model, OPSET, Tensor, Type, Value, infer, text, verify};
use std::collections::HashMap;

type Feeds = HashMap<String, Tensor>;

fn parsed(source: &str) -> Model {
    text::parse(&format!("<ir_version: 10, opset_import: [\"\": 20]>\n{source}")).unwrap()
}

fn model(source: &str) -> Model {
    let model = parsed(source);
    verify::verify(&model).unwrap();
    model
}

fn feeds<const N: usize>(feeds: [(&str, Tensor); N]) -> Feeds {
    feeds.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect()
}

fn run(model: &Model, feeds: &Feeds) -> Vec<Tensor> {
    let found = eval::run(model, feeds).unwrap();
    for (output, tensor) in model.graph.outputs.iter().zip(&found) {
        let inferred = inferred(model, &output.name);
        assert!(inferred.merge(&Type::of(tensor)).is_some(), "{}: {inferred} inferred, {tensor:?} found", output.name);
    }
    found
}

fn inferred(model: &Model, output: &str) -> Type {
    let mut model = model.clone();
    infer::infer_model(&mut model).unwrap();
    model.graph.ty(model.graph.find_output(output).unwrap()).unwrap().clone()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f64s().unwrap()
}

/// Appends the number of the iteration to what it carries until there are five entries.
const GROWING: &str = "
g (int64[n] start, int64[] most) => (all, rows) <
  bool[] yes = {1},
  int64[] five = {5},
  int64[1] axis = {0}
> {
  all, rows = Loop <body: graph = body (i, going, old) => (going_on, new, row) <
      axes = capture 0,
      bound = capture 1
    > {
      one = Unsqueeze (i, axes)
      new = Concat <axis = 0> (old, one)
      size = Size (new)
      going_on = Less (size, bound)
      row = Mul (i, bound)
    }> (most, yes, start | axis, five)
}";

#[test]
fn carried_values_may_grow_and_conditions_end_loops() {
    let m = model(GROWING);
    assert_eq!(inferred(&m, "all").to_string(), "int64[?]");
    assert_eq!(inferred(&m, "rows").to_string(), "int64[?]");
    let found = |start: &[i64], most: i64| {
        run(&m, &feeds([("start", Tensor::from_i64s(start)), ("most", Tensor::scalar(most))]))
            .iter()
            .map(|t| t.to_i64s().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(found(&[7, 7], 100), [vec![7, 7, 0, 1, 2], vec![0, 5, 10]]);
    assert_eq!(found(&[7, 7], 1), [vec![7, 7, 0], vec![0]]);
    assert_eq!(found(&[7, 7], -1), [vec![7, 7], vec![]]);
}

#[test]
fn a_known_number_of_iterations_is_an_axis() {
    let m = model(
        "g (float[n, 3] x) => (last, rows) <
          int64[] four = {4},
          bool[] yes = {1}
        > {
          last, rows = Loop <body: graph = body (i, going, s) => (going, next, s) <
              x = capture 0
            > {
              next = Add (s, x)
            }> (four, yes, x | x)
        }",
    );
    assert_eq!(inferred(&m, "last").to_string(), "float[n, 3]");
    assert_eq!(inferred(&m, "rows").to_string(), "float[4, n, 3]");
    let x = Tensor::from_vec([1, 3], vec![1f32, 2.0, 3.0]);
    let found = run(&m, &feeds([("x", x)]));
    assert_eq!(numbers(&found[0]), [5.0, 10.0, 15.0]);
    assert_eq!(numbers(&found[1]), [1.0, 2.0, 3.0, 2.0, 4.0, 6.0, 3.0, 6.0, 9.0, 4.0, 8.0, 12.0]);
}

#[test]
fn bodies_see_through_two_levels_and_read_parameters() {
    let m = model(
        "parameters <
          frozen float[2] w = {10.0, 20.0}
        >
        g (bool[] c, float[2] x) => (y) <
          int64[] two = {2},
          float[2] w = param
        > {
          last = Loop <body: graph = body (i, going, s) => (on, next) <
              c = capture 0,
              x = capture 1,
              float[2] own = param(w)
            > {
              on = Identity (going)
              scaled = Mul (x, own)
              term = If <then_branch: graph = then () => (a = inner) <
                  inner = capture 0
                > {
                }, else_branch: graph = else () => (b) <
                  inner = capture 0
                > {
                  b = Neg (inner)
                }> (c | scaled)
              next = Add (s, term)
            }> (two, \"\", x | c, x)
          y = Sub (last, w)
        }",
    );
    let x = Tensor::from_vec([2], vec![1f32, 2.0]);
    let found = |c: bool| numbers(&run(&m, &feeds([("c", Tensor::scalar(c)), ("x", x.clone())]))[0]);
    assert_eq!(found(true), [1.0 + 20.0 - 10.0, 2.0 + 80.0 - 20.0]);
    assert_eq!(found(false), [1.0 - 20.0 - 10.0, 2.0 - 80.0 - 20.0]);
}

#[test]
fn every_iteration_draws_its_own_numbers() {
    let m = model(
        "g () => (rows) <
          int64[] three = {3}
        > {
          rows = Loop <body: graph = body (i, going) => (going, r) {
              r = RandomUniform <shape = [2]> ()
            }> (three, \"\")
        }",
    );
    let draw = |step: u64| {
        let env = Environment { opset: OPSET, seed: 5, step, params: &|_: &str| None };
        numbers(&eval::run_graph(&m.graph, &env, &Feeds::new()).unwrap()[0])
    };
    let first = draw(1);
    assert_eq!(first, draw(1));
    let mut all = [first, draw(2)].concat();
    all.sort_by(f64::total_cmp);
    all.dedup();
    assert_eq!(all.len(), 12);
}

#[test]
fn what_does_not_fit_is_reported() {
    let problem = |source: &str| verify::verify(&parsed(source)).unwrap_err().to_string();
    let few = problem(
        "g (int64[] n) => (y) {
          y = Loop <body: graph = body (i, going, s) => (going, s) { }> (n, \"\")
        }",
    );
    assert!(few.contains("it has 2 inputs, its body 3"), "{few}");
    let differ = problem(
        "g (bool[] c) => (y) {
          y = If <then_branch: graph = t () => (a) < float[1] a = {1.0} > { },
                  else_branch: graph = e () => (b) < int64[1] b = {1} > { }> (c)
        }",
    );
    assert!(differ.contains("the branches differ"), "{differ}");
    let inside = problem(
        "g (bool[] c, float[2] x, float[3] y) => (z) {
          z = If <then_branch: graph = t () => (s) < x = capture 0, y = capture 1 > { s = Add (x, y) },
                  else_branch: graph = e () => (x) < x = capture 0 > { }> (c | x, y)
        }",
    );
    assert!(inside.contains("dimensions 2 and 3 do not broadcast"), "{inside}");
}

/// An endless nest of loops is inferred in a time that does not grow with the power of its depth.
#[test]
fn nested_loops_are_inferred_quickly() {
    let mut inner = "next = Concat <axis = 0> (s, s)".to_string();
    for _ in 0..24 {
        inner = format!(
            "n = Constant <value_int = 2> ()
             next = Loop <body: graph = body (i, going, s) => (going, next) {{ {inner} }}> (n, \"\", s)"
        );
    }
    let m = model(&format!("g (float[1] s) => (next) {{ {inner} }}"));
    assert_eq!(inferred(&m, "next").to_string(), "float");
}

#[test]
fn branches_of_different_shapes_share_what_they_share() {
    let m = model(
        "g (bool[] c, float[n, 3] x) => (y) <
          int64[] zero = {0},
          int64[1] axes = {1}
        > {
          y = If <then_branch: graph = t () => (y) < x = capture 0 > { y = Concat <axis = 0> (x, x) },
                  else_branch: graph = e () => (y) < x = capture 0 > { y = Neg (x) }> (c | x)
        }",
    );
    assert_eq!(inferred(&m, "y").to_string(), "float[?, 3]");
}

// ---- gradients ------------------------------------------------------------------------------------------------------

/// Checks the gradients of the sum of squares of all outputs by these inputs.
fn check_gradients(source: &str, feeds: &Feeds, by: &[&str]) {
    let forward = model(source);
    let mut backward = forward.clone();
    let graph = &mut backward.graph;
    infer::infer_graph(graph, OPSET).unwrap();
    let sources: Vec<Value> = by.iter().map(|name| graph.find_input(name).unwrap()).collect();
    let targets = |graph: &sartor_ir::Graph| graph.outputs.iter().map(|o| o.value).collect::<Vec<_>>();
    decompose_between(graph, &sources, targets, OPSET).unwrap();
    let ends = targets(graph);
    let needed = between(graph, &sources, &ends);
    let mut emit = Emit::new(graph, OPSET);
    let mut seeds = HashMap::new();
    for end in ends {
        let seed = emit.mul_scalar(end, 2.0).unwrap();
        seeds.insert(end, seed);
    }
    let grads = sweep(&mut emit, seeds, &needed).unwrap();
    graph.outputs = by
        .iter()
        .zip(&sources)
        .map(|(name, value)| GraphOutput { name: format!("grad of {name}"), value: grads[value] })
        .collect();
    graph.remove_dead();
    verify::verify(&backward).unwrap();
    let found = eval::run(&backward, feeds).unwrap();
    let loss =
        |feeds: &Feeds| -> f64 { eval::run(&forward, feeds).unwrap().iter().flat_map(numbers).map(|y| y * y).sum() };
    for (name, grad) in by.iter().zip(found) {
        assert_eq!(grad.shape(), feeds[*name].shape(), "{name}");
        let values = numbers(&feeds[*name]);
        for (i, grad) in numbers(&grad).into_iter().enumerate() {
            let at = |shift: f64| {
                let (mut moved, mut feeds) = (values.clone(), feeds.clone());
                moved[i] += shift;
                feeds.insert(name.to_string(), Tensor::from_vec(feeds[*name].shape(), moved));
                loss(&feeds)
            };
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((grad - numeric).abs() < 1e-6 * (1.0 + numeric.abs()), "{name} at {i}: {grad}, expected {numeric}");
        }
    }
}

fn draws<const N: usize>(shapes: [(&str, &[usize]); N]) -> Feeds {
    let mut draw = Draw::new(3, "control flow");
    shapes.into_iter().map(|(name, shape)| (name.to_string(), draw.tensor(shape, -1.0, 1.0))).collect()
}

#[test]
fn gradients_flow_through_the_branch_that_is_taken() {
    let source = "g (bool[] c, double[n, 3] x, double[3, 2] w, double[2] b) => (y, z) {
      h = Tanh (x)
      y, z = If <then_branch: graph = t () => (y, z) <
          h = capture 0,
          w = capture 1,
          b = capture 2
        > {
          p = MatMul (h, w)
          y = Add (p, b)
          z = Sigmoid (y)
        }, else_branch: graph = e () => (y = double_h, s) <
          h = capture 0,
          w = capture 1
        > {
          p = MatMul (h, w)
          double_h = Add (p, p)
          s = Sin (w)
        }> (c | h, w, b)
    }";
    for c in [true, false] {
        let mut feeds = draws([("x", &[2, 3]), ("w", &[3, 2]), ("b", &[2])]);
        feeds.insert("c".to_string(), Tensor::scalar(c));
        check_gradients(source, &feeds, &["x", "w", "b"]);
    }
}

#[test]
fn gradients_flow_through_scans() {
    let source = "g (double[4, 2] x, double[2] s, double[2, 2] w) => (last, rows) {
      last, rows = Scan <num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [1], body: graph = body (s, x) => (next, row) <
          w = capture 0
        > {
          p = MatMul (s, w)
          sum = Add (p, x)
          next = Tanh (sum)
          row = Mul (next, x)
        }> (s, x | w)
    }";
    check_gradients(source, &draws([("x", &[4, 2]), ("s", &[2]), ("w", &[2, 2])]), &["x", "s", "w"]);
}

#[test]
fn gradients_flow_through_branches_in_loops_in_branches() {
    let source = "g (double[2] x, double[2] w) => (y) <
      bool[] yes = {1}
    > {
      limit = Constant <value_float = 0.0> ()
      total = ReduceSum <keepdims = 0> (x)
      number = CastLike (limit, total)
      c = Greater (total, number)
      y = If <then_branch: graph = t () => (a) <
          x = capture 0
        > {
          a = Exp (x)
        }, else_branch: graph = e () => (r) <
          x = capture 0,
          w = capture 1,
          yes = capture 2,
          int64[] three = {3}
        > {
          last, rows = Loop <body: graph = body (i, going, s) => (on, next, s) <
              x = capture 0,
              w = capture 1,
              int64[] one = {1}
            > {
              on = Identity (going)
              first = Less (i, one)
              term = If <then_branch: graph = t () => (q) <
                  s = capture 0,
                  x = capture 1
                > {
                  q = Mul (s, x)
                }, else_branch: graph = e () => (q) <
                  s = capture 0,
                  w = capture 2
                > {
                  t = Sin (s)
                  q = Mul (t, w)
                }> (first | s, x, w)
              next = Add (s, term)
            }> (three, yes, x | x, w)
          r = Add (rows, last)
        }> (c | x, w, yes)
    }";
    let mut feeds = draws([("w", &[2])]);
    for x in [[0.5, 0.25], [-0.5, 0.25]] {
        feeds.insert("x".to_string(), Tensor::from_vec([2], x.to_vec()));
        check_gradients(source, &feeds, &["x", "w"]);
    }
}

#[test]
fn loops_of_unknown_length_have_no_gradient() {
    let mut m = model(
        "g (int64[] n, double[2] x) => (y) {
          y = Loop <body: graph = body (i, going, s) => (going, next) < x = capture 0 > { next = Mul (s, x) }> (n, \"\", x | x)
        }",
    );
    let graph = &mut m.graph;
    infer::infer_graph(graph, OPSET).unwrap();
    let source = graph.find_input("x").unwrap();
    let targets = |graph: &sartor_ir::Graph| graph.outputs.iter().map(|o| o.value).collect();
    let error = decompose_between(graph, &[source], targets, OPSET).unwrap_err().to_string();
    assert!(error.contains("the number of iterations of Loop is unknown"), "{error}");
}

#[test]
fn a_scan_of_version_8_becomes_two() {
    let mut m = parsed(
        "g (double[2, 1] s, double[2, 3, 1] x) => (last, rows) {
          last, rows = Scan <num_scan_inputs = 1, body: graph = body (s, x) => (sum, sum_out) {
              sum = Add (s, x)
              sum_out = Identity (sum)
            }> (s, x)
        }",
    );
    let node = m.graph.topo_ops()[0];
    let inputs: Vec<Option<Value>> = std::iter::once(None).chain(m.graph.node_inputs(node)).collect();
    m.graph.set_inputs(node, &inputs);
    let (_, rewrite) = lookup("", "Scan").unwrap().upgrades[0];
    rewrite(&mut m.graph, node).unwrap();
    verify::verify(&m).unwrap();
    let feeds = feeds([
        ("s", Tensor::from_vec([2, 1], vec![1.0, 10.0])),
        ("x", Tensor::from_vec([2, 3, 1], vec![1.0, 2.0, 3.0, 10.0, 20.0, 30.0])),
    ]);
    let found = run(&m, &feeds);
    assert_eq!((found[0].shape(), numbers(&found[0])), (&[2, 1][..], vec![7.0, 70.0]));
    assert_eq!((found[1].shape(), numbers(&found[1])), (&[2, 3, 1][..], vec![2.0, 4.0, 7.0, 20.0, 40.0, 70.0]));
}
