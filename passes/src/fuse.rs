//! `fuse`: operators that exporters write out become one operator again.
//!
//! ```text
//! before   d = Div (x, √2)   e = Erf (d)   a = Add (e, 1)   m = Mul (x, a)   y = Mul (m, 0.5)
//! after    y = Gelu (x)
//! ```
//! (executed by `tests/cases/fuse/gelu.txt`)
//!
//! What it is for is the gradient: that of the written-out form keeps `x`, `a` and `m` until the backward pass, that of
//! `Gelu` (Hendrycks and Gimpel, arXiv 1606.08415) keeps `x` alone. `autodiff` therefore does this to the programs that it
//! differentiates; an exported inference graph keeps its form unless the pass is asked for.
//!
//! `autodiff` does three more of this kind to its programs: a softmax behind a mask, whose gradient then keeps its result alone, and pairs of QuantizeLinear
//! and DequantizeLinear and products of bytes behind DynamicQuantizeLinear, where integers would stop the gradient.
//!
//! *Needs* the internal opset. *Leaves* no product of `x`, `½` and `1 + erf(x / √2)`, in any order, whose parts nothing else
//! reads. The same numbers up to rounding. Idempotent. It does not look for the form with a hyperbolic tangent.

use crate::walk::require_internal_opset;
use crate::{Changed, Pass};
use sartor_ir::ops::{self, Emit, contrib};
use sartor_ir::{Attributes, Graph, Model, NodeId, Result, Type, Value, infer};
use schemars::JsonSchema;
use serde::Deserialize;
use std::f64::consts::{FRAC_1_SQRT_2, SQRT_2};

/// See the [module](self).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fuse {}

impl Pass for Fuse {
    fn name(&self) -> &str {
        "fuse"
    }
    fn run(&self, model: &mut Model) -> Result<Changed> {
        require_internal_opset(model)?;
        let opset = model.opset();
        let mut changed = false;
        for graph in model.graphs_mut() {
            changed |= fuse(graph, opset)?;
        }
        Ok(changed.into())
    }
}

/// Fuses what there is in one graph; returns whether there was anything.
pub fn fuse(graph: &mut Graph, opset: i64) -> Result<bool> {
    let order = graph.topo_ops();
    if !order.iter().any(|&id| gelu_operand(graph, id).is_some()) {
        return Ok(false);
    }
    infer::infer_graph(graph, opset)?;
    for id in order {
        let Some(x) = gelu_operand(graph, id) else { continue };
        let new = Emit::new(graph, opset).op("Gelu", &[x], Attributes::new())?;
        take_place(graph, id, new, graph.node(id).name.clone());
    }
    graph.remove_dead();
    Ok(true)
}

/// The new value gets this name, and the type and the readers of what the node gives.
fn take_place(graph: &mut Graph, id: NodeId, new: Value, name: String) {
    let old = Value { node: id, slot: 0 };
    let ty = graph.ty(old).cloned();
    graph.node_mut(new.node).name = name;
    graph.set_ty(new, ty);
    graph.replace_uses(old, new);
}

/// `Where (IsNaN (s), 0, s)` of a `Softmax` that nothing else reads becomes one operator of our own domain, whose gradient keeps its
/// result alone. Only for graphs that stay with us.
pub(crate) fn guard_softmax(graph: &mut Graph, opset: i64) -> Result<()> {
    for id in graph.topo_ops() {
        let Some(softmax) = guarded(graph, id) else { continue };
        let (Some(x), Some(op)) = (graph.input(softmax, 0), graph.node(softmax).op().cloned()) else { continue };
        let new = Emit::new(graph, opset).sartor("GuardedSoftmax", &[x], op.attrs)?;
        take_place(graph, id, new, graph.node(softmax).name.clone());
    }
    graph.remove_dead();
    Ok(())
}

/// Makes one operator, with a straight-through gradient, of every pair of QuantizeLinear and DequantizeLinear with one scale: what is trained behind
/// them, adapters on a quantised network, would get no gradient through integers.
pub(crate) fn fake_quantize(graph: &mut Graph, opset: i64) -> Result<()> {
    for id in graph.topo_ops() {
        let Some((quantize, inputs)) = quantized_pair(graph, id) else { continue };
        let attrs = graph.node(quantize).op().map(|op| op.attrs.clone()).unwrap_or_default();
        let new = Emit::new(graph, opset).sartor("FakeQuantize", &inputs, attrs)?;
        take_place(graph, id, new, graph.node(id).name.clone());
    }
    graph.remove_dead();
    Ok(())
}

/// Makes products of numbers, with a straight-through gradient, of products of bytes behind DynamicQuantizeLinear that are cast to numbers: the same
/// sums, whose codes `(q − z)` have the gradient of `x / scale`, so that together with the scale behind them that of `x` arrives.
pub(crate) fn straight_products(graph: &mut Graph, opset: i64) -> Result<()> {
    // ONNX Runtime's own products consist of such ones.
    let own = ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"];
    for id in graph.topo_ops() {
        if graph.node(id).op().is_some_and(|op| op.domain == contrib::DOMAIN && own.contains(&op.name.as_str())) {
            ops::decompose(graph, id, opset)?;
        }
    }
    for id in graph.topo_ops() {
        let Some(product) = quantised_product(graph, id) else { continue };
        let new = straight_product(&mut Emit::new(graph, opset), product, Value { node: id, slot: 0 })?;
        take_place(graph, id, new, graph.node(id).name.clone());
    }
    graph.remove_dead();
    Ok(())
}

/// The product of bytes that a Cast turns into numbers, if its first operand and zero are those of a DynamicQuantizeLinear.
fn quantised_product(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let product = graph.input(id, 0)?.node;
    let known = graph.node(product).is("MatMulInteger") || graph.node(product).is("ConvInteger");
    let float = infer::is_float(graph.ty(Value { node: id, slot: 0 }));
    let (codes, zero) = (graph.input(product, 0)?, graph.input(product, 2)?);
    let dynamic = graph.node(codes.node).is("DynamicQuantizeLinear") && (codes.slot, zero.slot) == (0, 2);
    (graph.node(id).is("Cast") && known && float && dynamic && zero.node == codes.node).then_some(product)
}

fn straight_product(emit: &mut Emit, product: NodeId, cast: Value) -> Result<Value> {
    let dtype = emit.dtype(cast)?;
    let (codes, weight) = (emit.operand(product, 0)?, emit.operand(product, 1)?);
    let (x, scale, zero) = (emit.operand(codes.node, 0)?, Value { slot: 1, ..codes }, Value { slot: 2, ..codes });
    let (codes, zero) = (emit.cast(codes, dtype)?, emit.cast(zero, dtype)?);
    let codes = emit.sub(codes, zero)?;
    let ratio = emit.div(x, scale)?;
    let rest = emit.sub(codes, ratio)?;
    let rest = emit.sartor("Detach", &[rest], Attributes::new())?;
    let steady = emit.add(ratio, rest)?;
    let op = emit.graph.node(product).op().cloned().unwrap_or_default();
    let name = if op.is("ConvInteger") { "Conv" } else { "MatMul" };
    let mut weights = emit.cast(weight, dtype)?;
    if let Some(zero) = emit.graph.input(product, 3) {
        let mut zero = emit.cast(zero, dtype)?;
        if name == "Conv" && emit.rank(zero)? == 1 {
            // One per output channel, the first axis of the weight.
            zero = emit.unsqueeze(zero, &(1..emit.rank(weight)?).collect::<Vec<_>>())?;
        }
        weights = emit.sub(weights, zero)?;
    }
    emit.op(name, &[steady, weights], op.attrs)
}

/// The QuantizeLinear before a DequantizeLinear with the same single scale and zero, and its inputs.
fn quantized_pair(graph: &Graph, id: NodeId) -> Option<(NodeId, Vec<Value>)> {
    let codes = graph.input(id, 0)?;
    let pair = graph.node(id).is("DequantizeLinear") && graph.node(codes.node).is("QuantizeLinear");
    let scale = graph.input(id, 1)?;
    let single = graph.ty(scale).and_then(Type::static_shape).is_some_and(|s| s.iter().product::<usize>() == 1);
    let inputs: Vec<Option<Value>> = (0..3).map(|slot| graph.input(codes.node, slot)).collect();
    let same = inputs[1] == Some(scale) && inputs[2] == graph.input(id, 2);
    (pair && single && same).then(|| (codes.node, inputs.into_iter().flatten().collect()))
}

/// The `Softmax` that a `Where` guards.
fn guarded(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let [condition, zero, softmax] = graph.node_inputs(id).try_into().ok()?;
    let (condition, zero, softmax) = (condition?, zero?, softmax?);
    let is_guard = graph.node(id).is("Where") && graph.node(condition.node).is("IsNaN");
    let same = is_guard && graph.input(condition.node, 0) == Some(softmax) && graph.node(softmax.node).is("Softmax");
    let alone = graph.use_count(softmax) == 2 && graph.use_count(condition) == 1;
    let nothing = graph.constant(zero).is_some_and(|t| t.len() == 1 && t.to_f64s().is_ok_and(|n| n == [0.0]));
    (same && alone && nothing).then_some(softmax.node)
}

/// `x`, if the node is the last product of a written-out GELU of `x`.
fn gelu_operand(graph: &Graph, id: NodeId) -> Option<Value> {
    let mut factors = Vec::new();
    flatten(graph, Value { node: id, slot: 0 }, true, &mut factors);
    let half = factors.iter().position(|&f| is_number(graph, f, 0.5))?;
    factors.swap_remove(half);
    let [a, b] = factors.as_slice() else { return None };
    [(*a, *b), (*b, *a)].into_iter().find(|&(x, sum)| is_one_plus_erf(graph, sum, x)).map(|(x, _)| x)
}

/// The factors of a product of at most three, through products that nothing else reads.
fn flatten(graph: &Graph, value: Value, top: bool, factors: &mut Vec<Value>) {
    let read_once = top || graph.use_count(value) == 1;
    match pair(graph, value, "Mul").filter(|_| read_once && factors.len() < 4) {
        Some((a, b)) => {
            flatten(graph, a, false, factors);
            flatten(graph, b, false, factors);
        }
        None => factors.push(value),
    }
}

/// `1 + erf(x / √2)`, read by nothing else.
fn is_one_plus_erf(graph: &Graph, sum: Value, x: Value) -> bool {
    let Some((a, b)) = pair(graph, sum, "Add").filter(|_| graph.use_count(sum) == 1) else { return false };
    let erf = match (is_number(graph, a, 1.0), is_number(graph, b, 1.0)) {
        (true, _) => b,
        (_, true) => a,
        _ => return false,
    };
    let node = graph.node(erf.node);
    let Some(scaled) = graph.input(erf.node, 0).filter(|_| node.is("Erf") && graph.use_count(erf) == 1) else {
        return false;
    };
    let divided = pair(graph, scaled, "Div").is_some_and(|(a, b)| a == x && is_number(graph, b, SQRT_2));
    let times = |(a, b): (Value, Value)| a == x && is_number(graph, b, FRAC_1_SQRT_2);
    divided || pair(graph, scaled, "Mul").is_some_and(|(a, b)| times((a, b)) || times((b, a)))
}

fn pair(graph: &Graph, value: Value, name: &str) -> Option<(Value, Value)> {
    let node = graph.node(value.node);
    if !node.is(name) {
        return None;
    }
    Some((graph.input(value.node, 0)?, graph.input(value.node, 1)?))
}

/// Whether a value is a constant of one element near this number, as exporters round it.
fn is_number(graph: &Graph, value: Value, number: f64) -> bool {
    let constant = graph.constant(value).filter(|t| t.len() == 1 && t.dtype().is_float());
    let found = constant.and_then(|t| t.to_f64s().ok()?.first().copied());
    found.is_some_and(|found| (found - number).abs() < 1e-4 * number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_ir::{Tensor, eval, text};
    use std::collections::HashMap;

    /// The same numbers: a product with a zero per column, a convolution with one per channel, a product of ONNX Runtime's.
    #[test]
    fn straight_products_are_the_products() {
        let source = "<ir_version: 10, opset_import: [\"\": 20, \"com.microsoft\": 1]>\n\
            g (float[1, 2, 3, 3] x, float[2, 3] m) => (a, b, c) <\n\
              uint8[3, 2] w = {1, 200, 7, 9, 130, 255}, uint8[2] zw = {3, 128}, float[2] sw = {0.5, 0.25}, float[2] bias = {1, -1},\n\
              uint8[2, 2, 2, 2] k = {1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 11, 12, 13, 14, 15, 16}, uint8[2] zk = {5, 100}\n\
            > {\n\
              q, s, z = DynamicQuantizeLinear (m)\n\
              p = MatMulInteger (q, w, z, zw)\n\
              f = Cast <to = 1> (p)\n\
              a = Mul (f, s)\n\
              qx, sx, zx = DynamicQuantizeLinear (x)\n\
              i = ConvInteger (qx, k, zx, zk)\n\
              n = Cast <to = 1> (i)\n\
              b = Mul (n, sx)\n\
              c = com.microsoft::DynamicQuantizeMatMul (m, w, sw, zw, bias)\n\
            }\n";
        let mut model = text::parse(source).unwrap();
        infer::infer_graph(&mut model.graph, 20).unwrap();
        let tensor = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            Tensor::from_vec(shape, (0..count).map(|i| (i as f32 * 1.7).sin()).collect::<Vec<f32>>())
        };
        let feeds = HashMap::from([("x".to_string(), tensor(&[1, 2, 3, 3])), ("m".to_string(), tensor(&[2, 3]))]);
        let before = eval::run(&model, &feeds).unwrap();
        straight_products(&mut model.graph, 20).unwrap();
        assert!(!model.graph.topo_ops().iter().any(|&id| {
            let node = model.graph.node(id);
            node.is("MatMulInteger")
                || node.is("ConvInteger")
                || node.op().is_some_and(|op| op.domain == contrib::DOMAIN)
        }));
        for (before, after) in before.iter().zip(&eval::run(&model, &feeds).unwrap()) {
            let (before, after) = (before.to_f64s().unwrap(), after.to_f64s().unwrap());
            assert!(
                before.iter().zip(&after).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(1.0)),
                "{before:?} {after:?}"
            );
        }
    }
}
