//! Sums and products of elements. Integers wrap around, as they do in every runtime, instead of panicking.

use crate::{Element, bf16, f16};

/// An element type that can be added and multiplied.
pub trait Arithmetic: Element {
    /// The neutral element of [`times`](Arithmetic::times).
    const ONE: Self;
    /// `self + other`
    fn plus(self, other: Self) -> Self;
    /// `self - other`
    fn minus(self, other: Self) -> Self;
    /// `self * other`
    fn times(self, other: Self) -> Self;
}

macro_rules! wrapping {
    ($($ty:ty),*) => {$(
        impl Arithmetic for $ty {
            const ONE: Self = 1;
            fn plus(self, other: Self) -> Self { self.wrapping_add(other) }
            fn minus(self, other: Self) -> Self { self.wrapping_sub(other) }
            fn times(self, other: Self) -> Self { self.wrapping_mul(other) }
        }
    )*};
}
macro_rules! floating {
    ($($ty:ty => $one:expr),*) => {$(
        impl Arithmetic for $ty {
            const ONE: Self = $one;
            fn plus(self, other: Self) -> Self { self + other }
            fn minus(self, other: Self) -> Self { self - other }
            fn times(self, other: Self) -> Self { self * other }
        }
    )*};
}
wrapping!(i8, i16, i32, i64, u8, u16, u32, u64);
floating!(f32 => 1.0, f64 => 1.0, f16 => f16::ONE, bf16 => bf16::ONE);
