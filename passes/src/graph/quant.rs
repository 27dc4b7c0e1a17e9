//! Products of quantised tensors in integers.
//!
//! Exporters write quantised networks in real numbers: a tensor of bytes is dequantised, `(q - zero) * scale`,
//! multiplied with dequantised weights, and the result quantised again. With symmetric weights
//!
//! ```text
//! sum (x - zx) sx * w sw  =  (sum x w  -  zx sum w) * (sx sw)
//! ```
//!
//! so contractions and convolutions run on bytes and accumulate exactly in i32; the sums of the weights are
//! constants. Windows of maxima commute with dequantisation, and what is quantised again with the parameters
//! that it had is the same bytes; sums that are quantised at once are multiplied by `sx sw / sy`. Signed activations become unsigned ones with a zero point 128 higher, which
//! is what dot-product instructions take. Stands before composites are inlined, since it knows them by name.

use super::pads::may_crop_all;
use super::rewrite::{Rule, Shared, Site, rewrite};
use crate::error::Result;
use crate::limits::Fuel;
use ir::dtype::Scalar;
use ir::prim::{Attr, BinaryOp, ConvertMode, PadMode, Prim, UnaryOp, WindowDim};
use ir::{ConstData, DType, Dim, Graph, Module, Monoid, Op, Symbols, ValueId};
use std::collections::HashMap;
use std::rc::Rc;

pub fn integer_products(module: &mut Module, fuel: &Fuel) -> Result<()> {
    let symbols = Rc::new(module.symbols.clone());
    rewrite(module, &mut Quant { symbols, known: Vec::new() }, fuel)
}

/// A real tensor as `(bytes - zero) * scale`.
#[derive(Clone, Debug)]
struct Quantised {
    bytes: ValueId,
    /// The one zero point of all elements.
    zero: i128,
    /// One element; or one for each index of an axis of `bytes`.
    scale: ValueId,
    axis: Option<usize>,
    constant: bool,
}

/// What is known of the values of one graph.
#[derive(Default)]
struct Known {
    real: HashMap<ValueId, Quantised>,
    /// Signed bytes and the unsigned ones that are 128 more.
    unsigned: HashMap<ValueId, ValueId>,
    /// Sums of products in real numbers: the unscaled sums, their scale.
    sums: HashMap<ValueId, (ValueId, ValueId)>,
    /// What the op that is being kept computes.
    pending: Option<Quantised>,
}

struct Quant {
    symbols: Rc<Symbols>,
    /// Innermost region last.
    known: Vec<Known>,
}

/// One op being rewritten.
struct Ops<'a, 'b, 'c> {
    cx: &'a mut Shared<'c>,
    site: &'a mut Site<'b>,
    symbols: &'a Symbols,
}

impl Ops<'_, '_, '_> {
    fn op(&mut self, prim: Prim, operands: &[ValueId]) -> Result<ValueId> {
        self.site.op(self.cx, self.symbols, prim, operands.to_vec())
    }
    fn scalar(&mut self, dtype: DType, value: Scalar) -> ValueId {
        self.site.scalar(self.cx, dtype, value)
    }
    fn convert(&mut self, to: DType, x: ValueId) -> Result<ValueId> {
        self.op(Prim::Convert { to, mode: ConvertMode::Plain }, &[x])
    }
    fn binary(&mut self, op: BinaryOp, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.op(Prim::Binary(op), &[x, y])
    }
    /// As [`Self::binary`]; of two broadcasts, the broadcast of the small result.
    fn small(&mut self, op: BinaryOp, x: ValueId, y: ValueId) -> Result<ValueId> {
        let shape = self.site.ty(x).shape.clone();
        let (Some(a), Some(b)) = (self.narrow(x), self.narrow(y)) else { return self.binary(op, x, y) };
        let mut kept: Vec<usize> = a.iter().chain(&b).map(|d| d.1).collect();
        kept.sort_unstable();
        kept.dedup();
        if kept.len() == shape.iter().filter(|n| !n.is_const(1)).count() {
            return self.binary(op, x, y);
        }
        let sizes: Vec<Dim> = kept.iter().map(|d| shape[*d].clone()).collect();
        let mut operands = Vec::new();
        for (v, dims) in [(x, a), (y, b)] {
            let Some(&of) = self.site.def(v).and_then(|d| d.operands.first()) else {
                return self.binary(op, x, y);
            };
            let own: Vec<Dim> = dims.iter().map(|d| self.site.ty(of).shape[d.0].clone()).collect();
            let of = if own == self.site.ty(of).shape {
                of
            } else {
                self.op(Prim::Reshape { shape: own }, &[of])?
            };
            let at: Vec<usize> = dims.iter().filter_map(|d| kept.iter().position(|k| *k == d.1)).collect();
            operands.push(if at.len() == kept.len() && at.is_sorted() {
                of
            } else {
                self.spread(of, &sizes, at)?
            });
        }
        let result = self.binary(op, operands[0], operands[1])?;
        self.spread(result, &shape, kept)
    }
    /// Of a broadcast: the dims of its operand that have several elements, and their dims of the result.
    fn narrow(&self, v: ValueId) -> Option<Vec<(usize, usize)>> {
        let Op { prim: Prim::Broadcast { dims, .. }, operands, .. } = self.site.def(v)? else { return None };
        let from = &self.site.ty(*operands.first()?).shape;
        Some(dims.iter().copied().enumerate().filter(|(i, _)| !from[*i].is_const(1)).collect())
    }
    /// `x` with its dims at `dims` of `shape`.
    fn spread(&mut self, x: ValueId, shape: &[Dim], dims: Vec<usize>) -> Result<ValueId> {
        self.op(Prim::Broadcast { shape: shape.to_vec(), dims }, &[x])
    }
    /// A parameter of one element as a scalar.
    fn as_scalar(&mut self, x: ValueId) -> Result<ValueId> {
        if self.site.ty(x).rank() == 0 { Ok(x) } else { self.op(Prim::Reshape { shape: Vec::new() }, &[x]) }
    }
    /// The real numbers.
    fn dequantise(&mut self, q: &Quantised) -> Result<ValueId> {
        let shape = self.site.ty(q.bytes).shape.clone();
        let mut x = self.convert(DType::I32, q.bytes)?;
        if q.zero != 0 {
            let zero = self.scalar(DType::I32, Scalar::Int(q.zero));
            let zero = self.spread(zero, &shape, Vec::new())?;
            x = self.binary(BinaryOp::Sub, x, zero)?;
        }
        let x = self.convert(DType::F32, x)?;
        let scale = self.as_scalar(q.scale)?;
        let scale = self.spread(scale, &shape, Vec::new())?;
        self.binary(BinaryOp::Mul, x, scale)
    }
    /// Bytes with their first bit flipped, as the type of other sign: the same numbers 128 away.
    fn shifted(&mut self, x: ValueId) -> Result<ValueId> {
        let ty = self.site.ty(x).clone();
        let to = if ty.dtype == DType::I8 { DType::U8 } else { DType::I8 };
        let x = if to == DType::U8 { self.op(Prim::Bitcast { to }, &[x])? } else { x };
        let bit = self.scalar(DType::U8, Scalar::Int(128));
        let bit = self.spread(bit, &ty.shape, Vec::new())?;
        let x = self.binary(BinaryOp::Xor, x, bit)?;
        if to == DType::I8 { self.op(Prim::Bitcast { to }, &[x]) } else { Ok(x) }
    }
    /// Signed bytes that are just being quantised, 128 higher: with another zero point. (What NaN is quantised to
    /// is not defined.)
    fn quantised_above(&mut self, bytes: ValueId) -> Result<Option<ValueId>> {
        let quantise = Prim::Convert { to: DType::I8, mode: ConvertMode::Saturate };
        let (steps, zero) = match self.site.def(bytes) {
            Some(Op { prim, operands, .. }) if *prim == quantise => match self.site.def(operands[0]) {
                Some(&Op { prim: Prim::Binary(BinaryOp::Add), ref operands, .. }) => {
                    let rounded = self.site.def(operands[0]).map(|d| &d.prim);
                    let zero = self.site.def(operands[1]).and_then(|d| d.operands.first());
                    let zero = zero.and_then(|z| self.uniform(*z));
                    match (rounded, zero) {
                        (Some(Prim::Unary(UnaryOp::RoundEven)), Some(zero)) => (operands[0], zero.as_f64()),
                        _ => return Ok(None),
                    }
                }
                Some(Op { prim: Prim::Unary(UnaryOp::RoundEven), .. }) => (operands[0], 0.0),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        if self.site.ty(steps).dtype != DType::F32 {
            return Ok(None);
        }
        let mut q = steps;
        if zero != -128.0 {
            let shape = self.site.ty(q).shape.clone();
            let zero = self.scalar(DType::F32, Scalar::Float(zero + 128.0));
            let zero = self.spread(zero, &shape, Vec::new())?;
            q = self.binary(BinaryOp::Add, q, zero)?;
        }
        self.op(Prim::Convert { to: DType::U8, mode: ConvertMode::Saturate }, &[q]).map(Some)
    }
    fn constant(&self, v: ValueId) -> Option<&ConstData> {
        match self.site.def(v)?.prim {
            Prim::Const(id) => self.cx.consts.get(id.0 as usize),
            _ => None,
        }
    }
    /// The one value of all elements of a constant.
    fn uniform(&self, v: ValueId) -> Option<Scalar> {
        let data = self.constant(v)?;
        let first = data.scalar_at(0)?;
        let same = data.elems() <= 1 << 16 && (1..data.elems()).all(|i| data.scalar_at(i) == Some(first));
        same.then_some(first)
    }
    /// Computed from constants alone.
    fn is_fixed(&self, v: ValueId) -> bool {
        self.site.def(v).is_some_and(|op| {
            let computed = !op.operands.is_empty() && op.operands.iter().all(|x| self.is_fixed(*x));
            matches!(op.prim, Prim::Const(_)) || computed
        })
    }
    fn is_single(&self, v: ValueId) -> bool {
        self.site.ty(v).shape.iter().all(|d| d.is_const(1))
    }
}

/// Operands, axis of the parameters; `None` where they go by blocks.
fn quantisation<'a>(site: &Site<'a>, wanted: &str) -> Option<(&'a [ValueId], i64)> {
    let Prim::Call { name, attrs } = &site.op.prim else { return None };
    let int = |key: &str| {
        attrs.iter().find(|a| a.0 == key).and_then(|a| if let Attr::Int(i) = a.1 { Some(i) } else { None })
    };
    (name == wanted && int("block") == Some(0)).then_some((site.operands, int("axis")?))
}

impl Quant {
    /// What a dequantisation takes: bytes, known zero point, one scale or one by index of an axis.
    fn dequantised(&mut self, ops: &mut Ops<'_, '_, '_>) -> Result<Option<Quantised>> {
        let Some((&[bytes, scale, ref zero @ ..], axis)) = quantisation(ops.site, "dequantize_linear") else {
            return Ok(None);
        };
        let dtype = ops.site.ty(bytes).dtype;
        let real = ops.site.types[0].dtype == DType::F32 && ops.site.ty(scale).dtype == DType::F32;
        if !real || !matches!(dtype, DType::U8 | DType::I8) {
            return Ok(None);
        }
        let zero = match zero {
            [] => 0,
            [z, ..] => match ops.uniform(*z) {
                Some(z) => z.as_int(),
                None => return Ok(None),
            },
        };
        let constant = ops.constant(bytes).is_some();
        let axis = match (ops.is_single(scale), ops.site.ty(scale).rank()) {
            (true, _) => None,
            (false, 1) => Some(ir::build::normal_axis(axis, ops.site.ty(bytes).rank())?),
            _ => return Ok(None),
        };
        if constant || axis.is_some() {
            return Ok(Some(Quantised { bytes, zero, scale, axis, constant }));
        }
        if dtype == DType::U8 {
            return Ok(Some(Quantised { bytes, zero, scale, axis, constant }));
        }
        let bytes = self.unsigned(ops, bytes)?;
        Ok(Some(Quantised { bytes, zero: zero + 128, scale, axis, constant }))
    }

    fn unsigned(&mut self, ops: &mut Ops<'_, '_, '_>, bytes: ValueId) -> Result<ValueId> {
        let known = self.known.last().and_then(|k| k.unsigned.get(&bytes));
        if let Some(&u) = known {
            return Ok(u);
        }
        let u = match ops.quantised_above(bytes)? {
            Some(u) => u,
            None => ops.shifted(bytes)?,
        };
        if let Some(k) = self.known.last_mut() {
            k.unsigned.insert(bytes, u);
        }
        Ok(u)
    }

    fn real(&self, v: ValueId) -> Option<&Quantised> {
        self.known.last()?.real.get(&v)
    }
    fn learn(&mut self, v: ValueId, q: Quantised) {
        if let Some(k) = self.known.last_mut() {
            k.real.insert(v, q);
        }
    }

    /// The op that is kept computes this.
    fn expect(&mut self, q: Option<Quantised>) {
        if let Some(k) = self.known.last_mut() {
            k.pending = q;
        }
    }

    /// What is quantised with the parameters that it was dequantised with.
    fn requantised(&mut self, ops: &mut Ops<'_, '_, '_>) -> Result<Option<ValueId>> {
        let Some((&[x, scale, ref zero @ ..], _)) = quantisation(ops.site, "quantize_linear") else {
            return Ok(None);
        };
        let Some(q) = self.real(x).filter(|q| q.axis.is_none()).cloned() else { return Ok(None) };
        let to = ops.site.types[0].dtype;
        let zero = match zero {
            [] => Some(0),
            [z, ..] => ops.uniform(*z).map(|z| z.as_int()),
        };
        let from = ops.site.ty(q.bytes).dtype;
        let shift = i128::from(to == DType::I8 && from == DType::U8) * 128;
        let same_scale = ops.uniform(scale).is_some_and(|s| Some(s) == ops.uniform(q.scale));
        if !same_scale || zero != Some(q.zero - shift) || shift == 0 && from != to {
            return Ok(None);
        }
        if shift == 0 {
            return Ok(Some(q.bytes));
        }
        let signed = ops.shifted(q.bytes)?;
        if let Some(k) = self.known.last_mut() {
            k.unsigned.insert(signed, q.bytes);
        }
        Ok(Some(signed))
    }

    /// Sums that are quantised at once: the scale of the result divides the constants, not every element.
    fn rescaled(&mut self, ops: &mut Ops<'_, '_, '_>) -> Result<Option<ValueId>> {
        let Some((&[x, scale, ref zero @ ..], _)) = quantisation(ops.site, "quantize_linear") else {
            return Ok(None);
        };
        let to = ops.site.types[0].dtype;
        let zero = match zero {
            [] => Some(0),
            [z, ..] => ops.uniform(*z).map(|z| z.as_int()),
        };
        let positive = ops.uniform(scale).is_some_and(|s| s.as_f64() > 0.0);
        let (true, true, Some(zero)) = (to.is_int() && to.bytes() == 1, positive, zero) else {
            return Ok(None);
        };
        let shape = ops.site.ty(x).shape.clone();
        let scale = ops.as_scalar(scale)?;
        let Some(steps) = self.divided(ops, x, scale)? else { return Ok(None) };
        let mut q = ops.op(Prim::Unary(UnaryOp::RoundEven), &[steps])?;
        if zero != 0 {
            let zero = ops.scalar(DType::F32, Scalar::Float(zero as f64));
            let zero = ops.spread(zero, &shape, Vec::new())?;
            q = ops.binary(BinaryOp::Add, q, zero)?;
        }
        ops.op(Prim::Convert { to, mode: ConvertMode::Saturate }, &[q]).map(Some)
    }

    /// `x / by`, a scalar, where the division goes to constants: of scaled sums, of bytes, of a sum of two such, with
    /// a bias, cut off at 0.
    fn divided(&self, ops: &mut Ops<'_, '_, '_>, x: ValueId, by: ValueId) -> Result<Option<ValueId>> {
        let shape = ops.site.ty(x).shape.clone();
        if let Some(&(sum, scale)) = self.known.last().and_then(|k| k.sums.get(&x)) {
            let by = ops.spread(by, &shape, Vec::new())?;
            let scale = ops.small(BinaryOp::Div, scale, by)?;
            return ops.binary(BinaryOp::Mul, sum, scale).map(Some);
        }
        if let Some(q) = self.real(x).filter(|q| !q.constant && q.axis.is_none()).cloned() {
            let scale = ops.as_scalar(q.scale)?;
            let scale = ops.binary(BinaryOp::Div, scale, by)?;
            return ops.dequantise(&Quantised { scale, ..q }).map(Some);
        }
        let Some(&Op { prim: Prim::Binary(op), ref operands, .. }) = ops.site.def(x) else { return Ok(None) };
        let &[a, b] = operands.as_slice() else { return Ok(None) };
        let (a, b) = if ops.is_fixed(a) { (b, a) } else { (a, b) };
        if !matches!(op, BinaryOp::Add | BinaryOp::Max | BinaryOp::Min) {
            return Ok(None);
        }
        if !ops.is_fixed(b) {
            let both = (self.divided(ops, a, by)?, self.divided(ops, b, by)?);
            let (Some(a), Some(b)) = both else { return Ok(None) };
            return ops.binary(op, a, b).map(Some);
        }
        let Some(a) = self.divided(ops, a, by)? else { return Ok(None) };
        let by = ops.spread(by, &shape, Vec::new())?;
        let b = ops.small(BinaryOp::Div, b, by)?;
        ops.binary(op, a, b).map(Some)
    }

    /// The maximum of bytes is the byte of the maximum, where the scale is positive.
    fn maxima(&mut self, ops: &mut Ops<'_, '_, '_>) -> Result<Option<ValueId>> {
        let Prim::WindowReduce { monoid: Monoid::Max, size, window } = &ops.site.op.prim else {
            return Ok(None);
        };
        let Some(q) = self.real(ops.site.operands[0]).filter(|q| !q.constant).cloned() else {
            return Ok(None);
        };
        let positive = ops.uniform(q.scale).is_some_and(|s| s.as_f64() > 0.0);
        // a window of nothing but padding has no byte
        let inside = |p: &Dim, n: i64| p.as_const().is_some_and(|p| p < n);
        let full = window.iter().zip(size).all(|(w, n)| inside(&w.pad_lo, *n) && inside(&w.pad_hi, *n));
        if q.axis.is_some() || !positive || !full {
            return Ok(None);
        }
        let bytes = ops.op(ops.site.op.prim.clone(), &[q.bytes])?;
        let q = Quantised { bytes, ..q };
        let real = ops.dequantise(&q)?;
        self.learn(real, q);
        Ok(Some(real))
    }

    /// The bytes of a view, where the parameters follow.
    fn view(&self, ops: &mut Ops<'_, '_, '_>) -> Result<Option<Quantised>> {
        let prim = ops.site.op.prim.clone();
        let (true, Some(&x)) =
            (matches!(prim, Prim::Transpose { .. } | Prim::Reshape { .. }), ops.site.operands.first())
        else {
            return Ok(None);
        };
        let Some(q) = self.real(x).cloned() else { return Ok(None) };
        let axis = match (q.axis, &prim) {
            (None, _) => None,
            (Some(a), Prim::Transpose { perm }) => perm.iter().position(|&p| p == a),
            _ => return Ok(None),
        };
        let bytes = ops.op(prim, &[q.bytes])?;
        Ok(Some(Quantised { bytes, axis, ..q }))
    }

    /// A product of real tensors as one of bytes.
    fn product(&mut self, ops: &mut Ops<'_, '_, '_>) -> Result<Option<ValueId>> {
        let (&[a, b], DType::F32) = (ops.site.operands, ops.site.types[0].dtype) else { return Ok(None) };
        let (Some(a), Some(b)) = (self.real(a).cloned(), self.real(b).cloned()) else { return Ok(None) };
        let (x, w, swapped) = if a.constant { (b, a, true) } else { (a, b, false) };
        let symmetric = w.constant && w.zero == 0 && ops.site.ty(w.bytes).dtype == DType::I8;
        if x.constant || x.axis.is_some() || !symmetric || ops.site.ty(x.bytes).dtype != DType::U8 {
            return Ok(None);
        }
        let rank = ops.site.ty(w.bytes).rank();
        // dims of the weights that the result keeps, and where
        let (prim, kept, place): (Prim, Vec<usize>, Vec<usize>) = match &ops.site.op.prim {
            Prim::Convolve { window, groups, .. }
                if !swapped && !may_crop_all(ops.site.ty(x.bytes), window, ops.symbols) =>
            {
                let prim = Prim::Convolve { window: window.clone(), groups: *groups, acc: DType::I32 };
                (prim, vec![0], vec![1])
            }
            Prim::Contract { batch, reduce, .. } if batch.is_empty() => {
                let prim = Prim::Contract { batch: Vec::new(), reduce: reduce.clone(), acc: DType::I32 };
                let gone = |d: &usize| reduce.iter().any(|r| *d == if swapped { r.0 } else { r.1 });
                let kept: Vec<usize> = (0..rank).filter(|d| !gone(d)).collect();
                let before = if swapped { 0 } else { ops.site.types[0].rank() - kept.len() };
                let place = (before..before + kept.len()).collect();
                (prim, kept, place)
            }
            _ => return Ok(None),
        };
        if w.axis.is_some_and(|a| !kept.contains(&a)) {
            return Ok(None);
        }
        let shape = ops.site.types[0].shape.clone();
        let (prim, bytes) = self.padded(ops, prim, &x)?;
        let operands = if swapped { [w.bytes, bytes] } else { [bytes, w.bytes] };
        let mut sum = ops.op(prim, &operands)?;
        if x.zero != 0 {
            let wide = ops.convert(DType::I32, w.bytes)?;
            let axes = (0..rank).filter(|d| !kept.contains(d)).collect();
            let sums = ops.op(Prim::Reduce { monoid: Monoid::Sum, axes }, &[wide])?;
            let small = ops.site.ty(sums).shape.clone();
            let zero = ops.scalar(DType::I32, Scalar::Int(x.zero));
            let zero = ops.spread(zero, &small, Vec::new())?;
            let shift = ops.binary(BinaryOp::Mul, sums, zero)?;
            let shift = ops.spread(shift, &shape, place.clone())?;
            sum = ops.binary(BinaryOp::Sub, sum, shift)?;
        }
        let sum = ops.convert(DType::F32, sum)?;
        let sx = ops.as_scalar(x.scale)?;
        let (sw, dims) = match w.axis {
            None => (ops.as_scalar(w.scale)?, Vec::new()),
            Some(a) => (w.scale, kept.iter().zip(&place).filter(|p| *p.0 == a).map(|p| *p.1).collect()),
        };
        let small = ops.site.ty(sw).shape.clone();
        let sx = ops.spread(sx, &small, Vec::new())?;
        let scale = ops.binary(BinaryOp::Mul, sx, sw)?;
        let scale = ops.spread(scale, &shape, dims)?;
        let real = ops.binary(BinaryOp::Mul, sum, scale)?;
        if let Some(k) = self.known.last_mut() {
            k.sums.insert(real, (sum, scale));
        }
        Ok(Some(real))
    }

    /// A convolution's padding stands for the real number 0: bytes of the zero point.
    fn padded(&self, ops: &mut Ops<'_, '_, '_>, prim: Prim, x: &Quantised) -> Result<(Prim, ValueId)> {
        let Prim::Convolve { window, groups, acc } = &prim else { return Ok((prim, x.bytes)) };
        let padded = |w: &WindowDim| !w.pad_lo.is_const(0) || !w.pad_hi.is_const(0) || w.base_dilation != 1;
        if x.zero == 0 || !window.iter().any(padded) {
            return Ok((prim, x.bytes));
        }
        let lead = ops.site.ty(x.bytes).rank() - window.len();
        let by_dim = |f: &dyn Fn(&WindowDim) -> Dim| -> Vec<Dim> {
            (0..lead).map(|_| Dim::from(0)).chain(window.iter().map(f)).collect()
        };
        let pad = Prim::Pad {
            lo: by_dim(&|w| w.pad_lo.clone()),
            hi: by_dim(&|w| w.pad_hi.clone()),
            interior: (0..lead).map(|_| 0).chain(window.iter().map(|w| w.base_dilation - 1)).collect(),
            mode: PadMode::Constant,
        };
        let plain = |w: &WindowDim| WindowDim { stride: w.stride, dilation: w.dilation, ..WindowDim::unit() };
        let inner = Prim::Convolve { window: window.iter().map(plain).collect(), groups: *groups, acc: *acc };
        let fill = ops.scalar(DType::U8, Scalar::Int(x.zero));
        Ok((inner, ops.op(pad, &[x.bytes, fill])?))
    }
}

impl Rule for Quant {
    fn enter(&mut self, _: &Graph) {
        self.known.push(Known::default());
    }
    fn leave(&mut self) {
        self.known.pop();
    }
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        let symbols = self.symbols.clone();
        let ops = &mut Ops { cx, site, symbols: &symbols };
        let new = match &ops.site.op.prim {
            Prim::Call { .. } => {
                if let Some(q) = self.dequantised(ops)? {
                    if q.constant || q.axis.is_some() {
                        self.expect(Some(q));
                        return Ok(None);
                    }
                    let real = ops.dequantise(&q)?;
                    self.learn(real, q);
                    return Ok(Some(vec![real]));
                }
                match self.requantised(ops)? {
                    None => self.rescaled(ops)?,
                    same => same,
                }
            }
            Prim::Transpose { .. } | Prim::Reshape { .. } => {
                let q = self.view(ops)?;
                self.expect(q);
                None
            }
            Prim::WindowReduce { .. } => self.maxima(ops)?,
            Prim::Contract { .. } | Prim::Convolve { .. } => self.product(ops)?,
            _ => None,
        };
        Ok(new.map(|v| vec![v]))
    }
    fn kept(&mut self, _graph: &Graph, results: &[ValueId]) {
        let pending = self.known.last_mut().and_then(|k| k.pending.take());
        if let (Some(q), [v]) = (pending, results) {
            self.learn(*v, q);
        }
    }
}
