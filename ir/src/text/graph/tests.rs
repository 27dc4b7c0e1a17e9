//! What prints parses back; what does not parse says where.

use super::{parse, print};
use crate::build::{Builder, LoopStep};
use crate::graph::Origin;
use crate::prim::{Attr, Combine, HostFn, Monoid, PadMode, Pixels, WindowDim};
use crate::verify::graph::verify;
use crate::{ConstData, ConstSource, DType, Dim, IrError, Tensor};

fn round_trip(m: &crate::Module) {
    verify(m).unwrap();
    let text = print(m);
    let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&back).unwrap();
    assert_eq!(print(&back), text);
    assert_eq!(back.symbols, m.symbols);
    assert_eq!(back.output_names, m.output_names);
    assert_eq!(back.graph.order.len(), m.graph.order.len());
    for ((_, a), (_, b)) in back.graph.ops().zip(m.graph.ops()) {
        assert_eq!(a.prim, b.prim);
    }
}

#[test]
fn everything() {
    let mut b = Builder::new("odd name");
    let n = b.symbol("batch size", 1, 64);
    let h = b.symbol("H", 8, 512);
    b.set_origin(Origin { node: "layer/\"x\"".into(), op_type: "Conv".into(), opset: 11 });
    let x = b.input("12", DType::F32, vec![n.clone(), Dim::from(4), h.clone(), h.clone()]);
    let w = b.random_constant(DType::F32, &[8, 2, 3, 3], 7, 0.0, 0.05).unwrap();
    let win =
        WindowDim { stride: 2, pad_lo: Dim::from(1), pad_hi: Dim::from(-1), dilation: 1, base_dilation: 1 };
    let y = b.convolve(x, w, &[win.clone(), win.clone()], 2, DType::F32).unwrap();
    let y = b.tanh(y).unwrap();
    b.name_value(y, "act");
    let z = b.neg(y).unwrap();
    b.name_value(z, "act");
    let pooled = b.window_reduce(Monoid::Max, z, &[2, 2], &[win.clone(), win]).unwrap();
    let mean = b.reduce_mean(pooled, &[2, 3], true).unwrap();
    let mask = b.gt(mean, mean).unwrap();
    let flat = b.shape(mask).to_vec();
    let flat = b.reshape(mask, &[Dim::product(&flat)]).unwrap();
    let hits = b.compact(flat).unwrap();
    let fill = b.scalar(DType::F32, f64::NAN).unwrap();
    let lo = vec![Dim::from(0), Dim::from(1), Dim::from(0), Dim::from(-1)];
    let padded = b.pad(mean, fill, &lo, &lo.iter().map(|d| -d.clone()).collect::<Vec<_>>(), &[0, 0, 0, 1]);
    let shifted = padded.unwrap();
    let padded = b.pad_mode(x, PadMode::Reflect, &lo, &lo).unwrap();
    let t = b.transpose(padded, &[0, 3, 1, 2]).unwrap();
    let sorted = b.sort(&[t], 1, true).unwrap()[0];
    let (top, at) = b.top_k(sorted, 2, &Dim::from(3), true).unwrap();
    let q = b.constant(Tensor::new(DType::F8E4M3FN, vec![2], vec![0x3c, 0x40])).unwrap();
    let strings = ConstData {
        dtype: DType::String,
        shape: vec![2],
        source: ConstSource::Strings(vec!["a\n".to_string(), "\"b".to_string()].into()),
        name: Some("names".into()),
    };
    let strings = b.constant_data(strings).unwrap();
    let u = b.constant(Tensor::new(DType::U64, vec![], u64::MAX.to_le_bytes().to_vec())).unwrap();
    let bits = b.random_bits(u, std::slice::from_ref(&n)).unwrap();
    let bits = b.bitcast(bits, DType::I64).unwrap();
    let base = b.full(DType::I64, &[Dim::from(5)], 3.0).unwrap();
    let bits = b.rem(bits, base).or_else(|_: IrError| b.abs(bits)).unwrap();
    let idx = b.iota(DType::I32, &[Dim::from(2)], 0).unwrap();
    let up = b.vector_i64(&[1, -1]).unwrap();
    let scattered = b.scatter(base, idx, up, Combine::Add).unwrap();
    let sum = b.cumulative(Monoid::Sum, scattered, 0, true, true).unwrap();
    let best = b.arg_reduce(sum, true, 0, true).unwrap();
    let picked = b.gather(sum, best, 0).unwrap();
    let attrs = vec![
        ("a".into(), Attr::Int(-3)),
        ("b b".into(), Attr::Float(1e300)),
        ("c".into(), Attr::Ints(vec![1, -2])),
        ("d".into(), Attr::Str("é\\".into())),
        ("e".into(), Attr::Float(f64::NEG_INFINITY)),
    ];
    let called = b.call::<IrError>("gelu", attrs, &[mean], |b, a| Ok(vec![b.erf(a[0])?])).unwrap()[0];
    let cond = b.input("cond", DType::Bool, vec![]);
    b.assert(cond, "it is true").unwrap();
    let either = b
        .if_::<IrError>(
            cond,
            |b| Ok(vec![b.exp(called)?]),
            |b| Ok(vec![b.reshape(called, &[Dim::from(8), n.clone(), Dim::from(1), Dim::from(1)])?]),
        )
        .unwrap()[0];
    let start = b.constant(Tensor::zeros(DType::F32, vec![0, 2])).unwrap();
    let grown = b
        .loop_::<IrError>(None, Some(cond), &[start], |b, i, c| {
            let one = b.full(DType::F32, &[Dim::from(1), Dim::from(2)], 1.0)?;
            Ok(LoopStep { cond, carried: vec![b.concat(&[c[0], one], 0)?], scans: vec![i] })
        })
        .unwrap();
    let boxes = b.input("boxes", DType::F32, vec![n.clone(), h.clone(), Dim::from(4)]);
    let scores = b.input("scores", DType::F32, vec![n, Dim::from(3), h]);
    let (k, s) = (b.scalar_i64(3).unwrap(), b.scalar(DType::F32, 0.5).unwrap());
    let nms = HostFn::NonMaxSuppression { center_point_box: true };
    let nms = b.host(nms, &[boxes, scores, k, s, s], &[(0, 1000)]).unwrap()[0];
    let file = b.input("file", DType::U8, vec![Dim::from(99)]);
    let image = HostFn::DecodeImage { pixels: Pixels::Bgr };
    let image = b.host(image, &[file], &[(0, 99), (0, 99)]).unwrap()[0];
    let outs =
        [y, z, shifted, hits, top, at, q, strings, bits, picked, either, grown[0], grown[1], nms, image];
    let outs: Vec<_> = outs.iter().enumerate().map(|(i, &v)| (format!("out {i}"), v)).collect();
    round_trip(&b.finish(&outs).unwrap());
}

#[test]
fn errors_say_where() {
    for (text, want) in [
        ("", "1:1: expected `graph`, found the end of the text"),
        ("graph @g(%x: f32[N]) { return }", "1:18: unknown size symbol `N`"),
        ("graph @g() {\n  %y = foo %x\n", "2:12: `%x` is not defined here"),
        ("graph @g() {\n  %y = foo\n", "2:8: unknown operation `foo`"),
        ("const c0 f32[3] [1.0]\n", "1:17: expected 3 elements, found 1"),
        ("const c0 u8[1] [256]\n", "1:17: this is no element of type u8"),
        ("const c0 f32[4611686018427387904, 8] splat(0.0)", "1:38: this constant has too many elements"),
        ("symbol a entry 3..2", "1:8: symbol `a`: empty range or divisor below 1"),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), want, "{text}");
    }
    let nested = "graph @g() {\n".to_string() + &"call @f {} region @r() {".repeat(100_000);
    assert!(parse(&nested).unwrap_err().to_string().contains("too deeply"));
}

#[test]
fn random_graphs_verify_and_round_trip() {
    use crate::testing::{Options, random_graph};
    let mut kinds = std::collections::BTreeMap::<&str, usize>::new();
    fn count(g: &crate::Graph, kinds: &mut std::collections::BTreeMap<&str, usize>) {
        for (_, op) in g.ops() {
            *kinds.entry(op.prim.name()).or_default() += 1;
            op.regions.iter().for_each(|r| count(r, kinds));
        }
    }
    for seed in 0..300 {
        let options = Options { symbolic: seed % 2 == 1, ops: 20, ..Options::default() };
        let case = random_graph(seed, &options);
        round_trip(&case.module);
        count(&case.module.graph, &mut kinds);
    }
    for name in crate::testing::ALL_PRIMITIVES {
        assert!(kinds.contains_key(name), "no random graph has {name}: {kinds:?}");
    }
}

#[test]
fn damaged_text_never_panics() {
    use crate::testing::{Options, Rng, random_graph};
    let mut rng = Rng::new(1);
    let (mut parsed, mut verified) = (0, 0);
    for seed in 0..40 {
        let case = random_graph(seed, &Options { symbolic: true, ..Options::default() });
        let text = print(&case.module);
        let mut tokens: Vec<&str> = text.split_inclusive([' ', ',', '[', ']', '(', ')', '=']).collect();
        let extreme =
            ["9223372036854775807", "-1", "0", "N", "i64", "1152921504606846976", "%0", "true", "nan", "]"];
        for _ in 0..15 {
            let i = rng.below(tokens.len());
            let old = tokens[i];
            match rng.below(4) {
                0 => tokens[i] = "",
                1 => tokens[i] = tokens[rng.below(tokens.len())],
                _ => tokens[i] = extreme[rng.below(extreme.len())],
            }
            let mut keep = false;
            if let Ok(m) = parse(&tokens.concat()) {
                parsed += 1;
                keep = rng.one_in(3);
                verified += usize::from(verify(&m).is_ok());
                print(&m);
            }
            if !keep {
                tokens[i] = old;
            }
        }
    }
    assert!(parsed > 20 && verified > 5 && verified < parsed, "{parsed} {verified}");
}
