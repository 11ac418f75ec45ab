//! `Einsum`: each letter of the equation names an axis; the output is the sum, over all letters it lacks, of the
//! product of the operands' elements: `bij,bjk->bik` is a batched matrix product.
//!
//! `...` stands for leading axes that broadcast. Without `->` the output has the axes of `...` and then, in
//! alphabetical order, the letters that occur once. Spec: <https://onnx.ai/onnx/operators/onnx__Einsum.html>.

use super::arithmetic::Arithmetic;
use super::elementwise::one_type;
use super::{CostCx, EvalCx, GradCx, Gradient, InferCx, OpDef, Sample, broadcast};
use crate::error::{Error, Result};
use crate::graph::{Operator, Value};
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, dispatch, ensure};
use std::borrow::Cow;

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "Einsum",
    inputs: (1, usize::MAX),
    infer,
    eval: Some(eval),
    grad: Gradient::Emit(grad),
    flops,
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

/// The name of an axis: a letter, or a digit for an axis of `...`, counted from its end.
type Label = char;

/// An equation in which every axis of every operand has a label.
struct Equation {
    inputs: Vec<Vec<Label>>,
    output: Vec<Label>,
}

impl Equation {
    fn parse(op: &Operator, ranks: &[usize]) -> Result<Equation> {
        let text: String = op.attrs.str("equation", "")?.chars().filter(|c| !c.is_whitespace()).collect();
        let wrong = |what: &str| Error::msg(format!("attribute `equation` is \"{text}\": {what}"));
        let (left, right) = match text.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (text.as_str(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != ranks.len() {
            return Err(wrong(&format!("{} terms for {} operands", terms.len(), ranks.len())));
        }
        let mut inputs = Vec::new();
        let mut widest = 0;
        for (term, &rank) in terms.iter().zip(ranks) {
            let letters = term.replacen("...", "", 1).chars().count();
            let open = term.contains("...");
            let fits = if open { letters <= rank && rank - letters < 10 } else { letters == rank };
            if !fits {
                return Err(wrong(&format!("\"{term}\" does not fit an operand of rank {rank}")));
            }
            widest = widest.max(rank - letters);
            inputs.push(labels(term, rank - letters).ok_or_else(|| wrong("only letters and one ... are allowed"))?);
        }
        let output = match right {
            Some(term) => labels(term, widest).ok_or_else(|| wrong("only letters and one ... are allowed"))?,
            None => implicit_output(&inputs, widest),
        };
        let known = |label: &Label| inputs.iter().any(|term| term.contains(label));
        if let Some(label) = output.iter().find(|label| !known(label)) {
            return Err(wrong(&format!("no operand has the axis {label}")));
        }
        if (1..output.len()).any(|i| output[..i].contains(&output[i])) {
            return Err(wrong("the output repeats an axis"));
        }
        Ok(Equation { inputs, output })
    }
    /// The labels of the output, then those that are summed over.
    fn all_labels(&self) -> Vec<Label> {
        let mut all = self.output.clone();
        for label in self.inputs.iter().flatten() {
            if !all.contains(label) {
                all.push(*label);
            }
        }
        all
    }
}

/// A term's labels, `...` replaced by that many digits; `None` if it has other characters.
fn labels(term: &str, open: usize) -> Option<Vec<Label>> {
    let digits: String = (0..open).rev().filter_map(|i| char::from_digit(i as u32, 10)).collect();
    let whole = term.replacen("...", &digits, 1);
    let letters = term.replacen("...", "", 1);
    letters.chars().all(|c| c.is_ascii_alphabetic()).then(|| whole.chars().collect())
}

fn implicit_output(inputs: &[Vec<Label>], open: usize) -> Vec<Label> {
    let mut once: Vec<Label> = inputs.iter().flatten().copied().filter(|c| c.is_ascii_alphabetic()).collect();
    once.sort();
    let single = |c: &Label| once.iter().filter(|x| *x == c).count() == 1;
    let letters: Vec<Label> = once.iter().copied().filter(single).collect();
    let digits = (0..open).rev().filter_map(|i| char::from_digit(i as u32, 10));
    digits.chain(letters).collect()
}

fn infer(cx: &mut InferCx) -> Result<()> {
    let dtype = one_type(cx, 0..cx.input_count())?;
    let shapes: Option<Vec<Vec<Dim>>> = (0..cx.input_count()).map(|slot| cx.shape(slot).map(<[Dim]>::to_vec)).collect();
    let Some(shapes) = shapes else {
        cx.set_tensor(0, dtype, None);
        return Ok(());
    };
    let ranks: Vec<usize> = shapes.iter().map(Vec::len).collect();
    let equation = Equation::parse(cx.op, &ranks)?;
    let output: Result<Vec<Dim>> = equation.output.iter().map(|&label| length(&equation, &shapes, label)).collect();
    cx.set_tensor(0, dtype, Some(output?));
    Ok(())
}

/// The length that the operands give an axis.
fn length(equation: &Equation, shapes: &[Vec<Dim>], label: Label) -> Result<Dim> {
    let mut found = Dim::Known(1);
    for (term, shape) in equation.inputs.iter().zip(shapes) {
        for (_, dim) in term.iter().zip(shape).filter(|(l, _)| **l == label) {
            found = broadcast::dims(&[&[found], std::slice::from_ref(dim)])?.remove(0);
        }
    }
    Ok(found)
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let Some(inputs) = inputs.iter().copied().collect::<Option<Vec<&Tensor>>>() else { bail!("an operand is missing") };
    let ranks: Vec<usize> = inputs.iter().map(|t| t.rank()).collect();
    let equation = Equation::parse(cx.op, &ranks)?;
    let dims = |t: &&Tensor| t.shape().iter().map(|&d| Dim::Known(d as i64)).collect::<Vec<_>>();
    let shapes: Vec<Vec<Dim>> = inputs.iter().map(dims).collect();
    let labels = equation.all_labels();
    let mut lengths = Vec::new();
    for &label in &labels {
        lengths.push(length(&equation, &shapes, label)?.known().unwrap_or(0) as usize);
    }
    let strides: Vec<Vec<usize>> = equation
        .inputs
        .iter()
        .zip(&inputs)
        .map(|(term, tensor)| labels.iter().map(|&label| stride(term, tensor.shape(), label)).collect())
        .collect();
    let (outer, inner) = lengths.split_at(equation.output.len());
    let Some(dtype) = inputs.first().map(|t| t.dtype()) else { bail!("it has no operand") };
    // Sums are computed in 64 bits.
    let wide = dispatch!(dtype, float _T => DType::F64, else dispatch!(dtype, int _T => DType::I64,
        else bail!("no Einsum of {dtype}")));
    let inputs = inputs.iter().map(|t| t.cast(wide)).collect::<Result<Vec<_>>>()?;
    let out = dispatch!(wide, wide T => {
        let data = inputs.iter().map(|t| t.as_slice::<T>()).collect::<Result<Vec<_>>>()?;
        Tensor::from_vec(outer, contract(outer, inner, &strides, &data))
    }, else bail!("no Einsum of {dtype}"));
    Ok(vec![out.cast(dtype)?])
}

/// How far an operand moves when a label's index grows by one. A repeated label moves along the diagonal.
fn stride(term: &[Label], shape: &[usize], label: Label) -> usize {
    let dense = broadcast::strides(shape);
    (0..term.len()).filter(|&axis| term[axis] == label && shape[axis] != 1).map(|axis| dense[axis]).sum()
}

/// The sums over the inner indices of the product of all operands, for all outer indices in row-major order.
fn contract<T: Arithmetic>(outer: &[usize], inner: &[usize], strides: &[Vec<usize>], data: &[Cow<[T]>]) -> Vec<T> {
    let mut out = Vec::with_capacity(outer.iter().product());
    for_each_index(outer, |place| {
        let mut sum = T::default();
        for_each_index(inner, |depth| {
            let factors = strides.iter().zip(data).map(|(strides, data)| {
                let index = place.iter().chain(depth);
                data[index.zip(strides).map(|(i, s)| i * s).sum::<usize>()]
            });
            sum = sum.plus(factors.reduce(T::times).unwrap_or_default());
        });
        out.push(sum);
    });
    out
}

/// All indices of a shape in row-major order.
fn for_each_index(shape: &[usize], mut visit: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    loop {
        visit(&index);
        let Some(axis) = (0..shape.len()).rev().find(|&axis| index[axis] + 1 < shape[axis]) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

/// The gradient of an operand is an `Einsum` of the output's gradient and the other operands onto its axes; axes that
/// nothing else has are broadcast. Operands that repeat an axis (diagonals) are refused.
fn grad(cx: &mut GradCx) -> Result<Vec<Option<Value>>> {
    let count = cx.wants.len();
    let operands: Vec<Value> = (0..count).map(|slot| cx.input(slot)).collect::<Result<_>>()?;
    let ranks: Vec<usize> = operands.iter().map(|&v| cx.emit.rank(v)).collect::<Result<_>>()?;
    let equation = letters_only(Equation::parse(&cx.op(), &ranks)?)?;
    let mut grads = vec![None; count];
    for slot in (0..count).filter(|&slot| cx.want(slot)).collect::<Vec<_>>() {
        grads[slot] = Some(operand_grad(cx, &equation, &operands, slot)?);
    }
    Ok(grads)
}

/// The axes of `...` renamed to letters that the equation does not use.
fn letters_only(equation: Equation) -> Result<Equation> {
    let used = equation.all_labels();
    let free: Vec<char> = ('A'..='Z').chain('a'..='z').filter(|c| !used.contains(c)).collect();
    let digits = used.iter().filter(|c| c.is_ascii_digit()).count();
    ensure!(digits <= free.len(), "its equation uses more axes than there are letters");
    let rename = |label: &Label| label.to_digit(10).and_then(|d| free.get(d as usize)).copied().unwrap_or(*label);
    let term = |labels: &Vec<Label>| labels.iter().map(rename).collect::<Vec<_>>();
    Ok(Equation { inputs: equation.inputs.iter().map(term).collect(), output: term(&equation.output) })
}

fn operand_grad(cx: &mut GradCx, equation: &Equation, operands: &[Value], slot: usize) -> Result<Value> {
    let own = &equation.inputs[slot];
    ensure!(
        (1..own.len()).all(|i| !own[..i].contains(&own[i])),
        "an operand that repeats an axis has no gradient: {}",
        own.iter().collect::<String>()
    );
    let mut terms = vec![equation.output.clone()];
    let mut values = vec![cx.dy()?];
    for other in (0..operands.len()).filter(|&i| i != slot) {
        terms.push(equation.inputs[other].clone());
        values.push(operands[other]);
    }
    let reached: Vec<Label> = own.iter().copied().filter(|l| terms.iter().any(|t| t.contains(l))).collect();
    let word = |labels: &Vec<Label>| labels.iter().collect::<String>();
    let left: Vec<String> = terms.iter().map(word).collect();
    let text = format!("{}->{}", left.join(","), word(&reached));
    let found = cx.emit.op("Einsum", &values, Attributes::new().with("equation", text))?;
    let missing: Vec<usize> = (0..own.len()).filter(|&axis| !reached.contains(&own[axis])).collect();
    let whole = if missing.is_empty() { found } else { cx.emit.unsqueeze(found, &missing)? };
    if cx.emit.same_shape(whole, operands[slot]) {
        return Ok(whole);
    }
    // An axis of length 1 of this operand was stretched, or one of all others.
    let shape = cx.emit.shape_of(operands[slot])?;
    let stretched = cx.emit.op("Expand", &[whole, shape], Attributes::new())?;
    cx.emit.sum_to(stretched, operands[slot])
}

/// One multiply-add per operand beyond the first, for every combination of indices.
fn flops(cx: &CostCx) -> u64 {
    let ranks: Vec<usize> = cx.inputs.iter().map(Vec::len).collect();
    let Ok(equation) = Equation::parse(cx.op, &ranks) else { return 0 };
    let mut points = 1u64;
    for label in equation.all_labels() {
        let lengths = equation.inputs.iter().zip(&cx.inputs).flat_map(|(term, shape)| term.iter().zip(shape));
        let longest = lengths.filter(|(l, _)| **l == label).map(|(_, d)| *d as u64).max();
        points = points.saturating_mul(longest.unwrap_or(1));
    }
    points.saturating_mul(2 * cx.inputs.len().saturating_sub(1).max(1) as u64)
}

fn sample(draw: &mut Draw) -> Sample {
    let cases: [(&str, &[&[usize]]); 9] = [
        ("bij,bjk->bik", &[&[2, 3, 4], &[2, 4, 2]]),
        ("ij,jk", &[&[3, 2], &[2, 4]]),
        ("bhid,bhjd->bhij", &[&[2, 2, 3, 2], &[2, 2, 4, 2]]),
        ("i,j->ij", &[&[3], &[4]]),
        ("ij->ji", &[&[2, 3]]),
        ("ij->i", &[&[2, 3]]),
        ("i,i", &[&[4], &[4]]),
        ("...ij,...jk->...ik", &[&[2, 3, 2], &[2, 2, 4]]),
        ("ab,bc,cd->ad", &[&[2, 3], &[3, 2], &[2, 2]]),
    ];
    let (equation, shapes) = *draw.pick(&cases);
    let inputs = shapes.iter().map(|shape| draw.tensor(shape, -1.0, 1.0)).collect();
    Sample::new(Operator::onnx("Einsum", Attributes::new().with("equation", equation)), inputs)
}
