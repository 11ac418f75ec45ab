//! The one place where a `TensorProto`, wherever it stands, becomes a [`Tensor`], and back.
//!
//! A tensor's elements stand in `raw_data`, in one field for its element type, or in another file; in exactly one of
//! them, and in exactly as many bytes as type and shape need. On writing, numbers always go to `raw_data`.

use super::external::ExternalFiles;
use super::proto::*;
use crate::dtype::DType;
use crate::error::{Context, Result};
use crate::tensor::{Tensor, element_count};
use crate::{bail, ensure};
use bytes::Bytes;

/// Reads a tensor. `files` opens external data.
pub(super) fn read_tensor(proto: TensorProto, files: &ExternalFiles) -> Result<Tensor> {
    let place = format!("tensor \"{}\"", proto.name);
    read(proto, files).context(|| place)
}

fn read(proto: TensorProto, files: &ExternalFiles) -> Result<Tensor> {
    let Some(dtype) = DType::from_onnx_code(proto.data_type) else {
        bail!("element type {} is not known", proto.data_type);
    };
    ensure!(proto.segment.is_none(), "tensors in segments are not supported");
    let shape = read_dims(&proto.dims)?;
    let Some(count) = element_count(&shape).filter(|n| dtype.byte_len(*n).is_some_and(|b| b <= isize::MAX as usize))
    else {
        bail!("{dtype}{shape:?} is larger than the address space");
    };
    let fields = payload_fields(&proto);
    if proto.data_location == Some(EXTERNAL) {
        ensure!(fields.is_empty(), "has external data, and {} besides", fields.join(", "));
        ensure!(dtype != DType::String, "strings cannot be external data");
        let len = dtype.byte_len(count).unwrap_or(0);
        return Tensor::from_bytes(dtype, shape, files.read(&proto.external_data, len)?);
    }
    ensure!(proto.external_data.is_empty(), "names external data, but its location says that it has none");
    ensure!(fields.len() <= 1, "has its elements in {} fields ({}), expected one", fields.len(), fields.join(", "));
    match fields.first() {
        Some(&"string_data") | None if dtype == DType::String => Tensor::from_strings(shape, proto.string_data),
        Some(&"raw_data") | None => Tensor::from_bytes(dtype, shape, proto.raw_data.unwrap_or_default()),
        Some(field) => from_typed(proto, field, dtype, shape, count),
    }
}

fn read_dims(dims: &[i64]) -> Result<Vec<usize>> {
    ensure!(dims.len() <= 64, "has {} axes, expected at most 64", dims.len());
    let dim = |&d: &i64| match usize::try_from(d) {
        Ok(d) => Ok(d),
        Err(_) => bail!("has the dimension {d}"),
    };
    dims.iter().map(dim).collect()
}

/// The names of the payload fields that are not empty.
fn payload_fields(proto: &TensorProto) -> Vec<&'static str> {
    let fields = [
        ("raw_data", proto.raw_data.as_ref().map_or(0, Bytes::len)),
        ("float_data", proto.float_data.len()),
        ("int32_data", proto.int32_data.len()),
        ("string_data", proto.string_data.len()),
        ("int64_data", proto.int64_data.len()),
        ("double_data", proto.double_data.len()),
        ("uint64_data", proto.uint64_data.len()),
    ];
    fields.iter().filter(|(_, len)| *len > 0).map(|(name, _)| *name).collect()
}

/// The elements of a typed field, as the specification assigns fields to element types.
fn from_typed(proto: TensorProto, field: &str, dtype: DType, shape: Vec<usize>, count: usize) -> Result<Tensor> {
    let found = match field {
        "float_data" => proto.float_data.len(),
        "double_data" => proto.double_data.len(),
        "int64_data" => proto.int64_data.len(),
        "uint64_data" => proto.uint64_data.len(),
        _ => proto.int32_data.len(),
    };
    let expected = entries(dtype, count);
    ensure!(Some(found) == expected, "{dtype}{shape:?} has {found} entries in {field}, expected {expected:?}");
    let raw = match (field, dtype) {
        ("float_data", DType::F32 | DType::Complex64) => owned(proto.float_data),
        ("double_data", DType::F64 | DType::Complex128) => owned(proto.double_data),
        ("int64_data", DType::I64) => owned(proto.int64_data),
        ("uint64_data", DType::U64) => owned(proto.uint64_data),
        ("uint64_data", DType::U32) => owned(narrow(&proto.uint64_data, dtype, |x| u32::try_from(x).ok())?),
        ("int32_data", DType::I32) => owned(proto.int32_data),
        ("int32_data", DType::I16) => owned(narrow(&proto.int32_data, dtype, |x| i16::try_from(x).ok())?),
        ("int32_data", DType::U16 | DType::F16 | DType::BF16) => {
            owned(narrow(&proto.int32_data, dtype, |x| u16::try_from(x).ok())?)
        }
        ("int32_data", DType::Bool) => owned(narrow(&proto.int32_data, dtype, |x| Some((x != 0) as u8))?),
        ("int32_data", dtype) if dtype.bits() <= 8 && dtype != DType::String => {
            // Signed bytes stand as negative numbers, or as their bit pattern.
            let byte = |x: i32| (-128..=255).contains(&x).then_some(x as u8);
            owned(narrow(&proto.int32_data, dtype, byte)?)
        }
        _ => bail!("a tensor of {dtype} has its elements in {field}, where they do not belong"),
    };
    Tensor::from_bytes(dtype, shape, raw)
}

/// How many entries of its typed field a tensor needs.
fn entries(dtype: DType, count: usize) -> Option<usize> {
    match dtype {
        DType::Complex64 | DType::Complex128 => count.checked_mul(2),
        dtype if dtype.bits() < 8 => dtype.byte_len(count),
        _ => Some(count),
    }
}

fn narrow<From: Copy + std::fmt::Display, To>(
    from: &[From],
    dtype: DType,
    convert: impl Fn(From) -> Option<To>,
) -> Result<Vec<To>> {
    let one = |&x: &From| match convert(x) {
        Some(y) => Ok(y),
        None => bail!("the entry {x} does not fit {dtype}"),
    };
    from.iter().map(one).collect()
}

/// The bytes of a vector of numbers, without a copy.
fn owned<T: bytemuck::Pod + Send + 'static>(data: Vec<T>) -> Bytes {
    struct Owner<T>(Vec<T>);
    impl<T: bytemuck::Pod> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    Bytes::from_owner(Owner(data))
}

/// The message of a tensor; its bytes are shared, not copied.
pub(super) fn write_tensor(name: &str, tensor: &Tensor) -> TensorProto {
    let mut proto = TensorProto {
        name: name.to_string(),
        data_type: tensor.dtype().onnx_code(),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        ..TensorProto::default()
    };
    match tensor.strings() {
        Some(strings) => proto.string_data = strings.to_vec(),
        None => proto.raw_data = Some(tensor.bytes().clone()),
    }
    proto
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(dtype: DType, dims: &[i64]) -> TensorProto {
        TensorProto { name: "t".into(), data_type: dtype.onnx_code(), dims: dims.to_vec(), ..TensorProto::default() }
    }
    fn read(proto: TensorProto) -> Result<Tensor> {
        read_tensor(proto, &ExternalFiles::none())
    }
    #[track_caller]
    fn error(proto: TensorProto, want: &str) {
        let error = read(proto).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }

    #[test]
    fn every_typed_field_is_read() {
        let ints = |dtype, data: &[i32]| {
            let len = data.len() as i64 * if dtype == DType::U4 { 2 } else { 1 };
            read(TensorProto { int32_data: data.to_vec(), ..message(dtype, &[len]) }).unwrap()
        };
        assert_eq!(ints(DType::I32, &[-5, 7]).to_vec::<i32>().unwrap(), [-5, 7]);
        assert_eq!(ints(DType::I16, &[-5]).to_vec::<i16>().unwrap(), [-5]);
        assert_eq!(ints(DType::I8, &[-5, 127]).to_vec::<i8>().unwrap(), [-5, 127]);
        assert_eq!(ints(DType::U8, &[200]).to_vec::<u8>().unwrap(), [200]);
        assert_eq!(ints(DType::U16, &[60000]).to_vec::<u16>().unwrap(), [60000]);
        assert_eq!(ints(DType::Bool, &[1, 0]).bytes()[..], [1, 0]);
        assert_eq!(ints(DType::F16, &[0x3c00]).cast(DType::F32).unwrap().to_vec::<f32>().unwrap(), [1.0]);
        assert_eq!(ints(DType::U4, &[0x21, 0x43]).bytes()[..], [0x21, 0x43]);
        assert_eq!(ints(DType::F8E5M2, &[0x80]).bytes()[..], [0x80]);
        let complex = TensorProto { float_data: vec![1.0, 2.0], ..message(DType::Complex64, &[1]) };
        assert_eq!(read(complex).unwrap().bytes().len(), 8);
        let unsigned = TensorProto { uint64_data: vec![u32::MAX as u64], ..message(DType::U32, &[]) };
        assert_eq!(read(unsigned).unwrap().item::<u32>().unwrap(), u32::MAX);
        let double = TensorProto { double_data: vec![0.5], ..message(DType::F64, &[1]) };
        assert_eq!(read(double).unwrap().item::<f64>().unwrap(), 0.5);
        let strings = TensorProto { string_data: vec![Bytes::from_static(b"a")], ..message(DType::String, &[1]) };
        assert_eq!(read(strings).unwrap().strings().unwrap()[0], "a");
    }

    #[test]
    fn lengths_and_fields_are_exact() {
        let raw =
            |dims: &[i64], len: usize| TensorProto { raw_data: Some(vec![0; len].into()), ..message(DType::F32, dims) };
        error(raw(&[2], 7), "needs 8 bytes, found 7");
        error(raw(&[2], 12), "needs 8 bytes, found 12");
        error(raw(&[-1], 4), "has the dimension -1");
        error(raw(&[i64::MAX, i64::MAX], 4), "larger than the address space");
        error(raw(&[1 << 62], 4), "larger than the address space");
        error(message(DType::F32, &[2]), "needs 8 bytes, found 0");
        error(TensorProto { float_data: vec![1.0], ..raw(&[1], 4) }, "in 2 fields (raw_data, float_data)");
        error(TensorProto { float_data: vec![1.0], ..message(DType::F32, &[2]) }, "has 1 entries in float_data");
        error(TensorProto { float_data: vec![1.0], ..message(DType::I32, &[1]) }, "do not belong");
        error(TensorProto { int32_data: vec![70000], ..message(DType::U16, &[1]) }, "70000 does not fit");
        error(TensorProto { data_type: 99, ..message(DType::F32, &[1]) }, "element type 99");
        error(TensorProto { data_type: 0, ..message(DType::F32, &[1]) }, "element type 0");
        error(TensorProto { raw_data: Some(vec![1].into()), ..message(DType::String, &[1]) }, "raw bytes");
        assert!(read(message(DType::F32, &[0, 3])).unwrap().is_empty());
    }

    #[test]
    fn tensors_survive() {
        let tensor = Tensor::from_vec([2, 1], vec![1.5f32, -0.0]);
        assert_eq!(read(write_tensor("t", &tensor)).unwrap(), tensor);
    }
}
