//! `head`: puts a new, untrained classifier or regressor on a value of the graph.
//!
//! Before → after, for `head(input="pooled", classes=2)`:
//! ```text
//! (… ) => (pooled)                        (…) => (logits)
//!                                         logits = Add(MatMul(pooled, head.weight), head.bias)
//! ```
//! Precondition: the value is a floating-point tensor whose last dimension is a number. Postcondition: `logits` is the
//! graph's only output (with `keep_outputs = true`: its last), `head.weight` and `head.bias` are trainable, drawn
//! uniformly from ±1/√in as PyTorch's `Linear` does. It does not train anything.

use crate::{Changed, Pass};
use sartor_ir::ops::Emit;
use sartor_ir::rng::Stream;
use sartor_ir::{DType, Dim, GraphOutput, Model, Result, Role, Tensor, Type, Value, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The options, and the pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The name of the value that the head reads: an output of the model or any value inside.
    pub input: String,
    /// What the head is for.
    #[serde(default)]
    pub kind: HeadKind,
    /// The number of classes (classifier) or of predicted numbers (regressor).
    #[serde(default)]
    pub classes: Option<usize>,
    /// The name of the new output.
    #[serde(default = "default_output")]
    pub output: String,
    /// Whether the model keeps the outputs it has.
    #[serde(default)]
    pub keep_outputs: bool,
    /// The seed of the drawn weights.
    #[serde(default)]
    pub seed: u64,
}

/// What a head is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// One score per class.
    #[default]
    Classifier,
    /// One or more numbers.
    Regressor,
}

fn default_output() -> String {
    "logits".to_string()
}

impl Pass for Head {
    fn name(&self) -> &str {
        "head"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        let outputs = match (self.kind, self.classes) {
            (HeadKind::Classifier, None) => bail!("a classifier needs its number of classes: classes = 2, say"),
            (HeadKind::Classifier, Some(n)) => {
                ensure!(n >= 2, "a classifier needs at least 2 classes, found classes = {n}");
                n
            }
            (HeadKind::Regressor, n) => n.unwrap_or(1),
        };
        let input = self.find_input(model)?;
        let (dtype, width) = feature_type(model, input)?;
        if !self.keep_outputs {
            // What only they needed goes first: the new output may have the name of one of them.
            let kept = GraphOutput { name: self.input.clone(), value: input };
            model.graph.outputs = vec![kept];
            model.graph.remove_dead();
        }
        let taken = model.graph.find_value(&self.output).is_some();
        ensure!(!taken, "the model has a value \"{}\" already; give the head another output name", self.output);
        let names = self.add_params(model, dtype, width, outputs)?;
        let logits = self.add_nodes(model, input, dtype, width, outputs, &names)?;
        if !self.keep_outputs {
            model.graph.outputs.clear();
        }
        model.graph.outputs.push(GraphOutput { name: self.output.clone(), value: logits });
        model.graph.remove_dead();
        model.remove_unused_params();
        Ok(Changed::Yes)
    }
}

impl Head {
    fn find_input(&self, model: &Model) -> Result<Value> {
        let graph = &model.graph;
        match graph.find_value(&self.input) {
            Some(value) => Ok(value),
            None => {
                let outputs: Vec<&str> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
                bail!("the graph has no value \"{}\"; its outputs are: {}", self.input, outputs.join(", "))
            }
        }
    }

    fn add_params(&self, model: &mut Model, dtype: DType, width: usize, outputs: usize) -> Result<(String, String)> {
        let bound = 1.0 / (width as f64).sqrt();
        let mut draw = |hint: &str, shape: Vec<usize>| -> Result<String> {
            let stream = Stream::new(self.seed, 0, hint);
            let count: usize = shape.iter().product();
            let numbers: Vec<f64> = (0..count as u64).map(|i| stream.uniform(i, -bound, bound)).collect();
            let tensor = Tensor::from_vec(shape, numbers).cast(dtype)?;
            Ok(model.add_param(hint, tensor, Role::Trainable))
        };
        Ok((draw("head.weight", vec![width, outputs])?, draw("head.bias", vec![outputs])?))
    }

    fn add_nodes(
        &self,
        model: &mut Model,
        input: Value,
        dtype: DType,
        width: usize,
        outputs: usize,
        (weight, bias): &(String, String),
    ) -> Result<Value> {
        let opset = model.opset();
        let w = model.graph.param(weight, Type::tensor(dtype, [width as i64, outputs as i64]));
        let b = model.graph.param(bias, Type::tensor(dtype, [outputs as i64]));
        let mut emit = Emit::new(&mut model.graph, opset);
        emit.prefix = "/head/".to_string();
        let product = emit.matmul(input, w)?;
        let logits = emit.add(product, b)?;
        if !model.graph.name_taken(&self.output) {
            model.graph.rename(logits, &self.output);
        }
        Ok(logits)
    }
}

/// The element type and the width of the value that a head reads.
fn feature_type(model: &Model, value: Value) -> Result<(DType, usize)> {
    let name = model.graph.value_name(value);
    let Some(ty) = model.graph.ty(value) else {
        bail!("the type of \"{name}\" is unknown; run the pass `infer` first");
    };
    let Some(dtype) = ty.dtype().filter(|d| d.is_float()) else {
        bail!("a head reads floating-point features, but \"{name}\" is {ty}");
    };
    match ty.shape().and_then(<[Dim]>::last).and_then(Dim::known) {
        Some(width) if width > 0 && ty.rank() >= Some(2) => Ok((dtype, width as usize)),
        _ => bail!("a head reads [batch, …, features] with a fixed number of features, but \"{name}\" is {ty}"),
    }
}
