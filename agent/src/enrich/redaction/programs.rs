//! The habits of programs that take a secret in a short option, or in a certain place, or a user and a secret in one word.

use std::{collections::HashMap, sync::LazyLock};

use super::{Rule, hidden::Hidden, own::OwnRule, rules::By, shell, text};

mod table;

use table::PROGRAMS;

/// What a word of a program with habits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    /// Its value is the next word; only a plain one, if so.
    Next { hidden: Hidden, word_only: bool },
    /// Its value begins here, in the same word.
    From(usize, Hidden),
}

/// How a program takes a secret.
#[derive(Clone, Copy)]
enum Takes {
    /// `-pVALUE` only: `-p` alone asks for it, or means something else.
    Attached(&'static str),
    /// `-p VALUE` only.
    Apart(&'static str),
    /// `-p VALUE` or `-pVALUE`.
    Either(&'static str),
    /// `--option VALUE` or `--option=VALUE`.
    Long(&'static str),
    /// As the word behind one that begins so.
    Behind(&'static str),
    /// As this word that is no option, counted from 1.
    Nth(u8),
    /// As any word that is no option.
    Each,
    /// As the word behind one that names a secret: `password VALUE`.
    Named,
}

use Takes::{Apart, Attached, Behind, Each, Either, Long, Named, Nth};

/// One way in which a program takes a secret, and which.
struct Way {
    takes: Takes,
    hidden: Hidden,
    /// Only after one of these words, and counted from there; empty: at once.
    after: &'static [&'static str],
}

struct Program {
    names: &'static [&'static str],
    /// Options without a value that may stand before one with a value, in the same word: `-sSu user:secret`.
    bundled: &'static str,
    ways: &'static [Way],
}

/// By each of its names.
static BY_NAME: LazyLock<HashMap<&'static str, &'static Program>> = LazyLock::new(|| {
    PROGRAMS.iter().flat_map(|program| program.names.iter().map(move |name| (*name, program))).collect()
});
/// No name of a program in the table is longer, nor any of one's own that is written as a program's.
const NAME_BYTES_MAX: usize = 64;

/// The program that the words so far run. It need not be the first word: `sudo`, `env`, `timeout` and `docker exec` run
/// others, so the last word that names one counts.
#[derive(Default)]
pub(super) struct Habits {
    program: Option<&'static Program>,
    /// Its ways that hold by now, bit by bit.
    held: u64,
    /// Words since then that are no options.
    position: u8,
    /// The rules of one's own whose program was named, bit by bit.
    own: u32,
    is_begun: bool,
}

impl Habits {
    /// Takes in the next word; whether it was a value that another one waited for.
    pub(super) fn note(&mut self, word: &str, is_taken: bool, own: &[OwnRule]) {
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        if is_taken {
            return;
        }
        let mut lower = [0; NAME_BYTES_MAX];
        let name = program_name(word, is_first, &mut lower);
        self.own |= own
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.is_of_program(name))
            .map(|(at, _)| 1 << at)
            .sum::<u32>();
        if let Some(program) = BY_NAME.get(name) {
            self.enter(program);
        } else if shell::is_operator(word) {
            self.position = u8::MAX;
        } else {
            self.count(word);
        }
    }

    fn enter(&mut self, program: &'static Program) {
        self.program = Some(program);
        self.position = 0;
        self.held = bits(program, |way| way.after.is_empty());
    }

    fn count(&mut self, word: &str) {
        let Some(program) = self.program else { return };
        let begins = bits(program, |way| way.after.iter().any(|after| word.eq_ignore_ascii_case(after)));
        if begins & !self.held != 0 {
            self.held |= begins;
            self.position = 0;
        } else if !word.starts_with('-') {
            self.position = self.position.saturating_add(1);
        }
    }

    /// What `word` is by the program's habits, and which rule says so.
    pub(super) fn find(&self, word: &str, own: &[OwnRule]) -> Option<(Habit, By)> {
        self.find_own(word, own).or_else(|| {
            let program = self.program?;
            let ways = program.ways.iter().enumerate().filter(|(at, _)| self.held & (1 << at) != 0);
            let habit = ways.map(|(_, way)| way).find_map(|way| self.habit(way, program, word))?;
            Some((habit, By::Rule(Rule::ProgramHabit)))
        })
    }

    fn find_own(&self, word: &str, own: &[OwnRule]) -> Option<(Habit, By)> {
        if self.own == 0 {
            return None;
        }
        own.iter().enumerate().filter(|(at, _)| self.own & (1 << at) != 0).find_map(|(at, rule)| {
            let start = rule.value_in(word)?;
            let next = Habit::Next { hidden: Hidden::Whole, word_only: false };
            let habit = if start == word.len() { next } else { Habit::From(start, Hidden::Whole) };
            Some((habit, By::Own(at)))
        })
    }

    fn habit(&self, way: &Way, program: &Program, word: &str) -> Option<Habit> {
        let hidden = way.hidden;
        let next = |word_only| Some(Habit::Next { hidden, word_only });
        match way.takes {
            Attached(option) | Apart(option) | Either(option) | Long(option) => {
                let (start, rest) = option_of(word, option, program.bundled)?;
                match (way.takes, rest.chars().next()) {
                    (Apart(_) | Either(_) | Long(_), None) => next(false),
                    (Long(_), Some('=')) => Some(Habit::From(start + 1, hidden)),
                    (Attached(_), Some(_)) if is_port_mapping(rest) => None,
                    (Attached(_) | Either(_), Some(_)) => Some(Habit::From(start, hidden)),
                    _ => None,
                }
            }
            Behind(begin) => word
                .get(..begin.len())
                .filter(|part| part.eq_ignore_ascii_case(begin))
                .and_then(|_| next(true)),
            Named => {
                let name = word.rsplit([':', '/']).next().unwrap_or(word);
                let is_one = super::names_a_secret(name).is_some() || name == "_auth";
                (is_one && !word.starts_with('-') && !word.contains('=')).then_some(())?;
                next(true)
            }
            Nth(wanted) => (self.position.checked_add(1) == Some(wanted) && is_plain(word))
                .then_some(Habit::From(0, hidden)),
            Each => {
                let name = word.split(':').next().filter(|name| name.len() < word.len());
                let is_header = || name.is_some_and(text::names_a_secret_header);
                let is_one = if hidden == Hidden::Header { is_header() } else { hidden.of(word).is_some() };
                (is_plain(word) && is_one).then_some(Habit::From(0, hidden))
            }
        }
    }
}

/// The ways of a program of which this is true, bit by bit.
fn bits(program: &Program, is: impl Fn(&Way) -> bool) -> u64 {
    program.ways.iter().enumerate().filter(|(_, way)| is(way)).map(|(at, _)| 1 << at).sum()
}

fn is_plain(word: &str) -> bool {
    !word.starts_with('-') && !shell::is_operator(word)
}

/// Where in `word` the value of `option` begins, if it is that option, and what stands there. Options that begin with a slash
/// are those of Windows, which does not care for case.
fn option_of<'a>(word: &'a str, option: &str, bundled: &str) -> Option<(usize, &'a str)> {
    if let Some(rest) = word.strip_prefix(option) {
        return Some((option.len(), rest));
    }
    let begin = word.get(..option.len())?;
    if option.starts_with('/') && begin.eq_ignore_ascii_case(option) {
        return Some((option.len(), &word[option.len()..]));
    }
    let letter = option.strip_prefix('-').filter(|letter| letter.len() == 1)?;
    let letters = word.strip_prefix('-').filter(|letters| letters.starts_with(|c| bundled.contains(c)))?;
    let at = letters.find(|c| !bundled.contains(c))?;
    let rest = letters[at..].strip_prefix(letter)?;
    Some((word.len() - rest.len(), rest))
}

/// The name of the program that `word` may name, in lower case; empty if it names none. A path that is no first word names a
/// program only where programs are: others are of data.
fn program_name<'a>(word: &str, is_first: bool, lower: &'a mut [u8; NAME_BYTES_MAX]) -> &'a str {
    let word = word.trim_start_matches(['(', '$', '{', '&', '`']);
    let (directory, name) =
        word.rsplit_once(['/', '\\']).map_or((None, word), |(directory, name)| (Some(directory), name));
    let name = name.strip_suffix(".exe").or_else(|| name.strip_suffix(".EXE")).unwrap_or(name);
    let is_program = is_first
        || word.len() > name.len() + directory.map_or(0, |directory| directory.len() + 1)
        || directory
            .is_none_or(|directory| ["bin", ".", "libexec"].iter().any(|end| directory.ends_with(end)));
    let Some(room) = lower.get_mut(..name.len()).filter(|_| is_program && name.is_ascii()) else { return "" };
    room.copy_from_slice(name.as_bytes());
    room.make_ascii_lowercase();
    std::str::from_utf8(room).unwrap_or_default()
}

/// `docker run --name mysql -p3306:3306` runs no mysql.
fn is_port_mapping(text: &str) -> bool {
    text.contains(':') && text.bytes().all(|b| b.is_ascii_digit() || b":.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_can_be_used_as_it_is_written() {
        let names: usize = PROGRAMS.iter().map(|program| program.names.len()).sum();
        assert_eq!(BY_NAME.len(), names, "a name stands twice");
        for program in &PROGRAMS {
            assert!(program.ways.len() < 64, "{:?}", program.names);
            for name in program.names {
                let mut lower = [0; NAME_BYTES_MAX];
                assert_eq!(program_name(name, false, &mut lower), *name);
            }
        }
    }

    #[test]
    fn a_path_names_a_program_where_programs_are() {
        let check = |word: &str, is_first: bool, name: &str| {
            let mut lower = [0; NAME_BYTES_MAX];
            assert_eq!(program_name(word, is_first, &mut lower), name, "{word}");
        };
        check("/opt/any/mysql", true, "mysql");
        check("/usr/bin/mysql", false, "mysql");
        check("./mysql", false, "mysql");
        check("C:\\Tools\\CURL.EXE", false, "curl");
        check("(ConvertTo-SecureString", false, "convertto-securestring");
        check("/etc/mysql", false, "");
        check("größe", false, "");
        check(&"x".repeat(100), true, "");
    }
}
