//! Mixtures of experts of com.microsoft.
//!
//! Every expert computes every token, as one product with a batch of experts, and the weights of those that a token
//! did not choose are 0: no structure depends on what the router says. ONNX Runtime's CPU kernels are the reference.

use super::compose::{self, arange, wide};
use super::microsoft::unpack;
use super::{Op, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, V};
use ir::{DType, Dim, Result};

const MS: &str = "com.microsoft";

pub static OPS: &[Op] = &[op_in(MS, "MoE", moe), op_in(MS, "QMoE", quantized_moe)];

/// One of the products of all experts: weights [E, N, K], bias [E, N].
#[derive(Clone, Copy)]
struct Layer {
    weights: V,
    bias: Option<V>,
}

/// What the attributes say.
struct Experts {
    activation: Activation,
    k: i64,
    /// How logits of a router become weights.
    mixing: Mixing,
}

enum Activation {
    Relu,
    Gelu,
    Silu,
    Identity,
    SwiGlu { layout: Gate, alpha: f64, beta: f64, limit: f64 },
}

/// Where the gated half of a SwiGLU comes from.
enum Gate {
    /// A product of its own.
    Third,
    Interleaved,
    Halves,
}

enum Mixing {
    /// Softmax over all experts.
    All,
    /// Softmax over the chosen ones.
    Chosen,
}

impl Experts {
    fn of(cx: &NodeCx, mixing: Mixing) -> Result<Experts, OpError> {
        if cx.flag("use_sparse_mixer", false)? {
            return Err(OpError::unsupported(Code::Attribute, "the sparse mixer"));
        }
        let activation = match cx.string("activation_type", "relu")? {
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            "silu" => Activation::Silu,
            "identity" => Activation::Identity,
            "swiglu" => Activation::SwiGlu {
                layout: match cx.int("swiglu_fusion", 0)? {
                    0 => Gate::Third,
                    1 => Gate::Interleaved,
                    2 => Gate::Halves,
                    n => return Err(OpError::invalid(Code::Attribute, format!("swiglu_fusion {n}"))),
                },
                alpha: cx.float("activation_alpha", 1.0)?.into(),
                beta: cx.float("activation_beta", 0.0)?.into(),
                limit: cx.float("swiglu_limit", f32::INFINITY)?.into(),
            },
            other => {
                return Err(OpError::unsupported(Code::Attribute, format!("activation_type {other:?}")));
            }
        };
        let k = cx.int("k", 1)?;
        if k < 1 {
            return Err(OpError::invalid(Code::Attribute, format!("k should be positive, found {k}")));
        }
        Ok(Experts { activation, k, mixing })
    }

    /// Weights [T, E] of experts by token, 0 for those that it did not choose. `router`: logits [T, E]; `aggregate`:
    /// weights to take in their place.
    fn weights(&self, b: &mut Builder, router: V, aggregate: Option<V>) -> Result<V> {
        let experts = b.shape(router)[1].clone();
        let (best, chosen) = b.top_k(router, 1, &Dim::from(self.k), true)?;
        let mixed = match (aggregate, &self.mixing) {
            (Some(all), _) => b.convert(all, b.dtype(router))?,
            (None, Mixing::All) => compose::softmax(b, router, &[1])?,
            (None, Mixing::Chosen) => {
                // the largest logit of all is the largest of the chosen
                let most = b.reduce_max(best, &[1], true)?;
                let rest = b.sub(best, most)?;
                let e = b.exp(rest)?;
                let sum = b.reduce_sum(e, &[1], true)?;
                let d = b.sub(router, most)?;
                let e = b.exp(d)?;
                b.div(e, sum)?
            }
        };
        // [T, K, E]: token t chose expert e as its k-th
        let chosen = b.unsqueeze(chosen, &[2])?;
        let number = arange(b, DType::I64, &experts, 2, 3)?;
        let hit = b.eq(chosen, number)?;
        let hit = b.reduce_max(hit, &[1], false)?;
        let zero = b.scalar(b.dtype(mixed), 0.0)?;
        b.select(hit, mixed, zero)
    }

    /// The activation of [E, T, N].
    fn activate(&self, b: &mut Builder, h: V, gated: Option<V>) -> Result<V, OpError> {
        Ok(match &self.activation {
            Activation::Relu => {
                let zero = b.scalar(b.dtype(h), 0.0)?;
                b.max(h, zero)?
            }
            Activation::Gelu => compose::gelu_tanh(b, h)?,
            Activation::Silu => {
                let y = compose::swish(b, h, 1.0)?;
                match gated {
                    Some(other) => b.mul(y, other)?,
                    None => y,
                }
            }
            Activation::Identity => h,
            Activation::SwiGlu { layout, alpha, beta, limit } => {
                let shape = b.shape(h).to_vec();
                let half = shape[2].floor_div(&Dim::from(2), b.symbols());
                let (gate, linear) = match (layout, gated) {
                    (Gate::Third, Some(other)) => (h, other),
                    (Gate::Third, None) => {
                        return Err(OpError::invalid(Code::Input, "swiglu without fusion needs fc3"));
                    }
                    (Gate::Halves, _) => {
                        let parts = b.split(h, 2, &[half.clone(), half])?;
                        (parts[0], parts[1])
                    }
                    (Gate::Interleaved, _) => {
                        let pairs = [&shape[..2], &[half, Dim::from(2)]].concat();
                        let h = b.reshape(h, &pairs)?;
                        (b.index_axis(h, 3, &Dim::from(0))?, b.index_axis(h, 3, &Dim::from(1))?)
                    }
                };
                let (gate, linear) = if limit.is_finite() {
                    let (lo, hi) = (b.scalar(b.dtype(h), -limit)?, b.scalar(b.dtype(h), *limit)?);
                    (b.min(gate, hi)?, b.clamp(linear, lo, hi)?)
                } else {
                    (gate, linear)
                };
                let gate = compose::swish(b, gate, *alpha)?;
                let linear = b.add_scalar(linear, *beta)?;
                b.mul(gate, linear)?
            }
        })
    }
}

/// The mixture over rows of `x` ([T, K] or [B, S, K]).
fn mix(
    cx: &mut NodeCx,
    x: V,
    router: V,
    aggregate: Option<V>,
    layers: [Option<Layer>; 3],
    experts: &Experts,
) -> OpResult {
    cx.check_rank("router_probs", router, 2)?;
    let (shape, dtype) = (cx.shape(x), cx.dtype(x));
    let Some((width, lead)) = shape.split_last() else {
        return Err(OpError::invalid(Code::Shape, "the input is a scalar"));
    };
    let [Some(first), Some(second), third] = layers else {
        return Err(OpError::invalid(Code::Input, "fc1 and fc2 should be there"));
    };
    for l in [Some(first), Some(second), third].into_iter().flatten() {
        cx.check_rank("the weights of the experts", l.weights, 3)?;
    }
    let compute = wide(dtype);
    let tokens = Dim::product(lead);
    let b = &mut *cx.b;
    let rows = b.reshape(x, &[tokens, width.clone()])?;
    let rows = b.convert(rows, compute)?;
    // [E, N, K] times the rows [T, K], or [E, T, K]: [E, T, N]
    let product = |b: &mut Builder, x: V, l: Layer| -> Result<V> {
        let w = b.convert(l.weights, compute)?;
        let y = if b.rank(x) == 2 {
            let y = b.contract(x, w, &[], &[(1, 2)], compute)?;
            b.transpose(y, &[1, 0, 2])?
        } else {
            b.contract(x, w, &[(0, 0)], &[(2, 2)], compute)?
        };
        let Some(bias) = l.bias else { return Ok(y) };
        let bias = b.convert(bias, compute)?;
        let bias = b.unsqueeze(bias, &[1])?;
        b.add(y, bias)
    };
    let router = b.convert(router, compute)?;
    let weights = experts.weights(b, router, aggregate)?;
    let h = product(b, rows, first)?;
    let gated = third.map(|l| product(b, rows, l)).transpose()?;
    let h = experts.activate(b, h, gated)?;
    let y = product(b, h, second)?;
    // y[E, T, H] weighted by [T, E]
    let w = b.transpose(weights, &[1, 0])?;
    let y = b.contract(w, y, &[(1, 1)], &[(0, 0)], compute)?;
    let y = b.reshape(y, &shape)?;
    Ok(b.convert(y, dtype)?.into())
}

fn moe(cx: &mut NodeCx) -> OpResult {
    let (x, router) = (cx.input(0)?, cx.input(1)?);
    let mut layers = [None; 3];
    for (i, layer) in layers.iter_mut().enumerate() {
        let (weights, bias) = (cx.opt(2 + 2 * i)?, cx.opt(3 + 2 * i)?);
        *layer = weights.map(|weights| Layer { weights, bias });
    }
    let normalize = cx.flag("normalize_routing_weights", false)?;
    let experts = Experts::of(cx, if normalize { Mixing::Chosen } else { Mixing::All })?;
    mix(cx, x, router, None, layers, &experts)
}

/// As `MoE` with weights in integers: [E, N, K * bits / 8], scales [E, N] or [E, N, blocks], zero points likewise.
fn quantized_moe(cx: &mut NodeCx) -> OpResult {
    let (x, router, aggregate) = (cx.input(0)?, cx.input(1)?, cx.opt(14)?);
    let kind = cx.string("quant_type", "int")?;
    if kind != "int" {
        return Err(OpError::unsupported(Code::Attribute, format!("quant_type {kind:?}")));
    }
    if (15..cx.input_count()).any(|i| cx.val(i).is_some()) {
        return Err(OpError::unsupported(Code::Input, "scales of activations"));
    }
    let bits = cx.int("expert_weight_bits", 4)?;
    let block = cx.int("block_size", 0)?;
    let mut layers = [None; 3];
    for (i, layer) in layers.iter_mut().enumerate() {
        let (weights, scales, bias) = (cx.opt(2 + 3 * i)?, cx.opt(3 + 3 * i)?, cx.opt(4 + 3 * i)?);
        let zeros = cx.opt(11 + i)?;
        let own = cx.int(&format!("fc{}_expert_weight_bits", i + 1), bits)?;
        *layer = match (weights, scales) {
            (Some(w), Some(s)) => Some(Layer { weights: dequantized(cx, w, s, zeros, own, block)?, bias }),
            (Some(_), None) => return Err(OpError::invalid(Code::Input, "weights without scales")),
            (None, _) => None,
        };
    }
    let experts = Experts::of(cx, Mixing::Chosen)?;
    mix(cx, x, router, aggregate, layers, &experts)
}

/// The weights [E, N, K] as floats.
fn dequantized(
    cx: &mut NodeCx,
    packed: V,
    scales: V,
    zeros: Option<V>,
    bits: i64,
    block: i64,
) -> Result<V, OpError> {
    if !matches!(bits, 2 | 4 | 8) {
        return Err(OpError::unsupported(Code::Attribute, format!("weights of {bits} bits")));
    }
    cx.check_rank("the weights of the experts", packed, 3)?;
    let b = &mut *cx.b;
    let dtype = wide(b.dtype(scales));
    let q = unpack(b, packed, bits)?;
    let shape = b.shape(q).to_vec();
    let by_block = block > 0 && b.rank(scales) == 3;
    // a parameter of each row, or of each block of one
    let spread = |b: &mut Builder, p: V| -> Result<V> {
        let p = b.convert(p, dtype)?;
        if !by_block {
            let p = b.reshape(p, &[shape[0].clone(), shape[1].clone(), Dim::from(1)])?;
            return b.broadcast_to(p, &shape);
        }
        let blocks = b.shape(p)[2].clone();
        let p = b.unsqueeze(p, &[3])?;
        let each = [&shape[..2], &[blocks, Dim::from(block)]].concat();
        let p = b.broadcast_to(p, &each)?;
        b.reshape(p, &shape)
    };
    let zero = match zeros {
        Some(z) => {
            let z = unpack(b, z, bits)?;
            // what fills the last byte is no zero point
            let last = b.rank(z) - 1;
            let count = if by_block { b.shape(scales)[2].clone() } else { shape[1].clone() };
            let z = b.slice_axis(z, last, &Dim::from(0), &count)?;
            spread(b, z)?
        }
        None => b.scalar(dtype, f64::from(1 << (bits - 1)))?,
    };
    let q = b.convert(q, dtype)?;
    let scale = spread(b, scales)?;
    let d = b.sub(q, zero)?;
    Ok(b.mul(d, scale)?)
}
