//! Files: mapping them for reading, and replacing them as a whole when writing.

use crate::error::{Error, Result};
use bytes::Bytes;
use std::fs::File;
use std::io::{IoSlice, Write};
use std::path::{Path, PathBuf};

/// The bytes of a file, mapped.
pub(super) fn map(file: &File, path: &Path) -> Result<Bytes> {
    let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if len == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and only read. Another process that truncates the file while we run can end this
    // process (SIGBUS), as with every reader that maps; files that we write ourselves are replaced, never changed.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| Error::io(path, e))?;
    Ok(Bytes::from_owner(map))
}

/// Writes the pieces, one after the other, to a file that appears whole or not at all: a temporary file in the same
/// folder, `fsync`, rename, `fsync` of the folder. The bytes go from where they are straight to the file.
pub(super) fn replace(path: &Path, pieces: &[Bytes]) -> Result<()> {
    let temporary = temporary_path(path)?;
    let written = write_new(&temporary, pieces).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(e) = written {
        // The error that matters is the first one.
        let _ = std::fs::remove_file(&temporary);
        return Err(Error::io(path, e));
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

fn write_new(path: &Path, pieces: &[Bytes]) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    let mut slices: Vec<IoSlice> = pieces.iter().filter(|p| !p.is_empty()).map(|p| IoSlice::new(p)).collect();
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
    file.sync_all()
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
        // A folder in the way: the rename fails.
        let blocked = dir.path().join("d");
        std::fs::create_dir_all(blocked.join("inside")).unwrap();
        let error = replace(&blocked, &[Bytes::from_static(b"x")]).unwrap_err().to_string();
        assert!(error.starts_with(&blocked.display().to_string()), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
    }
}
