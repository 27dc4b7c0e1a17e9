//! How far a right implementation may be from the reference: the reference again, with every rounding made
//! otherwise.
//!
//! A sample is a run in which each float that had to be rounded is moved by a few units of its last place, in a
//! random direction, and so are the terms of each sum that is not exact. What such runs differ by at one
//! element is what rounding does to that element: much where terms cancel, nothing where all is exact. So the
//! bound of an element is a small multiple of the spread of its samples, and exact values are compared exactly.
//! (Stochastic arithmetic: Vignes, "A stochastic arithmetic for reliable scientific computation", 1993.)

use crate::compare::{Comparison, compare_within};
use crate::error::InterpError;
use crate::number::Number;
use crate::run::Interp;
use crate::view::View;
use ir::prim::{BinaryOp, Combine, ConvertMode, Monoid, UnaryOp};
use ir::testing::Rng;
use ir::{DType, Module, Prim, Tensor};

/// Rounding errors of an elementary function and of everything else, in units of the last place.
const FUNCTION_ULP: f64 = 4.0;
const ULP: f64 = 2.0;
/// An element may be off by this many times the largest deviation of the samples.
const FACTOR: f64 = 6.0;

/// Results of the reference interpreter, with a bound for each element.
#[derive(Clone, Debug)]
pub struct Bounded {
    pub want: Vec<Tensor>,
    /// By output and element; empty for outputs that are no floats.
    pub slack: Vec<Vec<f64>>,
}

impl Bounded {
    /// Runs the module once exactly and `samples` times with noise.
    ///
    /// # Errors
    /// Those of [`Interp::run`].
    pub fn run(module: &Module, inputs: &[Tensor], samples: u64) -> Result<Bounded, InterpError> {
        let want = Interp::new(module).run(inputs)?;
        let mut slack: Vec<Vec<f64>> = want.iter().map(|_| Vec::new()).collect();
        if !want.iter().any(|t| t.dtype.is_float()) {
            return Ok(Bounded { want, slack });
        }
        for seed in 0..samples {
            let sample = Interp::new(module).run_with_noise(inputs, seed)?;
            for ((w, s), slack) in want.iter().zip(&sample).zip(&mut slack) {
                let Some(load) = <f64 as Number>::load(w.dtype) else { continue };
                slack.resize(w.elems(), 0.0);
                if s.shape != w.shape {
                    slack.fill(f64::INFINITY);
                    continue;
                }
                let tiny = f64::from(f32::MIN_POSITIVE) * epsilon(w.dtype);
                for (i, bound) in slack.iter_mut().enumerate() {
                    let (a, b) = (load(&w.data, i), load(&s.data, i));
                    let off = match (a.is_finite(), b.is_finite()) {
                        (true, true) if a == b => 0.0,
                        (true, true) => FACTOR * (a - b).abs() + tiny,
                        (false, false) if a.is_nan() == b.is_nan() && (a.is_nan() || a == b) => 0.0,
                        _ => f64::INFINITY,
                    };
                    *bound = bound.max(off);
                }
            }
        }
        Ok(Bounded { want, slack })
    }

    /// Compares output `i` with the reference.
    pub fn compare(&self, i: usize, got: &Tensor) -> Comparison {
        compare_within(got, &self.want[i], &self.slack[i])
    }
}

/// Distance from 1 to the next number of the type.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        DType::F8E4M3FN | DType::F8E4M3FNUZ => 0.125,
        DType::F8E5M2 | DType::F8E5M2FNUZ => 0.25,
        _ => 0.5,
    }
}

/// The source of deviations of one sample.
pub(crate) struct Noise(Rng);

impl Noise {
    pub(crate) fn new(seed: u64) -> Noise {
        Noise(Rng::new(seed ^ 0x4E01_5E00))
    }

    /// Between half of `relative` and all of it, in either direction.
    fn factor(&mut self, relative: f64) -> f64 {
        let r = self.0.next_u64();
        let size = 0.5 + (r >> 12) as f64 / 2f64.powi(53);
        1.0 + if r & 1 == 0 { size * relative } else { -size * relative }
    }

    /// `x` with every element moved by `ulps` of its type at most.
    fn moved(&mut self, x: View, ulps: f64) -> Tensor {
        let mut t = x.to_tensor();
        self.perturb(&mut t, ulps);
        t
    }
    fn perturb(&mut self, t: &mut Tensor, ulps: f64) {
        let (Some(load), Some(store)) = (<f64 as Number>::load(t.dtype), <f64 as Number>::store(t.dtype))
        else {
            return;
        };
        let relative = ulps * epsilon(t.dtype);
        for i in 0..t.elems() {
            let x = load(&t.data, i);
            let y = x * self.factor(relative);
            if x.is_finite() && y.is_finite() {
                store(y, &mut t.data, i);
            }
        }
    }

    /// Operands with noise, where the op is a sum or product over several elements that is not exact.
    pub(crate) fn operands(&mut self, prim: &Prim, xs: &[View], rounded: &[bool]) -> Option<Vec<Tensor>> {
        let n = terms(prim, xs)?;
        if !rounded.contains(&true) && exact(prim, xs, result_dtype(prim, xs)?) {
            return None;
        }
        // the error of a sum in any order grows with the root of its length
        let ulps = ULP * (1.0 + n.sqrt() / 4.0);
        Some(xs.iter().map(|&x| self.moved(x, ulps)).collect())
    }

    /// Moves the results of an op that had to round; true where it did, or where an operand was rounded.
    pub(crate) fn results(
        &mut self,
        prim: &Prim,
        xs: &[View],
        rounded: &[bool],
        results: &mut [Tensor],
    ) -> bool {
        let operands = rounded.contains(&true);
        if !results.iter().any(|t| t.dtype.is_float()) {
            return false;
        }
        if moves_only(prim) {
            return operands;
        }
        let dtype = results[0].dtype;
        if !operands && exact(prim, xs, dtype) {
            return false;
        }
        let ulps = if matches!(prim, Prim::Unary(_) | Prim::Binary(BinaryOp::Pow | BinaryOp::Atan2)) {
            FUNCTION_ULP
        } else {
            ULP
        };
        results.iter_mut().for_each(|t| self.perturb(t, ulps));
        true
    }
}

/// Copies, chooses or negates elements: what comes out is what went in.
fn moves_only(prim: &Prim) -> bool {
    let extreme = |m: &Monoid| matches!(m, Monoid::Max | Monoid::Min);
    match prim {
        Prim::Unary(op) => matches!(op, UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Not),
        Prim::Binary(op) => matches!(op, BinaryOp::Min | BinaryOp::Max),
        Prim::Scatter { combine } => matches!(combine, Combine::Set | Combine::Min | Combine::Max),
        Prim::Reduce { monoid, .. } | Prim::WindowReduce { monoid, .. } | Prim::Cumulative { monoid, .. } => {
            extreme(monoid)
        }
        Prim::Convert { .. } | Prim::Contract { .. } | Prim::Convolve { .. } => false,
        _ => true,
    }
}

fn result_dtype(prim: &Prim, xs: &[View]) -> Option<DType> {
    match prim {
        Prim::Contract { acc, .. } | Prim::Convolve { acc, .. } => Some(*acc),
        _ => xs.first().map(|x| x.dtype),
    }
}

/// Terms of one element of a sum or product; `None` for other ops and for integers.
fn terms(prim: &Prim, xs: &[View]) -> Option<f64> {
    let x = xs.first().filter(|x| x.dtype.is_float())?;
    let extent = |axes: &mut dyn Iterator<Item = usize>| {
        axes.filter_map(|a| x.shape.get(a)).map(|&n| n as f64).product::<f64>()
    };
    Some(match prim {
        Prim::Reduce { monoid: Monoid::Sum | Monoid::Prod, axes } => extent(&mut axes.iter().copied()),
        Prim::Cumulative { monoid: Monoid::Sum | Monoid::Prod, axis, .. } => {
            extent(&mut std::iter::once(*axis))
        }
        Prim::WindowReduce { monoid: Monoid::Sum | Monoid::Prod, size, .. } => {
            size.iter().map(|&n| n as f64).product()
        }
        Prim::Scatter { combine: Combine::Add | Combine::Mul } => xs.get(1)?.elems() as f64 + 1.0,
        Prim::Contract { reduce, .. } => extent(&mut reduce.iter().map(|p| p.0)),
        Prim::Convolve { .. } => {
            let w = xs.get(1)?;
            w.elems() as f64 / (*w.shape.first()?).max(1) as f64
        }
        _ => return None,
    })
}

/// No element of the result, nor any partial sum, has to be rounded to `dtype`.
fn exact(prim: &Prim, xs: &[View], dtype: DType) -> bool {
    let grids: Option<Vec<Grid>> = xs.iter().filter(|x| x.dtype.is_float()).map(Grid::of).collect();
    let Some(grids) = grids else { return false };
    let n = terms(prim, xs).unwrap_or(1.0).max(1.0);
    let sum = |n: f64| {
        let frac = grids.iter().map(|g| g.frac).max().unwrap_or(0);
        Grid { frac, mag: n * grids.iter().map(|g| g.mag).sum::<f64>() }.fits(dtype)
    };
    let product = |n: f64| {
        let frac = grids.iter().map(|g| g.frac).sum();
        Grid { frac, mag: n * grids.iter().map(|g| g.mag).product::<f64>() }.fits(dtype)
    };
    match prim {
        Prim::Unary(op) => matches!(
            op,
            UnaryOp::Floor
                | UnaryOp::Ceil
                | UnaryOp::Trunc
                | UnaryOp::RoundEven
                | UnaryOp::Neg
                | UnaryOp::Abs
        ),
        Prim::Binary(BinaryOp::Add | BinaryOp::Sub) => sum(1.0),
        Prim::Binary(BinaryOp::Mul) => product(1.0),
        Prim::Binary(op) => matches!(op, BinaryOp::Rem | BinaryOp::Min | BinaryOp::Max),
        // one rounding of an exact value is the same everywhere
        Prim::Convert { mode: ConvertMode::Plain | ConvertMode::Saturate, .. } => true,
        Prim::Reduce { monoid: Monoid::Sum, .. }
        | Prim::Cumulative { monoid: Monoid::Sum, .. }
        | Prim::WindowReduce { monoid: Monoid::Sum, .. }
        | Prim::Scatter { combine: Combine::Add } => sum(n),
        Prim::Contract { .. } | Prim::Convolve { .. } => product(n),
        _ => false,
    }
}

/// Elements are multiples of `2^-frac`, of magnitude `mag` at most.
#[derive(Clone, Copy)]
struct Grid {
    frac: i32,
    mag: f64,
}

impl Grid {
    fn of(x: &View) -> Option<Grid> {
        let load = <f64 as Number>::load(x.dtype)?;
        let mut g = Grid { frac: 0, mag: 0.0 };
        for i in 0..x.elems() {
            let v = load(x.bytes, i);
            if !v.is_finite() || v == 0.0 {
                continue;
            }
            g.mag = g.mag.max(v.abs());
            // v = mantissa * 2^exponent with an odd mantissa
            let bits = v.to_bits();
            let exponent = ((bits >> 52) & 0x7ff) as i32 - 1075;
            let zeros = ((bits & ((1 << 52) - 1)) | 1 << 52).trailing_zeros() as i32;
            g.frac = g.frac.max(-(exponent + zeros));
        }
        Some(g)
    }
    fn fits(self, dtype: DType) -> bool {
        let mantissa = match dtype {
            DType::F64 => 53,
            DType::F32 => 24,
            DType::F16 => 11,
            DType::BF16 => 8,
            _ => return false,
        };
        let max = if dtype == DType::F16 { 65504.0 } else { f64::from(f32::MAX) };
        // far from the subnormals of the type
        self.frac <= if dtype == DType::F16 { 24 } else { 126 }
            && self.mag * 2f64.powi(self.frac) <= 2f64.powi(mantissa)
            && self.mag <= max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::Dim;
    use ir::build::Builder;

    /// `(x + big) - big`, and x unchanged.
    fn cancelling(big: f64) -> Module {
        let mut b = Builder::new("main");
        let x = b.input("x", DType::F32, vec![Dim::from(4)]);
        let c = b.scalar(DType::F32, big).unwrap();
        let sum = b.add(x, c).unwrap();
        let y = b.sub(sum, c).unwrap();
        b.finish(&[("y".into(), y), ("x".into(), x)]).unwrap()
    }

    #[test]
    fn what_is_exact_is_compared_exactly() {
        let x = Tensor::from_f32(vec![4], &[0.25, 1.0, -3.5, 2.0]);
        let b = Bounded::run(&cancelling(64.0), &[x], 8).unwrap();
        assert!(b.slack.iter().flatten().all(|&s| s == 0.0), "{:?}", b.slack);
    }

    #[test]
    fn bounds_follow_the_condition() {
        let x = Tensor::from_f32(vec![4], &[0.1, 0.7, -0.3, 1.9]);
        let b = Bounded::run(&cancelling(1e4), &[x], 8).unwrap();
        let unit = 1e4 * f64::from(f32::EPSILON);
        assert!(b.slack[0].iter().all(|&s| s >= unit / 2.0 && s <= 100.0 * unit), "{:?}", b.slack[0]);
        assert!(b.slack[1].iter().all(|&s| s == 0.0));
        // an error within what rounding does passes, a larger one does not
        let near = |by: f32| {
            let want: Vec<f32> =
                b.want[0].data.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()) + by).collect();
            b.compare(0, &Tensor::from_f32(vec![4], &want)).passes()
        };
        assert!(near(5e-4) && !near(1.0));
    }
}
