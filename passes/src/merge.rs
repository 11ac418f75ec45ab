//! `merge`: folds all adapters into the weights, so that the model costs what it did before.
//!
//! Before → after:
//! ```text
//! y = Add(MatMul(x, W), MatMul(Mul(MatMul(x, A), s), B))        y = MatMul(x, W + s·A·B)
//! ```
//! The sum over all links is computed in double precision and rounded once. Postcondition: the model has the
//! operators it had before `cola`, no adapters, and (unless `keep_programs`) no programs; other trainable parameters,
//! such as a new head's, stay, frozen.

use crate::cola::{Record, SiteRecord, delta, effective_weight};
use crate::{Changed, Pass};
use sartor_ir::ops::Emit;
use sartor_ir::{
    Context, DType, Graph, GraphOutput, Model, NodeId, Parameter, Result, Role, Tensor, Type, Value, bail, eval,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The options (none), and the pass.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Merge {}

impl Pass for Merge {
    fn name(&self) -> &str {
        "merge"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        let Some(record) = Record::load(model)? else {
            bail!("the model has no adapters to merge: they are inserted by the pass `cola`");
        };
        for site in &record.sites {
            merge_site(model, site).context(|| format!("node \"{}\"", site.node))?;
        }
        model.programs.clear();
        model.graph.remove_dead();
        model.remove_unused_params();
        model.params.values_mut().filter(|p| p.role.is_variable()).for_each(|p| p.role = Role::Frozen);
        Record::remove(model);
        Ok(Changed::Yes)
    }
}

fn merge_site(model: &mut Model, site: &SiteRecord) -> Result<()> {
    let Some(node) = model.graph.find_node(&site.node) else { bail!("it is no longer in the graph") };
    let slot = site.kind.weight_slot();
    let Some(weight) = model.graph.input(node, slot) else { bail!("it has no weight") };
    let merged = merged_weight(model, site, weight)?;
    let end = end_of_chain(&model.graph, site, node)?;
    let own = model.graph.param_name(weight).map(str::to_string);
    match own.filter(|_| model.graph.use_count(weight) == 1) {
        Some(name) => {
            if let Some(param) = model.params.get_mut(&name) {
                param.tensor = merged;
            }
        }
        None => {
            let ty = Type::of(&merged);
            let name = model.add_param(&format!("{}.weight", site.node), merged, Role::Frozen);
            let value = model.graph.param(&name, ty);
            model.graph.set_input(node, slot, Some(value));
        }
    }
    model.graph.replace_uses(end, Value { node, slot: 0 });
    Ok(())
}

/// The weight with every link's update added.
pub fn merged_weight(model: &Model, site: &SiteRecord, weight: Value) -> Result<Tensor> {
    let base = effective_weight(&model.graph, model, weight)?;
    // The updates are computed by a small graph of their own, in double precision.
    let mut doubles = Model::new(Graph::new("merge"));
    doubles.opsets = model.opsets.clone();
    for link in &site.links {
        for name in [&link.a, &link.b] {
            let Some(param) = model.params.get(name) else { bail!("the model has no parameter \"{name}\"") };
            let parameter = Parameter { tensor: param.tensor.cast(DType::F64)?, role: Role::Frozen };
            doubles.params.insert(name.clone(), parameter);
        }
    }
    let mut graph = Graph::new("merge");
    let mut sum = graph.add_const("weight", base.cast(DType::F64)?);
    for link in &site.links {
        let mut emit = Emit::new(&mut graph, model.opset());
        let update = delta(&mut emit, &doubles, site, link, base.shape())?;
        sum = emit.add(sum, update)?;
    }
    graph.outputs.push(GraphOutput { name: "merged".to_string(), value: sum });
    doubles.graph = graph;
    let merged = eval::run(&doubles, &HashMap::new())?;
    match merged.first() {
        Some(tensor) => tensor.cast(base.dtype()),
        None => bail!("the merged weight was not computed"),
    }
}

/// The value of the last sum of a site's chain: from the operator's output along one `Add` per link.
fn end_of_chain(graph: &Graph, site: &SiteRecord, node: NodeId) -> Result<Value> {
    let mut value = Value { node, slot: 0 };
    for link in &site.links {
        let Some(b) = graph.find_param(&link.b) else { bail!("the adapter \"{}\" is no longer in the graph", link.b) };
        let next = graph
            .uses(value)
            .into_iter()
            .map(|(reader, _)| reader)
            .find(|&reader| graph.node(reader).is("Add") && depends_within(graph, reader, b.node, 8));
        match next {
            Some(reader) => value = Value { node: reader, slot: 0 },
            None => bail!("the adapter \"{}\" is no longer beside its operator", link.b),
        }
    }
    Ok(value)
}

/// Whether a node reads `from` through at most `steps` nodes.
fn depends_within(graph: &Graph, node: NodeId, from: NodeId, steps: usize) -> bool {
    let inputs = graph.node_inputs(node);
    inputs
        .into_iter()
        .flatten()
        .any(|v| v.node == from || (steps > 0 && depends_within(graph, v.node, from, steps - 1)))
}
