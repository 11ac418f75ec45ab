//! Counter-based random numbers: element `i` of a stream is a pure function of (seed, step, stream, i). So a run is
//! reproducible, resumable at any step, and independent of the number of threads.

/// Names one stream of random numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stream {
    key: u64,
}

/// The finaliser of splitmix64: a bijection that mixes all bits.
#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Stream {
    /// The stream of a run's seed, a step and a name (a node, a parameter).
    pub fn new(seed: u64, step: u64, name: &str) -> Stream {
        let mut key = mix(seed.wrapping_add(GAMMA));
        key = mix(key ^ step.wrapping_add(GAMMA.rotate_left(17)));
        for byte in name.bytes() {
            key = mix(key ^ u64::from(byte)).wrapping_add(GAMMA);
        }
        Stream { key }
    }
    /// 64 random bits at a place.
    #[inline(always)]
    pub fn bits(self, index: u64) -> u64 {
        mix(self.key ^ mix(index.wrapping_mul(GAMMA).wrapping_add(GAMMA)))
    }
    /// A number in [0, 1) with 53 bits.
    pub fn unit(self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1u64 << 53) as f64
    }
    /// A number in [low, high).
    pub fn uniform(self, index: u64, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit(index)
    }
    /// A number of the standard normal distribution (Box and Muller).
    pub fn normal(self, index: u64) -> f64 {
        let (u, v) = (self.unit(2 * index), self.unit(2 * index + 1));
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
    /// An integer in [0, bound). `bound` must not be 0. The bias is below 2⁻³² for bounds below 2³².
    pub fn below(self, index: u64, bound: u64) -> u64 {
        ((u128::from(self.bits(index)) * u128::from(bound)) >> 64) as u64
    }
    /// The numbers 0..n in random order (Fisher and Yates).
    pub fn permutation(self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64, i as u64 + 1) as usize);
        }
        order
    }
}

/// A stream read from front to back, for tests and samples.
#[derive(Clone, Debug)]
pub struct Draw {
    stream: Stream,
    next: u64,
}

impl Draw {
    /// Starts at the beginning of the stream of a seed and a name.
    pub fn new(seed: u64, name: &str) -> Draw {
        Draw { stream: Stream::new(seed, 0, name), next: 0 }
    }
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }
    /// An integer in [low, high].
    pub fn int(&mut self, low: i64, high: i64) -> i64 {
        low + self.stream.below(self.tick(), (high - low + 1) as u64) as i64
    }
    /// A number in [low, high).
    pub fn float(&mut self, low: f64, high: f64) -> f64 {
        self.stream.uniform(self.tick(), low, high)
    }
    /// True with this probability.
    pub fn chance(&mut self, p: f64) -> bool {
        self.float(0.0, 1.0) < p
    }
    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.int(0, from.len() as i64 - 1) as usize]
    }
    /// An `f64` tensor with elements in [low, high).
    pub fn tensor(&mut self, shape: &[usize], low: f64, high: f64) -> crate::Tensor {
        let count = shape.iter().product();
        crate::Tensor::from_vec(shape.to_vec(), (0..count).map(|_| self.float(low, high)).collect::<Vec<f64>>())
    }
    /// An `f64` tensor of different elements in random order, `gap` apart, centred so that none is 0: for operators
    /// with kinks at 0 or at ties.
    pub fn distinct(&mut self, shape: &[usize], gap: f64) -> crate::Tensor {
        let count: usize = shape.iter().product();
        let middle = count as f64 / 2.0 - 0.25;
        let mut values: Vec<f64> = (0..count).map(|i| (i as f64 - middle) * gap).collect();
        for i in (1..count).rev() {
            values.swap(i, self.int(0, i as i64) as usize);
        }
        crate::Tensor::from_vec(shape.to_vec(), values)
    }
    /// An `int64` tensor with elements in [low, high].
    pub fn ints(&mut self, shape: &[usize], low: i64, high: i64) -> crate::Tensor {
        let count = shape.iter().product();
        crate::Tensor::from_vec(shape.to_vec(), (0..count).map(|_| self.int(low, high)).collect::<Vec<i64>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_uniform_and_distinct() {
        let stream = Stream::new(1, 2, "x");
        let mean: f64 = (0..10_000).map(|i| stream.unit(i)).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let var: f64 = (0..10_000).map(|i| stream.normal(i).powi(2)).sum::<f64>() / 1e4;
        assert!((var - 1.0).abs() < 0.06, "{var}");
        assert_ne!(stream.bits(0), Stream::new(1, 3, "x").bits(0));
        assert_ne!(stream.bits(0), Stream::new(1, 2, "y").bits(0));
        let mut order = stream.permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
