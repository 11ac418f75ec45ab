//! ONNX Runtime as a second judge: `sartor verify --against ort`. Needs the feature `ort`, and at run time the library
//! `libonnxruntime.so`, for example out of the Python package `onnxruntime` (folder `onnxruntime/capi`).

use crate::compare::Arrays;
use sartor_ir::{Model, Result};
use std::path::Path;

/// Runs a model in ONNX Runtime. `library`: where `libonnxruntime.so` is; default: what `ORT_DYLIB_PATH` says.
#[cfg(not(feature = "ort"))]
pub fn run(_: &Model, _: &Arrays, _: Option<&Path>) -> Result<Arrays> {
    sartor_ir::bail!(
        "this build of sartor cannot call ONNX Runtime: build it with `--features ort`, or write the outputs with \
         `sartor run` and compare them in Python"
    )
}

#[cfg(feature = "ort")]
pub use with_ort::run;

#[cfg(feature = "ort")]
mod with_ort {
    use super::*;
    use ort::environment::Environment;
    use ort::session::{Session, SessionInputValue};
    use ort::value::{DynValue, Tensor as Value};
    use sartor_ir::{DType, Element, Error, Tensor, bail, onnx};
    use std::path::PathBuf;
    use std::sync::OnceLock;

    fn wrong(error: impl std::fmt::Display) -> Error {
        Error::msg(error.to_string().replace('\n', " ")).at("ONNX Runtime")
    }

    /// Runs a model in ONNX Runtime. `library`: where `libonnxruntime.so` is; default: what `ORT_DYLIB_PATH` says.
    pub fn run(model: &Model, inputs: &Arrays, library: Option<&Path>) -> Result<Arrays> {
        let environment = environment(library)?;
        let bytes = onnx::to_bytes(model)?;
        let mut session = Session::builder(environment).map_err(wrong)?.commit_from_memory(&bytes).map_err(wrong)?;
        let given: Result<Vec<(&str, SessionInputValue)>> = model
            .graph
            .inputs()
            .filter_map(|v| inputs.get_key_value(model.graph.value_name(v)))
            .map(|(name, tensor)| Ok((name.as_str(), to_ort(tensor)?.into())))
            .collect();
        let outputs = session.run(given?).map_err(wrong)?;
        outputs.iter().map(|(name, value)| Ok((name.to_string(), from_ort(&value)?))).collect()
    }

    /// The process's only environment.
    fn environment(library: Option<&Path>) -> Result<&'static Environment> {
        static MADE: OnceLock<std::result::Result<Environment, String>> = OnceLock::new();
        let made = MADE.get_or_init(|| {
            let found =
                library.map(Path::to_path_buf).or_else(|| std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from));
            let Some(path) = found else {
                return Err("say where libonnxruntime.so is, with --ort-library or ORT_DYLIB_PATH".to_string());
            };
            let builder = ort::init_from(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            builder.build().map_err(|e| e.to_string())
        });
        made.as_ref().map_err(wrong)
    }

    fn to_ort(tensor: &Tensor) -> Result<DynValue> {
        fn make<T>(tensor: &Tensor) -> Result<DynValue>
        where
            T: Element + ort::value::PrimitiveTensorElementType + std::fmt::Debug + 'static,
        {
            let data = tensor.to_vec::<T>()?;
            Value::from_array((tensor.shape().to_vec(), data)).map(|v| v.into_dyn()).map_err(wrong)
        }
        match tensor.dtype() {
            DType::F32 => make::<f32>(tensor),
            DType::F64 => make::<f64>(tensor),
            DType::I64 => make::<i64>(tensor),
            DType::I32 => make::<i32>(tensor),
            DType::U8 => make::<u8>(tensor),
            DType::I8 => make::<i8>(tensor),
            DType::Bool => make::<bool>(tensor),
            other => bail!("inputs of type {other} are not passed to ONNX Runtime"),
        }
    }

    fn from_ort(value: &DynValue) -> Result<Tensor> {
        macro_rules! try_types {
            ($($ty:ty),*) => {$(
                if let Ok((shape, data)) = value.try_extract_tensor::<$ty>() {
                    let shape: Vec<usize> = shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
                    return Ok(Tensor::from_vec(shape, data.to_vec()));
                }
            )*};
        }
        try_types!(f32, f64, i64, i32, u8, i8, bool);
        bail!("an output of type {} cannot be read from ONNX Runtime", value.dtype())
    }
}
