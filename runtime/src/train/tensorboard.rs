//! TensorBoard event files, written by ourselves: TFRecord frames around a few protobuf fields.
//!
//! ```text
//! frame  = length u64 · masked crc32c(length) u32 · data · masked crc32c(data) u32        (little-endian)
//! masked = rotate_right(crc, 15) + 0xa282ead8
//! Event  { 1: wall_time double, 2: step int64, 3: file_version string, 5: summary }
//! Summary{ 1: repeated Value { 1: tag string, 2: simple_value float } }
//! ```
//! Source: <https://www.tensorflow.org/tutorials/load_data/tfrecord>, `tensorboard/compat/proto/{event,summary}.proto`.

use sartor_ir::{Error, Result};
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file of events.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in a folder; its name begins with what TensorBoard looks for, and with the time. Files of earlier
    /// starts of the run are removed: TensorBoard would show both.
    pub fn create(folder: &Path) -> Result<EventFile> {
        remove_old(folder).map_err(|e| Error::io(folder, e))?;
        let time = now();
        let path = folder.join(format!("events.out.tfevents.{:010}.{}.sartor", time as u64, std::process::id()));
        let file = super::log::open_at(&path, 0)?;
        let mut events = EventFile { path, file };
        events.append(&event(time, 0, &field_bytes(3, b"brain.Event:2")))?;
        Ok(events)
    }
    /// A file of an earlier run, cut back to `length`.
    pub fn resume(path: &Path, length: u64) -> Result<EventFile> {
        Ok(EventFile { path: path.to_path_buf(), file: super::log::open_at(path, length)? })
    }
    /// Writes scalars.
    pub fn write(&mut self, step: u64, values: &[(String, f32)]) -> Result<()> {
        let value = |(tag, value): &(String, f32)| {
            let mut out = field_bytes(1, tag.as_bytes());
            out.push(2 << 3 | 5);
            out.extend(value.to_le_bytes());
            field_bytes(1, &out)
        };
        let summary: Vec<u8> = values.iter().flat_map(value).collect();
        self.append(&event(now(), step, &field_bytes(5, &summary)))
    }
    fn append(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(&frame(data)).map_err(|e| Error::io(&self.path, e))
    }
    /// Brings it to the disk; returns its name and length.
    pub fn sync(&mut self) -> Result<(String, u64)> {
        let io = |e| Error::io(&self.path, e);
        self.file.sync_data().map_err(io)?;
        let length = self.file.stream_position().map_err(io)?;
        Ok((self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(), length))
    }
}

fn remove_old(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("events.out.tfevents.") && name.ends_with(".sartor") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn event(time: f64, step: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(time.to_le_bytes());
    out.push(2 << 3);
    varint(step, &mut out);
    out.extend(payload);
    out
}

/// A length-delimited field.
fn field_bytes(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), bit by bit: events are small.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_the_standard() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn an_event_in_bytes() {
        let mut value = field_bytes(1, b"a");
        value.extend([0x15, 0, 0, 128, 63]);
        let bytes = event(0.0, 300, &field_bytes(5, &field_bytes(1, &value)));
        let expected =
            [&[9, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0xac, 2][..], &[42, 10, 10, 8, 10, 1, b'a', 0x15, 0, 0, 128, 63]];
        assert_eq!(bytes, expected.concat());
        assert_eq!(frame(&bytes).len(), 16 + bytes.len());
    }
}
