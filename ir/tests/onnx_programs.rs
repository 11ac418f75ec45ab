//! Programs, roles, functions and everything else of a file that is no plain inference graph: through a file and back.

use bytes::Bytes;
use onnx_protobuf::{
    GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TrainingInfoProto, ValueInfoProto,
};
use sartor_ir::graph::{GraphOutput, Operator, OutputSlot};
use sartor_ir::onnx::{self, ROLES_KEY};
use sartor_ir::{Attribute, Attributes, Binding, DType, Function, Graph, Model, NodeKind, Parameter, Program};
use sartor_ir::{Role, Tensor, Type, Value};

fn float(shape: &[i64]) -> Type {
    Type::tensor(DType::F32, shape.iter().copied())
}

fn output(graph: &mut Graph, name: &str, value: Value) {
    graph.outputs.push(GraphOutput { name: name.into(), value });
}

/// y = h + bias, h = x · w.
fn inference(name: &str) -> Graph {
    let mut g = Graph::new(name);
    let x = g.add_input("x", float(&[2]));
    let w = g.param("w", float(&[2]));
    let bias = g.add_named_const("bias", Tensor::scalar(0.5f32));
    let h = g.op("Mul", &[x, w], Attributes::new());
    let y = g.op("Add", &[h, bias], Attributes::new());
    g.rename(h, "h");
    g.rename(y, "y");
    output(&mut g, "y", y);
    g
}

/// The same with a loss, an update of `w`, and a counter.
fn step() -> Graph {
    let mut g = inference("step");
    let y = g.outputs.pop().unwrap().value;
    let label = g.add_input("label", float(&[2]));
    let rate = g.add_input("learning_rate", float(&[]));
    let own = g.add_named_const("axes", Tensor::from_i64s(&[0]));
    let error = g.op("Sub", &[y, label], Attributes::new());
    let update = g.op("Mul", &[error, rate], Attributes::new());
    let w = g.find_param("w").unwrap();
    let next = g.op("Sub", &[w, update], Attributes::new());
    let loss = g.op("ReduceSum", &[error, own], Attributes::new());
    let count = g.param("count", Type::tensor(DType::I64, [0i64; 0]));
    let counted = g.op("Add", &[count, count], Attributes::new());
    output(&mut g, "loss", loss);
    output(&mut g, "w_next", next);
    output(&mut g, "counted", counted);
    output(&mut g, "y", y);
    g
}

fn binding(output: &str, param: &str) -> Binding {
    Binding { output: output.into(), param: param.into() }
}

fn model() -> Model {
    let mut m = Model::new(inference("main"));
    let mut add = |name: &str, tensor: Tensor, role| {
        m.params.insert(name.into(), Parameter { tensor, role });
    };
    add("w", Tensor::from_vec([2], vec![1f32, 2.0]), Role::Trainable);
    add("count", Tensor::scalar(3i64), Role::State);
    add("seed \\ odd\nname", Tensor::scalar(3i64), Role::Frozen);
    add("moment", Tensor::from_vec([2], vec![0f32; 2]), Role::State);
    let bindings = vec![binding("w_next", "w"), binding("counted", "count")];
    m.programs.insert("step".into(), Program { graph: step(), bindings });
    m.programs.insert("eval".into(), Program { graph: inference("eval"), bindings: Vec::new() });
    let mut reset = Graph::new("init:step");
    let zero = reset.add_named_const("zero", Tensor::scalar(0i64));
    let zero = reset.op("Identity", &[zero], Attributes::new());
    output(&mut reset, "zeroed", zero);
    m.programs.insert("init:step".into(), Program { graph: reset, bindings: vec![binding("zeroed", "count")] });
    m
}

fn through(m: &Model) -> Model {
    onnx::from_bytes(onnx::to_bytes(m).unwrap().into(), None).unwrap()
}

#[track_caller]
fn survives(m: &Model) -> Model {
    let once = through(m);
    let twice = through(&once);
    assert_eq!(once.graph.differences(&twice.graph), None);
    assert!(once == twice);
    assert_eq!(onnx::to_bytes(&once).unwrap(), onnx::to_bytes(&twice).unwrap());
    once
}

#[test]
fn programs_and_roles_survive() {
    let m = model();
    let back = survives(&m);
    assert_eq!(back.params, m.params);
    assert_eq!(back.meta, m.meta, "the entry with the roles is no metadata of the model");
    let names = |m: &Model| {
        let mut names: Vec<String> = m.programs.keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&back), names(&m));
    for (name, program) in &m.programs {
        let again = &back.programs[name];
        assert_eq!(again.bindings, program.bindings);
        assert_eq!(again.graph.name, *name);
        let ends = |g: &Graph| -> Vec<String> {
            let inputs = g.inputs().map(|v| g.value_name(v).to_string());
            inputs.chain(g.outputs.iter().map(|o| o.name.clone())).collect()
        };
        assert_eq!(ends(&again.graph), ends(&program.graph));
        assert_eq!(again.graph.len(), program.graph.len());
    }
}

#[test]
fn training_info_is_joined_with_the_inference_graph_as_onnx_says() {
    let file = ModelProto::parse_from_bytes(&onnx::to_bytes(&model()).unwrap()).unwrap();
    assert_eq!(file.training_info.len(), 2);
    let info = &file.training_info[0];
    let inputs: Vec<&str> = info.algorithm.input.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(inputs, ["label", "learning_rate"], "x is an input of the inference graph");
    let initializers: Vec<&str> = info.algorithm.initializer.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(initializers, ["axes"], "w, count and bias stand in the inference graph");
    let mut seen = std::collections::HashSet::new();
    for name in file.graph.node.iter().chain(&info.algorithm.node).flat_map(|n| &n.output) {
        assert!(seen.insert(name.clone()), "{name} is defined twice");
    }
    assert!(info.algorithm.output.iter().any(|o| o.name == "step/y"));
    let keys: Vec<&str> = info.update_binding.iter().map(|b| b.key.as_str()).collect();
    assert_eq!(keys, ["w", "count"]);
    assert_eq!(info.initialization_binding[0].value, "zeroed");
    let roles = file.metadata_props.iter().find(|e| e.key == ROLES_KEY).unwrap();
    // The roles of `w` and `count` follow from the bindings.
    assert_eq!(roles.value, "frozen seed \\\\ odd\\nname\nstate moment");
}

#[test]
fn frozen_models_say_nothing_about_roles() {
    let mut m = model();
    m.programs.clear();
    m.params.retain(|name, _| name == "w");
    m.params["w"].role = Role::Frozen;
    let file = ModelProto::parse_from_bytes(&onnx::to_bytes(&m).unwrap()).unwrap();
    assert!(file.metadata_props.is_empty());
    assert_eq!(survives(&m), m);
}

fn info(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: name.into(), ..Default::default() }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let input = inputs.iter().map(|s| s.to_string()).collect();
    NodeProto { op_type: op.into(), input, output: vec![output.into()], ..Default::default() }
}

fn scalar(name: &str) -> TensorProto {
    TensorProto { name: name.into(), data_type: 1, float_data: vec![2.0], ..Default::default() }
}

fn foreign(graph: GraphProto, training_info: Vec<TrainingInfoProto>, ir_version: i64) -> Model {
    let opset_import = vec![OperatorSetIdProto { version: 17, ..Default::default() }];
    let graph = Some(graph).into();
    let m = ModelProto { ir_version, graph, training_info, opset_import, ..Default::default() };
    onnx::from_bytes(Bytes::from(m.write_to_bytes().unwrap()), None).unwrap()
}

#[test]
fn an_algorithm_that_reads_values_of_the_inference_graph_gets_copies() {
    let graph = GraphProto {
        name: "g".into(),
        node: vec![node("MatMul", &["a", "b"], "c"), node("Sigmoid", &["c"], "d"), node("Neg", &["d"], "unread")],
        input: vec![info("a"), info("b")],
        output: vec![info("d"), info("unread")],
        ..Default::default()
    };
    let algorithm = GraphProto {
        name: "train".into(),
        node: vec![node("Add", &["d", "t"], "e")],
        initializer: vec![scalar("t")],
        output: vec![info("e")],
        ..Default::default()
    };
    let update = StringStringEntryProto { key: "t".into(), value: "e".into(), ..Default::default() };
    let info =
        TrainingInfoProto { algorithm: Some(algorithm).into(), update_binding: vec![update], ..Default::default() };
    let m = foreign(graph, vec![info], 8);
    let program = &m.programs["train"];
    let ops: Vec<String> =
        program.graph.topo_ops().iter().map(|&id| program.graph.node(id).op().unwrap().full_name()).collect();
    assert_eq!(ops, ["MatMul", "Sigmoid", "Add"]);
    assert_eq!(program.graph.inputs().len(), 2);
    assert_eq!(m.params["t"].role, Role::State);
    assert!(program.graph.find_param("t").is_some());
    survives(&m);
}

#[test]
fn initializers_that_are_inputs_are_no_inputs() {
    let graph = || GraphProto {
        name: "g".into(),
        node: vec![node("Add", &["x", "w"], "y")],
        input: vec![info("x"), info("w")],
        output: vec![info("y")],
        initializer: vec![scalar("w"), scalar("unread")],
        ..Default::default()
    };
    for ir in [3, 8] {
        let m = foreign(graph(), Vec::new(), ir);
        assert_eq!(m.graph.inputs().len(), 1);
        let w = m.graph.find_value("w").unwrap();
        assert!(matches!(m.graph.node(w.node).kind, NodeKind::Const(_)));
        let bytes = onnx::to_bytes(&survives(&m)).unwrap();
        let inputs = ModelProto::parse_from_bytes(&bytes).unwrap().graph.input.len();
        assert_eq!(inputs, if ir == 3 { 1 } else { 2 }, "from version 4 on it is a default that may be overridden");
    }
}

#[test]
fn initializers_that_are_inputs_are_declared_with_the_type_that_they_have_now() {
    let mut g = Graph::new("g");
    let (x, w) = (g.add_input("x", float(&[1])), g.add_input("w", float(&[3])));
    let y = g.op("Mul", &[x, w], Attributes::new());
    output(&mut g, "y", y);
    let mut proto = ModelProto::parse_from_bytes(&onnx::to_bytes(&Model::new(g)).unwrap()).unwrap();
    let data = TensorProto { dims: vec![3], float_data: vec![1.0, 2.0, 3.0], ..scalar("w") };
    proto.graph.as_mut().unwrap().initializer.push(data);
    let mut m = onnx::from_bytes(Bytes::from(proto.write_to_bytes().unwrap()), None).unwrap();
    m.params["w"].tensor = Tensor::from_vec([2], vec![1f32, 2.0]);
    let w = m.graph.find_param("w").unwrap();
    m.graph.set_ty(w, Some(float(&[2])));
    let proto = ModelProto::parse_from_bytes(&onnx::to_bytes(&m).unwrap()).unwrap();
    let declared = &proto.graph.input[1];
    assert_eq!(declared.name, "w");
    assert_eq!(declared.type_.tensor_type().shape.dim[0].dim_value(), 2);
}

#[test]
fn functions_survive() {
    let mut body = Graph::new("Scale");
    let x = body.add_input("x", float(&[]));
    body.set_ty(x, None);
    let attrs = Attributes(indexmap::IndexMap::from([("value_float".into(), Attribute::Reference("by".into(), 1))]));
    let slot = OutputSlot { name: "by".into(), ty: None };
    let by = body.add_node("", Operator::onnx("Constant", attrs), &[], vec![slot]);
    let y = body.op("Mul", &[x, Value { node: by, slot: 0 }], Attributes::new());
    output(&mut body, "Mul", y);
    let mut m = Model::new(inference("main"));
    m.params.insert("w".into(), Parameter { tensor: Tensor::from_vec([2], vec![1f32, 2.0]), role: Role::Frozen });
    m.functions.push(Function {
        domain: "local".into(),
        name: "Scale".into(),
        overload: String::new(),
        graph: body,
        attributes: vec!["other".into()],
        defaults: Attributes::new().with("by", 2f32),
        opsets: [(String::new(), 20)].into_iter().collect(),
    });
    assert_eq!(survives(&m), m);
}

#[test]
fn public_names_are_kept_whatever_the_values_are_called() {
    let mut m = Model::new(inference("main"));
    m.params.insert("w".into(), Parameter { tensor: Tensor::from_vec([2], vec![1f32, 2.0]), role: Role::Frozen });
    let g = &mut m.graph;
    let (x, h, y) = (g.find_input("x").unwrap(), g.find_value("h").unwrap(), g.find_output("y").unwrap());
    // A pass puts another value behind the name `y`; the old one is still read.
    let new = g.op("Relu", &[y], Attributes::new());
    g.outputs[0].value = new;
    output(g, "same", new);
    output(g, "input", x);
    output(g, "hidden", h);
    let back = survives(&m).graph;
    let names: Vec<&str> = back.outputs.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["y", "same", "input", "hidden"]);
    let maker = |name: &str| back.node(back.find_output(name).unwrap().node).op().unwrap().name.clone();
    assert_eq!(["y", "same", "input", "hidden"].map(maker), ["Relu", "Identity", "Identity", "Mul"]);
}

#[test]
fn our_own_operators_import_their_domain() {
    let mut m = Model::new(Graph::new("g"));
    let x = m.graph.add_input("x", float(&[2]));
    let node = m.graph.add_op("s", Operator::sartor("SumTo", Attributes::new()), &[Some(x)], 1);
    output(&mut m.graph, "s", Value { node, slot: 0 });
    assert_eq!(survives(&m).opsets[sartor_ir::SARTOR_DOMAIN], 1);
}
