//! The pass pipeline: one table, in order of execution.

use crate::error::{PassError, Result};
use crate::forms::Forms;
use crate::host::Planned;
use crate::limits::Fuel;
use crate::{Options, chain, graph, host, place};
use ir::Module;
use ir::host::Lowered;
use ir::target::TargetDesc;

/// Names of the forms that a model takes, in order. A stage is what the passes of that stage leave.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// As imported.
    Import,
    /// Simplified graph of primitives: no composites, no foldable constants, no duplicates.
    Canonical,
    /// Kernels and the host schedule, buffers with layouts and places.
    Kernels,
    /// Loop IR in tile form.
    Loops,
}

impl Stage {
    pub const ALL: [Stage; 4] = [Stage::Import, Stage::Canonical, Stage::Kernels, Stage::Loops];
    pub fn name(self) -> &'static str {
        match self {
            Stage::Import => "import",
            Stage::Canonical => "canonical",
            Stage::Kernels => "kernels",
            Stage::Loops => "loops",
        }
    }
    pub fn parse(name: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// A model on its way.
#[derive(Clone, Debug)]
pub enum State {
    Graph(Module),
    Planned(Planned),
    Lowered(Lowered),
}

/// What passes may ask.
pub struct Cx<'a> {
    pub target: &'a TargetDesc,
    pub options: &'a Options,
    /// Counts what the passes decide.
    pub fuel: &'a Fuel,
}

impl Cx<'_> {
    fn forms(&self) -> Option<Forms> {
        Forms::of(self.options.math, self.target)
    }
}

/// One row of the pipeline.
pub struct Pass {
    pub name: &'static str,
    /// The stage that the model is in afterwards.
    pub stage: Stage,
    /// Why the pass exists, and why it stands where it does.
    pub reason: &'static str,
    pub run: fn(State, &Cx) -> Result<State>,
}

/// THE pipeline.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "assign-hints",
        stage: Stage::Canonical,
        reason: "likely sizes of symbols, for every later pass that has to choose",
        run: |s, _| on_graph(s, graph::assign_hints),
    },
    Pass {
        name: "integer-products",
        stage: Stage::Canonical,
        reason: "products of quantised tensors on bytes; before inlining, which takes the names away",
        run: |s, cx| on_graph_if(cx.options.math.reassociates(), s, |m| graph::integer_products(m, cx.fuel)),
    },
    Pass {
        name: "inline-composites",
        stage: Stage::Canonical,
        reason: "names of composites are hints; every later pass sees primitives only",
        run: |s, cx| on_graph(s, |m| graph::inline_composites(m, cx.fuel)),
    },
    Pass {
        name: "fold-constants",
        stage: Stage::Canonical,
        reason: "first, so that simplify meets constants where there are any",
        run: |s, cx| on_graph(s, |m| graph::fold_constants(m, cx.fuel)),
    },
    Pass {
        name: "simplify",
        stage: Stage::Canonical,
        reason: "identities, and branches whose condition is known",
        run: |s, cx| on_graph(s, |m| graph::simplify(m, cx.fuel)),
    },
    Pass {
        name: "densify-convolutions",
        stage: Stage::Canonical,
        reason: "products by zeros are not computed; before folding, which packs the weights, and before their pads",
        run: |s, cx| {
            // bf16 has direct forms for most of them
            let winograd = cx.options.math == ir::Math::Default;
            on_graph(s, |m| graph::densify_convolutions(m, winograd, cx.fuel))
        },
    },
    Pass {
        name: "fold-again",
        stage: Stage::Canonical,
        reason: "what simplify brought together may be constant now",
        run: |s, cx| on_graph(s, |m| graph::fold_constants(m, cx.fuel)),
    },
    Pass {
        name: "reciprocals",
        stage: Stage::Canonical,
        reason: "quotients by what elements share are products; after folding, which knows the constants",
        run: |s, cx| on_graph_if(cx.options.math.reassociates(), s, |m| graph::reciprocals(m, cx.fuel)),
    },
    Pass {
        name: "delay-scales",
        stage: Stage::Canonical,
        reason: "operands of products are read where they lie; after reciprocals, whose factors move too",
        run: |s, cx| on_graph_if(cx.options.math.reassociates(), s, |m| graph::delay_scales(m, cx.fuel)),
    },
    Pass {
        name: "bind-states",
        stage: Stage::Canonical,
        reason: "appends in place of concatenations; after inlining, which brings these to the main graph",
        run: |s, cx| on_graph(s, |m| graph::bind_states(m, &cx.options.states)),
    },
    Pass {
        name: "bf16-products",
        stage: Stage::Canonical,
        reason: "operands that products may round; before pads, which then copy halves",
        run: |s, cx| {
            // without such an instruction there is nothing to gain for the digits that are lost
            let native = cx.target.words(ir::kernel::Dot::Bf16).is_some();
            let bf16 = cx.options.math == ir::Math::Bf16 && native;
            let matrices = cx.target.has_matrices(ir::kernel::Dot::Bf16);
            on_graph_if(bf16, s, |m| graph::bf16_products(m, matrices, cx.fuel))
        },
    },
    Pass {
        name: "separate-pads",
        stage: Stage::Canonical,
        reason: "convolutions without guards; before cse, since branches often pad the same value",
        run: |s, cx| on_graph(s, |m| graph::separate_pads(m, cx.forms(), cx.fuel)),
    },
    Pass {
        name: "split-sums",
        stage: Stage::Canonical,
        reason: "long sums of few results fill a GPU; after pads, which ask for the form of convolutions",
        run: |s, cx| {
            let forms = cx.forms().filter(|_| cx.target.simt);
            on_graph(s, |m| forms.map_or(Ok(()), |f| graph::split_sums(m, cx.target, f, cx.fuel)))
        },
    },
    Pass {
        name: "cse",
        stage: Stage::Canonical,
        reason: "after the rewrites, which make equal ops out of different ones",
        run: |s, cx| on_graph(s, |m| graph::cse(m, cx.fuel)),
    },
    Pass {
        name: "dce",
        stage: Stage::Canonical,
        reason: "grouping counts uses: dead ones would keep values in buffers",
        run: |s, cx| on_graph(s, |m| graph::dce(m, cx.fuel)),
    },
    Pass {
        name: "group",
        stage: Stage::Kernels,
        reason: "decides which values lie in buffers and builds the kernels and the schedule around them",
        run: |s, cx| {
            Ok(State::Planned(host::schedule(module(s)?, cx.target, cx.options.choices(cx.target), cx.fuel)?))
        },
    },
    Pass {
        name: "fuse-chains",
        stage: Stage::Kernels,
        reason: "kernels whose intermediate values can stay in cache become one; before buffers get places, \
                 of which it needs fewer",
        run: |s, cx| {
            let mut p = planned(s)?;
            chain::fuse(&mut p, cx.target, cx.fuel);
            Ok(State::Planned(p))
        },
    },
    Pass {
        name: "place-buffers",
        stage: Stage::Kernels,
        reason: "arena offsets; last, since every pass before it may add buffers",
        run: |s, cx| {
            let mut p = planned(s)?;
            place::place(&mut p, cx.fuel);
            Ok(State::Planned(p))
        },
    },
    Pass {
        name: "lower-kernels",
        stage: Stage::Loops,
        reason: "a schedule for each kernel, and the kernel in loop IR under that schedule",
        run: |s, cx| Ok(State::Lowered(crate::lower_kernels(planned(s)?, cx.target, cx.options)?)),
    },
];

fn module(s: State) -> Result<Module> {
    match s {
        State::Graph(m) => Ok(m),
        _ => Err(PassError::internal("pipeline", "expected a graph")),
    }
}

fn on_graph(s: State, pass: impl Fn(&mut Module) -> Result<()>) -> Result<State> {
    let mut m = module(s)?;
    pass(&mut m)?;
    Ok(State::Graph(m))
}

/// As [`on_graph`], under a condition.
fn on_graph_if(wanted: bool, s: State, pass: impl Fn(&mut Module) -> Result<()>) -> Result<State> {
    if wanted { on_graph(s, pass) } else { Ok(s) }
}

fn planned(s: State) -> Result<Planned> {
    match s {
        State::Planned(p) => Ok(p),
        _ => Err(PassError::internal("pipeline", "expected kernels")),
    }
}

/// Runs the passes up to and including `stage`.
///
/// # Errors
/// The first error of a pass, or of the verifier after it where [`Options::verify`] is set.
pub fn run_until(module: Module, target: &TargetDesc, options: &Options, stage: Stage) -> Result<State> {
    let fuel = Fuel::new(options);
    let cx = Cx { target, options, fuel: &fuel };
    PASSES.iter().take_while(|p| p.stage <= stage).try_fold(State::Graph(module), |s, p| p.apply(s, &cx))
}

impl Pass {
    /// Runs this pass alone.
    ///
    /// # Errors
    /// As [`run_until`].
    pub fn apply(&self, state: State, cx: &Cx) -> Result<State> {
        cx.fuel.enter(self.name);
        let state = (self.run)(state, cx)?;
        if cx.options.verify {
            verify(&state, self.name)?;
        }
        Ok(state)
    }
}

fn verify(state: &State, pass: &'static str) -> Result<()> {
    match state {
        State::Graph(m) => ir::verify::graph::verify(m).map_err(|error| PassError::Verify { pass, error }),
        State::Planned(p) => p
            .kernels
            .iter()
            .try_for_each(ir::verify::kernel::verify)
            .map_err(|error| PassError::Verify { pass, error }),
        State::Lowered(l) => l
            .kernels
            .iter()
            .flat_map(|k| &k.variants)
            .try_for_each(|v| ir::verify::loops::verify(&v.func))
            .map_err(|error| PassError::Verify { pass, error }),
    }
}
