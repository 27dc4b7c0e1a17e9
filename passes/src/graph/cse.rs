//! Equal ops on equal operands are computed once; equal small constants are one constant.

use super::rewrite::{Rule, Shared, Site, rewrite};
use crate::error::Result;
use crate::limits::Fuel;
use ir::{ConstSource, DType, Graph, Module, Prim, ValueId};
use std::collections::HashMap;

/// Constants above this size are compared by identity only.
const SMALL: usize = 4096;

pub fn cse(module: &mut Module, fuel: &Fuel) -> Result<()> {
    rewrite(module, &mut Cse::default(), fuel)
}

#[derive(PartialEq, Eq, Hash)]
enum Key {
    /// The primitive with its attributes as text, its operands, and what its results hold.
    Op(String, Vec<ValueId>, DType),
    Const(DType, Vec<usize>, Vec<u8>),
}

#[derive(Default)]
struct Cse {
    /// By nesting of regions; a region sees nothing of the outer graph but its captures.
    scopes: Vec<HashMap<Key, Vec<ValueId>>>,
    key: Option<Key>,
}

fn key(cx: &Shared<'_>, site: &Site<'_>) -> Option<Key> {
    let prim = &site.op.prim;
    if prim.has_effect() || !prim.defines().is_empty() || !site.op.regions.is_empty() {
        return None;
    }
    if let Prim::Const(id) = prim {
        let data = cx.consts.get(id.0 as usize)?;
        match &data.source {
            ConstSource::Bytes(b) if b.bytes().len() <= SMALL => {
                return Some(Key::Const(data.dtype, data.shape.clone(), b.bytes().to_vec()));
            }
            _ => {}
        }
    }
    #[cfg(feature = "planted-faults")]
    if cx.fuel.planted(crate::planted::Fault::Cse) && !site.operands.is_empty() {
        let same = format!("{} {:?}", prim.name(), site.types);
        return Some(Key::Op(same, site.operands.to_vec(), DType::Bool));
    }
    let dtype = site.types.first().map_or(DType::Bool, |t| t.dtype);
    Some(Key::Op(format!("{prim:?}"), site.operands.to_vec(), dtype))
}

impl Rule for Cse {
    fn enter(&mut self, _: &Graph) {
        self.scopes.push(HashMap::new());
    }
    fn leave(&mut self) {
        self.scopes.pop();
    }
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        self.key = key(cx, site);
        let (Some(key), Some(scope)) = (&self.key, self.scopes.last()) else { return Ok(None) };
        Ok(scope.get(key).cloned())
    }
    fn kept(&mut self, _: &Graph, results: &[ValueId]) {
        if let (Some(key), Some(scope)) = (self.key.take(), self.scopes.last_mut()) {
            scope.insert(key, results.to_vec());
        }
    }
}
