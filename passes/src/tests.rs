//! Differential tests: the graph by the reference interpreter, its kernels by [`crate::kernel_exec`].

use crate::{Options, Planned, Stage, State, run_until};
use interp::{Interp, Tolerance, compare};
use ir::build::{Builder, V};
use ir::prim::{Combine, Monoid, WindowDim};
use ir::target::TargetDesc;
use ir::testing;
use ir::{DType, Dim, Module, Tensor};

pub fn target() -> TargetDesc {
    TargetDesc {
        name: "test".into(),
        cpu: String::new(),
        features: String::new(),
        vector_bits: 512,
        vector_regs: 32,
        has_fma: true,
        has_masks: true,
        has_f16: true,
        simt: false,
        cache_line: 64,
        l1_bytes: 32 << 10,
        l2_bytes: 1 << 20,
        threads: 2,
    }
}

fn plan(module: &Module) -> Planned {
    match run_until(module.clone(), &target(), &Options::default(), Stage::Kernels) {
        Ok(State::Planned(p)) => p,
        Ok(_) => panic!("no kernels"),
        Err(e) => panic!("{e}"),
    }
}

/// Numbers that are not all alike: small, of both signs.
pub fn data(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let mut t = Tensor::zeros(dtype, shape.to_vec());
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    for i in 0..n {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = ((state >> 33) % 17) as f32 / 4.0 - 2.0;
        match dtype {
            DType::F32 => t.data[4 * i..][..4].copy_from_slice(&x.to_le_bytes()),
            DType::I64 => t.data[8 * i..][..8].copy_from_slice(&((state >> 40) as i64 % 3).to_le_bytes()),
            DType::Bool => t.data[i] = (state >> 35 & 1) as u8,
            _ => t.data[i] = (state >> 40) as u8,
        }
    }
    t
}

/// Runs both and compares; the plan, for structural checks.
pub fn check(module: &Module, inputs: &[Tensor]) -> Planned {
    let p = plan(module);
    let want = Interp::new(module).run(inputs).expect("the interpreter runs it");
    let got = crate::kernel_exec::execute(&p, inputs).unwrap_or_else(|e| panic!("{e}\n{}", show(&p)));
    for (g, w) in got.iter().zip(&want) {
        let c = compare(g, w, Tolerance::of(w.dtype));
        assert!(c.passes(), "{c:?}\n{}", show(&p));
    }
    p
}

fn show(p: &Planned) -> String {
    let names: Vec<&str> = p.kernels.iter().map(|k| k.name.as_str()).collect();
    format!("{names:?}\n{:#?}", p.steps)
}

/// Builds a graph of f32 inputs, with all sizes static and with all of them symbolic, and checks both.
fn check_f32(shapes: &[&[usize]], f: impl Fn(&mut Builder, &[V]) -> Vec<V>) -> Planned {
    let inputs: Vec<Tensor> = shapes.iter().zip(1..).map(|(s, i)| data(DType::F32, s, i)).collect();
    let build = |symbolic: bool| {
        let mut b = Builder::new("test");
        let mut dims = std::collections::BTreeMap::new();
        let xs: Vec<V> = shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| {
                let shape = shape
                    .iter()
                    .map(|&n| match symbolic && n > 1 {
                        // equal sizes are the same symbol
                        true => {
                            dims.entry(n).or_insert_with(|| b.symbol(format!("n{n}"), 0, 1 << 20)).clone()
                        }
                        false => Dim::from(n),
                    })
                    .collect();
                b.input(format!("x{i}"), DType::F32, shape)
            })
            .collect();
        let ys = f(&mut b, &xs);
        let outputs: Vec<(String, V)> =
            ys.into_iter().enumerate().map(|(i, y)| (format!("y{i}"), y)).collect();
        b.finish(&outputs).expect("well-formed")
    };
    check(&build(true), &inputs);
    check(&build(false), &inputs)
}

pub fn names(p: &Planned) -> Vec<&str> {
    p.kernels.iter().map(|k| k.name.as_str()).collect()
}

#[test]
fn elementwise_chain_is_one_kernel() {
    let p = check_f32(&[&[3, 5], &[5]], |b, x| {
        let y = b.add(x[0], x[1]).unwrap();
        let y = b.mul_scalar(y, 0.5).unwrap();
        let y = b.exp(y).unwrap();
        vec![b.transpose(y, &[1, 0]).unwrap()]
    });
    assert_eq!(p.kernels.len(), 1);
}

#[test]
fn matmul_takes_its_epilogue() {
    let p = check_f32(&[&[2, 3, 4], &[4, 6], &[6], &[2, 3, 6]], |b, x| {
        let y = b.matmul(x[0], x[1]).unwrap();
        let y = b.add(y, x[2]).unwrap();
        let y = b.tanh(y).unwrap();
        vec![b.add(y, x[3]).unwrap()]
    });
    assert_eq!(names(&p), ["contract_add_tanh_add"]);
}

#[test]
fn heads_split_without_division() {
    let p = check_f32(&[&[2, 3, 4], &[4, 12]], |b, x| {
        let y = b.matmul(x[0], x[1]).unwrap();
        let (n, s) = (b.shape(y)[0].clone(), b.shape(y)[1].clone());
        let (h, d) = (Dim::from(3), Dim::from(4));
        if b.shape(y)[2].as_const().is_none() {
            return vec![y];
        }
        let y = b.reshape(y, &[n, s, h, d]).unwrap();
        vec![b.transpose(y, &[0, 2, 1, 3]).unwrap()]
    });
    assert_eq!(names(&p), ["contract"]);
    crate::lower::space::for_each_dim(&p.kernels[0], &mut |d| assert!(!d.to_string().contains("div"), "{d}"));
}

#[test]
fn softmax_is_one_kernel() {
    let p = check_f32(&[&[2, 3, 7]], |b, x| vec![testing::softmax(b, x[0], 2).unwrap()]);
    assert_eq!(p.kernels.len(), 1, "{:?}", names(&p));
    assert_eq!(p.kernels[0].domain.len(), 2);
}

#[test]
fn layer_norm_of_a_matmul() {
    let p = check_f32(&[&[3, 4], &[4, 6], &[6]], |b, x| {
        let y = b.matmul(x[0], x[1]).unwrap();
        let y = b.add(y, x[2]).unwrap();
        let mean = b.reduce_mean(y, &[1], true).unwrap();
        let d = b.sub(y, mean).unwrap();
        let sq = b.mul(d, d).unwrap();
        let var = b.reduce_mean(sq, &[1], true).unwrap();
        let var = b.add_scalar(var, 1e-5).unwrap();
        let std = b.sqrt(var).unwrap();
        vec![b.div(d, std).unwrap()]
    });
    assert_eq!(p.kernels.len(), 2, "{:?}", names(&p));
}

#[test]
fn attention() {
    check_f32(&[&[2, 5, 12], &[2, 5, 12], &[2, 5, 12]], |b, x| {
        let (n, s) = (b.shape(x[0])[0].clone(), b.shape(x[0])[1].clone());
        if s.as_const().is_none() {
            return vec![x[0]];
        }
        let heads = |b: &mut Builder, v: V| {
            let y = b.reshape(v, &[n.clone(), s.clone(), Dim::from(3), Dim::from(4)]).unwrap();
            b.transpose(y, &[0, 2, 1, 3]).unwrap()
        };
        let (q, k, v) = (heads(b, x[0]), heads(b, x[1]), heads(b, x[2]));
        let k = b.transpose(k, &[0, 1, 3, 2]).unwrap();
        let y = b.matmul(q, k).unwrap();
        let y = b.mul_scalar(y, 0.5).unwrap();
        let p = testing::softmax(b, y, 3).unwrap();
        let y = b.matmul(p, v).unwrap();
        let y = b.transpose(y, &[0, 2, 1, 3]).unwrap();
        vec![b.reshape(y, &[n, s, Dim::from(12)]).unwrap()]
    });
}

fn window(stride: i64, pad: i64) -> WindowDim {
    WindowDim { stride, pad_lo: Dim::from(pad), pad_hi: Dim::from(pad), ..WindowDim::unit() }
}

#[test]
fn convolution_with_padding_and_pool() {
    check_f32(&[&[2, 3, 8, 9], &[4, 3, 3, 3], &[4, 1, 1]], |b, x| {
        let w = [window(1, 1), window(2, 1)];
        let y = b.convolve(x[0], x[1], &w, 1, DType::F32).unwrap();
        let y = b.add(y, x[2]).unwrap();
        let zero = b.scalar(DType::F32, 0.0).unwrap();
        let y = b.max(y, zero).unwrap();
        let pool = [window(2, 1), window(1, 0)];
        let m = b.window_reduce(Monoid::Max, y, &[3, 2], &pool).unwrap();
        let g = b.reduce_mean(m, &[2, 3], false).unwrap();
        vec![m, g]
    });
}

#[test]
fn grouped_and_transposed_convolution() {
    check_f32(&[&[1, 4, 5, 5], &[4, 1, 3, 3], &[6, 2, 2, 2]], |b, x| {
        let w = [window(1, 1), window(1, 1)];
        let y = b.convolve(x[0], x[1], &w, 4, DType::F32).unwrap();
        let mut t = window(1, 1);
        t.base_dilation = 2;
        let z = b.convolve(y, x[2], &[t.clone(), t], 2, DType::F32).unwrap();
        vec![y, z]
    });
}

#[test]
fn transposed_convolutions_are_dense() {
    let mut rng = ir::testing::Rng::new(5);
    for case in 0..24 {
        let mut pick = |lo: i64, hi: i64| rng.range(lo, hi);
        let groups = pick(1, 3);
        let shape = [2, 2 * groups as usize, pick(1, 5) as usize, pick(1, 5) as usize];
        let mut w = vec![];
        // few and many channels
        let channels = if case % 2 == 0 { 3 } else { 16 };
        let mut taps = vec![channels * groups as usize, 2];
        for _ in 0..2 {
            let (step, k) = (pick(1, 5), pick(1, 6));
            taps.push(k as usize);
            let (lo, hi) = (pick(0, k + 1), pick(k - 1, k + 2));
            let (pad_lo, pad_hi) = (Dim::from(lo), Dim::from(hi));
            w.push(WindowDim { base_dilation: step, pad_lo, pad_hi, ..WindowDim::unit() });
        }
        let p = check_f32(&[&shape, &taps], |b, x| {
            vec![b.convolve(x[0], x[1], &w, groups as usize, DType::F32).unwrap()]
        });
        let sizes = p.kernels.iter().flat_map(|k| &k.domain).filter(|a| a.extent.is_const(0)).count();
        assert_eq!(sizes, 0, "case {case}");
    }
}

#[test]
fn convolutions_of_one_element() {
    // all taps of a transposed convolution, and some of them
    for (pad, step) in [(3, 2), (2, 1)] {
        check_f32(&[&[3, 4, 1, 1], &[5, 4, 4, 4]], |b, x| {
            let d = WindowDim { base_dilation: step, ..window(1, pad) };
            vec![b.convolve(x[0], x[1], &[d.clone(), d], 1, DType::F32).unwrap()]
        });
    }
}

#[test]
fn wide_dilations() {
    for dilation in [5, 7, 12] {
        check_f32(&[&[1, 64, 12, 11], &[64, 64, 3, 3], &[64, 1, 1]], |b, x| {
            let d = WindowDim { dilation, ..window(1, dilation) };
            let y = b.convolve(x[0], x[1], &[d.clone(), d], 1, DType::F32).unwrap();
            let y = b.add(y, x[2]).unwrap();
            vec![b.tanh(y).unwrap()]
        });
    }
}

#[test]
fn interleaved_channels_lie_in_a_buffer() {
    // channels of a pixel shuffle: three at neighbouring places, which fill no vector
    let d = Dim::from;
    let mut b = Builder::new("shuffle");
    let x = b.input("x", DType::F32, [1, 4, 5, 6].map(d).to_vec());
    let k = b.input("k", DType::F32, [18, 4, 3, 3].map(d).to_vec());
    let y = b.convolve(x, k, &[window(1, 1), window(1, 1)], 1, DType::F32).unwrap();
    let y = b.reshape(y, &[1, 2, 3, 3, 5, 6].map(d)).unwrap();
    let y = b.transpose(y, &[0, 1, 4, 2, 5, 3]).unwrap();
    let y = b.reshape(y, &[1, 2, 15, 18].map(d)).unwrap();
    let m = b.finish(&[("y".into(), y)]).unwrap();
    let p = check(&m, &[data(DType::F32, &[1, 4, 5, 6], 3), data(DType::F32, &[18, 4, 3, 3], 4)]);
    assert!(names(&p).len() >= 2, "{:?}", names(&p));
}

#[test]
fn values_are_row_major_before_they_grow() {
    // an image of a segmentation: the result of the convolution is small, the resized output is not
    let d = Dim::from;
    let mut b = Builder::new("segment");
    let x = b.input("x", DType::F32, [1, 8, 4, 5].map(d).to_vec());
    let k = b.input("k", DType::F32, [6, 8, 3, 3].map(d).to_vec());
    let y = b.convolve(x, k, &[window(1, 1), window(1, 1)], 1, DType::F32).unwrap();
    let mut v = y;
    for axis in [3, 2] {
        let at: Vec<i64> = (0..12).map(|i| i / 3).collect();
        let at = b.vector_i64(&at).unwrap();
        let (near, far) = (b.gather(v, at, axis).unwrap(), b.gather(v, at, axis).unwrap());
        let far = b.exp(far).unwrap();
        v = b.add(near, far).unwrap();
    }
    let m = b.finish(&[("y".into(), v)]).unwrap();
    let p = check(&m, &[data(DType::F32, &[1, 8, 4, 5], 3), data(DType::F32, &[6, 8, 3, 3], 4)]);
    let layout = |elems: i64| {
        let of = |b: &&ir::kernel::Buffer| ir::Dim::product(&b.shape).is_const(elems);
        let found = p.kernels.iter().flat_map(|k| &k.buffers).find(of);
        found.map(|b| b.layout == ir::Layout::row_major(4))
    };
    // channels last behind the convolution, row-major from the first lookup on
    assert_eq!([layout(6 * 4 * 5), layout(6 * 4 * 12)], [Some(false), Some(true)]);
}

#[test]
fn lookups_of_expressions() {
    check_f32(&[&[1, 3, 4, 5]], |b, x| {
        let y = b.exp(x[0]).unwrap();
        let at = b.vector_i64(&[0, 0, 1, 1, 2, 2, 3, 3]).unwrap();
        vec![b.gather(y, at, 2).unwrap()]
    });
}

#[test]
fn movement() {
    check_f32(&[&[4, 6], &[2, 6]], |b, x| {
        let zero = b.scalar(DType::F32, 1.5).unwrap();
        let c = b.concat(&[x[0], x[1], x[0]], 0).unwrap();
        let r = b.reverse(c, 0).unwrap();
        let n = b.shape(r)[0].clone();
        let s = b.slice(r, &[Dim::from(1), Dim::from(0)], &[Dim::from(3), Dim::from(2)], &[2, 3]).unwrap();
        let d = Dim::from;
        let p = b.pad(s, zero, &[d(1), d(-1)], &[d(0), d(2)], &[1, 0]).unwrap();
        let e = b.pad_mode(x[0], ir::PadMode::Reflect, &[d(2), d(0)], &[d(1), d(3)]).unwrap();
        let w = b.pad_mode(x[0], ir::PadMode::Wrap, &[d(2), d(0)], &[d(1), d(3)]).unwrap();
        let g = b.pad_mode(x[0], ir::PadMode::Edge, &[d(2), d(0)], &[d(1), d(3)]).unwrap();
        let u = b.update_slice(r, s, &[d(2), d(1)]).unwrap();
        let _ = n;
        vec![p, e, w, g, u, c]
    });
}

#[test]
fn concat_pieces_are_computed_in_place() {
    let p = check_f32(&[&[8, 6], &[6, 6]], |b, x| {
        let e = b.exp(x[0]).unwrap();
        let m = b.matmul(x[0], x[1]).unwrap();
        let parts = [e, m, x[1]];
        let c = b.concat(&parts, 0).unwrap();
        let t = b.tanh(e).unwrap();
        vec![c, t]
    });
    assert!(names(&p).len() <= 4, "{:?}", names(&p));
}

#[test]
fn indexed_ops() {
    for axis in 0..2 {
        let mut b = Builder::new("gather");
        let x = b.input("x", DType::F32, vec![Dim::from(3), Dim::from(4)]);
        let i = b.input("i", DType::I64, vec![Dim::from(2), Dim::from(5)]);
        let y = b.gather(x, i, axis).unwrap();
        let y = b.exp(y).unwrap();
        let m = b.finish(&[("y".into(), y)]).unwrap();
        check(&m, &[data(DType::F32, &[3, 4], 1), data(DType::I64, &[2, 5], 2)]);
    }
    for combine in [Combine::Set, Combine::Add, Combine::Max] {
        let mut b = Builder::new("scatter");
        let x = b.input("x", DType::F32, vec![Dim::from(3), Dim::from(4)]);
        let i = b.input("i", DType::I64, vec![Dim::from(5)]);
        let u = b.input("u", DType::F32, vec![Dim::from(5), Dim::from(4)]);
        let y = b.tanh(x).unwrap();
        let y = b.scatter(y, i, u, combine).unwrap();
        let y = b.neg(y).unwrap();
        let m = b.finish(&[("y".into(), y)]).unwrap();
        check(&m, &[data(DType::F32, &[3, 4], 1), data(DType::I64, &[5], 2), data(DType::F32, &[5, 4], 3)]);
    }
}

#[test]
fn reductions_and_scans() {
    check_f32(&[&[3, 4, 5]], |b, x| {
        let a = b.arg_reduce(x[0], true, 1, false).unwrap();
        let l = b.arg_reduce(x[0], false, 2, true).unwrap();
        let c = b.cumulative(Monoid::Sum, x[0], 1, true, true).unwrap();
        let d = b.cumulative(Monoid::Max, x[0], 0, false, false).unwrap();
        let s = b.reduce_sum(x[0], &[0, 2], false).unwrap();
        let t = b.reduce_max(x[0], &[0, 1, 2], false).unwrap();
        let n = b.reduce_sum(x[0], &[1], false).unwrap();
        let n = b.reduce_max(n, &[0], false).unwrap();
        vec![a, l, c, d, s, t, n]
    });
}

#[test]
fn selection() {
    let mut b = Builder::new("select");
    let n = b.symbol("n", 0, 100);
    let x = b.input("x", DType::F32, vec![n]);
    let zero = b.scalar(DType::F32, 0.0).unwrap();
    let mask = b.gt(x, zero).unwrap();
    let at = b.compact(mask).unwrap();
    let y = b.gather(x, at, 0).unwrap();
    let z = b.mul(y, y).unwrap();
    let s = b.sort(&[x], 0, true).unwrap();
    let m = b.finish(&[("i".into(), at), ("z".into(), z), ("s".into(), s[0])]).unwrap();
    for n in [0, 1, 9] {
        check(&m, &[data(DType::F32, &[n], 3)]);
    }
}

#[test]
fn constants_are_computed_once() {
    let mut b = Builder::new("constants");
    let x = b.input("x", DType::F32, vec![Dim::from(2), Dim::from(300)]);
    let shape = [Dim::from(300), Dim::from(300)];
    let w = b.random_constant(DType::F32, &[300, 300], 7, 0.0, 1.0).unwrap();
    let w = b.mul_scalar(w, 0.5).unwrap();
    let w = b.transpose(w, &[1, 0]).unwrap();
    let _ = shape;
    let y = b.matmul(x, w).unwrap();
    let m = b.finish(&[("y".into(), y)]).unwrap();
    let p = check(&m, &[data(DType::F32, &[2, 300], 1)]);
    assert_eq!(p.init.len(), 1, "{:?}", p.init);
}

#[test]
fn zero_sizes() {
    check_f32(&[&[0, 3], &[3, 0]], |b, x| {
        let y = b.matmul(x[0], x[1]).unwrap();
        let z = b.matmul(x[1], x[0]).unwrap();
        let s = b.reduce_sum(x[0], &[0], false).unwrap();
        let r = b.reshape(x[0], &[Dim::from(3), Dim::from(0)]).ok();
        let mut out = vec![y, z, s];
        out.extend(r);
        out
    });
}

#[test]
fn branches() {
    let mut b = Builder::new("if");
    let n = b.symbol("n", 0, 100);
    let x = b.input("x", DType::F32, vec![n.clone(), Dim::from(3)]);
    let c = b.input("c", DType::Bool, vec![]);
    let y = b.if_(c, |b| Ok::<_, ir::IrError>(vec![b.exp(x)?]), |b| Ok(vec![b.concat(&[x, x], 0)?])).unwrap();
    let z = b.neg(y[0]).unwrap();
    let m = b.finish(&[("z".into(), z), ("y".into(), y[0])]).unwrap();
    for (n, c) in [(4, 0), (4, 1), (0, 0)] {
        check(&m, &[data(DType::F32, &[n, 3], 1), Tensor::new(DType::Bool, vec![], vec![c])]);
    }
}

#[test]
fn loops() {
    use ir::build::LoopStep;
    // two carried values of which one grows, the other swaps with a third; scans; a nested branch
    let mut b = Builder::new("loop");
    let n = b.symbol("n", 0, 100);
    let x = b.input("x", DType::F32, vec![n, Dim::from(2)]);
    let row = b.input("row", DType::F32, vec![Dim::from(1), Dim::from(2)]);
    let other = b.input("other", DType::F32, vec![Dim::from(1), Dim::from(2)]);
    let trip = b.input("trip", DType::I64, vec![]);
    let results = b
        .loop_(Some(trip), None, &[x, row, other], |b, i, c| {
            let grown = b.concat(&[c[0], c[1]], 0)?;
            let i = b.convert(i, DType::F32)?;
            let i = b.broadcast_to(i, &[Dim::from(1), Dim::from(2)])?;
            let next = b.add(c[1], i)?;
            let sum = b.reduce_sum(grown, &[0], false)?;
            let limit = b.scalar(DType::F32, 1e3)?;
            let all = b.reduce_sum(grown, &[0, 1], false)?;
            let cond = b.lt(all, limit)?;
            Ok::<_, ir::IrError>(LoopStep { cond, carried: vec![grown, c[2], next], scans: vec![sum, i] })
        })
        .unwrap();
    let outputs: Vec<(String, V)> = results.iter().enumerate().map(|(i, &v)| (format!("y{i}"), v)).collect();
    let m = b.finish(&outputs).unwrap();
    for (n, trip) in [(2, 0i64), (2, 1), (3, 5), (0, 7)] {
        let inputs = [
            data(DType::F32, &[n, 2], 1),
            data(DType::F32, &[1, 2], 2),
            data(DType::F32, &[1, 2], 3),
            Tensor::from_i64(vec![], &[trip]),
        ];
        check(&m, &inputs);
    }
}

#[test]
fn winograd_convolution() {
    // ragged tiles, a residual, and a shape whose tiles are whole
    for (h, w, pad) in [(13, 18, 1), (12, 16, 1), (14, 17, 0)] {
        let mut b = Builder::new("winograd");
        let d = Dim::from;
        let n = b.symbol("n", 1, 8);
        let x = b.input("x", DType::F32, vec![n, d(32), d(h), d(w)]);
        let y = b.tanh(x).unwrap();
        let k = b.random_constant(DType::F32, &[40, 32, 3, 3], 7, 0.0, 0.1).unwrap();
        let bias = b.random_constant(DType::F32, &[40, 1, 1], 8, 0.0, 1.0).unwrap();
        let y = b.convolve(y, k, &[window(1, pad), window(1, pad)], 1, DType::F32).unwrap();
        let y = b.add(y, bias).unwrap();
        let y = b.exp(y).unwrap();
        let k = b.random_constant(DType::F32, &[32, 40, 3, 3], 9, 0.0, 0.1).unwrap();
        let z = b.convolve(y, k, &[window(1, 1), window(1, 1)], 1, DType::F32).unwrap();
        let z = if pad == 1 { b.add(z, x).unwrap() } else { z };
        let m = b.finish(&[("z".into(), z)]).unwrap();
        let p = check(&m, &[data(DType::F32, &[1, 32, h as usize, w as usize], 3)]);
        let products = names(&p).iter().filter(|n| **n == "winograd_products").count();
        assert!(products >= 1, "{:?}", names(&p));
    }
}

/// A convolution of `[2, 64, h, w]` with `k x k` taps after and before something elementwise.
fn filtered(h: i64, w: i64, k: i64, window: [WindowDim; 2]) -> Planned {
    let mut b = Builder::new("filtered");
    let d = Dim::from;
    let x = b.input("x", DType::F32, vec![d(2), d(64), d(h), d(w)]);
    let y = b.tanh(x).unwrap();
    let weights = b.random_constant(DType::F32, &[72, 64, k as usize, k as usize], 7, 0.0, 0.1).unwrap();
    let bias = b.random_constant(DType::F32, &[72, 1, 1], 8, 0.0, 1.0).unwrap();
    let y = b.convolve(y, weights, &window, 1, DType::F32).unwrap();
    let y = b.add(y, bias).unwrap();
    let y = b.tanh(y).unwrap();
    let m = b.finish(&[("y".into(), y)]).unwrap();
    let inputs = [data(DType::F32, &[2, 64, h as usize, w as usize], 3)];
    let p = plan(&m);
    let want = Interp::new(&m).run(&inputs).unwrap();
    let got = crate::kernel_exec::execute(&p, &inputs).unwrap_or_else(|e| panic!("{e}\n{}", show(&p)));
    // results before `tanh` are about 3 in size, with errors of 1e-5 of that
    let c = compare(&got[0], &want[0], Tolerance { abs: 1e-4, ..Tolerance::of(DType::F32) });
    assert!(c.passes(), "{c:?}\n{}", show(&p));
    p
}

#[test]
fn winograd_with_other_filters() {
    // ragged tiles and whole ones, with padding and without
    for (h, w, k, pad) in [
        (21, 17, 2, 0),
        (18, 23, 2, 1),
        (13, 9, 4, 1),
        (12, 12, 5, 2),
        (14, 13, 6, 0),
        (16, 16, 7, 0),
        (11, 10, 7, 3),
    ] {
        let p = filtered(h, w, k, [window(1, pad), window(1, pad)]);
        assert!(names(&p).contains(&"winograd_products"), "{k}: {:?}", names(&p));
    }
}

#[test]
fn convolution_of_mostly_padding() {
    for (h, w, k) in [(5, 6, 5), (4, 4, 3)] {
        let mut b = Builder::new("col2im");
        let d = Dim::from;
        let n = b.symbol("n", 1, 8);
        let x = b.input("x", DType::F32, vec![n, d(32), d(h), d(w)]);
        let y = b.tanh(x).unwrap();
        let weights = b.random_constant(DType::F32, &[40, 32, k as usize, k as usize], 7, 0.0, 0.1).unwrap();
        let bias = b.random_constant(DType::F32, &[40, 1, 1], 8, 0.0, 1.0).unwrap();
        let y = b.convolve(y, weights, &[window(1, k - 1), window(1, k - 1)], 1, DType::F32).unwrap();
        let y = b.add(y, bias).unwrap();
        let y = b.tanh(y).unwrap();
        let m = b.finish(&[("y".into(), y)]).unwrap();
        let p = check(&m, &[data(DType::F32, &[2, 32, h as usize, w as usize], 3)]);
        assert!(names(&p).contains(&"tap_products"), "{:?}", names(&p));
    }
}

#[test]
fn phases_of_a_transposed_convolution_in_tiles() {
    // one convolution for all phases, whose places are interleaved afterwards
    let dim = || WindowDim { base_dilation: 2, ..window(1, 2) };
    let p = filtered(16, 16, 4, [dim(), dim()]);
    assert!(names(&p).contains(&"winograd_contributions"), "{:?}", names(&p));
    assert_eq!(names(&p).iter().filter(|n| **n == "winograd_products").count(), 1);
}

#[test]
fn overlapping_tiles() {
    // whole tiles of the input and ragged ones; places before the first tap are cropped
    for (h, w, k, lo, hi) in
        [(10, 10, 7, 6, 6), (6, 4, 7, 6, 6), (4, 4, 7, 4, 4), (6, 3, 4, 3, 3), (5, 7, 5, 4, 5)]
    {
        let dim = || WindowDim { pad_hi: Dim::from(hi), ..window(1, lo) };
        let p = filtered(h, w, k, [dim(), dim()]);
        assert!(names(&p).contains(&"winograd_contributions"), "{h} {w} {k}: {:?}", names(&p));
    }
}
