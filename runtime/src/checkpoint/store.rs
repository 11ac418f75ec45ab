//! Saving, finding, loading and rotating the checkpoints of a folder.

use super::disk::Disk;
use super::state::{State, VERSION};
use super::{recipe, tensors};
use bytes::Bytes;
use sartor_ir::{Context, Error, Result, Tensor, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const VARIABLES: &str = "variables.safetensors";
const STATE: &str = "state.json";
const RECIPE: &str = "recipe.toml";
const MANIFEST: &str = "manifest.json";

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The trainable and state parameters.
    pub variables: Vec<(String, Tensor)>,
    /// What else the run depends on.
    pub state: State,
    /// The recipe's text.
    pub recipe: String,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    files: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// The checkpoints of a folder.
pub struct Store<'d> {
    folder: PathBuf,
    disk: &'d dyn Disk,
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::msg(e.to_string()))
}

impl<'d> Store<'d> {
    /// Opens the folder (made if it is missing); removes what a killed run left unfinished.
    pub fn open(folder: &Path, disk: &'d dyn Disk) -> Result<Store<'d>> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let store = Store { folder: folder.to_path_buf(), disk };
        for name in store.names()? {
            if name.ends_with(".tmp") {
                disk.remove_dir(&store.folder.join(name))?;
            }
        }
        Ok(store)
    }
    fn names(&self) -> Result<Vec<String>> {
        let io = |e| Error::io(&self.folder, e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(io)? {
            names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
    /// The steps of `KIND-STEP` directories, ascending.
    fn steps(&self, kind: &str) -> Result<Vec<u64>> {
        let step = |name: String| name.strip_prefix(kind)?.strip_prefix('-')?.parse().ok();
        let mut steps: Vec<u64> = self.names()?.into_iter().filter_map(step).collect();
        steps.sort();
        Ok(steps)
    }
    /// Whether there is any checkpoint to resume from, whole or not.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.steps("step")?.is_empty())
    }
    /// Saves a checkpoint as `KIND-STEP`; returns its directory. On an error nothing of it stays.
    pub fn save(&self, kind: &str, checkpoint: &Checkpoint) -> Result<PathBuf> {
        let name = format!("{kind}-{}", checkpoint.state.step);
        let (temporary, place) = (self.folder.join(format!("{name}.tmp")), self.folder.join(&name));
        let saved = self.write(&temporary, checkpoint).and_then(|()| self.put(&temporary, &place, &name));
        if let Err(error) = saved {
            if temporary.exists() {
                // The first error is the one to tell; the next start tries to remove the rest again.
                let _ = self.disk.remove_dir(&temporary);
            }
            return Err(error.at(format!("checkpoint {name} was not saved")));
        }
        Ok(place)
    }
    fn write(&self, folder: &Path, checkpoint: &Checkpoint) -> Result<()> {
        for (name, tensor) in &checkpoint.variables {
            ensure!(tensor.is_finite(), "parameter \"{name}\" holds a number that is not finite");
        }
        self.disk.create_dir(folder)?;
        let header = tensors::header(&checkpoint.variables)?;
        let mut parts: Vec<&[u8]> = vec![&header];
        parts.extend(checkpoint.variables.iter().map(|(_, t)| &t.bytes()[..]));
        let state = to_json(&checkpoint.state)?;
        let files: [(&str, &[&[u8]]); 3] =
            [(VARIABLES, &parts), (STATE, &[&state]), (RECIPE, &[checkpoint.recipe.as_bytes()])];
        let mut manifest = Manifest { version: VERSION, files: Vec::new() };
        for (name, parts) in files {
            let mut hash = Sha256::new();
            parts.iter().for_each(|p| hash.update(p));
            let bytes = parts.iter().map(|p| p.len() as u64).sum();
            self.disk.write(&folder.join(name), parts)?;
            manifest.files.push(Entry { name: name.to_string(), bytes, sha256: hex(&hash.finalize()) });
        }
        self.disk.write(&folder.join(MANIFEST), &[&to_json(&manifest)?])?;
        self.disk.sync_dir(folder)
    }
    /// Moves a written directory to its place. What stood there (a damaged one, or one of a run that was resumed from
    /// before it) is set aside first.
    fn put(&self, temporary: &Path, place: &Path, name: &str) -> Result<()> {
        let aside = self.folder.join(format!("{name}.old.tmp"));
        if place.exists() {
            self.disk.rename(place, &aside)?;
        }
        self.disk.rename(temporary, place)?;
        self.disk.sync_dir(&self.folder)?;
        if aside.exists() {
            self.disk.remove_dir(&aside)?;
        }
        Ok(())
    }
    /// The newest checkpoint that is whole, under this recipe. Damaged ones are told to `notice` and passed over.
    /// `None` if there are none at all.
    pub fn latest(&self, recipe: &str, notice: &mut dyn FnMut(&str)) -> Result<Option<Checkpoint>> {
        let steps = self.steps("step")?;
        for step in steps.iter().rev() {
            match self.load("step", *step).and_then(|c| self.with_best(c)) {
                Ok(checkpoint) => return check_recipe(checkpoint, recipe).map(Some),
                Err(error) => notice(&format!("{error}; going back to the checkpoint before it")),
            }
        }
        ensure!(
            steps.is_empty(),
            "{}: none of the {} checkpoints is whole; start again without --resume, in another folder",
            self.folder.display(),
            steps.len()
        );
        Ok(None)
    }
    /// A checkpoint is worth nothing without the best state that it refers to.
    fn with_best(&self, checkpoint: Checkpoint) -> Result<Checkpoint> {
        if let Some(best) = checkpoint.state.best {
            self.load("best", best.step)?;
        }
        Ok(checkpoint)
    }
    /// Loads `KIND-STEP`; every checksum is compared first.
    pub fn load(&self, kind: &str, step: u64) -> Result<Checkpoint> {
        let folder = self.folder.join(format!("{kind}-{step}"));
        read(&folder).context(|| format!("checkpoint {} is damaged", folder.display()))
    }
    /// Removes all but the newest `keep` checkpoints (at least one), and the best states that none of them refers to.
    pub fn rotate(&self, keep: usize, best: Option<u64>) -> Result<()> {
        let whole = |step: &u64| has_all_files(&self.folder.join(format!("step-{step}")));
        let steps: Vec<u64> = self.steps("step")?;
        let kept: Vec<u64> = steps.iter().rev().copied().filter(whole).take(keep.max(1)).collect();
        let Some(&oldest) = kept.last() else { return Ok(()) };
        for step in steps.into_iter().filter(|step| *step < oldest) {
            self.discard(&format!("step-{step}"))?;
        }
        let referred = |step: &u64| self.load_state("step", *step).ok().and_then(|s| s.best).map(|b| b.step);
        let needed: Vec<u64> = kept.iter().filter_map(referred).chain(best).collect();
        for step in self.steps("best")?.into_iter().filter(|step| !needed.contains(step)) {
            self.discard(&format!("best-{step}"))?;
        }
        Ok(())
    }
    fn load_state(&self, kind: &str, step: u64) -> Result<State> {
        let path = self.folder.join(format!("{kind}-{step}")).join(STATE);
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::msg(e.to_string()))
    }
    /// By way of a name that no reader takes for a checkpoint.
    fn discard(&self, name: &str) -> Result<()> {
        let aside = self.folder.join(format!("{name}.old.tmp"));
        self.disk.rename(&self.folder.join(name), &aside)?;
        self.disk.remove_dir(&aside)
    }
}

fn check_recipe(checkpoint: Checkpoint, recipe: &str) -> Result<Checkpoint> {
    match recipe::diff(&checkpoint.recipe, recipe) {
        None => Ok(checkpoint),
        Some(diff) => bail!(
            "the recipe is not the one that this run began with (- then, + now); resume with that one, or start in \
             another folder\n{diff}"
        ),
    }
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| Error::msg(format!("{MANIFEST}: {e}")))?;
    ensure!(
        manifest.version == VERSION,
        "its layout is version {}, this program reads version {VERSION}",
        manifest.version
    );
    Ok(manifest)
}

/// Whether all files are there at the right length; their content is not read.
fn has_all_files(folder: &Path) -> bool {
    let right = |e: &Entry| std::fs::metadata(folder.join(&e.name)).is_ok_and(|m| m.len() == e.bytes);
    read_manifest(folder).is_ok_and(|m| m.files.iter().all(right))
}

fn read(folder: &Path) -> Result<Checkpoint> {
    let manifest = read_manifest(folder)?;
    let file = |name: &str| -> Result<Bytes> {
        let Some(entry) = manifest.files.iter().find(|e| e.name == name) else { bail!("{MANIFEST} lacks {name}") };
        let path = folder.join(name);
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let sound = bytes.len() as u64 == entry.bytes && hex(&Sha256::digest(&bytes)) == entry.sha256;
        ensure!(sound, "{name} does not have the checksum of {MANIFEST}");
        Ok(bytes.into())
    };
    let (variables, state, recipe) = (file(VARIABLES)?, file(STATE)?, file(RECIPE)?);
    let state: State = serde_json::from_slice(&state).map_err(|e| Error::msg(format!("{STATE}: {e}")))?;
    let variables = tensors::parse(&variables).context(|| VARIABLES)?;
    Ok(Checkpoint { variables, state, recipe: String::from_utf8_lossy(&recipe).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::super::disk::flaky::{Fault, FlakyDisk};
    use super::super::state::{Best, Exact};
    use super::*;

    fn checkpoint(step: u64) -> Checkpoint {
        let variables = vec![("w".to_string(), Tensor::from_vec([2], vec![step as f32, 0.5]))];
        let state = State { version: VERSION, step, ..State::default() };
        Checkpoint { variables, state, recipe: "epochs = 1\n".to_string() }
    }

    fn latest(folder: &Path) -> (Option<u64>, Vec<String>) {
        let store = Store::open(folder, &RealDisk).unwrap();
        let mut notices = Vec::new();
        let found = store.latest("epochs = 1\n", &mut |n| notices.push(n.to_string())).unwrap();
        if let Some(found) = &found {
            assert_eq!(*found, checkpoint(found.state.step));
        }
        (found.map(|c| c.state.step), notices)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names = Store { folder: folder.to_path_buf(), disk: &RealDisk }.names().unwrap();
        names.sort();
        names
    }

    #[test]
    fn the_newest_whole_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &RealDisk).unwrap();
        assert_eq!(latest(dir.path()).0, None);
        for step in [5, 10, 15] {
            store.save("step", &checkpoint(step)).unwrap();
        }
        assert_eq!(latest(dir.path()), (Some(15), vec![]));
        // A flipped bit in the newest, a missing file in the one before.
        let path = dir.path().join("step-15").join(VARIABLES);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        std::fs::remove_file(dir.path().join("step-10").join(STATE)).unwrap();
        let (step, notices) = latest(dir.path());
        assert_eq!((step, notices.len()), (Some(5), 2));
        assert!(notices[0].contains("step-15 is damaged: variables.safetensors does not have the checksum"));
        std::fs::remove_dir_all(dir.path().join("step-5")).unwrap();
        let error = store.latest("epochs = 1", &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("none of the 2 checkpoints is whole"), "{error}");
    }

    #[test]
    fn another_recipe_is_refused_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &RealDisk).unwrap();
        store.save("step", &checkpoint(5)).unwrap();
        let error = store.latest("epochs = 2\n", &mut |_| ()).unwrap_err().to_string();
        assert!(error.ends_with("another folder\n- epochs = 1\n+ epochs = 2"), "{error}");
    }

    #[test]
    fn rotation_keeps_the_last_and_the_best_they_refer_to() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &RealDisk).unwrap();
        for step in [1, 2, 3, 4] {
            store.save("best", &checkpoint(step)).unwrap();
            let mut with_best = checkpoint(step);
            with_best.state.best = Some(Best { step: step.min(3), value: Exact(0.5) });
            store.save("step", &with_best).unwrap();
        }
        store.rotate(2, Some(3)).unwrap();
        assert_eq!(names(dir.path()), ["best-3", "step-3", "step-4"]);
        // A checkpoint whose best state is gone does not count.
        std::fs::remove_dir_all(dir.path().join("best-3")).unwrap();
        assert!(store.latest("epochs = 1", &mut |_| ()).is_err());
    }

    #[test]
    fn numbers_that_are_not_finite_are_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &RealDisk).unwrap();
        let mut broken = checkpoint(1);
        broken.variables[0].1 = Tensor::from_vec([1], vec![f32::NAN]);
        let error = store.save("step", &broken).unwrap_err().to_string();
        assert_eq!(error, "checkpoint step-1 was not saved: parameter \"w\" holds a number that is not finite");
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_full_disk_at_any_operation_leaves_nothing_half_written() {
        for operation in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            Store::open(dir.path(), &RealDisk).unwrap().save("step", &checkpoint(1)).unwrap();
            let disk = FlakyDisk::new(operation, Fault::Full);
            let saved = Store::open(dir.path(), &disk).unwrap().save("step", &checkpoint(2));
            if let Err(error) = &saved {
                assert!(error.to_string().starts_with("checkpoint step-2 was not saved: /"), "{error}");
            }
            assert!(names(dir.path()).iter().all(|n| !n.ends_with(".tmp")), "operation {operation}");
            let whole = latest(dir.path());
            assert!(whole.0 == Some(2) || (whole.0 == Some(1) && saved.is_err()), "operation {operation}: {whole:?}");
            assert!(whole.1.is_empty());
        }
    }

    #[test]
    fn a_kill_at_any_operation_leaves_a_whole_checkpoint() {
        for operation in 0..24 {
            let dir = tempfile::tempdir().unwrap();
            Store::open(dir.path(), &RealDisk).unwrap().save("step", &checkpoint(1)).unwrap();
            let disk = FlakyDisk::new(operation, Fault::Killed);
            let store = Store::open(dir.path(), &disk).unwrap();
            let saved = store.save("step", &checkpoint(2)).and_then(|_| store.rotate(1, None));
            let (step, _) = latest(dir.path());
            assert!(step == Some(1) || step == Some(2), "operation {operation}: {step:?}");
            assert!(saved.is_err() || step == Some(2));
            assert!(names(dir.path()).iter().all(|n| !n.ends_with(".tmp")));
        }
    }
}
