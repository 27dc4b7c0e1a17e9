//! Replaces composite calls by their bodies. Names of composites are hints that nothing depends on.

use super::rewrite::{Rule, Shared, Site, copy_ops, mapped, rewrite};
use crate::error::Result;
use crate::limits::Fuel;
use ir::{Module, Prim, ValueId};

pub fn inline_composites(module: &mut Module, fuel: &Fuel) -> Result<()> {
    rewrite(module, &mut Inline, fuel)
}

struct Inline;

impl Rule for Inline {
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        let (Prim::Call { .. }, [body]) = (&site.op.prim, site.op.regions.as_slice()) else {
            return Ok(None);
        };
        let mut map = vec![None; body.value_count()];
        for (&input, &operand) in body.inputs.iter().zip(site.operands) {
            map[input.index()] = Some(operand);
        }
        copy_ops(cx, body, site.graph, &mut map, self)?;
        body.outputs.iter().map(|&v| mapped(&map, v)).collect::<Result<Vec<_>>>().map(Some)
    }
}
