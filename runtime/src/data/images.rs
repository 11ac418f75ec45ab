//! A folder with one folder of images (`.png`, `.jpg`) per class. Classes are numbered in the order of their names;
//! images are decoded when a batch needs them.

use super::config::DataConfig;
use super::pixels::Pixels;
use super::schema::{LABEL, Schema};
use super::{Batch, Dataset, labels, list};
use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};
use rayon::prelude::*;
use sartor_ir::{Error, Result, Tensor, bail, ensure};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// See the [module](self).
pub struct Images {
    files: Vec<PathBuf>,
    labels: Option<Tensor>,
    pixels: Pixels,
    resize: Option<[u32; 2]>,
    shape: [usize; 3],
}

/// A picture claims its size before it holds it: more pixels than this are refused.
const MAX_SIDE: u32 = 16_384;

impl Images {
    /// Opens a folder. The size of its images is that of the graph's input, of `data.resize`, or of the first image.
    pub fn open(folder: &Path, config: &DataConfig, schema: &Schema) -> Result<Images> {
        let classes = entries(folder, |p| p.is_dir())?;
        ensure!(
            !classes.is_empty(),
            "{}: there are neither arrays (.npy) nor folders of images, one per class",
            folder.display()
        );
        let (mut files, mut numbers) = (Vec::new(), Vec::new());
        for (number, class) in classes.iter().enumerate() {
            let images = entries(class, is_image)?;
            ensure!(!images.is_empty(), "{}: the class has no .png or .jpg image", class.display());
            numbers.extend(std::iter::repeat_n(number as i64, images.len()));
            files.extend(images);
        }
        check_class_count(folder, &classes, schema)?;
        let place = |row: usize| files.get(row).map_or(String::new(), |f| f.display().to_string());
        let labels = match &schema.label {
            Some(field) => Some(labels::from_tensor(schema, field, &Tensor::from_i64s(&numbers), &place)?),
            None => None,
        };
        let pixels = Pixels::of(config, schema)?;
        let mut images = Images { files, labels, pixels, resize: config.resize, shape: [0; 3] };
        images.shape = images.find_shape()?;
        Ok(images)
    }
    fn find_shape(&self) -> Result<[usize; 3]> {
        let Some(first) = self.files.first() else { bail!("there are no images") };
        let picture = decode(first)?;
        let channels = self.pixels.channels.unwrap_or(if picture.color().has_color() { 3 } else { 1 });
        ensure!(
            matches!(channels, 1 | 3),
            "the model's input \"{}\" has {channels} channels; images have 1 or 3",
            self.pixels.field.name
        );
        let own = (picture.height() as usize, picture.width() as usize);
        let resized = self.resize.map(|[h, w]| (h as usize, w as usize));
        let (height, width) = resized.or(self.pixels.size).unwrap_or(own);
        ensure!(
            self.pixels.accepts(channels, height, width) && height * width > 0,
            "images of {channels}×{height}×{width} do not fit the model's input \"{}\", which is {}",
            self.pixels.field.name,
            self.pixels.field.describe()
        );
        Ok([channels, height, width])
    }
    /// The bytes of one image, `[height, width, channels]`.
    fn load(&self, row: usize) -> Result<Vec<u8>> {
        let Some(path) = self.files.get(row) else { bail!("there is no image {row}") };
        let [channels, height, width] = self.shape;
        let mut picture = decode(path)?;
        let found = (picture.height() as usize, picture.width() as usize);
        if found != (height, width) {
            ensure!(
                self.resize.is_some(),
                "{}: the image is {}×{}, expected {height}×{width} (data.resize = [{height}, {width}] scales images)",
                path.display(),
                found.0,
                found.1
            );
            picture = picture.resize_exact(width as u32, height as u32, FilterType::Triangle);
        }
        Ok(if channels == 1 { picture.into_luma8().into_raw() } else { picture.into_rgb8().into_raw() })
    }
}

fn check_class_count(folder: &Path, classes: &[PathBuf], schema: &Schema) -> Result<()> {
    let Some(want) = schema.classes.filter(|&want| classes.len() > want) else { return Ok(()) };
    let names = classes.iter().filter_map(|c| c.file_name()).map(|n| n.to_string_lossy());
    bail!("{}: there are {} classes ({}), the model has {want}", folder.display(), classes.len(), list(names));
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg"))
}

fn entries(folder: &Path, keep: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if keep(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn decode(path: &Path) -> Result<DynamicImage> {
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(|e| Error::io(path, e))?;
    let mut reader = reader;
    let mut limits = image::Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    reader.limits(limits);
    reader.decode().map_err(|e| Error::msg(format!("{}: the image cannot be decoded: {e}", path.display())))
}

impl Dataset for Images {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn batch(&self, rows: &[usize]) -> Result<Batch> {
        let loaded: Vec<Vec<u8>> = rows.par_iter().map(|&row| self.load(row)).collect::<Result<_>>()?;
        let images = self.pixels.tensor(&loaded.concat(), rows.len(), self.shape)?;
        let mut tensors = HashMap::from([(self.pixels.field.name.clone(), images)]);
        if let Some(labels) = &self.labels {
            tensors.insert(LABEL.to_string(), super::gather_rows(labels, rows)?);
        }
        Ok(Batch { tensors, samples: rows.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Field;
    use super::*;
    use sartor_ir::{DType, Dim};

    fn schema(classes: usize) -> Schema {
        let batch = Dim::symbol("batch");
        let shape = vec![batch.clone(), Dim::Known(3), Dim::Known(1), Dim::Known(2)];
        let x = Field { name: "x".into(), dtype: DType::F32, shape: Some(shape) };
        let label = Field { name: "label".into(), dtype: DType::I64, shape: Some(vec![batch]) };
        Schema { inputs: vec![x], label: Some(label), classes: Some(classes), ..Schema::default() }
    }

    fn folder(dir: &Path) -> PathBuf {
        for (class, pixel) in [("cat", [255u8, 0, 0]), ("dog", [0, 51, 255])] {
            std::fs::create_dir(dir.join(class)).unwrap();
            let picture = image::RgbImage::from_raw(2, 1, [pixel, [0; 3]].concat()).unwrap();
            picture.save(dir.join(class).join("1.png")).unwrap();
        }
        dir.to_path_buf()
    }

    #[test]
    fn folders_are_classes() {
        let dir = tempfile::tempdir().unwrap();
        let data = super::super::open(&[folder(dir.path())], &DataConfig::default(), &schema(2)).unwrap();
        let batch = data.batch(&[1]).unwrap();
        let expected = Tensor::from_vec([1, 3, 1, 2], vec![0.0f32, 0.0, 0.2, 0.0, 1.0, 0.0]);
        assert_eq!((&batch.tensors["x"], &batch.tensors["label"]), (&expected, &Tensor::from_i64s(&[1])));
    }

    #[test]
    fn other_sizes_are_errors_unless_scaled() {
        let dir = tempfile::tempdir().unwrap();
        let path = folder(dir.path());
        image::RgbImage::new(4, 2).save(path.join("dog/2.png")).unwrap();
        let data = Images::open(&path, &DataConfig::default(), &schema(2)).unwrap();
        let message = data.batch(&[2]).unwrap_err().to_string();
        assert!(message.ends_with("2.png: the image is 2×4, expected 1×2 (data.resize = [1, 2] scales images)"));
        let config = DataConfig { resize: Some([1, 2]), ..DataConfig::default() };
        let scaled = Images::open(&path, &config, &schema(2)).unwrap().batch(&[2]).unwrap();
        assert_eq!(scaled.tensors["x"].shape(), [1, 3, 1, 2]);
        let message = Images::open(&path, &DataConfig::default(), &schema(1)).map(drop).unwrap_err().to_string();
        assert!(message.ends_with("there are 2 classes (\"cat\" and \"dog\"), the model has 1"), "{message}");
        std::fs::write(path.join("cat/0.jpg"), b"not a picture").unwrap();
        let message = Images::open(&path, &DataConfig::default(), &schema(2)).map(drop).unwrap_err().to_string();
        assert!(message.contains("0.jpg: the image cannot be decoded"), "{message}");
    }
}
