//! The digits: 1,797 handwritten ones, 8 × 8 pixels of 0 to 16, embedded in the binary.
//!
//! Source: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998
//! (its test set), as scikit-learn ships it (`sklearn/datasets/data/digits.csv.gz`). Licence: CC BY 4.0.

use flate2::read::GzDecoder;
use indexmap::IndexMap;
use sartor_ir::{Context, Error, Result, Tensor, ensure};
use std::io::Read;

/// Whom the digits are from.
pub const CREDIT: &str =
    "digits: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, CC BY 4.0 (via scikit-learn)";
/// Pixels per side.
pub const SIDE: usize = 8;
/// The last so many are for the test.
pub const TEST: usize = 500;

const FILE: &[u8] = include_bytes!("../../data/digits.csv.gz");

/// Images as rows of 64 numbers in 0…1, and their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Digits {
    /// Row after row.
    pub pixels: Vec<f32>,
    /// 0 to 9.
    pub labels: Vec<i64>,
}

impl Digits {
    /// All of them.
    pub fn all() -> Result<Digits> {
        let mut text = String::new();
        GzDecoder::new(FILE).read_to_string(&mut text).map_err(|e| Error::io("digits.csv.gz", e))?;
        let mut digits = Digits { pixels: Vec::new(), labels: Vec::new() };
        for (i, line) in text.lines().enumerate() {
            digits.add(line).context(|| format!("digits.csv.gz, line {}", i + 1))?;
        }
        Ok(digits)
    }
    /// One line: 64 pixels, then the label.
    fn add(&mut self, line: &str) -> Result<()> {
        let numbers: Result<Vec<f32>, _> = line.split(',').map(|n| n.trim().parse::<f32>()).collect();
        let numbers = numbers.map_err(|e| Error::msg(e.to_string()))?;
        ensure!(numbers.len() == SIDE * SIDE + 1, "{} numbers, expected {}", numbers.len(), SIDE * SIDE + 1);
        self.pixels.extend(numbers[..SIDE * SIDE].iter().map(|p| p / 16.0));
        self.labels.push(numbers[SIDE * SIDE] as i64);
        Ok(())
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.labels.len()
    }
    /// Those to train on, and those for the test.
    pub fn split(&self) -> (Digits, Digits) {
        let at = self.len().saturating_sub(TEST);
        let (train, test) = (self.pixels.split_at(at * SIDE * SIDE), self.labels.split_at(at));
        let part = |pixels: &[f32], labels: &[i64]| Digits { pixels: pixels.to_vec(), labels: labels.to_vec() };
        (part(train.0, test.0), part(train.1, test.1))
    }
    /// White on black becomes black on white.
    pub fn inverted(&self) -> Digits {
        Digits { pixels: self.pixels.iter().map(|p| 1.0 - p).collect(), labels: self.labels.clone() }
    }
    /// As arrays: `pixels` float[N, 1, 8, 8] and `label` int64[N].
    pub fn arrays(&self) -> IndexMap<String, Tensor> {
        let pixels = Tensor::from_vec([self.len(), 1, SIDE, SIDE], self.pixels.clone());
        IndexMap::from([("pixels".to_string(), pixels), ("label".to_string(), Tensor::from_i64s(&self.labels))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_1797_of_ten_kinds() {
        let digits = Digits::all().unwrap();
        assert_eq!((digits.len(), digits.pixels.len()), (1797, 1797 * 64));
        assert_eq!(digits.labels[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(digits.pixels.iter().all(|p| (0.0..=1.0).contains(p)));
        let (train, test) = digits.split();
        assert_eq!((train.len(), test.len()), (1297, 500));
        assert_eq!(test.inverted().inverted().labels, test.labels);
        assert_eq!(train.arrays()["pixels"].shape(), [1297, 1, 8, 8]);
    }
}
