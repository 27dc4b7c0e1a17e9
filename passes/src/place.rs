//! Buffer planning: which arena bytes each buffer gets.
//!
//! Steps are numbered in order of execution, nested ones included; a buffer lives from the first step
//! that mentions it to the last one (to the end of a loop that it enters from outside). A buffer is laid
//! out at the first [`Step::Layout`] that knows its symbols for good: none of them is bound again before
//! the first use. Buffers of static size get offsets by best fit, largest first. Buffers of symbolic
//! size share slots with others that live at other times; a slot is as large as its largest member.

use crate::host::{Planned, symbols_of};
use crate::limits::{Fuel, SHARINGS};
use ir::host::{Buffer, BufferId, Place, Step};
use ir::{Dim, OriginId, Sym, SymKind, Symbols};
use std::collections::{HashMap, HashSet};

/// Alignment of arena buffers in bytes.
pub const ALIGN: i64 = 64;

#[derive(Clone, Debug)]
struct Life {
    first: usize,
    last: usize,
    /// Loops around the first mention, outermost first.
    loops: Vec<usize>,
}

/// A place where offsets can be evaluated.
struct Marker {
    at: usize,
    /// Loops and branches around it, outermost first.
    scopes: Vec<usize>,
    known: HashSet<Sym>,
}

struct Walk<'a> {
    /// Number of the step being walked.
    at: usize,
    lives: HashMap<BufferId, Life>,
    /// The node of the first kernel that has the buffer.
    made: HashMap<BufferId, OriginId>,
    markers: Vec<Marker>,
    known: HashSet<Sym>,
    scopes: Vec<usize>,
    /// By scope: its last step, whether it is a loop, symbols that it rebinds.
    ends: HashMap<usize, usize>,
    rebinds: HashMap<usize, HashSet<Sym>>,
    /// Steps that give a symbol a value.
    binds: Vec<(usize, Sym)>,
    buffers: &'a [Buffer],
}

/// Gives every arena buffer its offset and fills in the `Layout` steps.
pub fn place(p: &mut Planned, fuel: &Fuel) {
    let Planned { buffers, steps, module, .. } = p;
    let symbols = &module.symbols;
    let names: Vec<String> = buffers.iter().map(|b| b.name.clone()).collect();
    let known = (0..symbols.infos.len() as u32).map(Sym);
    let known = known.filter(|s| symbols.get(*s).kind == SymKind::Entry).collect();
    let mut walk = Walk {
        at: 0,
        lives: HashMap::new(),
        made: HashMap::new(),
        markers: Vec::new(),
        known,
        scopes: Vec::new(),
        ends: HashMap::new(),
        rebinds: HashMap::new(),
        binds: Vec::new(),
        buffers,
    };
    walk.steps(steps);
    let Walk { lives, made, markers, ends, rebinds, binds, .. } = walk;

    // which marker lays each buffer out
    let mut members: Vec<Vec<BufferId>> = vec![Vec::new(); markers.len()];
    let mut ids: Vec<BufferId> = lives.keys().copied().collect();
    ids.sort();
    for id in ids {
        let buffer = &buffers[id.0 as usize];
        if !matches!(buffer.place, Place::Arena { .. } | Place::Output(_)) {
            continue;
        }
        let mut syms = symbols_of(&buffer.shape);
        syms.extend(symbols_of(std::slice::from_ref(&buffer.bytes)));
        let life = &lives[&id];
        let usable = |m: &Marker| {
            let dominates = m.at < life.first && m.scopes.iter().all(|s| life.loops.contains(s));
            // after the last step that binds one of its symbols, and inside every loop that does
            let unbound = |(at, s): &(usize, Sym)| m.at < *at && *at < life.first && syms.contains(s);
            let stable = !binds.iter().any(unbound)
                && life
                    .loops
                    .iter()
                    .filter(|l| !m.scopes.contains(l))
                    .all(|l| rebinds.get(l).is_none_or(|set| syms.iter().all(|s| !set.contains(s))));
            dominates
                && stable
                && symbols_of(std::slice::from_ref(&buffer.bytes)).iter().all(|s| m.known.contains(s))
        };
        let chosen = markers.iter().position(usable);
        // a size that is known nowhere before its first use is a fault that the runtime reports
        let chosen = chosen.or_else(|| markers.iter().rposition(|m| m.at < life.first)).unwrap_or(0);
        if let Some(list) = members.get_mut(chosen) {
            list.push(id);
        }
    }

    // offsets: each marker's buffers lie beyond those of the markers that enclose or precede it
    let mut end_of: Vec<Dim> = Vec::new();
    for (m, marker) in markers.iter().enumerate() {
        let base = (0..m)
            .rev()
            .find(|&p| {
                let scopes = &markers[p].scopes;
                marker.scopes.starts_with(scopes)
            })
            .map_or(Dim::from(0), |p| end_of[p].clone());
        let arena: Vec<BufferId> = members[m]
            .iter()
            .copied()
            .filter(|b| matches!(buffers[b.0 as usize].place, Place::Arena { .. }))
            .collect();
        // a buffer that a loop reads from outside lives as long as the loop
        let span = |id: &BufferId| {
            let life = &lives[id];
            let mut last = life.last;
            #[cfg(feature = "planted-faults")]
            if fuel.planted(crate::planted::Fault::Place) {
                last = last.saturating_sub(1).max(life.first);
            }
            for (&scope, &end) in &ends {
                if life.first < scope && life.last > scope && life.last <= end && rebinds.contains_key(&scope)
                {
                    last = last.max(end);
                }
            }
            (life.first, last)
        };
        let spans: HashMap<BufferId, (usize, usize)> = arena.iter().map(|b| (*b, span(b))).collect();
        let shares = |id: BufferId| {
            let origin = made.get(&id).copied().unwrap_or(OriginId(0));
            fuel.allow(SHARINGS, origin, || format!("buffer {}", names[id.0 as usize]))
        };
        let end = assign(buffers, &arena, &spans, base, symbols, &shares);
        end_of.push(end);
    }
    let mut next = 0;
    fill(steps, &mut next, &members, &end_of);
}

/// Writes the plan into the `Layout` steps, in the order in which they were met.
fn fill(steps: &mut [Step], next: &mut usize, members: &[Vec<BufferId>], ends: &[Dim]) {
    for s in steps {
        match s {
            Step::Layout { buffers, end } => {
                for b in &members[*next] {
                    if !buffers.contains(b) {
                        buffers.push(*b);
                    }
                }
                *end = ends[*next].clone();
                *next += 1;
            }
            Step::If { then, otherwise, .. } => {
                fill(then, next, members, ends);
                fill(otherwise, next, members, ends);
            }
            Step::Loop { body, .. } => fill(body, next, members, ends),
            _ => {}
        }
    }
}

impl Walk<'_> {
    fn mention(&mut self, b: BufferId) {
        // an alias lives in another buffer
        let mut b = b;
        while let Place::Alias(of) = self.buffers[b.0 as usize].place {
            b = of;
        }
        let (at, scopes) = (self.at, self.scopes.clone());
        self.lives.entry(b).or_insert(Life { first: at, last: at, loops: scopes }).last = at;
    }

    fn bind(&mut self, s: Sym) {
        self.known.insert(s);
        self.binds.push((self.at, s));
        for scope in &self.scopes {
            if let Some(set) = self.rebinds.get_mut(scope) {
                set.insert(s);
            }
        }
    }

    fn steps(&mut self, steps: &[Step]) {
        for s in steps {
            self.at += 1;
            self.step(s);
        }
    }

    fn step(&mut self, s: &Step) {
        match s {
            Step::Layout { buffers, .. } => {
                buffers.iter().for_each(|b| self.mention(*b));
                let known = self.known.clone();
                self.markers.push(Marker { at: self.at, scopes: self.scopes.clone(), known });
            }
            Step::Call { args, origin, .. } => {
                for b in args {
                    self.mention(*b);
                    self.made.entry(*b).or_insert(*origin);
                }
            }
            Step::Copy { from, to } | Step::Append { from, to, .. } => {
                self.mention(*from);
                self.mention(*to);
            }
            Step::SetSym { sym, .. } => self.bind(*sym),
            Step::BindSym { sym, from, .. } => {
                self.mention(*from);
                self.bind(*sym);
            }
            Step::CheckEq { .. } => {}
            Step::Assert { cond, .. } => self.mention(*cond),
            Step::If { cond, then, otherwise } => {
                self.mention(*cond);
                let before = self.known.clone();
                let mut after: Option<HashSet<Sym>> = None;
                for branch in [then, otherwise] {
                    self.at += 1;
                    let scope = self.at;
                    self.scopes.push(scope);
                    self.known = before.clone();
                    self.steps(branch);
                    self.scopes.pop();
                    self.ends.insert(scope, self.at);
                    after = Some(match after {
                        None => self.known.clone(),
                        Some(a) => a.intersection(&self.known).copied().collect(),
                    });
                }
                self.known = after.unwrap_or(before);
            }
            Step::Loop { trip, cond, iter, cond_next, count, body, .. } => {
                // the loop itself reads and writes these between iterations
                let control = [*trip, *cond, *iter, *cond_next];
                control.iter().for_each(|b| self.mention(*b));
                self.at += 1;
                let scope = self.at;
                self.scopes.push(scope);
                self.rebinds.insert(scope, HashSet::new());
                self.bind(*count);
                self.steps(body);
                self.scopes.pop();
                self.at += 1;
                self.ends.insert(scope, self.at);
                control.iter().for_each(|b| self.mention(*b));
            }
            Step::Host { args, results, defines, .. } => {
                args.iter().chain(results).for_each(|b| self.mention(*b));
                defines.iter().for_each(|s| self.bind(*s));
            }
        }
    }
}

/// Offsets from `base` on; the end of the region.
fn assign(
    buffers: &mut [Buffer],
    ids: &[BufferId],
    spans: &HashMap<BufferId, (usize, usize)>,
    base: Dim,
    symbols: &Symbols,
    shares: &dyn Fn(BufferId) -> bool,
) -> Dim {
    let size = |b: &Buffer| round_up(&b.bytes, symbols);
    let mut fixed: Vec<(BufferId, i64)> = Vec::new();
    let mut symbolic: Vec<(BufferId, Dim, i64)> = Vec::new();
    for &id in ids {
        let bytes = size(&buffers[id.0 as usize]);
        match bytes.as_const() {
            Some(n) => fixed.push((id, n)),
            None => {
                let hint = bytes.eval_syms(&|s| Some(symbols.get(s).hint)).unwrap_or(1 << 40);
                symbolic.push((id, bytes, hint));
            }
        }
    }
    // largest first; ties by id, so that the result is the same on every run
    fixed.sort_by_key(|&(id, n)| (-n, id));
    let mut placed: Vec<(i64, i64, (usize, usize))> = Vec::new();
    let mut end = 0i64;
    for (id, n) in fixed {
        let span = spans[&id];
        let mut busy: Vec<(i64, i64)> = placed
            .iter()
            .filter(|(_, _, other)| overlap(*other, span))
            .map(|&(at, len, _)| (at, at + len))
            .collect();
        busy.sort_unstable();
        // the smallest gap that fits
        let (mut at, mut best, mut waste) = (0, None, i64::MAX);
        for (lo, hi) in busy {
            if lo >= at + n && lo - at - n < waste {
                (best, waste) = (Some(at), lo - at - n);
            }
            at = at.max(hi);
        }
        let mut offset = best.unwrap_or(at);
        // bytes that another buffer has at another time
        let shared = placed.iter().any(|&(lo, len, _)| offset < lo + len && lo < offset + n);
        if shared && !shares(id) {
            offset = end;
        }
        placed.push((offset, n, span));
        end = end.max(offset.saturating_add(n));
        buffers[id.0 as usize].place = Place::Arena { offset: &base + Dim::from(offset) };
    }
    let mut offset = base + Dim::from(end);
    symbolic.sort_by_key(|(id, _, hint)| (-hint, *id));
    let mut slots: Vec<Slot> = Vec::new();
    for (id, bytes, _) in symbolic {
        let span = spans[&id];
        let slot = slots.iter_mut().find(|s| {
            s.members.iter().all(|m| !overlap(spans[m], span)) && s.grow(&bytes, symbols).is_some()
        });
        match slot.filter(|_| shares(id)) {
            Some(slot) => {
                slot.size = slot.grow(&bytes, symbols).unwrap_or(bytes);
                slot.members.push(id);
            }
            None => slots.push(Slot { size: bytes, members: vec![id] }),
        }
    }
    for slot in slots {
        for id in slot.members {
            buffers[id.0 as usize].place = Place::Arena { offset: offset.clone() };
        }
        offset = offset + slot.size;
    }
    offset
}

/// Arena bytes shared by buffers that live at different times.
struct Slot {
    size: Dim,
    members: Vec<BufferId>,
}

impl Slot {
    /// The size with `bytes` as one more member; `None` where the expression would grow too long.
    fn grow(&self, bytes: &Dim, symbols: &Symbols) -> Option<Dim> {
        let size = self.size.max_with(bytes, symbols);
        let mut atoms = 0;
        size.visit_atoms(&mut |_| atoms += 1);
        (atoms <= 24).then_some(size)
    }
}

fn overlap(a: (usize, usize), b: (usize, usize)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

/// Rounded up to the alignment of buffers.
fn round_up(bytes: &Dim, symbols: &Symbols) -> Dim {
    if bytes.divisible_by(ALIGN, symbols) {
        return bytes.clone();
    }
    bytes.ceil_div(&Dim::from(ALIGN), symbols) * Dim::from(ALIGN)
}
