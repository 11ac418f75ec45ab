//! ONNX Runtime as a second judge: `sartor verify --against ort`, `sartor bench --against ort`. Needs the feature `ort`, and at run time the library
//! `libonnxruntime.so`, for example out of the Python package `onnxruntime` (folder `onnxruntime/capi`).

use crate::compare::Arrays;
use sartor_ir::{Model, Result};
use std::path::Path;

#[cfg(feature = "ort")]
pub use with_ort::Peer;

/// A session of ONNX Runtime, which this build does not have.
#[cfg(not(feature = "ort"))]
pub struct Peer {
    never: std::convert::Infallible,
}

#[cfg(not(feature = "ort"))]
impl Peer {
    /// Says that it cannot.
    pub fn new(_: &Model, _: Option<usize>, _: Option<&Path>) -> Result<Peer> {
        sartor_ir::bail!(
            "this build of sartor cannot call ONNX Runtime: build it with `--features ort`, or write the outputs with \
             `sartor run` and compare them in Python"
        )
    }
    /// Cannot be called.
    pub fn run(&mut self, _: &Arrays) -> Result<Arrays> {
        match self.never {}
    }
    /// Cannot be called.
    pub fn time(&mut self, _: &Arrays) -> Result<f64> {
        match self.never {}
    }
}

#[cfg(feature = "ort")]
mod with_ort {
    use super::*;
    use ort::environment::Environment;
    use ort::session::{Session, SessionInputValue};
    use ort::value::{DynValue, Tensor as Value};
    use sartor_ir::{DType, Element, Error, Tensor, bail, onnx};
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::time::Instant;

    fn wrong(error: impl std::fmt::Display) -> Error {
        Error::msg(error.to_string().replace('\n', " ")).at("ONNX Runtime")
    }

    /// A session of ONNX Runtime.
    pub struct Peer {
        session: Session,
        inputs: Vec<String>,
    }

    impl Peer {
        /// For a model, on so many threads. `library`: where `libonnxruntime.so` is; default: what `ORT_DYLIB_PATH` says.
        pub fn new(model: &Model, threads: Option<usize>, library: Option<&Path>) -> Result<Peer> {
            let environment = environment(library)?;
            let bytes = onnx::to_bytes(model)?;
            let mut builder = Session::builder(environment).map_err(wrong)?;
            if let Some(threads) = threads {
                builder = builder.with_intra_threads(threads).map_err(wrong)?;
            }
            let session = builder.commit_from_memory(&bytes).map_err(wrong)?;
            let inputs = model.graph.inputs().map(|v| model.graph.value_name(v).to_string()).collect();
            Ok(Peer { session, inputs })
        }
        /// The outputs by name.
        pub fn run(&mut self, inputs: &Arrays) -> Result<Arrays> {
            let given = self.given(inputs)?;
            let outputs = self.session.run(given).map_err(wrong)?;
            outputs.iter().map(|(name, value)| Ok((name.to_string(), from_ort(&value)?))).collect()
        }
        /// The seconds of a run, without the conversion of inputs and outputs.
        pub fn time(&mut self, inputs: &Arrays) -> Result<f64> {
            let given = self.given(inputs)?;
            let start = Instant::now();
            self.session.run(given).map_err(wrong)?;
            Ok(start.elapsed().as_secs_f64())
        }
        fn given(&self, inputs: &Arrays) -> Result<Vec<(String, SessionInputValue<'static>)>> {
            let named = self.inputs.iter().filter_map(|name| inputs.get_key_value(name));
            named.map(|(name, tensor)| Ok((name.clone(), to_ort(tensor)?.into()))).collect()
        }
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
