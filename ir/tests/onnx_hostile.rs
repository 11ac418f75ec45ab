//! Files from strangers: whatever the bytes are, reading them ends in a model or in a sentence, never in a panic, and
//! within the budget.

use bytes::Bytes;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use sartor_ir::graph::{GraphOutput, Operator, OutputSlot};
use sartor_ir::onnx::{self, Limits};
use sartor_ir::rng::Draw;
use sartor_ir::{Attributes, DType, Graph, Model, Parameter, Role, Tensor, Type, Value};

/// A branch that multiplies a captured value by a constant.
fn branch(name: &str, factor: f32) -> Graph {
    let mut g = Graph::new(name);
    let x = g.add_capture(0, "h", Some(Type::tensor(DType::F32, [2i64])));
    let factor = g.add_named_const(&format!("{name}_factor"), Tensor::scalar(factor));
    let y = g.op("Mul", &[x, factor], Attributes::new());
    g.outputs.push(GraphOutput { name: format!("{name}_out"), value: y });
    g
}

/// A small model with a parameter, constants, attributes of several kinds and an `If` that captures a value.
fn model() -> Model {
    let mut g = Graph::new("g");
    let x = g.add_input("x", Type::tensor(DType::F32, [sartor_ir::Dim::symbol("n"), 2i64.into()]));
    let flag = g.add_input("flag", Type::tensor(DType::Bool, [0i64; 0]));
    let axes = g.add_named_const("axes", Tensor::from_i64s(&[0]));
    let w = g.param("w", Type::tensor(DType::F32, [2i64, 2]));
    let y = g.op("MatMul", &[x, w], Attributes::new());
    let h = g.op("ReduceSum", &[y, axes], Attributes::new().with("keepdims", 0i64));
    g.rename(h, "h");
    let attrs = Attributes::new().with("then_branch", branch("then", 2.0)).with("else_branch", branch("else", 3.0));
    let slot = OutputSlot { name: "z".into(), ty: Some(Type::tensor(DType::F32, [2i64])) };
    let node = g.add_node("if", Operator::onnx("If", attrs), &[Some(flag)], vec![slot]);
    g.push_capture(node, h);
    g.outputs.push(GraphOutput { name: "z".into(), value: Value { node, slot: 0 } });
    let mut m = Model::new(g);
    let tensor = Tensor::from_vec([2, 2], vec![1f32, 2.0, 3.0, 4.0]);
    m.params.insert("w".into(), Parameter { tensor, role: Role::Frozen });
    m
}

fn load(bytes: &[u8]) -> Result<Model, String> {
    onnx::from_bytes(Bytes::copy_from_slice(bytes), None).map_err(|e| e.to_string())
}

#[test]
fn the_small_model_is_fine() {
    let bytes = onnx::to_bytes(&model()).unwrap();
    let back = load(&bytes).unwrap();
    assert_eq!(load(&onnx::to_bytes(&back).unwrap()).unwrap(), back);
    let node = back.graph.find_node("if").unwrap();
    assert_eq!(back.graph.node(node).captures(), 1);
    assert_eq!(back.params["w"].tensor, model().params["w"].tensor);
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = onnx::to_bytes(&model()).unwrap();
    for len in 0..bytes.len() {
        assert!(load(&bytes[..len]).is_err(), "the first {len} of {} bytes were read", bytes.len());
    }
}

#[test]
fn mutated_bytes_never_panic() {
    let original = onnx::to_bytes(&model()).unwrap();
    let mut random = Draw::new(1, "mutations");
    let mut draw = |below: usize| random.int(0, below as i64 - 1) as usize;
    let mut read = 0;
    for _ in 0..6000 {
        let mut bytes = original.clone();
        for _ in 0..1 + draw(4) {
            let at = draw(bytes.len());
            bytes[at] = draw(256) as u8;
        }
        if draw(8) == 0 {
            let at = draw(bytes.len());
            bytes.drain(at..(at + 1 + draw(8)).min(original.len()));
        }
        let Ok(model) = load(&bytes) else { continue };
        read += 1;
        // What can be read can be written, and then stays as it is.
        let Ok(first) = onnx::to_bytes(&model) else { continue };
        let again = load(&first).unwrap();
        assert!(onnx::to_bytes(&again).unwrap() == first);
    }
    assert!(read > 200, "{read} of the mutations are still models");
}

#[test]
fn other_files_are_named() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x80\x02}q\x00", "a Python pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x10\0\0\0\0\0\0\0{\"a\":1}", "a safetensors file"),
        (b"hello world", "not an ONNX model"),
        (b"\x08\x08", "it holds no graph"),
    ];
    for (bytes, want) in cases {
        let error = load(bytes).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(onnx::load(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    let path = dir.path().join("no.onnx");
    assert!(onnx::load(&path).unwrap_err().to_string().contains("no.onnx"));
    std::fs::write(&path, b"").unwrap();
    assert!(
        onnx::load(&path).unwrap_err().to_string().ends_with("no.onnx: this is not an ONNX model but an empty file")
    );
}

fn value(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: name.into(), ..Default::default() }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let input = inputs.iter().map(|s| s.to_string()).collect();
    NodeProto { op_type: op.into(), input, output: vec![output.into()], ..Default::default() }
}

fn wrap(graph: GraphProto) -> Vec<u8> {
    let opset = OperatorSetIdProto { version: 20, ..Default::default() };
    let model =
        ModelProto { ir_version: 8, graph: Some(graph).into(), opset_import: vec![opset], ..Default::default() };
    model.write_to_bytes().unwrap()
}

/// Subgraphs in subgraphs; the innermost reads the input of the outermost graph.
fn nested(depth: usize) -> Vec<u8> {
    let mut graph = GraphProto { name: "inner".into(), ..Default::default() };
    graph.node.push(node("Identity", &["x"], "y0"));
    graph.output.push(value("y0"));
    for level in 1..=depth {
        let output = format!("y{level}");
        let body = AttributeProto {
            name: "body".into(),
            type_: AttributeType::GRAPH.into(),
            g: Some(graph).into(),
            ..Default::default()
        };
        let node = NodeProto { attribute: vec![body], ..node("Wrap", &[], &output) };
        graph =
            GraphProto { name: "outer".into(), node: vec![node], output: vec![value(&output)], ..Default::default() };
    }
    graph.input.push(value("x"));
    wrap(graph)
}

#[test]
fn nesting_is_limited() {
    let model = load(&nested(32)).unwrap();
    assert_eq!(load(&onnx::to_bytes(&model).unwrap()).unwrap(), model);
    let input = model.graph.inputs().next().unwrap();
    assert_eq!(model.graph.uses(input).len(), 1, "the capture is threaded through all levels");
    for depth in [33, 40, 300] {
        assert_eq!(load(&nested(depth)).unwrap_err(), "subgraphs are nested more than 32 deep");
    }
}

#[test]
fn expansion_is_bounded_before_decoding() {
    // A node with a million empty attributes: two bytes each on the wire.
    let attributes: Vec<u8> = [0x2a, 0].repeat(1 << 20);
    let delimited = |tag: u8, inner: &[u8]| {
        let mut out = vec![tag];
        prost::encoding::encode_varint(inner.len() as u64, &mut out);
        out.extend(inner);
        out
    };
    let file = delimited(0x3a, &delimited(0x0a, &attributes));
    let error = load(&file).unwrap_err();
    assert!(error.contains("decoding the file would take more than"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, onnx::to_bytes(&model()).unwrap()).unwrap();
    let few = Limits { messages: 10, ..Limits::default() };
    assert!(onnx::load_with(&path, &few).unwrap_err().to_string().contains("more than 10 protobuf messages"));
}

#[test]
fn graphs_that_contradict_themselves_are_refused() {
    let graph = |nodes: Vec<NodeProto>, output: &str| {
        wrap(GraphProto {
            name: "g".into(),
            node: nodes,
            output: vec![value(output)],
            input: vec![value("x")],
            ..Default::default()
        })
    };
    let cases = [
        (graph(vec![node("Neg", &["q"], "y")], "y"), "reads \"q\", which nothing before it makes"),
        (graph(vec![node("Neg", &["y"], "y")], "y"), "reads \"y\""),
        (graph(vec![node("Neg", &["x"], "y"), node("Neg", &["x"], "y")], "y"), "two values are named \"y\""),
        (graph(vec![node("Neg", &["x"], "x")], "x"), "two values are named \"x\""),
        (graph(vec![], "y"), "the graph output \"y\" is made by no node"),
        (graph(vec![node("", &["x"], "y")], "y"), "the node has no operator"),
    ];
    for (bytes, want) in cases {
        let error = load(&bytes).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
}

/// Everything that is wrong with a file is told at once, each with its place; what follows from another problem is not told again.
#[test]
fn all_problems_of_a_file_are_told() {
    let bytes = wrap(GraphProto {
        name: "g".into(),
        node: vec![
            node("Neg", &["q"], "a"),
            node("Exp", &["a"], "b"),
            node("", &["b"], "c"),
            node("Add", &["c", "r"], "d"),
        ],
        output: vec![value("d"), value("e")],
        input: vec![value("x")],
        ..Default::default()
    });
    let error = load(&bytes).unwrap_err();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 5, "{error}");
    for (line, part) in
        lines.iter().zip(["graph \"g\":", "(Neg): reads \"q\"", "no operator", "(Add): reads \"r\"", "output \"e\""])
    {
        assert!(line.contains(part), "{part}\n{error}");
    }
    let nodes = (0..100).map(|i| node("Neg", &["q"], &format!("a{i}"))).collect();
    let many = wrap(GraphProto { name: "g".into(), node: nodes, ..Default::default() });
    let error = load(&many).unwrap_err();
    assert!(error.lines().count() == 22 && error.ends_with("and 80 more problems"), "{error}");
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    onnx::save(&model(), &path, &Default::default()).unwrap();
    let mut broken = model();
    broken.params.clear();
    let error = onnx::save(&broken, &path, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("m.onnx") && error.contains("the model has no parameter \"w\""), "{error}");
    assert!(onnx::load(&path).is_ok());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
