//! ONNX files: the only place that knows their wire format.
//!
//! Reading: the file is mapped, its bytes are scanned against a budget ([`Limits`]), decoded without copying tensors,
//! and imported. Writing: the model is exported to messages that share the tensors' bytes, and these go from where they
//! are straight into a temporary file, which then replaces the old one. Two laws hold: importing what was exported gives
//! an equal model, and exporting again gives equal bytes.
//!
//! A file is untrusted. Whatever is wrong with it ends in a sentence with the file's name.
//!
//! What a round trip changes: typed payload fields become `raw_data`; external data comes back inside unless
//! [`SaveOptions`] asks; sparse initializers become `Constant` nodes; constants of floating type and rank 1 or more that
//! a pass made come back as frozen parameters; IR versions below 4 become 4; names of tensors in lists of tensors, and
//! fields unknown to ONNX 1.23, are dropped.

mod export;
mod export_graph;
mod external;
mod file;
mod import;
mod import_graph;
mod names;
mod programs;
mod proto;
mod roles;
mod scan;
mod tensor;
mod types;
mod wire;

pub use programs::INIT_PREFIX;
pub use roles::ROLES_KEY;
pub use scan::Limits;

use crate::error::{Context, Error, Result};
use crate::model::Model;
use crate::{bail, ensure};
use bytes::Bytes;
use external::ExternalFiles;
use prost::Message;
use std::fs::File;
use std::path::Path;

/// Protobuf messages end here; larger models keep their tensors in another file.
const MAX_MESSAGE: usize = i32::MAX as usize;

/// Reads a model from a file, with the default limits.
pub fn load(path: &Path) -> Result<Model> {
    load_with(path, &Limits::default())
}

/// Reads a model from a file. Its tensors are windows on the mapped file; see [`crate::Tensor::detached`].
pub fn load_with(path: &Path, limits: &Limits) -> Result<Model> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let about = file.metadata().map_err(|e| Error::io(path, e))?;
    ensure!(about.is_file(), "{} is not a regular file", path.display());
    let bytes = file::map(&file, path)?;
    read(bytes, Some(file::folder_of(path)), limits).context(|| format!("file {}", path.display()))
}

/// Reads a model from bytes. External data is looked for in `base_dir`; without one, it is an error.
pub fn from_bytes(bytes: Bytes, base_dir: Option<&Path>) -> Result<Model> {
    read(bytes, base_dir, &Limits::default())
}

fn read(bytes: Bytes, base_dir: Option<&Path>, limits: &Limits) -> Result<Model> {
    scan::scan(&bytes, limits)?;
    let proto = match proto::ModelProto::decode(bytes) {
        Ok(proto) => proto,
        Err(e) => bail!("this is not an ONNX model, or it is damaged: {e}"),
    };
    import::import(proto, &ExternalFiles::new(base_dir))
}

/// How a model is written.
#[derive(Clone, Debug, Default)]
pub struct SaveOptions {
    /// Put large initializers into a second file. Without this, it happens only where the model would not fit into one
    /// protobuf message (2 GiB).
    pub external_data: Option<ExternalData>,
}

/// Where large initializers go.
#[derive(Clone, Debug)]
pub struct ExternalData {
    /// The name of the file, beside the model; by default the model's name with `.data` at its end.
    pub file_name: Option<String>,
    /// Initializers of at least this many bytes go there.
    pub threshold: usize,
}

impl Default for ExternalData {
    fn default() -> ExternalData {
        ExternalData { file_name: None, threshold: 1024 }
    }
}

/// Writes a model. The file appears whole or not at all; a file of external data is written first.
pub fn save(model: &Model, path: &Path, options: &SaveOptions) -> Result<()> {
    let write = || -> Result<()> {
        let mut proto = export::export(model)?;
        let too_large = proto.encoded_len() > MAX_MESSAGE;
        let external = options.external_data.clone().or(too_large.then(ExternalData::default));
        if let Some(external) = external {
            let name = data_file_name(&external, path)?;
            let data = external::move_out(&mut proto, &name, external.threshold);
            if !data.is_empty() {
                file::replace(&file::folder_of(path).join(&name), &data)?;
            }
        }
        file::replace(path, &encode(proto)?)
    };
    write().context(|| format!("writing {}", path.display()))
}

/// The bytes of a model's file, all in one.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>> {
    Ok(encode(export::export(model)?)?.concat())
}

fn encode(proto: proto::ModelProto) -> Result<Vec<Bytes>> {
    let pieces = wire::encode(proto);
    let len: usize = pieces.iter().map(Bytes::len).sum();
    ensure!(len <= MAX_MESSAGE, "the model takes {len} bytes, more than the 2 GiB that one ONNX file can have");
    Ok(pieces)
}

fn data_file_name(external: &ExternalData, path: &Path) -> Result<String> {
    let model = path.file_name().map(|n| n.to_string_lossy().into_owned());
    let default = || model.clone().map(|n| format!("{n}.data"));
    let Some(name) = external.file_name.clone().or_else(default) else {
        bail!("the path is not the name of a file");
    };
    external::check_location(&name)?;
    ensure!(!name.contains('/'), "external data goes into the model's own folder, found {name:?}");
    ensure!(Some(&name) != model.as_ref(), "external data cannot have the model's own name, {name:?}");
    Ok(name)
}
