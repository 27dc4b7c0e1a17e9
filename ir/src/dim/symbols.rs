//! The table of size symbols, and what is known of symbols and index variables.

use super::{Atom, Dim, Sym, Var};
use std::collections::HashMap;

/// How a symbol is born.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SymKind {
    /// From the shape of a graph input.
    Entry,
    /// Defined by an op when it is executed.
    Value,
    /// Size of a loop-carried value inside the loop's body.
    Carried,
}

/// Inclusive range, divisibility and name of a symbol.
#[derive(Clone, PartialEq, Debug)]
pub struct SymInfo {
    pub name: String,
    pub kind: SymKind,
    pub lo: i64,
    /// [`Dim::LIMIT`] where nothing is known.
    pub hi: i64,
    pub divisor: i64,
    /// Value to plan for where nothing better is known (buffer planning, cost models).
    pub hint: i64,
}

/// The symbols of a module. Names are unique.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    pub infos: Vec<SymInfo>,
    by_name: HashMap<String, u32>,
    /// The last suffix given to names of this stem.
    suffix: HashMap<String, u32>,
}

impl PartialEq for Symbols {
    fn eq(&self, other: &Symbols) -> bool {
        self.infos == other.infos
    }
}

impl Symbols {
    /// Adds a symbol; a name that is taken gets a suffix (`n`, `n_1`, `n_2`).
    pub fn add(&mut self, mut info: SymInfo) -> Sym {
        if self.by_name.contains_key(&info.name) {
            let next = self.suffix.entry(info.name.clone()).or_insert(0);
            info.name = loop {
                *next += 1;
                let name = format!("{}_{next}", info.name);
                if !self.by_name.contains_key(&name) {
                    break name;
                }
            };
        }
        let id = self.infos.len() as u32;
        self.by_name.insert(info.name.clone(), id);
        self.infos.push(info);
        Sym(id)
    }
    /// Forgets all symbols but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.infos.truncate(len);
        self.by_name.retain(|_, i| (*i as usize) < len);
        self.suffix.clear();
    }
    /// A symbol with range `0..=LIMIT`.
    pub fn fresh(&mut self, name: impl Into<String>, kind: SymKind) -> Sym {
        self.add(SymInfo { name: name.into(), kind, lo: 0, hi: Dim::LIMIT, divisor: 1, hint: 8 })
    }
    pub fn get(&self, s: Sym) -> &SymInfo {
        &self.infos[s.0 as usize]
    }
    pub fn by_name(&self, name: &str) -> Option<Sym> {
        self.by_name.get(name).map(|&i| Sym(i))
    }
    /// The expression with the symbols' names, for messages and the text form.
    pub fn show(&self, d: &Dim) -> String {
        let mut s = String::new();
        // writing to a String cannot fail
        let _ = d.write(&mut s, &|a| match a {
            Atom::Sym(x) => match self.infos.get(x.0 as usize) {
                Some(info) => crate::text::lex::name(&info.name).into_owned(),
                None => format!("s{}", x.0),
            },
            Atom::Var(v) => format!("i{}", v.0),
            _ => String::new(),
        });
        s
    }
}

/// What is known of atoms when expressions are simplified and compared.
pub trait Facts {
    /// Inclusive range of a symbol.
    fn sym_range(&self, s: Sym) -> (i64, i64);
    /// Inclusive range of an index variable.
    fn var_range(&self, _v: Var) -> (i64, i64) {
        (-Dim::LIMIT, Dim::LIMIT)
    }
    /// A positive number that divides every value of the symbol.
    fn sym_divisor(&self, _s: Sym) -> i64 {
        1
    }
    /// The extent of an index variable, where known: `0 <= v < extent`. Nothing is computed where a
    /// variable has no value, so the extent may be taken to be positive.
    fn var_extent(&self, _v: Var) -> Option<Dim> {
        None
    }
}

impl Facts for Symbols {
    fn sym_range(&self, s: Sym) -> (i64, i64) {
        self.infos.get(s.0 as usize).map_or((-Dim::LIMIT, Dim::LIMIT), |i| (i.lo, i.hi))
    }
    fn sym_divisor(&self, s: Sym) -> i64 {
        self.infos.get(s.0 as usize).map_or(1, |i| i.divisor.max(1))
    }
}

/// Knows nothing.
pub struct NoFacts;
impl Facts for NoFacts {
    fn sym_range(&self, _: Sym) -> (i64, i64) {
        (-Dim::LIMIT, Dim::LIMIT)
    }
}
