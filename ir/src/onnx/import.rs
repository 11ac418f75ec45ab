//! `ModelProto` → [`Model`].
//!
//! Initializers of the main graph become parameters or constants by the rule in [`super::roles`]; a parameter that the
//! main graph does not read has no node there. Initializers that are graph inputs too (all of them before IR version 4)
//! are no inputs here. The operator set `ai.onnx` is `""`.

use super::external::ExternalFiles;
use super::import_graph::{GraphImporter, Leaf, domain};
use super::names::read_leaves;
use super::programs::{FileProgram, read_programs};
use super::proto::{self, *};
use super::roles::{ROLES_KEY, default_role, read_roles};
use crate::attr::Attributes;
use crate::error::{Context, Result};
use crate::model::{Binding, Function, Model, Parameter, Program, Role};
use crate::tensor::Tensor;
use crate::{bail, ensure};
use bytes::Bytes;
use indexmap::IndexMap;
use prost::Message;
use std::collections::{HashMap, HashSet};

/// Initializers are not graph inputs from this IR version on; older files are read as files of this version.
const OLDEST_IR: i64 = 4;

/// Makes a model of a message.
pub(super) fn import(proto: ModelProto, files: &ExternalFiles) -> Result<Model> {
    let Some(mut main) = proto.graph else { bail!("the model has no graph") };
    if proto.ir_version < OLDEST_IR {
        drop_initializer_inputs(&mut main);
    }
    let opsets = read_opsets(proto.opset_import, proto.ir_version)?;
    let mut meta = proto::pairs(proto.metadata_props);
    let mut params = Params::new(&main, &proto.training_info, take_entry(&mut meta, ROLES_KEY))?;
    let programs = match proto.training_info.is_empty() {
        true => Vec::new(),
        false => read_programs(proto.training_info, &main),
    };
    let graph = GraphImporter::new(files, HashMap::new())
        .read(main, &mut |name: &str, tensor: &Tensor| params.main_initializer(name, tensor))?;
    let mut model = Model { opsets, meta, ..Model::new(graph) };
    for program in programs {
        let name = program.name.clone();
        let program = read_program(program, &mut params, files).context(|| format!("program \"{name}\""))?;
        model.programs.insert(name, program);
    }
    params.all_roles_used()?;
    model.params = params.params;
    model.functions = proto.functions.into_iter().map(|f| read_function(f, files)).collect::<Result<_>>()?;
    model.ir_version = proto.ir_version.max(OLDEST_IR);
    (model.producer_name, model.producer_version) = (proto.producer_name, proto.producer_version);
    (model.domain, model.model_version, model.doc) = (proto.domain, proto.model_version, proto.doc_string);
    let extra = ModelProto { configuration: proto.configuration, ..ModelProto::default() };
    model.extra = Bytes::from(extra.encode_to_vec());
    Ok(model)
}

/// Before IR version 4 every initializer had to be an input too, which says nothing about it.
fn drop_initializer_inputs(graph: &mut GraphProto) {
    let given: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    graph.input.retain(|input| !given.contains(input.name.as_str()));
}

/// The parameters, while the initializers are read.
struct Params {
    params: IndexMap<String, Parameter>,
    roles: HashMap<String, Role>,
    bound: HashSet<String>,
    read: HashSet<String>,
    main: HashSet<String>,
}

impl Params {
    fn new(main: &GraphProto, infos: &[TrainingInfoProto], roles: Option<String>) -> Result<Params> {
        let bindings = infos.iter().flat_map(|i| i.update_binding.iter().chain(&i.initialization_binding));
        Ok(Params {
            params: IndexMap::new(),
            roles: read_roles(roles.as_deref().unwrap_or(""))?,
            bound: bindings.map(|b| b.key.clone()).collect(),
            read: read_leaves(main).into_iter().map(String::from).collect(),
            main: main.initializer.iter().map(|t| t.name.clone()).collect(),
        })
    }
    fn role(&self, name: &str, tensor: &Tensor) -> Option<Role> {
        let default =
            || default_role(tensor.dtype(), tensor.rank(), self.bound.contains(name), self.read.contains(name));
        self.roles.get(name).copied().or_else(default)
    }
    fn main_initializer(&mut self, name: &str, tensor: &Tensor) -> Result<Leaf> {
        let Some(role) = self.role(name, tensor) else { return Ok(Leaf::Const) };
        self.insert(name, tensor, role)?;
        Ok(if self.read.contains(name) { Leaf::Param } else { Leaf::Absent })
    }
    /// An initializer of a program: one of the main graph that it reads, or its own, which is a parameter if bound.
    fn program_initializer(&mut self, name: &str, tensor: &Tensor) -> Result<Leaf> {
        if self.main.contains(name) {
            return Ok(if self.params.contains_key(name) { Leaf::Param } else { Leaf::Const });
        }
        if !self.bound.contains(name) {
            return Ok(Leaf::Const);
        }
        self.insert(name, tensor, Role::State)?;
        Ok(Leaf::Param)
    }
    fn insert(&mut self, name: &str, tensor: &Tensor, role: Role) -> Result<()> {
        let parameter = Parameter { tensor: tensor.clone(), role };
        ensure!(self.params.insert(name.to_string(), parameter).is_none(), "two initializers are named \"{name}\"");
        Ok(())
    }
    fn all_roles_used(&self) -> Result<()> {
        match self.roles.keys().filter(|name| !self.params.contains_key(*name)).min() {
            None => Ok(()),
            Some(name) => bail!("the metadata entry {ROLES_KEY} names \"{name}\", which is no initializer"),
        }
    }
}

fn read_program(program: FileProgram, params: &mut Params, files: &ExternalFiles) -> Result<Program> {
    let FileProgram { graph, bindings, renamed, .. } = program;
    let output = |name: String| renamed.get(&name).cloned().unwrap_or(name);
    let bindings: Vec<Binding> =
        bindings.into_iter().map(|b| Binding { output: output(b.value), param: b.key }).collect();
    let mut classify = |name: &str, tensor: &Tensor| params.program_initializer(name, tensor);
    let graph = GraphImporter::new(files, renamed).read(graph, &mut classify)?;
    for Binding { output, param } in &bindings {
        ensure!(params.params.contains_key(param), "it is bound to \"{param}\", which is no initializer");
        ensure!(graph.find_output(output).is_some(), "it binds the output \"{output}\", which it does not have");
    }
    Ok(Program { graph, bindings })
}

fn read_function(proto: FunctionProto, files: &ExternalFiles) -> Result<Function> {
    let place = format!("function \"{}::{}\"", proto.domain, proto.name);
    let read = |mut proto: FunctionProto| -> Result<Function> {
        let mut importer = GraphImporter::new(files, HashMap::new());
        let mut defaults = Attributes::new();
        for attribute in std::mem::take(&mut proto.attribute_proto) {
            let name = attribute.name.clone();
            defaults.set(&name, importer.attribute(attribute).context(|| format!("attribute `{name}`"))?);
        }
        Ok(Function {
            domain: domain(std::mem::take(&mut proto.domain)),
            name: proto.name.clone(),
            overload: std::mem::take(&mut proto.overload),
            attributes: std::mem::take(&mut proto.attribute),
            defaults,
            opsets: opset_map(std::mem::take(&mut proto.opset_import))?,
            graph: importer.read_function(proto)?,
        })
    };
    read(proto).context(|| place)
}

fn opset_map(imports: Vec<OperatorSetIdProto>) -> Result<IndexMap<String, i64>> {
    let mut opsets = IndexMap::new();
    for import in imports {
        let name = domain(import.domain);
        let old = opsets.insert(name.clone(), import.version);
        ensure!(
            old.is_none_or(|v| v == import.version),
            "the operator set \"{name}\" is imported in two versions, {} and {}",
            old.unwrap_or(0),
            import.version
        );
    }
    Ok(opsets)
}

fn read_opsets(imports: Vec<OperatorSetIdProto>, ir_version: i64) -> Result<IndexMap<String, i64>> {
    // Operator sets came with IR version 3.
    if imports.is_empty() && ir_version < 3 {
        return Ok(IndexMap::from([(String::new(), 1)]));
    }
    ensure!(!imports.is_empty(), "the model imports no operator set");
    opset_map(imports)
}

fn take_entry(meta: &mut Vec<(String, String)>, key: &str) -> Option<String> {
    let at = meta.iter().position(|(k, _)| k == key)?;
    Some(meta.remove(at).1)
}
