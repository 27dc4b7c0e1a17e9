//! Loops and conditions.

use super::{Def, LoopBuilder, Pending, Scope, ScopeKind};
use crate::dtype::Scalar;
use crate::loops::{Block, Level, Stmt, Ty, Val};

impl LoopBuilder {
    /// Opens a `for`; answers its variable and the carried values inside. [`Self::close_for`] ends it.
    /// What surely runs once becomes no loop.
    pub fn open_for(&mut self, lo: Val, hi: Val, step: i64, inits: &[Val]) -> (Val, Vec<Val>) {
        if let (Some(first), Some(end)) = (self.as_index(lo), self.as_index(hi))
            && first < end
            && end.saturating_sub(first) <= step
        {
            self.once.push(self.scopes.len());
            return (lo, inits.to_vec());
        }
        self.open_loop(lo, hi, step, inits, None)
    }

    fn open_loop(
        &mut self,
        lo: Val,
        hi: Val,
        step: i64,
        inits: &[Val],
        parallel: Option<Level>,
    ) -> (Val, Vec<Val>) {
        let nonneg = self.nonneg(lo);
        let depth = self.scopes.len() as u32;
        let var = self.new_val(Ty::INDEX, depth, nonneg, Def::Other);
        let (carries, inside) = self.carry(inits, depth);
        let pending = Pending::For { var, lo, hi, step, carries, parallel };
        self.scopes.push(Scope::new(ScopeKind::Loop, pending));
        (var, inside)
    }

    fn carry(&mut self, inits: &[Val], depth: u32) -> (Vec<(Val, Val)>, Vec<Val>) {
        let inside: Vec<Val> =
            inits.iter().map(|init| self.new_val(self.ty(*init), depth, false, Def::Other)).collect();
        (inside.iter().copied().zip(inits.iter().copied()).collect(), inside)
    }

    /// Ends the innermost `for`, whose body yields `next` values of the carries.
    ///
    /// # Panics
    /// Where the innermost open block is not the body of a `for`.
    pub fn close_for(&mut self, next: &[Val]) -> Vec<Val> {
        if self.once.pop_if(|depth| *depth == self.scopes.len()).is_some() {
            return next.to_vec();
        }
        let (body, pending) = self.close(next);
        let Pending::For { var, lo, hi, step, carries, parallel } = pending else {
            panic!("close_for: the innermost open block is not the body of a `for`")
        };
        let results = self.results(next);
        self.push(Stmt::For { var, lo, hi, step, carries, results: results.clone(), body, parallel });
        results
    }

    pub(super) fn close(&mut self, yields: &[Val]) -> (Block, Pending) {
        let scope = self.scopes.pop().unwrap_or_else(|| Scope::new(ScopeKind::Root, Pending::Root));
        (Block { stmts: scope.stmts, yields: yields.to_vec() }, scope.pending)
    }

    fn results(&mut self, like: &[Val]) -> Vec<Val> {
        let depth = self.scopes.len() as u32 - 1;
        like.iter().map(|v| self.new_val(self.ty(*v), depth, false, Def::Other)).collect()
    }

    /// `for var in lo .. hi step step`: the body gets its variable and the carried values and answers
    /// the next ones. Answers the final ones.
    pub fn for_(
        &mut self,
        lo: Val,
        hi: Val,
        step: i64,
        inits: &[Val],
        body: impl FnOnce(&mut Self, Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let (var, carried) = self.open_for(lo, hi, step, inits);
        let next = body(self, var, &carried);
        self.close_for(&next)
    }

    /// Opens the parallel loop `for var in 0 .. trip`; [`Self::close_for`] with no values ends it.
    pub fn open_parallel(&mut self, level: Level, trip: Val) -> Val {
        let zero = self.index(0);
        self.open_loop(zero, trip, 1, &[], Some(level)).0
    }

    /// The parallel loop `for var in 0 .. trip`.
    pub fn parallel(&mut self, level: Level, trip: Val, body: impl FnOnce(&mut Self, Val)) {
        let var = self.open_parallel(level, trip);
        body(self, var);
        self.close_for(&[]);
    }

    /// Opens a `while`: build the condition, then call [`Self::open_while_body`].
    pub fn open_while(&mut self, inits: &[Val]) -> Vec<Val> {
        let depth = self.scopes.len() as u32;
        let (carries, inside) = self.carry(inits, depth);
        self.scopes.push(Scope::new(ScopeKind::Loop, Pending::WhileCond { carries }));
        inside
    }

    /// Ends the condition of the innermost `while`; its body, which sees the same carried values, begins.
    ///
    /// # Panics
    /// Where the innermost open block is not the condition of a `while`.
    pub fn open_while_body(&mut self, cond: Val) {
        let (cond, pending) = self.close(&[cond]);
        let Pending::WhileCond { carries } = pending else {
            panic!("open_while_body: the innermost open block is not the condition of a `while`")
        };
        let pending = Pending::WhileBody { carries, cond };
        self.scopes.push(Scope::new(ScopeKind::Loop, pending));
    }

    /// Ends the innermost `while` with the next carried values.
    ///
    /// # Panics
    /// Where the innermost open block is not the body of a `while`.
    pub fn close_while(&mut self, next: &[Val]) -> Vec<Val> {
        let (body, pending) = self.close(next);
        let Pending::WhileBody { carries, cond } = pending else {
            panic!("close_while: the innermost open block is not the body of a `while`")
        };
        let results = self.results(next);
        self.push(Stmt::While { carries, results: results.clone(), cond, body });
        results
    }

    /// `while cond { body }` over carried values.
    pub fn while_(
        &mut self,
        inits: &[Val],
        cond: impl FnOnce(&mut Self, &[Val]) -> Val,
        body: impl FnOnce(&mut Self, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let carried = self.open_while(inits);
        let c = cond(self, &carried);
        self.open_while_body(c);
        let next = body(self, &carried);
        self.close_while(&next)
    }

    /// Opens the first block of an `if`; then [`Self::open_else`], then [`Self::close_if`].
    pub fn open_if(&mut self, cond: Val) {
        self.scopes.push(Scope::new(ScopeKind::If, Pending::Then { cond }));
    }

    /// Ends the first block of the innermost `if` with its values and begins the second.
    ///
    /// # Panics
    /// Where the innermost open block is not the first of an `if`.
    pub fn open_else(&mut self, yields: &[Val]) {
        let (then, pending) = self.close(yields);
        let Pending::Then { cond } = pending else {
            panic!("open_else: the innermost open block is not the first of an `if`")
        };
        self.scopes.push(Scope::new(ScopeKind::If, Pending::Else { cond, then }));
    }

    /// Ends the innermost `if` with the values of its second block.
    ///
    /// # Panics
    /// Where the innermost open block is not the second of an `if`.
    pub fn close_if(&mut self, yields: &[Val]) -> Vec<Val> {
        let (otherwise, pending) = self.close(yields);
        let Pending::Else { cond, then } = pending else {
            panic!("close_if: the innermost open block is not the second of an `if`")
        };
        let results = self.results(yields);
        self.push(Stmt::If { cond, then, otherwise, results: results.clone() });
        results
    }

    /// `if cond { then } else { otherwise }`; a constant condition leaves only its branch.
    pub fn if_(
        &mut self,
        cond: Val,
        then: impl FnOnce(&mut Self) -> Vec<Val>,
        otherwise: impl FnOnce(&mut Self) -> Vec<Val>,
    ) -> Vec<Val> {
        match self.as_const(cond) {
            Some(Scalar::Int(0)) => return otherwise(self),
            Some(_) => return then(self),
            None => {}
        }
        self.open_if(cond);
        let yields = then(self);
        self.open_else(&yields);
        let yields = otherwise(self);
        self.close_if(&yields)
    }

    /// An `if` without values and without a second block.
    pub fn when(&mut self, cond: Val, then: impl FnOnce(&mut Self)) {
        self.if_(
            cond,
            |b| {
                then(b);
                Vec::new()
            },
            |_| Vec::new(),
        );
    }
}
