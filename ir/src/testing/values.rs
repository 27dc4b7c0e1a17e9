//! Random tensors, and how exactly values are known to every implementation.

use super::Rng;
use crate::tensor::checked_elems;
use crate::{DType, Tensor};

/// Elements are multiples of `2^-frac` of magnitude at most `mag`, where `exact`; otherwise they are
/// rounded results of that magnitude.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Grid {
    pub frac: i32,
    pub mag: f64,
    pub exact: bool,
}

impl Grid {
    /// Elements of [`random_tensor`].
    pub fn of_random(dtype: DType) -> Grid {
        match dtype.int_range() {
            Some((lo, hi)) => {
                Grid { frac: 0, mag: lo.unsigned_abs().max(hi.unsigned_abs()) as f64, exact: true }
            }
            None => Grid::of_float(dtype),
        }
    }
    fn of_float(dtype: DType) -> Grid {
        match dtype {
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => Grid { frac: 2, mag: 4.0, exact: true },
            DType::F8E4M3FN | DType::F8E4M3FNUZ => Grid { frac: 10, mag: 448.0, exact: true },
            DType::F8E5M2 | DType::F8E5M2FNUZ => Grid { frac: 17, mag: 57344.0, exact: true },
            DType::F4E2M1 => Grid { frac: 1, mag: 6.0, exact: true },
            // powers of two from 2^-127 to 2^127: no sum of them is exact
            _ => Grid { frac: 127, mag: 2f64.powi(127), exact: true },
        }
    }
    pub fn int(mag: f64) -> Grid {
        Grid { frac: 0, mag, exact: true }
    }
    pub fn rounded(mag: f64) -> Grid {
        Grid { frac: 0, mag, exact: false }
    }
    /// The same grid if every element is a number of the type, else a rounded value.
    pub fn within(self, dtype: DType) -> Grid {
        let (mantissa, max) = match dtype {
            DType::F64 => (53, f64::MAX),
            DType::F32 => (24, f32::MAX as f64),
            DType::F16 => (11, 65504.0),
            DType::BF16 => (8, f32::MAX as f64),
            _ => return self,
        };
        let fits =
            self.mag * 2f64.powi(self.frac) <= 2f64.powi(mantissa) && self.mag <= max && self.frac <= 24;
        Grid { exact: self.exact && fits, ..self }
    }
    pub fn sum(self, other: Grid) -> Grid {
        Grid { frac: self.frac.max(other.frac), mag: self.mag + other.mag, exact: self.exact && other.exact }
    }
    pub fn product(self, other: Grid) -> Grid {
        Grid { frac: self.frac + other.frac, mag: self.mag * other.mag, exact: self.exact && other.exact }
    }
    pub fn union(self, other: Grid) -> Grid {
        Grid {
            frac: self.frac.max(other.frac),
            mag: self.mag.max(other.mag),
            exact: self.exact && other.exact,
        }
    }
    /// Sum of `n` elements.
    pub fn times(self, n: f64) -> Grid {
        Grid { mag: self.mag * n.max(1.0), ..self }
    }
}

/// Elements of this type: multiples of 1/4 in -4..=4 for the wide floats, every pattern for the narrow
/// types, mostly small and sometimes extreme integers.
pub fn random_tensor(rng: &mut Rng, dtype: DType, shape: Vec<usize>) -> Tensor {
    let mut t = Tensor::zeros(dtype, shape);
    let n = checked_elems(&t.shape).unwrap_or(0);
    let mut data = Vec::with_capacity(n * dtype.bytes());
    for _ in 0..n {
        let x = rng.range(-16, 16) as f64 / 4.0;
        match dtype {
            DType::F64 => data.extend(x.to_le_bytes()),
            DType::F32 => data.extend((x as f32).to_le_bytes()),
            DType::F16 => data.extend(half::f16::from_f64(x).to_le_bytes()),
            DType::BF16 => data.extend(half::bf16::from_f64(x).to_le_bytes()),
            DType::Bool => data.push(rng.below(2) as u8),
            DType::String => {}
            _ => match dtype.int_range() {
                Some((lo, hi)) => {
                    let near = |rng: &mut Rng, c: i128| (c + rng.range(-9, 9) as i128).clamp(lo, hi);
                    let v = match rng.below(16) {
                        0 => near(rng, lo),
                        1 => near(rng, hi),
                        _ => near(rng, 0),
                    };
                    data.extend(&v.to_le_bytes()[..dtype.bytes()]);
                }
                // narrow floats: every pattern of the type, NaN and infinity rarely
                None => {
                    let mask = ((1u32 << dtype.bits()) - 1) as u8;
                    let pattern = |rng: &mut Rng| rng.next_u64() as u8 & mask;
                    let mut p = pattern(rng);
                    let top = !rng.one_in(32) && dtype != DType::F4E2M1;
                    if top {
                        // away from the largest exponents, where the special patterns are
                        let format = crate::minifloat::format(dtype);
                        let max = format.map_or(0x7e, |f| f.max as u8);
                        while (p & 0x7f) > max & 0x7f || p == 0x80 || p == 0xff {
                            p = pattern(rng);
                        }
                    }
                    data.push(p);
                }
            },
        }
    }
    if dtype == DType::String {
        t.strings = (0..n).map(|_| format!("s{}", rng.below(5))).collect();
    } else {
        t.data = data;
    }
    t
}
