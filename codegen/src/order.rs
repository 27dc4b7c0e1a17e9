//! The order of instructions inside a block, for few registers.
//!
//! Legalisation writes a tile register by register, one operation after another: all loads, all broadcasts, all
//! products. Emitted like that, a product tile of 14 x 2 accumulators wants 14 broadcast registers at once, and spills.
//! Here every value moves down to its first use, so that a block computes one result after the other and what is
//! loaded for it dies at once. The processor's out-of-order window finds the parallelism again.
//! Where the warps of a block meet, or one of them is about to write what all read, everything is computed that was written
//! before, in the order it was written: else what was read there would stay in registers until its result is asked for. What is read from
//! operands in front of a meeting is asked for in front of it.

use ir::loops::{Addr, Block, Func, Inst, Mem, PipeOp, Space, Stmt, Val};
use std::collections::BTreeMap;

/// `func` with each block in order of demand.
pub(crate) fn by_demand(func: &Func) -> Func {
    let mut func = func.clone();
    let constants = constants(&func);
    let body = std::mem::take(&mut func.body);
    let shared = func.locals.iter().map(|l| l.space == Space::Shared).collect();
    func.body = Scheduler { constants: &constants, shared }.block(body);
    func
}

/// Values that no register needs to hold.
fn constants(func: &Func) -> Vec<bool> {
    fn walk(block: &Block, constant: &mut [bool]) {
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let { val, inst: Inst::Const(_) } => {
                    if let Some(c) = constant.get_mut(val.0 as usize) {
                        *c = true;
                    }
                }
                stmt => stmt.blocks().into_iter().for_each(|b| walk(b, constant)),
            }
        }
    }
    let mut constant = vec![false; func.types.len()];
    walk(&func.body, &mut constant);
    constant
}

struct Scheduler<'a> {
    constants: &'a [bool],
    /// By local array.
    shared: Vec<bool>,
}

/// Definitions that nobody has asked for yet, in the order they were written.
#[derive(Default)]
struct Pending {
    by_place: BTreeMap<usize, (Val, Inst)>,
    place: BTreeMap<Val, usize>,
}

impl Pending {
    fn insert(&mut self, place: usize, val: Val, inst: Inst) {
        self.place.insert(val, place);
        self.by_place.insert(place, (val, inst));
    }

    /// Moves a value, and before it what it needs, to the end of `out`.
    fn demand(&mut self, val: Val, out: &mut Vec<Stmt>) {
        // An explicit stack: chains of values may be thousands long.
        let mut stack = vec![val];
        while let Some(&val) = stack.last() {
            let Some(place) = self.place.get(&val) else {
                stack.pop();
                continue;
            };
            let before = stack.len();
            if let Some((_, inst)) = self.by_place.get(place) {
                inst.for_each_operand(&mut |v| {
                    if self.place.contains_key(&v) {
                        stack.push(v);
                    }
                });
            }
            // the first operand first
            stack[before..].reverse();
            if stack.len() == before {
                stack.pop();
                let place = self.place.remove(&val);
                if let Some((val, inst)) = place.and_then(|p| self.by_place.remove(&p)) {
                    out.push(Stmt::Let { val, inst });
                }
            }
        }
    }

    /// Demands all values for which `wanted` holds.
    fn demand_where(&mut self, wanted: impl Fn(&Inst) -> bool, out: &mut Vec<Stmt>) {
        let some: Vec<Val> = self.by_place.values().filter(|(_, i)| wanted(i)).map(|(v, _)| *v).collect();
        some.into_iter().for_each(|v| self.demand(v, out));
    }
}

impl Scheduler<'_> {
    fn block(&self, block: Block) -> Block {
        let mut pending = Pending::default();
        let mut out = Vec::with_capacity(block.stmts.len());
        for (place, stmt) in block.stmts.into_iter().enumerate() {
            if let Stmt::Let { val, inst } = stmt {
                pending.insert(place, val, inst);
                continue;
            }
            if !stmt.blocks().is_empty() || self.meets(&stmt) {
                // Operands must not stay alive during a loop in place of the one result they make.
                pending.demand_where(|inst| self.operands(inst) > 1, &mut out);
            }
            if matches!(stmt, Stmt::Barrier(_)) {
                // memory works while warps wait
                pending.demand_where(|inst| matches!(reads(inst), Some(Mem::Buf(_))), &mut out);
            }
            let mut used = Vec::new();
            uses(&stmt, &mut |v| used.push(v));
            used.into_iter().for_each(|v| pending.demand(v, &mut out));
            let mut written = Vec::new();
            writes(&stmt, &mut written);
            pending.demand_where(|inst| reads(inst).is_some_and(|m| written.contains(&m)), &mut out);
            out.push(self.inside(stmt));
        }
        block.yields.iter().for_each(|v| pending.demand(*v, &mut out));
        Block { stmts: out, yields: block.yields }
    }

    fn inside(&self, stmt: Stmt) -> Stmt {
        match stmt {
            Stmt::For { var, lo, hi, step, carries, results, body, parallel } => {
                Stmt::For { var, lo, hi, step, carries, results, body: self.block(body), parallel }
            }
            Stmt::While { carries, results, cond, body } => {
                // the body sees what the condition defines
                let mut needed = Vec::new();
                body.stmts.iter().for_each(|s| uses(s, &mut |v| needed.push(v)));
                needed.extend(&body.yields);
                let (given, yields) = (cond.yields.len(), cond.yields.clone());
                let cond = Block { yields: yields.into_iter().chain(needed).collect(), ..cond };
                let mut cond = self.block(cond);
                cond.yields.truncate(given);
                Stmt::While { carries, results, cond, body: self.block(body) }
            }
            Stmt::If { cond, then, otherwise, results } => {
                Stmt::If { cond, then: self.block(then), otherwise: self.block(otherwise), results }
            }
            other => other,
        }
    }

    /// Warps meet, or write what others read.
    fn meets(&self, stmt: &Stmt) -> bool {
        match stmt {
            Stmt::Barrier(_) => true,
            Stmt::Store { addr: Addr { mem: Mem::Local(i), .. }, .. } => {
                self.shared.get(*i as usize).copied().unwrap_or(false)
            }
            _ => false,
        }
    }

    /// Operands that occupy registers.
    fn operands(&self, inst: &Inst) -> usize {
        let mut n = 0;
        inst.for_each_operand(&mut |v| {
            n += usize::from(!self.constants.get(v.0 as usize).copied().unwrap_or(false));
        });
        n
    }
}

/// Every value that a statement names, in its blocks too.
fn uses(stmt: &Stmt, f: &mut dyn FnMut(Val)) {
    stmt.for_each_operand(f);
    for block in stmt.blocks() {
        block.stmts.iter().for_each(|s| uses(s, f));
        block.yields.iter().for_each(|v| f(*v));
    }
}

fn writes(stmt: &Stmt, list: &mut Vec<Mem>) {
    match stmt {
        Stmt::Store { addr, .. } => list.push(addr.mem),
        Stmt::Scatter { mem, .. } => list.push(*mem),
        Stmt::Pipe(PipeOp::Copy { to, .. }) => list.push(to.mem),
        _ => {}
    }
    stmt.blocks().into_iter().flat_map(|b| &b.stmts).for_each(|s| writes(s, list));
}

fn reads(inst: &Inst) -> Option<Mem> {
    match inst {
        Inst::Load(addr) => Some(addr.mem),
        Inst::Gather { mem, .. } => Some(*mem),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::DType;
    use ir::loops::{Launch, Level, Ty};
    use ir::loops_build::LoopBuilder;
    use ir::loops_exec::execute;
    use ir::prim::CmpOp;

    /// The parallel loop's body as text without the values: one letter for each statement.
    fn shape(func: &Func) -> String {
        fn letters(block: &Block, text: &mut String) {
            for stmt in &block.stmts {
                text.push(match stmt {
                    Stmt::Let { inst: Inst::Load(_), .. } => 'l',
                    Stmt::Let { inst: Inst::Splat(_), .. } => 's',
                    Stmt::Let { inst: Inst::Fma(..), .. } => 'f',
                    Stmt::Let { .. } => '.',
                    Stmt::Store { .. } => 'w',
                    _ => '(',
                });
                for inner in stmt.blocks() {
                    letters(inner, text);
                    text.push(')');
                }
            }
        }
        let mut text = String::new();
        letters(&func.body, &mut text);
        text.replace('.', "")
    }

    #[test]
    fn products_come_one_by_one() {
        let mut b = LoopBuilder::new("f");
        let (x, y) = (b.buf("x", DType::F32, false, 64), b.buf("y", DType::F32, true, 64));
        let one = b.index(1);
        b.parallel(Level::Thread, one, |b, i| {
            let loads: Vec<_> = (0..3).map(|r| b.load(b.addr(x, i, r), 1, 1)).collect();
            let splats: Vec<_> = loads.iter().map(|l| b.splat(*l, 1, 4)).collect();
            let right = b.load(b.addr(x, i, 8), 1, 4);
            let products: Vec<_> = splats.iter().map(|s| b.fma(*s, right, right)).collect();
            for (r, p) in products.iter().enumerate() {
                b.store(b.addr(y, i, 4 * r as i64), *p);
            }
        });
        let func = b.finish(Launch::default());
        assert_eq!(shape(&func), "(lllssslfffwww)");
        let ordered = by_demand(&func);
        assert_eq!(shape(&ordered), "(lslfwlsfwlsfw)");
        let input = (0..16).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<_>>();
        let run = |f: &Func| {
            let mut bufs = vec![input.clone(), vec![0; 48]];
            execute(f, &mut bufs, &[], 0, 1).unwrap();
            bufs
        };
        assert_eq!(run(&func), run(&ordered));
    }

    #[test]
    fn loads_stay_in_front_of_stores_to_the_same_memory() {
        // y[0] and y[1] change places, also where the write is inside of a branch
        let mut b = LoopBuilder::new("f");
        let (y, z) = (b.buf("y", DType::I32, true, 64), b.buf("z", DType::I32, true, 64));
        let one = b.index(1);
        b.parallel(Level::Thread, one, |b, i| {
            let (first, second) = (b.load(b.addr(y, i, 0), 1, 1), b.load(b.addr(y, i, 1), 1, 1));
            let other = b.load(b.addr(z, i, 0), 1, 1);
            let zero = b.index(0);
            let yes = b.cmp(CmpOp::Eq, i, zero);
            b.when(yes, |b| b.store(b.addr(y, i, 0), second));
            b.store(b.addr(y, i, 1), first);
            b.store(b.addr(z, i, 1), other);
        });
        let func = by_demand(&b.finish(Launch::default()));
        let ints = |x: [i32; 2]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let mut bufs = vec![ints([1, 2]), ints([3, 4])];
        execute(&func, &mut bufs, &[], 0, 1).unwrap();
        assert_eq!(bufs, [ints([2, 1]), ints([3, 3])]);
    }

    #[test]
    fn operands_are_read_before_warps_meet() {
        let mut b = LoopBuilder::new("f");
        let (x, y) = (b.buf("x", DType::F32, false, 64), b.buf("y", DType::F32, true, 64));
        let one = b.index(1);
        b.parallel(Level::Grid, one, |b, i| {
            let v = b.load(b.addr(x, i, 0), 1, 1);
            b.barrier(Level::Warp);
            b.store(b.addr(y, i, 0), v);
        });
        let func = b.finish(Launch::default());
        assert_eq!(shape(&by_demand(&func)), "(l(w)");
    }

    #[test]
    fn long_chains_and_values_of_conditions() {
        let mut b = LoopBuilder::new("f");
        let y = b.buf("y", DType::I64, true, 64);
        let one = b.index(1);
        b.parallel(Level::Thread, one, |b, i| {
            let mut v = b.load(b.addr(y, i, 0), 1, 1);
            for _ in 0..20_000 {
                v = b.mul(v, v);
            }
            let last = b.while_(
                &[v],
                |b, c| {
                    let double = b.add(c[0], c[0]);
                    let limit = b.index(100);
                    b.cmp(CmpOp::Lt, double, limit)
                },
                |b, c| vec![b.add(c[0], c[0])],
            );
            b.store(b.addr(y, i, 0), last[0]);
        });
        let func = by_demand(&b.finish(Launch::default()));
        assert_eq!(func.ty(Val(0)), Ty::INDEX);
        let mut bufs = vec![1i64.to_le_bytes().to_vec()];
        execute(&func, &mut bufs, &[], 0, 1).unwrap();
        assert_eq!(bufs[0], 64i64.to_le_bytes());
    }
}
