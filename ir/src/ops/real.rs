//! Reference arithmetic of the operators with sums in them: everything is computed in `f64` and rounded once at the
//! end, so that a kernel in any precision can be compared with the same numbers.

use crate::error::{Context, Error, Result};
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

/// The elements of a floating-point tensor.
pub fn reals(tensor: &Tensor) -> Result<Vec<f64>> {
    ensure!(tensor.dtype().is_float(), "expected floating-point elements, found {}", tensor.dtype());
    tensor.to_f64s()
}

/// A tensor of an element type out of exact results.
pub fn rounded(dtype: DType, shape: impl Into<Vec<usize>>, values: Vec<f64>) -> Result<Tensor> {
    Tensor::from_vec(shape, values).cast(dtype)
}

/// The element type in which half precision is computed: single.
pub fn wide(dtype: DType) -> DType {
    if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype }
}

/// An input that must be there.
pub fn required<'a>(inputs: &[Option<&'a Tensor>], slot: usize) -> Result<&'a Tensor> {
    match optional(inputs, slot) {
        Some(tensor) => Ok(tensor),
        None => bail!("input {slot} is missing"),
    }
}

/// An input that may be left out.
pub fn optional<'a>(inputs: &[Option<&'a Tensor>], slot: usize) -> Option<&'a Tensor> {
    inputs.get(slot).copied().flatten()
}

/// Integers as sizes; an error for negative ones.
pub fn sizes(values: &[i64]) -> Result<Vec<usize>> {
    let size = |&v: &i64| usize::try_from(v).map_err(|_| Error::msg(format!("{v} is not a size")));
    values.iter().map(size).collect()
}

/// The shape that an integer input holds.
pub fn shape_input(inputs: &[Option<&Tensor>], slot: usize) -> Result<Vec<usize>> {
    sizes(&required(inputs, slot)?.to_i64s()?).context(|| format!("input {slot}"))
}

/// A shape with the axes in `axes` set to 1.
pub fn kept(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect()
}

/// The same on dimensions.
pub fn kept_dims(shape: &[Dim], axes: &[usize]) -> Vec<Dim> {
    shape.iter().enumerate().map(|(i, d)| if axes.contains(&i) { Dim::Known(1) } else { d.clone() }).collect()
}

/// A small attribute that must be a non-negative count (a group, a size, a stride).
pub fn count(attrs: &Attributes, name: &str, default: i64) -> Result<usize> {
    let value = attrs.int(name, default)?;
    ensure!((0..=i64::from(i32::MAX)).contains(&value), "attribute `{name}` is {value}, expected a count");
    Ok(value as usize)
}
