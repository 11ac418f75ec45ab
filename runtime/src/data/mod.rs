//! Data readers: files in, batches of named host tensors out.
//!
//! [`open`] looks at a path and makes a [`Dataset`]: examples that are addressed by row. A [`loader::Loader`] shuffles
//! the rows by (seed, epoch), cuts them into batches and prepares batches ahead on a thread.
//!
//! | path | reader |
//! |---|---|
//! | `.npz`, `.npy` (several, or a folder of them) | [`arrays`] |
//! | `.csv`, `.tsv`, `.jsonl` | [`tabular`], text through [`tokens`] |
//! | IDX, also `.gz` | [`idx`] |
//! | a folder of folders of `.png` and `.jpg` | [`images`] |
//!
//! A reader fills the fields of a [`Schema`], which is made from the graph that is to be fed. Whatever a file can get
//! wrong ends in a sentence that names the file and the line, array or column, what was found and what was expected.

pub mod arrays;
pub mod augment;
pub mod config;
pub mod idx;
pub mod images;
pub mod labels;
pub mod loader;
pub mod npy;
pub mod npz;
pub mod pixels;
pub mod schema;
pub mod table;
pub mod tabular;
pub mod tokens;

pub use augment::Augment;
pub use config::{DataConfig, OneOrMany};
pub use loader::{Cursor, Loader, LoaderOptions};
pub use schema::{Embedding, Field, LABEL, Schema};

use bytes::Bytes;
use sartor_ir::{Error, Result, Tensor, bail, ensure};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The inputs of one run of a program (the trainer's scalars left out).
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Graph input → tensor; the first axis counts the examples.
    pub tensors: HashMap<String, Tensor>,
    /// The number of examples.
    pub samples: usize,
}

/// Examples that are addressed by row.
pub trait Dataset: Send + Sync {
    /// The number of examples, at least one.
    fn len(&self) -> usize;
    /// Whether there are none; a dataset that opened has some.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The inputs made of these rows, in this order.
    fn batch(&self, rows: &[usize]) -> Result<Batch>;
    /// The length of a row, for batches of similar length; 0 where all are the same.
    fn row_length(&self, _row: usize) -> usize {
        0
    }
}

/// Opens a split. What kind of files they are follows from their names.
pub fn open(paths: &[PathBuf], config: &DataConfig, schema: &Schema) -> Result<Arc<dyn Dataset>> {
    let Some(first) = paths.first() else { bail!("the split names no file") };
    for path in paths {
        ensure!(path.exists(), "{}: there is no such file or folder", path.display());
    }
    let name = first.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
    match extension {
        "npz" | "npy" => Ok(Arc::new(arrays::Arrays::open(paths, config, schema)?)),
        "csv" | "tsv" | "jsonl" => Ok(Arc::new(tabular::Tabular::open(paths, config, schema)?)),
        _ if name.contains("idx") => Ok(Arc::new(idx::Idx::open(paths, config, schema)?)),
        _ if first.is_dir() && arrays::is_folder_of_arrays(first) => {
            Ok(Arc::new(arrays::Arrays::open(paths, config, schema)?))
        }
        _ if first.is_dir() => Ok(Arc::new(images::Images::open(first, config, schema)?)),
        _ => bail!(
            "{}: no reader for this name; there are readers for .npz, .npy, .csv, .tsv, .jsonl, IDX files (with \"idx\" \
             in their name) and folders with one folder of images per class",
            first.display()
        ),
    }
}

/// Opens the three splits of a recipe. `train` must be there.
pub fn open_splits(config: &DataConfig, schema: &Schema) -> Result<Splits> {
    let open_one = |key: &str, paths: &Option<OneOrMany<PathBuf>>| match paths {
        Some(paths) => open(paths.as_slice(), config, schema).map(Some).map_err(|e| e.at(format!("data.{key}"))),
        None => Ok(None),
    };
    let Some(train) = open_one("train", &config.train)? else {
        bail!("the recipe has no data.train: name the file with the examples to train on");
    };
    Ok(Splits { train, eval: open_one("eval", &config.eval)?, test: open_one("test", &config.test)? })
}

/// The data of a run.
#[derive(Clone)]
pub struct Splits {
    /// What is trained on.
    pub train: Arc<dyn Dataset>,
    /// What the run is evaluated on.
    pub eval: Option<Arc<dyn Dataset>>,
    /// What the result is evaluated on.
    pub test: Option<Arc<dyn Dataset>>,
}

/// A file's bytes, mapped into memory, not read.
pub fn map_file(path: &Path) -> Result<Bytes> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if length == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is read-only and private to this process. As with every mapped file, truncating it from
    // outside while it is read ends the process; its content is only ever interpreted as plain numbers.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    Ok(Bytes::from_owner(map))
}

/// Some rows (entries of the first axis) of a tensor, copied. Rows beyond the end are an error.
pub fn gather_rows(tensor: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let Some((&count, rest)) = tensor.shape().split_first() else { bail!("a scalar has no rows") };
    let width = rest.iter().product::<usize>() * tensor.dtype().bits() / 8;
    let mut out = vec![0u64; (rows.len() * width).div_ceil(8)];
    let target = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut out)[..rows.len() * width];
    for (i, &row) in rows.iter().enumerate() {
        ensure!(row < count, "there is no row {row}, the tensor has {count}");
        target[i * width..(i + 1) * width].copy_from_slice(&tensor.bytes()[row * width..(row + 1) * width]);
    }
    let bytes = Bytes::from_owner(Words(out)).slice(..rows.len() * width);
    Tensor::from_bytes(tensor.dtype(), [&[rows.len()], rest].concat(), bytes)
}

/// Keeps 8-byte aligned memory alive behind [`Bytes`].
struct Words(Vec<u64>);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// `"a", "b" and "c"`, for messages.
pub(crate) fn list<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|n| format!("\"{}\"", n.as_ref())).collect();
    match quoted.split_last() {
        None => "nothing".to_string(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
