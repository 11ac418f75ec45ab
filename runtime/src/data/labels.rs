//! Labels: one per example (or one per token), of the type that the graph's `label` input has.

use super::schema::{Field, Schema};
use sartor_ir::{Context, DType, Error, Result, Tensor, bail, ensure};

/// Checks and converts a tensor of labels. `place(i)` says where row `i` stands, such as `train.tsv, line 7`.
pub fn from_tensor(schema: &Schema, field: &Field, tensor: &Tensor, place: &dyn Fn(usize) -> String) -> Result<Tensor> {
    if field.dtype.is_int() {
        let kind = tensor.dtype();
        ensure!(kind.is_int() || kind == DType::Bool, "the labels are {kind}, the model's label takes {}", field.dtype);
        check_classes(schema, tensor, place)?;
    } else {
        ensure!(tensor.is_finite(), "the labels hold a number that is not finite");
        check_probabilities(schema, tensor, place)?;
    }
    let tensor = tensor.cast(field.dtype)?;
    let Some(row) = field.row() else { return Ok(tensor) };
    let given = tensor.shape().get(1..).unwrap_or_default().to_vec();
    if field.accepts_row(&given) {
        return Ok(tensor);
    }
    // A label per example may come with an axis of length 1, or want one.
    let ones = row.iter().all(|d| d.is_none_or(|d| d == 1)) && given.iter().all(|&d| d == 1);
    ensure!(ones, "the labels are {:?}, the model's label is {}", tensor.shape(), field.describe());
    let shape: Vec<usize> = tensor.shape().iter().take(1).copied().chain(row.iter().map(|_| 1)).collect();
    tensor.reshaped(shape)
}

fn check_classes(schema: &Schema, tensor: &Tensor, place: &dyn Fn(usize) -> String) -> Result<()> {
    let Some(classes) = schema.classes else { return Ok(()) };
    for (i, label) in tensor.to_i64s()?.into_iter().enumerate() {
        let inside = usize::try_from(label).is_ok_and(|l| l < classes);
        if !inside && schema.ignore_index != Some(label) {
            let at = place(i / per_row(tensor));
            bail!("{at}: label {label} is outside the {classes} classes (0 to {})", classes.saturating_sub(1));
        }
    }
    Ok(())
}

/// Of another number the binary cross-entropy has no lower bound.
fn check_probabilities(schema: &Schema, tensor: &Tensor, place: &dyn Fn(usize) -> String) -> Result<()> {
    if schema.probabilities {
        let labels = tensor.to_f64s()?;
        let wrong = labels.iter().position(|label| !(0.0..=1.0).contains(label));
        if let Some(i) = wrong {
            bail!("{}: label {} is not a probability (0 to 1)", place(i / per_row(tensor)), labels[i]);
        }
    }
    Ok(())
}

/// How many labels an example has.
fn per_row(tensor: &Tensor) -> usize {
    (tensor.len() / tensor.shape().first().copied().unwrap_or(1).max(1)).max(1)
}

/// Labels that were written as text, one per example. `lines` are their line numbers.
pub fn from_texts(schema: &Schema, field: &Field, texts: &[String], file: &str, lines: &[usize]) -> Result<Tensor> {
    let place = |i: usize| format!("{file}, line {}", lines.get(i).copied().unwrap_or(0));
    let tensor = if field.dtype.is_int() {
        let parse = |(i, text): (usize, &String)| {
            let wrong = |_| Error::msg(format!("label \"{text}\" is not an integer")).at(place(i));
            text.trim().parse::<i64>().map_err(wrong)
        };
        Tensor::from_vec([texts.len()], texts.iter().enumerate().map(parse).collect::<Result<Vec<i64>>>()?)
    } else {
        let parse = |(i, text): (usize, &String)| {
            let wrong = || Error::msg(format!("label \"{text}\" is not a finite number")).at(place(i));
            text.trim().parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(wrong)
        };
        Tensor::from_vec([texts.len()], texts.iter().enumerate().map(parse).collect::<Result<Vec<f64>>>()?)
    };
    from_tensor(schema, field, &tensor, &place).context(|| file.to_string()).map_err(unnest)
}

/// A message that begins with a line of the file needs no second mention of the file.
fn unnest(error: Error) -> Error {
    match error {
        Error::At { source, .. } if matches!(*source, Error::Message(ref m) if m.contains(", line ")) => *source,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(dtype: DType, shape: &[i64]) -> Schema {
        let shape = Some(shape.iter().map(|&d| sartor_ir::Dim::Known(d)).collect());
        let label = Some(Field { name: "label".into(), dtype, shape });
        Schema { label, classes: dtype.is_int().then_some(2), ..Schema::default() }
    }

    fn read(schema: &Schema, texts: &[&str]) -> Result<Tensor> {
        let texts: Vec<String> = texts.iter().map(|t| t.to_string()).collect();
        let lines: Vec<usize> = (2..).take(texts.len()).collect();
        from_texts(schema, schema.label.as_ref().unwrap(), &texts, "train.tsv", &lines)
    }

    #[test]
    fn classes_and_numbers() {
        let classes = schema(DType::I64, &[4]);
        assert_eq!(read(&classes, &["0", " 1"]).unwrap(), Tensor::from_i64s(&[0, 1]));
        let outside = read(&classes, &["0", "2"]).unwrap_err().to_string();
        assert_eq!(outside, "train.tsv, line 3: label 2 is outside the 2 classes (0 to 1)");
        let word = read(&classes, &["good"]).unwrap_err().to_string();
        assert_eq!(word, "train.tsv, line 2: label \"good\" is not an integer");
        let scores = schema(DType::F32, &[4, 1]);
        assert_eq!(read(&scores, &["0.5", "-1"]).unwrap(), Tensor::from_vec([2, 1], vec![0.5f32, -1.0]));
        let error = read(&scores, &["nan"]).unwrap_err().to_string();
        assert_eq!(error, "train.tsv, line 2: label \"nan\" is not a finite number");
        let shares = Schema { probabilities: true, ..schema(DType::F32, &[4, 1]) };
        assert_eq!(read(&shares, &["0", "1"]).unwrap(), Tensor::from_vec([2, 1], vec![0f32, 1.0]));
        let error = read(&shares, &["0.5", "1.5"]).unwrap_err().to_string();
        assert_eq!(error, "train.tsv, line 3: label 1.5 is not a probability (0 to 1)");
    }
}
