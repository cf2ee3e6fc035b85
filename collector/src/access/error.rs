//! What access refuses, or cannot.

use std::{io, path::PathBuf};

use alibi_proto::{id::HostId, time::Timestamp};

use super::{
    authority::{AUTHORITIES_MAX, REQUEST_BYTES_MAX},
    credential::{
        CREDENTIALS_MAX, CredentialId, LOGINS_MAX, NAME_CHARS_MAX, Refusal, TAG_CHARS_MAX, TAGS_MAX, USES_MAX,
    },
};
use crate::store::{AGENTS_MAX, StoreError};

/// Access refuses, or cannot.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A credential is not good. The words are for the audit log: whoever shows it is told [`Refusal::outward`].
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No credential has this number.
    #[error("no credential has the number {0}: `alibi token list` lists those that there are")]
    UnknownCredential(CredentialId),
    /// The host is not known here.
    #[error("no host {0} is enrolled: enrol it with a token")]
    UnknownHost(HostId),
    /// The host's enrolment was ended.
    #[error(
        "the enrolment of the host {0} was revoked: `alibi-agent enroll --reset` with a token makes it a new host"
    )]
    Revoked(HostId),
    /// The host is known by another key.
    #[error(
        "the host {0} is enrolled with another key: `alibi-agent enroll --reset` with a token makes this a new host"
    )]
    OtherKey(HostId),
    /// The host was found in two places.
    #[error(
        "the host {0} was found in two places: `alibi-agent enroll --reset` with a token makes one of them a new host, then `alibi host unmark` by an admin takes the mark from the other"
    )]
    Copied(HostId),
    /// The list of hosts is full.
    #[error(
        "{AGENTS_MAX} hosts are enrolled, and one collector takes no more: revoke one that is gone first"
    )]
    TooManyHosts,
    /// The list of credentials is full.
    #[error(
        "{CREDENTIALS_MAX} credentials are kept, and no more are: they go a year after they have expired, so make fewer, or such as live shorter"
    )]
    TooManyCredentials,
    /// Too many certificates of one token.
    #[error(
        "{LOGINS_MAX} certificates of this token are good, and one token gives no more: revoke one that is not used any more"
    )]
    TooManyLogins,
    /// It enrols too many hosts, or none.
    #[error("a token enrols from 1 to {USES_MAX} hosts, not {0}")]
    Uses(u32),
    /// It would be good for too long, or not at all.
    #[error("a token is good for up to 365 days, and for some time at least")]
    Lifetime,
    /// Hosts would have to renew all the time, or hardly ever.
    #[error("a host's certificate is good for from 10 seconds to 365 days")]
    HostLifetime,
    /// The name of an analyst is not one.
    #[error(
        "`{0}` cannot be an analyst's name: that has 1 to {NAME_CHARS_MAX} of a-z, 0-9, `.`, `_` and `-`"
    )]
    Name(String),
    /// Too many marks.
    #[error("a token marks its hosts with up to {TAGS_MAX} tags, not {0}")]
    TooManyTags(usize),
    /// A mark that cannot be printed, or is too long.
    #[error(
        "{0:?} cannot be a tag: that has 1 to {TAG_CHARS_MAX} printable characters, and a space only between others"
    )]
    Tag(String),
    /// The request is no request.
    #[error("the certificate request cannot be used: {0}")]
    Request(&'static str),
    /// It is too large to look at.
    #[error("the certificate request has {0} bytes, and up to {REQUEST_BYTES_MAX} are read")]
    RequestTooLarge(usize),
    /// No CA's fingerprint begins so.
    #[error("no CA that is believed has a fingerprint that begins with `{0}`: `alibi ca list` lists them")]
    UnknownAuthority(String),
    /// Several do.
    #[error("{count} CAs have a fingerprint that begins with `{prefix}`: write more of it")]
    AmbiguousAuthority {
        /// The beginning.
        prefix: String,
        /// How many.
        count: usize,
    },
    /// The one that signs is needed.
    #[error("the newest CA signs, and cannot be retired: `alibi ca rotate` makes a newer one first")]
    NewestAuthority,
    /// More would make chains too long.
    #[error("{AUTHORITIES_MAX} CAs are believed, and no more can be: `alibi ca retire` an old one first")]
    TooManyAuthorities,
    /// The CA is not valid any more.
    #[error(
        "the CA was valid until {0:.0}, and can sign nothing any more: `alibi ca rotate` makes a new one, with which the hosts must enrol anew"
    )]
    AuthorityExpired(Timestamp),
    /// A key of a CA cannot be read.
    #[error("cannot use the CA's key {}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A key of a CA is not its key.
    #[error("cannot use the CA's key {}, which {problem}: put it back from a backup of this data directory", path.display())]
    OtherAuthorityKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Certificates cannot be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The system gives none.
    #[error("the system gives no random numbers, without which nothing here is safe")]
    NoRandomness,
    /// The store refuses, or cannot.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AccessError {
    /// For whoever has shown a credential: that it is not good, in words that tell a stranger nothing; all else as it is.
    pub fn outward(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.outward().to_owned(),
            other => other.to_string(),
        }
    }
}
