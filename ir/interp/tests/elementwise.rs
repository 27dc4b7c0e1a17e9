//! Sources and elementwise primitives.

// Rows of operands read better alike.
#![allow(clippy::cloned_ref_to_slice_refs)]

mod common;

use common::*;
use ir::prim::{BinaryOp, CmpOp, ConvertMode, UnaryOp};
use ir::{DType, Prim, Tensor};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

#[test]
fn unary_floats() {
    let rows: &[(UnaryOp, &[f32], &[f32])] = &[
        (UnaryOp::Neg, &[1.0, -0.0, INF], &[-1.0, 0.0, -INF]),
        (UnaryOp::Abs, &[-1.5, NAN, -INF], &[1.5, NAN, INF]),
        (UnaryOp::Floor, &[-1.5, 1.5, 2.0], &[-2.0, 1.0, 2.0]),
        (UnaryOp::Ceil, &[-1.5, 1.5, 2.0], &[-1.0, 2.0, 2.0]),
        (UnaryOp::Trunc, &[-1.5, 1.5], &[-1.0, 1.0]),
        (UnaryOp::RoundEven, &[0.5, 1.5, 2.5, -0.5, 2.6], &[0.0, 2.0, 2.0, -0.0, 3.0]),
        (UnaryOp::Sqrt, &[4.0, 2.0, -1.0, INF], &[2.0, std::f32::consts::SQRT_2, NAN, INF]),
        (UnaryOp::Exp, &[0.0, 1.0, -INF, 1000.0], &[1.0, std::f32::consts::E, 0.0, INF]),
        (UnaryOp::Expm1, &[1e-10, 0.0], &[1e-10, 0.0]),
        (UnaryOp::Log, &[1.0, 0.0, -1.0], &[0.0, -INF, NAN]),
        (UnaryOp::Log1p, &[1e-10, -1.0], &[1e-10, -INF]),
        (UnaryOp::Sin, &[0.0, INF], &[0.0, NAN]),
        (UnaryOp::Cos, &[0.0], &[1.0]),
        (UnaryOp::Tan, &[0.0], &[0.0]),
        (UnaryOp::Asin, &[1.0, 2.0], &[std::f32::consts::FRAC_PI_2, NAN]),
        (UnaryOp::Acos, &[1.0], &[0.0]),
        (UnaryOp::Atan, &[INF], &[std::f32::consts::FRAC_PI_2]),
        (UnaryOp::Sinh, &[0.0], &[0.0]),
        (UnaryOp::Cosh, &[0.0], &[1.0]),
        (UnaryOp::Asinh, &[0.0], &[0.0]),
        (UnaryOp::Acosh, &[1.0, 0.5], &[0.0, NAN]),
        (UnaryOp::Atanh, &[0.0, 1.0], &[0.0, INF]),
        (UnaryOp::Tanh, &[100.0, -100.0], &[1.0, -1.0]),
        // erf(0.5) = 0.520499877813...
        (UnaryOp::Erf, &[0.0, 0.5, INF, NAN], &[0.0, 0.520_499_9, 1.0, NAN]),
    ];
    for (op, x, y) in rows {
        check(Prim::Unary(*op), &[t(&[x.len()], x)], &t(&[y.len()], y));
    }
}

#[test]
fn unary_integers_and_bool() {
    check(Prim::Unary(UnaryOp::Neg), &[t(&[2], &[i8::MIN, 5])], &t(&[2], &[i8::MIN, -5]));
    check(Prim::Unary(UnaryOp::Abs), &[t(&[2], &[i64::MIN, -5])], &t(&[2], &[i64::MIN, 5]));
    check(Prim::Unary(UnaryOp::Neg), &[scalar(1u32)], &scalar(u32::MAX));
    check(Prim::Unary(UnaryOp::Not), &[t(&[2], &[0u8, 0xf0])], &t(&[2], &[255u8, 0x0f]));
    check(Prim::Unary(UnaryOp::Not), &[t(&[2], &[true, false])], &t(&[2], &[false, true]));
}

#[test]
fn binary_floats() {
    use BinaryOp::*;
    type Row<'a> = (BinaryOp, &'a [f32], &'a [f32], &'a [f32]);
    let rows: &[Row] = &[
        (Add, &[1.0, INF, 16777216.0], &[2.0, -INF, 1.0], &[3.0, NAN, 16777216.0]),
        (Sub, &[1.0, INF], &[2.0, INF], &[-1.0, NAN]),
        (Mul, &[3.0, 0.0], &[4.0, INF], &[12.0, NAN]),
        (Div, &[1.0, -1.0, 0.0, 1.0], &[0.0, 0.0, 0.0, 3.0], &[INF, -INF, NAN, 1.0 / 3.0]),
        (Rem, &[5.5, -5.5, 5.5, 1.0], &[2.0, 2.0, -2.0, 0.0], &[1.5, -1.5, 1.5, NAN]),
        (Pow, &[2.0, -8.0, 0.0, NAN], &[-1.0, 3.0, 0.0, 0.0], &[0.5, -512.0, 1.0, 1.0]),
        (Atan2, &[1.0, -0.0], &[0.0, -1.0], &[std::f32::consts::FRAC_PI_2, -std::f32::consts::PI]),
        (Min, &[1.0, NAN, 1.0], &[2.0, 1.0, NAN], &[1.0, NAN, NAN]),
        (Max, &[1.0, NAN, -INF], &[2.0, 1.0, -INF], &[2.0, NAN, -INF]),
    ];
    for (op, a, b, y) in rows {
        let n = [a.len()];
        check(Prim::Binary(*op), &[t(&n, a), t(&n, b)], &t(&n, y));
    }
}

#[test]
fn binary_integers() {
    use BinaryOp::*;
    let rows: &[(BinaryOp, i32, i32, i32)] = &[
        (Add, i32::MAX, 1, i32::MIN),
        (Sub, i32::MIN, 1, i32::MAX),
        (Mul, 65536, 65536, 0),
        (Div, -7, 2, -3),
        (Div, 7, 0, 0),
        (Div, i32::MIN, -1, i32::MIN),
        (Rem, -7, 2, -1),
        (Rem, 7, 0, 0),
        (Rem, i32::MIN, -1, 0),
        (Pow, 3, 4, 81),
        (Pow, 2, 31, i32::MIN),
        (Pow, 2, -1, 0),
        (Min, -1, 1, -1),
        (Max, -1, 1, 1),
        (And, 12, 10, 8),
        (Or, 12, 10, 14),
        (Xor, 12, 10, 6),
        (Shl, 1, 31, i32::MIN),
        (Shl, 1, 32, 0),
        (Shl, 1, -1, 0),
        (Shr, -8, 1, -4),
        (Shr, -8, 99, -1),
        (Shr, 8, -1, 0),
    ];
    for &(op, a, b, y) in rows {
        check(Prim::Binary(op), &[scalar(a), scalar(b)], &scalar(y));
    }
    let wide: &[(BinaryOp, u64, u64, u64)] = &[
        (Mul, u64::MAX, u64::MAX, 1),
        (Div, u64::MAX, 2, u64::MAX / 2),
        (Shr, u64::MAX, 63, 1),
        (Shr, u64::MAX, 64, 0),
        (Shl, 3, 63, 1 << 63),
        (Max, 1, u64::MAX, u64::MAX),
        (Sub, 0, 1, u64::MAX),
    ];
    for &(op, a, b, y) in wide {
        check(Prim::Binary(op), &[scalar(a), scalar(b)], &scalar(y));
    }
    let table = |op, want: [bool; 4]| {
        let (a, b) = ([false, false, true, true], [false, true, false, true]);
        check(Prim::Binary(op), &[t(&[4], &a), t(&[4], &b)], &t(&[4], &want));
    };
    table(And, [false, false, false, true]);
    table(Or, [false, true, true, true]);
    table(Xor, [false, true, true, false]);
    table(Min, [false, false, false, true]);
    table(Max, [false, true, true, true]);
}

#[test]
fn halves_round_once() {
    // 2048 + 1.5 lies between 2048 and 2050: 2050 is nearer
    check(Prim::Binary(BinaryOp::Add), &[f16s(&[2048.0]), f16s(&[1.5])], &f16s(&[2050.0]));
    check(Prim::Binary(BinaryOp::Add), &[f16s(&[2048.0]), f16s(&[1.0])], &f16s(&[2048.0]));
    check(Prim::Binary(BinaryOp::Mul), &[f16s(&[300.0]), f16s(&[300.0])], &f16s(&[INF]));
}

#[test]
fn comparisons() {
    use CmpOp::*;
    let (a, b) = (t(&[4], &[1.0f32, 2.0, NAN, -0.0]), t(&[4], &[2.0f32, 2.0, NAN, 0.0]));
    let rows = [
        (Eq, [false, true, false, true]),
        (Ne, [true, false, true, false]),
        (Lt, [true, false, false, false]),
        (Le, [true, true, false, true]),
        (Gt, [false, false, false, false]),
        (Ge, [false, true, false, true]),
    ];
    for (op, want) in rows {
        check(Prim::Cmp(op), &[a.clone(), b.clone()], &t(&[4], &want));
    }
    check(Prim::Cmp(Lt), &[scalar(1u64), scalar(u64::MAX)], &scalar(true));
    check(Prim::Cmp(Lt), &[scalar(1i64), scalar(-1i64)], &scalar(false));
    let words = |v: &[&str]| Tensor {
        strings: v.iter().map(|s| s.to_string()).collect(),
        ..Tensor::new(DType::String, vec![v.len()], vec![])
    };
    check(Prim::Cmp(Eq), &[words(&["a", "b"]), words(&["a", "c"])], &t(&[2], &[true, false]));
}

#[test]
fn select_takes_elements() {
    let cond = t(&[3], &[true, false, true]);
    let (a, b) = (t(&[3], &[1i64, 2, 3]), t(&[3], &[-1i64, -2, -3]));
    check(Prim::Select, &[cond, a, b], &t(&[3], &[1i64, -2, 3]));
    check(
        Prim::Select,
        &[t::<bool>(&[0, 2], &[]), t::<f32>(&[0, 2], &[]), t::<f32>(&[0, 2], &[])],
        &t::<f32>(&[0, 2], &[]),
    );
}

fn convert(to: DType, mode: ConvertMode) -> Prim {
    Prim::Convert { to, mode }
}

#[test]
fn conversions() {
    use ConvertMode::*;
    let f = t(&[6], &[1.9f32, -1.9, NAN, 1e20, -INF, 0.0]);
    let max = i32::MAX;
    check(convert(DType::I32, Plain), &[f.clone()], &t(&[6], &[1, -1, 0, max, i32::MIN, 0]));
    check(convert(DType::U8, Plain), &[f.clone()], &t(&[6], &[1u8, 0, 0, 255, 0, 0]));
    let bools = [true, true, true, true, true, false];
    check(convert(DType::Bool, Plain), &[f], &t(&[6], &bools));
    check(convert(DType::U8, Plain), &[t(&[2], &[300i32, -1])], &t(&[2], &[44u8, 255]));
    check(convert(DType::U8, Saturate), &[t(&[2], &[300i32, -1])], &t(&[2], &[255u8, 0]));
    check(convert(DType::Bool, Saturate), &[t(&[2], &[256i32, 0])], &t(&[2], &[true, false]));
    check(convert(DType::F32, Plain), &[t(&[2], &[true, false])], &t(&[2], &[1.0f32, 0.0]));
    check(convert(DType::I64, Plain), &[scalar(u64::MAX)], &scalar(-1i64));
    check(convert(DType::F32, Plain), &[scalar(u64::MAX)], &scalar(18446744073709551616f32));
    // 2^53 + 2^29 + 1 is just above the middle of two f32: rounding to f64 first would hide that
    let x = (1i64 << 53) + (1 << 29) + 1;
    check(convert(DType::F32, Plain), &[scalar(x)], &scalar(x as f32));
    check(convert(DType::F32, Plain), &[scalar(1e300f64)], &scalar(INF));
    check(convert(DType::F32, Saturate), &[scalar(-1e300f64)], &scalar(-f32::MAX));
    check(convert(DType::F16, Plain), &[t(&[2], &[65520.0f32, 65519.0])], &f16s(&[INF, 65504.0]));
    check(convert(DType::F16, Saturate), &[t(&[1], &[INF])], &f16s(&[65504.0]));
    // f64 halfway + a bit: through f32 it would round the wrong way
    let x = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
    check(convert(DType::F16, Plain), &[t(&[1], &[x])], &f16s(&[1.0 + 2f32.powi(-10)]));
}

#[test]
fn narrow_conversions_as_onnx_tabulates_them() {
    use ConvertMode::*;
    let x = t(&[8], &[0.47892547f32, 0.81910545, 1e6, 1e-7, NAN, INF, -INF, -1e-7]);
    let rows = [
        (DType::F8E4M3FN, Saturate, [0x2f, 0x35, 0x7e, 0x00, 0x7f, 0x7e, 0xfe, 0x80]),
        (DType::F8E4M3FN, Plain, [0x2f, 0x35, 0x7f, 0x00, 0x7f, 0x7f, 0xff, 0x80]),
        (DType::F8E4M3FNUZ, Saturate, [0x37, 0x3d, 0x7f, 0x00, 0x80, 0x7f, 0xff, 0x00]),
        (DType::F8E4M3FNUZ, Plain, [0x37, 0x3d, 0x80, 0x00, 0x80, 0x80, 0x80, 0x00]),
        (DType::F8E5M2, Saturate, [0x38, 0x3b, 0x7b, 0x00, 0x7e, 0x7b, 0xfb, 0x80]),
        (DType::F8E5M2, Plain, [0x38, 0x3b, 0x7c, 0x00, 0x7e, 0x7c, 0xfc, 0x80]),
        (DType::F8E5M2FNUZ, Saturate, [0x3c, 0x3f, 0x7f, 0x00, 0x80, 0x7f, 0xff, 0x00]),
        (DType::F4E2M1, Saturate, [0x1, 0x2, 0x7, 0x0, 0x8, 0x7, 0xf, 0x8]),
    ];
    for (to, mode, want) in rows {
        let got = eval(convert(to, mode), std::slice::from_ref(&x));
        assert_eq!(got.data, want, "{to} {mode:?}");
    }
    let back = eval(convert(DType::F32, Plain), &[codes(DType::F4E2M1, &[3], &[0x1, 0xe, 0x7])]);
    assert_same(&back, &t(&[3], &[0.5f32, -4.0, 6.0]), "f4e2m1");
    let ints = eval(convert(DType::I4, Plain), &[t(&[3], &[7i32, 8, -9])]);
    assert_eq!(ints.data, [7, 0xf8, 7]);
    let back = eval(convert(DType::I32, Plain), &[codes(DType::I4, &[2], &[0x0f, 0xf8])]);
    assert_same(&back, &t(&[2], &[-1, -8]), "i4");
}

#[test]
fn bitcasts_keep_bytes() {
    check(Prim::Bitcast { to: DType::I32 }, &[scalar(1.0f32)], &scalar(0x3f80_0000));
    check(Prim::Bitcast { to: DType::U8 }, &[t(&[2], &[-1i8, 1])], &t(&[2], &[255u8, 1]));
}

#[test]
fn iota_along_an_axis() {
    let iota = |dtype, shape: &[i64], axis| Prim::Iota { dtype, shape: dims(shape), axis };
    check(iota(DType::I32, &[2, 3], 1), &[], &t(&[2, 3], &[0, 1, 2, 0, 1, 2]));
    check(iota(DType::F32, &[2, 3], 0), &[], &t(&[2, 3], &[0f32, 0., 0., 1., 1., 1.]));
    check(iota(DType::I64, &[0], 0), &[], &t::<i64>(&[0], &[]));
    let wrapped = eval(iota(DType::U8, &[300], 0), &[]);
    assert_eq!(wrapped.data[255..258], [255, 0, 1]);
}

#[test]
fn random_bits_are_split_mix() {
    // first outputs of the published generator with seed 1234567
    let prim = Prim::RandomBits { shape: dims(&[3]) };
    let want = [6457827717110365317u64, 3203168211198807973, 9817491932198370423];
    check(prim, &[scalar(1234567u64)], &t(&[3], &want));
}

#[test]
fn every_dtype_converts_to_every_other() {
    for from in DType::ALL.into_iter().filter(|d| *d != DType::String) {
        let one = eval(convert(from, ConvertMode::Plain), &[scalar(1.0f32)]);
        for to in DType::ALL.into_iter().filter(|d| *d != DType::String) {
            let there = eval(convert(to, ConvertMode::Saturate), std::slice::from_ref(&one));
            let back = eval(convert(DType::F32, ConvertMode::Plain), &[there]);
            assert_same(&back, &scalar(1.0f32), &format!("{from} to {to}"));
        }
    }
}
