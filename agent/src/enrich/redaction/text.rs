//! Secrets within a text: in addresses, in headers, after a name and an equals sign, and by what they look like.

use std::ops::Range;

use super::{REDACTED, names_a_secret};

/// Redacts whatever of `text` is a secret by its own looks.
pub(super) fn redact_text(text: &mut String) {
    redact_userinfo(text);
    redact_fields(text);
    redact_schemes(text);
    redact_tokens(text);
}

/// `Authorization: …`, `X-Api-Key: …`, `Cookie: …`: the name stays.
pub(super) fn redact_header(header: &mut String) {
    let Some(colon) = header.find(':') else { return };
    let name = header[..colon].trim().to_ascii_lowercase();
    if !names_a_secret(&name) && !matches!(name.as_str(), "cookie" | "proxy-authorization" | "x-auth") {
        redact_text(header);
        return;
    }
    let value = header.len() - header[colon + 1..].trim_start().len();
    // The scheme says how, not what.
    let scheme = ["basic ", "bearer ", "token ", "digest ", "negotiate "]
        .iter()
        .find(|scheme| starts_with_ignoring_case(&header[value..], scheme));
    super::hide_from(header, value + scheme.map_or(0, |scheme| scheme.len()));
}

/// `scheme://user:secret@host`: the user stays. A token in the place of the user is found by its looks.
fn redact_userinfo(text: &mut String) {
    let mut from = 0;
    while let Some(at) = text[from..].find("://") {
        let start = from + at + 3;
        let end = text[start..].find(|c: char| c.is_whitespace() || "/?#\"'<>".contains(c));
        let end = end.map_or(text.len(), |end| start + end);
        let authority = &text[start..end];
        let secret = authority.rfind('@').and_then(|at| Some(authority[..at].find(':')? + 1..at));
        // Not from its end: another address may follow right behind it.
        from = start;
        if let Some(secret) = secret.filter(|secret| !secret.is_empty()) {
            text.replace_range(start + secret.start..start + secret.end, REDACTED);
            from = start + secret.start + REDACTED.len();
        }
    }
}

/// `password=…`, `"token": "…"`, in a query, a connection string, a form, a line of shell.
fn redact_fields(text: &mut String) {
    let not_of_a_name = |c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c));
    let mut from = 0;
    while let Some(at) = text[from..].find(['=', ':']) {
        let separator = from + at;
        from = separator + 1;
        let before = text[..separator].trim_end_matches(['"', '\'', '\\']);
        let is_quoted = before.len() < separator;
        let name_start = before.rfind(not_of_a_name);
        let name = name_start.map_or(before, |at| before[at..].trim_start_matches(not_of_a_name));
        let is_field = text[separator..].starts_with('=') || is_quoted;
        if !is_field || !names_a_secret(name.trim_start_matches('-')) {
            continue;
        }
        let rest = &text[from..];
        let start = from + rest.len() - rest.trim_start_matches([' ', '"', '\'', '\\']).len();
        let end = text[start..].find(|c: char| c.is_whitespace() || "&;,\"'\\)}|".contains(c));
        let end = end.map_or(text.len(), |end| start + end);
        if start < end {
            text.replace_range(start..end, REDACTED);
            from = start + REDACTED.len();
        }
    }
}

/// `Bearer …`, and what follows `Authorization:`.
fn redact_schemes(text: &mut String) {
    for name in
        ["bearer ", "authorization: basic ", "authorization: token ", "private-token: ", "x-api-key: "]
    {
        let mut from = 0;
        while let Some(start) = find_ignoring_case(&text[from..], name).map(|at| from + at + name.len()) {
            let end = text[start..].find(|c: char| c.is_whitespace() || "\"',;)".contains(c));
            let end = end.map_or(text.len(), |end| start + end);
            from = start;
            if start < end {
                text.replace_range(start..end, REDACTED);
                from = start + REDACTED.len();
            }
        }
    }
}

/// Keys and tokens that say by their first letters what they are.
fn redact_tokens(text: &mut String) {
    // With the least that must follow.
    const PREFIXES: [(&str, usize); 18] = [
        ("AKIA", 16),
        ("ASIA", 16),
        ("AIza", 30),
        ("ghp_", 30),
        ("gho_", 30),
        ("ghu_", 30),
        ("ghs_", 30),
        ("ghr_", 30),
        ("github_pat_", 30),
        ("glpat-", 16),
        ("xoxb-", 16),
        ("xoxp-", 16),
        ("xoxa-", 16),
        ("hvs.", 20),
        ("sk-", 20),
        ("sk_live_", 16),
        ("npm_", 30),
        ("eyJ", 40),
    ];
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let mut from = 0;
    while let Some(start) = text[from..].find(is_part).map(|at| from + at) {
        let end = text[start..].find(|c: char| !is_part(c)).map_or(text.len(), |end| start + end);
        let word = &text[start..end];
        let is_token = PREFIXES.iter().any(|(prefix, rest)| {
            word.len() >= prefix.len() + rest && word.starts_with(prefix) && has_its_shape(word, prefix)
        });
        from = end;
        if is_token {
            text.replace_range(start..end, REDACTED);
            from = start + REDACTED.len();
        }
    }
}

fn has_its_shape(word: &str, prefix: &str) -> bool {
    match prefix {
        "AKIA" | "ASIA" => {
            word.len() == 20 && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
        }
        // A signed token has three parts.
        "eyJ" => word.matches('.').count() == 2,
        _ => true,
    }
}

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

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn find_ignoring_case(text: &str, wanted: &str) -> Option<usize> {
    text.char_indices().map(|(at, _)| at).find(|at| starts_with_ignoring_case(&text[*at..], wanted))
}
