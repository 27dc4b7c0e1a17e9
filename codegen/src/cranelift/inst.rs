//! Instructions: arithmetic, comparisons, conversions, lanes. What the machine cannot do on a whole register
//! is done lane by lane.

use super::func::Emitter;
use super::vals::{Parts, part_type, scalar_type, shape};
use crate::Fault;
use crate::error::Emit;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value, types};
use ir::DType;
use ir::loops::{Inst, Ty, Val};
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use smallvec::SmallVec;

impl Emitter<'_> {
    /// The registers of an instruction that defines `val`.
    pub fn inst(&mut self, val: Val, inst: &Inst) -> Emit<Parts> {
        let ty = self.ty(val)?;
        match inst {
            Inst::Const(x) => self.constant(ty, *x),
            Inst::Sym(i) => Ok(SmallVec::from_elem(self.sym_value(*i)?, 1)),
            Inst::Iota { along_cols: true } if ty.dtype.is_int() => self.iota(ty),
            Inst::Splat(v) => {
                let v = self.scalar(*v)?;
                self.splat(ty, v)
            }
            Inst::Unary(op, v) => self.unary(*op, ty, *v),
            Inst::Binary(op, a, b) => self.binary(*op, ty, *a, *b),
            Inst::Fma(a, b, c) if ty.dtype.is_float() => {
                let (a, b, c) = (self.val(*a)?, self.val(*b)?, self.val(*c)?);
                let parts = a.iter().zip(&b).zip(&c);
                Ok(parts.map(|((a, b), c)| self.b.ins().fma(*a, *b, *c)).collect())
            }
            Inst::Cmp(op, a, b) => self.compare(*op, *a, *b),
            Inst::Select(mask, a, b) => self.select(ty, *mask, *a, *b),
            Inst::Convert(ConvertMode::Plain, v) => self.convert(ty, *v),
            Inst::Bitcast(v) => {
                let (part, _) = shape(ty)?;
                let v = self.val(*v)?;
                Ok(v.iter().map(|v| self.bits_as(part, *v)).collect())
            }
            Inst::Load(addr) => self.load(ty, addr),
            Inst::Gather { mem, index, mask } => self.gather(ty, *mem, *index, *mask),
            Inst::ReduceCols(monoid, v) => self.reduce_lanes(*monoid, *v),
            Inst::Extract(v, 0, lane) => {
                let (from, v) = (self.ty(*v)?, self.val(*v)?);
                Ok(SmallVec::from_elem(self.lane(from, &v, *lane)?, 1))
            }
            Inst::Insert { vec, scalar, lane } if ty.dtype != DType::Bool => {
                let (mut vec, scalar) = (self.val(*vec)?, self.scalar(*scalar)?);
                self.set_lane(ty.dtype, &mut vec, *lane, scalar)?;
                Ok(vec)
            }
            Inst::Shuffle(a, b, pick) => self.shuffle(ty, *a, *b, pick),
            Inst::TileOp { name, .. } => Err(Fault::unsupported(format!("tile instruction `{name}`"))),
            other => Err(Fault::invalid(format!("{other:?} in machine form"))),
        }
    }

    fn iota(&mut self, ty: Ty) -> Emit<Parts> {
        let (part, n) = shape(ty)?;
        let per = part.lane_count();
        let parts = (0..n as u32).map(|p| {
            let lanes = per * p..per * (p + 1);
            let bytes = match ty.dtype.bytes() {
                8 => lanes.flat_map(|l| u64::from(l).to_le_bytes()).collect(),
                _ => lanes.flat_map(u32::to_le_bytes).collect(),
            };
            self.vector_constant(part, bytes)
        });
        Ok(parts.collect())
    }

    fn unary(&mut self, op: UnaryOp, ty: Ty, v: Val) -> Emit<Parts> {
        let v = self.val(v)?;
        let float = ty.dtype.is_float();
        let bool_scalar = ty.is_scalar() && ty.dtype == DType::Bool;
        let mut parts = Parts::new();
        for v in v {
            let ins = self.b.ins();
            parts.push(match op {
                UnaryOp::Not if bool_scalar => ins.bxor_imm_u(v, 1),
                UnaryOp::Not if !float => ins.bnot(v),
                UnaryOp::Neg if float => ins.fneg(v),
                UnaryOp::Abs if float => ins.fabs(v),
                UnaryOp::Floor if float => ins.floor(v),
                UnaryOp::Ceil if float => ins.ceil(v),
                UnaryOp::Trunc if float => ins.trunc(v),
                UnaryOp::RoundEven if float => ins.nearest(v),
                UnaryOp::Sqrt if float => ins.sqrt(v),
                _ => return Err(Fault::invalid(format!("{} of {}", op.name(), ty.dtype))),
            });
        }
        Ok(parts)
    }

    fn binary(&mut self, op: BinaryOp, ty: Ty, a: Val, b: Val) -> Emit<Parts> {
        use BinaryOp as B;
        let (x, y) = (self.val(a)?, self.val(b)?);
        match op {
            B::Shl | B::Shr if ty.dtype.is_int() => self.shift(op, ty, &x, b),
            B::Div | B::Rem if ty.dtype.is_int() => {
                // there is no vector division of integers
                let known = self.known_int(b);
                self.by_lane(ty, &[(ty, &x), (ty, &y)], &mut |e, v| e.divide(op, ty.dtype, v[0], v[1], known))
            }
            B::Min | B::Max if ty.dtype.is_float() => {
                let (a_is_number, b_is_number) = (self.is_number(a), self.is_number(b));
                let pairs = x.into_iter().zip(y);
                let best = pairs.map(|(x, y)| match a_is_number {
                    true => self.float_extremum(op == B::Max, y, x, true),
                    false => self.float_extremum(op == B::Max, x, y, b_is_number),
                });
                Ok(best.collect())
            }
            _ => x.into_iter().zip(y).map(|(x, y)| self.arithmetic(op, ty.dtype, x, y)).collect(),
        }
    }

    /// Operations that scalars and vectors have alike, on one register. Scalar bools are 0 and 1, so that
    /// the bitwise operations are the logical ones.
    fn arithmetic(&mut self, op: BinaryOp, dtype: DType, a: Value, b: Value) -> Emit<Value> {
        use BinaryOp as B;
        let (float, signed) = (dtype.is_float(), dtype.is_signed_int());
        let ins = self.b.ins();
        Ok(match op {
            B::Add if float => ins.fadd(a, b),
            B::Sub if float => ins.fsub(a, b),
            B::Mul if float => ins.fmul(a, b),
            B::Div if float => ins.fdiv(a, b),
            B::Min | B::Max if float => self.float_extremum(op == B::Max, a, b, false),
            _ if float => return Err(Fault::invalid(format!("{} of {dtype}", op.name()))),
            B::And => ins.band(a, b),
            B::Or => ins.bor(a, b),
            B::Xor => ins.bxor(a, b),
            _ if dtype == DType::Bool => return Err(Fault::invalid(format!("{} of bool", op.name()))),
            B::Add => ins.iadd(a, b),
            B::Sub => ins.isub(a, b),
            B::Mul => ins.imul(a, b),
            B::Min if signed => ins.smin(a, b),
            B::Min => ins.umin(a, b),
            B::Max if signed => ins.smax(a, b),
            B::Max => ins.umax(a, b),
            B::Shl => ins.ishl(a, b),
            B::Shr if signed => ins.sshr(a, b),
            B::Shr => ins.ushr(a, b),
            _ => return Err(Fault::invalid(format!("{} of {dtype}", op.name()))),
        })
    }

    /// A float constant that is not NaN.
    fn is_number(&self, v: Val) -> bool {
        self.known(v).is_some_and(|x| !x.as_f64().is_nan())
    }

    /// Minimum or maximum of one register that propagates NaN. `max(x, c) = c > x ? c : x` answers x where x
    /// is NaN, and is one instruction; the other operand needs care only where it may be NaN.
    fn float_extremum(&mut self, max: bool, x: Value, other: Value, other_is_number: bool) -> Value {
        let wins = if max { FloatCC::GreaterThan } else { FloatCC::LessThan };
        let other_wins = self.fcmp(wins, other, x);
        let best = self.choose(other_wins, other, x);
        if other_is_number {
            return best;
        }
        let other_is_nan = self.fcmp(FloatCC::Unordered, other, other);
        self.choose(other_is_nan, other, best)
    }

    /// Selects by the result of a comparison of registers of the same type.
    fn choose(&mut self, mask: Value, a: Value, b: Value) -> Value {
        let ty = self.b.func.dfg.value_type(a);
        if !ty.is_vector() {
            return self.b.ins().select(mask, a, b);
        }
        let mask = self.bits_as(ty, mask);
        self.b.ins().bitselect(mask, a, b)
    }

    /// Total division of scalars: by zero gives 0, `MIN / -1` wraps. `known` is the divisor, if it is constant.
    fn divide(&mut self, op: BinaryOp, dtype: DType, a: Value, b: Value, known: Option<i64>) -> Emit<Value> {
        let (rem, signed) = (op == BinaryOp::Rem, dtype.is_signed_int());
        let plain = |e: &mut Self, b: Value| match (rem, signed) {
            (false, true) => e.b.ins().sdiv(a, b),
            (false, false) => e.b.ins().udiv(a, b),
            (true, true) => e.b.ins().srem(a, b),
            (true, false) => e.b.ins().urem(a, b),
        };
        if known.is_some_and(|c| c != 0 && c != -1) {
            return Ok(plain(self, b));
        }
        let ty = scalar_type(dtype)?;
        let (zero, one) = (self.b.ins().iconst(ty, 0), self.b.ins().iconst(ty, 1));
        let by_zero = self.icmp(IntCC::Equal, b, zero);
        let mut special = by_zero;
        let mut by_minus = None;
        if signed {
            // x / -1 = -x and x rem -1 = 0, also for MIN, where the instruction would trap
            let minus = self.b.ins().icmp_imm_s(IntCC::Equal, b, -1);
            special = self.b.ins().bor(by_zero, minus);
            by_minus = Some(minus);
        }
        let divisor = self.b.ins().select(special, one, b);
        let mut result = plain(self, divisor);
        if rem {
            // the remainder by 1 is the 0 that is wanted
            return Ok(result);
        }
        if let Some(by_minus) = by_minus {
            let minus_a = self.b.ins().ineg(a);
            result = self.b.ins().select(by_minus, minus_a, result);
        }
        Ok(self.b.ins().select(by_zero, zero, result))
    }

    /// Shifts. Left: a count that is negative or at least the width gives 0; right: the count is less than
    /// the width. Vectors are shifted by one count for all lanes, or lane by lane.
    fn shift(&mut self, op: BinaryOp, ty: Ty, x: &Parts, count: Val) -> Emit<Parts> {
        let width = 8 * ty.dtype.bytes() as i64;
        let known = self.known_int(count);
        let splat = self.splats.get(&count).copied();
        let one_count = match (known, splat) {
            (Some(n), _) if (0..width).contains(&n) => Some((self.b.ins().iconst(types::I32, n), true)),
            (_, Some(scalar)) => Some((self.scalar(scalar)?, op == BinaryOp::Shr)),
            _ if ty.is_scalar() => Some((self.scalar(count)?, op == BinaryOp::Shr)),
            _ => None,
        };
        let Some((n, in_range)) = one_count else {
            let counts = self.val(count)?;
            return self.by_lane(ty, &[(ty, x), (ty, &counts)], &mut |e, v| {
                let shifted = e.arithmetic(op, ty.dtype, v[0], v[1])?;
                Ok(if op == BinaryOp::Shl { e.unless_beyond(width, v[1], shifted) } else { shifted })
            });
        };
        let mut parts = Parts::new();
        for v in x {
            let shifted = self.arithmetic(op, ty.dtype, *v, n)?;
            parts.push(if in_range { shifted } else { self.unless_beyond(width, n, shifted) });
        }
        Ok(parts)
    }

    /// 0 where a scalar count is not below the width.
    fn unless_beyond(&mut self, width: i64, count: Value, shifted: Value) -> Value {
        let fits = self.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, count, width);
        let ty = self.b.func.dfg.value_type(shifted);
        let zero = match ty.is_vector() {
            true => self.vector_constant(ty, vec![0; 16]),
            false => self.b.ins().iconst(ty, 0),
        };
        self.b.ins().select(fits, shifted, zero)
    }

    /// Folds the lanes of a vector: registers upon each other, then lane by lane. Of bools, the maximum is
    /// "any", the minimum "all".
    fn reduce_lanes(&mut self, monoid: Monoid, v: Val) -> Emit<Parts> {
        let (ty, v) = (self.ty(v)?, self.val(v)?);
        if ty.is_scalar() {
            return Ok(v);
        }
        let op = match (monoid, ty.dtype) {
            (Monoid::Max | Monoid::Sum, DType::Bool) => BinaryOp::Or,
            (Monoid::Min | Monoid::Prod, DType::Bool) => BinaryOp::And,
            (monoid, _) => monoid.op(),
        };
        let mut all = v[0];
        for v in &v[1..] {
            all = self.arithmetic(op, ty.dtype, all, *v)?;
        }
        let one = SmallVec::from_elem(all, 1);
        let per = part_type(ty.dtype)?.lane_count();
        let mut result = self.lane(ty, &one, 0)?;
        for lane in 1..per {
            let element = self.lane(ty, &one, lane)?;
            result = self.arithmetic(op, ty.dtype, result, element)?;
        }
        Ok(SmallVec::from_elem(result, 1))
    }

    fn compare(&mut self, op: CmpOp, a: Val, b: Val) -> Emit<Parts> {
        let ty = self.ty(a)?;
        let (a, b) = (self.val(a)?, self.val(b)?);
        let signed = ty.dtype.is_signed_int();
        let mut parts = Parts::new();
        for (a, b) in a.into_iter().zip(b) {
            parts.push(if ty.dtype.is_float() {
                let cc = match op {
                    CmpOp::Eq => FloatCC::Equal,
                    CmpOp::Ne => FloatCC::NotEqual,
                    CmpOp::Lt => FloatCC::LessThan,
                    CmpOp::Le => FloatCC::LessThanOrEqual,
                    CmpOp::Gt => FloatCC::GreaterThan,
                    CmpOp::Ge => FloatCC::GreaterThanOrEqual,
                };
                self.fcmp(cc, a, b)
            } else {
                let cc = match (op, signed) {
                    (CmpOp::Eq, _) => IntCC::Equal,
                    (CmpOp::Ne, _) => IntCC::NotEqual,
                    (CmpOp::Lt, true) => IntCC::SignedLessThan,
                    (CmpOp::Le, true) => IntCC::SignedLessThanOrEqual,
                    (CmpOp::Gt, true) => IntCC::SignedGreaterThan,
                    (CmpOp::Ge, true) => IntCC::SignedGreaterThanOrEqual,
                    (CmpOp::Lt, false) => IntCC::UnsignedLessThan,
                    (CmpOp::Le, false) => IntCC::UnsignedLessThanOrEqual,
                    (CmpOp::Gt, false) => IntCC::UnsignedGreaterThan,
                    (CmpOp::Ge, false) => IntCC::UnsignedGreaterThanOrEqual,
                };
                self.icmp(cc, a, b)
            });
        }
        if ty.is_scalar() || ty.dtype.bytes() < 8 { Ok(parts) } else { Ok(self.narrow_mask(&parts)) }
    }

    fn select(&mut self, ty: Ty, mask: Val, a: Val, b: Val) -> Emit<Parts> {
        let (m, a, b) = (self.val(mask)?, self.val(a)?, self.val(b)?);
        if ty.is_scalar() {
            return Ok(SmallVec::from_elem(self.b.ins().select(m[0], a[0], b[0]), 1));
        }
        let part = part_type(ty.dtype)?;
        let m = self.mask_for(ty.dtype, &m);
        let mut parts = Parts::new();
        for ((m, a), b) in m.into_iter().zip(a).zip(b) {
            let m = self.bits_as(part, m);
            parts.push(self.b.ins().bitselect(m, a, b));
        }
        Ok(parts)
    }

    fn shuffle(&mut self, ty: Ty, a: Val, b: Val, pick: &[u32]) -> Emit<Parts> {
        let from = self.ty(a)?;
        let (x, y) = (self.val(a)?, self.val(b)?);
        if self.ty(b)? != from || from.is_scalar() || pick.iter().any(|l| *l >= 2 * from.cols) {
            return Err(Fault::invalid("a shuffle of lanes that do not exist"));
        }
        let (part, _) = shape(ty)?;
        if part.lane_count() == 4 && from.cols == 4 && pick.len() == 4 {
            let v = self.pick_words(x[0], y[0], [pick[0], pick[1], pick[2], pick[3]]);
            return Ok(SmallVec::from_elem(self.bits_as(part, v), 1));
        }
        let mut elements = Vec::with_capacity(pick.len());
        for lane in pick {
            let source = if *lane < from.cols { &x } else { &y };
            elements.push(self.lane(from, source, lane % from.cols)?);
        }
        self.vector_of(ty, &elements)
    }

    /// Conversion between register types; floats to integers saturate, and NaN gives 0.
    fn convert(&mut self, ty: Ty, v: Val) -> Emit<Parts> {
        let from = self.ty(v)?;
        let v = self.val(v)?;
        let (f, t) = (from.dtype, ty.dtype);
        if f == DType::Bool || t == DType::Bool {
            return Err(Fault::invalid(format!("convert {f} to {t}")));
        }
        if f.is_int() && t.is_int() && f.bytes() == t.bytes() || f == t {
            return Ok(v);
        }
        if ty.is_scalar() {
            return Ok(SmallVec::from_elem(self.convert_scalar(f, t, v[0])?, 1));
        }
        let mut parts = Parts::new();
        match (f, t) {
            (DType::F32, DType::F64) => {
                for v in v {
                    parts.push(self.b.ins().fvpromote_low(v));
                    let upper = self.pick_words(v, v, [2, 3, 2, 3]);
                    let upper = self.bits_as(types::F32X4, upper);
                    parts.push(self.b.ins().fvpromote_low(upper));
                }
            }
            (DType::F64, DType::F32) => {
                for pair in v.chunks(2) {
                    let (lower, upper) = (self.b.ins().fvdemote(pair[0]), self.b.ins().fvdemote(pair[1]));
                    let both = self.pick_words(lower, upper, [0, 1, 4, 5]);
                    parts.push(self.bits_as(types::F32X4, both));
                }
            }
            (DType::F32, DType::I32) => {
                parts.extend(v.iter().map(|v| self.b.ins().fcvt_to_sint_sat(types::I32X4, *v)));
            }
            (DType::F32, DType::U32) => {
                parts.extend(v.iter().map(|v| self.b.ins().fcvt_to_uint_sat(types::I32X4, *v)));
            }
            (DType::I32, DType::F32) => {
                parts.extend(v.iter().map(|v| self.b.ins().fcvt_from_sint(types::F32X4, *v)));
            }
            (DType::U32, DType::F32) => {
                parts.extend(v.iter().map(|v| self.b.ins().fcvt_from_uint(types::F32X4, *v)));
            }
            (DType::I32, DType::F64) => {
                for v in self.widen(true, &v) {
                    parts.push(self.b.ins().fcvt_from_sint(types::F64X2, v));
                }
            }
            (DType::U32, DType::F64) => {
                // as signed 64-bit integers the values are the same
                for v in self.widen(false, &v) {
                    parts.push(self.b.ins().fcvt_from_sint(types::F64X2, v));
                }
            }
            (DType::I64, DType::F64) => {
                parts.extend(v.iter().map(|v| self.b.ins().fcvt_from_sint(types::F64X2, *v)));
            }
            (f, t) if f.is_int() && t.is_int() && t.bytes() == 8 => {
                return Ok(self.widen(f.is_signed_int(), &v));
            }
            (f, t) if f.is_int() && t.is_int() => return Ok(self.even_words(&v)),
            (f, t) => {
                return self.by_lane(ty, &[(from, &v)], &mut |e, v| e.convert_scalar(f, t, v[0]));
            }
        }
        Ok(parts)
    }

    /// 32-bit integers as 64-bit ones.
    fn widen(&mut self, signed: bool, v: &Parts) -> Parts {
        let mut wide = Parts::new();
        for v in v {
            let (lower, upper) = match signed {
                true => (self.b.ins().swiden_low(*v), self.b.ins().swiden_high(*v)),
                false => (self.b.ins().uwiden_low(*v), self.b.ins().uwiden_high(*v)),
            };
            wide.extend([lower, upper]);
        }
        wide
    }

    fn convert_scalar(&mut self, f: DType, t: DType, v: Value) -> Emit<Value> {
        let to = scalar_type(t)?;
        let ins = self.b.ins();
        Ok(match (f.is_float(), t.is_float()) {
            (true, true) if t == DType::F64 => ins.fpromote(to, v),
            (true, true) => ins.fdemote(to, v),
            (true, false) if t.is_signed_int() => ins.fcvt_to_sint_sat(to, v),
            (true, false) => ins.fcvt_to_uint_sat(to, v),
            (false, true) if f.is_signed_int() => ins.fcvt_from_sint(to, v),
            (false, true) => ins.fcvt_from_uint(to, v),
            (false, false) if t.bytes() == f.bytes() => v,
            (false, false) if t.bytes() < f.bytes() => ins.ireduce(to, v),
            (false, false) if f.is_signed_int() => ins.sextend(to, v),
            (false, false) => ins.uextend(to, v),
        })
    }
}
