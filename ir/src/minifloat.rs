//! Numbers of 8 bits and fewer: the 8-bit and 4-bit floats, and the 4-bit and 2-bit integers. Tensors store them packed;
//! arithmetic on them is that of the numbers they stand for, so all there is to know is how codes are read and made.
//!
//! ```text
//! float8e4m3fn     1 sign, 4 exponent (bias 7),  3 mantissa; no infinity, NaN is S.1111.111
//! float8e4m3fnuz   the same with bias 8; no infinity, no negative zero, NaN is 1.0000.000
//! float8e5m2       1 sign, 5 exponent (bias 15), 2 mantissa; infinity and NaN as IEEE 754 has them
//! float8e5m2fnuz   the same with bias 16; no infinity, no negative zero, NaN is 1.00000.00
//! float8e8m0       8 exponent (bias 127): powers of two, NaN is 255
//! float4e2m1       1 sign, 2 exponent (bias 1),  1 mantissa; no infinity, no NaN
//! ```
//!
//! Sources: Micikevicius et al. 2022 (FP8 formats), OCP Microscaling Formats 1.0, <https://onnx.ai/onnx/technical/float8.html>,
//! <https://onnx.ai/onnx/technical/float4.html>.

use crate::DType;

/// What a number becomes that a format has no place for, and how a power of two is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conversion {
    /// Whether a float out of range becomes the largest finite number of its sign; else infinity or NaN.
    pub saturate: bool,
    /// How `float8e8m0` rounds.
    pub round: RoundMode,
}

/// The direction in which a number is rounded to a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum RoundMode {
    Up,
    Down,
    Nearest,
}

impl Default for Conversion {
    /// As ONNX's Cast without attributes.
    fn default() -> Conversion {
        Conversion { saturate: true, round: RoundMode::Up }
    }
}

/// Where a float format keeps its special values.
#[derive(Clone, Copy, PartialEq)]
enum Specials {
    /// The largest exponent is infinity and NaN.
    Ieee,
    /// The largest exponent with a full mantissa is NaN.
    OneNan,
    /// What would be negative zero is NaN.
    NoNegativeZero,
    /// There are none.
    Absent,
}

/// A float format with a sign.
struct Format {
    exponent: u32,
    mantissa: u32,
    bias: i32,
    specials: Specials,
}

fn format(dtype: DType) -> Option<Format> {
    let (exponent, mantissa, bias, specials) = match dtype {
        DType::F8E4M3FN => (4, 3, 7, Specials::OneNan),
        DType::F8E4M3FNUZ => (4, 3, 8, Specials::NoNegativeZero),
        DType::F8E5M2 => (5, 2, 15, Specials::Ieee),
        DType::F8E5M2FNUZ => (5, 2, 16, Specials::NoNegativeZero),
        DType::F4E2M1 => (2, 1, 1, Specials::Absent),
        _ => return None,
    };
    Some(Format { exponent, mantissa, bias, specials })
}

impl Format {
    fn sign_bit(&self) -> u8 {
        1 << (self.exponent + self.mantissa)
    }
    /// The magnitude that a code without its sign stands for, special values aside.
    fn magnitude(&self, code: u8) -> f64 {
        let steps = f64::from(code & ((1 << self.mantissa) - 1));
        let exponent = i32::from(code >> self.mantissa);
        let whole = f64::from(1u32 << self.mantissa);
        let mantissa = if exponent == 0 { steps } else { whole + steps };
        mantissa * 2f64.powi(exponent.max(1) - self.bias - self.mantissa as i32)
    }
    /// The code of the largest finite number.
    fn largest(&self) -> u8 {
        let all = self.sign_bit() - 1;
        match self.specials {
            Specials::Ieee => all - (1 << self.mantissa),
            Specials::OneNan => all - 1,
            Specials::NoNegativeZero | Specials::Absent => all,
        }
    }
    fn nan(&self) -> u8 {
        match self.specials {
            Specials::Ieee => self.sign_bit() - 2,
            Specials::OneNan => self.sign_bit() - 1,
            Specials::NoNegativeZero | Specials::Absent => self.sign_bit(),
        }
    }
    fn decode(&self, code: u8) -> f32 {
        let (sign, rest) = (code & self.sign_bit(), code & (self.sign_bit() - 1));
        let negative_zero = sign != 0 && rest == 0;
        if (self.specials == Specials::NoNegativeZero && negative_zero)
            || (self.specials != Specials::NoNegativeZero && rest > self.largest())
        {
            let infinite = self.specials == Specials::Ieee && rest == self.largest() + 1;
            let value = if infinite { f32::INFINITY } else { f32::NAN };
            return if sign != 0 { -value } else { value };
        }
        let value = self.magnitude(rest) as f32;
        if sign != 0 { -value } else { value }
    }
    /// Rounds to nearest, ties to even.
    fn encode(&self, x: f64, saturate: bool) -> u8 {
        if x.is_nan() {
            return self.nan();
        }
        let sign = if x.is_sign_negative() { self.sign_bit() } else { 0 };
        let least = 1 - self.bias;
        let exponent = if x.is_infinite() { i32::MAX } else { exponent_of(x).max(least) };
        let top = (i32::from(self.largest() >> self.mantissa) - self.bias).max(least);
        if exponent > top {
            return self.beyond(sign, saturate);
        }
        // The number in units of the last place; a full unit more carries into the exponent by itself.
        let units = (x.abs() * 2f64.powi(self.mantissa as i32 - exponent)).round_ties_even() as u32;
        let code = ((exponent - least) as u32) * (1 << self.mantissa) + units;
        if code > u32::from(self.largest()) {
            return self.beyond(sign, saturate);
        }
        let zero_sign = if code == 0 && self.specials == Specials::NoNegativeZero { 0 } else { sign };
        zero_sign | code as u8
    }
    /// The code of a number out of range.
    fn beyond(&self, sign: u8, saturate: bool) -> u8 {
        match self.specials {
            Specials::Ieee if !saturate => sign | (self.largest() + 1),
            Specials::OneNan if !saturate => sign | self.nan(),
            Specials::NoNegativeZero if !saturate => self.nan(),
            _ => sign | self.largest(),
        }
    }
}

/// `⌊log₂ |x|⌋` of a finite number; very small for 0.
fn exponent_of(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// The number that a code of a type of at most 8 bits stands for; all of them are `f32` numbers.
pub fn decode(dtype: DType, code: u8) -> f32 {
    match dtype {
        DType::F8E8M0 if code == 255 => f32::NAN,
        DType::F8E8M0 => 2f64.powi(i32::from(code) - 127) as f32,
        DType::I4 => f32::from(((code << 4) as i8) >> 4),
        DType::I2 => f32::from(((code << 6) as i8) >> 6),
        DType::I8 => f32::from(code as i8),
        _ => format(dtype).map_or(f32::from(code), |format| format.decode(code)),
    }
}

/// The code of a number. Floats are rounded to nearest, ties to even; integers lose their fraction and their high bits
/// (what is no number, or infinite, becomes 0).
pub fn encode(dtype: DType, x: f64, how: Conversion) -> u8 {
    match format(dtype) {
        Some(format) => format.encode(x, how.saturate),
        None if dtype == DType::F8E8M0 => power_of_two(x as f32, how),
        None if !x.is_finite() => 0,
        None => (x as i128 as u8) & (((1u32 << dtype.bits().min(8)) - 1) as u8),
    }
}

/// The sign is lost; 0 becomes the smallest power.
fn power_of_two(x: f32, how: Conversion) -> u8 {
    let (exponent, fraction) = ((x.to_bits() >> 23) & 0xff, x.to_bits() & 0x7f_ffff);
    if exponent == 0xff {
        return 0xff;
    }
    let half = 0x40_0000;
    let up = match how.round {
        RoundMode::Down => false,
        RoundMode::Up => fraction > 0,
        RoundMode::Nearest => fraction > half || (fraction == half && exponent > 0),
    };
    let kept = how.saturate && exponent == 0xfe;
    (exponent + u32::from(up && !kept)) as u8
}

/// One byte per element out of packed ones, the first element in the low bits.
pub fn unpack(bytes: &[u8], bits: usize, count: usize) -> Vec<u8> {
    let per_byte = 8 / bits;
    let mask = ((1u32 << bits) - 1) as u8;
    (0..count).map(|i| (bytes[i / per_byte] >> (bits * (i % per_byte))) & mask).collect()
}

/// The inverse of [`unpack`].
pub fn pack(cells: &[u8], bits: usize) -> Vec<u8> {
    let pack_one = |chunk: &[u8]| chunk.iter().enumerate().fold(0, |byte, (i, cell)| byte | cell << (bits * i));
    cells.chunks(8 / bits).map(pack_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [DType; 6] =
        [DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ, DType::F8E8M0, DType::F4E2M1];

    #[test]
    fn numbers_come_back_as_their_codes() {
        for dtype in FORMATS.into_iter().chain([DType::I4, DType::U4, DType::I2, DType::U2]) {
            for code in 0..=((1u32 << dtype.bits()) - 1) as u8 {
                let x = decode(dtype, code);
                let infinite = Conversion { saturate: false, round: RoundMode::Nearest };
                if !x.is_nan() {
                    assert_eq!(encode(dtype, f64::from(x), infinite), code, "{dtype} {code:#x} is {x}");
                }
            }
        }
    }

    #[test]
    fn the_largest_numbers_are_those_of_the_formats() {
        let largest = |dtype: DType| {
            (0..=((1u32 << dtype.bits()) - 1) as u8)
                .map(|c| decode(dtype, c))
                .filter(|x| x.is_finite())
                .fold(0.0, f32::max)
        };
        let found: Vec<f32> = FORMATS.into_iter().map(largest).collect();
        assert_eq!(found, [448.0, 240.0, 57344.0, 57344.0, 2f32.powi(127), 6.0]);
    }

    #[test]
    fn ties_go_to_even_and_overflow_saturates_or_not() {
        let free = Conversion { saturate: false, ..Conversion::default() };
        let code = |dtype, x, how| encode(dtype, x, how);
        assert_eq!(code(DType::F8E4M3FN, 464.0, free), 0x7e);
        assert_eq!(code(DType::F8E4M3FN, 465.0, free), 0x7f);
        assert_eq!(code(DType::F8E4M3FN, -465.0, Conversion::default()), 0xfe);
        assert_eq!(code(DType::F8E5M2, 61440.0, free), 0x7c);
        assert_eq!(code(DType::F8E5M2FNUZ, 61440.0, free), 0x80);
        assert_eq!(code(DType::F8E5M2FNUZ, -1e-9, free), 0);
        assert_eq!(code(DType::F4E2M1, f64::INFINITY, free), 7);
        assert_eq!([0.25, 0.75, 1.25, 5.0].map(|x| code(DType::F4E2M1, x, free)), [0, 2, 2, 6]);
    }

    #[test]
    fn powers_of_two_are_found_in_three_ways() {
        let code = |x, round| encode(DType::F8E8M0, x, Conversion { saturate: true, round });
        assert_eq!([RoundMode::Up, RoundMode::Down, RoundMode::Nearest].map(|r| code(1.1, r)), [128, 127, 127]);
        assert_eq!(code(0.0, RoundMode::Up), 0);
        assert_eq!(code(f64::from(f32::MAX), RoundMode::Up), 254);
    }

    #[test]
    fn integers_wrap() {
        let code = |dtype, x| encode(dtype, x, Conversion::default());
        assert_eq!([-9.0, 8.0, 15.0, 1.9].map(|x| code(DType::I4, x)), [7, 8, 15, 1]);
        assert_eq!(decode(DType::I4, code(DType::I4, -8.0)), -8.0);
        assert_eq!(code(DType::U2, f64::NAN), 0);
    }
}
