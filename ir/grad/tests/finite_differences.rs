//! Derivatives against differences of the interpreter's results, in f64.

use interp::Interp;
use ir::build::{Builder, LoopStep, V};
use ir::prim::{BinaryOp, Combine, Monoid, PadMode, UnaryOp, WindowDim};
use ir::testing::{Options, Rng, random_graph};
use ir::{ConstData, ConstSource, DType, Dim, Graph, IrError, Module, OpId, Prim, Tensor, ValueId};
use kernelsmith_grad::{GradError, differentiate, gradient};

fn f64s(t: &Tensor) -> Vec<f64> {
    t.data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn tensor(shape: &[usize], xs: &[f64]) -> Tensor {
    Tensor::new(DType::F64, shape.to_vec(), xs.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// The sum of output 0.
fn value(m: &Module, inputs: &[Tensor]) -> f64 {
    let out = Interp::new(m).run(inputs).unwrap_or_else(|e| panic!("{e}\n{}", ir::text::graph::print(m)));
    f64s(&out[0]).iter().sum()
}

fn moved(inputs: &[Tensor], by: &[Option<Vec<f64>>], h: f64) -> Vec<Tensor> {
    inputs
        .iter()
        .zip(by)
        .map(|(t, d)| match d {
            Some(d) => tensor(&t.shape, &f64s(t).iter().zip(d).map(|(x, d)| x + h * d).collect::<Vec<_>>()),
            None => t.clone(),
        })
        .collect()
}

/// Directional derivative by central differences; `None` where the function is not smooth here.
fn difference(m: &Module, inputs: &[Tensor], by: &[Option<Vec<f64>>]) -> Option<f64> {
    let at = |h: f64| value(m, &moved(inputs, by, h));
    let h = 1e-5;
    let (centre, left, right) = (at(0.0), at(-h), at(h));
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-3 * (1.0 + a.abs().max(b.abs()));
    let (a, b) = ((right - centre) / h, (centre - left) / h);
    let fine = (at(h / 8.0) - at(-h / 8.0)) / (h / 4.0);
    let d = (right - left) / (2.0 * h);
    (d.is_finite() && near(a, b) && near(d, fine)).then_some(d)
}

/// Compares along random directions; false where every direction meets a kink.
fn agrees(m: &Module, inputs: &[Tensor], what: &str) -> bool {
    let floats: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].dtype == DType::F64).collect();
    let d = differentiate(m.clone(), 0, &floats).unwrap_or_else(|e| panic!("{what}: {e}"));
    ir::verify::graph::verify(&d).unwrap_or_else(|e| panic!("{what}: {e}"));
    let out =
        Interp::new(&d).run(inputs).unwrap_or_else(|e| panic!("{what}: {e}\n{}", ir::text::graph::print(&d)));
    let grads = &out[m.graph.outputs.len()..];
    let mut rng = Rng::new(inputs.len() as u64 + 17);
    let mut tried = false;
    for _ in 0..3 {
        let by: Vec<Option<Vec<f64>>> = inputs
            .iter()
            .map(|t| {
                (t.dtype == DType::F64)
                    .then(|| (0..t.elems()).map(|_| rng.range(-100, 100) as f64 / 100.0).collect())
            })
            .collect();
        let Some(want) = difference(m, inputs, &by) else { continue };
        let mut got = 0.0;
        for (g, &i) in grads.iter().zip(&floats) {
            assert_eq!(g.shape, inputs[i].shape, "{what}: input {i}");
            got += f64s(g).iter().zip(by[i].as_ref().unwrap()).map(|(g, d)| g * d).sum::<f64>();
        }
        tried = true;
        assert!(
            (got - want).abs() <= 1e-4 * (1.0 + want.abs()),
            "{what}: {got} instead of {want}\n{}",
            ir::text::graph::print(&d)
        );
    }
    tried
}

/// Numbers away from each other and from zero, in `lo..hi`.
fn numbers(shape: &[usize], lo: f64, hi: f64, seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let mut rng = Rng::new(seed);
    let mut places: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        places.swap(i, rng.below(i + 1));
    }
    let xs: Vec<f64> = places
        .iter()
        .map(|&p| lo + (hi - lo) * (p as f64 + 0.3 + rng.below(40) as f64 / 100.0) / n as f64)
        .collect();
    tensor(shape, &xs)
}

type Body<'a> = &'a dyn Fn(&mut Builder, &[V]) -> Result<V, IrError>;

/// A function of inputs of these shapes, weighted so that every element of the result counts differently.
fn check(what: &str, shapes: &[&[usize]], range: (f64, f64), body: Body) {
    let mut b = Builder::new("f");
    let xs: Vec<V> = shapes
        .iter()
        .enumerate()
        .map(|(i, s)| b.input(format!("x{i}"), DType::F64, s.iter().map(|&d| Dim::from(d)).collect()))
        .collect();
    let y = body(&mut b, &xs).unwrap_or_else(|e| panic!("{what}: {e}"));
    let m = weighted(b, y, what);
    let inputs: Vec<Tensor> =
        shapes.iter().enumerate().map(|(i, s)| numbers(s, range.0, range.1, 7 + i as u64)).collect();
    assert!(agrees(&m, &inputs, what), "{what}: no smooth direction");
}

fn weighted(mut b: Builder, y: V, what: &str) -> Module {
    let done = (|| -> Result<V, IrError> {
        let n = b.shape(y).to_vec();
        let flat = b.reshape(y, &[Dim::product(&n)])?;
        let shape = b.shape(flat).to_vec();
        let w = b.iota(DType::F64, &shape, 0)?;
        let w = b.sin(w)?;
        let w = b.add_scalar(w, 1.7)?;
        let y = b.mul(flat, w)?;
        b.reduce_sum(y, &[0], false)
    })();
    let y = done.unwrap_or_else(|e| panic!("{what}: {e}"));
    b.finish(&[("y".to_string(), y)]).unwrap()
}

#[test]
fn elementwise() {
    use UnaryOp as U;
    for &op in U::ALL.iter().filter(|&&op| op != U::Not) {
        let range = if op == U::Acosh { (1.2, 3.0) } else { (0.1, 0.9) };
        check(op.name(), &[&[2, 5]], range, &|b, x| b.unary(op, x[0]));
    }
    check("abs of negatives", &[&[5]], (-2.0, -0.5), &|b, x| b.abs(x[0]));
    use BinaryOp as B;
    for op in [B::Add, B::Sub, B::Mul, B::Div, B::Rem, B::Pow, B::Atan2, B::Min, B::Max] {
        check(op.name(), &[&[3, 4], &[4]], (0.3, 2.6), &|b, x| b.binary(op, x[0], x[1]));
    }
    check("select", &[&[4], &[4]], (-1.0, 1.0), &|b, x| {
        let c = b.lt(x[0], x[1])?;
        let sq = b.mul(x[0], x[0])?;
        b.select(c, sq, x[1])
    });
    check("one value twice", &[&[4]], (-1.0, 1.0), &|b, x| b.mul(x[0], x[0]));
}

fn dims(d: &[i64]) -> Vec<Dim> {
    d.iter().map(|&x| Dim::from(x)).collect()
}

#[test]
fn movement() {
    check("reshape, transpose", &[&[2, 3, 4]], (-1.0, 1.0), &|b, x| {
        let t = b.transpose(x[0], &[2, 0, 1])?;
        b.reshape(t, &dims(&[8, 3]))
    });
    check("broadcast", &[&[3, 1]], (-1.0, 1.0), &|b, x| b.broadcast(x[0], &dims(&[2, 3, 5]), &[1, 2]));
    check("slice", &[&[7, 9]], (-1.0, 1.0), &|b, x| b.slice(x[0], &dims(&[1, 8]), &dims(&[3, 4]), &[2, -2]));
    check("empty slice", &[&[7]], (-1.0, 1.0), &|b, x| {
        let none = b.slice(x[0], &dims(&[3]), &dims(&[0]), &[2])?;
        b.concat(&[none, x[0]], 0)
    });
    check("pad", &[&[4, 5], &[]], (-1.0, 1.0), &|b, x| {
        b.pad(x[0], x[1], &dims(&[2, -1]), &dims(&[-1, 3]), &[1, 2])
    });
    for mode in [PadMode::Edge, PadMode::Reflect, PadMode::Wrap] {
        check(mode.name(), &[&[4, 3]], (-1.0, 1.0), &|b, x| {
            b.pad_mode(x[0], mode, &dims(&[3, 1]), &dims(&[2, 0]))
        });
    }
    check("concat", &[&[2, 3], &[2, 1]], (-1.0, 1.0), &|b, x| b.concat(&[x[0], x[1], x[0]], 1));
    check("update_slice", &[&[5, 4], &[2, 3]], (-1.0, 1.0), &|b, x| {
        b.update_slice(x[0], x[1], &dims(&[2, 1]))
    });
}

#[test]
fn indexed() {
    let index = |b: &mut Builder, v: &[i64]| b.vector_i64(v);
    check("gather", &[&[3, 4, 2]], (-1.0, 1.0), &|b, x| {
        let i = index(b, &[1, 3, 1, 0, 1, 2])?;
        let i = b.reshape(i, &dims(&[2, 3]))?;
        b.gather(x[0], i, 1)
    });
    for combine in [Combine::Set, Combine::Add, Combine::Mul, Combine::Min, Combine::Max] {
        check(combine.name(), &[&[4, 3], &[5, 3]], (0.5, 2.0), &|b, x| {
            let i = index(b, &[2, 0, 2, 3, 0])?;
            b.scatter(x[0], i, x[1], combine)
        });
    }
    for descending in [false, true] {
        check("sort", &[&[3, 5], &[3, 5]], (-1.0, 1.0), &|b, x| {
            let s = b.sort(&[x[0], x[1]], 1, descending)?;
            b.mul(s[0], s[1])
        });
        check("top_k", &[&[4, 5, 2]], (-1.0, 1.0), &|b, x| {
            Ok(b.top_k(x[0], 1, &Dim::from(3), descending)?.0)
        });
    }
}

#[test]
fn reductions_and_windows() {
    for monoid in [Monoid::Sum, Monoid::Prod, Monoid::Max, Monoid::Min] {
        check(monoid.name(), &[&[3, 4, 2]], (-1.5, 1.5), &|b, x| b.reduce(monoid, x[0], &[0, 2], false));
    }
    check("product with a zero", &[&[4]], (-1.0, 1.0), &|b, x| {
        let zero = b.constant(tensor(&[4], &[1.0, 0.0, 1.0, 1.0]))?;
        let x = b.mul(x[0], zero)?;
        b.reduce_prod(x, &[0], false)
    });
    for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
        check("running sum", &[&[3, 4]], (-1.0, 1.0), &|b, x| {
            b.cumulative(Monoid::Sum, x[0], 1, exclusive, reverse)
        });
    }
    for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
        check("running product", &[&[3, 5]], (-1.5, 1.5), &|b, x| {
            // one element is 0
            let zero = b.constant(tensor(&[5], &[1.0, 1.0, 0.0, 1.0, 1.0]))?;
            let x = b.mul(x[0], zero)?;
            b.cumulative(Monoid::Prod, x, 1, exclusive, reverse)
        });
    }
    for monoid in [Monoid::Sum, Monoid::Max, Monoid::Min] {
        for (i, w) in windows().into_iter().enumerate() {
            check(&format!("window {} {i}", monoid.name()), &[&[2, 7, 6]], (-1.0, 1.0), &|b, x| {
                b.window_reduce(monoid, x[0], &[3, 2], &w)
            });
        }
    }
}

fn windows() -> Vec<[WindowDim; 2]> {
    let w = |stride, lo: i64, hi: i64, dilation, base_dilation| WindowDim {
        stride,
        pad_lo: Dim::from(lo),
        pad_hi: Dim::from(hi),
        dilation,
        base_dilation,
    };
    vec![
        [w(1, 0, 0, 1, 1), w(1, 0, 0, 1, 1)],
        [w(2, 1, 1, 1, 1), w(3, 0, 1, 1, 1)],
        [w(1, 2, 0, 2, 1), w(2, 1, 1, 3, 1)],
        [w(1, 0, 2, 1, 2), w(2, 1, 0, 1, 2)],
        [w(2, -1, 1, 1, 1), w(2, 2, -2, 2, 2)],
    ]
}

#[test]
fn contractions() {
    check("matrix product", &[&[3, 4], &[4, 5]], (-1.0, 1.0), &|b, x| b.matmul(x[0], x[1]));
    check("batched, transposed", &[&[5, 2, 3, 4], &[3, 4, 5, 6]], (-1.0, 1.0), &|b, x| {
        b.contract(x[0], x[1], &[(2, 0)], &[(3, 1), (0, 2)], DType::F64)
    });
    check("outer product", &[&[3], &[2, 2]], (-1.0, 1.0), &|b, x| {
        b.contract(x[0], x[1], &[], &[], DType::F64)
    });
    for (i, w) in windows().into_iter().enumerate() {
        check(&format!("convolution {i}"), &[&[2, 4, 7, 6], &[6, 2, 3, 2]], (-1.0, 1.0), &|b, x| {
            b.convolve(x[0], x[1], &w, 2, DType::F64)
        });
    }
}

#[test]
fn control() {
    check("composite", &[&[3, 4]], (-1.0, 1.0), &|b, x| {
        let out = b.call::<IrError>("f", vec![], &[x[0], x[0]], |b, a| {
            let e = b.exp(a[0])?;
            Ok(vec![b.mul(e, a[1])?])
        })?;
        Ok(out[0])
    });
    for flip in [false, true] {
        check("branches", &[&[4], &[4]], (-1.0, 1.0), &|b, x| {
            let c = b.scalar(DType::Bool, if flip { 0.0 } else { 1.0 })?;
            let out = b.if_::<IrError>(
                c,
                |b| Ok(vec![b.mul(x[0], x[1])?, x[0]]),
                |b| {
                    let e = b.exp(x[1])?;
                    Ok(vec![e, b.mul(e, x[0])?])
                },
            )?;
            b.add(out[0], out[1])
        });
    }
    for trips in [0, 1, 4] {
        check(&format!("loop of {trips}"), &[&[3], &[3]], (-0.5, 0.5), &|b, x| {
            let n = b.scalar_i64(trips)?;
            let out = b.loop_::<IrError>(Some(n), None, &[x[0]], |b, i, c| {
                let i = b.convert(i, DType::F64)?;
                let s = b.mul(c[0], x[1])?;
                let s = b.sin(s)?;
                let s = b.add(s, i)?;
                let cond = b.scalar(DType::Bool, 1.0)?;
                Ok(LoopStep { cond, carried: vec![s], scans: vec![b.mul(s, x[1])?] })
            })?;
            let sum = b.reduce_sum(out[1], &[0], false)?;
            b.add(out[0], sum)
        });
    }
    check("loop until a condition", &[&[3]], (0.5, 1.0), &|b, x| {
        let out = b.loop_::<IrError>(None, None, &[x[0]], |b, i, c| {
            let two = b.scalar_i64(2)?;
            let cond = b.lt(i, two)?;
            Ok(LoopStep { cond, carried: vec![b.mul(c[0], c[0])?], scans: vec![] })
        })?;
        Ok(out[0])
    });
}

#[test]
fn twice() {
    let mut b = Builder::new("f");
    let x = b.input("x", DType::F64, dims(&[3]));
    let c = b.mul(x, x).unwrap();
    let c = b.mul(c, x).unwrap();
    let d = gradient(&mut b, c, &[x]).unwrap()[0];
    let dd = gradient(&mut b, d, &[x]).unwrap()[0];
    let m = b.finish(&[("dd".into(), dd)]).unwrap();
    let out = Interp::new(&m).run(&[tensor(&[3], &[1.0, -2.0, 0.5])]).unwrap();
    assert_eq!(f64s(&out[0]), [6.0, -12.0, 3.0]);
}

#[test]
fn what_has_no_derivative_is_named() {
    let mut b = Builder::new("f");
    b.set_origin(ir::Origin { node: "bits".into(), op_type: "BitCast".into(), opset: 1 });
    let x = b.input("x", DType::F64, dims(&[3]));
    let i = b.input("i", DType::I64, dims(&[3]));
    let y = b.bitcast(x, DType::I64).unwrap();
    let y = b.bitcast(y, DType::F64).unwrap();
    let z = b.bitcast(x, DType::F64).unwrap();
    // integers between: no path for a derivative
    assert!(gradient(&mut b, y, &[x]).is_ok());
    assert!(gradient(&mut b, z, &[x]).is_ok());
    assert!(matches!(gradient(&mut b, y, &[i]), Err(GradError::Value { .. })));
    let p = b.window_reduce(Monoid::Prod, x, &[2], &[WindowDim::unit()]).unwrap();
    let e = gradient(&mut b, p, &[x]).unwrap_err();
    assert_eq!(e.to_string(), "window_reduce has no derivative here: products over windows (node \"bits\")");
}

/// Every f32 as f64, so that differences are not drowned in rounding.
fn widen(m: &mut Module) {
    fn graph(g: &mut Graph) {
        let wide = |d: &mut DType| {
            if *d == DType::F32 {
                *d = DType::F64;
            }
        };
        for i in 0..g.value_count() {
            wide(&mut g[ValueId(i as u32)].ty.dtype);
        }
        for i in 0..g.op_count() {
            let op = &mut g[OpId(i as u32)];
            match &mut op.prim {
                Prim::Iota { dtype: d, .. }
                | Prim::Convert { to: d, .. }
                | Prim::Contract { acc: d, .. }
                | Prim::Convolve { acc: d, .. } => wide(d),
                _ => {}
            }
            op.regions.iter_mut().for_each(graph);
        }
    }
    graph(&mut m.graph);
    for c in &mut m.consts {
        if c.dtype == DType::F32 {
            let t = interp::materialise(c).unwrap();
            let xs = t
                .data
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|b| f64::from(f32::from_le_bytes(*b)).to_le_bytes());
            *c = ConstData {
                dtype: DType::F64,
                source: ConstSource::Bytes(std::sync::Arc::new(xs.collect::<Vec<u8>>())),
                ..c.clone()
            };
        }
    }
}

/// Random graphs of all primitives, bitcasts of floats left out: the first float output by all float inputs.
#[test]
fn random_graphs() {
    let (mut compared, mut refused) = (0, 0);
    for seed in 0..300 {
        let options = Options {
            ops: 8,
            control: seed % 2 == 0,
            dtypes: vec![DType::F32, DType::I64, DType::Bool],
            max_elems: 200,
            ..Options::default()
        };
        let case = random_graph(seed, &options);
        let mut m = case.module.clone();
        fn bitcasts(g: &Graph) -> bool {
            g.ops().any(|(_, op)| matches!(op.prim, Prim::Bitcast { .. }) || op.regions.iter().any(bitcasts))
        }
        if bitcasts(&m.graph) {
            continue;
        }
        widen(&mut m);
        let Some(at) = m.graph.outputs.iter().rposition(|&v| m.graph[v].ty.dtype == DType::F64) else {
            continue;
        };
        m.graph.outputs = vec![m.graph.outputs[at]];
        m.output_names = vec!["y".into()];
        let inputs: Vec<Tensor> = case
            .inputs(0)
            .into_iter()
            .map(|t| match t.dtype {
                DType::F32 => {
                    let xs: Vec<f64> =
                        t.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect();
                    tensor(&t.shape, &xs)
                }
                _ => t,
            })
            .collect();
        if !value(&m, &inputs).is_finite() {
            continue;
        }
        let floats: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].dtype == DType::F64).collect();
        match differentiate(m.clone(), 0, &floats) {
            Err(GradError::NotDifferentiable { .. }) => refused += 1,
            _ => compared += usize::from(agrees(&m, &inputs, &format!("seed {seed}"))),
        }
    }
    assert!(compared >= 60 && refused < compared / 2, "{compared} compared, {refused} refused");
}
