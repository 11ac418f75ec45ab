//! External data: tensors whose bytes lie in another file beside the model.
//!
//! A model names that file itself, so the name is untrusted. The keys are a closed set; the path is relative, without
//! `..`, backslash, NUL or empty parts; it is opened relative to the handle of the model's folder, without following
//! symbolic links (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, or part by part where the system lacks it);
//! what was opened is a regular file with one link; and offset and length lie inside it. Checks of the string alone
//! were bypassed again and again in other readers. `checksum` (SHA-1) is not verified; `basepath` is ignored.

use super::file::map;
use super::proto::{EXTERNAL, ModelProto, StringStringEntryProto};
use crate::error::{Context, Error, Result};
use crate::{bail, ensure};
use bytes::Bytes;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The files of external data of one model, each mapped once.
pub(super) struct ExternalFiles {
    folder: Option<PathBuf>,
    mapped: RefCell<HashMap<String, Bytes>>,
}

impl ExternalFiles {
    /// Files in a folder. Without one, external data is an error.
    pub(super) fn new(folder: Option<&Path>) -> ExternalFiles {
        ExternalFiles { folder: folder.map(Path::to_path_buf), mapped: RefCell::default() }
    }
    /// No files at all.
    #[cfg(test)]
    pub(super) fn none() -> ExternalFiles {
        ExternalFiles::new(None)
    }
    /// The bytes that the entries describe: exactly `expected` of them.
    pub(super) fn read(&self, entries: &[StringStringEntryProto], expected: usize) -> Result<Bytes> {
        let place = Place::read(entries)?;
        self.window(&place, expected).context(|| format!("external data {:?}", place.location))
    }
    fn window(&self, place: &Place, expected: usize) -> Result<Bytes> {
        let file = self.open(&place.location)?;
        let size = file.len() as u64;
        let (off, len) = (place.offset, place.length.unwrap_or(expected as u64));
        ensure!(len == expected as u64, "the entry says {len} bytes, the tensor needs {expected}");
        ensure!(
            len <= size && off <= size - len,
            "{len} bytes at offset {off} do not lie inside the file, which has {size}"
        );
        // Both ends are at most the length of the mapping here.
        Ok(file.slice(off as usize..(off + len) as usize))
    }
    fn open(&self, location: &str) -> Result<Bytes> {
        if let Some(bytes) = self.mapped.borrow().get(location) {
            return Ok(bytes.clone());
        }
        let Some(folder) = &self.folder else {
            bail!("the model was not read from a file, so there is no folder to look in");
        };
        check_location(location)?;
        let file = open_beneath(folder, location)?;
        let bytes = map(&file, &folder.join(location))?;
        self.mapped.borrow_mut().insert(location.to_string(), bytes.clone());
        Ok(bytes)
    }
}

/// What the key-value entries of a tensor say.
struct Place {
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl Place {
    fn read(entries: &[StringStringEntryProto]) -> Result<Place> {
        let mut place = Place { location: String::new(), offset: 0, length: None };
        let mut seen: Vec<&str> = Vec::new();
        for StringStringEntryProto { key, value } in entries {
            ensure!(!seen.contains(&key.as_str()), "the external data entry `{key}` stands twice");
            match key.as_str() {
                "location" => place.location = value.clone(),
                "offset" => place.offset = number(key, value)?,
                "length" => place.length = Some(number(key, value)?),
                "checksum" | "basepath" => {}
                _ => bail!("external data has the unknown entry `{key}`"),
            }
            seen.push(key);
        }
        ensure!(seen.contains(&"location"), "external data without a location");
        Ok(place)
    }
}

fn number(key: &str, text: &str) -> Result<u64> {
    match text.parse() {
        Ok(n) => Ok(n),
        Err(_) => bail!("the external data entry `{key}` is {text:?}, expected a number"),
    }
}

/// Whether a location is a plain relative path.
pub(super) fn check_location(location: &str) -> Result<()> {
    ensure!(!location.is_empty(), "the location is empty");
    ensure!(location.len() <= 4096, "the location is longer than 4096 bytes");
    ensure!(!location.contains(['\\', '\0']), "the location holds a backslash or a NUL");
    ensure!(!location.starts_with('/'), "the location is an absolute path; it must lie in the model's folder");
    let plain = location.split('/').all(|part| !matches!(part, "" | "." | ".."));
    ensure!(plain, "the location has an empty, `.` or `..` part; it must lie in the model's folder");
    Ok(())
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);

fn open_beneath(folder: &Path, location: &str) -> Result<File> {
    let system = |e: Errno| Error::io(folder.join(location), e.into());
    // "" is the folder of a bare file name.
    let at = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder_handle = rustix::fs::open(at, FOLDER, Mode::empty()).map_err(system)?;
    let handle = match open_resolved(&folder_handle, location) {
        Err(Errno::NOSYS | Errno::PERM) => open_parts(folder_handle, location),
        other => other,
    };
    let handle = match handle {
        Err(Errno::LOOP | Errno::XDEV) => bail!("the path leads through a symbolic link or out of the model's folder"),
        other => other.map_err(system)?,
    };
    let stat = rustix::fs::fstat(&handle).map_err(system)?;
    ensure!(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile, "this is not a regular file");
    ensure!(stat.st_nlink == 1, "the file has {} hard links, expected one", stat.st_nlink);
    Ok(File::from(handle))
}

#[cfg(target_os = "linux")]
fn open_resolved(folder: &OwnedFd, location: &str) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(folder, location, READ, Mode::empty(), resolve)
}

#[cfg(not(target_os = "linux"))]
fn open_resolved(_: &OwnedFd, _: &str) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// The same, part by part; `..` was ruled out before.
fn open_parts(mut folder: OwnedFd, location: &str) -> Result<OwnedFd, Errno> {
    let (parents, name) = location.rsplit_once('/').unwrap_or(("", location));
    for part in parents.split('/').filter(|p| !p.is_empty()) {
        folder = rustix::fs::openat(&folder, part, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
    }
    rustix::fs::openat(&folder, name, READ | OFlags::NOFOLLOW, Mode::empty())
}

/// Tensors of at least this many bytes start on a page, as the specification advises; others at a cache line.
const PAGE: usize = 4096;
const LINE: usize = 64;

/// Takes the data of large initializers out of a model, and leaves in their place where in the file `location` it will
/// be. Returns the file's content, in pieces.
pub(super) fn move_out(model: &mut ModelProto, location: &str, threshold: usize) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut offset = 0usize;
    for tensor in model.graph.iter_mut().flat_map(|g| &mut g.initializer) {
        let large = |raw: &Bytes| !raw.is_empty() && raw.len() >= threshold;
        let Some(raw) = tensor.raw_data.take_if(|raw| large(raw)) else { continue };
        let align = if raw.len() >= PAGE { PAGE } else { LINE };
        let start = offset.next_multiple_of(align);
        pieces.push(Bytes::from(vec![0; start - offset]));
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_string(), value };
        tensor.data_location = Some(EXTERNAL);
        tensor.external_data = vec![
            entry("location", location.to_string()),
            entry("offset", start.to_string()),
            entry("length", raw.len().to_string()),
        ];
        offset = start + raw.len();
        pieces.push(raw);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn entries(pairs: &[(&str, &str)]) -> Vec<StringStringEntryProto> {
        pairs.iter().map(|(k, v)| StringStringEntryProto { key: k.to_string(), value: v.to_string() }).collect()
    }

    #[test]
    fn only_plain_files_inside_the_folder_open() {
        let outside = tempfile::tempdir().unwrap();
        let dir = outside.path().join("model");
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        std::fs::write(outside.path().join("secret"), b"12345678").unwrap();
        for name in ["w", "sub/w", "twice"] {
            std::fs::write(dir.join(name), b"abcdefgh").unwrap();
        }
        std::fs::hard_link(dir.join("twice"), dir.join("again")).unwrap();
        symlink("w", dir.join("link")).unwrap();
        symlink("..", dir.join("up")).unwrap();
        let files = ExternalFiles::new(Some(&dir));
        let read = |location: &str| files.read(&entries(&[("location", location)]), 8).map_err(|e| e.to_string());
        assert_eq!(read("w").unwrap(), "abcdefgh");
        assert_eq!(read("sub/w").unwrap(), "abcdefgh");
        let bad = [
            ("../secret", "`..` part"),
            ("sub/../../secret", "`..` part"),
            ("/etc/passwd", "absolute path"),
            ("", "empty"),
            ("w\0", "NUL"),
            ("..\\secret", "backslash"),
            ("sub//w", "empty, `.`"),
            ("link", "symbolic link"),
            ("up/secret", "symbolic link"),
            ("twice", "2 hard links"),
            ("sub", "not a regular file"),
            ("missing", "No such file"),
        ];
        for (location, want) in bad {
            let error = read(location).unwrap_err();
            assert!(error.contains(want), "{location:?}: {error}");
        }
        // The way without openat2 refuses the same links.
        let open = |location: &str| open_parts(rustix::fs::open(&dir, FOLDER, Mode::empty()).unwrap(), location);
        assert!(open("sub/w").is_ok() && open("link").is_err() && open("up/secret").is_err());
    }

    #[test]
    fn bounds_and_keys_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("w"), b"abcdefgh").unwrap();
        let files = ExternalFiles::new(Some(dir.path()));
        let read = |more: &[(&str, &str)], len: usize| {
            files.read(&entries(&[&[("location", "w")], more].concat()), len).map_err(|e| e.to_string())
        };
        assert_eq!(read(&[("offset", "2"), ("length", "3")], 3).unwrap(), "cde");
        assert!(read(&[("offset", "6"), ("length", "3")], 3).unwrap_err().contains("do not lie inside"));
        assert!(read(&[("offset", "18446744073709551615"), ("length", "3")], 3).unwrap_err().contains("do not lie"));
        assert!(read(&[("length", "4")], 3).unwrap_err().contains("the tensor needs 3"));
        assert!(read(&[("offset", "-1")], 3).unwrap_err().contains("expected a number"));
        assert!(read(&[("basedir", "/")], 3).unwrap_err().contains("unknown entry `basedir`"));
        assert!(read(&[("location", "w")], 3).unwrap_err().contains("twice"));
        assert!(ExternalFiles::none().read(&entries(&[("location", "w")]), 8).is_err());
    }
}
