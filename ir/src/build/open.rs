//! Graphs that are there already: looking at the one under construction, and going on with a finished one.

use super::{Builder, Entry, Frame, V};
use crate::graph::{Graph, Module, ValueId};
use crate::prim::Prim;
use std::collections::HashMap;

impl Builder {
    /// Goes on with a finished module; its outputs are given anew to [`Builder::finish`].
    pub fn reopen(mut module: Module) -> Builder {
        let graph = std::mem::take(&mut module.graph);
        let mut b = Builder::new(graph.name.clone());
        b.origin = module.add_origin(Default::default());
        b.module = module;
        let uid = b.frames[0].uid;
        let mut constants = HashMap::new();
        for i in 0..graph.value_count() {
            let id = ValueId(i as u32);
            let constant = match graph.def_op(id).map(|op| &graph[op].prim) {
                Some(Prim::Const(c)) => Some(*c),
                _ => None,
            };
            if let Some(c) = constant {
                constants.entry(c).or_insert(V(i as u32));
            }
            b.values.push(Entry { frame: uid, id, ty: graph[id].ty.clone(), known: None, constant });
        }
        b.frames = vec![Frame { uid, graph, captures: Vec::new(), captured: HashMap::new(), constants }];
        b
    }

    /// The innermost open graph so far.
    pub fn graph(&self) -> &Graph {
        &self.frames[self.frames.len() - 1].graph
    }
    /// True for a value of the innermost open graph itself.
    pub fn is_local(&self, v: V) -> bool {
        self.level_of(v) == Some(self.frames.len() - 1)
    }
    /// The values of the innermost open graph by their ids.
    pub fn values(&self) -> Vec<Option<V>> {
        let mut out = vec![None; self.graph().value_count()];
        let uid = self.frames[self.frames.len() - 1].uid;
        for (i, e) in self.values.iter().enumerate().filter(|(_, e)| e.frame == uid) {
            if let Some(place) = out.get_mut(e.id.index()) {
                place.get_or_insert(V(i as u32));
            }
        }
        out
    }
    /// The value of the innermost open graph with this id.
    pub fn value_of(&self, id: ValueId) -> Option<V> {
        let uid = self.frames[self.frames.len() - 1].uid;
        self.values.iter().position(|e| e.frame == uid && e.id == id).map(|i| V(i as u32))
    }
}
