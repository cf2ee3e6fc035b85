//! What a shell makes of a line: words, quotes, pipes.

use std::ops::Range;

use super::hidden::Hidden;

/// The words of a command line as a shell would cut it, quotes included.
pub(super) fn word_spans(line: &str) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut start = None;
    let mut quote = None;
    for (at, c) in line.char_indices() {
        match (quote, start) {
            (None, Some(began)) if c.is_whitespace() => {
                spans.push(began..at);
                start = None;
            }
            (None, None) if c.is_whitespace() => {}
            _ => {
                start = start.or(Some(at));
                if quote == Some(c) {
                    quote = None;
                } else if quote.is_none() && matches!(c, '"' | '\'') {
                    quote = Some(c);
                }
            }
        }
    }
    spans.extend(start.map(|began| began..line.len()));
    // A word that is the whole line would be cut for ever.
    if spans.len() == 1 && !matches!(line.chars().next(), Some('"' | '\'')) { Vec::new() } else { spans }
}

/// Without the quotes around it.
pub(super) fn unquoted(word: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inside) = word.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inside;
        }
    }
    word
}

/// Whether it is the shell's: ends a command, or names where its output goes.
pub(super) fn is_operator(word: &str) -> bool {
    matches!(word, "|" | "||" | "&" | "&&" | ";" | "|&" | ")" | "}")
        || word.starts_with(['<', '>'])
        || is_numbered(word)
}

/// `2>&1`
fn is_numbered(word: &str) -> bool {
    word.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with('>')
}

/// What programs that read a secret are given: by a pipe from `echo` or `printf`, or as a here-string. Which words, and what
/// of them.
pub(super) fn piped(words: &[String]) -> Vec<(usize, Hidden)> {
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        match word.as_str() {
            "|" => {
                let begin =
                    words[..at].iter().rposition(|word| is_operator(word)).map_or(0, |before| before + 1);
                let Some(hidden) = read_by(command(&words[at + 1..])) else { continue };
                let says = words.get(begin).is_some_and(|word| matches!(name(word), "echo" | "printf"));
                let is_said = |word: &str| !word.starts_with(['-', '$', '<', '>']) && !word.contains('%');
                let said = (begin + 1..at).filter(|at| says && is_said(&words[*at]));
                found.extend(said.map(|at| (at, hidden)));
            }
            "<<<" => {
                let begin =
                    words[..at].iter().rposition(|word| is_operator(word)).map_or(0, |before| before + 1);
                let Some(hidden) = read_by(&words[begin..at]) else { continue };
                found.extend(
                    words.get(at + 1).filter(|word| !word.starts_with('$')).map(|_| (at + 1, hidden)),
                );
            }
            _ => {}
        }
    }
    found
}

/// Up to where another command begins.
fn command(words: &[String]) -> &[String] {
    let end = words.iter().position(|word| is_operator(word)).unwrap_or(words.len());
    &words[..end]
}

/// What this command reads from its standard input, if that is a secret.
fn read_by(command: &[String]) -> Option<Hidden> {
    let has = |wanted: &str| command.iter().any(|word| word == wanted);
    let runs = |wanted: &str| command.iter().any(|word| name(word) == wanted);
    let reads_by_sudo = || {
        let is_set = |word: &String| word.starts_with('-') && !word.starts_with("--") && word.contains('S');
        runs("sudo") && command.iter().any(is_set)
    };
    if runs("chpasswd") {
        return Some(Hidden::AfterUser(':'));
    }
    let reads = has("--password-stdin") || has("--with-token") || has("--passwd-on-stdin");
    let reads =
        reads || (runs("passwd") && has("--stdin")) || runs("smbpasswd") || runs("kinit") || reads_by_sudo();
    reads.then_some(Hidden::Whole)
}

fn name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}
