//! Tokens and analysts' certificates: made, exchanged, found and ended.

use std::time::Duration;

use alibi_proto::{time::Timestamp, tls::Peer};

use super::{
    Access, AccessError, Known,
    authority::{ANALYST_LIFETIME_MAX, RequestedKey},
    credential::{
        CREDENTIALS_MAX, CreatedToken, Credential, CredentialId, CredentialKind, LISTED_MAX, LOGINS_MAX,
        Refusal, Secret, SecretHash, USES_MAX, check_name, check_tags, expiry,
    },
    role::Role,
};
use crate::store::{Bounded, lock};

/// How long the token of the first admin is good for, and what it is called.
const BOOTSTRAP_LIFETIME: Duration = Duration::from_secs(86_400);
const BOOTSTRAP_NAME: &str = "admin";

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Analyst {
    /// By which credential.
    pub credential: CredentialId,
    /// Who it is.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Until when the credential is good.
    pub expires: Timestamp,
}

/// What an analyst got for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnalystCertificate {
    /// Who it is, until when, and the certificate's number.
    pub analyst: Analyst,
    /// X.509, DER: the analyst's own first, then what it takes to reach a CA.
    pub chain: Vec<Vec<u8>>,
    /// The CAs to believe, X.509, DER.
    pub authorities: Vec<Vec<u8>>,
}

impl Access {
    /// The token of the first admin, good for one login within a day; none if there ever was a credential of an admin's.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub fn bootstrap(&self, now: Timestamp) -> Result<Option<CreatedToken>, AccessError> {
        let _changing = self.changing();
        if self.known().had_admin {
            return Ok(None);
        }
        let credential = Credential {
            name: BOOTSTRAP_NAME.to_owned(),
            role: Some(Role::Admin),
            uses_max: 1,
            ..self.blank(CredentialKind::AnalystToken, now, now.saturating_add(BOOTSTRAP_LIFETIME))
        };
        self.create(credential, now).map(Some)
    }

    /// A token with which up to `uses` hosts enrol.
    ///
    /// # Errors
    /// When it goes over a bound, or cannot be kept.
    pub fn create_enrolment_token(
        &self,
        uses: u32,
        lifetime: Duration,
        tags: Vec<String>,
        now: Timestamp,
    ) -> Result<CreatedToken, AccessError> {
        if !(1..=USES_MAX).contains(&uses) {
            return Err(AccessError::Uses(uses));
        }
        check_tags(&tags)?;
        let expires = expiry(lifetime, now)?;
        let _changing = self.changing();
        let blank = self.blank(CredentialKind::EnrolmentToken, now, expires);
        self.create(Credential { tags, uses_max: uses, ..blank }, now)
    }

    /// A token with which an analyst, or an analyst's program, asks or logs in.
    ///
    /// # Errors
    /// When it goes over a bound, or cannot be kept.
    pub fn create_analyst_token(
        &self,
        name: &str,
        role: Role,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<CreatedToken, AccessError> {
        check_name(name)?;
        let expires = expiry(lifetime, now)?;
        let _changing = self.changing();
        let blank = self.blank(CredentialKind::AnalystToken, now, expires);
        self.create(Credential { name: name.to_owned(), role: Some(role), ..blank }, now)
    }

    /// A certificate for the analyst whose token it is, with the key of the request. It is good for as long as the token, and
    /// no longer than [`ANALYST_LIFETIME_MAX`].
    ///
    /// # Errors
    /// When the token is not good for it, the request is no request, or it cannot be kept.
    pub fn login(
        &self,
        secret: &Secret,
        request: &[u8],
        now: Timestamp,
    ) -> Result<AnalystCertificate, AccessError> {
        // What a stranger sends is not looked at any further.
        self.token(secret, CredentialKind::AnalystToken, now)?;
        let key = RequestedKey::read(request)?;
        let _changing = self.changing();
        let token = self.token(secret, CredentialKind::AnalystToken, now)?;
        let is_good = |other: &&Credential| other.parent == Some(token.id) && other.check(now).is_ok();
        if self.known().credentials.values().filter(is_good).count() >= LOGINS_MAX {
            return Err(AccessError::TooManyLogins);
        }
        let longest = now.saturating_add(ANALYST_LIFETIME_MAX);
        // A token for one login is short-lived for its own sake, and not for that of whoever logs in.
        let until = if token.uses_max == 1 { longest } else { token.expires.min(longest) };
        let blank = self.blank(CredentialKind::AnalystCertificate, now, until);
        let authorities = self.current_authorities();
        let issued = authorities.issue(Peer::Analyst(blank.id.0), &key, until, now)?;
        let credential = Credential {
            name: token.name,
            role: token.role,
            parent: Some(token.id),
            expires: issued.validity.not_after,
            ..blank
        };
        let analyst = analyst(&credential)?;
        self.add(credential, None, now)?;
        Ok(AnalystCertificate { analyst, chain: issued.chain, authorities: authorities.believed(now) })
    }

    /// Who asks with the certificate of this number.
    ///
    /// # Errors
    /// When it is not good.
    pub fn credential(&self, id: CredentialId, now: Timestamp) -> Result<Analyst, Refusal> {
        let asks = self.known().asks(id, CredentialKind::AnalystCertificate, now)?;
        self.note_use(id, now);
        Ok(asks)
    }

    /// Whether the credential of this number is good still.
    pub fn is_good(&self, id: CredentialId, now: Timestamp) -> bool {
        self.known().credentials.get(&id).is_some_and(|credential| credential.check(now).is_ok())
    }

    /// Who asks with the token of this secret.
    ///
    /// # Errors
    /// When it is not good for that.
    pub fn credential_by_secret(&self, secret: &Secret, now: Timestamp) -> Result<Analyst, Refusal> {
        let asks = {
            let known = self.known();
            let id = known.by_secret.get(&secret.hash()).ok_or(Refusal::Unknown)?;
            known.asks(*id, CredentialKind::AnalystToken, now)?
        };
        self.note_use(asks.credential, now);
        Ok(asks)
    }

    fn note_use(&self, id: CredentialId, now: Timestamp) {
        let mut unwritten = lock(&self.unwritten);
        let used = unwritten.used.entry(id).or_default();
        used.last = now;
        used.times = used.times.saturating_add(1);
    }

    /// The credentials, the newest first, at most [`LISTED_MAX`].
    pub fn credentials(&self) -> Bounded<Credential> {
        let known = self.known();
        let mut ids: Vec<CredentialId> = known.credentials.keys().copied().collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        let left_out = ids.len().saturating_sub(LISTED_MAX) as u64;
        let rows = ids.iter().take(LISTED_MAX).filter_map(|id| known.credentials.get(id).cloned());
        let mut rows: Vec<Credential> = rows.collect();
        drop(known);
        let unwritten = lock(&self.unwritten);
        for credential in &mut rows {
            if let Some(used) = unwritten.used.get(&credential.id) {
                credential.used = Some(used.last);
                credential.uses = credential.uses.saturating_add(used.times);
            }
        }
        Bounded { rows, left_out }
    }

    /// Ends a credential, and what was given for it.
    ///
    /// # Errors
    /// When there is none of this number, or it cannot be kept.
    pub fn revoke_credential(&self, id: CredentialId, now: Timestamp) -> Result<(), AccessError> {
        let _changing = self.changing();
        if !self.known().credentials.contains_key(&id) {
            return Err(AccessError::UnknownCredential(id));
        }
        self.store.revoke_credential(id, now)?;
        let ends = |credential: &&mut Credential| credential.id == id || credential.parent == Some(id);
        for credential in self.known_mut().credentials.values_mut().filter(ends) {
            credential.revoked = credential.revoked.or(Some(now));
        }
        self.worsen();
        Ok(())
    }

    /// The token of this secret, if it is good for what is asked.
    pub(super) fn token(
        &self,
        secret: &Secret,
        kind: CredentialKind,
        now: Timestamp,
    ) -> Result<Credential, Refusal> {
        let known = self.known();
        let id = known.by_secret.get(&secret.hash()).ok_or(Refusal::Unknown)?;
        known.good(*id, kind, now).cloned()
    }

    /// One that nobody has yet. Only who changes something may ask for it.
    fn blank(&self, kind: CredentialKind, now: Timestamp, expires: Timestamp) -> Credential {
        Credential {
            id: self.known().next_credential,
            kind,
            name: String::new(),
            role: None,
            parent: None,
            tags: Vec::new(),
            created: now,
            expires,
            revoked: None,
            used: None,
            uses: 0,
            uses_max: 0,
        }
    }

    fn create(&self, credential: Credential, now: Timestamp) -> Result<CreatedToken, AccessError> {
        let secret = Secret::random()?;
        let created = CreatedToken { id: credential.id, expires: credential.expires, secret };
        self.add(credential, Some(created.secret.hash()), now)?;
        Ok(created)
    }

    fn add(
        &self,
        credential: Credential,
        secret: Option<SecretHash>,
        now: Timestamp,
    ) -> Result<(), AccessError> {
        if self.known().credentials.len() >= CREDENTIALS_MAX {
            self.forget_credentials(now)?;
        }
        if self.known().credentials.len() >= CREDENTIALS_MAX {
            return Err(AccessError::TooManyCredentials);
        }
        if !self.store.add_credential(&credential, secret)? {
            return Err(Refusal::UsedUp.into());
        }
        let known = &mut *self.known_mut();
        if let Some(token) = credential.parent.and_then(|parent| known.credentials.get_mut(&parent)) {
            token.spent(now);
        }
        known.next_credential = CredentialId(credential.id.0 + 1);
        known.had_admin |= credential.role == Some(Role::Admin);
        known.by_secret.extend(secret.map(|secret| (secret, credential.id)));
        known.credentials.insert(credential.id, credential);
        Ok(())
    }
}

impl Known {
    fn good(&self, id: CredentialId, kind: CredentialKind, now: Timestamp) -> Result<&Credential, Refusal> {
        let credential = self.credentials.get(&id).ok_or(Refusal::Unknown)?;
        if credential.kind != kind {
            return Err(Refusal::OtherKind);
        }
        credential.check(now).map(|()| credential)
    }

    fn asks(&self, id: CredentialId, kind: CredentialKind, now: Timestamp) -> Result<Analyst, Refusal> {
        let credential = self.good(id, kind, now)?;
        if credential.uses_max != 0 {
            return Err(Refusal::LoginOnly);
        }
        analyst(credential)
    }
}

/// A credential of an analyst's without a role is damage, and good for nothing.
fn analyst(credential: &Credential) -> Result<Analyst, Refusal> {
    Ok(Analyst {
        credential: credential.id,
        name: credential.name.clone(),
        role: credential.role.ok_or(Refusal::OtherKind)?,
        expires: credential.expires,
    })
}
