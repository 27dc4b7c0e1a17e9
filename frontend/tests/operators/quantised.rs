//! Quantised operators: exact integers, rounding and saturation.

use crate::model::{A, In, bytes, close, f32s, i8s, one, run, u8s, values};
use ir::{DType, Tensor};

#[test]
fn quantize_rounds_to_even_and_saturates() {
    let x = f32s(&[8], &[0.5, 1.5, 2.5, -3.0, 300.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    let y = one("QuantizeLinear", 19, &[], &[&x, &f32s(&[], &[1.0]), &u8s(&[], &[1])]);
    assert_eq!(y.dtype, DType::U8);
    close(&y, &[8], &[1.0, 3.0, 3.0, 0.0, 255.0, 255.0, 0.0, 0.0], 0.0);
}

#[test]
fn blocks_share_a_scale_and_the_last_one_may_be_short() {
    let x = i8s(&[1, 5], &[1, 2, 3, 4, 5]);
    let attrs = [("axis", A::I(1)), ("block_size", A::I(2))];
    let y = one(
        "DequantizeLinear",
        21,
        &attrs,
        &[&x, &f32s(&[1, 3], &[1.0, 10.0, 100.0]), &i8s(&[1, 3], &[0, 1, -1])],
    );
    close(&y, &[1, 5], &[1.0, 2.0, 20.0, 30.0, 600.0], 0.0);
}

#[test]
fn dynamic_quantization_of_zeros_has_a_scale() {
    let out = run("", "DynamicQuantizeLinear", 11, &[], &[In::Fed(&f32s(&[3], &[0.0; 3]))], 3);
    close(&out[0], &[3], &[0.0; 3], 0.0);
    assert!(values(&out[1])[0] > 0.0);
}

#[test]
fn integer_products_with_every_kind_of_zero_point() {
    let (m, k, n) = (3usize, 40usize, 2usize);
    let (a, b) = (bytes(&[m, k], 5), bytes(&[k, n], 6));
    let b8: Vec<i8> = b.iter().map(|&x| x as i8).collect();
    let rows = [3u8, 200, 0];
    let columns = [-128i8, 127];
    for (za, zb) in [(vec![], vec![]), (vec![255], vec![-7]), (rows.to_vec(), columns.to_vec())] {
        let (ta, tb) = (u8s(&[m, k], &a), i8s(&[k, n], &b8));
        let shape = |n: usize| if n == 1 { vec![] } else { vec![n] };
        let (tza, tzb) = (u8s(&shape(za.len()), &za), i8s(&shape(zb.len()), &zb));
        let zero = |t| if za.is_empty() { In::None } else { In::Fed(t) };
        let out = run("", "MatMulInteger", 10, &[], &[In::Fed(&ta), In::Fed(&tb), zero(&tza), zero(&tzb)], 1);
        let mut want = Vec::new();
        for i in 0..m {
            for j in 0..n {
                let pick =
                    |z: &[i64], at: usize| if z.len() > 1 { z[at] } else { z.first().copied().unwrap_or(0) };
                let za: Vec<i64> = za.iter().map(|&z| z.into()).collect();
                let zb: Vec<i64> = zb.iter().map(|&z| z.into()).collect();
                let sum: i64 = (0..k)
                    .map(|l| {
                        (i64::from(a[i * k + l]) - pick(&za, i)) * (i64::from(b8[l * n + j]) - pick(&zb, j))
                    })
                    .sum();
                want.push(sum as f64);
            }
        }
        assert_eq!(out[0].dtype, DType::I32);
        close(&out[0], &[m, n], &want, 0.0);
    }
}

#[test]
fn padding_of_a_quantised_convolution_is_the_zero_point() {
    // a kernel of ones over an image of zero points: every sum is 0, at the border too
    let x = u8s(&[1, 1, 3, 3], &[77; 9]);
    for (w, zw) in [(u8s(&[1, 1, 3, 3], &[129; 9]), 128u8), (u8s(&[1, 1, 3, 3], &[8; 9]), 7)] {
        let out = run(
            "",
            "ConvInteger",
            10,
            &[("pads", A::Is(&[1, 1, 1, 1]))],
            &[In::Fed(&x), In::Const(&w), In::Fed(&u8s(&[], &[77])), In::Const(&u8s(&[], &[zw]))],
            1,
        );
        close(&out[0], &[1, 1, 3, 3], &[0.0; 9], 0.0);
    }
}

#[test]
fn packed_weights_of_four_bits() {
    // K = 3 in one block of 16: low bits first, zero point 8
    let mut packed = vec![0u8; 8];
    packed[0] = 0x9a;
    packed[1] = 0x07;
    let out = run(
        "com.microsoft",
        "MatMulNBits",
        1,
        &[("K", A::I(3)), ("N", A::I(1)), ("bits", A::I(4)), ("block_size", A::I(16))],
        &[
            In::Fed(&f32s(&[1, 3], &[1.0, 10.0, 100.0])),
            In::Const(&u8s(&[1, 1, 8], &packed)),
            In::Const(&f32s(&[1], &[0.5])),
        ],
        1,
    );
    // (10 - 8, 9 - 8, 7 - 8) / 2
    close(&out[0], &[1, 1], &[1.0 + 5.0 - 50.0], 1e-6);
}

#[test]
fn quantised_sums_requantise_once() {
    let scalar = |x: f32| f32s(&[], &[x]);
    let out = run(
        "com.microsoft",
        "QLinearAdd",
        1,
        &[],
        &[
            In::Fed(&u8s(&[2], &[10, 255])),
            In::Fed(&scalar(0.5)),
            In::Fed(&u8s(&[], &[0])),
            In::Fed(&u8s(&[2], &[3, 255])),
            In::Fed(&scalar(1.0)),
            In::Fed(&u8s(&[], &[1])),
            In::Fed(&scalar(2.0)),
            In::Fed(&u8s(&[], &[7])),
        ],
        1,
    );
    close(&out[0], &[2], &[11.0, 198.0], 0.0);
}

#[test]
fn scales_that_do_not_fit_are_reported() {
    let x = Tensor::from_f32(vec![2, 3], &[0.0; 6]);
    let s = f32s(&[2, 2, 2], &[1.0; 8]);
    assert!(crate::model::import("", "QuantizeLinear", 21, &[], &[In::Fed(&x), In::Fed(&s)], 1).is_err());
}
