//! The geometry of sliding windows, shared by convolutions and pools.
//!
//! Along each spatial axis, output `o` sees the inputs `o · stride − pad_begin + k · dilation` for `k` in
//! `0..kernel`; those outside of the input are padding. The number of outputs is
//!
//! ```text
//! ⌊(in + pad_begin + pad_end − ((kernel − 1) · dilation + 1)) / stride⌋ + 1
//! ```
//!
//! (⌈…⌉ + 1 with `ceil_mode`, less a last window that would start in the end padding), and ⌈in / stride⌉ for
//! `auto_pad = SAME_UPPER` or `SAME_LOWER`, whose padding follows from that.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Conv.html>, <https://onnx.ai/onnx/operators/onnx__MaxPool.html>.

use super::broadcast::{for_each_offset, strides};
use crate::error::{Error, Result};
use crate::tensor::element_count;
use crate::{Attributes, Dim, ensure};

/// How the padding is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AutoPad {
    /// By the attribute `pads`.
    NotSet,
    /// None.
    Valid,
    /// So that there are ⌈in / stride⌉ outputs; an odd element of padding at the end.
    SameUpper,
    /// The same, with the odd element at the beginning.
    SameLower,
}

/// The attributes of a sliding window; all lists have one entry per spatial axis.
#[derive(Clone, PartialEq, Debug)]
pub struct Window {
    /// The number of elements a window sees.
    pub kernel: Vec<usize>,
    /// The distance between windows.
    pub strides: Vec<usize>,
    /// The distance between the elements of one window.
    pub dilations: Vec<usize>,
    /// Padding before the first element; see `auto_pad`.
    pub begin: Vec<usize>,
    /// Padding after the last element; see `auto_pad`.
    pub end: Vec<usize>,
    /// How the padding is found.
    pub auto_pad: AutoPad,
    /// Whether the number of outputs is rounded up.
    pub ceil_mode: bool,
}

impl Window {
    /// Reads the attributes. `kernel` is used where the attribute `kernel_shape` is absent.
    pub fn read(attrs: &Attributes, kernel: Option<&[usize]>) -> Result<Window> {
        let kernel = match (attrs.get_ints("kernel_shape")?, kernel) {
            (Some(list), given) => {
                let list = counts("kernel_shape", list, 1)?;
                ensure!(given.is_none_or(|g| g == list), "`kernel_shape` is {list:?}, the weight says {given:?}");
                list
            }
            (None, Some(kernel)) => {
                ensure!(!kernel.contains(&0), "its kernel is empty: {kernel:?}");
                kernel.to_vec()
            }
            (None, None) => return Err(Error::msg("attribute `kernel_shape` is missing")),
        };
        let rank = kernel.len();
        let list = |name: &str, length: usize, least: i64| -> Result<Vec<usize>> {
            let list = counts(name, &attrs.ints(name, &vec![least; length])?, least)?;
            ensure!(list.len() == length, "attribute `{name}` has {} entries, expected {length}", list.len());
            Ok(list)
        };
        let auto_pad = match attrs.str("auto_pad", "NOTSET")? {
            "NOTSET" | "" => AutoPad::NotSet,
            "VALID" => AutoPad::Valid,
            "SAME_UPPER" => AutoPad::SameUpper,
            "SAME_LOWER" => AutoPad::SameLower,
            other => return Err(Error::msg(format!("attribute `auto_pad` is \"{other}\""))),
        };
        let pads = if auto_pad == AutoPad::NotSet { list("pads", 2 * rank, 0)? } else { vec![0; 2 * rank] };
        let (strides, dilations) = (list("strides", rank, 1)?, list("dilations", rank, 1)?);
        let ceil_mode = attrs.flag("ceil_mode", false)?;
        let (begin, end) = (pads[..rank].to_vec(), pads[rank..].to_vec());
        Ok(Window { kernel, strides, dilations, begin, end, auto_pad, ceil_mode })
    }
    /// The number of spatial axes.
    pub fn rank(&self) -> usize {
        self.kernel.len()
    }
    /// The extent of one window along an axis, gaps included.
    pub fn extent(&self, axis: usize) -> usize {
        (self.kernel[axis].max(1) - 1) * self.dilations[axis] + 1
    }
    /// The number of outputs along each axis, symbolically.
    pub fn output_dims(&self, input: &[Dim]) -> Result<Vec<Dim>> {
        ensure!(input.len() == self.rank(), "{} spatial axes, expected {}", input.len(), self.rank());
        input.iter().enumerate().map(|(axis, dim)| self.output_dim(axis, dim)).collect()
    }
    fn output_dim(&self, axis: usize, input: &Dim) -> Result<Dim> {
        let stride = Dim::Known(self.strides[axis] as i64);
        if let Dim::Known(size) = input {
            let size = usize::try_from(*size).map_err(|_| Error::msg(format!("a dimension is {size}")))?;
            return Ok(Dim::Known(self.output_size(axis, size)? as i64));
        }
        if matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            return Ok(input.add(&Dim::Known(self.strides[axis] as i64 - 1)).div_floor(&stride));
        }
        if self.ceil_mode && self.strides[axis] > 1 {
            return Ok(Dim::Unknown); // Whether the last window is dropped depends on the number.
        }
        let slack = self.begin[axis] as i64 + self.end[axis] as i64 - self.extent(axis) as i64;
        Ok(input.add(&Dim::Known(slack)).div_floor(&stride).add(&Dim::Known(1)))
    }
    /// The number of outputs along each axis.
    pub fn output_sizes(&self, input: &[usize]) -> Result<Vec<usize>> {
        ensure!(input.len() == self.rank(), "{} spatial axes, expected {}", input.len(), self.rank());
        input.iter().enumerate().map(|(axis, &size)| self.output_size(axis, size)).collect()
    }
    fn output_size(&self, axis: usize, size: usize) -> Result<usize> {
        let stride = self.strides[axis];
        if matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            return Ok(size.div_ceil(stride));
        }
        let (padded, extent) = (size + self.begin[axis] + self.end[axis], self.extent(axis));
        ensure!(padded >= extent, "a window of {extent} does not fit into {padded} elements along spatial axis {axis}");
        if !self.ceil_mode {
            return Ok((padded - extent) / stride + 1);
        }
        let count = (padded - extent).div_ceil(stride) + 1;
        let starts_in_end_padding = (count - 1) * stride >= size + self.begin[axis];
        Ok(if starts_in_end_padding { count - 1 } else { count })
    }
    /// The same window with its padding as numbers, for inputs of these sizes.
    pub fn resolved(&self, input: &[usize]) -> Result<Window> {
        let mut window = self.clone();
        window.auto_pad = AutoPad::NotSet;
        if matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            for (axis, &outputs) in self.output_sizes(input)?.iter().enumerate() {
                let span = (outputs.max(1) - 1) * self.strides[axis] + self.extent(axis);
                let total = span.saturating_sub(input[axis]);
                let small = total / 2;
                let begin = if self.auto_pad == AutoPad::SameUpper { small } else { total - small };
                (window.begin[axis], window.end[axis]) = (begin, total - begin);
            }
        }
        Ok(window)
    }
    /// Where every element of every window lies, for inputs and outputs of these sizes; padding must be resolved.
    pub fn taps(&self, input: &[usize], output: &[usize]) -> Result<Taps> {
        let (windows, size) = (element_count(output), element_count(&self.kernel));
        let entries = windows.zip(size).and_then(|(w, k)| w.checked_mul(k)).filter(|&n| n < MAX_TAPS);
        ensure!(entries.is_some(), "windows {:?} over {output:?} outputs are too many", self.kernel);
        let (windows, size) = (windows.unwrap_or(0), size.unwrap_or(0));
        let mut places = Vec::with_capacity(windows * size);
        let input_strides = strides(input);
        let mut kernel_index = vec![0; self.rank()];
        for _ in 0..size {
            self.places_of(&kernel_index, input, output, &input_strides, &mut places);
            advance(&mut kernel_index, &self.kernel);
        }
        Ok(Taps { windows, size, places })
    }
    /// Appends the place of one kernel element in every window.
    fn places_of(&self, k: &[usize], input: &[usize], output: &[usize], step: &[usize], places: &mut Vec<usize>) {
        // Per axis and output: the offset, or a marker.
        let lines: Vec<Vec<usize>> = (0..self.rank())
            .map(|axis| {
                let place = |o: usize| {
                    let at = o * self.strides[axis] + k[axis] * self.dilations[axis];
                    match at.checked_sub(self.begin[axis]) {
                        Some(at) if at < input[axis] => at * step[axis],
                        Some(at) if at >= input[axis] + self.end[axis] => OUTSIDE,
                        _ => PADDING,
                    }
                };
                (0..output[axis]).map(place).collect()
            })
            .collect();
        let mut index = vec![0; self.rank()];
        for_each_offset::<0>(output, [], |[]| {
            let mut sum = 0usize;
            for (line, &i) in lines.iter().zip(&index) {
                sum = match (sum, line[i]) {
                    (OUTSIDE, _) | (_, OUTSIDE) => OUTSIDE,
                    (PADDING, _) | (_, PADDING) => PADDING,
                    (sum, offset) => sum + offset,
                };
            }
            places.push(sum);
            advance(&mut index, output);
        });
    }
}

/// A bound on the entries of a [`Taps`] table, so that no file can ask for more memory than the machine has.
const MAX_TAPS: usize = 1 << 28;
/// The place of an element in the padding.
pub const PADDING: usize = usize::MAX;
/// The place of an element beyond the padding (of a last window under `ceil_mode`).
pub const OUTSIDE: usize = usize::MAX - 1;

/// Where every element of every window lies in the flattened spatial input.
#[derive(Clone, Debug)]
pub struct Taps {
    /// The number of windows (spatial outputs).
    pub windows: usize,
    /// The number of elements of one window.
    pub size: usize,
    places: Vec<usize>,
}

impl Taps {
    /// The place of kernel element `k` in each window: an offset, [`PADDING`] or [`OUTSIDE`].
    pub fn of(&self, k: usize) -> &[usize] {
        &self.places[k * self.windows..(k + 1) * self.windows]
    }
}

/// The next index in row-major order; wraps around at the end.
fn advance(index: &mut [usize], shape: &[usize]) {
    for (i, &size) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < size {
            return;
        }
        *i = 0;
    }
}

/// Checked sizes out of an attribute; the upper bound keeps all sums and products of them in range.
fn counts(name: &str, list: &[i64], least: i64) -> Result<Vec<usize>> {
    let one = |&v: &i64| {
        ensure!((least..=1 << 24).contains(&v), "attribute `{name}` has the entry {v}, expected at least {least}");
        Ok(v as usize)
    };
    list.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(attrs: Attributes) -> Window {
        Window::read(&attrs.with("kernel_shape", [3i64]).with("strides", [2i64]), None).unwrap()
    }

    #[test]
    fn symbolic_and_numeric_sizes_agree() {
        for auto_pad in ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"] {
            let w = window(Attributes::new().with("auto_pad", auto_pad));
            let symbolic = &w.output_dims(&[Dim::symbol("n")]).unwrap()[0];
            for n in 3..9usize {
                let number = w.output_sizes(&[n]).unwrap()[0];
                assert_eq!(symbolic.eval(&|_| Some(n as i64)), Some(number as i64), "{auto_pad} {n}");
            }
        }
    }

    #[test]
    fn same_padding_puts_the_odd_element_where_it_belongs() {
        let pads = |auto_pad: &str, n| {
            let w = window(Attributes::new().with("auto_pad", auto_pad)).resolved(&[n]).unwrap();
            (w.begin[0], w.end[0])
        };
        assert_eq!(pads("SAME_UPPER", 4), (0, 1));
        assert_eq!(pads("SAME_LOWER", 4), (1, 0));
    }

    #[test]
    fn a_window_that_starts_in_the_end_padding_is_dropped() {
        let w = window(Attributes::new().with("pads", [1i64, 1]).with("ceil_mode", 1i64));
        assert_eq!(w.output_sizes(&[4]).unwrap(), [3]);
        assert_eq!(w.output_sizes(&[2]).unwrap(), [2]);
    }

    #[test]
    fn taps_mark_padding() {
        let w = window(Attributes::new().with("pads", [1i64, 1]));
        let taps = w.taps(&[4], &[2]).unwrap();
        assert_eq!(taps.of(0), [PADDING, 1]);
        assert_eq!(taps.of(2), [1, 3]);
    }

    #[test]
    fn hostile_attributes_are_refused() {
        let attrs = Attributes::new().with("kernel_shape", [i64::MAX]);
        assert!(Window::read(&attrs, None).unwrap_err().to_string().contains("kernel_shape"));
        let attrs = Attributes::new().with("kernel_shape", [3i64]).with("strides", [0i64]);
        assert!(Window::read(&attrs, None).unwrap_err().to_string().contains("expected at least 1"));
    }
}
