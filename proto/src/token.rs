//! The one string that an administrator hands out: where the collector is, how to know it, and a secret.
//!
//! `alibi_host_` or `alibi_user_`, which tells people, and programs that look for secrets in the wrong places, what it is;
//! then, in base64url without padding (RFC 4648): a byte 1, the collector's CA (SHA-256, 32 bytes), the secret (32 bytes),
//! the address (UTF-8), and the first 4 bytes of the BLAKE3 of all before, the prefix included.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{address::HostPort, tls::Fingerprint};

const VERSION: u8 = 1;
const SECRET_BYTES: usize = 32;
const CHECK_BYTES: usize = 4;
/// Characters; a longer one is none.
const LENGTH_MAX: usize = 1024;

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Enrols hosts.
    Host,
    /// Asks for an analyst.
    User,
}

impl TokenKind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Host => "alibi_host_",
            Self::User => "alibi_user_",
        }
    }
}

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is good for.
    pub kind: TokenKind,
    /// Where the collector is.
    pub address: HostPort,
    /// Whose certificates it has.
    pub authority: Fingerprint,
    /// What proves that the token was given.
    pub secret: [u8; SECRET_BYTES],
}

/// The secret stays out of logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("kind", &self.kind)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        bytes.extend(self.authority.0);
        bytes.extend(self.secret);
        bytes.extend(self.address.to_string().bytes());
        bytes.extend(check(self.kind, &bytes));
        write!(f, "{}{}", self.kind.prefix(), URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let strip = |kind: TokenKind| Some((kind, text.strip_prefix(kind.prefix())?));
        let (kind, encoded) =
            strip(TokenKind::Host).or_else(|| strip(TokenKind::User)).ok_or(TokenError::NotAToken)?;
        if text.len() > LENGTH_MAX {
            return Err(TokenError::NotAToken);
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError::Mistyped)?;
        let (bytes, end) =
            bytes.split_at_checked(bytes.len().saturating_sub(CHECK_BYTES)).ok_or(TokenError::Mistyped)?;
        if end != check(kind, bytes) {
            return Err(TokenError::Mistyped);
        }
        match bytes.split_first() {
            Some((&VERSION, rest)) => Self::from_fields(kind, rest).ok_or(TokenError::Mistyped),
            Some((version, _)) => Err(TokenError::Newer(*version)),
            None => Err(TokenError::Mistyped),
        }
    }
}

impl Token {
    fn from_fields(kind: TokenKind, bytes: &[u8]) -> Option<Self> {
        let (authority, rest) = bytes.split_first_chunk()?;
        let (secret, address) = rest.split_first_chunk()?;
        let address = std::str::from_utf8(address).ok()?.parse().ok()?;
        Some(Self { kind, address, authority: Fingerprint(*authority), secret: *secret })
    }
}

fn check(kind: TokenKind, bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind.prefix().as_bytes()).update(bytes);
    let mut check = [0; CHECK_BYTES];
    hasher.finalize_xof().fill(&mut check);
    check
}

/// It is no token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// It does not look like one.
    #[error(
        "that is no token: one begins with `alibi_host_` or `alibi_user_`, and is made by `alibi token create`"
    )]
    NotAToken,
    /// Something in it was lost or changed.
    #[error("the token is not whole: copy it again, from its first letter to its last")]
    Mistyped,
    /// Of a later version.
    #[error("the token is of version {0}, and this program knows version {VERSION}: upgrade it")]
    Newer(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            kind: TokenKind::Host,
            address: "collector.example:8440".parse().unwrap(),
            authority: Fingerprint([7; 32]),
            secret: [9; 32],
        }
    }

    #[test]
    fn a_token_reads_back_and_tells_nothing_in_a_log() {
        for kind in [TokenKind::Host, TokenKind::User] {
            let token = Token { kind, ..token() };
            let text = token.to_string();
            assert_eq!(text.parse(), Ok(token.clone()));
            assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
            assert!(!format!("{token:?}").contains('9'));
        }
    }

    #[test]
    fn every_changed_letter_is_noticed() {
        let text = token().to_string();
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(changed.parse::<Token>().is_err(), "{changed}");
            assert!(text[..at].parse::<Token>().is_err(), "{at}");
        }
        assert_eq!(text.replace("_host_", "_user_").parse::<Token>(), Err(TokenError::Mistyped));
        assert_eq!("hunter2".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!(format!("alibi_host_{}", "A".repeat(2000)).parse::<Token>(), Err(TokenError::NotAToken));
    }

    #[test]
    fn a_newer_one_says_so() {
        let mut bytes = vec![2];
        bytes.extend(check(TokenKind::User, &[2]));
        let text = format!("alibi_user_{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(text.parse::<Token>(), Err(TokenError::Newer(2)));
    }
}
