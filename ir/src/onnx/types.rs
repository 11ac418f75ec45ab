//! Types and shapes between `TypeProto` and [`Type`].

use super::proto::*;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::types::Type;
use bytes::Bytes;
use prost::Message;

/// What a `TypeProto` says. `None` if it says nothing. Maps, sparse tensors, opaque types, and tensors of an element
/// type that this release does not know are carried through in wire form.
pub(super) fn read_type(proto: &TypeProto) -> Option<Type> {
    match proto.value.as_ref()? {
        TypeValue::Tensor(tensor) if tensor.elem_type == 0 => None,
        TypeValue::Tensor(tensor) => match DType::from_onnx_code(tensor.elem_type) {
            Some(dtype) => Some(Type::Tensor { dtype, shape: tensor.shape.as_ref().map(read_shape) }),
            None => Some(other(proto)),
        },
        TypeValue::Sequence(inner) => read_element(inner).map(|ty| Type::Sequence(Box::new(ty))),
        TypeValue::Optional(inner) => read_element(inner).map(|ty| Type::Optional(Box::new(ty))),
        TypeValue::Map(_) | TypeValue::Opaque(_) | TypeValue::SparseTensor(_) => Some(other(proto)),
    }
}

fn read_element(element: &TypeElement) -> Option<Type> {
    read_type(element.elem_type.as_ref()?)
}

fn other(proto: &TypeProto) -> Type {
    Type::Other(Bytes::from(TypeProto { denotation: String::new(), ..proto.clone() }.encode_to_vec()))
}

fn read_shape(shape: &TensorShapeProto) -> Vec<Dim> {
    shape.dim.iter().map(read_dim).collect()
}

/// Negative numbers and empty names stand for "unknown" in files of some exporters.
fn read_dim(dim: &Dimension) -> Dim {
    match &dim.value {
        Some(DimensionValue::DimValue(n)) if *n >= 0 => Dim::Known(*n),
        // Some exporters write "?" for every length that they do not know; equal they are not.
        Some(DimensionValue::DimParam(name)) if !name.is_empty() && name != "?" => Dim::parse(name),
        _ => Dim::Unknown,
    }
}

/// The `TypeProto` of a type.
pub(super) fn write_type(ty: &Type) -> TypeProto {
    let value = match ty {
        Type::Tensor { dtype, shape } => {
            let dims = |shape: &Vec<Dim>| TensorShapeProto { dim: shape.iter().map(write_dim).collect() };
            Some(TypeValue::Tensor(TypeTensor { elem_type: dtype.onnx_code(), shape: shape.as_ref().map(dims) }))
        }
        Type::Sequence(inner) => Some(TypeValue::Sequence(write_element(inner))),
        Type::Optional(inner) => Some(TypeValue::Optional(write_element(inner))),
        Type::Other(bytes) => TypeProto::decode(bytes.clone()).ok().and_then(|t| t.value),
    };
    TypeProto { value, denotation: String::new() }
}

fn write_element(inner: &Type) -> Box<TypeElement> {
    Box::new(TypeElement { elem_type: Some(Box::new(write_type(inner))) })
}

fn write_dim(dim: &Dim) -> Dimension {
    let value = match dim {
        Dim::Known(n) => Some(DimensionValue::DimValue(*n)),
        Dim::Symbolic(_) => Some(DimensionValue::DimParam(dim.to_string())),
        Dim::Unknown => None,
    };
    Dimension { value, denotation: String::new() }
}

/// Whether a type carries denotations (`DATA_BATCH`, `IMAGE`, …), which [`Type`] has no place for.
pub(super) fn has_denotation(proto: &TypeProto) -> bool {
    let shaped = |t: &TypeTensor| t.shape.iter().flat_map(|s| &s.dim).any(|d| !d.denotation.is_empty());
    let inner = |t: &Option<Box<TypeProto>>| t.as_ref().is_some_and(|t| has_denotation(t));
    !proto.denotation.is_empty()
        || match &proto.value {
            Some(TypeValue::Tensor(t) | TypeValue::SparseTensor(t)) => shaped(t),
            Some(TypeValue::Sequence(t) | TypeValue::Optional(t)) => inner(&t.elem_type),
            Some(TypeValue::Map(t)) => inner(&t.value_type),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(ty: Type) {
        assert_eq!(read_type(&write_type(&ty)), Some(ty));
    }

    #[test]
    fn types_survive() {
        let tensor = Type::tensor(DType::F16, [Dim::symbol("batch"), Dim::Known(3), Dim::Unknown]);
        same(tensor.clone());
        same(Type::unranked(DType::String));
        same(Type::tensor(DType::I64, [0i64; 0]));
        same(Type::Optional(Box::new(Type::Sequence(Box::new(tensor)))));
        let map = TypeMap { key_type: 7, value_type: Some(Box::new(write_type(&Type::unranked(DType::F32)))) };
        let proto = TypeProto { value: Some(TypeValue::Map(Box::new(map))), denotation: String::new() };
        assert_eq!(write_type(&read_type(&proto).unwrap()), proto);
    }

    #[test]
    fn negative_dimensions_are_unknown() {
        let dim = Dimension { value: Some(DimensionValue::DimValue(-1)), denotation: String::new() };
        assert_eq!(read_dim(&dim), Dim::Unknown);
    }
}
