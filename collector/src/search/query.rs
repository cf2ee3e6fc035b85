//! From text to a checked tree, by the grammar of `tantivy-query-grammar`, which is Lucene's.
//!
//! That crate calls itself for each bracket and each NOT, and copies what is within: 3,000 brackets overflow the stack of a
//! thread, and a million terms take it seconds. So length, depth and number of terms are checked before it sees the text, in
//! one pass over as many bytes as the limit admits; what it makes is then bounded by that.

use alibi_proto::time::Timestamp;
use ipnet::IpNet;
use tantivy_query_grammar::{
    Delimiter, Occur, UserInputAst, UserInputBound, UserInputLeaf, UserInputLiteral, parse_query,
};

use super::{
    document::bits,
    fields::{self, About, Field, Kind},
    pattern::{self, AGO, PATTERN_CHARS_MAX, Pattern},
    time::{self, Stretch},
    tree::{Condition, Test, Tree},
};

mod scan;

/// Bytes of a query: enough for 200 hashes.
pub const QUERY_BYTES_MAX: usize = 16 << 10;
/// Terms, and the values of sets.
pub const TERMS_MAX: usize = 256;
/// Brackets and NOTs within each other.
pub const DEPTH_MAX: usize = 32;
/// Words, brackets and quotes: a term with a range has six.
const PIECES_MAX: usize = 6 * TERMS_MAX;
/// Characters of what a message quotes.
const QUOTED_CHARS_MAX: usize = 60;
/// Digits that are enough to find something by the beginning of its uid or hash.
const DIGITS_MIN: usize = 4;

/// What is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Searched {
    /// Processes, by themselves and by their connections.
    Processes,
    /// Flow records, by themselves and by their owners.
    Flows,
}

/// Reads a query. Nothing at all is everything.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn parse(text: &str, searched: Searched, now: Timestamp) -> Result<Tree, QueryError> {
    let prepared = scan::prepare(text)?;
    let grammar = parse_query(&prepared).map_err(|_| QueryError::Syntax { text: quoted(text) })?;
    let mut reading = Reading { searched, now, terms: 0 };
    reading.tree(&grammar)
}

struct Reading {
    searched: Searched,
    now: Timestamp,
    terms: usize,
}

impl Reading {
    fn tree(&mut self, grammar: &UserInputAst) -> Result<Tree, QueryError> {
        match grammar {
            UserInputAst::Clause(clauses) => self.clauses(clauses),
            UserInputAst::Boost(..) => Err(QueryError::Unsupported("a weight (`^`)")),
            UserInputAst::Leaf(leaf) => self.leaf(leaf),
        }
    }

    fn clauses(&mut self, clauses: &[(Option<Occur>, UserInputAst)]) -> Result<Tree, QueryError> {
        let (mut all, mut any, mut joined) = (Vec::new(), Vec::new(), false);
        for (occur, grammar) in clauses {
            let tree = self.tree(grammar)?;
            match occur {
                Some(Occur::MustNot) => all.push(Tree::Not(Box::new(tree))),
                Some(Occur::Should) => any.push(tree),
                Some(Occur::Must) | None => {
                    joined = true;
                    all.push(tree);
                }
            }
        }
        match (any.len(), joined) {
            (0, _) => Ok(one_of(all, Tree::And)),
            // Which belongs to which is anybody's guess.
            (_, true) => Err(QueryError::Mixed),
            (_, false) => {
                let any = one_of(any, Tree::Or);
                if all.is_empty() {
                    return Ok(any);
                }
                all.push(any);
                Ok(Tree::And(all))
            }
        }
    }

    fn leaf(&mut self, leaf: &UserInputLeaf) -> Result<Tree, QueryError> {
        self.terms += 1;
        if self.terms > TERMS_MAX {
            return Err(QueryError::TooMany);
        }
        match leaf {
            UserInputLeaf::All => Ok(Tree::all()),
            UserInputLeaf::Exists { field } => {
                let about = self.field(field)?;
                Ok(Tree::Test(Test { field: about.field, condition: Condition::Exists, written: "*".into() }))
            }
            UserInputLeaf::Literal(literal) => self.literal(literal),
            UserInputLeaf::Range { field, lower, upper } => {
                let field = field.as_deref().ok_or(QueryError::RangeOfNothing)?;
                let about = self.field(field)?;
                Ok(Tree::Test(self.range(about, lower, upper)?))
            }
            UserInputLeaf::Set { field, elements } => {
                let field = field.as_deref().ok_or(QueryError::RangeOfNothing)?;
                let about = self.field(field)?;
                if elements.is_empty() {
                    return Err(QueryError::EmptySet(about.name));
                }
                self.terms += elements.len();
                if self.terms > TERMS_MAX {
                    return Err(QueryError::TooMany);
                }
                let tests = elements.iter().map(|element| {
                    self.term(about, element, Form { is_quoted: false, has_more: false }).map(Tree::Test)
                });
                Ok(Tree::Or(tests.collect::<Result<_, _>>()?))
            }
            UserInputLeaf::Regex { pattern, .. } => Err(QueryError::Regex(quoted(pattern))),
        }
    }

    fn literal(&mut self, literal: &UserInputLiteral) -> Result<Tree, QueryError> {
        if literal.slop > 0 {
            return Err(QueryError::Unsupported("a distance (`~`)"));
        }
        let form =
            Form { is_quoted: !matches!(literal.delimiter, Delimiter::None), has_more: literal.prefix };
        match &literal.field_name {
            Some(field) => {
                let about = self.field(field)?;
                self.term(about, &literal.phrase, form).map(Tree::Test)
            }
            None => self.anywhere(&literal.phrase, form),
        }
    }

    /// A value without a field: a part of any of the texts that people look for.
    fn anywhere(&mut self, value: &str, form: Form) -> Result<Tree, QueryError> {
        const LOOKED_AT: [Field; 6] = [
            Field::ProcessName,
            Field::ProcessExecutable,
            Field::ProcessCommandLine,
            Field::UserName,
            Field::HostName,
            Field::RemoteName,
        ];
        let mut tests = Vec::with_capacity(LOOKED_AT.len() + 1);
        for field in LOOKED_AT {
            tests.push(Tree::Test(self.term(field.about(), value, form)?));
        }
        if parse_network(value).is_some() {
            tests.push(Tree::Test(self.term(Field::RemoteAddress.about(), value, form)?));
        }
        Ok(Tree::Or(tests))
    }

    fn field(&self, name: &str) -> Result<&'static About, QueryError> {
        let about = Field::named(&pattern::literal(name)).ok_or_else(|| unknown(name))?;
        if about.field == Field::ConnectionCount && self.searched == Searched::Flows {
            return Err(QueryError::OfProcesses(about.name));
        }
        Ok(about)
    }

    fn term(&self, about: &'static About, value: &str, form: Form) -> Result<Test, QueryError> {
        // It may stand within a value, too, where that has something like `--timeout=-30s`.
        let value = &value.replace(AGO, "");
        let plain = pattern::literal(value);
        let has_wildcards = !form.is_quoted && pattern::has_wildcards(value) || form.has_more;
        let wrong = |wanted| QueryError::Value { field: about.name, value: quoted(&plain), wanted };
        if value.chars().count() > PATTERN_CHARS_MAX {
            return Err(QueryError::Value { field: about.name, value: quoted(&plain), wanted: TOO_LONG });
        }
        let condition = match about.kind {
            Kind::Keyword | Kind::Text => Condition::Text(text_pattern(about.kind, value, form)),
            Kind::Identity => digits(&plain).ok_or_else(|| wrong(DIGITS))?,
            Kind::Address if has_wildcards => Condition::Text(text_pattern(Kind::Keyword, value, form)),
            Kind::Address => Condition::Network(parse_network(&plain).ok_or_else(|| wrong(ADDRESS))?),
            Kind::Number => {
                let number: i128 = parse_number(&plain).ok_or_else(|| wrong(NUMBER))?;
                Condition::Numbers { least: number, most: number }
            }
            Kind::Time | Kind::Activity => {
                Condition::Times(time::parse(&plain, self.now).ok_or_else(|| wrong(TIME))?)
            }
        };
        Ok(Test { field: about.field, condition, written: written(value, form) })
    }

    fn range(
        &self,
        about: &'static About,
        lower: &UserInputBound,
        upper: &UserInputBound,
    ) -> Result<Test, QueryError> {
        let wrong =
            |value: &str, wanted| QueryError::Value { field: about.name, value: quoted(value), wanted };
        let texts = [lower, upper].map(|bound| match bound {
            UserInputBound::Unbounded => None,
            UserInputBound::Inclusive(text) | UserInputBound::Exclusive(text) => Some(pattern::literal(text)),
        });
        let texts = texts.each_ref().map(Option::as_deref);
        if texts.into_iter().flatten().any(|text| text.len() > PATTERN_CHARS_MAX) {
            return Err(wrong(texts[0].unwrap_or_default(), TOO_LONG));
        }
        let excludes = [lower, upper].map(|bound| matches!(bound, UserInputBound::Exclusive(_)));
        let condition = match about.kind {
            Kind::Keyword | Kind::Text | Kind::Identity => return Err(QueryError::NoRange(about.name)),
            Kind::Number => {
                let number = |at: usize, without: i128| match texts[at] {
                    None => Ok(without),
                    Some(text) => parse_number(text).ok_or_else(|| wrong(text, NUMBER)),
                };
                let (least, most) = (number(0, i128::MIN)?, number(1, i128::MAX)?);
                let least = if excludes[0] { least.saturating_add(1) } else { least };
                Condition::Numbers { least, most: if excludes[1] { most.saturating_sub(1) } else { most } }
            }
            Kind::Address => {
                let address = |at: usize| match texts[at] {
                    None => Ok(None),
                    Some(text) => text
                        .parse::<std::net::IpAddr>()
                        .map(|address| Some(bits(address.to_canonical())))
                        .map_err(|_| wrong(text, ADDRESS)),
                };
                address_range(address(0)?, address(1)?, excludes).ok_or(QueryError::Families(about.name))?
            }
            Kind::Time | Kind::Activity => {
                let stretch = |at: usize| match texts[at] {
                    None => Ok(Stretch::EVER),
                    Some(text) => time::parse(text, self.now).ok_or_else(|| wrong(text, TIME)),
                };
                let (first, last) = (stretch(0)?, stretch(1)?);
                let nanosecond = std::time::Duration::from_nanos(1);
                let from = if excludes[0] { first.to.saturating_add(nanosecond) } else { first.from };
                let to = if excludes[1] { last.from.saturating_sub(nanosecond) } else { last.to };
                Condition::Times(Stretch { from, to })
            }
        };
        let is_empty = match &condition {
            Condition::Numbers { least, most } => least > most,
            Condition::Addresses { lowest, highest, .. } => lowest > highest,
            Condition::Times(stretch) => stretch.from > stretch.to,
            _ => false,
        };
        let written = range_written(texts, excludes);
        if is_empty {
            return Err(QueryError::Reversed { field: about.name, range: quoted(&written) });
        }
        Ok(Test { field: about.field, condition, written })
    }
}

/// How a value was written.
#[derive(Clone, Copy, Debug)]
struct Form {
    is_quoted: bool,
    /// A star follows on the quotes.
    has_more: bool,
}

const TOO_LONG: &str = "a shorter value: it may have 1,024 characters";
const DIGITS: &str = "from 4 to 64 hexadecimal digits: all of it, or the first of them";
const ADDRESS: &str =
    "an address, a network such as 203.0.113.0/24, or one with wildcards; an address of IPv6 between quotes";
const NUMBER: &str = "a whole number, or a range such as [1 TO *] or >10";
const TIME: &str = "a time such as NOW-10MINUTES, 2026-11-28 or \"2026-11-28T10:31:00Z\" (with colons, between quotes or in a range)";

fn one_of(mut trees: Vec<Tree>, join: fn(Vec<Tree>) -> Tree) -> Tree {
    match trees.len() {
        1 => trees.remove(0),
        _ => join(trees),
    }
}

fn text_pattern(kind: Kind, value: &str, form: Form) -> Pattern {
    let has_wildcards = !form.is_quoted && pattern::has_wildcards(value);
    let pattern = match kind {
        _ if has_wildcards => Pattern::with_wildcards(value),
        Kind::Text if !form.has_more => Pattern::containing(value),
        _ => Pattern::exactly(value),
    };
    if form.has_more { pattern.and_more() } else { pattern }
}

fn digits(value: &str) -> Option<Condition> {
    let value = value.to_ascii_lowercase();
    let is_some = (DIGITS_MIN..=64).contains(&value.len()) && value.bytes().all(|c| c.is_ascii_hexdigit());
    is_some.then_some(Condition::Prefix(value))
}

fn parse_number(text: &str) -> Option<i128> {
    i64::try_from(text.parse::<i128>().ok()?).ok().map(i128::from)
}

fn parse_network(text: &str) -> Option<IpNet> {
    let network = match text.parse::<std::net::IpAddr>() {
        Ok(address) => IpNet::from(address.to_canonical()),
        Err(_) => text.parse::<IpNet>().ok()?.trunc(),
    };
    Some(network)
}

/// Of one family; the other end is the family's where it is left open.
fn address_range(
    lower: Option<(bool, u128)>,
    upper: Option<(bool, u128)>,
    excludes: [bool; 2],
) -> Option<Condition> {
    let is_v6 = match (lower, upper) {
        (Some((one, _)), Some((other, _))) if one != other => return None,
        (Some((is_v6, _)), _) | (None, Some((is_v6, _))) => is_v6,
        (None, None) => return Some(Condition::Exists),
    };
    let greatest = if is_v6 { u128::MAX } else { u128::from(u32::MAX) };
    let lowest = lower.map_or(0, |(_, bits)| bits.saturating_add(excludes[0].into()));
    let highest = upper.map_or(greatest, |(_, bits)| bits.saturating_sub(excludes[1].into()));
    // Beyond either end there is nothing.
    let is_beyond = excludes[1] && upper.is_some_and(|(_, bits)| bits == 0)
        || excludes[0] && lower.is_some_and(|(_, bits)| bits == greatest);
    let (lowest, highest) = if is_beyond { (1, 0) } else { (lowest, highest) };
    Some(Condition::Addresses { is_v6, lowest, highest })
}

/// A value as it can be asked again.
fn written(value: &str, form: Form) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-._/*?,@%=".contains(c);
    let is_word = matches!(value, "AND" | "OR" | "NOT" | "IN" | "TO" | "");
    // A slash begins a regular expression, which ends wherever another one is.
    let stands_alone = !is_word && !value.starts_with(['-', '/']) && value.chars().all(is_plain);
    if !form.is_quoted && stands_alone {
        return value.to_owned();
    }
    if !form.is_quoted && pattern::has_wildcards(value) {
        // Wildcards stand outside of quotes.
        let must_be_escaped = |c: char| c.is_whitespace() || "^`:{}\"'[]()\\".contains(c);
        let mut written = String::with_capacity(value.len() + 8);
        for c in value.chars() {
            let sign = pattern::meant(c);
            if sign.is_some() || must_be_escaped(c) || "-/".contains(c) && written.is_empty() {
                written.push('\\');
            }
            written.push(sign.unwrap_or(c));
        }
        return written;
    }
    let escaped = pattern::literal(value).replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"{}", if form.has_more { "*" } else { "" })
}

fn range_written(texts: [Option<&str>; 2], excludes: [bool; 2]) -> String {
    let (open, close) = (if excludes[0] { '{' } else { '[' }, if excludes[1] { '}' } else { ']' });
    format!("{open}{} TO {}{close}", texts[0].unwrap_or("*"), texts[1].unwrap_or("*"))
}

fn unknown(name: &str) -> QueryError {
    let near = fields::near(name);
    let near = match near.as_slice() {
        [] => String::new(),
        near => format!(", did you mean {}", near.join(" or ")),
    };
    QueryError::UnknownField { name: quoted(name), near }
}

/// As much of it as a message takes.
fn quoted(text: &str) -> String {
    alibi_proto::report::shortened(&pattern::literal(text), QUOTED_CHARS_MAX)
}

/// A query that cannot be asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueryError {
    /// It has too many bytes.
    #[error("the query has {0} bytes, and may have {QUERY_BYTES_MAX}: ask in parts")]
    TooLong(usize),
    /// It has too many terms.
    #[error("the query has more than {TERMS_MAX} terms: ask in parts")]
    TooMany,
    /// It has too many brackets within each other.
    #[error("the query has more than {DEPTH_MAX} brackets and NOTs within each other: leave some out")]
    TooDeep,
    /// A character that no text has.
    #[error("the query has the character U+{0:04X}, which no text has: leave it out")]
    Sign(u32),
    /// Something is not closed.
    #[error("a `{0}` in the query is not closed")]
    Unclosed(char),
    /// Something is closed that is not open.
    #[error("a `)` in the query closes nothing")]
    Unopened,
    /// It ends in the midst.
    #[error("the query ends in a backslash, which escapes nothing: write two of them")]
    Backslash,
    /// The grammar does not have it.
    #[error(
        "`{text}` is not a query: write field:value, field:[1 TO 9], AND, OR, NOT and brackets, with values that have spaces \
         or colons between quotes"
    )]
    Syntax {
        /// What was written.
        text: String,
    },
    /// OR beside terms that are joined otherwise.
    #[error("OR stands beside terms that are joined without it: put brackets around what belongs together")]
    Mixed,
    /// Lucene has it, and this has not.
    #[error("{0} means nothing here: a term fits or does not; leave it out")]
    Unsupported(&'static str),
    /// A regular expression.
    #[error(
        "`/{0}/` is a regular expression, which cannot be asked: use * and ?, and put a path that ends in / between quotes"
    )]
    Regex(String),
    /// A range or set without a field.
    #[error("a range or set stands without a field: write field:[1 TO 9]")]
    RangeOfNothing,
    /// A set without values.
    #[error("the set of {0} has no values, so that nothing is in it: write {0}:IN [one two]")]
    EmptySet(&'static str),
    /// There is no such field.
    #[error("there is no field `{name}`{near}; `alibi search --fields` lists all")]
    UnknownField {
        /// As it was written.
        name: String,
        /// Those that may be meant.
        near: String,
    },
    /// A field of processes alone.
    #[error("{0} is a field of processes, and flow records have none: ask `alibi search`")]
    OfProcesses(&'static str),
    /// A value that the field cannot have.
    #[error("`{value}` is nothing that {field} can be: write {wanted}")]
    Value {
        /// The field.
        field: &'static str,
        /// The value.
        value: String,
        /// What it can be.
        wanted: &'static str,
    },
    /// The field has no order.
    #[error("{0} has no ranges, only values: write one, with * and ? where any text is meant")]
    NoRange(&'static str),
    /// The ends are of two families.
    #[error("the range of {0} goes from an address of IPv4 to one of IPv6, or back: ask for each by itself")]
    Families(&'static str),
    /// The range is reversed or empty.
    #[error("the range {range} of {field} is reversed or empty: the lower end comes first")]
    Reversed {
        /// The field.
        field: &'static str,
        /// The range.
        range: String,
    },
}

#[cfg(test)]
mod tests;
