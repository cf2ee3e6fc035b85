//! The collector's own CA: its keys, what it signs, and how one takes over from another.
//!
//! A key lies in `authority/FINGERPRINT.key` of the data directory, for its user alone; all else of a CA in the store. A new
//! key is on the disk before the store knows of its CA, so that a crash leaves a key too many at worst.
//!
//! The newest CA signs. One that takes over is also signed by each that is still believed ("cross-certificate"), and what it
//! signs comes with those: whoever knows only an old one, believes it until the old one is retired or runs out.
//!
//! From a request nothing is taken but its key, and only if who asks has it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use alibi_proto::{
    data_directory::{create_private, make_private, read_secret, write_secret},
    time::Timestamp,
    tls::{CHAIN_MAX, Fingerprint, Identity, Peer},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::{
    pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::ParsedCertificate,
};

use super::{
    credential::random,
    error::AccessError,
    host::{KeyHash, Validity},
};
use crate::store::access::AccessStore;

#[cfg(test)]
mod tests;

/// CAs that are believed at once. The collector's chain has its own certificate, theirs, and the newest one's by each other.
pub const AUTHORITIES_MAX: usize = CHAIN_MAX / 2;
/// A request of ours has about 250.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024;

const DAY: Duration = Duration::from_secs(86_400);
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3_652 * 86_400);
/// A host renews its certificate long before.
pub const HOST_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// An analyst logs in again after so long at the latest.
pub const ANALYST_LIFETIME_MAX: Duration = Duration::from_secs(90 * 86_400);
const COLLECTOR_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// The clock of who verifies may be behind by so much.
const SKEW_MAX: Duration = DAY;

/// A CA, without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// SHA-256 of its certificate.
    pub fingerprint: Fingerprint,
    /// X.509, DER.
    pub certificate: Vec<u8>,
    /// From when.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
    /// Since when it is believed no longer.
    pub retired: Option<Timestamp>,
    /// The same name and key, signed by older CAs.
    pub crosses: Vec<Cross>,
}

impl Authority {
    fn is_believed(&self, now: Timestamp) -> bool {
        self.retired.is_none() && now <= self.not_after
    }
}

/// A cross-certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cross {
    /// Who signed it.
    pub issuer: Fingerprint,
    /// X.509, DER.
    pub certificate: Vec<u8>,
}

/// A certificate that was just signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// X.509, DER: itself first, then what it takes to reach a CA.
    pub chain: Vec<Vec<u8>>,
    /// How long it is good for.
    pub validity: Validity,
}

/// The collector's own certificate and key.
#[derive(Clone, Debug)]
pub struct OwnCertificate {
    /// The key is in memory only. The chain has the CAs themselves, too, for whoever knows a fingerprint only.
    pub identity: Identity,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

/// The key that a certificate is asked for, by somebody who has it.
pub struct RequestedKey {
    key: rcgen::PublicKey,
    hash: KeyHash,
}

impl RequestedKey {
    /// Reads a request (PKCS #10, DER), and sees that it is signed with the key that it is for.
    ///
    /// # Errors
    /// When it is none, too large, not so signed, or of another kind than ECDSA with P-256.
    pub fn read(request: &[u8]) -> Result<Self, AccessError> {
        if request.len() > REQUEST_BYTES_MAX {
            return Err(AccessError::RequestTooLarge(request.len()));
        }
        let request = CertificateSigningRequestDer::from(request);
        let read = CertificateSigningRequestParams::from_der(&request);
        let key = read.map_err(|error| AccessError::Request(unusable(&error)))?.public_key;
        // A curve of another size can go with the same kind of signature.
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT_BYTES {
            return Err(AccessError::Request(ONLY_P256));
        }
        let hash = KeyHash::of(&key.subject_public_key_info());
        Ok(Self { key, hash })
    }

    /// What the key is known by.
    pub fn hash(&self) -> KeyHash {
        self.hash
    }
}

fn unusable(error: &rcgen::Error) -> &'static str {
    match error {
        rcgen::Error::InvalidCertificationRequestSignature => {
            "it is not signed with the key that it is for, or that is of a kind that nobody knows here"
        }
        rcgen::Error::UnsupportedSignatureAlgorithm => ONLY_P256,
        _ => "it is not a request as PKCS #10 (DER) has it, or asks for what nobody needs here",
    }
}

const ONLY_P256: &str =
    "its key is of another kind than ECDSA with P-256 and SHA-256, and only that is signed";
/// Uncompressed.
const P256_POINT_BYTES: usize = 65;

/// All CAs that there are or were, and the key of the newest.
pub(super) struct Authorities {
    directory: PathBuf,
    /// The newest first; never empty.
    all: Vec<Authority>,
    signer: Arc<Issuer<'static, KeyPair>>,
}

impl Authorities {
    /// Reads those that there are, or makes the first.
    pub(super) fn open(data: &Path, store: &AccessStore, now: Timestamp) -> Result<Self, AccessError> {
        let directory = data.join("authority");
        create_private(&directory)
            .and_then(|()| make_private(&directory))
            .map_err(|source| AccessError::Key { path: directory.clone(), source })?;
        let all = store.authorities()?;
        if all.is_empty() {
            return Self::make(directory, all, store, now);
        }
        let signer = Arc::new(signer(&directory, &all[0])?);
        Ok(Self { directory, all, signer })
    }

    /// With a new CA that takes over.
    pub(super) fn rotated(&self, store: &AccessStore, now: Timestamp) -> Result<Self, AccessError> {
        Self::make(self.directory.clone(), self.all.clone(), store, now)
    }

    fn make(
        directory: PathBuf,
        mut all: Vec<Authority>,
        store: &AccessStore,
        now: Timestamp,
    ) -> Result<Self, AccessError> {
        let believed: Vec<&Authority> = all.iter().filter(|old| old.is_believed(now)).collect();
        if believed.len() >= AUTHORITIES_MAX {
            return Err(AccessError::TooManyAuthorities);
        }
        let key = KeyPair::generate()?;
        let until = now.saturating_add(AUTHORITY_LIFETIME);
        let own = own_params(now, until)?;
        let certificate = own.self_signed(&key)?.der().to_vec();
        let cross = |old: &Authority| {
            let signed = cross(&directory, old, &own, &key, now, until)?;
            Ok(Cross { issuer: old.fingerprint, certificate: signed })
        };
        let crosses = believed.into_iter().map(cross).collect::<Result<_, AccessError>>()?;
        let new = Authority {
            fingerprint: Fingerprint::of(&certificate),
            certificate,
            not_before: in_seconds(now.saturating_sub(SKEW_MAX)),
            not_after: in_seconds(until),
            retired: None,
            crosses,
        };
        let path = key_path(&directory, new.fingerprint);
        write_secret(&path, pem(&key).as_bytes()).map_err(|source| AccessError::Key { path, source })?;
        store.add_authority(&new)?;
        all.insert(0, new);
        Ok(Self { directory, all, signer: Arc::new(Issuer::new(own, key)) })
    }

    /// Without the CA whose fingerprint begins so.
    pub(super) fn retired(
        &self,
        prefix: &str,
        store: &AccessStore,
        now: Timestamp,
    ) -> Result<Self, AccessError> {
        let begins = |authority: &&Authority| {
            authority.retired.is_none() && authority.fingerprint.to_string().starts_with(prefix)
        };
        let found: Vec<&Authority> = self.all.iter().filter(begins).collect();
        let fingerprint = match found[..] {
            [one] => one.fingerprint,
            [] => return Err(AccessError::UnknownAuthority(prefix.to_owned())),
            _ => {
                return Err(AccessError::AmbiguousAuthority {
                    prefix: prefix.to_owned(),
                    count: found.len(),
                });
            }
        };
        if fingerprint == self.newest().fingerprint {
            return Err(AccessError::NewestAuthority);
        }
        store.retire_authority(fingerprint, now)?;
        let path = key_path(&self.directory, fingerprint);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "the key of a CA that was retired is still there");
        }
        let mut all = self.all.clone();
        let retired = all.iter_mut().find(|authority| authority.fingerprint == fingerprint);
        retired.into_iter().for_each(|authority| authority.retired = Some(now));
        Ok(Self { directory: self.directory.clone(), signer: Arc::clone(&self.signer), all })
    }

    /// The newest first: it signs.
    pub(super) fn all(&self) -> &[Authority] {
        &self.all
    }

    pub(super) fn newest(&self) -> &Authority {
        &self.all[0]
    }

    /// The certificates of those that are believed, the newest first.
    pub(super) fn believed(&self, now: Timestamp) -> Vec<Vec<u8>> {
        let believed = self.all.iter().filter(|authority| authority.is_believed(now));
        believed.map(|authority| authority.certificate.clone()).collect()
    }

    /// Signs a certificate for a host or an analyst, good until `until` at most.
    pub(super) fn issue(
        &self,
        peer: Peer,
        key: &RequestedKey,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Issued, AccessError> {
        self.sign(peer, &key.key, until, now)
    }

    /// A new key and certificate for the collector itself.
    pub(super) fn own(&self, now: Timestamp) -> Result<OwnCertificate, AccessError> {
        let key = KeyPair::generate()?;
        let issued = self.sign(Peer::Collector, &key, now.saturating_add(COLLECTOR_LIFETIME), now)?;
        let chain = issued.chain.into_iter().chain(self.believed(now)).map(CertificateDer::from).collect();
        let key = Arc::new(PrivatePkcs8KeyDer::from(key));
        Ok(OwnCertificate { identity: Identity { chain, key }, not_after: issued.validity.not_after })
    }

    fn sign(
        &self,
        peer: Peer,
        key: &impl PublicKeyData,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Issued, AccessError> {
        let newest = self.newest();
        if now > newest.not_after {
            return Err(AccessError::AuthorityExpired(newest.not_after));
        }
        let validity = Validity {
            not_before: in_seconds(now.saturating_sub(SKEW_MAX)),
            not_after: in_seconds(until.min(newest.not_after)),
            authority: newest.fingerprint,
        };
        let name = peer.to_string();
        let mut params = params(&name, validity.not_before, validity.not_after)?;
        params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match peer {
            Peer::Analyst(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
            // Either side may have dialled.
            Peer::Host(_) | Peer::Collector => {
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
            }
        };
        let certificate = params.signed_by(key, &self.signer)?.der().to_vec();
        let is_believed = |issuer| {
            self.all.iter().any(|authority| authority.fingerprint == issuer && authority.is_believed(now))
        };
        let crosses = newest.crosses.iter().filter(|cross| is_believed(cross.issuer));
        let crosses = crosses.map(|cross| cross.certificate.clone());
        Ok(Issued { chain: std::iter::once(certificate).chain(crosses).collect(), validity })
    }
}

/// A CA's certificate by itself.
fn own_params(now: Timestamp, until: Timestamp) -> Result<CertificateParams, AccessError> {
    let name: String = random::<4>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut params = params(&format!("Alibi CA {name}"), now.saturating_sub(SKEW_MAX), until)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// The new CA's certificate, signed by an old one.
fn cross(
    directory: &Path,
    old: &Authority,
    own: &CertificateParams,
    key: &KeyPair,
    now: Timestamp,
    until: Timestamp,
) -> Result<Vec<u8>, AccessError> {
    let mut params = own.clone();
    set_validity(&mut params, now.saturating_sub(SKEW_MAX), until.min(old.not_after));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.serial_number = Some(serial_number()?);
    Ok(params.signed_by(key, &signer(directory, old)?)?.der().to_vec())
}

fn params(name: &str, from: Timestamp, until: Timestamp) -> Result<CertificateParams, AccessError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    set_validity(&mut params, from, until);
    params.serial_number = Some(serial_number()?);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Certificates know whole seconds.
fn set_validity(params: &mut CertificateParams, from: Timestamp, until: Timestamp) {
    let since_epoch = |time: Timestamp| Duration::from_secs(time.as_nanos() / 1_000_000_000);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(from);
    params.not_after = epoch + since_epoch(until);
}

fn serial_number() -> Result<SerialNumber, AccessError> {
    let mut number = random::<16>()?;
    // Positive, and of one length.
    number[0] = number[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&number))
}

fn in_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_secs(time.as_nanos() / 1_000_000_000)
}

fn key_path(directory: &Path, fingerprint: Fingerprint) -> PathBuf {
    directory.join(format!("{fingerprint}.key"))
}

/// Who signs as this CA. What has another key would be believed by nobody.
fn signer(directory: &Path, authority: &Authority) -> Result<Issuer<'static, KeyPair>, AccessError> {
    let path = key_path(directory, authority.fingerprint);
    let other = |problem| AccessError::OtherAuthorityKey { path: path.clone(), problem };
    let text = read_secret(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => other("is gone"),
        _ => AccessError::Key { path: path.clone(), source },
    })?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| other("is no PKCS #8 in PEM"))?;
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
        .map_err(|_| other("is no key of ECDSA with P-256"))?;
    let certificate = CertificateDer::from(authority.certificate.as_slice());
    let parsed =
        ParsedCertificate::try_from(&certificate).map_err(|_| other("belongs to a damaged certificate"))?;
    if parsed.subject_public_key_info().as_ref() != key.subject_public_key_info().as_slice() {
        return Err(other("is the key of another CA"));
    }
    Ok(Issuer::from_ca_cert_der(&certificate, key)?)
}

/// PKCS #8 in PEM, as RFC 7468 has it.
fn pem(key: &KeyPair) -> String {
    let body = BASE64_STANDARD.encode(key.serialize_der());
    let lines: String = body
        .as_bytes()
        .chunks(64)
        .flat_map(|line| line.iter().map(|byte| char::from(*byte)).chain(['\n']))
        .collect();
    format!("-----BEGIN PRIVATE KEY-----\n{lines}-----END PRIVATE KEY-----\n")
}
