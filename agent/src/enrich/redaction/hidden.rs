//! What of a value is secret.

use std::ops::Range;

use super::tokens;

/// What of a value is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    /// All of it.
    Whole,
    /// What comes after the user's name and this.
    AfterUser(char),
    /// What comes after this, with which the value must begin: `pass:x`, and not `file:x`.
    After(&'static str),
    /// The value of a header that holds a secret.
    Header,
    /// All of it, if it is a cookie: without an equals sign it is the name of a file.
    Cookie,
    /// As in `user:x@host`.
    Login,
    /// As in `user/x@database`.
    OracleLogin,
    /// All of it, unless it is where a file is.
    UnlessFile,
    /// All of it, unless it says where the secret is: `id=x`.
    UnlessReference,
    /// All of it, unless it is `name=x`, which is judged by its name.
    UnlessAssignment,
    /// All of it, unless it is an option of Windows, or the star that asks for the secret.
    UnlessSwitch,
    /// All of it, if it has the shape of what belongs to the id of a key that came before.
    AfterKeyId,
}

impl Hidden {
    /// Where in `value` the secret is. Of a header, see [`super::text::redact_header`].
    pub(super) fn of(self, value: &str) -> Option<Range<usize>> {
        let whole = 0..value.len();
        match self {
            Self::Whole => Some(whole),
            Self::AfterUser(separator) => Some(value.find(separator)? + separator.len_utf8()..value.len()),
            Self::After(prefix) => value.starts_with(prefix).then_some(prefix.len()..value.len()),
            Self::Header => None,
            Self::Cookie | Self::UnlessAssignment => {
                (value.contains('=') == (self == Self::Cookie)).then_some(whole)
            }
            Self::Login => login(value),
            Self::OracleLogin => oracle_login(value),
            Self::UnlessFile => (!is_file(value)).then_some(whole),
            Self::UnlessReference => {
                let is_reference =
                    ["id=", "source=", "src=", "type="].iter().any(|key| value.starts_with(key));
                (!is_reference).then_some(whole)
            }
            Self::UnlessSwitch => (!value.starts_with('/') && value != "*").then_some(whole),
            Self::AfterKeyId => tokens::is_secret_of_key(value).then_some(whole),
        }
    }
}

/// `[domain/]user:secret@host`.
fn login(value: &str) -> Option<Range<usize>> {
    let end = value.rfind('@')?;
    let user = value[..end].rfind('/').map_or(0, |at| at + 1);
    let start = user + value[user..end].find(':')? + 1;
    (user + 1 < start).then_some(start..end)
}

/// `[userid=]user/secret[@database]`.
fn oracle_login(value: &str) -> Option<Range<usize>> {
    let user = match value.split_once('=') {
        Some((key, _)) if key.eq_ignore_ascii_case("userid") => key.len() + 1,
        Some((key, _)) if !key.contains(['/', '@']) => return None,
        _ => 0,
    };
    let start = user + value[user..].find('/')? + 1;
    let is_user = |c: char| c.is_ascii_alphanumeric() || "_$#\"[]".contains(c);
    let has_user = start > user + 1 && value[user..start - 1].chars().all(is_user);
    let end = value[start..].find('@').map_or(value.len(), |at| start + at);
    has_user.then_some(start..end)
}

/// Whether it looks like the path of a file that holds the secret.
fn is_file(value: &str) -> bool {
    const ENDINGS: [&str; 12] =
        [".json", ".pem", ".key", ".crt", ".cer", ".p12", ".pfx", ".ppk", ".yml", ".yaml", ".ini", ".txt"];
    let begins = ["/", "./", "../", "~", "$", "%", "@", "file:"].iter().any(|begin| value.starts_with(begin));
    begins || value.contains(":\\") || ENDINGS.iter().any(|ending| value.ends_with(ending))
}
