//! The `Analyst` service: what an analyst may ask and do. Who that is, the [`guard`] has made sure of; that it was done, the
//! audit log says before anybody hears the answer.

use std::sync::Arc;

use alibi_proto::{
    address::Address,
    convert::ConvertError,
    id::HostId,
    question::{Answer, Question, Verdict},
    transport::MESSAGE_BYTES_MAX,
    wire::{
        self,
        analyst_server::{Analyst, AnalystServer},
    },
};
use tonic::{Request, Response, Status};

use crate::{
    access::{
        Access, AccessError,
        audit::{Actor, Note, Scope},
    },
    clock,
    fleet::{Fleet, Verified},
    store::{FollowedAgent, Store, StoreError},
};

mod administration;
mod answers;
pub mod enrolment;
mod executables;
pub mod guard;
mod novelty;
mod parts;
mod process;
mod scope;
mod search;
mod top;
mod unanswered;
mod who;

use answers::VERIFY_TIMEOUT;
use guard::Caller;

/// What the service answers from.
#[derive(Clone)]
pub struct Service {
    store: Arc<dyn Store>,
    fleet: Arc<Fleet>,
    access: Arc<Access>,
    /// How agents and analysts reach the collector, for the tokens that it makes.
    advertised: Option<alibi_proto::address::HostPort>,
}

/// An answer, and what is noted of it.
struct Answered<T> {
    response: T,
    rows: u64,
    about: Scope,
}

impl<T> Answered<T> {
    /// About no host.
    fn about_none(response: T) -> Self {
        Self { response, rows: 0, about: Scope::Hosts(Vec::new()) }
    }
}

impl Service {
    /// A service over a store and its fleet.
    pub fn new(
        store: Arc<dyn Store>,
        fleet: Arc<Fleet>,
        access: Arc<Access>,
        advertised: Option<alibi_proto::address::HostPort>,
    ) -> Self {
        Self { store, fleet, access, advertised }
    }

    /// As a gRPC service with its limits.
    pub fn into_server(self) -> AnalystServer<Self> {
        // Questions are small; answers are bounded by what they list.
        AnalystServer::new(self)
            .max_decoding_message_size(1 << 20)
            .max_encoding_message_size(4 * MESSAGE_BYTES_MAX)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Self) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let service = self.clone();
        tokio::task::spawn_blocking(move || call(&service))
            .await
            .map_err(|_| Status::internal("the work was interrupted"))?
    }

    /// Notes what `caller` did and what came of it, and only then lets the answer go.
    async fn told<T: Send + 'static, M: From<T>>(
        &self,
        caller: Caller,
        action: &'static str,
        detail: String,
        answered: Result<Answered<T>, Status>,
    ) -> Result<Response<M>, Status> {
        let (outcome, rows, scope) = match &answered {
            Ok(Answered { rows, about, .. }) => ("ok".to_owned(), *rows, about.clone()),
            Err(status) => (status.message().to_owned(), 0, Scope::Hosts(Vec::new())),
        };
        let note = Note {
            actor: Actor::Analyst { name: caller.name, role: caller.role },
            from: caller.from,
            action: action.to_owned(),
            detail,
            outcome,
            rows,
            scope,
        };
        let service = self.clone();
        let noted = tokio::task::spawn_blocking(move || {
            service.access.audit().append(note, clock::now()).map_err(|error| {
                tracing::error!(%error, "the audit log cannot be written");
                Status::unavailable("the audit log cannot be written, and nothing is answered without it")
            })
        });
        // The message is made meanwhile.
        let response = answered.map(|answered| Response::new(answered.response.into()));
        noted.await.map_err(|_| Status::internal("the work was interrupted"))??;
        response
    }
}

/// Who asks, and what. Nobody comes here but by the guard.
fn open<T>(mut request: Request<T>) -> Result<(Caller, T), Status> {
    let caller = request.extensions_mut().remove::<Caller>();
    let caller = caller.ok_or_else(|| Status::unauthenticated("nobody has said who asks"))?;
    Ok((caller, request.into_inner()))
}

/// The hosts that a scope stands for, for the audit log.
fn about(scope: Option<&wire::HostScope>, hosts: Vec<HostId>) -> Scope {
    match scope {
        Some(scope) if *scope != wire::HostScope::default() => Scope::Hosts(hosts),
        _ => Scope::All,
    }
}

/// The same in words.
fn scope_in_words(scope: Option<&wire::HostScope>) -> String {
    let Some(scope) = scope else { return String::new() };
    let hosts = scope.hosts.iter().map(|host| format!(" --host {host}"));
    let user = scope.user.iter().map(|user| format!(" --user {user}"));
    let tags = scope.tags.iter().map(|tag| format!(" --tag {tag}"));
    let systems = scope.systems.iter().map(|system| format!(" --system {system}"));
    hosts.chain(user).chain(tags).chain(systems).collect()
}

fn window_in_words(from_ns: Option<u64>, to_ns: Option<u64>) -> String {
    let (Some(from), Some(to)) = (from_ns, to_ns) else { return String::new() };
    let [from, to] = [from, to].map(alibi_proto::time::Timestamp::from_nanos);
    format!(" --from {from} --to {to}")
}

fn top_in_words(request: &wire::TopRequest) -> String {
    let (of, window) = match (request.of(), &request.question) {
        (wire::TopOf::Processes, Some(asked)) => {
            (format!("processes {}", asked.target), (asked.from_ns, asked.to_ns))
        }
        (wire::TopOf::Remotes, _) => {
            (format!("remotes --process {}", request.process), (request.from_ns, request.to_ns))
        }
        _ => ("hosts".to_owned(), (request.from_ns, request.to_ns)),
    };
    let (window, scope) =
        (window_in_words(Some(window.0), Some(window.1)), scope_in_words(request.scope.as_ref()));
    format!("{of}{window}{scope}")
}

fn host_of(bytes: &[u8]) -> Option<HostId> {
    Some(HostId::from_bytes(bytes.try_into().ok()?))
}

#[tonic::async_trait]
impl Analyst for Service {
    async fn hosts(
        &self,
        request: Request<wire::HostsRequest>,
    ) -> Result<Response<wire::HostsResponse>, Status> {
        let (caller, request) = open(request)?;
        let (detail, scope) = (scope_in_words(request.scope.as_ref()), request.scope.clone());
        let answered = self.blocking(move |service| {
            let agents = service.in_scope(request.scope, None)?;
            let status = |agent| service.status(agent).map_err(store_status);
            let hosts: Vec<_> = agents.into_iter().map(status).collect::<Result<_, _>>()?;
            let ids = hosts.iter().filter_map(|host| Some(host.description.as_ref()?.host)).collect();
            let rows = hosts.len() as u64;
            let response = wire::HostsResponse { hosts: hosts.into_iter().map(Into::into).collect() };
            Ok(Answered { response, rows, about: about(scope.as_ref(), ids) })
        });
        let answered = answered.await;
        self.told(caller, "hosts", detail, answered).await
    }

    async fn who(&self, request: Request<wire::WhoRequest>) -> Result<Response<wire::WhoResponse>, Status> {
        let (caller, request) = open(request)?;
        let detail = match &request.question {
            Some(asked) => {
                let (from, to) =
                    [asked.from_ns, asked.to_ns].map(alibi_proto::time::Timestamp::from_nanos).into();
                format!("{} --from {from} --to {to}{}", asked.target, scope_in_words(request.scope.as_ref()))
            }
            None => String::new(),
        };
        let answered = self.answer_who(request).await;
        self.told(caller, "who", detail, answered).await
    }

    async fn process(
        &self,
        request: Request<wire::ProcessRequest>,
    ) -> Result<Response<wire::ProcessResponse>, Status> {
        let (caller, request) = open(request)?;
        let detail = format!("{}{}", request.process, window_in_words(request.from_ns, request.to_ns));
        let answered = self.blocking(move |service| service.process(&request));
        let answered = answered.await.map(|response| Answered {
            rows: 1,
            about: Scope::Hosts(host_of(&response.host).into_iter().collect()),
            response,
        });
        self.told(caller, "process", detail, answered).await
    }

    async fn executables(
        &self,
        request: Request<wire::ExecutablesRequest>,
    ) -> Result<Response<wire::ExecutablesResponse>, Status> {
        let (caller, request) = open(request)?;
        let new = if request.only_new { " --new" } else { "" };
        let window = window_in_words(Some(request.from_ns), Some(request.to_ns));
        let detail = format!("{}{new}{}", window.trim_start(), scope_in_words(request.scope.as_ref()));
        let answered = self.answer_executables(request).await;
        self.told(caller, "executables", detail, answered).await
    }

    async fn top(&self, request: Request<wire::TopRequest>) -> Result<Response<wire::TopResponse>, Status> {
        let (caller, request) = open(request)?;
        let detail = top_in_words(&request);
        let answered = self.answer_top(request).await;
        self.told(caller, "top", detail, answered).await
    }

    async fn search(
        &self,
        request: Request<wire::SearchRequest>,
    ) -> Result<Response<wire::SearchResponse>, Status> {
        let (caller, request) = open(request)?;
        let asked = search::AskedListing::from(request);
        let (detail, answered) = (asked.in_words(), self.answer_search(asked).await);
        self.told(caller, "search", detail, answered).await
    }

    async fn flows(
        &self,
        request: Request<wire::FlowsRequest>,
    ) -> Result<Response<wire::FlowsResponse>, Status> {
        let (caller, request) = open(request)?;
        let asked = search::AskedListing::from(request);
        let (detail, answered) = (asked.in_words(), self.answer_flows(asked).await);
        self.told(caller, "flows", detail, answered).await
    }

    async fn verify_host(
        &self,
        request: Request<wire::VerifyHostRequest>,
    ) -> Result<Response<wire::VerifyHostResponse>, Status> {
        let (caller, request) = open(request)?;
        let answered = self.answer_verify(request.host.clone()).await.map(|response| Answered {
            rows: response.events,
            about: Scope::Hosts(host_of(&response.host).into_iter().collect()),
            response,
        });
        self.told(caller, "host verify", request.host, answered).await
    }

    async fn add_agent(
        &self,
        request: Request<wire::AddAgentRequest>,
    ) -> Result<Response<wire::AddAgentResponse>, Status> {
        let (caller, request) = open(request)?;
        let answered = self.add(request.address.clone()).await.map(Answered::about_none);
        self.told(caller, "host add", request.address, answered).await
    }

    async fn remove_agent(
        &self,
        request: Request<wire::RemoveAgentRequest>,
    ) -> Result<Response<wire::RemoveAgentResponse>, Status> {
        let (caller, request) = open(request)?;
        let address = request.address.clone();
        let removed = self.blocking(move |service| {
            let removed = service.fleet.remove(&address).map_err(store_status)?;
            if removed { Ok(()) } else { Err(store_status(StoreError::UnknownAgent(address))) }
        });
        let answered = removed.await.map(|()| Answered::about_none(wire::RemoveAgentResponse {}));
        self.told(caller, "host remove", request.address, answered).await
    }

    async fn revoke_host(
        &self,
        request: Request<wire::RevokeHostRequest>,
    ) -> Result<Response<wire::RevokeHostResponse>, Status> {
        let (caller, request) = open(request)?;
        let word = request.host.clone();
        let answered = self.blocking(move |service| service.revoke(&word)).await;
        self.told(caller, "host revoke", request.host, answered).await
    }

    async fn unmark_host(
        &self,
        request: Request<wire::UnmarkHostRequest>,
    ) -> Result<Response<wire::UnmarkHostResponse>, Status> {
        let (caller, request) = open(request)?;
        let word = request.host.clone();
        let answered = self.blocking(move |service| service.unmark(&word)).await;
        self.told(caller, "host unmark", request.host, answered).await
    }

    async fn who_am_i(
        &self,
        request: Request<wire::WhoAmIRequest>,
    ) -> Result<Response<wire::WhoAmIResponse>, Status> {
        let (caller, _) = open(request)?;
        let answered = Answered::about_none(wire::WhoAmIResponse {
            name: caller.name.clone(),
            role: administration::wire_role(caller.role).into(),
            credential: caller.credential.map(|(number, _)| number.0),
            expires_ns: caller.credential.map(|(_, expires)| expires.as_nanos()),
        });
        self.told(caller, "whoami", String::new(), Ok(answered)).await
    }

    async fn create_enrolment_token(
        &self,
        request: Request<wire::CreateEnrolmentTokenRequest>,
    ) -> Result<Response<wire::CreatedToken>, Status> {
        let (caller, request) = open(request)?;
        let detail = format!("--uses {} --tags {:?}", request.uses, request.tags);
        let answered = self.blocking(move |service| service.enrolment_token(request)).await;
        self.told(caller, "token create", detail, answered.map(Answered::about_none)).await
    }

    async fn create_analyst_token(
        &self,
        request: Request<wire::CreateAnalystTokenRequest>,
    ) -> Result<Response<wire::CreatedToken>, Status> {
        let (caller, request) = open(request)?;
        let detail = format!("--name {} --role {:?}", request.name, request.role());
        let answered = self.blocking(move |service| service.analyst_token(&request)).await;
        self.told(caller, "token create", detail, answered.map(Answered::about_none)).await
    }

    async fn credentials(
        &self,
        request: Request<wire::CredentialsRequest>,
    ) -> Result<Response<wire::CredentialsResponse>, Status> {
        let (caller, _) = open(request)?;
        let response = self.list_credentials();
        let rows = response.credentials.len() as u64;
        let answered = Answered { rows, ..Answered::about_none(response) };
        self.told(caller, "token list", String::new(), Ok(answered)).await
    }

    async fn revoke_credential(
        &self,
        request: Request<wire::RevokeCredentialRequest>,
    ) -> Result<Response<wire::RevokeCredentialResponse>, Status> {
        let (caller, request) = open(request)?;
        let number = request.credential;
        let answered = self.blocking(move |service| service.end_credential(number)).await;
        self.told(caller, "token revoke", number.to_string(), answered.map(Answered::about_none)).await
    }

    async fn audit(
        &self,
        request: Request<wire::AuditRequest>,
    ) -> Result<Response<wire::AuditResponse>, Status> {
        let (caller, request) = open(request)?;
        let detail = format!("{:?} {:?}", request.host, request.who);
        let answered = self.blocking(move |service| service.list_audit(request)).await;
        let answered = answered.map(|response| Answered {
            rows: response.entries.len() as u64,
            ..Answered::about_none(response)
        });
        self.told(caller, "audit", detail, answered).await
    }

    async fn verify_audit(
        &self,
        request: Request<wire::VerifyAuditRequest>,
    ) -> Result<Response<wire::VerifyAuditResponse>, Status> {
        let (caller, _) = open(request)?;
        let answered = self.blocking(Self::check_audit).await;
        self.told(caller, "audit verify", String::new(), answered.map(Answered::about_none)).await
    }

    async fn authorities(
        &self,
        request: Request<wire::AuthoritiesRequest>,
    ) -> Result<Response<wire::AuthoritiesResponse>, Status> {
        let (caller, _) = open(request)?;
        let answered = Answered::about_none(self.list_authorities());
        self.told(caller, "ca list", String::new(), Ok(answered)).await
    }

    async fn rotate_authority(
        &self,
        request: Request<wire::RotateAuthorityRequest>,
    ) -> Result<Response<wire::AuthoritiesResponse>, Status> {
        let (caller, _) = open(request)?;
        let answered = self.blocking(|service| {
            service.access.rotate_authority(clock::now()).map_err(access_status)?;
            Ok(Answered::about_none(service.list_authorities()))
        });
        let answered = answered.await;
        self.told(caller, "ca rotate", String::new(), answered).await
    }

    async fn retire_authority(
        &self,
        request: Request<wire::RetireAuthorityRequest>,
    ) -> Result<Response<wire::AuthoritiesResponse>, Status> {
        let (caller, request) = open(request)?;
        let prefix = request.fingerprint.clone();
        let answered = self.blocking(move |service| {
            service.access.retire_authority(&prefix, clock::now()).map_err(access_status)?;
            Ok(Answered::about_none(service.list_authorities()))
        });
        let answered = answered.await;
        self.told(caller, "ca retire", request.fingerprint, answered).await
    }
}

impl Service {
    async fn answer_who(&self, request: wire::WhoRequest) -> Result<Answered<Answer>, Status> {
        let question = Question::try_from(request.question).map_err(invalid)?;
        let window = question.window;
        window
            .not_wholly_in_the_future(clock::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.await_window(request.scope.clone(), window).await?;
        let scope = request.scope.clone();
        let answer = self.blocking(move |service| service.who(question, request.scope)).await?;
        debug_assert!(answer.hosts.iter().all(|host| host.verdict != Verdict::Clear || host.gaps.is_empty()));
        let rows =
            answer.hosts.iter().flat_map(|host| &host.processes).map(|process| process.connections.len());
        let rows = rows.sum::<usize>() as u64;
        let hosts = answer.hosts.iter().filter_map(|host| host.host).collect();
        Ok(Answered { rows, about: about(scope.as_ref(), hosts), response: answer })
    }

    async fn answer_verify(&self, word: String) -> Result<wire::VerifyHostResponse, Status> {
        let (address, name, host, anchors, chain) =
            self.blocking(move |service| service.to_verify(&word)).await?;
        let epoch = chain.anchored.map(|anchored| anchored.epoch);
        let epoch = epoch.ok_or_else(|| {
            Status::failed_precondition(format!(
                "nothing of {name} was anchored yet: there is nothing to verify"
            ))
        })?;
        let verifying = self.fleet.verify(&address, epoch, &anchors);
        let verified = tokio::time::timeout(VERIFY_TIMEOUT, verifying);
        let Verified { from, to, events, anchors, anchors_gone, problems, problems_left_out } =
            verified.await.map_err(|_| Status::deadline_exceeded(format!("{name} took too long")))??;
        Ok(wire::VerifyHostResponse {
            host: host.as_bytes().to_vec(),
            host_name: name,
            from_seq: from.0,
            to_seq: to.0,
            events,
            anchors,
            anchors_gone,
            problems,
            problems_left_out,
            chain: Some(chain.into()),
        })
    }

    async fn add(&self, address: String) -> Result<wire::AddAgentResponse, Status> {
        let address: Address = address.parse().map_err(|error: alibi_proto::address::AddressError| {
            Status::invalid_argument(error.to_string())
        })?;
        let runtime = tokio::runtime::Handle::current();
        let added = self.blocking(move |service| {
            let added = service.fleet.add(&address, &runtime).map_err(store_status)?;
            if added {
                Ok(())
            } else {
                Err(Status::already_exists(format!(
                    "{address} is followed already: `alibi hosts` lists those that are"
                )))
            }
        });
        added.await.map(|()| wire::AddAgentResponse {})
    }
}

fn invalid(error: ConvertError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn store_status(error: StoreError) -> Status {
    let message = error.to_string();
    match error {
        StoreError::TooManyAgents => Status::resource_exhausted(message),
        StoreError::UnknownAgent(_) | StoreError::UnknownHost(_) => Status::not_found(message),
        _ => {
            tracing::error!(error = message, "the store failed");
            Status::internal(message)
        }
    }
}

fn access_status(error: AccessError) -> Status {
    use AccessError::{
        AmbiguousAuthority, Lifetime, Name, NewestAuthority, Request, RequestTooLarge, Tag,
        TooManyAuthorities, TooManyCredentials, TooManyHosts, TooManyLogins, TooManyTags, UnknownAuthority,
        UnknownCredential, UnknownHost, Uses,
    };
    let message = error.outward();
    match error {
        AccessError::Refused(_) => Status::unauthenticated(message),
        UnknownCredential(_) | UnknownHost(_) | UnknownAuthority(_) => Status::not_found(message),
        Uses(_) | Lifetime | Name(_) | TooManyTags(_) | Tag(_) | Request(_) | RequestTooLarge(_) => {
            Status::invalid_argument(message)
        }
        TooManyHosts | TooManyCredentials | TooManyLogins | TooManyAuthorities => {
            Status::resource_exhausted(message)
        }
        AccessError::Revoked(_)
        | AccessError::OtherKey(_)
        | AccessError::Copied(_)
        | AmbiguousAuthority { .. }
        | NewestAuthority
        | AccessError::AuthorityExpired(_) => Status::failed_precondition(message),
        _ => {
            tracing::error!(error = message, "access failed");
            Status::internal(message)
        }
    }
}

/// The one agent that goes by a word.
fn the_one(mut found: Vec<FollowedAgent>, word: &str) -> Result<FollowedAgent, Status> {
    match (found.pop(), found.is_empty()) {
        (Some(agent), true) => Ok(agent),
        _ => Err(Status::invalid_argument(format!("`{word}` names more than one host: write its uuid"))),
    }
}
