//! The parser.

use super::{LEVELS, SPACES, names_are_distinct};
use crate::dtype::Scalar;
use crate::loops::{
    Addr, Block, BufParam, Form, Func, Inst, Launch, LocalArray, Mem, PipeOp, Stmt, Stride, Ty, Val,
};
use crate::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use crate::text::lex::{Cursor, Kind};
use crate::{Atom, DType, Dim, OriginId, Result, Sym};

/// Blocks nest at most this deep: the parser recurses.
const MAX_DEPTH: usize = 64;
/// Values of one function: a number in a text must not allocate without bound.
const MAX_VALUES: u32 = 1 << 22;

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
            "prefetch" => {
                self.c.bump();
                let at = self.c;
                let (mem, index, mask) = self.indexed()?;
                if mask.is_some() {
                    return Err(at.expected("no mask"));
                }
                Stmt::Prefetch { mem, index }
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
        let mut a =
            Addr { mem, index, disp: 0, row: zero, col: zero, cols_valid: None, rows_valid: None, align: 1 };
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
                "valid_rows" => a.rows_valid = Some(self.val()?),
                "align" => a.align = self.c.int_as()?,
                _ => return Err(at.expected("`row`, `col`, `valid`, `valid_rows` or `align`")),
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
