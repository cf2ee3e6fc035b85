//! Getting certificates from the collector.

use std::{io, path::Path};

use alibi_proto::{
    address::HostPort,
    dial::{self, DialError, Proxy},
    id::HostId,
    time::Timestamp,
    tls::{self, CERTIFICATE_BYTES_MAX, CHAIN_MAX, CertificateDer, Identity, TlsError, Trust},
    token::Token,
    transport::channel_over,
    wire::{self, enrolment_client::EnrolmentClient},
};
use tonic::{Status, transport::Channel};

use crate::enrolment::{self, Enrolment, EnrolmentError};

/// Enrols the host under `host`, with a token, and keeps what it is given.
///
/// # Errors
/// When the collector cannot be reached, is not the one that the token names, or refuses.
pub async fn enrol(
    directory: &Path,
    token: &Token,
    host: HostId,
    name: String,
    proxy: &Proxy,
    now: Timestamp,
) -> Result<Enrolment, CertificateError> {
    let key = enrolment::load_or_make_key(directory)?;
    let mut client = client(&token.address, &Trust::Pinned(token.authority), None, proxy).await?;
    let request = wire::EnrolHostRequest {
        secret: token.secret.to_vec(),
        certificate_request: tls::certificate_request(&key)?,
        host: host.as_bytes().to_vec(),
        name,
    };
    let given = client.enrol_host(request).await?.into_inner();
    keep(directory, &token.address, host, given, now)
}

/// A new certificate for the same key, and keeps it.
pub(super) async fn renew(
    directory: &Path,
    enrolment: &Enrolment,
    proxy: &Proxy,
    now: Timestamp,
) -> Result<Enrolment, CertificateError> {
    let identity = enrolment.identity(directory)?;
    let host = match identity.chain.first().map(tls::Peer::of) {
        Some(Ok(tls::Peer::Host(host))) => host,
        _ => return Err(CertificateError::NotOurs),
    };
    let mut client = client(&enrolment.collector, &enrolment.trust(), Some(&identity), proxy).await?;
    let request = wire::RenewHostRequest { certificate_request: tls::certificate_request(&identity.key)? };
    let given = client.renew_host(request).await?.into_inner();
    keep(directory, &enrolment.collector, host, given, now)
}

async fn client(
    address: &HostPort,
    trust: &Trust,
    identity: Option<&Identity>,
    proxy: &Proxy,
) -> Result<EnrolmentClient<Channel>, CertificateError> {
    let config = tls::to_collector(trust, identity, tls::ENROL)?;
    let (stream, _) = dial::connect_tls(address, proxy, config).await?;
    Ok(EnrolmentClient::new(channel_over(stream).await?))
}

/// Keeps what the collector gave, if it is for this host.
fn keep(
    directory: &Path,
    collector: &HostPort,
    host: HostId,
    given: wire::HostCertificate,
    now: Timestamp,
) -> Result<Enrolment, CertificateError> {
    let enrolment = Enrolment {
        collector: collector.clone(),
        chain: certificates(given.chain)?,
        authorities: certificates(given.authorities)?,
        issued: now,
        expires: Timestamp::from_nanos(given.not_after_ns),
    };
    let is_ours = given.host == host.as_bytes()
        && enrolment.chain.first().is_some_and(|own| tls::Peer::of(own).ok() == Some(tls::Peer::Host(host)));
    if !is_ours {
        return Err(CertificateError::NotOurs);
    }
    // Whether they can be used at all is better known before the old ones are gone.
    let key = enrolment::load_or_make_key(directory)?;
    let identity = Identity { chain: enrolment.chain.clone(), key: key.into() };
    tls::to_collector(&enrolment.trust(), Some(&identity), tls::HOME)?;
    enrolment.store(directory)?;
    Ok(enrolment)
}

fn certificates(ders: Vec<Vec<u8>>) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let is_too_large = |der: &Vec<u8>| der.len() > CERTIFICATE_BYTES_MAX;
    if ders.is_empty() || ders.len() > CHAIN_MAX || ders.iter().any(is_too_large) {
        return Err(CertificateError::NotOurs);
    }
    Ok(ders.into_iter().map(CertificateDer::from).collect())
}

/// There is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// There is no way to the collector, or it is not the one that is meant.
    #[error("{0}")]
    Dial(#[from] DialError),
    /// It does not speak HTTP/2.
    #[error("what answers there is no collector: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// What this host has or was given cannot be used.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// A file of this host cannot be used.
    #[error("{0}")]
    Enrolment(#[from] EnrolmentError),
    /// The collector says no.
    #[error("the collector refuses: {}", .0.message())]
    Refused(#[from] Status),
    /// What the collector gave is not what was asked for.
    #[error("the collector gave a certificate that is not this host's")]
    NotOurs,
    /// The data directory cannot be used.
    #[error("{0}")]
    Io(#[from] io::Error),
}
