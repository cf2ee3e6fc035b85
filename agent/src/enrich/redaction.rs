//! Takes secrets out of command lines before they are written down.
//!
//! Pure, and by hand: looks at what options and variables are called, at the habits of programs that take a secret in a
//! short option, and at what tokens look like. Errs towards hiding where the name says secret, and leaves everything
//! else as it is, so that an analyst can still read what was run. Doing it twice changes nothing more.

mod programs;
mod text;

use programs::{Habit, Hidden};

/// What stands in the place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Command lines within command lines (`sh -c '…'`, `ssh host '…'`) are followed this deep.
const DEPTH_MAX: usize = 3;

/// Replaces the secrets in `arguments`, the program's own name first, with [`REDACTED`].
pub fn redact(arguments: &mut [String]) {
    redact_words(arguments, 0);
}

fn redact_words(words: &mut [String], depth: usize) {
    let mut habits = programs::Habits::default();
    // What the word before said about this one.
    let mut pending = None;
    let mut is_command_line = false;
    for word in words {
        match pending.take() {
            Some(hidden) if !is_option(word) => hide(word, hidden),
            _ if is_command_line && word.contains(' ') && !word.starts_with('-') => {
                redact_text_and_words(word, depth);
            }
            _ => pending = redact_word(word, &habits, depth),
        }
        is_command_line = takes_command_line(word);
        habits.note(word);
    }
}

/// Redacts one word, and says what it makes of the next.
fn redact_word(word: &mut String, habits: &programs::Habits, depth: usize) -> Option<Hidden> {
    match habits.find(word) {
        Some(Habit::Next(hidden)) => return Some(hidden),
        Some(Habit::From(start, hidden)) => {
            let mut value = word.split_off(start);
            hide(&mut value, hidden);
            word.push_str(&value);
            return None;
        }
        None => {}
    }
    if let Some(start) = value_of_secret_option(word) {
        hide_from(word, start);
        return None;
    }
    if is_secret_option(word) {
        return Some(Hidden::Whole);
    }
    redact_text_and_words(word, depth);
    None
}

fn redact_text_and_words(word: &mut String, depth: usize) {
    if depth < DEPTH_MAX && word.contains(char::is_whitespace) {
        redact_command_line(word, depth + 1);
    }
    text::redact_text(word);
}

/// As in `sh -c`. There `PASSWORD=x command` is more than a variable, and the command is worth keeping.
fn takes_command_line(word: &str) -> bool {
    matches!(word, "-c" | "-lc" | "-ic" | "/c" | "/C" | "-Command" | "-command" | "--command" | "eval")
}

/// A command line in one word: its words one by one, and everything between them as it was.
fn redact_command_line(line: &mut String, depth: usize) {
    let spans = text::word_spans(line);
    let mut words: Vec<String> =
        spans.iter().map(|span| text::unquoted(&line[span.clone()]).to_owned()).collect();
    let before = words.clone();
    redact_words(&mut words, depth);
    let changed = spans.iter().zip(before.iter().zip(&words)).filter(|(_, (before, after))| before != after);
    for (span, (before, after)) in changed.rev() {
        let inside = span.start + line[span.clone()].find(before.as_str()).unwrap_or(0);
        line.replace_range(inside..inside + before.len(), after);
    }
}

fn hide(value: &mut String, hidden: Hidden) {
    match hidden {
        Hidden::Whole => hide_from(value, 0),
        Hidden::AfterUser(separator) => {
            if let Some(at) = value.find(separator) {
                hide_from(value, at + 1);
            }
        }
        Hidden::Header => text::redact_header(value),
        Hidden::Cookie => {
            // Without an equals sign it is the name of a file.
            if value.contains('=') {
                hide_from(value, 0);
            }
        }
    }
}

/// An empty value hides nothing, and that it is empty is worth knowing.
fn hide_from(word: &mut String, start: usize) {
    if start < word.len() {
        word.truncate(start);
        word.push_str(REDACTED);
    }
}

/// What follows an option that asks for the secret, or whose secret is elsewhere, is the next option.
fn is_option(word: &str) -> bool {
    word.starts_with("--") || (word.len() == 2 && word.starts_with('-'))
}

/// `--password`, `-Password`, `aws configure set aws_secret_access_key`: the secret is the next word.
fn is_secret_option(word: &str) -> bool {
    if word.starts_with("aws_") {
        return names_a_secret(word);
    }
    let name = word.trim_start_matches('-');
    word.len() > 2 && name.len() < word.len() && names_a_secret(name)
}

/// Where the value begins in `--password=…`, `-Dname.password=…`, `/password:…`, `PASSWORD=…`.
fn value_of_secret_option(word: &str) -> Option<usize> {
    let slash = word.starts_with('/');
    let separator = word.find(|c| c == '=' || (slash && c == ':'))?;
    let name = word[..separator].trim_start_matches(['-', '/']);
    names_a_secret(name).then_some(separator + 1)
}

/// Whether an option, a variable, a field or a header of this name holds a secret: `db_password`, `PGPASSWORD`,
/// `apiKey`, `X-Auth-Token`; but not `password-file`, `no-password` or `tokenizer`.
fn names_a_secret(name: &str) -> bool {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c)) {
        return false;
    }
    let words = words_of(name);
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    let is_about_it = |word: &String| {
        const ABOUT: [&str; 16] = [
            "file", "path", "dir", "stdin", "name", "id", "ttl", "url", "uri", "length", "type", "expiry",
            "expires", "prompt", "env", "fd",
        ];
        ABOUT.contains(&word.as_str())
    };
    if words.last().is_some_and(is_about_it) || matches!(word(0), "no" | "ask" | "prompt") {
        return false;
    }
    words.last().is_some_and(|word| is_secret_at_the_end(word))
        || (0..words.len())
            .any(|index| is_secret_word(word(index)) || is_secret_key(word(index), word(index + 1)))
}

fn is_secret_word(word: &str) -> bool {
    const ENDINGS: [&str; 9] =
        ["password", "passwd", "passphrase", "secret", "token", "apikey", "storepass", "keypass", "passcode"];
    ENDINGS.iter().any(|ending| word.ends_with(ending))
}

/// As in `--db-pass`, unlike `--pass-through`.
fn is_secret_at_the_end(word: &str) -> bool {
    const WHOLE: [&str; 10] = [
        "authorization",
        "bearer",
        "credential",
        "credentials",
        "jwt",
        "pass",
        "pswd",
        "pwd",
        "secrets",
        "sig",
    ];
    WHOLE.contains(&word)
}

fn is_secret_key(first: &str, second: &str) -> bool {
    const KINDS: [&str; 8] =
        ["api", "access", "secret", "auth", "account", "signing", "encryption", "master"];
    second == "key" && KINDS.contains(&first)
}

/// `dbPassword`, `DB_PASSWORD` and `db-password` are the same words, in lower case.
fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for c in name.chars() {
        let starts_word = c.is_ascii_uppercase() && after_lower;
        if (starts_word || !c.is_ascii_alphanumeric()) && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut()
            && c.is_ascii_alphanumeric()
        {
            word.push(c.to_ascii_lowercase());
        }
        after_lower = c.is_ascii_lowercase();
    }
    words.retain(|word| !word.is_empty());
    // The working directory, in every environment there is.
    if name == "PWD" || name == "OLDPWD" { Vec::new() } else { words }
}

#[cfg(test)]
mod tests;
