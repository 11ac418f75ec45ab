//! Attributes of nodes, read through typed getters: a wrong type is an error that names the attribute.

use crate::error::Result;
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::types::Type;
use crate::{bail, ensure};
use indexmap::IndexMap;

/// The value of one attribute. Strings are byte strings in ONNX; those that are not UTF-8 are kept as tensors' bytes are.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    String(Vec<u8>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Vec<Vec<u8>>),
    Tensor(Tensor),
    Tensors(Vec<Tensor>),
    /// A subgraph; what it reads from outside are captures of its node (see [`crate::graph`]).
    Graph(Box<Graph>),
    Graphs(Vec<Graph>),
    Type(Type),
    Types(Vec<Type>),
    /// Inside a model-local function: the value of the caller's attribute of this name (`ref_attr_name`), of the
    /// ONNX attribute type code given.
    Reference(String, i32),
    /// Sparse tensors are carried through, as the bytes of ONNX's `AttributeProto`.
    Opaque(bytes::Bytes),
}

/// The attributes of a node, in the order of the file.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Attributes(pub IndexMap<String, Attribute>);

macro_rules! getter {
    ($(#[$doc:meta])* $name:ident, $variant:ident, $ret:ty, $kind:literal, $value:ident => $out:expr) => {
        $(#[$doc])*
        pub fn $name(&self, name: &str) -> Result<Option<$ret>> {
            match self.0.get(name) {
                None => Ok(None),
                Some(Attribute::$variant($value)) => Ok(Some($out)),
                Some(_) => bail!("attribute `{name}` is not {}", $kind),
            }
        }
    };
}

impl Attributes {
    /// No attributes.
    pub fn new() -> Attributes {
        Attributes::default()
    }
    /// Adds or replaces one, for chaining: `Attributes::new().with("axis", 1i64)`.
    pub fn with(mut self, name: &str, value: impl Into<Attribute>) -> Attributes {
        self.0.insert(name.to_string(), value.into());
        self
    }
    /// Adds or replaces one.
    pub fn set(&mut self, name: &str, value: impl Into<Attribute>) {
        self.0.insert(name.to_string(), value.into());
    }
    /// Removes one, keeping the order of the others.
    pub fn remove(&mut self, name: &str) -> Option<Attribute> {
        self.0.shift_remove(name)
    }
    /// Whether there is one of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
    getter!(/// An integer, if present.
        get_int, Int, i64, "an integer", v => *v);
    getter!(/// A float, if present.
        get_float, Float, f32, "a float", v => *v);
    getter!(/// A list of integers, if present.
        get_ints, Ints, &[i64], "a list of integers", v => v);
    getter!(/// A list of floats, if present.
        get_floats, Floats, &[f32], "a list of floats", v => v);
    getter!(/// A list of byte strings, if present.
        get_strings, Strings, &[Vec<u8>], "a list of strings", v => v);
    getter!(/// A tensor, if present.
        get_tensor, Tensor, &Tensor, "a tensor", v => v);
    getter!(/// A subgraph, if present.
        get_graph, Graph, &Graph, "a graph", v => v);
    /// A UTF-8 string, if present.
    pub fn get_str(&self, name: &str) -> Result<Option<&str>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Attribute::String(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => bail!("attribute `{name}` is not UTF-8"),
            },
            Some(_) => bail!("attribute `{name}` is not a string"),
        }
    }
    /// An integer or its default.
    pub fn int(&self, name: &str, default: i64) -> Result<i64> {
        Ok(self.get_int(name)?.unwrap_or(default))
    }
    /// A float or its default.
    pub fn float(&self, name: &str, default: f32) -> Result<f32> {
        Ok(self.get_float(name)?.unwrap_or(default))
    }
    /// A string or its default.
    pub fn str<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str> {
        Ok(self.get_str(name)?.unwrap_or(default))
    }
    /// A list of integers or its default.
    pub fn ints(&self, name: &str, default: &[i64]) -> Result<Vec<i64>> {
        Ok(self.get_ints(name)?.unwrap_or(default).to_vec())
    }
    /// A 0/1 integer as a flag, or its default.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        let value = self.int(name, default as i64)?;
        ensure!(value == 0 || value == 1, "attribute `{name}` is {value}, expected 0 or 1");
        Ok(value == 1)
    }
    /// All subgraphs, each with its attribute's name.
    pub fn graphs(&self) -> impl Iterator<Item = (&str, &Graph)> {
        self.0.iter().flat_map(|(name, attr)| {
            let graphs: &[Graph] = match attr {
                Attribute::Graph(graph) => std::slice::from_ref(&**graph),
                Attribute::Graphs(graphs) => graphs,
                _ => &[],
            };
            graphs.iter().map(move |g| (name.as_str(), g))
        })
    }
    /// All subgraphs, to be changed.
    pub fn graphs_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.0.values_mut().flat_map(|attr| match attr {
            Attribute::Graph(graph) => std::slice::from_mut(&mut **graph).iter_mut(),
            Attribute::Graphs(graphs) => graphs.iter_mut(),
            _ => [].iter_mut(),
        })
    }
}

macro_rules! from {
    ($($ty:ty => $value:ident $variant:expr),* $(,)?) => {$(
        impl From<$ty> for Attribute {
            fn from($value: $ty) -> Attribute { $variant }
        }
    )*};
}
from!(i64 => v Attribute::Int(v), f32 => v Attribute::Float(v), &str => v Attribute::String(v.as_bytes().to_vec()),
      String => v Attribute::String(v.into_bytes()), Vec<i64> => v Attribute::Ints(v), &[i64] => v Attribute::Ints(v.to_vec()),
      Vec<f32> => v Attribute::Floats(v), Tensor => v Attribute::Tensor(v), Graph => v Attribute::Graph(Box::new(v)),
      bool => v Attribute::Int(v as i64));
impl<const N: usize> From<[i64; N]> for Attribute {
    fn from(v: [i64; N]) -> Attribute {
        Attribute::Ints(v.to_vec())
    }
}
