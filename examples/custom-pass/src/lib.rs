//! `probabilities`: gives a classifier an output of probabilities, calibrated by a temperature.
//!
//! Before → after, for `probabilities(temperature=2)`:
//! ```text
//! (…) => (logits)        (…) => (logits, probabilities)
//!                        probabilities = Softmax(Div(logits, 2), axis=-1)
//! ```
//! Fine-tuned classifiers are often too sure of themselves. One number T, found on held-out examples, mends that without
//! changing which class wins (Guo et al., *On Calibration of Modern Neural Networks*, 2017).
//!
//! *Needs* an output of floating-point scores with at least one axis. *Leaves* the other outputs as they were; not
//! idempotent: a second run finds the output there already, which is an error.

use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, GraphOutput, Model, Result, bail, ensure};
use sartor_passes::near::did_you_mean;
use sartor_passes::{Changed, Pass};
use schemars::JsonSchema;
use serde::Deserialize;

/// The options, and the pass. Their descriptions are what `passes` shows.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Probabilities {
    /// The output with the scores.
    pub logits: String,
    /// What the scores are divided by; above 1 makes the model less sure.
    pub temperature: f64,
    /// The axis of the classes.
    pub axis: i64,
    /// The name of the new output.
    pub output: String,
}

impl Default for Probabilities {
    fn default() -> Probabilities {
        Probabilities { logits: "logits".into(), temperature: 1.0, axis: -1, output: "probabilities".into() }
    }
}

impl Pass for Probabilities {
    fn name(&self) -> &str {
        "probabilities"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        let temperature = self.temperature;
        ensure!(
            temperature.is_finite() && temperature > 0.0,
            "temperature is {temperature}, expected a number above 0"
        );
        ensure!(!model.graph.name_taken(&self.output), "the graph has a value \"{}\" already", self.output);
        let Some(logits) = model.graph.find_output(&self.logits) else {
            let names: Vec<&str> = model.graph.outputs.iter().map(|o| o.name.as_str()).collect();
            let near = did_you_mean(&self.logits, &names);
            bail!("the model has no output \"{}\"{near}; it has {}", self.logits, names.join(", "));
        };
        let opset = model.opset();
        let mut emit = Emit::new(&mut model.graph, opset);
        emit.prefix = "/probabilities/".to_string();
        emit.axis(logits, self.axis)?;
        let divisor = emit.scalar(temperature, logits)?;
        let scaled = emit.div(logits, divisor)?;
        let value = emit.op("Softmax", &[scaled], Attributes::new().with("axis", self.axis))?;
        model.graph.rename(value, &self.output);
        model.graph.outputs.push(GraphOutput { name: self.output.clone(), value });
        Ok(Changed::Yes)
    }
}
