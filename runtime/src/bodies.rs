//! Bodies of `If`, `Loop` and `Scan` by plans of their own: a session for every body, whose inputs are the body's and its captures. Its plans are kept
//! by shapes like those of any session, so a loop plans once.
//!
//! What goes in and out are host tensors. A body that cannot be planned is run by the reference evaluation, as a graph would be.

use crate::params::Params;
use crate::session::{self, Session, SessionOptions};
use sartor_ir::{Dim, Graph, NodeKind, Result, Tensor, Type, Value};
use std::cell::RefCell;
use std::collections::HashMap;

/// The sessions of the bodies of a graph.
#[derive(Default)]
pub struct Bodies {
    sessions: RefCell<HashMap<Key, Body>>,
}

/// The body's address, since the graph of a session stays where it is, and the ranks of its inputs and captures.
type Key = (usize, Vec<usize>);

struct Body {
    session: Session,
    /// The names of its inputs in the body, then of what it captures, by number.
    inputs: Vec<String>,
    captures: HashMap<usize, String>,
}

impl std::fmt::Debug for Bodies {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Bodies({})", self.sessions.borrow().len())
    }
}

/// More plans of one body than this, and it is run by the reference evaluation where it has none: a loop whose shapes grow in every iteration would
/// only plan.
const MAX_PLANS: usize = 64;

impl Bodies {
    /// Runs a body: see [`sartor_ir::ops::RunBody`].
    pub fn run(
        &self,
        body: &Graph,
        (opset, threads): (i64, usize),
        params: &Params,
        (seed, step): (u64, u64),
        inputs: Vec<Tensor>,
        captures: &HashMap<Value, Tensor>,
    ) -> Result<Vec<Tensor>> {
        let mut captured: Vec<(Value, usize)> =
            captures.iter().map(|(value, tensor)| (*value, tensor.rank())).collect();
        captured.sort_unstable();
        let ranks = inputs.iter().map(Tensor::rank).chain(captured.into_iter().map(|(_, rank)| rank)).collect();
        let key = (std::ptr::from_ref(body) as usize, ranks);
        // Taken out while it runs, since a body may hold others.
        let taken = self.sessions.borrow_mut().remove(&key);
        let mut own = match taken {
            Some(own) => own,
            None => Body::new(body, opset, threads, &inputs, captures),
        };
        let mut feeds: HashMap<String, Tensor> = own.inputs.iter().cloned().zip(inputs).collect();
        for (value, tensor) in captures {
            if let NodeKind::Capture(index) = body.node(value.node).kind
                && let Some(name) = own.captures.get(&index)
            {
                feeds.insert(name.clone(), tensor.clone());
            }
        }
        let found = own.session.outputs(params, &feeds, session::Key { seed, step }, MAX_PLANS);
        self.sessions.borrow_mut().insert(key, own);
        found
    }
    /// Adds what the bodies ran by the reference evaluation in their last runs, and which of them as a whole.
    pub fn add_reference(&self, counts: &mut std::collections::BTreeMap<String, usize>) {
        for body in self.sessions.borrow().values() {
            let report = body.session.report();
            for (name, count) in report.reference {
                *counts.entry(name).or_insert(0) += count;
            }
            if let Some(reason) = report.unplanned {
                *counts.entry(format!("body, from where {reason}")).or_insert(0) += 1;
            }
        }
    }
}

impl Body {
    /// What a body declares of shapes is what its exporter saw in one iteration: its inputs have those of each run.
    fn new(body: &Graph, opset: i64, threads: usize, inputs: &[Tensor], captured: &HashMap<Value, Tensor>) -> Body {
        let mut graph = body.clone();
        let own: Vec<Value> = graph.inputs().collect();
        for (value, tensor) in own.iter().zip(inputs) {
            graph.set_ty(*value, Some(open(tensor)));
        }
        let inputs = own.into_iter().map(|value| graph.value_name(value).to_string()).collect();
        let mut captures: HashMap<usize, (String, Value)> = HashMap::new();
        for (old, tensor) in captured {
            let NodeKind::Capture(index) = graph.node(old.node).kind else { continue };
            let new = match captures.get(&index) {
                Some((_, value)) => *value,
                None => {
                    let name = graph.fresh_name(&format!("capture/{index}"));
                    let value = graph.add_input(&name, open(tensor));
                    captures.insert(index, (name, value));
                    value
                }
            };
            graph.substitute(*old, new);
            graph.remove(old.node);
        }
        let captures = captures.into_iter().map(|(index, (name, _))| (index, name)).collect();
        let session = Session::of(graph, Vec::new(), opset, SessionOptions { threads });
        Body { session, inputs, captures }
    }
}

/// The type of a tensor, its axes of any length.
fn open(tensor: &Tensor) -> Type {
    Type::Tensor { dtype: tensor.dtype(), shape: Some(vec![Dim::Unknown; tensor.rank()]) }
}
