//! Channels last: how results of convolutions are stored.
//!
//! ONNX's `[N, C, H, W]` says which axis is which, not how numbers lie. Kernels want the channels of a pixel side by side, so
//! convolutions store `[N, H, W, C]` and hand on a view whose axes are in ONNX's order. Elementwise operators keep the layout of
//! their operands, reductions and pools read it, and what needs another order copies. So nothing is ever transposed twice: there are
//! no transposes in the graph to cancel.

use super::view::View;

/// The axes of `[N, C, …]` in the order `[N, …, C]`.
pub fn to_last(rank: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).filter(|&axis| axis != 1).collect();
    perm.push(1);
    perm
}

/// The axes of `[N, …, C]` in the order `[N, C, …]`.
pub fn to_first(rank: usize) -> Vec<usize> {
    let mut perm = vec![0, rank - 1];
    perm.extend(1..rank - 1);
    perm
}

/// Whether a view `[N, C, …]` lies densely channels last, and not also channels first.
pub fn is_channels_last(view: &View) -> bool {
    let rank = view.shape.len();
    rank >= 3
        && view.strides[1] == 1
        && view.shape[1] > 1
        && !view.is_dense()
        && view.transposed(&to_last(rank)).is_dense()
}

#[cfg(test)]
mod tests {
    use super::super::view::BufId;
    use super::*;

    #[test]
    fn both_ways() {
        let stored = View::dense(BufId(0), vec![2, 5, 7, 3]);
        let seen = stored.transposed(&to_first(4));
        assert_eq!(seen.shape, [2, 3, 5, 7]);
        assert!(is_channels_last(&seen) && !is_channels_last(&stored));
        assert_eq!(seen.transposed(&to_last(4)), stored);
        let pixel = View::dense(BufId(0), vec![2, 1, 1, 3]).transposed(&to_first(4));
        assert!(!is_channels_last(&pixel), "one pixel lies both ways");
    }
}
