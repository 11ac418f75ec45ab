//! `gate`: two small networks that decide per input what is worth computing (L-Net and C-Net; arXiv 2007.15151).
//!
//! Before → after, for a residual block:
//! ```text
//! h = Relu(Conv1 x); y = Add(x, Conv2 h)
//!
//! z = mean of x over all places                       [N, channels]
//! t = z · W + b;  g = clamp(t, 0, 1)                  [N, 1 + hidden channels]
//! s, c = Split(g)
//! h = Relu(Conv1 x) · c;  y = Add(x, Conv2 h · s)
//! ```
//! Where `s` is 0 for an input, the block need not be run for it; where `c_k` is 0, neither need filter k of the first convolution, nor channel k of the
//! second. This pass multiplies; [`harden`](crate::harden) makes models that skip. `W` starts at 0 and `b` at 1: the gated model
//! *is* the model, bit for bit up to a multiplication by 1. With `normalise = "example"` the means `z` of an example are brought to mean 0 and the length `length` (1) first
//! (if there are at least eight): features of every block have one scale then. With `"channel"` every channel is brought to mean 0 and deviation 1 over the examples seen in
//! training, by running statistics that the steps gather.
//!
//! With `binary` gates are 1 where `t > 0`, else 0; their gradient is that of the clamp. Where normalisations follow that undo any scale, gates that may be anything
//! between shrink together under the pressure of their cost until all are near 0, open or not, and flicker. `b` then starts between 0 and 1, the higher the more a channel
//! matters (`importance`), so that the gates of a group shut one after the other.
//!
//! With `rank` r a network is `t = (z · U) · W + b`, where U is `[channels, r]` and W `[r, gates]`: r numbers about an input decide on all gates of a block, which
//! takes fewer parameters and lets gates open and shut together. U starts at 0; W's rows have length 1, and the first moves all gates alike. With `nested` r is 1 and W stays so:
//! a block's gates open in the order of their biases for every input, which only says how many.
//!
//! Blocks and groups of channels are found in the graph ([`blocks`]). With text, the mean is over the tokens that `attention_mask` keeps.
//!
//! With `boost` an open gate is multiplied by a factor from 0 to 2 that a network of its own makes of the same `z` (`boost.rs`): how much of a channel an input takes.
//!
//! In training steps the gates are [`ai.sartor::Gate`](sartor_ir::ops::gate), whose gradient leaks, and the loss grows by
//! `λ · max(0, F − target)²`, where F is the mean cost of the batch's examples as a share of the model's ([`cost`]), counted hard (a gate
//! is open or shut) with a straight-through gradient, which trains the gate networks and not the features that they read; that of a layer is divided by the number
//! of its channels' gates (without any, by the largest such number of the model). The target falls linearly from 1 to `target` over the share `anneal` of the run, after the share
//! `warmup`.
//!
//! After the share `settle` of the run the gate networks get no gradient any more. A gate near 0 opens and shuts for other inputs with every step of its network, and nothing that
//! reads it can learn what it decides.
//!
//! With `spread` above 0 the loss falls by `spread · mean of (dᵢ · Fᵢ)`, where the difficulty dᵢ of an example goes from −1 for the one of a batch with the smallest task
//! loss to 1 for the one with the largest, evenly by rank: what easy examples cost is dearer than what hard ones cost, by the same amount however near the mean is to the
//! target. Without, gates learn which channels the data set needs; with it they must tell easy inputs from hard ones. It needs a loss that is the mean of one per
//! example.
//!
//! The program `eval` gets the outputs `flops`, the cost of each example, and `gates`, all its gates, as [`GateOutputs`] adds them.
//!
//! A model that has gates already keeps them and what they read as they are: then only its training programs are made, and its gates are trained on (with `anneal = 0`, at the
//! target from the first step). Statistics are gathered on, as they are by [`train_mode`](crate::train_mode) where gates are not trained. With `boost` its gates get factors, if they have none;
//! without a program `step` the factors alone are `Trainable` then, and whatever trains next decides about the rest.
//!
//! Precondition: the internal opset, types inferred, no adapters (they may come after). For training: `loss` has run, `autodiff` has not. It does not decide how long
//! is trained.

pub mod blocks;
mod boost;
pub mod cost;
pub(crate) mod heads;
mod importance;
mod insert;
mod measure;
mod record;
mod reshapes;
pub(crate) mod statistics;

pub use blocks::{Block, Found, Group, Refusal, find};
pub use measure::{FLOPS, GATES, GateOutputs};
pub use record::{BlockRecord, Boost, GroupRecord, KEY, Record, SqueezeRecord, Usage};

use crate::pattern::{Patterns, candidate_names};
use crate::{Changed, Pass, training};
use sartor_ir::{Graph, Model, Operator, Result, Role, bail, ensure, infer, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How what gate networks read is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Normalise {
    /// Not at all.
    None,
    /// Every example by itself, over its channels: to mean 0 and one length.
    Example,
    /// Every channel by itself, over the examples seen in training (running statistics): to mean 0 and deviation 1, then to one length on average. What examples have in
    /// common is gone, and how strong their features are is not.
    Channel,
}

/// The options, and the pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// Whether blocks get a gate (L-Net).
    pub layers: bool,
    /// Whether hidden channels get gates (C-Net).
    pub channels: bool,
    /// Whether the heads of attentions are among them.
    pub heads: bool,
    /// Whether channels between two layers outside of residual blocks get gates too.
    pub plain: bool,
    /// The cost to be reached, as a share of the model's.
    pub target: f64,
    /// λ: how much the loss grows with the square of the excess over the target.
    pub lambda: f64,
    /// The share of a gradient that reaches a gate that is shut or open beyond 1.
    pub leak: f64,
    /// Whether a gate is 0 or 1, and not what its network says, cut to that range.
    pub binary: bool,
    /// Whether open gates are multiplied by factors from 0 to 2 that a second network reads from the same input, and that are 1 at first. Gates of a file get them too.
    pub boost: bool,
    /// How what gates read is normalised.
    pub normalise: Normalise,
    /// The length of normalised features: gates learn from inputs as much faster than from all of them alike as its square says.
    pub length: f64,
    /// How many numbers a gate network makes of what it reads before it makes gates of them; 0: gates read everything. Ignored where it would be more work. Default: 8 in
    /// networks that would have more than 65,536 weights, else 0.
    pub rank: Option<usize>,
    /// Whether a block's gates open in one order for all inputs: the code is one number, by which all of them move alike, so that an input only says how many are open.
    pub nested: bool,
    /// How much dearer what easy examples cost is than what hard ones cost, in units of the loss.
    pub spread: f64,
    /// The share of the run before the target falls.
    pub warmup: f64,
    /// The share of the run in which it falls.
    pub anneal: f64,
    /// The share of the run after which gate networks learn nothing more: what is trained beside them learns what they decide. 1: they learn to the end.
    pub settle: f64,
    /// Which blocks are gated: patterns on the names that `sartor inspect --blocks` shows. Default: all.
    pub blocks: Vec<String>,
    /// Which are not.
    pub exclude: Vec<String>,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate {
            layers: true,
            channels: true,
            heads: true,
            plain: true,
            target: 0.5,
            lambda: 100.0,
            leak: 0.1,
            binary: false,
            boost: false,
            normalise: Normalise::Example,
            length: 1.0,
            rank: None,
            nested: false,
            spread: 0.0,
            warmup: 0.0,
            anneal: 0.5,
            settle: 1.0,
            blocks: Vec::new(),
            exclude: Vec::new(),
        }
    }
}

impl Pass for Gate {
    fn name(&self) -> &str {
        "gate"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        self.check()?;
        training::require_opset(model, "gate")?;
        if let Some(record) = Record::load(model)? {
            return self.go_on(model, record);
        }
        ensure!(
            crate::cola::Record::load(model)?.is_none(),
            "the model has adapters, whose branches look like blocks: attach gates before adapters, or merge first"
        );
        let opset = model.opset();
        crate::lift::lift(model)?;
        separate(model)?;
        infer::infer_graph(&mut model.graph, opset)?;
        crate::walk::name_anonymous_nodes(model);
        let found = find(&model.graph)?;
        let blocks = self.chosen(&model.graph, &found)?;
        let costs = cost::Costs::of(&model.graph, opset)?;
        let record = self.add_parameters(model, &blocks, &costs)?;
        let terms = costs.terms_of(&model.graph, &record.blocks);
        let plan = insert::Plan {
            options: self,
            record: &record,
            blocks: &blocks,
            terms: &terms,
            params: &model.params,
            opset,
        };
        let mut graph = std::mem::take(&mut model.graph);
        let inserted = plan.apply(&mut graph, insert::Use::Inference);
        model.graph = graph;
        inserted?;
        for (name, program) in &mut model.programs {
            plan.apply(&mut program.graph, insert::Use::of(name)).map_err(|e| e.at(format!("program \"{name}\"")))?;
        }
        gather(model, &record)?;
        record.store(model)?;
        Ok(Changed::Yes)
    }
}

/// ONNX Runtime's operators that hold the addition of a block, or the bias of channels.
const FUSED: [&str; 3] = ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "BiasGelu"];

/// Writes out what ONNX Runtime's optimiser fused and what gates have to come between, and leaves out reshapes that nothing needs, behind which heads and channels are not seen.
pub fn separate(model: &mut Model) -> Result<()> {
    let opset = model.opset();
    let fused = |op: &Operator| op.domain == "com.microsoft" && FUSED.contains(&op.name.as_str());
    for graph in model.graphs_mut() {
        if ops::decompose_composites(graph, opset, |graph, id| graph.node(id).op().is_some_and(fused))? > 0 {
            graph.remove_dead();
        }
        crate::simplify::simplify_operator(graph, opset, "Reshape")?;
        reshapes::rewrite(graph, opset)?;
    }
    Ok(())
}

/// Lets every training step of a model, if it has one, gather the statistics that gates are read by.
fn gather(model: &mut Model, record: &Record) -> Result<()> {
    if model.programs.keys().any(|name| training::is_step(name)) {
        training::for_each_step(model, "gate", |_, step, rest| statistics::gather(step, rest, record).map(drop))?;
    }
    Ok(())
}

impl Gate {
    fn check(&self) -> Result<()> {
        ensure!(self.layers || self.channels, "with layers = false and channels = false there is nothing to gate");
        let share = |name: &str, x: f64| {
            ensure!((0.0..=1.0).contains(&x), "{name} is {x}, expected a share from 0 to 1");
            Ok(())
        };
        for (name, x) in [
            ("target", self.target),
            ("leak", self.leak),
            ("warmup", self.warmup),
            ("anneal", self.anneal),
            ("settle", self.settle),
        ] {
            share(name, x)?;
        }
        ensure!(
            self.settle >= 1.0 || self.settle >= self.warmup + self.anneal,
            "settle is {}: gates have to learn until the target has fallen, at {} of the run (warmup + anneal)",
            self.settle,
            self.warmup + self.anneal
        );
        ensure!(self.target > 0.0, "target is 0: something has to be computed");
        ensure!(self.length > 0.0 && self.length.is_finite(), "length is {}, expected a number above 0", self.length);
        let one = self.rank.is_none_or(|rank| rank == 1);
        ensure!(!self.nested || one, "nested gates are made of one number: leave rank out, or 1");
        for (name, x) in [("lambda", self.lambda), ("spread", self.spread)] {
            ensure!(x >= 0.0 && x.is_finite(), "{name} is {x}, expected 0 or more");
        }
        Ok(())
    }

    /// The groups of a block that get gates under these options.
    fn groups(&self, block: &Block) -> Vec<Group> {
        let wanted = |group: &&Group| self.channels && (self.heads || group.width == 1);
        block.groups.iter().filter(wanted).cloned().collect()
    }

    /// Whether anything of a block gets a gate.
    fn shuts(&self, block: &Block) -> bool {
        (block.residual || self.plain) && (self.layers && block.residual || !self.groups(block).is_empty())
    }

    /// Training goes on with the gates that the model has.
    fn go_on(&self, model: &mut Model, mut record: Record) -> Result<Changed> {
        let all = self.layers && self.channels && self.heads && self.plain;
        let chooses = !all || !self.blocks.is_empty() || !self.exclude.is_empty();
        ensure!(
            !chooses,
            "the model has gates already: layers, channels, heads, plain, blocks and exclude are for new ones"
        );
        let opset = model.opset();
        infer::infer_graph(&mut model.graph, opset)?;
        let boosted = self.boost && boost::add_parameters(model, &mut record)?;
        let terms = cost::Costs::of(&model.graph, opset)?.terms_of(&model.graph, &record.blocks);
        let plan =
            insert::Plan { options: self, record: &record, blocks: &[], terms: &terms, params: &model.params, opset };
        if boosted {
            plan.go_on(&mut model.graph, insert::Use::Inference)?;
        }
        for (name, program) in &mut model.programs {
            plan.go_on(&mut program.graph, insert::Use::of(name)).map_err(|e| e.at(format!("program \"{name}\"")))?;
        }
        gather(model, &record)?;
        // Without a step only what is new waits for its training.
        let steps = model.programs.keys().any(|name| training::is_step(name));
        for block in record.blocks.iter().filter(|_| steps) {
            for name in block.parameters().filter(|&name| !block.nested || *name != block.weight) {
                let Some(param) = model.params.get_mut(name) else { bail!("the model has no parameter \"{name}\"") };
                param.role = Role::Trainable;
            }
        }
        record.store(model)?;
        Ok(Changed::Yes)
    }

    /// The blocks that the patterns choose, without what the options leave out.
    fn chosen(&self, graph: &Graph, found: &Found) -> Result<Vec<Block>> {
        let names = |block: &Block| {
            let mut names = vec![block.name.clone()];
            let nodes = block.groups.iter().flat_map(|group| &group.producers).filter(|_| !block.residual);
            names.extend(nodes.chain([&block.add]).flat_map(|&id| candidate_names(graph, id)));
            names
        };
        let (chosen, excluded) = (Patterns::parse(&self.blocks)?, Patterns::parse(&self.exclude)?);
        let things: Vec<Vec<String>> = found.blocks.iter().map(names).collect();
        chosen.check_all_match(&things, "block")?;
        excluded.check_all_match(&things, "block")?;
        let mut blocks = Vec::new();
        for (block, names) in found.blocks.iter().zip(&things) {
            let wanted = (chosen.is_empty() || chosen.matches(names)) && !excluded.matches(names);
            if wanted && self.shuts(block) {
                blocks.push(Block { groups: self.groups(block), ..block.clone() });
            }
        }
        if blocks.is_empty() {
            bail!("{}", nothing(found, self));
        }
        Ok(blocks)
    }
}

/// Why there is nothing to gate.
fn nothing(found: &Found, options: &Gate) -> String {
    if !found.blocks.is_empty() {
        let left = match found.blocks.iter().any(|block| options.shuts(block)) {
            true => "`blocks` and `exclude` leave none",
            false if !options.plain && !found.blocks.iter().any(|block| block.residual) => {
                "none has a shortcut, and plain = false"
            }
            false if options.layers => "none has a shortcut, and channels = false",
            false => "none has channels that can be gated",
        };
        return format!("there is nothing to gate: of {} blocks {left}", found.blocks.len());
    }
    match found.refused.as_slice() {
        [] => "there is nothing to gate: the model has no residual block (an addition of a value and of what layers with weights make \
               of it) and no channels that one layer makes and another one reads"
            .to_string(),
        [first, ..] => format!(
            "there is nothing to gate: of {} places that look like it none will do; the first, \"{}\": {}",
            found.refused.len(),
            first.node,
            first.reason
        ),
    }
}
