//! The forms that a model takes behind the canonical graph, each of which can be executed by itself.

use crate::driver::{self, CompileOptions, Error};
use codegen::legalise;
use ir::host::Lowered;
use ir::loops::Func;
use ir::{Module, Tensor};
use passes::kernel_exec::{self, Code};
use passes::limits::{
    ALGORITHMS, CHAINS, Decision, FUSIONS, Fuel, HOMES, LAYOUTS, Limits, SCHEDULES, SHARINGS, STAGINGS,
};
use passes::pipeline::{Cx, PASSES};
use passes::{Planned, Stage, State};

/// Math functions that legalisation expands, function by function: a class of decisions behind those of the passes.
pub const EXPANSIONS: &str = "expansions";

/// How far a model has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Kernels, each buffer in memory of its own.
    Kernels,
    /// The same, some of them as chains.
    Chains,
    /// With buffers in the places that they will have.
    Places,
    /// Loop IR in tile form: schedules.
    Loops,
    /// Loop IR in machine form: what emitters take.
    Machine,
}

impl Level {
    pub const ALL: [Level; 5] = [Level::Kernels, Level::Chains, Level::Places, Level::Loops, Level::Machine];

    /// What makes this level of the one before it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Kernels => "group",
            Level::Chains => "fuse-chains",
            Level::Places => "place-buffers",
            Level::Loops => "lower-kernels",
            Level::Machine => "legalise",
        }
    }
    /// The decisions that are taken on the way here from the level before, in order.
    pub fn classes(self) -> &'static [&'static str] {
        match self {
            Level::Kernels => &[HOMES, ALGORITHMS, FUSIONS, LAYOUTS, STAGINGS],
            Level::Chains => &[CHAINS],
            Level::Places => &[SHARINGS],
            Level::Loops => &[SCHEDULES],
            Level::Machine => &[EXPANSIONS],
        }
    }
}

/// A model at a level.
pub struct At {
    pub planned: Planned,
    lowered: Option<Lowered>,
    /// By kernel and variant, at [`Level::Machine`].
    machine: Vec<Vec<Func>>,
    /// Math functions in them, expanded or not.
    functions: u64,
    /// Decisions taken.
    pub fuel: Fuel,
    limits: Limits,
    expanded: Option<Decision>,
}

/// Takes a module in import form to a level; decisions that belong to later levels are not taken.
///
/// # Errors
/// Those of the passes and of legalisation.
pub fn take(module: &Module, options: &CompileOptions, limits: &Limits, level: Level) -> Result<At, Error> {
    let mut limits = options.decisions.and(limits);
    for later in Level::ALL.into_iter().filter(|l| *l > level) {
        limits = later.classes().iter().fold(limits, |l, c| l.with(c, 0));
    }
    let backend = driver::backend(options)?;
    let target = backend.target();
    let options_of = passes::Options { limits: limits.clone(), verify: true, ..options.passes() };
    let fuel = Fuel::new(&options_of);
    let cx = Cx { target: &target, options: &options_of, fuel: &fuel };
    let mut module = module.clone();
    driver::give_bytes(&mut module)?;
    let mut state = State::Graph(module);
    for pass in PASSES.iter().take_while(|p| p.stage <= Stage::Kernels) {
        state = pass.apply(state, &cx)?;
    }
    let State::Planned(mut planned) = state else {
        return Err(Error::Usage("the pipeline has no stage of kernels".into()));
    };
    driver::give_bytes(&mut planned.module)?;
    let (mut lowered, mut machine, mut expansion) = (None, Vec::new(), Expansion::default());
    if level >= Level::Loops {
        let all = passes::lower_kernels(planned.clone(), &target, &options_of)?;
        if level == Level::Machine {
            expansion.left = limits.of(EXPANSIONS);
            for k in &all.kernels {
                let mut variants = Vec::new();
                for v in &k.variants {
                    variants.push(expansion.of(&v.func, &target, options)?);
                }
                machine.push(variants);
            }
        }
        lowered = Some(all);
    }
    let Expansion { seen: functions, last: expanded, .. } = expansion;
    Ok(At { planned, lowered, machine, functions, fuel, limits, expanded })
}

/// Math functions of one function after the other.
#[derive(Default)]
struct Expansion {
    /// How many more may be expanded.
    left: Option<u64>,
    seen: u64,
    /// The last one that was, where there is a limit.
    last: Option<Decision>,
}

impl Expansion {
    fn of(
        &mut self,
        func: &Func,
        target: &ir::target::TargetDesc,
        options: &CompileOptions,
    ) -> Result<Func, Error> {
        let mut how = options.legalisation();
        how.expansions = self.left.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let (machine, names) = legalise::legalise_counting(func, target, how)?;
        if let Some(left) = &mut self.left {
            let taken = (names.len() as u64).min(*left);
            *left -= taken;
            if let Some(name) = (taken as usize).checked_sub(1).and_then(|i| names.get(i)) {
                let origin = func.origins.first().copied().unwrap_or(ir::OriginId(0));
                let (number, what) = (self.seen + taken, format!("{name} in {}", func.name));
                self.last = Some(Decision { class: EXPANSIONS, number, origin, what });
            }
        }
        self.seen += names.len() as u64;
        Ok(machine)
    }
}

impl At {
    /// The kernels in the form of this level; `None`: as kernel IR.
    pub fn code(&self) -> Option<Code<'_>> {
        let lowered = self.lowered.as_ref()?;
        if self.machine.is_empty() {
            return Some(Code::of(lowered));
        }
        let kernels = lowered.kernels.iter().zip(&self.machine);
        let kernels = kernels
            .map(|(k, funcs)| k.variants.iter().zip(funcs).map(|(v, f)| (v.guards.as_slice(), f)).collect())
            .collect();
        Some(Code { kernels })
    }

    /// Outputs of the model.
    ///
    /// # Errors
    /// What went wrong, as text: a wrong program may do anything.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
        kernel_exec::execute_as(&self.planned, self.code().as_ref(), inputs).map_err(|e| e.to_string())
    }

    /// Decisions of a class that were taken.
    pub fn used(&self, class: &str) -> u64 {
        match class {
            SCHEDULES => self.planned.kernels.len() as u64,
            EXPANSIONS => self.functions,
            _ => self.fuel.used(class),
        }
    }

    /// The last decision that the limit of a class allowed.
    pub fn last(&self, class: &'static str) -> Option<Decision> {
        match class {
            SCHEDULES => {
                let number = self.limits.of(class)?;
                let k = &self.lowered.as_ref()?.kernels[usize::try_from(number).ok()?.checked_sub(1)?];
                let schedules: Vec<&str> = k.variants.iter().map(|v| v.schedule.as_str()).collect();
                let what = format!("kernel {} by {}", k.kernel.name, schedules.join(" or "));
                let origin = k.kernel.origins.first().copied().unwrap_or(ir::OriginId(0));
                Some(Decision { class, number, origin, what })
            }
            EXPANSIONS => self.expanded.clone(),
            _ => self.fuel.last(class),
        }
    }
}
