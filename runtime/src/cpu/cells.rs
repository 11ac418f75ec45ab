//! One step of one entry of a recurrent layer, forwards and backwards, for [`super::recurrence`]: loops over the units, gate after gate, that vectorise.
//! Slices hold a number per unit, those of gates one part per gate in ONNX's order; the formulas are those of
//! [`sartor_ir::ops::recurrent::recurrence`].

use super::simd::{sigmoid, tanh};
use crate::multiversion;

multiversion!(
    /// `a` holds the weighted state; the gates take its place.
    pub(super) fn lstm(z: &[f32], a: &mut [f32], h: &mut [f32], c: &mut [f32], kept: Option<&mut [f32]>) = lstm_inner
);

#[inline(always)]
unsafe fn lstm_inner<const FMA: bool>(
    z: &[f32],
    a: &mut [f32],
    h: &mut [f32],
    c: &mut [f32],
    kept: Option<&mut [f32]>,
) {
    let n = h.len();
    let (soft, fresh) = a.split_at_mut(3 * n);
    soft.iter_mut().zip(&z[..3 * n]).for_each(|(a, z)| *a = sigmoid::<FMA>(*z + *a));
    fresh.iter_mut().zip(&z[3 * n..]).for_each(|(a, z)| *a = tanh::<FMA>(*z + *a));
    let (input, rest) = soft.split_at(n);
    let (output, forget) = rest.split_at(n);
    for j in 0..n {
        c[j] = forget[j] * c[j] + input[j] * fresh[j];
    }
    for j in 0..n {
        h[j] = output[j] * tanh::<FMA>(c[j]);
    }
    if let Some(kept) = kept {
        kept[..4 * n].copy_from_slice(a);
        kept[4 * n..].copy_from_slice(c);
    }
}

multiversion!(
    /// The gates of a GRU in place of the weighted state, and the state that is shown to the hidden gate.
    pub(super) fn reset(z: &[f32], a: &mut [f32], h: &[f32], shown: &mut [f32]) = reset_inner
);

#[inline(always)]
unsafe fn reset_inner<const FMA: bool>(z: &[f32], a: &mut [f32], h: &[f32], shown: &mut [f32]) {
    let n = h.len();
    a[..2 * n].iter_mut().zip(&z[..2 * n]).for_each(|(a, z)| *a = sigmoid::<FMA>(*z + *a));
    for ((shown, h), reset) in shown.iter_mut().zip(h).zip(&a[n..2 * n]) {
        *shown = h * reset;
    }
}

multiversion!(
    /// `a` holds the weighted state; unless it is weighted before it is reset, its first two parts are the gates already. The hidden gate takes the
    /// place of the third.
    pub(super) fn gru(z: &[f32], a: &mut [f32], bias: (&[f32], bool), h: &mut [f32], kept: Option<&mut [f32]>) = gru_inner
);

#[inline(always)]
unsafe fn gru_inner<const FMA: bool>(
    z: &[f32],
    a: &mut [f32],
    (bias, before_reset): (&[f32], bool),
    h: &mut [f32],
    mut kept: Option<&mut [f32]>,
) {
    let n = h.len();
    if before_reset {
        a[..2 * n].iter_mut().zip(&z[..2 * n]).for_each(|(a, z)| *a = sigmoid::<FMA>(*z + *a));
        a[2 * n..].iter_mut().zip(bias).for_each(|(a, b)| *a += b);
    }
    if let Some(kept) = &mut kept {
        kept[..2 * n].copy_from_slice(&a[..2 * n]);
        kept[3 * n..].copy_from_slice(&a[2 * n..]);
    }
    let (gates, fresh) = a.split_at_mut(2 * n);
    let (update, reset) = gates.split_at(n);
    let hidden = &z[2 * n..];
    for j in 0..n {
        fresh[j] = tanh::<FMA>(hidden[j] + if before_reset { reset[j] * fresh[j] } else { fresh[j] });
    }
    for j in 0..n {
        h[j] = (1.0 - update[j]) * fresh[j] + update[j] * h[j];
    }
    if let Some(kept) = kept {
        kept[2 * n..3 * n].copy_from_slice(fresh);
    }
}

multiversion!(
    /// The state of an RNN.
    pub(super) fn rnn(z: &[f32], a: &[f32], relu: bool, h: &mut [f32]) = rnn_inner
);

#[inline(always)]
unsafe fn rnn_inner<const FMA: bool>(z: &[f32], a: &[f32], relu: bool, h: &mut [f32]) {
    for ((h, z), a) in h.iter_mut().zip(z).zip(a) {
        let x = *z + *a;
        *h = if relu { if x < 0.0 { 0.0 } else { x } } else { tanh::<FMA>(x) };
    }
}

multiversion!(
    /// From the gradients of both states to those of the gates and of the cell before.
    pub(super) fn lstm_back(kept: &[f32], c: &[f32], dh: &[f32], dc: &mut [f32], dz: &mut [f32]) = lstm_back_inner
);

#[inline(always)]
unsafe fn lstm_back_inner<const FMA: bool>(kept: &[f32], c: &[f32], dh: &[f32], dc: &mut [f32], dz: &mut [f32]) {
    let n = dh.len();
    let [input, output, forget, fresh, next] = std::array::from_fn(|k| &kept[k * n..(k + 1) * n]);
    let (d_input, rest) = dz.split_at_mut(n);
    let (d_output, rest) = rest.split_at_mut(n);
    let (d_forget, d_fresh) = rest.split_at_mut(n);
    for j in 0..n {
        let (i, o, f, g) = (input[j], output[j], forget[j], fresh[j]);
        let shown = tanh::<FMA>(next[j]);
        let total = dc[j] + dh[j] * o * (1.0 - shown * shown);
        d_input[j] = total * g * i * (1.0 - i);
        d_output[j] = dh[j] * shown * o * (1.0 - o);
        d_forget[j] = total * c[j] * f * (1.0 - f);
        d_fresh[j] = total * i * (1.0 - g * g);
        dc[j] = total * f;
    }
}

/// The gradients of the update and hidden gates, what else the weights see, what the reset gate gets, and in `dh` what passes the gates.
pub(super) fn gru_back(
    kept: &[f32],
    (h, before_reset): (&[f32], bool),
    dh: &mut [f32],
    dz: &mut [f32],
    mixed: &mut [f32],
    reset_grad: &mut [f32],
) {
    let n = dh.len();
    let [update, reset, fresh, q] = std::array::from_fn(|k| &kept[k * n..(k + 1) * n]);
    let (d_update, rest) = dz.split_at_mut(n);
    let d_fresh = &mut rest[n..];
    for j in 0..n {
        let (u, g) = (update[j], fresh[j]);
        d_update[j] = dh[j] * (h[j] - g) * u * (1.0 - u);
        d_fresh[j] = dh[j] * (1.0 - u) * (1.0 - g * g);
        dh[j] *= u;
    }
    match before_reset {
        true => {
            for j in 0..n {
                reset_grad[j] = d_fresh[j] * q[j];
                mixed[j] = d_fresh[j] * reset[j];
            }
        }
        false => mixed.iter_mut().zip(reset).zip(h).for_each(|((m, r), h)| *m = r * h),
    }
}

/// From the gradient of the reset state to those of the reset gate and of the state.
pub(super) fn shown_back(shown: &[f32], h: &[f32], reset: &[f32], reset_grad: &mut [f32], dh: &mut [f32]) {
    for j in 0..dh.len() {
        reset_grad[j] = shown[j] * h[j];
        dh[j] += shown[j] * reset[j];
    }
}

/// The gradient of what a gate is the sigmoid of.
pub(super) fn sigmoid_back(grad: &[f32], gate: &[f32], out: &mut [f32]) {
    for ((out, grad), gate) in out.iter_mut().zip(grad).zip(gate) {
        *out = grad * gate * (1.0 - gate);
    }
}

/// The gradient of an RNN's activation by its result.
pub(super) fn rnn_back(y: &[f32], relu: bool, dh: &[f32], dz: &mut [f32]) {
    for ((dz, dh), y) in dz.iter_mut().zip(dh).zip(y) {
        let slope = if relu { f32::from(u8::from(*y > 0.0)) } else { 1.0 - y * y };
        *dz = dh * slope;
    }
}
