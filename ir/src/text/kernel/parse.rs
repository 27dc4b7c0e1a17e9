//! The parser.

use super::{CMP_SIGNS, buf_name, numbered, usable};
use crate::dtype::Scalar;
use crate::kernel::{Access, Axis, BufId, Buffer, Dot, Expr, ExprId, Generated, Guard, Kernel, Stage, Stmt};
use crate::layout::{Frag, Layout};
use crate::prim::{BinaryOp, Combine, ConvertMode, Monoid, UnaryOp};
use crate::text::lex::{Cursor, Kind};
use crate::{Atom, DType, Dim, OriginId, Result, Sym, Var};
use std::collections::HashMap;

/// Formulas and statements nest at most this deep: the parser recurses.
const MAX_DEPTH: usize = 200;
/// Locals of one kernel: a number in a text must not allocate without bound.
const MAX_LOCALS: u32 = 1 << 20;

/// Reads what [`Kernel`] prints.
///
/// # Errors
/// [`crate::IrError::Parse`] with line and column. What parses is not verified yet.
pub fn parse(text: &str) -> Result<Kernel> {
    let mut p = Parser::new(Cursor::new(text));
    p.kernel(0)?;
    if !p.c.at_end() {
        return Err(p.c.expected("the end of the text"));
    }
    Ok(p.k)
}

/// Values of carried locals after a step.
type Nexts = Vec<(u32, ExprId)>;

struct Parser<'a> {
    c: Cursor<'a>,
    k: Kernel,
    interned: HashMap<Expr, ExprId>,
    /// Meaning of `$0`, `$1`, ...
    names: Vec<ExprId>,
    vars: HashMap<String, Var>,
    bufs: HashMap<String, BufId>,
}

impl<'a> Parser<'a> {
    fn new(c: Cursor<'a>) -> Parser<'a> {
        Parser {
            c,
            k: Kernel::default(),
            interned: HashMap::new(),
            names: Vec::new(),
            vars: HashMap::new(),
            bufs: HashMap::new(),
        }
    }

    /// As [`Kernel::expr`], but texts may be long.
    fn intern(&mut self, e: Expr) -> ExprId {
        if let Some(id) = self.interned.get(&e) {
            return *id;
        }
        let id = self.k.expr(e.clone());
        self.interned.insert(e, id);
        id
    }

    /// `level`: chains around the kernel.
    fn kernel(&mut self, level: usize) -> Result<()> {
        self.c.expect("kernel")?;
        self.k.name = self.c.sigil("@")?.into_owned();
        // shapes of buffers mention symbols only
        self.c.expect("(")?;
        while !self.c.eat(")") {
            if !self.k.buffers.is_empty() {
                self.c.expect(",")?;
            }
            let b = self.buffer()?;
            self.k.buffers.push(b);
        }
        for i in 0..self.k.buffers.len() {
            let id = BufId(i as u32);
            self.bufs.insert(buf_name(&self.k, id), id);
        }
        self.c.expect("{")?;
        if self.c.eat("vars") {
            loop {
                let n = self.c.name()?.into_owned();
                self.k.vars.push(n);
                if !self.c.eat(",") {
                    break;
                }
            }
            let names: Vec<&str> = self.k.vars.iter().map(String::as_str).collect();
            for i in 0..names.len() {
                let v = Var(i as u32);
                self.vars.insert(format!("v{i}"), v);
                if usable(names.iter().copied(), i) {
                    self.vars.insert(names[i].to_string(), v);
                }
            }
        }
        if self.c.eat("locals") {
            let at = self.c;
            self.k.locals = self.c.int_as()?;
            if self.k.locals > MAX_LOCALS {
                return Err(at.error(format!("more than {MAX_LOCALS} locals")));
            }
        }
        if self.c.eat("origins") {
            loop {
                let o = self.c.int_as()?;
                self.k.origins.push(OriginId(o));
                if !self.c.eat(",") {
                    break;
                }
            }
        }
        if self.c.eat("generated") {
            self.k.generated = Some(self.generated()?);
        }
        if self.c.eat("params") {
            self.k.params = self.axis_list()?;
        }
        while self.c.eat("stage") {
            let s = self.stage(level)?;
            self.k.stages.push(s);
        }
        if self.c.eat("domain") {
            self.k.domain = self.axis_list()?;
        }
        let (stmts, _) = self.stmts(0)?;
        self.k.stmts = stmts;
        Ok(())
    }

    fn axis_list(&mut self) -> Result<Vec<Axis>> {
        let mut axes = vec![self.axis()?];
        while self.c.eat(",") {
            axes.push(self.axis()?);
        }
        Ok(axes)
    }

    fn stage(&mut self, level: usize) -> Result<Stage> {
        if level > 0 {
            return Err(self.c.error("a chain inside of a chain"));
        }
        let mut args = Vec::new();
        self.c.expect("(")?;
        while !self.c.eat(")") {
            if !args.is_empty() {
                self.c.expect(",")?;
            }
            args.push(self.buf()?);
        }
        self.c.expect("{")?;
        let mut inner = Parser::new(self.c);
        inner.kernel(level + 1)?;
        self.c = inner.c;
        self.c.expect("}")?;
        Ok(Stage { kernel: inner.k, args })
    }

    fn generated(&mut self) -> Result<Generated> {
        let at = self.c;
        let what = self.c.word()?;
        if what == "compact" {
            return Ok(Generated::Compact);
        }
        let axis = self.c.int_as()?;
        let down = match self.c.word()? {
            "down" => true,
            "up" => false,
            _ => return Err(at.expected("`up` or `down` after the axis")),
        };
        match what {
            "sort" => Ok(Generated::Sort { axis, descending: down }),
            "top_k" => Ok(Generated::TopK { axis, largest: down }),
            _ => Err(at.expected("`sort`, `top_k` or `compact`")),
        }
    }

    fn buffer(&mut self) -> Result<Buffer> {
        let name = self.c.name()?.into_owned();
        self.c.expect(":")?;
        let dtype = self.dtype()?;
        let shape = self.c.list(|c| c.dim(&mut |n| numbered(n, 's').map(|i| Atom::Sym(Sym(i)))))?;
        let at = self.c;
        let access = match self.c.word()? {
            "read" => Access::Read,
            "write" => Access::Write,
            "readwrite" => Access::ReadWrite,
            "local" => Access::Local,
            _ => return Err(at.expected("`read`, `write`, `readwrite` or `local`")),
        };
        let constant = self.c.eat("constant");
        let mut layout = Layout::row_major(shape.len());
        if self.c.eat("layout") {
            layout.frags.clear();
            self.c.expect("(")?;
            while !self.c.at(";") && !self.c.at(")") {
                let dim = self.dim_number(shape.len())?;
                let div = if self.c.eat("/") { self.c.int_as()? } else { 1 };
                let len = if self.c.eat("%") { Some(self.c.int_as()?) } else { None };
                layout.frags.push(Frag { dim, div, len });
            }
            while self.c.eat(";") {
                self.c.expect("halo")?;
                let dim = self.dim_number(shape.len())?;
                layout.halo[dim] = (self.c.int_as()?, self.c.int_as()?);
            }
            self.c.expect(")")?;
        }
        Ok(Buffer { name, dtype, shape, layout, access, constant })
    }
    /// `d2`, below the rank.
    fn dim_number(&mut self, rank: usize) -> Result<usize> {
        let at = self.c;
        let word = self.c.word()?;
        let dim = numbered(word, 'd').map(|d| d as usize).filter(|d| *d < rank);
        dim.ok_or_else(|| at.error(format!("expected a dim such as `d0` of {rank}")))
    }

    fn dtype(&mut self) -> Result<DType> {
        let at = self.c;
        self.c.word()?.parse().map_err(|e: String| at.error(e))
    }
    fn dim(&mut self) -> Result<Dim> {
        let vars = &self.vars;
        self.c.dim(&mut |n| match vars.get(n) {
            Some(v) => Some(Atom::Var(*v)),
            None => numbered(n, 's').map(|i| Atom::Sym(Sym(i))),
        })
    }
    fn var(&mut self) -> Result<Var> {
        let at = self.c;
        let word = self.c.word()?;
        self.vars.get(word).copied().ok_or_else(|| at.error(format!("unknown variable `{word}`")))
    }
    fn local(&mut self) -> Result<u32> {
        let at = self.c;
        let word = self.c.word()?;
        let l = numbered(word, 'l').filter(|l| *l < self.k.locals);
        l.ok_or_else(|| at.error(format!("expected a local below l{}", self.k.locals)))
    }
    fn axis(&mut self) -> Result<Axis> {
        let var = self.var()?;
        self.c.expect(":")?;
        Ok(Axis { var, extent: self.dim()? })
    }
    fn axes(&mut self) -> Result<Vec<Axis>> {
        let mut axes = Vec::new();
        self.c.expect("[")?;
        while !self.c.eat("]") {
            if !axes.is_empty() {
                self.c.expect(",")?;
            }
            axes.push(self.axis()?);
        }
        Ok(axes)
    }
    fn one_axis(&mut self) -> Result<Axis> {
        let at = self.c;
        let mut axes = self.axes()?;
        match (axes.pop(), axes.is_empty()) {
            (Some(a), true) => Ok(a),
            _ => Err(at.error("exactly one axis is expected")),
        }
    }
    fn guards(&mut self) -> Result<Vec<Guard>> {
        let mut guards = Vec::new();
        loop {
            let at = self.c;
            if self.c.int()? != 0 {
                return Err(at.expected("`0 <=`"));
            }
            self.c.expect("<=")?;
            let expr = self.dim()?;
            self.c.expect("<")?;
            guards.push(Guard { expr, bound: self.dim()? });
            if !self.c.eat(",") {
                return Ok(guards);
            }
        }
    }

    /// Statements up to the closing brace, and the `next` clauses in front of it.
    fn stmts(&mut self, depth: usize) -> Result<(Vec<Stmt>, Nexts)> {
        if depth > MAX_DEPTH {
            return Err(self.c.error("statements nest too deeply"));
        }
        let (mut list, mut next) = (Vec::new(), Vec::new());
        loop {
            if self.c.eat("}") {
                return Ok((list, next));
            }
            if self.c.eat("$") {
                let at = self.c;
                let n: usize = self.c.int_as()?;
                if n != self.names.len() {
                    return Err(at.error(format!("expected the name ${}", self.names.len())));
                }
                self.c.expect("=")?;
                let e = self.expr(0)?;
                self.names.push(e);
                continue;
            }
            if self.c.eat("next") {
                let local = self.local()?;
                self.c.expect("=")?;
                let e = self.expr(0)?;
                next.push((local, e));
                continue;
            }
            let s = self.stmt(depth)?;
            list.push(s);
        }
    }

    fn stmt(&mut self, depth: usize) -> Result<Stmt> {
        let at = self.c;
        if self.c.eat("let") {
            let local = self.local()?;
            self.c.expect("=")?;
            return Ok(Stmt::Let { local, value: self.expr(0)? });
        }
        if self.c.eat("bind") {
            let var = self.var()?;
            self.c.expect(":")?;
            let bound = self.dim()?;
            self.c.expect("=")?;
            return Ok(Stmt::Bind { var, value: self.expr(0)?, bound });
        }
        if self.c.eat("ordered") {
            return self.ordered(depth);
        }
        if self.c.peek2().text == "=" {
            return self.reduction();
        }
        let axes = if self.c.eat("for") { self.axes()? } else { Vec::new() };
        let buf = self.buf()?;
        self.c.expect("[")?;
        let (index, guards) = self.index()?;
        self.c.expect("]")?;
        let mut combine = Combine::Set;
        if self.c.eat("combine") {
            let word = self.c.word()?;
            combine = Combine::parse(word).ok_or_else(|| at.error(format!("unknown combiner `{word}`")))?;
        }
        self.c.expect("=")?;
        Ok(Stmt::Store { axes, buf, index, guards, value: self.expr(0)?, combine })
    }

    fn reduction(&mut self) -> Result<Stmt> {
        let local = self.local()?;
        self.c.expect("=")?;
        let at = self.c;
        let word = self.c.word()?;
        if matches!(word, "argmax" | "argmin") {
            let last = self.c.eat("last");
            self.c.expect("over")?;
            let axis = self.one_axis()?;
            self.c.expect("of")?;
            let value = self.expr(0)?;
            return Ok(Stmt::ArgReduce { local, max: word == "argmax", last, axis, value });
        }
        let monoid = Monoid::parse(word).ok_or_else(|| at.expected("a reduction"))?;
        let acc = self.dtype()?;
        self.c.expect("over")?;
        let axes = self.axes()?;
        self.c.expect("of")?;
        Ok(Stmt::Reduce { local, acc, monoid, axes, value: self.expr(0)? })
    }

    fn ordered(&mut self, depth: usize) -> Result<Stmt> {
        let axis = self.axis()?;
        self.c.expect("carries")?;
        self.c.expect("(")?;
        let mut inits = Vec::new();
        while !self.c.eat(")") {
            if !inits.is_empty() {
                self.c.expect(",")?;
            }
            let local = self.local()?;
            self.c.expect(":")?;
            let dtype = self.dtype()?;
            self.c.expect("=")?;
            inits.push((local, dtype, self.expr(0)?));
        }
        let at = self.c;
        self.c.expect("{")?;
        let (body, next) = self.stmts(depth + 1)?;
        let same = next.len() == inits.len() && next.iter().zip(&inits).all(|(n, i)| n.0 == i.0);
        if !same {
            return Err(at.error("the `next` clauses are not those of the carried locals"));
        }
        let carries =
            inits.into_iter().zip(next).map(|((l, d, init), (_, next))| (l, d, init, next)).collect();
        Ok(Stmt::Ordered { axis, carries, body })
    }

    fn buf(&mut self) -> Result<BufId> {
        let at = self.c;
        let n = self.c.word()?;
        self.bufs.get(n).copied().ok_or_else(|| at.error(format!("unknown buffer `{n}`")))
    }
    /// `i, j if 0 <= i < n`, up to the bracket.
    fn index(&mut self) -> Result<(Vec<Dim>, Vec<Guard>)> {
        let mut index = Vec::new();
        while !self.c.at("]") && !self.c.at("if") && !self.c.at("else") {
            if !index.is_empty() {
                self.c.expect(",")?;
            }
            index.push(self.dim()?);
        }
        let guards = if self.c.eat("if") { self.guards()? } else { Vec::new() };
        Ok((index, guards))
    }
    fn scalar(&mut self) -> Result<Scalar> {
        let mut ahead = self.c;
        ahead.eat("-");
        let t = ahead.peek();
        let float = t.kind == Kind::Name || !t.text.starts_with("0x") && t.text.contains(['.', 'e', 'E']);
        if float { Ok(Scalar::Float(self.c.float()?)) } else { Ok(Scalar::Int(self.c.int()?)) }
    }

    // ---- formulas ---------------------------------------------------------------------------

    fn expr(&mut self, depth: usize) -> Result<ExprId> {
        if depth > MAX_DEPTH {
            return Err(self.c.error("this formula nests too deeply"));
        }
        let a = self.sum(depth)?;
        let Some((op, sign)) = CMP_SIGNS.iter().find(|c| self.c.at(c.1)) else { return Ok(a) };
        self.c.expect(sign)?;
        let b = self.sum(depth)?;
        Ok(self.intern(Expr::Cmp(*op, a, b)))
    }
    fn sum(&mut self, depth: usize) -> Result<ExprId> {
        let mut a = self.product(depth)?;
        loop {
            let op = match () {
                _ if self.c.eat("+") => BinaryOp::Add,
                _ if self.c.eat("-") => BinaryOp::Sub,
                _ => return Ok(a),
            };
            let b = self.product(depth)?;
            a = self.intern(Expr::Binary(op, a, b));
        }
    }
    fn product(&mut self, depth: usize) -> Result<ExprId> {
        let mut a = self.factor(depth)?;
        loop {
            let op = match () {
                _ if self.c.eat("*") => BinaryOp::Mul,
                _ if self.c.eat("/") => BinaryOp::Div,
                _ => return Ok(a),
            };
            let b = self.factor(depth)?;
            a = self.intern(Expr::Binary(op, a, b));
        }
    }

    fn factor(&mut self, depth: usize) -> Result<ExprId> {
        let at = self.c;
        if self.c.eat("(") {
            let e = self.expr(depth + 1)?;
            self.c.expect(")")?;
            return Ok(e);
        }
        if self.c.eat("$") {
            let n: usize = self.c.int_as()?;
            return self.names.get(n).copied().ok_or_else(|| at.error(format!("${n} has no meaning yet")));
        }
        let t = self.c.peek();
        let literal = t.kind == Kind::Number || t.text == "-" || ["inf", "nan", "bits"].contains(&t.text);
        if literal {
            let s = self.scalar()?;
            let dtype = self.dtype()?;
            return Ok(self.intern(Expr::Const(dtype, s)));
        }
        match self.c.peek2().text {
            "(" => self.call(depth),
            "[" => {
                let buf = self.buf()?;
                self.c.expect("[")?;
                let (index, guards) = self.index()?;
                let dtype = self.k.buffers[buf.0 as usize].dtype;
                let fill = if self.c.eat("else") { self.scalar()? } else { Scalar::zero(dtype) };
                self.c.expect("]")?;
                Ok(self.intern(Expr::Read { buf, index, guards, fill }))
            }
            _ => {
                let l = self.local().map_err(|_| at.expected("a formula"))?;
                Ok(self.intern(Expr::Local(l)))
            }
        }
    }

    fn arg(&mut self, depth: usize) -> Result<ExprId> {
        self.c.expect(",")?;
        self.expr(depth + 1)
    }

    fn call(&mut self, depth: usize) -> Result<ExprId> {
        let at = self.c;
        let word = self.c.word()?;
        self.c.expect("(")?;
        let e = if let Some(op) = UnaryOp::parse(word) {
            Expr::Unary(op, self.expr(depth + 1)?)
        } else if let Some(op) = BinaryOp::parse(word) {
            let a = self.expr(depth + 1)?;
            Expr::Binary(op, a, self.arg(depth)?)
        } else if let Some(dot) = Dot::ALL.into_iter().find(|d| d.name() == word) {
            let a = self.expr(depth + 1)?;
            Expr::Dot(dot, a, self.arg(depth)?)
        } else if let Ok(d) = word.parse::<DType>() {
            Expr::Convert(d, ConvertMode::Plain, self.expr(depth + 1)?)
        } else {
            match word {
                "index" => Expr::Index(self.dim()?),
                "inside" if self.c.at(")") => Expr::Inside(Vec::new()),
                "inside" => Expr::Inside(self.guards()?),
                "select" => {
                    let m = self.expr(depth + 1)?;
                    let a = self.arg(depth)?;
                    Expr::Select(m, a, self.arg(depth)?)
                }
                "saturate" => {
                    let d = self.dtype()?;
                    Expr::Convert(d, ConvertMode::Saturate, self.arg(depth)?)
                }
                "bitcast" => {
                    let d = self.dtype()?;
                    Expr::Bitcast(d, self.arg(depth)?)
                }
                "bind" => {
                    let var = self.var()?;
                    self.c.expect(":")?;
                    let bound = self.dim()?;
                    self.c.expect("=")?;
                    let value = self.expr(depth + 1)?;
                    Expr::Bind { var, value, bound, body: self.arg(depth)? }
                }
                _ => return Err(at.error(format!("unknown function `{word}`"))),
            }
        };
        self.c.expect(")")?;
        Ok(self.intern(e))
    }
}
