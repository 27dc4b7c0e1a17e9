//! One method for each primitive, and the few combinations that every user needs.

use super::{Builder, V, normal_axis};
use crate::dim::{SymInfo, SymKind};
use crate::dtype::Scalar;
use crate::graph::TensorType;
use crate::prim::{BinaryOp, CmpOp, Combine, ConvertMode, HostFn, Monoid, PadMode, Prim, UnaryOp, WindowDim};
use crate::{ConstData, ConstId, ConstSource, DType, Dim, IrError, Result, Tensor};

macro_rules! unary_methods {
    ($($name:ident $op:ident),* $(,)?) => {
        impl Builder {
            $(pub fn $name(&mut self, x: V) -> Result<V> {
                self.unary(UnaryOp::$op, x)
            })*
        }
    };
}
macro_rules! binary_methods {
    ($($name:ident $op:ident),* $(,)?) => {
        impl Builder {
            $(
                /// Elementwise with broadcasting.
                pub fn $name(&mut self, a: V, b: V) -> Result<V> {
                    self.binary(BinaryOp::$op, a, b)
                }
            )*
        }
    };
}
macro_rules! cmp_methods {
    ($($name:ident $op:ident),* $(,)?) => {
        impl Builder {
            $(
                /// Elementwise comparison with broadcasting.
                pub fn $name(&mut self, a: V, b: V) -> Result<V> {
                    self.cmp(CmpOp::$op, a, b)
                }
            )*
        }
    };
}

unary_methods! {
    neg Neg, abs Abs, floor Floor, ceil Ceil, trunc Trunc, round_even RoundEven, sqrt Sqrt, exp Exp,
    expm1 Expm1, log Log, log1p Log1p, sin Sin, cos Cos, tan Tan, asin Asin, acos Acos, atan Atan,
    sinh Sinh, cosh Cosh, asinh Asinh, acosh Acosh, atanh Atanh, tanh Tanh, erf Erf, not Not,
}
binary_methods! {
    add Add, sub Sub, mul Mul, div Div, rem Rem, pow Pow, atan2 Atan2, min Min, max Max, and And, or Or,
    xor Xor, shl Shl, shr Shr,
}
cmp_methods! { eq Eq, ne Ne, lt Lt, le Le, gt Gt, ge Ge }

/// Constants, sizes as values, and other sources.
impl Builder {
    /// A constant with the tensor's elements.
    pub fn constant(&mut self, t: Tensor) -> Result<V> {
        self.constant_data(ConstData::from_tensor(t))
    }
    pub fn constant_data(&mut self, data: ConstData) -> Result<V> {
        let id = self.module.add_const(data);
        Ok(self.const_value(id))
    }
    /// The module's constant as a value of the innermost graph; one op for all its uses there.
    pub fn const_value(&mut self, id: ConstId) -> V {
        self.const_in(self.frames.len() - 1, id)
    }
    /// Normally distributed, reproducible elements; see [`ConstSource::Random`].
    pub fn random_constant(
        &mut self,
        dtype: DType,
        shape: &[usize],
        seed: u64,
        mean: f64,
        std: f64,
    ) -> Result<V> {
        let source = ConstSource::Random { seed, mean, std };
        self.constant_data(ConstData { dtype, shape: shape.to_vec(), source, name: None })
    }
    /// A rank-0 constant.
    pub fn scalar(&mut self, dtype: DType, x: f64) -> Result<V> {
        self.scalar_of(dtype, Scalar::of(dtype, x))
    }
    /// A rank-0 constant, exact for 64-bit integers.
    pub fn scalar_of(&mut self, dtype: DType, x: Scalar) -> Result<V> {
        if dtype == DType::String {
            return Err(IrError::ty("const", "a scalar of type string needs its text"));
        }
        let id = match self.splats.get(&(dtype, x)) {
            Some(&id) => id,
            None => {
                let id = self.module.add_const(ConstData::splat(dtype, Vec::new(), x));
                self.splats.insert((dtype, x), id);
                id
            }
        };
        Ok(self.const_value(id))
    }
    pub fn scalar_i64(&mut self, x: i64) -> Result<V> {
        self.scalar_of(DType::I64, Scalar::Int(x.into()))
    }
    /// i64[n].
    pub fn vector_i64(&mut self, x: &[i64]) -> Result<V> {
        self.constant(Tensor::from_i64(vec![x.len()], x))
    }
    /// Every element is `x`.
    pub fn full(&mut self, dtype: DType, shape: &[Dim], x: f64) -> Result<V> {
        let s = self.scalar(dtype, x)?;
        self.broadcast_to(s, shape)
    }
    /// A size as i64[].
    pub fn dim_value(&mut self, d: &Dim) -> Result<V> {
        match d.as_const() {
            Some(c) => self.scalar_i64(c),
            None => self.op1(Prim::DimValue(d.clone()), &[]),
        }
    }
    /// Sizes as i64[n].
    pub fn dims_vector(&mut self, dims: &[Dim]) -> Result<V> {
        if let Some(c) = dims.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>() {
            return self.vector_i64(&c);
        }
        let mut parts = Vec::with_capacity(dims.len());
        for d in dims {
            let v = self.dim_value(d)?;
            parts.push(self.reshape(v, &[Dim::from(1)])?);
        }
        self.concat(&parts, 0)
    }
    /// The shape of a value as i64[rank].
    pub fn shape_of(&mut self, x: V) -> Result<V> {
        let dims = self.shape(x).to_vec();
        self.dims_vector(&dims)
    }
    pub fn iota(&mut self, dtype: DType, shape: &[Dim], axis: usize) -> Result<V> {
        self.op1(Prim::Iota { dtype, shape: shape.to_vec(), axis }, &[])
    }
    /// u64 bits from a key u64[].
    pub fn random_bits(&mut self, key: V, shape: &[Dim]) -> Result<V> {
        self.op1(Prim::RandomBits { shape: shape.to_vec() }, &[key])
    }
}

/// Elementwise.
impl Builder {
    pub fn unary(&mut self, op: UnaryOp, x: V) -> Result<V> {
        self.op1(Prim::Unary(op), &[x])
    }
    pub fn binary(&mut self, op: BinaryOp, a: V, b: V) -> Result<V> {
        let [a, b] = self.broadcast_all([a, b])?;
        self.op1(Prim::Binary(op), &[a, b])
    }
    pub fn cmp(&mut self, op: CmpOp, a: V, b: V) -> Result<V> {
        let [a, b] = self.broadcast_all([a, b])?;
        self.op1(Prim::Cmp(op), &[a, b])
    }
    /// `cond ? a : b`, with broadcasting.
    pub fn select(&mut self, cond: V, a: V, b: V) -> Result<V> {
        let all = self.broadcast_all([cond, a, b])?;
        self.op1(Prim::Select, &all)
    }
    /// `min(max(x, lo), hi)` with NaN kept.
    pub fn clamp(&mut self, x: V, lo: V, hi: V) -> Result<V> {
        let x = self.max(x, lo)?;
        self.min(x, hi)
    }
    /// `x` op a constant of the same element type.
    pub fn binary_scalar(&mut self, op: BinaryOp, x: V, c: f64) -> Result<V> {
        let c = self.scalar(self.dtype(x), c)?;
        self.binary(op, x, c)
    }
    pub fn add_scalar(&mut self, x: V, c: f64) -> Result<V> {
        self.binary_scalar(BinaryOp::Add, x, c)
    }
    pub fn mul_scalar(&mut self, x: V, c: f64) -> Result<V> {
        self.binary_scalar(BinaryOp::Mul, x, c)
    }
    pub fn convert(&mut self, x: V, to: DType) -> Result<V> {
        self.convert_with(x, to, ConvertMode::Plain)
    }
    pub fn convert_with(&mut self, x: V, to: DType, mode: ConvertMode) -> Result<V> {
        if self.dtype(x) == to && mode.keeps(to) {
            return Ok(x);
        }
        self.op1(Prim::Convert { to, mode }, &[x])
    }
    pub fn bitcast(&mut self, x: V, to: DType) -> Result<V> {
        if self.dtype(x) == to {
            return Ok(x);
        }
        self.op1(Prim::Bitcast { to }, &[x])
    }
    /// `1 / (1 + exp(-x))`.
    pub fn sigmoid(&mut self, x: V) -> Result<V> {
        // through tanh it neither overflows nor divides: (tanh(x / 2) + 1) / 2
        let half = self.mul_scalar(x, 0.5)?;
        let t = self.tanh(half)?;
        let t = self.add_scalar(t, 1.0)?;
        self.mul_scalar(t, 0.5)
    }
}

/// Movement. Ops that would change nothing are not added.
impl Builder {
    pub fn reshape(&mut self, x: V, shape: &[Dim]) -> Result<V> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.op1(Prim::Reshape { shape: shape.to_vec() }, &[x])
    }
    /// Inserts dims of extent 1 at these positions of the result (negative: from its end).
    pub fn unsqueeze(&mut self, x: V, axes: &[i64]) -> Result<V> {
        let rank = self.rank(x) + axes.len();
        let mut at = axes.iter().map(|&a| normal_axis(a, rank)).collect::<Result<Vec<_>>>()?;
        at.sort_unstable();
        if at.windows(2).any(|w| w[0] == w[1]) {
            return Err(IrError::ty("reshape", format!("axes {axes:?} are not distinct")));
        }
        let mut shape = self.shape(x).to_vec();
        for a in at {
            shape.insert(a, Dim::from(1));
        }
        self.reshape(x, &shape)
    }
    /// Drops these dims (negative: from the end), whose extent is 1.
    pub fn squeeze(&mut self, x: V, axes: &[i64]) -> Result<V> {
        let rank = self.rank(x);
        let drop = axes.iter().map(|&a| normal_axis(a, rank)).collect::<Result<Vec<_>>>()?;
        let keep = |(i, d): (usize, &Dim)| (!drop.contains(&i)).then(|| d.clone());
        let shape: Vec<Dim> = self.shape(x).iter().enumerate().filter_map(keep).collect();
        self.reshape(x, &shape)
    }
    /// Merges dims into two: those before `axis` and the others.
    pub fn flatten(&mut self, x: V, axis: usize) -> Result<V> {
        let axis = axis.min(self.rank(x));
        let (a, b) = self.shape(x).split_at(axis);
        let shape = [Dim::product(a), Dim::product(b)];
        self.reshape(x, &shape)
    }
    pub fn transpose(&mut self, x: V, perm: &[usize]) -> Result<V> {
        if perm.len() == self.rank(x) && perm.iter().enumerate().all(|(i, &p)| i == p) {
            return Ok(x);
        }
        self.op1(Prim::Transpose { perm: perm.to_vec() }, &[x])
    }
    /// Exchanges two axes.
    pub fn swap_axes(&mut self, x: V, a: i64, b: i64) -> Result<V> {
        let rank = self.rank(x);
        let (a, b) = (normal_axis(a, rank)?, normal_axis(b, rank)?);
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(a, b);
        self.transpose(x, &perm)
    }
    /// Operand dim i becomes result dim `dims[i]`.
    pub fn broadcast(&mut self, x: V, shape: &[Dim], dims: &[usize]) -> Result<V> {
        if self.shape(x) == shape && dims.len() == shape.len() {
            return Ok(x);
        }
        self.op1(Prim::Broadcast { shape: shape.to_vec(), dims: dims.to_vec() }, &[x])
    }
    /// Result `i` reads operand `start + i * step`, by dim; `size` is the result's shape.
    pub fn slice(&mut self, x: V, start: &[Dim], size: &[Dim], step: &[i64]) -> Result<V> {
        let whole = start.iter().all(|s| s.is_const(0)) && step.iter().all(|&s| s == 1);
        if whole && self.shape(x) == size && start.len() == size.len() && step.len() == size.len() {
            return Ok(x);
        }
        self.op1(Prim::Slice { start: start.to_vec(), size: size.to_vec(), step: step.to_vec() }, &[x])
    }
    /// `size` elements of one axis from `start` on.
    pub fn slice_axis(&mut self, x: V, axis: usize, start: &Dim, size: &Dim) -> Result<V> {
        let rank = self.rank(x);
        if axis >= rank {
            return Err(IrError::ty("slice", format!("axis {axis} is out of range for rank {rank}")));
        }
        let (mut starts, mut sizes) = (vec![Dim::from(0); rank], self.shape(x).to_vec());
        starts[axis] = start.clone();
        sizes[axis] = size.clone();
        self.slice(x, &starts, &sizes, &vec![1; rank])
    }
    /// One index of an axis, which is dropped.
    pub fn index_axis(&mut self, x: V, axis: usize, index: &Dim) -> Result<V> {
        let s = self.slice_axis(x, axis, index, &Dim::from(1))?;
        self.squeeze(s, &[axis as i64])
    }
    /// Parts of these sizes along `axis`, in order.
    pub fn split(&mut self, x: V, axis: usize, sizes: &[Dim]) -> Result<Vec<V>> {
        let mut start = Dim::from(0);
        let mut parts = Vec::with_capacity(sizes.len());
        for size in sizes {
            parts.push(self.slice_axis(x, axis, &start, size)?);
            start = start + size;
        }
        Ok(parts)
    }
    /// Elements of one axis in reverse order.
    pub fn reverse(&mut self, x: V, axis: usize) -> Result<V> {
        let rank = self.rank(x);
        normal_axis(axis as i64, rank)?;
        let (mut start, size, mut step) = (vec![Dim::from(0); rank], self.shape(x).to_vec(), vec![1; rank]);
        start[axis] = &size[axis] - &Dim::from(1);
        step[axis] = -1;
        self.slice(x, &start, &size, &step)
    }
    /// Pads with the scalar `fill` (of the operand's type).
    pub fn pad(&mut self, x: V, fill: V, lo: &[Dim], hi: &[Dim], interior: &[i64]) -> Result<V> {
        let zero = |d: &Dim| d.is_const(0);
        let rank = self.rank(x);
        if lo.len() == rank
            && hi.len() == rank
            && interior.len() == rank
            && lo.iter().all(zero)
            && hi.iter().all(zero)
            && interior.iter().all(|&i| i == 0)
        {
            return Ok(x);
        }
        let prim = Prim::Pad {
            lo: lo.to_vec(),
            hi: hi.to_vec(),
            interior: interior.to_vec(),
            mode: PadMode::Constant,
        };
        self.op1(prim, &[x, fill])
    }
    /// Pads by what the mode says of the operand (not `Constant`).
    pub fn pad_mode(&mut self, x: V, mode: PadMode, lo: &[Dim], hi: &[Dim]) -> Result<V> {
        let interior = vec![0; self.rank(x)];
        self.op1(Prim::Pad { lo: lo.to_vec(), hi: hi.to_vec(), interior, mode }, &[x])
    }
    pub fn concat(&mut self, parts: &[V], axis: usize) -> Result<V> {
        match parts {
            [one] if axis < self.rank(*one) => Ok(*one),
            _ => self.op1(Prim::Concat { axis }, parts),
        }
    }
    /// `base` with `update` written at `start`.
    pub fn update_slice(&mut self, base: V, update: V, start: &[Dim]) -> Result<V> {
        self.op1(Prim::UpdateSlice { start: start.to_vec() }, &[base, update])
    }
    /// Elements of `axis` by index (i32 or i64); index dims replace the axis. Indices are in
    /// `0..extent`: see [`Builder::wrap_indices`] for negative ones.
    pub fn gather(&mut self, x: V, indices: V, axis: usize) -> Result<V> {
        self.op1(Prim::Gather { axis }, &[x, indices])
    }
    /// Indices with `extent` added to the negative ones.
    pub fn wrap_indices(&mut self, indices: V, extent: &Dim) -> Result<V> {
        if let Some(known) = self.known(indices) {
            let facts = self.symbols();
            if known.iter().all(|d| d.bounds(facts).0 >= 0) {
                return Ok(indices);
            }
        }
        let dtype = self.dtype(indices);
        let zero = self.scalar(dtype, 0.0)?;
        let negative = self.lt(indices, zero)?;
        let extent = self.dim_value(extent)?;
        let extent = self.convert(extent, dtype)?;
        let wrapped = self.add(indices, extent)?;
        self.select(negative, wrapped, indices)
    }
    /// `base` [d, inner...] with rows `updates` [n, inner...] combined in at `indices` [n].
    pub fn scatter(&mut self, base: V, indices: V, updates: V, combine: Combine) -> Result<V> {
        self.op1(Prim::Scatter { combine }, &[base, indices, updates])
    }
}

/// Reductions, windows, contractions, selection.
impl Builder {
    /// Reduces `axes` (any order, not negative); they stay with extent 1 where `keep`.
    pub fn reduce(&mut self, monoid: Monoid, x: V, axes: &[usize], keep: bool) -> Result<V> {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.is_empty() {
            return Ok(x);
        }
        let kept: Vec<Dim> = self
            .shape(x)
            .iter()
            .enumerate()
            .map(|(i, d)| if sorted.contains(&i) { Dim::from(1) } else { d.clone() })
            .collect();
        let r = self.op1(Prim::Reduce { monoid, axes: sorted }, &[x])?;
        if keep { self.reshape(r, &kept) } else { Ok(r) }
    }
    pub fn reduce_sum(&mut self, x: V, axes: &[usize], keep: bool) -> Result<V> {
        self.reduce(Monoid::Sum, x, axes, keep)
    }
    pub fn reduce_prod(&mut self, x: V, axes: &[usize], keep: bool) -> Result<V> {
        self.reduce(Monoid::Prod, x, axes, keep)
    }
    pub fn reduce_max(&mut self, x: V, axes: &[usize], keep: bool) -> Result<V> {
        self.reduce(Monoid::Max, x, axes, keep)
    }
    pub fn reduce_min(&mut self, x: V, axes: &[usize], keep: bool) -> Result<V> {
        self.reduce(Monoid::Min, x, axes, keep)
    }
    /// Sum divided by the number of elements (NaN of floats where there is none).
    pub fn reduce_mean(&mut self, x: V, axes: &[usize], keep: bool) -> Result<V> {
        let shape = self.shape(x);
        let mut distinct = axes.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let count = Dim::product(distinct.iter().filter_map(|&a| shape.get(a)));
        let sum = self.reduce_sum(x, axes, keep)?;
        let count = self.dim_value(&count)?;
        let count = self.convert(count, self.dtype(x))?;
        self.div(sum, count)
    }
    /// i64 index of the extreme along `axis`, which is dropped.
    pub fn arg_reduce(&mut self, x: V, max: bool, axis: usize, last: bool) -> Result<V> {
        self.op1(Prim::ArgReduce { max, axis, last }, &[x])
    }
    pub fn window_reduce(&mut self, monoid: Monoid, x: V, size: &[i64], window: &[WindowDim]) -> Result<V> {
        self.op1(Prim::WindowReduce { monoid, size: size.to_vec(), window: window.to_vec() }, &[x])
    }
    pub fn cumulative(
        &mut self,
        monoid: Monoid,
        x: V,
        axis: usize,
        exclusive: bool,
        reverse: bool,
    ) -> Result<V> {
        self.op1(Prim::Cumulative { monoid, axis, exclusive, reverse }, &[x])
    }
    pub fn contract(
        &mut self,
        a: V,
        b: V,
        batch: &[(usize, usize)],
        reduce: &[(usize, usize)],
        acc: DType,
    ) -> Result<V> {
        self.op1(Prim::Contract { batch: batch.to_vec(), reduce: reduce.to_vec(), acc }, &[a, b])
    }
    /// Numpy's matmul; 8-bit integers give i32.
    pub fn matmul(&mut self, a: V, b: V) -> Result<V> {
        let d = self.dtype(a);
        let acc = if d.is_int() && d.bytes() == 1 { DType::I32 } else { d };
        self.matmul_acc(a, b, acc)
    }
    /// Numpy's matmul with this result type: `[.., m, k] x [.., k, n]`, batch dims broadcast, vectors
    /// as one row or column that is dropped again.
    pub fn matmul_acc(&mut self, a: V, b: V, acc: DType) -> Result<V> {
        let (ra, rb) = (self.rank(a), self.rank(b));
        if ra == 0 || rb == 0 {
            return Err(IrError::ty(
                "contract",
                format!("matmul of {} and {}: scalars", self.show_type(a), self.show_type(b)),
            ));
        }
        let (k_a, k_b) = (ra - 1, rb.saturating_sub(2));
        let (lead_a, lead_b) = (ra.saturating_sub(2), rb.saturating_sub(2));
        // a batch dim of one operand only is a free dim of it; one of extent 1 is dropped first
        let lead = lead_a.max(lead_b);
        let at = |i: usize, own: usize| (i + own).checked_sub(lead);
        let (mut drop_a, mut drop_b, mut runtime) = (vec![], vec![], false);
        for i in 0..lead {
            if let (Some(x), Some(y)) = (at(i, lead_a), at(i, lead_b)) {
                let (p, q) = (&self.shape(a)[x], &self.shape(b)[y]);
                match () {
                    _ if self.same_dim(p, q) => {}
                    _ if p.is_const(1) => drop_a.push(x),
                    _ if q.is_const(1) => drop_b.push(y),
                    _ => runtime = true,
                }
            }
        }
        if runtime {
            let (sa, sb) = (self.shape(a).to_vec(), self.shape(b).to_vec());
            let batch = self.broadcast_shapes(&[sa[..lead_a].to_vec(), sb[..lead_b].to_vec()])?;
            let a = self.broadcast_to(a, &[&batch, &sa[lead_a..]].concat())?;
            let b = self.broadcast_to(b, &[&batch, &sb[lead_b..]].concat())?;
            return self.matmul_acc(a, b, acc);
        }
        // position of every result batch dim: (axis of a, axis of b) in the operands without dropped dims
        let squeeze = |axes: &[usize]| axes.iter().map(|&x| x as i64).collect::<Vec<_>>();
        let new = |x: usize, dropped: &[usize]| {
            (!dropped.contains(&x)).then(|| x - dropped.iter().filter(|&&d| d < x).count())
        };
        let place: Vec<(Option<usize>, Option<usize>)> = (0..lead)
            .map(|i| {
                let x = at(i, lead_a).and_then(|x| new(x, &drop_a));
                let y = at(i, lead_b).and_then(|y| new(y, &drop_b));
                (x, y)
            })
            .collect();
        let extents: Vec<Dim> = (0..lead)
            .map(|i| {
                let p = at(i, lead_a).map(|x| self.shape(a)[x].clone());
                let q = at(i, lead_b).map(|y| self.shape(b)[y].clone());
                match (p, q) {
                    (Some(p), Some(q)) if p.is_const(1) => q,
                    (Some(p), _) => p,
                    (None, q) => q.unwrap_or(Dim::from(1)),
                }
            })
            .collect();
        let a2 = self.squeeze(a, &squeeze(&drop_a))?;
        let b2 = self.squeeze(b, &squeeze(&drop_b))?;
        let batch: Vec<(usize, usize)> = place.iter().filter_map(|p| Some((p.0?, p.1?))).collect();
        let reduce = [(k_a - drop_a.len(), k_b - drop_b.len())];
        let r = self.contract(a2, b2, &batch, &reduce, acc)?;
        // contract yields: shared batch dims, free dims of a (batch, m), free dims of b (batch, n)
        let free_a: Vec<usize> =
            (0..lead).filter(|&i| place[i].0.is_some() && place[i].1.is_none()).collect();
        let free_b: Vec<usize> =
            (0..lead).filter(|&i| place[i].0.is_none() && place[i].1.is_some()).collect();
        let shared: Vec<usize> =
            (0..lead).filter(|&i| place[i].0.is_some() && place[i].1.is_some()).collect();
        const M: usize = usize::MAX - 1;
        const N: usize = usize::MAX;
        let mut have = shared;
        have.extend(free_a);
        have.extend((ra > 1).then_some(M));
        have.extend(free_b);
        have.extend((rb > 1).then_some(N));
        let mut want: Vec<usize> = have.clone();
        want.sort_unstable();
        let perm: Vec<usize> = want.iter().filter_map(|w| have.iter().position(|h| h == w)).collect();
        let r = self.transpose(r, &perm)?;
        // batch dims that were 1 in both operands and dropped in one of them come back
        let tail = self.shape(r)[want.iter().filter(|&&w| w < M).count()..].to_vec();
        self.reshape(r, &[extents, tail].concat())
    }
    /// See [`Prim::Convolve`].
    pub fn convolve(&mut self, x: V, w: V, window: &[WindowDim], groups: usize, acc: DType) -> Result<V> {
        self.op1(Prim::Convolve { window: window.to_vec(), groups, acc }, &[x, w])
    }
    /// The operands, sorted together by the first.
    pub fn sort(&mut self, values: &[V], axis: usize, descending: bool) -> Result<Vec<V>> {
        self.op(Prim::Sort { axis, descending }, values)
    }
    /// (values, i64 indices).
    pub fn top_k(&mut self, x: V, axis: usize, k: &Dim, largest: bool) -> Result<(V, V)> {
        let r = self.op(Prim::TopK { axis, k: k.clone(), largest }, &[x])?;
        Ok((r[0], r[1]))
    }
    /// Indices of the true elements of bool[n]; their number is a fresh symbol in `0..=n`.
    pub fn compact(&mut self, mask: V) -> Result<V> {
        let hi = self.shape(mask).first().map_or(0, |d| d.bounds(self.symbols()).1);
        let sym = self.value_symbol("count", 0, hi, hi.min(64));
        self.op1(Prim::Compact { sym }, &[mask])
    }
    /// False at run time is an error with this message.
    pub fn assert(&mut self, cond: V, message: impl Into<String>) -> Result<()> {
        self.op(Prim::Assert { message: message.into() }, &[cond]).map(|_| ())
    }
    /// A host function; `ranges` are those of the value symbols that it defines.
    pub fn host(&mut self, func: HostFn, operands: &[V], ranges: &[(i64, i64)]) -> Result<Vec<V>> {
        let defines = ranges
            .iter()
            .map(|&(lo, hi)| {
                let (lo, hi) = (lo.max(0), hi.min(Dim::LIMIT));
                let hint = 16.clamp(lo, hi.max(lo));
                let name = format!("{}_count", func.name());
                self.module.symbols.add(SymInfo { name, kind: SymKind::Value, lo, hi, divisor: 1, hint })
            })
            .collect();
        self.op(Prim::Host { func, defines }, operands)
    }
    /// A value of this type as a fresh input of the innermost region (see [`Builder::begin_region`]).
    pub fn region_input(&mut self, name: Option<&str>, ty: TensorType) -> V {
        self.add_input(self.frames.len() - 1, name.map(str::to_string), ty, None)
    }
}
