//! Functions in tile form, legalised for each backend and compiled: native code does, bit by bit, what the
//! interpreter of loop IR says the machine form does. (That tile and machine form agree is tested beside
//! the legaliser.)

use crate::harness::{Case, backends, run};
use ir::dtype::Scalar;
use ir::loops::{Addr, Func, Inst, Launch, Level, Mem, Stride, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::loops_exec::execute;
use ir::loops_opt::eval;
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use ir::{DType, OriginId, Sym};
use kernelsmith_codegen::legalise::legalise;

/// Rows and columns of the tiles: no multiple of any vector.
const ROWS: u32 = 2;
const COLS: u32 = 19;
const COUNT: usize = (ROWS * COLS) as usize;

fn every_type() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|d| *d != DType::String)
}

/// Name, function in tile form, operands, symbols.
type TileCase = (String, Func, Vec<Vec<u8>>, Vec<i64>);

/// Legalises and runs one function on every backend and compares with the interpreter.
#[track_caller]
fn check(cases: Vec<TileCase>, trip: i64) {
    for backend in backends() {
        let target = backend.target();
        let mut ready = Vec::new();
        for (label, tile, bufs, syms) in &cases {
            let func = legalise(tile, &target).unwrap_or_else(|e| panic!("{label}: {e}"));
            let mut want = bufs.clone();
            execute(&func, &mut want, syms, 0, trip).unwrap_or_else(|e| panic!("{label}: {e}"));
            let mut case = Case::new(label, func, bufs.clone(), want.into_iter().map(Some).collect(), trip);
            case.syms = syms.clone();
            ready.push(case);
        }
        run(&*backend, target.lanes(4), ready);
    }
}

/// `COUNT` stored values of a type that show rounding, wrapping and limits.
fn samples(dtype: DType, seed: usize) -> Vec<u8> {
    let floats = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        0.3,
        2.75,
        -7.1,
        88.9,
        -104.0,
        1e-5,
        3e4,
        -2e9,
        5e18,
        1e300,
        f64::INFINITY,
        f64::NAN,
        1e-42,
        0.99,
        40.0,
    ];
    (0..COUNT)
        .map(|i| i * (2 * seed + 1) + 5 * seed)
        .flat_map(|i| {
            let x = match dtype.int_range() {
                None => Scalar::Float(floats[i % floats.len()] * if i % 2 == 0 { 1.0 } else { -1.0 }),
                Some((lo, hi)) => match i % 8 {
                    0 => Scalar::Int(lo),
                    1 => Scalar::Int(hi),
                    _ => Scalar::Int(lo.max(-40) + i as i128 % (hi.min(60) - lo.max(-40) + 1)),
                },
            };
            eval::to_bits(dtype, x).to_le_bytes()[..dtype.bytes()].to_vec()
        })
        .collect()
}

fn tile_addr(b: &LoopBuilder, mem: Mem, at: Val) -> Addr {
    Addr { row: Stride::Const(i64::from(COLS)), ..b.addr(mem, at, 0) }
}

/// `out = f(in0, in1)` on one tile.
fn on_tiles(ins: [DType; 2], out: DType, f: impl FnOnce(&mut LoopBuilder, Val, Val) -> Val) -> Func {
    let mut b = LoopBuilder::new("tiles");
    let mems = ins.map(|d| b.buf("in", d, false, 64));
    let result = b.buf("out", out, true, 64);
    let one = b.index(1);
    b.parallel(Level::Thread, one, |b, i| {
        let [x, y] = mems.map(|m| {
            let addr = tile_addr(b, m, i);
            b.load(addr, ROWS, COLS)
        });
        let v = f(b, x, y);
        let addr = tile_addr(b, result, i);
        b.store(addr, v);
    });
    b.finish(Launch::default())
}

fn tile_case(
    label: String,
    ins: [DType; 2],
    out: DType,
    f: impl FnOnce(&mut LoopBuilder, Val, Val) -> Val,
) -> TileCase {
    let bufs = vec![samples(ins[0], 0), samples(ins[1], 1), vec![0; COUNT * out.bytes()]];
    (label, on_tiles(ins, out, f), bufs, Vec::new())
}

#[test]
fn math_functions() {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        for op in UnaryOp::ALL.iter().copied().filter(|op| *op != UnaryOp::Not) {
            let label = format!("{} {dtype}", op.name());
            cases.push(tile_case(label, [dtype, dtype], dtype, |b, x, _| b.unary(op, x)));
        }
        use BinaryOp as B;
        for op in [B::Add, B::Sub, B::Mul, B::Div, B::Rem, B::Pow, B::Atan2, B::Min, B::Max] {
            let label = format!("{} {dtype}", op.name());
            cases.push(tile_case(label, [dtype, dtype], dtype, |b, x, y| b.binary(op, x, y)));
        }
    }
    check(cases, 1);
}

#[test]
fn integers() {
    use BinaryOp as B;
    let mut cases = Vec::new();
    for dtype in every_type().filter(|d| d.is_int()) {
        for op in [
            B::Add,
            B::Sub,
            B::Mul,
            B::Div,
            B::Rem,
            B::Pow,
            B::Min,
            B::Max,
            B::And,
            B::Or,
            B::Xor,
            B::Shl,
            B::Shr,
        ] {
            let label = format!("{} {dtype}", op.name());
            cases.push(tile_case(label, [dtype, dtype], dtype, |b, x, y| b.binary(op, x, y)));
        }
        for op in [UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Not] {
            cases.push(tile_case(format!("{} {dtype}", op.name()), [dtype, dtype], dtype, |b, x, _| {
                b.unary(op, x)
            }));
        }
    }
    check(cases, 1);
}

#[test]
fn conversions() {
    for mode in [ConvertMode::Plain, ConvertMode::Saturate] {
        let mut cases = Vec::new();
        for from in every_type() {
            // of the pairs of narrow types every fifth, for time
            let wide = |d: DType| matches!(d, DType::F32 | DType::I32 | DType::I64);
            let chosen =
                |to: DType| wide(from) || wide(to) || (from as usize * 7 + to as usize).is_multiple_of(5);
            for to in every_type().filter(|to| *to != from && chosen(*to)) {
                let label = format!("{from} to {to} {mode:?}");
                cases.push(tile_case(label, [from, from], to, |b, x, _| {
                    b.inst(Inst::Convert(mode, x), Ty::tile(to, ROWS, COLS))
                }));
            }
        }
        check(cases, 1);
    }
}

#[test]
fn comparisons_and_reductions() {
    let mut cases = Vec::new();
    for dtype in every_type().filter(|d| d.is_int() || d.bytes() >= 2) {
        for op in CmpOp::ALL.iter().copied() {
            cases.push(tile_case(
                format!("{} {dtype}", op.name()),
                [dtype, dtype],
                DType::Bool,
                |b, x, y| b.cmp(op, x, y),
            ));
        }
        for monoid in Monoid::ALL.iter().copied() {
            // floats from small integers: the order of the lanes is the emitter's
            let small = |b: &mut LoopBuilder, x: Val| {
                let one = b.constant(Ty::tile(dtype, ROWS, COLS), Scalar::of(dtype, 1.0));
                let less = b.cmp(CmpOp::Lt, x, one);
                let two = b.constant(Ty::tile(dtype, ROWS, COLS), Scalar::of(dtype, 2.0));
                b.select(less, two, one)
            };
            cases.push(tile_case(
                format!("{} of cols of {dtype}", monoid.name()),
                [dtype, dtype],
                dtype,
                |b, x, _| {
                    let x = small(b, x);
                    let r = b.reduce_cols(monoid, x);
                    b.splat(r, ROWS, COLS)
                },
            ));
            cases.push(tile_case(
                format!("{} of rows of {dtype}", monoid.name()),
                [dtype, dtype],
                dtype,
                |b, x, _| {
                    let x = small(b, x);
                    let r = b.reduce_rows(monoid, x);
                    b.splat(r, ROWS, COLS)
                },
            ));
        }
    }
    check(cases, 1);
}

/// A product with a ragged edge: C[m, n] = sum over k of A[m, k] B[k, n] in tiles, columns guarded, then
/// a bias and a clamp; the last row tile repeats rows of the one before.
#[test]
fn ragged_product() {
    let (m, n, k, rows, cols) = (7i64, 37i64, 11i64, 4u32, 32u32);
    let mut b = LoopBuilder::new("product");
    let lhs = b.buf("a", DType::F32, false, 64);
    let rhs = b.buf("b", DType::F32, false, 64);
    let bias = b.buf("bias", DType::F32, false, 64);
    let out = b.buf("c", DType::F32, true, 64);
    let depth = b.sym(Sym(0));
    let col_tiles = b.index((n + i64::from(cols) - 1) / i64::from(cols));
    let trip = b.index(2 * ((n + i64::from(cols) - 1) / i64::from(cols)));
    b.parallel(Level::Thread, trip, |b, t| {
        let (row_tile, col_tile) = (b.div(t, col_tiles), b.rem(t, col_tiles));
        let (r, c, last) = (b.index(i64::from(rows)), b.index(i64::from(cols)), b.index(m - i64::from(rows)));
        let row = b.mul(row_tile, r);
        let row = b.min(row, last);
        let col = b.mul(col_tile, c);
        let end = b.index(n);
        let left = b.sub(end, col);
        let zero = b.float(Ty::tile(DType::F32, rows, cols), 0.0);
        let lo = b.index(0);
        let start_a = b.mul(row, depth);
        let sum = b.for_(lo, depth, 1, &[zero], |b, j, acc| {
            let at = b.add(start_a, j);
            let addr = Addr { row: Stride::Val(depth), ..b.addr(lhs, at, 0) };
            let x = b.load(addr, rows, 1);
            let width = b.index(n);
            let at = b.mul(j, width);
            let at = b.add(at, col);
            let addr = Addr { cols_valid: Some(left), ..b.addr(rhs, at, 0) };
            let y = b.load(addr, 1, cols);
            vec![b.fma(x, y, acc[0])]
        });
        let addr = Addr { cols_valid: Some(left), ..b.addr(bias, col, 0) };
        let bias = b.load(addr, 1, cols);
        let sum = b.add(sum[0], bias);
        let floor = b.float(Ty::scalar(DType::F32), -20.0);
        let sum = b.max(sum, floor);
        let width = b.index(n);
        let at = b.mul(row, width);
        let at = b.add(at, col);
        let addr = Addr { row: Stride::Const(n), cols_valid: Some(left), ..b.addr(out, at, 0) };
        b.store(addr, sum);
    });
    let func = b.finish(Launch::default());
    let floats = |n: i64, f: fn(i64) -> i64| {
        (0..n).flat_map(|i| (f(i) as f32 / 4.0).to_le_bytes()).collect::<Vec<u8>>()
    };
    let bufs = vec![
        floats(m * k, |i| (i * 7) % 23 - 11),
        floats(k * n, |i| (i * 5) % 19 - 9),
        floats(n, |i| i % 6),
        vec![0; (4 * m * n) as usize],
    ];
    check(vec![("product".into(), func, bufs, vec![k])], 4);
}

/// Whole vectors at aligned addresses.
#[test]
fn aligned_tiles() {
    let mut cases = Vec::new();
    for dtype in every_type() {
        for cols in [64, 128, 256] {
            let mut b = LoopBuilder::new("aligned");
            let (x, out) = (b.buf("x", dtype, false, 64), b.buf("out", dtype, true, 64));
            let numbers = b.buf("numbers", DType::I64, true, 64);
            let (most, one) = (b.buf("most", dtype, true, 64), b.buf("one", dtype, true, 64));
            let trip = b.index(2);
            b.parallel(Level::Thread, trip, |b, i| {
                let size = b.index(i64::from(ROWS * cols));
                let at = b.mul(i, size);
                let tile = |b: &LoopBuilder, mem| Addr {
                    row: Stride::Const(cols.into()),
                    align: 64,
                    ..b.addr(mem, at, 0)
                };
                let addr = tile(b, x);
                let v = b.load(addr, ROWS, cols);
                // there are no sums or orders of the narrowest floats
                let ordered = dtype.is_int() || dtype.bytes() >= 2;
                let largest =
                    if ordered { b.reduce_cols(Monoid::Max, v) } else { b.load(b.addr(x, i, 0), ROWS, 1) };
                let addr = b.addr(one, i, 0);
                let element = b.extract(v, 1, 37);
                b.store(addr, element);
                let width = b.index(ROWS.into());
                let rows = b.mul(i, width);
                let addr = Addr { row: Stride::Const(1), ..b.addr(most, rows, 0) };
                b.store(addr, largest);
                let order = b.iota(Ty::tile(DType::I64, ROWS, cols), true);
                let addr = tile(b, numbers);
                b.store(addr, order);
                let addr = tile(b, out);
                b.store(addr, v);
            });
            let n = (2 * ROWS * cols) as usize;
            let input: Vec<u8> = samples(dtype, 3).into_iter().cycle().take(n * dtype.bytes()).collect();
            let empty = |elems: usize, d: DType| vec![0; elems * d.bytes()];
            let bufs = vec![
                input,
                empty(n, dtype),
                empty(n, DType::I64),
                empty(2 * ROWS as usize, dtype),
                empty(2, dtype),
            ];
            cases.push((format!("{dtype} x {cols}"), b.finish(Launch::default()), bufs, vec![]));
        }
    }
    check(cases, 2);
}

/// Indices are checked and then used; data-dependent rows are gathered.
#[test]
fn checked_gather() {
    let mut b = LoopBuilder::new("rows");
    let (table, index) = (b.buf("table", DType::F16, false, 64), b.buf("index", DType::I32, false, 64));
    let out = b.buf("out", DType::F32, true, 64);
    let trip = b.index(6);
    b.parallel(Level::Thread, trip, |b, i| {
        let addr = b.addr(index, i, 0);
        let row = b.load(addr, 1, 1);
        let row = b.convert(DType::I64, ConvertMode::Plain, row);
        let (zero, limit) = (b.index(0), b.index(i64::from(ROWS)));
        let low = b.cmp(CmpOp::Ge, row, zero);
        let high = b.cmp(CmpOp::Lt, row, limit);
        let ok = b.and(low, high);
        b.check(ok, OriginId(3), row, limit);
        b.when(ok, |b| {
            let cols = b.index(i64::from(COLS));
            let at = b.mul(row, cols);
            let addr = b.addr(table, at, 0);
            let v = b.load(addr, 1, COLS);
            let v = b.convert(DType::F32, ConvertMode::Plain, v);
            let at = b.mul(i, cols);
            let addr = b.addr(out, at, 0);
            b.store(addr, v);
        });
    });
    let func = b.finish(Launch::default());
    let index = [1i32, 0, 1, 1, 0, 0].iter().flat_map(|i| i.to_le_bytes()).collect();
    let bufs = vec![samples(DType::F16, 2), index, vec![0; 4 * 6 * COLS as usize]];
    check(vec![("rows".into(), func, bufs, vec![])], 6);
}
