//! Register programs: what a fused kernel does with one block of rows.
//!
//! Registers are single-assignment. A *full* register holds the block (`rows × cols`), a *row* register one number per
//! row (a reduction, or an operand broadcast along the row). Booleans are 0 and 1.

use super::view::Walk;
use std::collections::HashMap;

/// A register.
pub type Reg = u16;

/// What an instruction reads.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Src {
    /// A register.
    Reg(Reg),
    /// A number.
    Const(f32),
}

/// How much a register holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// One number per element.
    Full,
    /// One number per row.
    Row,
}

/// Functions of one number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Un {
    Copy,
    Neg,
    Abs,
    Exp,
    Log,
    Sqrt,
    Recip,
    Erf,
    Tanh,
    Sigmoid,
    Relu,
    Floor,
    Ceil,
    Round,
    Sign,
    Not,
    IsNan,
    Sin,
    Cos,
}

/// Functions of two numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Bin {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    Pow,
    Less,
    LessEqual,
    Equal,
}

/// The first function of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Simple {
    Add,
    Sub,
    Mul,
}

/// The second function of a pair, of the first one's result and another operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Then {
    Add,
    Sub,
    /// The other operand minus the result.
    SubFrom,
    Mul,
}

/// Reductions of a row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Fold {
    Sum,
    Max,
    Min,
}

/// One instruction.
#[derive(Clone, PartialEq, Debug)]
pub enum Ins {
    /// Reads memory: a full register, or a row register if the walk does not move along the row.
    Load(Reg, Walk),
    /// The tile that the products of a `Contract` were summed in.
    Tile(Reg),
    /// `dst = f(a)`
    Un(Un, Reg, Src),
    /// `dst = f(a, b)`
    Bin(Bin, Reg, Src, Src),
    /// `dst = second(first(a, b), c)`
    Two(Simple, Then, Reg, Src, Src, Src),
    /// `dst = condition ≠ 0 ? a : b`
    Select(Reg, Src, Src, Src),
    /// `dst[row] = fold of a along the row`
    Fold(Fold, Reg, Src),
    /// Writes memory.
    Store(Src, Walk),
}

/// Rows of no more than so many numbers are short: a loop per row would cost more than what it does.
pub const NARROW: usize = 160;

/// A program over a domain of `rows × cols`.
#[derive(Clone, PartialEq, Debug)]
pub struct Program {
    /// The number of rows.
    pub rows: usize,
    /// The length of a row.
    pub cols: usize,
    /// The instructions in order.
    pub code: Vec<Ins>,
    /// What each register holds.
    pub width: Vec<Width>,
    /// The scratch block of each register, reused once its last reader is done.
    pub block: Vec<u16>,
    /// The number of scratch blocks.
    pub blocks: usize,
    /// The registers that hold the same in every row (operands of a channel and what follows from them alone): they are
    /// filled once, and no other register takes their block.
    pub steady: Vec<bool>,
    /// Whether a block must span whole rows.
    pub whole_rows: bool,
    /// Whether a store writes where a load of the same step reads: then results go through scratch.
    pub in_place: bool,
}

/// Builds a program. What is computed already is not computed again.
#[derive(Debug, Default)]
pub struct Builder {
    code: Vec<Ins>,
    width: Vec<Width>,
    known: HashMap<(Function, [Operand; 3]), Reg>,
}

/// What an instruction computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Function {
    Un(Un),
    Bin(Bin),
    Select,
    Fold(Fold),
    Spread,
}

/// What it computes it from; numbers by their bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Operand {
    None,
    Reg(Reg),
    Const(u32),
}

impl From<Src> for Operand {
    fn from(src: Src) -> Operand {
        match src {
            Src::Reg(reg) => Operand::Reg(reg),
            Src::Const(number) => Operand::Const(number.to_bits()),
        }
    }
}

impl Builder {
    fn fresh(&mut self, width: Width) -> Reg {
        self.width.push(width);
        (self.width.len() - 1) as Reg
    }
    /// The width of an operand; `None` for a number.
    pub fn width_of(&self, src: Src) -> Option<Width> {
        match src {
            Src::Reg(reg) => Some(self.width[reg as usize]),
            Src::Const(_) => None,
        }
    }
    /// The register that holds this already, or a new one and the instruction that fills it.
    fn once(&mut self, function: Function, args: &[Src], width: Width, ins: impl FnOnce(Reg) -> Ins) -> Src {
        let mut key = [Operand::None; 3];
        key.iter_mut().zip(args).for_each(|(operand, &src)| *operand = src.into());
        if let Some(&reg) = self.known.get(&(function, key)) {
            return Src::Reg(reg);
        }
        let dst = self.fresh(width);
        self.code.push(ins(dst));
        self.known.insert((function, key), dst);
        Src::Reg(dst)
    }
    fn common(&self, args: &[Src]) -> Width {
        let full = args.iter().any(|&a| self.width_of(a) == Some(Width::Full));
        if full { Width::Full } else { Width::Row }
    }
    /// Reads memory.
    pub fn load(&mut self, walk: Walk) -> Src {
        let dst = self.fresh(if walk.col == 0 { Width::Row } else { Width::Full });
        self.code.push(Ins::Load(dst, walk));
        Src::Reg(dst)
    }
    /// Reads the tile of products.
    pub fn tile(&mut self) -> Src {
        let dst = self.fresh(Width::Full);
        self.code.push(Ins::Tile(dst));
        Src::Reg(dst)
    }
    /// `f(a)`
    pub fn un(&mut self, f: Un, a: Src) -> Src {
        self.once(Function::Un(f), &[a], self.common(&[a]), |dst| Ins::Un(f, dst, a))
    }
    /// `f(a, b)`
    pub fn bin(&mut self, f: Bin, a: Src, b: Src) -> Src {
        self.once(Function::Bin(f), &[a, b], self.common(&[a, b]), |dst| Ins::Bin(f, dst, a, b))
    }
    /// `f(a, number)`
    pub fn with(&mut self, f: Bin, a: Src, number: f32) -> Src {
        self.bin(f, a, Src::Const(number))
    }
    /// `condition ? a : b`
    pub fn select(&mut self, condition: Src, a: Src, b: Src) -> Src {
        let args = [condition, a, b];
        self.once(Function::Select, &args, self.common(&args), |dst| Ins::Select(dst, condition, a, b))
    }
    /// A reduction of rows of `cols` elements; an operand that is equal along the row is spread first.
    pub fn fold(&mut self, f: Fold, a: Src) -> Src {
        let a = self.spread(a);
        self.once(Function::Fold(f), &[a], Width::Row, |dst| Ins::Fold(f, dst, a))
    }
    /// The operand as a full register.
    pub fn spread(&mut self, a: Src) -> Src {
        if self.width_of(a) == Some(Width::Full) {
            return a;
        }
        self.once(Function::Spread, &[a], Width::Full, |dst| Ins::Un(Un::Copy, dst, a))
    }
    /// Writes memory.
    pub fn store(&mut self, src: Src, walk: Walk) {
        let src = if walk.col == 0 && self.width_of(src).is_some() { src } else { self.spread(src) };
        self.code.push(Ins::Store(src, walk));
    }
    /// Drops what no store needs, orders loads before their first reader, and assigns scratch blocks.
    pub fn finish(self, rows: usize, cols: usize) -> Program {
        let code = live(self.code, self.width.len());
        let steady = if cols <= NARROW { steady(&code, &self.width, rows) } else { vec![false; self.width.len()] };
        let code = lazy_loads(pairs(code, &self.width, &steady));
        let (block, blocks) = assign_blocks(&code, &steady);
        let whole_rows = code.iter().any(|ins| matches!(ins, Ins::Fold(..)));
        Program { rows, cols, code, width: self.width, block, blocks, steady, whole_rows, in_place: false }
    }
}

impl Ins {
    /// The register it writes.
    pub fn dst(&self) -> Option<Reg> {
        match self {
            Ins::Load(d, _) | Ins::Tile(d) | Ins::Un(_, d, _) | Ins::Bin(_, d, ..) => Some(*d),
            Ins::Select(d, ..) | Ins::Two(_, _, d, ..) | Ins::Fold(_, d, _) => Some(*d),
            Ins::Store(..) => None,
        }
    }
    /// The registers it reads.
    pub fn reads(&self) -> impl Iterator<Item = Reg> {
        let args: [Option<Src>; 3] = match self {
            Ins::Load(..) | Ins::Tile(_) => [None; 3],
            Ins::Un(_, _, a) | Ins::Fold(_, _, a) | Ins::Store(a, _) => [Some(*a), None, None],
            Ins::Bin(_, _, a, b) => [Some(*a), Some(*b), None],
            Ins::Select(_, a, b, c) | Ins::Two(_, _, _, a, b, c) => [Some(*a), Some(*b), Some(*c)],
        };
        args.into_iter().flatten().filter_map(|src| match src {
            Src::Reg(reg) => Some(reg),
            Src::Const(_) => None,
        })
    }
}

fn live(code: Vec<Ins>, regs: usize) -> Vec<Ins> {
    let mut needed = vec![false; regs];
    let mut kept: Vec<Ins> = Vec::with_capacity(code.len());
    for ins in code.into_iter().rev() {
        if ins.dst().is_none_or(|d| needed[d as usize]) {
            ins.reads().for_each(|r| needed[r as usize] = true);
            kept.push(ins);
        }
    }
    kept.reverse();
    kept
}

/// The full registers that are the same in every row and are not stored: loads of one row that all rows share, and what
/// is computed from such registers and numbers alone.
fn steady(code: &[Ins], width: &[Width], rows: usize) -> Vec<bool> {
    let mut steady = vec![false; width.len()];
    for ins in code {
        let Some(dst) = ins.dst().filter(|&dst| width[dst as usize] == Width::Full) else { continue };
        steady[dst as usize] = match ins {
            Ins::Load(_, walk) => walk.col == 1 && walk.even(0, rows) == Some(0),
            Ins::Un(..) | Ins::Bin(..) | Ins::Select(..) => ins.reads().all(|reg| steady[reg as usize]),
            _ => false,
        };
    }
    for ins in code {
        if let Ins::Store(Src::Reg(reg), _) = ins {
            steady[*reg as usize] = false;
        }
    }
    steady
}

/// Makes one instruction of two where the first one's result has no other reader: a pass over the block less. The same bits.
fn pairs(mut code: Vec<Ins>, width: &[Width], steady: &[bool]) -> Vec<Ins> {
    let (mut readers, mut maker) = (vec![0; width.len()], vec![None; width.len()]);
    for (i, ins) in code.iter().enumerate() {
        ins.reads().for_each(|r| readers[r as usize] += 1);
        if let Some(dst) = ins.dst() {
            maker[dst as usize] = Some(i);
        }
    }
    let mut gone = vec![false; code.len()];
    for i in 0..code.len() {
        let Ins::Bin(second, dst, a, b) = code[i] else { continue };
        // The function of the result, if it is the left or the right operand.
        let (left, right) = match second {
            Bin::Add => (Then::Add, Then::Add),
            Bin::Mul => (Then::Mul, Then::Mul),
            Bin::Sub => (Then::Sub, Then::SubFrom),
            _ => continue,
        };
        for (inner, other, then) in [(a, b, left), (b, a, right)] {
            let Src::Reg(reg) = inner else { continue };
            let full = width[reg as usize] == Width::Full && width[dst as usize] == Width::Full;
            // What is computed once stays out of what is computed for every block.
            let full = full && steady[reg as usize] == steady[dst as usize];
            let Some(at) = maker[reg as usize].filter(|&at| full && readers[reg as usize] == 1 && !gone[at]) else {
                continue;
            };
            let Ins::Bin(first, _, x, y) = code[at] else { continue };
            let first = match first {
                Bin::Add => Simple::Add,
                Bin::Sub => Simple::Sub,
                Bin::Mul => Simple::Mul,
                _ => continue,
            };
            code[i] = Ins::Two(first, then, dst, x, y, other);
            gone[at] = true;
            break;
        }
    }
    let mut gone = gone.into_iter();
    code.retain(|_| gone.next() == Some(false));
    code
}

/// Moves every load in front of its first reader, so that few registers are alive at a time.
fn lazy_loads(code: Vec<Ins>) -> Vec<Ins> {
    let mut waiting: HashMap<Reg, Ins> = HashMap::new();
    let mut out = Vec::with_capacity(code.len());
    for ins in code {
        if let Ins::Load(dst, _) = &ins {
            waiting.insert(*dst, ins);
            continue;
        }
        for reg in ins.reads() {
            out.extend(waiting.remove(&reg));
        }
        out.push(ins);
    }
    out
}

/// Linear scan. A result never shares a block with an operand of its own instruction.
fn assign_blocks(code: &[Ins], steady: &[bool]) -> (Vec<u16>, usize) {
    let regs = steady.len();
    let mut last = vec![0; regs];
    for (i, ins) in code.iter().enumerate() {
        ins.reads().for_each(|r| last[r as usize] = i);
    }
    let (mut block, mut free, mut blocks) = (vec![0u16; regs], Vec::new(), 0);
    for (i, ins) in code.iter().enumerate() {
        if let Some(dst) = ins.dst() {
            let used = if steady[dst as usize] { None } else { free.pop() };
            block[dst as usize] = used.unwrap_or_else(|| {
                blocks += 1;
                blocks - 1
            });
        }
        let mut done: Vec<Reg> = ins.reads().filter(|&r| last[r as usize] == i && !steady[r as usize]).collect();
        done.sort();
        done.dedup();
        free.extend(done.into_iter().map(|r| block[r as usize]));
    }
    (block, blocks as usize)
}
