//! Recurrent layers.
//!
//! The product of the input with its weights is one contraction for all time steps; the recurrence is a
//! loop that carries the states of all directions at once. The backward direction walks time from the
//! end, so that a sequence shorter than the others starts at its own last step.

use super::activations::{elu_of, hard_sigmoid, leaky_relu, softsign, thresholded_relu};
use super::compose::{self, int_attr};
use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, LoopStep, V};
use ir::{DType, Dim, IrError, Result};

pub static OPS: &[Op] = &[
    op("GRU", 1, |cx| layer(cx, Cell::Gru)),
    op("LSTM", 1, |cx| layer(cx, Cell::Lstm)),
    op("RNN", 1, |cx| layer(cx, Cell::Rnn)),
];

#[derive(Clone, Copy, PartialEq)]
enum Cell {
    Rnn,
    Gru,
    Lstm,
}

impl Cell {
    fn gates(self) -> i64 {
        match self {
            Cell::Rnn => 1,
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Cell::Rnn => "rnn",
            Cell::Gru => "gru",
            Cell::Lstm => "lstm",
        }
    }
    /// Activations where the node names none.
    fn activations(self) -> &'static [&'static str] {
        match self {
            Cell::Rnn => &["Tanh"],
            Cell::Gru => &["Sigmoid", "Tanh"],
            Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

/// An activation with its parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Activation {
    Relu,
    Tanh,
    Sigmoid,
    Softsign,
    Softplus,
    Affine(f64, f64),
    LeakyRelu(f64),
    ThresholdedRelu(f64),
    ScaledTanh(f64, f64),
    HardSigmoid(f64, f64),
    Elu(f64),
}

impl Activation {
    fn apply(self, b: &mut Builder, x: V) -> Result<V> {
        let zero = b.scalar(b.dtype(x), 0.0)?;
        match self {
            Activation::Relu => b.max(x, zero),
            Activation::Tanh => b.tanh(x),
            Activation::Sigmoid => compose::sigmoid(b, x),
            Activation::Softsign => softsign(b, x),
            Activation::Softplus => compose::softplus(b, x),
            Activation::Affine(scale, shift) => {
                let y = b.mul_scalar(x, scale)?;
                b.add_scalar(y, shift)
            }
            Activation::LeakyRelu(alpha) => leaky_relu(b, x, alpha),
            Activation::ThresholdedRelu(alpha) => thresholded_relu(b, x, alpha),
            Activation::ScaledTanh(alpha, beta) => {
                let y = b.mul_scalar(x, beta)?;
                let y = b.tanh(y)?;
                b.mul_scalar(y, alpha)
            }
            Activation::HardSigmoid(alpha, beta) => hard_sigmoid(b, x, alpha, beta),
            Activation::Elu(alpha) => elu_of(b, x, alpha),
        }
    }
}

/// The activations of one node: by direction, the list of the cell.
fn activations(cx: &NodeCx, cell: Cell, directions: usize) -> Result<Vec<Vec<Activation>>, OpError> {
    let defaults = cell.activations();
    let names = cx.attrs.strs("activations")?.unwrap_or_default();
    let names: Vec<&str> = if names.is_empty() {
        defaults.iter().copied().cycle().take(defaults.len() * directions).collect()
    } else {
        names
    };
    if names.len() != defaults.len() * directions {
        return Err(OpError::invalid(
            Code::Attribute,
            format!("{} activations, expected {}", names.len(), defaults.len() * directions),
        ));
    }
    let alphas = cx.attrs.floats("activation_alpha")?.unwrap_or_default();
    let betas = cx.attrs.floats("activation_beta")?.unwrap_or_default();
    // each list is consumed by the activations that have such a parameter
    let (mut alphas, mut betas) = (alphas.iter().copied(), betas.iter().copied());
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        let mut alpha = |default: f64| alphas.next().map_or(default, f64::from);
        let mut beta = |default: f64| betas.next().map_or(default, f64::from);
        all.push(match name.to_ascii_lowercase().as_str() {
            "relu" => Activation::Relu,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            "softsign" => Activation::Softsign,
            "softplus" => Activation::Softplus,
            "affine" => Activation::Affine(alpha(1.0), beta(0.0)),
            "leakyrelu" => Activation::LeakyRelu(alpha(0.01)),
            "thresholdedrelu" => Activation::ThresholdedRelu(alpha(1.0)),
            "scaledtanh" => Activation::ScaledTanh(alpha(1.0), beta(1.0)),
            "hardsigmoid" => Activation::HardSigmoid(alpha(0.2), beta(0.5)),
            "elu" => Activation::Elu(alpha(1.0)),
            _ => return Err(OpError::invalid(Code::Attribute, format!("activation {name:?}"))),
        });
    }
    Ok(all.chunks(defaults.len()).map(<[_]>::to_vec).collect())
}

/// What one step needs besides its states; every value is inside the composite.
struct Step {
    cell: Cell,
    activations: Vec<Vec<Activation>>,
    clip: Option<f64>,
    /// Recurrent weights [D, gates * H, H].
    recurrence: V,
    /// Recurrent bias of the GRU's candidate [D, 1, H], where it is applied before the reset gate.
    reset_bias: Option<V>,
    linear_before_reset: bool,
    /// Peepholes [D, 1, H] of input, output and forget gate.
    peepholes: Option<[V; 3]>,
    input_forget: bool,
    hidden: Dim,
}

impl Step {
    /// Activation `which` of every direction on x[D, B, H], clipped first.
    fn activate(&self, b: &mut Builder, which: usize, x: V) -> Result<V> {
        let x = match self.clip {
            Some(c) => {
                let (lo, hi) = (b.scalar(b.dtype(x), -c)?, b.scalar(b.dtype(x), c)?);
                b.clamp(x, lo, hi)?
            }
            None => x,
        };
        self.activate_raw(b, which, x)
    }
    fn activate_raw(&self, b: &mut Builder, which: usize, x: V) -> Result<V> {
        let first = self.activations[0][which];
        if self.activations.iter().all(|a| a[which] == first) {
            return first.apply(b, x);
        }
        let mut parts = Vec::new();
        for (d, list) in self.activations.iter().enumerate() {
            let part = b.slice_axis(x, 0, &Dim::from(d), &Dim::from(1))?;
            parts.push(list[which].apply(b, part)?);
        }
        b.concat(&parts, 0)
    }
    /// Gate `i` of values [D, B, gates * H].
    fn gate(&self, b: &mut Builder, gates: V, i: i64) -> Result<V> {
        b.slice_axis(gates, 2, &(&self.hidden * &Dim::from(i)), &self.hidden)
    }
    /// h[D, B, H] times the recurrent weights of gates `from..from + count`: [D, B, count * H].
    fn recur(&self, b: &mut Builder, h: V, from: i64, count: i64) -> Result<V> {
        let start = &self.hidden * &Dim::from(from);
        let rows = b.slice_axis(self.recurrence, 1, &start, &(&self.hidden * &Dim::from(count)))?;
        b.contract(h, rows, &[(0, 0)], &[(2, 2)], b.dtype(h))
    }
    fn peep(&self, b: &mut Builder, x: V, gate: usize, c: V) -> Result<V> {
        let Some(p) = self.peepholes else { return Ok(x) };
        let t = b.mul(c, p[gate])?;
        b.add(x, t)
    }

    /// The next states from the gates' share of the input xw[D, B, gates * H].
    fn next(&self, b: &mut Builder, xw: V, states: &[V]) -> Result<Vec<V>> {
        let h = states[0];
        match self.cell {
            Cell::Rnn => {
                let r = self.recur(b, h, 0, 1)?;
                let s = b.add(xw, r)?;
                Ok(vec![self.activate(b, 0, s)?])
            }
            Cell::Gru => {
                let zr = self.recur(b, h, 0, 2)?;
                let pre = b.slice_axis(xw, 2, &Dim::from(0), &(&self.hidden * &Dim::from(2)))?;
                let pre = b.add(pre, zr)?;
                let z = self.gate(b, pre, 0)?;
                let z = self.activate(b, 0, z)?;
                let r = self.gate(b, pre, 1)?;
                let r = self.activate(b, 0, r)?;
                let mixed = if self.linear_before_reset {
                    let mut c = self.recur(b, h, 2, 1)?;
                    if let Some(bias) = self.reset_bias {
                        c = b.add(c, bias)?;
                    }
                    b.mul(r, c)?
                } else {
                    let rh = b.mul(r, h)?;
                    self.recur(b, rh, 2, 1)?
                };
                let x = self.gate(b, xw, 2)?;
                let n = b.add(x, mixed)?;
                let n = self.activate(b, 1, n)?;
                // (1 - z) n + z h
                let d = b.sub(h, n)?;
                let d = b.mul(z, d)?;
                Ok(vec![b.add(n, d)?])
            }
            Cell::Lstm => {
                let c = states[1];
                let r = self.recur(b, h, 0, 4)?;
                let pre = b.add(xw, r)?;
                let i = self.gate(b, pre, 0)?;
                let i = self.peep(b, i, 0, c)?;
                let i = self.activate(b, 0, i)?;
                let f = if self.input_forget {
                    let one = b.scalar(b.dtype(i), 1.0)?;
                    b.sub(one, i)?
                } else {
                    let f = self.gate(b, pre, 2)?;
                    let f = self.peep(b, f, 2, c)?;
                    self.activate(b, 0, f)?
                };
                let g = self.gate(b, pre, 3)?;
                let g = self.activate(b, 1, g)?;
                let kept = b.mul(f, c)?;
                let added = b.mul(i, g)?;
                let c = b.add(kept, added)?;
                let o = self.gate(b, pre, 1)?;
                let o = self.peep(b, o, 1, c)?;
                let o = self.activate(b, 0, o)?;
                let t = self.activate_raw(b, 2, c)?;
                Ok(vec![b.mul(o, t)?, c])
            }
        }
    }
}

/// The inputs of a node: the operands of the composite that exist, by role.
#[derive(Clone, Copy)]
struct Operands<T> {
    x: T,
    w: T,
    r: T,
    bias: Option<T>,
    lens: Option<T>,
    h: Option<T>,
    c: Option<T>,
    peepholes: Option<T>,
}

impl Operands<V> {
    fn list(&self) -> Vec<V> {
        let optional = [self.bias, self.lens, self.h, self.c, self.peepholes];
        [self.x, self.w, self.r].into_iter().chain(optional.into_iter().flatten()).collect()
    }
    /// The same roles for the arguments of the composite's body.
    fn inside(&self, args: &[V]) -> Result<Operands<V>> {
        let mut args = args.iter().copied();
        let mut take = || args.next().ok_or_else(|| IrError::ty("call", "an argument is missing"));
        Ok(Operands {
            x: take()?,
            w: take()?,
            r: take()?,
            bias: self.bias.map(|_| take()).transpose()?,
            lens: self.lens.map(|_| take()).transpose()?,
            h: self.h.map(|_| take()).transpose()?,
            c: self.c.map(|_| take()).transpose()?,
            peepholes: self.peepholes.map(|_| take()).transpose()?,
        })
    }
}

/// Attributes that shape the computation.
struct Config {
    cell: Cell,
    /// Walks time from the end, by direction.
    backward: Vec<bool>,
    batch_first: bool,
    activations: Vec<Vec<Activation>>,
    clip: Option<f64>,
    linear_before_reset: bool,
    input_forget: bool,
}

fn layer(cx: &mut NodeCx, cell: Cell) -> OpResult {
    let lstm = cell == Cell::Lstm;
    let operands = Operands {
        x: cx.input(0)?,
        w: cx.input(1)?,
        r: cx.input(2)?,
        bias: cx.opt(3)?,
        lens: cx.opt(4)?,
        h: cx.opt(5)?,
        c: if lstm { cx.opt(6)? } else { None },
        peepholes: if lstm { cx.opt(7)? } else { None },
    };
    cx.check_rank("X", operands.x, 3)?;
    cx.check_rank("W", operands.w, 3)?;
    cx.check_rank("R", operands.r, 3)?;
    let backward = match cx.string("direction", "forward")? {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => return Err(OpError::invalid(Code::Attribute, format!("direction {other:?}"))),
    };
    let config = Config {
        cell,
        activations: activations(cx, cell, backward.len())?,
        backward,
        batch_first: cx.int("layout", 0)? == 1,
        clip: cx.attrs.float("clip")?.map(f64::from).filter(|&c| c > 0.0),
        linear_before_reset: cx.flag("linear_before_reset", false)?,
        input_forget: cx.flag("input_forget", false)?,
    };
    let hidden = cx.dim(operands.r, 2)?;
    let attrs = vec![
        int_attr("directions", config.backward.len() as i64),
        int_attr("hidden_size", hidden.as_const().unwrap_or(0)),
    ];
    let list = operands.list();
    let out = cx.b.call::<IrError>(cell.name(), attrs, &list, |b, args| {
        let inner = operands.inside(args)?;
        body(b, &config, &inner)
    })?;
    Ok(out.into())
}

/// [Y, Y_h(, Y_c)] of the layer.
fn body(b: &mut Builder, config: &Config, o: &Operands<V>) -> Result<Vec<V>> {
    let x = if config.batch_first { b.swap_axes(o.x, 0, 1)? } else { o.x };
    let dtype = b.dtype(x);
    let [time, batch] = [compose::extent(b, x, 0)?, compose::extent(b, x, 1)?];
    let hidden = compose::extent(b, o.r, 2)?;
    let directions = Dim::from(config.backward.len());
    let gates = config.cell.gates();
    let one = Dim::from(1);

    // biases: input and recurrent parts add up, but for the GRU's candidate before its reset gate
    let half = &hidden * &Dim::from(gates);
    let (mut bias, mut reset_bias) = (None, None);
    if let Some(both) = o.bias {
        let wb = b.slice_axis(both, 1, &Dim::from(0), &half)?;
        let rb = b.slice_axis(both, 1, &half, &half)?;
        if config.cell == Cell::Gru && config.linear_before_reset {
            let early = &hidden * &Dim::from(2);
            let zr = b.slice_axis(rb, 1, &Dim::from(0), &early)?;
            let n = b.slice_axis(rb, 1, &early, &hidden)?;
            reset_bias = Some(b.unsqueeze(n, &[1])?);
            let first = b.slice_axis(wb, 1, &Dim::from(0), &early)?;
            let first = b.add(first, zr)?;
            let last = b.slice_axis(wb, 1, &early, &hidden)?;
            bias = Some(b.concat(&[first, last], 1)?);
        } else {
            bias = Some(b.add(wb, rb)?);
        }
    }

    // xw[T, D, B, gates * H], backward directions reversed in time
    let mut parts = Vec::new();
    for (d, &backward) in config.backward.iter().enumerate() {
        let w = b.index_axis(o.w, 0, &Dim::from(d))?;
        let mut xw = b.contract(x, w, &[], &[(2, 1)], dtype)?;
        if let Some(bias) = bias {
            let bias = b.index_axis(bias, 0, &Dim::from(d))?;
            xw = b.add(xw, bias)?;
        }
        if backward {
            xw = b.reverse(xw, 0)?;
        }
        parts.push(b.unsqueeze(xw, &[1])?);
    }
    let xw = b.concat(&parts, 1)?;

    // which steps count, [T, D, B, 1]
    let mask = match o.lens {
        None => None,
        Some(lens) => {
            let lens = b.convert(lens, DType::I64)?;
            let lens = b.reshape(lens, &[one.clone(), one.clone(), batch.clone(), one.clone()])?;
            let mut parts = Vec::new();
            for &backward in &config.backward {
                let mut t = compose::arange(b, DType::I64, &time, 0, 4)?;
                if backward {
                    t = b.reverse(t, 0)?;
                }
                parts.push(b.lt(t, lens)?);
            }
            Some(b.concat(&parts, 1)?)
        }
    };

    let state_shape = [directions.clone(), batch.clone(), hidden.clone()];
    let mut states = Vec::new();
    let given = if config.cell == Cell::Lstm { vec![o.h, o.c] } else { vec![o.h] };
    for s in given {
        states.push(match s {
            Some(s) if config.batch_first => b.swap_axes(s, 0, 1)?,
            Some(s) => s,
            None => b.full(dtype, &state_shape, 0.0)?,
        });
    }
    let peepholes = match o.peepholes {
        None => None,
        Some(p) => {
            let p = b.unsqueeze(p, &[1])?;
            let third = |b: &mut Builder, i: i64| b.slice_axis(p, 2, &(&hidden * &Dim::from(i)), &hidden);
            Some([third(b, 0)?, third(b, 1)?, third(b, 2)?])
        }
    };
    let step = Step {
        cell: config.cell,
        activations: config.activations.clone(),
        clip: config.clip,
        recurrence: o.r,
        reset_bias,
        linear_before_reset: config.linear_before_reset,
        peepholes,
        input_forget: config.input_forget,
        hidden: hidden.clone(),
    };

    let trip = b.dim_value(&time)?;
    let out = b.loop_::<IrError>(Some(trip), None, &states, |b, t, states| {
        let now = b.gather(xw, t, 0)?;
        let mut next = step.next(b, now, states)?;
        let mut shown = next[0];
        if let Some(mask) = mask {
            let mask = b.gather(mask, t, 0)?;
            let zero = b.scalar(dtype, 0.0)?;
            shown = b.select(mask, next[0], zero)?;
            for (new, old) in next.iter_mut().zip(states) {
                *new = b.select(mask, *new, *old)?;
            }
        }
        let cond = b.scalar(DType::Bool, 1.0)?;
        Ok(LoopStep { cond, carried: next, scans: vec![shown] })
    })?;
    let (finals, scans) = out.split_at(states.len());

    // Y[T, D, B, H]: the backward directions were walked from the end
    let mut y = scans[0];
    if config.backward.iter().any(|&r| r) {
        let mut parts = Vec::new();
        for (d, &backward) in config.backward.iter().enumerate() {
            let part = b.slice_axis(y, 1, &Dim::from(d), &one)?;
            parts.push(if backward { b.reverse(part, 0)? } else { part });
        }
        y = b.concat(&parts, 1)?;
    }
    let mut results = vec![y];
    results.extend_from_slice(finals);
    if config.batch_first {
        results[0] = b.transpose(results[0], &[2, 0, 1, 3])?;
        for s in &mut results[1..] {
            *s = b.swap_axes(*s, 0, 1)?;
        }
    }
    Ok(results)
}
