//! A walk over the wire bytes before anything is decoded, against a budget.
//!
//! Protobuf expands: two bytes of an empty message become hundreds in memory. So the walk counts messages, depth and
//! the bytes that decoding would allocate (with a row per kind of message: which fields are messages, which are packed
//! numbers), and it recognises what is not an ONNX file at all. It allocates nothing but a small stack.

use super::proto;
use crate::error::Result;
use crate::{bail, ensure};
use std::mem::size_of;

/// What a file may cost. The defaults leave room for every real model and keep a hostile file cheap.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Messages in the file.
    pub messages: usize,
    /// Bytes of memory that decoding may take, tensors' raw data not counted (they stay in the file).
    pub decoded_bytes: usize,
    /// How many more of them for each byte of the file (numbers in typed fields grow up to eightfold).
    pub decoded_per_byte: usize,
    /// Subgraphs inside subgraphs.
    pub nested_graphs: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { messages: 16 << 20, decoded_bytes: 512 << 20, decoded_per_byte: 8, nested_graphs: 32 }
    }
}

/// Messages inside messages that prost decodes.
const MAX_DEPTH: usize = 100;

/// The kinds of message, as far as their fields differ for the walk.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TypeTensor,
    TypeElement,
    TypeMap,
    Shape,
    Annotation,
    NodeDevice,
    Sharding,
    ShardedDim,
    /// A small message without messages inside.
    Leaf,
}

/// What a field of type "length-delimited" holds.
enum Field {
    Message(Kind),
    /// Packed numbers: how many bytes in memory one byte on the wire can become.
    Packed(usize),
    /// Raw data of a tensor: not copied.
    Raw,
    /// A string, bytes, or unknown.
    Text,
}

impl Kind {
    fn field(self, number: u64) -> Field {
        use Kind::*;
        let kind = match (self, number) {
            (Tensor, 9) => return Field::Raw,
            (Tensor, 4 | 10) | (Attribute, 7) => return Field::Packed(1),
            (Tensor, 5) => return Field::Packed(4),
            (Tensor, 1 | 7 | 11) | (Attribute, 8) | (Sparse, 3) => return Field::Packed(8),
            (Model, 7) | (Training, 1 | 2) | (Attribute, 6 | 11) => Graph,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Graph, 1) | (Function, 7) => Node,
            (Node, 5) | (Function, 11) => Attribute,
            (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
            (Graph, 15) | (Attribute, 22 | 23) => Sparse,
            (Graph, 11..=13) | (Function, 12) => ValueInfo,
            (ValueInfo, 2) | (Attribute, 14 | 15) | (TypeElement, 1) | (TypeMap, 2) => Type,
            (Type, 1 | 8) => TypeTensor,
            (Type, 4 | 9) => TypeElement,
            (Type, 5) => TypeMap,
            (TypeTensor, 2) => Shape,
            (Graph, 14) => Annotation,
            (Node, 10) => NodeDevice,
            (NodeDevice, 2) => Sharding,
            (Sharding, 4) => ShardedDim,
            (Model, 8 | 14 | 26) | (Training, 3 | 4) | (Function, 9 | 14) | (Graph, 16) | (Node, 9) => Leaf,
            (Tensor, 3 | 13 | 16) | (ValueInfo, 4) | (Type, 7) | (Shape, 1) | (Annotation, 2) => Leaf,
            (Sharding, 3) | (ShardedDim, 2) => Leaf,
            _ => return Field::Text,
        };
        Field::Message(kind)
    }
    /// Bytes in memory.
    fn size(self) -> usize {
        match self {
            Kind::Model => size_of::<proto::ModelProto>(),
            Kind::Training => size_of::<proto::TrainingInfoProto>(),
            Kind::Function => size_of::<proto::FunctionProto>(),
            Kind::Graph => size_of::<proto::GraphProto>(),
            Kind::Node => size_of::<proto::NodeProto>(),
            Kind::Attribute => size_of::<proto::AttributeProto>(),
            Kind::Tensor => size_of::<proto::TensorProto>(),
            Kind::ValueInfo => size_of::<proto::ValueInfoProto>(),
            _ => 96,
        }
    }
}

/// Walks the bytes of a `ModelProto`; errors, in a sentence, if they are none or cost more than the limits.
pub fn scan(bytes: &[u8], limits: &Limits) -> Result<()> {
    if let Some(what) = impostor(bytes) {
        bail!("this is not an ONNX model but {what}");
    }
    let mut walk = Walk { bytes, at: 0, messages: 1, cost: Kind::Model.size(), limits };
    walk.run()
}

/// A message that the walk is inside of.
struct Open {
    kind: Kind,
    end: usize,
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    messages: usize,
    cost: usize,
    limits: &'a Limits,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        let mut open = vec![Open { kind: Kind::Model, end: self.bytes.len() }];
        let mut graphs = 0;
        let mut has_graph = false;
        while let Some(Open { kind, end }) = open.last() {
            let (kind, end) = (*kind, *end);
            if self.at == end {
                graphs -= (kind == Kind::Graph) as usize;
                open.pop();
                continue;
            }
            let Some(child) = self.field(kind, end)? else { continue };
            graphs += (child.kind == Kind::Graph) as usize;
            has_graph |= open.len() == 1 && child.kind == Kind::Graph;
            ensure!(
                graphs <= self.limits.nested_graphs + 1,
                "subgraphs are nested more than {} deep",
                self.limits.nested_graphs
            );
            open.push(child);
            ensure!(open.len() <= MAX_DEPTH, "messages are nested more than {MAX_DEPTH} deep");
        }
        ensure!(has_graph, "this is not an ONNX model: it holds no graph");
        Ok(())
    }
    /// Reads one field; if it is a message, the walk goes inside.
    fn field(&mut self, kind: Kind, end: usize) -> Result<Option<Open>> {
        let key = self.varint(end)?;
        let (number, wire) = (key >> 3, key & 7);
        ensure!(number != 0, "{}", self.damaged("a field has the number 0"));
        match wire {
            0 => self.varint(end).map(|_| self.cost = self.cost.saturating_add(16))?,
            1 => self.skip(8, end)?,
            5 => self.skip(4, end)?,
            2 => return self.delimited(kind.field(number), end),
            _ => bail!("{}", self.damaged("a field has an unknown wire type")),
        }
        self.check_budget().map(|()| None)
    }
    fn delimited(&mut self, field: Field, end: usize) -> Result<Option<Open>> {
        let len = self.varint(end)?;
        let start = self.at;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        ensure!(
            len <= end - start,
            "{}",
            self.damaged(&format!(
                "a field of {len} bytes stands where {} are left (is the file cut off?)",
                end - start
            ))
        );
        let cost = match &field {
            Field::Message(kind) => {
                self.messages += 1;
                kind.size().saturating_mul(2)
            }
            Field::Packed(factor) => len.saturating_mul(*factor),
            Field::Raw => 32,
            Field::Text => len.saturating_add(64),
        };
        self.cost = self.cost.saturating_add(cost);
        self.check_budget()?;
        match field {
            Field::Message(kind) => Ok(Some(Open { kind, end: start + len })),
            _ => {
                self.at = start + len;
                Ok(None)
            }
        }
    }
    fn check_budget(&self) -> Result<()> {
        let Limits { messages, decoded_bytes, decoded_per_byte, .. } = self.limits;
        let budget = decoded_per_byte.saturating_mul(self.bytes.len()).saturating_add(*decoded_bytes);
        ensure!(self.messages <= *messages, "the file holds more than {messages} protobuf messages");
        ensure!(
            self.cost <= budget,
            "decoding the file would take more than {budget} bytes of memory besides its tensors"
        );
        Ok(())
    }
    fn skip(&mut self, len: usize, end: usize) -> Result<()> {
        ensure!(len <= end - self.at, "{}", self.damaged("a number is cut off"));
        self.at += len;
        Ok(())
    }
    fn varint(&mut self, end: usize) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = match self.bytes.get(self.at) {
                Some(byte) if self.at < end => *byte,
                _ => bail!("{}", self.damaged("a number is cut off")),
            };
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        bail!("{}", self.damaged("a number is longer than ten bytes"))
    }
    fn damaged(&self, what: &str) -> String {
        format!("this is not an ONNX model, or it is damaged: at byte {} of {}, {what}", self.at, self.bytes.len())
    }
}

/// Files that people take for ONNX files.
fn impostor(bytes: &[u8]) -> Option<&'static str> {
    let starts: &[(usize, &[u8], &str)] = &[
        (0, b"PK\x03\x04", "a zip archive (a PyTorch checkpoint, or a packed model: unpack or export it first)"),
        (0, b"\x80\x02", "a Python pickle (a PyTorch checkpoint: export it to ONNX first)"),
        (0, b"\x80\x04", "a Python pickle (export the model to ONNX first)"),
        (0, b"\x89HDF", "an HDF5 file (Keras: convert it with tf2onnx first)"),
        (0, b"GGUF", "a GGUF file"),
        (4, b"TFL3", "a TensorFlow Lite file"),
        (4, b"ORTM", "a model in ONNX Runtime's own format (.ort)"),
        (0, b"\x1f\x8b", "gzip-compressed data (unpack it first)"),
        (0, b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
        (8, b"{\"", "a safetensors file (weights without a graph)"),
    ];
    if bytes.is_empty() {
        return Some("an empty file");
    }
    let head = bytes.trim_ascii_start();
    let head: Vec<u8> = head.iter().take(16).map(u8::to_ascii_lowercase).collect();
    if head.starts_with(b"<!doctype") || head.starts_with(b"<html") || head.starts_with(b"<?xml") {
        return Some("a web page (did a download fail?)");
    }
    starts.iter().find(|(at, magic, _)| bytes.get(*at..).is_some_and(|b| b.starts_with(magic))).map(|row| row.2)
}
