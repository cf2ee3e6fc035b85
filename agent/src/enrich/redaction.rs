//! Takes secrets out of command lines before they are written down, and counts what it took by which rule.
//!
//! Pure, and by hand: looks at what options and variables are called, at the habits of programs that take a secret in a
//! short option or in a certain place, and at what tokens look like. Errs towards hiding where the name says secret, and
//! leaves everything else as it is, so that an analyst can still read what was run. Doing it twice changes nothing more.
//!
//! What is built in cannot be turned off; rules of one's own ([`OwnRule`]) add to it.

mod hidden;
mod names;
mod own;
mod programs;
mod rules;
mod shell;
mod text;
mod tokens;

use hidden::Hidden;
use names::names_a_secret;
pub use own::{OWN_RULES_MAX, OwnRule, OwnRuleError};
use programs::{Habit, Habits};
use rules::By;
pub use rules::{Redactions, Rule};

/// What stands in the place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Command lines within command lines (`sh -c '…'`, `ssh host '…'`) are followed this deep.
const DEPTH_MAX: usize = 3;

/// Redacts command lines, by the rules that are built in and those that were added.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    own: Vec<OwnRule>,
    redactions: Redactions,
}

/// What the words so far say of the next one.
#[derive(Clone, Copy, Debug)]
struct Pending {
    hidden: Hidden,
    by: By,
    /// What looks like an option, or belongs to the shell, is meant as that.
    word_only: bool,
}

impl Redactor {
    /// One that has these rules, too. What is said twice counts once.
    ///
    /// # Errors
    /// When there are more than [`OWN_RULES_MAX`].
    pub fn new(own: Vec<OwnRule>) -> Result<Self, OwnRuleError> {
        let mut rules: Vec<OwnRule> = Vec::new();
        own.into_iter().for_each(|rule| {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        });
        if rules.len() > OWN_RULES_MAX {
            return Err(OwnRuleError::TooMany(rules.len()));
        }
        Ok(Self { own: rules, redactions: Redactions::default() })
    }

    /// The rules that were added, in the order in which [`Redactions::own`] counts them.
    pub fn own_rules(&self) -> &[OwnRule] {
        &self.own
    }

    /// How many secrets were hidden so far, by rule.
    pub fn redactions(&self) -> Redactions {
        self.redactions
    }

    /// Replaces the secrets in `arguments`, the program's own name first, with [`REDACTED`].
    pub fn redact(&mut self, arguments: &mut [String]) {
        self.redact_words(arguments, 0);
    }

    fn redact_words(&mut self, words: &mut [String], depth: usize) {
        if depth > 0 {
            self.redact_piped(words);
        }
        let mut habits = Habits::default();
        let mut pending: Option<Pending> = None;
        let mut is_command_line = false;
        for word in words {
            let is_key_id = tokens::is_key_id(word);
            let mut is_taken = false;
            match pending.take() {
                Some(next) if next.takes(word, depth) => {
                    self.hide(word, next.hidden, next.by);
                    is_taken = true;
                }
                _ if is_command_line && word.contains(' ') && !word.starts_with('-') => {
                    self.redact_text_and_words(word, depth);
                }
                _ => pending = self.redact_word(word, &habits, depth),
            }
            if is_key_id && pending.is_none() {
                pending = Some(Pending::by(Hidden::AfterKeyId, Rule::TokenShape));
            }
            is_command_line = takes_command_line(word);
            habits.note(word, is_taken, &self.own);
        }
    }

    /// Redacts one word, and says what it makes of the next.
    fn redact_word(&mut self, word: &mut String, habits: &Habits, depth: usize) -> Option<Pending> {
        match habits.find(word, &self.own) {
            Some((Habit::Next { hidden, word_only }, by)) => return Some(Pending { hidden, by, word_only }),
            Some((Habit::From(start, hidden), by)) => {
                let mut value = word.split_off(start);
                self.hide(&mut value, hidden, by);
                word.push_str(&value);
                return None;
            }
            None => {}
        }
        if let Some((start, hidden, by)) = self.value_of_secret_option(word) {
            let mut value = word.split_off(start);
            self.hide(&mut value, hidden, by);
            word.push_str(&value);
            return None;
        }
        if let Some((hidden, by)) = self.secret_option(word) {
            return Some(Pending { hidden, by, word_only: false });
        }
        if text::is_secret_header(word) {
            text::redact_header(self, word);
            return None;
        }
        self.redact_text_and_words(word, depth);
        None
    }

    fn redact_text_and_words(&mut self, word: &mut String, depth: usize) {
        tokens::redact_private_keys(self, word);
        if depth < DEPTH_MAX && word.contains(char::is_whitespace) {
            self.redact_command_line(word, depth + 1);
        }
        text::redact_text(self, word);
    }

    /// A command line in one word: its words one by one, and everything between them as it was.
    fn redact_command_line(&mut self, line: &mut String, depth: usize) {
        let spans = shell::word_spans(line);
        let mut words: Vec<String> =
            spans.iter().map(|span| shell::unquoted(&line[span.clone()]).to_owned()).collect();
        let before = words.clone();
        self.redact_words(&mut words, depth);
        let changed =
            spans.iter().zip(before.iter().zip(&words)).filter(|(_, (before, after))| before != after);
        for (span, (before, after)) in changed.rev() {
            let inside = span.start + line[span.clone()].find(before.as_str()).unwrap_or(0);
            line.replace_range(inside..inside + before.len(), after);
        }
    }

    /// What is given to a program that reads a secret: `echo … | sudo -S`.
    fn redact_piped(&mut self, words: &mut [String]) {
        for (index, hidden) in shell::piped(words) {
            self.hide(&mut words[index], hidden, By::Rule(Rule::PipedSecret));
        }
    }

    fn hide(&mut self, value: &mut String, hidden: Hidden, by: By) {
        match hidden {
            Hidden::Header => text::redact_header(self, value),
            hidden => {
                if let Some(secret) = hidden.of(value) {
                    self.hide_range(value, secret, by);
                }
                // The rest is a text like any other.
                if hidden != Hidden::Whole {
                    text::redact_text(self, value);
                }
            }
        }
    }

    /// An empty value hides nothing, and that it is empty is worth knowing. What is hidden already counts no more.
    fn hide_range(&mut self, word: &mut String, range: std::ops::Range<usize>, by: By) {
        let is_secret = !range.is_empty() && word.get(range.clone()).is_some_and(|value| value != REDACTED);
        if is_secret {
            word.replace_range(range, REDACTED);
            self.redactions.note(by);
        }
    }

    /// `--password`, `-Password`, `aws configure set aws_secret_access_key`: the secret is the next word.
    fn secret_option(&self, word: &str) -> Option<(Hidden, By)> {
        if let Some(own) = self.own.iter().position(|own| own.is_option(word)) {
            return Some((Hidden::Whole, By::Own(own)));
        }
        let by = By::Rule(Rule::SecretOption);
        if word.starts_with("aws_") || word.contains(".aws_") {
            return Some((names_a_secret(word)?, by));
        }
        let name = word.trim_start_matches('-');
        if word.len() > 2 && name.len() < word.len() { Some((names_a_secret(name)?, by)) } else { None }
    }

    /// Where the value begins in `--password=…`, `-Dname.password=…`, `/password:…`, `-Password:…`, `PASSWORD=…`, and what
    /// is secret of it.
    fn value_of_secret_option(&self, word: &str) -> Option<(usize, Hidden, By)> {
        let is_option = word.starts_with(['-', '/']);
        let separator = word.find(|c| c == '=' || (is_option && c == ':'))?;
        let (start, written) = (separator + 1, &word[..separator]);
        if let Some(own) = self.own.iter().position(|own| own.is_option(written) || own.is_variable(written))
        {
            return Some((start, Hidden::Whole, By::Own(own)));
        }
        let rule = if is_option { Rule::SecretOption } else { Rule::SecretVariable };
        let hidden = names_a_secret(written.trim_start_matches(['-', '/']))?;
        Some((start, hidden, By::Rule(rule)))
    }

    /// What is secret of the value of a field of this name, if it is.
    fn field(&self, name: &str) -> Option<(Hidden, By)> {
        if let Some(own) = self.own.iter().position(|own| own.is_variable(name) || own.is_option(name)) {
            return Some((Hidden::Whole, By::Own(own)));
        }
        Some((names_a_secret(name.trim_start_matches('-'))?, By::Rule(Rule::SecretField)))
    }
}

impl Pending {
    const fn by(hidden: Hidden, rule: Rule) -> Self {
        Self { hidden, by: By::Rule(rule), word_only: true }
    }

    /// Whether `word` is the value that is waited for. What follows an option that asks for the secret, or whose secret is
    /// elsewhere, is the next option; and what is computed by PowerShell is a command.
    fn takes(self, word: &str, depth: usize) -> bool {
        if self.hidden == Hidden::AfterKeyId {
            return self.hidden.of(word).is_some();
        }
        if self.word_only {
            return !shell::is_operator(word) && !word.starts_with(['-', '/']) && word != "*";
        }
        let is_computed = depth > 0 && word.starts_with('(');
        !is_option(word) && !is_computed
    }
}

/// As in `sh -c`. There `PASSWORD=x command` is more than a variable, and the command is worth keeping.
fn takes_command_line(word: &str) -> bool {
    matches!(word, "-c" | "-lc" | "-ic" | "/c" | "/C" | "-Command" | "-command" | "--command" | "eval")
}

fn is_option(word: &str) -> bool {
    word.starts_with("--") || (word.len() == 2 && word.starts_with('-'))
}

#[cfg(test)]
mod tests;
