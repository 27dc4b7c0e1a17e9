//! One stage of a chain on one block of the shared domain.

use super::shared::SharedAxis;
use crate::lower::space::{Rewrite, VarFacts, rewrite, substitute};
use ir::kernel::{Access, Axis, BufId, Expr, Kernel, Stmt};
use ir::{Dim, Layout, Symbols, Var};
use std::collections::HashMap;

/// How a shared axis is cut. All blocks are whole: where they do not divide the axis, the last one begins
/// early and repeats what the block before it did.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cut {
    /// Number of the shared axis.
    pub axis: usize,
    pub size: u32,
}

impl Cut {
    /// The blocks divide the axis.
    pub fn is_exact(self, extent: &Dim, symbols: &Symbols) -> bool {
        extent.divisible_by(self.size.into(), symbols)
    }
    pub fn count(self, extent: &Dim, symbols: &Symbols) -> Dim {
        extent.ceil_div(&Dim::from(i64::from(self.size)), symbols)
    }
}

/// Stage `stage` of `chain` on one block. Its parameters are one for each cut: the number of the block, or
/// where blocks overlap its first element. Buffers between stages have the size of a block.
pub fn stage_of_block(
    chain: &Kernel,
    shared: &[SharedAxis],
    cuts: &[Cut],
    stage: usize,
    symbols: &Symbols,
) -> Kernel {
    let s = &chain.stages[stage];
    let mut k = s.kernel.clone();
    let mut facts = VarFacts::of(&k, symbols);
    let mut map: Vec<(Var, Dim)> = Vec::new();
    // by part that goes: the axis that takes its place, if any
    let mut domain: HashMap<Var, Option<Axis>> = HashMap::new();
    // the position inside of the block, by dim of a buffer between stages
    let mut local: HashMap<(BufId, usize), (Dim, u32)> = HashMap::new();
    for cut in cuts {
        let axis = &shared[cut.axis];
        let size = Dim::from(i64::from(cut.size));
        let exact = cut.is_exact(&axis.extent, symbols);
        let param = k.new_var(format!("block{}", cut.axis));
        let extent = match exact {
            true => cut.count(&axis.extent, symbols),
            false => &axis.extent - &size + Dim::from(1),
        };
        facts.set(param, extent.clone());
        k.params.push(Axis { var: param, extent });
        let begin = if exact { Dim::from(param) * &size } else { Dim::from(param) };
        let inner = (cut.size > 1).then(|| {
            let name = axis.parts[stage].last().and_then(|a| k.vars.get(a.var.0 as usize).cloned());
            let var = k.new_var(format!("{}_in", name.unwrap_or_default()));
            facts.set(var, size.clone());
            Axis { var, extent: size.clone() }
        });
        let at = inner.as_ref().map_or(Dim::from(0), |a| Dim::from(a.var));
        let number = begin + &at;
        let mut stride = Dim::from(1);
        for (i, part) in axis.parts[stage].iter().enumerate().rev() {
            let q = number.floor_div(&stride, &facts);
            let v = if i == 0 { q } else { q.modulo(&part.extent, &facts) };
            map.push((part.var, v));
            domain.insert(part.var, inner.clone().filter(|_| i == 0));
            stride = stride * &part.extent;
        }
        local.extend(axis.dims.iter().map(|d| (*d, (at.clone(), cut.size))));
    }
    let is_local = |b: BufId| chain.buffers[s.args[b.0 as usize].0 as usize].access == Access::Local;
    let slice = |buf: BufId, index: &mut Vec<Dim>| {
        if is_local(buf) {
            for (d, i) in index.iter_mut().enumerate() {
                if let Some((at, _)) = local.get(&(s.args[buf.0 as usize], d)) {
                    *i = at.clone();
                }
            }
        }
    };
    struct Apply<'a, 'b> {
        facts: &'a VarFacts<'b>,
        map: &'a [(Var, Dim)],
        slice: &'a dyn Fn(BufId, &mut Vec<Dim>),
    }
    impl Rewrite for Apply<'_, '_> {
        fn dim(&mut self, d: &Dim) -> Dim {
            substitute(d, self.facts, self.map)
        }
        fn expr(&mut self, mut e: Expr) -> Expr {
            if let Expr::Read { buf, index, .. } = &mut e {
                (self.slice)(*buf, index);
            }
            e
        }
        fn stmt(&mut self, mut s: Stmt, _: &mut Kernel) -> Vec<Stmt> {
            if let Stmt::Store { buf, index, .. } = &mut s {
                (self.slice)(*buf, index);
            }
            vec![s]
        }
    }
    let mut out = rewrite(&k, &mut Apply { facts: &facts, map: &map, slice: &slice });
    out.domain = out
        .domain
        .into_iter()
        .filter_map(|a| match domain.get(&a.var) {
            Some(inner) => inner.clone(),
            None => Some(a),
        })
        .collect();
    for (i, b) in out.buffers.iter_mut().enumerate() {
        if is_local(BufId(i as u32)) {
            b.shape = local_shape(chain, s.args[i], shared, cuts);
            b.layout = Layout::row_major(b.shape.len());
        }
    }
    out
}

/// Shape of the slice of a buffer between stages that one block needs.
pub fn local_shape(chain: &Kernel, buf: BufId, shared: &[SharedAxis], cuts: &[Cut]) -> Vec<Dim> {
    let mut shape = chain.buffers[buf.0 as usize].shape.clone();
    for cut in cuts {
        for (b, d) in &shared[cut.axis].dims {
            if *b == buf {
                shape[*d] = Dim::from(i64::from(cut.size));
            }
        }
    }
    shape
}
