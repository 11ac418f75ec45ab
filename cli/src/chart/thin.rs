//! Curves of many steps, made short enough to draw: per bucket of steps the least and the greatest value, or the mean.

use std::ops::Range;

/// A step and a value.
pub type Point = (f64, f64);

/// What is drawn of a curve: its parts between gaps (values that are not finite), each bucket of steps with its least and
/// greatest value in the order in which they came. Short curves stay as they are.
pub fn extremes(points: &[Point], buckets: usize) -> Vec<Vec<Point>> {
    let mut parts = vec![Vec::new()];
    for bucket in split(points, 2 * buckets, buckets) {
        let finite = points[bucket].iter().filter(|p| p.1.is_finite());
        let least = finite.clone().min_by(|a, b| a.1.total_cmp(&b.1));
        let greatest = finite.max_by(|a, b| a.1.total_cmp(&b.1));
        let (Some(&least), Some(&greatest)) = (least, greatest) else {
            parts.push(Vec::new());
            continue;
        };
        let (first, second) = if least.0 <= greatest.0 { (least, greatest) } else { (greatest, least) };
        let Some(part) = parts.last_mut() else { continue };
        part.push(first);
        if second != first {
            part.push(second);
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// The curve without its noise: means of at most 1500 buckets, and over them the mean of a window; where no value is finite,
/// none. The second result is the window's width in points of the curve.
pub fn smooth(points: &[Point]) -> (Vec<Point>, usize) {
    let buckets: Vec<Range<usize>> = split(points, 1500, 1500).collect();
    let per_bucket = points.len().div_ceil(buckets.len().max(1));
    let radius = (buckets.len() / 60).max(1);
    let means: Vec<Point> = buckets.into_iter().map(|bucket| middle(&points[bucket])).collect();
    let window = |i: usize| {
        // At the ends a third of a window is kept, to one side: a single point would stick out.
        let radius = radius.min(i.min(means.len() - 1 - i).max(radius / 3));
        let near = &means[i.saturating_sub(radius)..(i + radius + 1).min(means.len())];
        let (step, own) = means[i];
        (step, if own.is_finite() { mean(near.iter().map(|p| p.1)) } else { own })
    };
    ((0..means.len()).map(window).collect(), (2 * radius + 1) * per_bucket)
}

/// Every value of a list that grows with the steps, as means of at most `count` buckets; what is not finite counts as 0.
pub fn shares(lists: &[(f64, Vec<f64>)], count: usize) -> Vec<(f64, Vec<f64>)> {
    let width = lists.iter().map(|(_, list)| list.len()).max().unwrap_or(0);
    let one = |bucket: &[(f64, Vec<f64>)], i: usize| {
        let values = bucket.iter().map(|(_, list)| list.get(i).copied().filter(|v| v.is_finite()).unwrap_or(0.0));
        mean(values)
    };
    let size = lists.len().div_ceil(count.max(1)).max(1);
    let step = |bucket: &[(f64, Vec<f64>)]| mean([bucket[0].0, bucket[bucket.len() - 1].0].into_iter());
    let mut out: Vec<(f64, Vec<f64>)> =
        lists.chunks(size).map(|bucket| (step(bucket), (0..width).map(|i| one(bucket, i)).collect())).collect();
    // The areas reach from the first step to the last.
    if let (Some(first), Some(last), Some(from), Some(to)) =
        (lists.first(), lists.last(), out.first().cloned(), out.last().cloned())
    {
        out.insert(0, (first.0, from.1));
        out.push((last.0, to.1));
    }
    out
}

/// At most `count` of the points, evenly, the last among them.
pub fn sample(points: &[Point], count: usize) -> Vec<Point> {
    let every = points.len().div_ceil(count.max(1)).max(1);
    let mut taken: Vec<Point> = points.iter().copied().step_by(every).collect();
    if let Some(last) = points.last().filter(|last| taken.last() != Some(last)) {
        taken.push(*last);
    }
    taken
}

/// Each point alone if there are at most `whole`; else `buckets` runs of as many points.
fn split(points: &[Point], whole: usize, buckets: usize) -> impl Iterator<Item = Range<usize>> {
    let count = points.len();
    let size = if count <= whole { 1 } else { count.div_ceil(buckets.max(1)) };
    (0..count).step_by(size).map(move |from| from..(from + size).min(count))
}

fn middle(points: &[Point]) -> Point {
    (mean(points.iter().map(|p| p.0)), mean(points.iter().map(|p| p.1)))
}

/// The mean of the finite ones; NaN if there are none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.filter(|v| v.is_finite()).fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
    sum / count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saw(count: usize) -> Vec<Point> {
        (0..count).map(|i| (i as f64, if i % 2 == 0 { 1.0 } else { 3.0 })).collect()
    }

    #[test]
    fn a_long_curve_keeps_its_extremes_and_its_gaps() {
        let mut points = saw(100_000);
        points[5].1 = 9.0;
        points[50_000..60_000].iter_mut().for_each(|p| p.1 = f64::NAN);
        let parts = extremes(&points, 100);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [100, 80]);
        assert_eq!(parts[0][..3], [(0.0, 1.0), (5.0, 9.0), (1000.0, 1.0)]);
        assert_eq!(extremes(&points[..4], 100), [&points[..4]]);
        assert!(extremes(&[(1.0, f64::NAN)], 10).is_empty());
    }

    #[test]
    fn smooth_curves_are_means() {
        let (points, window) = smooth(&saw(60_000));
        assert_eq!((points.len(), window), (1500, 51 * 40));
        assert!(points.iter().all(|p| (p.1 - 2.0).abs() < 0.1));
        // What was huge before is not felt after it.
        let (points, _) = smooth(&[(1.0, 1e30), (2.0, 1.0), (3.0, 1.0), (4.0, 2.0), (5.0, 3.0)]);
        assert_eq!((points[3].1, points[4].1), (2.0, 3.0));
        assert!(smooth(&[]).0.is_empty());
    }

    #[test]
    fn shares_reach_both_ends() {
        let lists: Vec<(f64, Vec<f64>)> = (1..=10).map(|i| (i as f64, vec![0.25, 0.75])).collect();
        let thin = shares(&lists, 2);
        assert_eq!(thin.iter().map(|(x, _)| *x).collect::<Vec<_>>(), [1.0, 3.0, 8.0, 10.0]);
        assert!(thin.iter().all(|(_, shares)| shares == &[0.25, 0.75]));
        assert_eq!(sample(&saw(10), 3), [(0.0, 1.0), (4.0, 1.0), (8.0, 1.0), (9.0, 3.0)]);
    }
}
