//! Comparison of a result with the one that is right.

use crate::number::Number;
use ir::{DType, Tensor};
use std::fmt;

/// How far an element may be from the one wanted: `abs + rel * |want| + scale * (largest finite |want|)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    pub abs: f64,
    pub rel: f64,
    /// In units of the largest magnitude of the whole tensor: errors of sums are of that size, however
    /// small the single element is.
    pub scale: f64,
}

impl Tolerance {
    /// Equal values (zeros of both signs are equal, and so are all NaNs).
    pub const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0, scale: 0.0 };

    /// For one operation or a few: some tens of roundings of the type; integers and strings exact.
    pub fn of(dtype: DType) -> Tolerance {
        let (abs, rel, scale) = match dtype {
            DType::F64 => (1e-12, 1e-10, 1e-12),
            DType::F32 => (1e-6, 1e-4, 1e-6),
            DType::F16 => (1e-4, 4e-3, 1e-3),
            DType::BF16 => (1e-3, 3e-2, 8e-3),
            // two steps of the mantissa
            DType::F8E4M3FN | DType::F8E4M3FNUZ => (4e-3, 0.25, 0.0),
            DType::F8E5M2 | DType::F8E5M2FNUZ => (4e-5, 0.5, 0.0),
            DType::F4E2M1 => (0.5, 0.5, 0.0),
            DType::F8E8M0 => (0.0, 1.0, 0.0),
            _ => return Tolerance::EXACT,
        };
        Tolerance { abs, rel, scale }
    }
    /// For the outputs of a whole network: errors of hundreds of layers add up.
    pub fn of_network(dtype: DType) -> Tolerance {
        let one = Tolerance::of(dtype);
        match dtype {
            DType::F32 => Tolerance { abs: 1e-5, rel: 1e-3, scale: 1e-4 },
            DType::F16 | DType::BF16 => Tolerance { scale: one.scale * 8.0, ..one },
            _ => one,
        }
    }
}

/// Two values at one place, written out for messages.
#[derive(Clone, PartialEq, Debug)]
pub struct Place {
    /// Row-major index.
    pub index: usize,
    pub got: String,
    pub want: String,
}

/// Result of [`compare()`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Comparison {
    /// Type or shape differ; then nothing else was compared.
    pub mismatch: Option<String>,
    pub elems: usize,
    /// Elements beyond the tolerance.
    pub bad: usize,
    pub first_bad: Option<Place>,
    /// The element with the largest absolute difference.
    pub worst: Option<Place>,
    /// Over elements where both values are finite.
    pub max_abs: f64,
    /// `|got - want| / |want|`, over elements with `want != 0`.
    pub max_rel: f64,
    /// Steps between neighbouring values of the type.
    pub max_ulp: u128,
}

impl Comparison {
    pub fn passes(&self) -> bool {
        self.mismatch.is_none() && self.bad == 0
    }
    /// Row-major index of the first element beyond the tolerance.
    pub fn first_bad_index(&self) -> Option<usize> {
        self.first_bad.as_ref().map(|p| p.index)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(m) = &self.mismatch {
            return f.write_str(m);
        }
        if let Some(p) = &self.first_bad {
            write!(
                f,
                "{} of {} elements differ, first at {}: got {}, want {}; ",
                self.bad, self.elems, p.index, p.got, p.want
            )?;
        }
        write!(f, "max abs {:.3e}, max rel {:.3e}, max ulp {}", self.max_abs, self.max_rel, self.max_ulp)
    }
}

/// Compares element by element. NaN matches NaN, an infinity the one of equal sign only, integers are
/// compared exactly in their own width before any tolerance is applied.
pub fn compare(got: &Tensor, want: &Tensor, tol: Tolerance) -> Comparison {
    compare_with(got, want, tol, None)
}

/// As [`compare()`] with a bound for each element of a float tensor (infinite: any value is right); all others are
/// compared exactly.
pub(crate) fn compare_within(got: &Tensor, want: &Tensor, slack: &[f64]) -> Comparison {
    compare_with(got, want, Tolerance::EXACT, Some(slack))
}

fn compare_with(got: &Tensor, want: &Tensor, tol: Tolerance, within: Option<&[f64]>) -> Comparison {
    let mut c = Comparison { elems: want.elems(), ..Default::default() };
    if got.dtype != want.dtype || got.shape != want.shape {
        c.mismatch = Some(format!("got {}{:?}, want {}{:?}", got.dtype, got.shape, want.dtype, want.shape));
        return c;
    }
    let unit = want.dtype.bytes();
    let sizes = [got.data.len(), want.data.len()];
    let strings = [got.strings.len(), want.strings.len()];
    let fits = if want.dtype == DType::String {
        strings == [c.elems; 2]
    } else {
        sizes.iter().all(|&s| c.elems.checked_mul(unit) == Some(s))
    };
    if !fits {
        c.mismatch = Some("the tensors have not as much data as their shapes ask for".into());
        return c;
    }
    if want.dtype == DType::String {
        for (index, (g, w)) in got.strings.iter().zip(&want.strings).enumerate() {
            if g != w {
                c.bad += 1;
                c.first_bad.get_or_insert_with(|| Place {
                    index,
                    got: format!("{g:?}"),
                    want: format!("{w:?}"),
                });
            }
        }
    } else if let Some(load) = <f64 as Number>::load(want.dtype) {
        floats(&mut c, got, want, tol, within, load);
    } else if let Some(load) = <i128 as Number>::load(want.dtype) {
        integers(&mut c, got, want, tol, load);
    }
    c
}

fn floats(
    c: &mut Comparison,
    got: &Tensor,
    want: &Tensor,
    tol: Tolerance,
    within: Option<&[f64]>,
    load: fn(&[u8], usize) -> f64,
) {
    let finite = |i| Some(load(&want.data, i)).filter(|x| x.is_finite());
    let largest = (0..c.elems).filter_map(finite).fold(0.0f64, |m, x| m.max(x.abs()));
    let slack = tol.abs + tol.scale * largest;
    for index in 0..c.elems {
        let (g, w) = (load(&got.data, index), load(&want.data, index));
        let bound = within.map(|s| s.get(index).copied().unwrap_or(0.0));
        if g == w || g.is_nan() && w.is_nan() || bound == Some(f64::INFINITY) {
            continue;
        }
        let place = || Place { index, got: format!("{g:e}"), want: format!("{w:e}") };
        let diff = (g - w).abs();
        if g.is_finite() && w.is_finite() {
            if diff > c.max_abs {
                c.max_abs = diff;
                c.worst = Some(place());
            }
            if w != 0.0 {
                c.max_rel = c.max_rel.max(diff / w.abs());
            }
            let [a, b] = [got, want].map(|t| ordered_code(t, index));
            c.max_ulp = c.max_ulp.max(a.abs_diff(b));
        }
        // not `diff > ...`: a NaN must fail
        let close = g.is_finite() && w.is_finite() && diff <= bound.unwrap_or(slack + tol.rel * w.abs());
        if !close {
            c.bad += 1;
            c.first_bad.get_or_insert_with(place);
        }
    }
}

/// Integers in the order of the values, one apart for neighbouring values of the type.
fn ordered_code(t: &Tensor, index: usize) -> i128 {
    let size = t.dtype.bytes();
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(&t.data[index * size..(index + 1) * size]);
    let code = u64::from_le_bytes(bytes);
    // the only format without a sign
    if t.dtype == DType::F8E8M0 {
        return code.into();
    }
    let sign = 1u64 << (t.dtype.bits() - 1);
    let magnitude = i128::from(code & (sign - 1));
    if code & sign != 0 { -magnitude } else { magnitude }
}

fn integers(c: &mut Comparison, got: &Tensor, want: &Tensor, tol: Tolerance, load: fn(&[u8], usize) -> i128) {
    let largest = (0..c.elems).map(|i| load(&want.data, i).unsigned_abs()).max().unwrap_or(0);
    let slack = tol.abs + tol.scale * largest as f64;
    for index in 0..c.elems {
        let (g, w) = (load(&got.data, index), load(&want.data, index));
        if g == w {
            continue;
        }
        let place = || Place { index, got: g.to_string(), want: w.to_string() };
        let diff = g.abs_diff(w);
        if diff > c.max_ulp {
            c.max_ulp = diff;
            c.max_abs = diff as f64;
            c.worst = Some(place());
        }
        if w != 0 {
            c.max_rel = c.max_rel.max(diff as f64 / w.unsigned_abs() as f64);
        }
        if diff as f64 > slack + tol.rel * w.unsigned_abs() as f64 {
            c.bad += 1;
            c.first_bad.get_or_insert_with(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(v: &[f32]) -> Tensor {
        Tensor::from_f32(vec![v.len()], v)
    }

    #[test]
    fn specials_match_by_kind() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let want = f32s(&[nan, inf, -inf, 0.0, 1.0]);
        let same = f32s(&[-nan, inf, -inf, -0.0, 1.0]);
        assert!(compare(&same, &want, Tolerance::EXACT).passes());
        for (i, v) in [(0, 1.0), (1, -inf), (2, nan), (3, inf), (4, nan)] {
            let mut bad = [nan, inf, -inf, 0.0, 1.0];
            bad[i] = v;
            let loose = Tolerance { abs: 1e30, rel: 1e30, scale: 0.0 };
            let c = compare(&f32s(&bad), &want, loose);
            assert_eq!(c.first_bad_index(), Some(i), "{c}");
        }
    }

    #[test]
    fn distances() {
        let one_up = f32::from_bits(1f32.to_bits() + 1);
        let c = compare(&f32s(&[one_up, 2.0, -1e-45]), &f32s(&[1.0, 1.0, 1e-45]), Tolerance::EXACT);
        assert_eq!((c.bad, c.first_bad_index()), (3, Some(0)));
        assert_eq!((c.max_abs, c.max_rel, c.max_ulp), (1.0, 2.0, 1 << 23));
        assert_eq!(c.worst.map(|p| p.index), Some(1));
        let c = compare(&f32s(&[-1e-45]), &f32s(&[1e-45]), Tolerance::of(DType::F32));
        assert_eq!((c.passes(), c.max_ulp), (true, 2));
    }

    #[test]
    fn scale_forgives_what_is_small_beside_the_rest() {
        let (got, want) = (f32s(&[1000.0, 1e-3]), f32s(&[1000.0, 0.0]));
        assert!(!compare(&got, &want, Tolerance::EXACT).passes());
        let tol = Tolerance { abs: 0.0, rel: 0.0, scale: 1e-5 };
        assert!(compare(&got, &want, tol).passes());
    }

    #[test]
    fn integers_types_and_shapes() {
        let (a, b) = (Tensor::from_i64(vec![1], &[i64::MAX]), Tensor::from_i64(vec![1], &[i64::MAX - 1]));
        assert_eq!(compare(&a, &b, Tolerance::of(DType::I64)).max_ulp, 1);
        assert!(!compare(&a, &b, Tolerance::of(DType::I64)).passes());
        assert!(compare(&a, &b, Tolerance { abs: 1.0, ..Tolerance::EXACT }).passes());
        assert!(compare(&a, &f32s(&[0.0]), Tolerance::EXACT).mismatch.is_some());
        let short = Tensor::new(DType::I64, vec![2], vec![0; 8]);
        assert!(compare(&short, &short, Tolerance::EXACT).mismatch.is_some());
    }
}
