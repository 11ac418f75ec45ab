//! What a graph would need that the table does not have: all of it at once, each with its node, and names that are near.

use crate::error::{Error, Result};
use crate::graph::Graph;

/// So many are told.
const MOST: usize = 20;

/// An error that names every node whose operator cannot be evaluated, those in subgraphs included.
pub fn require_evaluation(graph: &Graph) -> Result<()> {
    let mut errors = Vec::new();
    collect(graph, &mut errors);
    if errors.len() > MOST {
        let more = errors.len() - MOST;
        errors.truncate(MOST);
        errors.push(Error::msg(format!("and {more} more nodes")));
    }
    Error::all(errors)
}

fn collect(graph: &Graph, errors: &mut Vec<Error>) {
    for id in graph.topo_ops() {
        let Some(op) = graph.node(id).op() else { continue };
        let name = op.full_name();
        match super::of(op) {
            None => {
                let near: Vec<&str> = super::all().filter(|def| def.name == op.name).map(|def| def.domain).collect();
                let elsewhere = match near.first() {
                    Some(&"") => "; ONNX's own domain has one of this name".to_string(),
                    Some(domain) => format!("; the domain \"{domain}\" has one of this name"),
                    None => String::new(),
                };
                let text = format!("the operator {name} is not known, so it cannot be run{elsewhere}");
                errors.push(Error::msg(text).at(graph.node(id).label()));
            }
            Some(def) if !def.is_evaluated() => {
                let hint = ": which tensors its sequence holds is known only when it runs, or it is an output";
                let why = if super::sequence::concerns(op) { hint } else { "" };
                let text = format!("the operator {name} has no evaluation{why}");
                errors.push(Error::msg(text).at(graph.node(id).label()));
            }
            Some(_) => {}
        }
        op.attrs.graphs().for_each(|(_, body)| collect(body, errors));
    }
}
