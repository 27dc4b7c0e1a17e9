//! Finds the decision of the compiler that makes a model's results wrong.
//!
//! [`super::stages`] names the first bad stage. Its decisions are numbered ([`passes::limits`]): with as many as it
//! takes the results are wrong, with none, most likely, right; halving finds the first one that makes the
//! difference. The kernel at fault is cut out of a large model before, so that everything after runs on a small one.

use super::levels::{Level, take};
use super::stages::{self, Checked, Deviation, Effort, Outcome, Values, graph_passes, origin_text};
use super::{Fault, Repro, Road, Roads, shrink};
use crate::driver::{self, CompileOptions, Error};
use interp::{Bounded, Interp};
use ir::{Module, Tensor};
use passes::State;
use passes::limits::{Decision, Fuel, Limits};
use passes::pipeline::{Cx, Pass};
use std::collections::HashSet;
use std::time::Duration;

/// What was found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The first bad stage.
    pub stage: &'static str,
    /// What is wrong after it.
    pub seen: String,
    /// Node and value where it shows.
    pub node: String,
    pub value: Option<String>,
    /// The first bad decision of the stage, with the node that it is about; `None` where the stage is wrong
    /// whatever it decides.
    pub decision: Option<(Decision, String)>,
    /// How many decisions of that kind there are.
    pub of: u64,
    /// A model that shows it, as small as could be made.
    pub reduced: Repro,
}

/// Checks all stages of a model, and follows the first bad one to its cause. `tell` hears of every step.
///
/// # Errors
/// Where the model does not run in the interpreter.
pub fn bisect(
    model: &Repro,
    options: &CompileOptions,
    effort: Effort,
    shrinking: Duration,
    tell: &mut dyn FnMut(&str),
) -> Result<(Vec<Checked>, Option<Finding>), Error> {
    let Some(inputs) = model.sets.first() else { return Ok((Vec::new(), None)) };
    let mut one = |c: &Checked| tell(&c.to_string());
    let checked = stages::check(&model.module, inputs, options, effort, &mut one)?;
    let Some(bad) = checked.iter().find(|c| c.outcome.is_bad()).cloned() else {
        let found = machine_code(model, options, shrinking, tell)?;
        return Ok((checked, found));
    };
    let seen = match &bad.outcome {
        Outcome::Wrong(d) => d.clone(),
        Outcome::Failed(message) => {
            Deviation { node: String::new(), value: None, id: None, message: message.clone() }
        }
        _ => return Ok((checked, None)),
    };
    let fails = matches!(bad.outcome, Outcome::Failed(_));
    let mut search = Search { options, tell, shrinking, fails };
    let found = match graph_passes().find(|p| p.name == bad.name) {
        Some(pass) => search.in_pass(model, pass, seen)?,
        None => {
            let level = Level::ALL.into_iter().find(|l| l.name() == bad.name);
            search.at_level(model, level.unwrap_or(Level::Kernels), seen)?
        }
    };
    Ok((checked, Some(found)))
}

/// The emitter and the runtime, behind everything that has decisions of its own.
fn machine_code(
    model: &Repro,
    options: &CompileOptions,
    shrinking: Duration,
    tell: &mut dyn FnMut(&str),
) -> Result<Option<Finding>, Error> {
    let road = Road::Backend(driver::backend(options)?.name().into());
    let mut roads = Roads { options: options.clone(), ort: None };
    let bounds = model.reference(false)?;
    let fault = match roads.check(&road, model, &bounds) {
        Some(fault @ (Fault::Wrong(_) | Fault::Failed(_))) => fault,
        Some(Fault::Refused(why)) => {
            tell(&format!("machine code           skipped   {why}"));
            return Ok(None);
        }
        None => {
            tell("machine code           good      outputs within the bounds of rounding");
            return Ok(None);
        }
    };
    tell(&format!("machine code           WRONG     {fault}"));
    let reduced = shrink::shrink(model, shrinking, &mut |r| {
        let Ok(bounds) = r.reference(false) else { return false };
        roads.check(&road, r, &bounds).is_some_and(|f| f.is_like(&fault))
    });
    tell(&format!("reduced from {} operations to {}", model.ops(), reduced.ops()));
    Ok(Some(Finding {
        stage: "machine code",
        seen: fault.to_string(),
        node: String::new(),
        value: None,
        decision: None,
        of: 0,
        reduced,
    }))
}

struct Search<'a> {
    options: &'a CompileOptions,
    tell: &'a mut dyn FnMut(&str),
    shrinking: Duration,
    /// The pipeline itself fails: where it does so on a smaller model, that shows it too.
    fails: bool,
}

/// The least number of decisions in `1..=total` for which `wrong` holds, given that it does for `total` and not for 0.
fn first_wrong(total: u64, wrong: &mut dyn FnMut(u64) -> bool) -> u64 {
    let (mut good, mut bad) = (0, total);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if wrong(middle) { bad = middle } else { good = middle }
    }
    bad
}

/// Samples of a bound that a verdict is based on.
const SAMPLES: u64 = 16;

impl Search<'_> {
    // ---- graph passes ---------------------------------------------------------------------------

    fn in_pass(&mut self, model: &Repro, pass: &'static Pass, seen: Deviation) -> Result<Finding, Error> {
        let mut before = model.module.clone();
        driver::give_bytes(&mut before)?;
        for p in graph_passes().take_while(|p| p.name != pass.name) {
            before = self.apply(p, &before, &Limits::default())?.0;
        }
        let inputs = &model.sets[0];
        let want = Interp::new(&before).run(inputs)?;
        let wrong = |limits: &Limits| match self.apply(pass, &before, limits) {
            Ok((after, _)) => differs(pass, &before, &after, inputs, &want),
            Err(_) => self.fails,
        };
        let total = self.apply(pass, &before, &Limits::default()).map_or(0, |(_, fuel)| fuel.used(pass.name));
        let limit = |n: u64| Limits::default().with(pass.name, n);
        let mut decision = None;
        if total > 0 && !wrong(&limit(0)) {
            let n = first_wrong(total, &mut |n| wrong(&limit(n)));
            let last = self.apply(pass, &before, &limit(n)).ok().and_then(|(_, fuel)| fuel.last(pass.name));
            decision = last.map(|d| {
                let node = origin_text(&before, d.origin);
                (d, node)
            });
        }
        if let Some((d, node)) = &decision {
            (self.tell)(&format!("{d}, at {node} (of {total})"));
        }
        // the whole way up to the pass, where that shows it too: then the small model needs no such care
        let shows = |r: &Repro| {
            let mut now = r.module.clone();
            if driver::give_bytes(&mut now).is_err() {
                return false;
            }
            for p in graph_passes().take_while(|p| p.name != pass.name) {
                match self.apply(p, &now, &Limits::default()) {
                    Ok((next, _)) => now = next,
                    Err(_) => return false,
                }
            }
            let Ok(want) = Interp::new(&now).run(&r.sets[0]) else { return false };
            match self.apply(pass, &now, &Limits::default()) {
                Ok((after, _)) => differs(pass, &now, &after, &r.sets[0], &want),
                Err(_) => self.fails,
            }
        };
        let start = Repro { module: model.module.clone(), sets: vec![inputs.clone()] };
        let reduced = shrink::shrink(&start, self.shrinking, &mut |r| shows(r));
        (self.tell)(&format!("reduced from {} operations to {}", start.ops(), reduced.ops()));
        Ok(Finding {
            stage: pass.name,
            seen: seen.message,
            node: seen.node,
            value: seen.value,
            decision,
            of: total,
            reduced,
        })
    }

    fn apply(&self, pass: &Pass, module: &Module, limits: &Limits) -> Result<(Module, Fuel), Error> {
        let target = driver::backend(self.options)?.target();
        let limits = self.options.decisions.and(limits);
        let options = passes::Options { limits, verify: true, ..self.options.passes() };
        let fuel = Fuel::new(&options);
        let state = pass
            .apply(State::Graph(module.clone()), &Cx { target: &target, options: &options, fuel: &fuel })?;
        match state {
            State::Graph(m) => Ok((m, fuel)),
            _ => Err(Error::Usage(format!("{} leaves no graph", pass.name))),
        }
    }

    // ---- kernels --------------------------------------------------------------------------------

    fn at_level(&mut self, model: &Repro, level: Level, seen: Deviation) -> Result<Finding, Error> {
        let whole = Repro { module: model.module.clone(), sets: model.sets[..1].to_vec() };
        // the kernel alone, or with more and more of those before it: a layout takes two to go wrong
        let cut = [0, 1, 2, 4, 8, 16].into_iter().find_map(|before| {
            self.cut(&whole, &seen, before).filter(|c| self.wrong(c, level, &Limits::default()))
        });
        let start = match cut {
            Some(cut) => {
                (self.tell)(&format!("cut out: {} operations of {}", cut.ops(), whole.ops()));
                cut
            }
            None => whole,
        };
        let (decision, of) = self.decision(&start, level);
        if let Some((d, node)) = &decision {
            (self.tell)(&format!("{d}, at {node} (of {of})"));
        }
        let shrinking = self.shrinking;
        let reduced = shrink::shrink(&start, shrinking, &mut |r| self.wrong(r, level, &Limits::default()));
        (self.tell)(&format!("reduced from {} operations to {}", start.ops(), reduced.ops()));
        Ok(Finding {
            stage: level.name(),
            seen: seen.message,
            node: seen.node,
            value: seen.value,
            decision,
            of,
            reduced,
        })
    }

    /// The part of the canonical graph that computes the bad value from the values in buffers before it, but for the
    /// last so many `before` it, which are computed too.
    fn cut(&self, model: &Repro, seen: &Deviation, before: usize) -> Option<Repro> {
        let at = take(&model.module, self.options, &Limits::default(), Level::Kernels).ok()?;
        let canonical = &at.planned.module;
        let bad = seen.id?;
        let values = Values::of(canonical, &model.sets[0], &at).ok()?;
        let constant = |v: &ir::ValueId| {
            canonical.graph.def_op(*v).is_some_and(|op| canonical.graph[op].operands.is_empty())
        };
        let order = canonical.graph.ops().flat_map(|(_, op)| op.results.iter().copied());
        let mut known: Vec<ir::ValueId> = order
            .take_while(|v| *v != bad)
            .filter(|v| values.known.contains_key(v) && !constant(v))
            .collect();
        known.truncate(known.len().saturating_sub(before));
        let cut: HashSet<ir::ValueId> = known.into_iter().collect();
        let whole = Repro { module: canonical.clone(), sets: model.sets.clone() };
        shrink::cut(&whole, &[bad], &cut, &values.known)
    }

    /// The first bad decision on the way to a level, and how many of its kind there are.
    fn decision(&self, model: &Repro, level: Level) -> (Option<(Decision, String)>, u64) {
        // first nothing is decided, then everything of one class after another
        let mut limits = level.classes().iter().fold(Limits::default(), |l, c| l.with(c, 0));
        if self.wrong(model, level, &limits) {
            return (None, 0);
        }
        for &class in level.classes() {
            let all = limits.clone().without(class);
            if !self.wrong(model, level, &all) {
                limits = all;
                continue;
            }
            let at = |n: u64| limits.clone().with(class, n);
            let total = match take(&model.module, self.options, &all, level) {
                Ok(at) => at.used(class),
                // nobody counted them: as many as it takes
                Err(_) => {
                    let enough = (0..20).map(|i| 1 << i).find(|&n| self.wrong(model, level, &at(n)));
                    enough.unwrap_or(0)
                }
            };
            if total == 0 {
                return (None, 0);
            }
            let n = first_wrong(total, &mut |n| self.wrong(model, level, &at(n)));
            let found = take(&model.module, self.options, &at(n), level).ok().and_then(|a| {
                let d = a.last(class)?;
                let node = origin_text(&a.planned.module, d.origin);
                Some((d, node))
            });
            return (found, total);
        }
        (None, 0)
    }

    /// The model gives wrong results at a level.
    fn wrong(&self, r: &Repro, level: Level, limits: &Limits) -> bool {
        let Ok(want) = Interp::new(&r.module).run(&r.sets[0]) else { return false };
        let Ok(at) = take(&r.module, self.options, limits, level) else { return self.fails };
        let Ok(got) = at.run(&r.sets[0]) else { return true };
        let close = |(g, w): (&Tensor, &Tensor)| {
            let tolerance = super::tolerance_of(w.dtype, self.options.math);
            interp::compare(g, w, tolerance).passes()
        };
        if got.len() == want.len() && got.iter().zip(&want).all(close) {
            return false;
        }
        let Ok(bounds) = Bounded::run(&r.module, &r.sets[0], SAMPLES) else { return false };
        got.len() != want.len() || got.iter().enumerate().any(|(i, g)| !bounds.compare(i, g).passes())
    }
}

fn differs(pass: &Pass, before: &Module, after: &Module, inputs: &[Tensor], want: &[Tensor]) -> bool {
    match Interp::new(after).run(inputs) {
        Ok(got) => stages::agree(pass, before, inputs, want, &got, 4).is_err(),
        Err(_) => true,
    }
}
