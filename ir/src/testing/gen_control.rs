//! Control flow in random graphs.

use super::values::Grid;
use super::{Gen, Item};
use crate::build::{LoopStep, V};
use crate::{DType, Dim, IrError};

impl Gen {
    /// A few steps inside the innermost region; answers the last value, or `or` where nothing came of it.
    fn inner(&mut self, steps: usize, or: Item) -> Item {
        let before = self.pool.len();
        for _ in 0..steps {
            let mut next = self.clone();
            if next.step().is_some() && next.sound(self.b.required().len()) {
                *self = next;
            } else {
                self.rng.next_u64();
            }
        }
        if self.pool.len() > before { self.pool[self.pool.len() - 1] } else { or }
    }

    /// Runs `f` on a region of its own and leaves the pool as it was; the region's graph is closed.
    fn region<R>(&mut self, f: impl FnOnce(&mut Gen) -> R) -> R {
        let pool = self.pool.clone();
        let r = f(self);
        self.pool = pool;
        r
    }

    pub(super) fn call(&mut self) -> Option<()> {
        let args: Vec<Item> = (0..=self.rng.below(2)).map(|_| self.any()).collect();
        let values: Vec<V> = args.iter().map(|a| a.v).collect();
        // the builder that the closure gets is the one that this generator owns: take it out and back
        let mut grid = None;
        let results = self.with_builder(|g, outer| {
            outer.call::<IrError>("random", Vec::new(), &values, |b, inner| {
                g.swap(b);
                let out = g.region(|g| {
                    let inner = inner.iter().zip(&args).map(|(&v, a)| Item { v, grid: a.grid });
                    g.pool = inner.collect();
                    let first = g.pool[0];
                    g.inner(3, first)
                });
                g.swap(b);
                grid = Some(out.grid);
                Ok(vec![out.v])
            })
        });
        let v = *results.ok()?.first()?;
        self.push(v, grid?)
    }

    pub(super) fn branch(&mut self) -> Option<()> {
        let cond = self.boolean_scalar();
        let a = self.number()?;
        let other = self.number()?;
        let grow = self.rng.one_in(3) && self.b.rank(a.v) > 0;
        let mut grids = Vec::new();
        let dtype = self.b.dtype(a.v);
        let results = self.with_builder(|g, b| {
            let depth = b.depth();
            let mut branch = |g: &mut Gen, b: &mut crate::build::Builder, which: usize| {
                b.begin_region(if which == 0 { "then" } else { "else" });
                g.swap(b);
                let out = g.region(|g| {
                    // captures of outer values come about by use
                    let t = g.b.mul(a.v, a.v).ok()?;
                    let mut item = Item { v: t, grid: a.grid.product(a.grid).within(dtype) };
                    if which == 1 {
                        item = Item { v: g.b.neg(a.v).ok()?, grid: a.grid };
                        g.pool.push(other);
                        g.inner(1, other);
                        if grow {
                            let v = g.b.concat(&[item.v, a.v], 0).ok()?;
                            item = Item { v, grid: item.grid };
                        }
                    }
                    Some(item)
                });
                g.swap(b);
                let out = out?;
                grids.push(if dtype.is_int() { Grid::of_random(dtype) } else { out.grid });
                b.end_region(&[out.v]).ok()
            };
            let regions = branch(g, b, 0).and_then(|then| Some((then, branch(g, b, 1)?)));
            match regions {
                Some((then, otherwise)) => b.finish_if(cond, then, otherwise),
                None => {
                    b.abandon_regions(depth);
                    Err(IrError::ty("if", "a branch did not work out"))
                }
            }
        });
        let v = *results.ok()?.first()?;
        let grid = grids.into_iter().reduce(Grid::union)?;
        self.push(v, grid)
    }

    pub(super) fn looped(&mut self) -> Option<()> {
        let trip = self.rng.range(0, 4);
        let trip_v = self.b.scalar_i64(trip).ok()?;
        let a = self.number()?;
        let a = if self.b.dtype(a.v).is_float() {
            // four steps must stay exact or small
            Item {
                v: self.b.scalar(self.b.dtype(a.v), 0.5).and_then(|h| self.b.min(a.v, h)).ok()?,
                grid: a.grid,
            }
        } else {
            a
        };
        let dtype = self.b.dtype(a.v);
        let shape = self.b.shape(a.v).to_vec();
        let grow = self.rng.one_in(3);
        let until = self.rng.range(0, 5);
        let zero = self.b.full(dtype, &shape, 0.0).ok()?;
        let mut start = vec![Dim::from(0)];
        start.extend(shape.clone());
        let empty = self.b.full(dtype, &start, 0.0).ok()?;
        let carried: Vec<V> = if grow { vec![zero, empty] } else { vec![zero] };
        let stop = self.b.scalar_i64(until).ok()?;
        let results = self.b.loop_::<IrError>(Some(trip_v), None, &carried, |b, i, c| {
            let sum = b.add(c[0], a.v)?;
            let step = b.convert(i, dtype)?;
            let scan = b.add(sum, step)?;
            let mut next = vec![sum];
            if grow {
                let row: Vec<Dim> = [vec![Dim::from(1)], b.shape(sum).to_vec()].concat();
                let row = b.reshape(sum, &row)?;
                next.push(b.concat(&[c[1], row], 0)?);
            }
            let cond = b.lt(i, stop)?;
            Ok(LoopStep { cond, carried: next, scans: vec![scan] })
        });
        let grid = match dtype.is_float() {
            true => a.grid.times(4.0).sum(Grid::int(4.0)).within(dtype),
            false => Grid::of_random(dtype),
        };
        for v in results.ok()? {
            // stacked values are at most five times as many
            self.push(v, grid).or_else(|| self.bounded(v, grid))?;
        }
        Some(())
    }
    /// As `push` for values whose size only the run knows: a sum over them is small again.
    fn bounded(&mut self, v: V, grid: Grid) -> Option<()> {
        let dtype = self.b.dtype(v);
        let s = self.b.reduce_sum(v, &[0], false).ok()?;
        let grid = if dtype.is_float() { grid.times(8.0).within(dtype) } else { grid };
        self.push(s, grid)
    }

    fn boolean_scalar(&mut self) -> V {
        let found = self.find(|g, i| g.b.dtype(i.v) == DType::Bool && g.b.rank(i.v) == 0);
        match found {
            Some(i) => i.v,
            None => self.fresh(DType::Bool, Vec::new()).v,
        }
    }

    /// Calls `f` with the builder apart from the generator.
    fn with_builder<R>(&mut self, f: impl FnOnce(&mut Gen, &mut crate::build::Builder) -> R) -> R {
        let mut b = std::mem::replace(&mut self.b, crate::build::Builder::new(""));
        let r = f(self, &mut b);
        self.b = b;
        r
    }
    fn swap(&mut self, b: &mut crate::build::Builder) {
        std::mem::swap(&mut self.b, b);
    }
}
