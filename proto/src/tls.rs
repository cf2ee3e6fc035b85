//! How the two ends know each other: TLS 1.3 alone, certificates of the collector's own CA on both sides, and names in
//! them that say who it is.
//!
//! - The collector is [`COLLECTOR_NAME`], wherever it is reached: its address proves nothing and may change.
//! - A host is `UUID.host.alibi.internal`, an analyst's certificate `NUMBER.analyst.alibi.internal`.
//! - What is spoken is told by ALPN (RFC 7301), so that one port serves all, and nobody reaches a service that is not
//!   meant for them: [`HOME`], [`ENROL`], [`ANALYST`], and [`RECORDER`] where an agent listens.
//!
//! Sessions are not resumed: every connection shows its certificate, which may have been revoked meanwhile.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{PrivateKeyDer, ServerName},
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    version::TLS13,
};

use crate::id::HostId;

mod verify;
mod words;

pub use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
pub use verify::{Admission, Fingerprint, PeerVerifier};
pub use words::in_words;

/// An agent that dials the collector, and is the server from then on.
pub const HOME: &[u8] = b"alibi-call-home/1";
/// Whoever wants a certificate.
pub const ENROL: &[u8] = b"alibi-enrol/1";
/// Analysts: gRPC, and pages.
pub const ANALYST: &[u8] = b"h2";
/// The collector that dials an agent.
pub const RECORDER: &[u8] = b"alibi-recorder/1";

/// The collector's name in its certificate.
pub const COLLECTOR_NAME: &str = "collector.alibi.internal";
const HOST_SUFFIX: &str = ".host.alibi.internal";
const ANALYST_SUFFIX: &str = ".analyst.alibi.internal";

/// Certificates that lead from one end's own to a CA: a few, each small.
pub const CHAIN_MAX: usize = 8;
/// Bytes of one certificate.
pub const CERTIFICATE_BYTES_MAX: usize = 8 << 10;

/// Who a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The collector.
    Collector,
    /// An enrolled host.
    Host(HostId),
    /// An analyst, by the number of the credential.
    Analyst(u64),
}

impl Peer {
    /// Reads the one name in a certificate that has been verified.
    ///
    /// # Errors
    /// When it has none, several, or one that is none of ours.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| TlsError::NotACertificate)?;
        let mut names = parsed.valid_dns_names();
        match (names.next(), names.next()) {
            (Some(name), None) => Self::named(name).ok_or_else(|| TlsError::Stranger(name.to_owned())),
            _ => Err(TlsError::Stranger(String::new())),
        }
    }

    fn named(name: &str) -> Option<Self> {
        if name == COLLECTOR_NAME {
            return Some(Self::Collector);
        }
        let peer = if let Some(host) = name.strip_suffix(HOST_SUFFIX) {
            Self::Host(host.parse().ok()?)
        } else {
            Self::Analyst(name.strip_suffix(ANALYST_SUFFIX)?.parse().ok()?)
        };
        // One way to write each: what else reads as the same was not issued.
        (peer.to_string() == name).then_some(peer)
    }

    fn server_name(self) -> Result<ServerName<'static>, TlsError> {
        let name = self.to_string();
        ServerName::try_from(name.clone()).map_err(|_| TlsError::Stranger(name))
    }
}

/// The name in the certificate.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Collector => f.write_str(COLLECTOR_NAME),
            Self::Host(host) => write!(f, "{host}{HOST_SUFFIX}"),
            Self::Analyst(credential) => write!(f, "{credential}{ANALYST_SUFFIX}"),
        }
    }
}

/// What one end shows: its certificate with those that lead to a CA, and its key.
#[derive(Clone)]
pub struct Identity {
    /// X.509, DER; its own first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS #8, DER.
    pub key: Arc<PrivatePkcs8KeyDer<'static>>,
}

impl Identity {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

/// The key stays out of logs.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Whom a dialler takes for the collector.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Whoever shows a certificate of one of these CAs, X.509, DER.
    Authorities(Vec<CertificateDer<'static>>),
    /// Whoever shows a certificate of the CA that has this fingerprint, and that CA's own.
    Pinned(Fingerprint),
}

/// For dialling the collector, and speaking `protocol` with it. `identity` is shown if it asks.
///
/// # Errors
/// When the identity or the CAs cannot be used.
pub fn to_collector(
    trust: &Trust,
    identity: Option<&Identity>,
    protocol: &[u8],
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier: Arc<dyn rustls::client::danger::ServerCertVerifier> = match trust {
        Trust::Authorities(authorities) => verify::authorities(authorities)?,
        Trust::Pinned(fingerprint) => Arc::new(verify::Pinned::new(*fingerprint)),
    };
    client(verifier, identity, protocol)
}

/// For the collector that dials an agent. `admission` says which hosts it would take.
///
/// # Errors
/// When the identity or the CAs cannot be used.
pub fn to_agent(
    authorities: &[CertificateDer<'static>],
    identity: &Identity,
    admission: Arc<dyn Admission>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = Arc::new(verify::AnyHost::new(authorities, admission)?);
    client(verifier, Some(identity), RECORDER)
}

fn client(
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    identity: Option<&Identity>,
    protocol: &[u8],
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.private_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// For whoever is dialled, and speaks `protocol` with those whom `verifier` lets in.
///
/// # Errors
/// When the identity cannot be used.
pub fn server(
    identity: &Identity,
    verifier: Arc<dyn ClientCertVerifier>,
    protocol: &[u8],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.private_key())?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The name that a dialler asks for. What it is shown is held against whom it trusts, which may be more than one.
///
/// # Errors
/// Never: it is a name.
pub fn collector_server_name() -> Result<ServerName<'static>, TlsError> {
    Peer::Collector.server_name()
}

/// A new key, ECDSA over P-256.
///
/// # Errors
/// When there are no random numbers.
pub fn make_key() -> Result<PrivatePkcs8KeyDer<'static>, TlsError> {
    let key = rcgen::KeyPair::generate().map_err(|error| TlsError::Key(error.to_string()))?;
    Ok(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// A request for a certificate of this key (PKCS #10, DER). Who it is for, whoever signs it decides.
///
/// # Errors
/// When it is no key that can be used.
pub fn certificate_request(key: &PrivatePkcs8KeyDer<'_>) -> Result<Vec<u8>, TlsError> {
    let unusable = |error: rcgen::Error| TlsError::Key(error.to_string());
    let key = rcgen::KeyPair::try_from(key).map_err(unusable)?;
    let params = rcgen::CertificateParams::default();
    Ok(params.serialize_request(&key).map_err(unusable)?.der().to_vec())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities.iter().take(CHAIN_MAX) {
        roots.add(authority.clone())?;
    }
    Ok(Arc::new(roots))
}

/// An identity, a CA or a peer that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The bytes are none.
    #[error("what should be an X.509 certificate is none")]
    NotACertificate,
    /// A certificate for somebody who is not one of ours.
    #[error("the certificate is for `{0}`, who is neither host, analyst nor collector")]
    Stranger(String),
    /// rustls says so.
    #[error("{}", in_words(.0))]
    Rustls(#[from] rustls::Error),
    /// It cannot be made, or used.
    #[error("the key cannot be used: {0}")]
    Key(String),
    /// There are no CAs to verify with.
    #[error("no CA to verify certificates with: {0}")]
    NoAuthorities(String),
}

#[cfg(test)]
mod tests;
