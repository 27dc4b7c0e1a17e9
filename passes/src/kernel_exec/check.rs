//! Each kernel of a program by itself, against values that are known to be right.
//!
//! Every call reads right values, whatever the calls before it made of them, so a deviation is the fault of
//! the kernel that shows it. A kernel that costs more than its share of the budget runs at some points of its
//! domain only, the first and the last among them; one whose result cannot be taken from the reference and costs too
//! much is skipped, and so is what reads it. The report says which.

use super::kernel::{Points, Run};
use super::{Code, FRESH, Machine, Result};
use crate::host::Planned;
use interp::{Comparison, Tolerance, compare};
use ir::host::{BufferId, Step};
use ir::kernel::{Access, BufId, Expr, Kernel, Stmt};
use ir::prim::Combine;
use ir::{OriginId, Prim, Tensor, ValueId};
use std::collections::{HashMap, HashSet};

/// What one check may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Expressions evaluated, by estimate: each takes some 100 ns. Kernels that can only run whole may take as many again.
    pub units: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { units: 100_000_000 }
    }
}

/// What is known of one step.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    Good,
    /// So many elements were compared, and agree.
    Sampled(u64),
    Skipped(String),
    /// A result differs.
    Bad(String),
    /// The kernel did what no program may: an access outside of its memory, say.
    Failed(String),
}

/// One kernel call, or another step with results.
#[derive(Clone, PartialEq, Debug)]
pub struct Call {
    /// Kernel of the program, where the step is a call.
    pub kernel: Option<usize>,
    pub name: String,
    pub origin: OriginId,
    /// The value of the graph that it writes.
    pub value: Option<ValueId>,
    pub verdict: Verdict,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    pub calls: Vec<Call>,
}

impl Report {
    /// The first step that is at fault.
    pub fn bad(&self) -> Option<&Call> {
        self.calls.iter().find(|c| matches!(c.verdict, Verdict::Bad(_) | Verdict::Failed(_)))
    }
    /// Steps that ran whole, in part, and not at all.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |f: fn(&Verdict) -> bool| self.calls.iter().filter(|c| f(&c.verdict)).count();
        let sampled = count(|v| matches!(v, Verdict::Sampled(_)));
        let skipped = count(|v| matches!(v, Verdict::Skipped(_)));
        (self.calls.len() - sampled - skipped, sampled, skipped)
    }
}

/// What a check knows of the values of the main graph.
pub struct Known<'a> {
    pub values: &'a HashMap<ValueId, Tensor>,
    /// How far a result may be from them.
    pub tolerance: &'a dyn Fn(ValueId) -> Tolerance,
}

/// Runs the program step by step, each call on right values; `code`: with kernels in that form.
///
/// # Errors
/// Faults outside of kernels: sizes without a value, say.
pub fn check(
    planned: &Planned,
    code: Option<&Code>,
    inputs: &[Tensor],
    known: &Known,
    budget: Budget,
) -> Result<Report> {
    let mut m = Machine::new(planned)?;
    m.code = code;
    m.bind(inputs)?;
    let all = || planned.init.iter().chain(&planned.steps);
    let mut last: HashMap<BufferId, usize> = HashMap::new();
    let mut writers: HashMap<BufferId, usize> = HashMap::new();
    for (i, step) in all().enumerate() {
        for b in written(planned, step) {
            let b = m.whole(b);
            last.insert(b, i);
            *writers.entry(b).or_default() += 1;
        }
    }
    let calls = all().filter(|s| matches!(s, Step::Call { .. })).count() as u64;
    let share = (budget.units / calls.max(1)).max(2000);
    let mut c = Checker {
        m,
        known,
        last,
        writers,
        unknown: HashSet::new(),
        share,
        left: budget.units,
        budget,
        report: Report::default(),
    };
    let mut runs = true;
    for (i, step) in all().enumerate() {
        if runs {
            runs = c.step(i, step)?;
        } else if let Step::Call { kernel, origin, .. } = step {
            let why = Verdict::Skipped("its sizes were not computed".into());
            c.add(Some(*kernel), &planned.kernels[*kernel].name, *origin, None, why);
        }
    }
    Ok(c.report)
}

/// Buffers that a step writes.
fn written(p: &Planned, step: &Step) -> Vec<BufferId> {
    match step {
        Step::Call { kernel, args, .. } => {
            let writes = p.kernels[*kernel].operands().zip(args).filter(|(b, _)| b.access != Access::Read);
            writes.map(|(_, a)| *a).collect()
        }
        Step::Copy { to, .. } | Step::Append { to, .. } => vec![*to],
        Step::Host { results, .. } => results.clone(),
        Step::If { then, otherwise, .. } => {
            then.iter().chain(otherwise).flat_map(|s| written(p, s)).collect()
        }
        Step::Loop { body, iter, .. } => body.iter().flat_map(|s| written(p, s)).chain([*iter]).collect(),
        _ => Vec::new(),
    }
}

struct Checker<'a, 'k> {
    m: Machine<'a>,
    known: &'k Known<'k>,
    /// Last step that writes a buffer, and how many do.
    last: HashMap<BufferId, usize>,
    writers: HashMap<BufferId, usize>,
    /// Buffers whose contents were never computed.
    unknown: HashSet<BufferId>,
    /// Units of one call.
    share: u64,
    /// Units for calls that take more and can only run whole.
    left: u64,
    budget: Budget,
    report: Report,
}

/// A buffer with the value of the graph that it holds, and that value.
type Held<'k> = (BufferId, ValueId, &'k Tensor);

impl<'k> Checker<'_, 'k> {
    /// False where nothing that follows can run.
    fn step(&mut self, at: usize, step: &Step) -> Result<bool> {
        let p = self.m.p;
        let targets = written(p, step);
        let held: Vec<Held> = targets.iter().filter_map(|&b| self.held(b)).collect();
        let (kernel, origin) = match step {
            Step::Call { kernel, origin, .. } => (Some(*kernel), *origin),
            Step::Host { origin, .. } | Step::Loop { origin, .. } => (None, *origin),
            Step::If { .. } | Step::Copy { .. } | Step::Append { .. } => (None, OriginId(0)),
            Step::BindSym { from, .. } if self.unknown.contains(&self.m.whole(*from)) => {
                self.add(None, "size", OriginId(0), None, Verdict::Skipped("its value is unknown".into()));
                return Ok(false);
            }
            _ => return self.m.step(step).map(|()| true),
        };
        let name = kernel.map_or("host step", |k| &p.kernels[k].name);
        let value = held.first().map(|h| h.1);
        let verdict = match step {
            _ if self.reads_unknown(step) => Verdict::Skipped("it reads what was skipped".into()),
            Step::Call { kernel, args, origin } => self.call(*kernel, args, *origin, &held)?,
            Step::If { .. } | Step::Loop { .. } => {
                let cost = self.cost_of(step);
                if cost > self.left {
                    if !self.m.pass_over(step)? {
                        let why = format!("control flow of about {:.0e} operations", cost as f64);
                        self.add(None, name, origin, value, Verdict::Skipped(why));
                        return Ok(false);
                    }
                    Verdict::Skipped(format!("control flow of about {:.0e} operations", cost as f64))
                } else {
                    self.left -= cost;
                    self.whole_step(step)
                }
            }
            _ => self.whole_step(step),
        };
        let verdict = match verdict {
            Verdict::Good => self.compare_last(at, &held)?,
            v => v,
        };
        let skipped = matches!(verdict, Verdict::Skipped(_));
        for &b in &targets {
            let b = self.m.whole(b);
            if skipped {
                self.unknown.insert(b)
            } else {
                self.unknown.remove(&b)
            };
        }
        // whatever came out, what follows reads right values
        let settled = |s: &Self, b: BufferId| s.last.get(&s.m.whole(b)) == Some(&at);
        let partly = matches!(verdict, Verdict::Sampled(_)) || skipped;
        for &(b, _, t) in &held {
            if partly || settled(self, b) {
                if let Err(e) = self.put(b, t) {
                    // a loop that was passed over ended earlier than it might have
                    self.add(kernel, name, origin, value, verdict);
                    return if skipped { Ok(false) } else { Err(e) };
                }
                self.unknown.remove(&self.m.whole(b));
            }
        }
        self.add(kernel, name, origin, value, verdict);
        Ok(true)
    }

    fn add(
        &mut self,
        kernel: Option<usize>,
        name: &str,
        origin: OriginId,
        value: Option<ValueId>,
        verdict: Verdict,
    ) {
        self.report.calls.push(Call { kernel, name: name.into(), origin, value, verdict });
    }

    fn held(&self, b: BufferId) -> Option<Held<'k>> {
        let def = &self.m.p.buffers[b.0 as usize];
        // a size that the step itself computes has its value behind it only
        self.m.shape(&def.shape).ok()?;
        Some((b, def.value?, self.known.values.get(&def.value?)?))
    }

    fn reads_unknown(&self, step: &Step) -> bool {
        let unknown = |b: &BufferId| self.unknown.contains(&self.m.whole(*b));
        match step {
            Step::Call { kernel, args, .. } => {
                let operands = self.m.p.kernels[*kernel].operands().zip(args);
                operands.filter(|(b, _)| b.access != Access::Write).any(|(_, a)| unknown(a))
            }
            Step::Copy { from, .. } | Step::Append { from, .. } => unknown(from),
            Step::Host { args, .. } => args.iter().any(unknown),
            Step::If { cond, then, otherwise } => {
                unknown(cond) || then.iter().chain(otherwise).any(|s| self.reads_unknown(s))
            }
            Step::Loop { trip, cond, body, .. } => {
                unknown(trip) || unknown(cond) || body.iter().any(|s| self.reads_unknown(s))
            }
            _ => false,
        }
    }

    fn whole_step(&mut self, step: &Step) -> Verdict {
        match self.m.step(step) {
            Ok(()) => Verdict::Good,
            Err(e) => Verdict::Failed(e.to_string()),
        }
    }

    fn call(&mut self, kernel: usize, args: &[BufferId], origin: OriginId, held: &[Held]) -> Result<Verdict> {
        let p = self.m.p;
        let k = &p.kernels[kernel];
        let cost = self.m.cost(k);
        let step = Step::Call { kernel, args: args.to_vec(), origin };
        let results = k.operands().filter(|b| b.access != Access::Read).count();
        let known = held.len() == results && held.iter().all(|h| self.may_sample(h));
        if cost <= self.share {
            return Ok(self.whole_step(&step));
        }
        let copies = is_copy(k);
        let set = !order_shows(k);
        let per_point = cost / self.points(kernel)?.max(1);
        // the first and the last come on top
        let n = self.share / per_point.max(1);
        let affordable = per_point <= self.budget.units / 8;
        if copies && k.buffers.len() == 2 {
            return self.copy(kernel, args, origin, n);
        }
        if known && set && affordable && (self.m.code.is_some() || k.stages.is_empty()) {
            return self.sample(kernel, args, origin, held, n);
        }
        // nobody else knows what it writes, and others read that
        if cost <= self.left {
            self.left -= cost;
            return Ok(self.whole_step(&step));
        }
        Ok(Verdict::Skipped(format!("about {:.0e} operations", cost as f64)))
    }

    /// What one writer leaves of the buffer is final: it is the only one, or one of several that write parts.
    fn may_sample(&self, held: &Held) -> bool {
        let g = &self.m.p.module.graph;
        let parts =
            g.def_op(held.1).is_some_and(|op| matches!(g[op].prim, Prim::Concat { .. } | Prim::Pad { .. }));
        parts || self.writers.get(&self.m.whole(held.0)) == Some(&1)
    }

    /// Points that a kernel may be sampled at.
    fn points(&self, kernel: usize) -> Result<u64> {
        if let Some(code) = self.m.code {
            let trip = &self.m.variant(code, kernel)?.launch.trip;
            return Ok(self.m.dim(trip)?.max(0) as u64);
        }
        let domain = self.m.p.kernels[kernel].domain.iter();
        Ok(domain.map(|a| self.m.dim(&a.extent).unwrap_or(0).max(0) as u64).product())
    }

    fn sample(
        &mut self,
        kernel: usize,
        args: &[BufferId],
        origin: OriginId,
        held: &[Held],
        n: u64,
    ) -> Result<Verdict> {
        if let Some(code) = self.m.code {
            for h in held {
                self.m.bytes_mut(h.0)?.fill(FRESH);
            }
            if let Err(e) = self.m.run_code(code, kernel, args, Points::Some(n)) {
                return Ok(Verdict::Failed(e.to_string()));
            }
            let mut total = 0;
            for &(b, v, want) in held {
                let got = self.m.logical(b)?;
                let unit = want.dtype.bytes().max(1);
                let at = got.data.chunks(unit).enumerate().filter(|(_, c)| c.iter().any(|x| *x != FRESH));
                let at: Vec<usize> = at.map(|(i, _)| i).collect();
                total += at.len() as u64;
                if let Some(bad) = self.compare_at(&got, v, want, &at) {
                    return Ok(Verdict::Bad(bad));
                }
            }
            return Ok(if total == 0 {
                Verdict::Bad("it wrote nothing".into())
            } else {
                Verdict::Sampled(total)
            });
        }
        let k = &self.m.p.kernels[kernel];
        let stores = match Run::new(&mut self.m, k, args, origin)?.execute(Points::Some(n)) {
            Ok(stores) => stores,
            Err(e) => return Ok(Verdict::Failed(e.to_string())),
        };
        let mut total = 0;
        for &(b, v, want) in held {
            let got = self.m.logical(b)?;
            let mine = |s: &&(BufId, Vec<i64>)| args[s.0.0 as usize] == b;
            let flat = |s: &(BufId, Vec<i64>)| {
                s.1.iter().zip(&want.shape).fold(0, |at, (&i, &n)| at * n + i as usize)
            };
            let at: Vec<usize> = stores.iter().filter(mine).map(flat).collect();
            total += at.len() as u64;
            if let Some(bad) = self.compare_at(&got, v, want, &at) {
                return Ok(Verdict::Bad(bad));
            }
        }
        Ok(Verdict::Sampled(total))
    }

    /// Some elements of a result.
    fn compare_at(&self, got: &Tensor, v: ValueId, want: &Tensor, at: &[usize]) -> Option<String> {
        if got.shape != want.shape || got.dtype != want.dtype {
            return Some(compare(got, want, Tolerance::EXACT).to_string());
        }
        let mut merged = want.clone();
        let unit = want.dtype.bytes();
        for i in at {
            let place = i * unit..(i + 1) * unit;
            if let (Some(to), Some(from)) = (merged.data.get_mut(place.clone()), got.data.get(place)) {
                to.copy_from_slice(from);
            }
        }
        let c = compare(&merged, want, (self.known.tolerance)(v));
        (!c.passes()).then(|| c.to_string())
    }

    /// A large copy into another layout is made here, and the kernel may only write the same again.
    fn copy(&mut self, kernel: usize, args: &[BufferId], origin: OriginId, n: u64) -> Result<Verdict> {
        let k = &self.m.p.kernels[kernel];
        let [from, to] = k.buffers.as_slice() else { return Ok(Verdict::Skipped("no copy".into())) };
        let (from, to) = if from.access == Access::Read { (0, to.access) } else { (1, from.access) };
        if to != Access::Write || args.len() != 2 {
            return Ok(Verdict::Skipped("no copy".into()));
        }
        let t = self.m.logical_as(args[from], &k.buffers[from].layout)?;
        let into = args[1 - from];
        self.m.put_as(into, &t, &k.buffers[1 - from].layout)?;
        let before = self.m.bytes(into)?.to_vec();
        let ran = match self.m.code {
            Some(code) => self.m.run_code(code, kernel, args, Points::Some(n)),
            None => Run::new(&mut self.m, k, args, origin)?.execute(Points::Some(n)).map(drop),
        };
        Ok(match ran {
            Err(e) => Verdict::Failed(e.to_string()),
            Ok(()) if self.m.bytes(into)? != before => Verdict::Bad("a copy differs from its source".into()),
            Ok(()) => Verdict::Sampled(n),
        })
    }

    /// Results whose last writer this was.
    fn compare_last(&self, at: usize, held: &[Held]) -> Result<Verdict> {
        for &(b, v, want) in held {
            if self.last.get(&self.m.whole(b)) != Some(&at) {
                continue;
            }
            let c: Comparison = compare(&self.m.logical(b)?, want, (self.known.tolerance)(v));
            if !c.passes() {
                return Ok(Verdict::Bad(c.to_string()));
            }
        }
        Ok(Verdict::Good)
    }

    fn put(&mut self, b: BufferId, t: &Tensor) -> Result<()> {
        let layout = &self.m.p.buffers[b.0 as usize].layout;
        self.m.put_as(b, t, layout)
    }

    fn cost_of(&self, step: &Step) -> u64 {
        let sum = |steps: &[Step]| steps.iter().map(|s| self.cost_of(s)).fold(0u64, u64::saturating_add);
        match step {
            Step::Call { kernel, .. } => self.m.cost(&self.m.p.kernels[*kernel]),
            Step::If { then, otherwise, .. } => sum(then).max(sum(otherwise)),
            Step::Loop { trip, body, .. } => {
                let trip = self.m.scalar(*trip).unwrap_or(1).clamp(1, 1 << 20) as u64;
                sum(body).saturating_mul(trip)
            }
            _ => 0,
        }
    }
}

/// A kernel whose points may not be left out: sums into memory, loops in order.
fn order_shows(k: &Kernel) -> bool {
    let plain = |s: &Stmt| match s {
        Stmt::Store { combine, .. } => *combine == Combine::Set,
        Stmt::Ordered { .. } => false,
        _ => true,
    };
    k.generated.is_some()
        || k.buffers.iter().any(|b| !matches!(b.access, Access::Read | Access::Write | Access::Local))
        || !k.stmts.iter().all(plain)
        || k.stages.iter().any(|s| order_shows(&s.kernel))
}

/// Each element of one buffer as it is at the same index of another.
fn is_copy(k: &Kernel) -> bool {
    let [Stmt::Store { axes, buf, index, guards, value, combine: Combine::Set }] = k.stmts.as_slice() else {
        return false;
    };
    let Expr::Read { buf: from, index: source, guards: read, .. } = k.get(*value) else { return false };
    let (a, b) = (&k.buffers[buf.0 as usize], &k.buffers[from.0 as usize]);
    let whole = index.iter().zip(&a.shape).all(|(d, n)| {
        n.is_const(1) && d.is_const(0)
            || k.domain.iter().any(|x| *d == ir::Dim::from(x.var) && x.extent == *n)
    });
    axes.is_empty()
        && guards.is_empty()
        && read.is_empty()
        && index == source
        && a.shape == b.shape
        && a.dtype == b.dtype
        && whole
}
