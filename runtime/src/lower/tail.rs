//! Epilogues that micro-kernels compute themselves.
//!
//! ```text
//! result → + a number per column → · a number per batch → + another tensor → hard swish → not below → not above
//!        → · a number per batch and column → 0 where a third tensor is not within bounds → memory
//! ```
//! Bias, residual, ReLU and Clip of nearly every layer are of this form, gates of layers and channels, and the gradients of activations; a program would send them through the first-level
//! cache instruction by instruction. What is not exactly this stays a program.

use super::program::{Bin, Ins, Program, Simple, Src, Then, Un, Width};
use super::view::{Walk, place};
use crate::cpu::contract::{Contract, Matrix, Tail};
use crate::cpu::micro::Gate;
use std::collections::HashMap;

/// What a register holds.
#[derive(Clone, Copy)]
enum Held<'p> {
    /// A number per column.
    Column(&'p Walk),
    /// A number per element.
    Element(&'p Walk),
    /// A number per row.
    Row(&'p Walk),
    /// The sum of products, and what has happened to it.
    Sum(State<'p>),
    /// Whether a number per element is between two others.
    Between(&'p Walk, f32, f32),
    /// `clamp(scale · y + shift)` of the sum `y` in a register, or `y` times that, which is `true`.
    Gate(u16, Gate, bool),
}

#[derive(Clone, Copy)]
struct State<'p> {
    bias: Option<&'p Walk>,
    factor: Option<&'p Walk>,
    more: Option<&'p Walk>,
    gate: Option<Gate>,
    low: f32,
    high: f32,
    scale: Option<&'p Walk>,
    mask: Option<(&'p Walk, f32, f32)>,
}

impl<'p> State<'p> {
    const NEW: State<'p> = State {
        bias: None,
        factor: None,
        more: None,
        gate: None,
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
        scale: None,
        mask: None,
    };

    fn is_bounded(&self) -> bool {
        self.gate.is_some()
            || self.scale.is_some()
            || self.low > f32::NEG_INFINITY
            || self.high < f32::INFINITY
            || self.mask.is_some()
    }
    fn plus(mut self, other: Held<'p>) -> Option<Held<'p>> {
        let place = match other {
            Held::Column(walk) if self.factor.is_none() => self.bias.replace(walk),
            Held::Element(walk) => self.more.replace(walk),
            _ => return None,
        };
        (place.is_none() && !self.is_bounded()).then_some(Held::Sum(self))
    }
    /// Times what is one number per batch (a layer's gate), or per batch and column (channels' gates).
    fn times(self, other: Held<'p>) -> Option<Held<'p>> {
        let state = match other {
            Held::Row(walk) if self.factor.is_none() && self.more.is_none() && !self.is_bounded() => {
                State { factor: Some(walk), ..self }
            }
            Held::Column(walk) | Held::Element(walk) if self.scale.is_none() && self.mask.is_none() => {
                State { scale: Some(walk), ..self }
            }
            _ => return None,
        };
        Some(Held::Sum(state))
    }
    /// Whether bounds may follow.
    fn is_open(&self) -> bool {
        self.mask.is_none() && self.scale.is_none()
    }
    fn at_least(self, low: f32) -> Option<Held<'p>> {
        let first = self.low == f32::NEG_INFINITY && self.high == f32::INFINITY && self.is_open() && !low.is_nan();
        first.then_some(Held::Sum(State { low, ..self }))
    }
    fn at_most(self, high: f32) -> Option<Held<'p>> {
        let first = self.high == f32::INFINITY && self.is_open() && !high.is_nan();
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
            Ins::Load(dst, walk) => (*dst, Held::Row(walk)),
            Ins::Un(Un::Relu, dst, a) => (*dst, sum(&held, *a)?.at_least(0.0)?),
            Ins::Bin(f, dst, a, b) => (*dst, gate(&held, *f, *a, *b).or_else(|| binary(&held, *f, *a, *b))?),
            Ins::Select(dst, condition, a, Src::Const(0.0)) => {
                (*dst, sum(&held, *a)?.masked(find(&held, *condition)?)?)
            }
            Ins::Two(f, g, dst, a, b, c) => {
                let two = || both(&held, (*f, *g), [*a, *b, *c]);
                (*dst, gate_two(&held, (*f, *g), [*a, *b, *c]).or_else(two)?)
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
    // A number per batch does not move from row to row.
    let still = |walk: Option<&Walk>, per_column: bool| match walk {
        None => Some(None),
        Some(walk) => {
            let found = still_matrix(contract, walk);
            found.filter(|x| !per_column || side_by_side(x)).map(Some)
        }
    };
    let (factor, scale) = (still(state.factor, false)?, still(state.scale, true)?);
    let mask = match state.mask {
        None => None,
        Some((walk, above, below)) => Some((matrix(contract, walk).filter(side_by_side)?, above, below)),
    };
    let bias = state.bias.map(|walk| (walk.buf, walk.offset));
    let (in_place, gate, low, high) = (false, state.gate, state.low, state.high);
    let tail = Tail { bias, factor, more, in_place, gate, low, high, scale, mask };
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
        Held::Gate(reg, gate, true) => {
            let state = sum(held, Src::Reg(reg))?;
            (!state.is_bounded()).then_some(State { gate: Some(gate), ..state })
        }
        _ => None,
    }
}

/// Two instructions in one.
fn both<'p>(held: &HashMap<u16, Held<'p>>, f: (Simple, Then), [a, b, c]: [Src; 3]) -> Option<Held<'p>> {
    let first = match f.0 {
        Simple::Add => plus(held, a, b)?,
        Simple::Mul => times(held, a, b)?,
        Simple::Sub => return None,
    };
    let (Held::Sum(first), other) = (first, find(held, c)?) else { return None };
    match f.1 {
        Then::Add => first.plus(other),
        Then::Mul => first.times(other),
        Then::Sub | Then::SubFrom => None,
    }
}

/// Sums, bounds, and questions about a mask.
fn binary<'p>(held: &HashMap<u16, Held<'p>>, f: Bin, a: Src, b: Src) -> Option<Held<'p>> {
    match (f, a, b) {
        (Bin::Add, ..) => plus(held, a, b),
        (Bin::Mul, ..) => times(held, a, b),
        (Bin::Max, _, Src::Const(low)) => sum(held, a)?.at_least(low),
        (Bin::Min, _, Src::Const(high)) => sum(held, a)?.at_most(high),
        (Bin::Less, Src::Const(bound), _) => between(held, b, bound, f32::INFINITY),
        (Bin::Less, _, Src::Const(bound)) => between(held, a, f32::NEG_INFINITY, bound),
        _ => None,
    }
}

/// The next two parts of a hard swish, of which the first has no register.
fn gate_two<'p>(held: &HashMap<u16, Held<'p>>, f: (Simple, Then), [a, b, c]: [Src; 3]) -> Option<Held<'p>> {
    let g = match f {
        (Simple::Mul, Then::Mul) => Bin::Mul,
        (Simple::Mul, Then::Add) => Bin::Add,
        _ => return None,
    };
    const BETWEEN: u16 = u16::MAX;
    let mut more = held.clone();
    more.insert(BETWEEN, gate(held, Bin::Mul, a, b)?);
    gate(&more, g, Src::Reg(BETWEEN), c)
}

/// The next part of a hard swish.
fn gate<'p>(held: &HashMap<u16, Held<'p>>, f: Bin, a: Src, b: Src) -> Option<Held<'p>> {
    let (a, b) = if matches!(a, Src::Const(_)) && matches!(f, Bin::Add | Bin::Mul) { (b, a) } else { (a, b) };
    let Src::Reg(reg) = a else { return None };
    const ALL: Gate = Gate { scale: 1.0, shift: 0.0, low: f32::NEG_INFINITY, high: f32::INFINITY, factor: 1.0 };
    let bounded = |g: &Gate| g.low > f32::NEG_INFINITY || g.high < f32::INFINITY;
    Some(match (f, find(held, a)?, b) {
        (Bin::Add, Held::Sum(_), Src::Const(shift)) => Held::Gate(reg, Gate { shift, ..ALL }, false),
        (Bin::Mul, Held::Sum(_), Src::Const(scale)) => Held::Gate(reg, Gate { scale, ..ALL }, false),
        (Bin::Add, Held::Gate(y, g, false), Src::Const(shift)) if !bounded(&g) => {
            Held::Gate(y, Gate { shift: g.shift + shift, ..g }, false)
        }
        (Bin::Max, Held::Gate(y, g, false), Src::Const(low)) if !bounded(&g) && !low.is_nan() => {
            Held::Gate(y, Gate { low, ..g }, false)
        }
        (Bin::Min, Held::Gate(y, g, false), Src::Const(high)) if g.high == f32::INFINITY && !high.is_nan() => {
            Held::Gate(y, Gate { high, ..g }, false)
        }
        (Bin::Mul, Held::Sum(_), Src::Reg(_)) => match find(held, b)? {
            Held::Gate(y, g, false) if y == reg => Held::Gate(y, g, true),
            _ => return None,
        },
        (Bin::Mul, Held::Gate(y, g, false), Src::Reg(other)) if y == other => Held::Gate(y, g, true),
        (Bin::Mul, Held::Gate(y, g, done), Src::Const(factor)) if done || bounded(&g) => {
            Held::Gate(y, Gate { factor: g.factor * factor, ..g }, done)
        }
        (Bin::Div, Held::Gate(y, g, done), Src::Const(divisor)) if done || bounded(&g) => {
            Held::Gate(y, Gate { factor: g.factor / divisor, ..g }, done)
        }
        _ => return None,
    })
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

fn times<'p>(held: &HashMap<u16, Held<'p>>, a: Src, b: Src) -> Option<Held<'p>> {
    match (find(held, a)?, find(held, b)?) {
        (Held::Sum(state), other) | (other, Held::Sum(state)) => state.times(other),
        _ => None,
    }
}

/// What an epilogue that is no tail multiplies its only result by at last: a number per batch and column. `None` too if it reads anything but numbers per column (from a
/// buffer each) and per row: those can be had for some of the columns.
pub fn last_factor(contract: &Contract, program: &Program) -> Option<Matrix> {
    let (Src::Reg(reg), out) = stored(contract, program)? else { return None };
    let mut buffers = vec![out.buf];
    let mut units = HashMap::new();
    for ins in &program.code {
        let Ins::Load(reg, walk) = ins else { continue };
        if buffers.contains(&walk.buf) || program.whole_rows {
            return None;
        }
        buffers.push(walk.buf);
        if walk.col != 0 {
            let still = still_matrix(contract, walk).filter(|x| x.col == 1)?;
            units.insert(*reg, still);
        }
    }
    let made = program.code.iter().find(|ins| ins.dst() == Some(reg))?;
    let factors: &[Src] = match made {
        Ins::Bin(Bin::Mul, _, a, b) => &[*a, *b],
        Ins::Two(Simple::Mul, Then::Mul, _, a, b, c) => &[*a, *b, *c],
        Ins::Two(_, Then::Mul, _, _, _, c) => &[*c],
        _ => return None,
    };
    let gate = factors.iter().find_map(|factor| match factor {
        Src::Reg(reg) => {
            units.get(reg).filter(|gate| contract.batch.iter().all(|&n| n == 1) || gate.batch.iter().any(|&s| s > 0))
        }
        Src::Const(_) => None,
    })?;
    Some(gate.clone())
}

/// A number per batch that the sum of products is multiplied by in an epilogue that is no tail, so that no result depends on the sum where it is 0.
pub fn first_factor(contract: &Contract, program: &Program) -> Option<Matrix> {
    let mut gates = program.code.iter().filter_map(|ins| match ins {
        Ins::Load(reg, walk) if walk.col == 0 => Some((*reg, still_matrix(contract, walk)?)),
        _ => None,
    });
    gates.find_map(|(gate, place)| {
        // Registers that depend on the sum even where the gate is 0.
        let mut open: Vec<u16> = Vec::new();
        for ins in &program.code {
            let is_open = |src: &Src| matches!(src, Src::Reg(reg) if open.contains(reg));
            let is_gate = |src: &Src| matches!(src, Src::Reg(reg) if *reg == gate);
            let stays = match ins {
                Ins::Tile(_) => true,
                Ins::Bin(Bin::Mul, _, a, b) if is_gate(a) || is_gate(b) => false,
                Ins::Two(_, Then::Mul, .., c) if is_gate(c) => false,
                Ins::Two(Simple::Mul, _, _, a, b, c) if is_gate(a) || is_gate(b) => is_open(c),
                Ins::Store(src, _) if is_open(src) => return None,
                _ => ins.reads().any(|reg| open.contains(&reg)),
            };
            if let Some(dst) = ins.dst().filter(|_| stays) {
                open.push(dst);
            }
        }
        Some(place)
    })
}

/// The only result of an epilogue, and where it goes, if that is a matrix per batch whose columns lie side by side.
pub fn stored(contract: &Contract, program: &Program) -> Option<(Src, Matrix)> {
    let (src, walk) = only_store(program)?;
    Some((src, matrix(contract, walk).filter(|out| out.col == 1)?))
}

/// What a program writes, and where, if it is one thing.
pub fn only_store(program: &Program) -> Option<(Src, &Walk)> {
    let mut stored = program.code.iter().filter_map(|ins| match ins {
        Ins::Store(src, walk) => Some((*src, walk)),
        _ => None,
    });
    stored.next().filter(|_| stored.next().is_none())
}

/// The same row for all rows of a batch.
fn still_matrix(contract: &Contract, walk: &Walk) -> Option<Matrix> {
    matrix(contract, walk).filter(|x| x.row == 0 || contract.m == 1)
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
    regular.then_some(Matrix { buf: walk.buf, offset: walk.offset, batch: strides, row, col: walk.col })
}
