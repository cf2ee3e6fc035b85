//! The limits of a query, and its text as the grammar's crate reads it, in one pass.

use super::{DEPTH_MAX, PIECES_MAX, QUERY_BYTES_MAX, QueryError};
use crate::search::pattern::{AGO, as_literal};

/// What means something to Lucene outside of quotes, unless it is escaped.
const RESERVED: &str = "+-=&|><!(){}[]^\"'~*?:\\/`";

/// Checks the limits, and writes the text as the grammar has it: what is escaped and is no wildcard by a sign of its own, a
/// backslash between quotes that escapes nothing twice, and a sign before `-10m`, which begins no word there.
pub(super) fn prepare(text: &str) -> Result<String, QueryError> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(QueryError::TooLong(text.len()));
    }
    if let Some(sign) = text.chars().find(|c| ('\u{e000}'..='\u{f8ff}').contains(c) || *c == '\0') {
        return Err(QueryError::Sign(u32::from(sign)));
    }
    let mut scan = Scan { out: String::with_capacity(text.len()), ..Scan::default() };
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        scan.take(c, &mut rest)?;
    }
    scan.word_ends()?;
    if let Some(quote) = scan.quote {
        return Err(QueryError::Unclosed(quote));
    }
    if !scan.open.is_empty() {
        return Err(QueryError::Unclosed('('));
    }
    Ok(scan.out)
}

/// One pass over the text.
#[derive(Default)]
struct Scan {
    out: String,
    quote: Option<char>,
    /// The depth before each bracket that is open.
    open: Vec<usize>,
    depth: usize,
    pieces: usize,
    /// The word that is being read, as far as that may be NOT or TO.
    word: String,
    /// The word before was TO, and only room has come since.
    after_to: bool,
}

impl Scan {
    fn take(&mut self, c: char, rest: &mut &str) -> Result<(), QueryError> {
        if c == '\\' {
            return self.escape(rest);
        }
        if let Some(quote) = self.quote {
            self.out.push(if matches!(c, '*' | '?') { as_literal(c) } else { c });
            if c == quote {
                self.quote = None;
                self.operand_ends();
            }
            return Ok(());
        }
        match c {
            c if c.is_whitespace() => self.word_ends()?,
            '(' => {
                self.word_ends()?;
                self.piece()?;
                let base = self.depth;
                self.deeper()?;
                self.open.push(base);
            }
            ')' => {
                self.word_ends()?;
                self.depth = self.open.pop().ok_or(QueryError::Unopened)?;
                self.operand_ends();
            }
            '"' | '\'' => {
                self.piece()?;
                self.quote = Some(c);
                self.word.clear();
                self.word.push(c);
            }
            '[' | ']' | '{' | '}' => {
                self.word_ends()?;
                self.piece()?;
            }
            '-' if self.ago_follows(rest) => self.out.push(AGO),
            c => {
                if self.word.is_empty() {
                    self.piece()?;
                }
                self.word.push(c);
                self.after_to = false;
            }
        }
        self.out.push(c);
        Ok(())
    }

    /// A sign that Lucene reserves is meant as such after a backslash. Before anything else, and between quotes where nothing need
    /// be escaped, the backslash itself is meant, as in the paths of Windows.
    fn escape(&mut self, rest: &mut &str) -> Result<(), QueryError> {
        let Some(next) = rest.chars().next() else { return Err(QueryError::Backslash) };
        if self.word.is_empty() && self.quote.is_none() {
            self.piece()?;
        }
        self.word.push(next);
        let is_quoted = self.quote.is_some();
        let is_escaped = matches!(next, '\\') || self.quote.is_none_or(|quote| quote == next);
        match next {
            next if !is_quoted && RESERVED.contains(next) => self.out.push(as_literal(next)),
            // What follows is read by itself.
            _ if is_quoted && !is_escaped => {
                self.out.push_str("\\\\");
                return Ok(());
            }
            next => self.out.extend(['\\', next]),
        }
        *rest = &rest[next.len_utf8()..];
        Ok(())
    }

    /// A length of time without NOW before it, where a value begins.
    fn ago_follows(&self, rest: &str) -> bool {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let is_length = digits > 0 && rest[digits..].starts_with(|c: char| c.is_ascii_alphabetic());
        let begins = self.out.ends_with([':', '[', '{', '>', '<', '=']) || self.after_to;
        is_length && begins
    }

    fn word_ends(&mut self) -> Result<(), QueryError> {
        match self.word.as_str() {
            "" => return Ok(()),
            "NOT" => self.deeper()?,
            "AND" | "OR" => {}
            _ => self.operand_ends(),
        }
        self.after_to = self.word == "TO";
        self.word.clear();
        Ok(())
    }

    /// What NOTs were before it are over.
    fn operand_ends(&mut self) {
        self.depth = self.open.last().map_or(0, |base| base + 1);
    }

    fn deeper(&mut self) -> Result<(), QueryError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(QueryError::TooDeep) } else { Ok(()) }
    }

    fn piece(&mut self) -> Result<(), QueryError> {
        self.pieces += 1;
        if self.pieces > PIECES_MAX { Err(QueryError::TooMany) } else { Ok(()) }
    }
}
