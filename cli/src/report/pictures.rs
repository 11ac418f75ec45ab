//! The inputs that cost least and most, as small pictures: read again from the data that the run's recipe names.
//!
//! An input is a picture if it is the model's only one and is `[N, C, H, W]` or `[N, H, W, C]` with one or three channels. What the recipe
//! subtracted and divided by is undone; where that leaves the range of pixels, each channel is stretched from its least value to its greatest.

use crate::gates::Gates;
use crate::recipe::Recipe;
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use sartor_ir::{DType, Error, Result, Tensor, bail, onnx};
use sartor_runtime::data::{self, DataConfig, Schema};
use sartor_runtime::train::gates::Example;
use std::io::Cursor;
use std::path::Path;

/// Longer sides are scaled down to this.
const LONGEST_SIDE: u32 = 96;

/// An input.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Which one, and what it costs.
    pub example: Example,
    /// As a PNG.
    pub png: Vec<u8>,
}

/// The cheapest and the dearest inputs.
#[derive(Clone, Debug)]
pub struct Pictures {
    /// The cheapest first.
    pub cheapest: Vec<Picture>,
    /// The dearest first.
    pub dearest: Vec<Picture>,
}

impl Picture {
    /// The PNG as a `data:` URI.
    pub fn uri(&self) -> String {
        format!("data:image/png;base64,{}", base64(&self.png))
    }
}

/// The pictures of a run's examples; `None` if its inputs are no images.
pub fn read(folder: &Path, gates: &Gates) -> Result<Option<Pictures>> {
    let recipe = Recipe::read(&folder.join("recipe.toml"), &[], None)?;
    let config = &recipe.tables.data;
    let model = onnx::load(&folder.join("merged.onnx"))?;
    let schema = Schema { label: None, ..Schema::of(&model.graph)? };
    let [field] = &schema.inputs[..] else { return Ok(None) };
    let is_image = Layout::of(&field.row().unwrap_or_default()).is_some();
    if !is_image || !matches!(field.dtype, DType::F32 | DType::U8) {
        return Ok(None);
    }
    let rows = |examples: &[Example]| examples.iter().map(|example| example.row).collect::<Vec<usize>>();
    let rows = [rows(&gates.cheapest), rows(&gates.dearest)].concat();
    let tensor = inputs(config, &schema, &gates.split, &rows)?;
    let Some(images) = images(&tensor, config)? else { return Ok(None) };
    let mut pngs = images.into_iter().map(png).collect::<Result<Vec<Vec<u8>>>>()?.into_iter();
    let mut pair = |examples: &[Example]| {
        examples.iter().zip(pngs.by_ref()).map(|(example, png)| Picture { example: *example, png }).collect()
    };
    Ok(Some(Pictures { cheapest: pair(&gates.cheapest), dearest: pair(&gates.dearest) }))
}

/// Some rows of a split, as the model's only input.
fn inputs(config: &DataConfig, schema: &Schema, split: &str, rows: &[usize]) -> Result<Tensor> {
    let files = if split == "test" { &config.test } else { &config.eval };
    let Some(files) = files else { bail!("the recipe has no data.{split}") };
    let dataset = data::open(files.as_slice(), config, schema)?;
    if let Some(row) = rows.iter().find(|row| **row >= dataset.len()) {
        bail!("there is no example {row} in data.{split}, which has {}", dataset.len());
    }
    let found = dataset.batch(rows)?.tensors.into_values().next();
    found.ok_or_else(|| Error::msg(format!("data.{split} has no inputs")))
}

/// How the numbers of an image lie; `D` is a length, known or not.
struct Layout<D> {
    channels: usize,
    height: D,
    width: D,
    channels_last: bool,
}

impl<D: Copy> Layout<D> {
    /// `None` if these are not the axes of an image.
    fn of(row: &[D]) -> Option<Layout<D>>
    where
        Option<usize>: From<D>,
    {
        let &[a, b, c] = row else { return None };
        let channels = |axis: D| Option::<usize>::from(axis).filter(|n| matches!(n, 1 | 3));
        match (channels(a), channels(c)) {
            (Some(channels), _) => Some(Layout { channels, height: b, width: c, channels_last: false }),
            (None, Some(channels)) => Some(Layout { channels, height: a, width: b, channels_last: true }),
            (None, None) => None,
        }
    }
}

impl Layout<usize> {
    fn area(&self) -> usize {
        self.height * self.width
    }
    /// Where in an image the channel of a pixel is.
    fn place(&self, channel: usize, pixel: usize) -> usize {
        if self.channels_last { pixel * self.channels + channel } else { channel * self.area() + pixel }
    }
    /// The channel of what is at a place in a batch.
    fn channel(&self, place: usize) -> usize {
        if self.channels_last { place % self.channels } else { place / self.area() % self.channels }
    }
    /// The image of these shares of the brightest.
    fn image(&self, shares: &[f64]) -> Result<DynamicImage> {
        let byte = |channel, pixel| (shares[self.place(channel, pixel)].clamp(0.0, 1.0) * 255.0).round() as u8;
        let pixel = |pixel| (0..self.channels).map(move |channel| byte(channel, pixel));
        let bytes: Vec<u8> = (0..self.area()).flat_map(pixel).collect();
        let (width, height) = (self.width as u32, self.height as u32);
        let image = match self.channels {
            1 => GrayImage::from_raw(width, height, bytes).map(DynamicImage::ImageLuma8),
            _ => RgbImage::from_raw(width, height, bytes).map(DynamicImage::ImageRgb8),
        };
        image.ok_or_else(|| Error::msg("an image has no size"))
    }
}

/// Every image of a batch; `None` if they are none.
fn images(tensor: &Tensor, config: &DataConfig) -> Result<Option<Vec<DynamicImage>>> {
    let Some(layout) = tensor.shape().get(1..).and_then(Layout::of).filter(|layout| layout.area() > 0) else {
        return Ok(None);
    };
    let values = tensor.to_f64s()?;
    let shares = match tensor.dtype() {
        DType::U8 => values.into_iter().map(|v| v / 255.0).collect(),
        _ => undone(&values, config, &layout).unwrap_or_else(|| stretched(&values, &layout)),
    };
    shares
        .chunks_exact(layout.channels * layout.area())
        .map(|image| layout.image(image))
        .collect::<Result<_>>()
        .map(Some)
}

/// Values before the recipe's normalisation; `None` if that was not what made them.
fn undone(values: &[f64], config: &DataConfig, layout: &Layout<usize>) -> Option<Vec<f64>> {
    let of = |list: &Option<Vec<f32>>, channel: usize, default: f64| match list.as_deref() {
        Some([one]) => f64::from(*one),
        Some(list) => list.get(channel).map_or(default, |v| f64::from(*v)),
        None => default,
    };
    let one = |(i, v): (usize, &f64)| {
        let channel = layout.channel(i);
        v * of(&config.std, channel, 1.0) + of(&config.mean, channel, 0.0)
    };
    let all: Vec<f64> = values.iter().enumerate().map(one).collect();
    all.iter().all(|v| (-0.01..=1.01).contains(v)).then_some(all)
}

/// Values between the least and the greatest of their channel.
fn stretched(values: &[f64], layout: &Layout<usize>) -> Vec<f64> {
    let mut ranges = vec![(f64::INFINITY, f64::NEG_INFINITY); layout.channels];
    for (i, v) in values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
        let (low, high) = &mut ranges[layout.channel(i)];
        (*low, *high) = (low.min(*v), high.max(*v));
    }
    let share = |(i, v): (usize, &f64)| {
        let (low, high) = ranges[layout.channel(i)];
        if high > low { (v - low) / (high - low) } else { 0.5 }
    };
    values.iter().enumerate().map(share).collect()
}

fn png(image: DynamicImage) -> Result<Vec<u8>> {
    let large = image.width().max(image.height()) > LONGEST_SIDE;
    let image = if large { image.thumbnail(LONGEST_SIDE, LONGEST_SIDE) } else { image };
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, ImageFormat::Png).map_err(|e| Error::msg(format!("a picture cannot be written: {e}")))?;
    Ok(out.into_inner())
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= three.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648() {
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }

    /// The bytes of the only image of a tensor, row by row.
    fn bytes(shape: [usize; 4], values: Vec<f32>, config: &DataConfig) -> Vec<u8> {
        let images = images(&Tensor::from_vec(shape, values), config).unwrap().unwrap();
        assert_eq!(images.len(), 1);
        let decoded = image::load_from_memory(&png(images[0].clone()).unwrap()).unwrap();
        decoded.into_bytes()
    }

    #[test]
    fn pixels_come_back() {
        let planes = vec![1.0, 0.0, 0.2, 0.4, 0.6, 0.8];
        assert_eq!(bytes([1, 3, 1, 2], planes, &DataConfig::default()), [255, 51, 153, 0, 102, 204]);
        let last = vec![1.0, 0.2, 0.6, 0.0, 0.4, 0.8];
        assert_eq!(bytes([1, 1, 2, 3], last, &DataConfig::default()), [255, 51, 153, 0, 102, 204]);
        let config = DataConfig { mean: Some(vec![0.5]), std: Some(vec![0.5]), ..DataConfig::default() };
        assert_eq!(bytes([1, 1, 1, 3], vec![-1.0, 1.0, -0.6], &config), [0, 255, 51]);
        // Numbers that are no pixels are stretched.
        assert_eq!(bytes([1, 1, 1, 3], vec![-7.0, 3.0, -5.0], &DataConfig::default()), [0, 255, 51]);
        assert!(images(&Tensor::from_vec([2, 4], vec![0f32; 8]), &config).unwrap().is_none());
    }
}
