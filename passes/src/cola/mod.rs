//! `cola`: inserts chains of low-rank adapters (Xia et al., *Chain of LoRA*, arXiv 2401.04151); one link is LoRA
//! (Hu et al., arXiv 2106.09685).
//!
//! Before → after, for `cola(rank=8, targets=["*/query/MatMul"])`:
//! ```text
//! y = MatMul(x, W)        y0 = MatMul(x, W); h = MatMul(x, A); u = MatMul(Mul(h, α/r), B); y = Add(y0, u)
//! ```
//! `A` is drawn (Kaiming-uniform with a = √5, so within ±1/√in), `B` is 0, so the model's outputs do not change.
//!
//! A chain of M links is a residual procedure: train a pair, *tie a knot* (merge it into a copy of the weight), go on
//! with a fresh pair on the residual. Every link has its own pair of parameters from the start, so
//!
//! * the inference graph and the program `eval` hold the whole chain, `y = xW + Σ s_j·(xA_j)B_j`, correct at any time (links not yet reached have B = 0),
//!   and the original weight is never written;
//! * the program `step` becomes `step.0 … step.M-1`: `step.j` computes with `W + Σ_{i<j} s_i·A_i·B_i`, held in a `State`, and trains pair j alone, with an optimizer state of its own;
//! * the program `knot.j` adds pair j-1 to that state. It changes no output: `step.j` starts where `step.j-1` ended.
//!
//! Targets: `MatMul` and `Gemm` with a constant weight on the right, `Conv` (grouped and depthwise too), `Gather` from a
//! table. The weight is found through Transpose, Cast, Identity, DequantizeLinear, and scales and offsets that are constant (int8 weights behind Cast and Mul). Patterns are those of [`crate::pattern`].
//!
//! Precondition for more than one link: `loss` has run (there is a `step` to split) and `autodiff` has not.
//! It does not decide when knots are tied: who runs the programs does.

mod branch;
mod record;
mod site;

pub use branch::delta;
pub use record::{LinkRecord, Record, SiteRecord};
pub(crate) use site::is_still;
pub use site::{Site, SiteKind, effective_weight, find_sites};

use crate::{Changed, Pass, training};
use sartor_ir::ops::Emit;
use sartor_ir::{Binding, Context, Graph, GraphOutput, Model, Program, Result, Role, Tensor, Type, ensure, infer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The options, and the pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cola {
    /// The rank of every link.
    pub rank: usize,
    /// The rank of each link, instead of `rank`.
    pub ranks: Option<Vec<usize>>,
    /// α: a link's update is scaled by α divided by its rank.
    pub alpha: f64,
    /// The number of links.
    pub links: usize,
    /// Which operators get adapters: patterns on node names, weight names and module paths.
    pub targets: Vec<String>,
    /// Scale by α/√r instead of α/r (rank-stabilised LoRA, arXiv 2312.03732).
    pub rslora: bool,
    /// The seed of the drawn weights.
    pub seed: u64,
}

impl Default for Cola {
    fn default() -> Cola {
        Cola { rank: 8, ranks: None, alpha: 16.0, links: 1, targets: Vec::new(), rslora: false, seed: 0 }
    }
}

impl Pass for Cola {
    fn name(&self) -> &str {
        "cola"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        let ranks = self.ranks()?;
        training::require_opset(model, "cola")?;
        ensure!(model.meta_value(record::KEY).is_none(), "the model has adapters already: run the pass `merge` first");
        let opset = model.opset();
        crate::lift::lift(model)?;
        infer::infer_graph(&mut model.graph, opset)?;
        crate::walk::name_anonymous_nodes(model);
        let sites = find_sites(&model.graph, model, &self.targets)?;
        let record = self.add_parameters(model, &sites, &ranks)?;
        let all_links: Vec<usize> = (0..ranks.len()).collect();
        let mut graph = std::mem::take(&mut model.graph);
        insert_links(&mut graph, model, &record, &all_links)?;
        model.graph = graph;
        for (name, mut program) in std::mem::take(&mut model.programs) {
            match (training::is_step(&name), ranks.len()) {
                (true, links) if links > 1 => split_step(model, program, &record, links)?,
                (is_step, _) => {
                    let links = if is_step { &all_links[..1] } else { &all_links[..] };
                    insert_links(&mut program.graph, model, &record, links)?;
                    model.programs.insert(name, program);
                }
            }
        }
        record.store(model)?;
        Ok(Changed::Yes)
    }
}

impl Cola {
    fn ranks(&self) -> Result<Vec<usize>> {
        ensure!(!self.targets.is_empty(), "`cola` needs targets: patterns such as \"*/query/MatMul\"");
        ensure!(self.links >= 1, "links is 0, expected at least 1");
        ensure!(self.alpha.is_finite() && self.alpha > 0.0, "alpha is {}, expected a positive number", self.alpha);
        let ranks = match &self.ranks {
            None => vec![self.rank; self.links],
            Some(ranks) => {
                ensure!(
                    self.links == 1 || self.links == ranks.len(),
                    "ranks gives {} links, but links is {}",
                    ranks.len(),
                    self.links
                );
                ranks.clone()
            }
        };
        ensure!(!ranks.is_empty() && !ranks.contains(&0), "ranks is {ranks:?}, expected numbers above 0");
        Ok(ranks)
    }

    fn scale(&self, rank: usize) -> f64 {
        let r = rank as f64;
        self.alpha / if self.rslora { r.sqrt() } else { r }
    }

    /// Adds the pairs of all links at all sites, and (for chains) the states that hold the merged weights.
    fn add_parameters(&self, model: &mut Model, sites: &[Site], ranks: &[usize]) -> Result<Record> {
        let mut records = Vec::new();
        for site in sites {
            let mut links = Vec::new();
            for (j, &rank) in ranks.iter().enumerate() {
                let base = if ranks.len() == 1 { site.name.clone() } else { format!("{}.link.{j}", site.name) };
                let (a, b) = site.draw_pair(rank, self.seed, &base)?;
                let a = model.add_param(&format!("{base}.lora_A"), a, Role::Trainable);
                let b = model.add_param(&format!("{base}.lora_B"), b, Role::Trainable);
                links.push(LinkRecord { a, b, rank, scale: self.scale(rank) });
            }
            let merged = if ranks.len() > 1 {
                let weight = effective_weight(&model.graph, model, site.weight)
                    .context(|| format!("weight of node \"{}\"", site.name))?;
                Some(model.add_param(&format!("{}.merged", site.name), weight, Role::State))
            } else {
                None
            };
            records.push(site.record(links, merged));
        }
        Ok(Record { alpha: self.alpha, sites: records })
    }
}

/// Adds the branches of these links at every recorded site of a graph.
fn insert_links(graph: &mut Graph, model: &Model, record: &Record, links: &[usize]) -> Result<()> {
    for site in &record.sites {
        let Some(node) = graph.find_node(&site.node) else { continue };
        branch::insert(graph, model, site, node, links)?;
    }
    infer::infer_graph(graph, model.opset()).map(|_| ())
}

/// Replaces `step` by `step.0`, `knot.1`, `step.1`, ….
fn split_step(model: &mut Model, step: Program, record: &Record, links: usize) -> Result<()> {
    ensure!(
        step.bindings.is_empty(),
        "a chain is inserted before `optimizer`: its links have optimizer states of their own"
    );
    for j in 0..links {
        let mut graph = step.graph.clone();
        graph.name = format!("step.{j}");
        if j > 0 {
            read_merged_weights(&mut graph, model, record)?;
            let knot = knot(model, record, j)?;
            model.programs.insert(format!("knot.{j}"), knot);
        }
        insert_links(&mut graph, model, record, &[j])?;
        graph.remove_dead();
        model.programs.insert(format!("step.{j}"), Program { graph, bindings: Vec::new() });
    }
    Ok(())
}

/// Lets every target read its merged weight instead of the original.
fn read_merged_weights(graph: &mut Graph, model: &Model, record: &Record) -> Result<()> {
    for site in &record.sites {
        let (Some(node), Some(merged)) = (graph.find_node(&site.node), &site.merged) else { continue };
        let Some(param) = model.params.get(merged) else { continue };
        let value = graph.param(merged, Type::of(&param.tensor));
        graph.set_input(node, site.kind.weight_slot(), Some(value));
    }
    Ok(())
}

/// The program that ties the knot before link `j`: every merged weight plus the update of link `j - 1`.
fn knot(model: &Model, record: &Record, j: usize) -> Result<Program> {
    let mut program = Program { graph: Graph::new(&format!("knot.{j}")), bindings: Vec::new() };
    for site in &record.sites {
        let Some(merged) = &site.merged else { continue };
        let tensor: &Tensor = match model.params.get(merged) {
            Some(param) => &param.tensor,
            None => continue,
        };
        let weight = program.graph.param(merged, Type::of(tensor));
        let mut emit = Emit::new(&mut program.graph, model.opset());
        emit.prefix = format!("{}/knot/", site.node);
        let update = delta(&mut emit, model, site, &site.links[j - 1], tensor.shape())?;
        let sum = emit.add(weight, update)?;
        let output = format!("next:{merged}");
        program.graph.outputs.push(GraphOutput { name: output.clone(), value: sum });
        program.bindings.push(Binding { output, param: merged.clone() });
    }
    Ok(program)
}
