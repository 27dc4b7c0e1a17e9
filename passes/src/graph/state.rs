//! States: an input and an output of the model that are one buffer, kept from run to run.
//!
//! The decoder of a transformer takes the keys and values of all past tokens and returns them with those of the
//! new ones behind. As a state these tensors have room for a fixed number of rows from the start: the
//! concatenation becomes an update in place behind the rows that are there, and everything else reads
//! slices. A step then writes its own rows and copies nothing.

use crate::error::{PassError, Result};
use ir::graph::State;
use ir::{Dim, Module, Op, Prim, TensorType, ValueId};

/// Which input and output are one state, by name. Both names may hold one `*`, which stands for the same
/// text in both and makes a state of every pair that there is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateSpec {
    pub input: String,
    pub output: String,
    /// Rows that there is room for.
    pub capacity: i64,
}

/// Makes the states of `specs` of inputs and outputs of the module.
///
/// # Errors
/// [`PassError::State`] where a name matches nothing, or the output is not the input with rows behind it.
pub fn bind_states(module: &mut Module, specs: &[StateSpec]) -> Result<()> {
    for spec in specs {
        for (input, output) in pairs(module, spec)? {
            bind(module, input, output, spec.capacity)
                .map_err(|message| PassError::State { input: input_name(module, input), message })?;
        }
    }
    Ok(())
}

fn input_name(module: &Module, input: usize) -> String {
    let v = module.graph.inputs[input];
    module.graph[v].name.clone().unwrap_or_else(|| format!("input{input}"))
}

/// What `*` stands for where `name` matches `pattern`.
fn matched<'n>(pattern: &str, name: &'n str) -> Option<&'n str> {
    match pattern.split_once('*') {
        None => (pattern == name).then_some(""),
        Some((before, after)) => name.strip_prefix(before)?.strip_suffix(after),
    }
}

fn pairs(module: &Module, spec: &StateSpec) -> Result<Vec<(usize, usize)>> {
    let fail = |message: String| Err(PassError::State { input: spec.input.clone(), message });
    let mut found = Vec::new();
    for i in 0..module.graph.inputs.len() {
        let name = input_name(module, i);
        let Some(part) = matched(&spec.input, &name) else { continue };
        let wanted = spec.output.replacen('*', part, 1);
        match module.output_names.iter().position(|n| *n == wanted) {
            Some(o) => found.push((i, o)),
            None => return fail(format!("the model has no output `{wanted}`")),
        }
    }
    if found.is_empty() {
        return fail("the model has no such input".into());
    }
    Ok(found)
}

/// A concatenation of `past` and new rows: its axis.
fn appends(op: &Op, past: ValueId) -> Option<usize> {
    let Prim::Concat { axis } = op.prim else { return None };
    let (first, new) = op.operands.split_first()?;
    (*first == past && !new.is_empty() && !new.contains(&past)).then_some(axis)
}

fn bind(module: &mut Module, input: usize, output: usize, capacity: i64) -> Result<(), String> {
    let Module { graph: g, symbols, output_names, .. } = module;
    let (past, present) = (g.inputs[input], g.outputs[output]);
    let name = &output_names[output];
    if g.outputs.iter().filter(|&&v| v == present).count() > 1 {
        return Err(format!("output `{name}` is another output too"));
    }
    let found = g.def_op(present).and_then(|id| Some((id, appends(&g[id], past)?)));
    let Some((concat, axis)) = found else {
        return Err(format!("output `{name}` is not this input with new rows behind it"));
    };
    let ty = g[past].ty.clone();
    let Some(len) = ty.shape[axis].as_sym() else {
        return Err(format!("its size along dim {axis} is fixed"));
    };
    let rows = g[concat].operands[1..].iter().fold(Dim::from(0), |n, v| n + &g[*v].ty.shape[axis]);
    let info = &mut symbols.infos[len.0 as usize];
    if capacity < info.lo.max(1) {
        return Err(format!("a capacity of {capacity} rows is too small"));
    }
    info.hi = info.hi.min(capacity);
    info.hint = info.hint.min(info.hi);
    let next = Dim::from(len) + rows;

    let mut full = ty.clone();
    full.shape[axis] = Dim::from(capacity);
    g[past].ty = full.clone();
    let (op, rank) = (g[concat].clone(), ty.rank());
    let slice = |shape: &[Dim]| Prim::Slice {
        start: vec![Dim::from(0); rank],
        size: shape.to_vec(),
        step: vec![1; rank],
    };
    let mut one = |prim, operands, ty: &TensorType| {
        let id = g.add_op_detached(prim, operands, Vec::new(), vec![ty.clone()], op.origin);
        (id, g[id].results[0])
    };
    // rows that were there before
    let (before, old) = one(slice(&ty.shape), vec![past], &ty);
    // the new ones
    let mut added = Vec::new();
    let new = match op.operands[1..] {
        [single] => single,
        ref several => {
            let mut new = ty.clone();
            new.shape[axis] = &next - Dim::from(len);
            let (id, v) = one(Prim::Concat { axis }, several.to_vec(), &new);
            added.push(id);
            v
        }
    };
    let mut start = vec![Dim::from(0); rank];
    start[axis] = Dim::from(len);
    let (update, updated) = one(Prim::UpdateSlice { start }, vec![past, new], &full);
    let mut both = ty.clone();
    both.shape[axis] = next.clone();
    let (after, all) = one(slice(&both.shape), vec![updated], &both);
    added.extend([update, after]);

    let at = g.order.iter().position(|id| *id == concat).unwrap_or(0);
    g.order.splice(at..=at, added);
    g.order.insert(0, before);
    g.replace_uses(past, old);
    g[before].operands = vec![past];
    g[update].operands[0] = past;
    g.replace_uses(present, all);
    g.outputs[output] = updated;
    module.states.push(State { input, output, axis, capacity, len, next });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::DType;
    use ir::build::Builder;

    fn decoder() -> Module {
        let mut b = Builder::new("step");
        let past = b.symbol("past", 0, 4096);
        let mut outputs = Vec::new();
        for i in 0..2 {
            let k = b.input(format!("new.{i}"), DType::F32, vec![2.into(), 1.into(), 4.into()]);
            let cache = b.input(format!("past.{i}.key"), DType::F32, vec![2.into(), past.clone(), 4.into()]);
            let keys = b.concat(&[cache, k], 1).unwrap();
            outputs.push((format!("present.{i}.key"), keys));
        }
        b.finish(&outputs).unwrap()
    }

    fn spec(input: &str, output: &str, capacity: i64) -> StateSpec {
        StateSpec { input: input.into(), output: output.into(), capacity }
    }

    #[test]
    fn a_pattern_makes_many_states() {
        let mut m = decoder();
        bind_states(&mut m, &[spec("past.*", "present.*", 64)]).unwrap();
        assert_eq!(m.states.len(), 2);
        ir::verify::graph::verify(&m).unwrap();
        for s in &m.states {
            assert_eq!(m.graph[m.graph.inputs[s.input]].ty.shape[s.axis], Dim::from(64));
            assert_eq!(s.next, Dim::from(s.len) + Dim::from(1));
        }
    }

    #[test]
    fn what_is_no_state_is_an_error() {
        for (s, expect) in [
            (spec("past.7.key", "present.0.key", 64), "no such input"),
            (spec("past.0.key", "present.7.key", 64), "no output `present.7.key`"),
            (spec("past.0.key", "present.1.key", 64), "not this input with new rows"),
            (spec("new.0", "present.0.key", 64), "not this input with new rows"),
            (spec("past.0.key", "present.0.key", 0), "too small"),
        ] {
            let e = bind_states(&mut decoder(), &[s]).unwrap_err().to_string();
            assert!(e.contains(expect), "{e}");
        }
    }
}
