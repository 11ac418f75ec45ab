//! Tensors in the safetensors format: the length of a header, the header (JSON: type, shape and place of each tensor),
//! the bytes. Format: <https://huggingface.co/docs/safetensors>. Written from the tensors' own memory, read as windows.

use bytes::Bytes;
use sartor_ir::{DType, Error, Result, Tensor, bail, ensure};
use serde_json::{Map, Value, json};

const NAMES: &[(DType, &str)] = &[
    (DType::F32, "F32"),
    (DType::F64, "F64"),
    (DType::F16, "F16"),
    (DType::BF16, "BF16"),
    (DType::I8, "I8"),
    (DType::I16, "I16"),
    (DType::I32, "I32"),
    (DType::I64, "I64"),
    (DType::U8, "U8"),
    (DType::U16, "U16"),
    (DType::U32, "U32"),
    (DType::U64, "U64"),
    (DType::Bool, "BOOL"),
];

/// The length field and the header for tensors that follow in this order.
pub fn header(tensors: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let (mut entries, mut at) = (Map::new(), 0usize);
    for (name, tensor) in tensors {
        let Some((_, dtype)) = NAMES.iter().find(|(dtype, _)| *dtype == tensor.dtype()) else {
            bail!("parameter \"{name}\" is {}, which a checkpoint cannot hold", tensor.dtype());
        };
        let end = at + tensor.bytes().len();
        entries.insert(name.clone(), json!({"dtype": dtype, "shape": tensor.shape(), "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = Value::Object(entries).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    Ok([&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat())
}

/// The tensors of a file's bytes.
pub fn parse(bytes: &Bytes) -> Result<Vec<(String, Tensor)>> {
    let cut = || Error::msg("the file is cut off");
    let length = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).ok_or_else(cut)?;
    let start = usize::try_from(length).ok().and_then(|l| l.checked_add(8)).filter(|&s| s <= bytes.len());
    let start = start.ok_or_else(cut)?;
    let entries: Map<String, Value> =
        serde_json::from_slice(&bytes[8..start]).map_err(|e| Error::msg(format!("the header is not JSON: {e}")))?;
    let entries = entries.iter().filter(|(name, _)| *name != "__metadata__");
    entries.map(|(name, entry)| Ok((name.clone(), window(bytes, start, entry).map_err(|e| e.at(name))?))).collect()
}

fn window(bytes: &Bytes, start: usize, entry: &Value) -> Result<Tensor> {
    let dtype = entry.get("dtype").and_then(Value::as_str).unwrap_or_default();
    let Some((dtype, _)) = NAMES.iter().find(|(_, name)| *name == dtype) else { bail!("its type is \"{dtype}\"") };
    let shape = numbers(entry, "shape")?;
    let [from, to] = numbers(entry, "data_offsets")?[..] else { bail!("data_offsets is not a pair") };
    let range = (start.checked_add(from), start.checked_add(to));
    let (Some(from), Some(to)) = range else { bail!("its place is outside the file") };
    ensure!(from <= to && to <= bytes.len(), "its place is outside the file");
    Tensor::from_bytes(*dtype, shape, bytes.slice(from..to))
}

fn numbers(entry: &Value, key: &str) -> Result<Vec<usize>> {
    let list = entry.get(key).and_then(Value::as_array).ok_or_else(|| Error::msg(format!("it has no {key}")))?;
    let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let wrong = || Error::msg(format!("its {key} is not a list of sizes"));
    list.iter().map(|v| number(v).ok_or_else(wrong)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let tensors =
            vec![("a".to_string(), Tensor::from_vec([2], vec![1.5f32, -0.0])), ("b".to_string(), Tensor::scalar(7i64))];
        let mut file = header(&tensors).unwrap();
        tensors.iter().for_each(|(_, t)| file.extend(t.bytes().iter()));
        assert_eq!(parse(&file.clone().into()).unwrap(), tensors);
        for length in 0..file.len() {
            assert!(parse(&Bytes::copy_from_slice(&file[..length])).is_err(), "{length}");
        }
        file[0] = 0xff;
        assert!(parse(&file.into()).is_err());
    }
}
