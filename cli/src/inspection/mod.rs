//! What there is to say about a model: its operators, parameters, costs, modules and programs.

pub mod blocks;
mod cost;
mod modules;

pub use cost::Cost;
pub use modules::Module;

use indexmap::IndexMap;
use sartor_ir::ops::{self, Gradient};
use sartor_ir::{Graph, Model, Operator, Result, Role, Type, Value};
use sartor_passes::Registry;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};

/// See the [module](self).
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The tool that wrote the file.
    pub producer: String,
    /// The file's IR version.
    pub ir_version: i64,
    /// Domain → version.
    pub opsets: IndexMap<String, i64>,
    /// The model's own metadata.
    pub metadata: IndexMap<String, String>,
    /// The inputs in order.
    pub inputs: Vec<Port>,
    /// The outputs in order.
    pub outputs: Vec<Port>,
    /// The names of dimensions that inputs leave open, and where they stand.
    pub dynamic_axes: IndexMap<String, Vec<String>>,
    /// The operators of the inference graph and its subgraphs, most frequent first.
    pub operators: Vec<OperatorRow>,
    /// Numbers of elements by role; constants are counted under `constant`.
    pub parameters: IndexMap<&'static str, ParameterRow>,
    /// All parameters and constants together.
    pub total_parameters: u64,
    /// Floating-point operations of one run.
    pub flops: Cost,
    /// Operators that training cannot go through.
    pub without_gradient: Vec<String>,
    /// Operators that cannot be run.
    pub without_evaluation: Vec<String>,
    /// The module tree, as far as the exporter left it.
    pub modules: Vec<Module>,
    /// The model's functions, `domain::name`.
    pub functions: Vec<String>,
    /// The training programs.
    pub programs: Vec<ProgramRow>,
}

/// A named value and its type.
#[derive(Debug, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its type, `float[batch, 384]`.
    #[serde(rename = "type")]
    pub ty: String,
}

/// One operator.
#[derive(Debug, Serialize)]
pub struct OperatorRow {
    /// `MatMul`, `com.microsoft::FusedMatMul`.
    pub operator: String,
    /// How often it occurs.
    pub count: usize,
    /// Floating-point operations of all its nodes outside of subgraphs.
    pub flops: Option<u64>,
}

/// The parameters of one role.
#[derive(Debug, Default, Serialize)]
pub struct ParameterRow {
    /// Tensors.
    pub tensors: usize,
    /// Elements.
    pub elements: u64,
    /// Bytes.
    pub bytes: u64,
}

/// One program.
#[derive(Debug, Serialize)]
pub struct ProgramRow {
    /// Its name.
    pub name: String,
    /// Its operators.
    pub operators: usize,
    /// Its inputs.
    pub inputs: Vec<String>,
    /// Its outputs that are not written to parameters.
    pub outputs: Vec<String>,
    /// How many parameters it writes.
    pub updates: usize,
}

/// Looks at a model. `dims` are numbers for symbolic dimensions, 1 for those not given.
pub fn inspect(model: &Model, registry: &Registry, dims: &HashMap<String, i64>) -> Result<Inspection> {
    let graph = &model.graph;
    let flops = cost::count(model, registry, dims);
    let mut operators = operator_rows(graph);
    for row in &mut operators {
        row.flops = flops.by_operator.get(&row.operator).copied();
    }
    let parameters = parameter_rows(model);
    Ok(Inspection {
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_string(),
        ir_version: model.ir_version,
        opsets: model.opsets.iter().map(|(d, v)| (domain_name(d), *v)).collect(),
        metadata: model.meta.iter().cloned().collect(),
        inputs: graph.inputs().map(|v| port(graph, graph.value_name(v), v)).collect(),
        outputs: graph.outputs.iter().map(|o| port(graph, &o.name, o.value)).collect(),
        dynamic_axes: dynamic_axes(graph),
        without_gradient: operators_where(graph, &|op| {
            ops::of(op).is_none_or(|def| matches!(def.grad, Gradient::Missing) && def.decompose.is_none())
        }),
        without_evaluation: operators_where(graph, &|op| ops::of(op).is_none_or(|def| !def.is_evaluated())),
        operators,
        total_parameters: parameters.values().map(|row| row.elements).sum(),
        modules: modules::tree(model, &flops),
        parameters,
        flops,
        functions: model.functions.iter().map(|f| format!("{}::{}", f.domain, f.name)).collect(),
        programs: program_rows(model),
    })
}

fn domain_name(domain: &str) -> String {
    if domain.is_empty() { "ai.onnx".to_string() } else { domain.to_string() }
}

fn port(graph: &Graph, name: &str, value: Value) -> Port {
    Port { name: name.to_string(), ty: graph.ty(value).map_or("unknown".to_string(), Type::to_string) }
}

fn dynamic_axes(graph: &Graph) -> IndexMap<String, Vec<String>> {
    let mut axes: IndexMap<String, Vec<String>> = IndexMap::new();
    for value in graph.inputs() {
        let shape = graph.ty(value).and_then(Type::shape).unwrap_or_default();
        for (axis, dim) in shape.iter().enumerate().filter(|(_, dim)| dim.known().is_none()) {
            axes.entry(dim.to_string()).or_default().push(format!("{}[{axis}]", graph.value_name(value)));
        }
    }
    axes
}

/// Runs a function on every operator of a graph and of its subgraphs.
fn each_operator<'a>(graph: &'a Graph, run: &mut dyn FnMut(&'a Operator)) {
    let mut graphs = vec![graph];
    while let Some(graph) = graphs.pop() {
        for op in graph.node_ids().filter_map(|id| graph.node(id).op()) {
            run(op);
            graphs.extend(op.attrs.graphs().map(|(_, g)| g));
        }
    }
}

fn operator_rows(graph: &Graph) -> Vec<OperatorRow> {
    let mut counts: IndexMap<String, usize> = IndexMap::new();
    each_operator(graph, &mut |op| *counts.entry(op.full_name()).or_insert(0) += 1);
    let row = |(operator, count)| OperatorRow { operator, count, flops: None };
    let mut rows: Vec<OperatorRow> = counts.into_iter().map(row).collect();
    rows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.operator.cmp(&b.operator)));
    rows
}

fn operators_where(graph: &Graph, wanted: &dyn Fn(&Operator) -> bool) -> Vec<String> {
    let mut names = BTreeSet::new();
    each_operator(graph, &mut |op| {
        if wanted(op) {
            names.insert(op.full_name());
        }
    });
    names.into_iter().collect()
}

fn parameter_rows(model: &Model) -> IndexMap<&'static str, ParameterRow> {
    let mut rows: IndexMap<&'static str, ParameterRow> = IndexMap::new();
    let mut add = |role: Role, tensor: &sartor_ir::Tensor| {
        let row = rows.entry(role.name()).or_default();
        row.tensors += 1;
        row.elements += tensor.len() as u64;
        row.bytes += tensor.bytes().len() as u64;
    };
    model.params.values().for_each(|p| add(p.role, &p.tensor));
    let mut graphs = vec![&model.graph];
    while let Some(graph) = graphs.pop() {
        for node in graph.node_ids().map(|id| graph.node(id)) {
            node.constant().into_iter().for_each(|tensor| add(Role::Constant, &tensor));
            graphs.extend(node.op().into_iter().flat_map(|op| op.attrs.graphs().map(|(_, g)| g)));
        }
    }
    rows
}

fn program_rows(model: &Model) -> Vec<ProgramRow> {
    let row = |(name, program): (&String, &sartor_ir::Program)| {
        let graph = &program.graph;
        let bound = |output: &str| program.bindings.iter().any(|b| b.output == output);
        ProgramRow {
            name: name.clone(),
            operators: graph.op_count(),
            inputs: graph.inputs().map(|v| graph.value_name(v).to_string()).collect(),
            outputs: graph.outputs.iter().filter(|o| !bound(&o.name)).map(|o| o.name.clone()).collect(),
            updates: program.bindings.len(),
        }
    };
    model.programs.iter().map(row).collect()
}
