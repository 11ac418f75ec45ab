//! Random changes of training images: mirrored left to right, and moved by some pixels.
//!
//! What is drawn for an image depends on the seed, the epoch and its row in the data set alone: the order of the batches, the number of threads
//! and an interruption change nothing. Images are tensors `[N, C, H, W]` of `f32` (`[N, H, W, C]` where the last axis has 1 or 3 entries and the
//! second does not). What moves in from outside is 0: after normalisation by `data.mean` the mean colour.

use super::Batch;
use sartor_ir::rng::Stream;
use sartor_ir::{DType, Result, Tensor};

/// What is done to training images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augment {
    /// Half of the images are mirrored left to right.
    pub flip: bool,
    /// Images are moved by up to this many pixels in each direction.
    pub crop: usize,
}

/// How the axes of images lie.
#[derive(Clone, Copy)]
struct Layout {
    height: usize,
    width: usize,
    /// Numbers per pixel that lie side by side, and planes of pixels.
    inner: usize,
    planes: usize,
}

impl Augment {
    /// Whether it changes nothing.
    pub fn is_none(&self) -> bool {
        !self.flip && self.crop == 0
    }
    /// Changes the images of a batch made of these rows.
    pub fn apply(&self, batch: &mut Batch, rows: &[usize], seed: u64, epoch: usize) -> Result<()> {
        if self.is_none() {
            return Ok(());
        }
        let stream = Stream::new(seed, epoch as u64, "data.augment");
        for tensor in batch.tensors.values_mut().filter(|t| t.rank() == 4 && t.dtype() == DType::F32) {
            *tensor = self.changed(tensor, rows, stream)?;
        }
        Ok(())
    }
    fn changed(&self, images: &Tensor, rows: &[usize], stream: Stream) -> Result<Tensor> {
        let layout = layout(images.shape());
        let size = layout.planes * layout.height * layout.width * layout.inner;
        let from = images.as_slice::<f32>()?;
        let mut to = vec![0f32; from.len()];
        for ((from, to), &row) in from.chunks_exact(size.max(1)).zip(to.chunks_exact_mut(size.max(1))).zip(rows) {
            let draw = |k: u64, bound: usize| stream.below(3 * row as u64 + k, bound as u64) as isize;
            let range = 2 * self.crop + 1;
            let away = [draw(0, range), draw(1, range)].map(|d| d - self.crop as isize);
            let mirrored = self.flip && draw(2, 2) == 1;
            move_image(from, to, layout, away, mirrored);
        }
        Ok(Tensor::from_vec(images.shape(), to))
    }
}

fn layout(shape: &[usize]) -> Layout {
    let &[_, a, b, c] = shape else { return Layout { height: 0, width: 0, inner: 0, planes: 0 } };
    let last = [1, 3].contains(&c) && ![1, 3].contains(&a);
    match last {
        true => Layout { height: a, width: b, inner: c, planes: 1 },
        false => Layout { height: b, width: c, inner: 1, planes: a },
    }
}

/// Writes an image moved by `away` (down, right), mirrored first.
fn move_image(from: &[f32], to: &mut [f32], layout: Layout, [down, right]: [isize; 2], mirrored: bool) {
    let Layout { height, width, inner, planes } = layout;
    for plane in 0..planes {
        for y in 0..height {
            let source = y as isize - down;
            if source < 0 || source >= height as isize {
                continue;
            }
            let (line, target) = ((plane * height + source as usize) * width, (plane * height + y) * width);
            for x in 0..width {
                let place = x as isize - right;
                if place < 0 || place >= width as isize {
                    continue;
                }
                let place = if mirrored { width - 1 - place as usize } else { place as usize };
                let (a, b) = ((line + place) * inner, (target + x) * inner);
                to[b..b + inner].copy_from_slice(&from[a..a + inner]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn batch(shape: &[usize]) -> Batch {
        let numbers: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32 + 1.0).collect();
        Batch { tensors: HashMap::from([("x".to_string(), Tensor::from_vec(shape, numbers))]), samples: shape[0] }
    }

    fn values(batch: &Batch) -> Vec<f32> {
        batch.tensors["x"].as_slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn images_are_mirrored_and_moved() {
        let layout = layout(&[1, 1, 2, 3]);
        let image = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let moved = |away: [isize; 2], mirrored: bool| {
            let mut to = [0.0; 6];
            move_image(&image, &mut to, layout, away, mirrored);
            to
        };
        assert_eq!(moved([0, 0], false), image);
        assert_eq!(moved([0, 0], true), [3.0, 2.0, 1.0, 6.0, 5.0, 4.0]);
        assert_eq!(moved([1, -1], false), [0.0, 0.0, 0.0, 2.0, 3.0, 0.0]);
        assert_eq!(moved([0, 2], true), [0.0, 0.0, 3.0, 0.0, 0.0, 6.0]);
    }

    #[test]
    fn what_is_drawn_depends_on_the_row_and_the_epoch_alone() {
        let augment = Augment { flip: true, crop: 2 };
        let run = |rows: &[usize], epoch: usize| {
            let mut all = batch(&[4, 2, 5, 5]);
            let picked = super::super::gather_rows(&all.tensors["x"], rows).unwrap();
            all.tensors.insert("x".into(), picked);
            augment.apply(&mut all, rows, 7, epoch).unwrap();
            values(&all)
        };
        let (forward, backward) = (run(&[0, 1, 2, 3], 0), run(&[3, 2, 1, 0], 0));
        for row in 0..4 {
            assert_eq!(forward[row * 50..(row + 1) * 50], backward[(3 - row) * 50..(4 - row) * 50]);
        }
        assert_ne!(forward, run(&[0, 1, 2, 3], 1));
        // Channels of a pixel stay together in images whose channels lie last.
        let mut last = batch(&[2, 4, 5, 3]);
        augment.apply(&mut last, &[5, 6], 7, 0).unwrap();
        let pixels = values(&last);
        assert!(pixels.chunks(3).all(|p| p == [0.0; 3] || (p[1] == p[0] + 1.0 && p[2] == p[0] + 2.0)));
    }
}
