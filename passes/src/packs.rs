//! Packing with sizes as parameters.
//!
//! A network packs weights of many sizes in a few forms. Each would be a kernel of its own, to be compiled at
//! a first start and executed once. Here kernels that differ in sizes alone become one, whose sizes are symbols
//! that are set before each call.

use crate::host::Planned;
use ir::host::Step;
use ir::kernel::{Access, Expr, Kernel, Stmt};
use ir::prim::Combine;
use ir::{Dim, Sym, SymInfo, SymKind};
use std::collections::HashMap;

/// Sizes that stay constants: taps of a kernel, few colours.
const SMALL: i64 = 8;
const LARGEST: i64 = 1 << 32;

/// Makes init kernels that only pack, in the same form, one.
pub fn share(p: &mut Planned) {
    let mut syms: Vec<Sym> = Vec::new();
    let mut sizes = |p: &mut Planned, n: usize| {
        while syms.len() < n {
            let name = format!("packed{}", syms.len());
            let info = SymInfo { name, kind: SymKind::Value, lo: 1, hi: LARGEST, divisor: 1, hint: 64 };
            syms.push(p.module.symbols.add(info));
        }
        syms.clone()
    };
    // by form: the kernels that have it
    let mut forms: Vec<(Kernel, Vec<usize>)> = Vec::new();
    let mut of: HashMap<usize, (usize, Vec<i64>)> = HashMap::new();
    let calls: Vec<usize> = p.init.iter().filter_map(called).collect();
    for kernel in calls {
        if of.contains_key(&kernel) || !packs(&p.kernels[kernel]) {
            continue;
        }
        let rank = p.kernels[kernel].buffers[0].shape.len();
        let syms = sizes(p, rank);
        let (form, values) = form(&p.kernels[kernel], &syms);
        let at = forms.iter().position(|(f, _)| *f == form).unwrap_or_else(|| {
            forms.push((form, Vec::new()));
            forms.len() - 1
        });
        forms[at].1.push(kernel);
        of.insert(kernel, (at, values));
    }
    let mut number: HashMap<usize, usize> = HashMap::new();
    for (at, (form, kernels)) in forms.into_iter().enumerate() {
        if kernels.len() > 1 {
            number.insert(at, p.kernels.len());
            p.kernels.push(form);
        }
    }
    let mut init = Vec::with_capacity(p.init.len());
    for mut step in std::mem::take(&mut p.init) {
        if let Step::Call { kernel, origin, .. } = &mut step
            && let Some((at, values)) = of.get(kernel)
            && let Some(shared) = number.get(at)
        {
            let sets = syms.iter().zip(values);
            init.extend(sets.map(|(s, n)| Step::SetSym { sym: *s, value: Dim::from(*n), origin: *origin }));
            *kernel = *shared;
        }
        init.push(step);
    }
    p.init = init;
    crate::stage::drop_unused_kernels(p);
}

fn called(s: &Step) -> Option<usize> {
    match s {
        Step::Call { kernel, .. } => Some(*kernel),
        _ => None,
    }
}

/// True where the kernel writes each element of one buffer to its place in another one.
fn packs(k: &Kernel) -> bool {
    let [Stmt::Store { axes, buf, index, guards, value, combine: Combine::Set }] = k.stmts.as_slice() else {
        return false;
    };
    let Expr::Read { buf: from, index: read, guards: when, .. } = k.get(*value) else { return false };
    let [a, b] = k.buffers.as_slice() else { return false };
    let plain = |d: &Dim| d.is_const(0) || k.domain.iter().any(|x| *d == Dim::from(x.var));
    axes.is_empty()
        && guards.is_empty()
        && when.is_empty()
        && k.stages.is_empty()
        && k.params.is_empty()
        && buf != from
        && index == read
        && index.iter().all(plain)
        && a.shape == b.shape
        && (a.access, b.access) == (Access::Read, Access::Write)
        && a.dtype == b.dtype
        && [a, b].iter().all(|x| x.layout.halo.iter().all(|h| *h == (0, 0)))
        && a.shape.iter().all(|d| d.as_const().is_some())
}

/// The kernel with symbols in place of its sizes, in units of their panels, and their values.
fn form(k: &Kernel, syms: &[Sym]) -> (Kernel, Vec<i64>) {
    let mut form = k.clone();
    // the calls know where they come from
    form.origins.clear();
    let mut values = Vec::new();
    let Some(Stmt::Store { index, .. }) = k.stmts.first() else { return (form, values) };
    for (d, at) in index.iter().enumerate() {
        let size = k.buffers[0].shape[d].as_const().unwrap_or(1);
        let frags = k.buffers.iter().flat_map(|b| &b.layout.frags).filter(|f| f.dim == d);
        let unit = frags.map(|f| (f.div * f.len.unwrap_or(1)) as i64).max().unwrap_or(1).max(1);
        let large = size / unit > if unit == 1 { SMALL } else { 1 };
        let (true, Some(sym)) = (size % unit == 0 && large, syms.get(values.len())) else { continue };
        let extent = Dim::from(*sym) * Dim::from(unit);
        values.push(size / unit);
        form.buffers.iter_mut().for_each(|b| b.shape[d] = extent.clone());
        form.domain.iter_mut().filter(|x| *at == Dim::from(x.var)).for_each(|x| x.extent = extent.clone());
    }
    (form, values)
}

#[cfg(test)]
mod tests {
    use crate::tests::{check, data, names};
    use ir::build::Builder;
    use ir::{DType, Dim};

    /// Weights of five sizes.
    #[test]
    fn one_kernel_packs_many() {
        let mut b = Builder::new("packs");
        let n = b.symbol("n", 1, 64);
        let mut v = b.input("x", DType::F32, vec![n, Dim::from(96)]);
        for (i, [k, n]) in [[96, 320], [320, 384], [384, 704], [704, 320], [320, 640]].into_iter().enumerate()
        {
            let w = b.random_constant(DType::F32, &[k, n], i as u64, 0.0, 0.1).unwrap();
            v = b.matmul(v, w).unwrap();
            v = b.tanh(v).unwrap();
        }
        let m = b.finish(&[("y".into(), v)]).unwrap();
        let p = check(&m, &[data(DType::F32, &[3, 96], 1)]);
        let packs = p.kernels.iter().filter(|k| k.name == "pack").count();
        // one for each width of panels
        assert!(packs <= 3, "{:?}", names(&p));
    }
}
