//! Names in the messages: which a graph defines, and which it reads from outside.

use super::proto::*;
use std::collections::HashSet;

/// The name of a sparse initializer is that of its values.
pub(super) fn sparse_name(sparse: &SparseTensorProto) -> &str {
    sparse.values.as_ref().map_or("", |v| &v.name)
}

/// The subgraphs of a node.
pub(super) fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs))
}

/// All names that a graph and its subgraphs define.
pub(super) fn defined_names<'a>(graph: &'a GraphProto, into: &mut HashSet<&'a str>) {
    into.extend(graph.input.iter().map(|v| v.name.as_str()));
    into.extend(graph.initializer.iter().map(|t| t.name.as_str()));
    into.extend(graph.sparse_initializer.iter().map(sparse_name));
    for node in &graph.node {
        into.extend(node.output.iter().map(String::as_str));
        subgraphs(node).for_each(|g| defined_names(g, into));
    }
    into.remove("");
}

/// The names that a graph reads and does not define itself: all but `""`.
pub(super) fn free_names(graph: &GraphProto) -> HashSet<&str> {
    let mut free = HashSet::new();
    collect_free(graph, &mut Vec::new(), true, &mut free);
    free
}

/// The names of its own initializers that a graph reads, together with its free names.
pub(super) fn read_leaves(graph: &GraphProto) -> HashSet<&str> {
    let mut free = HashSet::new();
    collect_free(graph, &mut Vec::new(), false, &mut free);
    free
}

/// The names that a node reads, those that its subgraphs read from outside included.
pub(super) fn node_reads(node: &NodeProto) -> HashSet<&str> {
    let mut free: HashSet<&str> = node.input.iter().map(String::as_str).filter(|n| !n.is_empty()).collect();
    subgraphs(node).for_each(|g| free.extend(free_names(g)));
    free
}

fn collect_free<'a>(
    graph: &'a GraphProto,
    scopes: &mut Vec<HashSet<&'a str>>,
    leaves_are_bound: bool,
    free: &mut HashSet<&'a str>,
) {
    let mut own: HashSet<&str> = HashSet::new();
    if leaves_are_bound {
        own.extend(graph.input.iter().map(|v| v.name.as_str()));
        own.extend(graph.initializer.iter().map(|t| t.name.as_str()));
        own.extend(graph.sparse_initializer.iter().map(sparse_name));
    }
    scopes.push(own);
    let mut read = |name: &'a str, scopes: &[HashSet<&str>]| {
        if !name.is_empty() && !scopes.iter().any(|s| s.contains(name)) {
            free.insert(name);
        }
    };
    for node in &graph.node {
        node.input.iter().for_each(|name| read(name, scopes));
        let mut inner = HashSet::new();
        subgraphs(node).for_each(|g| collect_free(g, scopes, true, &mut inner));
        inner.into_iter().for_each(|name| read(name, scopes));
        if let Some(own) = scopes.last_mut() {
            own.extend(node.output.iter().map(String::as_str));
        }
    }
    graph.output.iter().for_each(|v| read(&v.name, scopes));
    scopes.pop();
}
