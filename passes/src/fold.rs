//! `fold`: computes what does not depend on any input.
//!
//! ```text
//! before   <frozen float[2, 3] W>  Wt = Transpose (W)   y = MatMul (x, Wt)
//! after    <frozen float[3, 2] "W.Transpose">           y = MatMul (x, "W.Transpose")
//! ```
//! (executed, with what stands beside it, by `tests/cases/fold/frozen.txt`)
//!
//! *Needs* the internal opset. *Leaves* no operator whose inputs are all constants or `Constant`/`Frozen` parameters, unless
//! its outputs are larger than `max_bytes` (1 MiB: nine official models expand from kilobytes to half a gigabyte), it is
//! random, or it holds a subgraph (loops are never run here). The same numbers. Idempotent.
//!
//! What is made from a `Frozen` parameter is a new `Frozen` parameter, shared by all graphs that fold the same thing;
//! the rest becomes a constant. `Trainable` and `State` parameters are never folded through: their values change.

use crate::walk::{edit_with_model, require_internal_opset};
use crate::{Changed, Pass};
use sartor_ir::eval::eval_op;
use sartor_ir::infer::{self, Facts};
use sartor_ir::ops::{self, EvalCx};
use sartor_ir::rng::Stream;
use sartor_ir::{Graph, Model, NodeId, NodeKind, Operator, Parameter, Result, Role, Tensor, Type, Value};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashMap;

/// See the [module](self).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fold {
    /// Outputs of more bytes are not computed.
    pub max_bytes: usize,
}

impl Default for Fold {
    fn default() -> Fold {
        Fold { max_bytes: 1 << 20 }
    }
}

impl Pass for Fold {
    fn name(&self) -> &str {
        "fold"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        require_internal_opset(model)?;
        let mut folder = Folder { max_bytes: self.max_bytes, made: Vec::new(), changed: false };
        edit_with_model(model, |graph, model| folder.graph(graph, model))?;
        Ok(folder.changed.into())
    }
}

struct Folder {
    max_bytes: usize,
    /// Operator and parameters → the parameter made of them.
    made: Vec<(Operator, Vec<String>, String)>,
    changed: bool,
}

/// A known input: its value, and the frozen parameter it is, if it is one.
type Known = (Tensor, Option<String>);

impl Folder {
    fn graph(&mut self, graph: &mut Graph, model: &mut Model) -> Result<()> {
        let facts = infer::facts(graph, model.opset(), &HashMap::new())?;
        self.nodes(graph, model, &facts)
    }

    fn nodes(&mut self, graph: &mut Graph, model: &mut Model, facts: &Facts) -> Result<()> {
        for id in graph.topo_ops() {
            let Some(inputs) = self.foldable(graph, id, model, facts) else { continue };
            let op = graph.node(id).op().cloned().unwrap_or_default();
            let tensors: Vec<Option<&Tensor>> = inputs.iter().map(|i| i.as_ref().map(|(t, _)| t)).collect();
            let wanted = graph.node(id).outputs.iter().map(|o| !o.name.is_empty()).collect();
            let cx = EvalCx {
                op: &op,
                opset: model.opset(),
                wanted,
                stream: Stream::new(0, 0, ""),
                params: &ops::no_params,
                bodies: None,
            };
            // An operator that cannot be computed now keeps its error for the run.
            let Ok(outputs) = eval_op(&cx, &tensors) else { continue };
            for (value, tensor) in graph.node_outputs(id).zip(outputs) {
                if graph.use_count(value) > 0 {
                    let new = self.constant(graph, model, value, (&op, &inputs), tensor);
                    graph.replace_uses(value, new);
                }
            }
            graph.remove(id);
            self.changed = true;
        }
        if self.changed {
            graph.remove_dead();
        }
        Ok(())
    }

    /// The inputs of a node that may be folded.
    fn foldable(&self, graph: &Graph, id: NodeId, model: &Model, facts: &Facts) -> Option<Vec<Option<Known>>> {
        let op = graph.node(id).op()?;
        let def = ops::of(op)?;
        let plain = ops::is_pure(op) && op.attrs.graphs().next().is_none() && graph.node(id).captures() == 0;
        if !plain || (def.eval.is_none() && def.decompose.is_none()) {
            return None;
        }
        let inputs = graph.node_inputs(id).into_iter().map(|input| match input {
            None => Some(None),
            Some(value) => known(graph, value, model).map(Some),
        });
        let inputs: Option<Vec<Option<Known>>> = inputs.collect();
        let fits = |value: Value| {
            // Inferred before this pass began; what it folded since has the types it had.
            let ty = facts.get(value).map(|fact| fact.ty.clone()).or(graph.ty(value).cloned());
            ty.and_then(|ty| byte_len(&ty)).is_some_and(|len| len <= self.max_bytes)
        };
        let used = graph.node_outputs(id).filter(|v| !graph.value_name(*v).is_empty());
        inputs.filter(|_| used.into_iter().all(fits))
    }

    fn constant(
        &mut self,
        graph: &mut Graph,
        model: &mut Model,
        value: Value,
        (op, inputs): (&Operator, &[Option<Known>]),
        tensor: Tensor,
    ) -> Value {
        let frozen: Vec<String> = inputs.iter().flatten().filter_map(|(_, param)| param.clone()).collect();
        if frozen.is_empty() || !tensor.dtype().is_float() || tensor.rank() == 0 {
            let name = graph.value_name(value).to_string();
            return graph.add_const(&name, tensor);
        }
        let ty = Type::of(&tensor);
        let all_params = frozen.len() == inputs.len() && value.slot == 0;
        let same = |(o, params, _): &&(Operator, Vec<String>, String)| o == op && *params == frozen;
        if let Some((.., param)) = self.made.iter().find(same).filter(|_| all_params) {
            return graph.param(param, ty);
        }
        let name = fresh_param_name(model, graph, &format!("{}.{}", frozen[0], op.name));
        model.params.insert(name.clone(), Parameter { tensor, role: Role::Frozen });
        if all_params {
            self.made.push((op.clone(), frozen, name.clone()));
        }
        graph.param(&name, ty)
    }
}

fn known(graph: &Graph, value: Value, model: &Model) -> Option<Known> {
    match &graph.node(value.node).kind {
        NodeKind::Const(tensor) => Some((tensor.clone(), None)),
        NodeKind::Param(name) => {
            let param = model.params.get(name)?;
            match param.role {
                Role::Constant => Some((param.tensor.clone(), None)),
                Role::Frozen => Some((param.tensor.clone(), Some(name.clone()))),
                Role::Trainable | Role::State => None,
            }
        }
        _ => None,
    }
}

fn byte_len(ty: &Type) -> Option<usize> {
    let count = sartor_ir::tensor::element_count(&ty.static_shape()?)?;
    // A string is a pointer and a length, at least.
    let dtype = ty.dtype()?;
    if dtype.bits() == 0 { count.checked_mul(16) } else { dtype.byte_len(count) }
}

/// A name that no parameter and no value has, the graph at hand included.
pub(crate) fn fresh_param_name(model: &Model, graph: &Graph, hint: &str) -> String {
    let taken = |name: &str| {
        model.params.contains_key(name) || graph.name_taken(name) || model.graphs().any(|g| g.name_taken(name))
    };
    let numbered = (1..).map(|i| format!("{hint}_{i}"));
    let mut names = std::iter::once(hint.to_string()).chain(numbered);
    names.find(|name| !taken(name)).unwrap_or_default()
}
