//! What an admin does: tokens, revocation, the CAs, the audit log.

use std::time::Duration;

use alibi_proto::{
    id::HostId,
    tls::Fingerprint,
    token::{Token, TokenKind},
    wire,
};
use tonic::Status;

use super::{Answered, Service, access_status, store_status, the_one};
use crate::{
    access::{
        audit::{Entry, Filter, Scope, Verified},
        credential::{CreatedToken, Credential, CredentialId, CredentialKind},
        host::Standing,
        role::Role,
    },
    clock,
};

/// Entries of the audit log that are listed unless told otherwise.
const ENTRIES_DEFAULT: u32 = 100;

impl Service {
    /// The token of the first admin; none if there ever was one.
    ///
    /// # Errors
    /// When it cannot be made or handed out.
    pub fn first_admin(&self, kind: TokenKind) -> Result<Option<Token>, Status> {
        self.advertised()?;
        let created = self.access.bootstrap(clock::now()).map_err(access_status)?;
        created.map(|created| self.token(kind, &created)).transpose()
    }

    pub(super) fn enrolment_token(
        &self,
        request: wire::CreateEnrolmentTokenRequest,
    ) -> Result<wire::CreatedToken, Status> {
        let lifetime = Duration::from_nanos(request.lifetime_ns);
        // What cannot be handed out is not made.
        self.advertised()?;
        let created = self.access.create_enrolment_token(request.uses, lifetime, request.tags, clock::now());
        self.hand_out(TokenKind::Host, &created.map_err(access_status)?)
    }

    pub(super) fn analyst_token(
        &self,
        request: &wire::CreateAnalystTokenRequest,
    ) -> Result<wire::CreatedToken, Status> {
        let role = match request.role() {
            wire::Role::Viewer => Role::Viewer,
            wire::Role::Analyst => Role::Analyst,
            wire::Role::Responder => Role::Responder,
            wire::Role::Admin => Role::Admin,
            wire::Role::Unspecified => {
                return Err(Status::invalid_argument(
                    "a role is missing, or not known: is the client newer?",
                ));
            }
        };
        let lifetime = Duration::from_nanos(request.lifetime_ns);
        self.advertised()?;
        let created = self.access.create_analyst_token(&request.name, role, lifetime, clock::now());
        self.hand_out(TokenKind::User, &created.map_err(access_status)?)
    }

    fn hand_out(&self, kind: TokenKind, created: &CreatedToken) -> Result<wire::CreatedToken, Status> {
        Ok(wire::CreatedToken {
            token: self.token(kind, created)?.to_string(),
            credential: created.id.0,
            expires_ns: created.expires.as_nanos(),
        })
    }

    /// A token as it is handed out.
    ///
    /// # Errors
    /// When nobody has said how the collector is reached, or there is no CA.
    pub fn token(&self, kind: TokenKind, created: &CreatedToken) -> Result<Token, Status> {
        let authority = self.access.authorities(clock::now()).first().map(|newest| Fingerprint::of(newest));
        let authority =
            authority.ok_or_else(|| Status::failed_precondition("there is no CA that is valid"))?;
        Ok(Token { kind, address: self.advertised()?, authority, secret: *created.secret.as_bytes() })
    }

    fn advertised(&self) -> Result<alibi_proto::address::HostPort, Status> {
        self.advertised.clone().ok_or_else(|| {
            Status::failed_precondition(
                "nobody has said how this collector is reached from elsewhere: start it with --advertise HOST:PORT",
            )
        })
    }

    pub(super) fn list_credentials(&self) -> wire::CredentialsResponse {
        let listed = self.access.credentials();
        wire::CredentialsResponse {
            credentials: listed.rows.into_iter().map(wire_credential).collect(),
            left_out: listed.left_out,
        }
    }

    pub(super) fn end_credential(&self, number: u64) -> Result<wire::RevokeCredentialResponse, Status> {
        self.access.revoke_credential(CredentialId(number), clock::now()).map_err(access_status)?;
        Ok(wire::RevokeCredentialResponse {})
    }

    pub(super) fn revoke(&self, word: &str) -> Result<Answered<wire::RevokeHostResponse>, Status> {
        let host = self.enrolled(word)?;
        self.access.revoke_host(host, clock::now()).map_err(access_status)?;
        let response = wire::RevokeHostResponse { host: host.as_bytes().to_vec() };
        Ok(Answered { response, rows: 1, about: Scope::Hosts(vec![host]) })
    }

    pub(super) fn unmark(&self, word: &str) -> Result<Answered<wire::UnmarkHostResponse>, Status> {
        let host = self.enrolled(word)?;
        self.access.unmark(host).map_err(access_status)?;
        let response = wire::UnmarkHostResponse { host: host.as_bytes().to_vec() };
        Ok(Answered { response, rows: 1, about: Scope::Hosts(vec![host]) })
    }

    /// The enrolled host that goes by this name or uuid.
    fn enrolled(&self, word: &str) -> Result<HostId, Status> {
        if let Ok(host) = word.parse::<HostId>()
            && self.access.standing(host) != Standing::Unknown
        {
            return Ok(host);
        }
        let scope = wire::HostScope { hosts: vec![word.to_owned()], ..wire::HostScope::default() };
        let agent = the_one(self.in_scope(Some(scope), None)?, word)?;
        let host = match &agent.host {
            Some((description, _)) => Some(description.host),
            None => agent.address.parse().ok(),
        };
        host.filter(|host| self.access.standing(*host) != Standing::Unknown).ok_or_else(|| {
            Status::failed_precondition(format!("`{word}` is not enrolled: `alibi host remove` it"))
        })
    }

    pub(super) fn list_audit(&self, request: wire::AuditRequest) -> Result<wire::AuditResponse, Status> {
        let host = request.host.as_deref().map(|word| self.known(word)).transpose()?;
        let limit = if request.limit == 0 { ENTRIES_DEFAULT } else { request.limit };
        let filter = Filter { host, who: request.who };
        let found =
            self.access.audit().entries(request.before_seq, limit as usize, &filter).map_err(store_status)?;
        Ok(wire::AuditResponse {
            entries: found.entries.into_iter().map(wire_entry).collect(),
            more: found.more,
        })
    }

    /// The host that goes by this name or uuid, followed or not.
    fn known(&self, word: &str) -> Result<HostId, Status> {
        if let Ok(host) = word.parse() {
            return Ok(host);
        }
        let scope = wire::HostScope { hosts: vec![word.to_owned()], ..wire::HostScope::default() };
        let agent = the_one(self.in_scope(Some(scope), None)?, word)?;
        let host = agent.host.map(|(description, _)| description.host).or_else(|| agent.address.parse().ok());
        host.ok_or_else(|| Status::failed_precondition(format!("`{word}` has never answered")))
    }

    pub(super) fn check_audit(&self) -> Result<wire::VerifyAuditResponse, Status> {
        let Verified { from_seq, to_seq, head, mut problems, problems_left_out } =
            self.access.audit().verify().map_err(store_status)?;
        if problems_left_out > 0 {
            problems.push(format!("and {problems_left_out} more"));
        }
        Ok(wire::VerifyAuditResponse { from_seq, to_seq, head: head.as_bytes().to_vec(), problems })
    }

    pub(super) fn list_authorities(&self) -> wire::AuthoritiesResponse {
        let listed = self.access.list_authorities().into_iter();
        let authorities = listed.map(|status| wire::Authority {
            fingerprint: status.authority.fingerprint.to_string(),
            not_before_ns: status.authority.not_before.as_nanos(),
            not_after_ns: status.authority.not_after.as_nanos(),
            retired_ns: status.authority.retired.map(alibi_proto::time::Timestamp::as_nanos),
            hosts: status.hosts,
        });
        wire::AuthoritiesResponse { authorities: authorities.collect() }
    }
}

pub(super) fn wire_role(role: Role) -> wire::Role {
    match role {
        Role::Viewer => wire::Role::Viewer,
        Role::Analyst => wire::Role::Analyst,
        Role::Responder => wire::Role::Responder,
        Role::Admin => wire::Role::Admin,
    }
}

fn wire_credential(credential: Credential) -> wire::Credential {
    let kind = match credential.kind {
        CredentialKind::EnrolmentToken => wire::CredentialKind::EnrolmentToken,
        CredentialKind::AnalystToken => wire::CredentialKind::AnalystToken,
        CredentialKind::AnalystCertificate => wire::CredentialKind::AnalystCertificate,
    };
    wire::Credential {
        credential: credential.id.0,
        kind: kind.into(),
        name: credential.name,
        role: credential.role.map_or(wire::Role::Unspecified, wire_role).into(),
        created_ns: credential.created.as_nanos(),
        expires_ns: credential.expires.as_nanos(),
        revoked_ns: credential.revoked.map(alibi_proto::time::Timestamp::as_nanos),
        used_ns: credential.used.map(alibi_proto::time::Timestamp::as_nanos),
        uses: credential.uses,
        uses_max: credential.uses_max,
        tags: credential.tags,
    }
}

fn wire_entry(entry: Entry) -> wire::AuditEntry {
    wire::AuditEntry {
        seq: entry.seq,
        at_ns: entry.at.as_nanos(),
        who: entry.who,
        role: entry.role,
        from: entry.from,
        action: entry.action,
        detail: entry.detail,
        outcome: entry.outcome,
        rows: entry.rows,
        hosts: entry.hosts.iter().map(|host| host.as_bytes().to_vec()).collect(),
        all_hosts: entry.all_hosts,
        repeats: entry.repeats,
        head: entry.head.as_bytes().to_vec(),
    }
}
