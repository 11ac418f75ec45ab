//! Functions of `f32` written without branches so that loops over them vectorise, and the run-time choice of an
//! instruction set.
//!
//! A kernel is an `#[inline(always)]` function with a constant parameter `FMA`; [`multiversion!`](crate::multiversion)
//! compiles it for AVX-512, AVX2 with FMA, and the baseline. Results may differ between instruction sets (fused
//! multiply-adds), never between thread counts. Polynomials are those of Cephes (`expf`, `logf`, `tanhf`) and
//! of N. Juffa (`erff`); errors stay within 3 units in the last place (`tests` below); NaN, infinities and
//! denormal results are kept.

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// What the target guarantees.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, VL, DQ and BW.
    Avx512,
}

static FORCED: AtomicU8 = AtomicU8::new(0);

/// Lets kernels use at most this instruction set from now on (for tests and comparisons). It never enables
/// what the machine lacks.
pub fn limit(level: Level) {
    FORCED.store(level as u8 + 1, Ordering::Relaxed);
}

/// The instruction set that kernels use.
#[inline]
pub fn level() -> Level {
    let limit = match FORCED.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        _ => Level::Avx512,
    };
    detected().min(limit)
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Level {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw");
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    match (avx512, avx2) {
        (true, _) => Level::Avx512,
        (_, true) => Level::Avx2,
        _ => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Level {
    Level::Portable
}

/// `multiversion!(fn name(arg: Type, …) = inner)` makes `name` run `inner::<FMA>` compiled for the best instruction
/// set of the machine.
#[macro_export]
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $inner:ident) => {
        $(#[$doc])*
        $vis unsafe fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                unsafe fn wide($($arg: $ty),*) {
                    // SAFETY: the caller of the outer function keeps the contract of `inner`.
                    unsafe { $inner::<true>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                unsafe fn medium($($arg: $ty),*) {
                    // SAFETY: as above.
                    unsafe { $inner::<true>($($arg),*) }
                }
                match $crate::cpu::simd::level() {
                    // SAFETY: the machine has these instructions, and the caller keeps the contract.
                    $crate::cpu::simd::Level::Avx512 => return unsafe { wide($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::simd::Level::Avx2 => return unsafe { medium($($arg),*) },
                    $crate::cpu::simd::Level::Portable => {}
                }
            }
            // SAFETY: the caller keeps the contract.
            unsafe { $inner::<false>($($arg),*) }
        }
    };
}

/// `a·b + c`, fused where that is one instruction.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// eˣ
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer
    let low = if x > -104.0 { x } else { -104.0 };
    let clamped = if low < 89.0 { low } else { 89.0 };
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fma::<FMA>(n, -0.693_359_4, clamped);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = fma::<FMA>(1.987_569_1e-4, r, 1.398_199_9e-3);
    p = fma::<FMA>(p, r, 8.333_452e-3);
    p = fma::<FMA>(p, r, 4.166_579_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_5e-1);
    p = fma::<FMA>(p, r, 0.5);
    let y = fma::<FMA>(p, r * r, r) + 1.0;
    let n = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = n >> 1;
    let y = y * power_of_two(half) * power_of_two(n - half);
    if x.is_nan() { x } else { y }
}

/// ln x
#[inline(always)]
pub fn log<const FMA: bool>(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x };
    let bits = scaled.to_bits() as i32;
    // The mantissa in [√½, √2).
    let e = (bits - 0x3f35_04f3) >> 23;
    let m = f32::from_bits((bits - (e << 23)) as u32);
    let exponent = e as f32 - if tiny { 23.0 } else { 0.0 };
    let r = m - 1.0;
    let z = r * r;
    let mut p = fma::<FMA>(7.037_683_6e-2, r, -1.151_461e-1);
    p = fma::<FMA>(p, r, 1.167_699_9e-1);
    p = fma::<FMA>(p, r, -1.242_014_1e-1);
    p = fma::<FMA>(p, r, 1.424_932_3e-1);
    p = fma::<FMA>(p, r, -1.666_805_8e-1);
    p = fma::<FMA>(p, r, 2.000_071_5e-1);
    p = fma::<FMA>(p, r, -2.499_999_4e-1);
    p = fma::<FMA>(p, r, 3.333_333e-1);
    let mut y = p * r * z;
    y = fma::<FMA>(exponent, -2.121_944_4e-4, y);
    y = fma::<FMA>(z, -0.5, y);
    let result = fma::<FMA>(exponent, 0.693_359_4, r + y);
    let result = if x == f32::INFINITY { x } else { result };
    let result = if x == 0.0 { f32::NEG_INFINITY } else { result };
    if x < 0.0 || x.is_nan() { f32::NAN } else { result }
}

/// The error function.
#[inline(always)]
pub fn erf<const FMA: bool>(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let mut u = fma::<FMA>(-1.728_534_7e-5, t, 3.831_972e-4);
    let v = fma::<FMA>(-3.883_964_4e-3, t, 2.425_462_2e-2);
    u = fma::<FMA>(u, s, v);
    u = fma::<FMA>(u, t, -1.067_778_8e-1);
    u = fma::<FMA>(u, t, -6.348_468_7e-1);
    u = fma::<FMA>(u, t, -1.287_175_1e-1);
    u = fma::<FMA>(u, t, -t);
    let far = (1.0 - exp::<FMA>(u)).copysign(x);
    let far = if t > 4.0 { 1f32.copysign(x) } else { far };
    let mut p = fma::<FMA>(-5.967_617e-4, s, 4.991_194_2e-3);
    p = fma::<FMA>(p, s, -2.676_813_5e-2);
    p = fma::<FMA>(p, s, 1.128_199_3e-1);
    p = fma::<FMA>(p, s, -3.761_253_4e-1);
    p = fma::<FMA>(p, s, 1.283_791_7e-1);
    let near = fma::<FMA>(p, x, x);
    if t > 0.927_734_4 { far } else { near }
}

/// The hyperbolic tangent.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    let t = x.abs();
    let far = (1.0 - 2.0 / (exp::<FMA>(2.0 * t) + 1.0)).copysign(x);
    let z = x * x;
    let mut p = fma::<FMA>(-5.704_988_7e-3, z, 2.063_909e-2);
    p = fma::<FMA>(p, z, -5.373_971_6e-2);
    p = fma::<FMA>(p, z, 1.333_144_2e-1);
    p = fma::<FMA>(p, z, -3.333_328e-1);
    let near = fma::<FMA>(p * z, x, x);
    let y = if t > 0.625 { far } else { near };
    if x.is_nan() { x } else { y }
}

/// `1 / (1 + e⁻ˣ)`
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The larger; NaN if one is.
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// The smaller; NaN if one is.
#[inline(always)]
pub fn smaller(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f64, to: f64) -> f64 {
        let ulp = |y: f64| {
            let y = (y.abs() as f32).max(f32::MIN_POSITIVE);
            f64::from(f32::from_bits(y.to_bits() + 1)) - f64::from(y)
        };
        let at = |i: u32| (from + (to - from) * f64::from(i) / 200_000.0) as f32;
        (0..200_000).map(at).fold(0.0, |w: f64, x| {
            let y = exact(f64::from(x));
            w.max((f64::from(f(x)) - y).abs() / ulp(y))
        })
    }

    /// Series below 2, continued fraction above: both to 1e-14.
    fn exact_erf(x: f64) -> f64 {
        if x.abs() < 2.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..80 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum * 2.0 / std::f64::consts::PI.sqrt();
        }
        let t = x.abs();
        let mut fraction = 0.0;
        for n in (1..200).rev() {
            fraction = f64::from(n) / 2.0 / (t + fraction);
        }
        let tail = (-t * t).exp() / (t + fraction) / std::f64::consts::PI.sqrt();
        (1.0 - tail).copysign(x)
    }

    fn check<const FMA: bool>() {
        assert!(worst(exp::<FMA>, f64::exp, -87.0, 88.7) < 3.0);
        assert!(worst(log::<FMA>, f64::ln, 1e-6, 30.0) < 3.0);
        assert!(worst(erf::<FMA>, exact_erf, -6.0, 6.0) < 3.0);
        assert!(worst(tanh::<FMA>, f64::tanh, -12.0, 12.0) < 3.0);
        assert!(worst(sigmoid::<FMA>, |x| 1.0 / (1.0 + (-x).exp()), -20.0, 20.0) < 4.0);
    }

    #[test]
    fn errors_are_a_few_units_in_the_last_place() {
        check::<true>();
        check::<false>();
    }

    #[test]
    fn special_values_are_kept() {
        assert_eq!(exp::<false>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<false>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<false>(-100.0) > 0.0, "denormal results");
        assert!(exp::<false>(f32::NAN).is_nan() && log::<false>(-1.0).is_nan() && tanh::<false>(f32::NAN).is_nan());
        assert!(erf::<false>(f32::NAN).is_nan() && log::<false>(f32::NAN).is_nan());
        assert_eq!(log::<false>(0.0), f32::NEG_INFINITY);
        assert_eq!(log::<false>(f32::INFINITY), f32::INFINITY);
        assert!((log::<false>(1e-41) - (1e-41f64 as f32).ln()).abs() < 1e-4);
        assert_eq!((erf::<false>(f32::INFINITY), tanh::<false>(f32::NEG_INFINITY)), (1.0, -1.0));
        assert_eq!((sigmoid::<false>(-200.0), sigmoid::<false>(200.0)), (0.0, 1.0));
    }
}
