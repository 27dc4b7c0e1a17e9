//! Removes ops whose results nobody uses and that have no effect of their own.

use crate::error::Result;
use crate::limits::Fuel;
use ir::{Graph, Module};

/// An op that gives a size its value stays while that size is used anywhere; those of ours that nobody
/// uses cost next to nothing, so they simply stay.
pub fn dce(module: &mut Module, fuel: &Fuel) -> Result<()> {
    sweep(&mut module.graph, fuel);
    Ok(())
}

fn sweep(graph: &mut Graph, fuel: &Fuel) {
    let mut used = vec![false; graph.value_count()];
    for v in &graph.outputs {
        used[v.index()] = true;
    }
    let mut keep = Vec::new();
    for &id in graph.order.iter().rev() {
        let op = &graph[id];
        let needed = op.prim.has_effect()
            || !op.prim.defines().is_empty()
            || op.regions.iter().any(has_effect)
            || op.results.iter().any(|v| used[v.index()])
            || !fuel.allow(fuel.pass(), op.origin, || format!("{} removed", op.prim.name()));
        if needed {
            op.operands.iter().for_each(|v| used[v.index()] = true);
            keep.push(id);
        }
    }
    keep.reverse();
    for &id in &keep {
        graph[id].regions.iter_mut().for_each(|r| sweep(r, fuel));
    }
    graph.order = keep;
}

fn has_effect(region: &Graph) -> bool {
    region.ops().any(|(_, op)| op.prim.has_effect() || op.regions.iter().any(has_effect))
}
