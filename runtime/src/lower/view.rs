//! Strided views on planned buffers, and how a kernel walks over them.
//!
//! A [`View`] is a buffer, an offset, a shape and one stride per axis (0 where it is broadcast), all in elements.
//! Transpose, Reshape, Slice and Expand only make new views where they can. A [`Walk`] is a view seen as
//! `rows × cols`: how kernels address it.

/// The number of a buffer of the plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BufId(pub u32);

impl BufId {
    /// An index for tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A strided window on a buffer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct View {
    /// The buffer.
    pub buf: BufId,
    /// Where it begins.
    pub offset: usize,
    /// Its shape.
    pub shape: Vec<usize>,
    /// One stride per axis.
    pub strides: Vec<usize>,
}

/// Row-major strides.
pub fn dense_strides(shape: &[usize]) -> Vec<usize> {
    sartor_ir::ops::broadcast::strides(shape)
}

impl View {
    /// A whole buffer, row by row.
    pub fn dense(buf: BufId, shape: Vec<usize>) -> View {
        View { buf, offset: 0, strides: dense_strides(&shape), shape }
    }
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }
    /// Whether the elements lie one after the other in row-major order.
    pub fn is_dense(&self) -> bool {
        let mut expected = 1;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if dim != 1 && stride != expected {
                return self.is_empty();
            }
            expected *= dim;
        }
        true
    }
    /// The axes permuted: axis `i` of the result is axis `perm[i]`.
    pub fn transposed(&self, perm: &[usize]) -> View {
        let pick = |from: &[usize]| perm.iter().map(|&p| from[p]).collect();
        View { shape: pick(&self.shape), strides: pick(&self.strides), ..*self }
    }
    /// Stretched to a shape under ONNX's broadcasting; `None` if it does not fit.
    pub fn broadcast(&self, shape: &[usize]) -> Option<View> {
        let pad = shape.len().checked_sub(self.shape.len())?;
        let mut strides = vec![0; shape.len()];
        for (i, (&dim, &stride)) in self.shape.iter().zip(&self.strides).enumerate() {
            match (dim, shape[pad + i]) {
                (a, b) if a == b => strides[pad + i] = if a == 1 { 0 } else { stride },
                (1, _) => {}
                _ => return None,
            }
        }
        Some(View { buf: self.buf, offset: self.offset, shape: shape.to_vec(), strides })
    }
    /// Part of one axis: `len` elements from `start`, every `step`-th.
    pub fn sliced(&self, axis: usize, start: usize, step: usize, len: usize) -> View {
        let mut view = self.clone();
        if !self.is_empty() && len != 0 {
            view.offset += start * view.strides[axis];
        }
        view.strides[axis] *= step;
        view.shape[axis] = len;
        view
    }
    /// The same elements in another shape without moving any; `None` if they have to move.
    pub fn reshaped(&self, shape: &[usize]) -> Option<View> {
        if self.is_dense() {
            return Some(View { strides: dense_strides(shape), shape: shape.to_vec(), ..*self });
        }
        let old: Vec<(usize, usize)> = self.axes().filter(|&(d, _)| d != 1).collect();
        let mut strides = vec![0; shape.len()];
        let (mut i, mut j) = (0, 0);
        while i < old.len() {
            let (mut from, start, mut to, first) = (old[i].0, i, 1, j);
            while j < shape.len() && to < from || to != from {
                if to < from {
                    to *= *shape.get(j)?;
                    j += 1;
                } else {
                    i += 1;
                    from *= old.get(i)?.0;
                }
            }
            // The axes of the run that is joined must follow each other.
            for k in start..i {
                if old[k].1 != old[k + 1].0 * old[k + 1].1 {
                    return None;
                }
            }
            let mut stride = old[i].1;
            for k in (first..j).rev() {
                strides[k] = stride;
                stride *= shape[k];
            }
            i += 1;
        }
        shape[j..].iter().all(|&d| d == 1).then(|| View { shape: shape.to_vec(), strides, ..*self })
    }
    fn axes(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + '_ {
        self.shape.iter().copied().zip(self.strides.iter().copied())
    }
}

/// Where the element of a row-major number lies along axes of these lengths and strides.
#[inline]
pub fn place(number: usize, axes: impl DoubleEndedIterator<Item = (usize, usize)>) -> usize {
    let (mut rest, mut place) = (number, 0);
    for (dim, stride) in axes.rev() {
        place += rest % dim * stride;
        rest /= dim;
    }
    place
}

/// A view walked as `rows × cols`: the place of `(r, c)` is `offset + Σ index of r along lead · stride + c · col`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Walk {
    /// The buffer.
    pub buf: BufId,
    /// Where it begins.
    pub offset: usize,
    /// Length and stride of the axes that make up the rows, outermost first; neighbours that follow each other joined.
    pub lead: Vec<(usize, usize)>,
    /// The stride along a row: 1, 0 for a row of equal elements, or anything.
    pub col: usize,
}

impl Walk {
    /// Walks a view with rows of `cols` elements; `None` if the elements of a row are not evenly spaced.
    pub fn new(view: &View, cols: usize) -> Option<Walk> {
        let mut axes: Vec<(usize, usize)> = view.axes().filter(|&(d, _)| d != 1).collect();
        let (mut left, mut col) = (cols, None);
        while left > 1 {
            let (dim, stride) = axes.pop()?;
            let expected = col.map(|c| c * (cols / left));
            if expected.is_some_and(|e| e != stride) || (left % dim != 0 && dim % left != 0) || dim == 0 {
                return None;
            }
            col = col.or(Some(stride));
            if dim > left {
                axes.push((dim / left, stride * left));
                break;
            }
            left /= dim;
        }
        Some(Walk { buf: view.buf, offset: view.offset, lead: joined(&axes), col: col.unwrap_or(1) })
    }
    /// A view of one element per row.
    pub fn per_row(view: &View) -> Walk {
        let axes: Vec<(usize, usize)> = view.axes().filter(|&(d, _)| d != 1).collect();
        Walk { buf: view.buf, offset: view.offset, lead: joined(&axes), col: 0 }
    }
    /// Where a row begins.
    #[inline]
    pub fn row(&self, row: usize) -> usize {
        match self.lead.as_slice() {
            [] => self.offset,
            [(_, stride)] => self.offset + row * stride,
            lead => self.offset + place(row, lead.iter().copied()),
        }
    }
    /// The distance of rows, if it is the same between all of `height` rows from `row` on.
    #[inline]
    pub fn even(&self, row: usize, height: usize) -> Option<usize> {
        match self.lead.as_slice() {
            [] => Some(0),
            [(_, stride)] => Some(*stride),
            [.., (dim, stride)] => (row % dim + height <= *dim).then_some(*stride),
        }
    }
}

fn joined(axes: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut lead: Vec<(usize, usize)> = Vec::new();
    for &(dim, stride) in axes {
        match lead.last_mut() {
            Some(last) if last.1 == dim * stride => *last = (last.0 * dim, stride),
            _ => lead.push((dim, stride)),
        }
    }
    lead
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_split_without_a_copy_but_do_not_join() {
        let x = View::dense(BufId(0), vec![16, 128, 384]);
        let heads = x.reshaped(&[16, 128, 12, 32]).unwrap().transposed(&[0, 2, 1, 3]);
        assert_eq!(heads.strides, [128 * 384, 32, 384, 1]);
        assert!(heads.reshaped(&[16, 12, 4096]).is_none());
        assert_eq!(heads.reshaped(&[192, 128, 32]), None);
        assert_eq!(heads.reshaped(&[16, 3, 4, 128, 32]).unwrap().strides, [128 * 384, 128, 32, 384, 1]);
        assert_eq!(heads.reshaped(&[16, 12, 128, 1, 32]).unwrap().strides[2], 384);
    }

    #[test]
    fn walks_join_axes() {
        let x = View::dense(BufId(0), vec![2, 3, 4]);
        assert_eq!(Walk::new(&x, 4).unwrap().lead, [(6, 4)]);
        assert_eq!(Walk::new(&x, 12).unwrap().lead, [(2, 12)]);
        assert_eq!(Walk::new(&x, 2).unwrap().lead, [(12, 2)]);
        let column = View::dense(BufId(0), vec![3, 1]).broadcast(&[2, 3, 4]).unwrap();
        let walk = Walk::new(&column, 4).unwrap();
        assert_eq!((walk.col, walk.row(4)), (0, 1));
        assert!(Walk::new(&column, 12).is_none());
        let t = x.transposed(&[0, 2, 1]);
        assert_eq!(Walk::new(&t, 3).unwrap().row(5), 13);
    }
}
