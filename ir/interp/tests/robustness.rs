//! Random primitives with random attributes, extreme ones among them, on random small operands: each ends
//! in results of sane size or in an error, never in a panic or an unbounded allocation.

mod common;

use common::dims;
use ir::graph::OriginId;
use ir::prim::{BinaryOp, CmpOp, Combine, ConvertMode, HostFn, Monoid, PadMode, Pixels, UnaryOp, WindowDim};
use ir::{DType, Dim, Module, Prim, Sym, SymKind, Tensor};
use kernelsmith_interp::{Budget, eval_op};

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    /// Mostly small, sometimes absurd.
    fn int(&mut self) -> i64 {
        const ODD: [i64; 8] = [i64::MAX, i64::MIN, 1 << 48, -(1 << 48), 1 << 62, -(1 << 62), 1 << 31, -1];
        if self.below(6) == 0 { self.pick(&ODD) } else { self.below(5) as i64 - 1 }
    }
    fn ints(&mut self, n: usize) -> Vec<i64> {
        (0..n).map(|_| self.int()).collect()
    }
    fn axes(&mut self, n: usize) -> Vec<usize> {
        (0..n).map(|_| self.below(4)).collect()
    }
    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }
    fn dtype(&mut self) -> DType {
        const USUAL: [DType; 5] = [DType::F32, DType::I64, DType::I32, DType::Bool, DType::U8];
        if self.below(4) == 0 { self.pick(&DType::ALL) } else { self.pick(&USUAL) }
    }
    fn tensor(&mut self, like: Option<&Tensor>) -> Tensor {
        if let Some(t) = like.filter(|_| self.below(2) == 0) {
            return t.clone();
        }
        let rank = self.below(4);
        let mut shape: Vec<usize> = (0..rank).map(|_| self.below(4)).collect();
        // an extent of any size is legal beside one of 0
        if shape.contains(&0) && self.below(3) == 0 {
            let i = self.below(rank);
            if shape[i] != 0 {
                shape[i] = self.pick(&[usize::MAX, 1 << 48, 1 << 62]);
            }
        }
        let mut t = Tensor::zeros(self.dtype(), shape);
        t.data.iter_mut().for_each(|b| *b = if self.flag() { self.below(3) as u8 } else { 0xff });
        t
    }
    fn window(&mut self) -> WindowDim {
        WindowDim {
            stride: self.int(),
            pad_lo: self.int().into(),
            pad_hi: self.int().into(),
            dilation: self.int(),
            base_dilation: self.int(),
        }
    }
    fn prim(&mut self, rank: usize) -> Prim {
        let monoid = self.pick(Monoid::ALL);
        let (axis, dtype) = (self.below(4), self.dtype());
        let pairs = |r: &mut Rng| {
            let n = r.below(3);
            (0..n).map(|_| (r.below(4), r.below(4))).collect::<Vec<_>>()
        };
        match self.below(31) {
            0 => Prim::Iota { dtype, shape: dims(&self.ints(rank)), axis },
            1 => Prim::DimValue(Dim::from(self.int()) * Dim::from(Sym(0))),
            2 => Prim::BindDim(Sym(self.below(2) as u32)),
            3 => Prim::RandomBits { shape: dims(&self.ints(rank)) },
            4 => Prim::Unary(self.pick(UnaryOp::ALL)),
            5 | 6 => Prim::Binary(self.pick(BinaryOp::ALL)),
            7 => Prim::Cmp(self.pick(CmpOp::ALL)),
            8 => Prim::Select,
            9 => Prim::Convert { to: dtype, mode: self.pick(ConvertMode::ALL) },
            10 => Prim::Bitcast { to: dtype },
            11 => Prim::Reshape { shape: dims(&self.ints(rank)) },
            12 => Prim::Transpose { perm: self.axes(rank) },
            13 => Prim::Broadcast { shape: dims(&self.ints(rank)), dims: self.axes(rank) },
            14 => Prim::Slice {
                start: dims(&self.ints(rank)),
                size: dims(&self.ints(rank)),
                step: self.ints(rank),
            },
            15 | 16 => Prim::Pad {
                lo: dims(&self.ints(rank)),
                hi: dims(&self.ints(rank)),
                interior: self.ints(rank),
                mode: self.pick(PadMode::ALL),
            },
            17 => Prim::Concat { axis },
            18 => Prim::UpdateSlice { start: dims(&self.ints(rank)) },
            19 => Prim::Gather { axis },
            20 => Prim::Scatter { combine: self.pick(Combine::ALL) },
            21 => Prim::Reduce { monoid, axes: self.axes(2) },
            22 => Prim::ArgReduce { max: self.flag(), axis, last: self.flag() },
            23 | 24 => {
                let n = self.below(rank + 1);
                let window = (0..n).map(|_| self.window()).collect();
                Prim::WindowReduce { monoid, size: self.ints(n), window }
            }
            25 => Prim::Cumulative { monoid, axis, exclusive: self.flag(), reverse: self.flag() },
            26 => Prim::Contract { batch: pairs(self), reduce: pairs(self), acc: dtype },
            27 => {
                let window = (2..rank).map(|_| self.window()).collect();
                Prim::Convolve { window, groups: self.below(3), acc: dtype }
            }
            28 => Prim::Sort { axis, descending: self.flag() },
            29 => Prim::TopK { axis, k: self.int().into(), largest: self.flag() },
            _ if self.flag() => Prim::Compact { sym: Sym(0) },
            _ if self.flag() => {
                Prim::Host { func: HostFn::DecodeImage { pixels: Pixels::Grey }, defines: vec![] }
            }
            _ => Prim::Host {
                func: HostFn::NonMaxSuppression { center_point_box: self.flag() },
                defines: vec![],
            },
        }
    }
}

#[test]
fn nothing_panics() {
    let mut module = Module::default();
    module.symbols.fresh("n", SymKind::Value);
    let budget = Budget { max_bytes: 1 << 16, max_flops: 1 << 16 };
    let mut rng = Rng(1);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..60_000 {
        let mut xs: Vec<Tensor> = Vec::new();
        for _ in 0..rng.below(4) {
            let x = rng.tensor(xs.first());
            xs.push(x);
        }
        let rank = xs.first().map_or(1, |x| x.shape.len());
        let prim = rng.prim(rank);
        let op = ir::Op { prim, operands: vec![], results: vec![], regions: vec![], origin: OriginId(0) };
        match eval_op(&module, &op, &xs, &|_| Some(3), budget) {
            Ok(results) => {
                good += 1;
                for r in results {
                    assert_eq!(r.data.len(), r.elems() * r.dtype.bytes(), "{:?} on {xs:?}", op.prim);
                    assert!(r.data.len() <= 1 << 16);
                }
            }
            Err(_) => bad += 1,
        }
    }
    // both outcomes are really exercised
    assert!(good > 3_000 && bad > 3_000, "{good} good, {bad} bad");
}
