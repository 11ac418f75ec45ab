//! The few things a checkpoint does to a disk, behind a trait, so that tests can let each of them fail.

use sartor_ir::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Durable file operations. Each is done when it returns, or an error that names the path.
pub trait Disk: Send + Sync {
    /// Creates a directory whose parent exists.
    fn create_dir(&self, path: &Path) -> Result<()>;
    /// Creates a file with this content and syncs it.
    fn write(&self, path: &Path, parts: &[&[u8]]) -> Result<()>;
    /// Syncs a directory: what was created or renamed in it stays.
    fn sync_dir(&self, path: &Path) -> Result<()>;
    /// Renames; `to` must not exist.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a directory with all it holds.
    fn remove_dir(&self, path: &Path) -> Result<()>;
}

/// The file system.
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> Result<()> {
        fs::create_dir(path).map_err(|e| Error::io(path, e))
    }
    fn write(&self, path: &Path, parts: &[&[u8]]) -> Result<()> {
        let io = |e| Error::io(path, e);
        let mut file = File::create(path).map_err(io)?;
        for part in parts {
            file.write_all(part).map_err(io)?;
        }
        file.sync_all().map_err(io)
    }
    fn sync_dir(&self, path: &Path) -> Result<()> {
        File::open(path).and_then(|d| d.sync_all()).map_err(|e| Error::io(path, e))
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|e| Error::io(to, e))
    }
    fn remove_dir(&self, path: &Path) -> Result<()> {
        fs::remove_dir_all(path).map_err(|e| Error::io(path, e))
    }
}

#[cfg(test)]
pub(crate) mod flaky {
    //! A disk that fails at its n-th operation.

    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// What happens at the fatal operation.
    #[derive(Clone, Copy, PartialEq, Debug)]
    pub enum Fault {
        /// It fails half-way ("no space left"); later ones work.
        Full,
        /// It stops half-way, and so does everything after it, as if the process had been killed.
        Killed,
    }

    pub struct FlakyDisk {
        left: AtomicUsize,
        fault: Fault,
    }

    impl FlakyDisk {
        pub fn new(operations: usize, fault: Fault) -> FlakyDisk {
            FlakyDisk { left: AtomicUsize::new(operations), fault }
        }
        fn fails(&self) -> bool {
            let before = self.left.load(Ordering::SeqCst);
            match (before, self.fault) {
                (0, Fault::Killed) => true,
                (0, Fault::Full) => {
                    self.left.store(usize::MAX, Ordering::SeqCst);
                    true
                }
                _ => {
                    self.left.store(before - 1, Ordering::SeqCst);
                    false
                }
            }
        }
        fn guard(&self, path: &Path, run: impl FnOnce() -> Result<()>) -> Result<()> {
            let full = || Error::io(path, std::io::Error::from(std::io::ErrorKind::StorageFull));
            if self.fails() { Err(full()) } else { run() }
        }
    }

    impl Disk for FlakyDisk {
        fn create_dir(&self, path: &Path) -> Result<()> {
            self.guard(path, || RealDisk.create_dir(path))
        }
        fn write(&self, path: &Path, parts: &[&[u8]]) -> Result<()> {
            let whole = parts.concat();
            self.guard(path, || RealDisk.write(path, parts)).inspect_err(|_| {
                let _ = fs::write(path, &whole[..whole.len() / 2]);
            })
        }
        fn sync_dir(&self, path: &Path) -> Result<()> {
            self.guard(path, || RealDisk.sync_dir(path))
        }
        fn rename(&self, from: &Path, to: &Path) -> Result<()> {
            self.guard(to, || RealDisk.rename(from, to))
        }
        fn remove_dir(&self, path: &Path) -> Result<()> {
            self.guard(path, || RealDisk.remove_dir(path))
        }
    }
}
