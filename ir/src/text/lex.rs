//! Tokens of the text forms, with line and column for messages, and the pieces that all levels share:
//! names, numbers, strings and [`Dim`] expressions.
//!
//! ```text
//! name    [A-Za-z_][A-Za-z0-9_]*       or any text in double quotes
//! number  12  0x1f  1.5  2e-3          (a sign is a token of its own; `inf`, `nan` are names)
//! string  "..." with \" \\ \n \t \r \u{hex}
//! # starts a comment that ends with its line
//! ```

use crate::{Atom, Dim, IrError, Result};
use std::borrow::Cow;
use std::fmt::{self, Write};

/// Expressions nest at most this deep: the parser recurses.
const MAX_DEPTH: usize = 200;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Name,
    Number,
    /// `text` includes the quotes.
    Str,
    Punct,
    End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    /// Byte offset in the source.
    pub at: usize,
}

/// Reads tokens from a text. Cheap to copy: keep a copy to go back.
#[derive(Clone, Copy)]
pub struct Cursor<'a> {
    src: &'a str,
    /// The next token, already read.
    tok: Token<'a>,
}

const PUNCTS: [&str; 8] = ["->", "..", "==", "!=", "<=", ">=", ":=", "+="];

impl<'a> Cursor<'a> {
    pub fn new(src: &'a str) -> Cursor<'a> {
        Cursor { src, tok: lex(src, 0) }
    }
    /// The next token, not consumed.
    pub fn peek(&self) -> Token<'a> {
        self.tok
    }
    /// Consumes and returns the next token.
    pub fn bump(&mut self) -> Token<'a> {
        let tok = self.tok;
        self.tok = lex(self.src, tok.at + tok.text.len());
        tok
    }
    /// The token after the next one.
    pub fn peek2(&self) -> Token<'a> {
        let mut c = *self;
        c.bump();
        c.peek()
    }
    pub fn at_end(&self) -> bool {
        self.tok.kind == Kind::End
    }
    /// True where the next token is this punctuation or this name.
    pub fn at(&self, text: &str) -> bool {
        matches!(self.tok.kind, Kind::Punct | Kind::Name) && self.tok.text == text
    }
    /// Consumes the next token if it is this punctuation or name.
    pub fn eat(&mut self, text: &str) -> bool {
        let yes = self.at(text);
        if yes {
            self.bump();
        }
        yes
    }
    pub fn expect(&mut self, text: &str) -> Result<()> {
        if self.eat(text) { Ok(()) } else { Err(self.expected(&format!("`{text}`"))) }
    }
    /// "expected ..., found ..." at the next token.
    pub fn expected(&self, what: &str) -> IrError {
        let found = match self.tok.kind {
            Kind::End => "the end of the text".to_string(),
            _ => format!("`{}`", self.tok.text.chars().take(40).collect::<String>()),
        };
        self.error(format!("expected {what}, found {found}"))
    }
    /// An error at the next token.
    pub fn error(&self, message: impl Into<String>) -> IrError {
        self.error_at(self.tok.at, message)
    }
    /// An error at a byte offset (that of a token).
    pub fn error_at(&self, at: usize, message: impl Into<String>) -> IrError {
        let before = self.src.get(..at).unwrap_or(self.src);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let column = before[start..].chars().count() + 1;
        IrError::Parse { line, column, message: message.into() }
    }

    /// A plain name (keyword, mnemonic); not a quoted one.
    pub fn word(&mut self) -> Result<&'a str> {
        if self.tok.kind == Kind::Name { Ok(self.bump().text) } else { Err(self.expected("a name")) }
    }
    /// A name, plain or quoted.
    pub fn name(&mut self) -> Result<Cow<'a, str>> {
        match self.tok.kind {
            Kind::Name => Ok(Cow::Borrowed(self.bump().text)),
            Kind::Str => Ok(Cow::Owned(self.string()?)),
            _ => Err(self.expected("a name")),
        }
    }
    /// `%name`, `@name`, `%12`: a sigil and then a name (plain, quoted, or decimal digits).
    pub fn sigil(&mut self, sigil: &str) -> Result<Cow<'a, str>> {
        if !self.eat(sigil) {
            return Err(self.expected(&format!("`{sigil}` and a name")));
        }
        match self.tok.kind {
            Kind::Number => Ok(Cow::Borrowed(self.bump().text)),
            _ => self.name(),
        }
    }
    /// A quoted string, escapes undone.
    pub fn string(&mut self) -> Result<String> {
        if self.tok.kind != Kind::Str {
            return Err(self.expected("a string"));
        }
        let text = self.tok.text;
        if text.len() < 2 || !text.ends_with('"') {
            return Err(self.error("this string has no end"));
        }
        let s = unquote(&text[1..text.len() - 1]).ok_or_else(|| self.error("a bad escape in this string"))?;
        self.bump();
        Ok(s)
    }
    /// An integer with an optional sign.
    pub fn int(&mut self) -> Result<i128> {
        let start = *self;
        let negative = self.eat("-");
        let text = self.tok.text;
        if self.tok.kind != Kind::Number {
            return Err(start.expected("an integer"));
        }
        let value = match text.strip_prefix("0x") {
            Some(hex) => i128::from_str_radix(hex, 16),
            None => text.parse(),
        };
        let value = value.map_err(|_| self.expected("an integer"))?;
        self.bump();
        Ok(if negative { -value } else { value })
    }
    /// An integer of type `T`, refused outside its range.
    pub fn int_as<T: TryFrom<i128>>(&mut self) -> Result<T> {
        let start = *self;
        let v = self.int()?;
        T::try_from(v).map_err(|_| start.error(format!("the integer {v} is out of range")))
    }
    /// A float: number with optional sign, `inf`, `-inf`, `nan`, or its bits as `bits(0x...)`.
    pub fn float(&mut self) -> Result<f64> {
        let start = *self;
        if self.eat("bits") {
            self.expect("(")?;
            let bits: u64 = self.int_as()?;
            self.expect(")")?;
            return Ok(f64::from_bits(bits));
        }
        let sign = if self.eat("-") { -1.0 } else { 1.0 };
        let v = match (self.tok.kind, self.tok.text) {
            (Kind::Name, "inf") => f64::INFINITY,
            (Kind::Name, "nan") => f64::NAN,
            (Kind::Number, t) => t.parse().map_err(|_| start.expected("a number"))?,
            _ => return Err(start.expected("a number")),
        };
        self.bump();
        Ok(sign * v)
    }
    /// `[item, item, ...]`, a trailing comma is not allowed.
    pub fn list<T>(&mut self, item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.list_between("[", "]", item)
    }
    /// As [`Cursor::list`] with other brackets.
    pub fn list_between<T>(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.expect(open)?;
        let mut items = Vec::new();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close) {
                return Ok(items);
            }
            if !self.eat(",") {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
    }

    /// A [`Dim`] expression as [`Dim::write`] prints it; `atom` gives names (symbols, variables) their
    /// meaning. Nothing is simplified beyond the canonical form, so what was printed comes back.
    pub fn dim(&mut self, atom: &mut dyn FnMut(&str) -> Option<Atom>) -> Result<Dim> {
        self.dim_sum(atom, 0)
    }
    fn dim_sum(&mut self, atom: &mut dyn FnMut(&str) -> Option<Atom>, depth: usize) -> Result<Dim> {
        if depth > MAX_DEPTH {
            return Err(self.error("this expression nests too deeply"));
        }
        let mut sum = Dim::from(0);
        let mut negative = self.eat("-");
        loop {
            let mut term = self.dim_factor(atom, depth)?;
            while self.eat("*") {
                let start = *self;
                let factor = self.dim_factor(atom, depth)?;
                // what is printed has no products of sums; those of a text may not grow without bound
                let sums = [&term, &factor].iter().any(|d| d.terms().len() > 1);
                if sums && !(term.is_small() && factor.is_small()) {
                    return Err(start.error(format!("a product of sums of over {} terms", Dim::MAX_ATOMS)));
                }
                term = term * factor;
            }
            sum = if negative { sum - term } else { sum + term };
            negative = match () {
                _ if self.eat("+") => false,
                _ if self.eat("-") => true,
                _ => return Ok(sum),
            };
        }
    }
    fn dim_factor(&mut self, atom: &mut dyn FnMut(&str) -> Option<Atom>, depth: usize) -> Result<Dim> {
        if self.tok.kind == Kind::Number {
            return Ok(Dim::from(self.int_as::<i64>()?));
        }
        if self.eat("(") {
            let d = self.dim_sum(atom, depth + 1)?;
            self.expect(")")?;
            return Ok(d);
        }
        let start = *self;
        if self.tok.kind == Kind::Name && self.peek2().text == "(" {
            let make: fn(Box<Dim>, Box<Dim>) -> Atom = match self.word()? {
                "floordiv" => Atom::FloorDiv,
                "mod" => Atom::Mod,
                "min" => Atom::Min,
                "max" => Atom::Max,
                other => return Err(start.error(format!("unknown size function `{other}`"))),
            };
            self.expect("(")?;
            let a = self.dim_sum(atom, depth + 1)?;
            self.expect(",")?;
            let b = self.dim_sum(atom, depth + 1)?;
            self.expect(")")?;
            return Ok(Dim::from(make(Box::new(a), Box::new(b))));
        }
        let name = self.name().map_err(|_| start.expected("a size"))?;
        match atom(&name) {
            Some(a) => Ok(Dim::from(a)),
            None => Err(start.error(format!("unknown size symbol `{name}`"))),
        }
    }
}

fn lex(src: &str, from: usize) -> Token<'_> {
    let bytes = src.as_bytes();
    let mut i = from;
    loop {
        match bytes.get(i) {
            Some(b' ' | b'\t' | b'\r' | b'\n') => i += 1,
            Some(b'#') => i += src[i..].find('\n').unwrap_or(src.len() - i),
            _ => break,
        }
    }
    let rest = &src[i..];
    let token = |kind, len: usize| Token { kind, text: &rest[..len], at: i };
    let Some(first) = rest.chars().next() else {
        return token(Kind::End, 0);
    };
    let run = |start: usize, ok: fn(u8) -> bool| {
        rest.as_bytes()[start..].iter().take_while(|&&b| ok(b)).count() + start
    };
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match first {
        'A'..='Z' | 'a'..='z' | '_' => token(Kind::Name, run(0, word)),
        '0'..='9' => token(Kind::Number, number_len(rest)),
        '"' => {
            let (mut len, mut escaped) = (1, false);
            for c in rest[1..].chars() {
                len += c.len_utf8();
                match c {
                    '"' if !escaped => break,
                    '\\' => escaped = !escaped,
                    _ => escaped = false,
                }
            }
            token(Kind::Str, len)
        }
        _ => {
            let len = PUNCTS.iter().find(|p| rest.starts_with(**p)).map_or(first.len_utf8(), |p| p.len());
            token(Kind::Punct, len)
        }
    }
}

/// Length of the number at the start of `s`: `1..64` ends before the dots.
fn number_len(s: &str) -> usize {
    let b = s.as_bytes();
    let digits = |mut i: usize| {
        while b.get(i).is_some_and(u8::is_ascii_digit) {
            i += 1;
        }
        i
    };
    if s.starts_with("0x") {
        let mut i = 2;
        while b.get(i).is_some_and(u8::is_ascii_hexdigit) {
            i += 1;
        }
        return i;
    }
    let mut i = digits(0);
    if b.get(i) == Some(&b'.') && b.get(i + 1).is_some_and(u8::is_ascii_digit) {
        i = digits(i + 1);
    }
    if matches!(b.get(i), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(b.get(i + 1), Some(b'+' | b'-')));
        if b.get(i + 1 + sign).is_some_and(u8::is_ascii_digit) {
            i = digits(i + 1 + sign);
        }
    }
    i
}

fn unquote(s: &str) -> Option<String> {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next()? {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '"' => '"',
            '\\' => '\\',
            'u' => {
                let rest = chars.as_str().strip_prefix('{')?;
                let (hex, after) = rest.split_once('}')?;
                chars = after.chars();
                char::from_u32(u32::from_str_radix(hex, 16).ok()?)?
            }
            _ => return None,
        });
    }
    Some(out)
}

/// A quoted string with escapes, as [`Cursor::string`] reads it.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A name as [`Cursor::name`] reads it: plain where it can be, quoted otherwise.
pub fn name(s: &str) -> Cow<'_, str> {
    let plain = s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && s.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if plain { Cow::Borrowed(s) } else { Cow::Owned(quote(s)) }
}

/// A float as [`Cursor::float`] reads it back, bit for bit.
pub struct Float(pub f64);

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let x = self.0;
        if x.is_nan() && x.to_bits() != f64::NAN.to_bits() {
            return write!(f, "bits(0x{:x})", x.to_bits());
        }
        if x.is_nan() {
            return f.write_str("nan");
        }
        if x.is_infinite() {
            return f.write_str(if x > 0.0 { "inf" } else { "-inf" });
        }
        write!(f, "{x:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sym;

    #[test]
    fn tokens() {
        let mut c = Cursor::new("graph @f(%x: f32[N, 2]) -> 1..64 # end\n 0x1F -2.5e-3 \"a\\\"\\u{41}\"");
        assert_eq!(c.word().unwrap(), "graph");
        assert_eq!(c.sigil("@").unwrap(), "f");
        c.expect("(").unwrap();
        assert_eq!(c.sigil("%").unwrap(), "x");
        c.expect(":").unwrap();
        assert_eq!(c.word().unwrap(), "f32");
        let shape = c.list(|c| c.dim(&mut |n| (n == "N").then_some(Atom::Sym(Sym(0))))).unwrap();
        assert_eq!(shape, [Dim::from(Sym(0)), Dim::from(2)]);
        c.expect(")").unwrap();
        c.expect("->").unwrap();
        assert_eq!(c.int().unwrap(), 1);
        c.expect("..").unwrap();
        assert_eq!(c.int().unwrap(), 64);
        assert_eq!(c.int().unwrap(), 31);
        assert_eq!(c.float().unwrap(), -2.5e-3);
        assert_eq!(c.string().unwrap(), "a\"A");
        assert!(c.at_end());
    }

    #[test]
    fn products_of_sums_are_bounded() {
        let of = |count: usize| {
            let text = vec!["(a + b + c + d)"; count].join(" * ");
            let mut atom = |n: &str| Some(Atom::Sym(Sym(u32::from(n.as_bytes()[0]))));
            Cursor::new(&text).dim(&mut atom).map(|d| d.terms().len())
        };
        assert_eq!(of(3).unwrap(), 20);
        let e = of(60).unwrap_err().to_string();
        assert!(e.contains("a product of sums of over 256 terms"), "{e}");
    }

    #[test]
    fn errors_have_places() {
        let mut c = Cursor::new("a\n  é %");
        c.bump();
        c.bump();
        assert_eq!(
            c.expect("x"),
            Err(IrError::Parse { line: 2, column: 5, message: "expected `x`, found `%`".into() })
        );
        assert!(Cursor::new("\"abc").string().is_err());
        let deep = "(".repeat(100_000);
        assert!(Cursor::new(&deep).dim(&mut |_| None).is_err());
    }

    #[test]
    fn floats_round_trip() {
        for x in [0.0, -0.0, 1.0, 1e300, 5e-324, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -f64::NAN, 0.1] {
            let s = Float(x).to_string();
            let y = Cursor::new(&s).float().unwrap();
            assert_eq!(x.to_bits(), y.to_bits(), "{s}");
        }
        for s in ["", "a b", "x\"\\\n\u{1}é", "9a", "plain_1"] {
            assert_eq!(Cursor::new(&name(s)).name().unwrap(), s);
        }
    }
}
