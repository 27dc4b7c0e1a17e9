//! Element-wise instructions.

use crate::harness::{Case, NUMBERS, Num, check, map, store, values, wrap};
use ir::DType;
use ir::loops::{Inst, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};

/// All pairs of the interesting values.
fn pairs(dtype: DType) -> (Vec<Num>, Vec<Num>) {
    let v = values(dtype);
    let n = v.len();
    ((0..n * n).map(|i| v[i / n]).collect(), (0..n * n).map(|i| v[i % n]).collect())
}

fn round(dtype: DType, x: f64) -> Num {
    Num::F(if dtype == DType::F32 { f64::from(x as f32) } else { x })
}

#[test]
fn unary_floats() {
    type F = fn(f64) -> f64;
    let ops: [(UnaryOp, F); 7] = [
        (UnaryOp::Neg, |x| -x),
        (UnaryOp::Abs, f64::abs),
        (UnaryOp::Floor, f64::floor),
        (UnaryOp::Ceil, f64::ceil),
        (UnaryOp::Trunc, f64::trunc),
        (UnaryOp::RoundEven, f64::round_ties_even),
        (UnaryOp::Sqrt, f64::sqrt),
    ];
    check(|lanes, _| {
        let mut cases = Vec::new();
        for dtype in [DType::F32, DType::F64] {
            let input = values(dtype);
            for (op, f) in ops {
                let func = map(lanes, input.len(), &[(dtype, dtype)], dtype, |b, v| b.unary(op, v[0]));
                let expect: Vec<_> = input
                    .iter()
                    .map(|x| match x {
                        // the root of a float in f64, rounded, is the correctly rounded root
                        Num::F(x) => round(dtype, f(*x)),
                        x => *x,
                    })
                    .collect();
                let bufs = vec![store(dtype, &input), vec![0; input.len() * dtype.bytes()]];
                let expect = vec![None, Some(store(dtype, &expect))];
                cases.push(Case::new(
                    format!("{} {dtype}", op.name()),
                    func,
                    bufs,
                    expect,
                    (input.len() / lanes as usize) as i64,
                ));
            }
        }
        cases
    });
}

fn case2(
    label: String,
    lanes: u32,
    dtype: DType,
    (x, y): (Vec<Num>, Vec<Num>),
    out: DType,
    build: impl Fn(&mut LoopBuilder, Val, Val) -> Val,
    expect: impl Fn(Num, Num) -> Num,
) -> Case {
    let func = map(lanes, x.len(), &[(dtype, dtype), (dtype, dtype)], out, |b, v| build(b, v[0], v[1]));
    let want: Vec<_> = x.iter().zip(&y).map(|(x, y)| expect(*x, *y)).collect();
    let bufs = vec![store(dtype, &x), store(dtype, &y), vec![0; x.len() * out.bytes()]];
    Case::new(label, func, bufs, vec![None, None, Some(store(out, &want))], (x.len() / lanes as usize) as i64)
}

#[test]
fn binary_floats() {
    type F = fn(f64, f64) -> f64;
    let ops: [(BinaryOp, F); 6] = [
        (BinaryOp::Add, |a, b| a + b),
        (BinaryOp::Sub, |a, b| a - b),
        (BinaryOp::Mul, |a, b| a * b),
        (BinaryOp::Div, |a, b| a / b),
        // the zeros count as equal, and the first one stays
        (BinaryOp::Min, |a, b| {
            if a.is_nan() || b.is_nan() {
                f64::NAN
            } else if b < a {
                b
            } else {
                a
            }
        }),
        (BinaryOp::Max, |a, b| {
            if a.is_nan() || b.is_nan() {
                f64::NAN
            } else if b > a {
                b
            } else {
                a
            }
        }),
    ];
    check(|lanes, backend| {
        let mut cases = Vec::new();
        for dtype in [DType::F32, DType::F64] {
            for (op, f) in ops {
                // f64 arithmetic on f32 values, rounded to f32, is f32 arithmetic
                let mut case = case2(
                    format!("{} {dtype}", op.name()),
                    lanes,
                    dtype,
                    pairs(dtype),
                    dtype,
                    |b, x, y| b.binary(op, x, y),
                    |x, y| match (x, y) {
                        (Num::F(x), Num::F(y)) => round(dtype, f(x, y)),
                        _ => x,
                    },
                );
                // a GPU orders the zeros
                case.near.any_zero = backend.target().simt && matches!(op, BinaryOp::Min | BinaryOp::Max);
                cases.push(case);
            }
        }
        cases
    });
}

/// What integer instructions do. The count of a right shift is one that machine form allows.
fn int_op(op: BinaryOp, dtype: DType, x: i128, y: i128) -> i128 {
    let r = match op {
        BinaryOp::Add => x + y,
        BinaryOp::Sub => x - y,
        BinaryOp::Mul => x.wrapping_mul(y),
        BinaryOp::And => x & y,
        BinaryOp::Or => x | y,
        BinaryOp::Xor => x ^ y,
        BinaryOp::Min => x.min(y),
        BinaryOp::Max => x.max(y),
        BinaryOp::Div => x.checked_div(y).unwrap_or(0),
        BinaryOp::Rem => x.checked_rem(y).unwrap_or(0),
        BinaryOp::Shl if !(0..i128::from(dtype.bits())).contains(&y) => 0,
        BinaryOp::Shl => x << y,
        BinaryOp::Shr => x >> y,
        _ => unreachable!(),
    };
    wrap(dtype, r)
}

#[test]
fn binary_ints() {
    use BinaryOp as B;
    let ops = [B::Add, B::Sub, B::Mul, B::And, B::Or, B::Xor, B::Min, B::Max, B::Div, B::Rem, B::Shl, B::Shr];
    check(|lanes, _| {
        let mut cases = Vec::new();
        for dtype in NUMBERS.into_iter().filter(|d| d.is_int()) {
            for op in ops {
                let (x, mut y) = pairs(dtype);
                if op == B::Shr {
                    for y in &mut y {
                        let Num::I(count) = *y else { continue };
                        *y = Num::I(count.rem_euclid(i128::from(dtype.bits())));
                    }
                }
                cases.push(case2(
                    format!("{} {dtype}", op.name()),
                    lanes,
                    dtype,
                    (x, y),
                    dtype,
                    |b, x, y| b.inst(Inst::Binary(op, x, y), b.ty(x)),
                    |x, y| match (x, y) {
                        (Num::I(x), Num::I(y)) => Num::I(int_op(op, dtype, x, y)),
                        _ => x,
                    },
                ));
            }
        }
        cases
    });
}

#[test]
fn shifts_by_one_count() {
    check(|lanes, _| {
        let mut cases = Vec::new();
        for dtype in NUMBERS.into_iter().filter(|d| d.is_int()) {
            for op in [BinaryOp::Shl, BinaryOp::Shr] {
                for constant in [false, true] {
                    // the count is 5, known or not
                    let five = vec![Num::I(5); 32];
                    let build = |b: &mut LoopBuilder, x: Val, y: Val| {
                        let ty = b.ty(x);
                        let count = if constant {
                            b.int(ty, 5)
                        } else {
                            let first = if lanes == 1 { y } else { b.extract(y, 0, 0) };
                            b.splat(first, 1, lanes)
                        };
                        b.binary(op, x, count)
                    };
                    let label = format!("{} {dtype} by 5", op.name());
                    let expect = |x, _| match x {
                        Num::I(x) => Num::I(int_op(op, dtype, x, 5)),
                        x => x,
                    };
                    cases.push(case2(label, lanes, dtype, (values(dtype), five), dtype, build, expect));
                }
            }
        }
        cases
    });
}

#[test]
fn constant_operands() {
    // what is known at compile time takes other ways: divisors, counts, bounds of clamps
    use BinaryOp as B;
    check(|lanes, _| {
        let mut cases = Vec::new();
        for dtype in NUMBERS {
            let some = values(dtype);
            for c in some.iter().take(24).copied() {
                let ops: &[B] =
                    if dtype.is_float() { &[B::Min, B::Max] } else { &[B::Div, B::Rem, B::Shl, B::Min] };
                for op in ops.iter().copied() {
                    let build = |b: &mut LoopBuilder, x: Val, _| {
                        let c = match c {
                            Num::F(c) => b.float(b.ty(x), c),
                            Num::I(c) => b.int(b.ty(x), c),
                        };
                        b.inst(Inst::Binary(op, x, c), b.ty(x))
                    };
                    let expect = |x, _| match (x, c) {
                        (Num::I(x), Num::I(c)) => Num::I(int_op(op, dtype, x, c)),
                        (Num::F(x), Num::F(c)) if x.is_nan() || c.is_nan() => Num::F(f64::NAN),
                        // adding zero makes the sign of zeros irrelevant below
                        (Num::F(x), Num::F(c)) => {
                            Num::F(if (c < x) == (op == B::Min) && c != x { c } else { x } + 0.0)
                        }
                        (x, _) => x,
                    };
                    let build = |b: &mut LoopBuilder, x: Val, y| {
                        let v = build(b, x, y);
                        if dtype.is_float() {
                            let zero = b.float(b.ty(x), 0.0);
                            return b.inst(Inst::Binary(B::Add, v, zero), b.ty(x));
                        }
                        v
                    };
                    let label = format!("{} {dtype} {c:?}", op.name());
                    cases.push(case2(
                        label,
                        lanes,
                        dtype,
                        (some.clone(), some.clone()),
                        dtype,
                        build,
                        expect,
                    ));
                }
            }
        }
        cases
    });
}

#[test]
fn reductions() {
    check(|lanes, _| {
        let n = lanes as usize;
        let mut cases = Vec::new();
        for dtype in NUMBERS.into_iter().chain([DType::Bool]) {
            for monoid in Monoid::ALL.iter().copied() {
                if dtype == DType::Bool && matches!(monoid, Monoid::Sum | Monoid::Prod) {
                    continue;
                }
                // small integers, whose sums and products are exact in any order; no zeros, which have two signs
                let small = |i: usize| [1, -2, 3, 1, -1, 2, 1][(i * 5 + i / 7) % 7];
                let input: Vec<_> = (0..32)
                    .map(|i| match dtype {
                        DType::Bool => Num::I(i128::from(i % 9 == 0 || i > 20)),
                        d if d.is_float() => Num::F(small(i) as f64 + if i == 17 { 0.5 } else { 0.0 }),
                        d => Num::I(wrap(d, small(i))),
                    })
                    .collect();
                let func = map(lanes, 32, &[(dtype, dtype)], dtype, |b, v| {
                    let one = b.reduce_cols(monoid, v[0]);
                    b.splat(one, 1, lanes)
                });
                let fold = |a: Num, b: &Num| match (a, *b) {
                    (Num::F(a), Num::F(b)) => Num::F(match monoid {
                        Monoid::Sum => a + b,
                        Monoid::Prod => a * b,
                        Monoid::Max => a.max(b),
                        Monoid::Min => a.min(b),
                    }),
                    (Num::I(a), Num::I(b)) => Num::I(int_op(monoid.op(), dtype, a, b)),
                    (a, _) => a,
                };
                let groups = input.chunks(n).map(|g| g[1..].iter().fold(g[0], fold));
                let want: Vec<_> = groups.flat_map(|x| vec![x; n]).collect();
                let bufs = vec![store(dtype, &input), vec![0; 32 * dtype.bytes()]];
                let expect = vec![None, Some(store(dtype, &want))];
                let label = format!("{} of {dtype}", monoid.name());
                cases.push(Case::new(label, func, bufs, expect, 32 / i64::from(lanes)));
            }
        }
        cases
    });
}

#[test]
fn fma() {
    check(|lanes, backend| {
        if !backend.target().has_fma {
            return Vec::new();
        }
        [DType::F32, DType::F64]
            .map(|dtype| {
                let mul = |x: f64, y: f64, z: f64| match dtype {
                    DType::F32 => f64::from((x as f32).mul_add(y as f32, z as f32)),
                    _ => x.mul_add(y, z),
                };
                case2(
                    format!("fma {dtype}"),
                    lanes,
                    dtype,
                    pairs(dtype),
                    dtype,
                    |b, x, y| b.fma(x, y, x),
                    |x, y| match (x, y) {
                        (Num::F(x), Num::F(y)) => Num::F(mul(x, y, x)),
                        _ => x,
                    },
                )
            })
            .into()
    });
}

fn compare(op: CmpOp, x: Num, y: Num) -> bool {
    let o = match (x, y) {
        (Num::F(x), Num::F(y)) => x.partial_cmp(&y),
        (Num::I(x), Num::I(y)) => x.partial_cmp(&y),
        _ => None,
    };
    match op {
        CmpOp::Eq => o.is_some_and(|o| o.is_eq()),
        CmpOp::Ne => o.is_none_or(|o| o.is_ne()),
        CmpOp::Lt => o.is_some_and(|o| o.is_lt()),
        CmpOp::Le => o.is_some_and(|o| o.is_le()),
        CmpOp::Gt => o.is_some_and(|o| o.is_gt()),
        CmpOp::Ge => o.is_some_and(|o| o.is_ge()),
    }
}

#[test]
fn comparisons_and_selects() {
    check(|lanes, _| {
        let mut cases = Vec::new();
        for dtype in NUMBERS {
            for op in CmpOp::ALL.iter().copied() {
                let label = format!("{} {dtype}", op.name());
                cases.push(case2(
                    label.clone(),
                    lanes,
                    dtype,
                    pairs(dtype),
                    DType::Bool,
                    |b, x, y| b.cmp(op, x, y),
                    |x, y| Num::I(compare(op, x, y).into()),
                ));
                // with strict comparisons these are the minimum and maximum instructions
                for swap in [false, true] {
                    cases.push(case2(
                        format!("select by {label}"),
                        lanes,
                        dtype,
                        pairs(dtype),
                        dtype,
                        |b, x, y| {
                            let m = b.cmp(op, x, y);
                            if swap { b.select(m, y, x) } else { b.select(m, x, y) }
                        },
                        |x, y| if compare(op, x, y) != swap { x } else { y },
                    ));
                }
            }
        }
        cases
    });
}

#[test]
fn masks() {
    use BinaryOp as B;
    check(|lanes, _| {
        let bits = |f: fn(usize) -> bool| (0..32).map(|i| Num::I(f(i).into())).collect::<Vec<_>>();
        let (x, y) = (bits(|i| i % 3 == 0), bits(|i| i % 2 == 0));
        let mut cases = Vec::new();
        for op in [B::And, B::Or, B::Xor] {
            let pair = (x.clone(), y.clone());
            let label = format!("{} bool", op.name());
            let expect = |x, y| match (x, y) {
                (Num::I(x), Num::I(y)) => Num::I(int_op(op, DType::U8, x, y)),
                _ => x,
            };
            cases.push(case2(
                label,
                lanes,
                DType::Bool,
                pair,
                DType::Bool,
                |b, x, y| b.binary(op, x, y),
                expect,
            ));
        }
        let build = |b: &mut LoopBuilder, x: Val, y: Val| {
            let not = b.not(y);
            b.select(x, not, y)
        };
        cases.push(case2(
            "not, select bool".into(),
            lanes,
            DType::Bool,
            (x, y),
            DType::Bool,
            build,
            |x, y| match (x, y) {
                (Num::I(x), Num::I(y)) => Num::I(x ^ y),
                _ => x,
            },
        ));
        cases
    });
}

/// Conversion of machine form: floats to integers saturate, NaN is 0; integers wrap.
fn convert(from: DType, to: DType, x: Num) -> Num {
    match (x, to.int_range()) {
        (Num::F(x), None) => round(to, x),
        (Num::F(x), Some(_)) if x.is_nan() => Num::I(0),
        (Num::F(x), Some((lo, hi))) => Num::I((x as i128).clamp(lo, hi)),
        (Num::I(x), Some(_)) => Num::I(wrap(to, x)),
        // through the wide type a large integer would be rounded twice
        (Num::I(x), None) if to == DType::F32 && from.is_signed_int() => Num::F(f64::from(x as i64 as f32)),
        (Num::I(x), None) if to == DType::F32 => Num::F(f64::from(x as u64 as f32)),
        (Num::I(x), None) if from.is_signed_int() => Num::F(x as i64 as f64),
        (Num::I(x), None) => Num::F(x as u64 as f64),
    }
}

#[test]
fn conversions() {
    check(|lanes, _| {
        let mut cases = Vec::new();
        for from in NUMBERS {
            let input = values(from);
            for to in NUMBERS.into_iter().filter(|to| *to != from) {
                let func = map(lanes, input.len(), &[(from, from)], to, |b, v| {
                    b.inst(Inst::Convert(ConvertMode::Plain, v[0]), Ty::vector(to, lanes))
                });
                let want: Vec<_> = input.iter().map(|x| convert(from, to, *x)).collect();
                let bufs = vec![store(from, &input), vec![0; input.len() * to.bytes()]];
                let trip = (input.len() / lanes as usize) as i64;
                cases.push(Case::new(
                    format!("{from} to {to}"),
                    func,
                    bufs,
                    vec![None, Some(store(to, &want))],
                    trip,
                ));
            }
        }
        cases
    });
}

#[test]
fn bit_casts() {
    check(|lanes, _| {
        let mut cases = Vec::new();
        for from in NUMBERS {
            for to in NUMBERS.into_iter().filter(|to| *to != from && to.bytes() == from.bytes()) {
                let input = store(from, &values(from));
                let func = map(lanes, 32, &[(from, from)], to, |b, v| b.bitcast(to, v[0]));
                let bufs = vec![input.clone(), vec![0; input.len()]];
                let trip = 32 / i64::from(lanes);
                cases.push(Case::new(format!("{from} as {to}"), func, bufs, vec![None, Some(input)], trip));
            }
        }
        cases
    });
}

#[test]
fn lanes_of_vectors() {
    check(|lanes, _| {
        if lanes == 1 {
            return Vec::new();
        }
        let n = lanes as usize;
        let trip = 32 / i64::from(lanes);
        let mut cases = Vec::new();
        for dtype in NUMBERS {
            let input = values(dtype);
            let mut push = |label: &str, func, want: Vec<Num>| {
                let bufs = vec![store(dtype, &input), vec![0; input.len() * dtype.bytes()]];
                cases.push(Case::new(
                    format!("{label} {dtype}"),
                    func,
                    bufs,
                    vec![None, Some(store(dtype, &want))],
                    trip,
                ));
            };
            for lane in 0..lanes {
                let func = map(lanes, 32, &[(dtype, dtype)], dtype, |b, v| {
                    let one = b.extract(v[0], 0, lane);
                    b.splat(one, 1, lanes)
                });
                push("extract, splat", func, (0..32).map(|i| input[i / n * n + lane as usize]).collect());
                let func = map(lanes, 32, &[(dtype, dtype)], dtype, |b, v| {
                    let one = b.extract(v[0], 0, 0);
                    b.insert(v[0], one, lane)
                });
                let from = |i: usize| if i % n == lane as usize { i / n * n } else { i };
                push("insert", func, (0..32).map(|i| input[from(i)]).collect());
            }
            for pick in [
                (0..lanes).rev().collect::<Vec<_>>(),
                (0..lanes).map(|i| i / 2 + if i % 2 == 1 { lanes } else { 0 }).collect(),
                (0..lanes).map(|i| (i + lanes / 2) % lanes).collect(),
                (0..lanes).map(|i| 2 * i).collect(),
                vec![lanes - 1; n],
            ] {
                // the second operand is the first one reversed
                let func = map(lanes, 32, &[(dtype, dtype)], dtype, |b, v| {
                    let reversed = b.shuffle(v[0], v[0], (0..lanes).rev().collect());
                    b.shuffle(v[0], reversed, pick.clone())
                });
                let source = |i: usize| match pick[i % n] {
                    lane if lane < lanes => i / n * n + lane as usize,
                    lane => i / n * n + (2 * lanes - 1 - lane) as usize,
                };
                push("shuffle", func, (0..32).map(|i| input[source(i)]).collect());
            }
            if matches!(dtype, DType::I32 | DType::I64) {
                let func = map(lanes, 32, &[(dtype, dtype)], dtype, |b, v| {
                    let iota = b.iota(b.ty(v[0]), true);
                    b.binary(BinaryOp::Add, v[0], iota)
                });
                let want = |i: usize| match input[i] {
                    Num::I(x) => Num::I(wrap(dtype, x + (i % n) as i128)),
                    x => x,
                };
                push("iota", func, (0..32).map(want).collect());
            }
        }
        // masks
        let bits: Vec<_> = (0..32).map(|i| Num::I(i128::from(i % 3 == 0))).collect();
        for lane in 0..lanes {
            let func = map(lanes, 32, &[(DType::Bool, DType::Bool)], DType::Bool, |b, v| {
                let one = b.extract(v[0], 0, lane);
                b.splat(one, 1, lanes)
            });
            let want: Vec<_> = (0..32).map(|i| bits[i / n * n + lane as usize]).collect();
            let bufs = vec![store(DType::Bool, &bits), vec![0; 32]];
            let expect = vec![None, Some(store(DType::Bool, &want))];
            cases.push(Case::new("extract, splat bool", func, bufs, expect, trip));
        }
        cases
    });
}

#[test]
fn dot_products_of_parts() {
    check(|lanes, backend| {
        let features = backend.target().features;
        let n = 32usize;
        let trip = n as i64 / i64::from(lanes.max(1));
        let mut cases = Vec::new();
        if lanes >= 8 && features.contains("+avx512vnni") {
            let bytes: Vec<u8> = (0..4 * n).map(|i| (i * 37 + 11) as u8).collect();
            let func =
                map(lanes, n, &[(DType::I32, DType::I32), (DType::I32, DType::I32)], DType::I32, |b, v| {
                    b.tile_op("vpdpbusd", v[0], v[0], v[1])
                });
            let want: Vec<u8> = (0..n)
                .flat_map(|i| {
                    let four = &bytes[4 * i..4 * i + 4];
                    let acc = i32::from_le_bytes(four.try_into().unwrap());
                    let dot: i32 = four.iter().map(|x| i32::from(*x) * i32::from(*x as i8)).sum();
                    acc.wrapping_add(dot).to_le_bytes()
                })
                .collect();
            let bufs = vec![bytes.clone(), bytes, vec![0; 4 * n]];
            cases.push(Case::new("vpdpbusd", func, bufs, vec![None, None, Some(want)], trip));
        }
        if lanes >= 8 && features.contains("+avx512bf16") {
            // 1 and 2 in the lanes of one operand, 3 in both of the other
            let parts: Vec<u8> = (0..n).flat_map(|_| 0x4000_3f80u32.to_le_bytes()).collect();
            let threes: Vec<u8> = (0..n).flat_map(|_| 0x4040_4040u32.to_le_bytes()).collect();
            let inputs = [(DType::F32, DType::F32), (DType::I32, DType::I32), (DType::I32, DType::I32)];
            let func = map(lanes, n, &inputs, DType::F32, |b, v| b.tile_op("vdpbf16ps", v[0], v[1], v[2]));
            let acc: Vec<u8> = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
            let want: Vec<u8> = (0..n).flat_map(|i| (i as f32 + 9.0).to_le_bytes()).collect();
            let bufs = vec![acc, parts, threes, vec![0; 4 * n]];
            cases.push(Case::new("vdpbf16ps", func, bufs, vec![None, None, None, Some(want)], trip));
        }
        cases
    });
}
