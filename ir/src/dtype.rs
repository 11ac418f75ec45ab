//! Element types: what a tensor's elements are, how wide they are, and which Rust type views them.
//!
//! The codes are those of `onnx.TensorProto.DataType`. Types narrower than a byte, and the 8-bit floats, are
//! stored packed; they are carried through, and converted to and from the others ([`crate::minifloat`]), but only
//! [`Element`] types can be viewed as slices.

use half::{bf16, f16};
use std::borrow::Cow;
use std::fmt;

/// The element type of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    U8,
    I8,
    U16,
    I16,
    I32,
    I64,
    String,
    Bool,
    F16,
    F64,
    U32,
    U64,
    Complex64,
    Complex128,
    BF16,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    U4,
    I4,
    F4E2M1,
    F8E8M0,
    U2,
    I2,
}

/// One row per type: the type, its ONNX code, its width in bits (0 for strings), its name in the text form.
const TABLE: &[(DType, i32, u32, &str)] = &[
    (DType::F32, 1, 32, "float"),
    (DType::U8, 2, 8, "uint8"),
    (DType::I8, 3, 8, "int8"),
    (DType::U16, 4, 16, "uint16"),
    (DType::I16, 5, 16, "int16"),
    (DType::I32, 6, 32, "int32"),
    (DType::I64, 7, 64, "int64"),
    (DType::String, 8, 0, "string"),
    (DType::Bool, 9, 8, "bool"),
    (DType::F16, 10, 16, "float16"),
    (DType::F64, 11, 64, "double"),
    (DType::U32, 12, 32, "uint32"),
    (DType::U64, 13, 64, "uint64"),
    (DType::Complex64, 14, 64, "complex64"),
    (DType::Complex128, 15, 128, "complex128"),
    (DType::BF16, 16, 16, "bfloat16"),
    (DType::F8E4M3FN, 17, 8, "float8e4m3fn"),
    (DType::F8E4M3FNUZ, 18, 8, "float8e4m3fnuz"),
    (DType::F8E5M2, 19, 8, "float8e5m2"),
    (DType::F8E5M2FNUZ, 20, 8, "float8e5m2fnuz"),
    (DType::U4, 21, 4, "uint4"),
    (DType::I4, 22, 4, "int4"),
    (DType::F4E2M1, 23, 4, "float4e2m1"),
    (DType::F8E8M0, 24, 8, "float8e8m0"),
    (DType::U2, 25, 2, "uint2"),
    (DType::I2, 26, 2, "int2"),
];

impl DType {
    fn row(self) -> &'static (DType, i32, u32, &'static str) {
        &TABLE[self as usize]
    }
    /// The code of `onnx.TensorProto.DataType`.
    pub fn onnx_code(self) -> i32 {
        self.row().1
    }
    /// The type behind a code of `onnx.TensorProto.DataType`.
    pub fn from_onnx_code(code: i32) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == code).map(|row| row.0)
    }
    /// Width of one element in bits; 0 for strings.
    pub fn bits(self) -> usize {
        self.row().2 as usize
    }
    /// Bytes that `count` elements take when stored (packed below 8 bits); `None` on overflow.
    pub fn byte_len(self, count: usize) -> Option<usize> {
        Some(count.checked_mul(self.bits())?.div_ceil(8))
    }
    /// The name in ONNX's text form, such as `float` or `int64`.
    pub fn name(self) -> &'static str {
        self.row().3
    }
    /// The type with this name in ONNX's text form.
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.3 == name).map(|row| row.0)
    }
    /// Whether arithmetic on it is floating point (16 bits or wider): the types that can carry a gradient.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }
    /// Whether it is a signed or unsigned integer of at least 8 bits.
    pub fn is_int(self) -> bool {
        self.is_signed_int() || matches!(self, DType::U8 | DType::U16 | DType::U32 | DType::U64)
    }
    /// Whether it is a type that is only stored and converted: narrower than a byte, or an 8-bit float.
    pub fn is_narrow(self) -> bool {
        self.bits() > 0 && self.bits() < 8 || (self as usize >= DType::F8E4M3FN as usize && self.bits() == 8)
    }
    /// Whether it is a signed integer of at least 8 bits.
    pub fn is_signed_int(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that views the elements of one [`DType`].
pub trait Element: Copy + Send + Sync + PartialEq + PartialOrd + fmt::Debug + Default + 'static {
    /// The element type it views.
    const DTYPE: DType;
    /// The bytes of a slice.
    fn bytes_of(slice: &[Self]) -> &[u8];
    /// The bytes as elements: borrowed when they are aligned, copied otherwise.
    /// `bytes.len()` must be a multiple of the element's size.
    fn from_bytes(bytes: &[u8]) -> Cow<'_, [Self]>;
}

macro_rules! element {
    ($($ty:ty => $dtype:ident),*) => {$(
        impl Element for $ty {
            const DTYPE: DType = DType::$dtype;
            fn bytes_of(slice: &[Self]) -> &[u8] {
                bytemuck::cast_slice(slice)
            }
            fn from_bytes(bytes: &[u8]) -> Cow<'_, [Self]> {
                match bytemuck::try_cast_slice(bytes) {
                    Ok(slice) => Cow::Borrowed(slice),
                    Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
                }
            }
        }
    )*};
}
element!(f32 => F32, f64 => F64, f16 => F16, bf16 => BF16, i8 => I8, i16 => I16, i32 => I32, i64 => I64,
         u8 => U8, u16 => U16, u32 => U32, u64 => U64);

impl Element for bool {
    const DTYPE: DType = DType::Bool;
    fn bytes_of(slice: &[Self]) -> &[u8] {
        bytemuck::cast_slice(slice)
    }
    /// Any byte but 0 is true, so a file cannot make an invalid `bool`.
    fn from_bytes(bytes: &[u8]) -> Cow<'_, [Self]> {
        Cow::Owned(bytes.iter().map(|&b| b != 0).collect())
    }
}

/// Runs `$body` with the type alias `$T` bound to the Rust type of `$dtype`, for the listed groups of types;
/// other types run `$else`.
///
/// ```
/// # use sartor_ir::{DType, dispatch};
/// let width = dispatch!(DType::F64, float T => std::mem::size_of::<T>(), else 0);
/// assert_eq!(width, 8);
/// ```
#[macro_export]
macro_rules! dispatch {
    ($dtype:expr, float $T:ident => $body:expr, else $else:expr) => {
        match $dtype {
            $crate::DType::F32 => { type $T = f32; $body }
            $crate::DType::F64 => { type $T = f64; $body }
            $crate::DType::F16 => { type $T = $crate::f16; $body }
            $crate::DType::BF16 => { type $T = $crate::bf16; $body }
            _ => $else,
        }
    };
    ($dtype:expr, int $T:ident => $body:expr, else $else:expr) => {
        match $dtype {
            $crate::DType::I8 => { type $T = i8; $body }
            $crate::DType::I16 => { type $T = i16; $body }
            $crate::DType::I32 => { type $T = i32; $body }
            $crate::DType::I64 => { type $T = i64; $body }
            $crate::DType::U8 => { type $T = u8; $body }
            $crate::DType::U16 => { type $T = u16; $body }
            $crate::DType::U32 => { type $T = u32; $body }
            $crate::DType::U64 => { type $T = u64; $body }
            _ => $else,
        }
    };
    ($dtype:expr, wide $T:ident => $body:expr, else $else:expr) => {
        match $dtype {
            $crate::DType::F32 => { type $T = f32; $body }
            $crate::DType::F64 => { type $T = f64; $body }
            $crate::DType::I64 => { type $T = i64; $body }
            _ => $else,
        }
    };
    ($dtype:expr, number $T:ident => $body:expr, else $else:expr) => {
        $crate::dispatch!($dtype, int $T => $body, else $crate::dispatch!($dtype, float $T => $body, else $else))
    };
    ($dtype:expr, any $T:ident => $body:expr, else $else:expr) => {
        match $dtype {
            $crate::DType::Bool => { type $T = bool; $body }
            other => $crate::dispatch!(other, number $T => $body, else $else),
        }
    };
}
