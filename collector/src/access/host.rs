//! The words for hosts that are enrolled.

use std::fmt;

use alibi_proto::{id::HostId, time::Timestamp, tls::Fingerprint};

use super::{
    credential::sha256,
    lease::{Leases, Place},
};

/// SHA-256 of a key's SubjectPublicKeyInfo (DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// Of a SubjectPublicKeyInfo.
    pub fn of(spki: &[u8]) -> Self {
        Self(sha256(spki))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// From when until when a certificate is valid, and who signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub not_before: Timestamp,
    /// Up to and including then.
    pub not_after: Timestamp,
    /// The CA.
    pub authority: Fingerprint,
}

/// A host that is or was enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolledHost {
    /// Which.
    pub id: HostId,
    /// What it said that it is called, when it enrolled.
    pub name: String,
    /// Where it came from then.
    pub from: String,
    /// Its key. It has no other, ever.
    pub key: KeyHash,
    /// What its token marked it with.
    pub tags: Vec<String>,
    /// When it enrolled last.
    pub enrolled: Timestamp,
    /// Its newest certificate.
    pub certificate: Validity,
    /// Since when it is not enrolled any more.
    pub revoked: Option<Timestamp>,
    /// Its leases.
    pub leases: Leases,
    /// Where it was admitted last.
    pub admitted: Option<Place>,
    /// That it was found in two places.
    pub copied: Option<Copied>,
}

/// A host that was found in two places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Where it was.
    pub there: Option<Place>,
    /// Where it was, too, and was refused.
    pub here: Place,
}

/// For the owner of the host, and whoever looks after the fleet.
impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this host's identity is in two places: ")?;
        if let Some(there) = &self.there {
            write!(f, "{there}, and ")?;
        }
        write!(f, "{}: `alibi-agent enroll --reset` makes the copy a host of its own", self.here)
    }
}

/// How a host stands, for whoever has to let it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It never enrolled here.
    Unknown,
    /// Its enrolment was ended.
    Revoked,
    /// It is enrolled.
    Enrolled {
        /// The key that it must have.
        key: KeyHash,
        /// Until when its newest certificate is valid.
        not_after: Timestamp,
        /// It was found in two places.
        is_copied: bool,
    },
}
