//! `extract-adapter`: writes the adapters of a model as a folder that PEFT loads.
//!
//! The links of a chain become one adapter of rank R = Σ r_j by concatenation, which is exact:
//! `Σ_j s_j·A_j·B_j = s · [A_1 … A_M] · [B_1; …; B_M]`, with different scales folded into B. The folder holds
//!
//! * `adapter_config.json` (`peft_type` LORA, `r`, `lora_alpha`, `target_modules` as full module paths),
//! * `adapter_model.safetensors`, keys `base_model.model.<module path>.lora_A.weight` `[R, in]` and
//!   `.lora_B.weight` `[out, R]` (PyTorch's layout; convolutions `[R, in, k…]` and `[out, R, 1…]`; embeddings
//!   `.lora_embedding_A` `[R, rows]` and `.lora_embedding_B` `[width, R]`),
//! * `head.safetensors`, if the model has other trainable parameters, in the layout of the ONNX file.
//!
//! It leaves the model as it is. It does not write grouped convolutions, for which PEFT has another form.

use crate::cola::{Record, SiteKind, SiteRecord};
use crate::{Changed, Pass};
use safetensors::tensor::{Dtype, TensorView};
use sartor_ir::{Context, DType, Error, Model, Result, Role, Tensor, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The options, and the pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtractAdapter {
    /// The folder to write; made if it is not there.
    pub output: PathBuf,
    /// What the module paths of the file begin with and those of the PyTorch model do not: `b.`, say, if the model
    /// was exported inside a wrapper that holds it as `self.b`.
    #[serde(default)]
    pub strip_prefix: String,
}

impl Pass for ExtractAdapter {
    fn name(&self) -> &str {
        "extract-adapter"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        Adapter::of(model, &self.strip_prefix)?.write(&self.output)?;
        Ok(Changed::No)
    }
}

/// The adapters of a model in PEFT's form.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `adapter_config.json`.
    pub config: serde_json::Value,
    /// `adapter_model.safetensors`.
    pub tensors: Vec<(String, Tensor)>,
    /// `head.safetensors`.
    pub head: Vec<(String, Tensor)>,
}

impl Adapter {
    /// Reads the adapters of a model.
    pub fn of(model: &Model, strip_prefix: &str) -> Result<Adapter> {
        let Some(record) = Record::load(model)? else {
            bail!("the model has no adapters: they are inserted by the pass `cola`, and gone after `merge`");
        };
        let mut tensors = Vec::new();
        let mut modules = Vec::new();
        let rank: usize = record.sites.first().map_or(0, |s| s.links.iter().map(|l| l.rank).sum());
        let scales: Vec<f64> = record.sites.iter().flat_map(|s| s.links.iter().map(|l| l.scale)).collect();
        let uniform = scales.windows(2).all(|w| w[0] == w[1]);
        let common = if uniform { scales.first().copied().unwrap_or(1.0) } else { 1.0 };
        for site in &record.sites {
            let path = site.module.strip_prefix(strip_prefix).unwrap_or(&site.module).to_string();
            let (a, b) = concatenated_pair(model, site, common).context(|| format!("node \"{}\"", site.node))?;
            let (key_a, key_b) = match site.kind {
                SiteKind::Gather => ("lora_embedding_A", "lora_embedding_B"),
                _ => ("lora_A.weight", "lora_B.weight"),
            };
            tensors.push((format!("base_model.model.{path}.{key_a}"), a));
            tensors.push((format!("base_model.model.{path}.{key_b}"), b));
            modules.push(path);
        }
        let config = serde_json::json!({
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": common * rank as f64,
            "target_modules": modules,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "use_rslora": false,
            "inference_mode": true,
            "task_type": null,
            "base_model_name_or_path": "",
        });
        let adapters: Vec<&String> =
            record.sites.iter().flat_map(|s| s.links.iter().flat_map(|l| [&l.a, &l.b])).collect();
        let other =
            |(name, p): &(&String, &sartor_ir::Parameter)| p.role == Role::Trainable && !adapters.contains(name);
        let head = model.params.iter().filter(other).map(|(n, p)| (n.clone(), p.tensor.clone())).collect();
        Ok(Adapter { config, tensors, head })
    }

    /// Writes the folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let config = folder.join("adapter_config.json");
        let text = serde_json::to_string_pretty(&self.config).map_err(|e| Error::msg(e.to_string()))?;
        std::fs::write(&config, text + "\n").map_err(|e| Error::io(&config, e))?;
        write_tensors(&folder.join("adapter_model.safetensors"), &self.tensors)?;
        if !self.head.is_empty() {
            write_tensors(&folder.join("head.safetensors"), &self.head)?;
        }
        Ok(())
    }
}

/// A `[in, R]` and B `[R, out]` of all links, in PyTorch's layout, with `scale / common` folded into B.
fn concatenated_pair(model: &Model, site: &SiteRecord, common: f64) -> Result<(Tensor, Tensor)> {
    ensure!(site.kind != SiteKind::GroupedConv, "PEFT has no adapter of this form for grouped convolutions");
    let (mut rows_a, mut columns_b) = (Vec::new(), Vec::new());
    let (mut rest_a, mut rest_b) = (Vec::new(), Vec::new());
    for link in &site.links {
        let get = |name: &str| match model.params.get(name) {
            Some(param) => Ok(&param.tensor),
            None => Err(Error::msg(format!("the model has no parameter \"{name}\""))),
        };
        let (a, b) = (get(&link.a)?, get(&link.b)?);
        let conv = site.kind == SiteKind::Conv;
        // Both as rows of one rank index each: A is [in, r] (convolutions [r, …]), B is [r, out] (convolutions [out, r, …]).
        let a_rows = if conv { a.to_f64s()? } else { transposed(&a.to_f64s()?, a.shape()[0], a.shape()[1]) };
        let b_rows = if conv { transposed(&b.to_f64s()?, b.shape()[0], b.shape()[1]) } else { b.to_f64s()? };
        rest_a = if conv { a.shape()[1..].to_vec() } else { vec![a.shape()[0]] };
        rest_b = if conv { [&[b.shape()[0]], &b.shape()[2..]].concat() } else { vec![b.shape()[1]] };
        rows_a.extend(a_rows);
        columns_b.extend(b_rows.iter().map(|x| x * (link.scale / common)));
    }
    let rank: usize = site.links.iter().map(|l| l.rank).sum();
    let out = rest_b[0];
    let b = transposed(&columns_b, rank, out);
    let shape_b = [&[out, rank], &rest_b[1..]].concat();
    let single = |shape: Vec<usize>, data: Vec<f64>| Tensor::from_vec(shape, data).cast(DType::F32);
    Ok((single([&[rank], rest_a.as_slice()].concat(), rows_a)?, single(shape_b, b)?))
}

/// A dense `[rows, columns]` matrix transposed.
fn transposed(data: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| data[r * columns + c])).collect()
}

fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let wrong = |e: safetensors::SafeTensorError| Error::msg(format!("{}: {e}", path.display()));
    let mut views = Vec::new();
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            other => bail!("parameter \"{name}\" is {other}, which this file does not hold"),
        };
        views.push((name, TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes()).map_err(wrong)?));
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let temporary = path.with_extension("tmp");
    safetensors::serialize_to_file(views, Some(metadata), &temporary).map_err(wrong)?;
    std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
}
