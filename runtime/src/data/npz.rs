//! NumPy's `.npz`: a zip archive of [`super::npy`] files, stored or deflated, zip64 included.
//! Format: <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>.
//!
//! Stored arrays are windows on the mapped file; deflated ones are unpacked once. An entry may not grow beyond what its
//! directory entry says, and nothing is allocated before the bytes are there.

use super::{map_file, npy};
use bytes::Bytes;
use indexmap::IndexMap;
use sartor_ir::{Context, Error, Result, Tensor, bail, ensure};
use std::io::{Read, Write};
use std::path::Path;

/// All arrays of a file, by name (without the suffix `.npy`), in the order of the archive.
pub fn read(path: &Path) -> Result<IndexMap<String, Tensor>> {
    let file = map_file(path)?;
    let place = || path.display().to_string();
    let mut arrays = IndexMap::new();
    for entry in directory(&file).context(place)? {
        let name = entry.name.strip_suffix(".npy").unwrap_or(&entry.name).to_string();
        let array = || format!("{}, array \"{name}\"", path.display());
        let tensor = entry.unpack(&file).and_then(|bytes| npy::parse(&bytes)).context(array)?;
        arrays.insert(name, tensor);
    }
    Ok(arrays)
}

struct Entry {
    name: String,
    method: u16,
    packed: usize,
    unpacked: usize,
    offset: usize,
}

fn number(bytes: &[u8], at: usize, width: usize) -> Result<usize> {
    let end = at.checked_add(width).ok_or_else(|| Error::msg("the archive is damaged"))?;
    let Some(field) = bytes.get(at..end) else { bail!("the archive is cut off") };
    Ok(field.iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b)))
}

const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";

/// The entries of the central directory.
fn directory(file: &[u8]) -> Result<Vec<Entry>> {
    ensure!(file.starts_with(b"PK"), "this is not a zip archive, as .npz files are");
    let tail = file.len().saturating_sub(22 + 0xffff);
    let found = file[tail..].windows(4).rposition(|w| w == END).map(|i| tail + i);
    let Some(end) = found else { bail!("the archive has no directory: the file is cut off") };
    let (mut count, mut at) = (number(file, end + 10, 2)?, number(file, end + 16, 4)?);
    if let Some(locator) = end.checked_sub(20).filter(|&l| file[l..].starts_with(b"PK\x06\x07")) {
        let end64 = number(file, locator + 8, 8)?;
        ensure!(file.get(end64..).is_some_and(|f| f.starts_with(END64)), "the archive's zip64 directory is damaged");
        (count, at) = (number(file, end64 + 32, 8)?, number(file, end64 + 48, 8)?);
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        ensure!(file.get(at..).is_some_and(|f| f.starts_with(CENTRAL)), "the archive's directory is damaged");
        let (name_len, extra_len, comment_len) =
            (number(file, at + 28, 2)?, number(file, at + 30, 2)?, number(file, at + 32, 2)?);
        entries.push(entry(file, at, name_len, extra_len)?);
        at += 46 + name_len + extra_len + comment_len;
    }
    Ok(entries)
}

fn entry(file: &[u8], at: usize, name_len: usize, extra_len: usize) -> Result<Entry> {
    let extra_at = at + 46 + name_len;
    let (Some(name), Some(extra)) = (file.get(at + 46..extra_at), file.get(extra_at..extra_at + extra_len)) else {
        bail!("the archive is cut off");
    };
    let name = String::from_utf8_lossy(name).into_owned();
    ensure!(number(file, at + 8, 2)? & 1 == 0, "entry \"{name}\" is encrypted");
    let sizes = [number(file, at + 24, 4)?, number(file, at + 20, 4)?, number(file, at + 42, 4)?];
    let [unpacked, packed, offset] = widen(sizes, extra)?;
    Ok(Entry { name, method: number(file, at + 10, 2)? as u16, packed, unpacked, offset })
}

/// Fields of 0xffffffff stand, in this order and 8 bytes wide, in the extra field 1.
fn widen(mut sizes: [usize; 3], extra: &[u8]) -> Result<[usize; 3]> {
    let mut at = 0;
    while at + 4 <= extra.len() {
        let (id, len) = (number(extra, at, 2)?, number(extra, at + 2, 2)?);
        if id == 1 {
            let mut field = at + 4;
            for size in sizes.iter_mut().filter(|s| **s == 0xffff_ffff) {
                *size = number(extra, field, 8)?;
                field += 8;
            }
        }
        at += 4 + len;
    }
    Ok(sizes)
}

impl Entry {
    fn unpack(&self, file: &Bytes) -> Result<Bytes> {
        let cut = || Error::msg("its data is cut off");
        let header = file.get(self.offset..).ok_or_else(cut)?;
        ensure!(header.starts_with(LOCAL), "its header is damaged");
        let skip = 30 + number(header, 26, 2)? + number(header, 28, 2)?;
        let start = self.offset + skip;
        let end = start.checked_add(self.packed).filter(|&e| e <= file.len()).ok_or_else(cut)?;
        let packed = file.slice(start..end);
        match self.method {
            0 => Ok(packed),
            8 => inflate(&packed, self.unpacked),
            other => bail!("its compression method {other} is not supported (stored and deflated are)"),
        }
    }
}

fn inflate(packed: &[u8], unpacked: usize) -> Result<Bytes> {
    let mut out = Vec::new();
    let limit = (unpacked as u64).saturating_add(1);
    let read = flate2::read::DeflateDecoder::new(packed).take(limit).read_to_end(&mut out);
    read.map_err(|e| Error::msg(format!("its compressed data is damaged: {e}")))?;
    ensure!(out.len() == unpacked, "it unpacks to {} bytes, its directory entry says {unpacked}", out.len());
    Ok(out.into())
}

/// Writes arrays, stored. The file is complete or an error.
pub fn write<'a>(path: &Path, arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(io)?);
    let (mut offset, mut central, mut count) = (0u64, Vec::new(), 0u64);
    for (name, tensor) in arrays {
        let header = npy::encode_header(tensor).context(|| format!("array \"{name}\""))?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header);
        crc.update(tensor.bytes());
        let size = (header.len() + tensor.bytes().len()) as u64;
        let name = format!("{name}.npy");
        let common = common_fields(crc.finalize(), &name)?;
        let extra = extra(&[size, size]);
        let extra_len = (extra.len() as u16).to_le_bytes();
        let local = [LOCAL, &common, &extra_len, name.as_bytes(), &extra].concat();
        file.write_all(&local).and_then(|()| file.write_all(&header)).map_err(io)?;
        file.write_all(tensor.bytes()).map_err(io)?;
        central.extend(central_entry(&common, &name, size, offset));
        offset += local.len() as u64 + size;
        count += 1;
    }
    file.write_all(&central).map_err(io)?;
    file.write_all(&ending(count, central.len() as u64, offset)).map_err(io)?;
    file.into_inner().map_err(|e| io(e.into_error())).map(drop)
}

/// Version, flags (UTF-8 names), method, time, date (1980-01-01), checksum, sizes (in the extra field), lengths.
fn common_fields(crc: u32, name: &str) -> Result<Vec<u8>> {
    let name_len = u16::try_from(name.len()).map_err(|_| Error::msg(format!("the name \"{name}\" is too long")))?;
    let mut out = [45u16, 0x800, 0, 0, 0x21].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    out.extend(crc.to_le_bytes());
    out.extend([0xff; 8]);
    out.extend(name_len.to_le_bytes());
    Ok(out)
}

fn extra(values: &[u64]) -> Vec<u8> {
    let length = (values.len() * 8) as u16;
    let mut out = [1u16, length].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    out
}

fn central_entry(common: &[u8], name: &str, size: u64, offset: u64) -> Vec<u8> {
    let extra = extra(&[size, size, offset]);
    let mut out = [CENTRAL, &45u16.to_le_bytes(), common].concat();
    out.extend((extra.len() as u16).to_le_bytes());
    // Comment length, disk, internal and external attributes, offset (in the extra field).
    out.extend([0; 10]);
    out.extend([0xff; 4]);
    out.extend(name.bytes());
    out.extend(extra);
    out
}

/// The zip64 end record, its locator, and the classic end record.
fn ending(count: u64, size: u64, offset: u64) -> Vec<u8> {
    let mut out = END64.to_vec();
    out.extend(44u64.to_le_bytes());
    out.extend([45, 0, 45, 0]);
    out.extend([0; 8]);
    [count, count, size, offset].iter().for_each(|v| out.extend(v.to_le_bytes()));
    out.extend(b"PK\x06\x07\0\0\0\0");
    out.extend((offset + size).to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(END);
    out.extend([0; 4]);
    out.extend([0xff; 12]);
    out.extend([0; 2]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_writers_and_two_readers_agree() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a.npz"), dir.path().join("b.npz"));
        let x = Tensor::from_vec([2, 2], vec![1.0f32, 2.0, 3.0, 4.0]);
        let y = Tensor::from_vec([2], vec![0i64, 1]);
        write(&ours, [("x", &x), ("label", &y)]).unwrap();
        let arrays = read(&ours).unwrap();
        assert_eq!((&arrays["x"], &arrays["label"]), (&x, &y));
        let mut npz = ndarray_npy::NpzReader::new(std::fs::File::open(&ours).unwrap()).unwrap();
        let back: ndarray::Array2<f32> = npz.by_name("x").unwrap();
        assert_eq!(back, ndarray::array![[1.0, 2.0], [3.0, 4.0]]);
        let mut writer = ndarray_npy::NpzWriter::new(std::fs::File::create(&theirs).unwrap());
        writer.add_array("x", &back).unwrap();
        writer.finish().unwrap();
        assert_eq!(read(&theirs).unwrap()["x"], x);
    }

    #[test]
    fn truncation_at_any_byte_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        write(&path, [("x", &Tensor::from_vec([3], vec![1i32, 2, 3]))]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            // Cutting only the comment length of the last record may still read.
            if let Ok(arrays) = read(&path) {
                assert!(length >= whole.len() - 2, "{length} of {} bytes gave {arrays:?}", whole.len());
            }
        }
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 0xff;
            std::fs::write(&path, &bytes).unwrap();
            let _ = read(&path);
        }
    }
}
