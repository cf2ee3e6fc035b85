//! Dials: names, both families of addresses, and proxies, as a browser on the same machine would.

use std::{fmt, io, sync::Arc, time::Duration};

use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::{Service as _, ServiceExt as _};

use crate::{
    address::HostPort,
    tls::{self, Peer, TlsError},
};

/// How long it may take to get through, the proxy included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other end may take to prove who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be quiet before the system looks whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// By which proxy what is dialled, if by any.
#[derive(Clone)]
pub struct Proxy(Arc<Matcher>);

impl Proxy {
    /// By what `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, in either case, as curl reads them.
    pub fn from_environment() -> Self {
        Self(Arc::new(Matcher::from_env()))
    }

    /// By this one, `http://[user:password@]host:port`, but for what `NO_PROXY` excepts.
    ///
    /// # Errors
    /// When it is no such URL.
    pub fn through(url: &str) -> Result<Self, ProxyError> {
        let uri: http::Uri = url.parse().map_err(|_| ProxyError)?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            return Err(ProxyError);
        }
        let except = ["NO_PROXY", "no_proxy"].iter().find_map(|name| std::env::var(name).ok());
        Ok(Self(Arc::new(Matcher::builder().all(url).no(except.unwrap_or_default()).build())))
    }

    /// None at all.
    pub fn none() -> Self {
        Self(Arc::new(Matcher::builder().build()))
    }
}

/// A proxy's URL may have a password in it.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxy")
    }
}

/// It is no proxy that can be used.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a proxy is written http://host:port or http://user:password@host:port; what goes through it is encrypted all the same"
)]
pub struct ProxyError;

/// A connection with whom nothing has been proven yet.
///
/// # Errors
/// When there is no way, or no answer in time.
pub async fn connect(address: &HostPort, proxy: &Proxy) -> Result<TcpStream, DialError> {
    let uri: http::Uri =
        format!("https://{address}").parse().map_err(|_| DialError::Unusable(address.to_string()))?;
    let connecting = async {
        let mut connector = connector();
        match proxy.0.intercept(&uri) {
            None => connector.call(uri).await.map_err(|error| DialError::Unreachable {
                address: address.to_string(),
                cause: deepest(&error),
            }),
            Some(intercept) => {
                let via = intercept.uri().clone();
                if via.scheme_str() != Some("http") {
                    return Err(DialError::ProxyUnusable(without_password(&via)));
                }
                let mut tunnel = Tunnel::new(via.clone(), connector);
                if let Some(auth) = intercept.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let tunnel = tunnel.ready().await.map_err(|error| proxy_failed(&via, &error))?;
                tunnel.call(uri).await.map_err(|error| proxy_failed(&via, &error))
            }
        }
    };
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    connected.map_err(|_| DialError::TooSlow(address.to_string()))?.map(TokioIo::into_inner)
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector
}

fn proxy_failed(proxy: &http::Uri, error: &(dyn std::error::Error + 'static)) -> DialError {
    DialError::Proxy { proxy: without_password(proxy), cause: deepest(error) }
}

fn without_password(proxy: &http::Uri) -> String {
    let port = proxy.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", proxy.scheme_str().unwrap_or("http"), proxy.host().unwrap_or_default())
}

/// A connection on which both ends have proven who they are, as far as `config` asks for it, and who the other end is.
///
/// # Errors
/// When there is no way, no answer in time, or no proof.
pub async fn connect_tls(
    address: &HostPort,
    proxy: &Proxy,
    config: Arc<ClientConfig>,
) -> Result<(TlsStream<TcpStream>, Peer), DialError> {
    let stream = connect(address, proxy).await?;
    let handshake = TlsConnector::from(Arc::clone(&config)).connect(tls::collector_server_name()?, stream);
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    let failed = |cause: String| DialError::Handshake { address: address.to_string(), cause };
    let stream = shaken
        .map_err(|_| failed("it took too long over the handshake".to_owned()))?
        .map_err(|error| failed(handshake_in_words(&error)))?;
    let connection = stream.get_ref().1;
    if connection.alpn_protocol().map(<[u8]>::to_vec) != config.alpn_protocols.first().cloned() {
        return Err(failed("it does not speak our protocol".to_owned()));
    }
    let certificates = connection.peer_certificates().unwrap_or_default();
    let certificate = certificates.first().ok_or(TlsError::NotACertificate)?;
    let peer = Peer::of(certificate)?;
    Ok((stream, peer))
}

/// What went wrong in a handshake, or on an encrypted connection, for a person.
pub fn handshake_in_words(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(inner) => tls::in_words(inner),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "it hung up".to_owned(),
        None => error.to_string(),
    }
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No URI can be made of it.
    #[error("`{0}` cannot be dialled")]
    Unusable(String),
    /// Nothing answers there.
    #[error("{address} cannot be reached: {cause}")]
    Unreachable {
        /// What was dialled.
        address: String,
        /// What the system says.
        cause: String,
    },
    /// The proxy does not let through.
    #[error("the proxy {proxy} does not let through: {cause}")]
    Proxy {
        /// The proxy, without its password.
        proxy: String,
        /// What it says.
        cause: String,
    },
    /// Only proxies that are spoken to in HTTP are.
    #[error("the proxy {0} cannot be used: write http://host:port")]
    ProxyUnusable(String),
    /// Nobody answered in time.
    #[error("{0} does not answer")]
    TooSlow(String),
    /// One end does not believe the other.
    #[error("{address} was reached, but {cause}")]
    Handshake {
        /// What was dialled.
        address: String,
        /// What is wrong.
        cause: String,
    },
    /// What this end would show, or whom it believes, cannot be used.
    #[error("{0}")]
    Tls(#[from] TlsError),
}
