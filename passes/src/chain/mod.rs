//! Chains: kernels that share an outer domain run as one loop over blocks of it, so that the values between
//! them stay in cache.
//!
//! ```text
//! shared     the domain that stages have in common, from their index maps
//! block      one stage on one block
//! cost       whether that pays, and in which blocks
//! schedule   the schedule of a chain and its loop IR
//! ```
//!
//! [`fuse`] looks for chains in straight runs of kernel calls: a call, the next one that reads what it
//! writes, and so on. Nothing here knows an algorithm: attention (scores, softmax, mix of values over a block of
//! queries) and Winograd's three steps over a block of tiles are found alike.

mod block;
mod cost;
mod schedule;
mod shared;
#[cfg(test)]
mod tests;

pub use schedule::{lower_chain, lower_plainly};

use crate::host::{Planned, kernel_key};
use crate::limits::{CHAINS, Fuel};
use crate::lower::axes::order_matters;
use cost::{Estimate, Model};
use ir::OriginId;
use ir::host::{BufferId, Place, Step};
use ir::kernel::{Access, BufId, Buffer, Kernel, Stage, Stmt};
use ir::target::TargetDesc;
use std::collections::{HashMap, HashSet};

/// Kernels in one chain at most.
const MAX_STAGES: usize = 8;

/// Bytes of the largest value between the kernels of a chain, as multiples of the second-level cache. Smaller
/// ones stay in the last-level cache: in one run on four models, chains over 1 to 4 MB were no faster than
/// their kernels one after another, those over 50 MB were.
const LEAST_BYTES: f64 = 8.0;

/// A kernel call.
#[derive(Clone)]
struct Call {
    kernel: usize,
    args: Vec<BufferId>,
    origin: OriginId,
}

/// Calls of a run that make a chain, by position.
struct Candidate {
    members: Vec<usize>,
    chain: Kernel,
    args: Vec<BufferId>,
    estimate: Estimate,
}

/// Makes chains of the kernels of a program where the cost model says that it pays.
pub fn fuse(p: &mut Planned, target: &TargetDesc, fuel: &Fuel) {
    // where lanes are threads, those of a block would have to meet between stages
    if target.simt {
        return;
    }
    fuse_where(p, target, LEAST_BYTES, |e, shorter| e.pays(shorter), fuel);
}

/// As [`fuse`], from `least` bytes on; `wanted` says whether a chain is better than the shorter one that it
/// continues.
fn fuse_where(
    p: &mut Planned,
    target: &TargetDesc,
    least: f64,
    wanted: fn(&Estimate, shorter: Option<&Estimate>) -> bool,
    fuel: &Fuel,
) {
    let mut uses = vec![0; p.buffers.len()];
    crate::stage::count_uses(&p.init, &mut uses);
    crate::stage::count_uses(&p.steps, &mut uses);
    // the caller is one more reader
    for b in p.inputs.iter().chain(&p.outputs) {
        uses[b.0 as usize] += 1;
    }
    let mut steps = std::mem::take(&mut p.steps);
    let mut f = Fuser { p, target, least, wanted, fuel, uses, known: HashMap::new(), ids: HashMap::new() };
    f.steps(&mut steps);
    p.steps = steps;
    crate::stage::drop_unused_kernels(p);
}

struct Fuser<'a> {
    p: &'a mut Planned,
    target: &'a TargetDesc,
    /// [`LEAST_BYTES`].
    least: f64,
    wanted: fn(&Estimate, shorter: Option<&Estimate>) -> bool,
    fuel: &'a Fuel,
    /// How often steps mention each buffer.
    uses: Vec<usize>,
    /// What chains cost, by [`kernel_key`].
    known: HashMap<String, Option<Estimate>>,
    /// Chains of the program, likewise.
    ids: HashMap<String, usize>,
}

impl Fuser<'_> {
    fn steps(&mut self, steps: &mut Vec<Step>) {
        for s in steps.iter_mut() {
            match s {
                Step::If { then, otherwise, .. } => {
                    self.steps(then);
                    self.steps(otherwise);
                }
                Step::Loop { body, .. } => self.steps(body),
                _ => {}
            }
        }
        let mut out = Vec::with_capacity(steps.len());
        let mut run: Vec<Call> = Vec::new();
        for s in std::mem::take(steps) {
            match s {
                Step::Call { kernel, args, origin } => run.push(Call { kernel, args, origin }),
                s => {
                    self.run(&mut run);
                    out.extend(run.drain(..).map(Call::step));
                    out.push(s);
                }
            }
        }
        self.run(&mut run);
        out.extend(run.into_iter().map(Call::step));
        *steps = out;
    }

    /// Fuses calls of a straight run, the best chain first.
    fn run(&mut self, run: &mut Vec<Call>) {
        loop {
            let mut best: Option<Candidate> = None;
            for i in 0..run.len() {
                if let Some(c) = self.chain_from(run, i)
                    && best.as_ref().is_none_or(|b| c.estimate.gain() > b.estimate.gain())
                {
                    best = Some(c);
                }
            }
            let Some(found) = best else { return };
            let origin = found.members.last().map_or(OriginId(0), |&m| run[m].origin);
            if !self.fuel.allow(CHAINS, origin, || found.chain.name.clone()) {
                return;
            }
            self.replace(run, found);
        }
    }

    /// Puts the chain in the place of its last call.
    fn replace(&mut self, run: &mut Vec<Call>, c: Candidate) {
        let Some(&last) = c.members.last() else { return };
        let origin = run[last].origin;
        for &m in &c.members {
            for b in run[m].args.clone() {
                self.uses[b.0 as usize] -= 1;
            }
        }
        for b in &c.args {
            self.uses[b.0 as usize] += 1;
        }
        let next = self.p.kernels.len();
        let kernel = *self.ids.entry(kernel_key(&c.chain)).or_insert(next);
        if kernel == next {
            self.p.kernels.push(c.chain);
        }
        run[last] = Call { kernel, args: c.args, origin };
        let mut at = 0;
        run.retain(|_| {
            at += 1;
            at - 1 == last || !c.members.contains(&(at - 1))
        });
    }

    /// The chain that begins with call `first` and gains most.
    fn chain_from(&mut self, run: &[Call], first: usize) -> Option<Candidate> {
        if !self.fits(&run[first]) {
            return None;
        }
        let mut members = vec![first];
        let mut best: Option<Candidate> = None;
        while members.len() < MAX_STAGES
            && let Some(next) = self.next(run, &members)
        {
            members.push(next);
            if !self.between(run, &members) {
                continue;
            }
            let (chain, args) = self.build(run, &members);
            let key = kernel_key(&chain);
            let estimate = match self.known.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let estimate = self.estimate(&chain);
                    self.known.insert(key, estimate.clone());
                    estimate
                }
            };
            if let Some(estimate) = estimate
                && (self.wanted)(&estimate, best.as_ref().map(|b| &b.estimate))
            {
                best = Some(Candidate { members: members.clone(), chain, args, estimate });
            }
        }
        best
    }

    /// Something between these calls is large enough for a chain.
    fn between(&self, run: &[Call], members: &[usize]) -> bool {
        let bytes = |b: BufferId| {
            let hint = |s: ir::Sym| Some(self.p.module.symbols.get(s).hint.max(1));
            self.p.buffers[b.0 as usize].bytes.eval_syms(&hint).unwrap_or(0) as f64
        };
        let shared = |b: &BufferId| members.iter().filter(|&&m| run[m].args.contains(b)).count() > 1;
        let all = members.iter().flat_map(|&m| &run[m].args);
        all.filter(|b| shared(b)).any(|b| bytes(*b) >= self.least * self.target.l2_bytes as f64)
    }

    fn estimate(&self, chain: &Kernel) -> Option<Estimate> {
        // a chain that keeps nothing to itself saves a call and no traffic
        if chain.buffers.iter().all(|b| b.access != Access::Local) {
            return None;
        }
        let shared = shared::shared_axes(chain);
        Model { symbols: &self.p.module.symbols, target: self.target }.best(chain, &shared)
    }

    /// The next call that reads what `members` write, where all of these may as well run just before it.
    fn next(&self, run: &[Call], members: &[usize]) -> Option<usize> {
        let touched = |m: usize, write: bool| {
            let k = &self.p.kernels[run[m].kernel];
            let of = move |b: &&Buffer| (b.access != Access::Read) == write;
            k.operands().zip(&run[m].args).filter(move |(b, _)| of(b)).map(|(_, a)| self.memory(*a))
        };
        let reads: HashSet<BufferId> = members.iter().flat_map(|&m| touched(m, false)).collect();
        let writes: HashSet<BufferId> = members.iter().flat_map(|&m| touched(m, true)).collect();
        let mut at = *members.last()? + 1;
        while at < run.len() {
            let disturbs = touched(at, true).any(|b| reads.contains(&b) || writes.contains(&b));
            if disturbs {
                return None;
            }
            if touched(at, false).any(|b| writes.contains(&b)) {
                return self.fits(&run[at]).then_some(at);
            }
            at += 1;
        }
        None
    }

    /// The buffer whose bytes these are.
    fn memory(&self, mut b: BufferId) -> BufferId {
        while let Place::Alias(of) = self.p.buffers[b.0 as usize].place {
            b = of;
        }
        b
    }

    /// True where the kernel may be a stage: its blocks can be computed in any order, and twice.
    fn fits(&self, call: &Call) -> bool {
        let k = &self.p.kernels[call.kernel];
        let plain = |s: &Stmt| matches!(s, Stmt::Reduce { .. } | Stmt::Store { .. } | Stmt::Let { .. });
        k.generated.is_none()
            && k.stages.is_empty()
            && k.buffers.iter().all(|b| matches!(b.access, Access::Read | Access::Write))
            && k.stmts.iter().all(plain)
            && !order_matters(k)
    }

    /// The chain of these calls, and its operands.
    fn build(&self, run: &[Call], members: &[usize]) -> (Kernel, Vec<BufferId>) {
        let mut order: Vec<BufferId> = Vec::new();
        let mut mentions: HashMap<BufferId, usize> = HashMap::new();
        let mut written: HashMap<BufferId, usize> = HashMap::new();
        let mut read: HashSet<BufferId> = HashSet::new();
        let mut buffers: HashMap<BufferId, Buffer> = HashMap::new();
        for &m in members {
            let k = &self.p.kernels[run[m].kernel];
            for (b, a) in k.buffers.iter().zip(&run[m].args) {
                if !order.contains(a) {
                    order.push(*a);
                }
                *mentions.entry(*a).or_default() += 1;
                buffers.entry(*a).or_insert_with(|| b.clone());
                if b.access == Access::Write {
                    *written.entry(*a).or_default() += 1;
                } else {
                    read.insert(*a);
                }
            }
        }
        // nobody else knows of it
        let local = |b: &BufferId| {
            written.get(b) == Some(&1)
                && read.contains(b)
                && mentions[b] == self.uses[b.0 as usize]
                && matches!(self.p.buffers[b.0 as usize].place, Place::Arena { .. })
        };
        order.sort_by_key(local);
        let mut chain = Kernel::default();
        let mut ids: HashMap<BufferId, BufId> = HashMap::new();
        for (i, b) in order.iter().enumerate() {
            let access = match (local(b), written.contains_key(b)) {
                (true, _) => Access::Local,
                (_, true) => Access::Write,
                _ => Access::Read,
            };
            let word = match access {
                Access::Local => "local",
                Access::Write => "out",
                _ => "in",
            };
            let id = chain.add_buffer(Buffer { name: format!("{word}{i}"), access, ..buffers[b].clone() });
            ids.insert(*b, id);
        }
        let mut names: Vec<&str> = Vec::new();
        for &m in members {
            let kernel = self.p.kernels[run[m].kernel].clone();
            let args = run[m].args.iter().map(|a| ids[a]).collect();
            chain.origins.extend(
                kernel.origins.iter().filter(|o| !chain.origins.contains(o)).copied().collect::<Vec<_>>(),
            );
            names.push(&self.p.kernels[run[m].kernel].name);
            chain.stages.push(Stage { kernel, args });
        }
        chain.name = format!("chain_{}", names.join("__"));
        order.retain(|b| !local(b));
        (chain, order)
    }
}

impl Call {
    fn step(self) -> Step {
        Step::Call { kernel: self.kernel, args: self.args, origin: self.origin }
    }
}
