//! What a gate is, seen from the graph: a number that is cut at 0 and multiplies what a block or a channel computes.
//!
//! Two things depend on it, where nothing is trained. A convolution of single pixels that gates follow, and a product of tokens, is run by [windows](crate::cpu::patch) of one
//! tap instead of as a product over all pixels of a batch, so that it can [skip](super::skip) examples and channels. And a product with a single
//! number that is a gate is a [choice](super::lazy): where the gate is 0 the result is 0, whatever the other
//! factor is (0 · ∞ too), and what only it reads is not computed.

use super::Lowering;
use super::group::{Arg, What};
use sartor_ir::{NodeId, Operator, Result, Value};

/// A chain from a convolution to its gate is not longer than this.
const FAR: usize = 12;

impl Lowering<'_> {
    /// Whether a value was cut at 0 and since then only put into other shapes, or multiplied by factors of examples.
    fn is_gate(&self, mut value: Value) -> bool {
        for _ in 0..FAR {
            if self.constant(value).is_some() {
                return false;
            }
            let Some(op) = self.graph.node(value.node).op() else { return false };
            let mut input = self.graph.input(value.node, 0);
            match op.name.as_str() {
                "Clip" => return self.graph.input(value.node, 1).and_then(|low| self.number(low)) == Some(0.0),
                // By its factor.
                "Mul" if self.shape(value).is_ok_and(|shape| shape.len() == 2) => {
                    let clamped = |v: &Value| ["Clip", "Ceil"].iter().any(|name| self.graph.node(v.node).is(name));
                    input = self.graph.node_inputs(value.node).into_iter().flatten().find(clamped);
                }
                "Ceil" | "Reshape" | "Unsqueeze" | "Squeeze" | "Split" | "Slice" | "Identity" | "Flatten" => {}
                _ => return false,
            }
            let Some(input) = input else { return false };
            value = input;
        }
        false
    }

    /// Whether the result of a convolution reaches a product with a gate per example or per channel, through what treats every channel by
    /// itself.
    pub(crate) fn gates_follow(&self, conv: Value) -> bool {
        if !self.updated.is_empty() {
            return false;
        }
        let mut value = conv;
        // Behind another convolution only a gate of the whole block matters.
        let mut whole = false;
        let suits = |v: Value, whole: bool| self.is_gate(v) && self.is_one_for_all(v, if whole { 1 } else { 2 });
        for _ in 0..FAR {
            let Some(&[reader]) = self.uses.get(&value).map(Vec::as_slice) else { return false };
            let Some(op) = self.graph.node(reader).op() else { return false };
            let others = self.graph.node_inputs(reader).into_iter().flatten().filter(|v| *v != value);
            let others: Vec<Value> = others.collect();
            match op.name.as_str() {
                "Mul" if others.iter().any(|&v| suits(v, whole)) => return true,
                "Mul" if others.iter().any(|&v| suits(v, false)) => {}
                "Relu" | "Clip" | "HardSwish" | "BatchNormalization" => {}
                "Add" | "Mul" if others.iter().all(|&v| self.constant(v).is_some() || self.is_param(v)) => {}
                "Conv" if self.graph.input(reader, 0) == Some(value) => whole |= !self.is_depthwise(op, reader),
                _ => return false,
            }
            value = Value { node: reader, slot: 0 };
        }
        false
    }

    /// Whether a convolution reads a product with gates.
    pub(crate) fn reads_gated(&self, image: Value) -> bool {
        let is_product = self.graph.node(image.node).op().is_some_and(|op| op.is("Mul"));
        let mut factors = self.graph.node_inputs(image.node).into_iter().flatten();
        self.updated.is_empty() && is_product && factors.any(|v| self.is_gate(v) && self.is_one_for_all(v, 2))
    }

    /// Whether a product of tokens `[N, T, channels]` with weights reads hidden units behind their gates, or makes what reaches a product with gates, of the block or of every
    /// unit by itself, through elementwise operators alone.
    pub(crate) fn gates_units(&self, id: NodeId, y: Value) -> bool {
        if !self.updated.is_empty() {
            return false;
        }
        let units = |value: Value| {
            self.shape(value).is_ok_and(|shape| shape.len() == 3 && shape[1] == 1) && self.is_gate(value)
        };
        let reads = self.graph.input(id, 0).is_some_and(|x| self.is_gated(x.node, units) || self.merges_gated(x.node));
        reads || self.reaches(y, units, |op| sartor_ir::ops::is_elementwise(&op.name), FAR)
    }

    /// Whether a value has a gate per example and head, for heads `[N, T, heads, width]` or `[N, heads, T, width]`.
    fn is_gate_of_heads(&self, value: Value) -> bool {
        let one_axis = |shape: &[usize]| shape.len() == 4 && (shape[1] == 1 || shape[2] == 1) && shape[3] == 1;
        self.shape(value).is_ok_and(|shape| one_axis(&shape)) && self.is_gate(value)
    }

    /// Whether that is the product of transposed heads `[N, T, heads, width]` and their gates.
    pub(crate) fn gates_heads(&self, what: &What) -> bool {
        let What::Node(id) = *what else { return false };
        let mut inputs = self.graph.node_inputs(id).into_iter().flatten();
        let heads_first = |v: Value| {
            let op = self.graph.node(v.node).op().filter(|op| op.is("Transpose"));
            op.is_some_and(|op| super::nodes::permutation(op, 4).is_some_and(|perm| perm == [0, 2, 1, 3]))
        };
        let of_heads = |v: Value| self.is_gate_of_heads(v) && self.shape(v).is_ok_and(|shape| shape[1] == 1);
        self.updated.is_empty() && self.is_gated(id, of_heads) && inputs.any(heads_first)
    }

    /// Whether a node merges heads behind their gates.
    fn merges_gated(&self, node: NodeId) -> bool {
        let input = self.graph.input(node, 0).filter(|_| self.graph.node(node).is("Reshape"));
        let behind = |v: Value| match self.graph.node(v.node).is("Transpose") {
            true => self.graph.input(v.node, 0),
            false => Some(v),
        };
        input.and_then(behind).is_some_and(|v| self.is_gated(v.node, |gate| self.is_gate_of_heads(gate)))
    }

    /// Whether a node is a product with such a gate.
    fn is_gated(&self, node: NodeId, gate: impl Fn(Value) -> bool) -> bool {
        self.graph.node(node).is("Mul") && self.graph.node_inputs(node).into_iter().flatten().any(gate)
    }

    /// Whether all that is made of a value reaches products with such gates through operators that pass, over about so many values at most.
    fn reaches(
        &self,
        from: Value,
        gate: impl Fn(Value) -> bool,
        passes: impl Fn(&Operator) -> bool,
        most: usize,
    ) -> bool {
        let (mut seen, mut next, mut found) = (vec![from], vec![from], false);
        while let Some(value) = next.pop() {
            let Some(readers) = self.uses.get(&value).filter(|_| !self.outputs.contains(&value)) else { return false };
            for &reader in readers {
                if self.is_gated(reader, &gate) {
                    found = true;
                    continue;
                }
                let goes_on = self.graph.node(reader).op().is_some_and(|op| op.domain.is_empty() && passes(op));
                let made = Value { node: reader, slot: 0 };
                if !goes_on || seen.len() > most {
                    return false;
                }
                if !seen.contains(&made) {
                    seen.push(made);
                    next.push(made);
                }
            }
        }
        found
    }

    /// Whether all that is made of a product of tokens reaches a product with the gate of a block, or of its heads: what an attention projects.
    pub(crate) fn feeds_block(&self, y: Value) -> bool {
        const ON_THE_WAY: [&str; 6] = ["MatMul", "Softmax", "Reshape", "Transpose", "Unsqueeze", "Squeeze"];
        let block = |value: Value| {
            let one = self.shape(value).is_ok_and(|shape| shape.len() == 3 && shape[1..] == [1, 1]);
            one && self.is_gate(value) || self.is_gate_of_heads(value)
        };
        let passes = |op: &Operator| ON_THE_WAY.contains(&op.name.as_str()) || sartor_ir::ops::is_elementwise(&op.name);
        self.updated.is_empty() && self.reaches(y, block, passes, 4 * FAR)
    }

    /// Whether a value is the same along all axes from this one on: an activation that was cut at 0 (a part of hard swish) is no gate.
    fn is_one_for_all(&self, value: Value, axis: usize) -> bool {
        self.shape(value).is_ok_and(|shape| shape.iter().skip(axis).all(|&dim| dim == 1))
    }

    fn is_param(&self, value: Value) -> bool {
        self.graph.param_name(value).is_some()
    }

    fn is_depthwise(&self, op: &Operator, conv: NodeId) -> bool {
        let groups = op.attrs.int("group", 1).unwrap_or(1);
        let weights = self.graph.input(conv, 1).and_then(|w| self.shape(w).ok());
        groups > 1 && weights.is_some_and(|w| w[0] as i64 == groups && w[1] == 1)
    }

    /// A product with a single number that is a gate, but for images, whose convolutions know gates.
    pub(crate) fn gated_product(&mut self, (a, b): (Value, Value), y: Value) -> Result<bool> {
        let shape = self.shape(y)?;
        let single = |v: Value| self.shape(v).is_ok_and(|s| s.iter().all(|&dim| dim == 1));
        if !self.updated.is_empty() || shape.len() == 4 || shape.iter().all(|&dim| dim == 1) {
            return Ok(false);
        }
        let (x, gate) = match (single(a) && self.is_gate(a), single(b) && self.is_gate(b)) {
            (_, true) => (a, b),
            (true, _) => (b, a),
            _ => return Ok(false),
        };
        if self.shape(x)? != shape {
            return Ok(false);
        }
        let args: Vec<Arg> = vec![self.arg(x, &shape)?, self.arg(gate, &shape)?];
        self.map(What::Gated, args, y)?;
        Ok(true)
    }
}
