//! Files: mapping them for reading, and replacing them as a whole when writing.
//!
//! Most bytes of a written model are bytes of the file it was read from: weights that no pass has changed. They are copied from file
//! to file by the system (`copy_file_range`), and never mapped into memory.

use crate::error::{Error, Result};
use bytes::Bytes;
use std::fs::File;
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A mapped file that is kept open.
struct Mapping {
    map: memmap2::Mmap,
    file: File,
}

/// Hands out the bytes of a mapping that others know too.
struct Shared(Arc<Mapping>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

/// So many files are kept open at most, of a model whose weights lie in thousands; what lies in others is written from the mapping.
const MOST_OPEN: usize = 64;

/// The mappings of open files that are still in use.
static MAPPINGS: Mutex<Vec<Weak<Mapping>>> = Mutex::new(Vec::new());

/// The bytes of a file, mapped.
pub(super) fn map(file: &File, path: &Path) -> Result<Bytes> {
    let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if len == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and only read. Another process that truncates the file while we run can end this
    // process (SIGBUS), as with every reader that maps; files that we write ourselves are replaced, never changed.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| Error::io(path, e))?;
    let mut known = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|other| other.strong_count() > 0);
    let Some(file) = file.try_clone().ok().filter(|_| known.len() < MOST_OPEN) else {
        return Ok(Bytes::from_owner(map));
    };
    let mapping = Arc::new(Mapping { map, file });
    known.push(Arc::downgrade(&mapping));
    Ok(Bytes::from_owner(Shared(mapping)))
}

/// The mapping that some bytes lie in, and where.
fn source(bytes: &[u8]) -> Option<(Arc<Mapping>, u64)> {
    let known = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
    known.iter().filter_map(Weak::upgrade).find_map(|mapping| {
        let within = mapping.map.as_ptr_range();
        let range = bytes.as_ptr_range();
        let inside = within.start <= range.start && range.end <= within.end;
        let offset = (range.start as usize).wrapping_sub(within.start as usize) as u64;
        inside.then_some((mapping, offset))
    })
}

/// Writes the pieces, one after the other, to a file that appears whole or not at all: a temporary file in the same
/// folder, then a rename. If it takes the place of another file, `fsync` comes before and after that, so that a power cut leaves one of
/// the two.
pub(super) fn replace(path: &Path, pieces: &[Bytes]) -> Result<()> {
    let temporary = temporary_path(path)?;
    let replaces = path.exists();
    let written = write_new(&temporary, pieces, replaces).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(e) = written {
        // The error that matters is the first one.
        let _ = std::fs::remove_file(&temporary);
        return Err(Error::io(path, e));
    }
    if !replaces {
        return Ok(());
    }
    let folder = folder_of(path);
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, e))
}

/// The folder that a path lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_path(path: &Path) -> Result<PathBuf> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(Error::msg(format!("{} is not the name of a file", path.display())));
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!(".{}.{}-{count}.tmp", name.to_string_lossy(), std::process::id());
    Ok(folder_of(path).join(name))
}

static COPYING: Mutex<()> = Mutex::new(());

/// Pieces of at least so many bytes are copied from the file that they come from.
const LARGE: usize = 1 << 16;

fn write_new(path: &Path, pieces: &[Bytes], flush: bool) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    let mut slices: Vec<IoSlice> = Vec::new();
    for piece in pieces.iter().filter(|p| !p.is_empty()) {
        let large = if piece.len() >= LARGE { source(piece) } else { None };
        let Some((mapping, offset)) = large else {
            slices.push(IoSlice::new(piece));
            continue;
        };
        write_slices(&mut file, &mut slices)?;
        // Whoever copies moves the file's position.
        let _turn = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut from = &mapping.file;
        from.seek(SeekFrom::Start(offset))?;
        let copied = std::io::copy(&mut from.take(piece.len() as u64), &mut file)?;
        if copied != piece.len() as u64 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    write_slices(&mut file, &mut slices)?;
    if flush { file.sync_all() } else { Ok(()) }
}

/// Writes all slices and forgets them.
fn write_slices(file: &mut File, slices: &mut Vec<IoSlice>) -> std::io::Result<()> {
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let batch = left.len().min(512);
        match file.write_vectored(&left[..batch]) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut left, n),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    slices.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_or_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, b"old").unwrap();
        let old = map(&File::open(&path).unwrap(), &path).unwrap();
        replace(&path, &[Bytes::from_static(b"new "), Bytes::new(), old]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new old");
        // Bytes of another file, from the middle of it, between bytes of our own.
        let large: Vec<u8> = (0..3 * LARGE).map(|i| (i % 251) as u8).collect();
        std::fs::write(dir.path().join("large"), &large).unwrap();
        let mapped = map(&File::open(dir.path().join("large")).unwrap(), &path).unwrap();
        let middle = mapped.slice(7..LARGE + 9);
        assert_eq!(source(&middle).map(|(_, offset)| offset), Some(7));
        replace(&path, &[Bytes::from_static(b"a"), middle.clone(), Bytes::from_static(b"b"), middle]).unwrap();
        let expected = [b"a", &large[7..LARGE + 9], b"b", &large[7..LARGE + 9]].concat();
        assert!(std::fs::read(&path).unwrap() == expected);
        drop(mapped);
        std::fs::remove_file(dir.path().join("large")).unwrap();
        // Of many mapped files few stay open, and all are written.
        let weight = dir.path().join("weight");
        std::fs::write(&weight, vec![1u8; LARGE]).unwrap();
        let open = |_| map(&File::open(&weight).unwrap(), &weight).unwrap();
        let maps: Vec<Bytes> = (0..2 * MOST_OPEN).map(open).collect();
        assert!(MAPPINGS.lock().unwrap().len() <= MOST_OPEN);
        replace(&path, &maps).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len() as usize, maps.len() * LARGE);
        std::fs::remove_file(weight).unwrap();
        // A folder in the way: the rename fails.
        let blocked = dir.path().join("d");
        std::fs::create_dir_all(blocked.join("inside")).unwrap();
        let error = replace(&blocked, &[Bytes::from_static(b"x")]).unwrap_err().to_string();
        assert!(error.starts_with(&blocked.display().to_string()), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
    }
}
