//! tract as a second judge: `sartor verify --against tract`, `sartor bench --against tract`. Needs the feature `tract`,
//! and nothing at run time. It runs on one thread.

use crate::compare::Arrays;
use sartor_ir::{Model, Result};

#[cfg(feature = "tract")]
pub use with_tract::Peer;

/// A plan of tract, which this build does not have.
#[cfg(not(feature = "tract"))]
pub struct Peer {
    never: std::convert::Infallible,
}

#[cfg(not(feature = "tract"))]
impl Peer {
    /// Says that it cannot.
    pub fn new(_: &Model, _: &Arrays) -> Result<Peer> {
        sartor_ir::bail!("this build of sartor cannot call tract: build it with `--features tract`")
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

#[cfg(feature = "tract")]
mod with_tract {
    use super::*;
    use sartor_ir::{DType, Element, Error, Tensor, bail, onnx};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::time::Instant;
    use tract_onnx::prelude as tract;
    use tract_onnx::prelude::{Datum, Framework, InferenceModelExt, IntoRunnable, IntoTValue};

    /// tract's errors are chains: what it was doing, down to what went wrong.
    fn wrong(error: tract::TractError) -> Error {
        Error::msg(format!("{error:#}").replace('\n', " ")).at("tract")
    }

    /// A plan of tract for inputs of fixed shapes.
    pub struct Peer {
        plan: Arc<tract::TypedRunnableModel>,
        inputs: Vec<String>,
        outputs: Vec<String>,
    }

    impl Peer {
        /// For a model, and inputs of the shapes of these.
        pub fn new(model: &Model, inputs: &Arrays) -> Result<Peer> {
            let bytes = onnx::to_bytes(model)?;
            let made = catch_unwind(AssertUnwindSafe(|| make_plan(&bytes, inputs)));
            let Ok(made) = made else { return Err(Error::msg("it panicked over the model").at("tract")) };
            let (plan, names) = made?;
            let outputs = model.graph.outputs.iter().map(|o| o.name.clone()).collect();
            Ok(Peer { plan, inputs: names, outputs })
        }
        /// The outputs by name.
        pub fn run(&mut self, inputs: &Arrays) -> Result<Arrays> {
            let given = self.given(inputs)?;
            let outputs = self.plan.run(given).map_err(wrong)?;
            self.outputs.iter().zip(&outputs).map(|(name, value)| Ok((name.clone(), from_tract(value)?))).collect()
        }
        /// The seconds of a run, without the conversion of inputs and outputs.
        pub fn time(&mut self, inputs: &Arrays) -> Result<f64> {
            let given = self.given(inputs)?;
            let start = Instant::now();
            self.plan.run(given).map_err(wrong)?;
            Ok(start.elapsed().as_secs_f64())
        }
        fn given(&self, inputs: &Arrays) -> Result<tract::TVec<tract::TValue>> {
            self.inputs.iter().map(|name| Ok(to_tract(&inputs[name])?.into_tvalue())).collect()
        }
    }

    /// The plan, and the names of its inputs in their order.
    fn make_plan(bytes: &[u8], inputs: &Arrays) -> Result<(Arc<tract::TypedRunnableModel>, Vec<String>)> {
        let mut model = tract_onnx::onnx().model_for_read(&mut &bytes[..]).map_err(wrong)?;
        let outlets = model.input_outlets().map_err(wrong)?.to_vec();
        let names: Vec<String> = outlets.iter().map(|outlet| model.node(outlet.node).name.clone()).collect();
        for (place, name) in names.iter().enumerate() {
            let Some(tensor) = inputs.get(name) else { bail!("there is no input \"{name}\"") };
            let fact = tract::InferenceFact::dt_shape(datum_type(tensor.dtype())?, tensor.shape());
            model.set_input_fact(place, fact).map_err(wrong)?;
        }
        let plan = model.into_optimized().and_then(|model| model.into_runnable()).map_err(wrong)?;
        Ok((plan, names))
    }

    fn datum_type(dtype: DType) -> Result<tract::DatumType> {
        Ok(match dtype {
            DType::F32 => f32::datum_type(),
            DType::F64 => f64::datum_type(),
            DType::I64 => i64::datum_type(),
            DType::I32 => i32::datum_type(),
            DType::U8 => u8::datum_type(),
            DType::I8 => i8::datum_type(),
            DType::Bool => bool::datum_type(),
            other => bail!("inputs of type {other} are not passed to tract"),
        })
    }

    fn to_tract(tensor: &Tensor) -> Result<tract::Tensor> {
        fn make<T: Element + Datum + Copy>(tensor: &Tensor) -> Result<tract::Tensor> {
            tract::Tensor::from_shape(tensor.shape(), &tensor.as_slice::<T>()?).map_err(wrong)
        }
        match tensor.dtype() {
            DType::F32 => make::<f32>(tensor),
            DType::F64 => make::<f64>(tensor),
            DType::I64 => make::<i64>(tensor),
            DType::I32 => make::<i32>(tensor),
            DType::U8 => make::<u8>(tensor),
            DType::I8 => make::<i8>(tensor),
            DType::Bool => make::<bool>(tensor),
            other => bail!("inputs of type {other} are not passed to tract"),
        }
    }

    fn from_tract(value: &tract::Tensor) -> Result<Tensor> {
        macro_rules! try_types {
            ($($ty:ty),*) => {$(
                if value.datum_type() == <$ty>::datum_type() {
                    let view = value.to_plain_array_view::<$ty>().map_err(wrong)?;
                    return Ok(Tensor::from_vec(value.shape().to_vec(), view.iter().copied().collect::<Vec<$ty>>()));
                }
            )*};
        }
        try_types!(f32, f64, i64, i32, u8, i8, bool);
        bail!("an output of type {:?} cannot be read from tract", value.datum_type())
    }
}
