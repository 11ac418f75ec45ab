//! Epilogues that micro-kernels compute themselves.
//!
//! ```text
//! result → + a number per column → + another tensor → not below → not above → 0 where a third tensor is not within bounds → memory
//! ```
//! Bias, residual, ReLU and Clip of nearly every layer are of this form, and the gradients of the latter; a program would send them through the first-level
//! cache instruction by instruction. What is not exactly this stays a program.

use super::program::{Bin, Ins, Program, Simple, Src, Then, Un, Width};
use super::view::{Walk, place};
use crate::cpu::contract::{Contract, Matrix, Tail};
use std::collections::HashMap;

/// What a register holds.
#[derive(Clone, Copy)]
enum Held<'p> {
    /// A number per column.
    Column(&'p Walk),
    /// A number per element.
    Element(&'p Walk),
    /// The sum of products, and what has happened to it.
    Sum(State<'p>),
    /// Whether a number per element is between two others.
    Between(&'p Walk, f32, f32),
}

#[derive(Clone, Copy)]
struct State<'p> {
    bias: Option<&'p Walk>,
    more: Option<&'p Walk>,
    low: f32,
    high: f32,
    mask: Option<(&'p Walk, f32, f32)>,
}

impl<'p> State<'p> {
    const NEW: State<'p> = State { bias: None, more: None, low: f32::NEG_INFINITY, high: f32::INFINITY, mask: None };

    fn is_bounded(&self) -> bool {
        self.low > f32::NEG_INFINITY || self.high < f32::INFINITY || self.mask.is_some()
    }
    fn plus(mut self, other: Held<'p>) -> Option<Held<'p>> {
        let place = match other {
            Held::Column(walk) => self.bias.replace(walk),
            Held::Element(walk) => self.more.replace(walk),
            Held::Sum(_) | Held::Between(..) => return None,
        };
        (place.is_none() && !self.is_bounded()).then_some(Held::Sum(self))
    }
    fn at_least(self, low: f32) -> Option<Held<'p>> {
        let first = !self.is_bounded() && !low.is_nan();
        first.then_some(Held::Sum(State { low, ..self }))
    }
    fn at_most(self, high: f32) -> Option<Held<'p>> {
        let first = self.high == f32::INFINITY && self.mask.is_none() && !high.is_nan();
        first.then_some(Held::Sum(State { high, ..self }))
    }
    fn masked(self, condition: Held<'p>) -> Option<Held<'p>> {
        let mask = match (self.mask, condition) {
            (None, Held::Between(walk, above, below)) => Some((walk, above, below)),
            (Some((old, a, b)), Held::Between(walk, above, below)) if old == walk => {
                Some((walk, a.max(above), b.min(below)))
            }
            _ => return None,
        };
        Some(Held::Sum(State { mask, ..self }))
    }
}

/// Writes an epilogue as a tail, if it is one.
pub fn simplify(mut contract: Contract) -> Contract {
    if let Some((tail, out)) = contract.epilogue.as_ref().and_then(|program| read(&contract, program)) {
        contract.epilogue = None;
        contract.tail = Some(tail);
        contract.out = Some(out);
    }
    contract
}

fn read(contract: &Contract, program: &Program) -> Option<(Tail, Matrix)> {
    let mut held: HashMap<u16, Held> = HashMap::new();
    let mut stored = None;
    for ins in &program.code {
        let (dst, what) = match ins {
            Ins::Tile(dst) => (*dst, Held::Sum(State::NEW)),
            Ins::Load(dst, walk) if program.width[*dst as usize] == Width::Full => {
                let same = walk.lead.iter().all(|&(_, stride)| stride == 0);
                (*dst, if same && walk.col == 1 { Held::Column(walk) } else { Held::Element(walk) })
            }
            Ins::Un(Un::Relu, dst, a) => (*dst, sum(&held, *a)?.at_least(0.0)?),
            Ins::Bin(Bin::Add, dst, a, b) => (*dst, plus(&held, *a, *b)?),
            Ins::Bin(Bin::Max, dst, a, Src::Const(low)) => (*dst, sum(&held, *a)?.at_least(*low)?),
            Ins::Bin(Bin::Min, dst, a, Src::Const(high)) => (*dst, sum(&held, *a)?.at_most(*high)?),
            Ins::Bin(Bin::Less, dst, Src::Const(bound), a) => (*dst, between(&held, *a, *bound, f32::INFINITY)?),
            Ins::Bin(Bin::Less, dst, a, Src::Const(bound)) => (*dst, between(&held, *a, f32::NEG_INFINITY, *bound)?),
            Ins::Select(dst, condition, a, Src::Const(0.0)) => {
                (*dst, sum(&held, *a)?.masked(find(&held, *condition)?)?)
            }
            Ins::Two(Simple::Add, Then::Add, dst, a, b, c) => {
                let Held::Sum(first) = plus(&held, *a, *b)? else { return None };
                (*dst, first.plus(find(&held, *c)?)?)
            }
            Ins::Store(a, walk) if stored.is_none() => {
                stored = Some((sum(&held, *a)?, matrix(contract, walk)?));
                continue;
            }
            _ => return None,
        };
        held.insert(dst, what);
    }
    let (state, out) = stored?;
    let side_by_side = |x: &Matrix| x.col == 1 || contract.n == 1;
    let more = match state.more {
        None => None,
        Some(walk) => Some(matrix(contract, walk).filter(side_by_side)?),
    };
    let mask = match state.mask {
        None => None,
        Some((walk, above, below)) => Some((matrix(contract, walk).filter(side_by_side)?, above, below)),
    };
    let bias = state.bias.map(|walk| (walk.buf, walk.offset));
    let tail = Tail { bias, more, in_place: false, low: state.low, high: state.high, mask };
    side_by_side(&out).then_some((tail, out))
}

fn find<'p>(held: &HashMap<u16, Held<'p>>, src: Src) -> Option<Held<'p>> {
    match src {
        Src::Reg(reg) => held.get(&reg).copied(),
        Src::Const(_) => None,
    }
}

fn sum<'p>(held: &HashMap<u16, Held<'p>>, src: Src) -> Option<State<'p>> {
    match find(held, src)? {
        Held::Sum(state) => Some(state),
        _ => None,
    }
}

fn between<'p>(held: &HashMap<u16, Held<'p>>, src: Src, above: f32, below: f32) -> Option<Held<'p>> {
    match find(held, src)? {
        Held::Element(walk) => Some(Held::Between(walk, above, below)),
        _ => None,
    }
}

fn plus<'p>(held: &HashMap<u16, Held<'p>>, a: Src, b: Src) -> Option<Held<'p>> {
    match (find(held, a)?, find(held, b)?) {
        (Held::Sum(state), other) | (other, Held::Sum(state)) => state.plus(other),
        _ => None,
    }
}

/// A walk over all rows of a contract's results as a matrix per batch, if it is one.
pub fn matrix(contract: &Contract, walk: &Walk) -> Option<Matrix> {
    let rows = contract.m;
    let row = walk.even(0, rows)?;
    let mut strides = vec![0; contract.batch.len()];
    let mut inner = rows;
    for (stride, &dim) in strides.iter_mut().zip(&contract.batch).rev() {
        if dim > 1 {
            *stride = walk.row(inner).checked_sub(walk.row(0))?;
        }
        inner *= dim;
    }
    let regular = (0..inner / rows.max(1)).all(|batch| {
        let place = place(batch, contract.batch.iter().copied().zip(strides.iter().copied()));
        walk.row(batch * rows) == walk.row(0) + place && walk.even(batch * rows, rows) == Some(row)
    });
    regular.then(|| Matrix { buf: walk.buf, offset: walk.offset, batch: strides, row, col: walk.col })
}
