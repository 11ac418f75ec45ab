//! Digits as a picture: one row of them per set, enlarged.

use super::digits::{Digits, SIDE};
use image::{GrayImage, Luma};
use sartor_ir::{Error, Result};
use std::path::Path;

/// Screen pixels per digit pixel.
const SCALE: usize = 12;
/// Screen pixels between digits.
const GAP: usize = 6;

/// Writes a PNG with the first `count` digits of each set, a row each.
pub fn write(path: &Path, sets: &[&Digits], count: usize) -> Result<()> {
    let cell = SIDE * SCALE + GAP;
    let mut picture = GrayImage::from_pixel((count * cell + GAP) as u32, (sets.len() * cell + GAP) as u32, Luma([96]));
    for (row, set) in sets.iter().enumerate() {
        for (column, digit) in set.pixels.chunks_exact(SIDE * SIDE).take(count).enumerate() {
            draw(&mut picture, digit, column * cell + GAP, row * cell + GAP);
        }
    }
    picture.save(path).map_err(|e| Error::msg(format!("{}: {e}", path.display())))
}

fn draw(picture: &mut GrayImage, digit: &[f32], left: usize, top: usize) {
    for y in 0..SIDE * SCALE {
        for x in 0..SIDE * SCALE {
            let value = digit.get(y / SCALE * SIDE + x / SCALE).copied().unwrap_or(0.0);
            picture.put_pixel((left + x) as u32, (top + y) as u32, Luma([(value * 255.0).round() as u8]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_can_be_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("digits.png");
        let digits = Digits::all().unwrap();
        write(&path, &[&digits, &digits.inverted()], 3).unwrap();
        let picture = image::open(&path).unwrap().to_luma8();
        assert_eq!(picture.dimensions(), (312, 210));
        let at = |x: u32, y: u32| picture.get_pixel(x, y).0[0];
        assert_eq!((at(0, 0), at(6, 6), at(6, 108)), (96, 0, 255));
    }
}
