//! The printer.

use super::{LEVELS, SPACES, names_are_distinct};
use crate::Dim;
use crate::dtype::Scalar;
use crate::loops::{Addr, Block, Form, Func, Inst, Launch, Mem, PipeOp, Stmt, Stride, Ty, Val};
use crate::text::lex::{Float, name, quote};
use std::fmt::{self, Write};

fn word_of<T: PartialEq>(table: &[(T, &'static str)], x: &T) -> &'static str {
    table.iter().find(|e| e.0 == *x).map_or("?", |e| e.1)
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
            Stmt::Prefetch { mem, index } => write!(out, "prefetch {}[{index}]", self.mem(*mem))?,
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
        if let Some(v) = a.rows_valid {
            write!(out, ", valid_rows {v}")?;
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
