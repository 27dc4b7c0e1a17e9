//! Instructions: arithmetic, comparisons, conversions, exchanges between lanes.

use super::LANES;
use super::func::{Emitter, class, typed, untyped};
use super::isa::{Binary, Class, Compare, Op, Operand, Reg, Round, Type, Unary, Vote};
use crate::Fault;
use crate::error::Emit;
use ir::DType;
use ir::loops::{Inst, Ty, Val};
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};

impl Emitter<'_> {
    /// The register of an instruction that defines `val`.
    pub fn inst(&mut self, val: Val, inst: &Inst) -> Emit<Reg> {
        let ty = self.ty(val)?;
        match inst {
            Inst::Sym(i) => self.sym_value(*i),
            Inst::Iota { along_cols: true } if ty.dtype.is_int() => Ok(self.lane_number(ty)),
            // every lane has the scalar already
            Inst::Splat(v) => self.scalar(*v),
            Inst::Unary(op, v) => self.unary(*op, ty.dtype, *v),
            Inst::Binary(op, a, b) => self.arithmetic(*op, ty.dtype, *a, *b),
            Inst::Fma(a, b, c) if ty.dtype.is_float() => {
                let d = self.fresh(class(ty.dtype)?);
                let (a, b, c) = (self.operand(*a)?, self.operand(*b)?, self.operand(*c)?);
                self.push(Op::MulAdd { ty: typed(ty.dtype)?, d, a, b, c });
                Ok(d)
            }
            Inst::Cmp(op, a, b) => self.compare(*op, *a, *b),
            Inst::Select(mask, a, b) => {
                let (mask, a, b) = (self.reg(*mask)?, self.reg(*a)?, self.reg(*b)?);
                Ok(self.select(mask, a, b))
            }
            Inst::Convert(ConvertMode::Plain, v) => self.convert(ty.dtype, *v),
            Inst::Bitcast(v) => {
                let (to, v) = (class(ty.dtype)?, self.reg(*v)?);
                if to == v.class {
                    return Ok(v);
                }
                let d = self.fresh(to);
                let ty = if matches!(to, Class::B64 | Class::F64) { Type::B64 } else { Type::B32 };
                self.push(Op::Mov { ty, d, a: v.into() });
                Ok(d)
            }
            Inst::Load(addr) => self.load(ty, addr),
            Inst::Gather { mem, index, mask } => self.gather(ty, *mem, *index, *mask),
            Inst::ReduceCols(monoid, v) => self.reduce_lanes(*monoid, *v),
            Inst::Extract(v, 0, lane) => {
                let v = self.reg(*v)?;
                Ok(self.broadcast_lane(v, Operand::Int((*lane).into())))
            }
            Inst::Insert { vec, scalar, lane } if ty.dtype != DType::Bool => {
                let (vec, scalar) = (self.reg(*vec)?, self.scalar(*scalar)?);
                let own = self.setp(Compare::Eq, Type::U32, self.lane, Operand::Int((*lane).into()));
                Ok(self.select(own, scalar, vec))
            }
            Inst::Shuffle(a, b, pick) => self.shuffle(*a, *b, pick),
            Inst::TileOp { name, .. } => Err(Fault::unsupported(format!("tile instruction `{name}`"))),
            other => Err(Fault::invalid(format!("{other:?} in machine form"))),
        }
    }

    fn lane_number(&mut self, ty: Ty) -> Reg {
        if ty.dtype.bytes() == 4 {
            return self.lane;
        }
        let d = self.fresh(Class::B64);
        self.push(Op::Cvt { round: None, to: Type::U64, from: Type::U32, d, a: self.lane.into() });
        d
    }

    fn unary(&mut self, op: UnaryOp, dtype: DType, v: Val) -> Emit<Reg> {
        let a = Operand::Reg(self.reg(v)?);
        let d = self.fresh(class(dtype)?);
        let (ty, float) = (typed(dtype)?, dtype.is_float());
        let whole = |round| Op::Cvt { round: Some(round), to: ty, from: ty, d, a };
        let plain = |op| Op::Unary { op, ty, d, a };
        self.push(match op {
            UnaryOp::Not if !float => Op::Unary { op: Unary::Not, ty: untyped(d.class), d, a },
            UnaryOp::Neg if float => plain(Unary::Neg),
            UnaryOp::Abs if float => plain(Unary::Abs),
            UnaryOp::Sqrt if float => plain(Unary::Sqrt),
            UnaryOp::Floor if float => whole(Round::Rmi),
            UnaryOp::Ceil if float => whole(Round::Rpi),
            UnaryOp::Trunc if float => whole(Round::Rzi),
            UnaryOp::RoundEven if float => whole(Round::Rni),
            _ => return Err(Fault::invalid(format!("{} of {dtype}", op.name()))),
        });
        Ok(d)
    }

    fn arithmetic(&mut self, op: BinaryOp, dtype: DType, a: Val, b: Val) -> Emit<Reg> {
        let known = self.known_int(b);
        let a = self.reg(a)?;
        // predicates have no immediates
        let b = if dtype == DType::Bool { self.reg(b)?.into() } else { self.operand(b)? };
        match op {
            BinaryOp::Div | BinaryOp::Rem if dtype.is_int() => {
                if known.is_some_and(|c| c != 0 && c != -1) {
                    let op = if op == BinaryOp::Div { Binary::Div } else { Binary::Rem };
                    return Ok(self.binary(op, typed(dtype)?, a.class, a, b));
                }
                self.divide(op, dtype, a, b)
            }
            BinaryOp::Shl | BinaryOp::Shr if dtype.is_int() => self.shift(op, dtype, a, b, known),
            _ => self.combine(op, dtype, a, b),
        }
    }

    /// Operations of one instruction, or nearly.
    fn combine(&mut self, op: BinaryOp, dtype: DType, a: Reg, b: Operand) -> Emit<Reg> {
        let (float, bits) = (dtype.is_float(), dtype == DType::Bool);
        let op = match op {
            BinaryOp::And if !float => Binary::And,
            BinaryOp::Or if !float => Binary::Or,
            BinaryOp::Xor if !float => Binary::Xor,
            _ if bits => return Err(Fault::invalid(format!("{} of bool", op.name()))),
            BinaryOp::Add => Binary::Add,
            BinaryOp::Sub => Binary::Sub,
            BinaryOp::Mul => Binary::Mul,
            BinaryOp::Div if float => Binary::Div,
            BinaryOp::Min => Binary::Min,
            BinaryOp::Max => Binary::Max,
            _ => return Err(Fault::invalid(format!("{} of {dtype}", op.name()))),
        };
        let ty = match op {
            Binary::And | Binary::Or | Binary::Xor => untyped(a.class),
            _ => typed(dtype)?,
        };
        let d = self.binary(op, ty, a.class, a, b);
        if ty != Type::F64 || !matches!(op, Binary::Min | Binary::Max) {
            return Ok(d);
        }
        // NaN propagates; the f64 instruction prefers the number
        let nan = self.setp(Compare::Nan, ty, a, b);
        let sum = self.binary(Binary::Add, ty, a.class, a, b);
        Ok(self.select(nan, sum, d))
    }

    /// Total division: by zero gives 0, `MIN / -1` wraps.
    fn divide(&mut self, op: BinaryOp, dtype: DType, a: Reg, b: Operand) -> Emit<Reg> {
        let ty = typed(dtype)?;
        let zero = Operand::Int(0);
        let by_zero = self.setp(Compare::Eq, ty, b, zero);
        let mut special = by_zero;
        let mut by_minus = None;
        if dtype.is_signed_int() {
            // x / -1 = -x and x rem -1 = 0, also for MIN
            let minus = self.setp(Compare::Eq, ty, b, Operand::Int(-1));
            special = self.binary(Binary::Or, Type::Pred, Class::Pred, by_zero, minus.into());
            by_minus = Some(minus);
        }
        let divisor = self.fresh(a.class);
        self.push(Op::Selp { ty: untyped(a.class), d: divisor, a: Operand::Int(1), b, p: special });
        let plain = if op == BinaryOp::Div { Binary::Div } else { Binary::Rem };
        let mut result = self.binary(plain, ty, a.class, a, divisor.into());
        if op == BinaryOp::Rem {
            // the remainder by 1 is the 0 that is wanted
            return Ok(result);
        }
        if let Some(by_minus) = by_minus {
            let minus = self.fresh(a.class);
            self.push(Op::Unary { op: Unary::Neg, ty, d: minus, a: a.into() });
            result = self.select(by_minus, minus, result);
        }
        let d = self.fresh(a.class);
        self.push(Op::Selp { ty: untyped(a.class), d, a: zero, b: result.into(), p: by_zero });
        Ok(d)
    }

    /// Shifts. Counts that are negative or at least the width are large unsigned ones, which the
    /// instruction takes for the width.
    fn shift(&mut self, op: BinaryOp, dtype: DType, a: Reg, count: Operand, known: Option<i64>) -> Emit<Reg> {
        let width = 8 * dtype.bytes() as i64;
        let count = match (known, count) {
            (Some(n), _) => Operand::Int(if (0..width).contains(&n) { n } else { width }),
            (None, Operand::Reg(n)) if n.class == Class::B64 => {
                let n = self.binary(Binary::Min, Type::U64, Class::B64, n, Operand::Int(width));
                let d = self.fresh(Class::B32);
                self.push(Op::Cvt { round: None, to: Type::U32, from: Type::U64, d, a: n.into() });
                d.into()
            }
            (None, n) => n,
        };
        Ok(match op {
            BinaryOp::Shl => self.binary(Binary::Shl, untyped(a.class), a.class, a, count),
            _ => self.binary(Binary::Shr, typed(dtype)?, a.class, a, count),
        })
    }

    fn compare(&mut self, op: CmpOp, a: Val, b: Val) -> Emit<Reg> {
        let dtype = self.ty(a)?.dtype;
        let ty = typed(dtype)?;
        if dtype == DType::Bool {
            return Err(Fault::invalid("a comparison of bools"));
        }
        if dtype == DType::I64
            && let Some(p) = self.narrow_compare(op, a, b)
        {
            return Ok(p);
        }
        let op = match op {
            CmpOp::Eq => Compare::Eq,
            CmpOp::Ne if dtype.is_float() => Compare::Neu,
            CmpOp::Ne => Compare::Ne,
            CmpOp::Lt => Compare::Lt,
            CmpOp::Le => Compare::Le,
            CmpOp::Gt => Compare::Gt,
            CmpOp::Ge => Compare::Ge,
        };
        let (a, b) = (self.reg(a)?, self.operand(b)?);
        Ok(self.setp(op, ty, a, b))
    }

    /// `a` where the mask holds, else `b`.
    pub fn select(&mut self, mask: Reg, a: Reg, b: Reg) -> Reg {
        if a.class != Class::Pred {
            let d = self.fresh(a.class);
            self.push(Op::Selp { ty: untyped(a.class), d, a: a.into(), b: b.into(), p: mask });
            return d;
        }
        let pred = Type::Pred;
        let not = self.fresh(Class::Pred);
        self.push(Op::Unary { op: Unary::Not, ty: pred, d: not, a: mask.into() });
        let yes = self.binary(Binary::And, pred, Class::Pred, a, mask.into());
        let no = self.binary(Binary::And, pred, Class::Pred, b, not.into());
        self.binary(Binary::Or, pred, Class::Pred, yes, no.into())
    }

    fn convert(&mut self, to: DType, v: Val) -> Emit<Reg> {
        let from = self.ty(v)?.dtype;
        let (f, t) = (typed(from)?, typed(to)?);
        let a = self.reg(v)?;
        let d = self.fresh(class(to)?);
        let round = match (from.is_float(), to.is_float()) {
            (true, false) => Some(Round::Rzi),
            (false, true) => Some(Round::Rn),
            (true, true) if to == DType::F32 && from == DType::F64 => Some(Round::Rn),
            (true, true) if from == to => return Ok(a),
            (false, false) if from.bytes() == to.bytes() => return Ok(a),
            _ => None,
        };
        self.push(Op::Cvt { round, to: t, from: f, d, a: a.into() });
        if from.is_float() && !to.is_float() && (from == DType::F64 || to.bytes() == 8) {
            // NaN becomes 0 by itself only from f32 to 32 bits
            let nan = self.setp(Compare::Nan, f, a, a.into());
            let clean = self.fresh(d.class);
            self.push(Op::Selp { ty: untyped(d.class), d: clean, a: Operand::Int(0), b: d.into(), p: nan });
            return Ok(clean);
        }
        Ok(d)
    }

    // ---- between lanes ----------------------------------------------------------------------

    /// Applies an exchange of 32-bit registers to a register of any class.
    fn exchange(&mut self, v: Reg, f: &mut dyn FnMut(&mut Self, Reg) -> Reg) -> Reg {
        let as_class = |e: &mut Self, class: Class, ty: Type, a: Reg| {
            let d = e.fresh(class);
            e.push(Op::Mov { ty, d, a: a.into() });
            d
        };
        match v.class {
            Class::B32 | Class::B16 => f(self, v),
            Class::F32 => {
                let bits = as_class(self, Class::B32, Type::B32, v);
                let got = f(self, bits);
                as_class(self, Class::F32, Type::B32, got)
            }
            Class::B64 => {
                let (lo, hi) = (self.fresh(Class::B32), self.fresh(Class::B32));
                self.push(Op::Unpack { lo, hi, a: v });
                let (lo, hi) = (f(self, lo), f(self, hi));
                let d = self.fresh(Class::B64);
                self.push(Op::Pack { d, lo, hi });
                d
            }
            Class::F64 => {
                let bits = as_class(self, Class::B64, Type::B64, v);
                let got = self.exchange(bits, f);
                as_class(self, Class::F64, Type::B64, got)
            }
            Class::Pred => {
                let bits = self.fresh(Class::B32);
                let (a, b) = (Operand::Int(1), Operand::Int(0));
                self.push(Op::Selp { ty: Type::B32, d: bits, a, b, p: v });
                let got = f(self, bits);
                self.setp(Compare::Ne, Type::U32, got, Operand::Int(0))
            }
        }
    }

    /// What a lane holds, in every lane.
    pub fn broadcast_lane(&mut self, v: Reg, lane: Operand) -> Reg {
        self.exchange(v, &mut |e, a| {
            let d = e.fresh(Class::B32);
            e.push(Op::ShflIdx { d, a, lane });
            d
        })
    }

    /// Folds the lanes by a butterfly: partners add the same two numbers, so that all lanes get the same bits.
    fn reduce_lanes(&mut self, monoid: Monoid, v: Val) -> Emit<Reg> {
        let (ty, mut all) = (self.ty(v)?, self.reg(v)?);
        if ty.is_scalar() {
            return Ok(all);
        }
        if ty.dtype == DType::Bool {
            let kind = match monoid {
                Monoid::Max | Monoid::Sum => Vote::Any,
                Monoid::Min | Monoid::Prod => Vote::All,
            };
            let d = self.fresh(Class::Pred);
            self.push(Op::Vote { kind, d, a: all });
            return Ok(d);
        }
        let mut mask = LANES / 2;
        while mask > 0 {
            let other = self.exchange(all, &mut |e, a| {
                let d = e.fresh(Class::B32);
                e.push(Op::ShflBfly { d, a, mask });
                d
            });
            all = self.combine(monoid.op(), ty.dtype, all, other.into())?;
            mask /= 2;
        }
        Ok(all)
    }

    /// Lane `i` of the result is lane `pick[i]` of `a` followed by `b`.
    fn shuffle(&mut self, a: Val, b: Val, pick: &[u32]) -> Emit<Reg> {
        let (a, b) = (self.reg(a)?, self.reg(b)?);
        if pick.len() != LANES as usize || pick.iter().any(|p| *p >= 2 * LANES) {
            return Err(Fault::invalid("a shuffle of other lanes than there are"));
        }
        // the number to pick, lane by lane: runs of lanes at one distance share an instruction
        let mut source = self.mov(Class::B32, self.lane.into());
        let mut i = 0;
        while i < pick.len() {
            let distance = i64::from(pick[i]) - i as i64;
            let run = pick[i..].iter().zip(i as i64..).take_while(|(p, l)| i64::from(**p) - l == distance);
            let end = i + run.count();
            let from = self.binary(Binary::Add, Type::S32, Class::B32, self.lane, Operand::Int(distance));
            let here = self.setp(Compare::Ge, Type::U32, self.lane, Operand::Int(i as i64));
            source = self.select(here, from, source);
            i = end;
        }
        let of_b = self.setp(Compare::Ge, Type::U32, source, Operand::Int(LANES.into()));
        let lane = self.binary(Binary::And, Type::B32, Class::B32, source, Operand::Int(31));
        let (x, y) = (self.broadcast_lane(a, lane.into()), self.broadcast_lane(b, lane.into()));
        Ok(self.select(of_b, y, x))
    }
}
