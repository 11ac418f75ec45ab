//! `bind`: inputs that are always the same become constants, named dimensions become numbers.
//!
//! ```text
//! before   (float[batch, 2] x, int64[] rate)   c = Equal (rate, k)      bind(inputs={rate=16000}, dims={batch=1})
//! after    (float[1, 2] x)                     c = Equal (16000, k)
//! ```
//! (executed by `tests/cases/bind/rate.txt`)
//!
//! A model for two sampling rates or with a switch is one model once that is decided: `simplify` then takes the branch of an `If`
//! that is left, and weights inside it become weights of the model, which can be adapted and trained.
//!
//! A shape may differ from the one that the file fixes: a network for images of 224 × 224 becomes one for 96 × 96 if all its layers take that.
//!
//! *Needs* the internal opset, no programs. *Leaves* a model without these inputs and names; the types of values that they reach are
//! inferred anew. An input becomes a tensor of its declared type in which every element is the number. Idempotent.

use crate::near::did_you_mean;
use crate::walk::require_internal_opset;
use crate::{Changed, Pass};
use sartor_ir::{Dim, Graph, Model, Result, Tensor, Type, Value, bail, ensure, infer};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bind {
    /// Numbers by the names of inputs.
    pub inputs: BTreeMap<String, f64>,
    /// Lengths by the names of dimensions.
    pub dims: BTreeMap<String, u32>,
    /// Lengths of all axes by the names of inputs, for files that do not name dimensions, or that fix others (images of another size); -1 leaves an axis as it is.
    pub shapes: BTreeMap<String, Vec<i64>>,
}

impl Pass for Bind {
    fn name(&self) -> &str {
        "bind"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        require_internal_opset(model)?;
        if self.inputs.is_empty() && self.dims.is_empty() && self.shapes.is_empty() {
            return Ok(Changed::No);
        }
        ensure!(model.programs.is_empty(), "`bind` comes before passes that make programs");
        self.check_dims(&model.graph)?;
        if !self.dims.is_empty() {
            self.bind_dims(&mut model.graph);
        }
        let mut other = false;
        for (name, lengths) in &self.shapes {
            other |= bind_shape(&mut model.graph, name, lengths)?;
        }
        if other {
            // What the file says of values that are computed, it says for other inputs.
            model.graph.forget_types();
        }
        for (name, number) in &self.inputs {
            bind_input(&mut model.graph, name, *number)?;
        }
        infer::infer_model(model)
            .map_err(|e| if other { e.at("the model does not fit the bound shapes") } else { e })?;
        Ok(Changed::Yes)
    }
}

impl Bind {
    /// Every name must be one of an input's dimensions.
    fn check_dims(&self, graph: &Graph) -> Result<()> {
        let shapes = graph.inputs().filter_map(|input| graph.ty(input)?.shape());
        let known: Vec<&str> = shapes.flatten().flat_map(Dim::names).collect();
        match self.dims.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => bail!("no input has a dimension \"{name}\"{}", did_you_mean(name, &known)),
            None => Ok(()),
        }
    }
    fn bind_dims(&self, graph: &mut Graph) {
        let ids: Vec<_> = graph.node_ids().collect();
        for id in ids {
            for subgraph in graph.node_mut(id).op_mut().into_iter().flat_map(|op| op.attrs.graphs_mut()) {
                self.bind_dims(subgraph);
            }
            for output in &mut graph.node_mut(id).outputs {
                if let Some(Type::Tensor { shape: Some(shape), .. }) = &mut output.ty {
                    shape.iter_mut().for_each(|dim| *dim = self.bound(dim));
                }
            }
        }
    }
    /// What still holds other names is left to inference.
    fn bound(&self, dim: &Dim) -> Dim {
        let lookup = |name: &str| self.dims.get(name).map(|n| i64::from(*n));
        match dim.eval(&lookup) {
            Some(number) => Dim::Known(number),
            None if dim.names().iter().any(|name| lookup(name).is_some()) => Dim::Unknown,
            None => dim.clone(),
        }
    }
}

fn find(graph: &Graph, name: &str) -> Result<Value> {
    let Some(input) = graph.find_input(name) else {
        let names: Vec<&str> = graph.inputs().map(|input| graph.value_name(input)).collect();
        bail!("there is no input \"{name}\"{}", did_you_mean(name, &names));
    };
    Ok(input)
}

/// Gives an input these lengths; returns whether the file fixes others.
fn bind_shape(graph: &mut Graph, name: &str, lengths: &[i64]) -> Result<bool> {
    let input = find(graph, name)?;
    let Some(Type::Tensor { dtype, shape }) = graph.ty(input).cloned() else { bail!("input \"{name}\" is no tensor") };
    let declared = shape.unwrap_or_else(|| vec![Dim::Unknown; lengths.len()]);
    let rank = declared.len();
    ensure!(rank == lengths.len(), "input \"{name}\" has {rank} axes, `shapes` gives {}", lengths.len());
    let (mut bound, mut other) = (Vec::new(), false);
    for (axis, (dim, length)) in declared.iter().zip(lengths).enumerate() {
        ensure!(*length >= -1, "axis {axis} of input \"{name}\" cannot have the length {length}");
        other |= dim.known().is_some_and(|known| *length != -1 && known != *length);
        bound.push(if *length == -1 { dim.clone() } else { Dim::Known(*length) });
    }
    graph.set_ty(input, Some(Type::tensor(dtype, bound)));
    Ok(other)
}

fn bind_input(graph: &mut Graph, name: &str, number: f64) -> Result<()> {
    let input = find(graph, name)?;
    let tensor = filled(graph, input, number)?;
    graph.rename(input, &format!("{name}.bound"));
    let constant = graph.add_named_const(name, tensor);
    graph.replace_uses(input, constant);
    graph.remove(input.node);
    Ok(())
}

/// A tensor of an input's type in which every element is the number.
fn filled(graph: &Graph, input: Value, number: f64) -> Result<Tensor> {
    let name = graph.value_name(input);
    let ty = graph.ty(input);
    let Some((dtype, shape)) = ty.and_then(|ty| Some((ty.dtype()?, ty.static_shape()?))) else {
        let ty = ty.map_or("of unknown type".to_string(), Type::to_string);
        bail!("input \"{name}\" is {ty}; only tensors of a fixed shape can be bound (`dims` fixes named dimensions)");
    };
    let count = shape.iter().product();
    let tensor = Tensor::from_vec(shape, vec![number; count]).cast(dtype)?;
    let kept = tensor.to_f64s()?.iter().all(|x| *x == number || dtype.is_float());
    ensure!(kept, "input \"{name}\" is {dtype}, which cannot hold {number}");
    Ok(tensor)
}
