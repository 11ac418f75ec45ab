//! The operators of `com.microsoft` against ONNX Runtime, whose they are: the samples of every row, in single precision, evaluated here
//! and there.

use sartor_ir::ops::{self, OpDef, Sample, contrib};
use sartor_ir::rng::Draw;
use sartor_ir::{DType, Graph, GraphOutput, Model, Tensor, Type, eval, infer, onnx};
use sartor_runtime::data::npz;
use sartor_tests::{Named, distance, peer, succeeds};
use std::path::Path;

/// Samples of each row.
const SAMPLES: u64 = 8;
/// The largest difference relative to the largest number of a result.
const TOLERANCE: f64 = 2e-5;

/// Outputs that ONNX Runtime leaves unset on CPUs: row, slots.
const UNSET: &[(&str, &[u32])] = &[("SkipLayerNormalization", &[1, 2]), ("SkipSimplifiedLayerNormalization", &[1, 2])];

/// A sample as a model whose inputs are the graph's, and their values.
struct Case {
    name: String,
    model: Model,
    feeds: Named,
}

impl Case {
    fn new(def: &OpDef, seed: u64) -> Case {
        let sample: Sample = def.sample.expect("every row has a sample")(&mut Draw::new(seed, def.name));
        let mut graph = Graph::new(def.name);
        let mut feeds = Named::new();
        let inputs = sample.inputs.iter().enumerate().map(|(slot, tensor)| {
            let tensor = single(tensor.as_ref()?);
            let value = graph.add_input(&format!("x{slot}"), Type::of(&tensor));
            feeds.insert(format!("x{slot}"), tensor);
            Some(value)
        });
        let inputs: Vec<_> = inputs.collect();
        let node = graph.add_op("y", sample.op.clone(), &inputs, sample.outputs);
        let unset = UNSET.iter().find(|(name, _)| *name == def.name).map_or(&[][..], |row| row.1);
        for value in graph.node_outputs(node).filter(|v| !unset.contains(&v.slot)) {
            graph.outputs.push(GraphOutput { name: graph.value_name(value).to_string(), value });
        }
        let mut model = Model::new(graph);
        model.opsets.insert(contrib::DOMAIN.to_string(), 1);
        infer::infer_model(&mut model).unwrap_or_else(|e| panic!("{} {seed}: {e}", def.name));
        Case { name: format!("{}-{seed}", def.name), model, feeds }
    }
    fn write(&self, folder: &Path) {
        onnx::save(&self.model, &folder.join(format!("{}.onnx", self.name)), &Default::default()).unwrap();
        let arrays = self.feeds.iter().map(|(name, tensor)| (name.as_str(), tensor));
        npz::write(&folder.join(format!("{}.in.npz", self.name)), arrays).unwrap();
    }
    /// What differs from what the peer has written.
    fn differences(&self, folder: &Path) -> Vec<String> {
        let theirs = npz::read(&folder.join(format!("{}.out.npz", self.name))).unwrap();
        let ours = eval::run(&self.model, &self.feeds).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let outputs = self.model.graph.outputs.iter().zip(&ours);
        let apart = outputs.map(|(output, tensor)| (output, tensor, distance(tensor, &theirs[&output.name])));
        let wrong = apart.filter(|(.., apart)| *apart > TOLERANCE);
        let node = self.model.graph.topo_ops()[0];
        let op = self.model.graph.node(node).op().unwrap();
        wrong
            .map(|(o, y, apart)| {
                let expected = &theirs[&o.name];
                format!("{} {}: {apart:.1e} apart: {y:?}, expected {expected:?}\n    {:?}", self.name, o.name, op.attrs)
            })
            .collect()
    }
}

fn single(tensor: &Tensor) -> Tensor {
    if tensor.dtype() == DType::F64 { tensor.cast(DType::F32).unwrap() } else { tensor.clone() }
}

#[test]
fn samples_give_what_onnx_runtime_computes() {
    let rows = ops::all().filter(|def| def.domain == contrib::DOMAIN || def.name == "SimplifiedLayerNormalization");
    let cases: Vec<Case> = rows.flat_map(|def| (0..SAMPLES).map(move |seed| Case::new(def, seed))).collect();
    let folder = tempfile::tempdir().unwrap();
    cases.iter().for_each(|case| case.write(folder.path()));
    succeeds(peer("ort_run_many.py").arg(folder.path()));
    let wrong: Vec<String> = cases.iter().flat_map(|case| case.differences(folder.path())).collect();
    assert!(wrong.is_empty(), "{} outputs differ:\n{}", wrong.len(), wrong.join("\n"));
}
