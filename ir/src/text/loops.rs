//! Text of loop IR.
//!
//! ```text
//! func @scale tile (x: f32 align 64, y: f32 align 64 writable, s0) {
//!   local l0: f32[16*s0] scratch
//!   launch trip s0 ns 12.5
//!   origins 4, 7
//!   %0 = const 16 : i64
//!   %1 = param s0 : i64
//!   for %2 in %3 .. %1 step 1 parallel thread {
//!     %4 = mul %2, %0 : i64
//!     %5 = load x[%4 + 8, row 16, col 1, valid %9, align 64] : f32[4,16]
//!     %6: f32[4,16] = for %7 in %3 .. %0 step 1 carries (%8: f32[4,16] = %5) {
//!       %10 = add %8, %5 : f32[4,16]
//!       yield %10
//!     }
//!     store %6, y[%4, row 16, col 1, align 64]
//!   }
//! }
//! ```
//!
//! Symbols are parameters of the function and print by number. A type is `f32` (1 x 1), `f32[16]` (1 x 16) or
//! `f32[4,16]`. Buffers print by name where the names are distinct, else as `b0`, `b1`, ...

use super::lex::{Cursor, Float, Kind, name, quote};
use crate::dtype::Scalar;
use crate::loops::{
    Addr, Block, BufParam, Form, Func, Inst, Launch, Level, LocalArray, Mem, PipeOp, Space, Stmt, Stride, Ty,
    Val,
};
use crate::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use crate::{Atom, DType, Dim, OriginId, Result, Sym};
use std::collections::BTreeSet;
use std::fmt::{self, Write};

/// Blocks nest at most this deep: the parser recurses.
const MAX_DEPTH: usize = 64;
/// Values of one function: a number in a text must not allocate without bound.
const MAX_VALUES: u32 = 1 << 22;

const LEVELS: [(Level, &str); 6] = [
    (Level::Grid, "grid"),
    (Level::Cluster, "cluster"),
    (Level::Thread, "thread"),
    (Level::Warpgroup, "warpgroup"),
    (Level::Warp, "warp"),
    (Level::Lane, "lane"),
];
const SPACES: [(Space, &str); 3] =
    [(Space::Global, "global"), (Space::Shared, "shared"), (Space::Scratch, "scratch")];

fn word_of<T: PartialEq>(table: &[(T, &'static str)], x: &T) -> &'static str {
    table.iter().find(|e| e.0 == *x).map_or("?", |e| e.1)
}

/// True where buffers can be told apart by name.
fn names_are_distinct(bufs: &[BufParam]) -> bool {
    let mut seen = BTreeSet::new();
    let like_local = |s: &str| s.strip_prefix('l').is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit()));
    bufs.iter().all(|b| !like_local(&b.name) && seen.insert(b.name.as_str()))
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.rows, self.cols) {
            (1, 1) => write!(f, "{}", self.dtype),
            (1, c) => write!(f, "{}[{c}]", self.dtype),
            (r, c) => write!(f, "{}[{r},{c}]", self.dtype),
        }
    }
}

impl fmt::Display for Val {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl fmt::Display for Func {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = Printer { func: self, by_name: names_are_distinct(&self.bufs) };
        let mut out = String::new();
        p.func(&mut out)?;
        f.write_str(&out)
    }
}

/// One statement as [`Func`] prints it (the first line only of those with blocks).
pub fn stmt_line(func: &Func, stmt: &Stmt) -> String {
    let p = Printer { func, by_name: names_are_distinct(&func.bufs) };
    let mut out = String::new();
    // writing to a string does not fail
    let _ = p.stmt(&mut out, stmt, 0);
    out.lines().next().unwrap_or("").to_string()
}

fn write_dim(out: &mut String, d: &Dim) -> fmt::Result {
    write!(out, "{d}")
}

fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|x| x.to_string()).collect::<Vec<_>>().join(", ")
}

struct Printer<'a> {
    func: &'a Func,
    by_name: bool,
}

impl Printer<'_> {
    fn ty(&self, v: Val) -> Ty {
        self.func.types.get(v.0 as usize).copied().unwrap_or(Ty::INDEX)
    }

    fn func(&self, out: &mut String) -> fmt::Result {
        let f = self.func;
        let form = if f.form == Form::Tile { "tile" } else { "machine" };
        let bufs = f.bufs.iter().map(|b| {
            let writable = if b.writable { " writable" } else { "" };
            format!("{}: {} align {}{writable}", name(&b.name), b.dtype, b.align)
        });
        let params = list(bufs.chain(f.syms.iter().map(|s| format!("s{}", s.0))));
        writeln!(out, "func @{} {form} ({params}) {{", name(&f.name))?;
        for (i, l) in f.locals.iter().enumerate() {
            writeln!(out, "  local l{i}: {}[{}] {}", l.dtype, l.elems, word_of(&SPACES, &l.space))?;
        }
        self.launch(out, &f.launch)?;
        if !f.origins.is_empty() {
            writeln!(out, "  origins {}", list(f.origins.iter().map(|o| o.0)))?;
        }
        self.block(out, &f.body, 1)?;
        out.push_str("}\n");
        Ok(())
    }

    fn launch(&self, out: &mut String, l: &Launch) -> fmt::Result {
        write!(out, "  launch trip {} ns {}", l.trip, Float(l.ns_per_iter))?;
        if !l.grid.is_empty() {
            write!(out, " grid [{}]", list(&l.grid))?;
        }
        if l.cluster != [0; 3] {
            write!(out, " cluster [{}]", list(l.cluster))?;
        }
        if l.block != [0; 3] {
            write!(out, " block [{}]", list(l.block))?;
        }
        if l.shared_bytes != Dim::default() {
            out.push_str(" shared ");
            write_dim(out, &l.shared_bytes)?;
        }
        out.push('\n');
        Ok(())
    }

    fn block(&self, out: &mut String, b: &Block, depth: usize) -> fmt::Result {
        for s in &b.stmts {
            self.stmt(out, s, depth)?;
        }
        if !b.yields.is_empty() {
            writeln!(out, "{:1$}yield {2}", "", 2 * depth, list(&b.yields))?;
        }
        Ok(())
    }

    /// `{ ... }` after what is already on the line.
    fn nested(&self, out: &mut String, b: &Block, depth: usize) -> fmt::Result {
        out.push_str(" {\n");
        self.block(out, b, depth + 1)?;
        write!(out, "{:1$}}}", "", 2 * depth)
    }

    fn results(&self, out: &mut String, vals: &[Val]) {
        if !vals.is_empty() {
            out.push_str(&list(vals.iter().map(|v| format!("{v}: {}", self.ty(*v)))));
            out.push_str(" = ");
        }
    }

    fn carries(&self, carries: &[(Val, Val)]) -> String {
        list(carries.iter().map(|(v, init)| format!("{v}: {} = {init}", self.ty(*v))))
    }

    fn stmt(&self, out: &mut String, s: &Stmt, depth: usize) -> fmt::Result {
        write!(out, "{:1$}", "", 2 * depth)?;
        match s {
            Stmt::Let { val, inst } => {
                write!(out, "{val} = ")?;
                self.inst(out, inst)?;
                write!(out, " : {}", self.ty(*val))?;
            }
            Stmt::For { var, lo, hi, step, carries, results, body, parallel } => {
                self.results(out, results);
                write!(out, "for {var} in {lo} .. {hi} step {step}")?;
                if !carries.is_empty() {
                    write!(out, " carries ({})", self.carries(carries))?;
                }
                if let Some(level) = parallel {
                    write!(out, " parallel {}", word_of(&LEVELS, level))?;
                }
                self.nested(out, body, depth)?;
            }
            Stmt::While { carries, results, cond, body } => {
                self.results(out, results);
                write!(out, "while ({})", self.carries(carries))?;
                self.nested(out, cond, depth)?;
                out.push_str(" do");
                self.nested(out, body, depth)?;
            }
            Stmt::If { cond, then, otherwise, results } => {
                self.results(out, results);
                write!(out, "if {cond}")?;
                self.nested(out, then, depth)?;
                if !otherwise.stmts.is_empty() || !otherwise.yields.is_empty() {
                    out.push_str(" else");
                    self.nested(out, otherwise, depth)?;
                }
            }
            Stmt::Store { addr, value } => {
                write!(out, "store {value}, ")?;
                self.addr(out, addr)?;
            }
            Stmt::Scatter { mem, index, value, mask } => {
                write!(out, "scatter {value}, {}[{index}]", self.mem(*mem))?;
                if let Some(m) = mask {
                    write!(out, " mask {m}")?;
                }
            }
            Stmt::Barrier(level) => write!(out, "barrier {}", word_of(&LEVELS, level))?,
            Stmt::Pipe(PipeOp::Commit) => out.push_str("pipe commit"),
            Stmt::Pipe(PipeOp::Wait { pending }) => write!(out, "pipe wait {pending}")?,
            Stmt::Pipe(PipeOp::Copy { from, to, elems }) => {
                write!(out, "pipe copy {elems} ")?;
                self.addr(out, from)?;
                out.push_str(" -> ");
                self.addr(out, to)?;
            }
            Stmt::Check { ok, origin, value, limit } => {
                write!(out, "check {ok}, origin {}, {value}, {limit}", origin.0)?;
            }
        }
        out.push('\n');
        Ok(())
    }

    fn mem(&self, m: Mem) -> String {
        match m {
            Mem::Buf(i) if self.by_name => match self.func.bufs.get(i as usize) {
                Some(b) => name(&b.name).into_owned(),
                None => format!("b{i}"),
            },
            Mem::Buf(i) => format!("b{i}"),
            Mem::Local(i) => format!("l{i}"),
        }
    }

    fn addr(&self, out: &mut String, a: &Addr) -> fmt::Result {
        write!(out, "{}[{}", self.mem(a.mem), a.index)?;
        match a.disp {
            0 => {}
            d if d < 0 => write!(out, " - {}", d.unsigned_abs())?,
            d => write!(out, " + {d}")?,
        }
        for (word, s) in [("row", a.row), ("col", a.col)] {
            match s {
                Stride::Const(0) => {}
                Stride::Const(c) => write!(out, ", {word} {c}")?,
                Stride::Val(v) => write!(out, ", {word} {v}")?,
            }
        }
        if let Some(v) = a.cols_valid {
            write!(out, ", valid {v}")?;
        }
        write!(out, ", align {}]", a.align)
    }

    fn inst(&self, out: &mut String, inst: &Inst) -> fmt::Result {
        match inst {
            Inst::Const(Scalar::Int(i)) => write!(out, "const {i}"),
            Inst::Const(Scalar::Float(x)) => write!(out, "const {}", Float(*x)),
            Inst::Sym(i) => match self.func.syms.get(*i as usize) {
                Some(s) => write!(out, "param s{}", s.0),
                None => write!(out, "param {i}"),
            },
            Inst::Iota { along_cols } => write!(out, "iota {}", if *along_cols { "cols" } else { "rows" }),
            Inst::Splat(v) => write!(out, "splat {v}"),
            Inst::Unary(op, v) => write!(out, "{} {v}", op.name()),
            Inst::Binary(op, a, b) => write!(out, "{} {a}, {b}", op.name()),
            Inst::Fma(a, b, c) => write!(out, "fma {a}, {b}, {c}"),
            Inst::Cmp(op, a, b) => write!(out, "{} {a}, {b}", op.name()),
            Inst::Select(m, a, b) => write!(out, "select {m}, {a}, {b}"),
            Inst::Convert(mode, v) => write!(out, "convert {} {v}", mode.name()),
            Inst::Bitcast(v) => write!(out, "bitcast {v}"),
            Inst::Load(addr) => {
                out.push_str("load ");
                self.addr(out, addr)
            }
            Inst::Gather { mem, index, mask } => {
                write!(out, "gather {}[{index}]", self.mem(*mem))?;
                match mask {
                    Some(m) => write!(out, " mask {m}"),
                    None => Ok(()),
                }
            }
            Inst::ReduceCols(m, v) => write!(out, "reduce_cols {} {v}", m.name()),
            Inst::ReduceRows(m, v) => write!(out, "reduce_rows {} {v}", m.name()),
            Inst::Extract(v, r, c) => write!(out, "extract {v}[{r}, {c}]"),
            Inst::Insert { vec, scalar, lane } => write!(out, "insert {vec}, {scalar}, {lane}"),
            Inst::Shuffle(a, b, lanes) => write!(out, "shuffle {a}, {b}, [{}]", list(lanes)),
            Inst::TileOp { name, acc, a, b } => write!(out, "tile_op {} {acc}, {a}, {b}", quote(name)),
        }
    }
}

/// Reads what [`Func`] prints.
///
/// # Errors
/// [`crate::IrError::Parse`] with line and column. What parses is not verified yet.
pub fn parse(text: &str) -> Result<Func> {
    let mut p = Parser { c: Cursor::new(text), func: Func::default(), by_name: true, seen: Vec::new() };
    p.func()?;
    if !p.c.at_end() {
        return Err(p.c.expected("the end of the text"));
    }
    Ok(p.func)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Nothing,
    Use,
    Definition,
}

struct Parser<'a> {
    c: Cursor<'a>,
    func: Func,
    by_name: bool,
    /// What was read of each value.
    seen: Vec<Seen>,
}

impl Parser<'_> {
    fn func(&mut self) -> Result<()> {
        self.c.expect("func")?;
        self.func.name = self.c.sigil("@")?.into_owned();
        self.func.form = match self.c.word()? {
            "tile" => Form::Tile,
            "machine" => Form::Machine,
            _ => return Err(self.c.error("a form is `tile` or `machine`")),
        };
        self.c.expect("(")?;
        while !self.c.eat(")") {
            if !(self.func.bufs.is_empty() && self.func.syms.is_empty()) {
                self.c.expect(",")?;
            }
            self.param()?;
        }
        self.by_name = names_are_distinct(&self.func.bufs);
        self.c.expect("{")?;
        while self.c.eat("local") {
            let local = self.local()?;
            self.func.locals.push(local);
        }
        if self.c.eat("launch") {
            self.func.launch = self.launch()?;
        }
        if self.c.eat("origins") {
            loop {
                let id = self.c.int_as()?;
                self.func.origins.push(OriginId(id));
                if !self.c.eat(",") {
                    break;
                }
            }
        }
        self.func.body = self.block_after_brace(0)?;
        if let Some(v) = self.seen.iter().position(|s| *s == Seen::Use) {
            return Err(self.c.error(format!("%{v} has no definition")));
        }
        Ok(())
    }

    fn param(&mut self) -> Result<()> {
        if self.c.peek2().text != ":" {
            let s = self.sym()?;
            self.func.syms.push(s);
            return Ok(());
        }
        let name = self.c.name()?.into_owned();
        self.c.expect(":")?;
        let dtype = self.dtype()?;
        self.c.expect("align")?;
        let align = self.c.int_as()?;
        let writable = self.c.eat("writable");
        self.func.bufs.push(BufParam { name, dtype, writable, align });
        Ok(())
    }

    fn sym(&mut self) -> Result<Sym> {
        let at = self.c;
        let word = self.c.word()?;
        sym_of(word).ok_or_else(|| at.expected("a symbol such as `s0`"))
    }
    fn dim(&mut self) -> Result<Dim> {
        self.c.dim(&mut |n| sym_of(n).map(Atom::Sym))
    }
    fn dtype(&mut self) -> Result<DType> {
        let at = self.c;
        let word = self.c.word()?;
        word.parse().map_err(|e: String| at.error(e))
    }
    fn lookup<T: Copy>(&mut self, table: &[(T, &'static str)], what: &str) -> Result<T> {
        let at = self.c;
        let word = self.c.word()?;
        let found = table.iter().find(|e| e.1 == word).map(|e| e.0);
        found.ok_or_else(|| at.expected(what))
    }

    fn local(&mut self) -> Result<LocalArray> {
        let at = self.c;
        let expected = format!("l{}", self.func.locals.len());
        if self.c.word()? != expected {
            return Err(at.expected(&format!("`{expected}`")));
        }
        self.c.expect(":")?;
        let dtype = self.dtype()?;
        self.c.expect("[")?;
        let elems = self.dim()?;
        self.c.expect("]")?;
        let space = self.lookup(&SPACES, "a memory space")?;
        Ok(LocalArray { dtype, elems, space })
    }

    fn launch(&mut self) -> Result<Launch> {
        self.c.expect("trip")?;
        let trip = self.dim()?;
        self.c.expect("ns")?;
        let mut l = Launch { trip, ns_per_iter: self.c.float()?, ..Launch::default() };
        if self.c.eat("grid") {
            l.grid = self.c.list(|c| c.dim(&mut |n| sym_of(n).map(Atom::Sym)))?;
        }
        if self.c.eat("cluster") {
            l.cluster = self.three()?;
        }
        if self.c.eat("block") {
            l.block = self.three()?;
        }
        if self.c.eat("shared") {
            l.shared_bytes = self.dim()?;
        }
        Ok(l)
    }
    fn three(&mut self) -> Result<[u32; 3]> {
        let at = self.c;
        let v = self.c.list(|c| c.int_as())?;
        v.try_into().map_err(|_| at.error("three numbers are expected"))
    }

    fn number(&mut self) -> Result<Val> {
        let at = self.c;
        let text = self.c.sigil("%")?;
        let id: Option<u32> = text.parse().ok().filter(|i| *i < MAX_VALUES);
        let id = id.ok_or_else(|| at.expected("a value such as `%0`"))?;
        if self.func.types.len() <= id as usize {
            self.func.types.resize(id as usize + 1, Ty::INDEX);
            self.seen.resize(id as usize + 1, Seen::Nothing);
        }
        if self.seen[id as usize] == Seen::Nothing {
            self.seen[id as usize] = Seen::Use;
        }
        Ok(Val(id))
    }
    /// A use of a value.
    fn val(&mut self) -> Result<Val> {
        self.number()
    }
    fn define(&mut self, v: Val, ty: Ty) -> Result<()> {
        if std::mem::replace(&mut self.seen[v.0 as usize], Seen::Definition) == Seen::Definition {
            return Err(self.c.error(format!("{v} is defined twice")));
        }
        self.func.types[v.0 as usize] = ty;
        Ok(())
    }
    fn ty(&mut self) -> Result<Ty> {
        let dtype = self.dtype()?;
        if !self.c.at("[") {
            return Ok(Ty::scalar(dtype));
        }
        let at = self.c;
        match self.c.list(|c| c.int_as())?.as_slice() {
            [c] => Ok(Ty::vector(dtype, *c)),
            [r, c] => Ok(Ty::tile(dtype, *r, *c)),
            _ => Err(at.error("a type has one or two extents")),
        }
    }

    fn nested(&mut self, depth: usize) -> Result<Block> {
        self.c.expect("{")?;
        self.block_after_brace(depth + 1)
    }
    fn block_after_brace(&mut self, depth: usize) -> Result<Block> {
        if depth > MAX_DEPTH {
            return Err(self.c.error("blocks nest too deeply"));
        }
        let mut b = Block::default();
        loop {
            if self.c.eat("}") {
                return Ok(b);
            }
            if self.c.eat("yield") {
                loop {
                    b.yields.push(self.val()?);
                    if !self.c.eat(",") {
                        break;
                    }
                }
                self.c.expect("}")?;
                return Ok(b);
            }
            let s = self.stmt(depth)?;
            b.stmts.push(s);
        }
    }

    fn stmt(&mut self, depth: usize) -> Result<Stmt> {
        if self.c.at("%") {
            let first = self.number()?;
            if self.c.eat("=") {
                let inst = self.inst()?;
                self.c.expect(":")?;
                let ty = self.ty()?;
                self.define(first, ty)?;
                return Ok(Stmt::Let { val: first, inst });
            }
            let mut results = Vec::new();
            let mut v = first;
            loop {
                self.c.expect(":")?;
                let ty = self.ty()?;
                self.define(v, ty)?;
                results.push(v);
                if !self.c.eat(",") {
                    break;
                }
                v = self.number()?;
            }
            self.c.expect("=")?;
            return self.region(results, depth);
        }
        let at = self.c;
        Ok(match self.c.peek().text {
            "for" | "while" | "if" => return self.region(Vec::new(), depth),
            "store" => {
                self.c.bump();
                let value = self.val()?;
                self.c.expect(",")?;
                Stmt::Store { addr: self.addr()?, value }
            }
            "scatter" => {
                self.c.bump();
                let value = self.val()?;
                self.c.expect(",")?;
                let (mem, index, mask) = self.indexed()?;
                Stmt::Scatter { mem, index, value, mask }
            }
            "barrier" => {
                self.c.bump();
                Stmt::Barrier(self.lookup(&LEVELS, "a level")?)
            }
            "pipe" => {
                self.c.bump();
                Stmt::Pipe(self.pipe()?)
            }
            "check" => {
                self.c.bump();
                let ok = self.val()?;
                self.c.expect(",")?;
                self.c.expect("origin")?;
                let origin = OriginId(self.c.int_as()?);
                self.c.expect(",")?;
                let value = self.val()?;
                self.c.expect(",")?;
                Stmt::Check { ok, origin, value, limit: self.val()? }
            }
            _ => return Err(at.expected("a statement")),
        })
    }

    fn pipe(&mut self) -> Result<PipeOp> {
        let at = self.c;
        Ok(match self.c.word()? {
            "commit" => PipeOp::Commit,
            "wait" => PipeOp::Wait { pending: self.c.int_as()? },
            "copy" => {
                let elems = self.c.int_as()?;
                let from = self.addr()?;
                self.c.expect("->")?;
                PipeOp::Copy { from, to: self.addr()?, elems }
            }
            _ => return Err(at.expected("`copy`, `commit` or `wait`")),
        })
    }

    fn carries(&mut self) -> Result<Vec<(Val, Val)>> {
        let mut carries = Vec::new();
        self.c.expect("(")?;
        while !self.c.eat(")") {
            if !carries.is_empty() {
                self.c.expect(",")?;
            }
            let v = self.number()?;
            self.c.expect(":")?;
            let ty = self.ty()?;
            self.define(v, ty)?;
            self.c.expect("=")?;
            carries.push((v, self.val()?));
        }
        Ok(carries)
    }

    fn region(&mut self, results: Vec<Val>, depth: usize) -> Result<Stmt> {
        let at = self.c;
        Ok(match self.c.word()? {
            "for" => {
                let var = self.number()?;
                self.define(var, Ty::INDEX)?;
                self.c.expect("in")?;
                let lo = self.val()?;
                self.c.expect("..")?;
                let hi = self.val()?;
                self.c.expect("step")?;
                let step = self.c.int_as()?;
                let carries = if self.c.eat("carries") { self.carries()? } else { Vec::new() };
                let parallel =
                    if self.c.eat("parallel") { Some(self.lookup(&LEVELS, "a level")?) } else { None };
                let body = self.nested(depth)?;
                Stmt::For { var, lo, hi, step, carries, results, body, parallel }
            }
            "while" => {
                let carries = self.carries()?;
                let cond = self.nested(depth)?;
                self.c.expect("do")?;
                Stmt::While { carries, results, cond, body: self.nested(depth)? }
            }
            "if" => {
                let cond = self.val()?;
                let then = self.nested(depth)?;
                let otherwise = if self.c.eat("else") { self.nested(depth)? } else { Block::default() };
                Stmt::If { cond, then, otherwise, results }
            }
            _ => return Err(at.expected("`for`, `while` or `if`")),
        })
    }

    fn mem(&mut self) -> Result<Mem> {
        let at = self.c;
        let n = self.c.name()?;
        let numbered = |prefix: char| n.strip_prefix(prefix).and_then(|d| d.parse::<u32>().ok());
        if let Some(i) = numbered('l').filter(|i| (*i as usize) < self.func.locals.len()) {
            return Ok(Mem::Local(i));
        }
        let buf = if self.by_name {
            self.func.bufs.iter().position(|b| b.name == *n).map(|i| i as u32)
        } else {
            numbered('b').filter(|i| (*i as usize) < self.func.bufs.len())
        };
        buf.map(Mem::Buf).ok_or_else(|| at.error(format!("unknown memory `{n}`")))
    }

    fn addr(&mut self) -> Result<Addr> {
        let mem = self.mem()?;
        self.c.expect("[")?;
        let index = self.val()?;
        let zero = Stride::Const(0);
        let mut a = Addr { mem, index, disp: 0, row: zero, col: zero, cols_valid: None, align: 1 };
        if self.c.eat("+") {
            a.disp = self.c.int_as()?;
        } else if self.c.eat("-") {
            let at = self.c;
            let d = self.c.int()?;
            a.disp = i64::try_from(-d).map_err(|_| at.expected("a displacement"))?;
        }
        while self.c.eat(",") {
            let at = self.c;
            match self.c.word()? {
                "row" => a.row = self.stride()?,
                "col" => a.col = self.stride()?,
                "valid" => a.cols_valid = Some(self.val()?),
                "align" => a.align = self.c.int_as()?,
                _ => return Err(at.expected("`row`, `col`, `valid` or `align`")),
            }
        }
        self.c.expect("]")?;
        Ok(a)
    }
    fn stride(&mut self) -> Result<Stride> {
        if self.c.at("%") { Ok(Stride::Val(self.val()?)) } else { Ok(Stride::Const(self.c.int_as()?)) }
    }

    /// `mem[%index] mask %m`
    fn indexed(&mut self) -> Result<(Mem, Val, Option<Val>)> {
        let mem = self.mem()?;
        self.c.expect("[")?;
        let index = self.val()?;
        self.c.expect("]")?;
        let mask = if self.c.eat("mask") { Some(self.val()?) } else { None };
        Ok((mem, index, mask))
    }

    fn pair(&mut self) -> Result<(Val, Val)> {
        let a = self.val()?;
        self.c.expect(",")?;
        Ok((a, self.val()?))
    }
    fn triple(&mut self) -> Result<(Val, Val, Val)> {
        let (a, b) = self.pair()?;
        self.c.expect(",")?;
        Ok((a, b, self.val()?))
    }

    fn scalar(&mut self) -> Result<Scalar> {
        let mut ahead = self.c;
        ahead.eat("-");
        let t = ahead.peek();
        let float = t.kind == Kind::Name
            || t.kind == Kind::Number && !t.text.starts_with("0x") && t.text.contains(['.', 'e', 'E']);
        if float { Ok(Scalar::Float(self.c.float()?)) } else { Ok(Scalar::Int(self.c.int()?)) }
    }

    fn inst(&mut self) -> Result<Inst> {
        let at = self.c;
        let word = self.c.word()?;
        if let Some(op) = UnaryOp::parse(word) {
            return Ok(Inst::Unary(op, self.val()?));
        }
        if let Some(op) = BinaryOp::parse(word) {
            let (a, b) = self.pair()?;
            return Ok(Inst::Binary(op, a, b));
        }
        if let Some(op) = CmpOp::parse(word) {
            let (a, b) = self.pair()?;
            return Ok(Inst::Cmp(op, a, b));
        }
        Ok(match word {
            "const" => Inst::Const(self.scalar()?),
            "param" => {
                let at = self.c;
                let s = self.sym()?;
                let i = self.func.syms.iter().position(|x| *x == s);
                let i = i.ok_or_else(|| at.error(format!("s{} is no parameter", s.0)))?;
                Inst::Sym(i as u32)
            }
            "iota" => {
                let at = self.c;
                match self.c.word()? {
                    "cols" => Inst::Iota { along_cols: true },
                    "rows" => Inst::Iota { along_cols: false },
                    _ => return Err(at.expected("`cols` or `rows`")),
                }
            }
            "splat" => Inst::Splat(self.val()?),
            "fma" => {
                let (a, b, c) = self.triple()?;
                Inst::Fma(a, b, c)
            }
            "select" => {
                let (a, b, c) = self.triple()?;
                Inst::Select(a, b, c)
            }
            "convert" => {
                let at = self.c;
                let mode = ConvertMode::parse(self.c.word()?);
                Inst::Convert(mode.ok_or_else(|| at.expected("a conversion mode"))?, self.val()?)
            }
            "bitcast" => Inst::Bitcast(self.val()?),
            "load" => Inst::Load(self.addr()?),
            "gather" => {
                let (mem, index, mask) = self.indexed()?;
                Inst::Gather { mem, index, mask }
            }
            "reduce_cols" | "reduce_rows" => {
                let at = self.c;
                let monoid = Monoid::parse(self.c.word()?).ok_or_else(|| at.expected("a monoid"))?;
                let v = self.val()?;
                if word == "reduce_cols" { Inst::ReduceCols(monoid, v) } else { Inst::ReduceRows(monoid, v) }
            }
            "extract" => {
                let v = self.val()?;
                self.c.expect("[")?;
                let r = self.c.int_as()?;
                self.c.expect(",")?;
                let c = self.c.int_as()?;
                self.c.expect("]")?;
                Inst::Extract(v, r, c)
            }
            "insert" => {
                let (vec, scalar) = self.pair()?;
                self.c.expect(",")?;
                Inst::Insert { vec, scalar, lane: self.c.int_as()? }
            }
            "shuffle" => {
                let (a, b) = self.pair()?;
                self.c.expect(",")?;
                Inst::Shuffle(a, b, self.c.list(|c| c.int_as())?)
            }
            "tile_op" => {
                let name = self.c.string()?;
                let (acc, a, b) = self.triple()?;
                Inst::TileOp { name, acc, a, b }
            }
            _ => return Err(at.error(format!("unknown instruction `{word}`"))),
        })
    }
}

fn sym_of(word: &str) -> Option<Sym> {
    let digits = word.strip_prefix('s').filter(|d| !d.starts_with('0') || *d == "0")?;
    digits.parse().ok().map(Sym)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops_build::LoopBuilder;

    /// One of everything.
    fn sample() -> Func {
        let mut b = LoopBuilder::new("a b");
        let x = b.buf("x", DType::F32, false, 64);
        let y = b.buf("y z", DType::F32, true, 4);
        let u = b.buf("u", DType::I8, true, 1);
        let l = b.local(DType::F32, Dim::from(Sym(3)) * Dim::from(16), Space::Scratch);
        let n = b.sym(Sym(7));
        b.parallel(Level::Thread, n, |b, p| {
            let stride = b.sym(Sym(3));
            let a = Addr { row: Stride::Val(stride), cols_valid: Some(n), ..b.addr(x, p, -8) };
            let v = b.load(a, 4, 16);
            let inf = b.float(b.ty(v), f64::INFINITY);
            let mask = b.cmp(CmpOp::Lt, v, inf);
            let nan = b.float(b.ty(v), -f64::NAN);
            let w = b.select(mask, v, nan);
            let (lo, hi) = (b.index(0), b.index(i64::MAX));
            let r = b.for_(lo, hi, 3, &[w, p], |b, i, c| {
                let t = b.fma(c[0], c[0], c[0]);
                let t = b.unary(UnaryOp::Tanh, t);
                vec![t, b.add(c[1], i)]
            });
            let w = b.while_(
                &[r[0]],
                |b, c| {
                    let m = b.reduce_cols(Monoid::Max, c[0]);
                    let m = b.reduce_rows(Monoid::Min, m);
                    let one = b.float(Ty::scalar(DType::F32), 1.0);
                    b.cmp(CmpOp::Gt, m, one)
                },
                |b, c| vec![b.mul(c[0], v)],
            );
            let first = b.cmp(CmpOp::Eq, p, lo);
            let s = b.if_(first, |b| vec![b.sub(w[0], v)], |_| vec![w[0]]);
            b.when(first, |b| {
                let a = b.addr(l, p, 4);
                b.store(a, s[0]);
            });
            let rows = b.iota(Ty::tile(DType::I64, 4, 16), false);
            let cols = b.iota(Ty::tile(DType::I64, 4, 16), true);
            let idx = b.add(rows, cols);
            let g = b.gather(x, idx, Some(mask));
            b.scatter(y, idx, g, Some(mask));
            let i8s = b.convert(DType::I8, ConvertMode::Saturate, g);
            b.scatter(u, idx, i8s, None);
            b.check(first, OriginId(9), p, n);
            b.barrier(Level::Thread);
            let e = b.extract(g, 3, 2);
            let bits = b.bitcast(DType::I32, e);
            let bits = b.splat(bits, 1, 16);
            let t = b.tile_op("vpdpbusd", bits, bits, bits);
            let t = b.shuffle(t, bits, (0..16).rev().collect());
            let t = b.insert(t, t, 3);
            let t = b.convert(DType::F32, ConvertMode::Plain, t);
            let a = b.addr(y, r[1], 0);
            b.store(a, t);
            let (from, to) = (b.addr(x, p, 0), b.addr(l, p, 0));
            b.pipe(PipeOp::Copy { from, to, elems: 4 });
            b.pipe(PipeOp::Commit);
            b.pipe(PipeOp::Wait { pending: 1 });
        });
        b.finish(Launch {
            trip: Dim::from(Sym(7)),
            ns_per_iter: 1.5,
            grid: vec![Dim::from(2), Dim::from(Sym(3)) + Dim::from(1)],
            cluster: [1, 1, 1],
            block: [32, 1, 1],
            shared_bytes: Dim::from(128),
        })
    }

    #[test]
    fn round_trip() {
        let mut f = sample();
        let text = f.to_string();
        let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(back.to_string(), text);
        // NaN constants compare by bits
        assert_eq!(back, f, "{text}");
        f.bufs[0].name = "u".into();
        f.form = Form::Machine;
        assert_eq!(parse(&f.to_string()).unwrap(), f);
    }

    #[test]
    fn errors_have_places() {
        for (text, message) in [
            ("func @f tile () {\n  %0 = addd %1, %1 : i64\n}", "2:8: unknown instruction `addd`"),
            ("func @f tile () {\n  %0 = const 1 : i64\n  %0 = const 2 : i64\n}", "4:1: %0 is defined twice"),
            ("func @f tile () {\n  %0 = neg %1 : i64\n}", "3:2: %1 has no definition"),
            ("func @f tile () {\n  store %0, q[%0]\n}", "2:13: unknown memory `q`"),
            (
                "func @f tile () {\n  %99999999999 = const 1 : i64\n}",
                "2:3: expected a value such as `%0`, found `%`",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
        let deep = format!("func @f tile () {{ {}", "if %0 { ".repeat(10_000));
        assert!(parse(&deep).is_err());
    }
}
