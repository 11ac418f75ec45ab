//! [`Model`] → `ModelProto`.
//!
//! All parameters are initializers of the inference graph, those that only programs read after the others. Programs are
//! `training_info`, roles an entry of the metadata where the file alone would not tell them.

use super::export_graph::{GraphExporter, Outside, Place, damaged};
use super::names::defined_names;
use super::programs::INIT_PREFIX;
use super::proto::{self, *};
use super::roles::{ROLES_KEY, default_role, write_roles};
use crate::SARTOR_DOMAIN;
use crate::attr::Attribute;
use crate::error::{Context, Result};
use crate::graph::{Graph, NodeKind, Value};
use crate::model::{Function, Model, Program, Role};
use crate::tensor::Tensor;
use indexmap::IndexMap;
use prost::Message;
use std::collections::HashSet;

/// The IR versions that brought what a model may hold.
const FUNCTIONS_IR: i64 = 8;
const TRAINING_IR: i64 = 7;

/// Makes the message of a model. Tensors' bytes are shared, not copied.
pub(super) fn export(model: &Model) -> Result<ModelProto> {
    let mut exporter = GraphExporter { params: &model.params, outside: None, domains: HashSet::new() };
    let graph = exporter.write(&model.graph, Place::Main, &[])?;
    let functions = model.functions.iter().map(|f| write_function(f, &mut exporter)).collect::<Result<_>>()?;
    let outside = outside(&graph, &model.graph);
    let mut exporter = GraphExporter { outside: Some((&outside, "")), ..exporter };
    let mut training_info: IndexMap<&str, TrainingInfoProto> = IndexMap::new();
    for (name, program) in &model.programs {
        exporter.outside = Some((&outside, name));
        write_program(name, program, &mut exporter, &mut training_info).context(|| format!("program \"{name}\""))?;
    }
    let extra = ModelProto::decode(model.extra.clone()).map_err(damaged)?;
    let mut metadata_props = proto::entries(&model.meta);
    metadata_props.extend(roles_entry(model));
    let ir_version = match (model.functions.is_empty(), model.programs.is_empty()) {
        (false, _) => model.ir_version.max(FUNCTIONS_IR),
        (true, false) => model.ir_version.max(TRAINING_IR),
        _ => model.ir_version,
    };
    // A merged model has none left of our operators that its training steps had, and other tools need not be asked about a domain
    // that they do not know.
    let mut opsets = model.opsets.clone();
    if exporter.domains.contains(SARTOR_DOMAIN) {
        opsets.entry(SARTOR_DOMAIN.to_string()).or_insert(1);
    } else {
        opsets.shift_remove(SARTOR_DOMAIN);
    }
    Ok(ModelProto {
        ir_version,
        producer_name: model.producer_name.clone(),
        producer_version: model.producer_version.clone(),
        domain: model.domain.clone(),
        model_version: model.model_version,
        doc_string: model.doc.clone(),
        graph: Some(graph),
        opset_import: write_opsets(&opsets),
        metadata_props,
        training_info: training_info.into_values().collect(),
        functions,
        configuration: extra.configuration,
    })
}

fn outside(proto: &GraphProto, graph: &Graph) -> Outside {
    let mut names = HashSet::new();
    defined_names(proto, &mut names);
    let constant = |id| {
        let value = Value { node: id, slot: 0 };
        match &graph.node(id).kind {
            NodeKind::Const(tensor) => Some((graph.value_name(value).to_string(), tensor.clone())),
            _ => None,
        }
    };
    let inputs = graph.inputs().map(|v| (graph.value_name(v).to_string(), graph.ty(v).cloned()));
    let initializers: HashSet<&str> = proto.initializer.iter().map(|t| t.name.as_str()).collect();
    Outside {
        names: names.iter().map(|n| n.to_string()).collect(),
        // One that was renamed cannot be seen under its old name.
        constants: graph.node_ids().filter_map(constant).filter(|(n, _)| initializers.contains(n.as_str())).collect(),
        inputs: inputs.collect(),
    }
}

fn write_program<'m>(
    name: &'m str,
    program: &Program,
    exporter: &mut GraphExporter,
    infos: &mut IndexMap<&'m str, TrainingInfoProto>,
) -> Result<()> {
    let mut graph = exporter.write(&program.graph, Place::Program, &[])?;
    let bindings = program
        .bindings
        .iter()
        .map(|b| StringStringEntryProto { key: b.param.clone(), value: exporter.outside_name(&b.output) });
    let bindings = bindings.collect();
    match name.strip_prefix(INIT_PREFIX) {
        Some(of) => {
            graph.name = of.to_string();
            let info = infos.entry(of).or_default();
            (info.initialization, info.initialization_binding) = (Some(graph), bindings);
        }
        None => {
            graph.name = name.to_string();
            let info = infos.entry(name).or_default();
            (info.algorithm, info.update_binding) = (Some(graph), bindings);
        }
    }
    Ok(())
}

/// The entry with the roles that the file would not tell otherwise.
fn roles_entry(model: &Model) -> Option<StringStringEntryProto> {
    let bound: HashSet<&str> = model.programs.values().flat_map(|p| &p.bindings).map(|b| b.param.as_str()).collect();
    let reads = |id| match &model.graph.node(id).kind {
        NodeKind::Param(name) if model.graph.use_count(Value { node: id, slot: 0 }) > 0 => Some(name.as_str()),
        _ => None,
    };
    let read: HashSet<&str> = model.graph.node_ids().filter_map(reads).collect();
    let default = |name: &str, tensor: &Tensor| -> Option<Role> {
        default_role(tensor.dtype(), tensor.rank(), bound.contains(name), read.contains(name))
    };
    let params = model.params.iter().map(|(name, p)| (name.as_str(), p));
    let mut told = params.filter(|(name, p)| default(name, &p.tensor) != Some(p.role)).peekable();
    told.peek()?;
    let value = write_roles(told.map(|(name, p)| (name, p.role)));
    Some(StringStringEntryProto { key: ROLES_KEY.to_string(), value })
}

fn write_function(function: &Function, exporter: &mut GraphExporter) -> Result<FunctionProto> {
    let place = || format!("function \"{}::{}\"", function.domain, function.name);
    let graph = exporter.write(&function.graph, Place::Function, &[]).context(place)?;
    let attribute = |(name, value): (&String, &Attribute)| exporter.attribute(name, value, &[]);
    let attribute_proto = function.defaults.0.iter().map(attribute).collect::<Result<_>>()?;
    let names = |infos: Vec<ValueInfoProto>| infos.into_iter().map(|i| i.name).collect();
    Ok(FunctionProto {
        name: function.name.clone(),
        domain: function.domain.clone(),
        overload: function.overload.clone(),
        attribute: function.attributes.clone(),
        attribute_proto,
        opset_import: write_opsets(&function.opsets),
        input: names(graph.input),
        output: names(graph.output),
        node: graph.node,
        value_info: graph.value_info,
        doc_string: graph.doc_string,
        metadata_props: graph.metadata_props,
    })
}

fn write_opsets(opsets: &IndexMap<String, i64>) -> Vec<OperatorSetIdProto> {
    let set = |(domain, &version): (&String, &i64)| OperatorSetIdProto { domain: domain.clone(), version };
    opsets.iter().map(set).collect()
}
