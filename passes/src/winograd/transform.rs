//! The three transforms of a minimal filtering, from the points of its polynomials (Toom 1963, Cook 1966,
//! Winograd 1980), and their emission as expressions.
//!
//! A sum of products with a filter of `r` taps at `m` places is the transpose of the product of two
//! polynomials of degrees `m - 1` and `r - 1`. That product has `n = m + r - 1` coefficients and so is known by
//! its values at `n - 1` points and its leading coefficient (the value "at infinity"): `n` products.

use crate::pull::Puller;
use ir::DType;
use ir::dtype::Scalar;
use ir::kernel::ExprId;
use ir::prim::BinaryOp;

/// Finite points, the ones that cost fewest digits first. Pairs of opposite points share half of their sums.
const POINTS: [f64; 7] = [0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5];

/// Values that a tile may be transformed to in each dim.
pub const MAX_READ: i64 = POINTS.len() as i64 + 1;

/// Rows of coefficients.
#[derive(Clone, PartialEq, Debug)]
pub struct Matrix {
    columns: usize,
    rows: Vec<Vec<f64>>,
}

/// The matrices of F(m, r): `y = output ((weights g) * (input d))` for an input tile `d` of `n` elements, a filter
/// `g` of `r` taps and `m` results `y[i]`, each the sum of `g[k] d[i + k]`.
#[derive(Clone, Debug)]
pub struct Transforms {
    /// `n x r`.
    pub weights: Matrix,
    /// `n x n`.
    pub input: Matrix,
    /// `m x n`.
    pub output: Matrix,
}

impl Transforms {
    /// `m + r - 1` is [`MAX_READ`] at most.
    pub fn new(m: usize, r: usize) -> Transforms {
        let n = m + r - 1;
        let points = &POINTS[..(n - 1).min(POINTS.len())];
        // coefficients of the product of x - a over all points but one
        let product = |but: usize| {
            let mut p = vec![1.0];
            for (_, a) in points.iter().enumerate().filter(|(i, _)| *i != but) {
                p.push(0.0);
                for k in (0..p.len()).rev() {
                    let lower = if k > 0 { p[k - 1] } else { 0.0 };
                    p[k] = lower - a * p[k];
                }
            }
            p.resize(n, 0.0);
            p
        };
        let powers = |a: f64, count: usize| (0..count).map(|k| a.powi(k as i32)).collect::<Vec<f64>>();
        let leading = |count: usize| (0..count).map(|k| f64::from(k + 1 == count)).collect::<Vec<f64>>();
        let mut weights: Vec<Vec<f64>> = Vec::new();
        let mut input = Vec::new();
        for (i, a) in points.iter().enumerate() {
            let others = points.iter().enumerate().filter(|(j, _)| *j != i);
            let scale: f64 = others.map(|(_, b)| a - b).product();
            weights.push(powers(*a, r).into_iter().map(|p| p / scale).collect());
            input.push(product(i));
        }
        weights.push(leading(r));
        input.push(product(n));
        let at: Vec<Vec<f64>> = points.iter().map(|a| powers(*a, m)).chain([leading(m)]).collect();
        Transforms {
            weights: Matrix { columns: r, rows: weights },
            input: Matrix { columns: n, rows: input },
            output: Matrix { columns: m, rows: at }.transposed(),
        }
    }
}

impl Matrix {
    pub fn transposed(&self) -> Matrix {
        let rows = (0..self.columns).map(|c| self.rows.iter().map(|r| r[c]).collect()).collect();
        Matrix { columns: self.rows.len(), rows }
    }

    /// `self x self'` of a square matrix `x`: the transform of its columns, then of the rows of the result.
    pub fn both_ways(&self, p: &mut Puller, x: &[ExprId]) -> Vec<ExprId> {
        let n = self.columns;
        let columns: Vec<Vec<ExprId>> = (0..n)
            .map(|j| {
                let column: Vec<ExprId> = (0..n).map(|i| x[i * n + j]).collect();
                self.times(p, &column)
            })
            .collect();
        (0..self.rows.len())
            .flat_map(|i| {
                let row: Vec<ExprId> = columns.iter().map(|c| c[i]).collect();
                self.times(p, &row)
            })
            .collect()
    }

    /// The product with a vector. Neighbouring columns that are equal or opposite in each row are added and
    /// subtracted first; neighbouring rows like that share their sums.
    fn times(&self, p: &mut Puller, x: &[ExprId]) -> Vec<ExprId> {
        let mut rows = vec![Vec::new(); self.rows.len()];
        let mut terms: Vec<ExprId> = Vec::new();
        let mut c = 0;
        while c < self.columns {
            let alike = |r: &Vec<f64>| c + 1 < self.columns && r[c].abs() == r[c + 1].abs();
            let paired = self.rows.iter().all(alike) && self.rows.iter().filter(|r| r[c] != 0.0).count() > 2;
            if paired {
                let (sum, difference) = (add(p, x[c], x[c + 1]), sub(p, x[c], x[c + 1]));
                terms.extend([sum, difference]);
                for (to, r) in rows.iter_mut().zip(&self.rows) {
                    let equal = r[c] == r[c + 1];
                    to.extend(if equal { [r[c], 0.0] } else { [0.0, r[c]] });
                }
                c += 2;
            } else {
                terms.push(x[c]);
                rows.iter_mut().zip(&self.rows).for_each(|(to, r)| to.push(r[c]));
                c += 1;
            }
        }
        let mut out = Vec::new();
        let mut at = 0;
        while at < rows.len() {
            let (row, next) = (&rows[at], rows.get(at + 1));
            let split = next.filter(|n| row.iter().zip(*n).all(|(a, b)| a.abs() == b.abs()));
            let Some(next) = split else {
                out.push(weighted(p, row, &terms));
                at += 1;
                continue;
            };
            let part = |equal: bool| -> Vec<f64> {
                row.iter().zip(next).map(|(a, b)| if (a == b) == equal { *a } else { 0.0 }).collect()
            };
            let (same, opposite) = (part(true), part(false));
            let (same, opposite) = (weighted(p, &same, &terms), weighted(p, &opposite, &terms));
            out.extend([add(p, same, opposite), sub(p, same, opposite)]);
            at += 2;
        }
        out
    }
}

/// The sum of `c[i] x[i]`: terms whose coefficients have one size share the multiplication.
fn weighted(p: &mut Puller, c: &[f64], x: &[ExprId]) -> ExprId {
    let mut sizes: Vec<f64> = c.iter().map(|c| c.abs()).filter(|c| *c != 0.0).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let mut total: Option<(ExprId, bool)> = None;
    for size in sizes {
        // the sum of one size, and whether it counts negative
        let mut sum: Option<(ExprId, bool)> = None;
        for (c, x) in c.iter().zip(x).filter(|(c, _)| c.abs() == size) {
            sum = Some(joined(p, sum, (*x, *c < 0.0)));
        }
        let Some((sum, negative)) = sum else { continue };
        let sum = if size == 1.0 { sum } else { scaled(p, sum, size) };
        total = Some(joined(p, total, (sum, negative)));
    }
    match total {
        Some((e, false)) => e,
        Some((e, true)) => scaled(p, e, -1.0),
        None => p.constant(DType::F32, Scalar::Float(0.0)),
    }
}

/// Adds a term with its sign to a sum with its sign.
fn joined(p: &mut Puller, sum: Option<(ExprId, bool)>, (x, negative): (ExprId, bool)) -> (ExprId, bool) {
    match sum {
        None => (x, negative),
        Some((s, n)) if n == negative => (add(p, s, x), n),
        Some((s, false)) => (sub(p, s, x), false),
        Some((s, true)) => (sub(p, x, s), false),
    }
}

fn scaled(p: &mut Puller, x: ExprId, c: f64) -> ExprId {
    let c = p.constant(DType::F32, Scalar::Float(c));
    p.binary(BinaryOp::Mul, x, c)
}
fn add(p: &mut Puller, x: ExprId, y: ExprId) -> ExprId {
    p.binary(BinaryOp::Add, x, y)
}
fn sub(p: &mut Puller, x: ExprId, y: ExprId) -> ExprId {
    p.binary(BinaryOp::Sub, x, y)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(m: &Matrix, x: &[f64]) -> Vec<f64> {
        m.rows.iter().map(|r| r.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    }

    #[test]
    fn filters_of_all_sizes() {
        for r in 2..=7 {
            for m in (2..).take_while(|m| m + r - 1 <= MAX_READ as usize) {
                let t = Transforms::new(m, r);
                let n = m + r - 1;
                let g: Vec<f64> = (0..r).map(|k| ((7 * k + 3) % 5) as f64 - 1.5).collect();
                let d: Vec<f64> = (0..n).map(|k| ((5 * k + 2) % 7) as f64 - 2.5).collect();
                let (u, v) = (apply(&t.weights, &g), apply(&t.input, &d));
                let products: Vec<f64> = u.iter().zip(&v).map(|(a, b)| a * b).collect();
                let y = apply(&t.output, &products);
                for (i, y) in y.iter().enumerate() {
                    let want: f64 = (0..r).map(|k| g[k] * d[i + k]).sum();
                    assert!((y - want).abs() < 1e-9, "F({m}, {r}), place {i}: {y}, not {want}");
                }
                // the same products, transposed: the coefficients of a product of polynomials
                let x: Vec<f64> = (0..m).map(|k| ((3 * k + 1) % 4) as f64 - 0.5).collect();
                let v = apply(&t.output.transposed(), &x);
                let products: Vec<f64> = u.iter().zip(&v).map(|(a, b)| a * b).collect();
                for (i, y) in apply(&t.input.transposed(), &products).iter().enumerate() {
                    let inside = |k: &usize| i >= *k && i - k < m;
                    let want: f64 = (0..r).filter(inside).map(|k| g[k] * x[i - k]).sum();
                    assert!((y - want).abs() < 1e-9, "F({m}, {r}) transposed, {i}: {y}, not {want}");
                }
            }
        }
    }

    #[test]
    fn the_matrices_of_four_places() {
        let t = Transforms::new(4, 3);
        assert_eq!(t.input.rows[0], [4.0, 0.0, -5.0, 0.0, 1.0, 0.0]);
        assert_eq!(t.input.rows[3], [0.0, -2.0, -1.0, 2.0, 1.0, 0.0]);
        assert_eq!(t.weights.rows[4], [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0]);
        assert_eq!(t.output.rows[3], [0.0, 1.0, -1.0, 8.0, -8.0, 1.0]);
    }
}
