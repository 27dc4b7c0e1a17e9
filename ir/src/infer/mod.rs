//! Types and symbolic shapes of every primitive.
//!
//! [`infer`] is the one definition of what a primitive accepts and what it yields; the builder and the
//! verifier both ask it. What it can neither prove nor refute about sizes becomes a [`Require`]: a
//! condition that the compiled program checks when the symbols get their values. So `add` of `[N]` and
//! `[M]` is legal, of `[2]` and `[3]` is not.

mod control;

use crate::dim::Facts;
use crate::graph::{Graph, TensorType};
use crate::prim::{BinaryOp, CmpOp, Combine, Monoid, PadMode, Prim, UnaryOp, WindowDim};
use crate::{ConstData, DType, Dim, IrError, Result, Sym, Symbols};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// A condition on sizes that an op relies on and that is not provable from the symbols' ranges.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Require {
    Eq(Dim, Dim),
    Le(Dim, Dim),
    /// The first is 1 or equal to the second (an extent that is broadcast).
    OneOr(Dim, Dim),
}

impl Require {
    /// Whether the condition holds for these sizes; `None` where a symbol has no value.
    pub fn holds(&self, sym: &dyn Fn(Sym) -> Option<i64>) -> Option<bool> {
        let (Require::Eq(a, b) | Require::Le(a, b) | Require::OneOr(a, b)) = self;
        let (a, b) = (a.eval_syms(sym)?, b.eval_syms(sym)?);
        Some(match self {
            Require::Eq(..) => a == b,
            Require::Le(..) => a <= b,
            Require::OneOr(..) => a == 1 || a == b,
        })
    }
    /// The same condition as an equality of two expressions (`a <= b` as `max(a, b) == b`).
    pub fn as_equality(&self, facts: &dyn Facts) -> (Dim, Dim) {
        match self {
            Require::Eq(a, b) => (a.clone(), b.clone()),
            Require::Le(a, b) => (a.max_with(b, facts), b.clone()),
            Require::OneOr(a, b) => ((a - &Dim::from(1)) * (a - b), Dim::from(0)),
        }
    }
}

/// Result types of `prim` on operands of these types. `regions` are those of the op, `consts` and
/// `syms` those of the module. Errors say what was expected and what was found.
pub fn infer(
    prim: &Prim,
    operands: &[&TensorType],
    regions: &[Graph],
    consts: &[ConstData],
    syms: &Symbols,
) -> Result<Vec<TensorType>> {
    infer_with(prim, operands, regions, consts, syms).map(|r| r.0)
}

/// Size conditions of an op that have to be checked when shapes are bound (none where all is proved).
pub fn requirements(
    prim: &Prim,
    operands: &[&TensorType],
    regions: &[Graph],
    consts: &[ConstData],
    syms: &Symbols,
) -> Result<Vec<Require>> {
    infer_with(prim, operands, regions, consts, syms).map(|r| r.1)
}

/// [`infer`] and [`requirements`] at once.
pub fn infer_with(
    prim: &Prim,
    operands: &[&TensorType],
    regions: &[Graph],
    consts: &[ConstData],
    syms: &Symbols,
) -> Result<(Vec<TensorType>, Vec<Require>)> {
    let cx = Cx { prim, operands, regions, consts, syms, required: RefCell::default() };
    let types = cx.results()?;
    for ty in &types {
        cx.check_sizes(&ty.shape)?;
    }
    Ok((types, cx.required.into_inner()))
}

/// Types that arithmetic accepts: the sub-byte and 8-bit float types are converted first.
pub fn is_arithmetic(d: DType) -> bool {
    use DType::*;
    matches!(d, F64 | F32 | F16 | BF16 | I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8)
}

/// Extent of two extents broadcast against each other (numpy): equal ones, or one of them is 1.
/// Where neither is provable, an expression that has the right value wherever the pair is legal.
/// `None` where they provably disagree.
pub fn broadcast_extent(a: &Dim, b: &Dim, facts: &dyn Facts) -> Option<Dim> {
    if a.is_const(1) || a == b {
        return Some(b.clone());
    }
    if b.is_const(1) {
        return Some(a.clone());
    }
    let zero = |x: &Dim, y: &Dim| (x - y).bounds(facts);
    let one = Dim::from(1);
    if a.provably_eq(b, facts) {
        return Some(if a.as_const().is_some() { a.clone() } else { b.clone() });
    }
    let is_one = |x: &Dim| zero(x, &one) == (0, 0);
    let never = |(lo, hi): (i64, i64)| lo > 0 || hi < 0;
    let (a_one, b_one) = (zero(a, &one), zero(b, &one));
    if is_one(a) {
        return Some(b.clone());
    }
    if is_one(b) {
        return Some(a.clone());
    }
    match (never(a_one), never(b_one)) {
        // neither can be 1: they must be equal
        (true, true) if never(zero(a, b)) => None,
        (true, true) => Some(if b.as_const().is_some() { b.clone() } else { a.clone() }),
        // the one that cannot be 1 is the result
        (true, false) => Some(a.clone()),
        (false, true) => Some(b.clone()),
        // 1 against 0 is 0, so the larger one is right for positive extents only
        (false, false) => {
            let max = a.max_with(b, facts);
            let min = a.min_with(b, facts).min_with(&one, facts);
            Some(max * min)
        }
    }
}

/// Extent of the output of one window dim; see [`WindowDim`]. May be negative where the window is
/// larger than the padded input.
pub fn window_extent(input: &Dim, kernel: &Dim, w: &WindowDim, facts: &dyn Facts) -> Dim {
    let one = Dim::from(1);
    let spread = |n: &Dim, by: i64| {
        if by == 1 {
            return n.clone();
        }
        // an empty input stays empty: max(n, 1) - 1 gaps; the form that an interior pad's result has
        let gaps = n.max_with(&one, facts) - &one;
        n + gaps * Dim::from(by - 1)
    };
    let padded = spread(input, w.base_dilation) + &w.pad_lo + &w.pad_hi;
    let reach = (kernel - &one) * Dim::from(w.dilation) + &one;
    (padded - reach).floor_div(&Dim::from(w.stride), facts) + one
}

/// Symbols that executing the graph gives a value, nested regions included.
pub fn symbols_defined_in(g: &Graph) -> BTreeSet<Sym> {
    fn walk(g: &Graph, set: &mut BTreeSet<Sym>) {
        for (_, op) in g.ops() {
            set.extend(op.prim.defines());
            if let Prim::Loop { carried_syms, .. } = &op.prim {
                set.extend(carried_syms);
            }
            for r in &op.regions {
                walk(r, set);
            }
        }
    }
    let mut set = BTreeSet::new();
    walk(g, &mut set);
    set
}

/// `[2, N]` for messages.
pub fn show_shape(shape: &[Dim], syms: &Symbols) -> String {
    let dims: Vec<String> = shape.iter().map(|d| syms.show(d)).collect();
    format!("[{}]", dims.join(", "))
}

struct Cx<'a> {
    prim: &'a Prim,
    operands: &'a [&'a TensorType],
    regions: &'a [Graph],
    consts: &'a [ConstData],
    syms: &'a Symbols,
    required: RefCell<Vec<Require>>,
}

impl<'a> Cx<'a> {
    // ---- messages and size conditions ------------------------------------------------------

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(IrError::ty(self.prim.name(), message))
    }
    fn shape(&self, shape: &[Dim]) -> String {
        show_shape(shape, self.syms)
    }
    fn dim(&self, d: &Dim) -> String {
        self.syms.show(d)
    }
    fn push(&self, r: Require) {
        let mut list = self.required.borrow_mut();
        if !list.contains(&r) {
            list.push(r);
        }
    }
    /// The two extents are equal, as proved or as required; answers the more specific one.
    fn eq(&self, a: &Dim, b: &Dim, what: &str) -> Result<Dim> {
        if a != b {
            match (a - b).bounds(self.syms) {
                (lo, hi) if lo > 0 || hi < 0 => {
                    return self.fail(format!("{what} differ: {} and {}", self.dim(a), self.dim(b)));
                }
                _ if a.provably_eq(b, self.syms) => {}
                _ => self.push(Require::Eq(a.clone(), b.clone())),
            }
        }
        Ok(if b.as_const().is_some() { b.clone() } else { a.clone() })
    }
    /// `a <= b`, as proved or as required.
    fn le(&self, a: &Dim, b: &Dim, message: impl FnOnce() -> String) -> Result<()> {
        let room = b - a;
        if room.provably_nonnegative(self.syms) {
            return Ok(());
        }
        if room.bounds(self.syms).1 < 0 {
            return self.fail(message());
        }
        self.push(Require::Le(a.clone(), b.clone()));
        Ok(())
    }
    /// Extents are not negative and stay within the limits.
    fn check_sizes(&self, shape: &[Dim]) -> Result<()> {
        let mut elems: i64 = 1;
        for d in shape {
            self.le(&Dim::from(0), d, || format!("negative extent in {}", self.shape(shape)))?;
            elems = elems.saturating_mul(d.bounds(self.syms).0.max(0));
        }
        let empty = shape.iter().any(|d| d.is_const(0));
        if !empty && (elems > Dim::LIMIT || shape.iter().any(|d| d.as_const() > Some(Dim::LIMIT))) {
            return Err(IrError::Limit(format!(
                "{}: a tensor of shape {} has more than 2^48 elements",
                self.prim.name(),
                self.shape(shape)
            )));
        }
        Ok(())
    }

    // ---- operands --------------------------------------------------------------------------

    fn arity(&self, n: usize) -> Result<()> {
        if self.operands.len() == n {
            return Ok(());
        }
        self.fail(format!("expected {n} operands, found {}", self.operands.len()))
    }
    fn one(&self) -> Result<&'a TensorType> {
        self.arity(1)?;
        Ok(self.operands[0])
    }
    fn two(&self) -> Result<(&'a TensorType, &'a TensorType)> {
        self.arity(2)?;
        Ok((self.operands[0], self.operands[1]))
    }
    fn dtype_is(&self, i: usize, want: DType) -> Result<()> {
        let found = self.operands[i].dtype;
        if found == want {
            return Ok(());
        }
        self.fail(format!("operand {i}: expected {want}, found {found}"))
    }
    fn scalar(&self, i: usize, want: DType) -> Result<()> {
        self.dtype_is(i, want)?;
        let t = self.operands[i];
        if t.rank() == 0 {
            return Ok(());
        }
        self.fail(format!("operand {i}: expected a scalar, found {}", self.shape(&t.shape)))
    }
    fn same_dtype(&self, a: usize, b: usize) -> Result<()> {
        let (x, y) = (self.operands[a].dtype, self.operands[b].dtype);
        if x == y {
            return Ok(());
        }
        self.fail(format!("operands {a} and {b}: expected equal element types, found {x} and {y}"))
    }
    /// Equal shapes; answers the merged one.
    fn same_shape(&self, a: &[Dim], b: &[Dim], what: &str) -> Result<Vec<Dim>> {
        if a.len() != b.len() {
            return self.fail(format!(
                "{what}: expected equal ranks, found {} and {}",
                self.shape(a),
                self.shape(b)
            ));
        }
        let extents = format!("{what}: extents of {} and {}", self.shape(a), self.shape(b));
        a.iter().zip(b).map(|(x, y)| self.eq(x, y, &extents)).collect()
    }
    fn axis(&self, axis: usize, rank: usize) -> Result<()> {
        if axis < rank {
            return Ok(());
        }
        self.fail(format!("axis {axis} is out of range for rank {rank}"))
    }
    fn expect_len(&self, what: &str, found: usize, want: usize) -> Result<()> {
        if found == want {
            return Ok(());
        }
        self.fail(format!("{what}: expected {want} entries, found {found}"))
    }
    fn dtype_in(&self, dtype: DType, ok: bool, want: &str) -> Result<()> {
        if ok {
            return Ok(());
        }
        self.fail(format!("expected {want}, found {dtype}"))
    }
    fn arithmetic(&self, dtype: DType) -> Result<()> {
        self.dtype_in(dtype, is_arithmetic(dtype), "an arithmetic element type (convert first)")
    }
    fn not_string(&self, dtype: DType) -> Result<()> {
        self.dtype_in(dtype, dtype != DType::String, "a type other than string")
    }

    // ---- the primitives --------------------------------------------------------------------

    fn results(&self) -> Result<Vec<TensorType>> {
        if !matches!(self.prim, Prim::If { .. } | Prim::Loop { .. } | Prim::Call { .. })
            && !self.regions.is_empty()
        {
            return self.fail("expected no region");
        }
        let ty = |dtype, shape| Ok(vec![TensorType::new(dtype, shape)]);
        match self.prim {
            Prim::Const(id) => {
                self.arity(0)?;
                let Some(c) = self.consts.get(id.0 as usize) else {
                    return self.fail(format!("constant {} is not in the module", id.0));
                };
                ty(c.dtype, c.shape.iter().map(|&d| Dim::from(d)).collect())
            }
            Prim::Iota { dtype, shape, axis } => {
                self.arity(0)?;
                self.axis(*axis, shape.len())?;
                self.arithmetic(*dtype)?;
                ty(*dtype, shape.clone())
            }
            Prim::DimValue(_) => {
                self.arity(0)?;
                ty(DType::I64, Vec::new())
            }
            Prim::BindDim(_) => {
                let x = self.one()?;
                self.dtype_is(0, DType::I64)?;
                if x.rank() > 1 || x.shape.first().is_some_and(|d| !d.is_const(1)) {
                    return self.fail(format!("expected i64[] or i64[1], found {}", self.shape(&x.shape)));
                }
                Ok(Vec::new())
            }
            Prim::RandomBits { shape } => {
                self.arity(1)?;
                self.scalar(0, DType::U64)?;
                ty(DType::U64, shape.clone())
            }
            Prim::Unary(op) => {
                let x = self.one()?;
                self.unary_dtype(*op, x.dtype)?;
                Ok(vec![x.clone()])
            }
            Prim::Binary(op) => {
                let (a, b) = self.two()?;
                self.same_dtype(0, 1)?;
                self.binary_dtype(*op, a.dtype)?;
                ty(a.dtype, self.same_shape(&a.shape, &b.shape, "operands")?)
            }
            Prim::Cmp(op) => {
                let (a, b) = self.two()?;
                self.same_dtype(0, 1)?;
                let equality = matches!(op, CmpOp::Eq | CmpOp::Ne);
                let ok =
                    is_arithmetic(a.dtype) || a.dtype == DType::Bool || equality && a.dtype == DType::String;
                self.dtype_in(a.dtype, ok, "a comparable element type")?;
                ty(DType::Bool, self.same_shape(&a.shape, &b.shape, "operands")?)
            }
            Prim::Select => {
                self.arity(3)?;
                self.dtype_is(0, DType::Bool)?;
                self.same_dtype(1, 2)?;
                let [c, a, b] = [0, 1, 2].map(|i| self.operands[i]);
                let shape = self.same_shape(&a.shape, &b.shape, "operands 1 and 2")?;
                ty(a.dtype, self.same_shape(&shape, &c.shape, "condition and operands")?)
            }
            Prim::Convert { to, .. } => {
                let x = self.one()?;
                self.not_string(x.dtype)?;
                self.not_string(*to)?;
                ty(*to, x.shape.clone())
            }
            Prim::Bitcast { to } => {
                let x = self.one()?;
                self.not_string(x.dtype)?;
                let ok = x.dtype.bits() == to.bits() && x.dtype.bytes() == to.bytes();
                self.dtype_in(x.dtype, ok, &format!("a type as wide as {to}"))?;
                ty(*to, x.shape.clone())
            }
            Prim::Reshape { shape } => {
                let x = self.one()?;
                self.check_sizes(shape)?;
                let (from, to) = (Dim::product(&x.shape), Dim::product(shape));
                let what = format!("element counts of {} and {}", self.shape(&x.shape), self.shape(shape));
                self.eq(&from, &to, &what)?;
                ty(x.dtype, shape.clone())
            }
            Prim::Transpose { perm } => {
                let x = self.one()?;
                let mut sorted = perm.clone();
                sorted.sort_unstable();
                if sorted.len() != x.rank() || sorted.iter().enumerate().any(|(i, &p)| i != p) {
                    return self.fail(format!("{perm:?} is no permutation of {} axes", x.rank()));
                }
                ty(x.dtype, perm.iter().map(|&p| x.shape[p].clone()).collect())
            }
            Prim::Broadcast { shape, dims } => self.broadcast(shape, dims),
            Prim::Slice { start, size, step } => self.slice(start, size, step),
            Prim::Pad { lo, hi, interior, mode } => self.pad(lo, hi, interior, *mode),
            Prim::Concat { axis } => self.concat(*axis),
            Prim::UpdateSlice { start } => {
                let (base, update) = self.two()?;
                self.same_dtype(0, 1)?;
                self.expect_len("start", start.len(), base.rank())?;
                self.expect_len("shape of the update", update.rank(), base.rank())?;
                for ((s, u), n) in start.iter().zip(&update.shape).zip(&base.shape) {
                    let outside = || {
                        format!(
                            "update {} at {} lies outside the base {}",
                            self.shape(&update.shape),
                            self.shape(start),
                            self.shape(&base.shape)
                        )
                    };
                    self.le(&Dim::from(0), s, outside)?;
                    self.le(&(s + u), n, outside)?;
                }
                Ok(vec![base.clone()])
            }
            Prim::Gather { axis } => {
                let (x, index) = self.two()?;
                self.axis(*axis, x.rank())?;
                self.index_dtype(index.dtype)?;
                let shape = [&x.shape[..*axis], &index.shape, &x.shape[axis + 1..]].concat();
                ty(x.dtype, shape)
            }
            Prim::Scatter { combine } => self.scatter(*combine),
            Prim::Reduce { monoid, axes } => {
                let x = self.one()?;
                self.monoid_dtype(*monoid, x.dtype)?;
                if !axes.is_sorted_by(|a, b| a < b) || axes.last().is_some_and(|&a| a >= x.rank()) {
                    return self
                        .fail(format!("axes {axes:?}: expected sorted, distinct axes below {}", x.rank()));
                }
                ty(x.dtype, without(&x.shape, axes))
            }
            Prim::ArgReduce { axis, .. } => {
                let x = self.one()?;
                self.axis(*axis, x.rank())?;
                self.monoid_dtype(Monoid::Max, x.dtype)?;
                self.le(&Dim::from(1), &x.shape[*axis], || "the reduced axis is empty".into())?;
                ty(DType::I64, without(&x.shape, &[*axis]))
            }
            Prim::WindowReduce { monoid, size, window } => {
                let x = self.one()?;
                self.monoid_dtype(*monoid, x.dtype)?;
                self.expect_len("window", window.len(), size.len())?;
                let Some(lead) = x.rank().checked_sub(size.len()) else {
                    return self.fail(format!(
                        "{} window dims for an operand of rank {}",
                        size.len(),
                        x.rank()
                    ));
                };
                let sizes: Vec<Dim> = size.iter().map(|&s| Dim::from(s)).collect();
                let mut shape = x.shape[..lead].to_vec();
                shape.extend(self.window(&x.shape[lead..], &sizes, window)?);
                ty(x.dtype, shape)
            }
            Prim::Cumulative { monoid, axis, .. } => {
                let x = self.one()?;
                self.axis(*axis, x.rank())?;
                self.monoid_dtype(*monoid, x.dtype)?;
                Ok(vec![x.clone()])
            }
            Prim::Contract { batch, reduce, acc } => self.contract(batch, reduce, *acc),
            Prim::Convolve { window, groups, acc } => self.convolve(window, *groups, *acc),
            Prim::Sort { axis, .. } => {
                let Some(first) = self.operands.first() else {
                    return self.fail("expected at least 1 operand, found 0");
                };
                self.axis(*axis, first.rank())?;
                self.monoid_dtype(Monoid::Max, first.dtype)?;
                for x in self.operands {
                    self.not_string(x.dtype)?;
                    self.same_shape(&first.shape, &x.shape, "operands")?;
                }
                Ok(self.operands.iter().map(|&t| t.clone()).collect())
            }
            Prim::TopK { axis, k, .. } => {
                let x = self.one()?;
                self.axis(*axis, x.rank())?;
                self.monoid_dtype(Monoid::Max, x.dtype)?;
                self.le(k, &x.shape[*axis], || {
                    format!("k = {} exceeds the extent {}", self.dim(k), self.dim(&x.shape[*axis]))
                })?;
                let mut shape = x.shape.clone();
                shape[*axis] = k.clone();
                Ok(vec![TensorType::new(x.dtype, shape.clone()), TensorType::new(DType::I64, shape)])
            }
            Prim::Compact { sym } => {
                let x = self.one()?;
                self.dtype_is(0, DType::Bool)?;
                if x.rank() != 1 {
                    return self.fail(format!("expected bool[n], found {}", self.shape(&x.shape)));
                }
                ty(DType::I64, vec![Dim::from(*sym)])
            }
            Prim::If { defines } => self.if_(defines),
            Prim::Loop { carried, carried_syms, defines } => self.loop_(*carried, carried_syms, defines),
            Prim::Call { .. } => {
                let [body] = self.regions else {
                    return self.fail(format!("expected 1 region, found {}", self.regions.len()));
                };
                self.region_inputs(body, self.operands, "body")?;
                Ok(body.outputs.iter().map(|&v| body[v].ty.clone()).collect())
            }
            Prim::Assert { .. } => {
                self.arity(1)?;
                self.scalar(0, DType::Bool)?;
                Ok(Vec::new())
            }
            Prim::Host { func, defines } => self.host(func, defines),
        }
    }

    fn unary_dtype(&self, op: UnaryOp, d: DType) -> Result<()> {
        match op {
            UnaryOp::Neg | UnaryOp::Abs => self.arithmetic(d),
            UnaryOp::Not => self.dtype_in(
                d,
                d == DType::Bool || d.is_int() && is_arithmetic(d),
                "bool or an integer type",
            ),
            _ => self.dtype_in(d, d.is_float() && is_arithmetic(d), "f64, f32, f16 or bf16"),
        }
    }
    fn binary_dtype(&self, op: BinaryOp, d: DType) -> Result<()> {
        use BinaryOp::*;
        let int = d.is_int() && is_arithmetic(d);
        match op {
            Add | Sub | Mul | Div | Rem | Pow => self.arithmetic(d),
            Min | Max => self.dtype_in(d, d == DType::Bool || is_arithmetic(d), "bool or an arithmetic type"),
            Atan2 => self.dtype_in(d, d.is_float() && is_arithmetic(d), "f64, f32, f16 or bf16"),
            And | Or | Xor => self.dtype_in(d, d == DType::Bool || int, "bool or an integer type"),
            Shl | Shr => self.dtype_in(d, int, "an integer type"),
        }
    }
    fn monoid_dtype(&self, m: Monoid, d: DType) -> Result<()> {
        match m {
            Monoid::Sum | Monoid::Prod => self.arithmetic(d),
            Monoid::Max | Monoid::Min => {
                self.dtype_in(d, d == DType::Bool || is_arithmetic(d), "bool or an arithmetic type")
            }
        }
    }
    fn index_dtype(&self, d: DType) -> Result<()> {
        self.dtype_in(d, matches!(d, DType::I32 | DType::I64), "indices of type i32 or i64")
    }
    /// Element types of the operands of a contraction and of its accumulator.
    fn contract_dtypes(&self, acc: DType) -> Result<()> {
        let (a, b) = (self.operands[0].dtype, self.operands[1].dtype);
        self.arithmetic(a)?;
        self.arithmetic(b)?;
        let narrow = |d: DType| d.is_int() && d.bytes() == 1;
        if a != b && !(narrow(a) && narrow(b)) {
            return self.fail(format!("expected equal element types, found {a} and {b}"));
        }
        let ok = is_arithmetic(acc)
            && acc.is_float() == a.is_float()
            && acc.bytes() >= a.bytes()
            && (acc.bytes() > a.bytes() || acc == a && acc == b);
        self.dtype_in(acc, ok, &format!("an accumulator for {a}"))
    }

    fn broadcast(&self, shape: &[Dim], dims: &[usize]) -> Result<Vec<TensorType>> {
        let x = self.one()?;
        self.expect_len("dims", dims.len(), x.rank())?;
        if !dims.is_sorted_by(|a, b| a < b) || dims.last().is_some_and(|&d| d >= shape.len()) {
            return self.fail(format!("dims {dims:?}: expected sorted, distinct dims below {}", shape.len()));
        }
        for (d, &to) in x.shape.iter().zip(dims) {
            let out = &shape[to];
            let (to_one, to_out) = ((d - &Dim::from(1)).bounds(self.syms), (d - out).bounds(self.syms));
            let never = |(lo, hi): (i64, i64)| lo > 0 || hi < 0;
            if to_one == (0, 0) || d.provably_eq(out, self.syms) {
                continue;
            }
            match (never(to_one), never(to_out)) {
                (true, true) => {
                    return self.fail(format!(
                        "extent {} of {} does not broadcast to {} of {}",
                        self.dim(d),
                        self.shape(&x.shape),
                        self.dim(out),
                        self.shape(shape)
                    ));
                }
                (true, false) => self.push(Require::Eq(d.clone(), out.clone())),
                (false, true) => self.push(Require::Eq(d.clone(), Dim::from(1))),
                (false, false) => self.push(Require::OneOr(d.clone(), out.clone())),
            }
        }
        Ok(vec![TensorType::new(x.dtype, shape.to_vec())])
    }

    fn slice(&self, start: &[Dim], size: &[Dim], step: &[i64]) -> Result<Vec<TensorType>> {
        let x = self.one()?;
        self.expect_len("start", start.len(), x.rank())?;
        self.expect_len("size", size.len(), x.rank())?;
        self.expect_len("step", step.len(), x.rank())?;
        let (zero, one) = (Dim::from(0), Dim::from(1));
        for i in 0..x.rank() {
            let (n, s, k) = (&x.shape[i], &start[i], &size[i]);
            let outside = || {
                format!(
                    "axis {i}: start {}, size {}, step {} leaves the extent {}",
                    self.dim(s),
                    self.dim(k),
                    step[i],
                    self.dim(n)
                )
            };
            if step[i] == 0 {
                return self.fail(format!("axis {i}: the step is 0"));
            }
            self.le(&zero, k, outside)?;
            // an empty slice reads nothing, wherever it starts
            let (_, hi) = k.bounds(self.syms);
            if hi <= 0 {
                continue;
            }
            let last = s + &((k - &one) * Dim::from(step[i]));
            let (low, high) = if step[i] > 0 { (s, &last) } else { (&last, s) };
            let proved = zero.provably_le(low, self.syms) && high.provably_lt(n, self.syms);
            if !proved && k.bounds(self.syms).0 > 0 {
                self.le(&zero, low, outside)?;
                self.le(&(high + &one), n, outside)?;
            } else if !proved {
                self.require_le(&zero, low);
                self.require_le(&(high + &one), n);
            }
        }
        Ok(vec![TensorType::new(x.dtype, size.to_vec())])
    }
    /// `a <= b` unless proved, without refusing what looks impossible (the slice may be empty).
    fn require_le(&self, a: &Dim, b: &Dim) {
        if !a.provably_le(b, self.syms) {
            self.push(Require::Le(a.clone(), b.clone()));
        }
    }

    fn pad(&self, lo: &[Dim], hi: &[Dim], interior: &[i64], mode: PadMode) -> Result<Vec<TensorType>> {
        let constant = mode == PadMode::Constant;
        self.arity(if constant { 2 } else { 1 })?;
        let x = self.operands[0];
        if constant {
            self.scalar(1, x.dtype)?;
        }
        self.expect_len("lo", lo.len(), x.rank())?;
        self.expect_len("hi", hi.len(), x.rank())?;
        self.expect_len("interior", interior.len(), x.rank())?;
        let (zero, one) = (Dim::from(0), Dim::from(1));
        let mut shape = Vec::with_capacity(x.rank());
        for i in 0..x.rank() {
            if interior[i] < 0 || !constant && interior[i] != 0 {
                return self.fail(format!("axis {i}: interior {} is not allowed here", interior[i]));
            }
            let n = &x.shape[i];
            let mut out = n + &lo[i] + &hi[i];
            if interior[i] != 0 {
                out = out + (n.max_with(&one, self.syms) - &one) * Dim::from(interior[i]);
            }
            let copies = !lo[i].provably_le(&zero, self.syms) || !hi[i].provably_le(&zero, self.syms);
            if !constant && copies && !out.is_const(0) {
                self.le(&one, n, || format!("axis {i} is empty: there is nothing to repeat"))?;
            }
            shape.push(out);
        }
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn concat(&self, axis: usize) -> Result<Vec<TensorType>> {
        let Some((first, rest)) = self.operands.split_first() else {
            return self.fail("expected at least 1 operand, found 0");
        };
        self.axis(axis, first.rank())?;
        let mut shape = first.shape.clone();
        for (i, x) in rest.iter().enumerate() {
            self.same_dtype(0, i + 1)?;
            self.expect_len(&format!("shape of operand {}", i + 1), x.rank(), first.rank())?;
            for (d, n) in x.shape.iter().enumerate() {
                if d == axis {
                    shape[d] = &shape[d] + n;
                } else {
                    let what = format!("axis {d}: extents of operands 0 and {}", i + 1);
                    shape[d] = self.eq(&shape[d], n, &what)?;
                }
            }
        }
        Ok(vec![TensorType::new(first.dtype, shape)])
    }

    fn scatter(&self, combine: Combine) -> Result<Vec<TensorType>> {
        self.arity(3)?;
        let [base, index, update] = [0, 1, 2].map(|i| self.operands[i]);
        self.index_dtype(index.dtype)?;
        self.same_dtype(0, 2)?;
        match combine {
            Combine::Set => {}
            Combine::Min | Combine::Max => self.monoid_dtype(Monoid::Max, base.dtype)?,
            Combine::Add | Combine::Mul => self.arithmetic(base.dtype)?,
        }
        if index.rank() != 1 || base.rank() == 0 || update.rank() != base.rank() {
            return self.fail(format!(
                "expected base [d, inner...], indices [n], updates [n, inner...], found {}, {}, {}",
                self.shape(&base.shape),
                self.shape(&index.shape),
                self.shape(&update.shape)
            ));
        }
        self.eq(&index.shape[0], &update.shape[0], "counts of indices and updates")?;
        self.same_shape(&base.shape[1..], &update.shape[1..], "inner dims of base and updates")?;
        Ok(vec![base.clone()])
    }

    fn window(&self, input: &[Dim], kernel: &[Dim], window: &[WindowDim]) -> Result<Vec<Dim>> {
        let mut out = Vec::with_capacity(input.len());
        for (i, ((n, k), w)) in input.iter().zip(kernel).zip(window).enumerate() {
            if w.stride < 1 || w.dilation < 1 || w.base_dilation < 1 {
                return self.fail(format!(
                    "window dim {i}: stride {}, dilation {} and base dilation {} must be positive",
                    w.stride, w.dilation, w.base_dilation
                ));
            }
            self.le(&Dim::from(1), k, || format!("window dim {i}: size {} is not positive", self.dim(k)))?;
            let extent = window_extent(n, k, w, self.syms);
            self.le(&Dim::from(0), &extent, || {
                format!(
                    "window dim {i}: a window of {} exceeds the padded extent of {}",
                    self.dim(k),
                    self.dim(n)
                )
            })?;
            out.push(extent);
        }
        Ok(out)
    }

    fn contract(
        &self,
        batch: &[(usize, usize)],
        reduce: &[(usize, usize)],
        acc: DType,
    ) -> Result<Vec<TensorType>> {
        let (a, b) = self.two()?;
        self.contract_dtypes(acc)?;
        let mut used = (vec![false; a.rank()], vec![false; b.rank()]);
        for &(x, y) in batch.iter().chain(reduce) {
            self.axis(x, a.rank())?;
            self.axis(y, b.rank())?;
            if std::mem::replace(&mut used.0[x], true) || std::mem::replace(&mut used.1[y], true) {
                return self.fail(format!("axes ({x}, {y}) are used twice"));
            }
        }
        let pair = |&(x, y): &(usize, usize)| {
            let what = format!(
                "axis {x} of {} and axis {y} of {}: extents",
                self.shape(&a.shape),
                self.shape(&b.shape)
            );
            self.eq(&a.shape[x], &b.shape[y], &what)
        };
        let mut shape: Vec<Dim> = batch.iter().map(pair).collect::<Result<_>>()?;
        for p in reduce {
            pair(p)?;
        }
        let free = |t: &TensorType, used: &[bool]| -> Vec<Dim> {
            t.shape.iter().zip(used).filter(|(_, u)| !**u).map(|(d, _)| d.clone()).collect()
        };
        shape.extend(free(a, &used.0));
        shape.extend(free(b, &used.1));
        Ok(vec![TensorType::new(acc, shape)])
    }

    fn convolve(&self, window: &[WindowDim], groups: usize, acc: DType) -> Result<Vec<TensorType>> {
        let (x, w) = self.two()?;
        self.contract_dtypes(acc)?;
        let rank = window.len() + 2;
        if x.rank() != rank || w.rank() != rank || groups == 0 {
            return self.fail(format!(
                "expected operands of rank {rank} and at least 1 group, found {} and {} with {groups} groups",
                self.shape(&x.shape),
                self.shape(&w.shape)
            ));
        }
        let groups_dim = Dim::from(groups);
        self.eq(&x.shape[1], &(&w.shape[1] * &groups_dim), "input channels and groups x kernel channels")?;
        let rest = w.shape[0].modulo(&groups_dim, self.syms);
        self.eq(&rest, &Dim::from(0), "output channels modulo groups and 0")?;
        let mut shape = vec![x.shape[0].clone(), w.shape[0].clone()];
        shape.extend(self.window(&x.shape[2..], &w.shape[2..], window)?);
        Ok(vec![TensorType::new(acc, shape)])
    }
}

/// `shape` without these axes.
fn without(shape: &[Dim], axes: &[usize]) -> Vec<Dim> {
    shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect()
}
