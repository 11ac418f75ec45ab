//! Moving elements without looking at them: what the operators that gather, scatter, slice, pad, tile and join are
//! made of.
//!
//! One primitive, [`pick`], makes a tensor out of elements of a pool (tensors of one type laid end to end) by their
//! *places*, so it serves every element type, strings and packed 2- and 4-bit types included. Most operators are
//! separable: the place of an element is a sum of one offset per axis ([`outer_sum`]). The gradient of every such
//! operator is [`accumulate`] over the very same places.

use super::arithmetic::{Arithmetic, computed_in};
use super::{InferCx, MAX_FACT_DIMS, broadcast, normal_axis};
use crate::error::{Context, Error, Result};
use crate::minifloat::{pack, unpack};
use crate::tensor::element_count;
use crate::{DType, Dim, Tensor, bail, dispatch, ensure};
use bytes::Bytes;
use std::borrow::Cow;
use std::cmp::Ordering;

/// A place in no tensor: where [`outer_sum`] meets it, the sum stays it.
pub const OUTSIDE: usize = usize::MAX;

/// The tensor of shape `shape` whose elements stand at `places` of the pool: the tensors laid end to end.
pub fn pick(pool: &[&Tensor], shape: Vec<usize>, places: &[usize]) -> Result<Tensor> {
    let Some(dtype) = pool.first().map(|t| t.dtype()) else { bail!("there is no tensor to pick from") };
    if let Some(other) = pool.iter().find(|t| t.dtype() != dtype) {
        bail!("its operands are {dtype} and {}", other.dtype());
    }
    if dtype == DType::String {
        let strings: Vec<&Bytes> = pool.iter().filter_map(|t| t.strings()).flatten().collect();
        let picked: Option<Vec<Bytes>> = places.iter().map(|&p| strings.get(p).copied().cloned()).collect();
        return Tensor::from_strings(shape, picked.ok_or_else(out_of_pool)?);
    }
    let parts: Vec<&[u8]> = pool.iter().map(|t| t.bytes().as_ref()).collect();
    let bytes = match dtype.bits() {
        8 => pick_cells::<1>(&parts, places)?,
        16 => pick_cells::<2>(&parts, places)?,
        32 => pick_cells::<4>(&parts, places)?,
        64 => pick_cells::<8>(&parts, places)?,
        128 => pick_cells::<16>(&parts, places)?,
        bits => {
            let cells: Vec<Vec<u8>> = pool.iter().map(|t| unpack(t.bytes(), bits, t.len())).collect();
            let parts: Vec<&[u8]> = cells.iter().map(Vec::as_slice).collect();
            pack(&pick_cells::<1>(&parts, places)?, bits)
        }
    };
    Tensor::from_bytes(dtype, shape, Bytes::from(bytes))
}

fn out_of_pool() -> Error {
    Error::msg("an element outside of the input was asked for")
}

fn pick_cells<const WIDTH: usize>(parts: &[&[u8]], places: &[usize]) -> Result<Vec<u8>> {
    let joined = match parts {
        [one] => Cow::Borrowed(*one),
        many => Cow::Owned(many.concat()),
    };
    let (cells, _) = joined.as_chunks::<WIDTH>();
    let mut out = Vec::with_capacity(places.len() * WIDTH);
    for &place in places {
        out.extend_from_slice(cells.get(place).ok_or_else(out_of_pool)?);
    }
    Ok(out)
}

/// The gradient of picking `dy`'s elements at `places`: zeros of shape `shape` to which each element of `dy` is added
/// at its place; [`OUTSIDE`] is skipped.
pub fn accumulate(dy: &Tensor, shape: &[usize], places: &[usize]) -> Result<Tensor> {
    ensure!(dy.len() == places.len(), "a gradient of {} elements for {} places", dy.len(), places.len());
    room(shape)?;
    let (count, wide) = (shape.iter().product(), computed_in(dy.dtype()));
    let sums = dispatch!(wide, wide T => {
        let mut out = vec![T::default(); count];
        for (&x, &place) in dy.cast(wide)?.as_slice::<T>()?.iter().zip(places).filter(|(_, p)| **p != OUTSIDE) {
            let target = out.get_mut(place).ok_or_else(out_of_pool)?;
            *target = target.plus(x);
        }
        Tensor::from_vec(shape, out)
    }, else bail!("no sums of {}", dy.dtype()));
    sums.cast(dy.dtype())
}

/// All sums of one entry per table, the last table fastest: the places of a separable operator, from the offsets that
/// each output axis contributes.
pub fn outer_sum(tables: &[Vec<usize>]) -> Vec<usize> {
    tables.iter().fold(vec![0], |sums, table| {
        let mut next = Vec::with_capacity(sums.len() * table.len());
        for sum in sums {
            next.extend(table.iter().map(|offset| sum.saturating_add(*offset)));
        }
        next
    })
}

/// The offsets 0, stride, 2·stride, … of the `len` entries of an axis.
pub fn steps(len: usize, stride: usize) -> Vec<usize> {
    (0..len).map(|i| i.saturating_mul(stride)).collect()
}

/// Errors unless the places of a tensor of this shape fit into the address space. Asked before places are made.
pub fn room(shape: &[usize]) -> Result<()> {
    let bytes = element_count(shape).and_then(|n| n.checked_mul(8));
    ensure!(bytes.is_some_and(|n| n <= isize::MAX as usize), "shape {shape:?} is too large");
    Ok(())
}

/// The product of some axes of a tensor. Saturated, since an empty tensor may have axes whose product does not fit.
pub fn count(lengths: &[usize]) -> usize {
    lengths.iter().fold(1, |n: usize, &d| n.saturating_mul(d))
}

/// How many elements lie before an axis, on it, and behind it: element `(o, i, n)` of a dense tensor stands at
/// `(o * len + i) * inner + n`.
pub fn lanes(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (count(&shape[..axis]), shape[axis], count(&shape[axis + 1..]))
}

/// The indices 0 to `len`, in this order; equal ones stay as they are.
pub fn sorted(len: usize, order: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    indices.sort_by(|&a, &b| order(a, b));
    indices
}

/// The strides of a dense shape.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    broadcast::strides(shape)
}

/// An input that must be there.
pub fn input<'a>(inputs: &[Option<&'a Tensor>], slot: usize) -> Result<&'a Tensor> {
    match inputs.get(slot).copied().flatten() {
        Some(tensor) => Ok(tensor),
        None => bail!("input {slot} is missing"),
    }
}

/// The elements of an integer input; `None` if it is left out.
pub fn ints(inputs: &[Option<&Tensor>], slot: usize) -> Result<Option<Vec<i64>>> {
    match inputs.get(slot).copied().flatten() {
        Some(tensor) => tensor.to_i64s().map(Some).context(|| format!("input {slot}")),
        None => Ok(None),
    }
}

/// The elements of an integer input as a shape.
pub fn shape_input(inputs: &[Option<&Tensor>], slot: usize) -> Result<Vec<usize>> {
    sizes(&input(inputs, slot)?.to_i64s()?)
}

/// Numbers that must not be negative, as lengths.
pub fn sizes(values: &[i64]) -> Result<Vec<usize>> {
    let lengths: Result<Vec<usize>, _> = values.iter().map(|&v| usize::try_from(v)).collect();
    lengths.map_err(|_| Error::msg(format!("{values:?} is not a shape: a length is negative")))
}

/// Dimensions as numbers; an error if one is open.
pub fn static_dims(dims: &[Dim]) -> Result<Vec<usize>> {
    let numbers: Option<Vec<i64>> = dims.iter().map(Dim::known).collect();
    match numbers {
        Some(numbers) => sizes(&numbers),
        None => bail!("the shape is open"),
    }
}

/// A host shape as dimensions.
pub fn known_dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&d| Dim::Known(d as i64)).collect()
}

/// Axes counted from the front, in the order given. Errors outside [-rank, rank) and on repeats.
pub fn normal_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>> {
    let mut normal = Vec::with_capacity(axes.len());
    for &axis in axes {
        let axis = normal_axis(axis, rank)?;
        ensure!(!normal.contains(&axis), "axis {axis} is named twice in {axes:?}");
        normal.push(axis);
    }
    Ok(normal)
}

/// An index that may count from the end. Errors outside [-len, len).
pub fn normal_index(index: i64, len: usize) -> Result<usize> {
    let signed = len as i64;
    ensure!(-signed <= index && index < signed, "index {index} is outside [-{len}, {len})");
    Ok(if index < 0 { index + signed } else { index } as usize)
}

/// The elements of a rank-0 or rank-1 integer input as far as they are known: all of them, or as many unknowns as it
/// has elements. `None` if not even their number is known (or it is too long to follow).
pub fn elements(cx: &InferCx, slot: usize) -> Option<Vec<Dim>> {
    if let Some(dims) = cx.dims(slot) {
        return Some(dims.to_vec());
    }
    let count = match cx.shape(slot)? {
        [] => 1,
        [len] => usize::try_from(len.known()?).ok()?,
        _ => return None,
    };
    let integers = cx.dtype(slot).is_ok_and(DType::is_int);
    (integers && count <= MAX_FACT_DIMS).then(|| vec![Dim::Unknown; count])
}

/// The elements of the integer input that names axes, counted from the front; `None` if they are not known.
pub fn axes_input(cx: &InferCx, slot: usize, rank: usize) -> Result<Option<Vec<usize>>> {
    cx.ints(slot).map(|axes| normal_axes(&axes, rank)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_any_type() {
        let strings = Tensor::from_strings(vec![2], vec![Bytes::from("a"), Bytes::from("b")]).unwrap();
        let out = pick(&[&strings], vec![3], &[1, 0, 1]).unwrap();
        assert_eq!(out.strings().unwrap(), ["b", "a", "b"]);
        // 1, 2, 3 as 4-bit integers; the first stands in the low bits.
        let nibbles = Tensor::from_bytes(DType::U4, vec![3], Bytes::from_static(&[0x21, 0x03])).unwrap();
        let out = pick(&[&nibbles], vec![4], &[2, 1, 0, 2]).unwrap();
        assert_eq!(out.bytes().as_ref(), [0x23, 0x31]);
        let pool = [&Tensor::from_vec([2], vec![1.0f32, 2.0]), &Tensor::scalar(9.0f32)];
        assert_eq!(pick(&pool, vec![2], &[2, 1]).unwrap().to_vec::<f32>().unwrap(), [9.0, 2.0]);
        assert!(pick(&pool, vec![1], &[3]).is_err());
    }

    #[test]
    fn sums_offsets_with_the_last_axis_fastest() {
        assert_eq!(outer_sum(&[vec![0, 10], vec![0, OUTSIDE, 2]]), [0, OUTSIDE, 2, 10, OUTSIDE, 12]);
        assert_eq!(outer_sum(&[]), [0]);
        assert_eq!(outer_sum(&[vec![], vec![1]]), [0; 0]);
    }
}
