//! Sources and elementwise primitives.

use super::writer::{Attr, Writer};
use super::{Result, Site, tensor};
use ir::prim::{BinaryOp, CmpOp, ConvertMode, UnaryOp};
use ir::{DType, Dim, Tensor};

impl Writer<'_> {
    pub fn cast(&mut self, x: &str, to: DType) -> String {
        self.needs_opset(tensor::opset_of(to));
        self.node_attrs("Cast", &[x], &[("to", Attr::Int(tensor::code_of(to).into()))])
    }

    /// 0, 1, ... `n` - 1 as i64[n].
    pub fn range(&mut self, n: &Dim) -> Result<String> {
        let n = self.size_scalar(n)?;
        let (zero, one) = (self.scalar(DType::I64, 0.0), self.scalar(DType::I64, 1.0));
        Ok(self.node("Range", &[&zero, &n, &one]))
    }

    pub fn iota(&mut self, dtype: DType, shape: &[Dim], axis: usize) -> Result<String> {
        let mut x = self.range(&shape[axis])?;
        if dtype != DType::I64 {
            x = self.cast(&x, dtype);
        }
        if shape.len() > 1 {
            let mut ones = vec![1; shape.len()];
            ones[axis] = -1;
            // -1 cannot be told where the extent is 0
            let flat = if shape[axis].is_const(0) {
                ones[axis] = 0;
                self.ints(&ones)
            } else {
                let mut dims: Vec<Dim> = ones.iter().map(|_| Dim::from(1)).collect();
                dims[axis] = shape[axis].clone();
                self.sizes_of(&dims)?
            };
            x = self.node_attrs("Reshape", &[&x, &flat], &[("allowzero", Attr::Int(1))]);
            let shape = self.sizes_of(shape)?;
            x = self.node("Expand", &[&x, &shape]);
        }
        Ok(x)
    }

    /// The finaliser of SplitMix64 on a counter.
    pub fn random_bits(&mut self, site: &Site, shape: &[Dim]) -> Result<String> {
        let word = |x: u64| Tensor::new(DType::U64, Vec::new(), x.to_le_bytes().to_vec());
        let i = self.range(&Dim::product(shape))?;
        let i = self.cast(&i, DType::U64);
        let one = self.small(&word(1));
        let i = self.node("Add", &[&i, &one]);
        let golden = self.small(&word(0x9E37_79B9_7F4A_7C15));
        let i = self.node("Mul", &[&i, &golden]);
        let mut z = self.node("Add", &[site.x(), &i]);
        for (shift, factor) in
            [(30, Some(0xBF58_476D_1CE4_E5B9)), (27, Some(0x94D0_49BB_1331_11EB)), (31, None)]
        {
            let by = self.small(&word(shift));
            let s = self.node_attrs("BitShift", &[&z, &by], &[("direction", Attr::Str("RIGHT"))]);
            z = self.node("BitwiseXor", &[&z, &s]);
            if let Some(factor) = factor {
                let factor = self.small(&word(factor));
                z = self.node("Mul", &[&z, &factor]);
            }
        }
        self.reshape(&z, shape)
    }

    pub fn unary(&mut self, op: UnaryOp, x: &str, dtype: DType) -> String {
        use UnaryOp as U;
        let plain = match op {
            U::Neg if dtype.is_unsigned_int() => {
                let zero = self.scalar(dtype, 0.0);
                return self.node("Sub", &[&zero, x]);
            }
            U::Neg => "Neg",
            U::Abs => "Abs",
            U::Floor => "Floor",
            U::Ceil => "Ceil",
            U::RoundEven => "Round",
            U::Sqrt => "Sqrt",
            U::Exp => "Exp",
            U::Log => "Log",
            U::Sin => "Sin",
            U::Cos => "Cos",
            U::Tan => "Tan",
            U::Asin => "Asin",
            U::Acos => "Acos",
            U::Atan => "Atan",
            U::Sinh => "Sinh",
            U::Cosh => "Cosh",
            U::Asinh => "Asinh",
            U::Acosh => "Acosh",
            U::Atanh => "Atanh",
            U::Tanh => "Tanh",
            U::Erf => "Erf",
            U::Not if dtype == DType::Bool => "Not",
            U::Not => "BitwiseNot",
            U::Trunc => {
                let (abs, sign) = (self.node("Abs", &[x]), self.node("Sign", &[x]));
                let whole = self.node("Floor", &[&abs]);
                return self.node("Mul", &[&sign, &whole]);
            }
            // 2 sinh(x / 2) exp(x / 2), which loses nothing near 0
            U::Expm1 => {
                let half = self.scalar(dtype, 0.5);
                let h = self.node("Mul", &[x, &half]);
                let (s, e) = (self.node("Sinh", &[&h]), self.node("Exp", &[&h]));
                let p = self.node("Mul", &[&s, &e]);
                return self.node("Add", &[&p, &p]);
            }
            // log(u) x / (u - 1) with u = 1 + x rounded: the errors of u cancel (Kahan)
            U::Log1p => {
                let one = self.scalar(dtype, 1.0);
                let u = self.node("Add", &[x, &one]);
                let below = self.node("Sub", &[&u, &one]);
                let log = self.node("Log", &[&u]);
                let ratio = self.node("Div", &[x, &below]);
                let p = self.node("Mul", &[&log, &ratio]);
                let zero = self.scalar(dtype, 0.0);
                let tiny = self.node("Equal", &[&below, &zero]);
                let infinite = self.node("IsInf", &[x]);
                let p = self.node("Where", &[&infinite, &log, &p]);
                return self.node("Where", &[&tiny, x, &p]);
            }
        };
        self.node(plain, &[x])
    }

    pub fn binary(&mut self, op: BinaryOp, site: &Site) -> String {
        use BinaryOp as B;
        let (x, y, dtype) = (site.names[0].as_str(), site.names[1].as_str(), site.dtype());
        let bool = dtype == DType::Bool;
        let plain = match op {
            B::Add => "Add",
            B::Sub => "Sub",
            B::Mul => "Mul",
            B::Pow => "Pow",
            B::Min => "Min",
            B::Max => "Max",
            B::And if bool => "And",
            B::Or if bool => "Or",
            B::Xor if bool => "Xor",
            B::And => "BitwiseAnd",
            B::Or => "BitwiseOr",
            B::Xor => "BitwiseXor",
            B::Div | B::Rem if dtype.is_int() && self.options.portable => {
                return self.guarded_division(op, x, y, dtype);
            }
            B::Div => "Div",
            B::Rem => return self.node_attrs("Mod", &[x, y], &[("fmod", Attr::Int(1))]),
            B::Atan2 => return self.atan2(x, y, dtype),
            B::Shl | B::Shr => return self.shift(op == B::Shl, x, y, dtype),
        };
        self.node(plain, &[x, y])
    }

    /// Division by 0 gives 0, by -1 the negative, both of which trap elsewhere.
    fn guarded_division(&mut self, op: BinaryOp, x: &str, y: &str, dtype: DType) -> String {
        let (zero, one) = (self.scalar(dtype, 0.0), self.scalar(dtype, 1.0));
        let none = self.node("Equal", &[y, &zero]);
        let mut odd = none.clone();
        let mut minus = None;
        if dtype.is_signed_int() {
            let m = self.scalar(dtype, -1.0);
            let is = self.node("Equal", &[y, &m]);
            odd = self.node("Or", &[&none, &is]);
            minus = Some(is);
        }
        let by = self.node("Where", &[&odd, &one, y]);
        let q = if op == BinaryOp::Div {
            self.node("Div", &[x, &by])
        } else {
            self.node_attrs("Mod", &[x, &by], &[("fmod", Attr::Int(1))])
        };
        let q = match minus {
            Some(is) => {
                let other = if op == BinaryOp::Div { self.node("Sub", &[&zero, x]) } else { zero.clone() };
                self.node("Where", &[&is, &other, &q])
            }
            None => q,
        };
        self.node("Where", &[&none, &zero, &q])
    }

    /// The angle of the point (x, y), from the arc tangent and the quadrant. Where both are 0 it is 0 or pi.
    fn atan2(&mut self, y: &str, x: &str, dtype: DType) -> String {
        let (zero, pi) = (self.scalar(dtype, 0.0), self.scalar(dtype, std::f64::consts::PI));
        let half = self.scalar(dtype, std::f64::consts::FRAC_PI_2);
        let ratio = self.node("Div", &[y, x]);
        let base = self.node("Atan", &[&ratio]);
        let below = self.node("Less", &[y, &zero]);
        let minus = self.node("Neg", &[&pi]);
        let turn = self.node("Where", &[&below, &minus, &pi]);
        let turned = self.node("Add", &[&base, &turn]);
        let left = self.node("Less", &[x, &zero]);
        let angle = self.node("Where", &[&left, &turned, &base]);
        // on the vertical axis the sign of y alone counts
        let upright = self.node("Equal", &[x, &zero]);
        let sign = self.node("Sign", &[y]);
        let straight = self.node("Mul", &[&sign, &half]);
        self.node("Where", &[&upright, &straight, &angle])
    }

    /// BitShift has unsigned types only, and counts below the width.
    fn shift(&mut self, left: bool, x: &str, count: &str, dtype: DType) -> String {
        let unsigned = match dtype.bytes() {
            1 => DType::U8,
            2 => DType::U16,
            4 => DType::U32,
            _ => DType::U64,
        };
        let signed = dtype.is_signed_int();
        let (zero, width) = (self.scalar(dtype, 0.0), self.scalar(dtype, f64::from(dtype.bits())));
        let mut valid = self.node("Less", &[count, &width]);
        if signed {
            let positive = self.node("GreaterOrEqual", &[count, &zero]);
            valid = self.node("And", &[&valid, &positive]);
        }
        let mut by = self.node("Where", &[&valid, count, &zero]);
        // an arithmetic shift of a negative number is the logical one of its complement
        let negative = (signed && !left).then(|| self.node("Less", &[x, &zero]));
        let mut bits = match &negative {
            Some(n) => {
                let complement = self.node("BitwiseNot", &[x]);
                self.node("Where", &[n, &complement, x])
            }
            None => x.to_string(),
        };
        if signed {
            by = self.cast(&by, unsigned);
            bits = self.cast(&bits, unsigned);
        }
        let direction = if left { "LEFT" } else { "RIGHT" };
        let mut z = self.node_attrs("BitShift", &[&bits, &by], &[("direction", Attr::Str(direction))]);
        if signed {
            z = self.cast(&z, dtype);
        }
        let z = self.node("Where", &[&valid, &z, &zero]);
        match negative {
            Some(n) => {
                let complement = self.node("BitwiseNot", &[&z]);
                self.node("Where", &[&n, &complement, &z])
            }
            None => z,
        }
    }

    pub fn compare(&mut self, op: CmpOp, x: &str, y: &str) -> String {
        let name = match op {
            CmpOp::Eq | CmpOp::Ne => "Equal",
            CmpOp::Lt => "Less",
            CmpOp::Le => "LessOrEqual",
            CmpOp::Gt => "Greater",
            CmpOp::Ge => "GreaterOrEqual",
        };
        let c = self.node(name, &[x, y]);
        if op == CmpOp::Ne { self.node("Not", &[&c]) } else { c }
    }

    pub fn convert(&mut self, x: &str, from: DType, to: DType, mode: ConvertMode) -> String {
        let saturate = mode == ConvertMode::Saturate;
        let range = match to {
            DType::Bool => None,
            // what lies between its largest number and the middle to the next rounds to it
            DType::F16 => Some((-65504, 65504)),
            _ => to.int_range(),
        };
        if let (true, Some((lo, hi))) = (saturate && !from.is_float(), range) {
            let (from_lo, from_hi) = from.int_range().unwrap_or((0, 1));
            let bounds = [("Max", lo, lo > from_lo), ("Min", hi, hi < from_hi)];
            let mut x = x.to_string();
            // integers are clamped in their own type, where both bounds are numbers of it; the standard orders none
            // below a byte
            let packed = from.is_int() && from.bits() < 8;
            let wide = if packed { DType::I32 } else { from };
            if packed && bounds.iter().any(|b| b.2) {
                x = self.cast(&x, wide);
            }
            for (op, bound, needed) in bounds {
                if needed && from != DType::Bool {
                    let t = Tensor::new(wide, Vec::new(), bound.to_le_bytes()[..wide.bytes()].to_vec());
                    let bound = self.small(&t);
                    x = self.node(op, &[&x, &bound]);
                }
            }
            return self.cast(&x, to);
        }
        if from.is_float() && to.is_int() && self.options.portable {
            return self.guarded_cast(x, from, to);
        }
        if to == DType::F8E8M0 {
            // the standard drops the sign, and infinities become NaN even where it saturates
            let x = if from == DType::F32 { x.to_string() } else { self.cast(x, DType::F32) };
            let (zero, nan) = (self.scalar(DType::F32, 0.0), self.scalar(DType::F32, f64::NAN));
            let negative = self.node("Less", &[&x, &zero]);
            let mut x = self.node("Where", &[&negative, &nan, &x]);
            if saturate {
                let largest = self.scalar(DType::F32, f64::from(f32::MAX));
                x = self.node("Min", &[&x, &largest]);
            }
            return self.narrow(&x, to, saturate);
        }
        if from.is_float() && to.is_int() && to.bits() < 8 {
            // the standard wraps these
            let wide = if from == DType::F64 { DType::F64 } else { DType::F32 };
            let (lo, hi) = to.int_range().unwrap_or((0, 0));
            let (lo, hi) = (self.scalar(wide, lo as f64), self.scalar(wide, hi as f64));
            let x = if from == wide { x.to_string() } else { self.cast(x, wide) };
            let x = self.node("Max", &[&x, &lo]);
            let x = self.node("Min", &[&x, &hi]);
            return self.cast(&x, to);
        }
        if to.is_float() && saturate {
            let largest = match to {
                DType::F32 => f64::from(f32::MAX),
                DType::F16 => 65504.0,
                DType::BF16 => f64::from(half::bf16::MAX.to_f32()),
                _ => return self.narrow(x, to, true),
            };
            let wide = matches!((from, to), (DType::F64, _) | (DType::F32 | DType::BF16, DType::F16))
                || (from, to) == (DType::F32, DType::BF16);
            if wide {
                let (lo, hi) = (self.scalar(from, -largest), self.scalar(from, largest));
                let x = self.node("Max", &[x, &lo]);
                let x = self.node("Min", &[&x, &hi]);
                return self.cast(&x, to);
            }
        }
        self.narrow(x, to, saturate)
    }

    /// A cast, with the attribute that 8-bit floats have for what is out of range.
    fn narrow(&mut self, x: &str, to: DType, saturate: bool) -> String {
        let code = ("to", Attr::Int(tensor::code_of(to).into()));
        match to {
            DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => {
                self.node_attrs("Cast", &[x], &[code, ("saturate", Attr::Int(saturate.into()))])
            }
            DType::F8E8M0 => {
                self.needs_opset(24);
                let attrs =
                    [code, ("saturate", Attr::Int(saturate.into())), ("round_mode", Attr::Str("nearest"))];
                self.node_attrs("Cast", &[x], &attrs)
            }
            _ => self.cast(x, to),
        }
    }

    /// Truncates, saturates, and takes NaN to 0, where a plain cast may do as it likes.
    fn guarded_cast(&mut self, x: &str, from: DType, to: DType) -> String {
        let Some((lo, hi)) = to.int_range() else { return self.cast(x, to) };
        // comparisons and selections are made in a type that every runtime has them for
        let wide = if from == DType::F64 { DType::F64 } else { DType::F32 };
        let x = if from == wide { x.to_string() } else { self.cast(x, wide) };
        let limit = |v: i128, w: &mut Self| {
            let t = Tensor::new(to, Vec::new(), v.to_le_bytes()[..to.bytes()].to_vec());
            w.small(&t)
        };
        let (top, bottom) = (self.scalar(wide, hi as f64), self.scalar(wide, lo as f64));
        let over = self.node("GreaterOrEqual", &[&x, &top]);
        let under = self.node("LessOrEqual", &[&x, &bottom]);
        let nan = self.node("IsNaN", &[&x]);
        let odd = self.node("Or", &[&over, &under]);
        let odd = self.node("Or", &[&odd, &nan]);
        let zero = self.scalar(wide, 0.0);
        let safe = self.node("Where", &[&odd, &zero, &x]);
        let cast = self.cast(&safe, to);
        let (hi, lo) = (limit(hi, self), limit(lo, self));
        let z = self.node("Where", &[&over, &hi, &cast]);
        self.node("Where", &[&under, &lo, &z])
    }

    pub fn bitcast(&mut self, x: &str, from: DType, to: DType) -> String {
        if from.is_int() && to.is_int() {
            // of one width: two's complement either way
            return self.cast(x, to);
        }
        self.needs_opset(26);
        self.node_attrs("BitCast", &[x], &[("to", Attr::Int(tensor::code_of(to).into()))])
    }
}
