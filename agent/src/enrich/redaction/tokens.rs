//! Keys and tokens that say by their looks what they are.

use std::ops::Range;

use super::{Redactor, Rule, rules::By};

/// How a kind of token goes on after its first letters.
#[derive(Clone, Copy)]
enum Like {
    /// With at least so many letters, digits, dashes, underscores and dots.
    AtLeast(usize),
    /// The same, among them a digit and an upper case letter: words can begin so, too.
    Mixed(usize),
    /// With exactly so many upper case letters and digits.
    Upper(usize),
    /// With exactly so many hexadecimal digits.
    Hex(usize),
    /// With exactly so many letters and digits.
    Plain(usize),
    /// With two to four more parts, between dots.
    Parts(usize),
}

use Like::{AtLeast, Hex, Mixed, Parts, Plain, Upper};

/// By first letter, and the longer before the shorter.
const SHAPES: [(&str, Like); 74] = [
    ("A3T", Upper(17)),
    ("ABIA", Upper(16)),
    ("ACCA", Upper(16)),
    ("AKIA", Upper(16)),
    ("ASIA", Upper(16)),
    ("AGE-SECRET-KEY-1", AtLeast(40)),
    ("AIza", AtLeast(30)),
    ("AKCp", AtLeast(40)),
    ("ATATT3x", AtLeast(40)),
    ("ATCTT3x", AtLeast(40)),
    ("EAACEdEose0cBA", AtLeast(10)),
    ("GOCSPX-", AtLeast(20)),
    ("HRKU-", AtLeast(30)),
    ("LTAI", Plain(20)),
    ("NRAK-", AtLeast(20)),
    ("PMAK-", AtLeast(40)),
    ("SG.", Parts(40)),
    ("SK", Hex(32)),
    ("alibi_host_", AtLeast(40)),
    ("alibi_user_", AtLeast(40)),
    ("bkua_", AtLeast(30)),
    ("ctx7sk-", AtLeast(20)),
    ("dapi", Hex(32)),
    ("dckr_oat_", AtLeast(20)),
    ("dckr_pat_", AtLeast(20)),
    ("doo_v1_", AtLeast(40)),
    ("dop_v1_", AtLeast(40)),
    ("dor_v1_", AtLeast(40)),
    ("dp.ct.", AtLeast(30)),
    ("dp.pt.", AtLeast(30)),
    ("dp.st.", AtLeast(30)),
    ("dt0c01.", AtLeast(40)),
    ("eyJ", Parts(40)),
    ("figd_", AtLeast(30)),
    ("fo1_", AtLeast(30)),
    ("ghp_", AtLeast(30)),
    ("gho_", AtLeast(30)),
    ("ghu_", AtLeast(30)),
    ("ghs_", AtLeast(30)),
    ("ghr_", AtLeast(30)),
    ("github_pat_", AtLeast(30)),
    ("glc_", AtLeast(32)),
    ("gldt-", AtLeast(16)),
    ("glpat-", AtLeast(16)),
    ("glptt-", AtLeast(16)),
    ("glrt-", AtLeast(16)),
    ("glcbt-", AtLeast(16)),
    ("gloas-", AtLeast(16)),
    ("glsa_", AtLeast(32)),
    ("hf_", Mixed(30)),
    ("hvb.", AtLeast(20)),
    ("hvr.", AtLeast(20)),
    ("hvs.", AtLeast(20)),
    ("key-", Hex(32)),
    ("lin_api_", AtLeast(30)),
    ("npm_", Mixed(30)),
    ("ntn_", Mixed(30)),
    ("ops_eyJ", AtLeast(40)),
    ("pscale_", AtLeast(30)),
    ("pul-", Hex(40)),
    ("pypi-AgE", AtLeast(30)),
    ("rk_live_", AtLeast(16)),
    ("rubygems_", Hex(48)),
    ("s.", Plain(24)),
    ("sbp_", Hex(40)),
    ("shp", Mixed(34)),
    ("sk-", Mixed(20)),
    ("sk_live_", AtLeast(16)),
    ("sk_test_", AtLeast(16)),
    ("sntrys_", AtLeast(30)),
    ("tskey-", Mixed(16)),
    ("whsec_", AtLeast(24)),
    ("xapp-", Mixed(20)),
    ("xox", Mixed(18)),
];
/// Google's, and Confluent's: their first letters are common ones.
const RARE: [(&str, Like); 2] = [("ya29.", AtLeast(20)), ("cflt", Mixed(56))];
/// None is shorter.
const TOKEN_BYTES_MIN: usize = 20;

/// Redacts the tokens in `text`, and the secret that stands beside the id of its key.
pub(super) fn redact_tokens(redactor: &mut Redactor, text: &mut String) {
    if text.len() < TOKEN_BYTES_MIN {
        return;
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let mut from = 0;
    while let Some(start) = text[from..].find(is_part).map(|at| from + at) {
        let end = text[start..].find(|c: char| !is_part(c)).map_or(text.len(), |end| start + end);
        from = end;
        let word = text[start..end].trim_end_matches(['.', '-']);
        if word.len() < TOKEN_BYTES_MIN || !is_token(word) {
            continue;
        }
        let range = start..start + word.len();
        if let Some(beside) = is_key_id(word).then(|| secret_beside(text, range.end)).flatten() {
            redactor.hide_range(text, beside, By::Rule(Rule::TokenShape));
        }
        from = start;
        redactor.hide_range(text, range, By::Rule(Rule::TokenShape));
        from += super::REDACTED.len();
    }
}

fn is_token(word: &str) -> bool {
    SHAPES.iter().chain(&RARE).any(|(prefix, like)| {
        word.as_bytes()[0] == prefix.as_bytes()[0]
            && word.strip_prefix(prefix).is_some_and(|rest| like.is_shape_of(rest))
    })
}

impl Like {
    fn is_shape_of(self, rest: &str) -> bool {
        let all = |is: fn(&u8) -> bool| rest.as_bytes().iter().all(is);
        let any = |is: fn(&u8) -> bool| rest.as_bytes().iter().any(is);
        match self {
            AtLeast(bytes) => rest.len() >= bytes,
            Mixed(bytes) => {
                rest.len() >= bytes
                    && any(u8::is_ascii_digit)
                    && any(u8::is_ascii_alphabetic)
                    && is_varied(rest)
            }
            Upper(bytes) => {
                rest.len() == bytes && all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
            }
            Hex(bytes) => rest.len() == bytes && all(u8::is_ascii_hexdigit),
            Plain(bytes) => rest.len() == bytes && all(u8::is_ascii_alphanumeric) && any(u8::is_ascii_digit),
            Parts(bytes) => {
                let parts = rest.matches('.').count();
                let parts_min = if rest.len() < bytes { usize::MAX } else { 1 };
                (parts_min..=4).contains(&parts)
            }
        }
    }
}

/// Words are not: they have letters of one case, and digits at an end.
fn is_varied(text: &str) -> bool {
    let (mut upper, mut lower, mut changes) = (false, false, 0);
    let mut was_digit = None;
    for byte in text.bytes().filter(u8::is_ascii_alphanumeric) {
        upper |= byte.is_ascii_uppercase();
        lower |= byte.is_ascii_lowercase();
        let is_digit = byte.is_ascii_digit();
        changes += usize::from(was_digit.is_some_and(|was| was != is_digit));
        was_digit = Some(is_digit);
    }
    (upper && lower) || changes >= 4
}

/// Whether it is the id of an AWS key, or ends in one.
pub(super) fn is_key_id(word: &str) -> bool {
    const KEY_ID_BYTES: usize = 20;
    let id = word.len().checked_sub(KEY_ID_BYTES).and_then(|start| word.get(start..));
    id.is_some_and(|id| {
        let rest = id.strip_prefix("AKIA").or_else(|| id.strip_prefix("ASIA"));
        rest.is_some_and(|rest| Upper(16).is_shape_of(rest))
    })
}

/// Whether it may be the secret that belongs to such an id.
pub(super) fn is_secret_of_key(word: &str) -> bool {
    const SECRET_BYTES: usize = 40;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'+' | b'=');
    word.len() == SECRET_BYTES && word.bytes().all(is_part)
}

/// `AKIA…:secret`
fn secret_beside(text: &str, id_end: usize) -> Option<Range<usize>> {
    let rest = text[id_end..].strip_prefix([':', ',', '/', '|'])?;
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "/+=".contains(c))).unwrap_or(rest.len());
    is_secret_of_key(&rest[..end]).then_some(id_end + 1..id_end + 1 + end)
}

/// Redacts what is between BEGIN and END of a private key, or up to the end where that was cut off.
pub(super) fn redact_private_keys(redactor: &mut Redactor, text: &mut String) {
    const BEGIN: &str = "-----BEGIN ";
    const DASHES: &str = "-----";
    let mut from = 0;
    while let Some(at) = text[from..].find(BEGIN) {
        let name = from + at + BEGIN.len();
        from = name;
        let Some(dashes) = text[name..].find(DASHES) else { return };
        if !text[name..name + dashes].contains("PRIVATE KEY") {
            continue;
        }
        let start = name + dashes + DASHES.len();
        let end = text[start..].find("-----END ").map_or(text.len(), |end| start + end);
        from = start;
        redactor.hide_range(text, start..end, By::Rule(Rule::PrivateKey));
    }
}

/// Redacts addresses of which a part is the secret: whoever has them may call them.
pub(super) fn redact_addresses(redactor: &mut Redactor, text: &mut String) {
    /// What comes before the secret, and how many parts of the path are none.
    const ADDRESSES: [(&str, usize); 6] = [
        ("hooks.slack.com/services/", 0),
        ("discord.com/api/webhooks/", 1),
        ("discordapp.com/api/webhooks/", 1),
        ("webhook.office.com/webhookb2/", 0),
        ("outlook.office.com/webhook/", 0),
        ("api.telegram.org/bot", 0),
    ];
    if !text.contains("/") || !text.contains(".") {
        return;
    }
    for (address, parts) in ADDRESSES {
        let Some(mut start) = text.find(address).map(|at| at + address.len()) else { continue };
        for _ in 0..parts {
            start = text[start..].find('/').map_or(text.len(), |at| start + at + 1);
        }
        let ends =
            |c: char| c.is_whitespace() || "\"'?#".contains(c) || (c == '/' && address.ends_with("bot"));
        let end = text[start..].find(ends).map_or(text.len(), |end| start + end);
        redactor.hide_range(text, start..end, By::Rule(Rule::TokenShape));
    }
}
