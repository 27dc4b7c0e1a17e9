//! Support for tests of every crate: random valid graphs, tensors and sizes, all reproducible from a seed.
//!
//! ```
//! # use kernelsmith_ir as ir;
//! use ir::testing::{Options, random_graph};
//! let case = random_graph(7, &Options::default());
//! let inputs = case.inputs(0);
//! assert_eq!(inputs.len(), case.module.graph.inputs.len());
//! ```

mod gen_control;
mod gen_ops;
mod values;

pub use values::random_tensor;

use crate::build::{Builder, V};
use crate::infer::Require;
use crate::{Atom, DType, Dim, Module, Sym, SymKind, Tensor};
use values::Grid;

/// Mnemonics that random graphs contain sooner or later: everything but `assert` and `host`, which can fail
/// or depend on the order of equal scores.
#[rustfmt::skip]
pub const ALL_PRIMITIVES: &[&str] = &[
    "const", "iota", "dim_value", "bind_dim", "random_bits", "neg", "abs", "floor", "ceil", "trunc",
    "round_even", "sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
    "sinh", "cosh", "asinh", "acosh", "atanh", "tanh", "erf", "not", "add", "sub", "mul", "div", "rem",
    "pow", "atan2", "min", "max", "and", "or", "xor", "shl", "shr", "eq", "ne", "lt", "le", "gt", "ge",
    "select", "convert", "bitcast", "reshape", "transpose", "broadcast", "slice", "pad", "concat",
    "update_slice", "gather", "scatter", "reduce", "arg_reduce", "window_reduce", "cumulative",
    "contract", "convolve", "sort", "top_k", "compact", "if", "loop", "call",
];

/// The softmax of `x` along `axis`, as exporters without a softmax write it.
pub fn softmax(b: &mut Builder, x: V, axis: usize) -> crate::Result<V> {
    let most = b.reduce_max(x, &[axis], true)?;
    let below = b.sub(x, most)?;
    let e = b.exp(below)?;
    let sum = b.reduce_sum(e, &[axis], true)?;
    b.div(e, sum)
}

/// SplitMix64: small, fast, the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// In `0..n`; 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n.max(1) as u64) as usize
    }
    /// In `lo..=hi`.
    pub fn range(&mut self, lo: i64, hi: i64) -> i64 {
        lo + (self.next_u64() % (hi - lo + 1).max(1) as u64) as i64
    }
    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// What random graphs are made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ops to add (helpers such as broadcasts and constants not counted).
    pub ops: usize,
    /// Extents of inputs are symbols, two thirds of them.
    pub symbolic: bool,
    /// `if`, `loop`, `call`, data-dependent sizes.
    pub control: bool,
    /// Element types besides f32, i64 and bool, which always occur.
    pub dtypes: Vec<DType>,
    /// Largest element count of any tensor.
    pub max_elems: i64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ops: 12,
            symbolic: false,
            control: true,
            dtypes: DType::ALL.into_iter().filter(|d| *d != DType::String).collect(),
            max_elems: 1024,
        }
    }
}

/// A module and sizes for which it runs.
#[derive(Clone, Debug)]
pub struct Case {
    pub module: Module,
    pub seed: u64,
    /// Values of the entry symbols: at least one assignment, up to three where there are symbols.
    pub sizes: Vec<Vec<(Sym, i64)>>,
}

impl Case {
    /// Inputs of the main graph for `sizes[which]`.
    pub fn inputs(&self, which: usize) -> Vec<Tensor> {
        let mut rng = Rng::new(self.seed ^ 0x5EED ^ (which as u64) << 32);
        let sizes = &self.sizes[which];
        let value = |s: Sym| sizes.iter().find(|x| x.0 == s).map(|x| x.1);
        let g = &self.module.graph;
        let tensor = |&v: &crate::ValueId| {
            let ty = &g[v].ty;
            let extent = |d: &Dim| d.eval_syms(&value).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            random_tensor(&mut rng, ty.dtype, ty.shape.iter().map(extent).collect())
        };
        g.inputs.iter().map(tensor).collect()
    }
}

/// A random graph in which every result is well defined: what jumps (comparisons, rounding, sorting,
/// conversion to integers) is applied to values that every correct implementation computes exactly,
/// indices are in bounds, and domains of functions are respected. So two implementations agree up to
/// rounding, whatever the seed.
pub fn random_graph(seed: u64, options: &Options) -> Case {
    let mut rng = Rng::new(seed);
    loop {
        let mut g = Gen::new(rng.next_u64(), options);
        g.fill();
        if let Some(case) = g.finish(seed) {
            return case;
        }
    }
}

/// A value to build on.
#[derive(Clone, Copy, Debug)]
struct Item {
    v: V,
    grid: Grid,
}

/// A graph being made up.
#[derive(Clone)]
struct Gen {
    b: Builder,
    rng: Rng,
    pool: Vec<Item>,
    options: Options,
    symbols: Vec<Dim>,
    inputs: usize,
}

impl Gen {
    fn new(seed: u64, options: &Options) -> Gen {
        let mut g = Gen {
            b: Builder::new("random"),
            rng: Rng::new(seed),
            pool: Vec::new(),
            options: options.clone(),
            symbols: Vec::new(),
            inputs: 0,
        };
        if options.symbolic {
            for (name, lo) in [("N", 1), ("M", 0), ("K", 2)] {
                let s = g.b.symbol(name, lo, 9);
                g.symbols.push(s);
            }
        }
        if options.symbolic {
            // every symbol has a value
            let all = g.symbols.clone();
            g.input(DType::Bool, all);
        }
        for dtype in [DType::F32, DType::I64, DType::Bool] {
            let shape = g.shape();
            g.input(dtype, shape);
        }
        g
    }

    /// Adds ops until there are enough; a step that does not work out leaves no trace.
    fn fill(&mut self) {
        let (mut done, mut attempts) = (0, 0);
        while done < self.options.ops && attempts < self.options.ops * 20 {
            attempts += 1;
            let mut next = self.clone();
            if next.step().is_some() && next.sound(self.b.required().len()) {
                *self = next;
                done += 1;
            } else {
                // not the same step again
                self.rng.next_u64();
            }
        }
    }

    /// The conditions added since `from` are decided by the sizes of the inputs.
    fn sound(&self, from: usize) -> bool {
        let entry = |d: &Dim| {
            let mut yes = true;
            d.visit_atoms(&mut |a| {
                if let Atom::Sym(s) = a {
                    yes &= self.b.symbols().get(*s).kind == SymKind::Entry;
                }
            });
            yes
        };
        self.b.required()[from..].iter().all(|r| {
            let (Require::Eq(x, y) | Require::Le(x, y) | Require::OneOr(x, y)) = r;
            entry(x) && entry(y)
        })
    }

    fn finish(mut self, seed: u64) -> Option<Case> {
        let required = self.b.required().to_vec();
        let mut sizes: Vec<Vec<(Sym, i64)>> = Vec::new();
        let symbols: Vec<Sym> = self.symbols.iter().filter_map(Dim::as_sym).collect();
        for _ in 0..200 {
            // equal sizes and ones make conditions true that random sizes would not
            let (common, style) = (self.rng.range(2, 9), self.rng.below(3));
            let mut at = Vec::new();
            for &s in &symbols {
                let (lo, hi) = (self.b.symbols().get(s).lo, self.b.symbols().get(s).hi);
                let n = match (style, self.rng.below(3)) {
                    (0, _) => common,
                    (1, 0) => 1,
                    (1, 1) => common,
                    _ => self.rng.range(lo, hi),
                };
                at.push((s, n.clamp(lo, hi)));
            }
            let value = |s: Sym| at.iter().find(|x| x.0 == s).map(|x| x.1);
            if required.iter().all(|r| r.holds(&value) == Some(true)) && !sizes.contains(&at) {
                sizes.push(at);
                if symbols.is_empty() || sizes.len() == 3 {
                    break;
                }
            }
        }
        if sizes.is_empty() {
            return None;
        }
        // what nobody used, and some of the rest
        let mut outputs: Vec<V> = Vec::new();
        let mut items = self.pool.split_off(self.inputs.min(self.pool.len()));
        items.reverse();
        for item in items {
            if outputs.len() < 6 && !outputs.contains(&item.v) && (outputs.is_empty() || !self.rng.one_in(3))
            {
                outputs.push(item.v);
            }
        }
        if outputs.is_empty() {
            outputs.push(self.pool.first()?.v);
        }
        let outputs: Vec<_> = outputs.into_iter().enumerate().map(|(i, v)| (format!("out{i}"), v)).collect();
        let module = self.b.finish(&outputs).ok()?;
        Some(Case { module, seed, sizes })
    }

    // ---- shapes, values --------------------------------------------------------------------

    fn extent(&mut self) -> Dim {
        if !self.symbols.is_empty() && !self.rng.one_in(3) {
            return self.rng.pick(&self.symbols).clone();
        }
        let n = *self.rng.pick(&[1, 2, 3, 4, 5, 7, 8, 16]);
        // empty tensors are rare but must work
        Dim::from(if self.rng.one_in(25) { 0 } else { n })
    }
    fn shape(&mut self) -> Vec<Dim> {
        let rank = *self.rng.pick(&[0, 1, 2, 2, 3, 3, 4]);
        loop {
            let shape: Vec<Dim> = (0..rank).map(|_| self.extent()).collect();
            if self.fits(&shape) {
                return shape;
            }
        }
    }
    fn fits(&self, shape: &[Dim]) -> bool {
        Dim::product(shape).bounds(self.b.symbols()).1 <= self.options.max_elems
    }
    /// At least 1 at run time.
    fn is_positive(&self, d: &Dim) -> bool {
        Dim::from(1).provably_le(d, self.b.symbols())
    }
    fn dtype(&mut self) -> DType {
        match self.rng.below(4) {
            0 => DType::F32,
            1 if self.rng.one_in(2) => DType::I64,
            _ if !self.options.dtypes.is_empty() => *self.rng.pick(&self.options.dtypes),
            _ => DType::F32,
        }
    }
    fn arithmetic(&mut self) -> DType {
        loop {
            let d = self.dtype();
            if crate::infer::is_arithmetic(d) {
                return d;
            }
        }
    }
    /// In the main graph, with extents from which the symbols can be read.
    fn can_be_input(&self, shape: &[Dim]) -> bool {
        let plain = |d: &Dim| d.as_const().is_some() || self.symbols.contains(d);
        self.b.depth() == 1 && shape.iter().all(plain)
    }
    fn input(&mut self, dtype: DType, shape: Vec<Dim>) -> Item {
        if !self.can_be_input(&shape) {
            return self.constant(dtype, shape);
        }
        let v = self.b.input(format!("in{}", self.b.input_count()), dtype, shape);
        let item = Item { v, grid: Grid::of_random(dtype) };
        self.pool.insert(self.inputs, item);
        self.inputs += 1;
        item
    }
    /// A random constant; an input where the shape is not static.
    fn constant(&mut self, dtype: DType, shape: Vec<Dim>) -> Item {
        let dims: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
        let grid = Grid::of_random(dtype);
        if let Some(dims) = dims {
            let t = random_tensor(&mut self.rng, dtype, dims);
            if let Ok(v) = self.b.constant(t) {
                return Item { v, grid };
            }
        }
        if self.can_be_input(&shape) {
            return self.input(dtype, shape);
        }
        // one value for all elements
        let one = random_tensor(&mut self.rng, dtype, Vec::new());
        let v = self.b.constant(one).and_then(|s| self.b.broadcast_to(s, &shape));
        match v {
            Ok(v) => Item { v, grid },
            Err(_) => self.pool[0],
        }
    }
    /// A new value, input or constant.
    fn fresh(&mut self, dtype: DType, shape: Vec<Dim>) -> Item {
        if self.rng.one_in(2) { self.input(dtype, shape) } else { self.constant(dtype, shape) }
    }
    /// A value of the pool, late ones more often.
    fn any(&mut self) -> Item {
        let n = self.pool.len();
        let i = self.rng.below(n).max(self.rng.below(n));
        self.pool[i]
    }
    /// A value of the pool with this property, or `None`.
    fn find(&mut self, ok: impl Fn(&Gen, &Item) -> bool) -> Option<Item> {
        let start = self.rng.below(self.pool.len());
        let n = self.pool.len();
        (0..n).map(|i| self.pool[(start + i) % n]).find(|item| ok(self, item))
    }
    fn push(&mut self, v: V, grid: Grid) -> Option<()> {
        if !self.fits(self.b.shape(v)) {
            return None;
        }
        self.pool.push(Item { v, grid });
        Some(())
    }
}
