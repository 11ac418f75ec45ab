//! Gates: the gated model is the model at first; what is skipped is what is multiplied by 0, also for ONNX Runtime; costs are those counted by
//! hand; gradients are those of finite differences.

use sartor_ir::rng::Draw;
use sartor_ir::{Attributes, DType, Dim, Graph, GraphOutput, Model, Parameter, Role, Tensor, Type, Value, eval, onnx};
use sartor_passes::cola::find_sites;
use sartor_passes::gate::{Record, Usage, cost};
use sartor_passes::{Registry, pipelines, walk};
use sartor_runtime::cpu::simd::{self, Level};
use sartor_runtime::{Key, Params, Session, SessionOptions};
use sartor_tests::{Named, asset, distance, draw_inputs, onnx_runtime, peer, prepared, run_passes, succeeds};
use std::path::Path;

const GATE: &str = "[[pass]]\nname = \"gate\"\n";
const SKIP: &str = "[[pass]]\nname = \"harden\"\n";
const MASKED: &str = "[[pass]]\nname = \"harden\"\nkind = \"masked\"\n";
const STATIC: &str = "[[pass]]\nname = \"harden\"\nkind = \"static\"\n";
const TRIM: &str = "[[pass]]\nname = \"harden\"\nkind = \"trim\"\n";

fn small(model: &Model, batch: usize) -> Named {
    small_of(model, batch, 1000)
}

/// Inputs with token ids below a number.
fn small_of(model: &Model, batch: usize, ids: i64) -> Named {
    draw_inputs(&model.graph, 5, ids, &|name, axis| match (name.contains("ids") || name.contains("mask"), axis) {
        (_, 0) => batch,
        (true, _) => 7,
        _ => 64,
    })
}

fn run(model: &Model, inputs: &Named) -> Named {
    let mut session = Session::new(model, SessionOptions { threads: 2 }).unwrap();
    session.run(&mut Params::of(model), inputs, Key::default()).unwrap()
}

/// Draws the gate networks, so that some gates are shut for some inputs.
fn disturb(model: &mut Model, seed: u64) {
    let mut draw = Draw::new(seed, "gates");
    for (name, param) in model.params.iter_mut().filter(|(name, _)| name.starts_with("gate.")) {
        let (low, high) = match name.rsplit('.').next() {
            Some("bias") => (-0.7, 1.3),
            Some("var") => (0.3, 1.5),
            _ => (-0.6, 0.6),
        };
        param.tensor = draw.tensor(param.tensor.shape(), low, high).cast(DType::F32).unwrap();
    }
}

/// Real models with residual blocks, and how many.
const BLOCKS: &[(&str, usize)] = &[
    ("paraphrase-MiniLM-L3-v2.onnx", 6),
    ("minilm-l6-ts17.onnx", 12),
    ("minilm-l6-dynamo20.onnx", 12),
    ("mobilenetv2-ts17.onnx", 18),
    ("mobilenetv2-dynamo20.onnx", 18),
    ("ppocr_cls.onnx", 12),
    ("resnet20-ts17.onnx", 9),
];

#[test]
fn a_gated_model_is_the_model_at_first() {
    for (i, &(name, blocks)) in BLOCKS.iter().enumerate() {
        let model = prepared(&asset(name), "").unwrap();
        let mut gated = model.clone();
        let options = ["", "rank = 4\n", "binary = true\n", "binary = true\nboost = true\n"][i % 4];
        run_passes(&mut gated, &format!("{GATE}{options}")).unwrap();
        assert_eq!(Record::load(&gated).unwrap().unwrap().blocks.len(), blocks, "{name}");
        let inputs = small(&model, 2);
        let (before, after) = (run(&model, &inputs), run(&gated, &inputs));
        // Other kernels add in another order.
        for (output, tensor) in &before {
            let apart = distance(&after[output], tensor);
            assert!(apart < 2e-6, "{name}: output {output} differs by {apart:e}");
        }
        let inputs = small(&model, 1);
        let [before, after] = [&model, &gated].map(|model| eval::run(model, &inputs).unwrap());
        assert!(before.iter().zip(&after).all(|(a, b)| distance(a, b) == 0.0), "{name}");
    }
}

#[test]
fn channels_outside_of_residual_blocks_are_optional() {
    let mut gated = prepared(&asset("mobilenetv2-ts17.onnx"), "").unwrap();
    run_passes(&mut gated, &format!("{GATE}plain = false\n")).unwrap();
    let record = Record::load(&gated).unwrap().unwrap();
    assert!(record.blocks.iter().all(|block| block.layer.is_some()));
    assert_eq!(record.blocks.len(), 10);
}

/// Gate networks are trained themselves: adapters leave their weights and codes alone.
#[test]
fn gate_networks_get_no_adapters() {
    let gated = prepared(&asset("paraphrase-MiniLM-L3-v2.onnx"), &format!("{GATE}rank = 4\n")).unwrap();
    assert!(Record::load(&gated).unwrap().unwrap().blocks.iter().any(|block| block.code.is_some()));
    let sites = find_sites(&gated.graph, &gated, &["*".to_string()]).unwrap();
    assert!(!sites.is_empty() && sites.iter().all(|site| !site.param.starts_with("gate.")));
}

/// The heads of attentions have a gate each; what asks a projection only for the length of a text does not hinder, and is gone when heads are cut off.
#[test]
fn heads_of_attentions_are_found() {
    let dir = tempfile::tempdir().unwrap();
    for (name, layers, heads, width) in [
        ("minilm-l6-ts17.onnx", 6, 12, 32),
        ("paraphrase-MiniLM-L3-v2.onnx", 3, 12, 32),
        ("minilm-l6-dynamo20.onnx", 6, 12, 32),
        ("bert-base.onnx", 12, 12, 64),
    ] {
        let mut gated = prepared(&asset(name), GATE).unwrap();
        let record = Record::load(&gated).unwrap().unwrap();
        let groups: Vec<_> = record.blocks.iter().flat_map(|b| &b.groups).filter(|g| g.merge.is_some()).collect();
        assert_eq!(groups.len(), layers, "{name}");
        assert!(groups.iter().all(|g| (g.channels, g.width, g.producers.len()) == (heads, width, 3)), "{name}");
        use_gates(&mut gated, 7, 0.0, 1.0);
        let cut = cut_off(&gated, STATIC, dir.path(), name);
        let whole = |model: &Model| model.params.values().map(|param| param.tensor.len()).sum::<usize>();
        assert!((whole(&cut) as f64) < 0.9 * whole(&gated) as f64, "{name}");
    }
}

/// Files of every kind in the zoo: one without blocks is refused with that reason, every other is itself with gates, and skips as it multiplies.
#[test]
fn files_of_other_exporters() {
    let (mut blocks, mut refused) = (Vec::new(), 0);
    let mut paths: Vec<_> = std::fs::read_dir(asset("zoo")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "onnx"));
    paths.sort();
    for (i, path) in paths.iter().enumerate() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let model = prepared(path, "").unwrap();
        let mut gated = model.clone();
        if let Err(error) = run_passes(&mut gated, GATE) {
            assert!(error.to_string().contains("there is nothing to gate"), "{name}: {error}");
            refused += 1;
            continue;
        }
        let record = Record::load(&gated).unwrap().unwrap();
        blocks.push((name.clone(), record.blocks.len(), record.blocks.iter().map(|b| b.groups.len()).sum::<usize>()));
        let inputs = small_of(&model, 3, 90);
        let (before, after) = (run(&model, &inputs), run(&gated, &inputs));
        before.iter().for_each(|(output, tensor)| assert!(distance(&after[output], tensor) < 1e-5, "{name}: {output}"));
        disturb(&mut gated, i as u64);
        let mut hard = gated.clone();
        run_passes(&mut hard, SKIP).unwrap();
        let (before, after) = (run(&gated, &inputs), run(&hard, &inputs));
        for (output, tensor) in &before {
            let apart = distance(&after[output], tensor);
            assert!(apart < 1e-4, "{name}: {output} differs by {apart:e}");
        }
    }
    let found: Vec<_> = blocks.iter().map(|(name, blocks, groups)| (name.as_str(), *blocks, *groups)).collect();
    let encoder = |name| (name, 4, 4);
    let wanted = [
        ("crnn-ts17", 1, 1),
        ("detector-ts17", 2, 2),
        encoder("encoder-cast-int8"),
        encoder("encoder-dynamic-int8"),
        encoder("encoder-ts17"),
        ("prelu-ts13", 1, 1),
        ("with-ort-dynamic-int8", 3, 3),
    ];
    assert_eq!(found, wanted);
    assert_eq!(refused, paths.len() - 7);
}

#[test]
fn what_is_skipped_is_what_was_multiplied_by_zero() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for (i, &(name, _)) in BLOCKS.iter().enumerate() {
        let options = ["", "rank = 4\n", "binary = true\n", "binary = true\nboost = true\n"][i % 4];
        let mut gated = prepared(&asset(name), &format!("{GATE}{options}")).unwrap();
        disturb(&mut gated, i as u64);
        let shut = share_of_shut_gates(&gated, &small(&gated, 3));
        assert!((0.05..0.95).contains(&shut), "{name}: {shut} of the gates are shut");
        let depthwise = format!("{SKIP}depthwise = true\n");
        for (kind, pipeline) in [("skip", SKIP), ("masked", MASKED), ("depthwise", depthwise.as_str())] {
            if kind == "depthwise" && !(name.starts_with("mobilenet") || name.starts_with("ppocr")) {
                continue;
            }
            let mut hard = gated.clone();
            run_passes(&mut hard, pipeline).unwrap();
            let path = folder.join(format!("{kind}-{i}.onnx"));
            onnx::save(&hard, &path, &onnx::SaveOptions::default()).unwrap();
            succeeds(peer("check_onnx.py").arg(&path));
            for batch in [1, 3] {
                compare_with_onnx_runtime(
                    &gated,
                    &path,
                    &small(&gated, batch),
                    &format!("{name}, {kind}, batch {batch}"),
                );
            }
        }
    }
}

#[test]
fn gates_that_are_cut_off_are_those_that_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    for (i, &(name, _)) in BLOCKS.iter().enumerate() {
        let model = prepared(&asset(name), "").unwrap();
        let mut gated = model.clone();
        run_passes(&mut gated, GATE).unwrap();
        let usage = use_gates(&mut gated, i as u64, 0.0, 1.0);
        let cut = cut_off(&gated, STATIC, dir.path(), name);
        let (before, wanted) =
            (cost::Costs::of(&model.graph, model.opset()).unwrap(), remaining_cost(&gated, &model, &usage));
        let found = cost::Costs::of(&cut.graph, cut.opset()).unwrap().total as f64;
        assert!(wanted < 0.9 * before.total as f64, "{name}: {wanted} of {}", before.total);
        assert!((found - wanted).abs() < 1e-3 * wanted, "{name}: {found} operations instead of {wanted}");
    }
}

#[test]
fn gates_that_are_cut_off_are_those_that_most_inputs_shut() {
    let dir = tempfile::tempdir().unwrap();
    for (i, &(name, _)) in BLOCKS.iter().enumerate() {
        let gate = ["channels = false\n", "layers = false\n", ""][i % 3];
        let mut gated = prepared(&asset(name), &format!("{GATE}{gate}")).unwrap();
        use_gates(&mut gated, 30 + i as u64, 0.5, 0.6);
        cut_off(&gated, &format!("{STATIC}below = 0.5\n"), dir.path(), name);
    }
}

/// What never opens is cut off and what is always 1 has no gate any more; the others read their input as before, for this runtime, for ONNX Runtime and for
/// `harden`, and cost what they cost.
#[test]
fn gates_that_do_not_read_their_input_are_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    for (i, &(name, _)) in BLOCKS.iter().enumerate() {
        let options =
            ["", "binary = true\nboost = true\n", "binary = true\nnormalise = \"channel\"\n", "rank = 4\n"][i % 4];
        let mut gated = prepared(&asset(name), &format!("{GATE}{options}")).unwrap();
        disturb(&mut gated, 50 + i as u64);
        still_some(&mut gated, 60 + i as u64);
        let mut trimmed = gated.clone();
        run_passes(&mut trimmed, TRIM).unwrap();
        let gates =
            |model: &Model| Record::load(model).unwrap().unwrap().blocks.iter().flat_map(|b| b.sizes()).sum::<i64>();
        assert!(gates(&trimmed) < gates(&gated), "{name}");
        let path = dir.path().join("trimmed.onnx");
        for (kind, pipeline) in [("trimmed", ""), ("skip", SKIP), ("masked", MASKED)] {
            let mut model = trimmed.clone();
            if !pipeline.is_empty() {
                run_passes(&mut model, pipeline).unwrap();
            }
            onnx::save(&model, &path, &onnx::SaveOptions::default()).unwrap();
            succeeds(peer("check_onnx.py").arg(&path));
            for batch in [1, 3] {
                let (inputs, what) = (small(&gated, batch), format!("{name}, {kind}, batch {batch}"));
                compare_with_onnx_runtime(&gated, &path, &inputs, &what);
                let (before, after) = (run(&gated, &inputs), run(&model, &inputs));
                for (output, tensor) in &before {
                    let apart = distance(&after[output], tensor);
                    assert!(apart < 1e-4, "{what}: output {output} differs by {apart:e}");
                }
            }
        }
        let [before, after] = [&gated, &trimmed].map(|model| operations(model, &small(&gated, 3)));
        let costs = cost::Costs::of(&gated.graph, gated.opset()).unwrap();
        let record = Record::load(&gated).unwrap().unwrap();
        let [there, left] = [&gated, &trimmed].map(|model| walk::nodes_by_name(&model.graph));
        // The additions that ended blocks are gone with them, and what nothing else read (the mask of an attention, say).
        let ends = record.blocks.iter().filter(|block| !left.contains_key(&block.add));
        let ends = costs.sum(&ends.map(|block| there[&block.add]).collect::<Vec<_>>()) as f64 / record.flops as f64;
        let near = |(a, b): (&f64, &f64)| (-2e-6..1e-5).contains(&(a - b - ends));
        assert!(before.iter().zip(&after).all(near), "{name}: {before:?} and {after:?}, ends {ends}");
        let left = cost::Costs::of(&trimmed.graph, trimmed.opset()).unwrap().total as f64;
        assert!(left < 0.97 * costs.total as f64, "{name}: {left} of {} operations are left", costs.total);
        // What is left can be trimmed, frozen and cut as what was there.
        let mut again = trimmed.clone();
        run_passes(&mut again, TRIM).unwrap();
        assert_eq!(Record::load(&again).unwrap(), Record::load(&trimmed).unwrap(), "{name}");
        let [one, other] = [&gated, &trimmed].map(|model| {
            let mut model = model.clone();
            run_passes(&mut model, &format!("{STATIC}below = 0.5\n")).unwrap();
            run(&model, &small(&gated, 3))
        });
        for (output, tensor) in &one {
            let apart = distance(&other[output], tensor);
            assert!(apart < 1e-4, "{name}, cut: output {output} differs by {apart:e}");
        }
    }
}

/// Shuts some gates for every input and opens others, and notes the use of all gates: as if the others were open for half of the inputs, at 0.75.
fn still_some(gated: &mut Model, seed: u64) {
    let mut draw = Draw::new(seed, "still");
    let mut record = Record::load(gated).unwrap().unwrap();
    for block in &mut record.blocks {
        let gates = gated.params[&block.bias].tensor.len();
        let kinds = draw.tensor(&[gates], 0.0, 1.0).to_f64s().unwrap();
        let dead: Vec<bool> = kinds.iter().map(|&x| x < 0.3).collect();
        // A factor keeps a gate from being 1.
        let one: Vec<bool> = kinds.iter().map(|&x| x > 0.6 && block.boost.is_none()).collect();
        let mut set = |name: &String, number: &dyn Fn(usize, f32) -> f32| {
            let tensor = &gated.params[name].tensor;
            let numbers = tensor.to_f64s().unwrap().into_iter().enumerate();
            let numbers: Vec<f32> = numbers.map(|(i, x)| number(i % gates, x as f32)).collect();
            gated.params[name].tensor = Tensor::from_vec(tensor.shape().to_vec(), numbers);
        };
        set(&block.weight, &|gate, x| if dead[gate] || one[gate] { 0.0 } else { x });
        set(&block.bias, &|gate, x| {
            if dead[gate] {
                -1.0
            } else if one[gate] {
                2.0
            } else {
                x
            }
        });
        let number = |values: [f64; 3]| {
            (0..gates)
                .map(|gate| {
                    if dead[gate] {
                        values[0]
                    } else if one[gate] {
                        values[1]
                    } else {
                        values[2]
                    }
                })
                .collect()
        };
        block.usage = Some(Usage { open: number([0.0, 1.0, 0.5]), value: number([0.0, 1.0, 0.75]) });
    }
    record.store(gated).unwrap();
}

/// What each example costs as a share of the model that gates were attached to, without gate networks.
fn operations(model: &Model, inputs: &Named) -> Vec<f64> {
    let record = Record::load(model).unwrap().unwrap();
    let mut asked = model.clone();
    run_passes(&mut asked, "[[pass]]\nname = \"gate-outputs\"\n").unwrap();
    let shares = run(&asked, inputs)["flops"].to_f64s().unwrap();
    shares.into_iter().map(|share| share - record.gate_flops as f64 / record.flops as f64).collect()
}

/// Images with the channels last, as TensorFlow's converter leaves them: convolutions between transpositions, everything else outside of them.
#[test]
fn channels_are_followed_through_transpositions() {
    let dir = tempfile::tempdir().unwrap();
    let mut net = Net::new(12);
    let mut x = net.input(&[6, 5, 4]);
    for _ in 0..2 {
        let h = net.channels_last(x, &[7, 4, 3, 3]);
        let h = net.op("Relu", &[h]);
        let y = net.channels_last(h, &[4, 7, 3, 3]);
        x = net.op("Add", &[x, y]);
    }
    let model = net.finish(x);
    let mut gated = model.clone();
    run_passes(&mut gated, GATE).unwrap();
    let record = Record::load(&gated).unwrap().unwrap();
    let groups: Vec<_> =
        record.blocks.iter().flat_map(|b| &b.groups).map(|g| (g.axis, g.channels, g.members.len())).collect();
    assert_eq!(groups, [(1, 7, 4), (1, 7, 4)], "bias, activation, two transpositions");
    disturb(&mut gated, 5);
    hardens(&gated, dir.path(), "channels last");
    let usage = use_gates(&mut gated, 3, 0.0, 1.0);
    let cut = cut_off(&gated, STATIC, dir.path(), "channels last");
    let (found, wanted) =
        (cost::Costs::of(&cut.graph, cut.opset()).unwrap().total as f64, remaining_cost(&gated, &model, &usage));
    assert!((found - wanted).abs() < 1e-3 * wanted, "{found} operations instead of {wanted}");
}

/// Hardens a model in every way that keeps its gates and compares with ONNX Runtime.
fn hardens(gated: &Model, folder: &Path, what: &str) {
    let depthwise = format!("{SKIP}depthwise = true\n");
    for (kind, pipeline) in [("skip", SKIP), ("masked", MASKED), ("depthwise", depthwise.as_str())] {
        let mut hard = gated.clone();
        run_passes(&mut hard, pipeline).unwrap();
        let path = folder.join(format!("{kind}.onnx"));
        onnx::save(&hard, &path, &onnx::SaveOptions::default()).unwrap();
        succeeds(peer("check_onnx.py").arg(&path));
        for batch in [1, 3] {
            compare_with_onnx_runtime(gated, &path, &small(gated, batch), &format!("{what}, {kind}, batch {batch}"));
        }
    }
}

/// Squeeze-and-excitation by linear layers, with reshapes or with means and new axes: gates of channels multiply what the squeeze reads too, in blocks with and without shortcut.
#[test]
fn channels_that_are_scaled_by_what_they_say_have_gates() {
    let dir = tempfile::tempdir().unwrap();
    for (i, reshapes) in [true, false].into_iter().enumerate() {
        let mut net = Net::new(40 + i as u64);
        let x = net.input(&[4, 5, 6]);
        let y = net.scaled(x, [4, 9, 4], reshapes);
        let x = net.op("Add", &[x, y]);
        let y = net.scaled(x, [4, 11, 6], reshapes);
        let y = net.op("Relu", &[y]);
        let mut gated = net.finish(y);
        run_passes(&mut gated, GATE).unwrap();
        let record = Record::load(&gated).unwrap().unwrap();
        let groups = record.blocks.iter().flat_map(|b| &b.groups).map(|g| (g.channels, g.squeezes.len()));
        assert_eq!(groups.collect::<Vec<_>>(), [(9, 1), (11, 1)]);
        let what = format!("reshapes {reshapes}");
        disturb(&mut gated, 3 + i as u64);
        let shut = share_of_shut_gates(&gated, &small(&gated, 3));
        assert!((0.05..0.95).contains(&shut), "{what}: {shut} of the gates are shut");
        hardens(&gated, dir.path(), &what);
        let mut trimmed = gated.clone();
        still_some(&mut trimmed, 5);
        let whole = run(&trimmed, &small(&trimmed, 3));
        run_passes(&mut trimmed, TRIM).unwrap();
        hardens(&trimmed, dir.path(), &format!("{what}, trimmed"));
        let left = run(&trimmed, &small(&trimmed, 3));
        assert!(distance(&whole["y"], &left["y"]) < 1e-5, "{what}, trimmed");
        use_gates(&mut gated, 3, 0.0, 0.5);
        cut_off(&gated, STATIC, dir.path(), &what);
    }
}

/// Draws how gates were used, their values at least `low`, and sets the gate networks so that those gates that are open for at most `below` of the
/// inputs are always shut and all others have their values.
fn use_gates(gated: &mut Model, seed: u64, below: f64, low: f64) -> Vec<Usage> {
    let mut draw = Draw::new(seed, "usage");
    let mut record = Record::load(gated).unwrap().unwrap();
    for block in &mut record.blocks {
        let [weight, bias] = [&block.weight, &block.bias].map(|name| gated.params[name].tensor.clone());
        let gates = bias.len();
        let open = draw.tensor(&[gates], -0.4, 1.0).to_f64s().unwrap().iter().map(|x| x.max(0.0)).collect::<Vec<_>>();
        let value = draw.tensor(&[gates], low, 1.0).cast(DType::F32).unwrap().to_f64s().unwrap();
        let value: Vec<f64> = value.iter().zip(&open).map(|(v, &o)| if o > 0.0 { *v } else { 0.0 }).collect();
        let constants: Vec<f32> =
            value.iter().zip(&open).map(|(&v, &o)| if o > below { v as f32 } else { 0.0 }).collect();
        gated.params[&block.weight].tensor = Tensor::zeros(DType::F32, weight.shape()).unwrap();
        gated.params[&block.bias].tensor = Tensor::from_vec([gates], constants);
        block.usage = Some(Usage { open, value });
    }
    record.store(gated).unwrap();
    record.blocks.into_iter().filter_map(|block| block.usage).collect()
}

/// Cuts a model and compares what is left with it, also in ONNX Runtime.
fn cut_off(gated: &Model, pipeline: &str, folder: &Path, name: &str) -> Model {
    let mut cut = gated.clone();
    run_passes(&mut cut, pipeline).unwrap();
    assert!(Record::load(&cut).unwrap().is_none(), "{name}");
    let ours = |text: &str| text.starts_with("gate.") || text.starts_with("/gate/");
    assert!(!cut.params.keys().any(|key| ours(key)), "{name}");
    let left: Vec<String> = cut.graph.topo_ops().into_iter().map(|id| cut.graph.node(id).name.clone()).collect();
    assert!(!left.iter().any(|node| ours(node)), "{name}: {left:?}");
    assert!(cut.params.values().all(|param| !param.role.is_variable()), "{name}");
    let path = folder.join("cut.onnx");
    onnx::save(&cut, &path, &onnx::SaveOptions::default()).unwrap();
    succeeds(peer("check_onnx.py").arg(&path));
    for batch in [1, 3] {
        let inputs = small(gated, batch);
        let (before, after) = (run(gated, &inputs), run(&cut, &inputs));
        for (output, tensor) in &before {
            let apart = distance(&after[output], tensor);
            assert!(apart < 1e-4, "{name}, batch {batch}: output {output} differs by {apart:e}");
        }
        compare_with_onnx_runtime(gated, &path, &inputs, &format!("{name}, batch {batch}"));
    }
    cut
}

/// What a model costs without the gates that never opened: every node of a body as many of its operations as channels are left.
fn remaining_cost(gated: &Model, model: &Model, usage: &[Usage]) -> f64 {
    let mut named = model.clone();
    walk::name_anonymous_nodes(&mut named);
    let costs = cost::Costs::of(&named.graph, named.opset()).unwrap();
    let by_name = walk::nodes_by_name(&named.graph);
    let mut left = costs.total as f64;
    for (block, usage) in Record::load(gated).unwrap().unwrap().blocks.iter().zip(usage) {
        let mut open = usage.open.iter();
        let mut share = |n: usize| open.by_ref().take(n).filter(|&&o| o > 0.0).count() as f64 / n as f64;
        let mut shares = vec![block.layer.as_ref().map_or(1.0, |_| share(1))];
        shares.extend(block.groups.iter().map(|group| share(group.channels)));
        for term in costs.terms(&by_name, block) {
            let stays: f64 = shares[0] * term.groups.iter().map(|&group| shares[1 + group]).product::<f64>();
            left -= term.flops as f64 * (1.0 - stays);
        }
        if shares[0] == 0.0 {
            left -= costs.sum(&[by_name[&block.add]]) as f64;
        }
    }
    left
}

/// With normalisation folded in, convolutions skip what gates shut, for every example of a batch by itself.
#[test]
fn the_runtime_skips_what_gates_shut() {
    for (i, gate) in ["", "channels = false\n", "layers = false\n", "binary = true\nboost = true\n"].iter().enumerate()
    {
        let mut model = prepared(&asset("resnet20-ts17.onnx"), &format!("{GATE}{gate}")).unwrap();
        disturb(&mut model, 20 + i as u64);
        pipelines::prepare_inference(&mut model, &Registry::builtin()).unwrap();
        skips(&model, 9, &format!("resnet20, {gate}"));
    }
}

/// Convolutions of single pixels skip too: expansion, depthwise convolution and projection of every inverted residual block.
#[test]
fn the_runtime_skips_what_gates_shut_in_inverted_residuals() {
    for (i, gate) in ["", "channels = false\n", "layers = false\n", "binary = true\nboost = true\n"].iter().enumerate()
    {
        let mut model = prepared(&asset("mobilenetv2-ts17.onnx"), &format!("{GATE}{gate}")).unwrap();
        disturb(&mut model, 30 + i as u64);
        pipelines::prepare_inference(&mut model, &Registry::builtin()).unwrap();
        skips(&model, 30, &format!("mobilenetv2, {gate}"));
    }
}

/// What is cut at 0 place by place, as in a hard swish that is written out, is no gate: products of pixels stay products.
#[test]
fn activations_are_no_gates() {
    let mut net = Net::new(6);
    let x = net.input(&[8, 5, 5]);
    let h = net.conv(x, &[16, 8, 1, 1], 0, 1);
    let three = net.number(3.0);
    let shifted = net.op("Add", &[h, three]);
    let (low, high) = (net.number(0.0), net.number(6.0));
    let cut = net.op("Clip", &[shifted, low, high]);
    let swish = net.op("Mul", &[h, cut]);
    let y = net.conv(swish, &[8, 16, 1, 1], 0, 1);
    let model = net.finish(y);
    let mut session = Session::new(&model, SessionOptions { threads: 1 }).unwrap();
    session.run(&mut Params::of(&model), &small(&model, 2), Key::default()).unwrap();
    assert_eq!(session.report().kernels.get("Conv"), None, "{:?}", session.report());
}

/// A block of attention or of an MLP that the only example shuts is not computed.
#[test]
fn the_runtime_leaves_out_blocks_of_transformers() {
    let mut model = prepared(&asset("minilm-l6-ts17.onnx"), GATE).unwrap();
    disturb(&mut model, 40);
    pipelines::prepare_inference(&mut model, &Registry::builtin()).unwrap();
    for batch in [1, 2] {
        let inputs = small(&model, batch);
        let wanted = eval::run(&model, &inputs).unwrap();
        let mut session = Session::new(&model, SessionOptions { threads: 2 }).unwrap();
        let mut params = Params::of(&model);
        for _ in 0..2 {
            let found = session.run(&mut params, &inputs, Key::default()).unwrap();
            for (output, wanted) in model.graph.outputs.iter().zip(&wanted) {
                let apart = distance(&found[&output.name], wanted);
                assert!(apart < 2e-5, "batch {batch}: differs by {apart:e}");
            }
        }
        let conditional = session.report().conditional;
        assert!(if batch == 1 { conditional >= 12 } else { conditional == 0 }, "batch {batch}: {conditional}");
    }
}

/// Products of tokens with hidden units skip them, example by example: with an activation of several operators between, and with whatever follows the second product.
#[test]
fn the_runtime_skips_units_of_tokens() {
    let files = [
        ("minilm-l6-ts17.onnx", "sequence"),
        ("paraphrase-MiniLM-L3-v2.onnx", "sequence_length"),
        ("minilm-l6-dynamo20.onnx", "sequence"),
    ];
    for (name, length) in files {
        let bind = format!("[[pass]]\nname = \"bind\"\ndims = {{ {length} = 21 }}\n");
        for gate in ["layers = false\nheads = false\n", "heads = false\n", "layers = false\n", "boost = true\n"] {
            let mut model = prepared(&asset(name), &format!("{bind}{GATE}{gate}")).unwrap();
            disturb(&mut model, 50);
            pipelines::prepare_inference(&mut model, &Registry::builtin()).unwrap();
            let blocks = Record::load(&model).unwrap().unwrap().blocks;
            let wide = blocks.iter().filter(|block| block.groups.iter().any(|group| group.width == 1)).count();
            // With gates of whole blocks the last product of an attention is gated too, with those of heads all four projections. Of the last layer only the first token may be read.
            let (layers, heads) = (!gate.contains("layers"), !gate.contains("heads"));
            let attentions = if layers || heads { blocks.len() - wide - 1 } else { 0 };
            let projections = if heads { 4 } else { 1 };
            skips(&model, 2 * (wide - 1) + projections * attentions, &format!("{name}, {gate}"));
            let ([one, chains], [five, more]) = (gated(&model, 1), gated(&model, 5));
            let least = if heads { attentions } else { 0 };
            assert!(chains.min(more) >= least, "{name}, {gate}: {chains} and {more} attentions skip heads");
            // In a batch what an attention projects is skipped with a block too, example by example.
            let projected = if layers && !heads { 3 * attentions } else { 0 };
            assert!(
                five >= one + projected,
                "{name}, {gate}: {five} gated products in a batch, {one} with one example"
            );
        }
    }
}

/// Heads of one and of several panels of the micro-kernels, and of less: then the projections to queries, keys and values compute all of them.
#[test]
fn the_runtime_skips_heads_of_any_width() {
    for (seed, heads, width, level, least) in [
        (1, 4, 32, Level::Avx512, 4),
        (2, 2, 64, Level::Avx512, 4),
        (3, 3, 16, Level::Avx512, 1),
        (4, 3, 16, Level::Avx2, 4),
        (5, 5, 8, Level::Portable, 4),
        (6, 3, 12, Level::Portable, 1),
    ] {
        simd::limit(level);
        for options in ["layers = false\n", "boost = true\n"] {
            let mut net = Net::new(seed);
            let x = net.input(&[11, (heads * width) as i64]);
            let y = net.attention(x, heads, width);
            let mut model = net.finish(y);
            run_passes(&mut model, &format!("{GATE}{options}")).unwrap();
            disturb(&mut model, seed);
            let shut = share_of_shut_gates(&model, &small(&model, 5));
            assert!((0.1..0.9).contains(&shut), "{shut}");
            skips(&model, least, &format!("{heads} heads of {width}, {level:?}, {options}"));
        }
    }
    simd::limit(Level::Avx512);
}

/// Odd numbers of channels, more than a panel of them, and a depthwise convolution between.
#[test]
fn the_runtime_skips_channels_of_depthwise_convolutions() {
    for (seed, channels, level) in [
        (1, 3, Level::Avx512),
        (2, 17, Level::Avx512),
        (3, 40, Level::Avx512),
        (4, 70, Level::Avx512),
        (5, 40, Level::Avx2),
        (6, 21, Level::Portable),
    ] {
        simd::limit(level);
        let mut net = Net::new(seed);
        let x = net.input(&[2, 9, 7]);
        let x = net.conv(x, &[5, 2, 3, 3], 1, 1);
        let h = net.conv(x, &[channels, 5, 3, 3], 1, 1);
        let h = net.op("Relu", &[h]);
        let h = net.conv(h, &[channels, 1, 3, 3], 1, channels as i64);
        let h = net.op("Relu", &[h]);
        let h = net.conv(h, &[5, channels, 3, 3], 1, 1);
        let y = net.op("Add", &[x, h]);
        let mut model = net.finish(y);
        run_passes(&mut model, GATE).unwrap();
        disturb(&mut model, seed);
        skips(&model, 3, &format!("{channels} channels, {level:?}"));
    }
    simd::limit(Level::Avx512);
}

/// How many kernels of a session skip what gates shut.
fn gated_kernels(session: &Session) -> usize {
    let kernels = session.report().kernels;
    let count = |kind: &str| kernels.get(kind).copied().unwrap_or(0);
    // A line buffer is two convolutions.
    count("Gated") + 2 * count("GatedLineBuffer")
}

/// The same of a model, with so many examples, and its chains that skip.
fn gated(model: &Model, batch: usize) -> [usize; 2] {
    let mut session = Session::new(model, SessionOptions { threads: 1 }).unwrap();
    session.run(&mut Params::of(model), &small(model, batch), Key::default()).unwrap();
    [gated_kernels(&session), session.report().kernels.get("GatedChain").copied().unwrap_or(0)]
}

/// Compares runs of one and several examples with the reference; at least so many convolutions are gated, and threads change no bit.
fn skips(model: &Model, least: usize, what: &str) {
    for batch in [1, 5] {
        let inputs = small(model, batch);
        let wanted = eval::run(model, &inputs).unwrap();
        let mut bits = Vec::new();
        for threads in [1, 2, 4] {
            let mut session = Session::new(model, SessionOptions { threads }).unwrap();
            let mut params = Params::of(model);
            session.run(&mut params, &inputs, Key::default()).unwrap();
            let found = session.run(&mut params, &inputs, Key::default()).unwrap();
            let gated = gated_kernels(&session);
            assert!(gated >= least, "{what}, batch {batch}: {gated} gated convolutions");
            let mut all = Vec::new();
            for (output, wanted) in model.graph.outputs.iter().zip(&wanted) {
                let apart = distance(&found[&output.name], wanted);
                assert!(apart < 2e-5, "{what}, batch {batch}: differs by {apart:e}");
                all.extend(found[&output.name].bytes().iter().copied());
            }
            bits.push(all);
        }
        assert!(bits.windows(2).all(|two| two[0] == two[1]), "{what}, batch {batch}: threads change bits");
    }
}

fn compare_with_onnx_runtime(model: &Model, path: &Path, inputs: &Named, what: &str) {
    let (ours, theirs) = (run(model, inputs), onnx_runtime(path, inputs));
    for (output, tensor) in &theirs {
        let apart = distance(&ours[output], tensor);
        assert!(apart < 1e-4, "{what}: ONNX Runtime's \"{output}\" differs by {apart:e}");
    }
}

/// Of the values that `Clip` gives to gates.
fn share_of_shut_gates(model: &Model, inputs: &Named) -> f64 {
    let mut model = model.clone();
    let clips: Vec<Value> = model
        .graph
        .topo_ops()
        .into_iter()
        .filter(|&id| model.graph.node(id).is("Clip") && model.graph.node(id).name.starts_with("/gate/"))
        .map(|node| Value { node, slot: 0 })
        .collect();
    model.graph.outputs =
        clips.iter().enumerate().map(|(i, &value)| GraphOutput { name: format!("g{i}"), value }).collect();
    let gates: Vec<f64> = run(&model, inputs).values().flat_map(|t| t.to_f64s().unwrap()).collect();
    gates.iter().filter(|&&g| g == 0.0).count() as f64 / gates.len() as f64
}

/// A graph in the making, with weights drawn.
struct Net {
    model: Model,
    draw: Draw,
}

impl Net {
    fn new(seed: u64) -> Net {
        Net { model: Model::new(Graph::new("net")), draw: Draw::new(seed, "net") }
    }
    fn input(&mut self, shape: &[i64]) -> Value {
        let dims = std::iter::once(Dim::symbol("batch")).chain(shape.iter().map(|&d| Dim::Known(d)));
        let ty = Type::Tensor { dtype: DType::F32, shape: Some(dims.collect()) };
        self.model.graph.add_input("x", ty)
    }
    fn weight(&mut self, shape: &[usize]) -> Value {
        let tensor = self.draw.tensor(shape, -0.5, 0.5).cast(DType::F32).unwrap();
        let ty = Type::of(&tensor);
        let name = self.model.add_param("w", tensor, Role::Frozen);
        self.model.graph.param(&name, ty)
    }
    fn conv(&mut self, x: Value, shape: &[usize], pad: i64, group: i64) -> Value {
        let w = self.weight(shape);
        let attrs = Attributes::new().with("pads", vec![pad; 4]).with("group", group);
        self.model.graph.op("Conv", &[x, w], attrs)
    }
    /// A convolution of an image with the channels last, and a bias.
    fn channels_last(&mut self, x: Value, shape: &[usize]) -> Value {
        let permuted = |net: &mut Net, x: Value, perm: [i64; 4]| {
            net.model.graph.op("Transpose", &[x], Attributes::new().with("perm", perm.to_vec()))
        };
        let first = permuted(self, x, [0, 3, 1, 2]);
        let y = self.conv(first, shape, shape[2] as i64 / 2, 1);
        let last = permuted(self, y, [0, 2, 3, 1]);
        let bias = self.weight(&[shape[0]]);
        self.op("Add", &[last, bias])
    }
    /// The attention of tokens `[batch, T, heads · width]` to each other, and its addition.
    fn attention(&mut self, x: Value, heads: usize, width: usize) -> Value {
        let channels = heads * width;
        let to = |shape: &[i64]| Tensor::from_i64s(shape);
        let apart = |net: &mut Net, perm: [i64; 4]| {
            let w = net.weight(&[channels, channels]);
            let y = net.op("MatMul", &[x, w]);
            let shape = net.model.graph.add_const("shape", to(&[0, 0, heads as i64, width as i64]));
            let y = net.op("Reshape", &[y, shape]);
            net.model.graph.op("Transpose", &[y], Attributes::new().with("perm", perm.to_vec()))
        };
        let (q, k, v) = (apart(self, [0, 2, 1, 3]), apart(self, [0, 2, 3, 1]), apart(self, [0, 2, 1, 3]));
        let scores = self.op("MatMul", &[q, k]);
        let shares = self.op("Softmax", &[scores]);
        let read = self.op("MatMul", &[shares, v]);
        let read = self.model.graph.op("Transpose", &[read], Attributes::new().with("perm", vec![0i64, 2, 1, 3]));
        let shape = self.model.graph.add_const("shape", to(&[0, 0, channels as i64]));
        let (read, w) = (self.op("Reshape", &[read, shape]), self.weight(&[channels, channels]));
        let y = self.op("MatMul", &[read, w]);
        self.op("Add", &[x, y])
    }
    /// Expansion, depthwise convolution, squeeze-and-excitation by linear layers, projection.
    fn scaled(&mut self, x: Value, [before, hidden, after]: [usize; 3], reshapes: bool) -> Value {
        let h = self.conv(x, &[hidden, before, 1, 1], 0, 1);
        let h = self.conv(h, &[hidden, 1, 3, 3], 1, hidden as i64);
        let h = self.op("Relu", &[h]);
        let few = if reshapes {
            let shape = self.model.graph.add_const("shape", Tensor::from_i64s(&[-1, hidden as i64]));
            let mean = self.op("GlobalAveragePool", &[h]);
            self.op("Reshape", &[mean, shape])
        } else {
            let axes = self.model.graph.add_const("axes", Tensor::from_i64s(&[-2, -1]));
            self.model.graph.op("ReduceMean", &[h, axes], Attributes::new().with("keepdims", 0i64))
        };
        let (squeeze, excite) = (self.weight(&[hidden, 2]), self.weight(&[2, hidden]));
        let few = self.op("MatMul", &[few, squeeze]);
        let few = self.op("Relu", &[few]);
        let factors = self.op("MatMul", &[few, excite]);
        let factors = self.op("Sigmoid", &[factors]);
        let (name, numbers) =
            if reshapes { ("Reshape", vec![-1, hidden as i64, 1, 1]) } else { ("Unsqueeze", vec![2, 3]) };
        let numbers = self.model.graph.add_const("numbers", Tensor::from_i64s(&numbers));
        let factors = self.op(name, &[factors, numbers]);
        let scaled = self.op("Mul", &[factors, h]);
        self.conv(scaled, &[after, hidden, 1, 1], 0, 1)
    }
    fn number(&mut self, number: f32) -> Value {
        self.model.graph.add_const("number", Tensor::scalar(number))
    }
    fn op(&mut self, name: &str, inputs: &[Value]) -> Value {
        self.model.graph.op(name, inputs, Attributes::new())
    }
    fn finish(mut self, y: Value) -> Model {
        self.model.graph.outputs.push(GraphOutput { name: "y".into(), value: y });
        run_passes(&mut self.model, "[[pass]]\nname = \"infer\"\n").unwrap();
        self.model
    }
}

/// The cost that `eval` says for one example, with these biases of the only block's gates.
fn cost(model: Model, bias: &[f32]) -> f64 {
    cost_with("", model, bias)
}

/// With other options of `gate`.
fn cost_with(options: &str, mut model: Model, bias: &[f32]) -> f64 {
    let loss = "[[pass]]\nname = \"loss\"\nkind = \"mse\"\n";
    run_passes(&mut model, &format!("{loss}{GATE}{options}")).unwrap();
    let record = Record::load(&model).unwrap().unwrap();
    assert_eq!(record.blocks.len(), 1);
    let param = model.params.get_mut(&record.blocks[0].bias).unwrap();
    assert_eq!(param.tensor.len(), bias.len());
    param.tensor = Tensor::from_vec([bias.len()], bias.to_vec());
    let program = model.programs["eval"].graph.clone();
    let evaluation = Model { graph: program, programs: Default::default(), ..model };
    let inputs = small(&evaluation, 2);
    let outputs = eval::run(&evaluation, &inputs).unwrap();
    let place = evaluation.graph.outputs.iter().position(|o| o.name == "flops").unwrap();
    let costs = outputs[place].to_f64s().unwrap();
    assert_eq!((costs.len(), costs[0]), (2, costs[1]));
    costs[0] * record.flops as f64
}

#[test]
fn costs_are_those_counted_by_hand() {
    // Basic: 3 × 3 convolutions 2 → 4 → 2 on 5 × 5, one rectifier between, one behind the addition.
    let basic = || {
        let mut net = Net::new(1);
        let x = net.input(&[2, 5, 5]);
        let h = net.conv(x, &[4, 2, 3, 3], 1, 1);
        let h = net.op("Relu", &[h]);
        let h = net.conv(h, &[2, 4, 3, 3], 1, 1);
        let y = net.op("Add", &[x, h]);
        let y = net.op("Relu", &[y]);
        net.finish(y)
    };
    let (first, relu, second, outside) = (2 * 4 * 2 * 9 * 25, 4 * 25, 2 * 2 * 4 * 9 * 25, 2 * 25 + 2 * 25);
    let gates = 2 * 25 + 2 * 2 * 5;
    let whole = (first + relu + second + outside + gates) as f64;
    near(cost(basic(), &[1.0; 5]), whole);
    near(cost(basic(), &[0.2, 1.0, 0.0, -1.0, 0.5]), (first + relu + second) as f64 / 2.0 + (outside + gates) as f64);
    near(cost(basic(), &[0.0, 1.0, 1.0, 1.0, 1.0]), (outside + gates) as f64);

    // Inverted residual: 1 × 1 to 6 channels, depthwise 3 × 3, 1 × 1 back, on 4 × 4.
    let inverted = || {
        let mut net = Net::new(2);
        let x = net.input(&[3, 4, 4]);
        let h = net.conv(x, &[6, 3, 1, 1], 0, 1);
        let h = net.op("Relu", &[h]);
        let h = net.conv(h, &[6, 1, 3, 3], 1, 6);
        let h = net.op("Relu", &[h]);
        let h = net.conv(h, &[3, 6, 1, 1], 0, 1);
        let y = net.op("Add", &[h, x]);
        net.finish(y)
    };
    let body = 2 * 6 * 3 * 16 + 6 * 16 + 2 * 6 * 9 * 16 + 6 * 16 + 2 * 3 * 6 * 16;
    let rest = 3 * 16 + (3 * 16 + 2 * 3 * 7);
    near(cost(inverted(), &[1.0; 7]), (body + rest) as f64);
    near(cost(inverted(), &[1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]), body as f64 / 3.0 + rest as f64);

    // By a code of one number: 3 features, 7 gates.
    near(cost_with("rank = 1\n", inverted(), &[1.0; 7]), (body + 3 * 16 + (3 * 16 + 2 * 3 + 2 * 7)) as f64);
    // With factors: another product of 3 features and 7 gates, and four operations per gate.
    near(cost_with("boost = true\n", inverted(), &[1.0; 7]), (body + rest + 2 * 3 * 7 + 4 * 7) as f64);

    // Bottleneck: two groups, the 3 × 3 convolution between them costs the product of their shares.
    let bottleneck = || {
        let mut net = Net::new(3);
        let x = net.input(&[4, 3, 3]);
        let h = net.conv(x, &[2, 4, 1, 1], 0, 1);
        let h = net.conv(h, &[2, 2, 3, 3], 1, 1);
        let h = net.conv(h, &[4, 2, 1, 1], 0, 1);
        let y = net.op("Add", &[h, x]);
        net.finish(y)
    };
    let (outer, inner) = (2 * 2 * 4 * 9, 2 * 2 * 2 * 9 * 9);
    let rest = 4 * 9 + (4 * 9 + 2 * 4 * 5);
    near(cost(bottleneck(), &[1.0; 5]), (2 * outer + inner + rest) as f64);
    let half = cost(bottleneck(), &[1.0, 1.0, 0.0, 0.0, 1.0]);
    near(half, outer as f64 / 2.0 + inner as f64 / 4.0 + outer as f64 / 2.0 + rest as f64);

    // Attention: two heads of two channels, three tokens of four; all of a head but its softmax (4 operations per number) is products.
    let attention = || {
        let mut net = Net::new(5);
        let x = net.input(&[3, 4]);
        let y = net.attention(x, 2, 2);
        net.finish(y)
    };
    let projections = 4 * 2 * 3 * 4 * 4;
    let products = 2 * (2 * 2 * 3 * 2 * 3);
    let rest = 3 * 4 + (3 * 4 + 2 * 4 * 3);
    let body = projections + products + 4 * 2 * 3 * 3;
    near(cost(attention(), &[1.0; 3]), (body + rest) as f64);
    near(cost(attention(), &[1.0, 0.0, 1.0]), body as f64 / 2.0 + rest as f64);
    near(cost_with("heads = false\n", attention(), &[1.0]), (body + 3 * 4 + (3 * 4 + 2 * 4)) as f64);
}

#[track_caller]
fn near(found: f64, wanted: f64) {
    assert!((found - wanted).abs() <= 1e-5 * wanted.abs(), "{found} instead of {wanted}");
}

/// With λ and the leak 0 the gates' gradients are those of the loss: the cost is counted hard, and its own gradient is an estimate.
#[test]
fn gradients_through_gates_are_those_of_finite_differences() {
    let block = |net: &mut Net| {
        let x = net.input(&[2, 3, 3]);
        let h = net.conv(x, &[4, 2, 3, 3], 1, 1);
        let h = net.op("Tanh", &[h]);
        let h = net.conv(h, &[2, 4, 3, 3], 1, 1);
        net.op("Add", &[x, h])
    };
    gradients_through_gates(block, &[3, 2, 3, 3], "", 2);
    gradients_through_gates(block, &[3, 2, 3, 3], "rank = 1\n", 3);
    gradients_through_gates(block, &[3, 2, 3, 3], "normalise = \"channel\"\nrank = 1\n", 3);
    gradients_through_gates(block, &[3, 2, 3, 3], "boost = true\n", 3);
    let heads = |net: &mut Net| {
        let x = net.input(&[3, 4]);
        net.attention(x, 2, 2)
    };
    gradients_through_gates(heads, &[2, 3, 4], "", 2);
}

/// Of a network that reads inputs of this shape, with these options and so many parameters of gates.
fn gradients_through_gates(build: impl Fn(&mut Net) -> Value, shape: &[usize], options: &str, params: usize) {
    let mut net = Net::new(4);
    let y = build(&mut net);
    let mut model = net.finish(y);
    widen(&mut model);
    let gate = format!("{GATE}lambda = 0\nleak = 0\n{options}");
    let passes = format!("[[pass]]\nname = \"loss\"\nkind = \"mse\"\n{gate}[[pass]]\nname = \"autodiff\"\n");
    run_passes(&mut model, &passes).unwrap();
    let mut draw = Draw::new(8, "gates");
    let trainable = |param: &Parameter| param.role == Role::Trainable;
    for (name, param) in model.params.iter_mut().filter(|(name, p)| name.starts_with("gate.") && trainable(p)) {
        let (low, high) = if name.ends_with("bias") { (0.3, 0.7) } else { (-0.2, 0.2) };
        param.tensor = draw.tensor(param.tensor.shape(), low, high);
    }
    let step = Model { graph: model.programs["step"].graph.clone(), programs: Default::default(), ..model };
    let mut inputs = Named::new();
    for value in step.graph.inputs() {
        let name = step.graph.value_name(value).to_string();
        let tensor = match name.as_str() {
            "progress" => Tensor::scalar(0.5f32),
            _ => draw.tensor(shape, -1.0, 1.0),
        };
        inputs.insert(name, tensor);
    }
    let output = |model: &Model, name: &str| {
        let place = model.graph.outputs.iter().position(|o| o.name == name).unwrap();
        eval::run(model, &inputs).unwrap()[place].to_f64s().unwrap()
    };
    let gates = step.params.iter().filter(|(_, param)| trainable(param)).map(|(name, _)| name.clone());
    let gates: Vec<String> = gates.filter(|name| name.starts_with("gate.")).collect();
    assert_eq!(gates.len(), params);
    for name in gates {
        let found = output(&step, &format!("grad:{name}"));
        let values = step.params[&name].tensor.to_f64s().unwrap();
        for i in 0..values.len() {
            let loss = |by: f64| {
                let mut moved = step.clone();
                let mut values = values.clone();
                values[i] += by;
                let shape = step.params[&name].tensor.shape().to_vec();
                moved.params.get_mut(&name).unwrap().tensor = Tensor::from_vec(shape, values);
                output(&moved, "loss")[0]
            };
            let slope = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            assert!(
                (found[i] - slope).abs() < 1e-7 * (1.0 + slope.abs()),
                "{name}[{i}]: {} instead of {slope}",
                found[i]
            );
        }
    }
}

/// Gates that have settled get no gradient, those of a file neither; before, it is what it is without.
#[test]
fn gates_settle() {
    let mut net = Net::new(15);
    let x = net.input(&[9, 4, 4]);
    let h = net.conv(x, &[4, 9, 3, 3], 1, 1);
    let h = net.conv(h, &[9, 4, 3, 3], 1, 1);
    let y = net.op("Add", &[x, h]);
    let mut model = net.finish(y);
    model.params.values_mut().for_each(|param| param.role = Role::Trainable);
    let passes = |gate: &str| {
        format!("[[pass]]\nname = \"loss\"\nkind = \"mse\"\n{GATE}target = 0.4\n{gate}[[pass]]\nname = \"autodiff\"\n")
    };
    let attached = |options: &str| {
        let mut model = model.clone();
        run_passes(&mut model, &passes(options)).unwrap();
        disturb(&mut model, 6);
        model
    };
    let (first, settling) = (attached("rank = 2\n"), attached("rank = 2\nsettle = 0.5\n"));
    let mut again = first.clone();
    again.programs.clear();
    run_passes(&mut again, &passes("settle = 0.5\n")).unwrap();
    let step = |model: &Model, progress: f32| {
        let graph = model.programs["step"].graph.clone();
        let mut inputs = small(&Model { graph: graph.clone(), programs: Default::default(), ..model.clone() }, 3);
        inputs.insert("progress".into(), Tensor::scalar(progress));
        run(&Model { graph, programs: Default::default(), ..model.clone() }, &inputs)
    };
    for progress in [0.4, 0.5] {
        let [wanted, found, more] = [&first, &settling, &again].map(|model| step(model, progress));
        for (name, tensor) in &wanted {
            let gate = name.starts_with("grad:gate.");
            let zero = Tensor::zeros(DType::F32, tensor.shape()).unwrap();
            let wanted = if gate && progress >= 0.5 { &zero } else { tensor };
            assert!(!gate || distance(tensor, &zero) > 1e-6, "{name}");
            assert!(distance(&found[name], wanted) < 1e-6, "{name} at {progress}");
            assert!(distance(&more[name], wanted) < 1e-6, "{name} at {progress}, of a file");
        }
    }
    let early = run_passes(&mut model.clone(), &passes("settle = 0.4\n")).unwrap_err();
    assert!(early.to_string().contains("until the target has fallen"), "{early}");
}

/// Training that goes on with the gates of a file has the steps of the training that attached them, and the same evaluation.
#[test]
fn gates_of_a_file_are_trained_on() {
    trained_on("");
    trained_on("normalise = \"channel\"\n");
    trained_on("rank = 2\n");
    trained_on("binary = true\n");
    trained_on("nested = true\n");
    trained_on("binary = true\nboost = true\n");
}

/// Gates of a file get factors: 1 at first, then twice the sigmoid of what a network of their own reads, in every graph. What they cost grows by that network.
#[test]
fn gates_of_a_file_are_boosted() {
    for options in ["", "binary = true\nrank = 2\n"] {
        let mut plain = one_block();
        run_passes(&mut plain, &format!("{GATE}normalise = \"none\"\n{options}")).unwrap();
        disturb(&mut plain, 13);
        let passes = format!("[[pass]]\nname = \"loss\"\n{GATE}boost = true\n[[pass]]\nname = \"autodiff\"\n");
        let mut model = plain.clone();
        run_passes(&mut model, &passes).unwrap();
        let inputs = small(&plain, 3);
        assert_eq!(run(&model, &inputs), run(&plain, &inputs), "{options}");
        let again = Record::load(&model).unwrap().unwrap();
        let boost = again.blocks[0].boost.clone().unwrap();
        let mut still = plain.clone();
        still.params.values_mut().for_each(|param| param.role = Role::Frozen);
        for _ in 0..2 {
            run_passes(&mut still, "[[pass]]\nname = \"gate\"\nboost = true\n").unwrap();
            let trained = still.params.iter().filter(|(_, param)| param.role == Role::Trainable);
            assert_eq!(trained.map(|(name, _)| name).collect::<Vec<_>>(), [&boost.weight], "{options}");
            assert_eq!(Record::load(&still).unwrap().unwrap(), again);
        }
        assert_eq!(model.params[&boost.weight].role, Role::Trainable);
        let shape = model.params[&boost.weight].tensor.shape().to_vec();
        let drawn = Draw::new(14, "factors").tensor(&shape, -2.0, 2.0);
        model.params[&boost.weight].tensor = drawn.cast(DType::F32).unwrap();
        let asked = |model: &Model| {
            let mut model = model.clone();
            model.programs.clear();
            run_passes(&mut model, "[[pass]]\nname = \"gate-outputs\"\n").unwrap();
            run(&model, &inputs)
        };
        let (before, after) = (asked(&plain), asked(&model));
        let numbers = |tensor: &Tensor| tensor.to_f64s().unwrap();
        let more = (again.gate_flops - Record::load(&plain).unwrap().unwrap().gate_flops) as f64 / again.flops as f64;
        for (a, b) in numbers(&before["flops"]).iter().zip(numbers(&after["flops"])) {
            assert!((a + more - b).abs() < 1e-6, "{options}: {b} instead of {a} and {more}");
        }
        let x = numbers(inputs.values().next().unwrap());
        let z = |example: usize, channel: usize| x[(example * 9 + channel) * 16..][..16].iter().sum::<f64>() / 16.0;
        let v = numbers(&model.params[&boost.weight].tensor);
        let (old, new) = (numbers(&before["gates"]), numbers(&after["gates"]));
        let gates = shape[1];
        for (i, (old, new)) in old.iter().zip(&new).enumerate() {
            let score: f64 = (0..9).map(|c| z(i / gates, c) * v[c * gates + i % gates]).sum();
            let wanted = old * 2.0 / (1.0 + (-score).exp());
            assert!((new - wanted).abs() < 1e-5, "{options}: gate {i} is {new} instead of {wanted}");
        }
        assert!(old != new && new.contains(&0.0) && new.iter().any(|&g| g > 1.0));
        // Steps read the same factors, and train them.
        let step = Model { graph: model.programs["step"].graph.clone(), programs: Default::default(), ..model.clone() };
        assert!(step.graph.find_param(&boost.weight).is_some());
        assert!(step.graph.outputs.iter().any(|output| output.name == format!("grad:{}", boost.weight)));
    }
}

/// Two residual blocks, and the mean of each of nine channels.
fn two_blocks() -> Model {
    let mut net = Net::new(14);
    let x = net.input(&[9, 4, 4]);
    let mut y = x;
    for _ in 0..2 {
        let h = net.conv(y, &[4, 9, 3, 3], 1, 1);
        let h = net.op("Relu", &[h]);
        let h = net.conv(h, &[9, 4, 3, 3], 1, 1);
        y = net.op("Add", &[y, h]);
    }
    let y = net.op("GlobalAveragePool", &[y]);
    let y = net.op("Flatten", &[y]);
    net.finish(y)
}

/// Training goes on with gates that are left: the loss of a step and the gradients of what was not cut are those of the model that was trimmed, and roles stay.
#[test]
fn trimmed_gates_are_trained_on() {
    for options in ["", "binary = true\nnormalise = \"channel\"\n"] {
        let mut gated = two_blocks();
        run_passes(&mut gated, &format!("{GATE}{options}")).unwrap();
        disturb(&mut gated, 4);
        still_some(&mut gated, 8);
        gated
            .params
            .values_mut()
            .filter(|param| param.role == Role::Frozen)
            .for_each(|param| param.role = Role::Trainable);
        let mut trimmed = gated.clone();
        run_passes(&mut trimmed, TRIM).unwrap();
        let roles = |model: &Model| model.params.iter().map(|(n, p)| (n.clone(), p.role)).collect::<Vec<_>>();
        let (before, after) = (roles(&gated), roles(&trimmed));
        assert!(after.iter().all(|param| before.contains(param)), "{after:?} of {before:?}");
        let mut inputs = small(&gated, 3);
        inputs.insert("label".into(), Tensor::from_vec([3], vec![2i64, 0, 1]));
        inputs.insert("progress".into(), Tensor::scalar(0.4f32));
        let passes = format!("[[pass]]\nname = \"loss\"\n{GATE}anneal = 0.0\n[[pass]]\nname = \"autodiff\"\n");
        let [one, other] = [&gated, &trimmed].map(|model| {
            let mut model = model.clone();
            run_passes(&mut model, &passes).unwrap();
            let graph = model.programs["step"].graph.clone();
            run(&Model { graph, programs: Default::default(), ..model }, &inputs)
        });
        let weights = other.keys().filter(|name| name.starts_with("grad:") && !name.contains("gate."));
        let compared: Vec<&str> = weights.map(String::as_str).chain(["task_loss"]).collect();
        assert!(compared.len() >= 4, "{compared:?}");
        // What was cut off had no gradient.
        let size = |tensor: &Tensor| tensor.to_f64s().unwrap().iter().map(|x| x * x).sum::<f64>();
        for output in compared {
            let (before, after) = (size(&one[output]), size(&other[output]));
            assert!((before - after).abs() < 1e-5 * before && before > 0.0, "{options}: {output} {before}, {after}");
        }
    }
}

fn trained_on(options: &str) {
    let model = two_blocks();
    let passes = |gate: &str| {
        format!("[[pass]]\nname = \"loss\"\n{GATE}target = 0.4\nspread = 0.5\n{gate}[[pass]]\nname = \"autodiff\"\n")
    };
    let mut first = model.clone();
    run_passes(&mut first, &passes(options)).unwrap();
    disturb(&mut first, 4);
    let mut again = first.clone();
    again.programs.clear();
    again.params.values_mut().for_each(|param| param.role = Role::Frozen);
    let path = tempfile::tempdir().unwrap().keep().join("gated.onnx");
    onnx::save(&again, &path, &onnx::SaveOptions::default()).unwrap();
    // Without `[gate]` gates are not trained, but what they read is followed.
    let beside = prepared(&path, "[[pass]]\nname = \"loss\"\n[[pass]]\nname = \"train-mode\"\n").unwrap();
    let again = prepared(&path, &passes("")).unwrap();
    assert!(run_passes(&mut first.clone(), "[[pass]]\nname = \"gate\"\nlayers = false\n").is_err());
    let mut inputs = small(&first, 3);
    inputs.insert("label".into(), Tensor::from_vec([3], vec![2i64, 0, 1]));
    inputs.insert("progress".into(), Tensor::scalar(0.4f32));
    for name in ["step", "eval"] {
        let [one, other, beside] = [&first, &again, &beside].map(|model| {
            let graph = model.programs[name].graph.clone();
            let wanted: Named = graph
                .inputs()
                .map(|v| (graph.value_name(v).to_string(), inputs[graph.value_name(v)].clone()))
                .collect();
            let program = Model { graph, programs: Default::default(), ..model.clone() };
            run(&program, &wanted)
        });
        assert_eq!(one.len(), other.len());
        assert!(one.len() >= 4, "{:?}", one.keys());
        for (output, tensor) in &one {
            let apart = distance(&other[output], tensor);
            assert!(apart < 1e-6, "{name}: {output} differs by {apart:e}");
        }
        let gathered: Vec<&String> = one.keys().filter(|name| name.starts_with("next:")).collect();
        assert_eq!(gathered.len(), if name == "step" && options.contains("channel") { 4 } else { 0 });
        for output in gathered {
            let apart = distance(&beside[output], &one[output]);
            assert!(apart < 1e-6, "{output} differs by {apart:e} in a step that does not train gates");
        }
    }
}

/// Statistics of what gates read move towards those of a batch in every step, and gates read what is left of it.
#[test]
fn statistics_of_channels_are_gathered() {
    let mut net = Net::new(21);
    let x = net.input(&[2, 1, 2]);
    let h = net.conv(x, &[3, 2, 1, 1], 0, 1);
    let h = net.conv(h, &[2, 3, 1, 1], 0, 1);
    let y = net.op("Add", &[x, h]);
    let mut model = net.finish(y);
    let gate = format!("{GATE}normalise = \"channel\"\nlength = 3\n");
    let calibrate = "[[pass]]\nname = \"calibrate\"\n";
    run_passes(&mut model, &format!("[[pass]]\nname = \"loss\"\nkind = \"mse\"\n{gate}{calibrate}")).unwrap();
    let record = Record::load(&model).unwrap().unwrap();
    let [mean, var] = record.blocks[0].statistics.clone().unwrap();
    assert!([&mean, &var].iter().all(|name| model.params[*name].role == Role::State));
    model.params.get_mut(&mean).unwrap().tensor = Tensor::from_vec([2], vec![1f32, -1.0]);
    model.params.get_mut(&var).unwrap().tensor = Tensor::from_vec([2], vec![4f32, 0.25]);
    // Gates are 0.5 and the first feature, or the second, times 0.1.
    let first = [0.1f32, 0.0, 0.1, 0.0].into_iter().chain([0.0, 0.1, 0.0, 0.1]).collect::<Vec<_>>();
    model.params.get_mut(&record.blocks[0].weight).unwrap().tensor = Tensor::from_vec([2, 4], first);
    model.params.get_mut(&record.blocks[0].bias).unwrap().tensor = Tensor::from_vec([4], vec![0.5f32; 4]);
    // Means of the channels: 2 and 0 for one example, 4 and -6, which is far from any other, for the other.
    let x = Tensor::from_vec([2, 2, 1, 2], vec![1f32, 3.0, -1.0, 1.0, 4.0, 4.0, -6.0, -6.0]);
    let inputs = |graph: &Graph| -> Named {
        let tensor = |name: &str| match name {
            "progress" => Tensor::scalar(0f32),
            "share" => Tensor::scalar(0.25f32),
            _ => x.clone(),
        };
        graph.inputs().map(|v| graph.value_name(v).to_string()).map(|name| (name.clone(), tensor(&name))).collect()
    };
    let program = |name: &str| {
        let graph = model.programs[name].graph.clone();
        let inputs = inputs(&graph);
        let program = Model { graph, programs: Default::default(), ..model.clone() };
        run(&program, &inputs)
    };
    let step = program("step");
    let wanted: [(_, [f64; 2]); 2] =
        [(&mean, [0.95 + 0.05 * 3.0, -0.95 - 0.15]), (&var, [3.8 + 0.05 * 5.0, 0.2375 + 0.05 * 13.0])];
    for (name, wanted) in wanted {
        let found = step[&format!("next:{name}")].to_f64s().unwrap();
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{name}: {found:?} instead of {wanted:?}");
    }
    // At averages they are gathered anew, by a share of every batch.
    let calibrated = program("calibrate");
    let wanted = [(&mean, [1.0 + 0.25 * 2.0, -1.0 - 0.25 * 2.0]), (&var, [4.0 + 0.25, 0.25 + 0.25 * 12.75])];
    assert_eq!(calibrated.len(), 2);
    for (name, wanted) in wanted {
        let found = calibrated[&format!("next:{name}")].to_f64s().unwrap();
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{name}: {found:?} instead of {wanted:?}");
    }
    let gates = program("eval")["gates"].to_f64s().unwrap();
    let feature = |x: f64, mean: f64, var: f64| ((x - mean) / var.sqrt()).clamp(-4.0, 4.0) * 3.0 / 2f64.sqrt();
    for (example, means) in [[2.0, 0.0], [4.0, -6.0]].iter().enumerate() {
        let features = [feature(means[0], 1.0, 4.0), feature(means[1], -1.0, 0.25)];
        for gate in 0..4 {
            let wanted = (0.5 + 0.1 * features[gate % 2]).clamp(0.0, 1.0);
            let found = gates[example * 4 + gate];
            assert!((found - wanted).abs() < 1e-4, "example {example}, gate {gate}: {found} instead of {wanted}");
        }
    }
}

/// A residual block of two convolutions, and the mean of each of its nine channels.
fn one_block() -> Model {
    let mut net = Net::new(9);
    let x = net.input(&[9, 4, 4]);
    let h = net.conv(x, &[4, 9, 3, 3], 1, 1);
    let h = net.op("Relu", &[h]);
    let h = net.conv(h, &[9, 4, 3, 3], 1, 1);
    let y = net.op("Add", &[x, h]);
    let y = net.op("GlobalAveragePool", &[y]);
    let y = net.op("Flatten", &[y]);
    net.finish(y)
}

/// With `spread` what the example with the smaller loss costs is dearer: the loss changes by the mean of difficulty and cost, and the gradient of the weights is made
/// of the examples' features in that proportion.
#[test]
fn easy_examples_are_dearer() {
    const SPREAD: f64 = 8.0;
    let steps = ["lambda = 0".to_string(), "lambda = 30".to_string(), format!("lambda = 30\nspread = {SPREAD}")].map(
        |options| {
            let mut model = one_block();
            let gate = format!("[[pass]]\nname = \"gate\"\nchannels = false\ntarget = 0.3\n{options}\n");
            run_passes(&mut model, &format!("[[pass]]\nname = \"loss\"\n{gate}[[pass]]\nname = \"autodiff\"\n"))
                .unwrap();
            Model { graph: model.programs["step"].graph.clone(), programs: Default::default(), ..model }
        },
    );
    let mut draw = Draw::new(9, "examples");
    let x = draw.tensor(&[2, 9, 4, 4], -1.0, 1.0).cast(DType::F32).unwrap();
    let numbers = x.to_f64s().unwrap();
    let features = |n: usize| -> Vec<f64> {
        let means: Vec<f64> = (0..9).map(|c| numbers[(n * 9 + c) * 16..][..16].iter().sum::<f64>() / 16.0).collect();
        let mean = means.iter().sum::<f64>() / 9.0;
        let deviation = (means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / 9.0 + 1e-5).sqrt();
        means.iter().map(|m| (m - mean) / deviation).collect()
    };
    for labels in [[0i64, 1], [2, 0], [1, 2]] {
        let inputs = Named::from([
            ("x".to_string(), x.clone()),
            ("label".to_string(), Tensor::from_vec([2], labels.to_vec())),
            ("progress".to_string(), Tensor::scalar(1f32)),
        ]);
        let outputs = steps.each_ref().map(|step| {
            let outputs = eval::run(step, &inputs).unwrap();
            let planned = run(step, &inputs);
            let named = |name: &str| {
                let place = step.graph.outputs.iter().position(|o| o.name.contains(name)).unwrap();
                assert!(distance(&planned[&step.graph.outputs[place].name], &outputs[place]) < 1e-5);
                outputs[place].to_f64s().unwrap()
            };
            (named("loss")[0], named("task_loss")[0], named("flops")[0], named("weight"))
        });
        let [(plain, _, cost, still), (_, task, _, both), (easy, .., one)] = &outputs;
        // Which of the two has the smaller loss: by the losses with one label exchanged for the other's example.
        let alone = |n: usize| {
            let mut first = inputs.clone();
            let ignored = labels.iter().enumerate().map(|(i, &l)| if i == n { l } else { -100 }).collect::<Vec<_>>();
            first.insert("label".into(), Tensor::from_vec([2], ignored));
            let place = steps[0].graph.outputs.iter().position(|o| o.name == "task_loss").unwrap();
            eval::run(&steps[0], &first).unwrap()[place].to_f64s().unwrap()[0]
        };
        assert!((alone(0) + alone(1) - 2.0 * task).abs() < 1e-5);
        // Of two examples, one is easier than half of the batch, the other harder than half.
        let below = if alone(0) < alone(1) { [-0.5, 0.5] } else { [0.5, -0.5] };
        // Both cost the same as yet.
        let price = below.map(|difficulty| 2.0 * 30.0 * (cost - 0.3) - SPREAD * difficulty);
        near(easy - plain, 30.0 * (cost - 0.3).powi(2) - SPREAD * cost * (below[0] + below[1]) / 2.0);
        let pressure = |of: &[f64]| -> Vec<f64> { of.iter().zip(still).map(|(a, b)| a - b).collect() };
        let (both, one) = (pressure(both), pressure(one));
        let means = [features(0), features(1)];
        let scale = both[0] / (2.0 * 30.0 * (cost - 0.3) * (means[0][0] + means[1][0]));
        for c in 0..9 {
            let wanted = scale * (price[0] * means[0][c] + price[1] * means[1][c]);
            assert!((one[c] - wanted).abs() < 1e-3 * scale.abs(), "{labels:?}: {one:?}, {wanted} in place {c}");
        }
    }
}

/// Of a loss that compares with labels and with a teacher, examples have losses too: at first the teacher agrees with all of them, and what makes them easy or hard are the labels.
#[test]
fn examples_beside_a_teacher_are_easy_or_hard() {
    let weights = |loss: &str, spread: f64| {
        let mut model = one_block();
        let gate = format!("[[pass]]\nname = \"gate\"\nchannels = false\nlambda = 0\nspread = {spread:?}\n");
        run_passes(&mut model, &format!("[[pass]]\nname = \"loss\"\n{loss}{gate}[[pass]]\nname = \"autodiff\"\n"))
            .unwrap();
        let step = Model { graph: model.programs["step"].graph.clone(), programs: Default::default(), ..model };
        let mut inputs = small(&step, 3);
        inputs.insert("label".into(), Tensor::from_vec([3], vec![2i64, 0, 1]));
        inputs.insert("progress".into(), Tensor::scalar(1f32));
        let place = step.graph.outputs.iter().position(|o| o.name.contains("weight")).unwrap();
        eval::run(&step, &inputs).unwrap()[place].to_f64s().unwrap()
    };
    let moved = |loss: &str| -> Vec<f64> {
        weights(loss, 8.0).iter().zip(weights(loss, 0.0)).map(|(with, without)| with - without).collect()
    };
    let (alone, beside) = (moved(""), moved("teacher = true\nlabels = 0.5\n"));
    assert!(alone.iter().any(|x| x.abs() > 1e-3), "{alone:?}");
    alone.iter().zip(&beside).for_each(|(&a, &b)| near(a, b));
}

/// The same model in `f64`.
fn widen(model: &mut Model) {
    for param in model.params.values_mut() {
        param.tensor = param.tensor.cast(DType::F64).unwrap();
    }
    let wide = |ty: &Type| match ty {
        Type::Tensor { dtype: DType::F32, shape } => Type::Tensor { dtype: DType::F64, shape: shape.clone() },
        other => other.clone(),
    };
    for id in model.graph.node_ids().collect::<Vec<_>>() {
        for value in model.graph.node_outputs(id).collect::<Vec<_>>() {
            let ty = model.graph.ty(value).map(wide);
            model.graph.set_ty(value, ty);
        }
    }
}
