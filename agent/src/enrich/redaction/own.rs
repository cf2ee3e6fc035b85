//! Rules of one's own: what an administrator adds to those that are built in.

use std::{fmt, str::FromStr};

/// So many can be added.
pub const OWN_RULES_MAX: usize = 32;
/// None is longer.
const OWN_RULE_BYTES_MAX: usize = 128;

/// A rule that was added, as it was written:
///
/// - `--corp-pin`, `-pin` or `/pin`: an option whose value is secret, as the next word or behind `=` or `:`;
/// - `CORP_PIN=`: a variable, or a field in a text, whose value is secret;
/// - `corptool -k`: an option of one program. One letter (`-k`) has its value behind it, with or without a space.
///
/// Upper and lower case are the same, and so are one dash and two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRule {
    text: String,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Option(String),
    Variable(String),
    OfProgram { program: String, option: String },
}

impl OwnRule {
    /// Whether `word` is the option, without its value.
    pub(super) fn is_option(&self, word: &str) -> bool {
        matches!(&self.what, What::Option(option) if is_same_option(option, word))
    }

    /// Whether a variable of this name is meant.
    pub(super) fn is_variable(&self, name: &str) -> bool {
        matches!(&self.what, What::Variable(variable) if variable.eq_ignore_ascii_case(name))
    }

    /// Whether it is about this program, named in lower case, without its path and `.exe`.
    pub(super) fn is_of_program(&self, name: &str) -> bool {
        matches!(&self.what, What::OfProgram { program, .. } if program == name)
    }

    /// Where the value begins in `word`, a word of its program: behind its end where it is the next word.
    pub(super) fn value_in(&self, word: &str) -> Option<usize> {
        let What::OfProgram { option, .. } = &self.what else { return None };
        let separator = word.find(['=', ':']).unwrap_or(word.len());
        if is_same_option(option, &word[..separator]) {
            return Some((separator + 1).min(word.len()));
        }
        let is_letter = option.len() == 2;
        (is_letter && word.starts_with(option.as_str())).then_some(option.len())
    }
}

fn is_same_option(option: &str, word: &str) -> bool {
    let name = |option: &str| option.trim_start_matches('-').len();
    let (one, other) = (&option[option.len() - name(option)..], &word[word.len() - name(word)..]);
    let are_options = word.starts_with(['-', '/']) && option.starts_with('/') == word.starts_with('/');
    are_options && one.eq_ignore_ascii_case(other)
}

impl fmt::Display for OwnRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for OwnRule {
    type Err = OwnRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let text = words.join(" ");
        if text.len() > OWN_RULE_BYTES_MAX {
            return Err(OwnRuleError::TooLong(text.chars().take(32).collect()));
        }
        let what = match words.as_slice() {
            [option] if option.starts_with(['-', '/']) => What::Option(option_of(option, &text, false)?),
            [variable] => What::Variable(variable_of(variable, &text)?),
            [program, option] => What::OfProgram {
                program: program_of(program, &text)?,
                option: option_of(option, &text, true)?,
            },
            _ => return Err(OwnRuleError::Nonsense(text)),
        };
        Ok(Self { text, what })
    }
}

fn option_of(option: &str, rule: &str, has_program: bool) -> Result<String, OwnRuleError> {
    if let Some((name, _)) = option.split_once(['=', ':']) {
        return Err(OwnRuleError::Value(name.to_owned()));
    }
    let name = option.trim_start_matches(['-', '/']);
    let is_option = name.len() < option.len() && !name.is_empty() && name.chars().all(is_of_a_name);
    match () {
        () if !is_option => Err(OwnRuleError::Nonsense(rule.to_owned())),
        () if name.chars().count() == 1 && !has_program => Err(OwnRuleError::OneLetter(rule.to_owned())),
        () => Ok(option.to_owned()),
    }
}

fn variable_of(variable: &str, rule: &str) -> Result<String, OwnRuleError> {
    match variable.split_once('=') {
        Some((name, value)) if !value.is_empty() => Err(OwnRuleError::Value(name.to_owned())),
        Some((name, _)) if !name.is_empty() && name.chars().all(is_of_a_name) => Ok(name.to_owned()),
        _ => Err(OwnRuleError::Nonsense(rule.to_owned())),
    }
}

fn program_of(program: &str, rule: &str) -> Result<String, OwnRuleError> {
    let name = program.to_lowercase();
    let name = name.strip_suffix(".exe").unwrap_or(&name);
    if name.contains(['/', '\\']) {
        return Err(OwnRuleError::Path(rule.to_owned()));
    }
    let is_name =
        !name.is_empty() && !name.starts_with('-') && name.chars().all(|c| is_of_a_name(c) || c == '+');
    if is_name { Ok(name.to_owned()) } else { Err(OwnRuleError::Nonsense(rule.to_owned())) }
}

fn is_of_a_name(c: char) -> bool {
    c.is_alphanumeric() || "-_.".contains(c)
}

/// A rule that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnRuleError {
    /// It is of no kind that there is.
    #[error(
        "`{0}` is no rule: write an option (`--corp-pin`), a variable (`CORP_PIN=`), or a program and its option (`corptool -k`)"
    )]
    Nonsense(String),
    /// It has a value, which is not repeated here.
    #[error("a rule for `{0}` has a value: write the option (`--corp-pin`) or variable (`CORP_PIN=`) alone")]
    Value(String),
    /// Half of all programs have such an option.
    #[error("`{0}` is an option of many programs: write the program before it, as in `corptool {0}`")]
    OneLetter(String),
    /// It names a program by its path.
    #[error("`{0}` names a path: write the program's name alone, wherever it is")]
    Path(String),
    /// It is longer than anything that is meant.
    #[error(
        "`{0}…` is longer than {OWN_RULE_BYTES_MAX} bytes: write one option, variable or program and option"
    )]
    TooLong(String),
    /// They are more than anybody can oversee.
    #[error("{0} rules are given, and at most {OWN_RULES_MAX} are taken: leave some out")]
    TooMany(usize),
}
