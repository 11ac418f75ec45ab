//! IDX, the format of MNIST and its kin: two zero bytes, the element type, the rank, the dimensions as big-endian
//! 32-bit numbers, the elements. Images are `uint8[N, H, W]` or `[N, H, W, C]`, labels `uint8[N]`.
//! Format: <http://yann.lecun.com/exdb/mnist/>. Files may be gzipped.

use super::config::DataConfig;
use super::pixels::Pixels;
use super::schema::{LABEL, Schema};
use super::{Batch, Dataset, gather_rows, labels, map_file};
use bytes::Bytes;
use image::imageops::FilterType;
use image::{DynamicImage, ImageBuffer};
use sartor_ir::{Context, DType, Error, Result, Tensor, bail, ensure};
use std::io::Read;
use std::path::{Path, PathBuf};

/// See the [module](self).
pub struct Idx {
    images: Tensor,
    labels: Option<Tensor>,
    pixels: Pixels,
    shape: [usize; 3],
    /// What the images are scaled to.
    scaled: [usize; 3],
}

impl Idx {
    /// Opens `[images, labels]`, or the images alone: the labels are then looked for beside them, where `images-idx3`
    /// becomes `labels-idx1`.
    pub fn open(paths: &[PathBuf], config: &DataConfig, schema: &Schema) -> Result<Idx> {
        let Some(first) = paths.first() else { bail!("the split names no file") };
        let images = read(first).context(|| first.display().to_string())?;
        let shape = match *images.shape() {
            [_, height, width] => [1, height, width],
            [_, height, width, channels] => [channels, height, width],
            _ => bail!("{}: images are [N, H, W] or [N, H, W, C], found {:?}", first.display(), images.shape()),
        };
        let count = images.shape().first().copied().unwrap_or(0);
        ensure!(count > 0 && !images.is_empty(), "{}: the split is empty: there are no images", first.display());
        let pixels = Pixels::of(config, schema)?;
        let [c, h, w] = match config.resize {
            Some([height, width]) => [shape[0], height as usize, width as usize],
            None => shape,
        };
        ensure!(
            pixels.accepts(c, h, w) && h * w > 0,
            "{}: the images are {c}×{h}×{w}, the model's input \"{}\" is {} (data.resize = [height, width] scales images)",
            first.display(),
            pixels.field.name,
            pixels.field.describe()
        );
        ensure!(
            [c, h, w] == shape || matches!(c, 1 | 3),
            "{}: images of {c} channels cannot be scaled, only those of 1 or 3",
            first.display()
        );
        let labels = read_labels(first, paths.get(1), schema, count)?;
        Ok(Idx { images, labels, pixels, shape, scaled: [c, h, w] })
    }
}

fn read_labels(images: &Path, given: Option<&PathBuf>, schema: &Schema, count: usize) -> Result<Option<Tensor>> {
    let Some(field) = &schema.label else { return Ok(None) };
    let name = images.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let beside =
        images.with_file_name(name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1"));
    let path = given.cloned().unwrap_or(beside);
    if schema.may_lack_labels && given.is_none() && !path.exists() {
        return Ok(None);
    }
    ensure!(
        path.exists() && path != images,
        "{}: its labels are missing: write [\"IMAGES\", \"LABELS\"], or name the files …images-idx3… and …labels-idx1…",
        images.display()
    );
    let file = path.display().to_string();
    let tensor = read(&path).context(|| file.clone())?;
    ensure!(tensor.shape() == [count], "{file}: expected {count} labels, one per image, found {:?}", tensor.shape());
    let place = |row: usize| format!("{file}, entry {row}");
    Ok(Some(labels::from_tensor(schema, field, &tensor, &place)?))
}

/// The tensor of a file, unpacked if it is gzipped.
pub fn read(path: &Path) -> Result<Tensor> {
    let mut bytes = map_file(path)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        bytes = unzip(&bytes)?;
    }
    parse(&bytes)
}

/// Unpacks no more than what the header inside announces, and one byte, which tells that there is more.
fn unzip(packed: &[u8]) -> Result<Bytes> {
    let damaged = |e| Error::msg(format!("the gzip data is damaged: {e}"));
    let mut reader = flate2::read::GzDecoder::new(packed);
    let mut out = vec![0; 4];
    reader.read_exact(&mut out).map_err(damaged)?;
    let mut dims = vec![0; 4 * usize::from(out[3])];
    reader.read_exact(&mut dims).map_err(damaged)?;
    let sizes = dims.chunks_exact(4).map(|d| d.iter().fold(0u64, |n, &b| n << 8 | u64::from(b)));
    let elements = sizes.fold(1u64, u64::saturating_mul);
    out.extend(dims);
    reader.take(elements.saturating_add(1)).read_to_end(&mut out).map_err(damaged)?;
    Ok(out.into())
}

/// The tensor of a file's bytes.
pub fn parse(bytes: &Bytes) -> Result<Tensor> {
    let [0, 0, kind, rank, ..] = bytes[..] else { bail!("this is not an IDX file (it does not begin with two zeros)") };
    ensure!(kind == 8, "the elements are of IDX type 0x{kind:02x}, expected bytes (0x08)");
    let rank = usize::from(rank);
    let Some(header) = bytes.get(4..4 + 4 * rank) else { bail!("the file ends inside its header") };
    let dim = |d: &[u8]| d.iter().fold(0usize, |n, &b| n << 8 | usize::from(b));
    let shape: Vec<usize> = header.chunks_exact(4).map(dim).collect();
    Tensor::from_bytes(DType::U8, shape, bytes.slice(4 + 4 * rank..))
}

/// Images `[height, width, channels]`, of one or three channels, in another size.
fn scaled(bytes: &[u8], [c, h, w]: [usize; 3], [_, height, width]: [usize; 3]) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for bytes in bytes.chunks_exact(c * h * w) {
        let (from, to) = ((w as u32, h as u32), (width as u32, height as u32));
        let image = match c {
            1 => ImageBuffer::from_raw(from.0, from.1, bytes.to_vec()).map(DynamicImage::ImageLuma8),
            _ => ImageBuffer::from_raw(from.0, from.1, bytes.to_vec()).map(DynamicImage::ImageRgb8),
        };
        let Some(image) = image else { bail!("an image does not have {w} × {h} places") };
        all.extend(image.resize_exact(to.0, to.1, FilterType::Triangle).into_bytes());
    }
    Ok(all)
}

impl Dataset for Idx {
    fn len(&self) -> usize {
        self.images.shape().first().copied().unwrap_or(0)
    }
    fn batch(&self, rows: &[usize]) -> Result<Batch> {
        let images = gather_rows(&self.images, rows)?;
        let images = match self.scaled == self.shape {
            true => self.pixels.tensor(images.bytes(), rows.len(), self.shape)?,
            false => self.pixels.tensor(&scaled(images.bytes(), self.shape, self.scaled)?, rows.len(), self.scaled)?,
        };
        let mut tensors = std::collections::HashMap::from([(self.pixels.field.name.clone(), images)]);
        if let Some(labels) = &self.labels {
            tensors.insert(LABEL.to_string(), gather_rows(labels, rows)?);
        }
        Ok(Batch { tensors, samples: rows.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Field;
    use super::*;
    use sartor_ir::Dim;
    use std::io::Write;

    fn schema(row: &[i64]) -> Schema {
        let batch = Dim::symbol("batch");
        let shape = std::iter::once(batch.clone()).chain(row.iter().map(|&d| Dim::Known(d))).collect();
        let x = Field { name: "x".into(), dtype: DType::F32, shape: Some(shape) };
        let label = Field { name: "label".into(), dtype: DType::I64, shape: Some(vec![batch]) };
        Schema { inputs: vec![x], label: Some(label), classes: Some(10), ..Schema::default() }
    }

    fn write_pair(dir: &Path) -> PathBuf {
        let images = dir.join("t10k-images-idx3-ubyte.gz");
        let mut gz = flate2::write::GzEncoder::new(std::fs::File::create(&images).unwrap(), Default::default());
        gz.write_all(&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 255, 51, 102]).unwrap();
        gz.finish().unwrap();
        let labels = dir.join("t10k-labels-idx1-ubyte.gz");
        let mut gz = flate2::write::GzEncoder::new(std::fs::File::create(labels).unwrap(), Default::default());
        gz.write_all(&[0, 0, 8, 1, 0, 0, 0, 2, 7, 9]).unwrap();
        gz.finish().unwrap();
        images
    }

    #[test]
    fn gzipped_pairs_scale_to_unit_range() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_pair(dir.path());
        let config = DataConfig { mean: Some(vec![0.5]), std: Some(vec![0.5]), ..DataConfig::default() };
        let data = super::super::open(std::slice::from_ref(&path), &config, &schema(&[1, 1, 2])).unwrap();
        let batch = data.batch(&[1, 0]).unwrap();
        let x = batch.tensors["x"].to_vec::<f32>().unwrap();
        assert!(x.iter().zip([-0.6, -0.2, -1.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{x:?}");
        assert_eq!(batch.tensors["x"].shape(), [2, 1, 1, 2]);
        assert_eq!(batch.tensors["label"], Tensor::from_i64s(&[9, 7]));
        let flat = super::super::open(&[path], &DataConfig::default(), &schema(&[2])).unwrap();
        assert_eq!(flat.batch(&[0]).unwrap().tensors["x"], Tensor::from_vec([1, 2], vec![0.0f32, 1.0]));
    }

    #[test]
    fn images_are_scaled() {
        let dir = tempfile::tempdir().unwrap();
        let config = DataConfig { resize: Some([2, 4]), ..DataConfig::default() };
        let data = super::super::open(&[write_pair(dir.path())], &config, &schema(&[1, 2, 4])).unwrap();
        let x = data.batch(&[0]).unwrap().tensors["x"].to_vec::<f32>().unwrap();
        let bytes: Vec<f32> = x.iter().map(|x| (x * 255.0).round()).collect();
        // Places 0 and 1 of the image are at 0.5 and 2.5 of four places.
        assert_eq!(bytes, [0.0, 64.0, 191.0, 255.0, 0.0, 64.0, 191.0, 255.0]);
    }

    #[test]
    fn mistakes_are_sentences() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_pair(dir.path());
        let open = |schema: &Schema| Idx::open(std::slice::from_ref(&path), &DataConfig::default(), schema).map(drop);
        let message = open(&schema(&[1, 28, 28])).unwrap_err().to_string();
        let end = "the images are 1×1×2, the model's input \"x\" is float[batch, 1, 28, 28] (data.resize = [height, width] scales images)";
        assert!(message.ends_with(end), "{message}");
        let few = Schema { classes: Some(8), ..schema(&[2]) };
        let message = open(&few).unwrap_err().to_string();
        assert!(message.ends_with("ubyte.gz, entry 1: label 9 is outside the 8 classes (0 to 7)"), "{message}");
        let cut = parse(&Bytes::from_static(&[0, 0, 8, 1, 0, 0, 0, 3, 1])).unwrap_err().to_string();
        assert_eq!(cut, "tensor uint8[3] needs 3 bytes, found 1");
        std::fs::remove_file(dir.path().join("t10k-labels-idx1-ubyte.gz")).unwrap();
        assert!(open(&schema(&[2])).unwrap_err().to_string().contains("its labels are missing"));
    }
}
