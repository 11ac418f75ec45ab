//! Sums and products of elements. Integers wrap around, as they do in every runtime, instead of panicking.

use crate::{DType, Element, bf16, f16};

/// The type in which sums and products of a type are computed, before they are cast back: half precision in single, as kernels
/// do; integers in 64 bits, whose low bits are the narrow result. `dispatch!(…, wide T => …)` knows these types.
pub fn computed_in(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        DType::I8 | DType::I16 | DType::I32 | DType::U8 | DType::U16 | DType::U32 | DType::U64 => DType::I64,
        other => other,
    }
}

/// An element type that can be added and multiplied.
pub trait Arithmetic: Element {
    /// `self + other`
    fn plus(self, other: Self) -> Self;
    /// `self * other`
    fn times(self, other: Self) -> Self;
}

macro_rules! wrapping {
    ($($ty:ty),*) => {$(
        impl Arithmetic for $ty {
            fn plus(self, other: Self) -> Self { self.wrapping_add(other) }
            fn times(self, other: Self) -> Self { self.wrapping_mul(other) }
        }
    )*};
}
macro_rules! floating {
    ($($ty:ty),*) => {$(
        impl Arithmetic for $ty {
            fn plus(self, other: Self) -> Self { self + other }
            fn times(self, other: Self) -> Self { self * other }
        }
    )*};
}
wrapping!(i8, i16, i32, i64, u8, u16, u32, u64);
floating!(f32, f64, f16, bf16);
