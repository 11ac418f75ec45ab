//! `.npz` and `.npy`: arrays that are named as the graph's inputs; the first axis counts the examples.
//!
//! The arrays of an `.npz` carry their names; an `.npy` is named by its file. Arrays of other names are left alone.

use super::config::DataConfig;
use super::schema::{Field, LABEL, Schema};
use super::{Batch, Dataset, gather_rows, labels, list, map_file, npy, npz};
use indexmap::IndexMap;
use sartor_ir::{Context, Error, Result, Tensor, bail, ensure};
use std::path::{Path, PathBuf};

/// See the [module](self).
pub struct Arrays {
    fields: Vec<(String, Tensor)>,
    rows: usize,
}

/// Whether a folder holds `.npy` files.
pub fn is_folder_of_arrays(folder: &Path) -> bool {
    npy_files(folder).is_ok_and(|files| !files.is_empty())
}

fn npy_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.extension().is_some_and(|e| e == "npy") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_path(path: &Path) -> Result<IndexMap<String, Tensor>> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz")) {
        return npz::read(path);
    }
    let files = if path.is_dir() { npy_files(path)? } else { vec![path.to_path_buf()] };
    let read = |file: PathBuf| {
        let name = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let tensor = npy::parse(&map_file(&file)?).context(|| file.display().to_string())?;
        Ok((name, tensor))
    };
    files.into_iter().map(read).collect()
}

impl Arrays {
    /// Opens the files of one split.
    pub fn open(paths: &[PathBuf], config: &DataConfig, schema: &Schema) -> Result<Arrays> {
        let mut arrays = IndexMap::new();
        for path in paths {
            arrays.extend(read_path(path)?);
        }
        let file = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        Arrays::of(arrays, config, schema).context(|| file)
    }
    /// From arrays in memory.
    pub fn of(arrays: IndexMap<String, Tensor>, config: &DataConfig, schema: &Schema) -> Result<Arrays> {
        let find = |name: &str, role: &str| match arrays.get(name) {
            Some(tensor) => Ok(tensor),
            None => bail!("there is no array \"{name}\" for {role}; there are {}", list(arrays.keys())),
        };
        let mut fields = Vec::new();
        for field in &schema.inputs {
            let tensor = find(&field.name, &format!("the model's input {} {}", field.name, field.describe()))?;
            check_input(field, tensor)?;
            fields.push((field.name.clone(), tensor.clone()));
        }
        let name = config.label_name();
        let lacking = schema.may_lack_labels && config.label.is_none() && !arrays.contains_key(name);
        if let Some(field) = schema.label.as_ref().filter(|_| !lacking) {
            let tensor = find(name, "the label (data.label names it)")?;
            let place = |row: usize| format!("array \"{name}\", row {row}");
            let tensor = labels::from_tensor(schema, field, tensor, &place)?;
            fields.push((LABEL.to_string(), tensor));
        }
        let rows = common_rows(&fields)?;
        Ok(Arrays { fields, rows })
    }
}

fn check_input(field: &Field, tensor: &Tensor) -> Result<()> {
    let name = &field.name;
    ensure!(
        tensor.dtype() == field.dtype,
        "array \"{name}\" is {}{:?}, the model's input \"{name}\" takes {}: convert the array",
        tensor.dtype(),
        tensor.shape(),
        field.describe()
    );
    let fits = tensor.shape().split_first().is_some_and(|(_, row)| field.accepts_row(row));
    ensure!(fits, "array \"{name}\" is {:?}, the model's input \"{name}\" is {}", tensor.shape(), field.describe());
    Ok(())
}

fn common_rows(fields: &[(String, Tensor)]) -> Result<usize> {
    let rows = |t: &Tensor| t.shape().first().copied().unwrap_or(0);
    let Some((first, tensor)) = fields.first() else { bail!("the model has no inputs to fill") };
    for (name, other) in fields {
        ensure!(
            rows(other) == rows(tensor),
            "array \"{first}\" has {} rows, array \"{name}\" has {}",
            rows(tensor),
            rows(other)
        );
    }
    ensure!(rows(tensor) > 0, "the split is empty: array \"{first}\" has no rows");
    Ok(rows(tensor))
}

impl Dataset for Arrays {
    fn len(&self) -> usize {
        self.rows
    }
    fn batch(&self, rows: &[usize]) -> Result<Batch> {
        let gather = |(name, tensor): &(String, Tensor)| Ok((name.clone(), gather_rows(tensor, rows)?));
        Ok(Batch { tensors: self.fields.iter().map(gather).collect::<Result<_>>()?, samples: rows.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_ir::{DType, Dim};

    fn schema() -> Schema {
        let batch = Dim::symbol("batch");
        let x = Field { name: "x".into(), dtype: DType::F32, shape: Some(vec![batch.clone(), Dim::Known(2)]) };
        let label = Field { name: "label".into(), dtype: DType::I64, shape: Some(vec![batch]) };
        Schema { inputs: vec![x], label: Some(label), classes: Some(3), ..Schema::default() }
    }

    fn arrays(list: &[(&str, Tensor)]) -> IndexMap<String, Tensor> {
        list.iter().map(|(n, t)| (n.to_string(), t.clone())).collect()
    }

    fn x() -> Tensor {
        Tensor::from_vec([3, 2], vec![0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0])
    }

    #[test]
    fn npz_and_npy_give_the_same_batches() {
        let dir = tempfile::tempdir().unwrap();
        let y = Tensor::from_vec([3], vec![0i32, 1, 2]);
        let (npz, folder) = (dir.path().join("train.npz"), dir.path().join("train"));
        npz::write(&npz, [("x", &x()), ("label", &y)]).unwrap();
        std::fs::create_dir(&folder).unwrap();
        for (name, tensor) in [("x", &x()), ("label", &y)] {
            let bytes = [npy::encode_header(tensor).unwrap(), tensor.bytes().to_vec()].concat();
            std::fs::write(folder.join(format!("{name}.npy")), bytes).unwrap();
        }
        for path in [npz, folder] {
            let data = super::super::open(&[path], &DataConfig::default(), &schema()).unwrap();
            assert_eq!(data.len(), 3);
            let batch = data.batch(&[2, 0]).unwrap();
            assert_eq!(batch.tensors["x"], Tensor::from_vec([2, 2], vec![4.0f32, 5.0, 0.0, 1.0]));
            assert_eq!(batch.tensors["label"], Tensor::from_i64s(&[2, 0]));
        }
    }

    #[test]
    fn mistakes_are_sentences() {
        let error = |list: &[(&str, Tensor)]| {
            Arrays::of(arrays(list), &DataConfig::default(), &schema()).map(drop).unwrap_err().to_string()
        };
        let y = Tensor::from_i64s(&[0, 1, 2]);
        assert_eq!(
            error(&[("pixels", x()), ("label", y.clone())]),
            "there is no array \"x\" for the model's input x float[batch, 2]; there are \"pixels\" and \"label\""
        );
        assert_eq!(
            error(&[("x", x().cast(DType::F64).unwrap()), ("label", y.clone())]),
            "array \"x\" is double[3, 2], the model's input \"x\" takes float[batch, 2]: convert the array"
        );
        assert_eq!(
            error(&[("x", x().reshaped([2, 3]).unwrap()), ("label", y.clone())]),
            "array \"x\" is [2, 3], the model's input \"x\" is float[batch, 2]"
        );
        assert_eq!(
            error(&[("x", x()), ("label", Tensor::from_i64s(&[0, 1]))]),
            "array \"x\" has 3 rows, array \"label\" has 2"
        );
        assert_eq!(
            error(&[("x", x()), ("label", Tensor::from_i64s(&[0, 1, 3]))]),
            "array \"label\", row 2: label 3 is outside the 3 classes (0 to 2)"
        );
        let empty = Tensor::zeros(DType::F32, [0, 2]).unwrap();
        assert_eq!(
            error(&[("x", empty), ("label", Tensor::from_i64s(&[]))]),
            "the split is empty: array \"x\" has no rows"
        );
        assert_eq!(error(&[("x", x()), ("label", x())]), "the labels are float, the model's label takes int64");
    }
}
