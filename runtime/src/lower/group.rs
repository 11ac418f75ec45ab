//! Groups: operators that become one kernel.
//!
//! A group has a domain of `numel` elements. Its items are elementwise operators on the whole domain, reductions of
//! its rows, and elementwise operators on one number per row. At most one `Contract` may feed it: then the group is that
//! contract's epilogue. An operator joins the group of a producer when it has the same domain, reads the group's values
//! at the same index, and none of its other inputs depends on the group from outside.

use super::program::{Fold, Width};
use super::view::{BufId, View, Walk};
use sartor_ir::{NodeId, Value};
use std::collections::{HashSet, VecDeque};

/// What an item reads.
#[derive(Clone, Debug)]
pub enum Arg {
    /// A view, broadcast to the item's shape.
    View(View),
    /// A number.
    Const(f32),
    /// An optional input that is left out.
    Missing,
}

/// What an item does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum What {
    /// The sum of the group's products.
    Products,
    /// A node of class elementwise or row.
    Node(NodeId),
    /// A row reduction, its result multiplied by a number; the operand is squared first if asked.
    Fold(Fold, f32, bool),
    /// The first operand as it is.
    Copy,
    /// 1 where the operand is not 0.
    Truth,
    /// The first operand times a number where the second is not 0, else 0.
    Masked(f32),
    /// The product of both operands where the second is not 0, else 0.
    Gated,
    /// The first operand plus the second times a number.
    AddScaled(f32),
    /// All operands and a number multiplied.
    Product(f32),
    /// The first operand times a number plus the second times what it lacks to 1.
    Mix(f32),
    /// `scale / √(variance + ε)` of a number per channel.
    Deviation(f32),
    /// `(x − mean) · factor + bias`
    Affine,
    /// `dy · a + (x − mean) · b + c` of `[dy, x, mean, a, b, c]`
    AffineGrad,
}

/// A result of an item.
#[derive(Clone, Debug)]
pub struct Out {
    /// The graph value, if it is one.
    pub value: Option<Value>,
    /// Where it is stored if somebody outside reads it.
    pub view: View,
    /// One number per element or per row.
    pub width: Width,
    /// Whether it is stored in the domain's own order, so that the group's items can read it from a register.
    pub natural: bool,
}

/// One operator of a group.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it does.
    pub what: What,
    /// What it reads.
    pub args: Vec<Arg>,
    /// What it computes on: elements or rows.
    pub width: Width,
    /// Its results.
    pub outs: Vec<Out>,
    /// Its place in the graph's order.
    pub at: usize,
}

/// One product of a contract, not yet folded.
#[derive(Clone, Debug)]
pub struct RawProduct {
    /// `batch… × m × k`
    pub a: View,
    /// `batch… × k × n`
    pub b: View,
    /// The factor.
    pub alpha: f32,
    /// For convolutions: `a` points to images, of which this makes the matrix, and the inner dimension.
    pub patch: Option<(crate::cpu::patch::Patch, usize)>,
}

/// The contract of a group.
#[derive(Clone, Debug)]
pub struct Core {
    /// The batch axes.
    pub batch: Vec<usize>,
    /// Rows of a result.
    pub m: usize,
    /// Columns of a result.
    pub n: usize,
    /// What is summed.
    pub products: Vec<RawProduct>,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Group {
    /// The number of elements of the domain.
    pub numel: usize,
    /// The length of a row, once something fixes it.
    pub cols: Option<usize>,
    /// The operators.
    pub items: Vec<Item>,
    /// The contract that feeds it.
    pub core: Option<Core>,
}

/// Groups do not grow beyond this.
pub const MAX_ITEMS: usize = 64;
/// Longest row that a fused reduction keeps in scratch.
pub const MAX_ROW: usize = 1 << 16;

impl Group {
    /// The result that is stored in a buffer.
    pub fn out(&self, buf: BufId) -> Option<&Out> {
        self.items.iter().flat_map(|i| &i.outs).find(|o| o.view.buf == buf)
    }
    /// Whether every item of both groups (and one more) can be computed on rows of one length, reading results of either group
    /// from registers. Returns that length.
    pub fn agree(&self, other: Option<&Group>, extra: Option<&Item>, needs: Option<usize>) -> Option<Option<usize>> {
        let mut cols = self.cols;
        for fixed in [other.and_then(|g| g.cols), needs].into_iter().flatten() {
            if cols.is_some_and(|c| c != fixed) {
                return None;
            }
            cols = Some(fixed);
        }
        if cols.is_some_and(|c| c == 0 || !self.numel.is_multiple_of(c)) {
            return None;
        }
        let find = |buf: BufId| self.out(buf).or_else(|| other.and_then(|g| g.out(buf)));
        let items = self.items.iter().chain(other.iter().flat_map(|g| &g.items)).chain(extra);
        for item in items {
            let reads = item.args.iter().all(|arg| match arg {
                Arg::View(view) => match find(view.buf) {
                    Some(out) => self.reads_register(out, view, item.width, cols),
                    None => item.width == Width::Row || cols.is_none_or(|c| Walk::new(view, c).is_some()),
                },
                _ => true,
            });
            let writes =
                item.outs.iter().all(|o| o.width == Width::Row || cols.is_none_or(|c| Walk::new(&o.view, c).is_some()));
            if !reads || !writes {
                return None;
            }
        }
        Some(cols)
    }
    /// Whether a view on a result of this group is exactly the register that holds it.
    fn reads_register(&self, out: &Out, view: &View, width: Width, cols: Option<usize>) -> bool {
        if !out.natural {
            // Stored otherwise, and read just so.
            let steps = |view: &View| {
                Vec::from_iter(view.shape.iter().zip(&view.strides).filter(|(n, _)| **n > 1).map(|(&n, &s)| (n, s)))
            };
            let full = out.width == Width::Full && width == Width::Full;
            return full && view.offset == out.view.offset && steps(view) == steps(&out.view);
        }
        if view.offset != 0 {
            return false;
        }
        match (out.width, width, cols) {
            (Width::Full, Width::Full, _) => view.len() == self.numel && view.is_dense(),
            (Width::Row, Width::Row, Some(cols)) => view.len() == self.numel / cols && view.is_dense(),
            (Width::Row, Width::Full, Some(cols)) => {
                let rows = self.numel / cols;
                let walk = Walk::new(view, cols);
                walk.is_some_and(|w| w.col == 0 && (rows == 1 || w.lead == [(rows, 1)]))
            }
            _ => false,
        }
    }
    /// Puts items in the graph's order, and those that one node became, or that were computed late, before who reads them.
    pub fn order_items(&mut self) {
        self.items.sort_by_key(|i| i.at);
        let mut left: VecDeque<Item> = std::mem::take(&mut self.items).into();
        let mut pending: HashSet<BufId> = left.iter().flat_map(|i| &i.outs).map(|o| o.view.buf).collect();
        while !left.is_empty() {
            let waits = |arg: &Arg| matches!(arg, Arg::View(view) if pending.contains(&view.buf));
            // Groups that need each other are never merged, so one is always ready.
            let next = left.iter().position(|item| !item.args.iter().any(waits)).unwrap_or(0);
            if let Some(item) = left.remove(next) {
                item.outs.iter().for_each(|o| _ = pending.remove(&o.view.buf));
                self.items.push(item);
            }
        }
    }
    /// Whether nothing happens to the products but sums with other things, one after the other.
    pub fn is_linear(&self) -> bool {
        self.core.is_some()
            && self.items.iter().all(|i| matches!(i.what, What::Products | What::AddScaled(_)) && i.outs.len() == 1)
    }
    /// The result of the last item, if it has exactly one.
    pub fn last_out(&self) -> Option<&Out> {
        match self.items.last()?.outs.as_slice() {
            [out] => Some(out),
            _ => None,
        }
    }
    /// The longest row length on which every item can be computed.
    pub fn choose_cols(&self) -> usize {
        if let Some(cols) = self.cols {
            return cols;
        }
        let views = || {
            let args = self.items.iter().flat_map(|i| &i.args).filter_map(|a| match a {
                Arg::View(view) => Some(view),
                _ => None,
            });
            args.chain(self.items.iter().flat_map(|i| &i.outs).map(|o| &o.view))
        };
        let mut lengths: Vec<usize> = views().flat_map(|v| suffix_products(&v.shape)).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let fits = |&cols: &usize| {
            cols > 0 && self.numel.is_multiple_of(cols) && views().all(|v| Walk::new(v, cols).is_some())
        };
        lengths.into_iter().rev().find(fits).unwrap_or(1)
    }
}

fn suffix_products(shape: &[usize]) -> Vec<usize> {
    let mut product = 1;
    shape
        .iter()
        .rev()
        .map(|d| {
            product *= d;
            product
        })
        .collect()
}
