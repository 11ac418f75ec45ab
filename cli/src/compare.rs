//! Whether two models compute the same, and if not, the first value that differs.
//!
//! Elements are equal if both are NaN, or `|a − b| ≤ tolerance · max(1, |a|, |b|)`. The outputs are compared first. If one
//! differs, both models are run again with every value that exists in both by name as an output, and these are walked in
//! the first model's topological order: the first that differs is where to look.

use crate::{Failure, Outcome, files};
use sartor_ir::rng::Stream;
use sartor_ir::{DType, Graph, GraphOutput, Model, Result, Tensor, Type, Value, bail, ensure};
use sartor_runtime::data::schema::find_embedding;
use sartor_runtime::{Key, Params, Session, SessionOptions};
use std::collections::{HashMap, HashSet};

/// Named tensors.
pub type Arrays = HashMap<String, Tensor>;

/// Runs a model.
pub fn run(model: &Model, inputs: &Arrays, options: SessionOptions) -> Result<Arrays> {
    Session::new(model, options)?.run(&mut Params::of(model), inputs, Key::default())
}

/// The largest relative difference of two tensors, and where; an error says why they cannot be compared.
pub fn difference(a: &Tensor, b: &Tensor) -> Result<(f64, usize)> {
    ensure!(a.shape() == b.shape(), "its shape is {:?} in the first, {:?} in the second", a.shape(), b.shape());
    if a.dtype() == DType::String || b.dtype() == DType::String {
        ensure!(a == b, "its strings differ");
        return Ok((0.0, 0));
    }
    ensure!(a.dtype() == b.dtype(), "its type is {} in the first, {} in the second", a.dtype(), b.dtype());
    let (a, b) = (a.to_f64s()?, b.to_f64s()?);
    let mut worst = (0.0, 0);
    for (i, (&x, &y)) in a.iter().zip(&b).enumerate() {
        let far = relative(x, y);
        if far > worst.0 {
            worst = (far, i);
        }
    }
    Ok(worst)
}

fn relative(x: f64, y: f64) -> f64 {
    if x == y || (x.is_nan() && y.is_nan()) {
        return 0.0;
    }
    let far = (x - y).abs() / x.abs().max(y.abs()).max(1.0);
    if far.is_nan() { f64::INFINITY } else { far }
}

/// A difference as a sentence; `None` if the tensors are equal within the tolerance.
pub fn sentence(a: &Tensor, b: &Tensor, tolerance: f64) -> Option<String> {
    match difference(a, b) {
        Err(error) => Some(error.to_string()),
        Ok((far, _)) if far <= tolerance => None,
        Ok((far, at)) => {
            let at_index = index_of(at, a.shape());
            let element = |t: &Tensor| t.to_f64s().ok().and_then(|v| v.get(at).copied()).unwrap_or(f64::NAN);
            Some(format!("by {far:.3e} at {at_index:?}: {} in the first, {} in the second", element(a), element(b)))
        }
    }
}

fn index_of(mut place: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&length| {
            let at = place % length.max(1);
            place /= length.max(1);
            at
        })
        .collect();
    index.reverse();
    index
}

/// What runs a model on the inputs at hand.
pub type Runner<'a> = &'a dyn Fn(&Model) -> Result<Arrays>;

/// The first value, in `a`'s topological order, that both models have under the same name and that differs, with the
/// sentence that says how.
pub fn first_difference(
    (a, run_a): (&Model, Runner),
    (b, run_b): (&Model, Runner),
    tolerance: f64,
) -> Result<Option<(String, String)>> {
    let shared = shared_values(&a.graph, &b.graph);
    let of_a = run_a(&with_outputs(a, &shared))?;
    let of_b = run_b(&with_outputs(b, &shared))?;
    for name in shared {
        if let (Some(x), Some(y)) = (of_a.get(&name), of_b.get(&name))
            && let Some(how) = sentence(x, y, tolerance)
        {
            return Ok(Some((name, how)));
        }
    }
    Ok(None)
}

/// The names of the tensors that operators of both graphs make, in the first one's topological order.
fn shared_values(a: &Graph, b: &Graph) -> Vec<String> {
    let theirs: HashSet<String> = made_values(b).map(|v| b.value_name(v).to_string()).collect();
    let public: HashSet<&str> = a.outputs.iter().chain(&b.outputs).map(|o| o.name.as_str()).collect();
    let wanted = |name: &String| !name.is_empty() && theirs.contains(name) && !public.contains(name.as_str());
    made_values(a).map(|v| a.value_name(v).to_string()).filter(wanted).collect()
}

fn made_values(graph: &Graph) -> impl Iterator<Item = Value> + '_ {
    let is_tensor = |v: &Value| graph.ty(*v).is_none_or(|t| matches!(t, Type::Tensor { .. }));
    graph.topo_ops().into_iter().flat_map(|id| graph.node_outputs(id)).filter(is_tensor)
}

fn with_outputs(model: &Model, names: &[String]) -> Model {
    let mut model = model.clone();
    let values: HashMap<String, Value> =
        made_values(&model.graph).map(|v| (model.graph.value_name(v).to_string(), v)).collect();
    for name in names {
        if let Some(&value) = values.get(name) {
            model.graph.outputs.push(GraphOutput { name: name.clone(), value });
        }
    }
    model
}

/// Inputs drawn for a graph of a model: floats from the standard normal distribution, token ids below the number of rows of the
/// embedding they index, masks of ones, other integers 0 or 1. Symbolic dimensions are those of `dims`; the first one that is not there is 2,
/// others are 7, in images 64.
pub fn drawn_inputs(model: &Model, graph: &Graph, dims: &[String], seed: u64) -> Outcome<Arrays> {
    let dims = files::parse_dims(dims)?;
    let symbols: Vec<&str> = graph
        .inputs()
        .filter_map(|v| graph.ty(v)?.shape())
        .flat_map(|shape| shape.iter().flat_map(|d| d.names()))
        .collect();
    let mut arrays = Arrays::new();
    for value in graph.inputs() {
        let name = graph.value_name(value);
        let Some(ty) = graph.ty(value) else {
            return Err(Failure::usage(format!("the type of input \"{name}\" is unknown: give it with --inputs")));
        };
        // Images need room for their windows.
        let rest = if ty.rank().is_some_and(|rank| rank >= 4) { 64 } else { 7 };
        let default = |name: &str| if symbols.first() == Some(&name) { 2 } else { rest };
        let tensor = draw(model, graph, name, &files::bound_type(ty, &dims, &default), seed)?;
        arrays.insert(name.to_string(), tensor);
    }
    Ok(arrays)
}

/// Larger generated inputs are refused: somebody bound a dimension to a number that was not meant.
const MAX_GENERATED: usize = 1 << 28;

fn draw(model: &Model, graph: &Graph, name: &str, ty: &Type, seed: u64) -> Result<Tensor> {
    let (Some(dtype), Some(shape)) = (ty.dtype(), ty.static_shape()) else {
        bail!("input \"{name}\" is {ty}: give it with --inputs");
    };
    let count = sartor_ir::tensor::element_count(&shape).filter(|&n| n <= MAX_GENERATED);
    let Some(count) = count else { bail!("input \"{name}\" would be {ty}: give it with --inputs") };
    let stream = Stream::new(seed, 0, name);
    let bound = find_embedding(model, graph, name).map_or(2, |e| e.rows.max(1) as u64);
    let number = |i: u64| match dtype {
        d if d.is_float() => stream.normal(i),
        _ if name.contains("mask") => 1.0,
        _ => stream.below(i, bound) as f64,
    };
    let numbers: Vec<f64> = (0..count as u64).map(number).collect();
    Tensor::from_vec(shape, numbers).cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_and_say_where() {
        let a = Tensor::from_vec([2, 2], vec![1.0f32, 100.0, f32::NAN, f32::INFINITY]);
        let b = Tensor::from_vec([2, 2], vec![1.0f32, 101.0, f32::NAN, f32::INFINITY]);
        let (far, at) = difference(&a, &b).unwrap();
        assert!((far - 1.0 / 101.0).abs() < 1e-6 && at == 1);
        assert_eq!(sentence(&a, &b, 0.1), None);
        let text = sentence(&a, &b, 1e-3).unwrap();
        assert_eq!(text, "by 9.901e-3 at [0, 1]: 100 in the first, 101 in the second");
        let c = Tensor::from_vec([4], vec![1.0f32; 4]);
        assert_eq!(sentence(&a, &c, 1.0).unwrap(), "its shape is [2, 2] in the first, [4] in the second");
        assert_eq!(relative(f64::NAN, 1.0), f64::INFINITY);
    }
}
