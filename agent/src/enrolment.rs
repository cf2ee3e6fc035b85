//! What makes this host one of a collector's: its key, its certificate, whom it believes, and the lease that shows that it is
//! in one place only. All of it in the data directory, readable by its user alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use alibi_proto::{
    address::HostPort,
    data_directory::{read_secret, write_secret},
    time::Timestamp,
    tls::{self, CERTIFICATE_BYTES_MAX, CHAIN_MAX, CertificateDer, Identity, PrivatePkcs8KeyDer, Trust},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

const KEY: &str = "key";
const ENROLMENT: &str = "enrolment.json";
const LEASE: &str = "lease";
const FORMAT: u32 = 1;

/// A host's enrolment with a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// Where the collector is.
    pub collector: HostPort,
    /// The host's certificate, and those that lead to a CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// The CAs that are believed.
    pub authorities: Vec<CertificateDer<'static>>,
    /// When the certificate was received.
    pub issued: Timestamp,
    /// Until when it is valid.
    pub expires: Timestamp,
}

/// The file: certificates in base64 of their DER, times in nanoseconds since 1970.
#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    collector: String,
    chain: Vec<String>,
    authorities: Vec<String>,
    issued: u64,
    expires: u64,
}

impl Enrolment {
    /// The enrolment in a data directory, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(directory: &Path) -> Result<Option<Self>, EnrolmentError> {
        let path = directory.join(ENROLMENT);
        let error = |source| EnrolmentError { path: path.clone(), source };
        let text = match read_secret(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error(source)),
        };
        let written: Written = serde_json::from_slice(&text).map_err(|source| error(source.into()))?;
        written.read().map(Some).map_err(error)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, directory: &Path) -> Result<(), EnrolmentError> {
        let encode = |certificates: &[CertificateDer<'_>]| {
            certificates.iter().map(|der| STANDARD.encode(der)).collect()
        };
        let written = Written {
            format: FORMAT,
            collector: self.collector.to_string(),
            chain: encode(&self.chain),
            authorities: encode(&self.authorities),
            issued: self.issued.as_nanos(),
            expires: self.expires.as_nanos(),
        };
        let path = directory.join(ENROLMENT);
        let done = serde_json::to_vec_pretty(&written).map_err(io::Error::from);
        done.and_then(|text| write_secret(&path, &text)).map_err(|source| EnrolmentError { path, source })
    }

    /// What the host shows of itself.
    ///
    /// # Errors
    /// When there is no key, or it cannot be read.
    pub fn identity(&self, directory: &Path) -> Result<Identity, EnrolmentError> {
        let key = load_key(directory)?.ok_or_else(|| EnrolmentError {
            path: directory.join(KEY),
            source: io::ErrorKind::NotFound.into(),
        })?;
        Ok(Identity { chain: self.chain.clone(), key: key.into() })
    }

    /// Whom the host believes.
    pub fn trust(&self) -> Trust {
        Trust::Authorities(self.authorities.clone())
    }

    /// When a new certificate is due: after a part of the time that this one is good for. Hosts that were enrolled together
    /// take different parts.
    pub fn renewal_due(&self, part: f64) -> Timestamp {
        let lifetime = Duration::from_nanos(self.expires.as_nanos().saturating_sub(self.issued.as_nanos()));
        self.issued.saturating_add(lifetime.mul_f64(part.clamp(0.0, 1.0)))
    }
}

impl Written {
    fn read(self) -> io::Result<Enrolment> {
        let broken =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("its {what} cannot be read"));
        if self.format > FORMAT {
            return Err(io::Error::other(format!(
                "it was written by a newer version (format {})",
                self.format
            )));
        }
        let decode = |texts: Vec<String>, what: &str| {
            if texts.is_empty() || texts.len() > CHAIN_MAX {
                return Err(broken(what));
            }
            let certificate = |text: String| match STANDARD.decode(text) {
                Ok(der) if der.len() <= CERTIFICATE_BYTES_MAX => Ok(CertificateDer::from(der)),
                _ => Err(broken(what)),
            };
            texts.into_iter().map(certificate).collect::<io::Result<Vec<_>>>()
        };
        Ok(Enrolment {
            collector: self.collector.parse().map_err(|_| broken("collector"))?,
            chain: decode(self.chain, "certificate")?,
            authorities: decode(self.authorities, "CAs")?,
            issued: Timestamp::from_nanos(self.issued),
            expires: Timestamp::from_nanos(self.expires),
        })
    }
}

/// The host's key, made if there is none. It is on the disk before anybody is told of it: a certificate whose answer was lost
/// is asked for again with the same key.
///
/// # Errors
/// When it can be neither read nor made.
pub fn load_or_make_key(directory: &Path) -> Result<PrivatePkcs8KeyDer<'static>, EnrolmentError> {
    if let Some(key) = load_key(directory)? {
        return Ok(key);
    }
    let path = directory.join(KEY);
    let made = tls::make_key().map_err(io::Error::other);
    made.and_then(|key| write_secret(&path, STANDARD.encode(key.secret_pkcs8_der()).as_bytes()).map(|()| key))
        .map_err(|source| EnrolmentError { path, source })
}

fn load_key(directory: &Path) -> Result<Option<PrivatePkcs8KeyDer<'static>>, EnrolmentError> {
    let path = directory.join(KEY);
    match read_secret(&path) {
        Ok(text) => match STANDARD.decode(text.trim_ascii()) {
            Ok(key) => Ok(Some(key.into())),
            Err(error) => {
                Err(EnrolmentError { path, source: io::Error::new(io::ErrorKind::InvalidData, error) })
            }
        },
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(EnrolmentError { path, source }),
    }
}

/// Takes away all that makes this host one of a collector's.
///
/// # Errors
/// When something of it stays.
pub fn forget(directory: &Path) -> Result<(), EnrolmentError> {
    for name in [ENROLMENT, LEASE, KEY] {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(EnrolmentError { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// What shows that an identity is in one place only: the collector gives a new one at each connection.
pub type Lease = [u8; 16];

/// The lease that was given last; none where there is none that can be read, which the collector takes for an older one.
pub fn load_lease(directory: &Path) -> Option<Lease> {
    read_secret(&directory.join(LEASE)).ok()?.try_into().ok()
}

/// Keeps a lease; it is on the disk once this returns.
///
/// # Errors
/// When it cannot be written.
pub fn store_lease(directory: &Path, lease: &Lease) -> Result<(), EnrolmentError> {
    let path = directory.join(LEASE);
    write_secret(&path, lease).map_err(|source| EnrolmentError { path, source })
}

/// A file of the enrolment cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the enrolment's {path}: {source}; `alibi-agent enroll` with a new token makes it anew", path = path.display())]
pub struct EnrolmentError {
    path: PathBuf,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enrolment() -> Enrolment {
        Enrolment {
            collector: "collector.example:8440".parse().unwrap(),
            chain: vec![CertificateDer::from(vec![1, 2, 3]), CertificateDer::from(vec![4])],
            authorities: vec![CertificateDer::from(vec![5])],
            issued: Timestamp::from_secs(100),
            expires: Timestamp::from_secs(400),
        }
    }

    #[test]
    fn what_was_written_is_read_and_what_is_forgotten_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(Enrolment::load(path).unwrap(), None);
        assert_eq!(load_lease(path), None);
        enrolment().store(path).unwrap();
        assert_eq!(Enrolment::load(path).unwrap(), Some(enrolment()));
        store_lease(path, &[7; 16]).unwrap();
        assert_eq!(load_lease(path), Some([7; 16]));
        let key = load_or_make_key(path).unwrap();
        assert_eq!(load_or_make_key(path).unwrap().secret_pkcs8_der(), key.secret_pkcs8_der());
        assert_eq!(enrolment().identity(path).unwrap().key.secret_pkcs8_der(), key.secret_pkcs8_der());
        forget(path).unwrap();
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
        assert!(enrolment().identity(path).is_err());
        forget(path).unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_said_and_not_taken_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        enrolment().store(directory.path()).unwrap();
        let path = directory.path().join(ENROLMENT);
        let whole = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"format\": 1", "\"format\": 2"),
            ("collector.example:8440", "collector"),
            ("AQID", "!"),
            ("BQ==", ""),
            ("{", "["),
            ("\"expires\"", "\"x\""),
        ] {
            let changed = whole.replacen(from, to, 1);
            assert_ne!(changed, whole, "{from}");
            fs::write(&path, changed).unwrap();
            let error = Enrolment::load(directory.path()).err().map(|error| error.to_string());
            let is_said = error.as_deref().is_some_and(|error| error.contains("alibi-agent enroll"));
            assert!(is_said || to.is_empty(), "{from}: {error:?}");
        }
    }

    #[test]
    fn a_certificate_is_renewed_before_it_runs_out() {
        let check = |part, secs| assert_eq!(enrolment().renewal_due(part), Timestamp::from_secs(secs));
        check(0.0, 100);
        check(0.5, 250);
        check(1.0, 400);
        check(9.0, 400);
    }
}
