//! Host tensors: an element type, a shape and bytes. Cloning is cheap (the bytes are shared), so a tensor may be
//! a window on a memory-mapped file. Numbers are little-endian and dense, last axis fastest.

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::minifloat::{self, Conversion};
use crate::{bail, dispatch, ensure};
use bytes::Bytes;
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use num_traits::AsPrimitive;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// A dense host tensor.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Clone, PartialEq)]
enum Data {
    Bytes(Bytes),
    Strings(Arc<Vec<Bytes>>),
}

/// Keeps a vector alive behind [`Bytes`] without copying it.
struct Owner<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        T::bytes_of(&self.0)
    }
}

/// The number of elements of a shape; `None` on overflow.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

impl Tensor {
    /// A tensor on shared bytes. Errors unless the bytes are exactly as many as type and shape need.
    pub fn from_bytes(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Result<Tensor> {
        ensure!(dtype != DType::String, "a string tensor is not made from raw bytes");
        let want = element_count(&shape).and_then(|n| dtype.byte_len(n));
        match want {
            Some(want) if want == bytes.len() => Ok(Tensor { dtype, shape, data: Data::Bytes(bytes) }),
            Some(want) => bail!("tensor {dtype}{shape:?} needs {want} bytes, found {}", bytes.len()),
            None => bail!("tensor {dtype}{shape:?} is larger than the address space"),
        }
    }
    /// A tensor of strings (byte strings; ONNX asks for UTF-8 but files hold anything).
    pub fn from_strings(shape: Vec<usize>, strings: Vec<Bytes>) -> Result<Tensor> {
        ensure!(
            element_count(&shape) == Some(strings.len()),
            "string tensor of shape {shape:?} holds {} strings",
            strings.len()
        );
        Ok(Tensor { dtype: DType::String, shape, data: Data::Strings(Arc::new(strings)) })
    }
    /// A tensor that takes over a vector. Panics if `shape` does not hold `data.len()` elements.
    pub fn from_vec<T: Element>(shape: impl Into<Vec<usize>>, data: Vec<T>) -> Tensor {
        let shape = shape.into();
        assert_eq!(element_count(&shape), Some(data.len()), "shape {shape:?} against {} elements", data.len());
        Tensor { dtype: T::DTYPE, shape, data: Data::Bytes(Bytes::from_owner(Owner(data))) }
    }
    /// A tensor of rank 0.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::from_vec([], vec![value])
    }
    /// A rank-1 `int64` tensor, as shapes, axes and repeats are.
    pub fn from_i64s(values: &[i64]) -> Tensor {
        Tensor::from_vec([values.len()], values.to_vec())
    }
    /// A tensor of rank 0 of any numeric type, converted from `f64` (truncated for integers).
    pub fn scalar_of(dtype: DType, value: f64) -> Result<Tensor> {
        Tensor::scalar(value).cast(dtype)
    }
    /// All zeros (false, empty strings).
    pub fn zeros(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        let shape = shape.into();
        let count = element_count(&shape).ok_or_else(|| Error::msg(format!("shape {shape:?} is too large")))?;
        if dtype == DType::String {
            return Tensor::from_strings(shape, vec![Bytes::new(); count]);
        }
        let len = dtype.byte_len(count).ok_or_else(|| Error::msg(format!("shape {shape:?} is too large")))?;
        // 8-byte words, so that every element type finds its alignment.
        let words = vec![0u64; len.div_ceil(8)];
        Tensor::from_bytes(dtype, shape, Bytes::from_owner(Owner(words)).slice(0..len))
    }
    /// A tensor out of an array (copied only if it is not in standard layout).
    pub fn from_array<T: Element>(array: ArrayD<T>) -> Tensor {
        let shape = array.shape().to_vec();
        let data = if array.is_standard_layout() {
            let (data, offset) = array.into_raw_vec_and_offset();
            let start = offset.unwrap_or(0);
            let count = element_count(&shape).unwrap_or(0);
            if start == 0 && data.len() == count { data } else { data[start..start + count].to_vec() }
        } else {
            array.iter().copied().collect()
        };
        Tensor::from_vec(shape, data)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The raw bytes, little-endian; empty for strings.
    pub fn bytes(&self) -> &Bytes {
        static EMPTY: Bytes = Bytes::new();
        match &self.data {
            Data::Bytes(bytes) => bytes,
            Data::Strings(_) => &EMPTY,
        }
    }
    /// The strings of a string tensor.
    pub fn strings(&self) -> Option<&[Bytes]> {
        match &self.data {
            Data::Bytes(_) => None,
            Data::Strings(strings) => Some(strings),
        }
    }
    /// The elements, borrowed where alignment allows. Errors if `T` is not the element type.
    pub fn as_slice<T: Element>(&self) -> Result<Cow<'_, [T]>> {
        ensure!(T::DTYPE == self.dtype, "a tensor of {} was read as {}", self.dtype, T::DTYPE);
        Ok(T::from_bytes(self.bytes()))
    }
    /// The elements, copied.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        Ok(self.as_slice::<T>()?.into_owned())
    }
    /// The elements as an `ndarray` array, copied.
    pub fn to_array<T: Element>(&self) -> Result<ArrayD<T>> {
        let data = self.to_vec::<T>()?;
        ArrayD::from_shape_vec(IxDyn(&self.shape), data).map_err(|e| Error::msg(e.to_string()))
    }
    /// Runs a function on an `ndarray` view of the elements (no copy where alignment allows).
    pub fn with_view<T: Element, R>(&self, run: impl FnOnce(ArrayViewD<'_, T>) -> R) -> Result<R> {
        let data = self.as_slice::<T>()?;
        let view = ArrayViewD::from_shape(IxDyn(&self.shape), &data).map_err(|e| Error::msg(e.to_string()))?;
        Ok(run(view))
    }
    /// The single element of a one-element tensor.
    pub fn item<T: Element>(&self) -> Result<T> {
        ensure!(self.len() == 1, "expected one element, found shape {:?}", self.shape);
        Ok(self.as_slice::<T>()?[0])
    }
    /// All elements as `i64`, from any integer or bool type (shapes, axes, repeats, sizes).
    pub fn to_i64s(&self) -> Result<Vec<i64>> {
        match self.dtype {
            DType::I64 => self.to_vec(),
            DType::Bool => Ok(self.as_slice::<bool>()?.iter().map(|&b| b as i64).collect()),
            dtype if dtype.is_int() => self.cast(DType::I64)?.to_vec(),
            dtype => bail!("expected integers, found {dtype}"),
        }
    }
    /// All elements as `f64`, from any number or bool type.
    pub fn to_f64s(&self) -> Result<Vec<f64>> {
        self.cast(DType::F64)?.to_vec()
    }
    /// The same elements under another shape of equally many elements.
    pub fn reshaped(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        let shape = shape.into();
        ensure!(
            element_count(&shape) == Some(self.len()),
            "cannot reshape {:?} ({} elements) to {shape:?}",
            self.shape,
            self.len()
        );
        Ok(Tensor { shape, ..self.clone() })
    }
    /// The elements converted one by one as Rust's `as` does (floats saturate into integers, NaN becomes 0);
    /// to bool: not zero; to types of at most 8 bits: by [`minifloat::encode`], floats saturating.
    pub fn cast(&self, to: DType) -> Result<Tensor> {
        self.cast_by(to, Conversion::default())
    }
    /// The same, with a rule for the conversion to 8-bit floats.
    pub fn cast_by(&self, to: DType, how: Conversion) -> Result<Tensor> {
        if to == self.dtype {
            return Ok(self.clone());
        }
        if self.dtype.is_narrow() {
            let table: Vec<f32> =
                (0..1u32 << self.dtype.bits()).map(|c| minifloat::decode(self.dtype, c as u8)).collect();
            let values: Vec<f32> = self.codes()?.into_iter().map(|c| table[usize::from(c)]).collect();
            return Tensor::from_vec(self.shape.clone(), values).cast_by(to, how);
        }
        if to.is_narrow() {
            let codes = self.to_f64s()?.into_iter().map(|x| minifloat::encode(to, x, how)).collect();
            return Tensor::from_codes(to, self.shape.clone(), codes);
        }
        if self.dtype == DType::Bool {
            let ones: Vec<u8> = self.bytes().iter().map(|&b| (b != 0) as u8).collect();
            return Tensor::from_vec(self.shape.clone(), ones).cast(to);
        }
        let unsupported = || Error::msg(format!("no conversion from {} to {to}", self.dtype));
        dispatch!(self.dtype, number From => {
            let from = self.as_slice::<From>()?;
            if to == DType::Bool {
                let bools: Vec<bool> = from.iter().map(|&x| x != From::default()).collect();
                return Ok(Tensor::from_vec(self.shape.clone(), bools));
            }
            dispatch!(to, number To => {
                let cast: Vec<To> = from.iter().map(|&x| -> To { x.as_() }).collect();
                Ok(Tensor::from_vec(self.shape.clone(), cast))
            }, else Err(unsupported()))
        }, else Err(unsupported()))
    }
    /// One byte per element of a type of at most 8 bits, the unused high bits 0.
    pub fn codes(&self) -> Result<Vec<u8>> {
        match self.dtype.bits() {
            8 => Ok(self.bytes().to_vec()),
            bits @ 1..8 => Ok(minifloat::unpack(self.bytes(), bits, self.len())),
            _ => bail!("the elements of {} are wider than a byte", self.dtype),
        }
    }
    /// A tensor of a type of at most 8 bits from one byte per element; high bits that it has no place for are dropped.
    pub fn from_codes(dtype: DType, shape: impl Into<Vec<usize>>, mut codes: Vec<u8>) -> Result<Tensor> {
        let (shape, bits) = (shape.into(), dtype.bits());
        ensure!((1..=8).contains(&bits), "the elements of {dtype} are not one byte each");
        ensure!(
            element_count(&shape) == Some(codes.len()),
            "tensor {dtype}{shape:?} needs another number of elements than {}",
            codes.len()
        );
        if bits < 8 {
            codes.iter_mut().for_each(|code| *code &= (1 << bits) - 1);
            codes = minifloat::pack(&codes, bits);
        }
        Tensor::from_bytes(dtype, shape, Bytes::from(codes))
    }
    /// The same values in memory that this process owns and that is aligned: what leaves a memory-mapped file.
    pub fn detached(&self) -> Tensor {
        match &self.data {
            Data::Strings(_) => self.clone(),
            Data::Bytes(bytes) => {
                let mut words = vec![0u64; bytes.len().div_ceil(8)];
                bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
                let bytes = Bytes::from_owner(Owner(words)).slice(0..bytes.len());
                Tensor { data: Data::Bytes(bytes), ..self.clone() }
            }
        }
    }
    /// Whether all floating-point elements are finite; true for other types.
    pub fn is_finite(&self) -> bool {
        match self.dtype {
            DType::F32 => self.as_slice::<f32>().is_ok_and(|s| s.iter().all(|x| x.is_finite())),
            DType::F64 => self.as_slice::<f64>().is_ok_and(|s| s.iter().all(|x| x.is_finite())),
            dtype if dtype.is_float() => self.cast(DType::F32).is_ok_and(|t| t.is_finite()),
            _ => true,
        }
    }
}

/// Type, shape and the first few elements.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        if let Some(strings) = self.strings() {
            return write!(f, " {:?}", &strings[..strings.len().min(4)]);
        }
        let shown = self.len().min(8);
        if shown > 0 && dispatch!(self.dtype, any _T => true, else false) {
            dispatch!(self.dtype, any T => {
                let size = std::mem::size_of::<T>();
                let head = T::from_bytes(&self.bytes()[..shown * size]);
                write!(f, " {:?}{}", head, if self.len() > shown { "…" } else { "" })?;
            }, else ());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_bytes_wants_the_exact_length() {
        let bytes = Bytes::from_static(&[0; 7]);
        let error = Tensor::from_bytes(DType::F32, vec![2], bytes).unwrap_err();
        assert_eq!(error.to_string(), "tensor float[2] needs 8 bytes, found 7");
        let huge = Tensor::from_bytes(DType::F32, vec![usize::MAX, 2], Bytes::new()).unwrap_err();
        assert!(huge.to_string().contains("larger than the address space"));
    }

    #[test]
    fn unaligned_windows_read_right() {
        let mut raw = vec![9u8];
        raw.extend(1.5f32.to_le_bytes());
        let bytes = Bytes::from(raw).slice(1..);
        let tensor = Tensor::from_bytes(DType::F32, vec![1], bytes).unwrap();
        assert_eq!(tensor.item::<f32>().unwrap(), 1.5);
    }

    #[test]
    fn narrow_types_are_converted() {
        let tensor = Tensor::from_vec([3], vec![-8.0f32, 7.0, 0.5]);
        let nibbles = tensor.cast(DType::I4).unwrap();
        assert_eq!(nibbles.bytes().as_ref(), [0x78, 0x00]);
        assert_eq!(nibbles.cast(DType::I8).unwrap().to_vec::<i8>().unwrap(), [-8, 7, 0]);
        let floats = tensor.cast(DType::F8E4M3FN).unwrap();
        assert_eq!(floats.cast(DType::F64).unwrap().to_vec::<f64>().unwrap(), [-8.0, 7.0, 0.5]);
        assert_eq!(nibbles.cast(DType::F8E5M2).unwrap().to_f64s().unwrap(), [-8.0, 7.0, 0.0]);
    }

    #[test]
    fn casts_saturate_and_truncate() {
        let tensor = Tensor::from_vec([4], vec![1.9f32, -1.9, 300.0, f32::NAN]);
        assert_eq!(tensor.cast(DType::U8).unwrap().to_vec::<u8>().unwrap(), [1, 0, 255, 0]);
        assert_eq!(tensor.cast(DType::Bool).unwrap().to_vec::<bool>().unwrap(), [true; 4]);
        let half = tensor.cast(DType::F16).unwrap().cast(DType::F32).unwrap();
        assert!((half.to_vec::<f32>().unwrap()[0] - 1.9).abs() < 1e-3);
    }
}
