//! The printer.

use super::{CMP_SIGNS, buf_name, var_name};
use crate::dtype::Scalar;
use crate::kernel::{Access, Axis, Buffer, Expr, ExprId, Generated, Guard, Kernel, Stmt};
use crate::layout::{Frag, Layout};
use crate::prim::{BinaryOp, CmpOp, Combine, ConvertMode};
use crate::text::lex::{Float, name};
use crate::{Atom, DType, Dim};
use std::collections::HashMap;
use std::fmt::{self, Write};

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut p = Printer { k: self, out: String::new(), uses: Vec::new(), names: HashMap::new() };
        p.count_uses();
        p.kernel()?;
        f.write_str(&p.out)
    }
}

fn comma<T>(items: impl IntoIterator<Item = T>, f: impl Fn(T) -> String) -> String {
    items.into_iter().map(f).collect::<Vec<_>>().join(", ")
}

struct Printer<'a> {
    k: &'a Kernel,
    out: String,
    /// How often each expression occurs.
    uses: Vec<u32>,
    /// Expressions that the text has named.
    names: HashMap<ExprId, usize>,
}

/// Operands of an expression.
fn children(e: &Expr) -> Vec<ExprId> {
    match e {
        Expr::Const(..) | Expr::Index(_) | Expr::Read { .. } | Expr::Inside(_) | Expr::Local(_) => Vec::new(),
        Expr::Unary(_, a) | Expr::Convert(_, _, a) | Expr::Bitcast(_, a) => vec![*a],
        Expr::Binary(_, a, b) | Expr::Cmp(_, a, b) | Expr::Dot(_, a, b) => vec![*a, *b],
        Expr::Select(a, b, c) => vec![*a, *b, *c],
        Expr::Bind { value, body, .. } => vec![*value, *body],
    }
}

/// Expressions that a statement evaluates itself, in the order of the text.
fn roots(s: &Stmt) -> Vec<ExprId> {
    match s {
        Stmt::Reduce { value, .. }
        | Stmt::ArgReduce { value, .. }
        | Stmt::Store { value, .. }
        | Stmt::Let { value, .. }
        | Stmt::Bind { value, .. } => vec![*value],
        Stmt::Ordered { carries, .. } => carries.iter().map(|c| c.2).collect(),
    }
}

impl Printer<'_> {
    fn count_uses(&mut self) {
        self.uses = vec![0; self.k.exprs().len()];
        let mut todo = Vec::new();
        fn collect(list: &[Stmt], todo: &mut Vec<ExprId>) {
            for s in list {
                todo.extend(roots(s));
                if let Stmt::Ordered { carries, body, .. } = s {
                    collect(body, todo);
                    todo.extend(carries.iter().map(|c| c.3));
                }
            }
        }
        collect(&self.k.stmts, &mut todo);
        while let Some(e) = todo.pop() {
            let Some(n) = self.uses.get_mut(e.0 as usize) else { continue };
            *n += 1;
            if *n == 1 {
                todo.extend(children(self.k.get(e)));
            }
        }
    }

    fn kernel(&mut self) -> fmt::Result {
        let k = self.k;
        let buffers = comma(&k.buffers, |b| self.buffer(b));
        writeln!(self.out, "kernel @{} ({buffers}) {{", name(&k.name))?;
        if !k.vars.is_empty() {
            writeln!(self.out, "  vars {}", comma(&k.vars, |v| name(v).into_owned()))?;
        }
        if k.locals > 0 {
            writeln!(self.out, "  locals {}", k.locals)?;
        }
        if !k.origins.is_empty() {
            writeln!(self.out, "  origins {}", comma(&k.origins, |o| o.0.to_string()))?;
        }
        match &k.generated {
            None => {}
            Some(Generated::Sort { axis, descending }) => {
                writeln!(self.out, "  generated sort {axis} {}", if *descending { "down" } else { "up" })?;
            }
            Some(Generated::TopK { axis, largest }) => {
                writeln!(self.out, "  generated top_k {axis} {}", if *largest { "down" } else { "up" })?;
            }
            Some(Generated::Compact) => writeln!(self.out, "  generated compact")?,
        }
        if !k.params.is_empty() {
            writeln!(self.out, "  params {}", self.axes(&k.params))?;
        }
        for s in &k.stages {
            writeln!(self.out, "  stage ({}) {{", comma(&s.args, |b| buf_name(k, *b)))?;
            for line in s.kernel.to_string().lines() {
                writeln!(self.out, "    {line}")?;
            }
            writeln!(self.out, "  }}")?;
        }
        if !k.domain.is_empty() {
            writeln!(self.out, "  domain {}", self.axes(&k.domain))?;
        }
        self.stmts(&k.stmts, 1)?;
        self.out.push_str("}\n");
        Ok(())
    }

    fn buffer(&self, b: &Buffer) -> String {
        let access = match b.access {
            Access::Read => "read",
            Access::Write => "write",
            Access::ReadWrite => "readwrite",
            Access::Local => "local",
        };
        let constant = if b.constant { " constant" } else { "" };
        let shape = comma(&b.shape, |d| self.dim(d));
        let mut s = format!("{}: {}[{shape}] {access}{constant}", name(&b.name), b.dtype);
        if b.layout != Layout::row_major(b.shape.len()) {
            let frag = |f: &Frag| {
                let div = if f.div == 1 { String::new() } else { format!("/{}", f.div) };
                let len = f.len.map_or(String::new(), |n| format!("%{n}"));
                format!("d{}{div}{len}", f.dim)
            };
            let frags: Vec<_> = b.layout.frags.iter().map(frag).collect();
            let mut inside = frags.join(" ");
            for (d, (lo, hi)) in b.layout.halo.iter().enumerate().filter(|h| *h.1 != (0, 0)) {
                inside += &format!("; halo d{d} {lo} {hi}");
            }
            s += &format!(" layout({inside})");
        }
        s
    }

    fn dim(&self, d: &Dim) -> String {
        let mut s = String::new();
        // writing to a string does not fail
        let _ = d.write(&mut s, &|a| match a {
            Atom::Sym(s) => format!("s{}", s.0),
            Atom::Var(v) => var_name(self.k, *v),
            _ => String::new(),
        });
        s
    }
    fn axes(&self, axes: &[Axis]) -> String {
        comma(axes, |a| format!("{}: {}", var_name(self.k, a.var), self.dim(&a.extent)))
    }
    fn guards(&self, guards: &[Guard]) -> String {
        comma(guards, |g| format!("0 <= {} < {}", self.dim(&g.expr), self.dim(&g.bound)))
    }

    fn stmts(&mut self, list: &[Stmt], depth: usize) -> fmt::Result {
        list.iter().try_for_each(|s| self.stmt(s, depth))
    }

    /// Defines the shared expressions below `e` that have no name yet, operands first.
    fn name_shared(&mut self, e: ExprId, depth: usize) -> fmt::Result {
        if self.names.contains_key(&e) || e.0 as usize >= self.uses.len() {
            return Ok(());
        }
        let kids = children(self.k.get(e));
        for c in &kids {
            self.name_shared(*c, depth)?;
        }
        if self.uses[e.0 as usize] > 1 && !kids.is_empty() {
            let text = self.expr(e, 0);
            let n = self.names.len();
            writeln!(self.out, "{:1$}${n} = {text}", "", 2 * depth)?;
            self.names.insert(e, n);
        }
        Ok(())
    }

    fn stmt(&mut self, s: &Stmt, depth: usize) -> fmt::Result {
        for e in roots(s) {
            self.name_shared(e, depth)?;
        }
        let indent = " ".repeat(2 * depth);
        let line = match s {
            Stmt::Reduce { local, acc, monoid, axes, value } => {
                let (axes, value) = (self.axes(axes), self.expr(*value, 0));
                format!("l{local} = {} {acc} over [{axes}] of {value}", monoid.name())
            }
            Stmt::ArgReduce { local, max, last, axis, value } => {
                let op = if *max { "argmax" } else { "argmin" };
                let last = if *last { " last" } else { "" };
                let axis = self.axes(std::slice::from_ref(axis));
                format!("l{local} = {op}{last} over [{axis}] of {}", self.expr(*value, 0))
            }
            Stmt::Store { axes, buf, index, guards, value, combine } => {
                let over =
                    if axes.is_empty() { String::new() } else { format!("for [{}] ", self.axes(axes)) };
                let guard =
                    if guards.is_empty() { String::new() } else { format!(" if {}", self.guards(guards)) };
                let combine = match combine {
                    Combine::Set => String::new(),
                    c => format!(" combine {}", c.name()),
                };
                let index = comma(index, |d| self.dim(d));
                let value = self.expr(*value, 0);
                format!("{over}{}[{index}{guard}]{combine} = {value}", buf_name(self.k, *buf))
            }
            Stmt::Ordered { axis, carries, body } => {
                let axis = self.axes(std::slice::from_ref(axis));
                let inits = comma(carries, |c| format!("l{}: {} = {}", c.0, c.1, self.expr(c.2, 0)));
                writeln!(self.out, "{indent}ordered {axis} carries ({inits}) {{")?;
                self.stmts(body, depth + 1)?;
                for c in carries {
                    self.name_shared(c.3, depth + 1)?;
                    let next = self.expr(c.3, 0);
                    writeln!(self.out, "{indent}  next l{} = {next}", c.0)?;
                }
                "}".into()
            }
            Stmt::Let { local, value } => format!("let l{local} = {}", self.expr(*value, 0)),
            Stmt::Bind { var, value, bound } => {
                let var = var_name(self.k, *var);
                format!("bind {var}: {} = {}", self.dim(bound), self.expr(*value, 0))
            }
        };
        writeln!(self.out, "{indent}{line}")
    }

    /// `min`: parentheses are needed below this precedence (1 comparison, 2 sum, 3 product).
    fn expr(&self, e: ExprId, min: u8) -> String {
        if let Some(n) = self.names.get(&e) {
            return format!("${n}");
        }
        if e.0 as usize >= self.k.exprs().len() {
            return format!("$missing{}", e.0);
        }
        let call = |name: &str, args: &[ExprId]| format!("{name}({})", comma(args, |a| self.expr(*a, 0)));
        let infix = |op: &str, level: u8, a: ExprId, b: ExprId| {
            let s = format!("{} {op} {}", self.expr(a, level), self.expr(b, level + 1));
            if level < min { format!("({s})") } else { s }
        };
        match self.k.get(e) {
            Expr::Const(d, Scalar::Int(i)) => format!("{i}{d}"),
            Expr::Const(d, Scalar::Float(x)) if x.is_finite() => format!("{}{d}", Float(*x)),
            Expr::Const(d, Scalar::Float(x)) => format!("{} {d}", Float(*x)),
            Expr::Index(d) => format!("index({})", self.dim(d)),
            Expr::Read { buf, index, guards, fill } => {
                let mut s = format!("{}[{}", buf_name(self.k, *buf), comma(index, |d| self.dim(d)));
                if !guards.is_empty() {
                    s += &format!(" if {}", self.guards(guards));
                }
                let dtype = self.k.buffers.get(buf.0 as usize).map_or(DType::F32, |b| b.dtype);
                if !guards.is_empty() || *fill != Scalar::zero(dtype) {
                    let fill = match fill {
                        Scalar::Int(i) => i.to_string(),
                        Scalar::Float(x) => Float(*x).to_string(),
                    };
                    s += &format!(" else {fill}");
                }
                s + "]"
            }
            Expr::Unary(op, a) => call(op.name(), &[*a]),
            Expr::Binary(BinaryOp::Add, a, b) => infix("+", 2, *a, *b),
            Expr::Binary(BinaryOp::Sub, a, b) => infix("-", 2, *a, *b),
            Expr::Binary(BinaryOp::Mul, a, b) => infix("*", 3, *a, *b),
            Expr::Binary(BinaryOp::Div, a, b) => infix("/", 3, *a, *b),
            Expr::Binary(op, a, b) => call(op.name(), &[*a, *b]),
            Expr::Cmp(op, a, b) => {
                let s = format!("{} {} {}", self.expr(*a, 2), cmp_sign(*op), self.expr(*b, 2));
                if min > 0 { format!("({s})") } else { s }
            }
            Expr::Select(m, a, b) => call("select", &[*m, *a, *b]),
            Expr::Inside(guards) => format!("inside({})", self.guards(guards)),
            Expr::Convert(d, ConvertMode::Plain, a) => call(d.name(), &[*a]),
            Expr::Convert(d, ConvertMode::Saturate, a) => format!("saturate({d}, {})", self.expr(*a, 0)),
            Expr::Bitcast(d, a) => format!("bitcast({d}, {})", self.expr(*a, 0)),
            Expr::Dot(dot, a, b) => call(dot.name(), &[*a, *b]),
            Expr::Local(l) => format!("l{l}"),
            Expr::Bind { var, value, bound, body } => format!(
                "bind({}: {} = {}, {})",
                var_name(self.k, *var),
                self.dim(bound),
                self.expr(*value, 0),
                self.expr(*body, 0)
            ),
        }
    }
}

fn cmp_sign(op: CmpOp) -> &'static str {
    CMP_SIGNS.iter().find(|c| c.0 == op).map_or("?", |c| c.1)
}
