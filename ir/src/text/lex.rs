//! Words of the text form, each with its place.

use crate::error::{Error, Result};

/// A word.
#[derive(Clone, PartialEq, Debug)]
pub enum Token {
    /// A name or keyword.
    Word(String),
    /// A number, as written.
    Number(String),
    /// A quoted byte string.
    Quoted(Vec<u8>),
    /// A sign: one character, or `=>` or `::`.
    Sign(&'static str),
    /// The end.
    End,
}

/// Line and column, both from 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    /// An error at this place.
    pub fn error(self, sentence: impl Into<String>) -> Error {
        Error::msg(sentence).at(format!("line {}, column {}", self.line, self.column))
    }
}

const SIGNS: &[&str] = &["=>", "::", "(", ")", "<", ">", "{", "}", "[", "]", ",", "=", ":", "|", "@", "?", "…"];

/// All words of a text. `#` starts a comment that runs to the end of the line.
pub fn lex(text: &str) -> Result<Vec<(Place, Token)>> {
    let mut lexer = Lexer { rest: text, place: Place { line: 1, column: 1 } };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blank();
        let place = lexer.place;
        let token = lexer.token()?;
        let end = token == Token::End;
        tokens.push((place, token));
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    place: Place,
}

impl<'a> Lexer<'a> {
    fn take(&mut self, len: usize) -> &'a str {
        let (head, rest) = self.rest.split_at(len);
        self.rest = rest;
        match head.rfind('\n') {
            None => self.place.column += head.chars().count(),
            Some(last) => {
                self.place.line += head.matches('\n').count();
                self.place.column = head[last..].chars().count();
            }
        }
        head
    }
    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let len = self.rest.find(|c| !keep(c)).unwrap_or(self.rest.len());
        self.take(len)
    }
    fn skip_blank(&mut self) {
        loop {
            self.take_while(char::is_whitespace);
            if !self.rest.starts_with('#') {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }
    fn token(&mut self) -> Result<Token> {
        let Some(first) = self.rest.chars().next() else { return Ok(Token::End) };
        match first {
            '"' => self.quoted(),
            'a'..='z' | 'A'..='Z' | '_' => {
                let word = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
                Ok(Token::Word(word.to_string()))
            }
            '0'..='9' | '-' | '+' => self.number(),
            _ => match SIGNS.iter().find(|sign| self.rest.starts_with(**sign)) {
                Some(sign) => {
                    self.take(sign.len());
                    Ok(Token::Sign(sign))
                }
                None => Err(self.place.error(format!("unexpected character \"{first}\""))),
            },
        }
    }
    /// Digits, letters (`inf`, `e`, hexadecimal), a point; a sign only at the start or behind an exponent's `e`.
    fn number(&mut self) -> Result<Token> {
        let bytes = self.rest.as_bytes();
        let hex = self.rest.starts_with("0x");
        let mut len = 1;
        while let Some(&byte) = bytes.get(len) {
            let exponent = !hex && matches!(bytes[len - 1], b'e' | b'E');
            if !(byte.is_ascii_alphanumeric() || byte == b'.' || exponent && matches!(byte, b'+' | b'-')) {
                break;
            }
            len += 1;
        }
        Ok(Token::Number(self.take(len).to_string()))
    }
    fn quoted(&mut self) -> Result<Token> {
        let start = self.place;
        self.take(1);
        let mut out = Vec::new();
        loop {
            out.extend_from_slice(self.take_while(|c| c != '"' && c != '\\').as_bytes());
            let place = self.place;
            let mut chars = self.rest.chars();
            match (chars.next(), chars.next()) {
                (Some('"'), _) => {
                    self.take(1);
                    return Ok(Token::Quoted(out));
                }
                (Some('\\'), Some('x')) => {
                    let byte = self.rest.get(2..4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
                    out.push(byte.ok_or_else(|| place.error("expected two hexadecimal digits after \\x"))?);
                    self.take(4);
                }
                (Some('\\'), Some(c)) if "\"\\n".contains(c) => {
                    out.push(if c == 'n' { b'\n' } else { c as u8 });
                    self.take(2);
                }
                (Some('\\'), _) => return Err(place.error("unknown escape; there are \\\", \\\\, \\n and \\xNN")),
                _ => return Err(start.error("the string does not end")),
            }
        }
    }
}
