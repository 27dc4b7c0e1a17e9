//! What the builder knows of the elements of small tensors: size arithmetic of models, done on [`Dim`]s.
//!
//! An element is an integer expression over symbols, or a fraction of one by a power of two where the
//! tensor is of a float type and the fraction is exact in that type. Nothing here is a guess: an
//! operation whose result could wrap, round or fail leaves the element unknown.

use crate::dtype::Scalar;
use crate::graph::TensorType;
use crate::prim::{BinaryOp, CmpOp, Combine, Monoid, PadMode, Prim, UnaryOp};
use crate::{ConstData, DType, Dim, Symbols};

/// Tensors of more elements are not tracked.
pub const MAX_ELEMS: usize = 64;

/// `num / den`; `den` is a power of two, 1 for integers and booleans.
#[derive(Clone, PartialEq, Debug)]
pub struct Elem {
    pub num: Dim,
    pub den: i64,
}

/// Row-major elements; `None` where unknown.
pub type Elems = Vec<Option<Elem>>;

impl Elem {
    pub fn int(num: impl Into<Dim>) -> Elem {
        Elem { num: num.into(), den: 1 }
    }
    /// An element of `dtype` from a constant's scalar; `None` where it has no exact form here.
    fn scalar(dtype: DType, s: Scalar) -> Option<Elem> {
        match s {
            Scalar::Int(i) if dtype.is_float() => Elem::float(i as f64),
            // "to the end" as models write it; `fits` keeps arithmetic off it, so that it only moves
            Scalar::Int(i) if i == i64::MAX.into() || i == i64::MIN.into() => Some(Elem::int(i as i64)),
            Scalar::Int(i) if i.unsigned_abs() < BIG as u128 => Some(Elem::int(i as i64)),
            Scalar::Int(_) => None,
            Scalar::Float(x) => Elem::float(x),
        }
    }
    fn float(x: f64) -> Option<Elem> {
        // the smallest power of two that makes x an integer
        let mut den = 1i64;
        let mut num = x;
        while num.fract() != 0.0 {
            num *= 2.0;
            den = den.checked_mul(2).filter(|d| *d < BIG)?;
        }
        (num.is_finite() && num.abs() < BIG as f64 && !(x == 0.0 && x.is_sign_negative()))
            .then(|| Elem { num: Dim::from(num as i64), den })
    }
    fn as_f64(&self) -> Option<f64> {
        self.num.as_const().map(|n| n as f64 / self.den as f64)
    }
}

/// Above this size integers are left alone: [`Dim`] arithmetic saturates at 2^62.
const BIG: i64 = 1 << 61;

fn tracked(d: DType) -> bool {
    matches!(d, DType::F64 | DType::F32 | DType::Bool | DType::I64 | DType::I32 | DType::U8 | DType::I8)
        || matches!(d, DType::I16 | DType::U16 | DType::U32 | DType::U64)
}

/// The shape as numbers where it is static and small, in all of its parts even where one is empty.
pub fn small_shape(ty: &TensorType) -> Option<Vec<usize>> {
    let dims: Vec<usize> =
        ty.shape.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect::<Option<_>>()?;
    let n = dims.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)))?;
    (n <= MAX_ELEMS && tracked(ty.dtype)).then_some(dims)
}

/// An operand of [`eval`].
pub struct Operand<'a> {
    pub ty: &'a TensorType,
    pub known: Option<&'a Elems>,
}

/// Elements of the results, by result; `None` for a result about which nothing is known.
pub fn eval(
    prim: &Prim,
    operands: &[Operand],
    results: &[TensorType],
    consts: &[ConstData],
    syms: &Symbols,
) -> Vec<Option<Elems>> {
    let nothing = || vec![None; results.len()];
    let [result] = results else { return nothing() };
    let Some(shape) = small_shape(result) else { return nothing() };
    let elems = (Eval { operands, result, shape, consts, syms }).elems(prim);
    vec![elems.filter(|e| e.iter().any(Option::is_some))]
}

struct Eval<'a> {
    operands: &'a [Operand<'a>],
    result: &'a TensorType,
    shape: Vec<usize>,
    consts: &'a [ConstData],
    syms: &'a Symbols,
}

impl Eval<'_> {
    fn known(&self, i: usize) -> Option<(&Elems, Vec<usize>)> {
        let o = &self.operands[i];
        Some((o.known?, small_shape(o.ty)?))
    }

    fn elems(&self, prim: &Prim) -> Option<Elems> {
        let n: usize = self.shape.iter().product();
        match prim {
            Prim::Const(id) => {
                let c = &self.consts[id.0 as usize];
                Some((0..n).map(|i| Elem::scalar(c.dtype, c.scalar_at(i)?)).collect())
            }
            Prim::Iota { dtype, axis, .. } => {
                let at = |index: &[usize]| Elem::scalar(*dtype, Scalar::of(*dtype, index[*axis] as f64));
                Some(self.map(at))
            }
            Prim::DimValue(d) => Some(vec![self.check(Elem::int(d.clone()))]),
            Prim::Unary(op) => {
                let (x, _) = self.known(0)?;
                Some(x.iter().map(|e| self.check(self.unary(*op, e.as_ref()?)?)).collect())
            }
            Prim::Binary(op) => self.zip(|a, b| self.binary(*op, a, b)),
            Prim::Cmp(op) => self.zip(|a, b| self.compare(*op, a?, b?)),
            Prim::Select => {
                let unknown = vec![None; n];
                let get = |i: usize| self.known(i).map_or(&unknown, |k| k.0);
                let (c, a, b) = (get(0), get(1), get(2));
                let one = |i: usize| match c[i].as_ref().and_then(|c| c.num.as_const()) {
                    Some(0) => b[i].clone(),
                    Some(_) => a[i].clone(),
                    None => a[i].clone().filter(|x| b[i].as_ref() == Some(x)),
                };
                Some((0..n).map(one).collect())
            }
            Prim::Convert { to, .. } => {
                let (x, _) = self.known(0)?;
                let from = self.operands[0].ty.dtype;
                Some(x.iter().map(|e| self.check(self.convert(from, *to, e.as_ref()?)?)).collect())
            }
            Prim::Reshape { .. } => Some(self.known(0)?.0.clone()),
            Prim::Transpose { perm } => self.pull(|index| {
                let mut from = vec![0; perm.len()];
                perm.iter().zip(index).for_each(|(&p, &i)| from[p] = i as i64);
                Some(from)
            }),
            Prim::Broadcast { dims, .. } => {
                let (_, from) = self.known(0)?;
                self.pull(|index| {
                    let at = |(&d, &n): (&usize, &usize)| if n == 1 { 0 } else { index[d] as i64 };
                    Some(dims.iter().zip(&from).map(at).collect())
                })
            }
            Prim::Slice { start, step, .. } => {
                let start: Vec<i64> = start.iter().map(Dim::as_const).collect::<Option<_>>()?;
                self.pull(|index| {
                    let at = |((s, t), i): ((&i64, &i64), &usize)| s + t * *i as i64;
                    Some(start.iter().zip(step).zip(index).map(at).collect())
                })
            }
            Prim::Pad { lo, interior, mode: PadMode::Constant, .. } => {
                let (x, from) = self.known(0)?;
                let fill = self.known(1).and_then(|k| k.0.first().cloned().flatten());
                let lo: Vec<i64> = lo.iter().map(Dim::as_const).collect::<Option<_>>()?;
                Some(self.map(|index| {
                    let mut at = 0;
                    for (d, &i) in index.iter().enumerate() {
                        let (p, step) = (i as i64 - lo[d], interior[d].saturating_add(1));
                        if p < 0 || p % step != 0 || p / step >= from[d] as i64 {
                            return fill.clone();
                        }
                        at = at * from[d] + (p / step) as usize;
                    }
                    x[at].clone()
                }))
            }
            Prim::Concat { axis } => Some(self.map(|index| {
                let mut index = index.to_vec();
                for (i, o) in self.operands.iter().enumerate() {
                    let extent = o.ty.shape[*axis].as_const()? as usize;
                    if index[*axis] < extent {
                        let (x, from) = self.known(i)?;
                        return x[offset(&index, &from)?].clone();
                    }
                    index[*axis] -= extent;
                }
                None
            })),
            Prim::UpdateSlice { start } => {
                let start: Vec<i64> = start.iter().map(Dim::as_const).collect::<Option<_>>()?;
                let update = small_shape(self.operands[1].ty)?;
                Some(self.map(|index| {
                    let local: Vec<i64> = index.iter().zip(&start).map(|(&i, s)| i as i64 - s).collect();
                    if local.iter().zip(&update).all(|(&i, &n)| (0..n as i64).contains(&i)) {
                        let local: Vec<usize> = local.iter().map(|&i| i as usize).collect();
                        return self.known(1)?.0[offset(&local, &update)?].clone();
                    }
                    self.known(0)?.0[offset(index, &self.shape)?].clone()
                }))
            }
            Prim::Gather { axis } => {
                let (x, from) = self.known(0)?;
                let (at, at_shape) = self.known(1)?;
                let k = at_shape.len();
                Some(self.map(|index| {
                    let which = at[offset(&index[*axis..axis + k], &at_shape)?].as_ref()?;
                    let which = usize::try_from(which.num.as_const()?).ok()?;
                    let full = [&index[..*axis], &[which], &index[axis + k..]].concat();
                    x[offset(&full, &from)?].clone()
                }))
            }
            Prim::Scatter { combine: Combine::Set } => {
                let mut out = self.known(0)?.0.clone();
                let (at, _) = self.known(1)?;
                let (update, _) = self.known(2)?;
                let inner: usize = self.shape[1..].iter().product();
                for (i, at) in at.iter().enumerate() {
                    let at = usize::try_from(at.as_ref()?.num.as_const()?).ok()?;
                    let to = out.get_mut(at * inner..(at + 1) * inner)?;
                    to.clone_from_slice(&update[i * inner..(i + 1) * inner]);
                }
                Some(out)
            }
            Prim::Reduce { monoid, axes } => {
                let (x, from) = self.known(0)?;
                let identity = Elem::scalar(self.result.dtype, monoid.identity(self.result.dtype));
                // an extreme of nothing has no small value; a fold starts with its first element
                let mut out: Vec<Option<Option<Elem>>> = vec![None; n];
                for (i, e) in x.iter().enumerate() {
                    let index = unoffset(i, &from);
                    let kept: Vec<usize> =
                        (0..from.len()).filter(|d| !axes.contains(d)).map(|d| index[d]).collect();
                    let slot = &mut out[offset(&kept, &self.shape)?];
                    *slot = Some(match slot.take() {
                        None => e.clone(),
                        Some(acc) => self.fold(*monoid, acc.as_ref(), e.as_ref()),
                    });
                }
                Some(out.into_iter().map(|e| e.unwrap_or_else(|| identity.clone())).collect())
            }
            Prim::Cumulative { monoid, axis, exclusive, reverse } => {
                let (x, from) = self.known(0)?;
                let identity = Elem::scalar(self.result.dtype, monoid.identity(self.result.dtype));
                Some(self.map(|index| {
                    let (i, len) = (index[*axis], from[*axis]);
                    let skip = usize::from(*exclusive);
                    let range = if *reverse { i + skip..len } else { 0..(i + 1 - skip) };
                    let mut index = index.to_vec();
                    let mut acc: Option<Option<Elem>> = None;
                    for k in range {
                        index[*axis] = k;
                        let e = x[offset(&index, &from)?].as_ref();
                        acc = Some(match acc {
                            None => e.cloned(),
                            Some(acc) => self.fold(*monoid, acc.as_ref(), e),
                        });
                    }
                    acc.unwrap_or_else(|| identity.clone())
                }))
            }
            _ => None,
        }
    }

    /// Every element of the result by its index.
    fn map(&self, f: impl Fn(&[usize]) -> Option<Elem>) -> Elems {
        (0..self.shape.iter().product()).map(|i| f(&unoffset(i, &self.shape))).collect()
    }
    /// Every element of the result is one of operand 0.
    fn pull(&self, f: impl Fn(&[usize]) -> Option<Vec<i64>>) -> Option<Elems> {
        let (x, from) = self.known(0)?;
        Some(self.map(|index| {
            let at: Vec<usize> =
                f(index)?.into_iter().map(|i| usize::try_from(i).ok()).collect::<Option<_>>()?;
            x[offset(&at, &from)?].clone()
        }))
    }
    fn zip(&self, f: impl Fn(Option<&Elem>, Option<&Elem>) -> Option<Elem>) -> Option<Elems> {
        let n: usize = self.shape.iter().product();
        let unknown = vec![None; n];
        let (a, b) = (self.operands[0].known, self.operands[1].known);
        if a.is_none() && b.is_none() {
            return None;
        }
        let (a, b) = (a.unwrap_or(&unknown), b.unwrap_or(&unknown));
        Some(a.iter().zip(b).map(|(x, y)| f(x.as_ref(), y.as_ref())).collect())
    }

    /// The element, if the result type holds it exactly.
    fn check(&self, e: Elem) -> Option<Elem> {
        fits(&e, self.result.dtype, self.syms).then_some(e)
    }

    fn fold(&self, m: Monoid, a: Option<&Elem>, b: Option<&Elem>) -> Option<Elem> {
        if self.result.dtype == DType::Bool {
            let op = if m == Monoid::Max { BinaryOp::Or } else { BinaryOp::And };
            return self.binary(op, a, b);
        }
        self.binary(m.op(), a, b)
    }

    fn unary(&self, op: UnaryOp, x: &Elem) -> Option<Elem> {
        let den = Dim::from(x.den);
        let floor = |x: &Elem| Elem::int(x.num.floor_div(&den, self.syms));
        Some(match op {
            UnaryOp::Neg => Elem { num: -x.num.clone(), den: x.den },
            UnaryOp::Abs => Elem { num: x.num.max_with(&-x.num.clone(), self.syms), den: x.den },
            UnaryOp::Not if self.result.dtype == DType::Bool => Elem::int(Dim::from(1) - &x.num),
            UnaryOp::Floor => floor(x),
            UnaryOp::Ceil => Elem::int(x.num.ceil_div(&den, self.syms)),
            UnaryOp::Trunc if x.num.bounds(self.syms).0 >= 0 => floor(x),
            UnaryOp::RoundEven if x.den == 1 => x.clone(),
            UnaryOp::RoundEven => Elem::float(x.as_f64()?.round_ties_even())?,
            UnaryOp::Sqrt => Elem::float(x.as_f64()?.sqrt()).filter(|r| r.den == 1)?,
            _ => return None,
        })
    }

    fn binary(&self, op: BinaryOp, a: Option<&Elem>, b: Option<&Elem>) -> Option<Elem> {
        let constant = |x: Option<&Elem>| x.filter(|x| x.den == 1).and_then(|x| x.num.as_const());
        let float = self.result.dtype.is_float();
        // one side may decide alone
        match (op, constant(a), constant(b)) {
            (BinaryOp::And, Some(0), _) | (BinaryOp::And, _, Some(0)) => return Some(Elem::int(0)),
            (BinaryOp::Mul, Some(0), _) | (BinaryOp::Mul, _, Some(0)) if !float => {
                return Some(Elem::int(0));
            }
            (BinaryOp::Or, Some(1), _) | (BinaryOp::Or, _, Some(1)) if self.result.dtype == DType::Bool => {
                return Some(Elem::int(1));
            }
            _ => {}
        }
        let (a, b) = (a?, b?);
        // numbers that only move (see `Elem::scalar`) are not exact as [`Dim`]s
        let far = |x: &Elem| x.num.as_const().is_some_and(|n| n.abs() >= BIG);
        if (far(a) || far(b)) && !matches!(op, BinaryOp::Min | BinaryOp::Max) {
            return None;
        }
        let den = a.den.max(b.den);
        let scaled = |x: &Elem| {
            let by = den / x.den;
            (by == 1 || small(&x.num, BIG / by, self.syms)).then(|| &x.num * &Dim::from(by))
        };
        let both = || Some((scaled(a)?, scaled(b)?));
        let value = match op {
            BinaryOp::Add => both().map(|(x, y)| Elem { num: x + y, den })?,
            BinaryOp::Sub => both().map(|(x, y)| Elem { num: x - y, den })?,
            BinaryOp::Mul => Elem { num: &a.num * &b.num, den: a.den.checked_mul(b.den)? },
            BinaryOp::Min => both().map(|(x, y)| Elem { num: x.min_with(&y, self.syms), den })?,
            BinaryOp::Max => both().map(|(x, y)| Elem { num: x.max_with(&y, self.syms), den })?,
            BinaryOp::Div if float => match (a.as_f64(), b.as_f64()) {
                (Some(x), Some(y)) => Elem::float(round(x / y, self.result.dtype))?,
                // by a power of two: exact
                _ => {
                    let by = b.num.as_const().filter(|n| *n > 0 && n & (n - 1) == 0 && b.den == 1)?;
                    Elem { num: a.num.clone(), den: a.den.checked_mul(by)? }
                }
            },
            BinaryOp::Div | BinaryOp::Rem => {
                let (x, y) = (&a.num, &b.num);
                if let (Some(x), Some(y)) = (x.as_const(), y.as_const()) {
                    let (q, r) = if y == 0 { (0, 0) } else { (x.checked_div(y)?, x.checked_rem(y)?) };
                    return self.check(Elem::int(if op == BinaryOp::Div { q } else { r }));
                }
                // truncation is floor where nothing is negative
                if float || x.bounds(self.syms).0 < 0 || y.bounds(self.syms).0 < 1 {
                    return None;
                }
                Elem::int(if op == BinaryOp::Div {
                    x.floor_div(y, self.syms)
                } else {
                    x.modulo(y, self.syms)
                })
            }
            BinaryOp::Pow if float => Elem::float(round(a.as_f64()?.powf(b.as_f64()?), self.result.dtype))?,
            BinaryOp::Pow => {
                let (x, y) = (a.num.as_const()?, u32::try_from(b.num.as_const()?).ok()?);
                Elem::int(x.checked_pow(y).filter(|r| r.abs() < BIG)?)
            }
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => {
                let (x, y) = (a.num.as_const()?, b.num.as_const()?);
                Elem::int(match op {
                    BinaryOp::And => x & y,
                    BinaryOp::Or => x | y,
                    _ => x ^ y,
                })
            }
            BinaryOp::Atan2 | BinaryOp::Shl | BinaryOp::Shr => return None,
        };
        self.check(value)
    }

    fn compare(&self, op: CmpOp, a: &Elem, b: &Elem) -> Option<Elem> {
        let (den_a, den_b) = (Dim::from(a.den), Dim::from(b.den));
        let (x, y) = (&a.num * &den_b, &b.num * &den_a);
        let (lo, hi) = (&y - &x).bounds(self.syms);
        let yes = |c: bool| Some(Elem::int(i64::from(c)));
        match op {
            CmpOp::Eq | CmpOp::Ne => {
                let equal = if (lo, hi) == (0, 0) {
                    true
                } else if lo > 0 || hi < 0 {
                    false
                } else {
                    return None;
                };
                yes(equal == (op == CmpOp::Eq))
            }
            CmpOp::Lt if lo > 0 => yes(true),
            CmpOp::Lt if hi <= 0 => yes(false),
            CmpOp::Le if lo >= 0 => yes(true),
            CmpOp::Le if hi < 0 => yes(false),
            CmpOp::Gt if hi < 0 => yes(true),
            CmpOp::Gt if lo >= 0 => yes(false),
            CmpOp::Ge if hi <= 0 => yes(true),
            CmpOp::Ge if lo > 0 => yes(false),
            _ => None,
        }
    }

    fn convert(&self, from: DType, to: DType, x: &Elem) -> Option<Elem> {
        if to == DType::Bool {
            let (lo, hi) = x.num.bounds(self.syms);
            return match (lo, hi) {
                (0, 0) => Some(Elem::int(0)),
                _ if lo > 0 || hi < 0 => Some(Elem::int(1)),
                (0, 1) if x.den == 1 => Some(x.clone()),
                _ => None,
            };
        }
        if from.is_float() && to.is_float() {
            return match x.as_f64() {
                Some(v) => Elem::float(round(v, to)),
                None => Some(x.clone()),
            };
        }
        if from.is_float() && x.den != 1 {
            return match x.as_f64() {
                Some(v) => Some(Elem::int(v.trunc() as i64)),
                None if x.num.bounds(self.syms).0 >= 0 => {
                    Some(Elem::int(x.num.floor_div(&Dim::from(x.den), self.syms)))
                }
                None => None,
            };
        }
        if to.is_float()
            && let Some(v) = x.as_f64()
        {
            return Elem::float(round(v, to));
        }
        Some(x.clone())
    }
}

/// `x` rounded to the float type.
fn round(x: f64, to: DType) -> f64 {
    if to == DType::F32 { x as f32 as f64 } else { x }
}

fn small(d: &Dim, limit: i64, syms: &Symbols) -> bool {
    let (lo, hi) = d.bounds(syms);
    lo > -limit && hi < limit
}

/// The type holds every value of the expression in this exact form, and that is not too large to work with.
///
/// Two concessions, without which size arithmetic of models could not be followed at all: an expression
/// of type i64 or i32 is taken not to wrap unless it must (a size that did would be a broken model and
/// beyond [`Dim::LIMIT`]), and sizes below 2^20 with small factors are exact in any float type.
fn fits(e: &Elem, dtype: DType, syms: &Symbols) -> bool {
    if !e.num.is_small() {
        return false;
    }
    let (lo, hi) = e.num.bounds(syms);
    let modest = |limit: i64| e.num.terms().iter().all(|t| t.1.abs() <= limit);
    let constant = e.num.as_const().is_some();
    match dtype.int_range() {
        Some(_) if e.den != 1 => false,
        Some((min, max)) if !constant && matches!(dtype, DType::I32 | DType::I64) => {
            modest(BIG) && hi as i128 >= min && lo as i128 <= max
        }
        Some((min, max)) => lo as i128 >= min && hi as i128 <= max && lo > -BIG && hi < BIG,
        None if constant => e.as_f64().is_some_and(|x| round(x, dtype) == x) && lo.abs() < 1 << 53,
        None => {
            let mantissa = if dtype == DType::F32 { 1 << 24 } else { 1 << 53 };
            lo >= -mantissa && hi <= mantissa || modest(16) && e.den <= 1 << 16
        }
    }
}

fn offset(index: &[usize], shape: &[usize]) -> Option<usize> {
    index.iter().zip(shape).try_fold(0, |at, (&i, &n)| (i < n).then(|| at * n + i))
}

fn unoffset(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &n) in index.iter_mut().zip(shape).rev() {
        *i = at % n.max(1);
        at /= n.max(1);
    }
    index
}
