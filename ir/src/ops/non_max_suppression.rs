//! `NonMaxSuppression`: of boxes that overlap too much, only those with the highest scores.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html>. For each image and class the boxes are taken by
//! falling score (of equal scores the first); one is kept unless its intersection with a kept one, divided by their union,
//! exceeds `iou_threshold`, until there are `max_output_boxes_per_class`. Boxes whose score is not above `score_threshold`
//! are left out. Shapes: boxes `[N, B, 4]` (two opposite corners y, x, y, x, or with `center_point_box` centre x, y, width,
//! height), scores `[N, C, B]`, the result `int64[kept, 3]`: image, class, box. How many there are depends on the data.

use super::real::{optional, reals, required};
use super::{EvalCx, Gradient, InferCx, OpDef, Sample};
use crate::error::Result;
use crate::graph::Operator;
use crate::rng::Draw;
use crate::{Attributes, DType, Dim, Tensor, bail, ensure};

/// The rows of this file.
pub const OPS: &[OpDef] = &[OpDef {
    name: "NonMaxSuppression",
    inputs: (2, 5),
    infer,
    eval: Some(eval),
    grad: Gradient::Zero,
    flops: |cx| 10 * cx.input_len(1),
    sample: Some(sample),
    ..OpDef::DEFAULT
}];

fn infer(cx: &mut InferCx) -> Result<()> {
    cx.op.attrs.flag("center_point_box", false)?;
    if let Some(boxes) = cx.shape(0) {
        let fits = boxes.len() == 3 && boxes[2].known().is_none_or(|n| n == 4);
        ensure!(fits, "its boxes have rank {}, expected shape [N, B, 4]", boxes.len());
    }
    cx.set_tensor(0, DType::I64, Some(vec![Dim::Unknown, Dim::Known(3)]));
    Ok(())
}

/// A box by its lower and upper ends along both axes.
#[derive(Clone, Copy)]
struct Area {
    low: [f64; 2],
    high: [f64; 2],
}

impl Area {
    fn new(numbers: &[f64], centred: bool) -> Area {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| numbers.get(i).copied().unwrap_or(0.0));
        if centred {
            return Area { low: [a - c / 2.0, b - d / 2.0], high: [a + c / 2.0, b + d / 2.0] };
        }
        Area { low: [a.min(c), b.min(d)], high: [a.max(c), b.max(d)] }
    }
    fn size(&self) -> f64 {
        (self.high[0] - self.low[0]) * (self.high[1] - self.low[1])
    }
    /// Whether intersection / union is above a threshold; never for boxes without area.
    fn overlaps(&self, other: &Area, threshold: f64) -> bool {
        let shared = |i: usize| self.high[i].min(other.high[i]) - self.low[i].max(other.low[i]);
        let (height, width) = (shared(0), shared(1));
        if height <= 0.0 || width <= 0.0 || self.size() <= 0.0 || other.size() <= 0.0 {
            return false;
        }
        height * width / (self.size() + other.size() - height * width) > threshold
    }
}

fn eval(cx: &EvalCx, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let (boxes, scores) = (required(inputs, 0)?, required(inputs, 1)?);
    let &[batch, count, 4] = boxes.shape() else { bail!("boxes of shape {:?}, expected [N, B, 4]", boxes.shape()) };
    let &[_, classes, _] = scores.shape() else { bail!("scores of shape {:?}, expected [N, C, B]", scores.shape()) };
    let expected = [batch, classes, count];
    ensure!(scores.shape() == expected, "scores of shape {:?}, expected {expected:?}", scores.shape());
    let most = optional(inputs, 2).map(|t| t.cast(DType::I64)?.item::<i64>()).transpose()?.unwrap_or(0);
    let number = |slot| optional(inputs, slot).map(|t| t.cast(DType::F64)?.item::<f64>()).transpose();
    let rule = Rule { most: usize::try_from(most).unwrap_or(0), overlap: number(3)?.unwrap_or(0.0), score: number(4)? };
    let centred = cx.op.attrs.flag("center_point_box", false)?;
    let areas: Vec<Area> = reals(boxes)?.chunks(4).map(|numbers| Area::new(numbers, centred)).collect();
    let scores = reals(scores)?;
    let mut kept = Vec::new();
    for image in 0..batch {
        let areas = &areas[image * count..(image + 1) * count];
        for class in 0..classes {
            let line = (image * classes + class) * count;
            let of_class = rule.kept(areas, &scores[line..line + count]);
            kept.extend(of_class.into_iter().flat_map(|i| [image as i64, class as i64, i as i64]));
        }
    }
    Ok(vec![Tensor::from_vec([kept.len() / 3, 3], kept)])
}

struct Rule {
    most: usize,
    overlap: f64,
    score: Option<f64>,
}

impl Rule {
    /// The boxes of one class that are kept, by falling score.
    fn kept(&self, areas: &[Area], scores: &[f64]) -> Vec<usize> {
        let above = |i: &usize| self.score.is_none_or(|least| scores[*i] > least);
        let mut order: Vec<usize> = (0..areas.len()).filter(above).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut kept: Vec<usize> = Vec::new();
        for i in order {
            if kept.len() == self.most {
                break;
            }
            if !kept.iter().any(|&k| areas[i].overlaps(&areas[k], self.overlap)) {
                kept.push(i);
            }
        }
        kept
    }
}

fn sample(draw: &mut Draw) -> Sample {
    let numbers = |draw: &mut Draw, shape: [usize; 3], high: f64| {
        let count: usize = shape.iter().product();
        Tensor::from_vec(shape, (0..count).map(|_| draw.float(0.0, high) as f32).collect::<Vec<f32>>())
    };
    let (boxes, scores) = (numbers(draw, [2, 6, 4], 2.0), numbers(draw, [2, 2, 6], 1.0));
    let mut inputs = vec![boxes, scores, Tensor::scalar(draw.int(0, 4)), Tensor::scalar(draw.float(0.1, 0.6) as f32)];
    if draw.chance(0.5) {
        inputs.push(Tensor::scalar(0.3f32));
    }
    let attrs = Attributes::new().with("center_point_box", draw.int(0, 1));
    Sample::new(Operator::onnx("NonMaxSuppression", attrs), inputs)
}
