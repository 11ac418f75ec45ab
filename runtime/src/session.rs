//! A session: one graph of a model (the inference graph or a program), made ready to run.

use crate::params::Params;
use sartor_ir::{Binding, Graph, Model, Result, Tensor, bail, eval};
use std::collections::HashMap;

/// What keys the random numbers of a run: its seed and the number of the step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Key {
    /// The seed of the run.
    pub seed: u64,
    /// The step.
    pub step: u64,
}

/// How a session runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionOptions {
    /// The number of threads. Results do not depend on it.
    pub threads: usize,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions { threads: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// See the [module](self).
pub struct Session {
    graph: Graph,
    bindings: Vec<Binding>,
    opset: i64,
}

impl Session {
    /// For the inference graph.
    pub fn new(model: &Model, _options: SessionOptions) -> Result<Session> {
        Ok(Session { graph: model.graph.clone(), bindings: Vec::new(), opset: model.opset() })
    }
    /// For a program.
    pub fn program(model: &Model, name: &str, _options: SessionOptions) -> Result<Session> {
        let Some(program) = model.programs.get(name) else { bail!("the model has no program \"{name}\"") };
        Ok(Session { graph: program.graph.clone(), bindings: program.bindings.clone(), opset: model.opset() })
    }
    /// The names of the inputs, in order.
    pub fn input_names(&self) -> Vec<&str> {
        self.graph.inputs().map(|v| self.graph.value_name(v)).collect()
    }
    /// Runs once. Outputs that are bound to parameters are written there; the others are returned by name.
    pub fn run(
        &mut self,
        params: &mut Params,
        inputs: &HashMap<String, Tensor>,
        key: Key,
    ) -> Result<HashMap<String, Tensor>> {
        let lookup = |name: &str| params.get(name).cloned();
        let env = eval::Environment { opset: self.opset, seed: key.seed, step: key.step, params: &lookup };
        let outputs = eval::run_graph(&self.graph, &env, inputs)?;
        let mut named: HashMap<String, Tensor> =
            self.graph.outputs.iter().map(|o| o.name.clone()).zip(outputs).collect();
        for binding in &self.bindings {
            if let Some(tensor) = named.remove(&binding.output) {
                params.set(&binding.param, tensor)?;
            }
        }
        Ok(named)
    }
}
