//! Images at points between their elements: what `GridSample` and `DeformConv` are made of.
//!
//! A point has one coordinate per spatial axis, counted in elements: 0 is the first element, `n − 1` the last. Along each
//! axis the value at a point is a weighted sum of one element (nearest), two (linear) or four (cubic, Keys 1981 with
//! a = −0.75); over several axes, of all their combinations:
//!
//! ```text
//! y[n, o, c] = Σ_t w_t(p[n, o]) · x[n, c, q_t(p[n, o])]
//! ```
//!
//! Elements outside of the image are 0, those of its border, or its mirror image. All of it is written out in other
//! operators, so gradients flow to the image through the gathered elements, and to the points through the weights.

use super::Emit;
use crate::error::Result;
use crate::graph::{Operator, Value};
use crate::{Attributes, DType, bail};

/// Which elements a point is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The nearest one; of two equally near ones that with the even index.
    Nearest,
    /// The two around it.
    Linear,
    /// The two before and the two behind it.
    Cubic,
}

/// What lies outside of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Padding {
    /// Zeros.
    Zeros,
    /// The elements of the border.
    Border,
    /// The mirror image.
    Reflection,
}

/// How an image is read between its elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interpolation {
    /// Which elements count.
    pub mode: Mode,
    /// What lies outside.
    pub padding: Padding,
    /// Whether the image ends at the middle of its outermost elements, or else half an element further out. Mirrors stand there.
    pub align_corners: bool,
}

impl Interpolation {
    /// Reads the attributes of `GridSample`.
    pub fn read(attrs: &Attributes) -> Result<Interpolation> {
        let mode = match attrs.str("mode", "linear")? {
            "nearest" => Mode::Nearest,
            "linear" => Mode::Linear,
            "cubic" => Mode::Cubic,
            other => bail!("attribute `mode` is \"{other}\", expected nearest, linear or cubic"),
        };
        let padding = match attrs.str("padding_mode", "zeros")? {
            "zeros" => Padding::Zeros,
            "border" => Padding::Border,
            "reflection" => Padding::Reflection,
            other => bail!("attribute `padding_mode` is \"{other}\", expected zeros, border or reflection"),
        };
        Ok(Interpolation { mode, padding, align_corners: attrs.flag("align_corners", false)? })
    }
    /// The values of `x` `[N, C, in…]` at points, whose coordinates along each spatial axis are `[N, O]`: `[N, O, C]`.
    pub fn sample(&self, emit: &mut Emit, x: Value, points: &[Value]) -> Result<Value> {
        let rows = emit.reshape(x, &[0, 0, -1])?;
        let rows = emit.transpose(rows, &[0, 2, 1])?;
        let mut sum = None;
        for tap in self.taps(emit, x, points)? {
            let term = tap.read(emit, rows)?;
            sum = Some(match sum {
                Some(sum) => emit.add(sum, term)?,
                None => term,
            });
        }
        match sum {
            Some(sum) => Ok(sum),
            None => bail!("points need at least one coordinate"),
        }
    }
    /// The elements that the points are made of, their places counted in the flattened image.
    fn taps(&self, emit: &mut Emit, x: Value, points: &[Value]) -> Result<Vec<Tap>> {
        let mut taps = Vec::new();
        for (axis, &point) in points.iter().enumerate() {
            let along = Axis::new(emit, x, 2 + axis, point, self)?.taps(emit, point)?;
            if axis == 0 {
                taps = along;
                continue;
            }
            let length = emit.length(x, 2 + axis)?;
            let mut joined = Vec::new();
            for outer in &taps {
                let line = emit.mul(outer.place, length)?;
                for inner in &along {
                    joined.push(outer.joined(emit, line, inner)?);
                }
            }
            taps = joined;
        }
        Ok(taps)
    }
}

/// One element for every point: `[N, O]` each.
#[derive(Clone, Copy)]
struct Tap {
    /// Its place, inside of the image (`int64`).
    place: Value,
    /// Whether it really lies there; `None` if all do.
    inside: Option<Value>,
    /// Its weight; `None` for 1.
    weight: Option<Value>,
}

impl Tap {
    /// The element at places along several axes; `line` is the place of the line of this one.
    fn joined(&self, emit: &mut Emit, line: Value, inner: &Tap) -> Result<Tap> {
        let place = emit.add(line, inner.place)?;
        let inside = match (self.inside, inner.inside) {
            (Some(a), Some(b)) => Some(emit.op("And", &[a, b], Attributes::new())?),
            (a, b) => a.or(b),
        };
        let weight = match (self.weight, inner.weight) {
            (Some(a), Some(b)) => Some(emit.mul(a, b)?),
            (a, b) => a.or(b),
        };
        Ok(Tap { place, inside, weight })
    }
    /// Its weighted values out of the image's rows `[N, P, C]`: `[N, O, C]`.
    fn read(&self, emit: &mut Emit, rows: Value) -> Result<Value> {
        let place = emit.unsqueeze(self.place, &[2])?;
        let batch = Operator::onnx("GatherND", Attributes::new().with("batch_dims", 1i64));
        let mut value = emit.node(batch, &[Some(rows), Some(place)], 1)?[0];
        if let Some(inside) = self.inside {
            let inside = emit.unsqueeze(inside, &[2])?;
            value = emit.select_or(inside, value, 0.0)?;
        }
        if let Some(weight) = self.weight {
            let weight = emit.unsqueeze(weight, &[2])?;
            value = emit.mul(value, weight)?;
        }
        Ok(value)
    }
}

/// One axis of the image, in the element type of the points.
struct Axis {
    rule: Interpolation,
    /// The place of the last element.
    last: Value,
    /// Where the image begins and how long it is, as the mirrors stand.
    begin: f64,
    extent: Value,
}

impl Axis {
    fn new(emit: &mut Emit, x: Value, axis: usize, point: Value, rule: &Interpolation) -> Result<Axis> {
        let dtype = emit.dtype(point)?;
        let length = emit.length_as(x, axis, dtype)?;
        let last = emit.add_scalar(length, -1.0)?;
        let (begin, extent) = if rule.align_corners { (0.0, last) } else { (-0.5, length) };
        // An image of one element has no extent between corners; its mirror image is that element.
        let one = emit.scalar(1.0, extent)?;
        let extent = emit.op("Max", &[extent, one], Attributes::new())?;
        Ok(Axis { rule: *rule, last, begin, extent })
    }
    fn taps(&self, emit: &mut Emit, point: Value) -> Result<Vec<Tap>> {
        if self.rule.mode == Mode::Nearest {
            let nearest = emit.unary("Round", point)?;
            let place = self.moved_inside(emit, nearest)?;
            return Ok(vec![self.tap(emit, place, None)?]);
        }
        let point = self.moved_inside(emit, point)?;
        let base = emit.unary("Floor", point)?;
        let fraction = emit.sub(point, base)?;
        let rest = emit.scalar_minus(1.0, fraction)?;
        if self.rule.mode == Mode::Linear {
            let next = emit.add_scalar(base, 1.0)?;
            return Ok(vec![self.tap(emit, base, Some(rest))?, self.tap(emit, next, Some(fraction))?]);
        }
        let weights = [
            far_weight(emit, fraction)?,
            near_weight(emit, fraction)?,
            near_weight(emit, rest)?,
            far_weight(emit, rest)?,
        ];
        let mut taps = Vec::new();
        for (shift, weight) in [-1.0, 0.0, 1.0, 2.0].into_iter().zip(weights) {
            let place = emit.add_scalar(base, shift)?;
            taps.push(self.tap(emit, place, Some(weight))?);
        }
        Ok(taps)
    }
    /// Points beyond the ends of the image are moved to its border, or mirrored into it.
    fn moved_inside(&self, emit: &mut Emit, point: Value) -> Result<Value> {
        match self.rule.padding {
            Padding::Zeros => Ok(point),
            Padding::Reflection => self.mirrored(emit, point),
            Padding::Border => {
                let clamped = self.clamped(emit, point)?;
                let end = emit.add_scalar(self.last, -self.begin)?;
                let before = emit.compare_scalar("Less", point, self.begin)?;
                let behind = emit.op("Greater", &[point, end], Attributes::new())?;
                let outside = emit.op("Or", &[before, behind], Attributes::new())?;
                emit.select(outside, clamped, point)
            }
        }
    }
    /// Folded at both ends: with the distance d from the beginning and the extent e, `d mod e` from the beginning in
    /// even multiples of e, from the end in odd ones.
    fn mirrored(&self, emit: &mut Emit, point: Value) -> Result<Value> {
        let distance = emit.add_scalar(point, -self.begin)?;
        let distance = emit.unary("Abs", distance)?;
        let times = emit.div(distance, self.extent)?;
        let times = emit.unary("Floor", times)?;
        let whole = emit.mul(times, self.extent)?;
        let rest = emit.sub(distance, whole)?;
        let half = emit.mul_scalar(times, 0.5)?;
        let floor = emit.unary("Floor", half)?;
        let even = emit.op("Equal", &[half, floor], Attributes::new())?;
        let back = emit.sub(self.extent, rest)?;
        let folded = emit.select(even, rest, back)?;
        emit.add_scalar(folded, self.begin)
    }
    /// Between 0 and the last element.
    fn clamped(&self, emit: &mut Emit, place: Value) -> Result<Value> {
        let zero = emit.scalar(0.0, place)?;
        let above = emit.op("Max", &[place, zero], Attributes::new())?;
        emit.op("Min", &[above, self.last], Attributes::new())
    }
    /// The element at a whole place.
    fn tap(&self, emit: &mut Emit, place: Value, weight: Option<Value>) -> Result<Tap> {
        let inside = match self.rule.padding {
            Padding::Zeros => {
                let begun = emit.compare_scalar("GreaterOrEqual", place, 0.0)?;
                let going = emit.op("LessOrEqual", &[place, self.last], Attributes::new())?;
                Some(emit.op("And", &[begun, going], Attributes::new())?)
            }
            _ => None,
        };
        let place = if self.rule.padding == Padding::Reflection { self.mirrored(emit, place)? } else { place };
        let place = self.clamped(emit, place)?;
        Ok(Tap { place: emit.cast(place, DType::I64)?, inside, weight })
    }
}

/// Keys's kernel at a distance of up to 1: `((a + 2) d − (a + 3)) d² + 1`.
fn near_weight(emit: &mut Emit, distance: Value) -> Result<Value> {
    let line = emit.mul_scalar(distance, KEYS + 2.0)?;
    let line = emit.add_scalar(line, -(KEYS + 3.0))?;
    let square = emit.square(distance)?;
    let product = emit.mul(line, square)?;
    emit.add_scalar(product, 1.0)
}

/// Keys's kernel at the distance `1 + d`, `0 ≤ d ≤ 1`: `a d (1 − d)²`.
fn far_weight(emit: &mut Emit, beyond: Value) -> Result<Value> {
    let rest = emit.scalar_minus(1.0, beyond)?;
    let square = emit.square(rest)?;
    let product = emit.mul(beyond, square)?;
    emit.mul_scalar(product, KEYS)
}

/// The parameter a of Keys's kernel.
const KEYS: f64 = -0.75;
