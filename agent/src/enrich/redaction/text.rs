//! Secrets within a text: in addresses, in headers, after a name and an equals sign.

use std::ops::Range;

use super::{
    Redactor, Rule,
    names::names_a_secret,
    rules::By,
    tokens::{redact_addresses, redact_tokens},
};

/// Redacts whatever of `text` is a secret by its own looks, and by what is written before it.
pub(super) fn redact_text(redactor: &mut Redactor, text: &mut String) {
    redact_userinfo(redactor, text);
    redact_schemes(redactor, text);
    redact_fields(redactor, text);
    redact_addresses(redactor, text);
    redact_tokens(redactor, text);
}

/// Says how a secret is used, and not what it is.
const SCHEMES: [&str; 7] =
    ["basic ", "bearer ", "token ", "digest ", "negotiate ", "apikey ", "aws4-hmac-sha256 "];

/// Whether a whole word is a header that holds a secret, whoever it is for: `X-Auth-Token: …`.
pub(super) fn is_secret_header(word: &str) -> bool {
    let Some((name, value)) = word.split_once(':') else { return false };
    let is_name = name.contains('-') || starts_with_ignoring_case(name, "authorization") || is_cookie(name);
    value.starts_with(' ') && is_name && names_a_secret_header(name)
}

/// Whether a header of this name holds a secret.
pub(super) fn names_a_secret_header(name: &str) -> bool {
    let is_special = name.eq_ignore_ascii_case("proxy-authorization") || name.eq_ignore_ascii_case("x-auth");
    names_a_secret(name).is_some() || is_special || is_cookie(name)
}

/// `Authorization: …`, `X-Api-Key: …`, `Cookie: …`: the name stays.
pub(super) fn redact_header(redactor: &mut Redactor, header: &mut String) {
    let name = header.split(':').next().unwrap_or_default();
    let colon = name.len();
    if colon == header.len() || !names_a_secret_header(name.trim()) {
        redact_text(redactor, header);
        return;
    }
    let value = header.len() - header[colon + 1..].trim_start().len();
    let range = value + scheme_at(&header[value..])..header.len();
    redactor.hide_range(header, range, By::Rule(Rule::Header));
}

fn is_cookie(name: &str) -> bool {
    name.eq_ignore_ascii_case("cookie") || name.eq_ignore_ascii_case("set-cookie")
}

/// How long the scheme is with which `value` begins.
fn scheme_at(value: &str) -> usize {
    SCHEMES.iter().find(|scheme| starts_with_ignoring_case(value, scheme)).map_or(0, |scheme| scheme.len())
}

/// `scheme://user:secret@host`: the user stays, unless it is itself a token.
fn redact_userinfo(redactor: &mut Redactor, text: &mut String) {
    let mut from = 0;
    while let Some(at) = text[from..].find("://") {
        let start = from + at + 3;
        let is_web = text[..start].ends_with("http://") || text[..start].ends_with("https://");
        let end = text[start..].find(|c: char| c.is_whitespace() || "\"'<>".contains(c));
        let end = end.map_or(text.len(), |end| start + end);
        // Not from its end: another address may follow right behind it.
        from = start;
        if let Some(secret) = secret_of_authority(&text[start..end], is_web) {
            let range = start + secret.start..start + secret.end;
            from = range.start;
            redactor.hide_range(text, range, By::Rule(Rule::UrlPassword));
        }
    }
}

/// In what follows `://`, up to the first space.
fn secret_of_authority(rest: &str, is_web: bool) -> Option<Range<usize>> {
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let (authority, at) = match authority.rfind('@') {
        Some(at) => (authority, at),
        // What is no port is a password with a slash in it.
        None => {
            let (_, port) = authority.split_once(':')?;
            let is_port = authority.starts_with('[') || port.bytes().all(|byte| byte.is_ascii_digit());
            (rest, rest.rfind('@').filter(|_| !is_port)?)
        }
    };
    match authority[..at].find(':') {
        Some(colon) => Some(colon + 1..at).filter(|secret| !secret.is_empty()),
        None => (is_web && is_long_token(&authority[..at])).then_some(0..at),
    }
}

/// In the place of a user, `0123456789abcdef0123456789abcdef01234567` is no user.
fn is_long_token(user: &str) -> bool {
    const TOKEN_BYTES_MIN: usize = 20;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    user.len() >= TOKEN_BYTES_MIN
        && user.bytes().all(is_part)
        && user.bytes().any(|byte| byte.is_ascii_digit())
}

/// `Bearer …`, and what follows `Authorization:` and its like.
fn redact_schemes(redactor: &mut Redactor, text: &mut String) {
    let mut from = 0;
    while let Some(start) = after_scheme(text, from) {
        let start = start + text[start..].len() - text[start..].trim_start_matches(' ').len();
        let start = start + scheme_at(&text[start..]);
        let end = text[start..].find(|c: char| c.is_whitespace() || "\"',;)".contains(c));
        let end = end.map_or(text.len(), |end| start + end);
        from = start;
        redactor.hide_range(text, start..end, By::Rule(Rule::Header));
    }
}

/// Where the next of these ends, after `from`.
fn after_scheme(text: &str, from: usize) -> Option<usize> {
    const NAMES: [&str; 6] =
        ["bearer ", "authorization:", "private-token:", "x-api-key:", "x-auth-token:", "x-vault-token:"];
    let mut ends = text[from..].match_indices([' ', ':']).map(|(at, _)| from + at + 1);
    ends.find(|end| NAMES.iter().any(|name| ends_with_ignoring_case(&text[..*end], name)))
}

/// `password=…`, `"token": "…"`, in a query, a connection string, a form, a line of shell.
fn redact_fields(redactor: &mut Redactor, text: &mut String) {
    let mut from = 0;
    while let Some(at) = text[from..].find(['=', ':']) {
        let separator = from + at;
        from = separator + 1;
        let Some((hidden, by)) = field_before(text, separator).and_then(|name| redactor.field(name)) else {
            continue;
        };
        let value = value_after(text, from);
        if let Some(secret) = hidden.of(&text[value.clone()]) {
            from = value.start + secret.start;
            redactor.hide_range(text, value.start + secret.start..value.start + secret.end, by);
        }
    }
}

/// The name of the field whose value the separator begins.
fn field_before(text: &str, separator: usize) -> Option<&str> {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let before = text[..separator].trim_end_matches(' ');
    let name_end = before.trim_end_matches(['"', '\'', '\\']);
    let is_quoted = name_end.len() < before.len();
    let rest = &text[separator + 1..];
    let is_field = text[separator..].starts_with('=') || is_quoted;
    if !is_field || rest.starts_with(['=', '~']) {
        return None;
    }
    let start = name_end
        .rfind(|c| !is_of_a_name(c))
        .map_or(0, |at| at + name_end[at..].chars().next().map_or(1, char::len_utf8));
    Some(name_end[start..].trim_start_matches('-')).filter(|name| !name.is_empty())
}

/// Where the value is that begins at `from`, without its quotes and scheme. With quotes it ends with them.
fn value_after(text: &str, from: usize) -> Range<usize> {
    let rest = text[from..].strip_prefix('>').unwrap_or(&text[from..]);
    let unspaced = rest.trim_start_matches(' ');
    let is_escaped = unspaced.starts_with('\\');
    let opening = unspaced.trim_start_matches('\\');
    let quote = opening.chars().next().filter(|c| matches!(c, '"' | '\''));
    let inside = if quote.is_some() { &opening[1..] } else { opening };
    let inside = &inside[scheme_at(inside)..];
    let start = text.len() - inside.len();
    let end = match quote {
        Some(quote) => closing(inside, quote, is_escaped),
        None => inside.find(|c: char| c.is_whitespace() || "&;,\"'\\)}|".contains(c)),
    };
    start..end.map_or(text.len(), |end| start + end)
}

/// Where a quoted value ends. In a quote that is itself escaped, what is escaped closes it.
fn closing(inside: &str, quote: char, is_escaped: bool) -> Option<usize> {
    let mut after_backslash = false;
    for (at, c) in inside.char_indices() {
        match c {
            _ if c == quote && !after_backslash => return Some(at),
            _ if c == quote && is_escaped => return Some(at - 1),
            _ => after_backslash = c == '\\' && !after_backslash,
        }
    }
    None
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn ends_with_ignoring_case(text: &str, suffix: &str) -> bool {
    let start = text.len().checked_sub(suffix.len());
    start.is_some_and(|start| text.as_bytes()[start..].eq_ignore_ascii_case(suffix.as_bytes()))
}
