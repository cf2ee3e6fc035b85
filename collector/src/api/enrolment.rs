//! The `Enrolment` service: certificates, for tokens and for the certificates before them.

use std::{net::IpAddr, sync::Arc};

use alibi_proto::{
    id::HostId,
    tls::Peer,
    wire::{
        self,
        enrolment_server::{Enrolment, EnrolmentServer},
    },
};
use tonic::{Request, Response, Status};

use super::{
    access_status,
    administration::wire_role,
    guard::{Deed, Guard},
};
use crate::{
    access::{
        Access, AccessError, HostCertificate,
        audit::{Actor, Note, Scope},
        credential::Secret,
    },
    clock,
    fleet::Fleet,
    visits::Visit,
};

/// Bytes of a request: a certificate request and a secret.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// What the service gives certificates by.
#[derive(Clone)]
pub struct Service {
    access: Arc<Access>,
    fleet: Arc<Fleet>,
    guard: Arc<Guard>,
}

impl Service {
    /// A service that lists the hosts that it enrols in `fleet`.
    pub fn new(access: Arc<Access>, fleet: Arc<Fleet>, guard: Arc<Guard>) -> Self {
        Self { access, fleet, guard }
    }

    /// As a gRPC service with its limits.
    pub fn into_server(self) -> EnrolmentServer<Self> {
        EnrolmentServer::new(self)
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(1 << 20)
    }

    /// Does what somebody at `visit` asks for, and notes it, whatever came of it.
    async fn granted<T: Send + 'static>(
        &self,
        visit: Arc<Visit>,
        action: &'static str,
        grant: impl FnOnce(&Self) -> Result<(T, Note), AccessError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let service = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let ip: IpAddr = visit.from.ip();
            // Who has proven who they are guesses nothing, and does not wait for others who fail from the same address.
            let is_known = visit.peer.is_some();
            if !is_known {
                service.guard.may_try(ip)?;
            }
            match grant(&service) {
                Ok((given, note)) => {
                    service.access.audit().append(note, clock::now()).map_err(|error| {
                        tracing::error!(%error, "the audit log cannot be written");
                        Status::unavailable("the audit log cannot be written")
                    })?;
                    Ok(given)
                }
                Err(error) => {
                    let why = error.to_string();
                    if !is_known {
                        service.guard.failed(ip);
                    }
                    service.guard.note(Deed::Stranger { ip, action: action.to_owned(), why });
                    Err(access_status(error))
                }
            }
        });
        done.await.map_err(|_| Status::internal("the work was interrupted"))?.map(Response::new)
    }
}

fn visit<T>(request: &Request<T>) -> Result<Arc<Visit>, Status> {
    let visit = request.extensions().get::<Arc<Visit>>().cloned();
    visit.ok_or_else(|| Status::unauthenticated("nobody has said where this comes from"))
}

fn secret(bytes: Vec<u8>) -> Result<Secret, Status> {
    let bytes = bytes.try_into().map_err(|_| Status::invalid_argument("a token's secret has 32 bytes"))?;
    Ok(Secret::from_bytes(bytes))
}

fn certificate(given: HostCertificate) -> wire::HostCertificate {
    wire::HostCertificate {
        host: given.host.as_bytes().to_vec(),
        chain: given.issued.chain,
        authorities: given.authorities,
        not_before_ns: given.issued.validity.not_before.as_nanos(),
        not_after_ns: given.issued.validity.not_after.as_nanos(),
    }
}

/// What is noted of a certificate of a host.
fn note(host: HostId, visit: &Visit, action: &str, detail: String) -> Note {
    Note {
        actor: Actor::Host(host),
        from: visit.from.to_string(),
        action: action.to_owned(),
        detail,
        outcome: "ok".to_owned(),
        rows: 0,
        scope: Scope::Hosts(vec![host]),
    }
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enrol_host(
        &self,
        request: Request<wire::EnrolHostRequest>,
    ) -> Result<Response<wire::HostCertificate>, Status> {
        const ACTION: &str = "enrol";
        let visit = visit(&request)?;
        let request = request.into_inner();
        let secret = secret(request.secret)?;
        let host: [u8; 16] =
            request.host.try_into().map_err(|_| Status::invalid_argument("a host's id has 16 bytes"))?;
        let host = HostId::from_bytes(host);
        let runtime = tokio::runtime::Handle::current();
        let from = Arc::clone(&visit);
        self.granted(visit, ACTION, move |service| {
            let (name, at) = (request.name, from.from.to_string());
            let now = clock::now();
            let given = service.access.enrol(&secret, &request.certificate_request, host, &name, &at, now)?;
            // From now on it is listed, whether it ever calls or not.
            service.fleet.expect(host, &runtime)?;
            Ok((certificate(given), note(host, &from, ACTION, name)))
        })
        .await
    }

    async fn renew_host(
        &self,
        request: Request<wire::RenewHostRequest>,
    ) -> Result<Response<wire::HostCertificate>, Status> {
        const ACTION: &str = "renew";
        let visit = visit(&request)?;
        let Some(Peer::Host(host)) = visit.peer else {
            return Err(Status::unauthenticated(
                "a host renews its certificate by showing the one that it has",
            ));
        };
        let request = request.into_inner().certificate_request;
        let from = Arc::clone(&visit);
        self.granted(visit, ACTION, move |service| {
            let given = service.access.renew(host, &request, clock::now())?;
            Ok((certificate(given), note(host, &from, ACTION, String::new())))
        })
        .await
    }

    async fn login(
        &self,
        request: Request<wire::LoginRequest>,
    ) -> Result<Response<wire::AnalystCertificate>, Status> {
        const ACTION: &str = "login";
        let visit = visit(&request)?;
        let request = request.into_inner();
        let secret = secret(request.secret)?;
        let from = Arc::clone(&visit);
        self.granted(visit, ACTION, move |service| {
            let given = service.access.login(&secret, &request.certificate_request, clock::now())?;
            let note = Note {
                actor: Actor::Analyst { name: given.analyst.name.clone(), role: given.analyst.role },
                from: from.from.to_string(),
                action: ACTION.to_owned(),
                detail: format!("as credential {}", given.analyst.credential),
                outcome: "ok".to_owned(),
                rows: 0,
                scope: Scope::Hosts(Vec::new()),
            };
            let given = wire::AnalystCertificate {
                credential: given.analyst.credential.0,
                not_after_ns: given.analyst.expires.as_nanos(),
                role: wire_role(given.analyst.role).into(),
                name: given.analyst.name,
                chain: given.chain,
                authorities: given.authorities,
            };
            Ok((given, note))
        })
        .await
    }
}
