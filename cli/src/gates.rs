//! How a model's gates are used: what an evaluation counted gate by gate, sorted into the blocks that the model's record names. It is what `gates.json` in
//! the output folder of a run holds, what `sartor eval` prints, and what `sartor report` draws.
//!
//! ```text
//! {"split": "test", "examples": 40, "cost": 0.62,                         the data, how many, and their mean cost as a share of the whole model's
//!  "blocks": [{"name": "/layer1/Add",
//!              "layer": 0.93,                                             for what share of the examples the block is run; null without such a gate
//!              "channels": {"dead": 3, "always": 9, "dynamic": 4},        its channels' gates: open for none, for all, for some of the examples
//!              "open": [0.93, 0.0, 1.0, …]}],                             the shares of every gate, the layer's first
//!  "classes": [{"class": 0, "examples": 20, "cost": 0.6, "blocks": [0.7, …]}],   for each block the mean share of open gates; empty without classes
//!  "histogram": {"low": 0.31, "high": 0.97, "counts": [1, 0, 4, …]},      how many examples cost how much, in equally wide bins
//!  "cheapest": [{"row": 17, "cost": 0.31}, …], "dearest": […],            places in the data, from 0
//!  "quarters": [{"cost": 0.4, "accuracy": 0.95}, …]}                      four equal parts of the examples, the cheapest first; empty without classes
//! ```

use crate::chart::number;
use crate::table::{Table, short};
use crate::{files, say};
use sartor_ir::{Error, Model, Result};
use sartor_passes::Driver;
use sartor_passes::gate::{BlockRecord, GATES, GateOutputs, Record};
use sartor_runtime::train::gates::{self, Example, GateUse, Histogram, Kinds, Quarter};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The name of the file.
pub const FILE: &str = "gates.json";

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gates {
    /// The split that was evaluated: `train`, `eval` or `test`.
    pub split: String,
    /// The number of its examples.
    pub examples: u64,
    /// Their mean cost, as a share of the whole model's.
    pub cost: f64,
    /// The gated blocks, in the model's order.
    pub blocks: Vec<BlockUse>,
    /// The classes, if labels are such.
    pub classes: Vec<ClassUse>,
    /// The costs of the examples.
    pub histogram: Histogram,
    /// The cheapest examples, the cheapest first.
    pub cheapest: Vec<Example>,
    /// The dearest, the dearest first.
    pub dearest: Vec<Example>,
    /// Four equal parts of the examples, the cheapest first; empty without classes.
    #[serde(default)]
    pub quarters: Vec<Quarter>,
}

/// How a block's gates are used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockUse {
    /// The block's name.
    pub name: String,
    /// The share of examples that it is run for, if it has a layer gate.
    pub layer: Option<f64>,
    /// Its channels' gates.
    pub channels: Kinds,
    /// For each gate the share of examples for which it is open, the layer's first.
    pub open: Vec<f64>,
}

/// How the examples of a class use the gates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassUse {
    /// The class.
    pub class: i64,
    /// The number of its examples.
    pub examples: u64,
    /// Their mean cost.
    pub cost: f64,
    /// The share of open gates of every block.
    pub blocks: Vec<f64>,
}

impl BlockUse {
    /// Of a block whose gates were open for these shares of the examples.
    fn of(block: &BlockRecord, open: &[f64]) -> BlockUse {
        let (layer, channels) = open.split_at(usize::from(block.layer.is_some()));
        let (layer, channels) = (layer.first().copied(), Kinds::of(channels));
        BlockUse { name: block.name.clone(), layer, channels, open: open.to_vec() }
    }
    /// The shares of its channels' gates.
    pub fn channel_shares(&self) -> &[f64] {
        self.open.get(usize::from(self.layer.is_some())..).unwrap_or_default()
    }
}

impl Gates {
    /// Sorts what was counted on a split into the blocks of a record.
    pub fn of(record: &Record, split: &str, found: &GateUse) -> Result<Gates> {
        let class = |class: &gates::ClassUse| {
            let blocks = record.split(&class.open)?.into_iter().map(mean).collect();
            Ok(ClassUse { class: class.class, examples: class.examples, cost: class.cost, blocks })
        };
        Ok(Gates {
            split: split.to_string(),
            examples: found.examples,
            cost: found.cost,
            blocks: record
                .blocks
                .iter()
                .zip(record.split(&found.open)?)
                .map(|(block, open)| BlockUse::of(block, open))
                .collect(),
            classes: found.classes.iter().map(class).collect::<Result<_>>()?,
            histogram: found.histogram.clone(),
            cheapest: found.cheapest.clone(),
            dearest: found.dearest.clone(),
            quarters: found.quarters.clone(),
        })
    }
    /// Reads the file of an output folder; `None` if there is none.
    pub fn read(folder: &Path) -> Result<Option<Gates>> {
        let path = folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, e)),
        };
        serde_json::from_str(&text).map(Some).map_err(|e| Error::msg(format!("{}: {e}", path.display())))
    }
    /// Writes it.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string(self).map_err(|e| Error::msg(e.to_string()))?;
        files::write_whole(&folder.join(FILE), &(text + "\n"))
    }
    /// Prints what it comes to, block by block.
    pub fn print(&self) {
        say!(
            "gates: an example of {} costs {} of the whole model in the mean, from {} to {}",
            self.split,
            number(self.cost),
            number(self.histogram.low),
            number(self.histogram.high)
        );
        if let [first, .., last] = self.quarters.as_slice() {
            say!(
                "the cheapest quarter costs {} and is right for {}, the dearest {} and {}",
                number(first.cost),
                percent(first.accuracy),
                number(last.cost),
                percent(last.accuracy)
            );
        }
        print_blocks(&self.blocks);
    }
}

/// How gates are used, block by block.
fn print_blocks(blocks: &[BlockUse]) {
    let mut table = Table::new(&["block", "is run for", "channels", "dead", "always", "dynamic", "open"]);
    for block in blocks {
        let Kinds { dead, always, dynamic } = block.channels;
        let channels = [dead + always + dynamic, dead, always, dynamic].map(|count| count.to_string());
        let run = block.layer.map_or("–".to_string(), percent);
        let open = if channels[0] == "0" { "–".to_string() } else { percent(mean(block.channel_shares())) };
        table.row([block.name.clone(), run].into_iter().chain(channels).chain([open]));
    }
    table.print();
}

/// Prints the gates that a model has, and, if it was evaluated, how they were used then.
pub fn show(record: &Record) {
    let blocks = if record.blocks.len() == 1 { "block has" } else { "blocks have" };
    say!("{} {blocks} gates", record.blocks.len());
    let cut = if record.cut > 0 {
        format!(", of which {} have been cut off since", short(record.cut))
    } else {
        String::new()
    };
    say!(
        "they were attached to a model of {} FLOPs for one example{cut}; gate networks take {}",
        short(record.flops),
        short(record.gate_flops)
    );
    let used: Option<Vec<BlockUse>> =
        record.blocks.iter().map(|block| Some(BlockUse::of(block, &block.usage.as_ref()?.open))).collect();
    if let Some(used) = used {
        say!("in the last evaluation");
        return print_blocks(&used);
    }
    say!("no evaluation has been recorded");
    let mut table = Table::new(&["block", "<of the block", "<of channels"]);
    for block in &record.blocks {
        let groups: Vec<String> = block.groups.iter().map(|group| group.channels.to_string()).collect();
        let layer = if block.layer.is_some() { "yes" } else { "no" };
        table.row([block.name.clone(), layer.to_string(), groups.join(", ")]);
    }
    table.print();
}

/// Lets the program `eval` of a model with gates say how they are used, if it does not yet.
pub fn measured(model: &mut Model) -> Result<()> {
    let measures = model.programs.get("eval").is_some_and(|program| program.graph.find_output(GATES).is_some());
    if measures || Record::load(model)?.is_none() {
        return Ok(());
    }
    Driver::new().run_pass(&GateOutputs::default(), model).map(drop)
}

/// Keeps how the gates of a trained model are used: in its record, and, with the rest, in the output folder. What the record said before
/// is not of this model.
pub fn keep(model: &mut Model, found: Option<&(String, GateUse)>, folder: &Path) -> Result<()> {
    let Some(mut record) = Record::load(model)? else { return Ok(()) };
    record.blocks.iter_mut().for_each(|block| block.usage = None);
    if let Some((split, found)) = found {
        record.set_usage(&found.open, &found.value)?;
        Gates::of(&record, split, found)?.write(folder)?;
    }
    record.store(model)
}

/// The mean of some shares; 0 if there are none.
pub fn mean(shares: &[f64]) -> f64 {
    shares.iter().sum::<f64>() / shares.len().max(1) as f64
}

/// `0.935` as `93.5 %`.
pub fn percent(share: f64) -> String {
    format!("{} %", number((1000.0 * share).round() / 10.0))
}
