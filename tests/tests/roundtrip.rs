//! Reading and writing real files: import ∘ export is the identity on every model that `tests/assets/fetch.sh` brings,
//! an independent decoder reads what we write (and we what it writes), ONNX's checker accepts it, and ONNX Runtime
//! computes bit-equal outputs from it.

use onnx_protobuf::Message;
use sartor_ir::onnx::{self, ExternalData, SaveOptions};
use sartor_ir::{Model, Program, Role};
use sartor_tests::{REAL_MODELS, asset, cache, peer, succeeds};
use std::path::{Path, PathBuf};

/// All models of a folder of the assets, those in its folders included, sorted.
fn models_in(folder: &str) -> Vec<PathBuf> {
    let root = cache().join("assets").join(folder);
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "onnx") {
                found.push(entry);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no models in {}: run tests/assets/fetch.sh", root.display());
    found
}

fn real_models() -> Vec<PathBuf> {
    REAL_MODELS.iter().chain(&["bert-base.onnx"]).map(|name| asset(name)).collect()
}

#[track_caller]
fn assert_same(a: &Model, b: &Model, path: &Path) {
    let graphs = a.graph.differences(&b.graph);
    assert_eq!(graphs, None, "{}", path.display());
    assert!(a == b, "{}: the models differ outside their inference graphs", path.display());
}

/// import ∘ export = identity, and export is stable to the byte.
fn check_laws(path: &Path) -> Result<(Model, Vec<u8>), String> {
    let model = onnx::load(path).map_err(|e| e.to_string())?;
    let bytes = onnx::to_bytes(&model).map_err(|e| e.to_string())?;
    let again = onnx::from_bytes(bytes.clone().into(), path.parent()).map_err(|e| e.to_string())?;
    assert_same(&model, &again, path);
    let second = onnx::to_bytes(&again).map_err(|e| e.to_string())?;
    assert!(bytes == second, "{}: the second export differs from the first", path.display());
    Ok((model, bytes))
}

/// The decoder of another implementation reads our bytes completely, and we read what it writes.
fn check_other_decoder(model: &Model, bytes: &[u8], path: &Path) {
    let other = onnx_protobuf::ModelProto::parse_from_bytes(bytes).unwrap();
    assert_eq!(other.graph.node.len(), onnx_node_count(model), "{}", path.display());
    let written = other.write_to_bytes().unwrap();
    let back = onnx::from_bytes(written.into(), None).unwrap();
    assert_same(model, &back, path);
}

fn onnx_node_count(model: &Model) -> usize {
    model.graph.op_count()
}

#[test]
fn real_models_survive() {
    for path in real_models() {
        let (model, bytes) = check_laws(&path).unwrap();
        if bytes.len() < 100 << 20 {
            check_other_decoder(&model, &bytes, &path);
        }
    }
}

#[test]
fn models_of_the_onnx_suite_survive() {
    let mut failures = Vec::new();
    let mut count = 0;
    for path in ["onnx/light", "onnx/simple", "onnx/pytorch-converted", "onnx/pytorch-operator", "onnx/node"]
        .into_iter()
        .flat_map(models_in)
    {
        match check_laws(&path) {
            Ok((model, bytes)) => check_other_decoder(&model, &bytes, &path),
            Err(e) => failures.push(e),
        }
        count += 1;
    }
    assert!(failures.is_empty(), "{} of {count} failed:\n{}", failures.len(), failures.join("\n"));
    assert!(count > 1900, "{count} models, expected all of them");
}

#[test]
fn the_checker_and_onnx_runtime_agree() {
    let dir = tempfile::tempdir().unwrap();
    let small = real_models().into_iter().filter(|p| !p.ends_with("bert-base.onnx"));
    for (i, path) in small.enumerate() {
        let written = dir.path().join(format!("{i}.onnx"));
        onnx::save(&onnx::load(&path).unwrap(), &written, &SaveOptions::default()).unwrap();
        succeeds(peer("check_onnx.py").arg(&written));
        succeeds(peer("compare_ort.py").args([&path, &written]));
    }
}

#[test]
fn the_checker_accepts_the_suite() {
    let dir = tempfile::tempdir().unwrap();
    let folders = ["onnx/light", "onnx/pytorch-converted", "onnx/pytorch-operator"];
    let mut written = Vec::new();
    for (i, path) in folders.into_iter().flat_map(models_in).enumerate() {
        written.push(dir.path().join(format!("{i}.onnx")));
        onnx::save(&onnx::load(&path).unwrap(), &written[i], &SaveOptions::default()).unwrap();
    }
    succeeds(peer("check_onnx.py").args(&written));
}

/// The nine `light` models and those that PyTorch once exported: the same bits from what we wrote as from the original.
#[test]
fn onnx_runtime_computes_the_same_bits_on_the_suite() {
    let dir = tempfile::tempdir().unwrap();
    let folders = ["onnx/light", "onnx/pytorch-converted", "onnx/pytorch-operator"];
    let mut pairs = String::new();
    for (i, path) in folders.into_iter().flat_map(models_in).enumerate() {
        let written = dir.path().join(format!("{i}.onnx"));
        onnx::save(&onnx::load(&path).unwrap(), &written, &SaveOptions::default()).unwrap();
        let inputs = path.with_file_name("io.npz");
        pairs += &format!("{}\t{}\t{}\n", path.display(), written.display(), inputs.display());
    }
    assert_eq!(pairs.lines().count(), 126);
    let list = dir.path().join("pairs.txt");
    std::fs::write(&list, pairs).unwrap();
    let text = succeeds(peer("compare_many_ort.py").arg(&list));
    // The others are of opsets that ONNX Runtime has no kernels for.
    assert!(text.ends_with("bit-equal 92, refused 34, different 0\n"), "{text}");
}

#[test]
fn external_data_survives() {
    let path = &real_models()[0];
    let model = onnx::load(path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let written = dir.path().join("m.onnx");
    let options = SaveOptions { external_data: Some(ExternalData::default()) };
    onnx::save(&model, &written, &options).unwrap();
    let sizes = ["m.onnx", "m.onnx.data"].map(|n| std::fs::metadata(dir.path().join(n)).unwrap().len());
    assert!(sizes[0] < 1 << 20 && sizes[1] > 60 << 20, "{sizes:?}");
    assert_same(&model, &onnx::load(&written).unwrap(), &written);
    // Over itself, while its tensors are windows on the old files.
    let external = onnx::load(&written).unwrap();
    onnx::save(&external, &written, &options).unwrap();
    assert_same(&model, &onnx::load(&written).unwrap(), &written);
    succeeds(peer("check_onnx.py").arg(&written));
    succeeds(peer("compare_ort.py").args([path, &written]));
}

#[test]
fn the_checker_accepts_programs() {
    let dir = tempfile::tempdir().unwrap();
    for (i, path) in real_models()[..2].iter().enumerate() {
        let mut model = onnx::load(path).unwrap();
        // A program that shares every name with the inference graph.
        let mut graph = model.graph.clone();
        graph.name = "copy".to_string();
        model.programs.insert("copy".to_string(), Program { graph, bindings: Vec::new() });
        let written = dir.path().join(format!("{i}.onnx"));
        onnx::save(&model, &written, &SaveOptions::default()).unwrap();
        let growth = std::fs::metadata(&written).unwrap().len()
            - onnx::to_bytes(&onnx::load(path).unwrap()).unwrap().len() as u64;
        assert!(growth < 1 << 20, "parameters and constants stand in the file once, but it grew by {growth} bytes");
        let back = onnx::load(&written).unwrap();
        assert_same(&model, &back, &written);
        assert!(back.params.values().all(|p| p.role == Role::Frozen));
        succeeds(peer("check_onnx.py").arg(&written));
        succeeds(peer("check_training_info.py").arg(&written));
    }
}

#[test]
fn large_models_are_read_and_written_without_copies() {
    let path = real_models().pop().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let before = anonymous_memory();
    let model = onnx::load(&path).unwrap();
    onnx::save(&model, &dir.path().join("m.onnx"), &SaveOptions::default()).unwrap();
    let grown = anonymous_memory().saturating_sub(before);
    assert!(grown < 64 << 20, "a model of 438 MB took {grown} bytes of memory besides the mapped file");
}

/// The memory that is no mapped file, in bytes, as Linux counts it.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    };
    field("RssAnon:")
}
