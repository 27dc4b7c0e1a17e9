//! What the evaluation of an operation needs besides its operands: values of the size symbols, and
//! the budget that every allocation and all work is charged to.

use crate::error::OpError;
use crate::view::View;
use ir::dim::NoFacts;
use ir::tensor::checked_elems;
use ir::{Atom, DType, Dim, Sym, Symbols, Tensor, TensorType};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Limits of one evaluation. A size from a hostile model ends in an error, never in an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Bytes of all tensors alive at one time, besides inputs and constants.
    pub max_bytes: u64,
    /// Element operations in total; a multiply-add counts as two, copying an element as one.
    pub max_flops: u64,
}

impl Budget {
    /// For whole models: 16 GiB, any amount of work.
    pub const RUN: Budget = Budget { max_bytes: 16 << 30, max_flops: u64::MAX };
    /// For folding one operation at compile time: 4 MiB and 2^26 operations.
    pub const FOLD: Budget = Budget { max_bytes: 4 << 20, max_flops: 1 << 26 };
}

impl Default for Budget {
    fn default() -> Budget {
        Budget::RUN
    }
}

/// Bytes of live tensors.
#[derive(Default)]
struct Meter(Cell<u64>);

/// A tensor whose bytes are charged to the meter for as long as it lives.
pub(crate) struct Held {
    pub(crate) tensor: Tensor,
    /// It is a result of rounding; said in runs with noise only.
    pub(crate) rounded: bool,
    bytes: u64,
    meter: Rc<Meter>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.0.set(self.meter.0.get().saturating_sub(self.bytes));
    }
}

impl Held {
    /// The tensor itself, copied only where somebody else still holds it.
    pub(crate) fn into_tensor(this: Rc<Held>) -> Tensor {
        match Rc::try_unwrap(this) {
            Ok(mut held) => {
                let empty = Tensor::new(held.tensor.dtype, Vec::new(), Vec::new());
                std::mem::replace(&mut held.tensor, empty)
            }
            Err(shared) => shared.tensor.clone(),
        }
    }
}

/// Values of symbols, and what has been used of the budget.
pub(crate) struct Cx<'a> {
    symbols: &'a Symbols,
    env: RefCell<Vec<Option<i64>>>,
    budget: Budget,
    meter: Rc<Meter>,
    flops: Cell<u64>,
    depth: Cell<u32>,
}

/// Nested regions; each takes a few kilobytes of stack.
const MAX_DEPTH: u32 = 100;

impl<'a> Cx<'a> {
    pub(crate) fn new(symbols: &'a Symbols, budget: Budget) -> Cx<'a> {
        Cx {
            symbols,
            env: RefCell::new(vec![None; symbols.infos.len()]),
            budget,
            meter: Rc::default(),
            flops: Cell::new(0),
            depth: Cell::new(0),
        }
    }

    // ---- budget ----------------------------------------------------------------------------

    /// Charges `n` element operations.
    pub(crate) fn spend(&self, n: usize) -> Result<(), OpError> {
        let used = self.flops.get().saturating_add(n as u64);
        if used > self.budget.max_flops {
            return Err(OpError::Limit {
                what: "element operations",
                needed: used.into(),
                allowed: self.budget.max_flops.into(),
            });
        }
        self.flops.set(used);
        Ok(())
    }
    pub(crate) fn budget(&self) -> Budget {
        self.budget
    }
    /// Number of elements of a result, where the budget has room for that many of `size` bytes each.
    pub(crate) fn room(&self, shape: &[usize], size: usize) -> Result<usize, OpError> {
        let allowed = self.budget.max_bytes;
        let live = self.meter.0.get();
        let needed = match checked_elems(shape) {
            Some(n) => {
                // strings are charged for their handle
                let size = if size == 0 { size_of::<String>() } else { size };
                let needed = n as u128 * size as u128 + u128::from(live);
                if needed <= u128::from(allowed) {
                    return Ok(n);
                }
                needed
            }
            None => u128::MAX,
        };
        Err(OpError::Limit { what: "bytes", needed, allowed: allowed.into() })
    }
    /// A zeroed result.
    pub(crate) fn zeros(&self, dtype: DType, shape: Vec<usize>) -> Result<Tensor, OpError> {
        self.room(&shape, dtype.bytes())?;
        Ok(Tensor::zeros(dtype, shape))
    }
    /// Temporary memory of `n` elements.
    pub(crate) fn scratch<T: Clone>(&self, n: usize, value: T) -> Result<Vec<T>, OpError> {
        self.room(&[n], size_of::<T>())?;
        Ok(vec![value; n])
    }
    /// Charges the bytes of a tensor until the last handle is dropped.
    pub(crate) fn hold(&self, tensor: Tensor, rounded: bool) -> Rc<Held> {
        let text: usize = tensor.strings.iter().map(|s| size_of::<String>() + s.len()).sum();
        let bytes = (tensor.data.len() + text) as u64;
        self.meter.0.set(self.meter.0.get().saturating_add(bytes));
        Rc::new(Held { tensor, rounded, bytes, meter: self.meter.clone() })
    }
    /// Goes one region deeper; [`Cx::leave`] comes back.
    pub(crate) fn enter(&self) -> Result<(), OpError> {
        let depth = self.depth.get() + 1;
        if depth > MAX_DEPTH {
            return Err(OpError::Limit {
                what: "nested regions",
                needed: depth.into(),
                allowed: MAX_DEPTH.into(),
            });
        }
        self.depth.set(depth);
        Ok(())
    }
    pub(crate) fn leave(&self) {
        self.depth.set(self.depth.get().saturating_sub(1));
    }

    // ---- sizes -----------------------------------------------------------------------------

    pub(crate) fn sym(&self, s: Sym) -> Option<i64> {
        self.env.borrow().get(s.0 as usize).copied().flatten()
    }
    pub(crate) fn dim(&self, d: &Dim) -> Result<i64, OpError> {
        d.eval_syms(&|s| self.sym(s)).ok_or_else(|| OpError::Unbound(self.show(d)))
    }
    pub(crate) fn show(&self, d: &Dim) -> String {
        self.symbols.show(d)
    }
    /// Value of an extent: 0 to 2^48.
    pub(crate) fn extent(&self, d: &Dim) -> Result<usize, OpError> {
        let n = self.dim(d)?;
        match usize::try_from(n) {
            Ok(extent) if n <= Dim::LIMIT => Ok(extent),
            _ => Err(OpError::mismatch("extent", format!("0..={}", Dim::LIMIT), n)),
        }
    }
    pub(crate) fn shape(&self, shape: &[Dim]) -> Result<Vec<usize>, OpError> {
        shape.iter().map(|d| self.extent(d)).collect()
    }

    /// Gives a symbol a value that its range must allow.
    pub(crate) fn bind(&self, s: Sym, value: i64) -> Result<(), OpError> {
        let mut env = self.env.borrow_mut();
        let (Some(slot), Some(info)) = (env.get_mut(s.0 as usize), self.symbols.infos.get(s.0 as usize))
        else {
            return Err(OpError::Unbound(format!("s{}", s.0)));
        };
        let divisor = info.divisor.max(1);
        if value < info.lo || value > info.hi || value.rem_euclid(divisor) != 0 {
            return Err(OpError::Symbol {
                name: info.name.clone(),
                value,
                lo: info.lo,
                hi: info.hi,
                divisor,
            });
        }
        *slot = Some(value);
        Ok(())
    }
    /// As [`Cx::bind`] without a check, for values that the caller vouches for.
    pub(crate) fn set(&self, s: Sym, value: Option<i64>) {
        if let Some(slot) = self.env.borrow_mut().get_mut(s.0 as usize) {
            *slot = value;
        }
    }
    pub(crate) fn unbind(&self, symbols: &[Sym]) {
        for &s in symbols {
            self.set(s, None);
        }
    }

    /// Checks values against their declared types. Symbols for which `may_bind` holds get their values
    /// from the shapes: directly where a dim is the symbol itself, by solving where it is linear in it
    /// (`past + 1`).
    pub(crate) fn unify(
        &self,
        values: &[(&TensorType, View)],
        what: &str,
        may_bind: &dyn Fn(Sym) -> bool,
    ) -> Result<(), OpError> {
        let mut open: Vec<(&Dim, i64)> = Vec::new();
        for (i, (ty, t)) in values.iter().enumerate() {
            if ty.dtype != t.dtype || ty.shape.len() != t.shape.len() {
                let dims: Vec<String> = ty.shape.iter().map(|d| self.show(d)).collect();
                let expected = format!("{}[{}]", ty.dtype, dims.join(", "));
                return Err(OpError::mismatch(format!("{what} {i}"), expected, t.describe()));
            }
            // tensors are in memory, so their extents fit
            open.extend(ty.shape.iter().zip(t.shape.iter().map(|&n| n as i64)));
        }
        loop {
            let before = open.len();
            let mut left = Vec::new();
            for (d, found) in open {
                if let Some(n) = d.eval_syms(&|s| self.sym(s)) {
                    if n != found {
                        let at = format!("extent `{}` of the shape of a {what}", self.show(d));
                        return Err(OpError::mismatch(at, n, found));
                    }
                } else if let Some((s, n)) = self.solve(d, found).filter(|(s, _)| may_bind(*s)) {
                    self.bind(s, n)?;
                } else {
                    left.push((d, found));
                }
            }
            match left.first() {
                None => return Ok(()),
                Some((d, _)) if left.len() == before => {
                    return Err(OpError::Unbound(self.show(d)));
                }
                _ => open = left,
            }
        }
    }
    /// The symbol and its value that make `d` equal to `found`, where `d` is `k * symbol + c`.
    fn solve(&self, d: &Dim, found: i64) -> Option<(Sym, i64)> {
        let known = d.subst(&NoFacts, &mut |a| match a {
            Atom::Sym(s) => self.sym(*s).map(Dim::from),
            _ => None,
        });
        let (mut constant, mut term) = (0i64, None);
        for (atoms, c) in known.terms() {
            match atoms.as_slice() {
                [] => constant = *c,
                [Atom::Sym(s)] if term.is_none() => term = Some((*s, *c)),
                _ => return None,
            }
        }
        let (s, k) = term?;
        let rest = found.checked_sub(constant)?;
        (rest.checked_rem(k)? == 0).then(|| (s, rest / k))
    }
}
