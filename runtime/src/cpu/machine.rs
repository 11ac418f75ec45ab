//! What the machine can do at most: arithmetic by the micro-kernels, and memory traffic; measured, for the share of the
//! roofline in a profile.

use super::gemm;
use super::micro::Finish;
use super::skinny::Shape;
use sartor_ir::Result;
use std::time::Instant;

/// Limits of some threads together.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Peak {
    /// Floating-point operations in a nanosecond.
    pub gflops: f64,
    /// Bytes read and written in a nanosecond, from memory that fits no cache.
    pub gbytes: f64,
}

/// The repetitions, of which the best counts.
const TRIES: usize = 5;

/// Measures; takes a fraction of a second. Without micro-kernels the arithmetic is that of plain loops.
pub fn measure(threads: usize) -> Result<Peak> {
    super::with_threads(threads, || Peak { gflops: arithmetic(threads), gbytes: traffic(threads) })
}

/// A product whose operands stay in the second-level cache, on every thread.
fn arithmetic(threads: usize) -> f64 {
    let s = Shape { m: 96, n: 64, k: gemm::DEPTH };
    let flops = (2 * s.m * s.n * s.k) as f64;
    const ROUNDS: usize = 200;
    best(threads, flops * ROUNDS as f64, |_| {
        let (a, b) = (vec![0.5f32; s.m * s.k], vec![0.5f32; gemm::packed_len(s.k, s.n)]);
        let mut out = vec![0f32; s.m * s.n];
        for _ in 0..ROUNDS {
            if gemm::panel() > 0 {
                let target = (out.as_mut_ptr(), s.n, 1);
                // SAFETY: the matrices have the extents of the shape.
                unsafe { gemm::multiply(s, (a.as_ptr(), s.k, 1), (b.as_ptr(), s.n, 0), target, &Finish::PLAIN) };
            } else {
                plain(s, &a, &b, &mut out);
            }
            std::hint::black_box(&mut out);
        }
    })
}

fn plain(s: Shape, a: &[f32], b: &[f32], out: &mut [f32]) {
    for (row, line) in a.chunks(s.k).zip(out.chunks_mut(s.n)) {
        line.fill(0.0);
        for (&x, right) in row.iter().zip(b.chunks(s.n)) {
            line.iter_mut().zip(right).for_each(|(o, &y)| *o += x * y);
        }
    }
}

/// A scaled copy of 64 MiB on every thread.
fn traffic(threads: usize) -> f64 {
    const ELEMENTS: usize = 8 << 20;
    let mut memory: Vec<(Vec<f32>, Vec<f32>)> =
        (0..threads).map(|_| (vec![1.0; ELEMENTS], vec![0.0; ELEMENTS])).collect();
    let places: Vec<(usize, usize)> =
        memory.iter_mut().map(|(from, to)| (from.as_ptr() as usize, to.as_mut_ptr() as usize)).collect();
    best(threads, (2 * 4 * ELEMENTS) as f64, |thread| {
        let (from, to) = places[thread];
        // SAFETY: every thread has a pair of vectors of its own, which outlive the measurement.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from as *const f32, ELEMENTS),
                std::slice::from_raw_parts_mut(to as *mut f32, ELEMENTS),
            )
        };
        to.iter_mut().zip(from).for_each(|(o, &x)| *o = 1.5 * x);
        std::hint::black_box(to);
    })
}

/// Work in a nanosecond, all threads together, in the best of some tries.
fn best(threads: usize, work: f64, run: impl Fn(usize) + Sync + Send) -> f64 {
    let seconds = |_| {
        let start = Instant::now();
        super::each(threads, &run);
        start.elapsed().as_secs_f64()
    };
    let least = (0..TRIES).map(seconds).fold(f64::INFINITY, f64::min);
    work * threads as f64 / least.max(1e-9) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_are_found() {
        let peak = measure(1).unwrap();
        assert!(peak.gflops > 0.0 && peak.gflops.is_finite() && peak.gbytes > 0.0 && peak.gbytes.is_finite());
    }
}
