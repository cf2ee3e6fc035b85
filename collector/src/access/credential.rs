//! What somebody shows to be let in, other than a host's certificate: tokens, and analysts' certificates.
//!
//! A token's secret is 32 random bytes. Only its SHA-256 is kept, and it is found by that. No slow hash is needed: nobody
//! can guess 256 random bits, however fast each guess is. And no comparison tells anything by its time: what is looked up is
//! a hash, and whoever sees how far it was compared still has to find a secret with that hash.

use std::{fmt, time::Duration};

use alibi_proto::time::Timestamp;
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};

use super::{error::AccessError, role::Role};

/// Credentials that are kept, of every kind. Few under test, so that the limit is met.
pub const CREDENTIALS_MAX: usize = if cfg!(test) { 24 } else { 100_000 };
/// Certificates of one token that are good. Few under test, so that the limit is met.
pub const LOGINS_MAX: usize = if cfg!(test) { 3 } else { 64 };
/// Credentials that one listing has.
pub const LISTED_MAX: usize = if cfg!(test) { 8 } else { 1_000 };
/// How long a token may be good for.
pub const LIFETIME_MAX: Duration = Duration::from_secs(365 * 86_400);
/// How long what is good no longer is kept all the same, so that who asks why sees it.
pub const KEPT_AFTER_EXPIRY: Duration = Duration::from_secs(365 * 86_400);
/// Hosts that one token may enrol.
pub const USES_MAX: u32 = 100_000;
/// Marks that one token gives to its hosts.
pub const TAGS_MAX: usize = 16;
/// Characters of one of them.
pub const TAG_CHARS_MAX: usize = 64;
/// Characters of an analyst's name.
pub const NAME_CHARS_MAX: usize = 64;

/// The number of a credential. Given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialId(pub u64);

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a credential is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CredentialKind {
    /// Enrols hosts.
    EnrolmentToken,
    /// Asks, or logs in.
    AnalystToken,
    /// Asks.
    AnalystCertificate,
}

/// A credential, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Its number.
    pub id: CredentialId,
    /// What it is for.
    pub kind: CredentialKind,
    /// Whose it is; of an analyst's.
    pub name: String,
    /// What they may do; of an analyst's.
    pub role: Option<Role>,
    /// The token that it was given for; of a certificate.
    pub parent: Option<CredentialId>,
    /// What its hosts are marked with; of an enrolment token.
    pub tags: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
    /// Until when it is good.
    pub expires: Timestamp,
    /// Since when it is not good any more.
    pub revoked: Option<Timestamp>,
    /// When it was last used.
    pub used: Option<Timestamp>,
    /// How often it was used.
    pub uses: u32,
    /// How often it may be used. 0: as often as one likes.
    pub uses_max: u32,
}

impl Credential {
    /// Whether it is good now.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.revoked.is_some() {
            Err(Refusal::Revoked)
        } else if now >= self.expires {
            Err(Refusal::Expired)
        } else if self.uses_max != 0 && self.uses >= self.uses_max {
            Err(Refusal::UsedUp)
        } else {
            Ok(())
        }
    }

    pub(super) fn spent(&mut self, now: Timestamp) {
        self.uses = self.uses.saturating_add(1);
        self.used = Some(now);
    }
}

/// Why a credential is not good. The words are for the audit log; whoever shows it is told [`Refusal::outward`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody was ever given it.
    #[error("the credential is not known")]
    Unknown,
    /// It is one of another kind.
    #[error("the credential is not for this")]
    OtherKind,
    /// Its time is over.
    #[error("the credential has expired")]
    Expired,
    /// Somebody has ended it.
    #[error("the credential was revoked")]
    Revoked,
    /// It was used as often as it may be.
    #[error("the credential is used up")]
    UsedUp,
    /// It is to be exchanged for a certificate, once.
    #[error("the credential is for logging in only")]
    LoginOnly,
}

impl Refusal {
    /// For whoever has shown it. Only who has the secret is told that there is such a credential.
    pub fn outward(self) -> &'static str {
        match self {
            Self::Unknown | Self::OtherKind => "the token is not good here: ask an admin for another",
            Self::Expired => "the token has expired: ask an admin for another",
            Self::Revoked => "the token was revoked: ask an admin for another",
            Self::UsedUp => "the token was used as often as it may be: ask an admin for another",
            Self::LoginOnly => "the token is good for one `alibi login` only: log in with it",
        }
    }
}

/// What a token is made of.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; Secret::BYTES]);

impl Secret {
    /// Its length.
    pub const BYTES: usize = 32;

    /// A new one.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn random() -> Result<Self, AccessError> {
        random().map(Self)
    }

    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// What is kept of it.
    pub fn hash(&self) -> SecretHash {
        SecretHash(sha256(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// SHA-256 of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecretHash(pub [u8; 32]);

/// A token that was just made. Its secret is told this once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedToken {
    /// Its number.
    pub id: CredentialId,
    /// The secret.
    pub secret: Secret,
    /// Until when it is good.
    pub expires: Timestamp,
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

pub(super) fn random<const BYTES: usize>() -> Result<[u8; BYTES], AccessError> {
    let mut bytes = [0; BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| AccessError::NoRandomness)?;
    Ok(bytes)
}

/// Until when a token is good that is made now.
pub(super) fn expiry(lifetime: Duration, now: Timestamp) -> Result<Timestamp, AccessError> {
    if lifetime.is_zero() || lifetime > LIFETIME_MAX {
        return Err(AccessError::Lifetime);
    }
    Ok(now.saturating_add(lifetime))
}

pub(super) fn check_name(name: &str) -> Result<(), AccessError> {
    let is_allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    if (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(is_allowed) {
        Ok(())
    } else {
        Err(AccessError::Name(name.chars().take(NAME_CHARS_MAX).collect()))
    }
}

pub(super) fn check_tags(tags: &[String]) -> Result<(), AccessError> {
    if tags.len() > TAGS_MAX {
        return Err(AccessError::TooManyTags(tags.len()));
    }
    // A sign that has no shape, as one that reverses what follows, hides what a mark says.
    let is_printable = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let is_good = |tag: &String| {
        (1..=TAG_CHARS_MAX).contains(&tag.chars().count())
            && tag.chars().all(is_printable)
            && tag.trim() == tag
    };
    match tags.iter().find(|tag| !is_good(tag)) {
        Some(bad) => Err(AccessError::Tag(bad.chars().take(TAG_CHARS_MAX).collect())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_itself_to_nobody() {
        let secret = Secret::random().unwrap();
        assert_ne!(secret, Secret::random().unwrap());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf], "SHA-256, as FIPS 180 has it");
        assert_eq!(secret.hash(), Secret::from_bytes(*secret.as_bytes()).hash());
    }

    #[test]
    fn whoever_has_no_credential_cannot_tell_why() {
        assert_eq!(Refusal::Unknown.outward(), Refusal::OtherKind.outward());
        assert_ne!(Refusal::Unknown.to_string(), Refusal::OtherKind.to_string(), "the audit log can");
    }

    #[test]
    fn names_and_tags_are_bounded() {
        for (name, good) in [
            ("jdoe", true),
            ("j.doe-2_x", true),
            (&"x".repeat(64), true),
            (&"x".repeat(65), false),
            ("", false),
            ("JDoe", false),
            ("j doe", false),
            ("jdöe", false),
        ] {
            assert_eq!(check_name(name).is_ok(), good, "{name}");
        }
        let long = "ä".repeat(65);
        for (tags, good) in [
            (vec![], true),
            (vec!["office", "rack 7", "Zürich"], true),
            (vec![&long[..128]], true),
            (vec![&long], false),
            (vec![""], false),
            (vec![" x"], false),
            (vec!["a\nb"], false),
            (vec!["a\u{202e}b"], false),
            (vec!["x"; 16], true),
            (vec!["x"; 17], false),
        ] {
            let tags: Vec<String> = tags.into_iter().map(str::to_owned).collect();
            assert_eq!(check_tags(&tags).is_ok(), good, "{tags:?}");
        }
    }

    #[test]
    fn lifetimes_are_bounded() {
        let now = Timestamp::from_secs(1_000);
        assert_eq!(expiry(Duration::from_secs(5), now).unwrap(), Timestamp::from_secs(1_005));
        assert!(expiry(LIFETIME_MAX, now).is_ok());
        assert!(expiry(LIFETIME_MAX + Duration::from_nanos(1), now).is_err());
        assert!(expiry(Duration::ZERO, now).is_err());
    }

    #[test]
    fn a_credential_is_good_until_it_is_not() {
        let at = Timestamp::from_secs;
        let good = Credential {
            id: CredentialId(1),
            kind: CredentialKind::EnrolmentToken,
            name: String::new(),
            role: None,
            parent: None,
            tags: vec![],
            created: at(1_000),
            expires: at(2_000),
            revoked: None,
            used: None,
            uses: 0,
            uses_max: 2,
        };
        for (credential, now, want) in [
            (good.clone(), 1_999, Ok(())),
            (good.clone(), 2_000, Err(Refusal::Expired)),
            (Credential { uses: 1, ..good.clone() }, 1_000, Ok(())),
            (Credential { uses: 2, ..good.clone() }, 1_000, Err(Refusal::UsedUp)),
            (Credential { uses: 2, uses_max: 0, ..good.clone() }, 1_000, Ok(())),
            (Credential { revoked: Some(at(1_500)), ..good }, 9_000, Err(Refusal::Revoked)),
        ] {
            assert_eq!(credential.check(at(now)), want, "{credential:?}");
        }
    }
}
