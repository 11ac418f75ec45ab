//! Programs and ONNX's `training_info`.
//!
//! A program is the `algorithm` of one `TrainingInfoProto`; the graph's name is the program's, and `update_binding`
//! maps parameters to outputs. An `initialization` is the program `init:NAME`. In ONNX an algorithm is read *together
//! with* the inference graph: it sees that graph's inputs, initializers and values, and must not define a name twice.
//! Here, a program stands for itself. So on reading, a program gets its own copy of whatever it sees of the inference
//! graph; on writing, inputs, parameters and equal constants that stand in the inference graph are left out, and a name
//! that is taken there is written as `PROGRAM/name`, which reading undoes.

use super::names::{defined_names, free_names, node_reads, sparse_name};
use super::proto::*;
use std::collections::{HashMap, HashSet};

/// What the name of an initialization's program begins with.
pub const INIT_PREFIX: &str = "init:";

/// A program as it stands in a file.
pub(super) struct FileProgram {
    /// Its name; unique.
    pub name: String,
    /// Its graph, with what it reads of the inference graph.
    pub graph: GraphProto,
    /// Parameter → output.
    pub bindings: Vec<StringStringEntryProto>,
    /// Names as they stand in the file → names in the program.
    pub renamed: HashMap<String, String>,
}

/// The programs of a file.
pub(super) fn read_programs(infos: Vec<TrainingInfoProto>, main: &GraphProto) -> Vec<FileProgram> {
    let mut main_names = HashSet::new();
    defined_names(main, &mut main_names);
    let mut taken = HashSet::new();
    let mut programs = Vec::new();
    for info in infos {
        let there = |g: &GraphProto| *g != GraphProto::default();
        let algorithm = info.algorithm.filter(there);
        let initialization = info.initialization.filter(there);
        let named = algorithm.as_ref().or(initialization.as_ref()).map_or("", |g| &g.name);
        let name = unique(if named.is_empty() { "program" } else { named }, &mut taken);
        if let Some(graph) = algorithm {
            programs.push(read_program(name.clone(), graph, info.update_binding, main, &main_names));
        }
        if let Some(graph) = initialization {
            let name = format!("{INIT_PREFIX}{name}");
            programs.push(read_program(name, graph, info.initialization_binding, main, &main_names));
        }
    }
    programs
}

fn unique(hint: &str, taken: &mut HashSet<String>) -> String {
    let numbered = (1..).map(|i| format!("{hint}_{i}"));
    let mut names = std::iter::once(hint.to_string()).chain(numbered);
    names.find(|name| taken.insert(name.clone())).unwrap_or_default()
}

fn read_program(
    name: String,
    graph: GraphProto,
    bindings: Vec<StringStringEntryProto>,
    main: &GraphProto,
    main_names: &HashSet<&str>,
) -> FileProgram {
    let renamed = without_prefix(&name, &graph, main_names);
    let mut graph = with_what_it_reads(graph, main);
    graph.name = name.clone();
    FileProgram { name, graph, bindings, renamed }
}

/// The names `PROGRAM/x` of a program → `x`, where `x` is a name of the inference graph and free in the program.
fn without_prefix(program: &str, graph: &GraphProto, main_names: &HashSet<&str>) -> HashMap<String, String> {
    let mut own = HashSet::new();
    defined_names(graph, &mut own);
    let free = free_names(graph);
    let bare = |name: &str| {
        let bare = name.strip_prefix(program)?.strip_prefix('/')?;
        let clear = main_names.contains(bare) && !own.contains(bare) && !free.contains(bare);
        clear.then(|| (name.to_string(), bare.to_string()))
    };
    own.iter().filter_map(|name| bare(name)).collect()
}

/// A program with copies of the inputs, initializers and nodes of the inference graph that it reads.
fn with_what_it_reads(program: GraphProto, main: &GraphProto) -> GraphProto {
    let mut wanted: HashSet<String> = free_names(&program).into_iter().map(String::from).collect();
    let mut nodes = Vec::new();
    for node in main.node.iter().rev() {
        if node.output.iter().any(|name| wanted.contains(name)) {
            wanted.extend(node_reads(node).into_iter().map(String::from));
            nodes.push(node.clone());
        }
    }
    nodes.reverse();
    let wanted_info = |info: &&ValueInfoProto| wanted.contains(&info.name);
    let given: HashSet<&str> = main.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs = main.input.iter().filter(wanted_info).filter(|i| !given.contains(i.name.as_str())).cloned();
    let initializers = main.initializer.iter().filter(|t| wanted.contains(&t.name)).cloned();
    let sparse = main.sparse_initializer.iter().filter(|s| wanted.contains(sparse_name(s))).cloned();
    let types = main.value_info.iter().chain(&main.output).filter(wanted_info).cloned();
    GraphProto {
        node: nodes.into_iter().chain(program.node).collect(),
        input: inputs.chain(program.input).collect(),
        initializer: initializers.chain(program.initializer).collect(),
        sparse_initializer: sparse.chain(program.sparse_initializer).collect(),
        value_info: types.chain(program.value_info).collect(),
        ..program
    }
}
