//! What flows where in the text of a kernel: which instructions have results that nobody reads, and which results
//! depend on nothing but the shape of the launch.
//!
//! Both answers ignore the order of instructions, so they err on one side only: a register counts as read if any
//! instruction that matters reads it, and as loaded if anything assigned to it may come from memory.

use crate::syntax::ast::{Inst, Kernel, Operand, Stmt};
use std::collections::HashSet;

/// Opcodes whose first operand is no result.
const WITHOUT_RESULT: [&str; 18] = [
    "st",
    "red",
    "bra",
    "ret",
    "exit",
    "trap",
    "bar",
    "barrier",
    "membar",
    "fence",
    "cp",
    "stmatrix",
    "nanosleep",
    "prefetch",
    "prefetchu",
    "discard",
    "applypriority",
    "griddepcontrol",
];

/// Registers that an instruction writes.
fn results(inst: &Inst) -> Vec<&str> {
    let mut out = Vec::new();
    if !WITHOUT_RESULT.contains(&inst.opcode[0].as_str()) {
        names(inst.operands.first(), &mut out);
    }
    out
}

/// Registers that an instruction reads, its guard and addresses included.
fn sources(inst: &Inst) -> Vec<&str> {
    let mut out: Vec<&str> = inst.guard.iter().map(|g| g.1.as_str()).collect();
    let skip = usize::from(!results(inst).is_empty());
    inst.operands.iter().skip(skip).for_each(|o| names(Some(o), &mut out));
    out
}

fn names<'a>(operand: Option<&'a Operand>, out: &mut Vec<&'a str>) {
    match operand {
        Some(Operand::Name(n) | Operand::Not(n) | Operand::Address(Some(n), _)) => out.push(n),
        Some(Operand::Vector(v)) => v.iter().for_each(|o| names(Some(o), out)),
        Some(Operand::Pair(a, b)) => [a, b].into_iter().for_each(|o| names(Some(o), out)),
        _ => {}
    }
}

/// Whether an instruction does something besides writing registers.
fn acts(inst: &Inst) -> bool {
    let base = inst.opcode[0].as_str();
    results(inst).is_empty() || matches!(base, "atom" | "shfl" | "vote" | "match" | "redux" | "elect")
}

fn instructions(kernel: &Kernel) -> impl Iterator<Item = &Inst> {
    kernel.body.iter().filter_map(|s| match s {
        Stmt::Inst(i) => Some(i),
        Stmt::Label(_) => None,
    })
}

/// Lines of the instructions whose results reach nothing that acts: whatever they compute, the kernel does the same.
pub fn dead(kernel: &Kernel) -> HashSet<u32> {
    let mut live: HashSet<&str> = HashSet::new();
    let needed = |i: &Inst, live: &HashSet<&str>| acts(i) || results(i).iter().any(|r| live.contains(r));
    loop {
        let before = live.len();
        for i in instructions(kernel) {
            if needed(i, &live) {
                live.extend(sources(i));
            }
        }
        if live.len() == before {
            return instructions(kernel).filter(|i| !needed(i, &live)).map(|i| i.line).collect();
        }
    }
}

fn reads_memory(i: &Inst) -> bool {
    match i.opcode[0].as_str() {
        "ld" => !i.opcode.iter().any(|m| m == "param"),
        base => matches!(base, "atom" | "ldmatrix" | "activemask" | "elect"),
    }
}

/// Registers that may depend on memory; `None` where a branch does.
fn loaded(kernel: &Kernel) -> Option<HashSet<&str>> {
    let mut loaded: HashSet<&str> = HashSet::new();
    loop {
        let before = loaded.len();
        for i in instructions(kernel) {
            if reads_memory(i) || sources(i).iter().any(|s| loaded.contains(s)) {
                loaded.extend(results(i));
            }
        }
        if loaded.len() == before {
            break;
        }
    }
    let flow = |i: &Inst| matches!(i.opcode[0].as_str(), "bra" | "ret" | "exit");
    let depends = |i: &Inst| sources(i).iter().any(|s| loaded.contains(s));
    (!instructions(kernel).any(|i| flow(i) && depends(i))).then_some(loaded)
}

/// Lines of the instructions whose results, in every execution, depend on the launch and its parameters alone and on
/// nothing in memory. None at all where a branch depends on memory.
pub fn independent(kernel: &Kernel) -> HashSet<u32> {
    let Some(loaded) = loaded(kernel) else { return HashSet::new() };
    let depends = |i: &Inst| sources(i).iter().any(|s| loaded.contains(s));
    instructions(kernel).filter(|i| !reads_memory(i) && !depends(i)).map(|i| i.line).collect()
}

/// Lines of the instructions of which the launch and its parameters alone decide which lanes execute them, whatever they
/// compute: their guards depend on nothing in memory, and no branch does.
pub fn reached_alike(kernel: &Kernel) -> HashSet<u32> {
    let Some(loaded) = loaded(kernel) else { return HashSet::new() };
    let guard = |i: &&Inst| i.guard.as_ref().is_none_or(|g| !loaded.contains(g.1.as_str()));
    instructions(kernel).filter(guard).map(|i| i.line).collect()
}

/// An access to memory: its array, where that is known, and whether it may write.
type Access<'a> = (Option<&'a str>, bool);

/// Lines of the `bar.warp.sync` that order nothing: on no path is there an access before one (and after the barrier before
/// it) to the array that an access after it (and before the next barrier) means, unless both read.
///
/// Arrays are told apart by the register that their addresses begin with, where that is one of a kernel's own arrays
/// (a sum, as opposed to an operand, which may lie in the memory of another one). That accesses stay inside
/// of their arrays is not proved here; the interpreter of loop IR checks it.
pub fn idle_syncs(kernel: &Kernel) -> HashSet<u32> {
    let body: Vec<&Stmt> = kernel.body.iter().collect();
    let inst = |i: usize| match body[i] {
        Stmt::Inst(inst) => Some(inst),
        Stmt::Label(_) => None,
    };
    let is_sync =
        |i: usize| inst(i).is_some_and(|s| s.guard.is_none() && s.opcode.join(".") == "bar.warp.sync");
    let label = |name: &str| body.iter().position(|s| matches!(s, Stmt::Label(l) if l == name));
    let mut next: Vec<Vec<usize>> = Vec::new();
    for i in 0..body.len() {
        let mut to = Vec::new();
        let base = inst(i).map_or("", |s| s.opcode[0].as_str());
        let always = inst(i).is_some_and(|s| s.guard.is_none());
        if let (Some(Operand::Name(l)), "bra") = (inst(i).and_then(|s| s.operands.first()), base) {
            to.extend(label(l));
        }
        if i + 1 < body.len() && !(always && matches!(base, "bra" | "ret" | "exit")) {
            to.push(i + 1);
        }
        next.push(to);
    }
    let mut before = vec![Vec::new(); body.len()];
    next.iter().enumerate().for_each(|(i, to)| to.iter().for_each(|t| before[*t].push(i)));
    // accesses from `start` on, up to barriers
    let reach = |start: usize, edges: &[Vec<usize>]| {
        let (mut todo, mut seen, mut found) = (edges[start].clone(), HashSet::new(), Vec::new());
        while let Some(i) = todo.pop() {
            if !seen.insert(i) || is_sync(i) {
                continue;
            }
            found.extend(inst(i).and_then(|s| access(kernel, s)));
            todo.extend(&edges[i]);
        }
        found
    };
    let meets = |a: &Access, b: &Access| (a.1 || b.1) && (a.0.is_none() || b.0.is_none() || a.0 == b.0);
    let idle = |i: usize| {
        let after = reach(i, &next);
        !reach(i, &before).iter().any(|a| after.iter().any(|b| meets(a, b)))
    };
    (0..body.len()).filter(|i| is_sync(*i) && idle(*i)).filter_map(|i| Some(inst(i)?.line)).collect()
}

/// What an instruction does to memory.
fn access<'a>(kernel: &'a Kernel, inst: &'a Inst) -> Option<Access<'a>> {
    let base = inst.opcode[0].as_str();
    match base {
        "ld" if inst.opcode.iter().any(|m| m == "param") => None,
        "ld" | "st" => {
            let register = inst.operands.iter().find_map(|o| match o {
                Operand::Address(Some(name), _) => Some(name.as_str()),
                _ => None,
            });
            Some((register.and_then(|r| array(kernel, r)), base == "st"))
        }
        "atom" | "red" | "cp" | "ldmatrix" | "stmatrix" => Some((None, true)),
        _ => None,
    }
}

/// The register that an address begins with, if it is the sum that begins an array.
fn array<'a>(kernel: &'a Kernel, mut register: &'a str) -> Option<&'a str> {
    for _ in 0..8 {
        let mut writers = instructions(kernel).filter(|i| results(i).contains(&register));
        let (only, None) = (writers.next()?, writers.next()) else { return None };
        match (only.opcode[0].as_str(), only.operands.get(3)) {
            ("mad", Some(Operand::Name(base))) => register = base,
            ("add", None) => return Some(register),
            _ => return None,
        }
    }
    None
}

/// Lines of sums that are taken only where an operand is NaN: between `setp.nan p, a, b` and `selp d, sum, other, p`, and
/// read by nobody else. Whatever a sum or a difference is elsewhere, there it is NaN.
pub fn sums_of_nan(kernel: &Kernel) -> HashSet<u32> {
    let all: Vec<&Inst> = instructions(kernel).collect();
    let mut out = HashSet::new();
    for w in all.windows(3) {
        let [test, sum, choice] = w else { continue };
        let ([p, a, b], [d, x, y], [_, taken, _, by]) =
            (&test.operands[..], &sum.operands[..], &choice.operands[..])
        else {
            continue;
        };
        let plain = w.iter().all(|i| i.guard.is_none());
        let named = test.opcode[0] == "setp"
            && test.opcode.iter().any(|m| m == "nan")
            && matches!(sum.opcode[0].as_str(), "add" | "sub")
            && choice.opcode[0] == "selp";
        let one = |d: &Operand| {
            let mut name = Vec::new();
            names(Some(d), &mut name);
            let readers = all.iter().filter(|i| sources(i).iter().any(|s| name.contains(s)));
            readers.count() == 1
        };
        if plain && named && (a, b) == (x, y) && taken == d && by == p && one(d) {
            out.insert(sum.line);
        }
    }
    out
}

/// Lines of differences of floats that are only squared: which operand is taken from which does not matter, since one
/// difference is the other one with the other sign, bit by bit.
pub fn squared(kernel: &Kernel) -> HashSet<u32> {
    let float = |i: &Inst| i.opcode.iter().any(|m| matches!(m.as_str(), "f16" | "bf16" | "f32" | "f64"));
    let only_squared = |i: &&Inst| {
        let own = results(i);
        let mut readers =
            instructions(kernel).filter(|r| sources(r).iter().any(|s| own.contains(s))).peekable();
        let is = |o: Option<&Operand>| matches!(o, Some(Operand::Name(n)) if own.contains(&n.as_str()));
        let squares = |r: &Inst| {
            let product = matches!(r.opcode[0].as_str(), "mul" | "fma") && r.guard.is_none();
            product && is(r.operands.get(1)) && is(r.operands.get(2)) && !is(r.operands.get(3))
        };
        readers.peek().is_some() && readers.all(squares)
    };
    let subtracts = |i: &&Inst| i.opcode[0] == "sub" && float(i);
    instructions(kernel).filter(subtracts).filter(only_squared).map(|i| i.line).collect()
}

/// Whether a difference in what the instruction on line `from` computes ends before it can matter. `differs` says of an
/// instruction that [`independent`] names whether it computes anything else because of it, `skipped` of one that
/// [`reached_alike`] names whether no lane executes it either way. It ends where all who read a value that differs are
/// such instructions themselves, up to some that compute the same all the same, or that nobody executes.
pub fn ends(
    kernel: &Kernel,
    from: u32,
    mut differs: impl FnMut(u32) -> bool,
    mut skipped: impl FnMut(u32) -> bool,
) -> bool {
    let (independent, alike) = (independent(kernel), reached_alike(kernel));
    // exchanges between lanes do nothing but write registers
    let exchange = |i: &Inst| matches!(i.opcode[0].as_str(), "shfl" | "vote" | "match" | "redux");
    let (mut todo, mut seen) = (vec![from], HashSet::from([from]));
    while let Some(line) = todo.pop() {
        if !independent.contains(&line) {
            return false;
        }
        let values: HashSet<&str> =
            instructions(kernel).filter(|i| i.line == line).flat_map(|i| results(i)).collect();
        for reader in instructions(kernel).filter(|i| sources(i).iter().any(|s| values.contains(s))) {
            if !seen.insert(reader.line) {
                continue;
            }
            let of_launch = independent.contains(&reader.line) && (!acts(reader) || exchange(reader));
            if of_launch && !differs(reader.line) {
                continue;
            }
            if alike.contains(&reader.line) && skipped(reader.line) {
                continue;
            }
            if !of_launch {
                return false;
            }
            todo.push(reader.line);
        }
    }
    true
}

/// Lines of the `bar.warp.sync` that have another one beside them, in a straight line and with no access to memory in
/// between: either of the two can go.
pub fn doubled_syncs(kernel: &Kernel) -> HashSet<u32> {
    let mut out = HashSet::new();
    // the last barrier that nothing has come after
    let mut last: Option<&Inst> = None;
    for s in &kernel.body {
        let Stmt::Inst(i) = s else {
            last = None;
            continue;
        };
        if i.opcode.join(".") == "bar.warp.sync" && i.guard.is_none() {
            if let Some(before) = last.filter(|b| b.operands == i.operands) {
                out.extend([before.line, i.line]);
            }
            last = Some(i);
        } else if !results(i).is_empty() && !acts(i) {
            // loads are accesses too
            last = last.filter(|_| i.opcode[0] != "ld" || i.opcode.iter().any(|m| m == "param"));
        } else {
            last = None;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syntax::parse;

    fn kernel(body: &str) -> Kernel {
        let head = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a)\n{\n\
                    .reg .pred %p<3>;\n.reg .b32 %r<9>;\n.reg .b64 %d<4>;\n";
        parse(&format!("{head}{body}ret;\n}}\n")).unwrap().kernels.remove(0)
    }

    /// Numbers of the body's lines.
    fn lines(found: HashSet<u32>) -> Vec<u32> {
        let mut lines: Vec<u32> = found.into_iter().map(|l| l - 8).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn what_nobody_reads_is_dead() {
        let k = kernel(
            "ld.param.u64 %d0, [a];\nmov.u32 %r0, %tid.x;\nadd.s32 %r1, %r0, 1;\nadd.s32 %r2, %r1, 1;\n\
             ld.global.u32 %r3, [%d0];\nsetp.lt.s32 %p0, %r0, 7;\n@%p0 st.global.u32 [%d0], %r0;\n",
        );
        assert_eq!(lines(dead(&k)), [3, 4, 5]);
    }

    #[test]
    fn what_comes_from_memory_is_not_independent() {
        let body = "ld.param.u64 %d0, [a];\nmov.u32 %r0, %tid.x;\nld.global.u32 %r1, [%d0];\nadd.s32 %r2, %r1, %r0;\n\
                    setp.lt.s32 %p0, %r2, 7;\nadd.s32 %r3, %r0, 2;\n@%p0 add.s32 %r3, %r3, 1;\nadd.s32 %r4, %r3, 1;\n\
                    add.s32 %r5, %r0, 1;\n";
        assert_eq!(lines(independent(&kernel(body))), [1, 2, 6, 9, 10]);
        let branch = format!("{body}@%p0 bra L;\nadd.s32 %r6, %r0, 1;\nL:\n");
        assert!(independent(&kernel(&branch)).is_empty());
    }

    #[test]
    fn a_difference_ends_where_nobody_sees_it() {
        let k = kernel(
            "mov.u32 %r0, %tid.x;\nadd.s32 %r1, %r0, 9;\nsetp.lt.s32 %p0, %r1, 7;\n@%p0 bra L;\nadd.s32 %r2, %r0, 1;\n\
             ld.param.u64 %d0, [a];\nst.global.u32 [%d0], %r2;\nL:\n",
        );
        let line = |n: u32| n + 8;
        // beyond the limit either way
        assert!(ends(&k, line(2), |l| l != line(3), |_| false));
        assert!(!ends(&k, line(2), |_| true, |_| false));
        // stored, by somebody or by nobody
        assert!(!ends(&k, line(5), |_| false, |_| false));
        assert!(ends(&k, line(5), |_| true, |l| l == line(7)));
        // through an exchange between lanes
        let k = kernel(
            "mov.u32 %r0, %tid.x;\nadd.s32 %r1, %r0, 9;\nshfl.sync.bfly.b32 %r2, %r1, 1, 31, 0xffffffff;\n\
             setp.lt.s32 %p0, %r2, 7;\n@%p0 bra L;\nL:\n",
        );
        assert!(ends(&k, line(2), |l| l != line(4), |_| false));
        assert!(!ends(&k, line(2), |_| true, |_| false));
    }

    #[test]
    fn a_guard_from_memory_decides_anew_each_time() {
        let k = kernel(
            "ld.param.u64 %d0, [a];\nmov.u32 %r0, %tid.x;\nsetp.lt.s32 %p0, %r0, 7;\nld.global.u32 %r1, [%d0];\n\
             setp.lt.s32 %p1, %r1, 7;\n@%p0 st.global.u32 [%d0], %r1;\n@%p1 st.global.u32 [%d0+4], %r0;\n",
        );
        let alike = lines(reached_alike(&k));
        assert!(alike.contains(&6) && !alike.contains(&7), "{alike:?}");
    }

    #[test]
    fn sums_that_are_only_taken_for_nan() {
        let triple = "setp.nan.f64 %p0, %f0, %f1;\nadd.rn.f64 %f2, %f0, %f1;\nselp.f64 %f3, %f2, %f0, %p0;\n";
        assert_eq!(lines(sums_of_nan(&kernel(triple))), [2]);
        assert!(sums_of_nan(&kernel(&format!("{triple}neg.f64 %f4, %f2;\n"))).is_empty());
        assert!(sums_of_nan(&kernel(&triple.replace("%f2, %f0, %p0", "%f0, %f2, %p0"))).is_empty());
    }

    #[test]
    fn differences_that_are_only_squared() {
        let body = "sub.rn.f32 %f2, %f0, %f1;\nfma.rn.f32 %f3, %f2, %f2, %f4;\nmul.rn.f32 %f5, %f2, %f2;\n";
        assert_eq!(lines(squared(&kernel(body))), [1]);
        for read in
            ["add.rn.f32 %f6, %f2, %f1;\n", "fma.rn.f32 %f6, %f2, %f2, %f2;\n", "mul.rn.f32 %f6, %f2, %f1;\n"]
        {
            assert!(squared(&kernel(&format!("{body}{read}"))).is_empty(), "{read}");
        }
    }

    #[test]
    fn barriers_between_different_arrays_order_nothing() {
        let b = "bar.warp.sync 0xffffffff;\n";
        let arrays =
            "ld.param.u64 %d0, [a];\nadd.s64 %d1, %d0, 64;\nadd.s64 %d2, %d0, 128;\nmov.u32 %r0, 1;\n";
        let two = format!(
            "{arrays}ld.global.u32 %r1, [%d1];\n{b}st.global.u32 [%d2], %r0;\n{b}ld.global.u32 %r2, [%d1+4];\n"
        );
        assert_eq!(lines(idle_syncs(&kernel(&two))), [6, 8]);
        // one array; and in a loop, where the store comes before the load as well
        let one = two.replace("%d2]", "%d1]");
        assert!(idle_syncs(&kernel(&one)).is_empty());
        let around = format!("{arrays}L:\nld.global.u32 %r1, [%d1];\n{b}st.global.u32 [%d1], %r0;\nbra L;\n");
        assert!(idle_syncs(&kernel(&around)).is_empty());
    }

    #[test]
    fn of_two_barriers_without_an_access_between_one_is_enough() {
        let b = "bar.warp.sync 0xffffffff;\n";
        let st = "st.global.u32 [%d0], %r0;\n";
        let k = kernel(&format!(
            "ld.param.u64 %d0, [a];\nmov.u32 %r0, 1;\n{b}{st}{b}add.s32 %r1, %r0, 1;\n{b}{st}{b}L:\n{b}\
             ld.global.u32 %r2, [%d0];\n{b}"
        ));
        assert_eq!(lines(doubled_syncs(&k)), [5, 7]);
    }
}
