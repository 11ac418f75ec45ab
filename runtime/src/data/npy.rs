//! NumPy's `.npy`: a magic number, a header (the literal of a Python dictionary) and the raw elements.
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, versions 1 to 3.
//!
//! Reading makes a window on the file's bytes: nothing is copied, and nothing is allocated by what a header claims.

use bytes::Bytes;
use sartor_ir::{DType, Error, Result, Tensor, bail, ensure};

const MAGIC: &[u8] = b"\x93NUMPY";
/// More than any real header, less than what would hurt.
const MAX_HEADER: usize = 1 << 16;

const DESCRIPTORS: &[(&str, DType)] = &[
    ("<f4", DType::F32),
    ("<f8", DType::F64),
    ("<f2", DType::F16),
    ("|i1", DType::I8),
    ("<i2", DType::I16),
    ("<i4", DType::I32),
    ("<i8", DType::I64),
    ("|u1", DType::U8),
    ("<u2", DType::U16),
    ("<u4", DType::U32),
    ("<u8", DType::U64),
    ("|b1", DType::Bool),
    ("<c8", DType::Complex64),
    ("<c16", DType::Complex128),
];

/// The tensor of a file's bytes.
pub fn parse(bytes: &Bytes) -> Result<Tensor> {
    let (header, start) = header(bytes)?;
    let descr = value_of(header, "descr")?;
    let descr = descr.trim_matches(|c| c == '\'' || c == '"');
    let Some((_, dtype)) = DESCRIPTORS.iter().find(|(name, _)| *name == descr) else {
        bail!("the array's type {descr} is not supported (little-endian numbers and bool are)");
    };
    let shape = parse_shape(value_of(header, "shape")?)?;
    let data = bytes.slice(start..);
    match value_of(header, "fortran_order")? {
        "False" => Tensor::from_bytes(*dtype, shape, data),
        "True" => transposed(*dtype, shape, data),
        other => bail!("fortran_order is {other}, expected True or False"),
    }
}

fn header(bytes: &Bytes) -> Result<(&str, usize)> {
    ensure!(bytes.starts_with(MAGIC), "this is not a NumPy array (it does not begin with \\x93NUMPY)");
    let cut = || Error::msg("the file ends inside its header");
    let length_bytes = if bytes.get(6).ok_or_else(cut)? == &1 { 2 } else { 4 };
    let field = bytes.get(8..8 + length_bytes).ok_or_else(cut)?;
    let length = field.iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b));
    ensure!(length <= MAX_HEADER, "the header claims {length} bytes, more than {MAX_HEADER}");
    let start = 8 + length_bytes + length;
    let text = bytes.get(8 + length_bytes..start).ok_or_else(cut)?;
    Ok((std::str::from_utf8(text).map_err(|_| Error::msg("the header is not UTF-8"))?, start))
}

/// The text of a value in the dictionary: a quoted string, a tuple, or a word.
fn value_of<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let missing = || Error::msg(format!("the header has no `{key}`: {}", header.trim()));
    let quoted = [format!("'{key}'"), format!("\"{key}\"")];
    let after = quoted.iter().find_map(|q| header.split_once(q.as_str())).ok_or_else(missing)?.1;
    let value = after.trim_start().strip_prefix(':').ok_or_else(missing)?.trim_start();
    let end = match value.chars().next() {
        Some('(') => value.find(')').map(|i| i + 1),
        Some(quote @ ('\'' | '"')) => value[1..].find(quote).map(|i| i + 2),
        _ => value.find([',', '}']),
    };
    Ok(value[..end.ok_or_else(missing)?].trim())
}

fn parse_shape(tuple: &str) -> Result<Vec<usize>> {
    let inner = tuple.strip_prefix('(').and_then(|t| t.strip_suffix(')'));
    let Some(inner) = inner else { bail!("the shape {tuple} is not a tuple") };
    let parts = inner.split(',').map(str::trim).filter(|p| !p.is_empty());
    parts.map(|p| p.parse().map_err(|_| Error::msg(format!("the shape {tuple} holds \"{p}\"")))).collect()
}

/// From column-major order: the bytes are those of the tensor with all axes reversed.
fn transposed(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Tensor> {
    let from = Tensor::from_bytes(dtype, shape.clone(), data)?;
    let width = dtype.bits() / 8;
    let mut out = Vec::with_capacity(from.bytes().len());
    let mut index = vec![0usize; shape.len()];
    for _ in 0..from.len() {
        let mut place = 0;
        for (i, d) in index.iter().zip(&shape).rev() {
            place = place * d + i;
        }
        out.extend_from_slice(&from.bytes()[place * width..(place + 1) * width]);
        for (i, d) in index.iter_mut().zip(&shape).rev() {
            *i += 1;
            if *i < *d {
                break;
            }
            *i = 0;
        }
    }
    Tensor::from_bytes(dtype, shape, out.into())
}

/// The magic number and header for a tensor, padded so that the elements begin on a multiple of 64.
pub fn encode_header(tensor: &Tensor) -> Result<Vec<u8>> {
    let Some((descr, _)) = DESCRIPTORS.iter().find(|(_, dtype)| *dtype == tensor.dtype()) else {
        bail!("NumPy has no type for {}", tensor.dtype());
    };
    let dims: Vec<String> = tensor.shape().iter().map(|d| format!("{d},")).collect();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", dims.join(" "));
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let length = u16::try_from(text.len()).map_err(|_| Error::msg("the shape has too many axes for NumPy"))?;
    let mut out = [MAGIC, &[1, 0]].concat();
    out.extend(length.to_le_bytes());
    out.extend(text.bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray_npy::WriteNpyExt;

    #[test]
    fn reads_what_another_writer_writes_in_both_orders() {
        let rows = ndarray::array![[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]];
        let mut plain = Vec::new();
        rows.write_npy(&mut plain).unwrap();
        let expected = Tensor::from_vec([2, 3], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(parse(&plain.into()).unwrap(), expected);
        let mut columns = Vec::new();
        rows.t().as_standard_layout().reversed_axes().write_npy(&mut columns).unwrap();
        assert!(String::from_utf8_lossy(&columns).contains("'fortran_order': True"));
        assert_eq!(parse(&columns.into()).unwrap(), expected);
    }

    #[test]
    fn writes_what_another_reader_reads() {
        let tensor = Tensor::from_vec([2, 1], vec![7i64, -8]);
        let file = [encode_header(&tensor).unwrap(), tensor.bytes().to_vec()].concat();
        let back: ndarray::Array2<i64> = ndarray_npy::ReadNpyExt::read_npy(&file[..]).unwrap();
        assert_eq!(back, ndarray::array![[7], [-8]]);
        assert_eq!((file.len() - 16) % 64, 0);
    }

    #[test]
    fn broken_files_are_sentences() {
        let error = |bytes: &[u8]| parse(&Bytes::copy_from_slice(bytes)).unwrap_err().to_string();
        assert!(error(b"PK").contains("not a NumPy array"));
        assert_eq!(error(b"\x93NUMPY\x01\x00\xff\x00{"), "the file ends inside its header");
        let mut file = encode_header(&Tensor::from_vec([3], vec![1.0f32; 3])).unwrap();
        file.extend([0; 8]);
        assert_eq!(error(&file), "tensor float[3] needs 12 bytes, found 8");
        let huge = String::from_utf8_lossy(&file).replace("(3,)", "(99999999999999999999,)");
        assert!(huge.contains("9999"));
        assert!(parse_shape("(99999999999999999999,)").unwrap_err().to_string().contains("holds"));
        let object = encode_header(&Tensor::from_vec([1], vec![1u8])).unwrap();
        let object: Vec<u8> = object.iter().map(|&b| if b == b'u' { b'O' } else { b }).collect();
        assert!(error(&object).contains("type |O1 is not supported"));
    }
}
