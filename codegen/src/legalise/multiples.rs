//! What index values are multiples of: whether neighbours in memory begin at a place from which several may be read
//! at once.

use ir::DType;
use ir::dtype::Scalar;
use ir::loops::{Addr, Block, Func, Inst, Mem, Stmt, Stride, Val};
use ir::prim::BinaryOp;

/// Larger factors are of no interest.
const MOST: i64 = 1 << 30;

/// By value, a number that divides it whatever the run-time sizes; 0 is divided by all, 1 divides all.
#[derive(Clone, Debug, Default)]
pub(super) struct Multiples(Vec<i64>);

fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Multiples {
    pub fn of(func: &Func) -> Multiples {
        let mut m = Multiples(vec![1; func.types.len()]);
        let mut defs = vec![None; func.types.len()];
        m.walk(func, &func.body, &mut defs);
        m
    }

    /// A divisor of every element of the value.
    pub fn get(&self, v: Val) -> i64 {
        self.0.get(v.0 as usize).copied().unwrap_or(1)
    }

    /// Bytes to which the first element of an access and the rows below it are aligned, as far as is known, at most `most`.
    pub fn align(&self, func: &Func, addr: &Addr, most: u32) -> u32 {
        let (bytes, base) = match addr.mem {
            Mem::Buf(i) => func.bufs.get(i as usize).map_or((1, 1), |b| (b.dtype.bytes(), b.align)),
            Mem::Local(i) => func.locals.get(i as usize).map_or((1, 1), |l| (l.dtype.bytes(), most)),
        };
        let bytes = bytes.max(1) as i64;
        // operands lie where the runtime puts them, which is far apart, or where a file has them
        if i64::from(base) < bytes {
            return base.max(1);
        }
        let row = match addr.row {
            Stride::Const(c) => c.unsigned_abs().min(MOST as u64) as i64,
            Stride::Val(v) => self.get(v),
        };
        let disp = addr.disp.unsigned_abs().min(i64::MAX as u64) as i64;
        let elems = gcd(gcd(self.get(addr.index), disp), row);
        let all = if elems == 0 { i64::from(most) } else { elems.saturating_mul(bytes) };
        let own = 1 << all.trailing_zeros().min(16);
        (own as u32).min(most).max(addr.align.min(most))
    }

    fn set(&mut self, v: Val, n: i64) {
        if let Some(slot) = self.0.get_mut(v.0 as usize) {
            *slot = if n > MOST { gcd(n, MOST) } else { n };
        }
    }

    fn walk<'f>(&mut self, func: &'f Func, block: &'f Block, defs: &mut [Option<&'f Inst>]) {
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let { val, inst } if func.ty(*val).dtype == DType::I64 => {
                    let n = self.inst(inst, defs);
                    self.set(*val, n);
                    defs[val.0 as usize] = Some(inst);
                }
                Stmt::For { var, lo, step, .. } => self.set(*var, gcd(self.get(*lo), *step)),
                _ => {}
            }
            stmt.blocks().into_iter().for_each(|b| self.walk(func, b, defs));
        }
    }

    fn inst(&self, inst: &Inst, defs: &[Option<&Inst>]) -> i64 {
        match inst {
            Inst::Const(Scalar::Int(c)) => i64::try_from(c.unsigned_abs()).unwrap_or(1),
            Inst::Splat(v) | Inst::Extract(v, ..) => self.get(*v),
            Inst::Select(_, a, b) => gcd(self.get(*a), self.get(*b)),
            Inst::Binary(op, a, b) => {
                let (x, y) = (self.get(*a), self.get(*b));
                match op {
                    BinaryOp::Mul => x.checked_mul(y).unwrap_or(1),
                    BinaryOp::Sub => gcd(x, y).max(self.without_rest(*a, *b, defs)),
                    BinaryOp::Add | BinaryOp::Min | BinaryOp::Max | BinaryOp::Rem => gcd(x, y),
                    _ => 1,
                }
            }
            _ => 1,
        }
    }

    /// `n - n mod c` is a multiple of `c`.
    fn without_rest(&self, n: Val, rest: Val, defs: &[Option<&Inst>]) -> i64 {
        let Some(Inst::Binary(op, of, by)) = defs.get(rest.0 as usize).copied().flatten() else { return 1 };
        let by = match defs.get(by.0 as usize).copied().flatten() {
            Some(Inst::Const(Scalar::Int(c))) => i64::try_from(*c).unwrap_or(0),
            _ => 0,
        };
        match op {
            BinaryOp::Rem if *of == n && by > 0 => by,
            BinaryOp::And if *of == n && by > 0 && (by + 1).count_ones() == 1 => by + 1,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::text::loops::parse;

    #[test]
    fn products_sums_and_loops() {
        let text = "func @f tile (x: f32 align 4, y: f32 align 1, s0) {
  %0 = const 0 : i64
  %1 = param s0 : i64
  %2 = const 12 : i64
  %3 = mul %1, %2 : i64
  %4 = const 127 : i64
  %5 = and %1, %4 : i64
  %6 = sub %1, %5 : i64
  for %7 in %0 .. %1 step 1 parallel thread {
    for %8 in %6 .. %1 step 32 {
      %9 = add %8, %3 : i64
      %10 = add %9, %7 : i64
      %11 = load x[%9 + 4, align 4] : f32
      %12 = load x[%9 + 2, align 4] : f32
      %13 = load y[%9, align 1] : f32
      %14 = load x[%9, align 8] : f32
    }
  }
}
";
        let f = parse(text).unwrap_or_else(|e| panic!("{e}"));
        let m = Multiples::of(&f);
        let of = |i: u32| m.get(Val(i));
        let all = [0, 1, 2, 3, 6, 7, 8, 9, 10].map(of);
        assert_eq!(all, [0, 1, 12, 12, 128, 1, 32, 4, 1]);
        let mut aligns = Vec::new();
        fn loads(f: &Func, m: &Multiples, block: &Block, out: &mut Vec<u32>) {
            for s in &block.stmts {
                if let Stmt::Let { inst: Inst::Load(a), .. } = s {
                    out.push(m.align(f, a, 16));
                }
                s.blocks().into_iter().for_each(|b| loads(f, m, b, out));
            }
        }
        loads(&f, &m, &f.body, &mut aligns);
        assert_eq!(aligns, [16, 8, 1, 16]);
    }
}
