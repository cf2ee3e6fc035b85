//! Who may send, who may ask, and what was done: the collector's CA, the hosts that are enrolled, tokens and analysts'
//! certificates, roles, and the audit log. No sockets, no TLS, no gRPC: whoever has those asks here.
//!
//! - What was decided is on the disk before anybody is told of it, and in memory only after that. What is asked for each
//!   connection and each question ([`Access::standing`], [`Access::credential`], [`Access::credential_by_secret`]) is answered
//!   from memory. Leases alone are in memory first: nobody has one that is not on the disk.
//! - Calls block where they write. `now` is an argument. A clock that is set back makes nothing good again that was revoked,
//!   used up or retired; what has expired, it does.
//! - Nobody learns from a refusal whether there is such a token, but who has it.
//!
//! Pure: [`lease`], [`rate`], [`role`], [`policy`], and what is counted of refusals.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use alibi_proto::{id::HostId, time::Timestamp};
use tokio::sync::watch;

use self::{
    audit::Audit,
    authority::{Authorities, Authority, HOST_LIFETIME, OwnCertificate},
    credential::{Credential, CredentialId, KEPT_AFTER_EXPIRY, SecretHash},
    host::EnrolledHost,
};
use crate::store::{
    access::{AccessStore, Use},
    lock,
};

pub mod audit;
pub mod authority;
pub mod bearer;
pub mod credential;
mod enrolment;
mod error;
pub mod host;
pub mod lease;
pub mod policy;
pub mod rate;
pub mod role;
#[cfg(test)]
mod tests;
mod token;

pub use enrolment::{Admittance, HostCertificate};
pub use error::AccessError;
pub use token::{Analyst, AnalystCertificate};

const DATABASE: &str = "access.db";
/// How often what is long past is looked for.
const SWEPT_EACH: std::time::Duration = std::time::Duration::from_secs(86_400);

/// How long a host's certificate may be good for: at least long enough to be renewed in time.
const HOST_LIFETIME_MIN: Duration = Duration::from_secs(10);
const HOST_LIFETIME_MAX: Duration = Duration::from_secs(365 * 86_400);

/// All that is decided about access.
pub struct Access {
    /// How long a host's certificate is good for.
    host_lifetime: Duration,
    store: Arc<AccessStore>,
    audit: Audit,
    authorities: RwLock<Arc<Authorities>>,
    /// Innermost: whoever has it takes no other lock, and does not write.
    known: Arc<RwLock<Known>>,
    /// Held while something is changed, so that what is in memory follows what is on the disk in the same order.
    changing: Mutex<()>,
    /// What is not written yet.
    unwritten: Mutex<Unwritten>,
    /// Counts what makes somebody's standing worse.
    worsened: watch::Sender<u64>,
}

/// What the store has, in memory.
struct Known {
    hosts: HashMap<HostId, EnrolledHost>,
    credentials: HashMap<CredentialId, Credential>,
    by_secret: HashMap<SecretHash, CredentialId>,
    next_credential: CredentialId,
    /// There was a credential of an admin's once.
    had_admin: bool,
}

/// What a crash may take away.
#[derive(Default)]
struct Unwritten {
    used: HashMap<CredentialId, Use>,
    /// Hosts that have confirmed what they were offered. Whoever presents an offer is admitted as well.
    confirmed: HashSet<HostId>,
    swept: Option<Timestamp>,
}

/// A CA, for whoever looks after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityStatus {
    /// The CA.
    pub authority: Authority,
    /// Hosts that are enrolled, and whose newest certificate it has signed.
    pub hosts: u64,
}

impl Access {
    /// Reads what there is in the data directory, or makes the first CA.
    ///
    /// # Errors
    /// When the store or the CA's key cannot be used.
    pub fn open(data: &Path, now: Timestamp) -> Result<Self, AccessError> {
        let store = Arc::new(AccessStore::open(&data.join(DATABASE))?);
        let authorities = Authorities::open(data, &store, now)?;
        let (next_credential, had_admin) = store.next_credential()?;
        let mut known = Known {
            hosts: store.hosts()?.into_iter().map(|host| (host.id, host)).collect(),
            credentials: HashMap::new(),
            by_secret: HashMap::new(),
            next_credential,
            had_admin,
        };
        for (credential, secret) in store.credentials()? {
            known.by_secret.extend(secret.map(|secret| (secret, credential.id)));
            known.credentials.insert(credential.id, credential);
        }
        Ok(Self {
            host_lifetime: HOST_LIFETIME,
            audit: Audit::open(Arc::clone(&store))?,
            store,
            authorities: RwLock::new(Arc::new(authorities)),
            known: Arc::new(RwLock::new(known)),
            changing: Mutex::default(),
            unwritten: Mutex::default(),
            worsened: watch::Sender::new(0),
        })
    }

    /// With certificates of hosts that are good for so long.
    ///
    /// # Errors
    /// When that is too short to renew them in, or too long to be short-lived.
    pub fn set_host_lifetime(&mut self, lifetime: Duration) -> Result<(), AccessError> {
        if !(HOST_LIFETIME_MIN..=HOST_LIFETIME_MAX).contains(&lifetime) {
            return Err(AccessError::HostLifetime);
        }
        self.host_lifetime = lifetime;
        Ok(())
    }

    /// The audit log.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Changes each time that somebody's standing got worse, or a CA took over: whoever has a connection looks again whether
    /// it may stay.
    pub fn worsened(&self) -> watch::Receiver<u64> {
        self.worsened.subscribe()
    }

    /// Writes what may wait, and forgets what is long past. To be called every few seconds.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn tick(&self, now: Timestamp) -> Result<(), AccessError> {
        self.audit.flush(now)?;
        self.write_unwritten()?;
        let mut unwritten = lock(&self.unwritten);
        if unwritten.swept.is_none_or(|swept| now.since(swept).max(swept.since(now)) >= SWEPT_EACH) {
            unwritten.swept = Some(now);
            drop(unwritten);
            self.sweep(now)?;
        }
        Ok(())
    }

    fn write_unwritten(&self) -> Result<(), AccessError> {
        let _changing = self.changing();
        let (used, confirmed) = {
            let mut unwritten = lock(&self.unwritten);
            (std::mem::take(&mut unwritten.used), std::mem::take(&mut unwritten.confirmed))
        };
        if !confirmed.is_empty() {
            self.keep_admitted(confirmed.into_iter().collect())?;
        }
        let used: Vec<(CredentialId, Use)> = used.into_iter().collect();
        if !used.is_empty() {
            self.store.note_used(&used)?;
        }
        let mut known = self.known_mut();
        for (id, used) in used {
            if let Some(credential) = known.credentials.get_mut(&id) {
                credential.used = Some(used.last);
                credential.uses = credential.uses.saturating_add(used.times);
            }
        }
        Ok(())
    }

    fn sweep(&self, now: Timestamp) -> Result<(), AccessError> {
        let _changing = self.changing();
        self.forget_credentials(now.saturating_sub(KEPT_AFTER_EXPIRY))
    }

    /// Forgets those that expired before `before`. Only who changes something may ask for it.
    fn forget_credentials(&self, before: Timestamp) -> Result<(), AccessError> {
        if self.known().credentials.values().any(|credential| credential.expires < before) {
            self.store.forget_credentials(before)?;
            let known = &mut *self.known_mut();
            known.credentials.retain(|_, credential| credential.expires >= before);
            known.by_secret.retain(|_, id| known.credentials.contains_key(id));
        }
        Ok(())
    }

    /// The certificates (X.509, DER) of the CAs that are believed, the newest first.
    pub fn authorities(&self, now: Timestamp) -> Vec<Vec<u8>> {
        self.current_authorities().believed(now)
    }

    /// All CAs that there are or were, the newest first: it signs.
    pub fn list_authorities(&self) -> Vec<AuthorityStatus> {
        let authorities = self.current_authorities();
        let known = self.known();
        let signed = |authority: &Authority| {
            let is_its = |host: &&EnrolledHost| {
                host.revoked.is_none() && host.certificate.authority == authority.fingerprint
            };
            known.hosts.values().filter(is_its).count() as u64
        };
        let all = authorities.all().iter();
        all.map(|authority| AuthorityStatus { authority: authority.clone(), hosts: signed(authority) })
            .collect()
    }

    /// A new CA takes over from the newest. The collector needs a new certificate of its own after it.
    ///
    /// # Errors
    /// When there are too many, or it cannot be kept.
    pub fn rotate_authority(&self, now: Timestamp) -> Result<(), AccessError> {
        let _changing = self.changing();
        let rotated = self.current_authorities().rotated(&self.store, now)?;
        self.put_authorities(rotated);
        Ok(())
    }

    /// The CA whose fingerprint begins with `prefix` is believed no longer, and its key is destroyed.
    ///
    /// # Errors
    /// When there is none, there are several, it is the newest, or that cannot be kept.
    pub fn retire_authority(&self, prefix: &str, now: Timestamp) -> Result<(), AccessError> {
        let _changing = self.changing();
        let retired = self.current_authorities().retired(prefix, &self.store, now)?;
        self.put_authorities(retired);
        Ok(())
    }

    /// A new key and certificate for the collector itself. To be asked for again long before it runs out, and each time that
    /// [`Access::worsened`] tells.
    ///
    /// # Errors
    /// When the CA ran out.
    pub fn own_certificate(&self, now: Timestamp) -> Result<OwnCertificate, AccessError> {
        self.current_authorities().own(now)
    }

    fn current_authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.authorities.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whoever verifies or shows certificates has to look again.
    fn put_authorities(&self, authorities: Authorities) {
        *self.authorities.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authorities);
        self.worsen();
    }

    fn worsen(&self) {
        self.worsened.send_modify(|count| *count += 1);
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        lock(&self.changing)
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it guards is changed by one statement after another that cannot fail.
    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There are secrets in it.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

impl Drop for Access {
    /// Best effort: how often something was used is lost otherwise, and no more.
    fn drop(&mut self) {
        if let Err(error) = self.write_unwritten() {
            tracing::error!(%error, "what may wait could not be written");
        }
    }
}
