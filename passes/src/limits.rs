//! How many decisions a compilation may take.
//!
//! Passes improve a model by small steps, each of which could as well be left out: one rewrite of a graph pass, one
//! value that is computed inside of its consumer, one layout, one schedule. A class of such steps is numbered in
//! order of execution; [`Limits`] say how many of a class are taken, and all later ones are left out. Since a step
//! depends on earlier ones only, a bisection over the number finds the first step after which results are wrong
//! (`kernelsmith bisect`). Without a limit nothing but a counter moves.

use ir::OriginId;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;

/// Values written straight into the buffer of the concat, pad or update that uses them.
pub const HOMES: &str = "homes";
/// Other algorithms for a convolution than the direct one (Winograd's, col2im).
pub const ALGORITHMS: &str = "algorithms";
/// Values computed inside the kernel of their consumer.
pub const FUSIONS: &str = "fusions";
/// Values that lie in memory otherwise than row-major.
pub const LAYOUTS: &str = "layouts";
/// Operands packed or copied into the form that their kernel reads at full speed.
pub const STAGINGS: &str = "stagings";
/// Kernels that run as one.
pub const CHAINS: &str = "chains";
/// Buffers that share arena bytes with others.
pub const SHARINGS: &str = "sharings";
/// Kernels with a schedule other than one element at a time.
pub const SCHEDULES: &str = "schedules";

/// The classes behind the graph passes, in the order in which their steps are taken.
pub const KERNEL_CLASSES: [&str; 7] = [HOMES, ALGORITHMS, FUSIONS, LAYOUTS, STAGINGS, CHAINS, SHARINGS];

/// The most decisions by class (a name above, or that of a graph pass); a class that is not there has no limit.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    most: BTreeMap<String, u64>,
}

impl Limits {
    /// These limits with at most `n` decisions of `class`.
    #[must_use]
    pub fn with(mut self, class: &str, n: u64) -> Limits {
        self.most.insert(class.to_string(), n);
        self
    }
    /// Kernels at their plainest: no decision of any class behind the graph passes.
    pub fn plain_kernels() -> Limits {
        KERNEL_CLASSES.iter().chain([&SCHEDULES]).fold(Limits::default(), |l, c| l.with(c, 0))
    }
    /// These limits, and those of `other` in place of them where it has any.
    #[must_use]
    pub fn and(&self, other: &Limits) -> Limits {
        let mut most = self.most.clone();
        most.extend(other.most.clone());
        Limits { most }
    }
    /// These limits with none on `class`.
    #[must_use]
    pub fn without(mut self, class: &str) -> Limits {
        self.most.remove(class);
        self
    }
    pub fn of(&self, class: &str) -> Option<u64> {
        self.most.get(class).copied()
    }
}

/// A decision that was taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    pub class: &'static str,
    /// From 1 on.
    pub number: u64,
    /// The node it is about.
    pub origin: OriginId,
    pub what: String,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}: {}", self.class, self.number, self.what)
    }
}

/// Counts the decisions of one compilation.
#[derive(Debug, Default)]
pub struct Fuel {
    limits: Limits,
    used: RefCell<BTreeMap<&'static str, u64>>,
    /// The pass that runs: the class of its rewrites.
    pass: Cell<&'static str>,
    /// The last decision within each limit.
    last: RefCell<BTreeMap<&'static str, Decision>>,
    #[cfg(feature = "planted-faults")]
    planted: Option<crate::planted::Fault>,
}

impl Fuel {
    pub fn new(options: &crate::Options) -> Fuel {
        Fuel {
            limits: options.limits.clone(),
            #[cfg(feature = "planted-faults")]
            planted: options.planted,
            ..Fuel::default()
        }
    }

    /// Decisions of `class` so far.
    pub fn used(&self, class: &str) -> u64 {
        self.used.borrow().get(class).copied().unwrap_or(0)
    }
    /// The last decision that the limit of `class` allowed, where it has one and it was reached.
    pub fn last(&self, class: &str) -> Option<Decision> {
        self.last.borrow().get(class).cloned()
    }
    /// No further decision of `class` is allowed.
    pub fn spent(&self, class: &str) -> bool {
        self.limits.of(class).is_some_and(|most| self.used(class) >= most)
    }
    /// Counts a decision that was taken. `what` is asked for the last one within a limit only.
    pub fn take(&self, class: &'static str, origin: OriginId, what: impl FnOnce() -> String) {
        let number = self.used(class) + 1;
        self.used.borrow_mut().insert(class, number);
        if self.limits.of(class) == Some(number) {
            let decision = Decision { class, number, origin, what: what() };
            self.last.borrow_mut().insert(class, decision);
        }
    }
    /// Counts one more decision, where one is left.
    pub fn allow(&self, class: &'static str, origin: OriginId, what: impl FnOnce() -> String) -> bool {
        let allowed = !self.spent(class);
        if allowed {
            self.take(class, origin, what);
        }
        allowed
    }

    pub(crate) fn pass(&self) -> &'static str {
        self.pass.get()
    }
    pub(crate) fn enter(&self, pass: &'static str) {
        self.pass.set(pass);
    }

    /// True where a test planted this fault; never outside of its build.
    #[cfg(feature = "planted-faults")]
    pub(crate) fn planted(&self, fault: crate::planted::Fault) -> bool {
        self.planted == Some(fault)
    }
}
