//! Heads of attentions that gates shut.
//!
//! ```text
//! o = (softmax(q · k) · v) · c          c: a number per example and head
//! y = merged o · w                      q, k, v: projections of tokens, head by head
//! ```
//! A head is a batch of products by itself. Where its gate is 0 none of them is computed, nor its columns of what tokens are projected to, if a head has as many as whole panels of
//! the micro-kernels; the projection of all heads together reads over those that are shut.

use super::{Links, is_same, loaded, result, stays};
use crate::cpu::contract::{Heads, Matrix};
use crate::cpu::micro::kernels;
use crate::lower::{Step, tail};

/// Of tokens with all heads side by side, those of one head.
fn of_heads(tokens: &Matrix, width: usize) -> Matrix {
    let mut batch = tokens.batch.clone();
    batch.push(width);
    Matrix { batch, ..tokens.clone() }
}

/// A gate per example and head, for tokens with all heads side by side.
fn heads(gate: &Matrix, width: usize) -> Heads {
    Heads { gate: Matrix { batch: vec![gate.batch[0]], row: 0, col: gate.batch[1], ..gate.clone() }, width }
}

impl Links {
    /// A product per example and head that a gate multiplies, if only a product of tokens reads the results, all heads of a token side by side: that one, and the gate.
    pub(super) fn gated_heads(&self, at: usize) -> Option<(usize, Matrix)> {
        let Step::Contract(values) = &self.steps[at].step else { return None };
        // Where the gate is 0, so is the result.
        let tail = values.tail.as_ref().filter(|tail| tail.more.is_none() && tail.low <= 0.0 && tail.high >= 0.0)?;
        let gate = tail.factor.clone()?;
        let (out, &[examples, heads]) = (result(values)?, values.batch.as_slice()) else { return None };
        let reader = (*self.reader.get(&out.buf)?)?;
        let (merged, patch) = self.tokens(reader)?;
        let a = &merged.products[0].a;
        let read = Matrix { row: patch.steps[1], col: patch.steps[2], ..a.clone() };
        let wanted = of_heads(&read, values.n);
        let all = heads * values.n == patch.channels && values.m == merged.m && merged.batch == [examples];
        let plain = values.products.iter().all(|product| product.patch.is_none()) && gate.batch[1] > 0;
        let alone = self.is_operand_only(out.buf, reader) && self.steps[at].writes == [out.buf] && !self.moves(reader);
        (all && plain && alone && is_same(&out, &wanted, &values.batch)).then_some((reader, gate))
    }
    pub(super) fn skip_heads(&mut self, at: usize, reader: usize, gate: &Matrix) {
        let Step::Contract(values) = &self.steps[at].step else { return };
        let width = values.n;
        self.change(reader, gate, |skip| skip.heads_read = Some(heads(gate, width)));
        let mut next = vec![at];
        while let Some(at) = next.pop() {
            self.change(at, gate, |skip| skip.head = Some(gate.clone()));
            for (writer, projected) in self.made_for_heads(at) {
                match projected {
                    Some(width) => self.change(writer, gate, |skip| skip.heads_made = Some(heads(gate, width))),
                    None => next.push(writer),
                }
            }
        }
    }
    /// The products whose results only this one reads, for the same example and head: those that have as many batches; and those of tokens, of whose columns a head has so many.
    fn made_for_heads(&self, at: usize) -> Vec<(usize, Option<usize>)> {
        let Step::Contract(reader) = &self.steps[at].step else { return Vec::new() };
        let factors = reader
            .products
            .iter()
            .filter(|product| product.patch.is_none())
            .flat_map(|product| [(&product.a, (reader.m, product.k)), (&product.b, (product.k, reader.n))]);
        let mut found = Vec::new();
        for (matrix, lengths) in factors.filter(|(matrix, _)| self.is_operand_only(matrix.buf, at)) {
            found.extend(self.makes_heads(matrix, lengths, &reader.batch));
            found.extend(self.moves_heads(matrix, lengths, &reader.batch));
        }
        found.retain(|&(writer, _)| !self.moves(writer));
        found
    }
    /// Where a program makes that matrix of what tokens were projected to, head by head: these projections.
    fn moves_heads(&self, matrix: &Matrix, lengths: (usize, usize), batch: &[usize]) -> Vec<(usize, Option<usize>)> {
        let (Some(&at), &[examples, heads]) = (self.writer.get(&matrix.buf), batch) else { return Vec::new() };
        let Step::Program(program) = &self.steps[at].step else { return Vec::new() };
        let Some((_, out)) = tail::only_store(program).filter(|(_, out)| out.buf == matrix.buf) else {
            return Vec::new();
        };
        let (apart, parts) = (matrix.batch[1], examples * heads);
        let last = (lengths.0 - 1) * matrix.row + (lengths.1 - 1) * matrix.col;
        let one_by_one = last < apart && (examples == 1 || matrix.batch[0] == heads * apart) && matrix.offset == 0;
        if !one_by_one || !program.rows.is_multiple_of(parts) || self.steps[at].writes != [matrix.buf] {
            return Vec::new();
        }
        if !stays(program, out, parts, |place| place / apart) {
            return Vec::new();
        }
        let projections = loaded(program).filter_map(|walk| {
            let writer = self.only_for(walk.buf, at)?;
            let (made, _) = self.tokens(writer)?;
            let whole = self.steps[writer].writes == [walk.buf] && made.batch == [examples];
            let tokens = result(made).filter(|tokens| whole && tokens.offset == 0 && tokens.row == made.n)?;
            let width = made.n / heads;
            let dense = made.n == heads * width && (examples == 1 || tokens.batch[0] == made.m * made.n);
            let panels = width > 0 && width.is_multiple_of(kernels().panel);
            let of_one = |place: usize| place / (made.m * made.n) * heads + place % made.n / width;
            (dense && panels && stays(program, walk, parts, of_one)).then_some((writer, Some(width)))
        });
        projections.collect()
    }
    /// The step that makes what is read of a matrix per example and head, and how many columns a head has if it makes all of them side by side.
    fn makes_heads(&self, matrix: &Matrix, lengths: (usize, usize), batch: &[usize]) -> Option<(usize, Option<usize>)> {
        let writer = *self.writer.get(&matrix.buf)?;
        let Step::Contract(made) = &self.steps[writer].step else { return None };
        let out = result(made).filter(|_| self.steps[writer].writes == [matrix.buf])?;
        let plain = made.products.iter().all(|product| product.patch.is_none());
        if plain && made.batch == batch && is_same(&out, matrix, batch) && (made.m, made.n) == lengths {
            return Some((writer, None));
        }
        self.tokens(writer)?;
        // A head's columns, or transposed.
        let (read, width) = match matrix.col {
            1 => (matrix.clone(), lengths.1),
            _ => (Matrix { row: matrix.col, col: matrix.row, ..matrix.clone() }, lengths.0),
        };
        let all = batch == [made.batch[0], made.n / width.max(1)] && made.n.is_multiple_of(width.max(1));
        let panels = width.is_multiple_of(kernels().panel);
        (all && panels && is_same(&read, &of_heads(&out, width), batch)).then_some((writer, Some(width)))
    }
    /// Whether a contract jumps over heads.
    pub(super) fn has_heads(&self, at: usize) -> bool {
        let Step::Contract(contract) = &self.steps[at].step else { return false };
        contract.skip.as_ref().is_some_and(|skip| skip.heads_made.is_some() || skip.heads_read.is_some())
    }
}
