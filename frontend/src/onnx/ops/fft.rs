//! The fast Fourier transform: mixed radix, decimation in frequency (Cooley and Tukey 1965; the butterflies of
//! radix 4 and of odd radices are those of Temperton, "Self-sorting mixed-radix fast Fourier transforms", 1983).
//! A pass for each factor of the length, all of it elementwise arithmetic between views, so that `n log n` products
//! take the place of `n^2`.

use super::trees::floats;
use ir::build::{Builder, V};
use ir::{DType, Dim, Result};
use std::f64::consts::TAU;

/// Larger prime factors cost more than the transform by its definition.
const MAX_RADIX: i64 = 13;
/// Of longer ones the factors between the passes, which are constants, are too much to keep.
const MAX_LENGTH: i64 = 1 << 22;

/// A complex tensor: real and imaginary part.
#[derive(Clone, Copy)]
pub struct Complex(pub V, pub V);

/// The radices of the passes, in order; `None` where the length or a prime factor of it is too large.
pub fn radices(length: i64) -> Option<Vec<i64>> {
    let (mut rest, mut out) = (length, Vec::new());
    if !(1..=MAX_LENGTH).contains(&rest) {
        return None;
    }
    while rest % 4 == 0 {
        rest /= 4;
        out.push(4);
    }
    if rest % 2 == 0 {
        rest /= 2;
        out.insert(0, 2);
    }
    for p in (3..=MAX_RADIX).step_by(2) {
        while rest % p == 0 {
            rest /= p;
            out.push(p);
        }
    }
    (rest == 1).then_some(out)
}

/// The transform of `x` along `axis`, of the extent that is the product of `radices`: the sums of
/// `x[j] exp(-+ 2 pi i j k / n)`, `+` for the inverse, which is not divided by the length.
pub fn transform(
    b: &mut Builder,
    x: Complex,
    axis: usize,
    radices: &[i64],
    inverse: bool,
) -> Result<Complex> {
    let shape = b.shape(x.0).to_vec();
    let n: i64 = radices.iter().product();
    let (before, after) = (Dim::product(&shape[..axis]), Dim::product(&shape[axis + 1..]));
    let pass = Pass { before, after, n, inverse };
    let (mut x, mut done) = (x, 1);
    for &radix in radices {
        x = pass.run(b, x, radix, done)?;
        done *= radix;
    }
    Ok(Complex(b.reshape(x.0, &shape)?, b.reshape(x.1, &shape)?))
}

struct Pass {
    /// Elements in front of the axis and behind it.
    before: Dim,
    after: Dim,
    n: i64,
    inverse: bool,
}

impl Pass {
    /// [before, done, radix, rest, after] to [before, radix, done, rest, after].
    fn run(&self, b: &mut Builder, x: Complex, radix: i64, done: i64) -> Result<Complex> {
        let rest = self.n / done / radix;
        let from = [self.before.clone(), done.into(), radix.into(), rest.into(), self.after.clone()];
        let x = Complex(b.reshape(x.0, &from)?, b.reshape(x.1, &from)?);
        let mut parts = Vec::new();
        for j in 0..radix {
            let j = Dim::from(j);
            parts.push(Complex(b.index_axis(x.0, 2, &j)?, b.index_axis(x.1, 2, &j)?));
        }
        let mut outs = match radix {
            2 => vec![add(b, parts[0], parts[1])?, sub(b, parts[0], parts[1])?],
            4 => self.four(b, &parts)?,
            _ => self.odd(b, &parts)?,
        };
        for (u, out) in outs.iter_mut().enumerate().skip(1) {
            *out = self.turned(b, *out, u as i64 * done, rest)?;
        }
        let stack = |b: &mut Builder, part: fn(&Complex) -> V| -> Result<V> {
            let all = outs.iter().map(|o| b.unsqueeze(part(o), &[1])).collect::<Result<Vec<V>>>()?;
            b.concat(&all, 1)
        };
        Ok(Complex(stack(b, |c| c.0)?, stack(b, |c| c.1)?))
    }

    /// Element `i` of the axis of extent `rest` times `exp(-+ 2 pi i u i / n)`.
    fn turned(&self, b: &mut Builder, x: Complex, u: i64, rest: i64) -> Result<Complex> {
        if rest == 1 {
            return Ok(x);
        }
        let table = |f: fn(f64) -> f64| -> Vec<f64> {
            (0..rest).map(|i| f(TAU * ((u * i) % self.n) as f64 / self.n as f64)).collect()
        };
        let shape = [rest as usize, 1];
        let (cos, sin) =
            (constant(b, x.0, &shape, &table(f64::cos))?, constant(b, x.0, &shape, &table(f64::sin))?);
        let (rc, is) = (b.mul(x.0, cos)?, b.mul(x.1, sin)?);
        let (rs, ic) = (b.mul(x.0, sin)?, b.mul(x.1, cos)?);
        Ok(if self.inverse {
            Complex(b.sub(rc, is)?, b.add(rs, ic)?)
        } else {
            Complex(b.add(rc, is)?, b.sub(ic, rs)?)
        })
    }

    fn four(&self, b: &mut Builder, x: &[Complex]) -> Result<Vec<Complex>> {
        let (even, odd) = (add(b, x[0], x[2])?, add(b, x[1], x[3])?);
        let (left, right) = (sub(b, x[0], x[2])?, sub(b, x[1], x[3])?);
        // a quarter turn
        let right =
            if self.inverse { Complex(b.neg(right.1)?, right.0) } else { Complex(right.1, b.neg(right.0)?) };
        Ok(vec![add(b, even, odd)?, add(b, left, right)?, sub(b, even, odd)?, sub(b, left, right)?])
    }

    /// Parts `j` and `radix - j` meet in sums, which go with cosines, and differences, which go with sines.
    fn odd(&self, b: &mut Builder, x: &[Complex]) -> Result<Vec<Complex>> {
        let radix = x.len();
        let half = radix / 2;
        let (mut sums, mut differences, mut all) = (Vec::new(), Vec::new(), x[0]);
        for j in 1..=half {
            sums.push(add(b, x[j], x[radix - j])?);
            differences.push(sub(b, x[j], x[radix - j])?);
        }
        for &s in &sums {
            all = add(b, all, s)?;
        }
        let mut out = vec![all; radix];
        for u in 1..=half {
            let angle = |j: usize| TAU * ((u * j) % radix) as f64 / radix as f64;
            let mut even = x[0];
            let mut odd: Option<Complex> = None;
            for (j, (&s, &d)) in (1..=half).zip(sums.iter().zip(&differences)) {
                let s = scale(b, s, angle(j).cos())?;
                even = add(b, even, s)?;
                let sin = if self.inverse { angle(j).sin() } else { -angle(j).sin() };
                let d = scale(b, d, sin)?;
                odd = Some(match odd {
                    Some(o) => add(b, o, d)?,
                    None => d,
                });
            }
            if let Some(o) = odd {
                let turned = Complex(b.neg(o.1)?, o.0);
                out[u] = add(b, even, turned)?;
                out[radix - u] = sub(b, even, turned)?;
            }
        }
        Ok(out)
    }
}

fn constant(b: &mut Builder, like: V, shape: &[usize], xs: &[f64]) -> Result<V> {
    let dtype = b.dtype(like);
    let c = floats(b, DType::F64, shape, xs)?;
    b.convert(c, dtype)
}

fn add(b: &mut Builder, x: Complex, y: Complex) -> Result<Complex> {
    Ok(Complex(b.add(x.0, y.0)?, b.add(x.1, y.1)?))
}

fn sub(b: &mut Builder, x: Complex, y: Complex) -> Result<Complex> {
    Ok(Complex(b.sub(x.0, y.0)?, b.sub(x.1, y.1)?))
}

fn scale(b: &mut Builder, x: Complex, by: f64) -> Result<Complex> {
    Ok(Complex(b.mul_scalar(x.0, by)?, b.mul_scalar(x.1, by)?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn lengths_are_factored() {
        assert_eq!(super::radices(10).unwrap(), [2, 5]);
        assert_eq!(super::radices(1).unwrap(), [0i64; 0]);
        assert_eq!(super::radices(400).unwrap(), [4, 4, 5, 5]);
        assert_eq!(super::radices(1024).unwrap(), [4; 5]);
        assert_eq!(super::radices(63).unwrap(), [3, 3, 7]);
        assert_eq!(super::radices(17), None);
        assert_eq!(super::radices(0), None);
        assert_eq!(super::radices(1 << 40), None);
    }
}
