//! Hosts: enrolled, renewed, admitted, revoked.

use std::sync::{Arc, PoisonError};

use alibi_proto::{id::HostId, time::Timestamp, tls::Peer};

use super::{
    Access, AccessError,
    authority::{Issued, RequestedKey},
    credential::{CredentialKind, Refusal, Secret, random},
    host::{Copied, EnrolledHost, Standing},
    lease::{Instance, Lease, Leases, Place, Presented, TEXT_CHARS_MAX, Verdict},
};
use crate::store::{AGENTS_MAX, access::Admitted, lock};

/// Hosts that are kept, those that are not enrolled any more included.
const HOSTS_KEPT_MAX: usize = 10 * AGENTS_MAX;

/// What a host got for a token, or for its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCertificate {
    /// The host.
    pub host: HostId,
    /// Its certificate, and what it takes to reach a CA.
    pub issued: Issued,
    /// The CAs to believe, X.509, DER.
    pub authorities: Vec<Vec<u8>>,
}

/// Whether somebody who comes as a host is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admittance {
    /// It is.
    Admitted {
        /// For the host to keep, on its disk, before it answers.
        lease: Lease,
        /// It was restored from an older copy of itself; where it was before.
        rewound: Option<Rewound>,
    },
    /// It is not: the host is in two places.
    Refused(Copied),
}

/// A host that was restored from an older copy of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewound {
    /// Where it was last.
    pub before: Option<Place>,
}

impl Access {
    /// A certificate for a host, with the key of the request, for a token's secret. The host keeps the id that it has unless
    /// another has that.
    ///
    /// # Errors
    /// When the token is not good for it, the request is no request, the id is another's or was revoked, there are too many
    /// hosts, or it cannot be kept.
    pub fn enrol(
        &self,
        secret: &Secret,
        request: &[u8],
        host: HostId,
        name: &str,
        from: &str,
        now: Timestamp,
    ) -> Result<HostCertificate, AccessError> {
        // What a stranger sends is not looked at any further.
        self.token(secret, CredentialKind::EnrolmentToken, now)?;
        let key = RequestedKey::read(request)?;
        let _changing = self.changing();
        let token = self.token(secret, CredentialKind::EnrolmentToken, now)?;
        let before = self.known().hosts.get(&host).cloned();
        match &before {
            Some(before) => check_same(before, &key)?,
            None => self.check_room()?,
        }
        let issued = self.current_authorities().issue(
            Peer::Host(host),
            &key,
            now.saturating_add(self.host_lifetime),
            now,
        )?;
        let enrolled = EnrolledHost {
            id: host,
            name: name.chars().take(TEXT_CHARS_MAX).collect(),
            from: from.chars().take(TEXT_CHARS_MAX).collect(),
            key: key.hash(),
            tags: token.tags,
            enrolled: now,
            certificate: issued.validity,
            revoked: None,
            leases: Leases::default(),
            admitted: None,
            copied: None,
        };
        if !self.store.enrol(&enrolled, token.id)? {
            return Err(Refusal::UsedUp.into());
        }
        let mut known = self.known_mut();
        if let Some(token) = known.credentials.get_mut(&token.id) {
            token.spent(now);
        }
        // It may have been admitted beside this: how that stands now is what counts.
        let enrolled = match known.hosts.remove(&host) {
            Some(EnrolledHost { leases, admitted, copied, .. }) => {
                EnrolledHost { leases, admitted, copied, ..enrolled }
            }
            None => enrolled,
        };
        known.hosts.insert(host, enrolled);
        drop(known);
        Ok(self.certificate(host, issued, now))
    }

    /// A new certificate for a host that has shown the one that it has, with the same key.
    ///
    /// # Errors
    /// When the request is no request or of another key, the host is not enrolled or in two places, or it cannot be kept.
    pub fn renew(
        &self,
        host: HostId,
        request: &[u8],
        now: Timestamp,
    ) -> Result<HostCertificate, AccessError> {
        let key = RequestedKey::read(request)?;
        let _changing = self.changing();
        let known = self.known().hosts.get(&host).cloned().ok_or(AccessError::UnknownHost(host))?;
        check_same(&known, &key)?;
        let issued = self.current_authorities().issue(
            Peer::Host(host),
            &key,
            now.saturating_add(self.host_lifetime),
            now,
        )?;
        self.store.renew(host, &issued.validity)?;
        self.change(host, |host| host.certificate = issued.validity);
        Ok(self.certificate(host, issued, now))
    }

    fn certificate(&self, host: HostId, issued: Issued, now: Timestamp) -> HostCertificate {
        HostCertificate { host, issued, authorities: self.current_authorities().believed(now) }
    }

    fn check_room(&self) -> Result<(), AccessError> {
        let known = self.known();
        let enrolled = known.hosts.values().filter(|host| host.revoked.is_none()).count();
        let has_room = enrolled < AGENTS_MAX && known.hosts.len() < HOSTS_KEPT_MAX;
        if has_room { Ok(()) } else { Err(AccessError::TooManyHosts) }
    }

    /// Ends a host's enrolment.
    ///
    /// # Errors
    /// When it is not known, or that cannot be kept.
    pub fn revoke_host(&self, host: HostId, now: Timestamp) -> Result<(), AccessError> {
        let _changing = self.changing();
        if !self.known().hosts.contains_key(&host) {
            return Err(AccessError::UnknownHost(host));
        }
        self.store.revoke_host(host, now)?;
        self.change(host, |host| host.revoked = host.revoked.or(Some(now)));
        self.worsen();
        Ok(())
    }

    /// How a host stands.
    pub fn standing(&self, host: HostId) -> Standing {
        match self.known().hosts.get(&host) {
            None => Standing::Unknown,
            Some(host) if host.revoked.is_some() => Standing::Revoked,
            Some(host) => Standing::Enrolled {
                key: host.key,
                not_after: host.certificate.not_after,
                is_copied: host.copied.is_some(),
            },
        }
    }

    /// A host that is or was enrolled.
    pub fn host(&self, host: HostId) -> Option<EnrolledHost> {
        self.known().hosts.get(&host).cloned()
    }

    /// All hosts that are or were enrolled, by id.
    pub fn hosts(&self) -> Vec<EnrolledHost> {
        let mut hosts: Vec<EnrolledHost> = self.known().hosts.values().cloned().collect();
        hosts.sort_by_key(|host| host.id);
        hosts
    }

    /// Whether somebody who has shown the host's certificate, comes from `here` and presents this, is let in. `alive`: who else
    /// is connected as the host, if that has just answered. A lease is on the disk before it is told.
    ///
    /// # Errors
    /// When the host is not enrolled, or what is decided cannot be kept.
    pub fn admit(
        &self,
        host: HostId,
        presented: &Presented,
        here: Place,
        alive: Option<(Instance, Place)>,
    ) -> Result<Admittance, AccessError> {
        let fresh = Lease::from_bytes(random()?);
        let (decided, is_new) = self.decide(host, presented, here.bounded(), alive, fresh)?;
        match &decided {
            Admittance::Admitted { .. } => self.keep_admitted(vec![host])?,
            Admittance::Refused(_) if is_new => self.keep_copied(host)?,
            Admittance::Refused(_) => {}
        }
        Ok(decided)
    }

    /// What is decided, and whether that marks the host.
    fn decide(
        &self,
        host: HostId,
        presented: &Presented,
        here: Place,
        alive: Option<(Instance, Place)>,
        fresh: Lease,
    ) -> Result<(Admittance, bool), AccessError> {
        let mut known = self.known_mut();
        let known = known.hosts.get_mut(&host).ok_or(AccessError::UnknownHost(host))?;
        if known.revoked.is_some() {
            return Err(AccessError::Revoked(host));
        }
        let instance = alive.as_ref().map(|(instance, _)| *instance);
        let verdict = known.leases.decide(presented, instance, known.copied.is_some());
        if verdict == Verdict::Copy {
            let there = alive.map(|(_, place)| place).or_else(|| known.admitted.clone());
            let copied = Copied { there, here };
            // The first two places are kept, and those that come after them are told of only.
            let is_new = known.copied.is_none();
            known.copied.get_or_insert_with(|| copied.clone());
            return Ok((Admittance::Refused(copied), is_new));
        }
        known.leases.offer(presented.lease, verdict, fresh);
        let before = known.admitted.replace(here);
        let rewound = (verdict == Verdict::Rewind).then_some(Rewound { before });
        Ok((Admittance::Admitted { lease: fresh, rewound }, false))
    }

    /// The host has kept the lease. False if another was given out meanwhile: whoever this is came another time since, and
    /// this connection is over.
    pub fn confirm(&self, host: HostId, lease: Lease) -> bool {
        let confirmed =
            self.known_mut().hosts.get_mut(&host).is_some_and(|known| known.leases.confirm(lease));
        if confirmed {
            lock(&self.unwritten).confirmed.insert(host);
        }
        confirmed
    }

    /// Takes the mark from a host that was found in two places.
    ///
    /// # Errors
    /// When it is not known, or that cannot be kept.
    pub fn unmark(&self, host: HostId) -> Result<(), AccessError> {
        let _changing = self.changing();
        if !self.known().hosts.contains_key(&host) {
            return Err(AccessError::UnknownHost(host));
        }
        self.store.mark_copied(host, None)?;
        self.change(host, |host| host.copied = None);
        Ok(())
    }

    /// What is written is what is known then: another change of the same host may have come meanwhile.
    pub(super) fn keep_admitted(&self, hosts: Vec<HostId>) -> Result<(), AccessError> {
        let known = Arc::clone(&self.known);
        let admitted = move || {
            let known = known.read().unwrap_or_else(PoisonError::into_inner);
            let of = |host: &HostId| {
                let known = known.hosts.get(host)?;
                Some(Admitted { host: *host, leases: known.leases.clone(), place: known.admitted.clone() })
            };
            hosts.iter().filter_map(of).collect()
        };
        Ok(self.store.keep_admitted(admitted)?)
    }

    fn keep_copied(&self, host: HostId) -> Result<(), AccessError> {
        let _changing = self.changing();
        let copied = self.known().hosts.get(&host).and_then(|host| host.copied.clone());
        let kept = self.store.mark_copied(host, copied.as_ref());
        if kept.is_err() {
            // So that the next who is refused tries again.
            self.change(host, |host| host.copied = None);
        }
        Ok(kept?)
    }

    fn change(&self, host: HostId, change: impl FnOnce(&mut EnrolledHost)) {
        if let Some(host) = self.known_mut().hosts.get_mut(&host) {
            change(host);
        }
    }
}

/// Whether the host may have a certificate with this key.
fn check_same(host: &EnrolledHost, key: &RequestedKey) -> Result<(), AccessError> {
    if host.revoked.is_some() {
        Err(AccessError::Revoked(host.id))
    } else if host.key != key.hash() {
        Err(AccessError::OtherKey(host.id))
    } else if host.copied.is_some() {
        Err(AccessError::Copied(host.id))
    } else {
        Ok(())
    }
}
