//! The bytes of a `ModelProto` in pieces: everything small is encoded into buffers, and the data of large
//! initializers stays where it is, between them. A message is its fields one after the other, so the pieces are: the
//! model's fields before the graph, the graph's head, one header and one payload per large initializer, the
//! rest. The order of the fields is that of their numbers, as prost would write them.

use super::proto::*;
use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// Raw data up to this many bytes is copied into the buffers.
const SMALL: usize = 4096;

const MODEL_GRAPH: u32 = 7;
const GRAPH_INITIALIZER: u32 = 5;
const TENSOR_RAW_DATA: u32 = 9;

/// Encodes a model. The pieces, joined, are the file.
pub(super) fn encode(model: ModelProto) -> Vec<Bytes> {
    let (head, graph, tail) = split_model(model);
    let mut pieces = Pieces::default();
    head.encode_raw(&mut pieces.buffer);
    if let Some(graph) = graph {
        let inner = encode_graph(graph);
        let len: usize = inner.iter().map(Bytes::len).sum();
        encode_key(MODEL_GRAPH, WireType::LengthDelimited, &mut pieces.buffer);
        encode_varint(len as u64, &mut pieces.buffer);
        inner.into_iter().for_each(|piece| pieces.push(piece));
    }
    tail.encode_raw(&mut pieces.buffer);
    pieces.finish()
}

/// The fields before the graph, the graph, and the fields after it.
fn split_model(mut model: ModelProto) -> (ModelProto, Option<GraphProto>, ModelProto) {
    let graph = model.graph.take();
    let tail = ModelProto {
        opset_import: std::mem::take(&mut model.opset_import),
        metadata_props: std::mem::take(&mut model.metadata_props),
        training_info: std::mem::take(&mut model.training_info),
        functions: std::mem::take(&mut model.functions),
        configuration: std::mem::take(&mut model.configuration),
        ..ModelProto::default()
    };
    (model, graph, tail)
}

fn encode_graph(mut graph: GraphProto) -> Vec<Bytes> {
    let initializers = std::mem::take(&mut graph.initializer);
    let head = GraphProto {
        node: std::mem::take(&mut graph.node),
        name: std::mem::take(&mut graph.name),
        ..GraphProto::default()
    };
    let mut pieces = Pieces::default();
    head.encode_raw(&mut pieces.buffer);
    initializers.into_iter().for_each(|tensor| pieces.initializer(tensor));
    graph.encode_raw(&mut pieces.buffer);
    pieces.finish()
}

#[derive(Default)]
struct Pieces {
    done: Vec<Bytes>,
    buffer: Vec<u8>,
}

impl Pieces {
    fn initializer(&mut self, mut tensor: TensorProto) {
        let raw = match tensor.raw_data.take() {
            Some(raw) if raw.len() > SMALL => raw,
            raw => {
                tensor.raw_data = raw;
                prost::encoding::message::encode(GRAPH_INITIALIZER, &tensor, &mut self.buffer);
                return;
            }
        };
        // Raw data goes last; the order of fields does not matter to readers.
        let raw_len = key_len(TENSOR_RAW_DATA) + encoded_len_varint(raw.len() as u64) + raw.len();
        encode_key(GRAPH_INITIALIZER, WireType::LengthDelimited, &mut self.buffer);
        encode_varint((tensor.encoded_len() + raw_len) as u64, &mut self.buffer);
        tensor.encode_raw(&mut self.buffer);
        encode_key(TENSOR_RAW_DATA, WireType::LengthDelimited, &mut self.buffer);
        encode_varint(raw.len() as u64, &mut self.buffer);
        self.push(raw);
    }
    fn push(&mut self, piece: Bytes) {
        if piece.len() <= SMALL {
            self.buffer.extend_from_slice(&piece);
            return;
        }
        self.flush();
        self.done.push(piece);
    }
    fn flush(&mut self) {
        if !self.buffer.is_empty() {
            self.done.push(Bytes::from(std::mem::take(&mut self.buffer)));
        }
    }
    fn finish(mut self) -> Vec<Bytes> {
        self.flush();
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_decode_to_the_same_message() {
        let tensor = |name: &str, len: usize| TensorProto {
            name: name.into(),
            doc_string: "doc".into(),
            dims: vec![len as i64],
            data_type: 2,
            raw_data: Some(Bytes::from(vec![7; len])),
            ..TensorProto::default()
        };
        let initializer = vec![tensor("a", 3), tensor("b", 10_000), tensor("c", 0), tensor("d", 5_000)];
        let graph = GraphProto { name: "g".into(), doc_string: "d".into(), initializer, ..GraphProto::default() };
        let model = ModelProto {
            ir_version: 8,
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 20 }],
            ..ModelProto::default()
        };
        let pieces = encode(model.clone());
        assert!(pieces.iter().any(|p| p.len() == 10_000), "large payloads are not copied");
        assert_eq!(ModelProto::decode(&pieces.concat()[..]).unwrap(), model);
    }
}
