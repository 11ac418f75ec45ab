//! Sums and products of elements. Integers wrap around, as they do in every runtime, instead of panicking.

use crate::{Element, bf16, f16};

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
