//! Who is believed to be who they are.

use std::{fmt, str::FromStr, sync::Arc};

use ring::digest::{SHA256, digest};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{CERTIFICATE_BYTES_MAX, CHAIN_MAX, Peer, TlsError, provider, roots};

/// SHA-256 of a CA's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a certificate, X.509, DER.
    pub fn of(certificate: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Self(bytes)
    }
}

/// In lowercase hexadecimal.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = TlsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let byte = |index: usize| u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok();
        let mut bytes = [0; 32];
        for (index, slot) in bytes.iter_mut().enumerate() {
            *slot = byte(index).ok_or(TlsError::NotACertificate)?;
        }
        let fingerprint = Self(bytes);
        if fingerprint.to_string() == text { Ok(fingerprint) } else { Err(TlsError::NotACertificate) }
    }
}

/// Says whether somebody who has proven who they are is let in. Asked at every handshake, so it must be quick.
pub trait Admission: fmt::Debug + Send + Sync {
    /// Whether `peer` is let in.
    ///
    /// # Errors
    /// [`CertificateError::Revoked`] where the peer no longer is who they were, and
    /// [`CertificateError::ApplicationVerificationFailure`] where this is none of their business.
    fn admit(&self, peer: Peer) -> Result<(), CertificateError>;
}

/// Whoever shows a certificate of these CAs as [`COLLECTOR_NAME`](super::COLLECTOR_NAME) is the collector.
pub(super) fn authorities(
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(roots(authorities)?, provider())
        .build()
        .map_err(|error| TlsError::NoAuthorities(error.to_string()))
}

fn check_sizes(end_entity: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
    let is_too_large = |certificate: &CertificateDer<'_>| certificate.len() > CERTIFICATE_BYTES_MAX;
    if others.len() >= CHAIN_MAX || is_too_large(end_entity) || others.iter().any(is_too_large) {
        return Err(CertificateError::BadEncoding.into());
    }
    Ok(())
}

/// The collector is whoever shows a certificate of the CA with this fingerprint.
#[derive(Debug)]
pub(super) struct Pinned {
    fingerprint: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    pub(super) fn new(fingerprint: Fingerprint) -> Self {
        Self { fingerprint, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check_sizes(end_entity, intermediates)?;
        let is_it = |certificate: &&CertificateDer<'_>| Fingerprint::of(certificate) == self.fingerprint;
        let authority = intermediates.iter().find(is_it).ok_or(CertificateError::UnknownIssuer)?;
        let verifier = authorities(&[authority.clone().into_owned()])
            .map_err(|_| Error::from(CertificateError::BadEncoding))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// An agent that is dialled is whichever host its certificate says, if that is let in.
#[derive(Debug)]
pub(super) struct AnyHost {
    verifier: Arc<WebPkiServerVerifier>,
    admission: Arc<dyn Admission>,
}

impl AnyHost {
    pub(super) fn new(
        trusted: &[CertificateDer<'static>],
        admission: Arc<dyn Admission>,
    ) -> Result<Self, TlsError> {
        Ok(Self { verifier: authorities(trusted)?, admission })
    }
}

impl ServerCertVerifier for AnyHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check_sizes(end_entity, intermediates)?;
        let peer = peer_of(end_entity)?;
        let name = peer.server_name().map_err(|_| Error::from(CertificateError::BadEncoding))?;
        let verified =
            self.verifier.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)?;
        if !matches!(peer, Peer::Host(_)) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        self.admission.admit(peer)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Lets in who dials, by certificate.
#[derive(Debug)]
pub struct PeerVerifier {
    verifier: Arc<dyn ClientCertVerifier>,
    admission: Arc<dyn Admission>,
}

impl PeerVerifier {
    /// Whoever shows a certificate of these CAs and is admitted. Unless it `is_mandatory`, whoever shows none, too.
    ///
    /// # Errors
    /// When the CAs cannot be used.
    pub fn new(
        authorities: &[CertificateDer<'static>],
        is_mandatory: bool,
        admission: Arc<dyn Admission>,
    ) -> Result<Arc<Self>, TlsError> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots(authorities)?, provider())
            // Whoever dials has one certificate; which CAs there are is nobody's business before.
            .clear_root_hint_subjects();
        let builder = if is_mandatory { builder } else { builder.allow_unauthenticated() };
        let verifier = builder.build().map_err(|error| TlsError::NoAuthorities(error.to_string()))?;
        Ok(Arc::new(Self { verifier, admission }))
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_sizes(end_entity, intermediates)?;
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        self.admission.admit(peer_of(end_entity)?)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn peer_of(certificate: &CertificateDer<'_>) -> Result<Peer, Error> {
    Peer::of(certificate).map_err(|_| CertificateError::ApplicationVerificationFailure.into())
}

/// Never asked: only TLS 1.3 is spoken.
fn no_tls12() -> Error {
    Error::General("only TLS 1.3 is spoken".to_owned())
}
