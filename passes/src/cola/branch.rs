//! The branch of a link beside its operator, and the same link as an update of the weight.

use super::SiteKind;
use super::record::{LinkRecord, SiteRecord};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Graph, Model, NodeId, Operator, Result, Type, Value, bail, ensure};

/// Adds the branches of these links to an operator: everybody who read its output reads the sum.
pub(super) fn insert(graph: &mut Graph, model: &Model, site: &SiteRecord, node: NodeId, links: &[usize]) -> Result<()> {
    let base = Value { node, slot: 0 };
    let Some(data) = graph.input(node, site.kind.data_slot()) else { bail!("node \"{}\" has no input", site.node) };
    let mut emit = Emit::new(graph, model.opset());
    let mut sum = base;
    let mut added = Vec::new();
    for &j in links {
        emit.prefix = format!("{}/link.{j}/", site.node);
        let branch = branch(&mut emit, model, site, &site.links[j], node, data)?;
        sum = emit.add(sum, branch)?;
        added.push(sum.node);
    }
    let ty = graph.ty(base).cloned();
    graph.set_ty(sum, ty);
    graph.replace_uses_if(base, sum, |reader, _| !added.contains(&reader));
    graph.outputs.iter_mut().filter(|o| o.value == base).for_each(|o| o.value = sum);
    Ok(())
}

fn param(emit: &mut Emit, model: &Model, name: &str) -> Result<Value> {
    match model.params.get(name) {
        Some(param) => Ok(emit.graph.param(name, Type::of(&param.tensor))),
        None => bail!("the model has no parameter \"{name}\""),
    }
}

/// `s · B(A(x))`
fn branch(
    emit: &mut Emit,
    model: &Model,
    site: &SiteRecord,
    link: &LinkRecord,
    node: NodeId,
    data: Value,
) -> Result<Value> {
    let (a, b) = (param(emit, model, &link.a)?, param(emit, model, &link.b)?);
    let op = emit.graph.node(node).op().cloned().unwrap_or_default();
    match site.kind {
        SiteKind::MatMul | SiteKind::Gemm | SiteKind::GemmTransposed => {
            let low = emit.matmul(data, a)?;
            let low = emit.mul_scalar(low, link.scale)?;
            emit.matmul(low, b)
        }
        SiteKind::Gather => {
            let low = emit.op("Gather", &[a, data], op.attrs)?;
            let low = emit.mul_scalar(low, link.scale)?;
            emit.matmul(low, b)
        }
        SiteKind::Conv => {
            let low = emit.op("Conv", &[data, a], op.attrs)?;
            let low = emit.mul_scalar(low, link.scale)?;
            emit.op("Conv", &[low, b], Attributes::new())
        }
        SiteKind::GroupedConv => {
            let Some(weight) = emit.graph.input(node, 1) else { bail!("node \"{}\" has no weight", site.node) };
            let Some(shape) = emit.graph.ty(weight).and_then(Type::static_shape) else {
                bail!("the weight of node \"{}\" has no static shape", site.node)
            };
            let update = delta(emit, model, site, link, &shape)?;
            Ok(emit.node(Operator::onnx("Conv", op.attrs), &[Some(data), Some(update)], 1)?[0])
        }
    }
}

/// The update of the weight that a link stands for, in the weight's own `shape`: `s · A · B`, transposed or reshaped
/// as the operator reads it.
pub fn delta(emit: &mut Emit, model: &Model, site: &SiteRecord, link: &LinkRecord, shape: &[usize]) -> Result<Value> {
    let (a, b) = (param(emit, model, &link.a)?, param(emit, model, &link.b)?);
    let product = match site.kind {
        SiteKind::MatMul | SiteKind::Gemm | SiteKind::Gather => emit.matmul(a, b)?,
        SiteKind::GemmTransposed => {
            let product = emit.matmul(a, b)?;
            emit.swap_last(product)?
        }
        SiteKind::Conv | SiteKind::GroupedConv => {
            ensure!(!shape.is_empty(), "a convolution's weight of rank 0");
            let rank = link.rank as i64;
            let columns = emit.reshape(b, &[-1, rank])?;
            let rows = emit.reshape(a, &[rank, -1])?;
            let product = emit.matmul(columns, rows)?;
            let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
            emit.reshape(product, &dims)?
        }
    };
    emit.mul_scalar(product, link.scale)
}
