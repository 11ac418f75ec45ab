//! Literals: names, strings, numbers and tensors as text, exact to the bit.

use super::is_word;
use crate::{DType, Element, Tensor, dispatch};
use std::fmt::Write;

/// Longer tensors are printed as hexadecimal bytes.
const MAX_DECIMAL: usize = 64;

/// A name, quoted unless it is a word.
pub fn name(name: &str) -> String {
    if is_word(name) { name.to_string() } else { quoted(name.as_bytes()) }
}

/// A byte string in quotes. Valid UTF-8 stays readable; other bytes become `\xNN`.
pub fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                c if c.is_control() && c.is_ascii() => {
                    let _ = write!(out, "\\x{:02x}", c as u32);
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

/// A float that reads back to the same bits (NaN: to a NaN), always with a `.`, an `e`, or in letters.
pub fn float(value: f32) -> String {
    if value.is_nan() { "nan".to_string() } else { format!("{value:?}") }
}

/// The value of a tensor, without its type: `{1.0, 2.0}`, `hex "…"`, or the elided form.
pub fn tensor(tensor: &Tensor, max_elements: usize) -> String {
    if tensor.len() > max_elements {
        return format!("… {} elements, fnv 0x{:016x}", tensor.len(), fingerprint(tensor));
    }
    if let Some(strings) = tensor.strings() {
        return braced(strings.iter().map(|s| quoted(s)));
    }
    let decimal = if tensor.len() <= MAX_DECIMAL { decimals(tensor) } else { None };
    decimal.unwrap_or_else(|| {
        let mut hex = String::with_capacity(2 * tensor.bytes().len() + 8);
        hex.push_str("hex \"");
        for byte in tensor.bytes() {
            let _ = write!(hex, "{byte:02x}");
        }
        hex.push('"');
        hex
    })
}

fn braced(parts: impl Iterator<Item = String>) -> String {
    format!("{{{}}}", parts.collect::<Vec<_>>().join(", "))
}

/// The elements in decimal, if each reads back to its bits.
fn decimals(tensor: &Tensor) -> Option<String> {
    if tensor.dtype() == DType::Bool {
        let plain = tensor.bytes().iter().all(|&b| b < 2);
        return plain.then(|| braced(tensor.bytes().iter().map(|&b| b.to_string())));
    }
    let printed: Vec<String> = dispatch!(tensor.dtype(), number T => {
        tensor.as_slice::<T>().ok()?.iter().map(|x| decimal(*x)).collect()
    }, else return None);
    let back = elements(tensor.dtype(), &printed)?;
    (back == tensor.bytes()[..]).then(|| braced(printed.into_iter()))
}

fn decimal<T: Element + num_traits::AsPrimitive<f32>>(value: T) -> String {
    match T::DTYPE {
        // A half is exact in single precision, and its shortest form there reads back.
        DType::F16 | DType::BF16 => format!("{:?}", value.as_()),
        _ => format!("{value:?}"),
    }
}

/// The bytes of elements in decimal; `None` if one cannot be read.
pub fn elements<S: AsRef<str>>(dtype: DType, words: &[S]) -> Option<Vec<u8>> {
    fn read<T: Element + std::str::FromStr, S: AsRef<str>>(words: &[S]) -> Option<Vec<u8>> {
        let values: Option<Vec<T>> = words.iter().map(|w| w.as_ref().parse().ok()).collect();
        Some(T::bytes_of(&values?).to_vec())
    }
    match dtype {
        DType::Bool => words.iter().map(|w| w.as_ref().parse::<u8>().ok().filter(|b| *b < 2)).collect(),
        _ => dispatch!(dtype, number T => read::<T, S>(words), else None),
    }
}

/// The bytes behind hexadecimal digits.
pub fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// FNV-1a, 64 bits, over the bytes: tells in a diff whether an elided tensor changed.
fn fingerprint(tensor: &Tensor) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let strings = tensor.strings().unwrap_or(&[]).iter().flatten();
    tensor.bytes().iter().chain(strings).fold(0xcbf2_9ce4_8422_2325, step)
}
