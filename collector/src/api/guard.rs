//! Who may call what: every request of an analyst passes here, and nowhere else. What is not allowed is denied.
//!
//! Who asks is known by the certificate of the connection, or by the token that comes with the request; on the collector's own
//! socket, which only its user can open, by that. Each request is looked at anew, so what is revoked counts no longer from the
//! next one on.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use alibi_proto::{time::Timestamp, transport::LocalUser};
use http::{Extensions, HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use crate::{
    access::{
        Access, Analyst,
        audit::{self, Actor, Note, Scope},
        bearer,
        credential::{CredentialId, Refusal, Secret},
        policy,
        rate::{FAILURES, Limiter, QUESTIONS, network_of},
        role::Role,
    },
    clock,
    store::lock,
    visits::Visit,
};

/// Who asks, among the extensions of a request that the guard has let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// By which credential, and until when that is good; none on the collector's own socket.
    pub credential: Option<(CredentialId, Timestamp)>,
    /// Where it comes from.
    pub from: String,
}

/// Decides on requests.
#[derive(Debug)]
pub struct Guard {
    access: Arc<Access>,
    began: Instant,
    questions: Mutex<Limiter<CredentialId>>,
    failures: Mutex<Limiter<IpAddr>>,
}

impl Guard {
    /// By what `access` knows.
    pub fn new(access: Arc<Access>) -> Arc<Self> {
        let (questions, failures) = (Limiter::new(QUESTIONS).into(), Limiter::new(FAILURES).into());
        Arc::new(Self { access, began: Instant::now(), questions, failures })
    }

    /// Who asks, if they may call the method at `path`.
    fn let_in(&self, extensions: &Extensions, headers: &HeaderMap, path: &str) -> Result<Caller, Refused> {
        let caller = match (extensions.get::<Arc<Visit>>(), extensions.get::<LocalUser>()) {
            (Some(visit), _) => self.remote(visit, headers, path)?,
            (None, Some(user)) => {
                let name = format!("user {}", user.0);
                Caller { name, role: Role::Admin, credential: None, from: "this machine".to_owned() }
            }
            (None, None) => return Err(Status::unauthenticated("nobody has said who asks").into()),
        };
        // Before it is looked at what they want: what is denied is noted, too, and each note takes room.
        if let Some((credential, _)) = caller.credential {
            lock(&self.questions).take(&credential, self.began.elapsed()).map_err(slow_down)?;
        }
        if let Err(denied) = policy::check(caller.role, path) {
            let why = denied.to_string();
            let status = Status::permission_denied(why.clone());
            let deed = Deed::Denied { caller, action: path.to_owned(), why };
            return Err(Refused { status, deed: Some(Box::new(deed)) });
        }
        Ok(caller)
    }

    fn remote(&self, visit: &Visit, headers: &HeaderMap, path: &str) -> Result<Caller, Refused> {
        let ip = visit.from.ip();
        let now = clock::now();
        let shown = match visit.certificate() {
            // It was proven in the handshake: whoever else fails from the same address is no reason to wait.
            Some(number) => self.access.credential(CredentialId(number), now),
            None => {
                self.may_try(ip)?;
                token_of(headers).and_then(|secret| self.access.credential_by_secret(&secret, now))
            }
        };
        let Analyst { credential, name, role, expires } = shown.map_err(|refusal| {
            self.failed(ip);
            let deed = Deed::Stranger { ip, action: path.to_owned(), why: refusal.to_string() };
            Refused { status: Status::unauthenticated(refusal.outward()), deed: Some(Box::new(deed)) }
        })?;
        visit.known_by(credential.0);
        Ok(Caller { name, role, credential: Some((credential, expires)), from: visit.from.to_string() })
    }

    /// Whether somebody from this address may still try.
    pub(super) fn may_try(&self, ip: IpAddr) -> Result<(), Status> {
        lock(&self.failures).would_take(&network_of(ip), self.began.elapsed()).map_err(slow_down)
    }

    /// Somebody from this address has tried, and failed.
    pub(super) fn failed(&self, ip: IpAddr) {
        // Whether it was the last that is allowed shows at the next.
        let _ = lock(&self.failures).take(&network_of(ip), self.began.elapsed());
    }

    /// Notes what was refused. Blocks.
    pub(super) fn note(&self, deed: Deed) {
        let noted = match deed {
            Deed::Stranger { ip, action, why } => {
                let (action, outcome) = (action.as_str(), why.as_str());
                let refusal = audit::Refusal { from: Some(ip), action, outcome, ..Default::default() };
                self.access.audit().refused(&refusal, clock::now())
            }
            Deed::Denied { caller, action, why } => {
                let note = Note {
                    actor: Actor::Analyst { name: caller.name, role: caller.role },
                    from: caller.from,
                    action,
                    detail: String::new(),
                    outcome: why,
                    rows: 0,
                    scope: Scope::Hosts(Vec::new()),
                };
                self.access.audit().append(note, clock::now()).map(drop)
            }
        };
        if let Err(error) = noted {
            tracing::error!(%error, "a refusal could not be noted");
        }
    }
}

/// A request that is not let through, and what is noted of it.
struct Refused {
    status: Status,
    deed: Option<Box<Deed>>,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { status, deed: None }
    }
}

/// Something that was refused.
pub(super) enum Deed {
    /// To somebody who is not known.
    Stranger {
        /// From where.
        ip: IpAddr,
        /// What they wanted.
        action: String,
        /// Why not.
        why: String,
    },
    /// To somebody who may not.
    Denied {
        /// Who.
        caller: Caller,
        /// What they wanted.
        action: String,
        /// Why not.
        why: String,
    },
}

fn token_of(headers: &HeaderMap) -> Result<Secret, Refusal> {
    let header = headers.get(AUTHORIZATION).ok_or(Refusal::Unknown)?;
    header.to_str().ok().and_then(bearer::read).ok_or(Refusal::Unknown)
}

/// After how many milliseconds somebody may try again who was asked to slow down, in a refusal (gRPC A6).
pub(crate) const RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";

fn slow_down(wait: Duration) -> Status {
    let wait_ms = wait.as_millis() + 1;
    let mut status = Status::resource_exhausted(format!("that is too often: try again in {wait_ms} ms"));
    if let Ok(wait_ms) = wait_ms.to_string().parse() {
        status.metadata_mut().insert(RETRY_PUSHBACK, wait_ms);
    }
    status
}

/// A service behind the guard.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    service: S,
    guard: Arc<Guard>,
}

impl<S> Guarded<S> {
    /// Nobody reaches `service` but by the guard.
    pub fn new(service: S, guard: Arc<Guard>) -> Self {
        Self { service, guard }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let clone = self.service.clone();
        // The one that is ready, as tower wants it.
        let mut service = std::mem::replace(&mut self.service, clone);
        let guard = Arc::clone(&self.guard);
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            match guard.let_in(request.extensions(), request.headers(), &path) {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    service.call(request).await
                }
                Err(Refused { status, deed }) => {
                    if let Some(deed) = deed {
                        // One that panicked has been told of.
                        let _ = tokio::task::spawn_blocking(move || guard.note(*deed)).await;
                    }
                    Ok(status.into_http())
                }
            }
        })
    }
}
