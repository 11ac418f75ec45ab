//! Multidirectional broadcasting, as ONNX and NumPy define it: shapes are aligned at the last axis, and an axis of
//! length 1 stretches.

use crate::dim::Dim;
use crate::dtype::Element;
use crate::error::Result;
use crate::tensor::Tensor;
use crate::{bail, ensure};

/// The common shape of several shapes; an error names the axes that do not fit.
pub fn shapes(shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for shape in shapes {
        let pad = rank - shape.len();
        for (i, &d) in shape.iter().enumerate() {
            let slot = &mut out[pad + i];
            ensure!(*slot == d || *slot == 1 || d == 1, "shapes {shapes:?} do not broadcast at axis {}", pad + i);
            if *slot == 1 {
                *slot = d;
            }
        }
    }
    Ok(out)
}

/// The same on dimensions: a number above 1 wins, equal expressions stay, otherwise unknown.
pub fn dims(shapes: &[&[Dim]]) -> Result<Vec<Dim>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![Dim::Known(1); rank];
    for shape in shapes {
        let pad = rank - shape.len();
        for (i, d) in shape.iter().enumerate() {
            let slot = &mut out[pad + i];
            *slot = match (&*slot, d) {
                (a, b) if a.same(b) => a.clone(),
                (Dim::Known(1), b) => b.clone(),
                (a, Dim::Known(1)) => a.clone(),
                (Dim::Known(a), Dim::Known(b)) => {
                    bail!("dimensions {a} and {b} do not broadcast at axis {}", pad + i)
                }
                (Dim::Known(a), _) | (_, Dim::Known(a)) => Dim::Known(*a),
                _ => Dim::Unknown,
            };
        }
    }
    Ok(out)
}

/// Row-major strides of a dense shape, in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        // An empty tensor may have axes whose product does not fit; its strides are not used.
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

/// The strides with which a dense tensor of shape `from` is read under the broadcast shape `to`: 0 where it stretches.
pub fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let pad = to.len() - from.len();
    let dense = strides(from);
    (0..to.len()).map(|i| if i < pad || from[i - pad] == 1 { 0 } else { dense[i - pad] }).collect()
}

/// Calls `visit(offsets)` for every index of `shape` in row-major order, with the offset of that index under each list of strides.
pub fn for_each_offset<const N: usize>(shape: &[usize], strides: [&[usize]; N], mut visit: impl FnMut([usize; N])) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    let mut offsets = [0; N];
    loop {
        visit(offsets);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            for (offset, stride) in offsets.iter_mut().zip(&strides) {
                *offset += stride[axis];
            }
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
            for (offset, stride) in offsets.iter_mut().zip(&strides) {
                *offset -= stride[axis] * shape[axis];
            }
        }
    }
}

/// `f` applied element by element to two tensors of one type under broadcasting.
pub fn binary<T: Element, R: Element>(a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> R) -> Result<Tensor> {
    let shape = shapes(&[a.shape(), b.shape()])?;
    let (x, y) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    if a.shape() == b.shape() {
        let out: Vec<R> = x.iter().zip(y.iter()).map(|(&x, &y)| f(x, y)).collect();
        return Ok(Tensor::from_vec(shape, out));
    }
    let (sx, sy) = (broadcast_strides(a.shape(), &shape), broadcast_strides(b.shape(), &shape));
    let mut out = Vec::with_capacity(shape.iter().product());
    for_each_offset(&shape, [&sx, &sy], |[i, j]| out.push(f(x[i], y[j])));
    Ok(Tensor::from_vec(shape, out))
}

/// A tensor copied to a larger shape under broadcasting.
pub fn expand<T: Element>(a: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let common = shapes(&[a.shape(), shape])?;
    ensure!(common == shape, "shape {:?} does not broadcast to {shape:?}", a.shape());
    let x = a.as_slice::<T>()?;
    let mut out = Vec::with_capacity(shape.iter().product());
    for_each_offset(shape, [&broadcast_strides(a.shape(), shape)], |[i]| out.push(x[i]));
    Ok(Tensor::from_vec(shape, out))
}
