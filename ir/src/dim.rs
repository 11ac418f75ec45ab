//! Dimensions: a number, a symbolic expression (`batch`, `batch*seq`, `seq+1`), or unknown.
//!
//! An expression is kept in one normal form, a sum of products of atoms with integer factors, so that two ways of
//! writing the same dimension compare equal. Atoms are names and (rounded-down) quotients that do not divide evenly.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// One axis of a shape.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Dim {
    /// A number.
    Known(i64),
    /// An expression in symbols. Never a plain number: that is [`Dim::Known`].
    Symbolic(Expr),
    /// Nothing is known; not even whether two unknowns are the same.
    Unknown,
}

/// A polynomial with integer factors over atoms.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Expr {
    /// product of atoms (sorted; empty for the constant term) → factor, never 0.
    terms: BTreeMap<Vec<Atom>, i64>,
}

/// What a product is made of.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Atom {
    Name(Arc<str>),
    /// floor(a / b)
    Quotient(Box<Expr>, Box<Expr>),
}

/// More terms than this and a dimension becomes unknown, so that no file can make expressions explode.
const MAX_TERMS: usize = 64;

impl Expr {
    fn constant(value: i64) -> Expr {
        let mut terms = BTreeMap::new();
        if value != 0 {
            terms.insert(Vec::new(), value);
        }
        Expr { terms }
    }
    fn atom(atom: Atom) -> Expr {
        Expr { terms: BTreeMap::from([(vec![atom], 1)]) }
    }
    fn as_constant(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&Vec::new()).copied(),
            _ => None,
        }
    }
    fn add(&self, other: &Expr, sign: i64) -> Option<Expr> {
        let mut terms = self.terms.clone();
        for (atoms, factor) in &other.terms {
            let entry = terms.entry(atoms.clone()).or_insert(0);
            *entry = entry.checked_add(factor.checked_mul(sign)?)?;
        }
        terms.retain(|_, factor| *factor != 0);
        (terms.len() <= MAX_TERMS).then_some(Expr { terms })
    }
    fn mul(&self, other: &Expr) -> Option<Expr> {
        let mut terms = BTreeMap::new();
        for (a, fa) in &self.terms {
            for (b, fb) in &other.terms {
                let mut atoms = [a.as_slice(), b.as_slice()].concat();
                atoms.sort();
                let entry: &mut i64 = terms.entry(atoms).or_insert(0);
                *entry = entry.checked_add(fa.checked_mul(*fb)?)?;
            }
        }
        terms.retain(|_, factor| *factor != 0);
        (terms.len() <= MAX_TERMS).then_some(Expr { terms })
    }
    /// The quotient if every term divides evenly by the single-term divisor.
    fn exact_quotient(&self, divisor: &Expr) -> Option<Expr> {
        let (by_atoms, by_factor) = divisor.terms.iter().next()?;
        if divisor.terms.len() != 1 {
            return (self == divisor).then(|| Expr::constant(1));
        }
        let mut terms = BTreeMap::new();
        for (atoms, factor) in &self.terms {
            let mut rest = atoms.clone();
            for atom in by_atoms {
                let place = rest.iter().position(|a| a == atom)?;
                rest.remove(place);
            }
            if factor % by_factor != 0 {
                return None;
            }
            terms.insert(rest, factor / by_factor);
        }
        Some(Expr { terms })
    }
    fn eval(&self, lookup: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        let mut sum = 0i64;
        for (atoms, factor) in &self.terms {
            let mut product = *factor;
            for atom in atoms {
                let value = match atom {
                    Atom::Name(name) => lookup(name)?,
                    Atom::Quotient(a, b) => {
                        let divisor = b.eval(lookup)?;
                        if divisor == 0 {
                            return None;
                        }
                        a.eval(lookup)?.checked_div_euclid(divisor)?
                    }
                };
                product = product.checked_mul(value)?;
            }
            sum = sum.checked_add(product)?;
        }
        Some(sum)
    }
    fn names<'a>(&'a self, into: &mut Vec<&'a str>) {
        for atom in self.terms.keys().flatten() {
            match atom {
                Atom::Name(name) => into.push(name),
                Atom::Quotient(a, b) => {
                    a.names(into);
                    b.names(into);
                }
            }
        }
    }
    /// Whether it is certainly not negative, given that names are lengths.
    fn is_size(&self) -> bool {
        let size = |atom: &Atom| match atom {
            Atom::Name(_) => true,
            Atom::Quotient(a, b) => a.is_size() && b.is_size(),
        };
        self.terms.iter().all(|(atoms, factor)| *factor > 0 && atoms.iter().all(size))
    }
    fn into_dim(self) -> Dim {
        match self.as_constant() {
            Some(value) => Dim::Known(value),
            None => Dim::Symbolic(self),
        }
    }
}

impl Dim {
    /// A named dimension.
    pub fn symbol(name: &str) -> Dim {
        Dim::Symbolic(Expr::atom(Atom::Name(name.into())))
    }
    /// The number, if it is one.
    pub fn known(&self) -> Option<i64> {
        match self {
            Dim::Known(value) => Some(*value),
            _ => None,
        }
    }
    /// Whether two dimensions are certainly the same (two unknowns are not).
    pub fn same(&self, other: &Dim) -> bool {
        self == other && *self != Dim::Unknown
    }
    /// Whether it is certainly not negative: names are lengths.
    pub fn is_size(&self) -> bool {
        self.expr().is_some_and(|e| e.is_size())
    }
    fn expr(&self) -> Option<Expr> {
        match self {
            Dim::Known(value) => Some(Expr::constant(*value)),
            Dim::Symbolic(expr) => Some(expr.clone()),
            Dim::Unknown => None,
        }
    }
    fn combine(&self, other: &Dim, op: impl Fn(&Expr, &Expr) -> Option<Expr>) -> Dim {
        match (self.expr(), other.expr()) {
            (Some(a), Some(b)) => op(&a, &b).map_or(Dim::Unknown, Expr::into_dim),
            _ => Dim::Unknown,
        }
    }
    /// `self + other`; unknown on overflow, as the others.
    pub fn add(&self, other: &Dim) -> Dim {
        self.combine(other, |a, b| a.add(b, 1))
    }
    /// `self - other`.
    pub fn sub(&self, other: &Dim) -> Dim {
        self.combine(other, |a, b| a.add(b, -1))
    }
    /// `self * other`. Zero times unknown is zero.
    pub fn mul(&self, other: &Dim) -> Dim {
        if self.known() == Some(0) || other.known() == Some(0) {
            return Dim::Known(0);
        }
        self.combine(other, Expr::mul)
    }
    /// `floor(self / other)`; unknown if `other` is 0.
    pub fn div_floor(&self, other: &Dim) -> Dim {
        match (self, other) {
            (_, Dim::Known(0)) => Dim::Unknown,
            (_, Dim::Known(1)) => self.clone(),
            (Dim::Known(a), Dim::Known(b)) => a.checked_div_euclid(*b).map_or(Dim::Unknown, Dim::Known),
            _ => self.combine(other, |a, b| {
                a.exact_quotient(b)
                    .or_else(|| Some(Expr::atom(Atom::Quotient(Box::new(a.clone()), Box::new(b.clone())))))
            }),
        }
    }
    /// The number it becomes once `lookup` gives every symbol a number.
    pub fn eval(&self, lookup: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        match self {
            Dim::Known(value) => Some(*value),
            Dim::Symbolic(expr) => expr.eval(lookup),
            Dim::Unknown => None,
        }
    }
    /// The names in it, with repeats.
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        if let Dim::Symbolic(expr) = self {
            expr.names(&mut names);
        }
        names
    }
    /// If it is exactly one name: that name.
    pub fn as_symbol(&self) -> Option<&str> {
        match self {
            Dim::Symbolic(expr) if expr.terms.len() == 1 => match expr.terms.first_key_value()? {
                (atoms, 1) if atoms.len() == 1 => match &atoms[0] {
                    Atom::Name(name) => Some(name),
                    Atom::Quotient(..) => None,
                },
                _ => None,
            },
            _ => None,
        }
    }
    /// The product of dimensions.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::Known(1), |p, d| p.mul(d))
    }
    /// Reads what [`Display`](fmt::Display) prints. A string that is not of that form becomes one symbol with that
    /// name, so that every `dim_param` of a file prints back unchanged.
    pub fn parse(text: &str) -> Dim {
        match Parser::new(text).parse() {
            Some(dim) if dim.to_string() == text => dim,
            _ => Dim::symbol(text),
        }
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Dim {
        Dim::Known(value)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Dim::Known(value) => write!(f, "{value}"),
            Dim::Symbolic(expr) => write!(f, "{expr}"),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for Expr {
    /// Terms with atoms first, the constant last: `2*batch*seq - seq + 1`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let constant = self.terms.get(&Vec::new()).map(|c| (&[][..], *c));
        let products = self.terms.iter().filter(|(atoms, _)| !atoms.is_empty());
        let terms = products.map(|(atoms, factor)| (atoms.as_slice(), *factor)).chain(constant);
        let mut first = true;
        for (atoms, factor) in terms {
            match (first, factor < 0) {
                (true, true) => f.write_str("-")?,
                (true, false) => {}
                (false, true) => f.write_str(" - ")?,
                (false, false) => f.write_str(" + ")?,
            }
            first = false;
            let size = factor.unsigned_abs();
            if size != 1 || atoms.is_empty() {
                write!(f, "{size}{}", if atoms.is_empty() { "" } else { "*" })?;
            }
            for (i, atom) in atoms.iter().enumerate() {
                write!(f, "{}{atom}", if i > 0 { "*" } else { "" })?;
            }
        }
        if first { f.write_str("0") } else { Ok(()) }
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Atom::Name(name) => f.write_str(name),
            Atom::Quotient(a, b) => write!(f, "floor(({a})/({b}))"),
        }
    }
}

/// A recursive-descent reader of the printed form, limited in depth.
struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Parser { rest: text, depth: 0 }
    }
    fn parse(mut self) -> Option<Dim> {
        let dim = self.sum()?;
        self.rest.is_empty().then_some(dim)
    }
    fn eat(&mut self, token: &str) -> bool {
        let hit = self.rest.strip_prefix(token);
        if let Some(rest) = hit {
            self.rest = rest;
        }
        hit.is_some()
    }
    fn sum(&mut self) -> Option<Dim> {
        self.depth += 1;
        if self.depth > 16 {
            return None;
        }
        let negative = self.eat("-");
        let first = self.product()?;
        let mut sum = if negative { Dim::Known(0).sub(&first) } else { first };
        loop {
            if self.eat(" + ") {
                sum = sum.add(&self.product()?);
            } else if self.eat(" - ") {
                sum = sum.sub(&self.product()?);
            } else {
                self.depth -= 1;
                return Some(sum);
            }
        }
    }
    fn product(&mut self) -> Option<Dim> {
        let mut product = self.factor()?;
        while self.eat("*") {
            product = product.mul(&self.factor()?);
        }
        Some(product)
    }
    fn factor(&mut self) -> Option<Dim> {
        if self.eat("floor((") {
            let a = self.sum()?;
            self.eat(")/(").then_some(())?;
            let b = self.sum()?;
            self.eat("))").then_some(())?;
            return Some(a.div_floor(&b));
        }
        let len = self.rest.find(|c: char| !(c.is_alphanumeric() || "_.:".contains(c))).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(len);
        self.rest = rest;
        match word.chars().next()? {
            '0'..='9' => word.parse().ok().map(Dim::Known),
            _ => Some(Dim::symbol(word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_dimensions_compare_equal() {
        let (b, s) = (Dim::symbol("batch"), Dim::symbol("seq"));
        assert_eq!(b.mul(&s), s.mul(&b));
        assert_eq!(b.mul(&s).div_floor(&s), b);
        assert_eq!(b.add(&1.into()).sub(&b), Dim::Known(1));
        assert!(!Dim::Unknown.same(&Dim::Unknown));
        assert_eq!(Dim::Unknown.mul(&0.into()), Dim::Known(0));
    }

    #[test]
    fn prints_and_parses() {
        let (b, s) = (Dim::symbol("b"), Dim::symbol("s"));
        let dim = b.mul(&s).mul(&2.into()).sub(&s).add(&1.into());
        assert_eq!(dim.to_string(), "2*b*s - s + 1");
        assert_eq!(Dim::parse("2*b*s - s + 1"), dim);
        let half = s.add(&1.into()).div_floor(&2.into());
        assert_eq!(half.to_string(), "floor((s + 1)/(2))");
        assert_eq!(Dim::parse(&half.to_string()), half);
        for odd in ["unk__12", "a b", "s0+1", "Min(3, s)", "-", ""] {
            assert_eq!(Dim::parse(odd).to_string(), odd);
        }
    }

    #[test]
    fn evaluates() {
        let dim = Dim::parse("2*b*s - s + 1");
        let lookup = |name: &str| Some(if name == "b" { 3 } else { 5 });
        assert_eq!(dim.eval(&lookup), Some(26));
        assert_eq!(dim.eval(&|_| None), None);
        assert_eq!(Dim::symbol("b").mul(&i64::MAX.into()).eval(&lookup), None);
    }
}
