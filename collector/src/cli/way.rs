//! The way to the collector: where it is, how it is known, and who asks.
//!
//! In this order: `ALIBI_TOKEN`, which says all of it, for programs; what `alibi login` has kept; and, on the collector's own
//! machine, its socket, where the system says who asks.

use std::{path::PathBuf, sync::Arc};

use alibi_proto::{
    address::{Address, HostPort},
    dial::Proxy,
    tls::{self, Trust},
    token::{Token, TokenKind},
    transport::{self, MESSAGE_BYTES_MAX},
    wire::analyst_client::AnalystClient,
};
use anyhow::{Context as _, Result, bail};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use super::{ToCollectorArgs, credentials::Credentials, patience::Patient};
use crate::access::bearer;

/// Holds a token to ask with.
const TOKEN_VARIABLE: &str = "ALIBI_TOKEN";

/// Where the collector is, and who asks.
#[derive(Clone, Debug)]
pub(super) struct Way {
    address: Address,
    as_whom: AsWhom,
    proxy: Proxy,
}

#[derive(Clone, Debug)]
enum AsWhom {
    /// By a token.
    Token(Token),
    /// By what `alibi login` has kept.
    LoggedIn(Arc<Credentials>),
    /// By the user that this program runs as.
    User,
}

/// A client of the collector.
pub(super) type Client = AnalystClient<InterceptedService<Patient<Channel>, Bearer>>;

impl Way {
    /// As the flags and variables say, or as the login does.
    pub(super) fn find(arguments: &ToCollectorArgs) -> Result<Self> {
        let proxy = arguments.proxy()?;
        let chosen = arguments.collector.clone();
        if let Some(Address::Unix(_)) = chosen {
            let address = chosen.context("it is one")?;
            return Ok(Self { address, as_whom: AsWhom::User, proxy });
        }
        let chosen = chosen.and_then(|address| match address {
            Address::Tcp(address) => Some(address),
            Address::Unix(_) => None,
        });
        // Not as a flag: others could read it there.
        if let Some(token) = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()) {
            let token: Token = token.parse().context(TOKEN_VARIABLE)?;
            if token.kind != TokenKind::User {
                bail!("ALIBI_TOKEN is a token that enrols hosts, and not an analyst's");
            }
            let address = Address::Tcp(chosen.unwrap_or_else(|| token.address.clone()));
            return Ok(Self { address, as_whom: AsWhom::Token(token), proxy });
        }
        let path = arguments.credentials();
        let Some(credentials) = Credentials::find(&path, chosen.as_ref())? else {
            bail!("{}", not_logged_in(chosen.as_ref(), &path));
        };
        let address = Address::Tcp(chosen.unwrap_or_else(|| credentials.collector.clone()));
        Ok(Self { address, as_whom: AsWhom::LoggedIn(Arc::new(credentials)), proxy })
    }

    /// Where it leads, for a message.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// A client, which dials when it is first used.
    pub(super) fn client(&self) -> Result<Client> {
        let mut bearer = None;
        let channel = match (&self.address, &self.as_whom) {
            (Address::Tcp(address), AsWhom::Token(token)) => {
                bearer = Some(bearer::write(&token.secret).parse().context("the token makes no header")?);
                let config = tls::to_collector(&Trust::Pinned(token.authority), None, tls::ANALYST)?;
                transport::channel_to_collector(address.clone(), self.proxy.clone(), config)
            }
            (Address::Tcp(address), AsWhom::LoggedIn(credentials)) => {
                let config =
                    tls::to_collector(&credentials.trust(), Some(&credentials.identity()), tls::ANALYST)?;
                transport::channel_to_collector(address.clone(), self.proxy.clone(), config)
            }
            (local, _) => transport::channel(local).context("the collector cannot be dialled")?,
        };
        Ok(AnalystClient::with_interceptor(Patient(channel), Bearer(bearer))
            .max_decoding_message_size(4 * MESSAGE_BYTES_MAX))
    }
}

fn not_logged_in(chosen: Option<&HostPort>, path: &std::path::Path) -> String {
    let there = chosen.map_or_else(String::new, |address| format!(" at {address}"));
    format!(
        "not logged in to a collector{there} ({} has no such login): `alibi login TOKEN` with a token of its admin, or \
         set ALIBI_TOKEN; on the collector's own machine, --collector unix:DATA/alibi.sock",
        path.display()
    )
}

/// Puts a token into each request, if there is one.
#[derive(Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// What went wrong, for a person: what the collector says, unless it is no collector that speaks.
pub(super) fn in_words(way: &Way) -> impl Fn(Status) -> anyhow::Error {
    use tonic::Code::{
        AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted,
        Unauthenticated, Unavailable, Unimplemented,
    };
    let address = way.address();
    move |status| match status.code() {
        Unavailable => match reason(&status) {
            Some(reason) => anyhow::anyhow!(
                "no collector answers at {address}: {reason}: start one with `alibi serve`, or name another with --collector"
            ),
            None => anyhow::anyhow!("the collector at {address} cannot answer now: {}", status.message()),
        },
        Unimplemented => anyhow::anyhow!(
            "what answers at {address} is no collector that can do this: name another with --collector, or upgrade it"
        ),
        InvalidArgument | NotFound | AlreadyExists | ResourceExhausted | FailedPrecondition
        | PermissionDenied | Unauthenticated
            if !status.message().is_empty() =>
        {
            anyhow::anyhow!("{}", status.message())
        }
        code => anyhow::anyhow!(
            "what answers at {address} failed ({code:?}): {}: see its log, or name another with --collector",
            status.message()
        ),
    }
}

/// Why there was no connection; none where the collector itself speaks.
fn reason(status: &Status) -> Option<String> {
    let mut source = std::error::Error::source(status)?;
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    Some(source.to_string())
}

impl ToCollectorArgs {
    /// The proxy on the way.
    pub(super) fn proxy(&self) -> Result<Proxy> {
        Ok(self.proxy.as_deref().map_or_else(|| Ok(Proxy::from_environment()), Proxy::through)?)
    }

    /// The file of logins.
    pub(super) fn credentials(&self) -> PathBuf {
        self.credentials.clone().unwrap_or_else(super::credentials::default_path)
    }
}
