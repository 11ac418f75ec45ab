//! Images as tensors: 8-bit pixels (height, width, channels) → `float[channels, height, width]` in 0..1, then
//! `(x - mean) / std` per channel. A graph input of type `uint8` gets the bytes as they are.

use super::config::DataConfig;
use super::schema::{Field, Schema};
use sartor_ir::{DType, Result, Tensor, bail, ensure};

/// How images become rows of a field.
#[derive(Clone, Debug)]
pub struct Pixels {
    /// The field they fill.
    pub field: Field,
    /// The number of channels, where the field says.
    pub channels: Option<usize>,
    /// Height and width, where the field says.
    pub size: Option<(usize, usize)>,
    flat: bool,
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Pixels {
    /// For the only input of a schema, `[N, C, H, W]`, or `[N, C·H·W]` for images of known size.
    pub fn of(config: &DataConfig, schema: &Schema) -> Result<Pixels> {
        let [field] = schema.inputs.as_slice() else {
            let names = super::list(schema.inputs.iter().map(|f| &f.name));
            bail!("images fill one input, the model has {}: {names}", schema.inputs.len());
        };
        ensure!(
            matches!(field.dtype, DType::F32 | DType::U8),
            "images are float or uint8, the model's input \"{}\" takes {}",
            field.name,
            field.dtype
        );
        let (channels, size, flat) = match field.row().as_deref() {
            Some([c, h, w]) => (*c, h.zip(*w), false),
            Some([_]) => (None, None, true),
            _ => bail!("images are [N, C, H, W], the model's input \"{}\" is {}", field.name, field.describe()),
        };
        let std = config.std.clone().unwrap_or_default();
        ensure!(std.iter().all(|s| *s != 0.0 && s.is_finite()), "data.std holds a 0");
        let mean = config.mean.clone().unwrap_or_default();
        Ok(Pixels { field: field.clone(), channels, size, flat, mean, std })
    }
    /// Whether a size fits the field.
    pub fn accepts(&self, channels: usize, height: usize, width: usize) -> bool {
        match self.flat {
            true => self.field.accepts_row(&[channels * height * width]),
            false => self.field.accepts_row(&[channels, height, width]),
        }
    }
    fn coefficients(values: &[f32], channels: usize, name: &str, default: f32) -> Result<Vec<f32>> {
        match values.len() {
            0 => Ok(vec![default; channels]),
            1 => Ok(vec![values[0]; channels]),
            n if n == channels => Ok(values.to_vec()),
            n => bail!("data.{name} has {n} entries, the images have {channels} channels"),
        }
    }
    /// The batch of images that stand end to end as `[height, width, channels]` bytes.
    pub fn tensor(&self, bytes: &[u8], count: usize, [channels, height, width]: [usize; 3]) -> Result<Tensor> {
        let area = height * width;
        let mean = Pixels::coefficients(&self.mean, channels, "mean", 0.0)?;
        let std = Pixels::coefficients(&self.std, channels, "std", 1.0)?;
        let shape = if self.flat { vec![count, channels * area] } else { vec![count, channels, height, width] };
        let mut planar = vec![0u8; bytes.len()];
        for (from, to) in bytes.chunks_exact(channels * area).zip(planar.chunks_exact_mut(channels * area)) {
            for (c, plane) in to.chunks_exact_mut(area).enumerate() {
                plane.iter_mut().zip(from[c..].iter().step_by(channels)).for_each(|(p, b)| *p = *b);
            }
        }
        if self.field.dtype == DType::U8 {
            return Ok(Tensor::from_vec(shape, planar));
        }
        let scale = |(i, byte): (usize, &u8)| {
            let c = i / area % channels;
            (f32::from(*byte) / 255.0 - mean[c]) / std[c]
        };
        Ok(Tensor::from_vec(shape, planar.iter().enumerate().map(scale).collect::<Vec<f32>>()))
    }
}
