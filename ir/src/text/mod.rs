//! The text form: a model as text one can read, diff and edit, and read back. It follows ONNX's textual syntax, with
//! types written at each value and with what ONNX's lacks (parameters with roles, programs, captures).
//!
//! ```text
//! <ir_version: 10, opset_import: ["": 20]>
//! parameters <
//!   frozen float[2, 3] W = {0.5, 1.0, -1.0, 2.0, 0.0, 4.0}
//! >
//! main (float[batch, 2] x) => (float[batch, 3] y) <
//!   float[2, 3] W = param,
//!   int64[1] axes = {0}
//! > {
//!   ["/fc/MatMul"] float[batch, 3] y = MatMul (x, W)
//!   float[3] total = ReduceSum <keepdims = 0> (y, axes) meta ["namespace": "fc"]
//! }
//! program "step" (float[batch, 2] x) => (float[2, 3] "W.next") { … } binds ["W.next": W]
//! ```
//!
//! * A statement is `[node name] type value, … = Operator <attributes> (inputs | captures)`; `""` stands for an input or
//!   output that is left out. Names that are not words (letters, digits, `_`, `.`) or are reserved stand in quotes.
//! * Leaves are statements too: `= param`, `= param(name)`, `= capture 0`, `= input` (an input that is not the first thing in
//!   the graph's order), `= {…}` for constants. Those before the first operator stand between `<` and `>`.
//! * An output whose value has another name is `y = value`.
//! * Tensors are decimal where that is exact, otherwise (and above 64 elements) hexadecimal bytes. With
//!   [`PrintOptions::max_elements`] larger ones are elided, `… 93 elements, fnv 0x1f…`, and such a text is not read back.
//!
//! [`parse`]`(`[`print()`]`(m)) == m` for every model that verifies, if nothing is elided.

mod lex;
mod literal;
mod parse;
mod print;

pub use parse::parse;
pub use print::{PrintOptions, print};

/// Words with a meaning of their own; names that equal one are quoted, and so are the names of types.
const RESERVED: &[&str] = &[
    "param",
    "capture",
    "input",
    "const",
    "hex",
    "meta",
    "doc",
    "seq",
    "optional",
    "program",
    "function",
    "parameters",
    "binds",
    "other",
    "inf",
    "nan",
];

/// Whether a name may stand without quotes.
fn is_word(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let fine = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'.');
    starts && fine && !RESERVED.contains(&name) && crate::DType::from_name(name).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;
    use bytes::Bytes;

    fn everything() -> Model {
        let mut g = Graph::new("main graph");
        g.doc = "a \"doc\"\nline".into();
        g.meta = vec![("k".into(), "v".into())];
        let x = g.add_input("x", Type::tensor(DType::F32, [Dim::symbol("batch"), Dim::Known(2)]));
        let w = g.param("W", Type::tensor(DType::F32, [2i64, 2]));
        let y = g.op("MatMul", &[x, w], Attributes::new());
        g.set_ty(y, Some(Type::tensor(DType::F32, [Dim::parse("2*batch + 1"), Dim::Unknown])));
        g.node_mut(y.node).meta = vec![("namespace".into(), ": a/b".into())];
        g.node_mut(y.node).doc = "doc".into();
        let half = Tensor::from_vec([2], vec![f16::from_f32(0.1), f16::INFINITY]);
        let attrs = Attributes::new()
            .with("f", 1f32)
            .with("tiny", f32::MIN_POSITIVE / 3.0)
            .with("i", -3i64)
            .with("s", "text, \\ \u{e9}")
            .with("none", Attribute::Ints(vec![]))
            .with("floats", vec![0.1f32, -0.0])
            .with("strings", Attribute::Strings(vec![b"a".to_vec(), vec![0xff, 0]]))
            .with("t", half)
            .with("ts", Attribute::Tensors(vec![Tensor::scalar(f32::NAN), Tensor::from_i64s(&[])]))
            .with("ty", Attribute::Type(Type::Sequence(Box::new(Type::unranked(DType::I4)))))
            .with("other", Attribute::Type(Type::Other(Bytes::from_static(&[7, 0]))))
            .with("ref", Attribute::Reference("outer".into(), 7))
            .with("opaque", Attribute::Opaque(Bytes::from_static(&[1, 2])));
        let slots = vec![OutputSlot { name: "odd name".into(), ty: None }, OutputSlot::default()];
        let op = Operator { domain: "my.domain".into(), name: "Odd".into(), overload: "o".into(), attrs };
        let odd = g.add_node("odd", op, &[None, Some(y), None], slots);
        // A late input and a late constant keep their places.
        let late = g.add_input("late", Type::tensor(DType::Bool, [0i64; 0]));
        let c = g.add_const("c", Tensor::from_vec([80], (0..80).map(|i| i as f64).collect::<Vec<_>>()));
        let mut body = Graph::new("then");
        let inner = body.add_capture(0, "odd name", None);
        body.outputs.push(GraphOutput { name: "r".into(), value: inner });
        let branches = Attributes::new().with("then_branch", body.clone()).with("else_branch", body);
        let branch = g.add_op("If", Operator::onnx("If", branches), &[Some(late)], 1);
        g.push_capture(branch, Value { node: odd, slot: 0 });
        g.outputs.push(GraphOutput { name: "out".into(), value: Value { node: branch, slot: 0 } });
        g.outputs.push(GraphOutput { name: "c".into(), value: c });
        let mut m = Model::new(g);
        m.opsets.insert("my.domain".into(), 3);
        let tensor = Tensor::from_vec([2, 2], vec![0.1f32, 1e-30, -1.0, 3.0]);
        m.params.insert("W".into(), Parameter { tensor, role: Role::Trainable });
        let strings =
            Tensor::from_strings(vec![2], vec![Bytes::from_static(b"a\n"), Bytes::from_static(&[0x80])]).unwrap();
        m.params.insert("odd/param".into(), Parameter { tensor: strings, role: Role::State });
        let mut step = Graph::new("step");
        let w = step.param("W", Type::tensor(DType::F32, [2i64, 2]));
        step.outputs.push(GraphOutput { name: "W.next".into(), value: w });
        let bindings = vec![Binding { output: "W.next".into(), param: "W".into() }];
        m.programs.insert("step".into(), Program { graph: step, bindings });
        let mut f = Graph::new("F");
        let a = f.add_input("a", Type::unranked(DType::F32));
        f.set_ty(a, None);
        f.outputs.push(GraphOutput { name: "a".into(), value: a });
        m.functions.push(Function {
            domain: "local".into(),
            name: "F".into(),
            overload: String::new(),
            graph: f,
            attributes: vec!["alpha".into()],
            defaults: Attributes::new().with("beta", 2f32),
            opsets: [(String::new(), 20)].into_iter().collect(),
        });
        m.producer_name = "somebody".into();
        m.meta = vec![("license".into(), "MIT".into())];
        m
    }

    #[test]
    fn parse_of_print_is_the_identity() {
        let model = everything();
        let text = print(&model, &PrintOptions::default());
        let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        // The NaN in the list of tensors is compared by its bits, as all tensors are.
        assert_eq!(back.graph.differences(&model.graph), None, "{text}");
        assert!(back == model, "{text}");
        assert_eq!(print(&back, &PrintOptions::default()), text);
    }

    #[test]
    fn elided_tensors_are_not_read_back() {
        let text = print(&everything(), &PrintOptions { max_elements: 16 });
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains("a tensor of 80 elements is elided"), "{error}\n{text}");
    }

    #[test]
    fn errors_say_where() {
        let at = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(
            at("g (float[2] x) => (y) {\n  y = Relu(z)\n}"),
            "line 2, column 12: there is no value \"z\" before here"
        );
        assert_eq!(at("g (float[2] x) => (y) {\n}"), "line 1, column 20: there is no value \"y\"");
        assert_eq!(at("g (floaty[2] x) => () {}"), "line 1, column 10: expected \",\", found \"[\"");
        assert_eq!(at("g (x) => () { x = Relu(x) }"), "line 1, column 15: another value is called \"x\" too");
        let count = at("g () => () { float[3] c = {1.0, 2.0} }");
        assert_eq!(count, "line 1, column 36: the tensor float[3] needs 3 elements, found 2");
    }
}
