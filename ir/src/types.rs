//! Types of values: element type and shape, each as far as it is known.

use crate::dim::Dim;
use crate::dtype::DType;
use std::fmt;

/// A shape; axes may be symbolic or unknown.
pub type Shape = Vec<Dim>;

/// What is known of a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Type {
    /// A tensor. `shape` is `None` when not even the rank is known.
    Tensor {
        /// The element type.
        dtype: DType,
        /// The shape.
        shape: Option<Shape>,
    },
    /// `seq(T)`: carried through, not computed with.
    Sequence(Box<Type>),
    /// `optional(T)`: carried through, not computed with.
    Optional(Box<Type>),
    /// A map, a sparse tensor, an opaque type, or a tensor of an element type unknown here: carried through, as the
    /// bytes of ONNX's `TypeProto`.
    Other(bytes::Bytes),
}

impl Type {
    /// A tensor of known rank.
    pub fn tensor(dtype: DType, shape: impl IntoIterator<Item = impl Into<Dim>>) -> Type {
        Type::Tensor { dtype, shape: Some(shape.into_iter().map(Into::into).collect()) }
    }
    /// A tensor of which only the element type is known.
    pub fn unranked(dtype: DType) -> Type {
        Type::Tensor { dtype, shape: None }
    }
    /// The type of a host tensor.
    pub fn of(tensor: &crate::Tensor) -> Type {
        Type::tensor(tensor.dtype(), tensor.shape().iter().map(|&d| d as i64))
    }
    /// The element type of a tensor.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Type::Tensor { dtype, .. } => Some(*dtype),
            _ => None,
        }
    }
    /// The shape of a tensor of known rank.
    pub fn shape(&self) -> Option<&[Dim]> {
        match self {
            Type::Tensor { shape: Some(shape), .. } => Some(shape),
            _ => None,
        }
    }
    /// The number of axes, if known.
    pub fn rank(&self) -> Option<usize> {
        self.shape().map(<[Dim]>::len)
    }
    /// The shape as numbers, if every axis is one (and none is negative).
    pub fn static_shape(&self) -> Option<Vec<usize>> {
        self.shape()?.iter().map(|d| usize::try_from(d.known()?).ok()).collect()
    }
    /// The more precise of two descriptions of one value; `None` if they contradict each other. Where both name an
    /// axis, numbers win over expressions and `self` wins over `other`.
    pub fn merge(&self, other: &Type) -> Option<Type> {
        match (self, other) {
            (Type::Tensor { dtype: a, shape: x }, Type::Tensor { dtype: b, shape: y }) if a == b => {
                let shape = match (x, y) {
                    (Some(x), Some(y)) => Some(merge_shapes(x, y)?),
                    (x, y) => x.clone().or_else(|| y.clone()),
                };
                Some(Type::Tensor { dtype: *a, shape })
            }
            (Type::Sequence(a), Type::Sequence(b)) => Some(Type::Sequence(Box::new(a.merge(b)?))),
            (Type::Optional(a), Type::Optional(b)) => Some(Type::Optional(Box::new(a.merge(b)?))),
            (Type::Other(a), Type::Other(b)) if a == b => Some(self.clone()),
            _ => None,
        }
    }
}

fn merge_shapes(x: &[Dim], y: &[Dim]) -> Option<Shape> {
    if x.len() != y.len() {
        return None;
    }
    x.iter()
        .zip(y)
        .map(|(a, b)| match (a, b) {
            (Dim::Known(a), Dim::Known(b)) => (a == b).then_some(Dim::Known(*a)),
            (Dim::Unknown, other) | (_, other @ Dim::Known(_)) => Some(other.clone()),
            (a, _) => Some(a.clone()),
        })
        .collect()
}

impl fmt::Display for Type {
    /// As in ONNX's text form: `float[batch, 384]`, `int64[]` for rank 0, plain `float` when the rank is unknown.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Type::Tensor { dtype, shape: None } => write!(f, "{dtype}"),
            Type::Tensor { dtype, shape: Some(shape) } => {
                let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
                write!(f, "{dtype}[{}]", dims.join(", "))
            }
            Type::Sequence(inner) => write!(f, "seq({inner})"),
            Type::Optional(inner) => write!(f, "optional({inner})"),
            Type::Other(_) => f.write_str("other"),
        }
    }
}
