//! What several commands do with files: load and save models, arrays in, arrays out.

use crate::failure::{Failure, Outcome, Running};
use indexmap::IndexMap;
use sartor_ir::onnx::{self, ExternalData, SaveOptions};
use sartor_ir::{Dim, Error, Graph, Model, Result, Tensor, Type, Value, bail};
pub use sartor_passes::pipelines::{prepare, prepare_inference};
use sartor_runtime::data::npz;
use std::collections::HashMap;
use std::path::Path;

/// Writes a model: whole or not at all. `external`: large weights go into a file beside it.
pub fn save(model: &Model, path: &Path, external: bool) -> Outcome {
    let external_data = external.then(ExternalData::default);
    onnx::save(model, path, &SaveOptions { external_data }).running()
}

/// Errors if a folder is there and holds something.
pub fn require_empty(folder: &Path) -> Outcome {
    if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::usage(format!(
            "the folder {} is not empty: choose another, or empty it",
            folder.display()
        )));
    }
    Ok(())
}

/// Writes a file, such as a text: whole or not at all.
pub fn write_whole(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    let mut temporary = path.as_os_str().to_os_string();
    temporary.push(".tmp");
    std::fs::write(&temporary, text).map_err(|e| Error::io(Path::new(&temporary), e))?;
    std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
}

/// The arrays of an `.npz` that a graph's inputs are named after. Others are left alone. All problems at once.
pub fn read_inputs(path: &Path, graph: &Graph) -> Result<HashMap<String, Tensor>> {
    let arrays = npz::read(path)?;
    inputs_of(&arrays, graph).map_err(|e| e.at(path.display().to_string()))
}

fn inputs_of(arrays: &IndexMap<String, Tensor>, graph: &Graph) -> Result<HashMap<String, Tensor>> {
    let (mut inputs, mut symbols, mut errors) = (HashMap::new(), HashMap::new(), Vec::new());
    for value in graph.inputs() {
        let name = graph.value_name(value);
        match input_of(arrays, graph, value, &mut symbols) {
            Ok(tensor) => drop(inputs.insert(name.to_string(), tensor)),
            Err(error) => errors.push(error),
        }
    }
    Error::all(errors).map(|()| inputs)
}

fn input_of(
    arrays: &IndexMap<String, Tensor>,
    graph: &Graph,
    value: Value,
    symbols: &mut HashMap<String, (i64, String)>,
) -> Result<Tensor> {
    let name = graph.value_name(value);
    let ty = graph.ty(value);
    let described = ty.map_or("of unknown type".to_string(), Type::to_string);
    let Some(tensor) = arrays.get(name) else {
        let there: Vec<&str> = arrays.keys().map(String::as_str).collect();
        bail!(
            "there is no array \"{name}\" for the model's input \"{name}\" ({described}); there are {}",
            there.join(", ")
        );
    };
    let found = Type::of(tensor);
    if ty.is_some_and(|ty| ty.merge(&found).is_none()) {
        bail!("array \"{name}\" is {found}, the model's input \"{name}\" is {described}: convert the array");
    }
    for (dim, &length) in ty.and_then(Type::shape).unwrap_or_default().iter().zip(tensor.shape()) {
        let Some(symbol) = dim.as_symbol() else { continue };
        let (seen, by) = symbols.entry(symbol.to_string()).or_insert((length as i64, name.to_string()));
        if *seen != length as i64 {
            bail!("array \"{name}\" is {found}, where \"{symbol}\" is {length}, but array \"{by}\" makes it {seen}");
        }
    }
    Ok(tensor.clone())
}

/// Numbers for symbolic dimensions, from `name=number` on the command line.
pub fn parse_dims(list: &[String]) -> Outcome<HashMap<String, i64>> {
    let parse = |text: &String| {
        let parsed = text.split_once('=').and_then(|(name, n)| Some((name.trim().to_string(), n.trim().parse().ok()?)));
        match parsed {
            Some((name, number)) if number >= 0 => Ok((name, number)),
            _ => Err(Failure::usage(format!("--dim {text}: expected name=number, such as batch=8"))),
        }
    };
    list.iter().map(parse).collect()
}

/// The type with numbers for its open dimensions: those given, else `default`.
pub fn bound_type(ty: &Type, dims: &HashMap<String, i64>, default: &dyn Fn(&str) -> i64) -> Type {
    let lookup = |name: &str| Some(dims.get(name).copied().unwrap_or_else(|| default(name)));
    let bind = |dim: &Dim| Dim::Known(dim.eval(&lookup).unwrap_or_else(|| default("")));
    match ty {
        Type::Tensor { dtype, shape: Some(shape) } => {
            Type::Tensor { dtype: *dtype, shape: Some(shape.iter().map(bind).collect()) }
        }
        other => other.clone(),
    }
}
