//! The walk that all graph passes share.

use crate::error::Result;
use crate::limits::Fuel;
use ir::dtype::Scalar;
use ir::{ConstData, ConstId, DType, Graph, Module, Op, Prim, Symbols, TensorType, ValueId};

/// What a rule may read and add to while the graph is taken out of its module.
pub(crate) struct Shared<'m> {
    pub consts: &'m mut Vec<ConstData>,
    /// Each op that a rule replaces is one decision of the pass that runs.
    pub fuel: &'m Fuel,
}

impl Shared<'_> {
    pub fn add_const(&mut self, data: ConstData) -> ConstId {
        self.consts.push(data);
        ConstId(self.consts.len() as u32 - 1)
    }
}

/// One op on its way into the new graph: its operands are values of the new graph already.
pub(crate) struct Site<'a> {
    pub graph: &'a mut Graph,
    pub op: &'a Op,
    pub operands: &'a [ValueId],
    /// Types of the results, as they were.
    pub types: &'a [TensorType],
}

impl Site<'_> {
    /// Appends an op with the origin of this one; its results.
    pub fn push(&mut self, prim: Prim, operands: Vec<ValueId>, types: Vec<TensorType>) -> Vec<ValueId> {
        let id = self.graph.push_op(prim, operands, Vec::new(), types, self.op.origin);
        self.graph[id].results.clone()
    }
    /// Appends an op of one result, whose type follows from its operands.
    ///
    /// # Errors
    /// Where the operands are none for it.
    pub fn op(
        &mut self,
        cx: &Shared<'_>,
        symbols: &Symbols,
        prim: Prim,
        operands: Vec<ValueId>,
    ) -> Result<ValueId> {
        let types: Vec<&TensorType> = operands.iter().map(|v| self.ty(*v)).collect();
        let types = ir::infer::infer(&prim, &types, &[], cx.consts, symbols)?;
        Ok(self.push(prim, operands, types)[0])
    }
    /// A constant of rank 0.
    pub fn scalar(&mut self, cx: &mut Shared<'_>, dtype: DType, value: Scalar) -> ValueId {
        let id = cx.add_const(ConstData::splat(dtype, Vec::new(), value));
        self.push(Prim::Const(id), Vec::new(), vec![TensorType::scalar(dtype)])[0]
    }
    /// The scalar `v` in every element of a value of type `to`.
    pub fn broadcast(&mut self, v: ValueId, to: &TensorType) -> ValueId {
        let prim = Prim::Broadcast { shape: to.shape.clone(), dims: Vec::new() };
        self.push(prim, vec![v], vec![to.clone()])[0]
    }
    /// The primitive and operands that define `v`, where an op of the new graph does.
    pub fn def(&self, v: ValueId) -> Option<&Op> {
        self.graph.def_op(v).map(|op| &self.graph[op])
    }
    pub fn ty(&self, v: ValueId) -> &TensorType {
        &self.graph[v].ty
    }
}

/// A pass: for each op either the values that replace its results, or `None` to keep it.
pub(crate) trait Rule {
    /// The rewrite of a region begins, which was `old`.
    fn enter(&mut self, _old: &Graph) {}
    /// The region that was entered last ends.
    fn leave(&mut self) {}
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>>;
    /// The op was kept, with these results.
    fn kept(&mut self, _graph: &Graph, _results: &[ValueId]) {}
}

/// Runs a rule over the main graph of a module and all regions in it.
pub(crate) fn rewrite(module: &mut Module, rule: &mut dyn Rule, fuel: &Fuel) -> Result<()> {
    let graph = std::mem::take(&mut module.graph);
    let mut cx = Shared { consts: &mut module.consts, fuel };
    module.graph = rewrite_graph(&mut cx, &graph, rule)?;
    Ok(())
}

fn rewrite_graph(cx: &mut Shared<'_>, old: &Graph, rule: &mut dyn Rule) -> Result<Graph> {
    rule.enter(old);
    let mut new = Graph::new(old.name.clone());
    let mut map: Vec<Option<ValueId>> = vec![None; old.value_count()];
    for &v in &old.inputs {
        map[v.index()] = Some(new.add_input(old[v].name.clone(), old[v].ty.clone()));
    }
    copy_ops(cx, old, &mut new, &mut map, rule)?;
    new.outputs = old.outputs.iter().map(|v| mapped(&map, *v)).collect::<Result<_>>()?;
    rule.leave();
    Ok(new)
}

/// Rewrites the ops of `old` into `new`; `map` gives the new values of those already there.
pub(crate) fn copy_ops(
    cx: &mut Shared<'_>,
    old: &Graph,
    new: &mut Graph,
    map: &mut [Option<ValueId>],
    rule: &mut dyn Rule,
) -> Result<()> {
    for (_, op) in old.ops() {
        let operands = op.operands.iter().map(|v| mapped(map, *v)).collect::<Result<Vec<_>>>()?;
        let types: Vec<TensorType> = op.results.iter().map(|&v| old[v].ty.clone()).collect();
        let mut site = Site { graph: new, op, operands: &operands, types: &types };
        // a rule that may do no more is not asked: what it pushes before it is refused would stay
        let replaced = if cx.fuel.spent(cx.fuel.pass()) { None } else { rule.apply(cx, &mut site)? };
        let results = match replaced {
            Some(results) => {
                cx.fuel.take(cx.fuel.pass(), op.origin, || described(new, op, &results));
                results
            }
            None => {
                let regions =
                    op.regions.iter().map(|r| rewrite_graph(cx, r, rule)).collect::<Result<Vec<_>>>()?;
                let id = new.push_op(op.prim.clone(), operands, regions, types, op.origin);
                let results = new[id].results.clone();
                rule.kept(new, &results);
                results
            }
        };
        for (&from, &to) in op.results.iter().zip(&results) {
            if new[to].name.is_none() {
                new[to].name.clone_from(&old[from].name);
            }
            map[from.index()] = Some(to);
        }
    }
    Ok(())
}

/// A rewrite for people: the op and what it became.
fn described(new: &Graph, op: &Op, results: &[ValueId]) -> String {
    let value = |v: &ValueId| {
        let made = new.def_op(*v).map_or("an input", |op| new[op].prim.name());
        format!("{made} %{}", v.0)
    };
    let names: Vec<String> = results.iter().map(value).collect();
    format!("{} -> {}", op.prim.name(), names.join(", "))
}

pub(crate) fn mapped(map: &[Option<ValueId>], v: ValueId) -> Result<ValueId> {
    map.get(v.index()).copied().flatten().ok_or_else(|| {
        crate::PassError::internal("rewrite", format!("value %{} is used before its definition", v.0))
    })
}
