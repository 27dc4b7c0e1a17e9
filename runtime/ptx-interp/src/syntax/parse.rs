//! Directives, declarations and statements (PTX ISA §4.3, §5.4, §10, §11).

use super::SyntaxError;
use super::ast::*;
use super::lex::{Tok, Token, lex};
use super::types::{Space, Ty};
use std::collections::HashMap;

/// Parses a PTX file.
pub fn parse(text: &str) -> Result<Module, SyntaxError> {
    let tokens = lex(text)?;
    let mut p = Parser { tokens, at: 0 };
    p.module()
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

type Res<T> = Result<T, SyntaxError>;

/// The names of registers and variables that nested `{ }` blocks redeclare get a suffix.
#[derive(Default)]
struct Scopes {
    open: Vec<HashMap<String, String>>,
    made: u32,
}

impl Scopes {
    fn declare(&mut self, name: &str) -> String {
        let unique = if self.open.len() <= 1 {
            name.to_string()
        } else {
            self.made += 1;
            format!("{name}@{}", self.made)
        };
        if let Some(top) = self.open.last_mut() {
            top.insert(name.to_string(), unique.clone());
        }
        unique
    }

    fn resolve(&self, name: &str) -> String {
        self.open.iter().rev().find_map(|s| s.get(name)).cloned().unwrap_or_else(|| name.to_string())
    }
}

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line)
    }

    fn error<T>(&self, message: impl Into<String>) -> Res<T> {
        Err(SyntaxError { line: self.line(), message: message.into() })
    }

    fn peek(&self) -> Option<Tok<'a>> {
        self.tokens.get(self.at).map(|t| t.tok)
    }

    fn peek_at(&self, ahead: usize) -> Option<Tok<'a>> {
        self.tokens.get(self.at + ahead).map(|t| t.tok)
    }

    fn take(&mut self) -> Res<Tok<'a>> {
        match self.peek() {
            Some(t) => {
                self.at += 1;
                Ok(t)
            }
            None => self.error("the text ends too early"),
        }
    }

    fn accept(&mut self, c: u8) -> bool {
        let yes = self.peek() == Some(Tok::Punct(c));
        self.at += usize::from(yes);
        yes
    }

    fn expect(&mut self, c: u8) -> Res<()> {
        if self.accept(c) { Ok(()) } else { self.error(format!("expected `{}`", c as char)) }
    }

    fn word(&mut self) -> Res<&'a str> {
        match self.peek() {
            Some(Tok::Word(w)) => {
                self.at += 1;
                Ok(w)
            }
            _ => self.error("expected a name"),
        }
    }

    fn int(&mut self) -> Res<i64> {
        let negative = self.accept(b'-');
        match self.take()? {
            Tok::Int(v) => Ok(if negative { v.wrapping_neg() } else { v }),
            _ => self.error("expected an integer"),
        }
    }

    fn size(&mut self) -> Res<u32> {
        let v = self.int()?;
        u32::try_from(v).or_else(|_| self.error("a size out of range"))
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    fn module(&mut self) -> Res<Module> {
        let mut m = Module { version: (0, 0), target: String::new(), vars: Vec::new(), kernels: Vec::new() };
        while let Some(tok) = self.peek() {
            let Tok::Word(w) = tok else { return self.error("expected a directive") };
            match w {
                ".version" => {
                    self.at += 1;
                    let Tok::F64(v) = self.take()? else {
                        return self.error("expected a version such as 8.0");
                    };
                    let tenths = (f64::from_bits(v) * 10.0).round() as u32;
                    m.version = (tenths / 10, tenths % 10);
                }
                ".target" => {
                    self.at += 1;
                    m.target = self.word()?.to_string();
                    while self.accept(b',') {
                        self.word()?;
                    }
                }
                ".address_size" => {
                    self.at += 1;
                    if self.int()? != 64 {
                        return self.error("only 64-bit addresses");
                    }
                }
                ".file" | ".loc" => self.skip_line(),
                ".section" => self.section()?,
                ".visible" | ".weak" | ".extern" | ".common" => {
                    self.at += 1;
                    if w == ".extern" && matches!(self.peek(), Some(Tok::Word(".shared"))) {
                        let var = self.variable(true)?;
                        m.vars.push(var);
                    }
                }
                ".entry" => {
                    let k = self.kernel()?;
                    m.kernels.push(k);
                }
                ".global" | ".const" | ".shared" => {
                    let var = self.variable(false)?;
                    m.vars.push(var);
                }
                _ => return self.error(format!("`{w}` is not known at module scope")),
            }
        }
        if m.version == (0, 0) || m.target.is_empty() {
            return self.error("no .version or no .target");
        }
        Ok(m)
    }

    /// Debug sections carry no semantics.
    fn section(&mut self) -> Res<()> {
        self.at += 1;
        self.word()?;
        self.expect(b'{')?;
        while !self.accept(b'}') {
            self.take()?;
        }
        Ok(())
    }

    /// `.space [.align n] .type name[size] [= init];`
    fn variable(&mut self, is_extern: bool) -> Res<Var> {
        let line = self.line();
        let space = match self.word()? {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            w => return self.error(format!("`{w}` is not a state space of variables")),
        };
        let (mut align, mut ty, mut lanes) = (0, None, 1);
        while let Some(Tok::Word(w)) = self.peek() {
            if !w.starts_with('.') {
                break;
            }
            self.at += 1;
            match &w[1..] {
                "align" => align = self.size()?,
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                t => ty = Some(Ty::parse(t).map_or_else(|| self.error(format!("unknown type `{w}`")), Ok)?),
            }
        }
        let Some(ty) = ty else { return self.error("a variable without a type") };
        let name = self.word()?.to_string();
        let mut count = 1u32;
        let mut sized = true;
        while self.accept(b'[') {
            if self.accept(b']') {
                sized = false;
            } else {
                let n = self.size()?;
                count = count.checked_mul(n).map_or_else(|| self.error("array too large"), Ok)?;
                self.expect(b']')?;
            }
        }
        let mut init = Vec::new();
        if self.accept(b'=') {
            self.initialiser(ty, &mut init)?;
        }
        self.expect(b';')?;
        let bytes = if sized && !(is_extern && count == 0) {
            match count.checked_mul(ty.bytes() * lanes) {
                Some(b) => b,
                None => return self.error("array too large"),
            }
        } else {
            0
        };
        let align = if align == 0 { ty.bytes() * lanes } else { align };
        if !align.is_power_of_two() {
            return self.error("an alignment must be a power of two");
        }
        let bytes = if sized { bytes } else { init.len() as u32 };
        if init.len() > bytes as usize {
            return self.error("more initial values than elements");
        }
        Ok(Var { name, space, align, bytes, init, line })
    }

    fn initialiser(&mut self, ty: Ty, out: &mut Vec<u8>) -> Res<()> {
        if self.accept(b'{') {
            while !self.accept(b'}') {
                self.initialiser(ty, out)?;
                self.accept(b',');
            }
            return Ok(());
        }
        let negative = self.accept(b'-');
        let bits = match self.take()? {
            Tok::Int(v) => (if negative { v.wrapping_neg() } else { v }) as u64,
            Tok::F32(v) => u64::from(v),
            Tok::F64(v) => v,
            _ => return self.error("an initial value must be a number"),
        };
        out.extend_from_slice(&bits.to_le_bytes()[..ty.bytes().min(8) as usize]);
        Ok(())
    }

    fn kernel(&mut self) -> Res<Kernel> {
        let line = self.line();
        self.at += 1;
        let name = self.word()?.to_string();
        let mut k = Kernel {
            name,
            line,
            params: Vec::new(),
            regs: Vec::new(),
            vars: Vec::new(),
            body: Vec::new(),
            reqntid: None,
            maxntid: None,
            maxnreg: None,
        };
        if self.accept(b'(') && !self.accept(b')') {
            loop {
                let param = self.param(&k)?;
                k.params.push(param);
                if self.accept(b')') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        while let Some(Tok::Word(w)) = self.peek() {
            self.at += 1;
            match w {
                ".reqntid" => k.reqntid = Some(self.extent()?),
                ".maxntid" => k.maxntid = Some(self.extent()?),
                ".maxnreg" => k.maxnreg = Some(self.size()?),
                ".minnctapersm" => drop(self.size()?),
                ".noreturn" => {}
                _ => return self.error(format!("directive `{w}` of a kernel is not supported")),
            }
        }
        self.expect(b'{')?;
        let mut scopes = Scopes::default();
        self.block(&mut k, &mut scopes)?;
        Ok(k)
    }

    fn extent(&mut self) -> Res<[u32; 3]> {
        let mut e = [1; 3];
        e[0] = self.size()?;
        for v in &mut e[1..] {
            if !self.accept(b',') {
                break;
            }
            *v = self.size()?;
        }
        Ok(e)
    }

    /// `.param .u64 [.ptr .global .align 16] name` or `.param .align 64 .b8 name[128]`
    fn param(&mut self, k: &Kernel) -> Res<Param> {
        if self.word()? != ".param" {
            return self.error("expected .param");
        }
        let (mut ty, mut align, mut pointer) = (None, 0, false);
        while let Some(Tok::Word(w)) = self.peek() {
            if !w.starts_with('.') {
                break;
            }
            self.at += 1;
            match &w[1..] {
                "ptr" => pointer = true,
                "align" => {
                    let a = self.size()?;
                    // behind .ptr it says how the pointee is aligned
                    if !pointer {
                        align = a;
                    }
                }
                t if Ty::parse(t).is_some() => ty = Ty::parse(t),
                t if pointer && Space::parse(t).is_some() => {}
                _ => return self.error(format!("`{w}` in a parameter")),
            }
        }
        let Some(ty) = ty else { return self.error("a parameter without a type") };
        let name = self.word()?.to_string();
        let mut bytes = ty.bytes();
        if self.accept(b'[') {
            bytes *= self.size()?;
            self.expect(b']')?;
        }
        let align = if align == 0 { ty.bytes() } else { align };
        if !align.is_power_of_two() {
            return self.error("an alignment must be a power of two");
        }
        Ok(Param { name, offset: k.param_bytes().next_multiple_of(align), bytes })
    }

    fn block(&mut self, k: &mut Kernel, scopes: &mut Scopes) -> Res<()> {
        scopes.open.push(HashMap::new());
        loop {
            if self.accept(b'}') {
                break;
            }
            if self.accept(b'{') {
                self.block(k, scopes)?;
                continue;
            }
            if self.peek() == Some(Tok::Punct(b'@')) {
                let inst = self.instruction(scopes)?;
                k.body.push(Stmt::Inst(inst));
                continue;
            }
            let Some(Tok::Word(w)) = self.peek() else { return self.error("expected a statement") };
            match w {
                ".reg" => self.registers(k, scopes)?,
                ".shared" | ".local" => {
                    let mut var = self.variable(false)?;
                    var.name = scopes.declare(&var.name);
                    k.vars.push(var);
                }
                ".loc" | ".file" => self.skip_line(),
                ".pragma" => {
                    self.at += 1;
                    self.take()?;
                    self.expect(b';')?;
                }
                _ if self.peek_at(1) == Some(Tok::Punct(b':')) => {
                    self.at += 2;
                    k.body.push(Stmt::Label(w.to_string()));
                }
                _ if w.starts_with('.') => return self.error(format!("`{w}` in a kernel is not supported")),
                _ => {
                    let inst = self.instruction(scopes)?;
                    k.body.push(Stmt::Inst(inst));
                }
            }
        }
        scopes.open.pop();
        Ok(())
    }

    /// `.reg .b32 %r<9>;` or `.reg .pred p, q;`
    fn registers(&mut self, k: &mut Kernel, scopes: &mut Scopes) -> Res<()> {
        self.at += 1;
        let w = self.word()?;
        let Some(ty) = w.strip_prefix('.').and_then(Ty::parse) else {
            return self.error(format!("unknown register type `{w}`"));
        };
        loop {
            let name = self.word()?;
            if self.accept(b'<') {
                let n = self.size()?;
                if n > 1 << 16 {
                    return self.error("too many registers");
                }
                self.expect(b'>')?;
                for i in 0..n {
                    let unique = scopes.declare(&format!("{name}{i}"));
                    k.regs.push((unique, ty));
                }
            } else {
                let unique = scopes.declare(name);
                k.regs.push((unique, ty));
            }
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn instruction(&mut self, scopes: &Scopes) -> Res<Inst> {
        let first = self.at;
        let line = self.line();
        let mut guard = None;
        if self.accept(b'@') {
            let negated = self.accept(b'!');
            guard = Some((negated, scopes.resolve(self.word()?)));
        }
        let opcode: Vec<String> = self.word()?.split('.').map(str::to_string).collect();
        let mut operands = Vec::new();
        if !self.accept(b';') {
            loop {
                operands.push(self.operand(scopes)?);
                if self.accept(b';') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        let span = self.tokens[first].start..self.tokens[self.at - 1].end;
        Ok(Inst { line, span, guard, opcode, operands })
    }

    fn operand(&mut self, scopes: &Scopes) -> Res<Operand> {
        let first = self.simple_operand(scopes)?;
        if self.accept(b'|') {
            let second = self.simple_operand(scopes)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn simple_operand(&mut self, scopes: &Scopes) -> Res<Operand> {
        if self.accept(b'!') {
            return Ok(Operand::Not(scopes.resolve(self.word()?)));
        }
        if self.accept(b'{') {
            let mut items = Vec::new();
            loop {
                items.push(self.simple_operand(scopes)?);
                if self.accept(b'}') {
                    return Ok(Operand::Vector(items));
                }
                self.expect(b',')?;
            }
        }
        if self.accept(b'[') {
            let address = match self.peek() {
                Some(Tok::Word(w)) => {
                    self.at += 1;
                    let name = Some(scopes.resolve(w));
                    let offset = match self.peek() {
                        Some(Tok::Punct(b'+')) => {
                            self.at += 1;
                            self.int()?
                        }
                        _ => 0,
                    };
                    Operand::Address(name, offset)
                }
                _ => Operand::Address(None, self.int()?),
            };
            self.expect(b']')?;
            return Ok(address);
        }
        let negative = self.accept(b'-');
        Ok(match self.take()? {
            Tok::Word(w) if !negative => Operand::Name(scopes.resolve(w)),
            Tok::Int(v) => Operand::Int(if negative { v.wrapping_neg() } else { v }),
            Tok::F32(v) => Operand::F32(v ^ (u32::from(negative) << 31)),
            Tok::F64(v) => Operand::F64(v ^ (u64::from(negative) << 63)),
            _ => {
                self.at -= 1;
                return self.error("this is no operand");
            }
        })
    }
}
