//! A model with the inputs on which something happens.

use crate::driver::Error;
use interp::{Bounded, Interp};
use ir::{Dim, Module, Sym, Tensor};

/// A module, and inputs of one or more runs.
#[derive(Clone, Debug)]
pub struct Repro {
    pub module: Module,
    pub sets: Vec<Vec<Tensor>>,
}

/// Runs with noise for a first bound, and for one that a disagreement is held against.
const FEW: u64 = 4;
const MANY: u64 = 48;

impl Repro {
    pub fn of_case(case: &ir::testing::Case) -> Repro {
        let sets = (0..case.sizes.len()).map(|i| case.inputs(i)).collect();
        Repro { module: case.module.clone(), sets }
    }

    /// What the reference interpreter gives, with bounds.
    pub fn reference(&self, careful: bool) -> Result<Vec<Bounded>, Error> {
        let samples = if careful { MANY } else { FEW };
        let run = |inputs: &Vec<Tensor>| Bounded::run(&self.module, inputs, samples);
        Ok(self.sets.iter().map(run).collect::<Result<_, _>>()?)
    }

    /// Every value of the main graph, by set.
    pub fn values(&self) -> Result<Vec<Vec<Option<Tensor>>>, Error> {
        let mut all = Vec::new();
        for inputs in &self.sets {
            let mut values = vec![None; self.module.graph.value_count()];
            Interp::new(&self.module).run_with_values(inputs, &mut |v, t| {
                values[v.index()] = Some(t.clone());
                None
            })?;
            all.push(values);
        }
        Ok(all)
    }

    /// Values of the entry symbols in one set.
    pub fn sizes(&self, set: usize) -> Vec<(Sym, i64)> {
        let g = &self.module.graph;
        let mut sizes: Vec<(Sym, i64)> = Vec::new();
        for (&v, t) in g.inputs.iter().zip(&self.sets[set]) {
            for (d, &n) in g[v].ty.shape.iter().zip(&t.shape) {
                if let Some(s) = d.as_sym()
                    && !sizes.iter().any(|x| x.0 == s)
                {
                    sizes.push((s, n as i64));
                }
            }
        }
        sizes
    }

    /// The same with inputs that a seed makes: a text can hold it then.
    pub fn with_seed(&self, seed: u64) -> Repro {
        let mut rng = ir::testing::Rng::new(seed);
        let mut random = |t: &Tensor| ir::testing::random_tensor(&mut rng, t.dtype, t.shape.clone());
        let sets = self.sets.iter().take(1).map(|set| set.iter().map(&mut random).collect()).collect();
        // one generator for all inputs, in their order
        Repro { module: self.module.clone(), sets }
    }

    /// As [`Repro::with_seed`] for a module alone, with these sizes by name.
    pub fn seeded(module: Module, sizes: &[(String, i64)], seed: u64) -> Option<Repro> {
        let mut rng = ir::testing::Rng::new(seed);
        let value = |s: Sym| {
            let name = &module.symbols.get(s).name;
            sizes.iter().find(|x| x.0 == *name).map(|x| x.1)
        };
        let mut set = Vec::new();
        for &v in &module.graph.inputs {
            let ty = &module.graph[v].ty;
            let extent = |d: &Dim| usize::try_from(d.eval_syms(&value)?).ok();
            let shape = ty.shape.iter().map(extent).collect::<Option<Vec<usize>>>()?;
            set.push(ir::testing::random_tensor(&mut rng, ty.dtype, shape));
        }
        Some(Repro { module, sets: vec![set] })
    }

    /// Ops of all graphs.
    pub fn ops(&self) -> usize {
        fn count(g: &ir::Graph) -> usize {
            g.ops().map(|(_, op)| 1 + op.regions.iter().map(count).sum::<usize>()).sum()
        }
        count(&self.module.graph)
    }
}
