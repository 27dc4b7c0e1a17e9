//! Tokens of PTX text (PTX ISA §4.1-4.5: source format, comments, identifiers, constants).

use super::SyntaxError;

/// What a token says. Words keep their dots: `ld.global.v4.f32`, `%tid.x` and `.reg` are one word each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tok<'a> {
    Word(&'a str),
    /// An integer constant, or the bits of a `0f`/`0d` constant.
    Int(i64),
    F32(u32),
    F64(u64),
    Str(&'a str),
    Punct(u8),
}

/// A token, its 1-based line and its byte range in the source.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    pub tok: Tok<'a>,
    pub line: u32,
    pub start: usize,
    pub end: usize,
}

/// Splits `text` into tokens; comments and white space vanish.
pub fn lex(text: &str) -> Result<Vec<Token<'_>>, SyntaxError> {
    let mut lexer = Lexer { text, bytes: text.as_bytes(), at: 0, line: 1 };
    let mut out = Vec::with_capacity(text.len() / 4);
    while let Some(t) = lexer.next()? {
        out.push(t);
    }
    Ok(out)
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

fn starts_word(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn in_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.')
}

impl<'a> Lexer<'a> {
    fn error(&self, message: impl Into<String>) -> SyntaxError {
        SyntaxError { line: self.line, message: message.into() }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_blanks(&mut self) -> Result<(), SyntaxError> {
        loop {
            match self.peek(0) {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'/' if self.peek(1) == b'/' => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                b'/' if self.peek(1) == b'*' => {
                    let len = self.text[self.at..]
                        .find("*/")
                        .ok_or_else(|| self.error("a comment without an end"))?;
                    self.line += self.text[self.at..self.at + len].matches('\n').count() as u32;
                    self.at += len + 2;
                }
                _ => return Ok(()),
            }
        }
    }

    fn next(&mut self) -> Result<Option<Token<'a>>, SyntaxError> {
        self.skip_blanks()?;
        let start = self.at;
        if start >= self.bytes.len() {
            return Ok(None);
        }
        let line = self.line;
        let c = self.peek(0);
        let tok = if c.is_ascii_digit() {
            self.number()?
        } else if starts_word(c) {
            self.at += 1;
            while in_word(self.peek(0)) || (self.peek(0) == b':' && self.peek(1) == b':') {
                self.at += if self.peek(0) == b':' { 2 } else { 1 };
            }
            Tok::Word(&self.text[start..self.at])
        } else if c == b'"' {
            let len =
                self.text[start + 1..].find('"').ok_or_else(|| self.error("a string without an end"))?;
            self.at = start + len + 2;
            Tok::Str(&self.text[start + 1..start + 1 + len])
        } else if c.is_ascii() {
            self.at += 1;
            Tok::Punct(c)
        } else {
            return Err(self.error("a character outside ASCII"));
        };
        Ok(Some(Token { tok, line, start, end: self.at }))
    }

    fn number(&mut self) -> Result<Tok<'a>, SyntaxError> {
        let start = self.at;
        while self.peek(0).is_ascii_alphanumeric() || self.peek(0) == b'.' {
            self.at += 1;
        }
        let s = &self.text[start..self.at];
        let bad = || SyntaxError { line: self.line, message: format!("`{s}` is not a constant") };
        let hex = |d: &str| u64::from_str_radix(d, 16).map_err(|_| bad());
        if let Some(d) = s.strip_prefix("0f").or_else(|| s.strip_prefix("0F")) {
            return Ok(Tok::F32(u32::from_str_radix(d, 16).map_err(|_| bad())?));
        }
        if let Some(d) = s.strip_prefix("0d").or_else(|| s.strip_prefix("0D")) {
            return Ok(Tok::F64(hex(d)?));
        }
        let int = s.trim_end_matches('U');
        let value = if let Some(d) = int.strip_prefix("0x").or_else(|| int.strip_prefix("0X")) {
            hex(d)?
        } else if let Some(d) = int.strip_prefix("0b").or_else(|| int.strip_prefix("0B")) {
            u64::from_str_radix(d, 2).map_err(|_| bad())?
        } else if int.contains('.') || (int.contains(['e', 'E']) && !int.is_empty()) {
            return Ok(Tok::F64(int.parse::<f64>().map_err(|_| bad())?.to_bits()));
        } else if int.len() > 1 && int.starts_with('0') {
            u64::from_str_radix(int, 8).map_err(|_| bad())?
        } else {
            int.parse::<u64>().map_err(|_| bad())?
        };
        Ok(Tok::Int(value as i64))
    }
}
