//! Evaluates what depends on constants alone, through the reference interpreter and under a budget.
//! Larger constant expressions stay: they run once, as init kernels.

use super::rewrite::{Rule, Shared, Site, rewrite};
use crate::error::Result;
use crate::limits::Fuel;
use interp::Budget;
use ir::prim::Prim;
use ir::{ConstData, ConstId, ConstSource, DType, Dim, Graph, Module, Op, Tensor, ValueId};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of results and operands of one folded op.
const MAX_BYTES: usize = 256 << 10;
const BUDGET: Budget = Budget { max_bytes: 4 << 20, max_flops: 1 << 22 };

/// Conditions that become known choose their branch: `if` on a constant is replaced by it elsewhere
/// (`simplify`).
pub fn fold_constants(module: &mut Module, fuel: &Fuel) -> Result<()> {
    // eval_op wants a module for its constants and symbols; folding evaluates with operands at hand
    let mut shell = Module::default();
    shell.symbols.clone_from(&module.symbols);
    rewrite(module, &mut Fold { shell, scopes: Vec::new() }, fuel)
}

struct Fold {
    shell: Module,
    /// Values of constants and of foldable views, by nesting of regions.
    scopes: Vec<HashMap<ValueId, Option<Arc<Tensor>>>>,
}

impl Fold {
    /// The value of `v` where it is a constant, or a view of one that costs nothing to keep as a view.
    fn value(&mut self, cx: &Shared<'_>, graph: &Graph, v: ValueId) -> Option<Arc<Tensor>> {
        if let Some(known) = self.scopes.last().and_then(|s| s.get(&v)) {
            return known.clone();
        }
        let value = self.compute(cx, graph, v);
        self.scopes.last_mut()?.insert(v, value.clone());
        value
    }

    fn compute(&mut self, cx: &Shared<'_>, graph: &Graph, v: ValueId) -> Option<Arc<Tensor>> {
        let op = &graph[graph.def_op(v)?];
        match &op.prim {
            Prim::Const(id) => {
                let data = cx.consts.get(id.0 as usize)?;
                if matches!(data.source, ConstSource::Random { .. })
                    || bytes(data.dtype, &data.shape)? > MAX_BYTES
                {
                    return None;
                }
                interp::materialise(data).ok().map(Arc::new)
            }
            Prim::Broadcast { .. } | Prim::Iota { .. } => {
                let result = op.results.first()?;
                if bytes(graph[*result].ty.dtype, &sizes(&graph[*result].ty.shape)?)? > MAX_BYTES {
                    return None;
                }
                let operands =
                    op.operands.iter().map(|&o| self.value(cx, graph, o)).collect::<Option<Vec<_>>>()?;
                self.eval(op, &operands)?.into_iter().next().map(Arc::new)
            }
            _ => None,
        }
    }

    fn eval(&self, op: &Op, operands: &[Arc<Tensor>]) -> Option<Vec<Tensor>> {
        let operands: Vec<&Tensor> = operands.iter().map(|t| &**t).collect();
        // a run-time error of the op is the program's to report
        interp::eval_op(&self.shell, op, &operands, &|_| None, BUDGET).ok()
    }
}

fn sizes(shape: &[Dim]) -> Option<Vec<usize>> {
    shape.iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok())).collect()
}

/// A constant of any size in another shape: the same bytes. Packing wants to see its dims.
fn reshaped(cx: &mut Shared<'_>, site: &mut Site<'_>) -> Option<Vec<ValueId>> {
    let (Prim::Reshape { .. }, &[x], [ty]) = (&site.op.prim, site.operands, site.types) else { return None };
    let Prim::Const(id) = site.def(x)?.prim else { return None };
    let data = ConstData { shape: sizes(&ty.shape)?, name: None, ..cx.consts.get(id.0 as usize)?.clone() };
    let (id, ty) = (cx.add_const(data), ty.clone());
    Some(site.push(Prim::Const(id), Vec::new(), vec![ty]))
}

fn bytes(dtype: DType, shape: &[usize]) -> Option<usize> {
    ir::tensor::checked_elems(shape)?.checked_mul(dtype.bytes().max(1))
}

impl Rule for Fold {
    fn enter(&mut self, _: &Graph) {
        self.scopes.push(HashMap::new());
    }
    fn leave(&mut self) {
        self.scopes.pop();
    }
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        let op = site.op;
        let stays = match &op.prim {
            // views and index patterns are pulled into their users for nothing
            Prim::Const(_) | Prim::Broadcast { .. } | Prim::Iota { .. } | Prim::RandomBits { .. } => true,
            Prim::DimValue(d) => d.as_const().is_none(),
            Prim::Call { .. } | Prim::If { .. } | Prim::Loop { .. } | Prim::Host { .. } => true,
            p => p.has_effect() || !p.defines().is_empty(),
        };
        if stays {
            return Ok(None);
        }
        if let Some(same) = reshaped(cx, site) {
            return Ok(Some(same));
        }
        for t in site.types {
            let small = sizes(&t.shape).and_then(|s| bytes(t.dtype, &s)).is_some_and(|n| n <= MAX_BYTES);
            if !small || t.dtype == DType::String {
                return Ok(None);
            }
        }
        let mut operands = Vec::new();
        for &v in site.operands {
            match self.value(cx, site.graph, v) {
                Some(t) => operands.push(t),
                None => return Ok(None),
            }
        }
        #[cfg(feature = "planted-faults")]
        if matches!(op.prim, Prim::Binary(ir::prim::BinaryOp::Sub))
            && cx.fuel.planted(crate::planted::Fault::Fold)
        {
            operands.reverse();
        }
        let Some(results) = self.eval(op, &operands) else { return Ok(None) };
        let mut values = Vec::new();
        for (t, ty) in results.into_iter().zip(site.types) {
            let id: ConstId = cx.add_const(ConstData {
                dtype: t.dtype,
                shape: t.shape.clone(),
                source: ConstSource::Bytes(Arc::new(t.data)),
                name: None,
            });
            values.extend(site.push(Prim::Const(id), Vec::new(), vec![ty.clone()]));
        }
        Ok(Some(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::build::Builder;

    #[test]
    fn large_constants_are_reshaped_for_nothing() {
        let mut b = Builder::new("reshaped");
        let n = i64::try_from(MAX_BYTES).unwrap();
        let x = b.input("x", DType::F32, vec![Dim::from(2), Dim::from(n)]);
        let w = b.constant(Tensor::from_f32(vec![2 * MAX_BYTES], &vec![0.5; 2 * MAX_BYTES])).unwrap();
        let w = b.reshape(w, &[Dim::from(2), Dim::from(n)]).unwrap();
        let y = b.mul(x, w).unwrap();
        let mut m = b.finish(&[("y".into(), y)]).unwrap();
        let fuel = Fuel::new(&crate::Options::default());
        fold_constants(&mut m, &fuel).unwrap();
        super::super::dce(&mut m, &fuel).unwrap();
        ir::verify::graph::verify(&m).unwrap();
        assert!(!m.graph.ops().any(|(_, op)| matches!(op.prim, Prim::Reshape { .. })), "{}", m.graph.name);
        let bytes = |c: &ConstData| match &c.source {
            ConstSource::Bytes(b) => Arc::as_ptr(b).cast::<u8>(),
            _ => std::ptr::null(),
        };
        let all: Vec<*const u8> = m.consts.iter().map(bytes).collect();
        assert!(all.windows(2).all(|p| p[0] == p[1]), "the bytes are shared");
    }
}
